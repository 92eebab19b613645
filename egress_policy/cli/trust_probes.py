"""Whether runtimes on this host would trust the proxy: its CA, and the files that `egress-policy env` names."""

import os
import pwd
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from egress_policy.cli.finding import Finding, Result
from egress_policy.cli.permissions import Holder
from egress_policy.cli.ways_around import AgentUids
from egress_policy.trust_files import Authority, TrustError, find_faults, system_roots
from egress_policy.trust_kit import BUNDLE_VARIABLES, TrustFiles, import_command

_SOON = timedelta(days=30)
_WRITE = "egress-policy env --write"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_DATABASE = ".pki/nssdb/cert9.db"
_LARGEST = 16 * 1024 * 1024
"""Bytes that are read of a database."""
_MOST_STEPS = 10_000_000
"""Of SQLite's machine: less than a second; a look-up among hundreds of certificates takes thousands."""
_IS_TABLE = "SELECT 1 FROM sqlite_schema WHERE name = 'nssPublic' AND type = 'table'"


def validity(authority: Authority) -> Finding:
    """Check that the CA's time has come, and is not over soon: no runtime trusts it after that."""
    check, now = "CA", datetime.now(UTC)
    remedy = "move the CA's files away, restart the proxy, which makes a new one, and run egress-policy env --write"
    if not authority.begins <= now < authority.ends:
        return Finding(
            check,
            Result.FAILED,
            f"its certificate counts from {authority.begins:%Y-%m-%d} to {authority.ends:%Y-%m-%d}: nobody trusts it",
            remedy,
        )
    if authority.ends - now < _SOON:
        return Finding(check, Result.WARNING, f"its certificate ends on {authority.ends:%Y-%m-%d}", remedy)
    return Finding(check, Result.OK, f"its certificate counts until {authority.ends:%Y-%m-%d}")


def trust_kit(authority: Authority, trust: TrustFiles, agents: Sequence[Holder]) -> Iterator[Finding]:
    """Check the files that the variables name: are they of this CA, as new as the system's roots, and readable?"""
    check = "trust"
    readers = {
        trust.bundle: f"{', '.join(BUNDLE_VARIABLES.values())}, wget and apt",
        trust.java: "Java",
        trust.wget: "wget",
        trust.apt: "apt",
    }
    faults = find_faults(trust, authority.certificate)
    for path, fault in faults.items():
        yield Finding(check, Result.WARNING, f"{readers[path]} would refuse the proxy: {fault}", _WRITE)
    whole = [path for path in readers if path not in faults]
    for agent in agents:
        closed = next((path for path in whole if not agent.may_read(path)), None)
        if closed is not None:
            yield Finding(
                check, Result.WARNING, f"{agent.name} may not read {closed}", f"chmod a+rX {closed.parent}"
            )
    if trust.bundle in whole and _roots_changed(trust.bundle):
        yield Finding(
            check, Result.WARNING, f"the system's roots were changed after {trust.bundle} was written", _WRITE
        )
    if not faults:
        yield Finding(check, Result.OK, f"the files in {trust.directory} hold the proxy's CA")


def _roots_changed(bundle: Path) -> bool:
    try:
        return system_roots().stat().st_mtime > bundle.stat().st_mtime
    except TrustError:
        return False


def browsers(authority: Authority, trust: TrustFiles, agents: AgentUids) -> Iterator[Finding]:
    """Check agents' certificate databases, where there is a browser that reads them."""
    if not any(map(shutil.which, _BROWSERS)):
        return
    for low, high, agent in agents:
        for account in (entry for entry in pwd.getpwall() if low <= entry.pw_uid <= high):
            if not _has(Path(account.pw_dir, _DATABASE), authority.certificate):
                yield Finding(
                    f"agent {agent}",
                    Result.WARNING,
                    f"Chromium would refuse the proxy: {account.pw_name}'s certificate database is without its CA",
                    f"as {account.pw_name}: {import_command(trust)}",
                )


def _has(database: Path, certificate: bytes) -> bool:
    """Look a certificate up in NSS's database: a11 is the column of CKA_VALUE (0x11), as NSS's sdb.c names it.

    The file is the agent's, and we may be root: it may be a pipe, or a view that has no end.
    """
    content = _content(database)
    if not content:
        return False
    try:
        with closing(sqlite3.connect(":memory:")) as opened:
            opened.deserialize(content)
            opened.set_progress_handler(lambda: True, _MOST_STEPS)
            is_table = opened.execute(_IS_TABLE).fetchone()
            found = (
                is_table
                and opened.execute("SELECT 1 FROM nssPublic WHERE a11 = ?", (certificate,)).fetchone()
            )
    except sqlite3.Error:
        return False
    return found is not None


def _content(path: Path) -> bytes | None:
    # To open a pipe that nobody writes to must not wait.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError), os.fdopen(os.open(path, flags), "rb") as file:
        return file.read(_LARGEST) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    return None
