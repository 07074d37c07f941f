"""Hostile peers on the way over TCP: what dials the relay and is no client, and what a client dials and is no relay.

The roles of HTTP/2 are reversed there: who dials is its server, and the relay opens the streams, `/control` first.
"""

import concurrent.futures
import contextlib
import datetime
import ipaddress
import itertools
import multiprocessing
import os
import queue
import select
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hyperframe.frame import (
    ContinuationFrame, DataFrame, GoAwayFrame, HeadersFrame, PingFrame, PushPromiseFrame, RstStreamFrame, SettingsFrame,
    WindowUpdateFrame,
)  # fmt: skip

from test_h2_hostile import PREFACE, Frames
from test_network import needs_fallback
from test_quic_hostile import (
    BODIES, FIRST_MESSAGES, HURRIED, MIB, REPLIES, Good, Growth, frame, hello, number, parse, prefixed, put_reply, reply_head, text,
    varint, whole_reply,
)  # fmt: skip
from test_slow_and_floods import GoodSender
from world import DOMAIN, HOOKWAY, LONG, Closed, Program, Wire, World, eventually, request

ALPN = "hookway-h2/1"
HANDSHAKE = 2.0  # seconds that a handshake may take, as these relays are started
FLUSHED = 2.0  # seconds in which what was said before a close must leave
SLACK = 3.0

pytestmark = needs_fallback


class GoodOverTcp(Good):
    """A client on the way that is attacked, and a sender: neither must notice anything."""

    def __init__(self, world):
        self.world, self.app = world, world.app()
        self.client = world.client(self.app, "--transport", "h2")


@pytest.fixture(scope="module")
def good():
    with World("--handshake-timeout", f"{HANDSHAKE:.0f}s", "--max-handshakes", "256") as world:
        yield GoodOverTcp(world)


# ── peers of the relay ────────────────────────────────────────────────────────────────────────────────────────────


class Peer(Frames):
    """What dials the relay over TCP: it answers as an HTTP/2 server, or as it is told to."""

    WIDE = {SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 30, SettingsFrame.MAX_CONCURRENT_STREAMS: 1000}

    def __init__(self, relay, ca, greet=True, settings=None):
        super().__init__(Wire(relay, ca, DOMAIN, (ALPN,), timeout=10), preface=b"")
        assert self.wire.tls.selected_alpn_protocol() == ALPN
        self.said = bytearray()
        if greet:
            assert self.wire._exactly(len(PREFACE)) == PREFACE
            self.write(SettingsFrame(0, settings=self.WIDE if settings is None else settings), WindowUpdateFrame(0, 1 << 30))

    def next(self, wanted, seconds=5.0):
        """The next frame of this kind: (flags, stream, payload)."""
        for kind, *rest in self.frames(seconds):
            if kind == wanted.type:
                return rest

    def control(self):
        """The control stream, asked for by the relay; not answered yet."""
        _, stream, block = self.next(HeadersFrame)
        assert dict(self.fields(block))[":path"] == "/control"
        return stream

    def answers(self, stream, fields=((":status", "200"),), end=False):
        self.write(self.headers(stream, fields, end=end))

    def says(self, stream, data, end=False):
        pieces = [data[at : at + 16_000] for at in range(0, len(data), 16_000)] or [b""]
        self.write(*[DataFrame(stream, piece) for piece in pieces[:-1]])
        self.write(DataFrame(stream, pieces[-1], flags=["END_STREAM"] if end else []))

    def message(self, control, seconds=5.0):
        """What the relay says next on the control stream."""
        while True:
            size = shift = 0
            for used, byte in enumerate(self.said, 1):
                size, shift = size | (byte & 0x7F) << shift, shift + 7
                if byte < 0x80:
                    if len(self.said) < used + size:
                        break
                    message = bytes(self.said[used : used + size])
                    del self.said[: used + size]
                    return parse(message)
            flags, stream, payload = self.next(DataFrame, seconds)
            if stream == control:
                self.said += payload

    def let_in(self, token, *names):
        """Say hello and be welcomed; the control stream."""
        control = self.control()
        self.answers(control)
        self.says(control, hello(token, *names))
        message = self.message(control)
        assert 1 in message, f"not welcomed: {message}"
        return control

    def ends(self, seconds):
        """The seconds until the relay closes the connection, what comes meanwhile being read."""
        began = time.monotonic()
        assert self.wire.ended(seconds), f"still open after {seconds} s"
        return time.monotonic() - began


