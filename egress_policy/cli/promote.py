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
from egress_policy.policy_file import load_policy
from egress_policy.policy_source import PolicyFileError
from egress_policy.promotion import Evidence, entry, gather, pull_request


@click.command(epilog="Example: egress-policy promote docs.example --policy policy.yaml --audit audit.jsonl")
@click.argument("host")
@click.option("--level", default=KNOWN_GOOD, show_default=True, help="The level of trust that it gets.")
@click.option("--since", default="30d", show_default=True, help="How far to look back for evidence.")
@click.option("--review", help="A link to the review, kept with the entry.")
@click.option("--dry-run", is_flag=True, help="Show what would be added, and change nothing.")
@policy_option
@audit_option
@json_option
def promote(
    host: str,
    level: str,
    since: str,
    review: str | None,
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
        before = load_policy(policy)
        evidence = gather(read_records(audit, earliest), name)
        _check(before, evidence, level)
        added = entry(evidence, level, review)
        text = policy.read_text()
        changed = add_entry(text, level, added)
        _replace(policy, changed, dry_run=dry_run)
    except PolicyFileError as error:
        raise click.ClickException(f"nothing was changed, the policy has errors:\n{error}") from None
    except (AuditError, EditError) as error:
        raise click.ClickException(f"nothing was changed: {error}") from None
    except OSError as error:
        raise click.ClickException(f"nothing was changed: {policy}: {error.strerror}") from None
    title, body = pull_request(evidence, level, "name" if level == KNOWN_GOOD else "full")
    if as_json:
        document = {"policy": str(policy), "level": level, "entry": added, "title": title, "body": body}
        click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
        return
    click.echo(f"{'Would add' if dry_run else 'Added'} to {policy}, trust.{level}:\n    - {added}\n")
    click.echo(f"# {title}\n\n{body}")


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


def _replace(policy: Path, text: str, *, dry_run: bool) -> None:
    """Put a text in the policy file's place, once it has proved to be a policy. Raises PolicyFileError and OSError."""
    handle, name = tempfile.mkstemp(prefix=f".{policy.name}.", dir=policy.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            load_policy(new)
        except PolicyFileError as error:
            raise EditError(
                f"with the entry added it has errors:\n{str(error).replace(name, str(policy))}"
            ) from None
        if not dry_run:
            status = policy.stat()
            shutil.copymode(policy, new)
            os.chown(new, status.st_uid, status.st_gid)
            new.replace(policy)
    finally:
        new.unlink(missing_ok=True)
