"""Whom a relay without --resolver asks for a proof: the name servers of the developer's zone, and else its machine's.

All is in one network namespace, on its loopback; a name server has port 53 of its address:

127.0.0.53     the machine's resolver, which keeps for an hour what it found, and that it found nothing
203.0.113.53   the name server of custom.example
203.0.113.66   that of somebody else
"""

import contextlib
import json
import socket
import subprocess
import time

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from name_servers import Resolver, _DnsTcp, _DnsUdp
from test_network import Namespace, possible

from world import DOMAIN, HOOKWAY, HOOKWAY_RELAY, Program

assert possible  # the fixture of test_network.py, which holds here, too

ZONE, OTHER_ZONE, HOST = "custom.example", "other.example", "hooks.custom.example"
PROOF = f"_hookway-challenge.{HOST}"
MACHINE, OWN, OTHER = "127.0.0.53", "203.0.113.53", "203.0.113.66"
PRIVATE_4 = ["127.0.0.1", "10.0.0.53", "172.16.0.53", "192.168.0.53", "100.64.0.53", "169.254.169.254"]
PRIVATE = [*PRIVATE_4, "::1", "fd00::53"]
SOON = 25.0  # seconds: a second look comes after three; silent name servers are given up after nine


class Remembering(Resolver):
    """A recursive resolver that keeps every answer: "there is none", too."""

    def __init__(self, address, *zones):
        super().__init__(*zones)
        self._servers += [_DnsTcp((address, 53), self), _DnsUdp((address, 53), self)]
        self.kept = {}

    def _look_up(self, name, kind):
        return self.kept.setdefault((name, kind), super()._look_up(name, kind))


class Authority(Resolver):
    """A name server of one zone: it refuses other names, and refers to others for what `cut` says is theirs."""

    mood = None  # or "silent", or the name of a response code
    delay = 0.0  # seconds

    def __init__(self, address, zone):
        super().__init__(zone)
        self.zone, self.cut = dns.name.from_text(zone), None
        self._servers += [_DnsTcp((address, 53), self), _DnsUdp((address, 53), self)]

    def resolve(self, query):
        question = query.question[0]
        self.questions.append((question.name, question.rdtype))
        if self.mood == "silent":
            raise OSError("no answer")
        time.sleep(self.delay)
        reply = dns.message.make_response(query)
        if self.mood or not question.name.is_subdomain(self.zone):
            reply.set_rcode(dns.rcode.from_text(self.mood or "REFUSED"))
        elif self.cut and question.name.is_subdomain(dns.name.from_text(self.cut)):
            reply.authority.append(dns.rrset.from_text(self.cut + ".", 3600, "IN", "NS", f"ns.{OTHER_ZONE}."))
        else:
            reply.flags |= dns.flags.AA
            kinds = (question.rdtype, dns.rdatatype.CNAME)
            found = [record for kind in kinds if (record := self._records.get((question.name, kind)))]
            none = dns.rrset.from_text(self.zone, 3600, "IN", "SOA", "ns. admin. 1 3600 600 86400 3600")
            (reply.answer if found else reply.authority).append(found[0] if found else none)
        return reply


class Dns:
    """A relay whose machine asks `machine`; `own` and `other` are the name servers of two zones.

    `text` is what shows that the host is its client's: nothing says so yet.
    """

    def __init__(self, folder):
        self.folder, self.stack = folder, contextlib.ExitStack()
        try:
            self._start()
        except BaseException:
            self.stack.close()
            raise

    def _start(self):
        self.namespace = Namespace("zone")
        self.stack.callback(self.namespace.close)
        for address in (OWN, OTHER, *PRIVATE_4[1:]):
            self.namespace.ip("address", "add", f"{address}/32", "dev", "lo")
        self.machine = self._serve(lambda: Remembering(MACHINE, DOMAIN, ZONE, OTHER_ZONE))
        self.own = self._serve(lambda: Authority(OWN, ZONE))
        self.other = self._serve(lambda: Authority(OTHER, OTHER_ZONE))
        self.servers = self.machine, self.own, self.other
        self.served(ZONE, f"ns.{ZONE}", OWN)
        self.served(OTHER_ZONE, f"ns.{OTHER_ZONE}", OTHER)

        (self.folder / "resolv.conf").write_text(f"nameserver {MACHINE}\n")
        own = ("sh", "-ec", 'mount --bind "$0" /etc/resolv.conf; exec "$@"', self.folder / "resolv.conf")
        data, listen = self.folder / "data", ("--https", "127.0.0.1:0", "--http", "off", "--admin", "off")
        serve = ("run", "--domain", DOMAIN, "--data-dir", data, "--tls", "self-signed", "--rate", "off", "--json")
        self.relay = self._program("relay", *own, HOOKWAY_RELAY, *serve, *listen)
        ready = self.relay.event("ready")
        create = [HOOKWAY_RELAY, "token", "create", "--name", "ci", "--json", "--data-dir", data]
        token = json.loads(subprocess.run(create, check=True, capture_output=True).stdout)["token"]
        relay = ("--relay", ready["https"], "--relay-ca", ready["ca"], "--json", "--no-inspect")
        self._client = ("client", HOOKWAY, "127.0.0.1:9", *relay, "-n", "billing", "--domain", HOST), token
        self.connect()
        self.text = f'"{self.wanted()}"'
        self.client.stop()
        # An hour later.
        self.machine.kept.clear()
        for server in self.servers:
            server.questions.clear()

    def _serve(self, make):
        server = self.namespace.inside(make)
        self.stack.enter_context(server)
        return server

    def _program(self, title, *words, **environment):
        program = Program(title, self.namespace.command(*words), self.folder / title, environment)
        self.stack.callback(program.stop)
        return program

    def served(self, zone, server, *addresses):
        """NS: the zone's name server, and where it is."""
        self.machine.record(zone, "NS", f"{server}.")
        for kind in ("A", "AAAA"):
            if fitting := [address for address in addresses if (":" in address) == (kind == "AAAA")]:
                self.machine.record(server, kind, *fitting)

    def record(self, *words):
        """A record of custom.example, at its name server and for who looks it up for the first time."""
        self.own.record(*words)
        self.machine.record(*words)

    def unknown(self):
        """Whether the machine's resolver says that there is no proof."""
        return not self.machine.resolve(dns.message.make_query(PROOF, "TXT")).answer

    def connect(self):
        self.client = self._program(*self._client[0], HOOKWAY_TOKEN=self._client[1])

    def domain(self, is_wanted):
        """The first event that wants a proof, or the first that wants none."""

        def fits(event):
            return is_wanted == any(record["type"] == "TXT" for record in event["records"])

        return self.client.event("domain", lambda event: event["state"] != "refused" and fits(event), SOON)

    def wanted(self):
        """The text of the proof that is wanted."""
        return next(record["value"] for record in self.domain(True)["records"] if record["type"] == "TXT")

    def proven(self):
        """Waits until no proof is wanted any more."""
        self.domain(False)


