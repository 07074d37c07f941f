"""The inspector's API against its own description, openapi.json: every route, asked for real, answers what it says."""

import base64
import gzip
import json
import pathlib

import openapi_spec_validator
import pytest
import requests
from openapi_description import METHODS, Description, component
from test_semantics import SleepingApp

from world import HOOKWAY, Program, World, eventually, run

FILE = pathlib.Path(__file__).resolve().parents[2] / "tunnel-client" / "src" / "inspector" / "openapi.json"
DESCRIBED = Description(FILE)
DESCRIPTION, OPERATIONS = DESCRIBED.json, DESCRIBED.operations
check, resolve = DESCRIBED.check, DESCRIBED.resolve
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
MULTIPART = (
    b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="p.png"\r\nContent-Type: image/png\r\n\r\n%b\r\n'
    b"--x--\r\n" % PNG
)
MANY = 1 << 20  # bytes of a body that are kept
MAX_BODY = 8 << 20  # bytes of a request's body


# ── the description ───────────────────────────────────────────────────────────────────────────────────────────────


def schemas():
    """(where, schema) of each object that an answer can hold."""
    asked = {"Edited", "Har"}  # a request may leave things out, HAR is another's format

    def walk(where, node):
        if isinstance(node, dict):
            if node.get("type") == "object" and "properties" in node:
                yield where, node
            for key, inner in node.items():
                yield from walk(f"{where}.{key}", inner)
        elif isinstance(node, list):
            for at, inner in enumerate(node):
                yield from walk(f"{where}.{at}", inner)

    for name, schema in DESCRIPTION["components"]["schemas"].items():
        if name not in asked:
            yield from walk(name, schema)


def test_it_is_valid_openapi():
    openapi_spec_validator.validate(DESCRIPTION)
    assert DESCRIPTION["openapi"].startswith("3.1.")


def test_it_is_written_as_json_is_written_by_hand():
    assert FILE.read_text() == json.dumps(DESCRIPTION, indent=2, ensure_ascii=False) + "\n"


def test_drift_would_be_seen():
    for where, schema in schemas():
        assert schema["additionalProperties"] is False, where
        absent = set(schema["properties"]) - set(schema["required"])
        assert absent == ({"at", "length"} if where == "Error.properties.error" else set()), where
        for name, inner in schema["properties"].items():
            assert "description" in resolve(inner), f"{where}: {name}"
            # Units are said where they are not bytes.
            if name.endswith("_ms"):
                assert "illisecond" in inner["description"], f"{where}: {name}"


def test_each_operation_says_what_it_may_answer():
    ids = []
    for path, method in OPERATIONS:
        operation = DESCRIPTION["paths"][path][method]
        ids.append(operation["operationId"])
        assert operation["summary"] and operation["description"] and "403" in operation["responses"], (path, method)
        parameters = DESCRIBED.parameters(path, method)
        assert all(parameter["description"] for parameter in parameters), (path, method)
        named = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
        assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}, path
        needs_token = [need for need in operation.get("security", []) if "token" in need]
        assert bool(needs_token) == (method != "get"), (path, method)
        assert ("409" in operation["responses"]) == ("{id}" in path or path in ("/api/diff", "/api/export")), path
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(resolve(response)["content"]) == ["application/json"], (path, method, status)
    assert len(set(ids)) == len(ids)


# ── asked for real ────────────────────────────────────────────────────────────────────────────────────────────────


class Inspector:
    """Asks, and holds each answer to the description."""

    def __init__(self, url, headers=()):
        self.url, self.seen = url, set()
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers.update(headers)
        self.token = self.ask("get", "/api/status").json()["token"]

    def ask(self, method, path, status=200, headers=None, token=True, **more):
        """An answer; `path` is one of the description, whose {…} come from `more`, and so do query and body."""
        places = {name: more.pop(name) for name in ("id", "number") if name in more}
        own = {"Hookway-Token": self.token} if token and method != "get" else {}
        url = self.url + path.format(**places)
        reply = self.session.request(method, url, headers=own | (headers or {}), timeout=40, **more)
        what = f"{method} {path} {places or ''} {more.get('params') or ''} → {reply.status_code} {reply.text[:300]}"
        assert reply.status_code == status, what
        described = DESCRIBED.described(reply, path, method, what)
        self.seen.add((path, method, status))
        if "content" not in described:
            assert not reply.content and "Content-Type" not in reply.headers, what
            return reply
        kind = reply.headers["Content-Type"].partition(";")[0]
        assert kind in described["content"], f"{what}: {kind} is not described"
        if kind == "application/json":
            check(described["content"][kind]["schema"], reply.json(), what)
        return reply

    def detail(self, id, **params):
        return self.ask("get", "/api/exchanges/{id}", id=id, params=params).json()

    def found(self, filter):
        """The newest exchange that matches and is over, waited for."""

        def look():
            page = self.ask("get", "/api/exchanges", params={"filter": f"{filter} -is:pending"}).json()
            return page["exchanges"] and page["exchanges"][0]

        return eventually(look, what=filter)


