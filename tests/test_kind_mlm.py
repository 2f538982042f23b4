"""The kind `mlm`: logits from tied word embeddings, cross-entropy at masked places, guesses as answers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from pydantic import ValidationError

from bert_mtl.encoder import gelu
from bert_mtl.kinds.head import LayerContext, head_settings, make_head
from bert_mtl.kinds.mlm import TiedLayer

VOCAB_SIZE, HIDDEN_DIM = 11, 4


@pytest.fixture
def head():
    return make_head("imdb_mlm", head_settings({"kind": "mlm"}))


@pytest.fixture
def table():
    values = np.random.default_rng(0).normal(size=(VOCAB_SIZE, HIDDEN_DIM)).astype("float32")
    return keras.Variable(values, autocast=False, name="word_embeddings")


@pytest.fixture
def context(table):
    return LayerContext(HIDDEN_DIM, 0.1, 1, "imdb_mlm", table)


@pytest.fixture
def states():
    return np.random.default_rng(1).normal(size=(3, HIDDEN_DIM)).astype("float32")


def logits_of(probabilities):
    return np.log(np.array(probabilities, "float32")) + 3.0  # a softmax does not see the 3


class TestSettings:
    def test_mask_15_percent_unless_told(self, head):
        assert head.settings.rate == 0.15
        assert head_settings({"kind": "mlm", "rate": 0.3}).rate == 0.3

    @pytest.mark.parametrize("rate", [0, 1, -0.1])
    def test_want_a_share_as_rate(self, rate):
        with pytest.raises(ValidationError, match="rate"):
            head_settings({"kind": "mlm", "rate": rate})

    def test_examples_need_no_label(self, head):
        assert (head.level, head.metric) == ("mask", "accuracy")


class TestLayer:
    def test_is_berts_output_layer(self, head, context, table, states):
        layer = head.make_layer(context)
        layer.bias.assign(np.arange(VOCAB_SIZE))
        kernel, bias, gamma, beta = (np.array(weight) for weight in (*layer.transform.weights, *layer.norm.weights))
        hidden = np.array(gelu(ops.convert_to_tensor(states @ kernel + bias)))
        normal = (hidden - hidden.mean(axis=1, keepdims=True)) / np.sqrt(hidden.var(axis=1, keepdims=True) + 1e-12)
        expected = (gamma * normal + beta) @ np.array(table).T + np.arange(VOCAB_SIZE)
        assert np.array(layer(states)) == pytest.approx(expected, abs=1e-5)

    def test_does_not_own_the_word_embeddings(self, head, context, table):
        layer = head.make_layer(context)
        assert [weight.path for weight in layer.weights] == [
            "imdb_mlm/bias",
            "imdb_mlm/transform/kernel",
            "imdb_mlm/transform/bias",
            "imdb_mlm/norm/gamma",
            "imdb_mlm/norm/beta",
        ]
        assert not any(weight is table for weight in layer.weights)

    @pytest.mark.parametrize("compiled", [False, True])
    def test_teaches_the_word_embeddings_and_itself(self, head, context, table, states, compiled):
        layer = head.make_layer(context)

        @tf.function(jit_compile=compiled)
        def gradients():
            with tf.GradientTape() as tape:
                loss, _ = head.loss(layer(states), np.array([1, 2, 3]), np.ones(3, "float32"), {})
            return tape.gradient(loss, [table.value, *(weight.value for weight in layer.trainable_weights)])

        found = gradients()
        assert found[0].shape == (VOCAB_SIZE, HIDDEN_DIM)
        assert all(np.abs(gradient).max() > 0 for gradient in found)

    def test_in_bfloat16_multiplies_in_bfloat16_and_answers_in_float32(self, context, states):
        exact = TiedLayer(context)
        rounded = TiedLayer(context, dtype="mixed_bfloat16")
        rounded.set_weights(exact.get_weights())
        assert rounded.compute_dtype == "bfloat16" and rounded.bias.dtype == "float32"
        logits = rounded(states)
        assert logits.dtype == tf.float32
        difference = np.abs(np.array(logits) - np.array(exact(states))).max()
        assert 0 < difference < 0.05


class TestLoss:
    def test_is_cross_entropy_at_the_places_by_weight(self, head):
        outputs = logits_of([[0.5, 0.3, 0.2], [0.25, 0.25, 0.5], [0.2, 0.2, 0.6]])
        loss, weight = head.loss(outputs, np.array([0, 2, 1]), np.array([1.0, 0.5, 0.0], "float32"), {})
        assert float(loss) == pytest.approx(-np.log(0.5) - 0.5 * np.log(0.5))
        assert float(weight) == 1.5

    def test_unused_places_get_no_gradient_whatever_their_label(self, head):
        outputs = tf.Variable(logits_of([[0.5, 0.3, 0.2], [0.25, 0.25, 0.5]]))
        with tf.GradientTape() as tape:
            loss, _ = head.loss(outputs, np.array([0, -1]), np.array([1.0, 0.0], "float32"), {})
        assert tape.gradient(loss, outputs).numpy() == pytest.approx(np.array([[-0.5, 0.3, 0.2], [0, 0, 0]]), abs=1e-6)

    def test_without_any_place_is_zero(self, head):
        loss, weight = head.loss(np.zeros((2, 9), "float32"), np.zeros(2, int), np.zeros(2, "float32"), {})
        assert (float(loss), float(weight)) == (0.0, 0.0)


class TestAnswers:
    PROBABILITIES = [[0.02, 0.08, 0.3, 0.2, 0.05, 0.25, 0.1], [0.4, 0.3, 0.14, 0.06, 0.05, 0.03, 0.02]]

    def answers(self, head, labels):
        return np.array(head.answer(logits_of(self.PROBABILITIES), np.array(labels), {}))

    def test_hold_the_labels_log_probability_and_the_five_best(self, head):
        answers = self.answers(head, [5, 6])
        assert answers.shape == (2, 11) and answers.dtype == np.float32
        assert answers[:, 0] == pytest.approx(np.log([0.25, 0.02]), rel=1e-5)
        assert answers[:, 1:6].tolist() == [[2, 5, 3, 6, 1], [0, 1, 2, 3, 4]]
        assert answers[0, 6:] == pytest.approx([0.3, 0.25, 0.2, 0.1, 0.08])
        assert answers[1, 6:] == pytest.approx([0.4, 0.3, 0.14, 0.06, 0.05])

    def test_do_not_need_a_label(self, head):
        assert self.answers(head, [-1, -1])[:, 1:] == pytest.approx(self.answers(head, [5, 6])[:, 1:])

    def test_keep_large_ids_exact(self, head):
        outputs = np.zeros((1, 250_003), "float32")
        outputs[0, [250_001, 250_002]] = 2, 1
        assert np.array(head.answer(outputs, np.array([0]), {}))[0, 1:3].tolist() == [250_001, 250_002]

    def test_are_measured_by_likelihood_and_the_best_guess(self, head):
        metrics = head.metrics(self.answers(head, [5, 0]), np.array([5, 0]))
        assert metrics["accuracy"] == 0.5
        assert metrics["loss"] == pytest.approx(-(np.log(0.25) + np.log(0.4)) / 2, rel=1e-5)
        assert metrics["perplexity"] == pytest.approx((0.25 * 0.4) ** -0.5, rel=1e-5)

    def test_are_decoded_to_ids_and_probabilities(self, head):
        first, _ = head.decode(self.answers(head, [5, 6]))
        assert first["ids"] == [2, 5, 3, 6, 1]
        assert first["probabilities"] == pytest.approx([0.3, 0.25, 0.2, 0.1, 0.08])


def test_the_manifest_says_the_kind(head):
    assert head.export() == {"kind": "mlm", "tuned": {}}


def test_learns_which_token_stands_where():
    """Masked places of three states, each always hiding the same token: a few steps and the head knows them."""
    keras.utils.set_random_seed(0)
    head = make_head("imdb_mlm", head_settings({"kind": "mlm"}))
    table = keras.Variable(keras.random.normal((VOCAB_SIZE, HIDDEN_DIM)), autocast=False)
    layer = head.make_layer(LayerContext(HIDDEN_DIM, 0.1, 1, "imdb_mlm", table))
    states, labels, weights = np.eye(3, HIDDEN_DIM, dtype="float32"), np.array([7, 2, 9]), np.ones(3, "float32")
    variables = [table, *layer.trainable_weights]
    optimizer = keras.optimizers.Adam(0.1)
    for _ in range(30):
        with tf.GradientTape() as tape:
            loss, _ = head.loss(layer(states), labels, weights, {})
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    answers = np.array(head.answer(layer(states), labels, {}))
    metrics = head.metrics(answers, labels)
    assert metrics["accuracy"] == 1.0 and metrics["perplexity"] < 1.1
