"""What a model answers to a part of a task, and what that comes to: figures, curves, worst errors by head."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_mtl.answers import Answered, answer_part
from bert_mtl.atomic import atomic_write
from bert_mtl.config import DataConfig
from bert_mtl.curves import curves
from bert_mtl.exits import head_of
from bert_mtl.figures import head_report
from bert_mtl.kinds import Head
from bert_mtl.mistakes import Examples, mistakes
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.parts import Texts, on_texts, part_pipelines, read_part
from bert_mtl.runs import Run
from bert_mtl.tasks import Task
from bert_mtl.tracking import Tracker
from bert_mtl.tracking.names import path_of


@dataclass(frozen=True)
class PartAnswers:
    """What a model answers to a part of a task.

    Attributes:
        task: its heads are the model's.
        texts: of all examples in stored order.
        lengths: `(examples,)` their tokens.
        answered: by full name of the head, also at exits.
    """

    task: Task
    part: str
    texts: Texts
    lengths: np.ndarray
    answered: Mapping[str, Answered]


def answer_texts(
    run: Run, model: MultiTaskModel, data: DataConfig, folders: dict[str, Path], part: str, **changes: Any
) -> Iterator[PartAnswers]:
    """The answers of the run's `model` to a part of each task whose text shards of `data` are in `folders`; `changes`
    are of sections of the configuration."""
    reading = replace(run, config=on_texts(run.config, data))
    for name, pipeline in part_pipelines(reading, folders, part, **changes).items():
        texts, lengths = read_part(folders[name], part, run.tasks[name]).texts, pipeline.readers[0].lengths
        yield PartAnswers(run.tasks[name], part, texts, lengths, answer_part(model, pipeline))


def answer_metrics(model: MultiTaskModel, answers: Sequence[PartAnswers]) -> dict[str, dict[str, float]]:
    """Metrics by head, also at exits; none where no example is labelled."""
    return {
        name: model.heads[head_of(name)].metrics(answered.answers, answered.labels) if len(answered.index) else {}
        for each in answers
        for name, answered in each.answered.items()
    }


def findings(run: Run, heads: Mapping[str, Head], answers: PartAnswers, errors: int) -> dict[str, dict]:
    """By head, `figures.head_report` with its `curves` and at most so many of its worst `errors`; of an exit the
    figures alone."""
    found = {}
    examples = Examples(answers.texts, run.tokenizer)
    for name, answered in answers.answered.items():
        head = heads[head_of(name)]
        report = found[name] = head_report(head, answered, answers.lengths)
        if name in heads and report["examples"]:
            report["curves"] = curves(head, answered)
            report["errors"] = mistakes(head, answered, examples, errors)
    return found


def findings_file(folder: Path, part: str) -> Path:
    """Where the findings of a part stand in a run's folder."""
    return folder / f"findings-{part}.json"


def save_findings(folder: Path, part: str, found: Mapping[str, dict]) -> None:
    """Writes the findings of a part. Raises DataError where that cannot be done."""
    with atomic_write(findings_file(folder, part)) as file:
        file.write(json.dumps({"part": part, "heads": found}, indent=1, ensure_ascii=False).encode())


def read_findings(folder: Path, part: str) -> dict[str, dict]:
    """The findings of a part by head; none where they were not written."""
    file = findings_file(folder, part)
    return json.loads(file.read_text(encoding="utf-8"))["heads"] if file.exists() else {}


def tell_findings(tracker: Tracker, task: Task, part: str, found: Mapping[str, dict]) -> None:
    """Shows findings by tracker: the worst errors as a table, confusion, calibration and precision against recall."""
    for head in (head for head in task.heads.values() if found.get(head.name, {}).get("examples")):
        report, path = found[head.name], path_of(task.name, head.name)
        if report["errors"]:
            columns = list(report["errors"][0])
            rows = [[_cell(error.get(column)) for column in columns] for error in report["errors"]]
            tracker.table(f"{path}/{part}_errors", columns, rows)
        if "confusion" in report:
            tracker.confusion(f"{path}/{part}_confusion", report["labels"], report["confusion"])
        if bins := report["curves"].get("calibration"):
            sure, right = ([each[key] for each in bins] for key in ("confidence", "accuracy"))
            tracker.lines(f"{path}/{part}_calibration", "confidence", sure, {"accuracy": right, "perfect": sure})
        if by_label := report["curves"].get("precision_recall"):
            recall = next(iter(by_label.values()))["recall"]
            lines = {label: curve["precision"] for label, curve in by_label.items()}
            tracker.lines(f"{path}/{part}_precision_recall", "recall", recall, lines)


def tell_predictions(tracker: Tracker, answers: PartAnswers, count: int) -> None:
    """Shows by tracker what each head answers to `count` examples, evenly spread over the part."""
    for head in answers.task.heads.values():
        answered = answers.answered[head.name]
        if head.level == "mask" or not len(answered.index) or not count:
            continue
        places = np.unique(np.linspace(0, len(answered.index) - 1, min(count, len(answered.index))).astype(int))
        rows = predictions(head, answered, answers.texts, places)
        path = path_of(answers.task.name, head.name)
        tracker.table(f"{path}/{answers.part}_predictions", ["text", "text_b", "label", "answer", "tokens"], [
            [*row, int(answers.lengths[answered.index[place]])] for row, place in zip(rows, places, strict=True)
        ])  # fmt: skip


def predictions(head: Head, answered: Answered, texts: Texts, places: Sequence[int] | np.ndarray) -> list[list[str]]:
    """Text, second text ("" where there is none), label and answer of the items at `places`, as one reads them."""
    chosen = [answered.answers[place] for place in places]
    given = head.decode(chosen if head.level == "token" else np.stack(chosen))
    found = []
    for place, answer in zip(places, given, strict=True):
        text, *second = texts[answered.index[place]]
        found.append([text, *(second or [""]), _label(head, answered.labels[place]), _cell(answer)])
    return found


def _label(head: Head, label: np.ndarray) -> str:
    """A stored label in words."""
    if head.level == "token":
        return " ".join(head.tags[tag] for tag in label)  # type: ignore[attr-defined]
    names = getattr(head.settings, "labels", None)
    if names is None:
        return _cell(label.tolist())
    return names[int(label)] if label.ndim == 0 else ", ".join(names[i] for i in np.flatnonzero(label == 1))


def _cell(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
