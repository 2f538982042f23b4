"""A batch of every kind of head through the model: losses, gradients, and what an example may and may not change."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.batches import Layout, Window, assemble, complete
from bert_mtl.config import ModelConfig, OptimizerConfig, TaskConfig, WeightingConfig
from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.multitask import MultiTaskModel, make_model, model_inputs
from bert_mtl.optimization import make_optimizer
from bert_mtl.packing import Batch, pack
from bert_mtl.runs import weights_of
from bert_mtl.tasks import Task, make_tasks
from bert_mtl.weighting import make_weighting

VOCABULARY, CLS, SEP, MASK = 30, 2, 3, 4
LONGEST, ROW, ROWS = 8, 20, 18  # tokens of an example and of a packed row; rows, the same for all batches
ENCODER = EncoderConfig(VOCABULARY, 16, 2, 2, 24, max_positions=LONGEST, dropout=0.0, attention_dropout=0.0)
SETTINGS = {
    "weights": None,
    "pooling": "mean",
    "dropout": 0.0,
    "attention": "auto",
    "attention_dropout": 0.0,
    "trainable": "all",
    "adapters": "none",
    "adapter_dim": 4,
    "task_embedding": False,
    "exits": [],
    "dtype": "float32",
    "size": None,
}
WEIGHTING = WeightingConfig(kind="static", temperature=2, alpha=1.5, learning_rate=0.1, beta=0.01)
HEADS = {
    "mood": {
        "mood": {"kind": "classification", "labels": ["neg", "pos"]},
        "topics": {"kind": "multilabel", "labels": ["a", "b", "c"]},
    },
    "alike": {"alike": {"kind": "regression"}},
    "words": {
        "tags": {"kind": "tagging", "labels": ["x"]},
        "chain": {"kind": "tagging", "labels": ["x"], "crf": True},
    },
    "meaning": {"meaning": {"kind": "similarity"}},
    "place": {"place": {"kind": "vector", "dim": 3}},
    "hidden": {"hidden": {"kind": "mlm"}},
}
NAMES = ["mood", "mood_topics", "alike", "words_tags", "words_chain", "meaning", "place", "hidden"]
TASK_OF = dict(zip(NAMES, [0, 0, 1, 2, 2, 3, 4, 5], strict=True))


def tasks_of(heads: dict[str, dict], **trainable: str) -> dict[str, Task]:
    sources = {"sample": {"format": "jsonl"}}
    return make_tasks(
        {
            task: TaskConfig(heads=own, sources=sources, trainable=trainable.get(task, "all"))
            for task, own in heads.items()
        }
    )


def model_of(tasks: dict[str, Task], **settings) -> MultiTaskModel:
    """A model that a step changes by minus its gradient."""
    keras.utils.set_random_seed(1)
    settings = ModelConfig(**SETTINGS | settings)
    config = replace(ENCODER, tasks=len(tasks), pooler=settings.pooling == "cls")
    model = make_model(settings, BertEncoder(config, dtype=settings.dtype), tasks, seed=1)
    base = {name: head.settings.weight for name, head in model.heads.items()}
    model.weighting = make_weighting(WEIGHTING, base, seed=1)
    model.optimizer = Descent(model)
    return model


class Descent:
    """An optimizer that takes the gradients from the weights."""

    def __init__(self, model: MultiTaskModel):
        self.trained = [*model.encoder.trainable_variables, *model.head_variables]

    def joined(self, gradients: list) -> list:
        return gradients

    def apply(self, gradients: list) -> None:
        for variable, gradient in zip(self.trained, gradients, strict=True):
            variable.assign_sub(gradient)


def examples_of(tasks: dict[str, Task], numbers: list[int], seed: int = 3) -> Window:
    """An example for each entry of `numbers`, that of its task; every head's label is there."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(6, LONGEST + 1, len(numbers))
    splits = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(MASK + 1, VOCABULARY, splits[-1]).astype(np.int32)
    ids[splits[:-1]], ids[splits[1:] - 1] = CLS, SEP
    by_number = list(tasks.values())
    pair = np.array([by_number[number].name in ("alike", "meaning") for number in numbers])
    second = np.where(pair, 3, lengths)
    ids[splits[:-1][pair] + 2] = SEP  # behind a first text of one word
    separate = np.array([by_number[number].separate for number in numbers])
    ids[splits[:-1][separate] + 3] = CLS
    labels, token_labels = {}, {}
    for spec in specs_of(tasks):
        mine = np.array(numbers) == spec.task
        if spec.level == "token":
            values = np.full(len(ids), -1, np.int32)
            inner = np.repeat(mine, lengths) & (ids > MASK)
            values[inner] = rng.integers(0, 3, inner.sum())
            token_labels[spec.name] = values
        else:
            values = np.full((len(numbers), *spec.shape), spec.missing, spec.dtype)
            whole = spec.dtype == "int32"
            drawn = rng.integers(0, 2, values.shape) if whole else rng.normal(size=values.shape)
            values[mine] = drawn[mine]
            labels[spec.name] = values
    numbers, index = np.array(numbers, np.int32), np.arange(len(numbers))
    window = Window(ids, splits, second, numbers, index, labels, token_labels)
    return complete(window, specs_of(tasks))


