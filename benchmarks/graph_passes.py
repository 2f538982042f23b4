"""What each graph pass and each converter makes of a run's frozen graph: nodes, bytes, milliseconds, before and after.

    python -m benchmarks.graph_passes run=<run folder> [result=graph_passes]

The passes run one after another; quantised graphs are made of the last one's, OpenVINO's models, which stand beside it,
of the run as a bundle's are. Every graph answers twice: with TensorFlow's own optimisers off (neither Grappler nor its
folding of constants as a session starts), which shows what the passes are worth, and as it comes, which shows what
TensorFlow does of it anyway. A short text is one row, a batch 8 rows of 128 tokens, of the built-in sample. Graphs take
turns; medians count. The result is benchmarks/results/graph_passes.json. Needs the extra export.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import save
from bert_mtl.formats import Arrays, write_format
from bert_mtl.frozen import Frozen, freeze
from bert_mtl.graph_passes import PASSES
from bert_mtl.quantisation import quantised
from bert_mtl.runs import Run, load_model, open_run
from bert_mtl.served import Served

SHORT = "A slow start, but I loved the ending!"
SAMPLE = Path(__file__).parents[1] / "data_prep" / "sample" / "imdb" / "test.jsonl"
ROWS, LENGTH, CALIBRATION = 8, 128, 50
ROUNDS, CALLS = 12, {"short": 10, "batch": 1}
OWN = {"run": "", "result": "graph_passes"}
Answer = Callable[[Arrays], list[np.ndarray]]


class Stage(NamedTuple):
    """A model that answers with TensorFlow's optimisers `off` and `on`; `before` is what it was made of."""

    before: str
    nodes: int
    bytes: int
    changes: str
    answers: dict[str, Answer]


def main() -> None:
    own = OWN | dict(argument.split("=", 1) for argument in sys.argv[1:])
    run = open_run(own["run"])
    served = Served(load_model(run, dtype="float32"), run.tokenizer, run.tasks, run.facts.pairs)
    texts = [json.loads(line)["text"] for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    asked = {
        "short": read(run, [SHORT]),
        "batch": {name: rows[:ROWS, :LENGTH] for name, rows in read(run, texts).items()},
    }
    found = stages(served, [read(run, [text]) for text in texts[:CALIBRATION]])
    milliseconds = measure(found, asked)
    answers = {
        name: [next(iter(stage.answers.values()))(rows) for rows in asked.values()] for name, stage in found.items()
    }
    values = {name: {"nodes": stage.nodes, "bytes": stage.bytes} | milliseconds[name] for name, stage in found.items()}
    rows = {
        name: {
            "changes": stage.changes,
            "before": values.get(stage.before),
            "after": values[name],
            "difference": furthest(answers[name], answers.get(stage.before, answers[name])),
        }
        for name, stage in found.items()
    }
    load = round(os.getloadavg()[1], 1)  # that of the last five minutes: this program takes 1 to 2 of it
    save(own["result"], {"rows": rows, "batch": [ROWS, LENGTH], "load": load}, "tensorflow", "openvino", "nncf")
    Console().print(table(rows))


def read(run: Run, texts: Sequence[str]) -> Arrays:
    """The texts as rows, the longest first."""
    ids = run.tokenizer.encode(tf.constant(texts)).token_ids
    ids = tf.gather(ids, tf.argsort(ids.row_lengths(), direction="DESCENDING", stable=True))
    token_ids = ids.to_tensor(run.tokenizer.pad_id).numpy().astype(np.int32)
    segment_ids = tf.sequence_mask(ids.row_lengths(), dtype=tf.int32).numpy()
    return {"token_ids": token_ids, "type_ids": np.zeros_like(token_ids), "segment_ids": segment_ids}


def stages(served: Served, texts: Sequence[Arrays]) -> dict[str, Stage]:
    graph = freeze(served.ids.get_concrete_function())
    before, found = "", {"frozen": of_graph("", graph, graph)}
    for name, run in PASSES.items():
        before, old, graph = list(found)[-1], graph, run(graph)
        found[name] = of_graph(before, old, graph)
    last = list(found)[-1]
    found |= {
        f"quantise {precision}": of_graph(last, graph, quantised(graph, precision)) for precision in ("fp16", "int8")
    }
    return found | {
        f"OpenVINO {precision}": of_openvino(last, served, precision, texts) for precision in ("fp32", "int8")
    }


def of_graph(before: str, old: Frozen, new: Frozen) -> Stage:
    answers = {"off": in_session(new, optimise=False), "on": in_session(new, optimise=True)}
    return Stage(before, len(new.graph.node), new.graph.ByteSize(), changes(old.graph, new.graph), answers)


def changes(old: Any, new: Any) -> str:
    """What is unlike in two graphs."""
    if [node.name for node in old.node] == [node.name for node in new.node] and old == new:
        return "nothing"
    return (
        "nodes" if {node.name: node for node in old.node} != {node.name: node for node in new.node} else "order alone"
    )


def in_session(frozen: Frozen, optimise: bool) -> Answer:
    config = tf.compat.v1.ConfigProto()
    if not optimise:
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        config.graph_options.optimizer_options.opt_level = tf.compat.v1.OptimizerOptions.L0
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen.graph, name="")
    session = tf.compat.v1.Session(graph=graph, config=config)
    fetches, feeds = ([f"{name}:0" for name in names] for names in (frozen.outputs, frozen.inputs))
    call = session.make_callable(fetches, feeds)
    return lambda rows: call(*(rows[name] for name in frozen.inputs))


