"""A folder written by the exporter goes in; out comes a `Bundle` whose every file was checked against the manifest.

The layout is `manifest.json` beside `README.md`, `tokenizer/` and one folder per engine; `Manifest` documents the
fields, and `serving.heads` those of each head: `python -m serving.bundle` prints them as a JSON schema.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from conf.errors import Problem
from serving.heads import AnyHead, Section

FORMAT = 4
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


class TaskFacts(Section):
    """What a task was learned from."""

    license: str
    """Terms of its data, as the task's configuration states them."""
    link: str | None
    """Where the data is described."""
    fingerprint: str
    """SHA-256 of all that decides which examples make up which part of the data."""
    limit: PositiveInt | None
    """Train examples that were learned at most; null for all."""


class Training(Section):
    """How the run was trained."""

    weights: str | None
    """URI of the pretrained weights; of local ones the name of the folder or file alone; null for random ones."""
    epochs: PositiveInt
    """Passes over the mixture of the tasks."""
    batch_size: PositiveInt
    """Examples a step, on average."""
    learning_rate: float
    """The highest of the encoder."""
    seed: int
    """Of weights, dropout and order."""
    mixing: str
    """How often each task is drawn."""
    weighting: str
    """How the heads' losses are weighed."""


class TokenizerSettings(Section):
    """How texts become ids."""

    kind: Literal["wordpiece", "sentencepiece"]
    """`wordpiece`: tokenizer/tokenizer.json (for the package `tokenizers`) and vocab.txt; `sentencepiece`:
    tokenizer/spm.model, without the special tokens."""
    lowercase: bool
    """Whether case is ignored."""
    max_length: Annotated[int, Field(ge=3)]
    """Tokens that the model reads of a text (or pair), the special ones among them."""
    truncation: Literal["head", "tail", "head_tail"]
    """What is read of a longer text: its start, its end, or a quarter from the start and the rest from the end.
    tokenizer.json cuts as `head` and `tail` do; it cannot say `head_tail` and then leaves texts whole."""
    pad_id: int
    """Behind the tokens of shorter texts."""
    cls_id: int
    """Before a text."""
    sep_id: int
    """Behind a text."""
    mask_id: int
    """In place of a word to guess."""


class EncoderSize(Section):
    """How large the encoder is."""

    dim: PositiveInt
    """Numbers in a token's states."""
    layers: PositiveInt
    """How many there are, without the embeddings."""


def layer_name(number: int) -> str:
    """What a stage's output of a layer's states is called."""
    return f"layer_{number}"


class StageFiles(Section):
    """A part of the model: the encoder's layers up to one of them, and all heads there."""

    path: InnerPath
    """Its file; of a SavedModel the folder."""
    inputs: Annotated[list[Input], Field(min_length=1)]
    """The arrays that it takes: `(rows, length)` int32; `states`, the output `next_states` of the stage before,
    `(rows, length, dim)` float32."""
    depth: PositiveInt
    """How many of the encoder's layers have run behind it."""
    layers: list[NonNegativeInt] = []
    """The encoder's layers whose states it gives as well where it is asked to, as `layer_<number>`
    `(rows, length, dim)` float32; number 0: the embeddings."""
    pooled: bool = False
    """Whether it gives, where it is asked to, `pooled` `(rows, dim)` float32: BERT's pooled output."""
    leave: dict[str, float] = {}
    """How probable its likeliest label must be for a head's answer to be taken here; a text of which no head needs more
    goes no further. A head that is not named never answers here; the last stage answers all the rest."""
    temperature: dict[str, PositiveFloat] = {}
    """What a head's logits are divided by here before they become the probabilities of an answer (Guo et al. 2017);
    above 1 where the model is too sure. Of a head that is not named the answers hold the model's own numbers."""

    @property
    def vectors(self) -> list[str]:
        """Names of the outputs that it gives only where it is asked to."""
        return [*map(layer_name, self.layers), *(["pooled"] if self.pooled else [])]


