"""Why a signature is not good: each known mistake is named in one sentence, with what to do about it.

A row is a webhook as somebody's mistake leaves it, the secret in the developer's variable, and the words by which the
sentence must tell that mistake from the others. Most go through `hookway verify`, some through the whole tunnel.
"""

import base64
import hashlib
import json
import re
import resource
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from sdks import BY_NAME, EVENT, Webhook, base64_of, compact, crlf, mac
from test_history import command
from test_signature_sdks import judged
from world import DOMAIN, HOOKWAY, eventually, request

NOW = int(time.time())
HOST = "billing.hooks.test"
URL = f"https://{HOST}:8443/hook?a=1&b=2"
LINK = {"id": "evt_1", "url": "https://example.com/a", "name": "naïve €", "b": [1, 2.5, {"z": None, "a": True}]}


@dataclass
class Row:
    """A mistake."""

    webhook: Webhook
    secret: str
    tells: tuple  # words that the sentence must have
    next: str  # a pattern: what is to be done
    at: int = NOW
    provider: str = ""
    verdict: str = "bad"


def signed(name, body=None, number=0, url=URL, now=NOW, secret=None):
    """As its provider signs it; with this secret, if one is given."""
    provider = BY_NAME[name]
    key = provider.key(number)
    if secret is not None:
        key.signs = secret
    body = compact(EVENT) if body is None else body
    if name == "github":
        # Its SDK runs in Node, which need not start to collect tests.
        signature = ("X-Hub-Signature-256", "sha256=" + mac(key.signs, body).hexdigest())
        return Webhook(url, body, [("Content-Type", "application/json"), *provider.marks(), signature])
    return provider.sign(key, body, url, now)


def secret_of(name, number=0):
    return BY_NAME[name].key(number).verifies


ROWS = {}


def row(title, name, webhook, tells, step, **more):
    tells = (tells,) if isinstance(tells, str) else tells
    more.setdefault("secret", secret_of(name))
    ROWS[title] = Row(webhook, tells=tells, next=step, provider=name, **more)


# ── the secret ────────────────────────────────────────────────────────────────────────────────────────────────────

for title, spoilt, tells in (
    ("a blank behind", "{} ", "white space"),
    ("a blank before", " {}", "white space"),
    ("a line end behind", "{}\n", "white space"),
    ("a CR LF behind", "{}\r\n", "white space"),
    ("a tab behind", "{}\t", "white space"),
    ("double quotes around", '"{}"', "quotation marks"),
    ("single quotes around", "'{}'", "quotation marks"),
    ("quotes and a line end around", '"{}"\n', "quotation marks"),
):
    for name in ("github", "stripe", "shopify", "square", "slack"):
        row(f"secret with {title} {name}", name, signed(name), ("SECRET has", tells), "take (it|them) away",
            secret=spoilt.format(secret_of(name)))  # fmt: skip
    if title != "quotes and a line end around":
        row(f"sender's secret with {title}", "github", signed("github", secret=spoilt.format(secret_of("github"))),
            ("the sender's secret", tells), "enter it anew at the sender")  # fmt: skip

STRIPE = "whsec_" + base64_of(hashlib.sha256(b"stripe").digest())
BARE = STRIPE.removeprefix("whsec_")
STANDARD = secret_of("standard")


def standard_signed_with(key):
    webhook = signed("standard")
    moment = webhook.fields["webhook-timestamp"]
    signature = mac(key, f"{webhook.fields['webhook-id']}.{moment}.", webhook.body).digest()
    return webhook.with_field("webhook-signature", "v1," + base64_of(signature))


def stripe_signed_with(key, body=None):
    body = compact(EVENT) if body is None else body
    header = f"t={NOW},v1={mac(key, f'{NOW}.', body).hexdigest()}"
    return signed("stripe", body).with_field("Stripe-Signature", header)


row("stripe signed with the decoded", "stripe", stripe_signed_with(base64.b64decode(BARE)),
    ("SECRET decodes to", "whsec_", "Stripe"), "--verify standard", secret=STRIPE)  # fmt: skip
row("stripe signed without the prefix", "stripe", stripe_signed_with(BARE),
    ("behind `whsec_`", "SECRET", "Stripe"), "the sender", secret=STRIPE)  # fmt: skip
row("stripe's secret without its prefix", "stripe", stripe_signed_with(STRIPE),
    ("SECRET", "whsec_"), "(put|add|enter|write) ", secret=BARE)  # fmt: skip
