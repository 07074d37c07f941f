"""What happens when… (the rows of the table in README that hardly need the queue), by the built programs."""

import contextlib
import re
import signal
import socket
import threading
import time

import httpx
import pytest

from world import DOMAIN, Closed, RawApp, Relay, World, eventually, request, takes, tls_context

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PROBE = "/probe"


class SleepingApp(RawApp):
    """An app whose port is its own but refuses connections until `open()`."""

    def __init__(self, **options):
        super().__init__(**options)
        self._listener.close()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))

    def __enter__(self):
        return self

    def open(self):
        self._listener.listen(512)
        super().__enter__()


class GatedApp(RawApp):
    """An app that answers once its gate is open, all but the probes of `answers`."""

    def __init__(self, **options):
        super().__init__(answer=self._wait, **options)
        self.gate = threading.Event()

    def _wait(self, seen, _connection):
        assert seen.target == PROBE or self.gate.wait(60)
        return OK

    def __exit__(self, *rest):
        self.gate.set()
        super().__exit__(*rest)


@contextlib.contextmanager
def asked(wire, question):
    """A question whose answer is awaited beside what the block does: yields a function that gives the answer."""
    wire.send(question)
    yield wire.reply


def back(client):
    """Whether the client's session went down and is up again, by its own account."""
    states = [event["state"] for event in list(client.events) if event.get("event") == "session"]
    return "down" in states and states[-1] == "up"


def is_down(event):
    return event.get("state") == "down"


def answers(world, status, name="billing"):
    """Whether a GET is answered with this status; a broken connection is no answer."""
    try:
        return world.get(PROBE, name).status == status
    except (OSError, Closed):
        return False


@pytest.fixture
def world():
    with World() as world:
        yield world


# ── the app ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_app_that_is_down_is_waited_for(world):
    with SleepingApp() as app, world.wire() as wire:
        client = world.client(app, "--wait-app", "20s")
        with asked(wire, request("POST", "/", b"event")) as reply:
            client.event("app", is_down)
            app.open()
            assert reply("POST").status == 200
        assert [seen.body for seen in app.seen] == [b"event"]
        client.event("app", lambda event: event["state"] == "up")
        assert client.delivery()["status"] == 200


def test_an_app_that_stays_down_has_it_later(world):
    with SleepingApp() as app:
        client = world.client(app, "--wait-app", "300ms")
        reply = world.get()
        assert reply.status == 503 and int(reply.header("retry-after")) > 0
        assert app.address in reply.body.decode()
        reply = world.post(body=b"event")
        assert reply.status == 202 and reply.body.startswith(b"queued: ")
        client.wait(lambda: len(client.deliveries()) >= 2, what="both deliveries")
        app.open()
        assert world.get("/now").status == 200
        seen = eventually(lambda: app.at("/"), what="the delivery that waited")[0]
        assert (seen.method, seen.body) == ("POST", b"event")
        assert seen.header("hookway-delivery") == reply.header("hookway-delivery")
        assert int(seen.header("hookway-attempt")) > 1 and seen.header("hookway-received-at")
        assert seen.header("hookway-possible-duplicate") is None  # nothing of it had reached the app
        client.delivery(method="POST", status=200)
    assert len(app.at("/")) == 1


def test_an_app_that_stays_down_is_503_where_nothing_is_to_wait(world):
    with SleepingApp() as app:
        client = world.client(app, "--wait-app", "300ms", "--on-offline", "error")
        reply = world.post(body=b"event")
        assert reply.status == 503 and int(reply.header("retry-after")) > 0
        assert app.address in reply.body.decode()
        client.delivery()
        app.open()
        assert world.post("/now").status == 200
    assert [seen.target for seen in app.seen] == ["/now"]


def test_wait_app_has_a_default_of_three_seconds(world):
    with SleepingApp() as app:
        world.client(app)
        began = time.monotonic()
        assert world.get().status == 503
        assert 2.5 < time.monotonic() - began < 8


