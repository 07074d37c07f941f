"""Developers' own host names: proven by a TXT record, led to an endpoint, certified, kept, given up.

Most tests share a relay whose certificate covers *.custom.test already, so that DNS alone decides; those of
certificates have Pebble. In the resolver's world all names lead to this machine, unless a test says otherwise.
"""

import asyncio
import contextlib
import datetime
import http.client
import ipaddress
import os
import shutil
import subprocess
import time

import dns.rcode
import pytest
from acme_servers import ALWAYS, Trouble
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from name_servers import Resolver, free_port
from test_acme import authority as authority  # a fixture
from test_acme import ca as ca  # a fixture
from test_acme import parts as parts  # a fixture
from test_acme import names_of
from test_acme import site as site  # a fixture
from test_inspector_api import Inspector
from test_queue import restart, with_project
from test_quic_hostile import number, parse, peer, prefixed, text

from world import DOMAIN, HOOKWAY, HOOKWAY_RELAY, LONG, Program, World, eventually, lacking, request

ELSEWHERE = "192.0.2.9"
QUICKLY = 8.0  # seconds: the second look comes after three


# ── what the tests are made of ────────────────────────────────────────────────────────────────────────────────────


class Moody(Resolver):
    """A resolver in a mood: silent, a name of a response code, or bytes that are no answer."""

    mood = None

    def resolve(self, query):
        match self.mood:
            case None:
                return super().resolve(query)
            case "silent":
                raise OSError("no answer")
            case bytes() as garbage:
                return Garbage(garbage)
            case code:
                reply = super().resolve(query)
                reply.answer.clear()
                reply.set_rcode(dns.rcode.from_text(code))
                return reply


class Garbage:
    def __init__(self, data):
        self.data = data

    def to_wire(self, **_):
        return self.data


def certificates(folder, *names):
    """A CA, and one file with a leaf for these names and its key."""
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA of the tests")])
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)

    def signed(subject, public, *extensions):
        builder = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number(), now - day, now + day)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    names = [*map(x509.DNSName, names), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    alternatives = x509.SubjectAlternativeName(names)
    of_key = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id)
    constraints = (x509.BasicConstraints(True, None), True)
    (folder / "ca.pem").write_bytes(signed(issuer, ca_key.public_key(), constraints, (usage, True), (ca_id, False)))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    leaf = signed(x509.Name([]), key.public_key(), (alternatives, True), (of_key, False))
    (folder / "leaf.pem").write_bytes(leaf + key.private_bytes(*pem))
    return folder / "ca.pem", folder / "leaf.pem"


class Domains:
    """A world with a resolver; what the tests ask of it for a host."""

    def __init__(self, world, resolver, ca=None):
        self.world, self.dns, self.ca = world, resolver, ca
        self.trust()

    def trust(self):
        if self.ca:
            self.world.relay.ca = str(self.ca)

    def restart(self):
        restart(self.world)
        self.trust()

    def client(self, target, host, *flags, name="billing", **options):
        return self.world.client(target, "--domain", host, *flags, name=name, **options)

    def proof(self, host, name, token=None):
        """The TXT record that shows that a host is an owner's, as its client is told."""
        client = self.client("127.0.0.1:9", host, name=name, token=token)
        record = wanted(client.event("domain", lambda event: event["records"]))["TXT"]
        assert client.stop() == 0 and record[0] == f"_hookway-challenge.{host}"
        return record[1]

    def prove(self, host, name, token=None):
        """The same, in DNS."""
        value = self.proof(host, name, token)
        self.dns.record(f"_hookway-challenge.{host}", "TXT", f'"{value}"')
        return value

    def led(self, host, name="billing", token=None, target=None):
        """A client for which a host is ready."""
        self.prove(host, name, token)
        client = self.client(target or self.world.app(), host, name=name, token=token)
        return is_ready(client, host)

    def ask(self, host, path="/", method="POST", body=b"", sni=None, header=None):
        """What a sender is answered who verifies the host's certificate."""
        with self.world.wire(sni=sni or host) as wire:
            return wire.ask(request(method, path, body if method == "POST" else None, host=header or host))

    def app_of(self, host, **how):
        """The app that a host leads to, or the status."""
        reply = self.ask(host, **how)
        return reply.header("x-app") if reply.status == 200 else reply.status


def wanted(event):
    """The records of an event: {type: (name, value)}."""
    return {record["type"]: (record["name"], record["value"]) for record in event["records"]}


def states(client, host):
    """What was said of a host so far, in its order."""
    domains = [event for event in list(client.events) if event.get("event") == "domain"]
    return [event["state"] for event in domains if event["domain"] == host]


def is_ready(client, host, seconds=QUICKLY):
    client.event("domain", lambda event: (event["domain"], event["state"]) == (host, "ready"), seconds)
    return client


def told(client, host, state, *parts, seconds=QUICKLY):
    """The event with this state whose detail says all of this."""

    def fits(event):
        said = str(event["detail"]) + str(event["records"])
        return (event["domain"], event["state"]) == (host, state) and all(part in said for part in parts)

    return client.event("domain", fits, seconds)


@pytest.fixture(scope="module")
def resolver():
    with Moody() as resolver:
        yield resolver


@pytest.fixture(scope="module")
def covered(tmp_path_factory):
    return certificates(tmp_path_factory.mktemp("covered"), DOMAIN, f"*.{DOMAIN}", "*.custom.test")


def flags_of(resolver, covered=None):
    files = ("--tls", "files", "--tls-cert", str(covered[1]), "--tls-key", str(covered[1])) if covered else ()
    return "--resolver", resolver.authority, *files


@pytest.fixture(scope="module")
def at(resolver, covered):
    """The shared one."""
    with World(*flags_of(resolver, covered)) as world:
        yield Domains(world, resolver, covered[0])


@pytest.fixture
def new(new_world, resolver, covered):
    """`new(*flags)`: one of the test's own, with the shared resolver."""
    return lambda *flags: Domains(new_world(*flags_of(resolver, covered), *flags), resolver, covered[0])


@pytest.fixture(autouse=True)
def well(resolver):
    yield
    resolver.mood = None


@pytest.fixture
def host(name):
    """A host name of the test's own."""
    return f"{name}.custom.test"


