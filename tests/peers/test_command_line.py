"""The command line's promises: what files, variables and signals do to the built client, and who gets a token."""

import http.client
import json
import os
import pathlib
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from test_programs import Authority, on, three_parts
from test_semantics import OK, GatedApp, SleepingApp, answers, asked, is_down, restart

from world import DEADLINE, DOMAIN, HOOKWAY, HOOKWAY_RELAY, Program, eventually, request, run, tls_context

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAE\n-----END OPENSSH PRIVATE KEY-----\n"


@pytest.fixture
def settings(tmp_path):
    """`settings(text)` writes the user's config.toml and gives its path; also without a text."""

    def write(text=None):
        path = tmp_path / "config" / "hookway" / "config.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)
        return path

    return write


@pytest.fixture
def start(world, tmp_path):
    """`start(*words)`: `hookway …` towards this relay in the test's folder, which is project and HOME in one."""
    started = []

    def start(*words, kind=Program, command=(HOOKWAY,), relay=None, **environment):
        command = [*command, *map(str, words), *(on(world) if relay is None else relay)]
        environment = {"HOOKWAY_TOKEN": world.default_token} | environment
        started.append(kind(f"client-{len(started)}", command, tmp_path, environment))
        return started[-1]

    yield start
    for program in started:
        program.stop()


def printed(program, text):
    """The first line of stdout with this text, waited for."""
    found = program.wait(lambda: next((line for line in program.lines if text.encode() in line), None), what=text)
    return found.decode()


def host(name):
    return f"{name}.{DOMAIN}"


def paths(app):
    return [seen.target for seen in list(app.seen)]


# ── files that somebody else wrote ────────────────────────────────────────────────────────────────────────────────


def test_a_projects_file_names_no_token_file(hookway, world, tmp_path):
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "hookway.toml").write_text('name = "billing"\n\ntoken-file = "key"\n')
    said = three_parts(hookway("3000", *on(world), HOOKWAY_TOKEN=world.default_token), 7)
    assert "hookway.toml" in said and "line 3" in said and "hookway login" in said


def test_a_projects_ca_stands_beside_its_relay(hookway, world, tmp_path):
    (tmp_path / "hookway.toml").write_text(f'name = "billing"\nrelay-ca = "{world.relay.ca}"\n')
    said = three_parts(hookway("3000", *on(world), HOOKWAY_TOKEN=world.default_token), 7)
    assert "line 2" in said and "`relay`" in said


def test_a_projects_target_is_no_command(hookway, settings, tmp_path):
    kept = settings('relay = "localhost:9"\ntoken = "hwt_kept"\n')
    (tmp_path / "hookway.toml").write_text('target = "logout"\n')
    said = three_parts(hookway(), 7)
    assert "line 1" in said and "hookway.toml" in said
    assert "hwt_kept" in kept.read_text()


@pytest.mark.parametrize("words", [["version"], ["completions", "bash"], ["config", "path"], ["--help"]], ids=" ".join)
def test_a_broken_projects_file_breaks_only_what_uses_it(hookway, tmp_path, words):
    (tmp_path / "hookway.toml").write_text("name = = 3\n")
    done = hookway(*words)
    assert done.returncode == 0 and done.stdout and not done.stderr, done
    three_parts(hookway("config", "check"), 7)


def test_config_show_says_what_is_in_force(hookway, world, tmp_path):
    (tmp_path / "hookway.toml").write_text(
        f'relay = "{world.authority()}"\ntarget = "4321/hooks"\nname = "billing"\n'
        'route = ["/stripe=3001"]\ntimeout = "7s"\n'
    )
    shown = json.loads(hookway("config", "show", "--json").stdout)
    wanted = {"relay": world.authority(), "target": "http://localhost:4321/hooks", "name": "billing", "timeout": "7s"}
    assert wanted.items() <= shown.items()
    assert shown["route"] == "/stripe=http://localhost:3001"
    assert json.loads(hookway("config", "show", "--json", HOOKWAY_TIMEOUT="8s").stdout)["timeout"] == "8s"


