"""AdamW, its learning rate over time, and the moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
from keras import ops

from bert_mtl.config import OptimizerConfig

NO_DECAY = ("bias", "gamma", "beta")  # biases and LayerNorm (Devlin et al. 2019)


class WarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to `peak` over `warmup_steps`, then falls linearly to 0 at `total_steps`."""

    def __init__(self, peak: float, warmup_steps: int, total_steps: int):
        self.peak, self.warmup_steps, self.total_steps = peak, warmup_steps, total_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rise = (step + 1) / max(self.warmup_steps, 1)
        fall = (self.total_steps - step) / max(self.total_steps - self.warmup_steps, 1)
        return self.peak * ops.clip(ops.minimum(rise, fall), 0.0, 1.0)

    def get_config(self) -> dict:
        return {"peak": self.peak, "warmup_steps": self.warmup_steps, "total_steps": self.total_steps}


def make_optimizer(config: OptimizerConfig, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of a run of `steps` batches; its schedule counts batches, also where several make one update."""
    schedule = WarmupLinearDecay(config.learning_rate, round(config.warmup_fraction * steps), steps)
    optimizer = keras.optimizers.AdamW(
        schedule,
        weight_decay=config.weight_decay,
        epsilon=1e-8,
        global_clipnorm=config.clip_norm,
        gradient_accumulation_steps=config.accumulate if config.accumulate > 1 else None,
        use_ema=config.ema is not None,
        ema_momentum=config.ema or 0.99,
    )
    optimizer.exclude_from_weight_decay(var_names=list(NO_DECAY))
    return optimizer


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
