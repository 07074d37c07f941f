"""`hookway doctor`: what it finds on good ways to the relay, bad ones and hostile ones, and that it leaves all alone.

Where packets must vanish, the network namespaces of test_network.py and test_fallback.py are used; else loopback. A
`Way` is a port that leads to a relay, or to something else: over TCP as told, over UDP to nobody.
"""

import asyncio
import base64
import contextlib
import datetime
import email.utils
import ipaddress
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import StreamDataReceived
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from name_servers import free_port
from test_fallback import PROXIES, Proxied, Proxy, network, says
from test_fallback_hostile import Link
from test_network import Net, blocked, needs_fallback, possible, udp_blocked
from test_programs import on, three_parts
from test_quic_hostile import number, prefixed, text, varint

from world import DOMAIN, HOOKWAY, Closed, eventually, lacking, run

QUICKLY = 15.0  # seconds that a way which leads nowhere may take
CHECKS = ["app", "dns", "proxy", "tcp", "tls", "clock", "udp", "mtu", "fallback", "relay", "wildcard"]
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
NOBODYS = "hwt_" + "a" * 43

pytestmark = needs_fallback


@pytest.fixture(autouse=True)
def possible_here(request):
    """Only what uses namespaces needs them."""
    if {"net", "narrow"} & set(request.fixturenames):
        request.getfixturevalue("possible")


assert possible  # the fixture of test_network.py


# ── what the tests are made of ────────────────────────────────────────────────────────────────────────────────────


class Report(dict):
    """The findings of one run with --json, by check; and that its form is as agreed, as of the relay's `check`."""

    def __init__(self, done, took=0.0, event="doctor", failed=(1, 3, 4)):
        self.code, self.took, self.said = done.returncode, took, done.stdout + done.stderr
        print(f"exit {self.code} after {took:.1f} s\n{self.said}")
        assert not STEERS.search(self.said), "it steers the terminal"
        assert not done.stderr, "what it found is on stdout"
        *checks, last = [json.loads(line) for line in done.stdout.splitlines()]
        self.order = [line["check"] for line in checks]
        self.all = [(line["check"], line["state"], line["detail"], line["next"]) for line in checks]
        for line in checks:
            assert set(line) == {"event", "check", "state", "detail", "next"} and line["event"] == "check"
            assert line["state"] in ("ok", "warn", "fail") and line["detail"]
            assert bool(line["next"]) == (line["state"] != "ok"), line
            assert "\n" not in line["detail"] + (line["next"] or "")
        super().__init__({line["check"]: line for line in checks})
        self.state = max((line["state"] for line in checks), key=["ok", "warn", "fail"].index)
        assert last == {"event": event, "state": self.state}
        assert self.code in ((0,) if self.state in ("ok", "warn") else failed)

    def states(self, *names):
        return {name: self[name]["state"] for name in names or self}

    def detail(self, check):
        return self[check]["detail"]

    def next(self, check):
        return self[check]["next"]

    def bad(self):
        return {name for name, line in self.items() if line["state"] != "ok"}


def over_h2(report):
    return re.search("over (h2|HTTP/2)", report.detail("relay"))


class Seen:
    """What a network of test_network.py has, with a doctor on the client's side."""

    def doctor(self, *flags, relay=None, json_lines=True, target=None, **environment):
        etc = self.folder / "etc"
        etc.mkdir(exist_ok=True)
        for name, content in self.files.items():
            (etc / name).write_text(content)
        own = ("sh", "-ec", 'for file in "$0"/*; do mount --bind "$file" /etc/"${file##*/}"; done; exec "$@"', etc)
        where = ("--relay", relay or f"{DOMAIN}:{self.port}", "--relay-ca", self.ca)
        words = (HOOKWAY, "doctor", target or self.app.address, *where, *flags)
        command = self.far.command(*own, *words, *(["--json"] if json_lines else []))
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "HOOKWAY_TOKEN": self.token} | environment
        began = time.monotonic()
        done = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True, timeout=40, check=False
        )
        assert self.token not in done.stdout + done.stderr
        return Report(done, time.monotonic() - began) if json_lines else done


class Wide(Seen, Net):
    # A wildcard does not fit into a hosts file: this is the name that is looked up.
    files = {"hosts": f"127.0.0.1 localhost\n::1 localhost\n10.77.0.1 {DOMAIN} hookway-doctor.{DOMAIN}\n"}


class Narrow(Seen, Proxied):
    """A proxy is the only way, and no name server is there."""

    files = {"hosts": "", "resolv.conf": "nameserver 127.0.0.1\n"}


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    with network(tmp_path_factory.mktemp("wide"), None, Wide) as net:
        yield net


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    with network(tmp_path_factory.mktemp("narrow"), None, Narrow) as net:
        yield net


