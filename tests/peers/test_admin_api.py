"""The relay's admin API: who may ask, what changes, what the audit log says of both, and what it shows to nobody."""

import base64
import contextlib
import http.client
import itertools
import json
import re
import signal
import socket
import sqlite3
import threading
import time
import urllib.parse
from dataclasses import dataclass

import pytest
from hyperframe.frame import GoAwayFrame

from other_sites import OTHER_SITES
from test_domains import Domains, Moody, certificates
from test_h2_hostile import h2, request_fields
from world import DEADLINE, DOMAIN, World, eventually, request

NOWHERE = "127.0.0.1:9"  # an app that is never there
HELD_BACK = 10  # wrong tokens of one address before it is not heard for a while
NOTED = 60  # requests without a right token that the audit log has of a minute
CUT_IN = 5.0  # seconds in which a revoked token's sessions are over
JSON = {"Content-Type": "application/json"}

_numbers = itertools.count(256)


def elsewhere():
    """A source address that nobody has used: wrong tokens are counted by address."""
    number = next(_numbers)
    return f"127.1.{number >> 8}.{number & 255}"


# ── what asks ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Answer:
    status: int
    headers: list
    body: bytes

    def header(self, name):
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """Why not; nothing else stands in such an answer."""
        assert self.header("content-type") == "application/json" and list(self.json) == ["error"], self
        assert len(self.json["error"]) > 10, self
        return self.json["error"]


class Api:
    """A relay's admin API, asked with a token."""

    def __init__(self, relay, token=None):
        self.relay, self.token = relay, token

    def ask(self, method, path, body=None, headers=None, token=..., source=None, host=None):
        """An answer; `token` as it is, other fields of the request in `headers`, from another address `source`."""
        token = self.token if token is ... else token
        fields = {"Authorization": f"Bearer {token}"} if token else {}
        if body is not None and not isinstance(body, bytes):
            body, fields = json.dumps(body).encode(), fields | JSON
        fields |= headers or {}
        connection = http.client.HTTPConnection(
            *self.relay.admin, timeout=DEADLINE, source_address=(source or "127.0.0.1", 0)
        )
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", (host or "127.0.0.1:PORT").replace("PORT", str(self.relay.admin[1])))
            for name, value in fields.items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            reply = connection.getresponse()
            return Answer(reply.status, reply.getheaders(), reply.read())

    def get(self, path, **query):
        query = "?" + urllib.parse.urlencode(query) if query else ""
        answer = self.ask("GET", f"/api{path}{query}")
        assert answer.status == 200, answer
        return answer.json

    def do(self, method, path, body=None, status=200):
        answer = self.ask(method, f"/api{path}", body)
        assert answer.status == status, answer
        return answer.json

    def walk(self, path, key="after", **query):
        """All items of a list, page by page."""
        items, page = [], None
        while page is None or page["next"] is not None:
            page = self.get(path, **query, **({key: page["next"]} if page else {}))
            items += page["items"]
            assert len(items) < 5000
        return items

    def audit(self, after=0):
        """The audit log's lines after that one, oldest first."""
        return [line for line in reversed(self.get("/audit", limit=500)["items"]) if line["seq"] > after]

    def last(self):
        return max((line["seq"] for line in self.audit()), default=0)


def noted(line):
    return tuple(line[key] for key in ("actor", "via", "action", "target", "refused"))


