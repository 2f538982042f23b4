"""A bundle's engines beside plain TensorFlow, PyTorch and ONNX Runtime on a CPU: texts a second, milliseconds for a
short one, accuracy.

    python -m benchmarks.inference run=<run> bundles=<folder>,<folder> texts=<folder with neg/ and pos/>
        [peer_python=<python with torch and transformers>] [count=512] [tokens=4096] [rounds=2]

All take the same rows in the same batches: `count` texts, half of each label, sorted by length, at most `tokens` of
them with padding in a batch. `model.predict` is Keras' of the run's model; every figure is a ratio to `savedmodel
fp32`, or to the first side where no bundle has it. Bundles with exits let texts leave, and put the others together
anew. Rounds alternate between the sides, the fastest counts. The result is benchmarks/results/inference.json.
"""

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import save
from benchmarks.timing import Batches, short_ms, timed
from serving.batcher import Batcher, Found
from serving.bundle import Bundle, load_bundle
from serving.engines import Engine, open_engine
from serving.metrics import Metrics, VersionMetrics
from serving.rows import Row, pad
from serving.steps import Heads
from serving.tokenizer import Tokenizer
from serving.workers import Local

SHORT = "A slow start, but I loved the ending!"
OWN = {"run": "", "bundles": "", "texts": "", "peer_python": "", "count": "512", "tokens": "4096", "rounds": "2"}
OWN |= {"result": "inference"}
PLAIN = "savedmodel fp32"
Side = Callable[[], dict[str, Any]]
"""Measures once: `timing.timed`."""


def main() -> None:
    own = OWN | dict(argument.split("=", 1) for argument in sys.argv[1:])
    bundles, tokens = [load_bundle(folder) for folder in own["bundles"].split(",")], int(own["tokens"])
    rows, labels = read(Path(own["texts"]), int(own["count"]), bundles[0])
    data = batches_of(rows, tokens, bundles[0])
    sides = engine_sides(bundles, rows, data, tokens)
    with tempfile.TemporaryDirectory() as folder:
        if own["run"]:
            sides |= {"model.predict": keras_side(own["run"], data)}
        if own["peer_python"]:
            sides |= peer_sides(own["peer_python"], own["run"], data, Path(folder))
        found: dict[str, dict] = {}
        for _ in range(int(own["rounds"])):
            for name, measure in sides.items():
                once = measure()
                best = found.setdefault(name, once)
                best |= {key: min(best[key], once[key]) for key in ("seconds", "short_ms")}
    plain = found.get(PLAIN, next(iter(found.values())))
    table = {name: row(values, plain, labels) for name, values in found.items()}
    settings = {"count": own["count"], "tokens": own["tokens"]}
    save(own["result"], {"rows": table} | settings, "tensorflow", "openvino", "onnxruntime", "ai-edge-litert")
    shown = Table("side", *next(iter(table.values())))
    for name, values in table.items():
        shown.add_row(name, *map(str, values.values()))
    Console().print(shown)


