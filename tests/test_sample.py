"""The built-in data of every task keeps what is promised of it."""

import json
import re
import zlib
from collections import Counter

import pytest

from data_prep.sources import BUILTIN

PARTS = ("train", "dev", "test")
SIZES = {
    "imdb": (1650, 264, 286),
    "trec": (360, 60, 60),
    "goemotions": (560, 84, 84),
    "snips": (420, 70, 70),
    "stsb": (360, 60, 60),
    "wnut17": (300, 50, 50),
    "imdb_vectors": (64, 16, 16),
}
QUESTIONS = {"ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"}
EMOTIONS = set(
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief "
    "remorse sadness surprise neutral".split()
)
INTENTS = set(
    "AddToPlaylist BookRestaurant GetWeather PlayMusic RateBook SearchCreativeWork SearchScreeningEvent".split()
)
ENTITIES = {
    "snips": set(
        "album artist best_rating city condition_description condition_temperature country cuisine current_location "
        "entity_name facility genre geographic_poi location_name movie_name movie_type music_item object_location_type "
        "object_name object_part_of_series_type object_select object_type party_size_description party_size_number "
        "playlist playlist_owner poi rating_unit rating_value restaurant_name restaurant_type served_dish service sort "
        "spatial_relation state timeRange track year".split()
    ),
    "wnut17": {"corporation", "creative-work", "group", "location", "person", "product"},
}


def rows(task: str, part: str) -> list[dict]:
    return [json.loads(line) for line in (BUILTIN / task / f"{part}.jsonl").read_text("utf-8").splitlines()]


def every(task: str) -> list[dict]:
    return [row for part in PARTS for row in rows(task, part)]


def texts(row: dict) -> list[str]:
    """The texts of a row without case and punctuation, so that near repetitions count as repetitions."""
    given = [row[key] for key in ("text", "text_a", "text_b") if key in row] or [" ".join(row["tokens"])]
    return [" ".join(re.findall(r"\w+", text.lower())) for text in given]


@pytest.mark.parametrize("task", SIZES)
def test_every_part_has_its_size_and_no_text_stands_in_two_parts_or_twice_in_one(task):
    parts = {part: rows(task, part) for part in PARTS}
    assert tuple(len(found) for found in parts.values()) == SIZES[task]
    shown = Counter(text for found in parts.values() for text in {text for row in found for text in texts(row)})
    assert [text for text, times in shown.items() if times > 1] == []
    repeated = Counter(frozenset(texts(row)) for found in parts.values() for row in found)
    assert [key for key, times in repeated.items() if times > 1] == []


@pytest.mark.parametrize(
    ("task", "labels"),
    [("imdb", {"neg", "pos"}), ("trec", QUESTIONS), ("snips", INTENTS)],
    ids=("imdb", "trec", "snips"),
)
def test_the_labels_are_balanced_in_every_part(task, labels):
    for part in PARTS:
        found = rows(task, part)
        assert Counter(row["label"] for row in found) == dict.fromkeys(labels, len(found) // len(labels))


def test_every_review_has_20_to_150_words():
    lengths = [len(row["text"].split()) for row in every("imdb")]
    assert min(lengths) >= 20 and max(lengths) <= 150


@pytest.mark.parametrize("task", [task for task in SIZES if task != "imdb"])
def test_the_texts_beside_the_reviews_have_at_most_24_words(task):
    assert max(len(text.split()) for row in every(task) for text in texts(row)) <= 24


def test_each_emotion_is_there_at_least_20_times_in_train_and_a_fifth_of_the_comments_has_two():
    for part, least in zip(PARTS, (20, 3, 3), strict=True):
        found = Counter(label for row in rows("goemotions", part) for label in row["labels"])
        assert set(found) == EMOTIONS and min(found.values()) >= least
    amounts = Counter(len(row["labels"]) for row in every("goemotions"))
    assert amounts == {1: 584, 2: 144}
    assert all(len(set(row["labels"])) == len(row["labels"]) for row in every("goemotions"))


@pytest.mark.parametrize("task", ENTITIES)
def test_the_tags_are_valid_bio_one_a_word_and_train_has_every_entity(task):
    for row in every(task):
        assert len(row["tags"]) == len(row["tokens"]) and all(re.fullmatch(r"\S+", word) for word in row["tokens"])
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert tag == "O" or (tag[:2] in ("B-", "I-") and tag[2:] in ENTITIES[task])
            assert not tag.startswith("I-") or before in ("B-" + tag[2:], tag)
    assert {tag[2:] for row in rows(task, "train") for tag in row["tags"] if tag != "O"} == ENTITIES[task]


def test_the_words_of_snips_are_lower_case_and_two_in_five_tweets_have_no_entity():
    assert all(word == word.lower() for row in every("snips") for word in row["tokens"])
    for part, size in zip(PARTS, SIZES["wnut17"], strict=True):
        assert sum(set(row["tags"]) == {"O"} for row in rows("wnut17", part)) == size * 2 // 5


def test_scores_of_pairs_are_quarters_from_0_to_5_spread_over_the_range():
    for part, size in zip(PARTS, SIZES["stsb"], strict=True):
        scores = [row["label"] for row in rows("stsb", part)]
        assert all(isinstance(score, float) and 0 <= score <= 5 and (4 * score).is_integer() for score in scores)
        assert min(Counter(min(int(score), 4) for score in scores).values()) >= size // 12
    assert len({row["label"] for row in rows("stsb", "train")}) == 21


def test_vectors_are_word_counts_in_eight_buckets_by_crc32_of_length_1():
    for row in every("imdb_vectors"):
        counts = [0] * 8
        for word in re.findall(r"[a-z']+", row["text"].lower()):
            counts[zlib.crc32(word.encode()) % 8] += 1
        length = sum(count**2 for count in counts) ** 0.5
        assert row["vector"] == pytest.approx([count / length for count in counts], abs=1e-6)
