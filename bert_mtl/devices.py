"""Where the work runs: a tf.distribute strategy, whether XLA compiles the step, and repeatable arithmetic."""

import keras
import tensorflow as tf

from bert_mtl.config import StrategyConfig
from conf.errors import ConfigError, Problem


def make_strategy(config: StrategyConfig) -> tf.distribute.Strategy:
    """The strategy of a configuration; `auto` mirrors over several GPUs and else takes the one GPU or the CPU.

    Raises:
        ConfigError: a device that is not there.
    """
    there = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    gpus = [name for name in there if name.startswith("GPU")]
    wanted = config.devices or gpus or ["CPU:0"]
    if missing := [name for name in wanted if name not in there]:
        raise ConfigError([Problem("strategy.devices", "name devices of this machine", missing[0], there)])
    if config.kind == "mirrored" and len(wanted) < 2:
        raise ConfigError([Problem("strategy", "have at least two devices to be mirrored", wanted)])
    if config.kind == "mirrored" or (config.kind == "auto" and len(wanted) > 1):
        return tf.distribute.MirroredStrategy([f"/{name}" for name in wanted])
    return tf.distribute.OneDeviceStrategy(f"/{wanted[0]}")


def use_xla(config: StrategyConfig, strategy: tf.distribute.Strategy) -> bool:
    """Whether the training step is compiled by XLA: as configured; `auto` compiles on GPUs."""
    if config.xla == "auto":
        return "GPU" in strategy.extended.worker_devices[0]
    return config.xla


def make_repeatable(seed: int) -> None:
    """The same seed gives the same numbers; on CPUs to the last digit (on GPUs that would cost much of the speed)."""
    keras.utils.set_random_seed(seed)
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()
