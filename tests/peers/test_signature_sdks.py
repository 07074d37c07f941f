"""Signatures beside the providers' own SDKs: hookway judges what they signed, and they judge what hookway signed.

Both go through the whole tunnel where there is one: a verdict is only worth something if the bytes came as they were.
"""

import contextlib
import itertools
import json
import re
import subprocess
import time
from datetime import datetime, timezone

import pytest
from sdks import BODIES, BY_NAME, FORM, MIB, PROVIDERS, Webhook
from test_history import Desk, Done, command, good, same_request

from world import DEADLINE, DOMAIN, HOOKWAY, LONG, lacking, request

NAME = "signed"
_numbers = itertools.count()


def crossed(providers, bodies=tuple(BODIES)):
    """Providers × bodies; the id says where a format cannot have the body and what stands in."""

    def row(provider, body):
        instead = f" as {provider.nearest}" if provider.nearest else ""
        return pytest.param(provider, body, id=f"{provider}-{body}{instead}")

    return [row(*pair) for pair in itertools.product(providers, bodies)]


# A large body that is bad is searched for its mistake, which takes a debug build a while.
SOME = tuple(BODIES) if LONG else tuple(name for name in BODIES if name != "1 MiB")
FEW = tuple(BODIES) if LONG else ("compact", "binary")


def variable(provider, number=0):
    return f"SECRET_{provider.name.upper().replace('-', '_')}_{number}"


# ── theirs, judged by hookway ─────────────────────────────────────────────────────────────────────────────────────


class Tunnel:
    """A client that knows two secrets of each kind of signature, and an app that echoes."""

    def __init__(self, world):
        self.world, self.app = world, world.app()
        flags, environment = {}, {}
        for provider, number in itertools.product(PROVIDERS, (0, 1)):
            secret = provider.key(number).verifies
            if (provider.provider, secret) not in flags:
                flags[provider.provider, secret] = f"{provider.provider}={variable(provider, number)}"
                environment[variable(provider, number)] = secret
        words = [word for flag in flags.values() for word in ("--verify", flag)]
        self.client = world.client(self.app, *words, name=NAME, environment=environment)

    def url(self, provider, query="?a=1&b=%27x"):
        """A public URL of its own, with what a careless hop would tidy up."""
        return self.world.url(f"/{provider}/{next(_numbers)}{query}", NAME)

    def signed(self, provider, body="compact", number=0):
        return provider.sign(provider.key(number), provider.body(body), self.url(provider), time.time())

    def post(self, webhook):
        """POST it and wait for its line."""
        host = self.world.authority(f"{NAME}.{DOMAIN}")
        with self.world.wire(NAME) as wire:
            reply = wire.ask(request("POST", webhook.target, webhook.body, host=host, headers=webhook.headers))
        assert reply.status == 200
        return self.client.delivery(path=webhook.target)

    def seen(self, path):
        """What reached the app on this path, as a webhook at its public URL."""
        (seen,) = self.app.at(path)
        return Webhook(self.world.url(seen.target, NAME), seen.body, seen.headers)


@pytest.fixture(scope="module")
def tunnel(world):
    return Tunnel(world)


@pytest.fixture(autouse=True)
def _nothing_seen(request):
    yield
    if "tunnel" in request.fixturenames:
        app = request.getfixturevalue("tunnel").app
        assert not app.unclean
        app.clear()


@pytest.mark.parametrize(("provider", "body"), crossed(PROVIDERS))
def test_what_an_sdk_signed_is_ok(tunnel, provider, body):
    webhook = tunnel.signed(provider, body)
    event = tunnel.post(webhook)
    assert (event["provider"], event["signature"], event["signature_detail"]) == (provider.provider, "ok", None)
    # And the app's own check would say the same.
    assert provider.verify(provider.key().verifies, tunnel.seen(webhook.target.partition("?")[0]))