def of_openvino(before: str, served: Served, precision: Any, texts: Sequence[Arrays]) -> Stage:
    """The format openvino of a bundle; fp32 computes in float32 too, int8 in the type that OpenVINO chooses."""
    import openvino

    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY"} | ({"INFERENCE_PRECISION_HINT": "f32"} if precision == "fp32" else {})
    with tempfile.TemporaryDirectory() as folder:
        (written,) = write_format("openvino", served, served.stages(exits=False), Path(folder), precision, texts)[
            "stages"
        ]
        file = Path(folder) / written["path"]
        model = core.read_model(file)
        size = sum(each.stat().st_size for each in file.parent.iterdir())
        compiled = core.compile_model(model, "CPU", settings)
    inputs, heads = written["inputs"], sorted(served.model.heads)

    def answer(rows: Arrays) -> list[np.ndarray]:
        found = compiled({name: rows[name] for name in inputs})
        return [found[head] for head in heads]

    return Stage(before, len(model.get_ops()), size, "runtime", {"on": answer})


def measure(found: dict[str, Stage], asked: dict[str, Arrays]) -> dict[str, dict[str, float]]:
    """By optimiser, the seconds until a model's first answer (to what is short), and milliseconds by kind of rows; each
    turn of a graph begins with a call that does not count."""
    starts = {
        name: {f"start_{how}_s": round(seconds(answer, asked["short"]), 2) for how, answer in stage.answers.items()}
        for name, stage in found.items()
    }
    turns = [(name, kind, how) for name, stage in found.items() for how in stage.answers for kind in asked]
    taken: dict[tuple[str, str, str], list[float]] = {turn: [] for turn in turns}
    for _ in track(range(ROUNDS), "rounds"):
        for name, kind, how in turns:
            answer, rows = found[name].answers[how], asked[kind]
            answer(asked["short"])
            taken[name, kind, how] += [1000 * seconds(answer, rows) for _ in range(CALLS[kind])]
    return {
        name: starts[name]
        | {f"{kind}_{how}_ms": round(median(taken[name, kind, how]), 2) for of, kind, how in turns if of == name}
        for name in found
    }


def seconds(answer: Answer, rows: Arrays) -> float:
    start = time.perf_counter()
    answer(rows)
    return time.perf_counter() - start


def furthest(answers: Sequence[list[np.ndarray]], others: Sequence[list[np.ndarray]]) -> float:
    """The largest difference of two numbers."""
    pairs = [zip(one, other, strict=True) for one, other in zip(answers, others, strict=True)]
    return float(max(np.abs(a - b).max() for pair in pairs for a, b in pair))


def table(rows: dict[str, dict]) -> Table:
    columns = list(rows["frozen"]["after"])
    shown = Table("pass", "changes", *columns, "difference")
    for name, row in rows.items():
        before, after = row["before"] or {}, row["after"]
        cells = [
            str(after.get(column, ""))
            if before.get(column) in (None, after.get(column)) or column not in after
            else f"{before[column]} -> {after[column]}"
            for column in columns
        ]
        shown.add_row(name, row["changes"], *cells, f"{row['difference']:.1g}")
    return shown


if __name__ == "__main__":
    main()
