"""Slow senders, floods and limits, beside one good sender who must not notice (threats 8, 10; rates and sizes)."""

import contextlib
import csv
import multiprocessing
import os
import resource
import shutil
import socket
import subprocess
import threading
import time

import pytest
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame
from test_h2_hostile import PREFACE, Frames, h2, request_fields
from test_quic_hostile import MIB, Growth

from world import DEADLINE, DOMAIN, LONG, Closed, Wire, World, eventually, lacking, request

HEADER_TIMEOUT, BODY_TIMEOUT, WRITE_TIMEOUT = 2, 2, 3
SLOW = ["--header-timeout", "2s", "--body-timeout", "2s", "--write-timeout", "3s"]
CROWD = 1000 if LONG else 150


class GoodSender:
    """Fifty requests a second on kept connections, and what went wrong with them."""

    def __init__(self, world, rate=50, p99=2.0):
        self.world, self.pause, self.p99 = world, 1 / rate, p99
        self.failures, self.times, self._stop = [], [], threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, failed, *_):
        self._stop.set()
        self._thread.join(30)
        if not failed:
            assert not self.failures, f"{len(self.failures)} of {len(self.times)}: {self.failures[0]}"
            assert self.times, "the good sender sent nothing"
            slowest = sorted(self.times)[int(len(self.times) * 0.99)]
            assert slowest < self.p99, f"the good sender was held up: p99 {slowest:.1f} s"

    def _run(self):
        wire, due = None, time.monotonic()
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                wire = wire or self.world.wire(timeout=10)
                reply = wire.ask(request("POST", "/good", b"good"))
                if reply.status != 200 or reply.json()["length"] != 4:
                    self.failures.append(reply)
            except (OSError, Closed) as error:
                self.failures.append(repr(error))
                wire = None
            self.times.append(time.monotonic() - started)
            due = max(due + self.pause, started)
            self._stop.wait(max(0, due - time.monotonic()))
        if wire:
            wire.close()


