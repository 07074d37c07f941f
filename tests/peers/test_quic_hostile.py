"""Hostile QUIC towards the clients' port, and hostile clients behind a good token (threats 9, 13, 20).

A `Peer` speaks QUIC with aioquic and writes the protocol's messages by hand, so that it can write wrong ones.
"""

import asyncio
import contextlib
import functools
import random
import socket
import threading
import time

import pytest
from aioquic.asyncio import QuicConnectionProtocol
from aioquic.asyncio.client import connect
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived, StreamReset

from world import DOMAIN, LONG, Closed, World, eventually, request

ALPN = "hookway/1"
MIB = 1 << 20
HEAD, DATA, TRAILERS, END = 1, 2, 3, 4


# ── messages and frames by hand ───────────────────────────────────────────────────────────────────────────────────


def varint(value):
    """A protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def number(field, value):
    return varint(field << 3) + varint(value)


def text(field, value):
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def parse(data):
    """The fields of a message: {number: [values]}."""
    fields, at = {}, 0

    def next_varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
            if byte < 0x80:
                return value

    while at < len(data):
        key = next_varint()
        if key & 7 == 0:
            value = next_varint()
        else:
            assert key & 7 == 2, f"wire type {key & 7}"
            size = next_varint()
            value, at = data[at : at + size], at + size
        fields.setdefault(key >> 3, []).append(value)
    return fields


def hello(token, *names, versions=(1, 1)):
    """A Hello as it goes onto the control stream."""
    message = number(1, versions[0]) + number(2, versions[1]) + text(3, token)
    message += b"".join(text(4, name) for name in names) + text(5, "peer/0")
    return prefixed(text(1, message))


def prefixed(message):
    return varint(len(message)) + message


def frame(kind, payload=b"", length=None):
    """A frame; its length need not be true."""
    buffer = Buffer(capacity=16)
    buffer.push_uint_var(kind)
    buffer.push_uint_var(len(payload) if length is None else length)
    return buffer.data + payload


def reply_head(status=200, fields=(), failure=0, message=""):
    pairs = b"".join(text(2, name) + text(2, value) for name, value in fields)
    head = number(1, status) + pairs
    return head + (number(3, failure) if failure else b"") + (text(4, message) if message else b"")


def whole_reply(body=b"hello", **head):
    return frame(HEAD, reply_head(**head)) + frame(DATA, body) + frame(END)


# ── a peer ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Peer(QuicConnectionProtocol):
    """A QUIC connection to the relay; `on_stream(stream, data, ended)` sees what comes on the relay's streams.

    `streams` is how many of those it allows, `window` and `control_window` how many bytes on them and on its own.
    """

    def __init__(self, quic, *args, streams=128, window=MIB, control_window=MIB, **more):
        quic._local_max_streams_bidi.value = streams
        quic._local_max_stream_data_bidi_remote = window
        quic._local_max_stream_data_bidi_local = control_window
        super().__init__(quic, *args, **more)
        self.control, self.ended, self.on_stream = bytearray(), asyncio.Event(), None
        self.reason, self.changed = None, asyncio.Event()

    def quic_event_received(self, event):
        if isinstance(event, ConnectionTerminated):
            self.reason = event
            self.ended.set()
        elif isinstance(event, StreamDataReceived) and event.stream_id == 0:
            self.control += event.data
        elif isinstance(event, StreamDataReceived) and self.on_stream:
            self.on_stream(event.stream_id, event.data, event.end_stream)
        elif isinstance(event, StreamReset) and self.on_stream:
            self.on_stream(event.stream_id, b"", True)
        self.changed.set()

    def write(self, stream, data, end=False):
        self._quic.send_stream_data(stream, data, end)
        self.transmit()

    def reset(self, stream, code=0):
        self._quic.reset_stream(stream, code)
        self.transmit()

    async def message(self, seconds=5.0):
        """The next message on the control stream, as {field: [values]}; None when the connection ends first."""
        async with asyncio.timeout(seconds):
            while True:
                if self.control:
                    size = shift = used = 0
                    for used, byte in enumerate(self.control, 1):
                        size, shift = size | (byte & 0x7F) << shift, shift + 7
                        if byte < 0x80:
                            break
                    if self.control[used - 1] < 0x80 and len(self.control) >= used + size:
                        message = bytes(self.control[used : used + size])
                        del self.control[: used + size]
                        return parse(message)
                if self.ended.is_set():
                    return None
                self.changed.clear()
                await self.changed.wait()

    async def closes(self, seconds):
        """Whether the relay ends the connection within `seconds`, for a reason other than silence."""
        try:
            async with asyncio.timeout(seconds):
                await self.ended.wait()
        except TimeoutError:
            return False
        return True


def configuration(world, alpn=ALPN, **options):
    config = QuicConfiguration(is_client=True, alpn_protocols=[alpn], server_name=DOMAIN, idle_timeout=30.0, **options)
    config.load_verify_locations(world.relay.ca)
    return config


def peer(world, alpn=ALPN, **grants):
    """An `async with`: a connection whose handshake is done."""
    make = functools.partial(Peer, **grants)
    return connect(*world.relay.https, configuration=configuration(world, alpn), create_protocol=make)


async def let_in(client, token, *names):
    """Say hello and be welcomed; the names that are served from now on."""
    client.write(0, hello(token, *names))
    message = await client.message()
    assert message and 1 in message, f"not welcomed: {message}"
    return [parse(endpoint)[1][0].decode() for endpoint in parse(message[1][0]).get(3, [])]


class Good:
    """A client and a sender that must not notice anything."""

    def __init__(self, world):
        self.world, self.app = world, world.app()
        self.client = world.client(self.app)

    def served(self):
        reply = self.world.post("/good", b"still here")
        return reply.status == 200 and reply.json()["length"] == 10

    def check(self):
        assert self.served()
        assert self.world.relay.running
        assert not self.client.find("session", lambda event: event["state"] == "down")
        status, metrics = self.world.relay.get("/metrics")
        assert status == 200 and metrics


class Growth:
    """`with Growth(program, MIB)`: its resident memory grows by no more."""

    def __init__(self, program, most):
        self.program, self.most = program, most

    def __enter__(self):
        self.before = self.program.rss()

    def __exit__(self, failed, *_):
        if not failed:
            grown = self.program.rss() - self.before
            assert grown < self.most, f"{self.program.title} grew by {grown / MIB:.0f} MiB"


@pytest.fixture(scope="module")
def good():
    with World("--handshake-timeout", "2s", "--max-handshakes", "64") as world:
        yield Good(world)


# ── datagrams ─────────────────────────────────────────────────────────────────────────────────────────────────────


def initial(world):
    """The datagrams of a true first flight, each padded to 1200 bytes."""
    connection = QuicConnection(configuration=configuration(world))
    connection.connect(world.relay.https, now=time.time())
    return [data for data, _ in connection.datagrams_to_send(now=time.time())]


def drain(sender, seconds):
    """The bytes that come until nothing has come for `seconds`."""
    received = 0
    sender.settimeout(seconds)
    with contextlib.suppress(TimeoutError):
        while True:
            received += len(sender.recv(65536))
    return received


# RFC 9000 §8.1 says 3; see `test_no_amplification_by_retransmissions` for the rest.
MOST_FOR_ONE = 3.5


def udp(world):
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect(world.relay.https)
    return sender


def test_garbage_datagrams(good):
    chance = random.Random(9000)
    with Growth(good.world.relay, 64 * MIB), udp(good.world) as sender:
        for number_ in range(200_000 if LONG else 20_000):
            size = chance.choice((0, 1, 2, 7, 20, 21, 60, 1199, 1200, 1201, 1452, 8000))
            data = bytearray(chance.randbytes(size))
            if size > 6 and chance.random() < 0.5:
                data[:5] = b"\xc0\x00\x00\x00\x01"  # a long header of version 1
            with contextlib.suppress(ConnectionError):
                sender.send(data)
            if number_ % 5_000 == 0:
                assert good.served()
    good.check()


def test_cut_and_bent_first_packets(good):
    """A true Initial, cut at every length and with single bits turned: never an answer larger than allowed, no harm."""
    [first, *_] = initial(good.world)
    chance = random.Random(9001)
    packets = [first[:size] for size in range(0, len(first), 1 if LONG else 8)]
    for _ in range(5_000 if LONG else 500):
        bent = bytearray(first)
        for _ in range(chance.randint(1, 4)):
            bent[chance.randrange(60)] ^= 1 << chance.randrange(8)
        packets.append(bytes(bent))
    answered = 0
    packets.append(first)
    for at in range(0, len(packets), 50):
        with contextlib.ExitStack() as stack:
            senders = [(stack.enter_context(udp(good.world)), packet) for packet in packets[at : at + 50]]
            for sender, packet in senders:
                sender.send(packet)
            seconds = 0.2
            for sender, packet in senders:
                received = drain(sender, seconds)
                seconds = 0.001
                answered += received > 0
                assert received <= MOST_FOR_ONE * len(packet), f"{received} bytes out for {len(packet)} in"
    assert answered, "not even the true one was answered"
    good.check()


@pytest.mark.parametrize("flight", ["true", "small", "unknown-version", "short-header", "handshake-type", "retry-type", "zero-rtt-type"])
def test_no_amplification_before_the_address_is_proven(good, flight):
    """At most three bytes out for each byte in (RFC 9000 §8.1); nothing for what is no first packet."""
    senders = []
    for _ in range(8):
        data = initial(good.world)
        match flight:
            case "small":
                data = [data[0][:1100]]
            case "unknown-version":
                data = [b"\xc0\x1a\x2a\x3a\x4a" + data[0][5:]]
            case "short-header":
                data = [b"\x40" + data[0][1:]]
            case "handshake-type":
                data = [bytes([data[0][0] & 0xCF | 0x20]) + data[0][1:]]
            case "retry-type":
                data = [bytes([data[0][0] | 0x30]) + data[0][1:]]
            case "zero-rtt-type":
                data = [bytes([data[0][0] & 0xCF | 0x10]) + data[0][1:]]
        sender = udp(good.world)
        senders.append((sender, sum(sender.send(datagram) for datagram in data)))
    seconds = 0.3
    for sender, sent in senders:
        with sender:
            received = drain(sender, seconds)
        seconds = 0.02
        assert received <= 3 * sent, f"{received} bytes out for {sent} in"
        if flight in ("small", "short-header"):
            assert received <= sent
    good.check()


@pytest.mark.xfail(reason="quinn-proto sends both probes of its first timeout whole: 4109 bytes for 1200", strict=True)
def test_no_amplification_by_retransmissions(good):
    """The same for what is sent again after a second without an answer."""
    with udp(good.world) as sender:
        sent = sum(sender.send(datagram) for datagram in initial(good.world))
        assert drain(sender, 2.5) <= 3 * sent


def test_half_handshakes(good):
    """Thousands of first packets without a second: the next true client is let in, memory stays."""
    count = 20_000 if LONG else 2_000
    with Growth(good.world.relay, 64 * MIB), contextlib.ExitStack() as senders:
        sockets = [senders.enter_context(udp(good.world)) for _ in range(16)]
        for number_ in range(count):
            for data in initial(good.world):
                with contextlib.suppress(ConnectionError):
                    sockets[number_ % len(sockets)].send(data)
            if number_ % 500 == 0:
                assert good.served()
        app = good.world.app(name="late")
        good.world.client(app, name="late")
        assert good.world.get("/after", name="late").json()["app"] == "late"
    good.check()


# ── handshakes that lead nowhere ──────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_alpn_is_refused(good):
    async def attempt(alpn):
        async with asyncio.timeout(5), peer(good.world, alpn=alpn):
            pass

    for alpn in ("h3", "hookway/0", "hookway/11", "http/1.1"):
        with pytest.raises(ConnectionError):
            asyncio.run(attempt(alpn))
    good.check()


def test_a_silent_client_is_closed(good):
    """The handshake done and nothing said: closed within the handshake's time (2 s) and 2 s."""

    async def attempt():
        async with peer(good.world) as client:
            await client.ping()
            started = time.monotonic()
            assert await client.closes(8)
            return time.monotonic() - started

    assert asyncio.run(attempt()) <= 4.0
    good.check()


