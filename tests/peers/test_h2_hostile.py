"""Hostile HTTP/2 towards the public port: frames and fields that a library would not send (threat 2).

`FIELDS` and `FRAMES` are the tables: an id after the clause of RFC 9113 (or 9110, 7541) and what is sent. A REFUSED
one ends in RST_STREAM, GOAWAY, a closed connection or a 4xx, and the app saw nothing. After each a canary is answered
as itself on a new connection, and on the same one where that is still open.
"""

import contextlib
import itertools
import struct
import time
from dataclasses import dataclass, field

import pytest
from hpack import Decoder, Encoder, HPACKError
from hyperframe.frame import (
    ContinuationFrame, DataFrame, GoAwayFrame, HeadersFrame, PingFrame, PriorityFrame, PushPromiseFrame, RstStreamFrame,
    SettingsFrame, WindowUpdateFrame,
)  # fmt: skip

from world import DEADLINE, DOMAIN, Closed

REFUSED, OK, EITHER = "refused", "ok", "either"
AUTHORITY = f"billing.{DOMAIN}"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass
class Outcome:
    """How a stream ended: `status` with `fields` and `body`, or `error`: the words RST_STREAM, GOAWAY, closed or timeout."""

    status: int = 0
    fields: list = field(default_factory=list)
    body: bytes = b""
    error: str = ""
    code: int = 0

    @property
    def refused(self):
        return 400 <= self.status < 500 or self.error in ("RST_STREAM", "GOAWAY", "closed")

    def header(self, name):
        return next((value for key, value in self.fields if key == name), None)


class Frames:
    """A sender's HTTP/2 connection without manners: what it is told to write it writes."""

    def __init__(self, wire, preface=PREFACE, settings=None):
        self.wire, self.encoder, self.decoder = wire, Encoder(), Decoder()
        self.decoder.max_header_list_size = 1 << 20
        self.goaway = None
        self._streams = itertools.count(1, 2)
        wire.send(preface)
        if preface == PREFACE:
            # Windows wide enough never to be thought of again.
            wide = {SettingsFrame.ENABLE_PUSH: 0, SettingsFrame.INITIAL_WINDOW_SIZE: 1 << 30}
            self.write(SettingsFrame(0, settings=settings or wide), WindowUpdateFrame(0, 1 << 30))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wire.close()

    def write(self, *frames):
        """Frames, or bytes as they are."""
        self.wire.send(b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames))

    def stream(self):
        """The next stream id of ours."""
        return next(self._streams)

    def block(self, fields):
        """A field block with nothing checked."""
        pairs = [tuple(part if isinstance(part, bytes) else part.encode("latin-1") for part in pair) for pair in fields]
        small = sum(len(value) for _, value in pairs) < 4096  # Huffman in Python is slow
        return self.encoder.encode(pairs, huffman=small)

    def headers(self, stream, fields, end=True, flags=("END_HEADERS",)):
        flags = [*flags, "END_STREAM"] if end else list(flags)
        return HeadersFrame(stream, data=self.block(fields), flags=flags)

    def fields(self, block):
        """The fields of an answer's block, as text."""
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.decoder.decode(block, raw=True)]

    def ask(self, fields, body=None, trailers=None):
        """One request and how it ended."""
        stream = self.stream()
        self.write(self.headers(stream, fields, end=body is None and trailers is None))
        if body is not None:
            self.write(DataFrame(stream, body, flags=[] if trailers else ["END_STREAM"]))
        if trailers is not None:
            self.write(self.headers(stream, trailers))
        return self.outcome(stream)

    def get(self, path, **pseudo):
        return self.ask(request_fields("GET", path, **pseudo))

    def frames(self, seconds):
        """The frames that come: (type, flags, stream, payload). Settings and pings are answered on the way."""
        end = time.monotonic() + seconds
        while True:
            self.wire.tls.settimeout(max(0.01, end - time.monotonic()))
            head = self.wire._exactly(9)
            size, kind, flags, stream = int.from_bytes(head[:3]), head[3], head[4], int.from_bytes(head[5:]) & 0x7FFF_FFFF
            payload = self.wire._exactly(size)
            if kind == SettingsFrame.type and not flags & 1:
                self.write(SettingsFrame(0, flags=["ACK"]))
            elif kind == PingFrame.type and not flags & 1:
                self.write(PingFrame(0, payload, flags=["ACK"]))
            elif kind == GoAwayFrame.type:
                self.goaway = int.from_bytes(payload[4:8])
            yield kind, flags, stream, payload

    def outcome(self, wanted, seconds=5.0):
        """How stream `wanted` ends; 0 waits for the end of the connection."""
        seen = Outcome()
        try:
            for kind, flags, stream, payload in self.frames(seconds):
                if kind == GoAwayFrame.type:
                    if self.goaway:
                        return Outcome(error="GOAWAY", code=self.goaway)
                elif kind == HeadersFrame.type:
                    fields = self.fields(payload)
                    if stream == wanted:
                        if not seen.status or 100 <= seen.status < 200:
                            seen.fields, seen.status = fields, int(dict(fields)[":status"])
                        if flags & 1:
                            return seen
                elif stream != wanted or not stream:
                    continue
                elif kind == RstStreamFrame.type:
                    code = int.from_bytes(payload)
                    return seen if seen.status >= 400 else Outcome(error="RST_STREAM", code=code)
                elif kind == DataFrame.type:
                    seen.body += payload
                    if flags & 1:
                        return seen
        except TimeoutError:
            return Outcome(error="timeout")
        except (Closed, OSError, HPACKError):
            return seen if seen.status >= 400 else Outcome(error="GOAWAY" if self.goaway else "closed", code=self.goaway or 0)


