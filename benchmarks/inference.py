"""A bundle's engines beside the plain SavedModel on the CPU: texts a second, milliseconds for a short one, accuracy.

    python -m benchmarks.inference bundles=<folder>,<folder> texts=<folder with neg/ and pos/> [count=512] [tokens=4096]

The first bundle must hold a SavedModel in fp32; every further engine of any bundle is compared with it. All take the
same rows in the same batches: `count` texts, half of each label, sorted by length, at most `tokens` of them with
padding in a batch. Latency is the median of 100 calls with one short text. Rounds alternate between the engines, the
fastest counts; each is a ratio to the SavedModel in the same run. The result is benchmarks/results/inference.json.
"""

import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import save
from serving.bundle import Bundle, load_bundle
from serving.engines import Engine, open_engine
from serving.rows import Row, pad
from serving.service import plan_batches
from serving.tokenizer import Tokenizer

SHORT = "A slow start, but I loved the ending!"
ROUNDS, CALLS = 2, 100
OWN = {"bundles": "", "texts": "", "count": "512", "tokens": "4096", "result": "inference"}


class Data(NamedTuple):
    """Padded batches with the places of their texts, and the label of every text."""

    batches: list[tuple[list[int], tuple[np.ndarray, ...]]]
    short: tuple[np.ndarray, ...]
    labels: np.ndarray


def main() -> None:
    own = OWN | dict(argument.split("=", 1) for argument in sys.argv[1:])
    bundles = [load_bundle(folder) for folder in own["bundles"].split(",")]
    engines: dict[str, Engine] = {}
    for bundle in bundles:
        for name, files in sorted(bundle.manifest.engines.items(), key=lambda item: item[0] != "savedmodel"):
            engines.setdefault(f"{name} {files.precision}", open_engine(name, bundle))  # type: ignore[arg-type]
    if next(iter(engines)) != "savedmodel fp32":
        raise SystemExit(f"bundles must begin with one that holds a SavedModel in fp32; got {', '.join(engines)}.")
    head = next(iter(bundles[0].manifest.heads))
    data = read(Path(own["texts"]), int(own["count"]), int(own["tokens"]), bundles[0])
    found: dict[str, dict] = {name: {"seconds": np.inf, "short_ms": np.inf} for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            for key, value in measure(engine, data, head).items():
                found[name][key] = min(found[name][key], value) if key in ("seconds", "short_ms") else value
    plain = found["savedmodel fp32"]
    rows = {
        name: {
            "texts_per_second": round(len(data.labels) / values["seconds"], 1),
            "throughput": round(plain["seconds"] / values["seconds"], 2),
            "short_ms": round(values["short_ms"], 2),
            "latency": round(values["short_ms"] / plain["short_ms"], 2),
            "accuracy": round(100 * float((values["answers"].argmax(axis=1) == data.labels).mean()), 2),
            "difference": round(float(np.abs(values["answers"] - plain["answers"]).max()), 4),
        }
        for name, values in found.items()
    }
    save(
        own["result"], {"rows": rows, "count": own["count"], "tokens": own["tokens"]}, "tensorflow", "openvino", "nncf"
    )
    table = Table("engine", *next(iter(rows.values())))
    for name, values in rows.items():
        table.add_row(name, *map(str, values.values()))
    Console().print(table)


def read(folder: Path, count: int, tokens: int, bundle: Bundle) -> Data:
    """Half of the texts from each label's folder: a sample, always the same one."""
    dice, tokenizer, pad_id = random.Random(5), Tokenizer(bundle), bundle.manifest.tokenizer.pad_id
    files = [path for label in ("neg", "pos") for path in dice.sample(sorted((folder / label).iterdir()), count // 2)]
    rows: list[Row] = [row for (row,) in tokenizer.read("text", [path.read_text() for path in files])]
    planned = plan_batches([len(row.ids) for row in rows], tokens)
    batches = [(batch, tuple(pad([rows[place] for place in batch], pad_id))) for batch in planned]
    short = tuple(pad(tokenizer.read("text", [SHORT])[0], pad_id))
    return Data(batches, short, np.repeat([0, 1], count // 2))


def measure(engine: Engine, data: Data, head: str) -> dict:
    for _, rows in (data.batches[0], data.batches[-1]):
        engine.predict(*rows)
    answers, start = np.zeros((len(data.labels), 2)), time.perf_counter()
    for batch, rows in data.batches:
        answers[batch] = engine.predict(*rows)[head]
    seconds, calls = time.perf_counter() - start, []
    for _ in range(CALLS):
        start = time.perf_counter()
        engine.predict(*data.short)
        calls.append(1000 * (time.perf_counter() - start))
    return {"seconds": seconds, "short_ms": float(np.median(calls)), "answers": answers}


if __name__ == "__main__":
    main()
