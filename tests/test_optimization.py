"""AdamW by hand, the learning rate over time and depth, what decays, and the averaged weights."""

from contextlib import ExitStack

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.config import OptimizerConfig
from bert_mtl.optimization import AdamW, WarmupLinearDecay, averaged_weights, decays, make_optimizer, rate_factor

BASE = OptimizerConfig(
    learning_rate=0.1,
    head_learning_rate=None,
    layer_decay=None,
    warmup_fraction=0.0,
    weight_decay=0.5,
    clip_norm=None,
    accumulate=1,
    ema=None,
)
GRADIENTS = ([1.0, -2.0], [0.5, 3.0], [-4.0, 0.25])


def config(**values) -> OptimizerConfig:
    return BASE.model_copy(update=values)


def variable_at(path: str, value) -> keras.Variable:
    *scopes, name = path.split("/")
    with ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(np.asarray(value, "float32"), name=name)


def adamw_by_hand(weights, gradients, rate: float, decay: float, clip_norm: float = np.inf) -> np.ndarray:
    """Loshchilov & Hutter 2019, algorithm 2, decay and step both at `rate`."""
    weights, m, v = np.array(weights, np.float64), 0.0, 0.0
    for step, gradient in enumerate(np.array(gradients, np.float64), start=1):
        gradient = gradient * min(1.0, clip_norm / np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        corrected = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        weights = weights - rate * decay * weights - rate * corrected
    return weights


def constant(batches) -> float:
    """A schedule."""
    return 0.1


def steps_of(optimizer: AdamW, variables: list[keras.Variable], gradients, xla: bool = False) -> None:
    """One step a gradient, the same for every variable, in a graph; with `xla` as where XLA compiles it."""
    optimizer.build(variables, together=xla)

    @tf.function(jit_compile=xla)
    def step(gradient):
        optimizer.apply(optimizer.joined([gradient] * len(variables)))

    for gradient in gradients:
        step(tf.constant(gradient))


@pytest.mark.parametrize("xla", [False, True])
def test_three_steps_are_those_of_adamw_at_the_rate_of_each_variable(xla):
    paths = ["encoder/layer_0/qkv/kernel", "encoder/layer_1/qkv/bias", "imdb/logits/kernel", "weighting/log_variance"]
    variables = [variable_at(path, [1.0, -1.0]) for path in paths]
    optimizer = AdamW(constant, config(layer_decay=0.5, head_learning_rate=0.4), num_layers=3)
    steps_of(optimizer, variables, GRADIENTS, xla)
    for variable, rate, decay in zip(variables, (0.025, 0.05, 0.4, 0.4), (0.5, 0.0, 0.5, 0.0), strict=True):
        expected = adamw_by_hand([1.0, -1.0], GRADIENTS, rate, decay)
        np.testing.assert_allclose(variable.numpy(), expected, atol=2e-6, err_msg=variable.path)


def test_without_rates_of_their_own_three_steps_are_those_of_keras_adamw():
    ours, theirs = (variable_at("encoder/layer_0/qkv/kernel", [1.0, -1.0]) for _ in range(2))
    steps_of(AdamW(constant, config(clip_norm=1.5), num_layers=1), [ours], GRADIENTS)
    peer = keras.optimizers.AdamW(0.1, weight_decay=0.5, epsilon=1e-8, global_clipnorm=1.5)
    for gradient in GRADIENTS:
        peer.apply([tf.constant(gradient)], [theirs])
    expected = adamw_by_hand([1.0, -1.0], GRADIENTS, 0.1, 0.5, clip_norm=1.5)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(theirs.numpy(), expected, atol=2e-6)  # its float32 knows 1 - 0.999 to 5 digits


@pytest.mark.parametrize("xla", [False, True])
def test_variables_that_learn_alike_are_one_to_the_optimizer_where_xla_compiles(xla):
    paths = [f"encoder/layer_{i}/{name}" for i in (0, 1) for name in ("qkv/kernel", "output/kernel", "qkv/bias")]
    shapes = [(2, 3), (3,), (1, 2)] * 2
    random = np.random.default_rng(1)
    start = [random.normal(size=shape) for shape in shapes]
    gradients = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    variables = [variable_at(path, value) for path, value in zip(paths, start, strict=True)]
    optimizer = AdamW(constant, config(ema=0.5), num_layers=2)
    optimizer.build(variables, together=xla)
    assert len(optimizer.groups) == (2 if xla else 6)  # kernels and biases
    step = tf.function(lambda: optimizer.apply(optimizer.joined(gradients)), jit_compile=xla)
    values = []
    for _ in range(2):
        step()
        values.append([variable.numpy() for variable in variables])
    for place, path in enumerate(paths):
        decay = 0.0 if path.endswith("bias") else 0.5
        expected = adamw_by_hand(start[place], [gradients[place]] * 2, 0.1, decay)
        np.testing.assert_allclose(values[1][place], expected, atol=5e-6)
        average = (values[0][place] + values[1][place]) / 2
        np.testing.assert_allclose(optimizer.averages[place].numpy(), average, atol=2e-6)


@pytest.mark.parametrize("xla", [False, True])
def test_accumulated_gradients_make_one_step_of_their_mean(xla):
    variable = variable_at("encoder/layer_0/qkv/kernel", [1.0, -1.0])
    optimizer = AdamW(constant, config(accumulate=2, layer_decay=0.5), num_layers=2)
    optimizer.build([variable])
    step = tf.function(lambda gradient: optimizer.apply([gradient]), jit_compile=xla)
    step(tf.constant(GRADIENTS[0]))
    np.testing.assert_array_equal(variable.numpy(), [1.0, -1.0])
    step(tf.constant(GRADIENTS[1]))
    np.testing.assert_allclose(variable.numpy(), adamw_by_hand([1.0, -1.0], [[0.75, 0.5]], 0.05, 0.5), atol=2e-6)
    step(tf.constant(GRADIENTS[0]))
    np.testing.assert_allclose(variable.numpy(), adamw_by_hand([1.0, -1.0], [[0.75, 0.5]], 0.05, 0.5), atol=2e-6)


@pytest.mark.parametrize(
    ("path", "factor"),
    [
        ("encoder/embeddings/word_embeddings", 0.125),
        ("encoder/embeddings/norm/gamma", 0.125),
        ("encoder/layer_0/qkv/kernel", 0.25),
        ("encoder/layer_1/output/bias", 0.5),
        ("encoder/layer_2/output_norm/beta", 1.0),
        ("encoder/pooler/kernel", 1.0),
        ("encoder/layer_0/task_adapter/down/kernel", 3.0),
        ("encoder/layer_0/output_norm/task_gamma", 3.0),
        ("encoder/embeddings/task_embeddings", 3.0),
        ("imdb/logits/kernel", 3.0),
        ("encoder/logits/kernel", 3.0),
    ],
)
def test_the_rate_falls_with_every_layer_down_and_new_weights_have_their_own(path, factor):
    assert rate_factor(path, 3, config(layer_decay=0.5, head_learning_rate=0.3)) == pytest.approx(factor)
    assert rate_factor(path, 3, BASE) == 1.0


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("encoder/layer_0/qkv/kernel", True),
        ("encoder/embeddings/word_embeddings", True),
        ("beta_reviews/logits/kernel", True),
        ("encoder/layer_0/qkv/bias", False),
        ("encoder/layer_0/task_adapter/up_bias", False),
        ("encoder/layer_0/output_norm/gamma", False),
        ("encoder/layer_0/output_norm/task_beta", False),
        ("weighting/log_variances", False),
    ],
)
def test_biases_layer_norms_and_loss_weights_do_not_decay(path, expected):
    assert decays(path) is expected


