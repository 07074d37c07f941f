"""Nothing is lost silently, whatever is killed, cut or full.

The checker: what a sender was answered 2xx reaches the app, whole; what reaches the app again says so; a sender that
sends one after the other finds its own order there, but for what is repeated.
"""

import contextlib
import hashlib
import itertools
import os
import random
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import threading
import time
from datetime import datetime

import pytest
from test_queue import (
    MIB,
    Crowd,
    Failing,
    answers,
    arrived,
    attempt,
    depth,
    gated,
    is_marked,
    noise,
    numbered,
    offline,
    queue,
    restart,
    targets,
    unmarked_repeats,
)
from test_semantics import SleepingApp

from world import DOMAIN, LONG, Closed, Meanwhile, Relay, eventually, lacking, request

SEED = int(os.environ.get("HOOKWAY_SEED", "0")) or random.randrange(1, 10**9)
ROUNDS = 300 if LONG else 12
SENDERS = 4


# ── senders, and the checker ──────────────────────────────────────────────────────────────────────────────────────


class Senders(Meanwhile):
    """Each sends one delivery after the other, as long as the block lasts, and writes down what it was answered."""

    polite = False  # who is leaves a connection when it is told to, as real senders do

    def __init__(self, world, name="billing", count=SENDERS, pause=0.15, sizes=(0, 10, 1000, 1000, 20_000, 200_000)):
        self.world, self.name, self.pause, self.sizes = world, name, pause, sizes
        self.answered = []  # (sender, number, status, seconds), one list for all, appended to by one thread each
        self.bodies = {}
        super().__init__(*((self._run, sender) for sender in range(count)))

    def kept(self):
        """What was answered 2xx."""
        return [f"/{sender}/{number}" for sender, number, status, _ in self.answered if 200 <= status < 300]

    def _run(self, sender):
        randomness = random.Random(SEED + sender)
        wire = None
        for number in itertools.count():
            if self.over.is_set():
                break
            path = f"/{sender}/{number}"
            body = path.encode() + randomness.randbytes(randomness.choice(self.sizes))
            self.bodies[path] = hashlib.sha256(body).hexdigest()
            began, reply = time.monotonic(), None
            # What fails may have been taken: nobody was told.
            with contextlib.suppress(OSError, Closed):
                wire = wire or self.world.wire(self.name, timeout=30)
                reply = wire.ask(request("POST", path, body, f"{self.name}.{DOMAIN}"))
            status = reply.status if reply and reply.complete else 0
            self.answered.append((sender, number, status, time.monotonic() - began))
            if wire and (not reply or self.polite and "close" in reply.header("connection", "")):
                with contextlib.suppress(OSError):
                    wire.close()
                wire = None
            self.over.wait(self.pause)
        if wire:
            wire.close()


def check(senders, app):
    """All that the promise says, of all that was sent; the figures."""
    seen = list(app.seen)
    kept, there = set(senders.kept()), {one.target for one in seen}
    lost = kept - there
    assert not lost, f"seed {SEED}: lost {len(lost)} of {len(kept)}: {sorted(lost)[:10]}"
    assert not app.unclean
    repeats = unmarked_repeats(app)
    assert not repeats, f"seed {SEED}: again without the mark: {repeats[:10]}"
    changed = [one.target for one in seen if one.sha256 != senders.bodies[one.target]]
    assert not changed, f"seed {SEED}: changed: {changed[:10]}"
    return {
        "sent": len(senders.answered),
        "kept": len(kept),
        "marked": sum(map(is_marked, seen)),
        "again": len(seen) - len(there),
    }


def first_arrivals(app, sender):
    """The numbers of a sender's deliveries in the order in which they came for the first time."""
    numbers = (int(seen.target.split("/")[2]) for seen in list(app.seen) if seen.target.startswith(f"/{sender}/"))
    return list(dict.fromkeys(numbers))


