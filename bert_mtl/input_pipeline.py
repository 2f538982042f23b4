"""Records in, batches out: three inputs (`tfrecord`, `generator`, `textline`) that end in identical batches.

The order is a pure function of (seed, epoch): shards are shuffled, read in windows, planned into batches
(`bert_mtl.packing`); so any step of any epoch can be reached again exactly.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import joblib
import numpy as np
import tensorflow as tf

from bert_mtl import packing
from bert_mtl.config import DataConfig, InputConfig
from bert_mtl.packing import Window
from bert_mtl.records import Manifest, load_manifest, parse_lines, parse_records
from bert_mtl.tokenization import Tokenizer

CHUNK = 512  # examples read and tokenised at once
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

    def batches(self, epoch: int = 0, skip: int = 0) -> Iterator[dict]:
        """The batches of one epoch (see `packing.assemble`), without those of its first `skip` steps."""
        step = 0
        for number, window in enumerate(self._windows(epoch)):
            random = np.random.default_rng((self.seed, epoch, number)) if self.shuffle else None
            for chosen in packing.plan(window.lengths, self.batch_size, random):
                step += 1
                if step > skip:
                    yield from self._replica_batches(window, chosen)

    def dataset(self, epoch: int = 0, skip: int = 0, epochs: int = 1) -> tf.data.Dataset:
        """`batches` from step `skip` of `epoch` on, through `epochs` epochs, as a prefetched dataset."""

        def stream() -> Iterator[dict]:
            for number in range(epoch, epoch + epochs):
                yield from self.batches(number, skip if number == epoch else 0)

        rows = self.batch_size // self.replicas
        signature = {key: tf.TensorSpec((rows, None), tf.int32) for key in ROW_KEYS}
        signature |= {key: tf.TensorSpec((rows,), tf.int32) for key in ("first_token", "index")}
        signature |= {f"label.{head}": tf.TensorSpec((rows,), tf.int32) for head in self.manifest.heads}
        signature["weight"] = tf.TensorSpec((rows,), tf.float32)
        return tf.data.Dataset.from_generator(stream, output_signature=signature).prefetch(4)

    def _replica_batches(self, window: Window, chosen: np.ndarray) -> Iterator[dict]:
        rows = self.batch_size // self.replicas
        for replica in range(self.replicas):
            mine = chosen[replica :: self.replicas]
            yield packing.assemble(window, mine, rows, self.input.pad_to, self.tokenizer.max_length)

    def _windows(self, epoch: int) -> Iterator[Window]:
        """Chunks of the shards, joined to windows of exactly `input.window` examples (the last may be shorter)."""
        held: list[dict] = []
        count = begin = 0
        for chunk in self._chunks(self._files(epoch)):
            held.append(chunk)
            count += len(chunk["lengths"])
            while count >= self.input.window:
                window, rest = _cut(held, self.input.window)
                yield _window(window, begin, self.manifest.heads)
                held, begin, count = [rest], begin + self.input.window, count - self.input.window
        if count:
            yield _window(_cut(held, count)[0], begin, self.manifest.heads)

    def _files(self, epoch: int) -> list[str]:
        files = [str(self.folder / shard.file) for shard in self.manifest.parts[self.part].shards]
        if self.shuffle:
            np.random.default_rng((self.seed, epoch)).shuffle(files)
        return files

    def _chunks(self, files: list[str]) -> Iterator[dict]:
        read = {"tfrecord": self._record_chunks, "textline": self._line_chunks, "generator": self._worker_chunks}
        return read[self.input.kind](files)

    def _record_chunks(self, files: list[str]) -> Iterator[dict]:
        heads = self.manifest.heads
        records = tf.data.TFRecordDataset(files, buffer_size=8 << 20).batch(CHUNK)
        chunks = records.map(lambda batch: _flat(parse_records(batch, heads)), num_parallel_calls=tf.data.AUTOTUNE)
        return chunks.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    def _line_chunks(self, files: list[str]) -> Iterator[dict]:
        lines = tf.data.TextLineDataset(files, buffer_size=8 << 20).batch(CHUNK)
        chunks = lines.map(self._tokenise, num_parallel_calls=tf.data.AUTOTUNE)
        return chunks.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()

    def _worker_chunks(self, files: list[str]) -> Iterator[dict]:
        with joblib.parallel_config(backend=self.data.backend, n_jobs=self.data.workers):
            work = joblib.delayed(_tokenise_in_worker)
            jobs = (work(self.tokenizer, self.manifest.heads, self.manifest.pair, lines) for lines in _line_groups(files))
            yield from joblib.Parallel(return_as="generator")(jobs)

    def _tokenise(self, lines: tf.Tensor) -> dict:
        return _tokenise(self.tokenizer, self.manifest.heads, self.manifest.pair, lines)


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


def _tokenise(tokenizer: Tokenizer, heads: tuple[str, ...], pair: bool, lines: tf.Tensor) -> dict:
    texts, texts_b, labels = parse_lines(lines, heads, pair)
    encoded = tokenizer.encode(texts, texts_b)
    return _flat({"token_ids": encoded.token_ids, "second_start": encoded.second_start, **labels})


def _tokenise_in_worker(tokenizer: Tokenizer, heads: tuple[str, ...], pair: bool, lines: list[bytes]) -> dict:
    return {key: value.numpy() for key, value in _tokenise(tokenizer, heads, pair, tf.constant(lines)).items()}


def _line_groups(files: list[str]) -> Iterator[list[bytes]]:
    lines = itertools.chain.from_iterable(_lines(file) for file in files)
    while group := list(itertools.islice(lines, CHUNK)):
        yield group


def _lines(file: str) -> Iterator[bytes]:
    with open(file, "rb") as opened:
        for line in opened:
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


def _window(chunk: dict, begin: int, heads: tuple[str, ...]) -> Window:
    lengths = chunk["lengths"]
    return Window(
        token_ids=chunk["token_ids"],
        splits=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        second_start=chunk["second_start"],
        labels={head: chunk[f"label.{head}"] for head in heads},
        index=np.arange(begin, begin + len(lengths)),
    )
