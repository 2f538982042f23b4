"""The kind `vector`: regression onto given vectors."""

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.kinds.head import DataError, LayerContext, head_settings, make_head
from bert_mtl.kinds.vector import unit


def make(**settings):
    return make_head("teacher", head_settings({"kind": "vector", "dim": 2} | settings))


class TestEncode:
    def test_takes_a_list_of_numbers(self):
        assert make().encode([1, "0.5"], "f:1") == [1.0, 0.5]
        assert make().label_shape == (2,)

    @pytest.mark.parametrize(
        ("value", "fault"),
        [
            ("1 2", "must be a list of 2 numbers; got 1 2."),
            ([1.0, 2.0, 3.0], "must hold 2 numbers; got 3."),
            ([1.0, "x"], "must hold finite numbers; got x."),
            ([float("nan"), 1.0], "must hold finite numbers; got nan."),
        ],
    )
    def test_refuses_anything_else(self, value, fault):
        with pytest.raises(DataError) as error:
            make().encode(value, "train.jsonl:9")
        assert str(error.value) == f"train.jsonl:9: the label of head teacher {fault}"


class TestLoss:
    outputs = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    labels = np.array([[2.0, 0.0], [0.0, -5.0]], np.float32)

    def test_cosine_is_one_less_the_cosine_whatever_the_lengths(self):
        np.testing.assert_allclose(make().losses(self.outputs, self.labels), [1 - 0.6, 2.0], rtol=1e-6)

    def test_mse_is_the_mean_over_numbers(self):
        np.testing.assert_allclose(make(loss="mse").losses(self.outputs, self.labels), [17 / 2, 49 / 2])

    @pytest.mark.parametrize("loss", ["cosine", "mse"])
    def test_items_without_weight_get_no_gradient(self, loss):
        outputs, weights = tf.constant([[3.0, 4.0], [1.0, 1.0], [0.0, 0.0]]), np.array([1, 0, 0], np.float32)
        labels = np.array([[2.0, 0.0], [np.nan, np.inf], [1.0, 1.0]], np.float32)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            total, weight = make(loss=loss).loss(outputs, labels, weights, {})
        gradient = tape.gradient(total, outputs).numpy()
        assert (float(total), float(weight)) == (pytest.approx(0.4 if loss == "cosine" else 8.5), 1.0)
        np.testing.assert_allclose(gradient[0], [-0.128, 0.096] if loss == "cosine" else [1, 4], rtol=1e-5)
        np.testing.assert_array_equal(gradient[1:], 0)


def test_unit_vectors_have_length_one_and_zeros_a_gradient():
    vectors = tf.constant([[3.0, 4.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(vectors)
        units = unit(vectors)
    np.testing.assert_allclose(units, [[0.6, 0.8], [0.0, 0.0]])
    assert np.isfinite(tape.gradient(units, vectors)).all()


def test_the_layer_gives_float32_vectors():
    outputs = make().make_layer(LayerContext(4, 0.1, 0, "teacher", None))(np.ones((3, 4), np.float16))
    assert (outputs.shape, outputs.dtype) == ((3, 2), tf.float32)


def test_answers_have_length_one_where_only_the_direction_is_learned():
    outputs = np.array([[3.0, 4.0]], np.float32)
    np.testing.assert_allclose(make().answer(outputs, None, {}), [[0.6, 0.8]])
    np.testing.assert_allclose(make(loss="mse").answer(outputs, None, {}), [[3.0, 4.0]])


def test_metrics_by_hand():
    answers = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    labels = np.array([[2.0, 0.0], [1.0, 0.0]], np.float32)
    found = make().metrics(answers, labels)
    assert found == {"cosine": pytest.approx(0.6 / 2), "mse": pytest.approx((1 + 16 + 1 + 0) / 4)}
    assert make().metric == "cosine"


def test_decoded_answers_and_the_export():
    assert make().decode(np.array([[0.5, -1.0]], np.float32)) == [{"vector": [0.5, -1.0]}]
    assert make().export() == {"kind": "vector", "tuned": {}, "dim": 2}
