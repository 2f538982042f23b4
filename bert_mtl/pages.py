"""What is known of a run, or of runs beside each other, goes in as a payload; one HTML file comes out that needs no
other: no host is asked, and what texts say stays text."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

WEB = Path(__file__).parent / "web"
STYLES = ("vendor/uPlot.min.css", "page.css")
SCRIPTS = (("vendor/uPlot.iife.min.js",), ("dom.js", "curves.js", "browser.js", "page.js"))
"""Each group is one script element; the second is a module."""

HUES = 8  # colours of series in page.css; the ninth series has the first colour again, dashed
FEW_LABELS = 12  # up to which a confusion matrix keeps the order of its labels and shows shares in its cells
LONG_LABEL = 8  # characters of a label from which the columns' names stand upright
CONFUSED_PAIRS = 10
MINUS = "\N{MINUS SIGN}"
UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
METRICS = {
    "macro_f1": ("macro-F1", "mean of the labels' F1"),
    "micro_f1": ("micro-F1", "F1 over all decisions"),
    "f1": ("F1", "entities found in full"),
    "auc": ("AUC", "area under the ROC curve"),
    "ece": ("ECE", "mean gap between confidence and accuracy; lower is better"),
    "matthews": ("Matthews", "correlation of labels and answers"),
    "spearman": ("Spearman", "correlation of ranks"),
    "pearson": ("Pearson", "linear correlation"),
    "mse": ("MSE", "mean squared error; lower is better"),
    "loss": ("loss", "what training minimises; lower is better"),
    "exact_match": ("exact match", "the whole set of labels is right"),
    "accuracy": ("accuracy", "share of right answers"),
    "perplexity": ("perplexity", "lower is better"),
}
"""How a metric is written, and what it is."""


def report_page(payload: Mapping[str, Any]) -> str:
    """The HTML of a run's report. `payload` is what `bert_mtl.report` gathers from the run's folder."""
    return _rendered("report.html", payload)


def compare_page(payload: Mapping[str, Any]) -> str:
    """The HTML of a comparison of groups of runs. `payload` is what `bert_mtl.compare` gathers."""
    return _rendered("compare.html", payload)


def plain(value: Any) -> Any:
    """The same, with None for numbers that are not finite: JSON has none."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json(payload: Any) -> Markup:
    """JSON that a script element of a page can hold: nothing in it ends the element or begins another."""
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def shown(value: float | None) -> str:
    """A number by about four digits; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size and size < 0.001:
        return f"{value:.1e}".replace("-", MINUS)
    return f"{value:,.{4 if size < 1 else 3 if size < 10 else 2 if size < 100 else 1}f}".replace("-", MINUS)


def signed(value: float | None) -> str:
    """A difference by four decimals, with its sign."""
    return "–" if value is None else f"{value:+.4f}".replace("-", MINUS)


def percent(share: float | None) -> str:
    """A share of 1 in percent, by one decimal below ten and above 99."""
    if share is None:
        return "–"
    return f"{100 * share:.{1 if 0 < share < 0.1 or 0.99 < share < 1 else 0}f} %"


def probability(p: float | None) -> str:
    """A p-value by three decimals."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds in the two units that suit them."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def figure_rows(parts: Mapping[str, Mapping]) -> list[tuple[str, dict[str, float | None]]]:
    """All metrics of a head: name and value by part, the selecting one first."""
    found: dict[str, dict[str, float | None]] = {}
    for part, report in parts.items():
        for name, value in report.items():
            if name != "examples" and (value is None or isinstance(value, int | float)):
                found.setdefault(name, {})[part] = value
    chosen = next((report["metric"] for report in parts.values()), None)
    return sorted(found.items(), key=lambda row: row[0] != chosen)


def heat(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> dict:
    """A confusion matrix to draw: `labels` (of more than `FEW_LABELS` the most frequent first) and `rows` of them, each
    with its `total` and `cells` of `count` and `share` of the row; `many` labels have small cells, long ones stand
    `upright`."""
    totals = [sum(row) for row in confusion]
    order = list(range(len(labels)))
    if len(labels) > FEW_LABELS:
        order.sort(key=lambda label: -totals[label])
    rows = [
        {
            "label": labels[true],
            "total": totals[true],
            "cells": [{"count": (count := confusion[true][i]), "share": count / max(totals[true], 1)} for i in order],
        }
        for true in order
    ]
    many = len(labels) > FEW_LABELS
    upright = many or (len(labels) > 4 and max(map(len, labels)) > LONG_LABEL)
    return {"labels": [labels[label] for label in order], "rows": rows, "many": many, "upright": upright}


def confused_pairs(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[dict]:
    """The wrong answers given most often: `label`, `predicted`, `count`, `share` of the label's examples."""
    found: list[dict[str, Any]] = [
        {"label": labels[true], "predicted": labels[other], "count": count, "share": count / sum(row)}
        for true, row in enumerate(confusion)
        for other, count in enumerate(row)
        if other != true and count
    ]
    return sorted(found, key=lambda pair: -pair["count"])[:CONFUSED_PAIRS]


def average_precision(curve: Mapping[str, Sequence[float | None]]) -> float | None:
    """The mean of the precision at even steps of recall."""
    known = [precision for precision in curve["precision"] if precision is not None]
    return sum(known) / len(known) if known else None


def epoch_lines(history: Sequence[Mapping]) -> list[Mapping]:
    """The lines of a history that end an epoch."""
    return [line for line in history if "seconds" in line]


def reach(against: Sequence[Mapping | None]) -> float:
    """Half the width of a scale around 0 on which all intervals of differences lie."""
    ends = [
        abs(each[end]) for each in against if each for end in ("low", "high", "difference") if each[end] is not None
    ]
    return max(ends, default=0.0) * 1.08 or 1.0


def best(scores: Sequence[Mapping | None], higher_is_better: bool) -> set[int]:
    """The places of the best mean: several where they are equal by four decimals, none where there is one group."""
    means = {i: round(each["mean"], 4) for i, each in enumerate(scores) if each and each["mean"] is not None}
    if len(means) < 2:
        return set()
    top = (max if higher_is_better else min)(means.values())
    return {i for i, mean in means.items() if mean == top}


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (shown, signed, percent, probability, duration, as_json)
    environment.filters |= {function.__name__: function for function in formats}
    environment.filters |= {
        "metric": lambda name: METRICS.get(name, (name.replace("_", " "),))[0],
        "metric_note": lambda name: METRICS.get(name, ("", ""))[1],
    }
    views = (figure_rows, heat, confused_pairs, average_precision, epoch_lines, reach, best)
    environment.globals |= {function.__name__: function for function in views}
    environment.globals |= {"hues": HUES, "styles": Markup("\n".join(map(_read, STYLES))), "scripts": list(_scripts())}
    return environment


def _scripts() -> Iterator[dict[str, Markup]]:
    """The page's scripts and the hashes by which its content policy lets them, and no others, run."""
    for names in SCRIPTS:
        text = "\n".join(map(_read, names))
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        yield {"text": Markup(text), "hash": Markup(f"'sha256-{digest}'")}


def _read(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


def _rendered(template: str, payload: Mapping[str, Any]) -> str:
    known = plain(payload)
    return _environment().get_template(template).render(known, payload=known)
