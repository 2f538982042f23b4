"""Vectors of texts: what poolings make of states, and those of the dummy."""

import numpy as np
import pytest
from test_bundle import ROWS, edit_manifest, write_bundle

from serving.bundle import load_bundle
from serving.engines import open_engine
from serving.errors import EngineError
from serving.pooling import pool

LOW = np.array([[1, 8], [2, 0], [6, 1]], np.float32)
HIGH = np.array([[0, -1], [4, -3], [2, -2]], np.float32)


@pytest.mark.parametrize(
    ("pooling", "vector"),
    [
        ("mean", [3, 3, 2, -2]),
        ("max", [6, 8, 4, -1]),
        ("mean_max", [3, 3, 2, -2, 6, 8, 4, -1]),
        ("cls", [1, 8, 0, -1]),
        ("sep", [6, 1, 2, -2]),
        ("none", [[1, 8, 0, -1], [2, 0, 4, -3], [6, 1, 2, -2]]),
        ("cls_pooled", [0.5, 0.25]),
    ],
)
def test_poolings_of_two_layers(pooling, vector):
    found = pool([LOW, HIGH], np.array([0.5, 0.25], np.float32), pooling)
    np.testing.assert_array_equal(found, vector)
    assert found.dtype == np.float32


def test_a_pooled_output_that_nobody_gave_is_an_error():
    with pytest.raises(ValueError, match="pooled must be given where pooling is cls_pooled"):
        pool([LOW], None, "cls_pooled")


def test_vectors_are_those_of_bert_as_service():
    dice, lengths = np.random.default_rng(1), [9, 4, 6]
    states = dice.normal(size=(3, 9, 5)).astype(np.float32)
    mask = (np.arange(9) < np.array(lengths)[:, None]).astype(np.float32)
    # bert_serving/server/graph.py of 1.10.0, on padded rows
    mean = (states * mask[:, :, None]).sum(axis=1) / (mask.sum(axis=1, keepdims=True) + np.float32(1e-10))
    largest = (states - (1 - mask[:, :, None]) * np.float32(1e30)).max(axis=1)
    ends = states[np.arange(3), mask.sum(axis=1).astype(int) - 1]
    expected = {"mean": mean, "max": largest, "mean_max": np.hstack([mean, largest]), "cls": states[:, 0], "sep": ends}
    for pooling, theirs in expected.items():
        own = [pool([states[row, :length]], None, pooling) for row, length in enumerate(lengths)]
        np.testing.assert_allclose(own, theirs, atol=1e-6)


# --- the dummy


def test_the_dummy_gives_states_of_its_layers_by_the_tokens(tmp_path):
    engine = open_engine("dummy", load_bundle(write_bundle(tmp_path)))
    found = engine.run(0, ROWS, ["layer_0", "layer_2", "pooled"])
    assert list(found) == ["layer_0", "layer_2", "pooled"] and found["layer_2"].shape == (2, 4, 8)
    np.testing.assert_allclose(found["layer_0"][0, 1], np.arange(6, 14) / 1000, rtol=1e-6)  # of token 6
    np.testing.assert_allclose(found["layer_2"], found["layer_0"] + 0.002, rtol=1e-6)
    np.testing.assert_array_equal(found["pooled"], found["layer_2"][:, 0])
    sized = open_engine("dummy", load_bundle(edit_manifest(tmp_path, encoder={"dim": 3, "layers": 6})))
    assert sized.run(0, ROWS, ["layer_1"])["layer_1"].shape == (2, 4, 3)
    assert list(engine.run(0, ROWS)) == ["imdb"] and list(engine.run(0, ROWS, ["imdb"])) == ["imdb"]


def test_what_a_stage_does_not_give_is_named(tmp_path):
    engine = open_engine("dummy", load_bundle(write_bundle(tmp_path)))
    with pytest.raises(EngineError, match="the model must give layer_3, mood; it gives imdb, layer_0, "):
        engine.run(0, ROWS, ["layer_3", "layer_0", "mood"])
