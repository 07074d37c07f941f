"""The two programs beside the data path: exit codes, configuration, tokens, certificates, health, service managers."""

import json
import pathlib
import re
import signal
import socket
import ssl
import subprocess

import pytest

from world import DEADLINE, DOMAIN, HOOKWAY, HOOKWAY_RELAY, Program, Wire, eventually, request, run


def three_parts(done, code):
    """An error as agreed: what happened, the cause, the next step; nothing of it on stdout."""
    assert done.returncode == code, done.stderr
    assert re.search(r"^error: \S.*(\n.*)*\n  cause: \S.*(\n.*)*\n  next:  \S.*", done.stderr, re.MULTILINE), (
        done.stderr
    )
    assert "error" not in done.stdout
    return done.stderr


def on(world):
    """The flags that lead to this relay."""
    return "--relay", world.authority(), "--relay-ca", world.relay.ca


# ── exit codes ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words", [["--nope"], ["3000", "--timeout", "soon"], ["not a target"], ["3000", "--transport", "pigeon"]]
)
def test_usage_is_2(hookway, words):
    done = hookway(*words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and not done.stdout


def test_usage_of_the_relay_is_2(relay):
    for words in (["run", "--nope"], ["run", "--max-body", "much"], ["nothing"]):
        done = relay(*words)
        assert done.returncode == 2 and done.stderr.startswith("error: "), done


def test_an_unreachable_relay_is_3(hookway):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        done = hookway("3000", "--relay", f"127.0.0.1:{port}", HOOKWAY_TOKEN="hwt_" + "a" * 43)
    assert f"127.0.0.1:{port}" in three_parts(done, 3)


def test_no_relay_configured_is_3_and_shows_the_ways_on(hookway):
    said = hookway("3000")
    assert said.returncode == 3 and said.stderr.startswith("error: ")
    assert "hookway dev" in said.stderr and "hookway login" in said.stderr and "hookway-relay" in said.stderr


def test_a_relay_of_another_ca_is_3(hookway, world):
    done = hookway("3000", "--relay", world.authority(), HOOKWAY_TOKEN=world.default_token)
    assert "certificate" in three_parts(done, 3).lower()


@pytest.mark.parametrize("token", ["hwt_" + "a" * 43, "", "nonsense"])
def test_a_wrong_token_is_4(hookway, world, token):
    said = three_parts(hookway("3000", *on(world), HOOKWAY_TOKEN=token), 4)
    assert not token or token not in said


def test_no_token_is_4(hookway, world):
    assert "hookway login" in three_parts(hookway("3000", *on(world)), 4)


def test_a_taken_endpoint_is_5(hookway, world, app, name):
    world.client(app, name=name)
    other = world.token("somebody-else")
    assert name in three_parts(hookway("3000", *on(world), "-n", name, HOOKWAY_TOKEN=other), 5)
    assert world.get(name=name).status == 200


def test_a_name_beyond_the_tokens_pattern_is_5(hookway, world, app, name):
    token = world.token("narrow", "--endpoints", "billing-*")
    three_parts(hookway("3000", *on(world), "-n", name, HOOKWAY_TOKEN=token), 5)
    world.client(app, name="billing-eu", token=token)
    assert world.get(name="billing-eu").status == 200


@pytest.mark.parametrize("bad", ["Under_score", "-dash", "a" * 64, "two.labels", "ü"])
def test_an_impossible_name_is_refused(hookway, world, bad):
    done = hookway("3000", *on(world), "-n", bad, HOOKWAY_TOKEN=world.default_token)
    assert done.returncode in (2, 5) and done.stderr.startswith("error: ")


@pytest.mark.parametrize("key", ["token", '"token"', "  token"])
def test_a_token_in_the_projects_file_is_7(hookway, world, tmp_path, key):
    (tmp_path / "hookway.toml").write_text(f'name = "billing"\n{key} = "hwt_secret"\n')
    said = three_parts(hookway("3000", *on(world), HOOKWAY_TOKEN=world.default_token), 7)
    assert "token" in said and "hookway.toml" in said and "hwt_secret" not in said


def test_an_unknown_key_in_the_projects_file_is_7(hookway, world, tmp_path):
    (tmp_path / "hookway.toml").write_text('name = "billing"\n\ntimeuot = "3s"\n')
    said = three_parts(hookway("3000", *on(world), HOOKWAY_TOKEN=world.default_token), 7)
    assert "timeuot" in said and "`timeout`" in said and re.search(r"line 3|:3\b", said)


def test_a_bad_relay_file_is_7_and_says_all_at_once(relay, tmp_path):
    (tmp_path / "relay.toml").write_text('domain = "hooks.test"\n\nmax-bdoy = "1MiB"\nrate = "often"\n')
    said = three_parts(relay("run", "--config", "relay.toml"), 7)
    assert "max-bdoy" in said and "`max-body`" in said and re.search(r"line 3|:3\b", said)
    assert "often" in said and re.search(r"line 4|:4\b", said)


def test_a_missing_relay_file_is_7(relay):
    assert "nowhere.toml" in three_parts(relay("run", "--config", "nowhere.toml"), 7)


def test_a_relay_without_a_domain_is_7(relay, tmp_path):
    assert "--domain" in three_parts(relay("run", "--data-dir", tmp_path), 7)


def test_a_busy_port_is_1(relay, world, tmp_path):
    busy = f"127.0.0.1:{world.relay.https[1]}"
    flags = ("--http", "off", "--admin", "off")
    done = relay("run", "--domain", DOMAIN, "--data-dir", tmp_path, "--tls", "self-signed", "--https", busy, *flags)
    assert busy in three_parts(done, 1)


@pytest.mark.parametrize("program", [HOOKWAY, HOOKWAY_RELAY])
def test_help_and_version(program, tmp_path):
    for words in (["--help"], ["-h"], ["--version"], ["version"]):
        done = run(program, *words, folder=tmp_path)
        assert done.returncode == 0 and done.stdout and not done.stderr, words


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_flags_beat_the_environment_and_that_the_file(relay, tmp_path):
    """Seen by which address cannot be listened on."""
    (tmp_path / "relay.toml").write_text(
        'domain = "hooks.test"\nhttps = "198.51.100.1:1"\nhttp = "off"\nadmin = "off"\n'
    )
    words = ("run", "--config", "relay.toml", "--data-dir", tmp_path)
    assert "198.51.100.1:1" in relay(*words).stderr
    assert "198.51.100.2:2" in relay(*words, HOOKWAY_RELAY_HTTPS="198.51.100.2:2").stderr
    assert "198.51.100.3:3" in relay(*words, "--https", "198.51.100.3:3", HOOKWAY_RELAY_HTTPS="198.51.100.2:2").stderr


class Project:
    """A folder with a hookway.toml in it, and clients started there."""

    def __init__(self, world, folder):
        self.world, self.folder, self.home = world, folder, folder / "home"
        self.started = []

    def start(self, *words, below="", title="project", relay=None, token=None):
        relay = on(self.world) if relay is None else relay
        where = self.folder / below
        where.mkdir(parents=True, exist_ok=True)
        environment = {
            "HOOKWAY_TOKEN": self.world.default_token if token is None else token,
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "XDG_DATA_HOME": str(self.home / "data"),
        }
        command = ["env", "-C", str(where), HOOKWAY, *words, *relay, "--json"]
        self.started.append(Program(f"{title}-{len(self.started)}", command, self.folder / "logs", environment))
        return self.started[-1], self.started[-1].event("ready")


@pytest.fixture
def project(world, tmp_path):
    project = Project(world, tmp_path)
    yield project
    for program in project.started:
        assert program.stop() == 0


def test_a_random_name_is_remembered_for_the_project(world, app, project):
    first, ready = project.start(app.address, below="one")
    assert re.fullmatch(rf"https://[a-z0-9-]+\.{DOMAIN}:\d+", ready["url"])
    assert first.stop() == 0
    again, same = project.start(app.address, below="one")
    assert same["url"] == ready["url"]
    _, other = project.start(app.address, below="two")
    assert other["url"] != ready["url"]
    name = ready["url"].removeprefix("https://").partition(".")[0]
    assert world.get(name=name).header("x-app") == "app"


def test_a_project_file(world, app, project, name):
    (project.folder / "hookway.toml").write_text(f'name = "{name}"\ntarget = "{app.address}"\ntimeout = "1s"\n')
    _, ready = project.start(below="src/deep")
    assert ready["url"] == world.url("", name)
    assert world.get(name=name).header("x-app") == "app"


def test_several_endpoints_of_one_project(world, project, name):
    apps = {f"{name}-{end}": world.app(name=end) for end in ("one", "two", "route")}
    one, two, route = apps
    (project.folder / "hookway.toml").write_text(
        f'[[endpoint]]\nname = "{one}"\ntarget = "{apps[one].address}"\nroute = ["/route={apps[route].port}"]\n\n'
        f'[[endpoint]]\nname = "{two}"\ntarget = "{apps[two].address}"\n'
    )
    _, ready = project.start()
    assert set(ready["urls"]) == {one, two}
    assert ready["url"] == world.url("", one)
    assert world.get(name=one).header("x-app") == "one" and world.get(name=two).header("x-app") == "two"
    assert world.get("/route", name=one).header("x-app") == "route"
    assert world.get("/route", name=two).header("x-app") == "two"


def test_several_names_for_one_target(world, app, project, name):
    _, ready = project.start(app.address, "-n", f"{name}-a", "-n", f"{name}-b")
    assert len(ready["urls"]) == 2
    assert all(world.get(name=f"{name}-{end}").status == 200 for end in "ab")


def test_token_file(world, app, name, tmp_path):
    (tmp_path / "token").write_text(world.default_token + "\n")
    world.client(app, "--token-file", str(tmp_path / "token"), name=name, environment={"HOOKWAY_TOKEN": ""})
    assert world.get(name=name).status == 200


@pytest.mark.parametrize("below", ["", "src/deep"])
def test_files_that_the_project_names_are_beside_its_own(world, app, project, name, below):
    (project.folder / "ca.pem").write_bytes(pathlib.Path(world.relay.ca).read_bytes())
    (project.folder / "hookway.toml").write_text(f'relay = "{world.authority()}"\nrelay-ca = "ca.pem"\n')
    project.start(app.address, "-n", name, below=below, relay=())
    assert world.get(name=name).status == 200


# ── tokens and endpoints ──────────────────────────────────────────────────────────────────────────────────────────


def test_tokens_are_made_listed_and_revoked(hookway, world, app, name):
    made = world.relay.command("token", "create", "--name", "life", "--endpoints", "programs-*", "--expires", "90d")[0]
    assert re.fullmatch(r"hwt_[A-Za-z0-9_-]{40,}", made["token"]) and made["name"] == "life"
    client = world.client(app, name=name, token=made["token"])
    assert world.get(name=name).status == 200
    listed = [row for row in world.relay.command("token", "list") if row["name"] == "life"]
    assert len(listed) == 1 and made["token"] not in json.dumps(listed)
    world.relay.command("token", "revoke", "life")
    client.event("session", lambda event: event["state"] == "down", seconds=6)
    assert client.exited() == 4
    three_parts(hookway("3000", *on(world), "-n", name, HOOKWAY_TOKEN=made["token"]), 4)
    reply = world.get(name=name)
    assert reply.status == 503 and reply.header("retry-after")


def test_an_expired_token_is_4(hookway, world, app, name):
    token = world.token("brief", "--expires", "2s")
    client = world.client(app, name=name, token=token)
    assert client.exited(10) == 4
    three_parts(hookway("3000", *on(world), HOOKWAY_TOKEN=token), 4)


def test_what_does_not_exist_cannot_be_revoked(relay, world):
    for words in (["token", "revoke", "nobody"], ["endpoint", "show", "nothing"], ["endpoint", "release", "nothing"]):
        done = relay(*words, "--data-dir", world.relay.data)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and "next:" in done.stderr


def test_endpoints_are_listed_shown_and_released(world, app, name):
    client = world.client(app, name=name)
    assert name in [row["name"] for row in world.relay.command("endpoint", "list")]
    shown = world.relay.command("endpoint", "show", name)
    assert len(shown) == 1 and shown[0]["name"] == name and shown[0]["owner"] == "ci"
    assert client.stop() == 0
    eventually(lambda: world.get(name=name).status == 503, what="the client being gone")
    world.relay.command("endpoint", "release", name)
    eventually(lambda: world.get(name=name).status == 404, what="the name being gone")
    assert name not in [row["name"] for row in world.relay.command("endpoint", "list")]


def test_tokens_for_people(relay, world):
    made = relay("token", "create", "--name", "person", "--data-dir", world.relay.data)
    assert made.returncode == 0 and re.fullmatch(r"hwt_\S+\n", made.stdout) and "only time" in made.stderr
    listed = relay("token", "list", "--data-dir", world.relay.data)
    assert "person" in listed.stdout and made.stdout.strip() not in listed.stdout


# ── the relay as a service ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_plain_http_redirects(world, app, name, method):
    world.client(app, name=name)
    with socket.create_connection(world.relay.http, 10) as plain:
        plain.sendall(request(method, "/a%20b?c=d", host=f"{name}.{DOMAIN}", headers=[("Connection", "close")]))
        head = plain.makefile("rb").read().decode()
    assert re.match(r"HTTP/1\.1 308 ", head)
    assert f"location: {world.url('/a%20b?c=d', name)}\r\n" in head
    assert not app.seen


def test_health_and_ready(world):
    assert world.relay.get("/health")[0] == 200 and world.relay.get("/ready")[0] == 200
    assert world.relay.get("/nothing")[0] == 404


def test_metrics(new_world):
    world = new_world()
    world.client(world.app())
    assert world.post("/", b"12345").status == 200
    world.get(name="nobody")

    def values():
        status, text = world.relay.get("/metrics")
        assert status == 200 and text.endswith("# EOF\n") and "billing" not in text
        families = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
        assert families and all(f"# HELP {family} " in text for family in families)
        return {name: float(value) for name, value in re.findall(r"^(hookway_\S+) (\S+)$", text, re.MULTILINE)}

    expected = {
        "hookway_relay_requests_total": 2,
        'hookway_relay_replies_total{class="2xx"}': 1,
        "hookway_relay_request_bytes_total": 5,
        "hookway_relay_sessions": 1,
        "hookway_relay_in_flight": 0,
        "hookway_relay_connections": 0,
    }
    eventually(lambda: expected.items() <= values().items(), what="the counts")
    assert values()["hookway_relay_reply_bytes_total"] > 100


def test_ready_is_503_while_stopping(new_world):
    world = new_world()
    with world.wire() as wire, world.app(answer=lambda seen, _: eventually(lambda: gate, 60) and None) as app:
        gate = []
        world.client(app)
        wire.send(request())
        eventually(lambda: app.seen, what="the delivery at the app")
        world.relay.process.send_signal(signal.SIGTERM)
        eventually(lambda: world.relay.get("/ready")[0] == 503, what="the relay not being ready")
        gate.append(True)
        assert world.relay.exited() == 0


def test_a_service_manager_is_told(new_world, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(DEADLINE)
        world = new_world(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert b"READY=1" in manager.recv(4096).splitlines()
        world.relay.process.send_signal(signal.SIGTERM)
        assert b"STOPPING=1" in manager.recv(4096).splitlines()
        assert world.relay.exited() == 0


def test_no_colour_without_a_terminal(new_world):
    world = new_world("--log", "debug")
    world.get()
    world.relay.process.send_signal(signal.SIGTERM)
    assert world.relay.exited() == 0
    log = world.relay.errors.read_bytes()
    assert log and b"\x1b" not in log


# ── certificates from files ───────────────────────────────────────────────────────────────────────────────────────


class Authority:
    """A CA made with openssl, and the leaf that it signs."""

    def __init__(self, folder):
        self.folder, self.ca = folder, folder / "ca.pem"
        self.cert, self.key = folder / "leaf.pem", folder / "leaf.key"
        self.openssl("req", "-x509", *self._key("ca.key"), "-out", "ca.pem", "-days", "2", "-subj", "/CN=Test CA")

    def openssl(self, *words):
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def _key(self, file):
        return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", file

    def sign(self, common_name):
        """A new key and leaf; each file is replaced in one step, as certbot does it."""
        self.openssl("req", *self._key("new.key"), "-out", "leaf.csr", "-subj", f"/CN={common_name}")
        (self.folder / "names").write_text(f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN},IP:127.0.0.1\n")
        by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "names")
        self.openssl("x509", "-req", "-in", "leaf.csr", *by, "-out", "new.pem")
        (self.folder / "new.key").rename(self.key)
        (self.folder / "new.pem").rename(self.cert)


def common_name(address, ca):
    context = ssl.create_default_context(cafile=ca)
    with (
        socket.create_connection(address, 10) as plain,
        context.wrap_socket(plain, server_hostname=f"x.{DOMAIN}") as tls,
    ):
        return dict(pair for part in tls.getpeercert()["subject"] for pair in part)["commonName"]


def test_certificates_from_files_are_reloaded(world, app, tmp_path):
    authority = Authority(tmp_path)
    authority.sign("first")
    data = tmp_path / "data"
    command = [HOOKWAY_RELAY, "run", "--domain", DOMAIN, "--data-dir", data, "--https", "127.0.0.1:0", "--http", "off"]
    files = ["--tls", "files", "--tls-cert", authority.cert, "--tls-key", authority.key, "--admin", "off", "--json"]
    relay = Program("relay-files", list(map(str, command + files)), tmp_path / "logs")
    programs = [relay]
    try:
        ready = relay.event("ready")
        assert "ca" not in ready and ready["http"] is None and ready["admin"] is None
        host, _, port = ready["https"].rpartition(":")
        address = (host, int(port))
        made = run(HOOKWAY_RELAY, "token", "create", "--name", "ci", "--json", "--data-dir", data, folder=tmp_path)
        token = json.loads(made.stdout)["token"]
        words = [HOOKWAY, app.address, "-n", "billing", "--relay", ready["https"], "--relay-ca", str(authority.ca)]
        client = Program("client", [*words, "--json"], tmp_path / "logs", {"HOOKWAY_TOKEN": token})
        programs.insert(0, client)
        client.event("ready")
        assert common_name(address, authority.ca) == "first"
        with Wire(address, str(authority.ca), f"billing.{DOMAIN}", ("http/1.1",)) as wire:
            assert wire.ask(request()).status == 200
            authority.sign("second")
            eventually(lambda: common_name(address, authority.ca) == "second", 15, "the new certificate")
            assert wire.ask(request()).status == 200, "the connection made before stays"
        authority.key.write_text("nonsense")
        eventually(lambda: "not taken" in relay.log(), 15, "the warning")
        assert common_name(address, authority.ca) == "second"
        assert client.find("session", lambda event: event["state"] == "down") is None
    finally:
        codes = [program.stop() for program in programs]
    assert codes == [0, 0]


def test_certificates_from_files_that_do_not_fit_are_1(relay, tmp_path):
    authority = Authority(tmp_path)
    authority.sign("leaf")
    authority.key.write_text((tmp_path / "ca.key").read_text())
    words = ("run", "--domain", DOMAIN, "--data-dir", tmp_path / "data", "--https", "127.0.0.1:0", "--http", "off")
    done = relay(*words, "--admin", "off", "--tls", "files", "--tls-cert", authority.cert, "--tls-key", authority.key)
    assert "leaf" in three_parts(done, 1) or str(authority.cert) in done.stderr
    authority.cert.unlink()
    done = relay(*words, "--admin", "off", "--tls", "files", "--tls-cert", authority.cert, "--tls-key", authority.key)
    assert str(authority.cert) in three_parts(done, 1)


def test_login_keeps_a_token_for_its_relay_only(world, hookway, tmp_path):
    _, relay, _, ca = on(world)
    token = tmp_path / "token"
    token.write_text(world.default_token + "\n")
    done = hookway("login", relay, "--relay-ca", ca, "--token-file", token)
    assert done.returncode == 0 and "logged in" in done.stdout, done.stderr
    kept = tmp_path / "config" / "hookway" / "config.toml"
    assert kept.stat().st_mode & 0o777 == 0o600
    # A flag of every command may stand before the command.
    assert json.loads(hookway("--json", "whoami").stdout)["owner"] == "ci"
    assert re.search(rf"^relay +{re.escape(relay)}$", hookway("config", "show").stdout, re.MULTILINE)
    (tmp_path / "hookway.toml").write_text('relay = "localhost:9"\n')
    assert "no token for localhost:9" in three_parts(hookway("3000"), 4)
    (tmp_path / "hookway.toml").unlink()
    assert hookway("logout").returncode == 0
    assert world.default_token not in kept.read_text()
    three_parts(hookway("3000"), 4)
    kept.unlink()
    assert "no token" in hookway("logout").stdout and not kept.exists()


def test_a_target_and_a_command_do_not_go_together(hookway):
    three_parts(hookway("3000", "whoami"), 2)


def test_a_file_that_is_named_must_be_there(hookway):
    three_parts(hookway("--config", "missing.toml", "3000"), 7)
