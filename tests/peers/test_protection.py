"""What protects an endpoint, and the relay itself from being abused: who may send, whereto, how much, and what comes back."""

import base64
import concurrent.futures
import contextlib
import ipaddress
import json
import pathlib
import posixpath
import re
import threading
import urllib.parse

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from test_admin_api import NOWHERE, Api, forms, kept_bytes
from test_domains import Domains, Moody, certificates
from test_h2_hostile import Frames, request_fields
from test_queue import restart
from test_trusted_proxy import Peer
from test_websockets import EchoServer
from world import DEADLINE, DOMAIN, HOOKWAY_RELAY, Closed, World, eventually, request, run, tls_context

PROXY = "127.0.0.2"  # whom the relay believes when it names another
DENIED = "203.0.113.0/24"  # who may send to nobody
SOON = 2.0  # seconds in which a change by the command line is in force
HELD_BACK = 10  # wrong passwords of one address before it is not heard for a while

_senders = iter(f"198.18.{number >> 8}.{number & 255}" for number in range(1, 1 << 16))


def somebody():
    """An address that has sent nothing yet."""
    return next(_senders)


class Guarded:
    """An endpoint, its app, and who sends to it."""

    def __init__(self, world, name, away=False):
        self.world, self.name, self.host = world, name, f"{name}.{DOMAIN}"
        self.api = Api(world.relay, world.root)
        self.app = world.app()
        self.client = world.client(self.app, name=name)
        if away:
            assert self.client.stop() == 0

    def protect(self, **what):
        return self.api.do("PUT", f"/endpoints/{self.name}/protection", what)

    def peer(self, source=PROXY, **options):
        return Peer(self.world.relay, source, self.name, **options)

    def ask(self, path="/", ip=None, method="POST", body=b"x", user=None, headers=(), host=None):
        """An answer to somebody's request, which has come through the proxy."""
        headers = [*headers, ("X-Forwarded-For", ip or somebody())]
        headers += [("Authorization", basic(user))] if user else []
        with self.peer() as wire:
            return wire.ask(request(method, path, body if method != "GET" else None, host or self.host, headers))

    def status(self, *words, **options):
        return self.ask(*words, **options).status

    def waiting(self):
        (row,) = [row for row in self.api.walk("/queue") if row["endpoint"] == self.name]
        return row["depth"] + row["dead"]


def basic(user):
    return "Basic " + base64.b64encode(user.encode()).decode()


