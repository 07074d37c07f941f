"""Links that change and break: relay and client in network namespaces of their own, joined by a veth pair.

relay namespace  10.77.0.1 ══ veth ══ 10.77.0.2  client namespace, with the app on its loopback
"""

import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time

import pytest

import namespaces
from world import DOMAIN, HOOKWAY, HOOKWAY_RELAY, Closed, Program, RawApp, Wire, eventually, lacking, request, takes

SILENT = 2.0  # seconds without a sign of life after which senders are no longer kept waiting
NOTICED = 6.0  # seconds in which both sides notice a dead link
BACK = 5.0  # seconds in which the client is back once the link is
SLACK = 3.0  # for a busy machine of two cores

_numbers = itertools.count()


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def why_not():
    """Why namespaces cannot be made here, if they cannot."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "iproute2 is missing"
    probe = f"hw-probe-{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"ip netns add: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return None


WHY_NOT = why_not()
FALLBACK = takes("--transport")
needs_fallback = pytest.mark.skipif(not FALLBACK, reason="this client has no fallback from QUIC")


@pytest.fixture(autouse=True)
def possible():
    if WHY_NOT:
        lacking(WHY_NOT)


class Namespace:
    def __init__(self, name):
        self.name = f"hw-{name}-{os.getpid()}-{next(_numbers)}"
        ip("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *words):
        ip("-n", self.name, *words)

    def command(self, *words):
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def inside(self, make):
        """What `make()` gives, called in this namespace: the sockets that it opens belong there for good."""
        return namespaces.inside(f"/run/netns/{self.name}", make, 30)

    def close(self):
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)


def join(*ends):
    """A veth pair between two namespaces: for each end (namespace, device, address)."""
    (one, device, _), (other, peer, _) = ends
    ip("link", "add", device, "netns", one.name, "type", "veth", "peer", "name", peer, "netns", other.name)
    for namespace, name, address in ends:
        namespace.ip("address", "add", address, "dev", name)
        namespace.ip("link", "set", name, "up")


class Net:
    """Relay, client and app across a link, and a sender beside the relay."""

    # The client's own, in /etc: the relay's certificate covers its domain, not the address of this link.
    files = {"hosts": f"10.77.0.1 {DOMAIN}\n"}
    client = None

    def __init__(self, folder, transport, udp=True):
        """No client is started without a transport: see `connect`."""
        self.folder, self.stack = folder, contextlib.ExitStack()
        try:
            self._start(udp)
            if transport:
                self.connect(transport)
        except BaseException:
            self.stack.close()
            raise

    def _namespace(self, name):
        namespace = Namespace(name)
        self.stack.callback(namespace.close)
        return namespace

    def _program(self, *arguments):
        program = Program(*arguments)
        self.stack.callback(program.stop)
        return program

    def _link(self):
        """What joins the two."""
        join((self.near, "hwr", "10.77.0.1/24"), (self.far, "hwc", "10.77.0.2/24"))

    def _start(self, udp):
        self.near, self.far = self._namespace("relay"), self._namespace("client")
        self._link()
        if not udp:
            self.stack.enter_context(udp_blocked(self.near))

        data = self.folder / "data"
        listen = ("--https", "10.77.0.1:0", "--http", "off", "--admin", "off")
        serve = ("run", "--domain", DOMAIN, "--data-dir", data, "--tls", "self-signed", "--rate", "off", "--json")
        self.relay = self._program("relay", self.near.command(HOOKWAY_RELAY, *serve, *listen), self.folder / "relay")
        ready = self.relay.event("ready")
        self.ca, self.port = ready["ca"], int(ready["https"].rpartition(":")[2])
        create = [HOOKWAY_RELAY, "token", "create", "--name", "ci", "--json", "--data-dir", data]
        self.token = json.loads(subprocess.run(create, check=True, capture_output=True).stdout)["token"]
        self.app = self.stack.enter_context(self.far.inside(RawApp))

    def connect(self, transport, *flags, ready=True, title="client", **environment):
        """The client, started; one before it is to be stopped first."""
        etc = self.folder / "etc"
        etc.mkdir(exist_ok=True)
        for name, text in self.files.items():
            (etc / name).write_text(text)
        own = ("sh", "-ec", 'for file in "$0"/*; do mount --bind "$file" /etc/"${file##*/}"; done; exec "$@"', etc)
        words = (HOOKWAY, self.app.address, "-n", "billing", "--relay", f"{DOMAIN}:{self.port}", "--relay-ca", self.ca)
        how = ("--transport", transport) if FALLBACK else ()
        command = self.far.command(*own, *words, *how, "--json", *flags)
        environment = {"HOOKWAY_TOKEN": self.token} | environment
        self.client = self._program(title, command, self.folder / "client", environment)
        if ready:
            self.client.event("ready")
        return self.client

    def wire(self, timeout=20.0):
        """A sender's connection, made beside the relay."""
        name = f"billing.{DOMAIN}"
        return self.near.inside(lambda: Wire(("10.77.0.1", self.port), self.ca, name, ("http/1.1",), timeout))

    def status(self, timeout=20.0):
        """The status of one GET; 0 where no answer came."""
        try:
            with self.wire(timeout) as wire:
                return wire.ask(request()).status
        except (OSError, Closed):
            return 0

    def post(self, path):
        """The answer to one POST."""
        with self.wire() as wire:
            return wire.ask(request("POST", path, path.encode()))

    def arrived_once(self, reply, path):
        """What was answered 202 reaches the app: once, or its repeat is marked as one."""
        assert reply.status == 202 and reply.body.startswith(b"queued: ")
        self.client.event("delivery", lambda event: event["path"] == path and event["status"] == 200)
        seen = self.app.at(path)
        assert {(it.body, it.header("hookway-delivery")) for it in seen} == {
            (path.encode(), reply.header("hookway-delivery"))
        }
        assert all(it.header("hookway-possible-duplicate") == "1" for it in seen[1:])

    def session(self, state, since=0, seconds=20.0):
        """The first session event of this state after `since` events."""
        news = lambda: next(
            (e for e in self.client.events[since:] if e.get("event") == "session" and e["state"] == state), None
        )
        return self.client.wait(news, seconds, f"session {state}")

    def close(self):
        self.stack.close()


