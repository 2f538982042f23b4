"""AdamW, its learning rate over time and from layer to layer, and the moving average of the weights."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import keras
import tensorflow as tf
from keras import ops

from bert_mtl.adapters import is_own
from bert_mtl.config import OptimizerConfig

NO_DECAY = ("bias", "gamma", "beta")  # biases and LayerNorm (Devlin et al. 2019)


class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
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

    def get_config(self) -> dict:
        values = [float(value) for value in ops.convert_to_numpy(self.place)]
        return {key: getattr(self, key) for key in ("peak", "warmup_fraction", "epochs")} | {"steps": values[2]}


class AdamW(keras.optimizers.Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) and a learning rate of each variable's own.

    Args:
        learning_rate: a number or a schedule, kept as `schedule`.
        config: the decay, and what `rate_factor` and Adam's keyword arguments follow from.
        num_layers: of the encoder.
    """

    def __init__(self, learning_rate, config: OptimizerConfig, num_layers: int):
        super().__init__(
            learning_rate,
            epsilon=1e-8,
            global_clipnorm=config.clip_norm,
            gradient_accumulation_steps=config.accumulate if config.accumulate > 1 else None,
            use_ema=config.ema is not None,
            ema_momentum=config.ema or 0.99,
        )
        self.schedule, self.config, self.num_layers = learning_rate, config, num_layers

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the moments of `variables`, and fixes each one's rate and decay by its path."""
        if self.built:
            return
        super().build(variables)
        self.factors = tuple(rate_factor(variable.path, self.num_layers, self.config) for variable in variables)
        self.decays = tuple(self.config.weight_decay if decays(variable.path) else 0.0 for variable in variables)

    def update_step(self, gradient, variable, learning_rate) -> None:
        """Decays `variable`, then takes Adam's step, both at its own rate.

        TensorFlow's kernel does in one pass over the weights what Keras does in a dozen.
        """
        # Under MirroredStrategy this is the variable of one replica, no Keras variable: only its place is known.
        place = self._get_variable_index(variable)
        rate = ops.cast(learning_rate, variable.dtype) * self.factors[place]
        if self.decays[place]:
            self.assign_sub(variable, ops.multiply(variable, rate * self.decays[place]))
        step = ops.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[place].value.handle,
            v=self._velocities[place].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


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
    optimizer = model.optimizer
    if not optimizer.use_ema:
        yield
        return
    averages = optimizer._model_variables_moving_average
    kept = [ops.convert_to_numpy(variable) for variable in optimizer._trainable_variables]
    for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
        variable.assign(average)
    try:
        yield
    finally:
        for variable, value in zip(optimizer._trainable_variables, kept, strict=True):
            variable.assign(value)
