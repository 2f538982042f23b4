"""Padded rows go in, each head's numbers come out. One class per runtime; `open_engine` picks one.

A runtime is imported by its own class alone, so that the server runs where only one of them is installed.
"""

import math
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np

from conf.errors import Problem
from serving.bundle import Bundle
from serving.heads import Head

EngineName = Literal["auto", "openvino", "savedmodel", "dummy"]


class EngineError(Exception):
    """The engine cannot be opened, or answered something that its manifest does not say."""

    user_error = True


class Engine(Protocol):
    """Runs the model on arrays `(rows, length)` int32."""

    def predict(self, token_ids: np.ndarray, type_ids: np.ndarray, segment_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Numbers `Head.output_shape(rows, length)` float32 by head; `segment_ids` is 1 on tokens and 0 on padding."""
        ...


class SavedModelEngine:
    """TensorFlow running the SavedModel's "ids" signature; `threads` is the number for one operation, None for all."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        try:
            import tensorflow as tf
            import tensorflow_text  # noqa: F401  (the text signature's operations must be known to load the model)
        except ImportError as error:
            raise EngineError(f"engine savedmodel needs TensorFlow (pip install tensorflow-text): {error}") from error
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        files = bundle.manifest.engines["savedmodel"]
        # The signature alone would not keep the model's variables alive.
        self._model = tf.saved_model.load(str(bundle.file(f"{files.path}/saved_model.pb").parent))
        if "ids" not in self._model.signatures:
            signatures = ", ".join(self._model.signatures) or "none"
            raise EngineError(f"the SavedModel must have the signature ids; it has {signatures}")
        self._signature = self._model.signatures["ids"]
        self._inputs = files.inputs
        self._tensor = tf.constant

    def predict(self, token_ids: np.ndarray, type_ids: np.ndarray, segment_ids: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {"token_ids": token_ids, "type_ids": type_ids, "segment_ids": segment_ids}
        outputs = self._signature(**{name: self._tensor(arrays[name]) for name in self._inputs})
        return {head: output.numpy() for head, output in outputs.items()}


class OpenVINOEngine:
    """OpenVINO running the model on the CPU; `threads` is their number, None for a thread a core. With bf16 and int8,
    what is not of 8 bits is computed in bfloat16."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        try:
            import openvino
        except ImportError as error:
            raise EngineError(f"engine openvino needs OpenVINO (pip install openvino): {error}") from error
        files = bundle.manifest.engines["openvino"]
        core = openvino.Core()
        has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if files.precision == "bf16" and not has_bf16:
            raise EngineError("engine openvino must run on a processor with bfloat16, without which bf16 is slow: "
                              "export with precision=fp32 or int8")  # fmt: skip
        settings = {"INFERENCE_PRECISION_HINT": "bf16" if files.precision != "fp32" and has_bf16 else "f32"}
        settings |= {"PERFORMANCE_HINT": "LATENCY"}  # one request at a time on all threads
        if threads is not None:
            settings |= {"INFERENCE_NUM_THREADS": str(threads)}
        bundle.file(f"{files.path}/model.bin")
        model = core.compile_model(bundle.file(f"{files.path}/model.xml"), "CPU", settings)
        self._heads = [[head for head in bundle.manifest.heads if head in port.get_names()] for port in model.outputs]
        self._request, self._inputs = model.create_infer_request(), files.inputs

    def predict(self, token_ids: np.ndarray, type_ids: np.ndarray, segment_ids: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {"token_ids": token_ids, "type_ids": type_ids, "segment_ids": segment_ids}
        outputs = self._request.infer({name: arrays[name] for name in self._inputs}).values()
        # The next call writes into the same memory.
        return {head: output.copy() for heads, output in zip(self._heads, outputs, strict=True) for head in heads}


class DummyEngine:
    """No model: numbers that depend on token ids alone, for trying and testing what surrounds one. Those of a row or
    token add up to 1, as probabilities do."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self._heads = bundle.manifest.heads

    def predict(self, token_ids: np.ndarray, type_ids: np.ndarray, segment_ids: np.ndarray) -> dict[str, np.ndarray]:
        tokens = (token_ids * segment_ids).astype(np.int64)
        return {name: self._numbers(head, tokens) for name, head in self._heads.items()}

    @staticmethod
    def _numbers(head: Head, tokens: np.ndarray) -> np.ndarray:
        shape = head.output_shape(*tokens.shape)
        sums = tokens.sum(axis=1, keepdims=True) if head.level == "text" else tokens.reshape(-1, 1)
        count = math.prod(head.shape)
        scores = (sums + np.arange(count)) % count + 1.0
        return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32).reshape(shape)


ENGINES: dict[str, Callable[[Bundle, int | None], Engine]] = {
    "openvino": OpenVINOEngine,
    "savedmodel": SavedModelEngine,
    "dummy": DummyEngine,
}


def open_engine(name: EngineName, bundle: Bundle, threads: int | None = None) -> Engine:
    """The named engine with the bundle's model loaded; auto takes the first of `ENGINES` that the bundle has files for.

    Raises `EngineError` where the bundle has no files for it, or its runtime is not installed.
    """
    exported = [engine for engine in ENGINES if engine in bundle.manifest.engines]
    chosen = exported[0] if name == "auto" and exported else name
    if chosen not in (*exported, "dummy"):
        options = ["auto", *exported, "dummy"] if exported else ["dummy"]
        raise EngineError(str(Problem("engine", "be one that the bundle has files for", name, options)))
    return ENGINES[chosen](bundle, threads)
