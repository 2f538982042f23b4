"""HTTP requests go in, JSON comes out: `create_app` makes the web application around the models."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from serving.errors import EngineError, QueueFull, ServingError
from serving.http import kserve, native, openai, operations, tf_serving
from serving.http.errors import error_response, headers_of, message_of, status_of
from serving.http.front import Front
from serving.keys import Keys
from serving.metrics import Metrics
from serving.models import Models

log = logging.getLogger(__name__)


def create_app(models: Models, metrics: Metrics, body_limit: int, keys: Keys) -> FastAPI:
    """The application; its OpenAPI is at `/docs`. `body_limit` is in bytes, of a request and of the
    numbers of vectors."""
    app = FastAPI(title="bert_mtl", description="Answers of one model to texts, in several protocols.")

    def full() -> None:
        try:
            models.service().batcher.check_room()
        except QueueFull:
            models.service().metrics.refused()
            raise
        except ServingError:
            pass  # it is the route that says so

    app.add_middleware(Front, keys=keys, body_limit=body_limit, full=full)
    for kind in (ServingError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _on_error)
    protocols = (tf_serving, kserve, openai)
    own = native.router(models, body_limit), operations.router(models, metrics)
    for routes in (*own, *(each.router(models) for each in protocols)):
        app.include_router(routes)
    return app


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, EngineError):
        log.error("%s", error)  # Starlette adds the traceback of any other exception that it does not know
    message = message_of(error)
    if isinstance(error, HTTPException):
        message = f"{request.method} {request.url.path}: {message}"
    return error_response(request.url.path, status_of(error), message, headers_of(error))
