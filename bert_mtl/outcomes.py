"""What became of every labelled item of a head: what it is, what was answered, whether that is right, and what the
head's metric is summed or ranked from (`bert_mtl.scores`).
"""

import hashlib
import json
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np

from bert_mtl.answers import Answered
from bert_mtl.kinds import Head
from bert_mtl.kinds.classification import Classification
from bert_mtl.kinds.multilabel import Multilabel
from bert_mtl.kinds.regression import Regression
from bert_mtl.kinds.similarity import SAMPLE, Similarity, cosine, finds_partner
from bert_mtl.kinds.tagging import Tagging
from bert_mtl.kinds.vector import Vector, cosines
from bert_mtl.scores import by_label
from spans.tags import entities

OTHER_SCORES = {"accuracy": "mean", "cosine": "mean", "micro_f1": "f1"}  # the rest are called as the metric is


@dataclass(frozen=True)
class Outcomes:
    """Items of one head, in the order in which they were answered.

    Attributes:
        labels, answers: texts to read.
        right: a bool an item; None where an answer is not simply right or wrong.
        score: which of `bert_mtl.scores` gives the head's metric; None where the metric is of no such kind.
        statistics: `(items, k)` what it is given; rows of NaN have no part in it.
    """

    labels: list[str]
    answers: list[str]
    right: np.ndarray | list[bool | None] | None = None
    score: str | None = None
    statistics: np.ndarray | None = None


@singledispatch
def outcomes(head: Head, answered: Answered) -> Outcomes:
    """The outcomes of a head with its tuned state. A kind of one's own says what its metric is summed from with
    `@outcomes.register`; until then its items can be read, and no other run be compared with it."""
    return Outcomes(
        [_json(label) for label in answered.labels], [_json(said) for said in head.decode(answered.answers)]
    )


@outcomes.register
def _(head: Classification, answered: Answered) -> Outcomes:
    names, labels, predicted = head.settings.labels, answered.labels, answered.answers.argmax(axis=1)
    right = predicted == labels
    each = np.eye(len(names), dtype=bool)
    statistics = right[:, None] if head.metric == "accuracy" else by_label(each[predicted], each[labels])
    return Outcomes([names[i] for i in labels], [names[i] for i in predicted], right, _score(head), statistics)


@outcomes.register
def _(head: Multilabel, answered: Answered) -> Outcomes:
    truth, predicted = answered.labels == 1, answered.answers >= head.thresholds
    statistics = by_label(predicted, truth)
    if head.metric == "micro_f1":
        statistics = statistics.reshape(len(truth), 3, -1).sum(axis=2)

    def named(table: np.ndarray) -> list[str]:
        return [", ".join(head.settings.labels[i] for i in np.flatnonzero(row)) for row in table]

    return Outcomes(named(truth), named(predicted), (truth == predicted).all(axis=1), _score(head), statistics)


@outcomes.register
def _(head: Tagging, answered: Answered) -> Outcomes:
    """A text is right where all its tags are."""
    given, found = [[head.tags[tag] for tag in text] for text in answered.labels], head.decode(answered.answers)
    counts = []
    for truth, best in zip(given, found, strict=True):
        real, guessed = set(entities(truth)), set(entities(best))
        counts.append((len(real & guessed), len(guessed), len(real)))
    right = np.array([truth == best for truth, best in zip(given, found, strict=True)])
    return Outcomes(
        [" ".join(tags) for tags in given], [" ".join(tags) for tags in found], right, "f1", np.array(counts)
    )


@outcomes.register
def _(head: Regression, answered: Answered) -> Outcomes:
    statistics = np.stack([answered.answers, answered.labels], axis=1)
    return Outcomes(_numbers(answered.labels), _numbers(answered.answers), None, _score(head), statistics)


@outcomes.register
def _(head: Similarity, answered: Answered) -> Outcomes:
    """Where there are scores, what Spearman's correlation ranks; else which of the pairs that the metric looks at find
    their partner (among all of these, in a resample too); of single texts nothing, as uniformity is of their pairs."""
    vectors, labels, alike = answered.answers, answered.labels, cosine(answered.answers)
    read = (
        [_json(label) if known else "" for label, known in zip(labels, ~np.isnan(labels), strict=True)],
        _numbers(alike),
    )
    if not np.isnan(labels).all():
        statistics = np.stack([np.where(np.isnan(labels), np.nan, alike), labels], axis=1)
        return Outcomes(*read, None, "spearman", statistics)
    pairs = np.flatnonzero(head.learned(vectors, labels))[:SAMPLE]
    if not len(pairs):
        return Outcomes(*read)
    statistics = np.full((len(labels), 1), np.nan)
    statistics[pairs, 0] = finds_partner(vectors[pairs])
    right = [None if np.isnan(found) else bool(found) for found in statistics[:, 0]]
    return Outcomes(*read, right, "mean", statistics)


@outcomes.register
def _(head: Vector, answered: Answered) -> Outcomes:
    """A vector is read as a mark of its numbers, an answer as its cosine with the label."""
    alike = cosines(answered.answers, answered.labels)
    marks = [f"vector {hashlib.sha256(label.tobytes()).hexdigest()[:8]}" for label in answered.labels]
    return Outcomes(marks, _numbers(alike), None, _score(head), alike[:, None])


def _score(head: Head) -> str:
    return OTHER_SCORES.get(head.metric, head.metric)


def _numbers(values: np.ndarray) -> list[str]:
    return [f"{value:.4g}" for value in values]


def _json(value: Any) -> str:
    return json.dumps(value.tolist() if isinstance(value, np.ndarray | np.generic) else value, ensure_ascii=False)
