"""Which attention a training takes, and what the step would ask cuDNN for."""

import json
import re

import keras
import numpy as np
import pytest

from bert_mtl.attention import obstacle, training_attention
from bert_mtl.encoder import EncoderConfig, attention_bias, plain_attention
from bert_mtl.flash_attention import BACKWARD, FORWARD, module_text
from conf.errors import ConfigError
from tests.test_multitask import SETTINGS, ModelConfig

SIZES = EncoderConfig(vocab_size=30, hidden_dim=384, num_layers=6, num_heads=12, intermediate_dim=64)
FITS = ModelConfig(**SETTINGS | {"dtype": "mixed_bfloat16"})


def changed(**values) -> ModelConfig:
    return FITS.model_copy(update=values)


def test_nothing_stands_in_the_way_of_flash_attention_on_a_gpu_in_bfloat16_by_xla():
    assert obstacle(FITS, SIZES, 512, xla=True, capability=(9, 0)) is None
    assert obstacle(FITS, SIZES, 512, xla=True, capability=(8, 0)) is None


@pytest.mark.parametrize(
    ("model", "sizes", "length", "xla", "capability", "reason"),
    [
        (FITS, SIZES, 512, True, None, "without an NVIDIA GPU"),
        (FITS, SIZES, 512, True, (7, 5), "on a GPU of a compute capability below 8.0"),
        (FITS, SIZES, 512, False, (9, 0), "where XLA does not compile the step"),
        (changed(dtype="float32"), SIZES, 512, True, (9, 0), "with model.dtype=float32 (mixed_bfloat16 can)"),
        (changed(attention_dropout=0.1), SIZES, 512, True, (9, 0), "with model.attention_dropout=0.1 (0 can)"),
        (FITS, SIZES, None, True, (9, 0), "with rows of many lengths (input.packing=packed makes them alike)"),
        (FITS, SIZES, 333, True, (9, 0), "with rows of 333 tokens (an even number can)"),
        (
            FITS,
            EncoderConfig(30, 24, 2, 2, 24),
            512,
            True,
            (9, 0),
            "with heads of 12 numbers (multiples of 8 up to 128 can)",
        ),
    ],
)
def test_what_stands_in_the_way_is_said(model, sizes, length, xla, capability, reason):
    assert obstacle(model, sizes, length, xla, capability) == reason


def test_flash_attention_is_refused_where_it_cannot_be_and_auto_is_plain_there():
    with pytest.raises(
        ConfigError, match="model.attention must not be flash without an NVIDIA GPU; got flash. Options"
    ):
        training_attention(changed(attention="flash"), SIZES, 512, xla=True)
    assert training_attention(changed(attention="auto"), SIZES, 512, xla=True) is None


def test_plain_attention_keeps_within_segments():
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 1, 5, 2, 4)).astype(np.float32)
    bias = attention_bias(np.array([[1, 1, 2, 2, 0]]))
    found = keras.ops.convert_to_numpy(plain_attention(query, key, value, bias))
    for segment in (slice(0, 2), slice(2, 4), slice(4, 5)):
        for head in range(2):
            scores = query[0, segment, head] @ key[0, segment, head].T / 2
            weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(found[0, segment, head], weights @ value[0, segment, head], atol=1e-5)


@pytest.mark.parametrize(("target", "operands", "results"), [(FORWARD, 4, 3), (BACKWARD, 7, 4)])
def test_the_module_is_one_call_of_cudnn_with_the_shapes_and_the_scale(target, operands, results):
    text = module_text(target, 3, 64, 12, 32)
    assert text.count("stablehlo.custom_call") == 1 and f"@{target}(" in text
    assert len(re.findall(r"%arg\d+: ", text)) == operands
    assert f"%0:{results} = stablehlo.custom_call" in text
    settings = json.loads(json.loads(re.search(r"backend_config = (\".*\"),", text)[1]))["cudnn_fmha_backend_config"]
    assert settings["fmha_scale"] == pytest.approx(32**-0.5)
    assert settings["intermediate_tensor_shape"]["dimensions"] == ["3", "12", "64", "64"]
    assert settings["is_flash_attention"] and settings["mask_type"] == "NO_MASK"