@pytest.fixture
def net(request, tmp_path):  # pytest's request, not world's
    with contextlib.closing(Net(tmp_path, getattr(request, "param", "quic"))) as net:
        yield net
        for program in (net.relay, net.client):
            print(f"── {program.title}\n{program.log()}")


class Chat:
    """A streamed reply whose next event the app sends once the one before has been read."""

    def __init__(self, count):
        self.count, self.acknowledged = count, queue.Queue()

    def answer(self, seen, connection):
        if seen.target != "/stream":
            return RawApp.echo(self.app, seen)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for n in range(self.count):
            event = b"event %06d\n" % n
            connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
            assert self.acknowledged.get(timeout=30) == n
        connection.sendall(b"0\r\n\r\n")
        return None

    def read(self, wire, at_event):
        """Every event in turn, `at_event(n)` called after each; the longest wait for one."""
        wire.send(request("GET", "/stream"))
        longest = 0.0
        for n in range(self.count):
            began = time.monotonic()
            while b"event %06d\n" % n not in wire.buffer:
                assert wire.receive(), f"the stream ended before event {n}"
            longest = max(longest, time.monotonic() - began)
            self.acknowledged.put(n)
            at_event(n)
        while b"\r\n0\r\n\r\n" not in wire.buffer:
            assert wire.receive(), "the stream ended without its end"
        return longest


def test_a_changed_address_loses_nothing(net):
    """The client's address is swapped, twice, while a reply streams and deliveries go on: QUIC migrates."""
    chat = Chat(3000)
    chat.app, net.app.answer = net.app, chat.answer
    done, failures, sent = threading.Event(), [], []

    def deliver():
        with net.wire() as wire:
            while not done.is_set():
                sent.append(len(sent))
                try:
                    reply = wire.ask(request("POST", f"/n/{sent[-1]}", b"x"))
                    if reply.status != 200:
                        failures.append((sent[-1], reply.status, reply.body))
                except (OSError, Closed) as failure:
                    failures.append((sent[-1], failure))
                    return

    def move(n):
        old, new = {1000: ("2", "3"), 2000: ("3", "4")}.get(n, (None, None))
        if new:
            net.far.ip("address", "delete", f"10.77.0.{old}/24", "dev", "hwc")
            net.far.ip("address", "add", f"10.77.0.{new}/24", "dev", "hwc")

    sender = threading.Thread(target=deliver)
    sender.start()
    try:
        with net.wire() as wire:
            longest = chat.read(wire, move)
    finally:
        done.set()
        sender.join(30)
    assert not failures and len(sent) > 50
    arrived = [seen.target for seen in net.app.seen if seen.target.startswith("/n/")]
    assert arrived == [f"/n/{n}" for n in sent]
    assert net.client.find("session", lambda event: event["state"] == "down") is None
    assert net.status() == 200
    assert longest < SLACK, f"the stream stood still for {longest:.1f} s"


