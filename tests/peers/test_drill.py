"""`hookway drill`: the same event in all the ways in which it may come again, put to apps of several characters; what
they see of it is what the provider would send, signed as of now by the word of its own SDK."""

import contextlib
import itertools
import json
import re
import threading
import time
from datetime import datetime, timezone

import pytest
from sdks import BODIES, BY_NAME, MIB, Webhook, base64_of, compact
from test_history import command, failed, good, own_marks

from world import LONG, RawApp

HOST = "billing.hooks.test"
CANARY = "canary-5d1f9e"
RETRY = {
    "slack": {"x-slack-retry-num": "1", "x-slack-retry-reason": "http_timeout"},
    "square": {"square-retry-number": "1", "square-retry-reason": "http_timeout"},
}
# The drill without a later event, delivery by delivery.
WITHOUT_ORDER = [("in_a_row", 1), ("in_a_row", 2), ("at_once", 1), ("at_once", 2), ("retry", 1)]
WHOLE = [*WITHOUT_ORDER, ("out_of_order", 1), ("out_of_order", 2)]


# ── a history, and apps ───────────────────────────────────────────────────────────────────────────────────────────


def variable(provider):
    return f"{provider.provider.upper()}_SECRET"


class Book:
    """A history that was imported: webhooks that came some time ago, to an app."""

    _numbers = itertools.count()

    def __init__(self, folder, app):
        self.folder, self.app, self.environment = folder, app, {}
        self.rows = []  # that are not imported yet

    def keep(self, webhook, provider=None, age=3600, endpoint="billing", method="POST", size=None, url=None, **known):
        """Its id. `known`: what the history says of it as a webhook."""
        number = f"req_01ARZ3NDEKTSV4RRFFQ69G{next(self._numbers):04d}"
        body = {"base64": base64_of(webhook.body)}
        fields = [["host", HOST], *map(list, webhook.headers), ["x-forwarded-proto", "https"]]
        if webhook.body:
            fields.append(["content-length", str(size or len(webhook.body))])
        row = {
            "id": number,
            "endpoint": endpoint,
            "received_at": datetime.fromtimestamp(time.time() - age, timezone.utc).isoformat().replace("+00:00", "Z"),
            "request": {"method": method, "path": webhook.target, "headers": fields, "body": {"bytes": body}},
            "webhook": {"provider": provider and provider.provider} | known,
            "attempts": [],
        }
        if size:
            row["request"]["body"]["size"] = size
        if self.app or url:
            outcome = {"state": "answered", "status": 200}
            url = url or f"http://{self.app.address}{webhook.target}"
            row["attempts"] = [{"number": 1, "url": url, "outcome": outcome}]
        self.rows.append(row)
        return number

    def signed(self, provider, body=None, age=3600, number=0, path="/hook?a=%27", marks=(), **known):
        """An old webhook as its provider signed it, and its id."""
        body = provider.body("4-byte") if body is None else body
        webhook = provider.sign(provider.key(number), body, f"https://{HOST}{path}", time.time() - age)
        webhook.headers = [*marks, *webhook.headers]
        self.environment[variable(provider)] = provider.key().verifies
        return webhook, self.keep(webhook, provider, age, **known)

    def run(self, *words, **environment):
        if self.rows:
            lines = "\n".join(map(json.dumps, self.rows)).encode()
            good(command("requests", "import", "-", folder=self.folder, stdin=lines))
            self.rows.clear()
        return command(*words, folder=self.folder, **(self.environment | environment))


def event(number="evt_1", kind="charge.succeeded", **more):
    return compact({"id": number, "type": kind} | more)


def answer(status=200, body=b"ok"):
    return b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


class Shop:
    """An app that keeps one order a line in a file, for a probe to count. `handle` is its character."""

    def __init__(self, file):
        self.file, self.lock, self.known = file, threading.Lock(), set()
        self.gate = threading.Barrier(2)
        file.write_text("")

    def __call__(self, seen, _connection):
        return self.handle(json.loads(seen.body)["id"])

    def book(self, number):
        with self.lock, self.file.open("a") as file:
            file.write(f"{number}\n")

    def handle(self, number):
        raise NotImplementedError


