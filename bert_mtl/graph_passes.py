"""A frozen graph goes in, one that answers alike comes out: the Graph Transform Tool's passes on today's TensorFlow.

Grappler does the work. Every pass keeps the names of inputs and outputs, and the same graph gives the same bytes.
"""

import graphlib
from collections.abc import Callable

from tensorflow.core.protobuf.config_pb2 import ConfigProto
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
from tensorflow.python.grappler.tf_optimizer import OptimizeGraph

from bert_mtl.frozen import Frozen, node_of, reading

IDENTITIES = {"Identity", "IdentityN", "StopGradient", "PreventGradient"}  # the last two where nothing is learned


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
    return frozen.with_nodes([node for node in frozen.graph.node if node.name in needed])


def remove_identities(frozen: Frozen) -> Frozen:
    """Without the nodes that give what they read, but for outputs, and without edges between nodes whose order does not
    matter. (Grappler alone leaves an IdentityN that several nodes read.)"""
    nodes = {node.name: node for node in frozen.graph.node}

    def source(tensor: str) -> str:
        node, _, place = tensor.partition(":")
        is_identity = not node.startswith("^") and nodes[node].op in IDENTITIES
        return source(nodes[node].input[int(place or 0)]) if is_identity else tensor

    direct = [reading(node, map(source, node.input)) for node in frozen.graph.node]
    return _rewritten(frozen.with_nodes(direct), "pruning", "dependency")


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
    return frozen.with_nodes([nodes[name] for name in order])


PASSES: dict[str, Callable[[Frozen], Frozen]] = {
    "strip_unused": strip_unused,
    "remove_identities": remove_identities,
    "fold_constants": fold_constants,
    "merge_duplicates": merge_duplicates,
    "sort_by_execution_order": sort_by_execution_order,
}


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
