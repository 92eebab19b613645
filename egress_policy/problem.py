"""A refusal as the client gets it: problem details (RFC 9457), or a page for a person with a browser.

What to do next is told for each code. It never tells how to get around the policy.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from egress_policy.audit import Record
from egress_policy.denial import DenyCode, FailureCode
from egress_policy.records import destination_of
from egress_policy.scope import EXAMPLE, HEADER

_ASK_FOR_ENTRY = "If the work needs it, open a pull request on the policy repository and say what for."
_ASK_OPERATOR = "If it goes on, tell those who run this proxy, with the reference below."
_EXPLAIN = "Run `egress-policy explain --agent NAME METHOD URL` to see each step of the decision."
_USE_NAME = "Use the host's name as its certificate has it: lower-case ASCII, no address, no user name."
_SYNTAX = f"Send exactly one field line of the form `{EXAMPLE}`; only the scope's name is needed."


@dataclass(frozen=True, slots=True)
class Guidance:
    """What is the same each time a code occurs: its title (RFC 9457 section 3.1.3) and what to do about it."""

    title: str
    next_steps: tuple[str, ...]


GUIDANCE: Mapping[str, Guidance] = {
    DenyCode.REQUEST_MALFORMED: Guidance(
        "The request is not well formed",
        (
            "Correct the request as the detail says: one that can be read in two ways is not passed on.",
            "If a library made it, update the library or turn off what it adds.",
        ),
    ),
    DenyCode.DESTINATION_INVALID: Guidance(
        "The destination is not a canonical host",
        (
            _USE_NAME,
            (
                "To reach an address or network that has no name, open a pull request on the policy repository "
                "that adds a `cidr` entry for it."
            ),
        ),
    ),
    DenyCode.DESTINATION_MISMATCH: Guidance(
        "The request names another destination than its connection",
        (
            "Send Host, or :authority, with the name and port that the connection was made to.",
            "Open one connection for each host; do not reuse one host's connection for another.",
        ),
    ),
    DenyCode.CALLER_UNKNOWN: Guidance(
        "The sender is no agent that the policy names",
        (
            (
                "Start the tool as the user, or in the container, that the policy names as an agent: "
                "`egress-policy run --agent NAME -- COMMAND`."
            ),
            "To add an agent, open a pull request on the policy repository.",
        ),
    ),
    DenyCode.PAUSED: Guidance(
        "Somebody has paused this agent or its scope",
        (
            "Stop, and tell the person you work for: nothing goes out until the pause is lifted.",
            "Whoever paused it, or an operator, lifts it: `egress-policy resume`.",
        ),
    ),
    DenyCode.DESTINATION_DENIED: Guidance(
        "The destination is known-bad",
        (
            "Do without this destination: no scope and no intent opens it.",
            "If it is listed by mistake, open a pull request on the policy repository or report it to the feed.",
        ),
    ),
    DenyCode.SCOPE_MISSING: Guidance(
        f"The request has no {HEADER} field",
        (
            f"Set your sandbox in the agent's configuration, as `{EXAMPLE}`; the scope's name alone is enough.",
            (
                "For tools that cannot send a header, open a pull request on the policy repository that gives the "
                "agent a `default_scope`."
            ),
        ),
    ),
    DenyCode.SCOPE_MALFORMED: Guidance(
        f"The {HEADER} field cannot be read",
        (
            _SYNTAX,
            "Names and intents stand without quotes, the reason in double quotes, `ttl` is in seconds.",
        ),
    ),
    DenyCode.SCOPE_NOT_ALLOWED: Guidance(
        "The agent may not use this scope",
        (
            "Use a scope that the detail lists: a sandbox belongs to one developer's agents.",
            "If the agent should have this scope, its owner opens a pull request on the policy repository.",
        ),
    ),
    DenyCode.INTENT_UNKNOWN: Guidance(
        "The policy has no such intent",
        (
            "Name an intent that the detail lists, as in `;intent=develop`, or leave it out.",
            "To propose a new intent, open a pull request on the policy repository.",
        ),
    ),
    DenyCode.INTENT_NOT_ALLOWED: Guidance(
        "The scope may not act with this intent",
        (
            "Name an intent that the detail lists, or leave it out.",
            "If the scope needs this intent, open a pull request on the policy repository.",
        ),
    ),
    DenyCode.TRUST_NOT_ALLOWED: Guidance(
        "The intent does not reach destinations of this level of trust",
        (
            "If the work has another purpose, name it, as in `;intent=develop`.",
            "To have the destination vetted, open a pull request on the policy repository.",
            _EXPLAIN,
        ),
    ),
    DenyCode.METHOD_NOT_ALLOWED: Guidance(
        "The intent does not allow this method here",
        (
            "If reading is enough, use a method that the detail lists.",
            "If the work needs to write, name an intent that may, as in `;intent=develop`.",
            _EXPLAIN,
        ),
    ),
    DenyCode.BODY_TOO_LARGE: Guidance(
        "The intent does not allow a body of this size here",
        (
            "Send less, with a Content-Length.",
            "If the work needs to send this much, name an intent that may, as in `;intent=develop`.",
            _ASK_FOR_ENTRY,
        ),
    ),
    DenyCode.APPROVAL_REQUIRED: Guidance(
        "The destination needs a person's approval, and this agent may not ask for it",
        (
            "Do without this destination in unattended runs.",
            "If such runs need it, open a pull request on the policy repository that vets the destination.",
        ),
    ),
    DenyCode.PENDING_APPROVAL: Guidance(
        "The destination waits for a person's approval",
        (
            "Go on with other work, or end the run; waiting does not help, and every try is on record.",
            "The scope's owner or an operator decides: `egress-policy approvals`, then `egress-policy approve ID`.",
            "After that the same request succeeds.",
        ),
    ),
    DenyCode.APPROVAL_DECLINED: Guidance(
        "A person has declined this destination",
        (
            "Do without this destination.",
            "If the work needs it, speak with whoever declined it, whom the detail names.",
        ),
    ),
    DenyCode.QUOTA_EXCEEDED: Guidance(
        "The scope has no room for another destination",
        (
            "See what is open with `egress-policy grants`, and wait until a grant ends.",
            "The scope's owner can take grants back that are no longer needed: `egress-policy revoke ID`.",
            "If the work needs more, open a pull request on the policy repository that raises `max_destinations`.",
        ),
    ),
    DenyCode.ADDRESS_DENIED: Guidance(
        "The name leads to an address that is not allowed",
        (
            "Check the name: it leads to a private, special or known-bad address or alias.",
            (
                "For a host of the internal network, open a pull request on the policy repository that adds a "
                "`cidr` entry."
            ),
        ),
    ),
    FailureCode.RESOLUTION_FAILED: Guidance(
        "The name could not be resolved",
        ("Check the spelling of the name.", "If it is right, try again in a minute.", _ASK_OPERATOR),
    ),
    FailureCode.GRANT_FAILED: Guidance(
        "The kernel did not open the destination",
        (
            "Try again in a minute.",
            "On the host, `egress-policy doctor` says what is missing.",
            _ASK_OPERATOR,
        ),
    ),
    FailureCode.UPSTREAM_FAILED: Guidance(
        "The destination was permitted, and could not be reached",
        (
            "Try again in a minute: the policy permits this request.",
            "If the detail names a certificate, the destination is not who it says: tell its operator.",
        ),
    ),
    FailureCode.AUDIT_FAILED: Guidance(
        "The decision could not be put on record",
        (
            "Try again when the audit log can be written: what is not on record is not permitted.",
            "On the host, `egress-policy doctor` says what is missing.",
            _ASK_OPERATOR,
        ),
    ),
    FailureCode.INTERNAL_ERROR: Guidance(
        "The request could not be decided",
        ("Try again in a minute.", _ASK_OPERATOR),
    ),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal. `id` is that of the decision in the audit log; `code` a key of GUIDANCE."""

    code: str
    status: int
    detail: str
    id: str
    agent: str | None = None
    scope: str | None = None
    intent: str | None = None
    destination: str | None = None