row("standard signed with the whole text", "standard", standard_signed_with(STANDARD),
    ("the text of SECRET", "decodes to"), "mend the sender", secret=STANDARD)  # fmt: skip
row("standard signed with the text behind the prefix", "standard", standard_signed_with(STANDARD.removeprefix("whsec_")),
    ("the text of SECRET", "decodes to"), "mend the sender", secret=STANDARD)  # fmt: skip
HEXED = hashlib.sha256(b"hexed").hexdigest()
row("a hex secret decoded", "github", signed("github").with_field(
    "X-Hub-Signature-256", "sha256=" + mac(bytes.fromhex(HEXED), compact(EVENT)).hexdigest()),
    ("the bytes that SECRET decodes to", "not with its text"), "mend the sender", secret=HEXED)  # fmt: skip
row("a base64 secret decoded", "square", signed("square").with_field(
    "x-square-hmacsha256-signature", base64_of(mac(base64.b64decode(BARE), URL, compact(EVENT)).digest())),
    ("the bytes that SECRET decodes to", "not with its text"), "mend the sender", secret=BARE)  # fmt: skip
row("an API key of Stripe's", "stripe", signed("stripe"), ("SECRET holds an API key", "whsec_"), "put that there; see https://",
    secret="sk_test_51HzCanary")  # fmt: skip
row("a restricted key of Stripe's", "stripe", signed("stripe"), ("API key", "whsec_"), "put that there; see https://",
    secret="rk_live_51HzCanary")  # fmt: skip
row("a token of Slack's", "slack", signed("slack"), ("SECRET holds a token", "signing secret"), "put that there; see https://",
    secret="xoxb-1234-Canary")  # fmt: skip
row("an access token of Shopify's", "shopify", signed("shopify"), ("access token", "client secret"), "put that there; see https://",
    secret="shpat_0123456789abcdefCanary")  # fmt: skip
row("an empty secret at the sender", "github", signed("github", secret=""), ("empty",), "sender")

# ── the body ──────────────────────────────────────────────────────────────────────────────────────────────────────


def spaced(value, **more):
    return json.dumps(value, ensure_ascii=False, **more).encode()


def indented(value, indent=2):
    return json.dumps(value, indent=indent, ensure_ascii=False).encode()


