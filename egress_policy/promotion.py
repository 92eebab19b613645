"""From what agents did with a destination to an entry of the policy, with the evidence. No I/O."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from egress_policy.audit import Record


@dataclass(slots=True)
class Evidence:
    """What the audit log says of one host's permitted requests."""

    host: str
    ports: Counter[int] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    users: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    first: str = ""
    last: str = ""

    @property
    def requests(self) -> int:
        """How many requests were permitted."""
        return self.ports.total()


def gather(records: Iterable[Record], host: str) -> Evidence:
    """Count what was done with a host, and what was refused."""
    evidence = Evidence(host)
    for record in records:
        # A direct connection to a name that agents have grants for went to one of its further ports.
        if record.event not in ("decision", "direct") or record.host != host or record.port is None:
            continue
        if record.outcome != "permit":
            evidence.refused[record.code or "refused"] += 1
            continue
        evidence.ports[record.port] += 1
        unseen = "(not decrypted)" if record.event == "decision" else "(raw TCP)"
        evidence.methods[record.method or unseen] += 1
        evidence.users[record.agent or "", record.scope or ""] += 1
        if record.reason:
            evidence.reasons[record.reason] += 1
        evidence.first = min(evidence.first or record.time, record.time)
        evidence.last = max(evidence.last, record.time)
    return evidence


def entry(evidence: Evidence, review: str | None) -> str:
    """Write the smallest entry that covers what was used, as YAML in flow style."""
    ports = ", ".join(str(port) for port in sorted(evidence.ports))
    methods = ", ".join(sorted(evidence.methods))
    agents = ", ".join(sorted({agent for agent, _ in evidence.users}))
    used = f"{_count(evidence.requests, 'request')} ({methods}) by {agents}, {evidence.first[:10]} to {evidence.last[:10]}"
    # A JSON string is a YAML one.
    fields = [f"domain: {evidence.host}", f"ports: [{ports}]", f"comment: {json.dumps(used)}"]
    if review is not None:
        fields.append(f"review: {json.dumps(review)}")
    return "{" + ", ".join(fields) + "}"


def pull_request(evidence: Evidence, level: str, inspection: str) -> tuple[str, str]:
    """Write the title and the text (Markdown) of the pull request."""
    title = f"Make {evidence.host} {level}"
    effect = {
        "name": "Every agent reaches it without a scope, with any method; the proxy checks the name and does not decrypt.",
        "full": "The intents' rules for this level apply to it; the proxy decrypts and decides request by request.",
    }[inspection]
    lines = [
        f"`{evidence.host}` was reached {_count(evidence.requests, 'time')} from {evidence.first} to {evidence.last}.",
        "",
        effect,
        "",
        "| agent | scope | requests |",
        "|---|---|---|",
        *(f"| {agent} | {scope} | {count} |" for (agent, scope), count in evidence.users.most_common()),
        "",
        f"Ports: {_counted(evidence.ports)}. Methods: {_counted(evidence.methods)}.",
    ]
    if evidence.refused:
        lines.append(f"Refused: {_counted(evidence.refused)}.")
    if evidence.reasons:
        lines += ["", "Reasons that the agents gave:", ""]
        lines += [f"- {_plain(reason)} ({count})" for reason, count in evidence.reasons.most_common(5)]
    return title, "\n".join(lines) + "\n"


def _count(number: int, of_what: str) -> str:
    return f"{number} {of_what}" if number == 1 else f"{number} {of_what}s"


def _counted(counter: Counter[int] | Counter[str]) -> str:
    return ", ".join(f"{_plain(str(what))} ({count})" for what, count in counter.most_common())


def _plain(text: str) -> str:
    """Show an agent's words as words: nothing in them is markup, a link or a mention."""
    quoted = text.replace("`", "'").replace("\n", " ")
    return f"`{quoted}`"
