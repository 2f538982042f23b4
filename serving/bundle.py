"""A folder written by the exporter goes in; out comes a `Bundle` whose every file was checked against the manifest.

The layout is `manifest.json` beside `tokenizer/` and one folder per engine; `Manifest` documents the fields, and
`serving.heads` those of each head.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, ValidationError

from conf.errors import Problem
from serving.heads import AnyHead, Section

FORMAT = 3
"""The manifest format this server reads."""


class BundleError(Exception):
    """The bundle cannot be served; the message says which file or field is at fault."""

    user_error = True


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError("must lie inside the bundle")
    return path


InnerPath = Annotated[str, AfterValidator(_inside)]
Input = Literal["token_ids", "type_ids", "segment_ids", "states"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]


class TokenizerSettings(Section):
    """How texts become ids; `max_length` counts the two special tokens."""

    kind: Literal["wordpiece", "sentencepiece"]
    lowercase: bool
    max_length: Annotated[int, Field(ge=3)]
    truncation: Literal["head", "tail", "head_tail"]
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int


class StageFiles(Section):
    """A part of the model: its file (a SavedModel's folder), the arrays that it takes, and how many of the encoder's
    layers have run behind it. `leave` says how sure of its likeliest label a head must be for its answer to be taken
    here; a text of which no head needs more goes no further. The last stage answers all the rest.

    Arrays are `(rows, length)` int32; `states`, the stage before's output `next_states`, `(rows, length, dim)` float32.
    """

    path: InnerPath
    inputs: Annotated[list[Input], Field(min_length=1)]
    depth: PositiveInt
    leave: dict[str, float] = {}


class EngineFiles(Section):
    """Where one engine's model lies, and in what numbers it computes."""

    precision: Precision
    stages: Annotated[list[StageFiles], Field(min_length=1)]


class Gate(Section):
    """A head of one format beside the run on the dev part: the largest difference of a number, the share of equal
    answers, the metrics of both, the points of the head's metric that are lost, and the share of the texts that leave
    at each depth, where they may."""

    difference: float
    agreement: float
    metrics: dict[Literal["run", "export"], dict[str, float]]
    drop: float
    leave: dict[int, float] = {}


class Manifest(Section):
    """What `manifest.json` says; `files` maps each file's path to its SHA-256, `gates` each engine's heads to how they
    did on dev (nothing where they were not compared)."""

    format: PositiveInt
    name: str
    version: str
    created: str
    run: str
    data: str
    heads: Annotated[dict[str, AnyHead], Field(min_length=1)]
    tokenizer: TokenizerSettings
    engines: dict[str, EngineFiles]
    gates: dict[str, dict[str, Gate]]
    metrics: dict[str, dict[str, dict[str, float]]]
    versions: dict[str, str]
    files: dict[InnerPath, str]


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: its folder and its manifest."""

    folder: Path
    manifest: Manifest

    def file(self, path: str) -> Path:
        """The file's place on disk; raises `BundleError` unless the manifest lists it, as only those were checked."""
        if path not in self.manifest.files:
            raise BundleError(str(Problem("bundle", f"list {path} among its manifest's files", self.folder)))
        return self.folder / path


def load_bundle(path: str | Path) -> Bundle:
    """The bundle in a folder, after reading its manifest and hashing every file the manifest lists.

    Raises `BundleError` for a missing folder, a folder that is no bundle, a manifest of a newer format or with
    wrong fields, and missing or changed files (all of them at once).
    """
    folder = Path(path)
    if not folder.is_dir():
        raise BundleError(str(Problem("bundle", "be a folder that exists", path)))
    manifest = _read_manifest(folder)
    if faults := [fault for file, digest in manifest.files.items() if (fault := _fault(folder, file, digest))]:
        problem = Problem("bundle", "hold the files of its manifest unchanged", path)
        raise BundleError("\n".join([str(problem), *faults]))
    return Bundle(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    file = folder / "manifest.json"
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BundleError(str(Problem("bundle", "hold a manifest.json", folder))) from None
    except ValueError as error:
        raise BundleError(f"{file} must be JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise BundleError(f"{file} must hold an object with the number 'format': this is not a bundle")
    if content["format"] != FORMAT:
        advice = "update the server" if content["format"] > FORMAT else "export the run again"
        raise BundleError(f"{file} has format {content['format']}; this server reads {FORMAT}: {advice}")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise BundleError("\n".join([f"{file} has wrong fields", *lines])) from None


def _fault(folder: Path, path: str, digest: str) -> str | None:
    try:
        with open(folder / path, "rb") as content:
            actual = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        return f"  {path} is missing ({error.strerror})"
    return None if actual == digest else f"  {path} has sha256 {actual}, the manifest says {digest}"
