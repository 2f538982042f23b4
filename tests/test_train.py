"""Training as a user does it: what a run folder holds, exact resume after a kill, and what each option changes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorflow.python.framework.config import disable_op_determinism

from bert_mtl.config import TrainConfig
from bert_mtl.runs import RunError, load_variables, open_run
from bert_mtl.train import train
from conf import entry
from conf.errors import ConfigError


def run_training(toy_options, folder, *overrides):
    return train(entry.compose("train", [*toy_options, f"run.dir={folder}", *overrides], TrainConfig))


def losses(folder):
    return [epoch["loss"] for epoch in json.loads((folder / "metrics.json").read_text())["epochs"]]


def test_a_run_learns_the_task_and_holds_config_log_weights_and_metrics(toy_run):
    result = json.loads((toy_run / "metrics.json").read_text())
    assert result["test"]["imdb"]["accuracy"] == 1.0
    assert result["data"] == "sample"
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2, 3, 4, 5, 6]
    assert result["dev"] == result["epochs"][result["best_epoch"] - 1]["dev"]
    for name in ("config.yaml", "weights.safetensors", "state.safetensors", "tokenizer/vocab.txt", "run.json"):
        assert (toy_run / name).exists()
    assert open_run(toy_run).config.train.epochs == 6


def test_the_same_seed_gives_the_same_losses_to_the_last_digit_and_another_seed_others(toy_run, toy_options, tmp_path):
    run_training(toy_options, tmp_path / "again")
    run_training(toy_options, tmp_path / "other", "seed=2")
    assert losses(tmp_path / "again") == losses(toy_run)
    assert losses(tmp_path / "other") != losses(toy_run)


@pytest.mark.parametrize("extra", [[], ["optimizer.ema=0.9", "optimizer.accumulate=2"]], ids=["plain", "ema"])
def test_a_killed_run_resumes_to_the_same_losses_and_weights(extra, toy_run, toy_options, tmp_path):
    whole, folder = toy_run, tmp_path / "killed"
    if extra:
        whole = tmp_path / "whole"
        run_training(toy_options, whole, *extra)
    command = [sys.executable, "-m", "bert_mtl.train"]
    options = [*toy_options, *extra, f"run.dir={folder}", "train.save_every=1"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not _steps_done(folder, 8):  # into the second epoch of six steps
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists()
    subprocess.run([*command, f"run.resume={folder}"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert losses(folder) == losses(whole)
    ours, theirs = load_file(folder / "weights.safetensors"), load_file(whole / "weights.safetensors")
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def _steps_done(folder, steps):
    from bert_mtl.runs import read_facts

    state = folder / "state.safetensors"
    return state.exists() and read_facts(state)["step"] >= steps


def test_resume_refuses_data_that_changed_since(toy_options, tmp_path):
    toy = next(Path(option.split("'")[1]).parent for option in toy_options if "sources.sample.path" in option)
    for part in ("train", "dev", "test"):
        shutil.copy(toy / f"{part}.jsonl", tmp_path)
    moved = f"tasks.imdb.sources.sample.path='{tmp_path}/{{part}}.jsonl'"
    run_training(toy_options, tmp_path / "run", moved, "train.epochs=1")
    (tmp_path / "train.jsonl").write_text((toy / "train.jsonl").read_text() * 2)
    with pytest.raises(RunError, match="the data of task imdb must be what .* began with"):
        run_training(toy_options, tmp_path / "unused", f"run.resume={tmp_path / 'run'}")


def test_resume_refuses_other_settings(toy_run):
    command = [sys.executable, "-m", "bert_mtl.train", f"run.resume={toy_run}", "train.epochs=9"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "run.resume must stand alone" in result.stderr


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.pooling=cls", "optimizer.ema=0.9", "model.dtype=mixed_bfloat16"],
        ["strategy.xla=true", "input.pad_to=32"],
        [
            "optimizer.accumulate=2",
            "train.epochs=10",
            "tasks.imdb.heads.imdb.label_smoothing=0.1",
            "tasks.imdb.heads.imdb.class_weights=balanced",
        ],
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_way_of_training_learns_the_task(overrides, toy_options, tmp_path):
    disable_op_determinism()  # an earlier run in this process switched it on, and Keras does not compile beside it
    result = run_training(toy_options, tmp_path, *overrides)
    assert result["test"]["imdb"]["accuracy"] > 0.9


def test_frozen_weights_stay_as_they_were(toy_options, tmp_path):
    run_training(toy_options, tmp_path / "heads", "model.trainable=heads", "train.epochs=1")
    run_training(toy_options, tmp_path / "last", "model.trainable=last:1", "train.epochs=1")
    heads, last = (load_file(tmp_path / name / "weights.safetensors") for name in ("heads", "last"))
    changed = {name for name in heads if not np.array_equal(heads[name], last[name])}
    assert {name.split("/")[1] for name in changed if name.startswith("encoder/")} == {"layer_1"}


def test_a_folder_that_holds_a_run_is_not_written_over(toy_run, toy_options):
    with pytest.raises(RunError, match="run.dir must be a new folder; .* run.resume="):
        run_training(toy_options, toy_run)


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step_and_a_hint(toy_options, tmp_path):
    with pytest.raises(RunError, match="the loss must stay finite; got nan at step .* Lower optimizer.learning_rate"):
        run_training(toy_options, tmp_path, "optimizer.learning_rate=1e30", "optimizer.clip_norm=null")


def test_early_stopping_ends_the_run_and_keeps_the_best_epoch(toy_options, tmp_path):
    result = run_training(toy_options, tmp_path, "train.epochs=8", "train.patience=1")
    assert result["best_epoch"] < len(result["epochs"]) < 8


MIRRORED = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from bert_mtl.config import TrainConfig
from bert_mtl.train import train
from conf import entry
train(entry.compose("train", sys.argv[1:], TrainConfig))
"""


