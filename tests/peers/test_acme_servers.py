"""The authority, the resolver and Knot do what test_acme.py takes for granted: shown by certbot's ACME client."""

import contextlib
import datetime
import http.server
import socket
import ssl
import threading

import acme.challenges
import acme.client
import acme.crypto_util
import acme.errors
import acme.messages
import dns.rdatatype
import dns.tsigkeyring
import josepy
import pytest
from acme_servers import ALWAYS, MAC_KEYS, Authority, certificate_id
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from name_servers import Knot

from world import DOMAIN, eventually

CHALLENGE = f"_acme-challenge.{DOMAIN}"
TLS_ALPN = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")


class Customer:
    """certbot's client with an account."""

    def __init__(self, ca, binding=None):
        self.key = josepy.JWKEC(key=ec.generate_private_key(ec.SECP256R1()))
        self.keys = {}
        net = acme.client.ClientNetwork(self.key, alg=josepy.ES256, verify_ssl=str(ca.https_root))
        self.client = acme.client.ClientV2(acme.client.ClientV2.get_directory(ca.directory, net), net)
        bound = binding and acme.messages.ExternalAccountBinding.from_data(
            self.key.public_key(), *binding, self.client.directory, "HS256"
        )
        self.account = self.client.new_account(
            acme.messages.NewRegistration.from_data(
                email="admin@hooks.test", terms_of_service_agreed=True, external_account_binding=bound
            )
        )

    def buy(self, kind, prove, *names):
        """A chain for these names; `prove(name, token, key authorization)` is called before the authority is."""
        key = self.keys[names[0]] = ec.generate_private_key(ec.SECP256R1())
        pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        order = self.client.new_order(acme.crypto_util.make_csr(key.private_bytes(*pem), list(names)))
        for authorization in order.authorizations:
            challenge = next(it for it in authorization.body.challenges if it.chall.to_json()["type"] == kind)
            token = challenge.chall.to_json()["token"]
            thumbprint = josepy.b64encode(self.key.thumbprint()).decode()
            prove(authorization.body.identifier.value, token, f"{token}.{thumbprint}")
            self.client.answer_challenge(challenge, acme.challenges.HTTP01Response())
        within = datetime.datetime.now() + datetime.timedelta(seconds=20)
        return x509.load_pem_x509_certificates(self.client.poll_and_finalize(order, within).fullchain_pem.encode())


def digest(text):
    made = hashes.Hash(hashes.SHA256())
    made.update(text.encode())
    return made.finalize()


@contextlib.contextmanager
def web(port, pages):
    """A web server with these pages."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


@contextlib.contextmanager
def tls_alpn(port, certificates):
    """A TLS server that speaks acme-tls/1 with the certificate file of the name asked for."""
    contexts = {}

    def choose(tls, name, _):
        contexts[name] = tls.context = context(certificates[name])

    def context(certificate=None):
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.set_alpn_protocols(["acme-tls/1"])
        if certificate:
            made.load_cert_chain(certificate)
        return made

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                with contextlib.suppress(OSError), first.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(1)

    first = context()
    first.sni_callback = choose
    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield contexts
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def alpn_certificate(folder, name, authorization):
    """A certificate that answers tls-alpn-01 (RFC 8737)."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([])
    value = x509.UnrecognizedExtension(TLS_ALPN, b"\x04\x20" + digest(authorization))
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), True)
        .add_extension(value, True)
        .sign(key, hashes.SHA256())
    )
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(*pem))
    return path


def names_of(certificate):
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return set(names.get_values_for_type(x509.DNSName))


@pytest.fixture(scope="module")
def ca():
    with Authority(validity=3600) as ca:
        yield ca


@pytest.fixture(scope="module")
def customer(ca):
    return Customer(ca)


@pytest.fixture(autouse=True)
def well(ca):
    yield
    ca.front.well()
    ca.front.window = None


def web_proofs(ca, customer, name):
    """A certificate by http-01."""
    pages = {}

    def prove(_, token, authorization):
        pages[f"/.well-known/acme-challenge/{token}"] = authorization.encode()

    with web(ca.http_port, pages):
        return customer.buy("http-01", prove, name)[0]


