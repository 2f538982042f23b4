"""The bundle's contract: what `load_bundle` accepts and refuses, and what heads, tokenizer and engines make of it."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from serving.bundle import Bundle, BundleError, load_bundle, schema
from serving.engines import OPENERS, EngineError, EngineName, open_engine
from serving.heads import KINDS, AnyHead, Seen
from serving.rows import Row, pad
from serving.tokenizer import Tokenizer, truncate
from spans.words import words

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "##s", "very", "!", "[", "]", "sep"]


def head(kind: str, shape: list[int], **more: object) -> dict:
    """What a manifest says of a head; of a kind that answers for a text, unless `more` says another."""
    return {"kind": kind, "task": "tiny", "level": "text", "reads": "text", "shape": shape} | more


HEADS = {"imdb": head("classification", [2], labels=["neg", "pos"])}


def write_bundle(folder: Path, *, heads: dict = HEADS, engines: dict | None = None, **tokenizer: object) -> Path:
    """A bundle with the vocabulary above beside whatever lies in the folder already."""
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer/vocab.txt").write_text("\n".join(VOCAB) + "\n")
    rust = RustTokenizer(WordPiece({token: index for index, token in enumerate(VOCAB)}, unk_token="[UNK]"))
    rust.normalizer, rust.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    rust.save(str(folder / "tokenizer/tokenizer.json"))
    settings = {"kind": "wordpiece", "lowercase": True, "max_length": 8, "truncation": "head"}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    manifest = {
        "format": 4, "name": "tiny", "version": "1", "run": "tiny", "data": "sample", "heads": heads,
        "tasks": {"tiny": {"license": "not stated", "link": None, "fingerprint": "0" * 64, "limit": None}},
        "training": {
            "weights": None, "epochs": 1, "batch_size": 8, "learning_rate": 1e-4, "seed": 1, "mixing": "proportional",
            "weighting": "static",
        },
        "tokenizer": settings | {"pad_id": 0, "cls_id": 2, "sep_id": 3, "mask_id": 4} | tokenizer,
        "engines": engines or {}, "gates": {},
        "metrics": {"dev": {"imdb": {"accuracy": 0.9}}}, "versions": {"tensorflow": "2.21.0"},
        "files": {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def edit_manifest(folder: Path, **changes: object) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return folder


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory) -> Path:
    """A bundle around a SavedModel: p(pos) is (the sum of the token ids) / 100 and p(neg) the rest."""
    tf = pytest.importorskip("tensorflow")
    rows = tf.TensorSpec((None, None), tf.int32)

    class Tiny(tf.Module):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(0.01)  # a variable, so that the folder variables/ exists

        @tf.function(input_signature=[rows, rows, rows])
        def ids(self, token_ids, type_ids, segment_ids):
            positive = self.scale * tf.cast(tf.reduce_sum(token_ids * segment_ids + type_ids, axis=1), tf.float32)
            return {"imdb": tf.stack([1 - positive, positive], axis=1)}

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
        def text(self, texts):
            lengths = tf.strings.length(texts)[:, None]
            return self.ids(lengths, tf.zeros_like(lengths), tf.ones_like(lengths))

    folder, model = tmp_path_factory.mktemp("saved"), Tiny()
    signatures = {"text": model.text, "serving_default": model.text, "ids": model.ids}
    tf.saved_model.save(model, str(folder / "saved_model"), signatures=signatures)
    inputs = ["token_ids", "type_ids", "segment_ids"]
    stages = [{"path": "saved_model", "inputs": inputs, "depth": 2}]
    engines = {"savedmodel": {"precision": "fp32", "stages": stages}}
    return write_bundle(folder, engines=engines)


# --- the folder and its manifest


def test_a_bundle_keeps_what_its_manifest_says(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path))
    assert bundle.manifest.heads["imdb"].labels == ["neg", "pos"]
    assert bundle.manifest.tokenizer.max_length == 8
    assert sorted(bundle.manifest.files) == ["tokenizer/tokenizer.json", "tokenizer/vocab.txt"]
    assert bundle.file("tokenizer/vocab.txt").read_text().split()[5] == "a"


def test_keys_an_exporter_adds_within_the_format_are_let_through(tmp_path):
    assert load_bundle(edit_manifest(write_bundle(tmp_path), license="Apache-2.0")).manifest.name == "tiny"


def test_a_missing_folder_and_a_folder_without_manifest_are_said_by_key(tmp_path):
    with pytest.raises(BundleError, match="^bundle must be a folder that exists; got .*nowhere"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="^bundle must hold a manifest.json; got "):
        load_bundle(tmp_path)
    assert BundleError.user_error


@pytest.mark.parametrize("content", ["", "[1]", '{"name": "x"}', '{"format": "1"}', "\x80"])
def test_a_manifest_that_is_no_manifest_is_not_a_bundle(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BundleError, match="manifest.json must"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("number, advice", [(5, "update the server"), (3, "export the run again")])
def test_another_format_is_refused_before_its_fields_are_read(tmp_path, number, advice):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": number, "everything": "else"}))
    with pytest.raises(BundleError, match=f"has format {number}; this server reads 4: {advice}"):
        load_bundle(tmp_path)


def test_wrong_fields_are_reported_together(tmp_path):
    heads = {
        "stars": head("classification", [2], labels=["a", "a"]),
        "tones": head("multilabel", [3], labels=["a", "b"], thresholds=[0.5, 0.5], reads="nothing"),
        "names": head("tagging", [2], tags=["O", "B-a", "I-a"]),
    }
    with pytest.raises(BundleError) as error:
        load_bundle(write_bundle(tmp_path, heads=heads, max_length=2))
    lines = str(error.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "heads.stars.classification.labels", "heads.tones.multilabel.reads", "heads.names.tagging",
        "tokenizer.max_length",
    ]  # fmt: skip
    assert "shape must be the number of tags, [3]; got [2]" in lines[3]


def test_changed_and_missing_files_are_all_named_with_both_hashes(tmp_path):
    folder = write_bundle(tmp_path)
    vocab = folder / "tokenizer/vocab.txt"
    before = hashlib.sha256(vocab.read_bytes()).hexdigest()
    vocab.write_bytes(vocab.read_bytes().replace(b"bad", b"bag"))
    after = hashlib.sha256(vocab.read_bytes()).hexdigest()
    (folder / "tokenizer/tokenizer.json").unlink()
    with pytest.raises(BundleError) as error:
        load_bundle(folder)
    assert f"tokenizer/vocab.txt has sha256 {after}, the manifest says {before}" in str(error.value)
    assert "tokenizer/tokenizer.json is missing (No such file or directory)" in str(error.value)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "a/../../b"])
def test_a_manifest_cannot_point_outside_its_folder(tmp_path, path):
    with pytest.raises(BundleError, match="must lie inside the bundle"):
        load_bundle(edit_manifest(write_bundle(tmp_path), files={path: "0" * 64}))


def test_a_file_the_manifest_does_not_list_is_never_opened(tmp_path):
    folder = edit_manifest(write_bundle(tmp_path), files={})
    with pytest.raises(BundleError, match="must list tokenizer/tokenizer.json among its manifest's files"):
        Tokenizer(load_bundle(folder))


ROOT = Path(__file__).parents[1]


def test_the_manifests_schema_is_written_down_and_describes_every_field():
    assert json.loads((ROOT / "docs/manifest.schema.json").read_text()) == schema(), (
        "python -m serving.bundle > docs/manifest.schema.json"
    )
    sections = {"Manifest": schema(), **schema()["$defs"]}
    fields = {
        f"{name}.{field}": said for name, section in sections.items() for field, said in section["properties"].items()
    }
    # pydantic leaves out what a section says of itself in the same words
    assert [name for name, said in fields.items() if not ("description" in said or "$ref" in said)] == []
    assert all("description" in section for section in sections.values())
    assert {"Manifest.files", "Gate.drop", "Calibration.ece_after", "StageFiles.temperature", "Tagging.tags"} < set(
        fields
    )


def test_in_the_schema_a_head_is_of_one_kind_alone():
    sections = schema()["$defs"]
    kinds = {name: said["properties"]["kind"] for name, said in sections.items() if "kind" in said["properties"]}
    known = {kind["const"] for kind in kinds.values() if "const" in kind}
    assert set(kinds.pop("Head")["not"]["enum"]) == known == set(KINDS)


# --- the heads


def answer(said: dict, *outputs: object, rows: list[Row] | None = None, temperature: float | None = None) -> dict:
    """The answer of a head to what the model gives for rows."""
    arrays = [np.array(output, np.float32) for output in outputs]
    rows = [Row(np.zeros(0, np.int32), False)] * len(arrays) if rows is None else rows
    seen = Seen(rows, arrays, [temperature] * len(arrays), lambda token_id: f"t{token_id}")
    return TypeAdapter(AnyHead).validate_python(said).answer(seen)


def test_heads_of_texts_say_labels_values_and_vectors():
    chosen = answer(head("classification", [2], labels=["a", "b"]), [0.25, 0.75])
    assert chosen == {"label": "b", "probabilities": {"a": 0.25, "b": 0.75}}
    said = head("multilabel", [3], labels=["a", "b", "c"], thresholds=[0.25, 0.5, 0.1])
    assert answer(said, [0.25, 0.25, 0.75])["labels"] == ["a", "c"]
    assert answer(head("regression", []), -1.5) == {"value": -1.5}
    assert answer(head("vector", [2]), [0.5, 2.0]) == {"vector": [0.5, 2.0]}
    assert answer(head("similarity", [2]), [0.5, 0.5]) == {"vector": [0.5, 0.5]}
    assert answer(head("similarity", [2]), [0.5, 0.5], [0.25, -1.0]) == {"similarity": -0.375}


def test_a_calibrated_head_divides_log_odds_by_its_temperature():
    said = head("classification", [3], labels=["a", "b", "c"])
    chosen = answer(said, [0.1, 0.9, 0.0], temperature=2.0)
    assert chosen["label"] == "b"
    assert chosen["probabilities"] == {"a": pytest.approx(0.25), "b": pytest.approx(0.75), "c": 0.0}
    cold = answer(said, [1e-30, 1e-29, 0.5], temperature=0.05)
    assert cold["probabilities"] == {"a": 0.0, "b": 0.0, "c": 1.0}


def test_a_tagging_head_names_the_spans_of_the_words_that_were_read():
    row = Row(
        np.zeros(6, np.int32), True, None, "a  good film.", [("a", 0, 1), ("good", 3, 7), ("film", 8, 12)], [1, 2, 4]
    )
    tags = [[0, 0, 1], [0.25, 0.75, 0], [0, 0.125, 0.875], [1, 0, 0], [0.25, 0, 0.75], [0, 0, 1]]
    said = head("tagging", [3], tags=["O", "B-x", "I-x"], level="token")
    (span,) = answer(said, tags, rows=[row])["spans"]
    score = pytest.approx(2.375 / 3)
    assert span == {"type": "x", "start": 0, "end": 12, "text": "a  good film", "score": score}
    stops = said | {"transitions": [[0, 0, 0], [0, 0, 0], [0, 0, -9]], "start": [0, 0, 0], "end": [0, 0, 0]}
    assert answer(stops, tags, rows=[row])["spans"][0]["text"] == "a  good"


def test_a_mask_head_says_the_best_tokens_of_each_mask_and_nothing_without_one():
    said = head("mlm", [4], level="mask", reads="masks")
    row = Row(np.zeros(3, np.int32), False, places=[1])
    guesses = [{"token": "t7", "probability": 0.5}, {"token": "t9", "probability": 0.25}]
    assert answer(said, [[0, 0, 0, 0], [7, 9, 0.5, 0.25], [0, 0, 0, 0]], rows=[row]) == {"masks": [guesses]}
    assert answer(said, rows=[]) == {"masks": []}


def test_a_head_of_an_unknown_kind_says_its_numbers():
    assert answer(head("ordinal", [2], steps=3), [0.5, 1.0]) == {"outputs": [[0.5, 1.0]]}


# --- the tokenizer


def ids(rows: list[list[Row]]) -> list[list[list[int]]]:
    return [[row.ids.tolist() for row in text] for text in rows]


def test_ids_stand_between_cls_and_sep(tmp_path):
    rows = Tokenizer(load_bundle(write_bundle(tmp_path))).read("text", ["A GOOD film!", "films", ""])
    assert ids(rows) == [[[2, 5, 6, 8, 11, 3]], [[2, 8, 9, 3]], [[2, 3]]]
    assert rows[0][0].ids.dtype == np.int32 and not any(row.truncated for (row,) in rows)


def test_special_tokens_inside_a_text_are_ordinary_text_but_for_masks_that_are_asked_about(tmp_path):
    tokenizer = Tokenizer(load_bundle(write_bundle(tmp_path)))
    assert ids(tokenizer.read("text", ["good [SEP] film"])) == [[[2, 6, 12, 14, 13, 8, 3]]]
    masked, without = tokenizer.read("masks", ["[MASK] good [MASK]", "good [SEP] film"])
    assert (ids([masked]), masked[0].places, without) == ([[[2, 4, 6, 4, 3]]], [1, 3], [])


def test_words_keep_the_places_of_those_that_are_read(tmp_path):
    tokenizer = Tokenizer(load_bundle(write_bundle(tmp_path, truncation="head_tail")))
    assert tokenizer.words_keep_ids
    ((row,), (empty,)) = tokenizer.read("words", ["films!  Very \x00 good, a film", "\u200b"])
    assert row.ids.tolist() == [2, 8, 9, 6, 1, 5, 8, 3] and row.truncated  # without "! very"
    assert row.words == [("films", 0, 5), ("good", 15, 19), (",", 19, 20), ("a", 21, 22), ("film", 23, 27)]
    assert row.places == [1, 3, 4, 5, 6]
    assert (empty.ids.tolist(), empty.words, empty.places) == ([2, 3], [], [])


def test_of_a_pair_the_longer_text_gives_way_first(tmp_path):
    tokenizer = Tokenizer(load_bundle(write_bundle(tmp_path)))
    texts, texts_b = ["a good film", "a " * 9, "good"], ["bad", "very good", "bad film"]
    rows = tokenizer.read("pair", texts, texts_b)
    assert ids(rows) == [[[2, 5, 6, 8, 3, 7, 3]], [[2, 5, 5, 5, 3, 10, 6, 3]], [[2, 6, 3, 7, 8, 3]]]
    assert [(row.second, row.truncated) for (row,) in rows] == [(5, False), (5, True), (3, False)]
    assert ids(tokenizer.read("apart", texts, texts_b)) == [
        [[2, 5, 6, 8, 3], [2, 7, 3]], [[2, 5, 5, 3], [2, 10, 6, 3]], [[2, 6, 3], [2, 7, 8, 3]],
    ]  # fmt: skip
    assert ids(tokenizer.read("apart", texts)) == ids(tokenizer.read("text", texts))


@pytest.mark.parametrize(
    "truncation, kept",
    [("head", [1, 2, 3, 4, 5, 6]), ("tail", [5, 6, 7, 8, 9, 10]), ("head_tail", [1, 2, 7, 8, 9, 10])],
)
def test_truncation_keeps_the_budget_from_where_it_says(truncation, kept):
    assert truncate(list(range(1, 11)), 6, truncation) == kept
    assert truncate([1, 2, 3, 4, 5, 6], 6, truncation) == [1, 2, 3, 4, 5, 6]
    assert truncate([1, 2], 1, truncation) == ([1] if truncation == "head" else [2])


def test_a_cut_text_is_reported(tmp_path):
    tokenizer = Tokenizer(load_bundle(write_bundle(tmp_path, truncation="head_tail")))
    (fits,), (cut,) = tokenizer.read("text", ["a a a a a a", "a good a a a a film"])
    assert (fits.truncated, fits.ids.tolist()) == (False, [2, 5, 5, 5, 5, 5, 5, 3])
    assert (cut.truncated, cut.ids.tolist()) == (True, [2, 5, 6, 5, 5, 5, 8, 3])


def test_rows_are_padded_to_the_longest_of_them():
    single, pair = Row(np.array([2, 6, 3]), False), Row(np.array([2, 6, 3, 5, 3]), False, second=3)
    rows = pad([single, pair], pad_id=7)
    assert rows.token_ids.tolist() == [[2, 6, 3, 7, 7], [2, 6, 3, 5, 3]]
    assert rows.segment_ids.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert rows.type_ids.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]


TRAINING_TEXTS = [
    "A very, very good film!", "bad [SEP]\nfilms", "", "a " * 50 + "good", "Ä film\u0085s\u3000!", "影 film",
]  # fmt: skip


def assert_training_reads_alike(bundle: Bundle, training: Any) -> None:
    """Every way of reading gives the ids and words of the training's tokenizer."""
    tf = pytest.importorskip("tensorflow")
    tokenizer, texts, texts_b = Tokenizer(bundle), TRAINING_TEXTS, TRAINING_TEXTS[::-1]
    lines, lines_b = (tf.constant([text.replace("\n", " ") for text in column]) for column in (texts, texts_b))
    expected = training.encode(lines)
    rows = [row for (row,) in tokenizer.read("text", texts)]
    assert [row.ids.tolist() for row in rows] == expected.token_ids.to_list()
    assert [row.truncated for row in rows] == expected.truncated.numpy().tolist()
    expected = training.encode(lines, lines_b)
    rows = [row for (row,) in tokenizer.read("pair", texts, texts_b)]
    assert [row.ids.tolist() for row in rows] == expected.token_ids.to_list()
    assert [row.second for row in rows] == expected.second_start.numpy().tolist()
    expected = training.encode(lines, lines_b, separate=True).token_ids.to_list()
    assert [[*one, *other] for one, other in ids(tokenizer.read("apart", texts, texts_b))] == expected
    found = [words(text) for text in texts]
    joined, numbers = training.encode_words(tf.constant([" ".join(word for word, _, _ in text) for text in found]))
    rows = [row for (row,) in tokenizer.read("words", texts)]
    assert [row.ids.tolist() for row in rows] == joined.token_ids.to_list()
    for row, known, begun in zip(rows, found, numbers.to_list(), strict=True):
        assert row.places == [place for place, word in enumerate(begun) if word >= 0]
        assert row.words == [known[word] for word in begun if word >= 0]


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_rows_equal_those_of_training(tmp_path, truncation):
    training = pytest.importorskip("bert_mtl.tokenization")
    folder = write_bundle(tmp_path, truncation=truncation, max_length=7)
    vocab = folder / "tokenizer/vocab.txt"
    training.rust_tokenizer(vocab, lowercase=True).save(str(folder / "tokenizer/tokenizer.json"))
    digest = hashlib.sha256((folder / "tokenizer/tokenizer.json").read_bytes()).hexdigest()
    bundle = load_bundle(edit_manifest(folder, files={"tokenizer/tokenizer.json": digest}))
    tokenizer = training.WordPieceTokenizer(vocab, lowercase=True, max_length=7, truncation=truncation)
    assert_training_reads_alike(bundle, tokenizer)


