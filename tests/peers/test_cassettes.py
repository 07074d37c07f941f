"""`hookway record` and `hookway replay --cassette`: webhooks in a file without secrets, put to an app by a test suite
in any language; the app judges them by the providers' own SDKs."""

import base64
import contextlib
import gzip
import json
import re
import subprocess
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest
from sdks import BODIES, BY_NAME, CLEF, FORM, MIB, PROVIDERS, Webhook, base64_of, mac
from test_drill import AGENTS, CANARY, HOST, Book, answer, event
from test_history import Desk, command, failed, good, own_marks
from test_semantics import SleepingApp

from world import DEADLINE, HOOKWAY, Program, RawApp, eventually, lacking

OWN_KEYS = ("sendgrid", "discord", "standard-v1a")
SHARED = [provider.name for provider in PROVIDERS if provider.name not in OWN_KEYS]
# As each provider's documentation calls it; a CI job sets these.
USUAL = {
    "stripe": "STRIPE_WEBHOOK_SECRET",
    "github": "GITHUB_WEBHOOK_SECRET",
    "slack": "SLACK_SIGNING_SECRET",
    "shopify": "SHOPIFY_API_SECRET",
    "twilio": "TWILIO_AUTH_TOKEN",
    "standard": "WEBHOOK_SECRET",
    "square": "SQUARE_WEBHOOK_SIGNATURE_KEY",
    "gitlab": "GITLAB_WEBHOOK_TOKEN",
    "linear": "LINEAR_WEBHOOK_SECRET",
    "paddle": "PADDLE_WEBHOOK_SECRET",
    "zoom": "ZOOM_WEBHOOK_SECRET_TOKEN",
    "mailgun": "MAILGUN_WEBHOOK_SIGNING_KEY",
}
SECRETS = {USUAL[BY_NAME[name].provider]: BY_NAME[name].key().verifies for name in SHARED}
STRIPE, GITHUB = BY_NAME["stripe"], BY_NAME["github"]


# ── a cassette, and an app that is under test ─────────────────────────────────────────────────────────────────────


class Suite(Book):
    """A history, the cassettes made of it, and the app that they are played to."""

    file = "webhooks.jsonl"

    def record(self, *words):
        """`hookway record`: the lines of the cassette."""
        (said,) = good(self.run("record", "--out", self.file, "--json", *words)).json
        lines = self.lines()
        assert said["event"] == "recorded" and said["count"] == len(lines), said
        return lines

    def text(self):
        return (self.folder / self.file).read_text()

    def lines(self):
        return [json.loads(line) for line in self.text().splitlines()]

    def write(self, *lines):
        """A cassette by hand: objects or bytes."""
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (self.folder / self.file).write_bytes(b"".join(line + b"\n" for line in raw))

    def play(self, *words, **environment):
        words = ["replay", "--cassette", self.file, "--to", self.app.address, *words]
        return self.run(*words, **(SECRETS | environment))

    def seen(self):
        return [Webhook(f"https://{HOST}{seen.target}", seen.body, seen.headers) for seen in self.app.seen]


@pytest.fixture
def apps():
    with contextlib.ExitStack() as stack:
        yield lambda character=lambda *_: answer(): stack.enter_context(RawApp(answer=character))


@pytest.fixture
def suite(tmp_path, apps):
    return Suite(tmp_path, apps())


def plain(number=1, **more):
    return {"cassette": 1, "method": "POST", "path": f"/{number}"} | more


def one(provider, name="4-byte", number=0, age=3600):
    """An old webhook of a provider's, with the fields by which it is known."""
    webhook = provider.sign(provider.key(number), provider.body(name), f"https://{HOST}/hook?a=%27", time.time() - age)
    webhook.headers = [*AGENTS.get(provider.name, ()), *webhook.headers]
    return webhook


def signatures(provider, webhook):
    """The values in it that nobody else may see."""
    made = {name for name, _ in provider.signature(provider.key(), webhook.body, webhook.url, 0)}
    made = {name for name in made if not name.lower().endswith(("-timestamp", "-id"))}
    values = [value for name, value in webhook.headers if name in made]
    if provider.name == "mailgun":
        values = [json.loads(webhook.body)["signature"]["signature"], json.loads(webhook.body)["signature"]["token"]]
    return [value.rpartition("v1=")[2] for value in values]


# ── recorded without secrets, replayed with good signatures ───────────────────────────────────────────────────────


@pytest.mark.parametrize("name", SHARED)
def test_what_is_recorded_holds_no_secret_and_is_accepted_by_the_sdks(suite, name):
    provider = BY_NAME[name]
    webhook = one(provider)
    suite.keep(webhook, provider, signature="ok")
    (line,) = suite.record()
    secrets = signatures(provider, webhook) + [provider.key().verifies]
    assert all(len(secret) > 20 and secret not in suite.text() for secret in secrets), suite.text()
    assert (line["cassette"], line["provider"], line["signed"]) == (1, provider.provider, True)
    before = int(time.time())
    good(suite.play())
    (fresh,) = suite.seen()
    verdicts = provider.verdicts(provider.key().verifies, fresh)
    assert set(verdicts.values()) <= {True, None} and verdicts["documentation"], (verdicts, fresh.headers)
    with contextlib.suppress(NotImplementedError):
        assert before <= provider.moment(fresh) <= time.time()
    assert fresh.target == webhook.target
    if provider.nearest != "JSON":
        assert fresh.body == webhook.body


