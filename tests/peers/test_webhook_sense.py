"""What a client does with a delivery because it is a webhook: checks, repeats, deadlines, samples, replays; and what it
prints of them. The signatures are made as each provider's SDK makes them (sdks.py)."""

import contextlib
import json
import os
import re
import socket
import stat
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest

from sdks import BY_NAME, EVENT, MIB, Webhook, base64_of, compact, mac
from test_history import Desk, command, failed, good, pairs, put, same_request
from test_semantics import GatedApp
from world import DOMAIN, HOOKWAY, Program, eventually, request

ENVIRONMENT = {
    "STRIPE_WEBHOOK_SECRET": BY_NAME["stripe"].key().verifies,
    "STRIPE_OTHER": BY_NAME["stripe"].key(1).verifies,
    "GITHUB": BY_NAME["github"].key().verifies,
    "SLACK": BY_NAME["slack"].key().verifies,
    "GITLAB": BY_NAME["gitlab"].key().verifies,
    "ACME": "acme-canary-7f3a5d",
}
FLAGS = [word for flag in ("stripe", "stripe=STRIPE_OTHER", "github=GITHUB", "slack=SLACK", "gitlab=GITLAB")
         for word in ("--verify", flag)]  # fmt: skip
OK, ACCEPTED, UNAUTHORIZED, TOO_LARGE, UNAVAILABLE = 200, 202, 401, 413, 503


def signed(name, body=None, number=0, now=None, path="/hook"):
    provider = BY_NAME[name]
    body = compact(EVENT) if body is None else body
    if name == "github":
        # Its SDK runs in Node, which need not start for this.
        signature = ("X-Hub-Signature-256", "sha256=" + mac(provider.key(number).signs, body).hexdigest())
        return Webhook(f"https://h{path}", body, [*provider.marks(), signature])
    return provider.sign(provider.key(number), body, f"https://h{path}", time.time() if now is None else now)


def stripe(event="evt_1", number=0, path="/hook", kind="charge.succeeded", now=None):
    return signed("stripe", compact({"id": event, "type": kind}), number, now, path)


def slack(event="Ev1", kind="event_callback", path="/hook"):
    return signed(
        "slack", compact({"type": kind, "event_id": event, "event": {"type": "message"}, "challenge": "c"}), path=path
    )


class Station(Desk):
    """A desk with a hookway.toml, if there is one, and webhooks to send to it."""

    def __init__(self, world, name, app, *flags, toml="", files=(), environment=None, **options):
        super().__init__(world, name)
        folder = world.folder / f"client-{len(world.programs)}-{name}"
        for path, text in dict(files).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        if toml:
            folder.mkdir(exist_ok=True)
            (folder / "hookway.toml").write_text(toml)
        self.environment = ENVIRONMENT | (environment or {})
        self.flags, self.options = flags, options
        self.begin(app)

    def begin(self, app):
        client = self.start(app, *self.flags, environment=dict(self.environment), **self.options)
        self.client = client
        if not self.options.get("json_lines", True):
            eventually(lambda: any(b"Ctrl-C" in line for line in client.lines), what="the banner")
        return client

    @property
    def folder(self):
        return self.started[0].errors.parent

    def send(self, webhook, *more, name=None):
        """POST it: the answer and its line."""
        seen = len(self.client.deliveries())
        reply = self.ask("POST", webhook.target, webhook.body, [*webhook.headers, *more], name)
        self.client.wait(lambda: len(self.client.deliveries()) > seen, what="the delivery")
        return reply, self.client.deliveries()[-1]

    def line(self, webhook, *more, name=None):
        return self.send(webhook, *more, name=name)[1]

    def run(self, *words, **environment):
        return command(*words, folder=self.folder, **(self.environment | environment))

    def delivery_lines(self):
        """What is printed of deliveries for people."""
        return [line.decode().rstrip("\n") for line in self.client.lines if re.match(rb"\d\d:\d\d:\d\d\.\d{3}  ", line)]


def statuses(seen, _connection):
    """An app that answers what the request asks for, when it asks for it."""
    time.sleep(float(seen.header("x-sleep", "0")))
    status = seen.header("x-answer", "200")
    return f"HTTP/1.1 {status} Said\r\nContent-Length: 4\r\n\r\nsaid".encode()


stations = []


@pytest.fixture(scope="module")
def station(world):
    """`station(name, *flags)`: a desk of the test's own, with an app that does as it is told."""

    def start(name, *flags, app=None, **options):
        station = Station(world, name, app or world.app(answer=statuses), *flags, **options)
        stations.append(station)
        return station

    yield start
    nothing_secret_was_said(world)
    for one in stations:
        one.close()


def nothing_secret_was_said(world):
    secrets = [secret.removeprefix("whsec_") for secret in ENVIRONMENT.values()]
    for program in world.programs:
        said = b"".join(program.lines).decode(errors="replace") + program.errors.read_text(errors="replace")
        for secret in secrets:
            assert secret not in said, (program.title, secret)


@pytest.fixture(scope="module")
def plain(station):
    """Two endpoints, a few secrets, no policy."""
    return station("plain", *FLAGS, "-n", "plain-too", "-v", inspect=True)


def cells(text):
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


# ── --verify ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("webhook", "verdict", "secret"),
    [
        (lambda: stripe("evt_v1"), "ok", "STRIPE_WEBHOOK_SECRET"),
        (lambda: stripe("evt_v2", 1), "ok", "STRIPE_OTHER"),
        (lambda: stripe("evt_v3", 2), "bad", None),
        (lambda: signed("github"), "ok", "GITHUB"),
        (lambda: signed("gitlab"), "ok", "GITLAB"),
        (lambda: signed("gitlab", number=1), "bad", None),
        (lambda: signed("shopify"), "none", None),
        (lambda: Webhook("https://h/x", b"{}", []), "none", None),
    ],
    ids=["default variable", "named", "neither", "another provider", "gitlab", "gitlab bad", "no secret", "nobody's"],
)
def test_a_verdict_and_the_secret_that_made_it(plain, webhook, verdict, secret):
    reply, line = plain.send(webhook())
    assert (reply.status, line["signature"]) == (OK, verdict)
    assert plain.show(line["id"])["summary"]["signature_secret"] == secret
    assert bool(line["signature_detail"]) == (line["provider"] is not None and verdict != "ok"), line


def test_an_unset_variable_is_named(hookway):
    for words, name in ((["--verify", "stripe"], "STRIPE_WEBHOOK_SECRET"), (["--verify", "slack=NOT_SET"], "NOT_SET")):
        done = hookway("3000", "--relay", "127.0.0.1:1", *words)
        assert (done.returncode, done.stdout) == (7, ""), done
        assert name in done.stderr and "not set" in done.stderr and "\n  next:  " in done.stderr
    assert hookway("3000", "--relay", "127.0.0.1:1", "--verify", "stripe=EMPTY", EMPTY="").returncode == 7
    assert "empty" in hookway("3000", "--relay", "127.0.0.1:1", "--verify", "stripe=EMPTY", EMPTY=" ").stderr


def test_what_is_no_secret_of_its_provider_is_said_without_it(hookway):
    for name in ("standard", "sendgrid", "discord"):
        done = hookway("3000", "--relay", "127.0.0.1:1", "--verify", f"{name}=X", X="!canary-7f3a!")
        assert done.returncode == 7 and "X" in done.stderr and "canary" not in done.stderr, done


@pytest.mark.parametrize(
    "secret",
    [
        "whsec_abc-x.y7f3a",
        "whsec_4eC39HqLyjWDarjtT1zdP7dc",
        "8f742231b10e8888abcd99yyyzzz85a5",
        "x y7f3a",
        "sk_test_51Hz7f3a",
    ],
)
@pytest.mark.parametrize("where", ["flag", "variable"])
def test_a_secret_in_place_of_its_variable_is_not_repeated(hookway, secret, where):
    given = ["--verify", f"stripe={secret}"] if where == "flag" else []
    more = {"HOOKWAY_VERIFY": f"stripe={secret}"} if where == "variable" else {}
    done = hookway("3000", "--relay", "127.0.0.1:1", *given, **more)
    assert done.returncode == 2 and secret not in done.stdout + done.stderr, done


