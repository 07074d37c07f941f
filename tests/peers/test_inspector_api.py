"""The inspector's API: who may ask, what it answers, and that hostile bodies and pages get nothing out of it."""

import base64
import concurrent.futures
import contextlib
import gzip
import http.client
import json
import pathlib
import random
import socket
import subprocess
import threading
import time
import zlib
from dataclasses import dataclass

import brotli
import pytest
import zstandard
from other_sites import OTHER_SITES
from test_history import (
    EVERY_BYTE,
    MASK,
    MIB,
    Desk,
    command,
    good,
    held,
    kill,
    own_marks,
    pairs,
    same_request,
    valid_har,
)
from test_semantics import OK, GatedApp

from world import DEADLINE, HOOKWAY, Program, eventually, lacking, request

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
JSON = {"Content-Type": "application/json"}


# ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Answer:
    status: int
    headers: list
    body: bytes

    def header(self, name):
        found = [value for key, value in self.headers if key.lower() == name]
        assert len(found) < 2, f"{name} twice: {found}"
        return found[0] if found else None

    @property
    def json(self):
        assert self.header("content-type").startswith("application/json"), self
        return json.loads(self.body)

    @property
    def reason(self):
        """Why it was refused: all that refuses says so in this form."""
        assert self.status >= 400, self
        return self.json["error"]["message"]


class Inspector:
    """A caller of the inspector of a program. Whatever it is answered has the headers that keep other sites out."""

    def __init__(self, program):
        self.url = program.event("ready")["inspector"]
        authority, _, query = self.url.removeprefix("http://").partition("/?token=")
        self.port = int(authority.rpartition(":")[2])
        self.bearer = query

    def begin(self, method, path, body=None, headers=(), address="127.0.0.1", host=None):
        """The connection on which it was asked, and the answer's head."""
        connection = http.client.HTTPConnection(address, self.port, timeout=DEADLINE)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        # Written by hand: a test may want none, or another one.
        if host != "":
            connection.putheader("Host", (host or "127.0.0.1:PORT").replace("PORT", str(self.port)))
        for name, value in dict(headers).items():
            connection.putheader(name, value.replace("PORT", str(self.port)))
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        reply = connection.getresponse()
        guarded(reply.getheaders())
        return connection, reply

    def ask(self, method, path, body=None, headers=(), **options):
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        connection, reply = self.begin(method, path, body, headers, **options)
        with contextlib.closing(connection):
            return Answer(reply.status, reply.getheaders(), reply.read())

    def get(self, path):
        answer = self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.json

    @property
    def token(self):
        return self.get("/api/status")["token"]

    def change(self, method, path, body=None, headers=JSON):
        """As the page does it."""
        return self.ask(method, path, body, {"Hookway-Token": self.token} | headers)

    def list(self, query=""):
        return self.get(f"/api/exchanges{query}")["exchanges"]

    def events(self, query="", last=None):
        return Events(self, query, last)


def guarded(headers):
    """The headers of `inspector.md` stand on every answer."""
    own = {name.lower(): value for name, value in headers}
    assert own["content-security-policy"] == POLICY
    assert own["x-content-type-options"] == "nosniff"
    assert own["referrer-policy"] == "no-referrer"
    assert own["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in own if name.startswith("access-control")]
    assert own["cache-control"] in ("no-store", "no-cache")


class Events:
    """A stream of server-sent events."""

    def __init__(self, inspector, query, last):
        headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": str(last)})
        self.connection, self.reply = inspector.begin("GET", f"/api/events{query}", headers=headers)
        assert self.reply.status == 200 and self.reply.getheader("content-type") == "text/event-stream"
        self.seen, self._news, self.over = [], threading.Condition(), False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        event = {}
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
            while line := self.reply.readline():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name in ("event", "id", "data"):
                    event[name] = value
                elif line == b"\n" and event:
                    with self._news:
                        self.seen.append((event.get("event"), event.get("id"), json.loads(event["data"])))
                        self._news.notify_all()
                    event = {}
        with self._news:
            self.over = True
            self._news.notify_all()

    def wait(self, condition, seconds=DEADLINE):
        with self._news:
            assert self._news.wait_for(lambda: condition() or self.over, seconds) and not self.over, self.seen
            return condition()

    def event(self, kind, where=lambda data: True, seconds=DEADLINE):
        """The first of this kind for which `where` holds: (id, data)."""
        found = lambda: next(((i, data) for k, i, data in self.seen if k == kind and where(data)), None)  # noqa: E731
        return self.wait(found, seconds)

    def exchanges(self):
        return [(int(number), data) for kind, number, data in list(self.seen) if kind == "exchange"]

    def paths(self):
        return [data["exchange"]["path"] for _, data in self.exchanges()]

    def close(self):
        with contextlib.suppress(OSError):
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        self.connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Inspected(Desk):
    """A desk whose client has an inspector."""

    def open(self, app, *flags, **options):
        self.start(app, *flags, inspect=True, **options)
        self.inspector = Inspector(self.client)
        return self

    def send(self, path="/", body=b"", headers=(), method="POST"):
        """A delivery's id, once it is kept."""
        return self.keep(method, path, body, headers)[1]

    def detail(self, *sent, query="", **more):
        number = self.send(*sent, **more)
        return self.inspector.get(f"/api/exchanges/{number}{query}")


@pytest.fixture
def desk(world, name):
    with contextlib.closing(Inspected(world, name)) as desk:
        yield desk


@pytest.fixture
def inspected(desk, app):
    return desk.open(app)


@pytest.fixture(scope="module")
def live(world):
    """For tests that leave no mark, or only exchanges of their own."""
    with contextlib.closing(Inspected(world, "live")) as desk:
        yield desk.open(world.app())


# ── who may ask ───────────────────────────────────────────────────────────────────────────────────────────────────

READS = [
    "/", "/?filter=x", "/nowhere", "/api/status", "/api/exchanges", "/api/exchanges/ID", "/api/exchanges/ID/curl",
    "/api/exchanges/ID/request/body", "/api/exchanges/ID/attempts/1/reply/body", "/api/diff?a=ID&b=ID",
    "/api/export?format=har", "/api/export?format=jsonl&secrets=true", "/api/events", "/api/openapi.json",
    "/api/nowhere",
]  # fmt: skip
CHANGES = [
    ("DELETE", "/api/exchanges?filter=", None),
    ("DELETE", "/api/exchanges/ID", None),
    ("PUT", "/api/exchanges/ID/pin", b'{"pinned":true}'),
    ("POST", "/api/exchanges/ID/replay", b"{}"),
    ("POST", "/api/exchanges/ID/replay", None),
]

FOREIGN = OTHER_SITES | {
    "another name without a port": {"host": "evil.example"},
    "another port": {"host": "127.0.0.1:1"},
    "no port": {"host": "localhost"},
    "another address": {"host": "192.0.2.77:PORT"},
    "no host": {"host": ""},
    "another port's origin": {"headers": {"Origin": "http://127.0.0.1:1"}},
    "another scheme's origin": {"headers": {"Origin": "https://127.0.0.1:PORT"}},
    "another name's origin": {"headers": {"Origin": "http://localhost:PORT"}},
    "an origin that begins like ours": {"headers": {"Origin": "http://127.0.0.1:PORT.evil.example"}},
    "another site": {"headers": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}},
    "another site by fetch": {"headers": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}},
    "another port of this site": {"headers": {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}},
    "a site nobody knows": {"headers": {"Sec-Fetch-Site": "odd"}},
    "our origin, another site": {"headers": {"Origin": "http://127.0.0.1:PORT", "Sec-Fetch-Site": "cross-site"}},
}


