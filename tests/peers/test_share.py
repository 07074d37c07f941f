"""Several clients of one endpoint: in turns, or a copy for each; what was missed, and dead letters, as they see them.

Each test has its own endpoint; those that ask for other limits, or end the relay, have a relay of their own.
"""

import concurrent.futures
import contextlib
import hashlib
import random
import signal
import threading
import time

import pytest
from test_history import PORT_0
from test_inspector_api import JSON, Inspector
from test_queue import (
    FAILED,
    MIB,
    MOST,
    NOWHERE,
    Crowd,
    answers,
    arrived,
    attempt,
    chunked,
    dead_letters,
    is_marked,
    noise,
    numbered,
    queue,
    restart,
    targets,
    unmarked_repeats,
    with_project,
)
from test_queue import quiet as quiet  # a fixture
from test_queue_crashes import SEED, Senders, all_handed_over, check, fill, health, move_to, told
from test_queue_crashes import small_disk as small_disk  # a fixture
from test_queue_kept import on_disk
from test_semantics import SleepingApp

from world import DOMAIN, HOOKWAY, HOOKWAY_RELAY, LONG, Client, Program, eventually, request, run

BALANCE, COPY = ("--share", "balance"), ("--share", "copy")
NO_ID = "req_01ARZ3NDEKTSV4RRFFQ69G5FAV"


# ── what the tests are made of ────────────────────────────────────────────────────────────────────────────────────


def listener(world, target, title, name="billing", *flags, **options):
    """A client that gets copies under that name."""
    return world.client(target, *COPY, "--listener", title, *flags, name=name, **options)


def known(world, name, *titles, flags=()):
    """Listeners that were there and left."""
    for title in titles:
        assert listener(world, NOWHERE, title, name, *flags).stop() == 0


def apps(world, *names):
    return [world.app(name=name) for name in names]


def answered_by(world, name="billing", path="/who", method="POST"):
    """The app whose answer the sender got."""
    with world.wire(name) as wire:
        reply = wire.ask(request(method, path, b"" if method == "POST" else None, host=f"{name}.{DOMAIN}"))
    assert reply.status == 200, reply
    return reply.header("x-app")


def taken_over(client, name="billing"):
    """It was told why, and ends."""
    event = client.event("released", lambda event: event["endpoint"] == name)
    assert event["reason"]
    assert client.exited() == 5


def all_have(apps, paths, seconds=20):
    """Waits until each has these, whatever else."""
    for app in apps:
        eventually(lambda app=app: {*paths} <= {*targets(app)}, seconds, f"all of {paths[:3]}… at {app.name}")


def waiting(world, name="billing"):
    """How many deliveries wait, for any of the endpoint's listeners."""
    return sum(stats["depth"] for stats in world.relay.command("queue", "stats", name))


def nothing_waits(world, name="billing"):
    eventually(lambda: not waiting(world, name), what="nothing waiting")


def lost(client, seconds=5):
    """How many it was told that it missed, told within so long."""
    event = client.event("lost", seconds=seconds)
    assert event["endpoint"] == "billing" and event["why"] and event["since"]
    return event["count"]


def all_lost(client):
    """The sum of all that it was told that it missed."""
    return sum(event["count"] for event in list(client.events) if event.get("event") == "lost")


def looked(seconds=1.5):
    """The relay looks after what is to be told every second: not a wait for anything that is to come."""
    threading.Event().wait(seconds)


# ── takeover ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("flags", [(), ("--share", "takeover")], ids=["default", "asked for"])
def test_the_newest_client_has_the_endpoint(world, name, flags):
    first, second = apps(world, "first", "second")
    old = world.client(first, name=name)
    assert answered_by(world, name) == "first"
    world.client(second, *flags, name=name)
    taken_over(old, name)
    assert {answered_by(world, name) for _ in range(5)} == {"second"}


OTHER = {
    "balance to takeover": (BALANCE, ()),
    "balance to copy": (BALANCE, COPY),
    "copy to takeover": (COPY, ()),
    "copy to balance": (COPY, BALANCE),
}


@pytest.mark.parametrize(("before", "after"), OTHER.values(), ids=OTHER)
def test_another_mode_takes_the_endpoint_from_all_that_are_there(world, name, before, after):
    first, second, third = apps(world, "first", "second", "third")
    old = [world.client(app, *before, name=name) for app in (first, second)]
    assert answered_by(world, name) in ("first", "second")
    nothing_waits(world, name)
    world.client(third, *after, name=name)
    for client in old:
        taken_over(client, name)
    first.clear()
    second.clear()
    assert {answered_by(world, name) for _ in range(6)} == {"third"}
    assert not first.seen and not second.seen


# ── balance ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_clients_take_turns(world, name):
    three = apps(world, "a", "b", "c")
    clients = [world.client(app, *BALANCE, name=name) for app in three]
    assert answers(world, name, *numbered(12)) == [200] * 12
    assert answers(world, name, *numbered(12, "/get-"), method="GET") == [200] * 12
    assert [len(app.seen) for app in three] == [8, 8, 8]
    assert sorted(path for app in three for path in targets(app)) == sorted(numbered(12) + numbered(12, "/get-"))
    # One that leaves is left out, and what it had is finished.
    assert clients[0].stop() == 0
    assert answers(world, name, *numbered(6, "/then-")) == [200] * 6
    assert [len(app.seen) for app in three] == [8, 11, 11]