class Idempotent(Shop):
    def handle(self, number):
        with self.lock:
            new = number not in self.known
            self.known.add(number)
        if new:
            self.book(number)
        return answer()


class Careless(Shop):
    """Books each delivery."""

    def handle(self, number):
        self.book(number)
        return answer()


class Racing(Shop):
    """Well as long as one comes at a time; two that are in it together are both booked."""

    def __init__(self, file):
        super().__init__(file)
        self.inside = 0

    def handle(self, number):
        with self.lock:
            self.inside += 1
        try:
            # Two at once meet here, one alone waits in vain.
            with contextlib.suppress(threading.BrokenBarrierError):
                self.gate.wait(0.3)
                self.book(f"{number} again")
        finally:
            with self.lock:
                self.inside -= 1
                if not self.inside:
                    self.gate.reset()
        with self.lock:
            new = number not in self.known
            self.known.add(number)
        if new:
            self.book(number)
        return answer()


class Ordered(Shop):
    """Writes the state that an event tells: an old one after a later one overwrites it."""

    def handle(self, number):
        self.file.write_text(f"{number}\n")
        return answer()


class Refusing(Shop):
    """Answers repeats with a status of its own."""

    status = 500

    def handle(self, number):
        with self.lock:
            new = number not in self.known
            self.known.add(number)
        return answer() if new else answer(self.status, b"again?")


class Conflicting(Refusing):
    status = 409


class Talkative(Shop):
    """Says something else to a repeat, and does nothing."""

    def handle(self, number):
        with self.lock:
            new = number not in self.known
            self.known.add(number)
        return answer(200, b"thanks" if new else b"already known")


@pytest.fixture
def apps():
    """`apps(character)`: a local app that answers so; else one that takes everything."""
    with contextlib.ExitStack() as stack:
        yield lambda character=lambda *_: answer(): stack.enter_context(RawApp(answer=character))


@pytest.fixture
def book(tmp_path, apps):
    """A history of an app that takes everything."""
    return Book(tmp_path, apps())


def shop_and_book(apps, folder, character):
    shop = character(folder / "orders")
    return shop, Book(folder, apps(shop))


STRIPE, SLACK = BY_NAME["stripe"], BY_NAME["slack"]


def two_events(book, provider=STRIPE):
    """An event and a later one; the first one's id."""
    _, first = book.signed(provider, event("evt_1"), dedup_id="evt_1")
    book.signed(provider, event("evt_2"), age=3000, dedup_id="evt_2")
    return first


def drilled(book, number, *words, code=0, provider=STRIPE, **environment):
    """The lines of a drill in JSON, and the last one."""
    verify = ["--verify", f"{provider.provider}={variable(provider)}"] if provider else []
    done = book.run("drill", number, "--json", *verify, *words, **environment)
    assert done.code == code, done
    *lines, last = done.json
    assert last["event"] == "drilled", last
    before = [lines.pop(0)] if "--probe" in words else []
    assert all((line["event"], line["when"]) == ("probe", "before") for line in before), before
    assert {line["event"] for line in lines} == {"drill"}, lines
    return lines, last


def scenarios(lines):
    return [(line["scenario"], line["n"]) for line in lines]


def named(reasons, *words):
    """Whether each of the reasons is about one of these, and each of these has one."""
    begins = {reason.partition(":")[0] for reason in reasons}
    return begins == set(words)


# ── characters ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_idempotent_handler_looks_so(apps, tmp_path):
    shop, book = shop_and_book(apps, tmp_path, Idempotent)
    lines, last = drilled(book, two_events(book), "--probe", f"cat {shop.file}")
    assert scenarios(lines) == WHOLE
    assert last["idempotent"] is True and last["reasons"] == [] and last["probed"] is True
    assert {(line["status"], line["error"]) for line in lines} == {(200, None)}
    assert shop.file.read_text() == "evt_1\nevt_2\n"