@pytest.fixture(scope="module")
def guardian(world):
    """One with a single exchange, which nobody may change."""
    with contextlib.closing(Inspected(world, "guardian")) as desk:
        desk.open(world.app(answer=lambda seen, _: OK))
        desk.number = desk.send("/only", b"one", [("Authorization", "hush")])
        desk.before = desk.inspector.list(), desk.inspector.token
        yield desk


def unchanged(guardian):
    assert (guardian.inspector.list(), guardian.inspector.token) == guardian.before
    assert len(guardian.app.seen) == 1


def refused(answer, *words):
    assert answer.status == 403, answer
    assert answer.reason and b"hush" not in answer.body and not answer.header("set-cookie")
    assert all(word in answer.reason for word in words)


@pytest.mark.parametrize("how", FOREIGN.values(), ids=FOREIGN)
def test_another_site_reads_nothing_and_changes_nothing(guardian, how):
    inspector = guardian.inspector
    for path in READS:
        for method in ("GET", "HEAD"):
            # A 403 without words is all a HEAD can have.
            answer = inspector.ask(method, path.replace("ID", guardian.number), **how)
            assert answer.status == (400 if answer.status == 400 and how == {"host": ""} else 403), (path, answer)
            assert inspector.token.encode() not in answer.body and b"only" not in answer.body
    for method, path, body in CHANGES:
        headers = {"Hookway-Token": inspector.token} | JSON | how.get("headers", {})
        answer = inspector.ask(method, path.replace("ID", guardian.number), body, **(how | {"headers": headers}))
        refused(answer)
    unchanged(guardian)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_link_from_another_site_leads_to_the_page_and_no_further(guardian, site):
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert guardian.inspector.ask("GET", "/", headers=headers).status == 200
    for path in READS:
        if path.startswith("/api"):
            refused(guardian.inspector.ask("GET", path.replace("ID", guardian.number), headers=headers))
    for method, path, body in CHANGES:
        sent = headers | {"Hookway-Token": guardian.inspector.token} | JSON
        refused(guardian.inspector.ask(method, path.replace("ID", guardian.number), body, sent))
    unchanged(guardian)


WITHOUT_A_RIGHT = {
    "no token": {},
    "an empty token": {"Hookway-Token": ""},
    "a wrong token": {"Hookway-Token": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"},
    "the token in a cookie": {"Cookie": "hookway-inspector=TOKEN; Hookway-Token=TOKEN"},
    "the token as a bearer": {"Authorization": "Bearer TOKEN"},
    "most of the token": {"Hookway-Token": "MOST"},
    "bytes": {"Hookway-Token": "\xff"},
}


@pytest.mark.parametrize("headers", WITHOUT_A_RIGHT.values(), ids=WITHOUT_A_RIGHT)
def test_a_change_without_the_token_is_refused(guardian, headers):
    token = guardian.inspector.token
    headers = {key: value.replace("TOKEN", token).replace("MOST", token[:-1]) for key, value in headers.items()}
    for method, path, body in CHANGES:
        path = path.replace("ID", guardian.number)
        refused(guardian.inspector.ask(method, path, body, headers | JSON), "Hookway-Token")
    unchanged(guardian)


FORMS = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]


@pytest.mark.parametrize("kind", [*FORMS, "application/jsonx", None])
def test_a_body_that_a_form_can_send_is_refused(guardian, kind):
    headers = {"Hookway-Token": guardian.inspector.token} | ({"Content-Type": kind} if kind else {})
    for method, path, body in CHANGES:
        if body:
            path = path.replace("ID", guardian.number)
            refused(guardian.inspector.ask(method, path, body, headers), "application/json")
    chunked = headers | {"Transfer-Encoding": "chunked"}
    connection, reply = guardian.inspector.begin("POST", f"/api/exchanges/{guardian.number}/replay", headers=chunked)
    connection.close()
    assert reply.status == 403
    unchanged(guardian)


@pytest.mark.parametrize("host", ["127.0.0.1:PORT", "localhost:PORT", "[::1]:PORT", "LOCALHOST:PORT"])
def test_ones_own_page_reads_and_changes(inspected, host):
    number = inspected.send("/", b"x")
    page = {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    for headers in ({}, page, {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}):
        for path in READS:
            if path != "/api/events":
                answer = inspected.inspector.ask("GET", path.replace("ID", number), headers=headers, host=host)
                assert answer.status == (404 if "nowhere" in path else 200), answer
    changing = page | {"Hookway-Token": inspected.inspector.token, "Content-Type": "application/json; charset=utf-8"}

    def change(method, path, body=None):
        return inspected.inspector.ask(method, f"/api/exchanges{path}", body, changing, host=host)

    assert change("PUT", f"/{number}/pin", {"pinned": True}).json["pinned"] is True
    assert change("POST", f"/{number}/replay").json["summary"]["replay_of"] == number
    assert change("DELETE", "?filter=").json == {"deleted": 1}
    assert change("DELETE", f"/{number}").status == 204
    assert inspected.inspector.list() == []


def test_each_run_has_a_token_of_its_own(inspected, app):
    first = inspected.inspector.token
    assert inspected.client.stop() == 0
    second = inspected.start(app, inspect=True)
    token = Inspector(second).token
    assert token != first and len(token) >= 32


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "PATCH", "LOCK", "QUERY"])
@pytest.mark.parametrize("right", [False, True], ids=["without token", "with token"])
def test_other_methods_do_nothing(guardian, method, right):
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "hookway-token"}
    headers = asking | ({"Hookway-Token": guardian.inspector.token} if right else {})
    for path in {path for _, path, _ in CHANGES} | set(READS):
        answer = guardian.inspector.ask(method, path.replace("ID", guardian.number), headers=headers)
        assert method == "HEAD" or answer.status >= 400 or not path.startswith("/api"), answer
        assert method != "HEAD" or not answer.body
    unchanged(guardian)


def test_a_head_has_what_a_get_has(guardian):
    path = f"/api/exchanges/{guardian.number}/request/body"
    head, get = (guardian.inspector.ask(method, path) for method in ("HEAD", "GET"))
    assert head.status == get.status == 200 and head.header("content-length") == str(len(get.body))


OTHER_FILES = ["/../api.rs", "/..%2fapi.rs", "/%2e%2e/api.rs", "//etc/passwd", "/../../../../../../etc/passwd"]


@pytest.mark.parametrize("path", [*OTHER_FILES, "/%00", "/a%ff"])
def test_the_page_has_no_other_files(guardian, path):
    answer = guardian.inspector.ask("GET", path)
    assert answer.status in (400, 404) and b"root:" not in answer.body and b"use " not in answer.body
    assert answer.reason


def test_the_page_is_there(guardian):
    answer = guardian.inspector.ask("GET", "/")
    assert answer.header("content-type").startswith("text/html") and b"<script" in answer.body
    assert guardian.inspector.token.encode() not in answer.body


# ── other addresses ───────────────────────────────────────────────────────────────────────────────────────────────


