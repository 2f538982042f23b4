"""Classification heads: stored labels, loss and metrics by hand-computed numbers, readable answers."""

import keras
import numpy as np
import pytest

from bert_mtl.kinds import DataError, make_head
from bert_mtl.kinds.classification import Classification, macro_f1, matthews
from bert_mtl.kinds.head import LayerContext, head_settings


def head(statistics: dict | None = None, **settings) -> Classification:
    raw = {"kind": "classification", "labels": ["neg", "pos"]} | settings
    return make_head("mood", head_settings(raw), statistics)


def loss(head: Classification, probabilities: list, labels: list, weights: list | None = None) -> tuple[float, float]:
    logits, labels = np.log(np.array(probabilities, np.float32)), np.array(labels, np.int32)
    weights = np.ones(len(labels), np.float32) if weights is None else np.array(weights, np.float32)
    total, count = head.loss(keras.ops.convert_to_tensor(logits), labels, weights, {})
    return float(total), float(count)


def test_labels_are_given_by_name_or_by_the_number_of_their_place():
    assert [head().encode(value, "f:1") for value in ("pos", 1, "0", "neg")] == [[1], [1], [0], [0]]
    for wrong in ("Pos", 2, -1, 0.5):
        with pytest.raises(DataError, match=r"f:1: the label of head mood must be listed; got .*Options: neg, pos"):
            head().encode(wrong, "f:1")


def test_the_loss_sums_the_cross_entropy_of_the_texts_that_count():
    total, count = loss(head(), [[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], [1, 0, -1], [1, 1, 0])
    assert (total, count) == (pytest.approx(-np.log(0.75) - np.log(0.5), abs=1e-6), 2)


def test_without_a_label_there_is_no_loss_and_not_nan():
    assert loss(head(), [[0.5, 0.5]], [-1], [0]) == (0.0, 0.0)


def test_label_smoothing_and_class_weights_follow_their_formulas():
    total, _ = loss(head(label_smoothing=0.2, class_weights=[2.0, 1.0]), [[0.25, 0.75]], [0])
    assert total == pytest.approx(-2.0 * (0.9 * np.log(0.25) + 0.1 * np.log(0.75)), abs=1e-6)


def test_balanced_weights_are_inverse_frequencies_with_mean_one_over_the_examples():
    counted = head().count(np.array([0] * 30 + [1] * 10 + [-1] * 5))
    assert counted == {"neg": 30.0, "pos": 10.0}
    weights = head(counted, class_weights="balanced").class_weights()
    np.testing.assert_allclose(weights, [40 / 60, 40 / 20])
    assert (30 * weights[0] + 10 * weights[1]) / 40 == pytest.approx(1.0)


def test_metrics_of_five_texts():
    answers = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    found = head().metrics(answers, np.array([0, 0, 0, 1, 1]))
    # one of five is wrong; F1 of neg: 2·2/(2+3), of pos: 2·2/(3+2)
    assert found["accuracy"] == 0.8
    assert found["macro_f1"] == pytest.approx(0.8)
    # (TP·TN − FP·FN) / √(predicted pos · true pos · true neg · predicted neg)
    assert found["matthews"] == pytest.approx((2 * 2 - 1 * 0) / (3 * 2 * 3 * 2) ** 0.5)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.7, 0.8]).mean())


def test_f1_counts_labels_that_are_seen_and_correlation_of_a_constant_is_0():
    assert macro_f1(np.array([0, 0, 2]), np.array([0, 0, 1])) == pytest.approx((1 + 0 + 0) / 3)
    assert matthews(np.array([1, 1]), np.array([0, 1])) == 0.0


def test_the_metric_that_compares_epochs_is_chosen():
    assert [head(metric=name).metric for name in ("accuracy", "macro_f1", "matthews")] == [
        "accuracy",
        "macro_f1",
        "matthews",
    ]


def test_an_answer_names_the_label_and_all_probabilities():
    assert head().decode(np.array([[0.25, 0.75]])) == [{"label": "pos", "probabilities": {"neg": 0.25, "pos": 0.75}}]
    assert head().export() == {"kind": "classification", "tuned": {}, "labels": ["neg", "pos"]}


def test_the_layer_computes_in_float32_also_under_bfloat16():
    context = LayerContext(4, 0.0, 0, "mood", None, keras.DTypePolicy("mixed_bfloat16"))
    outputs = head().make_layer(context)(np.ones((1, 4), np.float16))
    assert outputs.shape == (1, 2) and keras.backend.standardize_dtype(outputs.dtype) == "float32"
