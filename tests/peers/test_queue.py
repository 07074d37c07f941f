"""The queue: what the relay answers 202 while the client, its app or the link is away, and how it arrives later."""

import contextlib
import hashlib
import itertools
import re
import signal
import socket
import threading
import time
from datetime import datetime, timezone

import httpx
import pytest
from test_semantics import GatedApp, SleepingApp, asked

from world import DEADLINE, DOMAIN, LONG, Relay, World, eventually, request, tls_context

NOWHERE = "127.0.0.1:9"  # an app that is never there
MIB = 1 << 20
MOST = 32 * MIB  # of a body that may wait
FAILED = b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\nno"


# ── what the tests are made of ────────────────────────────────────────────────────────────────────────────────────


# Endpoints of the world that this file's tests share: claimed at once, for the start of a client takes its time.
CLAIMED = [f"waits-{number}" for number in range(60)]


def offline(world, name="billing", *flags, token=None):
    """An endpoint whose client was there, asked for this, and left."""
    if name in CLAIMED and not flags:
        return
    client = world.client(NOWHERE, *flags, name=name, token=token)
    assert client.stop() == 0


def answers(world, name, *paths, method="POST"):
    """Small deliveries one after the other on one connection: each one's status, its path being its body."""
    with world.wire(name) as wire:
        host = f"{name}.{DOMAIN}"
        return [wire.ask(request(method, path, path.encode(), host=host)).status for path in paths]


def queue(world, name, *paths):
    assert answers(world, name, *paths) == [202] * len(paths)


def numbered(count, prefix="/"):
    return [f"{prefix}{number}" for number in range(count)]


def targets(app):
    return [seen.target for seen in list(app.seen)]


def arrived(app, count, seconds=DEADLINE):
    """Waits for so many arrivals; all there are then."""
    eventually(lambda: len(app.seen) >= count, seconds, f"{count} arrivals, of {targets(app)[:20]}")
    return list(app.seen)


def attempt(seen):
    """Which attempt the app is told that it is, if it is told one."""
    number = seen.header("hookway-attempt")
    return number and int(number)


def is_marked(seen):
    mark = seen.header("hookway-possible-duplicate")
    assert mark in (None, "1"), mark
    return mark == "1"


def unmarked_repeats(app):
    """The deliveries that reached the app again without the mark."""
    known, wrong = set(), []
    for seen in list(app.seen):
        delivery = seen.header("hookway-delivery")
        if delivery in known and not is_marked(seen):
            wrong.append(seen.target)
        known.add(delivery)
    return wrong


def restart(world, how=signal.SIGTERM, *more):
    """The same relay again: same port, same data, same flags and these."""
    old = world.relay
    old.process.send_signal(how)
    old.exited()
    words = old.process.args
    flags = words[words.index("--json") + 1 :] + list(more)
    if "--https" not in flags:
        flags += ["--https", f"127.0.0.1:{old.https[1]}"]
    world.relay = world._add(Relay(old.data.parent, flags, title=f"relay-{len(world.programs)}"))


def labelled(relay, name, label):
    """A counter with a label; 0 before it was counted for the first time."""
    _, metrics = relay.get("/metrics")
    found = re.search(rf"^hookway_relay_{name}{{{re.escape(label)}}} (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0


def depth(world):
    return world.relay.metric("queue_depth")


def dead_letters(world):
    return world.relay.metric("queue_dead_letters")


class Failing:
    """An app's answer to some paths is a failure, so often; what reached it when is kept."""

    def __init__(self, app, paths, answer=FAILED, times=10**9):
        self.app, self.paths, self.failure, self.left = app, paths, answer, times
        self.came = []
        app.answer = self

    def __call__(self, seen, connection):
        if seen.target not in self.paths or self.left <= 0:
            return self.app.echo(seen)
        self.left -= 1
        self.came.append(time.monotonic())
        return self.failure(seen, connection) if callable(self.failure) else self.failure


class Crowd:
    """An app that takes a moment over each, and knows how many it had at once at most."""

    def __init__(self, app, seconds):
        self.app, self.seconds, self.now, self.most = app, seconds, 0, 0
        self._lock = threading.Lock()
        app.answer = self

    def __call__(self, seen, _connection):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        # Not a wait for anything: it is how long this app works.
        threading.Event().wait(self.seconds)
        with self._lock:
            self.now -= 1
        return self.app.echo(seen)


def gated(world, *paths):
    """An app that answers these paths only when the gate is open."""
    app, gate = world.app(), threading.Event()
    app.answer = lambda seen, _: gate.wait(60) and app.echo(seen) if seen.target in paths else app.echo(seen)
    world._stack.callback(gate.set)
    return app, gate


@pytest.fixture(scope="module")
def world():
    with World() as world:
        rest = [word for name in CLAIMED[1:] for word in ("-n", name)]
        assert world.client(NOWHERE, *rest, name=CLAIMED[0]).stop() == 0
        yield world


_names = itertools.chain(CLAIMED, (f"more-{number}" for number in itertools.count()))


@pytest.fixture
def name():
    """An endpoint of the test's own, whose client was there and left."""
    return next(_names)


@pytest.fixture(autouse=True)
def quiet(request):
    """Clients in the world that tests share end with their test: a hundred idle ones would take the machine's time."""
    yield
    if "world" in request.fixturenames:
        for program in request.getfixturevalue("world").programs[1:]:
            program.stop()


# ── the client is away ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_delivery_for_a_client_that_is_away_is_202_and_arrives(world, app, name):
    offline(world, name)
    headers = [("X-Own", "caf\xe9"), ("X-Twice", "1"), ("X-Twice", "2"), ("Content-Type", "application/json")]
    before = datetime.now(timezone.utc)
    reply = world.post("/hook?a=%27&b", b'{"a": 1}', name, headers)
    after = datetime.now(timezone.utc)
    assert reply.status == 202 and reply.complete and reply.body
    client = world.client(app, name=name)
    (seen,) = arrived(app, 1)
    assert (seen.method, seen.target, seen.body) == ("POST", "/hook?a=%27&b", b'{"a": 1}')
    assert seen.all("x-own") == ["caf\xe9"] and seen.all("x-twice") == ["1", "2"]
    assert seen.all("content-type") == ["application/json"]
    assert seen.header("hookway-delivery") == reply.header("hookway-delivery")
    assert attempt(seen) == 1 and not is_marked(seen)
    received = datetime.fromisoformat(seen.header("hookway-received-at").replace("Z", "+00:00"))
    assert before <= received <= after
    event = client.delivery(id=reply.header("hookway-delivery"))
    assert event["status"] == 200 and event["queued_ms"] > 0


def test_what_is_queued_looks_like_what_is_live(world, app, name):
    """But for what the relay says of the attempt: same fields, same order."""
    client = world.client(app, name=name)
    fields = [("Accept", "*/*"), ("X-B", "1"), ("x-a", ""), ("X-B", "2")]
    ask = request("POST", "/same", b"{}", f"{name}.{DOMAIN}", fields)
    with world.wire(name) as wire:
        assert wire.ask(ask).status == 200
        assert client.stop() == 0
        assert wire.ask(ask).status == 202
    world.client(app, name=name)
    live, late = arrived(app, 2)
    own = ("hookway-delivery", "hookway-attempt", "hookway-received-at")
    of_live, of_late = ([pair for pair in seen.headers if pair[0] not in own] for seen in (live, late))
    assert of_late == of_live
    assert attempt(live) is None and attempt(late) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "REPORT"])
