"""Whole words are masked at random, in BERT's proportions, within the places there are."""

import numpy as np
import pytest

from bert_mtl.masking import LONGEST_WORD, mask
from bert_mtl.tokenization import SentencePieceTokenizer, WordPieceTokenizer
from data_prep.vocab import train_sentencepiece

PAD, UNK, CLS, SEP, MASK = SPECIAL = range(5)
VOCAB_SIZE = 1000
CONTINUES = np.arange(VOCAB_SIZE) >= 500  # ids from 500 continue a word


def masked(token_ids, eligible=None, seed=0, **options):
    token_ids = np.atleast_2d(np.array(token_ids, np.int32))
    eligible = np.ones(token_ids.shape, bool) if eligible is None else np.array(eligible)
    options = {"capacity": token_ids.size, **options}
    return mask(
        token_ids,
        eligible,
        continues=CONTINUES,
        special_ids=SPECIAL,
        mask_id=MASK,
        random=np.random.default_rng(seed),
        **options,
    )


def places_of(result):
    return result.places[result.weights > 0].tolist()


@pytest.fixture(scope="module")
def batch():
    """64 rows of 512 with [CLS] in front and [SEP] behind, a third of the tokens continuing a word."""
    random = np.random.default_rng(7)
    token_ids = np.where(random.random((64, 512)) < 1 / 3, random.integers(500, 1000, (64, 512)), 7).astype(np.int32)
    token_ids[:, 0], token_ids[:, -1] = CLS, SEP
    return token_ids


def test_a_share_of_the_eligible_tokens_is_to_be_guessed(batch):
    result = masked(batch)
    goal = round(0.15 * 64 * 510)  # 4,896
    assert goal - LONGEST_WORD < result.weights.sum() <= goal
    assert round(0.5 * 1000) == masked(np.full((2, 500), 9), rate=0.5).weights.sum()


def test_places_are_ascending_and_labels_what_stood_there(batch):
    result = masked(batch)
    count = int(result.weights.sum())
    assert (np.diff(result.places[:count]) > 0).all()
    assert (result.labels[:count] == batch.flat[result.places[:count]]).all()
    assert not result.places[count:].any() and not result.labels[count:].any() and not result.weights[count:].any()
    assert [array.dtype for array in result] == [np.int32, np.int32, np.int32, np.float32]


def test_unmasked_tokens_and_the_given_batch_stay_as_they_are(batch):
    before = batch.copy()
    result = masked(batch)
    elsewhere = np.ones(batch.size, bool)
    elsewhere[places_of(result)] = False
    assert (result.token_ids.ravel()[elsewhere] == before.ravel()[elsewhere]).all()
    assert (batch == before).all()


def test_words_are_masked_as_a_whole():
    words = [[10, 500, 600], [11], [12, 700]]
    outcomes = {tuple(places_of(masked([CLS, *sum(words, []), SEP], seed=seed, rate=0.5))) for seed in range(100)}
    # Of 6 tokens at most 3: a word that no longer fits ends the draw.
    assert outcomes == {(1, 2, 3), (4, 5, 6), (4,), (5, 6)}


def test_a_word_is_as_likely_as_any_other():
    counts = np.zeros(12)
    for seed in range(2000):
        counts[places_of(masked([CLS, *range(10, 20), SEP], seed=seed, rate=0.2))] += 1
    assert counts.sum() == 2 * 2000
    assert np.abs(counts[1:11] / 2000 - 0.2).max() < 0.04


def test_no_word_reaches_into_the_next_segment():
    row = [CLS, 10, 500, SEP, CLS, 501, 502, SEP]  # 501 begins its segment although it looks like a continuation
    outcomes = {tuple(places_of(masked([row, row], seed=seed, rate=0.25))) for seed in range(100)}
    assert outcomes == {(1, 2), (5, 6), (9, 10), (13, 14)}


def test_no_word_reaches_over_tokens_that_are_not_eligible():
    eligible = [[False, True, False, True, False]]
    outcomes = {tuple(places_of(masked([CLS, 10, 500, 501, SEP], eligible, seed, rate=0.5))) for seed in range(20)}
    assert outcomes == {(1,), (3,)}


