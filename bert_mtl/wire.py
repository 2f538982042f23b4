"""A batch as one vector: a step has one argument, whatever the number of its heads, and one copy to its device."""

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

WORD = 4  # bytes of every number of a batch


class Wire:
    """How the arrays of batches, int32 and float32, lie side by side in a vector of float32 (TensorFlow would keep one
    of int32 in the memory of the host).

    Args:
        signature: shapes and types of the arrays; a length that differs between batches is the same one in all arrays.

    Attributes:
        spec: of the vectors.

    Raises:
        ValueError: of an array whose numbers are not four bytes each.
    """

    def __init__(self, signature: Mapping[str, tf.TensorSpec]):
        for name, spec in signature.items():
            if spec.dtype.size != WORD:
                raise ValueError(f"{name} must be of numbers of {WORD} bytes; got {spec.dtype.name}.")
        self.signature = dict(signature)
        known = {name: [size for size in spec.shape if size is not None] for name, spec in signature.items()}
        self.sizes = {name: math.prod(sizes) for name, sizes in known.items()}
        self.growing = [name for name, spec in signature.items() if None in spec.shape]
        self.spec = tf.TensorSpec((None if self.growing else sum(self.sizes.values()),), tf.float32)

    def pack(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The vector of a batch. Raises ValueError for an array of another shape, TypeError for one of another kind of
        numbers."""
        words = []
        for name, spec in self.signature.items():
            array = np.asarray(batch[name])
            if not spec.shape.is_compatible_with(array.shape):
                raise ValueError(f"{name} must be of shape {tuple(spec.shape)}; got {array.shape}.")
            words.append(array.astype(spec.dtype.as_numpy_dtype, casting="same_kind").ravel().view(np.float32))
        return np.concatenate(words)

    def unpack(self, vector: tf.Tensor) -> dict[str, tf.Tensor]:
        """The arrays of a vector."""
        sizes, length = dict(self.sizes), None
        if self.growing:
            each = sum(self.sizes[name] for name in self.growing)
            length = (tf.size(vector) - (sum(self.sizes.values()) - each)) // each
            sizes |= {name: self.sizes[name] * length for name in self.growing}
        parts = tf.split(vector, list(sizes.values()), num=len(sizes))
        return {
            name: tf.bitcast(tf.reshape(part, [length if size is None else size for size in spec.shape]), spec.dtype)
            for (name, spec), part in zip(self.signature.items(), parts, strict=True)
        }
