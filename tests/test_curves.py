"""Curves of answers, by hand-computed numbers."""

import numpy as np
import pytest

from bert_mtl.answers import Answered
from bert_mtl.curves import curves, precision_by_recall, reliability
from bert_mtl.kinds import head_settings, make_head

FEELING = make_head("feeling", head_settings({"kind": "classification", "labels": ["neg", "pos"]}))
SPANS = make_head("spans", head_settings({"kind": "tagging", "labels": ["song", "artist"]}))


def test_bins_of_confidence_hold_their_means():
    confidence, right = np.array([0.51, 0.52, 0.99, 1.0]), np.array([True, False, True, True])
    assert reliability(confidence, right) == [
        {"confidence": pytest.approx(0.515), "accuracy": 0.5, "examples": 2},
        {"confidence": pytest.approx(0.995), "accuracy": 1.0, "examples": 2},
    ]


def test_precision_at_a_recall_is_the_best_that_reaches_it():
    truth, scores = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.1])
    found = precision_by_recall(truth, scores)  # recalls 0.5 at precision 1, then 1.0 at 2 of 3
    assert found["recall"][50] == 0.5 and len(found["recall"]) == len(found["precision"]) == 101
    assert found["precision"][:51] == [1.0] * 51
    assert found["precision"][51:] == [round(2 / 3, 6)] * 50


def test_precision_falls_or_stays_as_recall_rises():
    random = np.random.default_rng(0)
    found = precision_by_recall(random.random(300) < 0.3, random.random(300))
    assert (np.diff(found["precision"]) <= 0).all() and found["precision"][100] == pytest.approx(0.3, abs=0.06)


def test_a_classification_head_has_all_three():
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    found = curves(FEELING, Answered(probs, np.array([0, 1, 1, 0]), np.arange(4)))
    assert sum(bin["examples"] for bin in found["calibration"]) == 4
    assert list(found["precision_recall"]) == ["neg", "pos"]
    assert found["confidences"]["right"][18] == 1 and sum(found["confidences"]["right"]) == 2
    assert sum(found["confidences"]["wrong"]) == 2


def test_a_label_that_no_example_has_has_no_curve():
    found = curves(FEELING, Answered(np.array([[0.9, 0.1]]), np.array([0]), np.arange(1)))
    assert list(found["precision_recall"]) == ["neg"]


def test_entities_are_counted_by_type():
    tags = {tag: place for place, tag in enumerate(SPANS.tags)}
    texts = [["B-song", "I-song", "O", "B-artist"], ["B-song", "O"]]
    said = [["B-song", "I-song", "O", "O"], ["O", "B-artist"]]
    labels = [np.array([tags[tag] for tag in text]) for text in texts]
    answers = [np.eye(len(tags))[[tags[tag] for tag in text]] for text in said]
    found = curves(SPANS, Answered(answers, labels, np.arange(2)))["by_type"]
    assert found == {
        "artist": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "examples": 1},
        "song": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "examples": 2},
    }