def test_config_show_keeps_the_token(hookway, settings):
    settings('relay = "localhost:9"\ntoken = "hwt_secret"\nheader = ["X-Key: hush"]\n')
    done = hookway("config", "show", "--json")
    assert json.loads(done.stdout)["token"] and "hwt_secret" not in done.stdout and "hush" not in done.stdout


@pytest.mark.parametrize("key", ["relay-ca", "token-file"])
def test_config_check_misses_files(hookway, settings, world, key):
    kept = settings(f'relay = "{world.authority()}"\n{key} = "nowhere.pem"\n')
    done = hookway("config", "check")
    assert done.returncode and "nowhere.pem" in done.stderr and "next:" in done.stderr
    text = world.default_token if key == "token-file" else pathlib.Path(world.relay.ca).read_text()
    (kept.parent / "nowhere.pem").write_text(text)
    assert hookway("config", "check").returncode == 0


# ── the token, and who gets it ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def listener():
    """A UDP socket in the place of a relay."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.setblocking(False)
        yield listener


def heard(listener):
    """Whether a datagram came."""
    try:
        return bool(listener.recv(65536))
    except BlockingIOError:
        return False


def at(listener):
    return f"127.0.0.1:{listener.getsockname()[1]}"


WAYS = {
    "flag": (["3000", "--relay", "{relay}", "--token-file", "key"], {}),
    "whoami": (["whoami", "--relay", "{relay}", "--token-file", "key"], {}),
    "login": (["login", "{relay}", "--token-file", "key"], {}),
    "variable-of-the-file": (["3000", "--relay", "{relay}"], {"HOOKWAY_TOKEN_FILE": "key"}),
    "variable": (["3000", "--relay", "{relay}"], {"HOOKWAY_TOKEN": KEY}),
    "login-by-variable": (["login", "{relay}"], {"HOOKWAY_TOKEN": KEY}),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_token_goes_nowhere(hookway, listener, tmp_path, way):
    (tmp_path / "key").write_text(KEY)
    words, environment = WAYS[way]
    said = three_parts(hookway(*(word.format(relay=at(listener)) for word in words), **environment), 4)
    assert "hwt_" in said and "BEGIN" not in said and "b3Blb" not in said
    assert not heard(listener)


def test_what_is_no_token_in_the_users_settings_goes_nowhere(hookway, listener, settings):
    kept = settings(f'relay = "{at(listener)}"\ntoken-file = "key"\n')
    (kept.parent / "key").write_text(KEY)
    assert "b3Blb" not in three_parts(hookway("3000"), 4)
    assert not heard(listener)


def test_what_may_be_a_token_is_sent(hookway, listener):
    """The other way round, or the tests above would say nothing."""
    three_parts(hookway("3000", "--relay", at(listener), HOOKWAY_TOKEN="hwt_" + "a" * 43), 3)
    assert heard(listener)


def log_in(world, folder, *words, token=None):
    (folder / "token").write_text(token or world.default_token)
    _, relay, *ca = on(world)
    done = run(HOOKWAY, "login", relay, *ca, "--token-file", "token", *words, folder=folder)
    assert done.returncode == 0, done.stderr


def test_login_reads_a_token_from_a_pipe(world, tmp_path, hookway):
    _, relay, _, ca = on(world)
    line = f"echo {world.default_token} | {HOOKWAY} login {relay} --relay-ca {ca}"
    assert run("sh", "-c", line, folder=tmp_path).returncode == 0
    assert json.loads(hookway("whoami", "--json").stdout)["owner"] == "ci"


def test_a_kept_token_does_not_go_by_way_of_another_ca(hookway, world, tmp_path):
    log_in(world, tmp_path)
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other").ca
    (tmp_path / "hookway.toml").write_text(f'relay = "{world.authority()}"\nrelay-ca = "{other}"\n')
    assert "no token" in three_parts(hookway("whoami"), 4)


@pytest.mark.parametrize("spelling", ["https://{}", "https://{}/"])
def test_another_spelling_of_the_relay_is_no_way_to_another_ca(hookway, world, tmp_path, spelling):
    log_in(world, tmp_path)
    (tmp_path / "other").mkdir()
    Authority(tmp_path / "other")
    relay = spelling.format(world.authority())
    (tmp_path / "hookway.toml").write_text(f'relay = "{relay}"\nrelay-ca = "other/ca.pem"\n')
    assert "no token" in three_parts(hookway("whoami"), 4)


def test_the_same_ca_may_lie_elsewhere(hookway, world, tmp_path):
    log_in(world, tmp_path)
    (tmp_path / "copy.pem").write_bytes(pathlib.Path(world.relay.ca).read_bytes())
    (tmp_path / "hookway.toml").write_text(f'relay = "{world.authority()}"\nrelay-ca = "copy.pem"\n')
    done = hookway("whoami", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["owner"] == "ci", done.stderr


def test_a_projects_ca_is_for_the_projects_relay(hookway, world, tmp_path):
    """Another relay, named by flag or variable, is reached by its own."""
    log_in(world, tmp_path)
    (tmp_path / "other").mkdir()
    Authority(tmp_path / "other")
    (tmp_path / "hookway.toml").write_text('relay = "elsewhere.test"\nrelay-ca = "other/ca.pem"\n')
    for words, environment in ((["--relay", world.authority()], {}), ([], {"HOOKWAY_RELAY": world.authority()})):
        done = hookway("whoami", "--json", *words, **environment)
        assert done.returncode == 0 and json.loads(done.stdout)["owner"] == "ci", done.stderr


def test_a_token_file_of_the_settings_is_for_their_relay(hookway, listener, settings, tmp_path):
    """As a kept token: a project's file must not choose another that gets it."""
    kept = settings('relay = "hooks.example.com"\ntoken-file = "token"\n')
    (kept.parent / "token").write_text("hwt_" + "a" * 43)
    (tmp_path / "hookway.toml").write_text(f'relay = "{at(listener)}"\n')
    assert "no token" in three_parts(hookway("whoami"), 4)
    assert not heard(listener)


