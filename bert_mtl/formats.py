"""The formats of a bundle's model: `bert_mtl.served` in, a runtime's files and what the manifest says of them out."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow as tf

from bert_mtl.frozen import Frozen, freeze
from bert_mtl.graph_passes import optimised
from bert_mtl.onnx_names import settle
from bert_mtl.precisions import REFUSED, Format, Precision
from bert_mtl.quantisation import quantised
from bert_mtl.runs import RunError
from bert_mtl.served import ID_INPUTS, Served, Stage

Arrays = Mapping[str, np.ndarray]
"""What a stage takes, by name, of one text or of several (`served.Stage`)."""


def write_format(
    name: Format, served: Served, stages: Sequence[Stage], folder: Path, precision: Precision, texts: Sequence[Arrays]
) -> dict:
    """Writes a format below `folder`: the SavedModel of all signatures, or a file for each of `stages`; returns its
    part of the manifest's `engines`.

    OpenVINO's int8 takes the ranges of activations from `texts`, what the first stage takes of each. A format that does
    not take the precision is written in fp32.

    Raises:
        RunError: the converter is not installed or does not know an operation.
    """
    taken: Precision = "fp32" if (name, precision) in REFUSED else precision
    if name == "savedmodel":
        with _quietly():
            return {"precision": taken, "stages": [_saved_model(served, folder, stages)]}
    suffix, write = WRITERS[name]
    (folder / name).mkdir()
    found = []
    for stage in stages:
        path = f"{name}/{'model' if len(stages) == 1 else f'to_layer_{stage.depth}'}{suffix}"
        frozen, vectors = freeze(stage.function), {"layers": stage.layers, "pooled": stage.pooled}
        if name == "litert":  # whose runtime computes all outputs, asked for or not
            frozen, vectors = frozen.without(stage.vectors), {}
        try:
            with _quietly():
                write(frozen, folder / path, taken, texts)
        except ImportError as error:
            raise RunError(
                f'format {name} needs the extra export (pip install "bert_mtl[export]"): {error}.'
            ) from error
        except OSError:
            raise
        except Exception as error:  # of several types, by the converter and the operation
            raise RunError(f"format {name} cannot hold the model: {error}") from error
        found.append({"path": path, "inputs": frozen.inputs, "depth": stage.depth, **vectors})
        if stage is not stages[-1]:
            texts = [_behind(stage, arrays) for arrays in texts]
    return {"precision": taken, "stages": found}


@contextmanager
def _quietly() -> Iterator[None]:
    """Converters warn of what they do themselves: calls that will go, inputs that they rename."""
    before = absl.logging.get_verbosity(), logging.root.manager.disable
    absl.logging.set_verbosity(absl.logging.ERROR)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        absl.logging.set_verbosity(before[0])
        logging.disable(before[1])


def _behind(stage: Stage, arrays: Arrays) -> Arrays:
    """What the next stage takes of texts of which this one takes `arrays`."""
    outputs = stage.function(**{name: tf.constant(values) for name, values in arrays.items()})
    return {"states": outputs["next_states"].numpy(), "segment_ids": arrays["segment_ids"]}


def _saved_model(served: Served, folder: Path, stages: Sequence[Stage]) -> dict:
    tf.saved_model.save(served, str(folder / "saved_model"), signatures=served.signatures())
    layers, (*_, last) = [number for stage in stages for number in stage.layers], stages
    said = {"path": "saved_model", "inputs": list(ID_INPUTS), "depth": last.depth}
    return said | {"layers": layers, "pooled": last.pooled}


def _graphdef(frozen: Frozen, path: Path, precision: Precision, texts: Sequence[Arrays]) -> None:
    """After all graph passes; weights of 16 and of 8 bits are computed with in float32. (Converters read the graph as
    it was: they look for patterns, which the passes change.)"""
    frozen = optimised(frozen)
    if precision in ("fp16", "int8"):
        frozen = quantised(frozen, precision)
    path.write_bytes(frozen.graph.SerializeToString(deterministic=True))


def _openvino(frozen: Frozen, path: Path, precision: Precision, texts: Sequence[Arrays]) -> None:
    """The IR with dynamic shapes: operations fused by its converter, weights of half the size but for fp32."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frozen.pb"
        file.write_bytes(frozen.graph.SerializeToString())
        model = openvino.convert_model(file)
    for port in (*model.inputs, *model.outputs):
        names = {name.split(":")[0] for name in port.get_names()}
        port.get_tensor().set_names(names & {*frozen.inputs, *frozen.outputs})
    _order(model, frozen.inputs)
    if precision == "int8":
        model = _calibrated(model, texts)
    openvino.save_model(model, path, compress_to_fp16=precision != "fp32")


def _order(model: Any, names: Sequence[str]) -> None:
    """Brings the inputs of OpenVINO's model into the order of `names`: its converter's differs between processes, and
    with it the file's bytes."""
    parameters = sorted(model.get_parameters(), key=lambda node: names.index(node.output(0).get_any_name()))
    for parameter in parameters:
        model.remove_parameter(parameter)
    model.add_parameters(parameters)


def _calibrated(model: Any, texts: Sequence[Arrays]) -> Any:
    """8-bit weights and activations (NNCF: ranges from the texts, SmoothQuant, biases corrected)."""
    import nncf

    data = nncf.Dataset(list(texts))
    return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=max(len(texts), 1))


def _onnx(frozen: Frozen, path: Path, precision: Precision, texts: Sequence[Arrays]) -> None:
    """Weights of 8 bits have a scale for each output; activations are rounded as they come, by one scale for all texts
    of a batch, so that a text's numbers depend a little on its neighbours."""
    import onnx
    import tf2onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.float16 import convert_float_to_float16

    ports = [[f"{name}:0" for name in names] for names in (frozen.inputs, frozen.outputs)]
    model, _ = tf2onnx.convert.from_graph_def(frozen.graph, input_names=ports[0], output_names=ports[1], opset=18)
    settle(model.graph)
    if precision == "fp16":
        model = convert_float_to_float16(model, keep_io_types=True)
    if precision != "int8":
        onnx.save(model, path)
    else:
        quantize_dynamic(model, path, weight_type=QuantType.QInt8, per_channel=True)


def _litert(frozen: Frozen, path: Path, precision: Precision, texts: Sequence[Arrays]) -> None:
    """A file with the signature `serving_default`; weights of 8 bits have a scale for each output, activations are
    rounded as they come; those of 16 bits are computed with in float32."""
    with tempfile.TemporaryDirectory() as folder:
        module = tf.Module()
        module.answer = frozen.function()
        tf.saved_model.save(module, folder, signatures=module.answer)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        if precision != "fp32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        path.write_bytes(converter.convert())


Writer = Callable[[Frozen, Path, Precision, Sequence[Arrays]], None]
WRITERS: dict[Format, tuple[str, Writer]] = {
    "graphdef": (".pb", _graphdef),
    "openvino": (".xml", _openvino),
    "onnx": (".onnx", _onnx),
    "litert": (".tflite", _litert),
}