def kept(relay):
    """Everything that the relay keeps, but what the audit log says."""
    with contextlib.closing(sqlite3.connect(f"file:{relay.data}/relay.db?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert {"token", "endpoint", "delivery", "domain", "held", "audit"} <= set(tables)
        skipped = ("audit", "sqlite_sequence", "listener")  # when a listener was seen last is noted now and then
        return {
            name: sorted(map(repr, database.execute(f'SELECT * FROM "{name}"')))
            for name in tables
            if name not in skipped
        }


@contextlib.contextmanager
def unchanged(state):
    """What is done in the block changes nothing of that."""
    before = state()
    yield
    after = state()
    rows = lambda state: {
        (name, row) for name, rows in (state if isinstance(state, dict) else state[0]).items() for row in rows
    }  # noqa: E731
    changed = rows(before) ^ rows(after)
    assert not changed
    assert after == before


def kept_bytes(relay):
    """The same as bytes: what lies on the disk."""
    return b"".join(path.read_bytes() for path in sorted(relay.data.rglob("*")) if path.is_file())


class Office:
    """A relay with something of everything that can be changed, and tokens of all kinds."""

    def __init__(self, world, domains):
        self.world, self.relay = world, world.relay
        make = lambda name, *flags: world.relay.command("token", "create", "--name", name, *flags)[-1]  # noqa: E731
        self.made = {
            "admin": make("root", "--scope", "admin"),
            "read": make("looker", "--scope", "read"),
            "client": make("developer"),
            "expired": make("late", "--scope", "admin", "--expires", "1ms"),
            "revoked": make("gone", "--scope", "admin"),
            "victim": make("victim"),
        }
        self.relay.command("token", "revoke", self.made["revoked"]["id"])
        self.tokens = {kind: made["token"] for kind, made in self.made.items()}
        self.api = Api(self.relay, self.tokens["admin"])
        self.client = domains.led(f"host.{DOMAIN.replace('hooks', 'custom')}", "served", self.tokens["client"])
        assert world.client(NOWHERE, name="away", token=self.tokens["client"]).stop() == 0
        for number in range(3):
            assert world.post(f"/{number}", b"x", name="away").status == 202
        self.dead = eventually(lambda: len(self.letters()) == 3 and self.letters(), what="dead letters")
        self.api.do("PUT", "/endpoints/served/protection", {"deny": ["192.0.2.1"]})
        (self.session,) = self.api.get("/sessions")["items"]

    def letters(self):
        return self.api.get("/deliveries", state="dead", endpoint="away")["items"]

    def state(self):
        sessions = [one["id"] for one in self.api.get("/sessions")["items"]]
        return kept(self.relay), sessions, self.api.get("/drain")["draining"]


HOST = f"host.{DOMAIN.replace('hooks', 'custom')}"
LOOKS = [
    "/status", "/endpoints", "/endpoints/served", "/endpoints/served/protection", "/presets", "/sessions", "/queue",
    "/deliveries", "/tokens", "/certificates", "/drain", "/audit",
]  # fmt: skip
CHANGES = [
    ("DELETE", "/endpoints/served", None),
    ("DELETE", "/endpoints/served?hold=0s", None),
    ("PUT", "/endpoints/served/protection", {"deny": ["all"]}),
    ("PUT", "/endpoints/served/protection", {}),
    ("DELETE", "/endpoints/served/protection", None),
    ("DELETE", f"/domains/{HOST}", None),
    ("DELETE", "/sessions/SESSION", None),
    ("POST", "/deliveries/retry", {"all": True}),
    ("POST", "/deliveries/discard", {"all": True}),
    ("POST", "/deliveries/discard", {"endpoint": "away"}),
    ("POST", "/deliveries/discard", {"ids": ["LETTER"]}),
    ("POST", "/tokens", {"name": "another", "scope": "admin"}),
    ("DELETE", "/tokens/VICTIM", None),
    ("POST", "/certificates/renew", None),
    ("PUT", "/drain", None),
]


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    ca, leaf = certificates(tmp_path_factory.mktemp("office"), DOMAIN, f"*.{DOMAIN}", "*.custom.test")
    files = ("--tls", "files", "--tls-cert", str(leaf), "--tls-key", str(leaf))
    with Moody() as resolver, World("--resolver", resolver.authority, *files, "--queue-retention", "1s") as world:
        yield Office(world, Domains(world, resolver, ca))


@pytest.fixture
def api(office):
    return office.api


def filled(office, method, path, body):
    """An operation with the ids of what is there."""
    ids = {"SESSION": office.session["id"], "LETTER": office.dead[0]["id"], "VICTIM": office.made["victim"]["id"]}
    text = json.dumps([path, body])
    for place, id in ids.items():
        text = text.replace(place, id)
    return method, *json.loads(text)


def operations(office):
    """(method, path, body) of everything that the API can do."""
    yield from (("GET", path, None) for path in LOOKS)
    yield from (filled(office, *change) for change in CHANGES)


# ── who may ask ───────────────────────────────────────────────────────────────────────────────────────────────────

WRONG = "hwt_" + "A" * 43
UNKNOWN = {
    "no token": {},
    "an empty field": {"Authorization": ""},
    "a scheme alone": {"Authorization": "Bearer"},
    "a scheme and a blank": {"Authorization": "Bearer "},
    "a wrong token": {"Authorization": f"Bearer {WRONG}"},
    "a short one": {"Authorization": "Bearer hwt_"},
    "most of the right one": {"Authorization": "Bearer MOST"},
    "the right one and more": {"Authorization": "Bearer RIGHTx"},
    "the right one twice": {"Authorization": "Bearer RIGHT RIGHT"},
    "a list": {"Authorization": "Bearer RIGHT, Bearer RIGHT"},
    "no scheme": {"Authorization": "RIGHT"},
    "another scheme": {"Authorization": "Basic BASIC"},
    "a tab for the blank": {"Authorization": "Bearer\tRIGHT"},
    "another case": {"Authorization": "Bearer SWAPPED"},
    "quotes": {"Authorization": 'Bearer "RIGHT"'},
    "bytes": {"Authorization": "Bearer \xff\xfe"},
    "very long": {"Authorization": "Bearer " + "A" * 4000},
    "in a cookie": {"Cookie": "token=RIGHT; Authorization=Bearer RIGHT"},
    "in another field": {"X-Api-Key": "RIGHT", "Hookway-Token": "RIGHT", "Proxy-Authorization": "Bearer RIGHT"},
    "an expired one": {"Authorization": "Bearer EXPIRED"},
    "a revoked one": {"Authorization": "Bearer REVOKED"},
}


def written(headers, tokens):
    right = tokens["admin"]
    places = {
        "RIGHT": right, "MOST": right[:-1], "SWAPPED": right.swapcase(), "EXPIRED": tokens["expired"],
        "REVOKED": tokens["revoked"], "BASIC": base64.b64encode(f"root:{right}".encode()).decode(),
    }  # fmt: skip
    for place, value in places.items():
        headers = {name: text.replace(place, value) for name, text in headers.items()}
    return headers


@pytest.mark.parametrize("headers", UNKNOWN.values(), ids=UNKNOWN)
def test_nobody_without_a_token_looks_or_changes(office, headers):
    headers = written(headers, office.tokens)
    with unchanged(office.state):
        for method, path, body in operations(office):
            answer = office.api.ask(method, f"/api{path}", body, headers, token=None, source=elsewhere())
            assert answer.status == 401, (method, path, answer)
            assert answer.header("www-authenticate") == "Bearer" and "token" in answer.error


def test_a_client_s_token_is_none_for_the_api(office):
    with unchanged(office.state):
        for method, path, body in operations(office):
            answer = office.api.ask(method, f"/api{path}", body, token=office.tokens["client"])
            assert answer.status == 403 and "client" in answer.error, (method, path, answer)


def test_who_may_look_changes_nothing(office):
    with unchanged(office.state):
        for method, path, body in operations(office):
            answer = office.api.ask(method, f"/api{path}", body, token=office.tokens["read"])
            assert answer.status == (200 if method == "GET" else 403), (method, path, answer)
            assert method == "GET" or "admin" in answer.error
        for method in ("PATCH", "OPTIONS", "QUERY", "TRACE", "POST", "PUT", "DELETE"):
            for path in LOOKS:
                assert office.api.ask(method, f"/api{path}", token=office.tokens["read"]).status == 403, (method, path)


def test_who_may_look_does_not_end_a_drain(office):
    office.api.do("PUT", "/drain")
    try:
        assert office.api.ask("DELETE", "/api/drain", token=office.tokens["read"]).status == 403
        assert office.api.ask("DELETE", "/api/drain", token=None).status == 401
        assert office.api.get("/drain")["draining"]
    finally:
        office.api.do("DELETE", "/drain")


def test_an_admin_s_token_is_none_for_a_client(office):
    for kind in ("admin", "read"):
        client = office.world.client(NOWHERE, name="served-by-nobody", token=office.tokens[kind], wait=False)
        assert client.exited() == 4
    assert "served-by-nobody" not in [row["name"] for row in office.api.get("/endpoints")["items"]]


@pytest.mark.parametrize("scheme", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}", "Bearer {} "])
def test_a_token_s_scheme_is_read_as_others_read_it(office, scheme):
    fields = {"Authorization": scheme.format(office.tokens["admin"])}
    assert office.api.ask("GET", "/api/status", token=None, headers=fields).status == 200


def test_of_two_tokens_none_is_picked_that_the_first_is_not(office):
    """As raw bytes: a proxy and the relay must not take different ones."""
    head = (
        b"GET /api/status HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\nAuthorization: Bearer %b\r\n\r\n"
    )
    wrong, right = WRONG.encode(), office.tokens["admin"].encode()
    assert raw(office.relay, head % (wrong, right), source=elsewhere()).startswith(b"HTTP/1.1 401 ")


# ── what is refused is noted ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def quiet(new_world):
    """A relay that was asked nothing yet: how many refusals are noted is bounded for all together."""
    world = new_world()
    token = world.token("root", "--scope", "admin")
    return world, Api(world.relay, token)


def test_every_refusal_has_its_line(office, quiet):
    world, api = quiet
    asked = [(method, path.partition("?")[0], body) for method, path, body in operations(office)]
    tokens = {"looker": world.token("looker", "--scope", "read"), "ci": world.default_token}
    before, expected = api.last(), []
    for number, (method, path, body) in enumerate(asked):
        # A line names the address where nobody is known.
        source, token = elsewhere(), (None, WRONG)[number % 2]
        assert api.ask(method, f"/api{path}", body, token=token, source=source).status == 401
        expected.append((source, "api", "api", f"{method} /api{path}", True))
    for actor, token in tokens.items():
        for method, path, body in asked:
            if api.ask(method, f"/api{path}", body, token=token).status == 403:
                expected.append((actor, "api", "api", f"{method} /api{path}", True))
    for path, body in {
        "/tokens": {"name": "a b"}, "/deliveries/retry": {}, "/deliveries/discard": {"all": False},
    }.items():  # fmt: skip
        assert "2" in str(api.ask("POST", f"/api{path}", body).status)
        expected.append(("root", "api", "api", f"POST /api{path}", True))
    assert api.ask("GET", "/api/tokens?limit=0").status == 422
    expected.append(("root", "api", "api", "GET /api/tokens", True))
    lines = api.audit(before)
    assert [noted(line) for line in lines] == expected
    assert all(re.match(r"(401|403|422): .{10}", line["detail"]) for line in lines)
    # The command line says the same.
    assert world.relay.command("audit", "--limit", "500")[-len(lines) :] == lines


def test_a_flood_of_refusals_does_not_wash_the_log_away(quiet):
    _, api = quiet
    before = api.last()
    for _ in range(NOTED + 20):
        assert api.ask("GET", "/api/status", token=None).status == 401
    assert len(api.audit(before)) == NOTED
    assert api.ask("POST", "/api/tokens", {"name": "a b"}).status == 422, "others are still noted"
    assert len(api.audit(before)) == NOTED + 1


def test_looks_leave_no_line(office):
    before = office.api.last()
    for path in LOOKS:
        office.api.get(path)
        assert office.api.ask("GET", f"/api{path}/nothing").status in (404, 405)
        office.api.ask("HEAD", f"/api{path}")
    assert office.api.audit(before) == []


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/", "/api/openapi.json"])
def test_some_of_it_is_for_everybody(office, path):
    answer = office.api.ask("GET", path, token=None)
    assert answer.status == 200 and answer.body
    secrets = [*office.tokens.values(), "looker", "custom.test", office.session["id"], office.made["victim"]["id"]]
    assert not [secret for secret in secrets if secret.encode() in answer.body]


# ── guessing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_who_guesses_is_not_heard_for_a_while(office):
    api, source = office.api, elsewhere()
    before = api.last()
    for number in range(HELD_BACK):
        assert api.ask("GET", "/api/status", token=f"hwt_{number:043}", source=source).status == 401
    for token in (office.tokens["admin"], WRONG, None):
        answer = api.ask("GET", "/api/status", token=token, source=source)
        assert answer.status == 429 and 1 <= int(answer.header("retry-after")) <= 60 and answer.error
    answer = api.ask("PUT", "/api/drain", source=source)
    assert answer.status == 429 and not api.get("/drain")["draining"]
    for path in ("/health", "/ready", "/metrics", "/", "/api/openapi.json"):
        assert api.ask("GET", path, token=None, source=source).status == 200
    assert api.ask("GET", "/api/status").status == 200, "another address"
    lines = api.audit(before)
    assert {noted(line) for line in lines} <= {(source, "api", "api", "GET /api/status", True)}
    assert len(lines) <= HELD_BACK, "what is not looked at is not noted"


def test_who_guesses_beside_others_is_counted(office):
    """Guesses at once, and right tokens between them, do not help."""
    source, statuses = elsewhere(), []

    def guess(number):
        statuses.append(office.api.ask("GET", "/api/status", token=f"hwt_{number:043}", source=source).status)

    for round in range(3):
        threads = [threading.Thread(target=guess, args=(round * 10 + number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
    assert statuses.count(401) <= HELD_BACK * 2 and statuses.count(429) >= 10
    assert office.api.ask("GET", "/api/status", source=source).status == 429


def test_who_has_no_token_guesses_nothing(office):
    source = elsewhere()
    for _ in range(HELD_BACK * 3):
        assert office.api.ask("GET", "/api/status", token=None, source=source).status == 401
    assert office.api.ask("GET", "/api/status", source=source).status == 200


def test_no_field_makes_another_address_of_one(office):
    source = elsewhere()
    for number in range(HELD_BACK):
        forged = {"X-Forwarded-For": f"192.0.2.{number}", "X-Real-IP": "192.0.2.9", "Forwarded": "for=192.0.2.8"}
        assert office.api.ask("GET", "/api/status", token=WRONG, source=source, headers=forged).status == 401
    assert office.api.ask("GET", "/api/status", source=source).status == 429


# ── what is changed is noted ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def owned(office, name):
    """A client on an endpoint of the test's own: (client, its app)."""
    app = office.world.app()
    return office.world.client(app, name=name, token=office.tokens["client"]), app


def one_line(office, before):
    (line,) = office.api.audit(before)
    assert line["actor"] == "root" and line["via"] == "api" and not line["refused"]
    (told,) = office.relay.command("audit", "--limit", "1")
    assert told == line
    return line["action"], line["target"], line["detail"]


def test_each_change_has_its_line(office, owned, name):
    """One each, with who, whereby, what and to what."""
    api = office.api

    def done(method, path, body=None, status=200):
        before = api.last()
        answer = api.do(method, path, body, status)
        return answer, one_line(office, before)

    shown, line = done("PUT", f"/endpoints/{name}/protection", {"allow": ["127.0.0.0/8"], "rate": "900/s"})
    assert line == ("endpoint.protect", name, "allow 127.0.0.0/8, rate 900/s")
    assert api.get(f"/endpoints/{name}/protection") == shown
    assert done("DELETE", f"/endpoints/{name}/protection")[1] == ("endpoint.protect", name, "nothing")
    made, line = done("POST", "/tokens", {"name": "temp", "endpoints": ["temp-*"], "expires": "1h"}, 201)
    assert line == ("token.create", "temp", f"{made['id']}, for temp-*") and made["endpoints"] == ["temp-*"]
    assert done("DELETE", f"/tokens/{made['id']}")[1] == ("token.revoke", "temp", made["id"])
    assert done("POST", "/tokens", {"name": "eyes", "scope": "read"}, 201)[1][2].endswith("for the admin API (read)")
    session = next(one for one in api.get("/sessions")["items"] if one["endpoints"] == [name])
    assert done("DELETE", f"/sessions/{session['id']}")[1] == ("session.end", session["id"], "of developer")
    assert done("PUT", "/drain")[1] == ("drain.begin", "", "")
    assert done("DELETE", "/drain")[1] == ("drain.end", "", "")
    assert done("POST", "/certificates/renew")[1] == ("certificate.renew", "all", "0 due")
    letter = office.letters()[-1]
    assert done("POST", "/deliveries/retry", {"ids": [letter["id"]]})[1] == ("delivery.retry", letter["id"], "of away")
    eventually(lambda: len(office.letters()) == len(office.dead), what="its death again")
    owned[0].stop()
    _, (action, target, detail) = done("DELETE", f"/endpoints/{name}?hold=1h")
    assert (action, target) == ("endpoint.release", name) and detail.startswith("developer alone can have it until ")


def test_what_changes_nothing_leaves_no_line_of_a_change(office):
    before, api = office.api.last(), office.api
    assert api.do("POST", "/deliveries/retry", {"endpoint": "served"}) == {"retried": 0}
    assert api.do("POST", "/deliveries/discard", {"ids": ["req_00000000000000000000000000"]}) == {"discarded": 0}
    for method, path, body in [
        ("DELETE", "/tokens/tok_nobody", None), ("DELETE", "/tokens/root", None), ("DELETE", "/endpoints/nobody", None),
        ("DELETE", "/endpoints/NOBODY", None), ("DELETE", "/domains/nobody.example", None), ("DELETE", "/domains/-", None),
        ("DELETE", "/sessions/ses_x", None), ("PUT", "/endpoints/nobody/protection", {}),
        ("DELETE", "/endpoints/nobody/protection", None), ("POST", "/deliveries/retry", {"endpoint": "nobody"}),
    ]:  # fmt: skip
        assert "there is no " in api.ask(method, f"/api{path}", body).error, path
    lines = api.audit(before)
    assert all(line["refused"] and line["detail"].startswith("404: ") for line in lines) and len(lines) == 10


def test_the_command_line_and_clients_have_their_lines(office, name):
    before = office.api.last()
    client = office.world.client(NOWHERE, name=name, token=office.tokens["client"])
    client.stop()
    made = office.relay.command("token", "create", "--name", "by-hand")[-1]
    office.relay.command("endpoint", "protect", name, "--allow-path", "/x")
    office.relay.command("token", "revoke", made["id"])
    office.relay.command("endpoint", "release", name)
    lines = [(line["via"], line["action"], line["target"]) for line in office.api.audit(before)]
    assert lines == [
        ("client", "endpoint.claim", name), ("cli", "token.create", "by-hand"), ("cli", "endpoint.protect", name),
        ("cli", "token.revoke", "by-hand"), ("cli", "endpoint.release", name),
    ]  # fmt: skip
    assert {line["actor"] for line in office.api.audit(before)} == {"developer", next(iter(accounts(office, before)))}


def accounts(office, before):
    accounts = {line["actor"] for line in office.api.audit(before) if line["via"] == "cli"}
    assert len(accounts) == 1 and "uid" in next(iter(accounts))
    return accounts


# ── secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def everywhere(office):
    """All that anybody could read later: what is on the disk, the log, what the API and the commands show."""
    shown = b"".join(
        office.api.ask("GET", f"/api{path}?limit=500" if path in PAGED else f"/api{path}").body for path in LOOKS
    )
    listed = [
        office.relay.command(*words) for words in (("token", "list"), ("endpoint", "list"), ("audit", "--limit", "999"))
    ]
    return kept_bytes(office.relay) + office.relay.errors.read_bytes() + shown + json.dumps(listed).encode()


PAGED = ["/endpoints", "/sessions", "/queue", "/deliveries", "/tokens", "/audit"]


def forms(secret):
    """A secret as it could stand somewhere."""
    return [secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="), secret.encode().hex().encode()]


def test_secrets_are_shown_once_and_kept_nowhere(office, owned, name):
    made = office.api.do("POST", "/tokens", {"name": "secretive", "scope": "admin"}, 201)
    assert re.fullmatch(r"hwt_[\w-]{43}", made["token"]) and made["valid"]
    assert office.api.ask("GET", "/api/status", token=made["token"]).status == 200
    password = "correct horse battery"
    shown = office.api.do("PUT", f"/endpoints/{name}/protection", {"users": [f"ann:{password}", "bob:another secret"]})
    assert shown["users"] == ["ann", "bob"]
    again = office.api.do("PUT", f"/endpoints/{name}/protection", {"users": ["ann"], "paths": ["/x"]})
    assert again["users"] == ["ann"], "a name alone keeps its password"
    secrets = [
        made["token"],
        password,
        f"ann:{password}",
        "another secret",
        *office.tokens.values(),
        office.world.default_token,
    ]
    readable = everywhere(office)
    assert not [secret for secret in secrets for form in forms(secret) if form in readable]
    assert b"secretive" in readable and b"ann" in readable


QUOTED = {
    "a string for a list": ("PUT", "/endpoints/NAME/protection", {"users": "ann:SECRET"}),
    "a token for a key": ("PUT", "/endpoints/NAME/protection", {"hwt_SECRET": 1}),
    "a password among addresses": ("PUT", "/endpoints/NAME/protection", {"deny": ["ann:SECRET"]}),
    "a password for a path": ("PUT", "/endpoints/NAME/protection", {"paths": ["ann:SECRET"]}),
    "a password for a rate": ("PUT", "/endpoints/NAME/protection", {"rate": "ann:SECRET"}),
    "a password for a size": ("PUT", "/endpoints/NAME/protection", {"max_body": "ann:SECRET"}),
    "a string for a body": ("PUT", "/endpoints/NAME/protection", "ann:SECRET"),
    "a token for a scope": ("POST", "/tokens", {"name": "x", "scope": "hwt_SECRET"}),
    "a token for a list": ("POST", "/tokens", {"name": "x", "endpoints": "hwt_SECRET"}),
    "a token for its id": ("DELETE", "/tokens/hwt_SECRET", None),
    "a token for a session's id": ("DELETE", "/sessions/hwt_SECRET", None),
    "a token in the query": ("DELETE", "/endpoints/NAME?hold=hwt_SECRET", None),
}


@pytest.mark.parametrize("how", QUOTED)
def test_a_secret_in_the_wrong_place_is_not_kept(office, owned, name, how):
    """People paste what they have: a token for its id, a password where a list is wanted."""
    method, path, body = QUOTED[how]
    secret = base64.urlsafe_b64encode(how.encode() * 9)[:43].decode()
    path, body = path.replace("NAME", name).replace("SECRET", secret), json.dumps(body).replace("SECRET", secret)
    answer = office.api.ask(method, f"/api{path}", body.encode() if body != "null" else None, JSON)
    assert answer.status in (404, 422) and answer.error
    assert secret.encode() not in answer.body + everywhere(office)


# ── other sites ───────────────────────────────────────────────────────────────────────────────────────────────────

FOREIGN = OTHER_SITES | {
    "the relay's own domain": {"host": DOMAIN},
    "an endpoint's name": {"host": f"served.{DOMAIN}:PORT"},
    "an address in words": {"host": "127.0.0.1.nip.example:PORT"},
    "an address as a number": {"host": "2130706433:PORT"},
    "an address in hex": {"host": "0x7f.0.0.1:PORT"},
    "a blank": {"host": " "},
    "our own origin": {"headers": {"Origin": "http://127.0.0.1:PORT"}},
}


@pytest.mark.parametrize("how", FOREIGN.values(), ids=FOREIGN)
def test_another_site_is_told_nothing(office, how):
    """Even with a right token: a page has none, and nobody else comes by a name."""
    lines = office.api.last()
    with unchanged(office.state):
        for path in ("/", "/health", "/ready", "/metrics", "/api/status", "/api/openapi.json", "/nowhere"):
            for method in ("GET", "HEAD", "OPTIONS"):
                answer = office.api.ask(method, path, **how)
                assert answer.status in (400, 403), (method, path, answer)
                assert not answer.header("access-control-allow-origin")
                assert b"hookway_relay" not in answer.body and b"served" not in answer.body
        for method, path, body in operations(office):
            if method != "GET":
                assert office.api.ask(method, f"/api{path}", body, **how).status in (400, 403), path
    assert office.api.last() == lines


@pytest.mark.parametrize(
    "host", ["127.0.0.1:PORT", "localhost:PORT", "LOCALHOST", "[::1]:PORT", "192.0.2.7", "[2001:db8::1]:80"]
)
def test_by_its_address_it_is_reached(office, host):
    assert office.api.ask("GET", "/api/status", host=host).status == 200
    assert office.api.ask("GET", "/health", host=host, token=None).status == 200


def test_no_page_may_read_or_frame_it(office):
    for path in ("/", "/status.js", "/status.css", "/favicon.svg", "/api/openapi.json"):
        answer = office.api.ask("GET", path, token=None)
        policy = answer.header("content-security-policy")
        assert answer.status == 200 and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert answer.header("x-content-type-options") == "nosniff"
    for path in ("/", "/api/status", "/metrics"):
        assert not [
            name for name, _ in office.api.ask("GET", path).headers if name.lower().startswith("access-control")
        ]


# ── pages of lists ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def long_lists(office):
    """More than a page of some things."""
    names = [f"row-{number:02}" for number in range(12)]
    words = [word for name in names[1:] for word in ("-n", name)]
    client = office.world.client(NOWHERE, *words, name=names[0], token=office.tokens["client"])
    for number in range(8):
        office.api.do("POST", "/tokens", {"name": f"row-{number}"}, 201)
    sessions = [office.world.client(NOWHERE, name=f"s-{number}", token=office.tokens["client"]) for number in range(2)]
    yield office
    for program in (client, *sessions):
        program.stop()


@pytest.mark.parametrize("path", PAGED)
def test_a_walk_meets_everything_once(long_lists, path):
    key = "before" if path == "/audit" else "after"
    api = long_lists.api
    (whole,) = [api.get(path, limit=500)]
    assert whole["next"] is None or path == "/audit"
    for limit in (1, 2, 3, 5, len(whole["items"]), 500):
        if path == "/audit":
            items = api.walk(path, key, limit=max(limit, 40))[: len(whole["items"])]
        else:
            items = api.walk(path, key, limit=limit)
        assert identities(items) == identities(whole["items"]), limit
    assert len(set(identities(whole["items"]))) == len(whole["items"]) >= 3


def identities(items):
    return [str(item.get("seq") or item.get("id") or item.get("name") or item["endpoint"]) for item in items]


@pytest.mark.parametrize("path", PAGED)
def test_limits_of_pages(long_lists, path):
    api = long_lists.api
    for limit in (1, 500):
        assert len(api.get(path, limit=limit)["items"]) <= limit
    assert len(api.get(path, limit=1)["items"]) == 1
    for query in (
        "limit=0", "limit=501", "limit=-1", "limit=x", "limit=", "limit=1.5", "limit=1&limit=2", "limit=99999999999999999999",
        "limits=1", "Limit=1", "offset=1",
    ):  # fmt: skip
        answer = api.ask("GET", f"/api{path}?{query}")
        assert answer.status == 422 and answer.error, query


def test_a_page_after_the_last_is_empty(long_lists):
    api, empty = long_lists.api, {"items": [], "next": None}
    for path in ("/endpoints", "/sessions", "/queue", "/tokens"):
        assert api.get(path, after="~~~") == empty
        assert api.get(path, after="")["items"], path
    assert api.get("/deliveries", after=1 << 40) == empty
    assert api.get("/audit", before=0) == empty
    # What was there between is not skipped when it has gone.
    names = [row["name"] for row in api.get("/endpoints", limit=3)["items"]]
    assert api.get("/endpoints", after=names[1] + "-", limit=1)["items"][0]["name"] == names[2]


@pytest.mark.parametrize("query", ["/audit?before", "/deliveries?after"])
@pytest.mark.parametrize("number", [1 << 63, (1 << 64) - 1])
def test_a_number_that_is_too_large_is_no_fault_of_the_store(office, query, number):
    before = office.relay.errors.read_bytes().count(b"cannot use the store")
    assert office.api.ask("GET", f"/api{query}={number}").status in (200, 422)
    assert office.relay.errors.read_bytes().count(b"cannot use the store") == before


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_a_token_revoked_by_the_api_cuts_its_session(office, name, transport):
    made = office.api.do("POST", "/tokens", {"name": f"life-{transport}", "endpoints": [name]}, 201)
    app, other = office.world.app(), office.world.app()
    client = office.world.client(app, "--transport", transport, name=name, token=made["token"])
    beside = office.world.client(other, "--transport", transport, name=f"{name}-2", token=office.tokens["client"])
    (session,) = [one for one in office.api.get("/sessions")["items"] if one["token"] == made["id"]]
    assert (
        session["transport"] == transport and session["endpoints"] == [name] and session["owner"] == f"life-{transport}"
    )
    assert office.world.get("/", name=name).status == 200
    began = time.monotonic()
    assert office.api.do("DELETE", f"/tokens/{made['id']}") == {"revoked": made["id"], "name": f"life-{transport}"}
    there = lambda: [one for one in office.api.get("/sessions")["items"] if one["token"] == made["id"]]  # noqa: E731
    eventually(lambda: not there(), CUT_IN, "the session's end")
    assert client.exited(CUT_IN) == 4 and time.monotonic() - began < CUT_IN
    app.clear()
    assert office.world.post("/", b"x", name=name).status in (202, 503) and not app.seen
    assert office.world.client(app, name=name, token=made["token"], wait=False).exited() == 4
    assert beside.running and office.world.get("/", name=f"{name}-2").status == 200
    (row,) = [row for row in office.api.get("/tokens", limit=500)["items"] if row["id"] == made["id"]]
    assert not row["valid"] and row["revoked_at"]
    assert "no valid token" in office.api.ask("DELETE", f"/api/tokens/{made['id']}").error
    beside.stop()


def test_a_token_made_by_the_api_is_one(office, name):
    made = office.api.do("POST", "/tokens", {"name": "maker", "endpoints": [f"{name}*"], "expires": "2d"}, 201)
    assert made["scope"] == "client" and made["expires_at"] > made["created_at"] and made["revoked_at"] is None
    client = office.world.client(office.world.app(), name=f"{name}-x", token=made["token"])
    assert office.world.get("/", name=f"{name}-x").status == 200
    assert office.world.client(NOWHERE, name="other", token=made["token"], wait=False).exited() == 5
    client.stop()
    again = office.api.do("POST", "/tokens", {"name": "maker"}, 201)
    assert again["id"] != made["id"] and again["token"] != made["token"], "two of one name are one owner"


def test_an_admin_s_token_ends_itself(office):
    made = office.api.do("POST", "/tokens", {"name": "brief", "scope": "admin"}, 201)
    own, before = Api(office.relay, made["token"]), office.api.last()
    assert own.do("DELETE", f"/tokens/{made['id']}")["revoked"] == made["id"]
    assert own.ask("GET", "/api/status", source=elsewhere()).status == 401
    line = office.api.audit(before)[0]
    assert (line["actor"], line["action"], line["detail"]) == ("brief", "token.revoke", made["id"])


def test_a_token_is_revoked_by_its_id_alone(office):
    first = office.api.do("POST", "/tokens", {"name": "first"}, 201)
    second = office.api.do("POST", "/tokens", {"name": first["id"]}, 201)
    office.api.do("DELETE", f"/tokens/{first['id']}")
    rows = {row["id"]: row["valid"] for row in office.api.walk("/tokens", limit=100)}
    assert not rows[first["id"]] and rows[second["id"]]


def test_a_token_that_has_ended_is_not_called_valid(office):
    answer = office.api.ask("POST", "/api/tokens", {"name": "x", "expires": "0s"})
    assert answer.status == 422 or not answer.json["valid"]


WRONG_TOKENS = [
    {}, {"name": ""}, {"name": "a b"}, {"name": "a\u0000b"}, {"name": "ü"}, {"name": "x" * 65}, {"name": 1}, {"name": None},
    {"name": ["x"]}, {"name": "x", "scope": "root"}, {"name": "x", "scope": "Admin"}, {"name": "x", "scope": None},
    {"name": "x", "endpoints": "a"}, {"name": "x", "endpoints": ["A"]}, {"name": "x", "endpoints": [""]},
    {"name": "x", "endpoints": ["a b"]}, {"name": "x", "endpoints": ["a"] * 101}, {"name": "x", "endpoints": ["x" * 64]},
    {"name": "x", "expires": "soon"}, {"name": "x", "expires": "-1d"}, {"name": "x", "expires": "1y"},
    {"name": "x", "expires": 5}, {"name": "x", "expires": "99999999999999999999d"}, {"name": "x", "expires": "9999999d"},
    {"name": "x", "token": "hwt_x"}, {"name": "x", "id": "tok_x"}, {"name": "x\nactor=root"}, {"name": "\u202ex"},
]  # fmt: skip


@pytest.mark.parametrize("body", WRONG_TOKENS, ids=lambda body: json.dumps(body)[:40])
def test_what_is_no_token(office, body):
    with unchanged(lambda: kept(office.relay)):
        answer = office.api.ask("POST", "/api/tokens", body)
        assert answer.status == 422 and answer.error


# ── endpoints, sessions ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_a_release_is_told_to_its_client(office, name, transport):
    app = office.world.app()
    client = office.world.client(
        app, "-n", f"{name}-2", "--transport", transport, name=name, token=office.tokens["client"]
    )
    shown = office.api.get(f"/endpoints/{name}")
    assert (shown["owner"], shown["clients"], shown["listeners"]) == ("developer", 1, [])
    assert shown["url"] == office.world.url("", name)
    released = office.api.do("DELETE", f"/endpoints/{name}")
    assert released["released"] == name
    event = client.event("released", lambda event: event["endpoint"] == name, 5)
    assert "released" in event["reason"] and client.running
    # At once, for senders and for the API.
    assert office.world.get("/", name=name).status == 404 and office.world.get("/", name=f"{name}-2").status == 200
    assert office.api.ask("GET", f"/api/endpoints/{name}").status == 404
    # It is kept for its owner.
    refused = office.world.client(NOWHERE, name=name, wait=False)
    assert refused.exited() == 5 and "kept for its owner" in refused.log()
    assert office.api.do("DELETE", f"/endpoints/{name}?hold=0s")["released"] == name
    free = office.world.client(app, name=name)
    assert office.api.get(f"/endpoints/{name}")["owner"] == "ci"
    for program in (client, free):
        program.stop()


@pytest.mark.parametrize(
    "hold", ["", "soon", "-1s", "1y", "9999999d", "1d&hold=2d", "99999999999999999999s", "0s&hld=1"]
)
def test_a_hold_that_is_none_releases_nothing(office, hold):
    with unchanged(lambda: kept(office.relay)):
        assert office.api.ask("DELETE", f"/api/endpoints/served?hold={hold}").status == 422
    assert office.world.get("/", name="served").status == 200


def test_a_host_name_is_taken_away(office, name, tmp_path):
    """And only that: the endpoint stays."""
    host = f"{name}.custom.test"
    with contextlib.closing(sqlite3.connect(office.relay.data / "relay.db")) as database, database:
        (endpoint,) = database.execute("SELECT id FROM endpoint WHERE name = 'served'").fetchone()
        database.execute("INSERT INTO domain VALUES (?, ?, ?)", (host, endpoint, time.time_ns() // 1000))
    led = lambda: host in office.api.get("/endpoints/served")["domains"]  # noqa: E731
    eventually(led, what="the relay's notice of it")
    # As people write it.
    assert office.api.do("DELETE", f"/domains/{host.upper()}.") == {"released": host}
    assert not led() and HOST in office.api.get("/endpoints/served")["domains"]
    with office.world.wire(sni=host) as wire:
        assert wire.ask(request("GET", "/", host=host)).status == 404


@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_a_session_that_is_ended_comes_back_as_another(office, name, transport):
    client = office.world.client(office.world.app(), "--transport", transport, name=name, token=office.tokens["client"])
    own = lambda: [one["id"] for one in office.api.get("/sessions", limit=500)["items"] if name in one["endpoints"]]  # noqa: E731
    (first,) = own()
    assert office.api.do("DELETE", f"/sessions/{first}") == {"ended": first}
    event = client.event("session", lambda event: event["state"] == "down")
    assert "operator" in event["reason"]
    eventually(lambda: first not in own() and own(), what="another session instead")
    assert office.world.get("/", name=name).status == 200
    assert "no session" in office.api.ask("DELETE", f"/api/sessions/{first}").error
    client.stop()
    eventually(lambda: own() == [], what="the end of it")


# ── deliveries ────────────────────────────────────────────────────────────────────────────────────────────────────


def away(office, name, *paths):
    """An endpoint whose client is away, and these deliveries of it, dead: their rows."""
    assert office.world.client(NOWHERE, name=name, token=office.tokens["client"]).stop() == 0
    for path in paths:
        assert office.world.post(path, path.encode(), name=name).status == 202
    rows = lambda: office.api.get("/deliveries", endpoint=name, state="dead")["items"]  # noqa: E731
    return eventually(lambda: len(rows()) == len(paths) and rows(), what="dead letters")


def test_dead_letters_are_listed_and_filtered(office, name):
    rows = away(office, name, "/a?token=hidden", "/b", "/c")
    assert [row["path"] for row in rows] == ["/a", "/b", "/c"], "without the query, which may hold secrets"
    assert {(row["endpoint"], row["method"], row["attempts"], row["listener"]) for row in rows} == {
        (name, "POST", 0, None)
    }
    assert all(row["dead_since"] and row["received_at"] < row["dead_since"] and row["bytes"] > 4 for row in rows)
    get = lambda **query: [row["seq"] for row in office.api.get("/deliveries", **query)["items"]]  # noqa: E731
    assert get(endpoint=name) == [row["seq"] for row in rows] and get(endpoint=name, state="waiting") == []
    assert get(id=rows[1]["id"]) == [rows[1]["seq"]] and get(id=rows[1]["id"], state="waiting") == []
    assert get(id=rows[1]["id"], endpoint="other") == [] and get(endpoint="nobody") == [] and get(endpoint="") == []
    assert get(endpoint=name, after=rows[0]["seq"], limit=1) == [rows[1]["seq"]]
    assert get(endpoint="x' OR '1'='1") == [] and get(endpoint="%") == [] and get(endpoint="\0") == []
    for query in (
        "state=alive",
        "state=",
        "id=x",
        "id=",
        "after=-1",
        "after=x",
        "endpoint=a&endpoint=b",
        "status=dead",
    ):
        assert office.api.ask("GET", f"/api/deliveries?{query}").status == 422, query
    (row,) = [row for row in office.api.walk("/queue") if row["endpoint"] == name]
    assert (row["depth"], row["dead"]) == (0, 3)
    assert office.api.get(f"/endpoints/{name}")["dead_letters"] == 3
    told = office.relay.command("queue", "dead-letters", name)
    assert [row["id"] for row in told] == [row["id"] for row in rows]


def test_a_dead_letter_is_retried(office, name):
    rows = away(office, name, *(f"/{number}" for number in range(6)))
    app = office.world.app()
    client = office.world.client(app, name=name, token=office.tokens["client"])
    retry = lambda **which: office.api.do("POST", "/deliveries/retry", which)["retried"]  # noqa: E731
    assert retry(ids=[rows[1]["id"], "req_00000000000000000000000000"]) == 1
    eventually(lambda: len(app.seen) == 1, what="one delivery")
    assert (app.seen[0].target, app.seen[0].body) == ("/1", b"/1") and app.seen[0].header("hookway-received-at")
    assert retry(ids=[rows[1]["id"]]) == 0, "it has gone"
    assert retry(endpoint=name) == 5
    eventually(lambda: len(app.seen) == 6, what="all deliveries")
    assert sorted(seen.target for seen in app.seen) == [f"/{number}" for number in range(6)]
    eventually(lambda: not office.api.get("/deliveries", endpoint=name)["items"], what="nothing left")
    client.stop()


def test_a_dead_letter_is_discarded(office, name):
    rows = away(office, name, "/a", "/b", "/c")
    others = kept(office.relay)["payload"]
    discard = lambda **which: office.api.do("POST", "/deliveries/discard", which)["discarded"]  # noqa: E731
    assert discard(ids=[rows[0]["id"]]) == 1 and discard(ids=[rows[0]["id"]]) == 0
    assert [row["path"] for row in office.api.get("/deliveries", endpoint=name)["items"]] == ["/b", "/c"]
    assert discard(endpoint=name) == 2
    left = kept(office.relay)["payload"]
    assert len(left) == len(others) - 3 and set(left) < set(others)
    assert len(office.letters()) == 3, "another endpoint's stay"
    assert "there is no endpoint" in office.api.ask("POST", "/api/deliveries/discard", {"endpoint": "nobody"}).error


@pytest.mark.parametrize("what", ["retry", "discard"])
def test_a_dead_letter_is_one_however_often_it_is_named(office, name, what):
    (row,) = away(office, name, "/once")
    before = office.api.last()
    (count,) = office.api.do("POST", f"/deliveries/{what}", {"ids": [row["id"]] * 3}).values()
    assert count == len(office.api.audit(before)) == 1


def test_what_waits_is_not_discarded(new_world):
    """Only dead letters are: what waits was promised to its sender."""
    world = new_world()
    api = Api(world.relay, world.token("root", "--scope", "admin"))
    assert world.client(NOWHERE).stop() == 0
    assert world.post("/kept", b"x").status == 202
    (row,) = api.get("/deliveries", state="waiting")["items"]
    assert row["dead_since"] is None and row["path"] == "/kept"
    for which in ({"all": True}, {"endpoint": "billing"}, {"ids": [row["id"]]}):
        assert api.do("POST", "/deliveries/discard", which) == {"discarded": 0}
        assert api.do("POST", "/deliveries/retry", which) == {"retried": 0}
    app = world.app()
    world.client(app)
    eventually(lambda: app.at("/kept"), what="its delivery")


def test_dead_letters_of_a_released_endpoint_are_nobody_s(new_world):
    world = new_world()
    api, rival = Api(world.relay, world.token("root", "--scope", "admin")), world.token("rival")
    assert world.client(NOWHERE).stop() == 0
    assert world.post("/his", b"secret").status == 202
    api.do("DELETE", "/endpoints/billing?hold=0s")
    app = world.app()
    world.client(app, token=rival)
    for which in ({"all": True}, {"endpoint": "billing"}):
        assert api.do("POST", "/deliveries/retry", which) == {"retried": 0}
    (row,) = api.get("/deliveries")["items"]
    assert row["last"] == "the endpoint was released"
    assert api.do("POST", "/deliveries/retry", {"ids": [row["id"]]}) == {"retried": 0}
    assert world.post("/mine", b"x").status == 200
    assert [seen.target for seen in app.seen] == ["/mine"]


@pytest.mark.parametrize(
    "body",
    [
        {}, [], None, {"all": False}, {"all": None}, {"all": 1}, {"all": True, "endpoint": "away"}, {"ids": []},
        {"ids": ["req_00000000000000000000000000"] * 501}, {"ids": "x"}, {"ids": ["x"]}, {"ids": [1]}, {"ids": [None]},
        {"endpoint": 1}, {"endpoints": "away"}, {"all": True, "more": 1}, {"ids": ["req_\u0000"]}, {"ids": [" "]},
    ],
    ids=lambda body: json.dumps(body)[:40],
)  # fmt: skip
def test_which_deliveries_must_be_said(office, body):
    with unchanged(lambda: kept(office.relay)):
        for what in ("retry", "discard"):
            answer = office.api.ask("POST", f"/api/deliveries/{what}", body if body is not None else b"null", JSON)
            assert answer.status == 422 and answer.error


# ── drain ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def drained(office):
    yield office
    office.api.do("DELETE", "/drain")


def test_a_drain_sends_load_balancers_away_and_serves_who_comes(drained):
    office, ready = drained, lambda: drained.relay.get("/ready")
    assert ready()[0] == 200 and not office.api.get("/status")["draining"]
    with office.world.wire("served") as old:
        get = request("GET", "/", host=f"served.{DOMAIN}")
        assert old.ask(get).status == 200
        assert office.api.do("PUT", "/drain")["draining"] is True
        assert ready() == (503, "draining\n") and office.relay.get("/health") == (200, "ok\n")
        assert office.api.get("/status")["draining"] and office.api.get("/status")["well"]
        # An idle connection is closed, without an answer on it.
        assert old.ended() and not old.buffer
        for _ in range(3):
            assert office.world.get("/", name="served").status == 200
        assert office.world.post("/", b"x", name="served").status == 200
        # A client may come, too.
        client = office.world.client(office.world.app(), name="come-late", token=office.tokens["client"])
        assert office.world.get("/", name="come-late").status == 200
        client.stop()
    assert office.api.do("PUT", "/drain")["draining"] is True, "again"
    assert office.api.do("DELETE", "/drain")["draining"] is False
    assert ready()[0] == 200
    with office.world.wire("served") as wire:
        for _ in range(3):
            reply = wire.ask(get)
            assert reply.status == 200 and (reply.header("connection") or "").lower() != "close"
        assert wire.quiet(1.5), "connections stay again"


def test_a_busy_connection_is_asked_to_leave_with_its_answer(drained):
    gate = threading.Event()
    office = drained
    app = office.world.app(
        answer=lambda seen, _: gate.wait(DEADLINE) and b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    client = office.world.client(app, name="busy", token=office.tokens["client"])
    with office.world.wire("busy") as wire:
        wire.send(request("POST", "/", b"x", host=f"busy.{DOMAIN}"))
        eventually(lambda: app.seen, what="the app's work")
        assert office.api.do("PUT", "/drain")["in_flight"] == 1
        # Until a sweep has asked it to.
        eventually(lambda: office.world.wire("busy").ended(3), what="a sweep")
        gate.set()
        reply = wire.reply("POST")
        assert (reply.status, reply.body, reply.complete) == (200, b"ok", True)
        assert reply.header("connection").lower() == "close" and wire.ended()
    client.stop()


def test_http2_is_told_to_go_away_and_finishes(drained):
    gate, office = threading.Event(), drained
    app = office.world.app(
        answer=lambda seen, _: gate.wait(DEADLINE) and b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    client = office.world.client(app, name="busy-2", token=office.tokens["client"])
    with h2(office.world, "busy-2") as frames:
        stream = frames.stream()
        frames.write(frames.headers(stream, request_fields("GET", "/", f"busy-2.{DOMAIN}")))
        eventually(lambda: app.seen, what="the app's work")
        office.api.do("PUT", "/drain")
        assert any(kind == GoAwayFrame.type for kind, *_ in frames.frames(DEADLINE)) and frames.goaway == 0
        gate.set()
        outcome = frames.outcome(stream, DEADLINE)
        assert (outcome.status, outcome.body) == (200, b"ok")
        assert frames.wire.ended()
    client.stop()


# ── bodies, paths ─────────────────────────────────────────────────────────────────────────────────────────────────


def raw(relay, data, source=None, shut=False):
    """What comes back for these bytes, until the end or a whole answer's head and body have come."""
    with socket.create_connection(relay.admin, DEADLINE, (source or "127.0.0.1", 0)) as connection:
        # Who is refused while he still sends may find the connection gone.
        with contextlib.suppress(OSError):
            connection.sendall(data)
            if shut:
                connection.shutdown(socket.SHUT_WR)
        got = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(65536):
                got += part
                head, end, body = got.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
                if end and length and len(body) >= int(length[1]):
                    break
        return got


PROTECT = "/endpoints/served/protection"
NOT_JSON = {
    "empty": b"", "blank": b"   ", "cut": b'{"deny": [', "two": b"{} {}", "NUL": b"{}\0", "NUL before": b"\0{}", "BOM": b"\xef\xbb\xbf{}",
    "UTF-16": '{"deny": ["all"]}'.encode("utf-16"), "not UTF-8": b'{"deny": ["\xff"]}', "overlong": b'{"deny": ["\xc0\xaf"]}',
    "half a surrogate": b'{"paths": ["/\\ud800"]}', "NaN": b'{"max_body": NaN}', "comment": b"{} // x", "single quotes": b"{'deny': []}",
    "trailing comma": b'{"deny": [],}', "deep": b"[" * 100_000, "deep objects": b'{"deny":' * 30_000, "closed deep": b'{"deny":' + b"[" * 500 + b"]" * 500 + b"}",
    "a twin": b'{"deny": [], "deny": ["all"]}', "null": b"null", "a number": b"1", "a string": b'"x"',
    "unknown": b'{"alow": []}', "other case": b'{"Deny": []}', "too much": b'{"max_body": 18446744073709551616}',
    "less than nothing": b'{"max_body": -1}', "half": b'{"max_body": 1.5}', "infinite": b'{"max_body": 1e999}', "many digits": b'{"max_body": ' + b"9" * 100_000 + b"}",
    "NUL in a path": b'{"paths": ["/a\\u0000"]}', "a list in a list": b'{"deny": [["all"]]}', "null in a list": b'{"deny": [null]}',
    "no address": b'{"deny": ["1.2.3"]}', "a wide mask": b'{"deny": ["1.2.3.4/33"]}', "a name": b'{"deny": ["example.com"]}',
    "upper case": b'{"deny": ["GitHub"]}', "a blank address": b'{"deny": [" 1.2.3.4"]}', "rate 0": b'{"rate": "0/s"}', "a rate per minute": b'{"rate": "5/m"}',
    "no rate": b'{"rate": ""}', "a number for a rate": b'{"rate": 5}', "negative rate": b'{"rate": "-5/s"}', "a great rate": b'{"rate": "99999999999/s"}',
    "no password": b'{"users": ["ann"]}', "a short password": b'{"users": ["ann:short"]}', "no name": b'{"users": [":password"]}',
    "a line end": b'{"users": ["ann:pass\\nword"]}', "a long password": b'{"users": ["ann:' + b"x" * 257 + b'"]}',
    "33 users": json.dumps({"users": [f"u{number}:password" for number in range(33)]}).encode(),
    "1001 addresses": json.dumps({"deny": [f"10.0.{number >> 8}.{number & 255}" for number in range(1001)]}).encode(),
    "1001 paths": json.dumps({"paths": [f"/{number}" for number in range(1001)]}).encode(),
    "a path without a slash": b'{"paths": ["x"]}', "a path with dots": b'{"paths": ["/a/../b"]}', "an encoded path": b'{"paths": ["/%61"]}',
    "a path with a query": b'{"paths": ["/a?b"]}', "a path in Unicode": '{"paths": ["/ü"]}'.encode(), "a long path": b'{"paths": ["/' + b"x" * 256 + b'"]}',
}  # fmt: skip


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON)
def test_a_body_that_makes_no_sense_changes_nothing(office, body):
    with unchanged(lambda: kept(office.relay)):
        answer = office.api.ask("PUT", f"/api{PROTECT}", body, JSON)
        assert answer.status == 422 and answer.error and len(answer.body) < 2000
    (line,) = office.api.audit(office.api.last() - 1)
    assert line["refused"] and len(line["detail"]) < 2000 and "\n" not in line["target"]


ARRAYS = [
    ("PUT", PROTECT, []), ("PUT", PROTECT, [[], ["all"]]), ("POST", "/tokens", ["x", "admin", ["*"], "1d"]),
    ("POST", "/deliveries/discard", [None, "served", None]), ("POST", "/deliveries/retry", [None, "served", None]),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), ARRAYS)
def test_an_array_is_no_object(office, method, path, body):
    """Else `[]` takes all protection away."""
    office.api.do("PUT", PROTECT, {"deny": ["192.0.2.1"]})
    with unchanged(lambda: kept(office.relay)):
        assert office.api.ask(method, f"/api{path}", body).status == 422


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", "text/json",
     "application/problem+json", "", "json", "application/json, text/plain", "\xff", None],
)  # fmt: skip
def test_a_body_of_another_type_is_refused(office, kind):
    with unchanged(lambda: kept(office.relay)):
        headers = {} if kind is None else {"Content-Type": kind}
        for method, path, body in operations(office):
            if body is not None:
                answer = office.api.ask(method, f"/api{path}", json.dumps(body).encode(), headers)
                assert answer.status == 415 and "application/json" in answer.error


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/json;x"]
)
def test_json_is_json_however_it_is_named(office, kind):
    assert office.api.ask("PUT", f"/api{PROTECT}", b'{"deny": ["192.0.2.1"]}', {"Content-Type": kind}).status == 200


MOST = 256 << 10  # bytes of a body


def test_a_body_that_is_too_large_is_refused(office):
    with unchanged(lambda: kept(office.relay)):
        fits = b'{"deny": ["192.0.2.1"]}'.ljust(MOST)
        assert office.api.ask("PUT", f"/api{PROTECT}", fits, JSON).status == 200
        answer = office.api.ask("PUT", f"/api{PROTECT}", b'{"deny": ["all"]}'.ljust(MOST + 1), JSON)
        assert answer.status == 413 and str(MOST) in answer.error
        large = b'{"deny": ["all"]}'.ljust(1 << 20)
        got = raw(office.relay, protect(office, b"Content-Length: %d" % len(large), large))
        assert not got or got.startswith(b"HTTP/1.1 413 ")


def protect(office, framing, body=b""):
    head = f"PUT /api{PROTECT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {office.tokens['admin']}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n" + framing + b"\r\n\r\n" + body


FRAMED = {
    "cut": (b"Content-Length: 100", b'{"deny": ["all"]}', True),
    "chunks without end": (b"Transfer-Encoding: chunked", b'11\r\n{"deny": ["all"]}\r\n', True),
    "a broken chunk": (b"Transfer-Encoding: chunked", b'zz\r\n{"deny": ["all"]}\r\n0\r\n\r\n', False),
    "too many chunks": (b"Transfer-Encoding: chunked", b"8000\r\n%b\r\n" % (b" " * 0x8000) * 10, True),
    "two lengths": (b"Content-Length: 17\r\nContent-Length: 18", b'{"deny": ["all"]} ', False),
    "a length that is none": (b"Content-Length: x", b'{"deny": ["all"]}', False),
}


@pytest.mark.parametrize("framed", FRAMED.values(), ids=FRAMED)
def test_a_body_that_is_framed_badly_changes_nothing(office, framed):
    framing, body, shut = framed
    with unchanged(lambda: kept(office.relay)):
        got = raw(office.relay, protect(office, framing, body), shut=shut)
        assert not got or got.startswith(b"HTTP/1.1 4"), got


ODD_PATHS = [
    "/api/endpoints/served%2fprotection", "/api/endpoints%2fserved", "/api%2fstatus", "/api/endpoints/../tokens", "/api/./status",
    "/api/../api/status", "/api//status", "//api/status", "/api/status/", "/api/status%00", "/api/endpoints/%00", "/api/endpoints/%ff",
    "/api/endpoints/%c0%ae", "/api/endpoints/%", "/api/endpoints/%zz", "/api/endpoints/served;x", "/api/endpoints/served/../../tokens",
    "/api/endpoints/%2e%2e", "/api/endpoints/..%2ftokens", "/API/status", "/api/Status", "/api/status.json", "/api/status;x", "/api/endpoints/",
    "/api/endpoints//protection", "/api/endpoints/" + "x" * 5000, "/api/tokens/" + "%41" * 1000, "/api/domains/" + "a." * 300 + "test",
    "/api/sessions/%20", "/api/nothing", "/api/endpoints/served/protection/x", "/api/openapi.json/", "/api/openapi.yaml", "/admin", "/.env",
    "/api", "/status.js/../api/status", "/api/endpoints/%F0%9F%A6%80", "/api/deliveries/retry/x", "/api/endpoints/served%20",
]  # fmt: skip


@pytest.mark.parametrize("path", ODD_PATHS, ids=lambda path: path[:40])
def test_a_path_that_is_none(office, path):
    with unchanged(office.state):
        for method in ("GET", "PUT", "POST", "DELETE"):
            body = {"deny": ["all"]} if method in ("PUT", "POST") else None
            answer = office.api.ask(method, path, body)
            assert answer.status in (404, 405), (method, answer)
            if answer.body:
                assert answer.error
            stranger = office.api.ask(method, path, body, token=None, source=elsewhere())
            assert stranger.status in (401, 404, 405), (method, stranger)


def test_a_slash_alone_is_answered_as_the_rest(office):
    for token in (office.tokens["admin"], None):
        answer = office.api.ask("GET", "/api/", token=token)
        assert answer.status in (401, 404) and answer.error


def test_targets_that_are_no_paths(office):
    token = office.tokens["admin"].encode()
    tail = b"Host: 127.0.0.1\r\nAuthorization: Bearer %b\r\nConnection: close\r\n\r\n" % token
    for target in (
        b"*",
        b"http://evil.example/api/status",
        b"evil.example:443",
        b"/api/status#x",
        b"api/status",
        b"/" + b"x" * 70_000,
    ):
        for method in (b"OPTIONS", b"CONNECT", b"PUT"):
            got = raw(office.relay, b"%b %b HTTP/1.1\r\n" % (method, target) + tail)
            assert not got or got.startswith(b"HTTP/1.1 4"), (method, target[:40], got[:200])
    for garbage in (
        b"\0" * 100,
        b"\x16\x03\x01\x02\0\x01",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 5000,
        b"A" * 100_000,
    ):
        got = raw(office.relay, garbage, shut=True)
        assert not got or got.startswith(b"HTTP/1.1 4"), garbage[:20]
    assert office.api.get("/status")["well"]


def test_what_an_operator_asks_for_is_noted_harmlessly(office):
    """Line ends, colours and marks that turn text around, in a path."""
    answer = office.api.ask("DELETE", "/api/endpoints/%0aroot%1b%5b31m%e2%80%ae")
    assert answer.status == 404
    assert not [char for char in answer.error if not char.isprintable()]
    (line,) = office.api.audit(office.api.last() - 1)
    assert not [char for char in line["target"] + line["detail"] if not char.isprintable()]
    long = office.api.ask("DELETE", "/api/endpoints/" + "x" * 5000)
    (line,) = office.api.audit(office.api.last() - 1)
    assert len(long.error) < 500 and len(line["target"]) < 500 and len(line["detail"]) < 500


def test_who_says_half_of_something_is_not_waited_for(new_world):
    """Half a head, half a body, or nothing: neither for ever, nor when the relay is told to stop."""
    world = new_world("--header-timeout", "1s", "--body-timeout", "1s")
    token = world.token("root", "--scope", "admin")
    fields = f"Host: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    halves = [b"", b"GET /health HTTP/1.1\r\nHost: 12", b"POST /api/tokens HTTP/1.1\r\n" + fields.encode() + b'{"name"']
    with contextlib.ExitStack() as open_:
        connections = [open_.enter_context(socket.create_connection(world.relay.admin, 8)) for _ in halves]
        for connection, half in zip(connections, halves, strict=True):
            connection.sendall(half)
        for connection in connections:
            while connection.recv(65536):
                pass
        half = open_.enter_context(socket.create_connection(world.relay.admin, 8))
        half.sendall(halves[1])
        world.relay.process.send_signal(signal.SIGTERM)
        assert world.relay.exited(3) == 0


@pytest.mark.parametrize("header", ["", "Origin: https://example.com\r\n"], ids=["no-token", "foreign"])
def test_a_refused_body_that_comes_late_does_not_cost_the_connection(office, header):
    """A script that goes on with it would see a broken connection where its token is wrong."""
    with socket.create_connection(office.world.relay.admin, 8) as connection:
        connection.sendall(f"POST /api/tokens HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}Content-Length: 40000\r\n\r\n".encode())
        threading.Event().wait(0.2)
        connection.sendall(b"x" * 40000)
        threading.Event().wait(0.1)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 403 " if header else b"HTTP/1.1 401 "), answer
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_of_many_changes_at_once_none_is_lost_or_noted_twice(office):
    """And senders beside them are served."""
    before, made, wrong = office.api.last(), [], []

    def make(number):
        made.append(office.api.do("POST", "/tokens", {"name": f"many-{number}"}, 201)["id"])
        if office.world.get("/", name="served").status != 200:
            wrong.append(number)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(set(made)) == 24 and not wrong
    lines = [line["target"] for line in office.api.audit(before) if line["action"] == "token.create"]
    assert sorted(lines) == sorted(f"many-{number}" for number in range(24))


def test_what_is_told_of_the_relay(office):
    status = office.api.get("/status")
    assert status["domain"] == DOMAIN and status["well"] and status["problems"] == []
    assert status["endpoints"] == len(office.api.walk("/endpoints")) and status["sessions"] == len(
        office.api.walk("/sessions")
    )
    assert status["tokens"] == sum(row["valid"] for row in office.api.walk("/tokens", limit=500))
    assert status["queue"]["dead_letters"] == len([row for row in office.api.walk("/deliveries") if row["dead_since"]])
    assert status["certificate"]["not_after"] > status["now"]
    metrics = office.relay.get("/metrics")[1]
    assert 'hookway_relay_admin_refused_total{reason="unauthorized"}' in metrics
    assert not re.findall(r"127\.1\.|hwt_|root", metrics), "labels are of bounded size"
