"""Building records: exact contents, nothing done twice, everything rebuilt that must be, and nothing half-written."""

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.config import PrepareConfig
from bert_mtl.labels import LabelSpec
from bert_mtl.records import lengths_file, load_manifest, parse_records, sha256
from bert_mtl.tasks import DataError, make_tasks
from bert_mtl.vocabulary import make_tokenizer
from conf import entry
from data_prep import build as building
from data_prep.build import build, fingerprint, prepare, resolve_source

FULL = ["data=full", "data.workers=1", "tasks.imdb.sources.full.format=jsonl"]


def write_rows(path: Path, count: int = 60, text: str = "the film number {} is good") -> Path:
    """A third of the rows is neg, the others are pos."""
    lines = [json.dumps({"text": text.format(i), "label": "neg" if i % 3 == 0 else "pos"}) for i in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def built(config: PrepareConfig, task: str = "imdb") -> Path:
    return build(config, task, make_tokenizer(config.tokenizer, config.model, config.cache_dir))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir()}


def parsed(folder: Path, part: str, *labels: LabelSpec) -> tuple[list, list, dict]:
    """Token ids, second starts and labels of the records of a part."""
    files = [str(folder / shard.file) for shard in load_manifest(folder).parts[part].shards]
    stored = next(iter(tf.data.TFRecordDataset(files).batch(10_000)))
    token_ids, second_start, found = parse_records(stored, labels or [LabelSpec("imdb", 0, "text")])
    plain = {name: v.to_list() if isinstance(v, tf.RaggedTensor) else v.numpy().tolist() for name, v in found.items()}
    return token_ids.to_list(), second_start.numpy().tolist(), plain


def statistics(folder: Path, part: str = "train") -> dict:
    return load_manifest(folder).parts[part].statistics


@pytest.fixture
def config(tiny_config, tmp_path):
    """`config("data.limit=9", …)`: sixty rows of text, to be built."""
    path = write_rows(tmp_path / "rows.jsonl")
    return lambda *overrides: tiny_config("prepare", *FULL, f"data.path={path}", *overrides)


@pytest.fixture
def tasks(tmp_path, vocab_file):
    """`tasks(words=(heads, rows, more keys, more keys of the source), …)`: the configuration of tasks of one's own."""

    def make(*overrides: str, **given: tuple) -> PrepareConfig:
        own = ["~tasks.imdb", "data=full", "data.workers=1", "model=tiny", f"tokenizer.vocab={vocab_file}"]
        for name, (heads, rows, *more) in given.items():
            parts = rows if isinstance(rows, dict) else {"train": rows}
            for part, examples in parts.items():
                (tmp_path / f"{name}.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
            source = f"{{format: jsonl, path: '{tmp_path}/{name}.{{part}}.jsonl'{''.join(more[1:])}}}"
            own.append(f"+tasks.{name}={{heads: {heads}, sources: {{full: {source}}}{''.join(more[:1])}}}")
        return entry.compose("prepare", [*own, f"cache_dir={tmp_path}/cache", *overrides], PrepareConfig)

    return make


# what is written


def test_records_hold_every_example_once_with_its_ids_and_label(config):
    tokenizer = make_tokenizer(config().tokenizer, config().model, "")
    folder = built(config("data.shard_size=20"))
    texts = [f"the film number {i} is good" for i in range(60)]
    expected = sorted(
        zip(tokenizer.encode(tf.constant(texts)).token_ids.to_list(), [i % 3 > 0 for i in range(60)], strict=True)
    )
    found = []
    for part in ("train", "dev", "test"):
        token_ids, second_start, labels = parsed(folder, part)
        found += zip(token_ids, labels["imdb"], strict=True)
        assert second_start == [len(ids) for ids in token_ids]
        lengths = lengths_file(folder, part, tokenizer.fingerprint)
        assert np.load(lengths).tolist() == [len(ids) for ids in token_ids]
    assert sorted(found) == expected


def test_the_manifest_counts_examples_labels_and_truncated_rows(config):
    folder = built(config("data.shard_size=20", "tokenizer.max_length=8", "input.pad_to=8"))
    manifest = load_manifest(folder)
    assert {name: [shard.examples for shard in part.shards] for name, part in manifest.parts.items()} == {
        "train": [16, 16, 16], "dev": [6], "test": [6],
    }  # fmt: skip
    assert statistics(folder) == {"imdb": {"neg": 16, "pos": 32}}
    assert statistics(folder, "dev") == statistics(folder, "test") == {"imdb": {"neg": 2, "pos": 4}}
    # "number" is not in the vocabulary: every row is cut
    assert manifest.parts["train"].truncated == 48
    lengths = {path.name.rpartition("-")[0]: np.load(path).tolist() for path in folder.glob("*.npy")}
    assert lengths == {"train-lengths": [8] * 48, "dev-lengths": [8] * 6, "test-lengths": [8] * 6}
    assert manifest.task == "imdb" and manifest.source == "full" and not manifest.pair
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".npy") == sorted(
        ["manifest.json", *(shard.file for part in manifest.parts.values() for shard in part.shards)]
    )