@pytest.mark.parametrize("secret", ["whsec_abc-x.y7f3a", "x y7f3a"])
def test_nor_by_the_other_commands(hookway, tmp_path, secret):
    (tmp_path / "body").write_bytes(b"{}")
    for words in (["verify", "stripe", "body"], ["send", "stripe", "--to", "http://localhost:1"]):
        done = hookway(*words, "--secret-env", secret)
        assert done.returncode == 2 and secret not in done.stdout + done.stderr, done


def test_a_secret_in_place_of_its_variable_has_a_next_step(hookway):
    done = hookway("send", "stripe", "--to", "http://localhost:1", "--secret-env", "whsec_abc-x.y7f3a")
    assert re.search(r"\n  cause: .+\n  next:  .+", done.stderr), done.stderr


def test_an_unknown_provider_has_a_neighbour(hookway):
    for words in (
        ["3000", "--verify", "strpe"],
        ["verify", "strpe", "x"],
        ["send", "strpe"],
        ["keys", "show", "strpe"],
    ):
        done = hookway(*words)
        assert done.returncode == 2 and "did you mean `stripe`?" in done.stderr, done
    assert "paddle, zoom" in hookway("3000", "--verify", "qwertzuiop").stderr


# ── [[verify]] ────────────────────────────────────────────────────────────────────────────────────────────────────

FILE = """
[[verify]]
provider = "stripe"
secret-file = "secrets/a"
path = "/a"

[[verify]]
provider = "stripe"
secret-env = "STRIPE_OTHER"
path = "/b"

[[verify]]
provider = "github"
secret-env = "GITHUB"
endpoint = "filed-too"

[[verify]]
provider = "shopify"
secret-env = "NOBODY_SET_THIS"

[[verify]]
provider = "hmac"
secret-env = "ACME"
header = "X-Acme-Signature"
algorithm = "sha512"
encoding = "base64"
prefix = "v2="
signed = "{timestamp}.{id}.{url}.{body}"
timestamp-header = "X-Acme-Time"
id-header = "X-Acme-Id"
tolerance = "5m"
path = "/acme"

[[verify]]
provider = "hmac"
secret-env = "ACME"
path = "/plain"
"""


@pytest.fixture(scope="module")
def filed(station):
    files = {"secrets/a": ENVIRONMENT["STRIPE_WEBHOOK_SECRET"] + "\r\n"}
    return station("filed", "-n", "filed-too", "-v", toml=FILE, files=files)


@pytest.mark.parametrize(
    ("path", "number", "verdict"),
    [
        ("/a", 0, "ok"),
        ("/a", 1, "bad"),
        ("/a/b?c", 0, "ok"),
        ("/ab", 0, "none"),
        ("/b", 1, "ok"),
        ("/b", 0, "bad"),
        ("/", 0, "none"),
    ],
)
def test_a_path_has_its_secrets(filed, path, number, verdict):
    line = filed.line(stripe(f"evt_{path}{number}", number, path))
    assert (line["provider"], line["signature"]) == ("stripe", verdict)


def test_a_secret_file_stands_by_its_path(filed):
    line = filed.line(stripe("evt_named", path="/a"))
    assert filed.show(line["id"])["summary"]["signature_secret"].endswith("secrets/a")


def test_an_endpoint_has_its_secrets(filed):
    assert filed.line(signed("github"), name="filed-too")["signature"] == "ok"
    assert filed.line(signed("github"))["signature"] == "none"


def test_a_variable_of_a_file_that_is_not_set_is_a_note(filed):
    said = filed.client.errors.read_text()
    if not re.search("Shopify are not checked.*NOBODY_SET_THIS", said):
        # With --json nothing is said beside the events: as people see it.
        done = filed.run("replay", "@1")
        assert re.search("Shopify are not checked.*NOBODY_SET_THIS", done.said), done
    assert filed.client.running


def acme(body=b"event", path="/acme/x?y=1", now=None, number="m1", algorithm="sha512", secret=ENVIRONMENT["ACME"]):
    now = int(time.time() if now is None else now)
    message = f"{now}.{number}.https://filed.{DOMAIN}{path}.".encode() + body
    signature = "v2=" + base64_of(mac(secret, message, algorithm=algorithm).digest())
    headers = [("X-Acme-Signature", signature), ("X-Acme-Time", str(now)), ("X-Acme-Id", number)]
    return Webhook(f"https://filed.{DOMAIN}{path}", body, headers)


def test_an_hmac_is_described(filed):
    line = filed.line(acme())
    assert (line["provider"], line["signature"], line["event_id"]) == ("hmac", "ok", "m1"), line
    assert filed.line(acme(now=time.time() - 290, number="m2"))["signature"] == "ok"
    for wrong, tells in (
        (acme(number="m3").with_body(b"other"), "ACME"),
        (acme(number="m4", algorithm="sha256"), "HMAC-SHA256"),
        (acme(number="m5").with_field("X-Acme-Id", "m6"), "ACME"),
        (acme(number="m7", secret=ENVIRONMENT["ACME"] + "\n"), "white space"),
        (acme(number="m8", now=time.time() - 310), "clock"),
        (acme(number="m9", now=time.time() + 310), "clock"),
        (acme(number="ma").with_field("X-Acme-Signature", "x"), "`v2=`"),
        (acme(number="mb").with_field("X-Acme-Time", "soon"), "`soon`"),
    ):
        line = filed.line(wrong)
        assert line["signature"] == "bad" and tells in line["signature_detail"], line
    bare = Webhook(acme().url, b"event", [])
    assert filed.line(bare)["signature"] == "none"
    # The same id again.
    assert filed.line(acme())["duplicate_of"]


def test_an_hmac_that_says_nothing_is_the_usual_one(filed):
    signature = mac(ENVIRONMENT["ACME"], b"event").hexdigest()
    line = filed.line(Webhook("https://h/plain", b"event", [("X-Signature", signature)]))
    assert (line["provider"], line["signature"]) == ("hmac", "ok")
    assert filed.line(Webhook("https://h/plain", b"Event", [("X-Signature", signature)]))["signature"] == "bad"


def test_a_described_hmac_is_signed_afresh(filed):
    """As its file says: where, how, over what; and the replay is for the URL that the app sees."""
    line = filed.line(acme(now=time.time() - 200, number="again"))
    (again,) = good(filed.run("replay", line["id"], "--json")).json
    assert (again["resigned"], again["signature"]) == (True, "ok")
    seen = filed.app.seen[-1]
    expected = acme(now=int(seen.header("x-acme-time")), number="again")
    assert seen.header("x-acme-signature") == expected.fields["x-acme-signature"]
    assert time.time() - int(seen.header("x-acme-time")) < 20


def test_send_and_verify_know_the_described_hmac(filed, tmp_path):
    origin = f"http://127.0.0.1:{filed.app.port}"
    good(filed.run("send", "hmac", "--to", f"{origin}/acme/sent"))
    seen = filed.app.seen[-1]
    now, number = seen.header("x-acme-time"), seen.header("x-acme-id", "")
    message = f"{now}.{number}.{origin}/acme/sent.".encode() + seen.body
    assert seen.header("x-acme-signature") == "v2=" + base64_of(
        mac(ENVIRONMENT["ACME"], message, algorithm="sha512").digest()
    )
    (tmp_path / "body").write_bytes(b"event")
    webhook = acme(number="m")

    def verify(webhook):
        fields = [word for name, value in webhook.headers for word in ("-H", f"{name}: {value}")]
        return filed.run("verify", "hmac", tmp_path / "body", "--url", webhook.url, *fields)

    assert good(verify(webhook)).text.startswith("hmac  sig ok")
    assert verify(webhook.with_field("X-Acme-Id", "other")).code == 1