def request_fields(method="POST", path="/case", authority=AUTHORITY, scheme="https", more=()):
    return [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path), *more]


def h2_wire(world, name="billing", **options):
    return world.wire(name, alpn=("h2",), timeout=5, **options)


def h2(world, name="billing", **options):
    return Frames(h2_wire(world, name), **options)


@dataclass
class Case:
    id: str
    fields: list
    want: str = REFUSED
    body: bytes | None = b"hello"
    trailers: list | None = None


BASE = request_fields()


def plus(*more):
    return [*BASE, *more]


def instead(name, value):
    return [(key, value if key == name else old) for key, old in BASE]


def without(name):
    return [(key, value) for key, value in BASE if key != name]


def rows(prefix, build, table, want=REFUSED):
    return [Case(f"{prefix}-{name}", build(value), want) for name, value in table.items()]


FIELDS = [
    # ── 9113 §8.2.1: names and values ──
    *rows("9113-8.2.1-value", lambda value: plus(("x-evil", value)), {
        "lf": "a\nb", "cr": "a\rb", "crlf-field": "a\r\nx-injected: 1", "crlf-request": "a\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
        "nul": "a\0b", "nul-only": "\0", "lf-end": "a\n", "cr-start": "\ra", "soh": "\x01", "escape": "\x1b[2J", "bell": "a\x07", "delete": "a\x7f",
        "vertical-tab": "a\x0bb", "space-start": " a", "space-end": "a ", "tab-start": "\ta", "tab-end": "a\t", "space-only": " ",
    }),
    *rows("9113-8.2.1-value", lambda value: plus(("x-fine", value)), {
        "empty": "", "tab-inside": "a\tb", "high": "\x80\xff", "space-inside": "a b", "eight-kib": "y" * 8192,
    }, OK),
    *rows("9113-8.2.1-name", lambda name: plus((name, "a")), {
        "upper": "X-Evil", "one-upper": "x-eviL", "upper-cl": "Content-Length", "empty": "", "space": "x evil", "space-end": "x-evil ",
        "colon-inside": "x:evil", "colon-end": "x-evil:", "lf": "x\nevil", "crlf-field": "x: 1\r\ny", "nul": "x\0", "high": "x\xff", "paren": "x(",
        "slash": "x/y", "at": "x@", "tab": "x\t", "delete": "x\x7f", "quote": 'x"',
    }),
    # ── 9113 §8.2.2: fields of a connection ──
    *rows("9113-8.2.2", lambda pair: plus(pair), {
        "connection": ("connection", "close"), "connection-names": ("connection", "x-secret"), "keep-alive": ("keep-alive", "timeout=5"),
        "proxy-connection": ("proxy-connection", "keep-alive"), "te-chunked": ("transfer-encoding", "chunked"),
        "te-identity": ("transfer-encoding", "identity"), "te-empty": ("transfer-encoding", ""), "upgrade": ("upgrade", "websocket"),
        "te-gzip": ("te", "gzip"), "te-trailers-gzip": ("te", "trailers, gzip"), "te-upper": ("TE", "trailers"),
    }),
    Case("9113-8.2.2-te-trailers", plus(("te", "trailers")), OK),
    Case("9113-8.2.2-te-chunked-smuggle", plus(("transfer-encoding", "chunked"), ("content-length", "5"))),
    # ── 9113 §8.3: pseudo-header fields ──
    *[Case(f"9113-8.3.1-missing{name.replace(':', '-')}", without(name)) for name in (":method", ":scheme", ":path", ":authority")],
    *[Case(f"9113-8.3-twice{name.replace(':', '-')}", [(name, value), *BASE]) for name, value in BASE],
    *[Case(f"9113-8.3.1-empty{name.replace(':', '-')}", instead(name, "")) for name in (":method", ":scheme", ":path", ":authority")],
    *[Case(f"9113-8.3-after-regular{name.replace(':', '-')}", [*without(name), ("x-a", "b"), (name, value)]) for name, value in BASE],
    *rows("9113-8.3-pseudo", lambda pair: [pair, *BASE], {
        "unknown": (":evil", "1"), "status": (":status", "200"), "colon": (":", "1"), "protocol": (":protocol", "websocket"), "host": (":host", "x"),
        "upper": (":Path", "/x"), "space": (":path ", "/x"), "port": (":port", "443"),
    }),
    *rows("9113-8.3.1-path", lambda path: instead(":path", path), {
        "space": "/a b", "space-version": "/a HTTP/1.1", "request-line": "/a HTTP/1.1\r\nX: y", "lf": "/a\nb", "cr": "/a\rb", "nul": "/a\0b", "tab": "/a\tb",
        "no-slash": "case", "query-alone": "?a=b", "absolute": f"https://{AUTHORITY}/case", "foreign": "https://evil.example/", "star-post": "*",
        "at": "@evil.example", "backslash": "\\evil.example", "space-start": " /a", "space-end": "/a ", "escape": "/\x1b[2J", "delete": "/\x7f",
        "100-kib": "/" + "a" * 100_000,
    }),
    Case("9113-8.3.1-path-fragment", instead(":path", "/a#b"), EITHER),
    Case("9113-8.3.1-path-high", instead(":path", "/\xff"), EITHER),
    Case("9113-8.3.1-path-double-slash", instead(":path", "//evil.example/"), EITHER),
    *rows("9113-8.3.1-method", lambda method: instead(":method", method), {
        "space": "GET /smuggled", "crlf": "GET\r\nX: y", "nul": "G\0T", "paren": "(GET)", "colon": "GET:", "high": "G\xff", "tab": "GET\t", "slash": "GE/T",
    }),
    *rows("9113-8.3.1-scheme", lambda scheme: instead(":scheme", scheme), {
        "url": "https://evil.example/?", "crlf": "https\r\nX: y", "space": "https ", "nul": "https\0", "colon": "https:",
    }),
    *rows("9113-8.3.1-scheme", lambda scheme: instead(":scheme", scheme), {"http": "http", "upper": "HTTPS", "other": "gopher"}, EITHER),
    *rows("9113-8.3.1-authority", lambda authority: instead(":authority", authority), {
        "userinfo": f"user@{AUTHORITY}", "password": f"u:p@{AUTHORITY}", "as-userinfo": f"{AUTHORITY}@evil.example", "port-word": f"{AUTHORITY}:x",
        "port-big": f"{AUTHORITY}:70000", "port-minus": f"{AUTHORITY}:-1", "port-plus": f"{AUTHORITY}:+443", "port-twice": f"{AUTHORITY}:443:443",
        "space": f"{AUTHORITY} x", "space-end": f"{AUTHORITY} ", "list": f"{AUTHORITY},evil.example", "path": f"{AUTHORITY}/x", "query": f"{AUTHORITY}?x",
        "fragment": f"{AUTHORITY}#x", "backslash": f"{AUTHORITY}\\x", "crlf": f"{AUTHORITY}\r\nX: y", "nul": f"{AUTHORITY}\0", "scheme": f"https://{AUTHORITY}",
        "other": "other.hooks.test", "foreign": "evil.example", "wildcard": "*.hooks.test", "two-dots": "billing..hooks.test", "high": "b\xedlling.hooks.test",
    }),
    *rows("9113-8.3.1-authority", lambda authority: instead(":authority", authority), {
        "upper": AUTHORITY.upper(), "dot": f"{AUTHORITY}.", "port": f"{AUTHORITY}:443",
    }, OK),
    *rows("9113-8.3.1-host", lambda value: plus(("host", value)), {
        "disagrees": "other.hooks.test", "foreign": "evil.example", "empty": "", "userinfo": f"user@{AUTHORITY}", "list": f"{AUTHORITY}, evil.example",
    }),
    Case("9113-8.3.1-host-twice-differ", plus(("host", AUTHORITY), ("host", "evil.example"))),
    Case("9113-8.3.1-host-agrees", plus(("host", AUTHORITY)), EITHER),
    Case("9113-8.3.1-host-alone", [*without(":authority"), ("host", AUTHORITY)], EITHER),
    Case("9113-8.5-connect", [(":method", "CONNECT"), (":authority", f"{AUTHORITY}:443")]),
    Case("9113-8.5-connect-foreign", [(":method", "CONNECT"), (":authority", "evil.example:443")]),
    Case("9113-8.5-connect-path", instead(":method", "CONNECT")),
    Case("8441-4-extended-connect", [(":protocol", "websocket"), *instead(":method", "CONNECT")]),
    # ── 9113 §8.1.1, 9110 §8.6: Content-Length ──
    *rows("9113-8.1.1-length", lambda value: plus(("content-length", value)), {
        "short": "3", "long": "6", "zero": "0", "plus": "+5", "minus": "-5", "hex": "0x5", "empty": "", "word": "five", "float": "5.0", "list-differs": "5, 6",
        "overflow": "18446744073709551621", "nines": "9" * 30, "space": "5 5", "semicolon": "5;",
    }),
    Case("9113-8.1.1-length-right", plus(("content-length", "5")), OK),
    Case("9113-8.1.1-length-list-same", plus(("content-length", "5, 5")), EITHER),
    Case("9113-8.1.1-length-twice-same", plus(("content-length", "5"), ("content-length", "5")), EITHER),
    Case("9113-8.1.1-length-twice-differ", plus(("content-length", "5"), ("content-length", "6"))),
    Case("9113-8.1.1-length-twice-differ-first", plus(("content-length", "6"), ("content-length", "5"))),
    Case("9113-8.1.1-length-no-body", plus(("content-length", "5")), body=None),
    Case("9113-8.1.1-length-no-body-get", [*instead(":method", "GET"), ("content-length", "5")], body=None),
    Case("9113-8.1.1-length-with-trailers-short", plus(("content-length", "6")), trailers=[("x-sum", "1")]),
    # ── 9113 §8.1: trailers ──
    Case("9113-8.1-trailers", plus(("trailer", "x-sum")), OK, trailers=[("x-sum", "1")]),
    *[
        Case(f"9113-8.1-trailers-{name}", BASE, trailers=[pair])
        for name, pair in {
            "path": (":path", "/x"), "status": (":status", "200"), "method": (":method", "GET"), "authority": (":authority", "evil.example"),
            "unknown": (":evil", "1"), "upper": ("X-Sum", "1"), "nul": ("x-sum", "a\0"), "crlf": ("x-sum", "1\r\nX: y"), "space-name": ("x sum", "1"),
            "empty-name": ("", "1"), "connection": ("connection", "close"), "transfer-encoding": ("transfer-encoding", "chunked"),
        }.items()
    ],
    *[
        Case(f"9110-6.5.1-trailers-{name}", BASE, EITHER, trailers=[(name, "5")])
        for name in ("content-length", "host", "authorization", "x-forwarded-for", "hookway-delivery", "content-type", "te", "trailer", "cookie")
    ],
    # ── limits ──
    Case("9113-10.5.1-field-128-kib", plus(("x-big", "y" * 131072))),
    Case("9113-10.5.1-thousand-fields", plus(*((f"x-{n}", "y" * 100) for n in range(1000)))),
    Case("9113-8.2.3-cookie-crumbs", plus(("cookie", "a=1"), ("cookie", "b=2")), OK),
]  # fmt: skip