@pytest.fixture(scope="module")
def slow():
    """A relay of little patience, an app that answers /big with 8 MiB, a client."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with World(*SLOW) as world:
        app = world.app()
        app.answer = lambda seen, at: big(seen) if seen.target == "/big" else app.echo(seen, at)
        world.client(app)
        world.slow_app = app
        yield world


def big(_seen, _connection=None):
    return [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (8 * MIB), *[b"x" * 65536] * 128]


# ── slow ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def ended(connections):
    """How many of these sockets the relay has ended."""
    count = 0
    for connection in connections:
        connection.setblocking(False)
        try:
            while True:
                if not connection.recv(65536):
                    count += 1
                    break
        except BlockingIOError:
            pass
        except OSError:
            count += 1
    return count


def drip(connections, data, seconds, pause=0.4):
    """A byte to each connection now and then, until all have ended; the time that took. Fails after `seconds`."""
    started, at = time.monotonic(), 0
    while (count := ended(connections)) < len(connections):
        assert time.monotonic() - started < seconds, f"{len(connections) - count} of {len(connections)} still open after {seconds} s"
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.send(data[at : at + 1])
        at += 1
        time.sleep(pause)
    return time.monotonic() - started


def connected(world, count, stack):
    return [stack.enter_context(socket.create_connection(world.relay.https, 10)) for _ in range(count)]


def test_connections_that_say_nothing_are_closed(slow):
    """No TLS handshake within the header time: closed within that and 2 s."""
    with GoodSender(slow), contextlib.ExitStack() as stack:
        drip(connected(slow, CROWD, stack), b"", HEADER_TIMEOUT + 2)


def test_a_tls_handshake_byte_by_byte_is_closed(slow):
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    with GoodSender(slow), contextlib.ExitStack() as stack:
        drip(connected(slow, CROWD, stack), hello, HEADER_TIMEOUT + 2)


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
def test_a_tls_connection_without_a_request_is_closed(slow, alpn):
    with GoodSender(slow), contextlib.ExitStack() as stack:
        all_end(wires(slow, 20, stack, b"", alpn=(alpn,)), b"", HEADER_TIMEOUT + 4)


def test_an_http2_connection_without_a_request_is_closed(slow):
    """Preface and SETTINGS, and an answer to whatever the relay asks, but no request."""
    with GoodSender(slow), h2(slow) as sender:
        started = time.monotonic()
        with pytest.raises(Closed):
            for _ in sender.frames(HEADER_TIMEOUT + 4):
                pass
        assert time.monotonic() - started > HEADER_TIMEOUT - 0.5


def test_an_http2_connection_without_a_request_or_a_pong_is_closed(slow):
    """The same, deaf: it is asked to leave, and then, after the write time, not asked."""
    preface = PREFACE + SettingsFrame(0).serialize()
    with GoodSender(slow), contextlib.ExitStack() as stack:
        all_end(wires(slow, 20, stack, preface, alpn=("h2",)), b"", HEADER_TIMEOUT + WRITE_TIMEOUT + 7)


def wires(world, count, stack, first, **options):
    """TLS connections on which `first` has been written."""
    made = [stack.enter_context(world.wire(timeout=10, **options)) for _ in range(count)]
    for wire in made:
        wire.send(first)
    return made


def all_end(made, piece, seconds, pause=0.4):
    """Each wire gets `piece` now and then, until the relay has ended all of them; what they were sent."""
    started, open_ = time.monotonic(), list(made)
    while open_:
        assert time.monotonic() - started < seconds, f"{len(open_)} of {len(made)} still open after {seconds} s"
        for wire in list(open_):
            wire.tls.settimeout(0.001)
            with contextlib.suppress(TimeoutError):
                wire.send(piece)
                while wire.receive():
                    pass
                open_.remove(wire)
        time.sleep(pause)
    return [bytes(wire.buffer) for wire in made]


def test_slow_heads_are_closed(slow):
    """Slowloris: a header line now and then, for ever."""
    slow.slow_app.clear()
    with GoodSender(slow), contextlib.ExitStack() as stack:
        made = wires(slow, CROWD, stack, b"GET /slow HTTP/1.1\r\nHost: billing.hooks.test\r\n")
        answers = all_end(made, b"X-A: b\r\n", HEADER_TIMEOUT + 2)
    assert not slow.slow_app.at("/slow")
    assert all(not answer or answer.startswith(b"HTTP/1.1 408") for answer in answers)


def test_an_idle_kept_connection_is_closed(slow):
    with contextlib.ExitStack() as stack:
        made = wires(slow, 20, stack, b"")
        for wire in made:
            assert wire.ask(request("GET", "/once")).status == 200
        all_end(made, b"", HEADER_TIMEOUT + 3)


CONVERSATION = pytest.mark.xfail(reason="a body of unannounced length may be a conversation: it has no least rate", strict=True)


@pytest.mark.parametrize("framing", ["length", pytest.param("chunked", marks=CONVERSATION)])
def test_slow_bodies_are_closed(slow, framing):
    """A byte of the body now and then: 408 or closed within the body's time and 2 s, and the app sees no whole request."""
    slow.slow_app.clear()
    field, piece = ("Content-Length", "1000") if framing == "length" else ("Transfer-Encoding", "chunked"), b"x" if framing == "length" else b"1\r\nx\r\n"
    with GoodSender(slow), contextlib.ExitStack() as stack:
        made = wires(slow, CROWD // 2, stack, request("POST", "/slow", headers=[field]))
        answers = all_end(made, piece, BODY_TIMEOUT + (2 if framing == "length" else 6))
    assert not slow.slow_app.at("/slow")
    assert all(not answer or answer.startswith(b"HTTP/1.1 408") for answer in answers), set(answer[:40] for answer in answers)


def test_a_large_body_below_the_least_rate_is_closed(slow):
    """2 MiB announced, streamed to the app at a few bytes a second."""
    slow.slow_app.clear()
    with GoodSender(slow), contextlib.ExitStack() as stack:
        made = wires(slow, 20, stack, request("POST", "/slow", headers=[("Content-Length", str(2 * MIB))]) + b"x" * 1000)
        all_end(made, b"x" * 10, BODY_TIMEOUT + 20)
    assert not slow.slow_app.at("/slow")


@CONVERSATION
def test_slow_http2_bodies_are_ended(slow):
    slow.slow_app.clear()
    with GoodSender(slow), h2(slow) as sender:
        for _ in range(50):
            sender.write(sender.headers(stream := sender.stream(), request_fields("POST", "/slow"), end=False), DataFrame(stream, b"x"))
        ends, started = set(), time.monotonic()
        with contextlib.suppress(Closed, OSError):
            for kind, flags, stream, _payload in sender.frames(BODY_TIMEOUT + 6):
                if kind == RstStreamFrame.type or flags & 1 and kind in (0, 1):
                    ends.add(stream)
                if len(ends) == 50:
                    break
        assert time.monotonic() - started < BODY_TIMEOUT + 5, f"{len(ends)} of 50 ended"
    assert not slow.slow_app.at("/slow")


def test_slow_readers_are_cut_off_and_cost_little(slow):
    """8 MiB asked for and not read: the relay neither keeps it in memory nor waits for ever."""
    count = 200 if LONG else 60
    with GoodSender(slow, p99=1.0), Growth(slow.relay, 128 * MIB), contextlib.ExitStack() as stack:
        made = wires(slow, count, stack, request("GET", "/big"), receive_buffer=4096)
        # First the kernel takes up to 4 MiB for each.
        eventually(lambda: open_connections(slow) <= 1, WRITE_TIMEOUT + 30, "the relay giving the slow readers up")
        replies = []
        for wire in made:
            with contextlib.suppress(Closed):
                replies.append(wire.reply())
    assert all(not reply.complete and len(reply.body) < 8 * MIB for reply in replies)


def open_connections(world):
    return world.relay.metric("connections")


def test_a_few_slow_readers_do_not_hold_up_the_endpoint(slow):
    """Answers that are not taken fill windows that all deliveries of the session share: the others must get by."""
    with GoodSender(slow, p99=1.0), contextlib.ExitStack() as stack:
        wires(slow, 10, stack, request("GET", "/big"), receive_buffer=4096)
        eventually(lambda: open_connections(slow) <= 1, WRITE_TIMEOUT + 10, "the relay giving the slow readers up")


def without_a_window(wire):
    """An HTTP/2 sender whose streams may not be sent a byte of an answer's body."""
    sender = Frames(wire)
    sender.write(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}))
    return sender