def test_send_goes_by_the_path_of_the_described_hmac(filed):
    good(filed.run("send", "hmac", "--to", f"http://127.0.0.1:{filed.app.port}/plain"))
    seen = filed.app.seen[-1]
    assert seen.header("x-signature") == mac(ENVIRONMENT["ACME"], seen.body).hexdigest(), seen.headers


WRONG = {
    "secret-evn = 'A'": "secret-env",
    "colour = 'red'": "`colour`",
    "provider = 'strpie'": "did you mean `stripe`",
    "secret-file = '../x'": "below the project",
    "secret-file = '/etc/passwd'": "below the project",
    "secret-file = 'a/../../x'": "below the project",
    "secret-env = 'A'\nsecret-file = 'b'": "from one place",
    "path = 'a'": "begins with /",
    "endpoint = 'A_B'": "endpoint name",
    "header = 'x'": 'provider = "hmac"',
    "provider = 'hmac'\nalgorithm = 'md5'": "sha256",
    "provider = 'hmac'\nencoding = 'base32'": "base64",
    "provider = 'hmac'\nheader = 'x y'": "no header",
    "provider = 'hmac'\nsigned = '{time}.{body}'": "{timestamp}",
    "provider = 'hmac'\nsigned = '{timestamp}.{body}'": "timestamp-header",
    "provider = 'hmac'\nsigned = '{id}.{body}'": "id-header",
    "provider = 'hmac'\nsigned = '{body}{body}'": "once",
    "provider = 'hmac'\nsigned = 'body'": "once",
    "provider = 'hmac'\nsigned = '{body'": "}",
    "provider = 'hmac'\ntolerance = '5m'": "{timestamp}",
    "provider = 'hmac'\ntolerance = 'long'": "`long`",
    "path = 5": "string",
}


def test_what_is_wrong_in_a_file_is_named_with_its_line(hookway, tmp_path):
    """All at once."""
    tables, expected, number = ["relay = '127.0.0.1:1'"], [], 2
    for wrong, tells in WRONG.items():
        text = f"[[verify]]\n{wrong}" if wrong.startswith("provider") else f"[[verify]]\nprovider = 'github'\n{wrong}"
        tables.append(text)
        expected.append((range(number, number + text.count("\n") + 1), tells, wrong))
        number += text.count("\n") + 1
    (tmp_path / "hookway.toml").write_text("\n".join(tables) + "\n")
    for words in (["3000"], ["config", "check"]):
        done = hookway(*words)
        assert done.returncode == 7, done
        lines = dict(re.findall(r"^ +line (\d+): (.*)$", done.stderr, re.MULTILINE))
        for span, tells, wrong in expected:
            here = [lines[str(line)] for line in span if str(line) in lines]
            assert here and tells in here[0], (wrong, here, done.stderr)


def test_an_unknown_key_has_a_neighbour(hookway, tmp_path):
    (tmp_path / "hookway.toml").write_text("[[verify]]\nprovider = 'github'\nsecret-evn = 'A'\n")
    said = hookway("config", "check").stderr
    assert "line 3" in said and "did you mean `secret-env`" in said, said


def test_a_secret_in_a_file_is_not_repeated(hookway, tmp_path):
    (tmp_path / "hookway.toml").write_text("[[verify]]\nprovider = 'github'\nsecret-env = 'whsec_canary-7f3a'\n")
    done = hookway("replay", "@1")
    assert done.returncode == 7 and "canary" not in done.stderr, done


def test_a_user_s_file_may_name_any_file(station, tmp_path):
    (tmp_path / "secret").write_text(ENVIRONMENT["STRIPE_OTHER"] + "\n")
    (tmp_path / "near").write_text(ENVIRONMENT["GITHUB"])
    config = tmp_path / "config.toml"
    config.write_text(
        f"[[verify]]\nprovider = 'stripe'\nsecret-file = '{tmp_path}/secret'\n"
        "[[verify]]\nprovider = 'github'\nsecret-file = 'near'\n"
    )
    desk = station("users", "--config", str(config))
    assert desk.line(stripe("evt_u", 1))["signature"] == "ok"
    assert desk.line(signed("github"))["signature"] == "ok"


def test_the_short_form_of_a_file(station):
    desk = station("short", toml="verify = ['stripe', 'github=GITHUB']\n")
    assert desk.line(stripe("evt_s"))["signature"] == desk.line(signed("github"))["signature"] == "ok"


# ── --require-signature ───────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_not_signed_well_is_answered_401(station):
    desk = station("strict", *FLAGS, "--require-signature")
    unsigned = stripe("evt_4")
    unsigned.headers = [pair for pair in unsigned.headers if pair[0] != "Stripe-Signature"]
    refused = {
        "bad": stripe("evt_2", 2),
        "old": stripe("evt_3", now=time.time() - 400),
        "none": unsigned,
        "no secret": signed("shopify"),
        "nobody's": Webhook("https://h/x", b"", []),
    }
    for why, webhook in refused.items():
        reply, line = desk.send(webhook)
        assert (reply.status, line["status"]) == (UNAUTHORIZED, UNAUTHORIZED), why
        assert reply.header("hookway-answered-by") == "client" and reply.body.count(b"\n") == 1, reply
        assert line["signature"] == ("bad" if why in ("bad", "old") else "none"), why
    assert desk.app.seen == []
    large = signed("stripe", b'{"id":"evt_5","x":"%s"}' % (b"x" * MIB))
    reply, line = desk.send(large)
    assert (reply.status, line["status"]) == (TOO_LARGE, TOO_LARGE) and b"1 MiB" in reply.body
    eventually(lambda: desk.list()[0]["path"] == "/hook")
    assert desk.app.seen == []
    reply, line = desk.send(stripe("evt_1"))
    assert (reply.status, line["signature"], reply.header("hookway-answered-by")) == (OK, "ok", None)
    assert len(desk.app.seen) == 1
    # A refused one can be looked at, and why.
    assert [one["signature"] for one in desk.list("--status", "401")].count("bad") == 2


def test_a_refused_get_is_401_too(station):
    desk = station("strict-get", *FLAGS, "--require-signature")
    assert desk.ask("GET", "/page").status == UNAUTHORIZED and not desk.app.seen


def test_other_requests_are_401_too(station):
    desk = station("strict-others", *FLAGS, "--require-signature")
    with desk.world.wire(desk.name) as wire:
        reply = wire.ask(request("HEAD", "/page", host=desk.host))
        assert (reply.status, reply.body) == (UNAUTHORIZED, b"")
        upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")]
        assert wire.ask(request("GET", "/ws", host=desk.host, headers=upgrade)).status == UNAUTHORIZED
    assert not desk.app.seen


def test_a_small_body_in_chunks_is_checked_first(station):
    desk = station("strict-chunks", *FLAGS, "--require-signature")
    for number, status in ((0, OK), (2, UNAUTHORIZED)):
        webhook = stripe("evt_chunks", number)
        fields = "".join(f"{name}: {value}\r\n" for name, value in webhook.headers)
        head = f"POST /hook HTTP/1.1\r\nHost: {desk.host}\r\nTransfer-Encoding: chunked\r\n{fields}\r\n"
        with desk.world.wire(desk.name) as wire:
            reply = wire.ask(head.encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (len(webhook.body), webhook.body))
        assert reply.status == status, reply
    assert len(desk.app.seen) == 1


def test_what_is_refused_is_no_failure_of_the_app(station, world):
    app = world.app(answer=statuses)
    words = [*FLAGS, "--require-signature", "--once", "--fail"]
    client = world.client(app, *words, name="strict-once", environment=ENVIRONMENT)
    assert world.post("/scan", b"x", name="strict-once").status == UNAUTHORIZED
    webhook = stripe("evt_1")
    assert world.post("/hook", webhook.body, name="strict-once", headers=webhook.headers).status == OK
    assert client.exited() == 0


