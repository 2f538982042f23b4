"""Evaluation figures by hand-computed numbers."""

import numpy as np
import pytest

from bert_mtl.report import area_under_roc, by_length, calibration_error, confusion, worst_errors

PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
LABELS = np.array([0, 1, 1, 0])


def test_calibration_error_is_the_mean_gap_of_confidence_and_accuracy_by_bin():
    # bins hold one example each: 0.9 right, 0.8 right, 0.6 wrong, 0.7 wrong
    assert calibration_error(PROBS, LABELS) == pytest.approx((0.1 + 0.2 + 0.6 + 0.7) / 4)
    assert calibration_error(np.array([[1.0, 0.0]] * 4), np.zeros(4, int)) == 0.0


def test_area_under_roc_counts_ordered_pairs_and_is_absent_where_a_label_is():
    assert area_under_roc(PROBS, LABELS) == pytest.approx(
        3 / 4
    )  # of 4 pairs only (0.4 for pos, 0.7 for neg) is reversed
    assert area_under_roc(PROBS, np.zeros(4, int)) is None


def test_confusion_counts_by_truth_and_prediction():
    assert confusion(np.array([0, 1, 0, 1]), LABELS, 2) == [[1, 1], [1, 1]]


def test_length_groups_go_from_short_to_long_and_hold_all_examples():
    groups = by_length(np.array([True, False, True, True, False, True, True, True]), np.array([8, 1, 3, 7, 2, 6, 5, 4]))
    assert [group["up_to"] for group in groups] == [2, 4, 6, 8]
    assert [group["accuracy"] for group in groups] == [0.0, 1.0, 1.0, 1.0]


def test_worst_errors_are_the_most_confident_wrong_answers():
    errors = worst_errors(PROBS, LABELS, ["neg", "pos"], ["a", "b", "c", "d"], 5)
    assert [(e["text"], e["label"], e["predicted"]) for e in errors] == [("d", "neg", "pos"), ("c", "pos", "neg")]
    assert errors[0]["probability"] == 0.7
