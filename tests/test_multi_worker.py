"""Training over several processes: the numbers of one, one writer, and an end where a worker dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from test_cluster import cluster_here, tf_config

from bert_mtl.config import TrainConfig
from bert_mtl.runs import _unlike, read_facts
from bert_mtl.train import main, train
from conf import entry

EXACT = ["model.size.num_layers=1", "model.dropout=0.0", "input.row_length=40", "train.test=false"]


@contextmanager
def workers(command: list[str], environments: list[Mapping[str, str]]) -> Iterator[list[subprocess.Popen]]:
    """A process for each environment; those left over are killed, as TensorFlow hears nothing less."""
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def by_tf_config() -> tuple[tuple[str, ...], list[Mapping[str, str]]]:
    addresses = cluster_here(2)
    return addresses, [tf_config({"worker": list(addresses)}, index=index) for index in range(2)]


def by_slurm() -> list[Mapping[str, str]]:
    """As srun tells two tasks on this machine."""
    step = {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    return [step | {"SLURM_PROCID": str(rank)} for rank in range(2)]


def two_ports() -> int:
    """The first of two free ports, one behind the other."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first, suppress(OSError, OverflowError):
            port = first.getsockname()[1]
            socket.create_server(("127.0.0.1", port + 1)).close()
            return port


@pytest.mark.parametrize("dying", [0, pytest.param(1, marks=pytest.mark.slow)])  # TensorFlow misses 1 after 10 s
def test_training_ends_where_a_worker_dies_and_goes_on_to_the_numbers_of_one_process(multi_options, tmp_path, dying):
    two_tasks = [option for option in multi_options if not option.startswith(("+tasks.alike", "+tasks.words"))]
    options = [*two_tasks, *EXACT, "optimizer.clip_norm=0.1", "optimizer.accumulate=2", "train.epochs=3"]
    folder = tmp_path / "two"
    port = two_ports()
    together = [*options, "strategy=multi_worker", f"strategy.port={port}", "train.save_every=1", f"run.dir={folder}"]
    addresses, environments = by_tf_config()
    with workers(["-m", "bert_mtl.train", *together], environments) as processes:
        while processes[0].poll() is None and not in_second_epoch(folder / "state.safetensors"):
            time.sleep(0.02)
        processes[dying].send_signal(signal.SIGTERM)
        assert processes[dying].wait(timeout=10) == -signal.SIGTERM
        _, told = processes[1 - dying].communicate(timeout=60)
        assert processes[1 - dying].returncode == 1
        message = (
            f"until the end; worker {dying} ({addresses[dying]}) has gone. Start all of them again with run.resume="
        )
        assert f"all workers must be there {message}{folder}" in told
        assert "Traceback" not in told.split(message)[0]
    with workers(["-m", "bert_mtl.train", f"run.resume={folder}"], by_slurm()) as resumed:
        said = [process.communicate(timeout=60) for process in resumed]
        assert [process.returncode for process in resumed] == [0, 0], said
    assert "best epoch" in said[0][0]
    assert "best epoch" not in said[1][0]
    log = (folder / "train.log").read_text()  # the chief's alone
    assert [log.count(f"epoch {number}: loss") for number in (1, 2, 3)] == [1, 1, 1]
    train(entry.compose("train", [*options, f"run.dir={tmp_path / 'one'}"], TrainConfig))
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert one["best_epoch"] == two["best_epoch"]
    assert len(two["epochs"]) == 3
    for ours, theirs in zip(two["epochs"], one["epochs"], strict=True):
        assert ours["examples"] == theirs["examples"]
        for name in ("loss", "imdb_loss", "numbers_spans_loss"):
            assert ours[name] == pytest.approx(theirs[name], rel=2e-3), name
        assert ours["dev"]["imdb"]["loss"] == pytest.approx(theirs["dev"]["imdb"]["loss"], rel=1e-2)


