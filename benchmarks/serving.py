"""The server beside others on a CPU: requests a second and latencies of concurrent clients, one text a request.

    python -m benchmarks.serving bundle=<folder> run=<its run> imdb=<folder with neg/ and pos/> sst2=<.jsonl.gz>
        torch=<python with torch, transformers, onnx, onnxscript, onnxruntime: makes the peers' models>
        [fastapi=<python>] [infinity=<python>] [bert_serving=<python>]
        [ours="max_length=256"] [count=400] [clients=16] [rounds=3]

All get the same `count` texts, half IMDB and half SST-2, in the same order, cut at 256 tokens; all take the run's
weights. What the Pythons need is in benchmarks/peers/requirements. `fastapi` is `benchmarks.peers.fastapi_onnx`;
`infinity` infinity-emb, with its PyTorch engine as installed, and with its ONNX Runtime engine on the int8 model that
`fastapi` has, in batches of 32 (its default), 4 and 1; `bert_serving` bert-serving-server 1.10.0 with two workers.

The servers run side by side, one of them at work at a time: a round asks each in turn, the fastest round counts. Ready
is a server once it answers; memory is the most after any round, with all processes of a server. The result is
benchmarks/results/serving.json.
"""

import asyncio
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from benchmarks import serving_sides as sides
from benchmarks.machine import save
from benchmarks.processes import ServerProcess
from benchmarks.serving_sides import Ask, Asker, Side

ROOT = Path(__file__).parents[1]
OWN = {"bundle": "", "run": "", "imdb": "", "sst2": "", "torch": "", "fastapi": "", "infinity": "", "bert_serving": ""}
OWN |= {"ours": "max_length=256", "count": "400", "clients": "16", "rounds": "3", "result": "serving"}
SHORT, SHORT_CALLS = "A slow start, but I loved the ending!", 100
INFINITIES = {"infinity": "--engine torch"}
INFINITIES |= {f"infinity onnx int8 by {size}": f"--engine optimum --batch-size {size}" for size in (32, 4, 1)}
WARM_UP = 64  # texts
START = 180.0  # seconds a server may take to answer


class Round(NamedTuple):
    """The seconds that all texts took, each one's latency in seconds, and the numbers of the labels."""

    seconds: float
    latencies: list[float]
    answers: list[int]


def main() -> None:
    own = OWN | dict(argument.split("=", 1) for argument in sys.argv[1:])
    texts, labels = read(Path(own["imdb"]), Path(own["sst2"]), int(own["count"]))
    with tempfile.TemporaryDirectory() as work:
        chosen = sides_of(own, Path(work))
        found = asyncio.run(measure(chosen, texts, int(own["clients"]), int(own["rounds"]), Path(work)))
    table = {name: row(values, found["ours"], labels) for name, values in found.items()}
    versions = {name: versions_of(side) for name, side in chosen.items() if side.packages}
    settings = {key: int(own[key]) for key in ("count", "clients", "rounds")} | {"peers": versions}
    save(own["result"], {"rows": table} | settings, "openvino", "uvicorn", "fastapi")
    shown = Table("side", *table["ours"])
    for name, values in table.items():
        shown.add_row(name, *map(str, values.values()))
    Console(width=200).print(shown)


