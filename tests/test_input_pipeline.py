"""Batches of a mixture: every example as often as planned, in an order that is a function of (seed, epoch, step)."""

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from bert_mtl.ahead import ahead
from bert_mtl.config import InputConfig, PrepareConfig
from bert_mtl.input_pipeline import Epoch, Pipeline
from bert_mtl.part_reader import PartReader
from bert_mtl.tasks import make_tasks
from bert_mtl.vocabulary import make_tokenizer
from conf import entry
from data_prep.build import build

WORDS = "the film was not good but the plot fine dull great naïve 电影 ok!".split()
ROWS = {"moods": 300, "names": 100, "alike": 60, "masked": 50}
SIZES = {"moods": 240, "names": 80, "alike": 48, "masked": 40}  # of train: dev and test take a tenth each
ALL = tuple(SIZES)


def write_tasks(folder: Path) -> list[str]:
    """Tasks of texts, of words with tags, of pairs of separate texts and of words to be masked; and their overrides."""
    random = np.random.default_rng(0)
    heads = {
        "moods": "{moods: {kind: classification, labels: [bad, good]}}",
        "names": "{names: {kind: tagging, labels: [name]}}",
        "alike": "{alike: {kind: similarity}}",
        "masked": "{masked: {kind: mlm}}",
    }
    overrides = ["~tasks.imdb"]
    for task, count in ROWS.items():
        lines = []
        for number in range(count):
            words = [*random.choice(WORDS, random.integers(1, 16)).tolist(), str(number)]
            row = {"text": " ".join(words), "label": ("bad", "good")[number % 2]}
            own = {"names": {"tokens": words, "tags": ["O"] * len(words)}, "alike": {"text_b": "ok", "label": 1}}
            row |= own.get(task, {})
            lines.append(json.dumps(row) + "\n")
        (folder / f"{task}.jsonl").write_text("".join(lines))
        columns = ", columns: {text_b: text_b}" if task == "alike" else ""
        source = f"{{format: jsonl, path: '{folder}/{task}.jsonl'{columns}}}"
        overrides.append(f"+tasks.{task}={{heads: {heads[task]}, sources: {{full: {source}}}}}")
    return overrides


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, vocab_file) -> Callable[..., Pipeline]:
    """`pipeline("moods", "names", part="dev", packing="none", …)`: batches of 16, windows of 100 examples."""
    folder = tmp_path_factory.mktemp("rows")
    base = [*write_tasks(folder), "data=full", "data.shard_size=50", "data.workers=1", "model=tiny", "input.window=100"]
    base += [f"tokenizer.vocab={vocab_file}", "tokenizer.max_length=32", f"cache_dir={folder}/cache", "input.pad_to=8"]
    built: dict = {}

    def make(*names: str, part: str = "train", kind: str = "tfrecord", counts=None, packing="packed", **settings):
        if kind not in built:
            config = entry.compose("prepare", [*base, f"input={kind}"], PrepareConfig)
            tokenizer = make_tokenizer(config.tokenizer, config.model, config.cache_dir)
            built[kind] = config, tokenizer, make_tasks(config.tasks), {}
        config, tokenizer, tasks, folders = built[kind]
        fields = InputConfig.model_fields.keys() & settings.keys()
        read = config.input.model_copy(update={"packing": packing, **{key: settings.pop(key) for key in fields}})
        settings = {"seed": 3, "shuffle": part == "train"} | settings
        for name in names:
            folders[name] = folders[name] if name in folders else build(config, name, tokenizer)
        readers = tuple(
            PartReader(folders[n], part, tasks[n], tokenizer, read, config.data, settings["seed"], settings["shuffle"])
            for n in names
        )
        counts = counts or tuple(reader.examples for reader in readers)
        return Pipeline(readers, read, **{"batch_size": 16, "counts": counts} | settings)

    return make


def plain(batches: Iterable[dict]) -> list[dict]:
    return [{key: np.asarray(values) for key, values in batch.items()} for batch in batches]


def assert_same(found: Iterable[dict], expected: Iterable[dict]) -> None:
    for step, (a, b) in enumerate(itertools.zip_longest(plain(found), plain(expected), fillvalue={})):
        assert a.keys() == b.keys(), step
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key], err_msg=f"{key} of step {step}")