def peer(world, **options):
    return Peer(world.relay.https, world.relay.ca, **options)


def control_answered(peer, *data, end=False, **answer):
    control = peer.control()
    peer.answers(control, **answer)
    for piece in data:
        peer.says(control, piece, end)
    return control


def dribbled(peer):
    control = control_answered(peer)
    with contextlib.suppress(ssl.SSLError):
        for byte in hello("hwt_wrong", "slow") * 3:
            peer.wire.tls.sendall(DataFrame(control, bytes([byte])).serialize())
            time.sleep(0.1)


def header_block_without_end(peer):
    peer.write(HeadersFrame(peer.control(), data=peer.block([(":status", "200")])))


# Whether it greets before, and what it does then.
NO_CLIENTS = {
    "silent": (False, lambda peer: None),
    "garbage": (False, lambda peer: peer.write(os.urandom(4096))),
    "a-client-too": (False, lambda peer: peer.write(PREFACE, SettingsFrame(0))),
    "http1-request": (False, lambda peer: peer.write(b"GET / HTTP/1.1\r\nHost: hooks.test\r\n\r\n")),
    "http1-answer": (False, lambda peer: peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
    "half-a-frame": (False, lambda peer: peer.write(SettingsFrame(0).serialize()[:5])),
    "frame-of-16-mib": (False, lambda peer: peer.write(b"\xff\xff\xff\x04\0\0\0\0\0")),
    "data-first": (False, lambda peer: peer.write(DataFrame(1, hello("hwt_x", "a")))),
    "settings-only": (True, lambda peer: None),
    "settings-wrong": (True, lambda peer: peer.write(SettingsFrame(0, settings={SettingsFrame.MAX_FRAME_SIZE: 1}))),
    "window-overflow": (True, lambda peer: peer.write(WindowUpdateFrame(0, 0x7FFF_FFFF), WindowUpdateFrame(0, 0x7FFF_FFFF))),
    "goaway": (True, lambda peer: peer.write(GoAwayFrame(0))),
    "goaway-error": (True, lambda peer: peer.write(GoAwayFrame(0, 0, 11, b"\x1b[2J" * 1000))),
    "control-refused": (True, lambda peer: peer.write(RstStreamFrame(peer.control(), 7))),
    "control-ended": (True, lambda peer: control_answered(peer, end=True)),
    "control-404": (True, lambda peer: control_answered(peer, fields=[(":status", "404")])),
    "control-no-status": (True, lambda peer: control_answered(peer, fields=[("x-a", "b")])),
    "control-answered-twice": (True, lambda peer: peer.answers(control_answered(peer))),
    "control-nothing-said": (True, control_answered),
    "hello-then-reset": (True, lambda peer: peer.write(RstStreamFrame(control_answered(peer, hello("hwt_x", "a"))))),
    "hello-dribbled": (True, dribbled),
    "hello-padded-to-nothing": (True, lambda peer: peer.write(b"\0\0\1\0\x08" + peer.control().to_bytes(4) + b"\xff")),
    "headers-without-end": (True, header_block_without_end),
    "headers-too-large": (True, lambda peer: control_answered(peer, fields=[(":status", "200"), ("x-a", "a" * 100_000)])),
    "push-promise": (True, lambda peer: peer.write(PushPromiseFrame(peer.control(), 2, data=peer.block([(":method", "GET"), (":path", "/")]), flags=["END_HEADERS"]))),
    "stream-of-its-own": (True, lambda peer: peer.write(peer.headers(2, [(":method", "GET"), (":path", "/"), (":scheme", "https")]))),
    "data-on-no-stream": (True, lambda peer: peer.write(DataFrame(77, b"x"))),
    "data-before-headers": (True, lambda peer: peer.says(peer.control(), hello("hwt_x", "a"))),
    "continuation-alone": (True, lambda peer: peer.write(ContinuationFrame(peer.control(), b"x"))),
}  # fmt: skip


def at_once(cases, attempt):
    """All cases beside one another: most of them wait for the same deadline. What went wrong, by case."""
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        running = {name: pool.submit(attempt, name) for name in cases}
    return {name: it.exception() for name, it in running.items() if it.exception()}


def test_what_is_no_client_is_closed(good):
    """Within the handshake's time, and the time that what was said before may take to leave."""

    def attempt(name):
        greet, act = NO_CLIENTS[name]
        with peer(good.world, greet=greet) as it:
            began = time.monotonic()
            act(it)
            it.ends(HANDSHAKE + FLUSHED + SLACK - (time.monotonic() - began))

    with Growth(good.world.relay, 64 * MIB):
        assert not at_once(NO_CLIENTS, attempt)
    good.check()


def test_a_first_message_over_tcp_that_is_none(good):
    """Refused or closed; never a session."""

    def attempt(name):
        data, end = FIRST_MESSAGES[name]
        with peer(good.world) as it:
            control, message = control_answered(it, data, end=end), None
            with contextlib.suppress(Closed, OSError):
                message = it.message(control, HANDSHAKE + SLACK)
            assert not message or 2 in message, f"welcomed: {message}"
            it.ends(HANDSHAKE + FLUSHED + SLACK)

    assert not at_once(FIRST_MESSAGES, attempt)
    good.check()


def test_a_wrong_token_is_told_and_closed(good):
    with peer(good.world) as it:
        control = control_answered(it, hello("hwt_" + "A" * 52, "a"))
        [refused] = it.message(control)[2]
        assert parse(refused)[1] == [2] and parse(refused)[2]
        it.ends(FLUSHED + SLACK)
    good.check()


def test_guessed_tokens_are_limited_over_tcp_as_over_quic(new_world):
    world = new_world()
    seen = set()
    for n in range(40):
        with contextlib.suppress(Closed, OSError), peer(world) as it:
            control = control_answered(it, hello(f"hwt_{n:052}", "a"))
            seen.add(parse(it.message(control)[2][0])[1][0])
        if 5 in seen:
            break
    assert 5 in seen, f"forty wrong tokens, and never the code LIMIT: {seen}"


def test_a_sender_cannot_speak_to_the_tunnel_listener_nor_a_client_to_the_public_one(good):
    """The protocol is chosen by ALPN and nothing else; offered beside others it does not win by accident."""
    world = good.world
    for offered, wanted in {("h2", "http/1.1"): "h2", ("http/1.1",): "http/1.1"}.items():
        with Wire(world.relay.https, world.relay.ca, DOMAIN, offered) as wire:
            assert wire.tls.selected_alpn_protocol() == wanted
    good.check()


# ── floods on the relay ───────────────────────────────────────────────────────────────────────────────────────────


def pump(peer):
    """Take what the relay says without waiting; false once it has closed."""
    while select.select([peer.wire.tls], [], [], 0)[0]:
        if not peer.wire.receive():
            return False
        peer.wire.buffer.clear()
    return True


def settings(peer, _):
    return SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65535}).serialize() * 1000


