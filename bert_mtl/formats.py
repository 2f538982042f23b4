"""The formats of a bundle's model: `bert_mtl.served` in, a runtime's files and what the manifest says of them out."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import absl.logging
import numpy as np
import tensorflow as tf

from bert_mtl.config import SLOW, Format, Precision
from bert_mtl.runs import RunError
from bert_mtl.served import ID_INPUTS, Served


class Rows(NamedTuple):
    """Texts as arrays `(rows, length)` int32, a text a row; `segment_ids` is 1 on tokens and 0 on padding."""

    token_ids: np.ndarray
    type_ids: np.ndarray
    segment_ids: np.ndarray


def write_format(name: Format, served: Served, folder: Path, precision: Precision, texts: Sequence[Rows]) -> dict:
    """Writes a format below `folder`; returns its part of the manifest's `engines`.

    int8 takes the ranges of activations from `texts`, each alone in its arrays; a format that does not take the
    precision is written in fp32.

    Raises:
        RunError: the converter is not installed or does not know an operation.
    """
    taken: Precision = "fp32" if (name, precision) in SLOW else precision
    try:
        return WRITERS[name](served, folder, taken, texts) | {"dtype": "int32", "precision": taken}
    except ImportError as error:
        raise RunError(f'format {name} needs the extra export (pip install "bert_mtl[export]"): {error}.') from error


def _saved_model(served: Served, folder: Path, precision: Precision, texts: Sequence[Rows]) -> dict:
    absl.logging.set_verbosity(absl.logging.ERROR)  # else every renamed input of the graphs is a warning
    tf.saved_model.save(served, str(folder / "saved_model"), signatures=served.signatures())
    return {"path": "saved_model", "inputs": list(ID_INPUTS)}


def _openvino(served: Served, folder: Path, precision: Precision, texts: Sequence[Rows]) -> dict:
    """OpenVINO's IR with dynamic shapes: operations fused by its converter, weights of half the size but for fp32."""
    import openvino

    model = _converted(served, openvino)
    inputs = [port.any_name for port in model.inputs]
    if precision == "int8":
        model = _quantised(model, inputs, texts)
    (folder / "openvino").mkdir()
    openvino.save_model(model, folder / "openvino" / "model.xml", compress_to_fp16=precision != "fp32")
    return {"path": "openvino", "inputs": inputs}


def _converted(served: Served, openvino: Any) -> Any:
    """The graph `ids` as OpenVINO's model; inputs and outputs are named as in the SavedModel."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    graph = served.ids.get_concrete_function()
    frozen = convert_variables_to_constants_v2(graph)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frozen.pb"
        file.write_bytes(frozen.graph.as_graph_def().SerializeToString())
        try:
            model = openvino.convert_model(file)
        except Exception as error:  # of several types, by the operation
            raise RunError(f"format openvino cannot hold the model: {error}") from error
    for port in model.inputs:
        port.get_tensor().set_names({port.any_name.split(":")[0]})
    heads = {tensor.name: head for head, tensor in zip(sorted(graph.structured_outputs), frozen.outputs, strict=True)}
    for port in model.outputs:
        named = [heads[name] for name in port.get_names() if name in heads]
        port.get_tensor().set_names({*named})
    _order(model)
    return model


def _order(model: Any) -> None:
    """Brings the inputs of OpenVINO's model into the order of `ID_INPUTS`: its converter's differs between processes,
    and with it the file's bytes."""
    parameters = sorted(model.get_parameters(), key=lambda node: ID_INPUTS.index(node.output(0).get_any_name()))
    for parameter in parameters:
        model.remove_parameter(parameter)
    model.add_parameters(parameters)


def _quantised(model: Any, inputs: Sequence[str], texts: Sequence[Rows]) -> Any:
    """8-bit weights and activations (NNCF: ranges from the texts, SmoothQuant, biases corrected)."""
    import logging

    import nncf

    nncf.set_log_level(logging.ERROR)
    data = nncf.Dataset(list(texts), lambda rows: {name: getattr(rows, name) for name in inputs})
    return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=max(len(texts), 1))


WRITERS: dict[Format, Callable[[Served, Path, Precision, Sequence[Rows]], dict]] = {
    "savedmodel": _saved_model,
    "openvino": _openvino,
}
