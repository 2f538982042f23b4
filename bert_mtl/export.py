"""A run as a bundle that a server answers from: `python -m bert_mtl.export run=… bundle=…`.

The bundle holds a SavedModel with two signatures (`text` and `ids`), the tokenizer for servers without TensorFlow, and
a manifest with the labels, the metrics and a SHA-256 of every file.
"""

import json
import os
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import absl.logging
import tensorflow as tf

from bert_mtl.config import ExportConfig
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.records import sha256
from bert_mtl.runs import Run, RunError, load_model, open_run
from bert_mtl.tokenization import Tokenizer, rust_tokenizer
from conf import entry

FORMAT = 1  # of manifest.json
ID_INPUTS = ("token_ids", "type_ids", "segment_ids")


class Served(tf.Module):
    """The graph of a bundle: probabilities `(texts, labels)` by head, from texts or from token ids."""

    def __init__(self, model: MultiTaskModel, tokenizer: Tokenizer):
        super().__init__(name="served")
        self.model = model
        self.tokenizer = tokenizer

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "texts")])
    def text(self, texts):
        encoded = self.tokenizer.encode(texts)
        token_ids = encoded.token_ids.to_tensor(self.tokenizer.pad_id)
        segment_ids = tf.sequence_mask(encoded.token_ids.row_lengths(), tf.shape(token_ids)[1], tf.int32)
        return self.ids(token_ids, tf.zeros_like(token_ids), segment_ids)

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32, name) for name in ID_INPUTS])
    def ids(self, token_ids, type_ids, segment_ids):
        rows, length = tf.unstack(tf.shape(token_ids))
        inputs = {
            "token_ids": token_ids,
            "type_ids": type_ids,
            "segment_ids": segment_ids * tf.expand_dims(tf.range(1, rows + 1), 1),
            "position_ids": segment_ids * tf.expand_dims(tf.range(length), 0),
            "first_token": tf.range(rows) * length,
        }
        return {name: tf.nn.softmax(logits) for name, logits in self.model(inputs, training=False).items()}


def write_bundle(run: Run, folder: Path, name: str) -> None:
    """Writes the bundle of `run`; it appears whole or not at all.

    Raises:
        RunError: the folder exists, or the run has no weights or metrics yet.
    """
    if folder.exists():
        raise RunError(f"bundle must be a folder that does not exist yet; got {folder}.")
    if not (run.folder / "metrics.json").exists():
        raise RunError(
            f"run must be finished; got {run.folder}, which has no metrics.json. "
            f"Continue it with python -m bert_mtl.train run.resume={run.folder}"
        )
    if run.facts.pair:
        raise RunError(f"run must be of single texts: a bundle's text signature takes no pairs; got {run.folder}.")
    model = load_model(run)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        served = Served(model, run.tokenizer)
        signatures = {"serving_default": served.text, "text": served.text, "ids": served.ids}
        absl.logging.set_verbosity(absl.logging.ERROR)  # else every renamed input of the graphs is a warning
        tf.saved_model.save(served, str(partial / "saved_model"), signatures=signatures)
        run.tokenizer.save(partial / "tokenizer")
        if run.tokenizer.kind == "wordpiece":
            rust = rust_tokenizer(partial / "tokenizer" / "vocab.txt", run.config.tokenizer.lowercase)
            rust.save(str(partial / "tokenizer" / "tokenizer.json"))
        (partial / "manifest.json").write_text(json.dumps(manifest(run, partial, name), indent=1))
        os.replace(partial, folder)
    except (OSError, tf.errors.OpError) as error:
        raise RunError(f"{folder} could not be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def manifest(run: Run, folder: Path, name: str) -> dict:
    """What manifest.json says of the files in `folder`."""
    results, tokenizer = json.loads((run.folder / "metrics.json").read_text()), run.tokenizer
    heads = {name: head for task in run.config.tasks.values() for name, head in task.heads.items()}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "name": name,
        "version": run.folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.folder.name,
        "data": run.config.data.source,
        "heads": {name: {"kind": head.kind, "labels": head.labels} for name, head in heads.items()},
        "tokenizer": {
            "kind": tokenizer.kind,
            "lowercase": run.config.tokenizer.lowercase,
            "max_length": tokenizer.max_length,
            "truncation": tokenizer.truncation,
            "pad_id": tokenizer.pad_id,
            "cls_id": tokenizer.cls_id,
            "sep_id": tokenizer.sep_id,
        },
        "engines": {"savedmodel": {"path": "saved_model", "inputs": list(ID_INPUTS), "dtype": "int32"}},
        "metrics": {part: results[part] for part in ("dev", "test")},
        "versions": {package: version(package) for package in ("tensorflow", "keras", "tensorflow-text", "bert_mtl")},
        "files": {str(path.relative_to(folder)): sha256(path) for path in files},
    }


def export(config: ExportConfig) -> None:
    """Exports and says what to do with the bundle."""
    run, folder = open_run(config.run), Path(config.bundle)
    write_bundle(run, folder, config.name or "-".join(run.config.tasks))
    print(f"bundle: {folder}\n\nNext:\n  python -m serving.server bundle={folder} http.port=8000")


def main() -> None:
    entry.main("export", ExportConfig, export)


if __name__ == "__main__":
    main()
