"""A bundle answers as the run it was made of: its graphs, and the server on them, for every kind of head."""

import contextlib
import io
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from local_server import ask, classified, local_service
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tokenizers import Tokenizer as RustTokenizer

from bert_mtl.commands import ExportConfig
from bert_mtl.config import TrainConfig
from bert_mtl.embed import Embedder
from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.export import calibration_texts, check_export, dev_part, export, write_bundle, write_tokenizer
from bert_mtl.formats import write_format
from bert_mtl.gates import rows_of
from bert_mtl.kinds import DataError
from bert_mtl.model_card import model_card
from bert_mtl.multitask import make_model
from bert_mtl.predict import Predictor
from bert_mtl.runs import Facts, Run, RunError, load_model, open_run, save_variables, start_run, weights_of
from bert_mtl.served import Served
from bert_mtl.tasks import make_tasks
from bert_mtl.tokenization import Tokenizer, WordPieceTokenizer
from bert_mtl.train import train
from conf import entry
from conf.errors import ConfigError
from serving import engines
from serving.bundle import Bundle, EngineFiles, load_bundle
from serving.config import LimitsConfig
from serving.engines import OPENERS, open_engine
from serving.errors import EngineError, Refused
from serving.service import Service
from serving.stages import Runner
from serving.steps import VECTOR, Item, Step, Vectors
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
        tokenizer.vocab_size, settings.size.hidden_dim, 1, 2, 32, max_positions=32, tasks=len(tasks),
        pooler=settings.pooling == "cls", adapters=settings.adapters, adapter_dim=4,
        task_embedding=settings.task_embedding,
    )  # fmt: skip
    made = make_model(settings, BertEncoder(sizes), make_tasks(config.tasks), seed=0)
    dice = np.random.default_rng(7)
    for variable in weights_of(made).values():  # with BERT's initial weights all texts would get the same answers
        variable.assign(variable + dice.normal(scale=(0.1, 0.8)[variable.ndim > 1], size=variable.shape))
    run = start_run(
        folder,
        config,
        tokenizer,
        Facts(sizes, [task for task in tasks if task in PAIRS], {task: f"{task} data" for task in tasks}, {}),
    )
    save_variables(run.weights, weights_of(made))
    (folder / "metrics.json").write_text(json.dumps({"dev": {"stars": {"mse": 1.0}}, "test": {}}))
    if "stars" in tasks:
        run.tuned.write_text(json.dumps({"stars_tones": {"thresholds": [0.25, 0.5, 0.875]}}))
    return open_run(folder)


def settings(run: Run, folder: Path, *options: str) -> ExportConfig:
    given = [f"run='{run.folder}'", f"bundle='{folder}'", "name=toy", *options]
    return entry.compose("export", given, ExportConfig)


def exported(run: Run, *options: str) -> Path:
    """A bundle of a run that has no data."""
    folder = run.folder.parent / f"{run.folder.name} bundle"
    write_bundle(run, settings(run, folder, "max_drop=null", *options))
    return folder


def server(bundle: Path, engine: str = "savedmodel") -> Callable:
    """What answers texts (and texts_b) in a server around the bundle."""
    loaded = load_bundle(bundle)
    opened = open_engine(engine, loaded)
    limits = LimitsConfig(texts=50, characters=1000, body=10_000, timeout=30.0)
    return lambda *texts: classified(local_service(loaded, [opened], tokens=60, limits=limits), *texts)


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
    return exported(run, f"formats=[{','.join(OPENERS)}]")


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


def test_tasks_with_weights_of_their_own_in_the_encoder_keep_them(tmp_path, tokenizer):
    own = {"adapters": "bottleneck", "task_embedding": "true", "pooling": "cls"}
    run = make_run(tmp_path / "run", ["stars", "follows"], tokenizer, **own)
    answers, predictor = server(exported(run)), Predictor(run.folder)
    assert_alike(answers(TEXTS), predictor.predict(TEXTS))
    assert_alike(answers(TEXTS, TEXTS_B), predictor.predict(TEXTS, TEXTS_B))
    with pytest.raises(Refused, match="vectors cannot be made: tasks have weights of their own in the encoder"):
        encoded(run.folder.parent / "run bundle", "savedmodel", VECTORS)