def own_address():
    """This machine's, as others reach it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.200", 9))
        address = probe.getsockname()[0]
        if not address.startswith("127."):
            return address
    return lacking("this machine has no address but loopback")


@pytest.fixture(scope="module")
def opened(world):
    """One that listens to other machines."""
    with contextlib.closing(Inspected(world, "opened")) as desk:
        desk.client = world.client(world.app(), "--inspect", "0.0.0.0:0", name="opened", inspect=True)
        desk.started.append(desk.client)
        desk.inspector = Inspector(desk.client)
        yield desk


@pytest.mark.parametrize("other", [False, True], ids=["loopback", "the machine's address"])
def test_from_afar_the_token_is_wanted(opened, other):
    inspector, address = opened.inspector, own_address() if other else "127.0.0.1"
    assert len(inspector.bearer) >= 32

    def ask(path="/api/status", method="GET", host=f"{address}:PORT", **headers):
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        return inspector.ask(method, path, headers=headers, address=address, host=host)

    nearly = "/?token=", "/?token=AAAAAAAA", f"/?token={inspector.bearer}x", f"/?x=1&token={inspector.bearer}"
    for path in (*READS, *nearly):
        refused(ask(path.replace("ID", "@1")))
    refused(ask(f"/api/status?token={inspector.bearer}"))
    refused(ask(Cookie="hookway-inspector=nonsense"))
    refused(ask(Authorization="Bearer nonsense"))
    refused(ask(Authorization=f"Basic {inspector.bearer}"))
    # A name that was made to lead here is refused to all.
    refused(ask(host="evil.example:PORT", Authorization=f"Bearer {inspector.bearer}"))
    refused(ask(host=f"{address}:1", Authorization=f"Bearer {inspector.bearer}"))
    entered = ask(f"/?token={inspector.bearer}")
    assert entered.status in (302, 303, 307) and entered.header("location") == "/"
    cookie, *rules = entered.header("set-cookie").split("; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(rules)
    status = ask(Cookie=f"a=b; {cookie}; c=d").json
    assert status["token"] and ask("/", Cookie=cookie).status == 200
    assert ask(Authorization=f"Bearer {inspector.bearer}").json["token"] == status["token"]
    # The cookie comes by itself: it changes nothing.
    refused(ask("/api/exchanges?filter=", "DELETE", Cookie=cookie), "Hookway-Token")
    assert ask("/api/exchanges?filter=", "DELETE", Cookie=cookie, Hookway_Token=status["token"]).status == 200


def test_one_address_of_this_machine_wants_the_token_too(world, name):
    address = own_address()
    with contextlib.closing(Inspected(world, name)) as desk:
        client = world.client(world.app(), "--inspect", f"{address}:0", name=name, inspect=True)
        desk.started.append(client)
        inspector = Inspector(client)
        assert address in inspector.url and inspector.bearer
        refused(inspector.ask("GET", "/api/status", address=address, host=f"{address}:PORT"))
        headers = {"Authorization": f"Bearer {inspector.bearer}"}
        answer = inspector.ask("GET", "/api/status", headers=headers, address=address, host=f"{address}:PORT")
        assert answer.status == 200


def test_a_busy_port_leads_to_the_next(world, app, name):
    with socket.create_server(("127.0.0.1", 0)) as busy, contextlib.closing(Inspected(world, name)) as desk:
        port = busy.getsockname()[1]
        client = world.client(app, "--inspect", f"127.0.0.1:{port}", name=name, inspect=True)
        desk.started.append(client)
        inspector = Inspector(client)
        assert port < inspector.port <= port + 20
        assert inspector.get("/api/status")["mode"] == "live"


def test_without_an_inspector_there_is_none(desk, app):
    client = desk.start(app)
    assert "--no-inspect" in client.process.args and client.event("ready")["inspector"] is None


# ── what it tells ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_status_says_how_things_are(desk, app):
    down = "--route", "/stripe=127.0.0.1:1", "--wait-app", "10ms", "--on-offline", "error"
    desk.open(app, *down, "-n", f"{desk.name}-b")
    desk.send("/a")
    desk.send("/stripe")
    eventually(lambda: desk.inspector.get("/api/status")["history"]["count"] == 2, what="both in the status")
    status = desk.inspector.get("/api/status")
    assert (status["mode"], status["session"]["state"], status["session"]["transport"]) == ("live", "up", "quic")
    assert status["session"]["rtt_ms"] is None or status["session"]["rtt_ms"] > 0
    assert {url["endpoint"] for url in status["urls"]} == {desk.name, f"{desk.name}-b"}
    assert status["urls"][0]["url"] == desk.client.event("ready")["url"]
    targets = {target["prefix"]: target["state"] for target in status["targets"]}
    assert targets == {"/stripe": "down", "": "up"}
    history = status["history"]
    assert history["path"] == str(desk.file) and history["bytes"] > 0 and history["problem"] is None
    assert (history["max_count"], history["max_age_s"], history["max_bytes"]) == (10_000, 604_800, 536_870_912)
    assert history["recording"] is True


def test_stored_history_is_served_and_replayed_without_a_tunnel(desk, app):
    desk.open(app)
    number = desk.send("/a?b", EVERY_BYTE, [("X-Id", "1"), ("X-Id", "2")])
    assert desk.client.stop() == 0
    stored = Program("stored", [HOOKWAY, "inspect", "--json", "--inspect", "127.0.0.1:0"], desk.folder)
    desk.started.append(stored)
    ready = stored.event("ready")
    assert ready["url"] is None
    inspector = Inspector(stored)
    status = inspector.get("/api/status")
    assert (status["mode"], status["session"], status["urls"], status["targets"]) == ("stored", None, [], [])
    assert [one["id"] for one in inspector.list()] == [number]
    with inspector.events() as events:
        events.event("hello")
        again = inspector.change("POST", f"/api/exchanges/{number}/replay").json
        assert events.event("exchange")[1]["exchange"]["id"] == again["summary"]["id"]
    same_request(*app.seen)
    assert own_marks(app.seen[1].headers)["hookway-replay-of"] == number
    assert inspector.change("DELETE", "/api/exchanges?filter=").json == {"deleted": 2}
    assert stored.stop() == 0


def test_what_a_killed_client_left_pending_ends_before_the_readers_eyes(desk):
    """Nobody but the next program that opens the history ends it; an inspector that is open already shows it."""
    with GatedApp() as app:
        client = desk.start(app)
        inspector = Inspector(desk.follow("inspect", "--json", "--inspect", "127.0.0.1:0"))
        with inspector.events() as events, held(desk) as (_, number):
            assert events.event("exchange")[1]["exchange"]["state"] == "pending"
            kill(client)
            assert [(one["id"], one["state"]) for one in inspector.list()] == [(number, "pending")]
            good(desk.run("requests"))
            _, told = events.event("exchange", lambda data: data["exchange"]["state"] == "done")
            assert (told["exchange"]["id"], told["exchange"]["error"]) == (number, "interrupted")
        assert [(one["state"], one["error"]) for one in inspector.list()] == [("done", "interrupted")]
        assert inspector.get(f"/api/exchanges/{number}")["attempts"][0]["error"] == "interrupted"


@pytest.fixture(scope="module")
def shelf(world, tmp_path_factory):
    """2 500 exchanges without a tunnel, the newest `/2499`."""
    folder = tmp_path_factory.mktemp("shelf")

    def line(number):
        outcome = {"state": "answered", "status": 500 if number % 10 == 0 else 200}
        method = "PUT" if number % 3 == 0 else "POST"
        kept = {"method": method, "path": f"/{number}?token=hush", "headers": [["x-number", str(number)]]}
        attempt = {"number": 1, "outcome": outcome, "url": "http://localhost:1/"}
        return json.dumps({"request": kept, "attempts": [attempt]})

    lines = "\n".join(map(line, range(2500))).encode()
    assert good(command("requests", "import", "-", "--json", folder=folder, stdin=lines)).json[0]["imported"] == 2500
    program = Program("shelf", [HOOKWAY, "inspect", "--json", "--inspect", "127.0.0.1:0"], folder)
    inspector = Inspector(program)
    inspector.program = program
    yield inspector
    program.stop()


def pages(inspector, query=""):
    """All pages of a list."""
    page = inspector.get(f"/api/exchanges?{query}")
    yield page
    while page["next"] is not None:
        page = inspector.get(f"/api/exchanges?before={page['next']}&{query}")
        yield page


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", list(range(2500))),
        ("limit=7&filter=path:/24", [24, *range(240, 250), *range(2400, 2500)]),
        ("limit=100&filter=status:5xx", list(range(0, 2500, 10))),
        ("limit=100&filter=-status:5xx+method:PUT", [n for n in range(2500) if n % 10 and n % 3 == 0]),
        ("limit=2&filter=header.x-number:249", [249, 1249, 2249, *range(2490, 2500)]),
        ("filter=path:/nowhere", []),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pages_hold_each_once_the_newest_first(shelf, query, wanted):
    all_pages = list(pages(shelf, query))
    found = [one for page in all_pages for one in page["exchanges"]]
    assert [one["path"] for one in found] == [f"/{number}?token={MASK}" for number in reversed(wanted)]
    assert all(one["seq"] > other["seq"] for one, other in zip(found, found[1:], strict=False))
    first, *rest = all_pages
    assert (first["total"], first["matched"]) == (2500, len(wanted))
    assert all((page["matched"], page["total"]) == (None, 2500) for page in rest)


def test_a_page_is_as_long_as_asked_within_reason(shelf):
    lengths = {limit: len(shelf.list(f"?limit={limit}")) for limit in (1, 199, 2000, 2001, 10**12)}
    assert lengths == {1: 1, 199: 199, 2000: 2000, 2001: 2000, 10**12: 2000}
    assert len(shelf.list()) == 200
    assert shelf.list("?before=1") == [] and len(shelf.list(f"?before={2**62}&limit=5")) == 5


@pytest.mark.parametrize("query", ["limit=x", "limit=-1", "before=-1", "before=x", f"before={10**30}", "secrets=maybe"])
def test_a_wrong_parameter_is_400(shelf, query):
    answer = shelf.ask("GET", f"/api/exchanges?{query}")
    assert answer.status == 400 and answer.reason


@pytest.mark.parametrize(
    ("expression", "at", "length"),
    [("nope:x", 0, 5), ("path:/a%20status:abc", 15, 3), ("%F0%9F%A6%80%20is:odd", 6, 3), ("body:%22open", 5, 5)],
)
@pytest.mark.parametrize("path", ["/api/exchanges?", "/api/events?", "/api/export?format=har&"])
def test_a_wrong_filter_is_400_and_says_where(shelf, path, expression, at, length):
    answer = shelf.ask("GET", f"{path}filter={expression}")
    assert answer.status == 400 and answer.reason
    assert (answer.json["error"]["at"], answer.json["error"]["length"]) == (at, length)


def test_a_wrong_filter_deletes_nothing(shelf):
    assert shelf.change("DELETE", "/api/exchanges?filter=nope:x").status == 400
    assert shelf.get("/api/status")["history"]["count"] == 2500


HOSTILE_IDS = [
    "..", ".", "%2e%2e", "%00", "%ff", "A" * 10_000, "req_" + "0" * 10_000, "..%2f..%2fetc%2fpasswd", "%F0%9F%A6%80",
    "@0", "@", "@99999999999999999999", "@9999999", "req_", "%3Cscript%3E", "'%20OR%201=1--", "%25", "a%0d%0aX:y", "-1",
]  # fmt: skip


@pytest.mark.parametrize("number", HOSTILE_IDS, ids=lambda number: number[:24])
def test_what_is_no_id_is_refused_in_json(shelf, number):
    for path in ("", "/curl", "/request/body", "/attempts/1/reply/body"):
        answer = shelf.ask("GET", f"/api/exchanges/{number}{path}")
        assert answer.status in (400, 404, 414) and answer.reason, (path, answer)
    for method, path, body in [("DELETE", "", None), ("PUT", "/pin", {"pinned": True}), ("POST", "/replay", {})]:
        answer = shelf.change(method, f"/api/exchanges/{number}{path}", body)
        assert answer.status in (400, 404, 414) and answer.reason, (path, answer)
    answer = shelf.ask("GET", f"/api/diff?a={number}&b=@1")
    assert answer.status in (400, 404, 414) and answer.reason
    assert shelf.get("/api/status")["history"]["count"] == 2500


@pytest.mark.parametrize("number", ["0", "2", "-1", "x", "99999999999", "%ff"])
def test_what_is_no_attempt_is_refused_in_json(shelf, number):
    answer = shelf.ask("GET", f"/api/exchanges/@1/attempts/{number}/reply/body")
    assert answer.status in (400, 404) and answer.reason


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[]", b'{"pinned":1}', b'{"pinned":null}', b"\xff", b"null"])
def test_a_wrong_pin_is_refused_in_json(shelf, body):
    answer = shelf.change("PUT", "/api/exchanges/@1/pin", body)
    assert 400 <= answer.status < 500 and answer.reason
    assert shelf.list("?limit=1")[0]["pinned"] is False


def test_a_method_that_is_not_there_is_refused_in_json(shelf):
    answer = shelf.change("PATCH", "/api/exchanges/@1")
    assert answer.status == 405 and answer.reason


def test_a_part_of_an_id_is_enough(shelf):
    number = shelf.list("?limit=1")[0]["id"]
    short = f"{number[:8]}%E2%80%A6{number[-6:]}"
    for which in (number, number[-10:], "@1", short):
        assert shelf.get(f"/api/exchanges/{which}")["summary"]["id"] == number
    answer = shelf.ask("GET", f"/api/exchanges/{number[:5]}")
    assert answer.status in (404, 409) and "more than one" in answer.reason


def test_the_description_names_what_is_there(shelf):
    described = shelf.get("/api/openapi.json")
    assert described["openapi"].startswith("3.")
    reads = [path for path, methods in described["paths"].items() if "get" in methods]
    assert {"/api/status", "/api/exchanges", "/api/exchanges/{id}", "/api/diff", "/api/events"} <= set(reads)
    # These want a parameter or a tunnel; what was imported has no reply.
    wanting = {"/api/dead-letters", "/api/diff", "/api/export", "/api/exchanges/@1/attempts/1/reply/body"}
    for path in reads:
        path = path.replace("{id}", "@1").replace("{number}", "1")
        connection, reply = shelf.begin("GET", path)
        connection.close()
        assert reply.status == 200 or path in wanting, path


def test_deleting_takes_what_matches_and_leaves_what_is_pinned(inspected):
    inspector, ids = inspected.inspector, [inspected.send(f"/{number}") for number in range(6)]
    assert inspector.change("PUT", f"/api/exchanges/{ids[1]}/pin", {"pinned": True}).json["pinned"] is True
    assert inspector.change("DELETE", f"/api/exchanges/{ids[0]}").status == 204
    assert inspector.change("DELETE", f"/api/exchanges/{ids[0]}").status == 404
    assert inspector.ask("GET", f"/api/exchanges/{ids[0]}").status == 404
    assert inspector.change("DELETE", "/api/exchanges?filter=path:/3").json == {"deleted": 1}
    assert inspector.change("DELETE", "/api/exchanges?filter=path:/1").json == {"deleted": 0}
    assert [one["path"] for one in inspector.list()] == ["/5", "/4", "/2", "/1"]
    # All are deleted only by who says so.
    for query in ("", "?", "?fliter=path:/1"):
        answer = inspector.change("DELETE", f"/api/exchanges{query}")
        assert answer.status == 400 and answer.reason
    assert inspector.change("DELETE", "/api/exchanges?filter=").json == {"deleted": 3}
    assert [(one["path"], one["pinned"]) for one in inspector.list("?filter=is:pinned")] == [("/1", True)]
    assert inspector.change("PUT", f"/api/exchanges/{ids[1]}/pin", {"pinned": False}).json["pinned"] is False
    assert inspector.change("DELETE", "/api/exchanges?filter=").json == {"deleted": 1}
    page = inspector.get("/api/exchanges")
    assert (page["exchanges"], page["total"], page["matched"], page["next"]) == ([], 0, 0, None)


# ── as it happens ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stream_begins_with_hello_and_the_status(inspected):
    inspected.send("/before")
    with inspected.inspector.events() as events:
        _, hello = events.event("hello")
        _, status = events.event("status")
        page = inspected.inspector.get("/api/exchanges")
        assert (hello["version"], hello["generation"]) == (page["version"], page["generation"])
        assert status["mode"] == "live" and status["token"] == inspected.inspector.token
        inspected.send("/after")
        events.event("exchange")
        assert events.paths() == ["/after"]


def test_what_comes_is_seen_within_a_second(inspected):
    with inspected.inspector.events() as events:
        events.event("hello")
        late = []
        for number in range(5):
            assert inspected.ask("POST", f"/{number}").status == 200
            began = time.monotonic()
            path = f"/{number}"
            events.event("exchange", lambda data: data["exchange"]["path"] == path)  # noqa: B023
            late.append(time.monotonic() - began)
        assert sorted(late)[2] < 1 and max(late) < 3, late


def test_a_gap_is_filled_with_each_exactly_once(inspected):
    with inspected.inspector.events() as events:
        events.event("hello")
        for number in range(5):
            inspected.send(f"/{number}")
        events.wait(lambda: len(events.exchanges()) == 5)
        last = events.exchanges()[-1][0]
    for number in range(5, 40):
        inspected.send(f"/{number}")
    with inspected.inspector.events(last=last) as events:
        events.event("exchange", lambda data: data["exchange"]["path"] == "/39")
        inspected.send("/40")
        events.event("exchange", lambda data: data["exchange"]["path"] == "/40")
        assert events.paths() == [f"/{number}" for number in range(5, 41)]
        versions = [number for number, _ in events.exchanges()]
        assert versions == sorted(set(versions)) and versions[0] > last
        assert not [kind for kind, _, _ in events.seen if kind == "reset"]
    with inspected.inspector.events(f"?after={versions[-3]}") as events:
        events.wait(lambda: len(events.exchanges()) == 2)
        assert events.paths() == ["/39", "/40"]


@pytest.mark.parametrize("last", [2**62, 0], ids=["of another history", "too far back"])
def test_a_gap_that_cannot_be_filled_is_a_reset(shelf, last):
    with shelf.events(last=last) as events:
        events.event("reset")
        assert events.exchanges() == []


@pytest.mark.parametrize("last", ["x", "-1", "", "1e9"])
def test_a_last_event_that_is_none_begins_anew(shelf, last):
    with shelf.events(last=last) as events:
        events.event("status")
        assert [kind for kind, _, _ in events.seen] == ["hello", "status"]


def test_changes_of_another_program_are_seen(inspected):
    number = inspected.send("/a")
    with inspected.inspector.events() as events:
        events.event("hello")
        good(inspected.run("replay", number))
        _, data = events.event("exchange", lambda data: data["exchange"]["replay_of"] == number)
        assert data["exchange"]["status"] == 200
        assert inspected.inspector.list()[0]["id"] == data["exchange"]["id"]
        good(inspected.run("requests", "delete", number))
        events.event("reset")
        assert len(inspected.inspector.list()) == 1


def test_a_delete_resets_and_a_pin_is_a_change(inspected):
    ids = [inspected.send(f"/{number}") for number in range(3)]
    with inspected.inspector.events() as events:
        generation = events.event("hello")[1]["generation"]
        inspected.inspector.change("PUT", f"/api/exchanges/{ids[0]}/pin", {"pinned": True})
        _, data = events.event("exchange")
        assert data["exchange"]["id"] == ids[0] and data["exchange"]["pinned"] is True
        inspected.inspector.change("DELETE", f"/api/exchanges/{ids[1]}")
        events.event("reset")
        assert inspected.inspector.get("/api/exchanges")["generation"] > generation
        # And on from there.
        number = inspected.send("/after")
        events.event("exchange", lambda data: data["exchange"]["id"] == number)


def test_the_filter_of_a_stream_says_what_matches(inspected):
    with inspected.inspector.events("?filter=body:wanted+method:POST") as events:
        events.event("hello")
        inspected.send("/1", b"is wanted")
        inspected.send("/2", b"is not")
        inspected.send("/3", b"wanted", method="PUT")
        events.wait(lambda: len(events.exchanges()) == 3)
        assert [data["matches"] for _, data in events.exchanges()] == [True, False, False]


def test_a_slow_delivery_is_shown_twice_the_second_time_done(desk):
    with GatedApp() as app:
        desk.open(app)
        with desk.inspector.events() as events, desk.world.wire(desk.name) as wire:
            events.event("hello")
            wire.send(request("POST", "/slow", b"x", host=desk.host))
            first, pending = events.event("exchange", seconds=10)
            assert pending["exchange"]["state"] == "pending"
            app.gate.set()
            second, done = events.event("exchange", lambda data: data["exchange"]["state"] == "done")
            assert wire.reply("POST").status == 200
            assert done["exchange"]["id"] == pending["exchange"]["id"] and int(second) > int(first)


def test_the_status_comes_when_the_tunnel_goes(desk, app, new_world):
    world = new_world()
    with contextlib.closing(Inspected(world, desk.name)) as own:
        own.open(app)
        with own.inspector.events() as events:
            events.event("status", lambda status: status["session"]["state"] == "up")
            world.relay.stop()
            _, status = events.event("status", lambda status: status["session"]["state"] == "down")
            assert status["session"]["reason"] and status["session"]["transport"] is None


def sockets(program):
    """How many a program has open."""
    count = 0
    for descriptor in pathlib.Path(f"/proc/{program.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(descriptor.readlink()).startswith("socket:")
    return count


def test_streams_that_are_dropped_leave_nothing(inspected):
    inspected.send("/warm")
    inspected.inspector.list()
    before = sockets(inspected.client)
    for _ in range(2):
        streams = [inspected.inspector.events() for _ in range(25)]
        for stream in streams:
            stream.event("hello")
        inspected.send("/all")
        for stream in streams:
            stream.event("exchange")
            stream.close()
    eventually(lambda: sockets(inspected.client) <= before, 25, "the connections gone")
    assert inspected.inspector.list()[0]["path"] == "/all"
    assert inspected.ask("POST", "/on").status == 200


def test_a_stream_that_nobody_reads_holds_nothing_up(inspected):
    connection, _ = inspected.inspector.begin("GET", "/api/events")
    with contextlib.closing(connection), inspected.world.wire(inspected.name) as wire:
        for number in range(300):
            asked = request("POST", f"/{number}/" + "x" * 3000, b"", host=inspected.host)
            assert wire.ask(asked).status == 200
        number = inspected.send("/last")
        assert inspected.inspector.get(f"/api/exchanges/{number}")["summary"]["status"] == 200


# ── bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
DATA = {"id": "evt_1", "live": True}
PLAIN = json.dumps(DATA).encode()
PARTS = (
    b"--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n"
    b"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.json\"\r\n"
    b"Content-Type: application/json\r\n\r\n{}\r\n--B--\r\n"
)  # fmt: skip

BIG = b"[12345678901234567890.10]"
XML = b"<?xml version='1.0'?><a>&lt;</a>"
PNG_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
BODIES = {
    "empty": ("application/json", None, b"", {"kind": "empty", "size": 0, "text": None}),
    "json": ("application/json", None, PLAIN, {"kind": "json", "text": PLAIN.decode(), "json_error": None}),
    "json by its look": (None, None, PLAIN, {"kind": "json", "text": PLAIN.decode()}),
    "json of big numbers": ("application/json", None, BIG, {"kind": "json", "text": BIG.decode()}),
    "form": (
        "application/x-www-form-urlencoded", None, b"a=1&a=%C3%A9+x&b&=c",
        {
            "kind": "form",
            "fields": [
                {"name": "a", "value": "1"}, {"name": "a", "value": "é x"}, {"name": "b", "value": ""},
                {"name": "", "value": "c"},
            ],
        },
    ),
    "xml": ("text/xml", None, XML, {"kind": "xml", "text": XML.decode()}),
    "latin-1": ("text/plain; charset=iso-8859-1", None, b"caf\xe9", {"kind": "text", "text": "café"}),
    "utf-8": ("text/plain", None, "caf\u00e9 🦀".encode(), {"text": "café 🦀", "charset": "utf-8"}),
    "png": ("image/png", None, PNG, {"kind": "image", "image": PNG_URL}),
    "binary": ("application/octet-stream", None, EVERY_BYTE, {"kind": "binary", "text": None}),
    "a png that is html": ("image/png", None, b"<script>alert(1)</script>", {"kind": "text", "image": None}),
    "gzip": ("application/json", "gzip", gzip.compress(PLAIN), {"text": PLAIN.decode(), "encodings": ["gzip"]}),
    "deflate": ("application/json", "deflate", zlib.compress(PLAIN), {"kind": "json", "text": PLAIN.decode()}),
    "br": ("application/json", "br", brotli.compress(PLAIN), {"text": PLAIN.decode(), "encodings": ["br"]}),
    "zstd": ("application/json", "zstd", zstandard.compress(PLAIN), {"kind": "json", "text": PLAIN.decode()}),
    "gzip in br": (
        "application/json", "gzip, br", brotli.compress(gzip.compress(PLAIN)),
        {"text": PLAIN.decode(), "encodings": ["gzip", "br"], "inflated_size": len(PLAIN)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "coding", "body", "wanted"), BODIES.values(), ids=BODIES)
def test_a_body_is_shown_as_what_it_is(live, kind, coding, body, wanted):
    headers = [("Content-Type", kind)] * bool(kind) + [("Content-Encoding", coding)] * bool(coding)
    shown = live.detail("/", body, headers)["request"]["body"]
    assert {key: shown[key] for key in wanted} == wanted
    assert shown["size"] == shown["kept"] == len(body) and shown["content_type"] == kind
    assert shown["encoding_error"] is None and shown["inflated_cut"] is False
    if not coding:
        assert base64.b64decode(shown["base64"]) == body and shown["inflated_size"] is None
    # What the app had is never touched.
    assert live.app.seen[-1].body == body


@pytest.mark.parametrize(
    ("text", "line", "column", "offset"),
    [
        ('{"a": 1,\n "b": }', 2, 7, 15),
        ('{"🦀": x}', 1, 8, 7),
        ('{"a": 1', 1, 8, 7),
        ("[1,\r\n2,]", 2, 3, 7),
        ("{'a': 1}", 1, 2, 1),
    ],
)
def test_json_that_is_wrong_says_where(live, text, line, column, offset):
    shown = live.detail("/", text.encode(), [("Content-Type", "application/json")])["request"]["body"]
    assert (shown["kind"], shown["text"]) == ("json", text)
    error = shown["json_error"]
    assert (error["line"], error["column"], error["offset"]) == (line, column, offset) and error["message"]


def test_the_parts_of_a_multipart_body_are_shown(live):
    fields = [("Content-Type", "multipart/form-data; boundary=B")]
    parts = live.detail("/", PARTS, fields)["request"]["body"]["parts"]
    assert [(part["name"], part["file_name"]) for part in parts] == [("a", None), ("file", "x.json")]
    assert parts[0]["body"]["text"] == "1" and parts[1]["body"]["kind"] == "json"


@pytest.mark.parametrize("body", [b"", b"--B", b"--B\r\n\r\n", b"--B--", b"--B\r\n" * 5000, b"\r\n--B\r\nx" * 3000])
def test_odd_multipart_bodies_are_shown_somehow(live, body):
    shown = live.detail("/", body, [("Content-Type", "multipart/form-data; boundary=B")])
    assert shown["request"]["body"]["size"] == len(body)


@pytest.mark.parametrize(
    ("coding", "body"),
    [("gzip", PLAIN), ("br", b"\xff" * 9), ("zstd", PLAIN), ("snappy", PLAIN), ("gzip", gzip.compress(PLAIN)[:-9]),
     (", ".join(["gzip"] * 50), PLAIN)],
    ids=["gzip", "br", "zstd", "unknown", "cut gzip", "fifty"],
)  # fmt: skip
def test_a_coding_that_lies_is_told_and_the_bytes_are_there(live, coding, body):
    headers = [("Content-Type", "application/json"), ("Content-Encoding", coding)]
    shown = live.detail("/", body, headers)["request"]["body"]
    assert shown["encoding_error"]
    number = live.inspector.list("?limit=1")[0]["id"]
    assert live.inspector.ask("GET", f"/api/exchanges/{number}/request/body").body == body


def gzips():
    """1 GiB of zeros in a few kB: many streams in a row, and that once more."""
    return gzip.compress(gzip.compress(bytes(16 * MIB)) * 64)


def zstds():
    return zstandard.compress(bytes(64 * MIB)) * 16


def brotlis():
    packer = brotli.Compressor(quality=1, lgwin=24)
    return b"".join(packer.process(bytes(16 * MIB)) for _ in range(16)) + packer.finish()


BOMBS = {"gzip, gzip": gzips, "zstd": zstds, "br": brotlis}


def peak(program, reset=False):
    """The most memory that it held since the last reset."""
    if reset:
        pathlib.Path(f"/proc/{program.pid}/clear_refs").write_text("5")
    status = pathlib.Path(f"/proc/{program.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "multipart/form-data; boundary=B"])
@pytest.mark.parametrize("coding", BOMBS)
def test_a_bomb_does_not_go_off(live, coding, kind):
    body = BOMBS[coding]()
    assert len(body) < MIB
    number = live.send("/bomb", body, [("Content-Type", kind), ("Content-Encoding", coding)])
    before = peak(live.client, reset=True)
    for path in ("", "/request/body", "/curl"):
        answer = live.inspector.ask("GET", f"/api/exchanges/{number}{path}")
        assert answer.status == 200 and len(answer.body) < 16 * MIB
        if not path:
            shown = answer.json["request"]["body"]
            assert shown["inflated_cut"] is True and shown["inflated_size"] <= 10 * MIB
    for path in (f"/api/diff?a={number}&b={number}", f"/api/export?format=har&ids={number}"):
        assert live.inspector.ask("GET", path).status == 200
    assert peak(live.client) - before < 64 * MIB
    assert live.app.seen[-1].body == body


def test_json_that_is_very_deep_does_no_harm(live):
    body = b"[" * 500_000
    number = live.send("/deep", body, [("Content-Type", "application/json")])
    other = live.send("/deep", body + b"]", [("Content-Type", "application/json")])
    assert live.inspector.get(f"/api/exchanges/{number}")["request"]["body"]["size"] == len(body)
    assert live.inspector.get(f"/api/diff?a={number}&b={other}")["same"] is False
    assert good(live.run("requests", "show", number)).raw


def test_a_large_body_is_shown_to_its_beginning(live):
    body = random.Random(7).randbytes(2 * MIB)
    shown = live.detail("/", body)
    kept = shown["request"]["body"]
    assert (kept["size"], kept["kept"]) == (2 * MIB, MIB)
    assert base64.b64decode(kept["base64"]) == body[: 256 * 1024] and kept["base64_cut"] is True
    assert shown["can_replay"] is False and shown["why_not"]
    number = shown["summary"]["id"]
    assert live.inspector.ask("GET", f"/api/exchanges/{number}/request/body").body == body[:MIB]
    answer = live.inspector.change("POST", f"/api/exchanges/{number}/replay")
    assert answer.status == 409 and "not kept whole" in answer.reason
    # With another body there is nothing in the way.
    answer = live.inspector.change("POST", f"/api/exchanges/{number}/replay", {"body": {"text": "small"}})
    assert answer.status == 200 and live.app.seen[-1].body == b"small"


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/javascript", None])
def test_a_download_is_bytes_to_be_saved(desk, world, kind):
    body = b"<script>alert(1)</script>\xff\x00"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind or 'text/html'}\r\nContent-Length: {len(body)}\r\n\r\n"
    desk.open(world.app(answer=lambda seen, _: head.encode() + body))
    number = desk.send("/", body, [("Content-Type", kind)] * bool(kind))
    for path in ("request/body", "attempts/1/reply/body"):
        answer = desk.inspector.ask("GET", f"/api/exchanges/{number}/{path}")
        assert answer.body == body and answer.header("content-type") == "application/octet-stream"
        assert answer.header("content-disposition").startswith("attachment")


SIGNED = [
    ("Authorization", "Bearer hush-1"),
    ("Cookie", "a=hush-2"),
    ("Cookie", "b=hush-3"),
    ("X-Hub-Signature-256", "sha256=hush-4"),
    ("X-Plain", "plain"),
]


def test_secrets_are_masked_until_somebody_asks(desk, world):
    reply = b"HTTP/1.1 200 OK\r\nSet-Cookie: s=hush-5\r\nX-Plain: plain\r\nContent-Length: 0\r\n\r\n"
    desk.open(world.app(answer=lambda seen, _: reply))
    number = desk.send("/a?x=plain&token=hush-6&api_key=hush-7", b"x", SIGNED)
    path = f"/api/exchanges/{number}"
    shown = desk.inspector.get(path)
    rows = shown["request"]["headers"]
    masked = [(row["name"], row["value"]) for row in rows if row["secret"]]
    assert masked == [("authorization", MASK), ("cookie", MASK), ("cookie", MASK), ("x-hub-signature-256", MASK)]
    assert ("x-plain", "plain") in pairs(rows) and shown["summary"]["path"] == f"/a?x=plain&token={MASK}&api_key={MASK}"
    assert pairs(shown["attempts"][0]["reply"]["headers"], "set-cookie") == [("set-cookie", MASK)]
    secrets = [f"hush-{number}" for number in range(1, 8)]
    for hidden in (path, "/api/exchanges", f"{path}/curl", "/api/export?format=har", "/api/export?format=jsonl"):
        assert not any(secret.encode() in desk.inspector.ask("GET", hidden).body for secret in secrets), hidden
    assert b"hush" not in desk.inspector.ask("GET", f"/api/diff?a={number}&b={number}").body
    # A request's command knows nothing of its answer.
    asked = {path: secrets, f"{path}/curl": [*secrets[:4], *secrets[5:]], "/api/export": secrets}
    for shown, wanted in asked.items():
        query = "?format=har&secrets=true" if shown == "/api/export" else "?secrets=true"
        text = desk.inspector.ask("GET", shown + query).body.decode()
        assert all(secret in text for secret in wanted), shown


def test_exports_are_attachments_of_what_was_chosen(inspected):
    ids = [inspected.send(f"/{number}", b"x") for number in range(4)]
    answer = inspected.inspector.ask("GET", f"/api/export?format=har&ids={ids[0]},{ids[2]}")
    assert answer.header("content-disposition").startswith("attachment")
    har = json.loads(answer.body)
    valid_har(har)
    assert [entry["_id"] for entry in har["log"]["entries"]] == [ids[0], ids[2]]
    answer = inspected.inspector.ask("GET", "/api/export?format=jsonl&filter=path:/3&secrets=true")
    assert answer.header("content-disposition").startswith("attachment")
    assert [json.loads(line)["id"] for line in answer.body.splitlines()] == [ids[3]]
    assert inspected.inspector.ask("GET", "/api/export").status == 400
    assert inspected.inspector.ask("GET", "/api/export?format=pdf").reason


def test_an_export_of_all_is_whole(shelf):
    lines = shelf.ask("GET", "/api/export?format=jsonl&secrets=true").body.splitlines()
    paths = [json.loads(line)["request"]["path"] for line in lines]
    assert paths == [f"/{number}?token=hush" for number in range(2500)]


def test_an_export_that_is_broken_off_holds_nothing_up(shelf):
    for _ in range(12):
        connection, _reply = shelf.begin("GET", "/api/export?format=har")
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        connection.close()
    assert len(shelf.list("?limit=3")) == 3


def test_a_diff_has_the_shape_that_was_promised(live):
    one = live.send("/a", b'{"id":1,"same":true}', [("X-A", "1")])
    other = live.send("/b", b'{"id":2,"same":true}', [("X-B", "1")])
    diff = live.inspector.get(f"/api/diff?a={one}&b={other}")
    assert (diff["a"]["id"], diff["b"]["id"], diff["same"]) == (one, other, False)
    changes = {
        (part["name"], change.get("path")): (change["op"], change.get("a"), change.get("b"))
        for part in diff["sections"]
        for change in part["changes"]
    }
    assert changes["request", "path"] == ("change", "/a", "/b")
    assert changes["request body", "$.id"] == ("change", "1", "2")
    assert changes["request headers", "x-a"] == ("remove", "1", None)
    assert changes["request headers", "x-b"] == ("add", None, "1")
    assert live.inspector.get(f"/api/diff?a={one}&b={one}")["same"] is True


# ── edit and resend ───────────────────────────────────────────────────────────────────────────────────────────────

BAD_EDITS = {
    "a method with a blank": {"method": "POST X"},
    "no method": {"method": ""},
    "a method with a line end": {"method": "POST\r\nX: y"},
    "a path without a slash": {"path": "a/b"},
    "no path": {"path": ""},
    "a whole URL": {"path": "http://evil.example/"},
    "a path with a blank": {"path": "/a b"},
    "a path with a line end": {"path": "/a\r\nX: y"},
    "a path with NUL": {"path": "/a\0"},
    "a header with a line end": {"headers": [{"name": "x", "value": "a\r\nX: y"}]},
    "a header with NUL": {"headers": [{"name": "x", "value": "a\0"}]},
    "a header's name with a blank": {"headers": [{"name": "x y", "value": "a"}]},
    "a header's name with a line end": {"headers": [{"name": "x\r\n", "value": "a"}, {"name": "x\r\ny", "value": "a"}]},
    "no header's name": {"headers": [{"name": "", "value": "a"}]},
    "a header without a value": {"headers": [{"name": "a"}]},
    "headers that are a map": {"headers": {"a": "b"}},
    "a body that is no base64": {"body": {"base64": "###"}},
    "a body of two kinds": {"body": {"text": "a", "base64": "YQ=="}},
    "a body of no kind": {"body": {}},
    "a body that is a text": {"body": "a"},
    "a field nobody knows": {"pathe": "/"},
    "another scheme": {"target": "ftp://127.0.0.1/"},
    "a file": {"target": "file:///etc/passwd"},
    "a cloud's metadata": {"target": "http://169.254.169.254/"},
    "a cloud's metadata by its name": {"target": "http://metadata.google.internal/"},
    "a cloud's metadata in IPv6": {"target": "http://[fd00:ec2::254]/"},
    "a cloud's metadata in disguise": {"target": "http://[::ffff:169.254.169.254]/"},
    "a target with a user": {"target": "http://me@127.0.0.1:1/"},
    "no target": {"target": ""},
    "a resign that is none": {"resign": "yes"},
}


@pytest.fixture(scope="module")
def editable(world):
    with contextlib.closing(Inspected(world, "editable")) as desk:
        desk.open(world.app())
        desk.number = desk.send("/a?b=1", b"hello", [("X-Id", "1"), ("X-Id", "2"), ("X-Old", "o")])
        yield desk


HOST = ("host", "a.example")


def edit(desk, edits):
    return desk.inspector.change("POST", f"/api/exchanges/{desk.number}/replay", edits)


@pytest.mark.parametrize("edits", BAD_EDITS.values(), ids=BAD_EDITS)
def test_a_bad_edit_is_400_and_sends_nothing(editable, edits):
    before = len(editable.app.seen), len(editable.inspector.list())
    answer = edit(editable, edits)
    assert answer.status == 400 and answer.reason
    assert (len(editable.app.seen), len(editable.inspector.list())) == before


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"a"', b"\xff", b'{"method":"PUT"}x', b"[" * 100_000])
def test_an_edit_that_is_no_object_is_400(editable, body):
    before = len(editable.app.seen)
    answer = edit(editable, body)
    assert answer.status == 400 and answer.reason and len(editable.app.seen) == before


def test_an_edit_that_is_too_large_is_refused_in_json(editable):
    before = len(editable.app.seen)
    answer = edit(editable, b'{"body":{"text":"' + b"x" * (9 * MIB) + b'"}}')
    assert answer.status == 413 and answer.reason and len(editable.app.seen) == before


def test_an_edit_of_1_mib_of_bytes_is_sent(editable):
    body = random.Random(8).randbytes(MIB)
    assert edit(editable, {"body": {"base64": base64.b64encode(body).decode()}}).status == 200
    assert editable.app.seen[-1].body == body


def test_an_edited_request_is_sent_and_its_detail_answered(editable, world):
    other = world.app(name="other")
    edits = {
        "method": "PUT",
        "path": "/edited?x=%zz",
        "headers": [{"name": name, "value": value} for name, value in (("X-New", "1"), ("X-New", "2"), HOST)],
        "body": {"base64": base64.b64encode(EVERY_BYTE).decode()},
        "target": f"http://{other.address}/prefix",
        "resign": False,
    }
    answer = edit(editable, edits)
    assert answer.status == 200
    (seen,) = other.seen
    assert (seen.method, seen.target, seen.body) == ("PUT", "/prefix/edited?x=%zz", EVERY_BYTE)
    assert seen.all("x-new") == ["1", "2"] and seen.all("host") == ["a.example"]
    assert seen.all("x-id") == [] and seen.all("content-length") == [str(len(EVERY_BYTE))]
    marks = own_marks(seen.headers)
    summary = answer.json["summary"]
    assert (summary["replay_of"], summary["edited"], summary["state"]) == (editable.number, True, "done")
    assert marks == {"hookway-delivery": summary["id"], "hookway-replay-of": editable.number}
    assert answer.json["attempts"][0]["reply"]["status"] == 200
    # The original is as it was.
    assert editable.inspector.get(f"/api/exchanges/{editable.number}")["request"]["body"]["text"] == "hello"


@pytest.mark.parametrize(
    "fields",
    [
        [HOST],
        [HOST, ("content-length", "999")],
        [HOST, ("Content-Length", "1"), ("content-length", "2")],
        [HOST, ("transfer-encoding", "chunked")],
        [HOST, ("transfer-encoding", "chunked"), ("content-length", "3")],
        [HOST, ("connection", "x-a, close"), ("x-a", "1")],
        [HOST, ("hookway-possible-duplicate", "1"), ("hookway-replay-of", "req_x")],
        [HOST, ("host", "b.example")],
        [HOST, ("upgrade", "websocket"), ("connection", "upgrade")],
        [HOST, ("expect", "100-continue")],
        [HOST, ("te", "trailers")],
        [],
    ],
    ids=str,
)
def test_an_edit_sends_one_request_whatever_its_fields_say(editable, fields):
    editable.app.clear()
    answer = edit(editable, {"headers": [{"name": k, "value": v} for k, v in fields], "body": {"text": "four"}})
    assert answer.status in (200, 400), answer
    assert not editable.app.unclean
    for seen in editable.app.seen:
        assert seen.body == b"four" and seen.all("content-length") == ["4"]
        assert seen.header("transfer-encoding") is None and seen.header("hookway-possible-duplicate") is None


def test_two_edits_at_once_are_two_requests(editable):
    editable.app.clear()
    token = editable.inspector.token

    def replay(number):
        body = {"body": {"text": f"body {number}"}, "path": f"/{number}"}
        headers = {"Hookway-Token": token} | JSON
        return editable.inspector.ask("POST", f"/api/exchanges/{editable.number}/replay", body, headers)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(replay, range(16)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["summary"]["id"] for answer in answers}) == 16
    assert [answer.json["request"]["body"]["text"] for answer in answers] == [f"body {number}" for number in range(16)]
    assert sorted(seen.body for seen in editable.app.seen) == sorted(b"body %d" % number for number in range(16))


def test_a_replay_goes_on_though_the_page_has_gone(desk):
    with GatedApp() as app:
        app.gate.set()
        desk.open(app)
        number = desk.send("/a")
        app.gate.clear()
        headers = {"Hookway-Token": desk.inspector.token} | JSON
        connection = http.client.HTTPConnection("127.0.0.1", desk.inspector.port, timeout=DEADLINE)
        connection.request("POST", f"/api/exchanges/{number}/replay", b"{}", headers)
        eventually(lambda: len(app.seen) == 2, what="the replay at the app")
        connection.close()
        app.gate.set()
        again = eventually(lambda: desk.inspector.list("?filter=is:replay"), what="the replay in the list")
        assert again[0]["status"] == 200


def test_a_replay_to_an_app_that_is_down_says_so(editable):
    answer = edit(editable, {"target": "http://127.0.0.1:1"})
    assert answer.status == 200
    assert (answer.json["summary"]["status"], answer.json["summary"]["error"]) == (None, "refused")


def test_the_curl_command_of_the_api_sends_the_same_again(desk, app, tmp_path):
    desk.open(app)
    number = desk.send("/a?b='c'", b'{"it": "isn\'t"}', [("Content-Type", "application/json"), ("X-Id", "1")])
    answer = desk.inspector.ask("GET", f"/api/exchanges/{number}/curl?secrets=true")
    assert answer.header("content-type").startswith("text/plain")
    subprocess.run(["sh", "-c", answer.body.decode()], cwd=tmp_path, capture_output=True, timeout=20, check=True)
    same_request(*app.seen)


def test_the_inspector_of_a_client_without_a_store_is_empty(desk, app):
    desk.open(app, "--no-store")
    assert desk.ask("POST", "/").status == 200
    page = desk.inspector.get("/api/exchanges")
    assert (page["exchanges"], page["total"], page["next"]) == ([], 0, None)
    status = desk.inspector.get("/api/status")
    assert status["history"]["recording"] is False and status["history"]["path"] is None
    for path in ("/api/exchanges/@1", "/api/export?format=har", "/api/diff?a=@1&b=@2"):
        assert desk.inspector.ask("GET", path).reason
    assert desk.inspector.change("DELETE", "/api/exchanges?filter=").status in (200, 404)
    with desk.inspector.events() as events:
        events.event("status")
