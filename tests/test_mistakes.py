"""The worst answers of each kind, by hand-made answers."""

import numpy as np
import pytest

from bert_mtl.answers import Answered
from bert_mtl.kinds import Head, head_settings, make_head
from bert_mtl.mistakes import Examples, mistakes
from bert_mtl.tokenization import WordPieceTokenizer

NAN = np.nan


@pytest.fixture(scope="module")
def tokenizer(vocab_file):
    return WordPieceTokenizer(vocab_file, lowercase=True, max_length=8, truncation="tail")


def asked(tokenizer, *texts):
    return Examples([(text,) if isinstance(text, str) else text for text in texts], tokenizer)


def head(kind, **settings):
    return make_head("h", head_settings({"kind": kind, **settings}))


def test_wrong_labels_come_by_their_confidence(tokenizer):
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    answered = Answered(probs, np.array([0, 1, 1, 0]), np.array([0, 1, 2, 4]))  # example 3 has no label
    examples = asked(tokenizer, "a", "b", ("c", "the other"), "no label", "d")
    feeling = head("classification", labels=["neg", "pos"])
    found = mistakes(feeling, answered, examples, 5)
    assert found == [
        {"text": "d", "label": "neg", "predicted": "pos", "probability": 0.7},
        {"text": "c", "text_b": "the other", "label": "pos", "predicted": "neg", "probability": 0.6},
    ]
    assert mistakes(feeling, answered, examples, 1) == found[:1]


def test_wrong_sets_of_labels_come_by_their_surest_wrong_decision(tokenizer):
    topics = head("multilabel", labels=["art", "law", "war"])
    topics.tuned = {"thresholds": [0.5, 0.5, 0.2]}
    answers = np.array([[0.9, 0.1, 0.1], [0.8, 0.6, 0.0], [0.0, 0.3, 0.25], [0.1, 0.1, 0.3]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]])
    found = mistakes(topics, Answered(answers, labels, np.arange(4)), asked(tokenizer, "a", "b", "c", "d"), 5)
    assert found == [
        {"text": "b", "labels": ["law"], "predicted": ["art", "law"], "probability": 0.8},
        {"text": "c", "labels": ["law"], "predicted": ["war"], "probability": 0.7},
        {"text": "d", "labels": [], "predicted": ["war"], "probability": 0.3},
    ]


def test_values_come_by_their_distance(tokenizer):
    answered = Answered(np.array([1.0, 4.0, 2.5]), np.array([1.0, 2.0, 5.0]), np.arange(3))
    found = mistakes(head("regression"), answered, asked(tokenizer, "a", "b", "c"), 5)
    assert found == [{"text": "c", "label": 5.0, "predicted": 2.5}, {"text": "b", "label": 2.0, "predicted": 4.0}]


def test_texts_come_by_their_wrong_spans_which_stand_where_the_text_has_them(tokenizer):
    names = head("tagging", labels=["name", "place"])  # tags: O, B-name, I-name, B-place, I-place
    sure = np.eye(5) * 0.75 + 0.05
    texts = asked(tokenizer, "a film", "anna was in the film", "the film")
    assert texts.words(1) == [("was", 5, 8), ("in", 9, 11), ("the", 12, 15), ("film", 16, 20)]  # `anna` is cut off
    labels = [np.array([1, 0]), np.array([0, 0, 1, 2]), np.array([0, 0])]
    answered = Answered([sure[[1, 0]], sure[[3, 0, 0, 1]], sure[[0, 0]]], labels, np.arange(3))
    (found,) = mistakes(names, answered, texts, 5)
    assert found["text"] == "anna was in the film"
    assert found["spans"] == [{"type": "name", "start": 12, "end": 20, "text": "the film"}]
    assert [(span["type"], span["start"], span["end"], span["text"]) for span in found["predicted"]] == [
        ("place", 5, 8, "was"),
        ("name", 16, 20, "film"),
    ]
    assert found["predicted"][0]["score"] == pytest.approx(0.8)


def test_scored_pairs_come_by_the_distance_of_their_ranks(tokenizer):
    def pair(cosine):
        return [[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]]

    answers = np.array([pair(0.9), pair(0.1), pair(0.5), pair(0.4)])
    examples = asked(tokenizer, ("a", "b"), ("c", "d"), ("e", "f"), ("g", "h"))
    found = mistakes(head("similarity"), Answered(answers, np.array([0.0, 1.0, 5.0, NAN]), np.arange(4)), examples, 2)
    # ranks of cosines 3, 1, 2 and of scores 1, 2, 3
    assert found == [
        {"text": "a", "text_b": "b", "label": 0.0, "similarity": 0.9},
        {"text": "c", "text_b": "d", "label": 1.0, "similarity": 0.1},
    ]
    found = mistakes(head("similarity"), Answered(answers, np.full(4, NAN), np.arange(4)), examples, 2)
    assert [(error["text"], error["similarity"]) for error in found] == [("c", 0.1), ("g", 0.4)]
    assert "label" not in found[0]


def test_single_texts_have_no_partner_to_be_far_from(tokenizer):
    alone = np.array([[[1.0, 0.0], [1.0, 0.0]]])
    examples = asked(tokenizer, ("a", "a"))
    assert mistakes(head("similarity"), Answered(alone, np.array([NAN]), np.array([0])), examples, 2) == []


def test_vectors_come_by_their_angle(tokenizer):
    answers, labels = np.array([[1.0, 0.0], [0.6, 0.8]]), np.array([[0.8, 0.6], [2.0, 0.0]])
    found = mistakes(head("vector", dim=2), Answered(answers, labels, np.arange(2)), asked(tokenizer, "a", "b"), 5)
    assert [error["text"] for error in found] == ["b", "a"]
    assert [error["cosine"] for error in found] == pytest.approx([0.6, 0.8])


def test_kinds_that_cannot_tell_list_nothing_until_they_register_how(tokenizer):
    class Own(Head):
        pass

    answered, examples = Answered(np.zeros(1), np.zeros(1), np.array([0])), asked(tokenizer, "a")
    assert mistakes(head("mlm"), answered, examples, 5) == []
    assert mistakes(Own("own", None), answered, examples, 5) == []
    mistakes.register(Own, lambda head, answered, examples, count: [examples.shown(0)])
    assert mistakes(Own("own", None), answered, examples, 5) == [{"text": "a"}]