# --- formats


@pytest.mark.parametrize("engine", [name for name in OPENERS if name != "savedmodel"])
def test_every_format_answers_as_the_run_does(bundle, predictor, engine):
    answers = server(bundle, engine)
    assert_alike(answers(TEXTS), predictor.predict(TEXTS))
    assert_alike(answers(TEXTS, TEXTS_B), predictor.predict(TEXTS, TEXTS_B))


VECTORS = [("cls", [-1]), ("max", [1]), ("mean_max", [0, 1]), ("mean", [0, -1])]


@pytest.fixture(scope="module")
def embedded(predictor) -> list[np.ndarray]:
    return [Embedder(predictor, layers, pooling).embed(TEXTS) for pooling, layers in VECTORS]


@pytest.mark.parametrize("name", [name for name in OPENERS if name != "litert"])
def test_a_bundles_vectors_are_those_of_the_run(bundle, run, embedded, name):
    for found, expected in zip(encoded(bundle, name, VECTORS), embedded, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    engine, rows = open_engine(name, load_bundle(bundle)), rows_of_texts(run, TEXTS)
    both = engine.run(0, rows, ["stars", "layer_1"])
    assert set(both) == {"stars", "layer_1"} and not set(engine.stages[0].vectors) & set(engine.run(0, rows))
    np.testing.assert_allclose(both["layer_1"][:, 0], embedded[0], atol=1e-4)
    with pytest.raises(EngineError, match="the model must give pooled; it gives "):  # as all heads read means
        engine.run(0, rows, ["pooled"])


def encoded(bundle: Path, engine: str, kinds: list[tuple[str, list[int]]]) -> list[np.ndarray]:
    """Vectors of the texts, as a server around the bundle gives them."""
    loaded = load_bundle(bundle)
    limits = LimitsConfig(texts=50, characters=1000, body=10_000, timeout=30.0)
    service = local_service(loaded, [open_engine(engine, loaded)], tokens=200, limits=limits)

    async def question(service: Service) -> list[np.ndarray]:
        found = [await service.encode(TEXTS, pooling=pooling, layers=layers) for pooling, layers in kinds]
        return [np.stack(each.vectors) for each in found]

    return ask(service, question)


def test_of_litert_there_are_no_vectors(bundle, run):
    with pytest.raises(Refused, match="engine must give the states of layers, .*; got litert. Options: "):
        encoded(bundle, "litert", VECTORS)
    loaded = load_bundle(bundle)
    assert set(open_engine("litert", loaded).run(0, rows_of_texts(run, TEXTS))) == set(loaded.manifest.heads)


def test_the_pooled_output_is_that_of_the_pooler(tmp_path, tokenizer):
    run = make_run(tmp_path / "run", ["stars"], tokenizer, pooling="cls")
    kernel, bias = (weight.numpy() for weight in load_model(run, dtype="float32").encoder.pooler.weights)
    first, pooled = encoded(exported(run, "formats=[openvino]"), "openvino", [("cls", [-1]), ("cls_pooled", [-1])])
    np.testing.assert_allclose(pooled, np.tanh(first @ kernel + bias), atol=1e-4)


READERS = {
    "savedmodel": """
        import tensorflow as tf, tensorflow_text
        model = tf.saved_model.load(folder + "/saved_model")
        found = model.signatures["task_stars"](texts=tf.constant(texts))["stars_tones"].numpy()
    """,
    "openvino": """
        import openvino
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().compile_model(folder + "/openvino/model.xml", "CPU", exact)
        found = model(rows)["stars_tones"]
    """,
    "onnx": """
        import onnxruntime
        found = onnxruntime.InferenceSession(folder + "/onnx/model.onnx").run(["stars_tones"], rows)[0]
    """,
    "litert": """
        from ai_edge_litert.interpreter import Interpreter
        found = Interpreter(folder + "/litert/model.tflite").get_signature_runner()(**rows)["stars_tones"]
    """,
    "graphdef": """
        graph = tf.compat.v1.GraphDef.FromString(open(folder + "/graphdef/model.pb", "rb").read())
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            (tensor,) = tf.import_graph_def(graph, return_elements=["stars_tones:0"], name="")
            found = session.run(tensor, {name + ":0": values for name, values in rows.items()})
    """,
}


def test_files_are_read_by_their_runtimes_without_this_project(bundle, predictor, run):
    texts = [text for text in TEXTS if "[MASK]" not in text]  # which the ids below would hold as a mask
    rows = rows_of_texts(run, texts)
    script = f"""
        import json, sys, numpy
        folder, texts, rows = {str(bundle)!r}, *json.loads(sys.argv[1])
        rows = {{name: numpy.array(values, "int32") for name, values in rows.items()}}
    """
    answers = "".join(
        textwrap.dedent(reader) + f"print({name!r}, json.dumps(found.tolist()))\n" for name, reader in READERS.items()
    )
    unknown = 'assert not {"bert_mtl", "serving"} & {*sys.modules}'
    asked = json.dumps([texts, {name: values.tolist() for name, values in rows.items()}])
    command = [sys.executable, "-c", textwrap.dedent(script) + answers + unknown, asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.split(" ")[0] in READERS)
    expected = [list(answer["stars_tones"]["probabilities"].values()) for answer in predictor.predict(texts)]
    assert set(found) == set(READERS) == set(OPENERS)
    for name, numbers in found.items():
        np.testing.assert_allclose(json.loads(numbers), expected, atol=1e-4, err_msg=name)


def rows_of_texts(run: Run, texts: list[str]) -> dict[str, np.ndarray]:
    """What the graph `ids` takes of texts."""
    lines = [text.translate(str.maketrans("\t\n\r", "   ")) for text in texts]
    ids = run.tokenizer.encode(tf.constant(lines)).token_ids
    token_ids = ids.to_tensor(0).numpy().astype(np.int32)
    return {
        "token_ids": token_ids,
        "type_ids": 0 * token_ids,
        "segment_ids": tf.sequence_mask(ids.row_lengths(), dtype=tf.int32).numpy(),
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory, tokenizer) -> Served:
    """A model whose tables are large enough for 8 bits."""
    tf.keras.utils.set_random_seed(1)  # else its weights, and how far 8 bits move its answers, follow from former tests
    run = make_run(tmp_path_factory.mktemp("small") / "run", ["follows"], tokenizer, **{"size.hidden_dim": "64"})
    return Served(load_model(run, dtype="float32"), run.tokenizer, run.tasks, run.facts.pairs)


@pytest.mark.parametrize(
    ("name", "precision", "size", "difference"),
    [
        ("graphdef", "fp16", 0.75, 1e-2),
        ("graphdef", "int8", 0.6, 0.1),
        ("openvino", "fp16", 0.75, 1e-2),
        ("openvino", "bf16", 0.75, 0.1),
        ("openvino", "int8", 0.6, 0.2),
        ("litert", "fp16", 0.75, 1e-2),
        ("litert", "int8", 0.6, 0.2),
        ("onnx", "fp16", 0.75, 1e-2),
        ("onnx", "int8", 0.6, 0.2),
    ],
)
def test_other_precisions_are_smaller_and_answer_almost_alike(small, tmp_path, name, precision, size, difference):
    ids = np.array([[2, 9, 3, 0], [2, 30, 9, 3]], np.int32)
    rows = {"token_ids": ids, "type_ids": 0 * ids, "segment_ids": np.sign(ids)}
    expected = small.ids(**{key: tf.constant(values) for key, values in rows.items()})["follows"].numpy()
    (found,), smaller = answers_in(small, tmp_path / precision, name, precision, rows)
    assert 1e-7 < np.abs(found["follows"] - expected).max() < difference
    if (name, "fp32") not in SIZES:
        (found,), SIZES[name, "fp32"] = answers_in(small, tmp_path / "fp32", name, "fp32", rows)
        assert np.abs(found["follows"] - expected).max() < 1e-5
    assert smaller < size * SIZES[name, "fp32"]


SIZES: dict[tuple[str, str], int] = {}


def answers_in(served: Served, folder: Path, name: str, precision: str, rows: dict) -> tuple[list[dict], int]:
    """What a format answers, and the size of its weights."""
    folder.mkdir()
    files = write_format(name, served, served.stages(exits=False), folder, precision, [rows])
    written = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    manifest = SimpleNamespace(engines={name: EngineFiles.model_validate(files)}, files=written)
    size = sum(size for path, size in written.items() if not path.endswith(".xml"))
    return open_engine(name, Bundle(folder, manifest)).predict(rows), size


def test_threads_that_share_an_engine_get_their_own_answers(bundle):
    engine = open_engine("openvino", load_bundle(bundle))
    asked = [np.array([[2, 9, 30, 3]], np.int32), np.array([[2, 30, 9, 9, 9, 3]], np.int32)]
    rows = [{"token_ids": ids, "type_ids": 0 * ids, "segment_ids": np.sign(ids)} for ids in asked]
    expected = [engine.run(0, each)["stars"] for each in rows]

    def wrong(number: int) -> int:
        return sum(not np.array_equal(engine.run(0, rows[number])["stars"], expected[number]) for _ in range(300))

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(wrong, [0, 1])) == [0, 0]


