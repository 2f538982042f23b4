"""The Keras model: one encoder, a layer for every head, batches of `bert_mtl.batches` in; and its training step."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from bert_mtl.adapters import frozen_blocks
from bert_mtl.batches import INPUTS
from bert_mtl.config import ModelConfig
from bert_mtl.encoder import BertEncoder
from bert_mtl.exits import Exit, depth_weights, exit_name
from bert_mtl.kinds import Head
from bert_mtl.kinds.head import LayerContext
from bert_mtl.pooling import mean_states, states_at
from bert_mtl.r_drop import divergence, twice
from bert_mtl.tasks import Task
from bert_mtl.taught import taught
from bert_mtl.weighting import Weighting, norm


class MultiTaskModel(keras.Model):
    """Heads over one encoder.

    Args:
        encoder: the shared encoder.
        heads: by full name; each has its layer.
        pooling: what a text head sees of a segment: `mean` of its token states, or `cls` (BERT's pooled_output).
        frozen: for each task, how many of the encoder's lowest blocks its examples leave unchanged.
        exits: by ascending depth; all heads answer there too.
    """

    def __init__(
        self,
        encoder: BertEncoder,
        heads: dict[str, Head],
        pooling: str,
        frozen: Sequence[int] | None = None,
        exits: Sequence[Exit] = (),
        **kwargs,
    ):
        super().__init__(dtype=encoder.dtype_policy, **kwargs)
        self.encoder: BertEncoder = encoder
        self.heads = heads
        self.head_layers = {name: head.layer for name, head in heads.items() if head.settings.share_head is None}
        self.exits = list(exits)
        self.pooling = pooling
        self.frozen = tuple(frozen) if frozen and any(frozen) else None
        self.weighting: Weighting  # a training sets it
        self.teachers_weight = 0.0  # and this: the share of a loss that follows teachers, where there are any
        self.r_drop = 0.0  # and this: the weight of what draws two readings of a batch together
        self.loss_means = [keras.metrics.Mean(name) for name in ("loss", *(f"{head}_loss" for head in heads))]
        self.watch = Watch(2 + len(heads))
        self.answerers: dict[tuple, Any] = {}
        self.built = True  # every variable exists already

    def call(self, inputs, training=False, heads: Sequence[str] | None = None):
        """Outputs of the named heads (of all) for the arrays of `batches.assemble`."""
        states = self.encoder(self.encoder_inputs(inputs), training=training, frozen=self.frozen)
        return self.outputs_at(self.depths[-1], states, inputs, training=training, heads=heads)

    @property
    def depths(self) -> list[int]:
        """After how many layers heads answer: at the exits, and last, behind all layers."""
        return [*(exit.depth for exit in self.exits), self.encoder.config.num_layers]

    def name_at(self, head: str, depth: int) -> str:
        """What a head is called at one of `depths`: as ever behind all layers, else by `exit_name`."""
        return head if depth == self.depths[-1] else exit_name(head, depth)

    def exit_outputs(self, inputs, training=False, heads: Sequence[str] | None = None) -> dict[int, dict[str, Any]]:
        """By each of `depths`, the outputs of the named heads (of all) there; the encoder runs once."""
        states = self.encoder.hidden_states(self.encoder_inputs(inputs), training=training, frozen=self.frozen)
        return {
            depth: self.outputs_at(depth, states[depth], inputs, training=training, heads=heads)
            for depth in self.depths
        }

    def outputs_at(self, depth: int, states, inputs, training=False, heads: Sequence[str] | None = None):
        """Outputs of the named heads (of all) at one of `depths`, from states `(rows, length, hidden_dim)` there."""
        for exit in self.exits:
            if exit.depth == depth:
                outputs = exit(self._gathered(states, inputs), inputs["task"], training=training)
                return {name: outputs[name] for name in (self.heads if heads is None else heads)}
        chosen = {name: self.heads[name] for name in (self.heads if heads is None else heads)}
        seen = {
            level: self._seen(level, states, inputs) for level in {head.level for head in chosen.values()} - {"mask"}
        }
        return {
            name: head.layer(
                states_at(states, inputs[f"place.{name}"]) if head.level == "mask" else seen[head.level],
                training=training,
            )
            for name, head in chosen.items()
        }

    def encoder_inputs(self, inputs) -> dict:
        """What the encoder reads: the inputs, and the task of each token where it must know it."""
        if not (self.encoder.config.reads_tasks or self.frozen):
            return inputs
        by_segment = ops.concatenate([ops.zeros((1,), "int32"), inputs["task"] + 1])
        return {**inputs, "token_task": ops.take(by_segment, inputs["segment_ids"])}

    def _seen(self, level: str, states, inputs):
        """What heads of a level see: token states, or a vector of each segment."""
        return states if level == "token" else self.segment_vectors(states, inputs)

    def segment_vectors(self, states, inputs):
        """`(segments, hidden_dim)` vectors of the segments whose token states are `(rows, length, hidden_dim)`."""
        gathered = self._gathered(states, inputs)
        return gathered if self.pooling == "mean" else self.encoder.pool(gathered, inputs["task"], self.frozen)

    def _gathered(self, states, inputs):
        """`(segments, hidden_dim)`: the mean of each segment's token states, or what a pooler reads."""
        if self.pooling == "mean":
            return mean_states(states, inputs["segment_ids"], ops.shape(inputs["first_token"])[0])
        return states_at(states, inputs["first_token"])

    def answer(self, batch: Mapping[str, Any], heads: Sequence[str], exits: bool = False) -> dict[str, Any]:
        """What the named heads answer to a batch (`Head.answer`), by a graph that is traced once for these heads; with
        `exits` also what they answer there, by `name_at`."""
        names = tuple(heads)
        labels = {name: batch[f"label.{name}"] for name in names if f"label.{name}" in batch}
        arguments, asked = (model_inputs(batch, names), labels), (names, exits)
        if asked not in self.answerers:

            def answers(inputs, labels):
                outputs = self.exit_outputs(inputs, heads=names)
                return {
                    self.name_at(name, depth): self.heads[name].answer(outputs[depth][name], labels.get(name), inputs)
                    for depth in (self.depths if exits else self.depths[-1:])
                    for name in names
                }

            any_shape = tf.nest.map_structure(lambda value: tf.TensorSpec([None] * value.ndim, value.dtype), arguments)
            self.answerers[asked] = tf.function(answers, input_signature=any_shape, autograph=False)
        return self.answerers[asked](*arguments)

    # ---- training ----
    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        return [*self.loss_means, self.watch]

    @property
    def head_variables(self) -> list[keras.Variable]:
        """The heads' variables that learn, those at exits included."""
        layers = [*self.head_layers.values(), *self.exits]
        return [variable for layer in layers for variable in layer.trainable_variables]

    def train_step(self, batch) -> None:
        """One update on one replica; `loss_means` and `watch` tell of it."""
        totals = self.totals(batch)
        self.update(*self.contribution(batch, totals), totals)

    def totals(self, batch: Mapping[str, Any]):
        """`(1 + 2 * heads,)` of a replica's batch: examples, those labelled for each head, and the weight of each one's
        items. All replicas' sums say what a mean is over."""
        inputs, names = model_inputs(batch), list(self.heads)
        labelled = [_labelled(batch, name) for name in names]
        return ops.stack([batch["examples"], *labelled, *(self._weight(name, batch, inputs) for name in names)])

    def contribution(self, batch: Mapping[str, Any], totals) -> tuple[Any, list]:
        """A replica's part of the step of all whose `totals` are given: `(1 + heads,)` the total loss and each head's,
        and the gradients as the optimizer joins them. All replicas' sums are those of the whole step.

        The loss of a head is the mean over its labelled items, and over `depths` (`exits.depth_weights`); `weighting`
        says how they add up.
        """
        names = list(self.heads)
        inputs = model_inputs(batch, names)
        with tf.GradientTape(persistent=True) as tape:
            by_depth = self.exit_outputs(twice(inputs) if self.r_drop else inputs, training=True)
            sums = [self._loss(name, by_depth, batch, inputs) for name in names]
            weights = ops.unstack(totals[1 + len(names) :])
            losses = [total / ops.maximum(weight, 1e-6) for total, weight in zip(sums, weights, strict=True)]
        counts = self._counts(totals)
        shares = counts[1:] / ops.maximum(counts[0], 1.0)
        shared, own = self.encoder.trainable_variables, self.head_variables
        loss, gradients = self.weighting.gradients(tape, losses, shares, shared, own)
        return ops.stack([loss, *losses]), self.optimizer.joined(gradients)

    def update(self, losses, gradients: Sequence[Any], totals) -> None:
        """Takes the step to which all replicas have contributed."""
        gradient_norm = ops.reshape(norm(gradients), (1,))  # NaN wherever a gradient is
        self.watch.update_state(ops.concatenate([losses[:1], gradient_norm, losses[1:]]))
        self.optimizer.apply(gradients)
        each = zip(self.loss_means, ops.unstack(losses), ops.unstack(self._counts(totals)), strict=True)
        for mean, value, count in each:
            mean.update_state(value, sample_weight=count)

    def _counts(self, totals):
        """`(1 + heads,)`: examples, and those that each head learns from."""
        counts, weights = totals[1 : 1 + len(self.heads)], totals[1 + len(self.heads) :]
        return ops.concatenate([totals[:1], ops.where(weights > 0, counts, 0.0)])

    def _loss(self, name: str, by_depth: Mapping[int, Mapping[str, Any]], batch: Mapping[str, Any], inputs):
        """The mean over depths of `_loss_at`."""
        weights = depth_weights(by_depth)
        return sum(
            weights[depth] * self._loss_at(name, found[name], batch, inputs) for depth, found in by_depth.items()
        )

    def _loss_at(self, name: str, outputs, batch: Mapping[str, Any], inputs):
        """The sum of the losses of a head's items by weight: of one reading, or the mean of two and what parts them."""
        if not self.r_drop:
            return self._reading_loss(name, outputs, batch, inputs)
        one, other = ops.split(outputs, 2, axis=0)
        loss = sum(self._reading_loss(name, reading, batch, inputs) for reading in (one, other)) / 2
        return loss + self.r_drop * divergence(self.heads[name], one, other, batch[f"weight.{name}"], inputs)

    def _reading_loss(self, name: str, outputs, batch: Mapping[str, Any], inputs):
        """The sum over labels and teachers."""
        head, theirs = self.heads[name], taught(name)
        own, _ = head.loss(outputs, batch[f"label.{name}"], batch[f"weight.{name}"], inputs)
        if f"label.{theirs}" not in batch:
            return own
        told, _ = head.teacher_loss(outputs, batch[f"label.{theirs}"], batch[f"weight.{theirs}"])
        return (1 - self.teachers_weight) * own + self.teachers_weight * told

    def _weight(self, name: str, batch: Mapping[str, Any], inputs):
        """The sum of the weights of a head's items, over labels and teachers."""
        theirs = batch.get(f"weight.{taught(name)}")
        own = self.heads[name].total_weight(batch[f"label.{name}"], batch[f"weight.{name}"], inputs)
        return own if theirs is None else (1 - self.teachers_weight) * own + self.teachers_weight * ops.sum(theirs)


class Watch(keras.metrics.Metric):
    """Which step of an epoch was the first whose numbers were not all finite; `result` is 0 where there was none.

    Attributes:
        numbers: `(size,)` of that step; before, of the last one: the total loss, the norm of all gradients, and each
            head's loss.
    """

    def __init__(self, size: int):
        super().__init__(name="broken_at", dtype="float32")
        first = {"initializer": "zeros", "aggregation": "only_first_replica"}  # the numbers of all replicas are alike
        self.steps = self.add_variable((), name="steps", **first)
        self.broken_at = self.add_variable((), name="broken_at", **first)
        self.numbers = self.add_variable((size,), name="numbers", **first)

    def update_state(self, numbers) -> None:
        """Takes the `numbers` `(size,)` of the next step."""
        broken = self.broken_at > 0
        self.steps.assign(self.steps + 1)
        self.numbers.assign(ops.where(broken, self.numbers, numbers))
        fine = ops.logical_or(broken, ops.all(ops.isfinite(numbers)))
        self.broken_at.assign(ops.where(fine, self.broken_at, self.steps))

    def result(self):
        return self.broken_at + 0  # a tensor also where replicas have a variable each


def _labelled(batch: Mapping[str, Any], name: str):
    """How many examples a head learns from, by their labels or by teachers."""
    own, theirs = batch[f"count.{name}"], batch.get(f"count.{taught(name)}")
    return own if theirs is None else ops.maximum(own, theirs)


def model_inputs(batch: Mapping[str, Any], heads: Sequence[str] = ()) -> dict[str, Any]:
    """What the model is called with, of a batch of `batches.assemble`."""
    places = [f"place.{name}" for name in heads if f"place.{name}" in batch]
    return {key: batch[key] for key in (*INPUTS, *places)}


def make_model(config: ModelConfig, encoder: BertEncoder, tasks: Mapping[str, Task], seed: int) -> MultiTaskModel:
    """The model of a configuration, weights as they are in `encoder`, heads new."""
    depth = encoder.config.num_layers
    frozen = [frozen_blocks(task.config.trainable, depth) for task in tasks.values()]
    of_tasks = [(head, kept) for task, kept in zip(tasks.values(), frozen, strict=True) for head in task.heads.values()]
    heads = {head.name: head for head, _ in of_tasks}
    contexts: dict[str, LayerContext] = {}
    for number, (head, kept) in enumerate(of_tasks):
        if head.settings.share_head is None:
            contexts[head.name] = LayerContext(
                hidden_dim=encoder.config.hidden_dim,
                dropout=config.dropout,
                seed=seed + number,
                name=head.name,
                word_embeddings=encoder.embeddings.word_table,
                dtype=encoder.dtype_policy,
                frozen_words=kept > 0,
            )
            head.layer = head.make_layer(contexts[head.name])
    for head in heads.values():
        if head.settings.share_head is not None:
            head.layer = heads[head.settings.share_head].layer
    exits = []
    for number in config.exits:
        seeded = {name: each._replace(seed=each.seed + number * len(heads)) for name, each in contexts.items()}
        made_from = {name: (heads[name], context) for name, context in seeded.items()}
        exits.append(Exit(number, made_from, config.pooling == "cls", frozen))
    # What no task changes is no variable to the optimizer, whose weight decay would change it.
    encoder.freeze(max(frozen_blocks(config.trainable, depth), min(frozen)))
    return MultiTaskModel(encoder, heads, config.pooling, frozen, exits, name="multitask")
