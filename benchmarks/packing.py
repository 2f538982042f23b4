"""How full the rows of an epoch are, packed and padded, and how long planning takes.

    python -m benchmarks.packing [data=<folder>]

For every data set in the folder (BERT_MTL_SHARED, where none is given), the train part as `bert_mtl.train` plans it, in
batches of 32 examples. Fill is the share of the tokens of all batches that is not padding: `packed`; `padded` to the
longest of a batch of neighbours in length (a multiple of 32); and `static`, padded to tokenizer.max_length: one shape,
as packed rows have, which XLA compiles once.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.machine import save
from benchmarks.tokenizer import REPOSITORY, SHARED
from bert_mtl.config import PrepareConfig
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.packing import Packing
from bert_mtl.part_reader import PartReader
from bert_mtl.tasks import DataError, make_tasks
from bert_mtl.vocabulary import make_tokenizer
from conf import entry
from data_prep.build import build
from data_prep.vocab import train_wordpiece

BATCH, SHORT = 32, 1_000_000
LENGTHS = {"imdb": (256, 512)}  # tokenizer.max_length; 128 for all others
TASKS = "ag_news atis chnsenticorp cola goemotions imdb mrpc rte snips sst2 stsb trec wnut17".split()


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folder = Path(given.get("data", SHARED))
    with tempfile.TemporaryDirectory() as cache:
        fills = [fill for task in TASKS for fill in task_fills(task, folder, Path(cache))]
    seconds, fill = plan_short_texts()
    result = {
        "fill": fills,
        "plan": {"examples": SHORT, "tokens": "5 to 40", "row_length": 256, "seconds": seconds, "fill": fill},
        "settings": {"batch_size": BATCH, "window": 8192},
    }
    save("packing", result, "tensorflow", "tensorflow-text", "numpy")
    print(f"{SHORT:,} texts of 5 to 40 tokens planned in {seconds} s, fill {fill:.1%}")


def task_fills(task: str, folder: Path, cache: Path) -> Iterator[dict]:
    """What is to be said of a task's train part at each of its lengths; nothing where its data is not in the folder."""
    for max_length in LENGTHS.get(task, (128,)):
        settings = [f"task={task}", "data=full", f"data.path={folder}", "input=textline", "model=tiny"]
        settings += [
            f"tokenizer.vocab='{vocabulary(cache)}'",
            f"tokenizer.max_length={max_length}",
            f"cache_dir={cache}",
        ]
        config = entry.compose("prepare", settings, PrepareConfig)
        tokenizer = make_tokenizer(config.tokenizer, config.model, config.cache_dir)
        try:
            records = build(config, task, tokenizer)
        except DataError as error:
            print(f"{task}: left out ({error})")
            return
        reader = PartReader(records, "train", make_tasks(config.tasks)[task], tokenizer, config.input, config.data)
        pipeline = Pipeline((reader,), config.input, BATCH, (reader.examples,), shuffle=True)
        padded = Pipeline((reader,), config.input.model_copy(update={"packing": "none"}), BATCH, pipeline.counts)
        tokens, layout, epoch = int(reader.lengths.sum()), pipeline.layout, pipeline.first_epoch
        found = {
            "task": task,
            "examples": reader.examples,
            "mean_tokens": round(tokens / reader.examples, 1),
            "max_length": max_length,
            "row_length": layout.length,
            "rows": layout.rows,
            "packed": round(tokens / (pipeline.steps(epoch) * layout.rows * (layout.length or 0)), 4),
            "padded": round(tokens / padded_tokens(padded), 4),
            "static": round(tokens / (padded.steps(epoch) * BATCH * max_length), 4),
        }
        print(", ".join(f"{key} {value}" for key, value in found.items()), flush=True)
        yield found


def padded_tokens(pipeline: Pipeline) -> int:
    """Tokens, padding included, of the padded batches of an epoch."""
    lengths, pad_to = pipeline.readers[0].lengths, pipeline.input.pad_to
    plans = pipeline.packing.plan(lengths, pipeline.input.window, lambda window: None)
    longest = [lengths[plan.positions[batch.chosen]].max() for plan in plans for batch in plan.batches]
    return BATCH * sum(-(-int(length) // pad_to) * pad_to for length in longest)


def plan_short_texts() -> tuple[float, float]:
    """Seconds that planning an epoch of `SHORT` texts takes, and the fill of its rows."""
    lengths, packing = np.random.default_rng(0).integers(5, 41, SHORT), Packing(rows=8, length=256, most=60)
    start = time.perf_counter()
    steps = sum(len(plan.batches) for plan in packing.plan(lengths, 8192, np.random.default_rng))
    return round(time.perf_counter() - start, 2), round(lengths.sum() / (steps * packing.rows * packing.length), 4)


def vocabulary(cache: Path) -> Path:
    """The pretrained vocabulary in .cache, else one trained on the built-in reviews."""
    path = next(REPOSITORY.glob(".cache/**/vocab.txt"), cache / "vocab.txt")
    if not path.exists():
        lines = [line for file in sorted(REPOSITORY.glob("data_prep/sample/imdb/*.jsonl")) for line in file.open("rb")]
        train_wordpiece([json.loads(line)["text"] for line in lines], path, 8_000)
    return path


if __name__ == "__main__":
    main()
