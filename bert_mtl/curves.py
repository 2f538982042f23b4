"""Curves of a head's answers to a part: what a number alone hides (calibration, precision against recall)."""

from functools import singledispatch
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve

from bert_mtl.answers import Answered
from bert_mtl.kinds import Head
from bert_mtl.kinds.classification import Classification
from bert_mtl.kinds.multilabel import Multilabel
from bert_mtl.kinds.regression import Regression
from bert_mtl.kinds.tagging import Tagging
from spans.tags import entities

BINS = 15  # of confidence, as in `calibration`
RECALLS = np.linspace(0, 1, 101)
CONFIDENCES = 20  # bars of the histogram
POINTS = 500  # of a scatter plot


@singledispatch
def curves(head: Head, answered: Answered) -> dict[str, Any]:
    """Curves by name, of plain numbers; none where a kind has no such. A kind of one's own adds to it with
    `@curves.register`."""
    return {}


@curves.register
def _(head: Classification, answered: Answered) -> dict[str, Any]:
    probs, labels = answered.answers, answered.labels
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    return {
        "calibration": reliability(confidence, right),
        "precision_recall": {
            name: precision_by_recall(labels == label, probs[:, label])
            for label, name in enumerate(head.settings.labels)
            if (labels == label).any()
        },
        "confidences": {
            "right": np.histogram(confidence[right], CONFIDENCES, (0, 1))[0].tolist(),
            "wrong": np.histogram(confidence[~right], CONFIDENCES, (0, 1))[0].tolist(),
        },
    }


@curves.register
def _(head: Multilabel, answered: Answered) -> dict[str, Any]:
    probs, truth = answered.answers, answered.labels == 1
    yes = probs >= 0.5
    return {
        "calibration": reliability(np.where(yes, probs, 1 - probs).ravel(), (yes == truth).ravel()),
        "precision_recall": {
            name: precision_by_recall(truth[:, label], probs[:, label])
            for label, name in enumerate(head.settings.labels)
            if truth[:, label].any()
        },
    }


@curves.register
def _(head: Regression, answered: Answered) -> dict[str, Any]:
    places = np.linspace(0, len(answered.labels) - 1, min(len(answered.labels), POINTS)).astype(int)
    return {"scatter": [[float(answered.labels[i]), float(answered.answers[i])] for i in places]}


@curves.register
def _(head: Tagging, answered: Answered) -> dict[str, Any]:
    given = [entities([head.tags[tag] for tag in text]) for text in answered.labels]
    found = [entities(text) for text in head.decode(answered.answers)]
    kinds = sorted({kind for texts in (given, found) for text in texts for kind, *_ in text})
    return {"by_type": {kind: _found_of(kind, found, given) for kind in kinds}}


def reliability(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Mean confidence and accuracy of the answers in each of `BINS` bins of equal width that has any, from low to high
    (Niculescu-Mizil & Caruana 2005). Both arrays `(answers,)`."""
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "confidence": float(confidence[inside].mean()),
            "accuracy": float(right[inside].mean()),
            "examples": int(inside.sum()),
        }
        for inside in (places == place for place in np.unique(places))
    ]


def precision_by_recall(truth: np.ndarray, scores: np.ndarray) -> dict[str, list[float]]:
    """The best precision that reaches at least each of 101 recalls (Manning et al. 2008, interpolated precision), for
    yes or no `truth` `(examples,)` and `scores` `(examples,)`."""
    precision, recall, _ = precision_recall_curve(truth, scores)
    best = np.maximum.accumulate(precision)  # recall falls along the arrays, so the best of all higher ones
    places = len(recall) - 1 - np.searchsorted(recall[::-1], RECALLS - 1e-12, side="left")
    return {"recall": RECALLS.round(2).tolist(), "precision": best[places].round(6).tolist()}


def _found_of(kind: str, found: list[list], given: list[list]) -> dict[str, float]:
    """Precision, recall and F1 of the entities of one type, found in full."""
    hits = said = there = 0
    for ours, theirs in zip(found, given, strict=True):
        mine = {entity for entity in ours if entity[0] == kind}
        true = {entity for entity in theirs if entity[0] == kind}
        hits, said, there = hits + len(mine & true), said + len(mine), there + len(true)
    return {
        "precision": hits / max(said, 1),
        "recall": hits / max(there, 1),
        "f1": 2 * hits / max(said + there, 1),
        "examples": there,
    }
