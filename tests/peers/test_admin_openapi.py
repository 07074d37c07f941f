"""The relay's admin API against its own description, openapi.json: every operation, asked for real, answers what it says."""

import json
import pathlib
import re
import sqlite3

import openapi_spec_validator
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)  # fmt: skip

from openapi_description import METHODS, Description, component
from test_admin_api import HOST, NOWHERE, Office, elsewhere
from test_domains import Domains, Moody, certificates
from world import DEADLINE, DOMAIN, World, eventually

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "relay-server" / "src" / "admin"
FILE = SOURCES / "openapi.json"
DESCRIBED = Description(FILE)
DESCRIPTION, OPERATIONS = DESCRIBED.json, DESCRIBED.operations
check, resolve = DESCRIBED.check, DESCRIBED.resolve
MOST = 256 << 10  # bytes of a body


# ── the description ───────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_valid_openapi():
    openapi_spec_validator.validate(DESCRIPTION)
    assert DESCRIPTION["openapi"].startswith("3.1.")


def test_it_is_written_as_json_is_written_by_hand():
    assert FILE.read_text() == json.dumps(DESCRIPTION, indent=2, ensure_ascii=False) + "\n"


def test_each_route_is_described_and_the_other_way_round():
    routes = (SOURCES / "api.rs").read_text().partition("fn routes()")[2].partition("\n}")[0]
    found = set()
    for path, handlers in re.findall(r'\.route\("([^"]+)", (.+)\)\n', routes):
        found |= {(f"/api{path}", method) for method in re.findall(r"\b(get|put|post|delete|patch)\(", handlers)}
    assert found == OPERATIONS and len(found) > 20


def test_drift_would_be_seen():
    """An answer's objects are closed, and all of it is there but what says why not."""
    asked = {"NewProtection", "Which", "NewToken"}
    optional = {"Endpoint": {"listeners"}, "Token": {"token"}}

    def walk(name, node):
        if isinstance(node, dict):
            if node.get("type") == "object" and "properties" in node:
                assert node["additionalProperties"] is False, name
                if name not in asked:
                    missing = set(node["properties"]) - set(node["required"])
                    assert missing <= optional.get(name, set()), name
            for inner in node.values():
                walk(name, inner)
        elif isinstance(node, list):
            for inner in node:
                walk(name, inner)

    for name, schema in DESCRIPTION["components"]["schemas"].items():
        walk(name, schema)


def test_each_operation_says_what_it_may_answer():
    ids = []
    for path, method in sorted(OPERATIONS):
        operation = DESCRIPTION["paths"][path][method]
        ids.append(operation["operationId"])
        assert operation["summary"], (path, method)
        answers = set(operation["responses"])
        assert {"401", "403", "429", "503"} < answers, (path, method)
        assert ("requestBody" in operation) == ({"413", "415", "422"} <= answers), (path, method)
        parameters = DESCRIBED.parameters(path, method)
        named = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", path)), path
        assert not named or "404" in answers, (path, method)
        for status, response in operation["responses"].items():
            assert list(resolve(response)["content"]) == ["application/json"], (path, method, status)
    assert len(set(ids)) == len(ids)
    assert DESCRIPTION["security"] == [{"token": []}]


# ── asked for real ────────────────────────────────────────────────────────────────────────────────────────────────


class Operator:
    """Asks, and holds each answer to the description."""

    def __init__(self, office):
        self.office, self.seen = office, set()
        self.url = "http://{}:{}".format(*office.relay.admin)
        self.session = requests.Session()
        self.session.trust_env = False

    def ask(self, method, path, status=200, token="admin", source=None, headers=None, **more):
        """An answer; `path` is one of the description, whose {…} come from `more`, and so do query and body."""
        places = {name: more.pop(name) for name in ("id", "name", "host") if name in more}
        fields = {"Authorization": f"Bearer {self.office.tokens.get(token, token)}"} if token else {}
        url = self.url + path.format(**places)
        session = self.session
        if source:
            session = requests.Session()
            session.trust_env = False
            session.mount("http://", From(source))
        reply = session.request(method, url, headers=fields | (headers or {}), timeout=DEADLINE, **more)
        what = f"{method} {path} {places or ''} {more.get('params') or ''} → {reply.status_code} {reply.text[:300]}"
        assert reply.status_code == status, what
        described = DESCRIBED.described(reply, path, method, what)
        self.seen.add((path, method, status))
        assert reply.headers["Content-Type"] == "application/json", what
        check(described["content"]["application/json"]["schema"], reply.json(), what)
        return reply.json()


