"""What the heads of a bundle say: its manifest's words about each, and numbers of the model in, answers out.

One class for each kind; its fields are those of `heads.<name>` in the manifest.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    Tag,
    model_validator,
)

from serving.rows import Row
from spans.tags import Decoder

KINDS = ("classification", "multilabel", "regression", "vector", "similarity", "tagging", "mlm")
Answer = dict[str, Any]
Reads = Literal["text", "words", "masks", "pair", "apart"]


class Seen(NamedTuple):
    """What the model saw of one text (or pair), and how it answered.

    Attributes:
        rows: one; two where a pair's texts are read apart; none where a text without [MASK] was to be read for masks.
        outputs: the head's output for each row.
        temperatures: by which each output is to be calibrated; None for none.
        token: the tokenizer's token of an id.
    """

    rows: Sequence[Row]
    outputs: Sequence[np.ndarray]
    temperatures: Sequence[float | None]
    token: Callable[[int], str]


class Section(BaseModel):
    """A part of the manifest. Unknown keys are let through: an exporter may say more within one format."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


def _distinct(labels: list[str]) -> list[str]:
    if len(set(labels)) < len(labels):
        raise ValueError("must be distinct")
    return labels


Labels = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class Head(Section):
    """One question the model answers; of a kind that this server does not know, numbers are all it says."""

    kind: Annotated[str, Field(json_schema_extra={"not": {"enum": list(KINDS)}})]
    """What the numbers mean."""
    task: str
    """The task it belongs to."""
    level: Literal["text", "token", "mask"]
    """What it answers for: a row (`text`), each `token`, or each [MASK] (`mask`)."""
    reads: Reads
    """What a row holds: a `text`, the same read word by word (`words`), a text with each [MASK] as the mask (`masks`),
    both texts of a `pair`, or one of the two (`apart`); the last reads single texts as well."""
    shape: list[PositiveInt]
    """Of the answer for one row, token or [MASK]."""

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
    """One label a text (or pair). The model's numbers are the labels' probabilities, a softmax as it was learned; those
    of an answer are calibrated."""

    kind: Literal["classification"]
    """One label a text (or pair)."""
    labels: Annotated[Labels, Field(min_length=2)]
    """By id."""

    def answer(self, seen: Seen) -> Answer:
        probabilities, temperature = seen.outputs[0], seen.temperatures[0]
        if temperature is not None:
            powers = (probabilities / probabilities.max()).astype(np.float64) ** (1 / temperature)
            probabilities = powers / powers.sum()
        label = self.labels[int(seen.outputs[0].argmax())]
        return {"label": label, "probabilities": dict(zip(self.labels, probabilities.tolist(), strict=True))}


class Multilabel(Head):
    """Any number of labels a text; the model's numbers are their probabilities, as it gives them."""

    kind: Literal["multilabel"]
    """Any number of labels a text."""
    labels: Labels
    """By id."""
    thresholds: list[float]
    """The probabilities from which a text has each label, chosen on the dev part."""

    def answer(self, seen: Seen) -> Answer:
        found = [self.labels[label] for label in np.flatnonzero(seen.outputs[0] >= np.array(self.thresholds))]
        return {"labels": found, "probabilities": dict(zip(self.labels, seen.outputs[0].tolist(), strict=True))}


class Regression(Head):
    """A number a text (or pair)."""

    kind: Literal["regression"]
    """A number a text (or pair)."""

    def answer(self, seen: Seen) -> Answer:
        return {"value": float(seen.outputs[0])}


class Vector(Head):
    """Numbers that stand for a text (or pair)."""

    kind: Literal["vector"]
    """Numbers that stand for a text (or pair)."""

    def answer(self, seen: Seen) -> Answer:
        return {"vector": seen.outputs[0].tolist()}


class Similarity(Head):
    """How alike two texts are: the cosine of their vectors. The model gives vectors of length 1."""

    kind: Literal["similarity"]
    """A vector of length 1 a text; how alike two texts are is the product of theirs."""

    def answer(self, seen: Seen) -> Answer:
        if len(seen.outputs) == 1:
            return {"vector": seen.outputs[0].tolist()}
        return {"similarity": float(np.sum(seen.outputs[0] * seen.outputs[1]))}


class Tagging(Head):
    """Spans of a text and their types (`spans.tags.Decoder`); the model's numbers are the tags' probabilities."""

    kind: Literal["tagging"]
    """A tag for each word; words carry theirs at their first token."""
    tags: Labels
    """By id: O, or B-x at the first and I-x at further words of a span of type x."""
    transitions: list[list[float]] | None = None
    """A CRF's scores `(tags, tags)` of a tag behind another."""
    start: list[float] | None = None
    """A CRF's scores of the first tag."""
    end: list[float] | None = None
    """A CRF's scores of the last tag."""

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.tags, self.transitions, self.start, self.end)

    def answer(self, seen: Seen) -> Answer:
        (row,), (output,) = seen.rows, seen.outputs
        return {"spans": self._decoder.spans(output[row.places], row.words, row.text)}


class MaskedLanguage(Head):
    """What stands at a [MASK]."""

    kind: Literal["mlm"]
    """For each token the ids of the best guesses, then their probabilities; zeros but at [MASK]."""

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
