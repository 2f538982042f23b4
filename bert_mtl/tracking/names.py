"""What values are called, in history.jsonl and by every tracker."""

from typing import Literal

FALLING = (
    "loss",
    "epoch_loss",
    "perplexity",
    "mse",
    "ece",
    "alignment",
    "uniformity",
)  # figures that are better when lower


def path_of(task: str, head: str) -> str:
    """What the values of a head (by its full name, or that at an exit) are called: `imdb`, `snips/intent`,
    `imdb/exit2`."""
    name, _, depth = head.partition("@")
    own = task if name == task else f"{task}/{name.removeprefix(f'{task}_')}"
    return f"{own}/exit{depth}" if depth else own


def better(name: str) -> Literal["max", "min"] | None:
    """Which of a value's numbers over a run is the best one; None for values that are neither good nor bad."""
    figure = name.rpartition("/")[2]
    if figure.removeprefix("dev_").removeprefix("test_") in FALLING:
        return "min"
    return "max" if figure.startswith("dev_") or name == "score" else None
