"""`egress-policy run`: a command that has no way out but through the policy, and leaves nothing behind."""

import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from deploy.demo.lab import ALICE, CONTAINER_LINK, HOST_ADDRESSES, NAMESERVERS, OTHER, PROXY, Lab
from tests.end_to_end.conftest import until

DEVELOPER, DEVELOPERS, DOCKER, PROJECT, CAPTAIN = OTHER, 61003, 61010, 61011, 61012
SPARE = 61004
POLICY = f"""\
version: 1
proxy: {{user: {PROXY}}}
resolver: {{nameservers: [{NAMESERVERS[0]}], timeout: 1s}}
agents:
  one: {{interface: ep-one, source: 10.213.0.2, scopes: [sandbox-one], default_scope: sandbox-one}}
  two: {{interface: ep-two, source: 10.213.0.4, scopes: [sandbox-two]}}
  resident: {{interface: ep-resident, source: 10.213.0.6, scopes: [sandbox-one]}}
  account: {{user: {ALICE}, scopes: [sandbox-one], default_scope: sandbox-one}}
  several: {{user: 2001-2003, scopes: [sandbox-one]}}
  wide: {{interface: ep-wide, source: 10.214.0.0/24, scopes: [sandbox-one], default_scope: sandbox-one}}
  six: {{interface: ep-six, source: "fd77::2", scopes: [sandbox-one], default_scope: sandbox-one}}
  beside: {{interface: ep-beside, source: 10.215.0.2, scopes: [sandbox-one], default_scope: sandbox-one}}
  besides: {{interface: ep-besides, source: 10.215.0.3, scopes: [sandbox-one]}}
  bridged: {{interface: br-agents, source: 10.216.0.2, scopes: [sandbox-one], default_scope: sandbox-one}}
scopes:
  sandbox-one: {{owner: developer@example.com, owner_user: developer}}
  sandbox-two: {{owner: two@example.com}}
intents:
  default:
    unknown: {{methods: [GET, HEAD], max_body: 0, ttl: 1h}}
"""
PASSWD = f"""\
root:x:0:0::/root:/bin/sh
developer:x:{DEVELOPER}:{DEVELOPERS}::/home/developer:/bin/bash
captain:x:{CAPTAIN}:{DOCKER}::/home/developer:/bin/bash
"""
GROUP = f"root:x:0:\ndevelopers:x:{DEVELOPERS}:\ndocker:x:{DOCKER}:developer\nproject:x:{PROJECT}:developer\n"
AUDIT = "/var/log/egress-policy/audit.jsonl"
# Not that of a virtual environment, which may lie below /tmp.
PYTHON = str(Path(sys.executable).resolve())
# The caller's environment as sudo(8) leaves it.
SUDO = {"SUDO_UID": str(DEVELOPER), "SUDO_GID": str(DEVELOPERS), "SUDO_USER": "developer", "HOME": "/root"}

CONNECT = """
import socket, sys, time
family, kind, address, port = sys.argv[1:]
began = time.monotonic()
with socket.socket(getattr(socket, "AF_" + family), getattr(socket, "SOCK_" + kind)) as one:
    one.settimeout(8)
    try:
        one.connect((address, int(port)))
        if kind == "DGRAM":
            one.send(b"x")
            one.recv(1)
        print("connected")
    except OSError as error:
        print(type(error).__name__, error.errno)
"""
LISTEN = """
import os, socket, sys
path = sys.argv[1].replace("@", chr(0))
folder, is_relative, name = path.partition("/./")
if is_relative:
    os.chdir(folder)
one = socket.socket(socket.AF_UNIX)
one.bind(name or path)
if path[0] != chr(0):
    os.chmod(path, 0o777)
one.listen()
print("ready", flush=True)
while True:
    one.accept()[0].send(b"reached")
"""
ASK = """
import socket, sys
one = socket.socket(socket.AF_UNIX)
try:
    one.connect(sys.argv[1].replace("@", chr(0)))
    print(one.recv(9).decode())
except OSError as error:
    print(type(error).__name__)
"""