def examples(batches: Iterable[dict]) -> list[tuple[int, int]]:
    """(task, place in its part) of every example, batch by batch."""
    return [
        (int(task), int(index))
        for batch in batches
        for task, index in zip(batch["task"], batch["index"], strict=True)
        if index >= 0
    ]


PACKINGS = pytest.mark.parametrize("packing", ["packed", "none"])


# what an epoch holds


@PACKINGS
def test_an_epoch_has_every_example_of_every_task_once(pipeline, packing):
    train = pipeline(*ALL, packing=packing)
    expected = sorted((task, index) for task, size in enumerate(SIZES.values()) for index in range(size))
    epoch = train.first_epoch
    for _ in range(2):
        batches = list(train.batches(epoch))
        assert sorted(examples(batches)) == expected
        assert len(batches) == train.steps(epoch)
        assert sum(batch["examples"] for batch in batches) == len(expected)
        counts = {name: sum(batch[f"count.{name}"] for batch in batches) for name in ALL}
        assert counts == SIZES
        epoch = epoch.following(train.counts)


def test_a_task_that_runs_out_starts_again_and_none_of_its_examples_comes_more_often(pipeline):
    counts = (100, 60, 120, 100)  # of 240, 80, 48 and 40
    train = pipeline(*ALL, counts=counts)
    epoch, seen = train.first_epoch, Counter()
    for number in range(1, 5):
        found = Counter(examples(train.batches(epoch)))
        assert [sum(times for (task, _), times in found.items() if task == t) for t in range(4)] == list(counts)
        seen += found
        for task, (count, size) in enumerate(zip(counts, SIZES.values(), strict=True)):
            times = [seen[task, index] for index in range(size)]
            assert max(times) - min(times) <= 1
            assert sum(times) == number * count
        epoch = epoch.following(counts)


def test_rates_may_change_from_epoch_to_epoch_and_shapes_stay(pipeline):
    train = pipeline("moods", "names", counts=(200, 50))
    epoch = train.first_epoch.following((10, 90))
    assert epoch == Epoch(1, (10, 90), (200, 50))
    batches = list(train.batches(epoch))
    assert Counter(task for task, _ in examples(batches)) == {0: 10, 1: 90}
    shapes = {key: values.shape for key, values in next(train.batches(train.first_epoch)).items()}
    assert all({key: values.shape for key, values in batch.items()} == shapes for batch in batches)


def test_the_tasks_are_spread_over_the_whole_epoch(pipeline):
    # windows of 100 examples hold 58, 20, 12 and 10 of the tasks, give or take one
    train = pipeline(*ALL, shuffle=False, packing="none", window=102)
    tasks = [task for task, _ in examples(train.batches(train.first_epoch))]
    for start in range(0, 408, 102):
        found = np.bincount(tasks[start : start + 102], minlength=4)
        assert np.abs(found - [60, 20, 12, 10]).max() <= 1


def test_the_index_is_the_stored_place_whatever_the_order(pipeline):
    train = pipeline("moods", "alike", kind="generator")
    lines = [
        [
            line.split("\t")
            for shard in reader.manifest.parts["train"].shards
            for line in (reader.folder / shard.file).read_text().splitlines()
        ]
        for reader in train.readers
    ]
    single = train.tokenizer.encode([text for _, text in lines[0]]).token_ids.to_list()
    pairs = train.tokenizer.encode([row[1] for row in lines[1]], [row[2] for row in lines[1]], separate=True)
    encoded = {"moods": single, "alike": pairs.token_ids.to_list()}
    found = 0
    for batch in train.batches(train.first_epoch):
        tokens, segments = batch["token_ids"].reshape(-1), batch["segment_ids"].reshape(-1)
        for segment in np.flatnonzero(batch["index"] >= 0):
            name, index = ALL[batch["task"][segment]], batch["index"][segment]
            own = np.isin(segments, [segment + 1, batch["partner"][segment] + 1])
            assert tokens[own].tolist() == encoded[name][index]
            assert batch[f"label.{name}"][segment] == float(lines[("moods", "alike").index(name)][index][0])
            found += 1
    assert found == 240 + 48


