"""One shard: the work of a joblib worker. Examples of a spool in, a shard file and its statistics out."""

import functools
import itertools
import json
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_mtl.atomic import atomic_write
from bert_mtl.encoding import Columns, encode
from bert_mtl.kinds import Head
from bert_mtl.records import Shard, serialize, sha256, write_lines, write_records
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
    heads: tuple[Head, ...]
    columns: Columns
    tokenizer: bytes | None  # pickled; None writes text

    @property
    def done(self) -> bool:
        return self.stats.exists() and self.target.exists()


@dataclass
class Counts:
    """What is to be known of a shard: statistics of each head's labels, lengths of examples in tokens, cut texts."""

    statistics: dict[str, Counter]
    lengths: list[int] = field(default_factory=list)
    truncated: int = 0


def write_shard(job: ShardJob) -> None:
    """Writes the shard and then its statistics, each atomically."""
    counts = Counts({head.name: Counter() for head in job.heads})
    chunks = _counted(job, counts)
    if job.tokenizer is None:
        stored = [label.name for label in job.columns.stored]
        write_lines(job.target, itertools.chain.from_iterable(chunks), stored)
    else:
        write_records(job.target, _records(job, chunks, counts))
    shard = Shard(job.target.name, len(job.offsets), job.target.stat().st_size, sha256(job.target))
    stats = {"shard": asdict(shard), **vars(counts)}
    with atomic_write(job.stats) as file:
        file.write(json.dumps(stats).encode())


def _counted(job: ShardJob, counts: Counts) -> Iterator[list[Example]]:
    """The examples in chunks, their labels counted."""
    examples = read_spool(job.spool, job.offsets)
    specs = {label.name: label for label in job.columns.stored}
    while chunk := list(itertools.islice(examples, ROWS)):
        for head in job.heads:
            if head.name in specs:
                numbers = [n for example in chunk for n in example.labels[head.name]]
                labels = np.asarray(numbers, specs[head.name].dtype).reshape(-1, *specs[head.name].shape)
                counts.statistics[head.name].update(head.count(labels))
        yield chunk


def _records(job: ShardJob, chunks: Iterator[list[Example]], counts: Counts) -> Iterator[bytes]:
    serializer = _serializer(job.tokenizer, job.columns)
    for chunk in chunks:
        columns = [tf.constant([example.text for example in chunk])]
        if job.columns.pair:
            columns.append(tf.constant([example.text_b for example in chunk]))
        labels = {
            spec.name: tf.ragged.constant([example.labels[spec.name] for example in chunk], spec.dtype, ragged_rank=1)
            for spec in job.columns.stored
        }
        records, lengths, truncated = serializer(columns, labels)
        counts.lengths += lengths.numpy().tolist()
        counts.truncated += int(truncated.numpy())
        yield from records.numpy()


@functools.lru_cache(maxsize=2)
def _serializer(tokenizer: bytes, columns: Columns) -> Callable:
    """One or two columns of texts, and labels ragged `(n, None)`, to records, lengths and the number of cut texts.

    It is a graph that every process builds once.
    """
    built = pickle.loads(tokenizer)

    def serializer(texts: list[tf.Tensor], labels: dict) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        record = encode(built, columns, texts[0], texts[1] if columns.pair else None, labels)
        stored = serialize(record.token_ids, record.second_start, record.labels)
        return stored, record.token_ids.row_lengths(), tf.math.count_nonzero(record.truncated)

    texts = [tf.TensorSpec((None,), tf.string)] * (1 + columns.pair)
    labels = {spec.name: tf.RaggedTensorSpec((None, None), tf.as_dtype(spec.dtype)) for spec in columns.stored}
    return tf.function(serializer, input_signature=[texts, labels], autograph=False)