def sentencepiece_bundle(folder: Path, **settings: object) -> Bundle:
    sentencepiece = pytest.importorskip("sentencepiece")
    (folder / "tokenizer").mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a good film", "a bad film!", "very, very good films!"] * 20),
        model_prefix=str(folder / "tokenizer/spm"), vocab_size=30, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, pad_piece="[PAD]", unk_id=1, unk_piece="[UNK]", bos_id=-1, eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
    )  # fmt: skip
    return load_bundle(write_bundle(folder, kind="sentencepiece", lowercase=False, **settings))


def test_a_sentencepiece_model_gives_its_own_ids(tmp_path):
    bundle = sentencepiece_bundle(tmp_path, max_length=64)
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(bundle.file("tokenizer/spm.model")))
    texts = ["a very good film", "[SEP] film"]
    for text, (row,) in zip(texts, Tokenizer(bundle).read("text", texts), strict=True):
        assert row.ids.tolist() == [2, *model.encode(text), 3]
        assert 3 not in row.ids[1:-1]


def test_sentencepiece_rows_equal_those_of_training(tmp_path):
    training = pytest.importorskip("bert_mtl.tokenization")
    bundle = sentencepiece_bundle(tmp_path, max_length=9)
    assert not Tokenizer(bundle).words_keep_ids
    tokenizer = training.SentencePieceTokenizer(bundle.file("tokenizer/spm.model"), max_length=9)
    assert_training_reads_alike(bundle, tokenizer)