def test_the_nearest_token_is_taken(hookway, world, settings, tmp_path):
    """--token-file, then HOOKWAY_TOKEN, then the file that the user's settings name."""
    kept = settings(f'relay = "{world.authority()}"\nrelay-ca = "{world.relay.ca}"\ntoken-file = "kept"\n')
    (kept.parent / "kept").write_text(world.token("of-the-settings"))
    (tmp_path / "named").write_text(world.token("of-the-flag"))
    variable = {"HOOKWAY_TOKEN": world.token("of-the-variable")}

    def owner(*words, **environment):
        return json.loads(hookway("whoami", "--json", *words, **environment).stdout)["owner"]

    assert owner() == "of-the-settings"
    assert owner(**variable) == "of-the-variable"
    assert owner("--token-file", "named", **variable) == "of-the-flag"


MINE = '# what I like\ntimeout = "9s"   # longer\n\nheader = [\n  "X-A: 1", # one\n]\n'


def test_login_keeps_what_else_is_in_the_settings(world, settings, tmp_path, hookway):
    kept = settings(MINE)
    log_in(world, tmp_path)
    assert kept.read_text().startswith(MINE) and kept.stat().st_mode & 0o777 == 0o600
    assert hookway("logout").returncode == 0
    assert kept.read_text().startswith(MINE) and "hwt_" not in kept.read_text()


def test_login_keeps_a_link(world, settings, tmp_path):
    real = tmp_path / "dotfiles" / "hookway.toml"
    real.parent.mkdir()
    real.write_text(MINE)
    real.chmod(0o644)
    kept = settings()
    kept.symlink_to(real)
    log_in(world, tmp_path)
    assert kept.is_symlink() and os.readlink(kept) == str(real)
    assert real.read_text().startswith(MINE) and world.default_token in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o600


# ── words and variables ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("word", "meant"), [("doctorx", None), ("logut", "logout")])
def test_a_mistyped_command_is_2(hookway, word, meant):
    done = hookway(word)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and not done.stdout
    assert not meant or f"`{meant}`" in done.stderr


@pytest.mark.parametrize(
    "target",
    ["0xa9fea9fe:80", "2852039166:80", "169.254.169.254.:80", "0251.0376.0251.0376:80", "http://[::ffff:a9fe:a9fe]:80"],
)
def test_a_clouds_metadata_is_no_target(hookway, target):
    for words in ([target], ["3000", "--route", f"/x={target}"], ["dev", target]):
        done = hookway(*words)
        assert done.returncode == 2 and done.stderr.startswith("error: "), (words, done)