def test_special_and_foreign_tokens_are_never_masked(batch):
    eligible = np.zeros(batch.shape, bool)
    eligible[::2] = True
    token_ids = np.where(np.arange(512) % 5 == 0, UNK, batch)
    result = masked(token_ids, eligible, rate=1.0)
    expected = eligible & (token_ids > MASK)
    assert places_of(result) == np.flatnonzero(expected).tolist()
    assert (result.token_ids[~expected] == token_ids[~expected]).all()


def test_no_special_token_takes_a_tokens_place():
    result = masked(np.full((100, 100), 9), rate=1.0)
    assert set(result.token_ids.ravel().tolist()) & set(SPECIAL) == {MASK}


def test_no_more_tokens_are_masked_than_there_are_places(batch):
    result = masked(batch, capacity=100)
    assert [len(array) for array in result[1:]] == [100, 100, 100]
    assert 100 - LONGEST_WORD < result.weights.sum() <= 100
    assert masked(batch, capacity=1, rate=0.9).weights.tolist() in ([0.0], [1.0])


def test_80_10_10():
    result = masked(np.full((400, 100), 9), rate=1.0)
    tokens = result.token_ids.ravel()
    assert (tokens == MASK).mean() == pytest.approx(0.8, abs=0.01)
    assert (tokens == 9).mean() == pytest.approx(0.1, abs=0.01)
    random_ones = tokens[(tokens != MASK) & (tokens != 9)]
    assert len(random_ones) / len(tokens) == pytest.approx(0.1, abs=0.01)
    assert random_ones.mean() == pytest.approx((5 + 999) / 2, rel=0.03)


def test_tokens_of_one_word_fare_on_their_own():
    result = masked(np.tile([CLS, 9, 500, SEP], (2000, 1)), rate=1.0)
    hidden = result.token_ids[:, 1:3] == MASK
    assert hidden.all(axis=1).mean() == pytest.approx(0.8**2, abs=0.04)


def test_the_same_generator_masks_the_same(batch):
    first, same, other = masked(batch, seed=1), masked(batch, seed=1), masked(batch, seed=2)
    assert all((a == b).all() for a, b in zip(first, same, strict=True))
    assert (first.token_ids != other.token_ids).mean() > 0.1


def test_text_without_spaces_is_masked_token_by_token():
    """SentencePiece writes a sentence of Chinese as one word of many pieces."""
    pieces = [10, *[500] * LONGEST_WORD]
    counts = {int(masked([CLS, *pieces, SEP], seed=seed, rate=0.2).weights.sum()) for seed in range(10)}
    assert counts == {round(0.2 * len(pieces))}
    assert not masked([CLS, *pieces[:-1], SEP], rate=0.2).weights.any()  # one token shorter, it is a word: too long


@pytest.mark.parametrize("eligible", [True, False])
def test_a_batch_with_nothing_to_mask_stays(eligible):
    result = masked([CLS, SEP, PAD, PAD], [[eligible] * 4], capacity=3)
    assert result.token_ids.tolist() == [[CLS, SEP, PAD, PAD]]
    assert result.weights.tolist() == [0, 0, 0]


class TestContinuations:
    def test_of_wordpiece_begin_with_two_hashes(self, tmp_path):
        file = tmp_path / "vocab.txt"
        file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfilm\n##s\n#\n##ing\n")
        tokenizer = WordPieceTokenizer(file)
        assert np.flatnonzero(tokenizer.continuations).tolist() == [6, 8]
        ids = tokenizer.tokenize(["films filming #"]).to_list()[0]
        assert tokenizer.continuations[ids].tolist() == [False, True, False, True, False]

    def test_of_sentencepiece_do_not_begin_with_its_space(self, tmp_path):
        file = tmp_path / "spm.model"
        train_sentencepiece(["the film was bad the film was great"] * 20, file, 20)
        tokenizer = SentencePieceTokenizer(file)
        ids = tokenizer.tokenize(["great great was"]).to_list()[0]
        words = np.cumsum(~tokenizer.continuations[ids])
        assert len(tokenizer.continuations) == tokenizer.vocab_size
        assert words[0] == 1 and words[-1] == 3
        assert (np.bincount(words)[1] == np.bincount(words)[2]) and (np.diff(words) >= 0).all()
