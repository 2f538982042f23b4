"""The contract between data_prep and training: shards of examples beside a manifest.json.

A records folder holds, for every part, `<part>-00000-of-00004.tfrecord` (tokenised) or `.tsv` (text) shards:
    TFRecord: tf.train.Example with int64 features `token_ids` (list), `second_start` and `label.<head>`
    TSV: one example a line: the id of each head's label, then text, then text_b for pairs; tabs and line ends become spaces, as
         BERT's tokenizer reads them
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_mtl.tasks import DataError, Example

FORMAT = 1  # raised when the meaning of a shard changes: older folders are then rebuilt
TO_SPACE = str.maketrans("\t\n\r", "   ")
SUFFIX = {"tfrecord": ".tfrecord", "generator": ".tsv", "textline": ".tsv"}


@dataclass(frozen=True)
class Shard:
    """One shard file: its count of examples, bytes and SHA-256."""

    file: str
    examples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class PartManifest:
    """What one part holds. `lengths` counts the examples by row length in tokens (empty for text shards)."""

    shards: tuple[Shard, ...]
    labels: dict[str, dict[str, int]]
    lengths: tuple[int, ...]
    truncated: int

    @property
    def examples(self) -> int:
        return sum(shard.examples for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """manifest.json: which task and source, by which fingerprint, and every part."""

    task: str
    source: str
    fingerprint: str
    heads: tuple[str, ...]
    pair: bool
    parts: dict[str, PartManifest]
    format: int = FORMAT

    def save(self, folder: Path) -> None:
        with atomic_write(folder / "manifest.json") as file:
            file.write(json.dumps(asdict(self), indent=1).encode())


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a records folder. Raises DataError where it is missing or unreadable."""
    path = folder / "manifest.json"
    try:
        raw = json.loads(path.read_text())
        parts = {
            name: PartManifest(
                tuple(Shard(**shard) for shard in part["shards"]),
                part["labels"],
                tuple(part["lengths"]),
                part["truncated"],
            )
            for name, part in raw.pop("parts").items()
        }
        return Manifest(parts=parts, heads=tuple(raw.pop("heads")), **raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}). Build it again with data.rebuild=true.") from error


def check_shards(folder: Path, manifest: Manifest) -> None:
    """Compares every shard with the manifest. Raises DataError naming the first that is missing or damaged."""
    for part in manifest.parts.values():
        for shard in part.shards:
            path = folder / shard.file
            found = sha256(path) if path.exists() else "no file"
            if found != shard.sha256:
                raise DataError(
                    f"{path} is damaged: its SHA-256 must be {shard.sha256}; got {found}. "
                    "Build it again with data.rebuild=true."
                )


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_write(path: Path) -> Iterator:
    """A binary file that appears under `path` whole or not at all, also when the disk is full or the process killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_records(path: Path, rows: Iterable[tuple[np.ndarray, int, Mapping[str, int]]]) -> None:
    """Writes one TFRecord shard atomically; a row is its token ids, its `second_start` and its label ids by head."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for token_ids, second_start, labels in rows:
                features = {"token_ids": _integers(token_ids), "second_start": _integers([second_start])}
                features |= {f"label.{head}": _integers([label]) for head, label in labels.items()}
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
        os.replace(temporary, path)
    except (OSError, tf.errors.OpError) as error:
        raise DataError(f"{path} could not be written: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _integers(values: Iterable[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def write_lines(path: Path, examples: Iterable[Example], heads: Sequence[str]) -> None:
    """Writes one TSV shard atomically."""
    with atomic_write(path) as file:
        for example in examples:
            fields = [str(example.labels[head]) for head in heads]
            fields += [text.translate(TO_SPACE) for text in (example.text, example.text_b) if text is not None]
            file.write(("\t".join(fields) + "\n").encode())


def parse_records(serialized: tf.Tensor, heads: Sequence[str]) -> dict:
    """`(n,)` serialised records -> `token_ids` ragged `(n, None)` int32, `second_start` and `label.<head>` `(n,)` int32."""
    spec = {"token_ids": tf.io.RaggedFeature(tf.int64), "second_start": tf.io.FixedLenFeature([], tf.int64)}
    spec |= {f"label.{head}": tf.io.FixedLenFeature([], tf.int64) for head in heads}
    return {name: tf.cast(value, tf.int32) for name, value in tf.io.parse_example(serialized, spec).items()}


def parse_lines(lines: tf.Tensor, heads: Sequence[str], pair: bool) -> tuple[tf.Tensor, tf.Tensor | None, dict]:
    """`(n,)` TSV lines -> texts `(n,)`, second texts `(n,)` or None, and `label.<head>` `(n,)` int32; in the graph."""
    columns = len(heads) + 1 + pair
    fields = tf.strings.split(lines, "\t").to_tensor(shape=(None, columns))
    labels = {f"label.{head}": tf.strings.to_number(fields[:, i], tf.int32) for i, head in enumerate(heads)}
    return fields[:, len(heads)], fields[:, len(heads) + 1] if pair else None, labels