def all_handed_over(world, senders, app, seconds=900 if LONG else 60):
    def is_done():
        return {*senders.kept()} <= {*targets(app)} and not depth(world)

    try:
        eventually(is_done, seconds, "everything handed over")
    except AssertionError as error:
        missing = sorted({*senders.kept()} - {*targets(app)})[:10]
        waiting = world.relay.command("queue", "list")
        dead = world.relay.command("queue", "dead-letters")
        raise AssertionError(f"seed {SEED}: missing {missing}, waiting {waiting}, dead {dead}") from error


def told(figures, rounds):
    """For the one who reads the output of `pytest -s`, or of a failure."""
    print(f"\nseed {SEED}: {rounds} kills, " + ", ".join(f"{count} {what}" for what, count in figures.items()))


# ── killed ────────────────────────────────────────────────────────────────────────────────────────────────────────


def again(world, client, app, *flags):
    """Another client in the place of one that was killed."""
    if client.running:
        client.process.kill()
    client.exited()
    return world.client(app, *flags, wait=False)


def test_a_relay_killed_at_random(new_world):
    world, randomness = new_world(), random.Random(SEED)
    app = world.app()
    Crowd(app, 0.005)
    client = world.client(app)
    slowest = 0
    with Senders(world) as senders:
        for number in range(ROUNDS):
            threading.Event().wait(randomness.uniform(0, 1))  # the moment is what is tried
            began = time.monotonic()
            restart(world, signal.SIGKILL)
            slowest = max(slowest, time.monotonic() - began)
            # Mostly it is killed again before its client is back.
            if number % 6 == 3:
                many = len(app.seen)
                eventually(lambda many=many: len(app.seen) > many, 15, "the client back")
    all_handed_over(world, senders, app)
    assert client.running
    told(check(senders, app), ROUNDS)
    assert slowest < 5, f"ready again after {slowest:.1f} s"


def test_a_client_killed_at_random(new_world):
    world, randomness = new_world(), random.Random(SEED)
    app = world.app()
    Crowd(app, 0.05)  # so that many are at the app when the client is killed
    client = world.client(app)
    # Many, for each that the killed client had waits until its silence is noticed.
    with Senders(world, count=24, pause=0.05) as senders:
        for _ in range(ROUNDS):
            threading.Event().wait(randomness.uniform(0, 1))
            client = again(world, client, app)
            # Half of the time it is killed again before it is there.
            if randomness.random() < 0.5:
                client.event("ready")
    client.event("ready")
    all_handed_over(world, senders, app)
    told(check(senders, app), ROUNDS)
    late = [(status, seconds) for *_, status, seconds in senders.answered if seconds > 5]
    assert not late, f"senders waited: {late[:10]}"


def test_both_killed_at_random_and_order_is_kept(new_world):
    """All is queued, so that all has an order: of acceptance, among first arrivals."""
    world, randomness = new_world(), random.Random(SEED)
    app = world.app()
    Crowd(app, 0.01)
    client = world.client(app, "--ack", "early")
    with Senders(world) as senders:
        for _ in range(ROUNDS):
            threading.Event().wait(randomness.uniform(0, 1))
            if randomness.random() < 0.5:
                restart(world, signal.SIGKILL)
            else:
                client = again(world, client, app, "--ack", "early")
    client.event("ready")
    all_handed_over(world, senders, app)
    told(check(senders, app), ROUNDS)
    for sender in range(SENDERS):
        order = first_arrivals(app, sender)
        assert order == sorted(order), f"seed {SEED}: sender {sender}"


def test_an_app_that_was_away_and_a_killed_relay(new_world):
    """That the app may have it is noted anew each time, also after an attempt that reached nothing."""
    world = new_world()
    with SleepingApp() as down:
        offline(world)
        queue(world, "billing", "/x")
        client = world.client(down)
        # It is with the client by now, which leaves with nothing done.
        client.event("app", lambda event: event["state"] == "down")
        assert client.stop() == 0
    app, gate = gated(world, "/x")
    client = world.client(app)
    arrived(app, 1)
    restart(world, signal.SIGKILL)
    gate.set()
    late = arrived(app, 2)
    assert not unmarked_repeats(app), [(attempt(seen), is_marked(seen)) for seen in late]


