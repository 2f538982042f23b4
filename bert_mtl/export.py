"""A run as a bundle that a server answers from: `python -m bert_mtl.export run=… bundle=…`.

The bundle holds the model in each format (`bert_mtl.formats`), the tokenizer for servers without TensorFlow, a model
card, what the run learned from in numbers (`bert_mtl.reference`; where its data is read at all), and a manifest
(`bert_mtl.manifest`) with a SHA-256 of every file. Each format answers the run's dev part by the
very engine of the server before the bundle appears.
"""

import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bert_mtl.commands import ExportConfig
from bert_mtl.formats import Arrays, write_format
from bert_mtl.gates import Exported, answers_of, check, judged, rows_of
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.manifest import manifest
from bert_mtl.model_card import model_card
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.packages import bundle_package, run_package
from bert_mtl.parts import part_pipelines
from bert_mtl.precisions import REFUSED, Precision
from bert_mtl.records import load_manifest, sha256
from bert_mtl.reference import reference
from bert_mtl.runs import Run, RunError, check_examples, load_model, open_run
from bert_mtl.saved_models import finish_saved_model
from bert_mtl.served import ID_INPUTS, Served
from bert_mtl.tokenization import rust_tokenizer
from bert_mtl.tracking import Job, open_tracker
from conf import entry
from data_prep.build import build
from serving.bundle import load_bundle
from serving.engines import open_engine

TRAINING = "training.json"  # `bert_mtl.reference`
BATCH = 32  # texts that are compared at once


