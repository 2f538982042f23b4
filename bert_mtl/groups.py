"""Finished runs by folder in, groups of runs out that differ in their seeds alone. Reads files, needs no model."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from bert_mtl.history import read_history
from conf.errors import ConfigError, Problem
from conf.explain import leaves, shown

WHERE = {  # what tells where and how a run was made, and not what it is
    "train.save_every", "train.report", "train.test", "train.eval_batch_size", "train.steps_per_execution",
    "seed", "cache_dir", "data.path", "data.workers", "data.backend", "data.rebuild", "strategy.devices",
    "strategy.cluster", "strategy.workers", "strategy.port", "strategy.service", "strategy.timeout",
}  # fmt: skip
SHORT = 48  # characters of a group's name that is made of keys
TEACHERS = "distill.teachers"
ABSENT = "–"


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run that has its metrics."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "config.yaml").read_text())

    @cached_property
    def data(self) -> dict[str, str]:
        """Task -> fingerprint of its examples."""
        return json.loads((self.folder / "run.json").read_text())["data"]

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of `bert_mtl.history`."""
        return read_history(self.folder)

    @property
    def name(self) -> str:
        """The folder's name, below that of its sweep where it is a job of one."""
        folder = self.folder.absolute()
        return f"{folder.parent.name}/{folder.name}" if _is_job(folder) else folder.name

    @property
    def seconds(self) -> float | None:
        """What its epochs took; None where it is not known."""
        return sum(line["seconds"] for line in self.history if "seconds" in line) or None

    def facts(self) -> dict[str, Any]:
        """What a comparison says of the run."""
        origin = self.folder / "origin.json"
        started = json.loads(origin.read_text())["started"] if origin.exists() else None
        about = {"name": self.name, "folder": str(self.folder), "seed": self.config["seed"]}
        return about | {"started": started, "seconds": self.seconds}


@dataclass(frozen=True)
class Group:
    """Runs of one configuration; `differs` has the keys in which groups are unlike, as text."""

    name: str
    runs: tuple[FinishedRun, ...]
    differs: dict[str, str]


def find_runs(folders: Sequence[str]) -> tuple[list[FinishedRun], list[str]]:
    """The runs in `folders`, in which a sweep stands for all that it has finished; and what a reader must know: runs
    that were left out, or named twice.

    Raises:
        ConfigError: with every folder that is neither a finished run nor a sweep with one.
    """
    found: dict[Path, FinishedRun] = {}
    notes, problems = [], []
    for folder in map(Path, folders):
        sweep = not _is_run(folder)
        jobs = _jobs(folder) if sweep else [folder]
        finished = [job for job in jobs if (job / "metrics.json").exists()]
        if problem := _problem(folder, jobs, finished):
            problems.append(problem)
        if left := [job.name for job in jobs if job not in finished]:
            notes.append(f"Left out of {folder}, as they are not finished: {', '.join(left)}.")
        for job in finished:
            if job.resolve() in found:
                notes.append(f"{job} is named twice and counts once.")
            found.setdefault(job.resolve(), FinishedRun(job))
    if problems:
        raise ConfigError(problems)
    return list(found.values()), notes


def _problem(folder: Path, jobs: Sequence[Path], finished: Sequence[Path]) -> Problem | None:
    if finished:
        return None
    if not jobs:
        near = [path.parent for path in sorted(folder.parent.glob("*/config.yaml"), key=lambda at: at.stat().st_mtime)]
        return Problem("runs", "be folders of finished runs, or of sweeps", str(folder), list(map(str, near[-10:])))
    rule = f"be finished (go on with python -m bert_mtl.train run.resume={jobs[0]})"
    return Problem("runs", rule, str(folder))


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists()


def _jobs(sweep: Path) -> list[Path]:
    """The runs of a sweep in the order of their numbers: folders that begin with a number, or that say whose job they
    are."""
    found = [child for child in sweep.glob("*") if _is_run(child) and _is_job(child)]
    return sorted(found, key=lambda child: [int(number) for number in re.findall(r"\d+", child.name)])


