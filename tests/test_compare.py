"""Comparing finished runs: folders made by hand, groups by configuration, and what the command says of them."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from bert_mtl import compare
from bert_mtl.answer_files import write_answers
from bert_mtl.answers import Answered
from bert_mtl.comparison import compare_groups
from bert_mtl.config import TaskConfig, TrainConfig
from bert_mtl.groups import WHERE, find_runs, group_runs
from bert_mtl.tables import print_comparison
from bert_mtl.tasks import make_tasks
from conf import entry
from conf.errors import ConfigError
from conf.explain import leaves

EXAMPLES = 40
MOOD = {"kind": "classification", "labels": ["neg", "pos"]}
SCORE = {"kind": "regression"}


def make_run(
    folder: Path, tasks: dict[str, dict] | None = None, wrong: dict[str, list[int]] | None = None, **more
) -> Path:
    """A finished run of `tasks` (task -> its heads); `wrong` tells the places at which heads err."""
    tasks = {"imdb": {"imdb": MOOD}} if tasks is None else tasks
    source = {"sample": {"format": "jsonl", "path": f"{folder}/data"}}
    config = {"seed": more.get("seed", 1), "optimizer": {"learning_rate": more.get("rate", 1e-4)}}
    config |= {"distill": {"teachers": [str(each) for each in more.get("teachers", [])]}, "run": {"dir": str(folder)}}
    config |= {"tasks": {name: {"heads": heads, "sources": source} for name, heads in tasks.items()}}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "run.json").write_text(json.dumps({"data": {name: more.get("data", "d" * 64) for name in tasks}}))
    if more.get("finished", True):
        (folder / "metrics.json").write_text("{}")
    if "history" in more:
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in more["history"]))
    for name, task in make_tasks({n: TaskConfig.model_validate(t) for n, t in config["tasks"].items()}).items():
        texts = [(f"{more.get('text', 'text')} {number} of {name}",) for number in range(EXAMPLES)]
        items = {head.name: answered(head.kind, (wrong or {}).get(head.name, [])) for head in task.heads.values()}
        for part in more.get("parts", ["dev"]):
            write_answers(folder, part, task, texts, np.full(EXAMPLES, 4), items)
    return folder


def answered(kind: str, wrong: list[int]) -> Answered:
    places = np.arange(EXAMPLES)
    if kind == "regression":
        values = places.astype(np.float32)
        return Answered(np.where(np.isin(places, wrong), -values, values), values, places)
    labels = places % 2
    return Answered(np.eye(2)[np.where(np.isin(places, wrong), 1 - labels, labels)], labels, places)


def compared(*folders: Path, part: str = "dev", resamples: int = 400) -> dict:
    runs, notes = find_runs([str(folder) for folder in folders])
    return compare_groups(group_runs(runs), part, resamples, 1, notes)


def names(*folders: Path) -> list[str]:
    return [group.name for group in group_runs(find_runs([str(folder) for folder in folders])[0])]


# Runs and groups.


def test_runs_that_differ_in_their_seeds_form_a_group_named_by_what_else_differs(tmp_path):
    for number, (rate, seed) in enumerate([(1e-4, 1), (5e-5, 1), (1e-4, 2), (5e-5, 2)]):
        make_run(tmp_path / str(number), seed=seed, rate=rate)
    groups = group_runs(find_runs([str(tmp_path)])[0])
    assert [(group.name, [run.folder.name for run in group.runs]) for group in groups] == [
        ("learning_rate=0.0001", ["0", "2"]),
        ("learning_rate=5e-05", ["1", "3"]),
    ]
    assert groups[1].differs == {"optimizer.learning_rate": "5e-05"}


def test_the_baseline_is_the_group_of_the_named_run(tmp_path):
    folders = [make_run(tmp_path / name, rate=rate) for name, rate in (("a", 1e-4), ("b", 2e-4), ("c", 3e-4))]
    runs, _ = find_runs([str(folder) for folder in folders])
    assert [group.name[-6:] for group in group_runs(runs, runs[2])] == ["0.0003", "0.0001", "0.0002"]


def test_a_task_that_only_some_runs_have_is_one_difference(tmp_path):
    one = make_run(tmp_path / "one")
    both = [make_run(tmp_path / name, {"imdb": {"imdb": MOOD}, "sts": {"sts": SCORE | more}}, seed=seed)
            for name, more, seed in (("two", {}, 1), ("three", {}, 2), ("four", {"weight": 2.0}, 1))]  # fmt: skip
    assert names(one, *both[:2]) == ["imdb", "imdb+sts"]
    assert names(one, *both) == ["imdb", "imdb+sts", "imdb+sts, weight=2.0"]


def test_data_counts_by_what_it_holds_and_not_by_its_path(tmp_path):
    folders = [
        make_run(tmp_path / name, data=data) for name, data in (("a", "x" * 64), ("b", "x" * 64), ("c", "y" * 64))
    ]
    groups = group_runs(find_runs([str(folder) for folder in folders])[0])
    assert [group.name for group in groups] == ["a and 1 more", "c"]
    assert groups[1].differs == {"fingerprint.imdb": "yyyyyyyy"}


def test_runs_taught_by_runs_of_other_seeds_are_seeds_of_one_group(tmp_path):
    teachers = [make_run(tmp_path / f"teacher{seed}", seed=seed) for seed in (1, 2)]
    other = make_run(tmp_path / "other", rate=1e-3)
    taught = [
        make_run(tmp_path / f"taught{i}", seed=i, teachers=[teacher]) for i, teacher in enumerate([*teachers, other])
    ]
    assert [len(group.runs) for group in group_runs(find_runs([str(folder) for folder in taught])[0])] == [2, 1]


def test_teachers_that_are_alike_are_no_difference(tmp_path):
    teachers = [make_run(tmp_path / f"teacher{seed}", seed=seed) for seed in (1, 2)]
    a, b = (make_run(tmp_path / name, rate=rate, teachers=[teacher])
            for name, rate, teacher in zip("ab", (1e-4, 1e-3), teachers, strict=True))  # fmt: skip
    assert names(a, b) == ["learning_rate=0.0001", "learning_rate=0.001"]
    assert names(a, make_run(tmp_path / "c", teachers=[tmp_path / "gone"])) == ["a", "c"]


def test_what_tells_where_a_run_was_made_is_a_key_of_the_tree():
    known = {key for key, _ in leaves(entry.compose("train", [], TrainConfig).model_dump(mode="json"))}
    assert WHERE - known == set()
    assert {"distill.teachers", "optimizer.learning_rate"} <= known


def test_a_sweep_stands_for_what_it_has_finished(tmp_path):
    for number in (0, 2, 10):
        make_run(tmp_path / "sweep" / str(number), seed=number, finished=number != 2)
    (tmp_path / "sweep" / "notes").mkdir()
    runs, notes = find_runs([str(tmp_path / "sweep"), str(tmp_path / "sweep" / "0")])
    assert [run.name for run in runs] == ["sweep/0", "sweep/10"]
    assert notes == [
        f"Left out of {tmp_path}/sweep, as they are not finished: 2.",
        f"{tmp_path}/sweep/0 is named twice and counts once.",
    ]


def test_a_searchs_jobs_are_runs_of_a_sweep_too(tmp_path):
    for name in ("10-seed1", "2-seed2", "2-seed1"):
        (make_run(tmp_path / "search" / name, seed=int(name[-1])) / "job.json").write_text("{}")
    runs, notes = find_runs([str(tmp_path / "search")])
    assert [run.name for run in runs] == ["search/2-seed1", "search/2-seed2", "search/10-seed1"] and not notes


def test_a_run_of_a_group_without_answers_of_a_head_is_told(tmp_path):
    two = {"imdb": {"imdb": MOOD}, "trec": {"trec": MOOD}}
    runs = [
        make_run(tmp_path / f"{rate}-{seed}", two, seed=seed, rate=rate) for rate in (1e-4, 1e-5) for seed in (1, 2)
    ]
    (runs[3] / "answers" / "dev-imdb.parquet").rename(runs[3] / "answers" / "gone")
    assert any("1e-05-2 has no answers to dev" in note for note in compared(*runs)["notes"])


def test_every_folder_that_is_no_finished_run_is_told_with_the_closest(tmp_path):
    make_run(tmp_path / "imdb-1")
    make_run(tmp_path / "half", finished=False)
    with pytest.raises(ConfigError) as caught:
        find_runs([str(tmp_path / "imbd-1"), str(tmp_path / "half"), str(tmp_path / "imdb-1")])
    assert [problem.value for problem in caught.value.problems] == [f"{tmp_path}/imbd-1", f"{tmp_path}/half"]
    assert f"Did you mean {tmp_path}/imdb-1?" in str(caught.value)
    assert f"be finished (go on with python -m bert_mtl.train run.resume={tmp_path}/half)" in str(caught.value)


# What is said of heads.


def test_a_head_has_scores_a_difference_with_interval_and_exact_counts(tmp_path):
    a = make_run(tmp_path / "a", wrong={"imdb": list(range(14))})
    b = make_run(tmp_path / "b", wrong={"imdb": [0, 30]}, rate=1e-3)
    payload = compared(a, b)
    head = payload["heads"]["imdb"]
    assert [score["values"] for score in head["scores"]] == [[26 / 40], [38 / 40]]
    result = head["against"][0]
    assert result["difference"] == pytest.approx(12 / 40) and result["examples"] == 40
    assert 0.1 < result["low"] < 0.2 < 0.4 < result["high"] < 0.5
    assert result["p"] == result["p_adjusted"] == 2 / 401 and result["verdict"] == "better"
    exact = pytest.approx(15 / 2**13)  # 0 or 1 of 14, either way
    assert result["mcnemar"] == {"only_baseline": 1, "only_this": 13, "p": exact, "p_adjusted": exact}
    assert len(head["disagreements"]) == 14
    assert head["disagreements"][0] == {
        "text": "text 1 of imdb",
        "label": "pos",
        "answers": ["neg", "pos"],
        "right": [False, True],
    }
    assert [each["answers"] for each in head["disagreements"] if each["right"] == [True, False]] == [["neg", "pos"]]
    assert json.loads(json.dumps(payload)) == payload


def test_seeds_are_averaged_and_answer_as_most_of_them_do(tmp_path):
    wrong = ([0, 1], [0, 2], [0, 3], [0, 1, 2, 3, 4, 5])
    folders = [
        make_run(tmp_path / str(i), seed=i, wrong={"imdb": w}, rate=(1e-4, 1e-3)[i == 3]) for i, w in enumerate(wrong)
    ]
    head = compared(*folders)["heads"]["imdb"]
    assert head["scores"][0] == {"mean": pytest.approx(38 / 40), "deviation": 0, "values": [38 / 40] * 3}
    assert head["scores"][1]["deviation"] is None
    assert head["against"][0]["difference"] == pytest.approx(-4 / 40) and head["against"][0]["mcnemar"] is None
    assert [each["text"] for each in head["disagreements"]] == [f"text {i} of imdb" for i in range(1, 6)]
    assert head["disagreements"][0]["right"] == [True, False]


def test_p_are_adjusted_over_heads_and_groups(tmp_path):
    tasks = {"imdb": {"imdb": MOOD}, "sts": {"sts": SCORE}}
    few, many = list(range(4)), list(range(20))
    a = make_run(tmp_path / "a", tasks, {"imdb": many, "sts": few})
    b = make_run(tmp_path / "b", tasks, {"imdb": [], "sts": [*few, 4]}, rate=1e-3)
    c = make_run(tmp_path / "c", tasks, {"imdb": many, "sts": few}, rate=1e-2)
    heads = compared(a, b, c)["heads"]
    results = [result for name in ("imdb", "sts") for result in heads[name]["against"]]
    assert [result["verdict"] for result in results] == ["better", *["no difference shown"] * 3]
    assert results[0]["p_adjusted"] == 4 * results[0]["p"] == 8 / 401
    assert [result["p_adjusted"] for result in results[1::2]] == [1, 1]
    assert [result["mcnemar"] and result["mcnemar"]["p_adjusted"] for result in results] == [2 * 2**-19, 1, None, None]
    assert heads["sts"]["kind"] == "regression" and heads["sts"]["metric"] == "spearman"
    assert heads["sts"]["disagreements"] == [
        {"text": "text 4 of sts", "label": "4", "answers": ["4", "-4", "4"], "right": [None] * 3}
    ]


def test_a_single_task_is_compared_with_many_in_the_heads_that_both_have(tmp_path):
    both = {"imdb": {"imdb": MOOD}, "sts": {"sts": SCORE}}
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two", {"sts": {"sts": SCORE}})
    payload = compared(one, two, make_run(tmp_path / "both", both, {"imdb": [3]}))
    heads = payload["heads"]
    assert [group["name"] for group in payload["groups"]] == ["imdb", "sts", "imdb+sts"]
    assert [result and result["difference"] for result in heads["imdb"]["against"]] == [None, pytest.approx(-1 / 40)]
    assert heads["imdb"]["scores"][1] == {"mean": None, "deviation": None, "values": []}
    assert heads["imdb"]["disagreements"][0]["answers"] == ["pos", None, "neg"]
    assert heads["sts"]["baseline"] == 1 and heads["sts"]["against"][0] is None
    assert heads["sts"]["against"][1]["p"] == 1
    assert payload["notes"][0] == "sts: compared with sts, as the baseline has no such head."


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"text": "other"}, "b and a have answered other examples (40 and 40, 0 of them the same)"),
        ({"tasks": {"imdb": {"imdb": MOOD | {"labels": ["good", "bad"]}}}}, "b and a have other labels"),
        (
            {"tasks": {"imdb": {"imdb": MOOD | {"metric": "macro_f1"}}}},
            "b and a have other kinds or metrics (classification, macro_f1; classification, accuracy)",
        ),
    ],
)
def test_what_is_not_the_same_is_not_compared_and_says_why(tmp_path, change, reason):
    head = (payload := compared(make_run(tmp_path / "a"), make_run(tmp_path / "b", rate=1e-3, **change)))["heads"][
        "imdb"
    ]
    assert head["against"] == [None] and head["disagreements"] == [] and head["scores"][0]["mean"] == 1
    assert any(note.startswith("imdb: ") and note.endswith(f" is not compared: {reason}.") for note in payload["notes"])


def test_other_train_data_is_told_beside_a_comparison_of_the_same_examples(tmp_path):
    payload = compared(make_run(tmp_path / "a"), make_run(tmp_path / "b", wrong={"imdb": [1]}, data="e" * 64))
    assert payload["heads"]["imdb"]["against"][0]["difference"] == pytest.approx(-1 / 40)
    assert payload["notes"][0].startswith("imdb: b and a have other data (its fingerprints differ")


def test_seeds_alone_have_nothing_to_be_compared_with(tmp_path):
    payload = compared(*(make_run(tmp_path / str(i), seed=i, wrong={"imdb": [0] * i}) for i in range(2)))
    assert payload["heads"]["imdb"]["scores"][0]["values"] == [1, 39 / 40]
    assert payload["notes"] == [
        "All runs have one configuration but for their seeds: they are one group, with nothing to compare."
    ]


def test_too_few_resamples_for_so_many_comparisons_are_told(tmp_path):
    folders = [make_run(tmp_path / str(i), rate=10.0**-i) for i in range(5)]
    assert (
        "100 resamples are too few for 4 comparisons to show any difference."
        in compared(*folders, resamples=100)["notes"]
    )
    assert not any("too few" in note for note in compared(*folders, resamples=400)["notes"])


def test_runs_without_answers_are_told_the_command_that_makes_them(tmp_path):
    make_run(tmp_path / "a", rate=1e-3)
    make_run(tmp_path / "b", parts=[])
    with pytest.raises(ConfigError) as caught:
        compared(tmp_path / "a", tmp_path / "b", part="test")
    assert len(caught.value.problems) == 2
    assert f"have answers to test; python -m bert_mtl.report run={tmp_path}/b writes them" in str(caught.value)


def test_curves_are_means_over_seeds_of_lines_of_steps_else_of_epochs(tmp_path):
    def history(loss: float) -> list[dict]:
        return [
            {"step": 10, "epoch": 0.5, "imdb/loss": loss, "speed/tokens_per_second": 100 * loss},
            {"step": 20, "epoch": 1, "imdb/loss": loss / 2, "speed/tokens_per_second": 300},
            {"step": 20, "epoch": 1, "seconds": 10 * loss, "imdb/loss": 9, "imdb/dev_accuracy": loss / 4, "note": "x"},
        ]

    for number, loss in enumerate((1.0, 3.0)):
        make_run(tmp_path / str(number), seed=number, history=history(loss))
    payload = compared(tmp_path, make_run(tmp_path / "b", rate=1e-3))
    assert payload["curves"] == {
        "imdb/loss": [[[10, 2], [20, 1]], []],
        "imdb/dev_accuracy": [[[20, 0.5]], []],
        "speed/tokens_per_second": [[[10, 200], [20, 300]], []],
    }
    assert payload["speed"] == [{"tokens_per_second": 250, "seconds": 20}, {"tokens_per_second": None, "seconds": None}]
    assert payload["groups"][0]["runs"][1]["seconds"] == 30


def test_the_terminal_shows_a_line_for_each_group(tmp_path):
    a = make_run(tmp_path / "a", wrong={"imdb": list(range(14))})
    seeds = [make_run(tmp_path / f"b{i}", wrong={"imdb": [i]}, rate=1e-3, seed=i) for i in range(2)]
    console = Console(width=110, record=True, file=io.StringIO())
    print_comparison(compared(a, *seeds), console)
    text = console.export_text()
    assert "imdb: accuracy on dev" in text
    lines = [" ".join(line.split()) for line in text.splitlines() if "learning_rate" in line]
    assert lines[0] == "learning_rate=0.0001 1 0.6500 baseline"
    assert lines[1].startswith("learning_rate=0.001 2 0.9750 ± 0.0000 +0.3250 +0.") and lines[1].endswith(
        " 0.0050 better"
    )
    assert "p is adjusted for the number of comparisons, 1 (Holm)" in text


# The command.


def test_the_command_takes_runs_as_arguments_and_writes_page_and_data(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name, rate in (("it's, ${a}", 1e-4), ("lr=2", 1e-3)):
        make_run(Path("runs") / name, wrong={"imdb": [3]}, rate=rate)
    argv = ["runs/it's, ${a}", "output=out/page.html", "runs/lr=2", "resamples=100", "baseline=runs/lr\\=2"]
    monkeypatch.setattr(sys, "argv", ["compare", *argv])
    compare.main()
    payload = json.loads(Path("out/page.json").read_text())
    assert [group["runs"][0]["folder"] for group in payload["groups"]] == ["runs/lr=2", "runs/it's, ${a}"]
    assert "text 3 of imdb" not in capfd.readouterr().out
    assert Path("out/page.html").read_text().startswith("<!")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "runs must be given; got nothing."),
        (["a"], "runs must be folders of finished runs, or of sweeps; got a."),
        (["runs/x=y"], "runs must be folders of finished runs, or of sweeps; got runs/x=y."),
        (["runs=[a]", "b"], "runs must be given once, as arguments or as a key; got runs=[a] b."),
        (["a", "b", "output=page"], "output must end in .html; got page."),
        (["a", "b", "part=train"], "part must be one of the options; got train. Options: dev, test."),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, monkeypatch, capfd, argv, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare", *argv])
    with pytest.raises(SystemExit) as stop:
        compare.main()
    assert (stop.value.code, capfd.readouterr().err) == (2, f"{message}\n")
    assert list(tmp_path.iterdir()) == []


def test_one_run_is_nothing_to_compare_and_a_baseline_is_one_of_the_runs(tmp_path):
    folders = [str(make_run(tmp_path / name, rate=rate)) for name, rate in (("aa", 1e-4), ("bb", 1e-3))]
    options = {"part": "dev", "baseline": None, "resamples": 100, "seed": 1, "output": str(tmp_path / "x.html")}
    with pytest.raises(ConfigError, match="^runs must be at least two finished runs; got"):
        compare.compare(compare.CompareConfig(runs=folders[:1], **options))
    with pytest.raises(
        ConfigError, match="^baseline must be one of the runs; got .*/ab. Options: .* Did you mean .*/bb"
    ):
        compare.compare(compare.CompareConfig(runs=folders, **options | {"baseline": str(tmp_path / "ab")}))


def test_comparing_loads_neither_keras_nor_tensorflow():
    code = "import sys, bert_mtl.compare; print([name for name in ('keras', 'tensorflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
