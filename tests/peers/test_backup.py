"""A backup is one moment of a store that goes on, whole or not there; a restored one goes on where that was.

What was answered 202 before a backup began, and was not handed over before it ended, is in it, byte for byte. A store
of an earlier version becomes this one's, and what it was before is kept.
"""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time

import pytest
from test_queue import NOWHERE, arrived, is_marked, noise, numbered, offline, queue, restart, targets
from test_queue_crashes import SEED, fill

from world import DOMAIN, HOOKWAY_RELAY, LONG, Meanwhile, Program, Relay, alive, eventually, lacking, request, run, signal_process

MIB = 1 << 20
BACKUPS = 5
KILLS = 60 if LONG else 6
BIG = 256 if LONG else 48  # MiB


# ── what the tests are made of ────────────────────────────────────────────────────────────────────────────────────


def command(*words, data, folder=None, **environment):
    """A command on a store, run to its end."""
    folder = folder or pathlib.Path(data).parent
    return run(HOOKWAY_RELAY, *words, "--data-dir", str(data), folder=folder, **environment)


def done(*words, data, **options):
    """Its JSON answers, when it went well."""
    result = command(*words, "--json", data=data, **options)
    assert result.returncode == 0, result
    return [json.loads(line) for line in result.stdout.splitlines()]


def refused(result, *parts):
    """It says what is wrong, and what to do; nothing on stdout, which programs read."""
    assert result.returncode == 1, result
    assert result.stderr.startswith("error: ") and "  next:  " in result.stderr, result.stderr
    for part in parts:
        assert part in result.stderr, (part, result.stderr)
    assert not result.stdout and "panicked" not in result.stderr, result


@contextlib.contextmanager
def opened(path, mode="ro"):
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode={mode}", uri=True)) as db:
        yield db


def tables(db, but=()):
    """All rows of all tables, by table."""
    names = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    return {name: db.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in sorted(names) if name not in but}


def is_whole(path):
    with opened(path) as db:
        return db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def contents(folder):
    """Every file of a folder, by name: its bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def restored(backup, folder):
    """A fresh data folder made of it, where `Relay` looks for one."""
    folder.mkdir(parents=True)
    (told,) = done("restore", backup, data=folder / "relay-data", folder=folder)
    return told


def moved_to(world, folder, *flags):
    """The world's relay is one that runs on that folder; its clients go to it from now on."""
    world.relay = world._add(Relay(folder, flags, title=f"relay-on-{folder.name}"))
    return world.relay


def token_list(data):
    return done("token", "list", data=data)


