"""WebSockets through the built programs, by the Python package `websockets` on both sides and Node's `ws` as client."""

import contextlib
import json
import os
import pathlib
import subprocess
import threading

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.server import serve

from world import DOMAIN, World, eventually, request, tls_context

SCRIPTS = pathlib.Path(__file__).parent


class EchoServer:
    """The developer's app: echoes, obeys a few words, remembers how each connection ended."""

    def __init__(self):
        self.ends, self.pings, self.headers = [], [], []
        self.server = serve(self._handle, "127.0.0.1", 0, subprotocols=["echo"], max_size=8 << 20)
        self.address = f"127.0.0.1:{self.server.socket.getsockname()[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _handle(self, socket):
        self.headers.append(socket.request)
        try:
            for message in socket:
                if message == "close 4002":
                    socket.close(4002, "as you wish")
                elif message == "ping me":
                    self.pings.append(socket.ping("from the app").wait(10))
                elif message == "count":
                    for n in range(200):
                        socket.send(f"push {n}")
                else:
                    socket.send(message)
        finally:
            with contextlib.suppress(Exception):
                self.ends.append((socket.close_code, socket.close_reason))


@pytest.fixture(scope="module")
def tunnel():
    with World() as world:
        server = EchoServer()
        world.client(server.address)
        yield world, server
        server.server.shutdown()


@pytest.fixture
def server(tunnel):
    server = tunnel[1]
    server.ends.clear()
    return server


@pytest.fixture
def dial(tunnel):
    world, _ = tunnel
    url = world.url("/socket?room=1").replace("https:", "wss:")

    def dial(**options):
        options |= {"ssl": tls_context(world.relay.ca), "proxy": None, "max_size": 8 << 20, "open_timeout": 20}
        return connect(url, subprotocols=["echo"], **options)

    return dial


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_text_and_binary(dial, server, compression):
    blob = os.urandom(1 << 20)
    with dial(compression=compression) as socket:
        assert socket.subprotocol == "echo"
        for message in ("grüße ✓", "", b"", blob, "x" * 70_000, b"\0\xff"):
            socket.send(message)
            assert socket.recv(20) == message
    assert server.headers[-1].path == "/socket?room=1"
    assert server.headers[-1].headers["Host"].startswith(f"billing.{DOMAIN}")


def test_ping_and_pong_both_ways(dial, server):
    with dial() as socket:
        assert socket.ping("hello").wait(20)
        socket.send("ping me")
        socket.send("after the ping")
        assert socket.recv(20) == "after the ping"
    assert server.pings == [True]


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (4001, "done here")])
def test_close_by_the_sender(dial, server, code, reason):
    with dial() as socket:
        socket.close(code, reason)
        assert (socket.close_code, socket.close_reason) == (code, reason)
    eventually(lambda: (code, reason) in server.ends, what="the app's end of it")


def test_close_by_the_app(dial, server):
    with dial() as socket:
        socket.send("close 4002")
        with pytest.raises(ConnectionClosed):
            socket.recv(20)
        assert (socket.close_code, socket.close_reason) == (4002, "as you wish")


def test_200_messages_both_ways(dial, server):
    with dial() as socket:
        socket.send("count")
        assert [socket.recv(20) for _ in range(200)] == [f"push {n}" for n in range(200)]
        sender = threading.Thread(target=lambda: [socket.send(f"message {n}") for n in range(200)])
        sender.start()
        assert [socket.recv(20) for _ in range(200)] == [f"message {n}" for n in range(200)]
        sender.join()


def test_many_sockets_at_once(dial, server):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(dial()) for _ in range(30)]
        for n, socket in enumerate(sockets):
            socket.send(str(n))
        assert [socket.recv(20) for socket in sockets] == [str(n) for n in range(30)]


def test_a_sender_that_vanishes_is_seen_by_the_app(dial, server):
    with dial() as socket:
        socket.send("x")
        assert socket.recv(20) == "x"
        socket.socket.shutdown(2)
        eventually(lambda: (1006, "") in server.ends, what="the app's end of it")


