"""Certificates from an authority: got, served, renewed, and what happens while the authority is in trouble.

The authority is Pebble behind a front, the DNS a resolver of ours before the relay's own responder or Knot: see
acme_servers.py and name_servers.py.
"""

import collections
import contextlib
import datetime
import functools
import http.server
import itertools
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse

import dns.flags
import dns.message
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import pytest
from acme_servers import ALWAYS, KINDS, MAC_KEYS, Authority, certificate_id
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from name_servers import Knot, free_port

from world import DOMAIN, HOOKWAY, HOOKWAY_RELAY, LONG, Program, Relay, eventually, lacking, request

CHALLENGE = f"_acme-challenge.{DOMAIN}"
SOON = 40.0  # seconds in which a certificate is there once nothing is in its way


# ── what the tests are made of ────────────────────────────────────────────────────────────────────────────────────


def handshake(address, name, root=None, alpn=()):
    """The leaf that a TLS client is shown; with `root` it must verify, for this name."""
    context = ssl.create_default_context(cafile=root)
    if not root:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    with socket.create_connection(address, timeout=5) as raw, context.wrap_socket(raw, server_hostname=name) as tls:
        return x509.load_der_x509_certificate(tls.getpeercert(True))


def names_of(certificate):
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names.get_values_for_type(x509.DNSName))


class Site:
    """A relay that `ca` certifies. `names` were claimed before, while it signed itself."""

    def __init__(self, new_world, ca, *flags, names=(), https_root=None):
        self.ca = ca
        self.flags = ["--tls", "acme", "--acme-directory", ca.directory, "--acme-ca", str(https_root or ca.https_root)]
        self.flags += ["--https", f"127.0.0.1:{ca.tls_port}", "--http", f"127.0.0.1:{ca.http_port}"]
        self.flags += [str(flag) for flag in flags]
        if names:
            self.world = new_world()
            app = self.world.app()
            for name in names:
                assert self.world.client(app, name=name).stop() == 0
            self.restart()
        else:
            self.world = new_world(*self.flags)
            self.world.relay.ca = str(ca.root)

    @property
    def relay(self):
        return self.world.relay

    def restart(self, how=signal.SIGTERM):
        old, world = self.relay, self.world
        old.process.send_signal(how)
        old.exited()
        world.relay = world._add(Relay(world.folder, self.flags, title=f"relay-{len(world.programs)}"))
        world.relay.ca = str(self.ca.root)

    def leaf(self, name=DOMAIN):
        """What is shown, trusted or not."""
        return handshake(self.relay.https, name)

    def trusted(self, name=DOMAIN):
        """What is shown, if the authority's root signed for it and it is for this name."""
        with contextlib.suppress(OSError):
            return handshake(self.relay.https, name, self.ca.root)
        return None

    def certified(self, name=DOMAIN, seconds=SOON):
        return eventually(lambda: self.trusted(name), seconds, f"a certificate for {name}")

    def renewed(self, old, name=DOMAIN, seconds=SOON):
        """The certificate after this one."""

        def another():
            leaf = self.trusted(name)
            return leaf if leaf and leaf.serial_number != old.serial_number else None

        return eventually(another, seconds, f"another certificate for {name}")

    def status(self):
        """What `cert status` says."""
        return self.relay.command("cert", "status")

    def error(self, *parts, seconds=SOON):
        """The last error, once it says all of this."""

        def told():
            errors = [str(row["last_error"]) for row in self.status() if row["last_error"]]
            return next((error for error in errors if all(part in error for part in parts)), None)

        return eventually(told, seconds, f"an error with {parts}")