def test_a_port_may_have_a_path_behind_it(world, app, name, start):
    client = start(f"{app.port}/hooks", "-n", name)
    assert f"http://localhost:{app.port}/hooks" in printed(client, "Forwards to")
    assert world.post("/stripe?a=b", b"x", name).status == 200
    assert paths(app) == ["/hooks/stripe?a=b"]


def test_a_variable_set_to_nothing_is_not_set(hookway):
    nothing = {f"HOOKWAY_{what}": "" for what in ("RELAY", "TIMEOUT", "NAME", "ROUTE", "MAX_BODY", "COLOR", "CONFIG")}
    assert hookway("version", **nothing).returncode == 0
    assert json.loads(hookway("config", "show", "--json", **nothing).stdout)["timeout"] == "30s"


def test_a_variable_of_the_relay_set_to_nothing_is_not_set(relay, world):
    nothing = {f"HOOKWAY_RELAY_{what}": "" for what in ("CONFIG", "DATA_DIR")}
    assert relay("version", **nothing).returncode == 0
    assert relay("token", "list", "--data-dir", world.relay.data, **nothing).returncode == 0


@pytest.mark.parametrize(
    ("value", "path"), [("1", "/hook"), ("true", "/hook"), ("0", "/stripe/hook"), ("", "/stripe/hook")]
)
def test_strip_prefix_by_variable(world, app, name, value, path):
    environment = {"HOOKWAY_STRIP_PREFIX": value}
    world.client(app, "--route", f"/stripe={app.port}", name=name, environment=environment)
    assert world.post("/stripe/hook", b"x", name).status == 200
    assert paths(app) == [path]


# ── the relay's store ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_stores_commands_read_the_relays_file(relay, world, tmp_path):
    """As `hookway-relay run` does, by flag or by variable."""
    world.token("in-the-file")
    (tmp_path / "relay.toml").write_text(f'domain = "{DOMAIN}"\nmax-body = "1MiB"\ndata-dir = "{world.relay.data}"\n')
    assert "in-the-file" in relay("token", "list", "--config", "relay.toml").stdout
    assert "in-the-file" in relay("token", "list", HOOKWAY_RELAY_CONFIG="relay.toml").stdout
    assert relay("endpoint", "list", "--config", "relay.toml").returncode == 0


def test_a_flag_beats_the_relays_file(relay, world, tmp_path):
    (tmp_path / "relay.toml").write_text('data-dir = "nowhere"\n')
    assert relay("token", "list", "--config", "relay.toml", "--data-dir", world.relay.data).returncode == 0
    assert relay("token", "list", "--config", "relay.toml").returncode == 1


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_a_bad_file_for_the_stores_commands_is_7(relay, tmp_path, by):
    (tmp_path / "relay.toml").write_text("data-dri = 'x'\nthis is no toml\n")
    words, environment = [], {"HOOKWAY_RELAY_CONFIG": "relay.toml"}
    if by == "flag":
        words, environment = ["--config", "relay.toml"], {}
    assert "relay.toml" in three_parts(relay("token", "list", *words, **environment), 7)


@pytest.mark.parametrize(
    "words",
    [("token", "list"), ("token", "revoke", "ci"), ("endpoint", "list"), ("endpoint", "release", "a")],
    ids=" ".join,
)
def test_looking_into_a_store_makes_none(relay, tmp_path, words):
    said = three_parts(relay(*words, "--data-dir", "nowhere"), 1)
    assert "nowhere" in said and "--data-dir" in said and "--config" in said
    assert not (tmp_path / "nowhere").exists()


# ── whoever reads what the client prints ──────────────────────────────────────────────────────────────────────────