class From(requests.adapters.HTTPAdapter):
    """Requests from another address of this machine."""

    def __init__(self, source):
        self.source = source
        super().__init__()

    def init_poolmanager(self, *words, **more):
        super().init_poolmanager(*words, **more, source_address=(self.source, 0))


@pytest.fixture(scope="module")
def operator(tmp_path_factory):
    ca, leaf = certificates(tmp_path_factory.mktemp("openapi"), DOMAIN, f"*.{DOMAIN}", "*.custom.test")
    files = ("--tls", "files", "--tls-cert", str(leaf), "--tls-key", str(leaf))
    with Moody() as resolver, World("--resolver", resolver.authority, *files, "--queue-retention", "1s") as world:
        yield Operator(Office(world, Domains(world, resolver, ca)))


PLACES = {"id": "x_nobody", "name": "nobody", "host": "nobody.example"}
BODIES = {
    ("/api/endpoints/{name}/protection", "put"): {}, ("/api/deliveries/retry", "post"): {"endpoint": "served"},
    ("/api/deliveries/discard", "post"): {"endpoint": "served"}, ("/api/tokens", "post"): {"name": "made"},
}  # fmt: skip


def some(path, method, **more):
    """Whatever that operation needs to be well asked."""
    asked = {name: value for name, value in PLACES.items() if f"{{{name}}}" in path}
    body = BODIES.get((path, method))
    return asked | ({"json": body} if body is not None else {}) | more


def test_the_description_is_served(operator):
    reply = requests.get(f"{operator.url}/api/openapi.json", timeout=DEADLINE)
    assert reply.content == FILE.read_bytes() and reply.headers["Content-Type"] == "application/json"


def test_everything_answers_well(operator):
    """The widest answers there are: lists with something in them, each field set."""
    office, ask = operator.office, operator.ask
    assert ask("get", "/api/status")["certificate"]["not_after"]
    assert {"served", "away"} <= {row["name"] for row in ask("get", "/api/endpoints")["items"]}
    assert ask("get", "/api/endpoints", params={"limit": 1, "after": "away"})["items"][0]["domains"] == [HOST]
    assert ask("get", "/api/endpoints/{name}", name="served")["listeners"] == []
    everything = {
        "allow": ["127.0.0.0/8", "::1", "github", "all"], "deny": ["192.0.2.1", "2001:db8::/32"], "paths": ["/", "/a"],
        "users": ["ann:password"], "rate": "999999999/s", "max_body": 1 << 40,
    }  # fmt: skip
    shown = ask("put", "/api/endpoints/{name}/protection", name="away", json=everything)
    assert shown == everything | {"users": ["ann"]} == ask("get", "/api/endpoints/{name}/protection", name="away")
    assert ask("put", "/api/endpoints/{name}/protection", name="away", json={"rate": "off"})["rate"] == "off"
    assert (
        ask("put", "/api/endpoints/{name}/protection", name="away", json={"rate": None, "max_body": None})["rate"]
        is None
    )
    assert ask("delete", "/api/endpoints/{name}/protection", name="away")["users"] == []
    presets = ask("get", "/api/presets")
    assert {"github", "stripe"} <= set(presets) and all(preset["ranges"] for preset in presets.values())
    (session, *_) = ask("get", "/api/sessions")["items"]
    assert session["endpoints"] == ["served"]
    ask("delete", "/api/sessions/{id}", id=session["id"])
    assert ask("get", "/api/queue", params={"limit": 1})["next"] == "away"
    rows = ask("get", "/api/deliveries", params={"state": "dead", "endpoint": "away", "limit": 2})
    assert rows["next"] and rows["items"][0]["dead_since"]
    ids = [row["id"] for row in rows["items"]]
    assert ask("get", "/api/deliveries", params={"id": ids[0], "after": 0})["items"]
    assert ask("post", "/api/deliveries/discard", json={"ids": ids[:1]}) == {"discarded": 1}
    assert ask("post", "/api/deliveries/retry", json={"all": True})["retried"] == 2
    waiting = ask("get", "/api/deliveries", params={"state": "waiting"})["items"]
    assert not waiting or waiting[0]["dead_since"] is None
    made = ask(
        "post", "/api/tokens", 201, json={"name": "a.B-c_@+", "scope": "read", "endpoints": ["a-*"], "expires": "999d"}
    )
    assert made["token"].startswith("hwt_")
    assert "token" not in ask("get", "/api/tokens", params={"after": made["id"][:-1], "limit": 500})["items"][0]
    assert ask("delete", "/api/tokens/{id}", id=made["id"])["name"] == "a.B-c_@+"
    ask("get", "/api/certificates")
    assert ask("post", "/api/certificates/renew") == {"due": 0}
    assert ask("get", "/api/drain")["draining"] is False
    assert ask("put", "/api/drain")["draining"] and not ask("delete", "/api/drain")["draining"]
    assert (
        ask("get", "/api/audit", params={"limit": 500})["items"]
        and ask("get", "/api/audit", params={"before": 2})["items"]
    )
    assert ask("delete", "/api/domains/{host}", host=HOST) == {"released": HOST}
    assert office.world.client(NOWHERE, name="free", token=office.tokens["client"]).stop() == 0
    assert ask("delete", "/api/endpoints/{name}", name="free", params={"hold": "1h"})["released"] == "free"


