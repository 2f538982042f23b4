"""One part as an endless stream of examples: the same from every input, from any place on, in an order by the seed."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bert_mtl.batches import Window, join
from bert_mtl.config import PrepareConfig
from bert_mtl.part_reader import PartReader
from bert_mtl.records import load_manifest
from bert_mtl.tasks import DataError, make_tasks
from bert_mtl.vocabulary import make_tokenizer
from conf import entry
from data_prep.build import build

KINDS = ("tfrecord", "generator", "textline")
WORDS = "the film was not good but the plot fine dull great naïve 电影 ok!".split()
FIELDS = ("token_ids", "splits", "second_start", "task", "index")


def write_rows(folder: Path) -> list[str]:
    """900 rows of words with tags and a mood, and 30 of pairs with numbers of all shapes, some of them unlabelled; and
    the overrides that name them."""
    random = np.random.default_rng(0)
    words, pairs = [], []
    for number in range(900):
        tokens = [*random.choice(WORDS, random.integers(1, 20)).tolist(), str(number)]
        tags = None if number % 7 == 0 else [("O", "B-thing")[int(place % 3 == 0)] for place in range(len(tokens))]
        words.append({"tokens": tokens, "tags": tags, "label": ("bad", "good", None)[number % 3]})
    for number in range(30):
        row = {"label": number / 7, "labels": ["a", "b"][: number % 3], "vector": [number / 3, -1e-9]}
        row = row if number % 5 else dict.fromkeys(row)
        pairs.append({"text": f"film {number}", "text_b": " ".join(WORDS[: number % 9 + 1]), **row})
    for name, rows in {"words": words, "pairs": pairs}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heads = {
        "words": "{mood: {kind: classification, labels: [bad, good]}, things: {kind: tagging, labels: [thing]}}",
        "pairs": "{pairs: {kind: regression}, topics: {kind: multilabel, labels: [a, b]}, "
        "point: {kind: vector, dim: 2}}",
    }
    columns = {"words": "", "pairs": ", columns: {text_b: text_b}"}
    return ["~tasks.imdb"] + [
        f"+tasks.{name}={{heads: {head}, "
        f"sources: {{full: {{format: jsonl, path: '{folder}/{name}.jsonl'{columns[name]}}}}}}}"
        for name, head in heads.items()
    ]


@pytest.fixture(scope="module")
def reader(tmp_path_factory, vocab_file) -> Callable[..., PartReader]:
    """`reader("textline", "words", "dev", …)`: 720 train rows in 16 shards, dev and test of 90 each."""
    folder = tmp_path_factory.mktemp("rows")
    base = [*write_rows(folder), "data=full", "data.shard_size=45", "data.workers=1", "model=tiny"]
    base += [f"tokenizer.vocab={vocab_file}", "tokenizer.max_length=32", f"cache_dir={folder}/cache"]
    built: dict = {}

    def make(kind: str, name: str, part: str = "train", **settings) -> PartReader:
        if kind not in built:
            config = entry.compose("prepare", [*base, f"input={kind}"], PrepareConfig)
            tokenizer = make_tokenizer(config.tokenizer, config.model, config.cache_dir)
            folders = {task: build(config, task, tokenizer) for task in config.tasks}
            built[kind] = config, tokenizer, folders, make_tasks(config.tasks)
        config, tokenizer, folders, tasks = built[kind]
        data = config.data.model_copy(update=settings.pop("data", {}))
        return PartReader(folders[name], part, tasks[name], tokenizer, config.input, data, **settings)

    return make


def read(reader: PartReader, start: int, count: int) -> Window:
    """The examples `start` to `start + count` of the stream."""
    return join([reader.nothing, *reader.windows(start, count)])


def assert_same(found: Window, expected: Window) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for own, other in ((found.labels, expected.labels), (found.token_labels, expected.token_labels)):
        assert {name: values.dtype for name, values in own.items()} == {n: v.dtype for n, v in other.items()}
        for name in own:
            np.testing.assert_array_equal(own[name], other[name])


def test_examples_are_those_of_the_shards_with_their_labels_at_first_wordpieces(reader):
    dev = reader("textline", "words", "dev")
    (shard, other) = load_manifest(dev.folder).parts["dev"].shards
    assert (shard.examples, other.examples) == (45, 45)
    lines = [line.split("\t") for s in (shard, other) for line in (dev.folder / s.file).read_text().splitlines()]
    found = read(dev, 0, 90)
    encoded, words = dev.tokenizer.encode_words([text for _, _, text in lines])
    assert found.token_ids.tolist() == encoded.token_ids.values.numpy().tolist()
    assert found.index.tolist() == list(range(90)) and set(found.task) == {0}
    assert found.labels["words_mood"].tolist() == [int(mood) for mood, _, _ in lines]
    assert {-1, 0, 1} == set(found.labels["words_mood"])
    expected = [
        int(tags.split(" ")[word]) if word >= 0 else -1
        for (_, tags, _), row in zip(lines, words.to_list(), strict=True)
        for word in row
    ]
    assert found.token_labels["words_things"].tolist() == expected
    assert {-1, 0, 1} == set(expected)


@pytest.mark.parametrize("kind", ["generator", "textline"])
def test_the_inputs_give_identical_examples(reader, kind):
    for name, count in (("words", 720), ("pairs", 40)):  # the pairs into their second pass
        records, other = (reader(each, name, seed=5, shuffle=True) for each in ("tfrecord", kind))
        assert_same(read(other, 0, count), read(records, 0, count))
        assert other.lengths.tolist() == records.lengths.tolist()


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_parallel_workers_keep_the_order(reader, backend):
    parallel = reader("generator", "words", data={"workers": 2, "backend": backend}, shuffle=True)
    assert_same(read(parallel, 0, 800), read(reader("tfrecord", "words", shuffle=True), 0, 800))


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_can_be_entered_anywhere(reader, kind):
    train = reader(kind, "words", seed=2, shuffle=True)
    whole = read(train, 0, 760)
    for start in (1, 700):
        assert_same(read(train, start, 60), whole.take(np.arange(start, start + 60)))


def test_every_pass_has_every_example_once_shards_in_an_order_by_seed_task_and_pass(reader):
    train = reader("tfrecord", "words", seed=2, shuffle=True)
    passes = [train.order(number * 720, 720).tolist() for number in range(3)]
    assert all(sorted(order) == list(range(720)) for order in passes)
    assert passes[0] != passes[1] != passes[2]
    assert train.order(0, 720).tolist() == passes[0]
    assert reader("tfrecord", "words", seed=3, shuffle=True).order(0, 720).tolist() != passes[0]
    # a shard is read from its first example to its last
    sizes = [shard.examples for shard in train.manifest.parts["train"].shards]
    starts = dict(zip(np.cumsum([0, *sizes]).tolist(), sizes, strict=False))
    place = 0
    while place < 720:
        first = passes[0][place]
        assert passes[0][place : place + starts[first]] == list(range(first, first + starts[first]))
        place += starts[first]
    assert reader("tfrecord", "words").order(0, 720).tolist() == list(range(720))


def test_order_and_lengths_foretell_the_examples(reader):
    train = reader("tfrecord", "words", seed=2, shuffle=True)
    for start, count in ((0, 50), (700, 40), (5, 0), (720, 0), (30, 1500)):
        order = train.order(start, count)
        found = read(train, start, count)
        assert found.index.tolist() == order.tolist()
        assert found.lengths.tolist() == train.lengths[order].tolist()


def test_lengths_of_text_are_counted_once_and_kept(reader):
    text = reader("textline", "pairs", "dev")
    path = text.folder / f"dev-lengths-{text.tokenizer.fingerprint[:12]}.npy"
    path.unlink(missing_ok=True)
    counted = text.lengths.tolist()
    encoded = read(text, 0, 3)
    assert counted == encoded.lengths.tolist()
    np.save(path, np.array([1, 2, 3]))
    assert reader("textline", "pairs", "dev").lengths.tolist() == [1, 2, 3]
    np.save(path, np.array([1, 2]))
    with pytest.raises(DataError, match=r"lengths-\w{12}\.npy is damaged: it must have 3 lengths; got 2\. Delete it"):
        _ = reader("textline", "pairs", "dev").lengths
    path.unlink()


def test_nothing_is_a_window_of_the_same_columns(reader):
    for name in ("words", "pairs"):
        train = reader("tfrecord", name)
        assert_same(join([train.nothing, read(train, 0, 5)]), read(train, 0, 5))
        assert len(train.nothing.task) == 0


def test_a_stream_may_be_left_half_read(reader):
    for kind in KINDS:
        assert len(list(itertools.islice(reader(kind, "words").windows(600, 1000), 2))) == 2
