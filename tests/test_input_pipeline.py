"""The three inputs: identical batches, in an order that is a function of (seed, epoch, step) alone."""

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from bert_mtl.config import InputConfig
from bert_mtl.input_pipeline import Pipeline, text_batches
from bert_mtl.records import load_manifest
from bert_mtl.vocabulary import make_tokenizer
from data_prep.build import build

KINDS = ("tfrecord", "generator", "textline")
WORDS = "the film was not good but the plot fine dull great naïve 电影 ok!".split()
PAIRS = "tasks.imdb.sources.full.columns={text: text, text_b: more}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    lines = []
    for number in range(700):
        words = random.choice(WORDS, random.integers(1, 40)).tolist()
        row = {"text": " ".join([*words, str(number)]), "more": "one\ttwo\nthree", "label": ("neg", "pos")[number % 2]}
        lines.append(json.dumps(row) + "\n")
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(lines))
    return path


@pytest.fixture
def pipeline(tiny_config, rows) -> Callable[..., Pipeline]:
    """`pipeline("tfrecord", "dev", …)`: 560 train rows in 5 shards, windows of 200, batches of 16."""

    def make(kind: str, part: str = "train", *overrides: str, **settings) -> Pipeline:
        data = ["data=full", f"data.path={rows}", "tasks.imdb.sources.full.format=jsonl", "data.shard_size=128"]
        config = tiny_config(
            "prepare", *data, f"input={kind}", "input.window=200", "input.pad_to=8", "data.workers=1", *overrides
        )
        tokenizer = make_tokenizer(config.tokenizer, config.model, config.cache_dir)
        folder = build(config, "imdb", tokenizer)
        given = {"batch_size": 16, "seed": 3, "shuffle": part == "train"} | settings
        return Pipeline(folder, part, tokenizer, config.input, config.data, **given)

    return make


def plain(batches: Iterable[dict]) -> list[dict]:
    return [{key: np.asarray(values) for key, values in batch.items()} for batch in batches]


def assert_same(found: Iterable[dict], expected: Iterable[dict]) -> None:
    for step, (a, b) in enumerate(itertools.zip_longest(plain(found), plain(expected), fillvalue={})):
        assert a.keys() == b.keys(), step
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=f"{key} of step {step}")


def indices(batches: Iterable[dict]) -> list[int]:
    return [int(index) for batch in batches for index in batch["index"] if index >= 0]


@pytest.mark.parametrize("kind", ["generator", "textline"])
def test_the_inputs_give_identical_batches(pipeline, kind):
    for part, epochs, skip in (("train", 2, 0), ("train", 2, 14), ("dev", 1, 0), ("dev", 1, 3)):
        records, other = pipeline("tfrecord", part), pipeline(kind, part)
        expected = plain(records.dataset(skip=skip, epochs=epochs))
        assert len(expected) == epochs * records.steps_per_epoch - skip == epochs * other.steps_per_epoch - skip
        assert_same(other.dataset(skip=skip, epochs=epochs), expected)


@pytest.mark.parametrize("kind", ["generator", "textline"])
def test_the_inputs_give_identical_pairs(pipeline, kind):
    assert_same(pipeline(kind, "dev", PAIRS).dataset(), pipeline("tfrecord", "dev", PAIRS).dataset())


@pytest.mark.parametrize(("data", "workers"), [("data.backend=threading", 2), ("data.backend=loky", 2)])
def test_parallel_workers_keep_the_order(pipeline, data, workers):
    parallel = pipeline("generator", "train", data, f"data.workers={workers}", "input.window=512")
    assert_same(parallel.batches(), pipeline("tfrecord", "train", "input.window=512").batches())


def test_an_epoch_has_every_example_once(pipeline):
    train = pipeline("tfrecord")
    assert train.examples == 560
    assert train.steps_per_epoch == 13 + 13 + 10
    for epoch in (0, 1):
        assert sorted(indices(train.batches(epoch))) == list(range(560))


