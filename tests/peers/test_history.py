"""The history: every exchange is kept sealed, looked at, exported, and put to the app again; nothing takes it away."""

import base64
import collections
import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import sqlite3
import stat
import subprocess
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
from haralyzer import HarParser
from test_semantics import OK, GatedApp, SleepingApp

from world import DEADLINE, DOMAIN, HOOKWAY, Client, Program, eventually, lacking, request, tls_context

MIB = 1 << 20
MASK = "••••"
PORT_0 = ("--inspect", "127.0.0.1:0")
EVERY_BYTE = bytes(range(256)) * 3


# ── a developer's desk ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Done:
    """A command that has run to its end."""

    code: int
    raw: bytes
    said: str

    @property
    def text(self):
        return self.raw.decode()

    @property
    def lines(self):
        return self.text.splitlines()

    @property
    def json(self):
        return [json.loads(line) for line in self.lines]


def command(*words, folder, stdin=b"", **environment):
    """`hookway …` run to its end in a folder, which is project, HOME and data in one."""
    own = {"PATH": "/usr/bin:/bin", "HOME": folder, "XDG_CONFIG_HOME": f"{folder}/config"}
    own |= {"XDG_DATA_HOME": f"{folder}/data", "TZ": "UTC"} | environment
    done = subprocess.run(
        [HOOKWAY, *map(str, words)],
        cwd=folder,
        env={key: str(value) for key, value in own.items()},
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )
    said = done.stderr.decode()
    assert "panicked" not in said, said
    return Done(done.returncode, done.stdout, said)


def good(done):
    """A command that succeeded."""
    assert done.code == 0, done
    return done


def failed(done, code):
    """What a failed command said: what happened, why, and the next step; nothing on stdout."""
    assert done.code == code and not done.raw, done
    assert re.search(r"^error: .+\n  cause: .+\n  next:  .+\n\Z", done.said, re.DOTALL | re.MULTILINE), done.said
    return done.said


class Desk:
    """A client with a history of its own and the commands beside it."""

    def __init__(self, world, name):
        self.world, self.name, self.host = world, name, f"{name}.{DOMAIN}"
        self.client = self.app = None
        self.started = []

    def start(self, app, *flags, inspect=False, **options):
        """The client; later ones in the folder of the first."""
        if self.client is not None:
            options["environment"] = {"XDG_DATA_HOME": str(self.data)} | options.get("environment", {})
        options.setdefault("name", self.name)
        flags += PORT_0 if inspect else ()
        client = self.world.client(app, *flags, inspect=inspect, **options)
        self.started.append(client)
        if self.client is None:
            self.client, self.app = client, app
        return client

    def run(self, *words, **environment):
        return command(*words, folder=self.folder, **environment)

    def follow(self, *words):
        """`hookway …` started beside the client."""
        program = Program(f"beside-{len(self.started)}", [HOOKWAY, *words], self.folder)
        self.started.append(program)
        return program

    @property
    def folder(self):
        return self.client.errors.parent

    @property
    def data(self):
        return self.folder / "data"

    @property
    def file(self):
        return self.data / "hookway" / "history.db"

    def ask(self, method="POST", target="/", body=b"", headers=(), name=None):
        name = name or self.name
        with self.world.wire(name) as wire:
            return wire.ask(request(method, target, body, host=f"{name}.{DOMAIN}", headers=headers))

    def keep(self, method="POST", target="/", body=b"", headers=(), name=None):
        """The same, and the id under which it is kept."""
        before = len(self.client.deliveries())
        reply = self.ask(method, target, body, headers, name)
        self.client.wait(lambda: len(self.client.deliveries()) > before, what="the delivery")
        return reply, self.client.deliveries()[-1]["id"]

    def list(self, *words):
        """What `requests list` prints, the newest first."""
        return good(self.run("requests", "list", "--json", *words)).json[::-1]

    def show(self, which="@1", *words):
        return good(self.run("requests", "show", which, "--json", *words)).json[0]

    def close(self):
        for program in self.started:
            program.stop()


@pytest.fixture
def desk(world, name):
    with contextlib.closing(Desk(world, name)) as desk:
        yield desk


@pytest.fixture
def kept(desk, app):
    """A desk whose client runs towards an echoing app."""
    desk.start(app)
    return desk


def pairs(rows, name=None):
    """Name and value of header fields as JSON has them."""
    return [(row["name"], row["value"]) for row in rows if name in (None, row["name"])]


def own_marks(fields):
    return {name.lower(): value for name, value in fields if name.lower().startswith("hookway-")}


def without_marks(seen):
    """The fields that the app saw, by name in the order of their values; Hookway's own aside."""
    fields = collections.defaultdict(list)
    for name, value in seen.headers:
        if not name.lower().startswith("hookway-"):
            fields[name.lower()].append(value)
    return dict(fields)


def same_request(one, other):
    """Whether the app saw the same method, target, fields and body."""
    assert (one.method, one.target) == (other.method, other.target)
    assert without_marks(one) == without_marks(other)
    assert one.body == other.body


# ── every exchange is kept ────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_is_kept_byte_for_byte(kept):
    fields = [("X-Id", "1"), ("X-Other", "a"), ("X-Id", "2"), ("x-id", " 3"), ("X-Empty", "")]
    reply, number = kept.keep("PATCH", "//a/../%2e?x=%zz&x=", EVERY_BYTE, fields)
    assert reply.status == 200 and kept.app.seen[0].body == EVERY_BYTE
    shown = kept.show(number)
    request = shown["request"]
    assert (request["method"], request["path"]) == ("PATCH", "//a/../%2e?x=%zz&x=")
    assert pairs(request["headers"], "x-id") == [("x-id", "1"), ("x-id", "2"), ("x-id", "3")]
    assert pairs(request["headers"], "x-empty") == [("x-empty", "")]
    assert good(kept.run("requests", "show", number, "--body")).raw == EVERY_BYTE
    attempt = shown["attempts"][0]
    assert (attempt["number"], attempt["status"], attempt["error"]) == (1, 200, None)
    assert json.loads(attempt["reply"]["body"]["text"])["sha256"] == kept.app.seen[0].sha256
    assert ("x-app", "app") in pairs(attempt["reply"]["headers"])
    assert 0 < attempt["first_byte_ms"] <= attempt["duration_ms"]


def test_trailers_are_kept(desk, world):
    trailers = b"Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n"
    app = world.app(answer=lambda seen, _: b"HTTP/1.1 200 OK\r\n" + trailers)
    client = desk.start(app)
    with world.wire(desk.name) as wire:
        wire.ask(f"POST /t HTTP/1.1\r\nHost: {desk.host}\r\n".encode() + trailers)
    client.delivery(path="/t")
    shown = desk.show()
    assert app.seen[0].trailers == [("x-sum", "7")]
    assert pairs(shown["request"]["trailers"]) == [("x-sum", "7")]
    assert pairs(shown["attempts"][0]["reply"]["trailers"]) == [("x-sum", "7")]


def test_a_large_body_is_kept_to_1_mib_and_not_replayed(kept):
    body = random.Random(1).randbytes(3 * MIB)
    reply, number = kept.keep("POST", "/large", body)
    assert reply.json()["length"] == 3 * MIB and kept.app.seen[0].body == body
    shown = kept.show(number)
    assert (shown["request"]["body"]["size"], shown["request"]["body"]["kept"]) == (3 * MIB, MIB)
    assert shown["can_replay"] is False and "not kept whole" in shown["why_not"]
    assert shown["summary"]["bytes"] == 3 * MIB
    assert good(kept.run("requests", "show", number, "--body")).raw == body[:MIB]
    assert "1048576 of 3145728" in good(kept.run("requests", "show", number)).text
    assert number in failed(kept.run("replay", number), 1)
    assert len(kept.app.seen) == 1