def specs_of(tasks: dict[str, Task]) -> list:
    return [spec for task in tasks.values() for spec in task.labels if spec.stored]


def batch_of(tasks: dict[str, Task], window: Window, packed: bool = True) -> dict[str, tf.Tensor]:
    """All examples as one batch; the second token and the one before the last are hidden where a head masks."""
    count = len(window.task)
    if packed:
        order, splits = pack(window.lengths, ROW, most=8)
        batch = Batch(order, np.repeat(np.arange(len(splits) - 1), np.diff(splits)))
    else:
        batch = Batch(np.arange(count), np.arange(count))
    separate = tuple(task.separate for task in tasks.values())
    layout = Layout(ROWS, 2 * ROWS, tuple(specs_of(tasks)), separate, ROW if packed else LONGEST)
    arrays = assemble(window, batch, layout, np.random.default_rng(0))
    for task in tasks.values():
        for head in task.heads.values():
            if head.level == "mask":
                arrays |= hide(arrays, head.name, task.number, window)
    return {key: tf.constant(values) for key, values in arrays.items()}


def hide(arrays: dict, name: str, task: int, window: Window) -> dict:
    segments = np.flatnonzero(arrays["task"] == task)
    lengths = dict(zip(window.index, window.lengths, strict=True))
    first = arrays["first_token"][segments]
    lengths = np.array([lengths[index] for index in arrays["index"][segments]], int)
    places = np.concatenate([first + 1, first + lengths - 2])
    places = np.pad(places, (0, 2 * ROWS - len(places)))
    weights = (places > 0).astype(np.float32)
    ids = arrays["token_ids"].copy()
    labels = ids.flat[places] * (places > 0)
    ids.flat[places[places > 0]] = MASK
    found = {f"place.{name}": places.astype(np.int32), f"label.{name}": labels, f"weight.{name}": weights}
    return found | {"token_ids": ids, f"count.{name}": np.float32(len(segments))}


