"""`egress-policy promote`: from an experiment to a reviewed entry of the policy."""

import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from egress_policy.audit_files import AuditError
from egress_policy.audit_query import read_since
from egress_policy.audit_reading import read_records
from egress_policy.cli.options import audit_option, check_log, json_option, policy_option
from egress_policy.destination import Destination, InvalidHostError, parse_name
from egress_policy.policy import KNOWN_BAD, KNOWN_GOOD, Policy
from egress_policy.policy_edit import EditError, add_entry
from egress_policy.policy_file import Loaded, load
from egress_policy.policy_source import PolicyFileError
from egress_policy.promotion import Evidence, entry, gather, pull_request


@click.command(epilog="Example: egress-policy promote docs.example --policy policy.yaml --audit audit.jsonl")
@click.argument("host")
@click.option("--level", default=KNOWN_GOOD, show_default=True, help="The level of trust that it gets.")
@click.option("--since", default="30d", show_default=True, help="How far to look back for evidence.")
@click.option("--review", help="A link to the review, kept with the entry.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file that is added to, where the policy has several.  [default: the one that defines the scopes "
    "which used HOST, or else the policy file]",
)
@click.option("--dry-run", is_flag=True, help="Show what would be added, and change nothing.")
@policy_option
@audit_option
@json_option
def promote(
    host: str,
    level: str,
    since: str,
    review: str | None,
    into: Path | None,
    dry_run: bool,
    policy: Path,
    audit: str,
    as_json: bool,
) -> None:
    """Turn HOST, which agents have used, into an entry of the policy file, and print a pull request with the evidence.

    The entry covers the ports that were really used. All other lines of the file stay as they are. Nothing changes
    for a host that is known-bad, was never used, or has the level already.
    """
    try:
        name = parse_name(host)
        earliest = read_since(since, datetime.now(UTC))
    except InvalidHostError as error:
        raise click.ClickException(f"{host!r} is no host name: {error}") from None
    except (ValueError, OverflowError):
        raise click.UsageError(f"--since: {since!r} is no duration such as 30d, and no date") from None
    check_log(audit)
    try:
        before = load(policy)
        evidence = gather(read_records(audit, earliest), name)
        _check(before.policy, evidence, level)
        file = _file(before, evidence, into)
        added = entry(evidence, review)
        changed = add_entry(file.read_bytes().decode(), level, added).encode()
        _try_out(policy, file, changed, evidence, level)
        if not dry_run:
            _replace(file.resolve(), changed)
    except PolicyFileError as error:
        raise click.ClickException(f"nothing was changed, the policy has errors:\n{error}") from None
    except (AuditError, EditError) as error:
        raise click.ClickException(f"nothing was changed: {error}") from None
    except OSError as error:
        raise click.ClickException(
            f"nothing was changed: {error.filename or policy}: {error.strerror}"
        ) from None
    title, body = pull_request(evidence, level, "name" if level == KNOWN_GOOD else "full")
    if as_json:
        document = {"policy": str(file), "level": level, "entry": added, "title": title, "body": body}
        click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
        return
    click.echo(f"{'Would add' if dry_run else 'Added'} to {file}, trust.{level}:\n    - {added}\n")
    click.echo(f"# {title}\n\n{body}")


def _file(loaded: Loaded, evidence: Evidence, into: Path | None) -> Path:
    """Choose the file: the team's whose scopes used the host, or the policy file."""
    main = loaded.files[0]
    if into is None:
        owners = {loaded.scope_files.get(scope, main) for _, scope in evidence.users}
        return owners.pop() if len(owners) == 1 else main
    for file in loaded.files:
        if file.resolve() == into.resolve():
            return file
    files = ", ".join(map(str, loaded.files))
    raise click.UsageError(f"--into: {into} is no file of this policy; they are {files}")


def _check(policy: Policy, evidence: Evidence, level: str) -> None:
    host = evidence.host
    bad = policy.trust.why_bad(Destination(host, 443))
    if bad is not None or level == KNOWN_BAD:
        why = f"{host} is known-bad: {bad}" if bad else "promote gives trust, and known-bad is none"
        raise click.ClickException(f"nothing was changed: {why}")
    if not evidence.requests:
        refused = evidence.refused.total()
        tried = f"; {refused} requests were refused" if refused else ""
        raise click.ClickException(f"nothing was changed: no agent has reached {host} in that time{tried}")
    if all(policy.level_of(Destination(host, port)) == level for port in evidence.ports):
        raise click.ClickException(f"nothing was changed: {host} is {level} already")


def _try_out(policy: Path, file: Path, text: bytes, evidence: Evidence, level: str) -> None:
    """See that with that text in the file the policy is valid, and the host has the level. Raises EditError."""
    try:
        after = load(policy, instead={file: text}).policy
    except PolicyFileError as error:
        raise EditError(f"with the entry added the policy has errors:\n{error}") from None
    if any(after.level_of(Destination(evidence.host, port)) != level for port in evidence.ports):
        raise EditError(f"with the entry added {evidence.host} would not be {level}")


def _replace(file: Path, text: bytes) -> None:
    """Put a text in a file's place, whole. Raises OSError."""
    status = file.stat()
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "wb") as written:
            written.write(text)
            written.flush()
            os.fsync(written.fileno())
        shutil.copymode(file, new)
        os.chown(new, status.st_uid, status.st_gid)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