def test_two_replicas_follow_the_loss_curve_of_one_device(toy_options, tmp_path):
    exact = ["model.dropout=0.0", "optimizer.clip_norm=null", "train.epochs=3"]  # clipping is each replica's own
    mirrored = ["strategy=mirrored", "strategy.devices=[CPU:0,CPU:1]", f"run.dir={tmp_path / 'two'}"]
    subprocess.run([sys.executable, "-c", MIRRORED, *toy_options, *exact, *mirrored], check=True, capture_output=True)
    run_training(toy_options, tmp_path / "one", *exact)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=2e-3)


def test_an_offline_wandb_run_stands_in_the_run_folder_under_its_name(toy_options, tmp_path):
    run_training(toy_options, tmp_path / "tracked", "train.epochs=1", "tracking=wandb")
    (record,) = (tmp_path / "tracked" / "wandb").glob("offline-run-*-tracked/run-tracked.wandb")
    assert record.stat().st_size > 0


def test_selecting_on_test_is_refused():
    with pytest.raises(ConfigError, match=r"train\.select must be .*got test\. Options: dev, last"):
        entry.compose("train", ["train.select=test"], TrainConfig)


def test_a_text_longer_than_the_models_positions_is_refused_before_any_work(toy_options, tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.max_length must be at most model\.size\.max_positions \(512\)"):
        run_training(toy_options, tmp_path / "long", "tokenizer.max_length=1024")
    assert not (tmp_path / "long").exists()


def test_weights_of_another_shape_are_named_with_both_shapes(toy_run, toy_options, tmp_path):
    import keras

    variable = keras.Variable(np.zeros((3, 2), np.float32), name="w")
    with pytest.raises(RunError, match=r"must fit the model; got other shapes for nothing/w \(3, 2\)"):
        load_variables(toy_run / "weights.safetensors", {"nothing/w": variable})


def test_a_full_disk_stops_with_the_file_named_and_leaves_no_partial_file(toy_options, tmp_path):
    """RLIMIT_FSIZE stands for the full disk: writing past it fails in the same way."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "from bert_mtl.train import main; main()"
    )
    folder = tmp_path / "full"
    command = [sys.executable, "-c", code, *toy_options, f"run.dir={folder}", "model.size.hidden_dim=128"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HYDRA_FULL_ERROR": "1"})
    assert result.returncode == 1
    assert "weights.safetensors could not be written: File too large" in result.stderr
    assert not list(folder.glob(".*tmp")) and not (folder / "weights.safetensors").exists()
