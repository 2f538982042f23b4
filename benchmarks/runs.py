"""Trainings of a benchmark: each a process of its own with a folder of its own, several at a time over several GPUs."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from statistics import mean, stdev
from typing import Any, NamedTuple


class Training(NamedTuple):
    """A run of `bert_mtl.train` with these settings in `folder`."""

    folder: Path
    overrides: list[str]


def train_all(trainings: Sequence[Training], jobs: int, gpus: str) -> list[dict[str, Any]]:
    """What the runs' metrics.json hold, in that order, `jobs` of them at a time over the `gpus` (such as 0,1).

    A finished run is not run again, an interrupted one goes on.
    """
    free: Queue[str] = Queue()
    for place in range(jobs):
        free.put(gpus.split(",")[place % len(gpus.split(","))])

    def metrics(training: Training) -> dict[str, Any]:
        gpu = free.get()
        try:
            return _train(training, gpu)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(metrics, trainings))


def _train(training: Training, gpu: str) -> dict[str, Any]:
    folder, finished = training.folder, training.folder / "metrics.json"
    if not finished.exists():
        begun = (folder / "config.yaml").exists()
        arguments = [f"run.resume={folder}"] if begun else [*training.overrides, f"run.dir={folder}"]
        several = {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}  # else the first of several runs takes all of a GPU's memory
        several["CUDA_VISIBLE_DEVICES"] = gpu
        command = [sys.executable, "-m", "bert_mtl.train", *arguments]
        print(shlex.join(command), flush=True)
        subprocess.run(command, env=os.environ | several, check=True, stdout=subprocess.DEVNULL)
    return json.loads(finished.read_text())


def spread(values: Sequence[float]) -> str:
    """Mean and deviation in points."""
    deviation = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{deviation}"