@pytest.mark.parametrize("name", OWN_KEYS)
def test_with_a_key_of_ones_own_where_only_the_provider_has_the_other(suite, name):
    provider = BY_NAME[name]
    suite.keep(one(provider), provider)
    suite.record()
    if provider.name != "standard-v1a":
        said = failed(suite.play(WEBHOOK_SECRET=""), 7)
        assert f"hookway keys create {provider.provider}" in said, said
        assert not suite.app.seen
    good(suite.run("keys", "create", provider.provider))
    (shown,) = good(suite.run("keys", "show", provider.provider, "--json")).json
    good(suite.run("replay", "--cassette", suite.file, "--to", suite.app.address))
    (fresh,) = suite.seen()
    assert provider.verify(shown["public_key"], fresh)


@pytest.mark.parametrize("body", BODIES)
def test_a_body_is_byte_for_byte_what_it_was(suite, body):
    """Signed by a scheme that takes any body, and as nobody's at all."""
    provider = BY_NAME["standard"]
    webhook = one(provider, body)
    suite.keep(webhook, provider)
    other = Webhook(f"https://{HOST}/other", BODIES[body], [("Content-Type", "text/plain")])
    suite.keep(other, age=10)
    assert len(suite.record()) == 2
    # A line each, whatever is in it.
    assert suite.text().count("\n") == 2 and len(re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", suite.text())) == 0
    good(suite.play())
    signed, unsigned = suite.seen()
    assert signed.body == unsigned.body == BODIES[body]
    assert provider.verify(provider.key().verifies, signed)


def test_the_order_is_that_in_which_they_came(suite):
    numbers = [suite.keep(Webhook(f"https://{HOST}/{n}", b"", []), age=3600 - n) for n in range(30)]
    assert [line["path"] for line in suite.record()] == [f"/{n}" for n in range(30)]
    good(suite.play())
    assert [seen.target for seen in suite.app.seen] == [f"/{n}" for n in range(30)]
    # Those that are named come in the order in which they are named.
    chosen = [numbers[7], numbers[3], numbers[20]]
    assert [line["path"] for line in suite.record(*chosen)] == ["/7", "/3", "/20"]
    assert [line["path"] for line in suite.record("@1", "@2")] == ["/29", "/28"]


def test_fields_stay_in_their_order_and_number(suite):
    fields = [("X-Id", "1"), ("X-Other", "a"), ("X-Id", "2"), ("X-Empty", ""), ("User-Agent", "Stripe/1.0")]
    suite.keep(Webhook(f"https://{HOST}//a/../%2e?x=%zz&x=", b"x", fields), method="PATCH")
    suite.record()
    good(suite.play())
    (seen,) = suite.app.seen
    assert (seen.method, seen.target, seen.body) == ("PATCH", "//a/../%2e?x=%zz&x=", b"x")
    assert seen.all("x-id") == ["1", "2"] and seen.all("x-empty") == [""]
    assert seen.header("user-agent") == "Stripe/1.0" and seen.all("host") == [HOST]


def test_the_app_takes_it_for_new(suite):
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    good(suite.play())
    (seen,) = suite.app.seen
    marks = own_marks(seen.headers)
    assert not {"hookway-attempt", "hookway-possible-duplicate", "hookway-replay-of"} & set(marks), marks


@pytest.mark.parametrize("name", ["twilio", "square"])
def test_an_app_behind_a_proxy_computes_the_url_that_was_signed(suite, name):
    """Scheme and host as a live delivery brings them."""
    provider = BY_NAME[name]
    suite.keep(one(provider), provider)
    suite.record()
    good(suite.play())
    (seen,) = suite.app.seen
    scheme, host = seen.header("x-forwarded-proto"), seen.header("x-forwarded-host", seen.header("host"))
    url = f"{scheme}://{host}{seen.target}"
    assert provider.verify(provider.key().verifies, Webhook(url, seen.body, seen.headers)), url


def test_a_get_without_a_body(suite):
    suite.keep(Webhook(f"https://{HOST}/health?x", b"", []), method="GET")
    (line,) = suite.record()
    assert (line["method"], line["provider"], line["signed"]) == ("GET", None, False)
    good(suite.play())
    assert (suite.app.seen[0].method, suite.app.seen[0].body) == ("GET", b"")


# ── what is a secret ──────────────────────────────────────────────────────────────────────────────────────────────

FIELDS = {
    "Authorization": f"Bearer {CANARY}",
    "Proxy-Authorization": f"Basic {CANARY}",
    "Cookie": f"session={CANARY}",
    "X-Api-Key": CANARY,
    "X-Gitlab-Token": CANARY,
    "Stripe-Signature": f"t=1,v1={CANARY}",
    "X-Hub-Signature": CANARY,
    "X-Amz-Security-Token": CANARY,
    "X-Auth": CANARY,
    "Cf-Access-Jwt-Assertion": CANARY,
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_secret_is_left_out_and_named(suite, name):
    suite.keep(Webhook(f"https://{HOST}/", b"{}", [(name, FIELDS[name]), ("X-Kept", "1")]))
    (line,) = suite.record()
    assert CANARY not in suite.text()
    assert name.lower() in line["redacted"] and ["x-kept", "1"] in line["headers"]


QUERIES = ["token", "api_key", "access_token", "signature", "client_secret", "password", "%74oken", "sig", "code"]


@pytest.mark.parametrize("name", QUERIES)
def test_a_secret_of_the_query_is_taken_out(suite, name):
    suite.keep(Webhook(f"https://{HOST}/hook?a=1&{name}={CANARY}&b=%27", b"", []))
    (line,) = suite.record()
    assert CANARY not in suite.text()
    assert line["path"] == f"/hook?a=1&{name}=redacted&b=%27" and "query" in line["redacted"]


JSON = {
    "client_secret": f'{{"id": "evt_1",\t"data": {{"client_secret": "{CANARY}"}}, "n": 1.0}}',
    "token": f'{{"token":"{CANARY}","type":"event_callback"}}',
    "access_token": f'[{{"access_token":"{CANARY}"}}]',
    "accessToken": f'{{"accessToken":"{CANARY}"}}',
    "authToken": f'{{"authToken":"{CANARY}"}}',
    "api_key": f'{{"api_key":"{CANARY}"}}',
    "apiKey": f'{{"apiKey":"{CANARY}"}}',
    "private key": f'{{"privateKey":"{CANARY}"}}',
    "password": f'{{"user":{{"Password":"{CANARY}"}}}}',
    "escaped name": f'{{"tok\\u0065n":"{CANARY}"}}',
    "escaped value": f'{{"token":"\\"{CANARY}"}}',
    "a list": f'{{"secrets":["a-{CANARY}","b-{CANARY}"]}}',
    "an object": f'{{"secret":{{"value":"{CANARY}"}}}}',
    "lines": f'{{"token":"{CANARY}"}}\n{{"token":"{CANARY}"}}\n',
    "JSON in JSON": json.dumps({"Type": "Notification", "Message": json.dumps({"token": CANARY})}),
    "behind a mark": f'\ufeff{{"token":"{CANARY}"}}',
}


@pytest.mark.parametrize("name", JSON)
def test_a_secret_in_json_is_taken_out(suite, name):
    suite.keep(Webhook(f"https://{HOST}/", JSON[name].encode(), [("Content-Type", "application/json")]))
    (line,) = suite.record()
    assert CANARY not in suite.text(), line.get("body")
    assert "body" in line["redacted"]


def test_every_other_byte_of_json_stays(suite):
    suite.keep(Webhook(f"https://{HOST}/", JSON["client_secret"].encode(), [("Content-Type", "application/json")]))
    (line,) = suite.record()
    assert line["body"] == JSON["client_secret"].replace(CANARY, "redacted")


@pytest.mark.parametrize("kind", ["application/json", FORM])
def test_a_body_that_is_no_utf_8_hides_no_secret(suite, kind):
    """Base64 looks as if nothing could be read in it."""
    body = f'{{"token":"{CANARY}","name":"café"}}' if kind != FORM else f"token={CANARY}&name=café"
    suite.keep(Webhook(f"https://{HOST}/", body.encode("latin-1"), [("Content-Type", kind)]))
    for line in suite.record():
        assert CANARY.encode() not in base64.b64decode(line.get("base64", "")), line


def test_a_number_may_be_a_secret(suite):
    suite.keep(Webhook(f"https://{HOST}/", b'{"password": 94716205, "id": 1}', [("Content-Type", "application/json")]))
    (line,) = suite.record()
    assert "94716205" not in suite.text() and json.loads(line["body"])["id"] == 1


INTERACTION = f'{{"type":"block_actions","token":"{CANARY}","text":"{CLEF}"}}'
FORMS = {
    "slash command": f"token={CANARY}&command=%2Fweather&text=94070",
    "rails": f"user%5Bpassword%5D={CANARY}&a=%20b+c",
    "escaped name": f"%74oken={CANARY}",
    "interaction": urllib.parse.urlencode({"payload": INTERACTION, "a": "b"}),
}


@pytest.mark.parametrize("kind", [FORM, f"{FORM}; charset=UTF-8", "Application/X-WWW-Form-Urlencoded"])
@pytest.mark.parametrize("name", FORMS)
def test_a_secret_of_a_form_is_taken_out(suite, name, kind):
    suite.keep(Webhook(f"https://{HOST}/", FORMS[name].encode(), [("Content-Type", kind)]))
    (line,) = suite.record()
    assert CANARY not in suite.text(), line["body"]
    assert "body" in line["redacted"]
    if name == "slash command":
        assert line["body"] == FORMS[name].replace(CANARY, "redacted")
    if name == "interaction":
        (payload, _) = urllib.parse.parse_qsl(line["body"])
        assert json.loads(payload[1]) == json.loads(INTERACTION.replace(CANARY, "redacted"))


def test_a_slack_command_is_signed_afresh_and_accepted(suite):
    slack = BY_NAME["slack"]
    webhook = slack.sign(slack.key(), FORMS["slash command"].encode(), f"https://{HOST}/hook", time.time())
    webhook = webhook.with_field("Content-Type", FORM)
    suite.keep(webhook, slack)
    suite.record()
    assert CANARY not in suite.text()
    good(suite.play())
    assert slack.verify(slack.key().verifies, suite.seen()[0])


def test_a_multipart_form_is_left_out_and_told(suite):
    """What is secret in it is not looked for; that it is not there is said."""
    parts = f'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\n{CANARY}\r\n--x--\r\n'
    suite.keep(Webhook(f"https://{HOST}/", parts.encode(), [("Content-Type", "multipart/form-data; boundary=x")]))
    suite.keep(one(STRIPE), STRIPE)
    done = good(suite.run("record", "--out", suite.file))
    assert CANARY not in suite.text() and len(suite.lines()) == 1
    assert "1 left out" in done.said and "of several parts" in done.said, done


def test_what_only_looks_like_a_secret_stays(suite):
    body = b'{"tokens": 3, "token_count": "7", "code": "c", "sid": "s", "key": "k", "secretary": null}'
    fields = [("Idempotency-Key", "i"), ("Webhook-Id", "w"), ("I-Twilio-Idempotency-Token", "t")]
    suite.keep(Webhook(f"https://{HOST}/?idempotency_key=1", body, fields))
    (line,) = suite.record()
    assert line["body"].encode() == body and line["path"].endswith("=1")
    assert {name for name, _ in line["headers"]} >= {name.lower() for name, _ in fields}, line["redacted"]


def test_what_relays_and_senders_say_of_addresses_is_left_out(suite):
    fields = [("X-Forwarded-For", "203.0.113.9"), ("Forwarded", "for=203.0.113.9"), ("X-Real-Ip", "203.0.113.9")]
    suite.keep(Webhook(f"https://{HOST}/", b"", [*fields, ("Hookway-Delivery", "req_1")]))
    suite.record()
    assert "203.0.113.9" not in suite.text() and "hookway-" not in suite.text()


@pytest.mark.parametrize("flag", ["--secrets"])
def test_no_flag_puts_secrets_into_a_cassette_without_a_word(suite, flag):
    """Either it is refused, or it does what it says."""
    suite.keep(Webhook(f"https://{HOST}/", b"", [("Authorization", CANARY)]))
    done = suite.run("record", "--out", suite.file, flag)
    assert done.code == 2 or CANARY in suite.text(), done


# ── which are recorded ────────────────────────────────────────────────────────────────────────────────────────────


def paths(lines):
    return [line["path"].partition("?")[0] for line in lines]


def library(suite):
    """Four: stripe, github, nobody's and one that failed."""
    suite.keep(one(STRIPE), STRIPE, age=7200)
    github = one(GITHUB)
    suite.keep(Webhook(f"https://{HOST}/github", github.body, github.headers), GITHUB, age=3000, endpoint="other")
    suite.keep(Webhook(f"https://{HOST}/plain", b"findme", []), age=2000)
    suite.rows.append({
        "endpoint": "billing",
        "received_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 600)),
        "request": {"path": "/failed"},
        "attempts": [{"number": 1, "url": "http://127.0.0.1:1/", "outcome": {"state": "answered", "status": 500}}],
    })  # fmt: skip


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], ["/hook", "/github", "/plain", "/failed"]),
        (["--since", "1h"], ["/github", "/plain", "/failed"]),
        (["--filter", "provider:stripe"], ["/hook"]),
        (["--filter", "provider:github"], ["/github"]),
        (["--filter", "endpoint:other"], ["/github"]),
        (["--filter", "status:5xx"], ["/failed"]),
        (["--filter", "body:findme"], ["/plain"]),
        (["--limit", "2"], ["/plain", "/failed"]),
        (["--since", "1h", "--filter", "path:/plain"], ["/plain"]),
    ],
    ids=lambda value: " ".join(value) or "all",
)
def test_those_that_match_are_recorded(suite, words, wanted):
    library(suite)
    assert paths(suite.record(*words)) == wanted


