"""The typed schemas of the commands that ask something of finished runs; their YAML files stand in `conf/`."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from bert_mtl.config import DataConfig, Filled, Part, Plugin, TaskConfig, TrackingConfig
from bert_mtl.precisions import REFUSED, Format, Precision
from conf.entry import Problem, Schema


class EvaluateConfig(Schema):
    """`python -m bert_mtl.evaluate`."""

    run: Filled
    tasks: dict[str, Any] = {}  # their names alone count: tasks are what the run has learned
    data: DataConfig | None = None
    part: Part
    batch_size: PositiveInt
    errors: Annotated[int, Field(ge=0)]
    baseline: bool
    output: Filled | None

    def problems(self) -> list[Problem]:
        if self.baseline and self.part == "train":
            return [Problem("baseline", "be false with part=train, which the baseline learns by heart", True)]
        return []


class ReportConfig(Schema):
    """`python -m bert_mtl.report`."""

    run: Filled


class PredictConfig(Schema):
    """`python -m bert_mtl.predict`."""

    verbatim = ("text", "text_b")

    run: Filled
    text: str | None
    text_b: str | None
    input: Filled | None
    output: Filled | None
    batch_size: PositiveInt

    def problems(self) -> list[Problem]:
        found = []
        if (self.text is None) == (self.input is None):
            found.append(Problem("text", "be given, or input, and not both", self.text))
        if self.text is None and self.text_b is not None:
            found.append(Problem("text_b", "be given with text", self.text_b))
        if self.input is not None and self.output is None:
            found.append(Problem("output", "be given with input", None))
        return found + _overwriting(self.input, self.output)


class EmbedConfig(Schema):
    """`python -m bert_mtl.embed`."""

    run: Filled
    input: Filled
    output: Filled
    task: Filled | None
    layers: Annotated[list[int], Field(min_length=1)]
    pooling: Literal["cls", "mean", "max", "mean_max"]
    batch_size: PositiveInt

    def problems(self) -> list[Problem]:
        found = _overwriting(self.input, self.output)
        if not self.output.endswith((".npy", ".parquet")):
            found.append(Problem("output", "end in .npy or .parquet", self.output))
        return found


class ExportConfig(Schema):
    """`python -m bert_mtl.export`."""

    run: Filled
    bundle: Filled
    name: Filled | None
    formats: Annotated[list[Format], Field(min_length=1)]
    precision: Precision
    max_drop: NonNegativeFloat | None
    exit_drop: NonNegativeFloat | None
    int8_texts: PositiveInt
    tracking: TrackingConfig | None = None

    def problems(self) -> list[Problem]:
        found = []
        if len(set(self.formats)) < len(self.formats):
            found.append(Problem("formats", "name each format once", self.formats))
        reasons = [reason for name in self.formats if (reason := REFUSED.get((name, self.precision)))]
        if len(reasons) == len(self.formats):
            rule = f"be one that a format takes ({'; '.join(reasons)})"
            options = [
                each for each in get_args(Precision) if any((name, each) not in REFUSED for name in self.formats)
            ]
            found.append(Problem("precision", rule, self.precision, options))
        return found


class DriftConfig(Schema):
    """`python -m bert_mtl.drift`."""

    bundle: Filled
    samples: Filled
    since: Filled | None
    tasks: dict[str, Any] = {}  # their names alone count, as above
    least: PositiveInt
    predictions: Annotated[int, Field(ge=0)]
    watch: PositiveFloat | None
    output: Filled
    tracking: TrackingConfig

    def problems(self) -> list[Problem]:
        try:
            if self.since is not None:
                moment(self.since, datetime.now(UTC))
        except (ValueError, OverflowError):
            rule = "be a time such as 2026-11-28T14:00:00, or so many minutes, hours or days back: 90m, 24h, 7d"
            return [Problem("since", rule, self.since)]
        return []


def moment(text: str, now: datetime) -> datetime:
    """The time that `text` names in ISO 8601 (UTC, where it does not say), or so many minutes, hours or days before
    `now`: `90m`, `24h`, `7d`. Raises ValueError, or OverflowError of more than there are."""
    if span := re.fullmatch(r"(\d+)([mhd])", text):
        return now - timedelta(**{{"m": "minutes", "h": "hours", "d": "days"}[span[2]]: int(span[1])})
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


class DashboardConfig(Schema):
    """`python -m bert_mtl.dashboard`."""

    plugins: list[Plugin]  # before the tasks, whose kinds they register
    tasks: Annotated[dict[str, TaskConfig], Field(min_length=1)]
    project: Filled
    entity: Filled | None


def _overwriting(source: str | None, target: str | None) -> list[Problem]:
    if source is not None and target is not None and Path(source).absolute() == Path(target).absolute():
        return [Problem("output", "be another file than input", target)]
    return []
