"""Models as foreign protocols name them: by name and version, with the signatures that the exported SavedModel has."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from serving.bundle import Manifest
from serving.errors import BadRequest, UnknownModel, UnknownVersion
from serving.heads import Head
from serving.models import Models, VersionStatus
from serving.service import Service

DEFAULT = "serving_default"
CLASSIFIED, REGRESSED = ("classification", "multilabel"), ("regression",)
"""Kinds of the heads that Classify and Regress answer with."""
PAIRED = ("pair", "apart")
"""What heads of a task of pairs read."""


class Signature(NamedTuple):
    """The texts that a signature takes (`texts`, for pairs `texts_b` too) and the heads that answer."""

    inputs: tuple[str, ...]
    heads: Mapping[str, Head]

    def shape(self, head: str) -> tuple[int, ...]:
        """Of what the head answers, -1 for numbers that requests decide: `(-1, labels)`, `(-1,)` for a value, `(-1, 2,
        dim)` for the vectors of a pair's texts, `(-1, -1, tags)` for the tags of words."""
        said = self.heads[head]
        between = {"token": [-1], "text": [2] if said.reads == "apart" and len(self.inputs) == 2 else []}
        return (-1, *between[said.level], *said.shape)


def signatures(manifest: Manifest) -> dict[str, Signature]:
    """The SavedModel's signatures by name, without `ids`, which reads no texts: `serving_default`, `text` and `pair`
    (where a head answers in them), and `task_<name>` with the heads of one task. (Heads of masked places answer in
    `ids` alone.)"""
    spoken = {name: head for name, head in manifest.heads.items() if head.level != "mask"}
    text = Signature(("texts",), {name: head for name, head in spoken.items() if head.reads != "pair"})
    pair = Signature(("texts", "texts_b"), {name: head for name, head in spoken.items() if head.reads in PAIRED})
    graphs = {name: graph for name, graph in (("text", text), ("pair", pair)) if graph.heads}
    tasks: dict[str, dict[str, Head]] = {}
    for name, head in spoken.items():
        tasks.setdefault(head.task, {})[name] = head
    parts = {
        f"task_{task}": Signature(
            (pair if any(head.reads in PAIRED for head in heads.values()) else text).inputs, heads
        )
        for task, heads in tasks.items()
    }
    default = {DEFAULT: next(iter(graphs.values()))} if graphs else {}
    return default | graphs | parts


def signature_of(manifest: Manifest, name: str) -> Signature:
    """The signature of that name, `serving_default` for an empty one; raises `BadRequest`."""
    known = signatures(manifest)
    if name == "ids":
        raise BadRequest(
            "signature_name must be one that takes texts; ids takes token ids, which only the SavedModel does"
        )
    if (name or DEFAULT) not in known:
        raise BadRequest(f"signature_name must be one of {', '.join(known) or 'none'}; got {shortened(name)}")
    return known[name or DEFAULT]


def head_of(manifest: Manifest, name: str, kinds: Collection[str]) -> tuple[str, Signature]:
    """The one head of such a kind that the signature of that name has, and the signature; the name may be that of the
    head itself. Raises `BadRequest` where it is none or not the only one."""
    known = signatures(manifest)
    fitting = {head: said for head, said in manifest.heads.items() if said.kind in kinds}
    if name in fitting:
        return name, next(one for part, one in known.items() if part.startswith("task_") and name in one.heads)
    signature = signature_of(manifest, name)
    found = [head for head in signature.heads if head in fitting]
    if len(found) != 1:
        raise BadRequest(
            f"signature_name must have one head of the kind {' or '.join(kinds)}, or be the name of one "
            f"({', '.join(fitting) or 'this model has none'}); {name or DEFAULT} has {len(found)}"
        )
    return found[0], signature


def service_of(models: Models, name: str, version: str | None = None) -> Service:
    """The version of the model of that name that answers, the newest for None; raises `UnknownModel`, and what
    `Models.service` raises."""
    check_name(models, name)
    return models.service(version)


def check_name(models: Models, name: str) -> None:
    """Raises `UnknownModel` unless that is the served model's name."""
    if name != models.name:
        raise UnknownModel(f"model must be {models.name}; got {shortened(name)}")


def shortened(text: str, limit: int = 60) -> str:
    """The text as a message may hold it, however long it is and whatever it holds."""
    return ascii(text if len(text) <= limit else f"{text[:limit]}...")


def statuses(models: Models, name: str, version: str | None = None) -> list[VersionStatus]:
    """The version of the model of that name, or all; raises `UnknownModel` and `UnknownVersion`."""
    check_name(models, name)
    found = [status for status in models.status() if version in (None, status.version)]
    if not found:
        raise UnknownVersion(f"Could not find version {shortened(version or '')} of model {name}")
    return found


async def outputs_of(
    service: Service, signature: Signature, texts: Mapping[str, list[str]], timeout: float | None = None
) -> dict[str, np.ndarray]:
    """What the signature's heads answer, `Signature.shape` by head: of words as many as the text with the most has,
    zeros behind those of others."""
    columns = (texts["texts"], texts.get("texts_b"))
    rows = await service.scores(*columns, heads=list(signature.heads), timeout=timeout)
    return {name: stacked([row[name] for row in rows]) for name in signature.heads}


def stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays that differ in their first axis alone, if at all, as one: zeros behind what is shorter."""
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    longest = max(len(array) for array in arrays)
    found = np.zeros((len(arrays), longest, *arrays[0].shape[1:]), np.float32)
    for row, array in zip(found, arrays, strict=True):
        row[: len(array)] = array
    return found


async def ask(
    service: Service, signature_name: str, texts: list[str], texts_b: list[str] | None, kinds: Sequence[str],
    timeout: float | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The answers of the one head of such a kind that the signature, or the head, of that name has."""
    name, signature = head_of(service.manifest, signature_name, kinds)
    if (texts_b is not None) != (len(signature.inputs) == 2):
        raise BadRequest(f"examples must have the keys {' and '.join(signature.inputs)} for {signature_name}")
    answers = await service.classify(texts, texts_b, heads=[name], timeout=timeout)
    return [result[name] for result in answers.results]
