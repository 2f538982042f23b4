"""Token states of one text in, its vector out: the words of `bert_mtl.embed`, and all that bert-as-service pools by.

As there, [CLS] and [SEP] are tokens like others, and layers stand side by side before they are pooled.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Pooling = Literal["none", "max", "mean", "mean_max", "cls", "sep", "cls_pooled"]


def pool(layers: Sequence[np.ndarray], pooled: np.ndarray | None, pooling: Pooling) -> np.ndarray:
    """The vector `(dimensions,)` float32 of a text whose states `(length, dim)` behind some layers are given, without
    padding.

    `none` gives them all, `(length, dimensions)`; `max` and `mean` are over tokens, `mean_max` is the mean, then the
    maximum; `cls` is the first token's state and `sep` the last one's (of a pair the second [SEP]); `cls_pooled` is
    `pooled` `(dim,)`, BERT's pooled output, whatever the layers.

    Numbers are those of bert-serving-server 1.10.0, but for what it adds to the length that it divides by (1e-10, which
    float32 loses) and for `none`, of which it fills up short texts with zeros.
    """
    if pooling == "cls_pooled":
        if pooled is None:
            raise ValueError("pooled must be given where pooling is cls_pooled; got None.")
        return pooled
    states = np.concatenate(layers, axis=-1)
    if pooling == "none":
        return states
    if pooling in ("cls", "sep"):
        return states[0 if pooling == "cls" else -1]
    parts = {"mean": [states.mean(axis=0)], "max": [states.max(axis=0)]}
    return np.concatenate(parts["mean"] + parts["max"] if pooling == "mean_max" else parts[pooling])
