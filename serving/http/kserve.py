"""The Open Inference Protocol (KServe V2) in front of the model.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md. The inputs are
`texts`, and `texts_b` for pairs; the outputs are what `tensors` makes of the heads' answers, and `truncated`.
"""

import json
import math
import reprlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from importlib.metadata import version as package_version
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from serving.errors import BadRequest
from serving.heads import Answer, Classification, Head, Multilabel
from serving.http.foreign import JsonRoute
from serving.http.operations import is_ready
from serving.models import Models
from serving.service import Service
from serving.signatures import PAIRED, service_of, shortened

MODEL, VERSION = "/v2/models/{name}", "/versions/{version}"
INPUTS = ("texts", "texts_b")
NO_BINARY = "the binary tensor data extension is not offered"
PLATFORM = "bert_mtl_bundle"
EXAMPLE: dict[str, Any] = {
    "inputs": [{"name": "texts", "shape": [1], "datatype": "BYTES", "data": ["A wonderful film."]}]
}


class Tensor(BaseModel):
    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Annotated[list[Any], Field(fail_fast=True)] | None = None


class Wanted(BaseModel):
    name: str
    parameters: dict[str, Any] = {}


class InferRequest(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[Tensor], Field(fail_fast=True)]
    outputs: Annotated[list[Wanted], Field(fail_fast=True)] | None = None


class Output(NamedTuple):
    """A tensor of answers: its datatype, the shape of one answer, and what it holds of an answer, flat."""

    datatype: str
    shape: tuple[int, ...]
    values: Callable[[Answer], list[Any]]
    parameters: Mapping[str, str] = {}


class TensorRoute(JsonRoute):
    """Refuses bodies with binary tensors behind their JSON, which would read as broken JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def read(request: Request) -> Response:
            if "inference-header-content-length" in request.headers:
                raise BadRequest(f"the body must be JSON alone: {NO_BINARY}")
            return await answer(request)

        return read


def router(models: Models) -> APIRouter:
    """`/v2`, `/v2/health/…` and `/v2/models/{name}[/versions/{version}]` with `/infer` and `/ready`."""
    routes = APIRouter(route_class=TensorRoute, tags=["Open Inference Protocol"])

    async def newest(name: str) -> Service:
        return service_of(models, name)

    async def asked(name: str, version: str) -> Service:
        return service_of(models, name, version)

    @routes.get("/v2/", include_in_schema=False)
    @routes.get("/v2")
    async def server() -> dict[str, Any]:
        """What server this is."""
        return {"name": "bert_mtl", "version": package_version("bert_mtl"), "extensions": []}

    @routes.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @routes.get("/v2/health/ready", responses={503: {}})
    async def ready() -> JSONResponse:
        """The model answers; 503 where it does not."""
        answers = await is_ready(models)
        return JSONResponse({"live": answers, "ready": answers}, 200 if answers else 503)

    for path, chosen in ((MODEL, newest), (MODEL + VERSION, asked)):

        @routes.get(path)
        async def metadata(service: Annotated[Service, Depends(chosen)]) -> dict[str, Any]:
            """The inputs and outputs."""
            versions = [status.version for status in models.status() if status.state == "AVAILABLE"]
            return described(service, versions)

        @routes.get(path + "/ready", responses={503: {}})
        async def model_ready(service: Annotated[Service, Depends(chosen)]) -> JSONResponse:
            """The model, or the version, answers; 503 where it does not."""
            answers = await service.is_ready()
            return JSONResponse({"name": service.manifest.name, "ready": answers}, 200 if answers else 503)

        @routes.post(path + "/infer")
        async def infer(body: InferRequest, service: Annotated[Service, Depends(chosen)]) -> dict[str, Any]:
            """What the heads say of each text, or pair."""
            return await _infer(service, body)

    return routes


async def _infer(service: Service, body: InferRequest) -> dict[str, Any]:
    if body.parameters.get("binary_data_output") or any(
        one.parameters.get("binary_data") for one in body.outputs or ()
    ):
        raise BadRequest(f"parameters must not ask for binary data: {NO_BINARY}")
    texts = texts_of(body.inputs)
    offered = outputs(service.manifest.heads, pairs="texts_b" in texts)
    wanted = [one.name for one in body.outputs] if body.outputs else [*offered, "truncated"]
    for index, name in enumerate(wanted):
        if name not in offered and name != "truncated":
            options = ", ".join([*offered, "truncated"])
            raise BadRequest(f"outputs.{index}.name must be one of {options}; got {shortened(name)}")
    heads = list(dict.fromkeys(offered[name][0] for name in wanted if name in offered)) or None
    answers = await service.classify(texts["texts"], texts.get("texts_b"), heads=heads)
    told = []
    for name in wanted:
        if name not in offered:
            told.append(
                {"name": name, "shape": [len(answers.truncated)], "datatype": "BOOL", "data": answers.truncated}
            )
            continue
        head, output = offered[name]
        rows = [output.values(result[head]) for result in answers.results]
        tensor: dict[str, Any] = {"name": name, "shape": [len(rows), *output.shape], "datatype": output.datatype}
        tensor |= {"parameters": dict(output.parameters)} if output.parameters else {}
        told.append(tensor | {"data": [value for row in rows for value in row]})
    named = {} if body.id is None else {"id": body.id}
    return named | {"model_name": service.manifest.name, "model_version": service.version, "outputs": told}


def texts_of(inputs: Sequence[Tensor]) -> dict[str, list[str]]:
    """The texts of the input tensors, by name."""
    found: dict[str, list[str]] = {}
    for index, tensor in enumerate(inputs):
        place = f"inputs.{index}"
        if tensor.name not in INPUTS or tensor.name in found:
            raise BadRequest(f"{place}.name must be texts or texts_b, each once; got {shortened(tensor.name)}")
        if tensor.datatype != "BYTES":
            raise BadRequest(f"{place}.datatype must be BYTES; got {shortened(tensor.datatype)}")
        if "binary_data_size" in tensor.parameters or tensor.data is None:
            raise BadRequest(f"{place}.data must hold the texts: {NO_BINARY}")
        if len(tensor.shape) != 1 and (len(tensor.shape) != 2 or tensor.shape[1] != 1):
            raise BadRequest(f"{place}.shape must be [n] or [n, 1]; got {reprlib.repr(tensor.shape)}")
        found[tensor.name] = _flat(tensor, place)
    if "texts" not in found:
        raise BadRequest("inputs must hold a tensor texts")
    return found


def _flat(tensor: Tensor, place: str) -> list[str]:
    """The tensor's texts, which may stand in lists of one where its shape says so."""
    texts: list[str] = []
    for number, value in enumerate(tensor.data or ()):
        inner = value[0] if isinstance(value, list) and len(value) == 1 and len(tensor.shape) == 2 else value
        if not isinstance(inner, str):
            raise BadRequest(f"{place}.data.{number} must be a text; got {reprlib.repr(value)}")
        texts.append(inner)
    if len(texts) != math.prod(tensor.shape):
        raise BadRequest(
            f"{place}.data must hold as many texts as shape says, {math.prod(tensor.shape)}; got {len(texts)}"
        )
    return texts


