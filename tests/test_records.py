"""The records contract: what is written is read again, whole or not at all."""

import os
import resource
import signal
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from bert_mtl.labels import LabelSpec
from bert_mtl.records import (
    Manifest,
    PartManifest,
    Shard,
    atomic_write,
    by_token,
    check_shards,
    lengths_file,
    load_manifest,
    parse_lines,
    parse_records,
    save_lengths,
    serialize,
    sha256,
    write_lines,
    write_records,
)
from bert_mtl.tasks import DataError, Example

IDS = [[2, 7, 3], [2, 30521, 128, 3], [2, 3]]
SECOND = [3, 2, 2]
LABELS = {  # as they are stored: flat numbers, of token heads one a token
    "mood": [[1], [-1], [300]],
    "genres": [[1, 0], [0, 1], [-1, -1]],
    "stars": [[0.5], [np.nan], [1e-7]],
    "tags": [[-1, 4, -1], [-1, 0, -1, -1], [-1, -1]],
}
SPECS = (
    LabelSpec("mood", 0, "text"),
    LabelSpec("genres", 0, "text", shape=(2,)),
    LabelSpec("stars", 0, "text", "float32"),
    LabelSpec("tags", 0, "token"),
)


def feature(values: list) -> tf.train.Feature:
    if isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def records() -> list[bytes]:
    labels = {spec.name: tf.ragged.constant(LABELS[spec.name], spec.dtype) for spec in SPECS}
    return serialize(tf.ragged.constant(IDS, tf.int32), tf.constant(SECOND), labels).numpy().tolist()


def test_records_are_the_bytes_of_tf_train_example():
    for row, record in enumerate(records()):
        features = {"token_ids": feature(IDS[row]), "second_start": feature([SECOND[row]])}
        features |= {f"label.{head}": feature(numbers[row]) for head, numbers in LABELS.items()}
        example = tf.train.Example(features=tf.train.Features(feature=features))
        assert record == example.SerializeToString(deterministic=True)


def test_a_written_shard_is_read_again(tmp_path):
    write_records(tmp_path / "a.tfrecord", records())
    stored = next(iter(tf.data.TFRecordDataset(str(tmp_path / "a.tfrecord")).batch(9)))
    token_ids, second_start, labels = parse_records(stored, SPECS)
    assert token_ids.to_list() == IDS and token_ids.dtype == tf.int32
    assert second_start.numpy().tolist() == SECOND and second_start.dtype == tf.int32
    assert {name: values.dtype.name for name, values in labels.items()} == {s.name: s.dtype for s in SPECS}
    assert labels["mood"].numpy().tolist() == [1, -1, 300]
    assert labels["genres"].numpy().tolist() == LABELS["genres"]
    np.testing.assert_array_equal(labels["stars"], np.array([0.5, np.nan, 1e-7], np.float32))
    assert labels["tags"].to_list() == LABELS["tags"]


@pytest.mark.parametrize("pair", [False, True])
def test_lines_are_read_again(tmp_path, pair):
    names = [spec.name for spec in SPECS]
    labels = [{"mood": [12], "genres": [0, 1], "stars": [0.1], "tags": [3, 0]}]
    labels += [{"mood": [-1], "genres": [-1, -1], "stars": [float("nan")], "tags": [-1]}]
    examples = [
        Example("Né, \x85 naïve!", "b" if pair else None, labels[0]),
        Example(" x ", "ß" if pair else None, labels[1]),
    ]
    write_lines(tmp_path / "a.tsv", examples, names)
    assert (tmp_path / "a.tsv").read_text().startswith("12\t0 1\t0.1\t3 0\tNé, ")
    stored = next(iter(tf.data.TextLineDataset(str(tmp_path / "a.tsv")).batch(9)))
    texts, texts_b, found = parse_lines(stored, SPECS, pair)
    assert [text.decode() for text in texts.numpy()] == [example.text for example in examples]
    assert [text.decode() for text in texts_b.numpy()] == ["b", "ß"] if pair else texts_b is None
    assert found["mood"].numpy().tolist() == [12, -1] and found["genres"].numpy().tolist() == [[0, 1], [-1, -1]]
    np.testing.assert_array_equal(found["stars"], np.array([0.1, np.nan], np.float32))
    assert found["tags"].to_list() == [[3, 0], [-1]]
    assert {name: values.dtype.name for name, values in found.items()} == {s.name: s.dtype for s in SPECS}


def test_every_float_is_read_from_a_line_as_from_a_record():
    numbers = np.random.default_rng(0).normal(size=500).astype(np.float32) * 10.0 ** np.arange(-25, 25).repeat(10)
    lines = [f"{number}\tok" for number in numbers.tolist()]
    _, _, labels = parse_lines(tf.constant(lines), [SPECS[2]], pair=False)
    assert np.array_equal(labels["stars"], numbers.astype(np.float32))


def test_a_label_of_a_word_stands_at_its_first_token_if_that_is_there():
    labels = tf.ragged.constant([[7, 8], [9], [5, 6, 4]])
    # the second text is cut to nothing, the third has lost its middle word
    words = tf.ragged.constant([[-1, 0, -1, 1, -1], [-1, -1], [-1, 0, 2, -1]], dtype=tf.int32)
    found = by_token(labels, words)
    assert found.to_list() == [[-1, 7, -1, 8, -1], [-1, -1], [-1, 5, 4, -1]]


def manifest(folder) -> Manifest:
    write_records(folder / "a.tfrecord", records())
    shard = Shard("a.tfrecord", 3, (folder / "a.tfrecord").stat().st_size, sha256(folder / "a.tfrecord"))
    part = PartManifest((shard,), {"mood": {"bad": 1.0, "good": 2.0}, "words": {}}, truncated=1)
    return Manifest("reviews", "full", "mark", "data", False, {"train": part, "dev": replace(part, truncated=None)})


def test_a_manifest_is_read_again(tmp_path):
    written = manifest(tmp_path)
    written.save(tmp_path)
    assert load_manifest(tmp_path) == written
    assert load_manifest(tmp_path).parts["train"].examples == 3
    check_shards(tmp_path, written)


def test_lengths_stand_beside_the_shards_by_part_and_tokenizer(tmp_path):
    save_lengths(tmp_path, "dev", "0123456789abcdef", np.array([5, 70_000]))
    (path,) = tmp_path.iterdir()
    assert path == lengths_file(tmp_path, "dev", "0123456789abcdef")
    assert path.name == "dev-lengths-0123456789ab.npy"
    assert np.load(path).tolist() == [5, 70_000]


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
    rows = [Example("x" * 1000, None, {"mood": [1]})] * 100
    for write in (
        lambda: write_lines(tmp_path / "a.tsv", rows, ["mood"]),
        lambda: write_records(tmp_path / "a.tfrecord", [b"x" * 1000] * 100),
    ):
        with pytest.raises(DataError, match=r"a\.\w+ could not be written: .*[Ff]ile too large"):
            write()
        assert os.listdir(tmp_path) == []
