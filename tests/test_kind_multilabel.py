"""The kind `multilabel`: any number of labels a text, thresholds tuned on dev."""

import math

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import f1_score

from bert_mtl.kinds.head import DataError, LayerContext, head_settings, make_head
from bert_mtl.kinds.multilabel import best_threshold, macro_f1, micro_f1

LABELS = ["joy", "anger", "neutral"]


def make(statistics=None, **settings):
    raw = {"kind": "multilabel", "labels": LABELS} | settings
    return make_head("emotions", head_settings(raw), statistics)


def logits(probabilities):
    p = np.array(probabilities, np.float32)
    return np.log(p / (1 - p))


class TestSettings:
    def test_compare_epochs_by_macro_f1_unless_told(self):
        assert make().metric == "macro_f1"
        assert make(metric="micro_f1").metric == "micro_f1"

    def test_want_a_positive_weight_for_each_label(self):
        faults = make(positive_weights=[1.0, 2.0]).settings.faults()
        assert faults == [("positive_weights", "hold one weight for each of the 3 labels", [1.0, 2.0])]
        assert make(positive_weights=[1.0, 2.0, 3.0]).settings.faults() == []


class TestEncode:
    def test_sets_a_one_at_each_label_given_by_name_or_place(self):
        assert make().encode(["neutral", 0], "f:1") == [1, 0, 1]
        assert make().encode(["joy", "joy"], "f:1") == [1, 0, 0]

    def test_an_empty_list_is_none_of_the_labels(self):
        assert make().encode([], "f:1") == [0, 0, 0]

    def test_an_unknown_label_is_refused_with_the_closest(self):
        with pytest.raises(DataError) as error:
            make().encode(["joy", "angr"], "train.jsonl:7")
        assert str(error.value) == (
            "train.jsonl:7: the label of head emotions must be listed; got angr. "
            "Options: joy, anger, neutral. Did you mean anger?"
        )

    @pytest.mark.parametrize("value", ["joy", 1, {"joy": 1}])
    def test_anything_but_a_list_is_refused(self, value):
        with pytest.raises(DataError, match="f:1: the label of head emotions must be a list of labels; got "):
            make().encode(value, "f:1")

    def test_the_stratum_is_the_first_label(self):
        assert [make().stratum(label) for label in ([0, 1, 1], [1, 0, 0], [0, 0, 0])] == [1, 0, 3]


def test_statistics_count_labelled_examples_and_those_of_each_label():
    labels = np.array([[1, 0, 1], [1, 0, 0], [-1, -1, -1]], np.int32)
    statistics = make().count(labels)
    assert statistics == {"examples": 2, "label joy": 2, "label anger": 0, "label neutral": 1}
    assert make().describe(statistics) == "examples 2, label joy 2, label anger 0, label neutral 1"


class TestLoss:
    outputs = logits([[0.8, 0.25, 0.5], [0.5, 0.5, 0.9]])
    labels = np.array([[1, 0, 0], [0, 1, 1]], np.int32)
    first, second = -math.log(0.8 * 0.75 * 0.5), -math.log(0.5 * 0.5 * 0.9)

    def test_is_the_negative_log_likelihood_of_the_set_of_labels(self):
        np.testing.assert_allclose(make().losses(self.outputs, self.labels), [self.first, self.second], rtol=1e-6)

    def test_weighs_examples(self):
        total, weight = make().loss(self.outputs, self.labels, np.array([1, 2], np.float32), {})
        assert float(total) == pytest.approx(self.first + 2 * self.second, rel=1e-6)
        assert float(weight) == 3.0

    def test_positive_weights_multiply_what_a_texts_own_labels_cost(self):
        losses = make(positive_weights=[3.0, 2.0, 1.0]).losses(self.outputs, self.labels)
        first = -3 * math.log(0.8) - math.log(0.75 * 0.5)
        np.testing.assert_allclose(losses, [first, -2 * math.log(0.5) - math.log(0.5 * 0.9)], rtol=1e-6)

    def test_balanced_weights_are_negative_by_positive_examples(self):
        statistics = {"examples": 10, "label joy": 2, "label anger": 5, "label neutral": 0}
        np.testing.assert_allclose(make(statistics, positive_weights="balanced").positive_weights(), [4, 1, 9])
        all_joy = {"examples": 10, "label joy": 10, "label anger": 1, "label neutral": 1}
        assert make(all_joy, positive_weights="balanced").positive_weights()[0] == pytest.approx(0.1)

    def test_stays_finite_for_sure_and_wrong_answers(self):
        loss = make().losses(np.array([[100.0, -100, 100]], np.float32), np.array([[0, 1, 1]]))
        np.testing.assert_allclose(loss, [200.0])

    def test_items_without_weight_get_no_gradient(self):
        outputs, weights = tf.constant(self.outputs), np.array([1, 0], np.float32)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            total, weight = make().loss(outputs, np.array([[1, 0, 0], [-1, -7, 99]], np.int32), weights, {})
        assert (float(total), float(weight)) == (pytest.approx(self.first, rel=1e-6), 1.0)
        np.testing.assert_allclose(tape.gradient(total, outputs), [[-0.2, 0.25, 0.5], [0, 0, 0]], atol=1e-6)


def test_the_layer_gives_a_float32_logit_a_label_and_answers_are_probabilities():
    head = make()
    outputs = head.make_layer(LayerContext(4, 0.1, 0, "emotions", None))(np.ones((2, 4), np.float16))
    assert (outputs.shape, outputs.dtype) == ((2, 3), tf.float32)
    np.testing.assert_allclose(head.answer(logits([[0.8, 0.25, 0.5]]), None, {}), [[0.8, 0.25, 0.5]], rtol=1e-6)


