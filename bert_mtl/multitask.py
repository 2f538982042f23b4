"""The Keras model: one encoder, a head for every question, batches of `bert_mtl.packing` in, logits by head out."""

from dataclasses import dataclass
from functools import cached_property

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from rich.progress import track

from bert_mtl.config import ModelConfig, TaskConfig
from bert_mtl.encoder import BertEncoder
from bert_mtl.heads import ClassificationHead, ClassificationLoss, class_weights, first_states, mean_states
from bert_mtl.input_pipeline import ROW_KEYS, Pipeline
from bert_mtl.records import Manifest

SHOWN = 200  # batches from which answering a part shows a progress bar


class MultiTaskModel(keras.Model):
    """Heads over one encoder.

    Args:
        encoder: the shared encoder.
        heads: head name -> layer from example vectors `(examples, hidden_dim)` to logits.
        pooling: what a head sees of an example: `mean` of its token states, or `cls` (BERT's pooled_output).
    """

    def __init__(self, encoder: BertEncoder, heads: dict[str, keras.layers.Layer], pooling: str, **kwargs):
        super().__init__(dtype=encoder.dtype_policy, **kwargs)
        self.encoder = encoder
        self.head_layers = heads
        self.pooling = pooling
        self.built = True  # every variable exists already

    def call(self, inputs, training=False):
        """Logits by head `(examples, labels)` for the arrays of `packing.assemble`."""
        states = self.encoder(inputs, training=training)
        vectors = self.example_vectors(states, inputs)
        return {name: head(vectors, training=training) for name, head in self.head_layers.items()}

    def example_vectors(self, states, inputs):
        """`(examples, hidden_dim)` vectors of the examples whose token states are `(rows, length, hidden_dim)`."""
        if self.pooling == "mean":
            return mean_states(states, inputs["segment_ids"], ops.shape(inputs["first_token"])[0])
        return self.encoder.pool(first_states(states, inputs["first_token"]))

    @cached_property
    def answer(self):
        """`call` without training, as one compiled function that all evaluation and prediction shares."""
        return tf.function(lambda inputs: self(inputs, training=False), reduce_retracing=True)

    def freeze(self, trainable: str) -> None:
        """Lets only part of the weights learn: `all`, `heads`, or `last:<n>` layers of the encoder (and the heads)."""
        if trainable == "heads":
            self.encoder.trainable = False
        elif trainable != "all":
            learning = int(trainable.removeprefix("last:"))
            self.encoder.embeddings.trainable = False
            for layer in self.encoder.transformer_layers[:-learning]:
                layer.trainable = False


def make_model(config: ModelConfig, encoder: BertEncoder, tasks: dict[str, TaskConfig], seed: int) -> MultiTaskModel:
    """The model of a configuration, weights as they are in `encoder`, heads new."""
    heads = {
        name: ClassificationHead(encoder.config.hidden_dim, len(head.labels), config.dropout, seed=seed + i, name=name)
        for task in tasks.values()
        for i, (name, head) in enumerate(task.heads.items())
    }
    model = MultiTaskModel(encoder, heads, config.pooling, name="multitask")
    model.freeze(config.trainable)
    return model


def make_losses(tasks: dict[str, TaskConfig], manifests: dict[str, Manifest]) -> dict[str, keras.losses.Loss]:
    """The loss of every head; class weights follow the labels of the task's train part."""
    return {
        name: ClassificationLoss(
            head.label_smoothing, class_weights(head, manifests[task].parts["train"].labels[name]), name=f"{name}_loss"
        )
        for task, settings in tasks.items()
        for name, head in settings.heads.items()
    }


def model_inputs(batch: dict) -> dict:
    """What the model is called with, of a batch of `packing.assemble` (or of its tensor specs)."""
    return {key: batch[key] for key in (*ROW_KEYS, "first_token")}


def training_triple(batch: dict) -> tuple[dict, dict, dict]:
    """A batch as Keras' fit takes it: inputs, label ids by head, weights by head."""
    labels = {key.removeprefix("label."): value for key, value in batch.items() if key.startswith("label.")}
    return model_inputs(batch), labels, dict.fromkeys(labels, batch["weight"])


@dataclass(frozen=True)
class Answered:
    """A part's logits `(examples, labels)` and label ids `(examples,)` by head, and `lengths (examples,)` in tokens,
    in stored order."""

    logits: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    lengths: np.ndarray


def answer_part(model: MultiTaskModel, pipeline: Pipeline) -> Answered:
    """The model's answers to every example of a part, with a progress bar where it takes long."""
    dataset, examples = pipeline.dataset(), pipeline.examples
    logits: dict[str, np.ndarray] = {}
    labels = {name: np.zeros(examples, np.int64) for name in pipeline.manifest.heads}
    lengths = np.zeros(examples, np.int64)
    steps = pipeline.steps_per_epoch
    for batch in track(dataset, f"answering {pipeline.part}", total=steps, disable=steps < SHOWN):
        real = batch["weight"].numpy() > 0
        places = batch["index"].numpy()[real]
        lengths[places] = np.count_nonzero(batch["segment_ids"], axis=1)[real]
        for name, values in model.answer(model_inputs(batch)).items():
            rows = values.numpy()[real]
            logits.setdefault(name, np.zeros((examples, rows.shape[1]), np.float32))[places] = rows
            labels[name][places] = batch[f"label.{name}"].numpy()[real]
    return Answered(logits, labels, lengths)
