"""Scores of resamples beside those of the resampled examples themselves, and tests of significance by known numbers."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from bert_mtl.kinds.classification import macro_f1, matthews
from bert_mtl.scores import SCORES, by_label, ranks, score
from bert_mtl.significance import Discordance, holm, mcnemar, paired_bootstrap

EYE = np.eye(4, dtype=bool)


def drawn(examples: int, resamples: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Places `(resamples, examples)` of a resample's examples, and the same as counts."""
    places = np.random.default_rng(4).integers(examples, size=(resamples, examples))
    return places, np.stack([np.bincount(row, minlength=examples) for row in places]).astype(float)


def labelled(examples: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(9)
    labels = generator.integers(3, size=examples)  # of four labels one is never given
    return np.where(generator.random(examples) < 0.6, labels, generator.integers(4, size=examples)), labels


@pytest.mark.parametrize(("name", "of"), [("macro_f1", macro_f1), ("matthews", matthews)])
def test_scores_by_label_are_those_of_the_resampled_examples(name, of):
    predicted, labels = labelled(40)
    places, counts = drawn(40)
    found = SCORES[name](by_label(EYE[predicted], EYE[labels]), counts)
    assert found == pytest.approx([of(predicted[row], labels[row]) for row in places], abs=1e-12)
    assert len(set(found)) > 10


@pytest.mark.parametrize("decimals", [0, 6])
def test_correlations_are_those_of_the_resampled_examples_also_where_values_are_equal(decimals):
    numbers = np.random.default_rng(2).normal(size=(30, 2)).round(decimals)
    places, counts = drawn(30)
    for name, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        expected = [of(*numbers[row].T).statistic for row in places]
        assert SCORES[name](numbers, counts) == pytest.approx(expected, abs=1e-12)


def test_sums_and_shares_of_resamples():
    rows = np.array([[2.0, 3, 4], [0, 1, 0], [1, 1, 2]])
    counts = np.array([[1.0, 1, 1], [0, 3, 0], [0, 0, 3]])
    assert SCORES["f1"](rows, counts).tolist() == [6 / 11, 0, 6 / 9]
    assert SCORES["mean"](rows[:, :1], counts).tolist() == [1, 0, 1]


def test_a_score_that_is_not_defined_is_0():
    assert score("f1", np.zeros((2, 3))) == score("macro_f1", np.zeros((2, 6))) == 0
    constant = np.array([[1.0, 5], [2, 5], [3, 5]])
    assert score("pearson", constant) == score("spearman", constant) == 0
    assert score("matthews", by_label(EYE[[0, 0]], EYE[[0, 1]])) == 0


def test_copies_of_an_example_share_their_mean_rank():
    # 7, 7, 7, 8, 9, 9: the three 7 (one example twice, another once) share rank 2, both 9 share 5.5
    assert ranks(np.array([9.0, 7, 8, 7]), np.array([[2.0, 2, 1, 1]])).tolist() == [[5.5, 2, 4, 2]]


def test_the_bootstrap_is_what_all_possible_resamples_say():
    """Of three examples there are 27 resamples: 8 without the one that differs, 1 (3.7 %) with it alone."""
    baseline, this = np.array([[1.0], [0], [0]]), np.array([[1.0], [1], [0]])
    every = [np.mean((this - baseline)[list(row)]) for row in itertools.product(range(3), repeat=3)]
    found = paired_bootstrap("mean", [[baseline], [this]], 20_000, seed=1)[0]
    assert found.difference == pytest.approx(1 / 3)
    assert (found.low, found.high) == (min(every), max(every)) == (0, 1)
    assert found.p == pytest.approx(2 * np.mean(np.array(every) <= 0), abs=0.02) == pytest.approx(16 / 27, abs=0.02)


def test_p_counts_resamples_on_the_rarer_side_of_0_and_one_more():
    better = np.ones((30, 1))
    found = paired_bootstrap("mean", [[1 - better], [better]], 999)[0]
    assert found == (1, 1, 1, 2 / 1000)
    assert paired_bootstrap("mean", [[better], [better]], 999)[0] == (0, 0, 0, 1)


def test_a_group_has_the_mean_of_its_runs_and_all_are_scored_on_the_same_resamples():
    generator = np.random.default_rng(7)
    a, b, c = (generator.normal(size=(50, 2)) for _ in range(3))
    one, two = paired_bootstrap("pearson", [[a], [b], [c]], 300, seed=3)
    both = paired_bootstrap("pearson", [[a], [b, c]], 300, seed=3)[0]
    assert both.difference == pytest.approx((one.difference + two.difference) / 2)
    same = paired_bootstrap("pearson", [[a], [a, a]], 300)[0]
    assert same == (0, 0, 0, 1)


def test_chunks_and_equal_examples_change_nothing(monkeypatch):
    generator = np.random.default_rng(5)
    runs = [[(generator.random((60, 1)) < 0.7).astype(float)] for _ in range(2)]
    whole = paired_bootstrap("mean", runs, 100, seed=8)
    monkeypatch.setattr("bert_mtl.significance.CHUNK", 28)  # 7 resamples of 4 kinds of examples
    assert paired_bootstrap("mean", runs, 100, seed=8) == whole
    draws = np.random.default_rng(8).integers(60, size=(100, 60))
    differences = (runs[1][0] - runs[0][0])[draws, 0].mean(axis=1)
    assert (whole[0].low, whole[0].high) == pytest.approx(np.percentile(differences, [2.5, 97.5]))


def test_f1_differences_have_the_interval_of_resampled_texts():
    generator = np.random.default_rng(6)
    given = generator.integers(3, size=80)
    runs = [np.stack([generator.binomial(given, share), given, given], axis=1) for share in (0.6, 0.8)]
    found = paired_bootstrap("f1", [[runs[0]], [runs[1]]], 200, seed=8)[0]
    draws = np.random.default_rng(8).integers(80, size=(200, 80))

    def f1(run: np.ndarray) -> np.ndarray:
        hits, guessed, real = run[draws].sum(axis=1).T
        return 2 * hits / (guessed + real)

    assert (found.low, found.high) == pytest.approx(np.percentile(f1(runs[1]) - f1(runs[0]), [2.5, 97.5]))


def test_where_nothing_differs_p_is_below_5_percent_as_often_as_it_says():
    """400 pairs of systems that are right on 80 % of 150 examples, of which they share most."""
    generator, found = np.random.default_rng(11), []
    for number in range(400):
        shared = generator.random((150, 1)) < 0.8
        own = [(generator.random((150, 1)) < 0.3, generator.random((150, 1)) < 0.8) for _ in range(2)]
        baseline, this = (np.where(alone, right, shared) for alone, right in own)
        found.append(paired_bootstrap("mean", [[baseline * 1.0], [this * 1.0]], 200, seed=number)[0].p)
    # the deviation of a share of 5 % of 400 is 1.1 points; differences of 0 make p cautious
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.07
    assert 0.42 <= np.mean(np.array(found) < 0.5) <= 0.55


def test_mcnemar_is_a_binomial_test_of_the_examples_that_one_has_right():
    baseline = np.array([True] * 8 + [False] * 4)
    this = np.array([True] * 6 + [False] * 2 + [True] * 3 + [False])
    assert mcnemar(baseline, this) == (2, 3, 1)
    nine = np.arange(10) < 9
    assert mcnemar(~nine, nine) == (1, 9, pytest.approx(stats.binomtest(1, 10).pvalue, abs=1e-15))
    assert mcnemar(nine, nine) == Discordance(0, 0, 1)


def test_holm_multiplies_the_smallest_by_all_and_never_goes_down():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_scores_agree_with_scikit_learn():
    predicted, labels = labelled(60)
    statistics = by_label(EYE[predicted], EYE[labels])
    assert score("macro_f1", statistics) == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    assert score("matthews", statistics) == pytest.approx(metrics.matthews_corrcoef(labels, predicted))
    assert not math.isclose(score("macro_f1", statistics), score("matthews", statistics))


def test_seeds_that_vary_are_no_difference_between_configurations():
    """Three runs beside three of one configuration, whose seeds vary by half a point: p < 0.05 in about one of twenty
    pairs (with examples alone resampled it was in seven of twenty)."""
    random, found = np.random.default_rng(0), 0
    for trial in range(60):
        hardness = random.random(2000)
        runs = []
        for _ in range(6):
            own = hardness + random.normal(0, 0.05, 2000)
            runs.append((own < np.quantile(own, 0.9 + random.normal(0, 0.01))).astype(float)[:, None])
        found += paired_bootstrap("mean", [runs[:3], runs[3:]], 400, trial)[0].p < 0.05
    assert found <= 9
