"""Any number of labels a text (or pair), or none: sigmoid cross-entropy; micro- and macro-F1 at tuned thresholds."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from keras import ops
from pydantic import Field, PositiveFloat

from bert_mtl.kinds.classification import LabelledSettings
from bert_mtl.kinds.head import DataError, DenseLayer, Head, LayerContext, label_id, register_kind
from conf.errors import Problem

FEW = 5  # positive examples below which a label's own best threshold is chance


class MultilabelSettings(LabelledSettings):
    """`positive_weights` weigh the labels a text has against those it has not: one number a label, or `balanced`:
    negative by positive examples. The default `metric` is the one GoEmotions (Demszky et al. 2020) reports."""

    labels: Annotated[list[str], Field(min_length=1)]
    positive_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    metric: Literal["micro_f1", "macro_f1"] = "macro_f1"

    def faults(self) -> list[tuple[str, str, object]]:
        found, weights = super().faults(), self.positive_weights
        if isinstance(weights, list) and len(weights) != len(self.labels):
            found.append(("positive_weights", f"hold one weight for each of the {len(self.labels)} labels", weights))
        return found


@register_kind("multilabel")
class Multilabel(Head):
    """A yes or no for each of `labels`; answers are probabilities `(texts, labels)`.

    A text's loss is the sum over labels, not their mean: the negative log likelihood of its set of labels, in nats a
    text like that of the other kinds. The mean would make a head of 28 labels count a 28th beside another task.
    """

    Settings = MultilabelSettings
    settings: MultilabelSettings

    @property
    def metric(self) -> str:
        return self.settings.metric

    @property
    def label_shape(self) -> tuple[int]:
        return (len(self.settings.labels),)

    @property
    def answer_shape(self) -> tuple[int]:
        return self.label_shape

    def encode(self, value: Any, origin: str) -> list[int]:
        """1 at each label of the list `value`, else 0."""
        labels = self.settings.labels
        if not isinstance(value, list | tuple):
            problem = Problem(f"the label of head {self.name}", "be a list of labels", value, tuple(labels))
            raise DataError(f"{origin}: {problem}")
        ids = {label_id(self.name, label, labels, origin) for label in value}
        return [int(i in ids) for i in range(len(labels))]

    def stratum(self, label: list[int]) -> int:
        """The first label; one more than the last where the text has none."""
        return label.index(1) if 1 in label else len(label)

    def count(self, labels: np.ndarray) -> dict[str, float]:
        """Labelled examples, and of each label those that have it."""
        known = labels[labels[:, 0] >= 0]
        positives = zip(self.settings.labels, known.sum(axis=0), strict=True)
        return super().count(known) | {f"label {label}": float(number) for label, number in positives}

    def make_layer(self, context: LayerContext) -> DenseLayer:
        return DenseLayer(context, len(self.settings.labels), self.log_odds())

    def log_odds(self) -> np.ndarray | float:
        """`(labels,)` log odds of the labels in train: a bias that spares the head from learning what is rare first."""
        if not self.statistics:
            return 0.0
        positives = np.array([self.statistics[f"label {label}"] for label in self.settings.labels])
        return np.log(positives + 0.5) - np.log(self.statistics["examples"] - positives + 0.5)

    def losses(self, outputs: Any, labels: Any) -> Any:
        truth = ops.cast(labels, "float32")
        yes, no = ops.softplus(-outputs), ops.softplus(outputs)  # -log p and -log(1 - p)
        return ops.sum(self.positive_weights() * truth * yes + (1 - truth) * no, axis=-1)

    def positive_weights(self) -> np.ndarray:
        """`(labels,)` weights: the configured ones, ones, or `balanced`: negative by positive train examples."""
        configured, labels = self.settings.positive_weights, self.settings.labels
        if configured == "balanced":
            positives = np.array([max(self.statistics[f"label {label}"], 1) for label in labels], np.float32)
            return np.maximum(self.statistics["examples"] - positives, 1) / positives
        return np.asarray(configured or np.ones(len(labels)), np.float32)

    def answer(self, outputs: Any, labels: Any, inputs: Mapping[str, Any]) -> Any:
        return ops.sigmoid(outputs)

    @property
    def thresholds(self) -> np.ndarray:
        """`(labels,)` probabilities from which a text has the label."""
        return np.asarray(self.tuned.get("thresholds", [0.5] * len(self.settings.labels)))

    def metrics(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """F1 over all decisions and as the mean over labels, share of texts whose whole set is right, mean loss."""
        predicted, truth = answers >= self.thresholds, labels == 1
        likelihood = np.where(truth, answers, 1 - answers.astype(np.float64))
        return {
            "micro_f1": micro_f1(predicted, truth),
            "macro_f1": macro_f1(predicted, truth),
            "exact_match": float((predicted == truth).all(axis=1).mean()),
            "loss": float(-np.log(np.maximum(likelihood, 1e-12)).sum(axis=1).mean()),
        }

    def tune(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
        """Thresholds that give the best `metric`: one for all labels (micro-F1), or each label's own (macro-F1), where
        labels of fewer than `FEW` examples keep the common one."""
        truth = labels == 1
        thresholds = np.full(truth.shape[1], best_threshold(answers.ravel(), truth.ravel()))
        if self.metric == "macro_f1":
            for label in np.flatnonzero(truth.sum(axis=0) >= FEW):
                thresholds[label] = best_threshold(answers[:, label], truth[:, label])
        return {"thresholds": thresholds.tolist()}

    def decode(self, answers: np.ndarray) -> list[dict]:
        """`{"labels": [name, …], "probabilities": {name: p}}` a text."""
        names = self.settings.labels
        return [
            {
                "labels": [names[i] for i in np.flatnonzero(row >= self.thresholds)],
                "probabilities": dict(zip(names, row.tolist(), strict=True)),
            }
            for row in answers
        ]

    def export(self) -> dict[str, Any]:
        return super().export() | {"labels": self.settings.labels, "thresholds": self.thresholds.tolist()}


def micro_f1(predicted: np.ndarray, truth: np.ndarray) -> float:
    """F1 score of all decisions `(texts, labels)` together; 0 where no label is there and none predicted."""
    return float(2 * np.sum(predicted & truth) / max(np.sum(predicted) + np.sum(truth), 1))


def macro_f1(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean over labels (those seen in truth or prediction) of the F1 score; 0 where none is seen."""
    hits, total = np.sum(predicted & truth, axis=0), np.sum(predicted, axis=0) + np.sum(truth, axis=0)
    return float(np.mean(2 * hits[total > 0] / total[total > 0])) if total.any() else 0.0


def best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The threshold of the best F1 score: half-way between two neighbouring probabilities, the highest such; 0.5 where
    nothing is true. Both arrays are `(decisions,)`."""
    if not truth.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    ordered, hits = probabilities[order].astype(np.float64), np.cumsum(truth[order])
    lower = np.append(ordered[1:], 0.0)
    scores = 2 * hits / (np.arange(1, len(hits) + 1) + hits[-1])
    scores[ordered == lower] = 0  # no threshold parts equal probabilities
    cut = int(scores.argmax())
    return float(ordered[cut] + lower[cut]) / 2
