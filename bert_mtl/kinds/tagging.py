"""A tag for every word; together they name the text's entities: O, or B-x at the first and I-x at further words of x.

Wordpieces carry the tags: the first one of a word its tag, all others none.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from keras import ops
from pydantic import Field

from bert_mtl.kinds.classification import LabelledSettings
from bert_mtl.kinds.crf import CrfLayer, negative_log_likelihood
from bert_mtl.kinds.head import DataError, DenseLayer, Head, LayerContext, label_id, register_kind
from conf.errors import Problem
from spans.tags import OUTSIDE, Decoder, Word, entities, tags_of


class TaggingSettings(LabelledSettings):
    """`labels` are the types of entities (`person`, not `B-person`); with `crf` tags are learned as whole sequences."""

    layer_keys: ClassVar[tuple[str, ...]] = ("labels", "crf")
    labels: Annotated[list[str], Field(min_length=1)]
    crf: bool = False

    def faults(self) -> list[tuple[str, str, object]]:
        found = super().faults()
        if any(label == OUTSIDE or label.startswith(("B-", "I-")) for label in self.labels):
            found.append(("labels", "name types of entities, without O and the prefixes B- and I-", self.labels))
        return found


@register_kind("tagging")
class Tagging(Head):
    """Softmax over `tags` a word, valid sequences only; answers are probabilities `(words, tags)` a text."""

    Settings = TaggingSettings
    settings: TaggingSettings
    layer: Any
    level = "token"
    metric = "f1"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.tags = tags_of(self.settings.labels)

    @property
    def answer_shape(self) -> tuple[int] | None:
        """None with a CRF, which learns whole sequences."""
        return None if self.settings.crf else (len(self.tags),)

    def encode(self, value: Any, origin: str) -> list[int]:
        """Ids of a list of tags. An I-x that continues no x begins an entity, as in files of IOB1: it becomes B-x."""
        if not isinstance(value, list):
            raise DataError(f"{origin}: {Problem(f'the label of head {self.name}', 'be a list of tags', value)}")
        names = [self.tags[label_id(self.name, tag, self.tags, origin)] for tag in value]
        begun = {place for _, place, _ in entities(names)}
        return [self.tags.index(f"B-{tag[2:]}" if place in begun else tag) for place, tag in enumerate(names)]

    def count(self, labels: np.ndarray) -> dict[str, float]:
        """Words outside of entities, and entities of each type."""
        numbers = np.bincount(labels[labels >= 0], minlength=len(self.tags)).astype(float)
        return dict(zip([OUTSIDE, *self.settings.labels], [numbers[0], *numbers[1::2]], strict=True))

    def make_layer(self, context: LayerContext) -> DenseLayer:
        return (CrfLayer if self.settings.crf else DenseLayer)(context, len(self.tags))

    def losses(self, outputs: Any, labels: Any) -> Any:
        return ops.sparse_categorical_crossentropy(labels, outputs, from_logits=True)

    def teacher_losses(self, outputs: Any, answers: Any) -> Any:
        return ops.categorical_crossentropy(answers, outputs, from_logits=True)

    def loss(self, outputs: Any, labels: Any, weights: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        """With a CRF the chains' negative log likelihoods and the number of their words: a loss a word either way."""
        if not self.settings.crf:
            return super().loss(outputs, labels, weights, inputs)
        words = weights > 0
        total = negative_log_likelihood(outputs, labels, words, inputs["segment_ids"], *self.layer.chain())
        return total, ops.sum(ops.cast(words, "float32"))

    def answer(self, outputs: Any, labels: Any, inputs: Mapping[str, Any]) -> Any:
        """Probabilities of each word alone; a CRF's transitions have their say in `decode`."""
        return ops.softmax(outputs)

    def metrics(self, answers: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, float]:
        """Entities found in full (`f1`, `precision`, `recall`: seqeval's micro averages), right tags and, where words
        are independent, `loss`, the mean -log p of their tags."""
        best, truth = self.decode(answers), [[self.tags[tag] for tag in text] for text in labels]
        found, given = ({(i, *e) for i, text in enumerate(texts) for e in entities(text)} for texts in (best, truth))
        hits = len(found & given)
        right = [a == b for texts in zip(best, truth, strict=True) for a, b in zip(*texts, strict=True)]
        values = {
            "f1": 2 * hits / max(len(found) + len(given), 1),
            "precision": hits / max(len(found), 1),
            "recall": hits / max(len(given), 1),
            "accuracy": float(np.mean(right)),
        }
        if not self.settings.crf:
            ids = np.concatenate(labels)
            likely = np.concatenate(answers)[np.arange(len(ids)), ids]
            values["loss"] = float(-np.log(np.maximum(likely, 1e-12)).mean())
        return values

    def decode(self, answers: Sequence[np.ndarray]) -> list[list[str]]:
        """The best valid tags of every text."""
        decoder = self._decoder()
        return [[self.tags[tag] for tag in decoder.best(answer)] for answer in answers]

    def spans(self, answer: np.ndarray, words: Sequence[Word], text: str) -> list[dict]:
        """The entities of one text (`Decoder.spans`), whose `words` have the probabilities `answer` `(words, tags)`."""
        return self._decoder().spans(answer, words, text)

    def export(self) -> dict[str, Any]:
        """With a CRF also its `transitions`, `start` and `end`; the rule that I-x continues x is not among them."""
        known = super().export() | {"labels": self.settings.labels, "tags": self.tags, "crf": self.settings.crf}
        if self.settings.crf:
            known |= {name: values.tolist() for name, values in self._chain().items()}
        return known

    def _decoder(self) -> Decoder:
        return Decoder(self.tags, **self._chain())

    def _chain(self) -> dict[str, np.ndarray]:
        """The scores that a CRF has learned."""
        names = ("transitions", "start", "end") if self.settings.crf else ()
        return dict(zip(names, map(ops.convert_to_numpy, self.layer.chain() if names else ()), strict=True))
