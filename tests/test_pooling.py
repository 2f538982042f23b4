"""One vector a segment, by hand-computed numbers."""

import numpy as np

from bert_mtl.pooling import mean_states, states_at

STATES = np.arange(12, dtype=np.float32).reshape(2, 3, 2)  # rows, length, hidden_dim


def test_mean_states_average_each_segments_own_tokens_also_when_packed():
    segments = np.array([[1, 1, 2], [3, 0, 0]], np.int32)
    np.testing.assert_allclose(mean_states(STATES, segments, 4), [[1, 2], [4, 5], [6, 7], [0, 0]])


def test_mean_states_are_float32_sums_whatever_the_states_are():
    states = np.full((1, 3000, 1), 1.0, np.float16)  # whose sum a float16 could not hold exactly beyond 2,048
    means = mean_states(states, np.ones((1, 3000), np.int32), 1)
    assert means.dtype == "float32" and float(means[0, 0]) == 1.0


def test_states_at_are_those_at_the_flat_places():
    np.testing.assert_allclose(states_at(STATES, np.array([0, 3, 3], np.int32)), [[0, 1], [6, 7], [6, 7]])
