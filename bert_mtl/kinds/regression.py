"""A number for a text (or pair): squared error of standardised values; rank and linear correlation."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from keras import ops
from scipy.stats import rankdata

from bert_mtl.kinds.head import DataError, DenseLayer, Head, HeadSettings, LayerContext, register_kind
from conf.errors import Problem

LARGEST = float(np.finfo(np.float32).max)


class RegressionSettings(HeadSettings):
    """Values below `minimum` or above `maximum` are refused as labels and never answered."""

    minimum: float | None = None
    maximum: float | None = None
    metric: Literal["spearman", "pearson"] = "spearman"

    def faults(self) -> list[tuple[str, str, object]]:
        if self.minimum is not None and self.maximum is not None and self.minimum >= self.maximum:
            return [("minimum", f"be below maximum, {self.maximum:g}", self.minimum)]
        return []


@register_kind("regression")
class Regression(Head):
    """Learns the standardised value (mean 0, deviation 1 over train), so that its loss starts near 1 whatever the unit;
    answers `(texts,)` are in the labels' own unit."""

    Settings = RegressionSettings
    settings: RegressionSettings
    label_dtype = "float32"

    @property
    def metric(self) -> str:
        return self.settings.metric

    @property
    def answer_shape(self) -> tuple[()]:
        return ()

    def encode(self, value: Any, origin: str) -> list[float]:
        least, most = self.settings.minimum, self.settings.maximum
        bounds = [f"at {name} {bound:g}" for name, bound in (("least", least), ("most", most)) if bound is not None]
        rule = "be a finite number" + (" of " if bounds else "") + " and ".join(bounds)
        low, high = -LARGEST if least is None else least, LARGEST if most is None else most
        return [real_number(self.name, value, origin, rule, low, high)]

    def count(self, labels: np.ndarray) -> dict[str, float]:
        """Labelled examples, and the sums of their values and of those squared."""
        known = labels[~np.isnan(labels)].astype(np.float64)
        return super().count(known) | {"sum": float(known.sum()), "squares": float(np.square(known).sum())}

    def describe(self, statistics: Mapping[str, float]) -> str:
        mean, deviation = moments(statistics)
        return f"examples {statistics['examples']:,.0f}, mean {mean:.4g}, deviation {deviation:.4g}"

    def make_layer(self, context: LayerContext) -> DenseLayer:
        return DenseLayer(context, 1)

    def losses(self, outputs: Any, labels: Any) -> Any:
        mean, deviation = moments(self.statistics)
        return ops.square(ops.squeeze(outputs, -1) - (labels - mean) / deviation)

    def answer(self, outputs: Any, labels: Any, inputs: Mapping[str, Any]) -> Any:
        mean, deviation = moments(self.statistics)
        values = mean + deviation * ops.squeeze(outputs, -1)
        if self.settings.minimum is not None:
            values = ops.maximum(values, self.settings.minimum)
        if self.settings.maximum is not None:
            values = ops.minimum(values, self.settings.maximum)
        return values

    def metrics(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Correlations, and the mean squared error in the labels' unit."""
        return {
            "pearson": pearson(answers, labels),
            "spearman": spearman(answers, labels),
            "mse": float(np.square(np.subtract(answers, labels, dtype=np.float64)).mean()),
        }

    def decode(self, answers: np.ndarray) -> list[dict]:
        """`{"value": number}` a text."""
        return [{"value": value} for value in answers.tolist()]

    def export(self) -> dict[str, Any]:
        return super().export() | {"minimum": self.settings.minimum, "maximum": self.settings.maximum}


def real_number(
    head: str, value: Any, origin: str, rule: str = "be a finite number", low: float = -LARGEST, high: float = LARGEST
) -> float:
    """The number that `value` is, or spells, from `low` to `high`.

    Raises:
        DataError: it breaks the `rule`.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if low <= number <= high:
        return number
    raise DataError(f"{origin}: {Problem(f'the label of head {head}', rule, value)}")


def moments(statistics: Mapping[str, float]) -> tuple[float, float]:
    """Mean and deviation of the values `Regression.count` has summed; deviation 1 where they are all the same (as
    exactly as float32 labels can differ), and 0 and 1 without any."""
    examples = statistics.get("examples", 0)
    if not examples:
        return 0.0, 1.0
    mean, square = statistics["sum"] / examples, statistics["squares"] / examples
    variance = square - mean**2
    return mean, math.sqrt(variance) if variance > 1e-12 * square else 1.0


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Linear correlation of two arrays `(items,)`; 0 where one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(np.asarray(a, np.float64), np.asarray(b, np.float64))[0, 1])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of ranks (equal values share their mean rank); 0 where one of them is constant."""
    return pearson(rankdata(a), rankdata(b))
