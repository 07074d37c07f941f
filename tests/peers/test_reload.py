"""Another configuration for a relay that runs: what is taken over, what is not and why, and that nobody notices it."""

import contextlib
import datetime
import json
import signal
import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from websockets.sync.client import connect

from test_admin_api import NOWHERE, Api
from test_domains import certificates
from test_queue import restart
from test_trusted_proxy import Peer, raw_request, told
from test_websockets import EchoServer
from world import DEADLINE, DOMAIN, HOOKWAY_RELAY, Closed, Meanwhile, Program, World, eventually, request, run, tls_context

BROWSER = ("Accept", "text/html")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Configured:
    """A relay that reads a file."""

    def __init__(self, folder, *flags, **settings):
        self.file = folder / "relay.toml"
        self.folder = folder
        self.write(**settings)
        self.world = World("--config", str(self.file), *flags, generous=False)
        self.relay = self.world.relay
        self.api = Api(self.relay, self.world.token("root", "--scope", "admin"))

    def write(self, **settings):
        """The file, in one piece. JSON's strings, numbers and lists are TOML's."""
        lines = [f"{key.replace('_', '-')} = {json.dumps(value)}\n" for key, value in settings.items()]
        self.put("".join(lines))

    def put(self, text):
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)

    def reload(self, **settings):
        """Takes other settings over: what waits for a restart."""
        self.write(**settings)
        (done,) = self.relay.command("reload")
        assert done["reloaded"] is True and done["at"]
        return done["detail"]

    def refused(self, *words):
        """What the command says when nothing is taken over."""
        done = run(HOOKWAY_RELAY, "reload", "--data-dir", self.relay.data, *words, folder=self.folder)
        assert done.returncode == 1 and not done.stdout, done
        return done.stderr

    def lines(self):
        return [line for line in self.api.audit() if line["action"] == "config.reload"]

    def hang_up(self):
        """SIGHUP, and the line that it leaves."""
        before = len(self.lines())
        self.relay.process.send_signal(signal.SIGHUP)
        return eventually(lambda: self.lines()[before:], what="a line of it")[0]

    def page(self):
        with self.world.wire("nobody") as wire:
            return wire.ask(request("GET", "/", host=f"nobody.{DOMAIN}", headers=[BROWSER])).body.decode()

    def status(self, source="127.0.0.1", body=b"x", name="billing"):
        with Peer(self.relay, source, name) as wire:
            return wire.ask(request("POST", "/", body, f"{name}.{DOMAIN}")).status

    def burst(self, count=20):
        with self.world.wire() as wire:
            return [wire.ask(request("POST", "/", b"x")).status for _ in range(count)]


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    configured = Configured(tmp_path_factory.mktemp("configured"))
    with configured.world:
        configured.app = configured.world.app()
        configured.client = configured.world.client(configured.app)
        yield configured


@pytest.fixture(autouse=True)
def plain(request):
    """The file's tests leave the defaults behind."""
    yield
    if "configured" in request.fixturenames:
        request.getfixturevalue("configured").reload()


# ── what takes effect ─────────────────────────────────────────────────────────────────────────────────────────────


def test_rates(configured):
    assert set(configured.burst()) == {200}
    assert configured.reload(rate="3/s") == ""
    assert 429 in configured.burst()
    configured.reload(rate="off", token_rate="2/s")
    assert 429 in configured.burst()
    configured.reload(rate="off", token_rate="off")
    assert set(configured.burst(50)) == {200}


def test_sizes(configured):
    with configured.world.wire() as open_before:
        assert open_before.ask(request("POST", "/", b"x" * 3000)).status == 200
        configured.reload(max_body="2KiB")
        assert configured.status(body=b"x" * 2048) == 200 and configured.status(body=b"x" * 2049) == 413
        assert open_before.ask(request("POST", "/", b"x" * 3000)).status == 413, "on a connection that was there"
    configured.reload(max_body="4KiB")
    assert configured.status(body=b"x" * 3000) == 200


