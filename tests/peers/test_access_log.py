"""The access log: a line of JSON for each request, without a secret, whole through rotations; and the log in JSON."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
from datetime import datetime, timezone

import pytest
from hyperframe.frame import DataFrame, RstStreamFrame
from websockets.sync.client import connect

from test_admin_api import Api
from test_h2_hostile import h2, request_fields
from test_queue import offline
from test_queue_crashes import fill, small_disk  # noqa: F401  a fixture
from test_semantics import OK, GatedApp
from test_trusted_proxy import Peer
from test_websockets import EchoServer
from world import DOMAIN, HOOKWAY_RELAY, Relay, World, eventually, request, run, tls_context

MIB = 1 << 20
PROXY = "127.0.0.2"  # is believed when it names another
FIELDS = {
    "at": str,
    "id": str,
    "endpoint": (str, type(None)),
    "remote": str,
    "method": str,
    "host": str,
    "path": str,
    "http": str,
    "status": int,
    "reason": (str, type(None)),
    "request_bytes": (int, type(None)),
    "reply_bytes": int,
    "first_byte_ms": float,
    "duration_ms": float,
    "cut": bool,
}


# ── what the tests are made of ────────────────────────────────────────────────────────────────────────────────────


def now():
    return datetime.now(timezone.utc)


def parsed(line):
    """One line, which is as documented."""
    pairs = json.loads(line, object_pairs_hook=list)
    assert [name for name, _ in pairs] == list(FIELDS), line
    line = dict(pairs)
    for name, kind in FIELDS.items():
        assert isinstance(line[name], kind) and not (kind is int and isinstance(line[name], bool)), (name, line)
    assert re.fullmatch(r"req_[0-9A-HJKMNP-TV-Z]{26}", line["id"])
    assert 0 <= line["first_byte_ms"] <= line["duration_ms"]
    assert line["http"] in ("1.0", "1.1", "2")
    return line


class Logged:
    """A world with an access log."""

    def __init__(self, world, file):
        self.world, self.file = world, file

    def lines(self, *files):
        """All that was written, parsed: a text of whole lines of printable characters."""
        text = b"".join(file.read_bytes() for file in files or [self.file])
        whole, _, rest = text.rpartition(b"\n")
        assert files or not rest or self.world.relay.running, rest
        assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", whole)
        return [parsed(line) for line in whole.split(b"\n") if line]

    def of(self, name, count=1, seconds=10, **fields):
        """The lines of this host, waited for; `fields` hold for each."""
        host = f"{name}.{DOMAIN}"
        found = eventually(lambda: len(found := [line for line in self.lines() if line["host"] == host]) >= count and found, seconds, f"a line of {host}")
        assert len(found) == count, found
        for line in found:
            assert {key: line[key] for key in fields} == fields
        return found if count > 1 else found[0]

    def served(self, name, answer=None, flags=()):
        app = self.world.app(answer=answer) if answer else self.world.app()
        self.world.client(app, *flags, name=name)
        return app


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    file = tmp_path_factory.mktemp("log") / "access.log"
    with World("--access-log", file, "--max-body", "4MiB", "--write-timeout", "2s", "--trusted-proxy", PROXY) as world:
        yield Logged(world, file)


@pytest.fixture
def own(new_world, tmp_path):
    """`own(*flags)`: a relay of the test's own, with its access log."""
    return lambda *flags, file=tmp_path / "own.log": Logged(new_world("--access-log", file, *flags), file)


# ── a line ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("method", "body"), [("GET", None), ("POST", b"x" * 1234), ("DELETE", None), ("PROPFIND", b"")])
def test_an_answer_of_the_app(logged, name, method, body):
    app, before = logged.served(name), now()
    with logged.world.wire(name) as wire:
        reply = wire.ask(request(method, "/some/path", body, host=f"{name}.{DOMAIN}"))
    line = logged.of(name, endpoint=name, remote="127.0.0.1", method=method, path="/some/path", http="1.1", status=200, reason=None, cut=False)
    assert (line["request_bytes"], line["reply_bytes"]) == (len(body or b""), len(reply.body))
    assert before <= datetime.fromisoformat(line["at"]) <= now()
    assert line["id"] == app.seen[0].header("hookway-delivery")