def ping(peer, _):
    return PingFrame(0, b"12345678").serialize() * 1000


def empty_data(peer, control):
    return DataFrame(control, b"").serialize() * 1000


def unknown_frames(peer, _):
    return b"\0\0\0\x77\0\0\0\0\0" * 1000


def window_updates(peer, control):
    return (WindowUpdateFrame(control, 1).serialize() + WindowUpdateFrame(0, 1).serialize()) * 500


def informational(peer, _):
    """Answers that are none yet, to the question for the control stream."""
    return b"".join(peer.headers(1, [(":status", "103"), ("x-a", str(n) * 100)], end=False).serialize() for n in range(100))


def trailers(peer, control):
    return b"".join(peer.headers(control, [("x-a", "b")], end=False).serialize() for _ in range(100))


def continuations(peer, _):
    return ContinuationFrame(1, peer.block([("x-flood", "y" * 8000)])).serialize() * 50


def empty_continuations(peer, _):
    return ContinuationFrame(1, b"").serialize() * 1000


def control_pings(peer, control):
    return DataFrame(control, prefixed(text(2, number(1, 7))) * 1000).serialize()


FLOODS = {it.__name__: it for it in (settings, ping, empty_data, unknown_frames, window_updates, informational, trailers, continuations, empty_continuations)}  # fmt: skip
UNANSWERED = {"informational"}  # the control stream is not answered before
OPENED = {"continuations", "empty_continuations"}  # its answer has no end


