"""`hookway-relay init` and `check`: from a machine and a domain to a relay, and what is in the way, found beforehand.

DNS is name_servers.py's resolver, the CA is Pebble. `check` must change nothing: every look compares the folder before
and after, byte for byte.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
import tomllib

import pytest
from acme_servers import ALWAYS
from name_servers import Resolver, free_port
from test_acme import CHALLENGE, ca, parts, updates  # ca and parts are fixtures
from test_acme import authority as authority  # a fixture
from test_doctor import DAY, ESCAPES, STEERS, Report, certified, silent
from test_doctor import way as way  # a fixture
from test_programs import three_parts

from world import DOMAIN, HOOKWAY, HOOKWAY_RELAY, Program, RawApp, World, eventually, lacking, run, tls_context

ELSEWHERE = "192.0.2.9"
AS_NOBODY = ("setpriv", "--reuid=65534", "--clear-groups")
QUICKLY = 20.0  # seconds that a look may take where nobody answers

assert ca and parts


# ── what the tests are made of ────────────────────────────────────────────────────────────────────────────────────


def snapshot(folder):
    """All that is in a folder: what it is, whose, since when, and what it says."""

    def one(path):
        about = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(about.st_mode) else None
        return about.st_mode, about.st_uid, about.st_ino, about.st_mtime_ns, content

    return {str(path): one(path) for path in [folder, *folder.rglob("*")]}


@dataclasses.dataclass
class Checker:
    """Looks with flags that suit a relay of these tests; those of a test go before."""

    folder: pathlib.Path
    resolver: Resolver

    def flags(self, given):
        usual = {
            "--domain": DOMAIN,
            "--data-dir": self.folder / "data",
            "--https": f"127.0.0.1:{free_port()}",
            "--http": "off",
            "--admin": "off",
            "--tls": "self-signed",
            "--resolver": self.resolver.authority,
        }
        own = [str(word) for pair in usual.items() if pair[0] not in given for word in pair]
        return [*own, *map(str, given)]

    def __call__(self, *given, still=True, before=(), **environment):
        command = [*map(str, before), HOOKWAY_RELAY, "check", *self.flags(given), "--json"]
        was, began = snapshot(self.folder), time.monotonic()
        done = run(*command, folder=self.folder, **environment)
        report = Report(done, time.monotonic() - began, "checked", (1,))
        if still:
            assert snapshot(self.folder) == was, "something was changed"
        return report


@pytest.fixture(scope="module")
def resolver():
    with Resolver() as resolver:
        yield resolver


@pytest.fixture
def dns(resolver):
    """The shared one, which forgets afterwards."""
    yield resolver
    resolver._records.clear()
    resolver._delegations.clear()
    resolver.questions.clear()


@pytest.fixture
def check(tmp_path, dns):
    return Checker(tmp_path, dns)


@pytest.fixture(scope="module")
def covered(tmp_path_factory):
    return certified(tmp_path_factory.mktemp("covered"), DOMAIN, f"*.{DOMAIN}")


def files(leaf, key=None):
    return "--tls", "files", "--tls-cert", leaf, "--tls-key", key or leaf


def by_acme(ca, *flags, root=None):
    """The flags for this authority."""
    known = ("--acme-directory", ca.directory, "--acme-ca", root or ca.https_root, "--resolver", ca.dns.authority)
    return "--tls", "acme", *known, *flags


def needs_root():
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        lacking("this needs root, and setpriv")


# ── all is well ───────────────────────────────────────────────────────────────────────────────────────────────────

BEFORE = ["data", "disk", "dns", "wildcard", "https", "quic", "certificate", "clock"]


def test_all_is_well(check, covered):
    report = check(*files(covered[1]))
    assert report.code == 0 and not report.bad() and report.order == BEFORE
    assert not (check.folder / "data").exists(), "it is made at the first start, and not before"


def test_all_is_well_in_words(check, covered, relay):
    done = relay("check", *check.flags(files(covered[1])))
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr
    assert [line.split()[:2] for line in lines] == [["ok", it] for it in BEFORE]


def test_every_listener_is_looked_at(check):
    ports = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    report = check("--https", ports[0], "--http", ports[1], "--admin", ports[2])
    for name, port in zip(("https", "quic", "http", "admin"), (ports[0], *ports), strict=True):
        assert report[name]["state"] == "ok" and port in report.detail(name)


def test_a_relay_that_signs_itself_is_warned_of(check):
    report = check()
    assert report.code == 0 and report.bad() == {"certificate"} and "--tls acme" in report.next("certificate")


def test_the_settings_are_those_of_run(check, relay, tmp_path):
    """Read from the same file, and as strictly."""
    port = free_port()
    (tmp_path / "relay.toml").write_text(f'domain = "{DOMAIN}"\nhttps = "127.0.0.1:{port}"\n')
    assert f"127.0.0.1:{port}" in check("--config", "relay.toml", "--https", f"127.0.0.1:{port}").detail("https")
    more = ("--http", "off", "--admin", "off", "--resolver", check.resolver.authority, "--json")
    done = relay("check", "--config", "relay.toml", *more)
    assert f"127.0.0.1:{port}" in Report(done, 0, "checked", (1,)).detail("https")
    (tmp_path / "relay.toml").write_text(f'domain = "{DOMAIN}"\nhttsp = "127.0.0.1:1"\n')
    assert "httsp" in three_parts(relay("check", "--config", "relay.toml"), 7)
    three_parts(relay("check", "--config", "nowhere.toml"), 7)
    assert "--domain" in three_parts(relay("check"), 7)
    assert relay("check", "--nope").returncode == 2


# ── ports ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name, flag, kind", [
    ("https", "--https", socket.SOCK_STREAM), ("quic", "--https", socket.SOCK_DGRAM),
    ("http", "--http", socket.SOCK_STREAM), ("admin", "--admin", socket.SOCK_STREAM),
])  # fmt: skip
def test_a_port_that_is_taken(check, name, flag, kind):
    with socket.socket(type=kind) as other:
        other.bind(("127.0.0.1", free_port()))
        if kind == socket.SOCK_STREAM:
            other.listen()
        port = other.getsockname()[1]
        report = check(flag, f"127.0.0.1:{port}")
    assert report.code == 1 and report[name]["state"] == "fail" and str(port) in report.next(name)
    assert {it for it, line in report.items() if line["state"] == "fail"} == {name}


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_port_53_that_is_taken(check, ca, kind):
    """As by systemd-resolved."""
    port = free_port()
    with socket.socket(type=kind) as other:
        other.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            other.listen()
        report = check(*by_acme(ca, "--dns", f"127.0.0.1:{port}"))
    assert report.code == 1 and report["port 53"]["state"] == "fail"


@pytest.mark.parametrize("name", ["https", "quic", "http", "admin"])
def test_an_address_that_is_not_here(check, name):
    report = check("--https" if name == "quic" else f"--{name}", f"{ELSEWHERE}:8443")
    assert report.code == 1 and report[name]["state"] == "fail" and "0.0.0.0" in report.next(name)


def test_a_port_without_the_right(check):
    needs_root()
    floor = int(pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if floor <= 81:
        lacking("everybody may listen on low ports here")
    check.folder.chmod(0o777)
    with reachable_by_all(check.folder):
        report = check("--https", "127.0.0.1:81", before=AS_NOBODY)
    assert report.code == 1 and report["https"]["state"] == "fail" and "setcap" in report.next("https")
    assert report["data"]["state"] == "ok"


@contextlib.contextmanager
def reachable_by_all(folder):
    """pytest's folders are root's alone."""
    above = [it for it in folder.parents if it.is_relative_to("/tmp") and it != pathlib.Path("/tmp")]
    were = [(it, it.stat().st_mode) for it in above]
    for it, mode in were:
        it.chmod(mode | 0o011)
    try:
        yield
    finally:
        for it, mode in were:
            it.chmod(mode)


# ── the data folder and the disk ──────────────────────────────────────────────────────────────────────────────────


def test_a_data_folder_that_cannot_be_written(check):
    needs_root()
    (check.folder / "data").mkdir(mode=0o755)
    with reachable_by_all(check.folder):
        check.folder.chmod(0o755)
        report = check(before=AS_NOBODY)
    assert report.code == 1 and report["data"]["state"] == "fail" and str(check.folder / "data") in report.next("data")


def test_a_data_folder_that_cannot_be_made(check):
    needs_root()
    with reachable_by_all(check.folder):
        check.folder.chmod(0o755)
        report = check("--data-dir", check.folder / "a" / "b", before=AS_NOBODY)
    assert report.code == 1 and report["data"]["state"] == "fail"


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_a_data_folder_that_is_a_file(check, mode):
    (check.folder / "data").write_text("")
    (check.folder / "data").chmod(mode)
    assert check()["data"]["state"] == "fail"


def test_a_data_folder_below_a_file(check):
    (check.folder / "file").write_text("")
    (check.folder / "file").chmod(0o755)
    assert check("--data-dir", check.folder / "file" / "data")["data"]["state"] == "fail"


@pytest.mark.parametrize("deep", ["data", "a/b/c"])
def test_a_relative_data_folder(check, deep):
    report = check("--data-dir", deep)
    assert report["data"]["state"] == "ok" and not (check.folder / deep.partition("/")[0]).exists()


def test_a_disk_that_is_nearly_full(check):
    report = check("--disk-reserve", "99%")
    assert report.code == 1 and report["disk"]["state"] == "fail" and "--disk-reserve" in report.next("disk")


# ── DNS ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_domain_without_an_address(check, dns):
    dns.record(DOMAIN, "A")
    dns.record(f"hookway-check.{DOMAIN}", "A")
    report = check()
    assert report.code == 1 and report["dns"]["state"] == report["wildcard"]["state"] == "fail"
    assert f"{DOMAIN}.   A" in report.next("dns") and f"*.{DOMAIN}.   A" in report.next("wildcard")


def test_a_domain_of_another_machine(check, dns):
    for name in (DOMAIN, f"hookway-check.{DOMAIN}"):
        dns.record(name, "A", ELSEWHERE)
    report = check()
    assert report.code == 0 and report["dns"]["state"] == "warn" and ELSEWHERE in report.detail("dns")
    assert report["wildcard"]["state"] == "ok"


def test_a_domain_with_an_address_too_many(check, dns):
    dns.record(DOMAIN, "A", "127.0.0.1", ELSEWHERE)
    report = check()
    assert report["dns"]["state"] == report["wildcard"]["state"] == "warn" and ELSEWHERE in report.detail("dns")


def test_a_wildcard_that_is_missing(check, dns):
    dns.record(f"hookway-check.{DOMAIN}", "A")
    report = check()
    assert report.code == 1 and report["wildcard"]["state"] == "fail"
    assert f"*.{DOMAIN}.   A   127.0.0.1" in report.next("wildcard")


def test_a_wildcard_that_leads_elsewhere(check, dns):
    dns.record(f"hookway-check.{DOMAIN}", "A", ELSEWHERE)
    report = check()
    assert report.code == 0 and report["wildcard"]["state"] == "warn" and ELSEWHERE in report.detail("wildcard")


def test_a_wildcard_for_ipv6_is_called_so(check, dns):
    """A record of IPv6 is no A record."""
    dns.record(DOMAIN, "A")
    dns.record(DOMAIN, "AAAA", "::1")
    dns.record(f"hookway-check.{DOMAIN}", "A")
    report = check("--https", f"[::1]:{free_port()}")
    assert report["wildcard"]["state"] == "fail" and "AAAA   ::1" in report.next("wildcard")


def test_a_wildcard_by_another_name(check, dns):
    dns.record(f"hookway-check.{DOMAIN}", "CNAME", f"{DOMAIN}.")
    assert check()["wildcard"]["state"] == "ok"


def test_who_does_not_answer_is_not_waited_for_long(check, way):
    """A name server that is not there, one that is silent, a CA that is silent; all at once, to save time."""
    with socket.socket(type=socket.SOCK_DGRAM) as nobody, concurrent.futures.ThreadPoolExecutor() as pool:
        nobody.bind(("127.0.0.1", 0))
        acme = ("--tls", "acme", "--acme-challenge", "tls-alpn-01")
        acme += ("--acme-directory", f"https://localhost:{way(silent).port}/dir")
        flags = [("--resolver", f"127.0.0.1:{port}") for port in (free_port(), nobody.getsockname()[1])]
        *unknown, silent_ca = [looked.result() for looked in [pool.submit(check, *each) for each in (*flags, acme)]]
    for report in unknown:
        assert report.code == 1 and report["dns"]["state"] == "fail" and "--resolver" in report.next("dns")
    assert silent_ca.code == 1 and silent_ca["ca"]["state"] == "fail"
    assert max(report.took for report in (*unknown, silent_ca)) < QUICKLY


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def certificate(check):
    """`certificate(*names, **how)`: what is said of such a file."""

    def look(*names, **how):
        _, leaf = certified(check.folder / "made", *names, **how)
        return check(*files(leaf))

    return look


def test_files_that_are_missing(check):
    report = check(*files(check.folder / "nowhere.pem"))
    assert report.code == 1 and report["certificate"]["state"] == "fail"
    assert "nowhere.pem" in report.detail("certificate") and "--tls-cert" in report.next("certificate")


NO_PEM = {
    "empty": b"",
    "words": b"garbage",
    "not base64": b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
    "not DER": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "bytes": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("content", NO_PEM.values(), ids=NO_PEM)
def test_files_that_are_none(check, content):
    (check.folder / "its.pem").write_bytes(content)
    report = check(*files(check.folder / "its.pem"))
    assert report.code == 1 and report["certificate"]["state"] == "fail" and "its.pem" in report.detail("certificate")


def test_a_key_of_another_certificate(check, covered):
    _, other = certified(check.folder / "other", DOMAIN)
    report = check(*files(covered[1], other))
    assert report.code == 1 and report["certificate"]["state"] == "fail"


@pytest.mark.parametrize("only, missing", [(DOMAIN, f"*.{DOMAIN}"), (f"*.{DOMAIN}", DOMAIN), ("relay.example", DOMAIN)])
def test_a_certificate_that_is_not_for_all(certificate, only, missing):
    report = certificate(only)
    assert report.code == 1 and report["certificate"]["state"] == "fail" and f"*.{DOMAIN}" in report.next("certificate")
    assert report.detail("certificate").endswith(f" is not for {missing}")


@pytest.mark.parametrize("begins, ends, state", [
    (-30 * DAY, -DAY, "fail"), (-80 * DAY, 3 * DAY, "warn"), (-30 * DAY, 60 * DAY, "ok"), (3 * DAY, 60 * DAY, "fail"),
], ids=["ended", "ends soon", "good", "not begun"])  # fmt: skip
def test_when_a_certificate_is_good(certificate, begins, ends, state):
    report = certificate(DOMAIN, f"*.{DOMAIN}", begins=begins, ends=ends)
    assert report["certificate"]["state"] == state and report.code == (state == "fail")


def test_a_ca_of_another_domain(check, new_world):
    """The relay would not start with it."""
    world = new_world()
    world.relay.stop()
    shutil.copytree(world.relay.data, check.folder / "data", ignore=shutil.ignore_patterns("*.sock"))
    done = run(HOOKWAY_RELAY, "run", *check.flags(("--domain", "others.test")), folder=check.folder)
    assert done.returncode == 1 and "others.test" in done.stderr
    report = check("--domain", "others.test")
    assert report.code == 1 and report["certificate"]["state"] == "fail" and "ca.pem" in report.detail("certificate")


# ── a CA ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def own(ca):
    """Flags for a responder of the relay's own, whose port is free; the record is set."""
    ca.dns.record(CHALLENGE, "NS", f"{DOMAIN}.")
    return by_acme(ca, "--dns", f"127.0.0.1:{free_port()}")


