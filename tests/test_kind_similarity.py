"""The kind `similarity`: in-batch softmax over partners, and how good the vectors are."""

import math

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.kinds.head import DataError, LayerContext, head_settings, make_head
from bert_mtl.kinds.similarity import finds_partner, rivals, text_keys, uniformity

NAN = float("nan")
#                first pair            second pair          another task's text
OUTPUTS = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8]], np.float32)
WEIGHTS = np.array([1, 0, 1, 0, 0], np.float32)
SCORES = np.array([NAN] * 5, np.float32)


def make(**settings):
    return make_head("pairs", head_settings({"kind": "similarity", "temperature": 1.0} | settings))


def batch(texts, partner, length=12):
    """The inputs of one row that holds `texts` (lists of token ids) one after the other."""
    lengths = [len(text) for text in texts]
    filler = [0] * (length - sum(lengths))
    rows = {
        "token_ids": [token for text in texts for token in text] + filler,
        "segment_ids": list(np.repeat(np.arange(1, len(texts) + 1), lengths)) + filler,
        "position_ids": [place for size in lengths for place in range(size)] + filler,
    }
    arrays = {key: np.array([values], np.int32) for key, values in rows.items()}
    return arrays | {"partner": np.array(partner, np.int32)}


UNLIKE = batch([[2, 5], [2, 6], [2, 7], [2, 8], [2, 9]], [1, 0, 3, 2, 4])


def lse(*values):
    return math.log(sum(map(math.exp, values)))


class TestLoss:
    # Cosines of first texts (rows) and second ones: 0.8 0, 0.6 1
    FIRST = (lse(0.8, 0) + lse(0.8, 0.6)) / 2 - 0.8
    SECOND = (lse(0.6, 1) + lse(0, 1)) / 2 - 1

    def test_is_the_cross_entropy_of_partners_both_ways(self):
        total, weight = make().loss(OUTPUTS, SCORES, WEIGHTS, UNLIKE)
        assert float(total) == pytest.approx(self.FIRST + self.SECOND, rel=1e-6)
        assert float(weight) == 2.0

    def test_the_temperature_divides_cosines(self):
        total, _ = make(temperature=0.5).loss(OUTPUTS, SCORES, WEIGHTS, UNLIKE)
        expected = (lse(1.6, 0) + lse(1.6, 1.2)) / 2 - 1.6 + (lse(1.2, 2) + lse(0, 2)) / 2 - 2
        assert float(total) == pytest.approx(expected, rel=1e-6)

    def test_an_example_without_a_rival_does_not_count(self):
        total, weight = make().loss(OUTPUTS, SCORES, np.array([1, 0, 0, 0, 0], np.float32), UNLIKE)
        assert (float(total), float(weight)) == (0.0, 0.0)

    def test_is_never_negative_however_sure_the_answers_are(self):
        dice = np.random.default_rng(0)
        for _ in range(50):
            outputs = dice.normal(size=(5, 2)).astype(np.float32)
            outputs /= np.linalg.norm(outputs, axis=1, keepdims=True)
            outputs[[1, 3]] = outputs[[0, 2]]
            assert float(make(temperature=1e-3).loss(outputs, SCORES, WEIGHTS, UNLIKE)[0]) >= 0

    def test_a_batch_without_examples_has_none_either(self):
        total, weight = make().loss(OUTPUTS, SCORES, np.zeros(5, np.float32), UNLIKE)
        assert (float(total), float(weight)) == (0.0, 0.0)

    def test_examples_that_share_a_text_are_no_wrong_answers(self):
        same_second = batch([[2, 5], [2, 6], [2, 7], [2, 6], [2, 9]], [1, 0, 3, 2, 4])
        total, weight = make().loss(OUTPUTS, SCORES, WEIGHTS, same_second)
        assert (float(total), float(weight)) == (0.0, 0.0)

    def test_single_texts_read_twice_are_told_from_each_other(self):
        twice = batch([[2, 5], [2, 5], [2, 7], [2, 7], [2, 9]], [1, 0, 3, 2, 4])
        total, _ = make().loss(OUTPUTS, SCORES, WEIGHTS, twice)
        assert float(total) == pytest.approx(self.FIRST + self.SECOND, rel=1e-6)

    def test_pairs_scored_below_the_minimum_are_not_learned(self):
        scores = np.array([4.0, NAN, 3.5, NAN, 0.0], np.float32)
        for minimum, learned in ((3.5, 2), (4, 0), (5, 0)):  # one pair alone has no rival
            total, weight = make(minimum_score=minimum).loss(OUTPUTS, scores, WEIGHTS, UNLIKE)
            assert float(weight) == learned
            assert float(total) == pytest.approx(self.FIRST + self.SECOND if learned == 2 else 0, abs=1e-6)

    def test_pairs_without_a_score_are_learned_whatever_the_minimum(self):
        assert float(make(minimum_score=4).loss(OUTPUTS, SCORES, WEIGHTS, UNLIKE)[1]) == 2.0

    def test_other_tasks_texts_get_no_gradient_and_partners_do(self):
        outputs, garbage = tf.constant(OUTPUTS), np.array([1, NAN, 2, np.inf, -np.inf], np.float32)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            total, _ = make().loss(outputs, garbage, WEIGHTS, UNLIKE)
        gradient = tape.gradient(total, outputs).numpy()
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[4], 0)
        assert (np.abs(gradient[:4]).max(axis=1) > 0.1).all()

    def test_is_the_same_compiled(self):
        compiled = tf.function(lambda *args: make().loss(*args), jit_compile=True)
        total, weight = compiled(OUTPUTS, SCORES, WEIGHTS, UNLIKE)
        assert float(total) == pytest.approx(self.FIRST + self.SECOND, rel=1e-5)
        assert float(weight) == 2.0


