"""What the tests' servers have in common, and the DNS around them, all on loopback: a resolver, and Knot.

    with Resolver() as resolver, Knot() as knot:
        resolver.delegate("_acme-challenge.hooks.test", knot.address)   # as an NS record would
        assert knot.update("_acme-challenge.hooks.test", "text") == "NOERROR"
"""

import base64
import contextlib
import os
import pathlib
import random
import secrets
import shutil
import socket
import socketserver
import tempfile
import threading

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.tsigkeyring
import dns.update

from world import DOMAIN, Program, eventually, lacking


def free_port():
    """A port for programs that cannot say which one they got: nobody has it, and the kernel gives it to nobody."""
    while True:
        port = random.randrange(10_000, 32_000)
        address = ("127.0.0.1", port)
        with contextlib.suppress(OSError), socket.create_server(address), socket.socket(type=socket.SOCK_DGRAM) as udp:
            udp.bind(address)
            return port


def installed(program, package):
    """The path of a program of Debian's."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    return path or lacking(f"{program} is missing\n  next:  apt-get install {package}")


class Folder:
    """Something with a temporary folder and parts that end with it."""

    def __init__(self):
        self._parts = contextlib.ExitStack()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="hookway-acme-"))
        self._parts.callback(shutil.rmtree, self.folder, ignore_errors=True)
        try:
            self._start()
        except BaseException:
            self._parts.close()
            raise

    def _program(self, *arguments):
        program = Program(*arguments)
        self._parts.callback(program.stop)
        return program

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._parts.close()


# ── the DNS as the authority sees it ──────────────────────────────────────────────────────────────────────────────


class Resolver:
    """A recursive resolver of a world with few zones; every name in them is 127.0.0.1, unless told else.

    What is delegated is asked for there as the pickiest resolvers ask: without recursion, with EDNS and DO, in mIxEd
    case that must come back, with TCP where UDP was truncated. `lame` says what it did not like about an answer.
    """

    def __init__(self, *zones):
        self.zones = {dns.name.from_text(zone) for zone in zones or (DOMAIN, "custom.test")}
        self.questions, self.lame = [], []
        self._records, self._delegations, self._servers = {}, {}, []
        while not self._servers:
            tcp = _DnsTcp(("127.0.0.1", 0), self)
            with contextlib.suppress(OSError):
                self._servers = [tcp, _DnsUdp(tcp.server_address, self)]
        self.authority = f"127.0.0.1:{tcp.server_address[1]}"

    def __enter__(self):
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def delegate(self, name, address):
        """NS: this name, and all under it, is asked for at (host, port)."""
        self._delegations[dns.name.from_text(name)] = address

    def record(self, name, kind, *texts):
        """The records of a name; without texts there are none any more."""
        name, kind = dns.name.from_text(name), dns.rdatatype.from_text(kind)
        self._records[name, kind] = dns.rrset.from_text(name, 60, "IN", kind, *texts) if texts else None

    def asked(self, name, kind):
        """How often this was asked for."""
        return self.questions.count((dns.name.from_text(name), dns.rdatatype.from_text(kind)))

    def resolve(self, query):
        """The answer to a client's message."""
        reply = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        self.questions.append((question.name, question.rdtype))
        name = question.name
        for _ in range(8):
            code, records = self._look_up(name, question.rdtype)
            reply.answer += records
            reply.set_rcode(code)
            alias = next((record for record in records if record.rdtype == dns.rdatatype.CNAME), None)
            if alias is None or question.rdtype == dns.rdatatype.CNAME or records[-1] is not alias:
                return reply
            name = alias[0].target
        reply.set_rcode(dns.rcode.SERVFAIL)
        return reply

    def _look_up(self, name, kind):
        for delegated, address in self._delegations.items():
            if name.is_subdomain(delegated):
                return self._ask(name, kind, address)
        for known in (kind, dns.rdatatype.CNAME):
            if found := self._records.get((name, known)):
                return dns.rcode.NOERROR, [found]
        if not any(name.is_subdomain(zone) for zone in self.zones):
            return dns.rcode.NXDOMAIN, []
        if kind == dns.rdatatype.A and (name, kind) not in self._records:
            return dns.rcode.NOERROR, [dns.rrset.from_text(name, 60, "IN", "A", "127.0.0.1")]
        return dns.rcode.NOERROR, []

    def _ask(self, name, kind, address):
        mixed = dns.name.Name([bytes(map(either_case, label)) for label in name])
        query = dns.message.make_query(mixed, kind, use_edns=0, payload=1232, want_dnssec=True, flags=0)
        try:
            reply = dns.query.udp(query, address[0], timeout=2, port=address[1])
            if reply.flags & dns.flags.TC:
                reply = dns.query.tcp(query, address[0], timeout=2, port=address[1])
        except (OSError, dns.exception.DNSException) as why:
            self.lame.append(f"{name} {address}: {why!r}")
            return dns.rcode.SERVFAIL, []
        for wrong, what in (
            (reply.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN), dns.rcode.to_text(reply.rcode())),
            (not reply.flags & dns.flags.AA, "not authoritative"),
            (reply.flags & dns.flags.RA, "recursion available"),
            (reply.edns < 0, "no EDNS in the answer"),
            (reply.question[0].name.labels != mixed.labels, "another case in the question"),
            (not reply.answer and not reply.authority, "no SOA beside a negative answer"),
        ):
            if wrong:
                self.lame.append(f"{name} {dns.rdatatype.to_text(kind)} {address}: {what}")
                return dns.rcode.SERVFAIL, []
        return reply.rcode(), reply.answer


