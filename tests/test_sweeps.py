"""Sweeps: jobs that fail, sweeps that are interrupted, searches by Optuna, and what all of them found."""

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from conf.entry import CONF_DIR, ConfigError, Schema, compose, main, output_dir
from conf.search import Search, SearchConfig, space
from conf.sweep import JOB_FILE, jobs, read_jobs, together

TREE = """
rate: 0.1  # peak learning rate
size: 8  # examples in a step
seed: 1  # of everything
hydra:
  sweep:
    dir: sweep  # folder of a sweep
    subdir: ${hydra.job.num}  # one folder a job
"""


class Train(Schema):
    rate: float
    size: int
    seed: int


class Broken(Exception):
    user_error = True


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "conf"
    shutil.copytree(CONF_DIR / "hydra", folder / "hydra")
    (folder / "train.yaml").write_text(TREE)
    monkeypatch.chdir(tmp_path)
    return folder


def sweep(tree: Path, *argv: str, job) -> object:
    """The exit code of a sweep; None of one that went through."""
    try:
        main("train", Train, job, argv=["-m", *argv], config_dir=tree)
    except SystemExit as end:
        return end.code
    return None


def overrides(*texts: str) -> list:
    return OverridesParser.create().parse_overrides(list(texts))


def settings(**changes) -> SearchConfig:
    own = {"sampler": "tpe", "n_trials": 4, "n_jobs": 1, "seed": 1, "seeds": (), "params": {}}
    return SearchConfig(**(own | changes))


# Which jobs there are.


def test_a_grid_is_every_combination_and_a_search_sees_each_value_once():
    values = {"a": ["a=1", "a=2"], "b": ["b=3", "b=4", "b=5"]}
    assert len(list(jobs(values, every=True))) == 6
    assert list(jobs(values, every=False)) == [["a=1", "b=3"], ["a=2", "b=3"], ["a=1", "b=4"], ["a=1", "b=5"]]


def test_the_command_line_wins_over_the_sweepers_params_in_their_place():
    assert together(["b=3", "c=4"], {"a": 1, "b": "1,2"}) == ["a=1", "b=3", "c=4"]


def test_params_of_a_file_are_checked_and_swept(tree, capfd):
    (tree / "train.yaml").write_text(TREE + "  sweeper:\n    params:\n      size: 2,4\n")
    seen = []
    assert sweep(tree, "rate=1,2", job=lambda config: seen.append((config.size, config.rate))) is None
    assert seen == [(2, 1.0), (2, 2.0), (4, 1.0), (4, 2.0)]
    assert sweep(tree, "size=2,x", job=print) == 2
    assert "size must be a whole number; got x." in capfd.readouterr().err


def test_what_hydras_own_sweeper_cannot_do_is_said_before_it_starts(tree, capfd):
    assert sweep(tree, "rate=interval(0,1)", job=print) == 2
    assert "rate must have values to go through; an interval needs hydra/sweeper=optuna; got" in capfd.readouterr().err
    assert not Path("sweep").exists()


# Jobs that fail, and sweeps that are interrupted.


def test_a_failing_job_does_not_end_a_sweep(tree, capfd):
    def job(config: Train) -> float:
        if config.rate == 2:
            raise Broken("the rate must be lower; got 2.0.")
        if config.rate == 3:
            raise ZeroDivisionError("real")
        return config.rate

    assert sweep(tree, "rate=1,2,3,4", job=job) == 1
    out, err = capfd.readouterr()
    assert "ERROR] - job 1 (rate=2) failed: the rate must be lower; got 2.0.\n" in out
    assert out.count("Traceback") == 1  # of the mistake of the program
    assert err.splitlines()[:3] == [
        "2 of 4 jobs failed:",
        "  sweep/1 (rate=2): the rate must be lower; got 2.0.",
        "  sweep/2 (rate=3): real",
    ]
    assert err.splitlines()[-1].endswith(" -m rate=1,2,3,4 hydra.sweep.dir=sweep")
    assert [job.state for job in read_jobs(Path("sweep"))] == ["finished", "failed", "failed", "finished"]


def test_an_interrupted_sweep_ends_at_once_and_says_how_to_go_on(tree, capfd):
    seen = []

    def job(config: Train) -> None:
        seen.append(config.rate)
        if config.rate == 2:
            raise KeyboardInterrupt

    assert sweep(tree, "rate=1,2,3", "hydra.sweep.dir='a b'", job=job) == 130
    assert seen == [1.0, 2.0]
    assert "rate=1,2,3 'hydra.sweep.dir='\"'\"'a b'\"'\"''" in capfd.readouterr().err
    assert [job.state for job in read_jobs(Path("a b"))] == ["finished", "running"]


