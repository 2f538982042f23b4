"""A frozen graph goes in, one that answers alike comes out: the Graph Transform Tool's passes on today's TensorFlow.

Grappler does the work. Every pass keeps the names of inputs and outputs, and the same graph gives the same bytes.
"""

import graphlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.config_pb2 import ConfigProto
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.grappler.tf_optimizer import OptimizeGraph

from bert_mtl.frozen import Frozen, node_of

LARGE = 4096  # numbers of a matrix from which on it is quantised
STORED = {"fp16": tf.float16, "int8": tf.int8}


def optimised(frozen: Frozen) -> Frozen:
    """The graph after all `PASSES`."""
    for run in PASSES.values():
        frozen = run(frozen)
    return frozen


def strip_unused(frozen: Frozen) -> Frozen:
    """Without the nodes that no output needs; inputs stay, read or not."""
    inputs = {node.name: node.input for node in frozen.graph.node}
    needed: set[str] = set()
    asked = [*frozen.inputs, *frozen.outputs]
    while asked:
        name = asked.pop()
        if name not in needed:
            needed.add(name)
            asked += map(node_of, inputs[name])
    return _with_nodes(frozen, [node for node in frozen.graph.node if node.name in needed])


def remove_identities(frozen: Frozen) -> Frozen:
    """Without the nodes that give what they read, as StopGradient, PreventGradient and IdentityN do too where nothing
    is learned, and without edges between nodes whose order does not matter."""
    return _rewritten(frozen, "pruning", "dependency")


def fold_constants(frozen: Frozen) -> Frozen:
    """With its value in place of whatever constants alone decide."""
    return _rewritten(frozen, "constfold", "dependency")


def merge_duplicates(frozen: Frozen) -> Frozen:
    """With one node in place of several that compute the same from the same; equal constants are one too."""
    return _rewritten(frozen, "common_subgraph_elimination")


def sort_by_execution_order(frozen: Frozen) -> Frozen:
    """With every node behind those it reads: first all that read none, then all that read only these, and so on, each
    time by name. Raises graphlib.CycleError where the graph holds a loop."""
    nodes = {node.name: node for node in frozen.graph.node}
    sorter = graphlib.TopologicalSorter({name: map(node_of, node.input) for name, node in nodes.items()})
    sorter.prepare()
    order: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        order += ready
        sorter.done(*ready)
    return _with_nodes(frozen, [nodes[name] for name in order])


PASSES: dict[str, Callable[[Frozen], Frozen]] = {
    "strip_unused": strip_unused,
    "remove_identities": remove_identities,
    "fold_constants": fold_constants,
    "merge_duplicates": merge_duplicates,
    "sort_by_execution_order": sort_by_execution_order,
}


def quantised(frozen: Frozen, precision: Literal["fp16", "int8"]) -> Frozen:
    """An optimised graph with its large matrices stored as float16, or as int8 with a scale for every column, which is
    an output of a layer; it computes in float32 as before.

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
            gather = NodeDef()
            gather.CopyFrom(node)
            gather.name, gather.input[0] = f"{name}/stored", f"{matrix}/stored"
            gather.attr["Tparams"].type = STORED[precision].as_datatype_enum
            found.append(gather)
        found += _restored(name, matrix, precision) if matrix in large else [node]
    return strip_unused(_with_nodes(frozen, found))


def _rewritten(frozen: Frozen, *optimizers: str) -> Frozen:
    """What Grappler's optimizers, once and in this order, make of the graph."""
    config = ConfigProto()
    rewriter = config.graph_options.rewrite_options
    rewriter.optimizers.extend(optimizers)
    rewriter.meta_optimizer_iterations = RewriterConfig.ONE
    rewriter.min_graph_nodes = -1  # else it leaves small graphs alone
    rewriter.fail_on_optimizer_errors = True
    whole = MetaGraphDef(graph_def=frozen.graph)
    whole.collection_def["train_op"].node_list.value.extend([*frozen.inputs, *frozen.outputs])  # what has to stay
    return frozen._replace(graph=OptimizeGraph(config, whole, verbose=False))


def _with_nodes(frozen: Frozen, nodes: Sequence[NodeDef]) -> Frozen:
    graph = GraphDef(node=nodes, versions=frozen.graph.versions)
    if frozen.graph.HasField("library"):
        graph.library.CopyFrom(frozen.graph.library)
    return frozen._replace(graph=graph)


def _is_large(node: NodeDef) -> bool:
    tensor = node.attr["value"].tensor
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    is_matrix = node.op == "Const" and tensor.dtype == tf.float32.as_datatype_enum and len(shape) > 1
    return is_matrix and np.prod(shape) >= LARGE


def _gathered(node: NodeDef, nodes: dict[str, NodeDef]) -> str | None:
    """The node whose rows a node gathers, if it does."""
    if node.op != "GatherV2" or (axis := nodes[node_of(node.input[2])]).op != "Const":
        return None
    return None if tf.make_ndarray(axis.attr["value"].tensor) else node_of(node.input[0])


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
