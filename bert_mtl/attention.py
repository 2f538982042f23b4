"""Which attention a training computes by: cuDNN's flash attention where it can, else plain."""

import logging
from typing import Any

import tensorflow as tf

from bert_mtl.config import TrainConfig
from bert_mtl.encoder import Attention, EncoderConfig
from bert_mtl.flash_attention import HEAD_DIM_STEP, MAX_HEAD_DIM, MIN_CAPABILITY, flash_attention
from conf.errors import ConfigError, Problem

log = logging.getLogger(__name__)


def training_attention(config: TrainConfig, sizes: EncoderConfig, xla: bool) -> Attention | None:
    """What `model.attention` chooses for a training step; None for plain.

    Raises:
        ConfigError: flash attention is asked for where it cannot be.
    """
    chosen = config.model.attention
    if chosen == "plain":
        return None
    capability = gpu_capability()
    reason = obstacle(config, sizes, xla, capability)
    if reason is None:
        log.info("attention: flash (cuDNN)")
        return flash_attention
    if chosen == "flash":
        raise ConfigError([Problem("model.attention", f"not be flash {reason}", "flash", ("auto", "plain"))])
    if capability is not None:
        log.info("attention: plain, because it cannot be flash %s", reason)
    return None


def gpu_capability() -> tuple[int, int] | None:
    """The compute capability of the first NVIDIA GPU; None where there is no such."""
    for device in tf.config.list_physical_devices("GPU"):
        details: dict[str, Any] = tf.config.experimental.get_device_details(device)
        if "compute_capability" in details:
            return details["compute_capability"]
    return None


def obstacle(config: TrainConfig, sizes: EncoderConfig, xla: bool, capability: tuple[int, int] | None) -> str | None:
    """What stands in the way of flash attention, to be read behind "it cannot be flash"; None where nothing does."""
    model, length = config.model, config.input.row_length
    head_dim, least = sizes.hidden_dim // sizes.num_heads, ".".join(map(str, MIN_CAPABILITY))
    checks = {
        "without an NVIDIA GPU": capability is None,
        f"on a GPU of a compute capability below {least}": capability is not None and capability < MIN_CAPABILITY,
        "where XLA does not compile the step": not xla,
        f"with model.dtype={model.dtype} (mixed_bfloat16 can)": model.dtype != "mixed_bfloat16",
        f"with model.attention_dropout={model.attention_dropout:g} (0 can)": model.attention_dropout > 0,
        "with input.packing=none, whose rows have many lengths (packed can)": config.input.packing == "none",
        f"with input.row_length={length} (an even number can)": bool(length and length % 2),
        f"with heads of {head_dim} numbers (multiples of {HEAD_DIM_STEP} up to {MAX_HEAD_DIM} can)": bool(
            head_dim % HEAD_DIM_STEP or head_dim > MAX_HEAD_DIM
        ),
    }
    return next((reason for reason, found in checks.items() if found), None)