def test_the_share_of_truncated_texts_is_reported(config, caplog):
    caplog.set_level(logging.INFO)
    built(config("tokenizer.max_length=8", "input.pad_to=8"))
    assert (
        "imdb (full) train: 48 examples (neg 16, pos 32), 8 tokens on average, 8 at most, 100.0% of the texts truncated"
    ) in caplog.messages


def test_pairs_keep_where_the_second_text_begins(config, tmp_path):
    rows = [{"a": "the film", "b": "is good", "label": "pos"}, {"a": "the film", "b": "is bad", "label": "neg"}] * 20
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = built(config("tasks.imdb.sources.full.columns={text: a, text_b: b}"))
    assert load_manifest(folder).pair
    token_ids, second_start, _ = parsed(folder, "dev")
    assert set(second_start) == {4} and {len(ids) for ids in token_ids} == {7}
    text = built(config("tasks.imdb.sources.full.columns={text: a, text_b: b}", "input=textline"))
    (shard,) = load_manifest(text).parts["dev"].shards
    assert set((text / shard.file).read_text().splitlines()) == {"1\tthe film\tis good", "0\tthe film\tis bad"}


@pytest.mark.parametrize("limit", ["data.limit=12", "tasks.imdb.limit=12"])
def test_the_limit_shortens_train_and_leaves_dev_and_test(config, limit):
    whole, limited = built(config()), built(config(limit))
    assert statistics(limited) == {"imdb": {"neg": 4, "pos": 8}}
    shards = [[load_manifest(folder).parts[part].shards for part in ("dev", "test")] for folder in (whole, limited)]
    assert shards[0] == shards[1]
    assert built(config("data.limit=30", "tasks.imdb.limit=12")) == limited


def test_a_second_text_apart_has_a_first_token_of_its_own(tasks):
    rows = [{"text": "the film", "text_b": "is good"}] * 20
    config = tasks(alike=("{alike: {kind: similarity}}", rows, "", ", columns: {text_b: text_b}"))
    spec = LabelSpec("alike", 0, "text", "float32", needs_label=False)
    token_ids, second_start, labels = parsed(built(config, "alike"), "dev", spec)
    cls, sep = (make_tokenizer(config.tokenizer, config.model, "").special_ids[place] for place in (2, 3))
    assert [ids[4] for ids in token_ids] == [cls] * 2 and [ids.count(sep) for ids in token_ids] == [2] * 2
    assert second_start == [4] * 2 and np.isnan(labels["alike"]).all()