def test_a_ca_that_is_there(check, ca):
    """It is asked for its directory; nothing is ordered, no account made."""
    port = free_port()
    ca.dns.delegate(CHALLENGE, ("127.0.0.1", port))
    report = check(*by_acme(ca, "--dns", f"127.0.0.1:{port}"))
    assert report.code == 0 and report["ca"]["state"] == report["clock"]["state"] == "ok"
    assert ca.directory in report.detail("ca") and report.detail("clock") == "as the CA's"
    assert {call.kind for call in ca.front.calls} == {"directory"}
    assert report["delegation"]["state"] == "warn" and "before the relay runs" in report.detail("delegation")
    assert "NS" in report.next("delegation")


def test_a_ca_that_is_down(check, ca, own):
    ca.front.down()
    report = check(*own)
    assert report.code == 1 and report["ca"]["state"] == "fail"
    assert ca.directory in report.detail("ca")
    assert report["clock"]["state"] == "ok" and report.took < QUICKLY


@pytest.mark.parametrize("status", [500, 503])
def test_a_ca_in_trouble(check, ca, own, status):
    ca.front.answers("directory", status, times=ALWAYS)
    report = check(*own)
    assert report.code == 1 and report["ca"]["state"] == "fail" and str(status) in report.detail("ca")


@pytest.mark.parametrize("status", [200, 404])
def test_a_ca_that_is_none(check, ca, own, status):
    ca.front.answers("directory", status, times=ALWAYS)
    report = check(*own)
    assert report.code == 1 and "no ACME directory" in report.detail("ca")


