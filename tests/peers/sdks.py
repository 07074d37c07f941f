"""The providers' own SDKs, as those who sign webhooks and those who judge them.

    webhook = STRIPE.sign(STRIPE.key(), b"{}", "https://billing.hooks.test/stripe", now=time.time())
    assert STRIPE.verdicts(STRIPE.key().verifies, webhook) == {"documentation": True, "stripe": True, …}

A `Provider` signs with its SDK where that can sign, else by the provider's documentation in plain Python (each class
says so), and asks every SDK of that provider for a verdict. Most SDKs take UTF-8 text only, some refuse an empty body:
there they abstain (None), and "documentation", the formula over the raw bytes, is what remains. The SDKs for Node
answer from one process (sdks.mjs). With `now` the clock that an SDK sees stands at that second.
"""

import atexit
import base64
import functools
import hashlib
import hmac
import json
import pathlib
import shutil
import subprocess
import threading
import time
import urllib.parse
from dataclasses import dataclass
from datetime import datetime, timezone
from types import SimpleNamespace
from unittest import mock

import nacl.signing
import standardwebhooks
import stripe
import svix.webhooks
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sendgrid.helpers.eventwebhook import EventWebhook
from slack_sdk.signature import SignatureVerifier
from square.utils.webhooks_helper import verify_signature as verify_square
from twilio.request_validator import RequestValidator

MIB = 1 << 20
FORM = "application/x-www-form-urlencoded"


@dataclass
class Webhook:
    """A signed webhook as it is POSTed."""

    url: str
    body: bytes
    headers: list  # pairs

    @property
    def fields(self):
        """The header fields by name in lower case."""
        return {name.lower(): value for name, value in self.headers}

    @property
    def target(self):
        parts = urllib.parse.urlsplit(self.url)
        return parts.path + (f"?{parts.query}" if parts.query else "")

    def with_body(self, body):
        return Webhook(self.url, body, self.headers)

    def with_field(self, name, value):
        return Webhook(self.url, self.body, [pair for pair in self.headers if pair[0] != name] + [(name, value)])


@dataclass
class Key:
    """What the provider signs with, and what hookway and the SDKs are given to verify with."""

    signs: object
    verifies: str


