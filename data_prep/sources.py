"""Readers: one raw format in, rows out, streamed.

`read(source, part, task)` yields `Row`s: the values of the fields and heads of a task, and where they stood.
"""

import csv
import gzip
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from bert_mtl.config import PARTS, SourceConfig, TaskConfig
from bert_mtl.tasks import DataError
from conf.errors import Problem

BUILTIN = Path(__file__).parent / "sample"
DELIMITERS = {"csv": ",", "tsv": "\t"}
IMDB_LABELS = {"train": ("neg", "pos"), "test": ("neg", "pos"), "unsup": ("unsup",)}


class Row(NamedTuple):
    """Raw values by field (`text`, `text_b`, or the name of a head), and `origin` such as `reviews.csv:12`."""

    values: dict[str, str]
    origin: str


def part_paths(source: SourceConfig) -> dict[str, Path]:
    """Where each part of a source is. One file or folder without `{part}` is the train part (IMDB: all parts).

    Raises:
        DataError: nothing is there, or no train part.
    """
    paths: dict[str, Path]
    if isinstance(source.path, dict):
        paths = {part: _local(path) for part, path in source.path.items()}
    elif "{part}" in str(source.path):
        every = {part: _local(str(source.path).replace("{part}", part)) for part in PARTS}
        paths = {part: path for part, path in every.items() if part == "train" or path.exists()}
    else:
        parts = tuple(IMDB_LABELS) if source.format == "aclimdb" else ("train",)
        paths = dict.fromkeys(parts, _local(str(source.path)))
    for path in paths.values():
        if not path.exists():
            raise DataError(f"the source's path must be an existing file or folder; got {path}.")
    if "train" not in paths:
        raise DataError(f"the source's path must give a train part; got {', '.join(paths)}.")
    return paths


def _local(path: str) -> Path:
    """`builtin://x` is a file shipped with the project."""
    return BUILTIN / path.removeprefix("builtin://") if path.startswith("builtin://") else Path(path).expanduser()


def read(source: SourceConfig, part: str, task: TaskConfig) -> Iterator[Row]:
    """The rows of one part, in the source's own order, streamed.

    Where the source's columns do not say otherwise, the text is read from the column `text` and the label from `label`
    (of several heads: from the columns of their names). The folder formats take the label of the first head from the
    folder's name.

    Raises:
        DataError: the file, the line or the column that is wrong, and what was expected.
    """
    path, head = part_paths(source)[part], next(iter(task.heads))
    if source.format == "aclimdb":
        return _aclimdb(path, part, head)
    if source.format == "folder":
        return _folder(path, head, task.heads[head].labels)
    defaults = {name: "label" if len(task.heads) == 1 else name for name in task.heads}
    columns = {"text": "text"} | defaults | source.columns
    return _jsonl(path, columns) if source.format == "jsonl" else _table(path, columns, DELIMITERS[source.format])


def read_texts(path: Path) -> Iterator[Row]:
    """The texts of a user's file, to be answered: .txt (one a line), .jsonl, .csv or .tsv (column `text`, and `text_b`
    for pairs), or .gz of these.

    Raises:
        DataError: another kind of file, a missing column, an empty text, or bytes that are not UTF-8.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if not path.exists():
        raise DataError(f"input must be an existing file; got {path}.")
    rows: Iterator[Row]
    if suffix == ".txt":
        rows = (Row({"text": line.rstrip("\r\n")}, f"{path.name}:{number}") for number, line in _lines(path))
    elif suffix == ".jsonl":
        rows = _jsonl(path, {"text": "text"}, optional="text_b")
    elif suffix in (".csv", ".tsv"):
        rows = _table(path, {"text": "text"}, DELIMITERS[suffix[1:]], optional="text_b")
    else:
        options = (".txt", ".jsonl", ".csv", ".tsv")
        raise DataError(str(Problem("input", "end in a known kind of file", path.name, options)))
    for row in rows:
        for field, text in row.values.items():
            if not text.strip():
                raise DataError(f"{row.origin}: {field} must not be empty; got {text!r}.")
        yield row


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says of every failure to read `path` what it means."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        size = path.stat().st_size
        raise DataError(f"{path} is damaged or truncated ({error}; it has {size:,} bytes). Fetch it again.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _open(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked where they are gzip's, whatever its name."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else open(path, "rb")  # type: ignore[return-value]


def _decode(data: bytes, origin: str, offset: int = 0) -> str:
    """The text of bytes that begin at `offset` of their file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{origin}: the text must be UTF-8; got byte 0x{data[error.start]:02x} at offset {offset + error.start:,} "
            "of the file. Convert it (iconv -f latin1 -t utf-8, say)."
        ) from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, plain or gzip'd, a byte order mark dropped."""
    offset = 0
    with _reading(path), _open(path) as file:
        for number, line in enumerate(file, 1):
            text = _decode(line, f"{path.name}:{number}", offset)
            yield number, text.removeprefix("\ufeff") if number == 1 else text
            offset += len(line)


