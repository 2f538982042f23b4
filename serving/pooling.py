"""STUB until the branch layers lands."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Pooling = Literal["none", "max", "mean", "mean_max", "cls", "sep", "cls_pooled"]


def pool(layers: Sequence[np.ndarray], pooled: np.ndarray | None, pooling: Pooling) -> np.ndarray:
    raise NotImplementedError
