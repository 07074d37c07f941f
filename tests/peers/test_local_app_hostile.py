"""A local app that is malicious or broken, and senders who aim at what stands beside it (threats 16, 19).

`ANSWERS` is the table: an id after the clause of RFC 9112 (or 9110), the raw bytes that the app answers, what the
sender may see:

    BAD     502 or 504 from Hookway, or a connection that ends uncleanly: never a whole answer
    GOOD    the answer, whole, with this status and body
    EITHER  one of the two

After each the next request is answered as itself: nothing of the bad answer is left over for it.
"""

import itertools
import socket
import struct
import threading
import time
from dataclasses import dataclass

import pytest
from test_h2_hostile import h2, request_fields
from test_quic_hostile import MIB, Growth

from world import DOMAIN, LONG, Closed, World, request

BAD, GOOD, EITHER = "bad", "good", "either"
TIMEOUT = 2  # of the client, in seconds


@dataclass
class Answer:
    id: str
    raw: object  # bytes, or a function that gives pieces, or one that takes the socket
    want: str
    status: int = 200
    body: bytes = b"hello"
    method: str = "GET"


OK = b"HTTP/1.1 200 OK\r\n"
CL5 = b"Content-Length: 5\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
HELLO = b"5\r\nhello\r\n0\r\n\r\n"
PLANTED = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted"


def rows(want, prefix, table, build=lambda value: value, **more):
    return [Answer(f"{prefix}-{name}", build(value), want, **more) for name, value in table.items()]


def coded(value):
    return OK + b"Transfer-Encoding: " + value + b"\r\n\r\n" + HELLO


def long(value):
    return OK + b"Content-Length: " + value + b"\r\n\r\nhello"


def chunks(data):
    return OK + CHUNKED + b"\r\n" + data


def fielded(line):
    return OK + line + b"\r\n" + CL5 + b"\r\nhello"


def line(first):
    return first + b"\r\n" + CL5 + b"\r\nhello"


def trailed(trailer):
    return chunks(b"5\r\nhello\r\n0\r\n" + trailer + b"\r\n\r\n")


