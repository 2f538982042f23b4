"""The endpoint most would write around a classifier in ONNX: FastAPI, ONNX Runtime and `tokenizers`, a batch a request.

    <python with fastapi, uvicorn, onnxruntime, tokenizers> -m benchmarks.peers.fastapi_onnx <folder> <port>

The folder is `plain` of `benchmarks.peers.models`. `POST /classify {"texts": [...]}` answers
`{"results": [{"label": ..., "score": ...}]}`. A plain `def`, so that FastAPI runs it in a thread and stays responsive;
texts are cut at 256 tokens. ONNX Runtime's settings are its own.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from tokenizers import Tokenizer


class Request(BaseModel):
    texts: list[str]


def create_app(folder: Path) -> FastAPI:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    labels = json.loads((folder / "labels.json").read_text())
    app = FastAPI()

    @app.post("/classify")
    def classify(request: Request):
        read = tokenizer.encode_batch(request.texts)
        inputs = {
            "token_ids": np.array([each.ids for each in read], np.int64),
            "type_ids": np.array([each.type_ids for each in read], np.int64),
            "segment_ids": np.array([each.attention_mask for each in read], np.int64),
        }
        (probabilities,) = session.run(None, inputs)
        return {"results": [{"label": labels[row.argmax()], "score": float(row.max())} for row in probabilities]}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), access_log=False)
