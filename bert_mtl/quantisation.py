"""An optimised graph goes in, the same one with large matrices of half or a quarter of the size comes out.

It computes in float32 as before: numbers are converted within the graph.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef

from bert_mtl.frozen import Frozen, node_of, reading
from bert_mtl.graph_passes import strip_unused

LARGE = 4096  # numbers of a matrix from which on it is quantised
STORED = {"fp16": tf.float16, "int8": tf.int8}


def quantised(frozen: Frozen, precision: Literal["fp16", "int8"]) -> Frozen:
    """The graph with its large matrices stored as float16, or as int8 with a scale for every column, which is an output
    of a layer.

    Where rows of a matrix are gathered, those rows alone become float32, behind the gather.
    """
    nodes = {node.name: node for node in frozen.graph.node}
    large = {name for name, node in nodes.items() if _is_large(node)}
    found: list[NodeDef] = []
    for name, node in nodes.items():
        matrix = name if name in large else _gathered(node, nodes)
        if name in large:
            found += _stored(name, tf.make_ndarray(node.attr["value"].tensor), precision)
        elif matrix in large:
            gather = reading(node, [f"{matrix}/stored", *node.input[1:]])
            gather.name = f"{name}/stored"
            gather.attr["Tparams"].type = STORED[precision].as_datatype_enum
            found.append(gather)
        found += _restored(name, matrix, precision) if matrix in large else [node]
    return strip_unused(frozen.with_nodes(found))


def _is_large(node: NodeDef) -> bool:
    if node.op != "Const":
        return False
    tensor = node.attr["value"].tensor
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    return tensor.dtype == tf.float32.as_datatype_enum and len(shape) > 1 and math.prod(shape) >= LARGE


def _gathered(node: NodeDef, nodes: Mapping[str, NodeDef]) -> str:
    """The node whose rows a node gathers, else nothing."""
    if node.op != "GatherV2" or (axis := nodes[node_of(node.input[2])]).op != "Const":
        return ""
    return "" if tf.make_ndarray(axis.attr["value"].tensor) else node_of(node.input[0])


def _stored(name: str, values: np.ndarray, precision: str) -> Iterator[NodeDef]:
    """Constants `stored`, of the matrix's shape, and for int8 `scale` `(columns,)`; no number is off by more than half
    its column's scale."""
    if precision == "int8":
        largest = np.abs(values).max(axis=tuple(range(values.ndim - 1)))
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        yield _node("Const", f"{name}/scale", value=scale, dtype=tf.float32)
        values = np.rint(values / scale)
    dtype = STORED[precision]
    yield _node("Const", f"{name}/stored", value=values.astype(dtype.as_numpy_dtype), dtype=dtype)


def _restored(name: str, matrix: str, precision: str) -> Iterator[NodeDef]:
    """Nodes after which `name` is what `name/stored` stands for in float32."""
    scaled = precision == "int8"
    as_float = f"{name}/float" if scaled else name
    yield _node("Cast", as_float, f"{name}/stored", SrcT=STORED[precision], DstT=tf.float32)
    if scaled:
        yield _node("Mul", name, as_float, f"{matrix}/scale", T=tf.float32)


def _node(op: str, name: str, *inputs: str, **attributes: tf.DType | np.ndarray) -> NodeDef:
    node = NodeDef(op=op, name=name, input=inputs)
    for key, value in attributes.items():
        if isinstance(value, np.ndarray):
            node.attr[key].tensor.CopyFrom(tf.make_tensor_proto(value))
        else:
            node.attr[key].type = value.as_datatype_enum
    return node
