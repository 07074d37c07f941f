"""The public TLS port as testssl.sh judges it: no finding above LOW.

One scan of an endpoint with the relay's own CA and its wildcard leaf, and a short one of what the relay itself answers.
Left out are the simulated clients, which test_clients.py has for real, and all that asks the world outside.
"""

import json
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass

import pytest

from world import DOMAIN, eventually, lacking

pytestmark = pytest.mark.timeout(300)  # a scan takes half a minute, and the first test waits for it

FINE = {"OK", "INFO", "LOW"}  # what is left: MEDIUM, HIGH, CRITICAL, and WARN or FATAL, where a check came to nothing
SECONDS = 240

# What cannot be had in this setting, whatever the relay does.
EXCUSED = {"cert_revocation": "the relay's own CA is a file: it publishes no CRL and answers no OCSP"}

# TLS 1.2 and 1.3 with AEAD and forward secrecy; testssl.sh alone would take TLS 1.0 and CBC for LOW.
PROTOCOLS = {"SSLv2": False, "SSLv3": False, "TLS1": False, "TLS1_1": False, "TLS1_2": True, "TLS1_3": True}
CIPHERS = {
    *("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256", "TLS_CHACHA20_POLY1305_SHA256"),
    *("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"),
}
LISTS = {"NULL", "aNULL", "EXPORT", "LOW", "3DES_IDEA", "AVERAGE"}
HOLES = {
    *("heartbleed", "CCS", "ticketbleed", "ROBOT", "secure_renego", "secure_client_renego", "CRIME_TLS", "BREACH"),
    *("POODLE_SSL", "fallback_SCSV", "SWEET32", "FREAK", "DROWN", "LOGJAM", "BEAST", "LUCKY13", "RC4"),
}

# The app's headers are the app's: one that says what testssl.sh looks for, so that none of it is excused.
HEADERS = {
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'",
}


def hardened(_seen, _connection):
    lines = ["HTTP/1.1 200 OK", "Content-Type: text/plain", "Content-Length: 3", *map(": ".join, HEADERS.items())]
    return "\r\n".join([*lines, "", "ok\n"]).encode()


@dataclass
class Scan:
    """What testssl.sh found. Some ids come more than once."""

    findings: list

    def _one(self, name):
        return next(one for one in self.findings if one["id"] == name)

    def severity(self, name):
        return self._one(name)["severity"]

    def text(self, name):
        return self._one(name)["finding"]

    @property
    def ids(self):
        return {one["id"] for one in self.findings}

    def above_low(self, but=()):
        found = [(one["severity"], one["id"], one["finding"]) for one in self.findings]
        return [one for one in found if one[0] not in FINE and one[1] not in but]


def scan(world, host, folder, *checks):
    """A host of this relay, scanned."""
    testssl = shutil.which("testssl") or shutil.which("testssl.sh")
    if not testssl:
        lacking("testssl.sh is missing")
    folder.mkdir()
    # No name is looked up: nothing but this relay is asked.
    words = ["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--ip", "127.0.0.1"]
    words += ["--add-ca", world.relay.ca, "--jsonfile", "findings.json", *checks, f"{host}:{world.relay.https[1]}"]
    with (folder / "report.txt").open("wb") as report:
        # A group of its own, ended as one: it is a shell script and has children.
        started = subprocess.Popen(
            [testssl, *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=report,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = started.wait(SECONDS)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()
    report = (folder / "report.txt").read_text(errors="replace")
    print(report)  # beside a failure
    assert code == 0, f"testssl.sh: exit {code}\n{report[-2000:]}"
    return Scan(json.loads((folder / "findings.json").read_text()))


@pytest.fixture(scope="module")
def endpoint(world, tmp_path_factory):
    """An endpoint, scanned; afterwards it is as it was."""
    app = world.app(answer=hardened)
    world.client(app)
    checks = ("--protocols", "--std", "--pfs", "--server-preference", "--server-defaults", "--headers", "--vulnerable")
    found = scan(world, f"billing.{DOMAIN}", tmp_path_factory.mktemp("testssl") / "endpoint", *checks)
    assert world.get().status == 200 and not app.unclean
    eventually(lambda: world.relay.metric("connections") == 0, what="no connection of the scan being left")
    return found


def test_nothing_above_low(endpoint):
    assert not endpoint.above_low(EXCUSED.keys())


def test_every_check_was_made(endpoint):
    """A scan that stopped half-way finds nothing, too."""
    lists = {f"cipherlist_{name}" for name in LISTS | {"STRONG"}}
    assert PROTOCOLS.keys() | lists | HOLES | EXCUSED.keys() | {"cipher_order"} <= endpoint.ids
    assert not [name for name in HOLES if endpoint.severity(name) != "OK"]


def test_protocols_and_ciphers(endpoint):
    assert {name: not endpoint.text(name).startswith("not offered") for name in PROTOCOLS} == PROTOCOLS
    assert endpoint.text("ALPN_HTTP2") == "h2" and endpoint.text("ALPN") == "http/1.1"
    assert set(endpoint.text("PFS_ciphers").split()) == CIPHERS
    assert {endpoint.text(f"cipherlist_{name}") for name in LISTS} == {"not offered"}


def test_the_relay_chooses_the_cipher(endpoint):
    assert endpoint.severity("cipher_order") == "OK", endpoint.text("cipher_order")


def test_the_wildcard_leaf(endpoint):
    assert f"*.{DOMAIN}" in endpoint.text("cert_subjectAltName").split()
    assert endpoint.text("cert_trust").startswith("Ok via SAN wildcard")
    assert endpoint.severity("cert_trust") == endpoint.severity("cert_chain_of_trust") == "OK"
    assert endpoint.severity("cert_expirationStatus") == "OK"


def test_the_apps_headers_are_found(endpoint):
    assert endpoint.severity("HSTS_time") == "OK"
    assert all(endpoint.text(name) == HEADERS[name] for name in HEADERS if name != "Strict-Transport-Security")
    # The relay adds no banner to them.
    assert {endpoint.severity(f"banner_{kind}") for kind in ("server", "application", "reverseproxy")} == {"INFO"}


@pytest.fixture(scope="module")
def nobody(world, tmp_path_factory):
    """What the relay itself says where there is no endpoint, scanned."""
    return scan(world, f"nobody.{DOMAIN}", tmp_path_factory.mktemp("testssl") / "nobody", "--headers")


def test_the_relays_own_answer(nobody):
    assert nobody.text("HTTP_status_code").startswith("404")
    assert not nobody.above_low({"security_headers"})
    assert nobody.text("banner_server").startswith("No Server banner")


def test_the_headers_of_the_relays_own_answer(nobody):
    assert "security_headers" not in nobody.ids, nobody.text("security_headers")