def answer(seen, connection):
    """An app with answers of many kinds."""
    kinds = {
        "/reply-gzip": (b"200 OK\r\nContent-Encoding: gzip", "application/json", gzip.compress(b'{"a": [1, 2]}')),
        "/reply-image": (b"200 OK\r\nSet-Cookie: a=secret", "image/png", PNG),
        "/reply-wrong": (b"500 Internal Server Error", "application/json", b'{"a": 1,\n "b": }'),
        "/reply-empty": (b"204 No Content", "text/plain", b""),
        "/reply-cut": (b"200 OK", "text/plain", b"beginning"),
    }
    default = (b"200 OK", "text/plain; charset=utf-8", b"one\ntwo\n")
    status, kind, body = kinds.get(seen.target.partition("?")[0], default)
    length = len(body) + (100 if seen.target.startswith("/reply-cut") else 0)
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n" % (status, kind.encode(), length)
    if status.startswith(b"204"):
        head = b"HTTP/1.1 204 No Content\r\n"
    if length > len(body):
        connection.sendall(head + b"\r\n" + body)
        return None
    return head + b"\r\n" + body


REQUESTS = {
    # path: (content type, further fields, body, the kind it is shown as)
    "/json?token=hidden&a=1": ("application/json", [("Authorization", "Bearer hidden")], b'{"a": 1, "b": "x"}', "json"),
    "/wrong-json": ("application/json", [], '{\n "é": ]'.encode(), "json"),
    "/form": ("application/x-www-form-urlencoded", [], b"a=1&a=2&b=%C3%A9+x", "form"),
    "/multipart": ("multipart/form-data; boundary=x", [], MULTIPART, "multipart"),
    "/xml": ("application/xml", [], b"<?xml version='1.0'?><a/>", "xml"),
    "/text": ("text/plain; charset=iso-8859-1", [], b"caf\xe9\nline\n", "text"),
    "/image": ("image/png", [], PNG, "image"),
    "/binary": ("application/octet-stream", [], bytes(range(256)), "binary"),
    "/gzip": ("application/json", [("Content-Encoding", "gzip")], gzip.compress(b'{"a": 1}'), "json"),
    "/not-gzip": ("text/plain", [("Content-Encoding", "gzip")], b"this is no gzip", "text"),
    "/empty": (None, [], b"", "empty"),
    "/cut": ("text/plain", [], b"x" * (MANY + 100), "text"),
    "/reply-gzip": ("text/plain", [], b"a\nb\nc\n", "text"),
    "/reply-image": ("text/plain", [], b"a\nb\nd\n", "text"),
    "/reply-wrong": ("text/plain", [], b"x", "text"),
    "/reply-empty": (None, [], b"", "empty"),
}


# Their bodies are too large or too odd for a command line.
FROM_FILE = {"/binary", "/gzip", "/image", "/multipart", "/cut", "/text"}


class Filled:
    """A tunnel with a history in which there is something of everything."""

    def __init__(self, world):
        self.world = world
        self.app = world.app(answer=answer)
        late = SleepingApp()
        nobody = "--route", "/nobody=127.0.0.1:1", "--on-offline", "/nobody=error"
        routes = *nobody, "--route", f"/late={late.port}"
        self.client = world.client(self.app, "--inspect", "127.0.0.1:0", "--wait-app", "0s", *routes, inspect=True)
        self.inspector = Inspector(self.client.event("ready")["inspector"])
        for path, (kind, fields, body, _) in REQUESTS.items():
            fields = [*fields, *([("Content-Type", kind)] if kind else [])]
            world.post(path, body, headers=fields)
        world.post("/nobody", b"x")
        world.post("/reply-cut", b"x")
        with late:
            world.post("/late", b"x")
            late.open()
            self.client.delivery(path="/late", status=200)
        every = [path.partition("?")[0] for path in REQUESTS] + ["/nobody", "/reply-cut", "/late"]
        self.ids = {path: self.inspector.found(f"path:{path}")["id"] for path in every}


@pytest.fixture(scope="module")
def filled():
    with World() as world:
        yield Filled(world)


@pytest.fixture
def inspector(filled):
    return filled.inspector


def test_the_description_is_served(inspector):
    reply = inspector.ask("get", "/api/openapi.json")
    assert reply.json() == DESCRIPTION
    assert reply.content == FILE.read_bytes()


