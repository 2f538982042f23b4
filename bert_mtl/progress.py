"""How far a training is: a bar with losses, speed and the time that is left, or now and then a line of the log."""

import logging
import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

log = logging.getLogger(__name__)

LINE_EVERY = 30.0  # seconds between two lines where there is no terminal to draw on


class Display:
    """Shows a run's steps on a terminal by a bar that is drawn anew in place, elsewhere by lines of the log; nothing
    where it is not `shown`."""

    def __init__(self, epochs: int, shown: bool, console: Console | None = None):
        self.epochs, self.shown = epochs, shown
        self.console = console or Console()
        columns = TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps,")
        self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("left{task.fields[speed]}"))
        self.task = self.bar.add_task("", total=None, epoch="", speed="")
        self.live: Live | None = None
        self.told = 0.0

    def begin_epoch(self, epoch: int, done: int, steps: int) -> None:
        """`steps` of epoch number `epoch` (from 0) begin, `done` of them are already. The time that is left is that of
        all epochs, as if all had as many steps."""
        self.values: dict[str, float] = {}
        self.offset, self.steps, self.epoch = done, steps, epoch
        self.bar.update(
            self.task,
            total=self.epochs * steps,
            completed=epoch * steps + done,
            epoch=f"{epoch + 1} of {self.epochs}",
        )
        self.told = time.monotonic()
        if self.shown and self.console.is_terminal:
            self.live = Live(get_renderable=self._drawn, console=self.console, transient=True, refresh_per_second=4)
            self.live.start()

    def end_steps(self, count: int) -> None:
        """So many steps more are done."""
        self.offset += count
        self.bar.advance(self.task, count)

    def show(self, values: Mapping[str, float]) -> None:
        """The latest values: losses by name, and speed."""
        self.values.update(values)
        speed = self.values.get("speed/tokens_per_second")
        self.bar.update(self.task, speed=f", {speed:,.0f} tokens/s" if speed else "")
        if self.shown and self.live is None and time.monotonic() - self.told >= LINE_EVERY:
            self.told = time.monotonic()
            log.info("%s", self.line())

    def line(self) -> str:
        """All of it as one line."""
        shown = self.bar.tasks[0]
        left = f", {shown.time_remaining / 60:.0f} min left" if shown.time_remaining is not None else ""
        losses = "; ".join(f"{name} {value:.4f}" for name, value in self._losses().items())
        where = f"epoch {self.epoch + 1} of {self.epochs}: {self.offset} of {self.steps} steps"
        return f"{where}{left}{shown.fields['speed']}; {losses}"

    def close(self) -> None:
        """Takes the bar away."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _losses(self) -> dict[str, float]:
        return {name: value for name, value in self.values.items() if name == "loss" or name.endswith("/loss")}

    def _drawn(self) -> Group:
        losses = Table.grid(padding=(0, 3))
        found = [f"[dim]{escape(name)}[/] {value:.4f}" for name, value in self._losses().items()]
        across = max(self.console.width // 32, 1)
        for start in range(0, len(found), across):
            losses.add_row(*found[start : start + across])
        return Group(self.bar, losses)
