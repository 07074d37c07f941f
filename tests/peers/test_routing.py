"""Who answers: the owner of the authority, or a 4xx; never somebody else (threats 3, 13, 14, 15)."""

import http.client
import itertools
import re
import socket
import subprocess
from dataclasses import dataclass

import pytest
from test_h2_hostile import Frames, h2, h2_wire, request_fields

from world import DOMAIN, Closed, World, request

BILLING, OTHER, NOBODY = f"billing.{DOMAIN}", f"other.{DOMAIN}", f"nobody.{DOMAIN}"
DELIVERY = re.compile(r"req_[0-9A-HJKMNP-TV-Z]{26}")


@dataclass
class Two:
    """Two developers, two tokens, two endpoints."""

    world: World
    apps: dict


@pytest.fixture(scope="module")
def two():
    with World() as world:
        apps = {name: world.app(name=name) for name in ("billing", "other")}
        for name, app in apps.items():
            world.client(app, name=name, token=world.token(f"owner-of-{name}"))
        yield Two(world, apps)


# ── the matrix: SNI × Host × form × protocol ──────────────────────────────────────────────────────────────────────

SNI = [BILLING, OTHER, NOBODY, None]
HOSTS = [
    BILLING, OTHER, f"{BILLING}:443", f"{OTHER}:8443", f"{BILLING}.", f"{OTHER}.:443", "BILLING.Hooks.TEST", NOBODY, DOMAIN, "evil.example", "127.0.0.1",
    f"x.{BILLING}", f"{BILLING}.evil.example", f"billing-{OTHER}", "localhost",
]  # fmt: skip
FORMS = ["origin", "absolute-agrees", "absolute-billing", "absolute-other"]


def plain(authority):
    """The host that an authority means."""
    return re.sub(r":\d*$", "", authority).rstrip(".").lower()


def owner(authority):
    return {BILLING: "billing", OTHER: "other"}.get(plain(authority))


def absolute(form, host):
    """The authority in the target, if the form has one."""
    return {"absolute-agrees": host, "absolute-billing": BILLING, "absolute-other": OTHER}.get(form)


def expected(sni, host, form):
    """The statuses that are right, and the app that may answer 200."""
    target = absolute(form, host)
    if target and plain(target) != plain(host):
        return {400, 421}, None
    if sni and plain(host) != sni:
        return {421}, None
    if owner(host):
        return {200}, owner(host)
    return {400, 404, 421}, None


@pytest.mark.parametrize("sni", SNI, ids=str)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("form", FORMS)
def test_http1(two, sni, host, form):
    target = absolute(form, host)
    target = f"https://{target}/who" if target else "/who"
    with two.world.wire(sni=sni) as wire:
        reply = wire.ask(request("GET", target, host=host))
    statuses, app = expected(sni, host, form)
    assert reply.status in statuses, reply
    assert reply.header("x-app") == app
    if app:
        assert reply.json()["target"] == "/who"


@pytest.mark.parametrize("sni", SNI, ids=str)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("form", ["authority", "host-agrees", "host-billing", "host-other"])
def test_http2(two, sni, host, form):
    named = {"host-agrees": host, "host-billing": BILLING, "host-other": OTHER}.get(form)
    more = [("host", named)] if named else []
    with Frames(h2_wire(two.world, sni=sni)) as sender:
        seen = sender.ask(request_fields("GET", "/who", host, more=more))
    statuses, app = expected(sni, host, form.replace("host", "absolute"))
    if named and plain(named) == plain(host) and named != host:
        assert seen.refused or seen.status in statuses
    elif seen.error:
        assert 200 not in statuses, seen
    else:
        assert seen.status in statuses, seen
    assert seen.header("x-app") in (app, None)


def test_one_http2_connection_is_checked_at_each_request(two):
    """A browser that coalesces connections gets 421 and opens its own (RFC 9110 §15.5.20)."""
    with h2(two.world) as sender:
        for authority, status, app in [(BILLING, 200, "billing"), (OTHER, 421, None), (NOBODY, 421, None), (BILLING, 200, "billing")]:
            seen = sender.ask(request_fields("GET", "/who", authority))
            assert (seen.status, seen.header("x-app")) == (status, app)


def test_one_http1_connection_is_checked_at_each_request(two):
    with two.world.wire(sni=None) as wire:
        for host, app in [(BILLING, "billing"), (OTHER, "other"), (BILLING, "billing"), (OTHER.upper(), "other")]:
            assert wire.ask(request("GET", "/who", host=host)).header("x-app") == app


