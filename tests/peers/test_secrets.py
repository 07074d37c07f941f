"""What must not be read anywhere, and what must not reach a terminal (threats 7, 12, 18)."""

import asyncio
import contextlib
import json
import pathlib
import re
import subprocess
import unicodedata
import time

import pytest
from test_quic_hostile import hello, parse, peer

from world import DOMAIN, HOOKWAY, Closed, World, eventually, request

TOKEN_REFUSED, LIMIT = 2, 5


def files(folder):
    """Every file below, with its bytes."""
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if path.is_file():
            with contextlib.suppress(OSError):
                yield path, path.read_bytes()


# ── tokens and canaries ───────────────────────────────────────────────────────────────────────────────────────────

CANARIES = {
    "authorization": "Bearer canary-authorization-7f3a", "cookie": "session=canary-cookie-7f3a", "x-api-key": "canary-key-7f3a",
    "stripe-signature": "t=1,v1=canary-signature-7f3a", "x-hub-signature-256": "sha256=canary-hub-7f3a", "proxy-authorization": "Basic canary-proxy-7f3a",
}  # fmt: skip
BODY_CANARY = b"canary-body-7f3a"


@pytest.fixture(scope="module")
def talkative():
    """A world whose programs log all they can, after a day's work: deliveries, a wrong token, a taken name, a restart."""
    with World("--log", "trace", environment={"RUST_LOG": "trace"}) as world:
        app = world.app()
        client = world.client(app, "-v", "-v", environment={"RUST_LOG": "trace"})
        for path in ("/hook?secret=canary-query-7f3a", "/other"):
            assert world.post(path, b'{"password": "' + BODY_CANARY + b'"}', headers=list(CANARIES.items())).status == 200
        wrong = "hwt_" + "W" * 43
        refused = world.client(app, "-v", name="wrong", token=wrong, wait=False, environment={"RUST_LOG": "trace"})
        assert refused.exited() == 4
        stranger = world.token("stranger")
        taken = world.client(app, "-v", token=stranger, wait=False, environment={"RUST_LOG": "trace"})
        assert taken.exited() == 5
        client.delivery(path="/other")
        answers = [world.get("/x", name="nobody"), world.post("/x", b"x", name="wrong")]
        world.secrets = [world.default_token, wrong, stranger]
        world.answers = b"".join(answer.body + repr(answer.headers).encode() for answer in answers)
        yield world


def test_no_token_in_any_command_line(talkative):
    for program in talkative.programs:
        if program.running:
            line = pathlib.Path(f"/proc/{program.pid}/cmdline").read_bytes()
            assert not any(token.encode() in line for token in talkative.secrets)


def test_no_token_in_any_file_or_log(talkative):
    """Logs at trace, the relay's store, the client's history and configuration."""
    seen = 0
    for path, data in files(talkative.folder):
        seen += 1
        for token in talkative.secrets:
            # Half of it would be too much as well.
            assert token.encode() not in data and token[4:26].encode() not in data, path
    assert seen >= 4


def test_no_token_in_what_is_printed_or_answered(talkative):
    printed = b"".join(b"".join(program.lines) for program in talkative.programs)
    _, metrics = talkative.relay.get("/metrics")
    for token in talkative.secrets:
        assert token[4:26].encode() not in printed + talkative.answers + metrics.encode()


@pytest.mark.parametrize("name", [*CANARIES, "query", "body"])
def test_no_secret_of_a_sender_in_any_log(talkative, name):
    """Known names of secrets are masked before they are logged, at any level; bodies are not logged at all."""
    canary = {"query": b"canary-query-7f3a", "body": BODY_CANARY}.get(name) or CANARIES[name].encode()
    for program in talkative.programs:
        assert canary not in program.errors.read_bytes(), program.title


@pytest.mark.parametrize("name", [*CANARIES, "query", "body"])
def test_no_secret_of_a_sender_in_any_file(talkative, name):
    """The client's history and the relay's store are sealed."""
    canary = {"query": b"canary-query-7f3a", "body": BODY_CANARY}.get(name) or CANARIES[name].encode()
    logs = {program.errors for program in talkative.programs}
    for path, data in files(talkative.folder):
        assert path in logs or canary not in data, path


def test_secret_files_are_for_their_owner_alone(talkative):
    for path, data in files(talkative.folder):
        if b"PRIVATE KEY" in data or path.name in ("key", "history.db", "relay.db", "ca.key") or path.suffix in (".db", ".key"):
            assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0, path


