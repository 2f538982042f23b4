"""Evaluation of a run: `python -m bert_mtl.evaluate run=…`. A report of every head as tables and as JSON, beside a
linear baseline.

The part is read as text shards, so that errors can be shown and the baselines learn from the very same examples.
"""

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bert_mtl.answers import Answered, answer_part
from bert_mtl.baselines import Texts, teach
from bert_mtl.commands import EvaluateConfig
from bert_mtl.config import DataConfig, TrainConfig
from bert_mtl.exits import head_of
from bert_mtl.figures import head_report
from bert_mtl.kinds import Head
from bert_mtl.mistakes import Examples, mistakes
from bert_mtl.records import atomic_write, load_manifest
from bert_mtl.rules import task_problems
from bert_mtl.runs import Run, check_examples, load_model, open_run
from bert_mtl.tables import print_report, print_summary
from bert_mtl.tasks import Task
from bert_mtl.train import part_pipelines
from conf import entry
from conf.errors import ConfigError, Problem
from data_prep.build import build


def evaluate(config: EvaluateConfig) -> dict[str, dict]:
    """Reports by head, printed and written to `output`; of exits (`imdb@2`) only the figures.

    Raises:
        ConfigError, DataError, RunError: the run, the tasks or the data are not as they must be.
    """
    run = open_run(config.run)
    data = config.data or run.config.data
    tasks = list(config.tasks or run.tasks)
    _check(run, tasks, data)
    model = load_model(run)
    asked = _on_texts(run.config, data)
    train = asked.train.model_copy(update={"eval_batch_size": config.batch_size})
    reading = replace(run, config=asked.model_copy(update={"train": train}))
    folders = {task: _text_records(run, task, data) for task in tasks}
    reports: dict[str, dict] = {}
    for task, pipeline in part_pipelines(reading, folders, config.part).items():
        lengths, part = pipeline.readers[0].lengths, read_part(folders[task], config.part, run.tasks[task])
        examples = Examples(part.texts, run.tokenizer)
        elsewhere = config.baseline and data != run.config.data  # baselines learn what the run has learned from
        own = _text_records(run, task, run.config.data) if elsewhere else folders[task]
        for name, answered in answer_part(model, pipeline).items():
            head = model.heads[head_of(name)]
            report = reports[name] = head_report(head, answered, lengths)
            if name not in model.heads:  # an exit, which the summary sets beside its head
                continue
            if report["examples"]:
                report["errors"] = mistakes(head, answered, examples, config.errors)
                if config.baseline and (rival := _baseline(head, own, run.tasks[task], answered, part.texts)):
                    report["baseline"] = head_report(*rival, lengths)
            print_report(name, report)
    print_summary(reports)
    named = f"-{'+'.join(config.tasks)}" if config.tasks else ""
    output = Path(config.output or run.folder / f"evaluation-{data.source}-{config.part}{named}.json")
    facts = {"run": str(run.folder), "data": data.source, "part": config.part, "heads": reports}
    with atomic_write(output) as file:
        file.write(json.dumps(facts, indent=1).encode())
    print(f"report: {output}")
    return reports


def _check(run: Run, tasks: Iterable[str], data: DataConfig) -> None:
    """Raises ConfigError for tasks that are not the run's, and for data that they do not have or that is split in
    another way than the run's: what is test here could have been train there."""
    configs = run.config.tasks
    found = [Problem("task", "be among the run's tasks", task, list(configs)) for task in tasks if task not in configs]
    chosen = {task: configs[task] for task in tasks if task in configs}
    # What stands in the tasks themselves was checked for training, when all of them were there.
    found += [problem for problem in task_problems(chosen, data) if not problem.key.startswith("tasks.")]
    if data.source == run.config.data.source:
        for name in ("seed", "dev_fraction", "test_fraction"):
            own = getattr(run.config.data, name)
            if getattr(data, name) != own:
                found.append(Problem(f"data.{name}", f"be the run's, {own}", getattr(data, name)))
    if found:
        raise ConfigError(found)


def _on_texts(config: TrainConfig, data: DataConfig) -> TrainConfig:
    """The run's configuration, had it read `data` from text shards."""
    return config.model_copy(update={"data": data, "input": config.input.model_copy(update={"kind": "textline"})})


def _text_records(run: Run, task: str, data: DataConfig) -> Path:
    folder = build(_on_texts(run.config, data), task, run.tokenizer)
    if data == run.config.data:
        check_examples(run, load_manifest(folder))
    return folder


class Part(NamedTuple):
    """Texts of a part in stored order, and the stored labels `(examples, *shape)` of text-level heads by full name."""

    texts: Texts
    labels: dict[str, np.ndarray]


def read_part(folder: Path, part: str, task: Task) -> Part:
    """A part of a records folder of text shards."""
    stored = [spec for spec in task.labels if spec.stored]
    texts: list[tuple[str, ...]] = []
    labels: dict[str, list] = {spec.name: [] for spec in stored if spec.level == "text"}
    for shard in load_manifest(folder).parts[part].shards:
        with open(folder / shard.file, encoding="utf-8", newline="\n") as lines:
            for line in lines:
                fields = line.rstrip("\n").split("\t")
                texts.append(tuple(fields[len(stored) :]))
                for spec, field in zip(stored, fields, strict=False):
                    if spec.name in labels:
                        labels[spec.name].append(np.array(field.split(" "), spec.dtype).reshape(spec.shape))
    return Part(texts, {name: np.array(values) for name, values in labels.items()})


def _baseline(head: Head, folder: Path, task: Task, answered: Answered, texts: Texts) -> tuple[Head, Answered] | None:
    """The head as a linear model answers it, taught with the train part in `folder` and tuned on its dev part; None
    where there is no such model."""

    def labelled(part: str) -> tuple[Texts, np.ndarray]:
        stored = read_part(folder, part, task)
        labels = stored.labels[head.name]
        given = labels >= 0 if labels.dtype.kind == "i" else ~np.isnan(labels)
        known = np.all(given.reshape(len(labels), -1), axis=1)
        return [stored.texts[i] for i in np.flatnonzero(known).tolist()], labels[known]

    if head.level != "text":
        return None
    learned, labels = labelled("train")
    if not learned or (guess := teach(head, learned, labels)) is None:
        return None
    twin, (dev, truth) = copy.copy(head), labelled("dev")
    twin.tuned = twin.tune(guess(dev), truth) if dev else {}
    return twin, replace(answered, answers=guess([texts[i] for i in answered.index]))


def main() -> None:
    entry.main("evaluate", EvaluateConfig, evaluate)


if __name__ == "__main__":
    main()