def test_status(inspector):
    status = inspector.ask("get", "/api/status").json()
    assert (status["mode"], status["session"]["state"]) == ("live", "up")
    assert status["urls"][0]["endpoint"] == "billing" and status["history"]["recording"]


def test_list(filled, inspector):
    page = inspector.ask("get", "/api/exchanges").json()
    assert page["matched"] == page["total"] >= len(filled.ids) and page["next"] is None
    assert "hidden" not in json.dumps(page)
    page = inspector.ask("get", "/api/exchanges", params={"filter": "status:err", "limit": 1}).json()
    assert [one["id"] for one in page["exchanges"]] == [filled.ids["/nobody"]] and page["matched"] == 1
    got, before = [], None
    while before is not None or not got:
        page = inspector.ask("get", "/api/exchanges", params={"limit": 5, "before": before}).json()
        got, before = got + page["exchanges"], page["next"]
        assert (page["matched"] is None) == (len(got) > 5)
    assert [one["seq"] for one in got] == sorted({one["seq"] for one in got}, reverse=True)


@pytest.mark.parametrize("path", REQUESTS)
def test_details(filled, inspector, path):
    *_, sent, kind = REQUESTS[path]
    id = filled.ids[path.partition("?")[0]]
    for secrets in ("false", "0", "true", "1"):
        detail = inspector.detail(id, secrets=secrets)
        assert ("hidden" in json.dumps(detail)) == (secrets in ("true", "1") and "hidden" in path)
    body = detail["request"]["body"]
    assert (body["kind"], body["size"], body["kept"]) == (kind, len(sent), min(len(sent), MANY))
    assert detail["can_replay"] == (path != "/cut") == (detail["why_not"] is None)
    assert (body["json_error"] is not None) == (path == "/wrong-json")
    assert (body["encoding_error"] is not None) == (path == "/not-gzip")


def test_bodies_are_told_apart(filled, inspector):
    body = lambda path: inspector.detail(filled.ids[path])["request"]["body"]  # noqa: E731
    assert body("/gzip")["text"] == '{"a": 1}' and body("/gzip")["encodings"] == ["gzip"]
    assert [field["value"] for field in body("/form")["fields"]] == ["1", "2", "é x"]
    assert [part["body"]["kind"] for part in body("/multipart")["parts"]] == ["text", "image"]
    assert body("/image")["image"].startswith("data:image/png;base64,")
    assert body("/text")["text"].startswith("café")
    error = body("/wrong-json")["json_error"]
    assert body("/wrong-json")["text"].encode("utf-16-le")[error["offset"] * 2 :].decode("utf-16-le") == "]"
    assert body("/cut")["base64_cut"]


def test_details_of_what_failed(filled, inspector):
    refused = inspector.detail(filled.ids["/nobody"])
    summary = refused["summary"]
    assert (summary["error"], summary["status"], summary["ok"]) == ("refused", None, False)
    assert refused["attempts"][0]["reply"] is None and refused["attempts"][0]["message"]
    cut = inspector.detail(filled.ids["/reply-cut"])
    assert (cut["summary"]["error"], cut["summary"]["status"]) == ("cut", 200)
    wrong = inspector.detail(filled.ids["/reply-wrong"])
    assert (wrong["summary"]["error"], wrong["summary"]["ok"]) == (None, False)
    assert wrong["attempts"][0]["reply"]["body"]["json_error"]["line"] == 2


def test_details_of_what_waited(filled, inspector):
    late = inspector.detail(filled.ids["/late"])
    summary = late["summary"]
    assert (summary["attempts"], summary["status"], summary["ok"]) == (2, 200, True)
    assert summary["queued_ms"] > 0 and late["timings"]["queued_ms"] == summary["queued_ms"]
    assert [(one["status"], one["error"]) for one in late["attempts"]] == [(None, "refused"), (200, None)]


def test_ids(filled, inspector):
    id = filled.ids["/json"]
    newest = inspector.ask("get", "/api/exchanges", params={"limit": 1}).json()["exchanges"][0]["id"]
    for part in (id, id[-10:], id[-10:].lower(), id[:-1], f"{id[:8]}…{id[-10:]}"):
        assert inspector.detail(part)["summary"]["id"] == id
    assert inspector.detail("@1")["summary"]["id"] == newest


def test_pin(filled, inspector):
    for pinned in (True, False):
        summary = inspector.ask("put", "/api/exchanges/{id}/pin", id=filled.ids["/xml"], json={"pinned": pinned}).json()
        assert summary["pinned"] == pinned


