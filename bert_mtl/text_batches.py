"""Texts without labels to padded batches, for answers: sorted by length, a text (or pair) a row."""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from bert_mtl.batches import Layout, Window, assemble
from bert_mtl.labels import LabelSpec
from bert_mtl.packing import Batch, Padding
from bert_mtl.tokenization import Tokenizer

WORDS = LabelSpec("words", 0, "token")  # its label: the number of the word that a token begins
PAD_TO = 32


def text_batches(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    texts_b: Sequence[str] | None,
    batch_size: int,
    *,
    words: bool = False,
    separate: bool = False,
    task: int = 0,
) -> Iterator[dict]:
    """Batches (see `bert_mtl.batches`) of texts or pairs; `index` tells their places.

    With `words`, texts are words joined by single spaces, and `label.words` `(rows, length)` numbers the words at their
    first tokens (-1 elsewhere). With `separate`, a pair is two segments.
    """
    if words:
        encoded, numbers = tokenizer.encode_words(tf.constant(texts))
        labels = {WORDS.name: numbers.values.numpy()}
    else:
        encoded = tokenizer.encode(tf.constant(texts), None if texts_b is None else tf.constant(texts_b), separate)
        labels = {}
    window = Window(
        token_ids=encoded.token_ids.values.numpy(),
        splits=encoded.token_ids.row_splits.numpy(),
        second_start=encoded.second_start.numpy(),
        task=np.full(len(texts), task, np.int32),
        index=np.arange(len(texts), dtype=np.int32),
        labels={},
        token_labels=labels,
    )
    layout = Layout(
        rows=batch_size,
        segments=batch_size * (1 + separate),
        heads=(WORDS._replace(task=task),) if words else (),
        separate=(separate,) * (task + 1),
        length=None,
        pad_to=min(PAD_TO, tokenizer.max_length),
    )
    for plan in Padding(batch_size).plan(window.lengths, len(texts), lambda _: None):
        for batch in plan.batches:
            yield assemble(window, batch, layout, np.random.default_rng(0))


def masked_batches(
    tokenizer: Tokenizer, texts: Sequence[str], literal: str, batch_size: int, head: str, task: int = 0
) -> Iterator[dict]:
    """Batches of texts in which `literal` is the mask token; a mask head finds the masks' places in `place.<head>`."""
    for start in range(0, len(texts), batch_size):
        rows = [_with_masks(tokenizer, text.split(literal)) for text in texts[start : start + batch_size]]
        lengths = np.array([len(row) for row in rows])
        window = Window(
            token_ids=np.concatenate(rows).astype(np.int32),
            splits=np.concatenate([[0], np.cumsum(lengths)]),
            second_start=lengths,
            task=np.full(len(rows), task, np.int32),
            index=np.arange(start, start + len(rows), dtype=np.int32),
            labels={},
            token_labels={},
        )
        layout = Layout(len(rows), len(rows), (), (False,) * (task + 1), None, min(PAD_TO, tokenizer.max_length))
        every = np.arange(len(rows))
        batch = assemble(window, Batch(every, every), layout, np.random.default_rng(0))
        places = np.flatnonzero(batch["token_ids"] == tokenizer.mask_id).astype(np.int32)
        if len(places):
            yield batch | {f"place.{head}": places, f"label.{head}": np.zeros_like(places)}


def _with_masks(tokenizer: Tokenizer, parts: list[str]) -> np.ndarray:
    """The ids of a row in which a mask stands between the parts; what is too long is cut at its end."""
    pieces = [ids.numpy() for ids in tokenizer.tokenize(tf.constant(parts))]
    joined = [pieces[0]] + [ids for piece in pieces[1:] for ids in ([tokenizer.mask_id], piece)]
    body = np.concatenate(joined)[: tokenizer.max_length - 2]
    return np.concatenate([[tokenizer.cls_id], body, [tokenizer.sep_id]])