def step(model: MultiTaskModel, batch: dict) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The losses and the gradient of every variable that learns; the model stays as it is."""
    before = [variable.numpy() for variable in model.variables]
    learning = {variable.path: variable.numpy() for variable in model.trainable_variables}
    model.reset_metrics()
    graph(model)(batch)
    losses = losses_of(model)
    gradients = {v.path: learning[v.path] - v.numpy() for v in model.trainable_variables}
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    return losses, gradients


def losses_of(model: MultiTaskModel) -> dict[str, float]:
    """The mean losses of the model's steps, and the norm of the last one's gradients."""
    losses = {mean.name: float(mean.result()) for mean in model.loss_means}
    return losses | {"gradient_norm": float(model.watch.numbers[1])}


def graph(model: MultiTaskModel):
    if not hasattr(model, "traced_step"):
        model.traced_step = tf.function(model.train_step, autograph=False, reduce_retracing=True)
    return model.traced_step


def of(gradients: dict[str, np.ndarray], *prefixes: str) -> np.ndarray:
    """Those of some layers as one long vector."""
    return np.concatenate([values.ravel() for path, values in gradients.items() if path.startswith(prefixes)])


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return tasks_of(HEADS)


@pytest.fixture(scope="module")
def model(tasks) -> MultiTaskModel:
    return model_of(tasks)


@pytest.fixture(scope="module")
def window(tasks) -> Window:
    return examples_of(tasks, [0, 1, 2, 3, 4, 5] * 3)


@pytest.fixture(scope="module")
def batch(tasks, window) -> dict[str, tf.Tensor]:
    return batch_of(tasks, window)


# Rows.


def test_packed_and_padded_rows_give_the_same_losses_and_gradients(tasks, model, window, batch):
    packed, by_packing = step(model, batch)
    padded, by_padding = step(model, batch_of(tasks, window, packed=False))
    assert set(packed) == {"loss", "gradient_norm", *(f"{name}_loss" for name in NAMES)}
    assert min(packed.values()) > 0.01
    assert packed == pytest.approx(padded, abs=1e-5)
    for path, gradient in by_packing.items():
        np.testing.assert_allclose(gradient, by_padding[path], atol=1e-5, err_msg=path)
        assert np.abs(gradient).max() > 0, path


def test_the_answers_to_packed_rows_are_those_to_padded_ones(tasks, model, window, batch):
    names = ["mood", "alike", "place"]
    padded = batch_of(tasks, window, packed=False)
    both = [model.answer(each, names) for each in (batch, padded)]
    for name in names:
        by_example = [
            found[name].numpy()[np.argsort(each["index"].numpy(), kind="stable")][-len(window.task) :]
            for found, each in zip(both, (batch, padded), strict=True)
        ]
        np.testing.assert_allclose(*by_example, atol=1e-5)
    assert len(model.answerers) == 1


# What adds up to the loss.


def test_the_loss_of_a_head_is_the_mean_over_its_examples_and_its_share_of_the_batch_weighs_it(tasks):
    model = model_of(tasks_of({name: HEADS[name] for name in ("mood", "alike")}))
    two = {name: HEADS[name] for name in ("mood", "alike")}
    window = examples_of(tasks_of(two), [0, 0, 0, 1])
    window.labels["mood_topics"][1:] = -1  # known of one example
    batch = batch_of(tasks_of(two), window)
    losses, _ = step(model, batch)
    answers = model.answer(batch, ["mood", "alike"])
    labels, known = batch["label.mood"].numpy(), batch["weight.mood"].numpy() > 0
    assert known.sum() == 3
    expected = -np.log(answers["mood"].numpy()[known, labels[known]]).mean()
    assert losses["mood_loss"] == pytest.approx(expected, abs=1e-6)
    first = int(np.argmax(batch["weight.alike"].numpy()))
    error = answers["alike"].numpy()[first] - batch["label.alike"].numpy()[first]
    assert losses["alike_loss"] == pytest.approx(float(error**2), abs=1e-6)
    total = 3 / 4 * losses["mood_loss"] + 1 / 4 * losses["mood_topics_loss"] + 1 / 4 * losses["alike_loss"]
    assert losses["loss"] == pytest.approx(total, abs=1e-6)


def test_one_task_alone_has_the_plain_mean_for_its_loss_times_the_head_s_weight():
    tasks = tasks_of({"mood": {"mood": HEADS["mood"]["mood"] | {"weight": 2.0}}})
    losses, _ = step(model_of(tasks), batch_of(tasks, examples_of(tasks, [0] * 5)))
    assert losses["loss"] == pytest.approx(2 * losses["mood_loss"], abs=1e-6)


# Heads without examples.


@pytest.mark.parametrize("absent", NAMES)
def test_a_head_without_examples_costs_nothing_and_its_layer_stays(absent, tasks, model, window):
    there = window.take(np.flatnonzero(window.task != TASK_OF[absent]))
    losses, gradients = step(model, batch_of(tasks, there))
    assert losses[f"{absent}_loss"] == 0
    own = [path for path in gradients if path.startswith(f"{absent}/")]
    assert own or absent == "meaning"  # which has no variables of its own
    assert all(not gradients[path].any() for path in own)
    assert np.isfinite(losses["loss"]) and losses["loss"] > 0


def test_labels_that_do_not_count_change_nothing_whatever_they_are(tasks, model, batch):
    losses, gradients = step(model, batch)
    dirty = dict(batch)
    for name in NAMES:
        labels, weights = batch[f"label.{name}"].numpy(), batch[f"weight.{name}"].numpy()
        dirty[f"label.{name}"] = tf.constant(np.where(
            np.reshape(weights > 0, weights.shape + (1,) * (labels.ndim - weights.ndim)),
            labels,
            np.array(np.nan if labels.dtype.kind == "f" else 10**6, labels.dtype),
        ))  # fmt: skip
    again, others = step(model, dirty)
    assert again == losses
    for path, gradient in gradients.items():
        np.testing.assert_array_equal(others[path], gradient, err_msg=path)


# Shared and frozen layers.


def test_heads_that_share_a_layer_both_teach_it_and_it_is_saved_once():
    head = {"kind": "classification", "labels": ["neg", "pos"]}
    tasks = tasks_of({"one": {"one": head}, "two": {"two": head | {"share_head": "one"}}})
    model = model_of(tasks)
    assert model.heads["one"].layer is model.heads["two"].layer
    assert [path for path in weights_of(model) if not path.startswith("encoder/")] == [
        "one/logits/kernel",
        "one/logits/bias",
    ]
    window = examples_of(tasks, [0, 1, 1])
    _, both = step(model, batch_of(tasks, window))
    _, one = step(model, batch_of(tasks, window.take(np.array([0]))))
    _, two = step(model, batch_of(tasks, window.take(np.array([1, 2]))))
    expected = of(one, "one/") / 3 + 2 * of(two, "one/") / 3
    np.testing.assert_allclose(of(both, "one/"), expected, atol=1e-6)
    assert np.abs(of(two, "one/")).max() > 0


def test_each_task_leaves_the_blocks_that_it_may_not_change_to_the_others():
    tasks = tasks_of({name: HEADS[name] for name in ("mood", "hidden", "alike")}, mood="heads", hidden="last:1")
    model = model_of(tasks)
    window = examples_of(tasks, [0, 1, 2, 0])
    _, mixed = step(model, batch_of(tasks, window))
    _, mood = step(model, batch_of(tasks, window.take(np.array([0, 3]))))
    _, hidden = step(model, batch_of(tasks, window.take(np.array([1]))))
    _, alike = step(model, batch_of(tasks, window.take(np.array([2]))))
    below, top = ("encoder/embeddings/", "encoder/layer_0/"), "encoder/layer_1/"
    assert not of(mood, "encoder/").any() and of(mood, "mood/").any()
    assert not of(hidden, *below).any() and of(hidden, top).any() and of(hidden, "hidden/").any()
    np.testing.assert_allclose(of(mixed, *below), of(alike, *below) / 4, atol=1e-6)
    np.testing.assert_allclose(of(mixed, top), of(alike, top) / 4 + of(hidden, top) / 4, atol=1e-6)
    assert of(alike, *below).any()


def test_frozen_weights_stay_as_they_are_also_from_weight_decay():
    tasks = tasks_of({"mood": HEADS["mood"]})
    model = model_of(tasks, trainable="last:1")
    optimizer = OptimizerConfig(
        learning_rate=0.1, head_learning_rate=None, layer_decay=None, warmup_fraction=0, weight_decay=0.1,
        clip_norm=1, accumulate=1, ema=None,
    )  # fmt: skip
    model.optimizer = make_optimizer(optimizer, 1, 10, 2)
    model.optimizer.build([*model.encoder.trainable_variables, *model.head_variables])
    before = {variable.path: variable.numpy() for variable in model.weights}
    graph(model)(batch_of(tasks, examples_of(tasks, [0] * 4)))
    changed = {v.path for v in model.weights if not np.array_equal(v.numpy(), before[v.path])}
    assert {path.split("/")[1] for path in changed if path.startswith("encoder/")} == {"layer_1"}
    assert {path.split("/")[0] for path in changed} == {"encoder", "mood", "mood_topics"}


# Other arithmetic.


def test_a_step_in_bfloat16_has_finite_losses_and_float32_weights_and_outputs(tasks, model, batch):
    half = model_of(tasks, dtype="mixed_bfloat16")
    for variable, same in zip(half.weights, model.weights, strict=True):
        variable.assign(same)
    losses, gradients = step(half, batch)
    exact, _ = step(model, batch)
    assert losses == pytest.approx(exact, rel=0.05, abs=0.02)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    assert {variable.dtype for variable in half.weights} == {"float32"}
    assert half.encoder.compute_dtype == "bfloat16"
    outputs = half(model_inputs(batch, NAMES))
    assert {keras.backend.standardize_dtype(output.dtype) for output in outputs.values()} == {"float32"}


def test_the_step_of_all_kinds_compiled_by_xla_has_the_same_losses(tasks, model, batch):
    exact, _ = step(model, batch)
    compiled = model_of(tasks)
    tf.function(compiled.train_step, autograph=False, jit_compile=True)(batch)
    assert losses_of(compiled) == pytest.approx(exact, abs=1e-5)