def flood(name, relay, ca, token, seconds, reads, report):
    """Connection after connection until the time is over; each as (seconds it lived, bytes sent)."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began, sent = time.monotonic(), 0
        with contextlib.suppress(OSError, Closed), Peer(relay, ca) as it:
            if token:
                control = it.let_in(token, "flooder")
            else:
                control = it.control()
                if name in OPENED:
                    it.write(HeadersFrame(control, data=it.block([(":status", "200")])))
                elif name not in UNANSWERED:
                    it.answers(control)
            piece = control_pings(it, control) if token and name == "empty_data" else FLOODS[name](it, control)
            it.wire.tls.settimeout(1)
            # Beyond the end of the time, so that a connection that outlives its deadline is seen to do so.
            while time.monotonic() < until:
                it.wire.tls.sendall(piece)
                sent += len(piece)
                if reads and not pump(it):
                    break
        report.put((time.monotonic() - began, sent))


def flooded(world, name, seconds, token=None, reads=True):
    """The flood from a process of its own, beside a good sender. What became of its connections."""
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    with Growth(world.relay, 64 * MIB), GoodSender(world):
        arguments = (name, world.relay.https, world.relay.ca, token, seconds, reads, report)
        flooder = context.Process(target=flood, args=arguments, daemon=True)
        flooder.start()
        ends = []
        while flooder.is_alive() or not report.empty():
            with contextlib.suppress(queue.Empty):
                ends.append(report.get(timeout=0.2))
        flooder.join(30)
        assert flooder.exitcode == 0 and ends
    sent = sum(sent for _, sent in ends)
    longest = max(lived for lived, _ in ends)
    print(f"{name}: {len(ends)} connections, {sent / MIB:.1f} MiB, the longest lived {longest:.1f} s")
    assert sent
    return longest


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_before_the_hello(good, name):
    flooded(good.world, name, 20 if LONG else 1)
    good.check()


@pytest.mark.parametrize("name", ["ping", "settings"])
def test_a_flood_of_one_that_does_not_read(good, name):
    """What the relay owes it in answers is not kept for ever."""
    flooded(good.world, name, 20 if LONG else 3, reads=False)
    good.check()


@pytest.mark.parametrize("name", ["ping"])
def test_a_flood_does_not_prolong_a_handshake(good, name):
    """However busy the relay is with its frames: one that says no hello is closed in time."""
    longest = flooded(good.world, name, HANDSHAKE + FLUSHED + SLACK + 1)
    assert longest < HANDSHAKE + FLUSHED + SLACK
    good.check()


@pytest.mark.parametrize("name", ["ping", "settings", "empty_data", "window_updates"])
def test_a_flood_of_one_that_was_let_in(good, name):
    flooded(good.world, name, 20 if LONG else 1.5, token=good.world.default_token)
    good.check()


def test_many_that_never_read(good):
    """A hundred peers that greet and then take and say nothing: closed in time, and little is kept for them."""
    with Growth(good.world.relay, 64 * MIB), contextlib.ExitStack() as stack:
        peers = [stack.enter_context(peer(good.world)) for _ in range(100)]
        began = time.monotonic()
        for it in peers:
            it.ends(max(0.1, began + HANDSHAKE + FLUSHED + SLACK - time.monotonic()))
        assert good.served()
    good.check()


# ── a hostile client with a good token ────────────────────────────────────────────────────────────────────────────


class Hostile:
    """A client over TCP, let in, that writes `reply` to every exchange; in a thread beside the test."""

    def __init__(self, world, name, token, settings=None, act=None):
        self.reply, self.end, self.act = b"", True, act
        self.peer, self.answered, self.error = peer(world, settings=settings), set(), None
        self.control = self.peer.let_in(token, name)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.peer.wire.tls.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self.peer.wire.close()

    def _run(self):
        with contextlib.suppress(Closed, OSError, ValueError):
            for kind, _, stream, payload in self.peer.frames(60):
                if kind == DataFrame.type and payload and stream not in self.answered | {self.control}:
                    self.answered.add(stream)
                    self._answer(stream)

    def _answer(self, stream):
        if self.act:
            return self.act(self, stream)
        self.peer.answers(stream)
        self.peer.says(stream, self.reply, self.end)


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_over_tcp_that_is_none(good, name):
    with Hostile(good.world, "hostile", good.world.default_token) as hostile:
        put_reply(good.world, hostile, name)
    good.check()


def test_the_next_exchange_over_tcp_after_bytes_past_the_end_is_its_own(good):
    with Hostile(good.world, "hostile", good.world.default_token) as hostile:
        hostile.reply, hostile.end = whole_reply(b"mine") + whole_reply(b"planted"), False
        for _ in range(3):
            reply = good.world.get("/x", name="hostile")
            assert reply.status == 200 and reply.body == b"mine", reply
    good.check()


def answered(act):
    return lambda hostile, stream: (hostile.peer.answers(stream), act(hostile.peer, stream))


# What a client does with the stream of an exchange.
EXCHANGES = {
    "reset": lambda hostile, stream: hostile.peer.write(RstStreamFrame(stream, 8)),
    "refused": lambda hostile, stream: hostile.peer.write(RstStreamFrame(stream, 7)),
    "status-500": lambda hostile, stream: hostile.peer.answers(stream, [(":status", "500")], end=True),
    "ended": lambda hostile, stream: hostile.peer.answers(stream, end=True),
    "half-a-reply-and-reset": answered(lambda peer, stream: (peer.says(stream, whole_reply()[:-2]), peer.write(RstStreamFrame(stream, 8)))),
    "trailers-for-end": answered(lambda peer, stream: (peer.says(stream, whole_reply()[:-2]), peer.answers(stream, [("x-a", "b")], end=True))),
    "over-the-window": answered(lambda peer, stream: peer.says(stream, frame(1, reply_head()) + frame(2, b"", length=8 * MIB) + b"x" * 8 * MIB)),
    "goaway-before-it": lambda hostile, stream: hostile.peer.write(GoAwayFrame(0, 1, 0)),
    "hang-up": lambda hostile, stream: hostile.peer.wire.tls.unwrap(),
}  # fmt: skip


@pytest.mark.parametrize("name", EXCHANGES)
def test_an_exchange_over_tcp_that_is_none(good, name):
    """The sender gets an honest answer, or none that is whole; and another client can take the name afterwards."""
    world = good.world
    with Hostile(world, "hostile", world.default_token, act=EXCHANGES[name]):
        with world.wire("hostile", timeout=12) as wire:
            wire.send(request("POST", "/x", b"x", host=f"hostile.{DOMAIN}"))
            try:
                reply = wire.reply()
            except Closed as cut:
                reply = None
                assert not cut.args[0], f"half an answer: {cut}"
    assert reply is None or reply.status in (202, 502, 503, 504) or not reply.complete, reply
    app = world.app(name="heir")
    client = world.client(app, name="hostile")
    eventually(lambda: world.get("/x", name="hostile").status == 200, what="the next client serving")
    client.stop()
    good.check()


@pytest.fixture(scope="module")
def hurried():
    with World(*HURRIED) as world:
        yield world


@pytest.mark.parametrize("body", BODIES if LONG else ["none", "2-mib"])
@pytest.mark.parametrize("grant", [SettingsFrame.MAX_CONCURRENT_STREAMS, SettingsFrame.INITIAL_WINDOW_SIZE])
def test_a_client_over_tcp_that_grants_nothing_is_504(hurried, grant, body):
    """The control stream is under way before it says so."""

    with Hostile(hurried, "stingy", hurried.default_token) as hostile, hurried.wire("stingy") as wire:
        hostile.peer.write(SettingsFrame(0, settings={grant: 0}))
        time.sleep(0.1)  # until the relay has read it
        began = time.monotonic()
        wire.send(BODIES[body])
        reply = wire.reply()
        assert 1.5 < time.monotonic() - began < 5
        assert reply.status == 504, reply


def no_reader(world, name, stream_floods):
    """A sender that asks, and reads nothing of the answer; meanwhile the client floods the stream."""
    with Hostile(world, name, world.default_token, act=stream_floods) as hostile:
        with world.wire(name, receive_buffer=4096) as wire:
            wire.send(request("GET", "/x", host=f"{name}.{DOMAIN}"))
            eventually(lambda: hostile.answered, what="the exchange beginning")
            eventually(lambda: getattr(hostile, "done", False) or not hostile._thread.is_alive(), 30, "the flood's end")


def frames_of_nothing(hostile, stream):
    """First what fills all windows, then millions of frames that need none."""
    peer = hostile.peer
    peer.answers(stream)
    peer.says(stream, frame(1, reply_head()) + frame(2, b"", length=1 << 40))
    sent = 0
    with contextlib.suppress(OSError, ssl.SSLError):
        while sent < 512 << 10:
            peer.wire.tls.sendall(DataFrame(stream, b"x" * 16_000).serialize())
            sent += 16_000
        piece, until = DataFrame(stream, b"").serialize() * 10_000, time.monotonic() + 3
        while time.monotonic() < until:
            peer.wire.tls.sendall(piece)
            hostile.bytes = getattr(hostile, "bytes", 0) + len(piece)
    hostile.done = True


def test_frames_of_nothing_behind_an_unread_reply_cost_little(good):
    with Growth(good.world.relay, 128 * MIB):
        no_reader(good.world, "nothing", frames_of_nothing)
    good.check()


def test_informational_answers_without_end_cost_little(good):
    """In front of a reply whose request has not been taken."""
    def act(hostile, stream):
        piece = b"".join(hostile.peer.headers(stream, [(":status", "103"), ("x-a", "b" * 100)], end=False).serialize() for _ in range(1000))
        until = time.monotonic() + 3
        with contextlib.suppress(OSError, ssl.SSLError):
            while time.monotonic() < until:
                hostile.peer.wire.tls.sendall(piece)
        hostile.done = True

    with Growth(good.world.relay, 128 * MIB):
        no_reader(good.world, "informational", act)
    good.check()


def test_clients_over_tcp_that_come_and_go(good):
    world = good.world
    with Growth(world.relay, 64 * MIB):
        for _ in range(300 if LONG else 60):
            with peer(world) as it:
                it.let_in(world.default_token, "flapping")
        client = world.client(world.app(name="steady"), name="flapping")
        eventually(lambda: world.get("/x", name="flapping").status == 200, what="the last client serving")
        client.stop()
    good.check()


# ── a relay that is none ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(its CA's file, a TLS context) for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certificate")
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "no relay")])
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "no CA")])
    now = datetime.datetime.now(datetime.UTC)

    def signed(subject, public, extensions):
        builder = x509.CertificateBuilder(ca_name, subject, public, x509.random_serial_number(), now, now + datetime.timedelta(days=2))
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    (folder / "ca.pem").write_bytes(signed(ca_name, ca_key.public_key(), [x509.BasicConstraints(ca=True, path_length=None)]))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "leaf.pem").write_bytes(signed(name, key.public_key(), [here]) + key.private_bytes(*plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "leaf.pem")
    context.set_alpn_protocols([ALPN])
    return folder / "ca.pem", context


class Accepted(Wire):
    """The other end of a connection: one that was dialled."""

    def __init__(self, tls):
        self.tls, self.buffer, self.clean_end = tls, bytearray(), None
        tls.settimeout(10)


class Link(Peer):
    """A connection that a client has made, as the relay sees it."""

    def __init__(self, tls, greet=True):
        Frames.__init__(self, Accepted(tls), preface=PREFACE if greet else b"")
        self.said = bytearray()
        if greet:
            assert self.wire._exactly(9)[3] == SettingsFrame.type, "a client greets with its settings"
            # Put back, to be answered.
            self.wire.buffer.clear()
            self.write(SettingsFrame(0, flags=["ACK"]))

    def asks(self, path, end=False, stream=None):
        """Opens a stream for this."""
        stream = stream or self.stream()
        fields = [(":method", "POST"), (":scheme", "https"), (":authority", "client"), (":path", path)]
        self.write(self.headers(stream, fields, end=end))
        return stream

    def hello(self):
        """The control stream, opened, and the client's Hello on it."""
        control = self.asks("/control")
        [sent] = self.message(control)[1]
        return control, parse(sent)

    def welcomes(self):
        control, sent = self.hello()
        name = sent[4][0]
        endpoint = text(1, name) + text(2, b"https://" + name + b".hooks.test")
        self.says(control, prefixed(text(1, number(1, 1) + text(2, "ses_x") + text(3, endpoint) + text(5, "ci"))))
        return control

    def serves(self):
        """Answers pings until the client goes."""
        with contextlib.suppress(Closed, OSError):
            for _ in self.frames(60):
                pass