def test_a_large_answer_is_kept_to_1_mib(desk, world):
    body = random.Random(2).randbytes(2 * MIB)
    app = world.app(answer=lambda seen, _: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    desk.start(app)
    reply, number = desk.keep()
    assert reply.body == body
    kept = desk.show(number)["attempts"][0]["reply"]["body"]
    assert (kept["size"], kept["kept"]) == (2 * MIB, MIB)
    # Its request is whole.
    assert good(desk.run("replay", number)).raw


def test_a_body_of_exactly_1_mib_is_whole(kept):
    _, number = kept.keep("POST", "/", bytes(MIB))
    assert kept.show(number)["can_replay"] is True
    good(kept.run("replay", number))
    assert kept.app.seen[1].body == bytes(MIB)


def test_an_app_that_refuses_leaves_an_attempt_with_its_reason(desk):
    with SleepingApp() as app:
        desk.start(app, "--wait-app", "200ms", "--on-offline", "error")
        reply, number = desk.keep("POST", "/", b"event")
        assert reply.status == 503
        shown = desk.show(number)
        attempt = shown["attempts"][0]
        assert (attempt["status"], attempt["error"], attempt["reply"]) == (None, "refused", None)
        assert app.address in attempt["message"] and app.address in attempt["url"]
        assert shown["summary"]["ok"] is False and shown["request"]["body"]["text"] == "event"
        assert "ERR refused" in good(desk.run("requests")).text


def test_what_waited_for_its_app_is_one_exchange_with_all_its_attempts(desk):
    with SleepingApp() as app:
        client = desk.start(app, "--wait-app", "200ms")
        reply, number = desk.keep("POST", "/", b"event")
        assert reply.status == 202 and reply.header("hookway-delivery") == number
        app.open()
        assert client.delivery(status=200)["id"] == number
        shown = desk.show(number)
    assert [(one["number"], one["status"], one["error"]) for one in shown["attempts"]] == [
        (1, None, "refused"),
        (2, 200, None),
    ]
    summary = shown["summary"]
    assert (summary["ok"], summary["status"], summary["error"], summary["attempts"]) == (True, 200, None, 2)
    assert summary["queued_ms"] > 0 and shown["timings"]["queued_ms"] == summary["queued_ms"]
    assert shown["request"]["body"]["text"] == "event"
    assert len(desk.list()) == 1
    line = good(desk.run("requests")).text
    assert "queued" in line and "ERR" not in line


def test_what_came_while_nobody_was_there_is_kept_with_its_time(desk, app):
    assert desk.start(app).stop() == 0
    reply = desk.ask("POST", "/away", b"event")
    assert reply.status == 202
    client = desk.start(app)
    assert client.delivery(path="/away", status=200)["id"] == reply.header("hookway-delivery")
    shown = desk.show()
    assert shown["summary"]["id"] == reply.header("hookway-delivery")
    assert (shown["summary"]["attempts"], len(app.seen)) == (1, 1)
    assert shown["summary"]["queued_ms"] > 0 and shown["timings"]["relay_received_at"] < shown["attempts"][0]["at"]


def test_an_error_of_the_app_is_kept_as_it_is(desk, world):
    app = world.app(answer=lambda seen, _: b"HTTP/1.1 503 No\r\nX-Why: tired\r\nContent-Length: 4\r\n\r\nbusy")
    desk.start(app)
    reply, number = desk.keep()
    shown = desk.show(number)
    reply = shown["attempts"][0]["reply"]
    assert (shown["summary"]["ok"], reply["status"], reply["body"]["text"]) == (False, 503, "busy")
    assert ("x-why", "tired") in pairs(reply["headers"])


def test_a_slow_delivery_is_seen_before_it_is_over(desk):
    with GatedApp() as app:
        client = desk.start(app)
        with desk.world.wire(desk.name) as wire:
            wire.send(request("POST", "/slow", b"early", host=desk.host))
            pending = eventually(lambda: desk.list(), 10, "the delivery in the list")[0]
            assert (pending["state"], pending["status"], pending["path"]) == ("pending", None, "/slow")
            assert not client.deliveries()
            assert desk.show(pending["id"])["request"]["body"]["text"] == "early"
            assert " pending " in good(desk.run("requests", "list")).text
            assert [one["id"] for one in desk.list("--filter", "is:pending")] == [pending["id"]]
            app.gate.set()
            assert wire.reply("POST").status == 200
        client.delivery(path="/slow")
        (done,) = desk.list()
        assert (done["id"], done["seq"]) == (pending["id"], pending["seq"])
        assert (done["state"], done["status"]) == ("done", 200) and done["version"] > pending["version"]


def test_an_answer_that_breaks_off_is_kept_as_cut(desk, world):
    app = world.app(answer=lambda seen, _: b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", keep_alive=False)
    desk.start(app)
    reply, number = desk.keep()
    assert reply.status == 502 or not reply.complete
    shown = desk.show(number)
    assert (shown["summary"]["status"], shown["summary"]["error"], shown["summary"]["ok"]) == (200, "cut", False)
    assert shown["attempts"][0]["reply"]["body"]["text"] == "abc"
    assert "200 cut" in good(desk.run("requests")).text


def test_what_came_over_http_2_is_kept_so(kept):
    with httpx.Client(verify=tls_context(kept.world.relay.ca), http1=False, http2=True, trust_env=False) as sender:
        url = kept.world.url("/two?x", kept.name)
        assert sender.post(url, content=EVERY_BYTE, headers={"X-Id": "1"}).http_version == "HTTP/2"
    kept.client.delivery(path="/two?x")
    shown = kept.show()
    assert shown["http"] == "2" and ("x-id", "1") in pairs(shown["request"]["headers"])
    good(kept.run("replay", "@1"))
    same_request(*kept.app.seen)


def test_a_sender_that_leaves_is_kept_with_what_it_sent(desk):
    with GatedApp() as app:
        client = desk.start(app)
        with desk.world.wire(desk.name) as wire:
            head = f"POST /left HTTP/1.1\r\nHost: {desk.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
            wire.send(head.encode() + b"4\r\nhalf\r\n")
            eventually(lambda: app.connections, what="the delivery at the app")
        client.delivery(path="/left")
        shown = desk.show()
        assert (shown["summary"]["status"], shown["summary"]["error"]) == (None, "aborted")
        assert shown["request"]["body"]["text"] == "half" and shown["summary"]["ok"] is False
        assert shown["can_replay"] is False


def test_a_body_that_comes_slowly_is_kept_from_its_beginning(desk, app):
    desk.start(app)
    with desk.world.wire(desk.name) as wire:
        head = f"POST /slow HTTP/1.1\r\nHost: {desk.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
        wire.send(head.encode() + b"6\r\nfirst \r\n")
        eventually(lambda: [one for one in desk.list() if one["state"] == "pending"], 10, "the pending delivery")
        wire.send(b"6\r\nsecond\r\n0\r\n\r\n")
        assert wire.reply("POST").status == 200
    desk.client.delivery(path="/slow")
    body = desk.show()["request"]["body"]
    assert (body["text"], body["size"], body["kept"]) == ("first second", 12, 12)


def test_an_upgraded_connection_is_kept(desk, world):
    switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
    desk.start(world.app(answer=lambda seen, connection: connection.sendall(switch)))
    with world.wire(desk.name) as wire:
        wire.send(request("GET", "/up", host=desk.host, headers=[("Connection", "Upgrade"), ("Upgrade", "echo")]))
        assert wire.reply("GET").status == 101
    desk.client.delivery(path="/up", status=101)
    assert desk.show()["attempts"][0]["status"] == 101


def test_nothing_is_kept_without_a_store(desk, app):
    client = desk.start(app, "--no-store", inspect=True)
    assert desk.keep("POST", "/", b"secret")[0].status == 200
    assert not desk.file.exists() and not (desk.data / "hookway" / "key").exists()
    with urllib.request.urlopen(f"{client.event('ready')['inspector']}/api/exchanges", timeout=DEADLINE) as reply:
        assert json.load(reply)["exchanges"] == []
    assert client.stop() == 0
    assert not desk.file.exists()


def test_the_newest_50_stay_and_what_is_pinned(desk, app):
    client = desk.start(app, "--history-count", "50", inspect=True)
    _, pinned = desk.keep("POST", "/pinned")
    put(client, f"/api/exchanges/{pinned}/pin", {"pinned": True})
    with desk.world.wire(desk.name) as wire:
        for number in range(120):
            assert wire.ask(request("POST", f"/{number}", b"", host=desk.host)).status == 200
    client.delivery(path="/119")
    eventually(lambda: len(desk.list("--limit", "1000")) == 50, what="50 that stay")
    assert [one["path"] for one in desk.list("--limit", "1000")] == [f"/{n}" for n in range(119, 70, -1)] + ["/pinned"]
    # The many leave it, by its name it goes.
    assert good(desk.run("requests", "delete", "--all", "--json")).json == [{"deleted": 49}]
    assert good(desk.run("requests", "delete", pinned, "--json")).json == [{"deleted": 1}]
    assert desk.list() == []


def test_what_is_kept_takes_no_more_than_it_may(desk, app):
    client = desk.start(app, "--history-size", "1MiB")
    for number in range(30):
        desk.keep("POST", f"/{number}", random.Random(number).randbytes(100_000))
    eventually(lambda: len(desk.list()) == 10, what="those that have room")
    assert [one["path"] for one in desk.list()] == [f"/{number}" for number in range(29, 19, -1)]
    assert client.running


def test_what_is_too_old_goes(desk, app):
    desk.start(app, "--history-age", "1s")
    _, old = desk.keep("POST", "/old")

    def is_gone():
        desk.keep("POST", "/new")
        return old not in [one["id"] for one in desk.list()]

    eventually(is_gone, what="the old one gone")
    assert {one["path"] for one in desk.list()} == {"/new"}


def test_programs_that_only_look_remove_nothing(desk, app):
    client = desk.start(app)
    for number in range(30):
        assert desk.ask("POST", f"/{number}").status == 200
    client.delivery(path="/29")
    assert client.stop() == 0
    with contextlib.closing(sqlite3.connect(desk.file)) as db, db:
        db.execute("UPDATE exchange SET at = at - ?", [30 * 86_400 * 10**6])
    strict = {"HOOKWAY_HISTORY_COUNT": "5", "HOOKWAY_HISTORY_SIZE": "1KiB", "HOOKWAY_HISTORY_AGE": "1s"}
    listed = [f"/{number}" for number in range(30)]
    for words in (["requests", "list"], ["requests", "export", "--jsonl"], ["requests", "show", "@1"], ["replay", "@1"]):
        good(desk.run(*words, **strict))
    listed.append("/29")
    inspector = desk.follow("inspect", "--json", *PORT_0)
    assert len(got(inspector, "/api/exchanges")["exchanges"]) == 31
    assert inspector.stop() == 0
    assert [one["path"] for one in desk.list("--limit", "100")[::-1]] == listed
    # A client keeps to its limits: of those, only the replay is younger than a week.
    desk.start(app)
    eventually(lambda: len(desk.list()) == 1, what="the others gone")


def got(program, path):
    """What a program's inspector answers."""
    with urllib.request.urlopen(program.event("ready")["inspector"] + path, timeout=DEADLINE) as reply:
        return json.load(reply)


def put(client, path, body, method="PUT"):
    """A change through the inspector."""
    inspector = client.event("ready")["inspector"]
    with urllib.request.urlopen(f"{inspector}/api/status", timeout=DEADLINE) as reply:
        token = json.load(reply)["token"]
    fields = {"Hookway-Token": token, "Content-Type": "application/json"}
    asked = urllib.request.Request(f"{inspector}{path}", json.dumps(body).encode(), fields, method=method)
    with urllib.request.urlopen(asked, timeout=DEADLINE) as reply:
        return json.load(reply)


# ── hookway requests ──────────────────────────────────────────────────────────────────────────────────────────────

ERROR = "--on-offline", "/refused=error"
SECRETS = ["hush-bearer", "hush-cookie", "hush-hmac", "hush-query", "hush-set-cookie"]


class Library(Desk):
    """A history that tests read and leave as it is; its client has ended."""

    def __init__(self, world):
        super().__init__(world, "library")
        answers = {
            "/github": b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
            "/gone": b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone",
            "/login": b"HTTP/1.1 302 Found\r\nSet-Cookie: sid=hush-set-cookie\r\nContent-Length: 0\r\n\r\n",
        }
        slow = threading.Event()

        def answer(seen, _):
            path = seen.target.partition("?")[0]
            if path == "/slow":
                slow.wait(0.3)
            return answers.get(path, OK)

        app = world.app(answer=answer)
        with SleepingApp() as down:
            client = self.start(app, "-n", "other", "--route", f"/refused={down.port}", "--wait-app", "100ms", *ERROR)
            event = b'{"id":"evt_%d","amount":%d,"live":true}'
            self.keep("POST", "/stripe/webhook?x=1", event % (1, 100), [("X-Event", "charge.Succeeded")])
            self.keep("POST", "/stripe/webhook?x=1", event % (2, 250), [("X-Event", "charge.failed"), ("X-More", "1")])
            self.keep("POST", "/github", b"payload=%7B%7D")
            self.keep("GET", "/slow?a=1&token=hush-query")
            self.keep("PUT", "/refused", b"x")
            signed = [
                ("Authorization", "Bearer hush-bearer"),
                ("Cookie", "a=hush-cookie"),
                ("X-Hub-Signature-256", "sha256=hush-hmac"),
            ]
            self.keep("POST", "/login", b"name=me", signed)
            self.keep("DELETE", "/gone", b"")
            self.keep("POST", "/elsewhere", b"\xff\x00", name="other")
            assert client.stop() == 0
        good(self.run("replay", "@8"))
        self.ids = {(one["method"], one["path"]): one["id"] for one in self.list()}


@pytest.fixture(scope="module")
def library(world):
    with contextlib.closing(Library(world)) as library:
        yield library


def test_a_list_has_the_newest_last(library):
    done = good(library.run("requests"))
    assert len(done.lines) == 9 and not done.said
    assert all(len(line) <= 100 for line in done.lines)
    assert "/stripe/webhook?x=1" in done.lines[0] and "replay of req_" in done.lines[-1]
    assert [line.split()[1] for line in done.lines] == "POST POST POST GET PUT POST DELETE POST POST".split()
    assert good(library.run("requests", "list")).lines == done.lines
    assert good(library.run("requests", "--limit", "2")).lines == done.lines[-2:]
    assert MASK in done.lines[3]


def test_a_list_in_json_says_all_that_the_api_says(library):
    newest, *_, first = library.list()
    wanted = {
        "event": "delivery", "method": "POST", "path": "/stripe/webhook?x=1", "state": "done", "status": 200,
        "error": None, "ok": True, "attempts": 1, "replay_of": None, "edited": False, "pinned": False,
        "endpoint": "library", "remote": "127.0.0.1", "bytes": 39, "signature": "none",
    }  # fmt: skip
    assert wanted.items() <= first.items()
    assert re.fullmatch(r"req_[0-9A-Z]{26}", first["id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first["received_at"])
    assert newest["replay_of"] == first["id"] and newest["seq"] > first["seq"]


def paths(summaries):
    """In the order of arrival."""
    return " ".join(one["path"].partition("?")[0].removesuffix("/webhook") for one in summaries[::-1])


STRIPE = "/stripe /stripe"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--status", "5xx"], "/github"),
        (["--status", "err"], "/refused"),
        (["--status", ">=400"], "/github /gone"),
        (["--status", "302"], "/login"),
        (["--endpoint", "other"], "/elsewhere"),
        (["--grep", "EVT_2"], "/stripe"),
        (["--grep", "charge.failed"], "/stripe"),
        (["--grep", "evt_2", "--status", "500"], ""),
        (["--since", "1h", "--status", "404"], "/gone"),
        (["--since", "2999-01-01"], ""),
        (["--limit", "1", "--filter", "path:/stripe"], "/stripe"),
        (["--filter", "method:get"], "/slow"),
        (["--filter", "path:/stripe -is:replay"], STRIPE),
        (["--filter", "path:*webhook?x=1 is:replay"], "/stripe"),
        (["--filter", "-status:200 -is:failed"], "/login"),
        (["--filter", "status:4xx"], "/gone"),
        (["--filter", "status:<300 method:GET"], "/slow"),
        (["--filter", "sig:ok"], ""),
        (["--filter", "endpoint:oth*"], "/elsewhere"),
        (["--filter", 'body:"evt_1" -is:replay'], "/stripe"),
        (["--filter", 'body:"\\"amount\\":250"'], "/stripe"),
        (["--filter", "header.x-event:SUCCEEDED -is:replay"], "/stripe"),
        (["--filter", "header.X-More:1"], "/stripe"),
        (["--filter", "latency:>=300ms"], "/slow"),
        (["--filter", "latency:<250ms method:GET"], ""),
        (["--filter", "is:failed"], "/github /refused /gone"),
        (["--filter", "is:pending"], ""),
        (["--filter", "is:replay"], "/stripe"),
        (["--filter", "is:edited"], ""),
        (["--filter", "is:pinned"], ""),
        (["--filter", "until:2020-01-01"], ""),
        (["--filter", "since:15m until:2999-01-01T00:00:00Z method:PUT"], "/refused"),
        (["--filter", "payload"], "/github"),
        (["--filter", '"name=me"'], "/login"),
        (["--filter", "gone"], "/gone"),
        (["--filter", ""], "/stripe /stripe /github /slow /refused /login /gone /elsewhere /stripe"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_filter_finds(library, words, wanted):
    assert paths(library.list(*words)) == wanted


def test_a_filter_by_a_part_of_the_id(library):
    number = library.ids["GET", f"/slow?a=1&token={MASK}"]
    assert [one["id"] for one in library.list("--filter", f"id:{number[-8:].lower()}")] == [number]


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (["--filter", "nope:x"], 1),
        (["--filter", "method:POST methd:GET"], 13),
        (["--filter", "status:abc"], 8),
        (["--filter", "status:99"], 8),
        (["--filter", 'path:/a body:"open'], 14),
        (["--filter", "latency:fast"], 9),
        (["--filter", "is:odd"], 4),
        (["--filter", "sig:maybe"], 5),
        (["--filter", "since:yesterday"], 7),
        (["--filter", "é 𐐀 is:odd"], 9),
        (["--filter", "method:"], 1),
    ],
    ids=str,
)
def test_a_wrong_filter_is_2_and_says_where(library, words, at):
    done = library.run("requests", "list", *words)
    assert done.code == 2 and not done.raw
    assert done.said.startswith("error: ") and f"(at {at})" in done.said


@pytest.mark.parametrize("words", [["--status", "abc"], ["--since", "never"], ["--limit", "-1"], ["--limit", "many"]])
def test_a_wrong_flag_is_2(library, words):
    done = library.run("requests", "list", *words)
    assert done.code == 2 and done.said.startswith("error: ") and not done.raw


@pytest.mark.parametrize("words", [["--filter", "body:needle"], ["--grep", "needle"]], ids=" ".join)
def test_a_filter_looks_into_compressed_bodies(kept, words):
    kept.keep("POST", "/plain", b"x")
    kept.keep("POST", "/gzip", gzip.compress(b'{"a":"needle"}'), [("Content-Encoding", "gzip")])
    assert paths(kept.list(*words)) == "/gzip"


def test_a_typo_names_what_was_meant(library):
    assert "`method:`" in library.run("requests", "list", "--filter", "methd:GET").said


def test_every_form_of_an_id_finds_its_request(library):
    ids = [one["id"] for one in library.list()]
    line = next(line for line in good(library.run("requests")).lines if "/gone" in line)
    number = library.ids["DELETE", "/gone"]
    short = next(word for word in line.split() if word.startswith("req_"))
    assert "…" in short
    unique = next(n for n in range(5, 31) if sum(one.startswith(number[:n]) for one in ids) == 1)
    for which in (number, number[:unique], number[-6:], number[-6:].lower(), short):
        assert library.show(which)["summary"]["id"] == number, which
    assert [library.show(f"@{n}")["summary"]["id"] for n in range(1, 10)] == ids


def test_an_id_that_means_several_is_1_and_names_them(library):
    ids = [one["id"] for one in library.list()]
    said = failed(library.run("requests", "show", ids[0][:6]), 1)
    assert sum(number in said for number in ids) == 2


@pytest.mark.parametrize("which", ["@10", "@99999999999999", "req_00000000000000000000000000", "ZZZZZZ", "req_7ZZ"])
@pytest.mark.parametrize("words", [("requests", "show"), ("requests", "export", "--curl"), ("replay",)], ids=" ".join)
def test_an_unknown_id_is_1(library, words, which):
    assert "there is no request" in failed(library.run(*words, which), 1)


@pytest.mark.parametrize("which", ["@0", "@", "@-1", "@x", "req_", "a/b", "", "req_01\n", "é"])
def test_what_is_no_id_is_2(library, which):
    done = library.run("requests", "show", which)
    assert done.code == 2 and done.said.startswith("error: ") and "@1" in done.said


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("path", ["/login", f"/slow?a=1&token={MASK}"])
def test_secrets_are_shown_only_to_those_who_ask(library, words, path):
    number = next(number for (_, kept), number in library.ids.items() if kept == path)
    hidden = good(library.run("requests", "show", number, *words)).text
    assert MASK in hidden and not any(secret in hidden for secret in SECRETS)
    shown = good(library.run("requests", "show", number, "--secrets", *words)).text
    wanted = [secret for secret in SECRETS if (secret == "hush-query") == path.startswith("/slow")]
    assert all(secret in shown for secret in wanted)
    assert MASK not in shown.partition("\n\n")[2]


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_a_list_shows_secrets_to_those_who_ask(library, words):
    assert "token=hush-query" in good(library.run("requests", "list", "--secrets", *words)).text


@pytest.mark.parametrize("form", ["--har", "--jsonl", "--curl"])
def test_an_export_hides_secrets_and_says_so(library, form):
    hidden = good(library.run("requests", "export", form))
    assert not any(secret in hidden.text for secret in SECRETS) and "--secrets" in hidden.said
    shown = good(library.run("requests", "export", form, "--secrets"))
    wanted = SECRETS if form != "--curl" else SECRETS[:-1]
    text = shown.text if form != "--jsonl" else shown.text + unpacked(shown.text)
    assert all(secret in text for secret in wanted), form
    assert "masked" not in shown.said


def unpacked(text):
    """What is in base64 in a text."""
    packed = re.findall(r'"((?:[A-Za-z0-9+/]{4}){2,}(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)"', text)
    return "".join(base64.b64decode(part).decode(errors="replace") for part in packed)


def test_a_diff_names_what_changed(library):
    done = good(library.run("requests", "diff", "@9", "@8"))
    assert "  ~ $.id: evt_1 → evt_2" in done.text.replace('"', "") and "$.amount" in done.text
    assert "x-more" in done.text and "$.live" not in done.text
    sections = good(library.run("requests", "diff", "@9", "@8", "--json")).json[0]["sections"]
    changes = {change["path"]: change for part in sections for change in part["changes"] if "path" in change}
    assert changes["$.amount"]["op"] == "change" and changes["x-more"]["op"] == "add"


def test_a_replay_of_the_same_has_no_difference_in_its_request(library):
    done = good(library.run("requests", "diff", "@9", "@1", "--json")).json[0]
    assert not [part for part in done["sections"] if part["name"].startswith("request") and part["changes"]]


def test_a_request_does_not_differ_from_itself(library):
    done = good(library.run("requests", "diff", "@1", "@1"))
    assert not done.raw and "no difference" in done.said
    assert good(library.run("requests", "diff", "@1", "@1", "--json")).json[0]["same"] is True


def test_a_diff_hides_secrets(library):
    login, gone = library.ids["POST", "/login"], library.ids["DELETE", "/gone"]
    for words in ([], ["--json"]):
        text = good(library.run("requests", "diff", login, gone, *words)).text
        assert not any(secret in text for secret in SECRETS)


def test_an_export_goes_into_a_file(library, tmp_path):
    into = tmp_path / "all.har"
    done = good(library.run("requests", "export", "--har", "-o", into))
    assert not done.raw and len(json.loads(into.read_text())["log"]["entries"]) == 9
    failed(library.run("requests", "export", "--har", "-o", tmp_path / "no" / "folder"), 1)


def test_follow_prints_what_comes_and_only_that(kept):
    kept.keep("POST", "/before")
    follower = kept.follow("requests", "follow", "--json", "--filter", "path:/wanted")
    eventually(lambda: kept.ask("POST", "/wanted/first") and follower.find("delivery"), what="a first one")
    for number in range(20):
        kept.keep("POST", f"/wanted/{number}")
        kept.keep("POST", f"/other/{number}")
    kept.keep("POST", "/wanted/last")
    follower.event("delivery", lambda event: event["path"] == "/wanted/last")
    printed = [event["path"] for event in follower.events if event["path"] != "/wanted/first"]
    assert printed == [f"/wanted/{n}" for n in range(20)] + ["/wanted/last"]
    assert follower.stop() == 0


def test_delete_takes_what_is_named_and_nothing_else(kept):
    for number in range(10):
        kept.keep("POST" if number % 2 else "PUT", f"/{number}")
    said = failed(kept.run("requests", "delete"), 2)
    assert "--all" in said and len(kept.list()) == 10
    ids = [one["id"] for one in kept.list()]
    assert good(kept.run("requests", "delete", ids[0], "@2")).lines == ["2 deleted"]
    assert paths(kept.list()) == "/0 /1 /2 /3 /4 /5 /6 /7"
    assert good(kept.run("requests", "delete", "--filter", "method:PUT", "--json")).json == [{"deleted": 4}]
    assert paths(kept.list()) == "/1 /3 /5 /7"
    assert good(kept.run("requests", "delete", "--limit", "1", "--json")).json == [{"deleted": 1}]
    assert paths(kept.list()) == "/1 /3 /5"
    failed(kept.run("requests", "delete", "ZZZZZZ", "@1"), 1)
    assert good(kept.run("requests", "delete", "--all", "--json")).json == [{"deleted": 3}]
    assert kept.list() == []
    # The client goes on in the same file.
    kept.keep("POST", "/after")
    assert paths(kept.list()) == "/after"


def test_an_empty_history_says_so(tmp_path):
    done = good(command("requests", folder=tmp_path))
    assert not done.raw and "no requests yet" in done.said
    failed(command("requests", "show", "@1", folder=tmp_path), 1)
    failed(command("replay", "@1", folder=tmp_path), 1)
    assert "nothing to replay" in good(command("replay", "--failed", folder=tmp_path)).said


# ── terminals ─────────────────────────────────────────────────────────────────────────────────────────────────────

CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\u202eevil\u2066\u200b\r\x00"


@pytest.fixture(scope="module")
def hostile(world):
    """Text that steers terminals, wherever it can be put: two of them."""
    with contextlib.closing(Desk(world, "hostile")) as desk:
        field = "\u202ea\x9bb\u2066".encode()
        body = HOSTILE.encode()

        def answer(seen, _):
            return b"HTTP/1.1 200 OK\r\nX-Reply: %s\r\nContent-Length: %d\r\n\r\n%s" % (field, len(body), body)

        client = desk.start(world.app(answer=answer), "-H", "x-own: 1", json_lines=False)
        client.wait(lambda: any(b"Quit" in line for line in client.lines), what="the banner")
        for number, kind in enumerate(("text/plain", "application/json")):
            text = json.dumps({"a": f"{HOSTILE} {number}"}, ensure_ascii=False).encode() if number else body
            head = f"POST /a?{number}%1b[2J HTTP/1.1\r\nHost: {desk.host}\r\nContent-Type: {kind}\r\n".encode()
            head += b"X-Field: %d %s\r\nUser-Agent: %s\r\n" % (number, field, field)
            head += b"Content-Length: %d\r\n\r\n" % len(text)
            with world.wire(desk.name) as wire:
                assert wire.ask(head + text).status == 200
        client.wait(lambda: sum(b"/a?" in line for line in client.lines) == 2, what="both lines")
        yield desk


@pytest.mark.parametrize(
    "words", [("list",), ("show", "@1"), ("show", "@2", "--secrets"), ("diff", "@2", "@1")], ids=" ".join
)
class TestTerminals:
    def test_nothing_from_outside_steers_one(self, hostile, words):
        done = good(hostile.run("requests", *words))
        assert done.raw and not STEERS.findall(done.text)

    def test_no_control_character_is_in_json(self, hostile, words):
        done = good(hostile.run("requests", *words, "--json"))
        assert done.raw and not CONTROLS.findall(done.text)
        assert done.text.count("\n") == len(done.json) == (2 if words == ("list",) else 1)

    def test_nothing_in_json_turns_the_direction_of_writing(self, hostile, words):
        assert not STEERS.findall(good(hostile.run("requests", *words, "--json")).text)


def test_a_list_has_one_line_for_each(hostile):
    assert len(good(hostile.run("requests", "list")).lines) == 2


def test_the_clients_own_lines_steer_no_terminal(hostile):
    assert not STEERS.findall(b"".join(hostile.client.lines).decode())


def test_what_was_imported_steers_no_terminal(tmp_path):
    fields = [["x-a", HOSTILE.replace("\r", "").replace("\0", "").replace("\x1b", "").replace("\x07", "")]]
    attempt = {"number": 1, "url": HOSTILE, "message": HOSTILE}
    attempts = [
        attempt | {"outcome": {"state": "failed", "failure": "refused", "short": "\x1b[2J\u202e\x9b"}},
        attempt | {"outcome": {"state": "answered", "status": 200}, "reply": {"status": 200, "headers": fields}},
    ]
    lines = [
        json.dumps({"remote": HOSTILE, "request": {"path": "/x\u202e", "headers": fields}, "attempts": chosen})
        for chosen in ([attempts[0]], attempts, [])
    ]
    done = command("requests", "import", "-", folder=tmp_path, stdin="\n".join(lines).encode())
    if done.code == 1:
        # Refused is as well; in words that steer nothing either.
        assert not STEERS.findall(done.said.replace("\n", ""))
        lines = [json.dumps(json.loads(line) | {"request": {"path": "/x"}}) for line in lines]
        good(command("requests", "import", "-", folder=tmp_path, stdin="\n".join(lines).encode()))
    for words in (["list"], ["show", "@1"], ["show", "@2"], ["show", "@3"], ["diff", "@3", "@2"]):
        printed = good(command("requests", *words, folder=tmp_path))
        assert printed.raw and not STEERS.findall(printed.text), words
        assert words != ["list"] or len(printed.lines) == 3


def test_a_long_reason_of_a_failure_is_listed_on_one_line(tmp_path):
    outcome = {"state": "failed", "failure": "refused", "short": "because " * 20}
    line = {"request": {"path": "/x"}, "attempts": [{"number": 1, "url": "http://localhost:1/", "outcome": outcome}]}
    good(command("requests", "import", "-", folder=tmp_path, stdin=json.dumps(line).encode()))
    (line,) = good(command("requests", "list", folder=tmp_path)).lines
    assert "ERR because" in line and "req_" in line


@pytest.mark.parametrize("words", [["list"], ["show", "@1"], ["export", "--har"], ["export", "--jsonl"]], ids=" ".join)
def test_a_reader_that_leaves_is_no_panic(library, words):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(library.folder), "XDG_DATA_HOME": str(library.data)}
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as out:
        wanted = [HOOKWAY, "requests", *words]
        done = subprocess.run(wanted, env=environment, stdout=out, stderr=subprocess.PIPE, timeout=20, check=False)
    assert b"panicked" not in done.stderr and done.returncode in (0, 1)


# ── hookway replay ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_replay_is_the_same_byte_for_byte_and_marked(kept):
    fields = [("X-Id", "1"), ("Stripe-Signature", "t=1,v1=00"), ("X-Id", "2"), ("Cookie", "a=1"), ("Cookie", "b=2")]
    _, number = kept.keep("PUT", "//a/../%2e?x=%zz", EVERY_BYTE, [*fields, ("X-Latin", "caf\xe9")])
    done = good(kept.run("replay", "@1", "--json")).json
    first, again = kept.app.seen
    same_request(first, again)
    marks = own_marks(again.headers)
    assert marks.pop("hookway-delivery") == done[0]["id"] != number == own_marks(first.headers)["hookway-delivery"]
    received = kept.show(number)["summary"]["received_at"]
    assert marks.pop("hookway-received-at").rstrip("Z0") == received.rstrip("Z0")
    assert marks == {"hookway-attempt": "2", "hookway-possible-duplicate": "1", "hookway-replay-of": number}
    newest, original = kept.list()
    assert (newest["replay_of"], newest["edited"], newest["attempt"]) == (number, False, 2)
    assert original["replay_of"] is None


def test_a_replay_of_trailers_carries_them(desk, app):
    desk.start(app)
    with desk.world.wire(desk.name) as wire:
        head = f"POST /t HTTP/1.1\r\nHost: {desk.host}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
        wire.ask(head.encode() + b"2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n")
    desk.client.delivery(path="/t")
    good(desk.run("replay", "@1"))
    assert [(seen.body, seen.trailers) for seen in app.seen] == [(b"ok", [("x-sum", "7")])] * 2


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "X-OWN"])
def test_a_replay_without_a_body_has_none(desk, app, method):
    desk.start(app)
    with desk.world.wire(desk.name) as wire:
        wire.ask(request(method, "/?", host=desk.host))
    desk.client.delivery(path="/?")
    good(desk.run("replay", "@1"))
    same_request(*app.seen)
    assert app.seen[1].header("content-length") is None


