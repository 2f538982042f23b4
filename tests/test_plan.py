"""Which rows are run together, and in whose turn."""

from dataclasses import dataclass

import pytest

from serving.plan import next_batch, start_tags


@dataclass(eq=False)
class Row:
    length: int
    tag: tuple[float, int]
    alone: bool = False
    lot: int = 0


def batches_of(rows: list[Row], tokens: int) -> list[list[Row]]:
    """All batches, one after the other."""
    found = []
    while batch := next_batch(rows, tokens):
        found.append(batch)
        rows = [row for row in rows if row not in batch]
    return found


@pytest.mark.parametrize(
    ("lengths", "tokens", "batches"),
    [
        ([4, 4, 4, 4, 4], 8, [[4, 4], [4, 4], [4]]),
        ([100, 3], 8, [[100], [3]]),
        ([5, 1, 9, 2, 2], 10, [[5], [1], [9], [2, 2]]),
        ([20, 10, 19, 21, 40, 10], 100, [[20, 19, 21], [10, 10], [40]]),
        ([20, 18], 100, [[20, 18]]),  # of 40 places 2 are empty, 5 %
        ([20, 17], 100, [[20], [17]]),  # 3 would be
    ],
)
def test_a_batch_is_the_row_whose_turn_it_is_and_those_of_its_length(lengths, tokens, batches):
    rows = [Row(length, (0.0, key)) for key, length in enumerate(lengths)]
    assert [[row.length for row in batch] for batch in batches_of(rows, tokens)] == batches


def test_rows_of_other_lots_and_rows_that_must_be_alone_are_not_run_beside_others():
    rows = [Row(5, (0, 0)), Row(5, (0, 1), lot=1), Row(5, (0, 2), alone=True), Row(5, (0, 3)), Row(5, (0, 4), lot=1)]
    assert [[row.tag[1] for row in batch] for batch in batches_of(rows, 100)] == [[0, 3], [1, 4], [2]]


def test_a_long_request_leaves_room_to_those_that_come_later():
    long = [Row(10, (tag, key)) for key, tag in enumerate(start_tags(0.0, [10] * 6))]
    (first,) = next_batch(long, 10)
    # Meanwhile two requests of one row arrive: their turn comes before the rest.
    later = [Row(10, (tag, 6 + key)) for key in range(2) for tag in start_tags(first.tag[0], [10])]
    order = [row.tag[1] for (row,) in batches_of([*long[1:], *later], 10)]
    assert order == [6, 7, 1, 2, 3, 4, 5]
