"""Text to token ids in the TensorFlow graph: `(n,)` strings in, rows [CLS] a [SEP] or [CLS] a [SEP] b [SEP] out.

WordPiece ids equal those of the Rust `tokenizers` library, which answers in the server; `rust_tokenizer` builds it.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from conf.errors import ConfigError, Problem

MASK = "[MASK]"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK)
TRUNCATIONS = ("head", "tail", "head_tail")
CONFIG_FILE = "tokenizer_config.json"
MAX_WORD_CHARS = 100  # Google's limit: a longer word is [UNK]


class Encoded(NamedTuple):
    """One batch of encoded examples. A named tuple, because `tf.data` and `tf.function` return those as they are."""

    token_ids: tf.RaggedTensor  # `(n, None)` int32, special tokens included
    second_start: tf.Tensor  # `(n,)` int32: where the second text begins; the row's length for single texts
    truncated: tf.Tensor  # `(n,)` bool: tokens were cut


class Tokenizer(tf.Module):
    """What both kinds share: special ids, truncation, `encode` and `save`. A kind adds `tokenize`.

    Everything runs in graphs (`tf.function`, `tf.data`, SavedModel). A pickle holds the file's path and the settings:
    a worker process builds its own.
    """

    kind: ClassVar[str]
    file_name: ClassVar[str]  # what `save` calls the vocabulary
    continuations: np.ndarray  # `(vocab_size,)` bool: the token continues the word before it

    def __init__(self, file: str | Path, vocabulary: Mapping[str, int], **settings: Any) -> None:
        super().__init__()
        self.max_length: int = settings["max_length"]
        self.truncation: str = settings["truncation"]
        problems = []
        if self.max_length < 3:
            problems.append(Problem("tokenizer.max_length", "be at least 3 ([CLS], a token, [SEP])", self.max_length))
        if self.truncation not in TRUNCATIONS:
            problems.append(Problem("tokenizer.truncation", "be one of the options", self.truncation, TRUNCATIONS))
        if missing := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
            rule = f"hold the tokens {', '.join(SPECIAL_TOKENS)}"
            problems.append(Problem("tokenizer.vocab", rule, f"{Path(file).name} without {', '.join(missing)}"))
        if problems:
            raise ConfigError(problems)
        self.vocab_size = len(vocabulary)
        self.tokens = list(vocabulary)  # by id
        self.special_ids = tuple(vocabulary[token] for token in SPECIAL_TOKENS)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids
        self._file = Path(file).absolute()
        self._file_bytes = self._file.read_bytes()
        self._settings = json.dumps(settings)

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Token ids `(n, None)` int32 of texts `(n,)`, uncut and without special tokens."""
        raise NotImplementedError

    def tokenize_masked(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """As `tokenize`, but the literal [MASK] in a text is the mask."""
        parts = tf.strings.split(texts, MASK)
        pieces = self.tokenize(parts.values)
        marked = tf.concat([tf.fill([pieces.nrows(), 1], self.mask_id), pieces], axis=1)
        return parts.with_values(marked).merge_dims(1, 2)[:, 1:]

    def encode(
        self, texts: tf.Tensor, texts_b: tf.Tensor | None = None, separate: bool = False, masks: bool = False
    ) -> Encoded:
        """Rows of at most `max_length` tokens for texts `(n,)`, or for pairs when `texts_b` `(n,)` is given.

        The longer text of a pair gives way first, to the lengths of the Rust library's `longest_first`. With
        `separate` the second text has a [CLS] of its own. With `masks` the literal [MASK] is the mask.
        """
        tokenize = self.tokenize_masked if masks else self.tokenize
        first = tokenize(texts)
        length = first.row_lengths()
        cls, sep = (tf.fill([first.nrows(), 1], token) for token in (self.cls_id, self.sep_id))
        if texts_b is None:
            kept = tf.minimum(length, self.max_length - 2)
            token_ids = tf.concat([cls, *self._cut(first, kept), sep], axis=1)
            return Encoded(token_ids, tf.cast(kept + 2, tf.int32), kept < length)
        second = tokenize(texts_b)
        length_b = second.row_lengths()
        budget = self.max_length - 3 - separate
        shorter = tf.minimum(tf.minimum(length, length_b), budget // 2)
        longer = tf.minimum(tf.maximum(length, length_b), budget - shorter)
        kept = tf.where(length <= length_b, shorter, longer)
        kept_b = tf.where(length <= length_b, longer, shorter)
        middle = [sep, cls] if separate else [sep]
        token_ids = tf.concat([cls, *self._cut(first, kept), *middle, *self._cut(second, kept_b), sep], axis=1)
        return Encoded(token_ids, tf.cast(kept + 2, tf.int32), kept + kept_b < length + length_b)

    def encode_words(self, texts: tf.Tensor) -> tuple[Encoded, tf.RaggedTensor]:
        """As `encode`, for texts `(n,)` of words joined by single spaces; and, beside each token, the number of its
        word in the text where it is the word's first, else -1: `(n, None)` int32."""
        words = tf.strings.split(texts, " ")
        pieces = self.tokenize(words.values)  # `(words, None)`
        tokens = words.with_values(pieces).merge_dims(1, 2)
        spoken = pieces.row_lengths() > 0  # a word of control characters alone has no piece
        starts = tf.boolean_mask(pieces.row_starts(), spoken)[:, None]
        numbers = tf.boolean_mask(tf.ragged.range(tf.cast(words.row_lengths(), tf.int32)).values, spoken)
        numbers = tf.tensor_scatter_nd_update(tf.fill(tf.shape(tokens.values), -1), starts, numbers)
        kept = tf.minimum(tokens.row_lengths(), self.max_length - 2)
        cls, sep, none = (tf.fill([words.nrows(), 1], token) for token in (self.cls_id, self.sep_id, -1))
        token_ids = tf.concat([cls, *self._cut(tokens, kept), sep], axis=1)
        numbers = tf.concat([none, *self._cut(tokens.with_values(numbers), kept), none], axis=1)
        return Encoded(token_ids, tf.cast(kept + 2, tf.int32), kept < tokens.row_lengths()), numbers

    def _cut(self, tokens: tf.RaggedTensor, kept: tf.Tensor) -> list[tf.RaggedTensor]:
        """Of every row the `kept` `(n,)` values that the truncation mode prefers, as its front and its back."""
        # A quarter in front: 128 and 382 of 510 (https://arxiv.org/abs/1905.05583, section 5.3.1).
        front = {"head": kept, "tail": tf.zeros_like(kept), "head_tail": (kept + 2) // 4}[self.truncation]
        start, end = tokens.row_starts(), tokens.row_limits()
        ranges = tf.ragged.range(start, start + front), tf.ragged.range(end - (kept - front), end)
        return [index.with_values(tf.gather(tokens.values, index.values)) for index in ranges]

    @property
    def fingerprint(self) -> str:
        """sha256 of the kind, the settings and the vocabulary's bytes: all that ids depend on."""
        return hashlib.sha256(f"{self.kind} {self._settings}\n".encode() + self._file_bytes).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes the vocabulary and `tokenizer_config.json` into `folder`, for `load_tokenizer`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.file_name).write_bytes(self._file_bytes)
        config = {"kind": self.kind, **json.loads(self._settings)}
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **json.loads(self._settings)), (self._file,)


class WordPieceTokenizer(Tokenizer):
    """Google's BERT tokenizer, uncased or cased, over a `vocab.txt` of one token a line."""

    kind = "wordpiece"
    file_name = "vocab.txt"

    def __init__(
        self, vocab_file: str | Path, *, lowercase: bool = True, max_length: int = 256, truncation: str = "head"
    ) -> None:
        vocabulary = read_wordpieces(vocab_file)
        super().__init__(vocab_file, vocabulary, lowercase=lowercase, max_length=max_length, truncation=truncation)
        self.continuations = np.array([token.startswith("##") for token in vocabulary])
        self.lowercase = lowercase
        self._wordpiece = tf_text.FastWordpieceTokenizer(
            vocab=[_graph_token(token) for token in vocabulary],
            token_out_type=tf.int32,
            max_bytes_per_word=4 * MAX_WORD_CHARS,  # UTF-8 needs 4 at most; characters are counted in `tokenize`
        )

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        if self.lowercase:
            texts = tf.strings.lower(texts)  # A to Z only, so cheap that it needs no choice of rows
        plain = tf.strings.regex_full_match(texts, PLAIN_ASCII)
        texts = _rewrite(texts, ~plain, self._normalize)
        maybe_long = tf.strings.regex_full_match(texts, MAYBE_LONG_WORD)
        texts = _rewrite(texts, maybe_long, _replace_long_words)
        return self._wordpiece.tokenize(texts)

    def _normalize(self, texts: tf.Tensor) -> tf.Tensor:
        """What the reference does before it splits; `FastWordpieceTokenizer` splits at spaces, punctuation and CJK."""
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore")
        texts = tf.strings.regex_replace(texts, DELETED, "")
        texts = _rewrite(texts, tf.strings.regex_full_match(texts, HAS_LATER), self._hide_later)
        if not self.lowercase:
            return texts
        texts = tf.strings.regex_replace(tf_text.normalize_utf8(texts, "NFD"), ACCENT, "")
        texts = tf.strings.regex_replace(texts, "Σ", "σ")  # ICU would write a word's last one ς
        return tf.strings.lower(texts, encoding="utf-8")

    def _hide_later(self, texts: tf.Tensor) -> tf.Tensor:
        """Gives the code points that only the graph's Unicode knows names that mean nothing to it."""
        texts = tf.strings.regex_replace(texts, f"[{FORMER_PUNCTUATION}]", r" \0 ")
        if self.lowercase:
            texts = _translate(texts, LATER_CAPITALS | _private_names(LATER))
            texts = tf_text.normalize_utf8(texts, "NFD")
        return _translate(texts, PRIVATE_NAMES)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, with the ids of the `sentencepiece` package and that model's own normalisation.

    [CLS] and the like should be control symbols of the model, as in `data_prep.vocab`: no text can spell those.
    """

    kind = "sentencepiece"
    file_name = "spm.model"

    def __init__(self, model_file: str | Path, *, max_length: int = 256, truncation: str = "head") -> None:
        model = tf_text.SentencepieceTokenizer(Path(model_file).read_bytes(), out_type=tf.int32)
        pieces = model.id_to_string(tf.range(model.vocab_size())).numpy()
        vocabulary = {piece.decode(): index for index, piece in enumerate(pieces)}
        super().__init__(model_file, vocabulary, max_length=max_length, truncation=truncation)
        self.continuations = np.array([not piece.startswith("▁") for piece in vocabulary])
        self._sentencepiece = model

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return self._sentencepiece.tokenize(texts)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`."""
    settings = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    classes: list[type[WordPieceTokenizer | SentencePieceTokenizer]] = [WordPieceTokenizer, SentencePieceTokenizer]
    kinds = {each.kind: each for each in classes}
    kind = settings.pop("kind")
    if kind not in kinds:
        raise ConfigError([Problem("tokenizer.kind", "be one of the options", kind, tuple(kinds))])
    return kinds[kind](Path(folder) / kinds[kind].file_name, **settings)


def rust_tokenizer(vocab_file: str | Path, lowercase: bool = True) -> tokenizers.Tokenizer:
    """The reference: the Rust library's BERT, uncut, with [CLS] and [SEP] around the texts.

    It has no added tokens, so a "[SEP]" within a text is split at its brackets, as Google's BERT does.
    """
    vocabulary = read_wordpieces(vocab_file)
    tokenizer = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARS)
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = rust_splitting(lowercase)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def rust_splitting(lowercase: bool) -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    """How the Rust library's BERT cleans a text and splits it into words."""
    return normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()