def test_nothing_to_check_with_is_a_usage_error(hookway):
    done = hookway("3000", "--relay", "127.0.0.1:1", "--require-signature")
    assert done.returncode == 2 and "--verify" in done.stderr


# ── duplicates ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_event_twice_is_a_duplicate(plain):
    first = plain.line(stripe("evt_twice"))
    again = plain.line(stripe("evt_twice"))
    third = plain.line(stripe("evt_twice"))
    assert (first["duplicate_of"], again["duplicate_of"], third["duplicate_of"]) == (None, first["id"], first["id"])
    assert again["status"] == 200 and len([s for s in plain.app.seen if b"evt_twice" in s.body]) == 3
    # To another place it is another one; so is another event.
    assert plain.line(stripe("evt_twice", path="/other"))["duplicate_of"] is None
    assert plain.line(stripe("evt_twice"), name="plain-too")["duplicate_of"] is None
    assert plain.line(stripe("evt_another"))["duplicate_of"] is None
    # The query is part of no place.
    assert plain.line(stripe("evt_twice", path="/hook?x"))["duplicate_of"] == first["id"]


def test_a_redelivery_of_github_is_a_duplicate(plain):
    number = ("X-GitHub-Delivery", "1a2b3c")

    def push(body=b"{}"):
        webhook = signed("github", body, path="/github")
        return Webhook(webhook.url, body, [pair for pair in webhook.headers if pair[0] != number[0]] + [number])

    first, again = plain.line(push()), plain.line(push())
    assert (first["event_id"], again["duplicate_of"]) == ("1a2b3c", first["id"])


def test_without_an_id_there_are_no_duplicates(plain):
    body = compact({"type": "url_verification", "challenge": "c"})
    lines = [plain.line(signed("slack", body, path="/slack")) for _ in range(2)]
    assert [line["duplicate_of"] for line in lines] == [None, None]


def test_a_duplicate_is_known_after_a_restart(station):
    desk = station("again", *FLAGS)
    first = desk.line(stripe("evt_r"))
    failed_first = desk.line(stripe("evt_f"), ("X-Answer", "500"))
    assert desk.client.stop() == 0
    app = desk.app
    desk.begin(app)
    assert desk.line(stripe("evt_r"))["duplicate_of"] == first["id"]
    assert desk.line(stripe("evt_f"))["duplicate_of"] == failed_first["id"]


def test_a_replay_is_no_duplicate(station):
    desk = station("replayed", *FLAGS)
    first = desk.line(stripe("evt_r"))
    (replay,) = good(desk.run("replay", first["id"], "--json")).json
    assert replay["duplicate_of"] is None and replay["replay_of"] == first["id"]
    assert desk.line(stripe("evt_r"))["duplicate_of"] == first["id"]


def test_dedupe_answers_for_what_the_app_took(station):
    desk = station("dedupe", *FLAGS, "--dedupe")
    first = desk.line(stripe("evt_1"))
    reply, again = desk.send(stripe("evt_1"))
    assert (reply.status, reply.header("hookway-answered-by")) == (OK, "client") and first["id"].encode() in reply.body
    assert (again["status"], again["duplicate_of"]) == (OK, first["id"]) and len(desk.app.seen) == 1
    # What failed is put to the app again, until it takes it.
    seen = len(desk.app.seen)
    for answer, reached in (("500", 1), ("302", 2), ("200", 3), ("200", 3)):
        desk.line(stripe("evt_2"), ("X-Answer", answer))
        assert len(desk.app.seen) - seen == reached, answer
    # It is known after a restart, too.
    assert desk.client.stop() == 0
    desk.begin(desk.app)
    seen = len(desk.app.seen)
    assert desk.send(stripe("evt_1"))[0].header("hookway-answered-by") == "client"
    assert desk.send(stripe("evt_2"))[0].header("hookway-answered-by") == "client"
    assert len(desk.app.seen) == seen


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("forgery", ["other secret", "no signature in it"])
def test_dedupe_swallows_nothing_for_one_that_is_not_genuine(station, forgery, restart):
    """Who knows or guesses an event's id must not be able to keep the event from the app."""
    desk = station(f"forged-{forgery[:2]}-{restart}".lower(), *FLAGS, "--dedupe")
    forged = stripe("evt_1", 2)
    if forgery != "other secret":
        forged = forged.with_field("Stripe-Signature", "nothing")
    assert desk.line(forged)["signature"] == "bad"
    if restart:
        assert desk.client.stop() == 0
        desk.begin(desk.app)
    assert desk.line(stripe("evt_1"))["status"] == OK
    assert len(desk.app.seen) == 2


def test_dedupe_puts_off_what_is_being_worked_on(station):
    with GatedApp() as app:
        desk = station("gated", *FLAGS, "--dedupe", app=app)
        with desk.world.wire(desk.name) as wire:
            one = stripe("evt_1")
            wire.send(request("POST", one.target, one.body, host=desk.host, headers=one.headers))
            eventually(lambda: app.seen, what="the first at the app")
            reply, line = desk.send(stripe("evt_1"))
            assert (reply.status, line["status"]) == (UNAVAILABLE, UNAVAILABLE) and int(reply.header("retry-after")) > 0
            app.gate.set()
            assert wire.reply("POST").status == OK
        desk.client.wait(lambda: len(desk.client.deliveries()) == 2)
        assert desk.send(stripe("evt_1"))[0].header("hookway-answered-by") == "client"
        assert len(app.seen) == 1


# ── deadlines ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def people(station):
    """A client that prints for people."""
    return station("people", *FLAGS, "-n", "people-too", json_lines=False)


class Slow:
    """Apps that take long, side by side: the sender's answers and how long each took, by name."""

    def __init__(self, stepping, plain, people):
        self.stepping = stepping
        slash = signed("slack", b"command=%2Fweather&text=94070&response_url=x", path="/command")
        slash = slash.with_field("Content-Type", "application/x-www-form-urlencoded")
        asked = {
            "late": (stepping, slack("Ev1", path="/late"), 6),
            "fails": (stepping, slack("Ev2", path="/fails"), 4, "500"),
            "soon": (stepping, slack("Ev3", path="/soon"), 0),
            "challenge": (stepping, slack("", "url_verification", path="/challenge"), 3.2),
            "command": (stepping, slash, 3.2),
            "discord": (stepping, signed("discord", b'{"type":2}', path="/discord"), 3.2),
            "page": (stepping, Webhook("https://h/page", None, []), 9.3),
            "over": (plain, slack("Ev4", path="/over"), 3.2),
            "half": (people, slack("Ev5", path="/half"), 1.8),
        }
        with ThreadPoolExecutor(len(asked)) as pool:
            replies = {name: pool.submit(self._timed, *one) for name, one in asked.items()}
        self.replies = {name: reply.result() for name, reply in replies.items()}

    @staticmethod
    def _timed(station, webhook, sleep, answer="200"):
        headers = [*webhook.headers, ("X-Sleep", str(sleep)), ("X-Answer", answer)]
        method = "GET" if webhook.body is None else "POST"
        began = time.monotonic()
        with station.world.wire(station.name) as wire:
            reply = wire.ask(request(method, webhook.target, webhook.body, host=station.host, headers=headers))
        return reply, time.monotonic() - began


@pytest.fixture(scope="module")
def slow(station, plain, people):
    return Slow(station("stepping", *FLAGS, "--breakpoint", "-v"), plain, people)