def test_the_same_listener_name_takes_that_turn_over(world, name):
    first, second, other = apps(world, "first", "second", "other")
    old = world.client(first, *BALANCE, "--listener", "laptop", name=name)
    world.client(other, *BALANCE, "--listener", "desk", name=name)
    world.client(second, *BALANCE, "--listener", "laptop", name=name)
    taken_over(old, name)
    assert {answered_by(world, name) for _ in range(6)} == {"second", "other"}


def test_the_common_backlog_is_handed_over_once_whoever_comes(world, name):
    first, second = apps(world, "first", "second")
    # The first takes its time until the second is there, and then both a moment over each.
    there = threading.Event()
    first.answer = lambda seen, _: (there.wait(0.5), time.sleep(0.01)) and first.echo(seen)
    Crowd(second, 0.01)
    assert world.client(NOWHERE, *BALANCE, name=name).stop() == 0
    paths = numbered(80)
    queue(world, name, *paths)
    flags = [*BALANCE, "--drain-concurrency", "4"]
    world.client(first, *flags, name=name)
    arrived(first, 4)
    world.client(second, *flags, name=name)
    there.set()
    eventually(lambda: len(first.seen) + len(second.seen) >= 80, what="all")
    nothing_waits(world, name)
    assert sorted(targets(first) + targets(second)) == sorted(paths)
    assert not [seen for seen in first.seen + second.seen if is_marked(seen) or attempt(seen) != 1]
    assert second.seen, "the second had no part in it"


@pytest.mark.parametrize("offline", ["queue", "error"])
def test_what_one_app_cannot_take_the_other_gets(world, name, offline):
    """In as many at once as there are turns: no delivery comes twice to the one that is down, and none waits."""
    app = world.app()
    flags = [*BALANCE, "--wait-app", "200ms", "--on-offline", offline]
    with SleepingApp() as down:
        world.client(down, *flags, name=name)
        world.client(app, *flags, name=name)
        for method in ("POST", "GET"):
            assert answers(world, name, *numbered(6, f"/{method}-"), method=method) == [200] * 6
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda path: answers(world, name, path)[0], numbered(24, "/at-once-")))
        assert {*statuses} <= ({200, 202} if offline == "queue" else {200}), statuses
        all_have([app], numbered(24, "/at-once-"))
        nothing_waits(world, name)
        assert not unmarked_repeats(app) and not any(map(is_marked, app.seen))


def test_one_app_of_five_is_enough(world, name):
    app = world.app()
    flags = [*BALANCE, "--wait-app", "100ms"]
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            world.client(stack.enter_context(SleepingApp()), *flags, name=name)
        world.client(app, *flags, name=name)
        statuses = answers(world, name, *numbered(10))
        assert {*statuses} <= {200, 202}, statuses
        all_have([app], numbered(10))
        nothing_waits(world, name)
    assert len(app.seen) == 10 and not any(map(is_marked, app.seen))


@pytest.mark.parametrize("mode", [BALANCE, COPY], ids=["balance", "copy"])
def test_a_common_backlog_goes_to_the_one_whose_app_is_there(world, name, mode):
    """Also what waited before there were copies: the one whose app is down must not keep it from the other."""
    app = world.app()
    assert world.client(NOWHERE, *(mode if mode == BALANCE else ()), name=name).stop() == 0
    queue(world, name, *numbered(20))
    with SleepingApp() as down:
        first = world.client(down, *mode, "--wait-app", "100ms", name=name)
        first.event("app", lambda event: event["state"] == "down")
        world.client(app, *mode, name=name)
        all_have([app], numbered(20), 15)
        nothing_waits(world, name)
    assert len(app.seen) == 20 and not any(map(is_marked, app.seen))
    assert list(dict.fromkeys(targets(app))) == numbered(20)


def test_one_of_several_killed_at_random(new_world):
    """Three clients of one app take turns, under load; what was answered reaches it, and what repeats is marked."""
    world, randomness, rounds = new_world(), random.Random(SEED), 200 if LONG else 10
    app = world.app()
    Crowd(app, 0.02)
    clients = [world.client(app, *BALANCE) for _ in range(3)]
    with Senders(world, count=8, pause=0.05) as senders:
        for _ in range(rounds):
            threading.Event().wait(randomness.uniform(0, 0.6))  # the moment is what is tried
            at = randomness.randrange(3)
            if clients[at].running:
                clients[at].process.kill()
            clients[at].exited()
            clients[at] = world.client(app, *BALANCE, wait=False)
    for client in clients:
        client.event("ready")
    all_handed_over(world, senders, app)
    told(check(senders, app), rounds)
    late = [(status, seconds) for *_, status, seconds in senders.answered if seconds > 5]
    assert not late, f"senders waited: {late[:10]}"


# ── copies ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 70_000, MIB + 1, MOST])
def test_each_listener_gets_it_byte_for_byte(world, name, size):
    first, second, third = three = apps(world, "first", "second", "third")
    for app in three:
        listener(world, app, app.name, name)
    reply = world.post("/body?a=%27&b", noise(size), name, [("X-Own", "caf\xe9"), ("X-B", "1"), ("X-B", "2")])
    assert reply.status == 200 and reply.header("x-app") == "first" and reply.json()["length"] == size
    whole = hashlib.sha256(noise(size)).hexdigest()
    own = ("hookway-attempt", "hookway-received-at")
    for app in three:
        (seen,) = arrived(app, 1, 40)
        assert (seen.method, seen.target, seen.sha256, len(seen.body)) == ("POST", "/body?a=%27&b", whole, size)
        fields = [[pair for pair in one.headers if pair[0].lower() not in own] for one in (seen, first.seen[0])]
        assert fields[0] == fields[1] and not is_marked(seen) and not app.unclean
        assert seen.header("hookway-delivery") == first.seen[0].header("hookway-delivery")
    nothing_waits(world, name)
    assert [len(app.seen) for app in three] == [1, 1, 1]
    assert second.seen[0].header("hookway-received-at") == third.seen[0].header("hookway-received-at")