class Hook:
    """A command for --dns-hook. What it is told stands in the resolver."""

    def __init__(self, folder, resolver):
        self.calls, values = [], collections.defaultdict(list)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(handler):
                _, what, name, value = (urllib.parse.unquote(part) for part in handler.path.split("/"))
                self.calls.append((what, name, value))
                values[name].append(value) if what == "set" else values[name].remove(value)
                resolver.record(name, "TXT", *(f'"{text}"' for text in values[name]))
                handler.send_response(204)
                handler.end_headers()

            def log_message(handler, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.command = folder / "hook"
        port = self._server.server_address[1]
        self.command.write_text(f'#!/bin/sh\nexec curl -fsS -m 10 "http://127.0.0.1:{port}/$1/$2/$3"\n')
        self.command.chmod(0o755)

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def parts():
    with contextlib.ExitStack() as parts:
        yield parts


@pytest.fixture
def authority(parts):
    """`authority(**options)`: an authority of the test's own."""
    return lambda **options: parts.enter_context(Authority(**options))


@pytest.fixture
def ca(authority):
    return authority()


@pytest.fixture
def site(new_world, parts):
    """`site(ca, *flags, names=…)`: a relay of the test's own that answers the challenge itself, unless told else."""

    def make(ca, *flags, **options):
        if not any(flag in flags for flag in ("--acme-challenge", "--dns", "--dns-update", "--dns-hook")):
            flags = (*flags, *own_responder(ca))
        return Site(new_world, ca, *flags, **options)

    return make


def own_responder(ca):
    port = free_port()
    ca.dns.delegate(CHALLENGE, ("127.0.0.1", port))
    return "--dns", f"127.0.0.1:{port}"


def updates(ca, parts, key="key_file", **options):
    knot = parts.enter_context(Knot(**options))
    ca.dns.delegate(CHALLENGE, knot.address)
    return knot, ("--dns-update", knot.authority, "--dns-tsig-file", getattr(knot, key))


def now():
    return datetime.datetime.now(datetime.UTC)


def at(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))


# ── the wildcard, in three ways ───────────────────────────────────────────────────────────────────────────────────


def check_wildcard(site):
    leaf = site.certified()
    assert names_of(leaf) == {DOMAIN, f"*.{DOMAIN}"} and site.ca.issued(leaf)
    for name in ("billing", "any", "xn--bcher-kva"):
        assert site.certified(f"{name}.{DOMAIN}").serial_number == leaf.serial_number
    assert not site.ca.dns.lame
    (row,) = site.status()
    assert set(row["names"]) == {DOMAIN, f"*.{DOMAIN}"} and "Pebble" in row["issuer"] and not row["last_error"]
    assert abs(at(row["not_after"]) - leaf.not_valid_after_utc) < datetime.timedelta(seconds=2)
    assert now() < at(row["renew_at"]) < leaf.not_valid_after_utc
    calls = {kind: site.ca.front.count(kind) for kind in ("newAccount", "newOrder", "finalize", "certificate")}
    assert calls == dict.fromkeys(calls, 1)


def test_the_relay_answers_itself(ca, site):
    site = site(ca)
    check_wildcard(site)
    assert ca.dns.asked(CHALLENGE, "TXT")
    (account,) = ca.front.of("newAccount")
    assert account.payload["termsOfServiceAgreed"] is True


def test_it_updates_the_zone(ca, site, parts):
    knot, flags = updates(ca, parts)
    knot.update(CHALLENGE, "of somebody else")
    check_wildcard(site(ca, *flags))
    eventually(lambda: knot.texts() == ["of somebody else"], what="its own records are gone, and only those")


def test_the_zone_may_be_further_up(ca, site, parts):
    knot, flags = updates(ca, parts, zone="test")
    check_wildcard(site(ca, *flags))
    eventually(lambda: not knot.texts())


def test_a_hook_sets_the_record(ca, site, parts, tmp_path):
    hook = parts.enter_context(Hook(tmp_path, ca.dns))
    check_wildcard(site(ca, "--dns-hook", hook.command))
    eventually(lambda: len(hook.calls) == 4, what="what was set is unset")
    assert {(what, name) for what, name, _ in hook.calls} == {("set", CHALLENGE), ("unset", CHALLENGE)}
    assert [what for what, *_ in hook.calls[:2]] == ["set", "set"]
    values = {what: {value for each, _, value in hook.calls if each == what} for what in ("set", "unset")}
    assert values["set"] == values["unset"] and len(values["set"]) == 2