def problem_of(record: Record) -> Problem:
    """Tell the client what the audit log was told of a decision that refused."""
    code = _code(record.code or FailureCode.INTERNAL_ERROR)
    return Problem(
        code=code,
        status=code.status,
        detail=record.detail or "",
        id=record.id or "",
        agent=record.agent,
        scope=record.scope,
        intent=record.intent,
        destination=destination_of(record),
    )


def render(problem: Problem, accept: str | None) -> tuple[int, list[tuple[str, str]], bytes]:
    """Make the response, as status, header fields and body, in the form that an Accept field prefers.

    JSON unless HTML is preferred to it: a wildcard alone, or no field, means a program.
    """
    headers = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
    if _prefers_html(accept or ""):
        headers.append(("Content-Type", "text/html; charset=utf-8"))
        headers.append(("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"))
        return problem.status, headers, _page(problem)
    headers.append(("Content-Type", "application/problem+json"))
    return problem.status, headers, _json(problem)


def _code(code: str) -> DenyCode | FailureCode:
    return FailureCode(code) if code in FailureCode else DenyCode(code)


def _json(problem: Problem) -> bytes:
    guidance = GUIDANCE[problem.code]
    members = {
        "type": f"urn:egress-policy:{problem.code}",
        "title": guidance.title,
        "status": problem.status,
        "detail": _encodable(problem.detail),
        "instance": f"urn:uuid:{problem.id}",
        "code": str(problem.code),
        **_facts(problem),
        "next_steps": guidance.next_steps,
    }
    return msgspec.json.encode(members) + b"\n"


