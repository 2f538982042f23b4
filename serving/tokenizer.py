"""Texts go in, token ids come out: the same ids, cut the same way, as the bundle's own "text" signature.

Ids come from the Rust `tokenizers` library or from `sentencepiece`; special tokens and truncation are added here.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from serving.bundle import Bundle


class Encoded(NamedTuple):
    """One text: `ids` is `(length,)` int32 with [CLS] and [SEP]; `truncated` tells whether tokens were cut."""

    ids: np.ndarray
    truncated: bool


class PaddedRows(NamedTuple):
    """Rows as an engine reads them, each array `(rows, longest)` int32; `segment_ids` is 1 on tokens, 0 on padding."""

    token_ids: np.ndarray
    type_ids: np.ndarray
    segment_ids: np.ndarray


class Tokenizer:
    """The bundle's tokenizer; safe to call from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        self.settings = bundle.manifest.tokenizer
        self._split = _rust(bundle) if self.settings.kind == "wordpiece" else _sentencepiece(bundle)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """One `Encoded` a text, in the order of the texts."""
        budget = self.settings.max_length - 2
        rows = []
        for ids in self._split(list(texts)):
            kept = truncate(ids, budget, self.settings.truncation)
            row = np.array([self.settings.cls_id, *kept, self.settings.sep_id], np.int32)
            rows.append(Encoded(row, len(ids) > budget))
        return rows

    def pad(self, rows: Sequence[Encoded]) -> PaddedRows:
        """The rows side by side, filled up with `pad_id` to the longest of them."""
        shape = (len(rows), max(len(row.ids) for row in rows))
        token_ids, segment_ids = np.full(shape, self.settings.pad_id, np.int32), np.zeros(shape, np.int32)
        for index, (ids, _) in enumerate(rows):
            token_ids[index, : len(ids)] = ids
            segment_ids[index, : len(ids)] = 1
        return PaddedRows(token_ids, np.zeros(shape, np.int32), segment_ids)


def truncate(ids: list[int], budget: int, truncation: str) -> list[int]:
    """At most `budget` ids: the first (head), the last (tail), or a quarter from the start, the rest from the end."""
    if len(ids) <= budget:
        return ids
    # A quarter of all 512 tokens is 128, and leaves 382 (https://arxiv.org/abs/1905.05583, section 5.3.1).
    start = {"head": budget, "tail": 0, "head_tail": (budget + 2) // 4}[truncation]
    return ids[:start] + ids[len(ids) - (budget - start) :]


def _rust(bundle: Bundle) -> Callable[[list[str]], list[list[int]]]:
    from tokenizers import Tokenizer as RustTokenizer

    rust = RustTokenizer.from_file(str(bundle.file("tokenizer/tokenizer.json")))
    return lambda texts: [encoding.ids for encoding in rust.encode_batch_fast(texts, add_special_tokens=False)]


def _sentencepiece(bundle: Bundle) -> Callable[[list[str]], list[list[int]]]:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(bundle.file("tokenizer/spm.model"))).encode