def test_a_hello_a_byte_at_a_time_is_cut_off(good):
    async def attempt():
        async with peer(good.world) as client:
            started = time.monotonic()
            for byte in hello("hwt_wrong", "slow") * 10:
                client.write(0, bytes([byte]))
                if await client.closes(0.3):
                    return time.monotonic() - started
        return None

    took = asyncio.run(attempt())
    assert took is not None and took <= 4.5
    good.check()


FIRST_MESSAGES = {
    "nothing-but-fin": (b"", True),
    "length-endless": (b"\xff" * 64, False),
    "length-2-gib": (varint(1 << 31) + b"x" * 100, False),
    "length-max": (varint((1 << 64) - 1), False),
    "length-65-kib": (varint(66_000) + b"x" * 66_000, False),
    "garbage": (bytes(range(256)) * 40, False),
    "http": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", False),
    "empty-message": (prefixed(b""), False),
    "ping-first": (prefixed(text(2, number(1, 7))), False),
    "unknown-message": (prefixed(text(15, b"what")), False),
    "not-utf8": (prefixed(text(1, text(3, b"\xff\xfe"))), False),
    "group-wire-type": (prefixed(b"\x0b" * 50), False),
    "cut-field": (prefixed(b"\x0a\x7f"), False),
    "cut-and-fin": (hello("hwt_x", "a")[:-3], True),
    "no-token": (hello("", "a"), False),
    "long-token": (hello("hwt_" + "A" * 60_000, "a"), False),
    "nul-token": (hello("hwt_\0", "a"), False),
    "future-version": (hello("hwt_x", "a", versions=(99, 200)), False),
    "upside-down-versions": (hello("hwt_x", "a", versions=(5, 1)), False),
    "ten-thousand-names": (hello("hwt_x", *["n"] * 10_000), False),
    "deep-nesting": (prefixed(text(1, text(1, text(1, text(1, b"\x0a" * 1000))))), False),
}


