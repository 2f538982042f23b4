"""A graph of tf2onnx goes in, whose names and order are chance; out comes one in which they follow from what it
computes, so that the same model gives the same file."""

import hashlib
from collections.abc import Iterator
from typing import Any


def settle(graph: Any) -> None:
    """Orders and names anew the nodes and constants of an ONNX graph, constants that are equal as one; its inputs and
    outputs are called by their nodes, `imdb`, not `imdb:0`. Raises ValueError for graphs within graphs."""
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        raise ValueError("a loop or a condition cannot be named anew")
    ports = [*graph.input, *graph.output]
    names = {port.name: port.name.removesuffix(":0") for port in ports}
    constants = {constant.name: constant for constant in graph.initializer}
    kept = {}
    for name, constant in constants.items():
        constant.name = ""
        constant.name = names[name] = f"constant_{hashlib.sha256(constant.SerializeToString()).hexdigest()[:16]}"
        kept[constant.name] = constant
    nodes = list(_from_outputs(graph))
    for number, node in enumerate(nodes):
        node.name = f"{node.op_type}_{number}"
        for place, tensor in enumerate(node.output):
            if tensor:  # else an output that is left out
                names.setdefault(tensor, f"{node.name}:{place}")
    for node in nodes:
        node.input[:] = [names.get(tensor, tensor) for tensor in node.input]
        node.output[:] = [names.get(tensor, tensor) for tensor in node.output]
    for port in ports:
        port.name = names[port.name]
    used = [kept[name] for name in sorted({tensor for node in nodes for tensor in node.input} & set(kept))]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(used)


def _from_outputs(graph: Any) -> Iterator[Any]:
    """The nodes that outputs need, each behind those it reads, by the order of outputs and of inputs alone."""
    maker = {tensor: place for place, node in enumerate(graph.node) for tensor in node.output}
    done: set[int] = set()
    asked = [maker[port.name] for port in reversed(graph.output)]
    while asked:
        place = asked[-1]
        read = [maker[tensor] for tensor in graph.node[place].input if tensor in maker]
        missing = [other for other in read if other not in done]
        if missing:
            asked += reversed(missing)
            continue
        if asked.pop() not in done:
            done.add(place)
            yield graph.node[place]
