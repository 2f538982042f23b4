"""TensorFlow Serving's gRPC services in front of the models, and gRPC's health service. It imports TensorFlow.

https://github.com/tensorflow/serving/tree/master/tensorflow_serving/apis. A version that is a number is a `ModelSpec`'s
`version`; one of any other name is its `version_label`.
"""

import functools
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc.aio import ServerInterceptor, ServicerContext
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.example.example_pb2 import Example
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.framework.types_pb2 import DT_FLOAT, DT_STRING
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest, ClassificationResponse
from tensorflow_serving.apis.get_model_metadata_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    SignatureDefMap,
)
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, GetModelStatusResponse
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse

from serving.errors import (
    BadRequest,
    DeadlineExceeded,
    EngineError,
    NotReady,
    QueueFull,
    Refused,
    TextError,
    TooManyTexts,
    UnknownModel,
    UnknownVersion,
)
from serving.http.errors import headers_of, message_of
from serving.http.operations import is_ready
from serving.http.tf_serving import described_signatures, examples_of
from serving.keys import Keys
from serving.models import Models
from serving.service import Service
from serving.signatures import (
    CLASSIFIED,
    DEFAULT,
    REGRESSED,
    ask,
    outputs_of,
    service_of,
    shortened,
    signature_of,
    statuses,
)