@pytest.fixture
def doctor(world, tmp_path):
    """`doctor(*words)`: its report on the shared relay, unless the words lead elsewhere."""

    def look(*words, token=None, way=None, **environment):
        way = () if "--relay" in words else on(world) if way is None else ("--relay", way, "--relay-ca", world.relay.ca)
        environment = {"HOOKWAY_TOKEN": world.default_token if token is None else token} | environment
        began = time.monotonic()
        done = run(HOOKWAY, "doctor", *words, *way, "--json", folder=tmp_path, **environment)
        for secret in {world.default_token, token or world.default_token}:
            assert secret not in done.stdout + done.stderr
        return Report(done, time.monotonic() - began)

    return look


class Way:
    """A port of TCP: what comes is given to `behave(connection)`. Over UDP it speaks another QUIC, or is silent."""

    def __init__(self, behave, udp=True):
        self.behave, self.connections, self._sockets = behave, 0, []
        self.port = free_port()
        self._udp = socket.socket(type=socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", self.port))
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()
        if udp:
            threading.Thread(target=self._negotiate, daemon=True).start()

    def close(self):
        with contextlib.suppress(OSError):
            self._udp.shutdown(socket.SHUT_RDWR)
        self._udp.close()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._sockets.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError, Closed, AssertionError):
            self.behave(connection)

    def _negotiate(self):
        """Knows versions only that nobody knows (RFC 9000 §17.2.1): a client gives up at once."""
        with contextlib.suppress(OSError):
            # Woken by its end it reads nothing.
            while len((received := self._udp.recvfrom(65536))[0]) > 20:
                packet, sender = received
                to, rest = packet[6 : 6 + packet[5]], packet[6 + packet[5] :]
                own = rest[1 : 1 + rest[0]]
                ids = bytes([len(own)]) + own + bytes([len(to)]) + to
                self._udp.sendto(b"\x80" + bytes(4) + ids + b"\x1a\x2a\x3a\x4a", sender)


@pytest.fixture
def way():
    """`way(behave)`: a port of the test's own."""
    with contextlib.ExitStack() as ways:
        yield lambda behave, **options: ways.enter_context(contextlib.closing(Way(behave, **options)))


def leads_to(address):
    """Passes on to this address."""

    def behave(connection):
        other = socket.create_connection(address)
        threading.Thread(target=Proxy._pump, args=(other, connection), daemon=True).start()
        Proxy._pump(connection, other)

    return behave


def sends(data):
    def behave(connection):
        connection.recv(65536)
        connection.sendall(data)

    return behave


def silent(connection):
    while connection.recv(65536):
        pass


def stays(data):
    """Sends this when it was asked, and does not hang up."""

    def behave(connection):
        sends(data)(connection)
        silent(connection)

    return behave


DAY = datetime.timedelta(days=1)