def test_methods_that_may_wait(world, app, name, method):
    offline(world, name)
    assert answers(world, name, "/x", method=method) == [202]
    world.client(app, name=name)
    (seen,) = arrived(app, 1)
    assert (seen.method, seen.body) == (method, b"/x")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
def test_methods_that_may_not_wait(world, app, name, method):
    offline(world, name)
    with world.wire(name) as wire:
        reply = wire.ask(request(method, "/now", host=f"{name}.{DOMAIN}"))
    assert reply.status == 503 and int(reply.header("retry-after")) > 0
    queue(world, name, "/later")
    world.client(app, name=name)
    arrived(app, 1)
    assert world.get("/after", name).status == 200
    assert targets(app) == ["/later", "/after"]


def test_a_browser_is_shown_a_page(world, name):
    offline(world, name)
    reply = world.get("/", name, [("Accept", "text/html,*/*;q=0.8")])
    assert reply.status == 503 and int(reply.header("retry-after")) > 0
    assert reply.header("content-type").startswith("text/html") and b"<html" in reply.body


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_wants_to_talk_may_not_wait(world, name, method):
    offline(world, name)
    headers = [("Connection", "upgrade"), ("Upgrade", "websocket")]
    with world.wire(name) as wire:
        assert wire.ask(request(method, "/talk", host=f"{name}.{DOMAIN}", headers=headers)).status == 503


def test_an_endpoint_that_is_none_queues_nothing(world):
    assert answers(world, "nobody-has-this", "/x") == [404]


def test_a_whole_delivery_of_a_sender_that_left_is_kept(world, app, name):
    offline(world, name)
    with world.wire(name) as wire:
        wire.send(request("POST", "/gone", bytes(100_000), f"{name}.{DOMAIN}"))
        wire.tls.shutdown(socket.SHUT_RDWR)
    world.client(app, name=name)
    (seen,) = arrived(app, 1)
    assert len(seen.body) == 100_000


def test_half_a_delivery_is_never_kept(world, app, name):
    offline(world, name)
    host = f"Host: {name}.{DOMAIN}\r\n"
    for framing in ("Content-Length: 100", "Content-Length: 2000000", "Transfer-Encoding: chunked"):
        with world.wire(name) as wire:
            wire.send(f"POST /half HTTP/1.1\r\n{host}{framing}\r\n\r\n32\r\n".encode() + bytes(50))
    queue(world, name, "/whole")
    world.client(app, name=name)
    arrived(app, 1)
    assert world.post("/live", b"", name).status == 200
    assert targets(app) == ["/whole", "/live"]


# ── bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────


