"""Texts go in, rows of token ids come out: the same ids, cut the same way, as in training.

Ids come from the Rust `tokenizers` library or from `sentencepiece`; special tokens and truncation are added here.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from serving.bundle import Bundle
from serving.errors import TextError
from serving.heads import Reads
from serving.rows import Row
from spans.words import words

MASK, UNKNOWN = "[MASK]", "[UNK]"
LINE_BREAKS = str.maketrans("\t\n\r", "   ")  # training reads texts of one line
Text = str | Sequence[str] | Sequence[int]
"""A text, its tokens, or their ids (the last two without [CLS] and [SEP])."""
T = TypeVar("T")
Pieces = list[tuple[int, int]]  # tokens: id, and the number of the word that it begins, else -1


class Vocabulary(Protocol):
    """A tokenizer's library."""

    def split(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        ...

    def split_words(self, texts: Sequence[Sequence[str]]) -> list[Pieces]:
        """The tokens of each text, given as its words."""
        ...

    @property
    def size(self) -> int: ...

    def token(self, token_id: int) -> str: ...

    def id(self, token: str) -> int:
        """That of the unknown where the vocabulary does not have the token."""
        ...


class Tokenizer:
    """The bundle's tokenizer; safe to call from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        self.settings = bundle.manifest.tokenizer
        vocabulary = WordPiece if self.settings.kind == "wordpiece" else SentencePiece
        self._vocabulary: Vocabulary = vocabulary(bundle)
        self.token = self._vocabulary.token

    @property
    def unknown_id(self) -> int:
        """What stands for what the vocabulary does not have."""
        return self._vocabulary.id(UNKNOWN)

    @property
    def words_keep_ids(self) -> bool:
        """Whether a text has the same ids when it is read word by word."""
        return self.settings.kind == "wordpiece"

    def read(self, reads: Reads, texts: Sequence[str], texts_b: Sequence[str] | None = None) -> list[list[Row]]:
        """The rows of each text, or pair, read as `Head.reads` says."""
        if reads == "apart" and texts_b is not None:
            return self._apart(texts, texts_b)
        if reads == "masks":
            return [[self._masked(text)] if MASK in text else [] for text in texts]
        if reads == "pair":
            return [[row] for row in self._pairs(texts, texts_b or ())]
        return [[row] for row in (self._words if reads == "words" else self._texts)(texts)]

    def rows(self, texts: Sequence[Text], texts_b: Sequence[Text] | None) -> list[Row]:
        """The row of each text or pair, which may be given as tokens or their ids.

        Raises `TextError` for ids that are not of the vocabulary.
        """
        if texts_b is not None:
            return self._pairs(texts, texts_b)
        return [self._row(ids) for ids in self._split(texts)]

    def _split(self, texts: Sequence[Text]) -> list[list[int]]:
        plain = iter(self._vocabulary.split(_lines([text for text in texts if isinstance(text, str)])))
        return [next(plain) if isinstance(text, str) else self._ids(text) for text in texts]

    def _ids(self, tokens: Sequence[str] | Sequence[int]) -> list[int]:
        ids = [self._vocabulary.id(token) if isinstance(token, str) else token for token in tokens]
        if wrong := [each for each in ids if not 0 <= each < self._vocabulary.size]:
            raise TextError(f"token ids must be between 0 and {self._vocabulary.size - 1}; got {wrong[0]}")
        return ids

    def _texts(self, texts: Sequence[str]) -> list[Row]:
        """A row for each text."""
        return [self._row(ids) for ids in self._vocabulary.split(_lines(texts))]

    def _words(self, texts: Sequence[str]) -> list[Row]:
        """A row for each text, read word by word."""
        found = [words(text) for text in texts]
        rows = []
        split = self._vocabulary.split_words([[word for word, _, _ in each] for each in found])
        for text, known, pieces in zip(texts, found, split, strict=True):
            kept = self._cut(pieces, self.settings.max_length - 2)
            begun = [(place, known[word]) for place, (_, word) in enumerate(kept, start=1) if word >= 0]
            ids, cut = self._framed([token for token, _ in kept]), len(kept) < len(pieces)
            rows.append(Row(ids, cut, None, text, [word for _, word in begun], [place for place, _ in begun]))
        return rows

    def _masked(self, text: str) -> Row:
        """A row for a text in which the literal [MASK] is the mask."""
        first, *others = self._vocabulary.split(_lines(text.split(MASK)))
        row = self._row(first + [token for ids in others for token in (self.settings.mask_id, *ids)])
        return Row(row.ids, row.truncated, places=np.flatnonzero(row.ids == self.settings.mask_id).tolist())

    def _pairs(self, texts: Sequence[Text], texts_b: Sequence[Text]) -> list[Row]:
        """A row for each pair."""
        rows = []
        for first, second, cut in self._cut_pairs(texts, texts_b, special=3):
            ids = self._framed([*first, self.settings.sep_id, *second])
            rows.append(Row(ids, cut, second=len(first) + 2))
        return rows

    def _apart(self, texts: Sequence[str], texts_b: Sequence[str]) -> list[list[Row]]:
        """Two rows for each pair."""
        cuts = self._cut_pairs(texts, texts_b, special=4)
        return [[Row(self._framed(ids), cut) for ids in (first, second)] for first, second, cut in cuts]

    def _row(self, ids: list[int]) -> Row:
        kept = self._cut(ids, self.settings.max_length - 2)
        return Row(self._framed(kept), len(kept) < len(ids))

    def _cut_pairs(
        self, texts: Sequence[Text], texts_b: Sequence[Text], special: int
    ) -> list[tuple[list[int], list[int], bool]]:
        """The ids of both texts of each pair, cut to leave room for `special` tokens: the longer gives way first."""
        both = self._split([*texts, *texts_b])
        budget, pairs = self.settings.max_length - special, []
        for first, second in zip(both[: len(texts)], both[len(texts) :], strict=True):
            shorter = min(len(first), len(second), budget // 2)
            longer = min(max(len(first), len(second)), budget - shorter)
            kept = (shorter, longer) if len(first) <= len(second) else (longer, shorter)
            cut = sum(kept) < len(first) + len(second)
            pairs.append((self._cut(first, kept[0]), self._cut(second, kept[1]), cut))
        return pairs

    def _cut(self, tokens: list[T], budget: int) -> list[T]:
        return truncate(tokens, budget, self.settings.truncation)

    def _framed(self, ids: list[int]) -> np.ndarray:
        return np.array([self.settings.cls_id, *ids, self.settings.sep_id], np.int32)


def truncate(tokens: list[T], budget: int, truncation: str) -> list[T]:
    """At most `budget` tokens: the first, the last, or a quarter from the start and the rest from the end."""
    if len(tokens) <= budget:
        return tokens
    # A quarter of all 512 tokens is 128, and leaves 382 (https://arxiv.org/abs/1905.05583, section 5.3.1).
    start = {"head": budget, "tail": 0, "head_tail": (budget + 2) // 4}[truncation]
    return tokens[:start] + tokens[len(tokens) - (budget - start) :]


class WordPiece:
    """The Rust library with the bundle's tokenizer.json."""

    def __init__(self, bundle: Bundle) -> None:
        from tokenizers import Tokenizer as RustTokenizer

        self._rust = RustTokenizer.from_file(str(bundle.file("tokenizer/tokenizer.json")))
        self._rust.no_truncation()  # which would hide what is cut
        self._known = self._rust.get_vocab()

    def split(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._rust.encode_batch_fast(list(texts), add_special_tokens=False)]

    def split_words(self, texts: Sequence[Sequence[str]]) -> list[Pieces]:
        # The fast one would not tell the words.
        encodings = self._rust.encode_batch(list(texts), is_pretokenized=True, add_special_tokens=False)
        return [_begun(encoding.ids, encoding.word_ids) for encoding in encodings]

    @property
    def size(self) -> int:
        return self._rust.get_vocab_size()

    def token(self, token_id: int) -> str:
        return self._rust.id_to_token(token_id) or ""

    def id(self, token: str) -> int:
        return self._known.get(token, self._known[UNKNOWN])


class SentencePiece:
    """The `sentencepiece` library with the bundle's model."""

    def __init__(self, bundle: Bundle) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor(model_file=str(bundle.file("tokenizer/spm.model")))
        self.split = self._model.encode

    def split_words(self, texts: Sequence[Sequence[str]]) -> list[Pieces]:
        rows = []
        for text in texts:
            pieces = self._model.encode(list(text))
            owners = [number for number, ids in enumerate(pieces) for _ in ids]
            rows.append(_begun([token for ids in pieces for token in ids], owners))
        return rows

    @property
    def size(self) -> int:
        return self._model.get_piece_size()

    def token(self, token_id: int) -> str:
        return self._model.id_to_piece(token_id)

    def id(self, token: str) -> int:
        return self._model.piece_to_id(token)


def _begun(ids: Sequence[int], owners: Sequence[int | None]) -> Pieces:
    """The tokens, each with its word's number where it is the word's first."""
    return [
        (token, -1 if owner is None or owner == last else owner)
        for token, owner, last in zip(ids, owners, [None, *owners], strict=False)
    ]


def _lines(texts: Sequence[str]) -> list[str]:
    return [text.translate(LINE_BREAKS) for text in texts]
