"""Whether one system beats another on the same examples: their statistics in, differences with interval and p out.

Paired bootstrap (Efron & Tibshirani 1993; Davison & Hinkley 1997), McNemar's exact test, Holm's adjustment.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr

from bert_mtl.scores import SCORES

CHUNK = 500_000  # numbers of the counts that are in memory at once
ZERO = 1e-12  # differences below it are rounding


class Difference(NamedTuple):
    """A group's score minus the baseline's, with its 95 % interval `low` to `high`, and p for no difference."""

    difference: float
    low: float
    high: float
    p: float


class Discordance(NamedTuple):
    """Examples that one of two systems alone has right, and p for both being right as often."""

    only_baseline: int
    only_this: int
    p: float


def paired_bootstrap(
    score: str, groups: Sequence[Sequence[np.ndarray]], resamples: int, seed: int = 0
) -> list[Difference]:
    """How each group but the first (the baseline) differs from it, where all have answered the same examples.

    Args:
        score: of `bert_mtl.scores`.
        groups: statistics `(examples, k)` of each run of each group.

    A resample draws as many examples as there are, with replacement; every run is scored on the same ones, and a group
    has the mean of its runs. Of a group of n > 1 runs, n - 1 are drawn as well, with replacement: as many as give the
    mean of the group the variance that its seeds show, s²/n (Rao & Wu 1988). Of a single run nothing is known of other
    seeds. The interval goes from the 2.5th to the 97.5th percentile of the differences d.
    p = min(1, 2 · (1 + min(#{d <= 0}, #{d >= 0})) / (resamples + 1)), the smallest share that an interval of this kind
    leaves outside of it when 0 lies on its edge; with the 1 it is never 0 (Davison & Hinkley 1997, section 4.2).
    """
    statistics, often = _distinct(groups)
    observed = _group_scores(score, statistics, np.bincount(often)[None].astype(float))[0]
    generator = np.random.default_rng(seed)
    counts = _resampled(often, resamples, generator)
    drawn = np.concatenate([_group_scores(score, statistics, chunk, generator) for chunk in counts])
    return [_difference(drawn[:, i] - drawn[:, 0], observed[i] - observed[0]) for i in range(1, len(groups))]


def _difference(drawn: np.ndarray, observed: float) -> Difference:
    drawn = np.where(np.abs(drawn) < ZERO, 0, drawn)
    low, high = np.percentile(drawn, [2.5, 97.5])
    tail = 1 + min(int(np.sum(drawn <= 0)), int(np.sum(drawn >= 0)))
    return Difference(float(observed), float(low), float(high), min(1.0, 2 * tail / (len(drawn) + 1)))


def _group_scores(
    score: str, groups: Sequence[Sequence[np.ndarray]], counts: np.ndarray, generator: np.random.Generator | None = None
) -> np.ndarray:
    """`(resamples, groups)` means of the scores of each group's runs, with a generator of those that it draws."""
    means = []
    for group in groups:
        scores = np.stack([SCORES[score](run, counts) for run in group], axis=1)
        weights = np.full(scores.shape, 1 / len(group))
        if generator is not None and len(group) > 1:
            weights = generator.multinomial(len(group) - 1, weights[0], len(scores)) / (len(group) - 1)
        means.append((scores * weights).sum(axis=1))
    return np.stack(means, axis=1)


def _distinct(groups: Sequence[Sequence[np.ndarray]]) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """The statistics of unlike examples alone, and for each example `(examples,)` which of those are its own.

    Where examples are few of a kind (both right, one right, …) this is what makes thousands of resamples quick.
    """
    rows = np.concatenate([run for group in groups for run in group], axis=1) + 0.0  # without -0.0
    as_bytes = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
    _, first, place = np.unique(as_bytes, return_index=True, return_inverse=True)
    return [[run[first] for run in group] for group in groups], place.ravel()


def _resampled(place: np.ndarray, resamples: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """`(a chunk of resamples, kinds of examples)` counts; `place` `(examples,)` tells each example's kind."""
    kinds, examples = int(place.max()) + 1, len(place)
    while resamples > 0:
        chunk = min(resamples, max(1, CHUNK // kinds))
        draws = (place[generator.integers(examples, size=examples)] for _ in range(chunk))
        yield np.stack([np.bincount(draw, minlength=kinds) for draw in draws]).astype(np.float64)
        resamples -= chunk


def mcnemar(baseline: np.ndarray, this: np.ndarray) -> Discordance:
    """McNemar's test (1947), exact and two-sided: of the examples that only one of the two has right, either's share is
    1/2 if there is no difference. Both are `(examples,)` bools; p is 1 where they are right on the same ones."""
    only_baseline, only_this = int(np.sum(baseline & ~this)), int(np.sum(this & ~baseline))
    fewer, both = min(only_baseline, only_this), only_baseline + only_this
    return Discordance(only_baseline, only_this, min(1.0, 2 * float(bdtr(fewer, both, 0.5))) if both else 1.0)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979): the chance that any of them is this small without a difference.
    Each in its place; they never fall below the ones that were smaller before."""
    order = np.argsort(values, kind="stable")
    steps = [(len(values) - rank) * values[place] for rank, place in enumerate(order)]
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1) if steps else []
    return adjusted.tolist()