@pytest.fixture
def at(tmp_path):
    at = Dns(tmp_path)
    with contextlib.closing(at.stack):
        yield at
        print(f"── relay\n{at.relay.log()}")
        for server in at.servers:
            print([f"{name} {dns.rdatatype.to_text(kind)}" for name, kind in server.questions])


def test_the_zones_own_servers_are_believed_at_once(at):
    """The machine's resolver knows for an hour that there is no proof."""
    assert at.unknown()
    at.connect()
    assert f'"{at.wanted()}"' == at.text
    at.record(PROOF, "TXT", at.text)
    at.proven()
    assert at.unknown() and at.own.asked(PROOF, "TXT") and not at.other.questions


@pytest.mark.parametrize("mood", ["silent", "REFUSED", "SERVFAIL", "gone"])
def test_who_does_not_answer_leaves_it_to_the_machines_resolver(at, mood):
    at.machine.record(PROOF, "TXT", at.text)
    at.own.mood = mood
    if mood == "gone":
        at.namespace.ip("address", "delete", f"{OWN}/32", "dev", "lo")
    at.connect()
    at.proven()
    assert at.machine.asked(PROOF, "TXT") and bool(at.own.questions) == (mood != "gone")


@pytest.mark.parametrize("mood", ["silent", "REFUSED"])
def test_one_of_two_servers_does_not_know(at, mood):
    """Be it the quicker one: the other says it, and the machine's resolver knows of nothing."""
    at.machine.record(ZONE, "NS", f"ns.{ZONE}.", f"ns.{OTHER_ZONE}.")
    at.other.mood, at.own.delay = mood, 0.2
    assert at.unknown()
    at.record(PROOF, "TXT", at.text)
    at.connect()
    at.proven()


def test_servers_of_another_name_have_no_say(at):
    """The host is another name of the apex of a zone, whose name server says what it likes."""
    at.record(HOST, "CNAME", f"{OTHER_ZONE}.")
    at.other.zone = dns.name.root
    at.other.record(PROOF, "TXT", at.text)
    at.connect()
    at.wanted()
    at.record(PROOF, "TXT", at.text)
    at.proven()
    assert at.own.asked(PROOF, "TXT") == 2 and not at.other.questions


@pytest.mark.parametrize("others", [[], [OWN]], ids=["alone", "beside a public one"])
def test_private_addresses_are_never_asked(at, others):
    """Nor is one that is written as an IPv6 address."""

    def trap(address):
        trap = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        trap.bind((address, 53))
        trap.setblocking(False)
        return at.stack.enter_context(trap)

    at.namespace.ip("address", "add", "fd00::53/128", "dev", "lo", "nodad")
    traps = [at.namespace.inside(lambda address=address: trap(address)) for address in PRIVATE]
    at.served(ZONE, f"ns.{ZONE}", *PRIVATE, "0.0.0.0", "::", "::ffff:10.0.0.53", *others)
    at.record(PROOF, "TXT", at.text)
    at.connect()
    at.proven()
    assert bool(others) == bool(at.own.questions) != bool(at.machine.asked(PROOF, "TXT"))
    for trap_ in traps:
        with pytest.raises(BlockingIOError):
            pytest.fail(f"{trap_.getsockname()} was asked {trap_.recv(512)}")


@pytest.mark.parametrize("kind", ["CNAME", "NS"])
def test_the_proof_may_be_in_another_zone(at, kind):
    """Many delegate such names, one way or the other."""
    where = PROOF
    if kind == "CNAME":
        where = f"proofs.{OTHER_ZONE}"
        at.record(PROOF, "CNAME", f"{where}.")
    else:
        at.machine.record(PROOF, "NS", f"ns.{OTHER_ZONE}.")
        at.own.cut, at.other.zone = PROOF, dns.name.from_text(PROOF)
    for server in (at.machine, at.other):
        server.record(where, "TXT", at.text)
    at.connect()
    at.proven()
