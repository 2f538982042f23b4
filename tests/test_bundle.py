"""The bundle's contract: what `load_bundle` accepts and refuses, and what tokenizer and engines make of it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from serving.bundle import BundleError, load_bundle
from serving.engines import ENGINES, EngineError, EngineName, open_engine
from serving.tokenizer import Tokenizer, truncate

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
        "format": 2, "name": "tiny", "version": "1", "created": "2026-01-01T00:00:00Z", "run": "runs/tiny",
        "data": "sample", "heads": heads,
        "tokenizer": settings | {"pad_id": 0, "cls_id": 2, "sep_id": 3, "mask_id": 4} | tokenizer,
        "engines": engines or {}, "metrics": {"dev": {"imdb": {"accuracy": 0.9}}}, "versions": {"tensorflow": "2.21.0"},
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
    engines = {"savedmodel": {"path": "saved_model", "inputs": inputs, "dtype": "int32"}}
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


def test_a_newer_format_is_refused_before_its_fields_are_read(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 2, "everything": "else"}')
    with pytest.raises(BundleError, match=r"has format 2; this server reads up to 1: update the server"):
        load_bundle(tmp_path)


def test_wrong_fields_are_reported_together(tmp_path):
    folder = write_bundle(tmp_path, heads={"stars": {"kind": "regression", "labels": ["a", "a"]}}, max_length=2)
    with pytest.raises(BundleError) as error:
        load_bundle(folder)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "heads.stars.kind", "heads.stars.labels", "tokenizer.max_length",
    ]  # fmt: skip


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


# --- the tokenizer


def test_ids_stand_between_cls_and_sep(tmp_path):
    encoded = Tokenizer(load_bundle(write_bundle(tmp_path))).encode(["A GOOD film!", "films", ""])
    assert [row.ids.tolist() for row in encoded] == [[2, 5, 6, 8, 11, 3], [2, 8, 9, 3], [2, 3]]
    assert encoded[0].ids.dtype == np.int32 and not any(row.truncated for row in encoded)


def test_special_tokens_inside_a_text_are_ordinary_text(tmp_path):
    (encoded,) = Tokenizer(load_bundle(write_bundle(tmp_path))).encode(["good [SEP] film"])
    assert encoded.ids.tolist() == [2, 6, 12, 14, 13, 8, 3]


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
    fits, cut = tokenizer.encode(["a a a a a a", "a good a a a a film"])
    assert (fits.truncated, fits.ids.tolist()) == (False, [2, 5, 5, 5, 5, 5, 5, 3])
    assert (cut.truncated, cut.ids.tolist()) == (True, [2, 5, 6, 5, 5, 5, 8, 3])


def test_rows_are_padded_to_the_longest_of_them(tmp_path):
    tokenizer = Tokenizer(load_bundle(write_bundle(tmp_path, pad_id=7)))
    rows = tokenizer.pad(tokenizer.encode(["good", "very good"]))
    assert rows.token_ids.tolist() == [[2, 6, 3, 7], [2, 10, 6, 3]]
    assert rows.segment_ids.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert rows.type_ids.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_ids_equal_those_of_training(tmp_path, truncation):
    tf = pytest.importorskip("tensorflow")
    training = pytest.importorskip("bert_mtl.tokenization")
    folder = write_bundle(tmp_path, truncation=truncation, max_length=7)
    vocab = folder / "tokenizer/vocab.txt"
    training.rust_tokenizer(vocab, lowercase=True).save(str(folder / "tokenizer/tokenizer.json"))
    digest = hashlib.sha256((folder / "tokenizer/tokenizer.json").read_bytes()).hexdigest()
    edit_manifest(folder, files={"tokenizer/tokenizer.json": digest})
    texts = ["A very, very good film!", "bad [SEP] films", "", "a " * 50 + "good", "Ä film\u0085s\u3000!", "影 film"]
    expected = training.WordPieceTokenizer(vocab, lowercase=True, max_length=7, truncation=truncation)
    expected = expected.encode(tf.constant(texts))
    actual = Tokenizer(load_bundle(folder)).encode(texts)
    assert [row.ids.tolist() for row in actual] == expected.token_ids.to_list()
    assert [row.truncated for row in actual] == expected.truncated.numpy().tolist()


def test_a_sentencepiece_model_gives_its_own_ids(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer").mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a good film", "a bad film", "very good films"] * 20),
        model_prefix=str(tmp_path / "tokenizer/spm"), vocab_size=30, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, pad_piece="[PAD]", unk_id=1, unk_piece="[UNK]", bos_id=-1, eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
    )  # fmt: skip
    bundle = load_bundle(write_bundle(tmp_path, kind="sentencepiece", lowercase=False, max_length=64))
    model = sentencepiece.SentencePieceProcessor(model_file=str(bundle.file("tokenizer/spm.model")))
    texts = ["a very good film", "[SEP] film"]
    for text, row in zip(texts, Tokenizer(bundle).encode(texts), strict=True):
        assert row.ids.tolist() == [2, *model.encode(text), 3]
        assert 3 not in row.ids[1:-1]


# --- the engines

IDS = np.array([[2, 6, 3, 9], [2, 8, 9, 3]], np.int32)
ZEROS, SEGMENTS = np.zeros_like(IDS), np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32)


def test_the_config_offers_exactly_the_engines_there_are():
    assert EngineName.__args__ == ("auto", *ENGINES)


@pytest.mark.parametrize("name", ["auto", "savedmodel"])
def test_the_saved_model_answers_from_its_ids_signature(saved_model, name):
    outputs = open_engine(name, load_bundle(saved_model)).predict(IDS, ZEROS, SEGMENTS)
    assert list(outputs) == ["imdb"]
    np.testing.assert_allclose(outputs["imdb"], [[0.89, 0.11], [0.78, 0.22]], atol=1e-6)


def test_a_saved_model_without_the_ids_signature_is_named(tmp_path):
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.text = tf.function(lambda texts: {"imdb": texts}, input_signature=[tf.TensorSpec((None,), tf.string)])
    tf.saved_model.save(module, str(tmp_path / "saved_model"), signatures={"text": module.text})
    engines = {"savedmodel": {"path": "saved_model", "inputs": ["token_ids"], "dtype": "int32"}}
    with pytest.raises(EngineError, match="must have the signature ids; it has text"):
        open_engine("savedmodel", load_bundle(write_bundle(tmp_path, engines=engines)))


def test_an_engine_without_files_is_refused_and_auto_never_takes_the_dummy(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path))
    for name in ("savedmodel", "auto"):
        with pytest.raises(EngineError, match=f"^engine must be one .* got {name}. Options: dummy."):
            open_engine(name, bundle)


def test_the_dummy_answers_by_the_tokens_alone_whatever_the_padding(tmp_path):
    engine = open_engine("dummy", load_bundle(write_bundle(tmp_path)))
    padded = engine.predict(IDS, ZEROS, SEGMENTS)["imdb"]
    alone = engine.predict(IDS[:1, :3], ZEROS[:1, :3], SEGMENTS[:1, :3])["imdb"]
    np.testing.assert_allclose(padded, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(padded[:1], alone)