def test_replays_and_drills_are_not_recorded_unless_named(suite):
    number = suite.keep(one(STRIPE), STRIPE)
    replay = good(suite.run("replay", number, "--json")).json[0]["id"]
    good(suite.run("drill", number))
    assert len(suite.record()) == 1
    assert len(suite.record(replay)) == 1


def test_a_body_that_is_cut_is_left_out_and_told(suite):
    whole = suite.keep(one(STRIPE), STRIPE)
    cut = suite.keep(one(STRIPE), STRIPE, size=5 * MIB)
    done = good(suite.run("record", "--out", suite.file, whole, cut))
    assert "1 recorded" in done.said and "1 left out" in done.said
    assert len(suite.lines()) == 1
    (said,) = good(suite.run("record", "--out", suite.file, "--json")).json
    assert said == {"event": "recorded", "file": suite.file, "count": 1, "left_out": 1}


def test_a_compressed_body_is_left_out_and_told(suite):
    """What is secret in it cannot be seen."""
    fields = [("Content-Type", "application/json"), ("Content-Encoding", "gzip")]
    suite.keep(Webhook(f"https://{HOST}/", gzip.compress(f'{{"token":"{CANARY}"}}'.encode()), fields))
    suite.keep(one(STRIPE), STRIPE)
    done = good(suite.run("record", "--out", suite.file))
    assert suite.text().count("\n") == 1 and "1 left out" in done.said and "compressed" in done.said


