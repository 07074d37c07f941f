"""The built programs, started as a user starts them, and the two ends beside them.

    with World() as world:
        app = world.app()
        world.client(app)                                   # hookway … -n billing
        reply = world.wire().ask(b"GET /x HTTP/1.1\r\nHost: billing.hooks.test\r\n\r\n")
        assert reply.status == 200 and app.seen[0].target == "/x"

A `World` is one relay, its clients and local apps in a temporary folder. A `Wire` is a sender's connection on which
a test writes raw bytes; a `RawApp` is the developer's app: a socket, a strict parser and a list of what it saw.
Nothing here sleeps for a fixed time: a wait is for a condition, under a deadline. Only processes started here end here.
"""

import contextlib
import functools
import hashlib
import http.client
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field

import pytest

DOMAIN = "hooks.test"
LONG = os.environ.get("HOOKWAY_LONG") == "1"
DEADLINE = 20.0  # seconds a condition may take on a busy two-core machine

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_BUILT = _REPOSITORY / "target" / "debug"
HOOKWAY = os.environ.get("HOOKWAY_BIN", str(_BUILT / "hookway"))
HOOKWAY_RELAY = os.environ.get("HOOKWAY_RELAY_BIN", str(_BUILT / "hookway-relay"))


def eventually(condition, seconds=DEADLINE, what="the condition"):
    """Wait until `condition()` is true; its value. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not hold within {seconds} s"
        time.sleep(0.01)


def lacking(what):
    """Skip a test for want of something on this machine; where CI is set nothing may be wanting."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


class Meanwhile:
    """Threads that work as long as a block lasts: each calls its function, which returns soon after `over` is set."""

    def __init__(self, *work):
        """`work`: a function and its arguments for each."""
        self.over = threading.Event()
        self._threads = [threading.Thread(target=each, args=words, daemon=True) for each, *words in work]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        end = time.monotonic() + 60
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "a thread goes on"


# ── the programs ──────────────────────────────────────────────────────────────────────────────────────────────────


def run(program, *words, folder, **environment):
    """A program run to its end in a folder of its own, as text."""
    own = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "XDG_CONFIG_HOME": f"{folder}/config",
        "XDG_DATA_HOME": f"{folder}/data",
    }
    return subprocess.run(
        [program, *map(str, words)],
        cwd=folder,
        env=own | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def signal_process(pid, how):
    """Signal the process of which a program or a file has told the id. To 0 it would go to all of this one's group, the
    tests and what runs them; to -1 to every process."""
    assert isinstance(pid, int) and pid > 1, f"{pid!r} is no process of a relay"
    os.kill(pid, how)


def alive(pid):
    """Whether that process runs, whoever's child it is; one that nobody has waited for yet does not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "State:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    return False


class Program:
    """A started program: its JSON lines as they come, its stderr in a file."""

    def __init__(self, title, command, folder, environment=None):
        self.title = title
        self.lines, self.events = [], []
        self._news = threading.Condition()
        folder.mkdir(parents=True, exist_ok=True)
        self.errors = folder / f"{title}.stderr"
        inherited = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
        own = {"HOME": folder, "XDG_CONFIG_HOME": folder / "config", "XDG_DATA_HOME": folder / "data"}
        own = {name: str(value) for name, value in own.items()}
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=inherited | own | {"RUST_BACKTRACE": "1"} | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line)
                with contextlib.suppress(ValueError):
                    self.events.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def event(self, kind, where=lambda event: True, seconds=DEADLINE):
        """The first event of this kind for which `where` holds, waited for."""
        return self.wait(lambda: self.find(kind, where), seconds, f"{self.title}: event {kind}")

    def find(self, kind, where=lambda event: True):
        return next((event for event in self.events if event.get("event") == kind and where(event)), None)

    def wait(self, condition, seconds=DEADLINE, what="a line"):
        """Wait until `condition()` holds, looking again whenever the program has printed something."""
        end = time.monotonic() + seconds
        with self._news:
            while not (value := condition()):
                assert self.running, f"{self.title} exited {self.process.returncode} before {what}\n{self.log()}"
                left = end - time.monotonic()
                assert left > 0, f"no {what} within {seconds} s\n{self.log()}"
                self._news.wait(min(left, 0.2))
            return value

    @property
    def running(self):
        return self.process.poll() is None

    @property
    def pid(self):
        return self.process.pid

    def rss(self):
        """Resident memory in bytes."""
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))

    def log(self, last=4000):
        """The end of its stderr."""
        return self.errors.read_bytes()[-last:].decode(errors="replace")

    def exited(self, seconds=DEADLINE):
        """Its exit code, waited for, and all that it said before."""
        code = self.process.wait(seconds)
        self._reader.join(seconds)
        return code

    def stop(self, seconds=15.0):
        """Ctrl-C; the exit code. A panic on the way fails the test, and so does a program that has to be killed."""
        obeyed = True
        if self.running:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                obeyed = False
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        _, panic, story = self.errors.read_text(errors="replace").partition("panicked")
        assert not panic, f"{self.title} panicked{story[:2000]}"
        assert obeyed, f"{self.title} had to be killed: Ctrl-C did not end it within {seconds} s\n{self.log()}"
        return self.process.returncode


class Relay(Program):
    """`hookway-relay run`, ready."""

    def __init__(self, folder, flags=(), environment=None, title="relay"):
        self.data = folder / "relay-data"
        command = [HOOKWAY_RELAY, "run", "--domain", DOMAIN, "--data-dir", str(self.data)]
        command += [] if "--tls" in flags else ["--tls", "self-signed"]
        for listener in ("--https", "--http", "--admin"):
            if listener not in flags:
                command += [listener, "127.0.0.1:0"]
        super().__init__(title, [*command, "--json", *flags], folder / title, environment)
        ready = self.event("ready")
        self.https, self.http, self.admin = (_address(ready[key]) for key in ("https", "http", "admin"))
        self.ca = ready.get("ca")

    def command(self, *words):
        """A `hookway-relay` subcommand on this relay's store: its JSON answers."""
        done = subprocess.run(
            [HOOKWAY_RELAY, *words, "--data-dir", str(self.data), "--json"],
            capture_output=True,
            cwd=self.errors.parent,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stderr.decode(errors='replace')}"
        return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]

    def get(self, path):
        """One GET on the admin listener: (status, text)."""
        connection = http.client.HTTPConnection(*self.admin, timeout=DEADLINE)
        with contextlib.closing(connection):
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()

    def metric(self, name):
        """What is counted now by a metric without labels."""
        _, metrics = self.get("/metrics")
        return next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith(f"hookway_relay_{name} "))


