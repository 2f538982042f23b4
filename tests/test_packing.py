"""Windows to batches: exact arrays, nothing lost, order by the generator of random numbers alone."""

import numpy as np
import pytest

from bert_mtl.packing import Window, assemble, batch_count, plan

WINDOW = Window(
    token_ids=np.array([2, 7, 3, 2, 8, 3, 9, 3, 2, 3], np.int32),
    splits=np.array([0, 3, 8, 10]),
    second_start=np.array([3, 3, 2]),
    labels={"mood": np.array([1, 0, 2])},
    index=np.array([40, 41, 42]),
)


def test_a_batch_holds_one_example_a_row_and_empty_rows_at_its_end():
    batch = assemble(WINDOW, np.array([1, 0]), batch_size=3, pad_to=4, max_length=16)
    expected = {
        "token_ids": [[2, 8, 3, 9, 3, 0, 0, 0], [2, 7, 3, 0, 0, 0, 0, 0], [0] * 8],
        "type_ids": [[0, 0, 0, 1, 1, 0, 0, 0], [0] * 8, [0] * 8],
        "segment_ids": [[1, 1, 1, 1, 1, 0, 0, 0], [2, 2, 2, 0, 0, 0, 0, 0], [0] * 8],
        "position_ids": [[0, 1, 2, 3, 4, 0, 0, 0], [0, 1, 2, 0, 0, 0, 0, 0], [0] * 8],
        "first_token": [0, 8, 16],
        "index": [41, 40, -1],
        "weight": [1.0, 1.0, 0.0],
        "label.mood": [0, 1, 0],
    }
    assert {key: values.tolist() for key, values in batch.items()} == expected
    assert {key: values.dtype.name for key, values in batch.items() if values.dtype != np.int32} == {
        "weight": "float32"
    }


@pytest.mark.parametrize(("pad_to", "max_length", "length"), [(1, 16, 5), (4, 16, 8), (4, 6, 6), (16, 16, 16)])
def test_rows_are_padded_to_a_multiple_and_never_beyond_the_longest_row(pad_to, max_length, length):
    assert assemble(WINDOW, np.array([0, 1, 2]), 3, pad_to, max_length)["token_ids"].shape == (3, length)


def test_a_batch_without_examples_is_all_padding():
    batch = assemble(WINDOW, np.array([], int), 2, 4, 16)
    assert batch["token_ids"].shape == (2, 4)
    assert not batch["weight"].any() and not batch["segment_ids"].any()


def test_a_plan_sorts_by_length_in_a_fixed_order():
    lengths = np.array([5, 3, 5, 9, 3])
    assert [chosen.tolist() for chosen in plan(lengths, 2, None)] == [[1, 4], [0, 2], [3]]


def test_a_shuffled_plan_takes_every_example_once_and_neighbours_in_length():
    lengths = np.random.default_rng(0).integers(3, 200, 1000)
    batches = list(plan(lengths, 32, np.random.default_rng(1)))
    assert len(batches) == batch_count(1000, 1000, 32) == 32
    assert sorted(np.concatenate(batches)) == list(range(1000))
    padded = sum(len(chosen) * lengths[chosen].max() for chosen in batches)
    assert padded / lengths.sum() < 1.05  # shuffled batches of 32 would be padded to about twice their tokens
    means = [lengths[chosen].mean() for chosen in batches]
    assert 10 < np.sum(np.diff(means) > 0) < 21  # the batches themselves come in no order


def test_a_plan_is_a_function_of_the_random_numbers_alone():
    lengths = np.random.default_rng(0).integers(3, 200, 100)
    once, again, other = (list(plan(lengths, 8, np.random.default_rng(seed))) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(once, other, strict=True))


@pytest.mark.parametrize(
    ("examples", "window", "batch_size", "count"), [(100, 30, 8, 14), (90, 30, 8, 12), (5, 30, 8, 1), (32, 8, 8, 4)]
)
def test_batches_are_counted_window_by_window(examples, window, batch_size, count):
    assert batch_count(examples, window, batch_size) == count
