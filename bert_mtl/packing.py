"""Examples to rows and rows to batches of fixed meaning: pure NumPy, whole windows at a time.

A window is a set of tokenised examples shuffled together; a batch is a dictionary of arrays (see `assemble`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Window:
    """Tokenised examples, flat.

    Attributes:
        token_ids: `(tokens,)` int32, all examples one after the other.
        splits: `(examples + 1,)` where each example begins.
        second_start: `(examples,)` index in the example of the first token of its second text.
        labels: head -> label ids `(examples,)`.
        index: `(examples,)` place of each example in the stored order.
    """

    token_ids: np.ndarray
    splits: np.ndarray
    second_start: np.ndarray
    labels: dict[str, np.ndarray]
    index: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.splits)


def batch_count(examples: int, window: int, batch_size: int) -> int:
    """How many batches `plan` makes of `examples` read in windows."""
    full, rest = divmod(examples, window)
    return full * -(-window // batch_size) + -(-rest // batch_size)


def plan(lengths: np.ndarray, batch_size: int, random: np.random.Generator | None) -> Iterator[np.ndarray]:
    """The examples of each batch: neighbours in length, so that rows need little padding.

    With `random`, examples of one length and the order of the batches are shuffled; without, the order is fixed.
    """
    order = np.arange(len(lengths)) if random is None else random.permutation(len(lengths))
    order = order[np.argsort(lengths[order], kind="stable")]
    starts = np.arange(0, len(order), batch_size)
    for start in starts if random is None else random.permutation(starts):
        yield order[start : start + batch_size]


def assemble(window: Window, chosen: np.ndarray, batch_size: int, pad_to: int, max_length: int) -> dict:
    """One batch with one example a row, padded to a multiple of `pad_to`; a short batch is filled with empty rows.

    Returns arrays: `token_ids`, `type_ids`, `segment_ids`, `position_ids` `(rows, length)` int32, where a segment id is
    the 1-based number of the example in the batch and 0 is padding; by example `first_token` (flat place of its [CLS]),
    `index`, `weight` (0 for empty rows), and `label.<head>`, all `(batch_size,)`.
    """
    lengths = window.splits[chosen + 1] - window.splits[chosen]
    length = min(-(-int(lengths.max(initial=1)) // pad_to) * pad_to, max_length)
    columns = np.arange(length, dtype=np.int32)
    real = np.zeros((batch_size, length), bool)
    real[: len(chosen)] = columns < lengths[:, None]
    starts = np.zeros((batch_size, 1), np.int64)
    starts[: len(chosen), 0] = window.splits[chosen]
    second = _fill(window.second_start[chosen], batch_size)
    token_ids = np.zeros((batch_size, length), np.int32)
    token_ids[real] = window.token_ids[(starts + columns)[real]]
    batch = {
        "token_ids": token_ids,
        "type_ids": (real & (columns >= second[:, None])).astype(np.int32),
        "segment_ids": real * np.arange(1, batch_size + 1, dtype=np.int32)[:, None],
        "position_ids": real * columns,
        "first_token": np.arange(batch_size, dtype=np.int32) * length,
        "index": _fill(window.index[chosen], batch_size, -1),
        "weight": _fill(np.ones(len(chosen), np.float32), batch_size),
    }
    return batch | {f"label.{head}": _fill(ids[chosen], batch_size) for head, ids in window.labels.items()}


def _fill(values: np.ndarray, size: int, filler: int = 0) -> np.ndarray:
    filled = np.full(size, filler, np.float32 if values.dtype.kind == "f" else np.int32)
    filled[: len(values)] = values
    return filled