def test_a_replay_goes_where_it_is_told(kept, world):
    other = world.app(name="other")
    kept.keep("POST", "/a?b", b"x")
    line = good(kept.run("replay", "@1", "--to", f"http://{other.address}/prefix")).text
    assert "replay of req_" in line and other.seen[0].target == "/prefix/a?b"
    assert len(kept.app.seen) == 1
    # Again without a word: to where this one went.
    good(kept.run("replay", "@1"))
    assert [seen.target for seen in other.seen] == ["/prefix/a?b"] * 2


@pytest.mark.parametrize("to", ["ftp://127.0.0.1", "169.254.169.254:80", "nonsense", "http://user@127.0.0.1:1"])
def test_a_replay_goes_to_apps_only(kept, to):
    kept.keep()
    done = kept.run("replay", "@1", "--to", to)
    assert done.code == 2 and done.said.startswith("error: ") and len(kept.list()) == 1


def test_a_replay_of_a_route_goes_to_its_path_there(desk, world):
    main, stripe = world.app(), world.app()
    desk.start(main, "--route", f"/stripe={stripe.address}/hooks", "--strip-prefix")
    desk.keep("POST", "/stripe/a?b=1", b"x")
    good(desk.run("replay", "@1"))
    assert [seen.target for seen in stripe.seen] == ["/hooks/a?b=1"] * 2 and not main.seen


