"""OpenTelemetry: a span for each HTTP request, and below it what its time went to. Where it is not started, nothing.

Where spans go follows the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, …).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.types import ASGIApp

from conf.errors import ConfigError, Problem

_tracer: Any = None


def start_tracing() -> None:
    """Sends spans from now on. Raises `ConfigError` where the extra otel is not installed."""
    global _tracer
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        rule = f'be left out without the extra otel (pip install "bert_mtl[otel]"): {error}'
        raise ConfigError([Problem("tracing", rule, True)]) from None
    named = Resource({"service.name": "bert_mtl"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    _tracer = trace.get_tracer("serving")


def traced(app: ASGIApp) -> ASGIApp:
    """The application with a span around each request, below the one that its traceparent names."""
    if _tracer is None:
        return app
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(app, exclude_spans=["receive", "send"])


@contextmanager
def span(name: str, **attributes: int) -> Iterator[None]:
    """A span of what is done within."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, attributes=attributes):
        yield
