"""Trained vocabularies begin with the special tokens, are the same every time, and say which size fits."""

import pytest
import sentencepiece
import tensorflow as tf

from bert_mtl.tokenization import SPECIAL_TOKENS, SentencePieceTokenizer, WordPieceTokenizer
from conf.errors import ConfigError
from data_prep.vocab import train_sentencepiece, train_wordpiece

TEXTS = [
    f"The film number {n} was {word}ly made, très {word}.\nSee it!" for n in range(40) for word in ("great", "bad")
]


def test_wordpiece_holds_special_tokens_then_characters_then_pieces(tmp_path):
    train_wordpiece(TEXTS, tmp_path / "vocab.txt", 95)
    tokens = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tuple(tokens[:5]) == SPECIAL_TOKENS
    assert len(tokens) == len(set(tokens)) <= 95
    alphabet = [token for token in tokens[5:] if len(token.removeprefix("##")) == 1]
    assert tokens[5 : 5 + len(alphabet)] == alphabet
    ids = WordPieceTokenizer(tmp_path / "vocab.txt").tokenize(tf.constant(["The FILM was tres"])).to_list()[0]
    assert 1 not in ids and tokens[ids[0]] == "the"


def test_cased_wordpiece_keeps_capitals_and_accents(tmp_path):
    train_wordpiece(TEXTS, tmp_path / "vocab.txt", 100, lowercase=False)
    tokens = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert "T" in tokens and "##è" in tokens


def test_sentencepiece_has_control_symbols_0_to_4(tmp_path):
    train_sentencepiece(TEXTS, tmp_path / "spm.model", 40)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    assert tuple(model.id_to_piece(list(range(5)))) == SPECIAL_TOKENS
    assert [model.is_control(index) for index in range(5)] == [True, False, True, True, True]
    assert SentencePieceTokenizer(tmp_path / "spm.model").vocab_size == 40


def test_lowercase_sentencepiece_folds_case(tmp_path):
    train_sentencepiece(TEXTS, tmp_path / "spm.model", 40, lowercase=True)
    upper, lower = (
        SentencePieceTokenizer(tmp_path / "spm.model").tokenize(tf.constant(["THE FILM", "the film"])).to_list()
    )
    assert upper == lower


def test_sentencepiece_reads_texts_of_any_length(tmp_path):
    train_sentencepiece(["a b " * 5_000 + "ж " * 500, *TEXTS], tmp_path / "spm.model", 40)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    assert model.piece_to_id("ж") != model.unk_id()


@pytest.mark.parametrize(("train", "size"), [(train_wordpiece, 70), (train_sentencepiece, 40)])
def test_training_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path, train, size):
    for name in ("first", "second"):
        train(iter(TEXTS), tmp_path / "new" / name, size)
    first, second = sorted((tmp_path / "new").iterdir())
    assert first.read_bytes() == second.read_bytes()


def test_impossible_sizes_are_told_with_the_possible_one(tmp_path):
    with pytest.raises(ConfigError, match=r"size must be at least 12, one for every character; got 8"):
        train_wordpiece(["hello"], tmp_path / "vocab.txt", 8)
    with pytest.raises(ConfigError, match=r"Please set it to a value <= 13"):
        train_sentencepiece(["hello world"], tmp_path / "spm.model", 1_000)
    assert list(tmp_path.iterdir()) == []