def test_the_root_of_another_ca(check, ca, covered):
    report = check(*by_acme(ca, "--acme-challenge", "tls-alpn-01", root=covered[0]))
    assert report.code == 1 and report["ca"]["state"] == "fail" and "--acme-ca" in report.next("ca")
    assert "certificate" in report.detail("ca").lower()


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_a_root_that_is_none(check, ca, content):
    path = check.folder / "its-root.pem"
    if content is not None:
        path.write_bytes(content)
    report = check(*by_acme(ca, "--acme-challenge", "tls-alpn-01", root=path))
    assert report.code == 1 and "its-root.pem" in report.detail("ca")


@pytest.mark.parametrize("challenge, port", [("http-01", "80"), ("tls-alpn-01", "443")])
def test_a_challenge_that_wants_no_record(check, ca, challenge, port):
    more = ("--http", f"127.0.0.1:{free_port()}") if challenge == "http-01" else ()
    report = check(*by_acme(ca, "--acme-challenge", challenge, *more))
    assert report.code == 0 and report["delegation"]["state"] == "ok" and port in report.detail("delegation")
    assert "port 53" not in report


# ── how the CA is shown ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_delegation_that_is_missing(check, ca):
    report = check(*by_acme(ca, "--dns", f"127.0.0.1:{free_port()}"))
    assert report.code == 1 and report["delegation"]["state"] == "fail"
    assert f"{CHALLENGE}.   NS   {DOMAIN}." in report.next("delegation")