def test_a_slow_app_is_504_naming_it(world):
    with GatedApp() as app:
        client = world.client(app, "--timeout", "1s")
        began = time.monotonic()
        reply = world.post(body=b"x")
        assert reply.status == 504 and app.address in reply.body.decode()
        assert 0.9 < time.monotonic() - began < 5
        event = client.delivery()
        assert event["status"] is None and "timeout" in event["error"]


def test_an_app_that_talks_nonsense_is_502(world):
    app = world.app(answer=lambda seen, _: b"SSH-2.0-OpenSSH_9.9\r\n", keep_alive=False)
    world.client(app)
    assert world.get().status == 502
    app.answer = lambda seen, _: b""
    assert world.get().status == 502
    app.answer = app.echo
    assert world.get().status == 200


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_reply_cut_midway_ends_unclean(world, framing):
    piece = b"10\r\n0123456789abcdef\r\n" if "chunked" in framing else b"0123456789abcdef"
    app = world.app(answer=lambda seen, _: f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode() + piece, keep_alive=False)
    client = world.client(app)
    # Where the app broke off before anything was passed on, the sender is told so.
    for _ in range(20):
        reply = world.get()
        assert reply.status == 502 or (
            reply.status == 200 and not reply.complete and b"0123456789abcdef".startswith(reply.body[:16])
        )
    with httpx.Client(verify=tls_context(world.relay.ca), http1=False, http2=True, trust_env=False) as sender:
        try:
            assert sender.get(world.url()).status_code == 502
        except httpx.RemoteProtocolError:
            pass
    client.wait(lambda: len(client.deliveries()) == 21, what="all deliveries")


@pytest.mark.parametrize("length", [0, 10, 41, 1000], ids=["nothing", "half a head", "a head", "half a body"])
def test_cut_replies_cost_nothing_else(new_world, length):
    """However often an app breaks off, the session, its streams and the endpoint's places are there for the next."""
    world = new_world("--max-concurrent", "10")
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(2000)
    app = world.app(answer=lambda seen, _: whole[:length], keep_alive=False)
    client = world.client(app)
    for _ in range(60):
        reply = world.get()
        assert reply.status == 502 or (reply.status == 200 and not reply.complete and length > 40), reply
    app.answer = app.echo
    assert world.get().status == 200
    assert client.find("session", is_down) is None


def test_senders_that_leave_cost_nothing_else(new_world):
    """Senders that vanish within a reply or an upload leave no place taken and no stream open."""
    world = new_world("--max-concurrent", "10")
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n" + bytes(0x1000) + b"\r\n"

    def answer(seen, connection):
        if seen.target != "/endless":
            return RawApp.echo(app, seen)
        connection.sendall(endless)
        with contextlib.suppress(OSError):
            connection.recv(1)
        return None

    app = world.app(answer=answer)
    client = world.client(app)
    for _ in range(60):
        with world.wire() as wire:
            wire.send(request("GET", "/endless"))
            assert wire.receive()
        with world.wire() as wire:
            wire.send(request("POST", "/half")[:-2] + b"Content-Length: 3000000\r\n\r\n" + bytes(100_000))
    eventually(lambda: answers(world, 200), what="the endpoint being served")
    assert all(answers(world, 200) for _ in range(30))
    assert client.find("session", is_down) is None


def test_headers_and_host_towards_the_app(world):
    app = world.app()
    world.client(app, "-H", "X-Env: dev", "--header", "User-Agent: tunnelled", "--host-header", "rewrite")
    world.get(headers=[("User-Agent", "sender"), ("X-Env", "a"), ("X-Env", "b")])
    seen = app.seen[0]
    assert seen.all("x-env") == ["dev"] and seen.all("user-agent") == ["tunnelled"]
    assert seen.all("host") == [app.address]
    assert seen.header("x-forwarded-host") == f"billing.{DOMAIN}"


@pytest.mark.parametrize(("choice", "host"), [("keep", f"billing.{DOMAIN}"), ("dev.example:8000", "dev.example:8000")])
def test_host_header(world, choice, host):
    app = world.app()
    world.client(app, "--host-header", choice)
    world.get()
    assert app.seen[0].all("host") == [host]