def _is_job(folder: Path) -> bool:
    return (folder / "job.json").exists() or folder.name.isdigit()


def group_runs(runs: Sequence[FinishedRun], baseline: FinishedRun | None = None) -> list[Group]:
    """The runs in groups of one configuration but for what says where they were made, the group of `baseline` first.

    Two runs that were taught by other runs are alike where their teachers are. Data counts by its fingerprint, not by
    its path.
    """
    members: dict[str, list[FinishedRun]] = {}
    for run in sorted(runs, key=lambda run: run is not baseline):
        members.setdefault(json.dumps(_signature(run.folder), sort_keys=True), []).append(run)
    together = list(members.values())
    rows = [_texts(group[0]) for group in together]
    unlike = _unlike(rows, [group[0].config["tasks"] for group in together])
    if len({json.dumps(json.loads(signature)[TEACHERS]) for signature in members}) == 1:
        unlike = [key for key in unlike if key != TEACHERS]  # other folders, but of teachers that are alike
    differs = [{key: row.get(key, ABSENT) for key in unlike} for row in rows]
    names = _names(together, differs)
    return [Group(*parts) for parts in zip(names, map(tuple, together), differs, strict=True)]


def _signature(folder: Path) -> dict[str, Any]:
    """All that the run in `folder` follows from but its seed; of teachers that are there, the same of theirs."""
    run = FinishedRun(folder)
    values: dict[str, Any] = dict(_keys(run))
    teachers = [_signature(Path(path)) if _is_run(Path(path)) else path for path in values.pop(TEACHERS, ())]
    return values | {TEACHERS: sorted(teachers, key=lambda each: json.dumps(each, sort_keys=True))}


def _keys(run: FinishedRun) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of what the run is made from; the data's paths are told by fingerprints."""
    for key, value in leaves(run.config):
        section = key.split(".")[0]
        in_source = key.startswith("tasks.") and key.split(".")[2:3] == ["sources"]
        if key not in WHERE and section not in ("run", "tracking") and not in_source:
            yield key, value
    yield from ((f"fingerprint.{task}", data[:8]) for task, data in run.data.items())


def _texts(run: FinishedRun) -> dict[str, str]:
    """Its keys and values as a reader sees them."""
    texts = {key: shown(value) for key, value in _keys(run)}
    return {"task": "+".join(run.config["tasks"])} | texts


def _unlike(rows: Sequence[Mapping[str, str]], tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of which `rows` have unlike values; a task's own keys only among those that have the task."""

    def concerned(key: str) -> list[Mapping[str, str]]:
        parts = key.split(".")
        own = parts[1] if parts[0] in ("tasks", "fingerprint") and len(parts) > 1 else None
        return [row for row, known in zip(rows, tasks, strict=True) if own is None or own in known]

    every = dict.fromkeys(key for row in rows for key in row)
    return [key for key in every if len({row.get(key) for row in concerned(key)}) > 1]


def _names(groups: Sequence[Sequence[FinishedRun]], differs: Sequence[Mapping[str, str]]) -> list[str]:
    """By the keys that differ where that is short and tells all apart, else by folders."""
    keys = [key for key in differs[0] if not key.startswith("fingerprint.")]
    ends = [key.removesuffix(".kind").rsplit(".", 1)[-1] for key in keys]
    labels = [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]
    told = [
        [
            row[key] if key == "task" else f"{label}={row[key]}"
            for label, key in zip(labels, keys, strict=True)
            if row[key] != ABSENT
        ]
        for row in differs
    ]
    names = list(map(", ".join, told))
    if all(names) and len(set(names)) == len(names) and max(map(len, names)) <= SHORT:
        return names
    firsts = [group[0].name for group in groups]
    if len(set(firsts)) < len(firsts):
        firsts = [str(group[0].folder) for group in groups]
    return [
        first + (f" and {len(group) - 1} more" if group[1:] else "")
        for first, group in zip(firsts, groups, strict=True)
    ]