@pytest.mark.parametrize("name", FIRST_MESSAGES)
def test_a_first_message_that_is_none(good, name):
    """Refused or closed within the handshake's time; never a session."""
    data, end = FIRST_MESSAGES[name]

    async def attempt():
        async with peer(good.world) as client:
            client.write(0, data, end)
            message = None
            with contextlib.suppress(TimeoutError):
                message = await client.message(4)
            assert not message or 2 in message, f"welcomed: {message}"
            assert await client.closes(5)

    asyncio.run(attempt())
    good.check()


def test_streams_that_a_client_may_not_open(good):
    """One bidirectional stream is allowed and no other: a client that ignores that is cut off."""

    async def attempt(stream, data):
        async with peer(good.world) as client:
            client._quic._streams_blocked_bidi.clear()
            client._quic._remote_max_streams_bidi = client._quic._remote_max_streams_uni = 1 << 20
            client._quic._remote_max_stream_data_bidi_remote = client._quic._remote_max_stream_data_uni = 1 << 20
            client.write(stream, data)
            return await client.closes(5)

    assert asyncio.run(attempt(4, b"x" * 100))
    assert asyncio.run(attempt(2, b"x" * 100))
    assert asyncio.run(attempt(400_000, b"x"))
    good.check()


def test_more_data_than_the_window_allows(good):
    """A client that ignores flow control is cut off, and what it sent is not kept."""

    async def attempt():
        async with peer(good.world) as client:
            client._quic._remote_max_data = 1 << 40
            client._quic._remote_max_stream_data_bidi_remote = 1 << 40
            client.write(0, varint(60_000))
            stream = client._quic._get_or_create_stream_for_send(0)
            stream.max_stream_data_remote = 1 << 40
            for _ in range(64):
                client.write(0, b"x" * MIB)
                if await client.closes(0.05):
                    break
            return await client.closes(6)

    with Growth(good.world.relay, 64 * MIB):
        assert asyncio.run(attempt())
    good.check()


