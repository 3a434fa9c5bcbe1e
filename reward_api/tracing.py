"""OpenTelemetry spans: one for each request, and one for each batch with links to the requests it serves. For servers.

Nothing happens here until `start_from_environment` finds an endpoint, or `use` is given a tracer provider.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider

logger = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_tracer: "Tracer | None" = None


class RequestSpan:
    """The span of a request, or nothing where there is no tracing."""

    def __init__(self, span: "Span | None" = None) -> None:
        self._span = span

    def answered(self, status: int) -> None:
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("http.response.status_code", status)
        if status >= 500 or status == 0:
            self._span.set_status(StatusCode.ERROR)


def use(provider: "TracerProvider | None") -> None:
    """Sends the spans of this process to `provider`; None ends that."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("flow_grpo")


def start_from_environment(service: str) -> None:
    """Exports spans by OTLP over HTTP where OTEL_EXPORTER_OTLP_ENDPOINT says so, in the name of `service`.

    The SDK reads its other variables (OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS) itself.
    """
    endpoint = next((name for name in ENDPOINT_VARIABLES if os.environ.get(name)), None)
    if endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        logger.warning("%s is set, but there are no traces: %s; pip install 'flow-grpo[otel]'", endpoint, error)
        return
    name = os.environ.get("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(resource=Resource.create({"service.name": name}))  # flushes at exit
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    use(provider)


def current_span() -> "SpanContext | None":
    """What a batch will link to: the span of the present request."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return context if context.is_valid else None


def outgoing_headers() -> dict[str, str]:
    """The header `traceparent` of the present span, where there is one."""
    headers: dict[str, str] = {}
    if _tracer is not None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    return headers


def request_span(method: str, path: str, headers: Mapping[str, str]) -> AbstractContextManager[RequestSpan]:
    """The span of a request, a child of the caller's if its headers name one."""
    return nullcontext(RequestSpan()) if _tracer is None else _request_span(_tracer, method, path, headers)


@contextmanager
def _request_span(tracer: "Tracer", method: str, path: str, headers: Mapping[str, str]) -> Iterator[RequestSpan]:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    attributes = {"http.request.method": method, "url.path": path}
    parent = TraceContextTextMapPropagator().extract(headers)
    with tracer.start_as_current_span(f"{method} {path}", parent, kind=SpanKind.SERVER, attributes=attributes) as span:
        yield RequestSpan(span)


def batch_span(
    name: str, requests: Sequence["SpanContext | None"], attributes: Mapping[str, Any]
) -> AbstractContextManager[None]:
    """The span of a batch: a trace of its own, linked to each of its requests, since no single one is its parent."""
    return nullcontext() if _tracer is None else _batch_span(_tracer, name, requests, attributes)


@contextmanager
def _batch_span(
    tracer: "Tracer", name: str, requests: Sequence["SpanContext | None"], attributes: Mapping[str, Any]
) -> Iterator[None]:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanKind

    distinct = {(context.trace_id, context.span_id): context for context in requests if context is not None}
    links = [Link(context) for context in distinct.values()]
    with tracer.start_as_current_span(name, Context(), kind=SpanKind.CLIENT, attributes=dict(attributes), links=links):
        yield