def test_at_a_breakpoint_the_sender_is_answered_in_time(slow):
    desk = slow.stepping
    for name in ("late", "fails"):
        reply, took = slow.replies[name]
        assert reply.status == ACCEPTED and 1.5 < took < 3 and reply.header("hookway-answered-by") == "client"
    reply, took = slow.replies["soon"]
    assert (reply.status, reply.body) == (OK, b"said") and took < 1.5
    assert desk.client.delivery(path="/soon")["acked_ms"] is None
    line = desk.client.delivery(path="/late")
    assert (line["status"], line["deadline_ms"]) == (OK, 3000.0) and 1500 < line["acked_ms"] < 3000
    assert line["duration_ms"] > 5900
    # The app's late answer is kept.
    whole = desk.show(line["id"])
    assert whole["summary"]["acked_ms"] == pytest.approx(line["acked_ms"], abs=1)
    assert whole["timings"]["acked_ms"] == whole["summary"]["acked_ms"]
    attempt = whole["attempts"][0]
    assert (attempt["status"], attempt["reply"]["body"]["text"]) == (OK, "said") and attempt["duration_ms"] > 5900
    line = desk.client.delivery(path="/fails")
    assert (line["status"], line["error"]) == (500, None) and line["acked_ms"]
    assert "202 sent before 3 s" in good(desk.run("requests", "list", "--filter", "path:/late")).text


FREE_PORTS = ("--http", "127.0.0.1:0", "--https", "127.0.0.1:0")


@pytest.mark.parametrize("name", ["challenge", "command", "discord", "page"])
def test_breakpoints_leave_alone_what_wants_the_app_s_answer(slow, name):
    """Early answers are never blind: a page, and replies whose body matters."""
    reply, took = slow.replies[name]
    assert (reply.status, reply.body) == (OK, b"said") and took > 3
    assert slow.stepping.client.delivery(path=f"/{name}")["acked_ms"] is None


def test_without_one_the_deadline_is_said(slow, plain, people):
    assert slow.replies["over"][0].status == slow.replies["half"][0].status == OK
    line = plain.client.delivery(path="/over")
    assert line["deadline_ms"] == 3000.0 and line["duration_ms"] > 3000 and line["acked_ms"] is None
    (half,) = eventually(lambda: [line for line in people.delivery_lines() if "/half" in line], what="the line")
    assert "of 3 s" in half and "time out" not in half


def test_after_an_early_answer_the_next_are_put_to_the_app_at_once(station):
    """The stream of one that the app is still at is not kept from the others."""
    desk = station("after-ack", *FLAGS, "--breakpoint")
    reply, _ = Slow._timed(desk, slack("EvA", path="/late"), 12)
    assert reply.status == 202
    for number in range(3):
        reply, _ = Slow._timed(desk, slack(f"EvB{number}", path="/soon"), 0)
        assert reply.status == 200


def test_the_demo_s_sample_is_signed_well_enough_for_itself(hookway):
    done = hookway("dev", "--demo", "--once", "--require-signature", "--no-inspect", "--json", *FREE_PORTS)
    assert done.returncode == 0, done
    (line,) = [line for line in map(json.loads, done.stdout.splitlines()) if line["event"] == "delivery"]
    assert (line["signature"], line["status"]) == ("ok", OK)


def test_breakpoints_want_a_history(hookway):
    done = hookway("3000", "--relay", "127.0.0.1:1", "--breakpoint", "--no-store")
    assert done.returncode == 2 and "--no-store" in done.stderr


# ── lines for people ──────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_have_at_most_100_cells(people):
    wide = stripe("evt_wide", path="/" + "a-very-long-path/" * 9)
    before = len(people.delivery_lines())
    webhooks = [
        stripe("evt_p1"), stripe("evt_p1"), stripe("evt_p2", 2), wide, wide, signed("gitlab", path="/g?token=x&y=" + "z" * 99),
        Webhook("https://h/" + "%E6%B3%A8" * 30, b"x" * 123456, signed("github").headers),
    ]  # fmt: skip
    for webhook in webhooks:
        for answer in ("200", "503"):
            people.ask("POST", webhook.target, webhook.body, [*webhook.headers, ("X-Answer", answer)])
    lines = eventually(
        lambda: len(people.delivery_lines()) == before + 14 and people.delivery_lines()[before:], what="the lines"
    )
    assert all(cells(line) <= 100 for line in lines), [line for line in lines if cells(line) > 100]
    assert "sig ok" in lines[0] and "duplicate of" not in lines[0]
    # A line waits for its sentence.
    assert sum("sig bad" in line for line in lines) == 4 and sum("sig ok" in line for line in lines) == 10
    for words in (["requests", "list"], ["requests", "list", "--since", "1h"]):
        listed = good(people.run(*words)).lines
        assert len(listed) >= 14 and all(cells(line) <= 100 for line in listed), max(listed, key=cells)
    # All that is said about a path's secrets is masked.
    assert "token=x" not in "\n".join(lines)


def test_a_line_tells_what_matters(slow, plain):
    """On a line of 100 cells there is room for it whatever else there is."""
    webhook = stripe("evt_tag", now=time.time() - 100)
    first, again = plain.line(webhook), plain.line(webhook)
    (replay,) = good(plain.run("replay", first["id"], *FLAGS, "--json")).json
    wanted = {
        plain.client.delivery(path="/over")["id"]: ["sig ok", "would time out"],
        again["id"]: ["sig ok", "duplicate of req_…" + first["id"][-4:]],
        replay["id"]: ["replay of req_", "re-signed"],
    }
    for number, tags in wanted.items():
        (line,) = good(plain.run("requests", "list", "--filter", f"id:{number}")).lines
        assert all(tag in line for tag in tags) and cells(line) <= 100, line


def test_a_provider_without_a_secret_is_hinted_at_once(station, plain):
    hints = [event["text"] for event in plain.client.events if event["event"] == "hint"]
    for webhook in (signed("shopify"), signed("shopify"), stripe("evt_h")):
        plain.line(webhook)
    plain.client.event("hint", lambda hint: "shopify=SHOPIFY" in hint["text"])
    hints = [event["text"] for event in plain.client.events if event["event"] == "hint"]
    assert len([hint for hint in hints if "Shopify" in hint]) == 1
    assert not any("Stripe" in hint for hint in hints)
    desk = station("unsure", json_lines=False)
    for _ in range(3):
        assert desk.ask("POST", "/s", b"{}", stripe("evt").headers).status == OK
    eventually(lambda: len(desk.delivery_lines()) == 3)
    said = desk.client.errors.read_text()
    assert said.count("--verify stripe=STRIPE_WEBHOOK_SECRET") == 1, said
    assert "warning" not in said


# ── hookway send ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sent(world, tmp_path):
    """`sent(*words)`: a `hookway send` to an app of its own, and what that saw."""
    app = world.app(answer=statuses)

    def send(*words, to=None, code=0, path="/in?a=1", **environment):
        seen = len(app.seen)
        done = command(
            "send", *words, "--to", to or f"http://localhost:{app.port}{path}", folder=tmp_path, **environment
        )
        assert done.code == code, done
        return done, app.seen[seen] if len(app.seen) > seen else None

    send.app = app
    return send


G = {"GITHUB_WEBHOOK_SECRET": ENVIRONMENT["GITHUB"]}


def test_send_signs_with_the_usual_variable(sent):
    done, seen = sent("github", **G)
    assert (seen.method, seen.target, seen.header("content-type")) == ("POST", "/in?a=1", "application/json")
    assert seen.header("host") == f"localhost:{sent.app.port}" and seen.header("x-github-event") == "push"
    assert seen.header("x-hub-signature-256") == "sha256=" + mac(ENVIRONMENT["GITHUB"], seen.body).hexdigest()
    assert re.match(r"200   \d+ ms   push   [0-9a-f-]{36}$", done.text.strip()), done.text
    assert "not signed" not in done.said


def test_send_says_it_in_json(sent):
    done, seen = sent("stripe", "charge.refunded", "--json", "--secret-env", "S", S=ENVIRONMENT["STRIPE_OTHER"])
    (line,) = done.json
    assert (line["event"], line["provider"], line["event_type"], line["signed"]) == (
        "sent",
        "stripe",
        "charge.refunded",
        True,
    )
    assert (line["status"], line["error"], line["event_id"]) == (OK, None, json.loads(seen.body)["id"])


