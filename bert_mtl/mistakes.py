"""A head's worst answers to a part, with their texts: what to read to learn what goes wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
from scipy.stats import rankdata

from bert_mtl.answers import Answered
from bert_mtl.kinds import Head
from bert_mtl.kinds.classification import Classification
from bert_mtl.kinds.multilabel import Multilabel
from bert_mtl.kinds.regression import Regression
from bert_mtl.kinds.similarity import Similarity, cosine, two_texts
from bert_mtl.kinds.tagging import Tagging
from bert_mtl.kinds.vector import Vector, cosines
from bert_mtl.tokenization import Tokenizer
from spans.tags import Word, entities


@dataclass(frozen=True)
class Examples:
    """The texts of a part in stored order: of each example its text, or both of a pair."""

    texts: Sequence[tuple[str, ...]]
    tokenizer: Tokenizer

    def shown(self, place: int) -> dict[str, str]:
        """The example's `text`, and its `text_b` where it is a pair."""
        return dict(zip(("text", "text_b"), self.texts[place], strict=False))

    def words(self, place: int) -> list[Word]:
        """The words of the example that the model has read, with their places in its text: those not cut off."""
        words = self.texts[place][0].split(" ")
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        read = self.tokenizer.encode_words([self.texts[place][0]])[1].values.numpy()
        return [(words[i], int(ends[i]) - len(words[i]), int(ends[i])) for i in read[read >= 0]]


@singledispatch
def mistakes(head: Head, answered: Answered, examples: Examples, count: int) -> list[dict]:
    """At most `count` of the head's worst answers, the worst one first; none for kinds that cannot tell. A kind of
    one's own adds what it holds to be bad with `@mistakes.register`."""
    return []


@mistakes.register
def _(head: Classification, answered: Answered, examples: Examples, count: int) -> list[dict]:
    """The wrong labels given with most confidence."""
    names, labels, predicted = head.settings.labels, answered.labels, answered.answers.argmax(axis=1)
    probability = answered.answers.max(axis=1)
    return [
        examples.shown(answered.index[i])
        | {"label": names[labels[i]], "predicted": names[predicted[i]], "probability": float(probability[i])}
        for i in _worst(probability, predicted != labels, count)
    ]


@mistakes.register
def _(head: Multilabel, answered: Answered, examples: Examples, count: int) -> list[dict]:
    """The texts with the wrong yes or no that is given with most confidence."""
    truth, predicted = answered.labels == 1, answered.answers >= head.thresholds
    wrong = np.where(truth, 1 - answered.answers, answered.answers) * (truth != predicted)
    probability = wrong.max(axis=1)

    def named(chosen: np.ndarray) -> list[str]:
        return [head.settings.labels[i] for i in np.flatnonzero(chosen)]

    return [
        examples.shown(answered.index[i])
        | {"labels": named(truth[i]), "predicted": named(predicted[i]), "probability": float(probability[i])}
        for i in _worst(probability, (truth != predicted).any(axis=1), count)
    ]


@mistakes.register
def _(head: Regression, answered: Answered, examples: Examples, count: int) -> list[dict]:
    """The values furthest from the true ones."""
    residuals = np.abs(answered.answers - answered.labels)
    return [
        examples.shown(answered.index[i])
        | {"label": float(answered.labels[i]), "predicted": float(answered.answers[i])}
        for i in _worst(residuals, residuals > 0, count)
    ]


@mistakes.register
def _(head: Tagging, answered: Answered, examples: Examples, count: int) -> list[dict]:
    """The texts with most entities missed or wrongly found."""
    given = [[head.tags[tag] for tag in text] for text in answered.labels]
    pairs = zip(given, head.decode(answered.answers), strict=True)
    wrong = np.array([len(set(entities(truth)) ^ set(entities(best))) for truth, best in pairs])
    found = []
    for i in _worst(wrong, wrong > 0, count):
        shown, words = examples.shown(answered.index[i]), examples.words(answered.index[i])
        predicted = head.spans(answered.answers[i], words, shown["text"])
        found.append(shown | {"spans": _spans(given[i], words, shown["text"]), "predicted": predicted})
    return found


@mistakes.register
def _(head: Similarity, answered: Answered, examples: Examples, count: int) -> list[dict]:
    """The pairs whose place in the order of cosines is furthest from that in the order of scores; where there are no
    scores, the pairs that are least alike."""
    alike, scored = cosine(answered.answers), ~np.isnan(answered.labels)
    distance = -alike
    if scored.any():
        distance = np.zeros(len(alike))
        distance[scored] = np.abs(rankdata(alike[scored]) - rankdata(answered.labels[scored]))
    scores = [{"label": float(score)} if known else {} for score, known in zip(answered.labels, scored, strict=True)]
    among = scored if scored.any() else two_texts(answered.answers)
    return [
        examples.shown(answered.index[i]) | scores[i] | {"similarity": float(alike[i])}
        for i in _worst(distance, among, count)
    ]


@mistakes.register
def _(head: Vector, answered: Answered, examples: Examples, count: int) -> list[dict]:
    """The vectors that point furthest away from the given ones."""
    alike = cosines(answered.answers, answered.labels)
    return [
        examples.shown(answered.index[i]) | {"cosine": float(alike[i])}
        for i in _worst(-alike, np.ones(len(alike), bool), count)
    ]


def _spans(tags: Sequence[str], words: Sequence[Word], text: str) -> list[dict]:
    """The entities that the tags of the words of a text name, as `Tagging.spans` writes them, without scores."""
    places = ((kind, words[first][1], words[after - 1][2]) for kind, first, after in entities(tags))
    return [{"type": kind, "start": start, "end": end, "text": text[start:end]} for kind, start, end in places]


def _worst(badness: np.ndarray, wrong: np.ndarray, count: int) -> np.ndarray:
    """The places of the highest numbers among those that are `wrong`, at most `count`; equal ones in their order."""
    among = np.flatnonzero(wrong)
    return among[np.argsort(-badness[among], kind="stable")][:count]
