"""Others' ways to answer texts with the same weights: PyTorch and ONNX Runtime, as most would take them.

    <python with torch, transformers, onnx, onnxscript, onnxruntime> -m benchmarks.peers.inference <request.npz>

The request holds the run's weights by path, the number of heads of attention, and batches of arrays. The model is
transformers' BertModel (SDPA) with the mean of the states and a linear layer. For ONNX Runtime it is exported by
PyTorch, fused by onnxruntime's own optimizer of transformers, and for int8 quantised dynamically as its documentation
says. A name of a line of the input is answered by a line of JSON: what `benchmarks.inference.timed` gives.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from onnxruntime.transformers.optimizer import optimize_model
from transformers import BertConfig, BertModel

from benchmarks.timing import Batches, timed


class Classifier(torch.nn.Module):
    def __init__(self, weights: dict[str, np.ndarray], num_heads: int, attention: str):
        super().__init__()
        words, positions = (weights[f"encoder/embeddings/{kind}_embeddings"] for kind in ("word", "position"))
        layers = sum(path.endswith("/qkv/kernel") for path in weights)
        config = BertConfig(
            vocab_size=len(words), hidden_size=words.shape[1], num_hidden_layers=layers, num_attention_heads=num_heads,
            intermediate_size=weights["encoder/layer_0/intermediate/bias"].size, max_position_embeddings=len(positions),
            attn_implementation=attention,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=False).eval()
        (kernel,) = (path for path in weights if path.endswith("/logits/kernel") and not path.startswith("exit"))
        self.logits = torch.nn.Linear(*weights[kernel].shape)
        self.bert.load_state_dict(dict(theirs(weights)), strict=False)
        logits = {"weight": tensor(weights[kernel].T), "bias": tensor(weights[kernel.replace("kernel", "bias")])}
        self.logits.load_state_dict(logits)

    def forward(self, token_ids, type_ids, segment_ids):
        states = self.bert(token_ids, segment_ids, type_ids).last_hidden_state
        mask = segment_ids.unsqueeze(-1).to(states.dtype)
        return torch.softmax(self.logits((states * mask).sum(1) / mask.sum(1)).float(), -1)


def theirs(weights: dict[str, np.ndarray]):
    """The encoder's weights by transformers' names."""
    for path, values in weights.items():
        if not path.startswith("encoder/"):
            continue
        name = path.removeprefix("encoder/").replace("/", ".")
        name = name.replace("gamma", "weight").replace("beta", "bias").replace("kernel", "weight")
        name = name.replace("_embeddings", "_embeddings.weight").replace("embeddings.norm", "embeddings.LayerNorm")
        name = name.replace("type_emb", "token_type_emb").replace("layer_", "encoder.layer.")
        name = name.replace("attention_output.", "attention.output.dense.").replace(
            "intermediate.", "intermediate.dense."
        )
        name = name.replace("attention_norm", "attention.output.LayerNorm").replace("output_norm", "output.LayerNorm")
        if ".output." in name and "attention" not in name and "LayerNorm" not in name:
            name = name.replace(".output.", ".output.dense.")
        matrix = values.T if path.endswith("kernel") else values
        if "qkv" in name:
            for part, share in zip(("query", "key", "value"), np.split(matrix, 3), strict=True):
                yield name.replace("qkv", f"attention.self.{part}"), tensor(share)
        else:
            yield name, tensor(matrix)


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(values))


def torch_answerer(model: torch.nn.Module) -> Callable:
    def answer(arrays: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return model(**{name: torch.from_numpy(values).long() for name, values in arrays.items()}).numpy()

    return answer


def onnx_answerer(file: Path) -> Callable:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, {name: values.astype(np.int64) for name, values in arrays.items()})[0]


INPUTS = ("token_ids", "type_ids", "segment_ids")


def onnx_files(
    model: torch.nn.Module, num_heads: int, hidden_dim: int, folder: Path, inputs=INPUTS, output="imdb"
) -> tuple[Path, Path]:
    """The model as ONNX Runtime runs it best: fused, and in 8 bits."""
    plain, fused, small = (folder / f"{name}.onnx" for name in ("plain", "fused", "small"))
    ids = torch.ones((2, 8), dtype=torch.long)
    axes = {name: {0: "rows", 1: "length"} for name in inputs}
    torch.onnx.export(
        model, (ids, 0 * ids, ids), plain, input_names=list(inputs), output_names=[output], dynamic_axes=axes,
        dynamo=False,
    )  # fmt: skip
    optimize_model(str(plain), "bert", num_heads, hidden_dim).save_model_to_file(str(fused))
    quantize_dynamic(fused, small, extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})  # of fused operations
    return fused, small


def main() -> None:
    request = np.load(sys.argv[1])
    weights = {name.removeprefix("weights:"): request[name] for name in request.files if name.startswith("weights:")}
    num_heads, batches = int(request["num_heads"]), Batches.of(request)
    hidden_dim = weights["encoder/embeddings/word_embeddings"].shape[1]
    with tempfile.TemporaryDirectory() as folder:
        eager = Classifier(weights, num_heads, "eager").eval()
        fused, small = onnx_files(eager, num_heads, hidden_dim, Path(folder))
        answerers = {
            "torch fp32": torch_answerer(Classifier(weights, num_heads, "sdpa").eval()),
            "torch bf16": torch_answerer(Classifier(weights, num_heads, "sdpa").eval().bfloat16()),
            "onnxruntime fp32": onnx_answerer(fused),
            "onnxruntime int8": onnx_answerer(small),
        }
    print(json.dumps(list(answerers)), flush=True)
    for line in sys.stdin:
        print(json.dumps(timed(answerers[line.strip()], batches)), flush=True)


if __name__ == "__main__":
    main()
