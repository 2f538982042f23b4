"""How groups of runs learned, laid over each other: figures over steps and speed, from the runs' histories."""

from collections.abc import Sequence
from statistics import fmean, median

from bert_mtl.groups import FinishedRun, Group

NO_CURVE = ("step", "epoch", "seconds", "compile_seconds")
SPEED = "speed/tokens_per_second"


def curves(groups: Sequence[Group]) -> dict[str, list[list]]:
    """Every figure of the histories over steps, by group the mean of the runs that have a step: `[[step, value], …]`.
    What stands in lines of steps is taken from these, the rest from lines of epochs."""
    found: dict[str, list[list]] = {}
    for place, group in enumerate(groups):
        runs = [_by_step(run) for run in group.runs]
        for name in dict.fromkeys(name for run in runs for name in run):
            points: dict[int, list[float]] = {}
            for step, value in (point for run in runs for point in run.get(name, {}).items()):
                points.setdefault(step, []).append(value)
            found.setdefault(name, [[] for _ in groups])[place] = [[s, fmean(v)] for s, v in sorted(points.items())]
    return found


def _by_step(run: FinishedRun) -> dict[str, dict[int, float]]:
    """Figure -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    steps = [line for line in run.history if "seconds" not in line]
    measured = {name for line in steps for name in line}
    for line in run.history:
        for name, value in line.items():
            twice = "seconds" in line and name in measured
            if name not in NO_CURVE and not twice and isinstance(value, int | float):
                found.setdefault(name, {})[line["step"]] = value
    return found


def speed(group: Group) -> dict[str, float | None]:
    """Means over the group's runs: tokens a second (each run's median) and seconds of training."""
    paces = [[line[SPEED] for line in run.history if SPEED in line] for run in group.runs]
    pace = [median(values) for values in paces if values]
    seconds = [run.seconds for run in group.runs if run.seconds is not None]
    return {"tokens_per_second": fmean(pace) if pace else None, "seconds": fmean(seconds) if seconds else None}