# --- the engines

IDS = np.array([[2, 6, 3, 9], [2, 8, 9, 3]], np.int32)
SEGMENTS = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32)
ROWS = {"token_ids": IDS, "type_ids": np.zeros_like(IDS), "segment_ids": SEGMENTS}


def test_the_config_offers_exactly_the_engines_there_are():
    assert EngineName.__args__ == ("auto", *OPENERS, "dummy")


@pytest.mark.parametrize("name", ["auto", "savedmodel"])
def test_the_saved_model_answers_from_its_ids_signature(saved_model, name):
    (outputs,) = open_engine(name, load_bundle(saved_model)).predict(ROWS)
    assert list(outputs) == ["imdb"]
    np.testing.assert_allclose(outputs["imdb"], [[0.89, 0.11], [0.78, 0.22]], atol=1e-6)


def test_a_saved_model_without_the_ids_signature_is_named(tmp_path):
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.text = tf.function(lambda texts: {"imdb": texts}, input_signature=[tf.TensorSpec((None,), tf.string)])
    tf.saved_model.save(module, str(tmp_path / "saved_model"), signatures={"text": module.text})
    stages = [{"path": "saved_model", "inputs": ["token_ids"], "depth": 2}]
    engines = {"savedmodel": {"precision": "fp32", "stages": stages}}
    with pytest.raises(EngineError, match="must have the signature ids; it has text"):
        open_engine("savedmodel", load_bundle(write_bundle(tmp_path, engines=engines)))