# --- the gate


def test_a_precision_that_no_format_takes_is_refused_with_the_reason(run, tmp_path):
    with pytest.raises(ConfigError, match="precision must be one that a format takes .*8-bit products.* Options: fp32"):
        settings(run, tmp_path / "bundle", "precision=int8")
    with pytest.raises(ConfigError, match="precision must be .*no bf16 products.* Options: fp32, fp16, int8"):
        settings(run, tmp_path / "bundle", "precision=bf16", "formats=[onnx]")
    with pytest.raises(ConfigError, match="formats must name each format once"):
        settings(run, tmp_path / "bundle", "formats=[openvino,openvino]")


def trained_on(folder: Path, tokenizer: Tokenizer, heads: dict[str, str], *options: str) -> Run:
    """A run with data: tasks whose texts say their labels, learned in a second."""
    vocab = folder / "vocab"
    tokenizer.save(vocab)
    dice = np.random.default_rng(3)
    tasks = []
    for task, head in heads.items():
        labels, words = {"mood": (["a", "z"], ["good", "not"]), "stars": ([1.0, 3.0], ["film", "plot"])}[task]
        for part, count in {"train": 96, "dev": {"mood": 120, "stars": 24}[task], "test": 8}.items():
            kinds = dice.integers(0, 2, count)
            lines = [
                {"text": " ".join([words[kind], *dice.choice(["the", "was"], kind + 1)]), "label": labels[kind]}
                for kind in kinds
            ]
            if (task, part) == ("mood", "dev"):  # a few mistakes, without which there is no temperature
                for line in lines[::6]:
                    line["label"] = {"a": "z", "z": "a"}[line["label"]]
            (folder / f"{task}.{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        source = f"{{format: jsonl, path: '{folder}/{task}.{{part}}.jsonl', columns: {{text: text, {task}: label}}}}"
        tasks.append(f"+tasks.{task}={{heads: {{{task}: {head}}}, sources: {{sample: {source}}}}}")
    config = entry.compose(
        "train",
        ["model=tiny", "model.weights=null", f"tokenizer.vocab='{vocab}/vocab.txt'", "tokenizer.max_length=24",
         "input.pad_to=8",
         "~tasks.imdb", *tasks, "train.epochs=3", "train.batch_size=8", "optimizer.learning_rate=0.003",
         "model.dropout=0", "data.workers=1", f"cache_dir='{folder}/cache'", f"run.dir='{folder}/run'", *options],
        TrainConfig,
    )  # fmt: skip
    train(config)
    return open_run(folder / "run")


MOOD = "{kind: classification, labels: [a, z]}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer) -> Run:
    return trained_on(tmp_path_factory.mktemp("trained"), tokenizer, {"mood": MOOD, "stars": "{kind: regression}"})


@pytest.fixture(scope="module")
def gated(trained, tmp_path_factory) -> tuple[Path, str]:
    """A bundle whose formats were compared on dev, and what the command said of it."""
    folder, said = tmp_path_factory.mktemp("bundles") / "gated", io.StringIO()
    with contextlib.redirect_stdout(said):
        export(settings(trained, folder, "formats=[savedmodel,openvino]", "precision=int8", "max_drop=5"))
    return folder, said.getvalue()


def test_every_format_is_compared_with_the_run_on_dev(gated, trained):
    folder, said = gated
    manifest = load_bundle(folder).manifest
    precisions = {name: files.precision for name, files in manifest.engines.items()}
    assert precisions == {"savedmodel": "fp32", "openvino": "int8"}
    exact, small = manifest.gates["savedmodel"], manifest.gates["openvino"]
    assert set(exact) == set(small) == {"mood", "stars"}
    assert exact["mood"].difference < 1e-5 and exact["mood"].agreement == 1 and abs(exact["mood"].drop) < 1e-6
    assert exact["mood"].metrics["run"] == pytest.approx(trained_metrics(trained)["mood"], abs=1e-4)
    assert 1e-5 < small["mood"].difference < 0.2
    assert "openvino: mood loses " in said
    assert "training.json" in manifest.files and "training.json" not in said
    learned = json.loads((folder / "training.json").read_text())
    assert sum(learned["heads"]["mood"]["labels"].values()) == learned["tasks"]["mood"]["examples"] == 96
    # [CLS], good or not, one or two of the and was, [SEP]
    assert learned["tasks"]["mood"]["lengths"]["edges"] == [2, 3, 4, 6, 8, 12, 16, 24]
    assert learned["tasks"]["mood"]["lengths"]["counts"] == [0, 0, 96, 0, 0, 0, 0]
    assert learned["tasks"]["mood"]["pieces"]["total"] == 96 + 96 + learned["heads"]["mood"]["labels"]["z"]
    assert 1 < learned["heads"]["stars"]["mean"] < 3
    assert (folder / "openvino" / "model.bin").stat().st_size < 0.45 * weights_size(folder)


def trained_metrics(run: Run) -> dict:
    return json.loads((run.folder / "metrics.json").read_text())["dev"]


def weights_size(bundle: Path) -> int:
    return (bundle / "saved_model" / "variables" / "variables.data-00000-of-00001").stat().st_size


def test_every_segment_of_a_batch_is_a_row_of_its_own():
    batch = {
        "token_ids": np.array([[2, 7, 3, 2, 3], [2, 8, 9, 3, 0]]),
        "type_ids": np.array([[0, 0, 0, 0, 0], [0, 0, 1, 1, 0]]),
        "segment_ids": np.array([[1, 1, 1, 2, 2], [3, 3, 3, 3, 0]]),
        "position_ids": np.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]),
    }
    rows = rows_of(batch)
    np.testing.assert_array_equal(rows["token_ids"], [[2, 7, 3, 0], [2, 3, 0, 0], [2, 8, 9, 3]])
    np.testing.assert_array_equal(rows["type_ids"], [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]])
    np.testing.assert_array_equal(rows["segment_ids"], [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


def test_ranges_of_activations_are_taken_from_texts_of_all_lengths(trained):
    texts = calibration_texts(dev_part(trained), 20)
    lengths = [each["token_ids"].shape[1] for each in texts]
    assert len(texts) == 20 and (min(lengths), max(lengths)) == (4, 5)  # [CLS], two or three words, [SEP]
    assert all(each["segment_ids"].all() and len(each["token_ids"]) == 1 for each in texts)


def test_a_format_that_loses_too_much_leaves_no_bundle(trained, tmp_path, monkeypatch):
    run = engines.Engine.run
    monkeypatch.setattr(engines.Engine, "run", lambda *args: {name: -values for name, values in run(*args).items()})
    with pytest.raises(RunError, match=r"max_drop must hold; on dev format graphdef loses mood \d+"):
        write_bundle(trained, settings(trained, tmp_path / "bundle", "formats=[graphdef]"))
    assert list(tmp_path.iterdir()) == []


def test_a_dev_part_that_is_missing_is_told(run, tmp_path):
    with pytest.raises(DataError, match="jsonl"):
        write_bundle(run, settings(run, tmp_path / "bundle"))
    assert list(tmp_path.iterdir()) == []


# --- exits


@pytest.fixture(scope="module")
def staged(tmp_path_factory, tokenizer) -> Run:
    return trained_on(tmp_path_factory.mktemp("staged"), tokenizer, {"mood": MOOD}, "model.exits=[1]")


def test_texts_leave_a_bundle_at_the_runs_exits(staged, tmp_path, capsys):
    asked = ["formats=[savedmodel,openvino,litert]", "precision=int8", "max_drop=2", "exit_drop=2"]
    export(settings(staged, tmp_path / "bundle", *asked))
    bundle = load_bundle(tmp_path / "bundle")
    depths = {name: [stage.depth for stage in files.stages] for name, files in bundle.manifest.engines.items()}
    assert depths == {"savedmodel": [2], "openvino": [1, 2], "litert": [1, 2]}
    assert bundle.manifest.gates["savedmodel"]["mood"].exits is None
    texts = ["good the", "not was the", "good was " * 9, "the film"]
    for name in ("openvino", "litert"):
        first, last = bundle.manifest.engines[name].stages
        exits = bundle.manifest.gates[name]["mood"].exits
        assert exits.drop <= 2 and exits.answered[1] > 0.5 and sum(exits.answered.values()) == pytest.approx(1)
        assert exits.layers == pytest.approx(exits.answered[1] + 2 * exits.answered[2])
        answers = [answer["mood"] for answer in server(tmp_path / "bundle", name)(texts)]
        for text, answer in zip(texts, answers, strict=True):
            early, late = open_engine(name, bundle).predict(rows_of_texts(staged, [text]))
            sure = early["mood"].max() >= first.leave["mood"]
            stage, (numbers,) = (first, early["mood"]) if sure else (last, late["mood"])
            odds = numbers.astype(float) ** (1 / stage.temperature["mood"])
            # Rows of a batch are rounded otherwise than alone.
            assert list(answer["probabilities"].values()) == pytest.approx(odds / odds.sum(), abs=0.05)
    said = capsys.readouterr().out
    assert "points with exits, answering after layer 1: " in said
    assert "savedmodel: in fp32, as TensorFlow has no 8-bit products for a SavedModel of BERT" in said


def test_a_model_in_stages_answers_as_one_that_is_whole(staged):
    model = load_model(staged, dtype="float32")
    served = Served(model, staged.tokenizer, staged.tasks, staged.facts.pairs)
    ids = tf.constant([[2, 9, 3, 0], [2, 30, 9, 3]])
    rows = {"token_ids": ids, "type_ids": 0 * ids, "segment_ids": tf.sign(ids)}
    first, last = served.stages(exits=True)
    passed = first.function(**rows)
    found = last.function(states=passed["next_states"], segment_ids=rows["segment_ids"])
    np.testing.assert_allclose(found["mood"], served.ids(**rows)["mood"], atol=1e-6)
    assert np.abs(passed["mood"] - found["mood"]).max() > 1e-3
    assert [stage.depth for stage in served.stages(exits=False)] == [2]


def test_vectors_of_a_model_in_stages_are_those_of_the_run(staged, tmp_path):
    model = load_model(staged, dtype="float32")
    served = Served(model, staged.tokenizer, staged.tasks, staged.facts.pairs)
    files = EngineFiles.model_validate(
        write_format("openvino", served, served.stages(exits=True), tmp_path, "fp32", [])
    )
    assert [stage.layers for stage in files.stages] == [[0, 1], [2]]
    written = {path.relative_to(tmp_path).as_posix(): "" for path in tmp_path.rglob("*") if path.is_file()}
    loaded = Bundle(tmp_path, SimpleNamespace(engines={"openvino": files}, files=written))
    engine, texts = open_engine("openvino", loaded), ["good the", "not was the plot"]
    arrays = rows_of_texts(staged, texts)
    rows = zip(arrays["token_ids"], arrays["segment_ids"].sum(axis=1), strict=True)
    asked = (("layer_0", "layer_1", "next_states"), ("layer_2",))
    wanted = Vectors((0, 1, 2), "mean", asked)
    items, runner = (
        [Item(key, ids[:length], None, wanted) for key, (ids, length) in enumerate(rows)],
        Runner(engine, {}, 0),
    )
    early, last = (runner.run(Step(stage, items)) for stage in range(2))
    assert [passed.goes_on for passed in (*early, *last)] == [True, True, False, False]
    expected = Embedder(Predictor(staged.folder), [0, 1, 2], "mean").embed(texts)
    np.testing.assert_allclose([passed.outputs[VECTOR] for passed in last], expected, atol=1e-4)
    found = engine.run(0, arrays, ["mood", "next_states", "layer_1"])
    np.testing.assert_array_equal(found["layer_1"], found["next_states"])
    np.testing.assert_allclose(found["mood"], engine.run(0, arrays)["mood"], atol=1e-6)


@pytest.mark.parametrize("name", ["layer_2", "pooled", "next_states"])
def test_heads_may_not_be_called_as_what_else_graphs_give(name):
    model = SimpleNamespace(heads={name: None}, depths=[2])
    with pytest.raises(RunError, match=f"must not have the names of what else graphs take and give; got {name}"):
        check_export(model, False, None)


def test_exits_need_dev(staged, tmp_path):
    with pytest.raises(RunError, match="exit_drop must be null with max_drop=null"):
        write_bundle(staged, settings(staged, tmp_path / "bundle", "formats=[litert]", "max_drop=null"))


# --- calibration


def test_the_server_answers_probabilities_of_the_temperature_that_dev_asks_for(gated):
    bundle, _ = gated
    loaded = load_bundle(bundle)
    gate, (stage,) = loaded.manifest.gates["savedmodel"]["mood"], loaded.manifest.engines["savedmodel"].stages
    found, temperature = gate.calibration, stage.temperature["mood"]
    # all 120 are answered like 0.53 to 0.47, and 100 of them rightly
    assert found.texts == 120 and 0.05 < temperature < 0.2
    assert found.ece_before == pytest.approx(100 / 120 - 0.53, abs=0.03) and found.ece_after < found.ece_before / 2
    assert gate.metrics["export"]["loss"] > 0.6  # of the model's own numbers
    assert loaded.manifest.gates["savedmodel"]["stars"].calibration is None
    texts = ["good the", "not the was"]
    raw = tf.saved_model.load(str(bundle / "saved_model")).signatures["task_mood"](tf.constant(texts))
    odds = raw["mood"].numpy().astype(float) ** (1 / temperature)
    answers = [answer["mood"] for answer in server(bundle)(texts)]
    expected = odds / odds.sum(axis=1, keepdims=True)
    np.testing.assert_allclose([list(answer["probabilities"].values()) for answer in answers], expected, atol=1e-5)
    assert [answer["label"] for answer in answers] == ["a", "z"] and expected.max(axis=1).min() > 0.7


def test_without_a_comparison_there_is_no_temperature_and_thresholds_stay_the_runs(bundle):
    manifest = load_bundle(bundle).manifest
    assert {name: files.stages[0].temperature for name, files in manifest.engines.items()} == dict.fromkeys(OPENERS, {})
    assert manifest.heads["stars_tones"].thresholds == [0.25, 0.5, 0.875]


# --- the graphs


def test_there_is_a_graph_for_texts_for_pairs_for_ids_and_for_each_task(graphs):
    tasks = {f"task_{task}" for task in TASKS if task != "words"}
    assert set(graphs) == {"text", "pair", "ids", "layers", "serving_default", *tasks}
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


def test_tensorflow_serving_finds_a_request_to_every_signature(bundle, graphs):
    file = bundle / "saved_model" / "assets.extra" / "tf_serving_warmup_requests"
    asked = {}
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        request = PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.name == "toy"
        inputs = {name: tf.constant(tf.make_ndarray(proto)) for name, proto in request.inputs.items()}
        answers = graphs[request.model_spec.signature_name](**inputs)
        asked[request.model_spec.signature_name] = {name: tuple(found.shape[:2]) for name, found in answers.items()}
    assert set(asked) == set(graphs)
    assert asked["ids"]["words"] == (2, 24) and asked["task_stars"]["stars_tones"] == (2, 3)


# --- the tokenizer


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_the_rust_library_alone_gives_the_ids_of_the_graph(run, vocab_file, tmp_path, truncation):
    whole = truncation == "head_tail"  # which it cannot say
    graph = WordPieceTokenizer(vocab_file, max_length=200 if whole else 24, truncation="head" if whole else truncation)
    write_tokenizer(replace(run, tokenizer=run.tokenizer if whole else graph), tmp_path)
    rust = RustTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    lines = [text.translate(str.maketrans("\t\n\r", "   ")) for text in TEXTS]
    expected = graph.encode(tf.constant(lines)).token_ids.to_list()
    assert [rust.encode(text).ids for text in TEXTS] == expected
    assert max(map(len, expected)) == (46 if whole else 24)
    pairs = zip(TEXTS, TEXTS_B, strict=True)
    expected = graph.encode(tf.constant(lines), tf.constant(TEXTS_B)).token_ids.to_list()
    assert [rust.encode(*pair).ids for pair in pairs] == expected


# --- the files


@pytest.fixture(scope="module")
def twice(tmp_path_factory, tokenizer) -> tuple[list[Path], list[str]]:
    """A run of masked words alone, exported by the command in two processes: the bundles, and what was said of them."""
    folder = tmp_path_factory.mktemp("twice")
    make_run(folder / "run", ["words"], tokenizer)
    folders = [folder / "one", folder / "other"]
    exports = [
        subprocess.Popen(
            [sys.executable, "-m", "bert_mtl.export", f"run='{folder / 'run'}'", f"bundle='{each}'", "max_drop=null",
             f"formats=[{','.join(OPENERS)}]"],
            stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], text=True,
        )
        for each in folders
    ]  # fmt: skip
    said = [export.communicate()[0] for export in exports]
    assert [export.returncode for export in exports] == [0, 0]
    return folders, said


def test_the_command_says_how_to_serve_the_bundle_also_of_masked_words_alone(twice):
    (bundle, _), (said, _) = twice
    assert "training.json: left out, as no data was read with max_drop=null" in said
    assert f"python -m serving.server bundle={bundle}" in said
    assert load_bundle(bundle).manifest.name == "words"
    assert set(tf.saved_model.load(str(bundle / "saved_model")).signatures) == {"ids", "layers", "serving_default"}
    assert_alike(server(bundle)(TEXTS), Predictor(bundle.parent / "run").predict(TEXTS))


def test_two_processes_export_the_same_files(twice):
    folders, _ = twice
    one, other = (json.loads((folder / "manifest.json").read_text()) for folder in folders)
    assert one["files"] == other["files"]
    assert one == other
    files = {path.relative_to(folders[0]).as_posix() for path in folders[0].rglob("*") if path.is_file()}
    assert set(one["files"]) == files - {"manifest.json", "README.md"}
    assert (folders[0] / "README.md").read_bytes() == (folders[1] / "README.md").read_bytes()
    assert {"saved_model/fingerprint.pb", "tokenizer/tokenizer.json", "litert/model.tflite"} < files


def test_the_card_tells_what_the_manifest_does(gated):
    said = json.loads((gated[0] / "manifest.json").read_text())
    del said["files"]
    assert (gated[0] / "README.md").read_text() == model_card(said)


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
    assert set(json.loads((bundle / "manifest.json").read_text())) == set(type(manifest).model_fields)
    assert manifest.tasks["words"].fingerprint == "words data"
    assert (manifest.training.weights, manifest.training.epochs) == (None, 1)
    assert manifest.engines["openvino"].stages[0].inputs == [
        "token_ids",
        "type_ids",
        "segment_ids",
    ]  # as left by each process
    assert manifest.heads["names_spans"].tags == ["O", "B-who", "I-who", "B-where", "I-where"]
    assert (manifest.version, manifest.data, manifest.metrics["dev"]) == (
        run.folder.name,
        "sample",
        {"stars": {"mse": 1}},
    )


def test_a_bundle_is_never_overwritten_and_an_unfinished_run_makes_none(run, bundle, tmp_path, tokenizer):
    with pytest.raises(RunError, match="bundle must be a folder that does not exist yet"):
        write_bundle(run, settings(run, bundle))
    unfinished = make_run(tmp_path / "run", ["stars"], tokenizer)
    (unfinished.folder / "metrics.json").unlink()
    with pytest.raises(
        RunError, match="run must be finished; .* Continue it with python -m bert_mtl.train run.resume="
    ):
        write_bundle(unfinished, settings(unfinished, tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()
