"""What early exits are worth: texts a second against accuracy, by how many points of dev may be lost.

    python -m benchmarks.early_exit run=<run with exits> bundle=<its bundle> texts=<folder with neg/ and pos/>
        [engine=auto] [drops=0,0.1,0.2,0.3,0.5,1,2] [count=512] [tokens=4096] [rounds=2]

Thresholds are chosen on the run's dev part as the exporter does. Accuracy is of all texts of the folder (the official
test part), whose answers at every depth are computed once; speed is that of `count` of them with texts that leave and
batches put together anew at each exit. Beside these: all texts leaving at one exit, and none. Rounds alternate between
the settings, the fastest counts. The result is benchmarks/results/early_exit.json, drawn in docs/early_exit.svg.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table

from benchmarks.inference import batches_of, read, staged
from benchmarks.machine import save
from bert_mtl.export import dev_part
from bert_mtl.gates import Exported, answers_of
from bert_mtl.leaving import NEVER, exit_of, left, thresholds
from bert_mtl.runs import load_model, open_run
from serving.bundle import Bundle, load_bundle
from serving.engines import Engine, open_engine

OWN = {"run": "", "bundle": "", "texts": "", "engine": "auto", "drops": "0,0.1,0.2,0.3,0.5,1,2", "count": "512"}
OWN |= {"tokens": "4096", "rounds": "2", "result": "early_exit"}
PICTURE = Path(__file__).parents[1] / "docs" / "early_exit.svg"


def main() -> None:
    own = OWN | dict(argument.split("=", 1) for argument in sys.argv[1:])
    bundle, tokens = load_bundle(own["bundle"]), int(own["tokens"])
    engine, (head,) = open_engine(own["engine"], bundle), bundle.manifest.heads  # type: ignore[arg-type]
    chosen = choices(engine, bundle, own["run"], head, list(map(float, own["drops"].split(","))))
    found = tested(engine, bundle, Path(own["texts"]), head, tokens, chosen)
    rows, _ = read(Path(own["texts"]), int(own["count"]), bundle)
    data = batches_of(rows, tokens, bundle)
    for _ in range(int(own["rounds"])):
        for name, values in found.items():
            once = staged(leaving_at(engine, head, chosen[name]), bundle, head, rows, data, tokens)
            rate = round(len(rows) / once["seconds"], 1)
            values["texts_per_second"] = max(values.get("texts_per_second", 0), rate)
            values["short_ms"] = min(values.get("short_ms", np.inf), round(once["short_ms"], 2))
    settings = {"engine": engine.name, "precision": bundle.manifest.engines[engine.name].precision}
    settings |= {"texts": int(own["count"])}
    save(own["result"], {"rows": found} | settings, "tensorflow", "openvino", "ai-edge-litert")
    shown = Table("texts leave", *next(iter(found.values())))
    for name, values in found.items():
        shown.add_row(name, *map(str, values.values()))
    Console().print(shown)
    draw(found, f"{engine.name} {settings['precision']}")


def choices(
    engine: Engine, bundle: Bundle, run_folder: str, head: str, drops: Sequence[float]
) -> dict[str, list[float]]:
    """The thresholds of every setting."""
    run = open_run(run_folder)
    model, depths = load_model(run, dtype="float32"), [stage.depth for stage in engine.stages]
    answers = answers_of(Exported(model, engine.predict, depths), dev_part(run), exits=True)
    own = [answers[model.name_at(head, depth)] for depth in depths]
    metric, labels = model.heads[head].metric, own[-1].labels
    best = bundle.manifest.gates[engine.name][head].metrics["run"][metric]

    def score(found: np.ndarray) -> float:
        return model.heads[head].metrics(found, labels)[metric]

    by_depth = [each.answers for each in own]
    exits = len(depths) - 1
    fixed = {
        f"after layer {depth}": [NEVER] * place + [0.0] * (exits - place) for place, depth in enumerate(depths[:-1])
    }
    return {
        f"{drop:g} points": thresholds(by_depth, depths, score, best - drop / 100 - 1e-9) for drop in drops
    } | fixed | {f"after layer {depths[-1]}": [NEVER] * exits}  # fmt: skip


def tested(
    engine: Engine, bundle: Bundle, texts: Path, head: str, tokens: int, chosen: dict[str, list[float]]
) -> dict[str, dict]:
    """By setting: accuracy on all texts, the layers that one passes on the average, and who leaves where."""
    count = sum(1 for label in ("neg", "pos") for _ in (texts / label).iterdir())
    rows, labels = read(texts, count, bundle)
    depths, answers = [stage.depth for stage in engine.stages], np.zeros((len(engine.stages), count, 2))
    for places, arrays in batches_of(rows, tokens, bundle).batches:
        answers[:, places] = [outputs[head] for outputs in engine.predict(arrays)]
    found = {}
    for name, limits in chosen.items():
        places = exit_of(list(answers), limits)
        right = left(list(answers), places).argmax(axis=1) == labels
        found[name] = {
            "accuracy": round(100 * float(right.mean()), 2),
            "layers": round(float(np.take(depths, places).mean()), 2),
            "leave": " ".join(f"{depth}: {float((places == at).mean()):.1%}" for at, depth in enumerate(depths)),
            "thresholds": " ".join(f"{limit:.3f}" if limit < NEVER else "never" for limit in limits),
        }
    return found


def leaving_at(engine: Engine, head: str, limits: Sequence[float]) -> Engine:
    """The engine with other thresholds."""
    stages = [
        stage.model_copy(update={"leave": {head: limit}}) for stage, limit in zip(engine.stages, limits, strict=False)
    ]
    return replace(engine, stages=[*stages, engine.stages[-1]])


def draw(found: dict[str, dict], title: str) -> None:
    matplotlib.rcParams |= {"svg.hashsalt": "early_exit", "svg.fonttype": "none"}
    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    for colour, fixed in (("tab:blue", False), ("tab:grey", True)):
        points = {name: values for name, values in found.items() if name.startswith("after") == fixed}
        across, up = ([values[key] for values in points.values()] for key in ("texts_per_second", "accuracy"))
        axes.plot(across, up, "s" if fixed else "o-", color=colour)
        for number, (name, x, y) in enumerate(zip(points, across, up, strict=True)):
            place = (4, (5, -12)[number % 2])  # neighbours would cover each other
            axes.annotate(name, (x, y), xytext=place, textcoords="offset points", fontsize=8, color=colour)
    axes.margins(x=0.15)
    axes.set_xlabel(f"texts a second ({title}, 2 cores)")
    axes.set_ylabel("accuracy on the test part, %")
    axes.set_title("Texts leave at exits: by points of dev that may be lost; and all at one layer", fontsize=10)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