def test_a_replay_is_done_so_many_times(kept):
    kept.keep("POST", "/", b"again")
    done = good(kept.run("replay", "@1", "--times", "3", "--json")).json
    assert len({one["id"] for one in done}) == 3 and len(kept.list()) == 4
    assert [seen.body for seen in kept.app.seen] == [b"again"] * 4
    assert len({one["replay_of"] for one in done}) == 1


def test_several_are_replayed_in_their_order(kept):
    ids = [kept.keep("POST", f"/{n}")[1] for n in range(3)]
    good(kept.run("replay", ids[2], ids[0]))
    assert [seen.target for seen in kept.app.seen[3:]] == ["/2", "/0"]


def test_fields_are_added_to_a_replay_or_replaced(kept):
    kept.keep("POST", "/", b"x", [("X-Env", "1"), ("X-Env", "2"), ("X-Stays", "s")])
    good(kept.run("replay", "@1", "-H", "X-Env: test", "-H", "X-New: n"))
    again = kept.app.seen[1]
    assert again.all("x-env") == ["test"] and again.header("x-new") == "n" and again.header("x-stays") == "s"
    newest = kept.list()[0]
    assert newest["edited"] is True
    # The app has not seen this one before.
    assert "hookway-possible-duplicate" not in own_marks(again.headers)
    shown = good(kept.run("requests", "diff", "@2", "@1")).text
    assert "x-new" in shown and "x-env" in shown


def test_a_replay_without_the_tunnel_reaches_the_app(kept):
    kept.keep("POST", "/", b"later")
    assert kept.client.stop() == 0
    good(kept.run("replay", "@1"))
    assert [seen.body for seen in kept.app.seen] == [b"later"] * 2


def editor(folder, script):
    """An editor that does this to the file in $1."""
    path = folder / "editor.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return {"EDITOR": path}