class TestMetrics:
    answers = np.array([[0.8, 0.6, 0.2], [0.3, 0.6, 0.9], [0.7, 0.1, 0.1]], np.float32)
    labels = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0]], np.int32)

    def test_by_hand(self):
        # joy 2 of 2 found; anger 1 hit, 1 false, 1 missed; neutral 1 of 1
        found = make().metrics(self.answers, self.labels)
        assert found["micro_f1"] == pytest.approx(2 * 4 / (5 + 5))
        assert found["macro_f1"] == pytest.approx((1 + 0.5 + 1) / 3)
        assert found["exact_match"] == pytest.approx(1 / 3)
        likelihoods = [0.8 * 0.4 * 0.8, 0.7 * 0.6 * 0.9, 0.7 * 0.1 * 0.9]
        assert found["loss"] == pytest.approx(-np.log(likelihoods).mean(), rel=1e-5)

    def test_f1_scores_are_scikit_learns(self):
        random = np.random.default_rng(0)
        predicted, truth = random.random((50, 7)) < 0.3, random.random((50, 7)) < 0.2
        assert micro_f1(predicted, truth) == pytest.approx(f1_score(truth, predicted, average="micro"))
        assert macro_f1(predicted, truth) == pytest.approx(f1_score(truth, predicted, average="macro"))

    def test_nothing_true_and_nothing_predicted_scores_zero(self):
        nothing = np.zeros((2, 3), bool)
        assert (micro_f1(nothing, nothing), macro_f1(nothing, nothing)) == (0.0, 0.0)

    def test_use_the_tuned_thresholds(self):
        head = make()
        head.tuned = {"thresholds": [0.5, 0.05, 0.5]}
        assert head.metrics(self.answers, self.labels)["macro_f1"] == pytest.approx((1 + 0.8 + 1) / 3)


class TestTuning:
    def test_the_best_threshold_lies_half_way_between_neighbours(self):
        # F1 of the 1, 2, … most probable: 1/2, 2/5, 2/3, 6/7, 3/4
        assert best_threshold(np.array([0.6, 0.9, 0.8, 0.1, 0.4]), np.array([1, 1, 0, 0, 1]) > 0) == 0.25

    def test_equal_probabilities_are_not_parted(self):
        assert best_threshold(np.array([0.5, 0.5, 0.2]), np.array([1, 0, 0]) > 0) == pytest.approx(0.35)

    def test_the_best_threshold_is_that_of_a_search_through_all(self):
        random = np.random.default_rng(1)
        for _ in range(20):
            probabilities, truth = random.integers(1, 20, 30) / 20, random.random(30) < 0.3
            best = max(micro_f1(probabilities >= t, truth) for t in np.arange(0, 20) / 20 + 0.025)
            assert micro_f1(probabilities >= best_threshold(probabilities, truth), truth) == pytest.approx(best)

    def test_nothing_true_keeps_one_half(self):
        assert best_threshold(np.array([0.9, 0.1]), np.zeros(2, bool)) == 0.5

    @pytest.fixture
    def dev(self):
        """Six texts are joy, at 0.3 and above; four anger, at 0.8 and above; none is neutral."""
        joy = [0.3] * 6 + [0.2] * 4
        anger = [0.8] * 4 + [0.25] * 6
        answers = np.array([joy, anger, [0.1] * 10], np.float32).T
        labels = np.array([[1] * 6 + [0] * 4, [1] * 4 + [0] * 6, [0] * 10], np.int32).T
        return answers, labels

    def test_macro_f1_takes_a_threshold_a_label_where_it_has_five_examples(self, dev):
        thresholds = make().tune(*dev)["thresholds"]
        common = best_threshold(dev[0].ravel(), dev[1].ravel() > 0)
        assert common == pytest.approx(0.275)
        assert thresholds == pytest.approx([0.25, common, common])

    def test_micro_f1_takes_one_threshold_for_all(self, dev):
        assert make(metric="micro_f1").tune(*dev)["thresholds"] == pytest.approx([0.275] * 3)

    def test_never_scores_below_one_half_on_the_same_texts(self, dev):
        for metric in ("micro_f1", "macro_f1"):
            head = make(metric=metric)
            before = head.metrics(*dev)[metric]
            head.tuned = head.tune(*dev)
            assert head.metrics(*dev)[metric] > before


def test_answers_name_the_labels_from_their_thresholds_on():
    head, answers = make(), np.array([[0.5, 0.25, 0.75], [0.25, 0.25, 0.25]], np.float32)
    assert head.decode(answers) == [
        {"labels": ["joy", "neutral"], "probabilities": {"joy": 0.5, "anger": 0.25, "neutral": 0.75}},
        {"labels": [], "probabilities": {"joy": 0.25, "anger": 0.25, "neutral": 0.25}},
    ]
    head.tuned = {"thresholds": [0.6, 0.2, 0.8]}
    assert [answer["labels"] for answer in head.decode(answers)] == [["anger"], ["anger"]]


def test_the_export_holds_labels_and_thresholds_tuned_or_not():
    head = make()
    assert head.export() == {"kind": "multilabel", "tuned": {}, "labels": LABELS, "thresholds": [0.5, 0.5, 0.5]}
    head.tuned = {"thresholds": [0.25, 0.5, 0.75]}
    assert head.export()["thresholds"] == [0.25, 0.5, 0.75]
