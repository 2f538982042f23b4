"""What a kind of head is: raw label in, what the model learns, metrics and readable answers out; and their registry.

A kind is one subclass of `Head`, registered under the name that `heads.<head>.kind` of a task's YAML gives.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from keras import layers, ops
from pydantic import PositiveFloat, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from bert_mtl.dropout import Dropout
from bert_mtl.errors import DataError
from bert_mtl.labels import LabelSpec
from conf.errors import Problem, Schema


class HeadSettings(Schema):
    """The keys below `heads.<head>` that every kind has; `layer_keys` are those that its layer follows from, which must
    be alike where heads share one. A head that is not `labelled` learns what teachers of the one say whose layer it
    shares."""

    layer_keys: ClassVar[tuple[str, ...]] = ()
    kind: str
    weight: PositiveFloat = 1.0
    share_head: str | None = None
    labelled: bool = True

    def faults(self) -> list[tuple[str, str, object]]:
        """Combinations that cannot work: (key, rule, value) each."""
        return []


class LayerContext(NamedTuple):
    """What a head's layer is made from: width of the states, dropout, its seed, its name, the encoder's word embeddings
    `(vocab_size, hidden_dim)` (for output layers tied to them), its dtype policy (for large products), and whether the
    head must leave the word embeddings as they are."""

    hidden_dim: int
    dropout: float
    seed: int
    name: str
    word_embeddings: Any
    dtype: Any = None
    frozen_words: bool = False


class Head:
    """One question about a text. A kind overrides what differs.

    Class attributes:
        kind: the name it is registered under.
        Settings: the schema of `heads.<head>`.
        level: what has an answer: each `text`, each `token` (labelled at the first wordpiece of each word), or each
            masked place (`mask`).
        label_dtype: of stored labels, `int32` (missing ones are -1) or `float32` (NaN).
        metric: the metric by which epochs are compared; higher is better.
        needs_label: whether an example without a label is left out of the loss.
        separate: the texts of a pair are segments of their own (a single text is read twice).
    """

    kind: ClassVar[str]
    Settings: ClassVar[type[HeadSettings]] = HeadSettings
    level: ClassVar[Literal["text", "token", "mask"]] = "text"
    label_dtype: ClassVar[Literal["int32", "float32"]] = "int32"
    needs_label: bool = True
    separate: ClassVar[bool] = False

    def __init__(self, name: str, settings: Any, statistics: Mapping[str, float] | None = None):
        self.name = name
        self.settings = settings
        self.statistics = dict(statistics or {})  # of the train part, see `count`
        self.tuned: dict[str, Any] = {}  # what `tune` found on dev
        self.layer: Any = None  # the model gives it

    # ---- data ----
    @property
    def metric(self) -> str:
        raise NotImplementedError

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of one stored label (of one token's, where the level is `token`)."""
        return ()

    @property
    def label_size(self) -> int:
        """How many numbers one stored label has."""
        return math.prod(self.label_shape)

    @property
    def answer_shape(self) -> tuple[int, ...] | None:
        """Shape of an item's answer where the kind can learn from those of teachers, else None."""
        return None

    def label_spec(self, task: int) -> LabelSpec:
        """What records and batches of task number `task` know of the head."""
        rate = getattr(self.settings, "rate", 0.0)
        return LabelSpec(self.name, task, self.level, self.label_dtype, self.label_shape, self.needs_label, rate)

    def encode(self, value: Any, origin: str) -> list:
        """The label of a raw `value` read at `origin` as a flat list of numbers (of `token` heads: one a word).

        Raises:
            DataError: it is no label of this head.
        """
        raise NotImplementedError

    @property
    def stored_as(self) -> tuple:
        """All that stored labels depend on: where it changes, records are built again."""
        return self.name, self.kind, self.label_shape, getattr(self.settings, "labels", None)

    def stratum(self, label: list) -> int:
        """Which group the example belongs to where parts are split with equal shares of labels."""
        return 0

    def count(self, labels: np.ndarray) -> dict[str, float]:
        """Statistics of stored labels `(items, *label_shape)`, missing ones left out where the head needs labels; those
        of two sets of examples add up by key."""
        known = labels >= 0 if labels.dtype.kind == "i" else ~np.isnan(labels)
        known = known.all(axis=tuple(range(1, known.ndim))) | (not self.needs_label)
        return {"examples": float(known.sum())}

    def describe(self, statistics: Mapping[str, float]) -> str:
        """Statistics as the log shows them."""
        return ", ".join(f"{key} {value:,.0f}" for key, value in statistics.items())

    # ---- model ----
    def make_layer(self, context: LayerContext) -> layers.Layer:
        """The layer from vectors `(texts, hidden_dim)` (`token`: states `(rows, length, hidden_dim)`; `mask`: states
        `(places, hidden_dim)`) to outputs; float32."""
        raise NotImplementedError

    def losses(self, outputs: Any, labels: Any) -> Any:
        """Loss of every item: outputs `(…, n)` and labels `(…, *label_shape)` to `(…)`; no NaN where a label is 0."""
        raise NotImplementedError

    def loss(self, outputs: Any, labels: Any, weights: Any, inputs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Sum of the losses of items by weight, and the sum of those weights, both scalars. Items of weight 0 (other
        tasks' examples, padding, missing labels) neither add to it nor get a gradient."""
        return _weighed(self.losses, outputs, labels, weights)

    def total_weight(self, labels: Any, weights: Any, inputs: Mapping[str, Any]) -> Any:
        """The second number of `loss`, without outputs: replicas must know of each other's before they compute."""
        return ops.sum(weights)

    def teacher_losses(self, outputs: Any, answers: Any) -> Any:
        """As `losses`, against what teachers answered `(…, *answer_shape)`."""
        return self.losses(outputs, answers)

    def teacher_loss(self, outputs: Any, answers: Any, weights: Any) -> tuple[Any, Any]:
        """As `loss`, against what teachers answered."""
        return _weighed(self.teacher_losses, outputs, answers, weights)

    def answer(self, outputs: Any, labels: Any, inputs: Mapping[str, Any]) -> Any:
        """What metrics, answers and exports are made of, from outputs, in the graph: probabilities, say."""
        return outputs

    # ---- answers, in NumPy ----
    def metrics(self, answers: Any, labels: Any) -> dict[str, float]:
        """Metrics of labelled items: arrays `(items, …)`; of `token` heads lists of an array `(words, …)` a text."""
        raise NotImplementedError

    def tune(self, answers: Any, labels: Any) -> dict[str, Any]:
        """What is chosen on the dev part, kept with the run as `tuned` and exported with it."""
        return {}

    def decode(self, answers: Any) -> list[Any]:
        """One readable answer an item (`token`: a text, see `Tagging`)."""
        raise NotImplementedError

    def export(self) -> dict[str, Any]:
        """What a bundle's manifest says of the head, for servers without this package."""
        return {"kind": self.kind, "tuned": self.tuned}


def _weighed(losses: Callable, outputs: Any, labels: Any, weights: Any) -> tuple[Any, Any]:
    """The sum of `losses` of items by weight, and that of the weights; labels of weight 0 are taken for 0."""
    known = ops.reshape(weights > 0, (*ops.shape(weights), *[1] * (len(labels.shape) - len(weights.shape))))
    safe = ops.where(known, labels, ops.zeros_like(labels))
    return ops.sum(losses(outputs, safe) * weights), ops.sum(weights)


KINDS: dict[str, type[Head]] = {}
H = TypeVar("H", bound=type[Head])


def register_kind(name: str) -> Callable[[H], H]:
    """Class decorator that makes a subclass of `Head` known as `kind: <name>`; a later one of that name replaces it."""

    def register(kind: H) -> H:
        kind.kind = name
        KINDS[name] = kind
        return kind

    return register


def head_settings(raw: Any) -> HeadSettings:
    """The validated settings of a section `heads.<head>`, by its kind. Raises ValueError where they are not valid."""
    if isinstance(raw, HeadSettings):
        return raw
    if not isinstance(raw, Mapping):
        raise ValueError("be a section of keys")
    kind = raw.get("kind")
    if kind not in KINDS:
        wrong = "unknown_kind" if "kind" in raw else "missing"
        unknown = PydanticCustomError(wrong, "be one of the options", {"options": list(KINDS)})
        fault = InitErrorDetails(type=unknown, loc=("kind",), input=kind)
        raise ValidationError.from_exception_data("head", [fault])
    return KINDS[kind].Settings.model_validate(dict(raw))


def make_head(name: str, settings: HeadSettings, statistics: Mapping[str, float] | None = None) -> Head:
    """The head of validated settings; `statistics` are those of its train part (see `Head.count`)."""
    return KINDS[settings.kind](name, settings, statistics)


def label_id(head: str, value: Any, labels: Sequence[str], origin: str) -> int:
    """The id of a label given by its name, or by the whole number that is its place in `labels`.

    Raises:
        DataError: it is neither.
    """
    if str(value) in labels:
        return list(labels).index(str(value))
    if str(value).isdecimal() and int(value) < len(labels):
        return int(value)
    raise DataError(f"{origin}: {Problem(f'the label of head {head}', 'be listed', value, tuple(labels))}")


def dense(units: int, name: str = "logits") -> layers.Dense:
    """A float32 dense layer with BERT's initial weights."""
    return layers.Dense(units, kernel_initializer=initializer(), dtype="float32", name=name)


def initializer() -> Any:
    """BERT's own initial weights; a fresh object for each variable, because one repeats its numbers."""
    import keras

    return keras.initializers.TruncatedNormal(stddev=0.02)


class DenseLayer(layers.Layer):
    """Dropout and a dense layer, in float32: states `(…, hidden_dim)` to `(…, units)`; the bias starts at `bias`."""

    def __init__(self, context: LayerContext, units: int, bias: np.ndarray | float = 0.0):
        super().__init__(name=context.name, dtype="float32")
        self.hidden_dim = context.hidden_dim
        self.dropout = Dropout(context.dropout, seed=context.seed, dtype="float32")
        self.dense = dense(units)
        self.build()
        self.dense.bias.assign(np.broadcast_to(bias, (units,)))

    def build(self, input_shape: Any = None) -> None:
        self.dense.build((None, self.hidden_dim))

    def call(self, states: Any, training: bool = False) -> Any:
        return self.dense(self.dropout(states, training=training))
