"""A stage's arrays go in, each head's numbers come out, or what vectors are made of. One opener per runtime;
`open_engine` picks one.

A runtime is imported by its own opener alone, so that the server runs where only one of them is installed.
"""

import functools
import math
import os
import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from conf.errors import Problem
from serving.bundle import Bundle, Precision, StageFiles, layer_name
from serving.errors import EngineError
from serving.heads import Head

EngineName = Literal["auto", "litert", "openvino", "onnx", "savedmodel", "graphdef", "dummy"]
T = TypeVar("T")
Arrays = Mapping[str, np.ndarray]
Outputs = frozenset[str]
"""Names of what a stage is asked for."""


class Run(Protocol):
    """The arrays of `StageFiles.inputs` to numbers `Head.output_shape(rows, length)` float32 by head, and to
    `next_states`, the `states` of the next stage, where there is one; or to the outputs that are `asked` for,
    `StageFiles.vectors` among them. Raises `EngineError` for others."""

    def __call__(self, arrays: Arrays, asked: Outputs | None = None) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Engine:
    """A bundle's model in one runtime: what runs each of its stages, for as many threads at a time as it has lanes."""

    name: str
    stages: list[StageFiles]
    runs: list[Run]
    gate: threading.Semaphore = field(default_factory=lambda: threading.BoundedSemaphore(1))

    def run(self, number: int, arrays: Arrays, outputs: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """What stage `number` gives for the arrays; others than it takes are let be.

        `outputs` are names of heads, `next_states` and `StageFiles.vectors`; None asks for all but the last. What
        nobody asks for is not computed where the runtime can leave it out. Raises `EngineError` for other names.
        """
        run = self.runs[number]
        taken: dict[str, np.ndarray] = {name: arrays[name] for name in self.stages[number].inputs}
        with self.gate:
            return run(taken) if outputs is None else run(taken, frozenset(outputs))

    def predict(self, arrays: Arrays) -> list[dict[str, np.ndarray]]:
        """What the heads answer behind every stage."""
        found: list[dict[str, np.ndarray]] = []
        for number in range(len(self.stages)):
            outputs = self.run(number, arrays)
            arrays = {**arrays, "states": outputs.pop("next_states", np.zeros(()))}
            found.append(outputs)
        return found


class Share(NamedTuple):
    """Of the machine: batches that run side by side, and the threads of each (None: the runtime's own choice)."""

    lanes: int
    threads: int | None

    @property
    def all_threads(self) -> int | None:
        return None if self.threads is None else self.lanes * self.threads


class Pool(Generic[T]):
    """As many of a thing as there are lanes, for one thread at a time each: first the one that was used last, whose
    memory is still in the caches."""

    def __init__(self, things: Iterable[T]) -> None:
        self._idle: queue.LifoQueue[T] = queue.LifoQueue()
        for thing in things:
            self._idle.put(thing)

    @contextmanager
    def one(self) -> Iterator[T]:
        thing = self._idle.get()
        try:
            yield thing
        finally:
            self._idle.put(thing)


def _wanted(stage: StageFiles, names: Collection[str], asked: Outputs | None) -> list[str]:
    """The outputs that are asked for, of those that the stage gives, `names`."""
    if asked is None:
        return [name for name in names if name not in stage.vectors]
    if missing := sorted(asked.difference(names)):
        raise EngineError(f"the model must give {', '.join(missing)}; it gives {', '.join(names)}")
    return [name for name in names if name in asked]


def _saved_model(bundle: Bundle, stage: StageFiles, precision: Precision, share: Share) -> Run:
    """TensorFlow running the SavedModel's signatures "ids" and "layers"."""
    tf = _tensorflow("savedmodel", share.all_threads)
    # The signature alone would not keep the model's variables alive.
    model = tf.saved_model.load(str(bundle.file(f"{stage.path}/saved_model.pb").parent))
    if "ids" not in model.signatures:
        raise EngineError(f"the SavedModel must have the signature ids; it has {', '.join(model.signatures) or 'none'}")
    signature_of = {name: "ids" for name in model.signatures["ids"].structured_outputs}
    signature_of |= dict.fromkeys(stage.vectors, "layers")

    def run(arrays: Arrays, asked: Outputs | None = None, model=model) -> dict[str, np.ndarray]:
        names = _wanted(stage, signature_of, asked)
        given = {name: tf.constant(values) for name, values in arrays.items()}
        found = {each: model.signatures[each](**given) for each in {signature_of[name] for name in names}}
        return {name: found[signature_of[name]][name].numpy() for name in names}

    return run


def _graphdef(bundle: Bundle, stage: StageFiles, precision: Precision, share: Share) -> Run:
    """TensorFlow running a frozen graph, cut down to what is asked for."""
    tf = _tensorflow("graphdef", share.all_threads)
    graph = tf.compat.v1.GraphDef.FromString(bundle.file(stage.path).read_bytes())
    inputs = [node.name for node in graph.node if node.op == "Placeholder"]
    used = {tensor.lstrip("^").split(":")[0] for node in graph.node for tensor in node.input}
    outputs = [node.name for node in graph.node if node.name not in used or node.name in stage.vectors]
    function = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph, name=""), [])

    @functools.cache
    def pruned(names: tuple[str, ...]) -> Any:
        return function.prune(
            *([function.graph.get_tensor_by_name(f"{n}:0") for n in each] for each in (inputs, names))
        )

    def run(arrays: Arrays, asked: Outputs | None = None) -> dict[str, np.ndarray]:
        names = tuple(_wanted(stage, outputs, asked))
        found = pruned(names)(*(tf.constant(arrays[name]) for name in inputs))
        return {name: output.numpy() for name, output in zip(names, found, strict=True)}

    return run