@pytest.mark.parametrize("status", [204, 304, 404, 429, 500, 503, 202])
def test_what_an_app_answers_has_no_reason(logged, name, status):
    bare = status in (204, 304)
    logged.served(name, lambda *_: b"HTTP/1.1 %d X\r\n%s\r\n" % (status, b"" if bare else b"Content-Length: 3\r\n") + (b"" if bare else b"why"))
    assert logged.world.get("/", name).status == status
    logged.of(name, status=status, reason=None, reply_bytes=0 if bare else 3, cut=False)


def test_an_app_cannot_say_that_it_was_queued(logged, name):
    logged.served(name, lambda *_: b"HTTP/1.1 202 X\r\nHookway-Delivery: req_1\r\nContent-Length: 0\r\n\r\n")
    assert logged.world.get("/", name).status == 202
    logged.of(name, status=202, reason=None)


def test_an_answer_to_head_is_whole_without_a_body(logged, name):
    logged.served(name)
    with logged.world.wire(name) as wire:
        assert int(wire.ask(request("HEAD", "/", host=f"{name}.{DOMAIN}")).header("content-length")) > 0
    logged.of(name, method="HEAD", status=200, reply_bytes=0, cut=False)


@pytest.mark.parametrize("size", [1, 70_000, 3 * MIB])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_bytes_of_the_answer_are_those_of_its_body(logged, name, size, framing):
    head = b"Content-Length: %d" % size if framing == "length" else b"Transfer-Encoding: chunked"
    body = b"x" * size if framing == "length" else b"%x\r\n%s\r\n0\r\n\r\n" % (size, b"x" * size)
    logged.served(name, lambda *_: [b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % head, body])
    assert len(logged.world.get("/", name).body) == size
    logged.of(name, reply_bytes=size, cut=False)


def test_a_body_of_no_announced_length_is_none(logged, name):
    app = logged.served(name)
    with logged.world.wire(name) as wire:
        head = request("POST", "/", host=f"{name}.{DOMAIN}", headers=[("Transfer-Encoding", "chunked")])
        assert wire.ask(head + b"5\r\nhello\r\n0\r\n\r\n").status == 200
    assert app.seen[0].body == b"hello"
    logged.of(name, request_bytes=None, cut=False)


@pytest.mark.parametrize("end", ["closes", "does not read"])
def test_an_answer_that_its_sender_does_not_take_is_cut(logged, name, end):
    logged.served(name, lambda *_: [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (16 * MIB), *[b"x" * 65536] * 256])
    with logged.world.wire(name, receive_buffer=4096) as wire:
        wire.send(request("GET", "/", host=f"{name}.{DOMAIN}"))
        if end == "closes":
            assert wire.receive()
            wire.close()
        line = logged.of(name, status=200, reason=None, cut=True)
    assert line["reply_bytes"] < 16 * MIB
    assert end == "closes" or line["duration_ms"] > 1900


def test_an_answer_that_breaks_off_is_cut(logged, name):
    def half(_seen, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)

    logged.served(name, half)
    assert not logged.world.get("/", name).complete
    line = logged.of(name, status=200, reason=None, cut=True)
    assert line["reply_bytes"] <= 100_000


@pytest.mark.parametrize("protocol", ["1.1", "2"])
def test_a_sender_that_leaves_before_the_answer_leaves_a_line(logged, name, protocol):
    """The app gets the delivery nonetheless, and may have done something about it."""
    with GatedApp() as app, contextlib.ExitStack() as stack:
        logged.world.client(app, name=name)
        if protocol == "2":
            sender = stack.enter_context(h2(logged.world, name))
            stream = sender.stream()
            sender.write(sender.headers(stream, request_fields("GET", "/left", f"{name}.{DOMAIN}")))
            leave = lambda: sender.write(RstStreamFrame(stream, 8))  # noqa: E731
        else:
            wire = stack.enter_context(logged.world.wire(name))
            wire.send(request("POST", "/left", b"x", host=f"{name}.{DOMAIN}"))
            wire.tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            leave = wire.close
        eventually(lambda: app.seen, what="the delivery at the app")
        leave()
        eventually(lambda: not logged.world.relay.metric("in_flight"), what="the end of the request")
        app.gate.set()
        assert logged.world.get("/after", name).status == 200
        eventually(lambda: [line for line in logged.lines() if line["host"] == f"{name}.{DOMAIN}" and line["path"] == "/after"], 10, "the next line")
        assert [(line["path"], line["cut"]) for line in logged.of(name, 2, 1)] == [("/left", True), ("/after", False)]