def test_who_may_not_send(configured):
    with Peer(configured.relay, "127.0.0.9") as before:
        assert before.ask(raw_request([])).status == 200
        configured.reload(deny=["127.0.0.9", "192.0.2.0/24", "github"])
        assert before.ask(raw_request([])).status == 403
    assert configured.status("127.0.0.9") == 403 and configured.status("127.0.0.8") == 200
    configured.reload(deny=["127.0.0.8"])
    assert configured.status("127.0.0.9") == 200 and configured.status("127.0.0.8") == 403


def test_the_contact_and_what_comes_back(configured):
    configured.app.answer = lambda seen, _: (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\n<p>"
    )
    try:
        assert "harm" not in configured.page()
        configured.reload(abuse_contact="abuse@relay.test", allow_indexing=True)
        assert "mailto:abuse@relay.test" in configured.page()
        assert configured.world.get().header("x-robots-tag") is None
        configured.reload(abuse_contact="https://relay.test/abuse", webhooks_only=True)
        assert 'href="https://relay.test/abuse"' in configured.page() and b"webhooks" in configured.world.get().body
        configured.reload()
        assert "harm" not in configured.page() and configured.world.get().body == b"<p>"
        assert configured.world.get().header("x-robots-tag")
    finally:
        configured.app.answer = configured.app.echo


def test_whom_it_trusts(configured):
    forwarded = [("X-Forwarded-For", "192.0.2.1")]

    def sender():
        configured.app.clear()
        with Peer(configured.relay, "127.0.0.2") as wire:
            assert wire.ask(raw_request(forwarded)).status == 200
        return told(configured.app.seen[0])[0]

    assert sender() == "127.0.0.2"
    configured.reload(trusted_proxy=["127.0.0.2"])
    assert sender() == "192.0.2.1, 127.0.0.2"
    configured.reload(trusted_proxy=["127.0.0.3"])
    assert sender() == "127.0.0.2"


def test_how_many_connections(configured):
    with contextlib.ExitStack() as open_:
        peer = lambda: open_.enter_context(Peer(configured.relay, "127.0.0.20", timeout=5))  # noqa: E731
        configured.reload(max_connections_per_ip=2)
        held = [peer(), peer()]
        with pytest.raises((ssl.SSLError, OSError)):
            peer()
        assert all(wire.ask(raw_request([])).status == 200 for wire in held)
        configured.reload(max_connections_per_ip=3)
        assert peer().ask(raw_request([])).status == 200
        configured.reload(max_connections_per_ip=1)
        assert all(wire.ask(raw_request([])).status == 200 for wire in held), "who is there stays"
        with pytest.raises((ssl.SSLError, OSError)):
            peer()


def test_how_much_waits(configured):
    assert configured.world.client(NOWHERE, name="away").stop() == 0
    configured.reload(queue_max_count=2)
    assert [configured.status(name="away") for _ in range(3)] == [202, 202, 503]
    configured.reload(queue_max_count=3)
    assert [configured.status(name="away") for _ in range(2)] == [202, 503]
    configured.reload(queue_max_body="10B")
    assert configured.status(name="away", body=b"x" * 11) == 413


def test_what_is_logged(configured):
    log = configured.relay.errors

    def lines_of_a_request():
        at = log.stat().st_size
        with contextlib.suppress(OSError, ssl.SSLError), socket.create_connection(configured.relay.https, 5) as wire:
            wire.sendall(b"GET / HTTP/1.1\r\n\r\n")
            wire.recv(100)
        configured.status()
        return log.read_bytes()[at:]

    assert b"DEBUG" not in lines_of_a_request()
    configured.reload(log="hookway_relay=debug")
    eventually(lambda: b"DEBUG hookway_relay::public: no TLS" in lines_of_a_request(), what="a line for debugging")
    configured.reload(log="error")
    at = log.stat().st_size
    configured.reload(log="error", deny=["127.0.0.9"])
    assert b"DEBUG" not in lines_of_a_request() and b"INFO" not in log.read_bytes()[at:]


# ── certificates ──────────────────────────────────────────────────────────────────────────────────────────────────


def pair(folder, name):
    """A CA of its own and a leaf with its key: (ca, file)."""
    own = folder / name
    own.mkdir()
    return certificates(own, DOMAIN, f"*.{DOMAIN}")


def serial(path):
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


