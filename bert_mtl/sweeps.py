"""Sweeps of trainings: a job goes on with the run its folder has; all of them become one table by score.

In: the folders of the jobs. Out: `results.json` and `results.csv` in the sweep's folder, and a table in the terminal.
"""

import csv
import fcntl
import io
import itertools
import json
import logging
import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bert_mtl.atomic import atomic_write
from bert_mtl.config import TrainConfig
from bert_mtl.devices import take_share
from bert_mtl.exits import head_of
from bert_mtl.runs import run_config
from bert_mtl.tasks import make_tasks
from conf.errors import NOTHING, ConfigError, Problem
from conf.sweep import JOBLIB, Job, Sweeps, read_jobs

log = logging.getLogger(__name__)

_held: list[IO[str]] = []  # the lock of this process's place, until it ends


class TrainSweeps(Sweeps[TrainConfig]):
    """What `bert_mtl.train` knows of its jobs' folders."""

    def unlike(self, folder: Path, config: TrainConfig) -> list[Problem]:
        """The keys in which the run in `folder` is not the one that `config` asks for."""
        if not (folder / "config.yaml").exists():
            return []
        own, theirs = (_leaves(each.model_dump(mode="json")) for each in (config, run_config(folder)))
        rule = f"be what the run in {folder} has ({{}}), or hydra.sweep.dir another folder"
        return [
            Problem(key, rule.format(theirs.get(key, NOTHING)), own.get(key, NOTHING))
            for key in {**own, **theirs}
            if own.get(key, NOTHING) != theirs.get(key, NOTHING)
        ]

    def close(self, folder: Path) -> str:
        """Writes the results, prints their table, and returns what to do next."""
        found = results(read_jobs(folder))
        with atomic_write(folder / "results.json") as file:
            file.write(json.dumps(found, ensure_ascii=False, indent=1).encode())
        with atomic_write(folder / "results.csv") as file:
            file.write(as_csv(found["jobs"]).encode())
        if found["groups"]:
            print_groups(found["groups"])
        place = shlex.quote(str(folder))
        return f"\nsweep: {folder} (results.json, results.csv)\nNext:\n  python -m bert_mtl.compare {place}"


def train_job(config: TrainConfig, train: Callable[[TrainConfig], dict]) -> float:
    """The score of a job of a sweep, whose folder is `config.run.dir`: of its finished run, or of one that is trained
    now, which goes on where an earlier process was interrupted."""
    folder = Path(config.run.dir)
    if problems := TrainSweeps().unlike(folder, config):
        raise ConfigError(problems)
    finished = folder / "metrics.json"
    if finished.exists():
        log.info("%s is finished already", folder)
        return json.loads(finished.read_text())["score"]
    _share_machine()
    if (folder / "config.yaml").exists():
        config = config.model_copy(update={"run": config.run.model_copy(update={"resume": str(folder)})})
    return train(config)["score"]


def results(jobs: Sequence[Job]) -> dict[str, list[dict]]:
    """The `jobs`, each with its metrics by part and head, and the `groups` of those that differ in `seed` alone: mean
    and sample deviation of their scores, and of each head's own metric by part; the best group first."""
    rows = [_row(job) for job in jobs]
    groups: dict[tuple[str, ...], list[dict]] = {}
    for row in (each for each in rows if each["score"] is not None):
        groups.setdefault(tuple(row["overrides"]), []).append(row)
    found = []
    for overrides, own in groups.items():
        names = [(part, head) for part in ("dev", "test") for head in own[0][part] if head in own[0]["metrics"]]
        heads: dict[str, dict[str, dict]] = {}
        for part, head in names:
            metric = own[0]["metrics"][head]
            values = [row[part][head][metric] for row in own if row[part].get(head)]
            if values:
                heads.setdefault(head, {"metric": metric})[part] = mean_and_deviation(values)
        seeds = [row["seed"] for row in own]
        score = mean_and_deviation([row["score"] for row in own])
        found.append({"overrides": list(overrides), "seeds": seeds, "score": score, "heads": heads})
    return {"groups": sorted(found, key=lambda group: -group["score"]["mean"]), "jobs": rows}


def mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    """The mean, the sample deviation (None of a single one), and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": math.fsum(values) / len(values), "deviation": deviation, "values": list(values)}


def print_groups(groups: Sequence[dict], console: Console | None = None) -> None:
    """Prints the table of groups; with their scores alone where all heads are wider than the console, whose numbers
    `results.csv` has too."""
    console = console or Console()
    whole = table(groups)
    wide = console.measure(whole, options=console.options.update(max_width=10_000)).maximum
    console.print(whole if wide <= console.width else table([{**group, "heads": {}} for group in groups]))


def table(groups: Sequence[dict]) -> Table:
    """A line a group: the keys in which groups differ, its score, and each head's metric."""
    settings = [dict(text.split("=", 1) for text in group["overrides"]) for group in groups]
    keys = list(dict.fromkeys(key for own in settings for key in own))
    keys = [key for key in keys if len({own.get(key) for own in settings}) > 1]
    heads = {head: found["metric"] for group in groups for head, found in group["heads"].items()}
    shown = [(part, head) for head in heads for part in ("dev", "test")]
    shown = [(part, head) for part, head in shown if any(part in g["heads"].get(head, ()) for g in groups)]
    titles = [f"{part} {head} {heads[head]}" for part, head in shown]
    lines = Table(*map(escape, [*keys, "runs", "score", *titles]))
    for column in lines.columns:
        column.overflow = "fold"
    for group, own in zip(groups, settings, strict=True):
        numbers = [group["heads"].get(head, {}).get(part) for part, head in shown]
        values = [escape(_short(own.get(key, "–"))) for key in keys]
        lines.add_row(*values, str(len(group["seeds"])), *map(_told, [group["score"], *numbers]))
    return lines


def _short(text: str) -> str:
    """A number of a search by four digits, other words as they are."""
    try:
        return f"{float(text):.4g}" if "." in text else text
    except ValueError:
        return text


def as_csv(rows: Sequence[Mapping]) -> str:
    """The jobs as CSV: a column for each metric of each head, such as `dev/imdb/accuracy`."""
    flat = []
    for row in rows:
        scores = {
            f"{part}/{head}/{metric}": value
            for part in ("dev", "test")
            for head, found in row[part].items()
            for metric, value in found.items()
        }
        told = {key: row[key] for key in ("folder", "state", "seed", "score", "error")}
        flat.append(told | {"overrides": " ".join(row["overrides"])} | scores)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _row(job: Job) -> dict[str, Any]:
    """A job with what its run found; its overrides without the seed, which stands beside them."""
    overrides = [text for text in job.overrides if not text.startswith("seed=")]
    row: dict[str, Any] = {"folder": str(job.folder), "overrides": overrides, "state": job.state, "error": job.error}
    row |= {"seed": None, "score": None, "dev": {}, "test": {}, "metrics": {}}
    if (job.folder / "config.yaml").exists():
        row["seed"] = run_config(job.folder).seed
    if (job.folder / "metrics.json").exists():
        found = json.loads((job.folder / "metrics.json").read_text())
        tasks = make_tasks(run_config(job.folder).tasks, {})
        metrics = {head.name: head.metric for task in tasks.values() for head in task.heads.values()}
        row |= {key: found[key] for key in ("score", "dev", "test")}
        row["metrics"] = {name: metrics[head_of(name)] for name in found["dev"] if found["dev"][name]}
    return row


def _told(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{found['mean']:.4f}" + ("" if found["deviation"] is None else f" ± {found['deviation']:.4f}")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a configuration, without what may differ between the start of a run and its going on."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            found |= _leaves(value, f"{name}.")
        elif not name.startswith("run.") and name not in ("data.rebuild", "cache_dir"):
            found[name] = value
    return found


def _share_machine() -> None:
    """Takes this process's share of the machine, where joblib runs jobs beside each other."""
    hydra = HydraConfig.get()
    if hydra.launcher._target_ == JOBLIB and hydra.launcher.n_jobs > 1 and not _held:
        place, lock = hold_place(Path(hydra.sweep.dir) / ".places")
        _held.append(lock)
        take_share(place, hydra.launcher.n_jobs)


def hold_place(folder: Path) -> tuple[int, IO[str]]:
    """The first place that no living process holds, and the lock to be kept as long as it is held.

    By the numbers of their jobs two processes would meet on one GPU as soon as a job takes longer than others.
    """
    folder.mkdir(exist_ok=True)
    for place in itertools.count():
        file = open(folder / str(place), "w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            file.close()
    return place, file
