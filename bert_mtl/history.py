"""What a run measured as it went: history.jsonl in its folder, a JSON object of numbers by name a line.

Every line has `step` and `epoch`. Those of an epoch's end have `seconds` and the dev scores; those between have losses,
the learning rate and speeds. Trackers show the values by the same names.
"""

import json
from pathlib import Path


def read_history(folder: Path) -> list[dict]:
    """The lines of the run in `folder`, in order; none where it has no history. A last line that was cut off as the
    disk was full or the process killed is left out."""
    file = folder / "history.jsonl"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]
