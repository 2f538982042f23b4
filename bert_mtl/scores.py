"""Scores of resampled examples: what a metric is summed or ranked from in, the metric of each resample out.

Statistics are rows `(examples, k)`; `counts` `(resamples, examples)` tell how often a resample holds each of them.
"""

from collections.abc import Callable, Mapping

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mean(statistics: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(resamples,)` means of the one number that each example has: accuracy, say."""
    return (counts @ statistics)[:, 0] / counts.sum(axis=1)


def f1(statistics: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(resamples,)` F1 scores over all decisions; rows are (hits, found, given) of an example."""
    hits, found, given = (counts @ statistics).T
    return 2 * hits / np.maximum(found + given, 1)


def macro_f1(statistics: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(resamples,)` means over labels (those found or given in the resample) of the F1 score; 0 where there is none.
    Rows hold an example's hits of each label, then what was found, then what is given (`by_label`)."""
    hits, found, given = _by_label(statistics, counts)
    seen = found + given > 0
    scores = np.where(seen, 2 * hits / np.maximum(found + given, 1), 0)
    return scores.sum(axis=1) / np.maximum(seen.sum(axis=1), 1)


def matthews(statistics: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(resamples,)` Matthews correlations for any number of labels (Gorodkin 2004); 0 where truth or answer is
    constant. Rows as for `macro_f1`."""
    hits, found, given = _by_label(statistics, counts)
    examples = counts.sum(axis=1, keepdims=True)

    def covariance(both: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (both - one * other / examples).sum(axis=1)

    scale = covariance(given, given, given) * covariance(found, found, found)
    return _ratio(covariance(hits, found, given), scale)


def pearson(statistics: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(resamples,)` linear correlations of the two numbers that each example has; 0 where one of them is constant."""
    a, b = np.broadcast_to(statistics.T[:, None], (2, *counts.shape))
    return _correlation(a, b, counts)


def spearman(statistics: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(resamples,)` correlations of the ranks that the two numbers of each example have in the resample."""
    a, b = (ranks(values, counts) for values in statistics.T)
    return _correlation(a, b, counts)


SCORES: Mapping[str, Score] = {
    "mean": mean,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def score(name: str, statistics: np.ndarray) -> float:
    """The score of the examples as they are."""
    return float(SCORES[name](statistics, np.ones((1, len(statistics))))[0])


def by_label(found: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Rows for `macro_f1` and `matthews`, `(examples, 3 · labels)`, from two tables `(examples, labels)` of bools."""
    return np.concatenate([found & given, found, given], axis=1).astype(np.float64)


def ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(resamples, examples)` ranks of `values` `(examples,)` within each resample, from 1; equal values share their
    mean rank, and so do the copies of an example."""
    order = np.argsort(values, kind="stable")
    begins = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    alike = np.add.reduceat(counts[:, order], begins, axis=1)
    shared = np.cumsum(alike, axis=1) - (alike - 1) / 2
    place = np.empty(len(values), int)
    place[order] = np.repeat(np.arange(len(begins)), np.diff(begins, append=len(values)))
    return shared[:, place]


def _by_label(statistics: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(3, resamples, labels)` sums of hits, found and given."""
    sums = counts @ statistics
    return sums.reshape(len(sums), 3, -1).transpose(1, 0, 2)


def _correlation(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(resamples,)` linear correlations of `(resamples, examples)` numbers."""
    total = counts.sum(axis=1, keepdims=True)
    a, b = (values - (counts * values).sum(axis=1, keepdims=True) / total for values in (a, b))
    both, one, other = ((counts * x * y).sum(axis=1) for x, y in ((a, b), (a, a), (b, b)))
    varied = (_spread(a, counts) > 0) & (_spread(b, counts) > 0)
    return _ratio(both, np.where(varied, one * other, 0))


def _spread(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`(resamples,)` distances from the least to the greatest number that a resample holds."""
    there = counts > 0
    return np.where(there, values, -np.inf).max(axis=1) - np.where(there, values, np.inf).min(axis=1)


def _ratio(covariance: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, covariance / np.sqrt(np.where(scale > 0, scale, 1)), 0)
