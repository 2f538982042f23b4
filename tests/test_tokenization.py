"""The ids in the graph are the Rust library's ids; rows are cut, paired, saved and exported as promised."""

import functools
import gzip
import json
import os
import pickle
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import sentencepiece
import tensorflow as tf
import tokenizers

from bert_mtl import tokenization
from bert_mtl.tokenization import SentencePieceTokenizer, WordPieceTokenizer, load_tokenizer, rust_tokenizer
from conf.errors import ConfigError
from data_prep.vocab import train_sentencepiece

SHARED = Path(os.environ.get("BERT_MTL_SHARED", Path(__file__).parents[2] / "shared" / "data"))
PRETRAINED_VOCAB = next(Path(__file__).parents[1].glob(".cache/**/vocab.txt"), None)
WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] [unused1] a ##a b ##b ab c d e ##e f g the film was great ##ly bad . , ! ' # ## "
    "##s [ ] sep mask cls i ß σ ##σ ς й ##й 中 文 ， … é ##é İ Σ A B Film 😀 ##😀 a.b a中 中文 กข ##ก \u1100 ##\u1161"
).split()
ASCII_TEXT = "The film was greatly BAD, wasn't it?\tA b\r\nab!"
TRICKY_TEXTS = (
    ASCII_TEXT,
    "",
    "  \t\n ",
    "[CLS] [SEP] the [MASK] [PAD] [UNK] [unused1] ## ##a a.b",
    "a\x00b a\ufffdb a\u0085b a\u200bb a\u00adb a\ufeffb a\x7fb a\ue000b",
    "a\u00a0b a\u3000b a\u2003b a\u2028b a\x0bb",
    "中文a中a，中…文「中」𠀀𫠠\U0002b820",
    "é É e\u0301 E\u0323\u0301 a\u0345\u0316b ΑΣ ΑΣΑ Σ. σς ß ẞ İ I\u0307 ǅ Ω ﬁ １２ ㎏",
    "각 \u1100\u1161 กขก й И\u0306 😀 a😀 \U0001f1e9\U0001f1ea",
    "\u166d \U000111c9 \u1734 \u0891 \ua7c0 \U00010570 \u061d \u1ac0\u0301 \u08d4\u08e3\u302e \U000f061d",
)
INVALID_UTF8 = (
    b"a\xffb",
    b"\x80",
    b"a\xe4\xb8",
    b"\xe4\xb8a",
    b"\xed\xa0\x80a",
    b"\xc0\xafa",
    b"\xf4\x90\x80\x80 a",
    b"\xe2\x82A",
)


@pytest.fixture(scope="module")
def vocab_file(tmp_path_factory) -> Path:
    """A small vocabulary that can spell every code point the two Unicode versions treat differently."""
    unlike = [*tokenization.PRIVATE_NAMES, *tokenization.LATER_CAPITALS, *tokenization.LATER_CAPITALS.values()]
    unlike += [0x166D, 0x1734, 0x891, 0x13430, 0x302E, 0x1D16D, 0xFFFD, 0xF061D, 0x10FFFF]
    tokens = [*WORDS, "a b", "##\u2028", *map(chr, unlike), *(f"##{chr(point)}" for point in unlike)]
    file = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    file.write_text("".join(f"{token}\n" for token in dict.fromkeys(tokens)), encoding="utf-8", newline="")
    return file


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("model") / "spm.model"
    train_sentencepiece([ASCII_TEXT, *TRICKY_TEXTS[7:9], "the film was bad the film was great"] * 20, file, 60)
    return file


