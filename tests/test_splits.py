"""Parts of a source: exact numbers, label shares kept, the same for the same seed."""

import numpy as np
import pytest

from bert_mtl.config import DataConfig
from bert_mtl.tasks import DataError
from data_prep.splits import split, stratified

LABELS = np.repeat([0, 1, 2], [600, 300, 100])  # sorted by label, as IMDB's files are
DATA = DataConfig(
    source="full", path=None, limit=None, seed=1, dev_fraction=0.1, test_fraction=0.2, shard_size=10, workers=1,
    backend="loky", rebuild=False,
)  # fmt: skip


def changed(**values) -> DataConfig:
    return DATA.model_copy(update=values)


def shares(rows: np.ndarray) -> list[int]:
    return np.bincount(LABELS[rows], minlength=3).tolist()


def test_dev_and_test_come_from_train_with_its_label_shares():
    parts = split({"train": LABELS}, DATA)
    assert {part: shares(rows) for part, (_, rows) in parts.items()} == {
        "train": [420, 210, 70], "dev": [60, 30, 10], "test": [120, 60, 20],
    }  # fmt: skip
    assert {origin for origin, _ in parts.values()} == {"train"}
    every = np.concatenate([rows for _, rows in parts.values()])
    assert sorted(every) == list(range(1000))


def test_parts_that_the_source_has_are_kept_whole():
    parts = split({"train": LABELS, "dev": LABELS[:7], "test": LABELS[:5]}, DATA)
    assert {part: (origin, len(rows)) for part, (origin, rows) in parts.items()} == {
        "train": ("train", 1000), "dev": ("dev", 7), "test": ("test", 5),
    }  # fmt: skip


def test_the_limit_shortens_train_alone_and_keeps_the_shares():
    whole, limited = (split({"train": LABELS}, data) for data in (DATA, changed(limit=50)))
    assert shares(limited["train"][1]) == [30, 15, 5]
    assert set(limited["train"][1]) < set(whole["train"][1])
    for part in ("dev", "test"):
        np.testing.assert_array_equal(limited[part][1], whole[part][1])


def test_a_limit_above_the_rows_changes_nothing():
    assert len(split({"train": LABELS}, changed(limit=5000))["train"][1]) == 700


def test_the_order_is_shuffled_and_a_function_of_the_seed_alone():
    once, again, other = (split({"train": LABELS}, changed(seed=seed))["train"][1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    # runs of one label would be 420 + 210 + 70 rows long if nothing were shuffled
    assert np.mean(np.diff(LABELS[once]) != 0) > 0.4


def test_an_empty_part_is_refused_with_the_key_that_makes_it_larger():
    with pytest.raises(DataError, match=r"data.dev_fraction must give dev an example; got 0.1 of 3 rows"):
        split({"train": LABELS[:3]}, DATA)
    with pytest.raises(DataError, match="the train part must keep an example"):
        split({"train": LABELS[:2]}, changed(dev_fraction=0.49, test_fraction=0.5))


@pytest.mark.parametrize(("size", "counts"), [(5, [3, 2, 0]), (4, [2, 1, 1]), (6.4, [3, 2, 1]), (9, [5, 3, 1])])
def test_rounding_goes_to_the_largest_remainders(size, counts):
    labels = np.repeat([0, 1, 2], [5, 3, 1])
    assert np.bincount(labels[stratified(labels, size)], minlength=3).tolist() == counts