def test_a_websocket_is_101(logged, name):
    echo = EchoServer()
    try:
        logged.world.client(echo.address, name=name)
        with connect(
            logged.world.url("/socket?secret=1", name).replace("https", "wss"), ssl=tls_context(logged.world.relay.ca), proxy=None, subprotocols=["echo"]
        ) as talk:
            talk.send("hello")
            assert talk.recv(10) == "hello"
        logged.of(name, status=101, reason=None, path="/socket", method="GET", cut=False, reply_bytes=0)
    finally:
        echo.server.shutdown()


def test_http2(logged, name):
    app, host = logged.served(name), f"{name}.{DOMAIN}"
    with h2(logged.world, name) as sender:
        replies = [sender.ask(request_fields("POST", f"/{number}?x=y", host, more=[("content-length", "3")]), b"abc") for number in range(3)]
        stream = sender.stream()
        sender.write(sender.headers(stream, request_fields("POST", "/open", host), end=False), DataFrame(stream, b"abc", flags=["END_STREAM"]))
        assert sender.outcome(stream).status == 200
    lines = logged.of(name, 4, http="2", status=200, reason=None, cut=False, endpoint=name)
    assert [line["path"] for line in lines] == ["/0", "/1", "/2", "/open"]
    assert [line["request_bytes"] for line in lines] == [3, 3, 3, None]
    assert [line["reply_bytes"] for line in lines[:3]] == [len(reply.body) for reply in replies]
    assert {line["id"] for line in lines} == {seen.header("hookway-delivery") for seen in app.seen}


def test_http_1_0_and_an_expectation(logged, name):
    logged.served(name)
    with logged.world.wire(name) as wire:
        assert wire.ask(b"GET /old HTTP/1.0\r\nHost: %s.hooks.test\r\n\r\n" % name.encode()).status == 200
    with logged.world.wire(name) as wire:
        head = request("POST", "/new", host=f"{name}.{DOMAIN}", headers=[("Expect", "100-continue"), ("Content-Length", "3")])
        wire.send(head)
        wire.send(b"abc")
        assert wire.reply("POST").status == 200
    old, new = logged.of(name, 2, status=200)
    assert (old["http"], old["path"]) == ("1.0", "/old") and (new["http"], new["path"]) == ("1.1", "/new")


def test_requests_on_one_connection_are_lines_in_their_order(logged, name):
    app, count = logged.served(name), 50
    with logged.world.wire(name) as wire:
        wire.send(b"".join(request("GET", f"/{number}", host=f"{name}.{DOMAIN}") for number in range(count)))
        assert {wire.reply().status for _ in range(count)} == {200}
    lines = logged.of(name, count, status=200)
    assert [line["path"] for line in lines] == [f"/{number}" for number in range(count)]
    assert [line["id"] for line in lines] == [seen.header("hookway-delivery") for seen in app.seen]
    begun = [datetime.fromisoformat(line["at"]) for line in lines]
    assert begun == sorted(begun)


@pytest.mark.parametrize(("source", "claimed", "remote"), [("127.0.0.3", "192.0.2.7", "127.0.0.3"), (PROXY, "192.0.2.7", "192.0.2.7"), (PROXY, None, PROXY)])
def test_the_remote_is_the_sender(logged, name, source, claimed, remote):
    logged.served(name)
    with Peer(logged.world.relay, source, name) as wire:
        headers = [("X-Forwarded-For", claimed)] if claimed else []
        assert wire.ask(request("GET", "/", host=f"{name}.{DOMAIN}", headers=headers)).status == 200
    logged.of(name, remote=remote)


# ── what the relay answers itself ─────────────────────────────────────────────────────────────────────────────────


def test_what_is_queued_says_so(logged, name):
    offline(logged.world, name)
    assert logged.world.post("/later?secret=1", b"abc", name).status == 202
    line = logged.of(name, status=202, reason="queued", path="/later", request_bytes=3, cut=False, endpoint=name)
    app = logged.served(name)
    assert eventually(lambda: app.seen, what="its arrival")[0].header("hookway-delivery") == line["id"]
    logged.of(name, 1)