def head(size, kind, flags, stream, payload=b""):
    """A frame by its parts; the size need not be true."""
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def opened(h2):
    """A request whose end has not come: stream 1."""
    return h2.headers(h2.stream(), BASE, end=False)


DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)

# id: what to write, given the connection. All are refused: the stream reset, or the connection ended.
FRAMES = {
    "9113-5.1-data-on-idle": lambda h2: [DataFrame(1, b"hello", flags=["END_STREAM"])],
    "9113-5.1-rst-on-idle": lambda h2: [RstStreamFrame(1, 8)],
    "9113-5.1-window-on-idle": lambda h2: [WindowUpdateFrame(1, 1)],
    "9113-5.1.1-even-stream": lambda h2: [h2.headers(2, BASE)],
    "9113-5.1.1-headers-on-0": lambda h2: [head(len(b := h2.block(BASE)), HEADERS, 5, 0, b)],
    "9113-6.1-data-on-0": lambda h2: [head(5, DATA, 1, 0, b"hello")],
    "9113-5.1.1-lower-id": lambda h2: [h2.headers(5, BASE, end=False), h2.headers(3, BASE)],
    "9113-5.1.1-same-id": lambda h2: [h2.headers(1, BASE, end=False), h2.headers(1, BASE, end=False)],
    "9113-5.1-data-after-reset": lambda h2: [opened(h2), RstStreamFrame(1, 8), *[DataFrame(1, b"x" * 16384)] * 100],
    "9113-6.1-padding-longer-than-data": lambda h2: [opened(h2), head(6, DATA, 9, 1, b"\x06hello")],
    "9113-6.1-padding-without-length": lambda h2: [opened(h2), head(0, DATA, 9, 1)],
    "9113-6.1-padding-all": lambda h2: [opened(h2), head(2, DATA, 9, 1, b"\xff\0")],
    "9113-6.2-padding-too-long": lambda h2: [head(len(b := h2.block(BASE)) + 1, HEADERS, 0xD, 1, b"\xff" + b)],
    "9113-6.2-priority-cut": lambda h2: [head(3, HEADERS, 0x25, 1, b"\0\0\0")],
    "9113-4.2-frame-too-large": lambda h2: [opened(h2), head(0xFFFFFF, DATA, 1, 1, b"x" * 20000)],
    "9113-4.2-frame-one-too-large": lambda h2: [opened(h2), head(16385 + 16384, DATA, 1, 1, b"x" * (16385 + 16384))],
    "9113-4.2-headers-too-large": lambda h2: [head(0xFFFFF0, HEADERS, 5, 1, b"\0" * 20000)],
    "9113-6.3-priority-length": lambda h2: [opened(h2), head(4, PRIORITY, 0, 1, b"\0" * 4)],
    "9113-6.3-priority-on-0": lambda h2: [head(5, PRIORITY, 0, 0, b"\0" * 5)],
    "9113-6.4-rst-length": lambda h2: [opened(h2), head(3, RST, 0, 1, b"\0" * 3)],
    "9113-6.4-rst-on-0": lambda h2: [head(4, RST, 0, 0, b"\0" * 4)],
    "9113-6.5-settings-length": lambda h2: [head(5, SETTINGS, 0, 0, b"\0" * 5)],
    "9113-6.5-settings-on-stream": lambda h2: [head(6, SETTINGS, 0, 1, b"\0" * 6)],
    "9113-6.5-settings-ack-payload": lambda h2: [head(6, SETTINGS, 1, 0, b"\0" * 6)],
    "9113-6.5.2-enable-push": lambda h2: [head(6, SETTINGS, 0, 0, struct.pack(">HI", 2, 2))],
    "9113-6.5.2-window-overflow": lambda h2: [head(6, SETTINGS, 0, 0, struct.pack(">HI", 4, 0x8000_0000))],
    "9113-6.5.2-frame-size-small": lambda h2: [head(6, SETTINGS, 0, 0, struct.pack(">HI", 5, 1))],
    "9113-6.5.2-frame-size-large": lambda h2: [head(6, SETTINGS, 0, 0, struct.pack(">HI", 5, 0x0100_0000))],
    "9113-6.6-push-promise": lambda h2: [opened(h2), PushPromiseFrame(1, 2, data=h2.block(BASE), flags=["END_HEADERS"])],
    "9113-6.7-ping-length": lambda h2: [head(7, PING, 0, 0, b"\0" * 7)],
    "9113-6.7-ping-on-stream": lambda h2: [head(8, PING, 0, 1, b"\0" * 8)],
    "9113-6.8-goaway-on-stream": lambda h2: [head(8, GOAWAY, 0, 1, b"\0" * 8)],
    "9113-6.8-goaway-short": lambda h2: [head(7, GOAWAY, 0, 0, b"\0" * 7)],
    "9113-6.9-window-zero": lambda h2: [head(4, WINDOW, 0, 0, b"\0" * 4)],
    "9113-6.9-window-zero-stream": lambda h2: [opened(h2), head(4, WINDOW, 0, 1, b"\0" * 4)],
    "9113-6.9-window-length": lambda h2: [head(3, WINDOW, 0, 0, b"\0" * 3)],
    "9113-6.9.1-window-overflow": lambda h2: [WindowUpdateFrame(0, 0x7FFF_FFFF), WindowUpdateFrame(0, 0x7FFF_FFFF)],
    "9113-6.9.1-window-overflow-stream": lambda h2: [opened(h2), WindowUpdateFrame(1, 0x7FFF_FFFF), WindowUpdateFrame(1, 0x7FFF_FFFF)],
    "9113-6.9.1-data-over-window": lambda h2: [opened(h2), *[DataFrame(1, b"x" * 16384)] * 200],
    "9113-6.10-continuation-alone": lambda h2: [ContinuationFrame(1, h2.block(BASE), flags=["END_HEADERS"])],
    "9113-6.10-continuation-on-0": lambda h2: [ContinuationFrame(1, b"").serialize()[:5] + b"\0\0\0\0"],
    "9113-6.10-data-in-block": lambda h2: [h2.headers(1, BASE, end=False, flags=()), DataFrame(1, b"hello", flags=["END_STREAM"])],
    "9113-6.10-ping-in-block": lambda h2: [h2.headers(1, BASE, flags=()), PingFrame(0, b"\0" * 8)],
    "9113-6.10-other-stream-in-block": lambda h2: [h2.headers(1, BASE, flags=()), ContinuationFrame(3, b"", flags=["END_HEADERS"])],
    "9113-6.10-headers-in-block": lambda h2: [h2.headers(1, BASE, flags=()), h2.headers(3, BASE)],
    "9113-6.10-unknown-in-block": lambda h2: [h2.headers(1, BASE, flags=()), head(0, 0x77, 0, 1)],
    "9113-8.1-second-headers-no-end": lambda h2: [opened(h2), h2.headers(1, [("x-a", "b")], end=False)],
    "9113-8.1-two-trailers": lambda h2: [opened(h2), h2.headers(1, [("x-a", "b")], end=False), h2.headers(1, [("x-a", "b")])],
    "7541-2.3.3-index-0": lambda h2: [head(1, HEADERS, 5, 1, b"\x80")],
    "7541-2.3.3-index-beyond": lambda h2: [head(2, HEADERS, 5, 1, b"\xff\x7f")],
    "7541-5.1-integer-overflow": lambda h2: [head(12, HEADERS, 5, 1, b"\xff" * 11 + b"\x7f")],
    "7541-5.2-string-cut": lambda h2: [head(4, HEADERS, 5, 1, b"\x40\x7fab")],
    "7541-5.2-huffman-eos": lambda h2: [head(6, HEADERS, 5, 1, b"\x40\x84\xff\xff\xff\xff")],
    "7541-5.2-huffman-padding": lambda h2: [head(4, HEADERS, 5, 1, b"\x40\x81\x00\x00")],
    "7541-6.3-table-too-large": lambda h2: [head(len(b := b"\x3f\xff\xff\xff\x0f" + h2.block(BASE)), HEADERS, 5, 1, b)],
    "7541-4.2-table-update-late": lambda h2: [head(len(b := h2.block(BASE) + b"\x20"), HEADERS, 5, 1, b)],
    "7541-garbage": lambda h2: [head(64, HEADERS, 5, 1, bytes(range(64, 128)))],
    "9113-3.4-second-preface": lambda h2: [PREFACE],
    "9113-3.4-http1-inside": lambda h2: [b"GET /smuggled HTTP/1.1\r\nHost: billing.hooks.test\r\n\r\n"],
}

