"""TensorFlow Serving's REST API in front of the model: predict, classify, regress, status and metadata.

https://github.com/tensorflow/serving/blob/master/tensorflow_serving/g3doc/api_rest.md; what it leaves open is done as
its `json_tensor.cc` does. Versions may be any text.
"""

import base64
import binascii
import reprlib
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from serving.errors import BadRequest, UnknownVersion
from serving.http import openai
from serving.http.foreign import JsonRoute, decimals
from serving.models import Models
from serving.service import Service
from serving.signatures import (
    CLASSIFIED,
    DEFAULT,
    REGRESSED,
    Signature,
    ask,
    check_name,
    outputs_of,
    service_of,
    shortened,
    signature_of,
    signatures,
    statuses,
)

MODEL, VERSION = "/v1/models/{name}", "/versions/{version}"
PREDICT = "tensorflow/serving/predict"
Values = Annotated[list[Any], Field(fail_fast=True)]


class PredictRequest(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"instances": ["A wonderful film."]}]})

    signature_name: str = DEFAULT
    instances: Values | None = None
    inputs: Values | dict[str, Any] | None = Field(None, union_mode="left_to_right")


class ExamplesRequest(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"examples": [{"texts": "A wonderful film."}]}]})

    signature_name: str = DEFAULT
    context: dict[str, Any] = {}
    examples: Annotated[list[dict[str, Any]], Field(fail_fast=True)]


def router(models: Models) -> APIRouter:
    """`/v1/models/{name}[/versions/{version}]` with `:predict`, `:classify`, `:regress`, and to get it and its
    `/metadata`."""
    routes = APIRouter(route_class=JsonRoute, tags=["TensorFlow Serving"])

    async def newest(name: str) -> Service:
        return service_of(models, name)

    async def asked(name: str, version: str) -> Service:
        return service_of(models, name, version)

    for path, chosen in ((MODEL, newest), (MODEL + VERSION, asked)):

        @routes.post(path + ":predict")
        async def predict(body: PredictRequest, service: Annotated[Service, Depends(chosen)]) -> dict[str, Any]:
            """The model's own numbers, as the SavedModel's signature gives them: not calibrated."""
            return await _predict(service, body)

        @routes.post(path + ":classify")
        async def classify(body: ExamplesRequest, service: Annotated[Service, Depends(chosen)]) -> dict[str, Any]:
            """Labels and their probabilities, calibrated, of one head."""
            answers = await ask(service, body.signature_name, *examples_of(body.context, body.examples), CLASSIFIED)
            return {"results": [list(answer["probabilities"].items()) for answer in answers]}

        @routes.post(path + ":regress")
        async def regress(body: ExamplesRequest, service: Annotated[Service, Depends(chosen)]) -> dict[str, Any]:
            """The values of one head."""
            answers = await ask(service, body.signature_name, *examples_of(body.context, body.examples), REGRESSED)
            return {"results": [answer["value"] for answer in answers]}

        @routes.get(path + "/metadata")
        async def metadata(service: Annotated[Service, Depends(chosen)]) -> dict[str, Any]:
            """The signatures, their inputs and outputs."""
            return described_signatures(service)

    @routes.get(MODEL)
    async def status(name: str) -> dict[str, Any]:
        """The state of all versions; and what OpenAI's clients expect here, where the model stands under its `id`."""
        name, version = openai.named(models, name)
        states = status_of(models, name, version)
        return openai.described(name, version) | {"model_version_status": states}

    @routes.get(MODEL + VERSION)
    async def version_status(name: str, version: str) -> dict[str, Any]:
        """The state of one version."""
        return {"model_version_status": status_of(models, name, version)}

    @routes.api_route(MODEL + "/labels/{label:path}", methods=["GET", "POST"], include_in_schema=False)
    async def label(name: str, label: str) -> None:
        check_name(models, name)
        raise UnknownVersion(f"no version has labels here; ask for /v1/models/{name}/versions/<version>")

    return routes


async def _predict(service: Service, body: PredictRequest) -> dict[str, Any]:
    signature = signature_of(service.manifest, body.signature_name)
    if (body.instances is None) == (body.inputs is None):
        raise BadRequest("the body must have either the key instances or the key inputs")
    if body.instances is not None:
        texts = _of_rows(body.instances, signature)
        found = await outputs_of(service, signature, texts)
        rows = [dict(zip(found, row, strict=True)) for row in zip(*map(decimals, found.values()), strict=True)]
        return {"predictions": [next(iter(row.values())) for row in rows] if len(found) == 1 else rows}
    found = await outputs_of(service, signature, _of_columns(body.inputs or [], signature))
    outputs = {name: decimals(array) for name, array in found.items()}
    return {"outputs": next(iter(outputs.values())) if len(outputs) == 1 else outputs}