# ── Node ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Node:
    """sdks.mjs, running until this process ends."""

    def __init__(self):
        self._lock = threading.Lock()
        script = pathlib.Path(__file__).with_name("sdks.mjs")
        self.process = subprocess.Popen([shutil.which("node"), script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(self.close)

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)

    def ask(self, do, sdk, secret, webhook, now=None):
        question = {"do": do, "sdk": sdk, "secret": secret, "url": webhook.url, "headers": webhook.fields, "now": now}
        question["body"] = base64.b64encode(webhook.body).decode()
        with self._lock:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer


@functools.cache
def node():
    return Node()


# ── bodies ────────────────────────────────────────────────────────────────────────────────────────────────────────

CLEF = "𝄞 😀 naïve €"
EVENT = {"id": "evt_1", "type": "paid", "amount": 12.5, "name": CLEF, "list": [1, {"a": None}], "ok": True}


def pretty(value):
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def crlf(data):
    return data.replace(b"\n", b"\r\n")


# What every provider's webhooks must survive. Where a format makes one impossible, `Provider.body` has the nearest.
BODIES = {
    "empty": b"",
    "binary": bytes(range(256)),
    "crlf": b"one\r\ntwo\r\n\r\nthree\n",
    "4-byte": compact({"text": CLEF}),
    "pretty": pretty(EVENT),
    "compact": compact(EVENT),
    "1 MiB": b'{"data":"%s"}' % (b"x" * (MIB - 11)),
}
TEXTS = {"binary": "".join(map(chr, range(256))), "4-byte": CLEF, "1 MiB": "x" * (MIB - 1000)}
FORMS = {
    "empty": b"",
    "binary": urllib.parse.urlencode({"Bytes": TEXTS["binary"], "From": "+15005550006"}).encode(),
    "crlf": urllib.parse.urlencode({"Body": "one\r\ntwo\r\n", "From": "+15005550006"}).encode(),
    "4-byte": urllib.parse.urlencode({"Body": CLEF, CLEF: "name"}).encode(),
    # Blank values count, a name's values are sorted and taken once, names are sorted with their case.
    "pretty": b"b=2&a=&b=1&b=2&B=x&=nameless&MediaUrl0=",
    # Other ways to write the same: no plus for a blank, hex in lower case, letters that need no escape.
    "compact": b"Body=a%20b%2fc&From=%2b15005550006&%53id=SM1",
    "1 MiB": b"From=%2B1&Body=" + b"x" * (MIB - 15),
}


# ── providers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def mac(key, *parts, algorithm="sha256"):
    key = key.encode() if isinstance(key, str) else key
    return hmac.new(key, b"".join(p.encode() if isinstance(p, str) else p for p in parts), algorithm)


def base64_of(data):
    return base64.b64encode(data).decode()


def same(one, other):
    return hmac.compare_digest(str(one).encode(), str(other).encode())


def verdict(judge):
    """What a judge says; None where it cannot take the body."""
    try:
        return bool(judge())
    except UnicodeDecodeError:
        return None
    except Exception:  # each SDK refuses in its own way
        return False


class Provider:
    """One way in which one provider signs."""

    name = ""  # of this way, for test ids
    provider = ""  # as hookway names it
    content_type = "application/json"
    covers_body = True
    nearest = ""  # what stands in for bodies that the format cannot have
    node_sdks = ()
    parser = None  # the SDK for Node that also parses the event
    # For how many seconds a signature is good when it is late and when it is early; None: for ever.
    past = future = None
    asymmetric = False

    def __repr__(self):
        return self.name

    def key(self, number=0):
        """A secret of its kind, always the same for a number."""
        text = hashlib.sha256(f"{self.provider} {number}".encode()).hexdigest()[:40]
        return Key(text, text)

    def body(self, name):
        return BODIES[name]

    def sign(self, key, body, url, now):
        """A webhook of that moment with this body."""
        fields = [("Content-Type", self.content_type), *self.marks(), *self.signature(key, body, url, int(now))]
        return Webhook(url, body, fields)

    def marks(self):
        """The other fields by which it is known."""
        return []

    def signature(self, key, body, url, now):
        raise NotImplementedError

    def documentation(self, secret, webhook):
        """The verdict by the provider's documentation, over the raw bytes and without a clock."""
        raise NotImplementedError

    def sdks(self, secret, webhook, now):
        """The SDKs for Python: name → function that gives a verdict."""
        return {}

    def verdicts(self, secret, webhook, now=None):
        """What each says of it: True, False, or None for an abstention."""
        given = {"documentation": verdict(lambda: self.documentation(secret, webhook))}
        for sdk, judge in self.sdks(secret, webhook, now).items():
            given[sdk] = verdict(judge)
        for sdk in self.node_sdks:
            given[f"{sdk} for Node"] = node().ask("verify", sdk, secret, webhook, now)["ok"]
        return given

    def verify(self, secret, webhook, now=None):
        """Whether all who can judge it accept it."""
        given = self.verdicts(secret, webhook, now)
        assert given["documentation"] is not None
        return False not in given.values()

    def tampered(self, webhook):
        """The same with one bit of what is signed changed; a body where there was none."""
        body = bytearray(webhook.body or b"w")
        body[len(body) // 2] ^= 1
        return webhook.with_body(bytes(body))

    def parse(self, secret, webhook):
        """What the SDK makes of the event, if it does: its type."""
        return node().ask("parse", self.parser, secret, webhook)["event"] if self.parser else None

    def moment(self, webhook):
        """The second that a signature names."""
        raise NotImplementedError


def text(webhook):
    return webhook.body.decode()


def is_text(body):
    """Whether an SDK that takes text can take it; else its documentation's formula goes over the bytes."""
    try:
        return body.decode() is not None
    except UnicodeDecodeError:
        return False


def clock_at(now):
    return SimpleNamespace(time=(lambda: now) if now is not None else time.time)


class Stripe(Provider):
    """Signed by `stripe` for Python."""

    name = provider = "stripe"
    content_type = "application/json; charset=utf-8"
    node_sdks = ("stripe",)
    parser = "stripe"
    past = 300

    def key(self, number=0):
        return Key(*["whsec_" + super().key(number).verifies] * 2)

    def signature(self, key, body, url, now):
        if is_text(body):
            header = stripe.WebhookSignature.generate_signature_header(body.decode(), key.signs, now)
        else:
            header = f"t={now},v1={mac(key.signs, f'{now}.', body).hexdigest()}"
        return [("Stripe-Signature", header)]

    def documentation(self, secret, webhook):
        moment, signature = (part.partition("=")[2] for part in webhook.fields["stripe-signature"].split(","))
        return same(signature, mac(secret, moment, ".", webhook.body).hexdigest())

    def sdks(self, secret, webhook, now):
        def judge():
            with mock.patch("stripe._webhook.time", clock_at(now)):
                header = webhook.fields.get("stripe-signature")
                return stripe.WebhookSignature.verify_header(webhook.body, header, secret, 300)

        return {"stripe": judge}

    def parse(self, secret, webhook):
        event = stripe.Webhook.construct_event(webhook.body, webhook.fields["stripe-signature"], secret)
        assert super().parse(secret, webhook) == event.type
        return event.type

    def moment(self, webhook):
        return int(webhook.fields["stripe-signature"].split(",")[0].removeprefix("t="))


class StripeOfNode(Stripe):
    """Signed by `stripe` for Node."""

    name = "stripe-node"

    def signature(self, key, body, url, now):
        if not is_text(body):
            return super().signature(key, body, url, now)
        return list(node().ask("sign", "stripe", key.signs, Webhook(url, body, []), now)["headers"].items())


class GitHub(Provider):
    """Signed by @octokit/webhooks-methods."""

    name = provider = "github"
    node_sdks = ("github",)

    def marks(self):
        return [("X-GitHub-Event", "push"), ("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")]

    def signature(self, key, body, url, now):
        if not body or not is_text(body):
            return [("X-Hub-Signature-256", "sha256=" + mac(key.signs, body).hexdigest())]
        return list(node().ask("sign", "github", key.signs, Webhook(url, body, []))["headers"].items())

    def documentation(self, secret, webhook):
        return same(webhook.fields["x-hub-signature-256"], "sha256=" + mac(secret, webhook.body).hexdigest())


class Slack(Provider):
    """Signed by slack_sdk."""

    name = provider = "slack"
    past = future = 300

    def signature(self, key, body, url, now):
        if is_text(body):
            signature = SignatureVerifier(key.signs).generate_signature(timestamp=str(now), body=body)
        else:
            signature = "v0=" + mac(key.signs, f"v0:{now}:", body).hexdigest()
        return [("X-Slack-Signature", signature), ("X-Slack-Request-Timestamp", str(now))]

    def documentation(self, secret, webhook):
        signed = (f"v0:{webhook.fields['x-slack-request-timestamp']}:", webhook.body)
        return same(webhook.fields["x-slack-signature"], "v0=" + mac(secret, *signed).hexdigest())

    def sdks(self, secret, webhook, now):
        verifier = SignatureVerifier(secret, clock=SimpleNamespace(now=clock_at(now).time))
        return {"slack_sdk": lambda: verifier.is_valid_request(webhook.body, webhook.fields)}

    def moment(self, webhook):
        return int(webhook.fields["x-slack-request-timestamp"])


class Shopify(Provider):
    """Signed by the documentation: Shopify's SDK verifies only."""

    name = provider = "shopify"
    node_sdks = ("shopify",)
    parser = "shopify"
    prefix = "X-Shopify-"

    def marks(self):
        # Its SDK wants these beside the signature.
        wanted = {"Topic": "orders/create", "Shop-Domain": "example.myshopify.com", "API-Version": "2026-07"}
        wanted |= {"Webhook-Id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043", "Event-Id": "98880550-7158-44d4-b7cd-2c97c8a0"}
        return [(self.prefix + name, value) for name, value in wanted.items()]

    def signature(self, key, body, url, now):
        return [(self.prefix + "Hmac-Sha256", base64_of(mac(key.signs, body).digest()))]

    def documentation(self, secret, webhook):
        header = webhook.fields[f"{self.prefix}hmac-sha256".lower()]
        return same(header, base64_of(mac(secret, webhook.body).digest()))


class ShopifyEvents(Shopify):
    """The newer header names. Signed by the documentation."""

    name = "shopify-events"
    prefix = "shopify-"


class Form(dict):
    """Form parameters as Django has them."""

    def __init__(self, body):
        super().__init__(urllib.parse.parse_qs(body.decode(), keep_blank_values=True))

    getlist = dict.__getitem__


class Twilio(Provider):
    """A form, signed by `twilio` for Python."""

    name = provider = "twilio"
    content_type = f"{FORM}; charset=UTF-8"
    nearest = "form"
    node_sdks = ("twilio",)

    def body(self, name):
        return FORMS[name]

    def marks(self):
        return [("I-Twilio-Idempotency-Token", "803c29b1-163f-4e1a-a6c6-d74f62efab06")]

    def signature(self, key, body, url, now):
        return [("X-Twilio-Signature", RequestValidator(key.signs).compute_signature(url, Form(body)))]

    def documentation(self, secret, webhook):
        body = webhook.body
        pairs = sorted(set(urllib.parse.parse_qsl(body.decode(), keep_blank_values=True)))
        return self._signed(secret, webhook, "".join(name + value for name, value in pairs))

    def _signed(self, secret, webhook, more=""):
        parts = urllib.parse.urlsplit(webhook.url)
        portless = webhook.url.replace(parts.netloc, parts.hostname, 1)
        header = webhook.fields["x-twilio-signature"]
        signed = [base64_of(mac(secret, url, more, algorithm="sha1").digest()) for url in (webhook.url, portless)]
        return any(same(header, one) for one in signed)

    def sdks(self, secret, webhook, now):
        header = webhook.fields.get("x-twilio-signature")
        return {"twilio": lambda: RequestValidator(secret).validate(webhook.url, Form(webhook.body), header)}


class TwilioWithoutPort(Twilio):
    """Twilio's back ends sign with and without the port of the URL; this is the latter, by `twilio` for Python."""

    name = "twilio-portless"

    def signature(self, key, body, url, now):
        parts = urllib.parse.urlsplit(url)
        return super().signature(key, body, url.replace(parts.netloc, parts.hostname, 1), now)


class TwilioOfJson(Twilio):
    """JSON, with its hash in the signed URL. Signed by `twilio` for Python."""

    name = "twilio-json"
    content_type = "application/json"
    nearest = ""

    def body(self, name):
        return BODIES[name]

    def sign(self, key, body, url, now):
        url += ("&" if "?" in url else "?") + f"bodySHA256={hashlib.sha256(body).hexdigest()}"
        return super().sign(key, body, url, now)

    def signature(self, key, body, url, now):
        return [("X-Twilio-Signature", RequestValidator(key.signs).compute_signature(url, {}))]

    def documentation(self, secret, webhook):
        (stated,) = urllib.parse.parse_qs(urllib.parse.urlsplit(webhook.url).query)["bodySHA256"]
        return self._signed(secret, webhook) and same(stated, hashlib.sha256(webhook.body).hexdigest())

    def sdks(self, secret, webhook, now):
        header = webhook.fields.get("x-twilio-signature")
        return {"twilio": lambda: RequestValidator(secret).validate(webhook.url, text(webhook), header)}


class SendGrid(Provider):
    """Signed with `cryptography` by the documentation: SendGrid's SDKs verify only."""

    name = provider = "sendgrid"
    node_sdks = ("sendgrid",)
    asymmetric = True
    fields = ("X-Twilio-Email-Event-Webhook-Signature", "X-Twilio-Email-Event-Webhook-Timestamp")

    def key(self, number=0):
        private = ec.derive_private_key(1_000_003 + number, ec.SECP256R1())
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        return Key(private, base64_of(private.public_key().public_bytes(serialization.Encoding.DER, spki)))

    def signature(self, key, body, url, now):
        signed = key.signs.sign(str(now).encode() + body, ec.ECDSA(hashes.SHA256()))
        return list(zip(self.fields, (base64_of(signed), str(now)), strict=True))

    def documentation(self, secret, webhook):
        signature, moment = (webhook.fields[name.lower()] for name in self.fields)
        public = serialization.load_der_public_key(base64.b64decode(secret, validate=True))
        try:
            public.verify(base64.b64decode(signature), moment.encode() + webhook.body, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    def sdks(self, secret, webhook, now):
        given = [webhook.fields.get(name.lower()) for name in self.fields]
        return {"sendgrid": lambda: EventWebhook(secret).verify_signature(text(webhook), *given)}


class Frozen(datetime):
    """A clock for standardwebhooks."""

    at = None

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) if cls.at is None else datetime.fromtimestamp(cls.at, tz)


class Standard(Provider):
    """Signed by `standardwebhooks` for Python."""

    name = provider = "standard"
    node_sdks = ("standardwebhooks", "svix")
    prefix = "webhook-"
    past = future = 300

    def key(self, number=0):
        return Key(*["whsec_" + base64_of(hashlib.sha256(b"standard %d" % number).digest())] * 2)

    def signature(self, key, body, url, now):
        number = f"msg_{hashlib.sha256(body).hexdigest()[:24]}"
        return [(self.prefix + name, value) for name, value in self._signed(key, body, number, now)]

    def _signed(self, key, body, number, now):
        if is_text(body):
            moment = datetime.fromtimestamp(now, timezone.utc)
            signature = standardwebhooks.Webhook(key.signs).sign(number, moment, body.decode())
        else:
            raw = base64.b64decode(key.signs.removeprefix("whsec_"))
            signature = "v1," + base64_of(mac(raw, f"{number}.{now}.", body).digest())
        return [("id", number), ("timestamp", str(now)), ("signature", signature)]

    def given(self, webhook):
        return [webhook.fields[self.prefix + name] for name in ("id", "timestamp", "signature")]

    def documentation(self, secret, webhook):
        number, moment, signatures = self.given(webhook)
        raw = base64.b64decode(secret.removeprefix("whsec_"))
        signature = "v1," + base64_of(mac(raw, f"{number}.{moment}.", webhook.body).digest())
        return any(same(one, signature) for one in signatures.split(" "))

    def sdks(self, secret, webhook, now):
        def at(judge):
            def judge_then():
                with mock.patch("standardwebhooks.webhooks.datetime", type("At", (Frozen,), {"at": now})):
                    judge()
                return True

            return judge_then

        fields, body = webhook.fields, webhook.body
        judges = {"svix": at(lambda: svix.webhooks.Webhook(secret).verify(body, fields))}
        if self.prefix == "webhook-":
            judges["standardwebhooks"] = at(
                lambda: standardwebhooks.Webhook(secret).verify(body, fields, json_parse=False)
            )
        return judges

    def moment(self, webhook):
        return int(self.given(webhook)[1])


class Svix(Standard):
    """The same under Svix' names."""

    name = "standard-svix"
    node_sdks = ("svix",)
    prefix = "svix-"


class StandardV1a(Standard):
    """Ed25519. Signed and judged with PyNaCl by the specification: no SDK knows v1a."""

    name = "standard-v1a"
    node_sdks = ()
    asymmetric = True

    def key(self, number=0):
        private = nacl.signing.SigningKey(hashlib.sha256(b"v1a %d" % number).digest())
        return Key(private, "whpk_" + base64_of(private.verify_key.encode()))

    def _signed(self, key, body, number, now):
        signed = key.signs.sign(f"{number}.{now}.".encode() + body).signature
        return [("id", number), ("timestamp", str(now)), ("signature", "v1a," + base64_of(signed))]

    def documentation(self, secret, webhook):
        number, moment, signatures = self.given(webhook)
        public = nacl.signing.VerifyKey(base64.b64decode(secret.removeprefix("whpk_")))
        (signature,) = [one[4:] for one in signatures.split(" ") if one.startswith("v1a,")]
        return public.verify(f"{number}.{moment}.".encode() + webhook.body, base64.b64decode(signature))

    def sdks(self, secret, webhook, now):
        return {}


class Square(Provider):
    """Signed by the documentation: Square's SDK verifies only."""

    name = provider = "square"

    def marks(self):
        return [("square-environment", "Sandbox")]

    def signature(self, key, body, url, now):
        return [("x-square-hmacsha256-signature", base64_of(mac(key.signs, url, body).digest()))]

    def documentation(self, secret, webhook):
        header = webhook.fields["x-square-hmacsha256-signature"]
        return same(header, base64_of(mac(secret, webhook.url, webhook.body).digest()))

    def sdks(self, secret, webhook, now):
        def judge():
            return verify_square(
                request_body=text(webhook),
                signature_header=webhook.fields["x-square-hmacsha256-signature"],
                signature_key=secret,
                notification_url=webhook.url,
            )

        return {"squareup": judge} if webhook.body else {}


class GitLab(Provider):
    """By the documentation: the header is the secret, and nothing else is signed."""

    name = provider = "gitlab"
    covers_body = False

    def marks(self):
        return [("X-Gitlab-Event", "Push Hook"), ("X-Gitlab-Event-UUID", "13792a34-cac6-4fda-95a8-c58e00a3954e")]

    def signature(self, key, body, url, now):
        return [("X-Gitlab-Token", key.signs)]

    def documentation(self, secret, webhook):
        return same(webhook.fields["x-gitlab-token"], secret)

    def tampered(self, webhook):
        token = webhook.fields["x-gitlab-token"]
        return webhook.with_field("X-Gitlab-Token", token[:-1] + chr(ord(token[-1]) ^ 1))


class Discord(Provider):
    """Signed with PyNaCl, as Discord's documentation verifies; discord-interactions verifies only."""

    name = provider = "discord"
    node_sdks = ("discord",)
    asymmetric = True

    def key(self, number=0):
        private = nacl.signing.SigningKey(hashlib.sha256(b"discord %d" % number).digest())
        return Key(private, private.verify_key.encode().hex())

    def signature(self, key, body, url, now):
        signed = key.signs.sign(str(now).encode() + body).signature
        return [("X-Signature-Ed25519", signed.hex()), ("X-Signature-Timestamp", str(now))]

    def documentation(self, secret, webhook):
        signed = webhook.fields["x-signature-timestamp"].encode() + webhook.body
        public = nacl.signing.VerifyKey(bytes.fromhex(secret))
        return public.verify(signed, bytes.fromhex(webhook.fields["x-signature-ed25519"])) is not None


class OfJson(Provider):
    """A provider that keeps a part of its signature in a JSON body."""

    nearest = "JSON"
    frame = {}

    def body(self, name):
        """`"@…@"` in it is what signing fills in."""
        if name == "crlf":
            return crlf(pretty(self.frame | EVENT))
        if name == "pretty":
            return pretty(EVENT | self.frame)
        if name == "compact":
            return compact(EVENT | self.frame)
        return compact(self.frame | ({"text": TEXTS[name]} if name in TEXTS else {}))


class Linear(OfJson):
    """Signed by the documentation: Linear's SDK verifies only."""

    name = provider = "linear"
    content_type = "application/json; charset=utf-8"
    node_sdks = ("linear",)
    parser = "linear"
    frame = {"action": "create", "webhookTimestamp": "@now@"}
    past = future = 60

    def marks(self):
        return [("Linear-Event", "Issue"), ("Linear-Delivery", "234d1a4e-b617-4388-90fe-adc3633d6b72")]

    def sign(self, key, body, url, now):
        """`now` may be a fraction: Linear counts milliseconds."""
        return super().sign(key, body.replace(b'"@now@"', str(round(now * 1000)).encode()), url, now)

    def signature(self, key, body, url, now):
        return [("Linear-Signature", mac(key.signs, body).hexdigest())]

    def documentation(self, secret, webhook):
        return same(webhook.fields["linear-signature"], mac(secret, webhook.body).hexdigest())

    def moment(self, webhook):
        return json.loads(webhook.body)["webhookTimestamp"] / 1000


class Paddle(Provider):
    """Signed by the documentation: Paddle's SDK verifies only."""

    name = provider = "paddle"
    node_sdks = ("paddle",)
    parser = "paddle"
    past = 5

    def signature(self, key, body, url, now):
        return [("Paddle-Signature", f"ts={now};h1={mac(key.signs, f'{now}:', body).hexdigest()}")]

    def documentation(self, secret, webhook):
        moment, signature = (part.partition("=")[2] for part in webhook.fields["paddle-signature"].split(";"))
        return same(signature, mac(secret, moment, ":", webhook.body).hexdigest())

    def moment(self, webhook):
        return int(webhook.fields["paddle-signature"].split(";")[0].removeprefix("ts="))


class Zoom(Provider):
    """Signed by the documentation. Zoom's own SDK (@zoom/rivet) verifies, without a clock, what is compact JSON."""

    name = provider = "zoom"
    content_type = "application/json; charset=utf-8"
    node_sdks = ("zoom",)
    parser = "zoom"
    past = 300  # nobody at Zoom says so: the usual bound, without an SDK to compare with

    def signature(self, key, body, url, now):
        signature = "v0=" + mac(key.signs, f"v0:{now}:", body).hexdigest()
        return [("x-zm-signature", signature), ("x-zm-request-timestamp", str(now))]

    def documentation(self, secret, webhook):
        signed = (f"v0:{webhook.fields['x-zm-request-timestamp']}:", webhook.body)
        return same(webhook.fields["x-zm-signature"], "v0=" + mac(secret, *signed).hexdigest())

    def moment(self, webhook):
        return int(webhook.fields["x-zm-request-timestamp"])


class Mailgun(OfJson):
    """By the documentation: no SDK of Mailgun's signs or verifies. The signature stands in the body and covers its own
    time and token only."""

    name = provider = "mailgun"
    covers_body = False
    frame = {"signature": "@signature@", "event-data": {"event": "delivered", "id": "CPgfbmQMTCKtHW6uIWtuVe"}}

    def sign(self, key, body, url, now):
        token = hashlib.sha256(body).hexdigest()[:50]
        signature = mac(key.signs, str(int(now)), token).hexdigest()
        parts = {"timestamp": str(int(now)), "token": token, "signature": signature}
        return super().sign(key, body.replace(b'"@signature@"', compact(parts)), url, now)

    def signature(self, key, body, url, now):
        return []

    def documentation(self, secret, webhook):
        given = json.loads(webhook.body)["signature"]
        return same(given["signature"], mac(secret, given["timestamp"], given["token"]).hexdigest())

    def tampered(self, webhook):
        token = json.loads(webhook.body)["signature"]["token"].encode()
        return webhook.with_body(webhook.body.replace(token, token[:-1] + bytes([token[-1] ^ 1])))

    def moment(self, webhook):
        return int(json.loads(webhook.body)["signature"]["timestamp"])


KINDS = (
    *(Stripe, StripeOfNode, GitHub, Slack, Shopify, ShopifyEvents, Twilio, TwilioWithoutPort, TwilioOfJson),
    *(SendGrid, Standard, Svix, StandardV1a, Square, GitLab, Discord, Linear, Paddle, Zoom, Mailgun),
)
PROVIDERS = [kind() for kind in KINDS]
BY_NAME = {provider.name: provider for provider in PROVIDERS}
