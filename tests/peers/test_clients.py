"""HTTP clients that nobody here wrote, through the built programs: bytes arrive as sent, and so do the answers."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import queue
import random
import socket
import subprocess
import threading
import urllib.request

import httpx
import pytest
import requests

from world import DEADLINE, DOMAIN, LONG, World, eventually, request, tls_context

SCRIPTS = pathlib.Path(__file__).parent
MIB = 1 << 20
VERSIONS = ("--http1.1", "--http2")
# Every byte that a path or a query may hold somewhere, next to what a careless hop would tidy up.
ODD_TARGETS = (
    "/a%2Fb//c?x=%20&&y;z='",
    "/a/../b/./c/%2e%2e/d",
    "//evil.example/x",
    "/@user:pass/;p=1,2/(x)*!$&'+~",
    "/%ff%FE%00?%",
    "/?",
    "/??a=?/../",
    "/json/{}?q=[1]|^`\\{}",
    '/quote/"{}',
    pytest.param("/quote?q='\"{}", marks=pytest.mark.xfail(strict=True, reason="the http crate takes no quote there")),
)


@pytest.fixture(scope="module")
def tunnel():
    """A relay, an app and a client for this file."""
    with World() as world:
        app = world.app()
        world.client(app)
        yield world, app


@pytest.fixture
def world(tunnel):
    return tunnel[0]


@pytest.fixture
def app(tunnel):
    """The app, echoing again and with nothing seen."""
    app = tunnel[1]
    app.clear()
    app.answer = app.echo
    yield app
    assert not app.unclean
    app.answer = app.echo


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def answering(status="200 OK", headers=(), body=b""):
    """An app's answer with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers), f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


# ── curl ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass
class Curled:
    status: int
    version: str
    head: str
    body: bytes
    notes: str

    def json(self):
        return json.loads(self.body)


class Curl:
    def __init__(self, world, folder):
        self.world, self.folder = world, folder

    def __call__(self, *flags, path="/", stdin=b""):
        head, body = self.folder / "head", self.folder / "body"
        done = subprocess.run(
            [
                *(
                    "curl",
                    "--silent",
                    "--show-error",
                    "--max-time",
                    "90",
                    "--noproxy",
                    "*",
                    "--globoff",
                    "--path-as-is",
                ),
                *(
                    "--cacert",
                    self.world.relay.ca,
                    "--resolve",
                    f"billing.{DOMAIN}:{self.world.relay.https[1]}:127.0.0.1",
                ),
                *("--dump-header", head, "--output", body, "--write-out", "%{http_code} %{http_version}"),
                *flags,
                self.world.url(path),
            ],
            input=stdin,
            capture_output=True,
            check=False,
        )
        notes = done.stderr.decode(errors="replace")
        assert done.returncode == 0, f"curl exited {done.returncode}: {notes}"
        status, version = done.stdout.decode().split()
        return Curled(
            int(status),
            version,
            head.read_bytes().decode("latin-1"),
            body.read_bytes() if body.exists() else b"",
            notes,
        )


