"""The training step as one graph, on one device or many, and what it is called with."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from bert_mtl.input_pipeline import Epoch, Pipeline
from bert_mtl.multitask import MultiTaskModel
from bert_mtl.optimization import split_as


def make_step(
    model: MultiTaskModel, pipeline: Pipeline, strategy: tf.distribute.Strategy, xla: bool, block: int
) -> Callable[..., None]:
    """`model.train_step` for what `arguments` gives, on several replicas as a step of all; with `xla` compiled."""
    if pipeline.replicas > 1:
        replica_step = _replica_step(model, xla)
        return tf.function(lambda batch: strategy.run(replica_step, (batch,)), autograph=False, reduce_retracing=True)
    signature: list[Any] = [pipeline.signature]
    if block > 1:
        stacked = {name: tf.TensorSpec((block, *spec.shape), spec.dtype) for name, spec in pipeline.signature.items()}
        signature = [stacked, tf.TensorSpec((), tf.int32)]
    function = model.train_step if block == 1 else _loop(model)
    step = tf.function(function, signature, autograph=False, jit_compile=xla)
    return lambda *values: strategy.run(step, values)


def _loop(model: MultiTaskModel) -> Callable[[dict[str, Any], Any], None]:
    """Several steps as one graph: a call looks up hundreds of variables, which takes as long as a small step."""

    def steps(batches, count) -> None:
        def one(number):
            model.train_step({name: values[number] for name, values in batches.items()})
            return number + 1

        tf.while_loop(lambda number: number < count, one, [0])

    return steps


def _replica_step(model: MultiTaskModel, xla: bool) -> Callable[[dict[str, Any]], None]:
    """What each of several replicas does. It meets the others twice: for a few totals, and for losses and gradients as
    one vector, whose sum all take the same step with. What lies between may be compiled: XLA leaves no graph."""
    vectors, losses_size = model.optimizer.momentums, 1 + len(model.heads)

    def contribution(batch, totals):
        losses, gradients = model.contribution(batch, totals)
        return tf.concat([losses, *(tf.reshape(gradient, (-1,)) for gradient in gradients)], axis=0)

    def update(flat, totals) -> None:
        model.update(flat[:losses_size], split_as(flat[losses_size:], vectors), totals)

    compiled = (lambda function: tf.function(function, autograph=False, jit_compile=True)) if xla else lambda f: f
    totals_of, contribution, update = map(compiled, (model.totals, contribution, update))

    def step(batch) -> None:
        context = tf.distribute.get_replica_context()
        totals = context.all_reduce(tf.distribute.ReduceOp.SUM, totals_of(batch))
        update(context.all_reduce(tf.distribute.ReduceOp.SUM, contribution(batch, totals)), totals)

    return step


def arguments(
    pipeline: Pipeline, epoch: Epoch, skip: int, strategy: tf.distribute.Strategy, block: int
) -> Iterator[tuple[int, tuple]]:
    """For every call, behind the first `skip` steps: how many steps it takes, and what it is called with."""
    here = _replicas_here(strategy)
    batches = pipeline.batches(epoch, skip, here)
    if pipeline.replicas > 1:
        for replicas in zip(*[batches] * len(here), strict=True):
            tensors = dict(zip(here, map(_tensors, replicas), strict=True))
            each = strategy.experimental_distribute_values_from_function(
                lambda context, own=tensors: own[context.replica_id_in_sync_group]
            )
            yield 1, (each,)
    elif block == 1:
        for batch in batches:
            yield 1, (_tensors(batch),)
    else:
        while taken := list(itertools.islice(batches, block)):
            filled = taken + taken[-1:] * (block - len(taken))
            stacked = {name: np.stack([batch[name] for batch in filled]) for name in taken[0]}
            yield len(taken), (_tensors(stacked), tf.constant(len(taken), tf.int32))


def _replicas_here(strategy: tf.distribute.Strategy) -> range:
    """The numbers of this worker's replicas among all."""
    count, first = len(strategy.extended.worker_devices), 0
    if strategy.cluster_resolver is not None:
        first = strategy.cluster_resolver.task_id * count
    return range(first, first + count)


def _tensors(batch: dict[str, Any]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(array) for name, array in batch.items()}
