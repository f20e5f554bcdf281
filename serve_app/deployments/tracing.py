"""Traces of requests through OpenTelemetry, where the environment names an exporter (the extra `otel`).

A request is one span in its Ingress, whose parent the header `traceparent` (W3C Trace Context) may name. Its steps are
spans below it: `decode` and `encode` in a Codec, `queue` and `paint` in a Stylizer. A batch is a span of its own trace,
`batch`, linked to the requests that are in it. Replicas are told of a request's span by a `traceparent`, too.

Nothing here imports OpenTelemetry before `start_tracing` has found an exporter; until then every function does nothing.
The spans hold what the log of requests holds, so no ids of jobs, no addresses and no text of an exception.
"""

import importlib.metadata
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import RequestError
from serve_app.web.request_log import CLIENT_GONE, NOTED, PROBES, Entry, note, template

if TYPE_CHECKING:  # the extra
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

SERVICE = "animegan-serve"  # unless OTEL_SERVICE_NAME says otherwise
EXPORTERS = "opentelemetry_traces_exporter"  # the group of entry points of OpenTelemetry's exporters
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
SAMPLED = 0x01  # a flag in a `traceparent`

logger = logging.getLogger(__name__)

_tracer: "Tracer | None" = None
CURRENT: ContextVar[str | None] = ContextVar("animegan_traceparent", default=None)


def start_tracing(environment: Mapping[str, str] = os.environ) -> None:
    """Switches traces on in this process, if the environment names an exporter that is installed.

    Args:
        environment: with the variables `OTEL_…`, as OpenTelemetry specifies them. Without `OTEL_TRACES_EXPORTER` an
            endpoint of OTLP is needed, or there are no traces.
    """
    names = exporters(environment)
    if _tracer is not None or not names:
        return
    found = importlib.metadata.entry_points(group=EXPORTERS)
    missing = [name for name in names if name not in found.names]
    if missing:
        logger.warning(
            "no traces: there is no exporter %s here; pip install 'animegan-serve[otel]' brings OTLP over HTTP",
            ", ".join(missing),
        )
        return
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()  # with OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: SERVICE}))
    provider = TracerProvider(resource=resource)
    for name in names:
        provider.add_span_processor(BatchSpanProcessor(found[name].load()()))
    use(provider)


def exporters(environment: Mapping[str, str]) -> list[str]:
    """Returns the names of the exporters that an environment asks for, as OpenTelemetry's entry points have them."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    endpoints = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    default = "otlp" if any(environment.get(name) for name in endpoints) else "none"
    asked = (environment.get("OTEL_TRACES_EXPORTER") or default).split(",")
    names = [name.strip() for name in asked if name.strip() not in ("", "none")]
    protocols = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next(filter(None, map(environment.get, protocols)), "http/protobuf")
    return [PROTOCOLS.get(protocol, protocol) if name == "otlp" else name for name in names]


def use(provider: "TracerProvider | None") -> None:
    """Sends the spans of this process to a provider; None switches traces off.

    It is not made OpenTelemetry's global one, which others use too: FastAPI would write paths to it.
    """
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("serve_app")


def traceparent() -> str | None:
    """Returns what replicas are told of the span that this task is in; None without one."""
    return CURRENT.get()


@contextmanager
def root_span(name: str, parent: str | None = None, is_server: bool = False) -> Iterator["Span | None"]:
    """Holds a span, and has this task be in it; yields None if traces are off.

    Args:
        name: of the span.
        parent: a `traceparent` from outside; None begins a trace.
        is_server: whether it is a request's.
    """
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    kind = SpanKind.SERVER if is_server else SpanKind.INTERNAL
    span = _tracer.start_span(name, context_of(parent), kind)
    token = CURRENT.set(written(span))
    try:
        yield span
    except Exception as error:
        fail(span, error)
        raise
    finally:
        CURRENT.reset(token)
        span.end()


@contextmanager
def step_span(name: str, parent: str | None) -> Iterator[None]:
    """Holds a span of one step.

    Args:
        name: of the step.
        parent: the `traceparent` of its request; without one there is no span.
    """
    if _tracer is None or parent is None:
        yield
        return
    span = _tracer.start_span(name, context_of(parent))
    try:
        yield
    except Exception as error:
        fail(span, error)
        raise
    finally:
        span.end()


def context_of(parent: str | None) -> Any:
    """Returns OpenTelemetry's context for a `traceparent`: an empty one if there is none, or it is malformed."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent or ""}, Context())


def written(span: "Span") -> str:
    """Returns the `traceparent` of a span."""
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier["traceparent"]