def unknown(logged, name):
    return logged.world.get("/x", name)


def misdirected(logged, name):
    with logged.world.wire("another") as wire:
        return wire.ask(request("GET", "/x", host=f"{name}.{DOMAIN}"))


def redirected(logged, name):
    with Peer(logged.world.relay, tls=False) as wire:
        return wire.ask(request("GET", "/x", host=f"{name}.{DOMAIN}"))


def too_large(logged, name):
    logged.served(name)
    with logged.world.wire(name) as wire:
        return wire.ask(request("POST", "/x", host=f"{name}.{DOMAIN}", headers=[("Content-Length", str(5 * MIB))]))


def away(logged, name):
    offline(logged.world, name, "--on-offline", "error")
    return logged.world.post("/x", b"y", name)


def app_timeout(logged, name):
    with GatedApp() as app:
        logged.world.client(app, "--timeout", "200ms", name=name)
        return logged.world.get("/x", name)


def app_bad_answer(logged, name):
    logged.served(name, lambda *_: b"SSH-2.0\r\n\r\n")
    return logged.world.get("/x", name)


REFUSALS = {unknown: 404, misdirected: 421, redirected: 308, too_large: 413, away: 503, app_timeout: 504, app_bad_answer: 502}


@pytest.mark.parametrize("how", REFUSALS, ids=lambda how: how.__name__)
def test_what_the_relay_answers_itself_has_a_reason(logged, name, how):
    reply = how(logged, name)
    assert reply.status == REFUSALS[how]
    endpoint = None if how in (unknown, misdirected, redirected) else name
    line = logged.of(name, status=reply.status, reason=how.__name__, path="/x", endpoint=endpoint, reply_bytes=len(reply.body), cut=False)
    assert line["id"] == reply.header("hookway-delivery")


@pytest.mark.parametrize(
    ("head", "host"),
    [
        (b"GET /none HTTP/1.1\r\n\r\n", ""),
        (b"GET /two HTTP/1.1\r\nHost: a.hooks.test\r\nHost: b.hooks.test\r\n\r\n", ""),
        (b"GET /odd HTTP/1.1\r\nHost: \xff\xfe\x85.test\r\n\r\n", ""),
        (b'GET /quote HTTP/1.1\r\nHost: a"b\\.test\r\n\r\n', ""),
    ],
    ids=["none", "two", "not a name", "quotes"],
)
def test_a_host_that_is_none_is_empty(logged, head, host):
    with logged.world.wire() as wire:
        reply = wire.ask(head)
    assert reply.status == 400
    found = eventually(lambda: [line for line in logged.lines() if line["id"] == reply.header("hookway-delivery")], 10, "its line")
    (line,) = found
    assert (line["host"], line["reason"], line["endpoint"], line["status"]) == (host, "malformed", None, 400)


# ── what is never written ─────────────────────────────────────────────────────────────────────────────────────────