SLASHES = compact(LINK).replace(b"/", rb"\/")
for title, was, came, tells in (
    ("compact to pretty", compact(LINK), indented(LINK), "compact"),
    ("pretty to compact", indented(LINK), compact(LINK), "indented by 2"),
    ("pretty with its line end to compact", indented(LINK) + b"\n", compact(LINK), ("indented by 2", "line end")),
    ("pretty by 4 to compact", indented(LINK, 4), compact(LINK), "indented by 4"),
    ("python's blanks to compact", spaced(LINK), compact(LINK), "a blank behind each"),
    ("compact to python's blanks", compact(LINK), spaced(LINK), "compact"),
    ("python's own to compact", json.dumps(LINK).encode(), compact(LINK), ("a blank behind each", r"\u escapes")),
    ("compact to python's own", compact(LINK), json.dumps(LINK).encode(), ("compact", "without escapes")),
    (
        "sorted keys to unsorted",
        json.dumps(LINK, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(),
        compact(LINK),
        ("compact", "keys sorted"),
    ),
    (
        "python's sorted keys to unsorted",
        json.dumps(LINK, sort_keys=True).encode(),
        compact(LINK),
        ("a blank behind each", "keys sorted", r"\u escapes"),
    ),
    (r"\u escapes resolved", json.dumps(LINK, separators=(",", ":")).encode(), compact(LINK), r"with \u escapes"),
    (r"\u escapes made", compact(LINK), json.dumps(LINK, separators=(",", ":")).encode(), "without escapes"),
    ("escaped slashes resolved", SLASHES, compact(LINK), "escaped slashes"),
    ("escaped slashes made", compact(LINK), SLASHES, ("compact", "without escapes")),
    ("JSON in a JSON string", compact(LINK), json.dumps(compact(LINK).decode()).encode(), "JSON a second time"),
    ("a line end added", compact(LINK), compact(LINK) + b"\n", "line end was added"),
    ("a CR LF added", compact(LINK), compact(LINK) + b"\r\n", "line end was added"),
    ("a line end lost", compact(LINK) + b"\n", compact(LINK), "line end behind it was lost"),
    ("a CR LF lost", compact(LINK) + b"\r\n", compact(LINK), "line end behind it was lost"),
    ("LF to CR LF", indented(LINK), crlf(indented(LINK)), "line ends became CR LF"),
    ("CR LF to LF", crlf(indented(LINK)), indented(LINK), "line ends became LF"),
    ("a byte order mark added", compact(LINK), b"\xef\xbb\xbf" + compact(LINK), "byte order mark"),
    ("text with a line end lost", b"no JSON at all\n", b"no JSON at all", "line end behind it was lost"),
):
    tells = (tells,) if isinstance(tells, str) else tells
    for name in ("github", "stripe", "standard", "square"):
        row(f"{title} {name}", name, signed(name, was).with_body(came), (*tells, "SECRET"), "bytes that are sent")

HUGE = {"id": "evt_1", "data": ["x" * 64] * 2500}
row("a large one pretty to compact", "github", signed("github", indented(HUGE)).with_body(compact(HUGE)),
    "indented by 2", "bytes that are sent")  # fmt: skip

# ── the URL ───────────────────────────────────────────────────────────────────────────────────────────────────────

for title, was, came in (
    ("http for https", URL.replace("https", "http"), URL),
    ("https for http", URL, URL.replace("https", "http")),
    ("without the port", URL.replace(":8443", ""), URL),
    ("with the port 443", f"https://{HOST}:443/hook", f"https://{HOST}/hook"),
    ("a slash too few", f"https://{HOST}/hook/?a=1", f"https://{HOST}/hook?a=1"),
    ("a slash too many", f"https://{HOST}/hook", f"https://{HOST}/hook/"),
    ("a slash too many before a query", f"https://{HOST}/hook?a=1", f"https://{HOST}/hook/?a=1"),
    ("without the query", f"https://{HOST}/hook", f"https://{HOST}/hook?a=1"),
    ("the host alone", f"https://{HOST}", f"https://{HOST}/hook"),
):
    for name in ("twilio", "square"):
        if (name, title) == ("twilio", "without the port") or (name, title) == ("twilio", "with the port 443"):
            continue  # Twilio itself signs either way
        body = b"From=%2B1&Body=Hi" if name == "twilio" else None
        webhook = Webhook(came, *(lambda one: (one.body, one.headers))(signed(name, body, url=was)))
        row(f"signed for another URL, {title} {name}", name, webhook,
            (f"for {was},", f"was sent to {came}", "SECRET"), "enter that URL at the sender")  # fmt: skip

# ── the encoding ──────────────────────────────────────────────────────────────────────────────────────────────────

BODY = compact(EVENT)
SECRETS = {name: secret_of(name) for name in ("github", "stripe", "shopify", "twilio", "slack", "linear")}
DIGEST = {name: mac(secret, BODY).digest() for name, secret in SECRETS.items()}


def rewritten(name, header, value, body=None):
    return signed(name, body).with_field(header, value)


SHOPIFY, GITHUB = "X-Shopify-Hmac-Sha256", "X-Hub-Signature-256"
# One whose base64 has letters that base64url writes otherwise.
TRICKY = next(
    b for b in (b'{"n":%d}' % n for n in range(99)) if {"+", "/"} & {*base64_of(mac(SECRETS["shopify"], b).digest())}
)
TRICKY_DIGEST = mac(SECRETS["shopify"], TRICKY).digest()

for title, name, header, value, body, tells in (
    ("hex for base64", "shopify", SHOPIFY, DIGEST["shopify"].hex(), None, ("hex", "in base64")),
    ("upper-case hex for base64", "shopify", SHOPIFY, DIGEST["shopify"].hex().upper(), None, ("hex", "in base64")),
    ("base64 for hex", "github", GITHUB, "sha256=" + base64_of(DIGEST["github"]), None, ("base64", "in lower-case hex")),
    ("upper-case hex", "github", GITHUB, "sha256=" + DIGEST["github"].hex().upper(), None, ("upper-case", "lower-case hex")),
    ("base64url", "shopify", SHOPIFY, base64.urlsafe_b64encode(TRICKY_DIGEST).decode(), TRICKY, ("base64url", "base64")),
    ("base64 without padding", "shopify", SHOPIFY, base64_of(DIGEST["shopify"]).rstrip("="), None, ("without its padding", "base64 with padding")),
    ("SHA-1", "github", GITHUB, "sha256=" + mac(SECRETS["github"], BODY, algorithm="sha1").hexdigest(), None, ("HMAC-SHA1", "with HMAC-SHA256")),
    ("SHA-512", "github", GITHUB, "sha256=" + mac(SECRETS["github"], BODY, algorithm="sha512").hexdigest(), None, ("HMAC-SHA512", "with HMAC-SHA256")),
    ("SHA-1 in base64", "shopify", SHOPIFY, base64_of(mac(SECRETS["shopify"], BODY, algorithm="sha1").digest()), None, ("HMAC-SHA1", "with HMAC-SHA256")),
):  # fmt: skip
    row(f"{title} of {name}", name, rewritten(name, header, value, body), tells, "mend the sender")
FORM_BODY = b"From=%2B1&Body=Hi"
row("SHA-256 for SHA-1", "twilio", rewritten("twilio", "X-Twilio-Signature", base64_of(
    mac(SECRETS["twilio"], URL, "BodyHiFrom+1").digest()), FORM_BODY), ("HMAC-SHA256", "with HMAC-SHA1"), "mend the sender")  # fmt: skip
row("upper-case hex of stripe", "stripe", stripe_signed_with(SECRETS["stripe"]).with_field(
    "Stripe-Signature", f"t={NOW},v1={mac(SECRETS['stripe'], f'{NOW}.', BODY).hexdigest().upper()}"),
    ("upper-case", "lower-case hex"), "mend the sender")  # fmt: skip

# ── the clock ─────────────────────────────────────────────────────────────────────────────────────────────────────

PAST = {"stripe": 300, "slack": 300, "standard": 300, "zoom": 300, "linear": 60, "paddle": 5}
FUTURE = {"slack": 300, "standard": 300, "linear": 60}
LINEAR = b'{"action":"create","webhookTimestamp":"@now@"}'
for name, most in PAST.items():
    for age in (most + 1, most + 100):
        row(f"{age} s too old {name}", name, signed(name, LINEAR if name == "linear" else None, now=NOW - age),
            ("right", f"{age} s old", f"takes {most} s", "clock"), "sent anew, or set the clock")  # fmt: skip
for name, most in FUTURE.items():
    row(f"{most + 7} s in the future {name}", name,
        signed(name, LINEAR if name == "linear" else None, now=NOW + most + 7),
        ("right", f"{most + 7} s in the future", f"takes {most} s"), "set the clock")  # fmt: skip
row("a fraction too old", "linear", signed("linear", LINEAR, now=NOW - 60.5), ("60.5 s old", "takes 60 s"), "clock")

# ── damage ────────────────────────────────────────────────────────────────────────────────────────────────────────

for coding in ("gzip", "zstd", "br", "deflate"):
    row(f"inflated {coding}", "github", signed("github", b"\x1f\x8b packed").with_body(compact(LINK)).with_field(
        "Content-Encoding", coding), (f"Content-Encoding says {coding}", "plain", "unpacked"), "pass bodies on as they are")  # fmt: skip
LONG = compact(LINK)
row("cut, by its length", "github", signed("github", LONG).with_body(LONG[:40]).with_field(
    "Content-Length", str(len(LONG))), ("cut short", "40 bytes", str(len(LONG))), "look for a limit")  # fmt: skip
row("cut, by its JSON", "github", signed("github", LONG).with_body(LONG[:40]), ("cut short", "JSON does not end"),
    "look for a limit")  # fmt: skip
row("cut in a text of its JSON", "stripe", signed("stripe", LONG).with_body(LONG[:12]), ("cut short", "JSON"),
    "look for a limit")  # fmt: skip
row(
    "another hash in the URL",
    "twilio-json",
    signed("twilio-json").with_body(compact(LINK)),
    ("bodySHA256",),
    "way|bytes",
)
row("another hash in the URL, pretty to compact", "twilio-json", signed("twilio-json", indented(LINK)).with_body(compact(LINK)),
    ("indented by 2",), "bytes that are sent")  # fmt: skip

# ── what cannot be read, is not there, or fits to nothing ─────────────────────────────────────────────────────────

GOOD = {name: signed(name) for name in BY_NAME if name not in ("linear", "mailgun")}
PAGES = "https://"
for title, name, field, value, tells in (
    ("stripe without t=", "stripe", "Stripe-Signature", "v1=" + 64 * "0", "no `t=`"),
    ("stripe without v1=", "stripe", "Stripe-Signature", f"t={NOW},v0=" + 64 * "0", "no `v1=`"),
    ("stripe's time no number", "stripe", "Stripe-Signature", "t=now,v1=" + 64 * "0", "`now`"),
    ("stripe's as JSON", "stripe", "Stripe-Signature", '{"t":1}', "no `t=`"),
    ("github without its prefix", "github", GITHUB, 64 * "0", "`sha256=`"),
    ("github with sha1=", "github", GITHUB, "sha1=" + 40 * "0", "`sha256=`"),
    ("slack without v0=", "slack", "X-Slack-Signature", 64 * "0", "`v0=`"),
    ("paddle without ts=", "paddle", "Paddle-Signature", "h1=" + 64 * "0", "`ts=`"),
    ("paddle without h1=", "paddle", "Paddle-Signature", f"ts={NOW}", "`h1=`"),
    ("standard without v1,", "standard", "webhook-signature", "v9," + base64_of(bytes(32)), "v1"),
    ("zoom without v0=", "zoom", "x-zm-signature", 64 * "0", "`v0=`"),
):
    row(title, name, GOOD[name].with_field(field, value), tells, PAGES)
for name, field in (
    ("slack", "X-Slack-Request-Timestamp"),
    ("standard", "webhook-timestamp"),
    ("standard", "webhook-id"),
    ("zoom", "x-zm-request-timestamp"),
    ("sendgrid", "X-Twilio-Email-Event-Webhook-Timestamp"),
    ("discord", "X-Signature-Timestamp"),
):
    kept = [pair for pair in GOOD[name].headers if pair[0] != field]
    row(f"{name} without {field}", name, Webhook(URL, GOOD[name].body, kept), ("missing", field.lower()), PAGES)
row("linear without its time", "linear", signed("linear", b'{"action":"create"}'), "webhookTimestamp", PAGES)
for name in ("stripe", "github", "slack", "shopify", "twilio", "standard", "square", "gitlab", "paddle", "zoom"):
    provider, whole = BY_NAME[name], GOOD[name]
    given = {pair[0] for pair in whole.headers} - {"Content-Type", *(pair[0] for pair in provider.marks())}
    kept = [pair for pair in whole.headers if pair[0] not in given]
    row(f"{name} without a signature", name, Webhook(URL, whole.body, kept), "there is no ", PAGES, verdict="none")
for name in ("stripe", "github", "slack", "shopify", "standard", "sendgrid", "discord", "paddle", "zoom", "gitlab"):
    row(f"nothing explains {name}", name, signed(name, number=1), "SECRET", "compare")
for name in ("twilio", "square"):
    # It may be the URL as well, of which not all can be tried.
    body = FORM_BODY if name == "twilio" else None
    row(f"another host {name}", name, Webhook(URL, *(lambda one: (one.body, one.headers))(
        signed(name, body, url="https://tunnel.example.com/hook"))), ("SECRET", "URL", URL), "compare")  # fmt: skip

# What the product does not do yet, by how a title begins. A fix shows itself.
GAPS = {}


def rows():
    for title, one in ROWS.items():
        reason = next((reason for start, reason in GAPS.items() if title.startswith(start)), None)
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        yield pytest.param(one, id=title, marks=marks)


def sentence(one, folder):
    """What `hookway verify --json` says of it."""
    done = judged(folder, BY_NAME[one.provider], one.webhook, one.secret, one.at, "--json")
    assert done.code == 1, done
    unsaid(done.text + done.said, one.secret)
    (said,) = done.json
    return said


def unsaid(said, *secrets):
    """No secret is repeated, in whatever form."""
    for secret in filter(None, secrets):
        bare = secret.strip().strip("\"'")
        assert bare not in said and bare.removeprefix("whsec_") not in said, said


def is_sentence(detail):
    """One, not a paragraph, with nothing of a signature or body in it."""
    assert "\n" not in detail and len(detail) < 330, detail
    assert not re.search(r"[0-9a-f]{40}|[A-Za-z0-9+/]{43}=", detail), detail


@pytest.mark.parametrize("one", list(rows()))
def test_each_mistake_is_named(one, tmp_path):
    said = sentence(one, tmp_path)
    detail = said["signature_detail"]
    assert said["signature"] == one.verdict
    for words in one.tells:
        assert words.lower() in detail.lower(), detail
    assert re.search(one.next, detail), detail
    is_sentence(detail)


@pytest.mark.parametrize("name", PAST)
def test_at_the_edges_of_the_clock_all_is_well(name, tmp_path):
    body = LINEAR if name == "linear" else None
    for age in (PAST[name], -FUTURE.get(name, 10_000), 0):
        webhook = signed(name, body, now=NOW - age)
        done = judged(tmp_path, BY_NAME[name], webhook, secret_of(name), NOW, "--json")
        assert done.code == 0 and done.json[0]["signature_detail"] is None, done


def test_a_person_reads_the_same(tmp_path):
    one = ROWS["pretty to compact stripe"]
    done = judged(tmp_path, BY_NAME["stripe"], one.webhook, one.secret, NOW)
    first, second = done.lines
    assert first.startswith("stripe  sig bad") and second == f"  {sentence(one, tmp_path)['signature_detail']}"
    unsaid(done.text + done.said, one.secret)


def test_what_is_right_says_nothing_more(tmp_path):
    done = judged(tmp_path, BY_NAME["stripe"], signed("stripe"), secret_of("stripe"), NOW)
    assert done.code == 0 and done.lines == ["stripe  sig ok, made with SECRET   paid"]


def test_each_secret_is_tried_and_named(tmp_path):
    """Two are configured; the sentence names the one that explains it."""
    webhook = signed("github", indented(LINK), number=1).with_body(compact(LINK))
    (tmp_path / "body").write_bytes(webhook.body)
    words = ["verify", "github", tmp_path / "body", "--secret-env", "OLD", "--secret-env", "NEW", "--json"]
    words += [word for name, value in webhook.headers for word in ("--header", f"{name}: {value}")]
    secrets = {"OLD": secret_of("github"), "NEW": secret_of("github", 1)}
    done = command(*words, folder=tmp_path, **secrets)
    detail = done.json[0]["signature_detail"]
    assert "(with NEW)" in detail and "OLD" not in detail
    done = command(*words, folder=tmp_path, OLD="one", NEW="two")
    assert "OLD or NEW" in done.json[0]["signature_detail"]


@pytest.mark.parametrize("name", ["square", "twilio"])
def test_a_signed_url_must_be_said(name, tmp_path):
    webhook = signed(name, FORM_BODY if name == "twilio" else None)
    (tmp_path / "body").write_bytes(webhook.body)
    words = [word for field, value in webhook.headers for word in ("--header", f"{field}: {value}")]
    done = command(
        "verify", name, tmp_path / "body", "--secret-env", "SECRET", *words, folder=tmp_path, SECRET=secret_of(name)
    )
    assert done.code != 0 and re.search("next: .*--url", done.said), done


def test_a_form_needs_no_content_type(tmp_path):
    webhook = signed("twilio", FORM_BODY)
    bare = Webhook(webhook.url, webhook.body, [pair for pair in webhook.headers if pair[0] != "Content-Type"])
    done = judged(tmp_path, BY_NAME["twilio"], bare, secret_of("twilio"), NOW)
    assert done.code == 0 or "Content-Type" in done.text, done


def test_a_cut_json_needs_no_content_type(tmp_path):
    webhook = signed("stripe", LONG).with_body(LONG[:40])
    bare = Webhook(webhook.url, webhook.body, [pair for pair in webhook.headers if pair[0] != "Content-Type"])
    done = judged(tmp_path, BY_NAME["stripe"], bare, secret_of("stripe"), NOW)
    assert "cut short" in done.text, done


def test_deep_nesting_costs_little(tmp_path):
    """Indented, a body of 400 kB would fill 80 GB."""
    (tmp_path / "body").write_bytes(b"[" * 200_000 + b"]" * 200_000)
    words = [
        HOOKWAY,
        "verify",
        "github",
        "body",
        "--secret-env",
        "SECRET",
        "--header",
        f"X-Hub-Signature-256: sha256={'0' * 64}",
    ]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "SECRET": "x"}
    limits = lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))  # noqa: E731
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, timeout=10, preexec_fn=limits, check=False
    )
    assert done.returncode == 1 and b"compare" in done.stdout, done


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("twilio", "form"),
        ("square", "json"),
        ("square", "text"),
    ],
)
def test_large_bodies_cost_little(name, body, tmp_path):
    """Every mistake is tried on them, or as many as there is time for."""
    large = {
        "form": "&".join(f"k{n}=v{n}" for n in range(80_000)).encode(),
        "json": compact({"a": [{"id": n, "s": "é/x"} for n in range(30_000)]}),
        "text": b"line\n" * 200_000,
    }[body]
    kind = {"form": "application/x-www-form-urlencoded", "json": "application/json", "text": "text/plain"}[body]
    field = {"twilio": "X-Twilio-Signature", "square": "x-square-hmacsha256-signature"}[name]
    webhook = Webhook(URL, large, [("Content-Type", kind), (field, base64_of(bytes(32)))])
    began = time.monotonic()
    assert judged(tmp_path, BY_NAME[name], webhook, "secret", NOW).code == 1
    assert time.monotonic() - began < 8


