"""The records contract: what is written is read again, whole or not at all."""

import os
import resource
import signal

import pytest
import tensorflow as tf

from bert_mtl.records import (
    Manifest,
    PartManifest,
    Shard,
    atomic_write,
    check_shards,
    load_manifest,
    parse_lines,
    parse_records,
    serialize,
    sha256,
    write_lines,
    write_records,
)
from bert_mtl.tasks import DataError, Example

IDS = [[2, 7, 3], [2, 30521, 128, 3], [2, 3]]
SECOND, LABELS = [3, 2, 2], {"mood": [1, 0, 300], "genre": [0, 5, 1]}


def integers(values) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def records() -> list[bytes]:
    labels = {head: tf.constant(ids) for head, ids in LABELS.items()}
    return serialize(tf.ragged.constant(IDS, tf.int32), tf.constant(SECOND), labels).numpy().tolist()


def test_records_are_the_bytes_of_tf_train_example():
    for row, record in enumerate(records()):
        features = {"token_ids": integers(IDS[row]), "second_start": integers([SECOND[row]])}
        features |= {f"label.{head}": integers([ids[row]]) for head, ids in LABELS.items()}
        example = tf.train.Example(features=tf.train.Features(feature=features))
        assert record == example.SerializeToString(deterministic=True)


def test_a_written_shard_is_read_again(tmp_path):
    write_records(tmp_path / "a.tfrecord", records())
    stored = next(iter(tf.data.TFRecordDataset(str(tmp_path / "a.tfrecord")).batch(9)))
    parsed = parse_records(stored, ["mood", "genre"])
    assert parsed["token_ids"].to_list() == IDS
    assert parsed["second_start"].numpy().tolist() == SECOND
    assert {head: parsed[f"label.{head}"].numpy().tolist() for head in LABELS} == LABELS
    assert {value.dtype for value in parsed.values()} == {tf.int32}


@pytest.mark.parametrize("pair", [False, True])
def test_lines_are_read_again(tmp_path, pair):
    examples = [
        Example("Né, \x85 naïve!", "b" if pair else None, {"mood": 12, "genre": 0}),
        Example(" x ", "ß" if pair else None, {"mood": 0, "genre": 3}),
    ]
    write_lines(tmp_path / "a.tsv", examples, ["mood", "genre"])
    stored = next(iter(tf.data.TextLineDataset(str(tmp_path / "a.tsv")).batch(9)))
    texts, texts_b, labels = parse_lines(stored, ["mood", "genre"], pair)
    assert [text.decode() for text in texts.numpy()] == [example.text for example in examples]
    assert [text.decode() for text in texts_b.numpy()] == ["b", "ß"] if pair else texts_b is None
    assert {key: ids.numpy().tolist() for key, ids in labels.items()} == {"label.mood": [12, 0], "label.genre": [0, 3]}


def manifest(folder) -> Manifest:
    write_records(folder / "a.tfrecord", records())
    shard = Shard("a.tfrecord", 3, (folder / "a.tfrecord").stat().st_size, sha256(folder / "a.tfrecord"))
    part = PartManifest((shard,), {"mood": {"bad": 1, "good": 2}}, (0, 0, 1, 1, 1), truncated=1)
    return Manifest("reviews", "full", "mark", "data", ("mood",), False, {"train": part})


def test_a_manifest_is_read_again(tmp_path):
    written = manifest(tmp_path)
    written.save(tmp_path)
    assert load_manifest(tmp_path) == written
    assert load_manifest(tmp_path).parts["train"].examples == 3
    check_shards(tmp_path, written)


@pytest.mark.parametrize("content", [None, "{", '{"parts": {}}', '{"parts": {"train": {}}}', "[]"])
def test_a_missing_or_damaged_manifest_is_said_with_the_way_out(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json cannot be read .* data\.rebuild=true"):
        load_manifest(tmp_path)


def test_one_flipped_bit_and_a_missing_shard_are_found(tmp_path):
    written, path = manifest(tmp_path), tmp_path / "a.tfrecord"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.tfrecord is damaged: its SHA-256 must be \w{64}; got \w{64}"):
        check_shards(tmp_path, written)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.tfrecord is damaged: .*; got no file"):
        check_shards(tmp_path, written)


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a") as file:
        file.write(b"new")
        file.flush()
        raise ZeroDivisionError
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 64 KiB: what a full disk does, anywhere."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_what_does_not_fit_is_said_and_leaves_nothing(tmp_path, small_files):
    rows = [Example("x" * 1000, None, {"mood": 1})] * 100
    for write in (
        lambda: write_lines(tmp_path / "a.tsv", rows, ["mood"]),
        lambda: write_records(tmp_path / "a.tfrecord", [b"x" * 1000] * 100),
    ):
        with pytest.raises(DataError, match=r"a\.\w+ could not be written: .*[Ff]ile too large"):
            write()
        assert os.listdir(tmp_path) == []
