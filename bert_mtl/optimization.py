"""AdamW, its learning rate over time and from layer to layer, and the moving average of the weights."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from bert_mtl.adapters import is_own
from bert_mtl.config import OptimizerConfig
from bert_mtl.weighting import norm

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
NO_DECAY = ("bias", "gamma", "beta")  # biases and LayerNorm (Devlin et al. 2019)


class WarmupLinearDecay:
    """Rises linearly to `peak` over the first `warmup_fraction` of a training, then falls linearly to 0 at its end.

    Every epoch is the same part of the training, however many steps it has: mixtures that change make epochs unlike.

    Args:
        epochs: of the training.
        steps: of the first epoch.
    """

    def __init__(self, peak: float, warmup_fraction: float, epochs: int, steps: int):
        self.peak, self.warmup_fraction, self.epochs = peak, warmup_fraction, epochs
        self.place = keras.Variable([0.0, 0.0, steps], trainable=False, dtype="float32", name="place")

    def begin(self, epoch: int, step: int, steps: int) -> None:
        """Epoch number `epoch` (from 0) begins at `step` of the training and has so many `steps`."""
        self.place.assign([epoch, step, steps])

    def __call__(self, step):
        epoch, begin, steps = ops.unstack(ops.convert_to_tensor(self.place))
        done = (epoch + (ops.cast(step, "float32") - begin) / steps) / self.epochs
        rise = (done + 1 / (steps * self.epochs)) / max(self.warmup_fraction, 1e-9)
        return self.peak * ops.clip(ops.minimum(rise, (1 - done) / (1 - self.warmup_fraction)), 0.0, 1.0)


class Group(NamedTuple):
    """Variables that learn alike, by their `places` among all: the rate's factor, and how fast they decay."""

    places: tuple[int, ...]
    factor: float
    decay: float


class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) and a learning rate of each variable's own.

    Gradients are those of all replicas, so that a replica's step needs no other one and XLA can compile it: Keras' own
    optimizers leave a graph to meet the other replicas. Where XLA compiles it, all variables that learn alike are one
    long vector to the optimizer (`joined`): a few kernels take the step instead of some for every variable.

    Args:
        schedule: the learning rate by the number of batches before.
        config: the decay, and what `rate_factor` and all else follow from.
        num_layers: of the encoder.
    """

    def __init__(self, schedule: Callable[[Any], Any], config: OptimizerConfig, num_layers: int):
        self.schedule, self.config, self.num_layers = schedule, config, num_layers
        self.trained: list[keras.Variable] = []
        self.groups: list[Group] = []
        self.averages: list[keras.Variable] = []  # moving ones of `trained`, where `config.ema` is given

    @property
    def variables(self) -> list[keras.Variable]:
        """All that it remembers."""
        counts, moments = [self.batches, self.steps], [*self.momentums, *self.velocities]
        return [*counts, *moments, *self.averages, *self.sums]

    @property
    def learning_rate(self):
        """Of the next batch."""
        return self.schedule(self.batches)

    def build(self, variables: Sequence[keras.Variable], together: bool = False) -> None:
        """Creates the moments of `variables`, and fixes each one's rate and decay by its path; `together` joins those
        that learn alike."""

        def beside(name: str, shape: Sequence[int], value: Any = "zeros") -> keras.Variable:
            return keras.Variable(value, shape=tuple(shape), dtype="float32", trainable=False, name=name)

        config, self.trained = self.config, list(variables)
        # TensorFlow keeps variables of int32 in the memory of the host, where a step compiled for a GPU finds none.
        self.batches, self.steps = (
            keras.Variable(0, dtype="int64", trainable=False, name=name) for name in ("batches", "steps")
        )
        places: dict[Any, list[int]] = {}
        for place, variable in enumerate(variables):
            rate = rate_factor(variable.path, self.num_layers, config)
            alike = (rate, config.weight_decay if decays(variable.path) else 0.0)
            places.setdefault((*alike, None if together else place), []).append(place)
        self.groups = [Group(tuple(found), *alike) for (*alike, _), found in places.items()]
        shapes = [self._shape(group) for group in self.groups]
        self.momentums = [beside("momentum", shape) for shape in shapes]
        self.velocities = [beside("velocity", shape) for shape in shapes]
        self.sums = [beside("sum", shape) for shape in shapes] if config.accumulate > 1 else []
        if config.ema is not None:
            self.averages = [beside("average", variable.shape) for variable in variables]

    def _shape(self, group: Group) -> tuple[int, ...]:
        sizes = [math.prod(self.trained[place].shape) for place in group.places]
        return tuple(self.trained[group.places[0]].shape) if len(sizes) == 1 else (sum(sizes),)

    def joined(self, gradients: Sequence[Any]) -> list:
        """The gradients of all variables as those of the groups: a vector for several, as it is for one."""
        return [
            gradients[group.places[0]]
            if len(group.places) == 1
            else ops.concatenate([ops.reshape(gradients[place], (-1,)) for place in group.places])
            for group in self.groups
        ]

    def apply(self, gradients: Sequence[Any]) -> None:
        """Takes a step with `joined` gradients, or, where several batches make one, adds them to those of the batches
        before."""
        rate = self.learning_rate
        self.batches.assign(self.batches + 1)
        if not self.sums:
            self._step(gradients, rate)
            return
        for total, gradient in zip(self.sums, gradients, strict=True):
            total.assign(total + gradient)

        def step() -> None:
            self._step([total / self.config.accumulate for total in self.sums], rate)
            for total in self.sums:
                total.assign(ops.zeros_like(total))

        tf.cond(ops.equal(self.batches % self.config.accumulate, 0), step, lambda: None)

    def _step(self, gradients: Sequence[Any], learning_rate) -> None:
        """Decays the variables, then takes Adam's step, both at each one's own rate."""
        if self.config.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(list(gradients), self.config.clip_norm, use_norm=norm(gradients))
        self.steps.assign(self.steps + 1)
        step = ops.cast(self.steps, "float32")
        for number, (group, gradient) in enumerate(zip(self.groups, gradients, strict=True)):
            rate = ops.cast(learning_rate, "float32") * group.factor
            moments = self.momentums[number], self.velocities[number]
            variables = [self.trained[place] for place in group.places]
            if len(variables) == 1:
                _adam(variables[0], moments, gradient, rate, group.decay, step)
            else:
                _adam_of_many(variables, moments, gradient, rate, group.decay, step)
        if self.averages:
            kept = ops.where(self.steps > 1, self.config.ema, 0.0)
            for average, variable in zip(self.averages, self.trained, strict=True):
                average.assign(kept * average + (1 - kept) * variable)


Moments = tuple[keras.Variable, keras.Variable]  # momentum and velocity


def _adam(variable: keras.Variable, moments: Moments, gradient: Any, rate: Any, decay: float, step: Any) -> None:
    """TensorFlow's kernel does in one pass over the weights what Keras does in a dozen."""
    if decay:
        variable.assign(variable * (1.0 - rate * decay))
    tf.raw_ops.ResourceApplyAdam(
        var=variable.value.handle,
        m=moments[0].value.handle,
        v=moments[1].value.handle,
        beta1_power=BETA_1**step,
        beta2_power=BETA_2**step,
        lr=rate,
        beta1=BETA_1,
        beta2=BETA_2,
        epsilon=EPSILON,
        grad=gradient,
    )


