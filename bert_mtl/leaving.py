"""Where texts may leave a model with exits: thresholds of confidence, chosen on dev.

A text leaves at the first exit whose likeliest label has at least the exit's threshold of probability (Teerapittayanon
et al. 2016, with probabilities in the place of entropies).
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

TRIED = 1000  # combinations of thresholds
NEVER = 2.0  # no probability reaches it


def exit_of(answers: Sequence[np.ndarray], thresholds: Sequence[float]) -> np.ndarray:
    """`(texts,)`: at which of the exits each text leaves, from the probabilities `(texts, labels)` at each; the last of
    `answers`, which has no threshold, takes the rest."""
    sure = [found.max(axis=1) >= threshold for found, threshold in zip(answers, thresholds, strict=False)]
    return np.stack([*sure, np.full(len(answers[-1]), True)]).argmax(axis=0)


def left(answers: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
    """`(texts, labels)`: what each text was answered at the exit of `places` `(texts,)`."""
    return np.stack(answers)[places, np.arange(len(places))]


def thresholds(
    answers: Sequence[np.ndarray], depths: Sequence[int], score: Callable[[np.ndarray], float], floor: float
) -> list[float]:
    """The thresholds, one for each exit, with which texts pass the fewest layers on the average, while `score` of their
    answers is at least `floor`; `NEVER` at all where none are.

    `depths` are those of `answers`. Tried are all combinations of quantiles, as many as `TRIED` allows.
    """
    count = max(int(TRIED ** (1 / max(len(depths) - 1, 1))) - 1, 1)
    # Probabilities that there are: between two of them a threshold would be rounded to one when it is compared.
    sure = [np.quantile(each.max(axis=1), np.linspace(0, 1, count), method="higher") for each in answers[:-1]]
    best, fewest = [NEVER] * len(sure), float(depths[-1])
    stacked, order = np.stack(answers), np.arange(len(answers[-1]))
    for tried in itertools.product(*([*np.unique(each), NEVER] for each in sure)):
        places = exit_of(answers, tried)
        layers = float(np.take(depths, places).mean())
        if layers < fewest and score(stacked[places, order]) >= floor:
            best, fewest = [float(threshold) for threshold in tried], layers
    return best