def test_a_relay_killed_while_a_delivery_is_at_the_app(new_world):
    world = new_world()
    app, gate = gated(world, "/3")
    offline(world)
    queue(world, "billing", *numbered(60))
    world.client(app)
    arrived(app, 4)
    restart(world, signal.SIGKILL)
    gate.set()
    eventually(lambda: {*targets(app)} == {*numbered(60)}, what="everything")
    assert targets(app)[:5] == ["/0", "/1", "/2", "/3", "/3"] and is_marked(app.seen[4])
    assert list(dict.fromkeys(targets(app))) == numbered(60) and not unmarked_repeats(app)


# ── suspended ─────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def suspended(program):
    """The program's process stands still for the length of the block: a laptop that sleeps."""
    program.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        program.process.send_signal(signal.SIGCONT)


def test_a_client_that_sleeps(new_world):
    """Senders wait as little as 3 s: the delivery is taken from the silent link before that, whatever its size."""
    world = new_world()
    app = world.app()
    client = world.client(app)
    assert world.post("/before").status == 200
    with suspended(client):
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(world.wire()) for _ in range(2)]
            began = time.monotonic()
            for wire, size in zip(wires, (0, MIB), strict=True):
                wire.send(request("POST", f"/{size}", noise(size)))
            statuses = [wire.reply("POST").status for wire in wires]
            took = time.monotonic() - began
        assert statuses == [202, 202] and took < 3, (statuses, took)
        began = time.monotonic()
        queue(world, "billing", "/then")
        assert time.monotonic() - began < 3
    awake = time.monotonic()
    eventually(lambda: {"/0", f"/{MIB}", "/then"} <= {*targets(app)}, 15, "all")
    late = time.monotonic() - awake
    eventually(lambda: not depth(world), what="nothing waiting")
    assert {seen.body for seen in app.at(f"/{MIB}")} == {noise(MIB)} and not unmarked_repeats(app)
    # The first may be the one that was under way: then what comes from the queue is the marked one.
    assert any(map(is_marked, app.at("/0"))) and any(map(is_marked, app.at(f"/{MIB}")))
    assert late < 5, f"back after {late:.1f} s"
    # And it is all as before: answered by the app, also what may not wait.
    eventually(lambda: world.get("/after").status == 200, 8, "the endpoint being served again")


def test_a_client_that_sleeps_for_long(new_world):
    """Long enough that its link is given up: it comes back by itself, and gets the backlog in order."""
    world = new_world()
    app = world.app()
    client = world.client(app)
    with suspended(client):
        queue(world, "billing", "/0")
        eventually(lambda: world.relay.metric("sessions") == 0, what="the dead link")
        queue(world, "billing", *numbered(20)[1:])
    awake = time.monotonic()
    eventually(lambda: {*targets(app)} == {*numbered(20)}, 15, "all")
    late = time.monotonic() - awake
    assert late < 5, f"back after {late:.1f} s"
    assert list(dict.fromkeys(targets(app))) == numbered(20) and not unmarked_repeats(app)
    assert world.post("/live").status == 200


# ── power cuts ────────────────────────────────────────────────────────────────────────────────────────────────────


WAL_HEADER, FRAME_HEADER, PAGE = 32, 24, 4096


