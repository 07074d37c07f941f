"""Proxies and load balancers in front of the relay: whom it believes when it is told who sends, and how far.

Loopback has many addresses: a peer at 127.0.0.2 is the proxy that the relay trusts, one at 127.0.0.1 a stranger.
"""

import concurrent.futures
import contextlib
import itertools
import json
import re
import socket
import ssl
import struct
import time

import pytest
from websockets.sync.client import connect

from name_servers import free_port, installed
from test_admin_api import Api
from test_domains import certificates
from test_h2_hostile import Frames, request_fields
from test_websockets import EchoServer
from world import DEADLINE, DOMAIN, HOOKWAY, Closed, Program, Wire, World, eventually, request, run, tls_context

PROXY, STRANGER = "127.0.0.2", "127.0.0.1"
TRUSTED = f"{PROXY},10.0.0.0/8,2001:db8:aaaa::/48"
MOST_HOPS = 16  # of proxies that are looked at
HEADER_IN = 2  # seconds in which a header must have come


class Peer(Wire):
    """A sender's connection from one of this machine's addresses, with bytes before TLS; or without TLS."""

    def __init__(
        self,
        relay,
        source=STRANGER,
        name="billing",
        before=b"",
        tls=True,
        alpn=("http/1.1",),
        timeout=DEADLINE,
        address=None,
    ):
        raw = socket.socket()
        raw.settimeout(timeout)
        try:
            raw.bind((source, 0))
            raw.connect(address or (relay.https if tls else relay.http))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.own = raw.getsockname()
            raw.sendall(before)
            self.tls = raw
            if tls:
                context = tls_context(relay.ca, tuple(alpn))
                self.tls = context.wrap_socket(raw, server_hostname=f"{name}.{DOMAIN}", suppress_ragged_eofs=False)
        except BaseException:
            raw.close()
            raise
        self.buffer, self.clean_end = bytearray(), None


def told(seen):
    """What the app is told of where a request comes from: (sender and proxies, scheme, host). Each is said once."""
    names = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded")
    values = {name: seen.all(name) for name in names}
    assert all(len(value) == 1 for value in values.values()), values
    chain, proto, host, forwarded = (value for (value,) in values.values())
    # Both ways of telling tell the same.
    first, *rest = chain.split(", ")
    node = lambda ip: f'"[{ip}]"' if ":" in ip else ip  # noqa: E731
    said = f'for={node(first)};host="{host}";proto={proto}' + "".join(f", for={node(ip)}" for ip in rest)
    assert forwarded == said, values
    # An app that takes underscores for hyphens finds nothing else.
    for name, _ in seen.headers:
        plain = name.lower().replace("_", "-")
        assert not plain.startswith("x-forwarded-") or name.lower() in names, seen.headers
        assert plain != "x-real-ip" and (plain != "forwarded" or name.lower() == "forwarded"), seen.headers
    return chain, proto, host


@pytest.fixture(scope="module")
def world():
    with World("--trusted-proxy", TRUSTED) as world:
        world.shown = world.app()
        world.shown_by = world.client(world.shown, "--on-offline", "error")
        yield world


def seen_by(world, headers, source=PROXY, **options):
    """What the app is told of one request with these fields, on a connection of its own."""
    world.shown.clear()
    with Peer(world.relay, source, **options) as wire:
        reply = wire.ask(raw_request(headers))
    assert reply.status == 200, (headers, reply)
    (seen,) = world.shown.seen
    return seen


def raw_request(headers, host=f"billing.{DOMAIN}", target="/", method="GET"):
    """Values as they are; a pair's value may be bytes."""
    lines = [f"{method} {target} HTTP/1.1".encode(), f"Host: {host}".encode()]
    lines += [
        name.encode() + b": " + (value if isinstance(value, bytes) else value.encode("latin-1"))
        for name, value in headers
    ]
    return b"\r\n".join([*lines, b"", b""])


def remote(world):
    """Who sent the newest of the client's history."""
    folder = world.shown_by.errors.parent
    (line,) = run(HOOKWAY, "requests", "list", "--limit", "1", "--json", folder=folder).stdout.splitlines()
    return json.loads(line)["remote"]


# ── what is said, and what of it is believed ──────────────────────────────────────────────────────────────────────

