"""Pretrained weights in: a folder of any published BERT format to the variables of a `BertEncoder`.

A format is a column of `NAMES`. Which one a checkpoint speaks is read from its variables' names, wherever they sit
(`bert.`, `bert/`, `model/encoder/`), not from its files. A run of this project is one too: further pretraining (kind
mlm) is a run whose encoder another run starts from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open

from bert_mtl.encoder import BertEncoder, EncoderConfig
from bert_mtl.weights import WeightsError, beside

FORMATS = ("huggingface", "google_tf1", "model_garden", "model_garden_2019")
# Our names | Hugging Face | Google TF1 | TF Model Garden (TF-Hub version 3 on, small_bert) | TF-Hub versions 1 and 2.
# {part} is query, key and value, which our fused kernel holds side by side.
NAMES = {
    "embeddings/word_embeddings": (
        "embeddings.word_embeddings.weight",
        "embeddings/word_embeddings",
        "word_embeddings/embeddings",
        "word_embeddings/embeddings",
    ),
    "embeddings/position_embeddings": (
        "embeddings.position_embeddings.weight",
        "embeddings/position_embeddings",
        "position_embedding/embeddings",
        "embedding_postprocessor/position_embeddings",
    ),
    "embeddings/type_embeddings": (
        "embeddings.token_type_embeddings.weight",
        "embeddings/token_type_embeddings",
        "type_embeddings/embeddings",
        "embedding_postprocessor/type_embeddings",
    ),
    "embeddings/norm": (
        "embeddings.LayerNorm",
        "embeddings/LayerNorm",
        "embeddings/layer_norm",
        "embedding_postprocessor/layer_norm",
    ),
    "layer_{i}/qkv": (
        "encoder.layer.{i}.attention.self.{part}",
        "encoder/layer_{i}/attention/self/{part}",
        "transformer/layer_{i}/self_attention/{part}",
        "encoder/layer_{i}/self_attention/{part}",
    ),
    "layer_{i}/attention_output": (
        "encoder.layer.{i}.attention.output.dense",
        "encoder/layer_{i}/attention/output/dense",
        "transformer/layer_{i}/self_attention/attention_output",
        "encoder/layer_{i}/self_attention_output",
    ),
    "layer_{i}/attention_norm": (
        "encoder.layer.{i}.attention.output.LayerNorm",
        "encoder/layer_{i}/attention/output/LayerNorm",
        "transformer/layer_{i}/self_attention_layer_norm",
        "encoder/layer_{i}/self_attention_layer_norm",
    ),
    "layer_{i}/intermediate": (
        "encoder.layer.{i}.intermediate.dense",
        "encoder/layer_{i}/intermediate/dense",
        "transformer/layer_{i}/intermediate",
        "encoder/layer_{i}/intermediate",
    ),
    "layer_{i}/output": (
        "encoder.layer.{i}.output.dense",
        "encoder/layer_{i}/output/dense",
        "transformer/layer_{i}/output",
        "encoder/layer_{i}/output",
    ),
    "layer_{i}/output_norm": (
        "encoder.layer.{i}.output.LayerNorm",
        "encoder/layer_{i}/output/LayerNorm",
        "transformer/layer_{i}/output_layer_norm",
        "encoder/layer_{i}/output_layer_norm",
    ),
    "pooler": ("pooler.dense", "pooler/dense", "pooler_transform", "pooler_transform"),
}
OWN = "bert_mtl"  # the format of a run's folder
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
TORCH_LEAVES = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}

Reader = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did: the encoder's variables `loaded` and `missing`, the file's `unexpected` names."""

    format: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its format, what stands before each of that format's names, all shapes, and a reader."""

    format: str
    prefix: str
    shapes: dict[str, tuple[int, ...]]
    read: Reader