def shown(relay):
    """The certificate that senders are shown."""
    context = ssl._create_unverified_context()
    with (
        socket.create_connection(relay.https, DEADLINE) as raw,
        context.wrap_socket(raw, server_hostname=DOMAIN) as tls,
    ):
        return x509.load_der_x509_certificate(tls.getpeercert(True)).serial_number


@pytest.fixture
def certified(tmp_path):
    """A relay with certificates in files, of which there are two pairs."""
    pairs = [pair(tmp_path, name) for name in ("one", "two")]
    files = lambda number: {"tls_cert": str(pairs[number][1]), "tls_key": str(pairs[number][1])}  # noqa: E731
    configured = Configured(tmp_path, "--tls", "files", **files(0))
    configured.pairs, configured.files = pairs, files
    with configured.world:
        configured.relay.ca = str(pairs[0][0])
        yield configured


def test_certificates_from_other_files(certified):
    """New connections have them, of senders and of clients; who is connected stays."""
    app = certified.world.app()
    client = certified.world.client(app)
    assert shown(certified.relay) == serial(certified.pairs[0][1])
    with certified.world.wire() as open_before:
        assert certified.reload(**certified.files(1)) == ""
        assert shown(certified.relay) == serial(certified.pairs[1][1])
        assert open_before.ask(request("GET", "/")).status == 200
    certified.relay.ca = str(certified.pairs[1][0])
    assert certified.world.get("/").status == 200
    for transport in ("quic", "h2"):
        own = certified.world.client(app, "--transport", transport, name=f"by-{transport}")
        assert certified.world.get("/", name=f"by-{transport}").status == 200
        own.stop()
    assert client.running and not client.find("session", lambda event: event["state"] == "down")
    restart(certified.world)
    assert shown(certified.world.relay) == serial(certified.pairs[1][1])


def test_certificates_that_have_changed(certified):
    """A reload does not wait for anybody to notice."""
    leaf = certified.pairs[0][1]
    leaf.write_bytes(certified.pairs[1][1].read_bytes())
    certified.relay.command("reload")
    assert shown(certified.relay) == serial(certified.pairs[1][1])


def bad_files(certified, how):
    """Settings whose certificate cannot be used."""
    one, two = (leaf.read_bytes() for _, leaf in certified.pairs)
    key = lambda text: text[text.index(b"-----BEGIN PRIVATE KEY") :]  # noqa: E731
    folder = certified.folder
    texts = {
        "no file": None, "an empty file": b"", "garbage": b"\0" * 1000, "no key": one[: -len(key(one))], "another's key": one[: -len(key(one))] + key(two),
        "a cut file": one[:300], "a folder": "folder",
    }  # fmt: skip
    path = folder / "bad.pem"
    match texts[how]:
        case "folder":
            path.mkdir()
        case bytes() as text:
            path.write_bytes(text)
    return {"tls_cert": str(path), "tls_key": str(path)}


HOW_BAD = ["no file", "an empty file", "garbage", "no key", "another's key", "a cut file", "a folder"]


@pytest.mark.parametrize("how", HOW_BAD)
def test_certificates_that_cannot_be_used_are_not(certified, how):
    """The one before goes on."""
    certified.write(**bad_files(certified, how))
    run(HOOKWAY_RELAY, "reload", "--data-dir", certified.relay.data, folder=certified.folder)
    assert shown(certified.relay) == serial(certified.pairs[0][1])
    assert certified.reload(**certified.files(1)) == ""
    assert shown(certified.relay) == serial(certified.pairs[1][1])


def test_who_reloads_is_told_of_certificates_that_cannot_be_used(certified):
    for how in HOW_BAD[:2]:
        certified.write(**bad_files(certified, how))
        done = run(HOOKWAY_RELAY, "reload", "--data-dir", certified.relay.data, folder=certified.folder)
        assert done.returncode != 0 and "bad.pem" in done.stderr


# ── what is not taken over ────────────────────────────────────────────────────────────────────────────────────────