def test_replay(filled, inspector):
    replay = "/api/exchanges/{id}/replay"
    id = filled.ids["/json"]
    plain = inspector.ask("post", replay, id=id).json()
    assert (plain["summary"]["replay_of"], plain["summary"]["edited"]) == (id, False)
    assert plain["timings"]["relay_to_client_ms"] is None
    number = plain["attempts"][0]["number"]
    assert number == plain["summary"]["attempt"] == 2
    inspector.ask("get", "/api/exchanges/{id}/attempts/{number}/reply/body", id=plain["summary"]["id"], number=number)
    rows = inspector.detail(id, secrets="true")["request"]["headers"]
    edits = [
        {"method": "PUT", "path": "/other?x=1", "headers": rows, "body": {"text": "é"}, "resign": False},
        {"body": {"base64": base64.b64encode(b"\0\1").decode()}, "target": filled.app.address},
        {"target": "http://127.0.0.1:1", "method": None, "body": None},
        {},
    ]
    for edit in edits:
        check(component("Edited"), edit, "Edited")
        again = inspector.ask("post", replay, id=id, json=edit).json()
        assert again["summary"]["edited"] == any(edit.get(key) for key in ("method", "path", "headers", "body"))
        assert again["summary"]["ok"] == (edit.get("target") != "http://127.0.0.1:1")
    assert filled.app.at("/other")[-1].body == "é".encode()


def test_diff(filled, inspector):
    edit = {"body": {"text": '{"a": 2}'}}
    again = inspector.ask("post", "/api/exchanges/{id}/replay", id=filled.ids["/json"], json=edit)
    pairs = [
        (filled.ids["/json"], again.json()["summary"]["id"], {"json"}),
        (filled.ids["/reply-gzip"], filled.ids["/reply-image"], {"text", "bytes"}),
        (filled.ids["/nobody"], filled.ids["/reply-cut"], {"fields"}),
        (filled.ids["/form"], filled.ids["/image"], set()),
    ]
    for a, b, expected in pairs:
        for secrets in ("false", "true"):
            diff = inspector.ask("get", "/api/diff", params={"a": a, "b": b, "secrets": secrets}).json()
            kinds = {section["kind"] for section in diff["sections"]}
            assert kinds >= expected and not diff["same"] and (diff["a"]["id"], diff["b"]["id"]) == (a, b)
    same = inspector.ask("get", "/api/diff", params={"a": a, "b": a}).json()
    assert same["same"] and same["sections"] == []


def test_curl_and_bodies(filled, inspector):
    for path, (_, _, sent, _) in REQUESTS.items():
        id = filled.ids[path.partition("?")[0]]
        command = inspector.ask("get", "/api/exchanges/{id}/curl", id=id).text
        assert "curl " in command and "hidden" not in command
        body = inspector.ask("get", "/api/exchanges/{id}/request/body", id=id)
        assert body.content == sent[:MANY]
        assert body.headers["Content-Disposition"] == f'attachment; filename="{id}.bin"'
        assert ("--data-binary" in command) == (f"@{id}.bin" in command) == (path in FROM_FILE), path
    inspector.ask("get", "/api/exchanges/{id}/curl", id=id, params={"secrets": "true"})
    reply = "/api/exchanges/{id}/attempts/{number}/reply/body"
    image = inspector.ask("get", reply, id=filled.ids["/reply-image"], number=1)
    assert image.content == PNG
    named = f'attachment; filename="{filled.ids["/reply-image"]}-reply.bin"'
    assert image.headers["Content-Disposition"] == named
    zipped = inspector.ask("get", reply, id=filled.ids["/reply-gzip"], number=1).content
    assert gzip.decompress(zipped) == b'{"a": [1, 2]}'


def test_export(filled, inspector):
    export = lambda **params: inspector.ask("get", "/api/export", params=params)  # noqa: E731
    ids = [filled.ids["/json"], filled.ids["/nobody"]]
    har = export(format="har", ids=",".join(ids)).json()
    assert [entry["_id"] for entry in har["log"]["entries"]] == ids
    assert export(format="har", filter="path:/nothing").json()["log"]["entries"] == []
    lines = [json.loads(line) for line in export(format="jsonl", filter="path:/json -is:replay").iter_lines()]
    assert [(line["id"], line["masked"]) for line in lines] == [(filled.ids["/json"], True)]
    assert "hidden" in export(format="jsonl", ids=ids[0], secrets="true").text