@pytest.mark.parametrize("server, state", [(DOMAIN, "ok"), (DOMAIN.upper(), "ok"), ("ns.other.test", "warn")])
def test_a_delegation(check, ca, server, state):
    ca.dns.record(CHALLENGE, "NS", f"{server}.")
    report = check(*by_acme(ca, "--dns", f"127.0.0.1:{free_port()}"))
    assert report.code == 0 and report["delegation"]["state"] == state and server.lower() in report.detail("delegation")


def test_a_zone_that_is_updated(check, ca, parts):
    knot, flags = updates(ca, parts)
    report = check(*by_acme(ca, *flags))
    assert report.code == 0 and report["delegation"]["state"] == "ok" and knot.authority in report.detail("delegation")
    assert not knot.texts(), "nothing is changed"


def test_a_zone_of_others(check, ca, parts):
    """Knot refuses questions of zones that it does not have."""
    _, flags = updates(ca, parts, zone="example.org", domains=("example.org",))
    report = check(*by_acme(ca, *flags))
    assert report.code == 1 and report["delegation"]["state"] == "fail" and "--dns-update" in report.next("delegation")


def test_a_name_server_that_is_away(check, ca, parts):
    knot, flags = updates(ca, parts)
    knot.program.stop()
    report = check(*by_acme(ca, *flags))
    assert report.code == 1 and knot.authority in report.detail("delegation") and report.took < QUICKLY


