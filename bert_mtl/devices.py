"""Where the work runs: a tf.distribute strategy, whether XLA compiles the step, and repeatable arithmetic."""

import functools
import logging
import os
import signal
import threading

import keras
import tensorflow as tf

from bert_mtl.cluster import find_cluster
from bert_mtl.config import StrategyConfig
from bert_mtl.rendezvous import meet
from conf.errors import ConfigError, Problem

log = logging.getLogger(__name__)


def make_strategy(config: StrategyConfig) -> tf.distribute.Strategy:
    """The strategy of a configuration; `auto` mirrors over several GPUs and else takes the one GPU or the CPU.

    With `multi_worker` nothing may have used TensorFlow before.

    Raises:
        ConfigError: a device or a worker that is not there.
    """
    if config.kind == "multi_worker":
        return _multi_worker(config)
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


def _multi_worker(config: StrategyConfig) -> tf.distribute.Strategy:
    """One replica for each GPU of each worker, or for each worker's CPU."""
    cluster = find_cluster(config, os.environ)
    meet(cluster, config.timeout)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.rank,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},  # logical ones would start TensorFlow
        rpc_layer="grpc",
    )
    tf.get_logger().setLevel("WARNING")  # it tells of every sum that it plans
    automatic = tf.distribute.experimental.CommunicationImplementation.AUTO  # NCCL between GPUs, rings between CPUs
    options = tf.distribute.experimental.CommunicationOptions(implementation=automatic)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver, options)
    if threading.current_thread() is threading.main_thread():
        # TensorFlow takes SIGTERM as a mere notice; it is how SLURM and Kubernetes end a process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return strategy


def use_xla(config: StrategyConfig, strategy: tf.distribute.Strategy) -> bool:
    """Whether the training step is compiled by XLA: as configured; `auto` compiles on GPUs.

    Raises:
        ConfigError: it should be, where several CPUs share the step.
    """
    on_gpus = "GPU" in strategy.extended.worker_devices[0]
    if config.xla == "auto":
        return on_gpus
    if config.xla and strategy.num_replicas_in_sync > 1 and not on_gpus:
        rule = "be false or auto where several CPUs share a step: XLA sums between GPUs alone"
        raise ConfigError([Problem("strategy.xla", rule, True)])
    return config.xla


@functools.cache  # TensorFlow takes it once a process
def take_share(place: int, processes: int) -> None:
    """Gives this process, the one at `place` of so many beside each other, its share of the cores and one GPU.

    Processes beyond the number of GPUs share one, whose memory each then takes as it needs it.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        own = gpus[place % len(gpus)]
        tf.config.set_visible_devices([own], "GPU")
        if processes > len(gpus):
            tf.config.experimental.set_memory_growth(own, True)
    where = f" and GPU {place % len(gpus)} of {len(gpus)}" if gpus else ""
    log.info("beside %d other processes: %d threads%s", processes - 1, threads, where)


def make_repeatable(seed: int) -> None:
    """The same seed gives the same numbers; on CPUs to the last digit (on GPUs that would cost much of the speed)."""
    keras.utils.set_random_seed(seed)
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()
