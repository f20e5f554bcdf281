"""Traces of requests: which spans there are, what they hold, and that there are none where nobody asks for them."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import MethodType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from fakes import FakePipeline
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pictures import photo_bytes
from shared import ROOT
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from serve_app.deployments import tracing
from serve_app.deployments.calls import Callee
from serve_app.deployments.codec import Codec
from serve_app.deployments.graph import Graph
from serve_app.deployments.steps import Painted, Stylized
from serve_app.deployments.stylizer import Stylizer
from serve_app.errors import BrokenImage, Lost, RequestError
from serve_app.frames import Client, EncodedImage, Size, StylizeRequest
from serve_app.images.header import read_header
from serve_app.queueing.batching import Batcher, SerialDevice
from serve_app.web.routes import create_app

PHOTO = photo_bytes(60, 80)
REQUEST = StylizeRequest("toon", 80, 4, "jpeg")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"
TRACE_ID = PARENT.split("-")[1]


class Spans:
    """The spans that have ended, in that order."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    @property
    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.all]

    def one(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.all if span.name == name]
        return found


@pytest.fixture
def spans() -> Iterator[Spans]:
    found = Spans()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found.exporter))
    tracing.use(provider)
    yield found
    tracing.use(None)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


def http(pipeline: FakePipeline) -> TestClient:
    app = create_app(pipeline)
    app.user_middleware.append(Middleware(tracing.TraceRequests))  # as the Ingress does
    return TestClient(app, raise_server_exceptions=False)


class TestRequests:
    def test_a_request_is_a_span_below_the_one_that_its_header_names(
        self, spans: Spans, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "serve_app.web.request_log")
        answer = http(FakePipeline()).post(
            "/v1/stylize/?max_side=40&style=papaya", content=PHOTO, headers={"traceparent": PARENT}
        )
        span = spans.one("POST /v1/stylize")
        assert (trace_of(span), parent_of(span), span.kind) == (TRACE_ID, PARENT.split("-")[2], SpanKind.SERVER)
        assert attributes(span) == {
            "http.request.method": "POST",
            "http.route": "/v1/stylize",
            "http.response.status_code": 200,
            "http.request.body.size": len(PHOTO),
            "http.response.body.size": len(answer.content),
            "animegan.style": "papaya",
            "animegan.photograph.pixels": 4800,
            "animegan.painting.pixels": 40 * 28,
            "animegan.reused": False,
        }
        (line,) = [record.request for record in caplog.records if hasattr(record, "request")]
        assert line["trace_id"] == TRACE_ID

    @pytest.mark.parametrize("header", [None, "00-secret", "00-" + 32 * "0" + "-b7ad6b7169203331-01"])
    def test_a_request_without_a_sound_header_begins_a_trace(
        self, header: str | None, spans: Spans, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "serve_app.web.request_log")
        http(FakePipeline()).get("/v1/styles", headers={} if header is None else {"traceparent": header})
        span = spans.one("GET /v1/styles")
        assert span.parent is None
        (line,) = [record.request for record in caplog.records if hasattr(record, "request")]
        assert line["trace_id"] == trace_of(span)

    def test_a_trace_that_is_not_sampled_stays_so(self, spans: Spans) -> None:
        http(FakePipeline()).get("/v1/styles", headers={"traceparent": UNSAMPLED})
        assert not spans.all

    @pytest.mark.parametrize(
        ("path", "fault", "status", "code", "is_fault"),
        [
            ("/v1/stylize?max_side=7", None, 400, "bad-option", False),
            ("/v1/stylize", Lost("Lost."), 503, "lost", True),
            ("/v1/stylize", ValueError("secret"), None, "internal-error", True),
        ],
    )
    def test_refusals_have_their_code_and_faults_are_errors_without_a_text(
        self, path: str, fault: Exception | None, status: int | None, code: str, is_fault: bool, spans: Spans
    ) -> None:
        http(FakePipeline(fault=fault)).post(path, content=PHOTO)
        span = spans.one("POST /v1/stylize")
        known = attributes(span)
        assert (known.get("http.response.status_code"), known["error.type"]) == (status, code)
        assert (span.status.status_code is StatusCode.ERROR) == is_fault
        assert not span.events
        assert "secret" not in span.to_json()

    def test_health_checks_are_not_traced(self, spans: Spans) -> None:
        for path in ("/livez", "/readyz"):
            assert http(FakePipeline()).get(path).status_code == 200
        assert not spans.all

    def test_paths_that_hold_ids_are_not_in_spans(self, spans: Spans) -> None:
        http(FakePipeline()).get("/v1/jobs/0123456789abcdef?id=0123456789abcdef")
        assert spans.names == ["GET /v1/jobs/{job_id}"]
        assert "0123456789abcdef" not in spans.all[0].to_json()

    def test_replicas_are_told_of_the_span_of_a_request(self, spans: Spans) -> None:
        told: list[str | None] = []

        class Telling(FakePipeline):
            async def stylize(self, data: bytes, request: StylizeRequest, client: Client) -> EncodedImage:
                told.append(tracing.traceparent())
                return await super().stylize(data, request, client)

        http(Telling()).post("/v1/stylize", content=PHOTO)
        span = spans.one("POST /v1/stylize")
        assert span.context is not None
        (parent,) = told
        assert parent is not None
        assert parent.startswith(f"00-{trace_of(span)}-{span.context.span_id:016x}-")


