"""The training step as a graph, on one device or many, and what it is called with."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from bert_mtl.input_pipeline import Epoch, Pipeline
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.wire import Wire


def make_step(
    model: MultiTaskModel, pipeline: Pipeline, strategy: tf.distribute.Strategy, xla: bool
) -> Callable[[Sequence[Any]], None]:
    """What takes the steps of a call, one for each of its batches, of all replicas together; with `xla` compiled.

    A call looks up hundreds of variables in Python, which takes as long as a small step of a GPU: there all steps of it
    are in one graph, which calls the compiled step. Otherwise each has a call of its own, as TensorFlow would copy the
    step into that graph, and replicas that meet outside of XLA do so in the outermost graph alone.
    """
    wire, train_step = Wire(pipeline.signature), model.train_step if pipeline.replicas == 1 else _replica_step(model)

    def step(vector) -> None:
        train_step(wire.unpack(vector))

    if xla:
        once = tf.function(step, [wire.spec], autograph=False, jit_compile=True)

        def steps(vectors) -> None:
            for vector in vectors:
                once(vector)

        return tf.function(lambda vectors: strategy.run(steps, (vectors,)), autograph=False, reduce_retracing=True)
    alone = tf.function(lambda vector: strategy.run(step, (vector,)), autograph=False, reduce_retracing=True)

    def one_by_one(vectors) -> None:
        for vector in vectors:
            alone(vector)

    return one_by_one


def _replica_step(model: MultiTaskModel) -> Callable[[dict[str, Any]], None]:
    """What each of several replicas does. It meets the others twice: for a few totals, and for losses and gradients,
    whose sums all take the same step with."""

    def step(batch) -> None:
        context = tf.distribute.get_replica_context()
        totals = context.all_reduce(tf.distribute.ReduceOp.SUM, model.totals(batch))
        losses, gradients = model.contribution(batch, totals)
        losses, *gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, [losses, *gradients])
        model.update(losses, gradients, totals)

    return step


def arguments(
    pipeline: Pipeline, epoch: Epoch, skip: int, strategy: tf.distribute.Strategy, block: int
) -> Iterator[list[Any]]:
    """For every call, behind the first `skip` steps: the batches of at most `block` steps, on their devices."""
    wire, here = Wire(pipeline.signature), _replicas_here(strategy)
    batches = pipeline.batches(epoch, skip, here)
    steps = zip(*[batches] * len(here), strict=True)

    def placed(replicas: tuple[dict[str, Any], ...]) -> Any:
        vectors = []
        for device, batch in zip(strategy.extended.worker_devices, replicas, strict=True):
            with tf.device(device):
                vectors.append(tf.constant(wire.pack(batch)))
        return strategy.experimental_distribute_values_from_function(
            lambda context: vectors[context.replica_id_in_sync_group - here.start]
        )

    while taken := list(itertools.islice(steps, block)):
        yield [placed(replicas) for replicas in taken]


def _replicas_here(strategy: tf.distribute.Strategy) -> range:
    """The numbers of this worker's replicas among all."""
    count, first = len(strategy.extended.worker_devices), 0
    if strategy.cluster_resolver is not None:
        first = strategy.cluster_resolver.task_id * count
    return range(first, first + count)
