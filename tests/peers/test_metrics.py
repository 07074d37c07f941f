"""What the relay counts: each metric is moved here by doing the real thing, and what operators read is held to it.

A test says with `@moves` which families it moves, and must have shown that of each. A family that nobody moves, or that
deploy/monitoring/metrics.md does not describe, fails `test_every_family_is_moved` or `test_the_table_is_of_what_is_shown`.
"""

import contextlib
import functools
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import threading

import pytest
import yaml
from hyperframe.frame import SettingsFrame
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from test_admin_api import NOWHERE, Api
from test_h2_hostile import h2, request_fields
from test_queue import FAILED, answers, offline, queue
from test_semantics import GatedApp
from test_trusted_proxy import Peer
from test_websockets import EchoServer
from websockets.sync.client import connect
from world import DEADLINE, DOMAIN, HOOKWAY_RELAY, Closed, World, eventually, lacking, request, run, tls_context

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MONITORING = _REPOSITORY / "deploy/monitoring"
SOURCE = _REPOSITORY / "relay-server/src"
PREFIX = "hookway_relay_"
KIB, MIB = 1 << 10, 1 << 20

PROXY = "127.0.0.2"  # is trusted, and is to say whose connection it is
PER_IP = 20  # connections of one address
LIMITS = {
    "--header-timeout": "2s",
    "--body-timeout": "2s",
    "--write-timeout": "2s",
    "--reply-timeout": "3s",
    "--handshake-timeout": "2s",
    "--max-body": "2MiB",
    "--body-memory": "2MiB",
    "--max-concurrent": "2",
    "--max-connections-per-ip": f"{PER_IP}",
    "--max-handshakes-per-ip": "3",
    "--max-endpoints": "2",
    "--queue-max-count": "3",
}


# ── what the tests are made of ────────────────────────────────────────────────────────────────────────────────────


def documented():
    """The table: family → (type, unit, label, suffix); and the values of its label, by family."""
    text = (MONITORING / "metrics.md").read_text()
    head, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    families, values = {}, {}
    for section in sections:
        title, _, rows = section.partition("\n")
        rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines() if row.startswith("| `")]
        if labelled := re.fullmatch(rf"`{PREFIX}(\w+?)(?:_total)?{{(\w+)}}`", title):
            values[labelled[1]] = [row[0].strip("`") for row in rows]
            continue
        for name, kind, unit, label, *_ in rows:
            name = name.strip("`").removeprefix(PREFIX)
            suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
            assert name.endswith(suffix), name
            families[name.removesuffix(suffix)] = (kind, unit, label.strip("`"), suffix)
    return families, values


FAMILIES, VALUES = documented()
SAMPLES = {name + suffix for name, (*_, suffix) in FAMILIES.items()} | {f"first_byte_seconds_{part}" for part in ("bucket", "sum", "count")}
MOVED = {}  # family → the tests that move it
_shown = set()


def moves(*families):
    """Marks a test: it shows that these families move."""

    def mark(test):
        for family in families:
            MOVED.setdefault(family, []).append(test.__name__)

        @functools.wraps(test)
        def checked(*words, **named):
            _shown.clear()
            test(*words, **named)
            assert set(families) <= _shown, f"nothing is shown of {set(families) - _shown}"

        return checked

    return mark


def parsed(text):
    """The families of /metrics as a strict reader of OpenMetrics takes them; every label as documented."""
    families = {family.name.removeprefix(PREFIX): family for family in text_string_to_metric_families(text)}
    assert text.endswith("# EOF\n")
    for name, family in families.items():
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key not in ("le", "version")}
            for label, value in labels.items():
                assert label == FAMILIES[name][2] and value in VALUES[name], f"{sample} is not in metrics.md"
    return families


def samples(relay):
    """What is counted now, by name and labels."""
    status, text = relay.get("/metrics")
    assert status == 200
    found = {}
    for family in parsed(text).values():
        for sample in family.samples:
            found[sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))] = sample.value
    return found


def family_of(sample):
    exact = [name for name, (*_, suffix) in FAMILIES.items() if sample == name + suffix]
    return exact[0] if exact else re.sub("_(bucket|sum|count)$", "", sample)