# ── the relay as a name server ────────────────────────────────────────────────────────────────────────────────────


def ask(site, name=CHALLENGE, kind="TXT", how=dns.query.udp, change=lambda query: None, **options):
    query = dns.message.make_query(name, kind, **{"flags": 0} | options)
    change(query)
    host, _, port = site.flags[site.flags.index("--dns") + 1].rpartition(":")
    return how(query, host, timeout=5, port=int(port))


def opcode(code):
    return lambda query: query.set_opcode(code)


@pytest.mark.parametrize("how", [dns.query.udp, dns.query.tcp], ids=["udp", "tcp"])
def test_its_answers(ca, site, how):
    site = site(ca)
    site.certified()
    question = functools.partial(ask, site, how=how)
    soa, ns = question(kind="SOA"), question(kind="NS")
    for reply in (soa, ns):
        assert len(reply.answer) == 1 and reply.flags & dns.flags.AA and not reply.flags & dns.flags.RA
    for kind in ("A", "AAAA", "CAA", "DS", "TXT"):
        reply = question(kind=kind)
        assert reply.rcode() == dns.rcode.NOERROR and not reply.answer
        assert [records.rdtype for records in reply.authority] == [dns.rdatatype.SOA]
    assert question(f"x.{CHALLENGE}").rcode() == dns.rcode.NXDOMAIN
    for name in (DOMAIN, f"billing.{DOMAIN}", "test", ".", "example.org", f"{CHALLENGE}.org"):
        assert question(name).rcode() == dns.rcode.REFUSED
    assert question("version.bind", "TXT", rdclass="CH").rcode() == dns.rcode.REFUSED
    for code in (dns.opcode.NOTIFY, dns.opcode.UPDATE, dns.opcode.STATUS):
        assert question(change=opcode(code)).rcode() == dns.rcode.NOTIMP
    mixed = question(CHALLENGE.swapcase(), "SOA")
    assert mixed.question[0].name.to_text(omit_final_dot=True) == CHALLENGE.swapcase() and mixed.answer
    assert question(kind="SOA", use_edns=0, payload=4096).edns == 0
    assert question(kind="SOA", use_edns=1).rcode() == dns.rcode.BADVERS
    assert question(kind="AXFR", change=lambda query: None).rcode() in (dns.rcode.REFUSED, dns.rcode.NOTIMP)


