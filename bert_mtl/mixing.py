"""How much of each task an epoch holds: rates from sizes, whole numbers of examples from rates, and their order.

The whole policy is one pure function of the configuration, the sizes and where training stands. NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from conf.errors import NOTHING, Problem

if TYPE_CHECKING:
    from bert_mtl.config import MixingConfig

LEAST_GAP = 0.01  # of its target: what a task at its target still counts, so that none is forgotten


def rates(
    config: MixingConfig,
    sizes: Mapping[str, int],
    *,
    epoch: int,
    epochs: int,
    scores: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The share of each task in an epoch; they sum to 1.

    Args:
        config: the section `mixing`.
        sizes: task -> examples of its train part.
        epoch: which of `epochs` this is, from 0.
        scores: task -> latest dev score, higher is better; None before the first.
    """
    if config.kind == "explicit":
        given = config.rates or {}
        return _normalised({task: given[task] for task in sizes})
    power = _power(config, epoch, epochs)
    found = {task: size**power for task, size in capped(config, sizes).items()}
    if config.kind == "dev_score" and scores is not None:
        targets = config.targets or {}
        found = {task: rate * _gap(scores[task], targets.get(task, 1.0)) for task, rate in found.items()}
    return _normalised(found)


def _power(config: MixingConfig, epoch: int, epochs: int) -> float:
    """The power of its size that a task counts with."""
    if config.kind == "annealed":  # Stickland & Murray 2019: in proportion at first, nearly uniform at the end
        return 1 - 0.8 * epoch / max(epochs - 1, 1)
    return {"uniform": 0.0, "proportional": 1.0}.get(config.kind, 1 / config.temperature)


def _gap(score: float, target: float) -> float:
    """How far a task is from its target (dynamic sampling, Gottumukkala et al. 2020)."""
    return max(target - score, LEAST_GAP * target)


def _normalised(weights: dict[str, float]) -> dict[str, float]:
    total = math.fsum(weights.values())
    return {task: weight / total for task, weight in weights.items()}


def capped(config: MixingConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that count: at most `mixing.cap` each."""
    return {task: size if config.cap is None else min(size, config.cap) for task, size in sizes.items()}


def epoch_examples(config: MixingConfig, sizes: Mapping[str, int]) -> int:
    """Examples of one epoch over all tasks."""
    return config.epoch_examples or sum(capped(config, sizes).values())


def quotas(rates: Mapping[str, float], examples: int) -> np.ndarray:
    """Whole numbers `(tasks,)` in proportion to the rates that sum to `examples`, by largest remainder."""
    exact = np.array(list(rates.values())) * examples
    whole = np.floor(exact).astype(np.int64)
    order = np.argsort(whole - exact, kind="stable")
    whole[order[: examples - whole.sum()]] += 1
    return whole


def schedule(counts: np.ndarray) -> np.ndarray:
    """Which task each example of an epoch comes from, int16 `(sum(counts),)`: `counts[t]` times `t`, evenly spread.

    Every window holds each task's share to within about two examples. Example `j` of task `t` stands at
    `(j + (t + 0.5) / tasks) / counts[t]` of the epoch: tasks of equal counts take turns, each at a phase of its own,
    where one phase for all would make small tasks come at the same moments.
    """
    counts = np.asarray(counts)
    phases = (np.arange(len(counts)) + 0.5) / len(counts)
    places = [(np.arange(count) + phase) / count for count, phase in zip(counts, phases, strict=True)]
    tasks = np.repeat(np.arange(len(counts), dtype=np.int16), counts)
    return tasks[np.argsort(np.concatenate(places), kind="stable")]


def problems(config: MixingConfig, tasks: Iterable[str]) -> list[Problem]:
    """What is impossible about the section `mixing` with these tasks."""
    tasks, found = tuple(tasks), []
    for key, kind, values in (("rates", "explicit", config.rates), ("targets", "dev_score", config.targets)):
        if config.kind != kind and values is not None:
            found.append(Problem(f"mixing.{key}", f"be null with mixing={config.kind} (use mixing={kind})", values))
        elif values is not None:
            found += _faults_by_task(f"mixing.{key}", values, tasks)
    if config.kind == "explicit":
        found += [
            Problem(f"mixing.rates.{task}", "be given with mixing=explicit", NOTHING)
            for task in tasks
            if task not in (config.rates or {})
        ]
    if config.kind not in ("temperature", "dev_score") and config.temperature != 1:
        rule = f"be 1 with mixing={config.kind} (use mixing=temperature)"
        found.append(Problem("mixing.temperature", rule, config.temperature))
    return found


def _faults_by_task(key: str, values: Mapping[str, float], tasks: tuple[str, ...]) -> list[Problem]:
    found = [Problem(key, "name tasks of task=", name, tasks) for name in values if name not in tasks]
    hint = " (to leave a task out, leave it out of task=)" if key == "mixing.rates" else ""
    for name, value in values.items():
        if not 0 < value < math.inf:
            found.append(Problem(f"{key}.{name}", f"be above 0 and finite{hint}", value))
    return found