def test_a_handler_that_books_twice_does_not(apps, tmp_path):
    shop, book = shop_and_book(apps, tmp_path, Careless)
    lines, last = drilled(book, two_events(book), "--probe", f"cat {shop.file}", code=1)
    assert last["idempotent"] is False
    assert named(last["reasons"], "twice in a row", "twice at once", "a retry after a time-out", "after a later event")
    assert all("probe" in reason for reason in last["reasons"])
    # It was put to the app seven times, all the same.
    assert scenarios(lines) == WHOLE and len(shop.file.read_text().splitlines()) == 7


def test_without_a_probe_a_double_booking_goes_unnoticed_and_one_is_recommended(apps, tmp_path):
    _, book = shop_and_book(apps, tmp_path, Careless)
    number = two_events(book)
    _, last = drilled(book, number)
    assert last["idempotent"] is True and last["probed"] is False
    done = good(book.run("drill", number))
    assert "looks idempotent" in done.text and "by its answers" in done.said and "--probe" in done.said


def test_a_race_shows_itself_at_once_and_there_only(apps, tmp_path):
    shop, book = shop_and_book(apps, tmp_path, Racing)
    lines, last = drilled(book, two_events(book), "--probe", f"cat {shop.file}", code=1)
    assert shop.file.read_text().count("again") == 2
    # What changed then did not change once more by what followed.
    assert named(last["reasons"], "twice at once"), last["reasons"]
    changed = [(line["scenario"], line["n"]) for line in lines if line["probe"] and line["probe"]["changed"]]
    assert set(changed) <= {("in_a_row", 1), ("at_once", 2), ("out_of_order", 1)}, changed


@pytest.mark.parametrize("character", [Refusing, Conflicting])
def test_a_repeat_that_is_refused_would_come_again_and_again(apps, tmp_path, character):
    _, book = shop_and_book(apps, tmp_path, character)
    lines, last = drilled(book, two_events(book), code=1)
    assert [line["status"] for line in lines] == [200, *[character.status] * 4, 200, character.status]
    assert all(str(character.status) in reason for reason in last["reasons"])
    assert named(last["reasons"], "twice in a row", "twice at once", "a retry after a time-out", "after a later event")


def test_another_answer_is_told_and_no_fault(apps, tmp_path):
    _, book = shop_and_book(apps, tmp_path, Talkative)
    number = two_events(book)
    lines, last = drilled(book, number)
    assert last["idempotent"] is True
    assert [line["body"] for line in lines[:5]] == [None, *["other"] * 4]
    # It is another event by now, and the app answers as it did to the first of these.
    again, _ = drilled(book, number)
    assert [line["body"] for line in again[:5]] == [None, *["same"] * 4]
    book.app.answer = Talkative(tmp_path / "anew")
    assert good(book.run("drill", number)).text.count("another answer") == 5


def test_a_handler_that_old_news_confuses(apps, tmp_path):
    shop, book = shop_and_book(apps, tmp_path, Ordered)
    lines, last = drilled(book, two_events(book), "--probe", f"cat {shop.file}", code=1)
    assert named(last["reasons"], "after a later event")
    assert not any(line["probe"] and line["probe"]["changed"] for line in lines[1:5])
    assert lines[-1]["probe"]["changed"] is True


def test_a_slow_repeat_is_told_in_milliseconds(apps, tmp_path):
    calls = itertools.count()

    def slow(*_):
        time.sleep(0.6 if next(calls) == 1 else 0)
        return answer()

    book = Book(tmp_path, apps(slow))
    _, number = book.signed(STRIPE, event())
    lines, _ = drilled(book, number)
    assert lines[0]["slower"] is None
    assert lines[1]["duration_ms"] >= 600 and lines[1]["slower"] > 200
    for line in lines[1:]:
        assert line["slower"] == pytest.approx(line["duration_ms"] - lines[0]["duration_ms"], abs=0.3)


