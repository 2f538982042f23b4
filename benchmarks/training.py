"""What `benchmarks.train_gpu` and `benchmarks.train_cpu` share: trainings of ours and of the peer, timed by turns.

Every training is a process of its own. `jobs` of them are made ready at once (records read, graphs compiled, warmed
up), because compiling takes longer than measuring; then one after the other takes its turn, alone on the device, while
those that wait do nothing. Both sides train on the very same examples.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.machine import save
from bert_mtl.flops import Sizes, Work, mfu

REPOSITORY = Path(__file__).resolve().parents[1]
OWN = {"data": "../shared/data", "models": "minilm,bert_base", "peers": "torch", "peer_python": sys.executable}
OWN |= {"workloads": "", "steps": "", "warmup": "10", "settle": "5", "batch": "", "vocab": "", "jobs": "4"}
OWN |= {"rounds": "1", "gpu": "yes", "variants": "eager,compiled", "result": ""}

SIZES = {"minilm": Sizes(6, 384, 12, 1536), "bert_base": Sizes(12, 768, 12, 3072), "tiny": Sizes(2, 32, 2, 64)}
POOLING = {"minilm": "mean", "bert_base": "cls", "tiny": "mean"}
FULL_MLM = "tasks.imdb_mlm.sources.full.parts.train=train"  # a folder may lack the reviews without a label


class Workload(NamedTuple):
    """What is trained: `steps` are timed, of `batch` examples a device on average; ours on so many `devices`."""

    tasks: str
    max_length: int
    batch: int
    steps: int
    settings: tuple[str, ...] = ()
    devices: int = 1


class Job(NamedTuple):
    workload: str
    model: str
    side: str  # ours or peer


def main(workloads: dict[str, Workload], defaults: dict[str, str], trainer: bool = False) -> list[dict]:
    """Measures the workloads of the command line and returns their rows; each is stored as soon as it is there."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    own = {key: given.pop(key, default) for key, default in (OWN | defaults).items()}
    chosen = {name: changed(workloads[name], own) for name in own["workloads"].split(",")}
    settings = [f"{key}={value}" for key, value in given.items()]
    sides = ["ours", "peer"] if own["peers"] != "none" else ["ours"]
    pairs = [(name, model) for name in chosen for model in own["models"].split(",")]
    jobs = [Job(*pair, side) for pair in pairs for _ in range(int(own["rounds"])) for side in sides]
    found: dict[tuple[str, str], dict[str, list[dict]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        requests = Requests(own, chosen, settings, Path(folder), trainer)
        requests.prepare()
        for at in range(0, len(jobs), int(own["jobs"])):
            group = [Process(job, requests) for job in jobs[at : at + int(own["jobs"])]]
            for process in group:
                process.wait_until_ready()
            for process in group:
                result = process.measure()
                row = found.setdefault(process.job[:2], {side: [] for side in sides})
                row[process.job.side].append(result)
                print(line(process.job, result), flush=True)
                rows = [summary(*pair, both) for pair, both in found.items()]
                facts = {name: workload._asdict() for name, workload in chosen.items()}
                save(own["result"], {"rows": rows, "workloads": facts, "settings": settings}, "numpy")
    show(rows)
    return rows


def changed(workload: Workload, own: dict[str, str]) -> Workload:
    """The workload with what the command line says of all."""
    steps, batch = int(own["steps"] or workload.steps), int(own["batch"] or workload.batch)
    return workload._replace(steps=steps, batch=batch)


class Requests:
    """What the processes are told, each in a file of its own."""

    def __init__(
        self, own: dict[str, str], workloads: dict[str, Workload], settings: list[str], folder: Path, trainer: bool
    ):
        self.own, self.workloads, self.settings, self.folder, self.trainer = own, workloads, settings, folder, trainer
        self.count = 0

    def prepare(self) -> None:
        """Builds all records and writes the examples of both sides, on the CPU alone."""
        parts = [
            {"overrides": self.overrides(name), "examples": self.examples(name), **self.steps(name)}
            for name in self.workloads
        ]
        file = self.write({"mode": "prepare", "vocab": self.own["vocab"], "workloads": parts})
        command = [sys.executable, "-m", "benchmarks.train_ours", str(file)]
        subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=True)
        self.vocab = json.loads(file.with_suffix(".out").read_text())["vocab"]

    def of(self, job: Job) -> Path:
        """The file for a training."""
        workload, sizes = self.workloads[job.workload], SIZES[job.model]
        overrides = [*self.overrides(job.workload), *self.model(job.model)]
        overrides += devices(workload.devices, self.own["gpu"] == "yes")
        own = {"overrides": overrides, "devices": workload.devices}
        peer = {
            "examples": self.examples(job.workload),
            "batch": workload.batch,
            "sizes": sizes,
            "pooling": POOLING[job.model],
            "gpu": self.own["gpu"] == "yes",
            "variants": self.own["variants"].split(","),
            "trainer": self.trainer,
        }
        return self.write({"mode": "time", **(own if job.side == "ours" else peer), **self.steps(job.workload)})

    def steps(self, name: str) -> dict[str, int]:
        return {key: int(self.own[key]) for key in ("warmup", "settle")} | {"steps": self.workloads[name].steps}

    def examples(self, name: str) -> str:
        return str(self.folder / f"{name}.npz")

    def overrides(self, name: str) -> list[str]:
        """Settings of a workload's training, whatever the model. No state is written while time runs."""
        workload = self.workloads[name]
        return [
            f"task=[{workload.tasks}]",
            "data=full",
            f"data.path={Path(self.own['data']).resolve()}",
            f"tokenizer.max_length={workload.max_length}",
            f"train.batch_size={workload.batch * workload.devices}",
            "train.save_every=1000000",
            *workload.settings,
            *self.settings,
        ]

    def model(self, name: str) -> list[str]:
        """The model's settings: with weights that are there, else random ones of its size, as fast as any."""
        kind = "mixed_bfloat16" if self.own["gpu"] == "yes" else "float32"
        found = [f"model={name}", f"model.dtype={kind}"]
        if name == "minilm" and not self.own["vocab"]:
            return found
        keys = ("num_layers", "hidden_dim", "num_heads", "intermediate_dim")
        size = ",".join(f"{key}:{getattr(SIZES[name], key)}" for key in keys)
        return [
            *found,
            "model.weights=null",
            f"model.size={{{size},max_positions:512}}",
            f"tokenizer.vocab='{self.vocab}'",
        ]

    def write(self, request: dict) -> Path:
        self.count += 1
        file = self.folder / f"{self.count}.json"
        file.write_text(json.dumps(request | {"out": str(file.with_suffix(".out"))}))
        return file


def devices(count: int, gpu: bool) -> list[str]:
    """Settings that train on the first so many devices."""
    names = ",".join(f"{'GPU' if gpu else 'CPU'}:{number}" for number in range(count))
    return [f"strategy={'mirrored' if count > 1 else 'one_device'}", f"strategy.devices=[{names}]"]


class Process:
    """A training that gets ready at once, and measures when it is told to."""

    def __init__(self, job: Job, requests: Requests):
        self.job, self.file = job, requests.of(job)
        self.devices = requests.workloads[job.workload].devices if job.side == "ours" else 1
        if job.side == "ours":
            command, own = [sys.executable, "-m", "benchmarks.train_ours"], {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
            environment = os.environ | own
        else:
            command = [requests.own["peer_python"], "-m", "benchmarks.peers.torch_trainer"]
            environment = peer_environment(dict(os.environ))
        self.log = self.file.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, str(self.file)],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait_until_ready(self) -> None:
        """Returns when it is compiled, or has failed."""
        assert self.process.stdout is not None
        while (text := self.process.stdout.readline()) and text != "READY\n":
            pass

    def measure(self) -> dict[str, Any]:
        """What it measured; where it failed, the end of what it said under `error`."""
        self.process.communicate("go\n" if self.process.poll() is None else None)
        out = self.file.with_suffix(".out")
        if self.process.returncode or not out.exists():
            return {"error": self.log.read_text(errors="replace")[-1500:]}
        result = json.loads(out.read_text())
        work = result["work"] = Work(*result["work"])._asdict()
        peak_flops = result["peak_flops"] * self.devices
        share = mfu(SIZES[self.job.model], Work(**work), result["seconds"], peak_flops)
        rate = round(work["tokens"] / result["seconds"])
        rounded = {
            key: round(result[key], 3) for key in ("seconds", "processor_seconds", "compile_seconds") if key in result
        }
        peak = {"peak_tflops": round(result.pop("peak_flops") / 1e12, 3)}
        return {"tokens_per_second": rate, "mfu": round(share, 4)} | result | rounded | peak


def peer_environment(environment: dict[str, str]) -> dict[str, str]:
    """Without our side's packages, and the libraries that came with them."""
    ours = [path for path in environment.pop("PYTHONPATH", "").split(":") if path]
    libraries = environment.get("LD_LIBRARY_PATH", "").split(":")
    kept = [path for path in libraries if path and not path.startswith(tuple(ours))]
    return environment | {"LD_LIBRARY_PATH": ":".join(kept)} if "LD_LIBRARY_PATH" in environment else environment


def summary(workload: str, model: str, both: dict[str, list[dict]]) -> dict:
    """A row of the result: each side's tokens a second in its fastest round, their ratio, and all measurements.

    Other work on the machine only ever slows a round down.
    """
    good = {side: [run for run in runs if "error" not in run] for side, runs in both.items()}
    rates = {side: max(run["tokens_per_second"] for run in runs) for side, runs in good.items() if runs}
    ratio = round(rates["ours"] / rates["peer"], 3) if len(rates) > 1 else None
    return {"workload": workload, "model": model, "tokens_per_second": rates, "ratio": ratio, "runs": both}


def line(job: Job, result: dict) -> str:
    if "error" in result:
        return f"{' '.join(job)}: failed\n{result['error']}"
    memory = f", {result['memory'] / 2**30:.1f} GiB" if result["memory"] else ""
    return (
        f"{' '.join(job)}: {result['tokens_per_second']:,} tokens/s, MFU {result['mfu']:.1%}, {result['steps']} steps "
        f"in {result['seconds']:.2f} s, compiled in {result['compile_seconds']:.0f} s{memory}"
        + (f" ({result['variant']})" if "variant" in result else "")
    )


def show(rows: list[dict]) -> None:
    columns = ("tokens/s", "MFU", "compiled in", "GPU memory")
    table = Table("workload", "model", "side", *columns, "ratio")
    for row in rows:
        for side, runs in row["runs"].items():
            for run in runs:
                named = f"{side} ({run['variant']})" if "variant" in run else side
                ratio = f"{row['ratio']:.2f}" if row["ratio"] and side == "ours" else ""
                table.add_row(row["workload"], row["model"], named, *cells(run), ratio)
    Console().print(table)


def cells(run: dict) -> tuple[str, ...]:
    if "error" in run:
        return ("failed", "", "", "")
    memory = f"{run['memory'] / 2**30:.1f} GiB" if run["memory"] else ""
    return f"{run['tokens_per_second']:,}", f"{run['mfu']:.1%}", f"{run['compile_seconds']:.0f} s", memory
