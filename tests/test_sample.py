"""The built-in reviews keep what is promised of them."""

import json

from data_prep.sources import BUILTIN


def rows(part: str) -> list[dict]:
    return [json.loads(line) for line in (BUILTIN / "imdb" / f"{part}.jsonl").read_text().splitlines()]


def test_the_sample_is_balanced_in_every_part_and_shares_no_text_between_them():
    parts = {part: rows(part) for part in ("train", "dev", "test")}
    assert {part: len(found) for part, found in parts.items()} == {"train": 1650, "dev": 264, "test": 286}
    for found in parts.values():
        assert sum(row["label"] == "pos" for row in found) * 2 == len(found)
    assert len({row["text"] for found in parts.values() for row in found}) == 2200


def test_every_review_has_20_to_150_words():
    lengths = [len(row["text"].split()) for part in ("train", "dev", "test") for row in rows(part)]
    assert min(lengths) >= 20 and max(lengths) <= 150