class Laptop:
    """A host on which nothing of the product is installed or runs, but for a policy file."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def command(self, *words: str, agent: str = "one", options: tuple[str, ...] = ()) -> list[str | Path]:
        """Return the command line that runs `words`."""
        given: list[str | Path] = [
            "--policy",
            self.lab.policy_file,
            "--confdir",
            self.lab.confdir,
            "--agent",
            agent,
            *options,
        ]
        return [sys.executable, "-m", "egress_policy", "run", *given, "--", *words]

    def run(
        self,
        *words: str,
        agent: str = "one",
        options: tuple[str, ...] = (),
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        command = self.command(*words, agent=agent, options=options)
        return self.lab.run(command, env={**SUDO, **(env or {})}, stdin=stdin)

    def start(self, *words: str, agent: str = "one", log: str) -> subprocess.Popen[bytes]:
        return self.lab.start(self.command(*words, agent=agent), env=SUDO, log=log)

    def python(self, code: str, *arguments: str, agent: str = "one") -> str:
        """Run Python code confined, and return what it printed."""
        done = self.run(PYTHON, "-c", code, *arguments, agent=agent)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def has_ruleset(self) -> bool:
        return "egress-policy" in self.lab.run(["nft", "list", "tables"]).stdout

    def links(self) -> set[str]:
        shown = self.lab.run(["ip", "-json", "link", "show"]).stdout
        return {one["ifname"] for one in json.loads(shown)}

    def proxies(self) -> str:
        """The processes of the proxy's user in this host's network."""
        shown = self.lab.run(["ps", "-o", "pid=", "-u", str(PROXY)]).stdout.split()
        ours = self.lab.run(["readlink", "/proc/self/ns/net"]).stdout
        return " ".join(
            pid for pid in shown if self.lab.run(["readlink", f"/proc/{pid}/ns/net"]).stdout == ours
        )

    def is_clean(self) -> bool:
        return not (self.has_ruleset() or self.links() - {"lo", "uplink", CONTAINER_LINK} or self.proxies())


@pytest.fixture(scope="module")
def laptop() -> Iterator[Laptop]:
    """Its /run, /var/log and /var/lib are empty ones of the lab's own mount namespace."""
    with Lab("a.example") as lab:
        for folder in ("/run", "/var/log", "/var/lib", "/home"):
            done = lab.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "none", folder])
            assert done.returncode == 0, done.stderr
        for name, content in (("passwd", PASSWD), ("group", GROUP)):
            (lab.folder / name).write_text(content)
            assert lab.run(["mount", "--bind", lab.folder / name, f"/etc/{name}"]).returncode == 0
        lab.run(["install", "-d", "-o", str(DEVELOPER), "-g", str(DEVELOPERS), "/home/developer"])
        lab.run(["ip", "link", "add", CONTAINER_LINK, "type", "bridge"])
        # The proxy that `run` starts knows the lab's origins from mitmproxy's own configuration file.
        (lab.confdir / "config.yaml").write_text(f"ssl_verify_upstream_trusted_ca: {lab.internet_ca}\n")
        lab.write_policy(POLICY)
        yield Laptop(lab)


@pytest.fixture(scope="module")
def busy(laptop: Laptop) -> Iterator[Laptop]:
    """Another command runs already, so that each test need not wait for a proxy of its own."""
    resident = laptop.start("sh", "-c", "echo started; sleep 600", agent="resident", log="resident")
    laptop.lab.wait(resident, "resident", lambda: "started" in laptop.lab.output("resident"))
    yield laptop
    resident.terminate()
    resident.wait(30)


# On a clean machine