def test_routes(world):
    apps = {name: world.app(name=name) for name in ("default", "stripe", "connect", "github")}
    routes = {"/stripe": "stripe", "/stripe/connect": "connect", "/github": "github"}
    flags = [word for path, app in routes.items() for word in ("--route", f"{path}={apps[app].port}")]
    world.client(apps["default"], *flags)
    expected = {
        "/": "default",
        "/stripe": "stripe",
        "/stripe?x=/stripe/connect": "stripe",
        "/stripe/": "stripe",
        "/stripe/x": "stripe",
        "/stripes": "default",
        "/Stripe": "default",
        "/stripe/connect": "connect",
        "/stripe/connect/a?b": "connect",
        "/stripe/connected": "stripe",
        "/github/hook": "github",
    }
    assert {path: world.get(path).header("x-app") for path in expected} == expected
    assert [seen.target for seen in apps["connect"].seen] == ["/stripe/connect", "/stripe/connect/a?b"]


def test_strip_prefix(world):
    default, stripe = world.app(name="default"), world.app(name="stripe")
    world.client(default, "--route", f"/stripe={stripe.port}", "--strip-prefix")
    for path in ("/stripe", "/stripe/", "/stripe/a%2Fb?c", "/stripe?q", "/other"):
        assert world.get(path).status == 200
    assert [seen.target for seen in stripe.seen] == ["/", "/", "/a%2Fb?c", "/?q"]
    assert [seen.target for seen in default.seen] == ["/other"]


# ── the sender ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_such_endpoint_is_404_in_one_line(world):
    reply = world.get(name="nobody")
    assert reply.status == 404 and reply.body.count(b"\n") == 1 and reply.body.endswith(b"\n")


def test_a_body_over_the_limit_is_413_before_it_is_read(new_world):
    world = new_world("--max-body", "2MiB")
    app = world.app()
    world.client(app)
    head = f"POST / HTTP/1.1\r\nHost: billing.{DOMAIN}\r\n"
    with world.wire() as wire:
        reply = wire.ask(f"{head}Content-Length: 2097153\r\n\r\n".encode())
        assert reply.status == 413 and re.search(r"2097152|2 ?MiB", reply.body.decode())
        assert wire.ended()
    with world.wire() as wire:
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        wire.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk * 33)
        reply = wire.reply("POST")
        assert reply.status == 413 and re.search(r"2097152|2 ?MiB", reply.body.decode())
    assert not app.seen
    assert world.post(body=bytes(2 << 20)).status == 200


def test_a_body_over_the_clients_limit_is_413(world):
    app = world.app()
    world.client(app, "--max-body", "64KiB")
    reply = world.post(body=bytes((64 << 10) + 1))
    assert reply.status == 413 and re.search(r"65536|64 ?KiB", reply.body.decode())
    assert not app.seen and world.post(body=bytes(64 << 10)).status == 200


def test_over_the_rate_is_429(new_world):
    world = new_world("--rate", "10/s")
    world.client(world.app())
    with world.wire() as wire:
        replies = [wire.ask(request()) for _ in range(60)]
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {200, 429} and statuses[0] == 200
    refused = next(reply for reply in replies if reply.status == 429)
    assert int(refused.header("retry-after")) >= 1
    eventually(lambda: answers(world, 200), what="the limit being over")


def test_over_the_concurrency_is_429(new_world):
    world = new_world("--max-concurrent", "3")
    with GatedApp() as app, contextlib.ExitStack() as stack:
        world.client(app)
        wires = [stack.enter_context(world.wire()) for _ in range(3)]
        for wire in wires:
            wire.send(request())
        eventually(lambda: len(app.seen) == 3, what="three at the app")
        reply = world.get()
        assert reply.status == 429 and int(reply.header("retry-after")) >= 1
        app.gate.set()
        assert [wire.reply().status for wire in wires] == [200] * 3
        assert world.get().status == 200


@pytest.mark.parametrize(
    "head", [f"GET / HTTP/1.1\r\nHost: billing.{DOMAIN}\r\nHost: x\r\n", "GET / HTTP/1.1\r\n", "hello\r\n"]
)
def test_malformed_is_400_and_closed(world, head):
    with world.wire() as wire:
        assert wire.ask(head.encode() + b"\r\n", "GET").status == 400
        assert wire.ended()


