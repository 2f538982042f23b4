"""Distillation: whose answers a run learns from, that they stand at their examples, and what they weigh."""

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.batches import Window
from bert_mtl.begun import train_pipeline
from bert_mtl.config import TrainConfig
from bert_mtl.kinds import KINDS, make_head
from bert_mtl.labels import LabelSpec
from bert_mtl.parts import part_reader
from bert_mtl.predict import Predictor
from bert_mtl.runs import RunError, open_run
from bert_mtl.taught import Taught
from bert_mtl.teachers import with_teachers
from bert_mtl.train import train
from conf import entry
from conf.errors import ConfigError
from data_prep.build import build
from tests.test_multitask import batch_of, examples_of, graph, losses_of, model_of, tasks_of

NAN = float("nan")
SETTINGS = {
    "classification": {"labels": ["a", "b"], "class_weights": [9.0, 9.0]},
    "multilabel": {"labels": ["a", "b"]},
    "regression": {},
    "tagging": {"labels": ["x"]},
}


def head_of(kind: str, **settings):
    return make_head("h", KINDS[kind].Settings(kind=kind, **settings), {"examples": 2.0, "sum": 6.0, "squares": 26.0})


@pytest.mark.parametrize(
    "kind,outputs,answers,loss",
    [
        ("classification", [[0.0, 0.0]], [[0.25, 0.75]], np.log(2)),
        ("classification", [[np.log(3), 0.0]], [[0.5, 0.5]], -0.5 * np.log(0.75) - 0.5 * np.log(0.25)),
        ("regression", [[1.0]], [7.0], 1.0),  # mean 3, deviation 2: 7 is 2 deviations above
        ("tagging", [[[0.0, 0.0, 0.0]]], [[[0.2, 0.3, 0.5]]], np.log(3)),
    ],
)
def test_the_loss_against_a_teacher_is_that_of_soft_labels(kind, outputs, answers, loss):
    found = head_of(kind, **SETTINGS[kind]).teacher_losses(np.float32(outputs), np.float32(answers))
    np.testing.assert_allclose(np.ravel(found), [loss], rtol=1e-6)


def test_the_loss_against_a_teacher_of_many_labels_is_summed_over_them():
    head = make_head("h", KINDS["multilabel"].Settings(kind="multilabel", labels=["a", "b"]))
    found = head.teacher_losses(np.float32([[0.0, np.log(3)]]), np.float32([[0.9, 0.5]]))
    np.testing.assert_allclose(found, [np.log(2) - 0.5 * np.log(0.75) - 0.5 * np.log(0.25)], rtol=1e-6)


def test_kinds_without_answers_of_their_own_learn_from_labels_alone():
    taught = {kind: head_of(kind, **SETTINGS.get(kind, {"dim": 2} if kind == "vector" else {})) for kind in KINDS}
    known = {kind: head.answer_shape for kind, head in taught.items() if kind in SETTINGS}
    assert known == {"classification": (2,), "multilabel": (2,), "regression": (), "tagging": (3,)}
    assert [kind for kind in ("mlm", "similarity", "vector") if taught[kind].answer_shape is not None] == []
    assert head_of("tagging", labels=["x"], crf=True).answer_shape is None


