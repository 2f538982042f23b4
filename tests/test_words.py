"""Words and their places; and that splitting a text into them leaves BERT's tokens as they were."""

import gzip
import json
import os
import random
from pathlib import Path

import pytest

import bert_mtl
from bert_mtl.tokenization import WordPieceTokenizer, rust_splitting
from spans.words import words

SHARED = Path(os.environ.get("BERT_MTL_SHARED", Path(__file__).parents[2] / "shared" / "data"))
VOCAB = Path(bert_mtl.__file__).parent / "vocab.txt"

# Letters, marks, symbols, white space and deleted characters of many kinds, also those that Unicode's versions sort
# differently, to be thrown together.
PIECES = (
    list("abcXYZ019 .,'-@#_:/!?$^`~\t\n€😀❤‼’‐‑—…、。中文字ｱＡ한글가عسة؟।नमस्ते§¶éßΣİ")
    + list("\0\x0b\x85\xa0\xad\u0301\u037e\u180e\u1fef\u200b\u200d\u2028\u20e3\u2260\u3000\ue000\ufe0f\ufeff\ufffd")
    + list("\u061d\u166d\u2e43\u8863\U0002b830\U0001f469\U0001d54f")
    + ["http://", "www.", "https://t.co/x?y=1#z", "U.S.", "#tag", "@me_2", "don't", "well-known"]
)


def only_words(text):
    return [word for word, _, _ in words(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't live in the U.S., do I?", ["I", "don't", "live", "in", "the", "U.S.", ",", "do", "I", "?"]),
        ("a well-known, e.g. 3.5 at 10:30", ["a", "well-known", ",", "e.g.", "3.5", "at", "10:30"]),
        ("it’s rock'n'roll—'ok'...so", ["it’s", "rock'n'roll", "—", "'", "ok", "'", ".", ".", ".", "so"]),
        ("@ann_b #nlp2 me@x.org AT&T #", ["@ann_b", "#nlp2", "me@x.org", "AT", "&", "T", "#"]),
        ("(see http://a.b/c?d=1.)", ["(", "see", "http://a.b/c?d=1", ".", ")"]),
        ("www.a.org/x/, https://", ["www.a.org/x/", ",", "https", ":", "/", "/"]),
        ("今天,http://a.b/看2年", ["今", "天", ",", "http://a.b/", "看", "2", "年"]),
        ("مرحبا، كيف؟ می\u200cخواهم", ["مرحبا", "،", "كيف", "؟", "می\u200cخواهم"]),
        ("cafe\u0301 ❤\ufe0f 😀ok wow‼\ufe0f", ["cafe\u0301", "❤\ufe0f", "😀ok", "wow", "‼\ufe0f"]),
        ("\ufeffHi \u200b a\u200bb\u200b.", ["Hi", "a\u200bb", "."]),
        (" \t\n\u3000", []),
        ("", []),
    ],
)
def test_words_of_texts(text, expected):
    assert only_words(text) == expected


def test_places_count_characters_whatever_their_number_of_bytes():
    assert words("😀 cafe\u0301, Zürich") == [("😀", 0, 1), ("cafe\u0301", 2, 7), (",", 7, 8), ("Zürich", 9, 15)]


def thrown_together(number):
    dice = random.Random(3)
    return ["".join(dice.choices(PIECES, k=dice.randint(1, 15))) for _ in range(number)]


def test_words_are_slices_of_the_text_in_its_order_and_never_empty_or_with_white_space():
    for text in thrown_together(3000):
        found, end = words(text), 0
        for word, first, after in found:
            assert word and word == text[first:after] and first >= end
            assert not set(word) & set(" \t\n\r\xa0\u2028\u3000")
            end = after


def assert_same_pieces(texts, lowercase):
    """BERT splits the joined words of texts as it does the texts."""
    normalizer, splitter = rust_splitting(lowercase)

    def pieces(text):
        return [piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]

    for text in texts:
        assert pieces(" ".join(only_words(text))) == pieces(text), repr(text)


@pytest.mark.parametrize("lowercase", [True, False])
def test_bert_splits_joined_words_as_it_does_the_text(lowercase):
    assert_same_pieces(thrown_together(4000), lowercase)


def test_every_character_at_which_words_end_is_one_at_which_bert_splits():
    points = [*range(0x3401), *range(0x9FFF, 0xD800), *range(0xE000, 0x20001), 0x2A6DF, 0x2A700, 0x2B81F, 0x2B920]
    texts = [f"a{chr(point)}b" for point in points]
    split = [text for text in texts if only_words(text) != [text]]
    assert len(split) > 500
    assert_same_pieces(split, lowercase=True)


def test_token_ids_of_joined_words_are_those_of_the_text():
    tokenizer = WordPieceTokenizer(VOCAB)
    assert_same_ids(tokenizer, thrown_together(600))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is absent")
@pytest.mark.parametrize("name", ["sst2.dev", "wnut17.test", "chnsenticorp.dev"])
def test_token_ids_of_real_texts_stay_as_they_are(name):
    with gzip.open(SHARED / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(800), strict=False)]
    assert_same_ids(WordPieceTokenizer(VOCAB), [row.get("text") or " ".join(row["tokens"]) for row in rows])


def assert_same_ids(tokenizer, texts):
    joined = [" ".join(only_words(text)) for text in texts]
    assert joined != texts
    assert tokenizer.tokenize(joined).to_list() == tokenizer.tokenize(texts).to_list()
