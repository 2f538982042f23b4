"""Which waiting rows a worker takes next: pure functions of what waits."""

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

PADDING = 0.05
"""Share of a batch that may be padding."""


class Waits(Protocol):
    """A row that waits: its `tag` says when its turn is, `length` how many tokens it has, `alone` that it may not be
    run beside others; only rows of one `lot` can be run together."""

    tag: tuple[float, int]
    alone: bool

    @property
    def length(self) -> int: ...

    @property
    def lot(self) -> object: ...


W = TypeVar("W", bound=Waits)


def next_batch(waiting: Iterable[W], tokens: int) -> list[W]:
    """The row whose turn it is, and those of about its length that fit beside it: at most `tokens` in all, padding
    included, `PADDING` of them padding. Nothing where nothing waits.

    The first row is never put off for the sake of fuller batches, so each one's turn comes.
    """
    rows = list(waiting)
    if not rows:
        return []
    first = min(rows, key=lambda each: each.tag)
    if first.alone:
        return [first]
    beside = [each for each in rows if each.lot == first.lot and not each.alone and each is not first]
    beside.sort(key=lambda each: (abs(each.length - first.length), each.tag))
    batch, longest, total = [first], first.length, first.length
    for each in beside:
        longest, total = max(longest, each.length), total + each.length
        area = (len(batch) + 1) * longest
        if area > tokens or total < (1 - PADDING) * area:
            break
        batch.append(each)
    return batch


def start_tags(clock: float, lengths: Sequence[int]) -> list[float]:
    """When the turn of each row of a request comes that arrives at `clock`: as if it had the model to itself.

    A long request so leaves room to those that come later (start-time fair queueing, Goyal et al. 1996).
    """
    tags, tag = [], clock
    for length in lengths:
        tags.append(tag)
        tag += length
    return tags
