"""Training as a user does it: what a run folder holds, and that every way of training learns."""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import yaml

from bert_mtl import train as train_module
from bert_mtl.config import TrainConfig
from bert_mtl.parts import part_pipelines
from bert_mtl.runs import RunError, load_model, open_run, part_metrics, run_config
from bert_mtl.tasks import DataError
from bert_mtl.train import train
from conf import entry
from conf.errors import ConfigError
from data_prep.build import build


def run_training(options, folder, *overrides):
    return train(entry.compose("train", [*options, f"run.dir={folder}", *overrides], TrainConfig))


def two_tasks(multi_options):
    """Of single texts and of words."""
    return [option for option in multi_options if not option.startswith(("+tasks.alike", "+tasks.words"))]


def test_a_run_learns_the_task_and_holds_config_log_weights_and_metrics(toy_run):
    result = json.loads((toy_run / "metrics.json").read_text())
    assert result["test"]["imdb"]["accuracy"] == 1.0
    assert result["data"] == "sample"
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2, 3, 4, 5, 6]
    assert result["dev"] == result["epochs"][result["best_epoch"] - 1]["dev"]
    for name in ("config.yaml", "weights.safetensors", "state.safetensors", "tokenizer/vocab.txt", "run.json"):
        assert (toy_run / name).exists()
    assert open_run(toy_run).config.train.epochs == 6


def test_a_run_learns_tasks_of_single_texts_words_pairs_and_masked_words(multi_run):
    result = json.loads((multi_run / "metrics.json").read_text())
    test, epochs = result["test"], result["epochs"]
    assert test["imdb"]["accuracy"] > 0.9
    assert test["numbers_spans"]["f1"] > 0.9
    assert test["words"]["accuracy"] > 0.5
    heads = ["imdb", "numbers_spans", "alike", "words"]
    assert list(test) == list(result["dev"]) == heads
    for head in heads:
        assert epochs[-1][f"{head}_loss"] < epochs[0][f"{head}_loss"]
    assert open_run(multi_run).facts.pairs == ["alike"]


def test_every_option_at_once_learns_the_task(toy_options, tmp_path):
    options = [
        "model.pooling=cls",
        "model.dtype=mixed_bfloat16",
        "optimizer.ema=0.9",
        "optimizer.accumulate=2",
        "optimizer.layer_decay=0.9",
        "tasks.imdb.heads.imdb.label_smoothing=0.1",
        "tasks.imdb.heads.imdb.class_weights=balanced",
        "input.packing=none",
        "train.epochs=10",
        "train.select=last",
    ]
    result = run_training(toy_options, tmp_path, *options)
    assert result["test"]["imdb"]["accuracy"] > 0.9
    assert result["best_epoch"] == 10


