"""A traced function goes in; out comes its graph with the variables as constants: what every converter reads."""

from typing import Any, NamedTuple

from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


class Frozen(NamedTuple):
    """A graph without variables. Its `inputs` are placeholders, its `outputs` identities, both called as in the
    function: a node `token_ids` or `imdb` gives the tensor `imdb:0`."""

    graph: GraphDef
    inputs: list[str]
    outputs: list[str]


def freeze(function: Any) -> Frozen:
    """The graph of a concrete function with named arguments that returns a dictionary of tensors."""
    frozen = convert_variables_to_constants_v2(function)
    graph, inputs = frozen.graph.as_graph_def(), [_node(tensor.name) for tensor in frozen.inputs]
    # TensorFlow flattens a dictionary in the order of its sorted keys.
    names = dict(
        zip((_node(tensor.name) for tensor in frozen.outputs), sorted(function.structured_outputs), strict=True)
    )
    renamed = {node.name: f"{node.name}_" for node in graph.node if node.name in names.values()} | names
    for node in graph.node:
        node.name = renamed.get(node.name, node.name)
        node.input[:] = [_renamed(tensor, renamed) for tensor in node.input]
    return Frozen(graph, inputs, list(names.values()))


def _node(tensor: str) -> str:
    """The node that gives a tensor."""
    return tensor.removeprefix("^").partition(":")[0]


def _renamed(tensor: str, names: dict[str, str]) -> str:
    node = _node(tensor)
    return tensor.replace(node, names.get(node, node), 1)
