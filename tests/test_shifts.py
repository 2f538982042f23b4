"""Measures of shifts: exact numbers, and what chance alone gives."""

import math

import numpy as np
import pytest

from bert_mtl.shifts import chi_square, jensen_shannon, mean_difference, psi


def test_the_stability_index_is_the_sum_of_both_relative_entropies():
    # shares 0.25 and 0.75 against 0.75 and 0.25, half a count added: 2 * 0.5 * ln 3
    assert psi([24.5, 74.5], [149.5, 49.5]) == pytest.approx(math.log(3))
    assert psi([3, 5], [3, 5]) == 0
    assert psi([0, 9], [9, 0]) == pytest.approx(2 * 0.9 * math.log(19))  # finite where a bin is empty


def test_the_distance_of_distributions_is_1_apart_and_0_alike():
    huge = 1e12  # so many that chance gives nothing
    assert jensen_shannon([huge, 0], [0, huge]) == pytest.approx(1)
    assert jensen_shannon([huge, huge], [huge, huge]) == 0
    # shares (1, 0) and (0.5, 0.5), middle (0.75, 0.25): (log2(4/3) + 0.5 log2(2/3) + 0.5) / 2
    divergence = (math.log2(4 / 3) + 0.5 * math.log2(2 / 3) + 0.5) / 2
    assert jensen_shannon([huge, 0], [huge, huge]) == pytest.approx(math.sqrt(divergence))
    chance = (1 / 8 + 1 / 16) / (8 * math.log(2))
    assert jensen_shannon([8, 0], [8, 8]) == pytest.approx(math.sqrt(divergence - chance))


def test_samples_of_one_distribution_are_no_distance_apart():
    dice = np.random.default_rng(5)
    shares = 1 / np.arange(1, 301)
    shares /= shares.sum()
    found = [jensen_shannon(dice.multinomial(50_000, shares), dice.multinomial(3000, shares)) for _ in range(50)]
    assert np.mean(found) < 0.06  # 0.14 with what chance gives


def test_the_test_of_counts_is_pearsons_and_puts_rare_bins_together():
    # expected 15 each in 2 x 2: chi-square 4 * 25 / 15 = 6.667 of one degree
    assert chi_square([10, 20], [20, 10]) == pytest.approx(math.erfc(math.sqrt(20 / 3 / 2)))
    assert chi_square([10, 20, 0, 0], [20, 10, 0, 0]) == pytest.approx(chi_square([10, 20], [20, 10]))
    assert chi_square([10, 20, 4, 4], [20, 10, 4, 4]) == pytest.approx(chi_square([10, 20, 8], [20, 10, 8]))
    assert chi_square([100, 0], [100, 0]) is None
    assert chi_square([3, 1], [1, 3]) is None


def test_means_are_told_in_the_references_deviations():
    shift, p = mean_difference(2.0, 1.0, 100, np.array([2.0, 3.0, 4.0, 3.0]))
    error = math.sqrt(1 / 100 + (2 / 3) / 4)
    assert (shift, p) == (1.0, pytest.approx(math.erfc(1 / error / math.sqrt(2))))
    assert mean_difference(2.0, 0.5, 9, np.array([1.0])) == (-2.0, None)
    assert mean_difference(2.0, 0.0, 9, np.array([2.0, 2.0])) == (0.0, 1.0)
    assert mean_difference(2.0, 0.0, 9, np.array([3.0, 3.0])) == (1.0, 0.0)
