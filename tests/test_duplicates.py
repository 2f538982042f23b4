"""Texts that stand in two parts: found whatever their spelling, left out of train, counted."""

import gzip
import json
import logging
import os
from pathlib import Path

import pytest

from bert_mtl.config import TaskConfig
from data_prep.duplicates import exclusions, key, keys, without
from data_prep.rows import Row

SHARED = Path(os.environ.get("BERT_MTL_SHARED", Path(__file__).parents[2] / "shared" / "data"))


def rows(*texts: str) -> list[Row]:
    return [Row({"text": text, "label": number}, f"a:{number}") for number, text in enumerate(texts)]


@pytest.mark.parametrize("other", ["it does n't  WORK !", "It doesn't work", "it\tdoesn't work…"])
def test_spelling_does_not_tell_texts_apart(other):
    assert key({"text": "It doesn't work."}) == key({"text": other})
    assert len(key({"text": other})) == 16


def test_other_texts_have_other_keys():
    texts = ["a", "b", "1", "é", "e", "你好", "你", "!", "?", "", "_"]
    assert len({key({"text": text}) for text in texts}) == len(texts)


def test_a_pair_is_the_same_either_way_round_and_not_its_texts_in_one():
    one = key({"text": "a", "text_b": "b"})
    assert one == key({"text": "b", "text_b": "a"})
    assert len({one, key({"text": "ab"}), key({"text": "a b"}), key({"text": "a", "text_b": "c"})}) == 3


def test_labels_do_not_count():
    assert keys(rows("a", "A!", "b")) == {key({"text": "a"}), key({"text": "b"})}


def test_rows_that_stand_in_other_parts_are_left_out_and_counted(caplog):
    caplog.set_level(logging.INFO)
    excluded = {"dev": keys(rows("Same.", "x")), "other.test": keys(rows("same", "two"))}
    kept = list(without(rows("same", "one", "two", "SAME"), excluded, "mood"))
    assert [row.values["text"] for row in kept] == ["one"]
    assert caplog.messages == [
        "mood: 2 of 4 train rows left out, as their texts stand in dev",
        "mood: 1 of 4 train rows left out, as their texts stand in other.test",
    ]


def test_parts_of_other_tasks_count_where_those_tasks_are_there():
    def task(*exclude: str) -> TaskConfig:
        heads = {"a": {"kind": "classification", "labels": ["x", "y"]}}
        return TaskConfig.model_validate(
            {"heads": heads, "sources": {"full": {"format": "csv"}}, "exclude": list(exclude)}
        )

    tasks = {"mood": task("dev", "test", "news.test", "gone.test"), "news": task()}
    assert exclusions("mood", tasks) == [("mood", "dev"), ("mood", "test"), ("news", "test")]
    assert exclusions("news", tasks) == []
    with pytest.raises(ValueError, match="name dev, test, or a part of another task such as imdb.test"):
        task("train")


@pytest.mark.skipif(not SHARED.is_dir(), reason="no data")
@pytest.mark.parametrize(("train", "test", "count"), [("stsb", "mrpc", 499), ("chnsenticorp", "chnsenticorp", 335)])
def test_known_duplicates_of_real_data_are_found(train, test, count):
    def real(file: str) -> list[bytes]:
        with gzip.open(SHARED / f"{file}.jsonl.gz", "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        return [key({"text": r.get("text_a") or r["text"], "text_b": r.get("text_b", "")}) for r in records]

    seen = set(real(f"{train}.train"))
    assert sum(own in seen for own in real(f"{test}.test")) == count