def write_bundle(run: Run, config: ExportConfig) -> dict[str, Any]:
    """Writes the bundle of `run`; it appears whole or not at all. Returns what its manifest says.

    Raises:
        RunError: the folder exists, the run has no weights or metrics yet, or a format loses too much on dev.
        DataError: the dev part is not there.
    """
    folder = Path(config.bundle)
    if folder.exists():
        raise RunError(f"bundle must be a folder that does not exist yet; got {folder}.")
    if not (run.folder / "metrics.json").exists():
        raise RunError(
            f"run must be finished; got {run.folder}, which has no metrics.json. "
            f"Continue it with python -m bert_mtl.train run.resume={run.folder}"
        )
    model = load_model(run, dtype="float32")
    exits = config.exit_drop is not None and len(model.depths) > 1 and set(config.formats) != {"savedmodel"}
    check_export(model, exits, config)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        partial.mkdir(parents=True)
        said = fill(partial, run, model, config, exits)
        os.replace(partial, folder)
    except (OSError, tf.errors.OpError) as error:
        raise RunError(f"{folder} could not be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return said


def fill(folder: Path, run: Run, model: MultiTaskModel, config: ExportConfig, exits: bool) -> dict[str, Any]:
    """Writes all of a bundle into the folder; returns what its manifest says."""
    int8 = "openvino" in config.formats and config.precision == "int8"
    dev = dev_part(run) if config.max_drop is not None or int8 else {}
    texts = {"openvino": calibration_texts(dev, config.int8_texts)} if int8 else {}
    served = Served(model, run.tokenizer, run.tasks, run.facts.pairs)
    stages = served.stages(exits)
    engines: dict[str, dict] = {}
    for format in config.formats:
        engines[format] = write_format(format, served, stages, folder, config.precision, texts.get(format, []))
    name = config.name or "-".join(run.config.tasks)
    if "savedmodel" in engines:
        finish_saved_model(served, folder / engines["savedmodel"]["stages"][0]["path"], name)
    write_tokenizer(run, folder / "tokenizer")
    if dev:
        readers = [pipeline.readers[0] for pipeline in dev.values()]
        (folder / TRAINING).write_text(json.dumps(reference(readers)))
    said = manifest(run, served.ids, name, engines)
    if config.max_drop is not None:
        seal(folder, said)
        said["gates"] = gates(model, folder, dev, engines, config)
    seal(folder, said)
    (folder / "README.md").write_text(model_card(said), encoding="utf-8")
    return said


def check_export(model: MultiTaskModel, exits: bool, config: ExportConfig) -> None:
    """Raises RunError for what no bundle can be made of."""
    layers = {f"layer_{number}" for number in range(model.depths[-1] + 1)}
    taken = sorted({*ID_INPUTS, "states", "next_states", "pooled", *layers} & {*model.heads})
    if taken:
        raise RunError(f"heads must not have the names of what else graphs take and give; got {', '.join(taken)}.")
    if exits and config.max_drop is None:
        raise RunError(
            f"exit_drop must be null with max_drop=null, as thresholds are chosen on dev; got {config.exit_drop}."
        )
    if exits and model.encoder.config.reads_tasks:
        raise RunError(
            "exit_drop must be null where the encoder knows the task (model.adapters, model.task_embedding); "
            f"got {config.exit_drop}."
        )


def dev_part(run: Run) -> dict[str, Pipeline]:
    """The dev part of every task, a text a row. Raises DataError where it is not there, RunError where it is not the
    run's: what is dev here could have been train there."""
    asked = run.config.input.model_copy(update={"packing": "none"})
    train = run.config.train.model_copy(update={"eval_batch_size": BATCH})
    folders = {name: build(run.config, name, run.tokenizer) for name, task in run.tasks.items() if task.labelled}
    for folder in folders.values():
        check_examples(run, load_manifest(folder))
    return part_pipelines(run, folders, "dev", input=asked, train=train)


def calibration_texts(dev: Mapping[str, Pipeline], count: int) -> list[Arrays]:
    """Texts of every task's dev part, about `count` in all, as many of each task where it has them, of all lengths
    (batches come by length); each alone, without padding."""
    found: list[Arrays] = []
    for pipeline in dev.values():
        single = [
            {name: array[row : row + 1, : int(rows["segment_ids"][row].sum())] for name, array in rows.items()}
            for rows in map(rows_of, pipeline.batches(pipeline.first_epoch))
            for row in np.flatnonzero(rows["segment_ids"].any(axis=1))
        ]
        share = min(-(-count // len(dev)), len(single))
        found += [single[place] for place in np.linspace(0, len(single) - 1, share, dtype=int)]
    return found


def seal(folder: Path, said: Mapping[str, Any]) -> None:
    """Writes manifest.json: what is `said`, and the SHA-256 of every other file that is there. (The card comes later:
    its readers may add to it.)"""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "manifest.json")
    hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    (folder / "manifest.json").write_text(json.dumps({**said, "files": hashes}, indent=1))


def gates(
    model: MultiTaskModel, folder: Path, dev: Mapping[str, Pipeline], engines: Mapping[str, dict], config: ExportConfig
) -> dict[str, dict[str, dict]]:
    """Every format of the bundle in `folder` beside the run's model on dev (`gates.judged`). What is found for the
    stages is written to those of `engines`, what the manifest says of each format.

    Raises RunError where a format loses more than `max_drop` points.
    """
    bundle, reference, found = load_bundle(folder), answers_of(model, dev), {}
    for name, files in engines.items():
        engine = open_engine(name, bundle)  # type: ignore[arg-type]  # the formats are called as their engines
        depths = [stage.depth for stage in engine.stages]
        answers = answers_of(Exported(model, engine.predict, depths), dev, exits=len(depths) > 1)
        by_depth = [{head: answers[model.name_at(head, depth)] for head in reference} for depth in depths]
        found[name], stages = judged(model.heads, reference, by_depth, depths, config.exit_drop or 0.0)
        for stage, more in zip(files["stages"], stages, strict=True):
            stage |= more
        check(name, found[name], config.max_drop or 0.0)
    return found


def write_tokenizer(run: Run, folder: Path) -> None:
    """The tokenizer's files, for TensorFlow and for the server. The Rust library cuts as the graph does, but for
    `head_tail`, which it does not have."""
    run.tokenizer.save(folder)
    if run.tokenizer.kind == "wordpiece":
        rust = rust_tokenizer(folder / "vocab.txt", run.config.tokenizer.lowercase)
        if run.tokenizer.truncation != "head_tail":
            direction = {"head": "right", "tail": "left"}[run.tokenizer.truncation]
            rust.enable_truncation(run.tokenizer.max_length, direction=direction)
        rust.save(str(folder / "tokenizer.json"))


def export(config: ExportConfig) -> None:
    """Exports and says what each format costs, and what to do with the bundle."""
    run = open_run(config.run)
    written = write_bundle(run, config)
    print("\n".join(said(written, config.precision)))
    track(run, config, written)
    if not (Path(config.bundle) / TRAINING).exists():
        print(f"{TRAINING}: left out, as no data was read with max_drop=null; without it nobody can look for drift")
    print(f"bundle: {config.bundle}\n\nNext:\n  python -m serving.server bundle={config.bundle} http.port=8000")


def track(run: Run, config: ExportConfig, said: Mapping[str, Any]) -> None:
    """Tells the tracker of the run that a bundle was made from it, and what that costs; as a job of its own, whose
    files stand in the run's folder."""
    tracking, bundle = config.tracking or run.config.tracking, Path(config.bundle)
    settings = config.model_dump(mode="json")
    tags = [*run.config.tasks, run.config.data.source]
    job = Job(run.folder / "exports" / bundle.name, bundle.name, "export", settings, tags, run.folder.name)
    with open_tracker(tracking, job) as tracker:
        tracker.uses(run_package(run))
        drops = {
            f"{name}/{head}/drop": gate["drop"] for name, heads in said["gates"].items() for head, gate in heads.items()
        }
        tracker.total(drops)
        tracker.makes(bundle_package(bundle, said))


def said(manifest: Mapping[str, Any], asked: Precision) -> Iterator[str]:
    """What the formats of a bundle were found to cost, and which are not in the precision that was `asked` for."""
    for name, files in manifest["engines"].items():
        if files["precision"] != asked:
            yield f"{name}: in {files['precision']}, as {REFUSED[name, asked]}"
        for head, gate in manifest["gates"].get(name, {}).items():
            yield (
                f"{name}: {head} {_lost(gate['drop'])} on dev; {gate['agreement']:.2%} of the answers are the run's, "
                f"numbers differ by at most {gate['difference']:.4f}"
            )
            if exits := gate.get("exits"):
                places = ", ".join(f"{depth}: {share:.1%}" for depth, share in exits["answered"].items())
                yield f"{name}: {head} {_lost(exits['drop'])} with exits, answering after layer {places}"


def _lost(drop: float) -> str:
    return f"{'loses' if drop >= 0 else 'gains'} {abs(drop):.2f} points"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else half a bundle would be left
    entry.main("export", ExportConfig, export)


if __name__ == "__main__":
    main()