_canaries = itertools.count()


def check_nothing_came_through(shared, h2=None):
    """The app saw nothing, and both connections serve on, or the old one is closed."""
    assert [seen.raw for seen in shared.app.seen] == []
    if h2 is not None:
        path = f"/h2-canary-{next(_canaries)}"
        seen = h2.get(path)
        assert seen.error or b'"' + path.encode() + b'"' in seen.body, seen
    path = f"/h2-canary-{next(_canaries)}"
    with Frames(h2_wire(shared.world)) as fresh:
        assert b'"' + path.encode() + b'"' in fresh.get(path).body
    assert not shared.app.unclean


def test_the_tables_are_large_enough():
    assert len(FIELDS) + len(FRAMES) >= 60
    assert len({case.id for case in FIELDS}) == len(FIELDS)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in FIELDS])
def test_fields(shared, case):
    shared.app.clear()
    with h2(shared.world) as sender:
        seen = sender.ask(case.fields, case.body, case.trailers)
        if case.want == OK or case.want == EITHER and seen.status == 200:
            assert seen.status == 200, seen
            [arrived] = shared.app.seen
            assert arrived.body == (case.body or b"")
            forbidden = {"content-length", "host", "authorization", "x-forwarded-for", "hookway-delivery", "content-type", "te", "trailer", "cookie"}
            assert not {name.lower() for name, _ in arrived.trailers} & forbidden
            shared.app.clear()
        else:
            assert seen.refused, seen
        check_nothing_came_through(shared, sender)