def test_an_edited_replay_is_another_request(kept, tmp_path):
    _, number = kept.keep("POST", "/a?x=1", b"hello\nworld", [("X-Keep", "1"), ("X-Keep", "2"), ("X-Drop", "d")])
    script = """sed -i 's,^POST /a?x=1,PUT /b?y=2,; s/^hello$/good bye to the/; /^x-drop/d' "$1"
                echo 'and more' >> "$1" """
    good(kept.run("replay", "@1", "--edit", **editor(tmp_path, script)))
    first, edited = kept.app.seen
    assert (edited.method, edited.target, edited.body) == ("PUT", "/b?y=2", b"good bye to the\nworldand more")
    assert edited.all("content-length") == [str(len(edited.body))]
    assert edited.all("x-keep") == ["1", "2"] and edited.header("x-drop") is None
    marks = own_marks(edited.headers)
    assert marks["hookway-replay-of"] == number and "hookway-possible-duplicate" not in marks
    assert marks.get("hookway-attempt", "1") == "1"
    newest, original = kept.list()
    assert newest["edited"] and newest["path"] == "/b?y=2" and newest["replay_of"] == number
    assert original["path"] == "/a?x=1"


def test_an_editor_that_changes_nothing_makes_a_plain_replay(kept, tmp_path):
    kept.keep("POST", "/a", b"\r\nhello\r\n\r\nworld\n")
    good(kept.run("replay", "@1", "--edit", **editor(tmp_path, "true")))
    same_request(*kept.app.seen)
    assert not kept.list()[0]["edited"]


def test_an_edit_of_the_path_leaves_a_body_that_is_no_text(kept, tmp_path):
    kept.keep("POST", "/a", EVERY_BYTE)
    good(kept.run("replay", "@1", "--edit", **editor(tmp_path, """sed -i 's,^POST /a,POST /b,' "$1" """)))
    assert (kept.app.seen[1].target, kept.app.seen[1].body) == ("/b", EVERY_BYTE)


def test_an_edit_of_the_path_leaves_fields_that_are_no_text(kept, tmp_path):
    fields = [("X-Latin", "caf\xe9"), ("X-Blank", ""), ("X-Twice", "a"), ("X-Twice", "\xfc")]
    kept.keep("POST", "/a", b"hi\n\n\n", fields)
    good(kept.run("replay", "@1", "--edit", **editor(tmp_path, """sed -i 's,^POST /a,POST /b,' "$1" """)))
    first, edited = kept.app.seen
    assert edited.target == "/b" and edited.body == first.body
    assert without_marks(edited) == without_marks(first)


def test_an_edit_keeps_a_field_whose_name_looks_like_a_comment(kept, tmp_path):
    kept.keep("POST", "/a", b"hi", [("#odd", "1")])
    good(kept.run("replay", "@1", "--edit", **editor(tmp_path, """sed -i 's,^POST /a,POST /b,' "$1" """)))
    assert kept.app.seen[1].header("#odd") == "1"


@pytest.mark.parametrize(
    "script",
    [
        "exit 3",
        ": > \"$1\"",
        "rm \"$1\"",
        "printf 'nonsense\\n\\n' > \"$1\"",
        "printf 'POST relative HTTP\\n\\n' > \"$1\"",
        "printf 'POST /\\nno field\\n\\n' > \"$1\"",
        "printf '\\377' > \"$1\"",
    ],
)  # fmt: skip
def test_an_edit_that_goes_wrong_sends_nothing(kept, tmp_path, script):
    kept.keep("POST", "/a", b"x")
    failed(kept.run("replay", "@1", "--edit", **editor(tmp_path, script)), 1)
    assert len(kept.app.seen) == len(kept.list()) == 1


def test_an_editor_that_is_missing_is_1(kept):
    kept.keep()
    assert "/nowhere/vi" in failed(kept.run("replay", "@1", "--edit", EDITOR="/nowhere/vi"), 1)


def test_what_failed_is_replayed_until_it_succeeds(desk, world):
    def answer(seen, _):
        bad = seen.target.startswith("/bad") and not mended
        return b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n" if bad else OK

    mended = []
    app = world.app(answer=answer)
    desk.start(app)
    for path in ("/bad/1", "/good", "/bad/2"):
        desk.keep("POST", path, path.encode())
    bad = ["/bad/1", "/bad/2"]

    def again():
        app.clear()
        return desk.run("replay", "--failed", "--since", "1h", "--json"), [seen.target for seen in app.seen]

    done, seen = again()
    assert done.code == 6 and seen == bad and [one["status"] for one in done.json] == [500, 500]
    assert done.said.startswith("error: ") and "next:" in done.said
    # Each of them once, however often it was tried; the attempts are counted.
    done, seen = again()
    assert done.code == 6 and seen == bad and len(desk.list()) == 7
    mended.append(True)
    done, seen = again()
    assert done.code == 0 and seen == bad and [one["status"] for one in done.json] == [200, 200]
    done, seen = again()
    assert done.code == 0 and seen == [] and not done.raw


