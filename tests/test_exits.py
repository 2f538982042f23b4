"""Exits: heads on states between the layers; their losses, what learns from them, and what they answer."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.commands import EvaluateConfig
from bert_mtl.config import ModelConfig, TrainConfig
from bert_mtl.encoder import BertEncoder
from bert_mtl.evaluate import evaluate
from bert_mtl.exits import depth_weights, exit_name, head_of
from bert_mtl.multitask import MultiTaskModel, make_model, model_inputs
from bert_mtl.optimization import rate_factor
from bert_mtl.runs import load_model, open_run, weights_of
from bert_mtl.taught import taught
from bert_mtl.train import train
from bert_mtl.weighting import make_weighting
from conf import entry
from conf.errors import ConfigError
from tests.test_multitask import ENCODER, SETTINGS, WEIGHTING, Descent, batch_of, examples_of, graph, of, step, tasks_of

MOOD = {"kind": "classification", "labels": ["neg", "pos"]}
KIND = {"kind": "classification", "labels": ["a", "b", "c"]}
TASKS = {"mood": {"mood": MOOD}, "kind": {"kind": KIND}}
LAYERS = 4


def model_of(tasks, exits=(1, 3), layers=LAYERS, **settings) -> MultiTaskModel:
    """A model that a step changes by minus its gradient."""
    keras.utils.set_random_seed(1)
    config = ModelConfig(**SETTINGS | {"exits": list(exits)} | settings)
    sizes = replace(ENCODER, num_layers=layers, tasks=len(tasks), pooler=config.pooling == "cls")
    model = make_model(config, BertEncoder(sizes, dtype=config.dtype), tasks, seed=1)
    for variable in (variable for exit in model.exits for variable in exit.weights):
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.3, seed=len(variable.path)))
    model.weighting = make_weighting(WEIGHTING, dict.fromkeys(model.heads, 1.0), seed=1)
    model.optimizer = Descent(model)
    return model


def cross_entropy(logits, labels) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]


def exit_paths(model) -> list[str]:
    return [path for path in weights_of(model) if path.startswith("exit_")]


# Outputs.


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_stages_from_states_give_the_outputs_of_one_whole_pass(pooling):
    tasks = tasks_of(TASKS, kind="last:2")
    model = model_of(tasks, pooling=pooling)
    inputs = model_inputs(batch_of(tasks, examples_of(tasks, [0, 1, 1, 0])))
    whole = model.exit_outputs(inputs)
    assert list(whole) == model.depths == [1, 3, 4]
    read = model.encoder_inputs(inputs)
    states, reached = model.encoder.embed(read), 0
    for depth in model.depths:
        states, reached = model.encoder.run_layers(states, read, reached, depth)[-1], depth
        for name, outputs in model.outputs_at(depth, states, inputs).items():
            np.testing.assert_allclose(outputs, whole[depth][name], atol=1e-6)
    for name, outputs in model(inputs).items():
        np.testing.assert_allclose(outputs, whole[4][name], atol=1e-6)
    assert np.abs(whole[1]["mood"] - whole[3]["mood"]).max() > 0.01


def test_answers_are_those_of_the_last_layer_and_of_exits_where_they_are_asked_for():
    tasks = tasks_of(TASKS)
    model = model_of(tasks)
    batch = batch_of(tasks, examples_of(tasks, [0, 1]))
    assert list(model.answer(batch, ["mood"])) == ["mood"]
    answers = model.answer(batch, ["mood"], exits=True)
    assert list(answers) == ["mood@1", "mood@3", "mood"]
    outputs = model.exit_outputs(model_inputs(batch))
    for name, depth in (("mood@1", 1), ("mood@3", 3), ("mood", 4)):
        np.testing.assert_allclose(answers[name], keras.ops.softmax(outputs[depth]["mood"]), atol=1e-6)


def test_names_at_exits():
    assert exit_name("snips_intent", 2) == "snips_intent@2"
    assert head_of("snips_intent@2") == head_of("snips_intent") == "snips_intent"


# Losses and gradients.


def test_deeper_answers_count_more_and_without_exits_the_last_is_all():
    assert depth_weights([2, 4, 6]) == {2: 1 / 6, 4: 1 / 3, 6: 1 / 2}
    assert depth_weights([6]) == {6: 1.0}


def test_the_loss_of_a_head_is_the_mean_over_depths_weighted_by_depth():
    tasks = tasks_of(TASKS)
    model = model_of(tasks)
    batch = batch_of(tasks, examples_of(tasks, [0, 0, 1, 0, 1]))
    outputs = model.exit_outputs(model_inputs(batch))
    losses, _ = step(model, batch)
    for name in ("mood", "kind"):
        real = batch[f"weight.{name}"].numpy() > 0
        labels = batch[f"label.{name}"].numpy()[real]
        by_depth = {d: cross_entropy(outputs[d][name].numpy()[real], labels).mean() for d in (1, 3, 4)}
        expected = (1 * by_depth[1] + 3 * by_depth[3] + 4 * by_depth[4]) / 8
        assert losses[f"{name}_loss"] == pytest.approx(expected, rel=1e-5)
        assert abs(by_depth[1] - by_depth[4]) > 0.01


def test_teachers_tell_exits_too():
    tasks = tasks_of({"mood": {"mood": MOOD}})
    model = model_of(tasks)
    model.teachers_weight = 0.25
    batch = batch_of(tasks, examples_of(tasks, [0, 0, 0]))
    weights, labels = batch["weight.mood"], batch["label.mood"].numpy()
    told = np.tile([0.2, 0.8], (len(labels), 1)).astype(np.float32)
    name = taught("mood")
    batch |= {f"label.{name}": tf.constant(told), f"weight.{name}": weights, f"count.{name}": batch["count.mood"]}
    outputs = model.exit_outputs(model_inputs(batch))
    expected, real = 0.0, weights.numpy() > 0
    for depth in (1, 3, 4):
        logits = outputs[depth]["mood"].numpy()[real]
        own = cross_entropy(logits, labels[real])
        theirs = sum(told[real][:, k] * cross_entropy(logits, np.full(3, k)) for k in (0, 1))
        expected += depth / 8 * (0.75 * own + 0.25 * theirs).mean()
    losses, _ = step(model, batch)
    assert losses["mood_loss"] == pytest.approx(expected, rel=1e-5)


def test_r_drop_without_dropout_changes_no_loss():
    tasks, losses = tasks_of(TASKS), []
    batch = batch_of(tasks, examples_of(tasks, [0, 1, 0]))
    for r_drop in (0.0, 2.0):
        model = model_of(tasks, exits=(1,), layers=2)
        model.r_drop = r_drop
        losses.append(step(model, batch)[0]["mood_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_every_exit_learns_and_upper_layers_learn_nothing_from_it(pooling):
    tasks = tasks_of({"mood": {"mood": MOOD}})
    model = model_of(tasks, pooling=pooling)
    pooler = ["pooler/kernel", "pooler/bias"] if pooling == "cls" else []
    parts = [*pooler, "mood/logits/kernel", "mood/logits/bias"]
    assert exit_paths(model) == [f"exit_{depth}/{part}" for depth in (1, 3) for part in parts]
    batch = batch_of(tasks, examples_of(tasks, [0, 0, 0, 0]))
    _, gradients = step(model, batch)
    assert all(np.abs(gradients[path]).max() > 1e-6 for path in exit_paths(model))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(model.exit_outputs(model_inputs(batch))[3]["mood"] * [1.0, -2.0])
    reached = tape.gradient(total, [layer.qkv.kernel.value for layer in model.encoder.transformer_layers])
    assert [gradient is not None for gradient in reached] == [True, True, True, False]


def test_a_frozen_encoder_does_not_keep_exits_from_learning():
    tasks = tasks_of({"mood": {"mood": MOOD}})
    for pooling in ("mean", "cls"):
        model = model_of(tasks, pooling=pooling, trainable="heads")
        _, gradients = step(model, batch_of(tasks, examples_of(tasks, [0, 0])))
        assert not any(path.startswith("encoder/") for path in gradients)
        assert all(np.abs(gradients[path]).max() > 1e-6 for path in exit_paths(model))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_through_exits_a_task_leaves_the_blocks_that_it_may_not_change(pooling):
    tasks = tasks_of(TASKS, mood="last:2")  # the embeddings and layers 1 and 2 stay, and exit 1 with them
    model = model_of(tasks, pooling=pooling)
    window = examples_of(tasks, [0, 1, 0])
    _, mixed = step(model, batch_of(tasks, window))
    _, mood = step(model, batch_of(tasks, window.take(np.array([0, 2]))))
    _, kind = step(model, batch_of(tasks, window.take(np.array([1]))))
    below, above = ("encoder/embeddings/", "encoder/layer_0/", "encoder/layer_1/"), "encoder/layer_2/"
    assert not of(mood, *below).any() and of(mood, above).any() and of(mood, "exit_1/mood/").any()
    assert of(kind, *below).any()
    np.testing.assert_allclose(of(mixed, *below), of(kind, *below) / 3, atol=1e-6)


def test_exits_learn_at_the_rate_of_heads():
    config = entry.compose("train", ["optimizer.layer_decay=0.5"], TrainConfig).optimizer
    for path in ("exit_2/imdb/logits/kernel", "exit_2/pooler/kernel"):
        assert rate_factor(path, 6, config) == rate_factor("imdb/logits/kernel", 6, config) != 1.0


def test_without_exits_variables_and_first_weights_are_as_ever():
    tasks = tasks_of(TASKS)
    plain, with_exits = model_of(tasks, exits=()), model_of(tasks)
    own = [path for path in weights_of(with_exits) if not path.startswith("exit_")]
    assert list(weights_of(plain)) == own and len(exit_paths(with_exits)) == 8
    for path in own:
        np.testing.assert_array_equal(weights_of(plain)[path], weights_of(with_exits)[path])
    assert [len(model.trainable_variables) for model in (plain, with_exits)] == [
        len({variable.path for variable in model.encoder.trainable_variables + model.head_variables})
        for model in (plain, with_exits)
    ]
    assert sorted(v.path for exit in with_exits.exits for v in exit.trainable_variables) == sorted(
        exit_paths(with_exits)
    )


def test_a_compiled_step_is_the_plain_one():
    tasks = tasks_of(TASKS)
    batch, found = batch_of(tasks, examples_of(tasks, [0, 1, 1])), []
    for compiled in (False, True):
        model = model_of(tasks, exits=(1,), layers=2)
        step_of = tf.function(model.train_step, autograph=False, jit_compile=True) if compiled else graph(model)
        step_of(batch)
        found.append(np.concatenate([weights_of(model)[path].numpy().ravel() for path in exit_paths(model)]))
    np.testing.assert_allclose(*found, atol=1e-5)


# Runs.


@pytest.fixture(scope="module")
def exit_run(toy_options, tmp_path_factory):
    """The folder of a finished run with an exit."""
    folder = tmp_path_factory.mktemp("exit_run")
    own = ["model.exits=[1]", "model.pooling=cls", "optimizer.ema=0.5", f"run.dir={folder}"]
    train(entry.compose("train", [*toy_options, *own], TrainConfig))
    return folder


def test_a_training_learns_and_scores_exits_beside_heads_of_the_last_layer(exit_run):
    result = json.loads((exit_run / "metrics.json").read_text())
    for part in ("dev", "test"):
        assert list(result[part]) == ["imdb@1", "imdb"]
        assert result[part]["imdb"]["accuracy"] > 0.9 and result[part]["imdb@1"]["accuracy"] > 0.9
        assert set(result[part]["imdb"]) == set(result[part]["imdb@1"])
    scores = [epoch["dev"]["imdb"]["accuracy"] for epoch in result["epochs"]]
    assert result["best_epoch"] == 1 + scores.index(max(scores))


def test_a_run_read_again_answers_at_exits_as_it_did(exit_run, tmp_path, capsys):
    trained = json.loads((exit_run / "metrics.json").read_text())["test"]
    settings = {"part": "test", "batch_size": 32, "errors": 2, "baseline": True, "output": str(tmp_path / "r.json")}
    reports = evaluate(EvaluateConfig(run=str(exit_run), **settings))
    assert list(reports) == ["imdb@1", "imdb"]
    for name, metrics in trained.items():
        assert {key: reports[name][key] for key in metrics} == pytest.approx(metrics, abs=1e-5)
    assert "baseline" in reports["imdb"] and "baseline" not in reports["imdb@1"]
    assert "│ imdb@1 │ 32       │ accuracy │" in capsys.readouterr().out
    model = load_model(open_run(exit_run))
    assert exit_paths(model) == [
        f"exit_1/{part}" for part in ("pooler/kernel", "pooler/bias", "imdb/logits/kernel", "imdb/logits/bias")
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.exits=[4,2]"], r"model.exits must name each layer once, the lowest first; got \[4, 2\]"),
        (["model.exits=[2,2]"], r"model.exits must name each layer once, the lowest first; got \[2, 2\]"),
        (["model.exits=[0]"], r"model\.exits.* must .*; got 0"),
        (
            ["task=stsb", "model.exits=[2]"],
            r"tasks.stsb.heads.stsb.kind must be classification with model.exits; got regression. "
            "Options: classification.",
        ),
        (
            ["task=snips", "model.exits=[2]"],
            "tasks.snips.heads.slots.kind must be classification with model.exits; got tagging",
        ),
        (
            ["task=[imdb,sst2]", "data=full", "+tasks.sst2.heads.sst2.share_head=imdb", "model.exits=[2]"],
            "tasks.sst2.heads.sst2.share_head must be null with model.exits, .*; got imdb",
        ),
    ],
)
def test_exits_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        entry.compose("train", overrides, TrainConfig)


def test_an_exit_behind_the_last_layer_is_refused_before_any_work(toy_options, tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(entry.compose("train", [*toy_options, "model.exits=[1,2]", f"run.dir={tmp_path}/run"], TrainConfig))
    assert str(caught.value) == "model.exits must name layers below the model's last, number 2; got 2. Options: 1."
    assert not (tmp_path / "run").exists()