def test_requests_of_two_owners_side_by_side(two):
    """A few hundred requests on both endpoints at once: each answer is its owner's."""
    with two.world.wire() as billing, two.world.wire("other") as other:
        for number in range(100):
            billing.send(request("POST", f"/b{number}", b"b" * number, host=BILLING))
            other.send(request("POST", f"/o{number}", b"o" * number, host=OTHER))
        for number in range(100):
            for wire, name in ((billing, "billing"), (other, "other")):
                seen = wire.reply("POST").json()
                assert (seen["app"], seen["target"], seen["length"]) == (name, f"/{name[0]}{number}", number)


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["nobody", "billing2", "billin", "xn--billing", "a", "0", "billing--x", "b" * 63])
def test_an_unknown_name_is_a_404_of_one_line(two, name):
    reply = two.world.get("/x", name=name)
    assert reply.status == 404
    assert reply.body.endswith(b"\n") and reply.body.count(b"\n") == 1 and len(reply.body) < 200
    assert reply.header("content-type").startswith("text/plain")


def test_a_taken_name_is_refused_and_its_owner_serves_on(two):
    intruder = two.world.client(two.world.app(name="intruder"), name="billing", token=two.world.token("intruder"), wait=False)
    assert intruder.exited() == 5
    assert "billing" in intruder.log()
    assert two.world.get("/x").header("x-app") == "billing"


def test_a_name_stays_its_owners_while_nobody_is_connected(new_world):
    world = new_world()
    token = world.token("first")
    world.client(world.app(), token=token).stop()
    assert world.get("/x").status == 503
    assert world.client(world.app(), token=world.token("second"), wait=False).exited() == 5
    world.client(world.app(name="again"), token=token)
    assert world.get("/x").header("x-app") == "again"


@pytest.mark.parametrize("name", ["", ".", "-a", "a-", "a.b", "a_b", "ä", "a b", "x" * 64, "*", "a:b", "billing.hooks.test", "%41", "a\tb"])
def test_a_name_that_is_no_label_is_refused_with_a_reason(two, name):
    client = two.world.client("127.0.0.1:9", name=name, wait=False, token=two.world.token("namer"))
    assert client.exited() in (2, 5)
    assert "error" in client.log()


def test_no_token_is_no_tunnel(two):
    """No anonymous tunnels (threat 14)."""
    for token in ("hwt_" + "A" * 43, "x", "hwt_"):
        client = two.world.client("127.0.0.1:9", name="free", token=token, wait=False)
        assert client.exited() == 4
    assert two.world.get("/x", name="free").status == 404


def test_plain_http_redirects_to_the_same_place(two):
    connection = http.client.HTTPConnection(*two.world.relay.http, timeout=10)
    connection.request("GET", "/a%20b?c=d&e", headers={"Host": BILLING})
    reply = connection.getresponse()
    assert reply.status in (301, 308)
    assert reply.getheader("location") == f"https://{BILLING}:{two.world.relay.https[1]}/a%20b?c=d&e"
    connection.close()


def test_plain_http_redirects_nowhere_else(two):
    """The redirect is to an endpoint of ours, not to whatever stands in Host."""
    for host, target in itertools.product(["evil.example", f"{BILLING}@evil.example", "evil.example#.hooks.test"], ["/x", "//evil.example/x"]):
        with socket.create_connection(two.world.relay.http, 10) as sender:
            sender.sendall(request("GET", target, host=host, headers=[("Connection", "close")]))
            answer = b"".join(iter(lambda sender=sender: sender.recv(65536), b""))
        assert answer.split(b" ", 2)[1] in (b"400", b"404", b"421"), answer


# ── what is said about the sender ─────────────────────────────────────────────────────────────────────────────────

FORGED = "6.6.6.6"
FORGERIES = [
    ("X-Forwarded-For", FORGED), ("x-forwarded-for", f"{FORGED}, 7.7.7.7"), ("X-FORWARDED-FOR", FORGED), ("X_Forwarded_For", FORGED),
    ("X-Forwarded_For", FORGED), ("X-Forwarded-Proto", f"http{FORGED}"), ("x-forwarded-proto", FORGED), ("X_Forwarded_Proto", FORGED),
    ("X-Forwarded-Host", f"{FORGED}.example"), ("x-forwarded-host", FORGED), ("X_Forwarded_Host", FORGED), ("X-Forwarded-Port", "6666"),
    ("X-Forwarded-Server", FORGED), ("X-Forwarded-Ssl", "6666"), ("Forwarded", f"for={FORGED};proto=http"),
    ("forwarded", f'for="[6666::1]";host={FORGED}'), ("FORWARDED", f"by={FORGED}"), ("X-Real-IP", FORGED), ("x-real-ip", FORGED), ("X_Real_IP", FORGED),
    ("Hookway-Delivery", "req_6666"), ("hookway-delivery", "req_6666"), ("Hookway_Delivery", "req_6666"), ("Hookway-Attempt", "6666"),
    ("Hookway-Received-At", "6666"), ("Hookway-Possible-Duplicate", "6666"), ("Hookway-Anything", "6666"),
]  # fmt: skip