def head_of_an_answer(sender, stream):
    """The fields of an answer, as soon as its head is there; of its body nothing may come."""
    for kind, _flags, of, payload in sender.frames(DEADLINE):
        assert kind != DataFrame.type, "a body without a window"
        if kind == HeadersFrame.type and of == stream:
            return dict(sender.fields(payload))


@pytest.mark.parametrize("path", ["/big", "/small"])
def test_an_http2_sender_that_gives_no_window_is_cut_off(slow, path):
    """Its connection is healthy, but what it asked for has nowhere to go, were it one frame only."""
    before = slow.relay.metric("replies_cut_total")
    with slow.wire(alpn=("h2",), timeout=WRITE_TIMEOUT + 10) as wire:
        sender = without_a_window(wire)
        sender.write(sender.headers(stream := sender.stream(), request_fields("GET", path)))
        assert head_of_an_answer(sender, stream)[":status"] == "200"
        started = time.monotonic()
        assert wire.ended(WRITE_TIMEOUT + 5)
        assert time.monotonic() - started > WRITE_TIMEOUT - 0.5
    assert slow.relay.metric("replies_cut_total") == before + 1


@pytest.mark.parametrize("path", ["/big", "/small"])
def test_a_sender_without_a_window_is_cut_off_when_the_client_is_gone_too(new_world, path):
    """The client is lost within 6 s, and what it said before that still waits for the sender."""
    patience = 8
    world = new_world("--write-timeout", f"{patience}s")
    app = world.app()
    app.answer = lambda seen, at: big(seen) if seen.target == "/big" else app.echo(seen, at)
    client = world.client(app)
    with world.wire(alpn=("h2",)) as wire:
        sender = without_a_window(wire)
        sender.write(sender.headers(stream := sender.stream(), request_fields("GET", path)))
        assert head_of_an_answer(sender, stream)[":status"] == "200"
        # Without any of the body the stream would be reset as soon as the client is lost.
        eventually(lambda: world.relay.metric("reply_bytes_total"), what="the beginning of the body")
        started = time.monotonic()
        client.process.kill()
        eventually(lambda: not world.relay.metric("sessions"), patience - 1, "the relay noticing that the client is gone")
        assert wire.ended(started + patience + 5 - time.monotonic())