BROKEN = {
    # a file: what is said of it
    "no TOML": ('deny = ["127.0.0.1"\nrate = ', "line"),
    "a key nobody knows": ('deny = ["127.0.0.1"]\nrat = "3/s"\n', "rate"),
    "a value that is none": ('deny = ["127.0.0.1"]\nrate = "fast"\n', "rate"),
    "a list for one": ('deny = ["127.0.0.1"]\nmax-body = [1, 2]\n', "max-body"),
    "a table for one": ('deny = ["127.0.0.1"]\nmax-body = {a = 1}\n', "max-body"),
    "a table": ('deny = ["127.0.0.1"]\n[limits]\nrate = "3/s"\n', "limits"),
    "a key twice": ('deny = ["127.0.0.1"]\nrate = "3/s"\nrate = "4/s"\n', "line 3: duplicate"),
    "a list of nonsense": ('deny = ["127.0.0.1", "nobody"]\n', "nobody"),
    "a contact that is none": ('deny = ["127.0.0.1"]\nabuse-contact = "javascript:x"\n', "abuse-contact"),
    "two that do not go together": ('deny = ["127.0.0.1"]\nproxy-protocol = true\n', "--proxy-protocol trusts nobody"),
    "a log filter that is none": ('deny = ["127.0.0.1"]\nlog = "hookway_relay=loud=x[["\n', "log"),
    "bytes": ('deny = ["127.0.0.1"]\n\udcff', "relay.toml"),
    "a NUL": ('deny = ["127.0.0.1"]\nrate = "3\0/s"\n', "line"),
    "many": ('deny = ["127.0.0.1"]\nrat = 1\nmax-bodi = 2\nrate = "x"\n', "3 lines"),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_changes_nothing(configured, broken):
    """Nothing of what is good in it either; who asks is told why, and so is the audit log."""
    text, said = broken
    configured.reload(deny=["127.0.0.9"], abuse_contact="abuse@relay.test")
    before = len(configured.lines())
    configured.file.write_bytes(text.encode(errors="surrogateescape"))
    told = configured.refused()
    assert told.startswith("error: the configuration was not taken over; the one before stays in force\n  cause: ")
    assert said in told and "\x1b" not in told and "\0" not in told
    line = configured.lines()[before]
    assert (line["actor"], line["via"], line["refused"]) == ("relay", "relay", True) and said in line["detail"]
    line = configured.hang_up()
    assert line["refused"] and said in line["detail"]
    assert configured.status() == 200 and configured.status("127.0.0.9") == 403
    assert "abuse@relay.test" in configured.page() and configured.client.running
    log = configured.relay.log()
    assert "configuration not reloaded" in log and "panicked" not in log


def test_a_file_that_has_gone_changes_nothing(configured):
    configured.reload(deny=["127.0.0.9"])
    configured.file.unlink()
    assert "cannot read" in configured.refused() and configured.status("127.0.0.9") == 403
    configured.file.mkdir()
    assert "cannot read" in configured.refused() and configured.status("127.0.0.9") == 403
    configured.file.rmdir()


def test_a_command_that_is_given_a_broken_file_says_so_itself(configured):
    """It finds its relay by the file."""
    before = len(configured.lines())
    configured.put("rat = 1\n")
    reload = lambda: run(HOOKWAY_RELAY, "reload", "--config", configured.file, folder=configured.folder)  # noqa: E731
    done = reload()
    assert (
        done.returncode == 7 and "rate" in done.stderr and "next:" in done.stderr and len(configured.lines()) == before
    )
    configured.write(data_dir=str(configured.relay.data), deny=["127.0.0.9"])
    done = reload()
    assert (done.returncode, done.stdout, done.stderr) == (0, "reloaded\n", "") and configured.status(
        "127.0.0.9"
    ) == 403


LATER = {"public_port": 4430, "resolver": "127.0.0.1:5353", "http_serve": True}


def test_what_waits_for_a_restart_is_named(configured):
    """And is not in force; what is beside it is."""
    for key, value in LATER.items():
        detail = configured.reload(**{key: value}, deny=["127.0.0.9"])
        assert detail == f"waits for a restart: {key.replace('_', '-')}"
        assert configured.lines()[-1]["detail"] == detail and configured.status("127.0.0.9") == 403
        configured.reload()
    detail = configured.reload(**LATER)
    assert detail.startswith("waits for a restart: ") and set(detail.partition(": ")[2].split(", ")) == {
        "public-port", "resolver", "http-serve",
    }  # fmt: skip
    done = run(HOOKWAY_RELAY, "reload", "--data-dir", configured.relay.data, folder=configured.folder)
    assert done.returncode == 0 and done.stdout == f"reloaded; {detail}\n"
    with Peer(configured.relay, tls=False) as wire:
        reply = wire.ask(raw_request([]))
        assert (reply.status, reply.header("location")) == (308, configured.world.url("/")), (
            "neither the port nor plain HTTP"
        )
    # A flag beats the file: these are what they were.
    assert (
        configured.reload(https="127.0.0.1:1", http="off", admin="off", domain="other.test", data_dir="/nowhere") == ""
    )


def test_the_log_s_format_is_taken_over_or_named(configured):
    detail = configured.reload(log_format="json")
    assert "log-format" in detail or configured.relay.log().rstrip().splitlines()[-1].startswith("{")


# ── nobody notices ────────────────────────────────────────────────────────────────────────────────────────────────


class Senders(Meanwhile):
    """Requests without end, on new connections and on old ones; what became of each."""

    def __init__(self, world):
        self.world, self.count, self.failed = world, 0, []
        super().__init__(*((self._run, fresh) for fresh in (True, False, False)))

    def _run(self, fresh):
        wire = None
        try:
            while not self.over.is_set():
                wire = wire or self.world.wire()
                reply = wire.ask(request("POST", "/load", b"x" * 2000))
                if reply.status != 200 or not reply.complete:
                    self.failed.append(reply)
                if fresh:
                    wire.close()
                    wire = None
                self.count += 1
        except (OSError, Closed) as failure:
            self.failed.append(failure)

    def go_on(self, more=20):
        wanted = self.count + more
        eventually(lambda: self.count >= wanted or self.failed, what="more requests")
        assert not self.failed, self.failed[:3]


def test_no_request_notices(tmp_path):
    """Requests on new and old connections, an open WebSocket, an upload and a download across many reloads, good and bad."""
    pairs = [pair(tmp_path, name) for name in ("one", "two")]
    ca = tmp_path / "both-cas.pem"
    ca.write_bytes(b"".join(own.read_bytes() for own, _ in pairs))
    files = lambda number: {"tls_cert": str(pairs[number % 2][1]), "tls_key": str(pairs[number % 2][1])}  # noqa: E731
    well = {"rate": "off", "token_rate": "off", "max_connections_per_ip": 5000}
    configured = Configured(tmp_path, "--tls", "files", **files(0), **well)
    with configured.world as world:
        world.relay.ca = str(ca)
        gate = threading.Event()

        def answer(seen, connection):
            if seen.target == "/download":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3000002\r\n\r\n" + b"x" * 3_000_000)
                gate.wait(DEADLINE)
                return b"yz"
            return OK if seen.target == "/load" else world_app.echo(seen)

        world_app = world.app(answer=answer)
        client = world.client(world_app)
        server = EchoServer()
        sockets = world.client(server.address, name="sockets")
        url = world.url("/", "sockets").replace("https:", "wss:")
        dial = {"ssl": tls_context(world.relay.ca), "proxy": None, "subprotocols": ["echo"], "open_timeout": DEADLINE}
        with Senders(world) as senders, connect(url, **dial) as websocket, world.wire() as up, world.wire() as down:
            up.send(request("POST", "/upload", headers=[("Transfer-Encoding", "chunked")]))
            down.send(request("GET", "/download"))
            senders.go_on()
            changes = [
                {"max_body": "1MiB"}, {"deny": ["192.0.2.0/24"]}, {"rate": "100000/s"}, {"log": "debug"}, {"log": "warn"}, {"abuse_contact": "a@b.test"},
                {"max_connections": 4000}, {"header_timeout": "9s"}, {"trusted_proxy": ["10.0.0.0/8"]}, {"queue_max_count": 5},
            ]  # fmt: skip
            for number, change in enumerate(changes):
                configured.reload(**(well | files(number) | change))
                websocket.send(f"{number}")
                assert websocket.recv(DEADLINE) == f"{number}"
                up.send(b"10000\r\n" + b"%d" % number * 0x10000 + b"\r\n")
                senders.go_on()
                if number % 3 == 0:
                    configured.put("broken = [")
                    configured.refused()
                    senders.go_on()
            configured.write(**well, **files(0))
            for _ in range(30):
                configured.relay.process.send_signal(signal.SIGHUP)
            senders.go_on(100)
            reply = up.ask(b"0\r\n\r\n", "POST")
            assert reply.status == 200 and reply.json()["length"] == len(changes) << 16
            gate.set()
            reply = down.reply()
            assert reply.complete and len(reply.body) == 3_000_002 and reply.body.endswith(b"xyz")
            websocket.send("bye")
            assert websocket.recv(DEADLINE) == "bye"
            senders.go_on()
        assert not senders.failed and senders.count > 400
        for program in (client, sockets):
            assert not program.find("session", lambda event: event["state"] == "down")
        server.server.shutdown()


def test_signals_one_after_the_other_are_all_obeyed(configured):
    """The last file is in force, whatever comes in between."""
    for number in range(20):
        configured.write(deny=[f"127.0.0.{number + 10}"])
        configured.relay.process.send_signal(signal.SIGHUP)
    eventually(lambda: configured.status("127.0.0.29") == 403, what="the last")
    assert configured.status("127.0.0.28") == 200 and configured.relay.running


def test_two_who_reload_at_once_are_both_told(configured):
    configured.write(deny=["127.0.0.9"])
    told = []
    threads = [threading.Thread(target=lambda: told.append(configured.relay.command("reload"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(told) == 4 and all(line["reloaded"] for (line,) in told)


# ── status, audit ─────────────────────────────────────────────────────────────────────────────────────────────────


def ending(folder):
    """A certificate that was good for nine days and is for one more, with its key."""
    key, now, day = (
        ec.generate_private_key(ec.SECP256R1()),
        datetime.datetime.now(datetime.UTC),
        datetime.timedelta(days=1),
    )
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, DOMAIN)])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now - 9 * day, now + day
    )
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName(DOMAIN), x509.DNSName(f"*.{DOMAIN}")]), False
    )
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    leaf = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (folder / "ending.pem").write_bytes(leaf + key.private_bytes(*pem))
    return str(folder / "ending.pem")