class EngineFiles(Section):
    """The model in one format."""

    precision: Precision
    """fp32; bf16: products in bfloat16; fp16: weights of 16 bits, computed with in float32; int8: weights of 8 bits,
    and activations too where the format can."""
    stages: Annotated[list[StageFiles], Field(min_length=1)]
    """One, or several where texts may leave between layers."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if sorted({stage.depth for stage in self.stages}) != [stage.depth for stage in self.stages]:
            raise ValueError("stages must be of ascending depth")
        for number, stage in enumerate(self.stages):
            if ("states" in stage.inputs) != (number > 0) or ("token_ids" in stage.inputs) != (number == 0):
                raise ValueError("the first of the stages must take token_ids, each other one states")
        if self.stages[-1].leave:
            raise ValueError("the last of the stages must answer all the rest; a text leaves it in no other way")
        return self


class Calibration(Section):
    """How far the probabilities of a head's answers are from how often they are right, in 15 bins of confidence."""

    ece_before: float
    """Expected calibration error of the model's own probabilities."""
    ece_after: float
    """The same with temperatures: each half of the texts with those of the other half."""
    texts: PositiveInt
    """How many texts of dev it was found on."""


class Exits(Section):
    """What it costs a head that texts leave early."""

    drop: float
    """Points of the head's metric that are lost beside the run; less than 0 where there is a gain."""
    layers: float
    """Behind how many layers it answers, on average."""
    answered: dict[int, float]
    """The share of its answers that are taken behind so many layers. (A text leaves when all its heads have answered.)
    """


class Gate(Section):
    """A head of one format beside the run in float32 on the dev part, behind all layers."""

    difference: float
    """The largest of any number of an answer."""
    agreement: float
    """The share of answers that come down to the same: the likeliest label (of each word), all labels from their
    thresholds on, a number rounded to a half, the largest of a vector."""
    metrics: dict[Literal["run", "export"], dict[str, float]]
    """The head's metrics of both."""
    drop: float
    """Points of the head's metric that are lost; less than 0 where there is a gain."""
    exits: Exits | None = None
    """Where texts may leave early."""
    calibration: Calibration | None = None
    """Of a head that chooses one label: of the answers as they are taken."""


class Manifest(Section):
    """What `manifest.json` says of a bundle."""

    format: PositiveInt
    """Of the manifest; raised when a reader of the former one would misunderstand it."""
    name: str
    """The model's."""
    version: str
    """The model's: the name of its run."""
    run: str
    """The name of the run's folder."""
    data: str
    """Where the tasks' data is from: `sample` (built in, small) or `full`."""
    tasks: dict[str, TaskFacts]
    """What each task was learned from."""
    training: Training
    """How the run was trained."""
    heads: Annotated[dict[str, AnyHead], Field(min_length=1)]
    """By the name of their output in the model: `<task>_<head>`, or the task's name where both are equal."""
    tokenizer: TokenizerSettings
    """How texts become ids."""
    encoder: EncoderSize | None = None
    """How large the encoder is; null in a bundle of before this was said."""
    engines: dict[str, EngineFiles]
    """The model by format."""
    gates: dict[str, dict[str, Gate]]
    """What each format's heads cost on dev; empty where they were not compared."""
    metrics: dict[Literal["dev", "test"], dict[str, dict[str, float]]]
    """The run's by part, head and name."""
    versions: dict[str, str]
    """Of the packages that wrote the bundle."""
    files: dict[InnerPath, str]
    """SHA-256 of every file by path, but for manifest.json and README.md, which may be written on. training.json (what
    the train part was like, for `bert_mtl.drift`) is among them where the exporter read the run's data."""


def schema() -> dict[str, Any]:
    """The JSON schema of `Manifest`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Manifest.model_json_schema()


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
    bundle = Bundle(folder, _read_manifest(folder))
    check_files(bundle)
    return bundle


def check_files(bundle: Bundle) -> None:
    """Raises `BundleError` unless the bundle's files are those of its manifest; names all that are not."""
    files, folder = bundle.manifest.files, bundle.folder
    if faults := [fault for file, digest in files.items() if (fault := _fault(folder, file, digest))]:
        problem = Problem("bundle", "hold the files of its manifest unchanged", folder)
        raise BundleError("\n".join([str(problem), *faults]))


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


if __name__ == "__main__":
    print(json.dumps(schema(), indent=1))