def test_events(filled, inspector):
    version = inspector.ask("get", "/api/exchanges", params={"limit": 1}).json()["version"]
    with inspector.session.get(
        f"{inspector.url}/api/events", params={"after": version, "filter": "method:PUT"}, stream=True, timeout=20
    ) as stream:
        assert stream.status_code == 200
        inspector.seen.add(("/api/events", "get", 200))
        assert stream.headers["Content-Type"].partition(";")[0] == "text/event-stream"
        events = sse(stream)
        kind, _, data = next(events)
        check(component("Hello"), data, kind)
        assert kind == "hello"
        kind, _, data = next(events)
        check(component("Status"), data, kind)
        assert kind == "status"
        filled.world.post("/follow", b"x")
        over = False
        while not over:
            kind, id, data = next(events)
            if kind == "status":
                check(component("Status"), data, kind)
                continue
            check(component("Changed"), data, kind)
            assert (kind, id) == ("exchange", str(data["exchange"]["version"])) and not data["matches"]
            over = data["exchange"]["state"] == "done" and data["exchange"]["path"] == "/follow"
        inspector.ask("delete", "/api/exchanges/{id}", 204, id=data["exchange"]["id"])
        assert ("reset", None, {}) in events


def sse(stream):
    """(event, id, data) of a stream, as they come."""
    fields = {}
    for line in stream.iter_lines(chunk_size=1):
        name, _, value = line.decode().partition(":")
        if not line and "data" in fields:
            yield fields["event"], fields.get("id"), json.loads(fields["data"])
        if not line:
            fields = {}
        elif name:
            fields[name] = value.removeprefix(" ")


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────

PLACES = {"id": "@1", "number": 1}


def some(method, path, **more):
    """Whatever that operation needs to be well asked."""
    asked = {name: value for name, value in PLACES.items() if f"{{{name}}}" in path}
    bodies = {"put": {"json": {"pinned": True}}, "post": {"json": {}}}
    return asked | bodies.get(method, {}) | more


@pytest.mark.parametrize(("path", "method"), sorted(OPERATIONS))
def test_403(inspector, path, method):
    inspector.ask(method, path, 403, **some(method, path, headers={"Origin": "http://evil.example"}))
    inspector.ask(method, path, 403, **some(method, path, headers={"Host": "evil.example"}))
    inspector.ask(method, path, 403, **some(method, path, headers={"Sec-Fetch-Site": "cross-site"}))
    if method != "get":
        inspector.ask(method, path, 403, **some(method, path, token=False))
        text = {"json": None, "data": b"x", "headers": {"Content-Type": "text/plain"}}
        inspector.ask(method, path, 403, **some(method, path, **text))


@pytest.mark.parametrize(("path", "method"), sorted(one for one in OPERATIONS if "{id}" in one[0]))
def test_ids_that_are_not(inspector, path, method):
    inspector.ask(method, path, 400, **some(method, path, id="%20"))
    for nobody in ("@999999", "req_00000000000000000000000000", "req_Z"):
        error = inspector.ask(method, path, 404, **some(method, path, id=nobody)).json()["error"]
        assert list(error) == ["message"]
    # All ids of these centuries begin so.
    error = inspector.ask(method, path, 409, **some(method, path, id="req_0")).json()["error"]
    assert list(error) == ["message"] and error["message"].count("req_0") == 3


def queried(path, method):
    """The names that an operation's query may have."""
    parameters = map(resolve, DESCRIPTION["paths"][path][method].get("parameters", []))
    return {parameter["name"] for parameter in parameters if parameter["in"] == "query"}


@pytest.mark.parametrize(
    ("path", "method"),
    sorted((path, method) for path, method in OPERATIONS if path in ("/api/exchanges", "/api/export", "/api/events")),
)
def test_filters_that_are_wrong(inspector, path, method):
    params = {"filter": "é🦀 staus:500"} | ({"format": "har"} if "format" in queried(path, method) else {})
    error = inspector.ask(method, path, 400, params=params).json()["error"]
    assert (error["at"], error["length"]) == (4, len("staus:"))


def test_other_400(inspector):
    get = lambda path, **params: inspector.ask("get", path, 400, params=params)  # noqa: E731
    get("/api/exchanges", limit="x")
    get("/api/exchanges", limit="")
    get("/api/exchanges", limit=["1", "2"])
    get("/api/exchanges", before="-1")
    get("/api/events", after="x")
    get("/api/diff", a="@1")
    get("/api/export")
    get("/api/export", format="xml")
    get("/api/export", format="har", ids="!")
    for secrets in ("2", "TRUE", "yes", ""):
        inspector.ask("get", "/api/exchanges/{id}", 400, id="@1", params={"secrets": secrets})
    inspector.ask("get", "/api/exchanges/{id}/attempts/{number}/reply/body", 400, id="@1", number="x")
    edits = [
        {"nothing": 1}, {"method": "a b"}, {"path": "x"}, {"path": "/a b"}, {"headers": [{"name": "", "value": "x"}]},
        {"headers": [{"name": "a", "value": "\n"}]}, {"body": {"base64": "!"}}, {"body": {"text": "", "base64": ""}},
        {"target": "::"}, {"method": 1}, {"headers": {}}, {"headers": [{"name": "a"}]}, {"body": "x"}, {"body": {}},
        {"resign": 1},
    ]  # fmt: skip
    for edit in edits:
        inspector.ask("post", "/api/exchanges/{id}/replay", 400, id="@1", json=edit)