def test_send_without_a_secret_is_unsigned_and_says_so(sent):
    done, seen = sent("stripe")
    assert (
        seen.header("stripe-signature") is None and "not signed" in done.said and "STRIPE_WEBHOOK_SECRET" in done.said
    )
    done, seen = sent("discord")
    assert seen.header("x-signature-ed25519") is None and "hookway keys create discord" in done.said
    assert sent("stripe", "--json")[0].json[0]["signed"] is False


def test_send_signs_with_the_files_secret(sent, tmp_path):
    (tmp_path / "hookway.toml").write_text("[[verify]]\nprovider = 'github'\nsecret-file = 'gh'\n")
    (tmp_path / "gh").write_text("of the file\n")
    _, seen = sent("github", **G)
    assert seen.header("x-hub-signature-256") == "sha256=" + mac("of the file", seen.body).hexdigest()


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        (["data.object.amount=500"], ["data", "object", "amount"], 500),
        (["livemode=true"], ["livemode"], True),
        (["data.object.description=two words"], ["data", "object", "description"], "two words"),
        (['data.object.metadata={"a":[1]}'], ["data", "object", "metadata"], {"a": [1]}),
        (["data.object.metadata.order=7"], ["data", "object", "metadata", "order"], 7),
        (["data.object.brand_new=x"], ["data", "object", "brand_new"], "x"),
        (["type=", "id=evt_7"], ["type"], ""),
        (["data.object.description=a=b"], ["data", "object", "description"], "a=b"),
        (['data.object.description="7"'], ["data", "object", "description"], "7"),
        (['data.object.description=€ "q"'], ["data", "object", "description"], '€ "q"'),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_send_sets_values(sent, words, path, value):
    flags = [word for one in words for word in ("--set", one)]
    _, seen = sent("stripe", "charge.refunded", *flags)
    found = json.loads(seen.body)
    for key in path:
        found = found[key]
    assert found == value and type(found) is type(value)


def test_send_sets_elements_of_lists(sent):
    _, seen = sent("github", "push", "--set", "commits.0.id=abc", "--set", "commits.0.modified.0=new.txt")
    commits = json.loads(seen.body)["commits"]
    assert commits[0]["id"] == "abc" and commits[0]["modified"][0] == "new.txt"
    done, _ = sent("github", "push", "--set", "commits.99.id=abc", code=2)
    assert "commits.99.id" in done.said
    done, _ = sent("github", "push", "--set", "commits.first.id=abc", code=2)
    assert "commits.first.id" in done.said


def test_send_sets_fields_of_a_form(sent):
    _, seen = sent("twilio", "sms", "--set", "Body=a b&c=7", "--set", "NumMedia=3")
    assert b"Body=a+b%26c%3D7" in seen.body and b"NumMedia=3" in seen.body


@pytest.mark.parametrize(
    ("words", "tells"),
    [
        (["stripe", "--set", "data.nothing.amount=1"], "nothing"),
        (["stripe", "--set", "id.x=1"], "id"),
        (["stripe", "--set", "amount"], "PATH=VALUE"),
        (["stripe", "chrge.refunded"], "did you mean charge.refunded?"),
        (["stripe", "nothing-like-it"], "--list"),
        (["stripe", "--set", "id=1", "--file", "x"], "--file"),
        (["stripe", "--file", "there-is-none"], "there-is-none"),
    ],
)
def test_send_says_what_is_wrong_and_sends_nothing(sent, words, tells):
    code = 1 if "there-is-none" in words else 2
    done, seen = sent(*words, code=code)
    assert seen is None and tells in done.said and done.raw == b"", done


def test_send_takes_a_file(sent, tmp_path):
    (tmp_path / "body").write_bytes(b'{"id": "evt_file"}\n')
    _, seen = sent("stripe", "--file", tmp_path / "body", "--secret-env", "S", S=ENVIRONMENT["STRIPE_OTHER"])
    assert seen.body == b'{"id": "evt_file"}\n'
    webhook = Webhook("", seen.body, seen.headers)
    assert BY_NAME["stripe"].documentation(ENVIRONMENT["STRIPE_OTHER"], webhook)
    done = command(
        "send",
        "github",
        "--file",
        "-",
        "--to",
        f"http://127.0.0.1:{sent.app.port}/stdin",
        folder=tmp_path,
        stdin=b"\xff\x00",
    )
    assert done.code == 0 and sent.app.seen[-1].body == b"\xff\x00"


def test_send_adds_fields(sent):
    _, seen = sent(
        "github",
        "-H",
        "X-Mine: 1",
        "-H",
        "User-Agent: me",
        "-H",
        "X-GitHub-Event: ping",
        "-H",
        "X-Hub-Signature-256: sha256=00",
        **G,
    )
    assert (seen.header("x-mine"), seen.all("user-agent"), seen.all("x-github-event")) == ("1", ["me"], ["ping"])
    # Put there to try what the app does with a bad one.
    assert seen.all("x-hub-signature-256") == ["sha256=00"]


def test_send_dry_shows_what_it_would_send(sent):
    done, seen = sent("github", "push", "--dry-run", "--set", "ref=refs/heads/x", **G)
    assert seen is None and done.lines[0] == f"POST http://localhost:{sent.app.port}/in?a=1"
    head, _, body = done.text.partition("\n\n")
    assert "x-github-event: push" in head and json.loads(body)["ref"] == "refs/heads/x"
    signature = re.search(r"x-hub-signature-256: sha256=(\w+)", head).group(1)
    assert signature == mac(ENVIRONMENT["GITHUB"], body.removesuffix("\n")).hexdigest()
    (line,) = sent("github", "--dry-run", "--json", **G)[0].json
    assert line["event"] == "unsent" and json.loads(line["body"]) and ["x-github-event", "push"] in line["headers"]


def test_send_lists_its_samples(tmp_path):
    listed = good(command("send", "stripe", "--list", folder=tmp_path)).lines
    assert "charge.refunded" in listed and listed == sorted(listed)
    rows = good(command("send", "stripe", "--list", "--json", folder=tmp_path)).json
    assert [row["sample"] for row in rows] == listed and sum(row["usual"] for row in rows) == 1
    assert command("send", "stripe", folder=tmp_path).code == 2


def test_send_twilio_in_both_forms(sent):
    token = {"TWILIO_AUTH_TOKEN": "canary-token-7f3a"}
    _, seen = sent("twilio", **token)
    assert seen.header("content-type").startswith("application/x-www-form-urlencoded") and b"Body=" in seen.body
    origin = f"http://localhost:{sent.app.port}"
    assert BY_NAME["twilio"].verify(token["TWILIO_AUTH_TOKEN"], Webhook(origin + seen.target, seen.body, seen.headers))
    _, seen = sent("twilio", "--json-body", **token)
    assert (
        seen.header("content-type") == "application/json"
        and "bodySHA256=" in seen.target
        and seen.target.startswith("/in?a=1&")
    )
    assert BY_NAME["twilio-json"].verify(
        token["TWILIO_AUTH_TOKEN"], Webhook(origin + seen.target, seen.body, seen.headers)
    )


@pytest.mark.parametrize("status", [200, 204, 302, 400, 401, 404, 500, 503])
def test_send_ends_as_the_answer_was(sent, status):
    done, _ = sent("github", "-H", f"X-Answer: {status}", code=6 if status >= 400 else 0)
    assert done.text.startswith(str(status))
    if status >= 400:
        assert "said" in done.text and str(status) in done.said


def test_send_to_nobody(sent, tmp_path):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    done, _ = sent("github", to=f"http://127.0.0.1:{port}/", code=6)
    assert "refused" in done.said and done.raw == b""
    (line,) = command("send", "github", "--json", "--to", f"http://127.0.0.1:{port}/", folder=tmp_path).json
    assert (line["status"], line["error"]) == (None, "refused")
    done, _ = sent("github", "-H", "X-Sleep: 2", "--timeout", "300ms", code=6)
    assert "no answer within 0.3 s" in done.said
    for wrong in ("localhost:3000", "ftp://localhost/", "/hook"):
        assert sent("github", to=wrong, code=2)[0].said


