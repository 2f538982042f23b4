"""How far a classification head's probabilities are from how often it is right, and the temperature that mends it.

Guo et al. 2017, On Calibration of Modern Neural Networks (https://arxiv.org/abs/1706.04599).
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 15  # as in the paper
BOUNDS = (0.05, 20.0)  # of temperatures
SMALLEST = float(np.finfo(np.float32).tiny)  # a probability that float32 made 0


class Calibrated(NamedTuple):
    """The temperature of each group of texts, the expected calibration error with and without them, and the number of
    texts."""

    temperatures: list[float]
    ece_before: float
    ece_after: float
    texts: int


def calibrated(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, count: int) -> Calibrated:
    """The temperatures of these texts.

    A temperature looks better on the texts that it was fitted to than on others. So `ece_after` is cross-fitted: each
    of two halves, drawn by chance, is divided by the temperatures of the other half, and the error is that of all texts
    together, over as many as `ece_before`. The `temperatures` themselves are those of all.

    Args:
        probabilities: `(texts, labels)`.
        labels: `(texts,)` label ids.
        groups: `(texts,)` the number of each text's group, below `count`.
    """
    order, crossed = np.random.default_rng(0).permutation(len(labels)), np.empty(probabilities.shape)
    halves = order[::2], order[1::2]
    members = [groups == group for group in range(count)]
    for own, other in (halves, halves[::-1]):
        for inside in members:
            mine, others = own[inside[own]], other[inside[other]]
            crossed[mine] = scaled(probabilities[mine], temperature(probabilities[others], labels[others]))
    return Calibrated(
        [temperature(probabilities[inside], labels[inside]) for inside in members],
        expected_calibration_error(probabilities, labels),
        expected_calibration_error(crossed, labels),
        len(labels),
    )


def temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The number within `BOUNDS` by which the logits of `probabilities` `(texts, labels)` are divided to make the true
    `labels` `(texts,)` likeliest; above 1 where the model is too sure.

    1 where no answer is wrong, or there is none: the colder, the likelier, and how cold it should be these texts do not
    tell.
    """
    if (probabilities.argmax(axis=1) == labels).all():
        return 1.0
    truth = np.arange(len(labels)), labels
    logits = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[truth].mean())

    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities `(texts, labels)` of logits divided by the temperature: p^(1/T), brought to a sum of 1."""
    exact = probabilities.astype(np.float64)
    powers = (exact / exact.max(axis=1, keepdims=True)) ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over bins of equal width, by the share of texts in each; 0 without
    texts.

    Args:
        probabilities: `(texts, labels)`.
        labels: `(texts,)` label ids.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    inside = [places == place for place in np.unique(places)]
    return float(sum(abs(right[those].mean() - confidence[those].mean()) * those.mean() for those in inside))
