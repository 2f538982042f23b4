"""What training.json says of texts and labels: exact counts of small windows."""

import numpy as np
import pytest

from bert_mtl.batches import Window
from bert_mtl.config import TaskConfig
from bert_mtl.reference import Entities, label_reference, length_edges, seen_pieces, task_reference
from bert_mtl.tasks import make_tasks
from bert_mtl.tokenization import Tokenizer, WordPieceTokenizer


@pytest.fixture(scope="module")
def tokenizer(vocab_file) -> Tokenizer:
    return WordPieceTokenizer(vocab_file, max_length=8)


def window(*rows: list[int], second: list[int] | None = None, **tags: list[int]) -> Window:
    lengths = [len(row) for row in rows]
    return Window(
        token_ids=np.concatenate(rows).astype(np.int32),
        splits=np.concatenate([[0], np.cumsum(lengths)]),
        second_start=np.array(second or lengths, np.int32),
        task=np.zeros(len(rows), np.int32),
        index=np.arange(len(rows), dtype=np.int32),
        labels={},
        token_labels={name: np.array(values, np.int32) for name, values in tags.items()},
    )


def test_lengths_and_pieces_are_counted_without_special_tokens(tokenizer):
    windows = [window([2, 7, 7, 3], [2, 1, 3]), window([2, 7, 8, 9, 4, 3, 0, 0])]
    found = task_reference(windows, tokenizer, separate=False, truncated=1)
    seen = seen_pieces(found.pop("pieces") | {})
    assert found == {
        "examples": 3, "rows": 3, "tokens": 15, "truncated": 1, "unknown": 1,
        "lengths": {"edges": [2, 3, 4, 6, 8], "counts": [0, 1, 1, 1]},
    }  # fmt: skip
    assert np.flatnonzero(seen).tolist() == [1, 7, 8, 9]


def test_the_most_frequent_pieces_have_counts_of_their_own(tokenizer, monkeypatch):
    monkeypatch.setattr("bert_mtl.reference.PIECES", 2)
    rows = [[2, 9, 9, 9, 7, 7, 8, 3]]
    pieces = task_reference([window(*rows)], tokenizer, separate=False, truncated=None)["pieces"]
    assert (pieces["total"], pieces["counts"]) == (6, {"9": 3, "7": 2})
    assert np.flatnonzero(seen_pieces(pieces)).tolist() == [7, 8, 9]


def test_both_texts_of_a_pair_that_is_read_apart_are_rows(tokenizer):
    found = task_reference([window([2, 7, 7, 3, 2, 8, 3], second=[4])], tokenizer, separate=True, truncated=0)
    assert (found["examples"], found["rows"], found["lengths"]["counts"]) == (1, 2, [0, 1, 1, 0])


def test_bins_of_lengths_are_two_a_doubling():
    assert length_edges(512) == [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert length_edges(50) == [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 50]
    assert length_edges(3) == [2, 3]


@pytest.mark.parametrize(
    ("kind", "statistics", "told"),
    [
        ("classification", {"neg": 3.0, "pos": 0.0}, {"labels": {"neg": 3, "pos": 0}}),
        ("multilabel", {"examples": 9.0, "label wry": 4.0}, {"examples": 9, "labels": {"wry": 4}}),
        ("tagging", {"O": 50.0, "who": 4.0}, {"labels": {"who": 4}}),
        ("regression", {"examples": 2.0, "sum": 4.0, "squares": 10.0}, {"examples": 2, "mean": 2, "deviation": 1}),
        ("vector", {"examples": 2.0}, {}),
        ("classification", {"neg": 0.0, "pos": 0.0}, {}),
        ("regression", {}, {}),
    ],
)
def test_labels_are_those_that_were_counted_of_the_records(kind, statistics, told):
    assert label_reference(kind, statistics) == told


def test_entities_of_a_text_are_counted_by_their_first_tags():
    heads = {"spans": {"kind": "tagging", "labels": ["who", "where"]}, "mood": {"kind": "regression"}}
    sources = {"sample": {"format": "jsonl", "path": "x"}}
    task = make_tasks({"names": TaskConfig.model_validate({"heads": heads, "sources": sources})})["names"]
    entities = Entities(task)
    tags = [-1, 1, 2, 3, -1, -1, 0, -1]  # B-who I-who B-where in one text, none in the other
    assert len(list(entities.seeing([window([2, 7, 7, 7, 3], [2, 7, 3], names_spans=tags)]))) == 1
    assert entities.told("names_spans") == {"examples": 2, "mean": 1.0, "deviation": 1.0}
    assert entities.told("names_mood") == {}