def endless(start, piece, most=32 * MIB):
    """`start`, then `piece` again and again until the client has had enough, or `most` bytes."""

    def pieces():
        yield start
        for _ in range(most // len(piece)):
            yield piece

    return pieces


def dripping(start, piece, pause=0.2, seconds=15):
    def pieces():
        yield start
        for _ in range(int(seconds / pause)):
            yield piece
            time.sleep(pause)

    return pieces


def reset(connection):
    """Close with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset_in_body(connection):
    connection.sendall(OK + b"Content-Length: 500\r\n\r\nhello")
    reset(connection)


def silent(connection):
    """Say nothing until the client gives up."""
    connection.settimeout(15)
    connection.recv(1)


ANSWERS = [
    # ── 9112 §6.3: both framings ──
    *rows(EITHER, "9112-6.3-both", {
        "cl-te": OK + CL5 + CHUNKED + b"\r\n" + HELLO, "te-cl": OK + CHUNKED + CL5 + b"\r\n" + HELLO, "cl-short": OK + b"Content-Length: 2\r\n" + CHUNKED + b"\r\n" + HELLO,
        "cl-long": OK + b"Content-Length: 5000\r\n" + CHUNKED + b"\r\n" + HELLO, "cl-zero": OK + b"Content-Length: 0\r\n" + CHUNKED + b"\r\n" + HELLO,
        "cl-covers-planted": OK + b"Content-Length: 200\r\n" + CHUNKED + b"\r\n" + HELLO + PLANTED,
    }),
    # ── 9112 §6.1: Transfer-Encoding ──
    *rows(BAD, "9112-6.1-te", {
        "twice-in-list": b"chunked, chunked", "identity": b"identity", "gzip-chunked": b"gzip, chunked", "chunked-gzip": b"chunked, gzip", "gzip": b"gzip",
        "xchunked": b"xchunked", "empty": b"", "quoted": b'"chunked"', "trailing-comma": b"chunked,", "vertical-tab": b"\x0bchunked", "nul": b"chunked\0",
    }, coded),
    Answer("9112-6.1-te-upper", coded(b"CHUNKED"), EITHER),
    Answer("9112-6.1-te-two-lines", OK + CHUNKED + CHUNKED + b"\r\n" + HELLO, BAD),
    Answer("9112-6.1-te-space-colon", OK + b"Transfer-Encoding : chunked\r\n\r\n" + HELLO, BAD),
    Answer("9112-6.1-te-http10", b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n" + HELLO, BAD),
    # ── 9110 §8.6: Content-Length ──
    *rows(BAD, "9110-8.6-cl", {
        "plus": b"+5", "minus": b"-5", "hex": b"0x5", "empty": b"", "word": b"five", "float": b"5.0", "two-words": b"5 5", "overflow": b"18446744073709551621",
        "list-differs": b"5, 6", "semicolon": b"5;", "long": b"500", "very-long": b"9223372036854775807",
    }, long),
    *rows(EITHER, "9110-8.6-cl", {"list-same": b"5, 5", "leading-zero": b"05"}, long),
    Answer("9110-8.6-cl-twice-differ", OK + CL5 + b"Content-Length: 6\r\n\r\nhello!", BAD),
    Answer("9110-8.6-cl-twice-same", OK + CL5 + CL5 + b"\r\nhello", EITHER),
    Answer("9110-8.6-cl-space-colon", OK + b"Content-Length : 5\r\n\r\nhello", BAD),
    Answer("9110-8.6-cl-short-rest-planted", OK + CL5 + b"\r\nhello" + PLANTED, GOOD),
    Answer("9110-8.6-cl-rest-garbage", OK + CL5 + b"\r\nhello world and so on", GOOD),
    Answer("9112-6.3-no-framing", OK + b"Connection: close\r\n\r\nhello", GOOD),
    Answer("9112-6.3-http10", b"HTTP/1.0 200 OK\r\n\r\nhello", GOOD),
    # ── 9112 §7.1: chunks ──
    Answer("9112-7.1-extension", chunks(b"5;a=b\r\nhello\r\n0\r\n\r\n"), GOOD),
    Answer("9112-7.1-trailer", trailed(b"X-Sum: 1"), GOOD),
    Answer("9112-7.1-then-planted", chunks(HELLO) + PLANTED, GOOD),
    *rows(BAD, "9112-7.1-chunk", {
        "cut-in-data": b"5\r\nhel", "cut-in-size": b"5\r\nhello\r\n", "no-last": b"5\r\nhello\r\n", "not-hex": b"5\r\nhello\r\nxyz\r\n\r\n", "first-not-hex": b"g\r\nhello\r\n0\r\n\r\n",
        "minus": b"-5\r\nhello\r\n0\r\n\r\n", "plus": b"+5\r\nhello\r\n0\r\n\r\n", "hex-prefix": b"0x5\r\nhello\r\n0\r\n\r\n", "overflow": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        "no-crlf": b"5\r\nhello0\r\n\r\n", "data-short": b"6\r\nhello\r\n0\r\n\r\n", "data-long": b"4\r\nhello\r\n0\r\n\r\n", "bare-lf-size": b"5\nhello\r\n0\r\n\r\n",
        "extension-lf": b"5;a\nb\r\nhello\r\n0\r\n\r\n", "extension-64-kib": b"5;" + b"x" * 65536 + b"\r\nhello\r\n0\r\n\r\n", "empty-size": b"\r\nhello\r\n0\r\n\r\n",
        "max": b"ffffffffffffffff\r\nhello", "no-last-crlf": b"5\r\nhello\r\n0\r\n",
    }, chunks),
    *rows(BAD, "9112-7.1.2-trailer", {
        "nul": b"X: a\0", "no-colon": b"XY", "space-colon": b"X : y", "bare-cr": b"X: a\rSet-Cookie: b", "folded": b"X: a\r\n b", "128-kib": b"X: " + b"y" * 131072,
        "thousands": b"\r\n".join(b"X-%d: y" % n for n in range(5000)),
    }, trailed),
    *rows(EITHER, "9110-6.5.1-trailer", {
        "content-length": b"Content-Length: 50", "te": CHUNKED.strip(), "set-cookie": b"Set-Cookie: a=b", "connection": b"Connection: close",
    }, trailed),
    Answer("9112-7.1.2-trailer-endless", endless(chunks(b"5\r\nhello\r\n0\r\n"), b"X-A: b\r\n" * 1000), BAD),
    Answer("9112-7.1-chunk-one-byte-each", chunks(b"".join(b"1\r\n%c\r\n" % c for c in b"hello") + b"0\r\n\r\n"), GOOD),
    # ── 9112 §5: field lines ──
    *rows(BAD, "9112-5-field", {
        "nul": b"X: a\0b", "bare-cr": b"X: a\rSet-Cookie: b", "escape": b"X: \x1b[2J", "delete": b"X: \x7f", "name-space": b"X Y: z", "name-empty": b": z", "no-colon": b"XY",
        "space-colon": b"X : y", "name-nul": b"X\0: y", "name-high": b"X\xff: y", "name-paren": b"X(: y", "128-kib": b"X: " + b"y" * 131072,
        "thousands": b"\r\n".join(b"X-%d: y" % n for n in range(5000)), "leading-space": b" X: y", "vertical-tab": b"X: a\x0bb", "lf-word": b"X: a\nb",
    }, fielded),
    *rows(EITHER, "9112-5.2-field", {"folded": b"X: a\r\n b", "folded-tab": b"X: a\r\n\tb", "bare-lf": b"X: a\nY: b", "hundred": b"\r\n".join(b"X-%d: y" % n for n in range(100))}, fielded),
    *rows(GOOD, "9110-5.5-field", {"high": b"X: \xff\x80", "utf8": "X: grüße".encode(), "empty": b"X:", "eight-kib": b"X: " + b"y" * 8192, "same-name": b"Set-Cookie: a=1\r\nSet-Cookie: b=2"}, fielded),
    Answer("9112-5-head-endless", endless(OK, b"X-A: b\r\n" * 1000), BAD),
    Answer("9112-5-line-endless", endless(OK + b"X-A: ", b"y" * 8192), BAD),
    Answer("9112-5-all-lf", b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", EITHER),
    Answer("9112-5-head-cut", OK + b"Content-Le", BAD),
    Answer("9112-5-head-without-end", OK + CL5, BAD),
    # ── 9112 §4: the status line ──
    *rows(BAD, "9112-4-status", {
        "99": b"HTTP/1.1 99 x", "1000": b"HTTP/1.1 1000 x", "000": b"HTTP/1.1 000 x", "two-digits": b"HTTP/1.1 20 OK", "word": b"HTTP/1.1 abc OK", "minus": b"HTTP/1.1 -20 OK",
        "glued": b"HTTP/1.1 200OK", "space-inside": b"HTTP/1.1 2 00", "lower": b"http/1.1 200 OK", "2.0": b"HTTP/2.0 200 OK", "0.9": b"HTTP/0.9 200 OK", "no-version": b"200 OK",
        "two-spaces": b"HTTP/1.1  200 OK", "other": b"ICY 200 OK", "reason-nul": b"HTTP/1.1 200 O\0K", "reason-cr": b"HTTP/1.1 200 O\rX: y",
    }, line),
    *rows(EITHER, "9112-4-status", {
        "1.2": b"HTTP/1.2 200 OK", "reason-escape": b"HTTP/1.1 200 \x1b[2J", "reason-high": b"HTTP/1.1 200 \xff", "reason-64-kib": b"HTTP/1.1 200 " + b"x" * 65000,
    }, line),
    *rows(GOOD, "9112-4-status", {"no-reason": b"HTTP/1.1 200 ", "no-reason-space": b"HTTP/1.1 200", "utf8-reason": "HTTP/1.1 200 gut gemacht ü".encode()}, line),
    Answer("9112-4-status-600", line(b"HTTP/1.1 600 x"), EITHER, 600),
    Answer("9112-4-status-999", line(b"HTTP/1.1 999 x"), EITHER, 999),
    Answer("9112-4-line-endless", endless(b"HTTP/1.1 200 ", b"x" * 8192), BAD),
    Answer("9112-2.2-leading-lines", b"\r\n\r\n" + line(b"HTTP/1.1 200 OK"), EITHER),
    Answer("9112-2.2-leading-endless", endless(b"", b"\r\n" * 4096), BAD),
    # ── no HTTP at all ──
    *rows(BAD, "no-http", {
        "nothing": b"", "one-byte": b"H", "http-0.9": b"<html>hello</html>", "garbage": bytes(range(256)) * 20, "tls": b"\x15\x03\x01\x00\x02\x02\x46", "ssh": b"SSH-2.0-OpenSSH_9\r\n",
        "h2-settings": b"\0\0\0\4\0\0\0\0\0", "nul": b"\0" * 1000, "request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "line-only": OK,
    }),
    Answer("no-http-reset", reset, BAD),
    Answer("no-http-endless-nul", endless(b"", b"\0" * 8192), BAD),
    # ── 9110 §15.2: interim answers ──
    Answer("9110-15.2-continue-first", b"HTTP/1.1 100 Continue\r\n\r\n" + line(b"HTTP/1.1 200 OK"), GOOD),
    Answer("9110-15.2-early-hints", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + line(b"HTTP/1.1 200 OK"), GOOD),
    Answer("9110-15.2-fifty", b"HTTP/1.1 102 Processing\r\n\r\n" * 50 + line(b"HTTP/1.1 200 OK"), EITHER),
    Answer("9110-15.2-endless", endless(b"", b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" * 200), BAD),
    Answer("9110-15.2-alone", b"HTTP/1.1 100 Continue\r\n\r\n", BAD),
    Answer("9110-15.2.2-switching-unasked", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nhello", BAD),
    Answer("9110-15.2.2-switching-to-h2c", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", BAD),
    # ── 9110 §6.4: answers without a body ──
    Answer("9110-15.3.5-204-with-body", b"HTTP/1.1 204 No Content\r\n" + CL5 + b"\r\nhello", EITHER, 204, b""),
    Answer("9110-15.3.5-204-planted", b"HTTP/1.1 204 No Content\r\n\r\n" + PLANTED, GOOD, 204, b""),
    Answer("9110-15.3.5-204-chunked", b"HTTP/1.1 204 No Content\r\n" + CHUNKED + b"\r\n" + HELLO, EITHER, 204, b""),
    Answer("9110-15.4.5-304-with-length", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", GOOD, 304, b""),
    Answer("9110-9.3.2-head-with-body", line(b"HTTP/1.1 200 OK"), GOOD, 200, b"", "HEAD"),
    Answer("9110-9.3.2-head-chunked-body", chunks(HELLO), GOOD, 200, b"", "HEAD"),
    Answer("9110-15.3.6-205", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", GOOD, 205, b""),
    # ── 9112 §8: cut, late ──
    Answer("9112-8-body-cut", OK + b"Content-Length: 500\r\n\r\nhello", BAD),
    Answer("9112-8-large-body-cut", OK + b"Content-Length: 4000000\r\n\r\n" + b"x" * 2_000_000, BAD),
    Answer("9112-8-chunked-large-cut", chunks(b"100000\r\n" + b"x" * 0x100000 + b"\r\n") + b"100000\r\n" + b"x" * 100, BAD),
    Answer("9112-8-reset-in-body", reset_in_body, BAD),
    Answer("9112-9.5-silent", silent, BAD),
    Answer("9112-9.5-dripping-head", dripping(OK + b"X: ", b"y"), BAD),
    Answer("9112-9.5-dripping-lines", dripping(OK, b"X: y\r\n"), BAD),
    # ── what passes is what the app said ──
    *rows(GOOD, "9110-15.4-redirect", {
        "metadata": b"http://169.254.169.254/latest/meta-data/", "loopback": b"http://127.0.0.1:1/", "elsewhere": b"//evil.example/", "file": b"file:///etc/passwd", "self": b"/",
    }, lambda where: line(b"HTTP/1.1 302 Found\r\nLocation: " + where), status=302),
    *[Answer(f"9110-15.4-redirect-{status}", line(b"HTTP/1.1 %d x\r\nLocation: http://127.0.0.1:1/" % status), GOOD, status) for status in (301, 303, 307, 308)],
    Answer("9110-15.5.2-401", line(b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=x"), GOOD, 401),
    Answer("9110-15.5.8-407", line(b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x"), EITHER, 407),
    Answer("9110-15.6.1-500", line(b"HTTP/1.1 500 Internal Server Error"), GOOD, 500),
    Answer("9110-15.6.4-503", line(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7"), GOOD, 503),
    Answer("9110-7.6.1-hop-by-hop", fielded(b"Connection: x-secret, close\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nProxy-Connection: close"), GOOD),
    Answer("forged-reply-fields", fielded(b"Alt-Svc: h3=\":443\"\r\nServer: x\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT"), GOOD),
]  # fmt: skip

_canaries = itertools.count()


class Worlds:
    """A world whose app answers /ID with the bytes of that id, and anything else with an echo; a new one when it broke."""

    def __init__(self):
        self.answers = {f"/{answer.id}": answer for answer in ANSWERS}
        self.world = None
        self.taken = []  # what should have been refused long before its end

    def get(self):
        if self.world is None:
            self.world = World()
            app = self.world.bad_app = self.world.app()
            app.answer = lambda seen, connection: self.answer(app, seen, connection)
            self.world.bad_client = self.world.client(self.world.bad_app, "--timeout", f"{TIMEOUT}s")
        return self.world

    def answer(self, app, seen, connection):
        known = self.answers.get(seen.target)
        if known is None:
            return app.echo(seen)
        if isinstance(known.raw, bytes):
            connection.sendall(known.raw)
            # Bytes after the answer stand ready on a connection that would else be used again.
            return b"" if b"planted" in known.raw else None
        if known.raw in (reset, reset_in_body, silent):
            known.raw(connection)
            return None
        for piece in known.raw():
            connection.sendall(piece)
        self.taken.append(known.id)
        return None

    def close(self):
        if self.world:
            world, self.world = self.world, None
            world.close()

    def serves(self):
        try:
            return self.world.get("/still-there").status == 200
        except (Closed, OSError):
            return False


@pytest.fixture(scope="module")
def worlds():
    made = Worlds()
    yield made
    made.close()


@pytest.fixture
def hostile(worlds):
    yield worlds.get()
    if not worlds.serves():
        worlds.close()  # the test has failed; the next one starts afresh


def test_the_table_is_large_enough():
    assert len(ANSWERS) >= 60
    assert len({answer.id for answer in ANSWERS}) == len(ANSWERS)


@pytest.mark.parametrize("answer", [pytest.param(answer, id=answer.id) for answer in ANSWERS])
@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_answer(hostile, worlds, answer, protocol):
    seen = http1(hostile, answer) if protocol == "http/1.1" else http2(hostile, answer)
    check(answer, *seen)
    for _ in range(2):
        path = f"/canary-{next(_canaries)}"
        reply = hostile.get(path)
        assert reply.status == 200 and reply.json()["target"] == path, reply
    assert answer.id not in worlds.taken, "taken whole, without a limit"


def http1(world, answer):
    """(status, fields, body, whole); status 0 where the connection closed without an answer."""
    with world.wire(timeout=TIMEOUT + 13) as wire:
        try:
            reply = wire.ask(request(answer.method, f"/{answer.id}"))
        except Closed as cut:
            assert not cut.args[0], f"half a head: {cut.args[0][:200]}"
            return 0, [], b"", False
        return reply.status, [(name.lower(), value) for name, value in reply.headers], reply.body, reply.complete


def http2(world, answer):
    with h2(world) as sender:
        stream = sender.stream()
        sender.write(sender.headers(stream, request_fields(answer.method, f"/{answer.id}")))
        seen = sender.outcome(stream, TIMEOUT + 13)
        assert seen.error != "timeout"
        return seen.status, [field for field in seen.fields if not field[0].startswith(":")], seen.body, not seen.error


def check(answer, status, fields, body, whole):
    from_hookway = status in (502, 504) and any(name == "hookway-delivery" for name, _ in fields)
    bad = not whole or from_hookway
    if answer.want == BAD:
        assert bad, f"taken for whole: {status} {fields} {body[:200]}"
    if answer.want == GOOD:
        assert not bad, f"not passed: {status} {fields} {body[:200]}"
    if from_hookway:
        assert body.count(b"\n") <= 1 and b"\x1b" not in body
    elif whole:
        assert (status, body) == (answer.status, answer.body)
        names = {name for name, _ in fields}
        assert not names & {"x-secret", "keep-alive", "proxy-connection", "upgrade"}


def test_redirects_are_passed_back_and_never_followed(hostile):
    with hostile.wire() as wire:
        for name, where in {"metadata": "http://169.254.169.254/latest/meta-data/", "elsewhere": "//evil.example/"}.items():
            assert wire.ask(request("GET", f"/9110-15.4-redirect-{name}")).header("location") == where


def test_fields_keep_their_order_and_their_bytes(hostile):
    with hostile.wire() as wire:
        assert wire.ask(request("GET", "/9110-5.5-field-same-name")).all("set-cookie") == ["a=1", "b=2"]
        assert wire.ask(request("GET", "/9110-5.5-field-utf8")).header("x") == "grüße".encode().decode("latin-1")


def test_many_bad_answers_cost_no_memory(hostile):
    """All endless answers at once, again and again."""
    paths = [f"/{answer.id}" for answer in ANSWERS if "endless" in answer.id]
    client = hostile.bad_client

    def ask(path):
        with hostile.wire(timeout=30) as wire:
            try:
                wire.ask(request("GET", path))
            except Closed:
                pass

    with Growth(client, 64 * MIB), Growth(hostile.relay, 64 * MIB):
        for _ in range(10 if LONG else 2):
            threads = [threading.Thread(target=ask, args=(path,)) for path in paths]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()


def test_an_app_that_answers_on_an_idle_connection_is_not_believed(new_world):
    """An answer that nobody asked for, written after the last one, is not the answer to the next request."""
    world = new_world()
    app = world.app()
    written = threading.Event()

    def answer(seen, connection):
        connection.sendall(app.echo(seen))
        if seen.target == "/first":
            connection.sendall(PLANTED)
            written.set()
        return b""

    app.answer = answer
    world.client(app)
    assert world.get("/first").json()["target"] == "/first"
    assert written.wait(5)
    for number in range(5):
        assert world.get(f"/later-{number}").json()["target"] == f"/later-{number}"


# ── SSRF: what a sender can name, the client does not dial ────────────────────────────────────────────────────────


@dataclass
class Observed:
    world: World
    app: object
    observer: object


@pytest.fixture(scope="module")
def observed():
    with World() as world:
        app, observer = world.app(), world.app(name="observer")
        world.client(app)
        yield Observed(world, app, observer)


TARGETS = [
    "//{0}/", "///{0}/", "/{0}/", "@{0}/", "/@{0}/", "/x@{0}/", ":@{0}/", "\\\\{0}\\", "/\\{0}/", "/\\/{0}/", "http://{0}/", "https://{0}/", "HTTP://{0}/", "http:{0}/", "http:/{0}/",
    "//user@{0}/", "/..;/{0}/", "/..;@{0}/", "/../{0}/", "/%2f%2f{0}/", "/%5c{0}/", "/%40{0}/", "/.{0}/", "?@{0}/", "#@{0}/", ";@{0}/", "*@{0}/", "{0}", "{0}/", "//{0}\\@x/", "/\t//{0}/",
    "/?url=http://{0}/", "http://billing.hooks.test@{0}/", "http://{0}#@billing.hooks.test/", "http://{0}\\@billing.hooks.test/", "gopher://{0}/_x", "file://{0}/etc/passwd",
    "http://billing.hooks.test:80@{0}/", "//billing.hooks.test@{0}/",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_target_reaches_the_app_or_nobody(observed, target, protocol):
    observed.app.clear()
    target = target.format(observed.observer.address)
    if protocol == "h2":
        with h2(observed.world) as sender:
            status = sender.ask(request_fields("GET", target)).status
    else:
        with observed.world.wire() as wire:
            try:
                status = wire.ask(request("GET", target)).status
            except Closed:
                status = 0
    assert observed.observer.connections == 0
    if status == 200:
        [seen] = observed.app.seen
        assert seen.target == target or "#" in target
        assert seen.header("host") == f"billing.{DOMAIN}"


@pytest.mark.parametrize(
    "field",
    ["Host", "X-Forwarded-Host", "X-Original-URL", "X-Rewrite-URL", "X-Original-Host", "Forwarded", "Referer", "Origin", "Destination", "Location", "X-Target",
     "X-Forwarded-Server", "X-HTTP-DestinationURL", "Profile", "Via", "X-Hookway-Target", "Hookway-Target", "Proxy", "Max-Forwards", "True-Client-IP"],
)  # fmt: skip
def test_a_field_names_no_target(observed, field):
    address = observed.observer.address
    for value in (address, f"http://{address}/", f"//{address}/", f"host={address}"):
        if field == "Host":
            with observed.world.wire() as wire:
                try:
                    assert wire.ask(request("GET", "/x", host=value)).status in (400, 404, 421)
                except Closed:
                    pass
        else:
            assert observed.world.get("/x", headers=[(field, value)]).status in (200, 400)
    assert observed.observer.connections == 0


def test_connect_opens_nothing(observed):
    for target in (observed.observer.address, f"http://{observed.observer.address}/"):
        with observed.world.wire() as wire:
            try:
                assert 400 <= wire.ask(request("CONNECT", target)).status < 500
            except Closed:
                pass
    assert observed.observer.connections == 0


def test_a_redirect_of_the_app_to_the_observer_is_not_followed(observed):
    address = observed.observer.address
    echo = observed.app.answer
    observed.app.answer = lambda seen, _: line(b"HTTP/1.1 302 Found\r\nLocation: http://%s/" % address.encode()) + b""
    try:
        for status in range(3):
            reply = observed.world.post(f"/{status}", b"x")
            assert reply.status == 302 and reply.header("location") == f"http://{address}/"
    finally:
        observed.app.answer = echo
    assert observed.observer.connections == 0