@pytest.mark.parametrize("name", FRAMES)
def test_frames(shared, name):
    shared.app.clear()
    with h2(shared.world) as sender:
        sender.write(*FRAMES[name](sender))
        ended = ends(sender)
        assert ended, "neither the stream nor the connection was ended"
        check_nothing_came_through(shared)


def ends(sender, seconds=5.0):
    """RST_STREAM, a 4xx, GOAWAY with an error, or the end of the connection."""
    try:
        for kind, _flags, _stream, payload in sender.frames(seconds):
            if kind == RstStreamFrame.type or kind == GoAwayFrame.type and sender.goaway:
                return True
            if kind == HeadersFrame.type:
                status = dict(sender.fields(payload)).get(":status", "")
                if status.startswith("4"):
                    return True
    except TimeoutError:
        return False
    except (Closed, OSError):
        return True


@pytest.mark.parametrize("preface", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", b"\0" * 24, b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_wrong_preface_ends_the_connection(shared, preface):
    shared.app.clear()
    with Frames(h2_wire(shared.world), preface=preface) as sender:
        assert ends(sender, 15.0)
    check_nothing_came_through(shared)


def test_what_http2_lets_be_ignored_is_ignored(shared):
    """Frames of unknown types, unknown settings, padding, priorities and split blocks are no errors (9113 §4.1, §6.5.2)."""
    shared.app.clear()
    with h2(shared.world) as sender:
        block = sender.block(BASE)
        sender.write(
            head(4, 0x77, 0xFF, 0, b"what"),
            head(6, SETTINGS, 0, 0, struct.pack(">HI", 0x7777, 7)),
            PriorityFrame(7, depends_on=0, stream_weight=3),
            HeadersFrame(1, data=block[:5]),
            ContinuationFrame(1, block[5:9]),
            ContinuationFrame(1, block[9:], flags=["END_HEADERS"]),
            DataFrame(1, b"hel", pad_length=200, flags=["PADDED"]),
            head(0, 0x77, 0, 1),
            DataFrame(1, b"lo", flags=["END_STREAM"]),
        )
        assert sender.outcome(1).status == 200
    [arrived] = shared.app.seen
    assert arrived.body == b"hello"


def test_requests_side_by_side_keep_their_answers(shared):
    """Fifty streams whose bodies come interleaved, a byte at a time."""
    shared.app.clear()
    with h2(shared.world) as sender:
        streams = {sender.stream(): f"/side-{number}" for number in range(50)}
        for stream, path in streams.items():
            sender.write(sender.headers(stream, request_fields("POST", path), end=False))
        for at in range(8):
            for stream in streams:
                sender.write(DataFrame(stream, b"abcdefgh"[at : at + 1], flags=["END_STREAM"] if at == 7 else []))
        answers, ended = dict.fromkeys(streams, b""), set()
        with contextlib.closing(sender.frames(DEADLINE)) as frames:
            for kind, flags, stream, payload in frames:
                if kind == HeadersFrame.type:
                    assert dict(sender.fields(payload))[":status"] == "200"
                elif kind == DataFrame.type:
                    answers[stream] += payload
                if kind in (HeadersFrame.type, DataFrame.type) and flags & 1:
                    ended.add(stream)
                if len(ended) == len(streams):
                    break
    for stream, path in streams.items():
        assert f'"target": "{path}"'.encode() in answers[stream]
    assert all(seen.body == b"abcdefgh" for seen in shared.app.seen) and len(shared.app.seen) == 50