def test_no_early_data_is_offered(good):
    """A client of the QUIC listener gets no session ticket at all, and there is no 0-RTT without one (threat 13)."""
    tickets = []

    async def attempt():
        config = configuration(good.world)
        async with connect(*good.world.relay.https, configuration=config, create_protocol=Peer, session_ticket_handler=tickets.append) as client:
            await let_in(client, good.world.default_token, "early")
            client.write(0, prefixed(text(2, number(1, 7))))
            assert 3 in await client.message()

    asyncio.run(attempt())
    assert tickets == []
    good.check()


# ── a hostile client with a good token ────────────────────────────────────────────────────────────────────────────

REPLIES = {
    "head-too-long": frame(HEAD, b"\0" * 65_537),
    "head-claims-1-gib": frame(HEAD, b"\x08", length=1 << 30),
    "head-claims-most": frame(HEAD, b"", length=(1 << 62) - 1),
    "head-garbage": frame(HEAD, bytes(range(255, 0, -1))),
    "head-empty": frame(HEAD) + frame(END),
    "head-twice": frame(HEAD, reply_head()) + frame(HEAD, reply_head()) + frame(END),
    "data-first": frame(DATA, b"hello") + frame(END),
    "trailers-first": frame(TRAILERS, b"") + frame(END),
    "end-first": frame(END),
    "end-with-payload": frame(HEAD, reply_head()) + frame(END, b"x"),
    "data-after-trailers": frame(HEAD, reply_head()) + frame(TRAILERS) + frame(DATA, b"x") + frame(END),
    "trailers-garbage": frame(HEAD, reply_head()) + frame(TRAILERS, b"\xff" * 50) + frame(END),
    "trailers-too-long": frame(HEAD, reply_head()) + frame(TRAILERS, b"\0" * 70_000) + frame(END),
    "trailers-crlf": frame(HEAD, reply_head()) + frame(TRAILERS, text(1, "x-a") + text(1, "b\r\nX-Evil: 1")) + frame(END),
    "status-0": whole_reply(status=0),
    "status-99": whole_reply(status=99),
    "status-100": whole_reply(status=100),
    "status-101-unasked": whole_reply(status=101),
    "status-103": whole_reply(status=103),
    "status-1000": whole_reply(status=1000),
    "status-65736": whole_reply(status=65_736),
    "status-huge": whole_reply(status=(1 << 32) + 200),
    "failure-unknown": frame(HEAD, reply_head(status=0, failure=77)) + frame(END),
    "failure-message-crlf": frame(HEAD, reply_head(status=0, failure=3, message="a\r\nX-Evil: 1")) + frame(END),
    "field-value-crlf": whole_reply(fields=[("x-a", "b\r\nX-Evil: 1")]),
    "field-value-nul": whole_reply(fields=[("x-a", b"b\0")]),
    "field-name-crlf": whole_reply(fields=[("x-a\r\nX-Evil", "1")]),
    "field-name-space": whole_reply(fields=[("x evil", "1")]),
    "field-name-empty": whole_reply(fields=[("", "1")]),
    "field-without-value": frame(HEAD, reply_head() + text(2, "x-a")) + frame(END),
    "field-te": whole_reply(fields=[("transfer-encoding", "chunked")]),
    "field-te-gzip": whole_reply(fields=[("transfer-encoding", "gzip, chunked")]),
    "field-cl-short": whole_reply(fields=[("content-length", "3")]),
    "field-cl-long": whole_reply(fields=[("content-length", "50")]),
    "field-cl-twice": whole_reply(fields=[("content-length", "5"), ("content-length", "6")]),
    "field-cl-garbage": whole_reply(fields=[("content-length", "x")]),
    "field-cl-and-te": whole_reply(fields=[("content-length", "5"), ("transfer-encoding", "chunked")]),
    "field-connection": whole_reply(fields=[("connection", "upgrade"), ("upgrade", "h2c")]),
    "fin-without-end": frame(HEAD, reply_head()) + frame(DATA, b"hello"),
    "fin-in-data": frame(HEAD, reply_head()) + frame(DATA, b"hel", length=5),
    "fin-in-head": frame(HEAD, reply_head())[:-1],
    "data-claims-most": frame(HEAD, reply_head()) + frame(DATA, b"hello", length=(1 << 62) - 1),
    "unknown-frames": frame(77, b"what") + whole_reply(),
    "unknown-claims-most": frame(77, b"what", length=(1 << 62) - 1),
    "more-after-end": whole_reply() + whole_reply(b"smuggled"),
    "garbage-after-end": whole_reply() + b"\xff" * 100,
}  # fmt: skip
# What is odd about these is skipped or left out, and the sender gets "hello". No other ends as a whole 200.
ANSWERED_WHOLE = {
    "unknown-frames", "more-after-end", "garbage-after-end", "field-connection", "field-te", "field-te-gzip", "field-cl-twice", "field-cl-garbage",
    "field-cl-and-te",
}  # fmt: skip