def noise(size):
    """Bytes of every value, the same each time."""
    block = bytes(range(256)) * 257  # does not repeat at a power of two
    return (block * (size // len(block) + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, 70_000, MIB, MIB + 1, MOST])
def test_bodies_byte_for_byte(world, app, name, size):
    offline(world, name)
    body = noise(size)
    assert world.post("/body", body, name).status == 202
    world.client(app, name=name)
    (seen,) = arrived(app, 1, 60)
    assert seen.sha256 == hashlib.sha256(body).hexdigest() and len(seen.body) == size
    assert not app.unclean


def test_a_large_body_spoils_nothing_after_it(world, app, name):
    """What is handed over from the queue, and what comes live, each is one attempt and is answered by the app."""
    offline(world, name)
    for number in range(3):
        assert world.post(f"/{number}", noise(3 * MIB), name).status == 202
    queue(world, name, "/3")
    world.client(app, name=name)
    arrived(app, 4)
    assert answers(world, name, *numbered(5, "/live-")) == [200] * 5
    assert targets(app) == [*numbered(4), *numbered(5, "/live-")]
    assert not [seen for seen in app.seen if is_marked(seen) or attempt(seen) not in (None, 1)]


def chunked(pieces, trailers=()):
    """A chunked body."""
    data = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return data + b"0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in trailers) + b"\r\n"


def post_chunked(world, name, pieces, trailers=(), headers=()):
    fields = [("Transfer-Encoding", "chunked"), *headers]
    with world.wire(name) as wire:
        head = request("POST", "/chunked", host=f"{name}.{DOMAIN}", headers=fields)
        return wire.ask(head + chunked(pieces, trailers))


PIECES = {"none": [], "some": [b"a", noise(1000), b"\r\n0\r\n\r\n"], "many": [noise(65_536)] * 40}


@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_chunked_bodies(world, app, name, pieces):
    offline(world, name)
    assert post_chunked(world, name, pieces).status == 202
    world.client(app, name=name)
    (seen,) = arrived(app, 1)
    assert seen.body == b"".join(pieces) and not app.unclean


def test_trailers_wait_with_their_body(world, app, name):
    offline(world, name)
    trailers = [("X-Checksum", "abc"), ("X-Signature", "t=1")]
    announced = [("Trailer", "X-Checksum, X-Signature"), ("TE", "trailers")]
    assert post_chunked(world, name, [b"body"], trailers, announced).status == 202
    world.client(app, name=name)
    (seen,) = arrived(app, 1)
    assert seen.body == b"body"
    assert [(key.lower(), value) for key, value in seen.trailers] == [(key.lower(), value) for key, value in trailers]


def test_a_sender_of_http_2(world, app, name):
    offline(world, name)
    body = noise(2 * MIB)
    trust = tls_context(world.relay.ca)
    with httpx.Client(verify=trust, http1=False, http2=True, trust_env=False, timeout=DEADLINE) as sender:
        assert sender.post(world.url("/h2", name), content=body).status_code == 202
        assert sender.post(world.url("/h2", name), content=iter([body[:1000], body[1000:]])).status_code == 202
        assert sender.get(world.url("/h2", name)).status_code == 503
    world.client(app, name=name)
    assert [seen.body == body for seen in arrived(app, 2)] == [True, True]


def test_one_who_waits_for_100_continue_is_told_to_go_on(world, app, name):
    offline(world, name)
    with world.wire(name) as wire:
        head = [("Expect", "100-continue"), ("Content-Length", "5")]
        wire.send(request("POST", "/expect", host=f"{name}.{DOMAIN}", headers=head))
        assert wire._head()[0] == 100
        wire.send(b"12345")
        assert wire.reply("POST").status == 202
    world.client(app, name=name)
    (seen,) = arrived(app, 1)
    assert seen.body == b"12345"


def test_a_body_too_large_to_wait_is_413_before_it_is_read(world, app, name):
    offline(world, name)
    with world.wire(name) as wire:
        wire.send(request("POST", "/large", host=f"{name}.{DOMAIN}", headers=[("Content-Length", str(MOST + 1))]))
        reply = wire.reply("POST")
    assert reply.status == 413 and str(MOST) in reply.body.decode()
    assert post_chunked(world, name, [noise(MIB)] * 33).status == 413
    queue(world, name, "/small")
    world.client(app, name=name)
    arrived(app, 1)
    # Live, more may pass than may wait.
    assert world.post("/live", bytes(MOST + 1), name).status == 200
    assert targets(app) == ["/small", "/live"]


def test_the_limit_of_a_body_that_waits(new_world):
    world = new_world("--queue-max-body", "1KiB")
    offline(world)
    assert world.post("/", bytes(1025)).status == 413
    assert post_chunked(world, "billing", [bytes(1025)]).status == 413
    assert world.post("/fits", bytes(1024)).status == 202
    assert post_chunked(world, "billing", [bytes(1000), bytes(24)]).status == 202
    app = world.app()
    world.client(app)
    assert [len(seen.body) for seen in arrived(app, 2)] == [1024, 1024]


# ── the app is away ───────────────────────────────────────────────────────────────────────────────────────────────


def test_an_app_that_stays_down_gets_it_when_it_is_back(world, name):
    with SleepingApp() as app:
        client = world.client(app, "--wait-app", "300ms", name=name)
        reply = world.post("/down", b"event", name)
        assert reply.status == 202
        reading = world.get("/down", name)
        assert reading.status == 503 and int(reading.header("retry-after")) > 0
        app.open()
        opened = time.monotonic()
        (seen,) = arrived(app, 1, 5)
        assert time.monotonic() - opened < 5
        assert seen.body == b"event" and seen.header("hookway-delivery") == reply.header("hookway-delivery")
        assert attempt(seen) == 2 and not is_marked(seen), "the first attempt reached nothing"
        client.delivery(id=reply.header("hookway-delivery"), status=200)


def test_live_traffic_wakes_what_waits_for_an_app(world, name):
    """The app is back and something live reached it: what waits need not wait out its pause."""
    with SleepingApp() as app:
        world.client(app, "--wait-app", "100ms", name=name)
        queue(world, name, "/1", "/2", "/3")
        app.open()
        assert world.post("/live", b"", name).status == 200
        arrived(app, 4, 3)
        assert [target for target in targets(app) if target != "/live"] == ["/1", "/2", "/3"]


def test_a_large_body_for_an_app_that_is_down_is_taken_or_refused(world, name):
    """What streams may have passed by when the app refuses; then the sender is told to try again, never 202."""
    with SleepingApp() as app:
        world.client(app, "--wait-app", "100ms", name=name)
        body = noise(3 * MIB)
        status = world.post("/large", body, name).status
        queue(world, name, "/mark")
        app.open()
        arrived(app, 1 if status == 503 else 2)
        kept = [seen.sha256 for seen in app.seen if seen.target == "/large"]
        assert (status, kept) in [(503, []), (202, [hashlib.sha256(body).hexdigest()])]


def test_one_app_that_is_down_holds_up_no_other(world, name):
    """Deliveries of one route wait for its app, those of another go on, and are not reordered."""
    good = world.app(name="good")
    with SleepingApp() as bad:
        flags = ["--route", f"/bad={bad.address}", "--route", f"/good={good.address}"]
        offline(world, name, *flags)
        paths = [f"/{kind}/{number}" for number in range(20) for kind in ("bad", "good")]
        queue(world, name, *paths)
        world.client(good, *flags, name=name)
        arrived(good, 20)
        assert targets(good) == numbered(20, "/good/") and not bad.seen
        bad.open()
        arrived(bad, 20)
        assert targets(bad) == numbered(20, "/bad/")
        assert not [seen for seen in bad.seen + good.seen if is_marked(seen)]


# ── the link is lost ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_killed_before_it_answered(world, name):
    with GatedApp() as app, world.wire(name) as wire:
        first = world.client(app, name=name)
        with asked(wire, request("POST", "/midway", b"event", f"{name}.{DOMAIN}")) as reply:
            eventually(lambda: app.seen, what="the delivery at the app")
            first.process.kill()
            killed = time.monotonic()
            answer = reply("POST")
        assert answer.status == 202 and time.monotonic() - killed < 4, "senders wait as little as 3 s"
        app.gate.set()
        world.client(app, name=name)
        late = arrived(app, 2, 10)[1]
        assert late.body == b"event" and attempt(late) >= 2 and is_marked(late)
        assert late.header("hookway-delivery") == app.seen[0].header("hookway-delivery")


def test_what_streams_when_the_client_is_killed(world, name):
    """Where its body has passed by, the sender has to send it again; where it was kept, it arrives again, marked."""
    with GatedApp() as app, world.wire(name) as wire:
        client = world.client(app, name=name)
        wire.send(request("POST", "/stream", bytes(2 * MIB), f"{name}.{DOMAIN}"))
        eventually(lambda: app.seen, what="the delivery at the app")
        client.process.kill()
        status = wire.reply("POST").status
        app.gate.set()
        world.client(app, name=name)
        if status == 202:
            again = arrived(app, 2)[1]
            assert is_marked(again) and len(again.body) == 2 * MIB
        assert world.post("/after", b"", name).status == 200
        assert (status, targets(app)) in [(503, ["/stream", "/after"]), (202, ["/stream", "/stream", "/after"])]


def test_the_backlog_of_a_killed_client_goes_to_the_next_at_once(world, name):
    app, gate = gated(world, "/0")
    offline(world, name)
    queue(world, name, *numbered(5))
    first = world.client(app, name=name)
    arrived(app, 1)
    first.process.kill()
    gate.set()
    world.client(app, name=name)
    began = time.monotonic()
    late = arrived(app, 6, 15)[1:]
    took = time.monotonic() - began
    assert [seen.target for seen in late][-5:] == numbered(5)
    assert is_marked(late[0]) and attempt(late[0]) >= 2 and not unmarked_repeats(app)
    assert took < 5, f"the dead session held it up for {took:.1f} s"


def test_a_client_that_leaves_finishes_what_it_has(world, name):
    """Ctrl-C while a queued delivery is at the app: it is finished, and not handed over again."""
    app, gate = gated(world, "/0")
    offline(world, name)
    queue(world, name, *numbered(5))
    client = world.client(app, name=name)
    arrived(app, 1)
    client.process.send_signal(signal.SIGINT)
    eventually(lambda: world.get("/", name).status == 503, what="the endpoint being given up")
    gate.set()
    assert client.exited() == 0
    world.client(app, name=name)
    late = [seen.target for seen in arrived(app, 5) if seen.method == "POST"]
    assert sorted(set(late)) == numbered(5) and not unmarked_repeats(app)


def test_taking_over_amid_a_backlog(world, name):
    """Another client of the same owner comes while a backlog is handed over: all arrives, repeats are marked."""
    old, new = world.app(name="old"), world.app(name="new")
    Crowd(old, 0.005)
    offline(world, name)
    queue(world, name, *numbered(100))
    first = world.client(old, name=name)
    arrived(old, 10)
    world.client(new, name=name)
    assert first.exited() == 5
    eventually(lambda: len({*targets(old), *targets(new)}) == 100, what="everything at one of the apps")
    again = [seen for seen in new.seen if seen.target in targets(old)]
    assert all(map(is_marked, again)) and targets(new) == sorted(targets(new), key=lambda path: int(path[1:]))


# ── what the client asks for ──────────────────────────────────────────────────────────────────────────────────────


def test_on_offline_error(world, name):
    with SleepingApp() as app:
        client = world.client(app, "--on-offline", "error", "--wait-app", "100ms", name=name)
        reply = world.post("/down", b"x", name)
        assert reply.status == 503 and int(reply.header("retry-after")) > 0 and app.address in reply.body.decode()
        assert client.stop() == 0
        reply = world.post("/away", b"x", name)
        assert reply.status == 503 and int(reply.header("retry-after")) > 0
        app.open()
        world.client(app, name=name)
        assert world.post("/live", b"x", name).status == 200
        assert targets(app) == ["/live"]


def test_on_offline_by_path(world, app, name):
    offline(world, name, "--on-offline", "error", "--on-offline", "/keep=queue", "--on-offline", "/keep/not=error")
    paths = ["/", "/keep", "/keep/1", "/keeper", "/keep/not", "/keep/not/1", "/keep/nothing", "/keep?x=/keep/not"]
    assert answers(world, name, *paths) == [503, 202, 202, 503, 503, 503, 202, 202]
    world.client(app, name=name)
    arrived(app, 4)
    # Each rule's are in order of their own.
    assert targets(app) == ["/keep", "/keep/1", "/keep/nothing", "/keep?x=/keep/not"]


def test_what_a_client_asks_for_outlives_it_and_the_relay(new_world):
    world = new_world()
    offline(world, "billing", "--on-offline", "/no=error")
    restart(world, signal.SIGKILL)
    assert answers(world, "billing", "/no", "/yes") == [503, 202]
    offline(world)  # asks for nothing of the kind, and is handed the backlog in vain
    assert answers(world, "billing", "/no") == [202]


def test_ack_early(world, name):
    with GatedApp() as app:
        client = world.client(app, "--ack", "early", name=name)
        began = time.monotonic()
        reply = world.post("/slow", b"event", name)
        assert reply.status == 202 and time.monotonic() - began < 3
        with world.wire(name) as wire, asked(wire, request("GET", "/", host=f"{name}.{DOMAIN}")) as answer:
            eventually(lambda: len(app.seen) == 2, what="both at the app")
            app.gate.set()
            assert answer().status == 200, "what may not wait is answered by the app"
        seen = next(seen for seen in app.seen if seen.target == "/slow")
        assert attempt(seen) == 1 and not is_marked(seen)
        client.delivery(id=reply.header("hookway-delivery"), status=200)


def test_ack_early_by_path(world, name):
    app = world.app(answer=lambda seen, _: b"HTTP/1.1 201 Made\r\nContent-Length: 0\r\n\r\n")
    world.client(app, "--ack", "/slow=early", "--ack", "/slow/not=app", name=name)
    paths = ["/", "/slow", "/slow/1", "/slower", "/slow/not"]
    assert answers(world, name, *paths) == [201, 202, 202, 201, 201]
    assert {seen.target for seen in arrived(app, 5)} == set(paths)


def test_an_early_answer_is_no_promise_of_the_app(world, app, name):
    """It fails twice after the sender was told 202, and gets it again."""
    Failing(app, ["/x"], times=2)
    world.client(app, "--ack", "early", name=name)
    queue(world, name, "/x")
    assert [(attempt(seen), is_marked(seen)) for seen in arrived(app, 3)] == [(1, False), (2, True), (3, True)]


def test_a_5xx_is_passed_back(world, name):
    app = world.app(answer=lambda seen, _: FAILED)
    world.client(app, name=name)
    reply = world.post("/x", b"x", name)
    assert (reply.status, reply.body) == (500, b"no")


def test_retry_5xx(world, app, name):
    Failing(app, ["/x"], times=1)
    world.client(app, "--retry-5xx", name=name)
    reply = world.post("/x", b"event", name)
    assert reply.status == 202
    _, again = arrived(app, 2)
    assert again.body == b"event" and again.header("hookway-delivery") == reply.header("hookway-delivery")
    assert is_marked(again), "the app had it before, and failed it"
    assert attempt(again) == 2


def test_retry_5xx_is_for_5xx_of_what_may_wait(world, name):
    statuses = {"/302": 302, "/404": 404, "/410": 410, "/503": 503}
    answer = b"HTTP/1.1 %d Because\r\nContent-Length: 0\r\n\r\n"
    app = world.app(answer=lambda seen, _: answer % statuses[seen.target])
    world.client(app, "--retry-5xx", name=name)
    assert answers(world, name, "/302", "/404", "/410") == [302, 404, 410]
    assert world.get("/503", name).status == 503
    assert targets(app) == list(statuses)


def test_retry_5xx_off_by_default_and_for_streams(world, app, name):
    """What streamed to the app cannot be had again: its 5xx is the sender's to see."""
    Failing(app, ["/large"])
    world.client(app, "--retry-5xx", name=name)
    assert world.post("/large", noise(3 * MIB), name).status == 500
    assert world.post("/after", b"", name).status == 200
    assert targets(app) == ["/large", "/after"]


PROJECT = """
[[endpoint]]
name = "{name}"
on-offline = ["error"]
ack = ["/slow=early"]
retry-5xx = true

[[endpoint]]
name = "{other}"
on-offline = ["/gone=error"]
"""


def with_project(world, name, text):
    """The folder of the next client, with a project's file in it."""
    folder = world.folder / f"client-{len(world.programs)}-{name}"
    folder.mkdir(parents=True)
    (folder / "hookway.toml").write_text(text)


def test_endpoints_of_the_project_s_file(world, app, name):
    other = f"{name}-too"
    failing = Failing(app, ["/fails"], times=1)
    with_project(world, name, PROJECT.format(name=name, other=other))
    client = world.client(app, "-n", other, name=name)
    assert answers(world, name, "/slow", "/fails", "/x") == [202, 202, 200]
    arrived(app, 4)
    failing.left = 1
    assert answers(world, other, "/slow", "/fails") == [200, 500]
    client.stop()
    assert answers(world, name, "/x", "/slow") == [503, 202]
    assert answers(world, other, "/x", "/gone") == [202, 503]
    app.clear()
    # Without the file, and without what it asked for.
    world.client(app, "-n", other, name=name)
    arrived(app, 2)
    assert {(seen.target, seen.header("host").split(".")[0]) for seen in app.seen} == {("/slow", name), ("/x", other)}


@pytest.mark.parametrize("flags", [["--on-offline", "later"], ["--ack", "a=early"], ["--ack", "/a=later"]])
def test_what_is_no_choice_is_said(world, name, flags):
    client = world.client("3000", *flags, name=name, wait=False)
    assert client.exited() == 2
    assert flags[0] in client.log()


# ── order ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_at_a_time_and_in_order(world, app, name):
    crowd = Crowd(app, 0.002)
    offline(world, name)
    paths = numbered(150)
    queue(world, name, *paths)
    world.client(app, name=name)
    seen = arrived(app, 150)
    assert targets(app) == paths and crowd.most == 1
    assert not [one for one in seen if is_marked(one) or attempt(one) != 1]


def test_several_at_once_where_asked(world, app, name):
    crowd = Crowd(app, 0.05)
    offline(world, name)
    paths = numbered(40)
    queue(world, name, *paths)
    world.client(app, "--drain-concurrency", "4", name=name)
    arrived(app, 40)
    assert sorted(targets(app)) == sorted(paths) and 1 < crowd.most <= 4


def test_early_answers_arrive_in_order(world, app, name):
    Crowd(app, 0.002)
    world.client(app, "--ack", "early", name=name)
    paths = numbered(100)
    queue(world, name, *paths)
    arrived(app, 100)
    assert targets(app) == paths


def test_live_traffic_is_not_held_behind_a_backlog(world, name):
    app, gate = gated(world, *numbered(50))
    offline(world, name)
    queue(world, name, *numbered(50))
    world.client(app, name=name)
    arrived(app, 1)
    began = time.monotonic()
    assert world.post("/live", b"", name).status == 200 and world.get("/live", name).status == 200
    assert time.monotonic() - began < 3
    assert targets(app) == ["/0", "/live", "/live"]
    gate.set()
    arrived(app, 52)
    assert [target for target in targets(app) if target != "/live"] == numbered(50)


# ── failures ──────────────────────────────────────────────────────────────────────────────────────────────────────


def hang_up(_seen, _connection):
    """No answer at all."""


def hang(seen, connection):
    """Reads on, and answers nothing: until the client has had enough."""
    with contextlib.suppress(OSError):
        connection.recv(1)


POISON = {
    "500": FAILED,
    "404": b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n",
    "302": b"HTTP/1.1 302 Elsewhere\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    "nonsense": b"SSH-2.0-OpenSSH_9.9\r\n",
    "hangs up": hang_up,
    "hangs": hang,
}


@pytest.mark.parametrize("answer", POISON.values(), ids=POISON)
def test_a_poisoned_delivery_blocks_none_behind_it(world, name, answer):
    app = world.app()
    poison = Failing(app, ["/1"], answer)
    offline(world, name)
    queue(world, name, *numbered(6))
    world.client(app, "--timeout", "700ms", name=name)
    eventually(lambda: {*targets(app)} == {*numbered(6)}, what="those behind it")
    assert [target for target in targets(app) if target != "/1"] == ["/0", *numbered(6)[2:]]
    poison.left = 0  # it is healed
    eventually(lambda: targets(app).count("/1") == len(poison.came) + 1, what="the poisoned one, in the end")
    bad = [seen for seen in app.seen if seen.target == "/1"]
    assert [attempt(seen) for seen in bad] == list(range(1, len(bad) + 1))
    assert [is_marked(seen) for seen in bad] == [False] + [True] * (len(bad) - 1)


def test_retries_come_after_a_second_and_double(world, app, name):
    poison = Failing(app, ["/0"], times=3)
    offline(world, name)
    queue(world, name, "/0")
    world.client(app, name=name)
    arrived(app, 4)
    came = poison.came
    gaps = [later - earlier for earlier, later in itertools.pairwise(came)]
    # Shortened by up to half, so that many do not come at once; a busy machine is late.
    for gap, wait in zip(gaps, (1, 2), strict=True):
        assert wait / 2 - 0.1 <= gap <= wait + 1, gaps


def test_a_client_that_is_back_gets_everything_at_once(world, app, name):
    poison = Failing(app, ["/0"], times=3)
    offline(world, name)
    queue(world, name, "/0")
    client = world.client(app, name=name)
    eventually(lambda: len(poison.came) == 3, what="three failures")
    client.stop()
    # Its next turn would be after 2 s or more.
    world.client(app, name=name)
    began = time.monotonic()
    arrived(app, 4)
    assert time.monotonic() - began < 1.5
    assert is_marked(app.seen[3]) and attempt(app.seen[3]) == 4


# ── limits ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_full_queue_is_503_and_what_is_queued_stays(new_world):
    world = new_world("--queue-max-count", "3")
    offline(world)
    assert answers(world, "billing", *numbered(5)) == [202, 202, 202, 503, 503]
    reply = world.post("/5", b"/5")
    assert reply.status == 503 and int(reply.header("retry-after")) > 0 and b"full" in reply.body
    app = world.app()
    client = world.client(app)
    arrived(app, 3)
    assert world.post("/live", b"").status == 200
    assert targets(app) == [*numbered(3), "/live"]
    client.stop()
    assert answers(world, "billing", *numbered(4)) == [202, 202, 202, 503], "there is room again"
    restart(world, signal.SIGKILL)
    assert answers(world, "billing", "/more") == [503], "and it is counted again after a restart"


def test_the_limit_in_bytes(new_world):
    world = new_world("--queue-max-bytes", "100KiB")
    offline(world)
    assert world.post("/40", bytes(40 << 10)).status == 202
    assert world.post("/50", bytes(50 << 10)).status == 202
    assert world.post("/20", bytes(20 << 10)).status == 503
    assert world.post("/5", bytes(5 << 10)).status == 202
    app = world.app()
    world.client(app)
    arrived(app, 3)
    assert targets(app) == ["/40", "/50", "/5"]


def test_the_limits_of_a_token(new_world):
    world = new_world("--queue-token-max-count", "3", "--queue-token-max-bytes", "50KiB")
    other = world.token("other")
    for name, token in (("one", None), ("two", None), ("theirs", other)):
        offline(world, name, token=token)
    assert answers(world, "one", "/1", "/2") == [202, 202]
    assert answers(world, "two", "/3", "/4") == [202, 503]
    assert answers(world, "theirs", "/1", "/2") == [202, 202], "others have their own"
    assert world.post("/large", bytes(60 << 10), "theirs").status == 503
    app = world.app()
    world.client(app, "-n", "two", name="one")
    eventually(lambda: {*targets(app)} == {"/1", "/2", "/3"}, what="what was queued")
    theirs = world.app()
    world.client(theirs, name="theirs", token=other)
    arrived(theirs, 2)
    assert targets(theirs) == ["/1", "/2"]


def test_a_full_queue_takes_nothing_early(new_world):
    """Not even with the client there: 202 means kept, and nothing else."""
    world = new_world("--queue-max-count", "1")
    app, gate = gated(world, "/0")
    world.client(app, "--ack", "early")
    assert answers(world, "billing", "/0") == [202]
    arrived(app, 1)
    assert answers(world, "billing", "/1") == [503]
    gate.set()
    eventually(lambda: answers(world, "billing", "/2") == [202], what="room again")
    arrived(app, 2)
    assert set(targets(app)) == {"/0", "/2"}


def test_a_delivery_that_waited_too_long_is_a_dead_letter(new_world):
    world = new_world("--queue-retention", "1s")
    offline(world)
    queue(world, "billing", "/old")
    eventually(lambda: dead_letters(world) == 1, what="the dead letter")
    assert depth(world) == 0
    restart(world)
    eventually(lambda: dead_letters(world) == 1, what="the dead letter after a restart")
    app = world.app()
    client = world.client(app)
    client.stop()
    queue(world, "billing", "/new")
    world.client(app)
    arrived(app, 1)
    assert targets(app) == ["/new"]


def test_what_the_app_fails_for_too_long_is_a_dead_letter(new_world):
    world = new_world("--queue-retention", "2s")
    app = world.app(answer=lambda seen, _: FAILED)
    world.client(app, "--ack", "early")
    queue(world, "billing", "/bad")
    eventually(lambda: dead_letters(world) == 1, what="the dead letter")
    tries = len(app.seen)
    assert tries >= 2 and depth(world) == 0
    failed = 'outcome="failed"'
    assert labelled(world.relay, "queue_handed_over_total", failed) == tries
    app.answer = app.echo
    assert answers(world, "billing", "/good") == [202]
    arrived(app, tries + 1)
    assert targets(app) == ["/bad"] * tries + ["/good"]


def test_dead_letters_are_kept_for_so_long(new_world):
    world = new_world("--queue-retention", "500ms", "--dead-letter-retention", "1500ms")
    offline(world)
    queue(world, "billing", "/old")
    eventually(lambda: dead_letters(world) == 1, what="the dead letter")
    eventually(lambda: dead_letters(world) == 0, what="it being removed")
    assert depth(world) == 0


def test_a_dead_letter_makes_room_for_what_can_still_arrive(new_world):
    world = new_world("--queue-retention", "2s", "--queue-max-count", "2")
    offline(world)
    queue(world, "billing", "/old", "/older")
    eventually(lambda: dead_letters(world) == 2, what="the dead letters")
    queue(world, "billing", "/new")
    eventually(lambda: (depth(world), dead_letters(world)) == (1, 1), what="one gone for the new one")
    app = world.app()
    world.client(app)
    arrived(app, 1)
    assert targets(app) == ["/new"]


def test_retention_goes_on_while_the_app_is_down(new_world):
    """A client that is there, with an app that is not, keeps nothing from becoming a dead letter.

    The first is with the client, which waits a minute for its app; those behind it are with the relay.
    """
    world = new_world("--queue-retention", "1s")
    world.client(NOWHERE, "--wait-app", "100ms")
    queue(world, "billing", "/1", "/2", "/3")
    eventually(lambda: dead_letters(world) >= 2, 10, "the dead letters")
    if LONG:
        eventually(lambda: dead_letters(world) == 3, 75, "the first, too")


# ── whose it is ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_released_endpoint_s_backlog_never_reaches_the_next_owner(new_world):
    world = new_world()
    offline(world, "shop", token=world.token("first"))
    queue(world, "shop", *numbered(3))
    world.relay.command("endpoint", "release", "shop", "--hold", "0s")
    eventually(lambda: answers(world, "shop", "/none") == [404], what="the release being noticed")
    second = world.token("second")
    offline(world, "shop", token=second)
    queue(world, "shop", "/theirs")
    restart(world, signal.SIGKILL)
    app = world.app()
    client = world.client(app, name="shop", token=second)
    arrived(app, 1)
    assert world.post("/live", b"", "shop").status == 200
    client.stop()
    assert targets(app) == ["/theirs", "/live"]


def test_a_name_released_amid_its_backlog(new_world):
    """Its client is told to go, and the next owner gets nothing of what was left."""
    world = new_world()
    first, second = world.token("first"), world.token("second")
    offline(world, "shop", token=first)
    queue(world, "shop", *numbered(30))
    theirs, gate = gated(world, "/3")
    old = world.client(theirs, name="shop", token=first)
    arrived(theirs, 4)
    world.relay.command("endpoint", "release", "shop", "--hold", "0s")
    assert old.event("released")["endpoint"] == "shop"
    app = world.app()
    world.client(app, name="shop", token=second)
    gate.set()
    assert world.post("/live", b"", "shop").status == 200
    eventually(lambda: not depth(world), what="nothing waiting")
    assert targets(app) == ["/live"]
    assert {*targets(theirs)} <= {*numbered(5)}, "what was not on its way yet stays"


# ── restarts ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_relay_restarted_between(new_world, how):
    world = new_world()
    offline(world)
    queue(world, "billing", *numbered(10))
    body = noise(3 * MIB)
    assert world.post("/body", body).status == 202
    restart(world, how)
    queue(world, "billing", *numbered(10, "/then-"))
    app = world.app()
    world.client(app)
    seen = arrived(app, 21)
    assert targets(app) == [*numbered(10), "/body", *numbered(10, "/then-")]
    assert seen[10].body == body
    assert not [one for one in seen if is_marked(one) or attempt(one) != 1], "nothing had been handed over before"


def test_a_relay_restarted_amid_a_backlog_marks_no_more_than_it_must(new_world):
    """It has time to note which were not handed over after all."""
    world = new_world("--grace", "1s")
    app, gate = gated(world, "/2")
    offline(world)
    queue(world, "billing", *numbered(50))
    world.client(app)
    arrived(app, 3)
    restart(world, signal.SIGTERM)
    gate.set()
    eventually(lambda: {*targets(app)} == {*numbered(50)}, what="everything")
    assert targets(app) == ["/0", "/1", "/2", *numbered(50)[2:]]
    assert [seen.target for seen in app.seen if is_marked(seen)] == ["/2"]


def test_a_failed_delivery_is_tried_again_at_once_after_a_restart(new_world):
    world = new_world()
    app = world.app()
    poison = Failing(app, ["/0"], times=2)
    world.client(app, "--ack", "early")
    queue(world, "billing", "/0")
    eventually(lambda: len(poison.came) == 2, what="two failures")
    restart(world)
    seen = arrived(app, 3)
    assert [(attempt(one), is_marked(one)) for one in seen] == [(1, False), (2, True), (3, True)]


def test_commands_beside_a_backlog_repeat_nothing(new_world):
    """Each command changes the store, and the relay looks again at what it has: of what it just handed over, too."""
    world = new_world()
    offline(world)
    paths = numbered(4000 if LONG else 700)
    queue(world, "billing", *paths)
    app = world.app()
    world.client(app, "--ack", "early")
    more = 0
    while len(app.seen) < len(paths):
        world.relay.command("token", "create", "--name", "another")
        queue(world, "billing", f"/more-{more}")
        more += 1
    expected = [*paths, *numbered(more, "/more-")]
    arrived(app, len(expected))
    eventually(lambda: not depth(world), what="nothing waiting")
    assert len(targets(app)) == len({*targets(app)}), "something arrived twice, though nothing failed"
    assert targets(app) == expected and more > 5


# ── metrics ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_metrics(new_world):
    world = new_world()
    relay = world.relay
    assert depth(world) == relay.metric("queue_bytes") == relay.metric("queued_total") == 0
    app, gate = gated(world, "/1000")
    offline(world)
    for size in (1000, 2000, 3000):
        assert world.post(f"/{size}", bytes(size)).status == 202
    eventually(lambda: depth(world) == 3, what="the depth")
    assert 6000 < relay.metric("queue_bytes") < 9000 and relay.metric("queued_total") == 3
    eventually(lambda: relay.metric("queue_oldest_seconds") >= 1, what="the age of the oldest")
    world.client(app)
    arrived(app, 1)
    gate.set()
    eventually(lambda: depth(world) == 0, what="nothing waiting")
    assert relay.metric("queue_bytes") == relay.metric("queue_oldest_seconds") == dead_letters(world) == 0
    eventually(lambda: labelled(relay, "queue_handed_over_total", 'outcome="done"') == 3, what="three handed over")
    restart(world)
    assert depth(world) == 0
