"""What a task has of its own in the encoder changes its own tokens only, and what it may not change stays."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.adapters import TaskAdapter, TaskLayerNorm, frozen_blocks, standardized
from bert_mtl.encoder import BertEncoder, EncoderConfig

PLAIN = EncoderConfig(50, hidden_dim=16, num_layers=2, num_heads=4, intermediate_dim=24, max_positions=12, tasks=3)
OWN = {
    "bottleneck": {"adapters": "bottleneck", "adapter_dim": 5},
    "layer_norm": {"adapters": "layer_norm"},
    "task_embedding": {"task_embedding": True},
}
TOKEN_TASK = np.array([[1, 1, 1, 2, 2, 0], [3, 3, 1, 1, 1, 1]], "int32")  # tasks 0 and 1, then tasks 2 and 0
MEMBERSHIP = np.array([[1, 0], [0, 1], [0, 1], [0, 0]], "float32")  # of tokens of tasks 0, 1 and 1, and of padding


def numpy(tensor) -> np.ndarray:
    return np.asarray(keras.ops.cast(tensor, "float32"))


def packed_inputs() -> dict[str, tf.Tensor]:
    segments = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2]], "int32")
    ids = np.random.default_rng(0).integers(1, 50, segments.shape).astype("int32")
    positions = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]], "int32")
    rows = {"token_ids": ids, "type_ids": 0 * ids, "segment_ids": segments, "position_ids": positions}
    return {name: tf.constant(value) for name, value in (rows | {"token_task": TOKEN_TASK}).items()}


def encoder_with(own: dict, **options) -> tuple[BertEncoder, BertEncoder]:
    """A plain encoder, and one with `own` on top of the same shared weights."""
    plain, encoder = BertEncoder(PLAIN), BertEncoder(replace(PLAIN, **own), **options)
    for variable, value in zip(encoder.shared_weights, plain.get_weights(), strict=True):
        variable.assign(value)
    return plain, encoder


def own_weights(encoder: BertEncoder) -> list[keras.Variable]:
    shared = {id(variable) for variable in encoder.shared_weights}
    return [variable for variable in encoder.weights if id(variable) not in shared]


def shake(variables: list[keras.Variable], task: int | None = None) -> None:
    """Random numbers into `variables`; into one task's rows or columns of them alone, where a task is given."""
    rng = np.random.default_rng(1)
    for variable in variables:
        value, noise = variable.numpy(), rng.normal(size=variable.shape).astype("float32")
        width = 1 if variable.shape[0] == PLAIN.tasks else 5
        mine = slice(None) if task is None else slice(task * width, (task + 1) * width)
        if variable.path.endswith(("down/kernel", "down/bias")):
            value[..., mine] = noise[..., mine]
        else:
            value[mine] = noise[mine]
        variable.assign(value)


def test_an_adapter_is_a_small_network_of_each_task_s_own():
    adapter = TaskAdapter(tasks=2, dim=3, hidden_dim=4, activation=keras.ops.tanh)
    adapter.build((None, 4))
    rng = np.random.default_rng(0)
    for variable in adapter.weights:
        variable.assign(rng.normal(size=variable.shape))
    states = rng.normal(size=(4, 4)).astype("float32")
    down, down_bias, up = (v.numpy() for v in (adapter.down.kernel, adapter.down.bias, adapter.up.kernel))
    expected = states.copy()
    for token, task in enumerate((0, 1, 1)):
        mine = slice(3 * task, 3 * task + 3)
        inner = np.tanh(states[token] @ down[:, mine] + down_bias[mine])
        expected[token] += inner @ up[mine] + adapter.up_bias.numpy()[task]
    np.testing.assert_allclose(numpy(adapter(states, MEMBERSHIP)), expected, atol=1e-5)


@pytest.mark.parametrize("xla", [False, True])
def test_states_are_standardised_and_the_gradient_is_that_of_the_single_operations(xla):
    random = np.random.default_rng(0)
    states, weights = (tf.constant(random.normal(2, 3, (5, 7, 16)), tf.float32) for _ in range(2))

    def plain(states, epsilon):
        mean, variance = tf.nn.moments(states, -1, keepdims=True)
        return (states - mean) / tf.sqrt(variance + epsilon)

    def both(function):
        with tf.GradientTape() as tape:
            tape.watch(states)
            outputs = function(states, 1e-3)
            loss = tf.reduce_sum(outputs * weights)
        return outputs, tape.gradient(loss, states)

    ours = tf.function(lambda: both(standardized), jit_compile=xla)()
    for found, expected in zip(ours, both(plain), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6)


def test_a_layer_norm_adds_each_task_s_own_gain_and_bias_to_the_shared_ones():
    norm = TaskLayerNorm(2, epsilon=1e-12)
    norm.build((None, 2))
    norm.gamma.assign([2.0, 3.0])
    norm.beta.assign([0.5, 0.0])
    norm.task_gamma.assign([[1.0, 0.0], [0.0, -1.0]])
    norm.task_beta.assign([[0.0, 1.0], [10.0, 0.0]])
    states = np.tile(np.array([1.0, 3.0], "float32"), (4, 1))  # normalised: -1, 1
    expected = [[-2.5, 4.0], [8.5, 2.0], [8.5, 2.0], [-1.5, 3.0]]
    np.testing.assert_allclose(numpy(norm(states, MEMBERSHIP)), expected, atol=1e-5)


@pytest.mark.parametrize("own", OWN)
def test_new_weights_of_a_task_s_own_change_no_state(own):
    plain, encoder = encoder_with(OWN[own])
    inputs = packed_inputs()
    np.testing.assert_allclose(numpy(encoder(inputs)), numpy(plain(inputs)), atol=1e-5)