def test_two_at_once_are_in_the_app_at_the_same_time(apps, tmp_path):
    gate, met = threading.Barrier(2), []
    calls = itertools.count()

    def meeting(*_):
        if next(calls) in (2, 3):
            gate.wait(10)
            met.append(True)
        return answer()

    book = Book(tmp_path, apps(meeting))
    _, number = book.signed(STRIPE, event())
    drilled(book, number)
    assert met == [True, True]


# ── an app that does not take it ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [400, 401, 500, 503])
def test_an_app_that_does_not_take_the_first_one_is_6(apps, tmp_path, status):
    book = Book(tmp_path, apps(lambda *_: answer(status)))
    done = book.run("drill", two_events(book), "--verify", f"stripe={variable(STRIPE)}")
    assert done.code == 6 and "error: " in done.said and "  next: " in done.said, done
    assert str(status) in done.text and "idempotent" not in done.text
    # Nothing else is put to it.
    assert len(book.app.seen) == 1
    # The next step that is named leads to what it said.
    shown = re.search(r"hookway (requests show req_\w+)", done.said)[1]
    assert f"{status}" in good(book.run(*shown.split())).text


def test_an_app_that_is_down_is_6(tmp_path, apps):
    book = Book(tmp_path, None)
    with RawApp() as gone:
        address = gone.address
    _, number = book.signed(STRIPE, event(), url=f"http://{address}/hook")
    done = book.run("drill", number)
    assert done.code == 6 and "refused" in done.text + done.said, done


def test_redirects_and_other_successes_are_taken(apps, tmp_path):
    book = Book(tmp_path, apps(lambda *_: answer(204, b"").replace(b"Content-Length: 0\r\n", b"")))
    lines, last = drilled(book, two_events(book))
    assert {line["status"] for line in lines} == {204} and last["idempotent"] is True


def test_an_answer_that_breaks_off_is_a_reason(apps, tmp_path):
    calls = itertools.count()

    def breaks(_seen, socket):
        if next(calls) != 1:
            return answer()
        socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        return None

    book = Book(tmp_path, apps(breaks))
    lines, last = drilled(book, two_events(book), code=1)
    assert lines[1]["error"], lines[1]
    assert named(last["reasons"], "twice in a row")


def test_an_app_that_is_too_slow_to_a_repeat(apps, tmp_path):
    calls = itertools.count()

    def slow(*_):
        if next(calls) == 1:
            time.sleep(2)
        return answer()

    book = Book(tmp_path, apps(slow))
    lines, last = drilled(book, two_events(book), "--timeout", "500ms", code=1)
    assert lines[1]["status"] is None and "timeout" in lines[1]["error"]
    assert named(last["reasons"], "twice in a row")


# ── as the provider sends it ──────────────────────────────────────────────────────────────────────────────────────

SHARED = [
    *("stripe", "github", "slack", "shopify", "shopify-events", "twilio", "twilio-json", "standard", "standard-svix"),
    *("square", "gitlab", "linear", "paddle", "zoom"),
]
AGENTS = {"mailgun": [("User-Agent", "mailgun/treq-20.9.0")]}


def seen_by(app):
    return [Webhook(f"https://{HOST}{seen.target}", seen.body, seen.headers) for seen in app.seen]


@pytest.mark.parametrize("name", [*SHARED, "mailgun"])
def test_every_delivery_is_signed_as_of_now(book, name):
    """The original is an hour old; the app checks each by the SDK, at the present time."""
    provider = BY_NAME[name]
    marks = AGENTS.get(name, ())
    original, number = book.signed(provider, marks=marks)
    before = int(time.time())
    lines, last = drilled(book, number, provider=provider)
    assert scenarios(lines) == WITHOUT_ORDER and last["idempotent"] is True
    webhooks = seen_by(book.app)
    assert len(webhooks) == 5
    for webhook in webhooks:
        verdicts = provider.verdicts(provider.key().verifies, webhook)
        assert set(verdicts.values()) <= {True, None} and verdicts["documentation"], verdicts
        with contextlib.suppress(NotImplementedError):
            assert before <= provider.moment(webhook) <= time.time()
        assert webhook.target == original.target
        if provider.nearest != "JSON":
            assert webhook.body == original.body
    assert {line["resigned"] for line in lines} == {True}


