"""The way round blocked UDP: HTTP/2 over TCP, there and back, through proxies, over links that lose or swallow packets.

The namespaces are those of test_network.py. Where a proxy is the only way, it is in a third one, which forwards nothing:

relay namespace  10.77.0.1 ══ 10.77.0.254  proxy namespace  10.78.0.254 ══ 10.78.0.2  client namespace
"""

import base64
import collections
import concurrent.futures
import contextlib
import fcntl
import hashlib
import itertools
import os
import pathlib
import random
import re
import select
import socket
import struct
import threading
import time

import pytest
from websockets.sync.client import connect

from test_network import (
    BACK, NOTICED, SILENT, SLACK, WHY_NOT, Net, blocked, join, needs_fallback, possible, udp_blocked,
)  # fmt: skip
from test_websockets import EchoServer
from world import DOMAIN, LONG, Closed, eventually, lacking, request, tls_context

MIB = 1 << 20
RETURNED = 90.0  # seconds in which a client on h2 tries QUIC again
GIVEN_UP = 30.0  # seconds after which a way to the relay that leads nowhere is no longer waited for

_numbers = itertools.count()  # of clients
assert possible  # the fixture of test_network.py, which holds here, too
pytestmark = needs_fallback


@contextlib.contextmanager
def network(folder, transport=None, kind=Net, **options):
    """A network whose logs are printed, so that a failure shows them."""
    with contextlib.closing(kind(folder, transport, **options)) as net:
        try:
            yield net
        finally:
            for program in (net.relay, net.client):
                if program:
                    print(f"── {program.title}\n{program.log()}")


def transport_of(net):
    return net.client.find("ready")["transport"]


def since(net):
    return len(net.client.events)


def moved_to(net, transport, since, seconds):
    """Waits until the client says after `since` events that it is up over this transport."""
    wanted = lambda event: (
        event.get("event") == "session" and event["state"] == "up" and event["transport"] == transport
    )
    net.client.wait(lambda: any(map(wanted, net.client.events[since:])), seconds, f"session up over {transport}")


# ── nothing is lost ───────────────────────────────────────────────────────────────────────────────────────────────

SLOW = 1.5  # seconds that the app takes for a slow delivery


class Senders:
    """POSTs without end beside a fault, quick ones and slow ones, and what became of each: none may be lost."""

    PAUSES = {"n": 0.04, "slow": 1.0}  # seconds; what is slow and waits holds up what waits behind it

    def __init__(self, net):
        self.net = net
        self.answered, self.failed, self.waits = {}, [], collections.defaultdict(list)
        self._numbers, self._stop = itertools.count(), threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(kind,)) for kind in ("n", "n", "slow")]
        self._answer, net.app.answer = net.app.answer, self._app

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, failed, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        if not failed:
            self._check()

    def _app(self, seen, connection):
        if seen.target.startswith("/slow/"):
            time.sleep(SLOW)
        return self._answer(seen, connection)

    def _run(self, kind):
        wire = None
        while not self._stop.wait(self.PAUSES[kind]):
            path, began = f"/{kind}/{next(self._numbers)}", time.monotonic()
            try:
                wire = wire or self.net.wire()
                self.answered[path] = wire.ask(request("POST", path, path.encode()))
            except (OSError, Closed) as failure:
                self.failed.append((path, failure))
                wire = None
            self.waits[kind].append(time.monotonic() - began)

    def go_on(self, count=50):
        """Wait for so many further answers."""
        wanted = len(self.answered) + count
        eventually(lambda: len(self.answered) >= wanted, what=f"{count} more answers")

    def _check(self):
        assert not self.failed, f"{len(self.failed)} of {len(self.answered)}: {self.failed[0]}"
        for path, reply in self.answered.items():
            assert reply.status in (200, 202), (path, reply)
            assert reply.status == 202 or reply.json()["target"] == path
        missing = lambda: self.answered.keys() - {seen.target for seen in list(self.net.app.seen)}
        began = time.monotonic()
        with contextlib.suppress(AssertionError):
            eventually(lambda: not missing(), 30)
        print(f"all arrived {time.monotonic() - began:.1f} s after the last was sent")
        assert not missing(), f"{len(missing())} of {len(self.answered)} answered and lost: {sorted(missing())[:5]}"
        seen = collections.defaultdict(list)
        for it in list(self.net.app.seen):
            seen[it.target].append(it)
        for path in self.answered:
            assert {it.body for it in seen[path]} == {path.encode()}
            assert len({it.header("hookway-delivery") for it in seen[path]}) == 1
            unmarked = [it for it in seen[path] if it.header("hookway-possible-duplicate") != "1"]
            assert len(unmarked) <= 1, f"{path} came {len(seen[path])} times, {len(unmarked)} of them unmarked"
        queued = sum(reply.status == 202 for reply in self.answered.values())
        repeated = sum(len(seen[path]) > 1 for path in self.answered)
        longest = {kind: f"{max(waits):.1f} s" for kind, waits in self.waits.items()}
        print(f"{len(self.answered)} POSTs, {queued} of them queued, {repeated} repeated; longest waits {longest}")
        assert max(self.waits["n"]) < SILENT + SLACK


