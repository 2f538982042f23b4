"""What the model reads: texts (or pairs) as rows of token ids, with what is needed to make sense of its answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from spans.tags import Word

WRITTEN = re.compile(r"\S+", re.ASCII)
"""A word as TensorFlow parts them: what stands between white space."""


@dataclass(frozen=True)
class Row:
    """One text, or a pair, with [CLS] and [SEP].

    Attributes:
        ids: `(length,)` int32.
        truncated: whether tokens were cut.
        second: the place in the row at which a second text begins; None where there is none.
        text: what the places of `words` are places in.
        words: the words whose first tokens were not cut, where the text is read word by word.
        places: of these tokens in the row, and of each [MASK] where that is read as the mask.
    """

    ids: np.ndarray
    truncated: bool
    second: int | None = None
    text: str = ""
    words: list[Word] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def by_written_word(self, output: np.ndarray) -> np.ndarray:
        """Of a row that is read word by word: its tokens' `output` `(length, …)` at the first token of each word that
        white space parts, `(words, …)`; zeros for words whose first token was cut."""
        starts = [match.start() for match in WRITTEN.finditer(self.text)]
        place_of = {start: place for (_, start, _), place in zip(self.words, self.places, strict=True)}
        found = np.zeros((len(starts), *output.shape[1:]), output.dtype)
        for number, start in enumerate(starts):
            if (place := place_of.get(start)) is not None:
                found[number] = output[place]
        return found


class PaddedRows(NamedTuple):
    """Rows as an engine reads them, each array `(rows, longest)` int32; `segment_ids` is 1 on tokens, 0 on padding, and
    `type_ids` 1 on tokens of second texts."""

    token_ids: np.ndarray
    type_ids: np.ndarray
    segment_ids: np.ndarray


class Padded(Protocol):
    """What `pad` needs of a row."""

    @property
    def ids(self) -> np.ndarray: ...

    @property
    def second(self) -> int | None: ...


def pad(rows: Sequence[Padded], pad_id: int) -> PaddedRows:
    """The rows side by side, filled up with `pad_id` to the longest of them."""
    shape = (len(rows), max(len(row.ids) for row in rows))
    padded = PaddedRows(np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32))
    for index, row in enumerate(rows):
        length = len(row.ids)
        padded.token_ids[index, :length] = row.ids
        padded.segment_ids[index, :length] = 1
        if row.second is not None:
            padded.type_ids[index, row.second : length] = 1
    return padded