class NoRelay:
    """Takes clients' connections; `behave(n, tls)` is called with each in a thread of its own."""

    def __init__(self, context, behave):
        self.context, self.behave, self.numbers = context, behave, itertools.count()
        self.failures = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError, Closed):
            with self.context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False) as tls:
                try:
                    self.behave(next(self.numbers), tls)
                except (AssertionError, TypeError, ValueError) as failure:
                    self.failures.append(failure)
                    raise


@contextlib.contextmanager
def client_of(folder, certificate, behave):
    """A client on TCP of what is no relay, once it has been let in."""
    ca, context = certificate
    with contextlib.closing(NoRelay(context, behave)) as relay:
        words = (HOOKWAY, "127.0.0.1:9", "-n", "billing", "--relay", relay.address, "--relay-ca", str(ca))
        how = ("--transport", "h2", "--no-inspect", "--no-store", "--json")
        client = Program("client", [*words, *how], folder, {"HOOKWAY_TOKEN": "hwt_" + "A" * 52})
        try:
            client.event("ready")
            yield client
            assert not relay.failures, relay.failures
        finally:
            code = client.stop()
        assert code == 0, client.log()


def ups(client):
    return [event for event in list(client.events) if event.get("event") == "session" and event["state"] == "up"]


def downs(client):
    return [event for event in list(client.events) if event.get("event") == "session" and event["state"] == "down"]