class Copy:
    """The relay's store as a power cut leaves it: the file, and the log up to some byte."""

    def __init__(self, relay, folder):
        self.folder = folder
        # The log first: what is moved from it into the file meanwhile would be in both, and never in neither.
        self.log = (relay.data / "relay.db-wal").read_bytes()
        self.file = (relay.data / "relay.db").read_bytes()
        files = (path for path in relay.data.rglob("*") if path.is_file())
        self.others = [path for path in files if not path.name.startswith("relay.db")]
        self.data = relay.data

    def cut(self, title, length, garbage=b""):
        """A data folder with the log cut there."""
        data = self.folder / title / "relay-data"
        data.mkdir(parents=True)
        for path in self.others:
            target = data / path.relative_to(self.data)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        (data / "relay.db").write_bytes(self.file)
        (data / "relay.db-wal").write_bytes(self.log[:length] + garbage)
        return self.folder / title


def started_on(folder):
    """What a relay finds in a cut store: it must start; the paths of what waits, in order, and whether all is whole."""
    relay = Relay(folder)
    try:
        db = sqlite3.connect(f"file:{relay.data}/relay.db?mode=ro", uri=True)
        with contextlib.closing(db):
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            sql = "SELECT path, length(body) FROM delivery JOIN payload USING (seq) ORDER BY seq"
            rows = db.execute(sql).fetchall()
            (count,) = db.execute("SELECT count(*) FROM delivery").fetchone()
        assert count == len(rows), "a delivery without its body, or a body without its delivery"
        eventually(lambda: relay.metric("queue_depth") == count, what="the relay knowing what it has")
        return rows
    finally:
        relay.process.kill()
        relay.exited()


def frames(log):
    """The end of each frame of a log, and whether a commit is complete there."""
    size = struct.unpack(">I", log[8:12])[0]
    assert size == PAGE
    salt, at = log[16:24], WAL_HEADER
    while at + FRAME_HEADER + size <= len(log) and log[at + 8 : at + 16] == salt:
        commit = struct.unpack(">I", log[at + 4 : at + 8])[0] > 0
        at += FRAME_HEADER + size
        yield at, commit


def test_power_cuts(new_world, tmp_path):
    """The log is cut at its frames, and within them: a relay starts on it, and has all whose 202 was told by then.

    Whether the disk had the log when the 202 was told is not seen so: that it is asked to, the next test sees.
    """
    world = new_world()
    offline(world)
    log = world.relay.data / "relay.db-wal"
    sizes, told_at = {}, []
    began = log.stat().st_size
    for number in range(25):
        sizes[f"/{number}"] = size = [10, 3000, 9000, 40_000][number % 4]
        assert world.post(f"/{number}", bytes(size)).status == 202
        told_at.append(log.stat().st_size)
    copy = Copy(world.relay, tmp_path)
    ends = [end for end, _ in frames(copy.log) if end >= began]
    assert len(ends) > 80 and ends[-1] == told_at[-1], "nothing was moved from the log into the file meanwhile"
    randomness = random.Random(SEED)
    cuts = [(end, b"") for end in ends]
    # Within a frame; and as a disk leaves what it was writing: the length is there, what stands in it is not.
    for end in ends:
        torn = end - randomness.randrange(1, PAGE + FRAME_HEADER)
        cuts += [(torn, b""), (torn, bytes(end - torn)), (torn, randomness.randbytes(end - torn + 5000))]
    if not LONG:
        cuts = [cuts[0], cuts[len(ends) - 1], *randomness.sample(cuts, 28)]
    for number, (length, garbage) in enumerate(cuts):
        rows = started_on(copy.cut(f"cut-{number}", length, garbage))
        due = sum(at <= length for at in told_at)
        assert len(rows) >= due, f"seed {SEED}: cut at {length}: {len(rows)} of {due}"
        # In order, nothing left out, and each whole: all or nothing.
        assert [path for path, _ in rows] == numbered(len(rows))
        assert all(length == sizes[path] for path, length in rows)


def test_every_202_is_in_a_copy_taken_then(new_world, tmp_path):
    world = new_world()
    offline(world)
    for number in range(60 if LONG else 8):
        queue(world, "billing", f"/{number}")
        copy = Copy(world.relay, tmp_path)
        rows = started_on(copy.cut(f"copy-{number}", len(copy.log)))
        assert [path for path, _ in rows] == numbered(number + 1)


