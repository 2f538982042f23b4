"""The server's own requests: `/classify`, `/encode` (bert-as-service's form too) and `/tokenize`."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError, to_json

from serving.bert_as_service.frames import split_pair, stack
from serving.errors import TextError
from serving.models import Models
from serving.pooling import Pooling
from serving.service import Service

# One fault is enough to refuse a body that may hold a million: hence fail_fast, and no extra="forbid".
Texts = Annotated[list[str], Field(fail_fast=True)]
Tokens = Annotated[list[Texts], Field(fail_fast=True)]


class Request(BaseModel):
    """A body of known keys."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        if isinstance(content, dict) and content.keys() - cls.model_fields.keys():
            *others, last = cls.model_fields
            raise PydanticCustomError("unknown_key", f"Only the keys {', '.join(others)} and {last} are known")  # type: ignore[arg-type]
        return content


class ClassifyRequest(Request):
    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["A wonderful film."]}]})

    texts: Texts
    texts_b: Texts | None = None
    heads: Texts | None = None
    """Those that shall answer; all where it is left out."""
    version: str | None = None
    """Of the model; the newest where it is left out."""


class EncodeRequest(Request):
    """With an `id` it is bert-as-service's request and answered in its form: `a ||| b` is a pair, and vectors are those
    of the server's `encode.pooling` and `encode.layers`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["A wonderful film."], "pooling": "mean"}]})

    texts: Texts | Tokens
    texts_b: Texts | None = None
    pooling: Pooling | None = None
    layers: Annotated[list[int], Field(fail_fast=True)] | None = None
    version: str | None = None
    id: Any = None
    is_tokenized: bool = False
    """Of bert-as-service; the texts themselves say it: they are lists of tokens then."""


class TokenizeRequest(Request):
    texts: Texts
    version: str | None = None


class Model(BaseModel):
    name: str
    version: str


class ClassifyResponse(BaseModel):
    """One result and one `truncated` a text (or pair); `truncated` says that the model read only a part of it.

    A result holds an answer by head. Classification says `label` and `probabilities`, multilabel `labels` and
    `probabilities`, regression `value`, tagging `spans` (each `type`, `start`, `end`, `text`, `score`; places count
    characters), vector `vector`, similarity `similarity` of a pair and `vector` of a text, and mlm `masks`: for each
    [MASK] in the text the best guesses (`token`, `probability`).
    """

    results: list[dict[str, dict[str, Any]]]
    truncated: list[bool]
    model: Model


class EncodeResponse(BaseModel):
    """A vector a text, or with pooling none one a token that was read."""

    vectors: list[list[float]] | list[list[list[float]]]
    truncated: list[bool]
    model: Model


class TokenizedText(BaseModel):
    ids: list[int]
    tokens: list[str]
    truncated: bool


class TokenizeResponse(BaseModel):
    tokens: list[TokenizedText]
    model: Model


class ErrorDetail(BaseModel):
    type: str
    message: str


class ErrorResponse(BaseModel):
    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (401, 404, 413, 422, 429, 500, 503, 504)
}


def router(models: Models, limit: int) -> APIRouter:
    """The routes; the answers are written as they are, without being checked once more. `limit` is how many bytes (of
    float32) the numbers of `/encode` may have."""
    routes = APIRouter(tags=["bert_mtl"], responses=ERRORS)

    @routes.post("/classify", response_model=ClassifyResponse)
    async def classify(request: ClassifyRequest) -> Response:
        """What every head that reads texts says of every text; with texts_b, every head that reads pairs."""
        service = models.service(request.version)
        answers = await service.classify(request.texts, request.texts_b, heads=request.heads)
        return _json({"results": answers.results, "truncated": answers.truncated, "model": _model(service)})

    @routes.post("/encode", response_model=EncodeResponse)
    async def encode(request: EncodeRequest) -> Response:
        """Vectors of texts, pairs (with texts_b), or texts given as lists of tokens."""
        service = models.service(request.version)
        if "id" in request.model_fields_set:
            return _json(
                {"id": request.id, "result": await as_bert_as_service(service, request.texts, limit), "status": 200}
            )
        found = await service.encode(
            request.texts, request.texts_b, pooling=request.pooling, layers=request.layers, limit=limit
        )
        vectors = [each.tolist() for each in found.vectors]
        return _json({"vectors": vectors, "truncated": found.truncated, "model": _model(service)})

    @routes.post("/tokenize", response_model=TokenizeResponse)
    async def tokenize(request: TokenizeRequest) -> Response:
        """What the model reads of each text."""
        service = models.service(request.version)
        return _json({"tokens": await service.tokenize(request.texts), "model": _model(service)})

    return routes


async def as_bert_as_service(service: Service, texts: Sequence[Any], limit: int) -> Any:
    """The vectors of texts or pairs in one array, as lists. Raises `TextError` where some are pairs and others not."""
    firsts, seconds = zip(*map(split_pair, texts), strict=True) if texts else ((), ())
    pairs = [second is not None for second in seconds]
    if any(pairs) and not all(pairs):
        raise TextError("texts must all be pairs (a ||| b) or all single texts")
    found = await service.encode(firsts, seconds if any(pairs) else None, limit=limit)
    return stack(found.vectors, None).tolist()


def _model(service: Service) -> dict[str, str]:
    return {"name": service.manifest.name, "version": service.version}


def _json(content: Any) -> Response:
    return Response(to_json(content, inf_nan_mode="strings"), media_type="application/json")