class TestTexts:
    def test_have_equal_keys_only_where_their_tokens_are_the_same_in_order(self):
        keys = np.array(text_keys(batch([[2, 5, 6], [2, 6, 5], [2, 5], [2, 5, 6]], [0, 1, 2, 3])))
        assert keys[0] == keys[3]
        assert len(set(keys.tolist())) == 3

    def test_of_few_ids_have_keys_of_their_own(self):
        texts = [[2, a, b, c] for a in range(12) for b in range(12) for c in range(12)]
        keys = np.array(text_keys(batch(texts, list(range(1728)), length=4 * 1728)))
        assert len(set(keys.tolist())) == 1728

    def test_in_common_make_two_examples_rivals(self):
        # first-first, second-second, first-second; the last pair shares none
        inputs = batch([[5], [6], [5], [7], [8], [7], [9], [8], [1], [3]], [1, 0, 3, 2, 5, 4, 7, 6, 9, 8])
        found = np.array(rivals(inputs))[::2, ::2]
        expected = np.zeros((5, 5), bool)
        for a, b in ((0, 1), (1, 2), (2, 3)):
            expected[a, b] = expected[b, a] = True
        np.testing.assert_array_equal(found, expected)


class TestLayer:
    context = LayerContext(2, 0.1, 0, "pairs", None)

    def test_gives_the_encoders_vectors_at_length_one(self):
        layer = make().make_layer(self.context)
        outputs = layer(np.array([[3, 4], [0, 0]], np.float16), training=True)
        assert outputs.dtype == tf.float32
        assert layer.weights == []
        np.testing.assert_allclose(outputs, [[0.6, 0.8], [0, 0]], rtol=1e-6)

    def test_projects_them_where_asked(self):
        layer = make(projection=3).make_layer(self.context)
        layer.projection.kernel.assign([[1, 0, 0], [0, 0, 2]])
        np.testing.assert_allclose(layer(np.array([[3.0, 2.0]])), [[0.6, 0.0, 0.8]], rtol=1e-6)
        assert [tuple(weight.shape) for weight in layer.weights] == [(2, 3), (3,)]