def test_the_disk_is_waited_for_before_each_202(new_world, tmp_path):
    """The system calls of the relay: between a delivery and its 202 the log is synchronised."""
    if not shutil.which("strace"):
        lacking("strace is not installed")
    world = new_world()
    offline(world)
    trace = tmp_path / "trace"
    words = ["strace", "-f", "-qq", "-y", "-e", "trace=fsync,fdatasync", "-o", str(trace), "-p", str(world.relay.pid)]
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE)
    try:
        if not _is_traced(world.relay, tracer):
            lacking(f"strace may not trace: {tracer.stderr.read().decode()}")
        before = 0
        for number in range(20):
            queue(world, "billing", f"/{number}")
            synced = len(re.findall(r"sync\(\d+<[^>]*relay\.db-wal>", trace.read_text()))
            assert synced > before, f"the 202 of /{number} came before its log was on disk"
            before = synced
    finally:
        if tracer.poll() is None:
            tracer.send_signal(signal.SIGINT)
        tracer.wait(10)


def _is_traced(relay, tracer):
    def is_decided():
        status = (f"/proc/{relay.pid}/task/{task}/status" for task in os.listdir(f"/proc/{relay.pid}/task"))
        traced = all("TracerPid:\t0\n" not in open(path).read() for path in status)
        return traced or tracer.poll() is not None

    eventually(is_decided, what="strace attached")
    return tracer.poll() is None


# ── a full disk ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(request, tmp_path):
    """A disk of 16 MiB, or what the test asks for, where a relay keeps its data: the folder to start it in."""
    if os.geteuid():
        lacking("only root may mount a small disk")
    data = tmp_path / "full" / "relay-data"
    data.mkdir(parents=True)
    size = getattr(request, "param", "16m")
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(data)]
    mounted = subprocess.run(words, capture_output=True, check=False)
    if mounted.returncode:
        lacking(f"no disk can be mounted: {mounted.stderr.decode()}")
    try:
        yield data.parent
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


def move_to(world, folder, *flags):
    """The world's relay, on another disk, before anything was asked of it."""
    world.relay.stop()
    world.relay = world._add(Relay(folder, flags, title="relay-on-disk"))


def fill(path, leave=0):
    """Writes a file until nothing more fits, but for so many bytes."""
    with path.open("wb", buffering=0) as filler:
        for size in (65_536, 4096, 1):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)) == size:
                    pass
        filler.truncate(max(0, filler.tell() - leave))


def health(world):
    return world.relay.get("/health")[0]


def test_a_full_disk(new_world, small_disk):
    """Never 202 for what is not kept; what passes live passes; what was kept arrives once there is room."""
    world = new_world()
    move_to(world, small_disk, "--disk-reserve", "0%")
    app, live = world.app(), world.app()
    offline(world)
    world.client(live, name="live")
    body = noise(20_000)
    kept = [path for path in numbered(10) if world.post(path, body).status == 202]
    assert kept == numbered(10) and health(world) == 200
    filler = world.relay.data / "filler"
    fill(filler)
    refused = numbered(15, "/full-")
    for path in refused:
        reply = world.post(path, body)
        assert reply.status == 503 and int(reply.header("retry-after")) > 0, path
        # Looked at over more than a second, in which the relay looks, too.
        assert health(world) == 503, f"healthy at {path}, though it keeps nothing"
        assert world.post(path, body, "live").status == 200
        threading.Event().wait(0.1)
    filler.unlink()
    eventually(lambda: health(world) == 200, 5, "health with room again")
    assert world.post("/then", body).status == 202
    world.client(app)
    arrived(app, 11)
    eventually(lambda: not depth(world), what="nothing waiting")
    assert targets(app) == [*kept, "/then"] and {seen.body for seen in app.seen} == {body}
    assert targets(live) == refused
    db = sqlite3.connect(f"file:{world.relay.data}/relay.db?mode=ro", uri=True)
    with contextlib.closing(db):
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def filled(world, **options):
    """Senders that have filled the disk, several at once: 503 from then on."""
    with Senders(world, **options) as senders:
        eventually(lambda: 503 in [status for *_, status, _ in senders.answered[-20:]], 60, "a full disk")
    assert {status for *_, status, _ in senders.answered} == {202, 503}
    restart(world, signal.SIGKILL)
    return senders


