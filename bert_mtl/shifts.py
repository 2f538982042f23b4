"""How far what is seen now is from what was: counts or moments of both go in, a measure and its p-value come out."""

import math

import numpy as np
from scipy.stats import chi2_contingency, norm

LEAST = 5.0
"""Expected counts below which a chi-square test is not to be trusted (Cochran 1954); such bins are put together."""


def psi(reference: np.ndarray, now: np.ndarray) -> float:
    """Population stability index of counts `(bins,)`: the sum of (q - p) ln(q / p) over the bins' shares, that is both
    relative entropies together (Jeffreys 1946). Half a count is added to every bin, so that none is empty."""
    p, q = (_shares(np.asarray(counts, np.float64) + 0.5) for counts in (reference, now))
    return float(np.sum((q - p) * np.log(q / p)))


def jensen_shannon(reference: np.ndarray, now: np.ndarray) -> float:
    """Jensen-Shannon distance of counts `(bins,)`, from 0 to 1 (base 2; Endres & Schindelin 2003), less what chance
    alone would give.

    Of two samples from one distribution the divergence is (bins - 1) (1/n + 1/m) / (8 ln 2) on average (its quadratic
    term), which is taken off before the root: else rare pieces of a few texts alone would look like a shift.
    """
    reference, now = np.asarray(reference, np.float64), np.asarray(now, np.float64)
    p, q = _shares(reference), _shares(now)
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    bins = np.count_nonzero(middle)
    chance = (bins - 1) * (1 / reference.sum() + 1 / now.sum()) / (8 * math.log(2))
    return math.sqrt(max(divergence - chance, 0.0))


def chi_square(reference: np.ndarray, now: np.ndarray) -> float | None:
    """p-value of Pearson's test that counts `(bins,)` are of one distribution; each count must be of another text. Bins
    that expect fewer than `LEAST` in either are one; None where no two are left."""
    table = np.array([reference, now], np.float64)
    expected = table.sum(axis=0) * table.sum(axis=1, keepdims=True) / table.sum()
    few = (expected < LEAST).any(axis=0)
    merged = np.column_stack([table[:, ~few], table[:, few].sum(axis=1)]) if few.any() else table
    together = merged.sum(axis=0) * merged.sum(axis=1, keepdims=True) / merged.sum()
    merged = merged[:, (together >= LEAST).all(axis=0)]
    if merged.shape[1] < 2:
        return None
    return float(chi2_contingency(merged, correction=False).pvalue)


def mean_difference(mean: float, deviation: float, examples: int, now: np.ndarray) -> tuple[float, float | None]:
    """By how many of the reference's deviations (by 1, where it has none) the mean of values `(texts,)` is off, and the
    p-value of Welch's test (by the normal distribution, as examples are many); None of fewer than two values."""
    values = np.asarray(now, np.float64)
    off = float(values.mean()) - mean
    shift = off / (deviation or 1.0)
    if len(values) < 2:
        return shift, None
    error = math.sqrt(deviation**2 / examples + float(values.var(ddof=1)) / len(values))
    return shift, float(2 * norm.sf(abs(off) / error)) if error else float(off == 0)


def _shares(counts: np.ndarray) -> np.ndarray:
    counts = np.asarray(counts, np.float64)
    return counts / counts.sum()


def _relative_entropy(p: np.ndarray, q: np.ndarray) -> float:
    """In bits."""
    known = p > 0
    return float(np.sum(p[known] * np.log2(p[known] / q[known])))