def load_pretrained(encoder: BertEncoder, folder: Path) -> LoadReport:
    """Assigns every shared variable of `encoder` from `folder`; one without a pooler leaves the pooler as it is.

    Raises `WeightsError` naming every variable that is absent or of another shape; the encoder is then unchanged.
    """
    checkpoint = open_checkpoint(folder)
    values, missing, misfits, used = {}, [], [], set()
    for variable in encoder.shared_weights:
        path, shape = variable.path.split(f"{encoder.name}/", 1)[1], tuple(variable.shape)
        names = _source_names(path, checkpoint)
        if absent := [name for name in names if name not in checkpoint.shapes]:
            missing.append(path)
            if not path.startswith("pooler/"):
                misfits.append(f"{path}: the model needs {shape}, the checkpoint has no {', '.join(absent)}")
            continue
        used.update(names)
        values[path] = value = _to_ours(path, [checkpoint.read(name) for name in names], checkpoint.format)
        if value.shape != shape:
            misfits.append(f"{path}: the model needs {shape}, the checkpoint has {value.shape}")
    if misfits:
        raise WeightsError(
            f"model.weights must fit the encoder; got {folder} with {len(misfits)} variables that do not. "
            "Give the model the checkpoint's sizes, or name other weights:\n  " + "\n  ".join(misfits)
        )
    for variable in encoder.shared_weights:
        path = variable.path.split(f"{encoder.name}/", 1)[1]
        if path in values:
            variable.assign(values[path])
    return LoadReport(checkpoint.format, tuple(values), tuple(missing), tuple(sorted(checkpoint.shapes.keys() - used)))