class Lasting:
    """What is under way for as long as the test likes: events, a download, an upload, a WebSocket. All must end well."""

    PIECE = 16 << 10

    def __init__(self, net, socket_server):
        self.net, self.stop = net, threading.Event()
        self._answer, net.app.answer = net.app.answer, self._app
        self._downloaded, self._events = hashlib.sha256(), bytearray()
        self.socket_server = socket_server
        self._pool = concurrent.futures.ThreadPoolExecutor(4)
        kinds = (self._listen, self._download, self._upload, self._chat)
        self._running = {kind.__name__: self._pool.submit(kind) for kind in kinds}
        begun = {"/events", "/download"}
        eventually(lambda: begun <= {seen.target for seen in net.app.seen}, what="the lasting ones beginning")

    def end(self):
        """End them all, and say how."""
        broken = {kind: it.exception() for kind, it in self._running.items() if it.done()}
        assert not broken, broken
        self.stop.set()
        for kind, it in self._running.items():
            print(f"{kind.strip('_')}: {it.result(30)}")
        self._pool.shutdown()

    def abandon(self):
        self.stop.set()
        self._pool.shutdown(wait=False)

    def _app(self, seen, connection):
        if seen.target not in ("/events", "/download"):
            return self._answer(seen, connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in itertools.count():
            if seen.target == "/events":
                piece = b"data: %d\n\n" % n
                self._events += piece
            else:
                piece = b"%08d" % n * (self.PIECE // 8)
                self._downloaded.update(piece)
            connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            if self.stop.wait(0.02):
                break
        connection.sendall(b"0\r\n\r\n")
        return None

    def _listen(self):
        with self.net.wire() as wire:
            reply = wire.ask(request("GET", "/events"))
            assert reply.complete and reply.body == self._events, f"{len(reply.body)} of {len(self._events)} bytes"
            return f"{reply.body.count(b'data')} events"

    def _download(self):
        with self.net.wire() as wire:
            reply = wire.ask(request("GET", "/download"))
            assert reply.complete and hashlib.sha256(reply.body).digest() == self._downloaded.digest(), len(reply.body)
            return f"{len(reply.body)} bytes"

    def _upload(self):
        sent, length = hashlib.sha256(), 0
        with self.net.wire() as wire:
            wire.send(request("POST", "/upload", headers=[("Transfer-Encoding", "chunked")]))
            # The first makes it too large to be read whole before it is handed over.
            for piece in itertools.chain([os.urandom(2 * MIB)], iter(lambda: os.urandom(self.PIECE), None)):
                wire.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent.update(piece)
                length += len(piece)
                if self.stop.wait(0.02):
                    break
            wire.send(b"0\r\n\r\n")
            seen = wire.reply("POST").json()
        assert seen["length"] == length and seen["sha256"] == sent.hexdigest(), f"{seen['length']} of {length}"
        return f"{length} bytes"

    def _chat(self):
        there = ("10.77.0.1", self.net.port)
        wire = self.net.near.inside(lambda: socket.create_connection(there))
        url = f"wss://billing.{DOMAIN}:{self.net.port}/socket"
        with connect(url, sock=wire, ssl=tls_context(self.net.ca), proxy=None, subprotocols=["echo"]) as chat:
            for n in itertools.count():
                chat.send(f"message {n}")
                assert chat.recv(timeout=20) == f"message {n}"
                if self.stop.wait(0.02):
                    break
        assert eventually(lambda: self.socket_server.ends)[0][0] == 1000
        return f"{n + 1} messages"


# ── there and back ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("side, action", [("near", "blackhole"), ("far", "prohibit")])
def test_without_udp_it_is_ready_over_tcp(tmp_path, side, action):
    """Whether datagrams vanish or are refused."""
    with network(tmp_path) as net, blocked(getattr(net, side), "udp", action):
        began = time.monotonic()
        net.connect("auto")
        took = time.monotonic() - began
        print(f"ready after {took:.2f} s")
        assert transport_of(net) == "h2" and net.session("up")["transport"] == "h2"
        assert net.post("/x").status == 200
        assert took < BACK + SLACK
        assert net.client.stop() == 0


def test_without_tcp_it_is_ready_over_udp(tmp_path):
    with network(tmp_path) as net, blocked(net.near, "tcp"):
        net.connect("auto")
        assert transport_of(net) == "quic" and net.status() == 200


@pytest.mark.parametrize("learned", ["h2", "quic"])
def test_what_was_learned_of_a_network_does_not_bind(tmp_path, learned):
    """It is ready over the other, where the one that was used the last time is blocked now."""
    then, now = ("udp", "tcp") if learned == "h2" else ("tcp", "udp")
    with network(tmp_path) as net:
        with blocked(net.near, then):
            net.connect("auto", title="then")
            assert transport_of(net) == learned
            net.client.stop()
        with blocked(net.near, now):
            began = time.monotonic()
            net.connect("auto", title="now")
            print(f"ready after {time.monotonic() - began:.2f} s")
            assert transport_of(net) != learned and net.status() == 200


def test_udp_that_dies_and_comes_back_loses_nothing(tmp_path):
    with network(tmp_path) as net:
        socket_server = net.far.inside(EchoServer)
        net.connect("auto", "--route", f"/socket={socket_server.address}")
        assert transport_of(net) == "quic" and net.status() == 200
        with Senders(net) as senders:
            senders.go_on()
            so_far = since(net)
            with udp_blocked(net.near), udp_blocked(net.far):
                began = time.monotonic()
                net.session("down", so_far, NOTICED + SLACK)
                noticed = time.monotonic()
                moved_to(net, "h2", so_far, BACK + SLACK)
                fell_back = time.monotonic()
                eventually(lambda: net.status() == 200, SLACK, "deliveries going on")
                senders.go_on()
                lasting = Lasting(net, socket_server)
                senders.go_on()
            try:
                so_far, free = since(net), time.monotonic()
                moved_to(net, "quic", so_far, RETURNED)
                returned = time.monotonic()
                senders.go_on()
                lasting.end()
                senders.go_on()
            finally:
                lasting.abandon()
        print(
            f"noticed after {noticed - began:.1f} s, over h2 {fell_back - noticed:.1f} s later,"
            f" back {returned - free:.1f} s after UDP was"
        )
        assert net.client.running and net.status() == 200


@pytest.mark.parametrize("share", ["balance", "copy"] if LONG else ["copy"])
def test_moving_to_quic_does_not_make_two_of_a_sharing_client(tmp_path, share):
    """The old link and the new one are the same client: nothing is lost, nothing comes twice unmarked."""
    with network(tmp_path) as net, contextlib.ExitStack() as cut:
        cut.enter_context(udp_blocked(net.near))
        net.connect("auto", "--share", share)
        assert transport_of(net) == "h2"
        with Senders(net) as senders:
            senders.go_on()
            so_far = since(net)
            cut.close()
            moved_to(net, "quic", so_far, RETURNED)
            senders.go_on()
        assert net.client.running and net.status() == 200


def test_a_client_told_to_use_tcp_stays_there(tmp_path):
    """Also when that is lost and UDP would do."""
    with network(tmp_path, "h2") as net:
        assert transport_of(net) == "h2" and net.status() == 200
        so_far = since(net)
        net.far.ip("link", "set", "hwc", "down")
        net.session("down", so_far, NOTICED + SLACK)
        net.far.ip("link", "set", "hwc", "up")
        assert net.session("up", so_far, BACK + SLACK)["transport"] == "h2"
        assert net.status() == 200


# ── one link for many ─────────────────────────────────────────────────────────────────────────────────────────────


def test_those_that_stand_still_do_not_hold_up_the_others(new_world):
    """Twenty senders that do not read their answers, twenty uploads that their app does not take: all over one TCP."""
    world = new_world()

    def answer(seen, connection):
        if seen.target == "/endless":
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(b"x" * 65536)
        return app.echo(seen)

    app, stuck = world.app(answer=answer), socket.create_server(("127.0.0.1", 0))
    client = world.client(app, "--transport", "h2", "--route", "/stuck=127.0.0.1:%d" % stuck.getsockname()[1])
    assert client.find("ready")["transport"] == "h2"
    with stuck, contextlib.ExitStack() as standing:
        for _ in range(20):
            reader = standing.enter_context(world.wire(receive_buffer=4096))
            reader.send(request("GET", "/endless"))
            writer = standing.enter_context(world.wire())
            writer.tls.settimeout(0.2)
            writer.send(request("POST", "/stuck", headers=[("Transfer-Encoding", "chunked")]))
            with contextlib.suppress(TimeoutError):
                for _ in range(64):
                    writer.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        eventually(lambda: len(app.at("/endless")) == 20, what="all standing still")
        took = []
        for n in range(100):
            began = time.monotonic()
            assert world.post(f"/{n}", os.urandom(100_000)).status == 200
            took.append(time.monotonic() - began)
        print(f"the others took {sorted(took)[50] * 1000:.0f} ms, the slowest {max(took) * 1000:.0f} ms")
        assert max(took) < SILENT + SLACK


# ── links that lose, cut and swallow packets ──────────────────────────────────────────────────────────────────────


class Bridge:
    """Two TUN devices with a thread between them that holds packets back and loses some: no kernel needs netem for it."""

    def __init__(self, ends, delay=0.0, loses=lambda packet: False):
        """`ends` are two of (namespace, device, address); `loses` tells of each IPv4 packet."""
        self.delay, self.loses = delay, loses
        self.passed = self.lost = 0
        self._stop = threading.Event()
        self._files = [namespace.inside(lambda name=name: self._device(name)) for namespace, name, _ in ends]
        for namespace, name, address in ends:
            namespace.ip("address", "add", address, "dev", name)
            namespace.ip("link", "set", name, "up")
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @staticmethod
    def _device(name):
        tunsetiff, tun, no_packet_information = 0x400454CA, 0x0001, 0x1000
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, tunsetiff, struct.pack("16sH22x", name.encode(), tun | no_packet_information))
        return file

    def close(self):
        self._stop.set()
        self._thread.join(10)
        for file in self._files:
            os.close(file)

    def _run(self):
        others, waiting = dict(zip(self._files, reversed(self._files))), collections.deque()
        while not self._stop.is_set():
            wait = max(0, waiting[0][0] - time.monotonic()) if waiting else 0.1
            for file in select.select(self._files, [], [], wait)[0]:
                with contextlib.suppress(BlockingIOError):
                    while packet := os.read(file, 65536):
                        if self.loses(packet):
                            self.lost += 1
                        else:
                            waiting.append((time.monotonic() + self.delay, others[file], packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, file, packet = waiting.popleft()
                self.passed += 1
                with contextlib.suppress(OSError):
                    os.write(file, packet)


class Bridged(Net):
    """Over a bridge."""

    delay = 0.0

    def _link(self):
        if not pathlib.Path("/dev/net/tun").exists():
            lacking("/dev/net/tun is missing")
        ends = ((self.near, "hwr", "10.77.0.1/24"), (self.far, "hwc", "10.77.0.2/24"))
        self.bridge = Bridge(ends, self.delay, self.loses)
        self.stack.callback(self.bridge.close)


class Lossy(Bridged):
    """Each packet is held back for 50 ms, either way, and one of twenty is lost."""

    delay, chance = 0.05, random.Random(8085)

    def loses(self, packet):
        return self.chance.random() < 0.05


class Policed(Bridged):
    """Of each flow of UDP forty packets pass, as firewalls do that look at the first of them only."""

    def loses(self, packet):
        udp, head = packet[9] == 17, (packet[0] & 15) * 4
        if not udp:
            return False
        ports = frozenset(struct.unpack("!HH", packet[head : head + 4]))
        self.flows[ports] += 1
        return self.flows[ports] > 40

    def _link(self):
        self.flows = collections.Counter()
        super()._link()


@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_a_link_that_loses_packets_loses_no_delivery(tmp_path, transport):
    with network(tmp_path, transport, Lossy) as net:
        count, bodies = 200, {f"/lossy/{n}": os.urandom(1024) for n in range(200)}
        numbers, wires = iter(list(bodies)), threading.local()

        def send(path):
            began = time.monotonic()
            wires.wire = getattr(wires, "wire", None) or net.wire()
            return path, wires.wire.ask(request("POST", path, bodies[path])), time.monotonic() - began

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            done = list(pool.map(send, numbers))
        assert len(done) == count and {reply.status for _, reply, _ in done} <= {200, 202}
        eventually(lambda: bodies.keys() <= {seen.target for seen in net.app.seen}, 30, "all arriving")
        assert all(seen.body == bodies[seen.target] for seen in net.app.seen)
        took = sorted(took for *_, took in done)
        queued = sum(reply.status == 202 for _, reply, _ in done)
        print(f"{transport}: p50 {took[100] * 1000:.0f} ms, p99 {took[198] * 1000:.0f} ms, {queued} queued", end="; ")
        print(f"{net.bridge.lost} of {net.bridge.lost + net.bridge.passed} packets lost")
        assert net.bridge.lost > 10
        assert took[-1] < SILENT + SLACK


def test_udp_that_passes_at_first_only_loses_no_delivery(tmp_path):
    """QUIC is up each time and then dead: TCP carries on, and QUIC is not tried again and again at once."""
    with network(tmp_path, None, Policed) as net:
        net.connect("auto")
        assert transport_of(net) == "quic"
        with Senders(net) as senders:
            moved_to(net, "h2", 0, 2 * (NOTICED + BACK) + SLACK)
            senders.go_on()
            if LONG:
                so_far = since(net)
                moved_to(net, "quic", so_far, RETURNED)
                moved_to(net, "h2", so_far, NOTICED + BACK + SLACK)
                senders.go_on()
        assert net.client.running and len(net.flows) < 5


class Narrow(Net):
    """Over a link that takes packets of 1280 bytes at most; the relay's side does not know that."""

    def _link(self):
        super()._link()
        self.far.ip("link", "set", "hwc", "mtu", "1280")


@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_large_bodies_pass_a_narrow_link_as_they_are(tmp_path, transport):
    with network(tmp_path, transport, Narrow) as net:
        there, back = os.urandom(MIB), os.urandom(MIB)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(back)
        net.app.answer = lambda seen, _: head + back
        for n in range(3):
            with net.wire() as wire:
                reply = wire.ask(request("POST", f"/{n}", there))
            assert reply.status == 200 and reply.complete and reply.body == back
            assert [seen.body for seen in net.app.at(f"/{n}")] == [there]


@pytest.mark.parametrize("deaf", ["client", "relay"])
@pytest.mark.parametrize("transport", ["h2", "quic"])
def test_a_half_open_link_is_noticed_and_nothing_lost(tmp_path, transport, deaf):
    """Without a reset: what is sent to the one side vanishes."""
    protocol = {"h2": "tcp", "quic": "udp"}[transport]
    with network(tmp_path, transport) as net, Senders(net) as senders:
        senders.go_on()
        so_far = since(net)
        with blocked({"client": net.near, "relay": net.far}[deaf], protocol):
            began = time.monotonic()
            waits = net.post("/waits")
            assert time.monotonic() - began < SILENT + SLACK
            net.session("down", so_far, NOTICED + SLACK)
            noticed = time.monotonic() - began
            eventually(lambda: net.status(1.0) == 503, NOTICED + SLACK - (time.monotonic() - began), "the relay noticing")
            there = time.monotonic() - began
        free = time.monotonic()
        moved_to(net, transport, so_far, BACK + SLACK)
        print(f"noticed after {noticed:.1f} s and {there:.1f} s, back after {time.monotonic() - free:.1f} s")
        net.arrived_once(waits, "/waits")
        senders.go_on()


def test_a_link_that_goes_deaf_one_way_and_then_both_is_noticed_in_time(tmp_path):
    """The second does not begin the count anew."""
    with network(tmp_path, "h2") as net, Senders(net) as senders:
        senders.go_on()
        so_far, began = since(net), time.monotonic()
        with blocked(net.near, "tcp"):
            time.sleep(1.5)
            with blocked(net.far, "tcp"):
                net.session("down", so_far, NOTICED + SLACK - (time.monotonic() - began))
        moved_to(net, "h2", so_far, BACK + SLACK)
        senders.go_on()


# ── proxies ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Proxy:
    """An HTTP proxy that knows CONNECT. `behave(self, head, connection)` answers; `heads` is what it was asked."""

    def __init__(self, namespace, behave):
        self.namespace, self.behave, self.heads, self.sent = namespace, behave, [], 0
        self.sockets = []
        self._listener = namespace.inside(lambda: socket.create_server(("10.78.0.254", 0)))
        self.address = "10.78.0.254:%d" % self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def lines(self):
        return [head.split("\r\n")[0] for head in self.heads]

    def close(self):
        self._listener.close()
        self.hang_up()

    def hang_up(self):
        for connection in self.sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.sockets.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        head = b""
        with connection, contextlib.suppress(OSError):
            while b"\r\n\r\n" not in head:
                if not (more := connection.recv(65536)):
                    return
                head += more
            self.heads.append(head.decode("latin-1"))
            self.behave(self, self.heads[-1], connection)

    def tunnel(self, head, connection):
        """Knows one name, the relay's, and leads there."""
        host, _, port = head.split(" ")[1].rpartition(":")
        assert host == DOMAIN, head
        other = self.namespace.inside(lambda: socket.create_connection(("10.77.0.1", int(port))))
        self.sockets.append(other)
        connection.sendall(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n")
        threading.Thread(target=self._pump, args=(other, connection), daemon=True).start()
        self._pump(connection, other)

    @staticmethod
    def _pump(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def sends(self, connection, *pieces, pause=0.0):
        for piece in pieces:
            connection.sendall(piece)
            self.sent += len(piece)
            if pause:
                time.sleep(pause)


class Proxied(Net):
    """The proxy's namespace is between the two, and forwards only when told to: then TCP."""

    files = {"hosts": "", "resolv.conf": "nameserver 192.0.2.53\n"}

    def _link(self):
        self.middle = self._namespace("proxy")
        join((self.near, "hwr", "10.77.0.1/24"), (self.middle, "hwp", "10.77.0.254/24"))
        join((self.far, "hwc", "10.78.0.2/24"), (self.middle, "hwq", "10.78.0.254/24"))
        self.near.ip("route", "add", "default", "via", "10.77.0.254")
        self.far.ip("route", "add", "default", "via", "10.78.0.254")
        self.stack.enter_context(udp_blocked(self.middle))
        self.forward(False)

    def forward(self, on):
        switch = "/proc/sys/net/ipv4/ip_forward"
        self.middle.inside(lambda: pathlib.Path(switch).write_text("1" if on else "0"))

    def proxy(self, behave=Proxy.tunnel):
        return self.stack.enter_context(contextlib.closing(Proxy(self.middle, behave)))

    def fails(self, transport="h2", **environment):
        """What a client says that cannot reach the relay, exiting 3; and the seconds it took."""
        began = time.monotonic()
        client = self.connect(transport, ready=False, title=f"client-{next(_numbers)}", **environment)
        code = client.exited(GIVEN_UP + SLACK)
        took = time.monotonic() - began
        said = client.log()
        print(f"after {took:.1f} s:\n{said}")
        assert code == 3, f"exit {code}\n{said}"
        return Said(said), took


class Said(str):
    """An error as agreed: what happened, the cause, the next step."""

    @property
    def cause(self):
        return re.search(r"^  cause: (.*)$", self, re.MULTILINE)[1]

    @property
    def next(self):
        return re.search(r"^  next:  (.*)$", self, re.MULTILINE)[1]


@pytest.fixture(scope="module")
def proxied(tmp_path_factory):
    """For the tests of proxies, each of which starts its own clients."""
    if WHY_NOT:
        lacking(WHY_NOT)
    with network(tmp_path_factory.mktemp("proxied"), None, Proxied) as net:
        yield net


@pytest.fixture
def started(proxied):
    """`started(transport, **environment)`: a client of the test's own on the shared network."""

    def start(transport, **environment):
        if proxied.client:
            proxied.client.stop()
        return proxied.connect(transport, title=f"client-{next(_numbers)}", **environment)

    yield start
    if proxied.client:
        proxied.client.stop()


def direct(net, on):
    """Whether TCP reaches the relay without the proxy, and its name is known."""
    net.forward(on)
    net.files["hosts"] = f"10.77.0.1 {DOMAIN}\n" if on else ""


@pytest.fixture
def open_way(proxied):
    direct(proxied, True)
    yield
    direct(proxied, False)


@pytest.mark.parametrize("variable, scheme", [("HTTPS_PROXY", "http://"), ("https_proxy", "HTTP://"), ("ALL_PROXY", "")])
@pytest.mark.parametrize("transport", ["auto", "h2"])
def test_a_proxy_leads_to_the_relay(proxied, started, transport, variable, scheme):
    """It looks the relay's name up, which nothing on the client's side knows."""
    proxy = proxied.proxy()
    began = time.monotonic()
    started(transport, **{variable: scheme + proxy.address})
    print(f"ready after {time.monotonic() - began:.1f} s; {proxy.heads}")
    assert transport_of(proxied) == "h2" and proxied.status() == 200
    assert proxy.lines == [f"CONNECT {DOMAIN}:{proxied.port} HTTP/1.1"]
    assert f"\r\nhost: {DOMAIN}:{proxied.port}\r\n" in proxy.heads[0].lower()
    assert "authorization" not in proxy.heads[0].lower() and "hwt_" not in proxy.heads[0]


def test_a_proxy_that_hangs_up_is_called_again(proxied, started):
    proxy = proxied.proxy()
    started("auto", HTTPS_PROXY=f"http://{proxy.address}/")
    with Senders(proxied) as senders:
        senders.go_on()
        so_far = since(proxied)
        proxy.hang_up()
        moved_to(proxied, "h2", so_far, NOTICED + BACK + SLACK)
        senders.go_on()
    assert len(proxy.lines) > 1


def test_a_client_leaves_its_proxy_when_udp_passes(tmp_path):
    """As when the laptop is carried home; nothing is lost on the way."""
    with network(tmp_path, None, Proxied) as net:
        net.files = Net.files
        net.connect("auto", HTTPS_PROXY=f"http://{net.proxy().address}")
        assert transport_of(net) == "h2"
        with Senders(net) as senders:
            so_far = since(net)
            net.forward(True)
            net.middle.ip("rule", "delete", "pref", "10")
            moved_to(net, "quic", so_far, RETURNED)
            senders.go_on()
        net.stack.callback(net.middle.ip, "rule", "add", "pref", "10", "ipproto", "udp", "blackhole")


@pytest.mark.parametrize("user, password", [("ann", "secret-word"), ("ann@corp", "p@ss:w/rd ✓")])
def test_a_proxy_is_told_who_asks(proxied, started, user, password):
    quoted = "".join(f"%{byte:02X}" for byte in password.encode())
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()

    def behave(proxy, head, connection):
        if f"\r\nproxy-authorization: basic {credentials}\r\n".lower() in head.lower() and credentials in head:
            return proxy.tunnel(head, connection)
        return proxy.sends(connection, b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    proxy = proxied.proxy(behave)
    started("h2", HTTPS_PROXY=f"http://{user.replace('@', '%40')}:{quoted}@{proxy.address}")
    assert proxied.status() == 200 and len(proxy.heads) == 1


@pytest.mark.parametrize("transport", ["auto", "h2"])
def test_a_wrong_password_for_the_proxy_is_said_and_not_shown(proxied, transport):
    refusal = b'HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 5\r\n\r\nsorry'
    proxy = proxied.proxy(lambda proxy, head, connection: proxy.sends(connection, refusal))
    said, _ = proxied.fails(transport, HTTPS_PROXY=f"http://ann:wr0ng-w0rd@{proxy.address}")
    assert proxy.heads and proxy.address in said and "407" in said
    assert "HTTPS_PROXY=" in said
    assert "wr0ng-w0rd" not in said and base64.b64encode(b"ann:wr0ng-w0rd").decode() not in said


def hangs(proxy, head, connection):
    connection.recv(1)


def drips(proxy, head, connection):
    proxy.sends(connection, *(bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000), pause=0.5)


def endless(proxy, head, connection):
    proxy.sends(connection, b"HTTP/1.1 200 OK\r\n", *itertools.repeat(b"X-Filler: " + b"x" * 8000 + b"\r\n", 16_000))


def endless_line(proxy, head, connection):
    proxy.sends(connection, b"HTTP/1.1 200 ", *itertools.repeat(b"x" * 65_536, 2_000))


def says(answer):
    return lambda proxy, head, connection: proxy.sends(connection, answer)


def says_and_waits(answer):
    def behave(proxy, head, connection):
        proxy.sends(connection, answer)
        connection.recv(65536)
        time.sleep(GIVEN_UP)

    return behave


# What a proxy does, and what is to be said of it.
PROXIES = {
    "forbids": (says(b"HTTP/1.1 403 Forbidden by policy\r\nContent-Length: 0\r\n\r\n"), "403"),
    "cannot": (says(b"HTTP/1.0 502 Bad Gateway\r\n\r\n<h1>no</h1>"), "502"),
    "redirects": (says(b"HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\n\r\n"), "302"),
    "hangs": (hangs, None),
    "drips": (drips, None),
    "closes": (lambda *_: None, None),
    "cut": (says(b"HTTP/1.1 200 O"), None),
    "garbage": (says(bytes(range(255, 0, -1)) + b"\r\n\r\n"), None),
    "ssh": (says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), None),
    "no-status": (says(b"HTTP/1.1 2x0 OK\r\n\r\n"), None),
    "endless": (endless, None),
    "endless-line": (endless_line, None),
    "escapes": (says(b"HTTP/1.1 403 \x1b[2J\x1b]0;evil\x07\r\n\r\n"), None),
    "opens-and-closes": (says(b"HTTP/1.1 200 OK\r\n\r\n"), None),
    "opens-and-hangs": (says_and_waits(b"HTTP/1.1 200 OK\r\n\r\n"), None),
    "opens-and-talks-plain": (says_and_waits(b"HTTP/1.1 200 OK\r\n\r\n" + b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10), None),
}


@pytest.mark.parametrize("kind", PROXIES)
def test_a_proxy_that_leads_nowhere_is_named(proxied, kind):
    behave, answered = PROXIES[kind]
    proxy = proxied.proxy(behave)
    said, took = proxied.fails(HTTPS_PROXY=f"http://{proxy.address}")
    assert proxy.heads and proxy.address in said.cause, said
    assert answered is None or answered in said.cause
    assert said.next and "\x1b" not in said and took < GIVEN_UP
    assert proxy.sent < 8 * MIB, "it was listened to for too long"


@pytest.mark.parametrize("transport", ["auto", "h2"])
def test_a_proxy_that_is_not_there_is_named(proxied, transport):
    said, took = proxied.fails(transport, HTTPS_PROXY="http://10.78.0.254:9")
    assert "10.78.0.254:9" in said.cause and took < GIVEN_UP


STRANGE = ["socks5://10.78.0.254:1080", "ftp://10.78.0.254", "http://", "http://10.78.0.254:port", "::", "\x07"]


@pytest.mark.parametrize("n", range(len(STRANGE)))
def test_a_proxy_of_another_kind_is_not_passed_over_in_silence(proxied, n):
    client = proxied.connect("h2", ready=False, title=f"client-{next(_numbers)}", HTTPS_PROXY=STRANGE[n])
    assert client.exited(GIVEN_UP + SLACK) in (2, 3, 7)
    said = client.log()
    print(said)
    assert "proxy" in said.lower() and "\x07" not in said


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("value", [DOMAIN, "other.example, " + DOMAIN.upper(), ".test", "test", "*"])
def test_no_proxy_is_honoured(proxied, open_way, started, variable, value):
    proxy = proxied.proxy()
    started("h2", HTTPS_PROXY=f"http://{proxy.address}", **{variable: value})
    assert proxied.status() == 200 and not proxy.heads


@pytest.mark.parametrize("value", ["", "oks.test", "other.example", "hooks.test.example", "billing.hooks.test"])
def test_no_proxy_for_others_does_not_matter(proxied, open_way, started, value):
    proxy = proxied.proxy()
    started("h2", HTTPS_PROXY=f"http://{proxy.address}", NO_PROXY=value)
    assert proxied.status() == 200 and len(proxy.heads) == 1


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"])
def test_an_empty_proxy_or_one_for_plain_http_is_none(proxied, open_way, started, variable):
    proxy = proxied.proxy()
    started("h2", **{variable: f"http://{proxy.address}" if "HTTP_" in variable.upper() else ""})
    assert proxied.status() == 200 and not proxy.heads


def test_quic_does_not_ask_the_proxy(tmp_path):
    """Where UDP passes, a proxy is not needed."""
    with network(tmp_path) as net:
        net.connect("auto", HTTPS_PROXY="http://10.77.0.1:9")
        assert transport_of(net) == "quic" and net.status() == 200


# ── no way at all ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport, dead", [("quic", ["udp"]), ("h2", ["tcp"]), ("auto", ["udp", "tcp"])])
def test_no_way_is_named_with_the_next_step(tmp_path, transport, dead):
    with network(tmp_path) as net, contextlib.ExitStack() as cut:
        for protocol in dead:
            cut.enter_context(blocked(net.near, protocol))
        began = time.monotonic()
        client = net.connect(transport, ready=False)
        assert client.exited(GIVEN_UP) == 3
        said = Said(client.log())
        print(f"after {time.monotonic() - began:.1f} s:\n{said}")
        assert all(protocol.upper() in said.cause for protocol in dead)
        assert {it for it in ("TCP", "UDP") if it in said.next} <= {it.upper() for it in dead}, "the one that is not used"