@pytest.mark.parametrize("name", ["sendgrid", "discord", "standard-v1a"])
def test_with_a_key_of_ones_own_where_only_the_provider_has_the_other(book, name):
    provider = BY_NAME[name]
    good(book.run("keys", "create", provider.provider))
    (shown,) = good(book.run("keys", "show", provider.provider, "--json")).json
    _, number = book.signed(provider)
    drilled(book, number, provider=provider)
    for webhook in seen_by(book.app):
        assert provider.verify(shown["public_key"], webhook)
        assert not provider.verify(provider.key().verifies, webhook)


@pytest.mark.parametrize("body", BODIES)
def test_bodies_come_as_they_were(book, body):
    original, number = book.signed(BY_NAME["standard"], BODIES[body])
    drilled(book, number, provider=BY_NAME["standard"])
    assert len(book.app.seen) == 5
    assert {webhook.body for webhook in seen_by(book.app)} == {original.body}


def test_nothing_marks_a_repeat_but_what_the_provider_adds(book):
    """An app that trusted a mark of Hookway's would be drilled in vain."""
    _, number = book.signed(STRIPE, event())
    drilled(book, number)
    for seen in book.app.seen:
        marks = own_marks(seen.headers)
        assert not {"hookway-attempt", "hookway-possible-duplicate", "hookway-received-at"} & set(marks), marks
    # Each has an id of its own, as if it were new.
    assert len({seen.header("hookway-delivery") for seen in book.app.seen}) == 5


@pytest.mark.parametrize("name", ["slack", "square", "stripe", "github"])
def test_the_retry_has_the_fields_of_the_provider_and_it_alone(book, name):
    provider = BY_NAME[name]
    body = compact({"type": "event_callback", "event_id": "Ev1", "event": {"type": "message"}})
    _, number = book.signed(provider, body)
    book.signed(provider, body.replace(b"Ev1", b"Ev2"), age=3000)
    lines, _ = drilled(book, number, provider=provider)
    assert scenarios(lines) == WHOLE
    fields = [
        {key.lower(): value for key, value in seen.headers if "retry" in key.lower()} for seen in book.app.seen
    ]
    assert fields == [RETRY.get(name, {}) if scenario == "retry" else {} for scenario, _ in WHOLE]


def test_a_retry_of_a_retry_says_so_once(book):
    """The original was a retry itself."""
    marks = [("X-Slack-Retry-Num", "2"), ("X-Slack-Retry-Reason", "http_error")]
    body = compact({"type": "event_callback", "event_id": "Ev1"})
    _, number = book.signed(SLACK, body, marks=marks)
    drilled(book, number, provider=SLACK)
    assert [len(seen.all("x-slack-retry-num")) for seen in book.app.seen] == [1] * 5
    assert book.app.seen[4].header("x-slack-retry-num") == "1"


def test_without_the_secret_it_goes_as_it_was(book):
    original, number = book.signed(STRIPE, event())
    lines, _ = drilled(book, number, provider=None)
    assert {line["resigned"] for line in lines} == {False}
    assert {webhook.fields["stripe-signature"] for webhook in seen_by(book.app)} == {
        original.fields["stripe-signature"]
    }


def test_one_with_a_bad_signature_is_never_signed_afresh(book):
    original, number = book.signed(STRIPE, event(), number=2)
    lines, _ = drilled(book, number)
    assert {line["resigned"] for line in lines} == {False}
    for webhook in seen_by(book.app):
        assert webhook.fields["stripe-signature"] == original.fields["stripe-signature"]