def read_wordpieces(vocab_file: str | Path) -> dict[str, int]:
    """Token to id, in the order of the ids, of a `vocab.txt`: UTF-8, one token a line."""
    text = Path(vocab_file).read_bytes().decode().replace("\r\n", "\n")
    tokens = text.rstrip("\n").split("\n")  # not splitlines: U+0085 and the like can be tokens
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if repeated := [token for index, token in enumerate(tokens) if vocabulary[token] != index]:
        raise ConfigError([Problem("tokenizer.vocab", "hold every token once", f"{repeated[0]} twice")])
    return vocabulary


def _rewrite(texts: tf.Tensor, where: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """The texts `(n,)` with those marked in `where` `(n,)` replaced by what `function` makes of them."""
    rows = tf.where(where)
    return tf.tensor_scatter_nd_update(texts, rows, function(tf.gather_nd(texts, rows)))


def _replace_long_words(texts: tf.Tensor) -> tf.Tensor:
    """The texts with `UNKNOWN_WORD` for every word of more than `MAX_WORD_CHARS` characters."""
    words = tf_text.regex_split(texts, SEPARATOR, keep_delim_regex_pattern=SEPARATOR)
    is_long = tf.strings.length(words.values, unit="UTF8_CHAR") > MAX_WORD_CHARS
    return tf.strings.reduce_join(words.with_values(tf.where(is_long, UNKNOWN_WORD, words.values)), axis=1)


def _translate(texts: tf.Tensor, names: Mapping[int, int]) -> tf.Tensor:
    """`str.translate` in the graph: every code point that `names` holds becomes the one it names."""
    old = tf.constant(sorted(names))
    new = tf.constant([names[point] for point in sorted(names)])
    points = tf.strings.unicode_decode(texts, "UTF-8")
    index = tf.minimum(tf.searchsorted(old, points.values), len(names) - 1)
    known = tf.gather(old, index) == points.values
    return tf.strings.unicode_encode(points.with_values(tf.where(known, tf.gather(new, index), points.values)), "UTF-8")


def _graph_token(token: str) -> str:
    """How `FastWordpieceTokenizer` must spell a vocabulary entry to meet the rewritten texts."""
    if re.search(r"[\s\0\ufffd\U000f0000-\U000ffffd\U00100000-\U0010fffd]", token):
        # No cleaned text holds such a token, but a rewritten one might.
        return UNKNOWN_WORD + token.encode().hex()
    return token.translate(PRIVATE_NAMES)


# Unicode. The reference mixes versions: accents and punctuation of Unicode 8, decompositions of 9, today's capitals.
# The graph's operations know later ones, so the code points below are hidden from them.


def _points(ranges: str) -> list[int]:
    """The code points of ranges such as "61D 897-8D3" (hexadecimal, ends included)."""
    spans = [[int(end, 16) for end in span.split("-")] for span in ranges.split()]
    return [point for span in spans for point in range(span[0], span[-1] + 1)]


def _private_names(ranges: str) -> dict[int, int]:
    """Unused names for code points: private ones, which cleaning has deleted from every text."""
    return {point: 0xF0000 + point % 0x20000 for point in _points(ranges)}


def _regex(ranges: str) -> str:
    """The inside of a regular expression's character class for the same ranges."""
    return re.sub(r"(\w+) ?", r"\\x{\1}", ranges)


# Plain letters to the reference, accents, punctuation or compounds to the graph, and the plain letters between them.
# 2B820-2B91F are CJK, which the reference's list leaves out.
LATER = (
    "61D 7FD 897-8D3 9FD-9FE A76 AFA-AFF B55 C04-C3C C77 C84 D00 D3B-D3C D81 EBA ECE 1715 180F-1886 1ABF-1ACE 1B4E-1B4F"
    " 1B7D-1B7F 1DF6-1DFA 2E43-2E5D A82C A8C5 A8FF A9BD 105C9-105E4 10D24-10D27 10D69-10F89 11070-11074 110C2 111C9"
    " 111CF 1123E-11241 1133B 11383-1143F 11443-11444 1144B-1145E 11660-1166C 116B9 1182F-1183B 11938-11C3D 11C41-11FFF"
    " 12FF1-1612F 16D68-16D6F 16E97-16E9A 16F4F 16FE2-16FF1 1CF00-1CF46 1E08F-1E5FF 1E95E-1E95F 2B820-2B91F"
)
# The same, but sorted as marks by its decomposition.
LATER_MARKS = "8D4-8E1 1DFB 11442 11446 11C3F 1E000-1E02A 1E944-1E94A"
LATER_CAPITALS = {
    **{point: point + 0x1 for point in _points("1C89 A7C0 A7CC A7CE A7D0 A7D2 A7D4 A7D6 A7D8 A7DA")},
    **{point: point + 0x1B for point in _points("16EA0-16EB8")},
    **{point: point + 0x20 for point in _points("10D50-10D65")},
    **{point: point + 0x27 for point in _points("10570-1057A 1057C-1058A 1058C-10592 10594-10595")},
    **{0x2C2F: 0x2C5F, 0xA7CB: 0x264, 0xA7DC: 0x19B},
}
LATER_CONTROLS = "890-891 8E2 110CD 13430-1343F"  # the reference does not delete them
PRIVATE_NAMES = _private_names(f"{LATER} {LATER_MARKS}")
FORMER_PUNCTUATION = r"\x{166D}\x{111C9}"  # the other way round: punctuation to the reference alone
HAS_LATER = rf"(?s).*[{_regex(f'{LATER} {LATER_MARKS}')}{FORMER_PUNCTUATION}{''.join(map(chr, LATER_CAPITALS))}].*"

PLAIN_ASCII = r"[\t\n\r -~]*"
DELETED = rf"\x{{FFFD}}|[^\P{{C}}\t\n\r{_regex(LATER_CONTROLS)}]"
ACCENT = r"[\p{Mn}\x{1734}]"  # U+1734 is none since Unicode 14
ASCII_SEPARATORS = r"\t\n\r -/:-@\[-`{-~"
CJK = _regex("3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2CEAF 2F800-2FA1F")
SEPARATOR = rf"[{ASCII_SEPARATORS}\p{{Z}}\p{{P}}{CJK}]"
# A quick look that overlooks no long word: it knows only the common separators.
COMMON_SEPARATORS = ASCII_SEPARATORS + _regex("2010-2027 3001-3003 3008-3011 3400-4DBF 4E00-9FFF FF01 FF0C FF1A FF1F")
MAYBE_LONG_WORD = rf"(?s).*[^{COMMON_SEPARATORS}]{{{MAX_WORD_CHARS + 1}}}.*"
UNKNOWN_WORD = "\ufffd"  # cleaning has deleted it from all texts; the graph's vocabulary does not spell it either
