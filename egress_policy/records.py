"""What the audit log says of a decision and of a grant."""

from dataclasses import dataclass
from datetime import UTC, datetime

from msgspec import structs

from egress_policy.audit import Record, timestamp
from egress_policy.caller import Caller
from egress_policy.decision import Key, Permit
from egress_policy.denial import Deny, Refusal
from egress_policy.exchange import Exchange
from egress_policy.grant import Grant
from egress_policy.http_request import AccessRequest
from egress_policy.packet import Packet
from egress_policy.policy import DEFAULT_INTENT, Inspection, Policy
from egress_policy.scope import Scope, ScopeError, parse_scope

CLIENT_TLS_FAILED = "client_tls_failed"
"""The code of a handshake with a client that came to nothing."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was asked, also where it could not be read as one: then the rest is what the client wrote."""

    caller: Caller
    request: AccessRequest | Deny
    method: str | None = None
    host: str | None = None
    port: int | None = None
    path: str | None = None


def decision_record(
    policy: Policy,
    decision_id: str,
    asked: Asked,
    permit: Permit | None,
    grant: Grant | None,
    refusal: Refusal | None,
) -> Record:
    """Describe one decision: who asked for what, and what came of it. No query strings and no other fields."""
    caller, request = asked.caller, asked.request
    read = request if isinstance(request, AccessRequest) else None
    scope = claim_of(policy, request)
    return Record(
        time=timestamp(datetime.now(UTC)),
        event="decision",
        id=decision_id,
        agent=caller.agent,
        uid=caller.uid,
        source=None if caller.source is None else str(caller.source),
        scope=None if scope is None else scope.name,
        intent=None if scope is None else scope.intent or DEFAULT_INTENT,
        claimed_agent=None if scope is None else scope.agent,
        reason=None if scope is None else scope.reason,
        method=(read.method if read is not None else asked.method) or None,
        host=str(read.destination.host) if read is not None else asked.host,
        port=read.destination.port if read is not None else asked.port,
        path=(read.path if read is not None else asked.path) or None,
        addresses=() if grant is None else tuple(str(address) for address in grant.addresses),
        trust=None if read is None else policy.level_of(read.destination),
        inspection=Inspection.NAME.value if read is not None and _is_by_name(policy, read) else None,
        outcome=_outcome(refusal),
        code=None if refusal is None else refusal.code.value,
        detail=None if refusal is None else refusal.detail,
        ttl=None if permit is None or refusal is not None else int(permit.ttl.total_seconds()),
        expires=None if grant is None or refusal is not None else timestamp(grant.expires),
        grant=None if grant is None or refusal is not None else grant.id,
    )


def grant_record(event: str, grant: Grant, detail: str | None = None, by: str | None = None) -> Record:
    """Describe a grant's beginning (`grant`) or end (`expire`, `revoke`), and who brought it about."""
    return Record(
        time=timestamp(datetime.now(UTC)),
        event=event,
        id=grant.id,
        agent=grant.agent,
        scope=grant.scope,
        intent=grant.intent,
        host=str(grant.destination.host),
        port=grant.destination.port,
        ports=grant.ports,
        addresses=tuple(str(address) for address in grant.addresses),
        detail=detail,
        ttl=int((grant.expires - grant.issued).total_seconds()),
        expires=timestamp(grant.expires),
        by=by,
    )


def end_record(exchange: Exchange, now: float) -> Record:
    """Describe an exchange that is over; `now` is of the clock that it began by."""
    grant, caller = exchange.grant, exchange.caller
    return Record(
        time=timestamp(datetime.now(UTC)),
        event="end",
        agent=grant.agent,
        uid=caller.uid,
        source=None if caller.source is None else str(caller.source),
        scope=grant.scope,
        intent=grant.intent,
        host=str(grant.destination.host),
        port=grant.destination.port,
        grant=grant.id,
        requests=exchange.requests,
        sent=exchange.sent,
        received=exchange.received,
        duration=round(now - exchange.began, 3),
        status=exchange.status,
        ending=exchange.ending.value,
    )