def test_a_refused_signature_leads_to_the_secret(apps, tmp_path):
    """The most likely first try: an app that checks, a drill that was not told the secret."""

    def checks(seen, _):
        webhook = Webhook(f"https://{HOST}{seen.target}", seen.body, seen.headers)
        return answer() if STRIPE.verify(STRIPE.key().verifies, webhook) else answer(401, b"bad signature")

    book = Book(tmp_path, apps(checks))
    _, number = book.signed(STRIPE, event())
    done = book.run("drill", number)
    assert done.code == 6 and "--verify stripe" in done.said, done
    drilled(book, number)
    # The variable that the provider's documentation names need not be named.
    good(book.run("drill", number, STRIPE_WEBHOOK_SECRET=STRIPE.key().verifies))


def test_what_no_provider_sent_is_drilled_as_well(book):
    webhook = Webhook(f"https://{HOST}/plain", b"a=b", [("X-Own", "1"), ("X-Own", "2")])
    lines, last = drilled(book, book.keep(webhook), provider=None)
    assert scenarios(lines) == WITHOUT_ORDER and last["idempotent"] is True
    for seen in book.app.seen:
        assert (seen.target, seen.body, seen.all("x-own")) == ("/plain", b"a=b", ["1", "2"])


# ── the later event ───────────────────────────────────────────────────────────────────────────────────────────────

UNTRIED = "the order was not tried"


def bodies(app):
    return [json.loads(seen.body)["id"] for seen in app.seen]


def test_the_next_of_several_is_the_later_one(book):
    book.signed(STRIPE, event("evt_0"), age=5000, dedup_id="evt_0")
    number = two_events(book)
    book.signed(STRIPE, event("evt_3"), age=2000, dedup_id="evt_3")
    drilled(book, number)
    assert bodies(book.app) == [*["evt_1"] * 5, "evt_2", "evt_1"]
    # Once more: what was drilled is no event that came.
    book.app.clear()
    drilled(book, number)
    assert bodies(book.app) == [*["evt_1"] * 5, "evt_2", "evt_1"]


@pytest.mark.parametrize("lacks", ["alone", "endpoint", "provider", "path", "earlier", "same event", "cut"])
def test_without_a_later_one_a_note_says_so(book, lacks):
    other = {"age": 3000, "dedup_id": "evt_2"}
    if lacks == "earlier":
        book.signed(STRIPE, event("evt_2"), **other | {"age": 5000})
    _, number = book.signed(STRIPE, event("evt_1"), dedup_id="evt_1")
    match lacks:
        case "endpoint":
            book.signed(STRIPE, event("evt_2"), endpoint="other", **other)
        case "provider":
            book.signed(BY_NAME["linear"], compact({"id": "evt_2", "webhookTimestamp": "@now@"}), **other)
        case "path":
            book.signed(STRIPE, event("evt_2"), path="/other", **other)
        case "same event":
            book.signed(STRIPE, event("evt_1"), age=3000, dedup_id="evt_1")
        case "cut":
            book.signed(STRIPE, event("evt_2"), size=5 * MIB, **other)
    done = good(book.run("drill", number))
    assert UNTRIED in done.said and "after a later event" not in done.text
    assert len(book.app.seen) == 5
    lines, last = drilled(book, number)
    assert scenarios(lines) == WITHOUT_ORDER and last["idempotent"] is True


def test_another_query_is_the_same_path(book):
    _, number = book.signed(STRIPE, event("evt_1"), dedup_id="evt_1", path="/hook?n=1")
    book.signed(STRIPE, event("evt_2"), dedup_id="evt_2", path="/hook?n=2")
    drilled(book, number)
    assert [seen.target for seen in book.app.seen][-2:] == ["/hook?n=2", "/hook?n=1"]


# ── --probe ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_probe_is_run_before_and_after_each(apps, tmp_path):
    """Its output and its exit code, at the moments between the deliveries."""
    app = apps()
    book = Book(tmp_path, app)
    number = two_events(book)
    drilled(book, number, "--probe", "echo . >> calls; echo same")
    # Before, after the first, after each repeat, the pair as one, after the later event.
    assert len((tmp_path / "calls").read_text().splitlines()) == 7