def test_a_cassette_outlives_a_command_that_goes_wrong(suite):
    """What is under version control is not emptied by a typo."""
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    before = suite.text()
    failed(suite.run("record", "--out", suite.file, "req_01ARZ3NDEKTSV4RRFFQ69GZZZZ"), 1)
    assert suite.text() == before


def test_where_nothing_matches_the_cassette_stays(suite):
    """An empty one would be found out in CI only."""
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    before = suite.text()
    said = failed(suite.run("record", "--out", suite.file, "--filter", "provider:github"), 1)
    assert suite.text() == before and suite.file in said


def test_a_file_that_cannot_be_written_is_1(suite):
    suite.keep(one(STRIPE), STRIPE)
    said = failed(suite.run("record", "--out", "no/such/folder/x.jsonl"), 1)
    assert "no/such/folder/x.jsonl" in said
    assert suite.run("record").code == 2


def test_the_provider_is_known_where_the_history_does_not_say_it(suite):
    """Imported, or kept by an older version."""
    suite.keep(one(STRIPE))
    (line,) = suite.record()
    assert line["provider"] == "stripe" and line["signed"] is True
    good(suite.play())
    assert STRIPE.verify(STRIPE.key().verifies, suite.seen()[0])


def test_one_with_a_bad_signature_does_not_get_a_good_one(suite):
    """A test that an app refuses a forgery would pass for the wrong reason."""
    suite.keep(one(STRIPE, number=2), STRIPE, signature="bad")
    suite.record()
    suite.play()
    seen = suite.seen()
    assert not seen or "stripe-signature" not in seen[0].fields or not STRIPE.verify(STRIPE.key().verifies, seen[0])


# ── from a client ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def station(world):
    """A client with a history, to which each provider's webhook has come."""
    desk = Desk(world, "recorded")
    flags = [word for name in USUAL for word in ("--verify", name)]
    desk.start(world.app(), *flags, environment=SECRETS)
    with contextlib.closing(desk):
        for name in SHARED:
            provider = BY_NAME[name]
            url, marks = f"https://{desk.host}/{name}?a=%27", AGENTS.get(name, ())
            webhook = provider.sign(provider.key(), provider.body("4-byte"), url, time.time())
            desk.keep("POST", webhook.target, webhook.body, [*marks, *webhook.headers])
        yield desk