class Counting:
    """What has been counted since it was made."""

    def __init__(self, world):
        self.relay = world.relay
        self.before = samples(self.relay)
        self.levels = {sample: value for (sample, labels), value in self.before.items() if not labels}

    def now(self, sample, **labels):
        return samples(self.relay).get((sample, tuple(sorted(labels.items()))), 0)

    def since(self, sample, **labels):
        return self.now(sample, **labels) - self.before.get((sample, tuple(sorted(labels.items()))), 0)

    def by(self, count, sample, **labels):
        """It grew by exactly so much; waited for, as most is counted when the answer is out already."""
        eventually(lambda: self.since(sample, **labels) >= count, 10, f"{sample} {labels} by {count}")
        assert self.since(sample, **labels) == count, f"{sample} {labels}"
        if count:
            _shown.add(family_of(sample))

    def is_at(self, level, sample, seconds=10):
        """A gauge comes to this level."""
        eventually(lambda: self.now(sample) == level, seconds, f"{sample} at {level}")
        if level != self.levels[sample]:
            _shown.add(family_of(sample))
        self.levels[sample] = level


@pytest.fixture(scope="module")
def world():
    """A relay of narrow limits, a proxy that is trusted, an operator."""
    flags = [word for pair in LIMITS.items() for word in pair]
    with World(*flags, "--trusted-proxy", PROXY, "--proxy-protocol") as world:
        world.root = Api(world.relay, world.token("root", "--scope", "admin"))
        yield world


@pytest.fixture
def counting(world):
    return Counting(world)


@pytest.fixture(scope="module")
def calm():
    """A relay on which nothing waits but what a test puts there."""
    with World() as world:
        yield world


def served(world, name, *flags, **options):
    """An endpoint with an app and a client."""
    app = world.app(**options)
    return app, world.client(app, *flags, name=name)


def page(status, body=b"", more=b""):
    """An app's answer."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), more, body)


# ── requests and answers ──────────────────────────────────────────────────────────────────────────────────────────


@moves("build")
def test_the_build_is_the_program(world):
    said = run(HOOKWAY_RELAY, "--version", folder=world.folder).stdout.split()[1]
    (build,) = parsed(world.relay.get("/metrics")[1])["build"].samples
    assert build.labels == {"version": said} and build.value == 1
    _shown.add("build")


@moves("requests", "replies")
def test_answers_are_counted_by_class(world, counting, name):
    app, _ = served(world, name)
    app.answer = lambda seen, _: page(int(seen.target[1:]))
    statuses = [200, 204, 302, 404, 410, 500, 503, 799]
    assert answers(world, name, *(f"/{status}" for status in statuses), method="GET") == statuses
    counting.by(8, "requests_total")
    for kind, count in {"1xx": 0, "2xx": 2, "3xx": 1, "4xx": 2, "5xx": 2, "other": 1}.items():
        counting.by(count, "replies_total", **{"class": kind})


@moves("requests", "replies")
def test_an_upgrade_is_an_answer(world, counting, name):
    echo = EchoServer()
    try:
        world.client(echo.address, name=name)
        with connect(world.url("/", name).replace("https", "wss"), ssl=tls_context(world.relay.ca), proxy=None, subprotocols=["echo"]) as talk:
            talk.send("x" * 1000)
            assert talk.recv(10) == "x" * 1000
        counting.by(1, "requests_total")
        counting.by(1, "replies_total", **{"class": "1xx"})
        assert counting.since("request_bytes_total") == counting.since("reply_bytes_total") == 0, "it is no body"
    finally:
        echo.server.shutdown()


@moves("request_bytes", "reply_bytes")
def test_bytes_of_bodies_are_counted_both_ways(world, counting, name):
    """Whole and streaming, of known length and not; heads do not count."""
    app, _ = served(world, name)
    app.answer = lambda seen, _: page(200, b"y" * (7 + 2 * len(seen.body)), b"X-Long: %s\r\n" % (b"z" * 500))
    for size in (0, 10, 1 * MIB + MIB // 2):
        assert len(world.post("/", b"x" * size, name).body) == 7 + 2 * size
    with world.wire(name) as wire:
        head = request("POST", "/", host=f"{name}.{DOMAIN}", headers=[("Transfer-Encoding", "chunked")])
        assert wire.ask(head + b"5\r\nhello\r\n0\r\n\r\n").body == b"y" * 17
    sent = 10 + MIB + MIB // 2 + 5
    counting.by(sent, "request_bytes_total")
    counting.by(4 * 7 + 2 * sent, "reply_bytes_total")
    assert world.get("/", name=f"not-{name}").status == 404
    assert counting.since("reply_bytes_total") == 4 * 7 + 2 * sent, "the relay's own words are no app's"


@moves("first_byte_seconds", "in_flight")
def test_the_time_to_the_answer(world, counting, name):
    """Until the answer's head: a slow app is in it, a slow body after that is not."""
    app, go = GatedApp(), threading.Event()

    def answer(_seen, connection):
        assert app.gate.wait(20)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        assert go.wait(20)
        connection.sendall(b"done")

    app.answer = answer
    with app, world.wire(name) as wire:
        world.client(app, name=name)
        wire.send(request("GET", "/", host=f"{name}.{DOMAIN}"))
        counting.is_at(1, "in_flight")
        assert counting.since("first_byte_seconds_count") == 0
        # Not a wait for anything: it is how long the app thinks.
        threading.Event().wait(0.3)
        app.gate.set()
        counting.by(1, "first_byte_seconds_count")
        counting.is_at(0, "in_flight")
        go.set()
        assert wire.reply().body == b"done"
    took = counting.since("first_byte_seconds_sum")
    assert 0.3 <= took < 5
    buckets = {float(dict(labels)["le"]): key for key in samples(world.relay) for sample, labels in [key] if sample.endswith("_bucket")}
    assert len(buckets) == 18 and min(buckets) == 0.001
    for most, (sample, labels) in buckets.items():
        assert counting.since(sample, **dict(labels)) == (took <= most), most