def test_a_copy_of_what_comes_in_pieces_has_its_trailers(world, name):
    both = apps(world, "first", "second")
    for app in both:
        listener(world, app, app.name, name)
    fields = [("Transfer-Encoding", "chunked"), ("Trailer", "X-Checksum"), ("TE", "trailers")]
    head = request("POST", "/chunked", host=f"{name}.{DOMAIN}", headers=fields)
    with world.wire(name) as wire:
        assert wire.ask(head + chunked([b"a", noise(100_000), b"b"], [("X-Checksum", "abc")])).status == 200
    for app in both:
        (seen,) = arrived(app, 1)
        assert seen.body == b"a" + noise(100_000) + b"b"
        assert [(key.lower(), value) for key, value in seen.trailers] == [("x-checksum", "abc")]


def test_the_one_that_is_there_longest_answers(world, name):
    first, second, third = apps(world, "first", "second", "third")
    one = listener(world, first, "first", name)
    listener(world, second, "second", name)
    listener(world, third, "third", name)
    assert answered_by(world, name, "/0") == "first"
    assert one.stop() == 0
    assert answered_by(world, name, "/1") == "second"
    listener(world, first, "first", name)
    assert answered_by(world, name, "/2") == "second"
    all_have([first, second, third], ["/0", "/1", "/2"])
    assert [len(app.seen) for app in (first, second, third)] == [3, 3, 3]


def test_what_may_not_wait_goes_to_the_one_that_answers(world, name):
    first, second = apps(world, "first", "second")
    listener(world, first, "first", name)
    listener(world, second, "second", name)
    upgrade = [("Connection", "upgrade"), ("Upgrade", "websocket")]
    for method in ("GET", "HEAD", "OPTIONS"):
        assert answered_by(world, name, f"/{method}", method) == "first"
    with world.wire(name) as wire:
        assert wire.ask(request("POST", "/talk", b"", f"{name}.{DOMAIN}", upgrade)).status == 200
    assert world.post("/call", b"x", name, [("Content-Type", "application/grpc")]).status == 200
    assert answered_by(world, name, "/last") == "first"
    all_have([second], ["/last"])
    assert targets(second) == ["/last"] and len(first.seen) == 6


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_listener_that_was_away_gets_its_copies_in_order(new_world, how):
    """They were on disk when the sender was answered: the relay ends at once."""
    world, parts = new_world(), 2 if how == signal.SIGTERM else 1
    first, second = apps(world, "first", "second")
    known(world, "billing", "second")
    listener(world, first, "first")
    for part in range(parts):
        assert answers(world, "billing", *numbered(12, f"/{part}-")) == [200] * 12
        restart(world, how)
        eventually(lambda: world.get("/back").status == 200, what="the one that answers being back")
    listener(world, second, "second")
    paths = [path for part in range(parts) for path in numbered(12, f"/{part}-")]
    all_have([second], paths)
    nothing_waits(world)
    assert targets(second) == paths and not [seen for seen in second.seen if is_marked(seen) or attempt(seen) != 1]
    assert [path for path in targets(first) if path != "/back"] == paths


def test_with_nobody_there_each_known_listener_gets_it_on_return(new_world):
    world = new_world()
    first, second, stranger = apps(world, "first", "second", "stranger")
    known(world, "billing", "first", "second")
    paths = numbered(10)
    queue(world, "billing", *paths)
    restart(world, signal.SIGKILL)
    queue(world, "billing", "/then")
    assert world.get("/read").status == 503
    listener(world, stranger, "stranger")
    listener(world, first, "first")
    listener(world, second, "second")
    all_have([first, second], [*paths, "/then"])
    nothing_waits(world)
    assert targets(first) == targets(second) == [*paths, "/then"] and not stranger.seen


def test_the_same_listener_again_takes_only_its_place(world, name):
    first, old_app, new_app = apps(world, "first", "old", "new")
    answering = listener(world, first, "first", name)
    old = listener(world, old_app, "desk", name)
    assert answered_by(world, name, "/0") == "first"
    all_have([old_app], ["/0"])
    nothing_waits(world, name)
    listener(world, new_app, "desk", name)
    taken_over(old, name)
    assert answered_by(world, name, "/1") == "first"
    all_have([new_app], ["/1"])
    assert answering.running and not answering.find("released")
    assert targets(old_app) == ["/0"] and targets(new_app) == ["/1"]


def test_a_listener_without_a_name_is_known_by_folder_and_target(world, name):
    first, app, other = apps(world, "first", "app", "other")
    listener(world, first, "first", name)

    def beside(target, title):
        """Started in a folder of that name."""
        flags = [*COPY, "--no-inspect"]
        client = world._add(Client(world, target.address, flags, name, world.default_token, title, True, None))
        client.event("ready")
        return client

    here, there, elsewhere = (beside(*of) for of in ((app, f"x-{name}"), (other, f"x-{name}"), (app, f"y-{name}")))
    assert here.stop() == there.stop() == elsewhere.stop() == 0
    assert answered_by(world, name, "/0") == "first"
    beside(app, f"x-{name}")
    all_have([app], ["/0"])
    again = beside(app, f"x-{name}")
    beside(app, f"y-{name}")
    eventually(lambda: targets(app) == ["/0", "/0"], what="the copy of the other folder")
    assert again.running and not other.seen
    beside(other, f"x-{name}")
    all_have([other], ["/0"])