def cli(world, name, *flags, folder, **environment):
    """`hookway-relay endpoint protect`."""
    words = ("endpoint", "protect", name, *flags, "--data-dir", world.relay.data, "--json")
    done = run(HOOKWAY_RELAY, *words, folder=folder, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["protection"]


@pytest.fixture(scope="module")
def world():
    with World("--trusted-proxy", PROXY, "--deny", DENIED, "--abuse-contact", "abuse@relay.test") as world:
        world.root = world.token("root", "--scope", "admin")
        yield world


@pytest.fixture
def guarded(world, name):
    return Guarded(world, name)


# ── from where ────────────────────────────────────────────────────────────────────────────────────────────────────

SENT_FROM = [
    # allow, deny, the sender, whether it may
    ([], [], "192.0.2.1", True),
    (["192.0.2.0/24"], [], "192.0.2.255", True),
    (["192.0.2.0/24"], [], "192.0.3.0", False),
    (["192.0.2.7/24"], [], "192.0.2.1", True),
    (["192.0.2.7"], [], "192.0.2.7", True),
    (["192.0.2.7"], [], "192.0.2.70", False),
    (["192.0.2.7"], [], "::ffff:192.0.2.7", True),
    (["192.0.2.7"], [], "::ffff:c000:207", True),
    (["::ffff:192.0.2.7"], [], "192.0.2.7", True),
    (["192.0.2.7"], [], "::192.0.2.7", False),
    (["192.0.2.7"], [], "64:ff9b::192.0.2.7", False),
    (["2001:db8::/32"], [], "2001:db8:ffff::1", True),
    (["2001:db8::/32"], [], "2001:db9::1", False),
    (["2001:db8::1"], [], "2001:0DB8:0:0:0:0:0:1", True),
    (["2001:db8::1"], [], "[2001:db8::1]:443", True),
    (["2001:db8::/32"], [], "192.0.2.7", False),
    (["0.0.0.0/0"], [], "192.0.2.7", True),
    (["0.0.0.0/0"], [], "2001:db8::1", False),
    (["0.0.0.0/0"], [], "::ffff:192.0.2.7", True),
    (["::/0"], [], "192.0.2.7", False),
    (["all"], [], "2001:db8::1", True),
    ([], ["192.0.2.0/24"], "192.0.2.7", False),
    ([], ["192.0.2.0/24"], "::ffff:192.0.2.7", False),
    ([], ["192.0.2.0/24"], "192.0.3.7", True),
    ([], ["all"], "192.0.2.7", False),
    ([], ["::/0"], "2001:db8::1", False),
    (["all"], ["192.0.2.7"], "192.0.2.7", False),
    (["192.0.2.7"], ["192.0.2.0/24"], "192.0.2.7", False),
    (["192.0.2.0/24"], ["192.0.2.7"], "192.0.2.8", True),
    (["192.0.2.7"], ["all"], "192.0.2.7", False),
    (["github"], [], "140.82.115.9", True),
    (["github"], [], "2606:50c0::1", True),
    (["github"], [], "3.18.12.63", False),
    (["github", "stripe"], [], "3.18.12.63", True),
    (["github"], ["140.82.115.9"], "140.82.115.9", False),
    (["github"], ["github"], "140.82.115.9", False),
    ([], ["github"], "140.82.115.9", False),
    # Whoever may send to nobody, may not because one endpoint would let him.
    ([], [], "203.0.113.7", False),
    (["203.0.113.7", "all"], [], "203.0.113.7", False),
    (["all"], [], "::ffff:203.0.113.7", False),
]


def test_who_may_send(guarded):
    for allow, deny, ip, may in SENT_FROM:
        guarded.protect(allow=allow, deny=deny)
        guarded.app.clear()
        reply = guarded.ask(ip=ip)
        assert (reply.status, len(guarded.app.seen)) == ((200, 1) if may else (403, 0)), (allow, deny, ip)
        if not may:
            assert reply.body.startswith(b"nothing is taken here from your address") and ip.encode() not in reply.body
            assert reply.header("x-robots-tag") and not reply.header("retry-after")


def test_each_provider_is_let_in_by_its_name_alone(guarded):
    presets = guarded.api.get("/presets")
    assert {"github", "stripe"} < set(presets)
    for name, preset in presets.items():
        guarded.protect(allow=[name])
        for net in map(ipaddress.ip_network, preset["ranges"][:3]):
            for ip in {net[0], net[-1]}:
                assert guarded.status(ip=str(ip)) == 200, (name, ip)
        assert guarded.status(ip="192.0.2.7") == 403 and guarded.status(ip="2001:db8::1") == 403, name


def test_what_a_stranger_says_of_his_address_changes_nothing(guarded):
    """He is who connects."""
    guarded.protect(allow=["192.0.2.0/24"])
    forged = [
        (name, "192.0.2.7")
        for name in ("X-Forwarded-For", "X-Real-IP", "Client-IP", "True-Client-IP", "X-Client-IP", "CF-Connecting-IP")
    ]
    forged.append(("Forwarded", "for=192.0.2.7"))
    for source in ("127.0.0.1", "127.0.0.9"):
        with guarded.peer(source) as wire:
            assert wire.ask(request("POST", "/", b"x", guarded.host, forged)).status == 403
    guarded.protect(deny=["127.0.0.9"])
    with guarded.peer("127.0.0.9") as wire:
        assert wire.ask(request("POST", "/", b"x", guarded.host, forged)).status == 403
    with guarded.peer("127.0.0.1") as wire:
        assert wire.ask(request("POST", "/", b"x", guarded.host, forged)).status == 200


def test_an_address_that_comes_mapped_is_the_same(new_world):
    """A listener for both kinds tells IPv4 senders by an IPv6 address."""
    world = new_world("--https", "[::]:0", "--deny", "127.0.0.3")
    world.relay.https = ("127.0.0.1", world.relay.https[1])
    world.root = world.token("root", "--scope", "admin")
    guarded = Guarded(world, "billing")
    statuses = lambda *sources: [status(guarded, source) for source in sources]  # noqa: E731
    assert statuses("127.0.0.1", "127.0.0.3") == [200, 403]
    guarded.protect(allow=["127.0.0.0/30"], deny=["127.0.0.2"])
    assert statuses("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4") == [200, 403, 403, 403]


def status(guarded, source):
    with guarded.peer(source) as wire:
        return wire.ask(request("POST", "/", b"x", guarded.host)).status


def test_who_is_refused_leaves_nothing_in_the_queue(world, name):
    """No more than he reaches the app."""
    away = Guarded(world, name, away=True)
    away.protect(allow=["192.0.2.0/24"], paths=["/in"], users=["ann:password"], max_body=100)
    assert away.status("/in", ip="198.51.100.1", user="ann:password") == 403
    assert away.status("/out", ip="192.0.2.1", user="ann:password") == 403
    assert (
        away.status("/in", ip="192.0.2.1") == 401 and away.status("/in", ip="192.0.2.1", user="ann:wrong pass") == 401
    )
    assert away.status("/in", ip="192.0.2.1", user="ann:password", body=b"x" * 101) == 413
    assert away.waiting() == 0
    assert away.status("/in", ip="192.0.2.1", user="ann:password") == 202 and away.waiting() == 1


# ── with a password ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def known(guarded):
    guarded.protect(users=["ann:correct horse", "bob:päss:wörd ✓"])
    return guarded


NOBODY = {
    "nothing": None,
    "a wrong password": basic("ann:correct house"),
    "another's password": basic("bob:correct horse"),
    "a name that nobody has": basic("carl:correct horse"),
    "no password": basic("ann:"),
    "no name": basic(":correct horse"),
    "nothing at all": basic(":"),
    "no colon": basic("ann"),
    "a blank more": basic("ann:correct horse "),
    "a beginning": basic("ann:correct"),
    "another case": basic("Ann:correct horse"),
    "a NUL before it": basic("ann\0:correct horse"),
    "a long password": basic("ann:" + "x" * 5000),
    "Latin-1 bytes": "Basic " + base64.b64encode("bob:päss:wörd".encode("latin-1")).decode(),
    "another scheme": basic("ann:correct horse").replace("Basic", "Bearer"),
    "no scheme": basic("ann:correct horse").removeprefix("Basic "),
    "plain text": "Basic ann:correct horse",
    "a hash": "Basic " + "0" * 64,
    "cut base64": basic("ann:correct horse")[:-3],
    "URL base64": "Basic " + base64.urlsafe_b64encode("bob:päss:wörd ✓?>".encode()).decode(),
    "a list": basic("ann:correct horse") + ", " + basic("ann:correct horse"),
    "a digest": 'Digest username="ann", realm="webhooks", uri="/", response="0"',
    "bytes": "Basic \xff\xfe",
}


def test_nobody_passes_without_a_password(known):
    for how, authorization in NOBODY.items():
        reply = known.ask(headers=[("Authorization", authorization)] if authorization else [])
        assert reply.status == 401 and reply.complete, how
        assert reply.header("www-authenticate") == 'Basic realm="webhooks", charset="UTF-8"', how
    for field in ("X-Authorization", "Proxy-Authorization", "Cookie"):
        assert known.status(headers=[(field, basic("ann:correct horse"))]) == 401
    assert not known.app.seen


def test_a_password_has_no_more_than_it_has(known):
    assert known.status(user="ann:correct horse\0") == 401


def test_who_has_the_password_passes(known):
    for user in ("ann:correct horse", "bob:päss:wörd ✓"):
        passes(known, user)


def passes(known, user):
    for method in ("POST", "GET", "PUT", "DELETE", "PATCH"):
        assert known.status("/x", method=method, user=user) == 200
    for scheme in ("basic", "BASIC", "Basic "):
        assert known.status(headers=[("Authorization", basic(user).replace("Basic", scheme))]) == 200
    # A browser, as a person types it.
    with known.peer() as wire:
        wrong, right = [("Authorization", basic(text)) for text in ("ann:wrong word", user)]
        replies = [
            wire.ask(request("POST", "/", b"x", known.host, [header, ("X-Forwarded-For", "198.51.100.7")]))
            for header in (wrong, right, wrong, right)
        ]
    assert [reply.status for reply in replies] == [401, 200, 401, 200]


def test_two_fields_are_not_taken_for_the_better_one(known):
    right, wrong = ("Authorization", basic("ann:correct horse")), ("Authorization", basic("ann:wrong word"))
    assert known.status(headers=[wrong, right]) in (400, 401)
    for seen in known.app.seen:
        assert seen.all("authorization") == [right[1]]


def test_who_guesses_a_password_is_not_heard_for_a_while(known):
    guesser, right = somebody(), basic("ann:correct horse")
    for number in range(HELD_BACK):
        assert known.status(ip=guesser, user=f"ann:guess number {number}") == 401
    reply = known.ask(ip=guesser, user="ann:another guess")
    assert reply.status == 429 and 1 <= int(reply.header("retry-after")) <= 60
    assert known.status(ip=guesser, user="ann:correct horse") == 429, "it might be a guess"
    assert known.status(ip=guesser) == 401, "who shows none is asked for one"
    assert known.status(ip=somebody(), user="ann:correct horse") == 200, "from elsewhere it is heard"
    assert known.status(ip=guesser, headers=[("Authorization", right)]) == 200, "and is known from now on"
    assert known.status(ip=guesser, user="bob:päss:wörd ✓") == 429 and known.status(ip=guesser, user="ann:more") == 429
    # Another IPv6 address of the same /64 is the same guesser.
    for number in range(HELD_BACK):
        assert known.status(ip=f"2001:db8:5::{number}", user=f"ann:guess number {number}") == 401
    assert known.status(ip="2001:db8:5::ffff:1", user="ann:guess") == 429
    assert known.status(ip="2001:db8:6::1", user="ann:some guess") == 401
    # Nor does one endpoint's guesser harm him elsewhere.
    other = Guarded(known.world, known.name + "-b")
    other.protect(users=["ann:correct horse"])
    assert other.status(ip=guesser, user="ann:correct horse") == 200


def test_who_has_the_right_password_at_once_with_others_passes(guarded):
    """Its check takes a core for a while: all of a burst wait for one."""
    guarded.protect(users=["ann:correct horse"])
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        sender = somebody()
        statuses = list(pool.map(lambda _: guarded.status(ip=sender, user="ann:correct horse"), range(24)))
        assert statuses == [200] * 24
        guarded.protect(users=["ann:another horse"])
        statuses = list(pool.map(lambda _: guarded.status(ip=somebody(), user="ann:correct horse"), range(8)))
        assert statuses == [401] * 8
        guesses = [pool.submit(guarded.status, ip=somebody(), user=f"ann:a guess {number}") for number in range(6)]
        right = [pool.submit(guarded.status, ip=somebody(), user="ann:another horse") for _ in range(12)]
        assert {one.result(DEADLINE) for one in right} == {200} and {one.result(DEADLINE) for one in guesses} == {401}


def test_a_password_ends_with_its_change(known):
    assert known.status(user="ann:correct horse") == 200
    known.protect(users=["ann:new and better", "bob"])
    assert known.status(user="ann:correct horse") == 401, "though it was known"
    assert known.status(user="ann:new and better") == known.status(user="bob:päss:wörd ✓") == 200
    known.protect(users=["bob"])
    assert known.status(user="ann:new and better") == 401 and known.status(user="bob:päss:wörd ✓") == 200
    known.api.do("DELETE", f"/endpoints/{known.name}/protection")
    assert known.status() == 200


def test_of_two_users_of_one_name_both_or_none_are_taken(guarded):
    answer = guarded.api.ask(
        "PUT", f"/api/endpoints/{guarded.name}/protection", {"users": ["ann:password 1", "ann:password 2"]}
    )
    if answer.status == 200:
        assert [guarded.status(user=f"ann:password {number}") for number in (1, 2)] == [200, 200]
    else:
        assert answer.status == 422


def test_a_websocket_wants_the_password(world, name):
    server = EchoServer()
    world.client(server.address, name=name)
    Api(world.relay, world.root).do("PUT", f"/endpoints/{name}/protection", {"users": ["ann:correct horse"]})
    url = world.url("/socket", name).replace("https:", "wss:")
    options = {"ssl": tls_context(world.relay.ca), "proxy": None, "open_timeout": DEADLINE, "subprotocols": ["echo"]}
    for headers in ({}, {"Authorization": basic("ann:wrong horse")}):
        with pytest.raises(InvalidStatus) as refused:
            connect(url, additional_headers=headers, **options)
        assert (
            refused.value.response.status_code == 401 and "Basic" in refused.value.response.headers["WWW-Authenticate"]
        )
    assert not server.headers
    with connect(url, additional_headers={"Authorization": basic("ann:correct horse")}, **options) as socket:
        socket.send("hello")
        assert socket.recv(DEADLINE) == "hello"
        # What is open stays open.
        Api(world.relay, world.root).do("PUT", f"/endpoints/{name}/protection", {"deny": ["all"]})
        socket.send("still there")
        assert socket.recv(DEADLINE) == "still there"
    server.server.shutdown()


def test_an_upload_is_refused_before_it_comes(known):
    """And one that is let in passes as it is."""

    def upload(*headers):
        wire = known.peer()
        fields = [
            ("Transfer-Encoding", "chunked"),
            ("Expect", "100-continue"),
            ("X-Forwarded-For", somebody()),
            *headers,
        ]
        wire.send(request("POST", "/upload", host=known.host, headers=fields))
        return wire

    with upload() as wire:
        reply = wire.reply()
        assert reply.status == 401 and not reply.interim, "not asked to go on"
    with upload(("Authorization", basic("ann:correct horse"))) as wire:
        for _ in range(48):
            wire.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        reply = wire.ask(b"0\r\n\r\n", "POST")
        assert reply.status == 200 and json.loads(reply.body)["length"] == 48 << 16
    # One that does not wait for an answer gets it, too.
    with known.peer() as wire:
        big = request("POST", "/", b"x" * (1 << 20), known.host)
        assert wire.ask(big).status == 401
    assert len(known.app.seen) == 1


def test_http2_wants_the_password(known):
    with Frames(known.peer(alpn=("h2",), timeout=5)) as frames:
        fields = request_fields("POST", "/h2", known.host, more=[("x-forwarded-for", somebody())])
        refused = frames.ask(fields, b"x" * 10_000)
        assert refused.status == 401 and refused.header("www-authenticate").startswith("Basic ")
        assert frames.ask([*fields, ("authorization", basic("ann:wrong horse"))]).status == 401
        assert frames.ask([*fields, ("authorization", basic("ann:correct horse"))], b"x").status == 200
    assert len(known.app.seen) == 1


# ── whereto ───────────────────────────────────────────────────────────────────────────────────────────────────────

INSIDE = [
    "/stripe", "/stripe/", "/stripe?a=1", "/stripe?x=/../..", "/stripe/events", "/stripe/events/", "/stripe//double", "/stripe/caf%C3%A9",
    "/stripe/a%20b", "/stripe/..a", "/stripe/a..", "/stripe/...", "/stripe/a;b=c", "/stripe/%3f", "/stripe/%23", "/stripe/~a", "/stripe/*",
    "/stripe/:8080", "/stripe/@x", "/github/x", "/stripe/a+b", "/stripe/%41", "/stripe?../../admin", "/github/",
]  # fmt: skip
OUTSIDE = [
    "/", "/stripes", "/stripe-admin", "/Stripe", "/STRIPE", "/strip", "//stripe", "/./stripe", "/x/../stripe", "/admin", "/github", "/githubx",
    "/admin/stripe", "/%73tripe", "/stripe%20", "/stripe%00", "/stripe;x", "/stripe.json", "/stripe%3f", "/stripe%23", "*", "/stripe%2fx", "?x",
    "/stripe/..", "/stripe/../", "/stripe/../admin", "/stripe/./../admin", "/stripe/.", "/stripe/./x", "/stripe//../admin", "/stripe//..//admin",
    "/stripe/%2e%2e/admin", "/stripe/%2E%2E/admin", "/stripe/.%2e/admin", "/stripe/%2e./admin", "/stripe/%2e/admin", "/stripe/%252e%252e/admin",
    "/stripe/%25%32%65%25%32%65/admin", "/stripe%2f..%2fadmin", "/stripe/..%2fadmin", "/stripe/..%2Fadmin", "/stripe/%2e%2e%2fadmin", "/stripe/x%2f..%2f..%2fadmin",
    "/stripe/..;/admin", "/stripe/..;a=b/admin", "/stripe/.;/admin", "/stripe/;/../admin", "/stripe/..%3b/admin", "/stripe/..%3Bx/admin",
    "/stripe/..\\admin", "/stripe\\..\\admin", "/stripe/\\../admin", "/stripe/..%5cadmin", "/stripe/%5c../admin", "/stripe/%5C..%5Cadmin", "/stripe%5c..%5cadmin",
    "/stripe/%00", "/stripe/..%00/admin", "/stripe/%00/../admin", "/stripe/%0a", "/stripe/..%0d%0a/admin", "/stripe/..%09/admin", "/stripe/%7f", "/stripe/%zz",
    "/stripe/%", "/stripe/%2", "/stripe/a%2fb", "/stripe/..?x", "/stripe/../admin?x=1", "/stripe/..#x", "/stripe/%u002e%u002e/admin", "/stripe/a/b/../../../admin",
    "/stripe/%2e%2e?/x", "/stripe/%25", "/stripe/%255c", "/github/../admin", "/github/..", "/github%2f",
]  # fmt: skip


def readings(path):
    """What apps could take a target's path for."""
    path = path.partition("?")[0].partition("#")[0]
    for decoded in (path, urllib.parse.unquote(path), urllib.parse.unquote(urllib.parse.unquote(path))):
        for slashed in (decoded, decoded.replace("\\", "/")):
            for plain in (slashed, re.sub(r";[^/]*", "", slashed), slashed.partition("\0")[0]):
                yield posixpath.normpath(re.sub("/+", "/", plain))


def test_only_these_paths_and_what_is_below(guarded):
    """As raw bytes, over HTTP/1.1 and HTTP/2; what gets to the app leads nowhere else however it is read."""
    guarded.protect(paths=["/stripe", "/github/"])
    wrong = []
    for path in INSIDE + OUTSIDE:
        expected = {200} if path in INSIDE else {403, 400}
        targets = {path: path, f"https://{guarded.host}{path}": "absolute"} if path.startswith("/") else {path: path}
        for target in targets:
            with guarded.peer("127.0.0.1") as wire:
                method = "OPTIONS" if path == "*" else "POST"
                reply = wire.ask(request(method, target, b"x", guarded.host))
            wrong += [(target, reply.status)] if reply.status not in expected else []
        with Frames(guarded.peer("127.0.0.1", alpn=("h2",), timeout=5)) as frames:
            outcome = frames.ask(request_fields("POST", path, guarded.host), b"x")
            if outcome.status not in expected and not (path in OUTSIDE and outcome.error):
                wrong.append(("h2", path, outcome.status))
    assert not wrong
    for seen in guarded.app.seen:
        for read in readings(seen.target):
            assert read == "/stripe" or read.startswith(("/stripe/", "/github")), (seen.target, read)
    assert len(guarded.app.seen) == 3 * len(INSIDE) and not guarded.app.unclean


def test_a_slash_alone_is_everything_that_is_clear(guarded):
    guarded.protect(paths=["/"])
    assert guarded.status("/") == guarded.status("/a/b") == 200
    assert guarded.status("/a/../b") == 403, "what could be taken otherwise is not"
    guarded.protect()
    assert guarded.status("/a/../b") == 200, "without paths it is the app's to say"


def test_a_refused_path_says_so(guarded):
    guarded.protect(paths=["/stripe"])
    reply = guarded.ask("/admin")
    assert reply.status == 403 and b"path" in reply.body and b"stripe" not in reply.body, "not what would be"


# ── how much ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_so_many_a_second(guarded):
    guarded.protect(rate="5/s")
    with guarded.peer() as wire:
        replies = [wire.ask(request("POST", "/", b"x", guarded.host)) for _ in range(15)]
    statuses = [reply.status for reply in replies]
    assert 5 <= statuses.count(200) <= 10 and set(statuses) == {200, 429}
    late = next(reply for reply in replies if reply.status == 429)
    assert int(late.header("retry-after")) >= 1 and late.header("x-robots-tag")
    assert len(guarded.app.seen) == statuses.count(200)
    eventually(lambda: guarded.status() == 200, 3, "another second")
    guarded.protect(rate="off")
    assert {guarded.status() for _ in range(20)} == {200}


def test_so_many_a_second_wait(world, name):
    """For who is away, too."""
    away = Guarded(world, name, away=True)
    away.protect(rate="4/s")
    with away.peer() as wire:
        statuses = [wire.ask(request("POST", "/", b"x", away.host)).status for _ in range(12)]
    assert set(statuses) == {202, 429} and away.waiting() == statuses.count(202) <= 8


def test_the_relay_s_own_rate_stays_above(new_world):
    world = new_world("--rate", "3/s")
    world.root = world.token("root", "--scope", "admin")
    guarded = Guarded(world, "billing")
    for rate in ("1000/s", "off"):
        guarded.protect(rate=rate)
        with guarded.peer("127.0.0.1") as wire:
            statuses = [wire.ask(request("POST", "/", b"x", guarded.host)).status for _ in range(12)]
        assert 429 in statuses, rate


def chunked(body, size=1000):
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("away", [False, True], ids=["there", "away"])
def test_so_large_and_no_larger(world, name, away):
    guarded = Guarded(world, name, away)
    well = 202 if away else 200
    for most in (5000, 0):
        guarded.protect(max_body=most)
        assert guarded.status(body=b"x" * most) == well
        reply = guarded.ask(body=b"x" * (most + 1))
        assert reply.status == 413 and str(most).encode() in reply.body and reply.header("connection") == "close"
        for body in (b"x" * most, b"x" * (most + 1), b"x" * 300_000):
            with guarded.peer() as wire:
                wire.send(request("POST", "/", host=guarded.host, headers=[("Transfer-Encoding", "chunked")]))
                with contextlib.suppress(OSError):
                    wire.send(chunked(body))
                assert wire.reply().status == (413 if len(body) > most else well), (most, len(body))
        with Frames(guarded.peer(alpn=("h2",), timeout=5)) as frames:
            fields = request_fields("POST", "/h2", guarded.host)
            assert frames.ask(fields, b"x" * (most + 1)).status == 413
            assert frames.ask([*fields, ("content-length", str(most + 1))], b"x" * (most + 1)).status == 413
    assert not away or guarded.waiting() == 4
    assert all(len(seen.body) <= 5000 for seen in guarded.app.seen)


def test_the_relay_s_own_size_stays_above(new_world):
    world = new_world("--max-body", "2KiB")
    world.root = world.token("root", "--scope", "admin")
    guarded = Guarded(world, "billing")
    guarded.protect(max_body=1 << 40)
    with guarded.peer("127.0.0.1") as wire:
        assert wire.ask(request("POST", "/", b"x" * 2048, guarded.host)).status == 200
        assert wire.ask(request("POST", "/", b"x" * 2049, guarded.host)).status == 413


# ── by the command line, and for how long ─────────────────────────────────────────────────────────────────────────


def test_by_the_command_line(guarded, tmp_path):
    """In force within moments in a running relay; what was before is replaced."""
    protect = lambda *flags, **environment: cli(guarded.world, guarded.name, *flags, folder=tmp_path, **environment)  # noqa: E731
    nothing = {"allow": [], "deny": [], "users": [], "paths": [], "rate": None, "max_body": None}
    assert protect() == nothing
    flags = "--allow-ip", "192.0.2.0/24,github", "--allow-ip", "2001:db8::/32", "--deny-ip", "192.0.2.9"
    shown = protect(*flags, "--allow-path", "/a", "--allow-path", "/b", "--limit-rate", "100/s", "--limit-body", "1KiB")
    wanted = {
        "allow": ["192.0.2.0/24", "github", "2001:db8::/32"],
        "deny": ["192.0.2.9"],
        "paths": ["/a", "/b"],
        "rate": "100/s",
        "max_body": 1024,
    }
    assert shown == nothing | wanted == protect() == guarded.api.get(f"/endpoints/{guarded.name}/protection")
    eventually(lambda: guarded.status("/a", ip="198.51.100.1") == 403, SOON, "the protection in force")
    assert guarded.status("/a", ip="192.0.2.1") == guarded.status("/b/c", ip="2001:db8::1") == 200
    assert guarded.status("/a", ip="192.0.2.9") == guarded.status("/c", ip="192.0.2.1") == 403
    assert guarded.status("/a", ip="192.0.2.1", body=b"x" * 1025) == 413
    assert (
        protect("--basic-auth", "USER_A", "--basic-auth", "USER_B", USER_A="ann:password 1", USER_B="bob:password 2")[
            "allow"
        ]
        == []
    )
    eventually(lambda: guarded.status("/c") == 401, SOON, "the other protection in force")
    assert guarded.status("/c", user="ann:password 1") == guarded.status("/c", user="bob:password 2") == 200
    assert protect("--none") == nothing
    eventually(lambda: guarded.status("/c") == 200, SOON, "no protection")


def test_by_the_api_it_is_in_force_at_once(guarded):
    for number in range(20):
        guarded.protect(deny=["all"])
        assert guarded.status() == 403, number
        guarded.api.do("DELETE", f"/endpoints/{guarded.name}/protection")
        assert guarded.status() == 200, number


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--allow-ip", "1.2.3"], "address"), (["--deny-ip", "nobody"], "github"), (["--allow-path", "x"], "/stripe"),
        (["--allow-path", "/../x"], "path"), (["--limit-rate", "0/s"], "rate"), (["--limit-body", "much"], "size"), (["--limit-body", "-1"], "-1"),
        (["--basic-auth", "NO_SUCH"], "NO_SUCH"), (["--basic-auth", "BAD"], "BAD"), (["--none", "--limit-rate", "1/s"], "--none"),
        (["--basic-auth", "ann:correct horse"], "environment variable"),
    ],
)  # fmt: skip
def test_flags_that_are_wrong_protect_from_nothing(guarded, tmp_path, flags, said):
    guarded.protect(paths=["/kept"])
    words = ("endpoint", "protect", guarded.name, *flags, "--data-dir", guarded.world.relay.data)
    done = run(HOOKWAY_RELAY, *words, folder=tmp_path, BAD="ann:short")
    assert done.returncode in (1, 2) and said in done.stderr and "short" not in done.stderr.replace("too short", "")
    assert guarded.api.get(f"/endpoints/{guarded.name}/protection")["paths"] == ["/kept"]