class Client(Program):
    """`hookway TARGET`, with its ready event waited for."""

    def __init__(self, world, target, flags, name, token, title, json_lines, environment):
        command = [HOOKWAY, target, "--relay", world.authority(), "--relay-ca", world.relay.ca, "-n", name]
        command += ["--json"] if json_lines else []
        folder = world.folder / title
        super().__init__(title, [*command, *flags], folder, {"HOOKWAY_TOKEN": token} | (environment or {}))

    def deliveries(self, **fields):
        """The delivery events so far whose fields have these values."""
        return [
            event
            for event in list(self.events)
            if event.get("event") == "delivery" and all(event.get(key) == value for key, value in fields.items())
        ]

    def delivery(self, seconds=DEADLINE, **fields):
        """The first delivery event with these values, waited for."""
        return self.event("delivery", lambda event: all(event.get(k) == v for k, v in fields.items()), seconds)


class World:
    """One relay, its clients and apps, in a folder that goes away with it."""

    alive = []  # for conftest.py, which prints the logs of all of them beside a failure

    def __init__(self, *relay_flags, generous=True, environment=None):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="hookway-peers-"))
        self._stack = contextlib.ExitStack()
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.programs = []
        World.alive.append(self)
        # Limits are a matter of the tests of limits: elsewhere thousands of requests come from one address.
        plenty = {"--rate": "off", "--token-rate": "off"}
        for limit in ("--max-concurrent", "--token-max-concurrent", "--max-connections-per-ip", "--max-handshakes-per-ip"):
            plenty[limit] = "20000"
        flags = [word for pair in plenty.items() if generous and pair[0] not in relay_flags for word in pair]
        try:
            self.relay = self._add(Relay(self.folder, [*flags, *relay_flags], environment))
        except BaseException:
            self.close()
            raise

    def _add(self, program):
        self.programs.append(program)
        self._stack.callback(program.stop)
        return program

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        try:
            self._stack.close()
        finally:
            if self in World.alive:
                World.alive.remove(self)

    def logs(self):
        """(title, end of stderr) of each program."""
        return [(program.title, program.log()) for program in self.programs if program.errors.exists()]

    @functools.cached_property
    def default_token(self):
        return self.token()

    def token(self, name="ci", *flags):
        """A new token of its own owner."""
        return self.relay.command("token", "create", "--name", name, *flags)[-1]["token"]

    def app(self, **options):
        """A local app that echoes what it saw."""
        return self._stack.enter_context(RawApp(**options))

    def client(
        self, target, *flags, name="billing", token=None, wait=True, json_lines=True, inspect=False, environment=None
    ):
        """`hookway` towards `target` (an app, or what stands on the command line)."""
        target = target.address if isinstance(target, RawApp) else target
        flags = list(flags) + (["--no-inspect"] if not inspect and takes("--no-inspect") else [])
        title = f"client-{len(self.programs)}-{name}"
        token = token or self.default_token
        client = self._add(Client(self, target, flags, name, token, title, json_lines, environment))
        if wait and json_lines:
            client.event("ready")
        return client

    def authority(self, host="127.0.0.1"):
        """HOST:PORT of the public listener (TCP for senders, UDP for clients)."""
        return f"{host}:{self.relay.https[1]}"

    def url(self, path="/", name="billing"):
        """The public URL. conftest.py lets *.hooks.test resolve to 127.0.0.1 in this process."""
        return f"https://{self.authority(f'{name}.{DOMAIN}')}{path}"

    def wire(self, name="billing", sni=..., alpn=("http/1.1",), timeout=DEADLINE, receive_buffer=None):
        """A sender's TLS connection; `sni=None` sends none, else it is NAME.hooks.test."""
        server_name = f"{name}.{DOMAIN}" if sni is ... else sni
        return Wire(self.relay.https, self.relay.ca, server_name, tuple(alpn or ()), timeout, receive_buffer)

    def get(self, path="/", name="billing", headers=()):
        """One clean GET on a connection of its own."""
        with self.wire(name) as wire:
            return wire.ask(request("GET", path, host=f"{name}.{DOMAIN}", headers=headers))

    def post(self, path="/", body=b"", name="billing", headers=()):
        """One clean POST on a connection of its own."""
        with self.wire(name) as wire:
            return wire.ask(request("POST", path, body, host=f"{name}.{DOMAIN}", headers=headers))