@pytest.mark.parametrize("net", ["quic", pytest.param("h2", marks=needs_fallback)], indirect=True)
def test_a_cut_link_is_noticed_and_healed(net):
    assert net.status() == 200
    so_far = len(net.client.events)
    net.far.ip("link", "set", "hwc", "down")
    cut = time.monotonic()
    net.session("down", so_far, NOTICED + SLACK)
    noticed = time.monotonic() - cut
    eventually(lambda: net.status(1.0) == 503, NOTICED + SLACK, "the relay noticing")
    waits = net.post("/waits")
    assert net.client.running
    so_far = len(net.client.events)
    net.far.ip("link", "set", "hwc", "up")
    up = time.monotonic()
    net.session("up", so_far, BACK + SLACK)
    back = time.monotonic() - up
    assert net.status() == 200
    net.arrived_once(waits, "/waits")
    print(f"noticed after {noticed:.1f} s, back after {back:.1f} s")


@contextlib.contextmanager
def asleep(process):
    """SIGSTOP, as a closed laptop lid does."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("net", ["quic", pytest.param("h2", marks=needs_fallback)], indirect=True)
def test_a_client_that_slept_comes_back(net):
    """The relay has given it up meanwhile."""
    assert net.status() == 200
    so_far = len(net.client.events)
    with asleep(net.client.process):
        eventually(lambda: "client gone" in net.relay.log(), NOTICED + SLACK, "the relay noticing")
        assert net.status() == 503
        waits = net.post("/waits")
    net.session("down", so_far, BACK + SLACK)
    net.session("up", so_far, BACK + SLACK)
    eventually(lambda: net.status() == 200, SLACK, "deliveries going on")
    net.arrived_once(waits, "/waits")


@pytest.mark.parametrize("net", ["quic", pytest.param("h2", marks=needs_fallback)], indirect=True)
def test_senders_do_not_wait_for_a_client_that_naps(net):
    """Not long enough for the relay to give it up: what was sent to it first is still there when it wakes."""
    assert net.status() == 200
    with asleep(net.client.process):
        began = time.monotonic()
        waits = net.post("/waits")
        assert time.monotonic() - began < SILENT + 1
    eventually(lambda: net.status() == 200, BACK + SLACK, "deliveries going on")
    net.arrived_once(waits, "/waits")


@contextlib.contextmanager
def blocked(namespace, protocol, action="blackhole"):
    """What of this protocol leaves the namespace, or passes through it, is dropped: silently for the other side."""
    rule = ("pref", "10", "ipproto", protocol, action)
    namespace.ip("rule", "add", *rule)
    try:
        yield
    finally:
        namespace.ip("rule", "delete", *rule)


def udp_blocked(namespace):
    return blocked(namespace, "udp")


@needs_fallback
@pytest.mark.parametrize("net", ["auto"], indirect=True)
def test_blocked_udp_falls_back_to_tcp(net):
    assert net.session("up")["transport"] == "quic" and net.status() == 200
    so_far = len(net.client.events)
    with udp_blocked(net.near):
        net.session("down", so_far, NOTICED + SLACK)
        assert net.session("up", so_far, BACK + SLACK)["transport"] == "h2"
        assert net.status() == 200


@needs_fallback
def test_a_client_started_without_udp_uses_tcp(tmp_path):
    with contextlib.closing(Net(tmp_path, "auto", udp=False)) as net:
        assert net.client.find("ready")["transport"] == "h2" and net.status() == 200
