"""What is kept of deliveries that wait: sealed for their client, and in the operator's hands."""

import subprocess

from test_queue import arrived, is_marked, offline, queue

from world import DEADLINE, HOOKWAY_RELAY, eventually

SECRETS = ["needle-in-the-path", "needle-in-a-field", "needle-in-the-body", "needle-in-a-trailer", "needle-in-the-query"]
LARGE = 2 << 20


def on_disk(world):
    """All that the relay's folder holds."""
    return b"".join(path.read_bytes() for path in sorted(world.relay.data.rglob("*")) if path.is_file())


def secret_delivery(world, name):
    """A request with something to find in each of its parts."""
    path, field, body, trailer, query = SECRETS
    chunked = (
        f"POST /{path}?{query}=1 HTTP/1.1\r\nHost: {name}.hooks.test\r\nX-Secret: {field}\r\nTrailer: X-End\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\nX-End: {trailer}\r\n\r\n"
    )
    with world.wire(name) as wire:
        assert wire.ask(chunked.encode(), method="POST").status == 202


def test_what_waits_is_sealed_for_its_client(new_world, tmp_path):
    world, name, home = new_world(), "sealed", {"XDG_DATA_HOME": str(tmp_path)}
    app = world.app()
    assert world.client(app, "--seal", name=name, environment=home).stop() == 0
    secret_delivery(world, name)
    large = bytes(range(256)) * (LARGE // 256)
    assert world.post("/large", large, name=name).status == 202
    kept = on_disk(world)
    assert name.encode() in kept, "the endpoint is no secret"
    assert not [secret for secret in SECRETS if secret.encode() in kept] and large[:64] not in kept
    world.client(app, "--seal", name=name, environment=home)
    first, second = arrived(app, 2)
    path, field, body, trailer, query = SECRETS
    assert (first.target, first.header("x-secret"), first.body) == (f"/{path}?{query}=1", field, body.encode())
    assert dict(first.trailers).get("x-end") == trailer and not is_marked(first)
    assert second.body == large
    live = world.post("/live", b"now", name=name)
    assert live.status == 200


def test_without_its_key_it_waits(new_world, tmp_path):
    world, name = new_world(), "lost-key"
    own, other = ({"XDG_DATA_HOME": str(tmp_path / which)} for which in ("own", "other"))
    app = world.app()
    assert world.client(app, "--seal", name=name, environment=own).stop() == 0
    queue(world, name, "/one")
    stranger = world.client(app, name=name, environment=other)
    eventually(lambda: "another client's key" in str(listed(world, "list", name)), what="why it did not arrive")
    assert not app.seen and stranger.stop() == 0
    # A key that is there opens, whether --seal is asked for or not.
    world.client(app, name=name, environment=own)
    assert [seen.target for seen in arrived(app, 1)] == ["/one"]


def listed(world, what, *words):
    return world.relay.command("queue", what, *words)


def test_stats_list_and_retry(new_world):
    world, name = new_world("--queue-retention", "1s"), "commands"
    offline(world, name)
    queue(world, name, "/one", "/two")
    assert [row["path"] for row in listed(world, "list", name) + listed(world, "dead-letters", name)] == ["/one", "/two"]
    eventually(lambda: len(listed(world, "dead-letters", name)) == 2, what="they have waited too long")
    (stats,) = listed(world, "stats", name)
    assert (stats["endpoint"], stats["depth"], stats["dead"]) == (name, 0, 2)
    assert set(stats) == {"endpoint", "depth", "bytes", "oldest_s", "dead"}
    dead = listed(world, "dead-letters", name)
    assert {row["last"] for row in dead} == {"it waited for too long"} and all(row["dead_since"] for row in dead)
    app = world.app()
    world.client(app, name=name)
    assert listed(world, "retry", dead[1]["id"][-6:]) == [{"retried": 1}]
    assert [seen.target for seen in arrived(app, 1)] == ["/two"]
    assert listed(world, "retry", "--endpoint", name) == [{"retried": 1}]
    assert [seen.target for seen in arrived(app, 2)] == ["/two", "/one"]
    eventually(lambda: listed(world, "dead-letters", name) == [], what="none left")


def test_a_relay_keeps_its_folder_to_itself(new_world):
    world = new_world()
    listeners = [word for name in ("--https", "--http", "--admin") for word in (name, "127.0.0.1:0")]
    command = [HOOKWAY_RELAY, "run", "--domain", "other.test", "--data-dir", str(world.relay.data), *listeners]
    second = subprocess.run(command, capture_output=True, timeout=DEADLINE, check=False, text=True)
    assert second.returncode == 1 and "another relay runs on" in second.stderr and "next:" in second.stderr
    assert world.get("/").status == 404, "the first goes on"