class Hostile:
    """A client of its own, let in, that writes `reply` to every exchange; in a thread beside the test."""

    def __init__(self, world, name, token, **grants):
        self.world, self.name, self.token, self.grants = world, name, token, grants
        self.reply, self.end, self.error = b"", True, None
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10) and not self.error, self.error
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _run(self):
        self._stop = asyncio.Event()
        try:
            async with peer(self.world, **self.grants) as client:
                await let_in(client, self.token, self.name)
                answered = set()

                def on_stream(stream, data, _ended):
                    if stream not in answered and data:
                        answered.add(stream)
                        client.write(stream, self.reply, self.end)

                client.on_stream = on_stream
                self.client = client
                self._ready.set()
                await self._stop.wait()
        except Exception as error:  # noqa: BLE001  whatever it was, the test wants to hear of it
            self.error = error
            self._ready.set()


def put_reply(world, hostile, name):
    """The sender gets a clean answer or a connection that ends uncleanly, never somebody's injected bytes."""
    hostile.reply = REPLIES[name]
    with world.wire("hostile", timeout=8) as wire:
        wire.send(request("GET", "/x", host=f"hostile.{DOMAIN}"))
        try:
            reply = wire.reply()
        except Closed as cut:
            reply = None
            assert not cut.args[0], f"half an answer: {cut}"
    assert (reply is not None and reply.status == 200 and reply.complete) == (name in ANSWERED_WHOLE), reply
    if reply is not None:
        assert reply.header("x-evil") is None
        assert reply.header("upgrade") is None and 200 <= reply.status < 600
        assert b"smuggled" not in reply.body
        assert reply.body == b"hello" or name not in ANSWERED_WHOLE, reply


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_that_is_none(good, name):
    with Hostile(good.world, "hostile", good.world.default_token) as hostile:
        put_reply(good.world, hostile, name)
    good.check()