@pytest.fixture(scope="module")
def quiet_store(tmp_path_factory):
    """A data folder with something of everything, which no relay runs on, and a backup of it."""
    from world import World

    folder = tmp_path_factory.mktemp("quiet")
    with World() as world:
        offline(world)
        world.client(NOWHERE, "--share", "copy", "--listener", "ann", name="copied").stop()
        queue(world, "billing", *numbered(5))
        assert world.post("/large", noise(3 * MIB)).status == 202
        queue(world, "copied", "/copy")
        world.token("operator", "--scope", "admin")
        world.token("short", "--expires", "1h", "--endpoints", "short-*")
        world.token("revoked")
        world.relay.command("token", "revoke", "revoked")
        world.relay.command("endpoint", "protect", "billing", "--allow-ip", "127.0.0.0/8", "--limit-rate", "1000/s")
        offline(world, "gone")
        world.relay.command("endpoint", "release", "gone")
        world.relay.stop()
        shutil.copytree(world.relay.data, folder / "relay-data")
        token = world.default_token
    data = folder / "relay-data"
    (data / "relay.lock").unlink()
    with opened(data / "relay.db", "rw") as db, db:
        (endpoint,) = db.execute("SELECT id FROM endpoint WHERE name = 'billing'").fetchone()
        db.execute("INSERT INTO domain VALUES ('hooks.example.com', ?, 1)", [endpoint])
        db.execute("INSERT INTO acme_account VALUES ('https://ca.test/dir', '{}')")
        values = ("a.test b.test", "https://ca.test/dir", "a chain", "a key", 7, 2, "an error", None)
        db.execute("INSERT INTO certificate VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        db.execute("UPDATE delivery SET dead_since = since, last = 'the app answered 500' WHERE path = '/3'")
    with opened(data / "relay.db", "rw") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    backup = folder / "quiet.backup"
    done("backup", backup, data=data)
    return Quiet(data, backup, token)


class Quiet:
    def __init__(self, data, backup, token):
        self.data, self.backup, self.token = data, backup, token

    def copy(self, folder):
        """The store once more, to be spoiled."""
        shutil.copytree(self.data, folder / "relay-data")
        return folder / "relay-data"


def grown(data, mebibytes):
    """Makes a store large: dead letters of a MiB each, which nobody asks for."""
    with opened(data / "relay.db", "rw") as db, db:
        now = time.time_ns() // 1000
        row = f"zeroblob(16), (SELECT min(id) FROM endpoint), 'billing', {now}, 'POST', '/big', 9, 1, 1, 'why', {now}, {now}, ''"
        for _ in range(mebibytes):
            seq = db.execute(f"INSERT INTO delivery SELECT NULL, {row}").lastrowid
            db.execute("INSERT INTO payload VALUES (?, x'', randomblob(1048576), x'')", [seq])
        # Nobody is expected back, which senders would wait for.
        db.execute("UPDATE listener SET seen_at = seen_at - 60000000")
    return data


# ── of a relay that goes on ───────────────────────────────────────────────────────────────────────────────────────


class Traffic(Meanwhile):
    """Deliveries as fast as they are taken, tokens and endpoints made, and a client that drains; what was told when."""

    AWAY = ("away-0", "away-1")

    def __init__(self, world):
        self.world, self.randomness = world, random.Random(SEED)
        self.bodies, self.told, self.failed = {}, {}, []
        self.pairs, self.endpoints = [], []
        self.app = world.app()
        for name in self.AWAY:
            offline(world, name)
        offline(world, "pairs")
        world.client(self.app, "--ack", "early", name="drained")
        work = [(self.send, name, sender) for name in (*self.AWAY, "drained") for sender in range(2)]
        work += [(self.make_pairs,), (self.make_endpoints,)]
        super().__init__(*((self.run, *each) for each in work))

    def run(self, work, *arguments):
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001: whatever it is, nothing of this may fail
            self.failed.append(repr(error))

    def send(self, name, sender):
        randomness = random.Random(f"{SEED} {name} {sender}")
        with self.world.wire(name) as wire:
            for number in itertools.count():
                if self.over.is_set():
                    break
                path = f"/{name}/{sender}/{number}"
                body = path.encode() + randomness.randbytes(randomness.choice((0, 500, 5000, 60_000)))
                self.bodies[path] = hashlib.sha256(body).hexdigest()
                reply = wire.ask(request("POST", path, body, f"{name}.{DOMAIN}"))
                assert reply.status == 202, reply
                self.told[path] = time.monotonic()

    def make_pairs(self):
        """A token, and a delivery after it."""
        for number in itertools.count():
            if self.over.is_set():
                break
            self.world.token(f"pair-{number}")
            self.bodies[f"/pair/{number}"] = hashlib.sha256(b"x").hexdigest()
            assert self.world.post(f"/pair/{number}", b"x", "pairs").status == 202
            self.pairs.append(time.monotonic())

    def make_endpoints(self):
        for number in itertools.count():
            if self.over.is_set():
                break
            offline(self.world, f"made-{number}")
            self.endpoints.append((f"made-{number}", time.monotonic()))


class Moment:
    """What has to be in a backup that begins now, and what may be."""

    def __init__(self, traffic):
        self.traffic, self.began = traffic, time.monotonic()
        self.before = set(dict(traffic.told))
        self.pairs, self.endpoints = len(traffic.pairs), [name for name, _ in traffic.endpoints]

    def over(self):
        self.ended = time.monotonic()
        self.delivered = set(targets(self.traffic.app))
        self.due = {path for path in self.before if path not in self.delivered}
        self.during = sum(self.began < at < self.ended for at in dict(self.traffic.told).values())

    def check(self, file):
        with opened(file) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = db.execute("SELECT path, body, name FROM delivery LEFT JOIN payload USING (seq) ORDER BY seq").fetchall()
            tokens = {name for (name,) in db.execute("SELECT name FROM token")}
            endpoints = {name for (name,) in db.execute("SELECT name FROM endpoint")}
        there = [path for path, *_ in rows]
        assert not self.due - {*there}, f"seed {SEED}: {sorted(self.due - {*there})[:5]} of {len(self.due)} are not in it"
        assert len(there) == len({*there})
        for path, body, _ in rows:
            assert hashlib.sha256(body).hexdigest() == self.traffic.bodies[path], f"seed {SEED}: {path} is another"
        # Of one moment: nothing of a sender's is missing that came before another of its.
        for name, sender in itertools.product(Traffic.AWAY, range(2)):
            numbers = [int(path.rsplit("/", 1)[1]) for path in there if path.startswith(f"/{name}/{sender}/")]
            assert numbers == [*range(len(numbers))], f"seed {SEED}: gaps in what {name}/{sender} sent"
        pairs = [int(path.rsplit("/", 1)[1]) for path in there if path.startswith("/pair/")]
        assert len(pairs) >= self.pairs and {f"pair-{number}" for number in pairs} <= tokens
        assert {*self.endpoints} <= endpoints
        return len(there)


def test_backups_of_a_relay_under_load(new_world, tmp_path):
    world = new_world("--queue-max-count", "1000000", "--queue-token-max-count", "1000000")
    moments = []
    with Traffic(world) as traffic:
        for number in range(BACKUPS):
            sent, pairs = len(traffic.told), len(traffic.pairs)
            eventually(lambda at=sent: len(traffic.told) > at + 100, what="traffic")
            eventually(lambda at=pairs: len(traffic.pairs) > at, what="tokens")
            file, moment = tmp_path / f"{number}.backup", Moment(traffic)
            (told,) = world.relay.command("backup", str(file))
            moment.over()
            moments.append((file, moment, told))
        eventually(lambda at=len(traffic.told): len(traffic.told) > at + 50, what="traffic after them")
        made = len(traffic.endpoints)
    assert not traffic.failed, traffic.failed
    counts = [moment.check(file) for file, moment, _ in moments]
    assert counts == sorted(counts) and made
    for (file, moment, told), count in zip(moments, counts, strict=True):
        assert told["event"] == "backup" and told["deliveries"] == count and told["file"] == str(file)
        assert mode(file) == 0o600 and moment.during, "accepted while it was made"
    print(f"\n{counts} deliveries in the backups, {[moment.during for _, moment, _ in moments]} accepted meanwhile")
    assert [line["action"] for line in world.relay.command("audit")].count("store.backup") == BACKUPS
    token, old = world.default_token, pathlib.Path(world.relay.ca)
    listed = token_list(world.relay.data)
    for program in world.programs:
        program.stop()
    for number in (0, BACKUPS - 1):
        file, moment, told = moments[number]
        folder = tmp_path / f"restored-{number}"
        back = restored(file, folder)
        assert (back["deliveries"], back["tokens"]) == (told["deliveries"], told["tokens"]), (back, told)
        assert mode(folder / "relay-data") == 0o700 and is_whole(folder / "relay-data" / "relay.db")
        known = token_list(folder / "relay-data")
        assert len(known) == told["tokens"] and all(token in listed for token in known)
        relay = moved_to(world, folder)
        assert pathlib.Path(relay.ca).read_bytes() == old.read_bytes()
        relay.ca = str(old)  # which the client has from before
        app = world.app()
        names = [*Traffic.AWAY, "pairs", "drained"]
        rest = [word for name in names[1:] for word in ("-n", name)]
        client = world.client(app, "--drain-concurrency", "32", *rest, name=names[0], token=token)
        eventually(lambda: len({*targets(app)}) >= counts[number], 60, "all that was in it")
        for seen in app.seen:
            assert seen.sha256 == traffic.bodies[seen.target] and is_marked(seen), (seen.target, seen.headers)
        assert {*targets(app)} >= moment.due and not app.unclean
        client.stop()
        relay.stop()


def test_a_large_backup_keeps_no_sender_waiting(new_world, tmp_path):
    world = new_world("--disk-reserve", "0%")
    offline(world)
    world.relay.stop()
    grown(world.relay.data, BIG)
    restart(world)
    waits, over = [], threading.Event()

    def send():
        with world.wire() as wire:
            while not over.is_set():
                began = time.monotonic()
                assert wire.ask(request("POST", "/x", bytes(1000))).status == 202
                waits.append((began, time.monotonic()))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: len(waits) > 50, what="deliveries")
        began = time.monotonic()
        (told,) = world.relay.command("backup", str(tmp_path / "large.backup"))
        ended = time.monotonic()
    finally:
        over.set()
        for thread in threads:
            thread.join()
    during = [after - before for before, after in waits if before > began and after < ended]
    print(f"\n{told['bytes'] / MIB:.0f} MiB in {ended - began:.2f} s; {len(during)} accepted, slowest {max(during):.3f} s")
    assert told["bytes"] > BIG * MIB and len(during) > 20
    assert max(after - before for before, after in waits) < 2.5, "a sender waits as little as 3 s"