def test_every_kind_of_label_is_stored_and_counted(tasks):
    rows = [
        {
            "tokens": ["anna", "was", "good"],
            "tags": None if number % 2 else ["B-person", "O", "O"],
            "mood": ("bad", "good", None)[number % 3],
            "labels": ["plot"] if number % 2 else [],
            "stars": number % 5,
        }
        for number in range(60)
    ]
    heads = (
        "{mood: {kind: classification, labels: [bad, good]}, who: {kind: tagging, labels: [person]}, "
        "topics: {kind: multilabel, labels: [plot, music]}, stars: {kind: regression}}"
    )
    config = tasks("data.shard_size=13", words=(heads, rows))
    folder = built(config, "words")
    specs = make_tasks(config.tasks)["words"].labels
    found = [parsed(folder, part, *specs) for part in ("train", "dev", "test")]
    stars = [value for _, _, labels in found for value in labels["words_stars"]]
    assert sorted(stars) == sorted(float(number % 5) for number in range(60))
    total = {"train": 48, "dev": 6, "test": 6}
    for part, (_, _, labels) in zip(total, found, strict=True):
        counted = statistics(folder, part)
        moods = labels["words_mood"]
        assert counted["words_mood"] == {"bad": moods.count(0), "good": moods.count(1)}
        assert moods.count(-1) == total[part] / 3  # every group keeps its share, the unlabelled too
        assert counted["words_topics"]["label plot"] == sum(topics[0] for topics in labels["words_topics"])
        assert counted["words_stars"]["examples"] == total[part]
        assert counted["words_stars"]["sum"] == sum(labels["words_stars"])
        tagged = [tags for tags in labels["words_who"] if set(tags) != {-1}]
        assert {tuple(n for n in tags if n >= 0) for tags in tagged} == {(1, 0, 0)}
        assert counted["words_who"]["person"] == len(tagged)


def test_words_to_be_masked_need_no_label(tasks, caplog):
    caplog.set_level(logging.INFO)
    config = tasks("input=textline", masked=("{masked: {kind: mlm}}", [{"text": "the film"}] * 20))
    folder = built(config, "masked")
    assert statistics(folder) == {"masked": {}}
    (shard,) = load_manifest(folder).parts["dev"].shards
    assert (folder / shard.file).read_text() == "the film\n" * 2
    assert "masked (full) dev: 2 examples" in caplog.text


def test_train_rows_that_stand_in_parts_to_be_judged_by_are_left_out(tasks, caplog):
    caplog.set_level(logging.INFO)
    head = "{{{}: {{kind: classification, labels: [bad, good]}}}}"
    rows = [{"text": f"the film number {number}", "label": "good"} for number in range(40)]
    other = {"train": rows[20:30], "dev": rows[30:35], "test": [{"text": "The FILM, number 39!", "label": "bad"}]}
    config = tasks(
        "input=textline",
        own=(head.format("own"), {"train": rows, "dev": rows[:3], "test": rows[3:7]}, ", exclude: [test, other.test]"),
        other=(head.format("other"), other),
    )
    folder = built(config, "own")
    shards = load_manifest(folder).parts["train"].shards
    lines = [line for shard in shards for line in (folder / shard.file).read_text().splitlines()]
    kept = {int(line.rpartition(" ")[2]) for line in lines}
    assert kept == set(range(40)) - {3, 4, 5, 6, 39}  # dev is not named
    assert "own: 4 of 40 train rows left out, as their texts stand in own.test" in caplog.messages
    assert "own: 1 of 40 train rows left out, as their texts stand in other.test" in caplog.messages
    # what is left out is part of what the records are
    alone = config.model_copy(update={"tasks": {"own": config.tasks["own"]}})
    assert built(alone, "own") != folder
    assert load_manifest(built(alone, "own")).parts["train"].examples == 36


