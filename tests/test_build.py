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

import pytest
import tensorflow as tf

from bert_mtl.config import PrepareConfig
from bert_mtl.records import load_manifest, parse_records, sha256
from bert_mtl.tasks import DataError
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


def built(config: PrepareConfig) -> Path:
    return build(config, "imdb", make_tokenizer(config.tokenizer, config.model, config.cache_dir))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir()}


def parsed(folder: Path, part: str) -> dict:
    files = [str(folder / shard.file) for shard in load_manifest(folder).parts[part].shards]
    return parse_records(next(iter(tf.data.TFRecordDataset(files).batch(10_000))), ["imdb"])


@pytest.fixture
def config(tiny_config, tmp_path):
    """`config("data.limit=9", …)`: sixty rows of text, to be built."""
    path = write_rows(tmp_path / "rows.jsonl")
    return lambda *overrides: tiny_config("prepare", *FULL, f"data.path={path}", *overrides)


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
        rows = parsed(folder, part)
        found += zip(rows["token_ids"].to_list(), rows["label.imdb"].numpy().tolist(), strict=True)
        assert rows["second_start"].numpy().tolist() == rows["token_ids"].row_lengths().numpy().tolist()
    assert sorted(found) == expected


def test_the_manifest_counts_examples_labels_lengths_and_truncated_rows(config):
    folder = built(config("data.shard_size=20", "tokenizer.max_length=8", "input.pad_to=8"))
    manifest = load_manifest(folder)
    assert {name: [shard.examples for shard in part.shards] for name, part in manifest.parts.items()} == {
        "train": [16, 16, 16], "dev": [6], "test": [6],
    }  # fmt: skip
    assert manifest.parts["train"].labels == {"imdb": {"neg": 16, "pos": 32}}
    assert manifest.parts["dev"].labels == manifest.parts["test"].labels == {"imdb": {"neg": 2, "pos": 4}}
    # "number" is not in the vocabulary: every row is cut
    assert manifest.parts["train"].truncated == 48
    assert manifest.parts["train"].lengths == (0,) * 8 + (48,)
    assert manifest.task == "imdb" and manifest.source == "full" and not manifest.pair
    assert sorted(path.name for path in folder.iterdir()) == sorted(
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
    assert set(parsed(folder, "dev")["second_start"].numpy()) == {4}
    assert set(parsed(folder, "dev")["token_ids"].row_lengths().numpy()) == {7}
    text = built(config("tasks.imdb.sources.full.columns={text: a, text_b: b}", "input=textline"))
    (shard,) = load_manifest(text).parts["dev"].shards
    assert set((text / shard.file).read_text().splitlines()) == {"1\tthe film\tis good", "0\tthe film\tis bad"}


def test_the_limit_shortens_train_and_leaves_dev_and_test(config):
    whole, limited = (load_manifest(built(config(*limit))) for limit in ([], ["data.limit=12"]))
    assert limited.parts["train"].labels == {"imdb": {"neg": 4, "pos": 8}}
    assert [limited.parts[part].shards for part in ("dev", "test")] == [
        whole.parts[part].shards for part in ("dev", "test")
    ]


def test_imdb_s_archive_and_folder_hold_the_same_examples(tiny_config, tmp_path):
    for part, label, number in [
        (p, label, n) for p in ("train", "test") for label in ("neg", "pos") for n in range(10)
    ]:
        path = tmp_path / "aclImdb" / part / label / f"{number}_1.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"the film {part} {label} {number}")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "aclImdb", "aclImdb")
    manifests = []
    for path in ("a.tar.gz", "aclImdb"):
        folder = built(tiny_config("prepare", "data=full", f"data.path={tmp_path / path}", "input=textline"))
        manifests.append(load_manifest(folder))
        lines = {part: (folder / data.shards[0].file).read_text() for part, data in manifests[-1].parts.items()}
        assert sorted(lines["test"].splitlines()) == sorted(
            f"{int(label == 'pos')}\tthe film test {label} {n}" for label in ("neg", "pos") for n in range(10)
        )
        assert manifests[-1].parts["dev"].labels == {"imdb": {"neg": 1, "pos": 1}}
        assert manifests[-1].parts["train"].labels == {"imdb": {"neg": 9, "pos": 9}}


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
    assert load_manifest(folder).parts["train"].labels == {"stars": {"bad": 8, "good": 8}}


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
        "seed=7",
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
    assert threading.active_count() == threads, "the progress bar still runs"


def test_an_empty_file_and_one_row_are_refused(config, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(DataError, match="the train part must hold at least one example; got none"):
        built(config())
    write_rows(tmp_path / "rows.jsonl", count=1)
    with pytest.raises(DataError, match="data.test_fraction must give test an example; got 0.1 of 1 rows"):
        built(config())
    assert leftovers(config()) == []


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
    assert len(contents(whole)) == 160 + 20 + 20 + 1


def test_ctrl_c_ends_with_130_and_one_line_and_leaves_only_whole_files(tmp_path, vocab_file):
    process, _ = begin(tmp_path, vocab_file, workers=2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it as well
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode().strip().splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors.decode()
    assert list(tmp_path.glob("cache/**/*.tmp")) == []
    assert list(tmp_path.glob("cache/**/manifest.json")) == []