def check_truth(seen, host=BILLING):
    """One of each, the relay's own, and nothing of what was forged."""
    assert seen.all("x-forwarded-for") == ["127.0.0.1"]
    assert seen.all("x-forwarded-proto") == ["https"]
    assert seen.all("x-forwarded-host") == [host]
    [forwarded] = seen.all("forwarded")
    assert "for=127.0.0.1" in forwarded and "proto=https" in forwarded
    [delivery] = seen.all("hookway-delivery")
    assert DELIVERY.fullmatch(delivery)
    assert not [(name, value) for name, value in seen.headers if FORGED in value or "6666" in value]


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda pair: f"{pair[0]}={pair[1]}")
@pytest.mark.parametrize("how", ["once", "twice", "http2"])
def test_a_forged_header_is_replaced_by_the_truth(two, forgery, how):
    app = two.apps["billing"]
    app.clear()
    if how == "http2":
        with h2(two.world) as sender:
            name, value = forgery
            assert sender.ask(request_fields("GET", "/x", more=[(name.lower(), value)])).status == 200
    else:
        assert two.world.get("/x", headers=[forgery] * (2 if how == "twice" else 1)).status == 200
    check_truth(app.seen[0])


def test_forged_headers_in_trailers_stay_out(two):
    app = two.apps["billing"]
    app.clear()
    forged = "".join(f"{name}: {value}\r\n" for name, value in FORGERIES).encode()
    head = f"POST /x HTTP/1.1\r\nHost: {BILLING}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Forwarded-For\r\n\r\n".encode()
    with two.world.wire() as wire:
        try:
            wire.ask(head + b"5\r\nhello\r\n0\r\n" + forged + b"\r\n")
        except Closed:
            pass
    for seen in app.seen:
        check_truth(seen)
        assert not [name for name, _ in seen.trailers if name.lower().replace("_", "-").startswith(("x-forwarded", "forwarded", "x-real", "hookway"))]


def test_connection_cannot_take_the_truth_away(two):
    """Fields that a sender names in Connection are dropped, ours are not."""
    app = two.apps["billing"]
    app.clear()
    named = "x-forwarded-for, x-forwarded-proto, x-forwarded-host, forwarded, hookway-delivery, host, x-secret"
    reply = two.world.get("/x", headers=[("Connection", named), ("X-Secret", "1")])
    if reply.status == 200:
        check_truth(app.seen[0])
        assert app.seen[0].header("x-secret") is None
    else:
        assert reply.status == 400


def test_every_delivery_has_an_id_of_its_own(two):
    app = two.apps["billing"]
    app.clear()
    for _ in range(20):
        two.world.get("/x")
    ids = [seen.header("hookway-delivery") for seen in app.seen]
    assert len(set(ids)) == 20 and ids == sorted(ids)


# ── 0-RTT ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_early_data_is_taken(two, tmp_path):
    """The tickets of the HTTPS listener allow none, and data sent early is not read (threat 13)."""
    host, port = two.world.relay.https
    common = ["openssl", "s_client", "-connect", f"{host}:{port}", "-servername", BILLING, "-tls1_3", "-CAfile", two.world.relay.ca, "-ign_eof"]
    early = tmp_path / "early"
    early.write_bytes(request("GET", "/early"))
    last = request("GET", "/late", headers=[("Connection", "close")])
    session = tmp_path / "session"
    first = subprocess.run([*common, "-sess_out", session], input=last, capture_output=True, timeout=20, check=False)
    assert b"Max Early Data: 0" in first.stdout or not session.exists(), first.stdout[-2000:]
    if session.exists():
        resumed = [*common, "-sess_in", session, "-early_data", early]
        second = subprocess.run(resumed, input=last, capture_output=True, timeout=20, check=False)
        assert b"Early data was accepted" not in second.stdout
    assert not two.apps["billing"].at("/early")