# ── what the relay answers itself ─────────────────────────────────────────────────────────────────────────────────


def ask_of(world, name, method="GET", path="/", body=None, **options):
    with world.wire(name) as wire:
        return wire.ask(request(method, path, body, host=f"{name}.{DOMAIN}", **options)).status


def malformed(world, _name):
    with world.wire() as wire:
        return wire.ask(b"GET / HTTP/1.1\r\n\r\n").status


def misdirected(world, name):
    with world.wire(name) as wire:
        return wire.ask(request(host=f"other.{DOMAIN}")).status


def redirected(world, name):
    connection = http.client.HTTPConnection(*world.relay.http, timeout=DEADLINE)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"Host": f"{name}.{DOMAIN}"})
        return connection.getresponse().status


def announced(world, name, size, sent=b""):
    with world.wire(name) as wire:
        head = request("POST", "/", host=f"{name}.{DOMAIN}", headers=[("Content-Length", str(size))])
        return wire.ask(head + sent).status


def too_large(world, name):
    served(world, name)
    return announced(world, name, 3 * MIB)


def head_too_large(world, name):
    served(world, name)
    with h2(world, name) as sender:
        fields = request_fields("GET", "/", f"{name}.{DOMAIN}", more=[(f"x{n}", "") for n in range(1100)])
        return sender.ask(fields).status


def slow_body(world, name):
    served(world, name)
    return announced(world, name, 10, b"x")


def memory(world, name):
    """Of 2 MiB one address may have a quarter."""
    served(world, name)
    return announced(world, name, 600 * KIB, b"x" * 600 * KIB)


def protected(world, name, what, **options):
    served(world, name)
    world.root.do("PUT", f"/endpoints/{name}/protection", what)
    return ask_of(world, name, **options)


def rate(world, name):
    assert protected(world, name, {"rate": "1/s"}) == 200
    return ask_of(world, name)


def address(world, name):
    return protected(world, name, {"deny": ["127.0.0.1"]})


def path(world, name):
    return protected(world, name, {"paths": ["/stripe"]}, path="/other")


def credentials(world, name):
    return protected(world, name, {"users": ["ann:a long password"]})


def credentials_throttled(world, name):
    wrong = [("Authorization", "Basic YW5uOndyb25n")]
    assert protected(world, name, {"users": ["ann:a long password"]}, headers=wrong) == 401
    statuses = [ask_of(world, name, headers=wrong) for _ in range(10)]
    assert statuses == [401] * 9 + [429]
    return statuses[-1]


def at_once(world, name, most, *flags):
    """The status of one more than may be at once."""
    with GatedApp() as app, contextlib.ExitStack() as stack:
        world.client(app, *flags, name=name)
        for _ in range(most):
            stack.enter_context(world.wire(name)).send(request(host=f"{name}.{DOMAIN}"))
        eventually(lambda: len(app.seen) == most, what="so many at the app")
        return ask_of(world, name)


def concurrency(world, name):
    return at_once(world, name, 2)


def client_busy(world, name):
    return at_once(world, name, 1, "--max-connections", "1", "--wait-app", "100ms")


def away(world, name):
    offline(world, name, "--on-offline", "error")
    return ask_of(world, name, "POST", body=b"x")


def lost(world, name):
    with GatedApp() as app, world.wire(name) as wire:
        client = world.client(app, "--transport", "h2", name=name)
        wire.send(request(host=f"{name}.{DOMAIN}"))
        eventually(lambda: app.seen, what="the request at the app")
        client.process.kill()
        return wire.reply().status