def certified(folder, *names, begins=-DAY, ends=30 * DAY, issuer="CA of the tests"):
    """(the file of a CA, a file with its leaf for these names and 127.0.0.1, and its key)."""
    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    of_issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)])

    def signed(subject, public, start, end, *extensions):
        builder = x509.CertificateBuilder(of_issuer, subject, public, x509.random_serial_number(), start, end)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    constraints = x509.BasicConstraints(ca=True, path_length=None)
    ca_pem = signed(of_issuer, ca_key.public_key(), now - 900 * DAY, now + 900 * DAY, constraints)
    names = [*map(x509.DNSName, names), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = signed(x509.Name([]), key.public_key(), now + begins, now + ends, x509.SubjectAlternativeName(names))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(ca_pem)
    (folder / "leaf.pem").write_bytes(leaf + key.private_bytes(*plain))
    return folder / "ca.pem", folder / "leaf.pem"


def over_tls(leaf, behave, alpn=("http/1.1",)):
    """The same with TLS, for `way`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(leaf)
    context.set_alpn_protocols(list(alpn))

    def serve_tls(connection):
        with context.wrap_socket(connection, server_side=True) as tls:
            behave(tls)

    return serve_tls


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return certified(tmp_path_factory.mktemp("files"), DOMAIN, f"*.{DOMAIN}")


# ── all is well ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_is_well(net):
    net.app.clear()
    report = net.doctor()
    assert report.order == CHECKS and not report.bad() and report.code == 0
    assert not net.app.seen, "the app is asked nothing"
    assert "10.77.0.1" in report.detail("dns") and f"10.77.0.1:{net.port}" in report.detail("tcp")
    said = {"tls": "TLS 1.3", "udp": "QUIC", "mtu": "1452", "fallback": "HTTP/2", "relay": " ci,", "wildcard": DOMAIN}
    assert all(text in report.detail(name) for name, text in said.items())
    assert "over quic" in report.detail("relay").lower()


def test_all_is_well_in_words(net):
    done = net.doctor(json_lines=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr
    assert [line.split()[:2] for line in lines] == [["ok", check] for check in CHECKS]
    assert max(map(len, lines)) <= 100, "it fits into a terminal"


def test_a_warning_in_words_is_followed_by_its_next_step(hookway, world):
    done = hookway("doctor", "9", *on(world), HOOKWAY_TOKEN=world.default_token)
    first, second, *rest = done.stdout.splitlines()
    assert done.returncode == 0 and first.split()[:2] == ["warn", "app"] and second.split()[0] == "next:"
    assert sum(line.split()[0] == "next:" for line in rest) == sum(line.split()[0] != "ok" for line in rest) / 2


def test_quiet_keeps_what_needs_somebody(hookway, world):
    done = hookway("doctor", "9", "-q", *on(world), HOOKWAY_TOKEN=world.default_token)
    states = [line.split()[0] for line in done.stdout.splitlines()]
    assert done.returncode == 0 and "ok" not in states and states[:2] == ["warn", "next:"]


@pytest.mark.parametrize("how, coloured", [("always", True), ("never", False), ("auto", False)])
def test_colours(hookway, world, how, coloured):
    done = hookway("doctor", "9", "--color", how, *on(world), HOOKWAY_TOKEN=world.default_token)
    assert ("\x1b[" in done.stdout) == coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).startswith("warn  app          ")


# ── over bad networks ─────────────────────────────────────────────────────────────────────────────────────────────


def test_without_udp_it_warns(net):
    with udp_blocked(net.near):
        report = net.doctor()
    assert report.code == 0 and report.bad() == {"udp"} and "mtu" not in report
    assert "nothing must be done" in report.next("udp") and over_h2(report)
    assert report.took < QUICKLY


@pytest.mark.parametrize("action", ["blackhole", "prohibit"])
def test_without_tcp_it_warns(net, action):
    with blocked(net.far, "tcp", action):
        report = net.doctor()
    # The app is on the loopback of the same namespace, which a rule does not spare.
    assert report.code == 0 and report.bad() - {"app"} == {"tcp", "fallback"}
    assert report["fallback"]["state"] == "warn" and "over quic" in report.detail("relay").lower()
    assert report.took < QUICKLY


def test_without_any_way_it_is_3_and_soon(net):
    with udp_blocked(net.near), blocked(net.near, "tcp"):
        report = net.doctor()
    assert report.code == 3 and {"udp", "fallback"} <= report.bad() and "relay" not in report
    assert str(net.port) in report.next("udp") and report.took < QUICKLY


@pytest.mark.parametrize("transport, protocol", [("quic", "udp"), ("h2", "tcp")])
def test_the_transport_that_was_chosen_is_the_one_that_counts(net, transport, protocol):
    """A client with this flag does not get through."""
    with blocked(net.near, protocol):
        report = net.doctor("--transport", transport)
    assert report.code == 3, "it says that all is well"


@pytest.mark.parametrize("mtu", [1280, 1400])
def test_the_largest_packet_is_found(net, mtu):
    with contextlib.ExitStack() as links:
        for end, device in ((net.far, "hwc"), (net.near, "hwr")):
            end.ip("link", "set", device, "mtu", str(mtu))
            links.callback(end.ip, "link", "set", device, "mtu", "1500")
        report = net.doctor()
    found = int(re.search(r"\d{4}", report.detail("mtu"))[0])
    assert report.code == 0 and not report.bad() and 1200 <= found <= mtu - 28


def test_a_wrong_port_is_named(net):
    report = net.doctor(relay=f"{DOMAIN}:9")
    assert report.code == 3 and report["tcp"]["state"] != "ok" and "10.77.0.1:9" in report.detail("tcp")
    assert report.took < QUICKLY


def test_a_relay_that_hurries_is_well(new_world, way, tmp_path):
    """UDP takes its time to fail: a link over TCP made meanwhile must not have waited for too long by then."""
    world = new_world("--handshake-timeout", "2s")
    port = way(leads_to(world.relay.https), udp=False)
    words = ("--relay", port.address, "--relay-ca", world.relay.ca, "--json")
    report = Report(run(HOOKWAY, "doctor", *words, folder=tmp_path, HOOKWAY_TOKEN=world.default_token))
    assert report.code == 0 and report["udp"]["state"] == "warn" and report["relay"]["state"] == "ok"


def test_a_relay_that_takes_one_handshake_at_a_time_is_well(new_world, tmp_path):
    world = new_world("--max-handshakes-per-ip", "1")
    words = (*on(world), "--json")
    report = Report(run(HOOKWAY, "doctor", *words, folder=tmp_path, HOOKWAY_TOKEN=world.default_token))
    assert report.code == 0 and report["relay"]["state"] == "ok"


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["nowhere.invalid", "localhost.nowhere.invalid:7443"])
def test_a_name_that_is_nobodys(doctor, host):
    report = doctor("--relay", host)
    assert report.code == 3 and set(report) <= {"dns", "proxy"} and report["dns"]["state"] == "fail"
    assert host.partition(":")[0] in report.detail("dns") and report.took < QUICKLY


def test_a_wildcard_that_is_missing_is_a_warning(doctor):
    report = doctor()
    assert report.code == 0 and report.bad() == {"wildcard"} and f"*.{DOMAIN}" in report.next("wildcard")


@pytest.mark.parametrize("relay", ["", ":443", "a b", "http://[", "x" * 300, "relay:70000", "\x1b[2J"])
def test_a_relay_that_is_none_is_said(hookway, relay):
    done = hookway("doctor", "--relay", relay, HOOKWAY_TOKEN=NOBODYS)
    assert done.returncode in (2, 3, 7) and "\x1b" not in done.stdout + done.stderr
    assert "panicked" not in done.stderr


def test_no_relay_at_all(hookway):
    report = Report(hookway("doctor", "--json"))
    assert report.code == 3 and "hookway login" in report.next("relay")


# ── certificates ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_certificate_of_a_ca_that_nobody_knows(doctor, world):
    report = doctor("--relay", world.authority())
    assert report.code == 3 and report["tls"]["state"] == "fail" and "--relay-ca" in report.next("tls")
    assert "relay" not in report


def test_a_certificate_of_another_ca_than_given(doctor, world, files):
    report = doctor("--relay", world.authority(), "--relay-ca", files[0])
    assert report.code == 3 and report["tls"]["state"] == "fail" and "--relay-ca" in report.detail("tls")
    assert "tls" in report.next("udp") and "tls" in report.next("fallback"), "one cause, said once"


CA_FILES = {
    "none": None,
    "empty": b"",
    "garbage": os.urandom(500),
    "a key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    "broken": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
}


@pytest.mark.parametrize("kind", CA_FILES)
def test_a_ca_file_that_is_none(hookway, world, tmp_path, kind):
    """The rest is looked at no less, or what is wrong is said as agreed."""
    path = tmp_path / "its-ca.pem"
    if CA_FILES[kind] is not None:
        path.write_bytes(CA_FILES[kind])
    words = ("doctor", "--relay", world.authority(), "--relay-ca", path, "--json")
    done = hookway(*words, HOOKWAY_TOKEN=world.default_token)
    assert "its-ca.pem" in done.stdout + done.stderr
    report = Report(done)
    assert report.code in (1, 3) and report["tls"]["state"] == "fail" and "its-ca.pem" in report.detail("tls")


@pytest.fixture
def certificates(doctor, way, tmp_path):
    """`certificates(*names, **how)`: the report on a port with such a certificate."""

    def look(*names, host="127.0.0.1", trusted=True, **how):
        ca, leaf = certified(tmp_path / "made", *names, **how)
        port = way(over_tls(leaf, sends(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")))
        return doctor("--relay", f"{host}:{port.port}", *(["--relay-ca", ca] if trusted else []))

    return look


def test_a_certificate_for_another_name(certificates):
    report = certificates("relay.example", "*.relay.example", host="localhost")
    assert report.code == 3 and "localhost" in report.detail("tls") and "*.relay.example" in report.detail("tls")


@pytest.mark.parametrize("begins, ends", [(-9 * DAY, -DAY), (DAY, 9 * DAY)], ids=["ended", "not begun"])
def test_a_certificate_that_is_not_good_now(certificates, begins, ends):
    report = certificates(begins=begins, ends=ends)
    assert report.code == 3 and report["tls"]["state"] == "fail" and "clock" in report.next("tls")


@pytest.mark.parametrize("ends, state", [(6 * DAY, "warn"), (8 * DAY, "ok")])
def test_a_certificate_that_ends_soon(certificates, ends, state):
    report = certificates(ends=ends)
    assert report["tls"]["state"] == state and "CA of the tests" in report.detail("tls")


def test_a_portal_that_opens_tls_is_named(certificates):
    report = certificates(DOMAIN, trusted=False, issuer="Hotel Wi-Fi")
    assert report.code == 3 and "Hotel Wi-Fi" in report.detail("tls") and "on the way" in report.next("tls")


ESCAPES = "\x1b[2J\x1b]0;evil\x07\x9b31m\u202e\r\nok    relay        all is well"


@pytest.mark.parametrize("trusted", [True, False])
def test_a_certificate_does_not_steer_the_terminal(certificates, trusted):
    report = certificates("a\x1b[2Jb.test", host="localhost", issuer=ESCAPES[:60], trusted=trusted)
    assert report["tls"]["state"] == "fail"


def test_nor_does_it_in_words(hookway, way, tmp_path):
    """What is in a certificate makes no line of its own."""
    _, leaf = certified(tmp_path / "made", issuer=ESCAPES[:60])
    port = way(over_tls(leaf, silent))
    done = hookway("doctor", "--relay", port.address, HOOKWAY_TOKEN=NOBODYS)
    assert done.returncode == 3 and not STEERS.search(done.stdout)
    assert not any(line.startswith("ok    relay") for line in done.stdout.splitlines())


# ── what is no relay ──────────────────────────────────────────────────────────────────────────────────────────────

NO_TLS = {
    "plain HTTP": sends(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "a portal": sends(b"HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\nContent-Length: 0\r\n\r\n"),
    "SSH": lambda connection: (connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), silent(connection)),
    "silence": silent,
    "a closed door": lambda connection: connection.recv(1),
    "garbage": sends(os.urandom(4096)),
    "an alert": sends(b"\x15\x03\x01\x00\x02\x02\x28"),
}


@pytest.mark.parametrize("kind", NO_TLS)
def test_a_port_without_tls(doctor, way, kind):
    report = doctor(way=way(NO_TLS[kind]).address)
    assert report.code == 3 and report["tcp"]["state"] == "ok" and report["tls"]["state"] == "fail"
    assert report.took < QUICKLY and "relay" not in report


def dated(date):
    return b"HTTP/1.1 404 Not Found\r\nDate: " + date + b"\r\nContent-Length: 0\r\n\r\n"


def in_seconds(seconds):
    return email.utils.formatdate(time.time() + seconds, usegmt=True).encode()


@pytest.mark.parametrize(
    "seconds, state", [(0, "ok"), (15, "ok"), (90, "warn"), (-90, "warn"), (3600, "fail"), (-3600, "fail")]
)
def test_another_time_there(doctor, way, files, seconds, state):
    port = way(over_tls(files[1], stays(dated(in_seconds(seconds)))))
    report = doctor("--relay", port.address, "--relay-ca", files[0])
    assert report["tls"]["state"] == "ok" and report["clock"]["state"] == state
    assert state == "ok" or ("behind" if seconds > 0 else "ahead") in report.detail("clock")


def test_the_time_of_one_who_hangs_up(doctor, way, files):
    port = way(over_tls(files[1], lambda tls: (tls.recv(65536), tls.sendall(dated(in_seconds(3600))), tls.unwrap())))
    for _ in range(5):
        assert doctor("--relay", port.address, "--relay-ca", files[0])["clock"]["state"] == "fail"


NO_DATES = {
    "none": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "empty": dated(b""),
    "escapes": dated(b"\x1b[2J"),
    "the year 99999": dated(b"Sun, 22 Nov 99999 08:00:00 GMT"),
    "the year 0": dated(b"Sat, 01 Jan 0000 00:00:00 GMT"),
    "long": dated(b"9" * 60_000),
    "not HTTP": b"\x00" * 5000,
    "an endless head": b"HTTP/1.1 404 Not Found\r\n" + b"X: y\r\n" * 200_000,
    "nothing": b"",
}


@pytest.mark.parametrize("kind", NO_DATES)
def test_no_time_there(doctor, way, files, kind):
    port = way(over_tls(files[1], stays(NO_DATES[kind])))
    report = doctor("--relay", port.address, "--relay-ca", files[0])
    assert report["tls"]["state"] == "ok" and report.get("clock", {"state": None})["state"] in (None, "fail")
    assert report.code == 3 and report.took < QUICKLY


@pytest.mark.parametrize("shift, state", [("+90", "warn"), ("-90", "warn"), ("+3600", "fail"), ("-3600", "fail")])
def test_a_clock_that_is_wrong_here(doctor, shift, state):
    """The client's, by libfaketime."""
    found = sorted(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not shutil.which("faketime") or not found:
        lacking("faketime is missing\n  next:  apt-get install faketime")
    report = doctor(LD_PRELOAD=str(found[0]), FAKETIME=f"{shift}s", FAKETIME_DONT_FAKE_MONOTONIC="1")
    assert report["clock"]["state"] == state and report.code == (1 if state == "fail" else 0)
    assert "timedatectl" in report.next("clock") and report["relay"]["state"] == "ok"


# ── hostile relays ────────────────────────────────────────────────────────────────────────────────────────────────


def refused(reason, next_step="ask again", code=2):
    return prefixed(text(2, number(1, code) + text(2, reason) + text(3, next_step)))


def welcome(owner="ci", domain=DOMAIN, version=1):
    return prefixed(text(1, number(1, version) + text(2, "ses_x") + text(5, owner) + text(7, domain)))


# What is answered to the hello, and the exit code.
ANSWERS = {
    "garbage": (b"\xff" * 300, 4),
    "empty": (prefixed(b""), 4),
    "another message": (prefixed(text(3, number(1, 1))), 4),
    "too long": (varint(1 << 31) + b"x" * 1000, 4),
    "endless": (None, 4),
    "silence": (b"", 4),
    "refused": (refused("the token is unknown"), 4),
    "refused with escapes": (refused(ESCAPES, ESCAPES), 4),
    "refused without words": (refused("", ""), 4),
    "refused at length": (refused("x" * 60_000), 4),
    "no UTF-8": (refused(b"\xff\xfe\x1b[2J"), 4),
    "a strange owner": (welcome(owner=ESCAPES), 0),
    "a strange domain": (welcome(domain=ESCAPES), 0),
    "a domain of spaces": (welcome(domain=". ."), 0),
    "a long domain": (welcome(domain="x." * 20_000), 0),
    "another version": (welcome(version=99), 4),
}


def says_over_tcp(answer):
    def behave(tls):
        if tls.selected_alpn_protocol() != "hookway-h2/1":
            return sends(dated(in_seconds(0)))(tls)
        link = Link(tls)
        control, _ = link.hello()
        if answer is None:
            link.says(control, varint(60_000))
            while True:
                link.says(control, b"x" * 10)
                time.sleep(0.2)
        link.says(control, answer)
        return silent(tls)

    return behave


class QuicServer:
    """Speaks the protocol's QUIC and answers the hello so, in a loop of its own."""

    def __init__(self, port, leaf, answer):
        class Protocol(QuicConnectionProtocol):
            def quic_event_received(self, event):
                if isinstance(event, StreamDataReceived) and not getattr(self, "told", False):
                    self.told = True
                    asyncio.ensure_future(self.tell(event.stream_id))

            async def tell(self, stream):
                if answer is not None:
                    self._quic.send_stream_data(stream, answer)
                    return self.transmit()
                self._quic.send_stream_data(stream, varint(60_000))
                for _ in range(100):
                    self._quic.send_stream_data(stream, b"x" * 10)
                    self.transmit()
                    await asyncio.sleep(0.2)

        self.loop, up = asyncio.new_event_loop(), threading.Event()
        configuration = QuicConfiguration(is_client=False, alpn_protocols=["hookway/1"])
        configuration.load_cert_chain(leaf, leaf)

        async def start():
            self.server = await serve("127.0.0.1", port, configuration=configuration, create_protocol=Protocol)
            up.set()

        def work():
            self.loop.create_task(start())
            self.loop.run_forever()

        threading.Thread(target=work, daemon=True).start()
        assert up.wait(10)

    def close(self):
        def end():
            self.server.close()
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.call_soon(self.loop.stop)

        self.loop.call_soon_threadsafe(end)


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_an_answer_to_the_hello(doctor, way, files, transport, kind):
    answer, code = ANSWERS[kind]
    with contextlib.ExitStack() as parts:
        if transport == "h2":
            port = way(over_tls(files[1], says_over_tcp(answer), ("hookway-h2/1", "http/1.1"))).port
        else:
            port = free_port()
            parts.enter_context(contextlib.closing(QuicServer(port, files[1], answer)))
        report = doctor("--relay", f"127.0.0.1:{port}", "--relay-ca", files[0])
    assert report.code == code and report["relay"]["state"] == ("fail" if code else "ok")
    assert report.took < QUICKLY and len(report.said) < 20_000, "it is not repeated at such length"


def test_a_refusal_makes_no_line_of_its_own(hookway, way, files):
    port = way(over_tls(files[1], says_over_tcp(refused(ESCAPES, ESCAPES)), ("hookway-h2/1", "http/1.1")))
    done = hookway("doctor", "--relay", port.address, "--relay-ca", files[0], HOOKWAY_TOKEN=NOBODYS)
    assert done.returncode == 4 and not STEERS.search(done.stdout)
    assert "ok    relay" not in [line[:11] for line in done.stdout.splitlines()]


# ── proxies ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_a_proxy_that_leads_there(narrow, variable):
    """It is the proxy that looks the relay's name up; here nobody can."""
    proxy = narrow.proxy()
    report = narrow.doctor(**{variable: f"http://ann:s3cret-word@{proxy.address}"})
    assert proxy.address in report.detail("proxy") and "s3cret-word" not in report.said
    assert report["fallback"]["state"] == "ok" and report["relay"]["state"] == "ok" and over_h2(report)
    assert "tcp" not in report and report.code == 0, "a client gets through"


@pytest.mark.parametrize("kind", ["forbids", "hangs", "closes", "ssh", "endless", "escapes", "opens-and-talks-plain"])
def test_a_proxy_that_leads_nowhere(narrow, kind):
    behave, answered = PROXIES[kind]
    proxy = narrow.proxy(behave)
    report = narrow.doctor(HTTPS_PROXY=f"http://{proxy.address}")
    assert report.code == 3 and report["fallback"]["state"] == "fail" and proxy.address in report.detail("fallback")
    assert answered is None or answered in report.detail("fallback")
    assert report.took < QUICKLY


def test_a_proxy_that_wants_a_password(narrow):
    proxy = narrow.proxy(says(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n"))
    report = narrow.doctor(HTTPS_PROXY=f"http://ann:wr0ng-w0rd@{proxy.address}")
    assert report.code == 3 and "407" in report.detail("fallback")
    assert "wr0ng-w0rd" not in report.said and base64.b64encode(b"ann:wr0ng-w0rd").decode() not in report.said


def test_a_proxy_that_is_down(narrow):
    report = narrow.doctor(HTTPS_PROXY="http://10.78.0.254:9")
    assert report.code == 3 and "10.78.0.254:9" in report.detail("fallback") and "refused" in report.detail("fallback")
    assert "proxy" in report.next("fallback").lower(), "it is the proxy that must be looked after"


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1080", "ftp://127.0.0.1", "http://", "\x07", "http://a b"])
def test_a_proxy_of_another_kind(doctor, value):
    report = doctor(HTTPS_PROXY=value)
    assert report["proxy"]["state"] == "fail" and "HTTPS_PROXY" in report.detail("proxy")
    assert report["udp"]["state"] == "ok" and report.code == 1


@pytest.mark.parametrize("value", ["127.0.0.1", "*", "127.0.0.0/8"])
def test_no_proxy_is_honoured(doctor, value):
    report = doctor(HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY=value)
    assert report.code == 0 and report["tcp"]["state"] == "ok" and report["fallback"]["state"] == "ok"
    assert "NO_PROXY" in report.detail("proxy")


def test_a_proxy_is_no_way_for_udp(doctor):
    report = doctor(HTTPS_PROXY="http://127.0.0.1:9")
    assert report.code == 0 and report["fallback"]["state"] == "warn"
    assert "over quic" in report.detail("relay").lower()


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_that_is_wrong(doctor, world):
    report = doctor(token=NOBODYS)
    assert report.code == 4 and report["relay"]["state"] == "fail" and "token" in report.detail("relay")
    assert "wildcard" not in report and report["udp"]["state"] == "ok"
    assert "VPN" not in report.get("mtu", {"detail": ""})["detail"], "its size was not looked for"


def test_a_token_that_was_revoked(doctor, world):
    made = world.relay.command("token", "create", "--name", "gone")[-1]
    world.relay.command("token", "revoke", made["id"])
    report = doctor(token=made["token"])
    assert report.code == 4 and report["relay"]["state"] == "fail"


def test_a_token_that_is_over(doctor, world):
    token = world.token("short", "--expires", "1s")
    eventually(lambda: doctor(token=token).code == 4, what="the token's end")


def test_no_token(doctor):
    """All else is looked at; once is enough to say it."""
    report = doctor(token="")
    assert report.code == 4 and report["token"]["state"] == "fail" and "hookway login" in report.next("token")
    assert "relay" not in report and report["udp"]["state"] == "ok" and report["tls"]["state"] == "ok"


@pytest.mark.parametrize("content", [None, "", "\n\n", "no token\nat all\n"])
def test_a_token_file_that_is_none(hookway, world, tmp_path, content):
    path = tmp_path / "its-token"
    if content is not None:
        path.write_text(content)
    done = hookway("doctor", *on(world), "--token-file", path)
    said = done.stdout + done.stderr
    assert done.returncode in (4, 7) and "token" in said and "no token\nat all" not in said
    if content is None:
        three_parts(done, 7)
        assert "its-token" in said


def test_the_token_is_not_shown_in_the_log(hookway, world, tmp_path):
    (tmp_path / "its-token").write_text(world.default_token + "\n")
    done = hookway("doctor", *on(world), "--token-file", tmp_path / "its-token", "-vv")
    assert done.returncode == 0 and world.default_token not in done.stdout + done.stderr


def test_a_login_is_used(hookway, world, tmp_path):
    config = tmp_path / "config" / "hookway" / "config.toml"
    config.parent.mkdir(parents=True)
    relay, ca, token = world.authority(), world.relay.ca, world.default_token
    config.write_text(f'relay = "{relay}"\nrelay-ca = "{ca}"\ntoken = "{token}"\n')
    config.chmod(0o600)
    done = hookway("doctor", "--json")
    assert world.default_token not in done.stdout
    assert Report(done)["relay"]["state"] == "ok"


# ── apps ──────────────────────────────────────────────────────────────────────────────────────────────────────────


ONE_KIND = {"IPv4": (socket.AF_INET, "127.0.0.1"), "IPv6": (socket.AF_INET6, "::1")}


@pytest.mark.parametrize("family, host", ONE_KIND.values(), ids=ONE_KIND)
def test_an_app_on_one_kind_of_address(net, family, host):
    with net.far.inside(lambda: socket.create_server((host, 0), family=family)) as listener:
        report = net.doctor(target=str(listener.getsockname()[1]))
        assert report["app"]["state"] == "ok" and report.code == 0
        taken, _ = listener.accept()
        with taken:
            taken.settimeout(5)
            assert taken.recv(1) == b"", "nothing is asked of it"


def test_an_app_that_is_not_there(doctor):
    report = doctor("9")
    assert report.code == 0 and report["app"]["state"] == "warn" and "localhost:9" in report.detail("app")


def test_an_app_with_tls(doctor, way, files):
    port = way(over_tls(files[1], silent))
    assert doctor(f"https://localhost:{port.port}")["app"]["state"] == "ok", "its own certificate will do here"
    plain = way(sends(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert doctor(f"https://localhost:{plain.port}")["app"]["state"] == "warn"


def test_an_app_that_accepts_and_says_nothing(doctor, way):
    report = doctor(f"https://localhost:{way(silent).port}")
    assert report["app"]["state"] == "warn" and report.took < QUICKLY


def test_every_app_of_a_project_is_looked_at_once(doctor, world, tmp_path):
    apps = [world.app() for _ in range(3)]
    (tmp_path / "hookway.toml").write_text(
        f'[[endpoint]]\nname = "one"\ntarget = "{apps[0].address}"\nroute = ["/route={apps[1].port}", "/none=9"]\n\n'
        f'[[endpoint]]\nname = "two"\ntarget = "{apps[0].address}"\n'
    )
    report = doctor(apps[2].address)
    apps_found = [(state, detail) for check, state, detail, _ in report.all if check == "app"]
    assert [state for state, _ in apps_found].count("ok") == 3 and len(apps_found) == 4
    assert [":9: " in detail for state, detail in apps_found if state == "warn"] == [True]
    assert report.code == 0 and not any(app.seen for app in apps)
    assert not {"one", "two"} & {row["name"] for row in world.relay.command("endpoint", "list")}


def test_the_target_of_a_project_is_looked_at(doctor, world, tmp_path):
    (tmp_path / "hookway.toml").write_text(f'name = "billing"\ntarget = "{world.app().address}"\n')
    report = doctor()
    assert report["app"]["state"] == "ok", "`hookway` alone would use it"


def test_a_broken_project_is_said(hookway, world, tmp_path):
    (tmp_path / "hookway.toml").write_text("name = = 3\n")
    said = three_parts(hookway("doctor", *on(world), HOOKWAY_TOKEN=world.default_token), 7)
    assert "hookway.toml" in said


# ── it leaves all alone ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("share", ["takeover", "balance", "copy"])
@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_a_client_that_runs_is_not_disturbed(doctor, world, app, name, transport, share, tmp_path):
    client = world.client(app, "--share", share, "--transport", transport, name=name)
    (tmp_path / "hookway.toml").write_text(f'[[endpoint]]\nname = "{name}"\ntarget = "{app.address}"\n')
    before = world.relay.command("endpoint", "list")
    for _ in range(2):
        assert doctor()["relay"]["state"] == "ok"
        assert world.get(name=name).status == 200
    assert [event["state"] for event in client.events if event.get("event") == "session"] == ["up"]
    assert client.find("released") is None and len(app.seen) == 2
    after = world.relay.command("endpoint", "list")
    assert [row["name"] for row in after] == [row["name"] for row in before]


def test_it_makes_no_endpoint(doctor, world):
    before = world.relay.command("endpoint", "list")
    assert doctor()["relay"]["state"] == "ok"
    assert world.relay.command("endpoint", "list") == before


def test_it_leaves_nothing_behind(doctor, tmp_path):
    """No history, no settings, no files."""
    before = sorted(tmp_path.rglob("*"))
    doctor()
    assert sorted(tmp_path.rglob("*")) == before


def test_it_does_not_take_the_last_place(new_world, tmp_path):
    """Where a token has no room for another client, that is said, and who is there stays."""
    world = new_world("--max-sessions", "1")
    words = ("doctor", *on(world), "--json")
    for _ in range(3):
        report = Report(run(HOOKWAY, *words, folder=tmp_path, HOOKWAY_TOKEN=world.default_token))
        assert report.code == 0 and report["relay"]["state"] == "ok", "it is not in its own way"
    app = world.app()
    client = world.client(app)
    report = Report(run(HOOKWAY, *words, folder=tmp_path, HOOKWAY_TOKEN=world.default_token))
    assert report.code in (0, 4)
    assert world.get().status == 200
    assert [event["state"] for event in client.events if event.get("event") == "session"] == ["up"]


def test_what_it_does_is_no_news_for_the_relay(new_world, tmp_path):
    """No warnings in the operator's log, and no connection is left."""
    world = new_world()
    run(HOOKWAY, "doctor", *on(world), "--json", folder=tmp_path, HOOKWAY_TOKEN=world.default_token)
    eventually(lambda: not open_sessions(world), what="its session's end")
    log = re.sub(r"\x1b\[[0-9;]*m", "", world.relay.log())
    assert not re.search(r"\b(WARN|ERROR)\b(?!.*self-signed)", log), log


def open_sessions(world):
    _, metrics = world.relay.get("/metrics")
    found = re.findall(r"^hookway_relay_(?:clients|sessions)\S* (\d+)$", metrics, re.MULTILINE)
    return sum(map(int, found))