def handshake_record(caller: Caller | None, host: str | None, port: int | None, why: str) -> Record:
    """Describe a client's TLS handshake that failed before there was a request; without a caller, several."""
    return Record(
        time=timestamp(datetime.now(UTC)),
        event="handshake",
        agent=None if caller is None else caller.agent,
        uid=None if caller is None else caller.uid,
        source=None if caller is None or caller.source is None else str(caller.source),
        host=host,
        port=port,
        outcome="fail",
        code=CLIENT_TLS_FAILED,
        detail=why,
    )


def approval_record(
    approval_id: str, key: Key, is_approved: bool, by: str, expires: datetime, duration: str
) -> Record:
    """Describe a person's decision on a destination that needs one; a `ttl` of 0 is for one request."""
    agent, scope, intent, destination = key
    return Record(
        time=timestamp(datetime.now(UTC)),
        event="approval",
        id=approval_id,
        agent=agent,
        scope=scope,
        intent=intent,
        host=str(destination.host),
        port=destination.port,
        outcome="permit" if is_approved else "deny",
        detail=f"{'approved' if is_approved else 'declined'} for {duration}",
        ttl=0 if duration == "once" else None,
        expires=timestamp(expires),
        by=by,
    )


def pause_record(event: str, target: tuple[str, str | None], by: str) -> Record:
    """Describe that a scope, an agent or everything was paused (`pause`), or is no more (`resume`)."""
    kind, name = target
    return Record(
        time=timestamp(datetime.now(UTC)),
        event=event,
        agent=name if kind == "agent" else None,
        scope=name if kind == "scope" else None,
        detail="everything" if kind == "all" else None,
        by=by,
    )


def policy_record(detail: str, outcome: str | None = None) -> Record:
    """Describe which policy is in force from now on."""
    return Record(time=timestamp(datetime.now(UTC)), event="policy", outcome=outcome, detail=detail)


def removal_record(by: str) -> Record:
    """Describe that the ruleset was taken out of the kernel."""
    return Record(
        time=timestamp(datetime.now(UTC)),
        event="policy",
        detail="the ruleset was removed: agents are not held to any policy",
        by=by,
    )


def kernel_record(
    event: str,
    outcome: str,
    detail: str,
    packet: Packet | None = None,
    agent: str | None = None,
    host: str | None = None,
) -> Record:
    """Describe a packet that the kernel logged (`drop`, `direct`), or without one what is known of several."""
    if packet is None:
        return Record(time=timestamp(datetime.now(UTC)), event=event, outcome=outcome, detail=detail)
    return Record(
        time=timestamp(datetime.now(UTC)),
        event=event,
        agent=agent,
        uid=packet.uid,
        source=str(packet.source) if packet.uid is None else None,
        host=host,
        port=packet.destination_port,
        addresses=(str(packet.destination),),
        outcome=outcome,
        detail=detail,
    )


def repeated(record: Record, times: int) -> Record:
    """Say that what a record describes came again, until now."""
    again = "once more" if times == 1 else f"{times} more times"
    return structs.replace(record, time=timestamp(datetime.now(UTC)), detail=f"{record.detail}, {again}")


def element_comment(grant: Grant) -> str:
    """Name a grant in the kernel: `<grant id> <scope> <host>`."""
    return f"{grant.id} {grant.scope} {grant.destination.host}"


def destination_of(record: Record) -> str | None:
    """Give a record's destination as `host:port`."""
    if record.host is None or record.port is None:
        return record.host
    return f"[{record.host}]:{record.port}" if record.host.count(":") > 1 else f"{record.host}:{record.port}"


def claim_of(policy: Policy, request: AccessRequest | Deny) -> Scope | None:
    """Read the scope that a request claims, or its sender's default, as far as it can be read."""
    if isinstance(request, Deny):
        return None
    if not request.scope_fields or _is_by_name(policy, request):
        agent = policy.agents.get(request.agent or "")
        return None if agent is None or agent.default_scope is None else Scope(agent.default_scope)
    try:
        return parse_scope(request.scope_fields)
    except ScopeError:
        return None


def _is_by_name(policy: Policy, request: AccessRequest) -> bool:
    return request.tls and policy.is_inspected_by_name(request.destination)


def _outcome(refusal: Refusal | None) -> str:
    match refusal:
        case None:
            return "permit"
        case Deny():
            return "deny"
        case _:
            return "fail"
