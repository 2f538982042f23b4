"""What teachers answered to the examples of a part: targets that stand beside the labels of its records. NumPy only."""

from dataclasses import dataclass, replace

import numpy as np

from bert_mtl.batches import Window
from bert_mtl.labels import LabelSpec


def taught(head: str) -> str:
    """The name under which a batch holds what a head's teachers answered; no head is called so."""
    return f"{head}:teachers"


@dataclass(frozen=True)
class Taught:
    """Answers to the question of one head.

    Attributes:
        head: the labels of the head that learns from them.
        answers: `(items, …)` float32 in stored order; an item is an example, of token heads a labelled word.
        splits: `(examples + 1,)` where each example's items begin; an example without an answer has none.
    """

    head: LabelSpec
    answers: np.ndarray
    splits: np.ndarray

    @property
    def spec(self) -> LabelSpec:
        """What batches know of the answers."""
        return LabelSpec(taught(self.head.name), self.head.task, self.head.level, "float32", self.answers.shape[1:])

    def beside(self, window: Window) -> Window:
        """The window with its examples' answers among its labels; NaN where there is none."""
        counts = np.diff(self.splits)[window.index]
        items = np.repeat(self.splits[:-1][window.index] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        tokens = self.head.level == "token"
        if tokens:
            places = np.flatnonzero(window.token_labels[self.head.name] >= 0)
        else:
            places = np.repeat(np.arange(len(counts)), counts)
        values = np.full((len(window.token_ids if tokens else counts), *self.spec.shape), np.nan, np.float32)
        values[places] = self.answers[items]
        if tokens:
            return replace(window, token_labels=window.token_labels | {self.spec.name: values})
        return replace(window, labels=window.labels | {self.spec.name: values})
