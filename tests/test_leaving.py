"""Which texts leave at which exit, and which thresholds are chosen."""

import numpy as np
import pytest

from bert_mtl.leaving import NEVER, exit_of, left, thresholds

LABELS = np.array([0, 1, 1, 0, 1, 0, 1, 0])


def answers(sure: list[float], wrong: set[int] = frozenset()) -> np.ndarray:
    """Probabilities of two labels: that of the right one (of the other one where `wrong`) is `sure`."""
    places = np.arange(len(sure))
    chosen = np.where(np.isin(places, list(wrong)), 1 - LABELS[: len(sure)], LABELS[: len(sure)])
    found = np.zeros((len(sure), 2))
    found[places, chosen], found[places, 1 - chosen] = sure, 1 - np.array(sure)
    return found


def accuracy(found: np.ndarray) -> float:
    return float((found.argmax(axis=1) == LABELS).mean())


def test_a_text_leaves_at_the_first_exit_that_is_sure():
    first, second, last = answers([0.9, 0.6, 0.8]), answers([0.99, 0.7, 0.5]), answers([0.5, 0.5, 0.6])
    places = exit_of([first, second, last], [0.8, 0.7])
    np.testing.assert_array_equal(places, [0, 1, 0])
    np.testing.assert_array_equal(left([first, second, last], places), np.stack([first[0], second[1], first[2]]))
    np.testing.assert_array_equal(exit_of([first, second, last], [NEVER, NEVER]), [2, 2, 2])
    np.testing.assert_array_equal(exit_of([last], []), [0, 0, 0])


def test_thresholds_let_out_whom_the_score_allows():
    first = answers(
        [0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65], wrong={3, 5}
    )  # right as far as it is surer than 0.85
    last = answers([0.9] * 8)
    (exact,) = thresholds([first, last], [2, 6], accuracy, 1.0)
    assert 0.85 < exact <= 0.9
    np.testing.assert_array_equal(exit_of([first, last], [exact]), [0, 0, 0, 1, 1, 1, 1, 1])
    (lenient,) = thresholds([first, last], [2, 6], accuracy, 7 / 8)
    np.testing.assert_array_equal(exit_of([first, last], [lenient]), [0, 0, 0, 0, 0, 1, 1, 1])


def test_the_fewest_layers_win_over_the_earliest_exit():
    first = answers([0.9] * 4 + [0.6] * 4, wrong={0, 1})  # all that are sure may leave, at the price of two
    second = answers([0.9] * 8)
    last = answers([0.9] * 8)
    chosen = thresholds([first, second, last], [2, 3, 12], accuracy, 1.0)
    np.testing.assert_array_equal(exit_of([first, second, last], chosen), [1] * 8)


@pytest.mark.parametrize("floor", [0.9, 1.1])
def test_nobody_leaves_where_the_last_layer_alone_is_good_enough_or_nothing_is(floor):
    first, last = answers([0.9] * 8, wrong={0, 1, 2, 3}), answers([0.9] * 8, wrong=set() if floor < 1 else {0})
    assert thresholds([first, last], [2, 6], accuracy, floor) == [NEVER]
