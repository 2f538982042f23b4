"""Dropout whose masks cost next to nothing."""

import math
from collections.abc import Sequence
from typing import Any

from keras import layers, ops


class Dropout(layers.Dropout):
    """Keras' dropout, but a mask is a hash of each number's place instead of a stream of random numbers.

    XLA computes it where it is used, in the kernel that adds or normalises, forward and backward; a stream is a dozen
    kernels of its own. Inputs have fewer than 2**31 numbers.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training or self.rate == 0:
            return inputs
        kept = ops.greater_equal(hashes(ops.shape(inputs), self.seed_generator.next()), _word(self.rate * 2**32))
        return ops.where(kept, inputs * (1 / (1 - self.rate)), 0)


def hashes(shape: Sequence[Any], seed: Any) -> Any:
    """uint32 numbers of `shape`, as good as random; other ones for every `seed` of two integers."""
    first, second = ops.unstack(ops.cast(seed, "uint32"))
    key = _mixed(_mixed(first) + second)
    factor = ops.bitwise_or(_mixed(key), _word(1))  # an odd one takes no two places to the same number
    places = ops.reshape(ops.cast(ops.arange(math.prod(shape)), "uint32"), shape)
    return _mixed(places * factor + key)


def _mixed(words: Any) -> Any:
    """MurmurHash3's last step (Appleby 2011, public domain): each bit of a word changes half of the bits."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words = ops.bitwise_xor(words, ops.bitwise_right_shift(words, _word(shift))) * _word(factor)
    return ops.bitwise_xor(words, ops.bitwise_right_shift(words, _word(16)))


def _word(number: float) -> Any:
    return ops.convert_to_tensor(int(number), dtype="uint32")