EXACT = [
    *("model.size.num_layers=1", "model.dropout=0.0", "optimizer.clip_norm=0.1", "optimizer.accumulate=2"),
    *("train.epochs=2", "train.test=false", "input.row_length=40"),
]
MIRRORED = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from bert_mtl.config import TrainConfig
from bert_mtl.train import train
from conf import entry
from conf.errors import ConfigError
from data_prep.build import build
for options in json.loads(sys.argv[1]):
    try:
        train(entry.compose("train", options, TrainConfig))
    except ConfigError as error:
        print(error, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def mirrored(toy_options, multi_options, tmp_path_factory):
    """A folder with what two CPUs that share a step leave of the runs `xla` and `two`, and the errors they print."""
    folder = tmp_path_factory.mktemp("mirrored")
    own = {"xla": [*toy_options, "strategy.xla=true"], "two": [*two_tasks(multi_options), *EXACT]}
    strategy = ["strategy=mirrored", "strategy.devices=[CPU:0,CPU:1]"]
    runs = [[*options, *strategy, f"run.dir={folder / name}"] for name, options in own.items()]
    command = [sys.executable, "-c", MIRRORED, json.dumps(runs)]
    return folder, subprocess.run(command, check=True, capture_output=True, text=True).stderr


def test_two_replicas_follow_the_losses_of_one_device_in_every_head(mirrored, multi_options, tmp_path):
    run_training([*two_tasks(multi_options), *EXACT], tmp_path / "one")
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "one", mirrored[0] / "two"))
    for ours, theirs in zip(two["epochs"], one["epochs"], strict=True):
        assert ours["examples"] == theirs["examples"]
        for name in ("loss", "imdb_loss", "numbers_spans_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3), name
    assert one["test"] == two["test"] == {}


# What is refused.


def test_xla_is_refused_where_several_cpus_share_a_step(mirrored):
    folder, errors = mirrored
    assert "strategy.xla must be false or auto where several CPUs share a step" in errors
    assert not (folder / "xla").exists()


def test_a_folder_that_holds_a_run_is_not_written_over(toy_run, toy_options):
    with pytest.raises(RunError, match="run.dir must be a new folder; .* run.resume="):
        run_training(toy_options, toy_run)


def test_a_text_longer_than_the_models_positions_is_refused_before_any_work(toy_options, tmp_path):
    with pytest.raises(ConfigError, match=r"tokenizer\.max_length must be at most model\.size\.max_positions \(512\)"):
        run_training(toy_options, tmp_path / "long", "tokenizer.max_length=1024")
    assert not (tmp_path / "long").exists()


def test_more_layers_to_learn_than_there_are_is_refused_by_model_and_task(toy_options, tmp_path):
    deep = ["model.trainable=last:3", "tasks.imdb.trainable=last:4"]
    with pytest.raises(ConfigError) as caught:
        run_training(toy_options, tmp_path, *deep)
    assert [str(problem) for problem in caught.value.problems] == [
        "model.trainable must name at most the model's 2 layers; got last:3.",
        "tasks.imdb.trainable must name at most the model's 2 layers; got last:4.",
    ]


def test_a_head_that_a_limit_leaves_without_labels_is_refused(toy_options, tmp_path):
    for part, labelled in (("train", 1), ("dev", 9), ("test", 9)):
        rows = [{"text": f"film {i}", "mood": "ab"[i % 2], "score": i if i < labelled else None} for i in range(40)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = (
        "+tasks.seen={limit: 4, heads: {mood: {kind: classification, labels: [a, b]}, score: {kind: regression}}, "
        f"sources: {{sample: {{format: jsonl, path: '{tmp_path}/{{part}}.jsonl', "
        "columns: {text: text, mood: mood, score: score}}}}"
    )
    rule = r"^the train part of task seen \(4 examples\) must have labels for its head seen_score; got none"
    with pytest.raises(DataError, match=rule):
        run_training([*toy_options, task], tmp_path / "run")


@contextmanager
def full_disk(most: int) -> Iterator[Callable[[], None]]:
    """Files of more bytes cannot be written: RLIMIT_FSIZE stands for the full disk, writing past it fails in the same
    way. What is yielded frees the disk."""
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


LARGE = ["model.size.hidden_dim=128", "train.epochs=2"]


def test_on_a_full_disk_training_goes_on_says_what_is_missing_and_ends_with_an_error(
    toy_options, tmp_path, capsys, caplog
):
    rule = "the weights of the best epoch were lost, as they could not be written: .*weights.safetensors could not be"
    with full_disk(200_000), pytest.raises(RunError, match=rule):
        run_training([*toy_options, *LARGE], tmp_path)
    assert not list(tmp_path.glob(".*tmp")) and not (tmp_path / "weights.safetensors").exists()
    assert not (tmp_path / "state.safetensors").exists() and not (tmp_path / "metrics.json").exists()
    shown = capsys.readouterr().out
    assert "best epoch: " in shown and "Missing: " in shown
    told = [record.getMessage() for record in caplog.records if "not written" in record.getMessage()]
    assert len(told) == 1 and "weights of the best epoch (they are in memory) not written" in told[0]


def test_a_disk_that_is_free_again_by_the_end_gets_everything(toy_options, tmp_path):
    with full_disk(200_000) as free, pytest.MonkeyPatch.context() as patch:
        finish = train_module._finish
        patch.setattr(train_module, "_finish", lambda *given: (free(), finish(*given))[1])
        result = run_training([*toy_options, *LARGE], tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(result))
    dev = result["dev"]["imdb"]["accuracy"]
    assert open_run(tmp_path).weights.exists()
    answered = part_metrics(load_model(open_run(tmp_path)), dev_part(tmp_path))["imdb"]["accuracy"]
    assert answered == pytest.approx(dev)


def dev_part(folder):
    run = open_run(folder)
    return part_pipelines(run, {name: build(run.config, name, run.tokenizer) for name in run.tasks}, "dev")


def test_a_run_of_an_earlier_version_is_read_with_the_defaults_of_new_keys(toy_run, tmp_path, caplog):
    stored = yaml.safe_load((toy_run / "config.yaml").read_text())
    del stored["train"]["report"], stored["tracking"]["every"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    config = run_config(tmp_path)
    assert (config.train.report, config.tracking.every) == (True, 20)
    assert caplog.records[0].getMessage().endswith("taken to be tracking.every=20 train.report=true")