def test_the_index_is_the_stored_place_whatever_the_order(pipeline):
    train = pipeline("textline")
    shards = load_manifest(train.folder).parts["train"].shards
    lines = [line.split("\t") for shard in shards for line in (train.folder / shard.file).read_text().splitlines()]
    tokens = train.tokenizer.encode([text for _, text in lines]).token_ids
    for batch in itertools.islice(train.batches(epoch=1), 20):
        for row, index in enumerate(batch["index"]):
            if index >= 0:
                ids = batch["token_ids"][row]
                assert ids[ids > 0].tolist() == tokens[index].numpy().tolist()
                assert batch["label.imdb"][row] == int(lines[index][0])


def test_the_order_is_a_function_of_seed_and_epoch(pipeline):
    first = indices(pipeline("tfrecord").batches(0))
    assert indices(pipeline("tfrecord").batches(0)) == first
    for other in (pipeline("tfrecord").batches(1), pipeline("tfrecord", seed=4).batches(0)):
        found = indices(other)
        assert found != first
        # not by chance the same in parts: a shuffle leaves one of 560 in its place on average
        assert np.sum(np.array(found) == np.array(first)) < 20


@pytest.mark.parametrize("kind", KINDS)
def test_any_step_of_any_epoch_can_be_reached_again(pipeline, kind):
    train = pipeline(kind)
    whole = plain([*train.batches(1), *train.batches(2)])
    for skip in (5, 13, 35):
        assert_same(itertools.islice(train.dataset(1, skip, 2), 3), whole[skip : skip + 3])
    assert plain(train.batches(1, skip=36)) == []


def test_without_shuffling_the_order_is_that_of_the_lengths(pipeline):
    dev = plain(pipeline("tfrecord", "dev").batches())
    assert [int(batch["weight"].sum()) for batch in dev] == [16] * 4 + [6]
    lengths = np.concatenate([(batch["segment_ids"] > 0).sum(axis=1)[batch["weight"] > 0] for batch in dev])
    assert (np.diff(lengths) >= 0).all()


def test_a_batch_is_cut_for_replicas_without_losing_an_example(pipeline):
    one, two = pipeline("tfrecord"), pipeline("tfrecord", replicas=2)
    assert two.steps_per_epoch == one.steps_per_epoch
    halves = plain(two.dataset(epochs=1))
    assert len(halves) == 2 * one.steps_per_epoch
    for whole, pair in zip(plain(one.batches()), zip(halves[::2], halves[1::2], strict=True), strict=True):
        assert sorted(indices(pair)) == sorted(indices([whole]))
        assert [half["token_ids"].shape[0] for half in pair] == [8, 8]
    assert_same(two.dataset(skip=5), halves[10:])


def test_a_full_row_length_makes_every_shape_static(pipeline):
    train = pipeline("tfrecord", "train", "input.pad_to=32", "tokenizer.max_length=32")
    assert train.dataset().element_spec["token_ids"].shape == (16, 32)
    assert {batch["token_ids"].shape for batch in train.batches()} == {(16, 32)}


def test_a_dataset_may_be_left_half_read(pipeline):
    for kind in KINDS:
        assert len(list(itertools.islice(pipeline(kind).dataset(epochs=3), 2))) == 2


def test_texts_come_in_batches_by_length_with_their_places(pipeline):
    tokenizer = pipeline("tfrecord").tokenizer
    texts = ["the film was good", "ok", "the plot was not good but fine", "dull film"]
    batches = plain(text_batches(tokenizer, texts, None, batch_size=3, pad_to=4))
    assert [batch["index"].tolist() for batch in batches] == [[1, 3, 0], [2, -1, -1]]
    assert [batch["token_ids"].shape for batch in batches] == [(3, 8), (3, 12)]
    for batch in batches:
        for row, index in enumerate(batch["index"]):
            ids = batch["token_ids"][row]
            expected = tokenizer.encode([texts[index]]).token_ids.to_list()[0] if index >= 0 else []
            assert ids[ids > 0].tolist() == expected


def test_the_second_texts_of_pairs_have_type_1(pipeline):
    (batch,) = text_batches(pipeline("tfrecord").tokenizer, ["the film"], ["was good"], batch_size=1, pad_to=1)
    assert batch["type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]


def test_the_inputs_are_one_key_apart(tiny_config):
    chosen = [tiny_config("train", f"input={kind}") for kind in KINDS]
    assert [config.input.kind for config in chosen] == list(KINDS)
    assert all(
        config.input == InputConfig(**chosen[0].input.model_dump() | {"kind": config.input.kind}) for config in chosen
    )
