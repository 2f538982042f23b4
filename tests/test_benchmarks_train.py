"""What the benchmarks of training count and how their peer's batches come about, with numbers by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.peers.grouping import grouped, grouped_by_task, padded
from benchmarks.train_ours import save_examples, work_of
from benchmarks.training import peer_environment, summary
from bert_mtl.flops import Sizes, Work, mfu, training_flops
from bert_mtl.labels import LabelSpec

SMALL = Sizes(num_layers=2, hidden_dim=4, num_heads=1, intermediate_dim=8, vocab_size=10)


def test_a_step_takes_six_operations_a_weight_and_token_and_attention_and_the_guessed_words():
    assert SMALL.matmul_weights == 2 * (4 * 16 + 2 * 4 * 8)
    products, attention, words = 6 * 256 * 5, 12 * 2 * 4 * (2**2 + 3**2), 6 * (16 + 40)
    assert training_flops(SMALL, Work(tokens=5, squares=13)) == products + attention == 8_928
    assert training_flops(SMALL, Work(tokens=5, squares=13, masked=1)) == 8_928 + words
    assert mfu(SMALL, Work(5, 13), seconds=2.0, peak=44_640) == pytest.approx(0.1)


def test_bert_base_has_85_million_weights_in_its_products():
    assert Sizes(12, 768, 12, 3072).matmul_weights == 84_934_656


def test_batches_are_sorted_within_megabatches_of_shuffled_examples():
    lengths = np.arange(100, 113)
    batches = grouped(lengths, batch=2, megabatch=3, random=np.random.default_rng(0))
    assert [len(batch) for batch in batches] == [2] * 6  # the 13th example is left out
    first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:])
    assert len({*first, *second}) == 12
    assert (np.diff(lengths[first]) < 0).all() and (np.diff(lengths[second]) < 0).all()
    assert lengths[first].min() < lengths[second].max()


def test_too_few_examples_are_one_batch():
    assert [len(batch) for batch in grouped(np.array([5]), 2, 3, np.random.default_rng(0))] == [1]


def test_every_batch_is_of_one_task():
    task = np.array([0] * 6 + [1] * 4)
    batches = grouped_by_task(np.arange(10), task, 2, 50, np.random.default_rng(0))
    assert sorted(tuple(task[batch]) for batch in batches) == [(0, 0)] * 3 + [(1, 1)] * 2


def test_examples_are_padded_to_a_multiple():
    flat, splits = np.array([1, 2, 3, 4, 5]), np.array([0, 3, 5])
    assert padded(flat, splits, np.array([1, 0]), 4, -1).tolist() == [[4, 5, -1, -1], [1, 2, 3, -1]]


def test_the_peer_gets_the_examples_of_packed_batches_as_they_were_before_masking(tmp_path):
    labels = (LabelSpec("a", 0, "text"), LabelSpec("b", 1, "token"), LabelSpec("words", 0, "mask", rate=0.15))
    batch = {
        "token_ids": np.array([[1, 2, 99, 0], [3, 4, 5, 6]]),
        "segment_ids": np.array([[1, 1, 1, 0], [2, 3, 3, 3]]),
        "task": np.array([0, 1, 0, -1]),
        "label.a": np.array([1, -1, 0, 0]),
        "label.b": np.array([[-1, -1, -1, 0], [7, -1, -1, -1]]),
        "label.words": np.array([8, 0]),
        "place.words": np.array([2, 0]),
        "weight.words": np.array([1.0, 0.0]),
    }
    assert work_of([batch, batch]) == Work(tokens=14, squares=2 * (9 + 1 + 9), masked=2)
    save_examples(tmp_path / "examples.npz", SimpleNamespace(labels=labels), [batch])
    found = np.load(tmp_path / "examples.npz")
    assert found["token_ids"].tolist() == [1, 2, 8, 3, 4, 5, 6]
    assert found["lengths"].tolist() == [3, 1, 3]
    assert found["task"].tolist() == [0, 1, 0]
    assert found["text.a"].tolist() == [1, -1, 0]
    assert found["token.b"].tolist() == [-1, -1, -1, 7, -1, -1, -1]
    assert found["masked"]


def test_the_ratio_is_that_of_the_fastest_rounds_and_none_where_a_side_failed():
    runs = {"ours": [{"tokens_per_second": 30}, {"tokens_per_second": 50}], "peer": [{"tokens_per_second": 20}]}
    assert summary("imdb", "minilm", runs)["ratio"] == 2.5
    assert summary("imdb", "minilm", runs | {"peer": [{"error": "no memory"}]})["ratio"] is None


def test_the_peer_does_not_see_our_packages():
    given = {"PYTHONPATH": "/kit", "LD_LIBRARY_PATH": "/kit/lib:/usr/lib", "HOME": "/root"}
    assert peer_environment(given) == {"LD_LIBRARY_PATH": "/usr/lib", "HOME": "/root"}
    assert peer_environment({"HOME": "/root"}) == {"HOME": "/root"}