def test_what_failed_too_long_ago_is_left_alone(desk, world):
    app = world.app(answer=lambda seen, _: b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
    desk.start(app)
    desk.keep()
    good(desk.run("replay", "--failed", "--since", "2999-01-01"))
    assert len(app.seen) == 1


def test_a_replay_to_an_app_that_is_down_is_6_and_kept(kept):
    kept.keep("POST", "/", b"x")
    with SleepingApp() as down:
        done = kept.run("replay", "@1", "--to", down.address)
    assert done.code == 6 and "ERR refused" in done.text
    assert kept.list()[0]["error"] == "refused"


def test_an_app_that_is_slow_to_a_replay_is_given_up(kept):
    kept.keep("POST", "/", b"x")
    with GatedApp() as slow:
        done = kept.run("replay", "@1", "--to", slow.address, "--timeout", "300ms")
    assert done.code == 6 and "timeout" in done.text


def test_replays_are_no_deliveries_to_count(desk, app):
    client = desk.start(app, "--until", "2", inspect=True)
    _, number = desk.keep("POST", "/one")
    for _ in range(3):
        put(client, f"/api/exchanges/{number}/replay", {}, "POST")
    client.wait(lambda: len([event for event in client.deliveries() if event["replay_of"]]) == 3, what="the replays")
    assert client.running and desk.ask("POST", "/two").status == 200
    assert client.exited() == 0
    assert [seen.target for seen in app.seen] == ["/one"] * 4 + ["/two"]


def test_replays_do_not_end_a_client_that_waits_for_one(desk, app):
    desk.start(app)
    _, number = desk.keep("POST", "/one")
    assert desk.client.stop() == 0
    second = desk.start(app, "--once", inspect=True)
    put(second, f"/api/exchanges/{number}/replay", {}, "POST")
    second.delivery(replay_of=number)
    assert second.running and desk.ask("POST", "/two").status == 200
    assert second.exited() == 0


# ── exports ───────────────────────────────────────────────────────────────────────────────────────────────────────

BODIES = {
    "empty": b"",
    "text": b"a=1&b='it''s' \"so\" $HOME `x` \\ ! %s\n\n# not a comment\n",
    "crlf": b"a\r\nb\r\n\r\n",
    "binary": EVERY_BYTE,
    "four-bytes": "🦀é\u202e".encode(),
    "file-like": b"@/etc/passwd",
    "200-kB": random.Random(3).randbytes(200_000),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_the_curl_command_sends_the_same_again(kept, tmp_path, method, body):
    fields = [
        ("X-Id", "1"), ("X-Quotes", "it's \"so\" $HOME `x` \\"), ("X-Id", "2"), ("X-Empty", ""), ("X-Latin", "caf\xe9"),
        ("Cookie", "a=1; b='2'"), ("Authorization", "Bearer x"), ("X-Tab", "a\tb"),
    ]  # fmt: skip
    target = "//a/../%2e/{b,c}[1-3]?x=%zz&y='$(id)'&z"
    kept.keep(method, target, body, fields)
    made = tmp_path / "made"
    good(kept.run("requests", "export", "--curl", "--secrets", "@1", "-o", made))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "no_proxy": "*"}
    subprocess.run(["sh", made], cwd=tmp_path, env=environment, capture_output=True, timeout=20, check=True)
    same_request(*kept.app.seen)


def test_a_get_as_a_curl_command(desk, app, tmp_path):
    desk.start(app)
    with desk.world.wire(desk.name) as wire:
        wire.ask(request("GET", "/?q=a%20b", host=desk.host))
    desk.client.delivery(path="/?q=a%20b")
    made = good(desk.run("requests", "export", "--curl", "@1")).text
    subprocess.run(["sh", "-c", made], cwd=tmp_path, capture_output=True, timeout=20, check=True)
    same_request(*app.seen)


def test_the_har_is_as_har_1_2_wants_it(library):
    har = json.loads(good(library.run("requests", "export", "--har")).raw)
    valid_har(har)
    entries = har["log"]["entries"]
    assert len(entries) == 9
    stripe, refused = entries[0], entries[4]
    assert stripe["request"]["method"] == "POST" and stripe["request"]["url"].endswith("/stripe/webhook?x=1")
    assert stripe["request"]["queryString"] == [{"name": "x", "value": "1"}]
    assert json.loads(stripe["request"]["postData"]["text"])["id"] == "evt_1"
    assert (refused["response"]["status"], refused["response"]["_error"]) == (0, "refused")
    # Binary is in base64, as readers of HAR know it in answers.
    assert base64.b64decode(entries[7]["request"]["postData"]["text"]) == b"\xff\x00"
    parsed = HarParser(har)
    assert [page for page in parsed.pages if page.page_id != "unknown"] == []
    assert [entry["request"]["method"] for entry in parsed.har_data["entries"]][:2] == ["POST", "POST"]


def test_an_export_of_nothing_is_a_har_without_entries(library):
    har = json.loads(good(library.run("requests", "export", "--har", "--filter", "path:/nowhere")).raw)
    valid_har(har)
    assert har["log"]["entries"] == []


# Of the HAR 1.2 Spec: the required fields and their types; "?" stands for one that may be missing.
NAMED = {"name": str, "value": str}
HAR_MESSAGE = {
    "httpVersion": str, "cookies": [NAMED], "headers": [NAMED], "headersSize": int, "bodySize": int,
}  # fmt: skip
HAR = {
    "log": {
        "version": str,
        "creator": {"name": str, "version": str},
        "?pages": [dict],
        "entries": [
            {
                "startedDateTime": str,
                "time": (int, float),
                "request": HAR_MESSAGE
                | {
                    "method": str,
                    "url": str,
                    "queryString": [NAMED],
                    "?postData": {"mimeType": str, "text": str, "?params": [{"name": str, "?value": str}]},
                },
                "response": HAR_MESSAGE
                | {
                    "status": int,
                    "statusText": str,
                    "redirectURL": str,
                    "content": {"size": int, "mimeType": str, "?text": str, "?encoding": str},
                },
                "cache": dict,
                "timings": {
                    "send": (int, float), "wait": (int, float), "receive": (int, float),
                    "?blocked": (int, float), "?dns": (int, float), "?connect": (int, float), "?ssl": (int, float),
                },
            }
        ],
    }
}  # fmt: skip


def valid_har(har):
    holds(har, HAR, "har")
    for entry in har["log"]["entries"]:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", entry["startedDateTime"])
        assert re.match(r"https?://[^/]+/", entry["request"]["url"])
        timings = entry["timings"]
        assert min(timings[part] for part in ("send", "wait", "receive")) >= 0
        total = sum(taken for taken in timings.values() if taken >= 0)
        assert abs(entry["time"] - total) < 0.01, (entry["time"], timings)


def holds(value, wanted, where):
    if isinstance(wanted, dict):
        assert isinstance(value, dict), where
        for key, inner in wanted.items():
            if not key.startswith("?") or key[1:] in value:
                assert key.removeprefix("?") in value, f"{where} has no {key}"
                holds(value[key.removeprefix("?")], inner, f"{where}.{key}")
    elif isinstance(wanted, list):
        assert isinstance(value, list), where
        for number, one in enumerate(value):
            holds(one, wanted[0], f"{where}[{number}]")
    else:
        assert isinstance(value, wanted) and not isinstance(value, bool), f"{where}: {value!r}"


def test_what_is_exported_can_be_imported_and_exported_again(library, tmp_path):
    export = ("requests", "export", "--jsonl", "--secrets")
    whole = good(library.run(*export))
    imported = command("requests", "import", "-", "--json", folder=tmp_path, stdin=whole.raw)
    assert good(imported).json == [{"read": 9, "imported": 9}]

    def content(done):
        # Place and version are this history's own.
        return [{key: value for key, value in one.items() if key not in ("seq", "version")} for one in done.json]

    again = good(command(*export, folder=tmp_path))
    assert content(again) == content(whole)
    for form in ("--har", "--curl"):
        words = ("requests", "export", form, "--secrets")
        assert good(command(*words, folder=tmp_path)).text == good(library.run(*words)).text
    # Once more is nothing new.
    (tmp_path / "file").write_bytes(whole.raw)
    assert good(command("requests", "import", "file", "--json", folder=tmp_path)).json == [{"read": 9, "imported": 0}]


UNSEEN = "\u202e\u200b\x9b\U000e0041"


@pytest.mark.parametrize("form", ["--har", "--jsonl"])
def test_what_steers_a_terminal_is_escaped_in_an_export(desk, world, form):
    """The direction of writing, no width, C1, tags: other programs read them, a terminal that prints it does not."""
    unseen = UNSEEN.encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Reply: a%s\r\nContent-Length: %d\r\n\r\n%s"
    client = desk.start(world.app(answer=lambda *_: answer % (unseen, len(unseen), unseen)))
    with world.wire(desk.name) as wire:
        head = b"POST /%s HTTP/1.1\r\nHost: %s\r\nContent-Type: text/plain\r\nX-Field: %s\r\n"
        head += b"Content-Length: %d\r\n\r\n"
        assert wire.ask(head % (unseen, desk.host.encode(), unseen, len(unseen)) + unseen).status == 200
    client.delivery()
    done = good(desk.run("requests", "export", form, "--secrets"))
    assert not set(UNSEEN) & set(done.text)
    assert all(json.dumps(c)[1:-1] in done.text for c in UNSEEN)
    if form == "--har":
        (entry,) = json.loads(done.text)["log"]["entries"]
        fields = pairs(entry["request"]["headers"]) + pairs(entry["response"]["headers"])
        texts = entry["request"]["url"], entry["request"]["postData"]["text"], entry["response"]["content"]["text"]
    else:
        (entry,) = done.json
        request, reply = entry["request"], entry["attempts"][0]["reply"]
        fields = [tuple(field) for field in request["headers"] + reply["headers"]]
        texts = request["path"], request["body"]["bytes"], reply["body"]["bytes"]
    assert {("x-field", UNSEEN), ("x-reply", f"a{UNSEEN}")} <= set(fields)
    assert texts[0].endswith(f"/{UNSEEN}") and texts[1:] == (UNSEEN, UNSEEN)


def test_what_steers_a_terminal_is_imported_as_it_was(tmp_path):
    kept = {"path": f"/{UNSEEN}", "headers": [["x-field", UNSEEN]], "body": {"bytes": UNSEEN}}
    outcome = {"state": "answered", "status": 200}
    attempt = {"number": 1, "url": "http://localhost:1/", "outcome": outcome, "reply": {"status": 200} | kept}
    line = json.dumps({"request": kept, "attempts": [attempt]}, ensure_ascii=False).encode()
    assert UNSEEN.encode() in line
    exports = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        good(command("requests", "import", "-", folder=folder, stdin=line))
        assert good(command("requests", "show", "@1", "--body", folder=folder)).raw == UNSEEN.encode()
        line = good(command("requests", "export", "--jsonl", "--secrets", folder=folder)).raw
        exports.append(line)
    assert exports[0] == exports[1] and exports[0].isascii()
    request = json.loads(exports[0])["request"]
    assert (request["path"], request["headers"]) == (f"/{UNSEEN}", [["x-field", UNSEEN]])
    assert request["body"]["bytes"] == UNSEEN


def test_a_pin_survives_export_and_import(desk, app, tmp_path):
    client = desk.start(app, inspect=True)
    _, number = desk.keep()
    put(client, f"/api/exchanges/{number}/pin", {"pinned": True})
    whole = good(desk.run("requests", "export", "--jsonl", "--secrets"))
    assert whole.json[0]["pinned"] is True
    good(command("requests", "import", "-", folder=tmp_path, stdin=whole.raw))
    assert good(command("requests", "list", "--json", folder=tmp_path)).json[0]["pinned"] is True


def test_what_is_imported_can_be_replayed(kept, tmp_path):
    kept.keep("POST", "/a?b", EVERY_BYTE, [("X-Id", "1"), ("X-Id", "2"), ("X-Latin", "caf\xe9")])
    whole = good(kept.run("requests", "export", "--jsonl", "--secrets", "@1")).raw
    good(command("requests", "import", "-", folder=tmp_path, stdin=whole))
    good(command("replay", "@1", folder=tmp_path))
    same_request(*kept.app.seen)


def test_a_masked_export_is_not_imported(library, tmp_path):
    masked = good(library.run("requests", "export", "--jsonl"))
    said = failed(command("requests", "import", "-", folder=tmp_path, stdin=masked.raw), 1)
    assert "masked" in said and "--secrets" in said
    assert good(command("requests", "list", folder=tmp_path)).raw == b""


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"hookway":99}', '{"id":"req_x"}', '{"request":{"method":"A B"}}', '{"request":{"path":"http://x/"}}',
     '{"request":{"headers":[["a\\n","b"]]}}', "\xff"],
)  # fmt: skip
def test_what_is_no_export_is_not_imported(tmp_path, text):
    said = failed(command("requests", "import", "-", folder=tmp_path, stdin=text.encode("latin-1")), 1)
    assert "line 1" in said or "UTF-8" in said
    assert good(command("requests", "list", folder=tmp_path)).raw == b""


# ── the live client's filter ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [('body:"evt_1"', ["/1", "/last"]), ("header.x-id:7", ["/2", "/last"])],
    ids=["body", "header"],
)
@pytest.mark.parametrize("flags", [[], ["--no-store"]], ids=["kept", "not kept"])
def test_a_filter_prints_what_matches_and_keeps_all(desk, app, expression, wanted, flags):
    client = desk.start(app, "--filter", expression, *flags)
    seven = [("X-Id", "7")]
    for path, body, fields in (
        ("/1", b'{"id":"evt_1"}', ()),
        ("/2", b"evt_2", seven),
        ("/3", b"x", ()),
        ("/last", b"evt_1", seven),
    ):
        assert desk.ask("POST", path, body, fields).status == 200
    client.delivery(path="/last")
    assert [event["path"] for event in client.deliveries()] == wanted
    if not flags:
        assert paths(desk.list()) == "/1 /2 /3 /last"


def test_a_wrong_filter_stops_the_client_at_once(tmp_path):
    done = command("3000", "--filter", "nope:1", folder=tmp_path)
    assert done.code == 2 and "(at 1)" in done.said


def test_the_line_of_a_delivery_hides_secrets_of_the_query(desk, app):
    client = desk.start(app, json_lines=False)
    client.wait(lambda: any(b"Quit" in line for line in client.lines), what="the banner")
    desk.ask("POST", "/hook?token=hush-query")
    line = client.wait(lambda: next((line for line in client.lines if b"/hook" in line), None), what="the line")
    assert MASK in line.decode() and b"hush-query" not in line


def test_the_json_of_a_delivery_hides_secrets_of_the_query(kept):
    kept.keep("POST", "/hook?token=hush-query&x=1")
    assert kept.client.deliveries()[0]["path"] == f"/hook?token={MASK}&x=1"


def test_logs_hide_secrets(desk, app):
    client = desk.start(app, "-vv")
    fields = [("Authorization", "Bearer hush-bearer"), ("Cookie", "a=hush-cookie")]
    for _ in range(3):
        desk.keep("POST", "/hook?token=hush-query", b"hush-body", fields)
    said = desk.run("-vv", "replay", "@1").said
    assert client.stop() == 0
    assert "hush" not in client.errors.read_text() and "hush" not in said


# ── nothing takes it away ─────────────────────────────────────────────────────────────────────────────────────────


class Load:
    """Senders that do not stop."""

    def __init__(self, desk, names, body=b"", senders=4):
        self.desk, self.names, self.body = desk, names, body
        self.over = threading.Event()
        self.statuses = collections.Counter()
        self.pool = ThreadPoolExecutor(senders)
        self.tasks = [self.pool.submit(self._send, number) for number in range(senders)]

    def _send(self, number):
        name, sent = self.names[number % len(self.names)], 0
        while not self.over.is_set():
            with contextlib.suppress(OSError, Exception), self.desk.world.wire(name) as wire:
                while not self.over.is_set():
                    sent += 1
                    target = f"/{name}/{number}/{sent}"
                    asked = request("POST", target, self.body, host=f"{name}.{DOMAIN}")
                    self.statuses[wire.ask(asked).status] += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.pool.shutdown(wait=True)


def integrity(path):
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        return db.execute("PRAGMA integrity_check").fetchall()


def test_a_client_that_is_killed_loses_nothing_that_it_reported(desk, app):
    reported = set()
    for number in range(3):
        client = desk.start(app)
        with Load(desk, [desk.name], bytes(3000)):
            client.wait(lambda: len(client.deliveries()) > 150 + 70 * number, what="deliveries")  # noqa: B023
            client.process.kill()
            client.exited()
        ids = [event["id"] for event in client.deliveries()]
        assert len(set(ids)) == len(ids) > 150
        reported.update(ids)
        listed = desk.list("--limit", "100000")
        missing = reported - {one["id"] for one in listed}
        places = sorted(ids.index(one) for one in missing if one in ids)
        assert not missing, (number, len(ids), places, hints(client))
        assert len({one["id"] for one in listed}) == len(listed)
    assert integrity(desk.file) == [("ok",)]
    # Whoever comes next goes on in the same file.
    client = desk.start(app)
    assert desk.ask("POST", "/after").status == 200
    client.delivery(path="/after")
    assert desk.list()[0]["path"] == "/after" and not list(desk.file.parent.glob("history.db.*"))


