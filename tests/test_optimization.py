"""The learning rate over time, what decays, and the averaged weights."""

import keras
import numpy as np
import pytest

from bert_mtl.config import OptimizerConfig
from bert_mtl.optimization import WarmupLinearDecay, averaged_weights, make_optimizer

BASE = OptimizerConfig(learning_rate=0.1, warmup_fraction=0.2, weight_decay=0.5, clip_norm=None, accumulate=1, ema=None)


def test_the_rate_rises_linearly_to_its_peak_and_falls_linearly_to_zero():
    schedule = WarmupLinearDecay(1.0, 2, 10)
    rates = [float(schedule(step)) for step in (0, 1, 2, 6, 10, 12)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0, 0.0])


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert float(WarmupLinearDecay(1.0, 0, 10)(0)) == 1.0


def test_kernels_decay_and_biases_and_layer_norms_do_not():
    layers = [keras.layers.Dense(2, bias_initializer="ones"), keras.layers.LayerNormalization()]
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.optimizer = make_optimizer(BASE.model_copy(update={"warmup_fraction": 0.0}), steps=10**6)
    before = [variable.numpy() for variable in model.trainable_variables]
    gradients = [np.zeros_like(value) for value in before]
    model.optimizer.apply(gradients, model.trainable_variables)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        factor = 1 - 0.1 * 0.5 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(variable.numpy(), old * factor, rtol=1e-6, err_msg=variable.path)


def test_averaged_weights_are_there_inside_and_gone_outside():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    config = BASE.model_copy(update={"ema": 0.5, "weight_decay": 0.0, "warmup_fraction": 0.0})
    model.optimizer = make_optimizer(config, steps=10**6)
    values = []
    for _ in range(2):
        model.optimizer.apply([np.ones((1, 1), np.float32)], model.trainable_variables)
        values.append(float(model.trainable_variables[0].numpy()[0, 0]))
    with averaged_weights(model):
        assert float(model.trainable_variables[0].numpy()[0, 0]) == pytest.approx((values[0] + values[1]) / 2, abs=1e-6)
    assert float(model.trainable_variables[0].numpy()[0, 0]) == values[1]
