"""Columns of texts and labels, as examples have them, to tokens and labels, as records have them; in the graph."""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from bert_mtl.labels import LabelSpec
from bert_mtl.records import by_token
from bert_mtl.tokenization import Tokenizer


class Columns(NamedTuple):
    """What the examples of a task have.

    Attributes:
        labels: of its heads.
        pair: a second text.
        separate: which is a segment of its own.
        words: texts are words joined by single spaces.
    """

    labels: tuple[LabelSpec, ...]
    pair: bool
    separate: bool
    words: bool

    @property
    def stored(self) -> tuple[LabelSpec, ...]:
        """The labels that records hold."""
        return tuple(label for label in self.labels if label.stored)


class Record(NamedTuple):
    """Tokenised examples: `token_ids` ragged `(n, None)` and `second_start` `(n,)` int32, `truncated` `(n,)` bool, and
    `labels` by head, of token heads ragged `(n, None)` by token."""

    token_ids: tf.RaggedTensor
    second_start: tf.Tensor
    truncated: tf.Tensor
    labels: dict


def encode(
    tokenizer: Tokenizer, columns: Columns, texts: tf.Tensor, texts_b: tf.Tensor | None, labels: Mapping
) -> Record:
    """Records of texts `(n,)`, second texts `(n,)` and labels: those of token heads, ragged `(n, words)`, are spread to
    tokens, all others stay as they are."""
    if not columns.words:
        return Record(*tokenizer.encode(texts, texts_b, separate=columns.separate), dict(labels))
    encoded, words = tokenizer.encode_words(texts)
    by_word = {label.name for label in columns.labels if label.level == "token"}
    spread = {name: by_token(values, words) if name in by_word else values for name, values in labels.items()}
    return Record(*encoded, spread)
