"""Entries of a policy file that are valid, and that nobody reaches as they say: what they need to see is not seen."""

from egress_policy.policy import DEFAULT_INTENT, KNOWN_BAD, KNOWN_GOOD, Inspection, Policy
from egress_policy.policy_document import EntryDocument, PolicyDocument
from egress_policy.policy_include import Sources


def warn_of_unreached(source: Sources, document: PolicyDocument, policy: Policy) -> None:
    """Warn of entries that nobody reaches as they say: by name, or on further ports, where nothing more is seen."""
    for level, entries in document.trust.items():
        for index, entry in enumerate(entries):
            if level != KNOWN_BAD and entry.domain is not None and entry.inspection is not Inspection.NONE:
                _check_further(source, policy, level, entry, ("trust", level, index, "ports"))
            path = ("trust", level, index, "inspection")
            if entry.inspection is not Inspection.NAME:
                continue
            if entry.cidr is not None:
                source.warning(path, "an address has no name in TLS: what is sent to it is decrypted")
            elif level != KNOWN_GOOD:
                rule = policy.intents.get(DEFAULT_INTENT, {}).get(level)
                if rule is None or rule.is_limited:
                    source.warning(
                        path,
                        f"nobody reaches it by TLS: no header is seen there, and intent {DEFAULT_INTENT} "
                        + ("may not reach" if rule is None else "limits methods or bodies of")
                        + f" {level} destinations",
                    )
                elif not any(agent.default_scope for agent in policy.agents.values()):
                    source.warning(
                        path,
                        "nobody reaches it by TLS: no header is seen there, and no agent has a default_scope",
                    )


def _check_further(
    source: Sources, policy: Policy, level: str, entry: EntryDocument, path: tuple[str, str, int, str]
) -> None:
    for place, port in enumerate(entry.ports or ()):
        if port in policy.proxy.ports:
            continue
        if port in policy.own_ports:
            why = "is the proxy's own or DNS's, and is never opened"
        elif level == KNOWN_GOOD:
            why = (
                "opens to an agent after a request of its to the name; `inspection: none`, in an entry of its "
                "own, opens it at once"
            )
        elif all(level not in rules or rules[level].is_limited for rules in policy.intents.values()):
            why = (
                "opens with no intent: what is sent there is not seen, and each limits methods or bodies of "
                f"{level} destinations, or may not reach them"
            )
        else:
            continue
        source.warning((*path, place), f"port {port} {why}")
