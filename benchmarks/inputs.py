"""Examples per second of the three inputs, each beside a plain `from_generator` in the same run.

    python -m benchmarks.inputs

The plain one is what a first program does: a Python generator that reads a line, tokenises the text with the Rust
library and yields one example, then `padded_batch`. Reads 20,000 IMDB reviews from the folder BERT_MTL_SHARED, else the
built-in sample, repeated. The four take turns; the median of the rounds counts, without the first one, which starts the
workers and builds the graphs.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import tensorflow as tf

from benchmarks.machine import save
from benchmarks.tokenizer import REPOSITORY, SHARED
from bert_mtl.config import PrepareConfig
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.part_reader import PartReader
from bert_mtl.tasks import make_tasks
from bert_mtl.tokenization import rust_tokenizer
from bert_mtl.vocabulary import make_tokenizer
from conf import entry
from data_prep.build import build
from data_prep.vocab import train_wordpiece

KINDS = ("tfrecord", "generator", "textline")
ROWS, BATCH, MAX_LENGTH, ROUNDS = 20_000, 32, 256, 3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data, settings = choose_data(Path(folder))
        pipelines = {kind: make_pipeline(kind, settings) for kind in KINDS}
        epoch = pipelines["tfrecord"].first_epoch
        inputs: dict[str, Callable[[], tf.data.Dataset]] = {
            kind: partial(pipeline.dataset, epoch) for kind, pipeline in pipelines.items()
        }
        inputs["plain"] = lambda: plain(pipelines["textline"])
        rounds: dict[str, list[float]] = {name: [] for name in inputs}
        for _ in range(ROUNDS + 1):
            for name, dataset in inputs.items():
                rounds[name].append(rate(dataset()))
                print(f"{name} {rounds[name][-1]:,.0f} examples/s", flush=True)
        reader = pipelines["tfrecord"].readers[0]
        examples, tokens = reader.examples, reader.lengths.mean()
    rates = {name: round(median(values[1:])) for name, values in rounds.items()}
    result = {
        "examples_per_second": rates,
        "ratio_to_plain": {kind: round(rates[kind] / rates["plain"], 1) for kind in KINDS},
        "rounds": {name: [round(value) for value in values] for name, values in rounds.items()},
        "data": data,
        "examples": examples,
        "tokens_an_example": round(float(tokens), 1),
        "settings": {"batch_size": BATCH, "max_length": MAX_LENGTH, "packing": "packed", "workers": os.cpu_count()},
    }
    save("inputs", result, "tensorflow", "tensorflow-text", "tokenizers", "joblib", "numpy")
    print(f"{data}: {examples:,} examples of {tokens:.0f} tokens on average")
    for kind in KINDS:
        print(f"{kind} {rates[kind]:,}/s, plain {rates['plain']:,}/s, ratio {result['ratio_to_plain'][kind]}")


def choose_data(folder: Path) -> tuple[str, list[str]]:
    """The name of the data, and the overrides that build it in `folder`."""
    lines = [line for file in sorted(REPOSITORY.glob("data_prep/sample/imdb/*.jsonl")) for line in file.open("rb")]
    vocab_file = next(REPOSITORY.glob(".cache/**/vocab.txt"), folder / "vocab.txt")
    if not vocab_file.exists():
        train_wordpiece([json.loads(line)["text"] for line in lines], vocab_file, 8_000)
    settings = [
        "task=imdb",
        "data=full",
        "model=tiny",
        f"tokenizer.vocab='{vocab_file}'",
        f"cache_dir={folder / 'cache'}",
    ]
    settings += [f"tokenizer.max_length={MAX_LENGTH}", f"data.limit={ROWS}", "data.workers=-1"]
    archive = SHARED / "aclImdb.tar.gz"
    if archive.exists():
        return "IMDB train", [*settings, f"data.path={archive}"]
    (folder / "rows.jsonl").write_bytes(b"".join(lines * (ROWS // len(lines) + 1)))
    data = [f"data.path={folder / 'rows.jsonl'}", "tasks.imdb.sources.full.format=jsonl"]
    return "built-in sample, repeated", [*settings, *data, "data.dev_fraction=0.01", "data.test_fraction=0.01"]


def make_pipeline(kind: str, settings: list[str]) -> Pipeline:
    config = entry.compose("prepare", [*settings, f"input={kind}"], PrepareConfig)
    tokenizer = make_tokenizer(config.tokenizer, config.model, config.cache_dir)
    folder = build(config, "imdb", tokenizer)
    task = make_tasks(config.tasks)["imdb"]
    reader = PartReader(folder, "train", task, tokenizer, config.input, config.data, seed=1, shuffle=True)
    return Pipeline((reader,), config.input, BATCH, (reader.examples,), seed=1, shuffle=True)


def plain(pipeline: Pipeline) -> tf.data.Dataset:
    """The same examples one at a time, in stored order."""
    reader, tokenizer = pipeline.readers[0], rust_tokenizer(pipeline.tokenizer._file)
    tokenizer.enable_truncation(MAX_LENGTH)

    def examples() -> Iterator[tuple[list[int], int]]:
        for shard in reader.manifest.parts["train"].shards:
            with open(reader.folder / shard.file, encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    label, text = line.rstrip("\n").split("\t")
                    yield tokenizer.encode(text).ids, int(label)

    signature = (tf.TensorSpec((None,), tf.int32), tf.TensorSpec((), tf.int32))
    return tf.data.Dataset.from_generator(examples, output_signature=signature).padded_batch(BATCH).prefetch(4)


def rate(dataset: tf.data.Dataset) -> float:
    """Examples per second of one epoch."""
    start, count = time.perf_counter(), 0
    for batch in dataset:
        count += int(batch["examples"]) if isinstance(batch, dict) else len(batch[1])
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
