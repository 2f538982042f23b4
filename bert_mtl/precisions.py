"""The formats of a bundle's model, and which precisions each of them takes."""

from typing import Literal

Format = Literal["savedmodel", "graphdef", "openvino", "onnx", "litert"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
REFUSED: dict[tuple[Format, Precision], str] = {
    ("savedmodel", "bf16"): "a SavedModel in bf16 converts between types around every product",
    ("savedmodel", "fp16"): "TensorFlow has no fp16 products for CPUs",
    ("savedmodel", "int8"): "TensorFlow has no 8-bit products for a SavedModel of BERT",
    ("graphdef", "bf16"): "a GraphDef in bf16 converts between types around every product",
    ("onnx", "bf16"): "ONNX Runtime has no bf16 products for CPUs",
    ("litert", "bf16"): "LiteRT's converter leaves float32 where bf16 is asked for",
}
"""Why a format does not take a precision; beside one that does, it is written in fp32."""