# ── DNS alone ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_record_after_the_other(at, host, name):
    at.dns.record(host, "A", ELSEWHERE)
    app = at.world.app(name="own")
    client = at.client(app, host, name=name)
    first = told(client, host, "waiting", "it is yours")
    records = wanted(first)
    assert first["endpoint"] == name and first["url"] == f"https://{at.world.authority(host)}"
    assert set(records) == {"TXT", "CNAME"} and records["CNAME"] == (host, f"{name}.{DOMAIN}")
    assert records["TXT"][0] == f"_hookway-challenge.{host}" and records["TXT"][1].startswith("hookway=")
    assert at.app_of(host) == 404, "nothing is shown yet"
    at.dns.record(records["TXT"][0], "TXT", f'"{records["TXT"][1]}"')
    second = told(client, host, "waiting", ELSEWHERE)
    assert set(wanted(second)) == {"CNAME"}
    assert at.app_of(host) == "own", "it is proven: whoever comes is served"
    at.dns.record(host, "A")
    at.dns.record(host, "CNAME", f"{name}.{DOMAIN}.")
    is_ready(client, host, 15)
    assert states(client, host) == ["waiting", "waiting", "ready"], "told on change only"
    (row,) = at.world.relay.command("endpoint", "show", name)
    assert [domain["host"] for domain in row["domains"]] == [host]
    assert at.app_of(host) == "own" and at.ask(f"{name}.{DOMAIN}").status == 200


