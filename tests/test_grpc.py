"""TensorFlow Serving's gRPC services, over real channels with the stubs of tensorflow-serving-api."""

import asyncio
import functools
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from local_server import LIMITS, local_service
from test_bundle import saved_model, write_bundle  # noqa: F401
from test_protocols import HEADS, IMDB, TOPIC, near

from conf.errors import ConfigError
from serving.bundle import load_bundle
from serving.engines import Engine, open_engine
from serving.grpc_bridge import Tls, open_grpc
from serving.http.tf_serving import described_signatures
from serving.keys import Keys
from serving.metrics import Metrics
from serving.models import Models

grpc = pytest.importorskip("grpc")
tf = pytest.importorskip("tensorflow")
pytest.importorskip("grpc_health")
pytest.importorskip("tensorflow_serving")
from google.protobuf.json_format import MessageToDict  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc  # noqa: E402
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest  # noqa: E402
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, SignatureDefMap  # noqa: E402
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest  # noqa: E402
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest  # noqa: E402
from tensorflow_serving.apis.input_pb2 import Input  # noqa: E402
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest  # noqa: E402
from tensorflow_serving.apis.model_pb2 import ModelSpec  # noqa: E402
from tensorflow_serving.apis.predict_pb2 import PredictRequest  # noqa: E402
from tensorflow_serving.apis.regression_pb2 import RegressionRequest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
KEY = "0123456789abcdef"


@contextmanager
def serving(folder: Path, *engines: Engine, keys: Sequence[str] = (), **settings: object) -> Iterator[grpc.Channel]:
    """A channel to a server around the bundle (or versions) in a folder, which has a thread of its own."""
    metrics, ports, ready, ended = Metrics(), [], threading.Event(), threading.Event()

    async def serve() -> None:
        models = Models(
            folder, 2, lambda bundle, version: local_service(bundle, engines, version=version, **settings), metrics
        )
        await models.start()
        server, port = await open_grpc(models, "127.0.0.1", 0, LIMITS.body, Keys(keys))
        ports.append(port)
        ready.set()
        while not ended.is_set():
            await asyncio.sleep(0.01)
        await server.stop(5)
        await models.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
            yield channel
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def channel(tmp_path_factory) -> Iterator[grpc.Channel]:
    folder = tmp_path_factory.mktemp("versions")
    for name in ("1", "second"):
        write_bundle(folder / name, heads=HEADS, max_length=16)
    with serving(folder) as channel:
        yield channel


@pytest.fixture(scope="module")
def service(channel) -> prediction_service_pb2_grpc.PredictionServiceStub:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def spec(signature: str = "", **more: object) -> ModelSpec:
    return ModelSpec(name="tiny", signature_name=signature, **more)


def request(signature: str = "", *, asked: dict | None = None, **inputs: Sequence[str]) -> PredictRequest:
    tensors = {name: tf.make_tensor_proto(list(texts)) for name, texts in inputs.items()}
    return PredictRequest(model_spec=spec(signature, **(asked or {})), inputs=tensors)


def examples(*rows: dict, context: dict | None = None) -> Input:
    def example(row: dict) -> tf.train.Example:
        lists = {key: tf.train.BytesList(value=[text.encode()]) for key, text in row.items()}
        return tf.train.Example(
            features=tf.train.Features(feature={key: tf.train.Feature(bytes_list=each) for key, each in lists.items()})
        )

    given = Input()
    listed = given.example_list if context is None else given.example_list_with_context
    listed.examples.extend(map(example, rows))
    if context is not None:
        given.example_list_with_context.context.CopyFrom(example(context))
    return given