def test_one_command_makes_do_with_nothing_and_leaves_nothing(laptop: Laptop) -> None:
    """Ruleset, proxy, CA and link are there for the command; afterwards only the log of decisions is."""
    lab = laptop.lab
    script = "curl -sS http://a.example/; curl -sS --data x https://a.example/; exit 7"
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "egress_policy",
        "run",
        "--policy",
        lab.policy_file,
        "--agent",
        "one",
        "--",
    ]
    done = lab.run([*command, "sh", "-c", script], env=SUDO)
    assert done.returncode == 7, done.stderr
    assert '"server_name": null' in done.stdout
    assert '"code":"method_not_allowed"' in done.stdout
    assert done.stderr.splitlines() == [
        "egress-policy: no proxy runs: starting one",
        f"egress-policy: what it reached, and what was refused: egress-policy audit --agent one --audit {AUDIT}",
    ]
    assert laptop.is_clean()
    assert lab.run(["ls", "/run", "/var/lib"]).stdout.split() == [
        *("/run:", "egress-policy-run", "mount", "/var/lib:"),
    ]
    assert lab.run(["ls", "/run/egress-policy-run"]).stdout.split() == [
        *("keeper", "link-ep-one", "proxy.log", "turn", "users"),
    ]
    shown = lab.run([sys.executable, "-m", "egress_policy", "audit", "--agent", "one"]).stdout
    assert "a.example" in shown


def test_killed_outright_it_takes_everything_along(laptop: Laptop) -> None:
    """The command must not go on without us, and nobody is there to clean up."""
    running = laptop.start("sh", "-c", "echo started; exec sleep 4321", log="killed")
    laptop.lab.wait(running, "killed", lambda: "started" in laptop.lab.output("killed"))
    assert not laptop.is_clean()
    running.kill()
    running.wait(10)
    assert until(laptop.is_clean, 20)
    assert until(lambda: "sleep 4321" not in laptop.lab.run(["ps", "-e", "-o", "args="]).stdout)


def test_what_a_killed_keeper_left_the_next_command_takes_away(laptop: Laptop) -> None:
    lab = laptop.lab
    running = laptop.start("sh", "-c", "echo started; exec sleep 600", log="orphan")
    lab.wait(running, "orphan", lambda: "started" in lab.output("orphan"))
    shown = lab.run(["ps", "-e", "-o", "pid=,args="]).stdout
    (keeper,) = re.findall(
        rf"^ *(\d+) .*confined.standby {re.escape(str(lab.policy_file))}", shown, re.MULTILINE
    )
    os.kill(int(keeper), signal.SIGKILL)
    assert until(lambda: not laptop.proxies(), 10)
    assert laptop.has_ruleset()
    running.terminate()
    assert running.wait(30) == 128 + signal.SIGTERM
    assert laptop.run("curl", "-sSf", "https://a.example/").returncode == 0
    assert laptop.is_clean()


def test_a_ruleset_that_was_applied_meanwhile_stays(laptop: Laptop) -> None:
    """Whoever put the policy in force relies on it, whatever `run` had loaded before."""
    lab = laptop.lab
    running = laptop.start("sh", "-c", "echo started; exec sleep 600", log="applied")
    lab.wait(running, "applied", lambda: "started" in lab.output("applied"))
    lab.apply()
    running.terminate()
    running.wait(30)
    assert laptop.has_ruleset()
    assert not laptop.proxies()
    # A proxy is started for it, and the ruleset that was there stays.
    assert laptop.run("curl", "-sSf", "https://a.example/").returncode == 0
    assert laptop.has_ruleset()
    lab.run(["nft", "delete", "table", "inet", "egress-policy"])


def test_a_proxy_that_cannot_start_says_why_and_nothing_stays(laptop: Laptop) -> None:
    taken = "import socket; one = socket.create_server(('', 8053)); print('ready', flush=True); input()"
    with subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{laptop.lab._inside.name('host')}", sys.executable, "-c", taken],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as squatter:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == b"ready\n"
        done = laptop.run("true")
        squatter.kill()
    assert done.returncode == 125
    assert "egress-policy: the proxy could not be started: " in done.stderr
    assert "cannot listen on dns@0.0.0.0:8053" in done.stderr
    assert laptop.is_clean()


# What it can reach