def test_a_whole_delivery_is_carried_out_when_the_sender_hangs_up(world):
    with GatedApp() as app:
        client = world.client(app)
        with world.wire() as wire:
            wire.send(request("POST", "/hung-up", bytes(100_000)))
            eventually(lambda: app.seen, what="the delivery at the app")
        app.gate.set()
        assert client.delivery(path="/hung-up")["status"] == 200
        assert [len(seen.body) for seen in app.seen] == [100_000]


# The larger ones arrive only while nothing is sent to the sender before it has said all: its kernel would answer that
# with a reset and forget the rest.
@pytest.mark.parametrize("size", [10, 20_000, 500_000, 1_000_000])
def test_a_sender_that_leaves_after_its_last_byte_is_delivered(world, size):
    """Fire and forget: the body and the end of the connection reach the relay together."""
    app = world.app()
    world.client(app)
    with contextlib.ExitStack() as stack:
        for n in range(20):
            wire = stack.enter_context(world.wire())
            wire.send(request("POST", f"/{n}", bytes(size)))
            wire.tls.shutdown(socket.SHUT_RDWR)
        eventually(lambda: len(app.seen) == 20, 5, "every delivery at the app")
    assert {len(seen.body) for seen in app.seen} == {size}


def test_a_sender_that_ends_its_side_gets_the_answer(world):
    world.client(world.app())
    for n in range(10):
        with world.wire() as wire:
            wire.send(request("POST", f"/{n}", bytes(10_000)))
            # The end of TCP's sending side alone; the TLS object's own shutdown would end reading, too.
            socket.socket.shutdown(wire.tls, socket.SHUT_WR)
            assert wire.reply("POST").json()["target"] == f"/{n}"


def test_half_a_body_never_looks_whole_to_the_app(world):
    app = world.app()
    client = world.client(app)
    for framing, body in (
        ("Content-Length: 3000000", bytes(1_500_000)),
        ("Transfer-Encoding: chunked", b"10000\r\n" + bytes(0x10000) + b"\r\n"),
    ):
        with world.wire() as wire:
            wire.send(f"POST /half HTTP/1.1\r\nHost: billing.{DOMAIN}\r\n{framing}\r\n\r\n".encode() + body)
    with world.wire() as wire:
        wire.send(f"POST /half HTTP/1.1\r\nHost: billing.{DOMAIN}\r\nContent-Length: 10\r\n\r\n12345".encode())
    assert world.post("/whole", b"x").status == 200
    client.delivery(path="/whole")
    assert [seen.target for seen in app.seen] == ["/whole"]


# ── the tunnel ────────────────────────────────────────────────────────────────────────────────────────────────────


