"""The gradient of several heads' losses: weights and surgery, against numbers worked out by hand or step by step."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from keras import ops

from bert_mtl.weighting import WEIGHTINGS, gradnorm, gradvac, make_weighting, pcgrad
from conf.entry import CONF_DIR

KINDS = ["static", "uncertainty", "dwa", "gradnorm", "pcgrad", "gradvac"]
LN2 = np.log(2)


def weighting(kind: str, base=(1.0, 1.0), seed: int = 1, norm_variables=None, **settings):
    values = dict(kind=kind, temperature=2.0, alpha=1.5, learning_rate=0.1, beta=0.01) | settings
    heads = dict(zip("abc", base, strict=False))
    return make_weighting(SimpleNamespace(**values), heads, seed, norm_variables)


class Linear:
    """Heads with losses `vector . w + value * u`, at w = 0 and u = 1: each loss is its value, its gradient for the
    shared `w` its vector, and for its own `u` its value."""

    def __init__(self, vectors, values):
        self.vectors, self.values = np.array(vectors, np.float32), list(values)
        self.w = keras.Variable(np.zeros(self.vectors.shape[1], np.float32))
        self.u = [keras.Variable(1.0) for _ in values]

    def step(self, layer, shares, present=None):
        """`(total, gradient of w, gradients of the u)`; heads that are not present have the constant loss 0."""
        here = [1.0] * len(self.values) if present is None else present
        with tf.GradientTape(persistent=True) as tape:
            losses = [
                on * (ops.sum(self.w * vector) + u * value)
                for on, vector, value, u in zip(here, self.vectors, self.values, self.u, strict=True)
            ]
        shares = ops.convert_to_tensor(shares, "float32")
        total, (shared, *own) = layer.gradients(tape, losses, shares, [self.w], self.u)
        return total, shared, own


def numbers(result):
    return tf.nest.map_structure(lambda tensor: np.asarray(tensor).tolist(), result)


def test_static_totals_are_base_times_share_times_loss():
    layer = weighting("static", base=(2.0, 0.5))
    total, shared, own = numbers(Linear([[1, 0], [0, 4]], [3, 8]).step(layer, [0.75, 0.25]))
    assert total == 2 * 0.75 * 3 + 0.5 * 0.25 * 8
    assert shared == [1.5, 0.5]
    assert own == [4.5, 1.0]
    assert layer.current() == {"a": 2.0, "b": 0.5}
    assert layer.variables == []


def test_uncertainty_halves_the_losses_at_first_and_learns_its_log_variances():
    layer = weighting("uncertainty", base=(1.0, 2.0))
    total, shared, own = numbers(Linear([[1, 0], [0, 4]], [3, 0.5]).step(layer, [0.75, 0.25]))
    assert total == pytest.approx(0.75 * (1.5 + LN2) + 2 * 0.25 * (0.25 + LN2))
    assert shared == [0.375, 1.0]
    assert own == [1.125, 0.125]
    # minus 0.1 times the total's slope, base * share * (sigmoid(0) - loss / 2)
    expected = [-0.1 * 0.75 * (0.5 - 1.5), -0.1 * 2 * 0.25 * (0.5 - 0.25)]
    np.testing.assert_allclose(layer.log_variances, expected, rtol=1e-6)
    assert list(layer.current().values()) == pytest.approx([np.exp(-0.075) / 2, np.exp(0.0125)])


def test_uncertainty_settles_where_the_derivative_of_its_total_is_zero():
    layer, model = weighting("uncertainty", base=(1.0,), learning_rate=1.0), Linear([[0.0]], [6.0])
    for _ in range(50):
        model.step(layer, [1.0])
    variance = float(np.exp(layer.log_variances.numpy()[0]))
    assert variance / (1 + variance) == pytest.approx(6.0 / (2 * variance), rel=1e-4)


def test_dwa_weighs_by_the_falling_of_the_epochs_means():
    layer = weighting("dwa", base=(1.0, 3.0))
    for losses, weights in (([4.0, 2.0], [1, 1]), ([2.0, 2.0], [1, 1])):
        assert list(layer.current().values()) == pytest.approx([weights[0], 3 * weights[1]])
        Linear([[1], [1]], losses).step(layer, [0.5, 0.5])
        layer.end_epoch()
    # the ratios 2 / 4 and 2 / 2, over the temperature 2
    total = np.exp(0.25) + np.exp(0.5)
    expected = [2 * np.exp(0.25) / total, 3 * 2 * np.exp(0.5) / total]
    assert list(layer.current().values()) == pytest.approx(expected)
    assert numbers(Linear([[1, 0], [0, 1]], [1, 1]).step(layer, [1, 1]))[1] == pytest.approx(expected)


def test_dwa_averages_a_loss_over_examples_not_over_batches():
    layer = weighting("dwa")
    for loss, share in ((1.0, 0.2), (4.0, 0.6)):
        Linear([[1], [1]], [loss, 1.0]).step(layer, [share, 1 - share])
    layer.end_epoch()
    np.testing.assert_allclose(layer.means[0], [(0.2 * 1 + 0.6 * 4) / 0.8, 1.0], rtol=1e-6)


def test_dwa_keeps_the_means_of_a_head_that_an_epoch_does_not_hold():
    layer = weighting("dwa")
    for losses in ([4.0, 2.0], [2.0, 2.0]):
        Linear([[1], [1]], losses).step(layer, [0.5, 0.5])
        layer.end_epoch()
    Linear([[1], [1]], [2.0, 0.0]).step(layer, [1.0, 0.0])
    layer.end_epoch()
    np.testing.assert_allclose(layer.means, [[2.0, 2.0], [2.0, 2.0]])


@pytest.mark.parametrize(
    ("progress", "alpha", "expected"),
    [
        # norms 1 and 3 aim at their mean 2; 1 + 0.1 * 1 and 1 - 0.1 * 3, then a sum of 2
        ([1.0, 1.0], 1.5, [1.1 / 0.9, 0.7 / 0.9]),
        # the second lags: aims are 2 * 0.5^2 and 2 * 1.5^2
        ([0.4, 1.2], 2.0, [0.9 / 1.1, 1.3 / 1.1]),
        ([0.4, 1.2], 0.0, [1.1 / 0.9, 0.7 / 0.9]),
    ],
)
def test_gradnorm_moves_factors_towards_like_norms_and_laggards_up(progress, alpha, expected):
    ones, norms = np.ones(2, np.float32), np.array([1.0, 3.0], np.float32)
    found = gradnorm(ones, norms, np.array(progress, np.float32), np.array([True, True]), alpha, 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradnorm_measures_the_given_variables_and_uses_the_new_factors_in_the_next_step():
    layer = weighting("gradnorm")
    model = Linear([[0.6, 0.8], [0, 3]], [5, 7])  # norms 1 and 3
    _, shared, own = numbers(model.step(layer, [0.5, 0.5]))
    assert shared == pytest.approx([0.3, 1.9])
    assert list(layer.current().values()) == pytest.approx([1.1 / 0.9, 0.7 / 0.9])
    np.testing.assert_allclose(layer.first_losses, [5, 7])
    assert numbers(model.step(layer, [0.5, 0.5]))[2] == pytest.approx([0.5 * 5 * 1.1 / 0.9, 0.5 * 7 * 0.7 / 0.9])
    by_own = weighting("gradnorm", norm_variables=model.u[:1])  # where only the first head has a gradient, of 5
    model.step(by_own, [0.5, 0.5])
    # 1 - 0.1 * 5, and the second's norm is 0
    assert list(by_own.current().values()) == pytest.approx([0.5 / 0.75, 1 / 0.75])
    assert len(by_own.variables) == 2


def test_gradnorm_evens_out_the_norms_in_the_end():
    layer, model = weighting("gradnorm", learning_rate=0.005), Linear([[1.0, 0], [0, 3]], [1, 1])
    for _ in range(100):
        model.step(layer, [0.5, 0.5])
    assert list(layer.current().values()) == pytest.approx([1.5, 0.5], abs=0.02)


def test_pcgrad_takes_away_what_goes_against_another_head():
    # (1, 0) and (-1, 1) become (0.5, 0.5) and (0, 1)
    total, shared, own = numbers(Linear([[1, 0], [-1, 1]], [2, 3]).step(weighting("pcgrad"), [1, 1]))
    assert shared == pytest.approx([0.5, 1.5])
    assert own == [2, 3]
    assert total == 5
    # without conflict it is the sum, each gradient by its base weight and share
    layer = weighting("pcgrad", base=(2.0, 1.0))
    assert numbers(Linear([[1, 0], [1, 1]], [2, 3]).step(layer, [0.5, 0.25]))[1] == pytest.approx([1.25, 0.25])


def test_gradvac_starts_as_pcgrad_and_then_aims_at_the_usual_cosine():
    layer, model = weighting("gradvac", beta=0.5), Linear([[1, 0], [-1, 1]], [2, 3])
    assert numbers(model.step(layer, [1, 1]))[1] == pytest.approx([0.5, 1.5])
    usual = -(0.5**0.5) / 2
    np.testing.assert_allclose(layer.cosines, [[0, usual], [usual, 0]], rtol=1e-6)
    # (1, 0) and (0, 1) with a usual cosine of 0.5: each becomes (1, tan 30°) or its mirror image
    products = np.eye(2, dtype=np.float32)
    factors, deviations = gradvac(products, np.array([[1, 0]]), np.full((2, 2), 0.5, np.float32))
    np.testing.assert_allclose(factors, [1 + 3**-0.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(deviations, [[0, -0.5], [-0.5, 0]], rtol=1e-6)


ORDER = np.array([[1, 3, 0, 2], [2, 0, 3, 1], [3, 2, 1, 0]])  # for 4 heads


def by_vectors(gradients, order, change):
    """The papers' own loop: each gradient changed by all others in turn; their sum."""
    changed = gradients.copy()
    for i in range(len(gradients)):
        for j in order[:, i]:
            changed[i] += change(i, j, changed[i], gradients[j]) * gradients[j]
    return changed.sum(axis=0)