@pytest.mark.parametrize(("provider", "body"), crossed(PROVIDERS, SOME))
def test_one_changed_bit_is_bad(tunnel, provider, body):
    event = tunnel.post(provider.tampered(tunnel.signed(provider, body)))
    assert (event["provider"], event["signature"]) == (provider.provider, "bad")
    assert event["signature_detail"]


@pytest.mark.parametrize(("provider", "body"), crossed(PROVIDERS, FEW))
def test_a_secret_that_hookway_was_not_given_is_bad(tunnel, provider, body):
    event = tunnel.post(tunnel.signed(provider, body, number=2))
    assert (event["provider"], event["signature"]) == (provider.provider, "bad")
    assert event["signature_detail"]


@pytest.mark.parametrize("provider", PROVIDERS, ids=str)
def test_any_secret_of_a_provider_will_do(tunnel, provider):
    """As while a secret is being replaced: both are configured."""
    assert tunnel.post(tunnel.signed(provider, number=1))["signature"] == "ok"


@pytest.mark.parametrize("provider", PROVIDERS, ids=str)
def test_without_a_signature_there_is_none(tunnel, provider):
    webhook = tunnel.signed(provider)
    given = {name for name, _ in provider.signature(provider.key(), webhook.body, webhook.url, 0)}
    body = b'{"event-data":{}}' if provider.name == "mailgun" else webhook.body
    bare = [pair for pair in webhook.headers if pair[0] not in given]
    assert tunnel.post(Webhook(webhook.url, body, bare))["signature"] == "none"


@pytest.mark.parametrize("name", ["mailgun", "gitlab"])
def test_what_a_signature_does_not_cover_may_change(tunnel, name):
    """Neither says anything about the body: to call such a change bad would be a guess."""
    provider = BY_NAME[name]
    webhook = tunnel.signed(provider)
    changed = webhook.with_body(webhook.body.replace("naïve".encode(), b"native"))
    assert changed.body != webhook.body
    assert tunnel.post(changed)["signature"] == "ok"


