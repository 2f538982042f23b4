"""The examples of one part of one task, in any order of passes: shards in, windows of examples out.

Three inputs (`tfrecord`, `generator`, `textline`) that end in the same examples. A part is an endless stream, pass
after pass; in which order a pass reads the shards is a pure function of (seed, task, pass).
"""

import functools
import itertools
import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from bert_mtl.batches import Window
from bert_mtl.config import DataConfig, InputConfig
from bert_mtl.encoding import Columns, encode
from bert_mtl.labels import LabelSpec
from bert_mtl.records import Manifest, Shard, lengths_file, load_manifest, parse_lines, parse_records, save_lengths
from bert_mtl.tasks import DataError, Task
from bert_mtl.taught import Taught
from bert_mtl.tokenization import Tokenizer
from bert_mtl.workers import run_jobs

CHUNK = 512  # examples read and tokenised at once
READ_BYTES = 1 << 20


class Chunk(NamedTuple):
    """Tokenised examples, flat: `token_ids` `(tokens,)`, `lengths` and `second_start` `(examples,)`, and labels by
    head: `(examples, *shape)`, of token heads `(tokens,)`."""

    token_ids: Any
    lengths: Any
    second_start: Any
    labels: dict[str, Any]


@dataclass(frozen=True)
class PartReader:
    """One part of the records folder of one task, and what its heads are `taught` beside the labels."""

    folder: Path
    part: str
    task: Task
    tokenizer: Tokenizer
    input: InputConfig
    data: DataConfig
    seed: int = 0
    shuffle: bool = False
    taught: tuple[Taught, ...] = ()

    @cached_property
    def manifest(self) -> Manifest:
        return load_manifest(self.folder)

    @property
    def examples(self) -> int:
        return self.manifest.parts[self.part].examples

    @property
    def columns(self) -> Columns:
        return Columns(self.task.labels, self.manifest.pair, self.task.separate, self.task.words)

    @property
    def labels(self) -> tuple[LabelSpec, ...]:
        """All that its windows hold labels for."""
        return (*self.columns.labels, *(each.spec for each in self.taught))

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example `(examples,)` in stored order; of text shards counted once and kept beside them."""
        file = lengths_file(self.folder, self.part, self.tokenizer.fingerprint)
        if not file.exists():
            shards = self.manifest.parts[self.part].shards
            counted = [chunk.lengths for chunk in self._chunks(shards, 0, self.examples)]
            save_lengths(self.folder, self.part, self.tokenizer.fingerprint, np.concatenate(counted))
        lengths = np.load(file)
        if len(lengths) != self.examples:
            raise DataError(f"{file} is damaged: it must have {self.examples} lengths; got {len(lengths)}. Delete it.")
        return lengths

    def order(self, start: int, count: int) -> np.ndarray:
        """The stored places `(count,)` of the examples `start`, `start + 1`, … of the endless stream."""
        passes = range(start // self.examples, -(-(start + count) // self.examples))
        places = np.concatenate([self._pass(number)[1] for number in passes] or [np.zeros(0, np.int32)])
        begin = start - passes.start * self.examples if count else 0
        return places[begin : begin + count]

    def windows(self, start: int, count: int) -> Iterator[Window]:
        """The examples `start`, `start + 1`, … `start + count - 1` of the endless stream, a chunk at a time."""
        number, skip = divmod(start, self.examples)
        while count:
            shards, places = self._pass(number)
            places = places[skip : skip + count]
            number, count = number + 1, count - len(places)
            while skip >= shards[0].examples:
                skip -= shards.pop(0).examples
            for chunk in self._chunks(shards, skip, len(places)):
                index, places = np.split(places, [len(chunk.lengths)])
                yield self._window(chunk, index)
            skip = 0

    @property
    def nothing(self) -> Window:
        """A window of no example."""
        labels = {label.name: np.zeros((0, *label.shape), label.dtype) for label in self.columns.stored}
        empty = np.zeros(0, np.int32)
        return self._window(Chunk(empty, empty, empty, labels), empty)

    def _pass(self, number: int) -> tuple[list[Shard], np.ndarray]:
        """The shards as pass `number` reads them, and the stored places `(examples,)` of their examples."""
        shards = self.manifest.parts[self.part].shards
        order = np.arange(len(shards))
        if self.shuffle:
            np.random.default_rng((self.seed, zlib.crc32(self.task.name.encode()), number)).shuffle(order)
        begin = np.cumsum([0, *(shard.examples for shard in shards)], dtype=np.int32)
        places = [np.arange(begin[i], begin[i + 1], dtype=np.int32) for i in order]
        return [shards[i] for i in order], np.concatenate(places)

    def _window(self, chunk: Chunk, index: np.ndarray) -> Window:
        by_level = {
            level: {label.name: chunk.labels[label.name] for label in self.columns.stored if label.level == level}
            for level in ("text", "token")
        }
        window = Window(
            token_ids=chunk.token_ids,
            splits=np.concatenate([[0], np.cumsum(chunk.lengths, dtype=np.int64)]),
            second_start=chunk.second_start,
            task=np.full(len(index), self.task.number, np.int32),
            index=index,
            labels=by_level["text"],
            token_labels=by_level["token"],
        )
        for each in self.taught:
            window = each.beside(window)
        return window

    def _chunks(self, shards: Iterable[Shard], skip: int, count: int) -> Iterator[Chunk]:
        """Of what the shards hold, `count` examples behind the first `skip`."""
        files = [str(self.folder / shard.file) for shard in shards]
        if self.input.kind == "generator":
            return self._worker_chunks(files, skip, count)
        if self.input.kind == "tfrecord":
            stored = tf.data.TFRecordDataset(files, buffer_size=READ_BYTES)
            function = _record_reader(self.columns)
        else:
            stored = tf.data.TextLineDataset(files, buffer_size=READ_BYTES)
            function = _line_reader(self._packed_tokenizer, self.columns)
        chunks = stored.skip(skip).take(count).batch(CHUNK).map(function, num_parallel_calls=tf.data.AUTOTUNE)
        return chunks.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    def _worker_chunks(self, files: list[str], skip: int, count: int) -> Iterator[Chunk]:
        """Workers tokenise one window ahead of the one that is read: busy all the time, and no more in memory."""
        lines, begun = itertools.islice(_lines(files), skip, skip + count), iter(())
        chunks = iter(lambda: list(itertools.islice(lines, CHUNK)), [])
        jobs = ((self._packed_tokenizer, self.columns, chunk) for chunk in chunks)
        while ahead := list(itertools.islice(jobs, max(1, self.input.window // CHUNK))):
            previous, begun = begun, run_jobs(_tokenise_in_worker, ahead, self.data, examples=count)
            yield from previous
        yield from begun

    @cached_property
    def _packed_tokenizer(self) -> bytes:
        return pickle.dumps(self.tokenizer)


@functools.lru_cache(maxsize=32)
def _record_reader(columns: Columns) -> Callable[[tf.Tensor], Chunk]:
    """Serialised records `(n,)` to a chunk, as a graph that is traced once."""
    return _graph(lambda records: _flat(*parse_records(records, columns.stored)))


@functools.lru_cache(maxsize=32)
def _line_reader(tokenizer: bytes, columns: Columns) -> Callable[[tf.Tensor], Chunk]:
    """Lines `(n,)` of text shards to a chunk, as a graph that every process builds once."""
    built = pickle.loads(tokenizer)

    def read(lines: tf.Tensor) -> Chunk:
        texts, texts_b, labels = parse_lines(lines, columns.stored, columns.pair)
        record = encode(built, columns, texts, texts_b, labels)
        return _flat(record.token_ids, record.second_start, record.labels)

    return _graph(read)


def _graph(function: Callable[[tf.Tensor], Chunk]) -> Callable[[tf.Tensor], Chunk]:
    return tf.function(function, input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)


def _flat(token_ids: tf.RaggedTensor, second_start: tf.Tensor, labels: dict) -> Chunk:
    flat = {name: value.values if isinstance(value, tf.RaggedTensor) else value for name, value in labels.items()}
    return Chunk(token_ids.values, token_ids.row_lengths(), second_start, flat)


def _tokenise_in_worker(tokenizer: bytes, columns: Columns, lines: list[bytes]) -> Chunk:
    return tf.nest.map_structure(np.asarray, _line_reader(tokenizer, columns)(tf.constant(lines)))


def _lines(files: Iterable[str]) -> Iterator[bytes]:
    for file in files:
        with open(file, "rb") as lines:
            for line in lines:
                yield line.removesuffix(b"\n")