def test_the_rate_rises_linearly_to_its_peak_and_falls_linearly_to_zero():
    schedule = WarmupLinearDecay(1.0, 0.2, epochs=2, steps=5)
    rates = [float(schedule(step)) for step in (0, 1, 2, 6, 10, 12)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0, 0.0], abs=1e-6)


def test_an_epoch_of_many_steps_is_no_larger_part_of_the_training_than_one_of_few():
    schedule = WarmupLinearDecay(1.0, 0.0, epochs=2, steps=5)
    assert float(schedule(4)) == pytest.approx(0.6)
    schedule.begin(epoch=1, step=5, steps=50)
    assert [float(schedule(step)) for step in (5, 30, 54, 55)] == pytest.approx([0.5, 0.25, 0.01, 0.0], abs=1e-6)


def test_without_warm_up_the_first_step_has_the_full_rate():
    assert float(WarmupLinearDecay(1.0, 0.0, epochs=1, steps=10)(0)) == 1.0


def test_the_optimizer_of_a_run_follows_its_schedule():
    optimizer = make_optimizer(config(warmup_fraction=0.2), epochs=2, steps=5, num_layers=2)
    variable = variable_at("encoder/layer_0/qkv/kernel", [1.0])
    steps_of(optimizer, [variable], [[0.0]])
    assert float(variable.numpy()[0]) == pytest.approx(1 - 0.05 * 0.5)
    assert float(optimizer.learning_rate) == pytest.approx(0.1)


def test_averaged_weights_are_there_inside_and_gone_outside():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.optimizer = make_optimizer(config(ema=0.5, weight_decay=0.0), epochs=1, steps=10**6, num_layers=1)
    values = []
    model.optimizer.build(model.trainable_variables)
    for _ in range(2):
        model.optimizer.apply([np.ones((1, 1), np.float32)])
        values.append(float(model.trainable_variables[0].numpy()[0, 0]))
    with averaged_weights(model):
        assert float(model.trainable_variables[0].numpy()[0, 0]) == pytest.approx((values[0] + values[1]) / 2, abs=1e-6)
    assert float(model.trainable_variables[0].numpy()[0, 0]) == values[1]
