"""Each task alone and all of them together, under the same budget: does learning together help, and whom?

    python -m benchmarks.multitask data=../shared/data tasks=imdb:2000,sst2:500 epochs=2 seeds=1,2,3

`tasks` gives the train rows of each task after a colon (all without one). The run of all tasks sees as many examples as
the single runs do, unless `together` says otherwise: settings of `bert_mtl.train` for that run alone (a larger batch, a
mixing), separated by blanks. With `distill` a third run learns all tasks from the labels and, to that share of its
loss, from the single runs of its seed. What counts is every head's own metric on dev after the last epoch: nothing is
selected, no test part is looked at. Further arguments are settings for all runs. Every run is a process, `jobs` at a
time over `gpus` (such as 0,1), kept in the folder `runs`, so that an interrupted call goes on. The result is
`benchmarks/results/<result>.json`.
"""

import hashlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.machine import save
from benchmarks.runs import Training, spread, train_all
from bert_mtl.config import TrainConfig
from bert_mtl.tasks import make_tasks
from conf import entry

OWN = {"data": "../shared/data", "tasks": "", "together": "", "distill": "0", "epochs": "2", "seeds": "1,2,3"}
OWN |= {"jobs": "1", "gpus": "0", "runs": "runs/multitask", "result": "multitask"}


class Job(NamedTuple):
    """A training: of one task `alone`, of all `together`, or of all as they are `taught` by the single runs; and its
    settings."""

    kind: str
    overrides: list[str]

    def folder(self, runs: str) -> Path:
        return Path(runs) / hashlib.sha256(" ".join(self.overrides).encode()).hexdigest()[:16]


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    own = {key: given.pop(key, default) for key, default in OWN.items()}
    if len(limits_of(own["tasks"])) < 2:
        raise SystemExit(f"tasks must name at least two tasks to compare; got {own['tasks'] or 'none'}.")
    settings = [f"{key}={value}" for key, value in given.items()]
    scores: dict[str, dict[str, list[float]]] = {}
    for jobs in (list(jobs_of(own, settings)), list(taught_jobs(own, settings))):
        trainings = [Training(job.folder(own["runs"]), job.overrides) for job in jobs]
        found = train_all(trainings, int(own["jobs"]), own["gpus"])
        for job, metrics in zip(jobs, found, strict=True):
            for head, score in dev_scores(job.overrides, metrics).items():
                scores.setdefault(head, {"alone": [], "together": []}).setdefault(job.kind, []).append(score)
    show(scores, limits_of(own["tasks"]))
    choice = {key: own[key] for key in ("tasks", "together", "distill", "epochs", "seeds")}
    save(own["result"], {"scores": scores, **choice, "settings": given}, "tensorflow", "keras")


def limits_of(tasks: str) -> dict[str, str]:
    """Task -> how many train rows it has, as text; empty: all."""
    return {name: limit for name, _, limit in (text.partition(":") for text in tasks.split(","))}


def jobs_of(own: dict[str, str], settings: list[str]) -> Iterator[Job]:
    """The runs of all seeds, the longest (those of all tasks) first."""
    settings = [f"data.path={own['data']}", f"train.epochs={own['epochs']}", *settings]
    settings = ["data=full", "train.select=last", "train.test=false", *settings]
    limits = limits_of(own["tasks"])
    for group in [list(limits), *([name] for name in limits)]:
        kind = "alone" if len(group) == 1 else "together"
        rows = [f"++tasks.{name}.limit={limits[name]}" for name in group if limits[name]]
        extra = shlex.split(own["together"]) if kind == "together" else []
        values = dict(text.split("=", 1) for text in [*settings, *extra])
        choice = [*rows, *(f"{key}={value}" for key, value in values.items())]
        for seed in own["seeds"].split(","):
            yield Job(kind, [f"task=[{','.join(group)}]", f"seed={seed}", *choice])


def taught_jobs(own: dict[str, str], settings: list[str]) -> Iterator[Job]:
    """The runs of all tasks once more, with the single runs of each one's seed as teachers."""
    jobs = list(jobs_of(own, settings)) if float(own["distill"]) else []
    for together in (job for job in jobs if job.kind == "together"):
        seed = together.overrides[1]
        alone = [str(job.folder(own["runs"])) for job in jobs if job.kind == "alone" and job.overrides[1] == seed]
        more = [f"distill.teachers=[{','.join(alone)}]", f"distill.weight={own['distill']}"]
        yield Job("taught", [*together.overrides, *more])


def dev_scores(overrides: list[str], metrics: dict) -> dict[str, float]:
    """Head (with its metric) -> score on dev after the last epoch of the run of these settings."""
    config = entry.compose("train", overrides, TrainConfig)
    heads = [head for task in make_tasks(config.tasks).values() for head in task.heads.values()]
    last = metrics["epochs"][-1]["dev"]
    return {f"{head.name} ({head.metric})": last[head.name][head.metric] for head in heads}


def show(scores: dict[str, dict[str, list[float]]], limits: dict[str, str]) -> None:
    """The table: mean and deviation over seeds, in points, and what is gained beside the single runs."""
    others = [kind for kind in next(iter(scores.values())) if kind != "alone"]
    table = Table("head (metric on dev)", "train rows", "alone", *(name for kind in others for name in (kind, "gain")))
    for head, found in scores.items():
        task = max((name for name in limits if head.startswith(name)), key=len)
        gains = {kind: f"{100 * (mean(found[kind]) - mean(found['alone'])):+.2f}" for kind in others}
        compared = [text for kind in others for text in (spread(found[kind]), gains[kind])]
        table.add_row(head, limits[task] or "all", spread(found["alone"]), *compared)
    Console().print(table)


if __name__ == "__main__":
    main()