class TestAnswers:
    def test_are_an_examples_two_vectors(self):
        answers = np.array(make().answer(OUTPUTS, SCORES, UNLIKE))
        assert answers.shape == (5, 2, 2)
        np.testing.assert_array_equal(answers[[0, 2], 1], OUTPUTS[[1, 3]])

    def test_are_the_same_vector_twice_for_a_text_read_twice_and_zeros_for_a_partner_that_is_not_there(self):
        inputs = batch([[2, 5], [2, 5], [2, 7], [2, 8], [2, 9]], [1, 0, 3, 2, 4])
        answers = np.array(make().answer(OUTPUTS, SCORES, inputs))
        np.testing.assert_array_equal(answers[[0, 4], 1], [OUTPUTS[0], [0, 0]])

    def test_read_as_a_cosine_of_pairs_equal_ones_too_and_a_vector_of_texts_alone(self):
        answers = np.array([[[1, 0], [0.75, 0.5]], [[0.6, 0.8], [0.6, 0.8]], [[0.5, 0.25], [0, 0]]], np.float32)
        pair, equal, alone = make().decode(answers)
        assert (pair, equal) == ({"similarity": 0.75}, {"similarity": pytest.approx(1)})
        assert alone == {"vector": [0.5, 0.25]}


class TestMetrics:
    # cosines 1 (the same text), 0.8, 0; a nearest second vector is its own for the first and third
    pairs = np.array([[[1, 0], [1, 0]], [[1, 0], [0.8, 0.6]], [[0, 1], [-1, 0]]], np.float32)

    def test_compare_cosines_with_scores_where_there_are_any(self):
        found = make().metrics(self.pairs, np.array([5, 2, 3], np.float32))
        assert found["spearman"] == found["score"] == pytest.approx(0.5)  # ranks 3 2 1 and 3 1 2
        cosines, scores = np.array([1, 0.8, 0]) - 0.6, np.array([5, 2, 3]) - 10 / 3
        assert found["pearson"] == pytest.approx(cosines @ scores / np.sqrt(cosines @ cosines * (scores @ scores)))

    def test_leave_pairs_without_a_score_out_of_that(self):
        found = make().metrics(self.pairs, np.array([5, 2, NAN], np.float32))
        assert found["score"] == pytest.approx(1.0)

    def test_measure_alignment_and_the_finding_of_partners_where_texts_differ(self):
        found = make().metrics(self.pairs, np.array([NAN] * 3, np.float32))
        assert found["alignment"] == pytest.approx((0.4 + 2.0) / 2)
        assert found["accuracy"] == found["score"] == 0.5  # (0, 1) is nearer to (0.8, 0.6) than to its own
        assert "spearman" not in found

    def test_measure_them_on_the_pairs_that_are_learned(self):
        found = make(minimum_score=3).metrics(self.pairs, np.array([5, 3.5, 2], np.float32))
        assert found["alignment"] == pytest.approx(0.4)
        assert found["accuracy"] == 1.0

    def test_single_texts_are_scored_by_uniformity(self):
        singles = np.repeat(np.array([[[1, 0]], [[0, 1]], [[-1, 0]]], np.float32), 2, axis=1)
        found = make().metrics(singles, np.array([NAN] * 3, np.float32))
        expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)  # squared distances 2, 2, 4
        assert found == {"uniformity": pytest.approx(expected), "score": pytest.approx(-expected)}

    def test_vectors_all_the_same_find_and_score_next_to_nothing(self):
        same = np.repeat(np.array([[1.0, 0.0]], np.float32), 10, axis=0)
        assert finds_partner(np.stack([same, same], axis=1)).mean() == 0.1
        assert uniformity(same) == pytest.approx(0)
        assert uniformity(same[:1]) == 0.0


def test_scores_are_finite_numbers_and_optional():
    assert make().encode("4.5", "f:1") == [4.5]
    with pytest.raises(DataError, match="f:1: the label of head pairs must be a finite number; got close."):
        make().encode("close", "f:1")
    assert not make().needs_label
    assert math.isnan(make().label_spec(0).missing)


def test_the_export_says_that_texts_are_read_apart():
    assert make().export() == {"kind": "similarity", "tuned": {}, "separate": True}
