"""The training step as one graph, on one device or many, and what it is called with."""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from bert_mtl.input_pipeline import Epoch, Pipeline
from bert_mtl.multitask import MultiTaskModel


def make_step(
    model: MultiTaskModel, pipeline: Pipeline, strategy: tf.distribute.Strategy, xla: bool
) -> Callable[[dict[str, Any]], None]:
    """`model.train_step` for batches of `pipeline`, on several replicas as a step of all; with `xla` compiled."""
    if pipeline.replicas == 1:
        step = tf.function(model.train_step, [pipeline.signature], autograph=False, jit_compile=xla)
        return lambda batch: strategy.run(step, (batch,))
    replica_step = _replica_step(model, xla)
    return tf.function(lambda batch: strategy.run(replica_step, (batch,)), autograph=False, reduce_retracing=True)


def _replica_step(model: MultiTaskModel, xla: bool) -> Callable[[dict[str, Any]], None]:
    """What each of several replicas does. It meets the others twice: for a few totals, and for losses and gradients as
    one vector, whose sum all take the same step with. What lies between may be compiled: XLA leaves no graph."""
    variables = [*model.encoder.trainable_variables, *model.head_variables]
    sizes = [1 + len(model.heads), *(variable.shape.num_elements() for variable in variables)]

    def contribution(batch, totals):
        losses, gradients = model.contribution(batch, totals)
        return tf.concat([losses, *(tf.reshape(gradient, (-1,)) for gradient in gradients)], axis=0)

    def update(flat, totals) -> None:
        losses, *parts = tf.split(flat, sizes)
        gradients = [tf.reshape(part, variable.shape) for part, variable in zip(parts, variables, strict=True)]
        model.update(losses, gradients, totals)

    compiled = (lambda function: tf.function(function, autograph=False, jit_compile=True)) if xla else lambda f: f
    totals_of, contribution, update = map(compiled, (model.totals, contribution, update))

    def step(batch) -> None:
        context = tf.distribute.get_replica_context()
        totals = context.all_reduce(tf.distribute.ReduceOp.SUM, totals_of(batch))
        update(context.all_reduce(tf.distribute.ReduceOp.SUM, contribution(batch, totals)), totals)

    return step


def arguments(
    pipeline: Pipeline, epoch: Epoch, skip: int, strategy: tf.distribute.Strategy
) -> Iterator[dict[str, Any]]:
    """What the step is called with, step by step behind the first `skip`: the batch, or on several replicas each one's
    own."""
    batches = pipeline.batches(epoch, skip)
    for replicas in zip(*[batches] * pipeline.replicas, strict=True):
        tensors = [{name: tf.constant(array) for name, array in batch.items()} for batch in replicas]
        if len(tensors) == 1:
            yield tensors[0]
        else:
            yield strategy.experimental_distribute_values_from_function(
                lambda context, own=tensors: own[context.replica_id_in_sync_group]
            )
