"""Raw formats: one reader each, from a file to records (values by column, and where they stood), streamed.

A reader is handed the columns that are wanted of its records, by field; `data_prep.sources` makes rows of them.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from bert_mtl.tasks import DataError
from conf.errors import Problem
from data_prep.files import File, archive_files, byte_lines, decode, lines, reading

Column = str | int  # by name, or by number in files that name no columns
Columns = Mapping[str, Column | list[Column]]
Record = tuple[dict[Column, Any], str]  # values by column, and their origin: `reviews.csv:12`

IMDB_LABELS = {"train": ("neg", "pos"), "test": ("neg", "pos"), "unsup": ("unsup",)}
PIECE = 192  # words; with as many wordpieces as texts usually have, a row of 256 tokens holds a piece


def flat(columns: Columns) -> list[Column]:
    """Every column that is wanted."""
    return [name for column in columns.values() for name in (column if isinstance(column, list) else [column])]


def check_columns(columns: Columns, there: Iterable[Column], origin: str) -> None:
    """Raises DataError for the first column that is not there, or is there twice."""
    names = list(there)
    for field, column in columns.items():
        for name in column if isinstance(column, list) else [column]:
            key = f"columns.{field}"
            if name not in names:
                raise DataError(f"{origin}: {Problem(key, 'name a column of the file', name, names)}")
            if names.count(name) > 1:
                raise DataError(f"{origin}: {key} must name one column; got {name}, the name of {names.count(name)}.")


def jsonl(file: File, columns: Columns) -> Iterator[Record]:
    """One JSON object a line; empty lines are passed over."""
    for number, line in lines(file):
        origin = f"{file.name}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{origin}: the line must be one JSON object; {error}.") from None
        if not isinstance(record, dict):
            raise DataError(f"{origin}: the line must be one JSON object; got {line.strip()[:60]}.")
        yield record, origin


def table(file: File, columns: Columns, delimiter: str) -> Iterator[Record]:
    """A table, quoted by `"` where the delimiter is a comma.

    Its first line names the columns, unless those wanted are given by number (from 0; -1 is the last).
    """
    quoting: Any = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(1 << 30)
    reader = csv.reader((line for _, line in lines(file)), delimiter=delimiter, quoting=quoting, strict=True)
    nameless = any(isinstance(column, int) for column in flat(columns))
    try:
        header = [] if nameless else next(reader, [])
        if not nameless:
            check_columns(columns, header, f"{file.name}:1")
        for values in reader:
            origin = f"{file.name}:{reader.line_num}"
            if nameless and values:
                yield _numbered(values), origin
            elif len(values) == len(header):
                yield dict(zip(header, values, strict=True)), origin
            elif values:
                hint = "" if delimiter == "\t" else ' A value that holds a comma is written in "quotes".'
                raise DataError(f"{origin}: a row must have {len(header)} values as line 1; got {len(values)}.{hint}")
    except csv.Error as error:
        raise DataError(f"{file.name}:{reader.line_num}: the row must be valid CSV; {error}.") from None


def conll(file: File, columns: Columns) -> Iterator[Record]:
    """A word and its tags a line, columns by number between tabs (or else white space); an empty line ends a text."""
    words: list[list[str]] = []
    begin = 0
    for number, line in chain(lines(file), [(0, "")]):
        cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
        if line.strip() and cells[0] != "-DOCSTART-":
            begin = begin if words else number
            if words and len(cells) != len(words[0]):
                rule = f"must have {len(words[0])} columns as those before"
                raise DataError(f"{file.name}:{number}: a line {rule}; got {len(cells)}. An empty line ends a text.")
            words.append(cells)
        elif words:
            yield _numbered([list(column) for column in zip(*words, strict=True)]), f"{file.name}:{begin}"
            words = []


def _numbered(values: list) -> dict[Column, Any]:
    """Values by their numbers, from the beginning and from the end."""
    return {place: values[place] for place in range(-len(values), len(values))}


def text(file: File, columns: Columns) -> Iterator[Record]:
    """Texts without labels: the lines of a .txt file or the column `text` of a .jsonl file (either may be gzip'd), or
    all of those in a folder and below. Longer texts are cut into pieces of `PIECE` words, so that none is lost where
    long texts are truncated."""
    with reading(file.path):
        paths = sorted(file.path.rglob("*")) if file.path.is_dir() else [file.path]
    known = [path for path in paths if path.name.removesuffix(".gz").endswith((".txt", ".jsonl"))]
    if not known:
        raise DataError(f"{file.path} must be or hold .txt or .jsonl files; got none.")
    for path in known:
        found = File(path, file.part)
        plain: Iterator[Record] = (({"text": line}, f"{path.name}:{number}") for number, line in lines(found))
        for record, origin in jsonl(found, columns) if ".jsonl" in path.suffixes else plain:
            check_columns({"text": "text"}, record, origin)
            words = str(record["text"]).split()
            for begin in range(0, len(words), PIECE):
                yield {"text": " ".join(words[begin : begin + PIECE])}, origin


def folder(file: File, columns: Columns) -> Iterator[Record]:
    """A folder for each label that holds .txt files, one text each."""
    for label in label_folders(file.path):
        files = _text_files(label)
        if not files:
            raise DataError(f"{label} must hold .txt files, one text each; got none.")
        for path in files:
            origin = f"{label.name}/{path.name}"
            with reading(path):
                yield {"text": decode(path.read_bytes(), origin), "label": label.name}, origin


def label_folders(path: Path) -> list[Path]:
    """The folders of a source with a folder for each label, by name."""
    with reading(path):
        return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _text_files(path: Path) -> list[Path]:
    return sorted(entry for entry in path.glob("*.txt") if not entry.name.startswith("."))


def aclimdb(file: File, columns: Columns) -> Iterator[Record]:
    """The Large Movie Review Dataset, its archive (one pass) or folder: `[aclImdb/]<part>/<label>/<id>_<stars>.txt`.
    Its parts are train, test and unsup, whose reviews stand in train/unsup and have no label."""
    parent = "train" if file.part == "unsup" else file.part
    found = dict.fromkeys((f"{parent}/{label}" for label in IMDB_LABELS.get(file.part, ())), 0)
    if not found:
        raise DataError(f"{file.path}: {Problem('parts', 'name parts of the data set', file.part, tuple(IMDB_LABELS))}")
    files = archive_files(file.path) if file.path.is_file() else _reviews(file.path, list(found))
    for name, data in files:
        *_, above, label, last = ("", "", *name.split("/"))
        if f"{above}/{label}" in found and last.endswith(".txt") and not last.startswith("."):
            found[f"{above}/{label}"] += 1
            origin = f"{above}/{label}/{last}"
            yield {"text": decode(data, origin), "label": None if label == "unsup" else label}, origin
    if missing := [name for name, count in found.items() if not count]:
        raise DataError(f"{file.path} must hold reviews in {' and '.join(found)}; got none in {', '.join(missing)}.")


def _reviews(path: Path, folders: list[str]) -> Iterator[tuple[str, bytes]]:
    root = path / "aclImdb" if (path / "aclImdb").is_dir() else path
    for name in folders:
        for entry in _text_files(root / name):
            with reading(entry):
                yield f"{name}/{entry.name}", entry.read_bytes()


def slotgated(file: File, columns: Columns) -> Iterator[Record]:
    """A folder with the files seq.in, seq.out and label: the words, their tags and the intent of a text a line (as
    Goo et al. 2018 published ATIS and SNIPS)."""
    parts = [lines(file.within(name)) for name in ("seq.in", "seq.out", "label")]
    try:
        for (number, words), (_, tags), (_, label) in zip(*parts, strict=True):
            origin = f"{file.name}/seq.in:{number}"
            yield {"tokens": words.split(), "tags": tags.split(), "label": label.strip()}, origin
    except ValueError:
        raise DataError(
            f"{file.path}: seq.in, seq.out and label of {file.name} must have equally many lines."
        ) from None


def trec(file: File, columns: Columns) -> Iterator[Record]:
    """Questions of the Text REtrieval Conference, in Latin-1: `LABEL:fine question`; the columns are text, label and
    label_fine (`LABEL:fine`)."""
    for number, line in byte_lines(file):
        origin = f"{file.name}:{number}"
        found = re.fullmatch(r"((\w+):\w+) (\S.*)", line.decode("latin-1").strip())
        if not found:
            raise DataError(f"{origin}: a line must be LABEL:fine and a question; got {line[:60]!r}.")
        yield {"text": found[3], "label": found[2], "label_fine": found[1]}, origin


READERS: dict[str, Callable[[File, Columns], Iterator[Record]]] = {
    "aclimdb": aclimdb,
    "conll": conll,
    "csv": partial(table, delimiter=","),
    "folder": folder,
    "jsonl": jsonl,
    "slotgated": slotgated,
    "text": text,
    "trec": trec,
    "tsv": partial(table, delimiter="\t"),
}