def test_an_app_that_fails_or_is_away_has_its_own_copies_waiting(world, name):
    first, failing = apps(world, "first", "failing")
    failing.answer = lambda *_: FAILED
    with SleepingApp(name="asleep") as asleep:
        listener(world, first, "first", name)
        listener(world, failing, "failing", name)
        listener(world, asleep, "asleep", name, "--wait-app", "100ms")
        assert answers(world, name, *numbered(8)) == [200] * 8
        all_have([failing], numbered(8))
        assert targets(first) == numbered(8) and waiting(world, name) == 16
        failing.clear()
        failing.answer = failing.echo
        asleep.open()
        all_have([failing, asleep], numbered(8))
        nothing_waits(world, name)
        assert targets(asleep) == numbered(8) and not any(map(is_marked, asleep.seen))
        assert all(map(is_marked, failing.seen)) and len(first.seen) == 8


def test_the_others_have_their_copies_when_the_answering_app_is_down(world, name):
    second = world.app(name="second")
    with SleepingApp(name="asleep") as asleep:
        listener(world, asleep, "asleep", name, "--wait-app", "100ms")
        listener(world, second, "second", name)
        queue(world, name, *numbered(5))
        all_have([second], numbered(5))
        asleep.open()
        all_have([asleep], numbered(5), 10)
        nothing_waits(world, name)
        assert targets(second) == targets(asleep) == numbered(5)


@pytest.mark.parametrize("here", [True, False], ids=["all there", "one away"])
def test_a_body_too_large_for_copies_is_413_for_all(world, name, here):
    first, second = apps(world, "first", "second")
    listener(world, first, "first", name)
    client = listener(world, second, "second", name)
    if not here:
        assert client.stop() == 0
    with world.wire(name) as wire:
        wire.send(request("POST", "/large", host=f"{name}.{DOMAIN}", headers=[("Content-Length", str(MOST + 1))]))
        assert wire.reply("POST").status == 413
    pieces = request("POST", "/large", host=f"{name}.{DOMAIN}", headers=[("Transfer-Encoding", "chunked")])
    with world.wire(name) as wire:
        assert wire.ask(pieces + chunked([noise(MIB)] * 33)).status == 413
    assert answered_by(world, name, "/small") == "first"
    if not here:
        listener(world, second, "second", name)
    all_have([second], ["/small"])
    assert targets(first) == targets(second) == ["/small"]


def test_what_waited_before_there_were_copies_goes_to_one(world, name):
    first, second = apps(world, "first", "second")
    assert world.client(NOWHERE, name=name).stop() == 0
    queue(world, name, *numbered(20))
    listener(world, first, "first", name)
    listener(world, second, "second", name)
    eventually(lambda: len(first.seen) + len(second.seen) >= 20, what="all")
    nothing_waits(world, name)
    assert sorted(targets(first) + targets(second)) == sorted(numbered(20))
    assert answered_by(world, name) == "first"
    all_have([second], ["/who"])


def test_a_takeover_amid_copies_leaves_each_backlog_to_its_listener(world, name):
    first, second, alone = apps(world, "first", "second", "alone")
    known(world, name, "second")
    client = listener(world, first, "first", name)
    assert answered_by(world, name, "/before") == "first"
    only = world.client(alone, name=name)
    taken_over(client, name)
    assert answered_by(world, name, "/meanwhile") == "alone"
    assert only.stop() == 0
    queue(world, name, "/later")
    listener(world, second, "second", name)
    all_have([second], ["/before", "/later"])
    assert "/meanwhile" not in targets(second) and targets(alone) == ["/meanwhile"]
    listener(world, first, "first", name)
    assert answered_by(world, name, "/end") == "second"
    all_have([first], ["/end"])
    assert targets(first) == ["/before", "/end"]


def test_copies_are_sealed_for_each_listener(new_world, tmp_path):
    world, secret = new_world(), b"needle-in-the-body" * 10
    homes = [{"XDG_DATA_HOME": str(tmp_path / title)} for title in ("first", "second", "stranger")]
    first, second, other = apps(world, "first", "second", "other")
    for app, home in ((first, homes[0]), (second, homes[1])):
        assert listener(world, app, app.name, "billing", "--seal", environment=home).stop() == 0
    assert world.post("/secret-path", secret).status == 202
    kept = on_disk(world)
    assert b"needle-in-the-body" not in kept and b"secret-path" not in kept
    # The right name without the right key gets nothing.
    stranger = listener(world, other, "second", environment=homes[2])
    reason = "another client's key"
    eventually(lambda: reason in str(world.relay.command("queue", "list", "billing")), what="why it did not arrive")
    assert stranger.stop() == 0 and not other.seen
    listener(world, first, "first", environment=homes[0])
    listener(world, second, "second", environment=homes[1])
    for app in (first, second):
        assert [seen.body for seen in arrived(app, 1)] == [secret]


def test_an_endpoint_has_16_listeners(world, name):
    known(world, name, *numbered(16, "listener-"))
    too_many = listener(world, NOWHERE, "listener-16", name, wait=False)
    assert too_many.exited() == 3
    assert "16" in too_many.log() and "--listener" in too_many.log(), too_many.log()
    app = world.app()
    listener(world, app, "listener-7", name)
    assert answered_by(world, name, "/x") == "app"
    assert waiting(world, name) == 15


