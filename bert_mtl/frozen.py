"""A traced function goes in; out comes its graph with the variables as constants: what every converter reads."""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


class Frozen(NamedTuple):
    """A graph without variables. Its `inputs` are placeholders, its `outputs` identities, both called as in the
    function: a node `token_ids` or `imdb` gives the tensor `imdb:0`."""

    graph: GraphDef
    inputs: list[str]
    outputs: list[str]

    def function(self) -> Any:
        """The graph as a concrete function of named arguments, to a dictionary of tensors."""

        def call(**arrays: tf.Tensor) -> dict[str, tf.Tensor]:
            outputs = tf.graph_util.import_graph_def(self.graph, arrays, [f"{name}:0" for name in self.outputs])
            return dict(zip(self.outputs, outputs, strict=True))

        nodes = {node.name: node for node in self.graph.node}
        taken = {
            name: tf.TensorSpec(nodes[name].attr["shape"].shape, nodes[name].attr["dtype"].type, name)
            for name in self.inputs
        }
        return tf.function(call, autograph=False).get_concrete_function(**taken)

    def without(self, outputs: Collection[str]) -> "Frozen":
        """The graph that does not give these outputs."""
        return self._replace(outputs=[name for name in self.outputs if name not in outputs])

    def with_nodes(self, nodes: Iterable[NodeDef]) -> "Frozen":
        graph = GraphDef(node=nodes, versions=self.graph.versions)
        if self.graph.HasField("library"):
            graph.library.CopyFrom(self.graph.library)
        return self._replace(graph=graph)


def freeze(function: Any) -> Frozen:
    """The graph of a concrete function with named arguments that returns a dictionary of tensors."""
    frozen = convert_variables_to_constants_v2(function)
    graph, inputs = frozen.graph.as_graph_def(), [node_of(tensor.name) for tensor in frozen.inputs]
    # TensorFlow flattens a dictionary in the order of its sorted keys.
    names = dict(
        zip((node_of(tensor.name) for tensor in frozen.outputs), sorted(function.structured_outputs), strict=True)
    )
    renamed = {node.name: f"{node.name}_" for node in graph.node if node.name in names.values()} | names
    for node in graph.node:
        node.name = renamed.get(node.name, node.name)
        node.input[:] = [_renamed(tensor, renamed) for tensor in node.input]
        node.attr.pop("_gradient_op_type", None)  # names a gradient of this process, which a SavedModel would miss
    return Frozen(graph, inputs, list(names.values()))


def reading(node: NodeDef, inputs: Iterable[str]) -> NodeDef:
    """The node with other inputs."""
    copy = NodeDef()
    copy.CopyFrom(node)
    copy.input[:] = inputs
    return copy


def node_of(tensor: str) -> str:
    """The node that gives a tensor."""
    return tensor.removeprefix("^").partition(":")[0]


def _renamed(tensor: str, names: dict[str, str]) -> str:
    node = node_of(tensor)
    return tensor.replace(node, names.get(node, node), 1)
