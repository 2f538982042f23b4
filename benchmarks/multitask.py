"""Each task alone and all of them together, under the same budget: does learning together help, and whom?

    python -m benchmarks.multitask data=../shared/data tasks=imdb:2000,trec:500,stsb epochs=2 seeds=1,2,3

`tasks` gives the train rows of each task after a colon (all without one). Alone and together a task is seen for the
same number of epochs, so all the single runs cost as many steps as the one together. What counts is every head's own
metric on dev after the last epoch: nothing is selected, no test part is looked at. Further arguments are settings of
`bert_mtl.train` for all runs. Runs are kept in the folder `runs`, so that an interrupted call goes on.
"""

import hashlib
import json
import os
import platform
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from benchmarks.tokenizer import cpu_name
from bert_mtl.config import TrainConfig
from bert_mtl.tasks import make_tasks
from bert_mtl.train import train
from conf import entry

RESULT = Path(__file__).parent / "results" / "multitask.json"
OWN = {"data": "../shared/data", "tasks": "", "epochs": "2", "seeds": "1,2,3", "runs": "runs/multitask"}


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    own = {key: given.pop(key, default) for key, default in OWN.items()}
    limits = {name: limit for name, _, limit in (text.partition(":") for text in own["tasks"].split(","))}
    seeds = [int(seed) for seed in own["seeds"].split(",")]
    settings = ["data=full", f"data.path={own['data']}", f"train.epochs={own['epochs']}"]
    settings += ["train.select=last", "train.test=false", *(f"{key}={value}" for key, value in given.items())]
    scores: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        for group in [[name] for name in limits] + [list(limits)]:
            own_limits = [f"++tasks.{name}.limit={limits[name]}" for name in group if limits[name]]
            choice = [f"task=[{','.join(group)}]", f"seed={seed}", *own_limits, *settings]
            kind = "alone" if len(group) == 1 else "together"
            for head, score in dev_scores(Path(own["runs"]), choice).items():
                scores.setdefault(head, {"alone": [], "together": []})[kind].append(score)
        show(scores, limits)
        save({"scores": scores, "tasks": own["tasks"], "epochs": own["epochs"], "seeds": seeds, "settings": settings})


def dev_scores(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Head (with its metric) -> score on dev after the last epoch of the run of these settings."""
    run = folder / hashlib.sha256(" ".join(overrides).encode()).hexdigest()[:16]
    config = entry.compose("train", [*overrides, f"run.dir={run}"], TrainConfig)
    if (run / "config.yaml").exists():
        config = entry.compose("train", [*overrides, f"run.resume={run}"], TrainConfig)
    finished = run / "metrics.json"
    result = json.loads(finished.read_text()) if finished.exists() else train(config)
    heads = [head for task in make_tasks(config.tasks).values() for head in task.heads.values()]
    last = result["epochs"][-1]["dev"]
    return {f"{head.name} ({head.metric})": last[head.name][head.metric] for head in heads}


def show(scores: dict[str, dict[str, list[float]]], limits: dict[str, str]) -> None:
    """The table: mean and deviation over seeds, in points."""
    table = Table("head (metric on dev)", "train rows", "alone", "together", "gain")
    for head, found in scores.items():
        task = max((name for name in limits if head.startswith(name)), key=len)
        gain = 100 * (mean(found["together"]) - mean(found["alone"]))
        table.add_row(head, limits[task] or "all", *(spread(found[kind]) for kind in found), f"{gain:+.2f}")
    Console().print(table)


def spread(values: list[float]) -> str:
    """Mean and deviation in points."""
    deviation = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{deviation}"


def save(result: dict) -> None:
    """Writes the result beside what it was measured on."""
    result |= {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("tensorflow", "keras")},
        "date": date.today().isoformat(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