def test_what_a_probe_prints_is_compared(apps, tmp_path):
    shop, book = shop_and_book(apps, tmp_path, Careless)
    lines, last = drilled(book, two_events(book), "--probe", f"wc -l < {shop.file}", code=1)
    assert last["reasons"] and lines[1]["probe"] == {"exit": 0, "changed": True}


def test_the_exit_code_of_a_probe_is_compared(apps, tmp_path):
    shop, book = shop_and_book(apps, tmp_path, Careless)
    probe = f"test $(wc -l < {shop.file}) -lt 2"
    number = two_events(book)
    lines, last = drilled(book, number, "--probe", probe, code=1)
    assert lines[0]["probe"]["exit"] == 0
    assert lines[1]["probe"] == {"exit": 1, "changed": True}
    first = book.run("drill", number, "--json", "--probe", "exit 4").json[0]
    assert first == {"event": "probe", "when": "before", "exit": 4}
    assert any("twice in a row" in reason for reason in last["reasons"])


def test_a_probe_that_always_fails_says_nothing_of_the_app(apps, tmp_path):
    _, book = shop_and_book(apps, tmp_path, Idempotent)
    lines, last = drilled(book, two_events(book), "--probe", "exit 3")
    assert last["idempotent"] is True and {line["probe"]["exit"] for line in lines if line["probe"]} == {3}


@pytest.mark.parametrize("probe", ["no-such-command-here --x", "./not-executable"])
def test_a_probe_that_is_not_there_is_told(book, probe):
    """Not taken for a state that stays the same."""
    (book.folder / "not-executable").write_text("")
    done = book.run("drill", two_events(book), "--probe", probe)
    assert done.code == 1 and probe.split()[0] in done.said and "looks idempotent" not in done.text, done
    assert not book.app.seen


@pytest.mark.skipif(not LONG, reason="takes as long as a probe may, 30 s")
def test_a_probe_that_hangs_is_given_up(book):
    done = book.run("drill", two_events(book), "--probe", "sleep 55")
    assert "30 s" in failed(done, 1)


def test_a_probe_reads_nothing_of_ours(book):
    """stdin is not the terminal's."""
    drilled(book, two_events(book), "--probe", "cat; pwd")


def test_people_see_the_probe_before_and_after(apps, tmp_path):
    shop, book = shop_and_book(apps, tmp_path, Careless)
    done = book.run("drill", two_events(book), "--probe", f"cat {shop.file}")
    assert done.code == 1
    assert "before" in done.text and done.text.count("probe exit 0") >= 6 and "changed" in done.text


# ── flags and words ───────────────────────────────────────────────────────────────────────────────────────────────


def test_it_goes_where_it_is_told(apps, tmp_path):
    there, elsewhere = apps(), apps()
    book = Book(tmp_path, there)
    number = two_events(book)
    drilled(book, number, "--to", elsewhere.address)
    assert len(elsewhere.seen) == 7 and not there.seen
    drilled(book, number, "--to", f"http://{elsewhere.address}/below")
    assert elsewhere.seen[-1].target == "/below/hook?a=%27"


def test_one_that_reached_no_app_wants_to_be_told_where(tmp_path, apps):
    book = Book(tmp_path, None)
    _, number = book.signed(STRIPE, event())
    said = failed(book.run("drill", number), 1)
    assert "--to" in said and number in said
    drilled(book, number, "--to", apps().address)


FIELDS = {"event", "scenario", "n", "id", "status", "error", "duration_ms", "slower", "body", "resigned", "probe"}


def test_json_says_all(book):
    number = two_events(book)
    lines, last = drilled(book, number, "--probe", "true")
    assert all(set(line) == FIELDS for line in lines)
    assert set(last) == {"event", "id", "idempotent", "probed", "reasons"}
    assert last["id"] == number
    # Each is kept, as a replay of the original or of the later one.
    kept = {row["id"]: row for row in good(book.run("requests", "list", "--json")).json}
    of_the_first = [kept[line["id"]]["replay_of"] == number for line in lines]
    assert of_the_first == [scene != ("out_of_order", 1) for scene in WHOLE]
    assert [kept[line["id"]]["status"] for line in lines] == [200] * 7


