"""OpenAI's embeddings in front of the model: `/v1/embeddings` and `/v1/models`.

https://developers.openai.com/api/reference/resources/embeddings. A model's id is its name (the newest version answers)
or `name@version`.
"""

import base64
import time
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import ConfigDict, field_validator
from pydantic_core import PydanticCustomError

from serving.errors import BadRequest, Refused, TextError, TooManyTexts
from serving.http.foreign import JsonRoute, decimals
from serving.http.native import Request
from serving.models import Models
from serving.service import Service
from serving.signatures import service_of

STARTED = int(time.time())


class EmbeddingRequest(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "imdb", "input": "A wonderful film."}]})

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None

    @field_validator("input", mode="wrap")
    @classmethod
    def _one_kind(cls, value: Any, _: Any) -> Any:
        """Says one fault, not one for each kind that the input might have been of."""
        if isinstance(value, str) or _all(value, str) or _all(value, int):
            return value
        if isinstance(value, list) and all(_all(each, int) for each in value):
            return value
        raise PydanticCustomError("input_kind", "Input should be a text, token ids, or a list of either")


def _all(value: Any, kind: type) -> bool:
    """Whether it is a list of that kind alone; bool is none."""
    return isinstance(value, list) and set(map(type, value)) <= {kind}


def router(models: Models) -> APIRouter:
    """`POST /v1/embeddings` and `GET /v1/models`; `/v1/models/{id}` is answered by `serving.http.tf_serving`."""
    routes = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

    @routes.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest) -> dict[str, Any]:
        """Vectors of length 1, as `encode` of the configuration makes them of texts or token ids."""
        name, version = named(models, body.model)
        service = service_of(models, name, version)
        vectors, tokens = await _encode(service, body)
        write = _as_base64 if body.encoding_format == "base64" else decimals
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": write(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": f"{name}@{service.version}",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    @routes.get("/v1/models")
    async def listed() -> dict[str, Any]:
        """The model under its name, and each of its versions that answer."""
        ready = [status for status in models.status() if status.state == "AVAILABLE"]
        versions = [None, *(status.version for status in ready)] if ready else []
        return {"object": "list", "data": [described(models.name, version) for version in versions]}

    return routes


def named(models: Models, model_id: str) -> tuple[str, str | None]:
    """The name, and the version if any, that an id says."""
    if model_id == models.name:
        return model_id, None
    name, _, version = model_id.partition("@")
    return name, version or None


def described(name: str, version: str | None) -> dict[str, Any]:
    """What OpenAI's clients hear of a model, or of one of its versions."""
    model_id = f"{name}@{version}" if version else name
    return {"id": model_id, "object": "model", "created": STARTED, "owned_by": "bert_mtl"}


async def _encode(service: Service, body: EmbeddingRequest) -> tuple[list[np.ndarray], int]:
    """Vectors of length 1, and how many tokens were read."""
    texts: list[Any] = body.input if isinstance(body.input, list) else [body.input]
    if texts and isinstance(texts[0], int):
        texts = [texts]
    if texts and isinstance(texts[0], list):
        texts = [_without_frame(service, ids) for ids in texts]
    try:
        found = await service.encode(texts)
    except (TextError, TooManyTexts) as error:  # they speak of texts
        raise type(error)(str(error).replace("texts", "input", 1)) from None
    if any(vector.ndim != 1 for vector in found.vectors):
        raise Refused("encode.pooling must not be none in the server's configuration for a text to have one vector")
    size = found.vectors[0].size
    if body.dimensions not in (None, size):
        raise BadRequest(f"dimensions must be {size}: the model was not trained to be cut; got {body.dimensions}")
    return list(map(_to_length_one, found.vectors)), sum(map(len, found.ids))


def _without_frame(service: Service, ids: list[int]) -> list[int]:
    """Token ids without the [CLS] and [SEP] around them that `/tokenize` gives: encoding adds them."""
    settings = service.manifest.tokenizer
    start = 1 if ids[:1] == [settings.cls_id] else 0
    end = len(ids) - 1 if ids[start:][-1:] == [settings.sep_id] else len(ids)
    return ids[start:end]


def _to_length_one(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


def _as_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