@pytest.mark.parametrize(
    ("stages", "rule"),
    [
        ([{"inputs": ["token_ids"], "depth": 4}, {"inputs": ["states"], "depth": 2}], "be of ascending depth"),
        ([{"inputs": ["states"], "depth": 2}], "take token_ids, each other one states"),
        ([{"inputs": ["token_ids"], "depth": 2}, {"inputs": ["token_ids"], "depth": 4}], "take token_ids, each other"),
        (
            [{"inputs": ["token_ids"], "depth": 2, "leave": {"imdb": 0.9}}],
            "last of the stages must answer all the rest",
        ),
    ],
)
def test_stages_follow_each_other(tmp_path, stages, rule):
    files = {"openvino": {"precision": "fp32", "stages": [{"path": "model.xml"} | stage for stage in stages]}}
    with pytest.raises(BundleError, match=rule):
        load_bundle(write_bundle(tmp_path, engines=files))


def test_auto_names_the_other_engines_where_its_own_cannot_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    stages = [{"path": "model", "inputs": ["token_ids"], "depth": 2}]
    engines = {name: {"precision": "fp32", "stages": stages} for name in ("graphdef", "onnx", "savedmodel")}
    bundle = load_bundle(write_bundle(tmp_path, engines=engines))
    missing = r"^engine onnx needs ONNX Runtime \(pip install onnxruntime\): .*"
    with pytest.raises(EngineError, match=missing + r"The bundle has others: engine=savedmodel or engine=graphdef$"):
        open_engine("auto", bundle)
    with pytest.raises(EngineError, match=missing + r"sys.modules$"):
        open_engine("onnx", bundle)


def test_an_engine_without_files_is_refused_and_auto_never_takes_the_dummy(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path))
    for name in ("savedmodel", "auto"):
        with pytest.raises(EngineError, match=f"^engine must be one .* got {name}. Options: dummy."):
            open_engine(name, bundle)


def test_the_dummy_answers_by_the_tokens_alone_whatever_the_padding(tmp_path):
    engine = open_engine("dummy", load_bundle(write_bundle(tmp_path)))
    padded = engine.run(0, ROWS)["imdb"]
    alone = engine.run(0, {name: values[:1, :3] for name, values in ROWS.items()})["imdb"]
    np.testing.assert_allclose(padded, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(padded[:1], alone)


def test_the_dummy_has_numbers_of_every_shape(tmp_path):
    heads = {"stars": head("regression", []), "names": head("tagging", [3], tags=["O", "B-a", "I-a"], level="token")}
    found = open_engine("dummy", load_bundle(write_bundle(tmp_path, heads=heads))).run(0, ROWS)
    assert found["stars"].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(found["names"][0, 0], [3 / 6, 1 / 6, 2 / 6], rtol=1e-6)  # of token 2
    assert found["names"].shape == (2, 4, 3)
