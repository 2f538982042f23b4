"""Vectors of texts: what is asked of which stage, and who is refused."""

import numpy as np
import pytest
from test_bundle import edit_manifest, write_bundle

from serving.bundle import StageFiles, load_bundle
from serving.errors import Refused
from serving.steps import Opened
from serving.vectors import plan

LOW = np.array([[1, 8], [2, 0], [6, 1]], np.float32)
HIGH = np.array([[0, -1], [4, -3], [2, -2]], np.float32)


def opened(*stages: dict, name: str = "openvino") -> Opened:
    inputs = [["token_ids"], *[["states"]] * (len(stages) - 1)]
    files = [StageFiles(path="", inputs=names, **stage) for names, stage in zip(inputs, stages, strict=True)]
    able = any(each.layers for each in files)
    return Opened(name, "fp32", files, (name, files) if able else None)


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
        ({"layers": [0, 1, 2]}, [-1] * 1000, "layers must be at most 3; got 1000"),
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
