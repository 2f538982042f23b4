"""TensorBoard: event files in the folder of the job, `tensorboard --logdir runs` shows them."""

from collections.abc import Iterable, Mapping, Sequence

import tensorflow as tf
import yaml

from bert_mtl.tracking.tracker import Cell, Job, Package, Tracker
from conf.errors import ConfigError, Problem


class Board(Tracker):
    """Values as scalars, all else as text. Raises ConfigError where TensorBoard is not installed."""

    name = "tensorboard"

    def __init__(self, job: Job):
        try:
            import tensorboard  # noqa: F401  # tf.summary's own error does not say what to install
        except ImportError as error:
            rule = "be one that is installed (TensorBoard comes with the extra track: pip install 'bert_mtl[track]')"
            raise ConfigError([Problem("tracking", rule, "tensorboard")]) from error
        self.writer, self.step = tf.summary.create_file_writer(str(job.folder / "tensorboard"), name=job.name), 0
        self._text("config", f"```yaml\n{yaml.safe_dump(dict(job.config), sort_keys=False, allow_unicode=True)}```")
        self._text("tags", ", ".join(job.tags))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.step = step
        with self.writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def total(self, values: Mapping[str, float]) -> None:
        self.log(values, self.step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        self._text(name, _markdown(columns, rows))

    def lines(self, name: str, x: str, xs: Sequence[float], ys: Mapping[str, Sequence[float | None]]) -> None:
        self._text(name, _markdown([x, *ys], zip(xs, *ys.values(), strict=True)))

    def confusion(self, name: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        rows: list[list[Cell]] = [[label, *row] for label, row in zip(labels, counts, strict=True)]
        self._text(name, _markdown(["true \\ predicted", *labels], rows))

    def uses(self, package: Package) -> None:
        self._text(f"uses/{package.name}", f"```yaml\n{yaml.safe_dump(dict(package.metadata), sort_keys=False)}```")

    def makes(self, package: Package) -> None:
        self._text(f"makes/{package.name}", "\n".join(f"* {name}" for name in package.files))

    def end(self, failed: bool) -> None:
        self.writer.close()

    def _text(self, name: str, text: str) -> None:
        with self.writer.as_default(self.step):
            tf.summary.text(name, text)


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Cell) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