def test_no_protection_for_nobody(world, tmp_path):
    done = run(
        HOOKWAY_RELAY, "endpoint", "protect", "nobody", "--none", "--data-dir", world.relay.data, folder=tmp_path
    )
    assert done.returncode == 1 and "there is no endpoint `nobody`" in done.stderr and "next:" in done.stderr


def test_it_survives_a_restart_and_ends_with_a_release(new_world, tmp_path):
    world = new_world("--trusted-proxy", PROXY)
    world.root = world.token("root", "--scope", "admin")
    guarded = Guarded(world, "billing")
    everything = {
        "allow": ["192.0.2.0/24"],
        "users": ["ann:correct horse"],
        "paths": ["/in"],
        "rate": "500/s",
        "max_body": 10,
    }
    shown = guarded.protect(**everything)

    def in_force():
        return (
            [guarded.status("/in", ip=ip, user=user, body=body) for ip, user, body in (
                ("192.0.2.1", "ann:correct horse", b"x"), ("198.51.100.1", "ann:correct horse", b"x"), ("192.0.2.1", None, b"x"),
                ("192.0.2.1", "ann:correct horse", b"x" * 11))]
            + [guarded.status("/out", ip="192.0.2.1", user="ann:correct horse")]
        )  # fmt: skip

    assert in_force() == [200, 403, 401, 413, 403]
    restart(world)
    guarded.api.relay = world.relay
    eventually(
        lambda: guarded.status("/in", ip="192.0.2.1", user="ann:correct horse") == 200, what="the client being back"
    )
    assert in_force() == [200, 403, 401, 413, 403]
    assert guarded.api.get("/endpoints/billing/protection") == shown
    guarded.api.do("DELETE", "/endpoints/billing")
    assert guarded.client.exited() == 5
    again = Guarded(world, "billing")
    assert again.status("/out", ip="198.51.100.1") == 200
    assert again.api.get("/endpoints/billing/protection") == shown | dict.fromkeys(("rate", "max_body")) | {
        "allow": [], "users": [], "paths": [],
    }  # fmt: skip


