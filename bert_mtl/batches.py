"""Rows of examples to the arrays a model is called with: pure NumPy, no loop over tokens.

A packed batch is a dictionary of arrays of fixed shapes, `(rows, length)` by token, `(segments,)` by segment:
    token_ids, type_ids, position_ids `(rows, length)` int32; positions restart in each segment
    segment_ids `(rows, length)` int32: 1-based number of the token's segment in the batch, 0 for padding
    first_token `(segments,)` int32: place of the segment's [CLS] among all tokens of the batch
    task `(segments,)` int32: number of the segment's task, -1 for segments that are not there
    partner `(segments,)` int32: 0-based number of the segment with the example's other text, or its own
    index `(segments,)` int32: the example's place in its task's part, -1 for an example's second segment and for none
    label.<head>, weight.<head>: `(segments, …)` and `(segments,)` of text heads, `(rows, length)` of token heads,
        `(places,)` of mask heads, which also have place.<head> `(places,)`: places among all tokens of the batch
    examples, count.<head>: float32 scalars, how many examples the batch has, and how many are labelled for the head
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bert_mtl.labels import LabelSpec
from bert_mtl.masking import mask
from bert_mtl.packing import Batch

INPUTS = ("token_ids", "type_ids", "segment_ids", "position_ids", "first_token", "task", "partner")


@dataclass(frozen=True)
class Layout:
    """The shapes of batches.

    Attributes:
        rows, segments: of a batch.
        heads: whose labels it holds.
        separate: by task, whether an example's two texts are segments of their own.
        length: of a row in tokens; None takes the longest row's, rounded up to a multiple of `pad_to`.
        places: masked tokens of a batch at most, of each mask head.
        masking: what `bert_mtl.masking.mask` must know of the vocabulary, where a head masks.
    """

    rows: int
    segments: int
    heads: tuple[LabelSpec, ...]
    separate: tuple[bool, ...]
    length: int | None
    pad_to: int = 1
    places: int = 0
    masking: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """Tokenised examples, flat.

    Attributes:
        token_ids: `(tokens,)` int32, all examples one after the other.
        splits: `(examples + 1,)` where each example begins.
        second_start: `(examples,)` place in the example of the first token of its second text (of its second [CLS] for
            separate segments); the example's length where it has none.
        task: `(examples,)` number of each example's task.
        index: `(examples,)` place of each example in its task's part.
        labels: text head -> stored labels `(examples, *shape)`.
        token_labels: token head -> stored labels `(tokens, *shape)`.
    """

    token_ids: np.ndarray
    splits: np.ndarray
    second_start: np.ndarray
    task: np.ndarray
    index: np.ndarray
    labels: dict[str, np.ndarray]
    token_labels: dict[str, np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.splits)

    def take(self, chosen: np.ndarray) -> "Window":
        """The chosen examples alone, in that order."""
        lengths = self.lengths[chosen]
        splits = np.concatenate([[0], np.cumsum(lengths)])
        tokens = np.repeat(self.splits[chosen] - splits[:-1], lengths) + np.arange(splits[-1])
        return Window(
            token_ids=self.token_ids[tokens],
            splits=splits,
            second_start=self.second_start[chosen],
            task=self.task[chosen],
            index=self.index[chosen],
            labels={head: values[chosen] for head, values in self.labels.items()},
            token_labels={head: values[tokens] for head, values in self.token_labels.items()},
        )


def join(windows: Sequence[Window]) -> Window:
    """Windows of the same heads one after the other."""

    def joined(columns: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(columns)

    lengths = joined([window.lengths for window in windows])
    return Window(
        token_ids=joined([window.token_ids for window in windows]),
        splits=np.concatenate([[0], np.cumsum(lengths)]),
        second_start=joined([window.second_start for window in windows]),
        task=joined([window.task for window in windows]),
        index=joined([window.index for window in windows]),
        labels={head: joined([window.labels[head] for window in windows]) for head in windows[0].labels},
        token_labels={h: joined([window.token_labels[h] for window in windows]) for h in windows[0].token_labels},
    )


def complete(window: Window, specs: Sequence[LabelSpec]) -> Window:
    """The window with labels, all missing, for the heads of other tasks too."""
    labels, token_labels = {}, {}
    for spec in specs:
        if spec.level == "text":
            empty = np.full((len(window.task), *spec.shape), spec.missing, spec.dtype)
            labels[spec.name] = window.labels.get(spec.name, empty)
        elif spec.level == "token":
            empty = np.full((len(window.token_ids), *spec.shape), spec.missing, spec.dtype)
            token_labels[spec.name] = window.token_labels.get(spec.name, empty)
    return replace(window, labels=labels, token_labels=token_labels)


def assemble(window: Window, batch: Batch, layout: Layout, random: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of one batch (see the module); `random` draws what mask heads hide."""
    examples = window.take(batch.chosen)
    places = _Places(examples, batch.row, layout)
    arrays: dict[str, Any] = places.arrays()
    for head in layout.heads:
        mine = examples.task == head.task
        if head.level == "mask":
            eligible = places.by_token(np.repeat(mine, examples.lengths)) > 0
            arrays["token_ids"], place, labels, weights = mask(
                arrays["token_ids"], eligible, capacity=layout.places, random=random, rate=head.rate, **layout.masking
            )
            arrays[f"place.{head.name}"] = place
        elif head.level == "token":
            values = examples.token_labels[head.name]
            known = _known(values)
            mine = _any_by_example(known, examples)
            labels, weights = places.by_token(values, head.missing), places.by_token(known.astype(np.float32))
        else:
            values = examples.labels[head.name]
            mine = mine & (_known(values) | (not head.needs_label))
            labels, weights = places.by_segment(values), places.by_segment(mine.astype(np.float32))
        arrays |= {f"label.{head.name}": labels, f"weight.{head.name}": weights}
        arrays[f"count.{head.name}"] = np.float32(mine.sum())
    return arrays