def test_two_clients_share_a_history(desk, world, name):
    apps = world.app(), world.app()
    names = name, f"{name}-b"
    clients = [desk.start(app, name=own) for app, own in zip(apps, names, strict=True)]
    with Load(desk, names) as load:
        for client in clients:
            client.wait(lambda: len(client.deliveries()) > 300, what="deliveries")  # noqa: B023
    assert set(load.statuses) == {200}
    for client in clients:
        assert client.stop() == 0
    wanted = {event["id"] for client in clients for event in client.deliveries()}
    listed = desk.list("--limit", "100000")
    assert {one["id"] for one in listed} == wanted
    assert len(listed) == load.statuses.total() == sum(len(app.seen) for app in apps)
    assert {one["endpoint"] for one in listed} == set(names)
    assert len({one["seq"] for one in listed}) == len({one["version"] for one in listed}) == len(listed)
    assert integrity(desk.file) == [("ok",)]
    for client in clients:
        assert not [event for event in client.events if event["event"] == "hint" and "cannot" in event["text"]]


@contextlib.contextmanager
def held(desk, path="/slow", name=None):
    """A delivery whose app has not answered yet, pending in the history: its sender's wire, and its id."""
    name = name or desk.name
    with desk.world.wire(name) as wire:
        wire.send(request("POST", path, b"held", host=f"{name}.{DOMAIN}"))
        pending = eventually(lambda: desk.list("--filter", f"is:pending path:{path}"), what="the pending exchange")
        yield wire, pending[0]["id"]


def kill(client):
    client.process.kill()
    client.exited()


@pytest.fixture
def interrupted(desk):
    """A desk whose client was killed before the app had answered. The app answers whatever comes now."""
    with GatedApp() as app:
        client = desk.start(app)
        with held(desk):
            kill(client)
        app.gate.set()
        yield desk