def _places(columns: dict[str, str], names: list[str], origin: str) -> None:
    for field, column in columns.items():
        if column not in names:
            raise DataError(f"{origin}: {Problem(f'columns.{field}', 'name a column of the file', column, names)}")


def _jsonl(path: Path, columns: dict[str, str], optional: str | None = None) -> Iterator[Row]:
    for number, line in _lines(path):
        origin = f"{path.name}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{origin}: the line must be one JSON object; {error}.") from None
        if not isinstance(record, dict):
            raise DataError(f"{origin}: the line must be one JSON object; got {line.strip()[:60]}.")
        named = columns | {optional: optional} if optional and record.get(optional) is not None else columns
        if not record.keys() >= set(named.values()):
            _places(named, list(record), origin)
        yield Row({field: _json_text(record[column], column, origin) for field, column in named.items()}, origin)


def _json_text(value: object, column: str, origin: str) -> str:
    if isinstance(value, int | float):
        return json.dumps(value)  # a label such as 1 or true
    if not isinstance(value, str):
        raise DataError(f"{origin}: {column} must be text or a number; got {json.dumps(value)[:60]}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise DataError(f"{origin}: {column} must be Unicode text; got half of a surrogate pair, {half}.") from None
    return value


def _table(path: Path, columns: dict[str, str], delimiter: str, optional: str | None = None) -> Iterator[Row]:
    """A table whose first line names the columns; quoted by `"` where the delimiter is a comma."""
    quoting: Any = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(1 << 30)
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, quoting=quoting, strict=True)
    try:
        header = next(reader, [])
        if optional in header:
            columns = columns | {optional: optional}
        _places(columns, header, f"{path.name}:1")
        places = {field: header.index(column) for field, column in columns.items()}
        for values in reader:
            origin = f"{path.name}:{reader.line_num}"
            if len(values) == len(header):
                yield Row({field: values[place] for field, place in places.items()}, origin)
            elif values:
                hint = "" if delimiter == "\t" else ' A value that holds a comma is written in "quotes".'
                raise DataError(f"{origin}: a row must have {len(header)} values as line 1; got {len(values)}.{hint}")
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.line_num}: the row must be valid CSV; {error}.") from None


def _folder(path: Path, head: str, labels: list[str]) -> Iterator[Row]:
    with _reading(path):
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    names = [folder.name for folder in folders]
    for label in labels:
        if label not in names:
            raise DataError(f"{path}: {Problem('its folders', f'name every label of head {head}', label, names)}")
    for folder in folders:
        files = _text_files(folder)
        if not files:
            raise DataError(f"{folder} must hold .txt files, one text each; got none.")
        for file in files:
            origin = f"{folder.name}/{file.name}"
            with _reading(file):
                yield Row({"text": _decode(file.read_bytes(), origin), head: folder.name}, origin)


def _text_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))


def _aclimdb(path: Path, part: str, head: str) -> Iterator[Row]:
    """The Large Movie Review Dataset, its archive (one pass) or folder: `[aclImdb/]<part>/<label>/<id>_<stars>.txt`."""
    parent = "train" if part == "unsup" else part  # the unlabelled reviews stand in train/unsup
    found = dict.fromkeys((f"{parent}/{label}" for label in IMDB_LABELS[part]), 0)
    for name, data in _archive_files(path) if path.is_file() else _folder_files(path, list(found)):
        *_, folder, label, file = ("", "", *name.split("/"))
        if f"{folder}/{label}" in found and file.endswith(".txt") and not file.startswith("."):
            found[f"{folder}/{label}"] += 1
            origin = f"{folder}/{label}/{file}"
            yield Row({"text": _decode(data, origin), head: label}, origin)
    if missing := [folder for folder, files in found.items() if not files]:
        raise DataError(f"{path} must hold reviews in {' and '.join(found)}; got none in {', '.join(missing)}.")


def _folder_files(path: Path, folders: list[str]) -> Iterator[tuple[str, bytes]]:
    root = path / "aclImdb" if (path / "aclImdb").is_dir() else path
    for folder in folders:
        for file in _text_files(root / folder):
            with _reading(file):
                yield f"{folder}/{file.name}", file.read_bytes()


def _archive_files(path: Path) -> Iterator[tuple[str, bytes]]:
    with _reading(path), _open(path) as file, tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            if member.isfile() and (content := archive.extractfile(member)):
                yield member.name, content.read()
        # tarfile takes a cut for the end: a gzip file is read to its own end, and a plain archive ends with zeros
        while file.read(1 << 20):
            pass
        if not isinstance(file, gzip.GzipFile):
            file.seek(-tarfile.BLOCKSIZE, os.SEEK_END)
            if file.read().strip(b"\0"):
                raise EOFError("its end is missing")
