"""The policy decision point: may this request go where it wants to go?

Pure: no I/O, no clock. The same decide() serves the proxy, `explain` and the tests.
"""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

from egress_policy.denial import Deny, DenyCode
from egress_policy.destination import Destination
from egress_policy.http_request import AccessRequest
from egress_policy.policy import (
    DEFAULT_INTENT,
    KNOWN_GOOD,
    MAX_TTL,
    Agent,
    IntentRule,
    Policy,
    Sandbox,
)
from egress_policy.scope import EXAMPLE, HEADER, Scope, ScopeError, parse_scope


class Step(IntEnum):
    """The steps of the decision, in their order."""

    REQUEST = 1
    CALLER = 2
    KNOWN_BAD = 3
    KNOWN_GOOD = 4
    SCOPE = 5
    SCOPE_ALLOWED = 6
    INTENT = 7
    QUOTA = 8
    RESOLUTION = 9
    ADDRESSES = 10
    GRANT = 11


type Passed = Callable[[Step, str], None]

type Key = tuple[str, str, str | None, Destination]
"""Agent, scope, intent, destination: what a grant, and an approval, is for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person decided on a key, and for how long at most a grant may rest on it; `once` is for one request."""

    is_approved: bool
    left: timedelta
    by: str
    once: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """What people decided beside the policy: who paused whom, and what was approved.

    `paused` takes an agent and, once it is known, a scope, and names whoever paused them.
    """

    paused: Callable[[str, str | None], str | None] = lambda _agent, _scope: None
    answer: Callable[[Key], Answer | None] = lambda _key: None


NOTHING_DECIDED = Standing()


@dataclass(frozen=True, slots=True)
class Permit:
    """The policy's yes: what a grant may be issued for. `scope` is None where the destination is known-good.

    `is_unseen` says that only the name is seen of what is sent, so that its methods and bodies have no limit.
    """

    request: AccessRequest
    agent: str
    level: str
    ttl: timedelta
    scope: Scope | None = None
    intent: str | None = None
    max_body: int | None = None
    answer: Answer | None = None
    is_unseen: bool = False

    @property
    def grant_scope(self) -> str:
        """The scope that the grant is kept under; known-good needs none and is kept under its own name."""
        return KNOWN_GOOD if self.scope is None else self.scope.name


def _no_trace(_step: Step, _finding: str) -> None:
    pass


def decide(
    policy: Policy,
    request: AccessRequest,
    live: Mapping[str, AbstractSet[Destination]] | None = None,
    passed: Passed = _no_trace,
    standing: Standing = NOTHING_DECIDED,
) -> Permit | Deny:
    """Decide on a well-formed request. `live` is what each scope has open now; `passed` is told each step's finding.

    1. The request is well formed: http_request.read_request() made it.
    2. The caller is a known agent, and nobody has paused it.
    3. The destination is not known-bad.
    4. If it is known-good, that is enough.
    5. The scope field is present and parses, or the caller has a default.
    6. The caller may use that scope, and nobody has paused it.
    7. The intent exists, is the scope's, and allows this level of trust, method and body size; where it wants
       an approval, a person gave it.
    8. The scope has room for one more destination.

    Steps 9 to 11 need the world: the resolver, grant.issue_grant() and the kernel.
    """
    destination = request.destination
    if not isinstance(destination.host, str) and not policy.trust.names_address(
        destination.host, destination.port
    ):
        return Deny(
            DenyCode.DESTINATION_INVALID,
            f"{destination.host} is an address that no cidr entry of the policy covers; use the host's name",
        )
    is_unseen = request.tls and policy.is_inspected_by_name(destination)
    by_name = f"a connection to {destination}, of which only the name is seen"
    passed(Step.REQUEST, by_name if is_unseen else f"{request.method} to {destination}")

    agent = None if request.agent is None else policy.agents.get(request.agent)
    if agent is None:
        return Deny(DenyCode.CALLER_UNKNOWN, "the sender of this request is no agent that the policy names")
    by = standing.paused(agent.name, None)
    if by is not None:
        return Deny(DenyCode.PAUSED, f"{by} paused agent {agent.name}")
    passed(Step.CALLER, f"agent {agent.name}")

    why_bad = policy.trust.why_bad(destination)
    if why_bad is not None:
        return Deny(DenyCode.DESTINATION_DENIED, f"{destination.host} is known-bad: {why_bad}")
    passed(Step.KNOWN_BAD, "not known-bad")

    level = policy.level_of(destination)
    if level == KNOWN_GOOD:
        passed(Step.KNOWN_GOOD, "known-good: no scope needed")
        return Permit(request, agent.name, level, MAX_TTL, is_unseen=is_unseen)
    passed(Step.KNOWN_GOOD, f"not known-good, but {level or 'on a port that the policy does not open'}")

    scope = _read_scope(request, agent, is_unseen)
    if isinstance(scope, Deny):
        return scope
    passed(Step.SCOPE, f"scope {scope.name}")

    if scope.name not in agent.scopes:
        return Deny(
            DenyCode.SCOPE_NOT_ALLOWED,
            f"agent {agent.name} may not use the scope {scope.name}, only {_listed(agent.scopes)}",
        )
    by = standing.paused(agent.name, scope.name)
    if by is not None:
        return Deny(DenyCode.PAUSED, f"{by} paused the scope {scope.name}")
    sandbox = policy.scopes[scope.name]
    passed(Step.SCOPE_ALLOWED, f"agent {agent.name} may use it")

    intent = scope.intent or DEFAULT_INTENT
    rule = _intent_rule(policy, sandbox, intent, level, request, is_unseen)
    if isinstance(rule, Deny):
        return rule
    what = "whatever is sent" if is_unseen else request.method
    passed(Step.INTENT, f"intent {intent} allows {what} to {level} destinations")

    answer: Answer | None = None
    if rule.needs_approval:
        answer = standing.answer((agent.name, scope.name, intent, destination))
        if answer is None or not answer.is_approved:
            return _not_approved(agent, sandbox, intent, destination, answer)

    opened = (live or {}).get(scope.name, frozenset())
    if destination not in opened and len(opened) >= sandbox.max_destinations:
        return Deny(
            DenyCode.QUOTA_EXCEEDED,
            f"the scope {scope.name} has {len(opened)} destinations open, which is all that it may",
        )
    passed(Step.QUOTA, f"{len(opened)} of {sandbox.max_destinations} destinations open")

    ttl = min(scope.ttl or MAX_TTL, rule.ttl, sandbox.max_ttl, MAX_TTL, answer.left if answer else MAX_TTL)
    return Permit(request, agent.name, level or "", ttl, scope, intent, rule.max_body, answer, is_unseen)


