"""A run's model as other servers want it: int8 for ONNX Runtime, and a Hugging Face folder with the same in it.

    <python with torch, transformers, onnx, onnxscript, onnxruntime> -m benchmarks.peers.models <run> <bundle> <folder>

Writes `<folder>/plain` for `benchmarks.peers.fastapi_onnx`, and `<folder>/hf` for infinity: a BertModel whose positions
end at `LENGTH`, as that is where infinity cuts texts, and `onnx/model_quantized.onnx`, which its engine for ONNX
Runtime prefers. The run has one head, whose labels are the bundle's.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.numpy import load_file

from benchmarks.peers.inference import Classifier, onnx_files

LENGTH = 256


class States(torch.nn.Module):
    """The encoder alone, its arguments in the order of the exporter's."""

    def __init__(self, bert: torch.nn.Module):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids, token_type_ids, attention_mask):
        return self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state


def main() -> None:
    run, bundle, folder = map(Path, sys.argv[1:])
    weights = load_file(run / "weights.safetensors")
    sizes = json.loads((run / "run.json").read_text())["encoder"]
    (head,) = json.loads((bundle / "manifest.json").read_text())["heads"].values()
    plain, hugging = folder / "plain", folder / "hf"
    for each in (plain, hugging / "onnx"):
        each.mkdir(parents=True, exist_ok=True)
    shape = sizes["num_heads"], sizes["hidden_dim"]
    with tempfile.TemporaryDirectory() as work:
        small = onnx_files(Classifier(weights, sizes["num_heads"], "eager").eval(), *shape, Path(work))[1]
        shutil.copy(small, plain / "model.onnx")
    shutil.copy(bundle / "tokenizer/tokenizer.json", plain)
    (plain / "labels.json").write_text(json.dumps(head["labels"]))

    weights["encoder/embeddings/position_embeddings"] = weights["encoder/embeddings/position_embeddings"][:LENGTH]
    bert = Classifier(weights, sizes["num_heads"], "eager").eval().bert
    bert.save_pretrained(hugging)
    with tempfile.TemporaryDirectory() as work:
        inputs = ("input_ids", "token_type_ids", "attention_mask")
        small = onnx_files(States(bert), *shape, Path(work), inputs, "last_hidden_state")[1]
        shutil.copy(small, hugging / "onnx/model_quantized.onnx")
    for name in ("tokenizer.json", "vocab.txt"):
        shutil.copy(bundle / "tokenizer" / name, hugging)
    settings = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True, "model_max_length": LENGTH}
    (hugging / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main()