def test_a_wildcard_by_updates(ca, customer):
    with Knot() as knot:
        ca.dns.delegate(CHALLENGE, knot.address)
        texts = []

        def prove(name, _, authorization):
            assert name == DOMAIN
            texts.append(josepy.b64encode(digest(authorization)).decode())
            assert knot.update(CHALLENGE, *texts) == "NOERROR"
            assert knot.texts() == sorted(texts)

        leaf, *_ = customer.buy("dns-01", prove, DOMAIN, f"*.{DOMAIN}")
        assert names_of(leaf) == {DOMAIN, f"*.{DOMAIN}"} and ca.issued(leaf) and not ca.dns.lame
        assert len(texts) == 2
        lasts = leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        assert datetime.timedelta(minutes=55) < lasts < datetime.timedelta(minutes=61)
        assert knot.update(DOMAIN, "x") == "PeerBadKey", "another name is not the key's to change"
        assert knot.update(CHALLENGE, "x", keyring=keyring(knot.wrong_key_file)) == "PeerBadSignature"
        assert knot.update(CHALLENGE, keyring=keyring(knot.key_file)) == "NOERROR" and not knot.texts()


def keyring(file):
    """What a key file of BIND's format holds."""
    _, name, text = file.read_text().split('"', 2)
    return dns.tsigkeyring.from_text({f"{name}.": ("hmac-sha256", text.split('"')[1])})


def test_http(ca, customer):
    leaf = web_proofs(ca, customer, f"web.{DOMAIN}")
    assert ca.issued(leaf) and ca.status(leaf) == "Valid"
    with pytest.raises(acme.messages.Error):
        ca.revoke(leaf, ec.generate_private_key(ec.SECP256R1()))
    ca.revoke(leaf, customer.keys[f"web.{DOMAIN}"])
    assert ca.status(leaf) == "Revoked"


def test_tls_alpn(ca, customer, tmp_path):
    certificates = {}

    def prove(name, _, authorization):
        certificates[name] = alpn_certificate(tmp_path, name, authorization)

    with tls_alpn(ca.tls_port, certificates) as asked:
        leaf, *_ = customer.buy("tls-alpn-01", prove, f"alpn.{DOMAIN}")
    assert ca.issued(leaf) and set(asked) == {f"alpn.{DOMAIN}"}


def test_names_can_lead_elsewhere(ca, customer):
    ca.dns.record("_acme-challenge.hooks.custom.test", "CNAME", f"{CHALLENGE}.")
    with Knot() as knot:
        ca.dns.delegate(CHALLENGE, knot.address)

        def prove(_, __, authorization):
            knot.update(CHALLENGE, josepy.b64encode(digest(authorization)).decode())

        leaf, *_ = customer.buy("dns-01", prove, "hooks.custom.test")
    assert names_of(leaf) == {"hooks.custom.test"} and ca.dns.asked("_acme-challenge.hooks.custom.test", "TXT")


def test_trouble(ca, customer):
    front = ca.front
    calls = front.count("newOrder")
    front.answers("newOrder", 429, "rateLimited", retry_after=7)
    with pytest.raises(acme.messages.Error) as limited:
        web_proofs(ca, customer, f"limited.{DOMAIN}")
    assert limited.value.code == "rateLimited" and front.of("newOrder")[-1].status == 429
    front.answers("newOrder", 503, retry_after=7)
    with pytest.raises(acme.errors.ClientError):
        web_proofs(ca, customer, f"overloaded.{DOMAIN}")
    for after in (False, True):
        front.drops("newOrder", after=after)
        with pytest.raises(Exception, match="(?i)connection|remote"):
            web_proofs(ca, customer, f"dropped.{DOMAIN}")
    assert front.count("newOrder") == calls + 4
    front.refuses_nonces()
    assert ca.issued(web_proofs(ca, customer, f"refused.{DOMAIN}"))
    assert [call.status for call in front.calls].count(400) == 1
    assert front.of("newOrder")[-1].payload["identifiers"] == [{"type": "dns", "value": f"refused.{DOMAIN}"}]


