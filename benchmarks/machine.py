"""What every result is stored with: the machine, the versions and the date."""

import json
import os
import platform
import shutil
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path

from bert_mtl.machine import cpu_name

RESULTS = Path(__file__).parent / "results"


def save(name: str, result: dict, *packages: str) -> Path:
    """Writes `result` and what it was measured with to `results/<name>.json`; returns the file."""
    gpus = gpu_names()
    facts = {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count()} | ({"gpus": gpus} if gpus else {}),
        "versions": {"python": platform.python_version()} | {package: version(package) for package in packages},
        "date": date.today().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(result | facts, indent=1) + "\n", encoding="utf-8")
    return file


def gpu_names() -> list[str]:
    """As NVIDIA's driver calls them."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