class Handle:
    """A deployment's handle that gives one answer, and keeps the named arguments of the last call."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.named: dict[str, object] | None = None

    def options(self, **options: object) -> "Handle":
        return self

    def __getattr__(self, name: str) -> "Handle":
        return self

    def remote(self, *args: object, **named: object) -> "Handle":
        self.named = named
        return self

    async def __aiter__(self) -> AsyncIterator[object]:
        yield self.answer


STYLIZED = Stylized(b"jpeg", Size(60, 80), Size(60, 80), {"decode": 1.0, "paint": 1.0, "encode": 1.0})


def test_a_graph_hands_the_span_of_its_caller_on(spans: Spans) -> None:
    handle: Any = Handle(STYLIZED)

    async def scene() -> str | None:
        with tracing.root_span("job"):
            await Graph(handle).stylize(PHOTO, read_header(PHOTO), REQUEST)
            parent = tracing.traceparent()
        assert tracing.traceparent() is None
        return parent

    parent = asyncio.run(scene())
    assert handle.named == {"trace": parent}
    assert parent is not None
    tracing.use(None)
    asyncio.run(Graph(handle).stylize(PHOTO, read_header(PHOTO), REQUEST))
    assert handle.named == {}  # replicas of a version without traces are called as before


class TestCodec:
    @pytest.fixture
    def codec(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        wrapped = cast("Any", Codec).func_or_class
        frame = np.zeros((8, 8, 3), np.uint8)
        handle = Handle(Painted(frame, 1.0))
        codec = SimpleNamespace(background=asyncio.Semaphore(1), stylizer=Callee(cast("Any", handle)), handle=handle)

        async def decode(*args: object) -> Any:
            if args[0] is None:
                raise BrokenImage("not a picture")
            return SimpleNamespace(frame=frame, alpha=None)

        async def encode(*args: object) -> Stylized:
            return STYLIZED

        codec.decode, codec.encode = decode, encode
        codec.stylize = MethodType(wrapped.stylize, codec)
        return codec

    @staticmethod
    def stylize(codec: Any, upload: Any = b"photo", trace: str | None = PARENT) -> Stylized | RequestError:
        async def scene() -> Any:
            return [answer async for answer in codec.stylize(upload, None, REQUEST, 9.0, trace=trace)]

        (answer,) = asyncio.run(scene())
        return cast("Stylized | RequestError", answer)

    def test_decoding_and_encoding_are_spans_of_the_request(self, codec: Any, spans: Spans) -> None:
        assert self.stylize(codec) is STYLIZED
        assert spans.names == ["decode", "encode"]
        assert {trace_of(span) for span in spans.all} == {TRACE_ID}
        assert {parent_of(span) for span in spans.all} == {PARENT.split("-")[2]}
        assert codec.handle.named == {"trace": PARENT}

    def test_a_photograph_that_cannot_be_decoded_is_not_an_error_of_ours(self, codec: Any, spans: Spans) -> None:
        assert isinstance(self.stylize(codec, None), BrokenImage)
        span = spans.one("decode")
        assert (attributes(span), span.status.status_code) == ({"error.type": "broken-image"}, StatusCode.UNSET)

    def test_a_request_that_is_not_traced_has_no_spans(self, codec: Any, spans: Spans) -> None:
        assert self.stylize(codec, trace=None) is STYLIZED
        assert (spans.names, codec.handle.named) == ([], {})


class TestStylizer:
    @pytest.fixture
    def stylizer(self) -> Any:
        wrapped = cast("Any", Stylizer).func_or_class
        stylizer = SimpleNamespace(
            stylist=SimpleNamespace(styles={"toon"}, digests={"toon": "digest"}),
            precision="auto",
            traces=tracing.BatchTraces(),
            may_paint=asyncio.Event(),
        )

        async def run(key: Any, frames: list[Any]) -> list[Any]:
            with stylizer.traces.batch(frames, style=key[0], images=len(frames)):
                await stylizer.may_paint.wait()
                return frames

        stylizer.batcher = Batcher(SerialDevice(run), 4)
        stylizer.painted = MethodType(wrapped.painted, stylizer)
        return stylizer

    @staticmethod
    def paint(stylizer: Any, traces: list[str | None], expires_s: float = 9.0) -> list[Any]:
        async def scene() -> Any:
            frames = [np.zeros((8, 8, 3), np.uint8) for _ in traces]
            first = stylizer.painted(np.zeros((8, 8, 3), np.uint8), "toon", 9.0, False, None)  # keeps the device busy
            begun = asyncio.create_task(first)
            await asyncio.sleep(0.01)
            pairs = zip(frames, traces, strict=True)
            calls = [stylizer.painted(frame, "toon", expires_s, False, trace) for frame, trace in pairs]
            tasks = [asyncio.create_task(call) for call in calls]
            await asyncio.sleep(0.05)
            stylizer.may_paint.set()
            await begun
            return await asyncio.gather(*tasks, return_exceptions=True)

        return list(asyncio.run(scene()))

    def test_a_batch_is_a_span_of_its_own_with_links_to_its_requests(self, stylizer: Any, spans: Spans) -> None:
        other = PARENT.replace("0af7", "1bf8")
        self.paint(stylizer, [PARENT, None, other, UNSAMPLED])
        batch = spans.one("batch")
        assert batch.parent is None
        assert [f"{link.context.trace_id:032x}" for link in batch.links] == [TRACE_ID, other.split("-")[1]]
        assert [f"{link.context.span_id:016x}" for link in batch.links] == 2 * [PARENT.split("-")[2]]
        assert attributes(batch) == {"animegan.style": "toon", "animegan.images": 4}
        for trace_id in (TRACE_ID, other.split("-")[1]):
            queue, paint = [span for span in spans.all if trace_of(span) == trace_id]
            assert (queue.name, paint.name, parent_of(queue)) == ("queue", "paint", parent_of(paint))
            assert queue.start_time is not None
            assert queue.start_time < (queue.end_time or 0)
            assert queue.end_time == paint.start_time == batch.start_time
            assert (paint.end_time, [link.context for link in paint.links]) == (batch.end_time, [batch.context])
        assert len(spans.all) == 5
        assert not stylizer.traces._waiting

    def test_a_frame_whose_time_is_over_has_waited_and_was_not_painted(self, stylizer: Any, spans: Spans) -> None:
        (error,) = self.paint(stylizer, [PARENT], expires_s=0.01)
        assert isinstance(error, RequestError)
        assert spans.names == ["queue"]
        assert not stylizer.traces._waiting

    def test_without_traces_nothing_is_kept(self, stylizer: Any) -> None:
        assert all(isinstance(each, Painted) for each in self.paint(stylizer, [PARENT, PARENT]))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "mine"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, []),
    ],
)
def test_exporters_are_those_of_the_environment(environment: dict[str, str], expected: list[str]) -> None:
    assert tracing.exporters(environment) == expected


def test_an_exporter_that_is_not_installed_is_named_and_the_service_starts(caplog: pytest.LogCaptureFixture) -> None:
    tracing.start_tracing({"OTEL_TRACES_EXPORTER": "nobodys"})
    assert tracing._tracer is None
    assert caplog.messages == [
        "no traces: there is no exporter nobodys here; pip install 'animegan-serve[otel]' brings OTLP over HTTP"
    ]


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    received: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.received.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        return


def test_spans_reach_a_collector_over_http() -> None:
    """In a process of its own, with the environment that a replica would have."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    received: list[tuple[str, bytes]] = []
    server = HTTPServer(("127.0.0.1", 0), type("Here", (Collector,), {"received": received}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    code = (
        "from serve_app.deployments import tracing\n"
        "tracing.start_tracing()\n"
        "with tracing.root_span('job'):\n"
        "    with tracing.step_span('decode', tracing.traceparent()):\n"
        "        pass\n"
    )
    environment = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "PYTHONPATH": str(ROOT),
    }
    try:
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    ((path, body),) = received
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    assert (path, named["service.name"], named["deployment.environment.name"]) == (
        "/v1/traces",
        "animegan-serve",
        "test",
    )
    decode, job = [span for scope in resource.scope_spans for span in scope.spans]
    assert (decode.name, job.name, decode.parent_span_id, decode.trace_id) == (
        "decode",
        "job",
        job.span_id,
        job.trace_id,
    )


def test_without_an_exporter_nothing_of_this_package_imports_opentelemetry() -> None:
    """Other packages may: FastAPI and Ray have OpenTelemetry's API in them."""
    code = (
        "import sys\n"
        "from serve_app.deployments import tracing\n"
        "for name in [name for name in sys.modules if name.split('.')[0] == 'opentelemetry']:\n"
        "    sys.modules[name] = None\n"
        "sys.meta_path.insert(0, type('Refuse', (), {'find_spec': staticmethod(lambda name, *args: 1 / 0 if "
        "name.startswith('opentelemetry') else None)}))\n"
        "tracing.start_tracing({})\n"
        "traces = tracing.BatchTraces()\n"
        "with tracing.root_span('job') as span, tracing.step_span('decode', None), traces.queued(b'', None):\n"
        "    with traces.batch([b'']):\n"
        "        assert span is None and tracing.traceparent() is None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
