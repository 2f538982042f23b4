"""A run's encoder as Google's BERT repository stores one, which bert-serving-server reads.

    python -m benchmarks.peers.tf1_checkpoint <run> <folder>

Writes bert_config.json, vocab.txt and bert_model.ckpt.*, in variables `bert/…`.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bert_mtl.checkpoints import NAMES


def google_variables(weights: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The encoder's weights by the names of Google's variables; query, key and value apart."""
    for path, values in weights.items():
        place, _, own = path.partition("encoder/")
        if place:  # heads have no place there
            continue
        name, _, leaf = own.rpartition("/")
        layer = name.split("/")[0].removeprefix("layer_")
        if own in NAMES:
            yield f"bert/{NAMES[own][1]}", values
            continue
        theirs = NAMES[name.replace(f"layer_{layer}/", "layer_{i}/")][1]
        if "{part}" in theirs:
            for part, share in zip(("query", "key", "value"), np.split(values, 3, axis=-1), strict=True):
                yield f"bert/{theirs.format(i=layer, part=part)}/{leaf}", share
        else:
            yield f"bert/{theirs.format(i=layer)}/{leaf}", values


def write(weights: Mapping[str, np.ndarray], prefix: Path) -> None:
    """Stores the encoder of a run's weights as a TF1 checkpoint."""
    import tensorflow as tf

    names, values = zip(*google_variables(weights), strict=True)
    tensors = [np.ascontiguousarray(value) for value in values]
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors)


def main() -> None:
    from safetensors.numpy import load_file

    run, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    sizes = json.loads((run / "run.json").read_text())["encoder"]
    theirs = {
        "vocab_size": "vocab_size", "hidden_size": "hidden_dim", "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads", "intermediate_size": "intermediate_dim",
        "max_position_embeddings": "max_positions", "type_vocab_size": "type_vocab_size",
    }  # fmt: skip
    config = {name: sizes[own] for name, own in theirs.items()}
    config |= {"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    config |= {"initializer_range": 0.02}
    (folder / "bert_config.json").write_text(json.dumps(config))
    shutil.copy(run / "tokenizer/vocab.txt", folder)
    write(load_file(run / "weights.safetensors"), folder / "bert_model.ckpt")


if __name__ == "__main__":
    main()