KEYS = {
    "missing": None,
    "empty": b"",
    "garbage": os.urandom(200),
    "no secret": b'key "relay-key" {\n\talgorithm hmac-sha256;\n};\n',
    "no base64": b'key "relay-key" {\n\talgorithm hmac-sha256;\n\tsecret "!!!";\n};\n',
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_that_is_none(check, ca, kind):
    path = check.folder / "its.key"
    if KEYS[kind] is not None:
        path.write_bytes(KEYS[kind])
    report = check(*by_acme(ca, "--dns-update", f"127.0.0.1:{free_port()}", "--dns-tsig-file", path))
    assert report.code == 1 and "its.key" in report.detail("delegation") and "tsig-keygen" in report.next("delegation")
    assert kind != "missing" or "No such file" in report.detail("delegation"), "the cause is missing"


def test_a_hook(check, ca):
    marker = check.folder / "called"
    hook = check.folder / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {marker}\n")
    hook.chmod(0o755)
    assert check(*by_acme(ca, "--dns-hook", hook))["delegation"]["state"] == "ok" and not marker.exists()


@pytest.mark.parametrize("kind", ["missing", "not executable", "a folder"])
def test_a_hook_that_cannot_be_run(check, ca, kind):
    hook = check.folder / "hook"
    if kind == "a folder":
        hook.mkdir()
    elif kind != "missing":
        hook.write_text("#!/bin/sh\n")
        hook.chmod(0o644)
    report = check(*by_acme(ca, "--dns-hook", hook))
    assert report.code == 1 and report["delegation"]["state"] == "fail" and "--dns-hook" in report.next("delegation")


# ── while a relay runs ────────────────────────────────────────────────────────────────────────────────────────────


def text_of(address):
    return f"{address[0]}:{address[1]}"


def of(world, *more):
    """The flags of the relay that runs."""
    return "--data-dir", world.relay.data, "--https", text_of(world.relay.https), *more


@pytest.fixture(scope="module")
def running(covered, resolver):
    with World(*map(str, files(covered[1])), "--resolver", resolver.authority) as world:
        yield world


def test_a_relay_that_runs(check, running, covered):
    more = ("--http", text_of(running.relay.http), "--admin", text_of(running.relay.admin), *files(covered[1]))
    report = check(*of(running, *more), still=False)
    assert report.code == 0 and not report.bad()
    assert "a relay runs" in report.detail("data") and report["reach"]["state"] == report["health"]["state"] == "ok"
    said = {report.detail(name).rpartition(": ")[2] for name in ("https", "quic", "http", "admin")}
    assert said == {"the relay listens"}


def test_a_look_is_no_news_for_a_relay(check, running, covered):
    """Many at once, and it goes on."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        looks = [pool.submit(check, *of(running, *files(covered[1])), still=False) for _ in range(8)]
        assert [look.result().code for look in looks] == [0] * 8
    assert running.relay.running and running.relay.get("/health")[0] == 200


def test_a_relay_without_health(check, running):
    assert "health" not in check(*of(running), still=False)


def test_other_settings_than_those_of_the_relay(check, running):
    port = free_port()
    report = check(*of(running, "--admin", f"127.0.0.1:{port}"), still=False)
    assert report.code == 0 and report["admin"]["state"] == report["health"]["state"] == "warn"
    assert "--admin" in report.next("health") and "start it anew" in report.next("admin")


def test_a_port_of_another_program_while_a_relay_runs(check, running):
    """That somebody listens there does not make it the relay."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        report = check(*of(running, "--http", text_of(other.getsockname())), still=False)
    assert "the relay listens" not in report.detail("http")


def test_a_domain_that_cannot_be_reached(check, running):
    report = check(*of(running, "--public-port", free_port()), still=False)
    assert report.code == 0 and report["reach"]["state"] == "warn"


def test_a_relay_that_is_not_well(check, new_world, ca):
    """It has no certificate: its CA is down."""
    ca.front.down()
    acme = by_acme(ca, "--dns", f"127.0.0.1:{free_port()}")
    world = new_world(*map(str, acme))
    eventually(lambda: world.relay.get("/health")[0] == 503, what="it knowing")
    report = check(*of(world, "--admin", text_of(world.relay.admin), *acme), still=False)
    assert report.code == 1 and report["health"]["state"] == "fail" and "certificate" in report.detail("health")
    assert "journalctl" in report.next("health")


def test_a_lock_of_a_relay_that_is_gone(check, new_world):
    """Killed, it leaves its file behind."""
    world = new_world()
    world.relay.process.send_signal(signal.SIGKILL)
    world.relay.exited()
    report = check(*of(world), still=False)
    assert "no relay runs" in report.detail("data") and "health" not in report and report["https"]["state"] == "ok"


class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503)
        body = ESCAPES.encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("json_lines", [True, False])
