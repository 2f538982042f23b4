"""What a server is asked beside what its model learned from: `python -m bert_mtl.drift bundle=… samples=…`.

A bundle's training.json and a folder of samples go in; a row a signal comes out: in the terminal, as JSON, and to the
tracker. It runs beside the server, which thus needs neither a tracker nor its keys.
"""

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bert_mtl.atomic import atomic_write
from bert_mtl.commands import DriftConfig, moment
from bert_mtl.samples import Samples, SamplesError, read_samples
from bert_mtl.signals import SURE, Signal, signals
from bert_mtl.tracking import Job, Tracker, open_tracker
from conf import entry
from conf.errors import ConfigError, Problem
from serving.bundle import Bundle, BundleError, load_bundle

COLUMNS = ("task", "head", "signal", "reference", "now", "measure", "shift", "p", "verdict", "texts", "detail")
SHORT = {"jensen-shannon": "js", "deviations": "dev"}
COLORS = {"large": "red", "moderate": "yellow", "none shown": "green", "too few texts": "dim"}


def drift(config: DriftConfig) -> None:
    """Looks once, or every `watch` seconds until SIGTERM or SIGINT.

    Raises:
        BundleError, ConfigError: the bundle is none, or lacks training.json or a task.
        SamplesError: there are none; while watching they are waited for.
        DataError: the report cannot be written.
    """
    bundle = load_bundle(config.bundle)
    training = read_training(bundle)
    if unknown := [task for task in config.tasks if task not in training["tasks"]]:
        raise ConfigError([Problem("task", "be among those of training.json", unknown[0], list(training["tasks"]))])
    with open_tracker(config.tracking, job(bundle, config)) as tracker:
        if config.watch is None:
            look(bundle, training, config, tracker)
        else:
            watch(lambda: look(bundle, training, config, tracker), config.watch)


def watch(look: Callable[[], object], seconds: float) -> None:
    """Looks for ever; where there are no samples yet, it says so. SIGTERM and SIGINT are its end."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            try:
                look()
            except SamplesError as error:
                print(error)
            sleep(seconds)
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def read_training(bundle: Bundle) -> dict[str, Any]:
    """What the bundle's run learned from. Raises BundleError where the bundle does not say it."""
    if "training.json" not in bundle.manifest.files:
        raise BundleError(
            f"bundle must hold training.json; got {bundle.folder} without it. Export the run where its data is, "
            "with max_drop (not null)."
        )
    return json.loads(bundle.file("training.json").read_text())


def look(bundle: Bundle, training: Mapping[str, Any], config: DriftConfig, tracker: Tracker) -> list[Signal]:
    """Compares the samples that are there now; returns the rows that were printed, written and tracked."""
    now = datetime.now(UTC)
    since = moment(config.since, now) if config.since else None
    versions = {bundle.manifest.version, bundle.folder.resolve().name}  # of a folder of versions, the folder's name
    samples = read_samples(Path(config.samples), versions, since, config.predictions)
    tasks = list(config.tasks) or [task for task in training["tasks"] if task in samples.tasks]
    found = list(signals(training, samples, tasks, config.least))
    show(found, samples, Console())
    report = {
        "bundle": bundle.manifest.name, "version": bundle.manifest.version, "time": now.isoformat(timespec="seconds"),
        "since": since and since.isoformat(timespec="seconds"), "texts": samples.texts,
        "signals": [row._asdict() for row in found],
    }  # fmt: skip
    with atomic_write(Path(config.output)) as file:
        file.write(json.dumps(report, indent=1).encode())
    print(f"report: {config.output}")
    track(tracker, found, samples, int(now.timestamp()))
    return found


def show(found: Sequence[Signal], samples: Samples, console: Console) -> None:
    """The rows as a table, and what was left out."""
    table = Table("of", "signal", "train", "now", "shift", "p", "verdict", title=f"{samples.texts:,} texts")
    for row in found:
        color, signal = COLORS[row.verdict], f"{row.signal} ({row.detail})" if row.detail else row.signal
        table.add_row(
            escape(row.head or row.task), escape(signal), _shown(row.reference), _shown(row.now),
            f"{row.shift:.2f} {SHORT.get(row.measure, row.measure)}", _shown(row.p), f"[{color}]{row.verdict}[/]",
        )  # fmt: skip
    console.print(table)
    if samples.others:
        console.print(f"{samples.others:,} samples of other versions were left out")
    if samples.broken:
        console.print(f"{samples.broken:,} lines could not be read")
    counted = {row.task for row in found if row.signal == "vocabulary"}
    if missing := [task for task in dict.fromkeys(row.task for row in found) if task not in counted]:
        console.print(f"no pieces were counted yet of {', '.join(missing)}: no window of samples.window texts is full")
    if any(row.p is not None and row.p >= SURE for row in found):
        console.print(f"a shift of p ≥ {SURE} may be chance")


def track(tracker: Tracker, found: Sequence[Signal], samples: Samples, step: int) -> None:
    """The rows as scalars and as the table `drift`, and the latest samples as the table `predictions`; a step is a
    second since 1970, so that another watch goes on behind this one."""
    tracker.log({row.key: float(row.shift) for row in found}, step)
    tracker.table("drift", COLUMNS, [[getattr(row, column) for column in COLUMNS] for row in found])
    heads = sorted({head for told in samples.last for head in told["answers"]})
    columns = ["time", "request", "tokens", "unknown", "truncated", "text", "text_b", *heads]
    tracker.table("predictions", columns, [_prediction(told, heads) for told in samples.last])


def job(bundle: Bundle, config: DriftConfig) -> Job:
    """What trackers call it; a watch that is started again goes on with the former one's."""
    manifest = bundle.manifest
    name = f"drift-{manifest.name}-{manifest.version}"
    folder = Path(config.output).absolute().parent / name
    return Job(folder, name, "drift", config.model_dump(mode="json"), [*manifest.tasks, manifest.data])


def _prediction(told: Mapping[str, Any], heads: Sequence[str]) -> list[str | int | bool]:
    """A sample as a row; answers are JSON."""
    read: Sequence[Mapping[str, Any]] = told["read"]  # more than once where tasks read it in unlike ways, or not at all
    answers = [
        json.dumps(told["answers"][head], ensure_ascii=False) if head in told["answers"] else "" for head in heads
    ]
    return [
        told["time"], told["request"] or "", sum(sum(each["tokens"]) for each in read),
        sum(each["unknown"] for each in read), any(each["truncated"] for each in read),
        told.get("text", ""), told.get("text_b", ""), *answers,
    ]  # fmt: skip


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def main() -> None:
    entry.main("drift", DriftConfig, drift)


if __name__ == "__main__":
    main()
