"""One way to answer batches of texts, timed: texts a second, and milliseconds for a short one. NumPy only."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

CALLS = 100
Arrays = dict[str, np.ndarray]


class Batches(NamedTuple):
    """Arrays `(rows, length)` of every batch, the places of its texts, and the arrays of the short text."""

    batches: list[tuple[np.ndarray, Arrays]]
    short: Arrays

    def arrays(self) -> Arrays:
        """All as named arrays, which `of` reads again."""
        parts = {
            f"{number}:{name}": values for number, (_, each) in enumerate(self.batches) for name, values in each.items()
        }
        places = {f"{number}:places": np.asarray(places) for number, (places, _) in enumerate(self.batches)}
        return parts | places | {f"short:{name}": values for name, values in self.short.items()}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        def part(prefix: Any) -> Arrays:
            found = {name.partition(":") for name in arrays if name.startswith(f"{prefix}:")}
            return {name: arrays[f"{prefix}:{name}"] for _, _, name in found}

        batches = []
        while found := part(len(batches)):
            batches.append((found.pop("places"), found))
        return cls(batches, part("short"))


def timed(answer: Callable[[Arrays], np.ndarray], data: Batches) -> dict[str, Any]:
    """Seconds for all batches, the median of 100 calls with the short text in milliseconds, and the answers."""
    for _, rows in (data.batches[0], data.batches[-1]):
        answer(rows)
    answers: dict[int, list[float]] = {}
    start = time.perf_counter()
    for places, rows in data.batches:
        answers |= zip(places.tolist(), answer(rows).tolist(), strict=True)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "short_ms": short_ms(answer, data.short),
        "answers": [answers[at] for at in sorted(answers)],
    }


def short_ms(answer: Callable[[Arrays], Any], rows: Arrays) -> float:
    calls = []
    for _ in range(CALLS):
        start = time.perf_counter()
        answer(rows)
        calls.append(1000 * (time.perf_counter() - start))
    return float(np.median(calls))