def test_it_goes_and_comes_back(ca, customer):
    ca.front.down()
    with pytest.raises(Exception, match="(?i)connection|refused"):
        customer.client.query_registration(customer.account)
    ca.front.up()
    assert customer.client.query_registration(customer.account).uri == customer.account.uri
    ca.front.answers("*", 503, times=ALWAYS)
    with pytest.raises(acme.errors.ClientError):
        customer.client.query_registration(customer.account)
    ca.front.well()
    assert customer.client.query_registration(customer.account).uri == customer.account.uri


def test_renewal_windows(ca):
    ca.front.window = (3600, 3660)
    customer = Customer(ca)
    leaf = web_proofs(ca, customer, f"renewed.{DOMAIN}")
    pem = leaf.public_bytes(serialization.Encoding.PEM)
    in_an_hour = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=3600)
    at, again = customer.client.renewal_time(pem)
    assert datetime.timedelta(seconds=-5) < at - in_an_hour < datetime.timedelta(seconds=65)
    assert again < datetime.datetime.now() + datetime.timedelta(seconds=3)
    assert ca.front.of("renewalInfo")[-1].path.endswith(certificate_id(leaf))
    ca.front.windows[certificate_id(leaf)] = (-60, -30)
    assert customer.client.renewal_time(pem)[0] < datetime.datetime.now(datetime.UTC)


def test_an_order_says_what_it_replaces(ca):
    ca.front.window = (3600, 3660)
    customer = Customer(ca)
    payload = {"identifiers": [{"type": "dns", "value": DOMAIN}], "replaces": "AAAA.BBBB"}
    order = customer.client._post(customer.client.directory["newOrder"], josepy_object(payload))
    again = customer.client._post_as_get(order.headers["Location"])
    assert [reply.json()["replaces"] for reply in (order, again)] == ["AAAA.BBBB"] * 2


def josepy_object(payload):
    """What josepy signs as it stands."""

    class Object(josepy.JSONDeSerializable):
        def to_partial_json(self):
            return payload

        @classmethod
        def from_json(cls, jobj):
            return cls()

    return Object()


def test_accounts_can_need_a_binding():
    with Authority(binding=True) as ca:
        with pytest.raises(acme.messages.Error, match="externalAccountRequired"):
            Customer(ca)
        [(kid, key)] = MAC_KEYS.items()
        Customer(ca, binding=(kid, key))
        assert ca.front.of("newAccount")[-1].status == 201
        assert ca.front.of("newAccount")[-1].payload["externalAccountBinding"]


def test_nonces_can_be_refused():
    with Authority(nonce_rejects=100) as ca:
        with pytest.raises(acme.messages.Error, match="badNonce"):
            Customer(ca)
        assert {call.status for call in ca.front.of("newAccount")} == {400}


def test_it_can_be_slow(ca, customer):
    asked, ca.front.slow = ca.front.count(), 3600.0
    waiting = threading.Thread(target=customer.client.query_registration, args=(customer.account,), daemon=True)
    waiting.start()
    eventually(lambda: ca.front.count() > asked, what="somebody who waits")
    assert ca.front.calls[-1].status is None
    ca.front.slow = 0.0
    waiting.join(10)
    assert not waiting.is_alive() and ca.front.calls[-1].status == 200


def test_the_zone_is_found_from_below():
    with Knot(zone="test") as knot:
        reply = knot.query(CHALLENGE, "SOA")
        assert [(rows.name.to_text(), rows.rdtype) for rows in reply.authority] == [("test.", dns.rdatatype.SOA)]


def test_it_forgets():
    with Authority() as ca:
        root, customer = ca.root.read_text(), Customer(ca)
        old = web_proofs(ca, customer, f"once.{DOMAIN}")
        ca.forget()
        assert ca.root.read_text() != root and not ca.issued(old)
        with pytest.raises(acme.messages.Error, match="accountDoesNotExist"):
            customer.client.query_registration(customer.account)
        assert ca.issued(web_proofs(ca, Customer(ca), f"again.{DOMAIN}"))


def test_a_lame_server_is_told(ca):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        ca.dns.delegate("_acme-challenge.lame.hooks.test", silent.getsockname())
        before = len(ca.dns.lame)
        with pytest.raises(acme.errors.ValidationError):
            Customer(ca).buy("dns-01", lambda *_: None, f"lame.{DOMAIN}")
        eventually(lambda: len(ca.dns.lame) > before)
