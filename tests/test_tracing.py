"""Spans of a request, as a real collector gets them."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from test_bundle import write_bundle
from test_operations import post, until
from test_serving import server_process

messages = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_request_is_a_span_of_the_trace_that_it_names_with_its_stages_below(tmp_path, monkeypatch):
    spans = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["content-length"]))
            sent = messages.ExportTraceServiceRequest.FromString(content)
            spans.extend(span for each in sent.resource_spans for scope in each.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_): ...

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with server_process(f"bundle={write_bundle(tmp_path)}", "engine=dummy", "tracing=true") as (_, line):
        header = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        httpx.post(f"{line.split()[0]}/classify", json={"texts": ["good"]}, headers=header)
        until(lambda: "POST /classify" in {span.name for span in spans})
        assert post(line.split()[0]).status_code == 200
    collector.shutdown()
    own = {span.name: span for span in spans if span.trace_id.hex() == TRACE}
    assert own["POST /classify"].parent_span_id.hex() == "00f067aa0ba902b7"
    assert own["tokenize"].parent_span_id == own["infer"].parent_span_id in {span.span_id for span in own.values()}
    assert {each.key: each.value.int_value for each in own["infer"].attributes} == {"rows": 1, "tokens": 3}