def test_passwords_lie_nowhere(guarded, tmp_path):
    """Not in the database, its log, the relay's log, an answer, or what a command shows."""
    passwords = ["correct horse battery", "by the command line", "a wrong guess of someone"]
    guarded.protect(users=[f"ann:{passwords[0]}"])
    assert guarded.status(user=f"ann:{passwords[0]}") == 200 and guarded.status(user=f"ann:{passwords[2]}") == 401
    cli(guarded.world, guarded.name, "--basic-auth", "USER_A", folder=tmp_path, USER_A=f"bob:{passwords[1]}")
    eventually(lambda: guarded.status(user=f"bob:{passwords[1]}") == 200, SOON, "the password in force")
    shown = [
        guarded.world.relay.command(*words)
        for words in (("endpoint", "show", guarded.name), ("audit",), ("endpoint", "list"))
    ]
    everything = kept_bytes(guarded.world.relay) + guarded.world.relay.errors.read_bytes() + json.dumps(shown).encode()
    command_lines = [
        pathlib.Path(f"/proc/{guarded.world.relay.pid}/{what}").read_bytes() for what in ("cmdline", "environ")
    ]
    everything += b"".join(command_lines)
    assert b"bob" in everything and b"pbkdf2-sha256$600000$" in everything
    for password in passwords:
        for secret in (password, f"ann:{password}", f"bob:{password}"):
            assert not [form for form in forms(secret) if form in everything], secret