class Paused(Program):
    """A program of which the first line is read, and the rest once `read_on` is set, unless the reader `left`."""

    def __init__(self, *rest):
        self.read_on, self.left = threading.Event(), False
        super().__init__(*rest)

    def _read(self):
        first = self.process.stdout.readline()
        with self._news:
            self.lines.append(first)
            self._news.notify_all()
        self.read_on.wait(120)
        if self.left:
            self.process.stdout.close()
        else:
            super()._read()

    def leave(self):
        self.left = True
        self.read_on.set()
        self._reader.join(DEADLINE)

    def stop(self, seconds=15.0):
        self.read_on.set()
        return super().stop(seconds)

    def counted(self):
        """Deliveries by their own lines, and those that are said to be missing."""
        events = list(self.events)
        missing = sum(event["count"] for event in events if event["event"] == "missed")
        return sum(event["event"] == "delivery" for event in events), missing


def flood(world, name, count, connections=10):
    """The statuses of `count` POSTs over a few kept connections."""
    post = request("POST", "/flood", b"x", host=host(name))

    def some(_):
        with world.wire(name) as wire:
            return [wire.ask(post).status for _ in range(count // connections)]

    with ThreadPoolExecutor(connections) as pool:
        return sum(pool.map(some, range(connections)), [])


@pytest.fixture
def paused(request, start, app, name):
    """A client, with the flags that a test may name, whose stdout nobody reads after its ready line."""
    client = start(app.address, "-n", name, "--json", *getattr(request, "param", ()), kind=Paused)
    printed(client, '"ready"')
    return client


def test_a_reader_that_pauses_stops_nothing(world, paused, name):
    assert flood(world, name, 3000) == [200] * 3000
    paused.read_on.set()
    paused.wait(lambda: paused.counted() == (3000, 0), what="every delivery")


def test_a_second_ctrl_c_needs_no_reader(world, paused, name):
    assert flood(world, name, 3000) == [200] * 3000
    began = time.monotonic()
    paused.process.send_signal(signal.SIGINT)
    eventually(lambda: answers(world, 503, name), what="the endpoint being given up")
    paused.process.send_signal(signal.SIGINT)
    assert paused.process.wait(5) == 130
    assert time.monotonic() - began < 5


# What is kept is told once it is written, which may be after reading has begun: then nothing is missed.
told_at_once = pytest.mark.parametrize("paused", [["--no-store"]], indirect=True, ids=["not kept"])


@told_at_once
def test_a_reader_is_told_what_it_missed(world, paused, name):
    assert flood(world, name, 6000) == [200] * 6000
    paused.read_on.set()
    paused.wait(lambda: paused.counted()[0] > 4096, what="what had waited")
    assert world.post("/after", b"x", name).status == 200
    paused.event("delivery", lambda event: event["path"] == "/after")
    shown, missing = paused.counted()
    assert missing and shown + missing == 6001


@told_at_once
def test_a_reader_is_told_at_the_end_what_it_missed(world, paused, name):
    assert flood(world, name, 6000) == [200] * 6000
    paused.read_on.set()
    paused.wait(lambda: paused.counted()[0] > 4096, what="what had waited")
    assert paused.stop() == 0
    shown, missing = paused.counted()
    assert missing and shown + missing == 6000


@pytest.mark.parametrize("flags", [[], ["--json"], ["-v"]], ids=["text", "json", "verbose"])
def test_readers_of_stdout_and_stderr_that_leave_stop_nothing(world, start, name, flags):
    with SleepingApp() as app:
        both = ("sh", "-c", 'exec "$@" 2>&1', "sh", HOOKWAY)
        client = start(app.address, "-n", name, "--wait-app", "300ms", *flags, kind=Paused, command=both)
        client.wait(lambda: client.lines)
        eventually(lambda: answers(world, 503, name), what="the endpoint, without its app")
        client.leave()
        # `waiting for …`, and `… answers`
        assert world.post("/", b"x", name).status == 202
        app.open()
        assert [world.post("/", b"x", name).status for _ in range(20)] == [200] * 20
        eventually(lambda: len(app.at("/")) == 21, what="the one that waited for the app")
        assert client.running and client.stop() == 0


# ── signals ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_terminal_that_goes_away_ends_the_client(world, app, name):
    client = world.client(app, name=name)
    assert world.post("/", b"x", name).status == 200
    client.process.send_signal(signal.SIGHUP)
    assert client.exited() == 0
    began = time.monotonic()
    assert world.post("/", b"x", name).status == 202, "nobody is there: it is queued"
    assert time.monotonic() - began < 1


def answer_of(body, status="200 OK"):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def slow_app(world, answer):
    """An app that answers `/slow` with this once its gate is open, and everything else at once."""

    def choose(seen, _):
        if seen.target != "/slow":
            return OK
        assert app.gate.wait(60)
        return answer

    app = world.app(answer=choose)
    app.gate = threading.Event()
    return app


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM], ids=lambda how: how.name)
@pytest.mark.parametrize("size", [2, 400_000])
def test_what_is_in_flight_is_answered_whole(world, name, how, size):
    """Whichever signal ends the client: it goes when its last answer has arrived, not when it has been handed over."""
    app = slow_app(world, answer_of(bytes(size)))
    client = world.client(app, name=name)
    with world.wire(name) as wire, asked(wire, request("POST", "/slow", b"x", host=host(name))) as reply:
        eventually(lambda: app.at("/slow"), what="the delivery at the app")
        client.process.send_signal(how)
        eventually(lambda: answers(world, 503, name), what="the endpoint being given up")
        app.gate.set()
        answer = reply("POST")
    assert (answer.status, len(answer.body), answer.complete) == (200, size, True)
    assert client.exited() == 0