def client_timeout(world, name):
    with GatedApp() as app:
        world.client(app, name=name)
        return ask_of(world, name)


def client_too_large(world, name):
    served(world, name, "--max-body", "1KiB")
    return ask_of(world, name, "POST", body=b"x" * 2 * KIB)


def app_refused(world, name):
    world.client(NOWHERE, "--wait-app", "0s", name=name)
    return ask_of(world, name)


def app_timeout(world, name):
    with GatedApp() as app:
        world.client(app, "--timeout", "200ms", name=name)
        return ask_of(world, name)


def app_bad_answer(world, name):
    served(world, name, answer=lambda *_: b"SSH-2.0-no\r\n\r\n")
    return ask_of(world, name)


def queue_full(world, name):
    offline(world, name)
    return answers(world, name, *"/1 /2 /3 /4".split())[-1]


REFUSALS = {
    malformed: 400, misdirected: 421, redirected: 308, too_large: 413, head_too_large: 431, slow_body: 408, memory: 503,
    rate: 429, concurrency: 429, address: 403, path: 403, credentials: 401, credentials_throttled: 429, away: 503, lost: 503,
    client_timeout: 504, client_busy: 503, client_too_large: 413, app_refused: 503, app_timeout: 504, app_bad_answer: 502,
    queue_full: 503,
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSALS, ids=lambda how: how.__name__)
@moves("refused")
def test_what_the_relay_answers_itself_is_counted_by_reason(world, counting, name, how):
    assert how(world, name) == REFUSALS[how]
    counting.by(1, "refused_total", reason=how.__name__)


@moves("refused", "requests")
def test_who_looks_for_names_is_counted(world, counting, name):
    assert world.get("/", name=name).status == 404
    counting.by(1, "refused_total", reason="unknown")
    counting.by(1, "requests_total")
    assert counting.since("first_byte_seconds_count") == 0, "the relay's own speed is no app's"


@moves("refused")
def test_a_full_disk_is_counted(new_world):
    world = new_world("--disk-reserve", "99%")
    offline(world)
    eventually(lambda: world.relay.get("/health")[0] == 503, what="the disk being full")
    counting = Counting(world)
    assert world.post("/", b"x").status == 503
    counting.by(1, "refused_total", reason="disk_full")
    counting.by(0, "queued_total")


# ── connections and clients ───────────────────────────────────────────────────────────────────────────────────────


@moves("connections")
def test_connections_are_counted_while_they_are_open(world, counting, name):
    counting.is_at(0, "connections")
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(world.wire(name))
        with h2(world, name):
            counting.is_at(4, "connections")
        counting.is_at(3, "connections")
    counting.is_at(0, "connections")
    _, client = served(world, name, "--transport", "h2")
    counting.is_at(0, "connections")
    assert client.running, "a client's is none of a sender"