@functools.cache
def graph_and_reference(vocab_file: Path, lowercase: bool) -> tuple[Callable, tokenizers.Tokenizer]:
    graph = tf.function(
        WordPieceTokenizer(vocab_file, lowercase=lowercase).tokenize,
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    return graph, rust_tokenizer(vocab_file, lowercase)


def assert_reference_ids(vocab_file: Path, lowercase: bool, texts: Sequence[str | bytes]) -> None:
    graph, reference = graph_and_reference(vocab_file, lowercase)
    decoded = [text.decode("utf-8", "ignore") if isinstance(text, bytes) else text for text in texts]
    expected = reference.encode_batch_fast(decoded, add_special_tokens=False)
    actual = graph(tf.constant(texts)).to_list()
    unlike = [ascii(text) for text, ids, encoding in zip(texts, actual, expected, strict=True) if ids != encoding.ids]
    assert unlike == []


@pytest.fixture(params=[True, False], ids=["uncased", "cased"])
def lowercase(request) -> bool:
    return request.param


class TestWordPieceIds:
    def test_equal_the_reference_on_tricky_texts(self, vocab_file, lowercase):
        assert_reference_ids(vocab_file, lowercase, TRICKY_TEXTS)

    def test_drop_invalid_utf8_as_google_does(self, vocab_file, lowercase):
        assert_reference_ids(vocab_file, lowercase, INVALID_UTF8)

    @pytest.mark.parametrize("planes", [[0, 1, 2, 3], pytest.param(range(17), marks=pytest.mark.slow)])
    def test_equal_the_reference_for_every_code_point(self, vocab_file, lowercase, planes):
        points = [chr(plane << 16 | low) for plane in planes for low in range(0x10000)]
        del points[0xD800:0xE000]  # surrogates
        texts = [
            "".join(map("a{0}b {0}\u0316{0}\u0301中{0} ".format, points[i : i + 64])) for i in range(0, len(points), 64)
        ]
        assert_reference_ids(vocab_file, lowercase, texts)

    def test_equal_the_reference_for_random_mixtures(self, vocab_file, lowercase):
        random_ = random.Random(0)
        pieces = [line for line in vocab_file.read_text(encoding="utf-8").split("\n") if line]
        pieces += [*"  .\u0301\u0316\u302eΣÉ中", "\u0085", "\u200b", *(chr(point) for point in range(0x20, 0x3000, 7))]
        texts = ["".join(random_.choices(pieces, k=random_.randint(0, 20))) for _ in range(5_000)]
        assert_reference_ids(vocab_file, lowercase, texts)

    def test_equal_the_reference_for_random_bytes(self, vocab_file, lowercase):
        random_ = random.Random(0)
        starts = [b"\xe4\xb8", b"\xf0\x9f\x98", b"\xed\xa0", "中é".encode(), b"a", b" ", b"\xef\xbf\xbd"]
        texts = [b"".join(random_.choices([*starts, random_.randbytes(1)], k=8)) for _ in range(5_000)]
        assert_reference_ids(vocab_file, lowercase, texts)

    def test_count_the_characters_of_long_words(self, vocab_file, lowercase):
        letters = ("a", "é", "e\u0301", "й", "ก", "😀", "\u1885", "\U00010570")
        words = [letter * count for letter in letters for count in (25, 33, 50, 51, 99, 100, 101, 202, 401)]
        texts = [
            template.format(word) for word in words for template in ("{0}", "a {0}.", "中{0}，{0} b", "{0}\u2028{0}")
        ]
        assert_reference_ids(vocab_file, lowercase, texts)

    def test_of_a_word_of_101_characters_are_unknown(self, vocab_file):
        tokenizer = WordPieceTokenizer(vocab_file)
        ids = tokenizer.tokenize(tf.constant(["a" * 100, "a" * 101])).to_list()
        assert ids == [[6] + [7] * 99, [tokenizer.unk_id]]

    @pytest.mark.skipif(PRETRAINED_VOCAB is None, reason="no pretrained vocabulary in .cache")
    def test_equal_the_reference_with_a_full_vocabulary(self, lowercase):
        points = [chr(point) for point in range(0x30000) if not 0xD800 <= point <= 0xDFFF]
        random_ = random.Random(0)
        points += [*points[:0x600], *" eai.,"] * 50
        texts = ["".join(random_.choices(points, k=40)) for _ in range(3_000)]
        assert_reference_ids(PRETRAINED_VOCAB, lowercase, [*TRICKY_TEXTS, *texts])

    @pytest.mark.slow
    @pytest.mark.skipif(PRETRAINED_VOCAB is None or not SHARED.is_dir(), reason="no pretrained vocabulary or no data")
    def test_equal_the_reference_on_imdb_and_chnsenticorp(self, lowercase):
        texts = [*imdb_reviews(), *chinese_reviews()]
        assert len(texts) == 112_000
        for start in range(0, len(texts), 2_000):
            assert_reference_ids(PRETRAINED_VOCAB, lowercase, texts[start : start + 2_000])


def imdb_reviews() -> list[bytes]:
    with tarfile.open(SHARED / "aclImdb.tar.gz") as archive:
        members = (member for member in archive if Path(member.name).parent.name in ("pos", "neg", "unsup"))
        return [archive.extractfile(member).read() for member in members if member.name.endswith(".txt")]


def chinese_reviews() -> list[str]:
    texts = []
    for file in sorted(SHARED.glob("chnsenticorp.*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines]
    return texts


class TestEncode:
    def test_marks_singles_and_pairs(self, vocab_file):
        tokenizer = WordPieceTokenizer(vocab_file, max_length=8)
        a, b, c = (WORDS.index(word) for word in "abc")
        single = tokenizer.encode(tf.constant(["a b", ""]))
        assert single.token_ids.to_list() == [[2, a, b, 3], [2, 3]]
        assert single.second_start.numpy().tolist() == [4, 2]
        pair = tokenizer.encode(tf.constant(["a b", ""]), tf.constant(["c", "c c"]))
        assert pair.token_ids.to_list() == [[2, a, b, 3, c, 3], [2, 3, c, c, 3]]
        assert pair.second_start.numpy().tolist() == [4, 2]
        assert single.token_ids.dtype == pair.second_start.dtype == tf.int32
        assert not any(single.truncated.numpy()) and not any(pair.truncated.numpy())

    def test_takes_a_batch_of_none(self, vocab_file):
        none = tf.constant([], tf.string)
        assert WordPieceTokenizer(vocab_file).encode(none, none).token_ids.shape == (0, None)

    @pytest.mark.parametrize(
        ("truncation", "kept"),
        [("head", "a b c d e f g ."), ("tail", "d e f g . , ! '"), ("head_tail", "a b f g . , ! '")],
    )
    def test_keeps_what_the_mode_prefers(self, vocab_file, truncation, kept):
        tokenizer = WordPieceTokenizer(vocab_file, max_length=10, truncation=truncation)
        encoded = tokenizer.encode(tf.constant(["a b c d e f g . , ! '", "a b c d e f g .", ""]))
        assert encoded.token_ids[0].numpy().tolist() == [2, *map(WORDS.index, kept.split()), 3]
        assert encoded.token_ids[1:].to_list() == [[2, *map(WORDS.index, "a b c d e f g .".split()), 3], [2, 3]]
        assert encoded.truncated.numpy().tolist() == [True, False, False]

    def test_head_tail_keeps_128_and_382_of_510(self, vocab_file):
        tokenizer = WordPieceTokenizer(vocab_file, max_length=512, truncation="head_tail")
        row = tokenizer.encode(tf.constant(["a " * 300 + "b " * 300])).token_ids[0].numpy().tolist()
        assert row == [2] + [6] * 210 + [8] * 300 + [3]
        row = tokenizer.encode(tf.constant(["a " * 128 + "b " * 400 + "c " * 382])).token_ids[0].numpy().tolist()
        assert row == [2] + [6] * 128 + [WORDS.index("c")] * 382 + [3]

    @pytest.mark.parametrize("max_length", [3, 4, 9, 12])
    @pytest.mark.parametrize(("truncation", "direction"), [("head", "right"), ("tail", "left")])
    def test_cuts_pairs_as_the_reference_does(self, vocab_file, max_length, truncation, direction):
        lengths = [(i, j) for i in range(12) for j in range(12)]
        first, second = (["".join(f"{w} " for w in "abcdefg.,!'#"[: pair[k]]) for pair in lengths] for k in (0, 1))
        reference = rust_tokenizer(vocab_file)
        reference.enable_truncation(max_length, strategy="longest_first", direction=direction)
        expected = reference.encode_batch(list(zip(first, second, strict=True)))
        tokenizer = WordPieceTokenizer(vocab_file, max_length=max_length, truncation=truncation)
        encoded = tokenizer.encode(tf.constant(first), tf.constant(second))
        assert encoded.token_ids.to_list() == [row.ids for row in expected]
        assert encoded.second_start.numpy().tolist() == [(row.type_ids + [1]).index(1) for row in expected]
        assert encoded.truncated.numpy().tolist() == [i + j > max_length - 3 for i, j in lengths]

    def test_runs_in_tf_data(self, vocab_file):
        tokenizer = WordPieceTokenizer(vocab_file)
        texts = tf.constant(TRICKY_TEXTS)
        batches = tf.data.Dataset.from_tensor_slices(texts).batch(4).map(tokenizer.encode, num_parallel_calls=2)
        rows = [row for batch in batches for row in batch.token_ids.to_list()]
        assert rows == tokenizer.encode(texts).token_ids.to_list()


class TestStoredTokenizer:
    @pytest.fixture(params=["wordpiece", "sentencepiece"])
    def tokenizer(self, request, vocab_file, model_file):
        if request.param == "wordpiece":
            return WordPieceTokenizer(vocab_file, lowercase=False, max_length=20, truncation="tail")
        return SentencePieceTokenizer(model_file, max_length=20, truncation="tail")

    def test_comes_back_equal_from_a_folder_and_from_a_pickle(self, tokenizer, tmp_path):
        tokenizer.save(tmp_path / "bundle")
        texts = tf.constant(TRICKY_TEXTS)
        for copy in (load_tokenizer(tmp_path / "bundle"), pickle.loads(pickle.dumps(tokenizer))):
            assert type(copy) is type(tokenizer)
            assert copy.encode(texts).token_ids.to_list() == tokenizer.encode(texts).token_ids.to_list()
            assert copy.fingerprint == tokenizer.fingerprint

    def test_answers_from_a_saved_model(self, tokenizer, tmp_path):
        module = tf.Module()
        module.tokenizer = tokenizer
        module.rows = tf.function(
            lambda texts: tokenizer.encode(texts).token_ids.to_tensor(tokenizer.pad_id),
            input_signature=[tf.TensorSpec([None], tf.string)],
        )
        tf.saved_model.save(module, tmp_path / "model")
        texts = tf.constant(TRICKY_TEXTS)
        expected = tokenizer.encode(texts).token_ids.to_tensor(tokenizer.pad_id)
        assert tf.saved_model.load(tmp_path / "model").rows(texts).numpy().tolist() == expected.numpy().tolist()

    def test_fingerprint_changes_with_settings_and_vocabulary(self, vocab_file, tmp_path):
        longer = tmp_path / "vocab.txt"
        longer.write_bytes(vocab_file.read_bytes() + b"new\n")
        tokenizers = [
            WordPieceTokenizer(vocab_file),
            WordPieceTokenizer(vocab_file, max_length=128),
            WordPieceTokenizer(vocab_file, truncation="tail"),
            WordPieceTokenizer(vocab_file, lowercase=False),
            WordPieceTokenizer(longer),
        ]
        assert len({tokenizer.fingerprint for tokenizer in tokenizers}) == 5
        assert tokenizers[0].fingerprint == WordPieceTokenizer(vocab_file).fingerprint


class TestSentencePiece:
    def test_ids_equal_the_package(self, model_file):
        texts = [*TRICKY_TEXTS, "[CLS] [SEP] [MASK] [PAD]", "<s> </s> <unk>"]
        expected = sentencepiece.SentencePieceProcessor(model_file=str(model_file)).encode(texts)
        assert SentencePieceTokenizer(model_file).tokenize(tf.constant(texts)).to_list() == expected

    def test_texts_cannot_spell_special_tokens(self, model_file):
        tokenizer = SentencePieceTokenizer(model_file)
        assert [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id] == [
            0,
            1,
            2,
            3,
            4,
        ]
        ids = tokenizer.tokenize(tf.constant(["[PAD] [CLS] [SEP] [MASK]"])).to_list()[0]
        assert not {0, 2, 3, 4} & set(ids)

    def test_must_hold_the_special_tokens(self, tmp_path):
        prefix = tmp_path / "plain"
        sentences = iter(TRICKY_TEXTS * 5)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences, model_prefix=str(prefix), vocab_size=100, hard_vocab_limit=False, minloglevel=2
        )
        with pytest.raises(
            ConfigError, match=r"tokenizer.vocab must hold the tokens .* got plain.model without \[PAD\]"
        ):
            SentencePieceTokenizer(f"{prefix}.model")


class TestMistakes:
    def test_are_told_together(self, vocab_file):
        with pytest.raises(ConfigError) as error:
            WordPieceTokenizer(vocab_file, max_length=2, truncation="heads")
        assert "tokenizer.max_length must be at least 3 ([CLS], a token, [SEP]); got 2." in str(error.value)
        assert (
            "tokenizer.truncation must be one of the options; got heads. "
            "Options: head, tail, head_tail. Did you mean head?" in str(error.value)
        )

    def test_in_a_vocabulary_name_the_token(self, tmp_path):
        file = tmp_path / "vocab.txt"
        file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
        with pytest.raises(ConfigError, match=r"got vocab.txt without \[MASK\]"):
            WordPieceTokenizer(file)
        file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n")
        with pytest.raises(ConfigError, match=r"tokenizer.vocab must hold every token once; got a twice"):
            WordPieceTokenizer(file)