def _tensorflow(name: str, threads: int | None):
    try:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401  (the text signature's operations must be known to load the model)
    except ImportError as error:
        raise EngineError(f"engine {name} needs TensorFlow (pip install tensorflow-text): {error}") from error
    if threads is not None:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        except RuntimeError as error:  # TensorFlow works already
            raise EngineError(f"engine {name} cannot have {threads} threads any more: {error}") from error
    return tf


def _openvino(bundle: Bundle, stage: StageFiles, precision: Precision, share: Share) -> Run:
    """OpenVINO on the CPU. With bf16 and int8, what is not of 8 bits is computed in bfloat16 where the processor has
    it."""
    # oneDNN below it would keep kernels of 1,024 shapes, 150 MB for nothing; it reads this as it is loaded.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    try:
        import openvino
    except ImportError as error:
        raise EngineError(f"engine openvino needs OpenVINO (pip install openvino): {error}") from error
    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:
        raise EngineError("engine openvino must run on a processor with bfloat16, without which bf16 is slow: "
                          "export with precision=fp32 or int8")  # fmt: skip
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if precision in ("bf16", "int8") and has_bf16 else "f32"}
    # Kernels are kept for so many shapes: without a bound each new one would take memory for good.
    settings |= {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": str(share.lanes), "CPU_RUNTIME_CACHE_CAPACITY": "64"}
    # Threads of two processes would be pinned to the same cores.
    settings |= {"ENABLE_CPU_PINNING": "NO"}
    if share.all_threads is not None:
        settings |= {"INFERENCE_NUM_THREADS": str(share.all_threads)}
    bundle.file(stage.path.replace(".xml", ".bin"))
    model = core.read_model(bundle.file(stage.path))
    parts = _Parts(model, lambda part: core.compile_model(part, "CPU", settings), share.lanes)
    default, everything = tuple(_wanted(stage, parts.place_of, None)), tuple(parts.place_of)
    requests, compiling = {default: parts.requests(default)}, threading.Lock()

    def run(arrays: Arrays, asked: Outputs | None = None) -> dict[str, np.ndarray]:
        names = _wanted(stage, parts.place_of, asked)
        key = default if set(names) <= set(default) else tuple(names)
        with compiling:
            if key not in requests and len(requests) > 1:  # each takes as much memory: there is one for the first
                key = everything  # vectors that are asked for, and one for all others
            if key not in requests:
                requests[key] = parts.requests(key)
        with requests[key].one() as infer:
            found = infer(arrays)
        return {name: found[name] for name in names}

    return run


class _Parts:
    """OpenVINO's model cut down to some of its outputs, compiled by `compiled`, with an infer request for each lane."""

    def __init__(self, model: Any, compiled: Callable[[Any], Any], lanes: int) -> None:
        self.model, self.compiled, self.lanes = model, compiled, lanes
        # One output may have two names, as `next_states` are those of a layer.
        self.place_of = {name: place for place, port in enumerate(model.outputs) for name in port.get_names()}

    def requests(self, names: Sequence[str]) -> Pool[Callable[[Arrays], dict[str, np.ndarray]]]:
        """What gives the named outputs, and computes nothing that they do not need."""
        import openvino

        places = sorted({self.place_of[name] for name in names})
        results = [self.model.outputs[place].get_node() for place in places]
        compiled = self.compiled(openvino.Model(results, self.model.get_parameters(), "part"))

        def infer(request: Any, arrays: Arrays) -> dict[str, np.ndarray]:
            found = request.infer(dict(arrays), share_inputs=True, share_outputs=True)
            outputs = dict(zip(places, found.values(), strict=True))
            # The next call writes into the same memory.
            return {name: outputs[self.place_of[name]].copy() for name in names}

        return Pool(functools.partial(infer, compiled.create_infer_request()) for _ in range(self.lanes))


def _onnx(bundle: Bundle, stage: StageFiles, precision: Precision, share: Share) -> Run:
    """ONNX Runtime on the CPU. It computes all outputs, and copies those that are asked for."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"engine onnx needs ONNX Runtime (pip install onnxruntime): {error}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = share.threads or 0
    session = onnxruntime.InferenceSession(bundle.file(stage.path), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def run(arrays: Arrays, asked: Outputs | None = None) -> dict[str, np.ndarray]:
        names = _wanted(stage, outputs, asked)
        return dict(zip(names, session.run(names, dict(arrays)), strict=True))

    return run


def _litert(bundle: Bundle, stage: StageFiles, precision: Precision, share: Share) -> Run:
    """LiteRT on the CPU, with XNNPACK."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise EngineError(f"engine litert needs LiteRT (pip install ai-edge-litert): {error}") from error
    # It would take one.
    threads = share.threads or len(os.sched_getaffinity(0))
    interpreters = [Interpreter(str(bundle.file(stage.path)), num_threads=threads) for _ in range(share.lanes)]
    runners = Pool(interpreter.get_signature_runner("serving_default") for interpreter in interpreters)

    def run(arrays: Arrays, asked: Outputs | None = None) -> dict[str, np.ndarray]:
        with runners.one() as answer:
            found = answer(**arrays)
        return {name: found[name] for name in _wanted(stage, found, asked)}

    return run


def _dummy(heads: Mapping[str, Head], dim: int) -> Run:
    """No model: numbers that depend on token ids alone, for trying and testing what surrounds one. Those of a row or
    token add up to 1, as probabilities do; states of a layer are `ids + layer + place in the vector`, the pooled output
    is the last layer's state of the first token, all by 1,000."""

    def numbers(head: Head, tokens: np.ndarray) -> np.ndarray:
        shape = head.output_shape(*tokens.shape)
        sums = tokens.sum(axis=1, keepdims=True) if head.level == "text" else tokens.reshape(-1, 1)
        count = math.prod(head.shape)
        scores = (sums + np.arange(count)) % count + 1.0
        return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32).reshape(shape)

    def run(arrays: Arrays, asked: Outputs | None = None) -> dict[str, np.ndarray]:
        tokens = (arrays["token_ids"] * arrays["segment_ids"]).astype(np.int64)
        states = ((tokens[:, :, None] + np.arange(dim)) / 1000).astype(np.float32)
        found = {name: numbers(head, tokens) for name, head in heads.items()}
        found |= {layer_name(number): states + np.float32(number / 1000) for number in DUMMY.layers}
        found["pooled"] = found[layer_name(DUMMY.depth)][:, 0]
        return {name: found[name] for name in _wanted(DUMMY, found, asked)}

    return run


