"""What a run measured as it went: history.jsonl in its folder, a JSON object of numbers by name a line.

Every line has `step` and `epoch`. Those of an epoch's end have `seconds` and the dev scores; those between have losses,
the learning rate and speeds. Trackers show the values by the same names.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from bert_mtl.records import atomic_write
from bert_mtl.tracking.tracker import Tracker


class History(Tracker):
    """Writes history.jsonl. Raises OSError where that cannot be done."""

    name = "history.jsonl"

    def __init__(self, folder: Path):
        self.file = folder / "history.jsonl"

    def log(self, values: Mapping[str, float], step: int) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with open(self.file, "ab") as file:
            whole = file.tell()
            try:
                file.write(json.dumps({"step": step, **finite}).encode() + b"\n")
                file.flush()
            except OSError:
                file.truncate(whole)  # half a line would spoil the next one
                raise

    def rewind(self, step: int) -> None:
        lines = [line for line in read_history(self.file.parent) if line["step"] <= step]
        with atomic_write(self.file) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in lines)


def read_history(folder: Path) -> list[dict]:
    """The lines of the run in `folder`, in order; none where it has no history. A last line that was cut off as the
    disk was full or the process killed is left out."""
    file = folder / "history.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def curves(lines: Iterable[Mapping]) -> dict[str, list[tuple[int, float]]]:
    """Name -> the (step, value) of every line that has one."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step" and value is not None:
                found.setdefault(name, []).append((line["step"], value))
    return found
