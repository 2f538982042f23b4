"""Texts to load a server with: those of a file, or built-in ones; or as many words of theirs as are asked for."""

import gzip
import json
import random
from pathlib import Path

from conf.errors import Problem

BUILT_IN = (
    "A wonderful film.",
    "Two hours of my life I will not get back.",
    "Where can I change the address of my order? The form only shows the old one.",
    "The battery lasts a day and a half, the screen is bright enough for the garden, and the camera is fine in good "
    "light; in the evening it is not. For this price I had hoped for a case in the box.",
    "play the new album by the national on the kitchen speaker",
    "The committee met on Tuesday to discuss the budget for the coming year. After three hours it had agreed on one "
    "thing, namely that the bridge over the river needs repair before winter, and on nothing else. The chair said that "
    "the money would be found; two members asked where. A report on the matter is expected by the end of the month, "
    "and until then the bridge is closed to heavy lorries, which now pass through the old town. People who live there "
    "have written to the paper about the noise, the dust, and a wall that fell on Friday night, when nobody was hurt.",
    "It starts slowly, and for the first half hour I wondered whether I should stay. Then the daughter comes home, "
    "and everything that seemed idle before turns out to have been placed with care: the broken clock, the "
    "neighbour's dog, the letters in the drawer. The acting is quiet and very good, above all the mother, who says "
    "less than anybody and is the one you remember. There is one scene at the station that a lesser director would "
    "have filled with music; here you hear the rain and the announcements, and it is hard to bear. Not everything "
    "works. The business with the police in the last third belongs to another story, and the ending comes twice. "
    "But I have thought about it every day since, which I can say of few films of this year, and I would see it "
    "again tomorrow.",
)


class TextsError(Exception):
    """The file of texts cannot be used; the message names it and says why."""

    user_error = True


def texts_of(file: str | None, words: int | None, seed: int) -> list[str]:
    """The file's texts (the built-in ones where None) in random order; with `words` 1,000 made of so many of theirs.

    Raises TextsError.
    """
    dice = random.Random(seed)
    texts = list(BUILT_IN) if file is None else read(Path(file).expanduser())
    if words is not None:
        known = [word for text in texts for word in text.split()]
        return [" ".join(dice.choices(known, k=words)) for _ in range(1000)]
    dice.shuffle(texts)
    return texts


def read(path: Path) -> list[str]:
    """Its texts; empty lines are none. Raises TextsError."""
    if not path.is_file():
        raise TextsError(str(Problem("input", "be an existing file", str(path))))
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
            kept = [line for line in lines if line.strip()]
        if ".jsonl" in path.suffixes:
            texts = [json.loads(line)["text"] for line in kept]
        else:
            texts = [line.rstrip("\r\n") for line in kept]
    except (ValueError, KeyError, TypeError, EOFError, gzip.BadGzipFile) as error:
        raise TextsError(f"input {path} cannot be read: {type(error).__name__} {error}") from None
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise TextsError(str(Problem("input", "hold texts, none empty", str(path))))
    return texts