def _known(labels: np.ndarray) -> np.ndarray:
    """Which of stored labels `(items, …)` are given, `(items,)`."""
    known = labels >= 0 if labels.dtype.kind == "i" else ~np.isnan(labels)
    return np.asarray(known.all(axis=tuple(range(1, known.ndim))))


def _any_by_example(tokens: np.ndarray, examples: Window) -> np.ndarray:
    """Which examples `(examples,)` have a token that is marked in `tokens` `(tokens,)`."""
    return np.diff(np.concatenate([[0], np.cumsum(tokens)])[examples.splits]) > 0


class _Places:
    """Where the tokens and segments of examples, which come row by row, stand in a batch.

    Attributes:
        in_example, token: the place of each token `(tokens,)` in its example and among all tokens of the batch.
        separate: whether an example `(examples,)` has two segments.
        segment: 0-based number of each example's first segment.
    """

    def __init__(self, examples: Window, row: np.ndarray, layout: Layout):
        lengths = examples.lengths
        self.examples, self.layout = examples, layout
        self.length = layout.length or -(-int(lengths.max(initial=1)) // layout.pad_to) * layout.pad_to
        before = examples.splits[:-1]
        in_row = before - before[np.searchsorted(row, row)]
        self.in_example = np.arange(len(examples.token_ids)) - np.repeat(before, lengths)
        self.token = np.repeat(row * self.length + in_row, lengths) + self.in_example
        self.separate = np.asarray(layout.separate, bool)[examples.task] & (examples.second_start < lengths)
        self.segment = np.cumsum(1 + self.separate) - self.separate - 1

    def by_token(self, values: np.ndarray, filler: float = 0) -> np.ndarray:
        """`(rows, length, …)` of values `(tokens, …)`, int32 or float32."""
        flat = np.full((self.layout.rows * self.length, *values.shape[1:]), filler, _dtype(values))
        flat[self.token] = values
        return flat.reshape(self.layout.rows, self.length, *values.shape[1:])

    def by_segment(self, values: np.ndarray, filler: float = 0) -> np.ndarray:
        """`(segments, …)` of values `(examples, …)`, int32 or float32, at the first segment of each example."""
        filled = np.full((self.layout.segments, *values.shape[1:]), filler, _dtype(values))
        filled[self.segment] = values
        return filled

    def arrays(self) -> dict[str, Any]:
        """All of a batch that is not of one head."""
        examples, lengths = self.examples, self.examples.lengths
        second_start = np.repeat(examples.second_start, lengths)
        second = self.in_example >= second_start
        apart = second & np.repeat(self.separate, lengths)
        starts = self.token[examples.splits[:-1]]
        arrays: dict[str, Any] = {
            "token_ids": self.by_token(examples.token_ids),
            "type_ids": self.by_token(second & ~apart),
            "segment_ids": self.by_token(np.repeat(self.segment + 1, lengths) + apart),
            "position_ids": self.by_token(self.in_example - apart * second_start),
            "first_token": self.by_segment(starts),
            "task": self.by_segment(examples.task, -1),
            "partner": np.arange(self.layout.segments, dtype=np.int32),
            "index": self.by_segment(examples.index, -1),
            "examples": np.float32(len(lengths)),
        }
        other = self.segment[self.separate] + 1
        arrays["first_token"][other] = (starts + examples.second_start)[self.separate]
        arrays["task"][other] = examples.task[self.separate]
        arrays["partner"][other], arrays["partner"][other - 1] = other - 1, other
        return arrays


def _dtype(values: np.ndarray) -> Any:
    return np.float32 if values.dtype.kind == "f" else np.int32