def test_a_reply_that_waits_for_its_app_is_not_cut_off(slow):
    """Only the sender has to hurry: an app may stream an event now and then."""
    slow.slow_app.answer, echo = trickle, slow.slow_app.answer
    try:
        reply = slow.get("/trickle")
        assert reply.complete and reply.body == b"first, last"
    finally:
        slow.slow_app.answer = echo


def trickle(_seen, connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nfirst")
    time.sleep(WRITE_TIMEOUT + 3)
    return b", last"


@pytest.fixture
def slowhttptest(tmp_path):
    """Runs it against an endpoint of a world, whose name only it resolves; its count of connections by second."""
    if not shutil.which("slowhttptest"):
        lacking("slowhttptest is not installed")
    if os.geteuid() != 0:
        lacking("a mount namespace needs root")
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 billing.{DOMAIN}\n")

    def run(world, *words):
        inside = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', hosts]
        command = [*inside, "slowhttptest", "-g", "-o", "counts", "-u", world.url("/big"), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=90, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        with (tmp_path / "counts.csv").open() as rows:
            return list(csv.DictReader(rows))

    return run


@pytest.mark.parametrize("mode", ["-H", "-B", "-X"])
def test_slowhttptest(new_world, slowhttptest, mode):
    """Its own idea of slow heads (-H), bodies (-B) and readers (-X), bounded in number and time."""
    world = new_world(*SLOW)
    app = world.app()
    app.answer = lambda seen, at: big(seen) if seen.target == "/big" else app.echo(seen, at)
    world.client(app)
    count, seconds = (2000, 30) if LONG else (200, 6)
    # Of answers of 8 MiB not more than fit a link's window: what happens beyond is another test's matter.
    count = 100 if mode == "-X" else count
    more = {"-H": ["-i", "1"], "-B": ["-i", "1", "-s", "8192"], "-X": ["-w", "10", "-y", "20", "-n", "1", "-z", "8", "-k", "1"]}[mode]
    with GoodSender(world), Growth(world.relay, 128 * MIB):
        rows = slowhttptest(world, mode, "-c", str(count), "-r", str(count), "-l", str(seconds), "-p", "3", *more)
    assert max(int(row["Connected"]) + int(row["Closed"]) for row in rows) == count, "not all connections were made"
    arrived = [seen.method for seen in app.at("/big")]
    if mode == "-X":
        assert arrived.count("GET") >= count
    else:
        assert len(arrived) < 20 and not arrived.count("POST"), "a slow request arrived"
        assert int(rows[-1]["Closed"]) > 0


def test_slow_readers_that_hang_up_leave_nothing_at_the_client(new_world):
    """Two hundred answers of 8 MiB are on their way when their senders go: the app's connections are all given up."""
    count = 200
    world = new_world()
    app = world.app(answer=big)
    client = world.client(app)
    with contextlib.ExitStack() as stack:
        wires(world, count, stack, request("GET", "/big"), receive_buffer=4096)
        eventually(lambda: world.relay.metric("first_byte_seconds_count") == count, what="every answer having begun")
    eventually(lambda: not world.relay.metric("connections"), 10, "the relay noticing")
    eventually(lambda: len(client.deliveries()) == count, 10, "the client having done with all of them")
    client.stop(5)


# ── floods ────────────────────────────────────────────────────────────────────────────────────────────────────────


def flood(attack, address, ca, seconds, opened, steps):
    """Run `attack` on connection after connection until the time is over; in a process of its own, which counts."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError, Closed), Wire(address, ca, f"billing.{DOMAIN}", ("h2",), 2) as wire:
            sender = Frames(wire)
            assert wire.receive(), "the relay did not say hello"
            opened.value += 1
            for _ in ATTACKS[attack](sender):
                steps.value += 1
                if time.monotonic() > until or not pump(sender):
                    break


def pump(sender):
    """Take what the relay says without waiting; false once it has closed or said GOAWAY."""
    sender.wire.tls.settimeout(0.0005)
    try:
        while sender.wire.receive():
            if b"\x07\x00\x00\x00\x00\x00" in sender.wire.buffer:  # the type, flags and stream of GOAWAY
                return False
            sender.wire.buffer.clear()
        return False
    except TimeoutError:
        sender.wire.tls.settimeout(2)
        return True
    except OSError:
        return False


def rapid_reset(sender):
    """CVE-2023-44487: a request and its reset, again and again."""
    while True:
        for _ in range(100):
            stream = sender.stream()
            sender.write(sender.headers(stream, request_fields("GET", "/flood")), RstStreamFrame(stream, 8))
        yield


def made_you_reset(sender):
    """CVE-2025-8671: frames that make the server reset the stream itself."""
    while True:
        for _ in range(50):
            stream = sender.stream()
            sender.write(sender.headers(stream, request_fields("POST", "/flood"), end=False), WindowUpdateFrame(stream, 0x7FFF_FFFF))
            sender.write(WindowUpdateFrame(stream, 0x7FFF_FFFF), DataFrame(stream, b"x" * 100, flags=["END_STREAM"]))
        yield


def continuation(sender):
    """CVE-2024-27316: a header block without an end."""
    sender.write(sender.headers(stream := sender.stream(), request_fields("GET", "/flood"), flags=()))
    piece = ContinuationFrame(stream, sender.block([("x-flood", "y" * 8000)])).serialize()
    while True:
        sender.write(piece * 50)
        yield


def empty_continuation(sender):
    sender.write(sender.headers(stream := sender.stream(), request_fields("GET", "/flood"), flags=()))
    while True:
        sender.write(ContinuationFrame(stream, b"").serialize() * 1000)
        yield


def settings(sender):
    """CVE-2019-9515."""
    while True:
        sender.write(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65535}).serialize() * 1000)
        yield


def ping(sender):
    """CVE-2019-9512."""
    while True:
        sender.write(PingFrame(0, b"12345678").serialize() * 1000)
        yield


def empty_data(sender):
    """CVE-2019-9518: frames of nothing."""
    sender.write(sender.headers(stream := sender.stream(), request_fields("POST", "/flood"), end=False))
    while True:
        sender.write(DataFrame(stream, b"").serialize() * 1000)
        yield


def hpack_bomb(sender):
    """A large field put into the table once and named thousands of times."""
    sender.encoder.header_table_size = 4096
    while True:
        fields = [*request_fields("GET", "/flood"), *[("x-bomb", "y" * 4000)] * 16000]
        block = sender.block(fields)
        stream = sender.stream()
        first = sender.headers(stream, [], flags=())
        first.data = block[:16000]
        pieces = [block[at : at + 16000] for at in range(16000, len(block), 16000)]
        sender.write(first, *[ContinuationFrame(stream, piece) for piece in pieces], ContinuationFrame(stream, b"", flags=["END_HEADERS"]))
        yield


def window(sender):
    """CVE-2019-9511: answers asked for, then taken a byte at a time."""
    sender.write(SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 0}))
    for _ in range(90):
        sender.write(sender.headers(sender.stream(), request_fields("GET", "/big")))
    while True:
        for stream in range(1, 181, 2):
            sender.write(WindowUpdateFrame(stream, 1))
        yield


ATTACKS = {
    attack.__name__: attack
    for attack in (rapid_reset, made_you_reset, continuation, empty_continuation, settings, ping, empty_data, hpack_bomb, window)
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_flood(slow, attack):
    """Full speed beside the good sender: none of its requests fails, the relay's memory grows by less than 64 MiB.

    But for answers that are asked for and not taken: of these a link holds 64 MiB.
    """
    seconds = 30 if LONG else 3
    before = slow.slow_app.connections
    with Growth(slow.relay, (128 if attack == "window" else 64) * MIB), GoodSender(slow):
        context = multiprocessing.get_context("spawn")
        opened, steps = context.Value("q"), context.Value("q")
        flooder = context.Process(target=flood, args=(attack, slow.relay.https, slow.relay.ca, seconds, opened, steps), daemon=True)
        flooder.start()
        flooder.join(seconds + 30)
        assert flooder.exitcode == 0
    assert opened.value > 0 and steps.value > 0, f"{opened.value} connections, {steps.value} steps"
    assert slow.slow_app.connections - before < 20_000


# ── limits ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_connections_of_one_address_are_capped(new_world):
    world = new_world("--max-connections-per-ip", "20")
    world.client(world.app())
    made = []
    try:
        for _ in range(40):
            with contextlib.suppress(OSError):
                made.append(world.wire(timeout=3))
        served = 0
        for wire in made:
            with contextlib.suppress(OSError, Closed):
                served += wire.ask(request("GET", "/x")).status == 200
        assert served <= 20
    finally:
        for wire in made:
            wire.close()
    eventually(lambda: served_again(world), what="a place coming free")


def served_again(world):
    with contextlib.suppress(OSError, Closed):
        return world.get("/x").status == 200
    return False


@pytest.fixture(scope="module")
def small():
    with World("--max-body", "32KiB") as world:
        app = world.app()
        world.client(app)
        world.small_app = app
        yield world


@pytest.mark.parametrize("size", [32 * 1024 + 1, 1 << 20, 1 << 40])
def test_a_body_announced_too_large_is_413_before_it_is_read(small, size):
    with small.wire() as wire:
        reply = wire.ask(request("POST", "/x", headers=[("Content-Length", str(size))]))
        assert reply.status == 413 and b"32768" in reply.body
        assert wire.ended()
    assert not small.small_app.at("/x")


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_body_found_too_large_is_413(small, protocol):
    if protocol == "h2":
        with h2(small) as sender:
            stream = sender.stream()
            sender.write(sender.headers(stream, request_fields("POST", "/x"), end=False), *[DataFrame(stream, b"x" * 12000)] * 2)
            sender.write(DataFrame(stream, b"x" * 12000))
            assert sender.outcome(stream).status == 413
    else:
        with small.wire() as wire:
            head = request("POST", "/x", headers=[("Transfer-Encoding", "chunked")])
            reply = wire.ask(head + b"2000\r\n" + b"x" * 8192 + (b"\r\n2000\r\n" + b"x" * 8192) * 9 + b"\r\n0\r\n\r\n")
            assert reply.status == 413
            assert wire.ended()
    assert not small.small_app.at("/x")


def test_a_body_of_just_the_limit_passes(small):
    assert small.post("/fits", b"x" * 32768).json()["length"] == 32768


def test_too_many_a_second_are_429_with_a_time_to_come_back(new_world):
    world = new_world("--rate", "5/s")
    app = world.app()
    world.client(app)
    with world.wire() as wire:
        replies = [wire.ask(request("POST", f"/{number}", b"x")) for number in range(30)]
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {200, 429} and statuses.count(200) < 15, statuses
    refused = next(reply for reply in replies if reply.status == 429)
    assert 1 <= int(refused.header("retry-after")) <= 10
    assert statuses.count(200) == len(app.seen)
    eventually(lambda: world.post("/later", b"x").status == 200, int(refused.header("retry-after")) + 5, "being served after Retry-After")


def test_too_many_at_once_are_429(new_world):
    world = new_world("--max-concurrent", "3")
    go = threading.Event()
    app = world.app()
    app.answer = lambda seen, at: go.wait(20) and app.echo(seen, at)
    world.client(app)
    with contextlib.ExitStack() as stack:
        held = wires(world, 3, stack, request("POST", "/held", b"x"))
        eventually(lambda: len(app.seen) == 3, what="three in flight")
        reply = world.post("/fourth", b"x")
        assert reply.status == 429 and int(reply.header("retry-after")) >= 1
        go.set()
        assert [wire.reply("POST").status for wire in held] == [200] * 3
    assert world.post("/fifth", b"x").status == 200
    assert not app.at("/fourth")


def test_a_sender_that_hangs_up_gives_its_place_back(new_world):
    world = new_world("--max-concurrent", "3")
    world.client(world.app())
    for _ in range(12):
        with world.wire() as wire:
            wire.send(request("POST", "/cut", headers=[("Content-Length", "1000")]) + b"x")
    eventually(lambda: world.post("/x", b"x").status == 200, what="a place coming free")


def test_bodies_that_do_not_come_take_no_places(new_world):
    world = new_world("--max-concurrent", "3")
    app = world.app()
    world.client(app)
    with contextlib.ExitStack() as stack:
        held = wires(world, 10, stack, request("POST", "/held", headers=[("Content-Length", "1000")]) + b"x")
        eventually(lambda: world.relay.metric("in_flight") == 10, what="ten requests without their bodies")
        started = time.monotonic()
        assert world.post("/good", b"good").status == 200
        assert time.monotonic() - started < 2
        for wire in held:
            wire.send(b"x" * 999)
            assert wire.reply("POST").status == 200
    assert len(app.at("/held")) == 10


def test_no_room_for_a_body_is_503_until_there_is(new_world):
    """Of 400 KiB one address may have a quarter."""
    world = new_world("--body-memory", "400KiB")
    go = threading.Event()
    app = world.app()
    app.answer = lambda seen, at: (seen.target != "/held" or go.wait(20)) and app.echo(seen, at)
    world.client(app)
    with world.wire() as holder:
        holder.send(request("POST", "/held", b"x" * 80 * 1024))
        eventually(lambda: app.at("/held"), what="a delivery of 80 KiB at the app")
        refused = world.post("/second", b"y" * 50 * 1024)
        assert refused.status == 503 and int(refused.header("retry-after")) >= 1
        assert b"room" in refused.body
        assert world.post("/little", b"z" * 10 * 1024).status == 200
        go.set()
        assert holder.reply("POST").status == 200
    assert world.post("/second", b"y" * 50 * 1024).json()["length"] == 50 * 1024
    assert len(app.at("/second")) == 1


TOO_LARGE_A_HEAD = b"the header fields are too many or too long for this relay\n"


def test_a_head_of_nearly_64_kib_is_431(slow):
    """Whole sizes below the limit pass, then the relay says what is wrong, then its HTTP library does; never a 5xx."""
    outcomes = []
    for size in [*range(63_500, 65_100, 400), *range(65_100, 65_600, 20), 66_000, 70_000]:
        bare = len(request("GET", "/near", headers=[(f"X-{n}", "") for n in range(4)]))
        length, rest = divmod(size - bare, 4)
        head = request("GET", "/near", headers=[(f"X-{n}", "y" * (length + (rest if n == 0 else 0))) for n in range(4)])
        assert len(head) == size
        with slow.wire() as wire:
            reply = wire.ask(head)
        outcomes.append((reply.status, reply.body == TOO_LARGE_A_HEAD))
    assert {status for status, _ in outcomes} == {200, 431}
    assert outcomes == sorted(outcomes, key=lambda outcome: outcome[0]), outcomes
    assert (431, True) in outcomes, "no head came as far as the relay's own limit"


@pytest.mark.parametrize(("count", "status"), [(1000, 200), (1100, 431)])
def test_so_many_small_fields_are_431(slow, count, status):
    with h2(slow) as sender:
        seen = sender.ask(request_fields("GET", "/many", more=[(f"x{n}", "") for n in range(count)]))
    assert seen.status == status, seen
    assert status == 200 or seen.body == TOO_LARGE_A_HEAD


@pytest.mark.parametrize(
    ("relay_flags", "flags", "status", "why"),
    [
        ((), ("--on-offline", "error"), 503, b"nobody is connected"),
        (("--queue-max-body", "1MiB"), (), 413, b"over the 1048576 bytes that can be queued"),
    ],
    ids=["nobody is there", "too large to wait"],
)
def test_an_early_answer_reaches_a_sender_that_is_still_sending(new_world, relay_flags, flags, status, why):
    """All of 20 MB is written before anything is read, long after the relay has answered."""
    world = new_world(*relay_flags)
    world.client(world.app(), *flags).stop()
    size = 20_000_000
    with world.wire() as wire:
        wire.tls.sendall(request("POST", "/upload", headers=[("Content-Length", str(size))]))
        for _ in range(size // 100_000):
            wire.tls.sendall(b"x" * 100_000)
        reply = wire.reply("POST")
    assert reply.status == status and reply.complete
    assert why in reply.body