def test_status(configured, tmp_path):
    relay = configured.relay
    (status,) = relay.command("status")
    address = lambda at: f"{at[0]}:{at[1]}"  # noqa: E731
    expected = {
        "running": True, "pid": relay.pid, "https": address(relay.https), "http": address(relay.http), "admin": address(relay.admin), "well": True,
        "problems": [], "sessions": 1,
    }  # fmt: skip
    assert expected.items() <= status.items()
    assert {"version", "dns", "endpoints", "tokens", "waiting", "dead_letters"} <= set(status)
    assert status["endpoints"] == len(configured.api.walk("/endpoints"))
    assert status["tokens"] == configured.api.get("/status")["tokens"]
    assert status["waiting"] == configured.api.get("/status")["queue"]["waiting"]
    text = run(HOOKWAY_RELAY, "status", "--data-dir", relay.data, folder=tmp_path)
    assert text.returncode == 0 and not text.stderr
    for part in (f"process {relay.pid}", "well", address(relay.https), address(relay.http), address(relay.admin)):
        assert part in text.stdout
    assert max(map(len, text.stdout.splitlines())) <= 100


def test_status_of_one_that_is_not_well(tmp_path):
    """A certificate that ends soon: 1, and why."""
    configured = Configured(tmp_path, "--tls", "files", **dict.fromkeys(("tls_cert", "tls_key"), ending(tmp_path)))
    with configured.world:
        done = run(HOOKWAY_RELAY, "status", "--data-dir", configured.relay.data, "--json", folder=tmp_path)
        status = json.loads(done.stdout)
        assert done.returncode == 1 and status["running"] and not status["well"]
        assert len(status["problems"]) == 1 and "certificate" in status["problems"][0]
        assert configured.relay.get("/health")[0] == configured.relay.get("/ready")[0] == 503
        text = run(HOOKWAY_RELAY, "status", "--data-dir", configured.relay.data, folder=tmp_path)
        assert text.returncode == 1 and status["problems"][0] in text.stdout
        assert configured.api.get("/status")["problems"] == status["problems"]


