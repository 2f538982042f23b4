"""Train rows whose texts also stand in a part that a model is judged by: they are left out, and counted.

Memory holds a hash of 16 bytes for every row of those parts.
"""

import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from bert_mtl.config import TaskConfig
from data_prep.rows import Row

log = logging.getLogger(__name__)


def exclusions(name: str, tasks: Mapping[str, TaskConfig]) -> list[tuple[str, str]]:
    """The parts, each as (task, part), whose texts must not stand in the train part of task `name`: those that its
    `exclude` names, as far as their tasks are among `tasks`."""
    named = (entry.rpartition(".") for entry in tasks[name].exclude)
    return [(task or name, part) for task, _, part in named if not task or task in tasks]


def key(values: Mapping[str, str]) -> bytes:
    """16 bytes, equal for rows of equal texts: case, white space, punctuation and the order of a pair do not count.

    Data sets that share texts differ in these (MRPC writes `doesn 't` where STS-B has `doesn't`).
    """
    texts = [values[field] for field in ("text", "text_b") if field in values]
    letters = (re.sub(r"[\W_]+", "", text.casefold()) or text.strip() for text in texts)
    return hashlib.blake2b("\n".join(sorted(letters)).encode(), digest_size=16).digest()


def keys(rows: Iterable[Row]) -> frozenset[bytes]:
    """The keys of all rows of a part."""
    return frozenset(key(row.values) for row in rows)


def without(rows: Iterable[Row], excluded: Mapping[str, Collection[bytes]], task: str) -> Iterator[Row]:
    """The train rows of `task` that stand in none of the parts `excluded` (name -> its `keys`); afterwards the log says
    how many stood there."""
    total, left_out = 0, dict.fromkeys(excluded, 0)
    for row in rows:
        total += 1
        own = key(row.values)
        part = next((part for part, others in excluded.items() if own in others), None)
        if part is None:
            yield row
        else:
            left_out[part] += 1
    for part, count in left_out.items():
        log.info("%s: %s of %s train rows left out, as their texts stand in %s", task, f"{count:,}", f"{total:,}", part)
