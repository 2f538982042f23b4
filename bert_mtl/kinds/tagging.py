"""A tag for every word; together they name the text's entities: O, or B-x at the first and I-x at further words of x.

Wordpieces carry the tags: the first one of a word its tag, all others none.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from keras import ops
from pydantic import Field

from bert_mtl.kinds.classification import LabelledSettings
from bert_mtl.kinds.crf import CrfLayer, negative_log_likelihood, viterbi
from bert_mtl.kinds.head import DataError, DenseLayer, Head, LayerContext, label_id, register_kind
from conf.errors import Problem

OUTSIDE = "O"
Word = tuple[str, int, int]  # as `bert_mtl.words.words` gives it


class TaggingSettings(LabelledSettings):
    """`labels` are the types of entities (`person`, not `B-person`); with `crf` tags are learned as whole sequences."""

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
        self.tags = tags(self.settings.labels)
        self.rules = np.where(follows(self.tags), 0.0, -np.inf)  # scores of transitions

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
        transitions, start, end = self._chain()
        transitions, start = transitions + self.rules, start + self.rules[self.tags.index(OUTSIDE)]
        scores = (np.log(np.maximum(answer, 1e-30)) for answer in answers)
        return [[self.tags[tag] for tag in viterbi(each, transitions, start, end)] for each in scores]

    def spans(self, answer: np.ndarray, words: Sequence[Word], text: str) -> list[dict]:
        """The entities of one text: `[{"type", "start", "end", "text", "score"}]`.

        Args:
            answer: `(words, tags)` probabilities.
            words: the words that have a row in `answer` (truncation leaves some without), in its order: each with the
                places in `text` of its first character and of the one after its last.

        `start` and `end` are such places too. The score is the mean probability that the entity's words, each on its
        own, give their tags; a CRF's transitions choose the tags but have no part in it.
        """
        best = self.decode([answer])[0]
        sure = answer[np.arange(len(best)), [self.tags.index(tag) for tag in best]] if best else answer
        found = []
        for kind, first, after in entities(best):
            start, end, score = words[first][1], words[after - 1][2], float(sure[first:after].mean())
            found.append({"type": kind, "start": start, "end": end, "text": text[start:end], "score": score})
        return found

    def export(self) -> dict[str, Any]:
        """With a CRF also its `transitions`, `start` and `end`; the rule that I-x continues x is not among them."""
        known = super().export() | {"labels": self.settings.labels, "tags": self.tags, "crf": self.settings.crf}
        if self.settings.crf:
            names = ("transitions", "start", "end")
            known |= {name: values.tolist() for name, values in zip(names, self._chain(), strict=True)}
        return known

    def _chain(self) -> list[np.ndarray]:
        """Scores of transitions `(tags, tags)`, start and end `(tags,)`; zeros without a CRF."""
        if not self.settings.crf:
            size = len(self.tags)
            return [np.zeros((size, size)), np.zeros(size), np.zeros(size)]
        return [ops.convert_to_numpy(each) for each in self.layer.chain()]


def tags(labels: Sequence[str]) -> list[str]:
    """The tags in the order of their ids: O, B-a, I-a, B-b, I-b, …"""
    return [OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in "BI")]


def continues(before: str, tag: str) -> bool:
    """Whether a word of this tag belongs to the entity of the word before."""
    return tag.startswith("I-") and before[1:] == tag[1:]


def follows(tags: Sequence[str]) -> np.ndarray:
    """`(tags, tags)` bool: whether tag j may come after tag i. What may follow O may also begin a text."""
    return np.array([[not tag.startswith("I-") or continues(before, tag) for tag in tags] for before in tags])


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first word, word after the last) of each entity; an I-x that continues nothing begins one, as in
    conlleval (Tjong Kim Sang & De Meulder 2003) and seqeval."""
    found: list[tuple[str, int, int]] = []
    for place, tag in enumerate(tags):
        if place and continues(tags[place - 1], tag):
            kind, first, _ = found.pop()
            found.append((kind, first, place + 1))
        elif tag != OUTSIDE:
            found.append((tag[2:], place, place + 1))
    return found