def rests(act):
    """Does it, and waits for the client to hang up."""

    def attack(link):
        act(link)
        with contextlib.suppress(Closed, OSError):
            link.wire.ended(10)

    return attack


EARLY = {
    "closes": lambda tls: None,
    "silent": lambda tls: tls.recv(1) and time.sleep(8),
    "garbage": lambda tls: tls.sendall(os.urandom(4096)),
    "http1": lambda tls: tls.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "settings-without-preface": lambda tls: tls.sendall(SettingsFrame(0).serialize() * 4),
    "no-control-stream": lambda tls: time.sleep(8) if Link(tls) else None,
    "exchange-first": lambda tls: rests(lambda link: link.says(link.asks("/exchange"), b"\xff" * 100))(Link(tls)),
    "other-path": lambda tls: rests(lambda link: link.asks("/what"))(Link(tls)),
    "control-ended": lambda tls: rests(lambda link: link.asks("/control", end=True))(Link(tls)),
    "control-reset": lambda tls: rests(lambda link: link.write(RstStreamFrame(link.asks("/control"), 8)))(Link(tls)),
    "welcome-garbage": lambda tls: rests(lambda link: link.says(link.hello()[0], b"\xff" * 200))(Link(tls)),
    "welcome-too-long": lambda tls: rests(lambda link: link.says(link.hello()[0], varint(1 << 31) + b"x" * 500))(Link(tls)),
    "welcome-empty": lambda tls: rests(lambda link: link.says(link.hello()[0], prefixed(b"")))(Link(tls)),
    "never-welcome": lambda tls: Link(tls).hello() and time.sleep(8),
}  # fmt: skip