def test_what_is_permitted_is_reached_and_what_is_denied_is_told(busy: Laptop) -> None:
    """The CA is trusted by what the variables name; the second command says nothing of its own."""
    done = busy.run("curl", "-sSf", "https://a.example/")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["server_name"] == "a.example"
    denied = busy.run("curl", "-sS", "--data", "x", "https://a.example/")
    assert json.loads(denied.stdout)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("family", "kind", "address", "port", "outcome"),
    [
        pytest.param("INET", "STREAM", "45.90.0.10", "22", errno.ECONNREFUSED, id="TCP"),
        pytest.param("INET", "DGRAM", "45.90.0.10", "443", errno.EHOSTUNREACH, id="QUIC"),
        pytest.param("INET6", "STREAM", "2a0f:9000::10", "443", errno.ENETUNREACH, id="IPv6"),
        pytest.param("INET", "STREAM", HOST_ADDRESSES[0], "22", errno.ECONNREFUSED, id="the host"),
        pytest.param("INET", "STREAM", "10.213.0.3", "8080", errno.ECONNREFUSED, id="the proxy itself"),
        pytest.param("INET", "STREAM", "10.213.0.6", "22", errno.ECONNREFUSED, id="another command"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_at_once(
    busy: Laptop, family: str, kind: str, address: str, port: str, outcome: int
) -> None:
    before = busy.lab.packets_to("0.0.0.0/0", int(port))
    told = busy.python(CONNECT, family, kind, address, port)
    number = int(told.split()[1])
    assert number == outcome, os.strerror(number)
    assert busy.lab.packets_to("0.0.0.0/0", int(port)) == before


def test_what_was_refused_is_on_record_with_the_agent(busy: Laptop) -> None:
    to = ("INET", "STREAM", "45.90.0.77", "2222")
    # The kernel's report names the link by number, and whoever reads it must still find it.
    running = busy.start(PYTHON, "-c", f"{CONNECT}\ntime.sleep(300)", *to, log="refused")
    audit = ["cat", AUDIT]

    def dropped() -> list[dict[str, object]]:
        records = map(json.loads, busy.lab.run(audit).stdout.splitlines())
        return [one for one in records if one["event"] == "drop" and one.get("port") == 2222]

    is_recorded = until(lambda: bool(dropped()), 20)
    running.terminate()
    running.wait(30)
    assert is_recorded
    assert dropped()[0]["agent"] == "one"


def test_two_at_once_have_their_own_scope_each(busy: Laptop) -> None:
    field = "X-Agent-Scope: sandbox-"
    script = f"curl -sS -H '{field}one' https://a.example/; echo; curl -sS -H '{field}two' https://a.example/; echo"
    one = busy.start("sh", "-c", script, agent="one", log="one")
    two = busy.start("sh", "-c", script, agent="two", log="two")
    assert (one.wait(60), two.wait(60)) == (0, 0)
    for name, other in (("one", 1), ("two", 0)):
        refused = busy.lab.output(name)
        assert refused.count('"code":"scope_not_allowed"') == 1, refused
        assert f'"agent":"{name}"' in refused
        assert refused.count('"server_name": "a.example"') == 1
        assert (refused.index("scope_not_allowed") > refused.index("server_name")) == bool(other)


def test_an_agent_runs_one_command_at_a_time(busy: Laptop) -> None:
    done = busy.run("true", agent="resident")
    assert done.returncode == 125
    assert "agent resident runs a command already" in done.stderr


def test_names_come_from_the_policys_dns(busy: Laptop) -> None:
    """Over UDP and TCP, on a link that was not there when the proxy started."""
    lookup = "import socket; print(socket.gethostbyname('never.example'))"
    assert busy.python(lookup).startswith("198.1")
    over_tcp = (
        "import socket, struct; s = socket.create_connection(('192.0.2.1', 53), 8);"
        "q = struct.pack('!6H', 7, 256, 1, 0, 0, 0) + b'\\x05never\\x07example\\0' + struct.pack('!2H', 1, 1);"
        "s.sendall(struct.pack('!H', len(q)) + q); print(s.recv(512)[2:4].hex())"
    )
    assert busy.python(over_tcp) == "0007"
    assert not [one for one in busy.lab.queries() if one["name"] == "never.example"]


# What the command is given


@pytest.mark.parametrize(
    ("words", "status"),
    [
        pytest.param(("true",), 0, id="success"),
        pytest.param(("sh", "-c", "exit 3"), 3, id="failure"),
        pytest.param(("sh", "-c", "kill -KILL $$"), 137, id="killed"),
        pytest.param(("no-such-program",), 127, id="not found"),
        pytest.param(("/etc",), 126, id="no program"),
    ],
)
def test_the_exit_status_is_the_commands(busy: Laptop, words: tuple[str, ...], status: int) -> None:
    assert busy.run(*words).returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(busy: Laptop, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 9' {number.name.removeprefix('SIG')}; echo started; while :; do sleep 0.05; done"
    log = f"signal-{number}"
    running = busy.start("sh", "-c", script, log=log)
    busy.lab.wait(running, log, lambda: "started" in busy.lab.output(log))
    running.send_signal(number)
    assert running.wait(30) == 9
    assert busy.lab.output(log).count("caught") == 1


def test_input_and_output_are_the_callers(busy: Laptop) -> None:
    done = busy.run("sh", "-c", "cat; echo problem >&2", stdin="spoken\n" * 5000)
    assert done.stdout == "spoken\n" * 5000
    assert done.stderr == "problem\n"


class Terminal:
    """A command on a terminal of its own, as a shell would start it."""

    def __init__(self, laptop: Laptop, *words: str) -> None:
        lab = laptop.lab
        command = lab._inside._command(laptop.command(*words), 0, "host", ())
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            try:
                os.execvpe(command[0], command, {**lab._inside.environment, **SUDO})
            finally:
                os._exit(99)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def expect(self, text: str) -> None:
        """Read until something is shown."""
        end = time.monotonic() + 60
        while text not in self.shown:
            if time.monotonic() > end:
                os.kill(self._pid, signal.SIGKILL)
                raise AssertionError(self.shown)
            if select.select([self._terminal], [], [], 1)[0]:
                try:
                    self.shown += os.read(self._terminal, 4096).decode(errors="replace")
                except OSError:
                    break
        assert text in self.shown, self.shown

    def status(self) -> int:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                os.close(self._terminal)
                return os.waitstatus_to_exitcode(status)
            if select.select([self._terminal], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self._terminal, 4096).decode(errors="replace")
                except OSError:
                    time.sleep(0.05)
        os.kill(self._pid, signal.SIGKILL)
        raise AssertionError(self.shown)


def test_ctrl_c_reaches_the_command_once(busy: Laptop) -> None:
    script = "trap 'echo cau''ght; n=$((n+1))' INT; test -t 0 && echo sta''rted; read x; read x; echo n=$n.; exit $n"
    terminal = Terminal(busy, "bash", "-c", script)
    terminal.expect("started")
    terminal.type("\x03")
    terminal.expect("caught")
    # Whatever else was sent would have come before these.
    terminal.type("a\nb\n")
    terminal.expect("n=1.")
    assert terminal.status() == 1


def test_a_shell_has_its_jobs(busy: Laptop) -> None:
    """It makes itself the terminal's foreground, and hands the terminal on."""
    terminal = Terminal(busy, "bash", "--norc", "-i")
    terminal.expect("$ ")
    terminal.type("sh -c 'echo sta''rted; exec sleep 400'\n")
    terminal.expect("started")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.type("disown %1; exit 5\n")
    assert terminal.status() == 5
    assert "no job control" not in terminal.shown


def test_it_is_the_callers_user_with_nothing_more(busy: Laptop) -> None:
    """Not in groups that lead to root; a group for a project stays."""
    status = busy.run("cat", "/proc/self/status").stdout
    held = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert held["Uid"].split() == [str(DEVELOPER)] * 4
    assert held["Gid"].split() == [str(DEVELOPERS)] * 4
    assert set(held["Groups"].split()) == {str(DEVELOPERS), str(PROJECT)}
    assert held["NoNewPrivs"] == "1"
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(held[kind], 16) == 0, kind
    for kind in ("SigBlk", "SigIgn"):
        # Signals 32 and 33 are the C library's own.
        assert int(held[kind], 16) & 0x7FFFFFFF == 0, kind


def test_another_user_can_be_named(busy: Laptop) -> None:
    assert busy.run("id", "-u", options=("--user", str(SPARE))).stdout == f"{SPARE}\n"


def test_its_variables_are_its_users_and_name_no_way_around(busy: Laptop) -> None:
    given = {
        "https_proxy": "http://192.0.2.1:3128",
        "SSH_AUTH_SOCK": "/tmp/agent",
        "KEPT": "yes",
        "SSL_CERT_DIR": "/x",
    }
    shown = busy.run("env", env=given).stdout
    variables = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    assert variables["HOME"] == "/home/developer"
    assert variables["USER"] == variables["LOGNAME"] == "developer"
    assert variables["KEPT"] == "yes"
    assert variables["SSL_CERT_FILE"] == "/run/egress-policy/trust/bundle.pem"
    assert not {"https_proxy", "SSH_AUTH_SOCK", "SSL_CERT_DIR", "SUDO_UID", "SUDO_USER"} & set(variables)
    assert "ANTHROPIC_CUSTOM_HEADERS" not in variables


def test_a_scope_is_in_the_variables_of_those_that_send_it(busy: Laptop) -> None:
    field = 'sandbox-two;reason="try"'
    done = busy.run("printenv", "ANTHROPIC_CUSTOM_HEADERS", agent="two", options=("--scope", field))
    assert done.stdout == f"X-Agent-Scope: {field}\n"
    assert done.stderr == ""


def test_without_a_scope_or_a_default_it_says_what_will_happen(busy: Laptop) -> None:
    assert "agent two has no default_scope" in busy.run("true", agent="two").stderr


def test_it_works_where_it_was_called(busy: Laptop) -> None:
    """Below /tmp too, which otherwise is its own."""
    project = busy.lab.folder / "project"
    if not project.exists():
        project.mkdir()
        os.chown(project, DEVELOPER, DEVELOPERS)
    done = busy.lab.run(
        [
            "sh",
            "-c",
            'cd "$0" && exec "$@"',
            project,
            *busy.command("sh", "-c", "pwd; echo done > made; ls /tmp"),
        ],
        env=SUDO,
    )
    assert done.stdout.split() == [str(project), busy.lab.folder.name], done.stderr
    assert (project / "made").read_text() == "done\n"
    assert (project / "made").stat().st_uid == DEVELOPER


# Ways around


@pytest.fixture
def listener(busy: Laptop, request: pytest.FixtureRequest) -> Iterator[str]:
    """Somebody of the command's own user, outside, who would do what he is told over a Unix socket."""
    path: str = request.param
    lab = busy.lab
    parent = Path(path).parent
    if not path.startswith("@"):
        lab.run(["install", "-d", "-o", str(DEVELOPER), str(parent)])
    log = f"listener-{path.replace('/', '-')}"
    server = lab.start([sys.executable, "-c", LISTEN, path], uid=DEVELOPER, log=log)
    lab.wait(server, log, lambda: "ready" in lab.output(log))
    assert lab.python(ASK, path, uid=DEVELOPER).stdout == "reached\n"
    yield path
    server.kill()
    server.wait(10)
    lab.run(["rm", "-f", path])


@pytest.mark.parametrize(
    "listener",
    [
        pytest.param(f"/run/user/{DEVELOPER}/systemd/private", id="systemd"),
        pytest.param("/run/docker.sock", id="docker"),
        pytest.param("/tmp/tmux-1/default", id="tmux"),
        pytest.param("/home/developer/.gnupg/S.gpg-agent", id="home"),
        pytest.param("/var/lib/database/socket", id="elsewhere"),
        pytest.param("/home/developer/tool/./socket", id="relative"),
    ],
    indirect=True,
)  # fmt: skip
def test_no_socket_of_this_host_is_in_sight(busy: Laptop, listener: str) -> None:
    """The command's user could have a process outside do what it likes (`systemd-run --user`)."""
    for agent in ("one", "account") if listener.startswith("/run/user") else ("one",):
        assert busy.python(ASK, listener, agent=agent) in {
            "FileNotFoundError",
            "PermissionError",
        }


@pytest.mark.parametrize("listener", ["@abstract"], indirect=True)
def test_no_abstract_socket_is_in_sight(busy: Laptop, listener: str) -> None:
    assert busy.python(ASK, listener) == "ConnectionRefusedError"


def test_the_control_socket_is_not_the_commands(busy: Laptop) -> None:
    """It has its owner's uid, and would approve what it asks for itself."""
    control = "/run/egress-policy/control.sock"
    assert busy.lab.run(["test", "-S", control]).returncode == 0
    assert busy.python(ASK, control) == "FileNotFoundError"


@pytest.mark.parametrize("folder", ["/run", "/tmp", "/dev/shm", "/proc"])
def test_what_is_covered_cannot_be_uncovered(busy: Laptop, folder: str) -> None:
    """A user namespace gives it every capability over what it mounts itself, and none over what was there."""
    done = busy.run("unshare", "--user", "--map-root-user", "--mount", "umount", folder)
    assert done.returncode == 32, done.stderr
    assert busy.run("unshare", "--user", "--map-root-user", "--mount", "true").returncode == 0


def test_no_process_of_this_host_is_in_sight(busy: Laptop) -> None:
    """Those of its user could be made to act for it (ptrace(2), /proc/PID/mem)."""
    outside = busy.lab.start(["sleep", "500"], uid=DEVELOPER, log="outside")
    shown = busy.run("ps", "-e", "-o", "args=").stdout
    assert "sleep 500" not in shown
    assert shown.splitlines()[1:] == ["ps -e -o args="]
    assert busy.run("kill", "-0", str(outside.pid)).returncode == 1
    outside.kill()
    outside.wait(10)


def test_no_shared_memory_is_in_sight(busy: Laptop) -> None:
    lab = busy.lab
    made = lab.run(["ipcmk", "--shmem", "64", "--mode", "0666"])
    assert made.returncode == 0, made.stderr
    number = made.stdout.split()[-1]
    try:
        assert f" {number} " in lab.run(["ipcs", "--shmems"]).stdout
        assert f" {number} " not in busy.run("ipcs", "--shmems").stdout
    finally:
        lab.run(["ipcrm", "--shmem-id", number])


def test_setuid_programs_give_it_nothing(busy: Laptop) -> None:
    program = busy.lab.folder / "setuid-id"
    if not program.exists():
        program.write_bytes(Path("/usr/bin/id").read_bytes())
        program.chmod(0o4755)
    assert busy.run(str(program), "-u").stdout == f"{DEVELOPER}\n"


def test_no_open_file_of_ours_is_left_to_it(busy: Laptop) -> None:
    shown = busy.python("import os; print(sorted(os.listdir('/proc/self/fd')))")
    assert shown == str(["0", "1", "2", "3"])


def test_its_processes_end_with_it(busy: Laptop) -> None:
    done = busy.run("sh", "-c", "setsid sleep 4444 >/dev/null 2>&1 & echo")
    assert done.returncode == 0
    assert "sleep 4444" not in busy.lab.run(["ps", "-e", "-o", "args="]).stdout


def test_the_link_is_gone_when_it_returns(busy: Laptop) -> None:
    assert busy.run("true").returncode == 0
    assert "ep-one" not in busy.links()


# An agent that is a user of this host


def test_an_agents_own_user_runs_in_place(busy: Laptop) -> None:
    """The kernel knows it by its uid: what it may reach is the same, and it says so in its own name."""
    assert busy.run("id", "-u", agent="account").stdout == f"{ALICE}\n"
    done = busy.run("curl", "-sSf", "https://a.example/", agent="account")
    assert json.loads(done.stdout)["server_name"] == "a.example"
    denied = busy.run("curl", "-sS", "--data", "x", "https://a.example/", agent="account")
    assert json.loads(denied.stdout)["agent"] == "account"
    assert busy.python(CONNECT, "INET", "STREAM", "45.90.0.10", "22", agent="account").endswith(
        f" {errno.ECONNREFUSED}"
    )


def test_of_several_users_one_is_chosen(busy: Laptop) -> None:
    assert busy.run("id", "-u", agent="several").stdout == "2001\n"
    assert busy.run("id", "-u", agent="several", options=("--user", "2003")).stdout == "2003\n"


# What is not run


def test_it_is_killed_when_the_ruleset_is_gone(laptop: Laptop, busy: Laptop) -> None:
    """Without rules its packets would be nobody's."""
    running = busy.start("sh", "-c", "echo started; sleep 300", log="unheld")
    busy.lab.wait(running, "unheld", lambda: "started" in busy.lab.output("unheld"))
    ruleset = busy.lab.run(["nft", "list", "ruleset"]).stdout
    busy.lab.run(["nft", "delete", "element", "inet", "egress-policy", "agent-links", '{ "ep-one" }'])
    try:
        assert running.wait(30) == 125
        assert "does not hold the agent to the policy any more" in busy.lab.output("unheld")
        again = busy.run("true")
        assert again.returncode == 125
        assert "does not name agent one: run `egress-policy apply`" in again.stderr
    finally:
        busy.lab.run(["nft", "add", "element", "inet", "egress-policy", "agent-links", '{ "ep-one" }'])
    assert "ep-one" in ruleset


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        pytest.param(["--", "true"], 2, "Missing option '--agent'", id="no agent"),
        pytest.param(["--agent", "one"], 2, "Missing argument 'COMMAND", id="no command"),
        pytest.param(["--agent", "nobody", "true"], 2, "the policy has no agent 'nobody'", id="unknown agent"),
        pytest.param(["--agnet", "one", "true"], 2, "No such option '--agnet'", id="unknown option"),
        pytest.param(["--agent", "one", "--scope", "=", "true"], 2, "--scope", id="malformed scope"),
        pytest.param(
            ["--agent", "one", "--scope", "sandbox-two", "true"], 2, "may not use sandbox-two", id="not its scope"
        ),
        pytest.param(["--agent", "one", "--user", "root", "true"], 125, "must not be root", id="as root"),
        pytest.param(["--agent", "one", "--user", "captain", "true"], 125, "primary group of captain", id="docker's"),
        pytest.param(["--agent", "one", "--user", str(PROXY), "true"], 125, "the proxy's user", id="as the proxy"),
        pytest.param(["--agent", "one", "--user", "carol", "true"], 125, "has no user carol", id="no such user"),
        pytest.param(["--agent", "account", "--user", "0", "true"], 125, "leave --user out", id="not its user"),
        pytest.param(["--agent", "wide", "true"], 125, "is not one IPv4 address", id="a network"),
        pytest.param(["--agent", "six", "true"], 125, "is not one IPv4 address", id="IPv6"),
        pytest.param(["--agent", "beside", "true"], 125, "is agent besides's", id="addresses side by side"),
        pytest.param(["--agent", "bridged", "true"], 125, "the link br-agents is there already", id="a link in use"),
        pytest.param(["--policy", "/etc/hostname", "--agent", "one", "true"], 125, "the policy has errors", id="bad policy"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_said(busy: Laptop, words: list[str], status: int, message: str) -> None:
    command: list[str | Path] = [
        "run",
        "--policy",
        busy.lab.policy_file,
        "--confdir",
        busy.lab.confdir,
        *words,
    ]
    command = [sys.executable, "-m", "egress_policy", *command]
    done = busy.lab.run(command, env=SUDO)
    assert done.returncode == status, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("egress-policy: ")
    assert len(done.stderr.splitlines()) == (2 if "bad" in message or "errors" in message else 1)


def test_without_root_it_says_so(busy: Laptop) -> None:
    done = busy.lab.run(busy.command("true"), uid=DEVELOPER)
    assert done.returncode == 125
    assert (
        done.stderr == "egress-policy: a network namespace and the firewall need root: start it with sudo\n"
    )


def test_root_itself_must_say_as_whom(busy: Laptop) -> None:
    done = busy.lab.run(busy.command("true"))
    assert done.returncode == 125
    assert "as whom? Start it with sudo, or say --user NAME" in done.stderr


def test_a_proxy_with_another_policy_is_found_out(busy: Laptop) -> None:
    other = busy.lab.folder / "other.yaml"
    other.write_text(POLICY.replace("  one: {", "  stranger: {"))
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "egress_policy",
        "run",
        "--policy",
        other,
        "--agent",
        "stranger",
        "true",
    ]
    done = busy.lab.run(command, env=SUDO)
    assert done.returncode == 125
    assert "has another policy, without agent stranger" in done.stderr
