"""One shard: the work of a joblib worker. Examples of a spool in, a shard file and its statistics out."""

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_mtl.records import Shard, atomic_write, sha256, write_lines, write_records
from bert_mtl.tasks import Example
from bert_mtl.tokenization import Tokenizer
from data_prep.spool import read_spool

ROWS = 256  # texts tokenised at once: enough to keep the graph busy, little memory


@dataclass(frozen=True)
class ShardJob:
    """What to write where: the lines at `offsets` of `spool` into `target`; `stats` appears last and marks it done."""

    target: Path
    stats: Path
    spool: Path
    offsets: np.ndarray
    heads: dict[str, int]  # head -> number of labels
    tokenizer: Tokenizer | None  # None writes text

    @property
    def done(self) -> bool:
        return self.stats.exists() and self.target.exists()


def write_shard(job: ShardJob) -> None:
    """Writes the shard and then its statistics, each atomically."""
    labels = {head: np.zeros(count, int) for head, count in job.heads.items()}
    lengths, truncated = np.zeros(0, int), 0
    examples = read_spool(job.spool, job.offsets)
    if job.tokenizer is None:
        write_lines(job.target, _counted(examples, labels), tuple(job.heads))
    else:
        lengths, truncated = _write_tokenised(job, _counted(examples, labels))
    shard = Shard(job.target.name, len(job.offsets), job.target.stat().st_size, sha256(job.target))
    stats = {
        "shard": shard.__dict__,
        "labels": {head: counts.tolist() for head, counts in labels.items()},
        "lengths": lengths.tolist(),
        "truncated": truncated,
    }
    with atomic_write(job.stats) as file:
        file.write(json.dumps(stats).encode())


def _counted(examples, labels):
    for example in examples:
        for head, counts in labels.items():
            counts[example.labels[head]] += 1
        yield example


def _write_tokenised(job: ShardJob, examples) -> tuple[np.ndarray, int]:
    lengths, truncated = np.zeros(job.tokenizer.max_length + 1, int), 0

    def rows():
        nonlocal lengths, truncated
        while chunk := list(itertools.islice(examples, ROWS)):
            texts_b = None if chunk[0].text_b is None else tf.constant([example.text_b for example in chunk])
            encoded = job.tokenizer.encode(tf.constant([example.text for example in chunk]), texts_b)
            ids, second = encoded.token_ids, encoded.second_start.numpy()
            splits, values = ids.row_splits.numpy(), ids.values.numpy()
            lengths += np.bincount(np.diff(splits), minlength=len(lengths))
            truncated += int(encoded.truncated.numpy().sum())
            for row, example in enumerate(chunk):
                yield values[splits[row] : splits[row + 1]], int(second[row]), example.labels

    write_records(job.target, rows())
    return lengths, truncated
