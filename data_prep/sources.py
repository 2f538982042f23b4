"""Sources of tasks: raw data in any format in, rows out, streamed.

`read(source, part, task)` yields `Row`s: the values of the fields and heads of a task, and where they stood.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_mtl.config import PARTS, SourceConfig, TaskConfig
from bert_mtl.tasks import DataError
from conf.errors import Problem
from data_prep.files import File, lines
from data_prep.formats import READERS, Record, label_folders
from data_prep.rows import Layout, Row, text_row

__all__ = ["BUILTIN", "Row", "located", "part_files", "part_names", "read", "read_texts"]

BUILTIN = Path(__file__).parent / "sample"


def part_names(source: SourceConfig) -> dict[str, list[str]]:
    """Part -> what the source calls it, or the several that make it up."""
    if source.parts is not None:
        return {part: [names] if isinstance(names, str) else names for part, names in source.parts.items()}
    if isinstance(source.path, dict):
        return {part: [part] for part in source.path}
    if "{part}" in f"{source.path} {source.member} {source.url}":
        return {part: [part] for part in PARTS}
    return {part: [part] for part in (("train", "test") if source.format == "aclimdb" else ("train",))}


def part_files(source: SourceConfig) -> dict[str, list[File]]:
    """Where each part of a source is. Where neither `parts` nor paths by part are given, dev and test may be missing.

    Raises:
        DataError: nothing is there, or no train part.
    """
    found = {part: [_file(source, name) for name in names] for part, names in part_names(source).items()}
    if source.parts is None and isinstance(source.path, str):
        found = {part: files for part, files in found.items() if part == "train" or files[0].exists()}
    for file in (file for files in found.values() for file in files):
        if not file.exists():
            where = file.path / file.member if file.member else file.path
            raise DataError(
                f"data.path, or the path of a task's source, must be an existing file or folder; got {where}."
            )
    if "train" not in found:
        raise DataError(f"the source's path must give a train part; got {', '.join(found)}.")
    return found


def _file(source: SourceConfig, name: str) -> File:
    if isinstance(source.path, dict) and name not in source.path:
        raise DataError(str(Problem("the source's path", "have every part", name, list(source.path))))
    path = source.path[name] if isinstance(source.path, dict) else str(source.path).replace("{part}", name)
    member = source.member and source.member.replace("{part}", name)
    if path.startswith("builtin://"):  # shipped with the project
        return File(BUILTIN / path.removeprefix("builtin://"), name, member)
    return File(Path(path).expanduser(), name, member)


def located(source: SourceConfig, name: str, path: str) -> SourceConfig:
    """The source of task `name` read from `path` (what `data.path` says) instead of its own place.

    A folder may hold the data of several tasks: as files `<task>.<part>.jsonl`, perhaps gzip'd and with a remark behind
    the part (`ag_news.train_part.jsonl.gz`), in the columns text (or tokens, or text_a and text_b), label, tags, labels
    or vector; or, where the source has a `local` name (a pattern such as `aclImdb*`), as what is called so, in the
    source's own format. Otherwise `path` is the source's file or folder itself.

    Raises:
        DataError: a folder holds nothing of the task.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return source.model_copy(update={"path": path})
    for stem in (name, source.local):
        if stem and (files := _row_files(folder, stem)):
            texts: dict[str, Any] = {"text": "text_a", "text_b": "text_b"} if "text_b" in source.columns else {}
            texts |= {"tokens": "tokens"} if "tokens" in source.columns else {}
            return SourceConfig(format="jsonl", path=files, columns=texts)
    if source.local and (entries := sorted(folder.glob(source.local))):
        return source.model_copy(update={"path": str(entries[0])})
    own = source.model_copy(update={"path": path})
    if not _own_layout(own, folder):
        wanted = [f"{name}.<part>.jsonl[.gz]", *([source.local] if source.local else ())]
        raise DataError(
            f"data.path must hold the data of task {name} ({' or '.join(wanted)}), "
            f"or be its source's own file or folder (format {source.format}); got {folder}."
        )
    return own


def _row_files(folder: Path, stem: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        named = re.fullmatch(rf"{re.escape(stem)}\.({'|'.join(PARTS)})(_[^.]*)?\.jsonl(\.gz)?", path.name)
        if named and found.setdefault(named[1], str(path)) != str(path):
            raise DataError(f"data.path must hold one file {stem}.{named[1]}; got {found[named[1]]} and {path}.")
    return found


def _own_layout(source: SourceConfig, folder: Path) -> bool:
    """Whether a folder can be what the source itself would be read from."""
    if source.member:
        return all(_file(source, name).exists() for name in part_names(source)["train"])
    if source.format == "aclimdb":
        return any((folder / name).is_dir() for name in ("train", "aclImdb"))
    if source.format == "text":  # and not the labelled texts of other tasks
        return not any(re.search(rf"\.({'|'.join(PARTS)})(_[^.]*)?\.jsonl", path.name) for path in folder.iterdir())
    return source.format == "folder"


def read(source: SourceConfig, part: str, task: TaskConfig) -> Iterator[Row]:
    """The rows of one part, in the source's own order, streamed (see `data_prep.rows.Layout` for their columns).

    Raises:
        DataError: the file, the line or the column that is wrong, and what was expected; after the last row, that no
            row has a label of a head that needs one.
    """
    layout, count = Layout(source, task), 0
    unlabelled = {head for head in layout.labels if layout.kinds[head].needs_label}
    for file in part_files(source)[part]:
        if source.format == "folder":
            _check_folders(file.path, task)
        for record, origin in READERS[source.format](file, layout.needed):
            row = layout.row(record, origin)
            count += 1
            if unlabelled:
                unlabelled = {head for head in unlabelled if row.values[head] is None}
            yield row
    if count and unlabelled:
        head = min(unlabelled)
        rule = f"hold a label of head {head} in at least one row (column {layout.labels[head]})"
        raise DataError(f"the {part} part must {rule}; got none in {count:,} rows.")


def _check_folders(path: Path, task: TaskConfig) -> None:
    """Every label of the task's head must have its folder."""
    names = [folder.name for folder in label_folders(path)]
    for head, settings in task.heads.items():
        for label in getattr(settings, "labels", ()):
            if label not in names:
                raise DataError(f"{path}: {Problem('its folders', f'name every label of head {head}', label, names)}")


def read_texts(path: Path) -> Iterator[Row]:
    """The texts of a user's file, to be answered: .txt (one a line), .jsonl, .csv or .tsv (column `text`, and `text_b`
    for pairs; in .jsonl also `tokens`, a list of words, in the place of `text`), or .gz of these.

    Raises:
        DataError: another kind of file, a missing column, an empty text, or bytes that are not UTF-8.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if not path.exists():
        raise DataError(f"input must be an existing file; got {path}.")
    if suffix == ".txt":
        records: Iterator[Record] = (
            ({"text": line.rstrip("\r\n")}, f"{path.name}:{number}") for number, line in lines(File(path, "input"))
        )
    elif suffix in (".jsonl", ".csv", ".tsv"):
        records = READERS[suffix[1:]](File(path, "input"), {"text": "text"})
    else:
        options = (".txt", ".jsonl", ".csv", ".tsv")
        raise DataError(str(Problem("input", "end in a known kind of file", path.name, options)))
    for record, origin in records:
        row = text_row(record, origin)
        for field in ("text", "text_b"):
            if field in row.values and not row.values[field].strip():
                raise DataError(f"{row.origin}: {field} must not be empty; got {row.values[field]!r}.")
        yield row