def test_send_to_names_of_this_machine(world, tmp_path):
    """`hookway dev` and `hookway send` as the first run shows them."""
    app = world.app()
    words = ["dev", app.address, "--json", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--no-inspect"]
    dev = Program("dev", [HOOKWAY, *words, "--verify", "github=GITHUB"], tmp_path / "dev", ENVIRONMENT)
    try:
        origin = dev.event("ready")["http"]
        port = origin.rpartition(":")[2]
        for host in ("localhost", "demo.localhost", "127.0.0.1"):
            done = command("send", "github", "--to", f"http://{host}:{port}/{host}", folder=tmp_path, **G)
            assert done.code == 0, done
            line = dev.event("delivery", lambda line, host=host: line["path"] == f"/{host}")
            assert (line["signature"], line["event_type"], line["endpoint"]) == ("ok", "push", "demo")
        assert command("send", "github", "--to", f"http://nobody.localhost:{port}/", folder=tmp_path, **G).code == 6
        # What is signed for the public URL is good there, too: Square's and Twilio's.
        done = command(
            "send",
            "square",
            "--to",
            f"http://demo.localhost:{port}/square",
            folder=tmp_path,
            SQUARE_WEBHOOK_SIGNATURE_KEY="k",
        )
        assert done.code == 0
    finally:
        assert dev.stop() == 0


# ── hookway verify, hookway keys ──────────────────────────────────────────────────────────────────────────────────


def test_verify_says_it_by_its_exit_code(tmp_path):
    webhook, old = stripe(), stripe(now=1_700_000_000)
    (tmp_path / "body").write_bytes(webhook.body)
    (tmp_path / "other").write_bytes(webhook.body + b" ")
    field = ["-H", f"Stripe-Signature: {webhook.fields['stripe-signature']}"]

    def run(*words, **environment):
        return command("verify", "stripe", *words, folder=tmp_path, **(ENVIRONMENT | environment))

    done = good(run("body", *field))
    assert done.text == "stripe  sig ok, made with STRIPE_WEBHOOK_SECRET   charge.succeeded\n"
    assert run("body", *field, "--secret-env", "STRIPE_OTHER").code == 1
    assert run("body", *field, "--secret-env", "STRIPE_OTHER", "--secret-env", "STRIPE_WEBHOOK_SECRET").code == 0
    assert run("other", *field).code == 1
    assert run("body").code == 1 and "none" in run("body").text
    assert run("nothing-there", *field).code == 1 and run("nothing-there", *field).raw == b""
    assert run("body", *field, "--secret-env", "NOT_SET").code == 7
    assert run("body", *field, "--at", "noon").code == 2 and run().code == 2
    field = ["-H", f"Stripe-Signature: {old.fields['stripe-signature']}"]
    assert run("body", *field).code == 1
    for moment in ("1700000000", "1700000300", "2023-11-14T22:13:20Z", "2023-11-14T23:18:19+01:00"):
        good(run("body", *field, "--at", moment))
    (line,) = run("other", *field, "--json", "--at", "1700000000").json
    assert (line["event"], line["provider"], line["signature"], line["signature_secret"]) == (
        "verified",
        "stripe",
        "bad",
        None,
    )
    assert line["signature_detail"] and (line["event_type"], line["event_id"]) == ("charge.succeeded", "evt_1")
    (line,) = run("body", *field, "--json", "--at", "1700000000").json
    assert (line["signature"], line["signature_secret"], line["signature_detail"]) == (
        "ok",
        "STRIPE_WEBHOOK_SECRET",
        None,
    )
    done = command(
        "verify", "stripe", "-", *field, "--at", "1700000000", folder=tmp_path, stdin=webhook.body, **ENVIRONMENT
    )
    assert done.code == 0, done


@pytest.mark.parametrize(
    ("name", "form"),
    [("discord", r"[0-9a-f]{64}"), ("sendgrid", r"[A-Za-z0-9+/]{122}=="), ("standard", r"whpk_[A-Za-z0-9+/]{43}=")],
)
def test_keys_of_one_s_own(tmp_path, name, form):
    run = lambda *words: command("keys", *words, folder=tmp_path)  # noqa: E731
    said = failed(run("show", name), 1)
    assert f"hookway keys create {name}" in said
    done = good(run("create", name))
    (public,) = done.lines
    assert re.fullmatch(form, public) and "private half" in done.said
    assert good(run("create", name)).lines == good(run("show", name)).lines == [public]
    (shown,) = good(run("show", name, "--json")).json
    assert (shown["provider"], shown["public_key"], shown["created"]) == (name, public, False)
    mode = os.stat(shown["path"]).st_mode
    assert stat.S_IMODE(mode) == 0o600 and stat.S_IMODE(os.stat(os.path.dirname(shown["path"])).st_mode) == 0o700
    with open(shown["path"], "wb") as file:
        file.write(b"no key")
    assert shown["path"] in failed(run("show", name), 1) and failed(run("create", name), 1)
    # The way that it names.
    os.remove(shown["path"])
    assert good(run("create", name)).lines != [public]


def test_keys_are_for_some_only(tmp_path):
    for name in ("github", "stripe", "hmac"):
        assert failed(command("keys", "create", name, folder=tmp_path), 2)


def test_an_own_key_signs_and_checks(station):
    """What `hookway send` signs with it is good to a client of the same developer, without any flag."""
    desk = station("owned")
    good(desk.run("keys", "create", "discord"))
    # It is read at the start.
    assert desk.client.stop() == 0
    desk.begin(desk.app)
    (dry,) = good(desk.run("send", "discord", "--to", f"https://{desk.host}/own", "--dry-run", "--json")).json
    headers = [(name, value) for name, value in dry["headers"] if name != "host"]
    line = desk.line(
        Webhook(f"https://{desk.host}/own", dry["body"].encode(), [p for p in headers if p[0] != "content-length"])
    )
    assert (line["signature"], line["provider"]) == ("ok", "discord")
    # Discord's own is not bad for it: nobody was told its key.
    assert desk.line(signed("discord"))["signature"] == "none"


# ── replays ───────────────────────────────────────────────────────────────────────────────────────────────────────


def good_by(name, seen):
    """Whether what the app saw has a good signature by the provider's own rules, at this moment."""
    return BY_NAME[name].documentation(BY_NAME[name].key().verifies, Webhook("", seen.body, seen.headers))


def test_an_old_one_is_signed_afresh(plain):
    webhook = stripe("evt_old", now=time.time() - 100)
    line = plain.line(webhook)
    assert line["signature"] == "ok"
    (again,) = good(plain.run("replay", line["id"], *FLAGS, "--json")).json
    seen = plain.app.seen[-1]
    moment = BY_NAME["stripe"].moment(Webhook("", b"", seen.headers))
    assert (again["resigned"], again["signature"], again["replay_of"]) == (True, "ok", line["id"])
    assert time.time() - moment < 20 and good_by("stripe", seen)
    # The history keeps what came.
    kept = plain.show(line["id"], "--secrets")
    assert pairs(kept["request"]["headers"], "stripe-signature") == [
        ("stripe-signature", webhook.fields["stripe-signature"])
    ]
    assert kept["summary"]["resigned"] is False
    # As it was, where told.
    (again,) = good(plain.run("replay", line["id"], *FLAGS, "--no-resign", "--json")).json
    assert again["resigned"] is False
    assert plain.app.seen[-1].header("stripe-signature") == webhook.fields["stripe-signature"]


def test_a_bad_one_stays_bad(plain):
    line = plain.line(stripe("evt_bad", 2, now=time.time() - 100))
    for more in ([], ["-H", "X-More: 1"]):
        (again,) = good(plain.run("replay", line["id"], *FLAGS, "--json", *more)).json
        assert (again["resigned"], again["signature"]) == (False, "bad"), more


def test_a_replay_without_the_secret_says_so(plain):
    line = plain.line(stripe("evt_unset"))
    assert "NOT_SET" in failed(plain.run("replay", line["id"], "--verify", "stripe=NOT_SET"), 7)
    (again,) = good(plain.run("replay", line["id"], "--json")).json
    assert (again["resigned"], again["signature"]) == (False, "none")


def test_without_a_time_there_is_nothing_to_renew(plain):
    line = plain.line(signed("github", path="/renew"))
    (again,) = good(plain.run("replay", line["id"], *FLAGS, "--json")).json
    assert (again["resigned"], again["signature"]) == (False, "ok")
    same_request(plain.app.seen[-2], plain.app.seen[-1])


@pytest.mark.parametrize("name", ["stripe", "github"])
def test_an_edited_one_is_signed_anew(plain, name, tmp_path):
    webhook = stripe("evt_edit") if name == "stripe" else signed("github", compact({"id": "evt_edit"}))
    line = plain.line(webhook)
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i s/evt_edit/evt_changed/ "$1"\n')
    editor.chmod(0o755)
    (again,) = good(plain.run("replay", line["id"], *FLAGS, "--edit", "--json", EDITOR=editor)).json
    seen = plain.app.seen[-1]
    assert b"evt_changed" in seen.body and good_by(name, seen)
    assert (again["resigned"], again["edited"], again["signature"]) == (True, True, "ok")
    (again,) = good(plain.run("replay", line["id"], *FLAGS, "--edit", "--no-resign", "--json", EDITOR=editor)).json
    assert (again["resigned"], again["signature"]) == (False, "bad") and not good_by(name, plain.app.seen[-1])
    (again,) = good(plain.run("replay", line["id"], *FLAGS, "-H", "X-More: 1", "--json")).json
    assert (again["resigned"], again["signature"]) == (True, "ok") and plain.app.seen[-1].header("x-more") == "1"
    assert good_by(name, plain.app.seen[-1])


def test_the_inspector_signs_afresh_unless_told(plain):
    line = plain.line(stripe("evt_ui", now=time.time() - 100))

    def post(edits):
        answer = put(plain.client, f"/api/exchanges/{line['id']}/replay", edits, "POST")
        return answer["summary"], plain.app.seen[-1]

    for edits, resigned, verdict in (
        ({}, True, "ok"),
        ({"resign": True}, True, "ok"),
        ({"resign": False}, False, "ok"),
        ({"body": {"text": '{"id":"evt_other"}'}}, True, "ok"),
        ({"body": {"text": '{"id":"evt_other"}'}, "resign": False}, False, "bad"),
        ({"path": "/elsewhere", "resign": True}, True, "ok"),
    ):
        summary, seen = post(edits)
        assert (summary["resigned"], summary["signature"]) == (resigned, verdict), edits
        assert good_by("stripe", seen) is (verdict == "ok"), edits


# ── looking for them ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def looked(station):
    """A history of a few kinds."""
    desk = station("looked", *FLAGS)
    lines = {
        "good": desk.line(stripe("evt_1", now=time.time() - 60)),
        "twice": desk.line(stripe("evt_1")),
        "bad": desk.line(stripe("evt_2", 2, kind="charge.failed")),
        "other": desk.line(stripe("evt_3", kind="invoice.paid")),
        "github": desk.line(signed("github")),
        "gitlab": desk.line(signed("gitlab")),
        "shopify": desk.line(signed("shopify")),
        "page": desk.line(Webhook("https://h/page", b"", [])),
    }
    desk.ids = {name: line["id"] for name, line in lines.items()}
    (again,) = good(desk.run("replay", desk.ids["good"], *FLAGS, "--json")).json
    desk.ids["resigned"] = again["id"]
    return desk


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("sig:ok", "good twice other github gitlab resigned"),
        ("sig:bad", "bad"),
        ("sig:none", "shopify page"),
        ("provider:stripe", "good twice bad other resigned"),
        ("provider:GitHub", "github"),
        ("event:charge*", "good twice bad resigned"),
        ("event:charge.", "good twice bad resigned"),
        ("event:*paid", "other shopify"),
        ("is:duplicate", "twice"),
        ("is:resigned", "resigned"),
        ("provider:stripe -sig:ok", "bad"),
        ("is:replay is:resigned", "resigned"),
    ],
)
def test_filters_know_webhooks(looked, words, expected):
    expected = expected.split() if words != "event:*paid" else ["other"]
    found = {one["id"] for one in looked.list("--filter", words)}
    names = {number: name for name, number in looked.ids.items()}
    assert {names[number] for number in found} == set(expected)


