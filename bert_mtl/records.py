"""The contract between data_prep and training: shards of examples beside a manifest.json.

A records folder holds, for every part, `<part>-00000-of-00004.tfrecord` (tokenised) or `.tsv` (text) shards:
    TFRecord: tf.train.Example with the features `token_ids` (int64 list), `second_start` (int64) and `label.<head>`
        (int64 or float list: the numbers of one label; of token heads one number a token)
    TSV: one example a line: each head's label as numbers between spaces (of token heads one a word), then text, then
        text_b for pairs
Beside them stands `<part>-lengths-<tokenizer>.npy`: how many tokens each example has, in stored order.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_mtl.atomic import atomic_write, replacing
from bert_mtl.labels import LabelSpec
from bert_mtl.tasks import DataError, Example

FORMAT = 3  # raised when the meaning of a shard changes: older folders are then rebuilt
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
    """What one part holds; `statistics` are those of each head's labels (`Head.count`), `truncated` the number of cut
    texts (None for text shards)."""

    shards: tuple[Shard, ...]
    statistics: dict[str, dict[str, float]]
    truncated: int | None

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
                part["statistics"],
                part["truncated"],
            )
            for name, part in raw.pop("parts").items()
        }
        return Manifest(parts=parts, **raw)
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
    with replacing(path, tf.errors.OpError) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
        for record in records:
            writer.write(record)


def lengths_file(folder: Path, part: str, tokenizer: str) -> Path:
    """Where the lengths of a part's examples `(examples,)` stand, for a tokenizer of that fingerprint."""
    return folder / f"{part}-lengths-{tokenizer[:12]}.npy"


def save_lengths(folder: Path, part: str, tokenizer: str, lengths: np.ndarray) -> None:
    """Writes the lengths of a part's examples, atomically."""
    with atomic_write(lengths_file(folder, part, tokenizer)) as file:
        np.save(file, lengths.astype(np.int32))


def write_lines(path: Path, examples: Iterable[Example], heads: Sequence[str]) -> None:
    """Writes one TSV shard, atomically."""
    with atomic_write(path) as file:
        for example in examples:
            labels = [" ".join(map(str, example.labels[head])) for head in heads]
            texts = [example.text] if example.text_b is None else [example.text, example.text_b]
            file.write(("\t".join(labels + texts) + "\n").encode())


def serialize(token_ids: tf.RaggedTensor, second_start: tf.Tensor, labels: Mapping[str, tf.RaggedTensor]) -> tf.Tensor:
    """`(n,)` serialised records, in the graph: what `parse_records` reads, equal to `tf.train.Example`'s own bytes.

    `labels` holds `(n, None)` numbers by head, int32 or float32.
    """
    start = tf.RaggedTensor.from_tensor(second_start[:, None])
    features = {f"label.{head}": values for head, values in labels.items()} | {"second_start": start}
    features = dict(sorted(features.items())) | {"token_ids": token_ids}
    entries = [_entry(name, values) for name, values in features.items()]
    return _message("Example", features=[_message("Features", feature=entries)])


def _entry(name: str, values: tf.RaggedTensor) -> tf.Tensor:
    """One feature of numbers `(n, None)`, by its name."""
    lengths = tf.cast(values.row_lengths(), tf.int32)[:, None]
    kind, dtype = ("Float", tf.float32) if values.dtype == tf.float32 else ("Int64", tf.int64)
    packed = tf.io.encode_proto(lengths, [tf.cast(values.to_tensor(), dtype)], ["value"], f"tensorflow.{kind}List")
    feature = _message("Feature", **{f"{kind.lower()}_list": [packed]})
    return _message("Features.FeatureEntry", key=[tf.fill(tf.shape(packed), name)], value=[feature])


def _message(kind: str, **fields: list[tf.Tensor]) -> tf.Tensor:
    """`(n,)` serialised messages; every field takes as many values of each message as it has tensors `(n,)`."""
    values = [tf.stack(field, axis=1) for field in fields.values()]
    sizes = tf.ones_like(values[0][:, :1], tf.int32) * tf.constant([[len(field) for field in fields.values()]])
    return tf.io.encode_proto(sizes, values, list(fields), f"tensorflow.{kind}")


def parse_records(serialized: tf.Tensor, labels: Sequence[LabelSpec]) -> tuple[tf.RaggedTensor, tf.Tensor, dict]:
    """`(n,)` serialised records -> `token_ids` ragged `(n, None)` and `second_start` `(n,)`, int32, and the labels by
    head: `(n, *shape)`, of token heads ragged `(n, None)`, each of its dtype; in the graph."""
    spec: dict = {"token_ids": tf.io.RaggedFeature(tf.int64), "second_start": tf.io.FixedLenFeature([], tf.int64)}
    for label in labels:
        dtype = tf.float32 if label.dtype == "float32" else tf.int64
        ragged = tf.io.RaggedFeature(dtype)
        spec[f"label.{label.name}"] = ragged if label.level == "token" else tf.io.FixedLenFeature(label.shape, dtype)
    parsed = tf.io.parse_example(serialized, spec)
    parsed = {name: tf.cast(v, tf.int32) if v.dtype == tf.int64 else v for name, v in parsed.items()}
    return parsed.pop("token_ids"), parsed.pop("second_start"), {k.removeprefix("label."): v for k, v in parsed.items()}


def parse_lines(lines: tf.Tensor, labels: Sequence[LabelSpec], pair: bool) -> tuple[tf.Tensor, tf.Tensor | None, dict]:
    """`(n,)` TSV lines -> texts `(n,)`, second texts `(n,)` or None, and the labels by head: `(n, *shape)`, of token
    heads ragged `(n, words)`; in the graph."""
    fields = tf.strings.split(lines, "\t").to_tensor(shape=(None, len(labels) + 1 + pair))
    found = {}
    for place, label in enumerate(labels):
        numbers = tf.strings.split(fields[:, place], " ")
        # By way of float64, as records are written: a decimal rounded to float32 at once may differ in its last bit.
        numbers = numbers.with_values(tf.cast(tf.strings.to_number(numbers.values, tf.float64), label.dtype))
        found[label.name] = numbers if label.level == "token" else tf.reshape(numbers.values, (-1, *label.shape))
    return fields[:, len(labels)], fields[:, len(labels) + 1] if pair else None, found


def by_token(labels: tf.RaggedTensor, words: tf.RaggedTensor) -> tf.RaggedTensor:
    """Labels of words `(n, words)` as labels of tokens `(n, tokens)`; `words` tells the word that a token begins, or -1
    (`Tokenizer.encode_words`), which then is the label."""
    place = words.values + tf.repeat(tf.cast(labels.row_starts(), tf.int32), words.row_lengths())
    padded = tf.concat([labels.values, tf.constant([-1], labels.dtype)], axis=0)
    return words.with_values(tf.gather(padded, tf.where(words.values < 0, tf.size(labels.values), place)))
