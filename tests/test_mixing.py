"""Rates of tasks, whole numbers of examples, and the order of an epoch."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from bert_mtl.mixing import capped, epoch_examples, problems, quotas, rates, schedule
from conf.entry import CONF_DIR

SIZES = {"imdb": 900, "trec": 100}
FILES = sorted((CONF_DIR / "mixing").glob("*.yaml"))


def mixing(kind: str, **values) -> SimpleNamespace:
    base = dict(cap=None, temperature=1.0, rates=None, targets=None, epoch_examples=None)
    return SimpleNamespace(kind=kind, **base | values)


def rate(config: SimpleNamespace, sizes: dict = SIZES, epoch: int = 0, epochs: int = 1, scores=None) -> list[float]:
    found = rates(config, sizes, epoch=epoch, epochs=epochs, scores=scores)
    assert list(found) == list(sizes)
    return list(found.values())


def test_proportional_uniform_and_explicit_rates():
    assert rate(mixing("proportional")) == pytest.approx([0.9, 0.1])
    assert rate(mixing("uniform")) == [0.5, 0.5]
    assert rate(mixing("explicit", rates={"trec": 1, "imdb": 3})) == [0.75, 0.25]


def test_the_cap_comes_before_the_temperature():
    assert rate(mixing("temperature", temperature=2.0)) == pytest.approx([0.75, 0.25])  # 30 : 10
    assert rate(mixing("temperature", temperature=2.0, cap=400)) == pytest.approx([2 / 3, 1 / 3])  # 20 : 10
    assert rate(mixing("proportional", cap=300)) == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(("epochs", "powers"), [(1, [1.0]), (2, [1.0, 0.2]), (3, [1.0, 0.6, 0.2])])
def test_annealed_rates_go_from_power_1_to_power_a_fifth(epochs, powers):
    for epoch, power in enumerate(powers):
        expected = 9**power / (9**power + 1)
        assert rate(mixing("annealed"), epoch=epoch, epochs=epochs) == pytest.approx([expected, 1 - expected])


def test_dev_scores_favour_the_task_furthest_from_its_target():
    config = mixing("dev_score", targets={"imdb": 0.9})
    assert rate(config) == pytest.approx([0.9, 0.1])  # no score yet
    # imdb: 900 * (0.9 - 0.8), trec without a target: 100 * (1 - 0.4)
    assert rate(config, scores={"imdb": 0.8, "trec": 0.4}) == pytest.approx([0.6, 0.4])
    # 30 * 0.1 and 10 * 0.6
    hot = mixing("dev_score", targets={"imdb": 0.9}, temperature=2.0)
    assert rate(hot, scores={"imdb": 0.8, "trec": 0.4}) == pytest.approx([1 / 3, 2 / 3])


def test_a_task_above_its_target_still_counts_a_hundredth_of_it():
    config = mixing("dev_score", targets={"imdb": 0.5})
    # 900 * 0.005 and 100 * 0.045
    assert rate(config, scores={"imdb": 0.8, "trec": 0.955}) == pytest.approx([0.5, 0.5])


def test_an_epoch_holds_the_capped_sizes_unless_it_is_given():
    assert capped(mixing("uniform", cap=300), SIZES) == {"imdb": 300, "trec": 100}
    assert epoch_examples(mixing("uniform", cap=300), SIZES) == 400
    assert epoch_examples(mixing("uniform", epoch_examples=50), SIZES) == 50


def test_quotas_are_whole_numbers_by_largest_remainder():
    assert quotas({"a": 0.5, "b": 0.3, "c": 0.2}, 7).tolist() == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert quotas({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 10).tolist() == [4, 3, 3]
    assert quotas({"a": 0.29, "b": 0.71}, 100).tolist() == [29, 71]  # 0.29 * 100 is a little less than 29
    assert quotas({"a": 0.999, "b": 0.001}, 0).tolist() == [0, 0]


@pytest.mark.parametrize("examples", [1, 17, 48_014, 1_000_003])
def test_quotas_sum_to_the_examples_and_are_within_one_of_the_rates(examples):
    shares = dict(enumerate(np.random.default_rng(0).dirichlet(np.ones(10))))
    found = quotas(shares, examples)
    assert found.sum() == examples
    assert np.abs(found - np.array(list(shares.values())) * examples).max() < 1


def test_a_schedule_spreads_the_tasks_evenly():
    order = schedule(np.array([2, 4]))
    assert order.dtype == np.int16
    assert order.tolist() == [0, 1, 1, 0, 1, 1]
    assert schedule(np.array([3, 3, 3])).tolist() == [0, 1, 2] * 3
    assert schedule(np.array([0, 2])).tolist() == [1, 1]


@pytest.mark.parametrize(
    "counts", [[9, 1], [25_000, 13_084, 4_478, 5_452], [1] * 9 + [90], [5_000] * 3 + [400_000], [7] * 5 + [1000, 2000]]
)
def test_every_window_of_a_schedule_holds_each_share_to_within_about_two_examples(counts):
    order = schedule(np.array(counts))
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    for task, count in enumerate(counts):
        ahead = np.cumsum(order == task) - np.arange(1, len(order) + 1) * count / len(order)
        assert np.ptp(np.append(ahead, 0)) < 2.1  # the largest difference over any window


def test_a_million_examples_are_scheduled_in_half_a_second():
    start = time.perf_counter()
    schedule(np.array([500_000, 300_000, 150_000, 50_000]))
    assert time.perf_counter() - start < 0.5


def told(config: SimpleNamespace) -> list[str]:
    return [str(problem) for problem in problems(config, ["imdb", "trec"])]


def test_rates_must_name_every_task_and_no_other():
    assert told(mixing("explicit", rates={"imdb": 1, "trek": 0, "trec": 0.5})) == [
        "mixing.rates must name tasks of task=; got trek. Options: imdb, trec. Did you mean trec?",
        "mixing.rates.trek must be above 0 and finite (to leave a task out, leave it out of task=); got 0.",
    ]
    assert told(mixing("explicit", rates={"imdb": 1.0})) == [
        "mixing.rates.trec must be given with mixing=explicit; got nothing."
    ]
    assert len(told(mixing("explicit"))) == 2


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_rates_and_targets_are_above_zero_and_finite(value):
    (rates_fault,) = problems(mixing("explicit", rates={"imdb": 1, "trec": value}), SIZES)
    assert rates_fault.key == "mixing.rates.trec"
    (target_fault,) = problems(mixing("dev_score", targets={"trec": value}), SIZES)
    assert target_fault.key == "mixing.targets.trec"


def test_keys_of_another_kind_are_refused_rather_than_ignored():
    assert told(mixing("uniform", rates={"imdb": 1, "trec": 1}, targets={"imdb": 1}, temperature=2.0)) == [
        "mixing.rates must be null with mixing=uniform (use mixing=explicit); got {imdb: 1, trec: 1}.",
        "mixing.targets must be null with mixing=uniform (use mixing=dev_score); got {imdb: 1}.",
        "mixing.temperature must be 1 with mixing=uniform (use mixing=temperature); got 2.0.",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_has_the_same_keys_its_name_as_kind_and_no_problem(path):
    values = yaml.safe_load(path.read_text())
    assert list(values) == ["kind", "cap", "temperature", "rates", "targets", "epoch_examples"]
    assert values["kind"] == path.stem
    given = {"imdb": 1, "trec": 1} if path.stem == "explicit" else values["rates"]  # the one that a user must give
    config = SimpleNamespace(**values | {"rates": given})
    assert problems(config, SIZES) == []
    assert sum(rate(config)) == pytest.approx(1)
