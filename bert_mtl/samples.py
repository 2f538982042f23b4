"""The folder of a server's samples (`serving.samples`) goes in; what each task was asked, and what its heads answered,
comes out."""

import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PATTERN = "samples-*.jsonl"


class SamplesError(Exception):
    """There is nothing to compare."""

    user_error = True


@dataclass
class Asked:
    """What the heads of a task were asked.

    Attributes:
        tokens: of each row; special ones included.
        texts: (or pairs), some of them `truncated`; `unknown` of their tokens are [UNK].
        counted: how many texts `pieces` (by id) were counted in.
    """

    tokens: list[int] = field(default_factory=list)
    texts: int = 0
    truncated: int = 0
    unknown: int = 0
    counted: int = 0
    pieces: Counter[int] = field(default_factory=Counter)


@dataclass
class Samples:
    """All samples of one version.

    Attributes:
        tasks: by name.
        answers: by head's full name.
        last: the latest samples as they stand in the files.
        texts: how many there are.
        others: how many there are of other versions.
        broken: lines that are not whole.
    """

    last: deque[dict[str, Any]]
    tasks: defaultdict[str, Asked] = field(default_factory=lambda: defaultdict(Asked))
    answers: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    texts: int = 0
    others: int = 0
    broken: int = 0


def read_samples(folder: Path, versions: set[str], since: datetime | None, last: int) -> Samples:
    """The samples of a version, which may have several names, from a time on; the `last` ones as they are.

    Raises SamplesError where there is no such folder, or no such sample.
    """
    if not folder.is_dir():
        raise SamplesError(f"samples must be the folder that the server's samples.dir names; got {folder}.")
    found, names = Samples(deque(maxlen=last)), Counter[str]()
    begin = since.astimezone(UTC).isoformat(timespec="milliseconds") if since else ""
    for line in _lines(folder, since):
        try:
            told = json.loads(line)
            if told["time"] < begin:
                continue
            if told["version"] not in versions:
                names[told["version"]] += "read" in told
                continue
            _take(found, told)
        except (ValueError, KeyError, TypeError, AttributeError):
            found.broken += 1
    found.others = names.total()
    if not found.texts:
        there = f"; there are of {', '.join(sorted(names))}" if names else ""
        after = f" since {begin}" if begin else ""
        raise SamplesError(f"samples must hold some of version {' or '.join(sorted(versions))}{after}{there}: {folder}")
    return found


def _lines(folder: Path, since: datetime | None) -> Iterator[bytes]:
    """All whole lines, those of files that have not been written since left out."""
    for path in sorted(folder.glob(PATTERN)):
        try:
            if since and path.stat().st_mtime < since.timestamp():
                continue
            with open(path, "rb") as file:
                yield from (line for line in file if line.endswith(b"\n"))  # the last may be on its way
        except FileNotFoundError:  # the server keeps no more than samples.files
            continue


def _take(found: Samples, told: Mapping[str, Any]) -> None:
    if "pieces" in told:
        for task in told["tasks"]:
            asked = found.tasks[task]
            asked.counted += told["texts"]
            asked.pieces.update({int(piece): count for piece, count in told["pieces"].items()})
        return
    for read in told["read"]:
        for task in read["tasks"]:
            asked = found.tasks[task]
            asked.tokens += read["tokens"]
            asked.texts, asked.unknown = asked.texts + 1, asked.unknown + read["unknown"]
            asked.truncated += read["truncated"]
    for head, answer in told["answers"].items():
        found.answers[head].append(answer)
    found.texts += 1
    found.last.append(dict(told))