def test_a_clients_history_is_recorded_while_it_runs(station, apps):
    done = good(station.run("record", "--out", "all.jsonl"))
    assert f"{len(SHARED)} recorded in all.jsonl" in done.said
    text = (station.folder / "all.jsonl").read_text()
    assert not [secret for secret in SECRETS.values() if secret.removeprefix("whsec_") in text]
    app = apps()
    done = good(station.run("replay", "--cassette", "all.jsonl", "--to", app.address, "--max-ms", "5000", **SECRETS))
    assert f"all {len(SHARED)} are right" in done.said and len(done.lines) == len(SHARED)
    for name, seen in zip(SHARED, app.seen, strict=True):
        provider = BY_NAME[name]
        webhook = Webhook(f"https://{station.host}{seen.target}", seen.body, seen.headers)
        assert provider.verify(provider.key().verifies, webhook), name


def test_it_follows_until_ctrl_c(station):
    recorder = Program("recorder", [HOOKWAY, "record", "--out", "live.jsonl", "--follow"], station.folder)
    file = station.folder / "live.jsonl"
    try:
        eventually(lambda: "Ctrl-C" in recorder.log(), what="the recorder's beginning")
        for number in range(3):
            url = f"https://{station.host}/live/{number}"
            webhook = STRIPE.sign(STRIPE.key(), event(f"evt_{number}"), url, time.time())
            station.keep("POST", webhook.target, webhook.body, webhook.headers)
        # What is put to the app again is nobody's delivery.
        good(station.run("replay", "@1", **SECRETS))
    finally:
        assert recorder.stop() == 0
    assert "3 recorded in live.jsonl" in recorder.log()
    assert [json.loads(line)["path"] for line in file.read_text().splitlines()] == [f"/live/{n}" for n in range(3)]


def test_it_follows_those_that_match(station):
    words = ["record", "--out", "some.jsonl", "--follow", "--filter", "provider:github"]
    recorder = Program("recorder-of-some", [HOOKWAY, *words], station.folder)
    file = station.folder / "some.jsonl"
    try:
        eventually(lambda: "Ctrl-C" in recorder.log(), what="the recorder's beginning")
        for provider in (STRIPE, GITHUB):
            webhook = provider.sign(provider.key(), event(), f"https://{station.host}/some/{provider}", time.time())
            station.keep("POST", webhook.target, webhook.body, webhook.headers)
    finally:
        assert recorder.stop() == 0
    assert "1 recorded" in recorder.log()
    assert json.loads(file.read_text())["path"] == "/some/github"


# ── what is right ─────────────────────────────────────────────────────────────────────────────────────────────────


def statuses(seen, _connection):
    """An app that answers what the path asks for, after as many milliseconds."""
    _, status, *wait = seen.target.split("/")
    time.sleep(int(wait[0]) / 1000 if wait else 0)
    return answer(int(status))


@pytest.fixture
def asked(tmp_path, apps):
    """`asked(paths, *words)`: a cassette of these played to an app that does as their paths say."""
    suite = Suite(tmp_path, apps(statuses))

    def play(paths, *words):
        suite.write(*[{"cassette": 1, "path": path} for path in paths])
        return suite.play(*words)

    return play


