"""Memory of a build as the corpus grows: `python -m benchmarks.build_memory [rows …]`.

Builds synthetic corpora of short rows, each by `python -m data_prep.build` in a process of its own, and samples the
resident memory of that process and of its joblib workers. Flat means: ten times the rows, the same memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import save
from data_prep.vocab import train_wordpiece

SAMPLE = Path(__file__).parents[1] / "data_prep" / "sample" / "imdb" / "train.jsonl"
SECONDS_BETWEEN_SAMPLES = 0.1
TASK = """# @package tasks.rows
heads: {{rows: {{kind: classification, labels: [neg, pos]}}}}
sources: {{full: {{format: jsonl, path: {path}}}}}
"""


def read_sample() -> list[str]:
    return [json.loads(line)["text"] for line in SAMPLE.open(encoding="utf-8")]


def write_corpus(path: Path, rows: int) -> None:
    """Rows of 5 to 29 words, cut out of the built-in reviews at random places."""
    words = " ".join(read_sample()).split()
    random = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for begin, count in zip(random.integers(len(words) - 30, size=rows), random.integers(5, 30, rows), strict=True):
            row = {"text": " ".join(words[begin : begin + count]), "label": ("neg", "pos")[begin % 2]}
            file.write(json.dumps(row) + "\n")


def build(folder: Path, rows: int) -> dict:
    """Builds one corpus; returns seconds, rows a second and the peaks of memory in MiB."""
    (folder / "task").mkdir(parents=True)
    (folder / "task" / "rows.yaml").write_text(TASK.format(path=folder / "rows.jsonl"))
    write_corpus(folder / "rows.jsonl", rows)
    train_wordpiece(read_sample(), folder / "vocab.txt", 4000)
    command = [sys.executable, "-m", "data_prep.build", "--config-dir", str(folder), "task=rows", "data=full"]
    command += ["model=tiny", f"tokenizer.vocab={folder / 'vocab.txt'}", f"cache_dir={folder / 'cache'}"]
    command += ["data.workers=2"]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    parent = workers = largest = 0
    while process.poll() is None:
        children = [resident(child) for child in descendants(process.pid)]
        parent = max(parent, resident(process.pid))
        workers, largest = max(workers, sum(children)), max(largest, *children, 0)
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    if process.returncode:
        raise SystemExit(f"the build of {rows:,} rows ended with {process.returncode}")
    seconds = time.perf_counter() - begin
    return {
        "rows": rows,
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds),
        "parent_mib": parent >> 20,
        "workers_mib": workers >> 20,
        "largest_worker_mib": largest >> 20,
    }


def resident(pid: int) -> int:
    """Resident memory of a process in bytes, shared pages included; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def descendants(pid: int) -> list[int]:
    """Children, their children and so on."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return []
    return [*children, *(grandchild for child in children for grandchild in descendants(child))]


def main() -> None:
    sizes = [int(size) for size in sys.argv[1:]] or [100_000, 1_000_000]
    results = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            result = build(Path(folder) / "corpus", rows)
        results.append(result)
        print(", ".join(f"{name} {value:,}" for name, value in result.items()), flush=True)
    facts = {
        "what": "python -m data_prep.build on JSONL rows of 5 to 29 words, 2 loky workers; peaks of resident memory",
        "builds": results,
    }
    print(f"results: {save('build_memory', facts, 'tensorflow', 'tensorflow-text', 'joblib', 'numpy')}")


if __name__ == "__main__":
    main()
