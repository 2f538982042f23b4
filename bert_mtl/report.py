"""What an evaluation says of a head: pure functions of logits and labels, and their table for the terminal."""

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sklearn.metrics import roc_auc_score

from bert_mtl.tasks import accuracy, macro_f1, mean_loss, probabilities

CALIBRATION_BINS = 15  # as Guo et al. 2017


def calibration_error(probs: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error: mean gap between confidence and accuracy over equal-width bins (Guo et al. 2017).

    Args:
        probs: `(examples, labels)` probabilities.
        labels: `(examples,)` label ids.
    """
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(np.sum(gaps))


def area_under_roc(probs: np.ndarray, labels: np.ndarray) -> float | None:
    """Area under the ROC curve: of the second label for two labels, else the mean of each against the rest; None where
    a label has no example."""
    if len(np.unique(labels)) < probs.shape[1]:
        return None
    if probs.shape[1] == 2:
        return float(roc_auc_score(labels, probs[:, 1]))
    return float(roc_auc_score(labels, probs, multi_class="ovr"))


def confusion(predicted: np.ndarray, labels: np.ndarray, count: int) -> list[list[int]]:
    """`count` x `count` numbers of examples by true label (rows) and predicted label (columns)."""
    table = np.zeros((count, count), int)
    np.add.at(table, (labels, predicted), 1)
    return table.tolist()


def by_length(right: np.ndarray, lengths: np.ndarray) -> list[dict]:
    """Accuracy in four groups of texts of (nearly) equal size, from short to long; `up_to` is in tokens."""
    order = np.argsort(lengths, kind="stable")
    groups = [group for group in np.array_split(order, 4) if len(group)]
    return [
        {"up_to": int(lengths[group[-1]]), "examples": len(group), "accuracy": float(right[group].mean())}
        for group in groups
    ]


def worst_errors(probs: np.ndarray, labels: np.ndarray, names: list[str], texts: list[str], count: int) -> list[dict]:
    """The wrong answers given with most confidence, at most `count`."""
    predicted = probs.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-probs[wrong, predicted[wrong]], kind="stable")][:count]
    return [
        {
            "text": texts[i],
            "label": names[labels[i]],
            "predicted": names[predicted[i]],
            "probability": float(probs[i, predicted[i]]),
        }
        for i in order
    ]


def head_report(logits: np.ndarray, labels: np.ndarray, names: list[str], lengths: np.ndarray) -> dict:
    """All figures of one head: `logits (examples, labels)`, `labels (examples,)`, `lengths (examples,)` in tokens."""
    probs, predicted = probabilities(logits), logits.argmax(axis=1)
    return {
        "examples": len(labels),
        "accuracy": accuracy(logits, labels),
        "macro_f1": macro_f1(logits, labels),
        "auc": area_under_roc(probs, labels),
        "ece": calibration_error(probs, labels),
        "loss": mean_loss(logits, labels),
        "labels": names,
        "confusion": confusion(predicted, labels, len(names)),
        "by_length": by_length(predicted == labels, lengths),
    }


def print_report(head: str, report: dict, console: Console | None = None) -> None:
    """The figures of `head_report` (with its `baseline` and `errors`, where given) as tables."""
    console, baseline = console or Console(), report.get("baseline")
    scores = Table("", "BERT", *(["TF-IDF + logistic regression", "gain"] if baseline else []), title=escape(head))
    for name in ("accuracy", "macro_f1", "auc", "ece"):
        row = [name, _shown(report[name])]
        if baseline:
            both = report[name] is not None and baseline[name] is not None
            row += [_shown(baseline[name]), f"{report[name] - baseline[name]:+.4f}" if both else "–"]
        scores.add_row(*row)
    console.print(scores)
    table = Table("true \\ predicted", *map(escape, report["labels"]))
    for name, counts in zip(report["labels"], report["confusion"], strict=True):
        table.add_row(escape(name), *map(str, counts))
    console.print(table)
    lengths = Table("tokens up to", "examples", "accuracy")
    for group in report["by_length"]:
        lengths.add_row(str(group["up_to"]), str(group["examples"]), f"{group['accuracy']:.4f}")
    console.print(lengths)
    for error in report.get("errors", [])[:5]:
        text = error["text"] if len(error["text"]) < 200 else error["text"][:200] + "…"
        said = f"{error['predicted']} {error['probability']:.3f}, is {error['label']}"
        console.print(f"[{said}] {text}", markup=False)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