QUERIED = sorted(one for one in OPERATIONS if queried(*one))


@pytest.mark.parametrize(("path", "method"), QUERIED)
def test_parameters_that_are_not_known(inspector, path, method):
    needed = {"filter": "path:/nothing", "format": "har", "a": "@1", "b": "@1"}
    needed = {name: value for name, value in needed.items() if name in queried(path, method)}
    for unknown in ("fliter", "Filter", "token"):
        more = some(method, path, params=needed | {unknown: "x"})
        error = inspector.ask(method, path, 400, **more).json()["error"]
        assert unknown in error["message"]


@pytest.mark.parametrize("path", sorted(DESCRIPTION["paths"]))
def test_405(inspector, path):
    has = {method for at, method in OPERATIONS if at == path}
    for method in sorted((METHODS | {"patch"}) - has):
        url = inspector.url + path.format(**PLACES)
        reply = inspector.session.request(method, url, headers={"Hookway-Token": inspector.token}, timeout=20)
        assert reply.status_code == 405, (path, method)
        check(component("Error"), reply.json(), path)
        allowed = {name.strip().lower() for name in reply.headers["Allow"].split(",")}
        assert allowed - {"head"} == has, (path, method)


@pytest.mark.parametrize(
    ("path", "method"), [("/api/exchanges/{id}/pin", "put"), ("/api/exchanges/{id}/replay", "post")]
)
def test_bodies_that_are_no_objects(inspector, path, method):
    kind = {"Content-Type": "application/json"}
    for body in (b"[]", b"null", b'"x"', b"1", b"{", b" ", b"{} {}", b"\xff"):
        inspector.ask(method, path, 400, id="@1", data=body, headers=kind)


def test_pins_that_are_wrong(inspector):
    asked = {"method": "put", "path": "/api/exchanges/{id}/pin", "id": "@1"}
    inspector.ask(status=400, **asked)
    for pin in ({}, {"pinned": 1}, {"pinned": None}, {"pinned": "true"}, {"pinned": True, "other": 1}):
        assert not DESCRIBED.validator(component("Pin")).is_valid(pin)
        inspector.ask(status=400, json=pin, **asked)


def test_other_404(filled, inspector):
    reply = "/api/exchanges/{id}/attempts/{number}/reply/body"
    inspector.ask("get", reply, 404, id=filled.ids["/nobody"], number=1)
    inspector.ask("get", reply, 404, id=filled.ids["/json"], number=99)
    inspector.ask("get", "/api/diff", 404, params={"a": "@1", "b": "@999999"})
    inspector.ask("get", "/api/export", 404, params={"format": "har", "ids": "@1,@999999"})
    reply = inspector.session.get(f"{inspector.url}/api/nothing", timeout=20)
    assert reply.status_code == 404
    check(component("Error"), reply.json(), "/api/nothing")


def test_409(filled, inspector):
    replay = "/api/exchanges/{id}/replay"
    inspector.ask("post", replay, 409, id=filled.ids["/cut"])
    inspector.ask("post", replay, 409, id=filled.ids["/cut"], json={"path": "/x"})
    whole = inspector.ask("post", replay, id=filled.ids["/cut"], json={"body": {"text": "whole"}}).json()
    assert whole["summary"]["ok"]
    inspector.ask("get", "/api/diff", 409, params={"a": "@1", "b": "req_0"})
    inspector.ask("get", "/api/export", 409, params={"format": "jsonl", "ids": "@1,req_0"})


@pytest.mark.parametrize(
    ("path", "method"), [("/api/exchanges/{id}/pin", "put"), ("/api/exchanges/{id}/replay", "post")]
)
def test_413(inspector, path, method):
    """Blanks are no object, as long as there are not too many of them."""
    kind = {"Content-Type": "application/json"}
    inspector.ask(method, path, 400, id="@1", data=b" " * MAX_BODY, headers=kind)
    inspector.ask(method, path, 413, id="@1", data=b" " * (MAX_BODY + 1), headers=kind)
    assert f"{MAX_BODY >> 20} MiB" in resolve(DESCRIPTION["paths"][path][method]["responses"]["413"])["description"]


