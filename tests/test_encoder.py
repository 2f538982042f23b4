"""The encoder against transformers' BertModel, and what packing, padding, precision and dropout may not change."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.checkpoints import load_pretrained, read_encoder_config
from bert_mtl.encoder import BertEncoder, EncoderConfig, attention_bias, gelu

GOLDEN = Path(__file__).parent / "golden"
TINY = EncoderConfig(vocab_size=50, hidden_dim=16, num_layers=2, num_heads=4, intermediate_dim=24, max_positions=12)


def numpy(tensor) -> np.ndarray:
    return np.asarray(keras.ops.cast(tensor, "float32"))


def golden_encoder(**options) -> BertEncoder:
    encoder = BertEncoder(read_encoder_config(GOLDEN), **options)
    load_pretrained(encoder, GOLDEN)
    return encoder


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "states.npz"))


@pytest.fixture(scope="module")
def encoder() -> BertEncoder:
    return golden_encoder()


def separate_rows(golden) -> dict[str, np.ndarray]:
    token_ids = golden["token_ids"]
    positions = np.broadcast_to(np.arange(token_ids.shape[1], dtype="int32"), token_ids.shape)
    return {name: golden[name] for name in ("token_ids", "type_ids", "segment_ids")} | {"position_ids": positions}


def packed(rows: dict[str, np.ndarray], length: int) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
    """One row with all examples behind each other, then padding; and where each of them starts and ends."""
    lengths = rows["segment_ids"].sum(axis=1)
    row = {name: np.zeros((1, length), "int32") for name in rows}
    spans, start = [], 0
    for example, n in enumerate(lengths):
        for name in ("token_ids", "type_ids", "position_ids"):
            row[name][0, start : start + n] = rows[name][example, :n]
        row["segment_ids"][0, start : start + n] = example + 1
        spans.append((start, start + n))
        start += n
    return row, spans


def random_inputs(rows: int = 2, length: int = 8, vocab_size: int = 50) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(1, vocab_size, (rows, length)).astype("int32")
    positions = np.broadcast_to(np.arange(length, dtype="int32"), ids.shape)
    return {"token_ids": ids, "type_ids": 0 * ids, "segment_ids": 0 * ids + 1, "position_ids": positions}


def test_hidden_states_and_pooled_output_equal_those_of_transformers(golden, encoder):
    states = encoder.hidden_states(separate_rows(golden))
    real = golden["segment_ids"].astype(bool)
    assert len(states) == 3
    for ours, theirs in zip(states, golden["hidden_states"], strict=True):
        np.testing.assert_allclose(numpy(ours)[real], theirs[real], atol=1e-5)
    first_states = keras.ops.take(states[-1], 0, axis=1)
    np.testing.assert_allclose(numpy(encoder.pool(first_states)), golden["pooled_output"], atol=1e-5)


def test_packed_examples_have_the_states_they_have_alone(golden, encoder):
    rows = separate_rows(golden)
    alone = numpy(encoder(rows))
    row, spans = packed(rows, length=32)
    together = numpy(encoder(row))[0]
    for example, (start, end) in enumerate(spans):
        np.testing.assert_allclose(together[start:end], alone[example, : end - start], atol=1e-5)


def test_what_stands_in_the_padding_changes_no_real_state(golden, encoder):
    rows = separate_rows(golden)
    noisy = dict(rows, token_ids=np.where(rows["segment_ids"] == 0, 77, rows["token_ids"]).astype("int32"))
    real = rows["segment_ids"].astype(bool)
    np.testing.assert_array_equal(numpy(encoder(noisy))[real], numpy(encoder(rows))[real])


def test_a_row_of_padding_gives_finite_states_and_gradients():
    encoder = BertEncoder(TINY)
    inputs = {name: np.zeros((2, 8), "int32") for name in ("token_ids", "type_ids", "segment_ids", "position_ids")}
    with tf.GradientTape() as tape:
        states = encoder(inputs, training=True)
        loss = tf.reduce_sum(tf.square(states))
    gradients = tape.gradient(loss, [v.value for v in encoder.trainable_variables if "pooler" not in v.path])
    assert np.isfinite(numpy(states)).all()
    assert all(np.isfinite(tf.convert_to_tensor(gradient)).all() for gradient in gradients)


def test_bfloat16_computes_in_bfloat16_and_stays_near(golden, encoder):
    rows, real = separate_rows(golden), golden["segment_ids"].astype(bool)
    half = golden_encoder(dtype="mixed_bfloat16")
    states = half(rows)
    assert keras.backend.standardize_dtype(states.dtype) == "bfloat16"
    for layer in half.transformer_layers:
        assert layer.qkv.compute_dtype == layer.intermediate.compute_dtype == "bfloat16"
        assert layer.attention_norm.compute_dtype == layer.output_norm.compute_dtype == "float32"
    assert {variable.dtype for variable in half.weights} == {"float32"}
    error = np.abs(numpy(states)[real] - numpy(encoder(rows))[real])
    assert error.mean() < 0.02 and error.max() < 0.1  # states reach 3.7, where one bfloat16 step is 0.016


def test_the_bias_blocks_every_token_of_another_segment():
    bias = numpy(attention_bias(np.array([[1, 1, 2, 0]], "int32")))
    far = -1e9
    expected = [[0, 0, far, far], [0, 0, far, far], [far, far, 0, far], [far, far, far, 0]]
    np.testing.assert_array_equal(bias, np.array(expected, "float32").reshape(1, 1, 4, 4))


def test_gelu_is_the_exact_one():
    values = numpy(gelu(keras.ops.convert_to_tensor([-1.0, 0.0, 0.5, 2.0])))
    np.testing.assert_allclose(values, [-0.15865525, 0.0, 0.34573123, 1.9544997], atol=1e-6)


def test_dropout_repeats_with_the_seed_and_changes_with_every_call():
    inputs = random_inputs()
    keras.utils.set_random_seed(1)
    first, same, other = (BertEncoder(TINY, seed=seed) for seed in (3, 3, 4))
    for copy in (same, other):
        copy.set_weights(first.get_weights())
    of_first, of_same, of_other = (
        [numpy(encoder(inputs, training=True)) for _ in range(2)] for encoder in (first, same, other)
    )
    np.testing.assert_array_equal(of_first, of_same)
    assert np.abs(of_first[0] - of_first[1]).max() > 0.01
    assert np.abs(of_first[0] - of_other[0]).max() > 0.01
    np.testing.assert_array_equal(numpy(first(inputs)), numpy(other(inputs)))


def test_variables_exist_before_the_first_call_under_readable_paths():
    encoder = BertEncoder(TINY)
    shapes = {variable.path: tuple(variable.shape) for variable in encoder.weights}
    assert len(shapes) == 5 + 2 * 12 + 2
    assert shapes["encoder/embeddings/word_embeddings"] == (50, 16)
    assert shapes["encoder/layer_1/qkv/kernel"] == (16, 48)
    assert shapes["encoder/layer_1/output/kernel"] == (24, 16)
    assert shapes["encoder/pooler/bias"] == (16,)


def test_new_kernels_of_one_shape_hold_different_numbers_of_bert_s_spread():
    kernels = [numpy(layer.intermediate.kernel) for layer in BertEncoder(TINY).transformer_layers]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.005
    assert np.abs(kernels).max() <= 0.04001  # truncated at two standard deviations of 0.02


def test_one_compiled_function_serves_every_batch_size():
    encoder = BertEncoder(TINY)
    signature = {name: tf.TensorSpec((None, None), tf.int32) for name in random_inputs()}
    compiled = tf.function(encoder, input_signature=[signature])
    for rows, length in ((1, 5), (3, 12)):
        inputs = random_inputs(rows, length)
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        np.testing.assert_allclose(numpy(compiled(tensors)), numpy(encoder(inputs)), atol=1e-5)


def test_xla_gives_the_same_states():
    encoder = BertEncoder(TINY)
    inputs = {name: tf.constant(value) for name, value in random_inputs().items()}
    compiled = tf.function(encoder, jit_compile=True)
    np.testing.assert_allclose(numpy(compiled(inputs)), numpy(encoder(inputs)), atol=1e-5)


def test_pooling_without_a_pooler_is_refused():
    encoder = BertEncoder(EncoderConfig(50, 16, 1, 2, 24, pooler=False))
    with pytest.raises(ValueError, match="pooler must be true"):
        encoder.pool(np.zeros((1, 16), "float32"))
