"""One label a text (or pair): cross-entropy; accuracy, macro-F1 and Matthews correlation."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from keras import ops
from pydantic import Field, PositiveFloat

from bert_mtl.kinds.head import DenseLayer, Head, HeadSettings, LayerContext, label_id, register_kind

Labels = Annotated[list[str], Field(min_length=2)]


class LabelledSettings(HeadSettings):
    """Keys of heads that choose among labels, given in the order of their ids."""

    layer_keys: ClassVar[tuple[str, ...]] = ("labels",)
    labels: Labels

    def faults(self) -> list[tuple[str, str, object]]:
        return [("labels", "hold each label once", self.labels)] if len(set(self.labels)) < len(self.labels) else []


class ClassificationSettings(LabelledSettings):
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["balanced"] | list[PositiveFloat] | None = None
    metric: Literal["accuracy", "macro_f1", "matthews"] = "accuracy"

    def faults(self) -> list[tuple[str, str, object]]:
        found, weights = super().faults(), self.class_weights
        if isinstance(weights, list) and len(weights) != len(self.labels):
            found.append(("class_weights", f"hold one weight for each of the {len(self.labels)} labels", weights))
        return found


@register_kind("classification")
class Classification(Head):
    """Softmax over `labels`; answers are probabilities `(texts, labels)`."""

    Settings = ClassificationSettings
    settings: ClassificationSettings

    @property
    def metric(self) -> str:
        return self.settings.metric

    @property
    def answer_shape(self) -> tuple[int]:
        return (len(self.settings.labels),)

    def encode(self, value: Any, origin: str) -> list[int]:
        return [label_id(self.name, value, self.settings.labels, origin)]

    def stratum(self, label: list[int]) -> int:
        return label[0]

    def count(self, labels: np.ndarray) -> dict[str, float]:
        numbers = np.bincount(labels[labels >= 0], minlength=len(self.settings.labels))
        return dict(zip(self.settings.labels, map(float, numbers), strict=True))

    def make_layer(self, context: LayerContext) -> DenseLayer:
        return DenseLayer(context, len(self.settings.labels))

    def losses(self, outputs: Any, labels: Any) -> Any:
        count, smoothing = len(self.settings.labels), self.settings.label_smoothing
        target = (1 - smoothing) * ops.one_hot(labels, count) + smoothing / count  # Szegedy et al. 2016
        weights = ops.take(ops.convert_to_tensor(self.class_weights(), "float32"), labels, axis=0)
        return weights * ops.categorical_crossentropy(target, outputs, from_logits=True)

    def teacher_losses(self, outputs: Any, answers: Any) -> Any:
        return ops.categorical_crossentropy(answers, outputs, from_logits=True)

    def class_weights(self) -> np.ndarray:
        """`(labels,)` weights: the configured ones, ones, or `balanced`: inverse frequency, of mean 1 over train."""
        configured, labels = self.settings.class_weights, self.settings.labels
        if configured == "balanced":
            present = np.array([max(self.statistics[label], 1) for label in labels], np.float32)
            return present.sum() / (len(present) * present)
        return np.asarray(configured or np.ones(len(labels)), np.float32)

    def answer(self, outputs: Any, labels: Any, inputs: Mapping[str, Any]) -> Any:
        return ops.softmax(outputs)

    def metrics(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        predicted = answers.argmax(axis=1)
        return {
            "accuracy": float((predicted == labels).mean()),
            "macro_f1": macro_f1(predicted, labels),
            "matthews": matthews(predicted, labels),
            "loss": float(-np.log(np.maximum(answers[np.arange(len(labels)), labels], 1e-12)).mean()),
        }

    def decode(self, answers: np.ndarray) -> list[dict]:
        """`{"label": name, "probabilities": {name: p}}` a text."""
        names = self.settings.labels
        return [
            {"label": names[int(row.argmax())], "probabilities": dict(zip(names, row.tolist(), strict=True))}
            for row in answers
        ]

    def export(self) -> dict[str, Any]:
        return super().export() | {"labels": self.settings.labels}


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over labels (those seen in truth or prediction) of the F1 score."""
    scores = []
    for label in np.union1d(labels, predicted):
        hits = np.sum((predicted == label) & (labels == label))
        scores.append(2 * hits / (np.sum(predicted == label) + np.sum(labels == label)))
    return float(np.mean(scores))


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation for any number of labels (Gorodkin 2004); 0 where truth or prediction is constant."""
    names = np.union1d(labels, predicted)
    truth, guess = (np.asarray(ids)[:, None] == names for ids in (labels, predicted))

    def covariance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sum((a - a.mean(axis=0)) * (b - b.mean(axis=0))))

    scale = covariance(truth, truth) * covariance(guess, guess)
    return covariance(truth, guess) / scale**0.5 if scale > 0 else 0.0
