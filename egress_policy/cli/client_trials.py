"""Has this host's own clients ask a server with a certificate of the proxy's CA, as the agents' users.

Whatever keeps one from trusting it shows: a program that reads another variable, a `~/.curlrc` or `.npmrc` that names
another CA. They run with the variables that `egress-policy env` prints.
"""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from egress_policy.cli.finding import Finding, Result
from egress_policy.cli.ways_around import AgentUids
from egress_policy.policy import Policy
from egress_policy.trial_server import ADDRESS, TrialServer
from egress_policy.trust_kit import TrustFiles, variables

_PYTHON = "import sys, urllib.request as client; client.urlopen(sys.argv[1])"
_NODE = "require('https').get(process.argv[1], r => r.resume()).on('error', e => { throw e })"
# How each asks for URL, once; what it makes of the answer does not matter.
_CLIENTS: dict[str, Sequence[str]] = {
    "curl": ("curl", "-sS", "-o", "/dev/null", "URL"),
    "wget": ("wget", "-nv", "--tries=1", "-O", "/dev/null", "URL"),
    "git": ("git", "ls-remote", "URL"),
    "Python": ("python3", "-c", _PYTHON, "URL"),
    "pip": ("pip", "download", "--no-cache-dir", "--retries=0", "--index-url", "URL", "none"),
    "uv": ("uv", "pip", "install", "--dry-run", "--no-cache", "--system", "--index-url", "URL", "none"),
    "Node": ("node", "-e", _NODE, "URL"),
    "npm": ("npm", "ping", "--fetch-retries=0", "--logs-max=0", "--registry", "URL/"),
    "apt": ("/usr/lib/apt/apt-helper", "-o", "Acquire::Retries=0", "download-file", "URL", "/dev/null"),
}
# Where others than root find programs: root's own PATH may lead to what they cannot reach.
_PATH = "/usr/local/bin:/usr/bin:/bin"
_PATIENCE = 30.0
_AT_ONCE = 4
_MAX_REASON = 200
# An agent's settings may have a client say something without end (git's `core.sshCommand`): no file grows beyond 16 MiB.
_BOUNDED = 'ulimit -f 32768; exec "$0" "$@"'
_MAX_SAID = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Account:
    agent: str
    uid: int
    gid: int
    home: str


def try_clients(authority: Path, trust: TrustFiles, policy: Policy, agents: AgentUids) -> Iterator[Finding]:
    """Try each client that is installed, for each agent with a user. Needs root.

    `authority` is mitmproxy's file of the CA's key and certificate.
    """
    try:
        with TrialServer(authority) as server:
            for account in map(_account, agents):
                ports = policy.agents[account.agent].loopback
                if any(low <= server.port <= high for low, high in ports):
                    yield from _try_as(account, server, trust)
    except (OSError, ValueError, TypeError) as error:
        yield Finding("CA", Result.WARNING, f"no certificate can be made with {authority}: {error}")


def _account(agent: tuple[int, int, str]) -> _Account:
    low, high, name = agent
    for entry in pwd.getpwall():
        if low <= entry.pw_uid <= high:
            return _Account(name, entry.pw_uid, entry.pw_gid, entry.pw_dir)
    return _Account(name, low, low, "/nonexistent")


def _try_as(account: _Account, server: TrialServer, trust: TrustFiles) -> Iterator[Finding]:
    check = f"clients of agent {account.agent}"
    installed = [name for name, argv in _CLIENTS.items() if shutil.which(argv[0], path=_PATH)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        reasons = dict(
            zip(installed, pool.map(lambda name: _try(name, account, server, trust), installed), strict=True)
        )
    trusting = [name for name, reason in reasons.items() if reason is None]
    if trusting:
        yield Finding(check, Result.OK, f"{', '.join(trusting)} trust the proxy's CA, with egress-policy env")
    for name, reason in reasons.items():
        if reason is not None:
            yield Finding(
                check,
                Result.WARNING,
                f"{name} does not trust the proxy's CA: {reason}",
                f"look for settings that name other certificates, system-wide and in {account.home}",
            )


def _try(name: str, account: _Account, server: TrialServer, trust: TrustFiles) -> str | None:
    """Return why a client did not come through, or None."""
    path = f"/{account.uid}/{name}"
    url = f"https://{ADDRESS}:{server.port}{path}"
    argv = [argument.replace("URL", url) for argument in _CLIENTS[name]]
    try:
        with tempfile.TemporaryFile() as said:
            subprocess.run(
                ["sh", "-c", _BOUNDED, *argv],
                env={"PATH": _PATH, "HOME": account.home, "LANG": "C.UTF-8", **variables(trust)},
                user=account.uid,
                group=account.gid,
                extra_groups=_groups(account),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                timeout=_PATIENCE,
                check=False,
                start_new_session=True,
            )
            said.seek(0)
            reason = _reason(said.read(_MAX_SAID).decode(errors="replace"))
    except subprocess.TimeoutExpired:
        reason = f"no answer after {_PATIENCE:.0f} s"
    except OSError as error:
        return error.strerror or str(error)
    return None if server.was_asked(path) else reason


def _groups(account: _Account) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(account.uid).pw_name, account.gid)
    except KeyError:
        return []


def _reason(said: str) -> str:
    """Return the line that names the trouble; an agent's own settings may have put anything into it."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it said nothing"]
    telling = [line for line in lines if re.search(r"certif|issuer|\bCA\b", line, re.IGNORECASE)]
    line = (telling or lines)[-1][:_MAX_REASON]
    return "".join(character if character.isprintable() else "?" for character in line)