@functools.cache
def takes(flag):
    """Whether the built client knows this flag."""
    return flag in subprocess.run([HOOKWAY, "--help"], capture_output=True, text=True, check=True).stdout


def _address(text):
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


# ── the sender ────────────────────────────────────────────────────────────────────────────────────────────────────


def request(method="GET", target="/", body=None, host=f"billing.{DOMAIN}", headers=()):
    """The bytes of a clean HTTP/1.1 request; `headers` are pairs of text."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in headers)]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


@functools.lru_cache(maxsize=64)
def tls_context(ca, alpn=()):
    """A verifying TLS context, as every sender has one."""
    context = ssl.create_default_context(cafile=ca)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@functools.lru_cache(maxsize=64)
def _nameless_context(ca, alpn=()):
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@dataclass
class Reply:
    """A parsed answer. `complete` is false where its end was missing, whatever its status said."""

    status: int
    headers: list
    body: bytes
    complete: bool
    interim: list = field(default_factory=list)

    def header(self, name, default=None):
        return next((value for key, value in self.headers if key.lower() == name.lower()), default)

    def all(self, name):
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def json(self):
        return json.loads(self.body)


class Closed(Exception):
    """The peer closed or reset the connection before a whole head came."""


class Wire:
    """A sender's TLS connection on which raw bytes are written and answers are read strictly."""

    def __init__(self, address, ca, server_name, alpn=(), timeout=DEADLINE, receive_buffer=None):
        raw = socket.socket()
        raw.settimeout(timeout)
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            raw.connect(address)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Without a server name there is nothing to check the leaf against but the address, which it also covers.
            context = tls_context(ca, alpn) if server_name else _nameless_context(ca, alpn)
            self.tls = context.wrap_socket(raw, server_hostname=server_name, suppress_ragged_eofs=False)
        except BaseException:
            raw.close()
            raise
        self.buffer = bytearray()
        self.clean_end = None  # once the peer has ended: with close_notify or without

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.tls.close()

    def send(self, data):
        """Write; a peer that has closed already is no error here, the answer tells."""
        with contextlib.suppress(BrokenPipeError, ConnectionError, ssl.SSLError):
            self.tls.sendall(data)

    def ask(self, data, method=None):
        """Send one request and read its answer."""
        self.send(data)
        return self.reply(method or data.split(b" ", 1)[0].decode("latin-1"))

    def receive(self):
        """Some more bytes into the buffer; false at the end of the stream."""
        if self.clean_end is not None:
            return False
        try:
            data = self.tls.recv(65536)
        except TimeoutError:
            raise
        except (ssl.SSLError, ConnectionError):
            self.clean_end = False
            return False
        if not data:
            self.clean_end = True
            return False
        self.buffer += data
        return True

    def ended(self, seconds=DEADLINE):
        """Whether the peer ends the connection within `seconds`; what it sent before stays in the buffer."""
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                self.tls.settimeout(max(0.01, end - time.monotonic()))
                if not self.receive():
                    return True
        except TimeoutError:
            pass
        return False

    def quiet(self, seconds):
        """Whether nothing more comes within `seconds` on a connection that stays open."""
        return not self.tls.pending() and not select.select([self.tls], [], [], seconds)[0]

    def _until(self, mark):
        while (at := self.buffer.find(mark)) < 0:
            if not self.receive():
                raise Closed(bytes(self.buffer))
        data = bytes(self.buffer[:at])
        del self.buffer[: at + len(mark)]
        return data

    def _exactly(self, count):
        while len(self.buffer) < count:
            if not self.receive():
                raise Closed(bytes(self.buffer))
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        return data

    def reply(self, method="GET"):
        """The next answer, 1xx kept apart. Raises `Closed` where none begins."""
        interim = []
        while True:
            status, headers = self._head()
            if status >= 200 or status == 101:
                break
            interim.append((status, headers))
        body, complete = self._body(method, status, headers)
        return Reply(status, headers, body, complete, interim)

    def _head(self):
        first, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ", 2)
        assert version in ("HTTP/1.1", "HTTP/1.0") and len(status) == 3, f"not a status line: {first!r}"
        headers = [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)]
        return int(status), headers

    def _body(self, method, status, headers):
        fields = {name.lower(): value for name, value in headers}
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        coding = fields.get("transfer-encoding")
        assert not (lengths and coding), f"an answer with both framings: {headers}"
        assert len(lengths) < 2, f"two Content-Length: {headers}"
        if method == "HEAD" or status in (101, 204, 304):
            return b"", True
        body = bytearray()
        try:
            if coding:
                assert coding.lower() == "chunked", coding
                while size := int(self._until(b"\r\n").split(b";")[0], 16):
                    body += self._exactly(size)
                    assert self._exactly(2) == b"\r\n"
                while self._until(b"\r\n"):
                    pass
            elif lengths:
                body += self._exactly(int(lengths[0]))
            else:
                while self.receive():
                    pass
                body += self.buffer
                self.buffer.clear()
                return bytes(body), bool(self.clean_end)
        except Closed as cut:
            return bytes(body) + cut.args[0], False
        return bytes(body), True