def test_tokens_are_listed_without_their_secret(talkative):
    listed = json.dumps(talkative.relay.command("token", "list"))
    assert "ci" in listed and "stranger" in listed
    assert not any(token[4:26] in listed for token in talkative.secrets)


def test_a_token_is_no_flag(talkative):
    """`ps` shows flags to everyone."""
    done = subprocess.run([HOOKWAY, "3000", "--token", "hwt_x"], capture_output=True, timeout=20, check=False)
    assert done.returncode == 2


def test_a_token_has_256_bits_and_a_prefix_for_scanners(talkative):
    for token in talkative.secrets:
        assert re.fullmatch(r"hwt_[0-9A-Za-z_-]{43,}", token)
    assert len({talkative.token(f"many-{number}") for number in range(5)}) == 5


# ── guessing, revoking, expiring ──────────────────────────────────────────────────────────────────────────────────


def test_guessing_tokens_is_throttled(new_world):
    """Two hundred wrong tokens from one address: most are not even looked up, and who is connected stays so."""
    world = new_world()
    client = world.client(world.app())

    async def guess(number):
        try:
            async with peer(world) as connection:
                connection.write(0, hello("hwt_" + f"{number:043d}", "guess"))
                return parse_code(await connection.message(10))
        except (ConnectionError, TimeoutError):
            return None

    async def guesses():
        codes = []
        for start in range(0, 200, 10):
            codes += await asyncio.gather(*[guess(number) for number in range(start, start + 10)])
        return codes

    codes = asyncio.run(guesses())
    assert 0 not in codes
    looked_up = codes.count(TOKEN_REFUSED)
    assert 0 < looked_up < 100, f"{looked_up} of 200 were looked up"
    assert codes[-1] in (LIMIT, None)
    assert world.get("/x").status == 200 and client.running


def parse_code(message):
    """The code of a Refused; 0 for a Welcome."""
    if not message:
        return None
    return parse(message[2][0]).get(1, [0])[0] if 2 in message else 0


def test_a_revoked_token_ends_its_session_within_5_s(new_world):
    world = new_world()
    app = world.app()
    client = world.client(app, token=world.token("leaked"))
    other = world.client(world.app(name="other"), name="other", token=world.token("sound"))
    assert world.get("/before").status == 200
    started = time.monotonic()
    world.relay.command("token", "revoke", "leaked")
    eventually(lambda: not client.running or client.find("session", lambda event: event["state"] == "down"), 6, "the session ending")
    assert time.monotonic() - started < 5.5
    eventually(lambda: world.get("/after").status != 200, 2, "nothing more being delivered")
    app.clear()
    assert world.post("/later", b"x").status in (202, 503, 404)
    assert not app.at("/later")
    assert client.exited() == 4
    assert other.running and world.get("/x", name="other").status == 200


def test_a_revoked_token_does_not_come_back(new_world):
    world = new_world()
    token = world.token("leaked")
    world.relay.command("token", "revoke", "leaked")
    assert world.client("127.0.0.1:9", token=token, wait=False).exited() == 4


def test_an_expired_token_is_refused(new_world):
    world = new_world()
    token = world.token("short", "--expires", "1s")
    client = world.client(world.app(), token=token, wait=False)
    if client.running:
        eventually(lambda: not client.running, 12, "the session of an expired token ending")
    assert client.exited() == 4


def test_a_token_serves_only_the_names_it_was_made_for(new_world):
    world = new_world()
    token = world.token("narrow", "--endpoints", "billing-*")
    assert world.client("127.0.0.1:9", name="shipping", token=token, wait=False).exited() == 5
    world.client(world.app(), name="billing-eu", token=token)
    assert world.get("/x", name="billing-eu").status == 200


# ── terminals ─────────────────────────────────────────────────────────────────────────────────────────────────────