def in_second_epoch(state: Path) -> bool:
    if not state.exists():
        return False
    facts = read_facts(state)
    return facts["epoch"][0] == 1 and facts["offset"] > 1


WORKER = """
import json, sys
from bert_mtl.chief import WorkerError
from bert_mtl.config import TrainConfig
from bert_mtl.keeper import Keeper
from bert_mtl.parts import part_pipelines
from bert_mtl.tracking import Careful
from bert_mtl.train import begin, fit
from conf import entry
begun = begin(entry.compose("train", sys.argv[1:], TrainConfig))
chief = begun.run.chief
keeper = Keeper(begun.run, begun.pipeline, part_pipelines(begun.run, begun.folders, "dev"), Careful([]))
fit(begun, keeper)
failed = ""
try:
    chief.does(lambda: 1 / 0)
except (ZeroDivisionError, WorkerError) as error:
    failed = str(error)
said = chief.does(lambda: {"text": "é" * 9000, "rank": chief.rank})
for epoch in keeper.epochs:
    del epoch["seconds"]
print(json.dumps({"epochs": keeper.epochs, "said": said, "failed": failed, "best": keeper.best}))
"""


@pytest.mark.slow
def test_workers_agree_with_the_chief_on_every_number(toy_options, tmp_path):
    options = [*toy_options, *EXACT, "train.epochs=2", f"run.dir={tmp_path}/two"]
    port = two_ports()
    together = ["strategy=multi_worker", f"strategy.port={port}"]
    with workers(["-c", WORKER, *options, *together], by_slurm()) as tasks:
        said = [process.communicate(timeout=90) for process in tasks]
        assert [process.returncode for process in tasks] == [0, 0], said
    ours, theirs = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert ours["epochs"] == theirs["epochs"]
    assert ours["said"] == theirs["said"] == {"text": "é" * 9000, "rank": 0}
    assert ours["failed"] == "division by zero"
    assert theirs["failed"] == f"the chief, worker 0 (127.0.0.1:{port}), has stopped: division by zero"
    alone = train(entry.compose("train", [*options, f"run.dir={tmp_path}/one"], TrainConfig))
    assert alone["best_epoch"] == ours["best"] + 1
    for epoch, expected in zip(ours["epochs"], alone["epochs"], strict=True):
        assert epoch["loss"] == pytest.approx(expected["loss"], rel=2e-3)
        assert epoch["dev"]["imdb"]["accuracy"] == expected["dev"]["imdb"]["accuracy"]


def test_what_stops_the_chief_is_told_by_all_workers(toy_options, toy_run):
    addresses, environments = by_tf_config()
    command = ["-m", "bert_mtl.train", *toy_options, "strategy=multi_worker", f"run.dir={toy_run}"]
    with workers(command, environments) as processes:
        said = [process.communicate(timeout=60)[1] for process in processes]
        assert [process.returncode for process in processes] == [1, 1]
    rule = f"run.dir must be a new folder; got {toy_run}, which holds a run."
    assert f"\n{rule}" in said[0]
    assert f"\nthe chief, worker 0 ({addresses[0]}), has stopped: {rule}" in said[1]


def test_a_run_of_several_workers_has_a_folder_that_is_named(toy_options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *toy_options, "strategy=multi_worker"])
    with pytest.raises(SystemExit, match="2"):
        main()
    rule = "run.dir must be given with strategy=multi_worker: a folder that all workers share"
    assert rule in capsys.readouterr().err


def test_configurations_of_two_workers_may_differ_in_their_folders_alone(tiny_config):
    own = tiny_config("train").model_dump(mode="json")
    folders = tiny_config("train", "cache_dir=/there", "data.path=/data", "data=full", "run.dir=/runs/there")
    assert _unlike(own, folders.model_dump(mode="json")) == []
    other = tiny_config("train", "seed=5", "optimizer.learning_rate=0.001", "train.batch_size=4")
    assert _unlike(own, other.model_dump(mode="json")) == ["seed", "optimizer", "train"]
