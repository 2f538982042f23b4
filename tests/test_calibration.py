"""Temperatures and calibration errors that can be worked out by hand."""

import numpy as np
import pytest

from bert_mtl.calibration import calibrated, expected_calibration_error, scaled, temperature


def answers(confidence: float, right: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """So many right and wrong answers of two labels, all given with the same probability."""
    labels = np.arange(right + wrong) % 2
    answered = np.where(np.arange(right + wrong) < right, labels, 1 - labels)
    return np.where(answered[:, None] == [0, 1], confidence, 1 - confidence).astype(np.float32), labels


def test_the_error_is_the_mean_gap_of_confidence_and_accuracy_by_bin():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]])
    labels = np.array([0, 1, 0, 1])
    # bins hold one text each: 0.9 right, 0.8 right, 0.6 wrong, 0.7 wrong
    assert expected_calibration_error(probabilities, labels) == pytest.approx((0.1 + 0.2 + 0.6 + 0.7) / 4)
    # [0.5, 0.75): one wrong of mean 0.65, two texts; [0.75, 1]: mean 0.85, both right
    assert expected_calibration_error(probabilities, labels, bins=4) == pytest.approx((0.65 + 0.15) / 2)
    assert expected_calibration_error(np.array([[1.0, 0.0]] * 4), np.zeros(4, int)) == 0.0


def test_a_temperature_divides_log_odds():
    # odds of 4 to 1 are right 2 times in 3: log 4 / T = log 2
    assert temperature(*answers(0.8, 200, 100)) == pytest.approx(2, abs=1e-4)
    # odds of 2 to 1 are right 8 times in 9: log 2 / T = log 8
    assert temperature(*answers(2 / 3, 80, 10)) == pytest.approx(1 / 3, abs=1e-4)
    np.testing.assert_allclose(scaled(np.array([[0.1, 0.1, 0.8], [0.0, 0.5, 0.5]]), 1 / 3)[0, 2], 512 / 514)
    np.testing.assert_allclose(scaled(np.array([[0.9, 0.1, 0.0]]), 2.0), [[0.75, 0.25, 0.0]])


def test_a_temperature_stays_within_its_bounds_and_is_1_where_no_answer_is_wrong():
    assert temperature(*answers(0.9, 10, 90)) == pytest.approx(20, rel=1e-4)
    assert temperature(*answers(0.5001, 10**5, 1)) == pytest.approx(0.05, rel=1e-4)
    assert temperature(*answers(0.6, 50, 0)) == 1
    assert temperature(np.array([[1.0, 0.0], [1.0, 0.0], [0.75, 0.25]]), np.array([0, 1, 0])) > 1  # a truth of 0


def test_what_is_gained_is_measured_on_texts_that_the_temperature_has_not_seen():
    probabilities, labels = answers(0.8, 2000, 1000)
    (found,), *errors, texts = calibrated(probabilities, labels, np.zeros(3000, int), 1)
    assert found == pytest.approx(2, abs=1e-4)
    assert errors[0] == pytest.approx(0.8 - 2 / 3, abs=1e-6) and texts == 3000
    # in sample it would vanish; a half of 1,500 is right in 2/3 ± 0.012 of its texts
    assert 1e-4 < errors[1] < 0.03
    alone = calibrated(np.array([[0.75, 0.25]]), np.array([0]), np.array([0]), 1)
    assert alone == ([1.0], 0.25, 0.25, 1)


def test_every_group_has_a_temperature_of_its_own():
    sure, unsure = answers(0.8, 2000, 1000), answers(2 / 3, 1600, 200)
    probabilities, labels = (np.concatenate(both) for both in zip(sure, unsure, strict=True))
    groups = np.repeat([0, 2], [3000, 1800])
    found = calibrated(probabilities, labels, groups, 3)
    assert found.temperatures == [pytest.approx(2, abs=1e-4), 1.0, pytest.approx(1 / 3, abs=1e-4)]
    assert found.ece_before == pytest.approx((3000 * (0.8 - 2 / 3) + 1800 * (8 / 9 - 2 / 3)) / 4800, abs=1e-6)
    assert found.ece_after < 0.03
    together = calibrated(probabilities, labels, np.zeros(4800, int), 1)
    assert together.ece_after > 2 * found.ece_after