def test_who_listens_in_place_of_admin_does_not_steer_the_terminal(check, running, relay, json_lines):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        words = check.flags(of(running, "--admin", text_of(server.server_address)))
        done = relay("check", *words, *(["--json"] if json_lines else []))
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 1 and not STEERS.search(done.stdout)
    assert "ok    relay" not in [line[:11] for line in done.stdout.splitlines()]


NO_HEALTH = {
    "nothing": b"",
    "half an answer": b"HTTP/1.1 200",
    "TLS": b"\x16\x03\x01",
    "a long one": b"HTTP/1.1 503 x\r\nContent-Length: 999999999\r\n\r\n" + b"x" * 99_999,
}


@pytest.mark.parametrize("kind", NO_HEALTH)
def test_who_listens_in_place_of_admin_is_not_waited_for(check, running, way, kind):
    answer = NO_HEALTH[kind]
    port = way(lambda connection: (connection.recv(65536), connection.sendall(answer), silent(connection)))
    report = check(*of(running, "--admin", port.address), still=False)
    assert report["health"]["state"] == "warn" and report.took < QUICKLY and len(report.said) < 9000


def test_a_relay_of_another_user_is_not_taken_for_a_stranger(check, running):
    """Who may not look into its folder is told that, and not to stop what listens there."""
    needs_root()
    os.chmod(check.folder, 0o777)
    with reachable_by_all(check.folder):
        report = check(*of(running), still=False, before=AS_NOBODY)
    assert report["data"]["state"] == "fail"
    assert "stop what listens" not in (report.next("https") or "")


# ── a configuration ───────────────────────────────────────────────────────────────────────────────────────────────


def made(done):
    assert done.returncode == 0 and not done.stderr, done
    return json.loads(done.stdout)


def test_what_init_writes_is_what_run_reads(relay, tmp_path):
    done = relay("init", "--domain", "hooks.example.com", "--config", "etc/relay.toml", "--address", "203.0.113.5")
    assert done.returncode == 0 and not done.stderr and "etc/relay.toml" in done.stdout
    written = tomllib.loads((tmp_path / "etc/relay.toml").read_text())
    assert written == {"domain": "hooks.example.com", "tls": "acme"}
    records = [line.split() for line in done.stdout.splitlines() if re.search(r"\. +(A|NS) +", line)]
    name = "hooks.example.com."
    addresses = [[name, "A", "203.0.113.5"], [f"*.{name}", "A", "203.0.113.5"]]
    assert records == [*addresses, [f"_acme-challenge.{name}", "NS", name]]
    for command in ("check", "run", "token create"):
        assert f"hookway-relay {command} --config etc/relay.toml" in done.stdout


@pytest.mark.parametrize("tls", ["self-signed", "files", "acme"])
@pytest.mark.parametrize("challenge", ["dns-01", "http-01", "tls-alpn-01"])
def test_every_kind_is_taken(check, relay, tls, challenge):
    words = ("--tls", tls, "--acme-challenge", challenge, "--acme-email", f"me@{DOMAIN}")
    words += ("--data-dir", check.folder / "of it")
    told = made(relay("init", "--domain", DOMAIN, "--config", "relay.toml", "--address", "127.0.0.1", *words, "--json"))
    assert told["config"] == "relay.toml" and told["domain"] == DOMAIN
    kinds = {(record["name"], record["type"]): record["value"] for record in told["records"]}
    wants_ns = (tls, challenge) == ("acme", "dns-01")
    assert kinds[f"{DOMAIN}.", "A"] == kinds[f"*.{DOMAIN}.", "A"] == "127.0.0.1" and len(kinds) == 2 + wants_ns
    assert kinds.get((f"{CHALLENGE}.", "NS")) == (f"{DOMAIN}." if wants_ns else None)
    ports = ("--https", f"127.0.0.1:{free_port()}", "--http", f"127.0.0.1:{free_port()}", "--admin", "off")
    ca = ("--acme-directory", "https://127.0.0.1:9/dir", "--dns", f"127.0.0.1:{free_port()}") if tls == "acme" else ()
    if challenge != "dns-01":
        ca = ca[:2]
    done = relay("check", "--config", "relay.toml", *ports, *ca, "--resolver", check.resolver.authority, "--json")
    report = Report(done, 0, "checked", (1,))
    assert str(check.folder / "of it") in report.detail("data")
    looked = report["ca" if tls == "acme" else "certificate"]
    assert looked["state"] == {"self-signed": "warn", "files": "fail", "acme": "fail"}[tls]


def test_a_file_that_is_there_stays(relay, tmp_path):
    path = tmp_path / "relay.toml"
    path.write_text("# mine\n")
    said = three_parts(relay("init", "--domain", DOMAIN, "--config", path), 1)
    assert path.read_text() == "# mine\n" and "--force" in said and str(path) in said
    path.chmod(0o600)
    assert relay("init", "--domain", DOMAIN, "--config", path, "--force").returncode == 0
    assert tomllib.loads(path.read_text())["domain"] == DOMAIN and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_is_not_followed_into_a_file(relay, tmp_path):
    (tmp_path / "mine").write_text("# mine\n")
    (tmp_path / "relay.toml").symlink_to("mine")
    assert relay("init", "--domain", DOMAIN, "--config", "relay.toml").returncode == 1
    assert (tmp_path / "mine").read_text() == "# mine\n"


