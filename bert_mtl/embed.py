"""Vectors of texts: `python -m bert_mtl.embed run=… input=texts.txt output=vectors.npy`."""

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from rich.progress import track

from bert_mtl.config import EmbedConfig
from bert_mtl.heads import first_states, mean_states
from bert_mtl.input_pipeline import text_batches
from bert_mtl.multitask import model_inputs
from bert_mtl.predict import CHUNK, PAD_TO, TEXTS_DIR, Predictor
from bert_mtl.records import atomic_write
from conf import entry
from conf.errors import ConfigError, Problem
from data_prep.sources import read_texts


def pool(states, segment_ids, first_token, pooling: str):
    """Token states `(rows, length, hidden_dim)` to vectors `(examples, hidden_dim)`; `mean_max` sets both side by side.

    `max` and `mean` leave padding out.
    """
    examples = tf.shape(first_token)[0]
    if pooling == "cls":
        return first_states(states, first_token)
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
    """

    def __init__(self, predictor: Predictor, layers: list[int], pooling: str):
        count = predictor.model.encoder.config.num_layers + 1
        if wrong := [layer for layer in layers if not -count <= layer < count]:
            raise ConfigError([Problem("layers", f"be between {-count} and {count - 1}", wrong[0])])
        self.predictor, self.layers, self.pooling = predictor, layers, pooling
        self._forward = tf.function(self._vectors, reduce_retracing=True)

    def embed(self, texts: list[str], batch_size: int = 32) -> np.ndarray:
        """`(texts, dimensions)` float32."""
        vectors = None
        for batch in text_batches(self.predictor.run.tokenizer, texts, None, batch_size, PAD_TO):
            real = batch["weight"] > 0
            rows = self._forward(model_inputs(batch)).numpy()[real]
            vectors = np.zeros((len(texts), rows.shape[1]), np.float32) if vectors is None else vectors
            vectors[batch["index"][real]] = rows
        return vectors

    def _vectors(self, inputs):
        states = self.predictor.model.encoder.hidden_states(inputs)
        chosen = [pool(states[layer], inputs["segment_ids"], inputs["first_token"], self.pooling) for layer in self.layers]
        return tf.concat([tf.cast(vector, tf.float32) for vector in chosen], axis=-1)


def embed(config: EmbedConfig) -> None:
    """Embeds a file of texts, streamed, into an .npy array or a Parquet table."""
    embedder = Embedder(Predictor(config.run), config.layers, config.pooling)
    rows = (row.values["text"] for row in track(read_texts(Path(config.input)), "embedding", total=None))
    chunks = iter(partial(lambda source: list(itertools.islice(source, CHUNK)), rows), [])
    vectors = ((texts, embedder.embed(texts, config.batch_size)) for texts in chunks)
    target = Path(config.output)
    shape = _write_numpy(target, vectors) if target.suffix == ".npy" else _write_parquet(target, vectors)
    print(f"{shape[0]} vectors of {shape[1]} numbers: {target}")


def _write_numpy(path: Path, chunks: Iterator[tuple[list[str], np.ndarray]]) -> tuple[int, int]:
    """Streams rows behind a header written last: only then is their number known."""
    rows = dimensions = 0
    with atomic_write(path) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**15, 10**6)})
        room = file.tell()
        for _, vectors in chunks:
            file.write(vectors.astype("<f4").tobytes())
            rows, dimensions = rows + len(vectors), vectors.shape[1]
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, dimensions)})
        assert file.tell() == room  # headers are padded to a multiple of 64 bytes
    return rows, dimensions


def _write_parquet(path: Path, chunks: Iterator[tuple[list[str], np.ndarray]]) -> tuple[int, int]:
    rows, writer = 0, None
    with atomic_write(path) as file:
        for texts, vectors in chunks:
            kind = pa.list_(pa.float32(), vectors.shape[1])
            values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind)
            table = pa.table({"text": pa.array(texts), "vector": values})
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
            rows += len(texts)
        writer.close()
    return rows, vectors.shape[1]


def main() -> None:
    entry.main("embed", EmbedConfig, embed, config_dir=TEXTS_DIR)


if __name__ == "__main__":
    main()
