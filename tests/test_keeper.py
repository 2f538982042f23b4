"""What a training keeps: scores and rates of every epoch, the best weights, a state that a killed run goes on from."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from bert_mtl.begun import train_pipeline
from bert_mtl.config import TrainConfig
from bert_mtl.keeper import Keeper
from bert_mtl.mixing import quotas, rates
from bert_mtl.runs import RunError, load_model, load_variables, open_run, read_facts
from bert_mtl.tracking import Careful
from bert_mtl.train import main, train
from conf import entry
from data_prep.build import build

KEPT = ["train.epochs=4", "mixing=dev_score", "weighting=dwa", "optimizer.ema=0.9", "optimizer.accumulate=2"]


@pytest.fixture(scope="module")
def two_tasks(multi_options) -> list[str]:
    """Overrides for the toy task and a tagging task, everything that a state must hold in use."""
    return [option for option in multi_options if not option.startswith(("+tasks.alike", "+tasks.words"))] + KEPT


@pytest.fixture(scope="module")
def whole(two_tasks, tmp_path_factory) -> Path:
    """A run of theirs that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(entry.compose("train", [*two_tasks, f"run.dir={folder}"], TrainConfig))
    return folder


def epochs_of(folder: Path) -> list[dict]:
    found = json.loads((folder / "metrics.json").read_text())["epochs"]
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in found]


