"""Records of any format in, rows of a task out: which column is which field or label."""

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from bert_mtl.config import SourceConfig, TaskConfig
from bert_mtl.kinds import KINDS, Head
from bert_mtl.tasks import DataError
from data_prep.formats import Column, Columns, check_columns

log = logging.getLogger(__name__)

LABEL_COLUMNS = {"tagging": "tags", "multilabel": "labels", "vector": "vector"}  # other kinds: label


class Row(NamedTuple):
    """Raw values by field (`text`, `text_b`, `tokens`, or the name of a head), and `origin` such as `reviews.csv:12`.

    Texts are str; `tokens` are the words of `text`, which stand in it between single spaces; a label is what the
    data says: str, int, float, a list of these, or None where the example has none.
    """

    values: dict[str, Any]
    origin: str


class Layout:
    """Which columns the rows of a task come from.

    Where the source's columns do not say otherwise: texts from `text` (from `tokens`, a list of words, where a head
    labels words); labels from `tags` (tagging), `labels` (multilabel), `vector` (vector) or `label` (others), or from
    columns of the heads' names where several heads would share one. The scores of a similarity head may be missing,
    and single texts have none. In a table, words and tags are parted by spaces, several labels by commas.

    Attributes:
        texts, labels: field or head -> column.
        needed: of both, the columns that every record must have.
    """

    def __init__(self, source: SourceConfig, task: TaskConfig):
        self.kinds = {head: KINDS[settings.kind] for head, settings in task.heads.items()}
        self.labelled = {head for head, settings in task.heads.items() if settings.labelled}
        columns: dict[str, Any] = self._usual(source) | source.columns
        optional = {head for head in self._unscored() if head not in source.columns}
        self.texts = {field: column for field, column in columns.items() if field not in self.kinds}
        self.labels = {head: column for head, column in columns.items() if head in self.kinds}
        self.needed: Columns = {field: column for field, column in columns.items() if field not in optional}
        self.names = source.labels
        self.json = source.format == "jsonl"
        self.unread = {"text_b"} - self.texts.keys()

    def _usual(self, source: SourceConfig) -> dict[str, Column]:
        """The columns where the source names none."""
        by_number, pair = source.format == "conll", "text_b" in source.columns
        words = "tokens" in source.columns or any(kind.level == "token" for kind in self.kinds.values())
        labels: dict[str, Column] = {
            head: -1 if by_number and kind.level == "token" else LABEL_COLUMNS.get(kind.kind, "label")
            for head, kind in self.kinds.items()
            if kind.level != "mask" and head in self.labelled and (pair or head not in self._unscored())
        }
        shared = {column for column in labels.values() if list(labels.values()).count(column) > 1}
        texts: dict[str, Column] = {"tokens": 0 if by_number else "tokens"} if words else {"text": "text"}
        return texts | {head: head if column in shared else column for head, column in labels.items()}

    def _unscored(self) -> set[str]:
        return {head for head, kind in self.kinds.items() if not kind.needs_label}

    def row(self, record: Mapping[Column, Any], origin: str) -> Row:
        """The row of a record.

        Raises:
            DataError: a column is missing, or holds no text, words or label.
        """
        for column in self.needed.values():
            if not isinstance(column, list) and column not in record:
                check_columns(self.needed, record, origin)
        if self.unread & record.keys():
            self.unread = set()  # told once
            log.warning("%s: text_b is not read; name it in the source's columns ({text_b: text_b}) for pairs", origin)
        values: dict[str, Any] = {
            field: _words(record[column], origin) if field == "tokens" else _text(record, column, origin)
            for field, column in self.texts.items()
        }
        if "tokens" in values:
            values["text"] = " ".join(values["tokens"])
        for head, column in self.labels.items():
            if column in record:
                values[head] = self._label(head, record[column], f"{origin}: {column}")
        return Row(values, origin)

    def _label(self, head: str, value: Any, where: str) -> Any:
        if isinstance(value, bool):
            value = json.dumps(value)
        if not isinstance(value, str | int | float | list | None):
            raise DataError(f"{where} must be text, a number, a list or null; got {json.dumps(value)[:60]}.")
        value = value if self.json else _listed(value, self.kinds[head])
        if (names := self.names.get(head)) is None or value is None:
            return value
        return [names.get(str(v), v) for v in value] if isinstance(value, list) else names.get(str(value), value)


def text_row(record: Mapping[Column, Any], origin: str) -> Row:
    """The row of a record that is to be answered: its `text`, or its words, `tokens`, and the text that they make; and
    `text_b` where it has one."""
    values: dict[str, Any] = {}
    if record.get("tokens") is not None:
        values["tokens"] = _words(record["tokens"], origin)
        values["text"] = " ".join(values["tokens"])
    for field in ["text", "text_b"] if record.get("text_b") is not None else ["text"]:
        if field not in values:
            check_columns({field: field}, record, origin)
            values[field] = _text(record, field, origin)
    return Row(values, origin)


def _text(record: Mapping[Column, Any], column: Column | list[Column], origin: str) -> str:
    if isinstance(column, list):  # a title and a body, say
        check_columns({"text": column}, record, origin)
        return " ".join(_text(record, single, origin) for single in column)
    value = record[column]
    if isinstance(value, int | float):
        value = json.dumps(value)
    if not isinstance(value, str):
        raise DataError(f"{origin}: {column} must be text or a number; got {json.dumps(value)[:60]}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])
        raise DataError(f"{origin}: {column} must be Unicode text; got half of a surrogate pair, {half}.") from None
    return value


def _words(value: Any, origin: str) -> list[str]:
    """The words of a text; white space within one (a no-break space, say) is taken out, so that spaces part words."""
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not words:
        raise DataError(f"{origin}: tokens must be a list of at least one word; got {json.dumps(value)[:60]}.")
    clean = ["".join(_text({"tokens": word}, "tokens", origin).split()) for word in words]
    if not all(clean):
        place = clean.index("")
        raise DataError(f"{origin}: tokens must not hold an empty word; got {words[place]!r} as word {place + 1}.")
    return clean


def _listed(value: Any, kind: type[Head]) -> Any:
    """A list of labels, where a table can only write it as text."""
    if isinstance(value, str) and kind.level == "token":
        return value.split()
    if isinstance(value, str) and kind.kind == "multilabel":
        return [label.strip() for label in value.split(",")] if value.strip() else []
    return value