def read_encoder_config(folder: Path) -> EncoderConfig | None:
    """Returns the sizes that `config.json` (Hugging Face) or `bert_config.json` (Google) states, or that the
    variables' shapes show (Model Garden). None where nothing tells the heads apart: a bare TF1 checkpoint."""
    if (folder / "run.json").is_file():
        return EncoderConfig(**json.loads((folder / "run.json").read_text())["encoder"])
    stated = [file for name in ("config.json", "bert_config.json") if (file := beside(folder) / name).is_file()]
    try:
        return _config_from_json(stated[0]) if stated else _config_from_shapes(open_checkpoint(folder))
    except KeyError as error:
        raise WeightsError(f"model.weights must tell every size of BERT; got {folder} without {error}.") from error


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens a run, a safetensors folder, a TF1 checkpoint (folder or prefix) or a SavedModel, and tells its format."""
    if (folder / "weights.safetensors").is_file():
        return Checkpoint(OWN, "encoder/", *_open_safetensors(folder / "weights.safetensors"))
    if (folder / "model.safetensors").is_file():
        shapes, read = _open_safetensors(folder / "model.safetensors")
    else:
        shapes, read = _open_tensorflow(_tf_prefix(folder))
    words, positions = NAMES["embeddings/word_embeddings"], NAMES["embeddings/position_embeddings"]
    for column, name in enumerate(FORMATS):
        for stored in shapes:
            prefix = stored.removesuffix(words[column])
            if prefix != stored and prefix + positions[column] in shapes:
                return Checkpoint(name, prefix, shapes, read)
    raise WeightsError(
        f"model.weights must hold a BERT encoder; got {folder}, whose {len(shapes)} variables "
        f"begin with {', '.join(sorted(shapes)[:3])}. Options: {', '.join(FORMATS)}."
    )


def _open_safetensors(file: Path) -> tuple[dict[str, tuple[int, ...]], Reader]:
    with _complete(file):
        tensors = safe_open(file, framework="np")
        # The first Hugging Face files kept TensorFlow's names for LayerNorm.
        stored = {
            name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): name
            for name in tensors.keys()
        }
        shapes = {name: tuple(tensors.get_slice(key).get_shape()) for name, key in stored.items()}
    return shapes, lambda name: tensors.get_tensor(stored[name])


def _open_tensorflow(prefix: Path) -> tuple[dict[str, tuple[int, ...]], Reader]:
    """TF1 checkpoints are keyed by variable name; object graphs (TF2) by attribute, with the names beside the keys."""
    import tensorflow as tf  # only here: the other formats and the encoder do without
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    with _complete(prefix):
        reader = tf.train.load_checkpoint(str(prefix))
        key_shapes = reader.get_variable_to_shape_map()
        stored = {key: key for key in key_shapes}
        if OBJECT_GRAPH in key_shapes:
            graph = TrackableObjectGraph.FromString(reader.get_tensor(OBJECT_GRAPH))
            stored = {a.full_name: a.checkpoint_key for node in graph.nodes for a in node.attributes if a.full_name}
        shapes = {name: tuple(key_shapes[key]) for name, key in stored.items()}

    def read(name: str) -> np.ndarray:
        with _complete(prefix):
            return reader.get_tensor(stored[name])

    return shapes, read


@contextmanager
def _complete(file: Path) -> Iterator[None]:
    """Turns what safetensors and TensorFlow raise for a damaged file (no common ancestor) into a `WeightsError`."""
    try:
        yield
    except Exception as error:
        raise WeightsError(f"model.weights must be a complete file; got {file}: {error}. Fetch it again.") from error


def _tf_prefix(folder: Path) -> Path:
    own, saved_model = folder.with_name(folder.name + ".index"), folder / "variables" / "variables.index"
    for index in (own, saved_model, *folder.glob("*.index")):
        if index.is_file():
            return index.with_suffix("")
    raise WeightsError(
        f"model.weights must hold a BERT checkpoint; got {folder}. "
        "Options: model.safetensors, bert_model.ckpt.index, saved_model.pb with variables/, a finished run."
    )


def _source_names(path: str, checkpoint: Checkpoint) -> list[str]:
    """What the checkpoint calls the variable(s) behind our `path`: three for the fused kernel, else one."""
    if checkpoint.format == OWN:
        return [checkpoint.prefix + path]
    column = FORMATS.index(checkpoint.format)
    number = "".join(re.findall(r"^layer_(\d+)/", path))
    key = re.sub(r"^layer_\d+/", "layer_{i}/", path)
    if key in NAMES:
        return [checkpoint.prefix + NAMES[key][column]]
    stem, leaf = key.rsplit("/", 1)
    suffix = f".{TORCH_LEAVES[leaf]}" if checkpoint.format == "huggingface" else f"/{leaf}"
    template = NAMES[stem][column]
    parts = ("query", "key", "value") if "{part}" in template else ("",)
    return [checkpoint.prefix + template.format(i=number, part=part) + suffix for part in parts]


def _to_ours(path: str, arrays: list[np.ndarray], format_name: str) -> np.ndarray:
    """Turns Torch's `(out, in)` kernels, joins Model Garden's `(heads, head_dim)`, and fuses query, key and value."""
    if format_name == OWN:
        return arrays[0]
    if format_name == "huggingface" and path.endswith("/kernel"):
        arrays = [array.T for array in arrays]
    if path.endswith("/attention_output/kernel"):
        arrays = [array.reshape(-1, array.shape[-1]) for array in arrays]
    elif path.endswith("/qkv/kernel"):
        arrays = [array.reshape(array.shape[0], -1) for array in arrays]
    elif path.endswith("/qkv/bias"):
        arrays = [array.reshape(-1) for array in arrays]
    return np.concatenate(arrays, axis=-1).astype("float32")


def _config_from_json(file: Path) -> EncoderConfig:
    stated = json.loads(file.read_text(encoding="utf-8"))
    required = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, value in required.items():
        if stated.get(key, value) != value:
            raise WeightsError(f"model.weights must be a BERT with {key}={value}; got {stated[key]} in {file}.")
    return EncoderConfig(
        vocab_size=stated["vocab_size"],
        hidden_dim=stated["hidden_size"],
        num_layers=stated["num_hidden_layers"],
        num_heads=stated["num_attention_heads"],
        intermediate_dim=stated["intermediate_size"],
        max_positions=stated["max_position_embeddings"],
        type_vocab_size=stated["type_vocab_size"],
        layer_norm_epsilon=stated.get("layer_norm_eps", 1e-12),
        dropout=stated["hidden_dropout_prob"],
        attention_dropout=stated["attention_probs_dropout_prob"],
    )


def _config_from_shapes(checkpoint: Checkpoint) -> EncoderConfig | None:
    def shape(path: str) -> tuple[int, ...]:
        return checkpoint.shapes[_source_names(path, checkpoint)[0]]

    query = shape("layer_0/qkv/kernel")
    if len(query) != 3:
        return None
    vocab_size, hidden_dim = shape("embeddings/word_embeddings")
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_dim=hidden_dim,
        num_layers=sum(name.endswith("/self_attention/query/kernel") for name in checkpoint.shapes),
        num_heads=query[1],
        intermediate_dim=shape("layer_0/intermediate/kernel")[1],
        max_positions=shape("embeddings/position_embeddings")[0],
        type_vocab_size=shape("embeddings/type_embeddings")[0],
    )