def failing(call: Callable, *arguments: object, **more: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(*arguments, timeout=more.pop("timeout", 10), **more)
    return error.value.code(), error.value.details()


# --- answers


def test_predict_gives_what_the_saved_models_signature_gives(saved_model):  # noqa: F811
    texts = ["a         ", "good       ", "very good film               "]  # see test_protocols
    expected = tf.saved_model.load(str(saved_model / "saved_model")).signatures["text"](texts=tf.constant(texts))
    with serving(saved_model, open_engine("savedmodel", load_bundle(saved_model))) as channel:
        found = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request(texts=texts), timeout=10)
    assert tf.make_ndarray(found.outputs["imdb"]) == near(expected["imdb"].numpy())
    assert list(found.outputs["imdb"].float_val[:2]) == near([0.9, 0.1])  # where clients look
    assert (found.model_spec.name, found.model_spec.version.value) == ("tiny", 1)
    assert found.model_spec.signature_name == "serving_default"


def test_every_head_is_an_output_unless_the_filter_names_some(service):
    found = service.Predict(request(texts=["good film", "film"]), timeout=10)
    arrays = {name: tf.make_ndarray(tensor) for name, tensor in found.outputs.items()}
    assert {name: array.shape for name, array in arrays.items()} == {
        "imdb": (2, 2), "topic": (2, 3), "tones": (2, 2), "stars": (2,), "names": (2, 2, 3), "alike": (2, 3),
    }  # fmt: skip
    assert arrays["imdb"][0] == near(IMDB) and arrays["topic"][0] == near(TOPIC)
    assert not arrays["names"][1, 1].any()  # the second text has one word
    some = request(texts=["film"])
    some.output_filter.append("stars")
    assert list(service.Predict(some, timeout=10).outputs) == ["stars"]


def test_pairs_and_versions_by_number_or_label(service):
    pair = {"texts": ["good"], "texts_b": ["bad"]}
    newest = service.Predict(request("pair", **pair), timeout=10)
    assert tf.make_ndarray(newest.outputs["follows"])[0] == near([2 / 3, 1 / 3])
    assert newest.outputs["alike"].tensor_shape.dim[1].size == 2
    assert newest.model_spec == spec("pair", version_label="second")
    for asked, version in (({"version": {"value": 1}}, "1"), ({"version_label": "second"}, "second")):
        found = service.Predict(request("task_follows", asked=asked, **pair), timeout=10).model_spec
        assert (found.version_label or str(found.version.value)) == version


def test_classify_and_regress_read_examples(service):
    rows = [{"texts": "good film"}, {"texts": "film"}]
    found = service.Classify(ClassificationRequest(model_spec=spec("topic"), input=examples(*rows)), timeout=10)
    first = found.result.classifications[0].classes
    assert [each.label for each in first] == ["art", "sport", "world"]
    assert [each.score for each in first] == near(TOPIC) and len(found.result.classifications) == 2
    values = service.Regress(RegressionRequest(model_spec=spec(), input=examples(*rows)), timeout=10)
    assert [each.value for each in values.result.regressions] == [1.0, 1.0]
    given = examples({"texts_b": "bad"}, context={"texts": "good"})
    pairs = service.Classify(ClassificationRequest(model_spec=spec("task_follows"), input=given), timeout=10)
    assert pairs.result.classifications[0].classes[1].score == near(1 / 3)