@pytest.fixture
def curl(world, tmp_path):
    return Curl(world, tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE", "X-custom"])
def test_curl_method(curl, app, version, method):
    body = b"" if method in ("GET", "OPTIONS") else b'{"event":"paid"}'
    reply = curl(version, "--request", method, *(["--data-binary", body.decode()] if body else []), path="/m?n=1")
    assert (reply.status, reply.version) == (200, version.removeprefix("--http").removesuffix(".0"))
    assert reply.json() | {"headers": None} == {
        "app": "app",
        "method": method,
        "target": "/m?n=1",
        "headers": None,
        "length": len(body),
        "sha256": sha256(body),
    }
    assert app.seen[0].header("host") == f"billing.{DOMAIN}:{curl.world.relay.https[1]}"


@pytest.mark.parametrize("version", VERSIONS)
def test_curl_head(curl, app, version):
    app.answer = lambda seen, _: b'HTTP/1.1 200 OK\r\nContent-Length: 123456\r\nETag: "a"\r\n\r\n'
    reply = curl(version, "--head")
    assert reply.status == 200 and app.seen[0].method == "HEAD"
    assert "content-length: 123456\r\n" in reply.head.lower() and 'etag: "a"' in reply.head.lower()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_curl_status_without_body(curl, app, version, status):
    app.answer = lambda seen, _: f'HTTP/1.1 {status}\r\nETag: "b"\r\n\r\n'.encode()
    for _ in range(2):
        reply = curl(version, "--header", 'If-None-Match: "b"')
        assert (reply.status, reply.body) == (int(status[:3]), b"")
        assert 'etag: "b"' in reply.head.lower() and "content-length" not in reply.head.lower()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("status", [201, 202, 206, 301, 400, 401, 403, 404, 410, 418, 422, 429, 500, 502, 503, 599])
def test_curl_status_is_the_apps(curl, app, version, status):
    app.answer = lambda seen, _: answering(f"{status} Because", [("Retry-After", "7")], b"said the app")
    reply = curl(version, "--data", "x")
    assert (reply.status, reply.body) == (status, b"said the app") and "retry-after: 7" in reply.head.lower()


@pytest.mark.parametrize("version", VERSIONS)
def test_curl_redirect_is_passed_back_not_followed(curl, app, version):
    elsewhere = f"http://{app.address}/elsewhere"
    app.answer = lambda seen, _: answering("302 Found", [("Location", elsewhere)])
    reply = curl(version, path="/from")
    assert reply.status == 302 and f"location: {elsewhere}\r\n" in reply.head
    assert [seen.target for seen in app.seen] == ["/from"]


@pytest.mark.parametrize("version", VERSIONS)
def test_curl_gzip_reply_is_unchanged(curl, app, version):
    packed = gzip.compress(b"hello " * 10_000, mtime=0)
    app.answer = lambda seen, _: answering(
        headers=[("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")], body=packed
    )
    reply = curl(version, "--header", "Accept-Encoding: gzip, br;q=0.5")
    assert reply.body == packed and "content-encoding: gzip" in reply.head.lower()
    assert f"content-length: {len(packed)}\r\n" in reply.head.lower()
    assert app.seen[0].header("accept-encoding") == "gzip, br;q=0.5"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("target", ODD_TARGETS)
def test_curl_target_is_kept(curl, app, version, target):
    assert curl(version, path=target).status == 200
    assert [seen.target for seen in app.seen] == [target]


@pytest.mark.parametrize("version", VERSIONS)
def test_curl_expect_100_continue(curl, app, version, tmp_path):
    body = os.urandom(2 * MIB)
    (tmp_path / "upload").write_bytes(body)
    # Over HTTP/2, where curl does not do this by itself, it may wait in vain for its usual second.
    patience = ("--expect100-timeout", "60") if version == "--http1.1" else ()
    expect = ("--verbose", "--header", "Expect: 100-continue", *patience)
    reply = curl(version, *expect, "--data-binary", f"@{tmp_path}/upload")
    assert reply.json()["sha256"] == sha256(body)
    if version == "--http1.1":
        assert "< HTTP/1.1 100 Continue" in reply.notes


@pytest.mark.parametrize("version", VERSIONS)
def test_curl_chunked_upload_from_stdin(curl, app, version):
    body = os.urandom(300_000)
    reply = curl(version, "--upload-file", "-", "--header", "Expect:", stdin=body)
    assert (reply.json()["method"], reply.json()["sha256"]) == ("PUT", sha256(body))


@pytest.mark.parametrize("version", VERSIONS)
def test_curl_upload_64_mib(curl, app, version, tmp_path):
    body = os.urandom(MIB) * 64
    (tmp_path / "upload").write_bytes(body)
    reply = curl(version, "--upload-file", tmp_path / "upload")
    assert reply.json()["length"] == len(body) and reply.json()["sha256"] == sha256(body)
    assert app.seen[0].header("content-length") == str(len(body))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("framing", ["length", "chunked", "until close"])
def test_curl_download_64_mib(curl, app, version, framing):
    piece = os.urandom(MIB)

    def pieces(_seen, connection):
        head = {
            "length": f"Content-Length: {64 * MIB}",
            "chunked": "Transfer-Encoding: chunked",
            "until close": "Connection: close",
        }
        yield f"HTTP/1.1 200 OK\r\n{head[framing]}\r\n\r\n".encode()
        for _ in range(64):
            yield b"%x\r\n%s\r\n" % (MIB, piece) if framing == "chunked" else piece
        if framing == "chunked":
            yield b"0\r\n\r\n"

    app.keep_alive = framing != "until close"
    app.answer = pieces
    reply = curl(version)
    app.keep_alive = True
    assert len(reply.body) == 64 * MIB and sha256(reply.body) == sha256(piece * 64)


# ── nghttp2 ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nghttp(world, app):
    authority = f"billing.{DOMAIN}:{world.relay.https[1]}"
    done = subprocess.run(
        [
            "nghttp",
            "--header",
            f":authority: {authority}",
            "--header",
            "x-from: nghttp",
            f"https://{world.authority()}/ng?a",
        ],
        capture_output=True,
        timeout=60,
        check=False,
    )
    reply = json.loads(done.stdout)
    assert reply["target"] == "/ng?a" and ["x-from", "nghttp"] in reply["headers"]


@pytest.mark.parametrize("flags", [["--h1"], ["-m", "10"]], ids=["h1", "h2"])
def test_h2load_loses_nothing(world, app, flags, tmp_path):
    count = 20_000 if LONG else 600
    (tmp_path / "body").write_bytes(os.urandom(1024))
    done = subprocess.run(
        [
            *("h2load", "-n", str(count), "-c", "8", *flags, "-d", tmp_path / "body"),
            *("--connect-to", world.authority(), "--header", "x-from: h2load", world.url("/load")),
        ],
        capture_output=True,
        timeout=150,
        check=False,
    )
    report = done.stdout.decode()
    assert f"{count} succeeded, 0 failed, 0 errored, 0 timeout" in report, report
    assert f"status codes: {count} 2xx" in report, report
    assert len(app.at("/load")) == count


# ── Python's clients ──────────────────────────────────────────────────────────────────────────────────────────────


def in_parts(body, size=7919):
    return (body[at : at + size] for at in range(0, len(body), size))


@pytest.mark.parametrize("streamed", [False, True], ids=["length", "chunked"])
def test_urllib(world, app, streamed):
    body = os.urandom(200_000)
    data = in_parts(body) if streamed else body
    headers = {"X-From": "urllib", "Content-Type": "application/octet-stream"}
    question = urllib.request.Request(world.url("/urllib"), data, headers, method="PUT")
    with urllib.request.urlopen(question, timeout=60, context=tls_context(world.relay.ca)) as reply:
        echo = json.load(reply)
    assert (echo["method"], echo["sha256"]) == ("PUT", sha256(body))
    assert app.seen[0].header("user-agent").startswith("Python-urllib/")


@pytest.mark.parametrize("streamed", [False, True], ids=["length", "chunked"])
def test_requests(world, app, streamed):
    body = os.urandom(200_000)
    with requests.Session() as session:
        for n in range(5):
            data = in_parts(body) if streamed else body
            reply = session.post(world.url(f"/requests?n={n}"), data=data, verify=world.relay.ca, timeout=60)
            assert reply.status_code == 200 and reply.json()["sha256"] == sha256(body)
    assert [seen.target for seen in app.seen] == [f"/requests?n={n}" for n in range(5)]


def httpx_client(world, h2):
    return httpx.Client(verify=tls_context(world.relay.ca), http1=not h2, http2=h2, timeout=60, trust_env=False)


@pytest.mark.parametrize("h2", [False, True], ids=["h1", "h2"])
def test_httpx(world, app, h2):
    body = os.urandom(200_000)
    with httpx_client(world, h2) as client:
        for data in (body, in_parts(body)):
            reply = client.post(world.url("/httpx"), content=data)
            assert reply.http_version == ("HTTP/2" if h2 else "HTTP/1.1")
            assert reply.json()["sha256"] == sha256(body)
        assert client.get(world.url("/httpx"), params={"q": "ü ✓"}).json()["target"] == "/httpx?q=%C3%BC+%E2%9C%93"


def test_many_at_once(world, app):
    """200 requests from 20 threads over one client: each gets its own answer. (Over h2 its pool
    closes connections under its own threads, with nginx as well; h2load does that case.)"""
    failures = queue.Queue()
    with httpx_client(world, False) as client:

        def some(first):
            for n in range(first, first + 10):
                try:
                    assert client.post(world.url(f"/n/{n}"), content=str(n)).json()["target"] == f"/n/{n}"
                except Exception as failure:
                    failures.put((n, failure))

        threads = [threading.Thread(target=some, args=(first,)) for first in range(0, 200, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures.empty(), failures.get()
    assert sorted(int(seen.body) for seen in app.seen) == list(range(200))


# ── Node's clients ────────────────────────────────────────────────────────────────────────────────────────────────


def node(script, *arguments, ca):
    done = subprocess.run(
        ["node", SCRIPTS / script, *arguments],
        env={"PATH": os.environ["PATH"], "NODE_EXTRA_CA_CERTS": ca},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_node(world, app):
    app.answer = lambda seen, _: answering(body=seen.body)
    clients = ["https-length", "https-chunked", "fetch", "http2"]
    told = node("node_clients.mjs", world.url("").rstrip("/"), ca=world.relay.ca)
    assert told == [{"client": client, "status": 200, "same": True} for client in clients]
    assert len(app.seen) == len(clients)


# ── server-sent events ────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def lines_by_curl(world):
    command = [
        "curl",
        "-sN",
        "--cacert",
        world.relay.ca,
        "--connect-to",
        f"::{world.authority()}",
        world.url("/events"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        yield (line.decode().rstrip("\n") for line in process.stdout)


@contextlib.contextmanager
def lines_by_requests(world):
    with requests.get(world.url("/events"), stream=True, verify=world.relay.ca, timeout=30) as reply:
        yield reply.iter_lines(chunk_size=1, decode_unicode=True)


@contextlib.contextmanager
def lines_by_httpx_h2(world):
    with httpx_client(world, h2=True) as client, client.stream("GET", world.url("/events")) as reply:
        assert reply.headers["content-type"] == "text/event-stream"
        yield reply.iter_lines()


@pytest.mark.parametrize("reader", [lines_by_curl, lines_by_requests, lines_by_httpx_h2])
def test_events_arrive_one_by_one(world, app, reader):
    """The app sends an event only once the reader has acknowledged the one before: nothing on the way may hold it."""
    acknowledged = queue.Queue()

    def events(_seen, _connection):
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        for n in range(20):
            event = b"id: %d\ndata: tick\n\n" % n
            yield b"%x\r\n%s\r\n" % (len(event), event)
            assert acknowledged.get(timeout=15) == n
        yield b"0\r\n\r\n"

    app.answer = events
    got = []
    with reader(world) as lines:
        for line in lines:
            if line.startswith("id: "):
                got.append(int(line.removeprefix("id: ")))
                acknowledged.put(got[-1])
    assert got == list(range(20))


def test_an_upload_streams_to_the_app(world):
    """A body over the buffer limit reaches the app while it is still being sent."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        client = world.client(f"127.0.0.1:{listener.getsockname()[1]}", name="upload")
        with world.wire("upload") as wire:
            head = f"POST /up HTTP/1.1\r\nHost: upload.{DOMAIN}\r\nTransfer-Encoding: chunked\r\n\r\n"
            wire.send(head.encode() + b"%x\r\n%s\r\n" % (4 * MIB, b"x" * 4 * MIB))
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(DEADLINE)
                received = 0
                while received < 4 * MIB:
                    received += len(connection.recv(65536))
                wire.send(b"0\r\n\r\n")
                connection.sendall(answering())
                assert wire.reply("POST").status == 200
    assert client.stop() == 0


# ── fidelity on the wire ──────────────────────────────────────────────────────────────────────────────────────────


def chunked(body, rng, trailers=()):
    """The body in chunks of random sizes."""
    parts, at = [], 0
    while at < len(body):
        size = rng.choice((1, rng.randint(1, 100), rng.randint(1, 300_000)))
        parts.append(b"%x\r\n%s\r\n" % (len(body[at : at + size]), body[at : at + size]))
        at += size
    end = "".join(f"{name}: {value}\r\n" for name, value in trailers)
    return b"".join(parts) + b"0\r\n" + end.encode("latin-1") + b"\r\n"


def test_request_trailers_over_h1(world, app):
    body = chunked(b"signed at the end" * 100, random.Random(1), [("X-Checksum", "abc"), ("X-Checksum", "def")])
    head = f"POST / HTTP/1.1\r\nHost: billing.{DOMAIN}\r\nTrailer: X-Checksum\r\nTransfer-Encoding: chunked\r\n\r\n"
    with world.wire() as wire:
        assert wire.ask(head.encode() + body).status == 200
    assert [(name.lower(), value) for name, value in app.seen[0].trailers] == [
        ("x-checksum", "abc"),
        ("x-checksum", "def"),
    ]


def test_reply_trailers_over_h1(world, app):
    answer = (
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n"
    )
    app.answer = lambda seen, _: answer
    with world.wire() as wire:
        wire.send(request(headers=[("TE", "trailers"), ("Connection", "TE")]))
        eventually(lambda: wire.receive() and wire.buffer.endswith(b"\r\n\r\n") and b"\r\n0\r\n" in wire.buffer)
    assert wire.buffer.lower().endswith(b"5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n")


def test_repeated_headers_keep_their_order(world, app):
    sent = [("X-A", "1"), ("X-B", "b"), ("X-A", "2"), ("x-a", "1"), ("X-A", ""), ("X-A", "3,4"), ("Cookie", "a=1; b=2")]
    cookies = ["b=2; Path=/", "a=1", "b=3", ""]
    app.answer = lambda seen, _: answering(headers=[("Set-Cookie", cookie) for cookie in cookies])
    reply = world.get(headers=sent)
    assert app.seen[0].all("x-a") == ["1", "2", "1", "", "3,4"]
    assert app.seen[0].all("x-b") == ["b"] and app.seen[0].all("cookie") == ["a=1; b=2"]
    assert reply.all("set-cookie") == cookies


def test_obs_text_header_values_are_kept(world, app):
    every = "".join(map(chr, [*range(0x21, 0x7F), *range(0x80, 0x100)]))
    app.answer = lambda seen, _: answering(headers=[("X-Bytes", every), ("X-Tab", "a\tb")])
    reply = world.get(headers=[("X-Bytes", every), ("X-Tab", "a\tb"), ("X-Name", "Jürgen")])
    assert app.seen[0].all("x-bytes") == [every] and app.seen[0].all("x-tab") == ["a\tb"]
    assert app.seen[0].all("x-name") == ["Jürgen"]
    assert reply.all("x-bytes") == [every] and reply.all("x-tab") == ["a\tb"]


def test_what_hookway_adds(world, app):
    """Nothing but the agreed headers reaches the app besides what was sent."""
    world.post("/", b"x", headers=[("X-One", "1")])
    names = {name.lower() for name, _ in app.seen[0].headers}
    added = {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "hookway-delivery"}
    assert names - {"host", "content-length", "x-one"} <= added
    assert added <= names
    assert app.seen[0].header("hookway-delivery").startswith("req_")
    assert app.seen[0].header("x-forwarded-proto") == "https"


SIZES = (0, 1, 65_535, 65_536, MIB - 1, MIB, MIB + 1, 2 * MIB)
VISIBLE = "".join(map(chr, [*range(0x21, 0x7F), *range(0x80, 0x100)]))


def random_headers(rng, alphabet=VISIBLE):
    headers = []
    for n in range(rng.randint(0, 12)):
        value = "".join(rng.choices(alphabet + " ,;", k=rng.randint(0, 200))).strip()
        headers.append((f"x-random-{n % 5}", value))
    return headers


def grouped(headers):
    """Values by name in lower case, each name's in order: hyper keeps no more than that."""
    groups = {}
    for name, value in headers:
        if name.lower().startswith("x-random"):
            groups.setdefault(name.lower(), []).append(value)
    return groups


def random_bodies(count):
    seed = int(os.environ.get("HOOKWAY_SEED", random.randrange(1 << 32)))
    print(f"HOOKWAY_SEED={seed}")
    rng = random.Random(seed)
    for n in range(count):
        size = SIZES[n] if n < len(SIZES) else int(rng.random() ** 2 * 2 * MIB)
        yield n, rng, rng.randbytes(size)


def test_bytes_are_sacred_over_h1(world, app):
    """Random bodies and header values both ways on one connection, with Content-Length and chunked in turn."""

    def mirror(seen, _connection):
        head = [f"{name}: {value}" for name, value in seen.headers if name.lower().startswith("x-random")]
        rng = random.Random(len(seen.body))
        plain = rng.random() < 0.5
        framing = f"Content-Length: {len(seen.body)}" if plain else "Transfer-Encoding: chunked"
        head = "\r\n".join(["HTTP/1.1 200 OK", *head, framing, "", ""]).encode("latin-1")
        return head + (seen.body if plain else chunked(seen.body, rng))

    app.answer = mirror
    with world.wire() as wire:
        for n, rng, body in random_bodies(600 if LONG else 60):
            headers, target = random_headers(rng), f"/exact/{n}?{rng.random()}"
            if n % 2:
                question = request("POST", target, body, headers=headers)
            else:
                question = request("POST", target, headers=[*headers, ("Transfer-Encoding", "chunked")]) + chunked(
                    body, rng
                )
            reply = wire.ask(question)
            seen = app.seen.pop()
            assert reply.status == 200 and seen.target == target and reply.complete
            assert (len(seen.body), seen.sha256) == (len(body), sha256(body)), f"body {n} at the app"
            assert (len(reply.body), sha256(reply.body)) == (len(body), sha256(body)), f"body {n} back"
            assert grouped(seen.headers) == grouped(headers) == grouped(reply.headers), f"headers {n}"


def test_bytes_are_sacred_over_h2(world, app):
    def mirror(seen, _connection):
        echoed = [(name, value) for name, value in seen.headers if name.lower().startswith("x-random")]
        return answering(headers=echoed, body=seen.body)

    app.answer = mirror
    with httpx_client(world, h2=True) as client:
        for n, rng, body in random_bodies(400 if LONG else 40):
            headers = random_headers(rng)
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
            reply = client.post(world.url(f"/exact/{n}"), headers=raw, content=body if n % 2 else in_parts(body))
            seen = app.seen.pop()
            assert reply.status_code == 200 and seen.target == f"/exact/{n}"
            assert (len(seen.body), seen.sha256) == (len(body), sha256(body)), f"body {n} at the app"
            assert sha256(reply.content) == sha256(body), f"body {n} back"
            back = [(name.decode(), value.decode("latin-1")) for name, value in reply.headers.raw]
            assert grouped(seen.headers) == grouped(headers) == grouped(back), f"headers {n}"