def test_an_app_that_refuses_the_upgrade(tunnel):
    """The app's own answer to the handshake comes back, and the connection serves on."""
    world, _ = tunnel
    app = world.app(answer=lambda seen, _: b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnope")
    world.client(app, name="plain")
    url = world.url("/", "plain").replace("https:", "wss:")
    with pytest.raises(InvalidStatus) as refusal, connect(url, ssl=tls_context(world.relay.ca), proxy=None):
        pass
    assert refusal.value.response.status_code == 403 and refusal.value.response.body == b"nope"
    assert app.seen[0].header("upgrade") == "websocket"


def test_ws_of_node(tunnel, server):
    world, _ = tunnel
    url = world.url("/socket").replace("https:", "wss:")
    done = subprocess.run(
        ["node", SCRIPTS / "ws_client.mjs", url, world.relay.ca], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    told = {line["what"]: line["value"] for line in map(json.loads, done.stdout.splitlines())}
    assert told == {
        "protocol": "echo",
        "text": True,
        "binary": True,
        "pong": "hello",
        "in order": True,
        "close": [4001, "done here"],
    }


# ── the upgrade itself, on raw sockets ────────────────────────────────────────────────────────────────────────────


def asking_for(protocols, path="/upgrade", name="billing"):
    return request("GET", path, host=f"{name}.{DOMAIN}", headers=[("Connection", "Upgrade"), ("Upgrade", protocols)])


def switching_to(protocol):
    return f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode()


def test_an_app_that_leaves_does_not_keep_a_silent_sender(new_world):
    """The app's TCP connection ends; the sender says nothing and stays: its connection and its place are free again."""
    world = new_world("--max-concurrent", "1")
    app, leave = world.app(), threading.Event()

    def answer(seen, connection):
        if seen.target != "/upgrade":
            return app.echo(seen)
        connection.sendall(switching_to("websocket") + b"hello")
        assert leave.wait(20)
        return None

    app.answer = answer
    world.client(app)
    with world.wire() as wire:
        assert wire.ask(asking_for("websocket")).status == 101
        assert wire._exactly(5) == b"hello"
        assert world.get("/meanwhile").status == 429
        leave.set()
        eventually(lambda: not world.relay.metric("connections"), 15, "the relay ending the sender's connection")
        assert wire.ended(1)
        assert world.get("/after").status == 200


@pytest.fixture
def upgrading(tunnel):
    """A world and an app on `upgrading` that answers 101 with the protocol named in the path, and then echoes."""
    world, _ = tunnel

    def answer(seen, connection):
        if seen.target == "/upgrade":
            return app.echo(seen)
        connection.sendall(switching_to(seen.target[1:]))
        while data := connection.recv(65536):
            connection.sendall(data)
        return None

    app = world.app(answer=answer)
    client = world.client(app, name="upgrading")
    yield world, app
    client.stop()


@pytest.mark.parametrize("protocols", ["h2c", "foo, h2c", "H2C , foo", "foo,h2c-14"])
def test_h2c_is_not_asked_for(upgrading, protocols):
    """The request goes to the app as an ordinary one."""
    world, app = upgrading
    with world.wire("upgrading") as wire:
        assert wire.ask(asking_for(protocols, name="upgrading")).status == 200
    assert app.seen[0].header("upgrade") is None
    assert "upgrade" not in (app.seen[0].header("connection") or "").lower()


@pytest.mark.parametrize("protocols", ["websocket", "a, b", "cc"])
def test_an_app_that_switches_to_what_was_not_asked_for_is_502(upgrading, protocols):
    world, _ = upgrading
    with world.wire("upgrading") as wire:
        reply = wire.ask(asking_for(protocols, "/c", "upgrading"))
    assert reply.status == 502 and reply.header("upgrade") is None


@pytest.mark.parametrize(("protocols", "chosen"), [("a, b", "b"), ("a,b", "a"), ("foo/1, bar/2", "bar/2"), ("websocket", "WebSocket")])
def test_the_app_chooses_among_what_was_asked_for(upgrading, protocols, chosen):
    world, app = upgrading
    with world.wire("upgrading") as wire:
        reply = wire.ask(asking_for(protocols, f"/{chosen}", "upgrading"))
        assert reply.status == 101 and reply.all("upgrade") == [chosen]
        assert reply.header("connection").lower() == "upgrade"
        wire.send(b"over the new protocol")
        assert wire._exactly(21) == b"over the new protocol"
    assert [word.strip() for word in app.seen[0].header("upgrade").split(",")] == [word.strip() for word in protocols.split(",")]