def either_case(byte):
    return random.choice((byte, byte ^ 0x20)) if bytes([byte]).isalpha() else byte


class _DnsServer:
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address, resolver):
        self.resolver = resolver
        super().__init__(address, self.handler)

    def answer(self, data, most=65535):
        try:
            reply = self.resolver.resolve(dns.message.from_wire(data))
            return reply.to_wire(max_size=most)
        except dns.exception.TooBig:
            reply.answer.clear()
            reply.flags |= dns.flags.TC
            return reply.to_wire()

    def handle_error(self, request, client_address):
        """Its clients ask again."""


class _UdpHandler(socketserver.BaseRequestHandler):
    def handle(self):
        data, listener = self.request
        listener.sendto(self.server.answer(data, 1232), self.client_address)


class _TcpHandler(socketserver.StreamRequestHandler):
    def handle(self):
        while length := self.rfile.read(2):
            reply = self.server.answer(self.rfile.read(int.from_bytes(length, "big")))
            self.wfile.write(len(reply).to_bytes(2, "big") + reply)


class _DnsUdp(_DnsServer, socketserver.ThreadingUDPServer):
    handler = _UdpHandler


class _DnsTcp(_DnsServer, socketserver.ThreadingTCPServer):
    handler = _TcpHandler


# ── a name server that takes updates ──────────────────────────────────────────────────────────────────────────────


class Knot(Folder):
    """Knot DNS with one zone. The key may change TXT records of the `_acme-challenge` names of `domains`, no others.

    `key_file` is in BIND's format; `wrong_key_file` has the same name and another secret.
    """

    def __init__(self, zone=DOMAIN, domains=(DOMAIN,), key="relay-key"):
        self.zone, self.domains, self.key = zone, domains, key
        super().__init__()

    def _start(self):
        secret = base64.b64encode(secrets.token_bytes(32)).decode()
        self.key_file = self._write_key("relay.key", secret)
        self.wrong_key_file = self._write_key("wrong.key", base64.b64encode(bytes(32)).decode())
        self.keyring = dns.tsigkeyring.from_text({f"{self.key}.": ("hmac-sha256", secret)})
        self.address = ("127.0.0.1", free_port())
        self.authority = f"127.0.0.1:{self.address[1]}"
        names = ", ".join(f"_acme-challenge.{domain}." for domain in self.domains)
        (self.folder / "zone").write_text(
            f"$ORIGIN {self.zone}.\n$TTL 60\n@ SOA ns.{self.zone}. admin.{self.zone}. 1 3600 600 86400 60\n"
            "@ NS ns\nns A 127.0.0.1\n* A 127.0.0.1\n@ A 127.0.0.1\n"
        )
        (self.folder / "knot.conf").write_text(f"""
server:
    rundir: {self.folder}/run
    listen: 127.0.0.1@{self.address[1]}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: info
database:
    storage: {self.folder}/database
key:
  - id: {self.key}
    algorithm: hmac-sha256
    secret: {secret}
acl:
  - id: challenges
    key: {self.key}
    action: update
    update-type: [TXT]
    update-owner: name
    update-owner-match: equal
    update-owner-name: [{names}]
zone:
  - domain: {self.zone}
    file: {self.folder}/zone
    zonefile-sync: -1
    journal-content: none
    acl: challenges
""")
        (self.folder / "run").mkdir()
        (self.folder / "database").mkdir()
        self.program = self._program("knot", [installed("knotd", "knot"), "-c", "knot.conf"], self.folder)
        eventually(self._answers, what="Knot's answers")

    def _write_key(self, name, secret):
        path = self.folder / name
        path.write_text(f'key "{self.key}" {{\n\talgorithm hmac-sha256;\n\tsecret "{secret}";\n}};\n')
        path.chmod(0o600)
        return path

    def _answers(self):
        assert self.program.running, self.program.log()
        with contextlib.suppress(OSError, dns.exception.DNSException):
            return self.query(self.zone, "SOA", timeout=0.1).answer
        return None

    def query(self, name, kind="TXT", timeout=5):
        """One question, asked of this server."""
        return dns.query.udp(dns.message.make_query(name, kind), self.address[0], timeout=timeout, port=self.address[1])

    def texts(self, name=f"_acme-challenge.{DOMAIN}"):
        """The TXT strings of a name."""
        return sorted(b"".join(text.strings).decode() for records in self.query(name).answer for text in records)

    def update(self, name, *texts, keyring=None):
        """Replace the TXT records of a name; the response code's name, or the key's error."""
        update = dns.update.UpdateMessage(self.zone, keyring=keyring or self.keyring)
        update.delete(f"{name}.", "TXT")
        for text in texts:
            update.add(f"{name}.", 1, "TXT", f'"{text}"')
        try:
            return dns.rcode.to_text(dns.query.tcp(update, self.address[0], timeout=5, port=self.address[1]).rcode())
        except dns.tsig.PeerError as why:
            return type(why).__name__
