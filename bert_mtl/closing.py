"""What a user reads at the end of a training: scores of all heads, how it went, where it all is, what to do next."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bert_mtl.exits import head_of
from bert_mtl.runs import Run


def print_closing(
    run: Run,
    result: Mapping[str, Any],
    speed: Mapping[str, float],
    missing: Sequence[str],
    lost: bool = False,
    console: Console | None = None,
) -> None:
    """Prints it.

    Args:
        result: what metrics.json holds.
        speed: the last values of `speed/…`, and `compile_seconds`.
        missing: what could not be written.
        lost: nothing can be done with the run.
    """
    console = console or Console()
    console.print(_scores(run, result))
    console.print(
        "\n".join([*_facts(run, result, speed), *(f"Missing: {each}" for each in missing)]),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if lost:
        return
    console.print(
        "\n".join(["", "Next:", *(f"  {line}" for line in _commands(run))]),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _scores(run: Run, result: Mapping[str, Any]) -> Table:
    heads = {head.name: head for task in run.tasks.values() for head in task.heads.values()}
    epochs = len(result["epochs"])
    table = Table("head", "metric", "test", "dev", *(["dev by epoch"] if epochs > 1 else []))
    for name, dev in result["dev"].items():  # exits too
        metric = heads[head_of(name)].metric
        row = [escape(name), metric, _shown(result["test"].get(name, {}).get(metric)), _shown(dev.get(metric))]
        course = [_shown(epoch["dev"][name].get(metric)) for epoch in result["epochs"]][-6:]
        table.add_row(*row, *([" ".join(course)] if epochs > 1 else []))
    return table


def _facts(run: Run, result: Mapping[str, Any], speed: Mapping[str, float]) -> list[str]:
    seconds = sum(epoch["seconds"] for epoch in result["epochs"])
    went = [f"{_time(seconds)} of training"]
    if "speed/tokens_per_second" in speed:
        went.append(f"{speed['speed/tokens_per_second']:,.0f} tokens/s")
    if "speed/mfu" in speed:
        went.append(f"{speed['speed/mfu']:.1%} of the device's FLOP/s")
    if "compile_seconds" in speed:
        went.append(f"{speed['compile_seconds']:.1f} s to trace and compile")
    page = run.folder / "report.html"
    return [
        f"data: {result['data']} · best epoch: {result['best_epoch']} of {len(result['epochs'])} · {', '.join(went)}",
        f"run: {run.folder}" + (f" · report: {page}" if page.exists() else ""),
    ]


def _commands(run: Run) -> list[str]:
    folder = shlex.quote(str(run.folder))
    second = ' text_b="The end made up for a slow start."' if run.facts.pairs else ""
    return [
        f'python -m bert_mtl.predict run={folder} text="A slow start, but I loved the ending!"{second}',
        f"python -m bert_mtl.evaluate run={folder}",
        f"python -m bert_mtl.export run={folder} bundle=bundles/{'-'.join(run.config.tasks)}",
    ]


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