EVIL = {
    "escape-encoded": "/%1b[2J%1b]0;owned%07", "c1-encoded": "/%c2%9b2J", "bidi-raw": "/a\u202eb\u2066c", "c1-raw": "/a\u009b2Jb", "osc8-encoded": "/%1b]8;;http://evil%1b\\",
    "crlf-encoded": "/a%0d%0a14:02:07  POST  /faked   200", "zero-width": "/a\u200b\u200db\ufeff", "line-separators": "/a\u2028b\u2029c\u0085d", "quotes": "/a'b\"c`d$(e)",
    "html": "/<script>alert(1)</script>", "long": "/" + "a" * 8000, "tags": "/\U000e0041\U000e0042", "combining": "/a" + "\u0301" * 200, "high": "/\udcff\udcfe",
}  # fmt: skip
EVIL_FIELDS = {
    "User-Agent": "evil\u009b2J\u202e", "Content-Type": "text/plain; x=\u009b31m", "Stripe-Signature": "t=1,v1=\u202egpj.exe", "X-GitHub-Event": "push\u2028\u009b",
    "X-GitHub-Delivery": "id\u202e\u009b", "Webhook-Id": "msg_\u009b2J", "Accept": "\u0090\u009c\u009d8;;x",
}  # fmt: skip
CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"
SHOWN_NEVER = {"json": re.compile(f"[{CONTROLS}]"), "plain": re.compile(f"[{CONTROLS}\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")}


def evil_requests():
    for path in EVIL.values():
        yield request_bytes(path)
    for name, value in EVIL_FIELDS.items():
        yield request_bytes("/field", [(name, value)])
    yield request_bytes("/fields", list(EVIL_FIELDS.items()))


def request_bytes(path, headers=()):
    text = f"POST {path} HTTP/1.1\r\nHost: billing.{DOMAIN}\r\nContent-Length: 2\r\n"
    return (text + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\nhi").encode("utf-8", "surrogateescape")


def send_evil(world):
    """How many were accepted."""
    accepted = 0
    for data in evil_requests():
        with world.wire() as wire, contextlib.suppress(Closed):
            accepted += wire.ask(data).status == 200
    return accepted


@pytest.fixture(scope="module", params=["plain", "json"])
def printed(request):
    """What a client prints over evil deliveries: (kind, accepted, stdout, stderr)."""
    with World() as world:
        app = world.app()
        client = world.client(app, "-v", json_lines=request.param == "json", wait=False)
        eventually(lambda: served(world), what="the client serving")
        before = len(client.lines)
        accepted = send_evil(world)
        app.answer = lambda seen, _: b"HTTP/1.1 500 \x1b[31mowned\x9b\r\nContent-Type: \xc2\x9b\r\nContent-Length: 0\r\n\r\n"
        with contextlib.suppress(Closed):
            world.post("/evil-answer", b"x")
        app.answer = app.echo
        assert world.post("/last", b"x").status == 200
        client.wait(lambda: any(b"/last" in line for line in client.lines), what="the last delivery's line")
        client.stop()
        yield request.param, accepted, client.lines[before:], client.errors.read_bytes()


def served(world):
    with contextlib.suppress(Closed, OSError):
        return world.get("/ready").status == 200
    return False


def test_most_evil_requests_arrive(printed):
    _, accepted, _, _ = printed
    assert accepted >= 10


def test_no_control_character_of_a_sender_reaches_the_terminal(printed):
    kind, _, lines, errors = printed
    for line in [*lines, *errors.splitlines(keepends=True)]:
        text = line.decode("utf-8")
        assert not SHOWN_NEVER[kind].search(text.removesuffix("\n")), line


def test_one_line_a_delivery(printed):
    kind, accepted, lines, _ = printed
    if kind == "json":
        events = [json.loads(line) for line in lines]
        lines = [event for event in events if event["event"] == "delivery" and event["path"].split("?")[0] not in ("/last", "/evil-answer", "/ready")]
        assert len(lines) == accepted
    else:
        lines = [line for line in lines if re.match(rb"\d\d:\d\d:\d\d\.\d{3}  ", line) and not re.search(rb"/last|/evil-answer|/ready", line)]
        assert len(lines) == accepted
        # Marks on a character take no cell of their own.
        cells = [sum(not unicodedata.combining(c) for c in line.decode().removesuffix("\n")) for line in lines]
        assert max(cells) <= 100, lines[cells.index(max(cells))]


def test_the_relays_log_is_clean_as_well(new_world):
    world = new_world("--log", "debug")
    world.client(world.app())
    send_evil(world)
    with world.wire() as wire, contextlib.suppress(Closed):
        wire.ask(request("GET", "/\x1b[2J", host="a\x1b[2J\u009b.hooks.test".encode().decode("latin-1")))
    assert world.get("/last").status == 200
    log = world.relay.errors.read_bytes()
    assert b"\x1b[2J" not in log and b"\xc2\x9b" not in log and "\u202e".encode() not in log
    assert b"\x1b" not in log, "colour in a log that is no terminal"