def read(folder: Path, count: int, bundle: Bundle) -> tuple[list[Row], np.ndarray]:
    """Half of the texts from each label's folder: a sample, always the same one; and their labels."""
    dice, tokenizer = random.Random(5), Tokenizer(bundle)
    files = [path for label in ("neg", "pos") for path in dice.sample(sorted((folder / label).iterdir()), count // 2)]
    rows = [row for (row,) in tokenizer.read("text", [path.read_text() for path in files])]
    return rows, np.repeat([0, 1], count // 2)


def batches_of(rows: list[Row], tokens: int, bundle: Bundle) -> Batches:
    """The rows in batches of like length, and the short text."""
    pad_id, batches = bundle.manifest.tokenizer.pad_id, []
    places = sorted(range(len(rows)), key=lambda place: len(rows[place].ids))
    while places:
        # Of rows in order, the last one of a batch is the longest.
        fitting = [n for n, place in enumerate(places, start=1) if n * len(rows[place].ids) <= tokens]
        count = fitting[-1] if fitting else 1
        chosen, places = places[:count], places[count:]
        batches.append((np.array(chosen), dict(pad([rows[place] for place in chosen], pad_id)._asdict())))
    return Batches(batches, dict(pad(Tokenizer(bundle).read("text", [SHORT])[0], pad_id)._asdict()))


def engine_sides(bundles: list[Bundle], rows: list[Row], data: Batches, tokens: int) -> dict[str, Side]:
    sides: dict[str, Side] = {}
    for bundle in bundles:
        (head,) = bundle.manifest.heads
        for name, files in bundle.manifest.engines.items():
            engine = open_engine(name, bundle)  # type: ignore[arg-type]  # the manifest's names are those of engines
            if len(engine.stages) > 1:
                sides[f"{name} {files.precision} exits"] = partial(staged, engine, bundle, head, rows, data, tokens)
            else:
                answer = partial(lambda engine, head, arrays: engine.run(0, arrays)[head], engine, head)
                sides.setdefault(f"{name} {files.precision}", partial(timed, answer, data))
    return sides


def staged(engine: Engine, bundle: Bundle, head: str, rows: list[Row], data: Batches, tokens: int) -> dict[str, Any]:
    """As `timed`, with texts that leave."""

    heads, pad_id = bundle.manifest.heads, bundle.manifest.tokenizer.pad_id

    def answer(rows: list[Row]) -> list[list[float]]:
        async def once() -> list[Found]:
            counts = VersionMetrics(Metrics(), bundle.manifest.version)
            batcher = Batcher([Local(engine, heads, pad_id)], tokens, len(rows), counts)
            batcher.start()
            found = await batcher.run([(row, Heads(frozenset([head]))) for row in rows], 3600)
            await batcher.close()
            return found

        return [each.outputs[head].tolist() for each in asyncio.run(once())]

    once = timed(
        lambda arrays: engine.predict(arrays)[0][head], data._replace(batches=[data.batches[0], data.batches[-1]])
    )  # warms up
    start = time.perf_counter()
    answers = answer(rows)
    short = Row(data.short["token_ids"][0], False)
    return once | {
        "seconds": time.perf_counter() - start,
        "short_ms": short_ms(lambda _: answer([short]), {}),
        "answers": answers,
    }


def keras_side(run: str, data: Batches) -> Side:
    """Keras' `predict` of the run's model, a batch at a time."""
    from bert_mtl.runs import load_model, open_run

    model = load_model(open_run(run), dtype="float32")
    (head,) = model.heads

    def answer(arrays: dict[str, np.ndarray]) -> np.ndarray:
        count, length = arrays["token_ids"].shape
        segments = arrays["segment_ids"] * np.arange(1, count + 1, dtype=np.int32)[:, None]
        inputs = {"token_ids": arrays["token_ids"], "type_ids": arrays["type_ids"], "segment_ids": segments}
        inputs |= {"position_ids": arrays["segment_ids"] * np.arange(length, dtype=np.int32)}
        inputs |= {"first_token": np.arange(count, dtype=np.int32) * length, "task": np.zeros(count, np.int32)}
        logits = model.predict(inputs, batch_size=count, verbose=0)[head]
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shares / shares.sum(axis=1, keepdims=True)

    return partial(timed, answer, data)


def peer_sides(python: str, run: str, data: Batches, folder: Path) -> dict[str, Side]:
    """Those of `benchmarks.peers.inference`, in a process of their own."""
    from safetensors.numpy import load_file

    from bert_mtl.runs import open_run

    opened = open_run(run)
    weights = {f"weights:{path}": values for path, values in load_file(opened.weights).items()}
    request = folder / "request.npz"
    np.savez(request, num_heads=opened.facts.encoder.num_heads, **weights, **data.arrays())
    command = [python, "-m", "benchmarks.peers.inference", str(request)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None

    def measure(name: str) -> dict[str, Any]:
        print(name, file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    return {name: partial(measure, name) for name in json.loads(process.stdout.readline())}


def row(values: dict, plain: dict, labels: np.ndarray) -> dict[str, float]:
    answers = np.array(values["answers"])
    return {
        "texts_per_second": round(len(labels) / values["seconds"], 1),
        "throughput": round(plain["seconds"] / values["seconds"], 2),
        "short_ms": round(values["short_ms"], 2),
        "latency": round(values["short_ms"] / plain["short_ms"], 2),
        "accuracy": round(100 * float((answers.argmax(axis=1) == labels).mean()), 2),
        "difference": round(float(np.abs(answers - np.array(plain["answers"])).max()), 4),
    }


if __name__ == "__main__":
    main()
