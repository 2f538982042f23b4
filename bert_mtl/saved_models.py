"""What TensorFlow Serving finds beside a SavedModel's graph: requests to warm up with, and a fingerprint."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.fingerprint_pb2 import FingerprintDef
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog

from bert_mtl.served import Served

TEXTS = ("A slow start, but I loved the ending!", "One of those that one forgets. " * 100)  # the second one is cut


def finish_saved_model(served: Served, folder: Path, name: str) -> None:
    """Writes the warm-up requests of the model `name` into the SavedModel of `served`, whose fingerprint no longer
    holds a number drawn by chance."""
    write_warmup(served, folder, name)
    settle_fingerprint(folder)


def write_warmup(served: Served, folder: Path, name: str) -> None:
    """`assets.extra/tf_serving_warmup_requests`: a request to every signature, which TensorFlow Serving answers to
    itself before it answers others (it reads at most 1,000)."""
    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        for signature, graph in served.signatures().items():
            inputs = inputs_of(served, [spec.name for spec in graph.input_signature])  # type: ignore[attr-defined]
            request = PredictRequest(model_spec=ModelSpec(name=name, signature_name=signature), inputs=inputs)
            log = PredictionLog(predict_log=PredictLog(request=request))
            writer.write(log.SerializeToString(deterministic=True))


def inputs_of(served: Served, names: Sequence[str]) -> dict:
    """Protos of a graph's inputs: texts, or rows of the same texts."""
    rows = served.tokenizer.encode(tf.constant(TEXTS)).token_ids
    token_ids = rows.to_tensor(served.tokenizer.pad_id).numpy()
    segment_ids = np.arange(token_ids.shape[1]) < rows.row_lengths().numpy()[:, None]
    known = {
        "texts": np.array(TEXTS, object),
        "texts_b": np.array(TEXTS[::-1], object),
        "token_ids": token_ids,
        "type_ids": np.zeros_like(token_ids),
        "segment_ids": segment_ids.astype(np.int32),
    }
    return {name: tf.make_tensor_proto(known[name]) for name in names}


def settle_fingerprint(folder: Path) -> None:
    """Makes the SavedModel's `uuid` follow from its other hashes: TensorFlow draws one, and two exports of one run
    would differ."""
    file = folder / "fingerprint.pb"
    fingerprint = FingerprintDef.FromString(file.read_bytes())
    fingerprint.uuid = ""
    digest = hashlib.sha256(fingerprint.SerializeToString(deterministic=True)).digest()
    fingerprint.uuid = str(int.from_bytes(digest[:16]))
    file.write_bytes(fingerprint.SerializeToString(deterministic=True))