NONSENSE = {
    "empty": b"",
    "short": b"\0\1\0",
    "an answer": bytes.fromhex("000181000001000000000000") + b"\0\0\x10\0\1",
    "no question": bytes.fromhex("000100000000000000000000"),
    "65535 questions": bytes.fromhex("00010000ffff000000000000"),
    "a name that points at itself": bytes.fromhex("000100000001000000000000") + b"\xc0\x0c\0\x10\0\1",
    "two OPT": bytes.fromhex("000100000001000000000002") + b"\0\0\x10\0\1" + b"\0\0\x29\4\xd0\0\0\0\0\0\0" * 2,
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_not_answered_at_length(ca, site, kind):
    site = site(ca)
    host, _, port = site.flags[site.flags.index("--dns") + 1].rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(0.5)
        for _ in range(20):
            sender.sendto(NONSENSE[kind], (host, int(port)))
        with contextlib.suppress(TimeoutError):
            for _ in range(20):
                reply = sender.recv(65536)
                assert kind not in ("empty", "short", "an answer") and len(reply) <= 512
    with socket.create_connection((host, int(port)), timeout=5) as sender:
        sender.sendall(len(NONSENSE[kind]).to_bytes(2, "big") + NONSENSE[kind])
    assert ask(site, kind="SOA").answer, "it is still there"
    site.certified()


def test_silent_connections_do_not_keep_others_out(ca, site):
    site = site(ca)
    host, _, port = site.flags[site.flags.index("--dns") + 1].rpartition(":")
    with contextlib.ExitStack() as silent:
        for _ in range(200):
            silent.enter_context(socket.create_connection((host, int(port)), timeout=5))
        assert ask(site, kind="SOA", how=dns.query.tcp).answer and ask(site, kind="SOA").answer


# ── one name at a time ────────────────────────────────────────────────────────────────────────────────────────────

SINGLE = pytest.mark.parametrize("challenge", ["http-01", "tls-alpn-01"])


@SINGLE
def test_a_certificate_for_a_claimed_name(ca, site, challenge):
    site = site(ca, "--acme-challenge", challenge, names=("billing", "orders"))
    for name in ("billing", "orders"):
        leaf = site.certified(f"{name}.{DOMAIN}")
        assert names_of(leaf) == {f"{name}.{DOMAIN}"} and ca.issued(leaf)
    site.restart()
    orders = ca.front.count("newOrder")
    assert site.certified(f"billing.{DOMAIN}") and ca.front.count("newOrder") == orders
    assert {f"billing.{DOMAIN}", f"orders.{DOMAIN}"} <= {name for row in site.status() for name in row["names"]}


@SINGLE
def test_unknown_names_cost_no_call(ca, site, challenge):
    site = site(ca, "--acme-challenge", challenge, names=("billing",))
    site.certified(f"billing.{DOMAIN}")
    site.certified()
    calls = ca.front.count()
    others = ("example.org", f"a.b.{DOMAIN}", f"billing.{DOMAIN}.org", f"x{DOMAIN}", f"*.{DOMAIN}", "127.0.0.1")
    for name in [*(f"n{n}.{DOMAIN}" for n in range(30)), *others]:
        with contextlib.suppress(OSError):
            site.leaf(name)
    with contextlib.suppress(OSError):
        handshake(site.relay.https, None)
    time.sleep(1)  # for what must not happen there is no condition
    assert ca.front.count() == calls


def test_many_at_once_cost_one_order(ca, site):
    site = site(ca, "--acme-challenge", "http-01", names=("billing",))
    ca.front.slow = 0.2
    threads = [threading.Thread(target=site.trusted, args=(f"billing.{DOMAIN}",)) for _ in range(40)]
    for thread in threads:
        thread.start()
    site.certified(f"billing.{DOMAIN}")
    for thread in threads:
        thread.join(20)
    wanted = [call.payload["identifiers"][0]["value"] for call in ca.front.of("newOrder")]
    assert wanted.count(f"billing.{DOMAIN}") == 1


def test_other_tokens_are_no_challenge(ca, site):
    site = site(ca, "--acme-challenge", "http-01", names=("billing",))
    site.certified(f"billing.{DOMAIN}")
    answers = set()
    for path in ("/.well-known/acme-challenge/unknown", "/anything"):
        with socket.create_connection(site.relay.http, timeout=5) as sender:
            sender.sendall(request("GET", path))
            answers.add(sender.recv(4096).split(b"\r\n")[0])
    assert len(answers) == 1, "it is treated like any other path"


def test_nobody_else_speaks_tls_alpn(ca, site):
    site = site(ca, "--acme-challenge", "tls-alpn-01", names=("billing",))
    site.certified(f"billing.{DOMAIN}")
    for name in (f"billing.{DOMAIN}", f"unknown.{DOMAIN}"):
        with pytest.raises(OSError):
            handshake(site.relay.https, name, alpn=["acme-tls/1"])
    assert site.trusted(f"billing.{DOMAIN}")


# ── an authority in trouble ───────────────────────────────────────────────────────────────────────────────────────


def test_the_relay_serves_before_it_has_a_certificate(ca, site):
    ca.front.down()
    before = time.monotonic()
    site = site(ca)
    assert time.monotonic() - before < 5, "the ready line waits for no authority"
    assert site.leaf() and not site.trusted()
    assert "127.0.0.1" in site.error() or "localhost" in site.error()
    status, text = site.relay.get("/health")
    assert status == 503 and "certificate" in text
    ca.front.up()
    check_wildcard(site)
    assert eventually(lambda: site.relay.get("/health")[0] == 200)
    shown = re.search(r"^hookway_relay_certificate_expiry_timestamp (\d+)", site.relay.get("/metrics")[1], re.MULTILINE)
    assert abs(int(shown[1]) - site.leaf().not_valid_after_utc.timestamp()) < 2


def test_an_authority_that_is_not_trusted_is_told(ca, site):
    site = site(ca, https_root=ca.root)
    assert "--acme-ca" in site.error("ertificate") and not ca.front.calls


STEPS = [kind for kind in KINDS.values() if kind not in ("revokeCert", "keyChange", "renewalInfo")]
TROUBLES = {
    "500": lambda front, kind: front.answers(kind, 500, "serverInternal"),
    "503": lambda front, kind: front.answers(kind, 503, retry_after=1),
    "drop": lambda front, kind: front.drops(kind),
    "lost": lambda front, kind: front.drops(kind, after=True),
}
CASES = [(kind, trouble) for kind in STEPS for trouble in TROUBLES]


@pytest.mark.parametrize(("kind", "trouble"), CASES if LONG else CASES[::5], ids="-".join)
def test_once_is_no_harm(ca, site, kind, trouble):
    TROUBLES[trouble](ca.front, kind)
    site = site(ca)
    assert ca.issued(site.certified())
    assert ca.front.count("newOrder") <= 3 and ca.front.count("newAccount") <= 3
    eventually(lambda: not any(row["last_error"] for row in site.status()), what="no error is left")


def test_refused_nonces_are_tried_again(authority, site):
    ca = authority(nonce_rejects=30)
    ca.front.refuses_nonces(times=4)
    assert ca.issued(site(ca).certified())


def test_a_slow_authority(ca, site):
    ca.front.slow = 1.5
    site = site(ca)
    assert not site.trusted() and site.leaf(), "it serves meanwhile"
    assert ca.issued(site.certified(seconds=90))


def test_a_silent_authority_is_given_up(ca, site):
    ca.front.slow = 3600.0
    site = site(ca)
    site.error("time", seconds=90)
    ca.front.slow = 0.0
    assert ca.issued(site.certified(seconds=90))


def test_a_rate_limit_is_kept(ca, site):
    ca.front.answers("newOrder", 429, "rateLimited", retry_after=6, times=1)
    site = site(ca)
    site.error("rateLimited")
    first, *_ = ca.front.of("newOrder")
    assert ca.issued(site.certified())
    second = ca.front.of("newOrder")[1]
    assert second.at - first.at >= 6


def test_failing_for_long_costs_few_calls(ca, site):
    ca.front.answers("newOrder", 400, "rejectedIdentifier", times=ALWAYS)
    site = site(ca)
    site.error("rejectedIdentifier")
    time.sleep(10)
    assert ca.front.count("newOrder") <= 5


def test_a_failed_renewal_leaves_what_works(ca, site):
    site = site(ca)
    old = site.certified()
    ca.front.answers("*", 500, "serverInternal", times=ALWAYS)
    site.relay.command("cert", "renew")
    site.error("500")  # a nonce is asked for with HEAD: there is no word in the answer
    assert site.trusted().serial_number == old.serial_number and site.relay.get("/health")[0] == 200
    site.restart()
    assert site.trusted().serial_number == old.serial_number
    ca.front.well()
    site.relay.command("cert", "renew")
    site.renewed(old)
    eventually(lambda: not any(row["last_error"] for row in site.status()))


def test_an_authority_that_forgot_everything(ca, site):
    site = site(ca)
    site.certified()
    ca.forget()
    assert not site.trusted(), "its root is another now"
    site.relay.command("cert", "renew")
    assert ca.issued(site.certified())
    assert [call.status for call in ca.front.of("newAccount")] == [201, 201]


@pytest.mark.parametrize("kind", ["newAccount", "newOrder", "challenge", "finalize", "certificate"])
def test_killed_in_the_middle(ca, site, kind):
    ca.front.slow = 0.3
    site = site(ca)
    eventually(lambda: ca.front.count(kind))
    site.restart(signal.SIGKILL)
    assert ca.issued(site.certified())
    assert ca.front.count("newAccount") <= 2 and ca.front.count("newOrder") <= 2


# ── renewal ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_short_lives_are_renewed(authority, site):
    ca = authority(validity=30)
    site = site(ca)
    old = site.certified()
    new = site.renewed(old, seconds=35)
    assert now() < old.not_valid_after_utc < new.not_valid_after_utc
    assert ca.front.count("newAccount") == 1


def test_the_authority_says_when(ca, site):
    ca.front.window = (3600, 3700)
    site = site(ca)
    old = site.certified()
    asked = eventually(lambda: ca.front.of("renewalInfo"), SOON, "a look at ARI")
    assert asked[0].path.endswith(certificate_id(old)) and asked[0].method == "GET"
    window = [now() + datetime.timedelta(seconds=seconds) for seconds in (3500, 3800)]
    eventually(lambda: window[0] < at(site.status()[0]["renew_at"]) < window[1], what="a time within its window")
    ca.front.windows[certificate_id(old)] = (-60, -30)
    site.renewed(old, seconds=90)
    assert ca.front.of("newOrder")[-1].payload["replaces"] == certificate_id(old)
    assert ca.front.count("newOrder") == 2


def test_what_is_proven_is_not_proven_again(authority, site):
    ca = authority(reuse=100)
    site = site(ca)
    old = site.certified()
    site.relay.command("cert", "renew")
    site.renewed(old)
    assert ca.front.count("challenge") == 2 and ca.front.count("finalize") == 2


def test_what_was_replaced_already(ca, site):
    ca.front.window = (3600, 3700)
    site = site(ca)
    old = site.certified()
    ca.front.answers("newOrder", 409, "alreadyReplaced")
    site.relay.command("cert", "renew")
    site.renewed(old)
    assert "replaces" not in ca.front.of("newOrder")[-1].payload


def key_of(site, certificate):
    """Its private key, wherever the relay keeps it as PEM."""
    pem = re.compile(rb"-----BEGIN (\w* ?PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)
    for path in filter(pathlib.Path.is_file, site.relay.data.rglob("*")):
        for found in pem.finditer(path.read_bytes()):
            key = serialization.load_pem_private_key(found[0], None)
            if key.public_key() == certificate.public_key():
                return key
    raise AssertionError("the key is in no file")


def test_a_revoked_certificate_is_replaced(ca, site):
    """Nobody asks the relay: that its certificate is worth nothing it learns by ARI (RFC 9773, 4.1)."""
    ca.front.window = (3600, 3700)
    site = site(ca)
    old = site.certified()
    ca.revoke(old, key_of(site, old))
    ca.front.windows[certificate_id(old)] = (-60, -30)
    new = site.renewed(old, seconds=90)
    assert (ca.status(old), ca.status(new)) == ("Revoked", "Valid")
    assert new.public_key() != old.public_key(), "it may have been the key"


def test_connections_live_through_a_renewal(ca, site):
    site = site(ca)
    old = site.certified()
    with site.world.wire("billing") as wire:
        assert wire.ask(request("GET", "/one")).status == 404
        site.relay.command("cert", "renew")
        new = site.renewed(old)
        assert wire.ask(request("GET", "/two")).status == 404, "the connection from before goes on"
    assert site.trusted().serial_number == new.serial_number


def test_a_restart_asks_for_nothing(ca, site):
    site = site(ca, "--acme-email", "admin@hooks.test")
    old = site.certified()
    for _ in range(2):
        site.restart()
        assert site.trusted().serial_number == old.serial_number, "at once, from the disk"
    site.relay.command("cert", "renew")
    site.renewed(old)
    (account,) = ca.front.of("newAccount")
    assert account.payload["contact"] == ["mailto:admin@hooks.test"]
    assert ca.front.count("newOrder") == 2


def test_a_client_over_quic(ca, site):
    """End to end: the client checks the same certificate, and its session outlives a renewal."""
    if os.geteuid() or not shutil.which("unshare"):
        lacking("names of its own need root and unshare")
    site = site(ca)
    old = site.certified()
    world, app = site.world, site.world.app()
    hosts = world.folder / "hosts"
    hosts.write_text(f"127.0.0.1 {DOMAIN}\n")
    named = ("unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts))
    command = (HOOKWAY, app.address, "--relay", f"{DOMAIN}:{site.relay.https[1]}", "--relay-ca", str(ca.root), "--json")
    environment = {"HOOKWAY_TOKEN": world.default_token}
    client = world._add(Program("client", [*named, *command, "-n", "billing"], world.folder / "client", environment))
    client.event("ready")
    assert world.post("/one", b"1").status == 200
    site.relay.command("cert", "renew")
    site.renewed(old)
    assert world.post("/two", b"2").status == 200 and [seen.target for seen in app.seen] == ["/one", "/two"]
    assert not client.find("session", lambda event: event["state"] == "down")


# ── accounts, keys, hooks that fail ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mac_file(tmp_path):
    path = tmp_path / "mac.key"
    path.write_text(next(iter(MAC_KEYS.values())) + "\n")
    return path


def test_an_account_that_is_bound(authority, site, mac_file):
    ca = authority(binding=True)
    site = site(ca, "--acme-eab-kid", next(iter(MAC_KEYS)), "--acme-eab-key-file", mac_file)
    assert ca.issued(site.certified())
    assert "externalAccountBinding" in ca.front.of("newAccount")[0].payload


@pytest.mark.parametrize("wrong", ["none", "kid", "key"])
def test_a_binding_that_is_wrong_is_told(authority, site, mac_file, wrong):
    ca = authority(binding=True)
    flags = ("--acme-eab-kid", "kid-9" if wrong == "kid" else "kid-1", "--acme-eab-key-file", mac_file)
    if wrong == "key":
        mac_file.write_text("d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmc\n")
    site = site(ca, *(() if wrong == "none" else flags))
    assert "--acme-eab" in site.error("xternal") and not site.trusted()
    assert ca.front.count("newAccount") <= 3


def test_a_wrong_key_is_told(ca, site, parts):
    knot, flags = updates(ca, parts, key="wrong_key_file")
    site = site(ca, *flags)
    site.error(CHALLENGE, str(knot.wrong_key_file), "BADSIG")
    assert not knot.texts() and ca.front.count("newOrder") <= 3 and not ca.front.count("challenge")


def test_a_name_the_key_is_not_for_is_told(ca, site, parts):
    knot, flags = updates(ca, parts, domains=("other.hooks.test",))
    site(ca, *flags).error(CHALLENGE, knot.authority)


def test_a_name_server_that_is_away_is_told(ca, site, parts):
    knot, flags = updates(ca, parts)
    knot.program.stop()
    site(ca, *flags).error(CHALLENGE, knot.authority)


def test_a_hook_that_fails_is_told(ca, site, tmp_path):
    hook = tmp_path / "hook"
    hook.write_text('#!/bin/sh\necho "no such zone" >&2\nexit 3\n')
    hook.chmod(0o755)
    site = site(ca, "--dns-hook", hook)
    site.error(CHALLENGE, str(hook), "3", "no such zone")
    assert not ca.front.count("challenge")


def test_a_hook_that_hangs_is_ended(ca, site, tmp_path):
    hook = tmp_path / "hook"
    hook.write_text('#!/bin/sh\necho $$ >>"$0.pids"\nexec sleep 3600\n')
    hook.chmod(0o755)
    site = site(ca, "--dns-hook", hook)
    site.error(CHALLENGE, str(hook), seconds=120)
    pids = (tmp_path / "hook.pids").read_text().split()
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids[:1]), what="the hook's end")


def test_a_challenge_nobody_can_see_is_told(ca, site):
    site = site(ca)
    ca.dns.delegate(CHALLENGE, ("127.0.0.1", free_port()))
    site.relay.command("cert", "renew")
    site.error(CHALLENGE)


def test_secrets_stay_secret(authority, site, parts, mac_file):
    ca = authority(binding=True)
    knot, flags = updates(ca, parts)
    bound = ("--acme-eab-kid", "kid-1", "--acme-eab-key-file", mac_file)
    site = site(ca, *flags, *bound, "--log", "trace")
    site.certified()
    said = site.relay.errors.read_text(errors="replace")
    secret = knot.key_file.read_text().split('secret "')[1].split('"')[0]
    assert secret not in said and next(iter(MAC_KEYS.values())) not in said and "PRIVATE KEY" not in said
    for path in site.relay.data.rglob("*"):
        if path.is_file() and any(mark in path.read_bytes() for mark in (b"PRIVATE KEY", b"key_pkcs8")):
            assert path.stat().st_mode & 0o077 == 0, path


# ── what is asked of it ───────────────────────────────────────────────────────────────────────────────────────────

WRONG = {
    "two ways": (["--dns-hook", "true", "--dns-update", "127.0.0.1:53"], ["--dns-hook", "--dns-update"]),
    "no key": (["--dns-update", "127.0.0.1:53"], ["--dns-tsig-file"]),
    "no such key file": (["--dns-update", "127.0.0.1:53", "--dns-tsig-file", "nowhere.key"], ["nowhere.key"]),
    "a kid alone": (["--acme-eab-kid", "kid-1"], ["--acme-eab-key-file"]),
    "two directories": (["--acme-staging", "--acme-directory", "https://ca.test/dir"], ["--acme-staging"]),
    "plain HTTP": (["--acme-directory", "http://ca.test/dir"], ["https"]),
    "no port 80": (["--acme-challenge", "http-01", "--http", "off"], ["--http"]),
    "a hook for nothing": (["--acme-challenge", "http-01", "--dns-hook", "true"], ["--dns-hook", "dns-01"]),
    "no such challenge": (["--acme-challenge", "dns-02"], ["dns-01", "http-01", "tls-alpn-01"]),
    "no such root": (["--acme-ca", "nowhere.pem"], ["nowhere.pem"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_flags_are_told(relay, tmp_path, wrong):
    flags, said = WRONG[wrong]
    own = {"--https": "127.0.0.1:0", "--http": "127.0.0.1:0", "--admin": "127.0.0.1:0", "--dns": "127.0.0.1:0"}
    own |= {"--domain": DOMAIN, "--tls": "acme", "--data-dir": tmp_path / "data"}
    if any(flag.startswith("--dns-") for flag in flags) or "--acme-challenge" in flags:
        own.pop("--dns")
    rest = [word for pair in own.items() if pair[0] not in flags for word in pair]
    done = relay("run", *rest, *flags)
    assert done.returncode in (1, 2, 7) and all(word in done.stderr for word in said), done.stderr


def test_status_in_words(ca, site):
    site = site(ca)
    site.certified()
    done = subprocess.run(
        [HOOKWAY_RELAY, "cert", "status", "--data-dir", str(site.relay.data)],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert DOMAIN in done.stdout and f"*.{DOMAIN}" in done.stdout and "Pebble" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


def test_another_domain_is_another_certificate(ca, site):
    site = site(ca)
    site.certified()
    other = "custom.test"
    address = site.flags[site.flags.index("--dns") + 1]
    ca.dns.delegate(f"_acme-challenge.{other}", ("127.0.0.1", int(address.rpartition(":")[2])))
    words = itertools.chain(["run", "--domain", other, "--data-dir", str(site.relay.data)], site.flags)
    site.relay.stop()
    again = Program("other", [HOOKWAY_RELAY, *words, "--admin", "127.0.0.1:0", "--json"], site.world.folder / "other")
    try:
        again.event("ready")
        leaf = eventually(lambda: shown(site, other), SOON, "its certificate")
        assert names_of(leaf) == {other, f"*.{other}"} and ca.front.count("newAccount") == 1
    finally:
        again.stop()


def shown(site, name):
    with contextlib.suppress(OSError):
        return handshake(("127.0.0.1", site.ca.tls_port), name, site.ca.root)
    return None
