"""What a head's labels are as numbers: the part of a head that records and batches know."""

import math
from typing import Literal, NamedTuple


class LabelSpec(NamedTuple):
    """Labels of one head.

    Attributes:
        name: of the head.
        task: number of its task in the run.
        level: a `text` has labels of `shape`; each `token` has a number (-1 except at the first wordpiece of a labelled
            word); a `mask` head has no labels, it hides tokens.
        dtype: `int32` (missing labels are -1) or `float32` (NaN).
        needs_label: whether an example without a label is left out.
        rate: share of the tokens that a `mask` head hides.
    """

    name: str
    task: int
    level: Literal["text", "token", "mask"]
    dtype: Literal["int32", "float32"] = "int32"
    shape: tuple[int, ...] = ()
    needs_label: bool = True
    rate: float = 0.0

    @property
    def stored(self) -> bool:
        """Whether records hold it."""
        return self.level != "mask"

    @property
    def missing(self) -> float:
        """What stands for a label that is not given."""
        return -1 if self.dtype == "int32" else math.nan
