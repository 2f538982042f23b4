"""The kind `regression`: standardised inside, the data's unit outside."""

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.kinds.head import DataError, LayerContext, head_settings, make_head
from bert_mtl.kinds.regression import moments, pearson, spearman

STATISTICS = {"examples": 4.0, "sum": 12.0, "squares": 52.0}  # mean 3, variance 13 - 9 = 4


def make(statistics=STATISTICS, **settings):
    return make_head("stsb", head_settings({"kind": "regression"} | settings), statistics)


class TestSettings:
    def test_compare_epochs_by_spearman_unless_told(self):
        assert (make().metric, make(metric="pearson").metric) == ("spearman", "pearson")

    def test_want_the_minimum_below_the_maximum(self):
        assert make(minimum=5, maximum=5).settings.faults() == [("minimum", "be below maximum, 5", 5)]
        assert make(minimum=0, maximum=5).settings.faults() == make(minimum=0).settings.faults() == []


class TestEncode:
    @pytest.mark.parametrize(("value", "stored"), [(2.5, 2.5), ("2.5", 2.5), (5, 5.0), ("0", 0.0)])
    def test_takes_numbers_and_their_spelling(self, value, stored):
        assert make(minimum=0, maximum=5).encode(value, "f:1") == [stored]

    @pytest.mark.parametrize("value", ["high", "", None, [2.5], True, float("nan"), "inf", 1e39, 10**400])
    def test_refuses_what_is_no_finite_float32(self, value):
        with pytest.raises(DataError, match="f:1: the label of head stsb must be a finite number; got "):
            make().encode(value, "f:1")

    @pytest.mark.parametrize(
        ("bounds", "rule"),
        [
            ({"minimum": 0, "maximum": 5}, "of at least 0 and at most 5"),
            ({"minimum": 0}, "of at least 0"),
            ({"maximum": -2}, "of at most -2"),
        ],
    )
    def test_refuses_what_is_out_of_range(self, bounds, rule):
        with pytest.raises(DataError) as error:
            make(**bounds).encode(-1 if "minimum" in bounds else 1, "dev.tsv:3")
        got = "-1" if "minimum" in bounds else "1"
        assert str(error.value) == f"dev.tsv:3: the label of head stsb must be a finite number {rule}; got {got}."


class TestStatistics:
    def test_sum_labelled_values_and_their_squares(self):
        counted = make().count(np.array([1, 3, np.nan, 8], np.float32))
        assert counted == {"examples": 3, "sum": 12, "squares": 74}
        assert make().describe(STATISTICS) == "examples 4, mean 3, deviation 2"

    def test_give_mean_and_deviation(self):
        assert moments(STATISTICS) == (3.0, 2.0)
        assert moments({}) == (0.0, 1.0)

    def test_values_all_the_same_have_deviation_one(self):
        assert moments(make().count(np.full(7, 0.1, np.float32))) == (pytest.approx(0.1), 1.0)
        assert moments(make().count(np.zeros(3, np.float32))) == (0.0, 1.0)


class TestLoss:
    def test_is_the_squared_error_of_standardised_values(self):
        losses = make().losses(np.array([[0.0], [1.0]], np.float32), np.array([5.0, 1.0], np.float32))
        np.testing.assert_allclose(losses, [1.0, 4.0])  # labels are 1 and -1 deviations from the mean

    def test_items_without_weight_get_no_gradient(self):
        outputs = tf.constant([[0.5], [0.5], [0.5]])
        labels, weights = np.array([5.0, np.nan, np.inf], np.float32), np.array([1, 0, 0], np.float32)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            total, weight = make().loss(outputs, labels, weights, {})
        assert (float(total), float(weight)) == (0.25, 1.0)
        np.testing.assert_allclose(tape.gradient(total, outputs), [[-1.0], [0.0], [0.0]])


def test_the_layer_gives_one_float32_number_a_text():
    outputs = make().make_layer(LayerContext(4, 0.1, 0, "stsb", None))(np.ones((3, 4), np.float16))
    assert (outputs.shape, outputs.dtype) == ((3, 1), tf.float32)


class TestAnswers:
    outputs = np.array([[0.0], [2.0], [-3.0]], np.float32)

    def test_are_in_the_unit_of_the_labels(self):
        np.testing.assert_allclose(make().answer(self.outputs, None, {}), [3.0, 7.0, -3.0])

    def test_keep_to_minimum_and_maximum(self):
        np.testing.assert_allclose(make(minimum=0, maximum=5).answer(self.outputs, None, {}), [3.0, 5.0, 0.0])
        np.testing.assert_allclose(make(minimum=0).answer(self.outputs, None, {}), [3.0, 7.0, 0.0])

    def test_read_as_numbers(self):
        assert make().decode(np.array([3.0, 0.25], np.float32)) == [{"value": 3.0}, {"value": 0.25}]


class TestMetrics:
    def test_by_hand(self):
        answers, labels = np.array([1, 2, 3, 10], np.float32), np.array([1, 2, 4, 3], np.float32)
        found = make().metrics(answers, labels)
        # ranks 1 2 3 4 and 1 2 4 3: 1 - 6 · 2 / (4 · 15)
        assert found["spearman"] == pytest.approx(0.8)
        # deviations -3 -2 -1 6 and -1.5 -0.5 1.5 0.5: 7 / sqrt(50 · 5)
        assert found["pearson"] == pytest.approx(7 / 250**0.5)
        assert found["mse"] == pytest.approx((0 + 0 + 1 + 49) / 4)

    def test_equal_values_share_their_mean_rank(self):
        # ranks 1.5 1.5 3 and 1 2 3: 1.5 / sqrt(1.5 · 2)
        assert spearman(np.array([0, 0, 7]), np.array([1, 2, 3])) == pytest.approx(0.75**0.5)

    def test_constant_answers_correlate_with_nothing(self):
        constant, labels = np.full(5, 0.1, np.float32), np.arange(5)
        assert (pearson(constant, labels), spearman(labels, constant)) == (0.0, 0.0)
        assert (pearson(constant[:1], labels[:1]), spearman(constant[:1], labels[:1])) == (0.0, 0.0)

    @pytest.mark.filterwarnings("ignore:invalid value")
    def test_not_a_number_stays_so(self):
        found = make().metrics(np.array([1, np.nan, 2], np.float32), np.array([1, 2, 3], np.float32))
        assert all(np.isnan(value) for value in found.values())


def test_the_export_holds_the_range():
    expected = {"kind": "regression", "tuned": {}, "minimum": 0, "maximum": None}
    assert make(minimum=0).export() == expected