def window_of(index: list[int], tags: list[int]) -> Window:
    count = len(index)
    splits = np.arange(count + 1) * (len(tags) // count)
    ids, numbers = np.arange(len(tags), dtype=np.int32), np.array(index, np.int32)
    return Window(ids, splits, np.full(count, 9), numbers * 0, numbers, {}, {"tags": np.array(tags, np.int32)})


def test_answers_stand_at_their_examples_whatever_the_order():
    taught = Taught(LabelSpec("mood", 0, "text"), np.float32([[0.1, 0.9], [0.8, 0.2]]), np.array([0, 1, 1, 2]))
    found = taught.beside(window_of([2, 1, 0], [0, 0, 0]))
    np.testing.assert_allclose(found.labels["mood:teachers"], np.float32([[0.8, 0.2], [NAN, NAN], [0.1, 0.9]]))


def test_answers_of_words_stand_at_the_first_token_of_each():
    taught = Taught(LabelSpec("tags", 0, "token"), np.float32([[1.0], [2.0], [3.0]]), np.array([0, 1, 3]))
    found = taught.beside(window_of([1, 0], [-1, 0, 1, -1, 2, -1]))
    np.testing.assert_allclose(found.token_labels["tags:teachers"].ravel(), [NAN, 2, 3, NAN, 1, NAN])


def taught_batch(tasks, numbers: list[int], seed: int) -> tuple[dict, Window]:
    """A batch of examples whose head `mood` has teachers, and its window."""
    window = examples_of(tasks, numbers)
    answers = np.random.default_rng(seed).dirichlet([1, 1], len(numbers)).astype(np.float32)
    taught = Taught(tasks["mood"].labels[0], answers, np.arange(len(numbers) + 1))
    batch = batch_of(tasks, window)
    values = np.full((len(batch["task"]), 2), np.nan, np.float32)
    there = batch["index"].numpy() >= 0
    values[there] = taught.beside(window).labels["mood:teachers"][batch["index"].numpy()[there]]
    told = {"label.mood:teachers": tf.constant(values), "weight.mood:teachers": batch["weight.mood"]}
    return batch | told | {"count.mood:teachers": batch["count.mood"]}, window


def test_teachers_share_a_loss_with_the_labels_by_weight():
    tasks = tasks_of({"mood": {"mood": {"kind": "classification", "labels": ["neg", "pos"]}}})
    losses = {}
    for weight in (0.0, 0.25, 1.0):
        model = model_of(tasks)
        model.teachers_weight = weight
        batch, _ = taught_batch(tasks, [0] * 6, seed=1)
        graph(model)(batch)
        losses[weight] = losses_of(model)["mood_loss"]
    assert losses[0.25] == pytest.approx(0.75 * losses[0.0] + 0.25 * losses[1.0], rel=1e-5)
    assert abs(losses[0.0] - losses[1.0]) > 5e-4


def test_an_example_that_only_teachers_label_counts_as_one():
    tasks = tasks_of({"mood": {"mood": {"kind": "classification", "labels": ["neg", "pos"]}}})
    batch, _ = taught_batch(tasks, [0] * 6, seed=1)
    alone = batch | {"weight.mood": tf.zeros_like(batch["weight.mood"]), "count.mood": tf.constant(0.0)}
    losses = []
    for given, weight in ((batch, 1.0), (alone, 0.25)):
        model = model_of(tasks)
        model.teachers_weight = weight
        graph(model)(given)
        losses.append(list(losses_of(model).values()))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][0] > 0.1


# Runs.


def composed(options, *overrides) -> TrainConfig:
    return entry.compose("train", [*options, *overrides], TrainConfig)


def test_a_student_of_every_kind_of_teacher_learns_and_resumes_without_them(multi_options, multi_run, tmp_path):
    teacher = open_run(multi_run)
    options = [*multi_options, f"distill.teachers=[{multi_run},{multi_run}]", "distill.weight=1", "train.epochs=12"]
    config = composed(options, f"run.dir={tmp_path}/student")
    result = train(config)
    assert result["test"]["imdb"]["accuracy"] > 0.9
    assert result["test"]["numbers_spans"]["f1"] > 0.9
    run = open_run(tmp_path / "student")
    folders = {name: build(config, name, run.tokenizer) for name in config.tasks}
    readers = [part_reader(run, task, folders[name], "train") for name, task in run.tasks.items()]
    by_task = {reader.task.name: reader for reader in with_teachers(run, readers)}
    assert [label.name for label in by_task["words"].labels] == ["words"]
    mood = next(by_task["imdb"].windows(0, 96))
    right = mood.labels["imdb:teachers"].argmax(axis=1) == mood.labels["imdb"]
    assert right.mean() > 0.95
    spans = next(by_task["numbers"].windows(0, 48))
    known = spans.token_labels["numbers_spans"] >= 0
    told = spans.token_labels["numbers_spans:teachers"]
    assert (np.isfinite(told).all(axis=1) == known).all()
    assert (told[known].argmax(axis=1) == spans.token_labels["numbers_spans"][known]).mean() > 0.95
    np.testing.assert_allclose(told[known].sum(axis=1), 1, rtol=1e-5)
    # The folders of teachers are asked once: an interrupted student needs them no more.
    moved = replace(
        run, config=config.model_copy(update={"distill": config.distill.model_copy(update={"teachers": ["gone"]})})
    )
    assert len(train_pipeline(moved, folders, 1).labels) == len(train_pipeline(teacher, folders, 1).labels) + 3