@pytest.mark.parametrize(("path", "method"), sorted(OPERATIONS))
def test_401_403(operator, path, method):
    source = elsewhere()
    operator.ask(method, path, 401, token=None, **some(path, method))
    operator.ask(method, path, 401, token="hwt_x", source=source, **some(path, method))
    operator.ask(method, path, 403, token="client", **some(path, method))
    if method != "get":
        operator.ask(method, path, 403, token="read", **some(path, method))
    # In words, for it is refused before anybody reads a token.
    url = operator.url + path.format(**PLACES)
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        reply = requests.request(method, url, headers=headers, timeout=DEADLINE)
        assert reply.status_code == 403 and reply.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize(("path", "method"), sorted(OPERATIONS))
def test_429(operator, throttled, path, method):
    operator.ask(method, path, 429, source=throttled, **some(path, method))


@pytest.fixture(scope="module")
def throttled(operator):
    source = elsewhere()
    for _ in range(10):
        operator.ask("get", "/api/status", 401, token="hwt_x", source=source)
    return source


@pytest.mark.parametrize(("path", "method"), sorted(one for one in OPERATIONS if "{" in one[0]))
def test_404(operator, path, method):
    for nobody in ("nobody", "a%2fb", "%00", "x" * 300):
        operator.ask(method, path, 404, **some(path, method, **{re.search(r"{(\w+)}", path)[1]: nobody}))


@pytest.mark.parametrize("path", sorted(DESCRIPTION["paths"]))
def test_405(operator, path):
    has = {method for at, method in OPERATIONS if at == path}
    token = {"Authorization": f"Bearer {operator.office.tokens['admin']}"}
    for method in sorted((METHODS | {"patch", "options", "trace", "copy", "query"}) - has):
        reply = operator.session.request(method, operator.url + path.format(**PLACES), headers=token, timeout=DEADLINE)
        assert reply.status_code == 405, (path, method)
        check(component("Error"), reply.json(), path)
        allowed = {name.strip().lower() for name in reply.headers["Allow"].split(",")}
        assert allowed - {"head"} == has, (path, method)
    reply = operator.session.head(operator.url + path.format(**PLACES), headers=token, timeout=DEADLINE)
    assert not reply.content and (reply.status_code == 405) == ("get" not in has)


@pytest.mark.parametrize(("path", "method"), sorted(BODIES))
def test_413_415_422(operator, path, method):
    asked = {name: "served" for name in ("name",) if f"{{{name}}}" in path}
    kind = {"Content-Type": "application/json"}
    operator.ask(method, path, 413, data=b" " * (MOST + 1), headers=kind, **asked)
    operator.ask(method, path, 422, data=b" " * MOST, headers=kind, **asked)
    operator.ask(method, path, 422, data=b"{", headers=kind, **asked)
    operator.ask(method, path, 415, data=b"{}", headers={"Content-Type": "text/plain"}, **asked)
    assert f"{MOST}" in operator.ask(method, path, 413, data=b" " * (MOST + 1), headers=kind, **asked)["error"]


def parameters(path, method):
    """The names that an operation's query may have."""
    known = DESCRIBED.parameters(path, method)
    return {parameter["name"]: parameter["schema"] for parameter in known if parameter["in"] == "query"}


QUERIED = sorted(one for one in OPERATIONS if parameters(*one))


