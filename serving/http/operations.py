"""What operators ask: is it alive, is it ready, what does it do. And the page."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from serving.errors import NotReady
from serving.metrics import Metrics
from serving.models import Models

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SAFE = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def router(models: Models, metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["operations"])

    @routes.get("/livez")
    async def livez() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @routes.get("/readyz", responses={503: {}})
    async def readyz() -> JSONResponse:
        """The model answers; 503 where it does not."""
        ready = await is_ready(models)
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    @routes.get("/metrics")
    async def prometheus() -> Response:
        """Counts in Prometheus' text format."""
        models.observe()
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @routes.get("/stats")
    async def stats() -> dict[str, Any]:
        """The last two minutes, and the versions of the model."""
        models.observe()
        return models.stats()

    for path, content, kind in _page():
        routes.add_api_route(path, _file(content, kind), include_in_schema=False)
    return routes


async def is_ready(models: Models) -> bool:
    """Whether the version that answers by default can."""
    try:
        return await models.service().is_ready()
    except NotReady:
        return False


def _page() -> Sequence[tuple[str, bytes, str]]:
    """Path, content and type of the page's files."""
    found = []
    for file in files("serving").joinpath("web").iterdir():
        if file.is_file():
            path = "/" if file.name == "index.html" else f"/web/{file.name}"
            found.append((path, file.read_bytes(), TYPES[Path(file.name).suffix]))
    return found


def _file(content: bytes, kind: str) -> Any:
    async def answer() -> Response:
        return Response(content, media_type=kind, headers=SAFE)

    return answer
