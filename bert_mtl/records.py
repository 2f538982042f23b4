"""The contract between data_prep and training: shards of examples beside a manifest.json.

A records folder holds, for every part, `<part>-00000-of-00004.tfrecord` (tokenised) or `.tsv` (text) shards:
    TFRecord: tf.train.Example with int64 features `token_ids` (list), `second_start` and `label.<head>`
    TSV: one example a line: the id of each head's label, then text, then text_b for pairs
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import tensorflow as tf

from bert_mtl.tasks import DataError, Example

FORMAT = 2  # raised when the meaning of a shard changes: older folders are then rebuilt
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
    """manifest.json: which task and source, and every part.

    `fingerprint` covers all that decides what the shards hold; `data` the same without the tokenizer: which examples
    make up which part.
    """

    task: str
    source: str
    fingerprint: str
    data: str
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
def _replacing(path: Path) -> Iterator[Path]:
    """A path to write to, whose file then takes the place of `path`, or vanishes when something goes wrong."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except (OSError, tf.errors.OpError) as error:
        if isinstance(error, OSError) and error.filename not in (None, *map(str, (path, path.parent, temporary))):
            raise  # of another file, which the block reads
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} could not be written: {reason}. What was there before is untouched.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under `path` whole or not at all, also when the disk is full or the process killed.

    Raises:
        DataError: it cannot be written.
    """
    with _replacing(path) as temporary, open(temporary, "wb") as file:
        yield file


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process (or thread) at a time make `path`; the others wait, and find it made.

    Raises:
        DataError: its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_name(f".{path.name}.lock"), "w")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise DataError(f"{path} could not be written: {error.strerror or error}.") from error
    with file:
        yield


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Writes serialised records (see `serialize`) as one TFRecord shard, atomically."""
    with _replacing(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
        for record in records:
            writer.write(record)


def write_lines(path: Path, examples: Iterable[Example], heads: Sequence[str]) -> None:
    """Writes one TSV shard, atomically."""
    with atomic_write(path) as file:
        for example in examples:
            labels = [str(example.labels[head]) for head in heads]
            texts = [example.text] if example.text_b is None else [example.text, example.text_b]
            file.write(("\t".join(labels + texts) + "\n").encode())


def serialize(token_ids: tf.RaggedTensor, second_start: tf.Tensor, labels: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """`(n,)` serialised records, in the graph: what `parse_records` reads, equal to `tf.train.Example`'s own bytes."""
    columns = {f"label.{head}": ids for head, ids in sorted(labels.items())} | {"second_start": second_start}
    features = {name: tf.RaggedTensor.from_tensor(values[:, None]) for name, values in columns.items()}
    entries = [_entry(name, values) for name, values in (features | {"token_ids": token_ids}).items()]
    return _message("Example", features=[_message("Features", feature=entries)])


def _entry(name: str, values: tf.RaggedTensor) -> tf.Tensor:
    """One feature of integers `(n, None)`, by its name."""
    lengths = tf.cast(values.row_lengths(), tf.int32)[:, None]
    numbers = tf.cast(values.to_tensor(), tf.int64)
    packed = tf.io.encode_proto(lengths, [numbers], ["value"], "tensorflow.Int64List")
    feature = _message("Feature", int64_list=[packed])
    return _message("Features.FeatureEntry", key=[tf.fill(tf.shape(packed), name)], value=[feature])


def _message(kind: str, **fields: list[tf.Tensor]) -> tf.Tensor:
    """`(n,)` serialised messages; every field takes as many values of each message as it has tensors `(n,)`."""
    values = [tf.stack(field, axis=1) for field in fields.values()]
    sizes = tf.ones_like(values[0][:, :1], tf.int32) * tf.constant([[len(field) for field in fields.values()]])
    return tf.io.encode_proto(sizes, values, list(fields), f"tensorflow.{kind}")


def parse_records(serialized: tf.Tensor, heads: Sequence[str]) -> dict:
    """`(n,)` serialised records -> int32 `token_ids` ragged `(n, None)`, `second_start` and `label.<head>` `(n,)`."""
    spec = {"token_ids": tf.io.RaggedFeature(tf.int64), "second_start": tf.io.FixedLenFeature([], tf.int64)}
    spec |= {f"label.{head}": tf.io.FixedLenFeature([], tf.int64) for head in heads}
    return {name: tf.cast(value, tf.int32) for name, value in tf.io.parse_example(serialized, spec).items()}


def parse_lines(lines: tf.Tensor, heads: Sequence[str], pair: bool) -> tuple[tf.Tensor, tf.Tensor | None, dict]:
    """`(n,)` TSV lines -> texts `(n,)`, second texts `(n,)` or None, and `label.<head>` `(n,)` int32; in the graph."""
    columns = len(heads) + 1 + pair
    fields = tf.strings.split(lines, "\t").to_tensor(shape=(None, columns))
    labels = {f"label.{head}": tf.strings.to_number(fields[:, i], tf.int32) for i, head in enumerate(heads)}
    return fields[:, len(heads)], fields[:, len(heads) + 1] if pair else None, labels
