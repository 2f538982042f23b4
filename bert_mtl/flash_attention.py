"""Query, key, value and bias in, context out: cuDNN's flash attention within a training step that XLA compiles.

XLA calls cuDNN where it meets a custom call of a certain name, operands and settings. Nothing in TensorFlow writes such
a call, so it is written here as StableHLO text, which TensorFlow reads. Names, operands and settings are those of
`jax/_src/cudnn/fused_attention_stablehlo.py`; they belong to the XLA within TensorFlow, whose version is pinned.
"""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

MAX_HEAD_DIM = 128  # and a multiple of HEAD_DIM_STEP; 256 would need compute capability 9.0
HEAD_DIM_STEP = 8
MIN_CAPABILITY = (8, 0)  # of the GPU
FORWARD, BACKWARD = "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"


@tf.custom_gradient
def flash_attention(query, key, value, bias):
    """Returns softmax(query · key / sqrt(head_dim) + bias) · value, `(rows, length, heads, head_dim)` bfloat16.

    No scores reach memory (Dao et al. 2022): the gradient computes them again from the softmax's statistics. Compiles
    for NVIDIA GPUs of `MIN_CAPABILITY` alone.

    Args:
        query, key, value: `(rows, length, heads, head_dim)` bfloat16 of a static shape, `length` even.
        bias: `(rows, 1, length, length)`, the same for all heads; added in bfloat16. It gets no gradient.
    """
    bias = tf.cast(bias, tf.bfloat16)  # of all layers' casts XLA keeps one
    rows, length, heads, head_dim = query.shape
    statistics = tf.TensorSpec((rows, heads, length), tf.float32)
    context, logsumexp = _call(FORWARD, (query, key, value, bias), (query, statistics))

    def gradient(upstream):
        arguments = (query, key, value, logsumexp, upstream, bias, context)
        return (*_call(BACKWARD, arguments, (query, key, value)), None)

    return context, gradient


def _call(target: str, arguments: Sequence[tf.Tensor], results: Sequence[Any]) -> list[tf.Tensor]:
    """Tensors of the shapes and types of `results`, by one custom call."""
    return xla.call_module(
        arguments,
        version=10,
        module=module_text(target, *arguments[0].shape),
        Tout=[result.dtype for result in results],
        Sout=[result.shape for result in results],
        platforms=["CUDA"],
        disabled_checks=["platform", f"custom_call:{target}"],  # XLA calls the platform GPU; only its own calls pass
    )


@lru_cache
def module_text(target: str, rows: int, length: int, heads: int, head_dim: int) -> str:
    """The StableHLO module whose `main` is one call of `target`, `FORWARD` or `BACKWARD`.

    cuDNN gives contexts and gradients as `(rows, heads, length, head_dim)`. The result layout puts them into memory as
    `(rows, length, heads, head_dim)`, so that the transposition behind the call moves nothing.
    """
    states, by_head = _tensor(rows, length, heads, head_dim), _tensor(rows, heads, length, head_dim)
    statistics, bias = _tensor(rows, heads, length, of="f32"), _tensor(rows, 1, length, length)
    if target == FORWARD:
        operands, calculated, others = [states] * 3 + [bias], 1, [statistics]
    else:
        operands, calculated, others = [states] * 3 + [statistics, states, bias, states], 3, []
    workspace = _tensor(0, of="ui8")  # XLA finds out its size
    results = [by_head] * calculated + [*others, workspace]
    layouts = ["dense<[3, 1, 2, 0]> : tensor<4xindex>"] * calculated + [_row_major(r) for r in results[calculated:]]
    names = [f"%arg{i}" for i in range(len(operands))]
    given = ", ".join(f"{name}: {operand}" for name, operand in zip(names, operands, strict=True))
    settings = json.dumps(json.dumps(_settings(target == BACKWARD, rows, length, heads, head_dim)))
    turned = [
        f"%t{i} = stablehlo.transpose %0#{i}, dims = [0, 2, 1, 3] : ({by_head}) -> {states}" for i in range(calculated)
    ]
    returned = [f"%t{i}" for i in range(calculated)] + [f"%0#{calculated + i}" for i in range(len(others))]
    types = ", ".join([states] * calculated + others)
    newline = "\n    "
    return f"""module @flash_attention {{
  func.func public @main({given}) -> ({types}) {{
    %0:{len(results)} = stablehlo.custom_call @{target}({", ".join(names)}) {{
      api_version = 2 : i32, backend_config = {settings},
      operand_layouts = [{", ".join(map(_row_major, operands))}],
      result_layouts = [{", ".join(layouts)}]
    }} : ({", ".join(operands)}) -> ({", ".join(results)})
    {newline.join(turned)}
    return {", ".join(returned)} : {types}
  }}
}}"""


def _tensor(*shape: int, of: str = "bf16") -> str:
    return f"tensor<{'x'.join(map(str, shape))}x{of}>"


def _row_major(tensor: str) -> str:
    rank = tensor.count("x") - tensor.count("index")
    axes = ", ".join(map(str, reversed(range(rank))))
    return f"dense<{f'[{axes}]' if rank > 1 else axes}> : tensor<{rank}xindex>"


def _settings(backward: bool, rows: int, length: int, heads: int, head_dim: int) -> dict[str, Any]:
    """XLA's `GpuBackendConfig`, without what has its default value."""
    states, scores = (0, 2), (0, 1)  # which axes are rows and heads
    products = (
        {
            "bmm1_grad_gemm1": _product(2, 1, scores, states),  # of the gradient of key
            "bmm1_grad_gemm2": _product(3, 1, scores, states),  # of query
            "bmm2_grad_gemm1": _product(2, 1, scores, states),  # of value
            "bmm2_grad_gemm2": _product(3, 3, states, states),  # of the weights
        }
        if backward
        else {"bmm1": _product(3, 3, states, states), "bmm2": _product(3, 1, scores, states)}
    )
    settings = {
        "algorithm": {
            "algo_id": "0",
            "math_type": "TENSOR_OP_MATH",
            "tuning_knobs": {"17": "1", "24": "0"},
            "is_cudnn_frontend": True,
            "workspace_size": "0",
        },
        "fmha_scale": 1 / math.sqrt(head_dim),
        "intermediate_tensor_shape": {
            "element_type": "BF16",
            "dimensions": [str(rows), str(heads), str(length), str(length)],
            "layout": {"minor_to_major": ["3", "2", "1", "0"]},
            "is_dynamic_dimension": [False] * 4,
        },
        "is_flash_attention": True,
        "mask_type": "NO_MASK",
        "max_seg_per_batch": 1,
    }
    settings |= {f"{name}_dot_dimension_numbers": axes for name, axes in products.items()}
    return {"cudnn_fmha_backend_config": settings}


def _product(left: int, right: int, left_batch: Sequence[int], right_batch: Sequence[int]) -> dict[str, list[str]]:
    return {
        "lhs_contracting_dimensions": [str(left)],
        "rhs_contracting_dimensions": [str(right)],
        "lhs_batch_dimensions": [str(axis) for axis in left_batch],
        "rhs_batch_dimensions": [str(axis) for axis in right_batch],
    }