def test_a_client_that_is_refused_takes_nothing_over(world, name):
    """It asks for two endpoints, and one of them has as many listeners as there may be."""
    full = f"{name}-full"
    app = world.app()
    known(world, full, *numbered(16, "listener-"))
    client = listener(world, app, "laptop", name)
    refused = listener(world, NOWHERE, "laptop", name, "-n", full, wait=False)
    assert refused.exited() == 3
    assert answered_by(world, name) == "app"
    assert client.running and not client.find("released")


def test_the_next_owner_gets_nothing_of_the_listeners_of_the_one_before(new_world):
    world = new_world()
    first, second = world.token("first"), world.token("second")
    theirs, app = apps(world, "theirs", "app")
    assert listener(world, NOWHERE, "desk", token=first).stop() == 0
    answering = listener(world, theirs, "laptop", token=first)
    assert answers(world, "billing", *numbered(3)) == [200] * 3
    world.relay.command("endpoint", "release", "billing", "--hold", "0s")
    taken_over(answering)
    listener(world, app, "desk", token=second)
    assert answered_by(world, path="/new") == "app"
    nothing_waits(world)
    assert targets(app) == ["/new"] and targets(theirs) == numbered(3)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_one_that_was_there_for_long_is_no_stranger_after_a_restart(new_world, how):
    """A listener is known for as long as deliveries wait, counted from when it left, not from when it came."""
    # Longer than a relay that has just started holds a delivery for those who were there.
    world = new_world("--queue-retention", "5s")
    clients = [listener(world, NOWHERE, title) for title in ("first", "second")]
    looked(5.7)
    world.relay.process.send_signal(how)
    world.relay.exited()
    # Neither is back before the delivery.
    for client in clients:
        client.process.kill()
    restart(world)
    queue(world, "billing", "/while-away")
    assert len(world.relay.command("queue", "list", "billing")) == 2


def test_a_relay_killed_at_random_with_two_listeners(new_world):
    """Each has all that was answered, whole, and what repeats says so."""
    world, randomness, rounds = new_world(), random.Random(SEED), 100 if LONG else 8
    both = apps(world, "first", "second")
    for app in both:
        Crowd(app, 0.005)
    clients = [listener(world, app, app.name) for app in both]
    with Senders(world) as senders:
        for number in range(rounds):
            threading.Event().wait(randomness.uniform(0, 0.8))  # the moment is what is tried
            restart(world, signal.SIGKILL)
            if number % 6 == 3:
                for app in both:
                    many = len(app.seen)
                    eventually(lambda app=app, many=many: len(app.seen) > many, 15, "the clients back")
    for app in both:
        all_handed_over(world, senders, app)
        told(check(senders, app), rounds)
    assert all(client.running for client in clients)


# ── settings ──────────────────────────────────────────────────────────────────────────────────────────────────────


BAD = [
    ("--share", "everyone"),
    ("--share", "Copy"),
    ("--share", ""),
    ("--listener", ""),
    ("--listener", "a" * 65),
    ("--listener", "two words"),
    ("--listener", "caf\xe9"),
    ("--listener", "a\nb"),
]


@pytest.mark.parametrize(("flag", "value"), BAD)
def test_what_is_no_mode_or_name_is_said(hookway, flag, value):
    refused = [hookway("3000", flag, value)]
    if value:  # An empty variable is one that is not set.
        refused.append(hookway("3000", **{f"HOOKWAY_{flag[2:].upper()}": value}))
    for done in refused:
        assert done.returncode == 2 and flag in done.stderr, done


@pytest.mark.parametrize("line", ['share = "everyone"', "share = 1", 'listener = "two words"', 'listener = ""'])
def test_what_is_no_mode_or_name_in_the_project_s_file_is_said(hookway, tmp_path, line):
    (tmp_path / "hookway.toml").write_text(line + "\n")
    done = hookway("3000", "--no-inspect", "--relay", "127.0.0.1:9")
    assert done.returncode == 7 and line.partition(" ")[0] in done.stderr, done


def test_to_seal_and_to_take_turns_do_not_go_together(world, name):
    for flags, variables in (([*BALANCE, "--seal"], {}), ([], {"HOOKWAY_SHARE": "balance", "HOOKWAY_SEAL": "true"})):
        client = world.client(NOWHERE, *flags, name=name, wait=False, environment=variables)
        assert client.exited() == 2 and "--seal" in client.log() and "--share" in client.log(), client.log()


def test_settings_by_variable_and_by_the_project_s_file(world, name):
    first, second, third = apps(world, "first", "second", "third")
    variables = {"HOOKWAY_SHARE": "copy", "HOOKWAY_LISTENER": "desk"}
    assert world.client(first, name=name, environment=variables).stop() == 0
    listener(world, second, "laptop", name)
    assert answered_by(world, name, "/0") == "second"
    with_project(world, name, 'share = "copy"\nlistener = "desk"\n')
    world.client(third, name=name)
    all_have([third], ["/0"])
    assert answered_by(world, name, "/1") == "second"
    all_have([third], ["/1"])
    # A flag is stronger than a variable.
    world.client(first, "--listener", "flag", name=name, environment=variables)
    assert answered_by(world, name, "/2") == "second"
    all_have([first, third], ["/2"])
    assert targets(first) == ["/2"]


# ── what was missed ───────────────────────────────────────────────────────────────────────────────────────────────


def full(world, *more):
    """Three wait, and these do not fit."""
    queue(world, "billing", *numbered(3))
    assert answers(world, "billing", *numbered(4, "/full-"), *more) == [503] * (4 + len(more))
    assert answers(world, "billing", "/read", method="GET") == [503]