# ── all of it ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_restored_store_is_the_same(quiet_store, tmp_path):
    told = restored(quiet_store.backup, tmp_path / "new")
    data = tmp_path / "new" / "relay-data"
    assert told["event"] == "restored" and told["files"] == ["ca-key.pem", "ca.pem"]
    for path in data.iterdir():
        assert mode(path) == 0o600, path
    assert mode(data) == 0o700
    assert {*contents(data)} <= {"relay.db", "relay.db-wal", "relay.db-shm", "relay.lock", "ca.pem", "ca-key.pem"}
    for name in ("ca.pem", "ca-key.pem"):
        assert (data / name).read_bytes() == (quiet_store.data / name).read_bytes()
    but = ("audit", "sqlite_sequence", "delivery")
    with opened(quiet_store.data / "relay.db") as before, opened(data / "relay.db") as after:
        assert tables(after, but) == tables(before, but)
        columns = [row[1] for row in before.execute("PRAGMA table_info(delivery)") if row[1] != "handed"]
        sql = f"SELECT {', '.join(columns)} FROM delivery ORDER BY seq"
        assert after.execute(sql).fetchall() == before.execute(sql).fetchall()
        marks = after.execute("SELECT DISTINCT handed FROM delivery").fetchall()
        assert marks == [(1,)], "all of it may have been handed over since"
        known = before.execute("SELECT * FROM audit ORDER BY seq").fetchall()
        # But for the backup's own line, which came after it.
        audit = after.execute("SELECT * FROM audit ORDER BY seq").fetchall()
        assert audit[: len(known) - 1] == known[:-1] and len(audit) == len(known)
        assert before.execute("SELECT count(*) FROM held").fetchone() == (1,), "the test is one of held names, too"
    for words in (("endpoint", "list"), ("token", "list"), ("queue", "list"), ("queue", "dead-letters"), ("cert", "status")):
        before, after = (done(*words, data=each) for each in (quiet_store.data, data))
        for row in before:
            if "possible_duplicate" in row:
                row["possible_duplicate"] = True
        assert after == before and before, words
    (last,) = [line for line in done("audit", data=data) if line["action"] == "store.restore"]
    assert str(quiet_store.backup) in last["target"] and "deliveries" in last["detail"] and not last["refused"]


def test_numbers_are_not_given_twice(quiet_store, tmp_path):
    restored(quiet_store.backup, tmp_path / "new")
    with opened(quiet_store.data / "relay.db") as before, opened(tmp_path / "new/relay-data/relay.db") as after:
        sql = "SELECT name, seq FROM sqlite_sequence WHERE name != 'audit' ORDER BY name"
        assert after.execute(sql).fetchall() == before.execute(sql).fetchall()


def test_a_restored_relay_goes_on(quiet_store, new_world, tmp_path):
    """With the CA that clients trust and the tokens that they have; held names stay held, revoked tokens revoked."""
    world = new_world()
    world.relay.stop()
    restored(quiet_store.backup, tmp_path / "new")
    relay = moved_to(world, tmp_path / "new")
    relay.ca = str(quiet_store.data / "ca.pem")
    app = world.app()
    world.client(app, token=quiet_store.token)
    seen = arrived(app, 5)
    assert targets(app)[:5] == ["/0", "/1", "/2", "/4", "/large"], "in order, but for the dead letter"
    assert all(map(is_marked, seen)) and seen[4].body == noise(3 * MIB)
    assert world.post("/live", b"x").status == 200
    assert relay.command("queue", "retry", "--all")
    eventually(lambda: app.at("/3"), what="the dead letter")
    stranger = world.token("stranger")
    client = world.client(app, name="gone", token=stranger, wait=False)
    assert client.exited() == 5, "a held name"


