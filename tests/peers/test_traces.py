"""Traces, through the relay that is built with them: what a collector is sent, and what the app is told.

The collector is one of OTLP over HTTP that reads what comes with OpenTelemetry's own descriptions.
"""

import collections
import contextlib
import http.server
import os
import pathlib
import re
import signal
import socket
import threading
from unittest import mock

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

import world as peers
from test_queue import offline
from world import DOMAIN, World, eventually, lacking, request

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILT = os.environ.get("HOOKWAY_RELAY_OTEL_BIN", str(_REPOSITORY / "target/otel/hookway-relay"))
WHERE, WHERE_TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}  # ms
TRACE, SENDER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{SENDER}-01"


# ── what the tests are made of ────────────────────────────────────────────────────────────────────────────────────


def built_with_traces():
    if not pathlib.Path(BUILT).exists():
        lacking(
            f"{BUILT} is missing\n  next:  cargo build -p hookway-relay --features otel --target-dir target/with-otel,"
            " and put its hookway-relay there; or set HOOKWAY_RELAY_OTEL_BIN"
        )
    return BUILT


@contextlib.contextmanager
def traced_world(*flags, environment=None):
    """A world whose relay is the one with traces."""
    with mock.patch.object(peers, "HOOKWAY_RELAY", built_with_traces()):
        world = World(*flags, environment=environment)
    with world:
        yield world


Exported = collections.namedtuple("Exported", "span, attributes, resource")


def values(attributes):
    return {it.key: getattr(it.value, it.value.WhichOneof("value")) for it in attributes}