LOOKS = {
    "list": lambda desk: desk.list()[0],
    "a filter": lambda desk: desk.list("--filter", "is:failed")[0],
    "show": lambda desk: desk.show()["summary"],
    "inspect": lambda desk: got(desk.follow("inspect", "--json", *PORT_0), "/api/exchanges")["exchanges"][0],
    "a client": lambda desk: got(desk.start(desk.app, name=f"{desk.name}-next", inspect=True), "/api/exchanges")[
        "exchanges"
    ][0],
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_what_a_killed_client_left_pending_is_ended_by_the_next_program(interrupted, look):
    one = look(interrupted)
    assert (one["state"], one["path"], one["attempts"]) == ("done", "/slow", 1)
    assert (one["status"], one["error"], one["ok"]) == (None, "interrupted", False)


def test_an_interrupted_exchange_says_what_happened(interrupted):
    shown = interrupted.show()
    (attempt,) = shown["attempts"]
    assert (attempt["number"], attempt["status"], attempt["error"], attempt["reply"]) == (1, None, "interrupted", None)
    assert attempt["message"] == "the client ended before the app's answer was kept"
    assert shown["request"]["body"]["text"] == "held"
    assert "ERR interrupted" in good(interrupted.run("requests")).text
    assert attempt["message"] in good(interrupted.run("requests", "show", "@1")).text
    assert interrupted.list("--filter", "is:pending") == []
    # Once is enough.
    assert interrupted.list("--filter", "is:failed") == [shown["summary"] | {"event": "delivery"}]


def test_half_a_body_is_not_replayed_as_a_whole(desk):
    with GatedApp() as app:
        client = desk.start(app)
        with desk.world.wire(desk.name) as wire:
            head = f"POST /half HTTP/1.1\r\nHost: {desk.host}\r\nTransfer-Encoding: chunked\r\n\r\n"
            wire.send(head.encode() + b"4\r\nhalf\r\n")
            eventually(lambda: desk.list("--filter", "is:pending path:/half"), what="the pending exchange")
            kill(client)
        app.gate.set()
        shown = desk.show()
        assert shown["request"]["body"]["text"] == "half" and shown["summary"]["error"] == "interrupted"
        assert shown["can_replay"] is False and "end of the body" in shown["why_not"]
        assert "end of the body" in good(desk.run("requests", "show", "@1")).text
        (entry,) = json.loads(good(desk.run("requests", "export", "--har")).raw)["log"]["entries"]
        assert "beginning" in entry["request"]["postData"]["comment"]
        assert "end of the body" in failed(desk.run("replay", "--failed"), 1)
        # Nor by way of a file.
        lines = good(desk.run("requests", "export", "--jsonl", "--secrets")).raw
        good(desk.run("requests", "delete", "--all"))
        (desk.folder / "half.jsonl").write_bytes(lines)
        good(desk.run("requests", "import", desk.folder / "half.jsonl"))
        assert desk.show()["can_replay"] is False


@pytest.mark.parametrize("where", ["where it went", "where it is told"])
def test_an_interrupted_exchange_is_replayed(interrupted, where):
    app = interrupted.app
    words = ["--to", app.address] if where == "where it is told" else []
    (replay,) = good(interrupted.run("replay", "--failed", "--json", *words)).json
    assert replay["status"] == 200
    same_request(*app.seen)
    assert own_marks(app.seen[1].headers)["hookway-possible-duplicate"] == "1"
    assert "nothing to replay" in good(interrupted.run("replay", "--failed")).said


@pytest.mark.parametrize("killed", [0, 1], ids=["the first", "the second"])
def test_while_a_client_lives_what_is_pending_stays_so(desk, name, killed):
    """Of two that share a history, either is killed."""
    names = name, f"{name}-b"
    with GatedApp() as app:
        clients = [desk.start(app, name=own) for own in names]
        living = clients[1 - killed]

        def pending():
            return {one["id"] for one in desk.list("--filter", "is:pending")}

        with held(desk, "/lost", names[killed]) as (_, lost), held(desk, "/own", names[1 - killed]) as (wire, own):
            kill(clients[killed])
            assert pending() == {lost, own}
            # Another one that comes and goes takes nobody's place.
            assert desk.start(app, name=f"{name}-c").stop() == 0
            assert desk.show(lost)["attempts"] == [] and pending() == {lost, own}
            app.gate.set()
            assert wire.reply("POST").body == b"ok"
        living.delivery(path="/own", status=200)
        assert pending() == {lost}
        assert living.stop() == 0
    listed = {one["id"]: (one["status"], one["error"]) for one in desk.list()}
    assert listed == {lost: (None, "interrupted"), own: (200, None)}
    assert desk.show(own)["attempts"][0]["reply"]["body"]["text"] == "ok"


def test_bodies_in_flight_share_64_mib(desk, world):
    """What there is no room for is handed over all the same; of each the beginning is kept."""
    many = 160
    gates, arrived = [threading.Event(), threading.Event()], {}

    def body(number):
        return random.Random(number).randbytes(MIB)

    def answer(seen, _):
        arrived[seen.target] = seen.sha256
        # That would be half a gigabyte here.
        seen.body = seen.raw = b""
        assert gates[int(seen.target[1:]) % 2].wait(150)
        return OK

    def pending():
        return len(desk.list("--filter", "is:pending", "--limit", "999"))

    client = desk.start(world.app(answer=answer), "--timeout", "3m")

    def send(number):
        wire = world.wire(desk.name)
        head = f"POST /{number} HTTP/1.1\r\nHost: {desk.host}\r\nTransfer-Encoding: chunked\r\n\r\n{MIB:x}\r\n"
        wire.send(head.encode() + body(number) + b"\r\n0\r\n\r\n")
        return wire

    with ThreadPoolExecutor(8) as pool, contextlib.ExitStack() as wires:
        for gate in gates:
            wires.callback(gate.set)
        sent = [wires.enter_context(wire) for wire in pool.map(send, range(many))]
        eventually(lambda: len(arrived) == many, 90, "all of them at the app")
        eventually(lambda: pending() == many, 60, "all of them pending")
        # Without a limit it would be 160 MiB, and what else a client takes.
        assert client.rss() < 176 * MIB
        for number, gate in enumerate(gates):
            gate.set()
            assert {wire.reply("POST").status for wire in sent[number::2]} == {200}
            # What waits to be written has a limit of its own.
            eventually(lambda: pending() == many // 2 * (1 - number), 60, "these kept")  # noqa: B023
    assert arrived == {f"/{number}": hashlib.sha256(body(number)).hexdigest() for number in range(many)}
    client.wait(lambda: len(client.deliveries(status=200)) == many, what="all deliveries")

    def kept(event):
        raw = good(desk.run("requests", "show", event["id"], "--body")).raw
        assert event["bytes"] == MIB and body(int(event["path"][1:])).startswith(raw)
        return len(raw)

    kept = [kept(event) for event in client.deliveries()]
    # Large ones take half of it, as much each as there was room for when it came, and of each its first 64 KiB.
    assert 64 << 10 <= min(kept) < MIB and 32 * MIB <= sum(kept) <= 64 * MIB
    (shown,) = good(desk.run("requests", "show", client.deliveries()[kept.index(min(kept))]["id"], "--json")).json
    assert (shown["request"]["body"]["size"], shown["request"]["body"]["kept"]) == (MIB, min(kept))
    assert shown["can_replay"] is False
    # All of it came back.
    assert desk.show(desk.keep("POST", "/0", body(0))[1])["request"]["body"]["kept"] == MIB


def hints(client):
    return [event["text"] for event in list(client.events) if event.get("event") == "hint"]


def told(client, *words):
    """A hint with one of these words, waited for."""
    return client.event("hint", lambda event: any(word in event["text"] for word in words))["text"]


def noticed(client, word):
    """What the client told with this word, in JSON or on stderr."""
    return next((text for text in [*hints(client), client.log()] if word in text), None)


def set_aside(desk):
    found = desk.file.parent.glob("history.db.*")
    return [path for path in found if not path.name.endswith(("-wal", "-shm"))]


def spoil_at_random(path):
    for beside in path.parent.glob("history.db-*"):
        beside.unlink()
    path.write_bytes(random.Random(4).randbytes(100_000))


def spoil_by_truncation(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    assert size > 20_000
    os.truncate(path, size // 2)


def spoil_a_page(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(random.Random(5).randbytes(path.stat().st_size - 8192))


def lose_the_key(path):
    (path.parent / "key").unlink()


def another_key(path):
    (path.parent / "key").write_bytes(bytes(32))


SPOILERS = [spoil_at_random, spoil_by_truncation, spoil_a_page, lose_the_key, another_key]


@pytest.mark.parametrize("json_lines", [True, False], ids=["json", "text"])
@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_history_is_set_aside_and_told(desk, app, spoil, json_lines):
    desk.start(app)
    for number in range(30):
        desk.keep("POST", f"/{number}", bytes(2000))
    assert desk.client.stop() == 0
    spoil(desk.file)
    before = desk.file.read_bytes()
    client = desk.start(app, json_lines=json_lines)
    client.wait(lambda: any(b"Quit" in line or b'"ready"' in line for line in client.lines), what="the banner")
    for number in range(5):
        assert desk.ask("POST", f"/after/{number}").status == 200
    text = eventually(lambda: noticed(client, "history.db."), what="the notice")
    (aside,) = set_aside(desk)
    assert aside.name in text
    if spoil in (lose_the_key, another_key):
        with contextlib.closing(sqlite3.connect(aside)) as db:
            assert db.execute("SELECT count(*) FROM exchange").fetchall() == [(30,)]
    else:
        assert aside.read_bytes() == before
    eventually(lambda: paths(desk.list()) == "/after/0 /after/1 /after/2 /after/3 /after/4", what="the new history")
    assert integrity(desk.file) == [("ok",)]


@pytest.mark.parametrize("spoil", [spoil_at_random, lose_the_key], ids=lambda spoil: spoil.__name__)
def test_a_command_that_finds_a_spoilt_history_says_so(desk, app, spoil):
    desk.start(app)
    desk.keep()
    assert desk.client.stop() == 0
    spoil(desk.file)
    done = desk.run("requests", "list")
    assert not done.raw and any(path.name in done.said for path in set_aside(desk)), done


@pytest.mark.parametrize("many", [2, 8])
@pytest.mark.parametrize("spoil", [SPOILERS[0], SPOILERS[1], SPOILERS[3]], ids=lambda spoil: spoil.__name__)
def test_programs_that_find_a_spoilt_history_at_once_set_it_aside_once(kept, app, spoil, many):
    for number in range(10):
        kept.keep("POST", f"/{number}", bytes(2000))
    assert kept.client.stop() == 0
    spoil(kept.file)
    before = kept.file.read_bytes()
    with ThreadPoolExecutor(many) as pool:
        done = list(pool.map(lambda _: good(kept.run("requests", "list")), range(many)))
    (aside,) = set_aside(kept)
    if spoil is lose_the_key:
        with contextlib.closing(sqlite3.connect(aside)) as db:
            assert db.execute("SELECT count(*) FROM exchange").fetchall() == [(10,)]
    else:
        assert aside.read_bytes() == before
    assert not any(one.raw for one in done)
    assert sum(aside.name in one.said for one in done) == 1
    # It is fit for use.
    client = kept.start(app)
    assert kept.ask("POST", "/after").status == 200
    client.delivery(path="/after")
    assert paths(kept.list()) == "/after" and integrity(kept.file) == [("ok",)] and set_aside(kept) == [aside]


def test_a_history_that_is_damaged_under_a_running_client_is_replaced(kept):
    for number in range(20):
        kept.keep("POST", f"/{number}", bytes(2000))
    spoil_a_page(kept.file)
    seen = []

    def works_again():
        path = f"/after/{len(seen)}"
        seen.append(path)
        assert kept.ask("POST", path, bytes(2000)).status == 200
        done = kept.run("requests", "list", "--json")
        return done.code == 0 and done.raw and done.json[-1]["path"] == path

    eventually(works_again, 30, "a history that takes exchanges")
    assert kept.client.running


def test_a_history_that_is_removed_under_a_running_client_begins_anew(kept):
    kept.keep("POST", "/before")
    shutil.rmtree(kept.file.parent)
    sent = []

    def works_again():
        sent.append(f"/after/{len(sent)}")
        assert kept.ask("POST", sent[-1]).status == 200
        kept.client.delivery(path=sent[-1])
        done = kept.run("requests", "list", "--json")
        return done.code == 0 and sent[-1] in [one["path"] for one in done.json]

    eventually(works_again, 30, "a history that takes exchanges")
    assert stat.S_IMODE(kept.file.parent.stat().st_mode) == 0o700


def test_a_locked_history_can_be_read(kept):
    kept.keep("POST", "/before")
    with contextlib.closing(sqlite3.connect(kept.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert paths(kept.list()) == "/before"
        assert kept.show()["request"]["path"] == "/before"


def test_a_locked_history_can_be_read_without_a_client(kept):
    kept.keep("POST", "/before")
    assert kept.client.stop() == 0
    with contextlib.closing(sqlite3.connect(kept.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert paths(kept.list()) == "/before"


def test_a_command_that_cannot_change_a_locked_history_says_so(kept):
    kept.keep("POST", "/before")
    with contextlib.closing(sqlite3.connect(kept.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "locked" in failed(kept.run("requests", "delete", "--all"), 1)
    assert paths(kept.list()) == "/before"


def test_a_client_that_ends_while_its_history_is_locked_has_reported_all(kept):
    kept.keep("POST", "/before")
    with contextlib.closing(sqlite3.connect(kept.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert kept.ask("POST", "/locked").status == 200
        assert kept.client.stop() == 0
        assert kept.client.deliveries(path="/locked", status=200)
        assert any("not kept" in text and text.startswith("1 ") for text in hints(kept.client))


def test_a_locked_history_is_told_and_catches_up(kept):
    kept.keep("POST", "/before")
    with contextlib.closing(sqlite3.connect(kept.file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for number in range(5):
            assert kept.ask("POST", f"/locked/{number}").status == 200
        assert "locked" in told(kept.client, "locked")
        # They are reported though they are not written.
        kept.client.delivery(path="/locked/4")
        assert kept.ask("POST", "/locked/5").status == 200
        other.execute("ROLLBACK")
    kept.keep("POST", "/after")
    told(kept.client, "kept again")
    wanted = "/before " + " ".join(f"/locked/{n}" for n in range(6)) + " /after"
    eventually(lambda: paths(kept.list()) == wanted, 40, "all of them in the list")


# ── disks ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Confined(Client):
    """A client with a disk of its own in a mount namespace of its own."""

    def __init__(self, world, app, name, setup, title, flags=()):
        folder = world.folder / title
        (folder / "data").mkdir(parents=True)
        words = [HOOKWAY, app.address, "--relay", world.authority(), "--relay-ca", world.relay.ca, "-n", name]
        script = f'{setup} && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", script, "sh", *words, "--json", "--no-inspect", *flags]
        Program.__init__(self, title, words, folder, {"HOOKWAY_TOKEN": world.default_token})
        self.event("ready")
        # As it sees its data.
        self.disk = pathlib.Path(f"/proc/{self.pid}/root{folder}/data")


@pytest.fixture
def confined(world, app, name):
    """`confined(setup)`: a client in its own mount namespace, in which `setup` was run first."""
    trial = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, timeout=10)
    if trial.returncode:
        lacking("mounting a disk wants root and unshare")
    started = []

    def start(setup):
        title = f"confined-{name}-{len(started)}"
        folder = world.folder / title
        client = Confined(world, app, name, setup.format(disk=folder / "data"), title)
        started.append(world._add(client))
        return client

    yield start
    for client in started:
        client.stop()


def test_a_full_disk_is_told_and_catches_up(world, name, confined):
    client = confined("mount -t tmpfs -o size=3m tmpfs {disk}")
    assert world.post("/before", b"x", name).status == 200
    client.delivery(path="/before")
    filler = client.disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    body = random.Random(6).randbytes(50_000)
    for number in range(12):
        assert world.post(f"/full/{number}", body, name).status == 200
    assert "full" in told(client, "full")
    client.delivery(path="/full/11")
    filler.unlink()
    assert world.post("/after", b"x", name).status == 200

    def listed():
        # In the client's namespace.
        words = ["nsenter", f"--mount=/proc/{client.pid}/ns/mnt", HOOKWAY, "requests", "list", "--json"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/", "XDG_DATA_HOME": str(client.errors.parent / "data")}
        done = subprocess.run(words, env=environment, capture_output=True, timeout=30, check=True)
        return [json.loads(line)["path"] for line in done.stdout.splitlines()]

    wanted = ["/before", *(f"/full/{n}" for n in range(12)), "/after"]
    eventually(lambda: listed() == wanted, 40, "all of them in the list")


@pytest.mark.parametrize(
    "setup",
    [
        "mount -t tmpfs tmpfs {disk} && mount -o remount,ro {disk}",
        "mount -t tmpfs tmpfs {disk} && mkdir -m 700 {disk}/hookway && mount -o remount,ro {disk}",
    ],
    ids=["no folder", "an empty folder"],
)
def test_without_a_place_to_write_deliveries_go_on(world, app, name, confined, setup):
    client = confined(setup)
    for number in range(5):
        assert world.post(f"/{number}", b"x", name).status == 200
    assert told(client, "ead-only", "cannot", "denied")
    for number in range(5):
        client.delivery(path=f"/{number}")
    assert len(app.seen) == 5 and len(hints(client)) < 3


def test_a_history_that_may_only_be_read_is_told(desk, app):
    """The disk turns read-only under what is there already."""
    desk.start(app)
    desk.keep("POST", "/before")
    assert desk.client.stop() == 0
    trial = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=False, timeout=10)
    if trial.returncode:
        lacking("mounting a disk wants root and unshare")
    before = {path.name: path.read_bytes() for path in desk.file.parent.iterdir() if path.name == "history.db"}
    title = f"read-only-{desk.name}"
    folder = desk.world.folder / title
    setup = f"mount --bind {desk.data} {folder}/data && mount -o remount,bind,ro {folder}/data"
    client = Confined(desk.world, app, desk.name, setup, title)
    desk.started.append(client)
    assert desk.ask("POST", "/now").status == 200
    client.delivery(path="/now")
    assert told(client, "ead-only", "cannot", "readonly", "denied")
    assert client.stop() == 0
    assert {path.name for path in desk.file.parent.iterdir()} >= set(before)
    assert paths(desk.list()) == "/before"


# ── sealed ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_secret_is_readable_in_the_files(desk, world):
    places = "path query header cookie name value body large reply replybody".split()
    canary = {place: f"canary{place}{random.Random(place).getrandbits(64):016x}" for place in places}
    reply = f"HTTP/1.1 200 OK\r\nSet-Cookie: s={canary['reply']}\r\nContent-Length: {len(canary['replybody'])}\r\n\r\n"
    app = world.app(answer=lambda seen, _: (reply + canary["replybody"]).encode())
    client = desk.start(app)
    fields = [
        ("Authorization", f"Bearer {canary['header']}"),
        ("Cookie", f"sid={canary['cookie']}"),
        (f"X-{canary['name']}", canary["value"]),
    ]
    target = f"/{canary['path']}?token={canary['query']}"
    for _ in range(3):
        desk.keep("POST", target, canary["body"].encode() * 10, fields)
        desk.keep("POST", "/large", canary["large"].encode() * 20_000)
    good(desk.run("replay", "@1"))
    good(desk.run("requests", "list", "--grep", canary["body"]))
    client.process.kill()
    client.exited()
    files = [path for path in desk.folder.rglob("*") if path.is_file()]
    assert {"history.db", "key"} <= {path.name for path in files}
    raw = {path: path.read_bytes().lower() for path in files}
    found = {
        (path.name, place) for path, data in raw.items() for place, text in canary.items() if text.encode() in data
    }
    assert not found
    # They are there all the same.
    shown = good(desk.run("requests", "export", "--jsonl", "--secrets", "--filter", "path:/canary"))
    assert canary["cookie"] in shown.text + unpacked(shown.text)


def test_only_the_owner_may_read_the_files(desk, app):
    old = os.umask(0o002)
    try:
        desk.start(app)
    finally:
        os.umask(old)
    desk.keep("POST", "/", b"x")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in desk.file.parent.iterdir()}
    assert modes.keys() >= {"history.db", "history.db-wal", "key"}
    assert set(modes.values()) == {0o600}, modes
    assert stat.S_IMODE(desk.file.parent.stat().st_mode) == 0o700