def test_a_backup_in_words(quiet_store, tmp_path):
    result = command("backup", tmp_path / "words", data=quiet_store.data)
    assert result.returncode == 0 and "deliveries" in result.stdout and str(tmp_path / "words") in result.stdout
    assert "secret" in result.stderr
    result = command("restore", tmp_path / "words", data=tmp_path / "new")
    assert result.returncode == 0 and "deliveries" in result.stdout and "duplicate" in result.stderr


def test_a_backup_of_a_backup_is_as_good(quiet_store, tmp_path):
    restored(quiet_store.backup, tmp_path / "1")
    done("backup", tmp_path / "again", data=tmp_path / "1/relay-data")
    restored(tmp_path / "again", tmp_path / "2")
    with opened(tmp_path / "1/relay-data/relay.db") as before, opened(tmp_path / "2/relay-data/relay.db") as after:
        but = ("audit", "sqlite_sequence")
        assert tables(after, but) == tables(before, but)


def test_a_relative_name_and_one_without_an_ending(quiet_store, tmp_path):
    for name in ("plain", "two.dots.db", ".hidden", "spaces and\nlines", "ünïcode"):
        (told,) = done("backup", name, data=quiet_store.data, folder=tmp_path)
        assert told["file"] == name and is_whole(tmp_path / name)
    assert len(contents(tmp_path)) == 5, contents(tmp_path).keys()


# ── what a backup refuses ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_is_not_written_over(quiet_store, tmp_path):
    file = tmp_path / "there"
    file.write_bytes(b"precious")
    refused(command("backup", file, data=quiet_store.data), "there", "choose another name")
    assert contents(tmp_path) == {"there": b"precious"}
    refused(command("backup", tmp_path, data=quiet_store.data))
    refused(command("backup", quiet_store.data / "relay.db", data=quiet_store.data))
    link = tmp_path / "link"
    link.symlink_to(file)
    refused(command("backup", link, data=quiet_store.data))
    assert link.is_symlink() and file.read_bytes() == b"precious"


def test_a_link_to_nowhere_is_not_followed(quiet_store, tmp_path):
    """In a folder that others can write to, it would say where the backup goes, with their rights."""
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    link.symlink_to(elsewhere)
    result = command("backup", link, data=quiet_store.data)
    assert not elsewhere.exists()
    if result.returncode == 0:
        assert not link.is_symlink() and mode(link) == 0o600 and is_whole(link)
    else:
        refused(result)