CODES: dict[type[Exception], grpc.StatusCode] = {
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    UnknownVersion: grpc.StatusCode.NOT_FOUND,
    TooManyTexts: grpc.StatusCode.INVALID_ARGUMENT,
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    TextError: grpc.StatusCode.INVALID_ARGUMENT,
    Refused: grpc.StatusCode.INVALID_ARGUMENT,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    EngineError: grpc.StatusCode.INTERNAL,
    Exception: grpc.StatusCode.INTERNAL,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""From exception to status code, as `serving.http.errors.STATUS` has it for HTTP."""
HEALTH = "/grpc.health.v1.Health/"
SERVICES = ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")
"""What health may be asked about."""
LARGEST = 2**63

log = logging.getLogger(__name__)


def add_services(server: grpc.aio.Server, models: Models) -> None:
    """Makes the server answer for the models."""
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models), server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(models), server)


def answering(method: Callable[[Any, Any, float | None], Awaitable[Message]]) -> Callable:
    """A method of a service from one of request and seconds left; its errors become status codes."""

    @functools.wraps(method)
    async def answer(self: Any, request: Message, context: ServicerContext) -> Message:
        try:
            return await method(self, request, context.time_remaining())
        except Exception as error:
            failure = error
        code = next(CODES[kind] for kind in type(failure).__mro__ if kind in CODES)
        if code == grpc.StatusCode.INTERNAL:
            log.error("%s", failure, exc_info=None if isinstance(failure, EngineError) else failure)
        trailer = tuple((headers_of(failure) or {}).items())
        return await context.abort(code, message_of(failure), trailer)

    return answer


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict as the SavedModel does; Classify and Regress with one head's calibrated answers, of `tf.Example`s that
    hold `texts` (and `texts_b`)."""

    def __init__(self, models: Models) -> None:
        self._models = models

    @answering
    async def Predict(self, request: PredictRequest, seconds: float | None) -> PredictResponse:
        service, name = self._asked(request.model_spec)
        signature = signature_of(service.manifest, name)
        if set(request.inputs) != set(signature.inputs):
            got = shortened(", ".join(sorted(request.inputs)))
            raise BadRequest(f"inputs must be {' and '.join(signature.inputs)} for {name}; got {got}")
        wanted = list(dict.fromkeys(request.output_filter)) or list(signature.heads)
        if unknown := [head for head in wanted if head not in signature.heads]:
            options = ", ".join(signature.heads)
            raise BadRequest(f"output_filter must be among {options}; got {shortened(unknown[0])}")
        texts = {key: texts_of(request.inputs[key], key) for key in signature.inputs}
        kept = signature._replace(heads={head: signature.heads[head] for head in wanted})
        found = await outputs_of(service, kept, texts, seconds)
        return PredictResponse(
            model_spec=_spec(service, name), outputs={head: float_tensor(array) for head, array in found.items()}
        )

    @answering
    async def Classify(self, request: ClassificationRequest, seconds: float | None) -> ClassificationResponse:
        service, name = self._asked(request.model_spec)
        response = ClassificationResponse(model_spec=_spec(service, name))
        for answer in await ask(service, name, *examples_of(*_examples(request.input)), CLASSIFIED, seconds):
            classes = response.result.classifications.add().classes
            for label, score in answer["probabilities"].items():
                classes.add(label=label, score=score)
        return response

    @answering
    async def Regress(self, request: RegressionRequest, seconds: float | None) -> RegressionResponse:
        service, name = self._asked(request.model_spec)
        response = RegressionResponse(model_spec=_spec(service, name))
        for answer in await ask(service, name, *examples_of(*_examples(request.input)), REGRESSED, seconds):
            response.result.regressions.add(value=answer["value"])
        return response

    @answering
    async def GetModelMetadata(
        self, request: GetModelMetadataRequest, seconds: float | None
    ) -> GetModelMetadataResponse:
        service, _ = self._asked(request.model_spec)
        if list(request.metadata_field) != ["signature_def"]:
            got = shortened(", ".join(request.metadata_field))
            raise BadRequest(f"metadata_field must be signature_def alone; got {got}")
        response = GetModelMetadataResponse(model_spec=_spec(service, ""))
        said = described_signatures(service)["metadata"]["signature_def"]
        response.metadata["signature_def"].Pack(ParseDict(said, SignatureDefMap()))
        return response

    async def MultiInference(self, request: Message, context: ServicerContext) -> Message:
        return await context.abort(
            grpc.StatusCode.UNIMPLEMENTED, "MultiInference is not offered: ask Predict for all heads"
        )

    def _asked(self, spec: ModelSpec) -> tuple[Service, str]:
        """The version that is asked, and the name of its signature."""
        return service_of(self._models, spec.name, version_of(spec)), spec.signature_name or DEFAULT


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """The states of the versions. A version whose name is no number has the number 0 here, where names have no place;
    one `version_label` asks for one version."""

    def __init__(self, models: Models) -> None:
        self._models = models

    @answering
    async def GetModelStatus(self, request: GetModelStatusRequest, seconds: float | None) -> GetModelStatusResponse:
        response = GetModelStatusResponse()
        for status in statuses(self._models, request.model_spec.name, version_of(request.model_spec)):
            told = response.model_version_status.add(version=number_of(status.version) or 0, state=status.state)
            told.status.error_code = grpc.StatusCode[("UNKNOWN" if status.error else "OK")].value[0]
            told.status.error_message = status.error or ""
        return response

    async def HandleReloadConfigRequest(self, request: Message, context: ServicerContext) -> Message:
        rule = "versions are loaded from the server's folder of bundles (configuration: reload)"
        return await context.abort(grpc.StatusCode.UNIMPLEMENTED, rule)


class Health(health_pb2_grpc.HealthServicer):
    """Whether the model answers; https://github.com/grpc/grpc/blob/master/doc/health-checking.md."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def Check(self, request: health_pb2.HealthCheckRequest, context: ServicerContext) -> Message:
        if request.service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no such service; got {shortened(request.service)}")
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if await is_ready(self._models) else states.NOT_SERVING)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Watch is not offered: ask Check")


class KeyInterceptor(ServerInterceptor):
    """Lets in who has one of the keys in the metadata `authorization: Bearer <key>`; health needs none."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

        async def refuse(request: Message, context: ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a key must be given: authorization: Bearer <key>")

        self._refusal = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:  # fmt: skip
        given = dict(handler_call_details.invocation_metadata).get("authorization")
        if handler_call_details.method.startswith(HEALTH) or self._keys.admit(given):
            return await continuation(handler_call_details)
        return self._refusal


def version_of(spec: ModelSpec) -> str | None:
    """The version that a spec asks for; None for the newest."""
    if spec.HasField("version"):
        return str(spec.version.value)
    return spec.version_label or None


def number_of(version: str) -> int | None:
    """The version as `ModelSpec.version` can say it; None where it cannot."""
    number = int(version) if version.isascii() and version.isdecimal() else LARGEST
    return number if number < LARGEST and str(number) == version else None


def _spec(service: Service, signature_name: str) -> ModelSpec:
    """What answered."""
    spec = ModelSpec(name=service.manifest.name, signature_name=signature_name)
    if (number := number_of(service.version)) is not None:
        spec.version.value = number
    else:
        spec.version_label = service.version
    return spec


def texts_of(tensor: TensorProto, key: str) -> list[str]:
    """The texts of a tensor `(texts,)`."""
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype != DT_STRING or len(shape) != 1 or tensor.tensor_shape.unknown_rank:
        raise BadRequest(
            f"inputs.{key} must be a DT_STRING tensor of shape [n]; got dtype {tensor.dtype}, shape {shape}"
        )
    if len(tensor.string_val) != math.prod(shape):
        raise BadRequest(
            f"inputs.{key} must hold as many texts as its shape says, {shape[0]}; got {len(tensor.string_val)}"
        )
    return [_text(value, f"inputs.{key}.{index}") for index, value in enumerate(tensor.string_val)]


def float_tensor(array: np.ndarray) -> TensorProto:
    """The array as TensorFlow Serving sends it: in `float_val`, which clients read as it is."""
    tensor = TensorProto(dtype=DT_FLOAT, float_val=array.ravel())
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


def _examples(given: Input) -> tuple[dict[str, Any], Sequence[dict[str, Any]]]:
    """The context and the examples, as REST has them."""
    if given.HasField("example_list_with_context"):
        listed = given.example_list_with_context
        return _example(listed.context, "context"), [
            _example(each, f"examples.{index}") for index, each in enumerate(listed.examples)
        ]
    return {}, [_example(each, f"examples.{index}") for index, each in enumerate(given.example_list.examples)]


def _example(example: Example, place: str) -> dict[str, Any]:
    found = {}
    for key, feature in example.features.feature.items():
        if not feature.HasField("bytes_list"):
            raise BadRequest(f"{place}.{shortened(key)} must be a text: a bytes_list")
        found[key] = [_text(value, f"{place}.{shortened(key)}") for value in feature.bytes_list.value]
    return found


def _text(value: bytes, place: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"{place} must be UTF-8; got a wrong byte at place {error.start}") from None