def test_a_host_of_one_s_own_is_protected_with_its_endpoint(tmp_path_factory, new_world):
    ca, leaf = certificates(tmp_path_factory.mktemp("hosts"), DOMAIN, f"*.{DOMAIN}", "*.custom.test")
    files = ("--tls", "files", "--tls-cert", str(leaf), "--tls-key", str(leaf))
    with Moody() as resolver:
        world = new_world("--resolver", resolver.authority, *files)
        api = Api(world.relay, world.token("root", "--scope", "admin"))
        at = Domains(world, resolver, ca)
        host = "pay.custom.test"
        at.led(host)
        assert at.ask(host).status == 200
        api.do("PUT", "/endpoints/billing/protection", {"paths": ["/in"], "users": ["ann:correct horse"]})
        for name in (host, f"billing.{DOMAIN}"):
            assert at.ask(name, "/out").status == 403 and at.ask(name, "/in").status == 401
            with world.wire(sni=name) as wire:
                fields = [("Authorization", basic("ann:correct horse"))]
                assert wire.ask(request("POST", "/in", b"x", name, fields)).status == 200


# ── what the relay itself says ────────────────────────────────────────────────────────────────────────────────────

BROWSER = ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
NOINDEX = "noindex, nofollow"


def test_a_name_that_nobody_has_is_told_to_a_browser_with_a_contact(guarded):
    nobody = f"nobody.{DOMAIN}"
    with guarded.world.wire("nobody") as wire:
        page = wire.ask(request("GET", "/login?x=%3Cscript%3E", host=nobody, headers=[BROWSER]))
        assert page.status == 404 and page.header("content-type") == "text/html; charset=utf-8"
        assert (
            b'href="mailto:abuse@relay.test"' in page.body and b"noindex" in page.body and b"<script" not in page.body
        )
        assert page.header("x-robots-tag") == NOINDEX and page.header("x-content-type-options") == "nosniff"
        assert "default-src 'none'" in page.header("content-security-policy")
        assert "frame-ancestors 'none'" in page.header("content-security-policy")
        for method, headers in (("POST", [BROWSER]), ("GET", []), ("GET", [("Accept", "application/json")])):
            text = wire.ask(request(method, "/", b"" if method == "POST" else None, nobody, headers))
            assert (
                text.status == 404
                and text.header("content-type").startswith("text/plain")
                and text.body.count(b"\n") == 1
            )
            assert text.header("x-robots-tag") == NOINDEX and b"abuse" not in text.body