def outputs(heads: Mapping[str, Head], pairs: bool) -> dict[str, tuple[str, Output]]:
    """The outputs for texts, or pairs, by name: the head that each is of, and how its answers make a tensor. Of a
    pair, heads of single texts read the first one."""
    answering = {name: head for name, head in heads.items() if pairs or head.reads != "pair"}
    return {
        name + ending: (name, output)
        for name, head in answering.items()
        for ending, output in tensors(head, pairs).items()
    }


def tensors(head: Head, pairs: bool) -> dict[str, Output]:
    """How a head's answers make tensors, by the ending of their names.

    classification: probabilities FP32 `(n, labels)`, and `_label` BYTES `(n,)`; multilabel: the same, and `_chosen`
    BOOL `(n, labels)`; regression: FP32 `(n,)`; vector: FP32 `(n, dim)`; similarity: the same of texts, of pairs
    `_similarity` FP32 `(n,)`; all others: their answers as JSON, BYTES `(n,)`.
    """
    if isinstance(head, Classification | Multilabel):
        labels = head.labels
        size, said = (len(labels),), {"labels": json.dumps(labels)}
        found = {"": Output("FP32", size, lambda answer: list(answer["probabilities"].values()), said)}
        if isinstance(head, Classification):
            return found | {"_label": Output("BYTES", (), lambda answer: [answer["label"]])}
        return found | {
            "_chosen": Output("BOOL", size, lambda answer: [one in answer["labels"] for one in labels], said)
        }
    if head.kind == "regression":
        return {"": Output("FP32", (), lambda answer: [answer["value"]])}
    if head.kind == "similarity" and pairs:
        return {"_similarity": Output("FP32", (), lambda answer: [answer["similarity"]])}
    if head.kind in ("vector", "similarity"):
        return {"": Output("FP32", tuple(head.shape), lambda answer: answer["vector"])}
    return {"": Output("BYTES", (), lambda answer: [json.dumps(answer)])}


def described(service: Service, versions: Sequence[str]) -> dict[str, Any]:
    """The model's inputs and outputs."""
    heads = service.manifest.heads
    pairs = any(head.reads in PAIRED for head in heads.values())
    offered = outputs(heads, False) | (outputs(heads, True) if pairs else {})
    found = [_metadata(name, output.datatype, output.shape) for name, (_, output) in offered.items()]
    return {
        "name": service.manifest.name,
        "versions": list(versions),
        "platform": PLATFORM,
        "inputs": [_metadata(name, "BYTES", ()) for name in INPUTS[: 1 + pairs]],
        "outputs": [*found, _metadata("truncated", "BOOL", ())],
    }


def _metadata(name: str, datatype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1, *shape]}