def test_the_next_exchange_after_bytes_past_the_end_is_its_own(good):
    """What a client wrote after END is not taken for the reply to a later request."""
    world = good.world
    with Hostile(world, "hostile", world.default_token) as hostile:
        hostile.reply, hostile.end = whole_reply(b"mine") + whole_reply(b"planted"), False
        for _ in range(3):
            reply = world.get("/x", name="hostile")
            assert reply.status == 200 and reply.body == b"mine", reply
    good.check()


def test_control_messages_at_full_speed(good):
    """Pings without an end, none of whose answers is read: memory stays, the link may be closed."""

    async def attempt():
        async with peer(good.world) as client:
            await let_in(client, good.world.default_token, "pinger")
            pings = prefixed(text(2, number(1, 7))) * 5000
            until = time.monotonic() + (20 if LONG else 2)
            while time.monotonic() < until and not client.ended.is_set():
                client.write(0, pings)
                await asyncio.sleep(0)
                if len(client._quic._streams[0].sender._buffer) > 4 * MIB:
                    await asyncio.sleep(0.02)

    with Growth(good.world.relay, 64 * MIB):
        asyncio.run(attempt())
    good.check()


def test_garbage_on_the_control_stream_ends_the_session(good):
    async def attempt(data):
        async with peer(good.world) as client:
            await let_in(client, good.world.default_token, "garbled")
            client.write(0, data)
            return await client.closes(5)

    assert asyncio.run(attempt(b"\xff" * 64))
    assert asyncio.run(attempt(varint(1 << 30) + b"x" * 100))
    assert asyncio.run(attempt(prefixed(b"\x0a\x7f")))
    good.check()


def test_unknown_control_messages_are_skipped(good):
    """A newer client's messages do not end an older relay's session."""

    async def attempt():
        async with peer(good.world) as client:
            await let_in(client, good.world.default_token, "newer")
            client.write(0, prefixed(text(15, b"from the future")) + prefixed(text(2, number(1, 42))))
            return await client.message()

    assert asyncio.run(attempt())[3] == [number(1, 42)]
    good.check()


def test_clients_that_come_and_go(good):
    """Connections that end right after their Welcome, many times over: the last one serves."""
    world = good.world

    async def attempt():
        for _ in range(500 if LONG else 60):
            async with peer(world) as client:
                await let_in(client, world.default_token, "flapping")

    with Growth(world.relay, 64 * MIB):
        asyncio.run(attempt())
        world.client(world.app(name="steady"), name="flapping")
        eventually(lambda: world.get("/x", name="flapping").status == 200, what="the last client serving")
    good.check()


# ── clients that grant the relay nothing ──────────────────────────────────────────────────────────────────────────

