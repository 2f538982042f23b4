"""R-Drop: a batch read twice, and what parts the two readings."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.config import TrainConfig
from bert_mtl.kinds import KINDS, make_head
from bert_mtl.multitask import model_inputs
from bert_mtl.r_drop import divergence, twice
from conf import entry
from conf.errors import ConfigError
from tests.test_multitask import HEADS, NAMES, batch_of, examples_of, graph, losses_of, model_of, tasks_of

EVERY_TASK = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_without_dropout_both_readings_are_the_one_reading():
    tasks = tasks_of(HEADS)
    model = model_of(tasks)
    inputs = model_inputs(batch_of(tasks, examples_of(tasks, EVERY_TASK)), NAMES)
    for name, outputs in model(twice(inputs), training=True).items():
        one, other = np.split(keras.ops.convert_to_numpy(outputs), 2)
        np.testing.assert_allclose(one, other, atol=1e-6)
        np.testing.assert_allclose(one, model(inputs, training=True)[name], atol=1e-6)


def test_without_dropout_r_drop_changes_no_loss_and_no_gradient():
    tasks, losses, weights = tasks_of(HEADS), [], []
    batch = batch_of(tasks, examples_of(tasks, EVERY_TASK))
    for r_drop in (0.0, 2.0):
        model = model_of(tasks)
        model.r_drop = r_drop
        graph(model)(batch)
        losses.append(list(losses_of(model).values()))
        weights.append(keras.ops.convert_to_numpy(model.encoder.embeddings.word_table))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(*weights, atol=1e-5)


def test_with_dropout_the_readings_differ():
    tasks = tasks_of(HEADS)
    losses = []
    for r_drop in (1.0, 1001.0):
        model = model_of(tasks, dropout=0.5)
        model.r_drop = r_drop
        graph(model)(batch_of(tasks, examples_of(tasks, EVERY_TASK)))
        losses.append(losses_of(model)["mood_loss"])
    assert losses[1] > losses[0] + 0.1


def test_the_divergence_is_the_mean_of_both_directions():
    head = make_head("mood", KINDS["classification"].Settings(kind="classification", labels=["a", "b"]))
    p, q = np.array([0.9, 0.1]), np.array([0.6, 0.4])
    one, other = (tf.constant(np.log([values, [0.5, 0.5]]), tf.float32) for values in (p, q))
    found = divergence(head, one, other, tf.constant([2.0, 0.0]), {})
    expected = (np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p))) / 2
    assert float(found) == pytest.approx(2 * expected, rel=1e-5)


def test_both_readings_get_a_gradient():
    head = make_head("mood", KINDS["classification"].Settings(kind="classification", labels=["a", "b"]))
    one, other = tf.constant([[1.0, 0.0]]), tf.constant([[0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch([one, other])
        apart = divergence(head, one, other, tf.constant([1.0]), {})
    gradients = tape.gradient(apart, [one, other])
    step = [outputs - 0.1 * gradient for outputs, gradient in zip((one, other), gradients, strict=True)]
    assert all(float(tf.norm(gradient)) > 0.01 for gradient in gradients)
    assert float(divergence(head, *step, tf.constant([1.0]), {})) < float(apart)


def test_r_drop_without_dropout_is_refused():
    with pytest.raises(ConfigError, match=r"train.r_drop must be 0 without model.dropout"):
        entry.compose("train", ["task=imdb", "train.r_drop=1", "model.dropout=0"], TrainConfig)