# ── the developer's app ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Seen:
    """One request exactly as it reached the app."""

    method: str
    target: str
    headers: list
    body: bytes
    raw: bytes
    connection: int
    trailers: list = field(default_factory=list)

    def header(self, name, default=None):
        return next((value for key, value in self.headers if key.lower() == name.lower()), default)

    def all(self, name):
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def sha256(self):
        return hashlib.sha256(self.body).hexdigest()


class Unclean(Exception):
    """What reached the app is not one well-formed HTTP/1.1 request."""


class RawApp:
    """A local app on a raw socket. It records every request, answers with an echo, and trusts nothing.

    `answer` may be replaced by a function `(seen, socket)` that returns the raw bytes of an answer (a list: written
    piece by piece), or None for having written to the socket itself, after which the connection is closed. With
    `keep_alive` off each connection carries one answer. `unclean` holds what the strict parser objected to.
    """

    def __init__(self, name="app", answer=None, keep_alive=True):
        self.name, self.keep_alive = name, keep_alive
        self.answer = answer or self.echo
        self.seen, self.unclean, self.connections = [], [], 0
        self._sockets, self._lock = set(), threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def clear(self):
        with self._lock:
            self.seen.clear()
            self.unclean.clear()

    def at(self, path):
        """The requests seen whose target is, or begins with, this path."""
        return [seen for seen in list(self.seen) if seen.target == path or seen.target.startswith(path + "?")]

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                number = self.connections
                self._sockets.add(connection)
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection, number):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = _Reader(connection)
        try:
            while (seen := reader.request(number)) is not None:
                with self._lock:
                    self.seen.append(seen)
                answer = self.answer(seen, connection)
                if answer is None:
                    break
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    connection.sendall(piece)
                if not self.keep_alive or "close" in (seen.header("connection") or "").lower():
                    break
        except Unclean as why:
            with self._lock:
                self.unclean.append((str(why), bytes(reader.taken)))
            with contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        except OSError:
            pass
        finally:
            with self._lock:
                self._sockets.discard(connection)
            connection.close()

    def echo(self, seen, _connection=None):
        """The default answer: what was seen, as JSON."""
        body = json.dumps(
            {
                "app": self.name,
                "method": seen.method,
                "target": seen.target,
                "headers": seen.headers,
                "length": len(seen.body),
                "sha256": seen.sha256,
            }
        ).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-App: {self.name}\r\nContent-Length: {len(body)}"
        return head.encode() + b"\r\n\r\n" + (b"" if seen.method == "HEAD" else body)