def test_metadata_are_those_of_rest(service, tmp_path):
    asked = GetModelMetadataRequest(model_spec=spec(version={"value": 1}), metadata_field=["signature_def"])
    found = service.GetModelMetadata(asked, timeout=10)
    signatures = SignatureDefMap()
    assert found.metadata["signature_def"].Unpack(signatures)
    told = MessageToDict(signatures, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    bundle = load_bundle(write_bundle(tmp_path, heads=HEADS, max_length=16))
    assert told == described_signatures(local_service(bundle))["metadata"]["signature_def"]
    assert found.model_spec == spec(version={"value": 1})


def test_status_tells_of_all_versions_or_one(channel):
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    found = stub.GetModelStatus(GetModelStatusRequest(model_spec=spec()), timeout=10).model_version_status
    assert [(each.version, each.state, each.status.error_code) for each in found] == [(0, 30, 0), (1, 30, 0)]
    (one,) = stub.GetModelStatus(
        GetModelStatusRequest(model_spec=spec(version={"value": 1})), timeout=10
    ).model_version_status
    assert one.version == 1
    asked = GetModelStatusRequest(model_spec=spec(version={"value": 7}))
    assert failing(stub.GetModelStatus, asked) == (
        grpc.StatusCode.NOT_FOUND,
        "Could not find version '7' of model tiny",
    )
    assert failing(stub.HandleReloadConfigRequest, ReloadConfigRequest())[0] == grpc.StatusCode.UNIMPLEMENTED


# --- errors


def broken(**changes: object) -> PredictRequest:
    """A request whose tensor of texts is not one."""
    made = request(texts=["a"])
    for name, value in changes.items():
        tensor = made.inputs["texts"]
        if name == "shape":
            del tensor.tensor_shape.dim[:]
            for size in value:
                tensor.tensor_shape.dim.add(size=size)
        elif name == "string_val":
            tensor.string_val[:] = value
        else:
            setattr(tensor, name, value)
    return made


PREDICT_FAULTS = {
    "inputs": (request(text=["a"]), "inputs must be texts for serving_default; got 'text'"),
    "signature": (request("nothing", texts=["a"]), "signature_name must be one of serving_default, text, pair, "),
    "ids": (request("ids", texts=["a"]), "signature_name must be one that takes texts; ids takes token ids"),
    "dtype": (broken(dtype=tf.float32.as_datatype_enum), "inputs.texts must be a DT_STRING tensor of shape [n]; got"),
    "rank": (broken(shape=[1, 1]), "inputs.texts must be a DT_STRING tensor of shape [n]; got dtype 7, shape [1, 1]"),
    "count": (
        broken(shape=[10**15]),
        "inputs.texts must hold as many texts as its shape says, 1000000000000000; got 1",
    ),
    "bytes": (broken(string_val=[b"a\xff"]), "inputs.texts.0 must be UTF-8; got a wrong byte at place 1"),
    "empty": (request(texts=["a", " "]), "texts.1 must not be empty"),
    "many": (request(texts=["a"] * 51), "texts must be at most 50 in a request; got 51"),
}


@pytest.mark.parametrize("sent, message", PREDICT_FAULTS.values(), ids=PREDICT_FAULTS)
def test_a_wrong_request_is_an_invalid_argument_and_says_why(service, sent, message):
    code, details = failing(service.Predict, sent)
    assert code == grpc.StatusCode.INVALID_ARGUMENT and details.startswith(message)


def test_other_faults_of_a_request_have_their_codes(service):
    unknown = PredictRequest(model_spec=ModelSpec(name="huge"))
    assert failing(service.Predict, unknown) == (grpc.StatusCode.NOT_FOUND, "model must be tiny; got 'huge'")
    seven = request(asked={"version": {"value": 7}}, texts=["a"])
    assert failing(service.Predict, seven)[0] == grpc.StatusCode.NOT_FOUND
    code, details = failing(service.Classify, ClassificationRequest(model_spec=spec(), input=examples({"texts": "a"})))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and details.endswith("serving_default has 3")
    number = tf.train.Feature(float_list=tf.train.FloatList(value=[1]))
    example = tf.train.Example(features=tf.train.Features(feature={"texts": number}))
    given = Input(example_list={"examples": [example]})
    code, details = failing(service.Regress, RegressionRequest(model_spec=spec(), input=given))
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "examples.0.'texts' must be a text: a bytes_list")
    metadata = GetModelMetadataRequest(model_spec=spec(), metadata_field=["everything"])
    assert failing(service.GetModelMetadata, metadata)[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert failing(service.MultiInference, MultiInferenceRequest())[0] == grpc.StatusCode.UNIMPLEMENTED
    big = request(texts=["a" * LIMITS.body])
    assert failing(service.Predict, big)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_deadlines_and_failures_of_the_model_have_their_codes(tmp_path, caplog):
    bundle = load_bundle(write_bundle(tmp_path))
    broken, entered, gate, left = False, threading.Event(), threading.Event(), threading.Event()

    def around(run, *arguments):
        if broken:
            raise RuntimeError("secret detail")
        entered.set()
        assert gate.wait(20)
        left.set()
        return run(*arguments)

    engine = open_engine("dummy", bundle)
    engine = replace(engine, runs=[functools.partial(around, engine.runs[0])])
    with serving(tmp_path, engine, queue=1) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        first = stub.Predict.future(request(texts=["a"]), timeout=20)
        assert entered.wait(10)
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(request(texts=["a"]), timeout=10)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(error.value.trailing_metadata())["retry-after"]) >= 1
        gate.set()
        assert first.result().outputs
        for event in (entered, gate, left):
            event.clear()
        assert failing(stub.Predict, request(texts=["a"]), timeout=0.3)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
        assert entered.wait(10)
        broken = True
        gate.set()
        assert left.wait(10)
        time.sleep(0.3)  # until the batcher has heard of it
        code, details = failing(stub.Predict, request(texts=["a"]))
        assert (code, details) == (grpc.StatusCode.INTERNAL, "the server failed; its log says why")
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 2  # not serving
    assert "secret detail" in caplog.text