@pytest.fixture
def endless(world):
    """An app that answers with events for ever."""

    def answer(_, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not done.wait(0.05):
            connection.sendall(b"9\r\ndata: x\n\n\r\n")
        return None

    done = threading.Event()
    yield world.app(answer=answer)
    done.set()


def streaming(wire, name):
    """Asks for the events and waits for the first."""
    wire.send(request("GET", "/events", host=host(name)))
    while b"data: x" not in wire.buffer:
        assert wire.receive()


def test_ctrl_c_does_not_wait_for_an_answer_without_end(world, endless, start, name):
    client = start(endless.address, "-n", name)
    printed(client, "Quit")
    with world.wire(name) as wire:
        streaming(wire, name)
        began = time.monotonic()
        client.process.send_signal(signal.SIGINT)
        assert client.exited() == 0
        assert time.monotonic() - began < 8
        assert "Ctrl-C again stops at once" in client.log()
        assert not wire.reply().complete


def test_a_second_ctrl_c_stops_at_once(world, endless, start, name):
    client = start(endless.address, "-n", name)
    printed(client, "Quit")
    with world.wire(name) as wire:
        streaming(wire, name)
        client.process.send_signal(signal.SIGINT)
        eventually(lambda: "Ctrl-C again" in client.log(), what="the note")
        began = time.monotonic()
        client.process.send_signal(signal.SIGINT)
        assert client.exited() == 130
        assert time.monotonic() - began < 1


def test_a_failure_while_draining_counts(world, name):
    app = slow_app(world, answer_of(b"", "500 Internal Server Error"))
    client = world.client(app, "--until", "1", "--fail", name=name)
    with world.wire(name) as wire:
        wire.send(request("POST", "/slow", b"x", host=host(name)))
        eventually(lambda: app.at("/slow"), what="the delivery at the app")
        assert world.post("/quick", b"x", name).status == 200
        eventually(lambda: answers(world, 503, name), what="the endpoint being given up")
        app.gate.set()
        assert client.exited() == 6
    assert client.deliveries(path="/slow", status=500)


def test_without_fail_a_failure_is_no_error(world, name):
    app = world.app(answer=lambda seen, _: answer_of(b"", "500 Internal Server Error"))
    client = world.client(app, "--once", name=name)
    assert world.post("/", b"x", name).status == 500
    assert client.exited() == 0


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_that_was_lost_is_not_taken_back(new_world):
    """Two names, one of them lost to another client: after the relay's restart each serves what it had before it."""
    world = new_world()
    first, second = world.app(name="first"), world.app(name="second")
    old = world.client(first, "-n", "billing", name="extra")
    new = world.client(second, name="billing")
    old.event("released", lambda event: event["endpoint"] == "billing")
    restart(world, signal.SIGTERM)
    eventually(lambda: answers(world, 200, "extra") and answers(world, 200, "billing"), 15, "the clients being back")
    for _ in range(20):
        assert world.get(name="billing").header("x-app") == "second"
        assert world.get(name="extra").header("x-app") == "first"
    assert old.running and new.running


def url(client):
    return printed(client, "Webhook URL").split()[2]


@pytest.mark.parametrize("flags", [(), ("--endpoints", "command-line-*")], ids=["another owner's", "beyond its pattern"])
def test_a_remembered_name_that_cannot_be_had_is_replaced(world, app, start, flags):
    first = start(app.address)
    before = url(first)
    assert first.stop() == 0
    # A token of the same name owns what the first one does, but may not use it.
    token = world.token("ci" if flags else "somebody", *flags)
    second = start(app.address, HOOKWAY_TOKEN=token)
    after = url(second)
    remembered = before.removeprefix("https://").partition(".")[0]
    assert after != before and remembered in second.log()
    assert world.get(name=after.removeprefix("https://").partition(".")[0]).status == 200
    assert second.stop() == 0


# ── hookway dev ───────────────────────────────────────────────────────────────────────────────────────────────────


def post_plain(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    connection.request("POST", "/hook", b"x", {"Host": f"localhost:{port}"})
    with connection.getresponse() as reply:
        return reply.status


def ports(ready):
    """Of a `hookway dev`: HTTP, HTTPS."""
    return tuple(int(ready[key].rpartition(":")[2]) for key in ("http", "url"))


def test_two_of_dev_run_beside_each_other(world, start):
    """In one HOME, both asked for the same ports."""
    apps = world.app(name="one"), world.app(name="two")
    at, taken, programs = (0, 0), set(), []
    for app in apps:
        flags = ("--http", f"127.0.0.1:{at[0]}", "--https", f"127.0.0.1:{at[1]}", "--json")
        programs.append(start("dev", app.address, *flags, relay=()))
        at = ports(programs[-1].event("ready"))
        taken.add(at[0])
    assert len(taken) == 2
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert [post_plain(port) for port in taken] == [200, 200]
    assert len(apps[0].seen) == len(apps[1].seen) > 0
    assert programs[0].stop() == 0
    assert post_plain(at[0]) == 200
    assert programs[1].stop() == 0


def test_ctrl_c_ends_dev_however_early_it_comes(start, relay, tmp_path):
    def dev():
        return start("dev", "9", "--http", "127.0.0.1:0", "--https", "127.0.0.1:0", "--no-inspect", "--json", relay=())

    began = time.monotonic()
    dev().event("ready")
    took, codes = time.monotonic() - began, set()
    for part in range(24):
        program = dev()
        # At another moment of its start each time.
        time.sleep(took * part / 20)
        codes.add(program.stop())
    # Before it asks for signals, it is the signal that ends it.
    assert codes <= {0, 130, -signal.SIGINT} and 0 in codes
    tokens = relay("token", "list", "--json", "--data-dir", tmp_path / "data" / "hookway" / "dev").stdout.splitlines()
    valid = [token for token in map(json.loads, tokens) if not token["revoked_at"]]
    assert tokens and len(valid) == 1, "that of the one that runs"


# ── deliveries ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_upload_takes_as_long_as_it_takes(world, app, name):
    """--timeout is the app's time, not the sender's."""
    world.client(app, "--timeout", "1s", name=name)
    piece, pieces = bytes(100_000), 30
    with world.wire(name) as wire:
        wire.send(f"POST / HTTP/1.1\r\nHost: {host(name)}\r\nContent-Length: {len(piece) * pieces}\r\n\r\n".encode())
        for _ in range(pieces):
            assert wire.quiet(0.1), wire.reply("POST")
            wire.send(piece)
        reply = wire.reply("POST")
    assert reply.status == 200 and reply.json()["length"] == 3_000_000


def test_waiting_for_the_app_is_not_waiting_for_its_answer(world, name):
    """--wait-app may be longer than --timeout."""
    with SleepingApp() as app, world.wire(name) as wire:
        client = world.client(app, "--wait-app", "3s", "--timeout", "1s", name=name)
        with asked(wire, request("POST", "/", b"x", host=host(name))) as reply:
            client.event("app", is_down)
            timer = threading.Timer(2, app.open)
            timer.start()
            assert reply("POST").status == 200
            timer.join()


@pytest.mark.parametrize("size", [200_000, 3_000_000])
def test_chunks_over_the_clients_limit_are_413(world, app, name, size):
    client = world.client(app, "--max-body", "100kB", name=name)
    chunk = b"%x\r\n" % 20_000 + bytes(20_000) + b"\r\n"
    with world.wire(name) as wire:
        head = f"POST / HTTP/1.1\r\nHost: {host(name)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        reply = wire.ask(head + chunk * (size // 20_000) + b"0\r\n\r\n")
    assert reply.status == 413 and b"--max-body" in reply.body
    assert client.delivery(status=None)["error"] == "too large"
    assert not app.seen


def test_chunks_below_the_clients_limit_pass(world, app, name):
    world.client(app, "--max-body", "100kB", name=name)
    chunk = b"%x\r\n" % 20_000 + bytes(20_000) + b"\r\n"
    with world.wire(name) as wire:
        head = f"POST / HTTP/1.1\r\nHost: {host(name)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        assert wire.ask(head + chunk * 5 + b"0\r\n\r\n").status == 200


def test_an_answer_whose_head_is_too_large_is_502(world, name):
    fields = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(80))
    app = world.app(answer=lambda seen, _: b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 0\r\n\r\n")
    client = world.client(app, name=name)
    assert world.get(name=name).status == 502
    assert client.delivery()["error"] == "head too large"
    app.answer = app.echo
    assert world.get(name=name).status == 200


@pytest.mark.parametrize("end", [b"", b"0\r\n\r\n"], ids=["within its body", "after its body"])
def test_a_streamed_delivery_whose_sender_leaves_is_aborted(world, name, end):
    with GatedApp() as app:
        client = world.client(app, name=name)
        with world.wire(name) as wire:
            wire.send(f"POST /left HTTP/1.1\r\nHost: {host(name)}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            wire.send(b"4\r\nhalf\r\n" + end)
            eventually(lambda: app.seen or app.connections, what="the delivery at the app")
        event = client.delivery(path="/left")
        assert (event["status"], event["error"]) == (None, "aborted")


def refusing(world, name):
    """An app that takes no public host, as Vite does."""
    refusal = answer_of(f"Blocked request. This host ({host(name)}) is not allowed.".encode(), "403 Forbidden")
    return world.app(answer=lambda seen, _: refusal)


def hints(client):
    """What the client advises; not where it keeps requests, which it says at the first start."""
    texts = [event["text"] for event in list(client.events) if event["event"] == "hint"]
    return [text for text in texts if not text.startswith("requests are kept in ")]


def test_an_app_that_refuses_the_host_gives_one_hint(world, name):
    client = world.client(refusing(world, name), name=name)
    assert [world.get(f"/{n}", name=name).status for n in range(5)] == [403] * 5
    client.delivery(path="/4")
    assert len(hints(client)) == 1 and "--host-header rewrite" in hints(client)[0]


def test_a_rewritten_host_gives_no_hint(world, name):
    app = refusing(world, name)
    client = world.client(app, "--host-header", "rewrite", name=name)
    assert world.get("/0", name=name).status == 403
    client.delivery(path="/0")
    assert not hints(client) and app.seen[0].header("host") == app.address


def test_a_hint_for_people_is_on_stderr(world, start, name):
    client = start(refusing(world, name).address, "-n", name)
    printed(client, "Quit")
    assert world.get(name=name).status == 403
    eventually(lambda: "--host-header rewrite" in client.log(), what="the hint")


@pytest.mark.parametrize("kind", ["application/grpc-web+proto", "application/grpc-web", "application/grpc-web-text"])
def test_grpc_web_is_plain_http(world, app, name, kind):
    """Over HTTP/2 to an app that speaks HTTP/1.1; only gRPC itself needs HTTP/2 all the way."""
    world.client(app, name=name)
    with httpx.Client(verify=tls_context(world.relay.ca), http1=False, http2=True, trust_env=False) as sender:
        reply = sender.post(world.url("/pkg.Service/Call", name), content=b"\0\0\0\0\0", headers={"content-type": kind})
    assert reply.http_version == "HTTP/2" and reply.status_code == 200
    assert app.seen[0].header("content-type") == kind