def test_no_query_no_field_no_body_is_written(own, name):
    """Also where the relay answers itself, and in its log."""
    logged = own("--log", "debug,h2=info,hyper=info,rustls=info")
    app = logged.served(name, lambda *_: b"HTTP/1.1 200 OK\r\nSet-Cookie: canary\r\nX-C: canary\r\nContent-Length: 6\r\n\r\ncanary")
    fields = [(field, "canary") for field in ("Authorization", "Cookie", "X-Api-Key", "Stripe-Signature", "Referer", "User-Agent", "X-Forwarded-For", "From")]
    targets = ["/p?canary", "/p?a=canary&b=%63anary", "/p??canary", "/p?canary#canary", "/?canary", f"http://{name}.{DOMAIN}/p?canary"]
    hosts = [name, f"not-{name}"]
    for host in hosts:
        for target in targets:
            with logged.world.wire(host) as wire:
                wire.ask(request("POST", target, b"canary", host=f"{host}.{DOMAIN}", headers=fields))
        with h2(logged.world, host) as sender:
            more = [(field.lower(), value) for field, value in fields]
            sender.ask(request_fields("POST", "/p?canary", f"{host}.{DOMAIN}", more=more), b"canary", trailers=[("x-canary", "canary")])
    with logged.world.wire(name) as wire:
        wire.ask(request("GET", "/p?canary", host=f"canary:canary@{name}.{DOMAIN}"))
    with logged.world.wire(name) as wire:
        wire.ask(b"GET ?canary HTTP/1.1\r\nHost: %s.hooks.test\r\n\r\n" % name.encode())
    offline(logged.world, "waits")
    assert logged.world.post("/p?canary", b"canary", "waits", headers=fields).status == 202
    logged.of("waits", reason="queued", path="/p")
    assert len(app.seen) == len(targets) + 1 and all("canary" in seen.target for seen in app.seen)
    assert {line["path"] for line in logged.lines()} <= {"/p", "/"}
    logged.world.relay.stop()
    written = logged.file.read_bytes() + logged.world.relay.errors.read_bytes()
    assert b"canary" not in written.lower() and logged.world.default_token.encode() not in written


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/%00%0A%1b%5B31m", "/%00%0A%1b%5B31m"),
        ('/"},{"', '/"},{"'),
        ("/back\\slash", "/back\\slash"),
        ("/%E2%80%AE", "/%E2%80%AE"),
        ("/a/../b//c/./", "/a/../b//c/./"),
        ("/?q", "/"),
        ("/%3Fnot-a-query", "/%3Fnot-a-query"),
        ("/" + "x" * 5000, "/" + "x" * 1023),
    ],
    ids=["escapes", "quotes", "backslash", "bidi", "dots", "query", "encoded", "long"],
)
@pytest.mark.parametrize("protocol", ["1.1", "2"])
def test_a_path_is_written_as_it_came(logged, name, target, path, protocol):
    logged.served(name)
    if protocol == "2":
        with h2(logged.world, name) as sender:
            status = sender.ask(request_fields("GET", target, f"{name}.{DOMAIN}")).status
    else:
        status = logged.world.get(target, name).status
    if status == 200:
        logged.of(name, path=path, status=200)
    else:
        # What is no target of HTTP does not pass; it is no line, or one that says why.
        assert status == 400 and '"' in target or "\\" in target


RAW = [
    *[pytest.param(target, protocol) for target in (b"/\x01", b"/\x1b[31m", b"/\x7f", b"/\xff", b"/a\tb", b"/caf\xc3\xa9") for protocol in ("1.1", "2")],
    *[pytest.param(target, protocol) for target in (b"/\xc2\x9b31m", b"/\xe2\x80\xae") for protocol in ("1.1", "2")],
]


