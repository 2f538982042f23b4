"""The report of a run: what stands in its folder, and what the page is given."""

import json
import shutil

import pytest
import yaml

from bert_mtl.answer_table import read_answers
from bert_mtl.commands import ReportConfig
from bert_mtl.findings import read_findings
from bert_mtl.report import answer_run, payload, report
from bert_mtl.runs import RunError, load_model, open_run


@pytest.fixture(scope="module")
def shown(multi_run) -> dict:
    run = open_run(multi_run)
    return payload(run, json.loads((multi_run / "metrics.json").read_text()), ["a warning"])


def test_findings_have_the_figures_of_metrics_with_curves_and_errors(multi_run):
    results = json.loads((multi_run / "metrics.json").read_text())
    for part in ("dev", "test"):
        found = read_findings(multi_run, part)
        assert list(found) == ["imdb", "numbers_spans", "alike", "words"]
        for head, metrics in results[part].items():
            assert {name: found[head][name] for name in metrics} == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    assert set(found["imdb"]["curves"]) == {"calibration", "precision_recall", "confidences"}
    assert set(found["numbers_spans"]["curves"]) == {"by_type"} and len(found["alike"]["curves"]["scatter"]) == 16
    assert found["words"]["curves"] == {} and found["words"]["errors"] == []
    assert found["alike"]["errors"] and set(found["alike"]["errors"][0]) >= {"text", "text_b", "label"}


def test_files_of_answers_have_the_scores_of_the_models_own_heads(multi_run):
    """Heads carry what was tuned on dev: others than the model's would answer by other thresholds."""
    run = open_run(multi_run)
    model = load_model(run)
    for answers in answer_run(run, model, ["dev"]):
        assert all(model.heads[head.name] is head for head in answers.task.heads.values())
        table = read_answers(multi_run, "dev", answers.task.name)
        for name, facts in table.heads.items():
            found = read_findings(multi_run, "dev")[name]
            assert facts.value == pytest.approx(found[found["metric"]])


def test_the_page_is_given_every_head_part_and_line(multi_run, shown):
    assert {head: each["path"] for head, each in shown["heads"].items()} == {
        "imdb": "imdb", "numbers_spans": "numbers/spans", "alike": "alike", "words": "words",
    }  # fmt: skip
    assert all(set(each["parts"]) == {"dev", "test"} for each in shown["heads"].values())
    assert shown["run"]["tasks"] == ["imdb", "numbers", "alike", "words"] and shown["run"]["data"] == "sample"
    assert (shown["run"]["epochs"], shown["run"]["best_epoch"]) == (12, 12)
    assert shown["run"]["steps"] == shown["history"][-1]["step"]
    assert yaml.safe_load(shown["config"])["train"]["epochs"] == 12
    assert shown["warnings"] == ["a warning"]
    model = sum(v.size for v in open_weights(multi_run).values())
    assert shown["run"]["parameters"] == model


def open_weights(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "weights.safetensors")


def test_the_page_is_given_the_data_and_how_rows_are_filled(shown):
    imdb = shown["data"]["imdb"]
    assert {part: found["examples"] for part, found in imdb["parts"].items()} == {"train": 96, "dev": 32, "test": 32}
    assert imdb["parts"]["train"]["labels"] == {"imdb": {"neg": 48.0, "pos": 48.0}}
    assert sum(imdb["lengths"]["train"]) == 96 and imdb["lengths"]["limit"] == imdb["lengths"]["edges"][-1] == 32
    packing = shown["packing"]
    assert packing["kind"] == "packed" and 0.5 < packing["fill"] <= 1
    assert packing["examples_per_step"] * packing["steps"] == pytest.approx(96 + 3 * 48)


def test_the_command_makes_the_same_files_again(multi_run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(multi_run, folder)
    before = {name: (folder / name).read_text() for name in ("findings-dev.json", "findings-test.json")}
    for name in (*before, "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "answers")
    report(ReportConfig(run=str(folder)))
    assert capsys.readouterr().out.endswith(f"report: {folder / 'report.html'}\n")
    assert {name: json.loads((folder / name).read_text()) for name in before} == {
        name: json.loads(text) for name, text in before.items()
    }
    assert sorted(path.name for path in (folder / "answers").iterdir()) == sorted(
        f"{part}-{task}.parquet" for part in ("dev", "test") for task in ("imdb", "numbers", "alike", "words")
    )
    assert "<html" in (folder / "report.html").read_text()[:200]


def test_an_unfinished_run_has_no_report(multi_run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(multi_run, folder)
    (folder / "metrics.json").unlink()
    with pytest.raises(RunError, match="run must be finished; got .* which has no metrics.json"):
        report(ReportConfig(run=str(folder)))