@pytest.mark.parametrize("name", ["stripe", "github", "sendgrid", "standard", "square"])
@pytest.mark.parametrize("flaw", [False, True], ids=["ok", "bad"])
def test_a_streamed_body_is_judged_at_its_end(tunnel, name, flaw):
    provider = BY_NAME[name]
    body = BODIES["binary"] * (3 * MIB // 256)
    webhook = provider.sign(provider.key(), body, tunnel.url(provider), time.time())
    if flaw:
        webhook = webhook.with_body(body[:-1] + b"!")
    line = tunnel.post(webhook)
    assert line["signature"] == ("bad" if flaw else "ok")
    # Only its beginning is kept: nothing was cut short on the way.
    assert not flaw or "none could be tried" in line["signature_detail"]


# ── hookway's, judged by theirs ───────────────────────────────────────────────────────────────────────────────────

# One way of signing a row; the words that ask `hookway send` for it.
SENT = {
    **dict.fromkeys(("stripe", "github", "slack", "shopify", "twilio", "standard", "square", "gitlab"), ()),
    **dict.fromkeys(("linear", "paddle", "zoom", "mailgun"), ()),
    "twilio-json": ("--json-body",),
}
# Those whose private key is the provider's: hookway signs with a key of the developer's.
OWN_KEYS = ("sendgrid", "discord", "standard-v1a")


class Sender:
    """`hookway send` and what goes with it, where the public names lead to this machine and its CA is trusted."""

    def __init__(self, tunnel, folder):
        self.tunnel, self.folder = tunnel, folder
        (folder / "hosts").write_text(f"127.0.0.1 localhost {NAME}.{DOMAIN}\n")
        trial = subprocess.run([*self._inside(), "true"], capture_output=True, timeout=10, check=False)
        if trial.returncode:
            lacking("an /etc/hosts of its own wants root and unshare")

    def _inside(self):
        # Neither glibc nor a resolver knows *.hooks.test.
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, self.folder / "hosts"]

    def run(self, *words, **environment):
        ca = str(self.tunnel.world.relay.ca)
        own = {"PATH": "/usr/bin:/bin", "HOME": self.folder, "XDG_CONFIG_HOME": self.folder / "config"}
        own |= {"XDG_DATA_HOME": self.folder / "data", "HOOKWAY_RELAY_CA": ca, "SSL_CERT_FILE": ca} | environment
        done = subprocess.run(
            [*self._inside(), HOOKWAY, *map(str, words)],
            cwd=self.folder,
            env={key: str(value) for key, value in own.items()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        said = done.stderr.decode()
        assert "panicked" not in said, said
        return Done(done.returncode, done.stdout, said)

    def events(self, provider):
        """The sample events of a provider."""
        events = good(self.run("send", provider.provider, "--list")).lines
        assert events and len(set(events)) == len(events)
        return events

    def send(self, provider, *words, secret=None):
        """What reached the app by `hookway send PROVIDER …`."""
        path = f"/sent/{provider}/{next(_numbers)}"
        more = ("--secret-env", "SECRET") if secret else ()
        to = self.tunnel.world.url(path, NAME)
        words = [*words, "--to", to, *more, *SENT.get(provider.name, ())]
        good(self.run("send", provider.provider, *words, **({"SECRET": secret} if secret else {})))
        return self.tunnel.seen(path)

    def own_key(self, provider):
        """The public half of the developer's key, as the SDK takes it."""
        shown = self.run("keys", "show", provider.provider, "--json")
        if shown.code:
            good(self.run("keys", "create", provider.provider))
            shown = good(self.run("keys", "show", provider.provider, "--json"))
        (shown,) = shown.json
        assert shown["provider"] == provider.provider
        return shown["public_key"]


@pytest.fixture(scope="module")
def sender(tunnel, tmp_path_factory):
    return Sender(tunnel, tmp_path_factory.mktemp("sender"))


def accepted(provider, secret, webhook):
    """Every judge accepts it, none abstains."""
    verdicts = provider.verdicts(secret, webhook)
    assert set(verdicts.values()) == {True}, (verdicts, webhook.headers, webhook.body[:400])


@pytest.mark.parametrize("name", SENT)
def test_each_sample_event_is_accepted_and_understood(tunnel, sender, name):
    provider = BY_NAME[name]
    secret = provider.key().verifies
    for event in sender.events(provider):
        webhook = sender.send(provider, event, secret=secret)
        accepted(provider, secret, webhook)
        # Slack's commands and buttons come as forms.
        kinds = {provider.content_type.split(";")[0]} | ({FORM} if name == "slack" else set())
        assert webhook.fields["content-type"].split(";")[0] in kinds, event
        if provider.parser:
            # A parser that does not know the event says nothing.
            assert provider.parse(secret, webhook), event
        # Hookway agrees with itself.
        line = tunnel.client.delivery(path=webhook.target)
        assert (line["provider"], line["signature"]) == (provider.provider, "ok"), line


@pytest.mark.parametrize("name", SENT)
def test_a_sample_without_an_event_is_accepted(sender, name):
    provider = BY_NAME[name]
    secret = provider.key().verifies
    accepted(provider, secret, sender.send(provider, secret=secret))


@pytest.mark.parametrize(("provider", "body"), crossed([BY_NAME[name] for name in SENT]))
def test_a_file_is_sent_as_it_is_and_accepted(sender, provider, body, tmp_path):
    secret = provider.key().verifies
    file = tmp_path / "body"
    # Where time and signature stand in the body they are renewed; what another secret signed shows that they were.
    content = provider.sign(provider.key(1), provider.body(body), "", time.time()).body
    file.write_bytes(content)
    webhook = sender.send(provider, "--file", file, secret=secret)
    assert provider.verify(secret, webhook), provider.verdicts(secret, webhook)
    if provider.nearest != "JSON":
        assert webhook.body == content


@pytest.mark.parametrize("name", OWN_KEYS)
def test_each_sample_event_signed_with_an_own_key_is_accepted(sender, name):
    provider = BY_NAME[name]
    public = sender.own_key(provider)
    assert len(public) == len(provider.key().verifies)
    for event in sender.events(provider):
        accepted(provider, public, sender.send(provider, event))
    # It is kept.
    assert sender.own_key(provider) == public


@pytest.mark.parametrize(("provider", "body"), crossed([BY_NAME[name] for name in OWN_KEYS]))
def test_a_file_signed_with_an_own_key_is_accepted(sender, provider, body, tmp_path):
    public = sender.own_key(provider)
    (tmp_path / "body").write_bytes(BODIES[body])
    webhook = sender.send(provider, "--file", tmp_path / "body")
    assert webhook.body == BODIES[body]
    assert provider.verify(public, webhook), provider.verdicts(public, webhook)
    good(judged(tmp_path, provider, webhook, public))


# ── signed afresh ─────────────────────────────────────────────────────────────────────────────────────────────────

# Seconds by which a webhook is late when it comes: well within what its provider allows.
AGES = {"stripe": 100, "slack": 100, "standard": 100, "standard-svix": 100, "zoom": 100, "linear": 50, "paddle": 2}


@pytest.fixture
def desk(world, name):
    with contextlib.closing(Desk(world, name)) as desk:
        yield desk


def old(desk, provider, secret_known=True, key=None):
    """An old webhook in the history: itself and its id."""
    flags = ["--verify", f"{provider.provider}=SECRET"] if secret_known else []
    desk.start(desk.world.app(), *flags, environment={"SECRET": provider.key().verifies})
    url, moment = f"https://{desk.host}/hook?a=%27", time.time() - AGES[provider.name]
    webhook = provider.sign(key or provider.key(), provider.body("4-byte"), url, moment)
    _, number = desk.keep("POST", webhook.target, webhook.body, webhook.headers)
    return webhook, number


def replayed(desk, provider, number, *words):
    """The line of a replay and what the app saw of it."""
    words = ["replay", number, "--verify", f"{provider.provider}=SECRET", "--json", *words]
    (line,) = good(desk.run(*words, SECRET=provider.key().verifies)).json
    again = desk.app.seen[-1]
    return line, Webhook(f"https://{desk.host}{again.target}", again.body, again.headers)


@pytest.mark.parametrize("how", ["client running", "client stopped", "secret known only now"])
@pytest.mark.parametrize("name", AGES)
def test_a_replay_is_signed_for_its_own_time(desk, name, how):
    provider = BY_NAME[name]
    webhook, number = old(desk, provider, secret_known=how != "secret known only now")
    if how == "client stopped":
        assert desk.client.stop() == 0
    before = int(time.time())
    line, fresh = replayed(desk, provider, number)
    assert before <= provider.moment(fresh) <= time.time()
    assert provider.moment(webhook) < before - 1
    verdicts = provider.verdicts(provider.key().verifies, fresh)
    assert False not in verdicts.values(), verdicts
    assert line["resigned"] is True
    # Only Linear's time is in the body: nothing else of it changes.
    assert re.sub(rb"\d{13}", b"", fresh.body) == re.sub(rb"\d{13}", b"", webhook.body)


@pytest.mark.parametrize("name", AGES)
def test_a_bad_one_is_never_signed_afresh(desk, name):
    provider = BY_NAME[name]
    _, number = old(desk, provider, key=provider.key(2))
    assert desk.client.deliveries()[-1]["signature"] == "bad"
    line, again = replayed(desk, provider, number)
    same_request(*desk.app.seen)
    assert not line.get("resigned")
    assert not provider.verify(provider.key().verifies, again)


@pytest.mark.parametrize("name", AGES)
def test_a_replay_keeps_its_signature_where_told(desk, name):
    provider = BY_NAME[name]
    _, number = old(desk, provider)
    line, _ = replayed(desk, provider, number, "--no-resign")
    same_request(*desk.app.seen)
    assert not line.get("resigned")


# ── hookway verify ────────────────────────────────────────────────────────────────────────────────────────────────


def judged(folder, provider, webhook, secret, at=None, *more):
    """`hookway verify` of a webhook, at a second."""
    (folder / "webhook").write_bytes(webhook.body)
    words = ["verify", provider.provider, folder / "webhook", "--secret-env", "SECRET", "--url", webhook.url, *more]
    for name, value in webhook.headers:
        words += ["--header", f"{name}: {value}"]
    if at is not None:
        words += ["--at", datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")]
    return command(*words, folder=folder, SECRET=secret)


def refused(done):
    """A verdict of bad, with its reason."""
    assert done.code == 1 and (done.raw or done.said), done


URL = "https://billing.hooks.test:8443/hook?a=1&b=%27x"


@pytest.mark.parametrize(("provider", "body"), crossed(PROVIDERS, SOME))
def test_verify_agrees_with_what_was_signed(provider, body, tmp_path):
    secret = provider.key().verifies
    webhook = provider.sign(provider.key(), provider.body(body), URL, time.time())
    good(judged(tmp_path, provider, webhook, secret))
    refused(judged(tmp_path, provider, provider.tampered(webhook), secret))
    refused(judged(tmp_path, provider, webhook, provider.key(1).verifies))


@pytest.mark.parametrize("provider", PROVIDERS, ids=str)
def test_verify_says_its_verdict_in_json(provider, tmp_path):
    """One object; its verdict has the words of the delivery line."""
    webhook = provider.sign(provider.key(), provider.body("compact"), URL, time.time())
    for code, verdict in enumerate(("ok", "bad")):
        done = judged(tmp_path, provider, webhook, provider.key(code).verifies, None, "--json")
        assert done.code == code and json.loads(done.text)["signature"] == verdict, done


def edges():
    """The last second that is good and the first that is not, late and early; the far ends where there is no bound."""
    rows = []
    for provider in PROVIDERS:
        late = [(provider.past, True), (provider.past + 1, False)] if provider.past else [(10_000_000, True)]
        early = [(-provider.future, True), (-provider.future - 1, False)] if provider.future else [(-10_000_000, True)]
        # Nobody says how early a webhook of Zoom's may be.
        ages = late if provider.name == "zoom" else late + early
        if provider.past or provider.name in ("sendgrid", "discord"):
            rows += [pytest.param(provider, age, fine, id=f"{provider}-{age}s") for age, fine in ages]
    return rows


@pytest.mark.parametrize(("provider", "age", "fine"), edges())
def test_verify_has_the_tolerance_of_the_sdks(provider, age, fine, tmp_path):
    secret, at = provider.key().verifies, int(time.time())
    webhook = provider.sign(provider.key(), provider.body("compact"), URL, at - age)
    done = judged(tmp_path, provider, webhook, secret, at)
    good(done) if fine else refused(done)
    # The SDKs at that second. The documentation's formula has no clock, nor has Zoom's SDK.
    sdks = provider.verdicts(secret, webhook, now=at)
    assert sdks.pop("documentation") is True
    if provider.name != "zoom":
        assert set(sdks.values()) <= {fine}, sdks


@pytest.mark.parametrize(("late", "fine"), [(60.0, True), (60.001, False), (-60.0, True), (-60.001, False)])
def test_linear_counts_milliseconds(late, fine, tmp_path):
    provider, at = BY_NAME["linear"], int(time.time())
    webhook = provider.sign(provider.key(), provider.body("compact"), URL, at - late)
    assert provider.verify(provider.key().verifies, webhook, now=at) is fine
    done = judged(tmp_path, provider, webhook, provider.key().verifies, at)
    good(done) if fine else refused(done)


# Headers as they come while a secret is being replaced, and as nobody should send them: {good} and {other} are what the
# provider's right and another secret make of the same body, without the mark in front.
HEADERS = {
    "stripe several": ("stripe", "Stripe-Signature", "t={now},v1={other},v1={good}", True),
    "stripe in another order": ("stripe", "Stripe-Signature", "v1={good},t={now}", True),
    "stripe with the scheme of tests": ("stripe", "Stripe-Signature", "t={now},v1={good},v0={other}", True),
    "stripe in the scheme of tests only": ("stripe", "Stripe-Signature", "t={now},v0={good}", False),
    "stripe without a time": ("stripe", "Stripe-Signature", "v1={good}", False),
    "standard several": ("standard", "webhook-signature", "v1,{other} v1,{good}", True),
    "standard with an unknown version": ("standard", "webhook-signature", "v9,{good}", False),
    "standard beside v1a": ("standard", "webhook-signature", "v1a,{other} v1,{good}", True),
    "paddle several": ("paddle", "Paddle-Signature", "ts={now};h1={other};h1={good}", True),
    "paddle in another order": ("paddle", "Paddle-Signature", "h1={good};ts={now}", True),
    "paddle without a time": ("paddle", "Paddle-Signature", "h1={good}", False),
    "github without its algorithm": ("github", "X-Hub-Signature-256", "{good}", False),
    "slack in another version": ("slack", "X-Slack-Signature", "v1={good}", False),
    "linear with an algorithm": ("linear", "Linear-Signature", "sha256={good}", False),
}


def mark_and_signature(webhook, name):
    """The last signature in a header, without what stands in front."""
    return re.split(r"[,;]?(?:v1|v0|h1|sha256)[=,]", webhook.fields[name.lower()])[-1]


@pytest.mark.parametrize("row", HEADERS.values(), ids=HEADERS)
def test_headers_are_read_as_the_sdks_read_them(row, tmp_path):
    which, name, header, fine = row
    provider, now = BY_NAME[which], int(time.time())
    body = provider.body("compact")
    theirs = provider.sign(provider.key(1), body, URL, now)
    webhook = provider.sign(provider.key(), body, URL, now)
    parts = {"now": now, "good": mark_and_signature(webhook, name), "other": mark_and_signature(theirs, name)}
    webhook = webhook.with_field(name, header.format(**parts))
    secret = provider.key().verifies
    sdks = provider.verdicts(secret, webhook)
    sdks.pop("documentation")
    assert set(sdks.values()) == {fine}, sdks
    done = judged(tmp_path, provider, webhook, secret)
    good(done) if fine else refused(done)


def test_names_of_fields_may_be_written_in_any_case(tmp_path):
    for provider in PROVIDERS:
        webhook = provider.sign(provider.key(), provider.body("compact"), URL, time.time())
        loud = Webhook(webhook.url, webhook.body, [(name.upper(), value) for name, value in webhook.headers])
        good(judged(tmp_path, provider, loud, provider.key().verifies))


@pytest.mark.parametrize("name", ["twilio", "twilio-json", "square"])
def test_verify_of_a_signed_url_wants_that_url(name, tmp_path):
    provider = BY_NAME[name]
    secret = provider.key().verifies
    webhook = provider.sign(provider.key(), provider.body("compact"), URL, time.time())
    for other in (webhook.url.replace("https", "http", 1), webhook.url.replace("/hook", "/hooks"), webhook.url + "&c"):
        elsewhere = Webhook(other, webhook.body, webhook.headers)
        assert not provider.verify(secret, elsewhere)
        refused(judged(tmp_path, provider, elsewhere, secret))


def test_a_variable_that_is_not_set_is_named(tmp_path):
    (tmp_path / "webhook").write_bytes(b"{}")
    words = ["verify", "stripe", tmp_path / "webhook", "--secret-env", "NOT_SET"]
    done = command(*words, "--header", "Stripe-Signature: t=1,v1=00", folder=tmp_path)
    assert done.code != 0 and not done.raw and "NOT_SET" in done.said