SHAPES = {
    "an A record": lambda dns, host, own: dns.record(host, "A", "127.0.0.1"),
    "an A record among others": lambda dns, host, own: dns.record(host, "A", ELSEWHERE, "127.0.0.1", "192.0.2.10"),
    "a CNAME": lambda dns, host, own: dns.record(host, "CNAME", f"{own}."),
    "a CNAME in capitals": lambda dns, host, own: dns.record(host, "CNAME", f"{own.upper()}."),
    "a CNAME to the relay": lambda dns, host, own: dns.record(host, "CNAME", f"{DOMAIN}."),
    "a chain": lambda dns, host, own: (
        dns.record(host, "CNAME", f"mid-{host}."),
        dns.record(f"mid-{host}", "CNAME", f"{own}."),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_ways_to_lead_it_here(at, host, name, shape):
    SHAPES[shape](at.dns, host, f"{name}.{DOMAIN}")
    client = at.led(host, name)
    assert states(client, host) == ["ready"] and at.ask(host).status == 200


WAYS_OFF = {
    "nowhere": lambda dns, host: dns.record(host, "A"),
    "elsewhere": lambda dns, host: dns.record(host, "A", ELSEWHERE),
    "a CNAME elsewhere": lambda dns, host: (
        dns.record(host, "CNAME", f"other-{host}."),
        dns.record(f"other-{host}", "A", ELSEWHERE),
    ),
    "a CNAME that leads to itself": lambda dns, host: dns.record(host, "CNAME", f"{host}."),
}


@pytest.mark.parametrize("way", WAYS_OFF)
def test_ways_to_lead_it_elsewhere(at, host, name, way):
    WAYS_OFF[way](at.dns, host)
    at.prove(host, name)
    client = at.client(at.world.app(), host, name=name)
    event = told(client, host, "waiting")
    assert event["detail"] and wanted(event)["CNAME"] == (host, f"{name}.{DOMAIN}")
    assert at.ask(host).status == 200, "a proxy there may pass it on"


PROOFS = {
    "one of many": lambda proof: [*(f'"v=spf{n} {"x" * 200}"' for n in range(30)), f'"{proof}"'],
    "in several strings": lambda proof: [f'"{proof[:9]}" "{proof[9:20]}" "{proof[20:]}"'],
    "twice": lambda proof: [f'"{proof}"', '"else"'],
}
NO_PROOFS = {
    "another": lambda proof: [f'"hookway={"0" * 32}"'],
    "in capitals": lambda proof: [f'"{proof.upper()}"'],
    "a part of it": lambda proof: [f'"{proof[:-1]}"'],
    "more than it": lambda proof: [f'"{proof}0"'],
    "without its beginning": lambda proof: [f'"{proof.partition("=")[2]}"'],
    "in two records": lambda proof: [f'"{proof[:9]}"', f'"{proof[9:]}"'],
    "empty": lambda proof: ['""'],
    "no text": lambda proof: ['"\\000\\255\\200"'],
}


@pytest.mark.parametrize("shape", PROOFS)
def test_what_is_a_proof(at, host, name, shape):
    proof = at.proof(host, name)
    at.dns.record(f"_hookway-challenge.{host}", "TXT", *PROOFS[shape](proof))
    is_ready(at.client(at.world.app(), host, name=name), host)


@pytest.mark.parametrize("shape", NO_PROOFS)
def test_what_is_no_proof(at, host, name, shape):
    proof = at.proof(host, name)
    at.dns.record(f"_hookway-challenge.{host}", "TXT", *NO_PROOFS[shape](proof))
    client = at.client(at.world.app(), host, name=name)
    assert wanted(told(client, host, "waiting"))["TXT"][1] == proof
    assert at.app_of(host) == 404


def test_the_proof_may_be_elsewhere(at, host, name):
    """Many delegate such names with a CNAME."""
    proof = at.proof(host, name)
    at.dns.record(f"_hookway-challenge.{host}", "CNAME", f"challenges-{host}.")
    at.dns.record(f"challenges-{host}", "TXT", f'"{proof}"')
    is_ready(at.client(at.world.app(), host, name=name), host)


def test_the_proof_is_of_host_and_owner(at, host, name):
    own = at.proof(host, name)
    assert at.proof(host, f"{name}-2") == own, "not of the endpoint"
    assert at.proof(f"x-{host}", name) != own
    other = at.world.token("somebody")
    assert at.proof(host, f"{name}-3", other) != own


@pytest.mark.parametrize("change", [str.upper, str.title, lambda host: f"{host}.", lambda host: f"{host.upper()}."])
def test_a_name_is_one_however_it_is_written(at, host, name, change):
    at.prove(host, name)
    client = at.client(at.world.app(), change(host), name=name)
    assert is_ready(client, host).find("domain")["domain"] == host


def test_the_app_sees_the_host_as_it_was_sent(at, host, name):
    app = at.world.app()
    at.led(host, name, target=app)
    for written in (host, host.upper(), f"{host}:8443", f"{host}."):
        assert at.ask(host, "/as?sent=%20", header=written).status == 200
        seen = app.seen[-1]
        assert seen.all("host") == [written] and seen.header("x-forwarded-host") == written
        assert seen.target == "/as?sent=%20"
    assert not app.unclean
    assert at.ask(host, header=f"x-{host}").status == 421, "one connection, one host"
    assert at.ask(host, header=f"{name}.{DOMAIN}").status == 421


@pytest.mark.parametrize("host", ["xn--bcher-kva.custom.test", "1.custom.test", "a--b.custom.test", "a.b.custom.test"])
def test_unusual_names(at, name, host):
    at.prove(host, name)
    client = at.client(at.world.app(), host, name=name)
    event = client.event("domain")
    # The certificate is for one label below custom.test.
    assert event["state"] == ("waiting" if host.count(".") > 2 else "ready") and not event["records"]
    with at.world.wire(sni=None) as wire:
        assert wire.ask(request("POST", "/", b"", host=host)).status == 200


def test_names_around_it_lead_nowhere(at, host, name):
    at.led(host, name)
    assert at.app_of(host) == "app"
    assert at.app_of(f"x{host}") == 404
    with at.world.wire(sni=None) as wire:
        for other in (f"x.{host}", "custom.test", f"{host}.{DOMAIN}", f"{name}.{DOMAIN}.custom.test"):
            assert wire.ask(request("GET", "/", host=other)).status == 404
        assert wire.ask(request("GET", "/", host=host)).status == 200


@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_over_both_transports(at, host, name, transport):
    at.prove(host, name)
    client = at.client(at.world.app(), host, "--transport", transport, name=name)
    is_ready(client, host)
    assert at.ask(host).status == 200


# ── it stays ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_client_that_is_away(at, host, name):
    app = at.world.app()
    assert at.led(host, name, target=app).stop() == 0
    assert at.ask(host, "/later", body=b"x" * 3000).status == 202
    client = at.client(app, host, name=name)
    client.delivery(path="/later")
    (seen,) = app.at("/later")
    assert len(seen.body) == 3000 and seen.all("host") == [host]
    assert client.stop() == 0
    at.world.client(app, name=name)
    assert at.ask(host, "/without").status == 200, "it leads there, whoever asks for it now"


def test_a_restart(new, host, name):
    at = new()
    client = at.led(host, name)
    first = client.find("session")
    at.restart()
    client.event("session", lambda event: event["state"] == "up" and event is not first)
    eventually(lambda: at.app_of(host) == "app", what="a delivery over the restarted relay")
    eventually(lambda: at.dns.asked(f"_hookway-challenge.{host}", "TXT") >= 3)
    assert states(client, host) == ["ready"], "it has not changed"
    assert client.stop() == 0
    at.restart()
    assert at.app_of(host, path="/away") == 202


MOODS = {"SERVFAIL": "SERVFAIL", "silent": "silent"}
MOODS |= {"REFUSED": "REFUSED", "garbage": b"\x00\x01garbage" * 20} if LONG else {}


@pytest.mark.parametrize("mood", MOODS)
def test_dns_in_trouble_before(new, host, name, mood):
    at = new()
    at.prove(host, name)
    at.dns.mood = MOODS[mood]
    client = at.client(at.world.app(), host, name=name)
    event = told(client, host, "waiting", host, seconds=20)
    assert set(wanted(event)) == {"TXT", "CNAME"} and "look" in event["detail"]
    assert at.app_of(host) == 404
    at.dns.mood = None
    is_ready(client, host, 30)
    assert len(states(client, host)) == 2


@pytest.mark.parametrize("mood", MOODS if LONG else ["SERVFAIL"])
def test_dns_in_trouble_afterwards(new, host, name, mood):
    """Who comes back while DNS is in trouble loses nothing, and is not told to set records that are there."""
    at = new()
    app = at.world.app()
    assert at.led(host, name, target=app).stop() == 0
    at.dns.mood = MOODS[mood]
    client = at.client(app, host, name=name)
    assert at.app_of(host) == "app"
    event = client.event("domain", seconds=30)
    assert event["state"] != "refused" and at.app_of(host) == "app"
    at.restart()
    eventually(lambda: at.app_of(host) == "app", what="a delivery over the restarted relay")
    assert client.stop() == 0 and at.app_of(host) == 202


def test_a_resolver_that_is_down(new_world, host, name):
    world = new_world("--resolver", f"127.0.0.1:{free_port()}")
    client = world.client(world.app(), "--domain", host, name=name)
    event = told(client, host, "waiting", seconds=20)
    assert "look" in event["detail"] and world.get(name=name).status == 200


@pytest.mark.parametrize("tls", ["self-signed", "files"])
def test_waiting_for_a_certificate_asks_nobody(new_world, resolver, covered, host, name, tls):
    """Each host would cost several questions every two seconds, for ever."""
    host = host if tls == "self-signed" else f"not.{host}"
    world = new_world(*flags_of(resolver, covered if tls == "files" else None))
    at = Domains(world, resolver, covered[0] if tls == "files" else None)
    at.prove(host, name)
    client = at.client(world.app(), host, name=name)
    event = told(client, host, "waiting", "certificate" if tls == "files" else "CA")
    assert not event["records"], "DNS is as it should be"
    with world.wire(name, sni=None) as wire:
        assert wire.ask(request("POST", "/", b"", host=host)).status == 200, "it is served already"
    before = len(resolver.questions)
    time.sleep(7)  # for what must not happen there is no condition
    asked = [question for question in resolver.questions[before:] if host in question[0].to_text()]
    assert states(client, host) == ["waiting"]
    assert len(asked) <= 4, f"{len(asked)} questions in 7 s"


def test_waiting_for_dns_asks_rarely(new, name):
    """Sixty-four hosts that nobody has set anything for, a client that stays: the looks become rare."""
    at = new()
    hosts = [f"{name}-{number}.custom.test" for number in range(64)]
    flags = [word for host in hosts for word in ("--domain", host)]
    client = at.world.client(at.world.app(), *flags, name=name)
    for host in hosts:
        told(client, host, "waiting")
    time.sleep(7)  # for what must not happen there is no condition
    asked = sum(at.dns.asked(f"_hookway-challenge.{host}", "TXT") for host in hosts)
    assert asked <= 2 * 64 and all(states(client, host) == ["waiting"] for host in hosts)
    questions = sum(1 for question in at.dns.questions if f"{name}-" in question[0].to_text())
    assert questions <= 2 * 64 * 6, questions


def test_http_serve_wants_no_certificate(new_world, resolver, host, name):
    at = Domains(new_world("--resolver", resolver.authority, "--http-serve"), resolver)
    client = at.led(f"not.{host}", name)
    assert states(client, f"not.{host}") == ["ready"]


# ── whose it is ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def rival(at, name):
    """A token of another owner, and an endpoint of his."""
    return {"token": at.world.token(f"rival-of-{name}"), "name": f"{name}-rival"}


def both_prove(at, host, *owners):
    """The proofs of two owners stand in DNS; each."""
    proofs = [at.proof(host, **owner) for owner in owners]
    at.dns.record(f"_hookway-challenge.{host}", "TXT", *(f'"{proof}"' for proof in proofs))
    return proofs


def test_the_first_of_two_owners_keeps_it(at, host, name, rival):
    own = {"name": name}
    mine, _ = both_prove(at, host, own, rival)
    is_ready(at.client(at.world.app(name="mine"), host, **own), host)
    other = at.client(at.world.app(name="his"), host, **rival)
    event = told(other, host, "refused", mine, f"_hookway-challenge.{host}")
    assert "another owner" in event["detail"] and at.app_of(host) == "mine"
    assert other.running and at.app_of(f"{rival['name']}.{DOMAIN}") == "his", "the rest goes on"


def test_the_other_order(at, host, name, rival):
    own = {"name": name}
    both_prove(at, host, rival, own)
    assert is_ready(at.client(at.world.app(name="his"), host, **rival), host).stop() == 0
    told(at.client(at.world.app(name="mine"), host, **own), host, "refused")
    assert at.app_of(host) == 202, "although nobody is there"


def test_without_his_proof_another_has_it(at, host, name, rival):
    own = {"name": name}
    mine, his = both_prove(at, host, own, rival)
    first = is_ready(at.client(at.world.app(name="mine"), host, **own), host)
    at.dns.record(f"_hookway-challenge.{host}", "TXT", f'"{his}"')
    is_ready(at.client(at.world.app(name="his"), host, **rival), host)
    assert at.app_of(host) == "his"
    (row,) = at.world.relay.command("endpoint", "show", rival["name"])
    assert [domain["host"] for domain in row["domains"]] == [host]
    assert not at.world.relay.command("endpoint", "show", name)[0]["domains"]
    assert first.stop() == 0
    again = at.client(at.world.app(name="mine"), host, **own)
    told(again, host, "refused", his)
    assert at.app_of(host) == "his"


def test_who_loses_it_is_told(at, host, name, rival):
    own = {"name": name}
    _, his = both_prove(at, host, own, rival)
    first = is_ready(at.client(at.world.app(name="mine"), host, **own), host)
    at.dns.record(f"_hookway-challenge.{host}", "TXT", f'"{his}"')
    is_ready(at.client(at.world.app(name="his"), host, **rival), host)
    told(first, host, "refused", "another", seconds=5)


def test_who_waits_for_anothers_record_to_go_gets_it(at, host, name, rival):
    """He is told which record is in his way: once it is gone nothing is."""
    if not LONG:
        pytest.skip("what was refused is looked at again after two minutes")
    own = {"name": name}
    _, his = both_prove(at, host, own, rival)
    is_ready(at.client(at.world.app(name="mine"), host, **own), host)
    other = at.client(at.world.app(name="his"), host, **rival)
    told(other, host, "refused")
    at.dns.record(f"_hookway-challenge.{host}", "TXT", f'"{his}"')
    is_ready(other, host, 150)


def test_without_a_proof_it_stays_as_long_as_nobody_else_has_one(at, host, name, rival):
    at.led(host, name).stop()
    at.dns.record(f"_hookway-challenge.{host}", "TXT")
    event = told(at.client(at.world.app(name="his"), host, **rival), host, "waiting", "it is yours")
    assert "TXT" in wanted(event) and at.app_of(host) == 202
    back = at.client(at.world.app(name="mine"), host, name=name)
    event = told(back, host, "ready", "gone")
    assert "TXT" in wanted(event) and at.app_of(host) == "mine"


def test_dns_in_trouble_takes_it_from_nobody(at, host, name, rival):
    own = {"name": name}
    both_prove(at, host, own, rival)
    at.client(at.world.app(name="mine"), host, **own).event("domain")
    at.dns.mood = "SERVFAIL"
    other = at.client(at.world.app(name="his"), host, **rival)
    event = other.event("domain", seconds=15)
    assert event["state"] == "waiting" and at.app_of(host) == "mine"


def test_two_endpoints_of_one_owner(at, host, name):
    """The last that asks has it; the one before is told, and does not take it back."""
    first = at.led(host, name, target=at.world.app(name="one"))
    second = is_ready(at.client(at.world.app(name="two"), host, name=f"{name}-2"), host)
    assert at.app_of(host) == "two"
    assert not at.world.relay.command("endpoint", "show", name)[0]["domains"]
    assert first.running and second.running
    told(first, host, "refused", f"{name}-2", seconds=5)
    assert at.app_of(host) == "two"


def test_two_endpoints_of_one_client(at, host, name):
    value = at.prove(host, name)
    other = f"x-{host}"
    at.dns.record(f"_hookway-challenge.{other}", "TXT", f'"{at.proof(other, name)}"')
    flags = ("-n", f"{name}-2", "--domain", f"{other}={name}")
    client = at.client(at.world.app(), f"{host}={name}-2", *flags, name=name)
    is_ready(client, host)
    is_ready(client, other)
    assert {event["domain"]: event["endpoint"] for event in client.events if event["event"] == "domain"} == {
        host: f"{name}-2",
        other: name,
    }
    assert client.stop() == 0 and value
    rows = {row: at.world.relay.command("endpoint", "show", row)[0]["domains"] for row in (name, f"{name}-2")}
    assert {row: [domain["host"] for domain in rows[row]] for row in rows} == {name: [other], f"{name}-2": [host]}


def test_one_host_for_two_endpoints_of_one_client_is_told(at, host, name):
    """It can lead to one only: to leave the other out silently would be to lose what is meant for it."""
    flags = ("-n", f"{name}-2", "--domain", f"{host}={name}-2")
    client = at.client(at.world.app(), f"{host}={name}", *flags, name=name, wait=False)
    assert client.exited(5) == 2 and host in client.log()


@pytest.mark.parametrize("share", [("balance",), ("copy", "--listener")])
def test_clients_that_share_an_endpoint_share_its_hosts(at, host, name, share):
    at.prove(host, name)
    clients = []
    for number_ in range(2):
        words = ("--share", *share, *([f"l{number_}"] if len(share) > 1 else []))
        clients.append(at.client(at.world.app(), host, *words, name=name))
    for client in clients:
        is_ready(client, host)
        assert states(client, host) == ["ready"]
    assert at.app_of(host) == "app"


# ── releases ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_host_is_released(at, host, name):
    client = at.led(host, name)
    assert at.world.relay.command("endpoint", "release", host) == [{"released": host}]
    eventually(lambda: at.app_of(host) == 404, what="it leads nowhere")
    assert client.running and at.ask(f"{name}.{DOMAIN}").status == 200
    assert not at.world.relay.command("endpoint", "show", name)[0]["domains"]
    told(client, host, "refused", "released", seconds=5)
    assert at.app_of(host) == 404


@pytest.mark.parametrize("change", [str.upper, lambda host: f"{host}."], ids=["upper", "dot"])
def test_a_host_is_released_however_it_is_written(at, host, name, change):
    at.led(host, name).stop()
    at.world.relay.command("endpoint", "release", change(host))
    eventually(lambda: at.app_of(host) == 404, what="it leads nowhere")


def test_a_host_nobody_has_is_not_released(at, host):
    done = subprocess.run(
        [HOOKWAY_RELAY, "endpoint", "release", host, "--data-dir", at.world.relay.data],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 1 and host in done.stderr and "next:" in done.stderr


def test_an_endpoint_is_released_with_its_hosts(at, host, name, rival):
    client = at.led(host, name)
    (released,) = at.world.relay.command("endpoint", "release", name)
    assert released["released"] == name
    held = datetime.datetime.fromisoformat(released["held_until"]) - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=29.9) < held <= datetime.timedelta(days=30)
    assert "released" in client.event("released")["reason"] and client.exited() == 5
    assert at.app_of(host) == 404
    # Another gets neither the name nor, with one of his own, the host.
    refused = at.client(at.world.app(), host, name=name, token=rival["token"], wait=False)
    assert refused.exited() not in (0, None) and "kept for its owner until" in refused.log()
    told(at.client(at.world.app(), host, **rival), host, "waiting")
    assert at.app_of(host) == 404
    # Its owner has both again at once.
    back = at.client(at.world.app(name="mine"), host, name=name)
    is_ready(back, host)
    assert at.app_of(host) == "mine"


def test_a_released_name_is_had_by_others_after_its_time(at, host, name, rival):
    at.led(host, name).stop()
    at.world.relay.command("endpoint", "release", name, "--hold", "2s")
    app, other = at.world.app(name="his"), rival["token"]
    early = at.world.client(app, name=name, token=other, wait=False)
    assert early.exited() != 0 and name in early.log()

    def let_in():
        client = at.world.client(app, name=name, token=other, wait=False)
        eventually(lambda: client.find("ready") or not client.running)
        return client if client.running else None

    eventually(let_in, 15, "the end of the hold")
    assert at.app_of(host) == 404, "the host is not part of it"
    mine = at.world.client(app, name=name, wait=False)
    assert mine.exited() != 0, "the one before has it no more"


def test_a_hold_can_be_ended(at, host, name, rival):
    at.led(host, name).stop()
    at.world.relay.command("endpoint", "release", name)
    at.world.relay.command("endpoint", "release", name, "--hold", "0s")
    client = at.client(at.world.app(), host, name=name, token=rival["token"])
    told(client, host, "waiting", "it is yours")
    assert at.app_of(host) == 404 and at.ask(f"{name}.{DOMAIN}").status == 200


def test_the_next_owner_of_a_name_gets_none_of_its_hosts(at, host, name, rival):
    """Not for a moment: what is sent there is not for him."""
    at.led(host, name).stop()
    at.world.relay.command("endpoint", "release", name, "--hold", "0s")
    app = at.world.app(name="his")
    client = at.client(app, host, name=name, token=rival["token"])
    assert at.app_of(host) != "his" and not app.seen
    assert client.event("domain")["state"] == "waiting"


def test_who_comes_back_at_once_after_a_release(at, host, name):
    """His record is there still: he has both again, and keeps them."""
    at.led(host, name).stop()
    at.world.relay.command("endpoint", "release", name)
    client = is_ready(at.client(at.world.app(), host, name=name), host)
    assert at.app_of(host) == "app"
    eventually(lambda: at.world.relay.command("endpoint", "show", name)[0]["domains"], 5, "a host on disk")
    time.sleep(2)  # for what must not happen there is no condition
    assert at.app_of(host) == "app" and states(client, host) == ["ready"]


@pytest.mark.parametrize("hold", ["-1s", "x", "", "999999999999d"])
def test_holds_that_make_no_sense(at, name, hold):
    done = subprocess.run(
        [HOOKWAY_RELAY, "endpoint", "release", name, f"--hold={hold}", "--data-dir", at.world.relay.data],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode in (1, 2) and "panicked" not in done.stderr and done.stderr.startswith("error:")


def test_one_of_two_endpoints_is_released(at, host, name):
    """The rest of the client goes on, and its host is not told ready for what is gone."""
    at.prove(host, name)
    client = at.client(at.world.app(), f"{host}={name}", "-n", f"{name}-2", name=name, inspect=True)
    is_ready(client, host)
    at.world.relay.command("endpoint", "release", name)
    client.event("released", lambda event: event["endpoint"] == name)
    assert client.running and at.app_of(host) == 404 and at.ask(f"{name}-2.{DOMAIN}").status == 200
    assert host not in str(Inspector(client).get("/api/status")["urls"])


# ── too many, and hostile ─────────────────────────────────────────────────────────────────────────────────────────


def hello(token, names, domains, rest=b""):
    message = number(1, 1) + number(2, 1) + text(3, token) + b"".join(text(4, name) for name in names)
    message += b"".join(text(8, text(1, host) + text(2, endpoint)) for host, endpoint in domains) + rest
    return prefixed(text(1, message + text(5, "peer/0")))


def answers(at, names, domains, count=1, seconds=8.0):
    """What a relay says to such a hello: (refusal or None, states of hosts)."""

    async def ask():
        async with peer(at.world) as client:
            client.write(0, hello(at.world.default_token, names, domains))
            first = await client.message()
            if first is None or 2 in first:
                return first and parse(first[2][0]), []
            assert 1 in first
            said = []
            with contextlib.suppress(TimeoutError):
                while len(said) < count and (message := await client.message(seconds)) is not None:
                    said += [parse(state) for state in message.get(8, [])]
            return None, said

    return asyncio.run(ask())


NO_NAMES = {
    "empty": "",
    "a dot": ".",
    "300 bytes": f"{'a.' * 150}test",
    "a label too long": f"{'a' * 64}.test",
    "control": "a\nb.test",
    "nul": "a\0.test",
    "escape": "\x1b[2J.test",
    "space": "a b.test",
    "user": "u@a.test",
    "path": "a.test/x",
    "quote": 'a".test',
    "wildcard": "*.x.com",
    "unicode": "bücher.test",
    "not utf-8": b"\xff\xfe.test",
    "half an address": "[::1",
}
REFUSED = {
    "v6": "[::1]",
    "v6 with v4": "[::ffff:127.0.0.1]",
    "v4": "127.0.0.1",
    "v4 with a dot": "127.0.0.1.",
    "a single label": "localhost",
    "the relay's domain": DOMAIN,
    "it in capitals": f"{DOMAIN.upper()}.",
    "below it": f"somebody.{DOMAIN}",
    "far below it": f"a.b.{DOMAIN}",
    "its challenge": f"_acme-challenge.{DOMAIN}",
    "too long for its record": ".".join(["a" * 60] * 4) + ".test",
}


@pytest.mark.parametrize("kind", NO_NAMES)
def test_what_is_no_host_name_is_refused(at, name, kind):
    refusal, _ = answers(at, [name], [(NO_NAMES[kind], "")])
    assert refusal is None or (refusal[1] and b"\x1b" not in refusal[2][0] and b"\n" not in refusal[2][0])
    assert refusal is None or len(refusal[2][0]) < 400
    assert at.world.relay.running
    after, _ = answers(at, [name], [], count=0)
    assert after is None


@pytest.mark.parametrize("kind", REFUSED)
def test_hosts_that_cannot_be_had(at, name, kind):
    refusal, (state, *_) = answers(at, [name], [(REFUSED[kind], name)])
    assert refusal is None and state[3] == [2] and state[4][0], state
    assert 5 not in state, "there is no record to set"


def test_a_host_of_no_endpoint(at, host, name):
    for domains in ([(host, "other")], [(host, "\x1b[2J")], [(host, name.upper())]):
        refusal, _ = answers(at, [name], domains)
        assert refusal[1] == [4] and host.encode() in refusal[2][0] and refusal[3][0]


def test_too_many_hosts_at_once(at, name):
    hosts = [(f"h{number}.{name}.custom.test", "") for number in range(65)]
    refusal, _ = answers(at, [name], hosts)
    assert refusal[1] == [5] and b"65" in refusal[2][0] and b"64" in refusal[2][0] and b"--domain" in refusal[3][0]
    refusal, states = answers(at, [name], [(hosts[0][0], "")] * 64, count=2, seconds=1.0)
    assert refusal is None and len(states) == 1, "one that is asked for again is one"


def test_too_many_hosts_of_an_endpoint(new, name):
    at = new()
    hosts = [f"h{number}-{name}.custom.test" for number in range(65)]
    flags = [word for host in hosts[1:64] for word in ("--domain", host)]
    client = at.client("127.0.0.1:9", hosts[0], *flags, name=name)
    for host in hosts[:64]:
        record = wanted(told(client, host, "waiting"))["TXT"]
        at.dns.record(record[0], "TXT", f'"{record[1]}"')
    for host in hosts[:64]:
        is_ready(client, host)
    assert client.stop() == 0
    at.prove(hosts[64], name)
    told(at.client(at.world.app(), hosts[64], name=name), hosts[64], "refused", "64")
    assert at.app_of(hosts[64]) == 404 and at.app_of(hosts[0]) == "app"
    is_ready(at.client(at.world.app(), hosts[64], name=f"{name}-2"), hosts[64])


# ── the client ────────────────────────────────────────────────────────────────────────────────────────────────────

BAD_FLAGS = {
    **dict.fromkeys(["", "localhost", "*.x.com", "x.com:443", "https://x.com", "x.com/path"], "hooks.example.com"),
    **dict.fromkeys(["x..com", "=billing", "[::1]", "127.0.0.1", f"{'a' * 64}.com"], "hooks.example.com"),
    "bücher.de": "xn--",
    "x.com=": "endpoint name",
    "x.com=A_b": "endpoint name",
}


@pytest.mark.parametrize("value", BAD_FLAGS)
def test_flags_that_make_no_sense(hookway, value):
    done = hookway("3000", "--relay", "127.0.0.1:9", "--domain", value, HOOKWAY_TOKEN="hkw_x")
    assert done.returncode == 2 and "--domain" in done.stderr and BAD_FLAGS[value] in done.stderr, done.stderr


def test_which_endpoint_is_asked(at, hookway):
    words = ("--relay", "127.0.0.1:9", "-n", "one", "-n", "two", "--domain", "hooks.example.com")
    done = hookway("3000", *words, HOOKWAY_TOKEN=at.world.default_token)
    assert done.returncode == 2 and "hooks.example.com=one" in done.stderr, done.stderr


def test_an_endpoint_that_is_not_asked_for(at, host, name):
    client = at.client(at.world.app(), f"{host}=other", name=name, wait=False)
    assert client.exited() in (2, 5) and host in client.log() and "--domain" in client.log()


def test_the_environment(at, host, name):
    second = f"x-{host}"
    environment = {"HOOKWAY_DOMAIN": f"{host},{second}={name}"}
    client = at.world.client(at.world.app(), name=name, environment=environment)
    told(client, host, "waiting")
    told(client, second, "waiting")


@pytest.mark.parametrize("where", ["top", "table"])
def test_the_projects_file(at, host, name, where):
    app = at.world.app()
    text_ = f'domain = ["{host}", "x-{host}"]\n'
    if where == "table":
        text_ = f'[[endpoint]]\nname = "{name}"\ntarget = "{app.address}"\n{text_}[[endpoint]]\nname = "{name}-2"\n'
    with_project(at.world, name, text_)
    flags = ("-n", f"{name}-2") if where == "table" else ()
    client = at.world.client(app, *flags, name=name)
    for each in (host, f"x-{host}"):
        assert told(client, each, "waiting")["endpoint"] == name


@pytest.mark.parametrize("line", ['domain = ["localhost"]', 'domain = "x.com"', 'domain = ["x.com=two"]'])
def test_a_projects_file_that_makes_no_sense(at, name, line):
    with_project(at.world, name, f'[[endpoint]]\nname = "{name}"\n{line}\n')
    client = at.world.client("127.0.0.1:9", name=name, wait=False)
    assert client.exited() == 7 and "hookway.toml" in client.log() and "domain" in client.log()


def test_what_a_person_reads(at, host, name):
    at.dns.record(host, "A", ELSEWHERE)
    client = at.client(at.world.app(), host, name=name, json_lines=False)
    record = f"_hookway-challenge.{host}"
    eventually(lambda: record in client.log(), what="what to set")
    said = client.log()
    assert f"{host} waits: " in said and f'{record}.   TXT   "hookway=' in said
    assert f"{host}.   CNAME   {name}.{DOMAIN}." in said
    at.dns.record(record, "TXT", said[said.index('"hookway=') :].split()[0])
    eventually(lambda: ELSEWHERE in client.log(), what="where it leads")
    assert client.stop() == 0
    at.dns.record(host, "A")
    at.dns.record(host, "CNAME", f"{name}.{DOMAIN}.")
    client = at.client(at.world.app(), host, name=name, json_lines=False)
    eventually(lambda: f"https://{at.world.authority(host)} leads to {name}" in client.log(), what="that it is ready")
    client = at.client(at.world.app(), f"x.{DOMAIN}", name=f"{name}-2", json_lines=False)
    eventually(lambda: f"x.{DOMAIN} cannot lead here" in client.log(), what="that it cannot be")


def test_the_inspector_shows_it(at, host, name):
    value = at.proof(host, name)
    client = at.client(at.world.app(), host, name=name, inspect=True)
    inspector, url = Inspector(client), f"https://{at.world.authority(host)}"
    told(client, host, "waiting")
    (row,) = inspector.get("/api/status")["urls"]
    assert row["more"] == []
    at.dns.record(f"_hookway-challenge.{host}", "TXT", f'"{value}"')
    is_ready(client, host)
    (row,) = inspector.get("/api/status")["urls"]
    assert row["url"] == at.world.url("", name=name) and row["more"] == [url]


# ── plain HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_plain_http_is_sent_to_the_same_host(at, host, name):
    at.led(host, name)

    def location(asked):
        with contextlib.closing(http.client.HTTPConnection(*at.world.relay.http, timeout=5)) as plain:
            plain.request("POST", "/a?b=c", b"x", {"Host": asked})
            reply = plain.getresponse()
            return reply.status, reply.headers["Location"]

    for asked in (host, host.upper(), f"{host}:80", f"{host}."):
        status, to = location(asked)
        assert status in (301, 307, 308) and to == f"https://{at.world.authority(host)}/a?b=c"
    for asked in (f"x-{host}", f"x.{host}", "custom.test", "evil.example"):
        assert location(asked) == (404, None)
    at.world.relay.command("endpoint", "release", host)
    eventually(lambda: location(host) == (404, None), what="it leads nowhere")


# ── certificates ──────────────────────────────────────────────────────────────────────────────────────────────────


class Certified(Domains):
    """A relay that Pebble certifies; its clients find it as hooks.test, for which it has a certificate."""

    def __init__(self, site):
        super().__init__(site.world, site.ca.dns)
        self.site, self.front = site, site.ca.front
        if os.geteuid() or not shutil.which("unshare"):
            lacking("names of its own need root and unshare")
        self.hosts = self.world.folder / "hosts"
        self.hosts.write_text(f"127.0.0.1 {DOMAIN}\n")
        site.certified()

    def client(self, target, host, *flags, name="billing", token=None):
        world = self.world
        target = getattr(target, "address", target)
        named = ("unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(self.hosts))
        relay = ("--relay", f"{DOMAIN}:{world.relay.https[1]}", "--relay-ca", str(self.site.ca.root))
        command = (*named, HOOKWAY, target, *relay, "--json", "--no-inspect", "-n", name, "--domain", host, *flags)
        title = f"client-{len(world.programs)}-{name}"
        environment = {"HOOKWAY_TOKEN": token or world.default_token}
        client = world._add(Program(title, command, world.folder / title, environment))
        client.event("ready")
        return client

    def health(self):
        return self.world.relay.get("/health")[0]

    def orders(self, host):
        asked = (call.payload.get("identifiers", []) for call in self.front.of("newOrder"))
        return sum({"type": "dns", "value": host} in identifiers for identifiers in asked)

    def certified_names(self):
        return {name for row in self.site.status() for name in row["names"]}

    def fails(self, hosts, status, problem):
        """The authority answers so to orders for these, until told else by `front._trouble = usual`, the answer."""
        usual = self.front._trouble

        def trouble(call):
            asked = [identifier["value"] for identifier in call.payload.get("identifiers", [])]
            failing = call.kind == "newOrder" and not {*hosts}.isdisjoint(asked)
            return Trouble("newOrder", ALWAYS, (status, problem, None)) if failing else usual(call)

        self.front._trouble = trouble
        return usual


@pytest.fixture
def certified(ca, site):
    """`certified(*flags)`: a relay of the test's own."""
    return lambda *flags: Certified(site(ca, "--resolver", ca.dns.authority, *flags))


HOST = "Hooks.custom.test"
LOWER = HOST.lower()


@pytest.mark.parametrize("challenge", ["dns-01", "http-01", "tls-alpn-01"])
def test_the_whole_way(certified, challenge):
    at = certified(*(() if challenge == "dns-01" else ("--acme-challenge", challenge)))
    main, app = at.site.trusted(), at.world.app()
    at.dns.record(LOWER, "A", ELSEWHERE)
    client = at.client(app, HOST)
    record = wanted(told(client, LOWER, "waiting", "it is yours"))["TXT"]
    for _ in range(5):
        assert not at.site.trusted(LOWER)
    assert not at.orders(LOWER), "who asks for a name that is nobody's costs no call"
    at.dns.record(record[0], "TXT", f'"{record[1]}"')
    at.dns.record(LOWER, "A")
    at.dns.record(LOWER, "CNAME", f"billing.{DOMAIN}.")
    is_ready(client, LOWER, 30)
    assert states(client, LOWER)[-2:] == ["waiting", "ready"] and at.orders(LOWER) == 1
    leaf = at.site.trusted(LOWER)
    assert names_of(leaf) == {LOWER} and at.site.ca.issued(leaf)
    assert at.site.trusted().serial_number == main.serial_number
    assert at.ask(LOWER, header=HOST).status == 200 and app.seen[-1].all("host") == [HOST]
    assert at.certified_names() >= {DOMAIN, LOWER} and at.health() == 200
    told_before = len(states(client, LOWER))
    at.site.restart()
    assert at.site.trusted(LOWER).serial_number == leaf.serial_number, "at once, from the disk"
    eventually(lambda: at.app_of(LOWER) == "app", what="a delivery over the restarted relay")
    assert client.stop() == 0 and len(states(client, LOWER)) == told_before
    assert at.ask(LOWER, "/later").status == 202
    at.client(app, HOST)
    eventually(lambda: app.at("/later"), what="what waited")
    assert at.orders(LOWER) == 1


def test_the_other_challenge_is_tried(ca, site):
    """A proxy before the relay ends TLS: plain HTTP gets through."""
    ca.tls_port = free_port()
    at = Certified(site(ca, "--resolver", ca.dns.authority))
    at.prove(LOWER, "billing")
    is_ready(at.client(at.world.app(), LOWER), LOWER, 20)


def test_an_authority_that_fails_for_it(certified):
    at = certified()
    usual = at.fails([LOWER], 500, "serverInternal")
    at.prove(LOWER, "billing")
    client = at.client(at.world.app(), LOWER)
    event = told(client, LOWER, "waiting", "500", seconds=15)
    assert not event["records"] and at.health() == 200
    old = at.site.trusted()
    at.world.relay.command("cert", "renew")
    at.site.renewed(old)
    assert at.health() == 200
    (row,) = [row for row in at.site.status() if LOWER in row["names"]]
    assert "500" in row["last_error"]
    at.front._trouble = usual
    is_ready(client, LOWER, 40)
    assert names_of(at.site.trusted(LOWER)) == {LOWER}


def test_a_renewal_after_it_was_led_elsewhere(certified):
    at = certified()
    at.prove(LOWER, "billing")
    is_ready(at.client(at.world.app(), LOWER), LOWER, 20)
    mine, main = at.site.trusted(LOWER), at.site.trusted()
    at.dns.record(LOWER, "A", "127.0.0.77")
    at.world.relay.command("cert", "renew")
    at.site.renewed(main)
    at.site.error(LOWER, seconds=30)
    assert at.health() == 200 and at.site.trusted(LOWER).serial_number == mine.serial_number
    _, metrics = at.world.relay.get("/metrics")
    assert f"certificate_expiry_timestamp {int(at.site.trusted().not_valid_after_utc.timestamp())}" in metrics


def test_a_released_host_is_shown_no_certificate(certified):
    """It is kept while it is good: an authority gives only so many for one name."""
    at = certified()
    at.prove(LOWER, "billing")
    is_ready(at.client(at.world.app(), LOWER), LOWER, 20).stop()
    old, orders = at.site.trusted(LOWER), at.orders(LOWER)
    at.world.relay.command("endpoint", "release", "billing")
    eventually(lambda: not at.site.trusted(LOWER), what="no certificate for it")
    with contextlib.suppress(OSError):
        at.site.leaf(LOWER)
    assert at.orders(LOWER) == orders and at.health() == 200
    is_ready(at.client(at.world.app(), LOWER), LOWER, 20)
    assert at.site.trusted(LOWER).serial_number == old.serial_number and at.orders(LOWER) == orders


def test_a_host_released_while_the_relay_is_away(certified):
    at = certified()
    at.prove(LOWER, "billing")
    is_ready(at.client(at.world.app(), LOWER), LOWER, 20).stop()
    relay = at.world.relay
    assert relay.stop() == 0
    relay.command("endpoint", "release", LOWER)
    at.site.restart()
    assert not at.site.trusted(LOWER)


def test_one_owner_leaves_certificates_for_others(certified):
    """Hosts for which the authority makes none use up nobody else's orders."""
    if not LONG:
        pytest.skip("twenty orders take their time")
    at = certified()
    hosts = [f"h{number_}.custom.test" for number_ in range(21)]
    at.fails(hosts, 400, "rejectedIdentifier")
    greedy = {"name": "greedy", "token": at.world.token("greedy")}
    client = at.client("127.0.0.1:9", hosts[0], *(word for host in hosts[1:] for word in ("--domain", host)), **greedy)
    for host in hosts:
        record = wanted(told(client, host, "waiting"))["TXT"]
        at.dns.record(record[0], "TXT", f'"{record[1]}"')
    eventually(lambda: sum(map(at.orders, hosts)) >= 20, 60, "twenty orders")
    at.prove(LOWER, "billing")
    is_ready(at.client(at.world.app(), LOWER), LOWER, 30)