def test_what_a_full_queue_could_not_keep_is_told_once(new_world):
    world = new_world("--queue-max-count", "3")
    app = world.app()
    assert world.client(NOWHERE).stop() == 0
    full(world)
    client = world.client(app)
    assert lost(client) == 4
    assert set(client.find("lost")) >= {"event", "endpoint", "count", "since", "why"}
    assert "full" in client.find("lost")["why"]
    arrived(app, 3)
    looked()
    assert all_lost(client) == 4 and client.stop() == 0
    again = world.client(app)
    looked()
    assert not again.find("lost") and again.stop() == 0
    assert {*targets(app)} == {*numbered(3)}


@pytest.mark.parametrize("mode", [(), BALANCE, COPY], ids=["takeover", "balance", "copy"])
def test_what_came_for_one_that_wants_nothing_kept_is_told_after_a_restart(new_world, mode):
    """The relay ends at once after the last."""
    world = new_world()
    flags = [*mode, "--listener", "desk", "--on-offline", "error"]
    assert world.client(NOWHERE, *flags).stop() == 0
    assert answers(world, "billing", *numbered(5)) == [503] * 5
    assert answers(world, "billing", "/read", method="GET") == [503]
    restart(world, signal.SIGTERM)
    assert lost(world.client(world.app(), *flags)) == 5


def test_what_was_told_is_not_told_again_after_a_restart(new_world):
    world = new_world()
    assert world.client(NOWHERE, "--on-offline", "error").stop() == 0
    assert answers(world, "billing", "/x") == [503]
    client = world.client(world.app(), "--on-offline", "error")
    assert lost(client) == 1 and client.stop() == 0
    restart(world, signal.SIGTERM)
    client = world.client(world.app(), "--on-offline", "error")
    looked()
    assert not client.find("lost")


def test_what_is_missed_meanwhile_is_told_within_two_seconds(new_world):
    world = new_world("--queue-max-count", "3")
    client = world.client(NOWHERE, "--wait-app", "0s")
    assert answers(world, "billing", *numbered(5)) == [202, 202, 202, 503, 503]
    assert client.event("lost", seconds=3)
    eventually(lambda: all_lost(client) == 2, 3, "both told")


@pytest.mark.parametrize(("mode", "count"), [((), 1), (BALANCE, 2)], ids=["one", "balance"])
def test_each_that_was_missed_is_told_of_once(new_world, mode, count):
    """Also while more are missed: by all of the endpoint's clients together, no more and no fewer than there were."""
    world = new_world("--queue-max-count", "3")
    clients = [world.client(NOWHERE, *mode, "--wait-app", "0s") for _ in range(count)]
    over, missed = threading.Event(), []

    def send(_):
        while not over.is_set():
            missed.append(answers(world, "billing", *numbered(20)).count(503))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        sending = [pool.submit(send, number) for number in range(4)]
        looked(2.5)
        over.set()
    assert not [each.exception() for each in sending if each.exception()]
    looked(2.2)
    assert sum(map(all_lost, clients)) == sum(missed) > 100


def test_a_full_backlog_is_the_listener_s_own(new_world):
    """Under load the other is answered as ever; each delivery that was missed is told of once."""
    world = new_world("--queue-max-count", "3")
    app, late = apps(world, "first", "late")
    known(world, "billing", "away")
    listener(world, app, "first")
    client = listener(world, NOWHERE, "down", "billing", "--wait-app", "0s")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = [numbered(150, f"/{part}-") for part in range(4)]
        statuses = list(pool.map(lambda part: answers(world, "billing", *part), paths))
    assert statuses == [[200] * 150] * 4 and len(app.seen) == 600
    back = listener(world, late, "away")
    assert lost(back) == 597
    arrived(late, 3)
    eventually(lambda: all_lost(client) >= 597, 5, "all told")
    looked()
    assert all_lost(back) == 597 and len(late.seen) == 3
    assert all_lost(client) == 597, [event["count"] for event in client.events if event.get("event") == "lost"]


def test_each_listener_that_wants_nothing_kept_is_told_what_it_missed(new_world):
    world = new_world()
    known(world, "billing", "first", "second", flags=("--on-offline", "error"))
    assert answers(world, "billing", *numbered(3)) == [503] * 3
    for title in ("first", "second"):
        assert lost(listener(world, world.app(), title, "billing", "--on-offline", "error")) == 3


def test_what_was_missed_before_there_were_copies_is_told_to_one(new_world):
    world = new_world()
    assert world.client(NOWHERE, "--on-offline", "error").stop() == 0
    assert answers(world, "billing", *numbered(3)) == [503] * 3
    client = listener(world, world.app(), "first")
    assert lost(client) == 3


def test_what_a_full_disk_could_not_keep_is_told(new_world, small_disk):
    """Of two listeners the one that is away; and there is no room to note it before it comes."""
    world = new_world()
    move_to(world, small_disk, "--disk-reserve", "0%")
    app, late = apps(world, "first", "late")
    known(world, "billing", "late")
    listener(world, app, "first")
    filler = world.relay.data / "filler"
    fill(filler)
    body = noise(20_000)
    assert [world.post(path, body).status for path in numbered(5)] == [200] * 5
    assert health(world) == 503
    filler.unlink()
    eventually(lambda: health(world) == 200, 5, "health with room again")
    assert world.post("/then", body).status == 200
    client = listener(world, late, "late")
    assert lost(client) >= 4 and "disk" in client.find("lost")["why"]
    all_have([late], ["/then"])
    assert len(late.seen) + all_lost(client) == 6 and targets(app) == [*numbered(5), "/then"]


# ── dead letters ──────────────────────────────────────────────────────────────────────────────────────────────────