def test_a_killed_run_resumes_to_the_very_numbers_of_one_that_was_not(whole, two_tasks, tmp_path):
    folder = tmp_path / "killed"
    options = [*two_tasks, f"run.dir={folder}", "train.save_every=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bert_mtl.train", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not _in_third_epoch(folder / "state.safetensors"):
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "metrics.json").exists()
    train(entry.compose("train", [f"run.resume={folder}"], TrainConfig))
    assert epochs_of(folder) == epochs_of(whole)
    ours, theirs = load_file(folder / "weights.safetensors"), load_file(whole / "weights.safetensors")
    assert len(ours) == len(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_several_steps_a_call_are_the_same_steps(whole, two_tasks, tmp_path):
    options = [*two_tasks, f"run.dir={tmp_path}", "train.steps_per_execution=4", "train.save_every=6"]
    steps = []
    patched = Keeper.end_steps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "end_steps", lambda keeper, count: steps.append(count) or patched(keeper, count))
        train(entry.compose("train", options, TrainConfig))
    assert max(steps) == 4 > min(steps)  # an epoch's last call takes what is left
    for ours, theirs in zip(epochs_of(tmp_path), epochs_of(whole), strict=True):
        assert ours["examples"] == theirs["examples"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["dev"]["imdb"]["loss"] == pytest.approx(theirs["dev"]["imdb"]["loss"], rel=1e-3)


def _in_third_epoch(state: Path) -> bool:
    """Then the rates follow dev scores, and the weights the losses of two epochs."""
    if not state.exists():
        return False
    facts = read_facts(state)
    return facts["epoch"][0] == 2 and facts["offset"] > 1


def test_rates_follow_the_dev_scores_of_the_epoch_before(whole):
    run, epochs = open_run(whole), epochs_of(whole)
    sizes = {"imdb": 96, "numbers": 48}
    assert epochs[0]["examples"] == sizes
    for number, (before, epoch) in enumerate(zip(epochs, epochs[1:], strict=False), start=1):
        scores = {"imdb": before["dev"]["imdb"]["accuracy"], "numbers": before["dev"]["numbers_spans"]["f1"]}
        shares = rates(run.config.mixing, sizes, epoch=number, epochs=4, scores=scores)
        assert list(epoch["examples"].values()) == quotas(shares, 144).tolist()
    assert len({tuple(epoch["examples"].values()) for epoch in epochs}) > 2


def test_weights_follow_the_losses_of_the_two_epochs_before(whole):
    epochs = epochs_of(whole)
    assert [epoch["weights"] for epoch in epochs[:2]] == [{"imdb": 1.0, "numbers_spans": 1.0}] * 2
    for older, old, epoch in zip(epochs, epochs[1:], epochs[2:], strict=False):
        ratios = np.array([old[f"{head}_loss"] / older[f"{head}_loss"] for head in ("imdb", "numbers_spans")])
        expected = 2 * np.exp(ratios / 2) / np.exp(ratios / 2).sum()  # Liu et al. 2019, at temperature 2
        assert list(epoch["weights"].values()) == pytest.approx(expected, rel=0.02)
        assert abs(expected[0] - 1) > 0.02


def test_the_best_epoch_has_the_highest_mean_of_the_tasks_scores(whole):
    result = json.loads((whole / "metrics.json").read_text())
    scores = [
        (epoch["dev"]["imdb"]["accuracy"] + epoch["dev"]["numbers_spans"]["f1"]) / 2 for epoch in result["epochs"]
    ]
    assert result["best_epoch"] == 1 + int(np.argmax(scores))
    assert result["dev"] == result["epochs"][result["best_epoch"] - 1]["dev"]


@pytest.fixture(scope="module")
def idle(two_tasks, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run that learns nothing, and what it has logged."""
    lines: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("bert_mtl.keeper")
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    still = ["optimizer.learning_rate=1e-20", "optimizer.head_learning_rate=null", "train.epochs=8"]
    folder = tmp_path_factory.mktemp("idle")
    options = [*two_tasks, *still, "train.patience=1", f"run.dir={folder}"]
    train(entry.compose("train", options, TrainConfig))
    log.removeHandler(listener)
    log.setLevel(logging.NOTSET)
    return folder, lines


def test_without_a_better_epoch_a_run_ends_after_patience_epochs(idle):
    result = json.loads((idle[0] / "metrics.json").read_text())
    assert (result["best_epoch"], len(result["epochs"])) == (1, 2)


def test_rates_and_weights_and_every_head_are_in_the_log(idle):
    first, imdb, numbers, second, *_ = idle[1]
    assert first.startswith("epoch 1: loss ") and first.endswith("examples: imdb 96 (66.7%), numbers 48 (33.3%)")
    assert imdb.startswith("  imdb: loss ") and "weight 1; dev: accuracy " in imdb
    assert numbers.startswith("  numbers_spans: loss ") and "weight 1; dev: f1 " in numbers
    assert second.startswith("epoch 2: loss ")


def test_a_task_counts_once_in_the_score_however_many_heads_it_has(whole):
    run = open_run(whole)
    folders = {name: build(run.config, name, run.tokenizer) for name in run.tasks}
    keeper = Keeper(run, train_pipeline(run, folders, replicas=1), {}, Careful([]))
    heads = run.tasks["imdb"].heads
    heads["other"] = type(heads["imdb"])("imdb_other", heads["imdb"].settings)
    dev = {"imdb": {"accuracy": 0.5}, "imdb_other": {"accuracy": 0.9}, "numbers_spans": {"f1": 0.1, "loss": 9.0}}
    assert keeper.task_scores(dev) == {"imdb": pytest.approx(0.7), "numbers": 0.1}
    assert keeper.score(dev) == pytest.approx(0.4)


# What goes wrong.


def test_a_run_goes_on_with_as_many_replicas_as_it_began(whole):
    run = open_run(whole)
    folders = {name: build(run.config, name, run.tokenizer) for name in run.tasks}
    keeper = Keeper(run, train_pipeline(run, folders, replicas=2), {}, Careful([]))
    with pytest.raises(RunError, match="run.resume must go on with 1 replicas, as it began; got 2"):
        keeper.restore(load_model(run))


def test_a_loss_that_is_not_finite_names_head_and_batch_and_keeps_the_last_state(toy_options, tmp_path):
    for part in ("train", "dev", "test"):
        far = [1e30 if (part, number) == ("train", 17) else 0.5 for number in range(24)]
        rows = [{"text": "the film was good", "vector": [value, 1.0]} for value in far]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = (
        "+tasks.place={heads: {place: {kind: vector, dim: 2, loss: mse}}, "
        f"sources: {{sample: {{format: jsonl, path: '{tmp_path}/{{part}}.jsonl'}}}}}}"
    )
    options = [*toy_options, task, f"run.dir={tmp_path / 'run'}", "train.save_every=1"]
    said = (
        r"the loss of place must stay finite; got inf at step .* Lower optimizer.learning_rate \(0.01\). The last good"
    )
    with pytest.raises(RunError, match=said):
        train(entry.compose("train", options, TrainConfig))
    (file,) = (tmp_path / "run").glob("broken-batch-*.json")
    facts, state = json.loads(file.read_text()), tmp_path / "run" / "state.safetensors"
    assert facts["heads"] == ["place"]
    far = [example for example in facts["examples"] if example["labels"].get("place") == pytest.approx([1e30, 1])]
    assert far == [{"task": "place", "tokens": "[CLS] the film was good [SEP]", "labels": far[0]["labels"]}]
    assert {example["task"] for example in facts["examples"]} == {"imdb", "place"}
    assert read_facts(state)["step"] == facts["step"] - 1
    assert all(np.isfinite(array).all() for array in load_file(state).values())


def test_gradients_that_are_not_finite_stop_the_run_at_their_step_with_their_batch(two_tasks, tmp_path):
    options = [
        *two_tasks,
        "tasks.imdb.heads.imdb.weight=1e25",
        "optimizer.clip_norm=null",
        f"run.dir={tmp_path / 'run'}",
    ]
    said = "the gradients of imdb, numbers_spans must stay finite; got inf at step 1, .* or set optimizer.clip_norm. No"
    with pytest.raises(RunError, match=said):
        train(entry.compose("train", options, TrainConfig))
    facts = json.loads((tmp_path / "run" / "broken-batch-1.json").read_text())
    tagged = [example["labels"]["numbers_spans"] for example in facts["examples"] if example["task"] == "numbers"]
    assert tagged and all(set(tags) <= {0, 1, 2} for tags in tagged)


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ("1e37", "the dev scores of imdb must be finite; got accuracy .*, loss nan. Lower optimizer.learning_rate"),
        ("1e39", "the weights must stay finite; got NaN or infinity by step 1. Lower optimizer.learning_rate"),
    ],
)
def test_weights_that_an_update_broke_are_never_kept(toy_options, tmp_path, rate, said):
    options = [f"optimizer.learning_rate={rate}", "optimizer.head_learning_rate=null", "optimizer.warmup_fraction=0"]
    options = [option for option in toy_options if not option.startswith(("optimizer", "train"))] + options
    options += ["train.epochs=1", "train.batch_size=200", f"run.dir={tmp_path / 'run'}"]
    with pytest.raises(RunError, match=said):
        train(entry.compose("train", options, TrainConfig))
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_resume_refuses_data_that_changed_since(whole, toy_options, tmp_path):
    toy = next(Path(option.split("'")[1]).parent for option in toy_options if "sources.sample.path" in option)
    for part in ("train", "dev", "test"):
        shutil.copy(toy / f"{part}.jsonl", tmp_path)
    (tmp_path / "train.jsonl").write_text((toy / "train.jsonl").read_text() * 2)
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["tasks"]["imdb"]["sources"]["sample"]["path"] = f"{tmp_path}/{{part}}.jsonl"
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(RunError, match="the data of task imdb must be what .* began with"):
        train(entry.compose("train", [f"run.resume={tmp_path / 'run'}"], TrainConfig))


def test_resume_refuses_other_settings(whole, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["train", f"run.resume={whole}", "train.epochs=9"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "run.resume must stand alone" in capfd.readouterr().err


def test_weights_of_another_shape_are_named_with_both_shapes(whole):
    import keras

    variable = keras.Variable(np.zeros((3, 2), np.float32), name="w")
    with pytest.raises(RunError, match=r"must fit the model; got other shapes for nothing/w \(3, 2\)"):
        load_variables(whole / "weights.safetensors", {"nothing/w": variable})