CONTACTS = ["https://relay.test/abuse?a=1&b=2", "http://relay.test/", "a+b@relay.test"]


@pytest.mark.parametrize("contact", CONTACTS)
def test_contacts(new_world, contact):
    world = new_world("--abuse-contact", contact)
    with world.wire("nobody") as wire:
        page = wire.ask(request("GET", "/", host=f"nobody.{DOMAIN}", headers=[BROWSER])).body.decode()
    shown = contact.replace("&", "&amp;")
    assert f'href="{"" if "://" in contact else "mailto:"}{shown}">{shown}</a>' in page


@pytest.mark.parametrize(
    "contact",
    ["nobody", "", "javascript:alert(1)", "ftp://x", "a@b c", 'https://x"onload=', "<a@b>", "https://x\n", "@x", "a@"],
)
def test_what_is_no_contact(relay, tmp_path, contact):
    done = relay("check", "--domain", DOMAIN, "--data-dir", tmp_path, f"--abuse-contact={contact}")
    assert done.returncode == 2 and "a contact is" in done.stderr


def test_no_relay_s_answer_is_for_search_engines(known):
    """404, 403, 401, 421, 400, 503, 202: whatever the relay says itself."""
    answers = [known.ask("/", method="GET"), known.ask("/", ip="203.0.113.7")]
    with known.peer("127.0.0.1") as wire:
        answers.append(wire.ask(request("GET", "/", host=f"other.{DOMAIN}")))
        answers.append(wire.ask(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"))
    known.protect()
    known.client.stop()
    eventually(lambda: known.status(method="GET") == 503, what="the client being away")
    answers += [known.ask(method="GET"), known.ask(method="GET", headers=[BROWSER]), known.ask()]
    assert [reply.status for reply in answers] == [401, 403, 421, 400, 503, 503, 202]
    for reply in answers:
        assert reply.header("x-robots-tag") == NOINDEX and reply.header("x-content-type-options") == "nosniff"


# ── what apps say ─────────────────────────────────────────────────────────────────────────────────────────────────

HTML = b"<!doctype html><title>Sign in</title><form action=https://evil.example>"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"


def kinds(seen, _connection):
    """An app that answers with what stands in the query, the fields of its answer being as there."""
    query = urllib.parse.parse_qs(seen.target.partition("?")[2], keep_blank_values=True, encoding="latin-1")
    status = query.get("status", ["200 OK"])[0]
    fields = "".join(f"{field}\r\n" for field in query.get("field", []))
    body = b"" if status[:3] in ("204", "304") or seen.method == "HEAD" else HTML
    length = "" if status[:3] in ("204", "304") else f"Content-Length: {len(HTML)}\r\n"
    return f"HTTP/1.1 {status}\r\n{length}{fields}\r\n".encode("latin-1") + body


class Published:
    """An app whose answers are looked at as they come out."""

    def __init__(self, world, name="published"):
        self.world, self.name = world, name
        self.app = world.app(answer=kinds)
        world.client(self.app, name=name)

    def ask(self, *fields, status="200 OK", method="GET"):
        query = urllib.parse.urlencode(
            [("status", status), *(("field", field) for field in fields)], encoding="latin-1"
        )
        with self.world.wire(self.name) as wire:
            body = b"x" if method == "POST" else None
            return wire.ask(request(method, f"/?{query}", body, f"{self.name}.{DOMAIN}", [BROWSER]))


@pytest.fixture(scope="module")
def published(world):
    return Published(world)


PAGES = [
    "text/html", "text/html; charset=utf-8", "TEXT/HTML", "Text/Html;charset=x", "text/html ;x", "text/html;", "  text/html  ",
    "application/xhtml+xml", "image/svg+xml", "image/svg+xml; charset=utf-8", "application/xhtml+xml;profile=x",
]  # fmt: skip
NO_PAGES = [
    "application/json", "application/json; charset=utf-8", "text/plain", "application/problem+json", "image/png", "application/octet-stream",
    "text/xml", "application/xml", "application/soap+xml", "application/x-www-form-urlencoded", "text/htmlx", "text/event-stream", "application/pdf",
]  # fmt: skip


def test_pages_of_apps_are_not_for_search_engines(published):
    for kind in PAGES:
        reply = published.ask(f"Content-Type: {kind}")
        assert reply.body == HTML and reply.header("x-robots-tag") == NOINDEX, kind
    for kind in NO_PAGES:
        reply = published.ask(f"Content-Type: {kind}")
        assert reply.body == HTML and reply.all("x-robots-tag") == [], kind
        assert not reply.header("content-security-policy") and not reply.header("x-content-type-options")
    for fields in (["Content-Type: application/json, text/html"], ["Content-Type: text/plain", "Content-Type: text/html"]):
        assert published.ask(*fields).header("x-robots-tag") == NOINDEX, "browsers take the last"
    own = published.ask("Content-Type: text/html", "X-Robots-Tag: all, max-snippet:5")
    assert own.all("x-robots-tag") == ["all, max-snippet:5"], "the app has said so itself"


def test_indexing_can_be_allowed(new_world):
    published = Published(new_world("--allow-indexing"))
    for kind in PAGES + NO_PAGES:
        assert published.ask(f"Content-Type: {kind}").all("x-robots-tag") == []
    # The relay's own answers are nobody's.
    with published.world.wire("nobody") as wire:
        assert wire.ask(request("GET", "/", host=f"nobody.{DOMAIN}")).header("x-robots-tag") == NOINDEX


@pytest.fixture(scope="module")
def webhooks_only():
    with World("--webhooks-only") as world:
        yield Published(world)


@pytest.mark.parametrize(
    "status", ["200 OK", "201 Created", "400 Bad", "404 Not Found", "410 Gone", "500 No", "302 Found"]
)
def test_webhooks_alone_get_no_pages_back(webhooks_only, status):
    """Their sender gets the status: it says how it went."""
    for kind in PAGES:
        for method in ("GET", "POST"):
            reply = webhooks_only.ask(
                f"Content-Type: {kind}",
                "Set-Cookie: a=b",
                "Refresh: 0",
                "Location: https://evil.example",
                status=status,
                method=method,
            )
            assert reply.status == int(status[:3]) and reply.complete, (kind, reply)
            assert reply.body == b"this relay is for webhooks: it passes no web pages back\n"
            assert (
                reply.header("content-type") == "text/plain; charset=utf-8"
                and reply.header("x-content-type-options") == "nosniff"
            )
            for name in ("set-cookie", "refresh", "location"):
                assert not reply.header(name), "nothing of the app's is left"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_webhooks_alone_get_empty_answers_as_they_are(webhooks_only, status):
    for kind in (*PAGES, "application/json"):
        reply = webhooks_only.ask(f"Content-Type: {kind}", status=status)
        assert reply.status == int(status[:3]) and reply.body == b""
    for kind in PAGES[:3]:
        reply = webhooks_only.ask(f"Content-Type: {kind}", method="HEAD")
        assert (reply.status, reply.body) == (200, b"") and not reply.header("content-type").startswith("text/html")
    assert webhooks_only.ask("Content-Type: application/json").status == 200, "connections are well"


def test_webhooks_alone_get_all_else(webhooks_only):
    """JSON as it is; XML so that no browser runs it."""
    for kind in NO_PAGES:
        reply = webhooks_only.ask(f"Content-Type: {kind}", "Set-Cookie: a=b", "X-Own: 1", status="201 Created")
        assert (reply.status, reply.body, reply.header("content-type")) == (201, HTML, kind)
        assert reply.header("x-content-type-options") == "nosniff" and reply.header("x-own") == "1"
        policy = reply.all("content-security-policy")
        assert policy == ["sandbox; default-src 'none'"], kind
    own = webhooks_only.ask(
        "Content-Type: text/xml", "Content-Security-Policy: default-src *", "X-Content-Type-Options: off"
    )
    assert own.all("content-security-policy") == ["sandbox; default-src 'none'"] and own.all(
        "x-content-type-options"
    ) == ["nosniff"]


NO_TYPE = {
    "none": [],
    "empty": ["Content-Type: "],
    "bytes": ["Content-Type: text/html\xff"],
    "a list that ends in HTML": ["Content-Type: application/json, text/html"],
    "a list that begins with HTML": ["Content-Type: text/html, application/json"],
    "two, HTML first": ["Content-Type: text/html", "Content-Type: application/json"],
    "two, HTML last": ["Content-Type: application/json", "Content-Type: text/html"],
    "two, SVG last": ["Content-Type: text/plain", "Content-Type: image/svg+xml"],
    "no type at all": ["Content-Type: html"],
    "anything": ["Content-Type: */*"],
    "unknown": ["Content-Type: unknown/unknown"],
    "parts": ["Content-Type: multipart/x-mixed-replace; boundary=x"],
}


@pytest.mark.parametrize("how", NO_TYPE)
def test_no_browser_takes_it_for_a_page(webhooks_only, how):
    """As the Fetch standard extracts a MIME type: of all fields and lists the last that is one."""
    reply = webhooks_only.ask(*NO_TYPE[how])
    said = [part.partition(";")[0].strip().lower() for value in reply.all("content-type") for part in value.split(",")]
    # None at all is sniffed for no page under nosniff.
    assert ["", *(kind for kind in said if "/" in kind)][-1] not in ("text/html", "image/svg+xml"), said
    assert reply.header("x-content-type-options") == "nosniff"


def test_webhooks_alone_stream_and_upgrade(webhooks_only):
    """What is no page is not held up."""
    gate, world = threading.Event(), webhooks_only.world

    def answer(seen, connection):
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"
        )
        gate.wait(DEADLINE)
        return b"3\r\ntwo\r\n0\r\n\r\n"

    world.client(world.app(answer=answer), name="streams")
    with world.wire("streams") as wire:
        wire.send(request("GET", "/", host=f"streams.{DOMAIN}"))
        eventually(lambda: wire.receive() and b"one" in wire.buffer, what="its beginning")
        gate.set()
        assert wire.reply().body == b"onetwo"
    server = EchoServer()
    world.client(server.address, name="sockets")
    url = world.url("/", "sockets").replace("https:", "wss:")
    with connect(url, ssl=tls_context(world.relay.ca), proxy=None, subprotocols=["echo"]) as socket:
        socket.send("hello")
        assert socket.recv(DEADLINE) == "hello"
    server.server.shutdown()


def test_a_stream_of_html_is_no_page_either(webhooks_only):
    """Its app is cut off, and the connection to the sender is well."""
    world = webhooks_only.world
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n"

    def answer(seen, connection):
        with contextlib.suppress(OSError):
            connection.sendall(head)
            for _ in range(2000):
                connection.sendall(b"4000\r\n" + b"<" * 0x4000 + b"\r\n")

    world.client(world.app(answer=answer), name="floods")
    with world.wire("floods") as wire:
        for _ in range(3):
            reply = wire.ask(request("GET", "/", host=f"floods.{DOMAIN}"))
            assert reply.status == 200 and b"webhooks" in reply.body and b"<" not in reply.body


def test_an_open_proxy_it_is_not(guarded):
    """Threat 14: nothing leads elsewhere."""
    for head in (
        "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443", "GET http://evil.example/ HTTP/1.1\r\nHost: evil.example",
        "GET / HTTP/1.1\r\nHost: evil.example", f"GET http://evil.example/ HTTP/1.1\r\nHost: {guarded.host}", f"GET //evil.example/ HTTP/1.1\r\nHost: evil.{DOMAIN}.example",
    ):  # fmt: skip
        with guarded.peer("127.0.0.1") as wire, contextlib.suppress(Closed):
            assert 400 <= wire.ask(f"{head}\r\n\r\n".encode()).status < 500, head
    assert not guarded.app.seen
    client = guarded.world.client(NOWHERE, name="stranger", token="hwt_" + "A" * 43, wait=False)
    assert client.exited() == 4, "nobody without a token serves a name"