@pytest.mark.parametrize("seed", range(5))
def test_surgery_by_inner_products_equals_surgery_on_vectors(seed):
    random = np.random.default_rng(seed)
    gradients = random.normal(size=(4, 6))
    targets = random.uniform(-0.3, 0.6, size=(4, 4))
    seen = np.zeros((4, 4))

    def project(i, j, mine, other):
        return -min(mine @ other, 0) / (other @ other)

    def vaccinate(i, j, mine, other):
        cosine = mine @ other / np.linalg.norm(mine) / np.linalg.norm(other)
        goal, seen[i, j] = targets[i, j], cosine - targets[i, j]
        turn = goal * (1 - cosine**2) ** 0.5 - cosine * (1 - goal**2) ** 0.5
        scale = np.linalg.norm(mine) / np.linalg.norm(other) / (1 - goal**2) ** 0.5
        return turn * scale if cosine < goal else 0

    products = (gradients @ gradients.T).astype(np.float32)
    expected = by_vectors(gradients, ORDER, project)
    np.testing.assert_allclose(pcgrad(products, ORDER).numpy() @ gradients, expected, rtol=1e-4, atol=1e-5)
    expected = by_vectors(gradients, ORDER, vaccinate)
    factors, deviations = gradvac(products, ORDER, targets.astype(np.float32))
    np.testing.assert_allclose(factors.numpy() @ gradients, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(deviations, seen, rtol=1e-3, atol=1e-4)


def test_the_order_of_surgery_is_random_and_goes_on_where_a_saved_state_stopped():
    layer = weighting("pcgrad", base=(1, 1, 1))
    orders = [layer._order().numpy() for _ in range(20)]
    assert all(sorted([head, *order[:, head]]) == [0, 1, 2] for order in orders for head in range(3))
    assert {tuple(order[:, 0]) for order in orders} == {(1, 2), (2, 1)}
    resumed = weighting("pcgrad", base=(1, 1, 1), seed=99)
    for new, old in zip(resumed.variables, layer.variables, strict=True):
        new.assign(old)
    np.testing.assert_array_equal([resumed._order() for _ in range(5)], [layer._order() for _ in range(5)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_the_batch_does_not_hold_changes_nothing(kind):
    model = Linear([[1, 2], [-1, 1], [2, -1]], [2, 3, 4])
    layer = weighting(kind, base=(1, 1, 1))
    for _ in range(2):
        model.step(layer, [0.5, 0.25, 0.25])
        layer.end_epoch()
    before = [np.array(variable) for variable in layer.weights]
    total, shared, own = numbers(model.step(layer, [0.7, 0.3, 0.0], present=[1.0, 1.0, 0.0]))
    assert np.isfinite([total, *shared, *own]).all()
    assert own[2] == 0
    for variable, old in zip(layer.weights, before, strict=True):
        new = np.array(variable)
        np.testing.assert_array_equal(new[..., 2], old[..., 2])
        assert not np.array_equal(new, old) or variable.name in ("means", "first_losses")
    if kind == "gradvac":
        np.testing.assert_array_equal(layer.cosines[2], before[0][2])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_becomes_nan_where_no_head_has_an_example_or_a_loss_is_zero(kind):
    model = Linear([[1, 2], [-1, 1]], [0, 0])
    layer = weighting(kind)
    for shares in ([0.0, 0.0], [0.5, 0.5], [1.0, 0.0]):
        assert np.isfinite(np.hstack(numbers(model.step(layer, shares)))).all()
        layer.end_epoch()
        assert np.isfinite(list(layer.current().values())).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_compiled_step_equals_an_eager_one(kind, jit_compile):
    model = Linear([[1, 2], [-1, 1], [2, -1]], [2, 3, 4])
    plain, layer = (weighting(kind, base=(1, 2, 1)) for _ in range(2))
    compiled = tf.function(lambda shares: model.step(layer, shares), jit_compile=jit_compile)
    for shares in ([0.5, 0.25, 0.25], [0.1, 0.6, 0.3]):
        found, expected = compiled(ops.convert_to_tensor(shares)), model.step(plain, shares)
        np.testing.assert_allclose(np.hstack(numbers(found)), np.hstack(numbers(expected)), rtol=1e-5)
    for found, expected in zip(layer.variables, plain.variables, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


class Small(keras.Model):
    """An embedding table, a shared layer and two heads, with a weighting among its layers."""

    def __init__(self, kind: str):
        super().__init__()
        self.table = keras.layers.Embedding(5, 4)
        self.shared = keras.layers.Dense(4)
        self.outputs_by_head = [keras.layers.Dense(1, dtype="float32") for _ in range(2)]
        self.weighting = weighting(kind)

    def step(self, ids):
        with tf.GradientTape(persistent=True) as tape:
            states = self.shared(self.table(ids))
            losses = [ops.mean((head(states) - 1.0) ** 2) for head in self.outputs_by_head]
        layers = [self.table, self.shared]
        shared = [variable for layer in layers for variable in layer.trainable_variables]
        own = [variable for head in self.outputs_by_head for variable in head.trainable_variables]
        return self.weighting.gradients(tape, losses, ops.convert_to_tensor([0.5, 0.5]), shared, own)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_leaves_float32_gradients_and_state(kind):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = Small(kind)
    finally:
        keras.config.set_dtype_policy("float32")
    total, gradients = model.step(ops.convert_to_tensor([[0, 1, 1], [4, 0, 1]]))
    assert total.dtype == "float32"
    assert all(gradient.dtype == "float32" for gradient in gradients)
    assert all(np.isfinite(tf.convert_to_tensor(gradient)).all() for gradient in gradients)
    state = {variable.path for variable in model.weighting.variables}
    assert state <= {variable.path for variable in model.variables}
    assert not state & {variable.path for variable in model.trainable_variables}


def test_a_table_read_by_rows_gets_the_same_gradient_from_surgery_without_conflict():
    ids = ops.convert_to_tensor([[0, 1, 1], [4, 0, 1]])
    model = Small("pcgrad")
    model.outputs_by_head[1] = model.outputs_by_head[0]  # equal heads never conflict
    model.step(ids)  # makes the variables
    expected = model.step(ids)[1][0]
    model.weighting = weighting("static")
    np.testing.assert_allclose(expected, tf.convert_to_tensor(model.step(ids)[1][0]), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_file_with_the_same_keys(kind):
    values = yaml.safe_load((CONF_DIR / "weighting" / f"{kind}.yaml").read_text())
    assert list(values) == ["kind", "temperature", "alpha", "learning_rate", "beta"]
    assert values["kind"] == kind
    assert list(WEIGHTINGS) == KINDS