def fail(span: "Span", error: Exception) -> None:
    """Writes why a step has failed. A refusal is the step's answer, unless it says that something is wrong here."""
    from opentelemetry.trace import StatusCode

    code = error.code if isinstance(error, RequestError) else RequestError.code
    span.set_attribute("error.type", code)
    if not isinstance(error, RequestError) or error.status >= 500:
        span.set_status(StatusCode.ERROR)


class TraceRequests:
    """ASGI middleware of the Ingress: a span for each request but health checks. It goes inside of the `RequestLog`.

    Args:
        app: that sets `route` in the scope, as FastAPI does.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        entry = NOTED.get()
        if _tracer is None or entry is None or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        parents = [value.decode("latin-1") for name, value in scope["headers"] if name == b"traceparent"]
        with root_span(entry.method, next(iter(parents), None), is_server=True) as span:
            assert span is not None  # traces are on
            note(trace_id=f"{span.get_span_context().trace_id:032x}")
            try:
                await self._app(scope, receive, send)
            finally:
                describe(span, entry, template(scope))


def describe(span: "Span", entry: Entry, route: str | None) -> None:
    """Writes what is known of a request to its span, by the names that OpenTelemetry has for it."""
    from opentelemetry.trace import StatusCode

    receipt = entry.receipt
    attributes = {
        "http.request.method": entry.method if entry.method != "other" else "_OTHER",
        "http.route": route,
        "http.response.status_code": entry.status,
        "http.request.body.size": entry.bytes_in,
        "http.response.body.size": entry.bytes_out,
        "error.type": CLIENT_GONE if entry.status is None else entry.outcome,
        "animegan.style": entry.style,
        "animegan.photograph.pixels": None if receipt is None else receipt.original.pixels,
        "animegan.painting.pixels": None if receipt is None else receipt.painted.pixels,
        "animegan.reused": None if receipt is None else receipt.reused,
    }
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    if route is not None:
        span.update_name(f"{attributes['http.request.method']} {route}")
    if entry.status is not None and entry.status >= 500:
        span.set_status(StatusCode.ERROR)


@dataclass(eq=False)
class Waiting:
    """A frame that waits for its batch, for a request that is traced."""

    parent: str
    arrived_ns: int
    has_begun: bool = False


class BatchTraces:
    """Spans of the batches of one Stylizer, and of the requests in them. For one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting] = {}  # by the identity of the frame, which its batch gets too

    @contextmanager
    def queued(self, frame: object, parent: str | None) -> Iterator[None]:
        """Holds a frame's place for as long as it waits and is painted.

        Args:
            frame: as `batch` will get it.
            parent: the `traceparent` of its request; without one, or if it is not sampled, there are no spans.
        """
        if _tracer is None or parent is None or not int(parent[-2:], 16) & SAMPLED:
            yield
            return
        waiting = self._waiting[id(frame)] = Waiting(parent, time.time_ns())
        try:
            yield
        finally:
            del self._waiting[id(frame)]
            if not waiting.has_begun:  # its time was over, or nobody waits for it any more
                finished_span("queue", parent, waiting.arrived_ns, time.time_ns())

    @contextmanager
    def batch(self, frames: Sequence[object], **attributes: str | int) -> Iterator[None]:
        """Holds the span of a batch, and writes those of its requests when it has ended.

        Args:
            frames: in the batch.
            attributes: of the span, without the prefix `animegan.`.
        """
        requests = [self._waiting[id(frame)] for frame in frames if id(frame) in self._waiting]
        if _tracer is None or not requests:
            yield
            return
        from opentelemetry.context import Context
        from opentelemetry.trace import Link, get_current_span

        began_ns = time.time_ns()
        links = []
        for waiting in requests:
            waiting.has_begun = True
            finished_span("queue", waiting.parent, waiting.arrived_ns, began_ns)
            links.append(Link(get_current_span(context_of(waiting.parent)).get_span_context()))
        named = {f"animegan.{name}": value for name, value in attributes.items()}
        span = _tracer.start_span("batch", Context(), attributes=named, links=links, start_time=began_ns)
        try:
            yield
        except Exception as error:
            fail(span, error)
            raise
        finally:
            ended_ns = time.time_ns()
            span.end(ended_ns)
            for waiting in requests:
                finished_span("paint", waiting.parent, began_ns, ended_ns, [Link(span.get_span_context())])


def finished_span(name: str, parent: str, began_ns: int, ended_ns: int, links: Sequence[Any] = ()) -> None:
    """Writes the span of a step that is over; times are nanoseconds since 1970."""
    assert _tracer is not None  # the callers have looked
    _tracer.start_span(name, context_of(parent), links=links, start_time=began_ns).end(ended_ns)