_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


class _Reader:
    """A strict HTTP/1.1 request parser over a socket (RFC 9112): anything doubtful is `Unclean`."""

    def __init__(self, connection):
        self.connection, self.buffer, self.taken = connection, bytearray(), bytearray()

    def _more(self):
        data = self.connection.recv(65536)
        self.buffer += data
        return bool(data)

    def _take(self, count):
        while len(self.buffer) < count:
            if not self._more():
                raise OSError("the request was cut short")
        data = bytes(self.buffer[:count])
        del self.buffer[:count]
        self.taken += data
        return data

    def _line(self):
        while (at := self.buffer.find(b"\n")) < 0:
            if not self._more():
                raise OSError("the request was cut short")
        line = self._take(at + 1)
        if not line.endswith(b"\r\n") or b"\r" in line[:-2] or b"\0" in line:
            raise Unclean(f"line {line!r}")
        return line[:-2]

    def _fields(self):
        fields = []
        while line := self._line():
            name, colon, value = line.partition(b":")
            if not colon or not name or not _TOKEN.issuperset(name):
                raise Unclean(f"field {line!r}")
            if any(byte < 0x20 and byte != 0x09 or byte == 0x7F for byte in value):
                raise Unclean(f"control byte in {line!r}")
            fields.append((name.decode(), value.strip(b" \t").decode("latin-1")))
        return fields

    def request(self, number):
        self.taken.clear()
        while not self.buffer:
            if not self._more():
                return None
        words = self._line().split(b" ")
        if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0") or not words[0] or not words[1]:
            raise Unclean(f"request line {words!r}")
        if not _TOKEN.issuperset(words[0]) or any(byte <= 0x20 or byte == 0x7F for byte in words[1]):
            raise Unclean(f"request line {words!r}")
        headers = self._fields()
        lengths = [value for name, value in headers if name.lower() == "content-length"]
        codings = [value for name, value in headers if name.lower() == "transfer-encoding"]
        hosts = [value for name, value in headers if name.lower() == "host"]
        if len(hosts) != 1:
            raise Unclean(f"Host {hosts}")
        if codings and lengths:
            raise Unclean(f"both framings: {lengths} {codings}")
        if "100-continue" in [value.lower() for name, value in headers if name.lower() == "expect"]:
            self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, trailers = b"", []
        if codings:
            if [value.lower() for value in codings] != ["chunked"]:
                raise Unclean(f"Transfer-Encoding {codings}")
            body, trailers = self._chunks()
        elif lengths:
            if len(lengths) > 1 or not lengths[0].isascii() or not lengths[0].isdigit():
                raise Unclean(f"Content-Length {lengths}")
            body = self._take(int(lengths[0]))
        method, target = words[0].decode(), words[1].decode("latin-1")
        return Seen(method, target, headers, body, bytes(self.taken), number, trailers)

    def _chunks(self):
        body = bytearray()
        while True:
            line = self._line()
            digits = line.partition(b";")[0].strip(b" \t")
            if not digits or not frozenset(b"0123456789abcdefABCDEF").issuperset(digits) or len(digits) > 16:
                raise Unclean(f"chunk size {line!r}")
            size = int(digits, 16)
            if not size:
                return bytes(body), self._fields()
            body += self._take(size)
            if self._take(2) != b"\r\n":
                raise Unclean("no CRLF after a chunk")
