"""What no system of labels and addresses can say of a policy: grants that a scope and an intent open for a time."""

from collections.abc import Iterable
from datetime import timedelta

from egress_policy.policy import KNOWN_BAD, KNOWN_GOOD, UNKNOWN, IntentRule, Policy


def grants_lost(policy: Policy, agents: Iterable[str]) -> list[str]:
    """Say, level by level, what the agents may reach by a grant: through the proxy, and in no other way."""
    intents = sorted(_intents(policy, agents))
    levels = dict.fromkeys([*(level for level, _ in _entries(policy)), UNKNOWN])
    lost: list[str] = []
    for level in levels:
        rules = [
            (intent, policy.intents[intent][level]) for intent in intents if level in policy.intents[intent]
        ]
        if level in (KNOWN_GOOD, KNOWN_BAD) or not rules:
            continue
        terms = "; ".join(f"intent {intent}: {_terms(rule)}" for intent, rule in rules)
        named = [what for other, what in _entries(policy) if other == level]
        if level == UNKNOWN:
            named = [f"every other destination, ports {', '.join(map(str, policy.proxy.ports))}"]
        lost.append(
            f"level {level} ({', '.join(named)}) is open by timed grants only, through the proxy. {terms}"
        )
    if lost:
        quotas = sorted(
            {
                f"{scope} {policy.scopes[scope].max_destinations}"
                for agent in agents
                for scope in policy.agents[agent].scopes
            }
        )
        lost.append(
            "a grant's scope, intent, methods, body limit, end, approval, quota (destinations at once: "
            f"{', '.join(quotas) or 'no scope'}), pause, revocation and record exist in the proxy only"
        )
    return lost


def known_bad_names_lost(policy: Policy) -> list[str]:
    """Say that no name is denied by itself: where a known-good name leads through a known-bad one, nobody notices."""
    known_bad = policy.trust.known_bad
    names = sorted(map(str, known_bad.patterns))
    names += [f"{path}: {len(feed.names)}" for path, feed in known_bad.feeds if feed.names]
    if not names:
        return []
    return [
        (
            f"known-bad names ({', '.join(names)}) are denied only in that nothing opens them: an alias (CNAME) of a "
            "known-good name may lead to one"
        )
    ]


def _intents(policy: Policy, agents: Iterable[str]) -> set[str]:
    intents: set[str] = set()
    for agent in agents:
        for scope in policy.agents[agent].scopes:
            allowed = policy.scopes[scope].intents
            intents |= set(policy.intents) if allowed is None else set(allowed) & set(policy.intents)
    return intents


def _entries(policy: Policy) -> list[tuple[str, str]]:
    named = [(entry.level, str(entry.pattern), entry.ports) for entry in policy.trust.domains]
    named += [(entry.level, str(entry.network), entry.ports) for entry in policy.trust.cidrs]
    return [(level, f"{what}:{','.join(map(str, ports))}") for level, what, ports in sorted(named)]


def _terms(rule: IntentRule) -> str:
    methods = "any method" if rule.methods is None else " ".join(sorted(rule.methods)) or "no method"
    body = "any body" if rule.max_body is None else f"bodies up to {rule.max_body} bytes"
    approval = ", each destination approved by a person" if rule.needs_approval else ""
    return f"{methods}, {body}, {_duration(rule.ttl)}{approval}"


def _duration(duration: timedelta) -> str:
    seconds = int(duration.total_seconds())
    for size, unit in ((3600, "h"), (60, "m")):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