@pytest.mark.parametrize(("target", "protocol"), RAW, ids=repr)
def test_no_control_character_comes_into_the_log(logged, name, target, protocol):
    """Whatever becomes of such a request: lines stay whole, of text in UTF-8, and no terminal obeys them."""
    host = f"{name}.{DOMAIN}"
    if protocol == "2":
        with h2(logged.world, name) as sender:
            sender.ask([(":method", "GET"), (":scheme", "https"), (":authority", host), (":path", target)])
    else:
        with logged.world.wire(name) as wire:
            wire.send(b"GET " + target + b" HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode())
            assert wire.ended()
    logged.world.get("/after", f"not-{name}")
    logged.of(f"not-{name}")
    text = logged.file.read_bytes().decode()
    lines = [line for line in text.splitlines() if host in line and f"not-{host}" not in line]
    assert len(lines) <= 1 and all(line.isprintable() for line in lines), lines


# ── where it is written ───────────────────────────────────────────────────────────────────────────────────────────


def sending(logged, name, stop, sent, number):
    """Requests one after the other, until `stop`; what was answered is in `sent`."""
    with logged.world.wire(name) as wire:
        while not stop.is_set():
            path = f"/{number}-{len(sent)}"
            assert wire.ask(request("GET", path, host=f"{name}.{DOMAIN}")).status == 200
            sent.append(path)


def test_no_line_is_lost_when_the_file_is_turned_over(own, name, tmp_path):
    """Renamed and reloaded, three times under load, as logrotate does; the relay stops with the last answer."""
    logged = own()
    logged.served(name, lambda *_: OK)
    stop, sent = threading.Event(), [[] for _ in range(4)]
    threads = [threading.Thread(target=sending, args=(logged, name, stop, own_sent, number)) for number, own_sent in enumerate(sent)]
    for thread in threads:
        thread.start()
    files = []
    try:
        for turn in range(3):
            before = len(sent[0])
            eventually(lambda before=before: len(sent[0]) > before + 20, what="more requests")
            files.append(tmp_path / f"own.log.{turn}")
            os.rename(logged.file, files[-1])
            assert logged.world.relay.command("reload")[-1]["reloaded"] is True
            eventually(lambda: logged.file.exists() and logged.file.stat().st_size, what="the new file")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    logged.world.relay.process.send_signal(signal.SIGTERM)
    assert logged.world.relay.exited() == 0
    lines = logged.lines(*files, logged.file)
    assert sorted(line["path"] for line in lines) == sorted(path for own_sent in sent for path in own_sent)
    assert len({line["id"] for line in lines}) == len(lines)
    for file in [*files, logged.file]:
        assert file.stat().st_mode & 0o777 == 0o640
        data = file.read_bytes()
        assert data.endswith(b"\n") and all(parsed(line) for line in data.splitlines()), "each has whole lines"


def test_a_restart_appends(own, name):
    logged = own()
    logged.world.get("/one", name)
    logged.of(name)
    logged.world.relay.stop()
    words = logged.world.relay.process.args
    logged.world.relay = logged.world._add(Relay(logged.world.folder, words[words.index("--json") + 1 :], title="relay-again"))
    logged.world.get("/two", name)
    assert [line["path"] for line in logged.of(name, 2)] == ["/one", "/two"]


def test_a_reload_that_finds_no_folder_goes_on_in_the_old_file(own, name, tmp_path):
    folder, moved = tmp_path / "folder", tmp_path / "moved"
    folder.mkdir()
    logged = own(file=folder / "access.log")
    folder.rename(moved)
    logged.world.relay.command("reload")
    eventually(lambda: "the access log cannot be written" in logged.world.relay.log(), what="a word in the log")
    logged.world.get("/x", name)
    logged.file = moved / "access.log"
    logged.of(name, path="/x")
    logged.file = folder / "access.log"
    folder.mkdir()
    logged.world.relay.command("reload")
    logged.world.get("/y", f"not-{name}")
    eventually(logged.file.exists, what="a file in the new folder")
    logged.of(f"not-{name}", path="/y")


@pytest.mark.parametrize("value", ["/nowhere/at/all/access.log", "{folder}", "{folder}/file/access.log"], ids=["no folder", "a folder", "below a file"])
def test_a_relay_whose_access_log_cannot_be_written_does_not_start(tmp_path, value):
    (tmp_path / "file").write_text("x")
    value = value.replace("{folder}", str(tmp_path))
    ports = [word for flag in ("--https", "--http", "--admin") for word in (flag, "127.0.0.1:0")]
    done = run(HOOKWAY_RELAY, "run", "--domain", DOMAIN, "--data-dir", tmp_path / "data", "--access-log", value, *ports, folder=tmp_path)
    assert done.returncode == 1 and not done.stdout
    error, cause, after = done.stderr.strip().splitlines()[-3:]
    assert error == "error: the access log cannot be written"
    assert re.match(r"  cause: .*(No such file|Is a directory|Not a directory)", cause)
    assert after == "  next:  check that the file of --access-log can be written"


def test_standard_output(new_world, name):
    world = new_world("--access-log", "-")
    world.client(world.app(), name=name)
    assert world.get("/x?secret", name).status == 200
    world.relay.wait(lambda: len(world.relay.lines) == 2, what="its line")
    ready, line = world.relay.lines
    assert json.loads(ready)["event"] == "ready"
    line = parsed(line.decode())
    assert (line["path"], line["status"], line["endpoint"]) == ("/x", 200, name)


@pytest.mark.parametrize("flags", [(), ("--access-log", "off")], ids=["by default", "off"])
def test_off(new_world, name, flags):
    world = new_world(*flags)
    assert world.get("/x", name).status == 404
    world.relay.stop()
    assert len(world.relay.lines) == 1, "the relay has said that it is ready, and nothing else"
    assert not list(world.folder.rglob("off")) and not list(world.folder.rglob("*.log"))


def test_lines_that_a_full_disk_does_not_take_are_counted(new_world, name):
    world = new_world("--access-log", "/dev/full")
    for _ in range(20):
        assert world.get("/x", name).status == 404
    eventually(lambda: "cannot be written" in world.relay.log(), what="a word in the log")
    assert world.relay.log().count("cannot be written") < 20, "once is enough"
    eventually(lambda: world.relay.metric("access_log_dropped_total") == 20, 2, "20 lines dropped")


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_lines_are_whole_again_when_the_disk_has_room_again(own, small_disk, name):  # noqa: F811
    disk = small_disk / "relay-data"
    logged = own(file=disk / "access.log")
    fill(disk / "filler", 1000)
    with logged.world.wire(name) as wire:
        for _ in range(100):
            assert wire.ask(request("GET", "/full", host=f"{name}.{DOMAIN}")).status == 404
        eventually(lambda: "cannot be written" in logged.world.relay.log(), what="a word in the log")
        (disk / "filler").unlink()
        for number in range(20):
            assert wire.ask(request("GET", f"/room-{number}", host=f"{name}.{DOMAIN}")).status == 404
    eventually(lambda: b"/room-19" in logged.file.read_bytes(), what="the last line")
    assert [line["path"] for line in logged.lines() if line["path"] != "/full"] == [f"/room-{number}" for number in range(20)]


# ── the log itself, in JSON ───────────────────────────────────────────────────────────────────────────────────────


def pairs_of(line):
    def once(pairs):
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names)), f"a name twice: {line}"
        return dict(pairs)

    return json.loads(line, object_pairs_hook=once)


