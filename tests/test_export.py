"""A bundle answers as the run it was made of: its graphs, and the server on them, for every kind of head."""

import asyncio
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.config import ExportConfig, TrainConfig
from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.export import export, write_bundle
from bert_mtl.multitask import make_model
from bert_mtl.predict import Predictor
from bert_mtl.runs import Facts, Run, RunError, open_run, save_variables, start_run, weights_of
from bert_mtl.tasks import make_tasks
from bert_mtl.tokenization import Tokenizer, WordPieceTokenizer
from conf import entry
from serving.bundle import load_bundle
from serving.config import LimitsConfig
from serving.engines import open_engine
from serving.service import Service
from spans.tags import Decoder

TASKS = {
    "stars": "{stars: {kind: regression}, tones: {kind: multilabel, labels: [dry, wry, shy]}}",
    "names": "{spans: {kind: tagging, labels: [who, where], crf: true}, mood: {kind: classification, labels: [a, z]}}",
    "teacher": "{teacher: {kind: vector, dim: 5}}",
    "words": "{words: {kind: mlm}}",
    "follows": "{follows: {kind: classification, labels: [no, maybe, yes]}}",
    "alike": "{alike: {kind: similarity}}",
}
PAIRS = ["follows", "alike"]
TEXTS = [
    "a good film",
    "Good!!  the\tplot, (two films) was   \u201cbad\u201d; 'no' it's\u200b one\n",
    "Anna said: " + "the film was not great. " * 6,  # longer than the model reads
    "ünïcödé 電影 \U0001f600ok it\u2019s cafe\u0301 \x00 \ufeff3.5",
    "the [MASK] was [MASK]. " * 2,
    "\u200b",  # no word at all
]
TEXTS_B = ["it was not", "one", "two three! " * 9, "電影 good", "a [MASK]", "fine"]


def make_run(folder: Path, tasks: list[str], tokenizer: Tokenizer, **model: str) -> Run:
    """A run as a training leaves it, with random weights."""
    tiny = {"size.hidden_dim": "16", "size.intermediate_dim": "32", **model}
    options = ["model=tiny", "tokenizer.max_length=24", "input.pad_to=8", "~tasks.imdb"]
    options += [f"model.{key}={value}" for key, value in tiny.items()]
    source = "sources: {sample: {format: jsonl, path: '{part}.jsonl'}}"
    options += [f"+tasks.{task}={{heads: {TASKS[task]}, {source}}}" for task in tasks]
    config = entry.compose("train", options, TrainConfig)
    settings = config.model
    sizes = EncoderConfig(
        tokenizer.vocab_size, 16, 1, 2, 32, max_positions=32, pooler=settings.pooling == "cls", tasks=len(tasks),
        adapters=settings.adapters, adapter_dim=4, task_embedding=settings.task_embedding,
    )  # fmt: skip
    made = make_model(settings, BertEncoder(sizes), make_tasks(config.tasks), seed=0)
    dice = np.random.default_rng(7)
    for variable in weights_of(made).values():  # with BERT's initial weights all texts would get the same answers
        variable.assign(variable + dice.normal(scale=(0.1, 0.8)[variable.ndim > 1], size=variable.shape))
    run = start_run(folder, config, tokenizer, Facts(sizes, [task for task in tasks if task in PAIRS], {}, {}))
    save_variables(run.weights, weights_of(made))
    (folder / "metrics.json").write_text(json.dumps({"dev": {"stars": {"mse": 1.0}}, "test": {}}))
    return open_run(folder)


def exported(run: Run) -> Path:
    folder = run.folder.parent / f"{run.folder.name} bundle"
    write_bundle(run, folder, "toy")
    return folder


def server(bundle: Path) -> Callable:
    """What answers texts (and texts_b) in a server around the bundle."""
    loaded = load_bundle(bundle)
    limits = LimitsConfig(texts=50, characters=1000, body=10_000)
    service = Service(loaded, open_engine("savedmodel", loaded), limits, batch_tokens=60)
    return lambda *texts: asyncio.run(service.classify(*texts)).results


