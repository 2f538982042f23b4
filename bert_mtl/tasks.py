"""Tasks: one source of texts and the heads that ask about them; raw rows in, examples with stored labels out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bert_mtl.config import TaskConfig
from bert_mtl.kinds import DataError, Head, make_head
from bert_mtl.labels import LabelSpec
from conf.errors import Problem
from conf.problem import full_name

__all__ = ["DataError", "Example", "Task", "make_example", "make_tasks"]

LINE_BREAKS = str.maketrans("\t\n\r", "   ")


@dataclass(frozen=True)
class Task:
    """A task of a run.

    Attributes:
        number: its place among the run's tasks.
        heads: name in the YAML -> head (whose own name is the full one).
    """

    name: str
    number: int
    config: TaskConfig
    heads: dict[str, Head]

    @property
    def separate(self) -> bool:
        """Whether the two texts of an example are segments of their own; a single text is then read twice."""
        return any(head.separate for head in self.heads.values())

    @property
    def words(self) -> bool:
        """Whether texts are words joined by single spaces, because a head labels words."""
        return any(head.level == "token" for head in self.heads.values())

    @property
    def labelled(self) -> bool:
        """Whether its examples can show how good answers are."""
        return any(head.settings.labelled for head in self.heads.values())

    @cached_property
    def labels(self) -> tuple[LabelSpec, ...]:
        return tuple(head.label_spec(self.number) for head in self.heads.values())


def make_tasks(configs: Mapping[str, TaskConfig], statistics: Mapping[str, Mapping] | None = None) -> dict[str, Task]:
    """The tasks of a run by name; `statistics` are those of each head's train part, by full name."""
    statistics = statistics or {}
    return {
        task: Task(
            task,
            number,
            config,
            {
                head: make_head(full_name(task, head), settings, statistics.get(full_name(task, head)))
                for head, settings in config.heads.items()
            },
        )
        for number, (task, config) in enumerate(configs.items())
    }


@dataclass(frozen=True)
class Example:
    """One text (or pair, where `text_b` is given) with the stored label of every head by full name: a flat list of
    numbers, of token heads one a word.

    A text is one line: tabs and line ends are spaces, which is what BERT's tokenizer makes of them anyway.
    """

    text: str
    text_b: str | None
    labels: Mapping[str, list]


def make_example(task: Task, row: Mapping[str, Any], origin: str) -> Example:
    """The example of a raw `row` (field -> value) read at `origin` (`file:line`).

    Raises:
        DataError: an empty text, a label that its head does not know, or as many labels as words.
    """
    texts = {field: row[field].translate(LINE_BREAKS) for field in ("text", "text_b") if field in row}
    for field, text in texts.items():
        if not text.strip():
            raise DataError(f"{origin}: {field} must not be empty; got {row[field]!r}.")
    words = texts["text"].count(" ") + 1 if task.words else 0
    labels = {
        head.name: _stored(head, row.get(short), words, origin)
        for short, head in task.heads.items()
        if head.label_spec(task.number).stored
    }
    text_b = texts.get("text_b", texts["text"] if task.separate else None)
    return Example(texts["text"], text_b, labels)


def _stored(head: Head, value: Any, words: int, origin: str) -> list:
    spec = head.label_spec(0)
    size = words if spec.level == "token" else int(head.label_size)
    if value is None:
        return [spec.missing] * size
    numbers = head.encode(value, origin)
    if len(numbers) != size:
        what = f"the labels of head {head.name}"
        rule = f"be as many as the {size} words" if words else f"hold {size} numbers"
        raise DataError(f"{origin}: {Problem(what, rule, len(numbers))}")
    return numbers
