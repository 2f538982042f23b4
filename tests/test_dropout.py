"""Dropout by hashing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.dropout import Dropout, hashes

SHAPE = (512, 384)
SIZE = SHAPE[0] * SHAPE[1]


def masks(layer: Dropout, count: int) -> np.ndarray:
    """Where `count` calls put a 0, `(count, size)`."""
    return np.stack([np.ravel(layer(np.ones(SHAPE, np.float32), training=True)) == 0 for _ in range(count)])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_rest_is_scaled_so_that_the_mean_stays(rate):
    found = keras.ops.convert_to_numpy(Dropout(rate, seed=1)(np.ones(SHAPE, np.float32), training=True))
    assert np.unique(found) == pytest.approx([0, 1 / (1 - rate)])
    assert found.mean() == pytest.approx(1, abs=5 * np.sqrt(rate / (1 - rate) / SIZE))


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.1, False)])
def test_nothing_is_dropped_at_rate_0_or_outside_of_training(rate, training):
    inputs = np.ones((2, 3), np.float32)
    assert np.array_equal(Dropout(rate, seed=1)(inputs, training=training), inputs)


def test_the_masks_of_calls_and_of_seeds_are_independent():
    found = np.concatenate([masks(Dropout(0.1, seed=1), 8), masks(Dropout(0.1, seed=2), 8)]) - 0.1
    correlations = found @ found.T / SIZE / 0.09
    off_diagonal = correlations[np.triu_indices(16, 1)]
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(SIZE)


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 16, 64, 384])
def test_the_places_of_a_mask_are_independent(lag):
    found = masks(Dropout(0.1, seed=3), 16) - 0.1
    correlation = np.mean(found[:, lag:] * found[:, :-lag]) / 0.09
    assert abs(correlation) < 5 / np.sqrt(found.size)


def test_as_many_fall_in_every_row_and_column_as_chance_has_it():
    found = masks(Dropout(0.1, seed=4), 16).reshape(16, *SHAPE)
    for axis, count in ((2, SHAPE[1]), (1, SHAPE[0])):
        assert found.mean(axis).std() == pytest.approx(np.sqrt(0.09 / count), rel=0.05)


def test_every_bit_of_a_hash_is_set_half_of_the_time():
    words = keras.ops.convert_to_numpy(hashes((2**16,), np.array([5, 9])))
    shares = ((words[:, None] >> np.arange(32, dtype=np.uint32)) & 1).mean(axis=0)
    assert np.abs(shares - 0.5).max() < 5 * 0.5 / 2**8
    assert len(np.unique(words)) == 2**16


def test_the_gradient_goes_where_numbers_were_kept_and_xla_has_the_same_mask():
    def both(inputs, layer):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
        return outputs, tape.gradient(outputs, inputs)

    results = []
    for xla in (False, True):
        layer = Dropout(0.1, seed=7)
        function = tf.function(lambda inputs, layer=layer: both(inputs, layer), jit_compile=xla)
        results.append([value.numpy() for value in function(tf.ones((64, 32)))])
    (plain, gradient), compiled = results
    np.testing.assert_array_equal(plain, gradient)
    np.testing.assert_array_equal(plain, compiled[0])
    np.testing.assert_array_equal(gradient, compiled[1])


def test_a_size_may_be_unknown_when_the_graph_is_made():
    layer = Dropout(0.5, seed=1)
    function = tf.function(lambda inputs: layer(inputs, training=True), [tf.TensorSpec((None, 4))])
    found = function(np.ones((500, 4), np.float32)).numpy()
    assert np.unique(found).tolist() == [0, 2]
    assert found.shape == (500, 4)
