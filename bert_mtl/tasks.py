"""Tasks and the kinds of their heads: raw label in, label id to learn, metrics and a readable answer out.

A kind is pure NumPy; the layer and the loss of a kind live in `bert_mtl.heads`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bert_mtl.config import HeadConfig, TaskConfig
from conf.errors import Problem

LINE_BREAKS = str.maketrans("\t\n\r", "   ")


class DataError(Exception):
    """Something is wrong with the data given: says where, what is allowed and what to do."""

    user_error = True


@dataclass(frozen=True)
class Example:
    """One text (or pair, where `text_b` is given) with the id of its label for every head.

    A text is one line: tabs and line ends are spaces, which is what BERT's tokenizer makes of them anyway.
    """

    text: str
    text_b: str | None
    labels: Mapping[str, int]


def make_example(task: TaskConfig, row: Mapping[str, str], origin: str) -> Example:
    """The example of a raw `row` (field -> value) read at `origin` (`file:line`).

    Raises:
        DataError: an empty text or a label that the head does not list.
    """
    texts = {field: row[field].translate(LINE_BREAKS) for field in ("text", "text_b") if field in row}
    for field, text in texts.items():
        if not text.strip():
            raise DataError(f"{origin}: {field} must not be empty; got {row[field]!r}.")
    labels = {name: label_id(name, head, row[name], origin) for name, head in task.heads.items()}
    return Example(texts["text"], texts.get("text_b"), labels)


def label_id(name: str, head: HeadConfig, value: str, origin: str) -> int:
    """The id of label `value` of a classification head. Raises DataError where the head does not list it."""
    try:
        return head.labels.index(value)
    except ValueError:
        raise DataError(f"{origin}: {Problem(f'the label of head {name}', 'be listed', value, head.labels)}") from None


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis of `(examples, labels)`, in float64 so that rows sum to 1."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def decode(head: HeadConfig, logits: np.ndarray) -> list[dict]:
    """One readable answer an example: `{"label": name, "probabilities": {name: p}}`."""
    return [
        {"label": head.labels[int(row.argmax())], "probabilities": dict(zip(head.labels, row.tolist(), strict=True))}
        for row in probabilities(logits)
    ]


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of examples whose highest logit is the label's."""
    return float((logits.argmax(axis=-1) == labels).mean())


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over labels (those seen in truth or prediction) of the F1 score."""
    predicted, scores = logits.argmax(axis=-1), []
    for label in np.union1d(labels, predicted):
        hits = np.sum((predicted == label) & (labels == label))
        scores.append(2 * hits / (np.sum(predicted == label) + np.sum(labels == label)))
    return float(np.mean(scores))


def mean_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the labels in nats."""
    shifted = np.asarray(logits, np.float64) - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return float(-log_p[np.arange(len(labels)), labels].mean())


def metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics followed while training: accuracy, macro_f1 and loss."""
    return {
        "accuracy": accuracy(logits, labels),
        "macro_f1": macro_f1(logits, labels),
        "loss": mean_loss(logits, labels),
    }