def restart(world, how):
    """The same relay again: same port, same data."""
    old = world.relay
    old.process.send_signal(how)
    old.exited()
    flags = ["--https", f"127.0.0.1:{old.https[1]}"]
    world.relay = world._add(Relay(world.folder, flags, title=f"relay-{len(world.programs)}"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restarted_relay_has_its_clients_back(world, how):
    app = world.app()
    client = world.client(app)
    assert world.get().status == 200
    restart(world, how)
    began = time.monotonic()
    eventually(lambda: answers(world, 200), 15, "the client being back")
    took = time.monotonic() - began
    client.wait(lambda: back(client), what="both session events")
    assert took < 8, f"back after {took:.1f} s"
    assert client.find("ready")["url"] == world.url("").rstrip("/")


def test_a_killed_client_is_503_with_a_page_for_browsers_and_202_for_webhooks(world):
    client = world.client(world.app())
    assert world.get().status == 200
    client.process.kill()
    eventually(lambda: answers(world, 503), what="the relay noticing")
    reply = world.get()
    assert int(reply.header("retry-after")) > 0 and not reply.header("content-type").startswith("text/html")
    page = world.get(headers=[("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")])
    assert page.status == 503 and int(page.header("retry-after")) > 0
    assert page.header("content-type").startswith("text/html") and b"<html" in page.body.lower()
    reply = world.post("/waits", b"x")
    assert reply.status == 202 and reply.body.startswith(b"queued: ")
    app = world.app()
    client = world.client(app)
    assert world.get().status == 200
    event = client.delivery(path="/waits", status=200)
    assert event["id"] == reply.header("hookway-delivery") and event["queued_ms"] > 0
    assert [seen.body for seen in app.at("/waits")] == [b"x"]


def test_a_client_killed_midway_leaves_an_unclean_end(world):
    with GatedApp() as app, world.wire() as wire:
        app.answer = lambda seen, connection: stream(app, connection)
        client = world.client(app)
        wire.send(request())
        while b"first" not in wire.buffer:
            assert wire.receive()
        client.process.kill()
        killed = time.monotonic()
        reply = wire.reply()
        assert reply.status == 200 and not reply.complete
        assert time.monotonic() - killed < 7, "a dead link is noticed within 6 s"


def stream(app, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst")
    app.gate.wait(60)


def test_the_same_owner_takes_over(world):
    old, new = world.app(name="old"), world.app(name="new")
    first = world.client(old)
    assert world.get().header("x-app") == "old"
    world.client(new)
    assert first.exited() == 5
    told = first.find("released")
    assert told and told["endpoint"] == "billing" and told["reason"]
    assert [world.get().header("x-app") for _ in range(20)] == ["new"] * 20


def test_a_stopped_client_drains(world):
    with GatedApp() as app, world.wire() as wire:
        client = world.client(app)
        with asked(wire, request("POST", "/", b"slow")) as reply:
            eventually(lambda: app.seen, what="the delivery at the app")
            client.process.send_signal(signal.SIGINT)
            eventually(lambda: answers(world, 503), what="the endpoint being given up")
            app.gate.set()
            answer = reply("POST")
            assert (answer.status, answer.body, answer.complete) == (200, b"ok", True)
        assert client.exited() == 0


def test_a_second_interrupt_ends_the_client_at_once(world):
    with GatedApp() as app, world.wire() as wire:
        client = world.client(app)
        wire.send(request())
        eventually(lambda: app.seen, what="the delivery at the app")
        client.process.send_signal(signal.SIGINT)
        eventually(lambda: answers(world, 503), what="the endpoint being given up")
        client.process.send_signal(signal.SIGINT)
        assert client.exited(3) == 130


def refused(address):
    try:
        socket.create_connection(address, 1).close()
    except OSError:
        return True
    return False


def test_a_stopping_relay_finishes_what_is_in_flight(world):
    with GatedApp() as app, world.wire() as wire:
        client = world.client(app)
        with asked(wire, request("POST", "/", b"slow")) as reply:
            eventually(lambda: app.seen, what="the delivery at the app")
            world.relay.process.send_signal(signal.SIGTERM)
            eventually(lambda: refused(world.relay.https), what="nothing new being accepted")
            assert world.relay.running
            app.gate.set()
            answer = reply("POST")
            assert (answer.status, answer.body, answer.complete) == (200, b"ok", True)
        assert world.relay.exited() == 0
        client.event("session", is_down)
        assert client.running


def test_a_second_signal_ends_the_relay_at_once(world):
    with GatedApp() as app, world.wire() as wire:
        world.client(app)
        wire.send(request())
        eventually(lambda: app.seen, what="the delivery at the app")
        world.relay.process.send_signal(signal.SIGTERM)
        eventually(lambda: refused(world.relay.https), what="nothing new being accepted")
        world.relay.process.send_signal(signal.SIGTERM)
        assert world.relay.exited(3) == 130


def test_the_grace_period_ends(new_world):
    world = new_world("--grace", "1s")
    with GatedApp() as app, world.wire() as wire:
        world.client(app)
        wire.send(request())
        eventually(lambda: app.seen, what="the delivery at the app")
        world.relay.process.send_signal(signal.SIGTERM)
        assert world.relay.exited(8) == 0
        with pytest.raises(Closed):
            wire.reply()


@pytest.mark.skipif(not takes("--transport"), reason="this client has no choice of transports")
@pytest.mark.parametrize("transport", ["quic", "h2", "auto"])
def test_transports(world, transport):
    client = world.client(world.app(), "--transport", transport)
    assert client.find("ready")["transport"] == ("quic" if transport == "auto" else transport)
    assert world.post(body=bytes(3 << 20)).status == 200


# ── deliveries that are counted and printed ───────────────────────────────────────────────────────────────────────


def test_once(world):
    client = world.client(world.app(), "--once")
    assert world.post(body=b"1").status == 200
    assert client.exited() == 0
    eventually(lambda: len(client.deliveries()) == 1, what="the delivery's line")


def test_until(world):
    client = world.client(world.app(), "--until", "3")
    for n in range(3):
        assert client.running and world.post(body=b"%d" % n).status == 200
    assert client.exited() == 0
    eventually(lambda: len(client.deliveries()) == 3, what="the deliveries' lines")


@pytest.mark.parametrize(("status", "code"), [(200, 0), (302, 0), (404, 6), (500, 6)])
def test_fail(world, status, code):
    app = world.app(answer=lambda seen, _: b"HTTP/1.1 %d Because\r\nContent-Length: 0\r\n\r\n" % status)
    client = world.client(app, "--once", "--fail")
    assert world.post(body=b"1").status == status
    assert client.exited() == code
    if code:
        assert re.search(r"^error: .+\n  cause: .+\n  next:  .+", client.log(), re.MULTILINE), client.log()


def test_fail_counts_an_app_that_is_down(world):
    with SleepingApp() as app:
        client = world.client(app, "--once", "--fail", "--wait-app", "100ms")
        assert world.get().status == 503
        assert client.exited() == 6


def test_delivery_event(world):
    app = world.app()
    client = world.client(app)
    assert world.post("/stripe?a=1", b"12345").status == 200
    event = client.delivery()
    assert event["id"] == app.seen[0].header("hookway-delivery")
    shown = {key: event[key] for key in ("endpoint", "method", "path", "status", "attempt", "signature")}
    assert shown == {
        "endpoint": "billing",
        "method": "POST",
        "path": "/stripe?a=1",
        "status": 200,
        "attempt": 1,
        "signature": "none",
    }
    assert event["duration_ms"] > 0 and event["bytes"] > 0 and event["replay_of"] is None
    assert re.fullmatch(r"req_[0-9A-HJKMNP-TV-Z]{26}", event["id"], re.IGNORECASE)


@pytest.mark.parametrize(
    ("words", "shown"), [("status:5xx", ["/fail"]), ("path:/a*", ["/a", "/ab"]), ("method:PUT path:/put", ["/put"])]
)
def test_filter(world, words, shown):
    def answer(seen, _connection):
        return OK.replace(b"200 OK", b"500 No") if seen.target == "/fail" else OK

    client = world.client(world.app(answer=answer), "--filter", words, "--until", "5")
    for method, path in (("GET", "/fail"), ("GET", "/a"), ("GET", "/ab"), ("PUT", "/put"), ("GET", "/put")):
        with world.wire() as wire:
            wire.ask(request(method, path))
    assert client.exited() == 0
    assert client.stop() == 0  # every line is read
    assert [event["path"] for event in client.deliveries()] == shown


def test_lines_for_people(world):
    client = world.client(world.app(), json_lines=False, wait=False)
    client.wait(
        lambda: world.url("").rstrip("/").encode() in b"".join(client.lines) + client.errors.read_bytes(), what="banner"
    )
    assert world.post("/stripe/webhook?x=1", b"12345").status == 200
    is_line = re.compile(rb"^\d\d:\d\d:\d\d\.\d{3}  POST +/stripe/webhook\S* +200 +\d.*req_\S+.*sig none", re.MULTILINE)
    client.wait(lambda: is_line.search(b"".join(client.lines)), what="the delivery's line")
    text = b"".join(client.lines)
    assert b"\x1b" not in text
    assert all(len(line.rstrip(b"\n").decode()) <= 100 for line in client.lines)
