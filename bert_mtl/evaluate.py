"""Evaluation of a run: `python -m bert_mtl.evaluate run=…`. A report as tables and as JSON, beside a linear baseline.

The part is read as text shards, so that errors can be shown and the baseline learns from the very same examples.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from bert_mtl.config import DataConfig, EvaluateConfig, task_problems
from bert_mtl.input_pipeline import Pipeline
from bert_mtl.multitask import answer_part
from bert_mtl.records import atomic_write, load_manifest
from bert_mtl.report import head_report, print_report, worst_errors
from bert_mtl.runs import Run, check_examples, load_model, open_run
from bert_mtl.tasks import probabilities
from conf import entry
from conf.errors import ConfigError, Problem
from data_prep.build import build


def evaluate(config: EvaluateConfig) -> dict:
    """Reports by head, printed and written to `output`."""
    run = open_run(config.run)
    model = load_model(run)
    data = config.data or run.config.data
    task = next(iter(run.config.tasks))
    _check_data(run, data)
    records = _text_records(run, task, data)
    text_input = run.config.input.model_copy(update={"kind": "textline"})
    pipeline = Pipeline(records, config.part, run.tokenizer, text_input, data, config.batch_size)
    answered = answer_part(model, pipeline)
    texts, _ = read_part(records, config.part)
    reports = {}
    for place, (name, head) in enumerate(run.config.tasks[task].heads.items()):
        logits, labels = answered.logits[name], answered.labels[name]
        report = head_report(logits, labels, head.labels, answered.lengths)
        report["errors"] = worst_errors(probabilities(logits), labels, head.labels, texts, config.errors)
        learned, truth = (
            read_part(_text_records(run, task, run.config.data), "train") if config.baseline else ([], None)
        )
        if truth is not None and len(np.unique(truth[:, place])) > 1:
            guessed = baseline_logits(learned, truth[:, place], texts, len(head.labels))
            report["baseline"] = head_report(guessed, labels, head.labels, answered.lengths)
        print_report(name, report)
        reports[name] = report
    output = Path(config.output or run.folder / f"evaluation-{data.source}-{config.part}.json")
    facts = {"run": str(run.folder), "data": data.source, "part": config.part, "heads": reports}
    with atomic_write(output) as file:
        file.write(json.dumps(facts, indent=1).encode())
    print(f"report: {output}")
    return reports


def _check_data(run: Run, data: DataConfig) -> None:
    """Raises ConfigError for data that the tasks do not have, or split in another way than the run's: what is test here
    could have been train there."""
    own, found = run.config.data, task_problems(run.config.tasks, data)
    if data.source == own.source:
        for name in ("dev_fraction", "test_fraction"):
            if getattr(data, name) != getattr(own, name):
                found.append(Problem(f"data.{name}", f"be the run's, {getattr(own, name)}", getattr(data, name)))
    if found:
        raise ConfigError(found)


def _text_records(run: Run, task: str, data: DataConfig) -> Path:
    text_input = run.config.input.model_copy(update={"kind": "textline"})
    folder = build(run.config.model_copy(update={"data": data, "input": text_input}), task, run.tokenizer)
    if data == run.config.data:
        check_examples(run, load_manifest(folder))
    return folder


def read_part(folder: Path, part: str) -> tuple[list[str], np.ndarray]:
    """Texts (pairs joined by a space) and label ids `(examples, heads)` of a part's text shards, in stored order."""
    manifest, texts, labels = load_manifest(folder), [], []
    for shard in manifest.parts[part].shards:
        with open(folder / shard.file, encoding="utf-8", newline="\n") as lines:
            for line in lines:
                fields = line.rstrip("\n").split("\t")
                labels.append([int(field) for field in fields[: len(manifest.heads)]])
                texts.append(" ".join(fields[len(manifest.heads) :]))
    return texts, np.asarray(labels)


def baseline_logits(texts: list[str], labels: np.ndarray, asked: list[str], count: int) -> np.ndarray:
    """What TF-IDF of words and word pairs with logistic regression, taught the same examples, answers.

    Returns:
        `(asked, count)` log-probabilities; labels without a training example get a very small one.
    """
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    probs = model.fit(texts, labels).predict_proba(asked)
    logits = np.full((len(asked), count), -30.0)
    logits[:, model[-1].classes_] = np.log(np.maximum(probs, 1e-13))
    return logits


def main() -> None:
    entry.main("evaluate", EvaluateConfig, evaluate)


if __name__ == "__main__":
    main()
