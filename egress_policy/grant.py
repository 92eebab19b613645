"""A grant: one agent, scope, intent, host and port, until a time that does not move."""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from datetime import datetime

from egress_policy.addresses import why_not_public
from egress_policy.decision import NOTHING_DECIDED, Permit, Standing, decide, intent_denies
from egress_policy.denial import Deny, DenyCode
from egress_policy.destination import Address, Destination
from egress_policy.http_request import AccessRequest
from egress_policy.policy import KNOWN_GOOD, DomainEntry, Inspection, Policy

MAX_ADDRESSES = 16
TLS_PORT = 443
"""The one port of which it is known beforehand that TLS is spoken there."""
HTTP_PORT = 80
"""The one port of which it is known that no TLS is passed on there."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a name led to: addresses, the CNAMEs on the way, and the smallest TTL (seconds) of the chain."""

    addresses: tuple[Address, ...]
    cnames: tuple[str, ...] = ()
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """What is open in the kernel, for whom and until when (UTC). `scope` is `known-good` where none was needed.

    `ports` are further ports, which it opens to whoever of the agent makes a request under it.
    """

    id: str
    agent: str
    scope: str
    intent: str | None
    destination: Destination
    addresses: tuple[Address, ...]
    issued: datetime
    expires: datetime
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """What a grant opens to a caller (a uid, or a container's address) on a further port of a name.

    What the caller sends to the `dialled` address goes to `address`, of the same family.
    """

    caller: int | Address
    dialled: Address
    port: int
    address: Address


def issue_grant(
    policy: Policy, permit: Permit, resolution: Resolution, grant_id: str, now: datetime
) -> Grant | Deny:
    """Issue the grant for a permitted request whose name was resolved, or deny its addresses (step 10)."""
    denied = why_addresses_denied(policy, resolution, permit.request.destination.port, permit)
    if denied is not None:
        return denied
    return Grant(
        id=grant_id,
        agent=permit.agent,
        scope=permit.grant_scope,
        intent=permit.intent,
        destination=permit.request.destination,
        addresses=resolution.addresses[:MAX_ADDRESSES],
        issued=now,
        expires=now + permit.ttl,
        ports=further_ports(policy, permit, resolution),
    )


def further_ports(policy: Policy, permit: Permit, resolution: Resolution) -> tuple[int, ...]:
    """List the ports beside the proxy's that a permitted request opens to its agent, for raw TCP.

    Nothing of what is sent there is seen, so the intent must not limit it, and an approval for one request is not for
    them. Only a name has such ports: an address has no other that could stand for it.
    """
    host = permit.request.destination.host
    if not isinstance(host, str) or (permit.answer is not None and permit.answer.once):
        return ()
    unseen = replace(permit, is_unseen=True)
    return tuple(
        port
        for port, entry in sorted(policy.trust.entries_for_name(host).items())
        if port not in policy.own_ports
        and not _is_closed(policy, unseen, entry)
        and why_addresses_denied(policy, resolution, port, unseen) is None
    )


def _is_closed(policy: Policy, unseen: Permit, entry: DomainEntry) -> bool:
    """Tell whether an entry's ports stay closed to an agent itself, or are the kernel's without any grant."""
    if entry.level == KNOWN_GOOD:
        return entry.inspection is Inspection.NONE
    return intent_denies(policy, unseen, entry.level) is not None


def why_not_given(
    policy: Policy,
    grant: Grant,
    cnames: tuple[str, ...],
    live: Mapping[str, AbstractSet[Destination]],
    standing: Standing = NOTHING_DECIDED,
) -> str | None:
    """Say why a policy would not give a grant that was issued under another one, or None where it would.

    The request that it was issued for is not known any more: one that the intent allows stands for it.
    """
    level = policy.level_of(grant.destination)
    rule = policy.intents.get(grant.intent or "", {}).get(level or "")
    method = "GET" if rule is None or rule.methods is None else min(rule.methods, default="GET")
    field = () if grant.scope == KNOWN_GOOD else (f"{grant.scope};intent={grant.intent}".encode(),)
    # On other ports it may have been either; what was passed on undecrypted must not go on where less is allowed now.
    tls = grant.destination.port != HTTP_PORT
    request = AccessRequest(grant.agent, grant.destination, field, method, "/", 0, tls)
    decided = decide(policy, request, live, standing=standing)
    if isinstance(decided, Deny):
        return decided.detail
    if decided.is_unseen and (decided.grant_scope, decided.intent) != (grant.scope, grant.intent):
        return f"it is inspected by name now, where only the scope {decided.grant_scope} counts"
    if (
        decided.answer is None
        and decided.grant_scope == grant.scope
        and grant.issued + decided.ttl < grant.expires
    ):
        return f"the policy gives it {decided.ttl.total_seconds():.0f} seconds at most"
    resolution = Resolution(grant.addresses, cnames)
    denied = why_addresses_denied(policy, resolution, grant.destination.port, decided)
    if denied is not None:
        return denied.detail
    closed = {*grant.ports} - {*further_ports(policy, decided, resolution)}
    return f"it would not open port {min(closed)}" if closed else None


def why_addresses_denied(
    policy: Policy, resolution: Resolution, port: int, permit: Permit | None = None
) -> Deny | None:
    """Check what a name leads to: one bad address or CNAME denies the whole answer.

    Without a permit the name is known-good, and only a known-good `cidr` entry opens an address that is not public.
    """
    denied = _why_bad(policy, resolution)
    if denied is not None:
        return denied
    for address in resolution.addresses:
        reason = why_not_public(address)
        if reason is None:
            continue
        entry = policy.trust.cidr_for(address, port)
        if entry is None:
            return _address_denied(
                f"{address} is not public ({reason}), and no cidr entry of the policy opens it"
            )
        if entry.level != KNOWN_GOOD:
            not_allowed = intent_denies(policy, permit, entry.level)
            if not_allowed is not None:
                return _address_denied(f"{address} is {entry.level}: {not_allowed.detail}")
    return None


def _why_bad(policy: Policy, resolution: Resolution) -> Deny | None:
    known_bad = policy.trust.known_bad
    named: Iterable[tuple[str, str | None]] = (
        *((name, known_bad.why_name(name)) for name in resolution.cnames),
        *((str(address), known_bad.why_address(address)) for address in resolution.addresses),
    )
    for found, why in named:
        if why is not None:
            return _address_denied(f"the name leads to {found}, which is known-bad: {why}")
    return None


def _address_denied(detail: str) -> Deny:
    return Deny(DenyCode.ADDRESS_DENIED, detail)