def test_the_same_seed_gives_the_same_student(toy_options, toy_run, tmp_path):
    losses = []
    for name in ("one", "two"):
        config = composed(toy_options, f"distill.teachers=[{toy_run}]", "train.epochs=1", f"run.dir={tmp_path}/{name}")
        losses.append(train(config)["epochs"][0]["imdb_loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "overrides,error,message",
    [
        (["tasks.imdb.limit=48"], RunError, "must have learned task imdb from the same examples"),
        (["tokenizer.max_length=16"], RunError, "must have this run's tokenizer"),
        (["tasks.imdb.heads.imdb.labels=[pos,neg]"], ConfigError, r"distill.teachers must name runs with a head that"),
    ],
)
def test_a_teacher_must_fit(toy_options, toy_run, tmp_path, overrides, error, message):
    config = composed(toy_options, *overrides, f"distill.teachers=[{toy_run}]", f"run.dir={tmp_path}/run")
    with pytest.raises(error, match=message):
        train(config)
    assert not (tmp_path / "run" / "taught.safetensors").exists()


def test_a_folder_that_is_no_run_is_no_teacher(toy_options, tmp_path):
    config = composed(toy_options, f"distill.teachers=[{tmp_path}/none]", f"run.dir={tmp_path}/run")
    with pytest.raises(RunError, match="run must be a folder that bert_mtl.train wrote"):
        train(config)


def test_texts_without_labels_learn_what_the_teachers_of_a_shared_head_say(toy_options, toy_run, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    rows = [f'{{"text": "the film was {word} and the plot"}}\n' for word in ("good", "bad") * 40]
    (texts / "train.jsonl").write_text("".join(rows))
    unsup = f"{{format: jsonl, path: {{train: '{texts}/train.jsonl'}}}}"
    options = ["task=[imdb,imdb_unsup]", *toy_options, f"+tasks.imdb_unsup.sources.sample={unsup}"]
    options += [f"distill.teachers=[{toy_run}]", "distill.weight=1", "train.epochs=1", f"run.dir={tmp_path}/run"]
    result = train(composed(options))
    assert result["epochs"][0]["imdb_unsup_loss"] > 0
    assert list(result["epochs"][0]["dev"]) == ["imdb"]
    run = open_run(tmp_path / "run")
    folders = {name: build(run.config, name, run.tokenizer) for name in run.config.tasks}
    reader = with_teachers(run, [part_reader(run, run.tasks["imdb_unsup"], folders["imdb_unsup"], "train")])[0]
    window = next(reader.windows(0, 40))
    assert (window.labels["imdb_unsup"] == -1).all()
    answers = window.labels["imdb_unsup:teachers"]
    np.testing.assert_allclose(answers.sum(axis=1), 1, rtol=1e-5)
    assert 0.4 < answers.argmax(axis=1).mean() < 0.6
    texts = [f"the film was {word} and the plot" for word in ("good", "bad")]
    said = [list(answer["imdb"]["probabilities"].values()) for answer in Predictor(toy_run).predict(texts)]
    np.testing.assert_allclose(np.unique(answers.round(4), axis=0), sorted(said), atol=2e-4)


@pytest.mark.parametrize(
    "overrides,message",
    [
        ([], r"distill.teachers must name runs that answer for imdb_unsup, which has no labels"),
        (
            ["tasks.imdb_unsup.heads.imdb_unsup.share_head=null"],
            r"share_head must name the head whose teachers",
        ),
        (["mixing=dev_score"], r"mixing must not be dev_score beside imdb_unsup"),
    ],
)
def test_texts_without_labels_want_teachers(overrides, message):
    with pytest.raises(ConfigError, match=message):
        composed(["task=[imdb,imdb_unsup]", "data=full", *overrides])
