"""What each way of weighting losses costs: milliseconds of a training step, beside `static` in the same run.

    python -m benchmarks.weighting

The step is that of a small encoder with three classification heads: forward, backward, weighting, AdamW; compiled with
XLA where there is a GPU. Each head has a third of the examples. The kinds take turns, a step each; the fastest of a
kind's steps counts, because other work on the machine only ever adds.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import keras
import numpy as np
import tensorflow as tf
import yaml
from keras import ops

from benchmarks.tokenizer import cpu_name
from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.weighting import WEIGHTINGS, make_weighting
from conf.entry import CONF_DIR

RESULT = Path(__file__).parent / "results" / "weighting.json"
SIZES = {"vocab_size": 30_522, "hidden_dim": 128, "num_layers": 4, "num_heads": 2, "intermediate_dim": 512}
HEADS, LABELS, ROWS, LENGTH, ROUNDS = 3, 4, 16, 128, 30


def main() -> None:
    gpus = tf.config.list_physical_devices("GPU")
    steps = {kind: make_step(kind, xla=bool(gpus)) for kind in WEIGHTINGS}
    rounds: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(ROUNDS + 1):  # the first one traces
        for kind, step in steps.items():
            start = time.perf_counter()
            float(step())  # waits for the device
            rounds[kind].append(1000 * (time.perf_counter() - start))
    fastest = {kind: round(min(values[1:]), 2) for kind, values in rounds.items()}
    ratios = {kind: round(value / fastest["static"], 2) for kind, value in fastest.items()}
    result = {
        "ms_per_step": fastest,
        "ratio_to_static": ratios,
        "median_ms_per_step": {kind: round(median(values[1:]), 2) for kind, values in rounds.items()},
        "settings": {
            **SIZES,
            "heads": HEADS,
            "rows": ROWS,
            "length": LENGTH,
            "rounds": ROUNDS,
            "xla": bool(gpus),
            "dtype": "float32",
        },
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "gpus": [tf.config.experimental.get_device_details(gpu)["device_name"] for gpu in gpus],
        },
        "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy")},
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{'weighting':<12} {'ms a step':>9} {'to static':>9}")
    for kind in steps:
        print(f"{kind:<12} {fastest[kind]:>9.1f} {ratios[kind]:>9.2f}")


def make_step(kind: str, xla: bool) -> Callable[[], tf.Tensor]:
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

    return tf.function(step, jit_compile=xla, autograph=False)


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
