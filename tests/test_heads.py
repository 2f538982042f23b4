"""Pooling and losses by hand-computed numbers."""

import keras
import numpy as np
import pytest

from bert_mtl.config import HeadConfig
from bert_mtl.heads import ClassificationLoss, class_weights, first_states, mean_states

STATES = np.arange(12, dtype=np.float32).reshape(2, 3, 2)  # rows, length, hidden_dim


def test_mean_states_average_each_examples_own_tokens_also_when_packed():
    segments = np.array([[1, 1, 2], [3, 0, 0]], np.int32)
    means = mean_states(STATES, segments, 4)
    np.testing.assert_allclose(means, [[1, 2], [4, 5], [6, 7], [0, 0]])


def test_first_states_are_those_at_the_flat_places():
    np.testing.assert_allclose(first_states(STATES, np.array([0, 3], np.int32)), [[0, 1], [6, 7]])


def test_the_loss_is_the_mean_over_examples_that_count():
    loss = ClassificationLoss(0.0, np.ones(2, np.float32), "loss")
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]], np.float32))
    value = loss(np.array([1, 0, 1]), logits, sample_weight=np.array([1.0, 1.0, 0.0], np.float32))
    assert float(value) == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2, abs=1e-6)


def test_label_smoothing_and_class_weights_follow_their_formulas():
    loss = ClassificationLoss(0.2, np.array([2.0, 1.0], np.float32), "loss")
    logits = np.log(np.array([[0.25, 0.75]], np.float32))
    expected = -2.0 * (0.9 * np.log(0.25) + 0.1 * np.log(0.75))
    assert float(loss(np.array([0]), logits)) == pytest.approx(expected, abs=1e-6)


def test_a_batch_of_empty_rows_has_no_loss_and_not_nan():
    loss = ClassificationLoss(0.0, np.ones(2, np.float32), "loss")
    assert float(loss(np.array([0]), np.zeros((1, 2), np.float32), sample_weight=np.zeros(1, np.float32))) == 0.0


def test_balanced_weights_are_inverse_frequencies_with_mean_one_over_the_examples():
    head = HeadConfig(kind="classification", labels=["a", "b"], class_weights="balanced")
    weights = class_weights(head, {"a": 30, "b": 10})
    np.testing.assert_allclose(weights, [40 / 60, 40 / 20])
    assert (30 * weights[0] + 10 * weights[1]) / 40 == pytest.approx(1.0)


def test_compute_type_of_heads_is_float32_under_bfloat16():
    from bert_mtl.heads import ClassificationHead

    head = ClassificationHead(4, 2, 0.0, seed=0, name="h")
    assert keras.backend.standardize_dtype(head(np.ones((1, 4), np.float16)).dtype) == "float32"
