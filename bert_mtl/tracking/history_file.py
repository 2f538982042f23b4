"""The tracker that every run has: history.jsonl in its folder (`bert_mtl.history` reads it)."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from bert_mtl.atomic import atomic_write
from bert_mtl.history import read_history
from bert_mtl.tracking.tracker import Tracker


class History(Tracker):
    """Writes history.jsonl. Raises OSError where that cannot be done."""

    name = "history.jsonl"

    def __init__(self, folder: Path):
        self.file = folder / "history.jsonl"

    def log(self, values: Mapping[str, float], step: int) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **finite}).encode() + b"\n"
        with open(self.file, "ab", buffering=0) as file:
            whole = file.tell()
            try:
                while line:  # a disk that becomes full takes a part first
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(whole)  # half a line would spoil the next one
                raise

    def rewind(self, step: int) -> None:
        lines = [line for line in read_history(self.file.parent) if line["step"] <= step]
        with atomic_write(self.file) as file:
            file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
