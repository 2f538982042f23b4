"""A model card says of a manifest what people and the Hugging Face Hub want to know."""

import pytest
import yaml
from huggingface_hub import ModelCard

from bert_mtl.model_card import front_matter, model_card

MANIFEST = {
    "name": "toy",
    "version": "toy-1",
    "data": "sample",
    "tasks": {"mood": {"license": "CC0", "link": None, "fingerprint": "abcdef0123456789", "limit": 40}},
    "training": {
        "weights": "mlm", "epochs": 3, "batch_size": 8, "learning_rate": 1e-4, "seed": 1, "mixing": "proportional",
        "weighting": "static",
    },
    "heads": {
        "mood": {"kind": "classification", "task": "mood", "reads": "text", "labels": ["a|b", "z"]},
        "mood_spans": {"kind": "tagging", "task": "mood", "reads": "words", "tags": ["O", "B-x", "I-x"]},
    },
    "tokenizer": {"max_length": 24, "truncation": "tail"},
    "engines": {"savedmodel": {"precision": "fp32"}, "openvino": {"precision": "int8"}},
    "gates": {},
    "metrics": {"dev": {"mood": {"accuracy": 0.75}}, "test": {}},
    "versions": {"bert_mtl": "0.1.0"},
}  # fmt: skip
CALIBRATION = {"ece_before": 0.125, "ece_after": 0.0625, "texts": 24}


def changed(**sections: object) -> dict:
    return MANIFEST | sections


def test_the_hub_reads_its_front_matter():
    data = ModelCard(model_card(MANIFEST)).data
    assert (data.pipeline_tag, data.language, data.license) == ("text-classification", None, None)
    assert data.tags == ["bert", "multi-task", "savedmodel", "openvino", "classification", "tagging"]
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type, result.metric_value) == (
        "mood", "dev", "accuracy", 0.75,
    )  # fmt: skip
    tested = front_matter(changed(metrics={"dev": {"mood": {"accuracy": 0.75}}, "test": {"mood": {"accuracy": 0.5}}}))
    assert [metric["value"] for metric in tested["model-index"][0]["results"][0]["metrics"]] == [0.5]
    assert "model-index" not in front_matter(changed(metrics={"dev": {}, "test": {}}))
    assert yaml.safe_load(model_card(MANIFEST).split("---")[1])["library_name"] == "tensorflow"


def test_it_says_what_the_model_answers_and_what_it_was_learned_from():
    card = model_card(MANIFEST)
    assert "answers 2 questions about a text, of 1 task." in card
    assert "| `mood` | mood | a text | one label | `a\\|b`, `z` |" in card
    assert "| `mood_spans` | mood | a text | spans and their types | `O`, `B-x`, `I-x` |" in card
    assert "| mood | CC0 |  | 40 | `abcdef012345` |" in card
    assert "* pretrained weights: `mlm`" in card and "| `mood` | accuracy | 0.7500 | – |" in card
    assert "Of a text longer than 24 tokens its end is read." in card


@pytest.mark.parametrize("data, warned", [("sample", True), ("full", False)])
def test_the_built_in_sample_is_said_in_plain_words(data, warned):
    card = model_card(changed(data=data))
    assert ("**Learned from the built-in sample**" in card, "do not rely on it" in card) == (warned, warned)


def test_costs_and_temperatures_are_tables_or_said_to_be_missing():
    card = model_card(MANIFEST)
    assert "Not compared with the run when this was exported. Formats: savedmodel (fp32), openvino (int8)." in card
    assert "no temperature was fitted" in card
    found = {"drop": 0.125, "agreement": 0.9375, "difference": 0.25, "metrics": {}, "calibration": CALIBRATION}
    early = {"drop": 0.25, "layers": 3.0, "answered": {2: 0.75, 6: 0.25}}
    gates = {"openvino": {"mood": found | {"exits": early}}, "litert": {"mood": found}}
    stages = {
        "openvino": [{"temperature": {"mood": 2.0}}, {"temperature": {"mood": 1.5}}],
        "litert": [{"temperature": {"mood": 0.5}}],
    }
    engines = {name: {"precision": "int8", "stages": each} for name, each in stages.items()}
    card = model_card(changed(gates=gates, engines=engines))
    exits = "layer 2: 75.0%, layer 6: 25.0%; 0.25 points lost in all"
    assert f"| openvino | int8 | `mood` | 0.12 | 93.75% | 0.2500 | {exits} |" in card
    assert "| litert | int8 | `mood` | 0.12 | 93.75% | 0.2500 | – |" in card
    assert "| openvino | `mood` | 2.000, 1.500 | 0.1250 | 0.0625 | 24 |" in card
    assert "| litert | `mood` | 0.500 | 0.1250 | 0.0625 | 24 |" in card
