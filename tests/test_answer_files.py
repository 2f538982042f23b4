"""A part's answers as a file: the numbers in it give every kind's metric again, and a reader needs no model."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest

from bert_mtl.answer_files import write_answers
from bert_mtl.answer_table import read_answers
from bert_mtl.answers import Answered
from bert_mtl.config import TaskConfig
from bert_mtl.kinds import KINDS, Head, head_settings, make_head
from bert_mtl.kinds.classification import Classification
from bert_mtl.outcomes import outcomes
from bert_mtl.scores import score
from bert_mtl.tasks import Task, make_tasks

LABELS = ["a", "b", "c"]
CLASSES = {"kind": "classification", "labels": LABELS}
SEVERAL = {"kind": "multilabel", "labels": LABELS}
NUMBER = {"kind": "regression"}
NAMES = {"kind": "tagging", "labels": ["per", "org"]}
ALIKE = {"kind": "similarity"}
VECTOR = {"kind": "vector", "dim": 4}


def head(settings: dict) -> Head:
    return make_head("h", head_settings(settings))


def units(*shape: int) -> np.ndarray:
    vectors = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def answered(kind: str, examples: int = 90) -> Answered:
    """Answers that are right more often than not."""
    generator, index = np.random.default_rng(3), np.arange(examples)
    if kind == "tagging":
        sizes = generator.integers(2, 9, size=examples)
        labels = [np.array([0, 1, 2, 0, 3, 0, 1, 0, 3])[:size] for size in sizes]
        return Answered(
            [generator.dirichlet(np.ones(5), len(tags)) + 0.6 * np.eye(5)[tags] for tags in labels], labels, index
        )
    if kind == "classification":
        labels = generator.integers(3, size=examples)
        return Answered(generator.dirichlet(np.ones(3), examples) + 0.4 * np.eye(3)[labels], labels, index)
    if kind == "multilabel":
        labels = generator.integers(2, size=(examples, 3))
        return Answered((0.3 * labels + 0.7 * generator.random((examples, 3))).astype(np.float32), labels, index)
    if kind == "vector":
        return Answered(units(examples, 4) + np.float32(0.3), units(examples, 4), index)
    labels = generator.normal(size=examples).astype(np.float32).round(1)
    if kind == "similarity":
        return Answered(units(examples, 2, 4), labels, index)
    return Answered((labels + generator.normal(size=examples)).astype(np.float32), labels, index)


@pytest.mark.parametrize(
    "settings",
    [
        *(CLASSES | {"metric": metric} for metric in ("accuracy", "macro_f1", "matthews")),
        *(SEVERAL | {"metric": metric} for metric in ("micro_f1", "macro_f1")),
        *(NUMBER | {"metric": metric} for metric in ("spearman", "pearson")),
        NAMES,
        ALIKE,
        VECTOR,
        VECTOR | {"loss": "mse"},
    ],
    ids=lambda settings: "-".join(settings.get(key, "") for key in ("kind", "metric", "loss")).strip("-"),
)
def test_statistics_give_the_metric_again(settings):
    own, items = head(settings), answered(settings["kind"])
    if own.kind == "multilabel":
        own.tuned = own.tune(items.answers, items.labels)
        assert own.thresholds.tolist() != [0.5] * 3
    found = outcomes(own, items)
    value = own.metrics(items.answers, items.labels)[own.metric]
    assert score(found.score, np.asarray(found.statistics, float)) == pytest.approx(value, abs=1e-9)
    assert abs(value) > 0.02  # vectors at random are hardly alike, the rest more


def test_pairs_without_scores_are_compared_by_finding_partners_and_single_texts_not_at_all():
    pairs, unscored = answered("similarity", 40), np.full(40, np.nan, np.float32)
    found = outcomes(head(ALIKE), Answered(pairs.answers, unscored, pairs.index))
    value = head(ALIKE).metrics(pairs.answers, unscored)["score"]
    assert found.score == "mean" and found.statistics[:, 0].mean() == pytest.approx(value, abs=1e-9) and value > 0
    twice = np.repeat(pairs.answers[:, :1], 2, axis=1)
    assert outcomes(head(ALIKE), Answered(twice, unscored, pairs.index)).statistics is None


def test_where_some_pairs_have_scores_the_others_take_no_part():
    items = answered("similarity", 40)
    items.labels[::4] = np.nan
    found = outcomes(head(ALIKE), items)
    assert np.isnan(found.statistics).any(axis=1).sum() == 10
    known = found.statistics[~np.isnan(found.statistics).any(axis=1)]
    value = head(ALIKE).metrics(items.answers, items.labels)["score"]
    assert score("spearman", known.astype(float)) == pytest.approx(value, abs=1e-9)


def task(**heads: dict) -> Task:
    source = {"sample": {"format": "jsonl", "path": "x"}}
    return make_tasks({"t": TaskConfig.model_validate({"heads": heads, "sources": source})})["t"]


def test_a_file_holds_a_row_an_example_and_null_where_a_head_has_no_label(tmp_path):
    own = task(topic=CLASSES, names=NAMES, score=NUMBER, tags=SEVERAL)
    texts = [("one two",), ("three",), ("four, \t five",)]
    items = {
        "t_topic": Answered(np.array([[0.9, 0.1, 0], [0.2, 0.3, 0.5]]), np.array([0, 1]), np.array([0, 2])),
        "t_names": Answered([np.eye(5)[[1, 2]]], [np.array([1, 0])], np.array([0])),
        "t_score": Answered(np.array([1.23456], np.float32), np.array([2.0], np.float32), np.array([1])),
        "t_tags": Answered(np.array([[0.9, 0.1, 0.8]]), np.array([[1, 0, 0]]), np.array([1])),
        "t_topic@2": Answered(np.eye(3)[:1], np.array([0]), np.array([0])),
    }
    path = write_answers(tmp_path, "dev", own, texts, np.array([4, 3, 5]), items)
    assert path == tmp_path / "answers" / "dev-t.parquet"
    assert [file.name for file in path.parent.iterdir()] == ["dev-t.parquet"]
    table = read_answers(tmp_path, "dev", "t")
    assert table.texts() == texts
    assert {name: facts[:3] for name, facts in table.heads.items()} == {
        "t_topic": ("classification", "accuracy", 0.5),
        "t_names": ("tagging", "f1", 0.0),
        "t_score": ("regression", "spearman", 0.0),
        "t_tags": ("multilabel", "macro_f1", 0.5),
    }
    topic, names, number, tags = (table.head(name) for name in table.heads)
    assert topic.label.to_pylist() == ["a", None, "b"] and topic.answer.to_pylist() == ["a", None, "c"]
    assert topic.right.to_pylist() == [True, None, False]
    assert topic.statistics.ravel() == pytest.approx([1, np.nan, 0], nan_ok=True)
    assert names.label[0].as_py() == "B-per O" and names.answer[0].as_py() == "B-per I-per"
    assert names.statistics[0].tolist() == [0, 1, 1]
    assert number.answer.to_pylist() == [None, "1.235", None] and number.right.to_pylist() == [None] * 3
    assert tags.label[1].as_py() == "a" and tags.answer[1].as_py() == "a, c" and tags.right[1].as_py() is False
    assert tags.statistics[1].tolist() == [1, 0, 0, 1, 0, 1, 1, 0, 0]


def test_pairs_keep_both_texts_and_files_of_the_same_texts_have_the_same_hash(tmp_path):
    own, items = task(same=NUMBER), {"t_same": answered("regression", 2)}
    for folder, second in (("a", "y"), ("b", "y"), ("c", "z")):
        write_answers(tmp_path / folder, "test", own, [("x", "x"), ("x", second)], np.array([3, 3]), items)
    a, b, c = (read_answers(tmp_path / folder, "test", "t") for folder in "abc")
    assert a.texts() == [("x", "x"), ("x", "y")]
    assert a.texts_hash == b.texts_hash != c.texts_hash
    assert read_answers(tmp_path / "a", "dev", "t") is None


def test_masked_words_have_a_value_and_no_columns_and_a_head_without_a_label_has_neither(tmp_path):
    own = task(words={"kind": "mlm"})
    guesses = np.array([[-1.0, 7, 0.5], [-1, 8, 0.5], [-2, 8, 0.5], [-2, 8, 0.5]], np.float32)  # log p, id, p
    masked = Answered(guesses, np.full(4, 7), np.arange(4))
    path = write_answers(tmp_path, "dev", own, [("x",)], np.array([3]), {"t_words": masked})
    table = read_answers(tmp_path, "dev", "t")
    assert table.heads["t_words"] == ("mlm", "accuracy", 0.25, None)
    assert path.stat().st_size < 3000
    nothing = Answered(np.zeros((0, 3)), np.zeros(0, int), np.zeros(0, int))
    write_answers(tmp_path, "dev", task(topic=CLASSES), [("x",)], np.array([3]), {"t_topic": nothing})
    table = read_answers(tmp_path, "dev", "t")
    assert table.heads["t_topic"] == ("classification", "accuracy", None, None)
    assert table.head("t_topic").label.to_pylist() == [None]


class Halved(Classification):
    """Inherits all, and measures in a way of its own."""

    kind = "halved"

    def metrics(self, answers, labels):
        return {"accuracy": super().metrics(answers, labels)["accuracy"] / 2}


def test_a_kind_that_measures_in_its_own_way_is_not_compared_by_another(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(KINDS, "halved", Halved)
    own = task(topic=CLASSES | {"kind": "halved"})
    with caplog.at_level(logging.WARNING):
        write_answers(tmp_path, "dev", own, [("x",)] * 90, np.full(90, 3), {"t_topic": answered("classification")})
    table = read_answers(tmp_path, "dev", "t")
    assert table.heads["t_topic"].score is None and table.head("t_topic").statistics.shape == (90, 0)
    assert table.head("t_topic").right.null_count == 0
    assert "t_topic cannot be compared with other runs: its accuracy is not the mean of what outcomes" in caplog.text


class Length(Head):
    """A kind that nothing is known of."""

    kind = "length"
    metric = "error"

    def metrics(self, answers, labels):
        return {"error": -1.0}

    def decode(self, answers):
        return [{"length": float(answer)} for answer in answers]


def test_items_of_an_unknown_kind_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "length", Length)
    items = Answered(np.array([1.5]), np.array([2]), np.array([0]))
    write_answers(tmp_path, "dev", task(size={"kind": "length"}), [("x",)], np.array([3]), {"t_size": items})
    table = read_answers(tmp_path, "dev", "t")
    assert table.heads["t_size"] == ("length", "error", -1.0, None)
    assert table.head("t_size").label.to_pylist() == ["2"]
    assert table.head("t_size").answer.to_pylist() == ['{"length": 1.5}']


def test_the_documented_outcomes_of_a_kind_of_ones_own_give_its_metric(monkeypatch):
    docs = Path(__file__).parents[1] / "docs"
    (kind,) = re.findall(r"^`ordinal.py`:\n\n```python\n(.*?)^```", (docs / "custom_tasks.md").read_text(), re.S | re.M)
    (more,) = re.findall(r"^```python\n(.*?)^```", (docs / "experiments.md").read_text(), re.S | re.M)
    monkeypatch.setattr("bert_mtl.kinds.head.KINDS", KINDS.copy())
    names: dict = {}
    exec(kind + more, names)
    own = names["Ordinal"]("stars", names["OrdinalSettings"](kind="ordinal", labels=["poor", "fair", "good"]))
    items = Answered(np.random.default_rng(0).random((50, 2)), np.arange(50) % 3, np.arange(50))
    found = outcomes(own, items)
    value = own.metrics(items.answers, items.labels)["closeness"]
    assert score(found.score, found.statistics) == pytest.approx(value, abs=1e-9) == pytest.approx(0.67)
    assert found.labels[:3] == ["poor", "fair", "good"]