def test_a_disk_that_deliveries_fill(new_world, small_disk):
    """To the last byte, and the relay is killed then; all that were told 202 arrive once there is room."""
    world = new_world()
    move_to(world, small_disk, "--disk-reserve", "0%")
    offline(world)
    senders = filled(world, pause=0.02)
    subprocess.run(["mount", "-o", "remount,size=64m", str(world.relay.data)], check=True)
    app = world.app()
    world.client(app)
    all_handed_over(world, senders, app)
    assert check(senders, app)["kept"] > 20


@pytest.mark.parametrize("small_disk", ["160m"], indirect=True)
def test_a_disk_that_deliveries_fill_to_the_reserve(new_world, small_disk):
    """All that were told 202 arrive with no room made for that."""
    world = new_world()
    move_to(world, small_disk, "--disk-reserve", "65%")
    offline(world)
    senders = filled(world, sizes=[MIB - 100], pause=0.05)
    app = world.app()
    world.client(app)
    all_handed_over(world, senders, app)
    assert check(senders, app)["kept"] > 20


def test_the_reserve_is_for_handing_over(new_world, small_disk):
    """Before the disk is full nothing more is taken, and what is there is handed over."""
    world = new_world()
    move_to(world, small_disk, "--disk-reserve", "50%")
    offline(world)
    queue(world, "billing", *numbered(5))
    with (world.relay.data / "filler").open("wb") as filler:
        filler.write(bytes(9 << 20))
    eventually(lambda: health(world) == 503, 5, "health noticing")
    assert answers(world, "billing", "/full") == [503]
    app = world.app()
    world.client(app)
    arrived(app, 5)
    eventually(lambda: not depth(world), what="nothing waiting")
    assert targets(app) == numbered(5) and health(world) == 503
    (world.relay.data / "filler").unlink()
    eventually(lambda: health(world) == 200, 5, "health with room again")
    assert world.post("/live").status == 200


# ── clocks ────────────────────────────────────────────────────────────────────────────────────────────────────────


CLOCK = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile long *shift;

