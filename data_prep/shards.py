"""One shard: the work of a joblib worker. Examples of a spool in, a shard file and its statistics out."""

import functools
import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_mtl.records import Shard, atomic_write, serialize, sha256, write_lines, write_records
from bert_mtl.tasks import Example
from data_prep.spool import read_spool

ROWS = 512  # texts tokenised at once: enough to keep the graph busy, little memory


@dataclass(frozen=True)
class ShardJob:
    """What to write where: the lines at `offsets` of `spool` into `target`; `stats` appears last and marks it done."""

    target: Path
    stats: Path
    spool: Path
    offsets: np.ndarray
    heads: dict[str, int]  # head -> number of labels
    max_length: int  # of a row in tokens
    tokenizer: bytes | None  # pickled; None writes text

    @property
    def done(self) -> bool:
        return self.stats.exists() and self.target.exists()


@dataclass
class Counts:
    """What `manifest.json` says about examples: those of each label, those of each length, those cut."""

    labels: dict[str, np.ndarray]
    lengths: np.ndarray
    truncated: int = 0


def write_shard(job: ShardJob) -> None:
    """Writes the shard and then its statistics, each atomically."""
    labels = {head: np.zeros(count, int) for head, count in job.heads.items()}
    counts = Counts(labels, np.zeros(0 if job.tokenizer is None else job.max_length + 1, int))
    examples = _counted(read_spool(job.spool, job.offsets), counts)
    if job.tokenizer is None:
        write_lines(job.target, examples, tuple(job.heads))
    else:
        write_records(job.target, _records(job, examples, counts))
    shard = Shard(job.target.name, len(job.offsets), job.target.stat().st_size, sha256(job.target))
    stats = {
        "shard": asdict(shard),
        "labels": {head: numbers.tolist() for head, numbers in counts.labels.items()},
        "lengths": counts.lengths.tolist(),
        "truncated": counts.truncated,
    }
    with atomic_write(job.stats) as file:
        file.write(json.dumps(stats).encode())


def _counted(examples: Iterator[Example], counts: Counts) -> Iterator[Example]:
    for example in examples:
        for head, numbers in counts.labels.items():
            numbers[example.labels[head]] += 1
        yield example


def _records(job: ShardJob, examples: Iterator[Example], counts: Counts) -> Iterator[bytes]:
    while chunk := list(itertools.islice(examples, ROWS)):
        texts = [example.text for example in chunk]
        texts_b = [example.text_b for example in chunk if example.text_b is not None]
        labels = {head: tf.constant([example.labels[head] for example in chunk]) for head in job.heads}
        columns = [tf.constant(column) for column in (texts, texts_b) if column]
        serializer = _serializer(job.tokenizer, len(columns), tuple(job.heads))
        records, lengths, truncated = serializer(columns, labels)
        counts.lengths += np.bincount(lengths.numpy(), minlength=len(counts.lengths))
        counts.truncated += int(truncated.numpy())
        yield from records.numpy()


@functools.lru_cache(maxsize=2)
def _serializer(tokenizer: bytes, texts: int, heads: tuple[str, ...]) -> Callable:
    """One or two columns of texts, and labels, to records, row lengths and the number of truncated rows.

    It is a graph that every process builds once.
    """
    encode = pickle.loads(tokenizer).encode

    def serializer(texts: list[tf.Tensor], labels: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        encoded = encode(*texts)
        records = serialize(encoded.token_ids, encoded.second_start, labels)
        return records, encoded.token_ids.row_lengths(), tf.math.count_nonzero(encoded.truncated)

    columns = [tf.TensorSpec((None,), tf.string)] * texts
    labels = {head: tf.TensorSpec((None,), tf.int32) for head in heads}
    return tf.function(serializer, input_signature=[columns, labels], autograph=False)