def test_imdb_s_archive_and_folder_hold_the_same_examples(tiny_config, tmp_path):
    for part, label, number in [
        (p, label, n) for p in ("train", "test") for label in ("neg", "pos") for n in range(10)
    ]:
        path = tmp_path / "aclImdb" / part / label / f"{number}_1.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the film {part} {label} {number}")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "aclImdb", "aclImdb")
    for path in ("a.tar.gz", "aclImdb"):
        folder = built(tiny_config("prepare", "data=full", f"data.path={tmp_path / path}", "input=textline"))
        parts = load_manifest(folder).parts
        lines = {part: (folder / data.shards[0].file).read_text() for part, data in parts.items()}
        assert sorted(lines["test"].splitlines()) == sorted(
            f"{int(label == 'pos')}\tthe film test {label} {n}" for label in ("neg", "pos") for n in range(10)
        )
        assert statistics(folder, "dev") == {"imdb": {"neg": 1, "pos": 1}}
        assert statistics(folder) == {"imdb": {"neg": 9, "pos": 9}}


def test_own_data_needs_a_yaml_alone(tmp_path, vocab_file, capsys):
    (tmp_path / "my.csv").write_text("stars,review\n" + "good,a fine film\nbad,a dull film\n" * 10)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "shop.yaml").write_text(
        f"""# @package tasks.shop
heads:
  stars: {{kind: classification, labels: [bad, good]}}
sources:
  full: {{format: csv, path: {tmp_path / "my.csv"}, columns: {{text: review, stars: stars}}}}
"""
    )
    argv = ["--config-dir", str(tmp_path / "conf"), "task=shop", "data=full", "model=tiny", "data.workers=1"]
    argv += [f"tokenizer.vocab={vocab_file}", f"cache_dir={tmp_path / 'cache'}"]
    entry.main("prepare", PrepareConfig, prepare, argv=argv)
    (folder,) = (path for path in (tmp_path / "cache/records").iterdir() if path.is_dir())
    assert f"records: {folder}" in capsys.readouterr().out
    assert statistics(folder) == {"shop_stars": {"bad": 8, "good": 8}}


# what is built again


def test_nothing_is_done_twice(config):
    before = {path: path.stat().st_mtime_ns for path in built(config()).iterdir()}
    after = {path: path.stat().st_mtime_ns for path in built(config()).iterdir()}
    assert before == after


def test_a_forced_rebuild_writes_the_same_bytes_again(config):
    folder = built(config())
    before, times = contents(folder), {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert built(config("data.rebuild=true")) == folder
    assert contents(folder) == before
    assert all(path.stat().st_mtime_ns > times[path] for path in folder.iterdir())


@pytest.mark.parametrize(
    "override",
    [
        "data.seed=7",
        "data.limit=10",
        "data.dev_fraction=0.2",
        "data.test_fraction=0.2",
        "data.shard_size=7",
        "tokenizer.max_length=64",
        "tokenizer.truncation=tail",
        "tokenizer.lowercase=false",
        "tasks.imdb.heads.imdb.labels=[pos,neg]",
        "tasks.imdb.sources.full.columns={text: label, imdb: text}",
        "tasks.imdb.sources.full.format=csv",
    ],
)
def test_every_setting_that_the_records_depend_on_is_in_the_fingerprint(config, override):
    assert mark(config(override)) != mark(config())


@pytest.mark.parametrize(
    "override", ["data.workers=2", "data.backend=threading", "input.window=10", "model.dropout=0.5"]
)
def test_settings_that_change_no_record_build_nothing_again(config, override):
    assert mark(config(override)) == mark(config())


def test_the_tokenizer_counts_for_tokenised_records_only(config, tmp_path, vocab_file):
    longer = tmp_path / "vocab.txt"
    longer.write_text(vocab_file.read_text() + "more\n")
    assert mark(config(f"tokenizer.vocab={longer}")) != mark(config())
    folders = {
        built(config("input=textline", *other)) for other in ([], [f"tokenizer.vocab={longer}"], ["input=generator"])
    }
    assert len(folders) == 1


def test_changed_data_is_built_again_in_files_and_in_folders(config, tmp_path):
    first = built(config())
    write_rows(tmp_path / "rows.jsonl", text="the plot number {} is dull")
    second = built(config())
    assert first != second and contents(first) != contents(second)
    marks = []
    for text in ("good", "fine", "bad!"):
        path = tmp_path / "labels" / "pos" / "1.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, ns=(1, len(marks)))
        marks.append(mark(config(f"data.path={tmp_path / 'labels'}", "tasks.imdb.sources.full.format=folder")))
    assert len(set(marks)) == 3


def mark(config: PrepareConfig) -> str:
    tokenizer = make_tokenizer(config.tokenizer, config.model, config.cache_dir)
    return fingerprint(config, "imdb", resolve_source(config, "imdb"), tokenizer)


# what goes wrong


def leftovers(config: PrepareConfig) -> list[str]:
    """All that a failed build left in the cache, but for locks."""
    root = Path(config.cache_dir) / "records"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.name.endswith(".lock"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            '{"text": "fine", "label": "pso"}',
            "rows.jsonl:61: the label of head imdb must be listed; got pso. Options: neg, pos.",
        ),
        ('{"text": " ", "label": "pos"}', "rows.jsonl:61: text must not be empty; got ' '."),
        ('{"text": "fine"}', "rows.jsonl:61: columns.imdb must name a column of the file; got label. Options: text."),
        ("{", "rows.jsonl:61: the line must be one JSON object;"),
    ],
)
def test_a_wrong_row_is_named_and_nothing_stays_behind(config, tmp_path, rows, said):
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write(rows + "\n")
    threads = threading.active_count()
    with pytest.raises(DataError) as caught:
        built(config())
    assert str(caught.value).startswith(said)
    assert leftovers(config()) == []
    until = time.monotonic() + 10  # a thread that was told to end may take a moment on a busy machine
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == threads, "the progress bar still runs"


