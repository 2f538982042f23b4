"""Vectors of texts: what poolings make of states, what is asked of which stage, and who is refused."""

import numpy as np
import pytest
from test_bundle import ROWS, edit_manifest, write_bundle

from serving.bundle import StageFiles, load_bundle
from serving.engines import EngineError, open_engine
from serving.errors import Refused
from serving.pooling import pool
from serving.steps import Opened
from serving.vectors import plan

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


# --- what stages are asked for


def opened(*stages: dict, name: str = "openvino") -> Opened:
    inputs = [["token_ids"], *[["states"]] * (len(stages) - 1)]
    files = [StageFiles(path="", inputs=names, **stage) for names, stage in zip(inputs, stages, strict=True)]
    return Opened(name, "fp32", files)


STAGES = ({"depth": 2, "layers": [0, 1, 2]}, {"depth": 3, "layers": [3]}, {"depth": 4, "layers": [4], "pooled": True})


@pytest.mark.parametrize(
    ("layers", "pooling", "numbers", "asked"),
    [
        ([-1], "mean", [4], [["next_states"], ["next_states"], ["layer_4"]]),
        ([-2, 1], "cls", [3, 1], [["layer_1", "next_states"], ["layer_3"]]),
        ([0, -5], "none", [0, 0], [["layer_0"]]),
        ([1], "cls_pooled", [], [["next_states"], ["next_states"], ["pooled"]]),
    ],
)
def test_each_stage_is_asked_for_its_layers_and_no_further_one_is_run(tmp_path, layers, pooling, numbers, asked):
    found = plan(load_bundle(write_bundle(tmp_path)).manifest, opened(*STAGES), layers, pooling)
    assert (found.layers, found.asked) == (tuple(numbers), tuple(map(tuple, asked)))


def test_vectors_follow_the_order_of_the_layers_that_were_asked_for(tmp_path):
    asked = plan(load_bundle(write_bundle(tmp_path)).manifest, opened(*STAGES), [-2, 1], "cls")
    np.testing.assert_array_equal(asked.vector({"layer_1": LOW, "layer_3": HIGH}), [0, -1, 1, 8])


@pytest.mark.parametrize(
    ("stage", "layers", "message"),
    [
        ({"layers": [0, 1, 2]}, [3], "layers must be between -3 and 2; got 3"),
        ({"layers": [0, 1, 2]}, [-4], "layers must be between -3 and 2; got -4"),
        ({"layers": [0, 1, 2]}, [], "layers must name at least one"),
        ({}, [-1], "the bundle is of before vectors could be made: export the run again"),
    ],
)
def test_what_a_model_cannot_give_is_refused(tmp_path, stage, layers, message):
    with pytest.raises(Refused, match=message):
        plan(load_bundle(write_bundle(tmp_path)).manifest, opened({"depth": 2} | stage), layers, "mean")


def test_a_pooler_that_nobody_trained_is_not_used(tmp_path):
    with pytest.raises(Refused, match="pooling must not be cls_pooled: the model has no trained pooler"):
        plan(load_bundle(write_bundle(tmp_path)).manifest, opened({"depth": 1, "layers": [0, 1]}), [-1], "cls_pooled")


def test_the_reason_of_a_refusal_names_what_to_do(tmp_path):
    stages = [{"path": "m", "inputs": ["token_ids"], "depth": 2}]
    both = {
        "litert": {"precision": "fp32", "stages": stages},
        "onnx": {"precision": "fp32", "stages": [stages[0] | {"layers": [0, 1, 2]}]},
    }
    asked = {
        "engine must give the states of layers, .*; got litert. Options: onnx": ("litert", both),
        "LiteRT cannot give .*: export with formats=.openvino.": ("litert", {"litert": both["litert"]}),
        "tasks have weights of their own in the encoder": ("onnx", {"onnx": both["litert"]}),
    }
    for number, (message, (name, engines)) in enumerate(asked.items()):
        folder = write_bundle(tmp_path / str(number), engines=engines)
        manifest = load_bundle(edit_manifest(folder, encoder={"dim": 4, "layers": 2})).manifest
        with pytest.raises(Refused, match=message):
            plan(manifest, opened({"depth": 2}, name=name), [-1], "mean")


# --- the dummy


def test_the_dummy_gives_states_of_its_layers_by_the_tokens(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path))
    engine = open_engine("dummy", bundle)
    found = engine.run(0, ROWS, ["layer_0", "layer_2", "pooled"])
    assert list(found) == ["layer_0", "layer_2", "pooled"] and found["layer_2"].shape == (2, 4, 8)
    np.testing.assert_allclose(found["layer_0"][0, 1], np.arange(6, 14) / 1000, rtol=1e-6)  # of token 6
    np.testing.assert_allclose(found["layer_2"], found["layer_0"] + 0.002, rtol=1e-6)
    np.testing.assert_array_equal(found["pooled"], found["layer_2"][:, 0])
    assert list(engine.run(0, ROWS)) == ["imdb"] and list(engine.run(0, ROWS, ["imdb"])) == ["imdb"]
    asked = plan(bundle.manifest, Opened("dummy", "fp32", engine.stages), [-1], "sep")
    row = {name: values[0, :3] for name, values in engine.run(0, ROWS, asked.asked[0]).items()}
    np.testing.assert_allclose(asked.vector(row), np.arange(5, 13) / 1000, rtol=1e-6)  # of token 3


def test_what_a_stage_does_not_give_is_named(tmp_path):
    engine = open_engine("dummy", load_bundle(write_bundle(tmp_path)))
    with pytest.raises(EngineError, match="the model must give layer_3, mood; it gives imdb, layer_0, "):
        engine.run(0, ROWS, ["layer_3", "layer_0", "mood"])