def test_lines_for_people(book):
    done = good(book.run("drill", two_events(book)))
    for title in ("twice in a row", "twice at once", "a retry after a time-out", "after a later event"):
        assert done.text.count(title) == 1
    lines = [line for line in done.lines if re.search(r" [12]  200 ", line)]
    assert len(lines) == 7 and all(len(line) <= 100 for line in done.lines)
    assert "The handler looks idempotent." in done.text
    assert "\x1b" not in done.text


def test_quiet_is_quiet(book):
    done = good(book.run("drill", two_events(book), "-q"))
    assert not done.said


CHALLENGES = {
    "slack": compact({"type": "url_verification", "challenge": "c", "token": "t"}),
    "zoom": compact({"event": "endpoint.url_validation", "payload": {"plainToken": "t"}}),
    "discord": compact({"type": 1, "id": "1"}),
    "github": None,
}


@pytest.mark.parametrize("name", CHALLENGES)
def test_a_challenge_is_refused(book, name):
    provider, body = BY_NAME[name], CHALLENGES[name]
    if name == "github":
        webhook = Webhook(f"https://{HOST}/hook", b"{}", [("X-GitHub-Event", "ping"), ("X-Hub-Signature-256", "x")])
        number = book.keep(webhook, provider)
    else:
        _, number = book.signed(provider, body)
    said = failed(book.run("drill", number), 2)
    assert "challenge" in said and number in said
    assert not book.app.seen


@pytest.mark.parametrize("which", ["req_01ARZ3NDEKTSV4RRFFQ69GZZZZ", "@9"])
def test_an_unknown_id_is_1(book, which):
    two_events(book)
    failed(book.run("drill", which), 1)


def test_what_is_no_id_is_2(book):
    done = book.run("drill", "what is this")
    assert done.code == 2 and not done.raw and done.said


def test_without_an_id_is_2(book):
    assert book.run("drill").code == 2


def test_one_whose_body_is_cut_is_refused(book):
    _, number = book.signed(STRIPE, event(), size=5 * MIB)
    said = failed(book.run("drill", number, "--probe", "echo . >> calls"), 1)
    assert number in said and "whole" in said
    assert not book.app.seen


def test_a_secret_that_is_not_set_is_named(book):
    number = two_events(book)
    said = failed(book.run("drill", number, "--verify", "stripe=NOT_SET"), 7)
    assert "NOT_SET" in said and not book.app.seen


def test_no_secret_is_printed(book):
    webhook, number = book.signed(
        STRIPE, event(client_secret=f"{CANARY}-body"), marks=[("Authorization", f"Bearer {CANARY}"), ("Cookie", CANARY)]
    )
    secrets = [CANARY, STRIPE.key().verifies, webhook.fields["stripe-signature"].partition("v1=")[2]]
    for words in ([], ["--json"], ["-v"], ["-vv"]):
        done = good(book.run("drill", number, "--verify", f"stripe={variable(STRIPE)}", *words))
        fresh = [seen.header("stripe-signature").partition("v1=")[2] for seen in book.app.seen]
        assert not [secret for secret in secrets + fresh if secret in done.text + done.said], words


def test_what_an_app_says_steers_no_terminal(apps, tmp_path):
    """Its answers are not printed; neither is what a probe prints."""
    book = Book(tmp_path, apps(lambda *_: answer(200, b"\x1b[2J\x9b")))
    done = good(book.run("drill", two_events(book), "--probe", r"printf '\033[2J'"))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.text + done.said)


def test_without_a_history_there_is_nothing_to_drill(tmp_path):
    failed(command("drill", "@1", folder=tmp_path), 1)


def test_help_names_the_flags(tmp_path):
    text = good(command("drill", "--help", folder=tmp_path)).text
    assert "--probe" in text and "--to" in text
