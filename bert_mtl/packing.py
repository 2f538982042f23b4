"""Examples to rows: pure NumPy, whole windows of an epoch at a time, from nothing but the lengths of the examples.

Packed rows hold as many whole examples as fit (best fit, longest first); padded rows hold one each. What a row of
examples becomes as arrays is `bert_mtl.batches`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

RandomOf = Callable[[int], np.random.Generator | None]  # number of a window -> its order; None keeps the stored one


class Batch(NamedTuple):
    """The examples `chosen` `(examples,)` (places in the window's buffer) and the `row` `(examples,)` of each."""

    chosen: np.ndarray
    row: np.ndarray


class WindowPlan(NamedTuple):
    """Batches of one window. Its buffer holds the examples at `positions` of the epoch, of `lengths` tokens: those that
    the window before carried over, then its own; `carried` are the places in the buffer that go over to the next."""

    positions: np.ndarray
    lengths: np.ndarray
    batches: list[Batch]
    carried: np.ndarray


class Packing(NamedTuple):
    """Whole examples in rows of fixed length.

    Attributes:
        rows: of a batch.
        length: of a row in tokens.
        most: examples a row may hold at most.
    """

    rows: int
    length: int
    most: int

    def plan(self, lengths: np.ndarray, window: int, random_of: RandomOf) -> Iterator[WindowPlan]:
        """The batches of an epoch of examples of `lengths`, window by window. The emptiest rows, those that do not
        make up a batch, go over to the next window; so only the last batch of an epoch is not full."""
        held = np.zeros(0, np.int64)
        for number, start in enumerate(range(0, len(lengths), window)):
            end = min(start + window, len(lengths))
            positions, random = np.concatenate([held, np.arange(start, end)]), random_of(number)
            order, splits = pack(lengths[positions], self.length, self.most, random)
            count = len(splits) - 1
            kept = count if end == len(lengths) else count // self.rows * self.rows
            tokens = np.add.reduceat(lengths[positions][order], splits[:-1])
            fullest = np.argsort(-tokens, kind="stable")
            chosen, left = np.sort(fullest[:kept]), np.sort(fullest[kept:])
            chosen = chosen if random is None else random.permutation(chosen)
            parts = [chosen[at : at + self.rows] for at in range(0, kept, self.rows)]
            carried = _examples(order, splits, left)[0]
            batches = [Batch(*_examples(order, splits, part)) for part in parts]
            yield WindowPlan(positions, lengths[positions], batches, carried)
            held = positions[carried]


class Padding(NamedTuple):
    """One example a row, neighbours in length together, so that rows need little padding.

    Attributes:
        rows: of a batch.
    """

    rows: int

    def plan(self, lengths: np.ndarray, window: int, random_of: RandomOf) -> Iterator[WindowPlan]:
        """The batches of an epoch, window by window; with a generator, examples of one length and the order of the
        batches are shuffled."""
        for number, start in enumerate(range(0, len(lengths), window)):
            positions, random = np.arange(start, min(start + window, len(lengths))), random_of(number)
            order = np.arange(len(positions)) if random is None else random.permutation(len(positions))
            order = order[np.argsort(lengths[positions][order], kind="stable")]
            starts = np.arange(0, len(order), self.rows)
            starts = starts if random is None else random.permutation(starts)
            chosen = [order[at : at + self.rows] for at in starts]
            batches = [Batch(one, np.arange(len(one))) for one in chosen]
            yield WindowPlan(positions, lengths[positions], batches, np.zeros(0, np.int64))


def pack(
    lengths: np.ndarray, row_length: int, most: int, random: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Best-fit decreasing: each example, longest first, goes to the fullest row that still has room for it.

    Examples of one length are placed many at a time. With `random`, which of them goes where is shuffled.

    Args:
        lengths: `(examples,)`, at least one, each at most `row_length`.
        most: examples a row may hold at most.

    Returns:
        The examples ordered by row `(examples,)`, and where each row begins `(rows + 1,)`.
    """
    order = np.arange(len(lengths)) if random is None else random.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    sizes, starts = np.unique(-lengths[order], return_index=True)
    row_of, held = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    rows = [np.zeros(0, np.int64)] * row_length + [np.arange(len(lengths))]  # by how much is left of them
    there = bytearray([0] * row_length + [1])  # whether there are such rows, to be searched in one go
    for size, items in zip((-sizes).tolist(), np.split(order, starts[1:]), strict=True):
        while len(items):
            left = there.find(1, size)
            count = max(len(items) // min(left // size, most), 1)  # rows that these examples fill one after the other
            taken, rows[left] = rows[left][:count], rows[left][count:]
            row_of[items[: len(taken)]] = taken
            held[taken] += 1
            items = items[len(taken) :]
            rows[left - size] = np.concatenate([rows[left - size], taken[held[taken] < most]])
            there[left], there[left - size] = len(rows[left]) > 0, len(rows[left - size]) > 0
    return np.argsort(row_of, kind="stable"), np.concatenate([[0], np.cumsum(np.bincount(row_of))])


def _examples(order: np.ndarray, splits: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The examples of some rows, one row after the other, and the number of each one's row among them."""
    sizes = splits[rows + 1] - splits[rows]
    inner = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[np.repeat(splits[rows], sizes) + inner], np.repeat(np.arange(len(rows)), sizes)