def _adam_of_many(
    variables: Sequence[keras.Variable], moments: Moments, gradient: Any, rate: Any, decay: float, step: Any
) -> None:
    """The arithmetic of that kernel on one vector; XLA makes it a pass over the weights too."""
    momentum, velocity = moments
    momentum.assign(BETA_1 * momentum + (1 - BETA_1) * gradient)
    velocity.assign(BETA_2 * velocity + (1 - BETA_2) * ops.square(gradient))
    corrected = rate * ops.sqrt(1 - BETA_2**step) / (1 - BETA_1**step)
    updates = corrected * momentum / (ops.sqrt(velocity) + EPSILON)
    for variable, update in zip(variables, split_as(updates, variables), strict=True):
        variable.assign(variable * (1.0 - rate * decay) - update)


def split_as(vector: Any, like: Sequence[Any]) -> list:
    """A vector's parts, of the shapes of variables or tensors."""
    parts = tf.split(vector, [math.prod(each.shape) for each in like])
    return [ops.reshape(part, each.shape) for part, each in zip(parts, like, strict=True)]


def rate_factor(path: str, num_layers: int, config: OptimizerConfig) -> float:
    """What the learning rate is multiplied by for the variable at `path`.

    Pretrained layers: `layer_decay` to the power of the layers above them, so 1 for the top one and
    `layer_decay ** num_layers` for the embeddings (Sun et al. 2019); the pooler: 1. What is new (heads, adapters, the
    task embedding, a loss weighting) learns at `head_learning_rate`.
    """
    pretrained = re.match(r"encoder/(embeddings|pooler|layer_(\d+))/", path)
    if pretrained is None or is_own(path):
        return (config.head_learning_rate or config.learning_rate) / config.learning_rate
    block, layer = pretrained.groups()
    if config.layer_decay is None or block == "pooler":
        return 1.0
    return config.layer_decay ** (num_layers - 1 - int(layer) if layer else num_layers)


def decays(path: str) -> bool:
    """Whether weight decay acts on the variable at `path`: not on biases, LayerNorms and a loss weighting."""
    return not any(word in path.rsplit("/", 1)[-1] for word in NO_DECAY) and "weighting" not in path


def make_optimizer(config: OptimizerConfig, epochs: int, steps: int, num_layers: int) -> AdamW:
    """The optimizer of a run whose first epoch has `steps` batches; its schedule counts batches, also where several
    make one update."""
    schedule = WarmupLinearDecay(config.learning_rate, config.warmup_fraction, epochs, steps)
    return AdamW(schedule, config, num_layers)


@contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Inside, the model holds the moving average of its weights where the optimizer keeps one."""
    optimizer: AdamW = model.optimizer
    averaged = optimizer.trained if optimizer.averages else []
    kept = [ops.convert_to_numpy(variable) for variable in averaged]
    for variable, average in zip(averaged, optimizer.averages, strict=True):
        variable.assign(average)
    try:
        yield
    finally:
        for variable, value in zip(averaged, kept, strict=True):
            variable.assign(value)