def no_tls(world):
    with socket.create_connection(world.relay.https, 10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while raw.recv(4096):
            pass


def half_a_handshake(world):
    with socket.create_connection(world.relay.https, 10) as raw:
        raw.sendall(b"\x16\x03\x01\x02\x00\x01")
        while raw.recv(4096):
            pass


def proxy_without_a_word(world):
    with contextlib.suppress(OSError, ssl.SSLError), Peer(world.relay, PROXY):
        pytest.fail("a connection of a proxy that does not say whose it is")


@pytest.mark.parametrize(
    ("how", "reason"), [(no_tls, "tls"), (half_a_handshake, "tls_timeout"), (proxy_without_a_word, "proxy_protocol")]
)
@moves("connections_refused")
def test_connections_that_come_to_nothing_are_counted(world, counting, how, reason):
    with contextlib.suppress(ConnectionError):
        how(world)
    counting.by(1, "connections_refused_total", reason=reason)
    counting.by(0, "requests_total")


@moves("connections_refused", "connections")
def test_too_many_connections_are_counted(world, counting):
    counting.is_at(0, "connections")
    with contextlib.ExitStack() as stack:
        for _ in range(PER_IP + 2):
            stack.enter_context(socket.create_connection(world.relay.https, 10))
        counting.by(2, "connections_refused_total", reason="too_many")
        counting.is_at(PER_IP, "connections")
    counting.is_at(0, "connections")


def large(*_):
    return [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (16 * MIB), *[b"x" * 65536] * 256]


@moves("replies_cut")
def test_an_answer_without_a_window_is_counted_as_cut(world, counting, name):
    served(world, name, answer=large)
    with h2(world, name, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as sender:
        sender.write(sender.headers(sender.stream(), request_fields("GET", "/", f"{name}.{DOMAIN}")))
        counting.by(1, "replies_cut_total")
    assert counting.since("replies_total", **{"class": "2xx"}) == 1


def test_an_answer_that_is_not_read_is_counted_as_cut(world, counting, name):
    served(world, name, answer=large)
    with world.wire(name, receive_buffer=4096) as wire:
        wire.send(request(host=f"{name}.{DOMAIN}"))
        counting.is_at(1, "connections")
        counting.is_at(0, "connections")
        assert counting.since("replies_cut_total") == 1


@pytest.mark.parametrize("transport", ["quic", "h2"])
@moves("sessions")
def test_clients_are_counted_while_they_are_there(world, counting, name, transport):
    before = counting.now("sessions")
    clients = [served(world, f"{name}-{number}", "--transport", transport)[1] for number in range(2)]
    counting.is_at(before + 2, "sessions")
    assert [client.stop() for client in clients] == [0, 0]
    counting.is_at(before, "sessions")
    counting.by(0, "links_lost_total")


@pytest.mark.parametrize("transport", ["quic", "h2"])
@moves("links_lost", "sessions")
def test_clients_that_vanish_are_counted(world, counting, name, transport):
    _, client = served(world, name, "--transport", transport)
    before = counting.levels["sessions"]
    counting.is_at(before + 1, "sessions")
    client.process.kill()
    counting.is_at(before, "sessions")
    counting.by(1, "links_lost_total")


def knock(world, *flags, token, name="billing"):
    """A client that is not let in."""
    client = world.client(NOWHERE, *flags, name=name, token=token, wait=False)
    assert client.exited() != 0


@moves("handshakes_refused")
def test_clients_that_are_not_let_in_are_counted_by_reason(world, counting, name):
    offline(world, name)
    knock(world, token="hwt_" + "A" * 43)
    counting.by(1, "handshakes_refused_total", reason="token")
    knock(world, token=world.token("another"), name=name)
    counting.by(1, "handshakes_refused_total", reason="taken")
    knock(world, token=world.token("bound", "--endpoints", "only-this"), name=name)
    counting.by(1, "handshakes_refused_total", reason="name")
    knock(world, "-n", f"{name}-2", "-n", f"{name}-3", token=world.default_token, name=name)
    counting.by(1, "handshakes_refused_total", reason="endpoints")


@moves("handshakes_refused")
def test_clients_that_say_nothing_are_counted(world, counting):
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(world.wire(alpn=("hookway-h2/1",)))
        counting.by(1, "handshakes_refused_total", reason="too_many")
        counting.by(3, "handshakes_refused_total", reason="timeout")


@moves("handshakes_refused")
def test_who_guesses_tokens_is_counted(new_world):
    world = new_world()
    counting = Counting(world)
    for number in range(12):
        client = world.client(NOWHERE, token=f"hwt_{number:043}", wait=False)
        assert client.exited() != 0
    counting.by(10, "handshakes_refused_total", reason="token")
    counting.by(2, "handshakes_refused_total", reason="throttled")


@moves("admin_refused")
def test_what_the_admin_api_refuses_is_counted(world, counting):
    client, name = world.token("looks", "--scope", "client"), "nobody-has-this"
    for reason, status, ask in [
        ("unauthorized", 401, lambda: Api(world.relay).ask("GET", "/api/tokens")),
        ("forbidden", 403, lambda: Api(world.relay, client).ask("GET", "/api/tokens")),
        ("unknown", 404, lambda: world.root.ask("GET", f"/api/endpoints/{name}")),
        ("wrong", 422, lambda: world.root.ask("POST", "/api/tokens", {"name": "x", "scope": "king"})),
        ("other", 405, lambda: world.root.ask("PATCH", "/api/tokens")),
    ]:
        assert ask().status == status
        counting.by(1, "admin_refused_total", reason=reason)


# ── the queue ─────────────────────────────────────────────────────────────────────────────────────────────────────


@moves("queued", "queue_depth", "queue_bytes", "queue_oldest_seconds", "queue_handed_over")
def test_what_waits_is_counted(calm, name):
    counting = Counting(calm)
    offline(calm, name)
    counting.is_at(0, "queue_depth")
    assert calm.post("/large", b"x" * 5000, name).status == 202
    assert calm.post("/small", b"y", name).status == 202
    counting.by(2, "queued_total")
    counting.is_at(2, "queue_depth")
    assert 5001 < counting.now("queue_bytes") < 9000
    eventually(lambda: counting.now("queue_oldest_seconds") >= 1, what="it grows older")
    _shown.update(("queue_bytes", "queue_oldest_seconds"))
    served(calm, name)
    counting.by(2, "queue_handed_over_total", outcome="done")
    for gauge in ("queue_depth", "queue_bytes", "queue_oldest_seconds"):
        counting.is_at(0, gauge)


@moves("queue_dead_letters", "queue_handed_over", "queue_depth")
def test_what_nobody_takes_is_counted(calm, name):
    """Refused for good by the client; retried, and taken by one that may."""
    counting = Counting(calm)
    offline(calm, name)
    before = counting.now("queue_dead_letters")
    assert calm.post("/", b"x" * 2 * KIB, name).status == 202
    _, client = served(calm, name, "--max-body", "1KiB")
    counting.by(1, "queue_handed_over_total", outcome="dead")
    counting.is_at(before + 1, "queue_dead_letters")
    counting.is_at(0, "queue_depth")
    assert client.stop() == 0
    calm.relay.command("queue", "retry", "--endpoint", name)
    counting.is_at(1, "queue_depth")
    counting.is_at(before, "queue_dead_letters")
    served(calm, name)
    counting.by(1, "queue_handed_over_total", outcome="done")
    counting.is_at(0, "queue_depth")


@moves("queue_handed_over")
def test_each_attempt_is_counted_by_what_came_of_it(calm, name):
    """The app is not there, fails, is lost with its client, and takes it."""
    counting = Counting(calm)
    offline(calm, name)
    queue(calm, name, "/")
    client = calm.client(NOWHERE, "--wait-app", "0s", name=name)
    client.event("app", lambda event: event["state"] == "down")
    assert client.stop() == 0, "it waits for its app no longer"
    counting.by(1, "queue_handed_over_total", outcome="app_away")
    app = calm.app(answer=lambda *_: FAILED)
    client = calm.client(app, name=name)
    eventually(lambda: counting.since("queue_handed_over_total", outcome="failed"), what="a failure")
    assert client.stop() == 0
    with GatedApp() as gated:
        client = calm.client(gated, "--transport", "h2", name=name)
        eventually(lambda: gated.seen, what="the delivery at the app")
        client.process.kill()
        counting.by(1, "queue_handed_over_total", outcome="lost")
    served(calm, name)
    counting.by(1, "queue_handed_over_total", outcome="done")
    counting.by(1, "queued_total")


# ── the access log and the certificate ────────────────────────────────────────────────────────────────────────────


@moves("access_log_dropped")
def test_lines_that_nobody_takes_in_time_are_counted(new_world, tmp_path):
    """A reader that does not read: requests are answered as ever, and what is written and what is dropped is all."""
    pipe = tmp_path / "access.log"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        world = new_world("--access-log", pipe)
        counting, count = Counting(world), 5500
        question = request("GET", "/" + "x" * 900, host=f"other.{DOMAIN}")
        with world.wire() as wire:
            for _ in range(count // 50):
                wire.send(question * 50)
                assert {wire.reply("GET").status for _ in range(50)} == {421}
        counting.by(count, "requests_total")
        dropped = int(counting.since("access_log_dropped_total"))
        assert dropped > 0
        counting.by(dropped, "access_log_dropped_total")
        lines, text = 0, b""

        def read():
            nonlocal text
            with contextlib.suppress(BlockingIOError):
                while data := os.read(reader, 1 << 20):
                    text += data
            return text.count(b"\n") == count - dropped

        eventually(read, what=f"{count - dropped} lines")
        assert all(json.loads(line)["status"] == 421 for line in text.splitlines())
    finally:
        os.close(reader)


@moves("certificate_expiry_timestamp")
def test_the_end_of_the_certificate(world, new_world, tmp_path):
    """That of the file, also after another has taken its place; of the relay's own CA there is nothing to tell."""
    assert Counting(world).now("certificate_expiry_timestamp") == 0
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"

    def made(days):
        words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(days)]
        names = f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN}"
        subprocess.run([*words, "-subj", "/", "-addext", names, "-keyout", key, "-out", cert], check=True, capture_output=True)
        shown = subprocess.run(["openssl", "x509", "-enddate", "-noout", "-in", cert], check=True, capture_output=True, text=True)
        return ssl.cert_time_to_seconds(shown.stdout.strip().partition("=")[2])

    first = made(3)
    of_files = new_world("--tls", "files", "--tls-cert", cert, "--tls-key", key)
    counting = Counting(of_files)
    counting.is_at(first, "certificate_expiry_timestamp")
    second = made(30)
    assert second > first
    of_files.relay.command("reload")
    counting.is_at(second, "certificate_expiry_timestamp")


# ── the text ──────────────────────────────────────────────────────────────────────────────────────────────────────

CANARIES = ["canary", "127.0.0", DOMAIN, "hwt_", "billing"]


@pytest.fixture(scope="module")
def full():
    """/metrics of a relay that has seen one of each, by odd names: no family without a series is shown."""
    with World() as world:
        app = world.app()
        app.answer = lambda seen, _: page(799 if seen.target == "/canary-799" else 200)
        world.client(app, name="canary-name", token=world.token("canary-owner"))
        for host in ("canary-name", "canary-unknown", "x" * 63):
            for target in ("/canary-path?canary-query", "/canary-799", "/%63anary%00%0A", "*"):
                with world.wire(host) as wire:
                    host_header = f"{host}.{DOMAIN}"
                    wire.ask(request("CANARY", target, host=host_header, headers=[("X-Canary", "canary"), ("User-Agent", 'canary"} 1\\n')]))
        for line in (b"GET / HTTP/1.1\r\nHost: canary-other.test\r\n\r\n", b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n", b'GET / HTTP/1.1\r\nHost: a"b\r\n\r\n'):
            with world.wire() as wire, contextlib.suppress(Closed):
                wire.ask(line)
        with contextlib.suppress(ConnectionError):
            no_tls(world)
        knock(world, token="hwt_canary" + "A" * 37, name="canary-guess")
        Api(world.relay, "hwt_canary").ask("GET", "/api/canary")
        world.client(NOWHERE, name="canary-waits").stop()
        queue(world, "canary-waits", "/canary-path")
        world.client(app, name="canary-waits")
        eventually(lambda: "queue_handed_over_total{" in world.relay.get("/metrics")[1], what="a delivery handed over")
        connection = http.client.HTTPConnection(*world.relay.admin, timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            reply = connection.getresponse()
            assert reply.getheader("content-type") == "application/openmetrics-text; version=1.0.0; charset=utf-8"
            yield reply.read().decode()


def test_no_label_says_who(full):
    families = parsed(full)
    labels = {(key, value) for family in families.values() for sample in family.samples for key, value in sample.labels.items()}
    assert {key for key, _ in labels} == {"class", "le", "outcome", "reason", "version"}
    assert not [canary for canary in CANARIES if canary in full.lower()]
    series = sum(len(family.samples) for family in families.values())
    most = len(FAMILIES) + 20 + sum(map(len, VALUES.values()))
    assert series <= most < 120


def registered():
    """What metrics.rs registers: a family with labels is shown only once it has a series."""
    text = (SOURCE / "metrics.rs").read_text()
    found = re.findall(r'registry\.register(_with_unit)?\(\s*"(\w+)",\s*(?:help,\s*)?(unit|bytes|Unit::\w+)?', text)
    return [name for _, name, _ in found]


def test_the_table_is_of_what_is_shown(full):
    families = parsed(full)
    assert families.keys() == FAMILIES.keys()
    for name, family in families.items():
        kind, unit, label, _ = FAMILIES[name]
        assert family.type == kind, name
        if family.unit:
            assert unit == family.unit, name
        labels = {key for sample in family.samples for key in sample.labels} - {"le"}
        assert labels == ({label} if label else set()), name
        assert family.documentation.endswith("."), name
    names = registered()
    assert len(names) == len(set(names)) == len(FAMILIES)
    assert all(any(name == family or family.removesuffix(suffix) == name for family in FAMILIES for suffix in ("_bytes", "_seconds")) for name in names)


def test_every_family_is_moved(full):
    """Whoever adds a metric writes a test here that moves it."""
    assert MOVED.keys() == parsed(full).keys()


def literals(file, pattern):
    text, _, _ = (SOURCE / file).read_text().partition("#[cfg(test)]")
    return set(re.findall(pattern, text))


def test_every_value_of_a_label_is_in_the_table():
    """By the source: some take a disk that fails."""
    by_itself = {"queued", "no_pages"}  # are answers, and not counted as refused
    assert set(VALUES["refused"]) == literals("public/answer.rs", r'"([a-z_]+)"') - by_itself - {"nosniff", "close"}
    assert set(VALUES["connections_refused"]) == literals("public.rs", r'(?:connections_refused, |= \()"(\w+)"')
    handshakes = literals("tunnel/handshake.rs", r',\s*"([a-z_]+)",?\s*\)') | literals("tunnel/endpoint.rs", r'handshakes_refused, "(\w+)"')
    assert set(VALUES["handshakes_refused"]) == handshakes
    assert set(VALUES["queue_handed_over"]) == literals("queue/backlog.rs", r'Self::\w+(?:\(_\))? => "(\w+)"')
    assert set(VALUES["admin_refused"]) == literals("admin/access.rs", r'=> "(\w+)"')
    assert set(VALUES["replies"]) == set(re.search(r"let classes = \[(.*?)\]", (SOURCE / "metrics.rs").read_text())[1].replace('"', "").split(", "))


# ── what is made of them ──────────────────────────────────────────────────────────────────────────────────────────

RULES = [rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((MONITORING / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OTHERS = {"up", "probe_success"}  # Prometheus' own, and the blackbox exporter's


def check(expression):
    """All that an expression names is there."""
    names = set(re.findall(r"\b([a-z_]+)(?=\{)", expression)) | set(re.findall(rf"\b{PREFIX}\w+", expression))
    assert names and {name.removeprefix(PREFIX) for name in names - OTHERS} <= SAMPLES, expression
    for name, selector in re.findall(rf"{PREFIX}(\w+){{([^}}]*)}}", expression):
        family = family_of(name)
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selector):
            if label in ("class", "reason", "outcome"):
                assert label == FAMILIES[family][2] and set(values.split("|")) <= set(VALUES[family]), expression
    return {family_of(name.removeprefix(PREFIX)) for name in names - OTHERS}


def promtool(*words, folder=MONITORING):
    program = shutil.which("promtool")
    if not program:
        lacking("promtool is missing\n  next:  apt-get install --no-install-recommends prometheus")
    done = subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_alerts():
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "alerts.yaml")


def test_alerts_fire_for_what_they_are_for():
    promtool("test", "rules", "alerts.test.yaml")
    tests = yaml.safe_load((MONITORING / "alerts.test.yaml").read_text())["tests"]
    tested = [alert for test in tests for alert in test["alert_rule_test"] if alert["exp_alerts"]]
    assert {rule["alert"] for rule in RULES} == {alert["alertname"] for alert in tested}, "each is seen firing"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_do(rule, relay):
    check(rule["expr"])
    assert rule["labels"].keys() == {"severity"} and rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "next"} and all(rule["annotations"].values())
    for command, word in re.findall(r"(?<!-u )\bhookway-relay ([a-z]+) ([a-z-]+)", rule["annotations"]["next"]):
        words = [command, word] if command in ("cert", "endpoint", "queue", "token") else [command]
        assert relay(*words, "--help").returncode == 0, words
    example = (_REPOSITORY / "deploy/relay.example.toml").read_text()
    for setting in re.findall(r"\b(?:max|queue|body|disk|trusted|access)-[a-z-]+\b", rule["annotations"]["next"]):
        assert re.search(rf"^(# )?{setting} = ", example, re.MULTILINE), setting


def test_the_dashboard_shows_every_family():
    shown = set().union(*(check(target["expr"]) for panel in PANELS for target in panel["targets"]))
    assert shown == FAMILIES.keys()


def test_promtool_takes_the_dashboards_expressions(tmp_path):
    values = {"$__rate_interval": "5m", "$instance": ".*"}
    expressions = [target["expr"] for panel in PANELS for target in panel["targets"]]
    for name, value in values.items():
        expressions = [expression.replace(name, value) for expression in expressions]
    assert not any("$" in expression for expression in expressions)
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(expressions)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", "rules.yaml", folder=tmp_path)


def test_the_dashboard_is_whole():
    assert DASHBOARD["schemaVersion"] >= 41 and DASHBOARD["id"] is None
    assert {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]} == {"datasource": "datasource", "instance": "query"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["title"] and panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in [panel, *panel["targets"]]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]), f"{panel['title']}: {{{{{label}}}}}"


def test_prometheus_is_told_how_to_ask(world):
    """The jobs that the rules name are those of the example; the relay answers by address, and not by another name."""
    (example,) = re.findall(r"```yaml\n(.*?)```", (MONITORING / "metrics.md").read_text(), re.DOTALL)
    jobs = {job["job_name"] for job in yaml.safe_load(example)["scrape_configs"]}
    assert jobs == set(re.findall(r'job="([^"]+)"', "".join(rule["expr"] for rule in RULES)))
    for host, status in {"127.0.0.1:9480": 200, "localhost": 200, "relay.internal:9480": 403}.items():
        assert Api(world.relay).ask("GET", "/metrics", host=host).status == status