@pytest.mark.parametrize("ending", ["part", "new"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_files_of_others_beside_it_stay(quiet_store, tmp_path, ending, kind):
    """What it writes first has a name of its own."""
    beside, far = tmp_path / f"relay.{ending}", tmp_path / "far"
    if kind == "file":
        beside.write_bytes(b"precious")
    else:
        far.write_bytes(b"precious")
        beside.symlink_to(far)
    result = command("backup", tmp_path / "relay.db", data=quiet_store.data)
    assert beside.read_bytes() == b"precious", result
    assert kind == "file" or beside.is_symlink()


def test_two_backups_of_names_alike_at_once(quiet_store, tmp_path):
    """Nightly ones have a date in their names, and dates have dots."""
    data = quiet_store.copy(tmp_path)
    grown(data, 24)
    files = [tmp_path / f"relay-2026.01.{day:02}" for day in range(1, 5)]
    words = [HOOKWAY_RELAY, "backup", "--data-dir", str(data)]
    began = [subprocess.Popen([*words, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for file in files]
    results = [(each.communicate(timeout=60), each.returncode) for each in began]
    assert [code for _, code in results] == [0] * 4, results
    assert all(map(is_whole, files))


def test_two_backups_of_one_name_at_once(quiet_store, tmp_path):
    """One of them is the backup, and the others say that there is one."""
    data, file = quiet_store.copy(tmp_path), tmp_path / "one"
    grown(data, 24)
    words = [HOOKWAY_RELAY, "backup", "--data-dir", str(data), "--json", file]
    began = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    results = [(each.communicate(timeout=60), each.returncode) for each in began]
    assert [code for _, code in results].count(0) == 1, results
    assert is_whole(file) and {*contents(tmp_path)} == {"one"}


def test_a_store_that_is_not_there(tmp_path):
    result = command("backup", tmp_path / "file", data=tmp_path / "nowhere")
    refused(result)
    assert not (tmp_path / "file").exists() and not (tmp_path / "nowhere").exists(), "and none is made"


def test_a_folder_that_is_not_there(quiet_store, tmp_path):
    refused(command("backup", tmp_path / "no/such/folder/file", data=quiet_store.data))
    assert not contents(tmp_path)


def test_a_ca_that_is_away_is_no_hindrance(quiet_store, tmp_path):
    """Certificates from elsewhere need none."""
    data = quiet_store.copy(tmp_path)
    (data / "ca.pem").unlink()
    (data / "ca-key.pem").unlink()
    (told,) = done("backup", tmp_path / "file", data=data)
    assert told["files"] == []
    assert restored(tmp_path / "file", tmp_path / "new")["files"] == []


# ── what a restore refuses ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("there", ["relay.db", "ca.pem", "ca-key.pem"])
def test_a_store_is_not_written_over(quiet_store, tmp_path, there):
    data = tmp_path / "relay-data"
    data.mkdir()
    (data / there).write_bytes(b"precious")
    refused(command("restore", quiet_store.backup, data=data), there, "mv ")
    assert contents(data) == {there: b"precious"}


def test_a_log_of_another_store_is_not_taken_for_its_own(quiet_store, new_world, tmp_path):
    """The relay was killed, and its database alone moved away: what it had not moved from the log into it stays there."""
    world = new_world()
    offline(world)
    queue(world, "billing", *numbered(30))
    world.relay.process.kill()
    world.relay.exited()
    data = world.relay.data
    for name in ("relay.db", "ca.pem", "ca-key.pem"):
        (data / name).unlink()
    assert (data / "relay.db-wal").stat().st_size > 0
    result = command("restore", quiet_store.backup, data=data)
    if result.returncode:
        refused(result)
        return
    with opened(data / "relay.db") as after, opened(quiet_store.data / "relay.db") as before:
        assert after.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert tables(after, ("audit", "delivery", "sqlite_sequence")) == tables(before, ("audit", "delivery", "sqlite_sequence"))
        assert after.execute("SELECT count(*) FROM delivery").fetchone() == before.execute("SELECT count(*) FROM delivery").fetchone()


def test_a_relay_that_runs_is_not_written_over(quiet_store, new_world):
    world = new_world()
    offline(world)
    before = world.relay.command("endpoint", "list")
    refused(command("restore", quiet_store.backup, data=world.relay.data), "a relay runs")
    # However its folder is written.
    link = world.folder / "link"
    link.symlink_to(world.relay.data)
    refused(command("restore", quiet_store.backup, data=link), "a relay runs")
    refused(command("restore", quiet_store.backup, data=f"{world.relay.data}/../relay-data"), "a relay runs")
    assert world.relay.command("endpoint", "list") == before and world.post("/x", b"x").status == 202


def spoiled(kind, good, quiet):
    data, half = bytearray(good), len(good) // 2
    match kind:
        case "empty":
            return b""
        case "no database":
            return b"not a database, but long enough for a page of one\n" * 200
        case "half":
            return data[:half]
        case "one page short":
            return data[:-4096]
        case "one byte short":
            return data[:-1]
        case "header":
            data[20] ^= 0x40
            return data
        case "page":
            data[4096 * 3 : 4096 * 4] = random.Random(1).randbytes(4096)
            return data
        case "zeroes":
            data[4096 * 2 : 4096 * 6] = bytes(4096 * 4)
            return data
        case "a plain copy":
            return (quiet.data / "relay.db").read_bytes()


KINDS = ["empty", "no database", "half", "one page short", "one byte short", "header", "page", "zeroes"]
KINDS.append("a plain copy")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_backup(quiet_store, tmp_path, kind):
    file = tmp_path / "file"
    content = spoiled(kind, quiet_store.backup.read_bytes(), quiet_store)
    file.write_bytes(content)
    result = command("restore", file, data=tmp_path / "new")
    refused(result, str(file))
    assert contents(tmp_path) == {"file": content}, "it is left as it is, with nothing beside it"
    assert not (tmp_path / "new").exists() or not contents(tmp_path / "new")


def test_bits_that_flip(quiet_store, tmp_path):
    """Wherever it is, it is seen, or it has changed nothing: a webhook is never changed."""
    good = quiet_store.backup.read_bytes()
    randomness, taken = random.Random(SEED), []
    with opened(quiet_store.backup) as db:
        wanted = tables(db, ("backup", "backup_file", "sqlite_sequence", "delivery"))
    for number in range(200 if LONG else 25):
        bad, at = bytearray(good), randomness.randrange(len(good))
        bad[at] ^= 1 << randomness.randrange(8)
        file, data = tmp_path / f"{number}.backup", tmp_path / f"{number}"
        file.write_bytes(bad)
        result = command("restore", file, data=data)
        assert "panicked" not in result.stderr
        if result.returncode == 0:
            with opened(data / "relay.db") as db:
                found = tables(db, ("sqlite_sequence", "delivery"))
            found["audit"] = [row for row in found["audit"] if row[4] != "store.restore"]
            if found != wanted:
                taken.append(at)
    assert not taken, f"seed {SEED}: flipped at {taken}, and restored as if it were good"


def test_a_body_whose_bit_flipped(quiet_store, tmp_path):
    content = bytearray(quiet_store.backup.read_bytes())
    at = content.rindex(noise(3 * MIB)[1000:2000])
    content[at] ^= 1
    (tmp_path / "file").write_bytes(content)
    result = command("restore", tmp_path / "file", data=tmp_path / "new")
    assert result.returncode == 1, result


def test_a_backup_of_a_newer_version(quiet_store, tmp_path):
    file = tmp_path / "file"
    shutil.copy(quiet_store.backup, file)
    with opened(file, "rw") as db:
        db.execute("PRAGMA user_version = 99")
    refused(command("restore", file, data=tmp_path / "new"), "newer version", "later")
    assert not (tmp_path / "new").exists()


def test_a_backup_that_is_not_there(tmp_path):
    refused(command("restore", tmp_path / "file", data=tmp_path / "new"), "no such file")
    (tmp_path / "folder").mkdir()
    refused(command("restore", tmp_path / "folder", data=tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_backup_may_be_where_nothing_is_written(quiet_store, tmp_path):
    """As on a disk that is read only; and it may be reached through a link."""
    (tmp_path / "link").symlink_to(quiet_store.backup)
    before = quiet_store.backup.read_bytes(), quiet_store.backup.stat().st_mtime_ns
    done("restore", tmp_path / "link", data=tmp_path / "new")
    assert (quiet_store.backup.read_bytes(), quiet_store.backup.stat().st_mtime_ns) == before


@pytest.mark.parametrize("words", [("backup",), ("restore",), ("backup", "a", "b"), ("restore", "a", "--force")])
def test_wrong_words(tmp_path, words):
    result = run(HOOKWAY_RELAY, *words, folder=tmp_path)
    assert result.returncode == 2 and "Usage" in result.stderr


# ── a full disk ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def disk(request, tmp_path):
    """A disk of 8 MiB, or what the test asks for."""
    if os.geteuid():
        lacking("only root may mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    size = getattr(request, "param", "8m")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:
        lacking(f"no disk can be mounted: {mounted.stderr.decode()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_no_room_for_a_backup(quiet_store, tmp_path, disk):
    data = grown(quiet_store.copy(tmp_path), 12)
    refused(command("backup", disk / "file", data=data), "room")
    assert not contents(disk), "no half of it stays"


@pytest.mark.parametrize("left", [0, 40_000, 2 * MIB])
def test_no_room_for_a_restored_store(quiet_store, tmp_path, disk, left):
    fill(disk / "filler", left)
    result = command("restore", quiet_store.backup, data=disk / "new", folder=tmp_path)
    refused(result)
    assert {*contents(disk)} == {"filler"}
    left = contents(disk / "new") if (disk / "new").exists() else {}
    assert {*left} <= {"relay.lock"}, left.keys()
    (disk / "filler").unlink()
    done("restore", quiet_store.backup, data=disk / "new", folder=tmp_path)


# ── killed ────────────────────────────────────────────────────────────────────────────────────────────────────────


def interrupted(words, seconds):
    """Killed so long after it began; whether it was still at it."""
    process = subprocess.Popen([HOOKWAY_RELAY, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def timed(*words, **options):
    began = time.monotonic()
    (told,) = done(*words, **options)
    return told, time.monotonic() - began


def test_a_backup_that_is_killed(quiet_store, tmp_path):
    data, randomness = grown(quiet_store.copy(tmp_path), BIG), random.Random(SEED)
    file, (told, takes) = tmp_path / "file", timed("backup", tmp_path / "first", data=data)
    (tmp_path / "first").unlink()
    killed = 0
    for number in range(KILLS):
        killed += interrupted(["backup", "--data-dir", data, file], randomness.uniform(0, takes))
        if file.exists():
            (again,) = done("restore", file, data=tmp_path / f"restored-{number}")
            assert again["deliveries"] == told["deliveries"] and is_whole(file)
            shutil.rmtree(tmp_path / f"restored-{number}")
            file.unlink()
        for path in tmp_path.iterdir():
            assert path.is_dir() or mode(path) == 0o600, f"{path} can be read by others"
    done("backup", file, data=data)
    assert is_whole(file)
    left = {*contents(tmp_path)} - {"file"}
    assert all(name.startswith("file.") and ".part" in name for name in left), left
    print(f"\nseed {SEED}: {killed} of {KILLS} killed in {takes:.2f} s")
    assert killed


@pytest.mark.parametrize("name", ["relay.part", "relay.new"])
def test_a_backup_of_any_name_that_is_killed(quiet_store, tmp_path, name):
    """What has its name is whole."""
    data = grown(quiet_store.copy(tmp_path), BIG)
    file, (_, takes) = tmp_path / name, timed("backup", tmp_path / "first", data=data)
    for number in range(KILLS):
        interrupted(["backup", "--data-dir", data, file], takes * (number + 0.5) / KILLS)
        if file.exists():
            result = command("restore", file, data=tmp_path / f"restored-{number}")
            assert result.returncode == 0, result
            file.unlink()


def test_what_killed_backups_left_goes(quiet_store, tmp_path):
    data = grown(quiet_store.copy(tmp_path), BIG)
    _, takes = timed("backup", tmp_path / "first", data=data)
    (tmp_path / "first").unlink()
    eventually(lambda: interrupted(["backup", "--data-dir", data, tmp_path / "file"], takes / 2), what="one that is killed")
    (tmp_path / "file").unlink(missing_ok=True)
    left = {*contents(tmp_path)}
    assert left, "the one that was killed has left nothing"
    # It might be of one that goes on; an hour later it is not.
    done("backup", tmp_path / "file", data=data)
    assert {*contents(tmp_path)} == {"file", *left}
    (tmp_path / "file").unlink()
    for name in left:
        os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    (tmp_path / "file.notes.part").write_text("somebody's own")
    os.utime(tmp_path / "file.notes.part", (time.time() - 7200,) * 2)
    done("backup", tmp_path / "file", data=data)
    assert {*contents(tmp_path)} == {"file", "file.notes.part"}


def test_a_restore_that_is_killed(quiet_store, tmp_path):
    data, randomness = grown(quiet_store.copy(tmp_path), BIG), random.Random(SEED)
    file, new = tmp_path / "file", tmp_path / "new"
    done("backup", file, data=data)
    told, takes = timed("restore", file, data=tmp_path / "first")
    with opened(tmp_path / "first/relay.db") as db:
        wanted = tables(db, ("audit", "sqlite_sequence", "payload"))
    killed = whole = 0
    for _ in range(KILLS):
        killed += interrupted(["restore", "--data-dir", new, file], randomness.uniform(0, 1.5 * takes))
        if (new / "relay.db").exists():
            with opened(new / "relay.db") as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                assert tables(db, ("audit", "sqlite_sequence", "payload")) == wanted
            assert (new / "ca.pem").exists() and (new / "ca-key.pem").exists()
            whole += 1
        elif new.exists() and not (new / "ca.pem").exists():
            # Nothing is there: it can be done again.
            done("restore", file, data=new)
        elif new.exists():
            done("restore", file, data=new)
        shutil.rmtree(new, ignore_errors=True)
    print(f"\nseed {SEED}: {killed} of {KILLS} killed in {takes:.2f} s, {whole} whole")
    assert killed


def test_a_restore_that_was_killed_can_be_done_again(quiet_store, tmp_path):
    """Killed after it wrote the CA: that is no store yet, and the same backup's."""
    new = tmp_path / "new"
    new.mkdir()
    for name in ("ca.pem", "ca-key.pem"):
        shutil.copy(quiet_store.data / name, new)
    (new / "relay.restored").write_bytes(b"half")
    done("restore", quiet_store.backup, data=new)


UNFINISHED = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = DELETE")
db.execute("PRAGMA cache_size = 5")
db.execute("BEGIN")
db.execute("UPDATE token SET name = 'nobody'")
db.execute("UPDATE payload SET head = x'' WHERE length(body) < 100000")
db.execute("CREATE TABLE more AS SELECT randomblob(100000)")
os.kill(os.getpid(), signal.SIGKILL)
"""


def unfinished(path, store):
    """A killed process had begun to write there: a file, and the journal to undo what it wrote."""
    shutil.copy(store, path)
    subprocess.run([sys.executable, "-c", UNFINISHED, path], check=False)
    assert pathlib.Path(f"{path}-journal").stat().st_size > 4096


@pytest.mark.parametrize("ending", ["part", "new"])
def test_a_journal_that_a_killed_backup_left(quiet_store, tmp_path, ending):
    """It is of another file, and must not be played into the next."""
    data = quiet_store.copy(tmp_path / "other")
    with opened(data / "relay.db", "rw") as db, db:
        db.execute("UPDATE token SET name = 'another'")
        db.execute("INSERT INTO payload VALUES (1000, x'', randomblob(500000), x'')")
    with opened(data / "relay.db", "rw") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    unfinished(tmp_path / f"relay.{ending}", data / "relay.db")
    done("backup", tmp_path / "relay.db", data=quiet_store.data)
    with opened(tmp_path / "relay.db") as made, opened(quiet_store.backup) as wanted:
        assert made.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        but = ("audit", "sqlite_sequence", "backup")
        assert tables(made, but) == tables(wanted, but)


@pytest.mark.parametrize("name", ["relay.restored", "relay.new"])
def test_a_journal_that_a_killed_restore_left(quiet_store, tmp_path, name):
    data, new = quiet_store.copy(tmp_path / "other"), tmp_path / "new"
    grown(data, 1)
    with opened(data / "relay.db", "rw") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    new.mkdir()
    unfinished(new / name, data / "relay.db")
    done("restore", quiet_store.backup, data=new)
    but = ("audit", "sqlite_sequence", "delivery", "backup", "backup_file")
    with opened(new / "relay.db") as made, opened(quiet_store.backup) as wanted:
        assert made.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert tables(made, but) == tables(wanted, but)


# ── stores of other versions ──────────────────────────────────────────────────────────────────────────────────────


def aged(path):
    """Makes the fifth schema of the sixth."""
    with opened(path, "rw") as db:
        db.executescript(
            """
            BEGIN;
            DROP TABLE audit;
            ALTER TABLE token DROP COLUMN scope;
            ALTER TABLE endpoint DROP COLUMN protection;
            PRAGMA user_version = 5;
            COMMIT;
            """
        )
    return path


def as_old(path):
    """What a version that knows the fifth schema sees."""
    with opened(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (5,)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        columns = {table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")] for table in ("token", "endpoint")}
        assert columns["token"][-1] == "revoked_at" and "protection" not in columns["endpoint"]
        found = tables(db)
        assert "audit" not in found
        return {name: rows for name, rows in found.items() if name != "sqlite_sequence"}


@pytest.fixture
def old(quiet_store, tmp_path):
    """A data folder of the version before."""
    data = quiet_store.copy(tmp_path / "old")
    aged(data / "relay.db")
    return data


def test_a_store_of_the_version_before(old, quiet_store, new_world):
    before = as_old(old / "relay.db")
    world = new_world()
    world.relay.stop()
    relay = moved_to(world, old.parent)
    copy = old / "relay.db.schema-5"
    assert mode(copy) == 0o600 and as_old(copy) == before
    assert "schema-5" in relay.log(), "it is told"
    with opened(old / "relay.db") as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] >= 6
        known = db.execute("SELECT DISTINCT scope FROM token").fetchall()
        assert known == [("client",)] and db.execute("SELECT DISTINCT protection FROM endpoint").fetchall() == [("",)]
    app = world.app()
    world.client(app, token=quiet_store.token)
    arrived(app, 5)
    relay.stop()
    # Once is enough, and the copy stays what it was.
    kept = copy.read_bytes()
    moved_to(world, old.parent)
    assert copy.read_bytes() == kept
    assert not [name for name in contents(old) if name.endswith((".new", ".part"))]


def test_back_to_the_version_before(old):
    """With the copy in its place, the store is what it was; and forward again, with another copy."""
    before = as_old(old / "relay.db")
    done("token", "list", data=old)
    for beside in ("-wal", "-shm"):
        (old / f"relay.db{beside}").unlink(missing_ok=True)
    (old / "relay.db.schema-5").rename(old / "relay.db")
    assert as_old(old / "relay.db") == before
    done("token", "list", data=old)
    assert as_old(old / "relay.db.schema-5") == before


def test_many_begin_with_a_store_of_the_version_before(quiet_store, tmp_path):
    """The relay, and the operator's commands: one of them changes it, and the copy is of what was before."""
    for number in range(20 if LONG else 4):
        data = quiet_store.copy(tmp_path / str(number))
        before = as_old(aged(data / "relay.db"))
        words = [[HOOKWAY_RELAY, *word, "--data-dir", data, "--json"] for word in (("token", "list"), ("queue", "list")) * 4]
        began = [subprocess.Popen(word, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for word in words]
        results = [(each.communicate(timeout=60)[1], each.returncode) for each in began]
        assert all(code == 0 for _, code in results), f"round {number}: {results}"
        assert as_old(data / "relay.db.schema-5") == before, f"round {number}"


@pytest.mark.parametrize("disk", ["64m"], indirect=True)
def test_no_room_for_the_copy(quiet_store, tmp_path, disk):
    """Without a copy nothing is changed."""
    data = disk / "relay-data"
    shutil.copytree(quiet_store.data, data)
    before = as_old(aged(data / "relay.db"))
    fill(disk / "filler", 64 << 10)
    result = run(HOOKWAY_RELAY, "run", *RUN, "--data-dir", str(data), folder=tmp_path)
    refused(result)
    assert as_old(data / "relay.db") == before
    assert not [name for name in contents(data) if "schema-5" in name or name.endswith(".new")]
    (disk / "filler").unlink()
    done("token", "list", data=data, folder=tmp_path)
    assert as_old(data / "relay.db.schema-5") == before


OWN = ("relay.db-shm", "relay.lock")
RUN = ["--domain", DOMAIN, "--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0"]

NEWER = [("run", *RUN), ("token", "list"), ("queue", "list"), ("backup", "file"), ("cert", "status"), ("audit",)]


CASES = [(words, "wal") for words in NEWER]
CASES += [(words, "delete") for words in (NEWER[0], NEWER[3])]


@pytest.mark.parametrize(("words", "journal"), CASES, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_newer_store_is_left_as_it_is(quiet_store, tmp_path, words, journal):
    data = quiet_store.copy(tmp_path)
    with opened(data / "relay.db", "rw") as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute(f"PRAGMA journal_mode = {journal}")
    before = contents(data)
    result = command(*words, data=data)
    assert result.returncode == 1 and "newer version" in result.stderr and "99" in result.stderr, result
    after = contents(data)
    # A file to lock, and an empty log, change nothing.
    after = {name: bytes_ for name, bytes_ in after.items() if name in before or bytes_ and name not in OWN}
    assert after == before, [name for name in {*before, *after} if before.get(name) != after.get(name)]
    assert not (tmp_path / "file").exists()


def running_on(data, tmp_path):
    """A relay on that folder, ready."""
    words = [HOOKWAY_RELAY, "run", *RUN, "--data-dir", str(data), "--disk-reserve", "0%", "--json"]
    relay = Program("relay", words, tmp_path)
    relay.event("ready")
    return relay


@pytest.mark.parametrize("disk", ["64m"], indirect=True)
def test_the_check_says_what_an_upgrade_would_change(quiet_store, tmp_path, disk):
    data = disk / "relay-data"
    shutil.copytree(quiet_store.data, data)
    with contextlib.closing(contextlib.ExitStack()) as stack:
        relay = running_on(data, tmp_path)
        stack.callback(relay.stop)
        aged(data / "relay.db")
        before = as_old(data / "relay.db")
        result = command("upgrade", "--check", "--domain", DOMAIN, data=data, folder=tmp_path)
        assert result.returncode == 0 and "schema 5 becomes 6" in result.stdout and "relay.db.schema-5" in result.stdout
        lines = done("upgrade", "--check", "--domain", DOMAIN, data=data, folder=tmp_path)
        assert {line["state"] for line in lines} == {"ok"}
        fill(disk / "filler", 3 * MIB)
        result = command("upgrade", "--check", "--domain", DOMAIN, data=data, folder=tmp_path)
        assert result.returncode == 1 and "no room" in result.stdout and "make room" in result.stdout, result
        result = command("upgrade", "--domain", DOMAIN, data=data, folder=tmp_path)
        assert result.returncode == 1 and "no room" in result.stdout, result
        (disk / "filler").unlink()
        assert as_old(data / "relay.db") == before, "a look changes nothing"
        assert not (data / "relay.db.schema-5").exists()


def test_an_upgrade_changes_the_store_while_deliveries_come(quiet_store, tmp_path):
    """The process before goes on with it until it has ended."""
    data = quiet_store.copy(tmp_path)
    relay = running_on(data, tmp_path)
    pid = None
    try:
        aged(data / "relay.db")
        before = as_old(data / "relay.db")
        for words in (["status"], ["token", "list"], ["token", "create", "--name", "new"], ["queue", "stats"], ["audit"]):
            result = command(*words, data=data)
            assert result.returncode == 1 and "earlier version" in result.stderr and "upgrade" in result.stderr, result
        done("backup", tmp_path / "before-upgrade", data=data)
        assert as_old(data / "relay.db") == before, "nobody changes it while that relay runs"
        (told,) = done("upgrade", "--domain", DOMAIN, data=data)
        pid = told["pid"]
        assert as_old(data / "relay.db.schema-5") == before
        (status,) = done("status", data=data)
        assert status["pid"] == pid and status["well"] and status["waiting"] == 6
        eventually(lambda: not alive(relay.pid), 40, "the end of the process before")
    finally:
        if pid:
            signal_process(pid, signal.SIGTERM)
            eventually(lambda: not alive(pid), what="the end of the new process")
        relay.stop()