def test_status_without_an_admin_listener(tmp_path):
    """What nobody can be asked is said to be unknown, not well; and it reloads."""
    data = tmp_path / "data"
    command = [HOOKWAY_RELAY, "run", "--domain", DOMAIN, "--data-dir", str(data), "--admin", "off", "--json"]
    relay = Program("relay", [*command, "--https", "127.0.0.1:0", "--http", "off"], tmp_path)
    try:
        ready = relay.event("ready")
        assert ready["admin"] is None and ready["http"] is None
        done = run(HOOKWAY_RELAY, "status", "--data-dir", data, "--json", folder=tmp_path)
        status = json.loads(done.stdout)
        assert done.returncode == 1 and status["problems"] == ["unknown: it has no admin listener"]
        assert (status["admin"], status["http"], status["sessions"], status["pid"]) == (None, None, None, relay.pid)
        text = run(HOOKWAY_RELAY, "status", "--data-dir", data, folder=tmp_path)
        assert text.returncode == 1 and "http off   admin off" in text.stdout and "unknown" in text.stdout
        assert run(HOOKWAY_RELAY, "reload", "--data-dir", data, folder=tmp_path).stdout == "reloaded\n"
    finally:
        relay.stop()


@pytest.mark.parametrize("command", ["status", "reload"])
def test_of_a_relay_that_does_not_run(tmp_path, command):
    ask = lambda *words: run(HOOKWAY_RELAY, command, "--data-dir", tmp_path / "data", *words, folder=tmp_path)  # noqa: E731
    for words in ((), ("--json",)):
        done = ask(*words)
        assert done.returncode == 1 and "no relay runs on" in done.stderr and "next:" in done.stderr and not done.stdout
    with World() as world:
        data = world.relay.data
        world.relay.process.send_signal(signal.SIGTERM)
        world.relay.exited()
        done = run(HOOKWAY_RELAY, command, "--data-dir", data, folder=tmp_path)
        assert done.returncode == 1 and "no relay runs on" in done.stderr
        # One that was killed has left its file behind.
        restart(world)
        world.relay.process.kill()
        world.relay.exited()
        done = run(HOOKWAY_RELAY, command, "--data-dir", data, folder=tmp_path)
        assert done.returncode == 1 and "no relay runs on" in done.stderr


