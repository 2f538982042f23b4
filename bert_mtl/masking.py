"""Which tokens a masked language model must guess: dynamic whole-word masking of packed batches, pure NumPy.

`mask` hides words anew each time it is called: a text is never masked the same way twice (Liu et al. 2019, RoBERTa).
"""

import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

LONGEST_WORD = 16  # tokens; a longer run (SentencePiece on text without spaces) is masked token by token
HIDDEN, REPLACED = 0.8, 0.1  # of the chosen tokens: become [MASK], become a random token; the rest stay (Devlin et al.)


class Masked(NamedTuple):
    """A masked batch. Unused places at the end are 0, of label 0 and weight 0."""

    token_ids: np.ndarray  # `(rows, length)` int32
    places: np.ndarray  # `(capacity,)` int32, ascending: flat places in `token_ids`
    labels: np.ndarray  # `(capacity,)` int32: the ids that stood there
    weights: np.ndarray  # `(capacity,)` float32: 1 where there is something to guess


def mask(
    token_ids: np.ndarray,
    eligible: np.ndarray,
    *,
    continues: np.ndarray,
    special_ids: Iterable[int],
    mask_id: int,
    capacity: int,
    random: np.random.Generator,
    rate: float = 0.15,
) -> Masked:
    """Chooses whole words at random until `rate` of the eligible tokens, at most `capacity`, are to be guessed.

    The word that would exceed that number, and any after it, stay. Each token of a chosen word becomes [MASK] (80 %),
    a random token (10 %) or stays (10 %) on its own, as in BERT's whole-word masking.

    Args:
        token_ids: `(rows, length)`, packed; each segment begins with [CLS], so no word reaches into the next one.
        eligible: `(rows, length)` bool: tokens of the segments that the head learns from.
        continues: `(vocab_size,)` bool: the token continues the word before it (`Tokenizer.continuations`).
        special_ids: ids that are neither masked nor put in a token's place.
        mask_id: the id of [MASK].
        random: the only source of chance.
    """
    ordinary = np.ones(len(continues), bool)
    ordinary[list(special_ids)] = False
    places = np.flatnonzero(eligible & ordinary[token_ids])
    words = _word_numbers(places, continues[token_ids.flat[places]])
    if (budget := round(rate * len(places))) > capacity:  # told once
        warnings.warn(f"{budget} tokens are to be masked, but at most {capacity} in a batch", stacklevel=2)
        budget = capacity
    places = places[_choose(np.bincount(words), budget, random)[words]]

    labels = token_ids.flat[places]
    dice = random.random(len(places))
    others = random.choice(np.flatnonzero(ordinary), len(places))
    masked = token_ids.copy()
    masked.flat[places] = np.select([dice < HIDDEN, dice < HIDDEN + REPLACED], [mask_id, others], labels)
    weights = np.ones(len(places), np.float32)
    return Masked(masked, *(_fill(values, capacity) for values in (places, labels, weights)))


def _word_numbers(places: np.ndarray, continuing: np.ndarray) -> np.ndarray:
    """The number of the word `(tokens,)` that each token belongs to, for tokens at ascending flat `places`."""
    starts = ~continuing | (np.diff(places, prepend=-2) > 1)
    words = np.cumsum(starts) - 1
    is_long = np.bincount(words)[words] > LONGEST_WORD
    return np.cumsum(starts | is_long) - 1


def _choose(sizes: np.ndarray, budget: int, random: np.random.Generator) -> np.ndarray:
    """Which words `(words,)`, of `sizes` tokens, are taken in random order while they fit into `budget` tokens."""
    order = random.choice(len(sizes), min(len(sizes), budget), replace=False)  # no word is smaller than a token
    chosen = np.zeros(len(sizes), bool)
    chosen[order[np.cumsum(sizes[order]) <= budget]] = True
    return chosen


def _fill(values: np.ndarray, size: int) -> np.ndarray:
    filled = np.zeros(size, np.float32 if values.dtype.kind == "f" else np.int32)
    filled[: len(values)] = values
    return filled
