"""A run as a bundle that a server answers from: `python -m bert_mtl.export run=… bundle=…`.

The bundle holds the model in each format (`bert_mtl.formats`), the tokenizer for servers without TensorFlow, a model
card, and a manifest (`bert_mtl.manifest`) with a SHA-256 of every file. Each format answers the run's dev part by the
very engine of the server before the bundle appears.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from bert_mtl.answers import Answered
from bert_mtl.calibration import calibrated
from bert_mtl.config import ExportConfig
from bert_mtl.formats import Arrays, write_format
from bert_mtl.gates import Exported, answers_of, check, compared, leaving, rows_of
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.manifest import manifest
from bert_mtl.model_card import model_card
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.records import load_manifest, sha256
from bert_mtl.runs import Run, RunError, check_examples, load_model, open_run
from bert_mtl.saved_models import finish_saved_model
from bert_mtl.served import ID_INPUTS, Served
from bert_mtl.tokenization import rust_tokenizer
from bert_mtl.train import part_pipelines
from conf import entry
from data_prep.build import build
from serving.bundle import load_bundle
from serving.engines import open_engine

BATCH = 32  # texts that are compared at once


def write_bundle(run: Run, config: ExportConfig) -> dict[str, dict[str, dict]]:
    """Writes the bundle of `run`; it appears whole or not at all. Returns what `gates.compared` found, by format.

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
    exits = config.exits and len(model.depths) > 1
    check_export(model, exits, config.max_drop)
    dev = dev_part(run) if config.max_drop is not None or config.precision == "int8" else {}
    texts = calibration(dev, config.calibration) if config.precision == "int8" else []
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        partial.mkdir(parents=True)
        served = Served(model, run.tokenizer, run.tasks, run.facts.pairs)
        stages = served.stages(exits)
        engines: dict[str, dict] = {
            name: write_format(name, served, stages, partial, config.precision, texts) for name in config.formats
        }
        name = config.name or "-".join(run.config.tasks)
        if "savedmodel" in engines:
            finish_saved_model(served, partial / engines["savedmodel"]["stages"][0]["path"], name)
        write_tokenizer(run, partial / "tokenizer")
        said = manifest(run, served.ids, name, engines)
        if config.max_drop is not None:
            seal(partial, said)
            reference = answers_of(model, dev, exits)
            said["gates"] = gates(model, reference, partial, dev, engines, config.max_drop)
            for head, found in calibrations(model, reference).items():
                said["heads"][head] |= found
        (partial / "README.md").write_text(model_card(said), encoding="utf-8")
        seal(partial, said)
        os.replace(partial, folder)
    except (OSError, tf.errors.OpError) as error:
        raise RunError(f"{folder} could not be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return said["gates"]


def check_export(model: MultiTaskModel, exits: bool, max_drop: float | None) -> None:
    """Raises RunError for what no bundle can be made of."""
    taken = sorted({*ID_INPUTS, "states", "next_states"} & {*model.heads})
    if taken:
        raise RunError(f"heads must not have the names of what else graphs take and give; got {', '.join(taken)}.")
    if exits and max_drop is None:
        raise RunError("exits must be false with max_drop=null: where texts may leave is chosen on dev.")
    if exits and model.encoder.config.reads_tasks:
        raise RunError("exits must be false where the encoder knows the task (model.adapters, model.task_embedding).")


def dev_part(run: Run) -> dict[str, Pipeline]:
    """The dev part of every task, a text a row. Raises DataError where it is not there, RunError where it is not the
    run's: what is dev here could have been train there."""
    asked = run.config.input.model_copy(update={"packing": "none"})
    train = run.config.train.model_copy(update={"eval_batch_size": BATCH})
    folders = {name: build(run.config, name, run.tokenizer) for name, task in run.tasks.items() if task.labelled}
    for folder in folders.values():
        check_examples(run, load_manifest(folder))
    return part_pipelines(run, folders, "dev", input=asked, train=train)


def calibration(dev: Mapping[str, Pipeline], count: int) -> list[Arrays]:
    """Texts of every task's dev part, `count` in all where there are so many, of all lengths (batches come by length);
    each alone, without padding."""
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
    """Writes manifest.json: what is `said`, and the SHA-256 of every other file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "manifest.json")
    hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    (folder / "manifest.json").write_text(json.dumps({**said, "files": hashes}, indent=1))


def gates(
    model: MultiTaskModel,
    reference: Mapping[str, Answered],
    folder: Path,
    dev: Mapping[str, Pipeline],
    engines: Mapping[str, dict],
    max_drop: float,
) -> dict[str, dict[str, dict]]:
    """Every format of the bundle in `folder` on dev, beside the `reference`, what the run's model answers there
    (`gates.compared`); where texts may leave early is written to the stages of `engines`, what the manifest says of
    each format.

    Raises RunError where one loses more than `max_drop` points.
    """
    bundle, found = load_bundle(folder), {}
    last = {name: answered for name, answered in reference.items() if name in model.heads}
    for name, files in engines.items():
        engine = open_engine(name, bundle)  # type: ignore[arg-type]  # the formats are called as their engines
        depths = [stage.depth for stage in engine.stages]
        answers = answers_of(Exported(model, engine.predict, depths), dev, exits=len(depths) > 1)
        shares: dict[str, dict[int, float]] = {head: {} for head in last}
        if len(depths) > 1:
            for head, theirs in last.items():
                own = {depth: answers[model.name_at(head, depth)] for depth in depths}
                answers[head], chosen, shares[head] = leaving(model.heads[head], theirs, own, max_drop)
                for stage in files["stages"][:-1]:
                    stage["leave"] = stage.get("leave", {}) | {head: chosen[stage["depth"]]}
        found[name] = compared(model.heads, last, answers)
        for head, values in found[name].items():
            values["leave"] = shares[head]
        check(name, found[name], max_drop)
    return found


def calibrations(model: MultiTaskModel, reference: Mapping[str, Answered]) -> dict[str, dict[str, Any]]:
    """What the manifest says of every head that chooses one label a text and has labelled texts in dev: its
    `calibration` (`calibration.calibrated`), and those of its exits, if `reference` has them, by depth."""
    found = {}
    for name, head in model.heads.items():
        at = {depth: reference.get(model.name_at(name, depth)) for depth in model.depths}
        answered = {depth: each for depth, each in at.items() if each is not None and len(each.index)}
        if head.kind == "classification" and answered:
            by_depth = {depth: calibrated(each.answers, each.labels) for depth, each in answered.items()}
            found[name] = {"calibration": by_depth.pop(model.depths[-1]), "exits": by_depth}
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
    for name, found in write_bundle(open_run(config.run), config).items():
        print("\n".join(f"{name}: {line}" for line in said(found)))
    print(f"bundle: {config.bundle}\n\nNext:\n  python -m serving.server bundle={config.bundle} http.port=8000")


def said(found: Mapping[str, dict]) -> Iterator[str]:
    """What a format was found to cost each head."""
    for head, values in found.items():
        yield (
            f"{head} loses {values['drop']:.2f} points on dev; {values['agreement']:.2%} of the answers are the run's, "
            f"numbers differ by at most {values['difference']:.4f}"
        )
        if values["leave"]:
            places = ", ".join(f"{depth}: {share:.1%}" for depth, share in values["leave"].items())
            yield f"texts leave for {head} after layer {places}"


def main() -> None:
    entry.main("export", ExportConfig, export)


if __name__ == "__main__":
    main()