__attribute__((constructor)) static void open_shift(void) {
    int file = open(getenv("CLOCK_SHIFT"), O_RDONLY);
    shift = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t id, struct timespec *t) {
    int failed = syscall(SYS_clock_gettime, id, t);
    if (!failed && shift && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += *shift;
    return failed;
}
"""


class Clock:
    """The clock on the wall of programs started in this environment: set, while they run, by so many seconds."""

    def __init__(self, folder):
        compiler = shutil.which("cc")
        if not compiler:
            lacking("there is no C compiler")
        source, library, self._shift = folder / "clock.c", folder / "clock.so", folder / "shift"
        source.write_text(CLOCK)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_SHIFT": str(self._shift)}

    def set(self, seconds):
        with self._shift.open("r+b" if self._shift.exists() else "w+b") as shift:
            shift.write(struct.pack("=q", seconds))


HOUR = 3600


@pytest.mark.parametrize("hours", [2, -2])
def test_a_clock_that_is_set_while_the_relay_runs(new_world, tmp_path, hours):
    """Neither what waits nor what is tried again goes by it."""
    clock = Clock(tmp_path)
    world = new_world("--queue-retention", "1h", environment=clock.environment)
    app = world.app()
    offline(world)
    queue(world, "billing", *numbered(3))
    clock.set(hours * HOUR)
    queue(world, "billing", "/3")
    eventually(lambda: depth(world) == 4, what="the relay having looked since")
    assert world.relay.metric("queue_dead_letters") == 0 and world.relay.metric("queue_oldest_seconds") < 60
    Failing(app, ["/0"], times=1)
    world.client(app)
    arrived(app, 5, 10)
    assert {*targets(app)} == {*numbered(4)} and not unmarked_repeats(app)
    after = datetime.fromisoformat(app.at("/3")[0].header("hookway-received-at").replace("Z", "+00:00"))
    assert abs(after.timestamp() - time.time() - hours * HOUR) < 60, "this relay's clock was not set at all"


@pytest.mark.parametrize(("hours", "arrives"), [(1, True), (-23, True), (-25, False)])
def test_a_clock_that_was_set_between_two_runs(new_world, hours, arrives):
    """The only clock over a restart is the one on the wall; one that went back must not cost a delivery."""
    world = new_world()
    offline(world)
    queue(world, "billing", "/old")
    world.relay.stop()
    with contextlib.closing(sqlite3.connect(world.relay.data / "relay.db")) as db, db:
        db.execute("UPDATE delivery SET since = since + ?", [hours * HOUR * 1_000_000])
    restart(world)
    queue(world, "billing", "/new")
    app = world.app()
    world.client(app)
    arrived(app, 2 if arrives else 1)
    eventually(lambda: not depth(world), what="nothing waiting")
    assert targets(app) == (["/old", "/new"] if arrives else ["/new"])
    assert world.relay.metric("queue_dead_letters") == (not arrives)


# ── very many ─────────────────────────────────────────────────────────────────────────────────────────────────────


MANY = 100_000 if LONG else 5000


def queue_many(world, count, senders=8):
    """So many deliveries, on kept connections; the seconds it took."""

    def send(sender):
        with world.wire() as wire:
            for number in range(sender, count, senders):
                statuses.append(wire.ask(request("POST", f"/{number}", bytes(1000))).status)

    statuses, began = [], time.monotonic()
    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [202] * count
    return time.monotonic() - began


class Tally:
    """An app that keeps of what it saw the number of times, and not more: it is asked very often."""

    def __init__(self, app):
        self.app, self.times, self.marked = app, {}, 0
        app.answer = self

    def __call__(self, seen, _connection):
        self.times[seen.target] = self.times.get(seen.target, 0) + 1
        self.marked += is_marked(seen)
        if len(self.app.seen) > 1000:
            self.app.clear()
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_very_many_drain_in_little_memory(new_world):
    world = new_world("--queue-max-count", str(2 * MANY), "--queue-token-max-count", str(2 * MANY))
    offline(world)
    took = queue_many(world, MANY)
    began = time.monotonic()
    restart(world, signal.SIGKILL)
    ready = time.monotonic() - began
    app = world.app()
    tally = Tally(app)
    client = world.client(app, "--drain-concurrency", "16")
    eventually(lambda: len(tally.times) > MANY // 10, 60, "the first of them")
    before, most = (world.relay.rss(), client.rss()), [0, 0]

    def is_done():
        most[:] = max(most[0], world.relay.rss()), max(most[1], client.rss())
        return len(tally.times) == MANY

    began = time.monotonic()
    eventually(is_done, 900 if LONG else 60, "all of them")
    drained = time.monotonic() - began
    grown = [(after - first) / MIB for first, after in zip(before, most, strict=True)]
    print(f"\n{MANY}: queued in {took:.1f} s, ready in {ready:.1f} s, drained in {drained:.1f} s, grown by {grown} MiB")
    assert {*tally.times.values()} == {1} and not tally.marked
    eventually(lambda: not depth(world), what="nothing waiting")
    assert max(grown) < 48, f"relay and client grew by {grown} MiB, from {before}"
    assert ready < 5, f"ready after {ready:.1f} s"