# ── through the whole tunnel ──────────────────────────────────────────────────────────────────────────────────────

NAME = "doctor"
FILE = """
[[verify]]
provider = "stripe"
secret-env = "STRIPE_A"
path = "/a"

[[verify]]
provider = "stripe"
secret-env = "STRIPE_B"
path = "/b"

[[verify]]
provider = "github"
secret-env = "GITHUB"

[[verify]]
provider = "slack"
secret-env = "SLACK"

[[verify]]
provider = "square"
secret-env = "SQUARE"

[[verify]]
provider = "twilio"
secret-env = "TWILIO"

[[verify]]
provider = "shopify"
secret-env = "SHOPIFY"
endpoint = "elsewhere"
"""
SECRETS_THERE = {
    "STRIPE_A": secret_of("stripe", 1),
    "STRIPE_B": secret_of("stripe", 2),
    "GITHUB": secret_of("github"),
    "SLACK": secret_of("slack"),
    "SQUARE": secret_of("square"),
    "TWILIO": secret_of("twilio"),
    "SHOPIFY": secret_of("shopify"),
}


class Clinic:
    """Two clients with that file, a key of the developer's own and one app: one prints JSON, the other for people."""

    def __init__(self, world):
        self.world, self.app, self.said = world, world.app(), {}
        self.of_json, self.of_people = self._client(NAME, True), self._client(f"{NAME}-people", False)
        eventually(lambda: any(b"Ctrl-C" in line for line in self.of_people.lines), what="the banner")

    def _client(self, name, json_lines):
        folder = self.world.folder / f"client-{len(self.world.programs)}-{name}"
        folder.mkdir()
        (folder / "hookway.toml").write_text(FILE)
        assert command("keys", "create", "standard", folder=folder).code == 0
        return self.world.client(
            self.app, "-v", name=name, json_lines=json_lines, environment=SECRETS_THERE | {"RUST_LOG": "trace"}
        )

    def url(self, path):
        return f"https://{NAME}.{DOMAIN}{path}"

    def send(self, webhook, name=NAME):
        with self.world.wire(name) as wire:
            data = request("POST", webhook.target, webhook.body, host=f"{name}.{DOMAIN}", headers=webhook.headers)
            assert wire.ask(data).status == 200

    def line(self, webhook):
        """The JSON line of a delivery."""
        before = len(self.of_json.deliveries())
        self.send(webhook)
        self.of_json.wait(lambda: len(self.of_json.deliveries()) > before)
        return self.of_json.deliveries()[-1]

    def warnings(self):
        return re.findall(r"^warning: .*$", self.of_people.errors.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def clinic(world):
    clinic = Clinic(world)
    yield clinic
    for client in (clinic.of_json, clinic.of_people):
        said = b"".join(client.lines).decode() + client.errors.read_text()
        unsaid(said, *SECRETS_THERE.values())


def stripe(path, number, body=None):
    return signed("stripe", body, number, url=f"https://{NAME}.{DOMAIN}{path}", now=int(time.time()))


TUNNEL = {
    "another path's secret": (stripe, ("/a", 2), ("STRIPE_B", "path /b"), "exchange"),
    "the same the other way round": (stripe, ("/b", 1), ("STRIPE_A", "path /a"), "exchange"),
    "a changed body": (
        lambda: stripe("/a", 1, indented(LINK)).with_body(compact(LINK)), (), ("STRIPE_A", "indented by 2"), "bytes that are sent"),
    "nothing": (stripe, ("/a", 5), ("STRIPE_A",), "compare"),
    "another provider's secret": (
        lambda: signed("slack", secret=secret_of("github"), now=int(time.time())), (), ("GITHUB", "set for GitHub"), "exchange|Slack"),
    "another provider's, of another endpoint": (
        lambda: signed("github", secret=secret_of("shopify")), (), ("SHOPIFY", "endpoint elsewhere"), "exchange|GitHub"),
    "the clock": (lambda: signed("slack", now=int(time.time()) - 4000), (), ("400", "s old", "takes 300 s"), "clock"),
    "an inflated body": (
        lambda: signed("github", b"\x1f\x8b").with_body(compact(LINK)).with_field("Content-Encoding", "gzip"),
        (), ("Content-Encoding says gzip",), "pass bodies on"),
    "a body that was cut": (lambda: signed("github", LONG).with_body(LONG[:30]), (), ("JSON does not end",), "look for a limit"),
}  # fmt: skip


@pytest.mark.parametrize("title", TUNNEL)
def test_a_delivery_s_line_says_why(clinic, title):
    make, words, tells, step = TUNNEL[title]
    line = clinic.line(make(*words))
    assert (line["status"], line["signature"]) == (200, "bad")
    for word in tells:
        assert word in line["signature_detail"], line
    assert re.search(step, line["signature_detail"]), line
    is_sentence(line["signature_detail"])


@pytest.mark.parametrize(
    "form",
    [
        "http://localhost:{port}",
        "http://127.0.0.1:{port}",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1",
        "https://{host}:443",
    ],
)
def test_a_url_of_this_machine_is_tried(clinic, form):
    origin = form.format(port=clinic.app.port, host=f"{NAME}.{DOMAIN}")
    webhook = signed("square", url=f"{origin}/hook?x=1")
    detail = clinic.line(webhook)["signature_detail"]
    assert f"for {origin}/hook?x=1" in detail and f"sent to {clinic.url('/hook?x=1')}" in detail


def test_an_own_key_is_not_blamed(clinic):
    """Signed with an empty secret: which the developer's own key has nothing to do with."""
    empty = ("X-Hub-Signature-256", "sha256=" + mac("", compact(EVENT)).hexdigest())
    line = clinic.line(Webhook(URL, compact(EVENT), [("X-GitHub-Event", "push"), empty]))
    assert line["signature"] == "bad" and "own key" not in line["signature_detail"], line


def test_a_stale_one_is_not_promised_what_cannot_be(clinic):
    """What the sentence advises works."""
    line = clinic.line(signed("slack", now=int(time.time()) - 4000))
    if "hookway replay" in line["signature_detail"]:
        folder = clinic.of_json.errors.parent
        done = command("replay", line["id"], "--json", folder=folder, **SECRETS_THERE)
        assert done.json[0]["resigned"] is True and done.json[0]["signature"] == "ok", done


def test_a_url_s_secrets_are_masked(clinic):
    """As in the path beside it."""
    for webhook in (signed("square", number=1), signed("square", url=f"http://{NAME}.{DOMAIN}/hook?token=canary-7f3a")):
        line = clinic.line(Webhook(clinic.url("/hook?token=canary-7f3a"), webhook.body, webhook.headers))
        assert "token=••••" in line["path"] and line["signature_detail"]
        assert "canary" not in json.dumps(line), line


def test_a_long_search_holds_nothing_up(clinic):
    """What comes behind it, on whatever connection, is answered as ever; so is a deep one, and the client stays small."""
    form = "&".join(f"k{n}=v{n}" for n in range(25_000)).encode()
    headers = [("Content-Type", "application/x-www-form-urlencoded"), ("X-Twilio-Signature", base64_of(bytes(20)))]
    deep = b"[" * 20_000 + b"]" * 20_000
    github = [("X-GitHub-Event", "push"), ("X-Hub-Signature-256", "sha256=" + "0" * 64)]
    before = len(clinic.of_json.deliveries())
    for slow in (Webhook(URL, form, headers), Webhook(URL, deep, github)):
        clinic.send(slow)
        for number in range(3):
            began = time.monotonic()
            clinic.send(stripe("/a", 1, compact({"id": f"evt_{number}"})))
            assert time.monotonic() - began < 2
    clinic.of_json.wait(lambda: len(clinic.of_json.deliveries()) == before + 8)
    assert clinic.of_json.rss() < 300e6


def test_people_are_warned_once_of_one_fault(clinic):
    name, before = f"{NAME}-people", len(clinic.warnings())

    def lines():
        return sum(b"sig bad" in line for line in clinic.of_people.lines)

    shown = lines()
    for _ in range(3):
        clinic.send(stripe("/a", 2), name)
    eventually(lambda: lines() == shown + 3, what="three lines")
    clinic.send(stripe("/b", 1), name)
    eventually(lambda: lines() == shown + 4, what="the fourth")
    one, other = eventually(lambda: len(clinic.warnings()) >= before + 2 and clinic.warnings()[before:])
    assert "STRIPE_B" in one and "exchange" in one and "STRIPE_A" in other
    # It begins with the delivery's id as the line has it.
    number = re.search(r"req_\S+", one).group().rstrip(":")
    assert any(number in line.decode() and "sig bad" in line.decode() for line in clinic.of_people.lines)


def test_many_at_once_cost_little(clinic):
    """A flood of bad ones: each is answered, and each has a sentence, if only that there were too many."""
    before = len(clinic.of_json.deliveries())
    webhooks = [signed("github", compact(HUGE | {"id": n}), number=1) for n in range(12)]
    began = time.monotonic()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(clinic.send, webhooks))
    clinic.of_json.wait(lambda: len(clinic.of_json.deliveries()) == before + 12)
    assert time.monotonic() - began < 15
    assert all(line["signature_detail"] for line in clinic.of_json.deliveries()[before:])
