"""A run as a bundle that a server answers from: `python -m bert_mtl.export run=… bundle=…`.

The bundle holds a SavedModel (its signatures: `bert_mtl.served`), the tokenizer for servers without TensorFlow, and a
manifest with the heads, the metrics and a SHA-256 of every file.
"""

import json
import os
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import absl.logging
import tensorflow as tf

from bert_mtl.config import ExportConfig
from bert_mtl.records import sha256
from bert_mtl.runs import Run, RunError, load_model, open_run
from bert_mtl.served import ID_INPUTS, Served
from bert_mtl.tasks import Task
from bert_mtl.tokenization import rust_tokenizer
from conf import entry

FORMAT = 2  # of manifest.json


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
    model = load_model(run)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        served = Served(model, run.tokenizer, run.tasks, run.facts.pairs)
        graphs = served.signatures()
        absl.logging.set_verbosity(absl.logging.ERROR)  # else every renamed input of the graphs is a warning
        tf.saved_model.save(served, str(partial / "saved_model"), signatures=graphs)
        run.tokenizer.save(partial / "tokenizer")
        if run.tokenizer.kind == "wordpiece":
            rust = rust_tokenizer(partial / "tokenizer" / "vocab.txt", run.config.tokenizer.lowercase)
            rust.save(str(partial / "tokenizer" / "tokenizer.json"))
        (partial / "manifest.json").write_text(json.dumps(manifest(run, graphs["ids"], partial, name), indent=1))
        os.replace(partial, folder)
    except (OSError, tf.errors.OpError) as error:
        raise RunError(f"{folder} could not be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def manifest(run: Run, ids: Any, folder: Path, name: str) -> dict:
    """What manifest.json says of the files in `folder`; `serving.bundle` and `serving.heads` document it."""
    results, tokenizer = json.loads((run.folder / "metrics.json").read_text()), run.tokenizer
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "name": name,
        "version": run.folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.folder.name,
        "data": run.config.data.source,
        "heads": heads(run, ids),
        "tokenizer": {
            "kind": tokenizer.kind,
            "lowercase": run.config.tokenizer.lowercase,
            "max_length": tokenizer.max_length,
            "truncation": tokenizer.truncation,
            "pad_id": tokenizer.pad_id,
            "cls_id": tokenizer.cls_id,
            "sep_id": tokenizer.sep_id,
            "mask_id": tokenizer.mask_id,
        },
        "engines": {"savedmodel": {"path": "saved_model", "inputs": list(ID_INPUTS), "dtype": "int32"}},
        "metrics": {part: results[part] for part in ("dev", "test")},
        "versions": {package: version(package) for package in ("tensorflow", "keras", "tensorflow-text", "bert_mtl")},
        "files": {str(path.relative_to(folder)): sha256(path) for path in files},
    }


def heads(run: Run, ids: Any) -> dict[str, dict]:
    """What manifest.json says of every head: `Head.export`, its task and level, what its rows hold, and the shape of
    its output in the graph `ids` without the rows (and their tokens)."""
    outputs = ids.get_concrete_function().structured_outputs
    return {
        head.name: head.export()
        | {
            "task": task.name,
            "level": head.level,
            "reads": reads(task, task.name in run.facts.pairs),
            "shape": outputs[head.name].shape[1 if head.level == "text" else 2 :].as_list(),
        }
        for task in run.tasks.values()
        for head in task.heads.values()
    }


def reads(task: Task, pair: bool) -> str:
    """What a row of the task holds: both texts of a `pair`, one of the two (`apart`), a text in which [MASK] is the
    mask (`masks`), or a text, read whole (`text`) or word by word (`words`)."""
    if task.separate:
        return "apart"
    if pair:
        return "pair"
    if any(head.level == "mask" for head in task.heads.values()):
        return "masks"
    return "words" if task.words else "text"


def export(config: ExportConfig) -> None:
    """Exports and says what to do with the bundle."""
    run, folder = open_run(config.run), Path(config.bundle)
    write_bundle(run, folder, config.name or "-".join(run.config.tasks))
    print(f"bundle: {folder}\n\nNext:\n  python -m serving.server bundle={folder} http.port=8000")


def main() -> None:
    entry.main("export", ExportConfig, export)


if __name__ == "__main__":
    main()