def test_audit(configured, tmp_path):
    """Newest last, so many, a line each."""
    configured.reload(deny=["127.0.0.9"])
    configured.put("rat = 1\n")
    configured.refused()
    lines = configured.relay.command("audit", "--limit", "500")
    assert [line["seq"] for line in lines] == sorted(line["seq"] for line in lines)
    assert lines == configured.api.audit()
    assert configured.relay.command("audit", "--limit", "2") == lines[-2:]
    assert [(line["action"], line["refused"]) for line in lines[-2:]] == [
        ("config.reload", False),
        ("config.reload", True),
    ]
    assert len(configured.relay.command("audit")) <= 100
    text = run(HOOKWAY_RELAY, "audit", "--data-dir", configured.relay.data, "--limit", "2", folder=tmp_path)
    assert text.returncode == 0
    good, bad = text.stdout.splitlines()
    assert "config.reload" in good and "REFUSED" not in good and "REFUSED  config.reload" in bad and "rate" in bad
    nothing = run(HOOKWAY_RELAY, "audit", "--data-dir", tmp_path / "nowhere", folder=tmp_path)
    assert nothing.returncode == 1 and "there is no relay's store" in nothing.stderr
    configured.write()


def test_audit_in_words_is_one_line_each_whatever_was_asked_for(configured, tmp_path):
    """What was refused is quoted: line ends, colours and marks that turn text around are not."""
    for path in ("%0a2026-01-01T00:00:00Z%20%20cli%20root", "%1b%5b2J", "%e2%80%ae", "%0d", "%c2%9b31m"):
        assert configured.api.ask("DELETE", f"/api/endpoints/{path}").status == 404
    text = run(HOOKWAY_RELAY, "audit", "--data-dir", configured.relay.data, "--limit", "5", folder=tmp_path)
    assert len(text.stdout.splitlines()) == 5
    assert not [char for char in text.stdout if not char.isprintable() and char != "\n"]
