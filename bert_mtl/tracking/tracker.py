"""What trackers are told, whichever they are; and that none of them ends what it tracks."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Job:
    """What is tracked.

    Attributes:
        folder: where the tracker keeps its files, and the run's id: a job in the same folder goes on with it.
        name: of the run, as it is shown.
        kind: `train`, `export` or `drift`.
        config: the resolved configuration.
        tags: what it is found by: tasks, the data's source.
        group: runs shown together, such as those of a sweep.
    """

    folder: Path
    name: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()
    group: str | None = None


@dataclass(frozen=True)
class Package:
    """Files that belong together under a name, known to a tracker as an artifact.

    Attributes:
        name: letters, digits, `_`, `.` and `-`.
        kind: `dataset`, `model` or `bundle`.
        files: by their paths within it.
        metadata: what is known of it.
        aliases: names of this version.
    """

    name: str
    kind: str
    files: Mapping[str, Path]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    aliases: Sequence[str] = ()


class Tracker:
    """Shows nothing; trackers show what they can of what they are told."""

    name = "none"

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Values by name at a step of the training."""

    def rewind(self, step: int) -> None:
        """The training goes on from this step: what was told of later ones will be told again."""

    def total(self, values: Mapping[str, float]) -> None:
        """Values by name of the whole training."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table; each column has cells of one type."""

    def lines(self, name: str, x: str, xs: Sequence[float], ys: Mapping[str, Sequence[float | None]]) -> None:
        """A diagram of lines over the values `xs` of `x`; None where a line has no value."""

    def confusion(self, name: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        """Numbers of examples by true label (rows) and predicted label (columns)."""

    def uses(self, package: Package) -> None:
        """The job reads the package."""

    def makes(self, package: Package) -> None:
        """The job has made the package."""

    def end(self, failed: bool) -> None:
        """Nothing more will be told."""


class Careful(Tracker):
    """Tells several trackers. Where one fails, the log says so once and `missing` keeps it: training goes on."""

    def __init__(self, trackers: Sequence[Tracker]):
        self.trackers = list(trackers)
        self.missing: dict[tuple[str, str], str] = {}

    def log(self, values, step):
        self._each("values", lambda tracker: tracker.log(values, step))

    def rewind(self, step):
        self._each("its values of later steps", lambda tracker: tracker.rewind(step))

    def total(self, values):
        self._each("values of the whole training", lambda tracker: tracker.total(values))

    def table(self, name, columns, rows):
        self._each(name, lambda tracker: tracker.table(name, columns, rows))

    def lines(self, name, x, xs, ys):
        self._each(name, lambda tracker: tracker.lines(name, x, xs, ys))

    def confusion(self, name, labels, counts):
        self._each(name, lambda tracker: tracker.confusion(name, labels, counts))

    def uses(self, package):
        self._each(f"artifact {package.name}", lambda tracker: tracker.uses(package))

    def makes(self, package):
        self._each(f"artifact {package.name}", lambda tracker: tracker.makes(package))

    def end(self, failed):
        self._each("the end", lambda tracker: tracker.end(failed))

    def note(self, where: str, what: str, reason: object) -> None:
        """Says once that `what` did not get to `where`."""
        if (where, what) not in self.missing:
            self.missing[where, what] = f"{where}: {what} not written: {reason}"
            log.warning("%s", self.missing[where, what])

    def _each(self, what: str, tell) -> None:
        for tracker in self.trackers:
            try:
                tell(tracker)
            except Exception as error:  # whatever a tracker fails at, it must not cost the training
                self.note(tracker.name, what, f"{type(error).__name__}: {error}")