@pytest.mark.parametrize("path", ["/proc/relay.toml", "a-file/relay.toml", "folder"])
def test_a_place_where_nothing_can_be_written(relay, tmp_path, path):
    (tmp_path / "a-file").write_text("")
    (tmp_path / "folder").mkdir()
    done = relay("init", "--domain", DOMAIN, "--config", path)
    assert done.returncode in (1, 2) and done.stderr.startswith("error: ") and "next" in done.stderr
    assert "--force" not in done.stderr, "that would not help"


@pytest.mark.parametrize("odd", ['a "b"', "a\\b", "ünïcode ✓", "a'b", "a\nb", "a\tb", "a\x7fb", "a $(x) b"])
def test_odd_paths(check, relay, tmp_path, odd):
    """A data folder is read as it was given; what is printed can be run."""
    words = ("--tls", "self-signed", "--address", "127.0.0.1")
    done = relay("init", "--domain", DOMAIN, "--config", tmp_path / odd, "--data-dir", tmp_path / f"data {odd}", *words)
    assert done.returncode == 0
    assert tomllib.loads((tmp_path / odd).read_text())["data-dir"] == str(tmp_path / f"data {odd}")
    ports = ("--https", f"127.0.0.1:{free_port()}", "--http", "off", "--admin", "off")
    more = ("--resolver", check.resolver.authority, "--json")
    checked = relay("check", "--config", tmp_path / odd, *ports, *more)
    found = Report(checked, 0, "checked", (1,)).detail("data")
    assert re.sub(r"[\n\t\x7f�]", "", str(tmp_path / f"data {odd}")) in re.sub("[\t�]", "", found)


@pytest.mark.parametrize("flag", ["--config", "--data-dir"])
@pytest.mark.parametrize("json_lines", [True, False])
def test_a_path_that_is_no_text(tmp_path, flag, json_lines):
    """It is taken as it is, or refused; not changed in silence."""
    odd = os.fsencode(tmp_path) + b"/a\xffb"
    paths = {"--config": str(tmp_path / "relay.toml")} | {flag: odd}
    words = [HOOKWAY_RELAY, "init", "--domain", DOMAIN, *(word for pair in paths.items() for word in pair)]
    words += ["--json"] if json_lines else []
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=20, check=False)
    assert b"panicked" not in done.stderr, done.stderr
    if flag == "--config":
        assert done.returncode in (1, 2) or os.path.exists(odd)
    else:
        assert done.returncode in (1, 2), "the file says another folder now"


@pytest.mark.parametrize("addresses, kinds", [
    (["2001:db8::5"], ["AAAA"]), (["203.0.113.5", "2001:db8::5"], ["A", "AAAA"]), (["::ffff:203.0.113.5"], ["A"]),
    (["203.0.113.5", "203.0.113.5"], ["A"]),
])  # fmt: skip
def test_addresses(relay, addresses, kinds):
    words = [word for address in addresses for word in ("--address", address)]
    told = made(relay("init", "--domain", DOMAIN, "--config", "relay.toml", "--tls", "self-signed", *words, "--json"))
    assert [record["type"] for record in told["records"] if record["name"] == f"{DOMAIN}."] == kinds


NO_DOMAINS = ["", "a b", f"*.{DOMAIN}", f"https://{DOMAIN}", "-a.test", f"{'x' * 64}.test", "127.0.0.1"]
NO_VALUES = [("--address", "nowhere"), ("--address", "0.0.0.0"), ("--tls", "none"), ("--acme-email", "")]
NOT_TAKEN = [(), *(("--domain", it) for it in NO_DOMAINS), *(("--domain", DOMAIN, *it) for it in NO_VALUES)]


@pytest.mark.parametrize("words", NOT_TAKEN, ids=" ".join)
def test_what_init_does_not_take(relay, tmp_path, words):
    done = relay("init", "--config", "relay.toml", *words)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert not (tmp_path / "relay.toml").exists()


@pytest.mark.parametrize("domain", ["Hooks.Test", "hooks.test."])
def test_a_domain_is_written_as_dns_has_it(relay, tmp_path, domain):
    told = made(relay("init", "--domain", domain, "--config", "relay.toml", "--json"))
    assert told["domain"] == DOMAIN
    assert not any(record["name"].endswith("..") for record in told["records"])


def test_init_says_what_to_do_about_files(relay):
    """Its paths are only a proposal: nothing is there yet."""
    done = relay("init", "--domain", DOMAIN, "--config", "relay.toml", "--tls", "files")
    assert "fullchain.pem" in done.stdout and "privkey.pem" in done.stdout


def test_init_takes_nothing_from_the_environment_in_silence(relay, tmp_path):
    other = str(tmp_path / "other.toml")
    done = relay("init", "--domain", DOMAIN, "--config", "relay.toml", HOOKWAY_RELAY_CONFIG=other)
    assert done.returncode == 0 and (tmp_path / "relay.toml").exists() and not (tmp_path / "other.toml").exists()