def assert_alike(found: object, expected: object, where: str = "") -> None:
    """Equality, of numbers to a part in ten thousand."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key in expected:
            assert_alike(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_alike(one, other, f"{where}.{place}")
    else:
        assert found == (pytest.approx(expected, abs=1e-4) if isinstance(expected, float) else expected), where


@pytest.fixture(scope="module")
def tokenizer(vocab_file) -> Tokenizer:
    return WordPieceTokenizer(vocab_file, max_length=24, truncation="head_tail")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer) -> Run:
    """Of tasks of all kinds."""
    return make_run(tmp_path_factory.mktemp("runs") / "every kind", list(TASKS), tokenizer)


@pytest.fixture(scope="module")
def predictor(run) -> Predictor:
    return Predictor(run.folder)


@pytest.fixture(scope="module")
def bundle(run) -> Path:
    return exported(run)


@pytest.fixture(scope="module")
def graphs(bundle):
    model = tf.saved_model.load(str(bundle / "saved_model"))
    yield model.signatures
    del model  # the signatures do not keep its variables alive


@pytest.fixture(scope="module")
def served(bundle) -> Callable:
    return server(bundle)


# --- the server on the bundle


def test_the_server_answers_texts_as_the_run_does(served, predictor):
    answers = served(TEXTS)
    assert_alike(answers, predictor.predict(TEXTS))
    assert {"stars", "stars_tones", "names_spans", "names_mood", "teacher", "words", "alike"} == set(answers[0])
    spans = [span for answer in answers for span in answer["names_spans"]["spans"]]
    assert len({span["type"] for span in spans}) == 2 and len(spans) > 8
    assert [len(answer["words"]["masks"]) for answer in answers] == [0, 0, 0, 0, 4, 0]


def test_the_server_answers_pairs_as_the_run_does(served, predictor):
    answers = served(TEXTS, TEXTS_B)
    assert_alike(answers, predictor.predict(TEXTS, TEXTS_B))
    assert {kind for answer in answers for kind in answer["alike"]} == {"similarity"}


def test_the_command_exports_masked_words_alone_too(tmp_path, tokenizer, capsys):
    run, bundle = make_run(tmp_path / "run", ["words"], tokenizer), tmp_path / "bundle"
    export(ExportConfig(run=str(run.folder), bundle=str(bundle), name=None))
    assert f"python -m serving.server bundle={bundle}" in capsys.readouterr().out
    assert load_bundle(bundle).manifest.name == "words"
    assert set(tf.saved_model.load(str(bundle / "saved_model")).signatures) == {"ids", "serving_default"}
    assert_alike(server(bundle)(TEXTS), Predictor(run.folder).predict(TEXTS))


def test_tasks_with_weights_of_their_own_in_the_encoder_keep_them(tmp_path, tokenizer):
    own = {"adapters": "bottleneck", "task_embedding": "true", "pooling": "cls"}
    run = make_run(tmp_path / "run", ["stars", "follows"], tokenizer, **own)
    answers, predictor = server(exported(run)), Predictor(run.folder)
    assert_alike(answers(TEXTS), predictor.predict(TEXTS))
    assert_alike(answers(TEXTS, TEXTS_B), predictor.predict(TEXTS, TEXTS_B))


# --- the graphs


def test_there_is_a_graph_for_texts_for_pairs_for_ids_and_for_each_task(graphs):
    tasks = {f"task_{task}" for task in TASKS if task != "words"}
    assert set(graphs) == {"text", "pair", "ids", "serving_default", *tasks}
    assert set(graphs["serving_default"].structured_outputs) == set(graphs["text"].structured_outputs)
    assert set(graphs["ids"].structured_outputs) == {*graphs["text"].structured_outputs, "words", "follows"}
    assert set(graphs["task_names"].structured_outputs) == {"names_spans", "names_mood"}
    assert set(graphs["task_alike"].structured_input_signature[1]) == {"texts", "texts_b"}


def test_the_graph_for_texts_gives_the_runs_numbers_and_tags_what_white_space_parts(graphs, run, predictor):
    texts = [text for text in TEXTS if "[MASK]" not in text]
    found = {name: values.numpy() for name, values in graphs["text"](texts=tf.constant(texts)).items()}
    expected = predictor.predict(texts)
    for head, field in {"stars": "value", "teacher": "vector", "alike": "vector"}.items():
        np.testing.assert_allclose(found[head], [answer[head][field] for answer in expected], atol=1e-5)
    for head in ("stars_tones", "names_mood"):
        numbers = [list(answer[head]["probabilities"].values()) for answer in expected]
        np.testing.assert_allclose(found[head], numbers, atol=1e-5)
    tagging = predictor.model.heads["names_spans"].export()
    decoder = Decoder(*(tagging[key] for key in ("tags", "transitions", "start", "end")))
    for text, tags in zip(texts, found["names_spans"], strict=True):
        words = text.split()
        starts = np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()
        places = [(word, start, start + len(word)) for word, start in zip(words, starts, strict=False)]
        read = np.flatnonzero(tags.sum(axis=1))
        spans = decoder.spans(tags[read], [places[word] for word in read], " ".join(words))
        assert_alike(spans, predictor.predict([words])[0]["names_spans"]["spans"])
    assert found["names_spans"].shape == (5, 32, 5)
    assert (found["names_spans"].sum(axis=2) > 0).sum(axis=1)[0] == 3


def test_the_graph_for_pairs_gives_the_runs_numbers(graphs, predictor):
    found = graphs["pair"](texts=tf.constant(TEXTS), texts_b=tf.constant(TEXTS_B))
    expected = predictor.predict(TEXTS, TEXTS_B)
    numbers = [list(answer["follows"]["probabilities"].values()) for answer in expected]
    np.testing.assert_allclose(found["follows"], numbers, atol=1e-5)
    vectors = found["alike"].numpy()
    assert vectors.shape == (6, 2, 16)
    cosines = [answer["alike"]["similarity"] for answer in expected]
    np.testing.assert_allclose((vectors[:, 0] * vectors[:, 1]).sum(axis=1), cosines, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=2), np.ones((6, 2)), atol=1e-5)


def test_a_tasks_graph_gives_the_numbers_of_the_whole(graphs):
    texts, texts_b = tf.constant(TEXTS), tf.constant(TEXTS_B)
    whole = {**graphs["text"](texts=texts), **graphs["pair"](texts=texts, texts_b=texts_b)}
    parts = {**graphs["task_names"](texts=texts), **graphs["task_follows"](texts=texts, texts_b=texts_b)}
    for head, values in parts.items():
        np.testing.assert_allclose(values, whole[head], atol=1e-6)


def test_masked_words_are_guessed_at_masks_alone(graphs, tokenizer):
    ids = np.array([[2, tokenizer.mask_id, 9, 3], [2, 9, 3, 0]], np.int32)
    rows = {"token_ids": ids, "type_ids": 0 * ids, "segment_ids": np.sign(ids)}
    found = graphs["ids"](**{name: tf.constant(values) for name, values in rows.items()})["words"].numpy()
    assert found.shape == (2, 4, 10)
    np.testing.assert_array_equal(np.argwhere(found.any(axis=2)), [[0, 1]])
    guessed, probabilities = np.split(found[0, 1], 2)
    assert len(set(guessed)) == 5 and (0 <= guessed).all() and (guessed < tokenizer.vocab_size).all()
    assert (np.diff(probabilities) <= 0).all() and 0 < probabilities.sum() < 1


def test_one_pass_of_the_encoder_answers_for_all_heads(graphs):
    nodes = [node for f in graphs["ids"].graph.as_graph_def().library.function for node in f.node_def]
    nodes += list(graphs["ids"].graph.as_graph_def().node)
    assert [node.op for node in nodes if node.op == "Erf"] == ["Erf", "Erf"]  # of the layer and of masked words


def test_the_saved_model_answers_in_a_process_that_never_imported_this_project(bundle, predictor):
    script = f"""
        import json, sys, tensorflow as tf, tensorflow_text
        model = tf.saved_model.load({str(bundle / "saved_model")!r})
        answer = model.signatures["task_stars"](texts=tf.constant(json.loads(sys.argv[1])))["stars"].numpy()
        assert "bert_mtl" not in sys.modules
        print(json.dumps(answer.tolist()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), json.dumps(TEXTS[:3])]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    expected = [answer["stars"]["value"] for answer in predictor.predict(TEXTS[:3])]
    np.testing.assert_allclose(json.loads(answer.splitlines()[-1]), expected, atol=1e-5)


