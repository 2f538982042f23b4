"""Evaluation of a run: `python -m bert_mtl.evaluate run=…`. A report of every head as tables and as JSON, beside a
linear baseline.

The part is read as text shards, so that errors can be shown and the baselines learn from the very same examples.
"""

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from bert_mtl.answers import Answered
from bert_mtl.atomic import atomic_write
from bert_mtl.baselines import teach
from bert_mtl.commands import EvaluateConfig
from bert_mtl.config import DataConfig
from bert_mtl.figures import head_report
from bert_mtl.findings import PartAnswers, answer_texts, findings
from bert_mtl.kinds import Head
from bert_mtl.parts import Texts, read_part
from bert_mtl.report import text_records
from bert_mtl.rules import task_problems
from bert_mtl.runs import Run, load_model, open_run
from bert_mtl.tables import print_report, print_summary
from conf import entry
from conf.errors import ConfigError, Problem


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
    folders = {task: text_records(run, task, data) for task in tasks}
    settings = run.config.train.model_copy(update={"eval_batch_size": config.batch_size})
    reports: dict[str, dict] = {}
    for answers in answer_texts(run, model, data, folders, config.part, train=settings):
        task = answers.task
        elsewhere = config.baseline and data != run.config.data  # baselines learn what the run has learned from
        own = text_records(run, task.name, run.config.data) if elsewhere else folders[task.name]
        for name, report in findings(run, model.heads, answers, config.errors).items():
            reports[name] = report
            if name not in model.heads:  # an exit, which the summary sets beside its head
                continue
            rival = _baseline(model.heads[name], own, answers) if config.baseline and report["examples"] else None
            if rival is not None:
                report["baseline"] = head_report(*rival, answers.lengths)
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


def _baseline(head: Head, folder: Path, answers: PartAnswers) -> tuple[Head, Answered] | None:
    """The head as a linear model answers it, taught with the train part in `folder` and tuned on its dev part; None
    where there is no such model."""

    def labelled(part: str) -> tuple[Texts, np.ndarray]:
        stored = read_part(folder, part, answers.task)
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
    answered = answers.answered[head.name]
    return twin, replace(answered, answers=guess([answers.texts[i] for i in answered.index]))


def main() -> None:
    entry.main("evaluate", EvaluateConfig, evaluate)


if __name__ == "__main__":
    main()