def test_only_what_is_wanted_is_printed(station):
    desk = station("wanted", *FLAGS, "--filter", "sig:bad provider:stripe")
    for webhook in (stripe("evt_1"), signed("github", number=1), stripe("evt_2", 2), stripe("evt_3", 2, kind="last")):
        desk.ask("POST", webhook.target, webhook.body, webhook.headers)
    # A line waits for its sentence.
    desk.client.wait(lambda: len(desk.client.deliveries()) >= 2)
    assert {line["event_id"] for line in desk.client.deliveries()} == {"evt_2", "evt_3"}
    assert len(desk.list()) == 4


def test_a_filter_s_wrong_value_is_said(looked):
    assert "ok" in looked.run("requests", "list", "--filter", "sig:fine").said
    assert "duplicate" in looked.run("requests", "list", "--filter", "is:dupe").said


FIELDS = ("provider", "event_type", "event_id", "signature", "signature_detail", "signature_secret", "resigned", "duplicate_of",
          "deadline_ms", "acked_ms", "replay_of", "edited")  # fmt: skip


def test_an_export_keeps_what_is_known_of_webhooks(looked, tmp_path):
    written = good(looked.run("requests", "export", "--jsonl", "--secrets")).raw
    (tmp_path / "all.jsonl").write_bytes(written)
    good(command("requests", "import", tmp_path / "all.jsonl", folder=tmp_path))
    there = good(command("requests", "list", "--json", folder=tmp_path)).json
    here = good(looked.run("requests", "list", "--json")).json
    assert len(there) == len(here) == 9
    for one, other in zip(here, there, strict=True):
        assert {name: one[name] for name in FIELDS} == {name: other[name] for name in FIELDS}
    # So a repeat is one, and what was good can be put to the app again, freshly signed.
    (again,) = good(command("replay", looked.ids["good"], *FLAGS, "--json", folder=tmp_path, **ENVIRONMENT)).json
    assert again["resigned"] is True


def test_no_secret_leaves_the_history_unasked(looked):
    secrets = list(ENVIRONMENT.values())
    said = ""
    for words in (
        ["list"], ["list", "--json"], ["export", "--jsonl"], ["export", "--har"], ["export", "--curl", looked.ids["gitlab"]],
        ["show", looked.ids["gitlab"]], ["show", looked.ids["gitlab"], "--json"], ["show", looked.ids["good"], "--json"],
        ["diff", looked.ids["good"], looked.ids["resigned"]],
    ):  # fmt: skip
        done = looked.run("-v", "requests", *words)
        assert done.code in (0, 1), done
        said += done.text + done.said
    assert not [secret for secret in secrets if secret.removeprefix("whsec_") in said]
    signatures = [signed("gitlab").fields["x-gitlab-token"], signed("github").fields["x-hub-signature-256"]]
    assert not [signature for signature in signatures if signature in said]
    # Asked for, they are there; the app's own secret that is sent as it is, too.
    assert (
        ENVIRONMENT["GITLAB"] in good(looked.run("requests", "show", looked.ids["gitlab"], "--json", "--secrets")).text
    )
    # Nor does the file hold them in the clear.
    for path in looked.data.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in data], path
