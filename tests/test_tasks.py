"""Tasks and their heads, and raw rows as examples with the labels that records hold."""

import math

import numpy as np
import pytest

from bert_mtl.config import TaskConfig
from bert_mtl.labels import LabelSpec
from bert_mtl.tasks import DataError, Example, Task, make_example, make_tasks

MOOD = {"kind": "classification", "labels": ["bad", "fine", "good"]}
SOURCES = {"full": {"format": "jsonl"}}


def tasks(statistics: dict | None = None, **heads: dict) -> dict[str, Task]:
    """Tasks by name, each with its `heads` in the form of the YAML."""
    configs = {name: TaskConfig(heads=settings, sources=SOURCES) for name, settings in heads.items()}
    return make_tasks(configs, statistics)


def task(**heads: dict) -> Task:
    return tasks(reviews=heads)["reviews"]


TEXT = task(
    mood=MOOD,
    topics={"kind": "multilabel", "labels": ["plot", "music"]},
    stars={"kind": "regression", "minimum": 0, "maximum": 5},
    vector={"kind": "vector", "dim": 2},
)
WORDS = task(mood=MOOD, names={"kind": "tagging", "labels": ["person"]})


def test_heads_have_full_names_and_tasks_number_their_labels():
    found = tasks(imdb={"imdb": MOOD}, snips={"intent": MOOD, "slots": {"kind": "tagging", "labels": ["city"]}})
    assert [(name, each.number) for name, each in found.items()] == [("imdb", 0), ("snips", 1)]
    assert found["imdb"].heads["imdb"].name == "imdb"
    assert {short: head.name for short, head in found["snips"].heads.items()} == {
        "intent": "snips_intent", "slots": "snips_slots",
    }  # fmt: skip
    assert found["snips"].labels == (
        LabelSpec("snips_intent", 1, "text"),
        LabelSpec("snips_slots", 1, "token"),
    )


def test_every_kind_says_how_its_labels_are_stored():
    assert TEXT.labels == (
        LabelSpec("reviews_mood", 0, "text"),
        LabelSpec("reviews_topics", 0, "text", shape=(2,)),
        LabelSpec("reviews_stars", 0, "text", "float32"),
        LabelSpec("reviews_vector", 0, "text", "float32", (2,)),
    )
    (alike,) = task(alike={"kind": "similarity"}).labels
    assert alike == LabelSpec("reviews_alike", 0, "text", "float32", needs_label=False)
    (words,) = task(words={"kind": "mlm", "rate": 0.2}).labels
    assert words == LabelSpec("reviews_words", 0, "mask", rate=0.2)
    assert [spec.stored for spec in (*WORDS.labels, words)] == [True, True, False]


def test_a_missing_label_is_minus_one_or_not_a_number():
    assert LabelSpec("a", 0, "text").missing == -1
    assert math.isnan(LabelSpec("a", 0, "text", "float32").missing)


def test_heads_know_the_statistics_of_their_own_name():
    found = tasks({"snips_intent": {"bad": 3.0}}, snips={"intent": MOOD, "mood": MOOD})["snips"]
    assert found.heads["intent"].statistics == {"bad": 3.0}
    assert found.heads["mood"].statistics == {}


def test_tagging_makes_words_of_a_task_s_texts_and_similarity_sets_them_apart():
    assert (TEXT.words, TEXT.separate) == (False, False)
    assert (WORDS.words, WORDS.separate) == (True, False)
    apart = task(alike={"kind": "similarity"})
    assert (apart.words, apart.separate) == (False, True)


# examples


def test_a_row_becomes_an_example_with_every_head_s_label_as_numbers():
    row = {"text": "ok", "mood": "good", "topics": ["music"], "stars": 4.5, "vector": [0.5, -2]}
    assert make_example(TEXT, row, "f:1") == Example(
        "ok",
        None,
        {"reviews_mood": [2], "reviews_topics": [0, 1], "reviews_stars": [4.5], "reviews_vector": [0.5, -2.0]},
    )


def test_labels_of_words_are_one_a_word():
    row = {"tokens": ["anna", "is", "fine"], "text": "anna is fine", "mood": 1, "names": ["B-person", "O", "O"]}
    assert make_example(WORDS, row, "f:1").labels == {"reviews_mood": [1], "reviews_names": [1, 0, 0]}


@pytest.mark.parametrize("given", [{}, {"mood": None, "topics": None, "stars": None, "vector": None}])
def test_labels_that_are_not_given_are_stored_as_missing_in_their_own_size(given):
    labels = make_example(TEXT, {"text": "ok", **given}, "f:1").labels
    assert labels["reviews_mood"] == [-1] and labels["reviews_topics"] == [-1, -1]
    assert np.isnan(labels["reviews_stars"]).tolist() == [True]
    assert np.isnan(labels["reviews_vector"]).tolist() == [True, True]
    assert make_example(WORDS, {"text": "a b c"}, "f:1").labels["reviews_names"] == [-1, -1, -1]


def test_a_mask_head_stores_nothing():
    assert make_example(task(words={"kind": "mlm"}), {"text": "ok"}, "f:1").labels == {}


def test_a_single_text_of_a_similarity_task_is_its_own_partner():
    apart = task(alike={"kind": "similarity"})
    single, pair = make_example(apart, {"text": "a"}, "f:1"), make_example(apart, {"text": "a", "text_b": "b"}, "f:1")
    assert (single.text, single.text_b) == ("a", "a")
    assert (pair.text, pair.text_b) == ("a", "b")


def test_line_ends_and_tabs_of_a_text_become_spaces():
    example = make_example(TEXT, {"text": "a\tb\r\nc", "text_b": "d\ne"}, "f:1")
    assert (example.text, example.text_b) == ("a b  c", "d e")


@pytest.mark.parametrize("field", ["text", "text_b"])
def test_an_empty_text_is_refused_with_its_place(field):
    row = {"text": "a", "text_b": "b", "mood": "bad"} | {field: " \t\n"}
    with pytest.raises(DataError, match=rf"^f:7: {field} must not be empty; got ' \\t\\n'\.$"):
        make_example(TEXT, row, "f:7")


def test_a_label_outside_the_list_is_refused_with_the_closest_one():
    with pytest.raises(DataError) as caught:
        make_example(TEXT, {"text": "a", "mood": "goood"}, "f:7")
    assert str(caught.value) == (
        "f:7: the label of head reviews_mood must be listed; got goood. Options: bad, fine, good. Did you mean good?"
    )


@pytest.mark.parametrize("tags", [["O"], ["O", "O", "O"], []])
def test_more_or_fewer_tags_than_words_are_refused_with_both_numbers(tags):
    with pytest.raises(DataError) as caught:
        make_example(WORDS, {"text": "two words", "names": tags}, "f:7")
    said = f"the labels of head reviews_names must be as many as the 2 words; got {len(tags)}."
    assert str(caught.value) == f"f:7: {said}"
