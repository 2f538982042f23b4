"""Raw rows to examples, and logits to answers and metrics, with numbers worked out by hand."""

import numpy as np
import pytest

from bert_mtl.config import HeadConfig, TaskConfig
from bert_mtl.tasks import (
    DataError,
    Example,
    accuracy,
    decode,
    macro_f1,
    make_example,
    mean_loss,
    metrics,
    probabilities,
)

MOOD = HeadConfig(kind="classification", labels=["bad", "fine", "good"])
TASK = TaskConfig.model_construct(heads={"mood": MOOD})
LOGITS = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]], np.float32))
LABELS = np.array([0, 1, 2, 2])


def test_a_row_becomes_an_example_with_the_label_s_place_as_its_id():
    assert make_example(TASK, {"text": "ok", "mood": "good"}, "f:1") == Example("ok", None, {"mood": 2})


def test_line_ends_and_tabs_of_a_text_become_spaces():
    example = make_example(TASK, {"text": "a\tb\r\nc", "text_b": "d\ne", "mood": "bad"}, "f:1")
    assert (example.text, example.text_b) == ("a b  c", "d e")


@pytest.mark.parametrize("field", ["text", "text_b"])
def test_an_empty_text_is_refused_with_its_place(field):
    row = {"text": "a", "text_b": "b", "mood": "bad"} | {field: " \t\n"}
    with pytest.raises(DataError, match=rf"^f:7: {field} must not be empty; got ' \\t\\n'\.$"):
        make_example(TASK, row, "f:7")


def test_a_label_outside_the_list_is_refused_with_the_closest_one():
    with pytest.raises(DataError) as caught:
        make_example(TASK, {"text": "a", "mood": "goood"}, "f:7")
    assert str(caught.value) == (
        "f:7: the label of head mood must be listed; got goood. Options: bad, fine, good. Did you mean good?"
    )


def test_probabilities_sum_to_one_whatever_the_size_of_the_logits():
    rows = probabilities(np.array([[1000.0, 1000.0], [-1000.0, 0.0]], np.float32))
    np.testing.assert_allclose(rows, [[0.5, 0.5], [0.0, 1.0]], atol=1e-12)


def test_an_answer_names_the_label_and_every_probability():
    (answer,) = decode(MOOD, LOGITS[:1])
    assert answer["label"] == "bad"
    assert answer["probabilities"] == pytest.approx({"bad": 0.7, "fine": 0.2, "good": 0.1}, abs=1e-6)


def test_metrics_have_the_values_worked_out_by_hand():
    # predicted 0, 1, 1, 2 against 0, 1, 2, 2: F1 of 1, 2/3 and 2/3
    assert accuracy(LOGITS, LABELS) == 0.75
    assert macro_f1(LOGITS, LABELS) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert mean_loss(LOGITS, LABELS) == pytest.approx(-np.log([0.7, 0.8, 0.25, 0.8]).mean(), abs=1e-6)
    assert metrics(LOGITS, LABELS).keys() == {"accuracy", "macro_f1", "loss"}


def test_macro_f1_leaves_out_labels_that_neither_occur_nor_are_predicted():
    assert macro_f1(np.eye(3)[[0, 1]], np.array([0, 1])) == 1.0