HURRIED = ["--reply-timeout", "2s", "--max-concurrent", "1"]
BODIES = {
    "none": request("GET", "/x", host=f"stingy.{DOMAIN}"),
    "100-kb": request("POST", "/x", b"x" * 100_000, f"stingy.{DOMAIN}"),
    "2-mib": request("POST", "/x", b"x" * 2 * MIB, f"stingy.{DOMAIN}"),
    "chunked": request("POST", "/x", host=f"stingy.{DOMAIN}", headers=[("Transfer-Encoding", "chunked")]) + b"5\r\nhello\r\n0\r\n\r\n",
}


@pytest.fixture(scope="module")
def hurried():
    with World(*HURRIED) as world:
        yield world


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("grant", ["streams", "window"])
def test_a_client_that_grants_nothing_is_504(hurried, grant, body):
    """No streams, or streams that nothing may be sent on: the reply's time counts from the start."""
    with Hostile(hurried, "stingy", hurried.default_token, **{grant: 0}), hurried.wire("stingy") as wire:
        started = time.monotonic()
        wire.send(BODIES[body])
        reply = wire.reply()
        assert 1.5 < time.monotonic() - started < 5
        assert reply.status == 504, reply


@pytest.mark.parametrize("body", BODIES)
def test_a_delivery_that_a_client_does_not_take_holds_nothing_when_it_is_over(hurried, body):
    """No place among deliveries nor among connections, though the client stays as it is."""
    with Hostile(hurried, "stingy", hurried.default_token, window=0):
        with hurried.wire("stingy") as wire:
            wire.send(BODIES[body])
            assert wire.reply().status == 504
        for name in ("in_flight", "connections"):
            eventually(lambda name=name: not hurried.relay.metric(name), 5, f"nothing being counted by {name}")


def test_a_client_that_takes_no_welcome_is_closed(good):
    """Its control stream has no window: within the handshake's time it is gone, and another can serve the name."""
    world = good.world

    async def attempt():
        async with peer(world, control_window=0) as client:
            client.write(0, hello(world.default_token, "deaf"))
            started = time.monotonic()
            assert await client.closes(6)
            return time.monotonic() - started

    assert asyncio.run(attempt()) <= 5
    app = world.app(name="hears")
    world.client(app, name="deaf")
    assert world.get("/x", name="deaf").json()["app"] == "hears"
    good.check()


def test_an_endpoint_named_twice_is_served_once(good):
    world = good.world

    async def attempt():
        async with peer(world) as client:
            assert await let_in(client, world.default_token, "twice", "twice", "other", "twice") == ["twice", "other"]
            return await served_by(client, world, "twice")

    assert asyncio.run(attempt())
    good.check()


async def served_by(client, world, name):
    """Whether this client gets and answers what is sent to the endpoint."""
    client.on_stream = lambda stream, data, _ended: data and client.write(stream, whole_reply(b"by the peer"))
    reply = await asyncio.to_thread(world.get, "/x", name)
    return reply.status == 200 and reply.body == b"by the peer"


def test_many_endpoints_taken_over_at_once_are_all_told(good):
    """Forty messages for a client that is slow to read them, and no reason to hang up on it."""
    world, names = good.world, [f"many-{n}" for n in range(40)]

    async def attempt():
        async with peer(world) as first, peer(world) as second:
            assert await let_in(first, world.default_token, *names) == names
            assert await let_in(second, world.default_token, *names) == names
            told = [await first.message() for _ in names]
            assert sorted(parse(message[5][0])[1][0].decode() for message in told) == sorted(names)
            assert not await first.closes(1)
            assert await served_by(second, world, names[0]) and await served_by(second, world, names[-1])

    asyncio.run(attempt())
    good.check()


def test_forged_first_packets_do_not_keep_a_client_out(new_world):
    """Thirty of an address that may have eight handshakes, none of which goes on: its true client gets a Retry."""
    world = new_world("--max-handshakes-per-ip", "8", "--handshake-timeout", "20s")
    with contextlib.ExitStack() as stack:
        senders = [stack.enter_context(udp(world)) for _ in range(30)]
        for sender in senders:
            sender.settimeout(5)
            for datagram in initial(world):
                sender.send(datagram)
        retries = [sender.recv(65536)[0] & 0xF0 == 0xF0 for sender in senders]
        assert 20 <= sum(retries) < 30, retries
        started = time.monotonic()
        world.client(world.app())
        assert time.monotonic() - started < 5
        assert world.post("/x", b"x").status == 200