OPENERS: dict[str, Callable[[Bundle, StageFiles, Precision, Share], Run]] = {
    "litert": _litert,
    "openvino": _openvino,
    "onnx": _onnx,
    "savedmodel": _saved_model,
    "graphdef": _graphdef,
}
DUMMY = StageFiles(path="", inputs=["token_ids", "segment_ids"], depth=2, layers=[0, 1, 2], pooled=True)
DUMMY_DIM = 8  # where the manifest does not say another


def for_vectors(chosen: EngineName, opened: str, bundle: Bundle) -> EngineName | None:
    """The engine that vectors are made by: the one that is `opened`, or where auto has chosen one that gives none, the
    first that the bundle has files for and does; None where there is none."""
    if opened == "dummy":
        return "dummy"
    engines = bundle.manifest.engines
    able = [name for name in OPENERS if name in engines and any(stage.layers for stage in engines[name].stages)]
    found = opened if opened in able else next(iter(able), None) if chosen == "auto" else None
    return found  # type: ignore[return-value]  # the formats are called as their engines


def open_engine(name: EngineName, bundle: Bundle, threads: int | None = None, lanes: int = 1) -> Engine:
    """The named engine with the bundle's model loaded; auto takes the first of `OPENERS` that the bundle has files for.
    `lanes` batches can run side by side, each by so many `threads` (None: one a core).

    Raises `EngineError` where the bundle has no files for it, or it cannot run here: then auto names the others.
    """
    exported = [engine for engine in OPENERS if engine in bundle.manifest.engines]
    chosen = exported[0] if name == "auto" and exported else name
    if chosen == "dummy":
        size = bundle.manifest.encoder
        run = _dummy(bundle.manifest.heads, size.dim if size else DUMMY_DIM)
        return Engine(chosen, [DUMMY], [run], threading.BoundedSemaphore(lanes))
    if chosen not in exported:
        options = ["auto", *exported, "dummy"] if exported else ["dummy"]
        raise EngineError(str(Problem("engine", "be one that the bundle has files for", name, options)))
    files = bundle.manifest.engines[chosen]
    try:
        opened = [OPENERS[chosen](bundle, stage, files.precision, Share(lanes, threads)) for stage in files.stages]
    except EngineError as error:
        if name != "auto" or exported[1:] == []:
            raise
        others = " or ".join(f"engine={other}" for other in exported[1:])
        raise EngineError(f"{error}. The bundle has others: {others}") from error
    return Engine(chosen, files.stages, opened, threading.BoundedSemaphore(lanes))
