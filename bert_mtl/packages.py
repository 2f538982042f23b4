"""What trackers keep of the way from data to bundle: records, run and bundle as packages of files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_mtl.records import load_manifest
from bert_mtl.runs import Run
from bert_mtl.tracking import Package

OF_RUN = (
    "config.yaml",
    "run.json",
    "origin.json",
    "data.json",
    "metrics.json",
    "history.jsonl",
    "train.log",
    "tuned.json",
)


def data_package(folder: Path) -> Package:
    """A task's records: their manifest, which names every shard by its checksum."""
    manifest = load_manifest(folder)
    return Package(
        name=_name(f"data-{manifest.task}"),
        kind="dataset",
        files={"manifest.json": folder / "manifest.json"},
        metadata={
            "task": manifest.task,
            "source": manifest.source,
            "fingerprint": manifest.fingerprint,
            "examples": {part: found.examples for part, found in manifest.parts.items()},
        },
        aliases=[manifest.source, manifest.fingerprint[:12]],
    )


def run_package(run: Run) -> Package:
    """A run's selected weights, and all that it takes to understand and export them."""
    names = [*OF_RUN, "weights.safetensors", "report.html"]
    files = {name: run.folder / name for name in names if (run.folder / name).exists()}
    tokenizer = {f"tokenizer/{path.name}": path for path in sorted((run.folder / "tokenizer").iterdir())}
    return Package(
        name=_name(f"run-{'-'.join(run.config.tasks)}"),
        kind="model",
        files=files | tokenizer,
        metadata={"tasks": list(run.config.tasks), "data": run.config.data.source, "seed": run.config.seed},
        aliases=["best", _name(run.folder.name)],
    )


def bundle_package(folder: Path, said: Mapping[str, Any]) -> Package:
    """A bundle, of which its manifest says so much."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return Package(
        name=_name(f"bundle-{said['name']}"),
        kind="bundle",
        files=files,
        metadata={key: said[key] for key in ("name", "version", "data", "heads", "gates")},
        aliases=[_name(said["version"]), *sorted({engine["precision"] for engine in said["engines"].values()})],
    )


def _name(text: str) -> str:
    """A name as trackers take it."""
    return re.sub(r"[^\w.-]", "-", text, flags=re.ASCII)[:120]