@pytest.mark.parametrize(("path", "method"), QUERIED)
def test_parameters(operator, path, method):
    known = parameters(path, method)
    for unknown in ("limits", "Limit", "token"):
        operator.ask(method, path, 422, params={unknown: "1"}, **some(path, method))
    for name, schema in known.items():
        if schema["type"] == "integer":
            least, most = schema["minimum"], schema.get("maximum", 1 << 62)
            for value in (least, most):
                operator.ask(method, path, params={name: value})
            for value in (least - 1, most + 1 if "maximum" in schema else "1e3", "x", "", "1.5", " 1"):
                operator.ask(method, path, 422, params={name: value})
            operator.ask(method, path, 422, params={name: [1, 2]})
        if "default" in schema and schema["type"] == "integer":
            usual, said = operator.ask(method, path), operator.ask(method, path, params={name: schema["default"]})
            assert len(usual["items"]) == len(said["items"])


def test_503_when_the_store_is_away(new_world):
    """It says so in the same words; nothing hangs."""
    world = new_world()
    token = world.token("root", "--scope", "admin")
    assert world.client(NOWHERE).stop() == 0
    database = world.relay.data / "relay.db"
    reply = lambda: requests.get(  # noqa: E731
        "http://{}:{}/api/tokens".format(*world.relay.admin),
        headers={"Authorization": f"Bearer {token}"},
        timeout=DEADLINE,
    )
    assert reply().status_code == 200
    # Another's table is not what it reads.
    with sqlite3.connect(database) as broken:
        broken.execute("ALTER TABLE token RENAME TO spoon")
    eventually(lambda: reply().status_code == 503, what="a failing store")
    answer = reply()
    check(component("Error"), answer.json(), "503")
    assert answer.headers["Retry-After"] and "spoon" not in answer.text
    with sqlite3.connect(database) as broken:
        broken.execute("ALTER TABLE spoon RENAME TO token")
    eventually(lambda: reply().status_code == 200, what="the store being well")


# ── asked at random ───────────────────────────────────────────────────────────────────────────────────────────────

# What schemathesis holds against an answer: no 5xx, and what the description says of status, type, fields and body.
# What the schemas forbid is refused; that what they allow is taken is not among it, for they do not say which text is an
# address, a delivery's id or a password.
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance, negative_data_rejection,
]  # fmt: skip
TRIED = settings(
    max_examples=60, derandomize=True, database=None, deadline=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
# Who may ask is not tried here: a made-up token would only ever be refused.
SCHEMA = schemathesis.openapi.from_dict({name: part for name, part in DESCRIPTION.items() if name != "security"})
SCHEMA.config.generation.update(modes=list(GenerationMode))


class Tried:
    """A relay with something to destroy. Half of what is asked for is there."""

    def __init__(self, world):
        self.world = world
        owner = world.token("owner")
        assert world.client(NOWHERE, "-n", "other", name="served", token=owner).stop() == 0
        self.root, self.url = world.token("root", "--scope", "admin"), "http://{}:{}".format(*world.relay.admin)
        self.headers = {"Authorization": f"Bearer {self.root}"}

    def place(self, case):
        """Names and ids that are there, now and then: by chance alone everything is 404."""
        for name, value in case.path_parameters.items():
            if name == "name" and case.method != "DELETE" and len(str(value)) % 2:
                case.path_parameters[name] = "served"
            elif case.operation.path == "/api/tokens/{id}" and len(str(value)) % 2:
                # Never its own.
                made = requests.post(
                    f"{self.url}/api/tokens", json={"name": "victim"}, headers=self.headers, timeout=DEADLINE
                )
                case.path_parameters[name] = made.json()["id"]


@pytest.fixture(scope="module")
def tried():
    with World("--queue-retention", "1s") as world:
        yield Tried(world)


@SCHEMA.parametrize()
@TRIED
def test_at_random(case, tried):
    tried.place(case)
    response = case.call(base_url=tried.url, headers=tried.headers, timeout=DEADLINE)
    checks = CHECKS
    if response.status_code == 413 or isinstance(case.body, dict) and None in case.body.values():
        # What is null is as good as not said, which the schemas do not say; and 413 is a refusal, too.
        checks = [check for check in CHECKS if check is not negative_data_rejection]
    case.validate_response(response, checks=checks)
    # It revokes no token that it asks with; and nobody is shut out who sends nonsense.
    assert response.status_code not in (401, 403, 429)


def test_it_is_well_after_all_that(tried):
    assert requests.delete(f"{tried.url}/api/drain", headers=tried.headers, timeout=DEADLINE).status_code == 200
    for path in ("/health", "/ready", "/metrics"):
        assert requests.get(tried.url + path, timeout=DEADLINE).status_code == 200
    log = tried.world.relay.errors.read_text()
    assert "panicked" not in log and tried.root not in log
