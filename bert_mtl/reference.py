"""What a run learned from, as numbers that served texts are compared with: a bundle's training.json.

The train part's records go in; out come, by task, token lengths and pieces, and by head what its labels were. No text
can be read from them.
"""

import base64
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bert_mtl.batches import Window
from bert_mtl.kinds.regression import moments
from bert_mtl.kinds.tagging import Tagging
from bert_mtl.part_reader import PartReader
from bert_mtl.tasks import Task
from bert_mtl.tokenization import Tokenizer

FORMAT = 1
PIECES = 2000
"""How many of the most frequent pieces have a count of their own."""


def reference(readers: Iterable[PartReader]) -> dict[str, Any]:
    """All of training.json; the readers may be of any part of their tasks.

    Returns:
        `format`; `tasks` by name (`task_reference`); `heads` by full name, with their task, kind and labels
        (`label_reference`), where these have any.
    """
    tasks, heads = {}, {}
    for reader in (replace(reader, part="train", shuffle=False, taught=()) for reader in readers):
        task, part = reader.task, reader.manifest.parts["train"]
        entities = Entities(task)
        windows = entities.seeing(reader.windows(0, reader.examples))
        tasks[task.name] = task_reference(windows, reader.tokenizer, task.separate, part.truncated)
        for head in task.heads.values():
            if told := label_reference(head.kind, part.statistics.get(head.name, {})):
                told |= entities.told(head.name)
                heads[head.name] = {"task": task.name, "kind": head.kind} | told
    return {"format": FORMAT, "tasks": tasks, "heads": heads}


def task_reference(
    windows: Iterable[Window], tokenizer: Tokenizer, separate: bool, truncated: int | None
) -> dict[str, Any]:
    """What the texts of a task are like.

    Args:
        separate: each text of a pair is a row of its own.
        truncated: texts that were cut, where that was counted.

    Returns:
        `examples`; `rows` and their `tokens`; `truncated` (or None); `lengths`: `edges` and `counts` (rows of at least
        an edge's tokens and less than the next one's); `unknown`: how many of the tokens are [UNK]; `pieces`: `total`,
        `counts` by id of the most frequent ones, and `seen` (`seen_pieces`). Special tokens are no pieces.
    """
    edges = length_edges(tokenizer.max_length)
    found, pieces = np.zeros(len(edges) - 1, np.int64), np.zeros(tokenizer.vocab_size, np.int64)
    examples = rows = tokens = 0
    for window in windows:
        lengths = np.diff(window.splits)
        examples += len(lengths)
        if separate:
            lengths = np.concatenate([window.second_start, lengths - window.second_start])
        rows, tokens = rows + len(lengths), tokens + int(lengths.sum())
        found += np.histogram(lengths, edges)[0]
        pieces += np.bincount(window.token_ids, minlength=len(pieces))
    pieces[[tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]] = 0
    frequent = np.argsort(-pieces, kind="stable")[:PIECES]
    return {
        "examples": examples,
        "rows": rows,
        "tokens": tokens,
        "truncated": truncated,
        "lengths": {"edges": edges, "counts": found.tolist()},
        "unknown": int(pieces[tokenizer.unk_id]),
        "pieces": {
            "total": int(pieces.sum()),
            "counts": {str(piece): int(pieces[piece]) for piece in frequent.tolist() if pieces[piece]},
            "seen": base64.b64encode(np.packbits(pieces > 0).tobytes()).decode(),
        },
    }


def length_edges(max_length: int) -> list[int]:
    """Where bins of token lengths begin, and `max_length`, where the last one ends: two bins each time that lengths
    double, so that short texts have as many as long ones. (`[2, 3, 4, 6, 8, 12, …]`)"""
    bounds = [2, *(bound for power in range(1, 20) for bound in (3 * 2 ** (power - 1), 2 ** (power + 1)))]
    return [bound for bound in bounds if bound < max_length] + [max_length]


def seen_pieces(reference: Mapping[str, Any]) -> np.ndarray:
    """`(pieces,)` whether each piece stood in the train part at all, from `pieces` of a `task_reference`."""
    return np.unpackbits(np.frombuffer(base64.b64decode(reference["seen"]), np.uint8)).astype(bool)


def label_reference(kind: str, statistics: Mapping[str, float]) -> dict[str, Any]:
    """What a head's train labels were, from what was counted of them (`Head.count`).

    Returns:
        classification: `labels`: examples of each. multilabel: the same, and `examples`. tagging: `labels`: entities of
        each type. regression: `examples`, `mean` and `deviation`. Nothing of other kinds, or without a label.
    """
    if not any(statistics.values()):
        return {}
    counts = {name.removeprefix("label "): int(count) for name, count in statistics.items()}
    if kind == "classification":
        return {"labels": counts}
    if kind == "multilabel":
        return {"examples": counts.pop("examples"), "labels": counts}
    if kind == "tagging":
        return {"labels": {label: count for label, count in counts.items() if label != "O"}}
    if kind == "regression":
        mean, deviation = moments(statistics)
        return {"examples": counts["examples"], "mean": mean, "deviation": deviation}
    return {}


class Entities:
    """Examples, mean and deviation of how many entities a text has, by head of tags."""

    def __init__(self, task: Task) -> None:
        self._sums = {head.name: np.zeros(3) for head in task.heads.values() if isinstance(head, Tagging)}

    def seeing(self, windows: Iterable[Window]) -> Iterator[Window]:
        """The windows, whose entities are counted on the way."""
        for window in windows:
            for name, sums in self._sums.items():
                labels = window.token_labels[name]
                begun = np.append(0, np.cumsum((labels > 0) & (labels % 2 == 1)))  # the ids of O, B-x, I-x, B-y, …
                counts = np.diff(begun[window.splits])
                sums += len(counts), counts.sum(), np.square(counts).sum()
            yield window

    def told(self, head: str) -> dict[str, float]:
        """`examples`, `mean` and `deviation`; nothing of heads of other kinds."""
        if head not in self._sums:
            return {}
        examples, total, squares = self._sums[head].tolist()
        mean = total / max(examples, 1)
        return {
            "examples": int(examples),
            "mean": mean,
            "deviation": math.sqrt(max(squares / max(examples, 1) - mean**2, 0)),
        }
