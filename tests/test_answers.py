"""What a finished run is for: predict, embed, export, serve; all of them give the same probabilities."""

import gzip
import json
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest

import bert_mtl
from bert_mtl.config import EmbedConfig, PredictConfig
from bert_mtl.embed import Embedder, embed
from bert_mtl.export import write_bundle
from bert_mtl.predict import Predictor, predict
from bert_mtl.runs import RunError, open_run
from bert_mtl.tasks import DataError
from conf.errors import ConfigError
from serving.bundle import load_bundle
from serving.engines import open_engine
from serving.tokenizer import Tokenizer

TEXTS = ["a good film", "the plot was bad and the movie dull", "bad", "Good! " * 40, "ünïcödé 電影 \U0001f600 good"]


@pytest.fixture(scope="module")
def predictor(toy_run) -> Predictor:
    return bert_mtl.load(toy_run)


@pytest.fixture(scope="module")
def bundle_folder(toy_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "toy"
    write_bundle(open_run(toy_run), folder, "toy")
    return folder


def positive(answers):
    return np.array([answer["imdb"]["probabilities"]["pos"] for answer in answers])


def test_predict_answers_each_text_with_its_label_and_probabilities(predictor):
    answers = predictor.predict(TEXTS)
    assert [answer["imdb"]["label"] for answer in answers[:3]] == ["pos", "neg", "neg"]
    assert all(abs(sum(answer["imdb"]["probabilities"].values()) - 1) < 1e-9 for answer in answers)
    assert predictor.predict([]) == []


def test_an_answer_does_not_depend_on_the_texts_beside_it(predictor):
    together = positive(predictor.predict(TEXTS, batch_size=2))
    alone = positive([predictor.predict([text])[0] for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_an_empty_text_is_named_by_its_place(predictor):
    with pytest.raises(DataError, match=r"texts\[1\] must not be empty; got '  '"):
        predictor.predict(["fine", "  "])


def test_one_text_or_pairs_are_refused_where_a_list_of_single_texts_is_read(predictor):
    with pytest.raises(TypeError, match=r"texts must be a list of texts; got one text"):
        predictor.predict("a good film")
    with pytest.raises(DataError, match="learned from single texts: leave texts_b out"):
        predictor.predict(["a"], ["b"])


def test_a_file_of_texts_becomes_a_file_of_answers_in_order(predictor, toy_run, tmp_path):
    lines = [f"{'good' if n % 3 else 'bad'} film {n}" for n in range(1500)]  # more than one chunk
    with gzip.open(tmp_path / "in.txt.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    source, target = str(tmp_path / "in.txt.gz"), tmp_path / "out.jsonl"
    predict(PredictConfig(run=str(toy_run), text=None, input=source, output=str(target), batch_size=64))
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["text"] for row in rows] == lines
    np.testing.assert_allclose(positive(rows[:5]), positive(predictor.predict(lines[:5])), atol=1e-6)


def test_a_bad_line_leaves_no_answers_behind(toy_run, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"fine\ncaf\xe9\n")
    config = PredictConfig(
        run=str(toy_run), text=None, input=str(tmp_path / "in.txt"), output=str(tmp_path / "out.jsonl"), batch_size=4
    )
    with pytest.raises(DataError, match=r"in\.txt:2: the text must be UTF-8; got byte 0xe9 at offset 8 of the file"):
        predict(config)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.parametrize(("pooling", "width"), [("cls", 32), ("mean", 32), ("max", 32), ("mean_max", 64)])
def test_vectors_come_from_the_chosen_layers_and_pooling_without_padding(predictor, pooling, width):
    both = Embedder(predictor, [0, -1], pooling).embed(TEXTS, batch_size=2)
    assert both.shape == (len(TEXTS), 2 * width)
    last = Embedder(predictor, [2], pooling)
    np.testing.assert_allclose(both[:, width:], last.embed(TEXTS), atol=1e-5)
    np.testing.assert_allclose(last.embed(TEXTS[:1]), last.embed(TEXTS)[:1], atol=1e-5)


def test_vectors_are_written_as_numpy_or_parquet(toy_run, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for name in ("v.npy", "v.parquet"):
        settings = {"layers": [-1], "pooling": "mean", "batch_size": 2}
        embed(EmbedConfig(run=str(toy_run), input=str(tmp_path / "in.jsonl"), output=str(tmp_path / name), **settings))
    table = pq.read_table(tmp_path / "v.parquet")
    array = np.load(tmp_path / "v.npy")
    assert array.shape == (5, 32) and table.column("text").to_pylist() == TEXTS
    np.testing.assert_array_equal(array, np.array(table.column("vector").to_pylist(), np.float32))


def test_a_layer_that_is_not_there_is_refused(predictor):
    with pytest.raises(ConfigError, match="layers must be between -3 and 2; got 3"):
        Embedder(predictor, [3], "mean")


def test_run_saved_model_and_served_engine_give_the_same_probabilities(predictor, bundle_folder):
    """The SavedModel answers in a process that has never imported this project."""
    expected = positive(predictor.predict(TEXTS))
    script = f"""
        import json, sys, tensorflow as tf, tensorflow_text
        model = tf.saved_model.load({str(bundle_folder / "saved_model")!r})
        answer = model.signatures["text"](texts=tf.constant(json.loads(sys.argv[1])))["imdb"].numpy()
        assert "bert_mtl" not in sys.modules and set(model.signatures) == {{"serving_default", "text", "ids"}}
        print(json.dumps(answer[:, 1].tolist()))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), json.dumps(TEXTS)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(json.loads(answer.splitlines()[-1]), expected, atol=1e-5)

    bundle = load_bundle(bundle_folder)
    tokenizer, engine = Tokenizer(bundle), open_engine("savedmodel", bundle)
    encoded = tokenizer.encode(TEXTS)
    assert [row.truncated for row in encoded] == [False, False, False, True, False]
    served = engine.predict(*tokenizer.pad(encoded))["imdb"][:, 1]
    np.testing.assert_allclose(served, expected, atol=1e-5)


def test_a_bundle_says_what_it_holds_and_is_never_overwritten(toy_run, bundle_folder):
    manifest = load_bundle(bundle_folder).manifest
    assert manifest.heads["imdb"].labels == ["neg", "pos"] and manifest.data == "sample"
    with pytest.raises(RunError, match="bundle must be a folder that does not exist yet"):
        write_bundle(open_run(toy_run), bundle_folder, "toy")


def test_what_is_not_a_run_is_refused_with_the_runs_nearby(tmp_path):
    (tmp_path / "imdb-1").mkdir()
    (tmp_path / "imdb-1" / "config.yaml").touch()
    with pytest.raises(RunError, match=r"run must be a folder that bert_mtl.train wrote; .* Did you mean .*/imdb-1\?"):
        open_run(tmp_path / "imdb-2")