def test_the_log_in_json_is_an_object_a_line(new_world, name):
    """At its most talkative, with what strangers send, a reload, refusals of the admin API, and its end."""
    world = new_world("--log-format", "json", "--log", "debug")
    client = world.client(world.app(), name=name)
    for target in ("/x", "/%0A%1b[31m", "/" + "y" * 3000):
        world.get(target, name, headers=[("X-Odd", '"}\\n{"level":"ERROR"')])
    with socket.create_connection(world.relay.https, 10) as raw, contextlib.suppress(OSError):
        raw.sendall(b"\x1b[31m\n{}\n")
        while raw.recv(4096):
            pass
    for path in ('/api/tokens/"\n{', "/api/\x1b"):
        with socket.create_connection(world.relay.admin, 10) as raw, contextlib.suppress(OSError):
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            while raw.recv(4096):
                pass
    assert Api(world.relay).ask("GET", "/api/tokens").status == 401
    world.relay.command("reload")
    client.process.kill()
    world.relay.stop()
    lines = world.relay.errors.read_bytes()
    assert lines.endswith(b"\n") and not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", lines)
    events = [pairs_of(line) for line in lines.decode().splitlines()]
    for event in events:
        assert {"timestamp", "level", "target", "message"} <= event.keys(), event
        assert event["level"] in ("ERROR", "WARN", "INFO", "DEBUG", "TRACE")
        assert datetime.fromisoformat(event["timestamp"]) <= now()
        assert all(isinstance(event[key], str) for key in ("target", "message"))
    messages = [event["message"] for event in events]
    for message in ("client connected", "configuration reloaded", "the admin API refused something", "stopping: finishing what is in flight"):
        assert message in messages
    (connected,) = [event for event in events if event["message"] == "client connected"]
    assert connected["endpoints"] == name and connected["span"]["owner"] == "ci"


def test_lines_for_people_are_no_json(new_world):
    world = new_world()
    world.client(world.app())
    assert not re.search(r"^\{", world.relay.log(), re.MULTILINE)
    assert " INFO " in world.relay.log() and "\x1b" not in world.relay.log(), "no colours into a file"


def test_what_keeps_a_relay_from_starting_is_json_too(tmp_path):
    words = ["run", "--domain", DOMAIN, "--data-dir", tmp_path / "data", "--access-log", tmp_path, "--log-format", "json"]
    words += [word for flag in ("--https", "--http", "--admin") for word in (flag, "127.0.0.1:0")]
    done = subprocess.run([HOOKWAY_RELAY, *map(str, words)], capture_output=True, text=True, timeout=20, check=False, cwd=tmp_path)
    assert done.returncode == 1
    for line in done.stderr.splitlines():
        pairs_of(line)