def test_an_empty_file_and_one_row_are_refused(config, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError, match="the train part of task imdb must hold at least one example; got none"):
        built(config())
    write_rows(tmp_path / "rows.jsonl", count=1)
    with pytest.raises(DataError, match="data.test_fraction must give test an example; got 0.1 of 1 rows"):
        built(config())
    assert leftovers(config()) == []


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            {"train": [5], "dev": [], "test": [5]},
            "the dev part of task words must hold at least one example; got none.",
        ),
        (
            {"train": [5, 4]},
            "words.train.jsonl:2: the labels of head words must be as many as the 5 words; got 4.",
        ),
        ({"train": [5], "dev": [5, None]}, "data.test_fraction must give test an example; got 0.1 of 1 rows."),
        ({"train": [None, None]}, "the train part must hold a label of head words in at least one row (column tags);"),
    ],
)
def test_parts_and_tags_that_do_not_fit_are_refused_and_nothing_stays_behind(tasks, parts, said):
    tokens = "one two three four five".split()
    rows = {
        part: [{"tokens": tokens, "tags": None if count is None else ["O"] * count} for count in counts]
        for part, counts in parts.items()
    }
    config = tasks(words=("{words: {kind: tagging, labels: [person]}}", rows))
    with pytest.raises(DataError) as caught:
        built(config, "words")
    assert str(caught.value).startswith(said)
    assert leftovers(config) == []


def test_a_truncated_archive_is_refused_and_nothing_stays_behind(tiny_config, tmp_path):
    for part, label in [(part, label) for part in ("train", "test") for label in ("neg", "pos")]:
        (tmp_path / "aclImdb" / part / label).mkdir(parents=True)
        (tmp_path / "aclImdb" / part / label / "1_1.txt").write_bytes(os.urandom(999).hex().encode())
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "aclImdb", "aclImdb")
    os.truncate(tmp_path / "a.tar.gz", 3000)
    config = tiny_config("prepare", "data=full", f"data.path={tmp_path / 'a.tar.gz'}")
    with pytest.raises(DataError, match=r"a\.tar\.gz is damaged or truncated"):
        built(config)
    assert leftovers(config) == []


def test_a_source_without_path_and_url_names_its_key(tiny_config):
    config = tiny_config("prepare", "data=full", "tasks.imdb.sources.full.url=null")
    with pytest.raises(
        DataError, match=r"^tasks\.imdb\.sources\.full\.path must be given where there is no url; got null"
    ):
        built(config)