def test_a_folder_takes_no_sweep_with_fewer_jobs(tree, capfd):
    assert sweep(tree, "rate=1,2,3", job=float) == 1  # each fails: a configuration is no number
    assert sweep(tree, "rate=1,2", job=lambda config: config.rate) == 2
    assert "hydra.sweep.dir must be the folder of this command, which has 2 jobs; sweep/2" in capfd.readouterr().err


def test_a_job_whose_folder_another_process_works_in_fails(tree, capfd):
    Path("sweep/0").mkdir(parents=True)
    with open(f"sweep/0/.{JOB_FILE}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert sweep(tree, "rate=1,2", job=lambda config: config.rate) == 1
    out, err = capfd.readouterr()
    assert err.splitlines()[:2] == ["1 of 2 jobs failed:", "  job 0: it could not begin; the log says why"]
    assert "job 0 (rate=1) failed: hydra.sweep.dir must have no other process at work in a job's folder" in out
    assert [job.folder.name for job in read_jobs(Path("sweep"))] == ["1"]


def test_jobs_run_in_processes_of_joblib_and_may_fail_there(tree, capfd):
    def job(config: Train) -> float:
        from hydra.core.hydra_config import HydraConfig

        (output_dir() / "process").write_text(f"{os.getpid()} {HydraConfig.get().launcher.n_jobs}")
        return 1 / (config.rate - 1)

    assert sweep(tree, "rate=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=16", job=job) == 1
    assert "sweep/0 (rate=1): float division by zero" in capfd.readouterr().err
    processes = [Path(f"sweep/{number}/process").read_text().split() for number in (0, 1)]
    assert str(os.getpid()) not in [process for process, _ in processes]
    assert [together for _, together in processes] == ["2", "2"]  # as many as there are jobs


def test_a_launcher_that_is_not_installed_names_the_extra(tree, capfd, monkeypatch):
    from conf.tree import Tree

    there = Tree.choices
    monkeypatch.setattr(Tree, "choices", lambda self, group: [n for n in there(self, group) if n != "joblib"])
    assert sweep(tree, "hydra/launcher=joblib", job=print) == 2
    assert "hydra/launcher must be installed (pip install 'bert_mtl[sweep]'); got joblib" in capfd.readouterr().err


# Searches.


def test_hydras_words_become_what_optuna_searches():
    found = space(
        overrides(
            "fixed=1",
            "a=interval(0,1)",
            "b=tag(log,interval(1e-5,1e-3))",
            "c=int(interval(2,8))",
            "d=range(1,10,3)",
            "e=range(0,1,0.25)",
            "f=[a,b],[c]",
            "g=choice(8,16)",
        )
    )
    assert found == {
        "a": FloatDistribution(0, 1),
        "b": FloatDistribution(1e-5, 1e-3, log=True),
        "c": IntDistribution(2, 8),
        "d": IntDistribution(1, 7, step=3),
        "e": FloatDistribution(0, 0.75, step=0.25),
        "f": CategoricalDistribution(("[a,b]", "[c]")),
        "g": CategoricalDistribution(("8", "16")),
    }
    with pytest.raises(ConfigError, match="^a must have no tag lg; got tag"):
        space(overrides("a=tag(lg,interval(1,2))"))
    with pytest.raises(ConfigError, match="^a must be what can be searched"):
        space(overrides("a=tag(log,interval(0,2))"))


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_goes_on_with_the_trials_that_have_no_value(tmp_path, sampler):
    words = overrides("size=4", "rate=interval(0,1)", "seed=1,2")
    whole = Search(tmp_path / "whole", settings(sampler=sampler), words)
    trials = []
    for batch in whole.batches():
        for trial in batch:
            trials.append(trial)
            whole.tell(trial.number, trial.number)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert trials[0].overrides[0] == "size=4" and len({trial.overrides[1] for trial in trials}) == 4

    parts = tmp_path / "parts"
    first = Search(parts, settings(sampler=sampler), words).batches()
    Search(parts, settings(sampler=sampler), words).tell(next(first)[0].number, 0)
    assert next(first) == [trials[1]]  # killed before it had a value
    again = Search(parts, settings(n_jobs=2, sampler=sampler), words)
    told = []
    for batch in again.batches():
        told.append([trial.number for trial in batch])
        assert batch[0] in trials
        for trial in batch:
            again.tell(trial.number, trial.number)
    assert told == [[1, 2], [3]]
    assert list(Search(parts, settings(n_trials=3, sampler=sampler), words).batches()) == []


def test_another_search_is_refused_its_folder(tmp_path):
    Search(tmp_path, settings(), overrides("rate=interval(0,1)"))
    said = r"very search; it has rate=interval\(0,1\) there and rate=interval\(0,2\) here; got"
    with pytest.raises(ConfigError, match=said):
        Search(tmp_path, settings(), overrides("rate=interval(0,2)"))


def test_optuna_searches_over_seeds_and_runs_a_failed_trial_again(tree):
    seen = {}

    def job(config: Train) -> float:
        seen[output_dir().name] = config
        if len(seen) == 4 and "0-seed1" in seen:
            raise Broken("the disk is full.")
        return config.rate + (0.1 if config.seed == 1 else -0.1)

    words = ["rate=interval(0,1)", "size=choice(2,4)"]
    command = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", *words]
    assert sweep(tree, *command, "hydra.sweeper.seeds=[1,2]", job=job) == 1
    assert list(seen) == ["0-seed1", "0-seed2", "1-seed1", "1-seed2"]
    first, second = seen["0-seed2"], seen["1-seed2"]
    assert first.rate == seen["0-seed1"].rate != second.rate and (first.seed, second.seed) == (2, 2)
    seen.clear()
    assert sweep(tree, *command, "hydra.sweeper.seeds=[1,2]", job=job) is None
    assert list(seen) == ["1-seed1", "1-seed2"] and seen["1-seed2"] == second
    study = Search(Path("sweep"), settings(seeds=(1, 2)), overrides(*words)).study
    assert [trial.value for trial in study.trials] == pytest.approx([first.rate, second.rate])


def test_mistakes_of_a_search_are_told_before_it_starts(tree, capfd):
    words = ["hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=0", "rate=interval(0,1)"]
    assert sweep(tree, "hydra/sweeper=optuna", *words, job=print) == 2
    err = capfd.readouterr().err
    assert "hydra.sweeper.n_trials must be greater than 0; got 0." in err
    assert "hydra.sweeper.sampler must be one of the options; got grid. Options: tpe, random." in err
    assert sweep(tree, "hydra/sweeper=optuna", "rate=0.1", job=print) == 2
    assert "hydra/sweeper must have something to search: key=interval(a,b)" in capfd.readouterr().err
    assert sweep(tree, "hydra/sweeper=optuna", "size=range(3,1,-1)", job=print) == 2
    err = capfd.readouterr().err
    assert "size must be what can be searched" in err and "goes on with it" not in err
    words = ["hydra.sweeper.seeds=[1]", "seed=3", "size=choice(2,x)", "rate=interval(0,1)"]
    assert sweep(tree, "hydra/sweeper=optuna", *words, job=print) == 2
    err = capfd.readouterr().err
    assert "seed must be left out beside hydra.sweeper.seeds; got seed=3." in err
    assert "size must be a whole number; got x." in err
    assert not Path("sweep").exists()


# What a sweep found.


def test_jobs_that_differ_in_their_seed_alone_are_one_line(tmp_path, toy_run):
    from rich.console import Console

    from bert_mtl.sweeps import as_csv, results, table

    metrics = json.loads((toy_run / "metrics.json").read_text())
    for number, (rate, seed, score) in enumerate([(1, 1, 0.5), (1, 2, 0.7), (0.123456, 1, 0.9), (2, 1, None)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        facts = {"number": number, "overrides": [f"rate={rate}", f"seed={seed}"], "state": "failed", "error": "x"}
        if score is not None:
            facts |= {"state": "finished", "error": None}
            shutil.copy(toy_run / "config.yaml", folder)
            heads = {"imdb": {"accuracy": score, "loss": 1.0}}
            (folder / "metrics.json").write_text(json.dumps(metrics | {"score": score, "dev": heads, "test": {}}))
        (folder / JOB_FILE).write_text(json.dumps(facts))
    found = results(read_jobs(tmp_path))
    assert [group["overrides"] for group in found["groups"]] == [["rate=0.123456"], ["rate=1"]]
    assert found["groups"][0]["score"] == {"mean": 0.9, "deviation": None, "values": [0.9]}
    assert found["groups"][1]["score"] == {
        "mean": 0.6,
        "deviation": pytest.approx(math.sqrt(0.02)),
        "values": [0.5, 0.7],
    }
    assert found["groups"][1]["heads"]["imdb"]["metric"] == "accuracy"
    assert found["groups"][1]["heads"]["imdb"]["dev"]["values"] == [0.5, 0.7]
    assert [row["state"] for row in found["jobs"]] == ["finished"] * 3 + ["failed"]
    lines = as_csv(found["jobs"]).splitlines()
    assert lines[0] == "folder,state,seed,score,error,overrides,dev/imdb/accuracy,dev/imdb/loss"
    assert lines[1] == f"{tmp_path}/0,finished,1,0.5,,rate=1,0.5,1.0"
    assert lines[4] == f"{tmp_path}/3,failed,,,x,rate=2,,"
    console = Console(width=100)
    with console.capture() as shown:
        console.print(table(found["groups"]))
    assert "│ 0.1235 │ 1    │ 0.9000          │ 0.9000            │" in shown.get()
    assert "│ 1      │ 2    │ 0.6000 ± 0.1414 │ 0.6000 ± 0.1414   │" in shown.get()


def test_a_process_holds_the_first_free_place(tmp_path):
    from bert_mtl.sweeps import hold_place

    (first, lock), (second, other) = hold_place(tmp_path / "places"), hold_place(tmp_path / "places")
    assert (first, second) == (0, 1)
    lock.close()  # as a process that ends does
    with contextlib.closing(other), contextlib.closing(hold_place(tmp_path / "places")[1]) as third:
        assert third.name.endswith("0")


# Trainings.


def test_a_run_of_another_configuration_is_refused_its_folder(tmp_path, toy_run, toy_options):
    from bert_mtl.config import TrainConfig
    from bert_mtl.sweeps import TrainSweeps

    def said(*changes: str) -> list[str]:
        config = compose("train", [*toy_options, f"run.dir={tmp_path}", "data.rebuild=true", *changes], TrainConfig)
        return [str(problem) for problem in TrainSweeps().unlike(toy_run, config)]

    assert said() == []
    rule = f"be what the run in {toy_run} has (0.0), or hydra.sweep.dir another folder"
    assert said("train.r_drop=1") == [f"train.r_drop must {rule}; got 1.0."]
    assert TrainSweeps().unlike(tmp_path, None) == []  # nothing has begun


def test_a_finished_run_of_another_configuration_is_not_taken_for_the_jobs(toy_run, toy_options):
    from bert_mtl.config import TrainConfig
    from bert_mtl.sweeps import train_job

    config = compose("train", [*toy_options, f"run.dir={toy_run}", "seed=9"], TrainConfig)
    with pytest.raises(ConfigError, match=r"seed must be what the run in .* has \(1\), .*; got 9"):
        train_job(config, lambda config: {"score": 0.0})


def test_a_killed_sweep_goes_on_and_trains_nothing_twice(tmp_path, toy_options, monkeypatch):
    from bert_mtl import train
    from bert_mtl.config import TrainConfig
    from bert_mtl.sweeps import train_job

    folder = tmp_path / "sweep"
    options = ["-m", *toy_options, "train.epochs=1", "train.save_every=1", "seed=1,2", f"hydra.sweep.dir={folder}"]
    command = [sys.executable, "-m", "bert_mtl.train", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (folder / "0" / "state.safetensors").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "0" / "metrics.json").exists()
    shutil.copytree(folder / "0", folder / "1")  # another one, killed before its first state
    (folder / "1" / "state.safetensors").unlink()
    for name in ("config.yaml", JOB_FILE):
        text = (folder / "1" / name).read_text()
        changes = {"\nseed: 1\n": "\nseed: 2\n", "seed=1": "seed=2", '"number": 0': '"number": 1'}
        for old, new in changes.items():
            text = text.replace(old, new)
        (folder / "1" / name).write_text(text)

    monkeypatch.setattr(sys, "argv", ["train", *options])
    train.main()
    assert [re.findall("resumed in epoch 1", (folder / n / "train.log").read_text()) for n in "01"] == [
        ["resumed in epoch 1"],
        [],
    ]
    scores = [json.loads((folder / number / "metrics.json").read_text())["score"] for number in "01"]
    (group,) = json.loads((folder / "results.json").read_text())["groups"]
    assert group["seeds"] == [1, 2] and group["score"]["values"] == scores

    again = compose("train", [*options[1:-2], "seed=2", f"run.dir={folder / '1'}"], TrainConfig)
    assert train_job(again, pytest.fail) == scores[1]  # a finished run is not trained again


# Weights & Biases.


def test_the_command_of_a_wandb_agent_composes(monkeypatch):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    from bert_mtl.config import TrainConfig

    file = CONF_DIR.parent / "sweeps" / "imdb.yaml"
    config = load_sweep_config(str(file))
    assert config == yaml.safe_load(file.read_text())
    chosen = {
        "optimizer.learning_rate": 3.4567e-05,
        **{key: found.get("value", found.get("values", [None])[-1]) for key, found in config["parameters"].items()},
    } | {"optimizer.learning_rate": 3.4567e-05}
    args = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    args |= {"env": ["/usr/bin/env"], "interpreter": ["python"]}
    command = []
    for word in create_sweep_command(config["command"]):  # as wandb.wandb_agent does
        macro = word.startswith("${") and word.endswith("}")
        command += args[word[2:-1]] if macro else [word]
    assert command[:4] == ["/usr/bin/env", "python", "-m", "bert_mtl.train"]
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    found = compose("train", command[4:], TrainConfig)
    assert (found.optimizer.learning_rate, found.mixing.kind, list(found.tasks)) == (
        3.4567e-05,
        chosen["mixing"],
        ["imdb", "snips"],
    )
    assert found.run.dir == "runs/abc" and found.tracking.kind == "wandb"
