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

SIZES = EncoderConfig(vocab_size=30, hidden_dim=384, num_layers=6, num_heads=12, intermediate_dim=64)


@pytest.fixture
def config(tiny_config):
    """Of a training that flash attention would fit, changed by overrides."""
    return lambda *overrides: tiny_config("train", "model.dtype=mixed_bfloat16", "model.attention=auto", *overrides)


def test_nothing_stands_in_the_way_of_flash_attention_on_a_gpu_in_bfloat16_by_xla(config):
    assert obstacle(config(), SIZES, xla=True, capability=(9, 0)) is None
    assert obstacle(config(), SIZES, xla=True, capability=(8, 0)) is None


@pytest.mark.parametrize(
    ("overrides", "sizes", "xla", "capability", "reason"),
    [
        ([], SIZES, True, None, "without an NVIDIA GPU"),
        ([], SIZES, True, (7, 5), "on a GPU of a compute capability below 8.0"),
        ([], SIZES, False, (9, 0), "where XLA does not compile the step"),
        (["model.dtype=float32"], SIZES, True, (9, 0), "with model.dtype=float32 (mixed_bfloat16 can)"),
        (["model.attention_dropout=0.1"], SIZES, True, (9, 0), "with model.attention_dropout=0.1 (0 can)"),
        (
            ["input.packing=none"],
            SIZES,
            True,
            (9, 0),
            "with input.packing=none, whose rows have many lengths (packed can)",
        ),
        (["input.row_length=333"], SIZES, True, (9, 0), "with input.row_length=333 (an even number can)"),
        ([], EncoderConfig(30, 24, 2, 2, 24), True, (9, 0), "with heads of 12 numbers (multiples of 8 up to 128 can)"),
    ],
)
def test_what_stands_in_the_way_is_said(config, overrides, sizes, xla, capability, reason):
    assert obstacle(config(*overrides), sizes, xla, capability) == reason


def test_flash_attention_is_refused_where_it_cannot_be_and_auto_is_plain_there(config):
    with pytest.raises(
        ConfigError, match="model.attention must not be flash without an NVIDIA GPU; got flash. Options"
    ):
        training_attention(config("model.attention=flash"), SIZES, xla=True)
    assert training_attention(config(), SIZES, xla=True) is None


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
