"""What the heads of a bundle say: its manifest's words about each, and numbers of the model in, answers out.

One class for each kind; its fields are those of `heads.<name>` in the manifest.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, model_validator

from serving.rows import Row
from spans.tags import Decoder

Answer = dict[str, Any]
Reads = Literal["text", "words", "masks", "pair", "apart"]


class Seen(NamedTuple):
    """What the model saw of one text (or pair), and how it answered.

    Attributes:
        rows: one; two where a pair's texts are read apart; none where a text without [MASK] was to be read for masks.
        outputs: the head's output for each row.
        token: the tokenizer's token of an id.
    """

    rows: Sequence[Row]
    outputs: Sequence[np.ndarray] | np.ndarray
    token: Callable[[int], str]


class Section(BaseModel):
    """A part of the manifest. Unknown keys are let through: an exporter may say more within one format."""

    model_config = ConfigDict(frozen=True)


def _distinct(labels: list[str]) -> list[str]:
    if len(set(labels)) < len(labels):
        raise ValueError("must be distinct")
    return labels


Labels = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class Head(Section):
    """One question the model answers; of a kind that this server does not know, numbers are all it says.

    Attributes:
        task: the task it belongs to.
        level: what it answers for: a row (`text`), each `token`, or each [MASK] (`mask`).
        reads: what a row holds: a `text`, the same read word by word (`words`), a text with each [MASK] as the mask
            (`masks`), both texts of a `pair`, or one of the two (`apart`); the last reads single texts as well.
        shape: of the answer for one row or token.
    """

    kind: str
    task: str
    level: Literal["text", "token", "mask"]
    reads: Reads
    shape: list[PositiveInt]

    @model_validator(mode="after")
    def _one_number_a_label(self) -> Self:
        for field in ("labels", "tags"):
            if field in type(self).model_fields and self.shape != [len(getattr(self, field))]:
                raise ValueError(
                    f"shape must be the number of {field}, [{len(getattr(self, field))}]; got {self.shape}"
                )
        return self

    def output_shape(self, rows: int, length: int) -> tuple[int, ...]:
        """The shape of the model's output for rows of that length."""
        return (rows, *self.shape) if self.level == "text" else (rows, length, *self.shape)

    def answer(self, seen: Seen) -> Answer:
        """What the head says of one text (or pair)."""
        return {"outputs": [output.tolist() for output in seen.outputs]}


class Classification(Head):
    kind: Literal["classification"]
    labels: Annotated[Labels, Field(min_length=2)]

    def answer(self, seen: Seen) -> Answer:
        probabilities = dict(zip(self.labels, seen.outputs[0].tolist(), strict=True))
        return {"label": self.labels[int(seen.outputs[0].argmax())], "probabilities": probabilities}


class Multilabel(Head):
    """`thresholds` are the probabilities from which a text has each label."""

    kind: Literal["multilabel"]
    labels: Labels
    thresholds: list[float]

    def answer(self, seen: Seen) -> Answer:
        found = [self.labels[label] for label in np.flatnonzero(seen.outputs[0] >= np.array(self.thresholds))]
        return {"labels": found, "probabilities": dict(zip(self.labels, seen.outputs[0].tolist(), strict=True))}


class Regression(Head):
    kind: Literal["regression"]

    def answer(self, seen: Seen) -> Answer:
        return {"value": float(seen.outputs[0])}


class Vector(Head):
    kind: Literal["vector"]

    def answer(self, seen: Seen) -> Answer:
        return {"vector": seen.outputs[0].tolist()}


class Similarity(Head):
    """The model gives vectors of length 1."""

    kind: Literal["similarity"]

    def answer(self, seen: Seen) -> Answer:
        if len(seen.outputs) == 1:
            return {"vector": seen.outputs[0].tolist()}
        return {"similarity": float(np.sum(seen.outputs[0] * seen.outputs[1]))}


class Tagging(Head):
    """`tags` by id; `transitions`, `start` and `end` are the scores that a CRF has learned (`spans.tags.Decoder`)."""

    kind: Literal["tagging"]
    tags: Labels
    transitions: list[list[float]] | None = None
    start: list[float] | None = None
    end: list[float] | None = None

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.tags, self.transitions, self.start, self.end)

    def answer(self, seen: Seen) -> Answer:
        (row,), (output,) = seen.rows, seen.outputs
        return {"spans": self._decoder.spans(output[row.places], row.words, row.text)}


class MaskedLanguage(Head):
    """For each token the ids of the best guesses, then their probabilities."""

    kind: Literal["mlm"]

    def answer(self, seen: Seen) -> Answer:
        count = self.shape[0] // 2
        return {
            "masks": [
                [
                    {"token": seen.token(int(token_id)), "probability": float(probability)}
                    for token_id, probability in zip(guesses[:count], guesses[count:], strict=True)
                ]
                for row, output in zip(seen.rows, seen.outputs, strict=True)
                for guesses in output[row.places]
            ]
        }


KINDS = ("classification", "multilabel", "regression", "vector", "similarity", "tagging", "mlm")
AnyHead = Annotated[
    Annotated[Classification, Tag("classification")]
    | Annotated[Multilabel, Tag("multilabel")]
    | Annotated[Regression, Tag("regression")]
    | Annotated[Vector, Tag("vector")]
    | Annotated[Similarity, Tag("similarity")]
    | Annotated[Tagging, Tag("tagging")]
    | Annotated[MaskedLanguage, Tag("mlm")]
    | Annotated[Head, Tag("other")],
    Discriminator(lambda raw: raw["kind"] if isinstance(raw, dict) and raw.get("kind") in KINDS else "other"),
]
"""A head of the manifest, by its kind."""