def _facts(problem: Problem) -> dict[str, str]:
    facts = {
        "agent": problem.agent,
        "scope": problem.scope,
        "intent": problem.intent,
        "destination": problem.destination,
    }
    return {name: _encodable(value) for name, value in facts.items() if value is not None}


def _encodable(text: str) -> str:
    """Replace what came in as no valid UTF-8 and cannot go out as such."""
    return text.encode("utf-8", "backslashreplace").decode()


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; }}
dt {{ float: left; clear: left; width: 8rem; color: GrayText; }}
dd {{ margin: 0 0 0 8rem; overflow-wrap: anywhere; }}
code {{ font-size: .9em; overflow-wrap: anywhere; }}
:root {{ color-scheme: light dark; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{detail}</p>
<dl>
{facts}
</dl>
<h2>What you can do</h2>
<ul>
{next_steps}
</ul>
</body>
</html>
"""


def _page(problem: Problem) -> bytes:
    guidance = GUIDANCE[problem.code]
    facts = {
        **_facts(problem),
        "answer": f"{problem.status} {problem.code}",
        "reference": problem.id,
    }
    page = _PAGE.format(
        title=html.escape(guidance.title),
        detail=html.escape(_encodable(problem.detail)),
        facts="\n".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items()),
        next_steps="\n".join(f"<li>{_marked_up(step)}</li>" for step in guidance.next_steps),
    )
    return page.encode()


def _marked_up(step: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(step))


# RFC 9110 section 12.4.2: a weight.
_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def _prefers_html(accept: str) -> bool:
    """Weigh HTML against JSON by an Accept field (RFC 9110 section 12.5.1)."""
    weights = dict(filter(None, map(_media_range, accept.split(","))))
    as_json = max(
        _weight(weights, "application/problem+json"),
        _weight(weights, "application/json"),
    )
    return _weight(weights, "text/html") > as_json


def _media_range(element: str) -> tuple[str, float] | None:
    name, *parameters = (part.strip().lower() for part in element.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key == "q":
            return (name, float(value)) if _WEIGHT.fullmatch(value) else None
    return name, 1.0


def _weight(weights: Mapping[str, float], media_type: str) -> float:
    """Return the weight of the most specific range that covers a media type."""
    for media_range in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        if media_range in weights:
            return weights[media_range]
    return 0.0
