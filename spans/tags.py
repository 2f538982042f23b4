"""Tags of words and the spans they name: O outside, B-x at the first word of an x, I-x at its further words."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

OUTSIDE = "O"
Word = tuple[str, int, int]  # as `spans.words.words` gives it


def tags_of(types: Sequence[str]) -> list[str]:
    """The tags of types of spans in the order of their ids: O, B-a, I-a, B-b, I-b, …"""
    return [OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in "BI")]


def continues(before: str, tag: str) -> bool:
    """Whether a word of this tag belongs to the span of the word before."""
    return tag.startswith("I-") and before[1:] == tag[1:]


def follows(tags: Sequence[str]) -> np.ndarray:
    """`(tags, tags)` bool: whether tag j may come after tag i. What may follow O may also begin a text."""
    inside, rest = np.array([tag.startswith("I-") for tag in tags]), np.array([tag[1:] for tag in tags])
    return ~inside | (rest[:, None] == rest)


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first word, word after the last) of each span; an I-x that continues nothing begins one, as in conlleval
    (Tjong Kim Sang & De Meulder 2003) and seqeval."""
    found: list[tuple[str, int, int]] = []
    for place, tag in enumerate(tags):
        if place and continues(tags[place - 1], tag):
            kind, first, _ = found.pop()
            found.append((kind, first, place + 1))
        elif tag != OUTSIDE:
            found.append((tag[2:], place, place + 1))
    return found


@dataclass(frozen=True)
class Decoder:
    """Probabilities of tags in, the best valid tags and their spans out.

    Attributes:
        tags: by id.
        transitions, start, end: scores `(tags, tags)`, `(tags,)`, `(tags,)` that a CRF has learned; else None. That
            I-x continues an x is a rule beside them.
    """

    tags: Sequence[str]
    transitions: ArrayLike | None = None
    start: ArrayLike | None = None
    end: ArrayLike | None = None

    @cached_property
    def _chain(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What was learned, and -inf where the rule forbids."""
        rules = np.where(follows(self.tags), 0.0, -np.inf)
        learned = (self.transitions, self.start, self.end)
        transitions, start, end = (0.0 if scores is None else np.asarray(scores) for scores in learned)
        return rules + transitions, rules[self.tags.index(OUTSIDE)] + start, np.zeros(len(self.tags)) + end

    def best(self, probabilities: np.ndarray) -> np.ndarray:
        """The ids `(words,)` of the best valid tags of one text, whose words have `probabilities` `(words, tags)`."""
        return viterbi(np.log(np.maximum(probabilities, 1e-30)), *self._chain)

    def spans(self, probabilities: np.ndarray, words: Sequence[Word], text: str) -> list[dict]:
        """The spans of one text: `[{"type", "start", "end", "text", "score"}]`.

        Args:
            probabilities: `(words, tags)`.
            words: those that have a row in `probabilities` (truncation leaves some without), in its order: each with
                the places in `text` of its first character and of the one after its last.

        `start` and `end` are such places too. The score is the mean probability that the span's words, each on its own,
        give their tags; a CRF's transitions choose the tags but have no part in it.
        """
        best, found = self.best(probabilities), []
        sure = probabilities[np.arange(len(best)), best]
        for kind, first, after in entities([self.tags[tag] for tag in best]):
            start, end, score = words[first][1], words[after - 1][2], float(sure[first:after].mean())
            found.append({"type": kind, "start": start, "end": end, "text": text[start:end], "score": score})
        return found


def viterbi(scores: np.ndarray, transitions: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The tag ids `(words,)` of the best sequence for scores `(words, tags)`; -inf forbids (Viterbi 1967).

    `transitions[i, j]` is the score of tag j after tag i.
    """
    if not len(scores):
        return np.zeros(0, np.int64)
    incoming = np.ascontiguousarray(transitions.T)
    back = np.zeros(scores.shape, np.int64)
    everyone = np.arange(scores.shape[1])
    best = start + scores[0]
    for word in range(1, len(scores)):
        options = incoming + best
        back[word] = options.argmax(axis=1)
        best = options[everyone, back[word]] + scores[word]
    path = np.zeros(len(scores), np.int64)
    path[-1] = (best + end).argmax()
    for word in range(len(scores) - 1, 0, -1):
        path[word - 1] = back[word, path[word]]
    return path
