"""A certificate authority on loopback: Pebble, and a front that can be in trouble.

    with Authority() as ca:
        ca.dns.delegate("_acme-challenge.hooks.test", ("127.0.0.1", 5353))
        ca.front.answers("newOrder", 429, "rateLimited", retry_after=2)
        ...                                         # a client of ca.directory that trusts ca.https_root
        assert ca.front.count("newOrder") == 2

What it issues verifies against `ca.root`. It validates over `ca.http_port` and `ca.tls_port` of 127.0.0.1, where every
name leads that its resolver, `ca.dns`, knows.
"""

import base64
import contextlib
import datetime
import hashlib
import http.client
import http.server
import ipaddress
import json
import math
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field

import acme.client
import josepy
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from name_servers import Folder, Resolver, free_port, installed

from world import DEADLINE, eventually

ALWAYS = math.inf
MAC_KEYS = {"kid-1": base64.urlsafe_b64encode(hashlib.sha256(b"a key of the tests").digest()).rstrip(b"=").decode()}


def unpadded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def padded(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def certificate_id(certificate):
    """The name of a certificate in ARI (RFC 9773, 4.1)."""
    key = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    serial = certificate.serial_number
    return f"{unpadded(key)}.{unpadded(serial.to_bytes(serial.bit_length() // 8 + 1, 'big'))}"


# ── the authority ─────────────────────────────────────────────────────────────────────────────────────────────────


class Authority(Folder):
    """Pebble behind a front.

    `validity` is how many seconds its certificates last. `nonce_rejects` and `reuse` are percentages: of good nonces
    refused, and of valid authorizations used again for new orders. With `binding` an account needs one of MAC_KEYS.
    """

    def __init__(self, validity=None, nonce_rejects=0, reuse=0, binding=False):
        self.validity, self.nonce_rejects, self.reuse, self.binding = validity, nonce_rejects, reuse, binding
        super().__init__()

    def _start(self):
        self.http_port, self.tls_port = free_port(), free_port()
        self.https_root, self._leaf = https_certificates(self.folder)
        self.dns = self._parts.enter_context(Resolver())
        self._listen, self._manage = free_port(), free_port()
        self.root = self.folder / "root.pem"
        self.pebble = self._pebble()
        self.front = self._parts.enter_context(Front(self))

    def forget(self):
        """Begin anew, without accounts, orders and certificates, and with another root."""
        self.pebble.stop()
        self.pebble = self._pebble()

    def _pebble(self):
        config = {
            "listenAddress": f"127.0.0.1:{self._listen}",
            "managementListenAddress": f"127.0.0.1:{self._manage}",
            "certificate": str(self._leaf),
            "privateKey": str(self._leaf),
            "httpPort": self.http_port,
            "tlsPort": self.tls_port,
            "externalAccountBindingRequired": self.binding,
            "externalAccountMACKeys": MAC_KEYS if self.binding else {},
        }
        if self.validity:
            config["certificateValidityPeriod"] = self.validity
        (self.folder / "pebble.json").write_text(json.dumps({"pebble": config}))
        command = [installed("pebble", "pebble"), "-config", "pebble.json", "-dnsserver", self.dns.authority]
        environment = {
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_WFE_NONCEREJECT": str(self.nonce_rejects),
            "PEBBLE_AUTHZREUSE": str(self.reuse),
        }
        program = self._program("pebble", command, self.folder, environment)
        program.wait(lambda: any(b"ACME directory available" in line for line in program.lines), what="its directory")
        eventually(lambda: reachable(self._listen) and reachable(self._manage), what="Pebble's listeners")
        self.root.write_text(self.managed("/roots/0"))
        return program

    @property
    def directory(self):
        return f"https://localhost:{self.front.port}/dir"

    def connect(self, port=None):
        """A connection to Pebble itself."""
        context = ssl.create_default_context(cafile=self.https_root)
        return http.client.HTTPSConnection("127.0.0.1", port or self._listen, timeout=DEADLINE, context=context)

    def managed(self, path):
        """What Pebble's management says."""
        with contextlib.closing(self.connect(self._manage)) as connection:
            connection.request("GET", path)
            reply = connection.getresponse()
            text = reply.read().decode()
            assert reply.status == 200, f"{path}: {reply.status} {text}"
            return text

    def revoke(self, certificate, key):
        """Revoke it as who has its private key may."""
        net = acme.client.ClientNetwork(josepy.JWKEC(key=key), alg=josepy.ES256, verify_ssl=str(self.https_root))
        acme.client.ClientV2(acme.client.ClientV2.get_directory(self.directory, net), net).revoke(certificate, 1)

    def status(self, certificate):
        """`Valid` or `Revoked`."""
        return json.loads(self.managed(f"/cert-status-by-serial/{certificate.serial_number:x}"))["Status"]

    def issued(self, certificate):
        """Whether this authority's root signed for it."""
        root = x509.load_pem_x509_certificate(self.root.read_bytes())
        intermediate = x509.load_pem_x509_certificate(self.managed("/intermediates/0").encode())
        with contextlib.suppress(ValueError, TypeError, InvalidSignature):
            intermediate.verify_directly_issued_by(root)
            certificate.verify_directly_issued_by(intermediate)
            return True
        return False


def reachable(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def https_certificates(folder):
    """A root, and one file with the leaf for `localhost` and its key."""
    now = datetime.datetime.now(datetime.UTC)
    root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root of the tests")])

    def certificate(name, public, *extensions):
        builder = x509.CertificateBuilder(issuer, name, public, x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(days=1))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    root, leaf = folder / "https-root.pem", folder / "https-leaf.pem"
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    of_root = [(x509.BasicConstraints(True, None), True), (usage, True)]
    of_root.append((x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), False))
    root.write_bytes(certificate(issuer, root_key.public_key(), *of_root))
    server = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    of_leaf = [(x509.SubjectAlternativeName(names), True), (authority_id, False), (server, False)]
    made = certificate(x509.Name([]), leaf_key.public_key(), *of_leaf)
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    leaf.write_bytes(made + leaf_key.private_bytes(*pem))
    return root, leaf


# ── what stands before it ─────────────────────────────────────────────────────────────────────────────────────────

KINDS = {
    "/dir": "directory",
    "/nonce-plz": "newNonce",
    "/sign-me-up": "newAccount",
    "/order-plz": "newOrder",
    "/my-order/": "order",
    "/authZ/": "authorization",
    "/chalZ/": "challenge",
    "/finalize-order/": "finalize",
    "/certZ/": "certificate",
    "/revoke-cert": "revokeCert",
    "/rollover-account-key": "keyChange",
    "/renewal-info/": "renewalInfo",
}


@dataclass
class Call:
    """One request to the authority, and what it was answered (None: nothing)."""

    kind: str
    method: str
    path: str
    payload: dict
    at: float = field(default_factory=time.monotonic)
    status: int | None = None


@dataclass
class Trouble:
    kind: str
    left: float
    answer: tuple | None = None  # (status, problem type or None, Retry-After or None)
    after: bool = False  # Pebble gets the request, the client no answer
    nonce: bool = False


class Front:
    """What a client takes for the authority. Unless told else it passes everything to Pebble.

    `kind` is a value of KINDS, or "*". Pebble makes its URLs of the Host it was asked for, so the client sees this
    front in them, and Pebble expects what the client signs. `window` gives certificates a renewal window, as (start,
    end) in seconds from now; without one there is no ARI.
    """

    def __init__(self, ca):
        self.ca = ca
        self.calls = []
        self.slow = 0.0  # seconds before it does anything, also for those who wait already
        self.window = None
        self.windows = {}  # for single certificates, by their ARI names
        self.asks_again_after = 1  # the Retry-After of renewal information, in seconds
        self._replaces = {}
        self._troubles, self._lock = [], threading.Lock()
        self._server, self.port = None, 0

    def __enter__(self):
        self.up()
        return self

    def __exit__(self, *_):
        self.well()
        self.down()

    def up(self):
        """Listen, on the same port as before."""
        self._server = _FrontServer(("127.0.0.1", self.port), self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self):
        """Refuse connections, and cut those there are."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server.cut()
            self._server = None

    def answers(self, kind, status, problem=None, retry_after=None, times=1):
        """Answer so without asking Pebble: a problem document, or without `problem` a load balancer's page."""
        self._troubles.append(Trouble(kind, times, (status, problem, retry_after)))

    def drops(self, kind, times=1, after=False):
        """Close the connection without an answer; with `after`, when Pebble has done what was asked."""
        self._troubles.append(Trouble(kind, times, after=after))

    def refuses_nonces(self, times=1):
        self._troubles.append(Trouble("*", times, (400, "badNonce", None), nonce=True))

    def well(self):
        """No trouble any more."""
        with self._lock:
            self._troubles.clear()
            self.slow = 0.0

    def count(self, kind="*"):
        return len(self.of(kind))

    def of(self, kind="*"):
        return [call for call in list(self.calls) if kind in ("*", call.kind)]

    def _trouble(self, call):
        with self._lock:
            due = [it for it in self._troubles if it.left > 0 and it.kind in ("*", call.kind)]
            trouble = next((it for it in due if call.method == "POST" or not it.nonce), None)
            if trouble:
                trouble.left -= 1
            return trouble

    def renewal_info(self, name):
        """The ARI answer for a certificate, or None for 404."""
        window = self.windows.get(name, self.window)
        if window is None:
            return None
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        start, end = ((now + datetime.timedelta(seconds=at)).strftime("%Y-%m-%dT%H:%M:%SZ") for at in window)
        return {"suggestedWindow": {"start": start, "end": end}, "explanationURL": "https://ca.test/why"}

    def rewrite(self, call, host, location, body):
        """Pebble's JSON with what it knows nothing of."""
        if call.kind == "directory" and self.window is not None:
            return json.dumps(json.loads(body) | {"renewalInfo": f"https://{host}/renewal-info"}).encode()
        if call.kind == "newOrder" and "replaces" in call.payload and location:
            self._replaces[location.partition(host)[2]] = call.payload["replaces"]
        order = location.partition(host)[2] if call.kind in ("newOrder", "finalize") and location else call.path
        if call.kind in ("newOrder", "order", "finalize") and order in self._replaces:
            return json.dumps(json.loads(body) | {"replaces": self._replaces[order]}).encode()
        return body


class _FrontServer(http.server.ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address, front):
        self.front = front
        self.sockets, self.lock = set(), threading.Lock()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(front.ca._leaf)
        super().__init__(address, _FrontHandler)

    def finish_request(self, request, client_address):
        with self.context.wrap_socket(request, server_side=True) as tls:
            with self.lock:
                self.sockets.add(tls)
            try:
                self.RequestHandlerClass(tls, client_address, self)
            finally:
                with self.lock:
                    self.sockets.discard(tls)

    def cut(self):
        with self.lock:
            for tls in self.sockets:
                with contextlib.suppress(OSError):
                    tls.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """A client that went away is no matter of the authority's."""


class _FrontHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        front = self.server.front
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call = Call(kind_of(self.path), self.command, self.path, payload_of(body))
        front.calls.append(call)
        while time.monotonic() - call.at < front.slow:
            time.sleep(0.02)
        trouble = front._trouble(call)
        if trouble and trouble.answer:
            self._trouble(call, *trouble.answer)
        elif trouble and not trouble.after:
            self.close_connection = True
        elif call.kind == "renewalInfo":
            self._renewal_info(call)
        else:
            self._pass_on(call, body, silently=bool(trouble))

    do_GET = do_HEAD = do_POST

    def _pass_on(self, call, body, silently):
        with contextlib.closing(self.server.front.ca.connect()) as pebble:
            # Host stays the client's: http.client adds none where one is given.
            pebble.request(self.command, self.path, body or None, dict(self.headers.items()))
            reply = pebble.getresponse()
            content = reply.read()
        if silently:
            self.close_connection = True
            return
        if reply.status < 300:
            content = self.server.front.rewrite(call, self.headers["Host"], reply.headers["Location"], content)
        own = ("content-length", "transfer-encoding", "connection")
        kept = [(name, value) for name, value in reply.getheaders() if name.lower() not in own]
        self._answer(call, reply.status, kept, content)

    def _answer(self, call, status, headers, content):
        call.status = status
        self.send_response_only(status)
        for name, value in [*headers, ("Content-Length", str(len(content)))]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _trouble(self, call, status, problem, retry_after):
        headers = [("Retry-After", str(retry_after))] if retry_after is not None else []
        if not problem:
            page = b"<html><body>out of order</body></html>"
            return self._answer(call, status, [*headers, ("Content-Type", "text/html")], page)
        with contextlib.closing(self.server.front.ca.connect()) as pebble:
            pebble.request("HEAD", "/nonce-plz")
            nonce = pebble.getresponse().headers["Replay-Nonce"]
        headers += [("Content-Type", "application/problem+json"), ("Replay-Nonce", nonce)]
        kind = f"urn:ietf:params:acme:error:{problem}"
        document = {"type": kind, "detail": f"the front says {problem}", "status": status}
        return self._answer(call, status, headers, json.dumps(document).encode())

    def _renewal_info(self, call):
        front = self.server.front
        info = front.renewal_info(self.path.rpartition("/")[2])
        if info is None:
            return self._trouble(call, 404, "malformed", None)
        headers = [("Content-Type", "application/json"), ("Retry-After", str(front.asks_again_after))]
        return self._answer(call, 200, headers, json.dumps(info).encode())

    def log_message(self, *_):
        pass


def kind_of(path):
    first = path[: path.find("/", 1) + 1] or path
    return KINDS.get(first, path)


def payload_of(body):
    """What a JWS carries."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return json.loads(padded(json.loads(body)["payload"]))
    return {}
