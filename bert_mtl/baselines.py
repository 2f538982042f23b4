"""What linear models on words make of a head's question: the baseline that a BERT has to beat.

Words are weighed by TF-IDF, taken alone and in pairs. A kind of one's own gets a baseline with `@teach.register`.
"""

from collections.abc import Callable
from functools import singledispatch

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from bert_mtl.kinds import Head
from bert_mtl.kinds.classification import Classification
from bert_mtl.kinds.multilabel import Multilabel
from bert_mtl.kinds.regression import Regression
from bert_mtl.parts import Texts

Guess = Callable[[Texts], np.ndarray]

# A word, a Chinese character (which BERT takes for a word too) or a mark. So every text but a blank one has some.
WORD = r"[㐀-䶿一-鿿]|(?:(?![㐀-䶿一-鿿])\w)+|[^\w\s]"


class Features:
    """The numbers `(texts, features)` a linear model sees of texts; of a pair, both texts, how they differ word by
    word, and their cosine."""

    def __init__(self, texts: Texts):
        self.words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORD)
        self.words.fit(text for example in texts for text in example)

    def __call__(self, texts: Texts) -> csr_matrix:
        first, *others = (self.words.transform(column) for column in zip(*texts, strict=True))
        if not others:
            return first
        cosine = csr_matrix(first.multiply(others[0]).sum(axis=1))
        return hstack([first, others[0], abs(first - others[0]), cosine]).tocsr()


@singledispatch
def teach(head: Head, texts: Texts, labels: np.ndarray) -> Guess | None:
    """What answers texts as the head does (`Head.answer`), taught with texts and stored labels `(texts, …)` of which
    none is missing; None for kinds without a baseline, and where all labels are the same."""
    return None


@teach.register
def _(head: Classification, texts: Texts, labels: np.ndarray) -> Guess | None:
    if len(np.unique(labels)) < 2:
        return None
    features = Features(texts)
    model = LogisticRegression(C=10, max_iter=1000).fit(features(texts), labels)

    def guess(texts: Texts) -> np.ndarray:
        answers = np.zeros((len(texts), len(head.settings.labels)))
        answers[:, model.classes_] = model.predict_proba(features(texts))
        return answers

    return guess


@teach.register
def _(head: Multilabel, texts: Texts, labels: np.ndarray) -> Guess | None:
    decided = np.flatnonzero(labels.min(axis=0) < labels.max(axis=0))
    if not len(decided):
        return None
    features = Features(texts)
    seen = features(texts)
    models = [LogisticRegression(C=10, max_iter=1000, solver="liblinear").fit(seen, labels[:, i]) for i in decided]

    def guess(texts: Texts) -> np.ndarray:
        asked = features(texts)
        answers = np.tile(labels[0].astype(float), (len(texts), 1))  # that of a label which all have, or none
        answers[:, decided] = np.stack([model.predict_proba(asked)[:, 1] for model in models], axis=1)
        return answers

    return guess


@teach.register
def _(head: Regression, texts: Texts, labels: np.ndarray) -> Guess | None:
    if np.ptp(labels) == 0:
        return None
    features = Features(texts)
    model = Ridge().fit(features(texts), labels)
    return lambda texts: np.clip(model.predict(features(texts)), head.settings.minimum, head.settings.maximum)
