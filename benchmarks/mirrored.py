"""One GPU beside several (`strategy=mirrored`): real tokens a second, and whether they learn the same.

    python -m benchmarks.mirrored data=<folder with aclImdb> [devices=2] [models=minilm,bert_base] [batch=128]

Speed: IMDB at 512 tokens, `batch` reviews a GPU. Losses: the first model without dropout, `curve_batch` reviews a step
in all on one and on all of them (64, whose rows two can halve: else their steps hold other examples); `curve` steps;
drawn in docs/mirrored.svg. Further arguments as for `benchmarks.train_gpu`; `gpu=no` is a trial on parts of a CPU. The
result is benchmarks/results/mirrored.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import RESULTS, gpu_names
from benchmarks.training import OWN, REPOSITORY, Requests, Workload, devices, main

PICTURE = REPOSITORY / "docs" / "mirrored.svg"
WIDTH, HEIGHT, EDGE = 640, 360, 50
DEFAULTS = {"workloads": "one,several", "peers": "none", "warmup": "16", "settle": "8"}
COLOURS = (("#1f77b4", 5, 0.45), ("#d62728", 1.5, 1))


def run() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    count, steps = int(given.pop("devices", "2")), int(given.pop("curve", "160"))
    batch, result = given.setdefault("batch", "128"), given.setdefault("result", "mirrored")
    curve_batch = int(given.pop("curve_batch", "64"))
    sys.argv[1:] = [f"{key}={value}" for key, value in given.items()]
    one = Workload("imdb", 512, int(batch), steps=56)
    workloads = {"one": one, "several": one._replace(devices=count)}
    rows = main(workloads, DEFAULTS)
    rates = {(row["workload"], row["model"]): row["tokens_per_second"]["ours"] for row in rows}
    times = {model: round(rates["several", model] / rates["one", model], 3) for name, model in rates if name == "one"}
    model = given.get("models", OWN["models"]).split(",")[0]
    curves = losses(given, model, (1, count), steps, curve_batch)
    apart = max(abs(a - b) for a, b in zip(*curves, strict=True))
    print(f"{count} devices beside one: {times}; largest difference of the losses in {steps} steps: {apart:.4f}")
    file = RESULTS / f"{result}.json"
    found = json.loads(file.read_text()) | {"devices": count, "times": times, "losses": curves}
    file.write_text(json.dumps(found, indent=1) + "\n")
    if given.get("gpu") != "no":
        name = gpu_names()[0].removeprefix("NVIDIA ")
        title = f"{model}, IMDB, {curve_batch} reviews a step"
        PICTURE.write_text(picture(curves, [f"one {name}", f"{count} {name}"], title))


def losses(given: dict[str, str], model: str, counts: Sequence[int], steps: int, batch: int) -> list[list[float]]:
    """The mean loss after each step, for each count of devices."""
    own = OWN | {key: value for key, value in given.items() if key in OWN}
    settings = [f"{key}={value}" for key, value in given.items() if key not in OWN]
    exact = ("model.dropout=0", "train.steps_per_execution=1")
    workloads = {"curve": Workload("imdb", 512, batch, steps, exact)}
    with tempfile.TemporaryDirectory() as folder:
        requests = Requests(own, workloads, settings, Path(folder), trainer=False)
        requests.prepare()
        files, processes = [], []
        for count in counts:  # at once: no time is taken
            where = devices(count, own["gpu"] == "yes")
            overrides = [*requests.overrides("curve"), *requests.model(model), *where]
            file = requests.write({"mode": "losses", "overrides": overrides, "steps": steps, "devices": count})
            command = [sys.executable, "-m", "benchmarks.train_ours", str(file)]
            environment = os.environ | {"TF_FORCE_GPU_ALLOW_GROWTH": "true"}
            processes.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment))
            files.append(file)
        if any([process.wait() for process in processes]):
            raise SystemExit("A training ended with an error, told above.")
        return [json.loads(file.with_suffix(".out").read_text()) for file in files]


def picture(curves: Sequence[Sequence[float]], names: Sequence[str], title: str) -> str:
    """The curves as SVG, one over the other."""
    low, high = min(map(min, curves)), max(map(max, curves))
    steps = len(curves[0])

    def points(curve: Sequence[float]) -> str:
        each = enumerate(curve, start=1)
        across, down = (WIDTH - EDGE - 20) / steps, (HEIGHT - EDGE - 10) / ((high - low) or 1)
        return " ".join(f"{EDGE + across * step:.1f},{20 + down * (high - loss):.1f}" for step, loss in each)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for place, (curve, name, (colour, width, opacity)) in enumerate(zip(curves, names, COLOURS, strict=True)):
        lines.append(
            f'<polyline points="{points(curve)}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'opacity="{opacity}"/>'
        )
        lines.append(f'<text x="310" y="{40 + 18 * place}" fill="{colour}">{name}</text>')
    lines += [
        f'<text x="310" y="76">mean training loss so far, {title}</text>',
        f'<text x="{EDGE}" y="{HEIGHT - 10}">step 0</text><text x="570" y="{HEIGHT - 10}">step {steps}</text>',
        f'<text x="4" y="26">{high:.3f}</text><text x="4" y="{HEIGHT - 38}">{low:.3f}</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run()