def read(imdb: Path, sst2: Path, count: int) -> tuple[list[str], np.ndarray]:
    """As many texts of each label of each source, always the same, in random order; and their labels, 0 or 1."""
    dice, each = random.Random(5), count // 4
    found: list[tuple[str, int]] = []
    with gzip.open(sst2, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for label, name in enumerate(("neg", "pos")):
        files = dice.sample(sorted((imdb / name).iterdir()), each)
        found += [(file.read_text(encoding="utf-8"), label) for file in files]
        found += [(row["text"], label) for row in dice.sample([row for row in rows if row["label"] == label], each)]
    dice.shuffle(found)
    return [text for text, _ in found], np.array([label for _, label in found])


def sides_of(own: dict[str, str], work: Path) -> dict[str, Side]:
    """Ours, and the peers for which there is a Python."""
    bundle, run, clients = Path(own["bundle"]), Path(own["run"]), int(own["clients"])
    ((name, head),) = json.loads((bundle / "manifest.json").read_text())["heads"].items()
    chosen = {"ours": sides.ours(bundle, own["ours"].split(), head["labels"], name, clients)}
    likelier = head_of(run, name)
    if own["fastapi"] or own["infinity"]:
        command = [own["torch"], "-m", "benchmarks.peers.models", str(run), str(bundle), str(work)]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if own["fastapi"]:
        chosen["fastapi onnx int8"] = sides.fastapi_onnx(own["fastapi"], work, head["labels"], clients)
    if own["infinity"]:
        for title, options in INFINITIES.items():
            chosen[title] = sides.infinity(own["infinity"], work, options.split(), likelier, clients)
    if own["bert_serving"]:
        command = [sys.executable, "-m", "benchmarks.peers.tf1_checkpoint", str(run), str(work / "tf1")]
        subprocess.run(command, check=True, cwd=ROOT, stderr=subprocess.DEVNULL)
        chosen["bert-serving-server"] = sides.bert_serving(own["bert_serving"], work, likelier, clients)
    return chosen


def head_of(run: Path, name: str) -> Callable[[np.ndarray], int]:
    """From a text's vector `(hidden_dim,)` to the number of its likeliest label."""
    with safe_open(run / "weights.safetensors", "numpy") as weights:
        kernel, bias = (weights.get_tensor(f"{name}/logits/{leaf}") for leaf in ("kernel", "bias"))
    return lambda vector: int((vector @ kernel + bias).argmax())


async def measure(
    chosen: dict[str, Side], texts: list[str], clients: int, rounds: int, work: Path
) -> dict[str, dict[str, Any]]:
    """By side: `ready`, `short` (seconds), `memory` (MB), and its `rounds`."""
    found: dict[str, dict[str, Any]] = {}
    async with AsyncExitStack() as stack:
        askers: dict[str, tuple[ServerProcess, Asker]] = {}
        for name, side in chosen.items():
            process, asker, ready = await stack.enter_async_context(started(name, side, work))
            await drain(asker.ask, texts[:WARM_UP], clients)
            found[name] = {"ready": ready, "short": await short(asker.ask), "memory": 0.0, "rounds": []}
            askers[name] = process, asker
        for _ in range(rounds):
            for name, (process, asker) in askers.items():
                once = await drain(asker.ask, texts, clients)
                print(f"{name}: {len(texts) / once.seconds:.1f} req/s", flush=True)
                found[name]["rounds"].append(once)
                found[name]["memory"] = max(found[name]["memory"], process.memory_mb())
    return found


@asynccontextmanager
async def started(name: str, side: Side, work: Path) -> AsyncIterator[tuple[ServerProcess, Asker, float]]:
    """The side's process, what asks it, and the seconds until it answered."""
    environment = {"PYTHONPATH": str(ROOT)} | side.environment
    begun = time.perf_counter()
    # A folder of its own: some servers write where they are.
    (folder := work / f"work {name}").mkdir()
    with ServerProcess(side.arguments(), folder / "output", folder, environment) as process:
        asker = side.asker(*side.ports)
        try:
            await first(asker.ask, process)
            yield process, asker, time.perf_counter() - begun
        finally:
            await asker.close()


async def first(ask: Ask, process: ServerProcess) -> None:
    """Returns once a text is answered; raises after `START` seconds, or when the server has ended."""
    end = time.perf_counter() + START
    while True:
        process.check()
        try:
            await ask(SHORT)
            return
        except (aiohttp.ClientError, TimeoutError):
            if time.perf_counter() > end:
                raise
            await asyncio.sleep(0.02)


async def drain(ask: Ask, texts: list[str], clients: int) -> Round:
    """All texts, each asked once, by so many clients."""
    latencies, answers = [0.0] * len(texts), [0] * len(texts)
    numbers = iter(range(len(texts)))

    async def client() -> None:
        for number in numbers:
            begun = time.perf_counter()
            answers[number] = await ask(texts[number])
            latencies[number] = time.perf_counter() - begun

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return Round(time.perf_counter() - begun, latencies, answers)


async def short(ask: Ask) -> float:
    """The median latency of one short text at a time, in seconds."""
    return float(np.median((await drain(ask, [SHORT] * SHORT_CALLS, clients=1)).latencies))


def row(values: dict[str, Any], ours: dict[str, Any], labels: np.ndarray) -> dict[str, Any]:
    best, own = (min(side["rounds"], key=lambda each: each.seconds) for side in (values, ours))

    def quantile(percent: int) -> float:
        return float(np.percentile(best.latencies, percent))

    return {
        "requests_per_second": round(len(labels) / best.seconds, 1),
        "ours_to_it": round(best.seconds / own.seconds, 2),
        "p50_ms": round(1000 * quantile(50), 1),
        "p95_ms": round(1000 * quantile(95), 1),
        "our_p95_to_its": round(float(np.percentile(own.latencies, 95) / quantile(95)), 2),
        "short_ms": round(1000 * values["short"], 2),
        "accuracy": round(100 * float((np.array(best.answers) == labels).mean()), 2),
        "memory_mb": round(values["memory"]),
        "ready_seconds": round(values["ready"], 1),
        "rounds": [round(len(labels) / each.seconds, 1) for each in values["rounds"]],
    }


def versions_of(side: Side) -> dict[str, str]:
    code = f"from importlib.metadata import version; print(*map(version, {side.packages!r}))"
    if "bert-serving-server" in side.packages:  # Python 3.7 has it elsewhere
        code = f"import pkg_resources as p; print(*(p.get_distribution(n).version for n in {side.packages!r}))"
    output = subprocess.run([side.python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(side.packages, output, strict=True))


if __name__ == "__main__":
    main()
