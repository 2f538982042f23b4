"""Windows of examples to the arrays of a batch: every number of a batch of two tasks, worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from bert_mtl.batches import Layout, Window, assemble, complete, join
from bert_mtl.labels import LabelSpec
from bert_mtl.packing import Batch

CLS, SEP, MASK = 2, 3, 4
MOOD = LabelSpec("mood", 0, "text")
TAGS = LabelSpec("tags", 0, "token")
ALIKE = LabelSpec("alike", 1, "text", "float32")
VECTOR = LabelSpec("vector", 1, "text", "float32", (2,))
HEADS = (MOOD, TAGS, ALIKE)

WORDS = Window(  # task 0: two texts with a mood and tags, of which the second has no mood
    token_ids=np.array([2, 7, 8, 3, 2, 9, 3], np.int32),
    splits=np.array([0, 4, 7]),
    second_start=np.array([4, 3]),
    task=np.array([0, 0]),
    index=np.array([40, 41]),
    labels={"mood": np.array([1, -1], np.int32)},
    token_labels={"tags": np.array([-1, 5, -1, -1, -1, 0, -1], np.int32)},
)
PAIRS = Window(  # task 1: [CLS] 10 [SEP] 11 12 [SEP], and another without a label
    token_ids=np.array([2, 10, 3, 11, 12, 3, 2, 13, 3, 14, 3], np.int32),
    splits=np.array([0, 6, 11]),
    second_start=np.array([3, 3]),
    task=np.array([1, 1]),
    index=np.array([70, 71]),
    labels={"alike": np.array([4.5, np.nan], np.float32)},
    token_labels={},
)
BOTH = join([complete(WORDS, HEADS), complete(PAIRS, HEADS)])
LAYOUT = Layout(rows=2, segments=6, heads=HEADS, separate=(False, False), length=10)
MASKING = {"continues": np.zeros(30, bool), "special_ids": range(5), "mask_id": MASK}


def batch(window: Window, rows: list[list[int]], layout: Layout, seed: int = 0) -> dict[str, np.ndarray]:
    """The batch of the examples in `rows`."""
    chosen = [example for row in rows for example in row]
    numbers = [number for number, row in enumerate(rows) for _ in row]
    made = Batch(np.array(chosen, np.int64), np.array(numbers, np.int64))
    return assemble(window, made, layout, np.random.default_rng(seed))


def lists(arrays: dict[str, np.ndarray]) -> dict:
    return {key: np.asarray(values).tolist() for key, values in arrays.items()}


def test_every_array_of_a_batch_of_two_tasks():
    found = batch(BOTH, [[2, 0], [1]], LAYOUT)
    assert lists(found) == {
        "token_ids": [[2, 10, 3, 11, 12, 3, 2, 7, 8, 3], [2, 9, 3, 0, 0, 0, 0, 0, 0, 0]],
        "type_ids": [[0, 0, 0, 1, 1, 1, 0, 0, 0, 0], [0] * 10],
        "segment_ids": [[1, 1, 1, 1, 1, 1, 2, 2, 2, 2], [3, 3, 3, 0, 0, 0, 0, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3], [0, 1, 2, 0, 0, 0, 0, 0, 0, 0]],
        "first_token": [0, 6, 10, 0, 0, 0],
        "task": [1, 0, 0, -1, -1, -1],
        "partner": [0, 1, 2, 3, 4, 5],
        "index": [70, 40, 41, -1, -1, -1],
        "examples": 3.0,
        "label.mood": [-1, 1, -1, 0, 0, 0],
        "weight.mood": [0, 1, 0, 0, 0, 0],
        "count.mood": 1.0,
        "label.tags": [[-1, -1, -1, -1, -1, -1, -1, 5, -1, -1], [-1, 0, -1, -1, -1, -1, -1, -1, -1, -1]],
        "weight.tags": [[0, 0, 0, 0, 0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]],
        "count.tags": 2.0,
        "label.alike": pytest.approx([4.5, np.nan, np.nan, 0, 0, 0], nan_ok=True),
        "weight.alike": [1, 0, 0, 0, 0, 0],
        "count.alike": 1.0,
    }
    floats = {"examples", "label.alike", *(f"{what}.{head.name}" for head in HEADS for what in ("weight", "count"))}
    assert {key for key, values in found.items() if values.dtype == np.float32} == floats
    assert {values.dtype for key, values in found.items() if key not in floats} == {np.dtype(np.int32)}


def test_the_texts_of_a_separate_pair_are_two_segments_that_name_each_other():
    # stored with a [CLS] of its own for the second text: [CLS] 10 [SEP] [CLS] 11 [SEP]
    apart = replace(PAIRS, token_ids=np.array([2, 10, 3, 2, 11, 3, 2, 13, 3, 2, 3], np.int32))
    window = join([complete(WORDS, HEADS), complete(apart, HEADS)])
    found = lists(batch(window, [[2, 0], [3]], replace(LAYOUT, separate=(False, True))))
    assert found["segment_ids"] == [[1, 1, 1, 2, 2, 2, 3, 3, 3, 3], [4, 4, 4, 5, 5, 0, 0, 0, 0, 0]]
    assert found["position_ids"] == [[0, 1, 2, 0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 0, 1, 0, 0, 0, 0, 0]]
    assert not np.any(found["type_ids"])
    assert found["first_token"] == [0, 3, 6, 10, 13, 0]
    assert found["task"] == [1, 1, 0, 1, 1, -1]
    assert found["partner"] == [1, 0, 2, 4, 3, 5]
    assert found["index"] == [70, -1, 40, 71, -1, -1]  # labels stand at the first segment
    assert found["weight.alike"] == [1, 0, 0, 0, 0, 0]
    assert found["examples"] == 3


def test_a_head_that_needs_no_label_counts_every_example_of_its_task():
    heads = (MOOD, TAGS, ALIKE._replace(needs_label=False))
    found = lists(batch(BOTH, [[2, 0], [3]], replace(LAYOUT, heads=heads)))
    assert found["weight.alike"] == [1, 0, 1, 0, 0, 0]
    assert found["count.alike"] == 2


def test_labels_of_several_numbers_count_where_all_are_known():
    vectors = np.array([[0.5, -1], [np.nan, 2]], np.float32)
    window = complete(replace(PAIRS, labels={"vector": vectors}), [VECTOR])
    found = batch(window, [[0], [1]], replace(LAYOUT, heads=(VECTOR,)))
    assert found["label.vector"].shape == (6, 2)
    np.testing.assert_array_equal(found["label.vector"], [[0.5, -1], [np.nan, 2], [0, 0], [0, 0], [0, 0], [0, 0]])
    assert found["weight.vector"].tolist() == [1, 0, 0, 0, 0, 0]


def test_a_mask_head_hides_tokens_of_its_own_task_only():
    words = LabelSpec("words", 1, "mask", rate=0.9)
    layout = replace(LAYOUT, heads=(MOOD, words), places=4, masking=MASKING)
    found = batch(complete(BOTH, (MOOD,)), [[2, 0], [1]], layout)
    # 10, 11 and 12 may be hidden: 0.9 of 3 tokens rounds to all of them
    assert found["place.words"].tolist() == [1, 3, 4, 0]
    assert found["label.words"].tolist() == [10, 11, 12, 0]
    assert found["weight.words"].tolist() == [1, 1, 1, 0]
    assert found["count.words"] == 1
    kept = np.delete(found["token_ids"].reshape(-1), [1, 3, 4])
    assert kept.tolist() == [2, 3, 3, 2, 7, 8, 3, 2, 9, 3, *[0] * 7]
    others = [batch(complete(BOTH, (MOOD,)), [[2, 0], [1]], layout, seed)["token_ids"].tolist() for seed in range(9)]
    assert found["token_ids"].tolist() == others[0]
    assert any(other != others[0] for other in others), "hidden anew by other random numbers"


@pytest.mark.parametrize("rows", [[[0]], []])
def test_a_batch_without_a_head_s_examples_has_no_weight_for_it(rows):
    heads = (*HEADS, VECTOR, LabelSpec("words", 1, "mask", rate=0.15))
    layout = replace(LAYOUT, heads=heads, places=4, masking=MASKING)
    found = batch(complete(BOTH, heads), rows, layout)
    for head in heads[2:]:
        assert not found[f"weight.{head.name}"].any() and found[f"count.{head.name}"] == 0
    assert found["examples"] == len(rows)
    assert {key: values.shape for key, values in found.items()} == {
        key: values.shape for key, values in batch(complete(BOTH, heads), [[2, 0], [1]], layout).items()
    }


@pytest.mark.parametrize(("pad_to", "length"), [(1, 6), (4, 8), (16, 16)])
def test_rows_of_no_fixed_length_are_padded_to_a_multiple(pad_to, length):
    found = batch(BOTH, [[0], [2]], replace(LAYOUT, length=None, pad_to=pad_to))
    assert found["token_ids"].shape == (2, length)
    assert found["first_token"].tolist()[:2] == [0, length]
    assert found["label.tags"][0, :4].tolist() == [-1, 5, -1, -1]


# windows


def test_taken_examples_keep_all_that_is_theirs():
    found = BOTH.take(np.array([3, 0]))
    assert found.token_ids.tolist() == [2, 13, 3, 14, 3, 2, 7, 8, 3]
    assert found.splits.tolist() == [0, 5, 9] and found.lengths.tolist() == [5, 4]
    assert found.second_start.tolist() == [3, 4]
    assert found.task.tolist() == [1, 0] and found.index.tolist() == [71, 40]
    assert found.labels["mood"].tolist() == [-1, 1]
    assert found.token_labels["tags"].tolist() == [-1, -1, -1, -1, -1, -1, 5, -1, -1]
    assert BOTH.take(np.array([], int)).token_ids.tolist() == []


def test_joined_windows_stand_one_after_the_other():
    again = join([BOTH.take(np.array([0])), BOTH.take(np.array([1, 2])), BOTH.take(np.array([3]))])
    for name in ("token_ids", "splits", "second_start", "task", "index"):
        np.testing.assert_array_equal(getattr(again, name), getattr(BOTH, name))
    for head in ("mood", "alike"):
        np.testing.assert_array_equal(again.labels[head], BOTH.labels[head])
    np.testing.assert_array_equal(again.token_labels["tags"], BOTH.token_labels["tags"])


def test_the_labels_of_other_tasks_are_missing_labels():
    found = complete(PAIRS, (*HEADS, VECTOR._replace(task=0), LabelSpec("words", 0, "mask")))
    assert found.labels["mood"].tolist() == [-1, -1] and found.labels["mood"].dtype == np.int32
    assert found.labels["alike"] is PAIRS.labels["alike"]
    assert np.isnan(found.labels["vector"]).all() and found.labels["vector"].shape == (2, 2)
    assert found.token_labels["tags"].tolist() == [-1] * 11
    assert found.labels.keys() | found.token_labels.keys() == {"mood", "alike", "vector", "tags"}
