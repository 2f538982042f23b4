"""A picture of a bench's steps: what was answered at each load, and the latency that each share of requests stayed
below. matplotlib draws it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.bench import Step


class PlotError(Exception):
    """matplotlib is not installed."""

    user_error = True


def require() -> None:
    """Raises PlotError where the picture could not be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise PlotError('plot needs matplotlib: pip install "bert_mtl[bench]"') from None


def draw(steps: Sequence["Step"], file: Path) -> None:
    """Writes the picture; its kind follows from the file's end."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2))
    left.plot([step.at for step in steps], [step.texts_per_second for step in steps], "o-")
    left.set_xlabel("clients" if steps[0].load == "closed" else "requests/s offered")
    left.set_ylabel("texts/s answered")
    left.set_ylim(0, 1.1 * max(1.0, *(step.texts_per_second for step in steps)))
    for step in steps:
        latencies = {name: value for name, value in step.figures.latency_ms.items() if value is not None}
        right.plot(list(latencies), list(latencies.values()), "o-", label=f"{step.at:g}")
    right.set_yscale("log")
    right.set_xlabel("percentile of requests")
    right.set_ylabel("latency, ms")
    right.legend(title=left.get_xlabel(), fontsize=8)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