def test_a_damaged_shard_stops_and_a_rebuild_mends_it(config):
    folder = built(config())
    before, path = contents(folder), next(folder.glob("train-*.tfrecord"))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00000-of-00001\.tfrecord is damaged: .* data\.rebuild=true"):
        built(config())
    assert contents(built(config("data.rebuild=true"))) == before


def test_a_file_that_may_not_grow_stops_the_build_and_room_finishes_it(config, tmp_path):
    write_rows(tmp_path / "rows.jsonl", text="the film {} " + "is good " * 200)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(DataError, match=r"could not be written: File too large"):
            built(config())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert leftovers(config()) == []
    assert load_manifest(built(config())).parts["train"].examples == 48


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("no right to mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_what_is_whole_and_room_finishes_it(config, tmp_path, small_disk):
    write_rows(tmp_path / "rows.jsonl", text="the film {} " + "is good " * 200)
    small = config(f"cache_dir={small_disk}", "data.shard_size=8", "tokenizer.max_length=512")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * ((1 << 20) - 150_000))  # the spool of 110 KB fits, not all shards and their statistics
    with pytest.raises(DataError, match=r"could not be written: .*No space left on device"):
        built(small)
    left = leftovers(small)
    assert any(name.endswith("work/train.npz") for name in left)
    assert not any(name.endswith((".tmp", "manifest.json")) for name in left)
    ballast.unlink()
    folder = built(small)
    assert contents(folder) == contents(built(config("data.shard_size=8", "tokenizer.max_length=512")))


# what is interrupted


def begin(tmp_path: Path, vocab_file: Path, workers: int) -> tuple[subprocess.Popen, list[str]]:
    """Starts a build of many small shards, and waits until a few of them are there."""
    path = write_rows(tmp_path / "many.jsonl", count=4_000)
    settings = ["data=full", "tasks.imdb.sources.full.format=jsonl", f"data.path={path}", "data.shard_size=20"]
    settings += ["model=tiny", f"tokenizer.vocab={vocab_file}", f"data.workers={workers}"]
    command = [sys.executable, "-m", "data_prep.build", *settings, f"cache_dir={tmp_path / 'cache'}"]
    root = Path(building.__file__).parents[1]
    process = subprocess.Popen(
        command, cwd=root, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 100
    while len(list(tmp_path.glob("cache/records/*/work/train-*.json"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    return process, [setting for setting in settings if not setting.startswith(("model=", "tokenizer.vocab="))]


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(tiny_config, tmp_path, vocab_file):
    process, settings = begin(tmp_path, vocab_file, workers=1)
    process.kill()
    process.communicate()
    (folder,) = (path for path in (tmp_path / "cache/records").iterdir() if path.is_dir())
    assert not (folder / "manifest.json").exists()
    (folder / ".train-00007-of-00160.tfrecord.99.tmp").write_bytes(b"what a process killed while it wrote leaves")
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("work/*.json*")}
    kept = {
        folder / f"{path.stem}.tfrecord": (folder / f"{path.stem}.tfrecord").stat().st_mtime_ns
        for path in kept
        if path.suffix == ".json"
    }
    assert 5 <= len(kept) < 200
    assert built(tiny_config("prepare", *settings)) == folder
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    whole = built(tiny_config("prepare", *settings, f"cache_dir={tmp_path / 'other'}"))
    assert contents(folder) == contents(whole)
    assert len(contents(whole)) == 160 + 20 + 20 + 3 + 1  # shards, lengths of three parts, manifest


def test_ctrl_c_ends_with_130_and_one_line_and_leaves_only_whole_files(tmp_path, vocab_file):
    process, _ = begin(tmp_path, vocab_file, workers=2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it as well
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors.decode()
    assert list(tmp_path.glob("cache/**/*.tmp")) == []
    assert list(tmp_path.glob("cache/**/manifest.json")) == []
