"""Nothing phones home: whom the programs speak to, by what they ask of the system.

Each program runs under strace from its first moment to its last. It may speak to what the test made for it, at loopback,
and to nobody else; not even to a name server.
"""

import collections
import contextlib
import ipaddress
import itertools
import re
import shutil
import subprocess
from unittest import mock

import pytest

import world as peers
from test_traces import built_with_traces
from world import DOMAIN, HOOKWAY, HOOKWAY_RELAY, World, eventually, lacking, run, takes

CALLS = "connect,sendto,sendmsg,sendmmsg"
AROUND = "io_uring_setup"  # what is asked there strace would not see
WRONG = "hwt_" + "A" * 43
FOREIGN = "198.51.100.1"  # nobody's (RFC 5737), as those of which the own address is learned, and to which nothing goes
PROBED = ("192.0.2.1", "2001:db8::1")

Spoken = collections.namedtuple("Spoken", "call, ip, port")


class Strace:
    """Traced programs: `strace(program)` is a program that runs that one, and writes down whom it speaks to."""

    def __init__(self, folder):
        self.folder, self._numbers = folder, itertools.count()
        self._strace = shutil.which("strace") or lacking("strace is missing\n  next:  apt-get install --no-install-recommends strace")
        tried = subprocess.run([self._strace, "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, timeout=20, check=False)
        if tried.returncode:
            lacking(f"strace may not trace: {tried.stderr}")

    def __call__(self, program):
        traces = self.folder / f"trace-{next(self._numbers)}"
        traces.mkdir()
        script = traces.with_suffix(".sh")
        # -D: the process is the program, and the tracer its grandchild: signals reach the former. -v: all of sendmmsg's messages.
        words = f"{self._strace} -D -f -v -s 0 -e signal=none -e trace={CALLS},{AROUND} -o {traces}/$$"
        script.write_text(f'#!/bin/sh\nexec {words} {program} "$@"\n')
        script.chmod(0o755)
        return script

    @staticmethod
    def said(script):
        """Whom each run of it has spoken to, once it is over."""
        runs = []
        for trace in sorted(script.with_suffix("").iterdir()):
            eventually(lambda trace=trace: f"\n{trace.name} +++ exited" in f"\n{trace.read_text()}", what="the end of a trace")
            text = trace.read_text()
            assert AROUND not in text, "the program asks in a way that strace does not see"
            runs.append([one for line in text.splitlines() for one in spoken(line)])
        assert runs, "it was not run"
        return runs


def spoken(line):
    """The addresses that one call names."""
    for sockaddr in re.findall(r"\{sa_family=(AF_[^}]*)\}", line):
        call = re.search(r"\b(connect|send\w+)\(", line)
        family = sockaddr.partition(",")[0]
        if family in ("AF_UNSPEC", "AF_NETLINK"):
            continue  # to nobody, and to the kernel
        ip = re.search(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"', sockaddr)
        port = re.search(r"port=htons\((\d+)\)", sockaddr)
        # A socket of a file's name may be a name server's: it is as foreign as another family.
        yield Spoken(call and call[1], ipaddress.ip_address(ip[1]) if ip else sockaddr, int(port[1]) if port else 0)


def mapped(ip):
    return getattr(ip, "ipv4_mapped", None) or ip


def foreign(said, ports):
    """What is not at loopback, or at a port that is not the test's own."""
    loopback = [ipaddress.ip_network(it) for it in ("127.0.0.1/32", "::1/128")]
    return [one for one in said if isinstance(one.ip, str) or not any(mapped(one.ip) in it for it in loopback) or one.port not in ports]


@pytest.fixture
def strace(tmp_path):
    return Strace(tmp_path)


RELAYS = {"as it is": lambda: HOOKWAY_RELAY, "built with traces": built_with_traces}


@contextlib.contextmanager
def observed(strace, relay, *flags):
    """A world whose programs are traced: (world, traced client, traced relay)."""
    relay, client = strace(relay), strace(HOOKWAY)
    takes("--no-inspect")  # it is asked of a client once: not of the traced one
    with mock.patch.multiple(peers, HOOKWAY_RELAY=str(relay), HOOKWAY=str(client)), World(*flags) as world:
        yield world, client, relay


def ephemeral():
    first, last = map(int, open("/proc/sys/net/ipv4/ip_local_port_range").read().split())
    return range(first, last + 1)


# ── at work ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("built", RELAYS)
@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_a_relay_and_a_client_at_work(strace, built, transport):
    """Beginning, requests, one that waits, the commands of an operator, the end."""
    with observed(strace, RELAYS[built]()) as (world, client, relay):
        app = world.app()
        first = world.client(app, "--transport", transport, inspect=True)
        assert world.get("/").status == 200 and world.post("/", b"{}").status == 200
        world.relay.command("status")
        assert first.stop() == 0
        assert world.post("/", b"{}").status == 202
        second = world.client(app, "--transport", transport)
        eventually(lambda: len(app.seen) > 2, what="what waited")
        assert second.stop() == 0
        ports = {"relay": world.relay.https[1], "admin": world.relay.admin[1], "app": app.port}
    by_clients, by_relays = strace.said(client), strace.said(relay)
    assert len(by_clients) == 2 and len(by_relays) == 3, "run, token create, status"
    for said in by_clients:
        assert not foreign(said, {ports["relay"], ports["app"]})
        assert {one.port for one in said} == {ports["relay"], ports["app"]}, "the trace has seen what there is"
    # The relay answers by QUIC, to where its clients have asked from, and calls nobody. A command asks the relay.
    for said in by_relays:
        assert not foreign(said, {*ephemeral(), ports["admin"]})
        assert {one.port for one in said if one.call == "connect"} <= {ports["admin"]}
    assert (transport == "quic") == any(one.call != "connect" for said in by_relays for one in said)


QUIET = {
    "hookway": ["--version", "version", "--help", "completions bash", "config path", "providers", "requests"],
    "hookway-relay": ["--version", "version", "--help", "completions bash", "status", "token list", "endpoint list", "queue list"],
}


@pytest.mark.parametrize(("program", "words"), [(program, words) for program, all_words in QUIET.items() for words in all_words])
def test_a_command_that_has_nobody_to_ask(strace, tmp_path, program, words):
    traced = strace({"hookway": HOOKWAY, "hookway-relay": HOOKWAY_RELAY}[program])
    done = run(traced, *words.split(), folder=tmp_path, HOOKWAY_RELAY_DATA_DIR=str(tmp_path / "data"))
    assert "unrecognized" not in done.stderr and done.returncode != 2, done.stderr
    assert strace.said(traced) == [[]]


def test_who_asks_for_the_own_address_sends_nothing(strace, tmp_path):
    """`init` names this machine's address in the records that it wants: that of a socket that would go abroad."""
    traced = strace(HOOKWAY_RELAY)
    words = ["init", "--domain", DOMAIN, "--tls", "self-signed", "--config", tmp_path / "relay.toml"]
    assert run(traced, *words, folder=tmp_path).returncode == 0
    (said,) = strace.said(traced)
    assert {(one.call, str(one.ip)) for one in said} <= {("connect", ip) for ip in PROBED}, "and not even that is anybody's"
    for trace in traced.with_suffix("").iterdir():
        assert not re.search(r"\b(send\w+)\(", trace.read_text())


def test_a_client_that_is_refused_tells_nobody(strace):
    """Failures are what programs like to report."""
    with observed(strace, HOOKWAY_RELAY) as (world, client, relay):
        refused = world.client(world.app(), token=WRONG, wait=False)
        assert refused.exited() != 0
        ports = {world.relay.https[1]}
    (said,) = strace.said(client)
    assert not foreign(said, ports)
    for said in strace.said(relay):
        assert not foreign(said, ephemeral())


# ── that this would be seen ───────────────────────────────────────────────────────────────────────────────────────


def says(strace, relay, condition, *flags):
    """A client that is sent to a relay elsewhere is seen to say something for which that holds."""
    traced = strace(HOOKWAY)
    words = [traced, "3000", "--relay", relay, "--no-inspect", "--name", "billing", "--json", *flags]
    program = peers.Program("client", words, strace.folder / "client", {"HOOKWAY_TOKEN": WRONG})
    trace = traced.with_suffix("") / str(program.pid)

    def found():
        text = trace.read_text() if trace.exists() else ""
        said = [one for line in text.split("\n")[:-1] for one in spoken(line)]
        return any(condition(one) for one in foreign(said, ephemeral()))

    try:
        eventually(found, what="a word to a stranger")
    finally:
        program.process.kill()
        program.exited()


@pytest.mark.parametrize(("transport", "call"), [("quic", "send"), ("h2", "connect")])
def test_a_foreign_address_is_seen(strace, transport, call):
    says(strace, f"{FOREIGN}:40000", lambda one: str(mapped(one.ip)) == FOREIGN and one.call.startswith(call), "--transport", transport)


def test_a_name_that_is_asked_for_is_seen(strace):
    """Whoever answers for names here, a name server or the socket of one: it is nobody of the test's."""
    says(strace, f"relay.{DOMAIN}", lambda one: one.port == 53 or "AF_UNIX" in str(one.ip))


@pytest.mark.parametrize(
    ("line", "is_foreign"),
    [
        ('1 connect(9, {sa_family=AF_INET, sin_port=htons(4000), sin_addr=inet_addr("127.0.0.1")}, 16) = 0', False),
        ('1 connect(9, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.53")}, 16) = 0', True),
        ('1 connect(9, {sa_family=AF_INET, sin_port=htons(4000), sin_addr=inet_addr("8.8.8.8")}, 16) = -1 ENETUNREACH', True),
        ('1 sendto(9, ""..., 9, 0, {sa_family=AF_INET6, sin6_port=htons(4000), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::ffff:127.0.0.1", &sin6_addr), sin6_scope_id=0}, 28) = 9', False),
        ('1 sendto(9, ""..., 9, 0, {sa_family=AF_INET6, sin6_port=htons(4000), sin6_flowinfo=htonl(0), inet_pton(AF_INET6, "::ffff:8.8.8.8", &sin6_addr), sin6_scope_id=0}, 28) = 9', True),
        ('1 connect(9, {sa_family=AF_UNIX, sun_path="/run/systemd/resolve/io.systemd.Resolve"}, 42) = 0', True),
        ('1 sendto(9, ""..., 9, 0, {sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}, 12) = 9', False),
        ('1 sendto(9, ""..., 9, MSG_NOSIGNAL, NULL, 0) = 9', False),
    ],
)  # fmt: skip
def test_what_is_foreign(line, is_foreign):
    assert bool(foreign(list(spoken(line)), {4000})) == is_foreign