class Collector:
    """Keeps the spans that come, and answers with `status`; with none, never."""

    def __init__(self, status=200, host="127.0.0.1"):
        self.asked, self.headers, self.spans, self.over = [], [], [], threading.Event()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.asked.append((self.path, self.headers["content-type"]))
                collector.headers.append(self.headers)
                collector.keep(ExportTraceServiceRequest.FromString(body))
                if status is None:
                    collector.over.wait(60)
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        self._server = Server((host, 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
        self.environment = SOON | {WHERE: self.url}

    def keep(self, exported):
        for batch in exported.resource_spans:
            for scope in batch.scope_spans:
                self.spans += [Exported(span, values(span.attributes), values(batch.resource.attributes)) for span in scope.spans]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def of(self, delivery):
        """The only span of this delivery, waited for."""
        found = eventually(lambda: [it for it in list(self.spans) if it.attributes.get("hookway.delivery") == delivery], what=f"a span of {delivery}")
        assert len(found) == 1, found
        return found[0]


class Traced:
    """A relay with traces, its collector, an app and its client."""

    def __init__(self, world, collector):
        self.world, self.collector = world, collector

    def served(self, name, answer=None):
        app = self.world.app(answer=answer) if answer else self.world.app()
        self.world.client(app, name=name)
        return app

    def exchanged(self, app, name, method="GET", headers=()):
        """(what the app saw, the span) of one request."""
        with self.world.wire(name) as wire:
            wire.ask(request(method, "/", host=f"{name}.{DOMAIN}", headers=headers))
        seen = app.seen[-1]
        return seen, self.collector.of(seen.header("hookway-delivery"))


@pytest.fixture(scope="module")
def traced():
    with Collector() as collector, traced_world(environment=collector.environment) as world:
        yield Traced(world, collector)


def told(seen):
    """(trace, span, flags) of the one valid `traceparent` that the app got."""
    (field,) = seen.all("traceparent")
    version, trace, span, flags = re.fullmatch(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", field).groups()
    assert version == "00" and int(trace, 16) and int(span, 16)
    return trace, span, flags


def ids(span):
    return span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()


# ── the context of a trace ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_a_request_is_a_span_of_its_senders_trace(traced, name, method):
    app = traced.served(name)
    seen, (span, attributes, resource) = traced.exchanged(app, name, method, [("traceparent", SENT), ("tracestate", "vendor=1")])
    trace, own, flags = told(seen)
    assert (trace, flags) == (TRACE, "01") and own != SENDER
    assert ids(span) == (TRACE, own, SENDER) and span.trace_state == "vendor=1"
    assert (span.kind, span.name, span.status.code) == (Span.SPAN_KIND_SERVER, method, Status.STATUS_CODE_UNSET)
    assert attributes == {"http.request.method": method, "http.response.status_code": 200, "hookway.delivery": seen.header("hookway-delivery")}
    assert resource["service.name"] == "hookway-relay" and re.match(r"\d+\.\d+\.\d+", resource["service.version"])
    assert 0 < span.start_time_unix_nano < span.end_time_unix_nano
    assert seen.all("tracestate") == ["vendor=1"]


def test_a_collector_is_asked_as_otlp_has_it(traced, name):
    traced.exchanged(traced.served(name), name)
    assert set(traced.collector.asked) == {("/v1/traces", "application/x-protobuf")}


def test_a_new_trace_begins_without_one(traced, name):
    app = traced.served(name)
    found = []
    for _ in range(2):
        seen, (span, *_) = traced.exchanged(app, name)
        trace, own, flags = told(seen)
        assert ids(span) == (trace, own, "") and flags == "01"
        found += [trace, own]
    assert len(set(found)) == 4


# By W3C Trace Context §3.2.2: of another length, in capitals, all zero, of a version that there cannot be.
INVALID = {
    "empty": "",
    "nonsense": "00-zz",
    "no-flags": f"00-{TRACE}-{SENDER}",
    "no-trace": f"00-{'0' * 32}-{SENDER}-01",
    "no-parent": f"00-{TRACE}-{'0' * 16}-01",
    "version-ff": f"ff-{TRACE}-{SENDER}-01",
    "more-in-version-0": f"{SENT}-more",
    "capitals": SENT.upper(),
    "not-hex": f"00-{TRACE[:-1]}g-{SENDER}-01",
    "long-trace": f"00-{TRACE}0-{SENDER}-01",
    "short-trace": f"00-{TRACE[:-1]}-{SENDER}-01",
    "short-parent": f"00-{TRACE}-{SENDER[2:]}-01",
    "short-flags": f"00-{TRACE}-{SENDER}-1",
    "short-version": f"0-{TRACE}-{SENDER}-01",
    "long-version": f"000-{TRACE}-{SENDER}-01",
    "plus": f"00-+{TRACE[1:]}-{SENDER}-01",
    "trailing-dash": f"{SENT}-",
}


@pytest.mark.parametrize("kind", INVALID)
def test_an_invalid_traceparent_is_not_trusted(traced, name, kind):
    seen, (span, *_) = traced.exchanged(traced.served(name), name, headers=[("traceparent", INVALID[kind])])
    trace, own, _ = told(seen)
    assert ids(span) == (trace, own, "")
    # Nor is what is left when its zeros are cut away or filled up.
    assert TRACE[2:-2] not in trace


def test_two_traceparents_are_none(traced, name):
    """As W3C's own test suite has it: which of the two would be the sender's?"""
    both = [("traceparent", SENT), ("traceparent", f"00-{TRACE[::-1]}-{SENDER}-01")]
    seen, (span, *_) = traced.exchanged(traced.served(name), name, headers=both)
    trace, own, _ = told(seen)
    assert ids(span) == (trace, own, "") and trace not in (TRACE, TRACE[::-1])


@pytest.mark.parametrize("given", [[], [("traceparent", "00-zz")]], ids=["without", "invalid"])
def test_a_tracestate_goes_with_its_trace(traced, name, given):
    """W3C Trace Context §4.3: who begins a trace sends no tracestate of another."""
    seen, (span, *_) = traced.exchanged(traced.served(name), name, headers=[*given, ("tracestate", "vendor=1")])
    assert not span.trace_state and not seen.all("tracestate")


def test_a_later_version_is_read_as_the_first(traced, name):
    """W3C Trace Context §2.2.5: what is known of it is used."""
    seen, (span, *_) = traced.exchanged(traced.served(name), name, headers=[("traceparent", f"cc-{TRACE}-{SENDER}-01-what-the-future-holds")])
    assert ids(span) == (TRACE, told(seen)[1], SENDER)


def test_who_does_not_sample_is_obeyed(traced, name):
    app = traced.served(name)
    traced.world.get("/unsampled", name, headers=[("traceparent", f"00-{TRACE}-{SENDER}-00")])
    trace, _, flags = told(app.seen[0])
    assert (trace, flags) == (TRACE, "00")
    traced.exchanged(app, name)  # it is sent after what came before it
    delivery = app.seen[0].header("hookway-delivery")
    assert delivery not in [it.attributes.get("hookway.delivery") for it in traced.collector.spans]


def test_what_waits_keeps_its_trace(traced, name):
    client = traced.world.client(app := traced.world.app(), name=name)
    client.stop()
    offline(traced.world, name)
    reply = traced.world.post("/waits", b"{}", name, headers=[("traceparent", SENT)])
    assert reply.status == 202
    span, attributes, _ = traced.collector.of(reply.header("hookway-delivery"))
    assert attributes["http.response.status_code"] == 202 and "hookway.reason" not in attributes
    traced.world.client(app, name=name)
    (seen,) = eventually(lambda: app.at("/waits"), what="what waited")
    assert told(seen) == (TRACE, span.span_id.hex(), "01") and ids(span)[2] == SENDER


# ── what a span says ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["BREW", "get", "PROPFIND", pytest.param("X" * 30_000, id="30000-letters")])
def test_a_method_that_is_not_known_is_no_name(traced, name, method):
    _, (span, attributes, _) = traced.exchanged(traced.served(name), name, method)
    assert (span.name, attributes["http.request.method"]) == ("HTTP", "_OTHER")


@pytest.mark.parametrize(("status", "is_error"), [(404, False), (499, False), (500, True), (503, True)])
def test_the_apps_failure_is_an_error(traced, name, status, is_error):
    app = traced.served(name, lambda *_: b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
    _, (span, attributes, _) = traced.exchanged(app, name)
    assert attributes["http.response.status_code"] == status and "hookway.reason" not in attributes
    assert span.status.code == (Status.STATUS_CODE_ERROR if is_error else Status.STATUS_CODE_UNSET)


def test_a_refusal_says_why(traced):
    reply = traced.world.get("/", "nobodys", headers=[("traceparent", SENT)])
    span, attributes, _ = traced.collector.of(reply.header("hookway-delivery"))
    assert reply.status == 404 and ids(span)[::2] == (TRACE, SENDER)
    assert attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 404,
        "hookway.delivery": reply.header("hookway-delivery"),
        "hookway.reason": "unknown",
    }
    assert span.status.code == Status.STATUS_CODE_UNSET


def test_an_app_that_hangs_up_is_an_error(traced, name):
    traced.served(name, lambda *_: None)
    reply = traced.world.get("/", name)
    span, attributes, _ = traced.collector.of(reply.header("hookway-delivery"))
    assert (reply.status, attributes["hookway.reason"]) == (502, "app_bad_answer")
    assert span.status.code == Status.STATUS_CODE_ERROR


def test_a_sender_that_hangs_up_leaves_a_span_of_its_delivery(traced, name):
    over = threading.Event()
    app = traced.served(name, lambda *_: over.wait(20) and b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    # Larger than what is carried out without its sender.
    with traced.world.wire(name) as wire:
        wire.send(request("POST", "/", b"x" * (2 << 20), host=f"{name}.{DOMAIN}"))
        (seen,) = eventually(lambda: list(app.seen), what="the request")
    own = bytes.fromhex(told(seen)[1])
    _, attributes, _ = eventually(lambda: next((it for it in list(traced.collector.spans) if it.span.span_id == own), None), what="its span")
    over.set()
    assert attributes.get("hookway.delivery") == seen.header("hookway-delivery")


# ── collectors ────────────────────────────────────────────────────────────────────────────────────────────────────


def nobody():
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def goes_on(world):
    """Requests are answered, whatever becomes of their spans, and the log has a warning."""
    app = world.app()
    world.client(app)
    for _ in range(3):
        assert world.get("/").status == 200
    assert [told(seen) for seen in app.seen]
    log = eventually(lambda: "spans are lost" in (log := world.relay.log()) and log, what="a warning")
    line = next(line for line in log.splitlines() if "spans are lost" in line)
    assert "WARN" in line
    assert world.get("/").status == 200
    return line


def test_a_collector_that_is_away():
    with traced_world(environment=SOON | {WHERE: f"http://127.0.0.1:{nobody()}"}) as world:
        assert "cannot be asked" in goes_on(world)


@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_a_collector_that_refuses(status):
    with Collector(status) as collector, traced_world(environment=collector.environment) as world:
        assert f"status={status}" in re.sub(r"\x1b\[[\d;]*m", "", goes_on(world))


def test_a_collector_over_tls_is_not_asked():
    with Collector() as collector:
        with traced_world(environment=SOON | {WHERE: collector.url.replace("http:", "https:")}) as world:
            assert "http://" in goes_on(world)
        assert not collector.asked


def test_a_collector_that_never_answers():
    """It keeps neither requests nor the relay's end."""
    with Collector(None) as collector, traced_world(environment=collector.environment) as world:
        world.client(world.app())
        for _ in range(3):
            assert world.get("/").status == 200
        eventually(lambda: collector.asked, what="a first batch")
        assert world.get("/").status == 200
        world.relay.process.send_signal(signal.SIGTERM)
        assert world.relay.exited(15) == 0


@pytest.mark.parametrize(("variable", "path"), [(WHERE, ""), (WHERE, "/"), (WHERE, "/base"), (WHERE_TRACES, "/v1/traces"), (WHERE_TRACES, "/own")])
def test_where_a_collector_is(variable, path):
    with Collector() as collector, traced_world(environment=SOON | {variable: collector.url + path}) as world:
        assert world.get("/").status == 404
        eventually(lambda: collector.spans, what="a span")
        wanted = path if variable == WHERE_TRACES else f"{path.rstrip('/')}/v1/traces"
        assert collector.asked[0][0] == wanted


def test_a_collector_at_an_ipv6_address():
    try:
        collector = Collector(host="::1")
    except OSError:
        lacking("this machine has no ::1")
    with collector, traced_world(environment=collector.environment) as world:
        assert world.get("/").status == 404
        eventually(lambda: collector.spans, what="a span")


def test_the_variables_of_opentelemetry_are_heard():
    own = {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test", "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20it"}
    with Collector() as collector, traced_world(environment=collector.environment | own) as world:
        assert world.get("/").status == 404
        (_, _, resource), *_ = eventually(lambda: collector.spans, what="a span")
        assert resource["deployment.environment.name"] == "test" and collector.headers[0]["authorization"] == "Bearer it"


def test_an_operator_names_the_service():
    with Collector() as collector, traced_world(environment=collector.environment | {"OTEL_SERVICE_NAME": "front"}) as world:
        assert world.get("/").status == 404
        (_, _, resource), *_ = eventually(lambda: collector.spans, what="a span")
        assert resource["service.name"] == "front"


def test_a_sampler_that_is_set_is_used():
    with Collector() as collector:
        with traced_world(environment=collector.environment | {"OTEL_TRACES_SAMPLER": "always_off"}) as world:
            world.client(app := world.app())
            assert world.get("/", headers=[("traceparent", SENT)]).status == 200
            assert (told(app.seen[0])[0], told(app.seen[0])[2]) == (TRACE, "00")
        assert not collector.asked


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_the_last_spans_are_sent_at_the_end(how):
    late = {"OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with Collector() as collector, traced_world(environment=collector.environment | late) as world:
        deliveries = {world.get("/").header("hookway-delivery") for _ in range(20)}
        assert not collector.spans
        world.relay.process.send_signal(how)
        assert world.relay.exited() == 0
        assert {it.attributes["hookway.delivery"] for it in collector.spans} == deliveries and len(deliveries) == 20


# ── without traces ────────────────────────────────────────────────────────────────────────────────────────────────

FOREIGN = [("traceparent", SENT), ("traceparent", "00-zz"), ("tracestate", "vendor=1")]


def passes_on(world, headers=tuple(FOREIGN)):
    app = world.app()
    world.client(app)
    assert world.get("/", headers=headers).status == 200 and world.get("/").status == 200
    (first, second) = app.seen
    assert [(name.lower(), value) for name, value in first.headers if name.lower().startswith("trace")] == list(headers)
    assert not second.all("traceparent") and not second.all("tracestate")


@pytest.mark.parametrize("environment", [{}, {WHERE: "", WHERE_TRACES: ""}], ids=["unset", "empty"])
def test_nothing_is_traced_unasked(environment):
    """What test_quiet.py sees of the sockets is that nothing is sent."""
    with traced_world(environment=SOON | environment) as world:
        passes_on(world)
        assert world.relay.stop() == 0
        assert "spans" not in world.relay.log() and "otel" not in world.relay.log().lower()


def test_a_relay_that_is_built_without_traces_sends_none():
    with Collector() as collector:
        with World(environment=collector.environment) as world:
            passes_on(world)
            assert world.relay.stop() == 0
            assert "built without traces" in world.relay.log()
        assert not collector.asked