XFF = "X-Forwarded-For"
FORGED = "203.0.113.66"
VARIANTS = {
    # what a peer says: whom the app is told by a trusted one
    "nothing": ([], PROXY),
    "an address": ([(XFF, "192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "in lower case": ([("x-forwarded-for", "192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "in upper case": ([("X-FORWARDED-FOR", "192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "a forged one before it": ([(XFF, f"{FORGED}, 192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "many forged before it": ([(XFF, f"{FORGED}, 10.0.0.9, unknown, {FORGED}, 192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "a forged field before it": ([(XFF, FORGED), (XFF, "192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "a forged trusted one before it": ([(XFF, f"10.0.0.1, {PROXY}, 192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "a proxy after it": ([(XFF, f"{FORGED}, 192.0.2.1, 10.1.2.3")], f"192.0.2.1, 10.1.2.3, {PROXY}"),
    "proxies in fields of their own": ([(XFF, FORGED), (XFF, "192.0.2.1"), (XFF, "10.1.2.3")], f"192.0.2.1, 10.1.2.3, {PROXY}"),
    "proxies of both kinds": ([(XFF, "192.0.2.1, 2001:db8:aaaa::1, 10.0.0.1")], f"192.0.2.1, 2001:db8:aaaa::1, 10.0.0.1, {PROXY}"),
    "proxies alone": ([(XFF, "10.0.0.1, 10.0.0.2")], f"10.0.0.1, 10.0.0.2, {PROXY}"),
    "blanks": ([(XFF, "192.0.2.1 ,\t10.0.0.1")], f"192.0.2.1, 10.0.0.1, {PROXY}"),
    "no blanks": ([(XFF, f"{FORGED},192.0.2.1,10.0.0.1")], f"192.0.2.1, 10.0.0.1, {PROXY}"),
    "IPv6": ([(XFF, "2001:db8::1")], f"2001:db8::1, {PROXY}"),
    "IPv6 written long": ([(XFF, "2001:0DB8:0000::0001")], f"2001:db8::1, {PROXY}"),
    "IPv6 in brackets": ([(XFF, "[2001:db8::1]")], f"2001:db8::1, {PROXY}"),
    "a port": ([(XFF, "192.0.2.1:4711")], f"192.0.2.1, {PROXY}"),
    "a port of IPv6": ([(XFF, "[2001:db8::1]:443")], f"2001:db8::1, {PROXY}"),
    "quotes": ([(XFF, '"[2001:db8::1]:443"')], f"2001:db8::1, {PROXY}"),
    "a mapped address": ([(XFF, "::ffff:192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "a mapped proxy": ([(XFF, "192.0.2.1, ::ffff:10.0.0.1")], f"192.0.2.1, 10.0.0.1, {PROXY}"),
    "a mapped address as hex": ([(XFF, "::ffff:c000:201")], f"192.0.2.1, {PROXY}"),
    "garbage before it": ([(XFF, "<script>, \x7e%0d, 192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "garbage before a proxy": ([(XFF, f"{FORGED}, garbage, 10.0.0.1")], f"10.0.0.1, {PROXY}"),
    "a very long chain": ([(XFF, ", ".join([FORGED] * 1000 + ["192.0.2.1"]))], f"192.0.2.1, {PROXY}"),
    "many fields": ([(XFF, FORGED)] * 50 + [(XFF, "192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "bytes in a field before": ([(XFF, b"\xff\xfe"), (XFF, "192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "bytes before it": ([(XFF, b"\xff, 192.0.2.1")], f"192.0.2.1, {PROXY}"),
    "underscores": ([("X_Forwarded_For", FORGED), ("X-Forwarded_For", FORGED)], PROXY),
    "other names": ([("X-Real-IP", FORGED), ("Forwarded", f"for={FORGED};proto=http;host=evil"), ("Client-IP", "x")], PROXY),
    "other names written otherwise": ([("x_real_ip", FORGED), ("FORWARDED", f"for={FORGED}"), ("X_REAL-IP", FORGED)], PROXY),
    "other X-Forwarded": ([("X-Forwarded-Port", "1"), ("X-Forwarded-Server", "evil"), ("X-Forwarded-Scheme", "http")], PROXY),
    "another host": ([("X-Forwarded-Host", "evil.example"), ("X_Forwarded_Host", "evil.example")], PROXY),
    "a field that is to be dropped": ([("Connection", "x-forwarded-for, forwarded, x-forwarded-proto"), (XFF, "192.0.2.1")], f"192.0.2.1, {PROXY}"),
}  # fmt: skip
GARBAGE = [
    "unknown", ",", ", ,", "192.0.2.1,", "192.0.2.1;x", "192.0.2.1 192.0.2.2", "_hidden", "localhost", "1.2.3", "256.1.1.1", "01.2.3.4",
    "0x7f.0.0.1", "2130706433", "fe80::1%eth0", "-", "[192.0.2.1", "2001:db8::1]:80", "192.0.2.1:", "192.0.2.1:99999", "192.0.2.0/24", "::1::2",
    "1.1.1.1\0x", "for=192.0.2.1", "a" * 5000, '"', "１.2.3.4".encode(), b"\xff",
]  # fmt: skip


@pytest.mark.parametrize(("headers", "chain"), VARIANTS.values(), ids=VARIANTS)
def test_a_trusted_peer_is_believed_as_far_as_it_is_trusted(world, headers, chain):
    seen = seen_by(world, headers)
    assert told(seen) == (chain, "https", f"billing.{DOMAIN}")
    assert FORGED.encode() not in seen.raw and b"evil" not in seen.raw
    with Frames(Peer(world.relay, PROXY, alpn=("h2",), timeout=5)) as frames:
        more = [(name.lower(), value) for name, value in headers if name != "Connection"]
        assert frames.ask(request_fields("GET", "/h2", f"billing.{DOMAIN}", more=more)).status == 200
    assert told(world.shown.seen[-1]) == (chain, "https", f"billing.{DOMAIN}")


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_stranger_is_believed_nothing(world, variant):
    seen = seen_by(world, variant[0], STRANGER)
    assert told(seen) == (STRANGER, "https", f"billing.{DOMAIN}")
    for said in (b"203.0.113.66", b"192.0.2.", b"10.", b"2001:", b"evil", b"\xff"):
        assert said not in seen.raw


def test_garbage_is_nobody(world):
    """The peer itself is who sends then."""
    for value in GARBAGE:
        if isinstance(value, str) and "\0" in value:
            with Peer(world.relay, PROXY) as wire:
                assert wire.ask(raw_request([(XFF, value)])).status == 400
            continue
        assert told(seen_by(world, [(XFF, value)]))[0] == PROXY, value


def test_of_very_many_proxies_the_last_are_looked_at(world):
    chain = told(seen_by(world, [(XFF, ", ".join(f"10.0.0.{number}" for number in range(200)))]))[0].split(", ")
    assert chain == [f"10.0.0.{number}" for number in range(200 - MOST_HOPS, 200)] + [PROXY]
    with Peer(world.relay, PROXY) as wire:
        assert wire.ask(raw_request([(XFF, "10.0.0.1, " * 10_000)])).status in (400, 431)


def test_the_history_tells_the_sender(world):
    for headers, chain in (
        ([(XFF, f"{FORGED}, 192.0.2.77, 10.0.0.1")], "192.0.2.77"),
        ([], PROXY),
        ([(XFF, "[2001:db8::7]:1")], "2001:db8::7"),
    ):
        seen_by(world, headers)
        eventually(lambda chain=chain: remote(world) == chain, what=chain)
    seen_by(world, [(XFF, "192.0.2.1")], STRANGER)
    eventually(lambda: remote(world) == STRANGER, what="the stranger")


def test_each_request_of_a_connection_has_its_own_sender(world):
    world.shown.clear()
    with Peer(world.relay, PROXY) as wire:
        for number in range(1, 30):
            assert wire.ask(raw_request([(XFF, f"192.0.2.{number}")] if number % 3 else [])).status == 200
    expected = [f"192.0.2.{number}, {PROXY}" if number % 3 else PROXY for number in range(1, 30)]
    assert [told(seen)[0] for seen in world.shown.seen] == expected


# ── the scheme ────────────────────────────────────────────────────────────────────────────────────────────────────

PROTO = "X-Forwarded-Proto"
SCHEMES = [
    # what a trusted peer says, and what it is then: over TLS, over plain HTTP
    ([], "https", "http"),
    ([(PROTO, "https")], "https", "https"),
    ([(PROTO, "HTTPS")], "https", "https"),
    ([(PROTO, "http")], "http", "http"),
    ([(PROTO, "http, https")], "https", "https"),
    ([(PROTO, "https, http")], "http", "http"),
    ([(PROTO, "http"), (PROTO, "https")], "https", "https"),
    ([(PROTO, "https"), (PROTO, "http")], "http", "http"),
    ([(PROTO, "https,https , https")], "https", "https"),
    ([(PROTO, "wss")], "https", "http"),
    ([(PROTO, "")], "https", "http"),
    ([(PROTO, "https,")], "https", "http"),
    ([(PROTO, "httpss")], "https", "http"),
    ([(PROTO, "https://")], "https", "http"),
    ([(PROTO, b"https\xff")], "https", "http"),
    ([("X_Forwarded_Proto", "https")], "https", "http"),
    ([("X-Forwarded-Ssl", "on"), ("Front-End-Https", "on"), ("X-Forwarded-Scheme", "https")], "https", "http"),
    ([("Forwarded", "proto=https")], "https", "http"),
]


@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "plain"])
def test_plain_http_is_redirected_unless_a_trusted_proxy_ended_tls(world, tls):
    """What came by HTTPS is served, however it goes on from the proxy; what did not is not."""
    for headers, over_tls, over_plain in SCHEMES:
        scheme = over_tls if tls else over_plain
        world.shown.clear()
        with Peer(world.relay, PROXY, tls=tls) as wire:
            reply = wire.ask(raw_request([*headers, (XFF, "192.0.2.1")], target="/a?b=c"))
        if scheme == "https":
            assert reply.status == 200 and told(world.shown.seen[0]) == (
                f"192.0.2.1, {PROXY}",
                "https",
                f"billing.{DOMAIN}",
            ), headers
        else:
            assert (reply.status, reply.header("location")) == (308, world.url("/a?b=c")) and not world.shown.seen, (
                headers
            )
        # A stranger's word is worth nothing.
        with Peer(world.relay, STRANGER, tls=tls) as wire:
            assert wire.ask(raw_request(headers)).status == (200 if tls else 308), headers


def test_a_redirect_leads_nowhere_else(world):
    """Only to names that are the relay's, whatever a proxy or a stranger names."""
    forged = [
        ("X-Forwarded-Host", "evil.example"),
        ("Forwarded", "host=evil.example"),
        ("X-Forwarded-Port", "1"),
        ("X-Original-URL", "/evil"),
    ]
    for source in (PROXY, STRANGER):
        with Peer(world.relay, source, tls=False) as wire:
            reply = wire.ask(raw_request(forged, target="//evil.example/"))
            assert (reply.status, reply.header("location")) == (308, world.url("//evil.example/"))
            assert wire.ask(raw_request([], host="evil.example")).status == 404


def test_a_proxy_s_own_connection_may_name_any_host(world):
    """It keeps one TLS connection for all hosts; a stranger's is for the one it was made for."""
    with Peer(world.relay, PROXY, "other") as wire:
        assert wire.ask(raw_request([(XFF, "192.0.2.1")])).status == 200
    with Peer(world.relay, STRANGER, "other") as wire:
        assert wire.ask(raw_request([(XFF, "192.0.2.1")])).status == 421


def test_served_plain_http_is_for_trusted_proxies_as_tls_is(new_world):
    world = new_world("--trusted-proxy", PROXY, "--http-serve")
    world.shown = world.app()
    world.client(world.shown)
    for source, headers, expected in (
        (PROXY, [(PROTO, "https"), (XFF, "192.0.2.1")], (f"192.0.2.1, {PROXY}", "https")), (PROXY, [(PROTO, "http")], (PROXY, "http")),
        (PROXY, [], (PROXY, "http")), (STRANGER, [(PROTO, "https"), (XFF, "192.0.2.1")], (STRANGER, "http")),
    ):  # fmt: skip
        assert told(seen_by(world, headers, source, tls=False))[:2] == expected
    assert told(seen_by(world, [(PROTO, "http")], PROXY))[:2] == (PROXY, "http"), (
        "without a redirect to what it came from"
    )


# ── the PROXY protocol ────────────────────────────────────────────────────────────────────────────────────────────

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXIED = 0x20, 0x21
TCP4, UDP4, TCP6, UDP6, UNIX, UNSPEC = 0x11, 0x12, 0x21, 0x22, 0x31, 0x00


def proxied(source="192.0.2.1", port=4711, tlvs=b"", command=PROXIED, family=None, length=None, addresses=None):
    """A header of the PROXY protocol, version 2."""
    six = ":" in source
    pack = lambda ip: socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, ip)  # noqa: E731
    if addresses is None:
        addresses = pack(source) + pack("::1" if six else "127.0.0.1") + struct.pack("!HH", port, 443)
    rest = addresses + tlvs
    family = family if family is not None else TCP6 if six else TCP4
    return SIGNATURE + bytes([command, family]) + struct.pack("!H", len(rest) if length is None else length) + rest


def tlv(kind, value):
    return struct.pack("!BH", kind, len(value)) + value


@pytest.fixture(scope="module")
def balanced():
    flags = ("--trusted-proxy", f"{PROXY},10.0.0.0/8", "--proxy-protocol", "--header-timeout", f"{HEADER_IN}s")
    with World(*flags, "--max-connections-per-ip", "3") as world:
        world.root = world.token("root", "--scope", "admin")
        world.shown = world.app()
        # 127.0.0.1 is nobody's proxy: what it sends is as ever.
        world.shown_by = world.client(world.shown, "--on-offline", "error")
        yield world


def refused(world):
    _, metrics = world.relay.get("/metrics")
    found = re.search(
        r'^hookway_relay_connections_refused_total{reason="proxy_protocol"} (\d+)$', metrics, re.MULTILINE
    )
    return int(found[1]) if found else 0


GOOD = {
    "IPv4": (proxied(), "192.0.2.1"),
    "IPv6": (proxied("2001:db8::1"), "2001:db8::1"),
    "a mapped address": (proxied("::ffff:192.0.2.1"), "192.0.2.1"),
    "port 0": (proxied(port=0), "192.0.2.1"),
    "what haproxy adds": (proxied(tlvs=tlv(0x02, b"billing.hooks.test") + tlv(0x20, b"\x07\0\0\0\0" + tlv(0x21, b"TLSv1.3")) + tlv(5, b"id")), "192.0.2.1"),
    "what AWS adds": (proxied(tlvs=tlv(0xEA, b"\x01vpce-08d2bf15fac5001c9")), "192.0.2.1"),
    "2 kB of them": (proxied(tlvs=tlv(0xE0, b"x" * 2033)), "192.0.2.1"),
    "empty ones": (proxied(tlvs=tlv(4, b"") * 30), "192.0.2.1"),
    "broken ones": (proxied(tlvs=b"\xe0\xff\xffxx"), "192.0.2.1"),
    "itself": (proxied(command=LOCAL, family=UNSPEC, addresses=b""), PROXY),
    "itself, with addresses": (proxied("203.0.113.66", command=LOCAL), PROXY),
    "itself, of a kind nobody knows": (proxied(command=LOCAL, family=0x00, addresses=b"x" * 300), PROXY),
}  # fmt: skip


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
def test_a_load_balancer_says_whose_connection_it_is(balanced, good):
    before, source = good
    for tls in (True, False):
        headers = [] if tls else [(PROTO, "https")]
        if not tls and source != PROXY:
            # A sender by plain HTTP; what he says of himself is worth nothing.
            with Peer(balanced.relay, PROXY, before=before, tls=False) as wire:
                assert wire.ask(raw_request(headers)).status == 308
            continue
        assert told(seen_by(balanced, headers, before=before, tls=tls)) == (source, "https", f"billing.{DOMAIN}")


def test_what_the_sender_says_behind_it_is_not_believed(balanced):
    headers = [(XFF, FORGED), (PROTO, "http"), ("X-Real-IP", FORGED)]
    assert told(seen_by(balanced, headers, before=proxied()))[:2] == ("192.0.2.1", "https")
    # A proxy behind the load balancer is one all the same.
    chain = told(seen_by(balanced, [(XFF, f"{FORGED}, 192.0.2.9")], before=proxied("10.0.0.7")))[0]
    assert chain == "192.0.2.9, 10.0.0.7"
    with Peer(balanced.relay, PROXY, "other", before=proxied()) as wire:
        assert wire.ask(raw_request([])).status == 421, "and it is he whom TLS is for"


def test_nothing_of_the_connection_is_taken_for_the_header(balanced):
    """The header and TLS's first bytes in one piece, and in pieces of a byte."""
    host = f"billing.{DOMAIN}"
    for tls in (False, True):
        data = proxied() + (b"" if tls else raw_request([]))
        with Peer(balanced.relay, PROXY, tls=False, address=balanced.relay.https if tls else None) as wire:
            for byte in data[:-1] if not tls else data:
                wire.send(bytes([byte]))
            if tls:
                wire.tls = tls_context(balanced.relay.ca, ("http/1.1",)).wrap_socket(wire.tls, server_hostname=host)
                assert wire.ask(raw_request([])).status == 200
            else:
                assert wire.ask(data[-1:], "GET").status == 308


BAD = {
    "none": b"",
    "version 1": b"PROXY TCP4 192.0.2.1 127.0.0.1 4711 443\r\n",
    "version 1, unknown": b"PROXY UNKNOWN\r\n",
    "another signature": b"\r\n\r\n\0\r\nQUIX\n" + proxied()[12:],
    "a signature that begins late": b"\0" + proxied(),
    "version 1 in version 2": proxied(command=0x11),
    "version 3": proxied(command=0x31),
    "an unknown command": proxied(command=0x22),
    "the last command": proxied(command=0x2F),
    "UDP": proxied(family=UDP4),
    "UDP over IPv6": proxied("2001:db8::1", family=UDP6),
    "a UNIX socket": proxied(family=UNIX, addresses=b"/tmp/x".ljust(108, b"\0") * 2),
    "unspecified": proxied(family=UNSPEC, addresses=b""),
    "an unknown family": proxied(family=0x41),
    "an unknown protocol": proxied(family=0x13),
    "no addresses": proxied(addresses=b""),
    "half the addresses": proxied(addresses=b"\xc0\0\x02\x01"),
    "IPv4 addresses for IPv6": proxied(family=TCP6),
    "more than 2 kB": proxied(tlvs=tlv(0xE0, b"x" * 2040)),
    "a huge length": proxied(length=0xFFFF),
    "a huge header": proxied(tlvs=tlv(0xE0, b"x" * 60_000)),
    "HTTP": b"GET / HTTP/1.1\r\nHost: billing.hooks.test\r\n\r\n",
    "two headers": proxied() + proxied("203.0.113.66"),
}


@pytest.mark.parametrize("before", BAD.values(), ids=BAD)
def test_a_load_balancer_that_says_it_badly_is_not_heard(balanced, before):
    """The connection ends before anybody answers: whose it is is not known."""
    count = refused(balanced)
    balanced.shown.clear()
    for tls in (True, False):
        with contextlib.suppress(ssl.SSLError, OSError, Closed):
            with Peer(balanced.relay, PROXY, before=before, tls=tls, timeout=HEADER_IN + 5) as wire:
                reply = wire.ask(raw_request([]))
                # A second header is what the sender says: no request.
                assert before == BAD["two headers"] and reply.status == 400, reply
    assert not balanced.shown.seen
    if before not in (BAD["two headers"],):
        eventually(lambda: refused(balanced) == count + 2, HEADER_IN + 3, "both being counted")
    assert told(seen_by(balanced, [], before=proxied()))[0] == "192.0.2.1", "the next is heard"


@pytest.mark.parametrize("cut", [0, 1, 11, 12, 15, 16, 20, 27], ids=str)
def test_a_header_that_does_not_come_is_not_waited_for_long(balanced, cut):
    """Nor is one that comes slowly, or a peer that hangs up in it."""
    with Peer(balanced.relay, PROXY, before=proxied()[:cut], tls=False) as silent:
        with Peer(balanced.relay, PROXY, before=proxied()[:cut], tls=False) as slow:
            with Peer(balanced.relay, PROXY, before=proxied()[:cut], tls=False) as gone:
                gone.tls.shutdown(socket.SHUT_WR)
                assert gone.ended(1.5), "at once"
            end = time.monotonic() + HEADER_IN + 3
            for byte in itertools.chain(proxied()[cut:-1], itertools.repeat(None)):
                if time.monotonic() > end or slow.ended(0.3):
                    break
                if byte is not None:
                    slow.send(bytes([byte]))
            assert time.monotonic() < end and not slow.buffer
        assert silent.ended(HEADER_IN + 2) and not silent.buffer


@pytest.mark.parametrize(
    "header", [proxied(), BAD["version 1"], proxied(command=LOCAL)], ids=["version 2", "version 1", "local"]
)
def test_a_stranger_s_header_is_not_believed(balanced, header):
    """It is no TLS, and no HTTP."""
    balanced.shown.clear()
    with contextlib.suppress(ssl.SSLError, OSError), Peer(balanced.relay, STRANGER, before=header) as wire:
        raise AssertionError(wire.ask(raw_request([])))
    with Peer(balanced.relay, STRANGER, before=header, tls=False) as wire, contextlib.suppress(Closed):
        assert wire.ask(raw_request([])).status == 400
    assert not balanced.shown.seen
    assert told(seen_by(balanced, [], STRANGER))[0] == STRANGER, "without one it is a sender as ever"


def test_connections_are_counted_by_their_real_source(balanced):
    """One sender of a load balancer does not take the others' places, and the load balancer has no limit of its own."""
    peer = lambda source: Peer(balanced.relay, PROXY, before=proxied(source), timeout=5)  # noqa: E731
    with contextlib.ExitStack() as open_:
        held = [open_.enter_context(peer("198.51.100.1")) for _ in range(3)]
        assert all(wire.ask(raw_request([])).status == 200 for wire in held)
        with pytest.raises((ssl.SSLError, OSError)):
            peer("198.51.100.1")
        with pytest.raises((ssl.SSLError, OSError)):
            peer("::ffff:198.51.100.1")
        assert open_.enter_context(peer("198.51.100.2")).ask(raw_request([])).status == 200
        # As many IPv6 addresses as one subscriber has are one.
        for number in range(3):
            open_.enter_context(peer(f"2001:db8:7::{number}"))
        with pytest.raises((ssl.SSLError, OSError)):
            peer("2001:db8:7::ffff")
        for _ in range(8):
            own = open_.enter_context(
                Peer(balanced.relay, PROXY, before=proxied(command=LOCAL, family=UNSPEC, addresses=b""))
            )
            assert own.ask(raw_request([])).status == 200
        held[0].close()
        eventually(lambda: answered(peer, "198.51.100.1"), what="a place that is free again")


def answered(peer, source):
    with contextlib.suppress(ssl.SSLError, OSError, Closed), peer(source) as wire:
        return wire.ask(raw_request([])).status == 200
    return False


def test_protection_looks_at_the_real_source(balanced):
    api = Api(balanced.relay, balanced.root)
    api.do("PUT", "/endpoints/billing/protection", {"allow": ["192.0.2.0/24"], "deny": [PROXY]})
    try:
        for source, status in (("192.0.2.1", 200), ("198.51.100.9", 403)):
            with Peer(balanced.relay, PROXY, before=proxied(source)) as wire:
                assert wire.ask(raw_request([(XFF, "192.0.2.1")])).status == status
        with Peer(balanced.relay, PROXY, before=proxied(command=LOCAL)) as wire:
            assert wire.ask(raw_request([])).status == 403
    finally:
        api.do("DELETE", "/endpoints/billing/protection")


def test_a_proxy_protocol_that_trusts_nobody_is_refused(relay, tmp_path):
    done = relay("run", "--domain", DOMAIN, "--data-dir", tmp_path / "data", "--proxy-protocol")
    assert done.returncode == 7 and "--trusted-proxy" in done.stderr and "next:" in done.stderr
    for network in ("10.0.0.0/33", "proxies.example", "10.0.0", "all"):
        done = relay("run", "--domain", DOMAIN, "--data-dir", tmp_path / "data", "--trusted-proxy", network)
        assert done.returncode == 2 and "network" in done.stderr


def test_a_flood_of_bad_headers_holds_up_nobody(balanced):
    """From the load balancer, beside others' requests."""

    def bad(number):
        before = list(BAD.values())[number % len(BAD)]
        with (
            contextlib.suppress(ssl.SSLError, OSError, Closed),
            Peer(balanced.relay, PROXY, before=before, tls=False) as wire,
        ):
            wire.tls.shutdown(socket.SHUT_WR)
            wire.ended(5)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        floods = [pool.submit(bad, number) for number in range(400)]
        while not all(flood.done() for flood in floods):
            with Peer(balanced.relay, PROXY, before=proxied("192.0.2.200")) as wire:
                assert wire.ask(raw_request([])).status == 200
    eventually(lambda: balanced.relay.metric("connections") <= 1, what="nothing being left of them")


# ── real proxies ──────────────────────────────────────────────────────────────────────────────────────────────────


class Front(Program):
    """A real proxy, listening."""

    def __init__(self, title, command, folder, port):
        super().__init__(title, command, folder)
        self.address = ("127.0.0.1", port)
        eventually(self._listens, what=f"{title} listening")

    def _listens(self):
        assert self.running, self.log()
        with contextlib.suppress(OSError), socket.create_connection(self.address, 1):
            return True
        return False


@contextlib.contextmanager
def front(title, command, folder, port):
    program = Front(title, command, folder, port)
    try:
        yield program
    finally:
        program.process.terminate()
        program.exited()


NGINX = """
daemon off; worker_processes 1; error_log stderr; pid {folder}/nginx.pid;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  underscores_in_headers on; client_body_buffer_size 1m; client_max_body_size 10m;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{http}; proxy_bind {proxy}; proxy_http_version 1.1;
      proxy_set_header Host $http_host; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $upgrade;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto {proto};
    }}
  }}
  map $http_upgrade $upgrade {{ default upgrade; "" ""; }}
}}
"""


@contextlib.contextmanager
def nginx(world, folder, proto="https"):
    port = free_port()
    text = NGINX.format(folder=folder, port=port, http=world.relay.http[1], proxy=PROXY, proto=proto)
    (folder / "nginx.conf").write_text(text)
    with front(
        "nginx", [installed("nginx", "nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")], folder, port
    ) as it:
        yield it


@pytest.fixture(scope="module")
def behind_nginx(world, tmp_path_factory):
    with nginx(world, tmp_path_factory.mktemp("nginx")) as program:
        yield program


def through(program, source, headers, **options):
    """An answer to a request that goes through a proxy without TLS."""
    with Peer(None, source, tls=False, address=program.address) as wire:
        return wire.ask(raw_request(headers, **options))


def test_nginx_says_who_sends(world, behind_nginx):
    for source, (headers, _) in itertools.product(("127.0.0.1", "127.0.0.77"), VARIANTS.values()):
        if any(isinstance(value, bytes) for _, value in headers) or len(str(headers)) > 4000:
            continue
        world.shown.clear()
        reply = through(behind_nginx, source, headers)
        assert reply.status == 200
        (seen,) = world.shown.seen
        assert told(seen) == (f"{source}, {PROXY}", "https", f"billing.{DOMAIN}"), headers
        assert FORGED.encode() not in seen.raw and b"evil" not in seen.raw


def test_nobody_hides_behind_nginx(world, behind_nginx):
    """A byte that is not ASCII in what the sender says does not make him the proxy: he would pass a deny list."""
    world.shown.clear()
    assert through(behind_nginx, "127.0.0.77", [(XFF, b"\xff")]).status == 200
    assert told(world.shown.seen[0])[0] == f"127.0.0.77, {PROXY}"


def test_nginx_passes_on_what_else_there_is(world, behind_nginx):
    """A WebSocket, a large body, many requests on few connections."""
    server = EchoServer()
    world.client(server.address, name="socket")
    url = f"ws://socket.{DOMAIN}:{behind_nginx.address[1]}/x"
    with connect(url, proxy=None, subprotocols=["echo"], open_timeout=DEADLINE) as socket_:
        socket_.send("hello")
        assert socket_.recv(DEADLINE) == "hello"
    assert server.headers[0].headers["X-Forwarded-For"] == f"127.0.0.1, {PROXY}"
    server.server.shutdown()
    world.shown.clear()
    with Peer(None, "127.0.0.1", tls=False, address=behind_nginx.address) as wire:
        for number in range(20):
            reply = wire.ask(request("POST", f"/{number}", b"x" * 50_000, f"billing.{DOMAIN}"))
            assert reply.status == 200 and reply.json()["length"] == 50_000
    assert {told(seen)[0] for seen in world.shown.seen} == {f"127.0.0.1, {PROXY}"}


def test_nginx_on_plain_http_is_redirected(world, tmp_path):
    with nginx(world, tmp_path, "http") as program:
        reply = through(program, "127.0.0.1", [(PROTO, "https")], target="/a?b")
        assert (reply.status, reply.header("location")) == (308, world.url("/a?b"))


HAPROXY = """
global
  stats socket {folder}/socket level admin
defaults
  timeout connect 5s
  timeout client 30s
  timeout server 30s
  timeout tunnel 60s
frontend passing
  mode tcp
  bind 127.0.0.1:{passing}
  default_backend relay_tcp
backend relay_tcp
  mode tcp
  server relay 127.0.0.1:{https} source {proxy} send-proxy-v2 check check-send-proxy check-ssl verify none inter 100ms fall 1 rise 1
frontend ending
  mode http
  bind 127.0.0.1:{ending} ssl crt {leaf} alpn h2,http/1.1
  option forwardfor
  http-request set-header X-Forwarded-Proto https
  default_backend relay_http
backend relay_http
  mode http
  server relay 127.0.0.1:{http} source {proxy} {more}
"""


class Haproxy:
    """haproxy in front of a relay: at `passing` it passes TLS on, at `ending` it ends it."""

    def __init__(self, stack, world, folder, more=""):
        self.world, self.folder = world, folder
        self.passing, self.ending = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
        ca, leaf = certificates(folder, DOMAIN, f"*.{DOMAIN}")
        self.ca = str(ca)
        text = HAPROXY.format(
            folder=folder, leaf=leaf, passing=self.passing[1], ending=self.ending[1], https=world.relay.https[1], http=world.relay.http[1],
            proxy=PROXY, more=more,
        )  # fmt: skip
        (folder / "haproxy.cfg").write_text(text)
        command = [installed("haproxy", "haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
        stack.enter_context(front("haproxy", command, folder, self.passing[1]))

    def server(self, backend):
        """What haproxy knows of a server: {column: value}."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.folder / "socket"))
            control.sendall(b"show stat\n")
            text = b"".join(iter(lambda: control.recv(65536), b"")).decode()
        names, *rows = (line.split(",") for line in text.lstrip("# ").splitlines() if line)
        return next(dict(zip(names, row, strict=True)) for row in rows if row[:2] == [backend, "relay"])


@pytest.fixture(scope="module")
def haproxy(balanced, tmp_path_factory):
    with contextlib.ExitStack() as stack:
        yield Haproxy(stack, balanced, tmp_path_factory.mktemp("haproxy"), more="send-proxy-v2")


def test_haproxy_passes_tls_on(balanced, haproxy):
    """And says who sends in a header before it."""
    for source in ("127.0.0.1", "127.0.0.77"):
        seen = seen_by(balanced, [(XFF, FORGED), (PROTO, "http")], source, address=haproxy.passing)
        assert told(seen) == (source, "https", f"billing.{DOMAIN}")
    with Frames(Peer(balanced.relay, "127.0.0.78", alpn=("h2",), address=haproxy.passing, timeout=5)) as frames:
        assert frames.ask(request_fields("POST", "/h2", f"billing.{DOMAIN}"), b"x").status == 200
    assert told(balanced.shown.seen[-1])[0] == "127.0.0.78"


def test_haproxy_finds_the_relay_well(balanced, haproxy):
    """Its checks are of itself, and take nobody's place."""
    count, before = refused(balanced), balanced.relay.metric("requests_total")
    checked = lambda: int(haproxy.server("relay_tcp")["check_duration"] or -1) >= 0 and haproxy.server("relay_tcp")  # noqa: E731
    state = eventually(checked, what="a check")
    assert (state["status"], state["check_status"]) == ("UP", "L6OK") and state["chkfail"] == "0"
    passed = eventually(lambda: int(haproxy.server("relay_tcp")["lastchg"]) >= 1, what="further checks")
    assert passed and haproxy.server("relay_tcp")["status"] == "UP" and haproxy.server("relay_tcp")["chkdown"] == "0"
    assert refused(balanced) == count and balanced.relay.metric("requests_total") == before


def test_haproxy_s_senders_are_limited_one_by_one(balanced, haproxy):
    with contextlib.ExitStack() as open_:
        for _ in range(3):
            wire = open_.enter_context(Peer(balanced.relay, "127.0.0.80", address=haproxy.passing))
            assert wire.ask(raw_request([])).status == 200
        with pytest.raises((ssl.SSLError, OSError)):
            Peer(balanced.relay, "127.0.0.80", address=haproxy.passing)
        assert (
            open_.enter_context(Peer(balanced.relay, "127.0.0.81", address=haproxy.passing)).ask(raw_request([])).status
            == 200
        )


def test_a_client_comes_through_haproxy(balanced, haproxy):
    """Over HTTP/2, for there is no UDP; its session is that of its own address."""
    app, port = balanced.app(), balanced.relay.https[1]
    balanced.relay.https = haproxy.passing
    try:
        client = balanced.client(app, "--transport", "h2", name="behind")
    finally:
        balanced.relay.https = (balanced.relay.https[0], port)
    assert client.find("ready")["transport"] == "h2"
    (session,) = [
        one for one in Api(balanced.relay, balanced.root).get("/sessions")["items"] if one["endpoints"] == ["behind"]
    ]
    assert session["remote"].startswith("127.0.0.1:") and session["transport"] == "h2"
    for size in (0, 100, 3_000_000):
        assert balanced.post("/", b"x" * size, name="behind").json()["length"] == size
    assert client.stop() == 0


def test_haproxy_ends_tls(world, tmp_path):
    """And says who sends in a field."""
    with contextlib.ExitStack() as stack:
        haproxy = Haproxy(stack, world, tmp_path)
        ca = world.relay.ca
        world.relay.ca = haproxy.ca
        try:
            for source in ("127.0.0.1", "127.0.0.77"):
                for headers in (
                    [],
                    [(XFF, FORGED)],
                    [(XFF, b"\xff")],
                    [(PROTO, "http"), ("Forwarded", f"for={FORGED}")],
                ):
                    seen = seen_by(world, headers, source, address=haproxy.ending)
                    assert told(seen) == (f"{source}, {PROXY}", "https", f"billing.{DOMAIN}")
            with Frames(Peer(world.relay, "127.0.0.78", alpn=("h2",), address=haproxy.ending, timeout=5)) as frames:
                for number in range(5):
                    assert frames.ask(request_fields("POST", f"/{number}", f"billing.{DOMAIN}"), b"x").status == 200
            assert told(world.shown.seen[-1])[0] == f"127.0.0.78, {PROXY}"
        finally:
            world.relay.ca = ca


def test_haproxy_ends_tls_and_says_it_by_both(balanced, haproxy):
    """With a PROXY header the connection is the sender's; fields behind it are his own word."""
    ca = balanced.relay.ca
    balanced.relay.ca = haproxy.ca
    try:
        with Peer(balanced.relay, "127.0.0.77", address=haproxy.ending) as wire:
            assert wire.ask(raw_request([])).status == 308
    finally:
        balanced.relay.ca = ca
