"""Grants taken back without the proxy: in the kernel's sets, and on record."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from egress_policy.accounts import as_owner_of
from egress_policy.audit import AuditLog
from egress_policy.audit_reading import read_records
from egress_policy.firewall import DEVELOPER_SANDBOX, delete_now, delete_ways_now, list_elements
from egress_policy.grant import Grant
from egress_policy.live_grants import match
from egress_policy.records import grant_record


def live_in_kernel(audit: str) -> list[Grant]:
    """List the grants that the kernel holds and the log explains. Raises FirewallError and AuditError."""
    held = list_elements(DEVELOPER_SANDBOX)
    return [one.grant for one in match(read_records(audit), held, datetime.now(UTC))[0]]


def revoke_in_kernel(audit: str, unwanted: Callable[[Grant], bool], why: str, by: str) -> list[Grant]:
    """Delete the elements of grants that are not wanted, and return these; a proxy that runs follows.

    An element that another live grant needs stays. Raises FirewallError, AuditError and OSError.
    """
    live = live_in_kernel(audit)
    ended = [grant for grant in live if unwanted(grant)]
    kept = {
        (address, grant.destination.port)
        for grant in live
        if grant not in ended
        for address in grant.addresses
    }
    closed = {(address, grant.destination.port) for grant in ended for address in grant.addresses} - kept
    # Taken back first, whatever becomes of the record.
    delete_now(DEVELOPER_SANDBOX, sorted(closed, key=str))
    ids = {grant.id for grant in ended}
    delete_ways_now(lambda comment: comment.partition(" ")[0] in ids)
    if ended:
        with as_owner_of(Path(audit).parent):
            log = AuditLog(audit)
            for grant in ended:
                log.write(grant_record("revoke", grant, why, by))
            log.close()
    return ended