def test_pending(filled, inspector):
    """An exchange is there before it is over."""
    held = []

    def hold(seen, connection):
        held.append(connection)
        eventually(lambda: not held, what="the test to be done")
        return b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    app = filled.world.app(answer=hold)
    client = filled.world.client(app, "--inspect", "127.0.0.1:0", name="pending", inspect=True)
    own = Inspector(client.event("ready")["inspector"])
    with filled.world.wire("pending") as wire:
        wire.send(b"GET /hold HTTP/1.1\r\nHost: pending.hooks.test\r\n\r\n")
        eventually(lambda: held, what="a delivery")
        pending = lambda: own.ask("get", "/api/exchanges", params={"filter": "is:pending"}).json()["exchanges"]  # noqa: E731
        summary = eventually(pending, what="pending")[0]
        detail = own.detail(summary["id"])
        assert (summary["state"], summary["attempt"], detail["attempts"]) == ("pending", 0, [])
        held.clear()
        assert wire.reply().status == 200
    client.stop()


def test_without_a_history(filled):
    client = filled.world.client(filled.app, "--inspect", "127.0.0.1:0", "--no-store", name="nothing", inspect=True)
    own = Inspector(client.event("ready")["inspector"])
    assert own.ask("get", "/api/exchanges").json()["exchanges"] == []
    assert not own.ask("get", "/api/status").json()["history"]["recording"]
    for path, method in sorted(OPERATIONS):
        if "{id}" in path or method == "delete":
            filter = {} if "{id}" in path else {"params": {"filter": ""}}
            own.ask(method, path, 404, **some(method, path), **filter)
    own.ask("get", "/api/export", 404, params={"format": "har"})
    own.ask("get", "/api/diff", 404, params={"a": "@1", "b": "@2"})
    client.stop()


def test_stored(filled):
    """The history without a tunnel."""
    command = [HOOKWAY, "inspect", "--json", "--inspect", "127.0.0.1:0"]
    program = Program("stored", command, filled.client.errors.parent)
    try:
        url = program.wait(lambda: next((line["inspector"] for line in program.events if "inspector" in line), None))
        own = Inspector(url)
        status = own.ask("get", "/api/status").json()
        assert (status["mode"], status["session"], status["urls"], status["targets"]) == ("stored", None, [], [])
        assert own.ask("get", "/api/exchanges", params={"filter": "path:/json"}).json()["matched"]
        again = own.ask("post", "/api/exchanges/{id}/replay", id=filled.ids["/json"]).json()
        assert again["summary"]["ok"] and again["attempts"][0]["url"].startswith(f"http://{filled.app.address}/")
    finally:
        program.stop()


FIRST = "req_01M7Z0C0000000000000000001"
WEBHOOKS = {
    # filter: what is known of the webhook, as an export has it
    "sig:ok": {"event_id": "evt_1", "signature": "ok", "secret": "STRIPE_WEBHOOK_SECRET"},
    "sig:bad": {"signature": "bad", "detail": "the body was changed"},
    "provider:github event:pull*": {"provider": "github", "event": "pull_request.opened", "detail": "not checked"},
    "is:duplicate": {"duplicate_of": FIRST},
    "is:resigned": {"resigned": True},
    "event:early": {"event": "early", "deadline_ns": 3_000_000_000, "acked_ns": 2_400_000_000},
}


def test_what_is_known_of_webhooks(tmp_path):
    default = {"provider": "stripe", "event": "charge.succeeded", "signature": "none"}
    lines = [{"endpoint": "e", "webhook": default | webhook} for webhook in WEBHOOKS.values()]
    (tmp_path / "lines").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert run(HOOKWAY, "requests", "import", "lines", folder=tmp_path).returncode == 0
    program = Program("stored", [HOOKWAY, "inspect", "--json", "--inspect", "127.0.0.1:0"], tmp_path)
    try:
        own = Inspector(program.event("ready")["inspector"])
        for filter, webhook in WEBHOOKS.items():
            (summary,) = own.ask("get", "/api/exchanges", params={"filter": filter}).json()["exchanges"]
            detail = own.detail(summary["id"])
            assert detail["summary"] == summary
            for timed in (summary, detail["timings"]):
                for name in ("deadline", "acked"):
                    ns = webhook.get(f"{name}_ns")
                    assert timed[f"{name}_ms"] == (ns and ns / 1e6), (filter, name)
            names = {"event": "event_type", "detail": "signature_detail", "secret": "signature_secret"}
            for name, value in (default | webhook).items():
                assert summary.get(names.get(name, name), value) == value, (filter, name)
    finally:
        program.stop()