@pytest.mark.parametrize("own", OWN)
def test_weights_of_one_task_change_the_states_of_its_tokens_and_of_no_other(own):
    plain, encoder = encoder_with(OWN[own])
    inputs = packed_inputs()
    shake(own_weights(encoder), task=0)
    change = np.abs(numpy(encoder(inputs)) - numpy(plain(inputs))).max(axis=-1)
    assert (change[TOKEN_TASK == 1] > 0.01).all()
    assert (change[TOKEN_TASK != 1] < 1e-5).all()


def test_shared_weights_are_those_of_a_plain_encoder_and_own_ones_have_a_part_for_each_task():
    plain, encoder = encoder_with(OWN["layer_norm"] | OWN["task_embedding"])
    assert [v.path for v in encoder.shared_weights] == [v.path for v in plain.weights]
    assert {tuple(v.shape) for v in own_weights(encoder)} == {(3, 16)}
    assert len(own_weights(encoder)) == 1 + 2 * 5
    _, encoder = encoder_with(OWN["bottleneck"])
    shapes = {v.path: tuple(v.shape) for v in own_weights(encoder) if "layer_1" in v.path}
    assert shapes == {
        "encoder/layer_1/task_adapter/down/kernel": (16, 15),
        "encoder/layer_1/task_adapter/down/bias": (15,),
        "encoder/layer_1/task_adapter/up/kernel": (15, 16),
        "encoder/layer_1/task_adapter/up_bias": (3, 16),
    }


@pytest.mark.parametrize("own", [OWN["bottleneck"], OWN["layer_norm"] | OWN["task_embedding"]])
def test_xla_gives_the_same_states_and_gradients(own):
    _, encoder = encoder_with(own)
    shake(own_weights(encoder))
    inputs = packed_inputs()

    def states_and_gradients(inputs):
        with tf.GradientTape() as tape:
            states = encoder(inputs, frozen=(0, 2, 0))
            loss = tf.reduce_sum(tf.sin(3 * states))
        return [states, *tape.gradient(loss, [v.value for v in own_weights(encoder)])]

    compiled = tf.function(states_and_gradients, jit_compile=True)(inputs)
    for ours, theirs in zip(compiled, states_and_gradients(inputs), strict=True):
        np.testing.assert_allclose(numpy(ours), numpy(theirs), atol=1e-4)


def test_own_weights_compute_in_bfloat16_near_what_float32_gives():
    for own in OWN.values():
        _, encoder = encoder_with(own)
        _, half = encoder_with(own, dtype="mixed_bfloat16")
        shake(own_weights(encoder))
        half.set_weights(encoder.get_weights())
        states = half(packed_inputs())
        assert keras.backend.standardize_dtype(states.dtype) == "bfloat16"
        assert np.abs(numpy(states) - numpy(encoder(packed_inputs()))).mean() < 0.02


@pytest.mark.parametrize(("trainable", "blocks"), [("all", 0), ("last:4", 3), ("last:1", 6), ("heads", 7)])
def test_what_may_learn_says_how_many_blocks_are_frozen(trainable, blocks):
    assert frozen_blocks(trainable, num_layers=6) == blocks


def gradients(encoder: BertEncoder, weights: np.ndarray, frozen=None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Gradient by path of a loss that counts each token by `weights` `(rows, length)`, and the states."""
    inputs, shared = packed_inputs(), encoder.shared_weights
    with tf.GradientTape() as tape:
        states = encoder(inputs, frozen=frozen)
        pooled = encoder.pool(states[:, 0], inputs["token_task"][:, 0] - 1, frozen)  # of tasks 0 and 2
        loss = tf.reduce_sum(tf.sin(3 * states) * weights[..., None]) + tf.reduce_sum(tf.sin(pooled) * weights[:, :1])
    found = tape.gradient(loss, [v.value for v in shared], unconnected_gradients="zero")
    return {v.path: numpy(tf.convert_to_tensor(g)) for v, g in zip(shared, found, strict=True)}, numpy(states)


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_task_that_froze_blocks_sends_them_no_gradient_and_the_blocks_above_its_whole_one(task, blocks):
    encoder = BertEncoder(PLAIN)
    everyone = (TOKEN_TASK > 0).astype("float32")
    others = everyone * (TOKEN_TASK != 1 + task)
    frozen = tuple(blocks if number == task else 0 for number in range(3))
    whole, states = gradients(encoder, everyone)
    without, _ = gradients(encoder, others)
    found, frozen_states = gradients(encoder, everyone, frozen)
    np.testing.assert_array_equal(frozen_states, states)
    names = ["encoder/embeddings/", "encoder/layer_0/", "encoder/layer_1/", "encoder/pooler/"]
    below = tuple(names if blocks == 3 else names[:blocks])
    for path, gradient in found.items():
        expected = without if path.startswith(below) else whole
        np.testing.assert_allclose(gradient, expected[path], atol=1e-5, err_msg=path)
    changed = [path for path in found if np.abs(whole[path] - without[path]).max() > 1e-3]
    assert {path.split("/")[1] for path in changed} >= {"embeddings", "layer_0", "layer_1"}


def test_freezing_blocks_leaves_those_above_and_the_tasks_own_weights_learning():
    _, encoder = encoder_with(OWN["bottleneck"])
    encoder.freeze(2)
    learning = {variable.path for variable in encoder.trainable_variables}
    own = {variable.path for variable in own_weights(encoder)}
    assert {path.split("/")[1] for path in learning - own} == {"layer_1", "pooler"}
    assert own < learning
    encoder.freeze(frozen_blocks("heads", num_layers=2))
    assert {variable.path for variable in encoder.trainable_variables} == own
