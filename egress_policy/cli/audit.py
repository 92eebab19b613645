"""`egress-policy audit`: who reached what, and when."""

import os
import pwd
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import click
import msgspec
from rich.table import Table

from egress_policy.accounts import AccountError, proxy_uid
from egress_policy.audit import Record
from egress_policy.audit_chain import Finding, Verification
from egress_policy.audit_files import AuditError
from egress_policy.audit_query import Group, Kind, Query, grouped, one_line, read_since
from egress_policy.audit_reading import read_lines, read_records
from egress_policy.cli.options import Host, audit_option, check_log, json_option, policy_option
from egress_policy.cli.tables import console
from egress_policy.journal import JournalError, told
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError

_INTERVAL = 0.3
_MOST_FINDINGS = 20
_OUTCOMES = ("permit", "deny", "fail")


class _Since(click.ParamType[datetime]):
    name = "TIME"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            return read_since(value, datetime.now(UTC))
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no duration such as 90s, 1h or 7d, and no time such as 2026-01-31T09:00Z",
                param,
                ctx,
            )


@click.command(epilog="Example: egress-policy audit --since 24h --scope sandbox-alice --outcome deny")
@click.option("--since", type=_Since(), help="Only from then on: a duration such as 1h, or a time.")
@click.option("--scope", help="Only this scope.")
@click.option("--agent", help="Only this agent.")
@click.option("--host", type=Host(), help="Only this name (or *.name, or address).")
@click.option("--outcome", type=click.Choice(_OUTCOMES), help="Only this outcome.")
@click.option("--lines", is_flag=True, help="One line for each record, not groups with counts.")
@click.option("--follow", is_flag=True, help="Go on with what is written from now on; Ctrl-C ends it.")
@click.option("--verify", is_flag=True, help="See whether lines were removed, changed or moved.")
@click.option(
    "--journal",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="With --verify: what `journalctl -o json` printed, for a log of another machine.",
)
@policy_option
@audit_option
@json_option
def audit(
    since: datetime | None,
    scope: str | None,
    agent: str | None,
    host: str | None,
    outcome: str | None,
    lines: bool,
    follow: bool,
    verify: bool,
    journal: Path | None,
    policy: Path,
    audit: str,
    as_json: bool,
) -> None:
    """Say who reached what, and when; who did not, and why. Counts by destination, unless --lines or --json.

    Who reached a host: --host. What a scope did today: --scope, --since 24h. What was refused: --outcome deny.
    """
    if verify and (since or scope or agent or host or outcome or lines or follow):
        raise click.UsageError("--verify looks at the whole log: leave what chooses or shows records out")
    if journal and not verify:
        raise click.UsageError("--journal goes with --verify")
    check_log(audit)
    try:
        if verify:
            sys.exit(_verify(audit, policy, journal, as_json=as_json))
        query = Query(since, scope, agent, host, outcome)
        end = _status(Path(audit))
        records = (record for record in read_records(audit, since) if query.matches(record))
        if as_json or lines or follow:
            _print_each(records, as_json=as_json)
        else:
            _print_groups(grouped(records))
        if follow:
            _print_each(filter(query.matches, _new_records(Path(audit), end)), as_json=as_json)
    except AuditError as error:
        raise click.ClickException(str(error)) from None


def _print_each(records: Iterable[Record], *, as_json: bool) -> None:
    encoder = msgspec.json.Encoder()
    for record in records:
        click.echo(encoder.encode(record) if as_json else one_line(record))


def _print_groups(groups: dict[Kind, Group]) -> None:
    if not groups:
        click.echo("Nothing of the kind is on record.")
        return
    table = Table(box=None, pad_edge=False)
    for title in ("COUNT", "LAST", "OUTCOME", "AGENT", "SCOPE", "DESTINATION"):
        table.add_column(
            title,
            justify="right" if title == "COUNT" else "left",
            no_wrap=title in {"COUNT", "LAST"},
            overflow="fold",
        )
    for kind, group in sorted(groups.items(), key=lambda one: (-one[1].count, one[0])):
        agent, scope, destination, outcome, code = kind
        last = group.last[5:16].replace("T", " ")
        table.add_row(str(group.count), last, code or outcome, agent, scope, destination)
    console().print(table)


def _status(path: Path) -> os.stat_result | None:
    """Between a rotation and the next record there is no file."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _new_records(path: Path, end: os.stat_result | None) -> Iterator[Record]:
    """Yield what is appended from `end` on, also to the file that follows a rotation."""
    decoder = msgspec.json.Decoder(Record)
    while _status(path) is None:
        time.sleep(_INTERVAL)
    file: TextIO = path.open(errors="backslashreplace")
    if end is not None and os.fstat(file.fileno()).st_ino == end.st_ino:
        file.seek(end.st_size)
    successor: TextIO | None = None
    rest = ""
    while True:
        rest += file.read()
        *whole, rest = rest.split("\n")
        for line in filter(None, whole):
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError:
                continue
        if whole:
            continue
        if successor is not None:
            # Read to its end after it was rotated away: nothing more comes.
            file.close()
            file, successor, rest = successor, None, ""
            continue
        sys.stdout.flush()
        time.sleep(_INTERVAL)
        successor = _successor(path, file)


def _successor(path: Path, file: TextIO) -> TextIO | None:
    """Open the file that has taken a log's place, if another has."""
    try:
        if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return None
        return path.open(errors="backslashreplace")
    except FileNotFoundError:
        return None


def _verify(audit: str, policy: Path, journal: Path | None, *, as_json: bool) -> int:
    try:
        anchored = told({0, _proxy(policy)}, audit, journal)
        without = "" if anchored else "the journal has no hash of this log"
    except JournalError as error:
        anchored, without = [], str(error)
    verification = Verification(anchored)
    breaks = 0
    said: list[Finding] = []
    for finding in verification.follow(read_lines(audit)):
        breaks += finding.is_break
        if breaks > _MOST_FINDINGS:
            continue
        said.append(finding)
        if not as_json:
            click.echo(str(finding), err=finding.is_break)
    missing = len(verification.missing)
    if as_json:
        document = {
            "whole": not breaks and not missing,
            "records": verification.records,
            "newest": verification.newest,
            "breaks": breaks,
            "findings": said,
            "missing": missing,
            "without_journal": without or None,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
        return 1 if breaks or missing else 0
    if missing:
        click.echo(
            f"{missing} of the hashes that the journal was told are in no line: the log was cut or rewritten",
            err=True,
        )
    if without:
        click.echo(
            f"egress-policy: {without}: an end that was cut off, or a log written anew, is not noticed",
            err=True,
        )
    if breaks or missing:
        click.echo(f"NOT WHOLE: {breaks} breaks in {verification.records} records.")
        return 1
    click.echo(f"Whole: {verification.records} records, the newest with the hash {verification.newest}.")
    return 0


def _proxy(policy: Path) -> int:
    """Find the uid whose messages in the journal count; without a policy, that of the usual login name."""
    try:
        return proxy_uid(load_policy(policy))
    except (PolicyFileError, AccountError):
        try:
            return pwd.getpwnam("egress-proxy").pw_uid
        except KeyError:
            return 0
