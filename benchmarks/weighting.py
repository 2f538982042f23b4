"""What each way of weighting losses costs: a training step on the CPU, beside `static` in the same run.

    python -m benchmarks.weighting

The step is that of a small encoder with three classification heads, a third of the examples each: forward, backward,
weighting, AdamW. The kinds take turns, a step each; compared is the median of the processor time of all cores, in which
other work on the machine hardly shows.
"""

import time
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace

import keras
import numpy as np
import tensorflow as tf
import yaml
from keras import ops

from benchmarks.machine import save
from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.weighting import WEIGHTINGS, make_weighting
from conf.entry import CONF_DIR

SIZES = {"vocab_size": 30_522, "hidden_dim": 128, "num_layers": 4, "num_heads": 2, "intermediate_dim": 512}
HEADS, LABELS, ROWS, LENGTH, ROUNDS = 3, 4, 16, 128, 20


def main() -> None:
    steps = {kind: make_step(kind) for kind in WEIGHTINGS}
    processor: dict[str, list[float]] = {kind: [] for kind in steps}
    wall: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(ROUNDS + 1):  # the first one traces
        for kind, step in steps.items():
            start = time.process_time(), time.perf_counter()
            float(step())  # waits for the device
            processor[kind].append(1000 * (time.process_time() - start[0]))
            wall[kind].append(1000 * (time.perf_counter() - start[1]))
    medians = {kind: round(median(values[1:]), 1) for kind, values in processor.items()}
    ratios = {kind: round(value / medians["static"], 2) for kind, value in medians.items()}
    result = {
        "processor_ms_per_step": medians,
        "ratio_to_static": ratios,
        "fastest_ms_per_step": {kind: round(min(values[1:]), 1) for kind, values in wall.items()},
        "settings": {**SIZES, "heads": HEADS, "rows": ROWS, "length": LENGTH, "rounds": ROUNDS, "dtype": "float32"},
    }
    save("weighting", result, "tensorflow", "keras", "numpy")
    print(f"{'weighting':<12} {'ms a step':>9} {'to static':>9}")
    for kind in steps:
        print(f"{kind:<12} {medians[kind]:>9.1f} {ratios[kind]:>9.2f}")


def make_step(kind: str) -> Callable[[], tf.Tensor]:
    """A function that takes one training step on the same batch again and returns the total loss."""
    keras.utils.set_random_seed(1)
    encoder = BertEncoder(EncoderConfig(**SIZES, pooler=False))
    heads = [keras.layers.Dense(LABELS, name=f"head_{i}") for i in range(HEADS)]
    for head in heads:
        head.build((None, SIZES["hidden_dim"]))
    config = SimpleNamespace(**yaml.safe_load((CONF_DIR / "weighting" / f"{kind}.yaml").read_text(encoding="utf-8")))
    last = encoder.transformer_layers[-1].feedforward_output.trainable_variables
    weighting = make_weighting(config, {head.name: 1.0 for head in heads}, 1, last)
    optimizer = keras.optimizers.AdamW(1e-4)
    shared, own = encoder.trainable_variables, [v for head in heads for v in head.trainable_variables]
    optimizer.build(shared + own)
    inputs, labels, weights = make_batch()
    shares = tf.reduce_sum(weights, axis=1) / ROWS

    def step() -> tf.Tensor:
        with tf.GradientTape(persistent=True) as tape:
            vectors = ops.mean(encoder(inputs, training=True), axis=1)
            found = [ops.sparse_categorical_crossentropy(labels, head(vectors), from_logits=True) for head in heads]
            losses = [ops.sum(loss * weight) / ops.sum(weight) for loss, weight in zip(found, weights, strict=True)]
        total, gradients = weighting.gradients(tape, losses, shares, shared, own)
        optimizer.apply(gradients, shared + own)
        return total

    return tf.function(step, autograph=False)


def make_batch() -> tuple[dict[str, tf.Tensor], tf.Tensor, list[tf.Tensor]]:
    """Rows of one example each: the encoder's inputs, labels `(rows,)`, and weights `(rows,)` for each head."""
    random = np.random.default_rng(1)
    tokens = random.integers(1_000, SIZES["vocab_size"], (ROWS, LENGTH))
    places = np.tile(np.arange(LENGTH), (ROWS, 1))
    arrays = {"token_ids": tokens, "type_ids": 0 * tokens, "segment_ids": 0 * tokens + 1, "position_ids": places}
    weights = [tf.constant(np.arange(ROWS) % HEADS == head, tf.float32) for head in range(HEADS)]
    labels = tf.constant(random.integers(0, LABELS, ROWS), tf.int32)
    return {name: tf.constant(array, tf.int32) for name, array in arrays.items()}, labels, weights


if __name__ == "__main__":
    main()
