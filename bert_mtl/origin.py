"""Where a run comes from: its command, the code, the versions and the machine; origin.json in its folder."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tensorflow as tf

from bert_mtl.atomic import atomic_write
from bert_mtl.machine import cpu_name, git_state

PACKAGES = ("bert_mtl", "tensorflow", "keras", "tensorflow-text", "numpy")


def origin(arguments: Sequence[str] | None) -> dict[str, Any]:
    """What is known of this process; `arguments` are those of its command line, None where there was none."""
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    return {
        "arguments": None if arguments is None else list(arguments),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(Path(__file__).parent),
        "versions": {"python": platform.python_version()} | {package: installed(package) for package in PACKAGES},
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "gpus": [str(details.get("device_name", "GPU")) for details in gpus],
        },
    }


def installed(package: str) -> str | None:
    """Its version; None where it runs from a folder that nobody has installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save_origin(folder: Path, found: dict[str, Any]) -> None:
    """Writes origin.json to a run's folder. Raises DataError where that cannot be done."""
    with atomic_write(folder / "origin.json") as file:
        file.write(json.dumps(found, indent=1).encode())
