"""A new process takes the relay over while everything goes on: no request fails, no connection is refused.

The relay hands over to the program at its own place, which is the same one here; what is held to the promise is the
hand-over, not the difference between two versions.
"""

import collections
import contextlib
import functools
import http.client
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time

import dns.message
import dns.query
import dns.rcode
import pytest
import world as world_module
from name_servers import free_port
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, RstStreamFrame
from test_h2_hostile import Frames, request_fields
from test_queue import Crowd, depth, numbered, restart, targets, unmarked_repeats
from test_queue_crashes import SEED, Senders, all_handed_over, check
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve
from world import (
    DEADLINE,
    DOMAIN,
    HOOKWAY_RELAY,
    LONG,
    Closed,
    Meanwhile,
    Program,
    Relay,
    World,
    alive,
    eventually,
    lacking,
    request,
    signal_process,
    tls_context,
)

HOST = f"billing.{DOMAIN}"


def upgrade(world, *flags, data=None):
    """`hookway-relay upgrade`: exit code, output, errors."""
    done = subprocess.run(
        [HOOKWAY_RELAY, "upgrade", "--domain", DOMAIN, "--data-dir", str(data or world.relay.data), *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def running(world):
    """What the relay that runs says of itself."""
    return world.relay.command("status")[-1]


@pytest.fixture
def upgraded():
    """A world whose relays end with it: those that took over are nobody's children here."""
    with contextlib.ExitStack() as stack:
        yield functools.partial(upgradeable, stack)


def upgradeable(stack, *flags, **options):
    """A world that ends with the stack, and with it all that took over."""
    world = World(*flags, **options)
    stack.callback(world.close)
    stack.callback(end_relays, world)
    return world


def end_relays(world):
    """Ends the relay, and all that took over from it."""
    pids = {int(event["pid"]) for event in audit(world, "relay.upgrade") if event["pid"]}
    for pid in pids:
        # The numbers of those that have ended may be others' by now.
        if has_open(pid, world.relay.data):
            with contextlib.suppress(ProcessLookupError):
                signal_process(pid, signal.SIGTERM)
    world.relay.process.send_signal(signal.SIGTERM)
    eventually(lambda: not any(has_open(pid, world.relay.data) for pid in pids), what="the end of the new process")


def has_open(pid, folder):
    """Whether a process has a file of that folder open."""
    with contextlib.suppress(OSError):
        return any(os.readlink(file).startswith(f"{folder}/") for file in pathlib.Path(f"/proc/{pid}/fd").iterdir())
    return False


def audit(world, action):
    lines = world.relay.command("audit")
    return [line | {"pid": line["target"]} for line in lines if line["action"] == action]


class Load(Meanwhile):
    """Senders that go on until they are stopped, and what each of them was told."""

    def __init__(self, world, app):
        self.world, self.app = world, app
        self.sent, self.failed, self.statuses = 0, [], {}
        self.lock = threading.Lock()
        work = [(self.keep_alive, "POST", 0.0), (self.keep_alive, "POST", 0.01), (self.keep_alive, "GET", 0.005)]
        work += [(self.keep_alive, "POST", 0.3), (self.anew, 0.0), (self.anew, 0.02)]
        super().__init__(*work)

    def note(self, status, what):
        with self.lock:
            self.sent += 1
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if not 200 <= status < 300:
                self.failed.append((status, what))

    def broke(self, error, what):
        with self.lock:
            self.sent += 1
            self.failed.append((repr(error), what))

    def connection(self):
        host, port = self.world.relay.https
        plain = http.client.HTTPSConnection(host, port, timeout=DEADLINE, context=tls_context(self.world.relay.ca))
        plain._tunnel_host = None
        return plain

    def keep_alive(self, method, pause):
        """One connection as long as the relay keeps it, request after request."""
        wire = None
        for number in itertools.count():
            if self.over.is_set():
                break
            what = f"{method} keep-alive {number}"
            try:
                wire = wire or self.world.wire()
                body = f"{number}".encode() if method == "POST" else None
                reply = wire.ask(request(method, f"/{method}/{number}", body, host=HOST))
                self.note(reply.status, what)
                if "close" in (reply.header("connection") or ""):
                    wire.close()
                    wire = None
            except Exception as error:  # noqa: BLE001: whatever it is, the sender lost a webhook
                self.broke(error, what)
                wire = None
            time.sleep(pause)

    def anew(self, pause):
        """A connection a request."""
        for number in itertools.count():
            if self.over.is_set():
                break
            try:
                self.note(self.world.post(f"/new/{number}", b"x" * 100).status, f"new {number}")
            except Exception as error:  # noqa: BLE001
                self.broke(error, f"new {number}")
            time.sleep(pause)


def test_a_new_process_takes_over_under_load(upgraded):
    world = upgraded()
    app = world.app()
    world.client(app)
    before = running(world)
    with Load(world, app) as load:
        eventually(lambda: load.sent > 100, what="load")
        code, out, err = upgrade(world)
        assert code == 0, out + err
        after = load.sent
        eventually(lambda: not alive(before["pid"]), seconds=45, what="the end of the process before")
        eventually(lambda: load.sent > after + 200, what="load after it")
    assert load.failed == [], (load.sent, load.statuses, load.failed[:10])
    now = running(world)
    assert now["pid"] != before["pid"] and now["https"] == before["https"] and now["well"]
    print(f"sent {load.sent}, failed {len(load.failed)}, {load.statuses}")


def test_each_delivery_reaches_the_app_once_over_five_processes(upgraded):
    """Nothing is lost, and nothing comes twice without a mark."""
    world = upgraded("--grace", "3s")
    app = world.app()
    world.client(app)
    processes = [running(world)["pid"]]
    with Load(world, app) as load:
        for _ in range(5):
            sent = load.sent
            eventually(lambda at=sent: load.sent > at + 50, what="load")
            code, out, err = upgrade(world)
            assert code == 0, out + err
            processes.append(running(world)["pid"])
    assert load.failed == [], (load.sent, load.statuses, load.failed[:10])
    assert len(set(processes)) == 6
    arrived = len(app.seen)
    ids = [seen.header("hookway-delivery") for seen in app.seen]
    unmarked = [i for i, seen in zip(ids, app.seen) if not seen.header("hookway-possible-duplicate")]
    assert len(unmarked) == len(set(unmarked)), "twice without a mark"
    eventually(lambda: len({seen.header("hookway-delivery") for seen in app.seen}) >= load.sent, what="all arrive")
    assert len({seen.header("hookway-delivery") for seen in app.seen}) == load.sent, (arrived, load.sent)


def test_a_websocket_and_streams_go_on(upgraded):
    world = upgraded()

    def slow(seen, connection):
        if seen.target != "/down":
            return app.echo(seen)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
        for _ in range(60):
            connection.sendall(b"d" * 1000)
            time.sleep(0.05)
        return None

    app = world.app(answer=slow)
    sockets = Echo(world)
    world.client(app, "--route", f"/socket={sockets.address}")
    old = running(world)["pid"]
    url = world.url("/socket").replace("https:", "wss:")
    results = {}

    def upload():
        # Three seconds for two megabytes: a body that streams through.
        with world.wire() as wire:
            wire.send(b"POST /up HTTP/1.1\r\nHost: %s\r\nContent-Length: 2097152\r\n\r\n" % HOST.encode())
            for _ in range(32):
                wire.send(b"u" * 65536)
                time.sleep(0.1)
            results["up"] = wire.reply("POST")

    def download():
        with world.wire() as wire:
            results["down"] = wire.ask(request("GET", "/down", host=HOST))

    with connect(url, ssl=tls_context(world.relay.ca), proxy=None, open_timeout=20) as socket:
        socket.send("before")
        assert socket.recv(10) == "before"
        threads = [threading.Thread(target=work) for work in (upload, download)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        code, out, err = upgrade(world)
        assert code == 0, out + err
        new = running(world)["pid"]
        assert new != old
        for number in range(20):
            socket.send(f"during {number}")
            assert socket.recv(10) == f"during {number}"
            time.sleep(0.1)
        # Others come to the new process meanwhile.
        assert world.post("/now", b"x").status == 200
        for thread in threads:
            thread.join(DEADLINE)
        assert results["up"].status == 200 and results["down"].status == 200
        assert len(results["down"].body) == 60000
        assert len(app.at("/up")[0].body) == 2097152
        assert alive(old), "the process before waits for the conversation"
        socket.send("after")
        assert socket.recv(10) == "after"
    eventually(lambda: not alive(old), what="the end of the process before")


class Echo:
    """A WebSocket server beside that world's clients, which ends after them."""

    def __init__(self, world):
        self.server = serve(lambda socket: [socket.send(message) for message in socket], "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.server.socket.getsockname()[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        world._stack.callback(self.server.shutdown)


def test_the_client_comes_back_to_quic(upgraded):
    world = upgraded()
    app = world.app()
    client = world.client(app)
    assert client.event("ready")["transport"] == "quic"
    code, out, err = upgrade(world)
    assert code == 0, out + err
    client.event("session", lambda event: event.get("transport") == "h2")
    moved = len(client.events)
    assert world.post("/h2", b"x").status == 200
    client.wait(lambda: any(e.get("transport") == "quic" for e in client.events[moved:]), seconds=40, what="QUIC again")
    assert world.post("/quic", b"x").status == 200
    assert not [event for event in client.events if event.get("state") == "down"], "it never was away"


def test_what_waits_is_handed_over_by_the_new_process(upgraded):
    world = upgraded()
    app = world.app()
    world.client(app).stop()
    assert [world.post(f"/{n}", b"x").status for n in range(20)] == [202] * 20
    code, out, err = upgrade(world)
    assert code == 0, out + err
    # Each waits for the client, which the new process expects at first.
    assert [world.post(f"/{n}", b"x").status for n in (20, 21)] == [202] * 2
    world.client(app)
    eventually(lambda: len(app.seen) == 22, what="all of it")
    assert [seen.target for seen in app.seen] == [f"/{n}" for n in range(22)], "in the order of acceptance"


def test_a_program_that_cannot_run_changes_nothing(upgraded, tmp_path):
    """Its configuration is broken: the new process says so and ends, the one that runs goes on."""
    config = tmp_path / "relay.toml"
    config.write_text('rate = "off"\n')
    world = upgraded("--config", str(config))
    app = world.app()
    world.client(app)
    before = running(world)["pid"]
    config.write_text('rate = "much"\n')
    with Load(world, app) as load:
        eventually(lambda: load.sent > 50, what="load")
        code, out, err = upgrade(world, "--config", str(config))
        assert code == 7 and "rate" in err, (code, out, err)
        signal_process(before, signal.SIGUSR2)
        line = eventually(lambda: audit(world, "relay.upgrade"), what="the audit line")[-1]
        assert line["refused"] and "configuration" in line["detail"], line
        sent = load.sent
        eventually(lambda: load.sent > sent + 50, what="load after it")
    assert load.failed == [], (load.statuses, load.failed[:10])
    assert running(world)["pid"] == before


def test_a_process_that_dies_halfway_leaves_the_one_before_in_charge(upgraded, tmp_path):
    """It has the sockets and cannot open the store: a newer version's schema, which it must leave alone."""
    import sqlite3

    world = upgraded()
    app = world.app()
    client = world.client(app)
    before = running(world)["pid"]
    with contextlib.closing(sqlite3.connect(world.relay.data / "relay.db")) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute("PRAGMA user_version = 99")
        code, out, err = upgrade(world, "--check")
        assert code == 1 and "newer version" in out, (code, out, err)
        signal_process(before, signal.SIGUSR2)
        eventually(lambda: "nobody took over" in world.relay.log(), what="the refusal in the log")
        db.execute(f"PRAGMA user_version = {version}")
    assert running(world)["pid"] == before
    assert world.post("/still", b"x").status == 200
    client.stop()
    assert world.post("/queued", b"x").status == 202
    world.client(app)
    eventually(lambda: app.at("/queued"), what="the queue goes on")


def test_the_check_says_what_an_upgrade_would_do(upgraded):
    world = upgraded()
    code, out, err = upgrade(world, "--check")
    assert code == 0 and "store" in out and "stays" in out and "program" in out, out + err
    before = running(world)["pid"]
    assert running(world)["pid"] == before
    code, out, err = upgrade(world, data="/nonexistent/folder")
    assert code == 1 and "no relay runs" in err


def children(pid):
    """Processes that this one has begun, dead ones too."""
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def is_refused(address):
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


# ── programs that do not take over ────────────────────────────────────────────────────────────────────────────────


class OwnProgram:
    """A place of the tests' own that relays run from, where another program can be put."""

    def __init__(self, folder, patch):
        self.place, self._patch = folder / "hookway-relay", patch
        try:
            os.link(HOOKWAY_RELAY, self.place)
        except OSError:
            shutil.copy(HOOKWAY_RELAY, self.place)
        patch.setattr(world_module, "HOOKWAY_RELAY", str(self.place))

    def __call__(self, text, mode=0o755):
        self._patch.setattr(world_module, "HOOKWAY_RELAY", HOOKWAY_RELAY)
        new = self.place.with_name("new")
        new.write_text(text)
        new.chmod(mode)
        new.rename(self.place)


@pytest.fixture
def own_program(tmp_path, monkeypatch):
    return OwnProgram(tmp_path, monkeypatch)


def script(text):
    return f"#!{sys.executable}\nimport os, signal, socket, sys, time\n{text}\n"


TAKES = script("line = socket.socket(fileno=0)\nline.sendall(b'p')\n_, fds, *_ = socket.recv_fds(line, 256, 8)\nassert fds")
IMPOSTORS = {
    "ends": "#!/bin/sh\nexit 1\n",
    "ends well": "#!/bin/sh\nexit 0\n",
    "waits, and ends": script("time.sleep(1)"),
    "is killed": script("os.kill(os.getpid(), signal.SIGKILL)"),
    "is no program": "just text\n",
    "has no interpreter": "#!/no/such/interpreter\n",
    "prints": script("print('garbage\\n' * 1000, flush=True)\ntime.sleep(0.3)"),
    "says something else": script("socket.socket(fileno=0).sendall(b'garbage')\ntime.sleep(0.3)"),
    "says too much": script("socket.socket(fileno=0).sendall(b'p' * 100_000)\ntime.sleep(0.3)"),
    "closes the line": script("os.close(0)\ntime.sleep(0.5)"),
    "takes the sockets, and ends": TAKES,
    "takes the sockets, and is killed": TAKES + "time.sleep(0.5)\nos.kill(os.getpid(), signal.SIGKILL)\n",
    "takes the sockets, and says something else": TAKES + "line.sendall(b'x')\ntime.sleep(0.5)\n",
    "takes the sockets, and closes the line": TAKES + "line.close()\nos.close(0)\ntime.sleep(0.5)\n",
}


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A relay that goes on through them all: its world, where it runs from, and the apps of two clients."""
    with contextlib.ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        program = OwnProgram(tmp_path_factory.mktemp("program"), patch)
        world = upgradeable(stack, "--grace", "1s")
        patch.undo()
        app, late = world.app(), world.app()
        world.client(app)
        world.client(late, "--ack", "early", name="late")
        yield world, program, app, late


@pytest.mark.parametrize("title", IMPOSTORS)
def test_a_program_that_does_not_take_over(steady, title):
    """The one that runs goes on: with what is live, with its queue, and with the right to its folder."""
    world, program, app, late = steady
    pid, before, path = running(world)["pid"], len(audit(world, "relay.upgrade")), f"/{title.replace(' ', '-')}"
    program(IMPOSTORS[title])
    with Load(world, app) as load:
        eventually(lambda: load.sent > 30, what="load")
        code, out, err = upgrade(world)
        assert code == 1 and "nobody took over" in err and "cause" in err, (code, out, err)
        sent = load.sent
        eventually(lambda: load.sent > sent + 30, what="load after it")
        assert world.post(path, b"x", "late").status == 202
        eventually(lambda: late.at(path), what="the queue goes on")
    assert load.failed == [], (load.statuses, load.failed[:10])
    now = running(world)
    assert now["pid"] == pid and now["well"]
    eventually(lambda: not children(pid), what="no child, and no zombie")
    (line,) = audit(world, "relay.upgrade")[before:]
    assert line["refused"]
    if title not in ("ends", "takes the sockets, and is killed") and not LONG:
        return
    # Another relay still cannot have the folder, and an upgrade that can be done is done.
    other = subprocess.run(world.relay.process.args, executable=HOOKWAY_RELAY, capture_output=True, text=True, timeout=20)
    assert other.returncode == 1 and "another relay runs" in other.stderr
    program("")
    shutil.copy(HOOKWAY_RELAY, program.place)
    code, out, err = upgrade(world)
    assert code == 0 and running(world)["pid"] != pid, out + err
    eventually(lambda: not alive(pid), what="the end of the process before")


def test_the_program_is_away(upgraded, own_program):
    world = upgraded()
    pid = running(world)["pid"]
    own_program("")
    own_program.place.unlink()
    code, out, err = upgrade(world)
    assert code == 1 and "cannot be begun" in err and "No such file" in err, err
    assert running(world)["pid"] == pid


def test_a_new_process_that_is_killed_before_it_serves(upgraded):
    """At any moment of its beginning: the one before goes on. One that may serve by then is left alone."""
    world, randomness = upgraded("--grace", "2s"), random.Random(SEED)
    app = world.app()
    world.client(app)
    killed = 0
    with Load(world, app) as load:
        for number in range(40 if LONG else 6):
            old = eventually(lambda: running_or_none(world), what="a relay that says which it is")
            signal_process(old, signal.SIGUSR2)
            new = eventually(lambda pid=old: children(pid), what="the new process")[0]
            threading.Event().wait(randomness.uniform(0, 0.05) * (number % 3))
            # Stopped first: else it could begin to serve while it is looked at.
            signal_process(new, signal.SIGSTOP)
            eventually(lambda pid=new: is_stopped(pid), what="a process that stands still")
            if has_its_sockets(world, new):
                signal_process(new, signal.SIGCONT)
                continue
            signal_process(new, signal.SIGKILL)
            sent = load.sent
            eventually(lambda at=sent: load.sent > at + 20, what="load after it")
            assert alive(old), "the one before"
            killed += 1
            eventually(lambda pid=old: not children(pid) and running_or_none(world) == pid, what="all as before")
    assert load.failed == [], (f"seed {SEED}", load.statuses, load.failed[:10])
    assert killed
    print(f"\nseed {SEED}: killed {killed}; sent {load.sent}, failed {len(load.failed)}, {load.statuses}")


def running_or_none(world):
    """The process that has the folder; none has it for a moment while it is handed over, or has said so yet."""
    result = subprocess.run(
        [HOOKWAY_RELAY, "status", "--data-dir", str(world.relay.data), "--json"], capture_output=True, timeout=20
    )
    return json.loads(result.stdout).get("pid") or None if result.stdout else None


def is_stopped(pid):
    """Whether all threads of a process have been stopped, or it is dead."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        states = [(task / "status").read_text() for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]
        return all(re.search("^State:\t[TZX]", state, re.MULTILINE) for state in states)
    return False


def has_its_sockets(world, pid):
    """Whether a process has said in the folder's lock where it listens, which it does just before it serves."""
    said = json.loads((world.relay.data / "relay.lock").read_text() or "{}")
    return said.get("pid") == pid and said.get("https") is not None


def test_a_new_process_that_is_killed_after_it_serves(upgraded):
    """Then nobody is there until it is begun again; what was answered 202 is handed over, what was begun is finished."""
    world = upgraded("--grace", "3s")
    app = world.app()
    client = world.client(app, "--ack", "early")
    with Senders(world) as senders:
        eventually(lambda: len(senders.kept()) > 30, what="deliveries")
        code, out, err = upgrade(world)
        assert code == 0, out + err
        signal_process(int(audit(world, "relay.upgrade")[-1]["pid"]), signal.SIGKILL)
        eventually(lambda: not world.relay.running, 45, "the end of the process before")
        restart(world, signal.SIGTERM)
        many = len(senders.kept())
        eventually(lambda: len(senders.kept()) > many + 20, what="deliveries after it")
    all_handed_over(world, senders, app)
    assert client.running
    print(f"\nseed {SEED}: {check(senders, app)}")


def test_the_process_before_is_killed_when_the_new_one_serves(upgraded):
    world = upgraded()
    app = world.app()
    Crowd(app, 0.005)
    world.client(app)
    world.client(app, "--ack", "early", name="late")
    with Senders(world) as senders, Senders(world, "late") as early:
        for _ in range(10 if LONG else 3):
            many = len(senders.kept())
            eventually(lambda at=many: len(senders.kept()) > at + 20, what="deliveries")
            old = running(world)["pid"]
            code, out, err = upgrade(world)
            assert code == 0, out + err
            signal_process(old, signal.SIGKILL)
            eventually(lambda pid=old: not alive(pid))
    everything = Both(senders, early)
    all_handed_over(world, everything, app)
    repeats = unmarked_repeats(app)
    assert not repeats, f"seed {SEED}: again without the mark: {repeats[:10]}"
    refused = [status for *_, status, _ in senders.answered + early.answered if status not in (0, 200, 202)]
    assert not refused, refused
    print(f"\nseed {SEED}: sent {len(senders.answered) + len(early.answered)}, kept {len(everything.kept())}")


class Polite(Senders):
    """They leave a connection when they are told to, as real ones do."""

    polite = True


def statuses(*senders):
    return collections.Counter(status for each in senders for *_, status, _ in each.answered)


class Both:
    def __init__(self, *senders):
        self.senders = senders

    def kept(self):
        return [path for each in self.senders for path in each.kept()]


# ── signals meanwhile ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reload_during_a_hand_over_is_done_after_it(upgraded, own_program):
    world = upgraded()
    own_program(IMPOSTORS["waits, and ends"])
    pid = running(world)["pid"]
    signal_process(pid, signal.SIGUSR2)
    eventually(lambda: children(pid), what="the new process")
    signal_process(pid, signal.SIGHUP)
    eventually(lambda: audit(world, "config.reload"), 8, "the reload")
    assert audit(world, "relay.upgrade")[-1]["refused"] and running(world)["pid"] == pid


def test_a_stop_during_a_hand_over_that_comes_to_nothing(upgraded, own_program):
    """Who stops the relay waits for what is in flight, and not for a program that does not begin."""
    world = upgraded("--grace", "1s")
    own_program(script("time.sleep(60)"))
    world.relay.process.send_signal(signal.SIGUSR2)
    (child,) = eventually(lambda: children(world.relay.pid), what="the new process")
    try:
        world.relay.process.send_signal(signal.SIGTERM)
        eventually(lambda: not world.relay.running, 8, "the relay's end")
        eventually(lambda: not alive(child), 5, "the end of the program that was to take over")
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal_process(child, signal.SIGKILL)
    assert world.relay.process.wait() == 0


def test_a_stop_during_a_hand_over_cuts_nothing(upgraded):
    """One signal is the polite one, whenever it comes."""
    world = upgraded("--grace", "3s")
    app, began, end = world.app(), threading.Event(), threading.Event()

    def slow(seen, _connection):
        began.set()
        end.wait(20)
        return app.echo(seen)

    app.answer = slow
    world.client(app)
    world.token()
    results = []
    
    def send():
        with contextlib.suppress(Closed):
            results.append(world.post("/slow", b"x"))

    thread = threading.Thread(target=send)
    thread.start()
    assert began.wait(10)
    old = world.relay.pid
    # What comes while it waits for the new process is looked at after that.
    signal_process(old, signal.SIGUSR2)
    eventually(lambda: children(old), what="the new process")
    signal_process(old, signal.SIGTERM)
    eventually(lambda: "stopping" in world.relay.log(), what="that it stops")
    threading.Event().wait(0.5)  # in which it could have ended
    ended = not world.relay.running
    end.set()
    thread.join(DEADLINE)
    assert not ended and results and results[0].status == 200, (ended, results, world.relay.log())
    assert world.relay.process.wait(DEADLINE) == 0


def test_two_stops_after_a_hand_over_end_it_at_once(upgraded):
    world = upgraded()
    sockets = Echo(world)
    world.client(sockets.address)
    with connect(wss(world), ssl=tls_context(world.relay.ca), proxy=None, close_timeout=1) as talk:
        code, out, err = upgrade(world)
        assert code == 0, out + err
        talk.send("x")
        assert talk.recv(10) == "x"
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                world.relay.process.send_signal(signal.SIGTERM)
            threading.Event().wait(0.3)  # two signals at once are one
        eventually(lambda: not world.relay.running, 5, "the end")
    assert alive(running(world)["pid"])


# ── who sends, and who is there ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_clients_of_both_transports(upgraded, transport):
    world = upgraded()
    app = world.app()
    client = world.client(app, "--transport", transport)
    old = running(world)["pid"]
    with Polite(world, pause=0.02) as senders:
        eventually(lambda: len(senders.kept()) > 50, what="deliveries")
        code, out, err = upgrade(world)
        assert code == 0, out + err
        eventually(lambda: not alive(old), 45, "the end of the process before")
        moved = len(app.seen)
        eventually(lambda: len(app.seen) > moved + 50, what="deliveries after it")
    all_handed_over(world, senders, app)
    figures = check(senders, app)
    slowest = max(seconds for *_, seconds in senders.answered)
    print(f"\n{transport}: {figures}, {dict(statuses(senders))}, slowest {slowest:.2f} s")
    assert {*statuses(senders)} <= {200, 202} and slowest < 3, (statuses(senders), slowest)
    assert client.running


@pytest.mark.parametrize("share", ["balance", "copy"])
def test_clients_that_share(upgraded, share):
    world = upgraded("--grace", "3s")
    apps = [world.app(name="one"), world.app(name="two")]
    if share == "balance":
        apps = apps[:1] * 2
    for number, app in enumerate(apps):
        flags = ["--listener", f"listener-{number}"] if share == "copy" else []
        world.client(app, "--share", share, *flags)
    old = running(world)["pid"]
    with Polite(world, pause=0.02) as senders:
        eventually(lambda: len(senders.kept()) > 50, what="deliveries")
        code, out, err = upgrade(world)
        assert code == 0, out + err
        eventually(lambda: not alive(old), 45, "the end of the process before")
        many = len(senders.kept())
        eventually(lambda: len(senders.kept()) > many + 50, what="deliveries after it")
    for app in apps:
        all_handed_over(world, senders, app)
        print(f"\n{share}: {check(senders, app)}")
    assert {*statuses(senders)} <= {200, 202}, statuses(senders)


def test_early_answers(upgraded):
    """In no order: what the process before accepted last is found up to a second later."""
    world = upgraded("--grace", "4s")
    app = world.app()
    world.client(app, "--ack", "early")
    with Polite(world, pause=0.01) as senders:
        for _ in range(2):
            many = len(senders.kept())
            eventually(lambda at=many: len(senders.kept()) > at + 50, what="deliveries")
            code, out, err = upgrade(world)
            assert code == 0, out + err
        many = len(senders.kept())
        eventually(lambda: len(senders.kept()) > many + 50, what="deliveries after it")
    all_handed_over(world, senders, app)
    print(f"\nearly: {check(senders, app)}")
    assert {*statuses(senders)} == {202}, statuses(senders)


def test_what_both_processes_queue_keeps_its_order(upgraded):
    """The client is away; the process before still takes what was begun there."""
    world = upgraded()
    app = world.app()
    world.client(app).stop()
    head, body = b"POST /%d HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\nContent-Length: 4\r\n\r\n", b"body"
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(world.wire()) for _ in range(6)]
        # Nobody is expected back, which senders would wait for.
        with contextlib.closing(sqlite3.connect(world.relay.data / "relay.db")) as db, db:
            db.execute("UPDATE listener SET seen_at = seen_at - 60000000")
        for number in range(3):
            wires[number].send(head % (2 * number) + body[:2])
        code, out, err = upgrade(world)
        assert code == 0, out + err
        for number in range(3):
            # One that the process before takes, and one that the new one does.
            wires[number].send(body[2:])
            assert wires[number].reply("POST").status == 202
            assert world.post(f"/{2 * number + 1}", b"body").status == 202
    world.client(app)
    eventually(lambda: len({seen.target for seen in app.seen}) == 6, what="all of it")
    assert list(dict.fromkeys(targets(app))) == numbered(6) and not unmarked_repeats(app)


def test_a_dead_letter_is_retried_during_it(upgraded):
    world = upgraded()
    app, end = world.app(), threading.Event()
    world._stack.callback(end.set)
    app.answer = lambda seen, _: app.echo(seen) if seen.target != "/slow" or end.wait(20) else None
    world.client(app).stop()
    assert world.post("/dead", b"x").status == 202
    world.relay.stop()
    with contextlib.closing(sqlite3.connect(world.relay.data / "relay.db")) as db, db:
        db.execute("UPDATE delivery SET dead_since = since")
    restart(world)
    world.client(app)
    old = running(world)["pid"]
    thread = threading.Thread(target=lambda: world.post("/slow", b"x"))
    thread.start()
    eventually(lambda: app.at("/slow"), what="something in flight")
    code, out, err = upgrade(world)
    assert code == 0, out + err
    assert alive(old) and not app.at("/dead")
    world.relay.command("queue", "retry", "--all")
    eventually(lambda: app.at("/dead"), what="the dead letter")
    end.set()
    thread.join(DEADLINE)
    eventually(lambda: not alive(old), 45, "the end of the process before")
    eventually(lambda: not depth(world), what="nothing waiting")
    assert not unmarked_repeats(app)


class Streams(Meanwhile):
    """HTTP/2 connections with many streams each. Told to go elsewhere, they send again there what was not begun."""

    def __init__(self, world, connections=4, streams=20):
        self.world, self.streams = world, streams
        self.answered, self.failed, self.moved, self.resent = collections.Counter(), [], 0, 0
        super().__init__(*((self._run, each) for each in range(connections)))

    def _run(self, connection):
        again, numbers = [], itertools.count()
        try:
            while again or not self.over.is_set():
                with Frames(self.world.wire(alpn=("h2",))) as h2:
                    again = self._talk(h2, connection, numbers, again)
                self.moved += 1
                self.resent += len(again)
        except Exception as error:  # noqa: BLE001: whatever it is, senders lost webhooks
            self.failed.append(repr(error))

    def _talk(self, h2, connection, numbers, again):
        """As long as it may begin streams, and until those that were begun are answered; what was not begun."""
        open_, is_leaving = {}, False
        frames = h2.frames(60)
        while True:
            while not is_leaving and len(open_) < self.streams and (again or not self.over.is_set()):
                number, stream = again.pop() if again else next(numbers), h2.stream()
                open_[stream] = number, None
                fields = request_fields("POST", f"/{connection}/{number}", HOST)
                h2.write(h2.headers(stream, fields, end=False), DataFrame(stream, b"body", flags=["END_STREAM"]))
            if not open_:
                return again
            kind, flags, stream, payload = next(frames)
            if kind == GoAwayFrame.type:
                is_leaving, last = True, int.from_bytes(payload[:4]) & 0x7FFF_FFFF
                again = [*again, *(open_.pop(stream)[0] for stream in [*open_] if stream > last)]
            elif kind == RstStreamFrame.type:
                number, _ = open_.pop(stream)
                if int.from_bytes(payload) == 7:  # refused: nothing was done
                    again = [*again, number]
                else:
                    self.failed.append(f"{number} was reset: {payload}")
            elif stream in open_:
                number, status = open_[stream]
                if kind == HeadersFrame.type:
                    open_[stream] = number, status = number, dict(h2.fields(payload))[":status"]
                if flags & 1:
                    del open_[stream]
                    self.answered[status] += 1


def test_many_streams_over_http2(upgraded):
    """Each stream that was begun is answered; those that were not are not at the app either."""
    world = upgraded("--grace", "3s")
    app = world.app()
    world.client(app)
    with Streams(world) as streams:
        for _ in range(2):
            many = streams.answered.total()
            eventually(lambda at=many: streams.answered.total() > at + 200, what="answers")
            old = running(world)["pid"]
            code, out, err = upgrade(world)
            assert code == 0, out + err
            eventually(lambda pid=old: not alive(pid), 45, "the end of the process before")
        many = streams.answered.total()
        eventually(lambda: streams.answered.total() > many + 200, what="answers")
    print(f"\nHTTP/2: {dict(streams.answered)}, failed {len(streams.failed)}, sent again elsewhere {streams.resent}")
    assert not streams.failed, streams.failed[:5]
    assert {*streams.answered} == {"200"} and streams.answered.total() == len(app.seen)
    assert len({*targets(app)}) == len(app.seen)


def test_h2load_loses_nothing(upgraded, tmp_path):
    """Over HTTP/1.1: it makes a new connection when it is told to leave one. (Over HTTP/2 it gives up.)"""
    if not shutil.which("h2load"):
        lacking("h2load is not installed")
    world = upgraded("--grace", "3s")
    app = world.app()
    world.client(app)
    (tmp_path / "body").write_bytes(bytes(1000))
    count = 30_000 if LONG else 3000
    words = ["h2load", "--h1", "-n", str(count), "-c", "8", "-d", tmp_path / "body"]
    words += ["--connect-to", world.authority(), world.url("/load")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as load:
        for _ in range(2):
            many = len(app.seen)
            eventually(lambda at=many: len(app.seen) > at + count // 8, what="load")
            assert load.poll() is None, "it has ended before"
            code, out, err = upgrade(world)
            assert code == 0, out + err
        said = load.communicate(timeout=100)[0]
    print([line for line in said.splitlines() if line.startswith(("requests", "status", "finished"))])
    assert f"{count} succeeded, 0 failed, 0 errored, 0 timeout" in said, said
    assert f"status codes: {count} 2xx" in said


def begun(world, sent):
    """A connection on which part of a TLS handshake was sent, and what is to follow."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = tls_context(world.relay.ca).wrap_bio(incoming, outgoing, server_hostname=HOST)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    raw = socket.create_connection(world.relay.https, timeout=DEADLINE)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.sendall(hello[:sent])
    return raw, tls, incoming, outgoing, hello[sent:]


def test_handshakes_that_have_begun(upgraded):
    """Nothing was sent, or a byte, or part of a hello. The connection was accepted: it is not dropped."""
    world = upgraded("--grace", "3s")
    app = world.app()
    world.client(app)
    with contextlib.ExitStack() as stack:
        all_begun = [(sent, *begun(world, sent)) for sent in (0, 1, 100)]
        for _, raw, *_ in all_begun:
            stack.enter_context(contextlib.closing(raw))
        accepted(world)
        code, out, err = upgrade(world)
        assert code == 0, out + err
        for sent, raw, tls, incoming, outgoing, rest in all_begun:
            raw.sendall(rest)

            def pump(work, *arguments, raw=raw, incoming=incoming, outgoing=outgoing):
                while True:
                    try:
                        return work(*arguments)
                    except ssl.SSLWantReadError:
                        raw.sendall(outgoing.read())
                        data = raw.recv(65536)
                        incoming.write(data) if data else incoming.write_eof()

            pump(tls.do_handshake)
            raw.sendall(outgoing.read())
            pump(tls.write, request("POST", f"/{sent}", b"x"))
            raw.sendall(outgoing.read())
            assert pump(tls.read, 1000).startswith(b"HTTP/1.1 200"), sent
            assert len(app.at(f"/{sent}")) == 1


def accepted(world):
    """What connected before has been accepted: another connection has been answered since."""
    assert world.post("/accepted", b"x").status == 200


HALVES = [b"P", b"POST /half HTTP/1.1\r\n", b"POST /half HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\nContent-Le"]


def test_requests_that_have_begun(upgraded):
    """Half a head, a head without its body, half a body; and a connection on which nothing was asked yet."""
    world = upgraded("--grace", "3s")
    app = world.app()
    world.client(app)
    whole = b"POST /half HTTP/1.1\r\nHost: " + HOST.encode() + b"\r\nContent-Length: 4\r\n\r\nbody"
    firsts = [*HALVES, whole[:-4], whole[:-2]]
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(world.wire()) for _ in firsts]
        fresh = stack.enter_context(world.wire())
        for wire, first in zip(wires, firsts, strict=True):
            wire.send(first)
        accepted(world)
        code, out, err = upgrade(world)
        assert code == 0, out + err
        threading.Event().wait(0.5)  # the hand-over is long over
        for wire, first in zip(wires, firsts, strict=True):
            wire.send(whole[len(first) :])
            reply = wire.reply("POST")
            assert reply.status == 200 and reply.complete, first
        fresh.send(whole.replace(b"/half", b"/new!"))
        assert fresh.reply("POST").status == 200
    assert [seen.body for seen in app.at("/half")] == [b"body"] * len(firsts)


def test_a_kept_connection_is_told_to_go_elsewhere(upgraded):
    """A request that was on its way when the hand-over was done is answered; the connection ends cleanly after that."""
    world = upgraded("--grace", "3s")
    app = world.app()
    world.client(app)
    with world.wire() as wire:
        assert wire.ask(request("POST", "/1", b"x")).status == 200
        code, out, err = upgrade(world)
        assert code == 0, out + err
        assert wire.ended(10), "it is closed soon, for the process before to end"
        assert wire.clean_end and not wire.buffer


def wss(world, path="/"):
    return world.url(path).replace("https:", "wss:")


# ── long conversations ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_grace_period_ends_a_long_conversation(upgraded):
    world = upgraded("--grace", "1s")
    sockets = Echo(world)
    world.client(sockets.address)
    with connect(wss(world), ssl=tls_context(world.relay.ca), proxy=None, close_timeout=1) as talk:
        talk.send("x")
        assert talk.recv(10) == "x"
        code, out, err = upgrade(world)
        assert code == 0, out + err
        eventually(lambda: not world.relay.running, 8, "the end of the process before")
        with pytest.raises(ConnectionClosed):
            talk.recv(10)
    assert world.relay.process.wait() == 0 and "grace period is over" in world.relay.log()
    with connect(wss(world), ssl=tls_context(world.relay.ca), proxy=None, close_timeout=1) as talk:
        talk.send("again")
        assert talk.recv(10) == "again"


@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_a_conversation_lasts_over_several_upgrades(upgraded, transport):
    """Each process stays as long as it is needed, and none reads what is another's."""
    world, talk, goes_on = conversation(upgraded, transport)
    oldest = running(world)["pid"]
    with talk:
        for number in range(3):
            code, out, err = upgrade(world)
            assert code == 0, out + err
            goes_on(40)
        assert alive(oldest)
    eventually(lambda: not alive(oldest), 20, "the end of the first")
    eventually(lambda: world.get("/then").status == 200, what="the client with the last")


@pytest.mark.parametrize(
    ("how", "transport"),
    [
        ("ends", "quic"),
        ("ends", "h2"),
        ("is killed", "quic"),
        ("is killed", "h2"),
    ],
)
def test_a_conversation_lasts_when_the_process_in_between_ends(upgraded, transport, how):
    """The third has two before it: what only one process can have is the first's until that one ends, too."""
    world, talk, goes_on = conversation(upgraded, transport)
    oldest = running(world)["pid"]
    with talk:
        code, out, err = upgrade(world)
        assert code == 0, out + err
        between = running(world)["pid"]
        code, out, err = upgrade(world)
        assert code == 0, out + err
        goes_on(5)
        if how == "is killed":
            signal_process(between, signal.SIGKILL)
        eventually(lambda: not alive(between), 8, "the end of the one in between")
        goes_on(150 if LONG else 60)
        assert alive(oldest)


def conversation(upgraded, transport):
    """A world, a WebSocket through it, and what sends so many messages over it."""
    world = upgraded("--grace", "60s")
    sockets, app = Echo(world), world.app()
    world.client(app, "--route", f"/socket={sockets.address}", "--transport", transport)
    talk = connect(wss(world, "/socket"), ssl=tls_context(world.relay.ca), proxy=None, close_timeout=1)

    def goes_on(count):
        began = time.monotonic()
        for number in range(count):
            talk.send(f"{number}")
            assert talk.recv(10) == f"{number}"
            threading.Event().wait(0.02)  # a conversation, not a flood
            assert time.monotonic() - began < 3 + count * 0.04, "as fast as ever"

    return world, talk, goes_on


def test_the_new_process_can_be_stopped_while_the_one_before_goes_on(upgraded):
    world = upgraded("--grace", "60s")
    sockets = Echo(world)
    world.client(sockets.address)
    with connect(wss(world), ssl=tls_context(world.relay.ca), proxy=None, close_timeout=1) as talk:
        code, out, err = upgrade(world)
        assert code == 0, out + err
        new = running(world)["pid"]
        # Its clients have come over by then.
        eventually(lambda: world.relay.metric("sessions") == 1, what="the client with the new process")
        signal_process(new, signal.SIGTERM)
        try:
            eventually(lambda: not alive(new), 8, "the end of the new process")
        finally:
            with contextlib.suppress(ProcessLookupError):
                signal_process(new, signal.SIGKILL)
        talk.send("x")
        assert talk.recv(10) == "x"


# ── other settings ────────────────────────────────────────────────────────────────────────────────────────────────


class Launched(Relay):
    """A relay begun in another way."""

    def __init__(self, command, folder, data, environment, title):
        self.data = data
        Program.__init__(self, title, list(map(str, command)), folder / title, environment)
        self.ready()

    def ready(self):
        event = self.event("ready")
        self.https = address(event["https"])
        self.http, self.admin = (event[key] and address(event[key]) for key in ("http", "admin"))
        self.ca = event.get("ca")


def address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


LIMITS = {"rate": "off", "token-rate": "off"}


@pytest.fixture(scope="module")
def bare():
    """A world without a relay, for those that are begun in another way, one after the other."""
    with World() as world:
        world.relay.stop()
        yield world


@pytest.fixture
def launched(bare):
    """`launched(command)`: that world with such a relay."""
    there = len(bare.programs)

    def begin(command, environment=None):
        title = f"launched-{len(bare.programs)}"
        bare.relay = bare._add(Launched(command, bare.folder, bare.relay.data, environment, title))
        return bare

    yield begin
    for program in bare.programs[there:]:
        if program is not bare.relay:
            program.stop()
    end_relays(bare)


@pytest.fixture
def configured(bare, launched, tmp_path):
    """A world whose relay has all its settings from a file, and what writes that file."""
    world, file = bare, tmp_path / "relay.toml"
    ports = {key: f"127.0.0.1:{free_port()}" for key in ("https", "http", "admin")}

    def write(**changes):
        settings = {"domain": DOMAIN, "data-dir": str(world.relay.data), "grace": "1s", **LIMITS, **ports} | changes
        file.write_text("".join(f'{key} = "{value}"\n' for key, value in settings.items()))
        return settings

    write()
    launched([HOOKWAY_RELAY, "run", "--config", file, "--json"])

    def again():
        done = subprocess.run(
            [HOOKWAY_RELAY, "upgrade", "--config", str(file)], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout, done.stderr

    return world, write, again


def test_other_ports_in_the_configuration(configured):
    world, write, again = configured
    relay, app = world.relay, world.app()
    old = relay.https, relay.http, relay.admin
    settings = write(https=f"127.0.0.1:{free_port()}", http="off", admin=f"127.0.0.1:{free_port()}")
    code, out, err = again()
    assert code == 0, out + err
    now = running(world)
    assert [now[key] for key in ("https", "http", "admin")] == [settings["https"], None, settings["admin"]]
    relay.https, relay.http, relay.admin = address(settings["https"]), None, address(settings["admin"])
    assert relay.get("/health")[0] == 200
    client = world.client(app)
    assert world.post("/x", b"x").status == 200
    eventually(lambda: not alive(relay.pid), 20, "the end of the process before")
    assert all(map(is_refused, old)), "nobody listens there, and nobody is left waiting"
    eventually(lambda: any(e.get("transport") == "quic" for e in client.events), what="QUIC at the new port")
    # And back: off to on.
    settings = write()
    code, out, err = again()
    assert code == 0, out + err
    relay.https, relay.http, relay.admin = old
    assert not is_refused(old[1]) and relay.get("/health")[0] == 200
    now = running(world)
    assert [now[key] for key in ("https", "http", "admin")] == [settings[key] for key in ("https", "http", "admin")]


@pytest.mark.parametrize("key", ["https", "http", "admin"])
def test_another_port_that_is_taken(configured, key):
    world, write, again = configured
    pid, app = running(world)["pid"], world.app()
    world.client(app)
    with socket.create_server(("127.0.0.1", 0)) as other:
        write(**{key: f"127.0.0.1:{other.getsockname()[1]}"})
        code, out, err = again()
    assert code == 1 and "nobody took over" in err, (code, out, err)
    assert "cannot listen on" in world.relay.log()
    assert running(world)["pid"] == pid and world.post("/x", b"x").status == 200
    write()
    code, out, err = again()
    assert code == 0, out + err


# ── many ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_upgrades_at_once(upgraded):
    world = upgraded("--grace", "2s")
    app = world.app()
    world.client(app)
    with Load(world, app) as load:
        for _ in range(3):
            sent = load.sent
            eventually(lambda at=sent: load.sent > at + 30, what="load")
            results = []
            threads = [threading.Thread(target=lambda: results.append(upgrade(world))) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            assert len(results) == 3 and 0 in [code for code, *_ in results], results
            for code, out, err in results:
                assert code == 0 or err.startswith("error: ") and "next:" in err or "cause:" in err, (code, out, err)
            assert alive(running(world)["pid"])
    assert load.failed == [], (load.sent, load.statuses, load.failed[:10])
    print(f"\nsent {load.sent}, failed {len(load.failed)}, {load.statuses}")


def test_many_signals_at_once(upgraded):
    world = upgraded("--grace", "2s")
    old = running(world)["pid"]
    for _ in range(20):
        with contextlib.suppress(ProcessLookupError):
            signal_process(old, signal.SIGUSR2)
    eventually(lambda: not world.relay.running, what="the end of the process before")
    assert alive(running(world)["pid"]) and len(audit(world, "relay.upgrade")) == 1


def test_ten_upgrades_leave_nothing_behind(upgraded):
    world = upgraded("--grace", "1s")
    app = world.app()
    world.client(app)
    pids, counts = [running(world)["pid"]], []
    for _ in range(10):
        code, out, err = upgrade(world)
        assert code == 0, out + err
        pids.append(running(world)["pid"])
        eventually(lambda: not alive(pids[-2]), what="the end of the one before")
        assert world.post("/x", b"x").status == 200
        assert not children(pids[-1])
        # Those of connections that have just ended are closed soon.
        eventually(lambda: not counts or descriptors(pids[-1]) <= max(counts[0], counts[-1]) + 2, what="descriptors")
        counts.append(descriptors(pids[-1]))
    print(f"\ndescriptors: {counts}")
    assert len(set(pids)) == 11
    eventually(lambda: descriptors(pids[-1]) <= counts[0] + 2, what=f"no more than {counts}")


def test_the_service_manager_is_told(upgraded, tmp_path):
    """Which process is the service by now; and not that it stops."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(10)
        world = upgraded("--grace", "1s", environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert b"READY=1" in told.recv(1000)
        code, out, err = upgrade(world)
        assert code == 0, out + err
        new = running(world)["pid"]
        eventually(lambda: not alive(world.relay.pid), what="the end of the process before")
        told.settimeout(0.2)
        messages = []
        with contextlib.suppress(TimeoutError):
            while True:
                messages.append(told.recv(1000).decode().strip())
        assert f"MAINPID={new}" in messages and "READY=1" in messages and "STOPPING=1" not in messages, messages


# ── the relay as a name server, and its children ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["udp", "tcp"])
def test_name_servers_are_answered_meanwhile(upgraded, how):
    port = free_port()
    where = ("--acme-directory", "https://127.0.0.1:9/dir", "--dns", f"127.0.0.1:{port}", "--grace", "1s")
    world = upgraded("--tls", "acme", *where)
    query, answered, failed, over = dns.message.make_query(f"_acme-challenge.{DOMAIN}", "SOA"), [], [], threading.Event()

    def ask(how):
        while not over.is_set():
            try:
                answered.append(how(query, "127.0.0.1", timeout=3, port=port).rcode())
            except Exception as error:  # noqa: BLE001: whatever it is, a name server got no answer
                failed.append(repr(error))

    threads = [threading.Thread(target=ask, args=(getattr(dns.query, how),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            many = len(answered)
            eventually(lambda at=many: len(answered) > at + 50, what="answers")
            old = running_or_none(world)
            code, out, err = upgrade(world)
            assert code == 0, out + err
            eventually(lambda pid=old: not alive(pid), what="the end of the process before")
        many = len(answered)
        eventually(lambda: len(answered) > many + 50, what="answers")
    finally:
        over.set()
        for thread in threads:
            thread.join(20)
    print(f"\nasked {len(answered) + len(failed)}, failed {len(failed)}")
    assert not failed and {*answered} == {dns.rcode.NOERROR}, failed[:5]


@pytest.fixture(scope="module")
def hooked(tmp_path_factory):
    """What a command that sets records was given by a process that took over: its descriptors, and its environment."""
    from acme_servers import Authority

    folder = tmp_path_factory.mktemp("hook")
    hook, seen = folder / "hook", folder / "seen"
    hook.write_text(f"#!/bin/sh\n{{ ls -l /proc/$$/fd; env; echo; }} >>{seen}\n")
    hook.chmod(0o755)
    flags = ["--tls", "acme", "--dns-hook", str(hook), "--grace", "1s"]
    with Authority() as ca, contextlib.ExitStack() as stack:
        flags += ["--acme-directory", ca.directory, "--acme-ca", str(ca.https_root)]
        world = upgradeable(stack, *flags)
        eventually(seen.exists, 40, "the command")
        code, out, err = upgrade(world)
        assert code == 0, out + err
        eventually(lambda: not alive(world.relay.pid), what="the end of the process before")
        seen.unlink()
        world.relay.command("cert", "renew")
        eventually(lambda: seen.exists() and "\n\n" in seen.read_text(), 40, "the command")
        return seen.read_text()


def test_commands_that_set_records_get_no_sockets(hooked):
    assert "socket:" not in hooked and "relay.db" not in hooked and "relay.lock" not in hooked, hooked


def test_commands_that_set_records_are_no_successors(hooked):
    assert "HOOKWAY_RELAY_SUCCESSOR" not in hooked


# ── sockets of the service manager ────────────────────────────────────────────────────────────────────────────────

LAUNCHER = """
import fcntl, json, os, socket, sys
kinds = {"tcp": (socket.AF_INET, socket.SOCK_STREAM), "udp": (socket.AF_INET, socket.SOCK_DGRAM),
         "unix": (socket.AF_UNIX, socket.SOCK_STREAM)}
high = []
for kind, where in json.loads(sys.argv[1]):
    own = socket.socket(*kinds[kind])
    own.bind(tuple(where) if kind != "unix" else where)
    if kind != "udp":
        own.listen()
    high.append(fcntl.fcntl(own.detach(), fcntl.F_DUPFD, 100))
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[2]))
os.environ["LISTEN_FDS"] = str(len(high))
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.fixture
def activated(bare, launched):
    """`activated(sockets, names, *flags)`: a world whose relay got those from the service manager."""

    def begin(sockets, names, *flags, other=0):
        command = [sys.executable, "-c", LAUNCHER, json.dumps(sockets), other, HOOKWAY_RELAY, "run", "--domain", DOMAIN]
        command += ["--data-dir", bare.relay.data, "--rate", "off", "--grace", "2s", "--json", *flags]
        return launched(command, {} if names is None else {"LISTEN_FDNAMES": names})

    return begin


def places(count):
    return [("127.0.0.1", free_port()) for _ in range(count)]


def at(place):
    return f"{place[0]}:{place[1]}"


def flags(https, http, admin):
    return "--https", at(https), "--http", at(http), "--admin", at(admin)


def check_served(world, https, plain):
    """Senders and clients of both transports find it there."""
    app = world.app()
    relay = world.relay
    assert (relay.https, relay.http) == (https, plain)
    for transport in ("quic", "h2"):
        client = world.client(app, "--transport", transport)
        assert world.post(f"/{transport}", b"x").status == 200
        client.stop()
    connection = http.client.HTTPConnection(*plain, timeout=10)
    connection.request("GET", "/", headers={"Host": HOST})
    assert connection.getresponse().status in (301, 307, 308)


def test_sockets_of_the_service_manager_are_used(activated):
    """Wherever its unit says that they are, whatever the flags say."""
    given, said, http, other, admin = places(5)
    sockets = [("tcp", http), ("udp", given), ("tcp", given), ("tcp", admin)]
    world = activated(sockets, "http:quic:https:admin", *flags(said, other, said))
    check_served(world, given, http)
    assert world.relay.admin == admin and is_refused(said) and is_refused(other)
    eventually(lambda: "ERROR" not in world.relay.log())


def test_only_some_sockets_are_the_service_managers(activated):
    given, http, admin = places(3)
    world = activated([("tcp", given)], "https", *flags(given, http, admin))
    check_served(world, given, http)


def test_sockets_for_another_process_are_not_used(activated):
    given, said, http, admin = places(4)
    world = activated([("tcp", given)], "https", *flags(said, http, admin), other=1)
    check_served(world, said, http)


def wrong_sockets(tmp_path):
    given, path = places(1)[0], str(tmp_path / "socket")
    return {
        "of another kind": ([("udp", given)], "https"),
        "of another family": ([("unix", path)], "https"),
        "QUIC on TCP": ([("tcp", given)], "quic"),
        "of another name": ([("tcp", given)], "web"),
        "as a unit without names has": ([("tcp", given)], "hookway-relay.socket"),
        "without names": ([("tcp", given)], None),
        "with too few names": ([("tcp", given), ("udp", given)], "https"),
        "twice": ([("tcp", given), ("tcp", places(1)[0])], "https:https"),
    }


WRONG = ["of another kind", "of another family", "QUIC on TCP", "of another name", "as a unit without names has"]
WRONG += ["without names", "with too few names", "twice"]


@pytest.mark.parametrize("title", WRONG)
def test_sockets_that_cannot_be_used_are_told(activated, tmp_path, title):
    sockets, names = wrong_sockets(tmp_path)[title]
    said, http, admin = places(3)
    world = activated(sockets, names, *flags(said, http, admin))
    log = world.relay.log()
    assert "service manager" in log and ("ERROR" in log or "WARN" in log), log


@pytest.mark.parametrize("same", [True, False], ids=["as configured", "elsewhere"])
def test_an_upgrade_on_sockets_of_the_service_manager(activated, same):
    given, said, http, other, admin = places(5)
    sockets = [("tcp", given), ("udp", given), ("tcp", http)]
    world = activated(sockets, "https:quic:http", *(flags(given, http, admin) if same else flags(said, other, admin)))
    app = world.app()
    client = world.client(app)
    with Load(world, app) as load:
        for _ in range(2):
            sent = load.sent
            eventually(lambda at=sent: load.sent > at + 30, what="load")
            old = running(world)["pid"]
            code, out, err = upgrade(world)
            assert code == 0, out + err
            now = running(world)
            assert (now["https"], now["http"]) == (at(given), at(http)), "the service manager's, as before"
            eventually(lambda pid=old: not alive(pid), 45, "the end of the process before")
        sent = load.sent
        eventually(lambda: load.sent > sent + 30, what="load")
    assert load.failed == [], (load.sent, load.statuses, load.failed[:10])
    client.stop()
    check_served(world, given, http)