# ── a relay from nothing ──────────────────────────────────────────────────────────────────────────────────────────


class Person:
    """Types commands, reads what is printed. All of it stands in `seen`."""

    def __init__(self, folder, hosts):
        self.folder, self.seen, self.started = folder, [], []
        (folder / "hosts").write_text(hosts)

    def _command(self, words):
        mount = 'mount --bind "$0" /etc/hosts; exec "$@"'
        return ["unshare", "-m", "sh", "-ec", mount, str(self.folder / "hosts"), *map(str, words)]

    def _typed(self, words):
        names = {HOOKWAY: "hookway", HOOKWAY_RELAY: "hookway-relay"}
        self.seen.append("$ " + " ".join(names.get(str(word), str(word)) for word in words))

    def types(self, *words, code=0, **environment):
        self._typed(words)
        done = run(*self._command(words), folder=self.folder, **environment)
        self.seen += [done.stdout + done.stderr + (f"(exit {done.returncode})\n" if done.returncode else "")]
        assert done.returncode == code, self.story()
        return done

    def starts(self, *words, until, **environment):
        """Leaves it running once it has said this."""
        self._typed((*words, "&"))
        program = Program(f"program-{len(self.started)}", self._command(words), self.folder, environment)
        self.started.append(program)
        program.wait(lambda: any(until.encode() in line for line in program.lines), what=until)
        eventually(lambda: not program.lines[-1].strip() or len(program.lines) > 2)
        self.seen.append(b"".join(program.lines).decode())
        return program

    def edits(self, path, *lines):
        with (self.folder / path).open("a") as file:
            file.writelines(f"{line}\n" for line in lines)
        self.seen += [f"$ cat >> {path}", *lines, ""]

    def story(self):
        return "\n".join(self.seen)

    def close(self):
        for program in reversed(self.started):
            program.stop()


def test_a_relay_from_nothing(ca, tmp_path, request):
    """init, the records, check, run, a token, a client: by what is printed, as a person does it."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        lacking("/etc/hosts of its own needs root, and unshare")
    person = Person(tmp_path, f"127.0.0.1 localhost {DOMAIN} hookway-doctor.{DOMAIN} billing.{DOMAIN}\n")
    with contextlib.closing(person), RawApp() as app:
        try:
            from_nothing(person, ca, app)
        finally:
            print(person.story())
            if transcript := os.environ.get("HOOKWAY_TRANSCRIPT"):
                pathlib.Path(transcript).write_text(person.story())


def from_nothing(person, ca, app):
    config, dns_port, data = "relay.toml", free_port(), person.folder / "data"
    init = ("init", "--domain", DOMAIN, "--config", config, "--address", "127.0.0.1", "--acme-email", f"me@{DOMAIN}")
    told = person.types(HOOKWAY_RELAY, *init, "--data-dir", data).stdout
    commands = re.findall(r"^  (hookway-relay .*)$", told, re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["check", "run", "token"]
    person.edits(
        config,
        "# For this test: other ports, and another CA and resolver than the Internet's.",
        f'https = "127.0.0.1:{ca.tls_port}"',
        f'http = "127.0.0.1:{ca.http_port}"',
        f'admin = "127.0.0.1:{free_port()}"',
        f'dns = "127.0.0.1:{dns_port}"',
        f'acme-directory = "{ca.directory}"',
        f'acme-ca = "{ca.https_root}"',
        f'resolver = "{ca.dns.authority}"',
    )
    first = person.types(HOOKWAY_RELAY, "check", "--config", config, code=1)
    assert "has no NS record" in first.stdout
    person.seen.append("(the NS record is set)\n")
    ca.dns.delegate(CHALLENGE, ("127.0.0.1", dns_port))
    person.types(HOOKWAY_RELAY, "check", "--config", config)
    assert not data.exists()
    person.starts(HOOKWAY_RELAY, "run", "--config", config, until="ready")
    address = ("127.0.0.1", ca.tls_port)

    def trusted():
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=5) as raw:
            with tls_context(str(ca.root)).wrap_socket(raw, server_hostname=f"billing.{DOMAIN}"):
                return True

    eventually(trusted, 40, "a certificate")
    person.types(HOOKWAY_RELAY, "check", "--config", config)
    token = person.types(HOOKWAY_RELAY, "token", "create", "--config", config, "--name", "you").stdout.strip()
    person.seen[-1] = person.seen[-1].replace(token, "hwt_…")
    where = ("--relay", f"{DOMAIN}:{ca.tls_port}", "--relay-ca", ca.root)
    well = person.types(HOOKWAY, "doctor", app.port, *where, HOOKWAY_TOKEN=token)
    assert {line.split()[0] for line in well.stdout.splitlines()} == {"ok"}
    client = (HOOKWAY, app.port, "-n", "billing", *where, "--no-inspect")
    person.starts(*client, until=f"https://billing.{DOMAIN}", HOOKWAY_TOKEN=token)
    url = f"https://billing.{DOMAIN}:{ca.tls_port}/hello"
    person.types("curl", "-fsS", "--cacert", ca.root, "-d", "event", url)
    assert app.at("/hello")[0].body == b"event"