class Letters:
    """A client's inspector, asked for dead letters."""

    def __init__(self, client, endpoint="billing"):
        self.inspector, self.endpoint = Inspector(client), endpoint

    def list(self):
        """Those of the one endpoint, and that their number is as told."""
        (endpoint,) = self.inspector.get("/api/dead-letters")["endpoints"]
        assert endpoint["endpoint"] == self.endpoint and endpoint["total"] >= len(endpoint["letters"])
        return endpoint["letters"]

    def ask(self, **body):
        return self.inspector.change("POST", "/api/dead-letters/retry", {"endpoint": self.endpoint} | body)

    def retry(self, **body):
        """How many wait again."""
        answer = self.ask(**body)
        assert answer.status == 200, answer
        return answer.json["retried"]


def inspected(world, app, *flags, **options):
    return world.client(app, *flags, *PORT_0, inspect=True, **options)


def dead(world, *paths):
    """Deliveries that have waited too long, for a client that is away."""
    queue(world, "billing", *paths)
    eventually(lambda: len(world.relay.command("queue", "dead-letters")) == len(paths), what="dead letters")


def test_dead_letters_are_told_listed_and_tried_again(new_world):
    world = new_world("--queue-retention", "1s")
    with SleepingApp() as app:
        client = inspected(world, app, "--wait-app", "0s")
        # The first is with the client, which waits for its app.
        queue(world, "billing", "/held", "/one?token=hush", "/two", "/three")
        client.event("dead_letters", lambda event: event["count"] == 3 and event["endpoint"] == "billing")
        letters = Letters(client)
        eventually(lambda: len(letters.list()) == 3, what="all of them on disk")
        by_path = {letter["path"].partition("?")[0]: letter for letter in letters.list()}
        assert {*by_path} == {"/one", "/two", "/three"} and "hush" not in str(by_path)
        two = by_path["/two"]
        assert (two["method"], two["listener"], two["last"]) == ("POST", None, "it waited for too long")
        assert two["bytes"] > 0 and two["received_at"] <= two["dead_since"]
        status = letters.inspector.get("/api/status")
        assert [url["dead_letters"] for url in status["urls"]] == [3]
        app.open()
        arrived(app, 1)
        app.clear()
        assert letters.retry(ids=[NO_ID]) == 0
        assert letters.retry(ids=[two["id"], NO_ID, two["id"]]) == 1
        assert [seen.target for seen in arrived(app, 1)] == ["/two"]
        client.event("dead_letters", lambda event: event["count"] == 2)
        assert letters.retry(ids=[two["id"]]) == 0
        assert letters.retry(all=True) == 2
        all_have([app], ["/one?token=hush", "/three"])
        client.event("dead_letters", lambda event: event["count"] == 0)
        nothing_waits(world)
        assert letters.list() == [] and len(app.seen) == 3 and letters.retry(all=True) == 0


def test_dead_letters_of_several_listeners(new_world):
    """Each client is told of all; whichever asks, they go to those that they were for, also to one that is away."""
    world = new_world("--queue-retention", "1s")
    first, second = apps(world, "first", "second")
    known(world, "billing", "first", "second")
    queue(world, "billing", "/one", "/two")
    eventually(lambda: dead_letters(world) == 4, what="dead letters")
    client = inspected(world, first, *COPY, "--listener", "first")
    letters = Letters(client)
    eventually(lambda: len(letters.list()) == 4, what="all of them on disk")
    assert sorted((letter["path"], letter["listener"]) for letter in letters.list()) == [
        ("/one", "first"),
        ("/one", "second"),
        ("/two", "first"),
        ("/two", "second"),
    ]
    other = listener(world, second, "second")
    one = next(letter["id"] for letter in letters.list() if letter["path"] == "/one")
    assert letters.retry(ids=[one]) == 2
    all_have([first, second], ["/one"])
    for each in (client, other):
        each.event("dead_letters", lambda event: event["count"] == 2)
    assert letters.retry(all=True) == 2
    all_have([first, second], ["/one", "/two"])
    other.event("dead_letters", lambda event: event["count"] == 0)
    assert len(first.seen) == len(second.seen) == 2


def test_the_operator_tries_a_dead_letter_of_several_listeners_again(new_world):
    world = new_world("--queue-retention", "1s")
    first, second = apps(world, "first", "second")
    known(world, "billing", "first", "second")
    queue(world, "billing", "/one", "/two")

    def letters():
        return world.relay.command("queue", "dead-letters", "billing")

    eventually(lambda: len(letters()) == 4, what="dead letters")
    listener(world, first, "first")
    listener(world, second, "second")
    one = next(letter["id"] for letter in letters() if letter["path"] == "/one")
    assert world.relay.command("queue", "retry", one) == [{"retried": 2}]
    all_have([first, second], ["/one"])
    assert world.relay.command("queue", "retry", "--endpoint", "billing") == [{"retried": 2}]
    all_have([first, second], ["/two"])
    assert len(first.seen) == len(second.seen) == 2


WRONG = {
    "neither": {"endpoint": "billing"},
    "both": {"endpoint": "billing", "ids": [NO_ID], "all": True},
    "no endpoint": {"all": True},
    "no id": {"endpoint": "billing", "ids": ["x"]},
    "an empty id": {"endpoint": "billing", "ids": [""]},
    "one that is none of several": {"endpoint": "billing", "ids": [NO_ID, "../1"]},
    "a number": {"endpoint": "billing", "ids": [1]},
    "a mistyped name": {"endpoint": "billing", "all": True, "id": NO_ID},
    "all as text": {"endpoint": "billing", "all": "yes"},
}