def test_a_webhook_that_nobody_checks(filled, inspector):
    """Who sent it is told by its headers; what would check it is said."""
    fields = [("Stripe-Signature", "t=1,v1=00"), ("Content-Type", "application/json")]
    for _ in range(2):
        filled.world.post("/stripe", b'{"id": "evt_1", "object": "event", "type": "charge.succeeded"}', headers=fields)
    again = inspector.found("path:/stripe is:duplicate")
    first = inspector.found("path:/stripe -is:duplicate")
    assert again["duplicate_of"] == first["id"] and first["duplicate_of"] is None
    for summary in (first, again):
        known = [summary[name] for name in ("provider", "event_type", "event_id", "signature", "signature_secret")]
        assert known == ["stripe", "charge.succeeded", "evt_1", "none", None]
        assert "--verify stripe=" in summary["signature_detail"] and not summary["resigned"]
    for edit in ({"resign": False}, {"resign": True}, {"resign": None}):
        replayed = inspector.ask("post", "/api/exchanges/{id}/replay", id=first["id"], json=edit).json()["summary"]
        assert (replayed["resigned"], replayed["edited"]) == (False, False)


def test_the_examples_of_filters_are_filters(inspector):
    description = DESCRIPTION["components"]["parameters"]["filter"]["description"]
    examples = [example for example in description.split("`")[1::2] if ":" in example and example.upper() != example]
    assert len(examples) > 20
    for example in examples:
        inspector.ask("get", "/api/exchanges", params={"filter": example})


def test_dead_letters(new_world, inspector):
    world = new_world("--queue-retention", "1s")
    client = world.client("127.0.0.1:9", "--wait-app", "0s", "--inspect", "127.0.0.1:0", inspect=True)
    own = Inspector(client.event("ready")["inspector"])
    for number in range(3):
        world.post(f"/{number}?token=hidden", b"x")
    # The first is with the client, which waits for its app.
    client.event("dead_letters", lambda event: event["count"] == 2)
    listed = lambda: own.ask("get", "/api/dead-letters").json()["endpoints"][0]["letters"]  # noqa: E731
    letters = eventually(lambda: len(listed()) == 2 and listed(), what="all of them on disk")
    assert own.ask("get", "/api/status").json()["urls"][0]["dead_letters"] == 2
    retry = lambda status=200, **body: own.ask("post", "/api/dead-letters/retry", status, json=body).json()  # noqa: E731
    assert retry(endpoint="billing", ids=[letters[0]["id"]])["retried"] == 1
    retry(400, endpoint="billing")
    retry(400, endpoint="billing", all=True, ids=[letters[0]["id"]])
    retry(400, endpoint="billing", ids=["req_none"])
    retry(400, endpoint="billing", ids=[letters[0]["id"]] * 101)
    retry(404, endpoint="other", all=True)
    inspector.seen |= own.seen


def test_open_to_other_machines(filled):
    """The token is wanted of every request, as a bearer token or a cookie."""
    client = filled.world.client(filled.app, "--inspect", "0.0.0.0:0", name="afar", inspect=True)
    url, _, token = client.event("ready")["inspector"].partition("/?token=")
    for path, method in sorted(OPERATIONS):
        reply = requests.request(method, url + path.format(**PLACES), timeout=20)
        assert reply.status_code == 403
        check(component("Error"), reply.json(), path)
    own = Inspector(url, {"Authorization": f"Bearer {token}"})
    assert own.token == token
    own.ask("get", "/api/exchanges")
    client.stop()


def test_delete(filled, inspector):
    """The last but one: it leaves nothing behind."""
    inspector.ask("delete", "/api/exchanges/{id}", 204, id=filled.ids["/empty"])
    inspector.ask("get", "/api/exchanges/{id}", 404, id=filled.ids["/empty"])
    assert inspector.ask("delete", "/api/exchanges", params={"filter": "path:/xml"}).json() == {"deleted": 1}
    inspector.ask("put", "/api/exchanges/{id}/pin", id=filled.ids["/json"], json={"pinned": True})
    total = lambda: inspector.ask("get", "/api/exchanges").json()["total"]  # noqa: E731
    before = total()
    inspector.ask("delete", "/api/exchanges", 400)
    inspector.ask("delete", "/api/exchanges", 400, params={"fliter": "path:/nothing"})
    assert total() == before > 6
    assert inspector.ask("delete", "/api/exchanges", params={"filter": ""}).json() == {"deleted": before - 1}
    left = inspector.ask("get", "/api/exchanges").json()["exchanges"]
    assert [one["id"] for one in left] == [filled.ids["/json"]]


def test_every_operation_was_answered_well(request, inspector):
    """The last of the file, when all of it was run."""
    run = {item.originalname for item in request.session.items if item.module is request.module}
    if run == {name for name in vars(request.module) if name.startswith("test_")}:
        well = {(path, method) for path, method, status in inspector.seen if status < 300}
        assert well == OPERATIONS
