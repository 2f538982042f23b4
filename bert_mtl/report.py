"""The report of a run: `python -m bert_mtl.report run=…` answers its dev and test parts and writes what that comes to.

A training does so at its end. `findings-<part>.json` and `answers/` stand in the run's folder for other commands,
`report.html` for people: one file that needs nothing else.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_mtl.answer_files import write_answers
from bert_mtl.atomic import atomic_write
from bert_mtl.commands import ReportConfig
from bert_mtl.config import DataConfig
from bert_mtl.findings import (
    PartAnswers,
    answer_texts,
    findings,
    read_findings,
    save_findings,
    tell_findings,
    tell_predictions,
)
from bert_mtl.history import read_history
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.pages import report_page
from bert_mtl.parts import on_texts
from bert_mtl.records import load_manifest
from bert_mtl.runs import Run, RunError, check_examples, load_model, open_run
from bert_mtl.tracking import Careful
from bert_mtl.tracking.names import path_of
from conf import entry
from data_prep.build import build

ERRORS = 200  # of each head and part that the report shows


def text_records(run: Run, task: str, data: DataConfig, quiet: bool = False) -> Path:
    """The folder of a task's text shards, built where they are missing (`data_prep.build.build`). Raises RunError where
    the run's own data is not what it was."""
    folder = build(on_texts(run.config, data), task, run.tokenizer, quiet)
    if data == run.config.data:
        check_examples(run, load_manifest(folder))
    return folder


def answer_run(run: Run, model: MultiTaskModel, parts: Sequence[str]) -> list[PartAnswers]:
    """The model's answers to these parts of all tasks with labels."""
    data, labelled = run.config.data, [name for name, task in run.tasks.items() if task.labelled]
    folders = {name: text_records(run, name, data, quiet=True) for name in labelled}
    return [answers for part in parts for answers in answer_texts(run, model, data, folders, part)]


def write_report(
    run: Run, model: MultiTaskModel, answers: Sequence[PartAnswers], results: Mapping[str, Any], tracker: Careful
) -> None:
    """Writes what answers of a finished run (`results`: its metrics.json) come to, and shows it by tracker."""
    for part in dict.fromkeys(each.part for each in answers):
        found: dict[str, dict] = {}
        for each in (each for each in answers if each.part == part):
            of_task = findings(run, model.heads, each, ERRORS)
            tell_findings(tracker, each.task, part, of_task)
            if part == "dev":
                tell_predictions(tracker, each, run.config.tracking.samples)
            write_answers(run.folder, part, each.task, each.texts, each.lengths, each.answered)
            found |= of_task
        save_findings(run.folder, part, found)
    with atomic_write(run.folder / "report.html") as page:
        page.write(report_page(payload(run, results, list(tracker.missing.values()))).encode())


def payload(run: Run, results: Mapping[str, Any], warnings: Sequence[str]) -> dict[str, Any]:
    """All that the report shows, in plain numbers and texts; `warnings` say what could not be written."""
    folder, config = run.folder, run.config
    origin, data = (_read(folder / f"{name}.json") for name in ("origin", "data"))
    found = {part: read_findings(folder, part) for part in ("dev", "test")}
    lines = read_history(folder)
    return {
        "run": {
            "name": folder.name,
            "folder": str(folder),
            "tasks": list(config.tasks),
            "data": config.data.source,
            "seed": config.seed,
            "started": origin.get("started"),
            "git": origin.get("git"),
            "versions": origin.get("versions", {}),
            "machine": origin.get("machine"),
            "seconds": sum(epoch["seconds"] for epoch in results["epochs"]),
            "steps": lines[-1]["step"] if lines else None,
            "epochs": len(results["epochs"]),
            "best_epoch": results["best_epoch"],
            "parameters": results.get("parameters"),
        },
        "commands": commands(run, origin.get("arguments")),
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
        "history": lines,
        "heads": {
            head.name: {
                "task": task.name,
                "kind": head.kind,
                "path": path_of(task.name, head.name),
                "metric": head.metric,
                "parts": _parts(found, head.name),
            }
            for task in run.tasks.values()
            for head in task.heads.values()
            if _parts(found, head.name)
        },
        "exits": {name: {"parts": _parts(found, name)} for name in found["dev"] if "@" in name},
        "data": data.get("tasks", {}),
        "packing": data.get("packing"),
        "warnings": list(warnings),
    }


def commands(run: Run, arguments: Sequence[str] | None) -> list[dict[str, str]]:
    """What to type to get the run again, and to go on from it."""
    folder = shlex.quote(str(run.folder))
    found = []
    if arguments is not None:
        again = " ".join(shlex.quote(text) for text in arguments if not text.startswith("run."))
        found.append({"what": "Train it again", "command": f"python -m bert_mtl.train {again}".strip()})
    return found + [
        {"what": "Evaluate it beside a linear baseline", "command": f"python -m bert_mtl.evaluate run={folder}"},
        {"what": "Ask it", "command": f'python -m bert_mtl.predict run={folder} text="A slow start, but what an end!"'},
        {"what": "Compare it", "command": f"python -m bert_mtl.compare {folder} <another run>"},
        {
            "what": "Export it",
            "command": f"python -m bert_mtl.export run={folder} bundle=bundles/{'-'.join(run.config.tasks)}",
        },
        {"what": "Write this report again", "command": f"python -m bert_mtl.report run={folder}"},
    ]


def _parts(found: Mapping[str, Mapping[str, dict]], head: str) -> dict[str, dict]:
    return {part: heads[head] for part, heads in found.items() if head in heads}


def _read(file: Path) -> dict[str, Any]:
    """A JSON file of the run's; nothing where runs from before have none."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def report(config: ReportConfig) -> Path:
    """Answers the parts of a finished run with its weights, and writes findings, answers and page.

    Raises:
        DataError, RunError: the run is not finished, or its data is not what it was.
    """
    run = open_run(config.run)
    if not (run.folder / "metrics.json").exists():
        raise RunError(
            f"run must be finished; got {run.folder}, which has no metrics.json. "
            f"Continue it with python -m bert_mtl.train run.resume={run.folder}"
        )
    model = load_model(run)
    results = json.loads((run.folder / "metrics.json").read_text())
    write_report(run, model, answer_run(run, model, ("dev", "test")), results, Careful([]))
    file = run.folder / "report.html"
    print(f"report: {file}")
    return file


def main() -> None:
    entry.main("report", ReportConfig, report)


if __name__ == "__main__":
    main()
