"""Examples to rows: exact plans, every example once, and an order that the random numbers alone decide."""

from collections.abc import Iterable

import numpy as np
import pytest

from bert_mtl.packing import Packing, Padding, WindowPlan, pack


def seeded(seed: int):
    return lambda window: np.random.default_rng((seed, window))


def in_order(window: int) -> None:
    return None


def random_lengths(count: int, longest: int = 100, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, longest + 1, count)


def rows_of(order: np.ndarray, splits: np.ndarray) -> list[list[int]]:
    return [order[a:b].tolist() for a, b in zip(splits, splits[1:], strict=False)]


def taken(plans: Iterable[WindowPlan]) -> list[int]:
    """The positions in the epoch that the batches hold, in their order."""
    return [int(plan.positions[i]) for plan in plans for batch in plan.batches for i in batch.chosen]


# rows


def one_by_one(lengths: np.ndarray, row_length: int) -> list[int]:
    """The tokens of the rows of best-fit decreasing as the books write it, sorted."""
    rows: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [row for row, tokens in enumerate(rows) if tokens + length <= row_length]
        if fitting:
            rows[max(fitting, key=rows.__getitem__)] += length
        else:
            rows.append(length)
    return sorted(rows)


def test_each_example_goes_to_the_fullest_row_with_room_longest_first():
    # rows 7 | 6 | 5 of 10: 4 goes beside 6, 3 beside 7, 2 beside 5; a row holds its examples in their own order
    assert rows_of(*pack(np.array([2, 3, 4, 5, 6, 7]), 10, most=8)) == [[1, 5], [2, 4], [0, 3]]


def test_examples_of_one_length_fill_a_row_before_the_next():
    assert rows_of(*pack(np.array([3, 3, 3, 3, 3, 1]), 9, most=8)) == [[0, 1, 2], [3, 4, 5]]


def test_many_examples_at_a_time_fill_rows_as_one_by_one():
    random = np.random.default_rng(0)
    for _ in range(50):
        lengths = random.integers(1, random.integers(2, 40), random.integers(1, 120))
        row_length = int(random.integers(lengths.max(), 80))
        order, splits = pack(lengths, row_length, most=1000)
        assert sorted(np.add.reduceat(lengths[order], splits[:-1])) == one_by_one(lengths, row_length)


def test_a_row_holds_so_many_examples_at_most():
    assert [len(row) for row in rows_of(*pack(np.array([2] * 7), 100, most=3))] == [3, 3, 1]
    # 9 and two of the 1s fill a row of three
    assert rows_of(*pack(np.array([1, 1, 1, 1, 9]), 100, most=3)) == [[0, 1, 4], [2, 3]]


def test_one_example_that_fills_its_row_is_a_row():
    assert rows_of(*pack(np.array([10]), 10, most=8)) == [[0]]


@pytest.mark.parametrize(("row_length", "longest", "least"), [(256, 128, 0.995), (512, 256, 0.995), (512, 512, 0.99)])
def test_rows_are_full(row_length, longest, least):
    lengths = random_lengths(8192, longest)
    order, splits = pack(lengths, row_length, most=1000)
    tokens = np.add.reduceat(lengths[order], splits[:-1])
    assert sorted(order) == list(range(8192))
    assert tokens.max() <= row_length
    assert tokens.sum() / (row_length * len(tokens)) > least


def test_random_numbers_choose_among_examples_of_one_length_only():
    lengths = random_lengths(500)
    plain, mixed, again = (rows_of(*pack(lengths, 128, 8, of(0))) for of in (in_order, seeded(1), seeded(1)))
    assert mixed == again != plain
    assert [sorted(lengths[row]) for row in mixed] == [sorted(lengths[row]) for row in plain]


# packed epochs


def test_what_makes_up_no_batch_goes_over_to_the_next_window():
    lengths = np.array([9, 4, 8, 2, 9, 5])
    first, second = Packing(rows=2, length=10, most=8).plan(lengths, 3, in_order)
    # rows 9 | 8 | 4: the two fullest are a batch, the 4 waits for the 5 of the next window
    assert first.positions.tolist() == [0, 1, 2] and first.carried.tolist() == [1]
    assert [(batch.chosen.tolist(), batch.row.tolist()) for batch in first.batches] == [([0, 2], [0, 1])]
    # the buffer is then [4, 2, 9, 5]: rows 9 | 4 5 | 2, of which the last is a batch by itself
    assert second.positions.tolist() == [1, 3, 4, 5] and second.carried.tolist() == []
    found = [(batch.chosen.tolist(), batch.row.tolist()) for batch in second.batches]
    assert found == [([2, 0, 3], [0, 1, 1]), ([1], [0])]


@pytest.mark.parametrize(("examples", "window", "rows"), [(1000, 200, 8), (1000, 10, 8), (37, 1000, 4), (5, 1, 3)])
@pytest.mark.parametrize("random_of", [in_order, seeded(1)])
def test_a_packed_epoch_has_every_example_once_and_only_its_last_batch_is_not_full(examples, window, rows, random_of):
    lengths = random_lengths(examples)
    plans = list(Packing(rows, 200, most=16).plan(lengths, window, random_of))
    assert sorted(taken(plans)) == list(range(examples))
    full = [len(np.unique(batch.row)) for plan in plans for batch in plan.batches]
    assert set(full[:-1]) <= {rows} and 0 < full[-1] <= rows
    for plan in plans:
        for batch in plan.batches:
            assert (np.diff(batch.row) >= 0).all()
            tokens = np.bincount(batch.row, lengths[plan.positions[batch.chosen]])
            assert tokens.max() <= 200 and np.bincount(batch.row).max() <= 16


def test_shuffled_rows_come_in_no_order_of_fill():
    lengths = random_lengths(4000, 200)
    plans = Packing(4, 256, 16).plan(lengths, 4000, seeded(1))
    fill = [lengths[plan.positions[batch.chosen]].max() for plan in plans for batch in plan.batches]
    rises = np.mean(np.diff(fill) > 0)
    assert 0.4 < rises < 0.6


@pytest.mark.parametrize("packing", [Packing(4, 200, 16), Padding(8)])
def test_a_plan_is_a_function_of_the_random_numbers_alone(packing):
    lengths = random_lengths(300)
    once, again, other = (taken(packing.plan(lengths, 64, seeded(seed))) for seed in (1, 1, 2))
    assert once == again
    assert once != other and sorted(once) == sorted(other)


# padded epochs


def test_padded_rows_hold_one_example_each_neighbours_in_length_together():
    (plan,) = Padding(2).plan(np.array([5, 3, 5, 9, 3]), 100, in_order)
    assert [batch.chosen.tolist() for batch in plan.batches] == [[1, 4], [0, 2], [3]]
    assert [batch.row.tolist() for batch in plan.batches] == [[0, 1], [0, 1], [0]]
    assert plan.carried.tolist() == []


def test_shuffled_padded_batches_need_little_padding_and_come_in_no_order():
    lengths = random_lengths(1000, 200)
    (plan,) = Padding(32).plan(lengths, 1000, seeded(1))
    assert sorted(taken([plan])) == list(range(1000))
    padded = sum(len(batch.chosen) * lengths[batch.chosen].max() for batch in plan.batches)
    assert padded / lengths.sum() < 1.05  # batches of any 32 would be padded to about twice their tokens
    means = [lengths[batch.chosen].mean() for batch in plan.batches]
    assert 10 < np.sum(np.diff(means) > 0) < 21
