"""Chains of tags against sums over every sequence there is: loss, gradient, expected counts, best sequence."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.kinds.crf import CrfLayer, expectations, gather, negative_log_likelihood
from bert_mtl.kinds.head import LayerContext
from spans.tags import viterbi

RANDOM = np.random.default_rng(7)
TRANSITIONS, START, END = (RANDOM.normal(size=shape).astype(np.float32) for shape in ((3, 3), 3, 3))


def score(emissions, path):
    """The score of one sequence of tags by its definition."""
    steps = sum(TRANSITIONS[a, b] for a, b in itertools.pairwise(path))
    return START[path[0]] + END[path[-1]] + steps + sum(emissions[place, tag] for place, tag in enumerate(path))


def loss_by_enumeration(emissions, path):
    scores = [score(emissions, other) for other in itertools.product(range(3), repeat=len(emissions))]
    return np.log(np.sum(np.exp(scores))) - score(emissions, path)


@pytest.fixture(scope="module")
def packed():
    """Two rows. Chains: (row 0) words at 1, 2, 4, 5 of segment 1 and at 8 of 2; (row 1) at 2, 3 of segment 4. Segment 3
    has no label; other tokens hold labels and outputs that no loss may read."""
    segments = np.array([[1] * 7 + [2] * 3, [3, 4, 4, 4, 4, 0, 0, 0, 0, 0]], np.int32)
    words = np.zeros((2, 10), bool)
    words[0, [1, 2, 4, 5, 8]] = words[1, [2, 3]] = True
    labels = np.where(words, RANDOM.integers(0, 3, words.shape), -1).astype(np.int32)
    emissions = RANDOM.normal(size=(2, 10, 3)).astype(np.float32)
    chains = [(0, [1, 2, 4, 5]), (0, [8]), (1, [2, 3])]
    return emissions, labels, words, segments, chains


def gradients(emissions, labels, words, segments, jit_compile=False):
    variables = [tf.Variable(each) for each in (TRANSITIONS, START, END)]

    @tf.function(jit_compile=jit_compile)
    def both(emissions):
        with tf.GradientTape() as tape:
            tape.watch(emissions)
            value = negative_log_likelihood(emissions, labels, words, segments, *variables)
        return value, tape.gradient(value, [emissions, *variables])

    value, slopes = both(tf.constant(emissions))
    return value.numpy(), [slope.numpy() for slope in slopes]


def test_the_loss_is_that_of_all_sequences_enumerated_also_when_chains_share_a_row(packed):
    emissions, labels, words, segments, chains = packed
    expected = sum(loss_by_enumeration(emissions[row, at], labels[row, at]) for row, at in chains)
    value, _ = gradients(emissions, labels, words, segments)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradients_are_those_of_the_enumerated_loss(packed, jit_compile):
    emissions, labels, words, segments, chains = packed
    _, slopes = gradients(emissions, labels, words, segments, jit_compile)
    expected = [np.zeros_like(emissions), *map(np.zeros_like, (TRANSITIONS, START, END))]
    for row, at in chains:
        paths = list(itertools.product(range(3), repeat=len(at)))
        chances = np.exp([score(emissions[row, at], path) for path in paths])
        weighted = [*zip(chances / chances.sum(), paths, strict=True), (-1.0, labels[row, at])]
        for chance, path in weighted:
            expected[0][row, at, path] += chance
            expected[2][path[0]] += chance
            expected[3][path[-1]] += chance
            for step in itertools.pairwise(path):
                expected[1][step] += chance
    for slope, by_hand in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(slope, by_hand, atol=1e-5)


def test_a_packed_row_and_rows_of_their_own_give_the_same_loss(packed):
    emissions, labels, words, segments, chains = packed
    alone = 0.0
    for row, at in chains:
        here = slice(at[0], at[-1] + 2)
        arrays = emissions[row : row + 1, here], labels[row : row + 1, here], words[row : row + 1, here]
        alone += float(negative_log_likelihood(*arrays, segments[row : row + 1, here], TRANSITIONS, START, END))
    together = negative_log_likelihood(emissions, labels, words, segments, TRANSITIONS, START, END)
    assert float(together) == pytest.approx(alone, rel=1e-5)


def test_what_stands_at_unlabelled_tokens_changes_neither_loss_nor_gradient(packed):
    emissions, labels, words, segments, _ = packed
    value, slopes = gradients(emissions, labels, words, segments)
    wild = np.where(words[:, :, None], emissions, np.where(RANDOM.random((2, 10, 1)) < 0.5, np.inf, np.nan))
    value_too, slopes_too = gradients(wild.astype(np.float32), np.where(words, labels, 77), words, segments)
    assert value_too == value
    for slope, slope_too in zip(slopes, slopes_too, strict=True):
        np.testing.assert_array_equal(slope, slope_too)


def test_a_batch_without_words_costs_nothing(packed):
    emissions, labels, words, segments, _ = packed
    value, slopes = gradients(emissions, labels, np.zeros_like(words), segments)
    assert value == 0.0
    assert not any(slope.any() for slope in slopes)


def test_long_chains_of_great_scores_stay_finite():
    emissions = RANDOM.normal(size=(1, 400, 3)).astype(np.float32) * 60
    labels = RANDOM.integers(0, 3, (1, 400)).astype(np.int32)
    segments = np.repeat([[1, 2]], [300, 100], axis=1).astype(np.int32)
    value, slopes = gradients(emissions, labels, np.ones((1, 400), bool), segments)
    best = sum(
        score(emissions[0, part], viterbi(emissions[0, part], TRANSITIONS, START, END))
        - score(emissions[0, part], labels[0, part])
        for part in (slice(0, 300), slice(300, 400))
    )
    assert value == pytest.approx(best, rel=1e-3)  # one sequence outweighs all others
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_a_words_probabilities_add_up_to_one_and_transitions_to_the_number_of_steps(packed):
    emissions, labels, words, segments, _ = packed
    chosen, pairs, _ = expectations(gather(emissions, labels, words, segments), TRANSITIONS, START, END)
    totals = np.sum(chosen, axis=2)
    np.testing.assert_allclose(totals, [[1] * 5 + [0] * 5, [1, 1] + [0] * 8], atol=1e-5)
    assert np.sum(pairs) == pytest.approx(3 + 0 + 1, abs=1e-5)


@pytest.mark.parametrize("words", [1, 2, 5])
def test_viterbi_finds_the_best_of_all_sequences(words):
    for _ in range(20):
        emissions = RANDOM.normal(size=(words, 3))
        best = max(itertools.product(range(3), repeat=words), key=lambda path: score(emissions, path))
        assert viterbi(emissions, TRANSITIONS, START, END).tolist() == list(best)


def test_viterbi_never_takes_what_is_forbidden_and_gives_no_tags_to_no_words():
    transitions = np.array([[0.0, -np.inf], [0.0, 0.0]])
    scores = np.array([[0.0, 5.0], [4.0, 0.0], [0.0, 3.0]])
    assert viterbi(scores, transitions, np.array([0.0, -np.inf]), np.zeros(2)).tolist() == [0, 0, 0]
    assert viterbi(scores[:0], transitions, np.zeros(2), np.zeros(2)).tolist() == []


def test_the_layer_owns_what_scores_a_chain():
    layer = CrfLayer(LayerContext(hidden_dim=4, dropout=0.1, seed=0, name="slots", word_embeddings=None), 3)
    assert layer(np.ones((2, 5, 4), np.float16)).dtype == "float32"
    shapes = {each.name: tuple(each.shape) for each in layer.trainable_variables}
    assert shapes == {"kernel": (4, 3), "bias": (3,), "transitions": (3, 3), "start": (3,), "end": (3,)}
