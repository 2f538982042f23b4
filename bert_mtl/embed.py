"""Vectors of texts: `python -m bert_mtl.embed run=… input=texts.txt output=vectors.npy`."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from rich.progress import track

from bert_mtl.atomic import atomic_write
from bert_mtl.commands import EmbedConfig
from bert_mtl.multitask import model_inputs
from bert_mtl.pooling import mean_states, states_at
from bert_mtl.predict import CHUNK, TEXTS_DIR, Predictor
from bert_mtl.tasks import DataError
from bert_mtl.text_batches import Reading, checked_texts, tasks_reading, text_batches
from conf import entry
from conf.errors import ConfigError, Problem
from data_prep.sources import read_texts


def pool(states, segment_ids, first_token, pooling: str):
    """Token states `(rows, length, hidden_dim)` to vectors `(examples, hidden_dim)`; `mean_max` sets both side by side.

    `max` and `mean` leave padding out.
    """
    examples = tf.shape(first_token)[0]
    if pooling == "cls":
        return states_at(states, first_token)
    if pooling == "mean":
        return mean_states(states, segment_ids, examples)
    flat, numbers = tf.reshape(states, (-1, states.shape[-1])), tf.reshape(segment_ids, (-1,))
    largest = tf.math.unsorted_segment_max(tf.cast(flat, tf.float32), numbers, examples + 1)[1:]
    return largest if pooling == "max" else tf.concat([mean_states(states, segment_ids, examples), largest], axis=-1)


class Embedder:
    """Vectors of texts from chosen layers of a run's encoder.

    Args:
        predictor: the run.
        layers: hidden states used, side by side: 0 is the embedding layer, -1 the last.
        pooling: `cls`, `mean`, `max` or `mean_max`.
        task: whose weights are used, where tasks have some of their own in the encoder.

    Raises:
        ConfigError: a layer or task that the run does not have, or none where it must be told.
    """

    def __init__(self, predictor: Predictor, layers: list[int], pooling: str, task: str | None = None):
        count = predictor.model.encoder.config.num_layers + 1
        names = [each.name for each in tasks_reading(predictor.run, pair=False)]
        if not names:
            raise DataError(
                f"run must be of single texts, which vectors stand for; got {predictor.run.folder}, of pairs."
            )
        rule = f"be between {-count} and {count - 1}"
        found = [Problem("layers", rule, layer) for layer in layers if not -count <= layer < count]
        if task is None and len(names) > 1 and predictor.model.encoder.config.reads_tasks:
            found.append(Problem("task", "be given where tasks have weights of their own", task, names))
        if task not in (None, *names):
            found.append(Problem("task", "be a task of the run that reads single texts", task, names))
        if found:
            raise ConfigError(found)
        self.predictor, self.layers, self.pooling = predictor, layers, pooling
        self.reading = Reading(predictor.run.tasks[task or names[0]].number)
        self.dimensions = predictor.model.encoder.config.hidden_dim * len(layers) * (2 if pooling == "mean_max" else 1)
        self._forward = tf.function(self._vectors, autograph=False, reduce_retracing=True)

    def embed(self, texts: list[str], batch_size: int = 32) -> np.ndarray:
        """`(texts, dimensions)` float32."""
        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        checked = checked_texts("texts", texts)
        for batch in text_batches(self.predictor.run.tokenizer, [self.reading], checked, None, batch_size):
            real = batch["index"] >= 0
            vectors[batch["index"][real]] = self._forward(model_inputs(batch)).numpy()[real]
        return vectors

    def _vectors(self, inputs):
        model = self.predictor.model
        states = model.encoder.hidden_states(model.encoder_inputs(inputs))
        chosen = tf.concat([states[layer] for layer in self.layers], axis=-1)
        return tf.cast(pool(chosen, inputs["segment_ids"], inputs["first_token"], self.pooling), tf.float32)


def embed(config: EmbedConfig) -> None:
    """Embeds a file of texts, streamed, into an .npy array or a Parquet table."""
    embedder = Embedder(Predictor(config.run), config.layers, config.pooling, config.task)
    rows = (row.values["text"] for row in track(read_texts(Path(config.input)), "embedding", total=None))
    chunks = iter(partial(lambda source: list(itertools.islice(source, CHUNK)), rows), [])
    vectors = ((texts, embedder.embed(texts, config.batch_size)) for texts in chunks)
    target = Path(config.output)
    write = _write_numpy if target.suffix == ".npy" else _write_parquet
    count = write(target, vectors, embedder.dimensions)
    print(f"{count} vectors of {embedder.dimensions} numbers: {target}")


def _write_numpy(path: Path, chunks: Iterator[tuple[list[str], np.ndarray]], dimensions: int) -> int:
    """Streams rows behind a header that is written again at the end, when their number is known."""
    rows = 0
    with atomic_write(path) as file:
        _numpy_header(file, 10**15, dimensions)
        for _, vectors in chunks:
            file.write(vectors.astype("<f4").tobytes())
            rows += len(vectors)
        file.seek(0)
        _numpy_header(file, rows, dimensions)
    return rows


def _numpy_header(file: IO[bytes], rows: int, dimensions: int) -> None:
    """NumPy leaves room for 20 digits of the first dimension, so every header of one array has the same length."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, dimensions)})


def _write_parquet(path: Path, chunks: Iterator[tuple[list[str], np.ndarray]], dimensions: int) -> int:
    rows, vector = 0, pa.list_(pa.float32(), dimensions)
    schema = pa.schema({"text": pa.string(), "vector": vector})
    with atomic_write(path) as file, pq.ParquetWriter(file, schema) as writer:
        for texts, vectors in chunks:
            values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=vector)
            writer.write_table(pa.table({"text": pa.array(texts, pa.string()), "vector": values}, schema=schema))
            rows += len(texts)
    return rows


def main() -> None:
    entry.main("embed", EmbedConfig, embed, config_dir=TEXTS_DIR)


if __name__ == "__main__":
    main()
