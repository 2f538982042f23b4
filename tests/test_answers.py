"""What a finished run says of texts: predict and embed, from Python and from files."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

import bert_mtl
from bert_mtl.commands import EmbedConfig, PredictConfig
from bert_mtl.config import TrainConfig
from bert_mtl.embed import Embedder, embed
from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.kinds.regression import pearson
from bert_mtl.multitask import make_model
from bert_mtl.predict import Predictor, predict
from bert_mtl.runs import Facts, RunError, open_run, save_variables, start_run, weights_of
from bert_mtl.tasks import DataError, make_tasks
from bert_mtl.text_batches import readings
from bert_mtl.tokenization import SentencePieceTokenizer, WordPieceTokenizer
from conf import entry
from conf.errors import ConfigError
from data_prep.vocab import train_sentencepiece

TEXTS = ["a good film", "the plot was bad and the movie dull", "bad", "Good! " * 40, "ünïcödé 電影 \U0001f600 good"]


@pytest.fixture(scope="module")
def predictor(toy_run) -> Predictor:
    return bert_mtl.load(toy_run)


@pytest.fixture(scope="module")
def multi(multi_run) -> Predictor:
    return bert_mtl.load(multi_run)


def untrained(folder: Path, vocab_file: Path, heads: dict[str, str], pairs: list[str], *options: str) -> Predictor:
    """A run of tasks with a head each, of random weights."""
    source = "sources: {sample: {format: jsonl, path: '{part}.jsonl'}}"
    tasks = [f"+tasks.{name}={{heads: {{{name}: {head}}}, {source}}}" for name, head in heads.items()]
    options = ("model=tiny", "tokenizer.max_length=32", *tasks, "~tasks.imdb", *options)
    config = entry.compose("train", list(options), TrainConfig)
    tokenizer = WordPieceTokenizer(vocab_file, max_length=32)
    sizes = EncoderConfig(tokenizer.vocab_size, 16, 2, 2, 32, pooler=False, tasks=len(heads), adapter_dim=4)
    sizes = dataclasses.replace(sizes, adapters=config.model.adapters)
    model = make_model(config.model, BertEncoder(sizes), make_tasks(config.tasks), seed=0)
    dice = np.random.default_rng(1)
    for variable in model.weights:  # the initial ones would answer every text and every task much the same
        variable.assign(dice.normal(scale=0.3, size=variable.shape))
    run = start_run(folder / "run", config, tokenizer, Facts(sizes, pairs, {}, {}))
    save_variables(run.weights, weights_of(model))
    return bert_mtl.load(run.folder)


@pytest.fixture(scope="module")
def adapted(vocab_file, tmp_path_factory) -> Predictor:
    """Three tasks with weights of their own in the encoder."""
    heads = {"stars": "{kind: regression}", "moons": "{kind: regression}", "alike": "{kind: similarity}"}
    folder = tmp_path_factory.mktemp("adapted")
    return untrained(folder, vocab_file, heads, ["alike"], "model.adapters=bottleneck")


@pytest.fixture(scope="module")
def of_pairs(vocab_file, tmp_path_factory) -> Predictor:
    return untrained(tmp_path_factory.mktemp("pairs"), vocab_file, {"same": "{kind: regression}"}, ["same"])


@pytest.fixture
def passes(monkeypatch) -> list:
    """Grows by the number of rows each time an encoder runs."""
    rows: list[int] = []
    forward = BertEncoder.hidden_states

    def counted(self, inputs, **options):
        rows.append(len(inputs["token_ids"]))
        return forward(self, inputs, **options)

    monkeypatch.setattr(BertEncoder, "hidden_states", counted)
    tf.config.run_functions_eagerly(True)
    yield rows
    tf.config.run_functions_eagerly(False)


def row_of(ids: list[int], task: int = 0) -> dict:
    """The arrays of one row that holds one text."""
    ones = np.ones((1, len(ids)), np.int32)
    first = {name: np.zeros(1, np.int32) for name in ("first_token", "partner")}
    return {
        "token_ids": np.array([ids], np.int32),
        "type_ids": 0 * ones,
        "segment_ids": ones,
        "position_ids": np.arange(len(ids), dtype=np.int32)[None],
        "task": np.array([task], np.int32),
        **first,
    }


def positive(answers):
    return np.array([answer["imdb"]["probabilities"]["pos"] for answer in answers])


def rows_of_test(predictor, task: str) -> list[dict]:
    path = predictor.run.config.tasks[task].sources["sample"].path.replace("{part}", "test")
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def places(answer: dict) -> list[tuple]:
    return [(span["start"], span["end"], span["text"]) for span in answer["numbers_spans"]["spans"]]


def test_predict_answers_each_text_with_its_label_and_probabilities(predictor):
    answers = predictor.predict(TEXTS)
    assert [answer["imdb"]["label"] for answer in answers[:3]] == ["pos", "neg", "neg"]
    assert all(abs(sum(answer["imdb"]["probabilities"].values()) - 1) < 1e-6 for answer in answers)
    assert predictor.predict([]) == []


def test_an_answer_does_not_depend_on_the_texts_beside_it(multi):
    texts = [*TEXTS, "one two film [MASK] three", "\u200b"]
    together = multi.predict(texts, batch_size=2)
    alone = [multi.predict([text])[0] for text in texts]
    np.testing.assert_allclose(positive(together), positive(alone), atol=1e-6)
    assert [places(answer) for answer in together] == [places(answer) for answer in alone]
    assert [len(answer["words"]["masks"]) for answer in together] == [0, 0, 0, 0, 0, 1, 0]
    assert list(together[0]) == ["imdb", "numbers_spans", "words"]


def test_predicting_the_test_part_gives_the_metrics_of_training(multi):
    """There, rows were packed, with labels from records."""
    expected = json.loads((multi.run.folder / "metrics.json").read_text())["test"]
    imdb = rows_of_test(multi, "imdb")
    answers = multi.predict([row["text"] for row in imdb])
    likely = [answer["imdb"]["probabilities"][row["label"]] for answer, row in zip(answers, imdb, strict=True)]
    assert -np.log(likely).mean() == pytest.approx(expected["imdb"]["loss"], abs=1e-5)

    numbers = rows_of_test(multi, "numbers")
    given = [" ".join(row["tokens"]).count("one two") + row["tokens"].count("three") for row in numbers]
    found = [places(answer) for answer in multi.predict([row["tokens"] for row in numbers])]
    assert [{text for _, _, text in spans} <= {"one two", "three"} for spans in found] == [True] * 16
    assert (sum(map(len, found)), expected["numbers_spans"]["f1"]) == (sum(given), 1.0)

    pairs = rows_of_test(multi, "alike")
    answers = multi.predict([row["text"] for row in pairs], [row["text_b"] for row in pairs])
    assert [list(answer) for answer in answers] == [["alike", "imdb", "numbers_spans", "words"]] * 16
    values = np.array([answer["alike"]["value"] for answer in answers])
    assert pearson(values, np.array([row["label"] for row in pairs])) == pytest.approx(expected["alike"]["pearson"])


def test_one_pass_of_the_encoder_answers_all_heads(multi, passes):
    multi.predict(TEXTS)
    assert passes == [5]
    multi.predict([*TEXTS, "the [MASK] was [MASK]"])  # what holds a mask is read as it is written, too
    assert passes == [5, 7]
    (pair,) = multi.predict(["the film was bad"], ["one two"])  # a row as a pair, and one of its first text
    assert passes == [5, 7, 2]
    (single,) = multi.predict(["the film was bad"])
    assert list(pair) == ["alike", *single] and positive([pair]) == pytest.approx(positive([single]), abs=1e-6)


def test_a_text_takes_a_row_for_each_task_only_where_the_encoder_knows_tasks(adapted, passes):
    answers = adapted.predict(["a good film", "bad"])
    assert passes == [6] and list(answers[0]) == ["stars", "moons", "alike"]


def test_each_task_answers_with_its_own_weights_in_the_encoder(adapted):
    ids = adapted.run.tokenizer.encode(["the plot was bad"]).token_ids[0].numpy().tolist()
    answer = adapted.predict(["film", "the plot was bad"])[1]
    for task, name in enumerate(("stars", "moons")):
        value = float(adapted.model(row_of(ids, task), heads=[name])[name][0, 0])
        assert answer[name]["value"] == pytest.approx(value, abs=1e-5)
        other = float(adapted.model(row_of(ids, 1 - task), heads=[name])[name][0, 0])
        assert abs(value - other) > 1e-2


def test_similarity_gives_the_vector_of_a_text_and_of_a_pair_the_cosine_of_both(adapted):
    texts = ["a good film", "the movie was fine", "a good film"]
    first, second, third = (np.array(answer["alike"]["vector"]) for answer in adapted.predict(texts))
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    (pair,) = adapted.predict(texts[:1], texts[1:2])
    assert list(pair) == ["alike", "stars", "moons"]
    assert pair["alike"] == {"similarity": pytest.approx(float(first @ second), abs=1e-5)}


def test_spans_stand_in_characters_of_the_text_as_it_was_given(multi):
    (answer,) = multi.predict(["\u200bthe\tfilm was One  two\nfilm\u00a0plot e\u0301 THREE three"])
    assert places(answer) == [(14, 22, "One  two"), (36, 41, "THREE"), (42, 47, "three")]


def test_spans_of_given_words_stand_in_these_joined_by_spaces(multi):
    words = ["was", "one", "t wo", "film", "three"]
    (answer,) = multi.predict([words])
    assert places(answer) == [(4, 11, "one two"), (17, 22, "three")]


def test_words_that_truncation_leaves_out_are_in_no_span(multi):
    text = "one two " + "film " * 8 + "three " + "film " * 25 + "three"
    (answer,) = multi.predict([text])  # 36 tokens of words, of which the first 8 and the last 22 stay
    assert places(answer) == [(0, 7, "one two"), (len(text) - 5, len(text), "three")]


def test_mask_heads_tell_the_five_best_tokens_of_each_mask(multi):
    tokenizer, model = multi.run.tokenizer, multi.model
    tokens = tokenizer.tokens
    ids = [list(tokens).index(t) for t in ("[CLS]", "the", "[MASK]", "was", "[MASK]", "[SEP]")]
    inputs = row_of(ids) | {"place.words": np.array([2, 4], np.int32)}
    expected = tf.nn.softmax(model(inputs, heads=["words"])["words"]).numpy()
    (answer,) = multi.predict(["The [MASK] was[MASK]"])
    assert [len(guesses) for guesses in answer["words"]["masks"]] == [5, 5]
    for guesses, likely in zip(answer["words"]["masks"], expected, strict=True):
        best = np.argsort(-likely)[:5]
        assert [guess["token"] for guess in guesses] == [tokens[place] for place in best]
        np.testing.assert_allclose([guess["probability"] for guess in guesses], likely[best], atol=1e-6)
    assert answer["words"]["masks"][0][0]["token"] in ("film", "plot")


def test_other_heads_read_a_mask_as_it_is_written(multi):
    written, spelled = multi.predict(["the [MASK] was good", "the [ mask ] was good"])
    np.testing.assert_allclose(positive([written]), positive([spelled]), atol=1e-6)
    assert spelled["words"] == {"masks": []}


@pytest.fixture(scope="module")
def spm_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("model") / "spm.model"
    train_sentencepiece(["the film was bad, the film was great"] * 20, file, 22)
    return file


@pytest.mark.parametrize("kind", ["uncased", "cased", "sentencepiece"])
def test_the_literal_mask_is_one_token_to_every_tokenizer(kind, vocab_file, spm_file):
    if kind == "sentencepiece":
        tokenizer = SentencePieceTokenizer(spm_file, max_length=12)
    else:
        tokenizer = WordPieceTokenizer(vocab_file, lowercase=kind == "uncased", max_length=12)
    mask = tokenizer.mask_id
    the, film = tokenizer.tokenize(["the", "film"]).to_list()
    assert tokenizer.tokenize_masked(["[MASK]the [MASK][MASK] film", "film"]).to_list() == [
        [mask, *the, mask, mask, *film],
        film,
    ]
    assert mask not in tokenizer.encode(["the [MASK]"]).token_ids.values
    ids = tokenizer.encode(["[MASK]" + " the" * 40], masks=True).token_ids[0].numpy()
    assert len(ids) == 12 and ids[1] == mask


def test_with_sentencepiece_words_are_read_apart_because_their_pieces_are_not_the_texts(multi, spm_file):
    def heads(run):
        return [[head.name for head in reading.heads] for reading in readings(run, pair=False)]

    assert heads(multi.run) == [["imdb", "numbers_spans"], ["words"]]
    run = dataclasses.replace(multi.run, tokenizer=SentencePieceTokenizer(spm_file))
    assert heads(run) == [["imdb"], ["numbers_spans"], ["words"]]


def test_an_empty_text_is_named_by_its_place(predictor):
    with pytest.raises(DataError, match=r"texts\[1\] must not be empty; got '  '"):
        predictor.predict(["fine", "  "])
    with pytest.raises(DataError, match=r"texts\[0\] must hold words that are not empty; got \['fine', ' '\]"):
        predictor.predict([["fine", " "]])


def test_one_text_or_pairs_are_refused_where_a_list_of_single_texts_is_read(predictor, of_pairs):
    with pytest.raises(TypeError, match=r"texts must be a list of texts; got one text"):
        predictor.predict("a good film")
    with pytest.raises(DataError, match="learned from single texts: leave texts_b out"):
        predictor.predict(["a"], ["b"])
    with pytest.raises(DataError, match="learned from pairs: give texts_b"):
        of_pairs.predict(["a"])
    with pytest.raises(DataError, match="texts_b must hold as many texts as texts, 2; got 1"):
        of_pairs.predict(["a", "b"], ["c"])


def predict_config(run: Path, **changes) -> PredictConfig:
    settings = {"text": None, "text_b": None, "input": None, "output": None, "batch_size": 64}
    return PredictConfig(run=str(run), **{**settings, **changes})


def test_a_text_or_a_pair_is_answered_on_the_terminal(multi_run, capsys):
    predict(predict_config(multi_run, text="one two"))
    predict(predict_config(multi_run, text="the film was bad", text_b="a bad movie"))
    single, pair = map(json.loads, capsys.readouterr().out.splitlines())
    assert places(single) == [(0, 7, "one two")] and list(pair["alike"]) == ["value"]
    (problem,) = predict_config(multi_run, text_b="b", input="a.txt", output="b.jsonl").problems()
    assert str(problem) == "text_b must be given with text; got b."


def test_a_file_of_texts_becomes_a_file_of_answers_in_order(predictor, toy_run, tmp_path):
    lines = [f"{'good' if n % 3 else 'bad'} film {n}" for n in range(1500)]  # more than one chunk
    with gzip.open(tmp_path / "in.txt.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    source, target = str(tmp_path / "in.txt.gz"), tmp_path / "out.jsonl"
    predict(predict_config(toy_run, input=source, output=str(target)))
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["text"] for row in rows] == lines
    np.testing.assert_allclose(positive(rows[:5]), positive(predictor.predict(lines[:5])), atol=1e-6)


def test_rows_of_a_file_may_be_texts_words_or_pairs(multi_run, tmp_path):
    given = [
        {"text": "the film was bad", "text_b": "a bad movie"},
        {"tokens": ["was", "one", "two"]},
        {"text": "three [MASK]"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row | {"id": 7}) + "\n" for row in given))
    predict(predict_config(multi_run, input=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out.jsonl")))
    pair, words, text = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert list(pair) == ["text", "text_b", "alike", "imdb", "numbers_spans", "words"]
    assert list(words) == ["tokens", "text", "imdb", "numbers_spans", "words"]
    assert words["text"] == "was one two" and places(words) == [(4, 11, "one two")]
    assert list(text) == ["text", "imdb", "numbers_spans", "words"] and len(text["words"]["masks"]) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"fine\ncaf\xe9\n", r"in\.txt:2: the text must be UTF-8; got byte 0xe9 at offset 8 of the file"),
        (b'{"text": "a"}\n{"text": "a", "text_b": "b"}\n', r"in\.jsonl:2: the run reads text; got text, text_b\."),
    ],
)
def test_a_bad_line_leaves_no_answers_behind(content, said, toy_run, tmp_path):
    source = tmp_path / ("in.jsonl" if b"{" in content else "in.txt")
    source.write_bytes(content)
    with pytest.raises(DataError, match=said):
        predict(predict_config(toy_run, input=str(source), output=str(tmp_path / "out.jsonl")))
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_vectors_are_pooled_from_the_chosen_layers_without_padding(predictor):
    (ids,) = predictor.run.tokenizer.encode(TEXTS[:1]).token_ids.to_list()
    states = [layer[0].numpy() for layer in predictor.model.encoder.hidden_states(row_of(ids))]
    poolings = {"cls": lambda s: s[0], "mean": lambda s: s.mean(axis=0), "max": lambda s: s.max(axis=0)}
    for name, pool in poolings.items():
        vectors = Embedder(predictor, [0, -1], name).embed(TEXTS, batch_size=3)
        assert vectors.shape == (5, 64)
        np.testing.assert_allclose(vectors[0], np.concatenate([pool(states[0]), pool(states[2])]), atol=1e-5)
    both, (low, high) = Embedder(predictor, [1, 2], "mean_max").embed(TEXTS), states[1:]
    expected = [low.mean(axis=0), high.mean(axis=0), low.max(axis=0), high.max(axis=0)]
    np.testing.assert_allclose(both[0], np.concatenate(expected), atol=1e-5)


def test_vectors_are_written_as_numpy_or_parquet(multi_run, tmp_path):
    rows = [*({"text": text} for text in TEXTS), {"tokens": ["one", "two"]}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("v.npy", "v.parquet"):
        settings = {"layers": [-1], "pooling": "mean", "batch_size": 2, "task": None}
        source, target = str(tmp_path / "in.jsonl"), str(tmp_path / name)
        embed(EmbedConfig(run=str(multi_run), input=source, output=target, **settings))
    table = pq.read_table(tmp_path / "v.parquet")
    array = np.load(tmp_path / "v.npy")
    assert array.shape == (6, 32) and table.column("text").to_pylist() == [*TEXTS, "one two"]
    np.testing.assert_array_equal(array, np.array(table.column("vector").to_pylist(), np.float32))


def test_vectors_are_those_of_the_chosen_task_where_the_encoder_knows_tasks(adapted):
    similar = Embedder(adapted, [-1], "mean", "alike").embed(TEXTS)
    expected = np.array([answer["alike"]["vector"] for answer in adapted.predict(TEXTS)])
    np.testing.assert_allclose(similar / np.linalg.norm(similar, axis=1, keepdims=True), expected, atol=1e-5)
    assert np.abs(similar - Embedder(adapted, [-1], "mean", "stars").embed(TEXTS)).max() > 1e-2
    options = r"Options: stars, moons, alike\."
    unknown = rf"task must be a task of the run that reads single texts; got star\. {options} Did you mean stars\?"
    with pytest.raises(ConfigError, match=rf"task must be given where tasks have weights of their own; .*{options}"):
        Embedder(adapted, [-1], "mean")
    with pytest.raises(ConfigError, match=unknown):
        Embedder(adapted, [-1], "mean", "star")


def test_vectors_that_cannot_be_made_are_refused(predictor, of_pairs):
    with pytest.raises(ConfigError, match="layers must be between -3 and 2; got 3"):
        Embedder(predictor, [3], "mean")
    with pytest.raises(DataError, match="run must be of single texts, which vectors stand for"):
        Embedder(of_pairs, [-1], "mean")


def test_what_is_not_a_run_is_refused_with_the_runs_nearby(tmp_path):
    (tmp_path / "imdb-1").mkdir()
    (tmp_path / "imdb-1" / "config.yaml").touch()
    with pytest.raises(RunError, match=r"run must be a folder that bert_mtl.train wrote; .* Did you mean .*/imdb-1\?"):
        open_run(tmp_path / "imdb-2")
