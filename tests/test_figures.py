"""Evaluation figures by hand-computed numbers, and what the terminal shows of them."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from bert_mtl.answers import Answered
from bert_mtl.figures import area_under_roc, by_length, confusion, head_report
from bert_mtl.kinds import head_settings, make_head
from bert_mtl.tables import error_line, print_report, print_summary

PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
LABELS = np.array([0, 1, 1, 0])
FEELING = make_head("feeling", head_settings({"kind": "classification", "labels": ["neg", "pos"]}))
PLACES = np.arange(4)


def printed(show, *arguments, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    show(*arguments, console)
    return console.export_text()


def test_area_under_roc_counts_ordered_pairs_and_is_absent_where_a_label_is():
    # of 4 pairs only (0.4 for pos, 0.7 for neg) is reversed
    assert area_under_roc(PROBS, LABELS) == pytest.approx(3 / 4)
    assert area_under_roc(PROBS, np.zeros(4, int)) is None


def test_area_under_roc_of_many_labels_is_the_mean_of_each_against_the_rest():
    probs = np.array([[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.3, 0.4, 0.3], [0.2, 0.6, 0.2]])
    labels = np.array([0, 1, 2, 2])
    # 0: 0.8 above all; 1: 0.7 above all; 2: 0.3 above both others, 0.2 above 0.1 and even with 0.2
    assert area_under_roc(probs, labels) == pytest.approx((1 + 1 + 3.5 / 4) / 3)


def test_confusion_counts_by_truth_and_prediction():
    assert confusion(np.array([0, 1, 0, 1]), LABELS, 2) == [[1, 1], [1, 1]]


def test_length_groups_go_from_short_to_long_and_hold_all_examples():
    right = np.array([True, False, True, True, False, True, True, True])
    answered = Answered(np.where(right[:, None], [1.0, 0.0], [0.0, 1.0]), np.zeros(8, int), np.arange(8))
    groups = by_length(FEELING, answered, np.array([8, 1, 3, 7, 2, 6, 5, 4]))
    assert [group["up_to"] for group in groups] == [2, 4, 6, 8]
    assert [group["accuracy"] for group in groups] == [0.0, 1.0, 1.0, 1.0]
    assert [group["examples"] for group in groups] == [2, 2, 2, 2]


def test_lengths_are_those_of_the_labelled_examples_also_where_answers_are_lists():
    head = make_head("names", head_settings({"kind": "tagging", "labels": ["name"]}))
    right, wrong = np.eye(3)[[1, 2]], np.eye(3)[[0, 0]]
    answered = Answered([right, wrong], [np.array([1, 2])] * 2, np.array([0, 2]))
    groups = head_report(head, answered, np.array([9, 1, 4]))["by_length"]
    assert groups == [{"up_to": 4, "examples": 1, "f1": 0.0}, {"up_to": 9, "examples": 1, "f1": 1.0}]


def test_a_report_holds_the_kinds_metrics_and_for_labels_calibration_and_confusion():
    report = head_report(FEELING, Answered(PROBS, LABELS, PLACES), np.arange(1, 5))
    assert (report["kind"], report["metric"], report["examples"]) == ("classification", "accuracy", 4)
    assert report["accuracy"] == 0.5 and report["confusion"] == [[1, 1], [1, 1]] and report["labels"] == ["neg", "pos"]
    assert report["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.3]).mean()) and report["auc"] == 0.75

    head = make_head("stars", head_settings({"kind": "regression"}))
    report = head_report(head, Answered(np.array([1.0, 2, 3, 5]), np.array([1.0, 2, 3, 4]), PLACES), np.arange(1, 5))
    assert report["mse"] == 0.25 and report["spearman"] == pytest.approx(1) and "confusion" not in report


def test_masked_places_have_no_length_groups():
    head = make_head("masked", head_settings({"kind": "mlm"}))
    answers = np.array([[math.log(0.5), 7, 1, 2, 3, 4, 0.5, 0.1, 0.1, 0.1, 0.1]])
    report = head_report(head, Answered(answers, np.array([7]), np.array([0])), np.array([5]))
    assert report == {
        "kind": "mlm",
        "metric": "accuracy",
        "examples": 1,
        "accuracy": 1.0,
        "loss": pytest.approx(math.log(2)),
        "perplexity": pytest.approx(2),
    }


def test_a_head_without_a_labelled_example_says_so():
    report = head_report(FEELING, Answered(PROBS[:0], LABELS[:0], PLACES[:0]), np.arange(1, 5))
    assert report == {"kind": "classification", "metric": "accuracy", "examples": 0}
    assert printed(print_report, "feeling", report).strip() == "feeling: no labelled example"
    assert "–" in printed(print_summary, {"feeling": report})


def test_tables_show_the_gain_over_the_baseline():
    report = head_report(FEELING, Answered(PROBS, LABELS, PLACES), np.arange(1, 5))
    report |= {"baseline": report | {"accuracy": 0.25}}
    lines = printed(print_report, "feeling", report).splitlines()
    assert (
        next(line for line in lines if "accuracy" in line).split() == "│ accuracy │ 0.5000 │ 0.2500 │ +0.2500 │".split()
    )
    other = head_report(
        make_head("stars", head_settings({"kind": "regression"})),
        Answered(np.array([1.0, 2, 3, 5]), np.array([1.0, 2, 3, 4]), PLACES),
        np.arange(1, 5),
    )
    lines = printed(print_summary, {"feeling": report, "stars": other}).splitlines()
    assert lines[3].split() == "│ feeling │ 4 │ accuracy │ 0.5000 │ 0.2500 │ +0.2500 │".split()
    assert lines[4].split() == "│ stars │ 4 │ spearman │ 1.0000 │ – │ – │".split()


def test_confusions_are_shown_where_they_fit():
    report = head_report(FEELING, Answered(PROBS, LABELS, PLACES), np.arange(1, 5))
    shown, narrow = (printed(print_report, "feeling", report, width=width) for width in (32, 31))
    assert "│ neg              │ 1   │ 1   │" in shown
    assert shown.count("neg") == 2 and "neg" not in narrow


def test_a_mistake_is_one_line_of_what_was_said_and_the_text():
    error = {"text": "a [b]", "text_b": "c", "label": 4.0, "predicted": 1.23456}
    assert error_line(error) == "[label 4.000, predicted 1.235] a [b] | c"
    spans = {"text": "x" * 300, "spans": [{"type": "city", "text": "Rome"}], "predicted": []}
    assert error_line(spans) == f"[spans city 'Rome', predicted none] {'x' * 200}…"
    assert error_line({"text": "t", "labels": ["a", "b"], "predicted": ["a"]}) == "[labels a; b, predicted a] t"