LATE = {
    "closes": lambda link, control: None,
    "reset": lambda link, control: link.wire.tls.unwrap().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"),
    "goaway": lambda link, control: link.write(GoAwayFrame(0)),
    "goaway-error": lambda link, control: link.write(GoAwayFrame(0, 0, 11, b"\x1b[2Jevil\r\n" * 100)),
    "control-reset": lambda link, control: link.write(RstStreamFrame(control, 8)),
    "control-ended": lambda link, control: link.says(control, b"", end=True),
    "control-garbage": lambda link, control: link.says(control, b"\xff" * 100),
    "message-too-long": lambda link, control: link.says(control, varint(1 << 31) + b"x" * 500),
    "push-promise": lambda link, control: link.write(PushPromiseFrame(control, 2, data=link.block([(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "x")]), flags=["END_HEADERS"])),
    "even-stream": lambda link, control: link.asks("/exchange", stream=8),
    "backwards-stream": lambda link, control: (link.asks("/exchange", stream=99), link.asks("/exchange", stream=3)),
    "garbage": lambda link, control: link.write(os.urandom(4096)),
    "too-long-frame": lambda link, control: link.write(b"\xff\xff\xff\x00\0\0\0\0\1"),
    "window-overflow": lambda link, control: link.write(*[WindowUpdateFrame(0, 0x7FFF_FFFF)] * 2),
    "over-the-window": lambda link, control: link.says(link.asks("/exchange"), b"x" * 80 * MIB),
    "close-with-a-strange-reason": lambda link, control: link.write(link.headers(link.stream(), [(":method", "POST"), (":scheme", "https"), (":authority", "client"), (":path", "/close"), ("hookway-reason", "\x1b[2J\xff" * 500)])),
    "silent": lambda link, control: time.sleep(9),
}  # fmt: skip