# --- the server


def test_a_key_is_asked_for_but_not_by_health(tmp_path):
    with serving(write_bundle(tmp_path), keys=[KEY]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for metadata in ((), [("authorization", f"Bearer {KEY}x")], [("authorization", KEY)]):
            code, details = failing(stub.Predict, request(texts=["a"]), metadata=metadata)
            assert (code, details) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "a key must be given: authorization: Bearer <key>",
            )
        found = stub.Predict(request(texts=["a"]), timeout=10, metadata=[("authorization", f"Bearer {KEY}")])
        assert list(found.outputs) == ["imdb"]
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "tensorflow.serving.PredictionService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == 1  # serving
        asked = health_pb2.HealthCheckRequest(service="nothing")
        assert failing(health.Check, asked)[0] == grpc.StatusCode.NOT_FOUND


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_tls(tmp_path):
    files = Tls(tmp_path / "c.pem", tmp_path / "k.pem")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-keyout", str(files.key), "-out", str(files.certificate), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(made, check=True, capture_output=True)

    async def ask() -> str:
        server, port = await open_grpc(None, "127.0.0.1", 0, LIMITS.body, Keys([]), files)
        trusted = grpc.ssl_channel_credentials(files.certificate.read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{port}", trusted) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="x"), timeout=10)
        await server.stop(0)
        return error.value.details()

    assert asyncio.run(ask()) == "no such service; got 'x'"


def test_a_taken_port_is_said_by_key():
    async def twice() -> None:
        server, port = await open_grpc(None, "127.0.0.1", 0, LIMITS.body, Keys([]))
        try:
            await open_grpc(None, "127.0.0.1", port, LIMITS.body, Keys([]))
        finally:
            await server.stop(0)

    with pytest.raises(ConfigError, match=r"^grpc.port must be free on grpc.host, and open to this user; got \d+"):
        asyncio.run(twice())


def test_without_the_extra_the_key_says_so_and_tensorflow_is_not_imported():
    code = (
        "import asyncio, sys\n"
        "sys.modules['tensorflow_serving'] = None\n"  # as if it were not installed
        "import serving.http.app\n"
        "from serving.grpc_bridge import open_grpc\n"
        "from serving.keys import Keys\n"
        "assert not {'grpc', 'tensorflow', 'grpc_health'} & sys.modules.keys()\n"
        "sys.modules['tensorflow'] = None\n"
        "try: asyncio.run(open_grpc(None, '127.0.0.1', 0, 1, Keys([])))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout
    assert said.startswith("ConfigError grpc.port must be null without the extra grpc (pip install 'bert_mtl[grpc]'")