def _not_approved(
    agent: Agent, sandbox: Sandbox, intent: str, destination: Destination, answer: Answer | None
) -> Deny:
    if answer is not None:
        return Deny(DenyCode.APPROVAL_DECLINED, f"{answer.by} declined {destination}")
    what = f"intent {intent} needs a person's approval for {destination}"
    if agent.may_ask:
        return Deny(DenyCode.PENDING_APPROVAL, f"{what}, which {sandbox.owner} may give")
    return Deny(DenyCode.APPROVAL_REQUIRED, f"{what}, and agent {agent.name} runs unattended")


def intent_denies(policy: Policy, permit: Permit | None, level: str) -> Deny | None:
    """Weigh a permitted request's intent against a further level of trust: that of an address its name leads to."""
    if permit is None or permit.intent is None:
        return Deny(DenyCode.TRUST_NOT_ALLOWED, f"a known-good name does not open addresses that are {level}")
    rule = _rule_for(policy, permit.intent, level, permit.request, permit.is_unseen)
    if isinstance(rule, Deny):
        return rule
    if rule.needs_approval and permit.answer is None:
        return Deny(DenyCode.APPROVAL_REQUIRED, f"intent {permit.intent} needs a person's approval there")
    return None


def _read_scope(request: AccessRequest, agent: Agent, is_unseen: bool) -> Scope | Deny:
    if not request.scope_fields or is_unseen:
        if agent.default_scope is not None:
            return Scope(agent.default_scope)
        if is_unseen:
            return Deny(
                DenyCode.SCOPE_MISSING,
                f"{request.destination} is inspected by name, where no {HEADER} field is seen, and agent "
                f"{agent.name} has no default scope",
            )
        return Deny(DenyCode.SCOPE_MISSING, f"the request has no {HEADER} field, such as {EXAMPLE}")
    try:
        return parse_scope(request.scope_fields)
    except ScopeError as error:
        return Deny(DenyCode.SCOPE_MALFORMED, f"{HEADER}: {error}")


def _intent_rule(
    policy: Policy, sandbox: Sandbox, intent: str, level: str | None, request: AccessRequest, is_unseen: bool
) -> IntentRule | Deny:
    if intent not in policy.intents:
        return Deny(
            DenyCode.INTENT_UNKNOWN,
            f"the policy has no intent {intent!r}; it has {_listed(sorted(policy.intents))}",
        )
    if sandbox.intents is not None and intent not in sandbox.intents:
        return Deny(
            DenyCode.INTENT_NOT_ALLOWED,
            f"the scope {sandbox.name} may not act with intent {intent}, only {_listed(sorted(sandbox.intents))}",
        )
    if level is None:
        port = request.destination.port
        return Deny(
            DenyCode.TRUST_NOT_ALLOWED,
            f"no entry of the policy opens port {port} of {request.destination.host}",
        )
    return _rule_for(policy, intent, level, request, is_unseen)


def _rule_for(
    policy: Policy, intent: str, level: str, request: AccessRequest, is_unseen: bool
) -> IntentRule | Deny:
    rule = policy.intents[intent].get(level)
    if rule is None:
        return Deny(
            DenyCode.TRUST_NOT_ALLOWED,
            f"{request.destination.host} is {level}, which intent {intent} may not reach",
        )
    if is_unseen:
        return _why_limited(rule, intent, level) or rule
    if rule.methods is not None and request.method not in rule.methods:
        return Deny(
            DenyCode.METHOD_NOT_ALLOWED,
            f"intent {intent} may use {_listed(sorted(rule.methods))} with {level} destinations, not {request.method}",
        )
    if _is_too_large(request.body, rule.max_body):
        this = "a stream" if request.body is None else str(request.body)
        return Deny(
            DenyCode.BODY_TOO_LARGE,
            f"intent {intent} may send {rule.max_body} bytes to {level} destinations, this is {this}",
        )
    return rule


def _why_limited(rule: IntentRule, intent: str, level: str) -> Deny | None:
    """Deny where a rule limits what cannot be seen: it may be anything."""
    if rule.methods is not None:
        allowed = _listed(sorted(rule.methods))
        return Deny(
            DenyCode.METHOD_NOT_ALLOWED,
            f"intent {intent} may use {allowed} with {level} destinations, and methods are not seen here",
        )
    if rule.max_body is not None:
        return Deny(
            DenyCode.BODY_TOO_LARGE,
            f"intent {intent} may send {rule.max_body} bytes to {level} destinations, and bodies are not seen here",
        )
    return None


def _is_too_large(body: int | None, limit: int | None) -> bool:
    if limit is None:
        return False
    # A body of unknown length is counted while it streams; where none is allowed there is nothing to count.
    return limit == 0 if body is None else body > limit


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names) or "none"
