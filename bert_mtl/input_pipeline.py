"""Records in, batches out: three inputs (`tfrecord`, `generator`, `textline`) that end in identical batches.

The order is a pure function of (seed, epoch): shards are shuffled, read in windows, planned into batches
(`bert_mtl.packing`); so any step of any epoch can be reached again exactly.
"""

import functools
import itertools
import pickle
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_mtl import packing
from bert_mtl.config import DataConfig, InputConfig
from bert_mtl.packing import Window
from bert_mtl.records import Manifest, Shard, load_manifest, parse_lines, parse_records
from bert_mtl.tokenization import Tokenizer
from bert_mtl.workers import run_jobs

CHUNK = 512  # examples read and tokenised at once
READ_BYTES = 1 << 20
ROW_KEYS = ("token_ids", "type_ids", "segment_ids", "position_ids")


@dataclass(frozen=True)
class Pipeline:
    """The batches of one part of a records folder.

    With `replicas`, every step is that many batches of `batch_size / replicas` examples, one after the other.
    """

    folder: Path
    part: str
    tokenizer: Tokenizer
    input: InputConfig
    data: DataConfig
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    replicas: int = 1

    @cached_property
    def manifest(self) -> Manifest:
        return load_manifest(self.folder)

    @property
    def examples(self) -> int:
        return self.manifest.parts[self.part].examples

    @property
    def steps_per_epoch(self) -> int:
        return packing.batch_count(self.examples, self.input.window, self.batch_size)

    def batches(self, epoch: int = 0, skip: int = 0) -> Generator[dict, None, None]:
        """The batches of one epoch (see `packing.assemble`), without those of its first `skip` steps."""
        first, skip = divmod(skip, packing.batch_count(self.input.window, self.input.window, self.batch_size))
        for number, window in enumerate(self._windows(epoch, first), first):
            random = np.random.default_rng((self.seed, epoch, number)) if self.shuffle else None
            for chosen in itertools.islice(packing.plan(window.lengths, self.batch_size, random), skip, None):
                yield from self._replica_batches(window, chosen)
            skip = 0

    def dataset(self, epoch: int = 0, skip: int = 0, epochs: int = 1) -> tf.data.Dataset:
        """`batches` from step `skip` of `epoch` on, through `epochs` epochs, as a prefetched dataset."""

        def stream() -> Iterator[dict]:
            for number in range(epoch, epoch + epochs):
                yield from self.batches(number, skip if number == epoch else 0)

        rows = self.batch_size // self.replicas
        length = self.tokenizer.max_length if self.input.pad_to == self.tokenizer.max_length else None
        signature = {key: tf.TensorSpec((rows, length), tf.int32) for key in ROW_KEYS}
        signature |= {key: tf.TensorSpec((rows,), tf.int32) for key in ("first_token", "index")}
        signature |= {f"label.{head}": tf.TensorSpec((rows,), tf.int32) for head in self.manifest.heads}
        signature["weight"] = tf.TensorSpec((rows,), tf.float32)
        return tf.data.Dataset.from_generator(stream, output_signature=signature).prefetch(4)

    def _replica_batches(self, window: Window, chosen: np.ndarray) -> Iterator[dict]:
        rows = self.batch_size // self.replicas
        for replica in range(self.replicas):
            mine = chosen[replica :: self.replicas]
            yield packing.assemble(window, mine, rows, self.input.pad_to, self.tokenizer.max_length)

    def _windows(self, epoch: int, first: int) -> Iterator[Window]:
        """From window `first` on, the chunks joined to exactly `input.window` examples (the last may be fewer)."""
        shards, index = self._order(epoch)
        skip = first * self.input.window
        index = index[skip:]
        while shards and skip >= shards[0].examples:
            skip -= shards.pop(0).examples
        held: list[dict] = []
        for chunk in self._chunks([str(self.folder / shard.file) for shard in shards], skip):
            held.append(chunk)
            while sum(len(chunk["lengths"]) for chunk in held) >= self.input.window:
                chunk, rest = _cut(held, self.input.window)
                yield self._window(chunk, index)
                held, index = [rest], index[self.input.window :]
        if len(index):
            yield self._window(_cut(held, len(index))[0], index)

    def _order(self, epoch: int) -> tuple[list[Shard], np.ndarray]:
        """The shards as this epoch reads them, and the stored places `(examples,)` of their examples."""
        shards = self.manifest.parts[self.part].shards
        order = np.arange(len(shards))
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(order)
        begin = np.cumsum([0, *(shard.examples for shard in shards)], dtype=np.int32)
        places = [np.arange(begin[i], begin[i + 1], dtype=np.int32) for i in order]
        return [shards[i] for i in order], np.concatenate(places)

    def _window(self, chunk: dict, index: np.ndarray) -> Window:
        lengths = chunk["lengths"]
        return Window(
            token_ids=chunk["token_ids"],
            splits=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            second_start=chunk["second_start"],
            labels={head: chunk[f"label.{head}"] for head in self.manifest.heads},
            index=index[: len(lengths)],
        )

    def _chunks(self, files: list[str], skip: int) -> Iterator[dict]:
        """What the files hold after their first `skip` examples: see `_flat`."""
        if self.input.kind == "generator":
            return self._worker_chunks(files, skip)
        if self.input.kind == "tfrecord":
            stored = tf.data.TFRecordDataset(files, buffer_size=READ_BYTES)
            function = _record_reader(self.manifest.heads)
        else:
            stored = tf.data.TextLineDataset(files, buffer_size=READ_BYTES)
            function = _line_reader(self._packed_tokenizer, self.manifest.heads, self.manifest.pair)
        chunks = stored.skip(skip).batch(CHUNK).map(function, num_parallel_calls=tf.data.AUTOTUNE)
        return chunks.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    def _worker_chunks(self, files: list[str], skip: int) -> Iterator[dict]:
        """Workers tokenise one window ahead of the one that is read: busy all the time, and no more in memory."""
        lines = itertools.islice(_lines(files), skip, None)
        begun: Iterator[dict] = iter(())
        while jobs := list(itertools.islice(self._jobs(lines), max(1, self.input.window // CHUNK))):
            previous, begun = begun, run_jobs(_tokenise_in_worker, jobs, self.data, examples=self.examples)
            yield from previous
        yield from begun

    def _jobs(self, lines: Iterator[bytes]) -> Iterator[tuple]:
        while chunk := list(itertools.islice(lines, CHUNK)):
            yield self._packed_tokenizer, self.manifest.heads, self.manifest.pair, chunk

    @cached_property
    def _packed_tokenizer(self) -> bytes:
        return pickle.dumps(self.tokenizer)


def text_batches(
    tokenizer: Tokenizer, texts: Sequence[str], texts_b: Sequence[str] | None, batch_size: int, pad_to: int
) -> Iterator[dict]:
    """Batches (see `packing.assemble`) of unlabelled texts or pairs, sorted by length; `index` tells their places."""
    encoded = tokenizer.encode(tf.constant(texts), None if texts_b is None else tf.constant(texts_b))
    window = Window(
        token_ids=encoded.token_ids.values.numpy(),
        splits=encoded.token_ids.row_splits.numpy(),
        second_start=encoded.second_start.numpy(),
        labels={},
        index=np.arange(len(texts)),
    )
    for chosen in packing.plan(window.lengths, batch_size, None):
        yield packing.assemble(window, chosen, batch_size, pad_to, tokenizer.max_length)


@functools.lru_cache(maxsize=8)
def _record_reader(heads: tuple[str, ...]) -> Callable[[tf.Tensor], dict]:
    """Serialised records `(n,)` to a chunk, as a graph that is traced once."""
    return _graph(lambda records: _flat(parse_records(records, heads)))


@functools.lru_cache(maxsize=8)
def _line_reader(tokenizer: bytes, heads: tuple[str, ...], pair: bool) -> Callable[[tf.Tensor], dict]:
    """Lines `(n,)` of text shards to a chunk, as a graph that every process builds once."""
    encode = pickle.loads(tokenizer).encode

    def read(lines: tf.Tensor) -> dict:
        texts, texts_b, labels = parse_lines(lines, heads, pair)
        encoded = encode(texts, texts_b)
        return _flat({"token_ids": encoded.token_ids, "second_start": encoded.second_start, **labels})

    return _graph(read)


def _graph(function: Callable[[tf.Tensor], dict]) -> Callable[[tf.Tensor], dict]:
    return tf.function(function, input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)


def _tokenise_in_worker(tokenizer: bytes, heads: tuple[str, ...], pair: bool, lines: list[bytes]) -> dict:
    chunk = _line_reader(tokenizer, heads, pair)(tf.constant(lines))
    return {key: value.numpy() for key, value in chunk.items()}


def _lines(files: Iterable[str]) -> Iterator[bytes]:
    for file in files:
        with open(file, "rb") as lines:
            for line in lines:
                yield line.removesuffix(b"\n")


def _flat(chunk: dict) -> dict:
    """Ragged token ids as flat ids and lengths, so that a chunk is a dictionary of plain arrays."""
    ids = chunk.pop("token_ids")
    return {"token_ids": ids.values, "lengths": ids.row_lengths(), **chunk}


def _cut(chunks: list[dict], size: int) -> tuple[dict, dict]:
    """The first `size` examples of chunks joined, and the rest."""
    joined = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
    tokens = int(joined["lengths"][:size].sum())
    at = {key: tokens if key == "token_ids" else size for key in joined}
    return {k: v[: at[k]] for k, v in joined.items()}, {k: v[at[k] :] for k, v in joined.items()}
