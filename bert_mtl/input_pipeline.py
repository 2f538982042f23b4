"""The parts of one or many tasks in, batches out (`bert_mtl.batches`).

An epoch is planned before it is read: how many examples of each task, in which order, in which rows. The plan is a
pure function of the seed, the epoch and the mixing rates, so any step of any epoch can be reached again exactly.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from bert_mtl.batches import Layout, Window, assemble, complete, join
from bert_mtl.config import InputConfig
from bert_mtl.labels import LabelSpec
from bert_mtl.mixing import schedule
from bert_mtl.packing import Batch, Packing, Padding, WindowPlan
from bert_mtl.part_reader import PartReader
from bert_mtl.tokenization import Tokenizer

SPARE = 3  # a packed row may hold so many times the number of examples that fit on average
SPARE_MASKS = 2  # a batch may hide so many times the tokens that the first epoch's largest one does
LONG = 1.5  # a row that is so many times longer than a batch has tokens holds no more examples than the batch should
ROW_STEP = 32  # lengths of short rows are multiples of it
LONGEST_ROW = 512  # of rows made longer than the longest example


@dataclass(frozen=True)
class Epoch:
    """What one epoch reads: of every task `counts` examples, from the example `starts` of its endless stream on."""

    number: int
    counts: tuple[int, ...]
    starts: tuple[int, ...]

    def following(self, counts: Sequence[int]) -> "Epoch":
        """The epoch after this one, which goes on where this one ends."""
        ends = tuple(start + count for start, count in zip(self.starts, self.counts, strict=True))
        return Epoch(self.number + 1, tuple(int(count) for count in counts), ends)


@dataclass(frozen=True)
class Pipeline:
    """The batches of one part of some tasks.

    With `input.packing=packed` a batch has as many rows as hold `batch_size` examples on average; with `none` it has
    `batch_size` rows of one example each. With `replicas`, every step is that many batches, one after the other.

    Attributes:
        readers: of the tasks, in the order of their numbers.
        counts: examples of each task in the first epoch; the shapes of all batches follow from them.
    """

    readers: tuple[PartReader, ...]
    input: InputConfig
    batch_size: int
    counts: tuple[int, ...]
    seed: int = 0
    shuffle: bool = False
    replicas: int = 1

    @property
    def part(self) -> str:
        return self.readers[0].part

    @property
    def tokenizer(self) -> Tokenizer:
        return self.readers[0].tokenizer

    @property
    def labels(self) -> tuple[LabelSpec, ...]:
        return tuple(label for reader in self.readers for label in reader.labels)

    @property
    def first_epoch(self) -> Epoch:
        return Epoch(0, self.counts, (0,) * len(self.readers))

    @cached_property
    def packing(self) -> Packing | Padding:
        """How the examples of a step become rows, all replicas' together."""
        if self.input.packing == "none":
            return Padding(self.batch_size)
        means = np.array([reader.lengths.mean() for reader in self.readers])
        tokens = self.batch_size * np.average(means, weights=self.counts) / self.replicas
        length = self.input.row_length or self._row_length(tokens)
        rows = max(round(tokens / length), 1) * self.replicas
        most = max(8, round(SPARE * length / means.min()))
        if length > LONG * tokens:  # one long example must not make all steps many times larger
            most = self.batch_size // self.replicas
        return Packing(rows, length, most)

    def _row_length(self, tokens: float) -> int:
        """Long rows are fuller: twice the longest example that can be; but a small batch of short texts is one row that
        is no longer than its `tokens`."""
        longest = max(int(reader.lengths.max()) for reader in self.readers)
        longest += longest % 2  # flash attention takes even lengths
        limit = max(min(2 * self.tokenizer.max_length, LONGEST_ROW), longest)
        return min(max(-(-round(tokens) // ROW_STEP) * ROW_STEP, longest), limit)

    @cached_property
    def layout(self) -> Layout:
        """The shapes of one replica's batch."""
        packing, longest = self.packing, self.tokenizer.max_length
        rows, most, length = packing.rows // self.replicas, 1, longest if self.input.pad_to == longest else None
        if isinstance(packing, Packing):
            most, length = packing.most, packing.length
        separate = {reader.task.number: reader.task.separate for reader in self.readers}
        return Layout(
            rows=rows,
            segments=rows * most * (1 + any(separate.values())),
            heads=self.labels,
            separate=tuple(separate.get(task, False) for task in range(max(separate) + 1)),
            length=length,
            pad_to=self.input.pad_to,
            places=self._places(rows * (length or longest)) if self._mask_rates.any() else 0,
            masking={
                "continues": self.tokenizer.continuations,
                "special_ids": self.tokenizer.special_ids,
                "mask_id": self.tokenizer.mask_id,
            },
        )

    @cached_property
    def _mask_rates(self) -> np.ndarray:
        """`(tasks,)`: the share of its tokens that each task hides."""
        return np.array([max((label.rate for label in reader.columns.labels), default=0) for reader in self.readers])

    def _places(self, tokens: int) -> int:
        """Masked tokens of one batch of `tokens` at most: more than the first epoch needs, as mixtures may change."""
        order, most = self._order(self.first_epoch), 0.0
        for plan in self._plans(self.first_epoch, order):
            hidden = plan.lengths * self._mask_rates[order[plan.positions]]
            for batch in plan.batches:
                most = max(most, np.bincount(batch.row % self.replicas, hidden[batch.chosen]).max())
        return int(np.ceil(min(SPARE_MASKS * most, self._mask_rates.max() * tokens)))

    def steps(self, epoch: Epoch) -> int:
        """How many batches (of all replicas together) an epoch has; planned once."""
        if epoch not in self._steps:
            self._steps[epoch] = sum(len(plan.batches) for plan in self._plans(epoch, self._order(epoch)))
        return self._steps[epoch]

    @cached_property
    def _steps(self) -> dict[Epoch, int]:
        return {}

    def describe(self, epoch: Epoch) -> str:
        """Steps and rows of an epoch, and how full these are."""
        steps, packing = self.steps(epoch), self.packing
        said = f"{steps:,} steps of {sum(epoch.counts) / steps:.1f} examples on average"
        if isinstance(packing, Padding):
            return f"{said}, a row each"
        tokens = sum(reader.lengths.mean() * count for reader, count in zip(self.readers, epoch.counts, strict=True))
        return (
            f"{said}, in {packing.rows} rows of {packing.length} tokens, "
            f"{tokens / (steps * packing.rows * packing.length):.1%} full"
        )

    def batches(self, epoch: Epoch, skip: int = 0, of: Iterable[int] | None = None) -> Generator[dict, None, None]:
        """The batches of one epoch, without those of its first `skip` steps; those `of` some replicas or of all."""
        of = range(self.replicas) if of is None else tuple(of)
        order, step, window = self._order(epoch), 0, None
        streams: list[_Stream] = []
        for plan in self._plans(epoch, order):
            if window is not None:
                fresh = plan.positions[len(window.task) :]
                window = join([window, self._read(streams, order[fresh])])
            elif step + len(plan.batches) > skip:
                begin, end = int(plan.positions.min()), int(plan.positions.max()) + 1
                streams = self._streams(epoch, order, begin)
                window = self._read(streams, order[begin:end]).take(plan.positions - begin)
            else:
                step += len(plan.batches)
                continue
            for batch in plan.batches:
                if step >= skip:
                    yield from self._replica_batches(window, batch, epoch.number, step, of)
                step += 1
            window = window.take(plan.carried)

    @property
    def signature(self) -> dict[str, tf.TensorSpec]:
        """The shapes and types of a batch's arrays."""
        layout = self.layout
        tokens, segments, places = (layout.rows, layout.length), (layout.segments,), (layout.places,)
        found = {
            name: tf.TensorSpec(tokens, tf.int32) for name in ("token_ids", "type_ids", "segment_ids", "position_ids")
        }
        found |= {name: tf.TensorSpec(segments, tf.int32) for name in ("first_token", "task", "partner", "index")}
        found["examples"] = tf.TensorSpec((), tf.float32)
        for head in layout.heads:
            items = {"text": segments, "token": tokens, "mask": places}[head.level]
            found[f"label.{head.name}"] = tf.TensorSpec((*items, *head.shape), head.dtype)
            found[f"weight.{head.name}"] = tf.TensorSpec(items, tf.float32)
            found[f"count.{head.name}"] = tf.TensorSpec((), tf.float32)
            if head.level == "mask":
                found[f"place.{head.name}"] = tf.TensorSpec(places, tf.int32)
        return found

    def _order(self, epoch: Epoch) -> np.ndarray:
        """The task of every example `(examples,)` of an epoch."""
        return schedule(np.asarray(epoch.counts))

    def _plans(self, epoch: Epoch, order: np.ndarray) -> Iterator[WindowPlan]:
        lengths = np.zeros(len(order), np.int64)
        for number, reader in enumerate(self.readers):
            places = reader.order(epoch.starts[number], epoch.counts[number])
            lengths[order == number] = reader.lengths[places]

        def random_of(window: int) -> np.random.Generator | None:
            return np.random.default_rng((self.seed, epoch.number, window)) if self.shuffle else None

        return self.packing.plan(lengths, self.input.window, random_of)

    def _streams(self, epoch: Epoch, order: np.ndarray, begin: int) -> list["_Stream"]:
        """Each task's examples from the one on that is first at or after place `begin` of the epoch."""
        read = np.bincount(order[:begin], minlength=len(self.readers)).tolist()
        places = zip(self.readers, epoch.starts, epoch.counts, read, strict=True)
        return [_Stream(reader, start + done, count - done, self.labels) for reader, start, count, done in places]

    def _read(self, streams: list["_Stream"], order: np.ndarray) -> Window:
        """The next examples, one for each entry of `order`, the number of its task."""
        counts = np.bincount(order, minlength=len(streams))
        parts = [stream.next(int(count)) for stream, count in zip(streams, counts, strict=True)]
        mixed = np.empty(len(order), np.int64)
        mixed[np.argsort(order, kind="stable")] = np.arange(len(order))
        return join(parts).take(mixed) if len(parts) > 1 else parts[0]

    def _replica_batches(
        self, window: Window, batch: Batch, epoch: int, step: int, of: Iterable[int]
    ) -> Iterator[dict]:
        for replica in of:
            mine = batch.row % self.replicas == replica
            share = Batch(batch.chosen[mine], batch.row[mine] // self.replicas)
            yield assemble(window, share, self.layout, np.random.default_rng((self.seed, epoch, step, replica)))


class _Stream:
    """The examples of one task in one epoch, as many at a time as are asked for."""

    def __init__(self, reader: PartReader, start: int, count: int, labels: tuple[LabelSpec, ...]):
        self.chunks = (complete(window, labels) for window in reader.windows(start, count))
        self.held = complete(reader.nothing, labels)

    def next(self, count: int) -> Window:
        found = [self.held]
        while sum(len(window.task) for window in found) < count:
            found.append(next(self.chunks))
        joined = join(found)
        self.held = joined.take(np.arange(count, len(joined.task)))
        return joined.take(np.arange(count))
