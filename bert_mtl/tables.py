"""What an evaluation (`bert_mtl.figures`) and a comparison (`bert_mtl.comparison`) say, as tables for the terminal."""

from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

SHOWN_ERRORS = 5
SHOWN_TEXT = 200


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


def print_comparison(payload: Mapping, console: Console | None = None) -> None:
    """A table of groups for every head of `bert_mtl.comparison`'s payload, and what a reader must know."""
    console = console or Console()
    for name, head in payload["heads"].items():
        table = Table(
            title=escape(f"{name}: {head['metric']} on {payload['part']}"), box=box.SIMPLE, padding=(0, 1, 0, 0)
        )
        table.add_column("group", overflow="fold")
        for column in ("runs", "score", "gain", "95 %", "p", "verdict"):
            table.add_column(
                column, no_wrap=column != "95 %", min_width=len("+0.0000 to") if column == "95 %" else None
            )
        rows = zip(payload["groups"], head["scores"], [None, *head["against"]], strict=True)
        for place, (group, score, result) in enumerate(rows):
            if score["mean"] is not None:
                gained = ["", "", "", "baseline"] if place == head["baseline"] else _gained(result)
                table.add_row(escape(group["name"]), str(len(score["values"])), _measured(score), *gained)
        console.print(table)
    for note in payload["notes"]:
        console.print(note, markup=False, highlight=False)


def _measured(score: Mapping) -> str:
    deviation = score["deviation"]
    return _shown(score["mean"]) + ("" if deviation is None else f" ± {deviation:.4f}")


def _gained(result: Mapping | None) -> list[str]:
    if result is None:
        return ["", "", "", "not compared"]
    interval = f"{result['low']:+.4f} to {result['high']:+.4f}"
    verdict = result["verdict"].replace("no difference", "none")  # of "no difference shown", in a narrow column
    return [f"{result['difference']:+.4f}", interval, f"{result['p_adjusted']:.4f}", verdict]


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