def _of_rows(instances: list[Any], signature: Signature) -> dict[str, list[str]]:
    """The texts of the row form, by input: a text or an object of all inputs each."""
    if not instances:
        raise BadRequest("instances must not be empty")
    objects = [instance for instance in instances if _is_object(instance)]
    if not objects and len(signature.inputs) == 1:
        return {"texts": [text_of(value, f"instances.{index}") for index, value in enumerate(instances)]}
    for index, instance in enumerate(instances):
        if not _is_object(instance) or set(instance) != set(signature.inputs):
            wanted = " and ".join(signature.inputs)
            raise BadRequest(f"instances.{index} must be an object with {wanted}; got {reprlib.repr(instance)}")
    return {
        key: [text_of(instance[key], f"instances.{index}.{key}") for index, instance in enumerate(objects)]
        for key in signature.inputs
    }


def _of_columns(inputs: list[Any] | dict[str, Any], signature: Signature) -> dict[str, list[str]]:
    """The texts of the column form, by input: a list, or an object of lists."""
    named: dict[str, Any] = inputs if isinstance(inputs, dict) else {"texts": inputs}
    if set(named) != set(signature.inputs):
        wanted, got = " and ".join(signature.inputs), reprlib.repr(sorted(named))
        raise BadRequest(f"inputs must be an object with the keys {wanted}; got {got}")
    for key, column in named.items():
        if not isinstance(column, list):
            raise BadRequest(f"inputs.{key} must be a list of texts; got {reprlib.repr(column)}")
    return {
        key: [text_of(value, f"inputs.{key}.{index}") for index, value in enumerate(named[key])]
        for key in signature.inputs
    }


def examples_of(context: dict[str, Any], examples: Sequence[dict[str, Any]]) -> tuple[list[str], list[str] | None]:
    """The texts, and second texts, of examples and what all of them have in common."""
    found: dict[str, list[str]] = {"texts": [], "texts_b": []}
    first = {**context, **examples[0]}.keys() if examples else {}
    for index, example in enumerate(examples):
        if twice := example.keys() & context.keys():
            raise BadRequest(f"examples.{index} must not have what the context has; got {reprlib.repr(sorted(twice))}")
        row = context | example
        if "texts" not in row or row.keys() - found.keys() or row.keys() != first:
            got = reprlib.repr(sorted(row))
            raise BadRequest(f"examples.{index} must have the key texts, and texts_b where all have it; got {got}")
        for key, value in row.items():
            alone = value[0] if isinstance(value, list) and len(value) == 1 else value
            found[key].append(text_of(alone, f"examples.{index}.{key}"))
    return found["texts"], found["texts_b"] or None


def text_of(value: Any, place: str) -> str:
    """A text, or `{"b64": ...}`: its UTF-8 bytes in base64."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and not _is_object(value):
        try:
            return base64.b64decode(value["b64"], validate=True).decode()
        except (binascii.Error, ValueError):
            raise BadRequest(f"{place}.b64 must be UTF-8 text in base64; got {shortened(value['b64'])}") from None
    raise BadRequest(f"{place} must be a text; got {reprlib.repr(value)}")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not (value.keys() == {"b64"} and isinstance(value["b64"], str))


def status_of(models: Models, name: str, version: str | None = None) -> list[dict[str, Any]]:
    """The state of the version, or of all, as `GetModelStatusResponse` says it in JSON."""
    return [
        {
            "version": status.version,
            "state": status.state,
            "status": {"error_code": "UNKNOWN" if status.error else "OK", "error_message": status.error or ""},
        }
        for status in statuses(models, name, version)
    ]


def described_signatures(service: Service) -> dict[str, Any]:
    """The signatures as `GetModelMetadataResponse` says them in JSON."""
    manifest = service.manifest
    found = {
        name: {
            "inputs": {key: _tensor(key, "DT_STRING", (-1,)) for key in signature.inputs},
            "outputs": {head: _tensor(head, "DT_FLOAT", signature.shape(head)) for head in signature.heads},
            "method_name": PREDICT,
            "defaults": {},
        }
        for name, signature in signatures(manifest).items()
    }
    return {
        "model_spec": {"name": manifest.name, "signature_name": "", "version": service.version},
        "metadata": {"signature_def": {"signature_def": found}},
    }


def _tensor(name: str, dtype: str, shape: Sequence[int]) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in shape]
    return {"dtype": dtype, "tensor_shape": {"dim": dims, "unknown_rank": False}, "name": name}
