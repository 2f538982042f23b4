"""A finished run of several tasks evaluated: figures of every head, beside baselines, with the texts of its errors."""

import json

import numpy as np
import pytest

from bert_mtl.commands import EvaluateConfig
from bert_mtl.evaluate import evaluate
from bert_mtl.kinds import head_settings, make_head
from bert_mtl.parts import read_part
from bert_mtl.records import Manifest, PartManifest, Shard, write_lines
from bert_mtl.runs import open_run
from bert_mtl.tasks import Example, Task
from conf import entry
from conf.errors import ConfigError


def asked(run, **changes):
    settings = {"part": "test", "batch_size": 32, "errors": 3, "baseline": False, "output": None}
    return EvaluateConfig(run=str(run), **settings | changes)


@pytest.fixture(scope="module")
def evaluated(multi_run, tmp_path_factory):
    """Reports, and the file they were written to."""
    output = tmp_path_factory.mktemp("evaluated") / "report.json"
    return evaluate(asked(multi_run, baseline=True, output=str(output))), json.loads(output.read_text())


def test_every_head_has_the_metrics_that_training_ended_with(multi_run, evaluated):
    trained = json.loads((multi_run / "metrics.json").read_text())["test"]
    assert list(evaluated[0]) == list(trained) == ["imdb", "numbers_spans", "alike", "words"]
    for name, metrics in trained.items():
        assert {key: evaluated[0][name][key] for key in metrics} == pytest.approx(metrics, abs=1e-5)


def test_the_file_says_what_was_evaluated_and_holds_the_reports(multi_run, evaluated):
    reports, written = evaluated
    assert written == {"run": str(multi_run), "data": "sample", "part": "test", "heads": reports}


def test_length_groups_hold_all_labelled_examples(evaluated):
    for name in ("imdb", "numbers_spans", "alike"):
        report = evaluated[0][name]
        assert sum(group["examples"] for group in report["by_length"]) == report["examples"]
        assert all(report["metric"] in group for group in report["by_length"])
    assert "by_length" not in evaluated[0]["words"]


def test_text_heads_that_a_linear_model_can_answer_stand_beside_one(evaluated):
    reports = evaluated[0]
    assert {name for name, report in reports.items() if "baseline" in report} == {"imdb", "alike"}
    assert reports["imdb"]["baseline"]["accuracy"] == 1.0  # a word decides
    assert reports["alike"]["baseline"]["examples"] == reports["alike"]["examples"] == 16
    assert reports["alike"]["baseline"]["pearson"] > 0.9


def test_errors_show_the_texts_as_they_were_given(evaluated):
    errors = evaluated[0]["alike"]["errors"]
    assert len(errors) == 3
    for error in errors:
        same = error["text"].split()[-1] == error["text_b"].split()[1]
        assert error["label"] == (5.0 if same else 0.0)
    residuals = [abs(error["label"] - error["predicted"]) for error in errors]
    assert residuals == sorted(residuals, reverse=True)


def test_chosen_tasks_are_evaluated_alone(multi_run, tmp_path):
    assert set(evaluate(asked(multi_run, tasks={"alike": {}}, output=str(tmp_path / "r.json")))) == {"alike"}
    config = entry.compose("evaluate", ["run=r", "task=[imdb,snips]"], EvaluateConfig)
    assert list(config.tasks) == ["imdb", "snips"]
    assert entry.compose("evaluate", ["run=r"], EvaluateConfig).tasks == {}


def test_a_task_that_the_run_does_not_have_is_refused_with_those_it_has(multi_run):
    message = r"task must be among the run's tasks; got number. Options: imdb, .*, words. Did you mean numbers"
    with pytest.raises(ConfigError, match=message):
        evaluate(asked(multi_run, tasks={"number": {}}))


def test_data_that_only_the_tasks_left_out_have_is_refused(multi_run):
    run = open_run(multi_run)
    full = run.config.data.model_copy(update={"source": "full"})
    with pytest.raises(ConfigError, match="data must be a source that task alike has; got full. Options: sample"):
        evaluate(asked(multi_run, data=full, tasks={"alike": {}}))


def test_data_split_in_another_way_than_the_runs_is_refused(multi_run):
    data = open_run(multi_run).config.data.model_copy(update={"test_fraction": 0.5})
    with pytest.raises(ConfigError, match=r"data\.test_fraction must be the run's, 0.1; got 0.5"):
        evaluate(asked(multi_run, data=data))


def test_texts_and_labels_are_read_back_from_text_shards(tmp_path):
    settings = {
        "topics": {"kind": "multilabel", "labels": ["a", "b"]},
        "names": {"kind": "tagging", "labels": ["x"]},
        "stars": {"kind": "regression"},
    }
    heads = {name: make_head(f"t_{name}", head_settings(raw)) for name, raw in settings.items()}
    task = Task("t", 0, None, heads)
    examples = [
        Example("one two", "b\u2028c", {"t_topics": [0, 1], "t_names": [1, 0], "t_stars": [2.5]}),
        Example("three", "d", {"t_topics": [-1, -1], "t_names": [-1], "t_stars": [np.nan]}),
    ]
    write_lines(tmp_path / "dev.tsv", examples, [head.name for head in heads.values()])
    part = PartManifest((Shard("dev.tsv", 2, 0, ""),), {}, None)
    Manifest("t", "sample", "", "", True, {"dev": part}).save(tmp_path)
    texts, labels = read_part(tmp_path, "dev", task)
    assert texts == [("one two", "b\u2028c"), ("three", "d")]
    assert set(labels) == {"t_topics", "t_stars"}
    np.testing.assert_array_equal(labels["t_topics"], [[0, 1], [-1, -1]])
    np.testing.assert_array_equal(labels["t_stars"], [2.5, np.nan])
    assert labels["t_topics"].dtype == np.int32 and labels["t_stars"].dtype == np.float32
