"""What an evaluation says of heads: figures of answers and labels."""

from functools import singledispatch

import numpy as np
from sklearn.metrics import roc_auc_score

from bert_mtl.answers import Answered
from bert_mtl.calibration import expected_calibration_error
from bert_mtl.kinds import Head
from bert_mtl.kinds.classification import Classification


def head_report(head: Head, answered: Answered, lengths: np.ndarray) -> dict:
    """All figures of one head: its kind's metrics and what `figures` adds, also by length.

    Args:
        lengths: `(examples,)` tokens of every example of the part.

    `examples` counts labelled ones, of an `mlm` head masked places; without any it stands alone.
    """
    report: dict = {"kind": head.kind, "metric": head.metric, "examples": len(answered.index)}
    if not report["examples"]:
        return report
    report |= head.metrics(answered.answers, answered.labels) | figures(head, answered)
    if head.level != "mask":  # masked places do not tell which text they are of
        report["by_length"] = by_length(head, answered, lengths[answered.index])
    return report


@singledispatch
def figures(head: Head, answered: Answered) -> dict:
    """What a kind's report holds beside its metrics; a kind of one's own adds to it with `@figures.register`."""
    return {}


@figures.register
def _(head: Classification, answered: Answered) -> dict:
    probs, labels, names = answered.answers, answered.labels, head.settings.labels
    return {
        "auc": area_under_roc(probs, labels),
        "ece": expected_calibration_error(probs, labels),
        "labels": names,
        "confusion": confusion(probs.argmax(axis=1), labels, len(names)),
    }


def area_under_roc(probs: np.ndarray, labels: np.ndarray) -> float | None:
    """Area under the ROC curve: of the second label for two labels, else the mean of each against the rest; None where
    a label has no example."""
    if len(np.unique(labels)) < probs.shape[1]:
        return None
    if probs.shape[1] == 2:
        return float(roc_auc_score(labels, probs[:, 1]))
    return float(np.mean([roc_auc_score(labels == label, probs[:, label]) for label in range(probs.shape[1])]))


def confusion(predicted: np.ndarray, labels: np.ndarray, count: int) -> list[list[int]]:
    """`count` x `count` numbers of examples by true label (rows) and predicted label (columns)."""
    table = np.zeros((count, count), int)
    np.add.at(table, (labels, predicted), 1)
    return table.tolist()


def by_length(head: Head, answered: Answered, lengths: np.ndarray) -> list[dict]:
    """The head's metric in four groups of texts of (nearly) equal size, from short to long; `up_to` is in tokens, as
    are `lengths` `(texts,)`."""
    order = np.argsort(lengths, kind="stable")
    groups = [group for group in np.array_split(order, 4) if len(group)]

    def score(group: np.ndarray) -> float:
        chosen = (_chosen(values, group) for values in (answered.answers, answered.labels))
        return head.metrics(*chosen)[head.metric]

    return [{"up_to": int(lengths[group[-1]]), "examples": len(group), head.metric: score(group)} for group in groups]


def _chosen(values: np.ndarray | list, places: np.ndarray) -> np.ndarray | list:
    return [values[i] for i in places] if isinstance(values, list) else values[places]