# --- the manifest


def test_a_bundle_says_of_every_head_what_it_reads_and_gives(bundle, run):
    manifest = load_bundle(bundle).manifest
    assert {name: (head.task, head.kind, head.reads, head.shape) for name, head in manifest.heads.items()} == {
        "stars": ("stars", "regression", "text", []),
        "stars_tones": ("stars", "multilabel", "text", [3]),
        "names_spans": ("names", "tagging", "words", [5]),
        "names_mood": ("names", "classification", "words", [2]),
        "teacher": ("teacher", "vector", "text", [5]),
        "words": ("words", "mlm", "masks", [10]),
        "follows": ("follows", "classification", "pair", [3]),
        "alike": ("alike", "similarity", "apart", [16]),
    }
    assert manifest.heads["names_spans"].tags == ["O", "B-who", "I-who", "B-where", "I-where"]
    assert (manifest.version, manifest.data, manifest.metrics["dev"]) == (
        run.folder.name,
        "sample",
        {"stars": {"mse": 1}},
    )


def test_a_bundle_is_never_overwritten_and_an_unfinished_run_makes_none(run, bundle, tmp_path, tokenizer):
    with pytest.raises(RunError, match="bundle must be a folder that does not exist yet"):
        write_bundle(run, bundle, "toy")
    unfinished = make_run(tmp_path / "run", ["stars"], tokenizer)
    (unfinished.folder / "metrics.json").unlink()
    with pytest.raises(
        RunError, match="run must be finished; .* Continue it with python -m bert_mtl.train run.resume="
    ):
        write_bundle(unfinished, tmp_path / "bundle", "toy")
    assert not (tmp_path / "bundle").exists()
