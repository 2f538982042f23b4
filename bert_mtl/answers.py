"""What a model answers to a whole part: batches in, answers and labels of each head out, in stored order."""

import itertools
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import track

from bert_mtl.ahead import ahead
from bert_mtl.exits import head_of
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.kinds import Head
from bert_mtl.multitask import MultiTaskModel

SHOWN = 200  # batches from which answering a part shows a progress bar


@dataclass(frozen=True)
class Answered:
    """Labelled items of one head.

    Attributes:
        answers, labels: arrays `(items, …)`; of a token head a list of an array `(words, …)` for each text.
        index: `(items,)` the place of each item's example in its part (`(texts,)` of a token head).
    """

    answers: Any
    labels: Any
    index: np.ndarray


def answer_part(
    model: MultiTaskModel, pipeline: Pipeline, heads: Mapping[str, str] | None = None
) -> dict[str, Answered]:
    """The answers to every labelled example of a part, by head of the pipeline's tasks: of the model's heads of the
    same names, and of its exits (`MultiTaskModel.name_at`); or, for a chosen few, of those that `heads` maps them to.
    A bar where it takes long."""
    asked = dict(heads) if heads is not None else {label.name: label.name for label in pipeline.labels}
    depths = model.depths if heads is None else model.depths[-1:]
    found: dict[str, list[Answered]] = {model.name_at(name, depth): [] for name in asked for depth in depths}
    epoch = pipeline.first_epoch
    steps = pipeline.steps(epoch)
    with closing(ahead(lambda: pipeline.batches(epoch))) as batches:
        for batch in track(batches, f"answering {pipeline.part}", total=steps, disable=steps < SHOWN):
            answers = model.answer(batch, tuple(asked.values()), exits=heads is None)
            for (name, own), depth in itertools.product(asked.items(), depths):
                given = answers[model.name_at(own, depth)].numpy()
                found[model.name_at(name, depth)].append(labelled(model.heads[own], given, batch, name))
    return {name: _in_order(model.heads[asked[head_of(name)]], pieces) for name, pieces in found.items()}


def labelled(head: Head, answers: np.ndarray, batch: dict[str, np.ndarray], name: str) -> Answered:
    """The items of one batch that are labelled for the head `name` of its task, with the `answers` of `head`."""
    labels = batch[f"label.{name}"]
    if head.level == "token":
        return by_text(answers, labels, batch)
    real = batch[f"weight.{name}"] > 0
    return Answered(answers[real], labels[real], np.flatnonzero(real) if head.level == "mask" else batch["index"][real])


def by_text(answers: np.ndarray, numbers: np.ndarray, batch: dict[str, np.ndarray]) -> Answered:
    """Answers `(rows, length, …)` at the tokens whose `numbers` `(rows, length)` are not negative, by text."""
    places = np.flatnonzero(numbers >= 0)
    segments = batch["segment_ids"].reshape(-1)[places] - 1
    begins = np.flatnonzero(np.diff(segments, prepend=-1))  # the tokens of a segment stand together
    flat = answers.reshape(-1, *answers.shape[2:])[places]
    pieces, labels = np.split(flat, begins[1:]), np.split(numbers.reshape(-1)[places], begins[1:])
    return Answered(pieces if len(begins) else [], labels if len(begins) else [], batch["index"][segments[begins]])


def _in_order(head: Head, pieces: list[Answered]) -> Answered:
    index = np.concatenate([piece.index for piece in pieces])
    order = np.arange(len(index)) if head.level == "mask" else np.argsort(index, kind="stable")

    def ordered(parts: list) -> Any:
        if head.level != "token":
            return np.concatenate(parts)[order]
        items = [item for part in parts for item in part]
        return [items[place] for place in order]

    answers, labels = ordered([piece.answers for piece in pieces]), ordered([piece.labels for piece in pieces])
    return Answered(answers, labels, index[order])