def test_a_wrong_retry_changes_nothing(new_world):
    world = new_world("--queue-retention", "1s")
    assert world.client(NOWHERE).stop() == 0
    dead(world, "/one")
    letters = Letters(inspected(world, NOWHERE, "-n", "extra"))
    letters.list = lambda: letters.inspector.get("/api/dead-letters")["endpoints"]
    for what, body in WRONG.items():
        answer = letters.inspector.change("POST", "/api/dead-letters/retry", body)
        assert answer.status == 400 and answer.reason, (what, answer)
    for body in (b"", b"[]", b"{", b'"x"', b"\xff"):
        assert letters.inspector.change("POST", "/api/dead-letters/retry", body).status == 400, body
    asked = {"endpoint": "billing", "all": True}
    for headers in (JSON, JSON | {"Hookway-Token": "A" * 32}, {"Hookway-Token": letters.inspector.token}):
        answer = letters.inspector.ask("POST", "/api/dead-letters/retry", asked, headers)
        assert answer.status in (401, 403, 415) and answer.reason, (headers, answer)
    strange = letters.inspector.change("POST", "/api/dead-letters/retry", {"endpoint": "not-mine", "all": True})
    assert 400 <= strange.status <= 503 and strange.reason
    assert {one["endpoint"]: one["total"] for one in letters.list()} == {"billing": 1, "extra": 0}


def test_a_retry_of_very_many_ids_leaves_the_tunnel_up(new_world):
    world = new_world("--queue-retention", "1s")
    app = world.app()
    assert world.client(NOWHERE).stop() == 0
    dead(world, "/one")
    client = inspected(world, app)
    letters = Letters(client)
    (letter,) = letters.list()
    answer = letters.ask(ids=[NO_ID] * 10_000 + [letter["id"]])
    looked()
    states = [event["state"] for event in client.events if event.get("event") == "session"]
    assert "down" not in states and answer.status in (200, 400, 413), (answer, states)
    assert letters.retry(all=True) == (answer.status != 200)
    all_have([app], ["/one"])


def test_copies_are_for_their_name_also_without_copies(new_world):
    """A team's client that comes back alone gets what is its own, and not what is the others'."""
    world = new_world()
    first, second = apps(world, "first", "second")
    known(world, "billing", "first", "second")
    queue(world, "billing", "/one", "/two")
    alone = world.client(first, "--listener", "first")
    assert alone.event("backlog")["waiting"] == 2
    all_have([first], ["/one", "/two"])
    assert alone.stop() == 0
    listener(world, second, "second")
    all_have([second], ["/one", "/two"])
    nothing_waits(world)
    assert len(first.seen) == len(second.seen) == 2


def test_the_operator_sees_who_listens(new_world, tmp_path):
    world = new_world()
    known(world, "billing", "second", "first")
    (shown,) = world.relay.command("endpoint", "show", "billing")
    assert [one["name"] for one in shown["listeners"]] == ["first", "second"]
    assert all(one["missed"] == 0 and one["last_seen_at"] > shown["created_at"] for one in shown["listeners"])
    done = run(HOOKWAY_RELAY, "endpoint", "show", "billing", "--data-dir", world.relay.data, folder=tmp_path)
    assert "LISTENER" in done.stdout and "second" in done.stdout


def test_a_dead_letter_of_one_who_does_not_come_is_for_whoever_does(new_world):
    """Also after the relay was started again."""
    world = new_world("--queue-retention", "1s")
    app = world.app()
    known(world, "billing", "gone")
    dead(world, "/one", "/two")
    letters = Letters(inspected(world, app))
    assert letters.retry(all=True) == 2
    all_have([app], ["/one", "/two"])
    nothing_waits(world)


def test_very_many_dead_letters_are_listed_and_retried(new_world):
    """With paths as long as they may be: the newest are told, and how many there are."""
    world = new_world("--queue-retention", "3s")
    app = world.app()
    known(world, "billing", "l" * 64)
    paths = [f"/{number:03}/" + "p" * 2000 for number in range(150)]
    dead(world, *paths)
    client = inspected(world, app, *COPY, "--listener", "l" * 64, "--drain-concurrency", "16")
    letters = Letters(client)
    (endpoint,) = letters.inspector.get("/api/dead-letters")["endpoints"]
    assert endpoint["total"] == 150 and len(endpoint["letters"]) == 100
    assert letters.retry(all=True) == 150
    eventually(lambda: len(app.seen) >= 150, 10, "all of them again")
    assert {*targets(app)} == {*paths} and len(app.seen) == 150 and client.running


def test_without_a_tunnel_there_are_no_dead_letters(world, app, name):
    client = world.client(app, name=name)
    words = [HOOKWAY, "inspect", "--json", *PORT_0]
    stored = world._add(Program(f"stored-{name}", words, client.errors.parent))
    letters = Letters(stored)
    assert letters.inspector.ask("GET", "/api/dead-letters").status == 404
    assert letters.ask(all=True).status == 404


def test_while_the_relay_is_away_dead_letters_are_503(new_world):
    """Each time, however often it is asked; and then as before."""
    world = new_world()
    letters = Letters(inspected(world, world.app()))

    def asked(_):
        return letters.inspector.ask("GET", "/api/dead-letters").status

    world.relay.stop()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(asked, range(8))) == [503] * 8
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # Questions that nobody waits for any more take no room.
        again = pool.submit(asked, 0)
        restart(world)
        assert again.result() in (200, 503)
    eventually(lambda: asked(0) == 200, what="the relay back")
    assert letters.list() == []