# order


def test_the_order_is_a_function_of_seed_and_epoch(pipeline):
    train = pipeline("moods", "names")
    epoch = train.first_epoch
    first = examples(train.batches(epoch))
    assert examples(pipeline("moods", "names").batches(epoch)) == first
    second = examples(train.batches(epoch.following(train.counts)))
    other = examples(pipeline("moods", "names", seed=4).batches(epoch))
    assert first != second and first != other
    assert examples(pipeline("moods", "names", shuffle=False).batches(epoch)) != first


@PACKINGS
def test_any_step_of_any_epoch_can_be_reached_again(pipeline, packing):
    train = pipeline(*ALL, packing=packing, counts=(100, 60, 120, 100))
    epoch = train.first_epoch
    for _ in range(2):
        whole = plain(train.batches(epoch))
        for skip in (len(whole) // 2, len(whole) - 1, len(whole)):
            assert_same(train.batches(epoch, skip), whole[skip:])
        epoch = epoch.following((90, 70, 10, 40))


def test_every_epoch_hides_other_words(pipeline):
    train = pipeline("masked")
    batches = [list(train.batches(Epoch(number, (40,), (0,)))) for number in (0, 0, 1)]
    assert_same(batches[0], batches[1])
    hidden = [sum(batch["weight.masked"].sum() for batch in epoch) for epoch in batches]
    words = train.readers[0].lengths.sum() - 2 * 40  # [CLS] and [SEP] stay
    assert all(0.12 < count / words <= 0.16 for count in hidden)
    ids = [[batch["token_ids"] for batch in epoch] for epoch in batches]
    assert not all(np.array_equal(a, b) for a, b in zip(ids[0], ids[2], strict=True))


def test_the_inputs_give_identical_batches(pipeline):
    records, other = (pipeline("moods", "names", kind=kind, counts=(130, 100)) for kind in ("tfrecord", "generator"))
    epoch = records.first_epoch.following(records.counts)  # names begin again within it
    assert_same(other.batches(epoch), records.batches(epoch))


def test_without_shuffling_padded_examples_come_by_length(pipeline):
    dev = pipeline("moods", part="dev", packing="none")
    batches = list(dev.batches(dev.first_epoch))
    assert [int(batch["examples"]) for batch in batches] == [16, 14]
    lengths = np.concatenate([(batch["segment_ids"] > 0).sum(axis=1)[: int(batch["examples"])] for batch in batches])
    assert (np.diff(lengths) >= 0).all()


# shapes


def test_packed_rows_hold_as_many_examples_on_average_as_were_asked_for(pipeline):
    train = pipeline("moods", batch_size=32)
    mean = train.readers[0].lengths.mean()
    assert train.packing.length == 64  # twice tokenizer.max_length
    assert train.packing.rows == round(32 * mean / 64)
    assert train.packing.most == max(8, round(3 * 64 / mean))
    sizes = [batch["examples"] for batch in train.batches(train.first_epoch)]
    assert 28 < np.mean(sizes[:-1]) < 36
    assert pipeline("moods", row_length=40).packing.length == 40


@pytest.mark.parametrize("settings", [{}, {"packing": "none"}, {"batch_size": 4}, {"replicas": 2}])
def test_what_is_hidden_always_has_its_place(pipeline, settings):
    train = pipeline("masked", "moods", **settings)
    lengths, number, hidden = train.readers[0].lengths, train.readers[0].task.number, []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that something should be hidden and has no place
        for batch in train.batches(train.first_epoch):
            read = lengths[batch["index"][batch["task"] == number]]
            assert batch["weight.masked"].sum() <= (read - 2).sum() * 0.15 + 0.5  # [CLS] and [SEP] stay
            hidden.append(0.15 * read.sum())
    room = 0.15 * train.layout.rows * (train.layout.length or 32)
    assert train.layout.places == np.ceil(min(2 * max(hidden), room))
    assert pipeline("moods").layout.places == 0


def test_a_mixture_that_changes_too_much_for_the_places_says_so(pipeline):
    train = pipeline("masked", "moods", counts=(4, 240))
    with pytest.warns(UserWarning, match=r"\d+ tokens are to be masked, but at most \d+ in a batch"):
        list(train.batches(train.first_epoch.following((240, 4))))


def test_an_example_that_is_much_longer_than_a_batch_does_not_make_batches_larger(pipeline):
    train = pipeline("moods", batch_size=2)
    assert train.packing.length > 1.5 * 2 * train.readers[0].lengths.mean()
    assert max(batch["examples"] for batch in train.batches(train.first_epoch)) == 2


def test_segments_have_room_for_what_rows_may_hold(pipeline):
    for name, texts in (("moods", 1), ("alike", 2)):
        packing = pipeline(name).packing
        assert pipeline(name).layout.segments == texts * packing.rows * packing.most


@pytest.mark.parametrize("settings", [{}, {"packing": "none"}, {"packing": "none", "pad_to": 32}, {"replicas": 2}])
def test_the_signature_says_the_shapes_of_all_batches(pipeline, settings):
    train = pipeline(*ALL, **settings)
    expected = plain(train.batches(train.first_epoch, 3))
    spec, packed = train.signature, "packing" not in settings
    assert {key: value.dtype.name for key, value in spec.items()} == {k: v.dtype.name for k, v in expected[0].items()}
    rows = train.packing.rows // train.replicas
    assert spec["token_ids"].shape.as_list() == [rows, 64 if packed else settings.get("pad_to")]
    static = {key: value.shape for key, value in spec.items() if value.shape.is_fully_defined()}
    assert all(batch[key].shape == shape for batch in expected for key, shape in static.items())
    assert len(static) == (len(spec) if packed or "pad_to" in settings else len(spec) - 6)


@PACKINGS
def test_replicas_share_the_rows_of_every_step(pipeline, packing):
    one, two = (pipeline(*ALL, packing=packing, replicas=replicas, batch_size=30) for replicas in (1, 2))
    epoch = one.first_epoch
    assert two.packing == one.packing and two.packing.rows % 2 == 0
    halves = plain(two.batches(epoch))
    assert len(halves) == 2 * one.steps(epoch) == 2 * two.steps(epoch)
    for whole, pair in zip(plain(one.batches(epoch)), zip(halves[::2], halves[1::2], strict=True), strict=True):
        assert sorted(examples(pair)) == sorted(examples([whole]))
        assert [half["token_ids"].shape[0] for half in pair] == [two.packing.rows // 2] * 2
        assert pair[0]["examples"] + pair[1]["examples"] == whole["examples"]
    assert_same(two.batches(epoch, 5), halves[10:])


def test_a_worker_gets_the_batches_of_its_own_replicas(pipeline):
    train = pipeline(*ALL, replicas=3, batch_size=30)
    every = list(train.batches(train.first_epoch))
    own = list(train.batches(train.first_epoch, skip=1, of=[2, 1]))
    assert len(own) == 2 * (train.steps(train.first_epoch) - 1)
    for number, batch in enumerate(own):
        expected = every[3 * (1 + number // 2) + 2 - number % 2]
        for name, array in batch.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_a_replica_may_go_without_examples(pipeline):
    dev = pipeline(*ALL, part="dev", packing="none", batch_size=4, replicas=4, counts=(13, 4, 4, 4))
    batches = list(dev.batches(dev.first_epoch))
    assert [int(batch["examples"]) for batch in batches[-4:]] == [1, 0, 0, 0]
    assert len(examples(batches)) == 25


def test_an_epoch_may_be_left_half_read(pipeline):
    train = pipeline("moods", "names", kind="generator")
    with closing(ahead(lambda: train.batches(train.first_epoch))) as batches:
        assert_same(itertools.islice(batches, 2), plain(itertools.islice(train.batches(train.first_epoch), 2)))


def test_the_inputs_are_one_key_apart(tiny_config):
    chosen = [tiny_config("train", f"input={kind}") for kind in ("tfrecord", "generator", "textline")]
    assert [config.input.kind for config in chosen] == ["tfrecord", "generator", "textline"]
    assert all(
        config.input == InputConfig(**chosen[0].input.model_dump() | {"kind": config.input.kind}) for config in chosen
    )
