"""Batches as vectors, and back."""

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.wire import Wire

FIXED = {
    "token_ids": tf.TensorSpec((2, 3), tf.int32),
    "examples": tf.TensorSpec((), tf.float32),
    "weight.imdb": tf.TensorSpec((4,), tf.float32),
    "label.imdb": tf.TensorSpec((4,), tf.int32),
    "label.vectors": tf.TensorSpec((4, 2), tf.float32),
}
GROWING = FIXED | {
    "token_ids": tf.TensorSpec((2, None), tf.int32),
    "label.slots": tf.TensorSpec((2, None, 3), tf.float32),
}


def batch(signature: dict[str, tf.TensorSpec], length: int) -> dict[str, np.ndarray]:
    """Numbers of every kind: some of the integers are, as float32, denormal, infinite or not a number."""
    random, found = np.random.default_rng(length), {}
    for name, spec in signature.items():
        shape = [length if size is None else size for size in spec.shape]
        bits = random.integers(-(2**31), 2**31, shape, dtype=np.int64).astype(np.int32)
        found[name] = bits if spec.dtype == tf.int32 else random.normal(size=shape).astype(np.float32)
    found["token_ids"][0, :3] = [-1, 0x7F800001, 1]
    return found


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize(("signature", "lengths"), [(FIXED, [3]), (GROWING, [3, 7])])
def test_every_array_comes_back_to_the_bit(signature, lengths, xla):
    wire = Wire(signature)
    unpack = tf.function(wire.unpack, [wire.spec], autograph=False, jit_compile=xla)
    for length in lengths:
        arrays = batch(signature, length)
        found = unpack(wire.pack(arrays))
        assert list(found) == list(arrays)
        for name, array in arrays.items():
            got = found[name].numpy()
            assert got.dtype == array.dtype
            np.testing.assert_array_equal(got, array, err_msg=name)


def test_arrays_of_other_types_become_those_of_the_signature():
    arrays = batch(FIXED, 3) | {"label.imdb": np.arange(4), "examples": 4}
    found = Wire(FIXED).unpack(Wire(FIXED).pack(arrays))
    assert found["label.imdb"].numpy().tolist() == [0, 1, 2, 3]
    assert float(found["examples"]) == 4.0


@pytest.mark.parametrize(
    ("name", "array", "error", "message"),
    [
        ("label.imdb", np.zeros(5, np.int32), ValueError, r"label.imdb must be of shape \(4,\); got \(5,\)\."),
        ("label.imdb", np.zeros(4, np.float32), TypeError, "Cannot cast array data from .*float32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name, array, error, message):
    with pytest.raises(error, match=message):
        Wire(FIXED).pack(batch(FIXED, 3) | {name: array})


def test_numbers_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"count must be of numbers of 4 bytes; got int64\."):
        Wire({"count": tf.TensorSpec((), tf.int64)})
