"""Readers: one raw format in, rows out, streamed.

`read(source, part)` yields `Row`s: the values of the fields and heads named in the source's columns, and where they stood.
"""

import codecs
import csv
import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from bert_mtl.config import SourceConfig
from bert_mtl.tasks import DataError
from conf.errors import Problem

BUILTIN = Path(__file__).parent / "sample"
IMDB_LABELS = {"train": ("neg", "pos"), "test": ("neg", "pos"), "unsup": ("unsup",)}


class Row(NamedTuple):
    """Raw values by field (`text`, `text_b`, or the name of a head), and `origin` such as `reviews.csv:12`."""

    values: dict[str, str]
    origin: str


def local_path(path: str) -> Path:
    """A path of the configuration as a file path: `builtin://x` is a file shipped with the project."""
    return BUILTIN / path.removeprefix("builtin://") if path.startswith("builtin://") else Path(path)


def part_paths(source: SourceConfig) -> dict[str, Path]:
    """Where each part of a source is. One file or folder without `{part}` is the train part (IMDB: all parts).

    Raises:
        DataError: nothing is there.
    """
    if isinstance(source.path, dict):
        paths = {part: local_path(path) for part, path in source.path.items()}
    elif "{part}" in str(source.path):
        every = {part: local_path(str(source.path).format(part=part)) for part in ("train", "dev", "test")}
        paths = {part: path for part, path in every.items() if path.exists()} or every
    elif source.format == "aclimdb":
        paths = {part: local_path(str(source.path)) for part in IMDB_LABELS}
    else:
        paths = {"train": local_path(str(source.path))}
    for path in paths.values():
        if not path.exists():
            raise DataError(f"data.path must be an existing file or folder; got {path}.")
    return paths


def read(source: SourceConfig, part: str, head: str) -> Iterator[Row]:
    """The rows of one part, in the source's own order, streamed.

    `head` takes the label that a folder's name gives, or the column `label` where the source names no columns.

    Raises:
        DataError: the file, the line or the column that is wrong, and what was expected.
    """
    path = part_paths(source)[part]
    columns = source.columns or {"text": "text", head: "label"}
    if source.format == "aclimdb":
        return _aclimdb(path, part, head)
    if source.format == "folder":
        return _folder(path, head)
    if source.format == "jsonl":
        return _jsonl(path, columns)
    return _table(path, columns, "\t" if source.format == "tsv" else ",")


def read_texts(path: Path) -> Iterator[Row]:
    """The texts of a user's file, to be answered: .txt (one a line), .jsonl, .csv or .tsv (`text`, and `text_b` for pairs), or .gz of these.

    Raises:
        DataError: another kind of file, a missing column, an empty text, or bytes that are not UTF-8.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if not path.exists():
        raise DataError(f"input must be an existing file; got {path}.")
    if suffix == ".txt":
        rows: Iterator[Row] = (Row({"text": line.rstrip("\r\n")}, f"{path.name}:{n}") for n, line in _lines(path))
    elif suffix == ".jsonl":
        rows = _jsonl(path, {"text": "text"}, optional="text_b")
    elif suffix in (".csv", ".tsv"):
        rows = _table(path, {"text": "text"}, "\t" if suffix == ".tsv" else ",", optional="text_b")
    else:
        raise DataError(str(Problem("input", "end in a known kind of file", path.name, (".txt", ".jsonl", ".csv", ".tsv"))))
    for row in rows:
        if not row.values["text"].strip():
            raise DataError(f"{row.origin}: text must not be empty; got {row.values['text']!r}.")
        yield row


def _decode(data: bytes, origin: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{origin}: the text must be UTF-8; got byte 0x{data[error.start]:02x} at offset {error.start}. "
            "Convert the file (iconv -f latin1 -t utf-8, say)."
        ) from None


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, plain or gzip'd, a byte order mark dropped."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield number, _decode(line, f"{path.name}:{number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged or truncated ({error}). Fetch it again.") from error
    except IsADirectoryError:
        raise DataError(f"{path} must be a file; got a folder.") from None


def _pick(record: dict, columns: dict[str, str], origin: str, optional: str | None) -> Row:
    values = {optional: str(record[optional])} if optional and record.get(optional) is not None else {}
    for field, column in columns.items():
        if column not in record or record[column] is None:
            problem = Problem(f"columns.{field}", "name a column that is there", column, [str(name) for name in record])
            raise DataError(f"{origin}: {problem}")
        values[field] = str(record[column])
    return Row(values, origin)


def _jsonl(path: Path, columns: dict[str, str], optional: str | None = None) -> Iterator[Row]:
    for number, line in _lines(path):
        origin = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{origin}: the line must be one JSON object; {error}.") from None
        if not isinstance(record, dict):
            raise DataError(f"{origin}: the line must be one JSON object; got {line.strip()[:60]}.")
        yield _pick(record, columns, origin, optional)


def _table(path: Path, columns: dict[str, str], delimiter: str, optional: str | None = None) -> Iterator[Row]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(1 << 30)
    reader = csv.DictReader((line for _, line in _lines(path)), delimiter=delimiter, quoting=quoting, restval=None)
    try:
        for record in reader:
            named = {name: value for name, value in record.items() if name is not None}
            yield _pick(named, columns, f"{path.name}:{reader.line_num}", optional)
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.line_num}: the line must be valid CSV; {error}.") from None


def _folder(path: Path, head: str) -> Iterator[Row]:
    labels = sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    if not labels:
        raise DataError(f"{path} must hold one folder a label; got none.")
    for label in labels:
        files = sorted(label.glob("*.txt"))
        if not files:
            raise DataError(f"{label} must hold .txt files, one text each; got none.")
        for file in files:
            origin = f"{label.name}/{file.name}"
            yield Row({"text": _decode(file.read_bytes(), origin), head: label.name}, origin)


def _aclimdb(path: Path, part: str, head: str) -> Iterator[Row]:
    """The Large Movie Review Dataset, from its archive (one pass) or its folder: `[aclImdb/]<part>/<label>/<id>_<stars>.txt`."""
    # the unlabelled reviews stand in train/unsup
    folders = {("train" if part == "unsup" else part, label): 0 for label in IMDB_LABELS[part]}
    for name, data in _archive_files(path) if path.is_file() else _folder_files(path, list(folders)):
        key = tuple(name.split("/")[-3:-1])
        if key in folders and name.endswith(".txt"):
            folders[key] += 1
            origin = "/".join(name.split("/")[-3:])
            yield Row({"text": _decode(data, origin), head: key[1]}, origin)
    missing = [f"{parent}/{label}" for (parent, label), files in folders.items() if not files]
    if missing:
        raise DataError(f"{path} must hold reviews in {' and '.join('/'.join(k) for k in folders)}; got none in {', '.join(missing)}.")


def _folder_files(path: Path, folders: list[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    root = path if (path / folders[0][0]).is_dir() else path / "aclImdb"
    for parent, label in folders:
        for file in sorted((root / parent / label).glob("*.txt")):
            yield f"{parent}/{label}/{file.name}", file.read_bytes()


def _archive_files(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and isinstance(content := archive.extractfile(member), io.BufferedReader):
                    yield member.name, content.read()
    except (EOFError, tarfile.ReadError, zlib.error, OSError) as error:
        raise DataError(f"{path} is damaged or truncated ({error}). Fetch it again; got {path.stat().st_size} bytes.") from error
