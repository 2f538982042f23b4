"""What an evaluation says of heads: figures of answers and labels, and their tables for the terminal."""

from collections.abc import Iterable, Mapping
from functools import singledispatch

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sklearn.metrics import roc_auc_score

from bert_mtl.answers import Answered
from bert_mtl.calibration import expected_calibration_error
from bert_mtl.kinds import Head
from bert_mtl.kinds.classification import Classification

SHOWN_ERRORS = 5
SHOWN_TEXT = 200


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


def print_report(name: str, report: dict, console: Console | None = None) -> None:
    """The figures of `head_report` (with its `baseline` and `errors`, where given) as tables."""
    console = console or Console()
    if not report["examples"]:
        console.print(f"{name}: no labelled example", markup=False)
        return
    baseline = report.get("baseline")
    scores = Table("", "BERT", *(["TF-IDF baseline", "gain"] if baseline else []), title=escape(name))
    for figure, value in report.items():
        if value is None or isinstance(value, float):
            scores.add_row(figure, *_compared(value, baseline, figure))
    console.print(scores)
    if "confusion" in report:
        table = Table("true \\ predicted", *map(escape, report["labels"]))
        for label, counts in zip(report["labels"], report["confusion"], strict=True):
            table.add_row(escape(label), *map(str, counts))
        whole = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        if whole <= console.width:  # else it is for the JSON's readers
            console.print(table)
    if "by_length" in report:
        lengths = Table("tokens up to", "examples", report["metric"])
        for group in report["by_length"]:
            lengths.add_row(str(group["up_to"]), str(group["examples"]), _shown(group[report["metric"]]))
        console.print(lengths)
    for error in report.get("errors", [])[:SHOWN_ERRORS]:
        console.print(error_line(error), markup=False, highlight=False)


def error_line(error: Mapping) -> str:
    """A mistake as one line: what was answered and what is right, then the start of the text."""
    said = ", ".join(f"{key} {_told(value)}" for key, value in error.items() if key not in ("text", "text_b"))
    text = " | ".join(error[key] for key in ("text", "text_b") if key in error)
    return f"[{said}] {text if len(text) < SHOWN_TEXT else text[:SHOWN_TEXT] + '…'}"


def print_summary(reports: Mapping[str, dict], console: Console | None = None) -> None:
    """A line a head: the metric by which epochs are compared."""
    console, baselines = console or Console(), any("baseline" in report for report in reports.values())
    table = Table("head", "examples", "metric", "BERT", *(["TF-IDF", "gain"] if baselines else []))
    for name, report in reports.items():
        metric, baseline = report["metric"], report.get("baseline", {} if baselines else None)
        scores = _compared(report.get(metric), baseline, metric)
        table.add_row(escape(name), f"{report['examples']:,}", metric, *scores)
    console.print(table)


def _compared(value: float | None, baseline: Mapping | None, figure: str) -> list[str]:
    """A figure and, where a baseline is asked for, what that reaches and what is gained."""
    if baseline is None:
        return [_shown(value)]
    other = baseline.get(figure)
    both = value is not None and other is not None
    return [_shown(value), _shown(other), f"{value - other:+.4f}" if both else "–"]  # type: ignore[operator]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _told(value: object) -> str:
    """Numbers by three digits, spans by type and text, lists by their items."""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return f"{value['type']} '{value['text']}'"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "; ".join(map(_told, value)) or "none"
    return str(value)