def comes_back(folder, certificate, behave, is_well=lambda client: None):
    """The client says what is wrong, and is let in again."""
    with client_of(folder, certificate, behave) as client:
        eventually(lambda: len(ups(client)) > 1, 25, "the client being let in again")
        assert downs(client) and all(event["reason"] for event in downs(client))
        assert not any("\x1b" in event["reason"] for event in downs(client))
        is_well(client)
        return "; ".join(dict.fromkeys(event["reason"] for event in downs(client)))


def test_a_relay_that_is_none_at_first_is_asked_again(tmp_path, certificate):
    """The second connection leads nowhere, the third is let in."""

    def attempt(name):
        def behave(n, tls):
            if n == 1:
                return EARLY[name](tls)
            link = Link(tls)
            link.welcomes()
            return None if n == 0 else link.serves()

        print(f"{name}: {comes_back(tmp_path / name, certificate, behave)}")

    assert not at_once(EARLY, attempt)


def test_a_relay_that_goes_mad_is_left_and_asked_again(tmp_path, certificate):
    def attempt(name):
        def behave(n, tls):
            link = Link(tls)
            control = link.welcomes()
            if n:
                return link.serves()
            with contextlib.suppress(Closed, OSError, ssl.SSLError):
                LATE[name](link, control)
                # Whatever it sends back, it is to be rid of this one.
                if name not in ("closes", "reset"):
                    link.wire.ended(10)

        print(f"{name}: {comes_back(tmp_path / name, certificate, behave)}")

    assert not at_once(LATE, attempt)


def many_streams(link, control):
    """More than it allows, none of which goes on."""
    while True:
        for _ in range(100):
            link.asks("/exchange")
        yield


def many_heads(link, control):
    """Streams that each ask for something and are given up at once."""
    head = frame(1, text(1, os.urandom(16)) + text(3, "billing") + text(4, "GET") + text(5, "/") + number(8, 1) + number(10, 1))
    while True:
        for _ in range(100):
            stream = link.asks("/exchange")
            link.write(DataFrame(stream, head), RstStreamFrame(stream, 8))
        yield


def rapid_reset(link, control):
    while True:
        for _ in range(100):
            link.write(RstStreamFrame(link.asks("/exchange"), 8))
        yield


def wild_settings(link, control):
    yield from _repeat(link, settings(link, control))


def wild_pings(link, control):
    yield from _repeat(link, ping(link, control))


def wild_empty_data(link, control):
    stream = link.asks("/exchange")
    yield from _repeat(link, empty_data(link, stream))


def wild_empty_control(link, control):
    yield from _repeat(link, empty_data(link, control))


def wild_controls(link, control):
    """Messages that say that something has changed."""
    message = prefixed(text(6, text(1, "billing") + number(2, 1) + number(3, 7) + text(5, "x" * 200)))
    while True:
        link.says(control, message * 50)
        yield


def wild_headers(link, control):
    link.write(HeadersFrame(link.stream(), data=link.block([(":method", "POST")])))
    yield from _repeat(link, ContinuationFrame(3, link.block([("x-flood", "y" * 8000)])).serialize() * 20)


def _repeat(link, piece):
    while True:
        link.write(piece)
        yield


WILD = {it.__name__: it for it in (many_streams, many_heads, rapid_reset, wild_settings, wild_pings, wild_empty_data, wild_empty_control, wild_controls, wild_headers)}  # fmt: skip


@pytest.mark.parametrize("name", WILD)
def test_a_flood_from_the_relay_does_not_bring_the_client_down(tmp_path, certificate, name):
    """It may hang up or bear it; its memory stays, and when that relay has gone it is let in by the next."""
    flooded = {}

    def behave(n, tls):
        link = Link(tls)
        control = link.welcomes()
        if n:
            return link.serves()
        until = time.monotonic() + (20 if LONG else 1)
        tls.settimeout(1)
        with contextlib.suppress(Closed, OSError, ssl.SSLError):
            for _ in WILD[name](link, control):
                flooded["steps"] = flooded.get("steps", 0) + 1
                if time.monotonic() > until or not pump(link):
                    break

    with client_of(tmp_path, certificate, behave) as client:
        with Growth(client, 96 * MIB):
            eventually(lambda: len(ups(client)) > 1, 25, "the client being let in again")
        print(f"{name}: {flooded['steps']} steps; {[event['reason'] for event in downs(client)]}")
        assert flooded["steps"]