@pytest.mark.parametrize(
    ("paths", "expect", "wrong"),
    [
        (["/200", "/204", "/299"], [], 0),
        (["/200", "/302", "/404", "/500"], [], 3),
        (["/200"], ["--expect", "2xx"], 0),
        (["/200"], ["--expect", "2XX"], 0),
        (["/200", "/204"], ["--expect", "200"], 1),
        (["/200", "/404", "/400"], ["--expect", "200,404"], 1),
        (["/200", "/404"], ["--expect", "200", "--expect", "404"], 0),
        (["/201", "/211"], ["--expect", "20x"], 1),
        (["/500", "/503"], ["--expect", "5xx"], 0),
        (["/401"], ["--expect", "2xx,401"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_statuses_that_are_right(asked, paths, expect, wrong):
    done = asked(paths, *expect, "--json")
    assert done.code == (6 if wrong else 0), done
    *lines, last = done.json
    assert last == {"event": "cassette", "count": len(paths), "failed": wrong}
    assert [line["status"] for line in lines] == [int(path.split("/")[1]) for path in paths]
    assert [line["ok"] for line in lines].count(False) == wrong
    assert all((line["wrong"] is None) == line["ok"] for line in lines)
    if wrong:
        assert f"{wrong} of {len(paths)}" in done.said and "  next: " in done.said


def test_a_wrong_status_is_explained(asked):
    done = asked(["/200", "/500"], "--expect", "200,404")
    assert done.code == 6
    fine, wrong = done.lines
    assert "WRONG" not in fine and "answered 500, expected 200 or 404" in wrong


@pytest.mark.parametrize("expect", ["", "2", "20", "ok", "xxx", "2000", "0xx", "200;404", "200,", "-200"])
def test_what_is_no_status_is_2(asked, expect):
    done = asked(["/200"], f"--expect={expect}")
    assert done.code == 2 and not done.raw, done


def test_an_answer_must_be_there_in_time(asked):
    done = asked(["/200", "/200/600", "/200"], "--max-ms", "400", "--json")
    assert done.code == 6
    assert [line["ok"] for line in done.json[:-1]] == [True, False, True]
    slow = done.json[1]
    assert slow["duration_ms"] >= 600 and "more than 400 ms" in slow["wrong"]
    good(asked(["/200/100"], "--max-ms", "5000"))


def test_an_app_that_does_not_answer_is_given_up(asked):
    began = time.monotonic()
    done = asked(["/200/9000"], "--timeout", "500ms", "--json")
    assert done.code == 6 and time.monotonic() - began < 6
    assert done.json[0]["status"] is None and "timeout" in done.json[0]["error"]


def test_an_answer_that_breaks_off_is_wrong(tmp_path, apps):
    def half(_seen, socket):
        socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    suite = Suite(tmp_path, apps(half))
    suite.write(plain())
    done = suite.play("--json")
    assert done.code == 6 and done.json[0]["ok"] is False and done.json[0]["wrong"], done


def test_what_the_app_said_is_told(tmp_path, apps):
    """In CI one cannot look."""
    suite = Suite(tmp_path, apps(lambda *_: answer(422, b"amount is missing\x1b[2J")))
    suite.write(plain())
    done, root = report(suite)
    assert done.code == 6 and "amount is missing" in done.text and "\x1b" not in done.text
    assert "amount is missing" in "".join(root.itertext()) + root.find(".//failure").get("message")


def test_all_are_played_though_one_is_wrong(asked):
    assert len(asked(["/500", "/200", "/200"]).lines) == 3


LINE = {"event", "name", "status", "error", "duration_ms", "ok", "wrong"}


def test_json_lines(asked):
    (line, _) = good(asked(["/200"], "--json")).json
    assert set(line) == LINE
    assert (line["event"], line["name"], line["status"], line["ok"]) == ("replayed", "POST /200", 200, True)
    assert 0 < line["duration_ms"] < 5000


def test_names_say_provider_and_event(suite):
    webhook = STRIPE.sign(STRIPE.key(), event(), f"https://{HOST}/pay?a=1", time.time())
    suite.keep(webhook, STRIPE)
    suite.record()
    done = good(suite.play("--json"))
    assert done.json[0]["name"] == "POST /pay stripe charge.succeeded"


# ── JUnit ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def report(suite, *words, file="out.xml"):
    done = suite.play("--junit", file, *words)
    return done, ElementTree.parse(suite.folder / file).getroot()


def test_a_junit_report(tmp_path, apps):
    suite = Suite(tmp_path, apps(statuses))
    suite.write(*[{"cassette": 1, "path": path} for path in ("/200", "/500", "/200/300", "/404")])
    done, root = report(suite)
    assert done.code == 6
    group = root if root.tag == "testsuite" else root.find("testsuite")
    assert (group.get("tests"), group.get("failures"), group.get("errors")) == ("4", "2", "0")
    cases = group.findall("testcase")
    assert [case.get("name") for case in cases] == ["POST /200", "POST /500", "POST /200/300", "POST /404"]
    assert all(case.get("classname") for case in cases)
    assert [case.find("failure") is not None for case in cases] == [False, True, False, True]
    assert "answered 500, expected 2xx" in cases[1].find("failure").get("message")
    assert float(cases[2].get("time")) >= 0.3
    assert float(group.get("time")) == pytest.approx(sum(float(case.get("time")) for case in cases), abs=0.01)


def test_two_of_the_same_have_names_of_their_own(suite):
    """Reporters take those of the same name for the same."""
    suite.write(plain(), plain())
    _, root = report(suite)
    assert len({case.get("name") for case in root.iter("testcase")}) == 2


HOSTILE = "\x1b[2J \u202e <a href=\"x\">&amp; ' ]]> \ufffe\uffff \U000e0041 " + CLEF


@pytest.mark.parametrize("place", ["event", "path", "provider"])
def test_hostile_names_leave_the_report_readable(suite, place):
    suite.write(plain() | {place: "/a&amp;'b]]" if place == "path" else HOSTILE})
    done, root = report(suite)
    good(done)
    (case,) = root.iter("testcase")
    wanted = ("<a href=", "&amp;", "]]>", CLEF) if place != "path" else ("POST /a&amp;'b]]",)
    assert all(word in case.get("name") for word in wanted), case.get("name")
    # Nor do they steer a terminal.
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.text + done.said)


def test_a_report_that_cannot_be_written_is_1(suite):
    suite.write(plain())
    done = suite.play("--junit", "no/such/folder/out.xml")
    assert done.code == 1 and "no/such/folder/out.xml" in done.said, done


# ── secrets, fields ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_secret_that_is_missing_is_7_and_named(suite):
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    said = failed(suite.play(STRIPE_WEBHOOK_SECRET=""), 7)
    assert "STRIPE_WEBHOOK_SECRET" in said
    said = failed(suite.run("replay", "--cassette", suite.file, "--to", suite.app.address), 7)
    assert "STRIPE_WEBHOOK_SECRET" in said
    said = failed(suite.play("--verify", "stripe=NOT_SET", STRIPE_WEBHOOK_SECRET=""), 7)
    assert "NOT_SET" in said
    # Before anything is put to the app.
    assert not suite.app.seen


def test_a_variable_may_be_named(suite):
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    words = ["--verify", "stripe=MY_SECRET"]
    good(suite.play(*words, MY_SECRET=STRIPE.key(1).verifies, STRIPE_WEBHOOK_SECRET=""))
    assert STRIPE.verify(STRIPE.key(1).verifies, suite.seen()[0])


def test_a_variable_may_be_named_in_the_projects_file(suite):
    (suite.folder / "hookway.toml").write_text("[[verify]]\nprovider = 'stripe'\nsecret-env = 'MY_SECRET'\n")
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    good(suite.play(MY_SECRET=STRIPE.key(1).verifies, STRIPE_WEBHOOK_SECRET=""))
    assert STRIPE.verify(STRIPE.key(1).verifies, suite.seen()[0])


TWO_APPS = """
[[verify]]
provider = "stripe"
secret-env = "FIRST"
path = "/first"

[[verify]]
provider = "stripe"
secret-env = "SECOND"
path = "/second"
"""


def test_each_path_is_signed_with_its_own_secret(suite):
    """Platform and Connect webhooks of Stripe's, say."""
    (suite.folder / "hookway.toml").write_text(TWO_APPS)
    for number, path in enumerate(("/first", "/second")):
        webhook = STRIPE.sign(STRIPE.key(number), event(), f"https://{HOST}{path}", time.time())
        suite.keep(webhook, STRIPE, signature="ok")
    suite.record()
    good(suite.play(FIRST=STRIPE.key(0).verifies, SECOND=STRIPE.key(1).verifies, STRIPE_WEBHOOK_SECRET=""))
    for number, seen in enumerate(suite.seen()):
        assert STRIPE.verify(STRIPE.key(number).verifies, seen), seen.url


ACME = """
[[verify]]
provider = "hmac"
secret-env = "ACME"
header = "X-Acme-Signature"
encoding = "base64"
prefix = "v2="
signed = "{timestamp}.{body}"
timestamp-header = "X-Acme-Time"
tolerance = "5m"
"""


def test_a_signature_that_the_projects_file_describes(suite):
    (suite.folder / "hookway.toml").write_text(ACME)

    def signature(at, body):
        return "v2=" + base64_of(mac("s3cret-of-acme", f"{at}.", body).digest())

    at, body = str(int(time.time()) - 3600), event()
    fields = [("X-Acme-Time", at), ("X-Acme-Signature", signature(at, body))]
    suite.keep(Webhook(f"https://{HOST}/acme", body, fields), SimpleNamespace(provider="hmac"), signature="ok")
    (line,) = suite.record()
    assert (line["provider"], line["signed"]) == ("hmac", True) and fields[1][1] not in suite.text()
    good(suite.play(ACME="s3cret-of-acme"))
    (seen,) = suite.app.seen
    at = seen.header("x-acme-time")
    assert time.time() - int(at) < 60
    assert seen.all("x-acme-signature") == [signature(at, seen.body)]


def test_no_signature_is_made_where_none_is_wanted(suite):
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    good(suite.play("--no-resign", STRIPE_WEBHOOK_SECRET=""))
    (seen,) = suite.seen()
    assert "stripe-signature" not in seen.fields
    assert seen.body == one(STRIPE).body


def test_one_that_came_unsigned_goes_unsigned(suite):
    webhook = one(GITHUB)
    webhook.headers = [pair for pair in webhook.headers if "ignature" not in pair[0]]
    suite.keep(webhook, GITHUB)
    assert suite.record()[0]["signed"] is False
    good(suite.play(GITHUB_WEBHOOK_SECRET=""))
    assert "x-hub-signature-256" not in suite.seen()[0].fields


def test_no_secret_is_printed(suite):
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    for words in ([], ["--json"], ["-vv"], ["--expect", "404"]):
        done = suite.play(*words)
        fresh = suite.seen()[-1].fields["stripe-signature"].partition("v1=")[2]
        secret = STRIPE.key().verifies.removeprefix("whsec_")
        assert fresh not in done.text + done.said and secret not in done.text + done.said, words


def test_a_field_is_added_or_replaced(suite):
    suite.write(plain(headers=[["x-env", "live"], ["host", HOST]]))
    good(suite.play("-H", "X-Env: test", "-H", "Authorization: Bearer t", "-H", "Host: localhost"))
    (seen,) = suite.app.seen
    assert seen.all("x-env") == ["test"] and seen.all("authorization") == ["Bearer t"]
    assert seen.all("host") == ["localhost"]


def test_a_cassette_by_hand(suite):
    """A line needs no more than a path."""
    suite.write({"cassette": 1, "path": "/a"}, {"cassette": 1, "path": "/b", "body": "{}", "base64": None})
    good(suite.play())
    seen = [(seen.method, seen.target, seen.body) for seen in suite.app.seen]
    assert seen == [("POST", "/a", b""), ("POST", "/b", b"{}")]
    assert suite.app.seen[0].header("host") == suite.app.address


# ── the app ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def nobody(tmp_path_factory):
    """A cassette of three on its way to an app that never comes, begun before the other tests need the time."""
    folder = tmp_path_factory.mktemp("nobody")
    (folder / "x.jsonl").write_text("".join(json.dumps(plain(n)) + "\n" for n in range(3)))
    with SleepingApp() as app:
        words = ["replay", "--cassette", "x.jsonl", "--to", app.address, "--json", "--junit", "out.xml"]
        yield Program("nobody", [HOOKWAY, *words], folder), folder


@pytest.fixture(scope="module", autouse=True)
def _early(nobody):
    """Started with the first test."""
    yield
    nobody[0].stop()


def test_an_app_that_comes_late_is_waited_for(tmp_path):
    """As in a CI job: the app is started with `&`, the replay at once."""
    with SleepingApp() as app:
        suite = Suite(tmp_path, app)
        suite.write(plain(1), plain(2))
        opener = threading.Timer(1.5, app.open)
        opener.start()
        # Its start is no part of its answer's time.
        done = good(suite.play("--max-ms", "1000", "--json"))
        opener.join()
    assert [line["ok"] for line in done.json[:-1]] == [True, True]


# ── files that are none ───────────────────────────────────────────────────────────────────────────────────────────

BROKEN = {
    "half a line": b'{"cassette":1,"path":"/3","bo',
    "an array": b'["/3"]',
    "no path": b'{"cassette":1}',
    "no version": b'{"path":"/3"}',
    "a path of another host": b'{"cassette":1,"path":"http://x/"}',
    "a bad path": b'{"cassette":1,"path":"/a b"}',
    "a bad method": b'{"cassette":1,"path":"/","method":"A B"}',
    "a bad name": b'{"cassette":1,"path":"/","headers":[["a b",""]]}',
    "a bad value": b'{"cassette":1,"path":"/","headers":[["a","b\\r\\nc: d"]]}',
    "two bodies": b'{"cassette":1,"path":"/","body":"a","base64":"YQ=="}',
    "no base64": b'{"cassette":1,"path":"/","base64":"%"}',
    "bytes": b'{"cassette":1,"path":"/\xff"}',
    "a typo": b'{"cassette":1,"path":"/","boddy":"x"}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_and_nothing_is_sent(suite, name):
    suite.write(plain(1), plain(2), BROKEN[name], plain(4))
    said = failed(suite.play(), 1)
    assert "line 3 of webhooks.jsonl" in said, said
    assert "at line 1" not in said, said
    assert not suite.app.seen


@pytest.mark.parametrize("more", [{}, {"of_the_future": True}], ids=["same fields", "more fields"])
def test_a_newer_format_is_named(suite, more):
    suite.write(plain(1), plain(2) | {"cassette": 2} | more)
    said = failed(suite.play(), 1)
    assert "line 2" in said and "newer" in said, said
    assert not suite.app.seen


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"], ids=["empty", "blank", "a mark"])
def test_an_empty_cassette_passes_no_test(suite, content):
    (suite.folder / suite.file).write_bytes(content)
    said = failed(suite.play(), 1)
    assert suite.file in said


def test_a_cassette_that_is_not_there_is_1(suite):
    said = failed(suite.run("replay", "--cassette", "none.jsonl", "--to", suite.app.address), 1)
    assert "none.jsonl" in said


def test_lines_may_end_as_on_windows(suite):
    """git changes them at checkout there."""
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    raw = (suite.folder / suite.file).read_bytes()
    (suite.folder / suite.file).write_bytes(raw.replace(b"\n", b"\r\n"))
    good(suite.play())
    assert STRIPE.verify(STRIPE.key().verifies, suite.seen()[0])


def test_a_cassette_from_stdin(suite):
    suite.write(plain(1))
    content = (suite.folder / suite.file).read_bytes()
    good(command("replay", "--cassette", "-", "--to", suite.app.address, folder=suite.folder, stdin=content))
    assert len(suite.app.seen) == 1


@pytest.mark.parametrize(
    "words",
    [["--cassette", "x"], ["--cassette", "x", "--to", "1", "@1"], ["--cassette", "x", "--to", "1", "--failed"],
     ["@1", "--junit", "x"], ["@1", "--expect", "200"], ["@1", "--max-ms", "5"],
     ["--cassette", "x", "--to", "1", "--max-ms", "-5"], ["--cassette", "x", "--to", "1", "--edit"]],
    ids=" ".join,
)  # fmt: skip
def test_flags_that_do_not_go_together_are_2(suite, words):
    assert suite.run("replay", *words).code == 2


# ── anywhere ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_leaves_no_history_and_no_files(suite):
    suite.write(plain())
    bare = suite.folder / "bare"
    bare.mkdir()
    done = command("replay", "--cassette", suite.folder / suite.file, "--to", suite.app.address, folder=bare)
    assert good(done).raw and list(bare.iterdir()) == []


@pytest.mark.parametrize("home", ["none", "read only", "not there"])
def test_without_a_folder_to_write_in(suite, home):
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    environment = {"PATH": "/usr/bin:/bin"} | SECRETS
    if home == "read only":
        environment |= {"HOME": "/proc", "XDG_DATA_HOME": "/proc/x", "XDG_CONFIG_HOME": "/proc/y"}
    elif home == "not there":
        environment |= {"HOME": "/no/such/home"}
    done = subprocess.run(
        [HOOKWAY, "replay", "--cassette", suite.file, "--to", suite.app.address],
        cwd=suite.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert STRIPE.verify(STRIPE.key().verifies, suite.seen()[0])


# An app of three lines and the replay, in a network that has nothing but its own loopback.
OFFLINE = """
ip link set lo up || ifconfig lo up || exit 99
python3 app.py & app=$!
"$HOOKWAY" replay --cassette webhooks.jsonl --to 4999 --max-ms 5000 --junit out.xml; code=$?
kill $app; exit $code
"""
APP = """
import hashlib, hmac, http.server, os, time
class App(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        at, _, given = self.headers["Stripe-Signature"].removeprefix("t=").partition(",v1=")
        right = hmac.new(os.environ["STRIPE_WEBHOOK_SECRET"].encode(), at.encode() + b"." + body, "sha256").hexdigest()
        self.send_response(200 if right == given and time.time() - int(at) < 300 else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 4999), App).serve_forever()
"""


def test_without_a_network(suite):
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        lacking("a network of its own wants root and unshare")
    suite.keep(one(STRIPE), STRIPE)
    suite.record()
    (suite.folder / "app.py").write_text(APP)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOOKWAY": HOOKWAY} | SECRETS
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", OFFLINE],
        cwd=suite.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode == 99:
        lacking("ip or ifconfig")
    assert done.returncode == 0, done
    assert ElementTree.parse(suite.folder / "out.xml").getroot().find("testsuite").get("failures") == "0"


def test_an_app_that_is_down_is_6(nobody):
    """It is waited for once, not anew for each request."""
    program, folder = nobody
    assert program.exited(40) == 6
    *lines, last = program.events
    assert sum(line["duration_ms"] for line in lines) < 30_000
    assert last == {"event": "cassette", "count": 3, "failed": 3}
    assert all(line["status"] is None and line["error"] and line["wrong"] for line in lines)
    group = ElementTree.parse(folder / "out.xml").getroot().find("testsuite")
    assert group.get("failures") == "3"
    assert "3 of 3" in program.log()
