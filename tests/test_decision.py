"""decide(): every step, every code, and their order."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from egress_policy.decision import Permit, Step, decide, intent_denies
from egress_policy.denial import Deny, DenyCode
from egress_policy.destination import Destination, HostPattern, parse_host, parse_pattern
from egress_policy.feed import parse_feed
from egress_policy.http_request import AccessRequest
from egress_policy.policy import (
    KNOWN_GOOD,
    UNKNOWN,
    Agent,
    CidrEntry,
    DomainEntry,
    Inspection,
    IntentRule,
    KnownBad,
    Policy,
    Proxy,
    Sandbox,
    Trust,
)
from egress_policy.scope import Scope, parse_scope

HOUR = timedelta(hours=1)
READ = frozenset({"GET", "HEAD"})

POLICY = Policy(
    proxy=Proxy("egress-proxy"),
    agents={
        "alice-claude": Agent("alice-claude", ("sandbox-alice", "sandbox-reader"), user="agent-alice"),
        "bob-container": Agent(
            "bob-container", ("sandbox-bob",), user="agent-bob", default_scope="sandbox-bob"
        ),
        "lost": Agent("lost", ("sandbox-bob",), user="agent-lost", default_scope="sandbox-alice"),
        "idle": Agent("idle", (), user="agent-idle"),
    },
    scopes={
        "sandbox-alice": Sandbox("sandbox-alice", "alice@example.com", max_destinations=2),
        "sandbox-reader": Sandbox(
            "sandbox-reader",
            "alice@example.com",
            intents=frozenset({"default"}),
            max_ttl=timedelta(minutes=10),
        ),
        "sandbox-bob": Sandbox("sandbox-bob", "bob@example.com"),
    },
    intents={
        "default": {
            "vetted": IntentRule(READ, ttl=8 * HOUR),
            UNKNOWN: IntentRule(READ, max_body=0, ttl=HOUR),
        },
        "develop": {
            "vetted": IntentRule(ttl=24 * HOUR),
            UNKNOWN: IntentRule(max_body=65536, ttl=4 * HOUR),
        },
        "docs": {"vetted": IntentRule()},
        "nothing": {},
    },
    trust=Trust(
        domains=(
            DomainEntry(parse_pattern("api.model.example"), KNOWN_GOOD, (443,), Inspection.NAME),
            DomainEntry(parse_pattern("*.docs.example"), "vetted"),
        ),
        cidrs=(
            CidrEntry(ipaddress.ip_network("10.1.0.0/16"), "vetted"),
            CidrEntry(ipaddress.ip_network("10.2.0.0/16"), KNOWN_GOOD, (443, 5432), Inspection.NONE),
        ),
        known_bad=KnownBad(
            patterns=frozenset(map(parse_pattern, ["paste.example", "*.paste.example"])),
            networks=(ipaddress.ip_network("10.1.6.0/24"), ipaddress.ip_network("198.51.100.0/24")),
            feeds=(("feeds/malware.txt", parse_feed(["malware.example"])),),
        ),
    ),
)


def request(
    to: str = "other.test:443",
    *scope_fields: str,
    agent: str | None = "alice-claude",
    method: str = "GET",
    body: int | None = 0,
) -> AccessRequest:
    host, _, port = to.rpartition(":")
    fields = tuple(field.encode() for field in scope_fields)
    return AccessRequest(agent, Destination(parse_host(host), int(port)), fields, method, "/", body)


def destinations(count: int) -> frozenset[Destination]:
    return frozenset(Destination(f"open{number}.test", 443) for number in range(count))


@pytest.mark.parametrize(
    ("asked", "level", "ttl", "scope", "intent", "max_body"),
    [
        pytest.param(
            request("other.test:443", "sandbox-alice"),
            UNKNOWN, HOUR, Scope("sandbox-alice"), "default", 0, id="unknown",
        ),
        pytest.param(
            request("x.docs.example:443", "sandbox-alice"),
            "vetted", 8 * HOUR, Scope("sandbox-alice"), "default", None, id="vetted",
        ),
        pytest.param(
            request("other.test:443", "sandbox-alice;intent=develop", method="POST", body=65536),
            UNKNOWN, 4 * HOUR, Scope("sandbox-alice", "develop"), "develop", 65536, id="intent-and-largest-body",
        ),
        pytest.param(
            request("other.test:443", "sandbox-alice;intent=develop", method="POST", body=None),
            UNKNOWN, 4 * HOUR, Scope("sandbox-alice", "develop"), "develop", 65536, id="body-counted-while-it-streams",
        ),
        pytest.param(
            request("x.docs.example:443", "sandbox-alice;intent=develop", method="PUT", body=10**12),
            "vetted", 24 * HOUR, Scope("sandbox-alice", "develop"), "develop", None, id="no-limits",
        ),
        pytest.param(
            request("x.docs.example:443", "sandbox-alice", body=None),
            "vetted", 8 * HOUR, Scope("sandbox-alice"), "default", None, id="unknown-length-without-a-limit",
        ),
        pytest.param(
            request("other.test:443", "sandbox-reader"),
            UNKNOWN, timedelta(minutes=10), Scope("sandbox-reader"), "default", 0, id="time-of-the-scope",
        ),
        pytest.param(
            request("other.test:443", "sandbox-alice;ttl=60"),
            UNKNOWN, timedelta(minutes=1), Scope("sandbox-alice", ttl=timedelta(minutes=1)), "default", 0,
            id="time-of-the-field",
        ),
        pytest.param(
            request("other.test:443", "sandbox-alice;ttl=3601"),
            UNKNOWN, HOUR, Scope("sandbox-alice", ttl=timedelta(seconds=3601)), "default", 0,
            id="the-field-asks-for-less-only",
        ),
        pytest.param(
            request("other.test:443", agent="bob-container"),
            UNKNOWN, HOUR, Scope("sandbox-bob"), "default", 0, id="default-scope",
        ),
        pytest.param(
            request("10.1.0.1:443", "sandbox-alice"),
            "vetted", 8 * HOUR, Scope("sandbox-alice"), "default", None, id="address-that-an-entry-covers",
        ),
        pytest.param(
            request("api.model.example:80", "sandbox-alice"),
            UNKNOWN, HOUR, Scope("sandbox-alice"), "default", 0, id="known-good-on-another-port-is-unknown",
        ),
    ],
)  # fmt: skip
def test_permit(
    asked: AccessRequest, level: str, ttl: timedelta, scope: Scope, intent: str, max_body: int | None
) -> None:
    """What a permit says is what the grant will be."""
    assert decide(POLICY, asked) == Permit(asked, asked.agent or "", level, ttl, scope, intent, max_body)


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(request("api.model.example:443"), id="without-a-scope"),
        pytest.param(
            request("api.model.example:443", "no scope at all", "twice"), id="with-a-malformed-scope"
        ),
        pytest.param(request("api.model.example:443", "sandbox-bob"), id="with-anothers-scope"),
        pytest.param(request("api.model.example:443", method="POST", body=None), id="any-method-and-body"),
        pytest.param(request("api.model.example:443", agent="idle"), id="agent-without-scopes"),
        pytest.param(request("10.2.0.1:5432"), id="address-on-a-port-of-its-own"),
    ],
)
def test_known_good_needs_no_scope(asked: AccessRequest) -> None:
    """Steps 5 to 8 do not apply."""
    permit = decide(POLICY, asked, {"known-good": destinations(200)})
    assert permit == Permit(asked, asked.agent or "", KNOWN_GOOD, timedelta(hours=24))
    assert permit.grant_scope == "known-good"


def test_a_grant_is_kept_under_its_scope() -> None:
    permit = decide(POLICY, request("other.test:443", "sandbox-alice"))
    assert isinstance(permit, Permit)
    assert permit.grant_scope == "sandbox-alice"


DENIALS = {
    "address-of-nobody": (
        request("203.0.113.9:443", "sandbox-alice"),
        DenyCode.DESTINATION_INVALID,
        "203.0.113.9 is an address that no cidr entry of the policy covers",
    ),
    "ipv6-address-of-nobody": (
        request("[2001:db8::1]:443", "sandbox-alice"),
        DenyCode.DESTINATION_INVALID,
        "no cidr entry",
    ),
    "no-caller": (request(agent=None), DenyCode.CALLER_UNKNOWN, "no agent that the policy names"),
    "caller-of-another-policy": (
        request(agent="eve"),
        DenyCode.CALLER_UNKNOWN,
        "no agent that the policy names",
    ),
    "known-bad": (
        request("paste.example:443", "sandbox-alice"),
        DenyCode.DESTINATION_DENIED,
        "paste.example is known-bad: paste.example",
    ),
    "known-bad-wildcard": (
        request("x.paste.example:443", "sandbox-alice"),
        DenyCode.DESTINATION_DENIED,
        "x.paste.example is known-bad: *.paste.example",
    ),
    "known-bad-feed": (
        request("x.malware.example:443", "sandbox-alice"),
        DenyCode.DESTINATION_DENIED,
        "malware.example in feeds/malware.txt",
    ),
    "known-bad-address": (
        request("198.51.100.1:443", "sandbox-alice"),
        DenyCode.DESTINATION_DENIED,
        "198.51.100.1 is known-bad: 198.51.100.0/24",
    ),
    "known-bad-inside-vetted": (
        request("10.1.6.1:443", "sandbox-alice"),
        DenyCode.DESTINATION_DENIED,
        "10.1.6.0/24",
    ),
    "no-scope": (
        request(),
        DenyCode.SCOPE_MISSING,
        "has no X-Agent-Scope field, such as X-Agent-Scope: sandbox-",
    ),
    "empty-scope": (
        request("other.test:443", ""),
        DenyCode.SCOPE_MALFORMED,
        "X-Agent-Scope: not an RFC 9651 item",
    ),
    "two-scopes": (
        request("other.test:443", "sandbox-alice", "sandbox-alice"),
        DenyCode.SCOPE_MALFORMED,
        "expected one X-Agent-Scope field line, found 2",
    ),
    "malformed-scope-in-place-of-the-default": (
        request("other.test:443", "x", agent="bob-container"),
        DenyCode.SCOPE_MALFORMED,
        "is not 'sandbox-<developer>'",
    ),
    "anothers-scope": (
        request("other.test:443", "sandbox-bob"),
        DenyCode.SCOPE_NOT_ALLOWED,
        "agent alice-claude may not use the scope sandbox-bob, only sandbox-alice, sandbox-reader",
    ),
    "scope-of-nobody": (request("other.test:443", "sandbox-eve"), DenyCode.SCOPE_NOT_ALLOWED, "may not use"),
    "agent-without-scopes": (
        request("other.test:443", "sandbox-alice", agent="idle"),
        DenyCode.SCOPE_NOT_ALLOWED,
        "only none",
    ),
    "default-scope-of-another": (
        request(agent="lost"),
        DenyCode.SCOPE_NOT_ALLOWED,
        "may not use the scope sandbox-alice",
    ),
    "no-such-intent": (
        request("other.test:443", "sandbox-alice;intent=rule"),
        DenyCode.INTENT_UNKNOWN,
        "no intent 'rule'; it has default, develop, docs, nothing",
    ),
    "intent-of-another-scope": (
        request("other.test:443", "sandbox-reader;intent=develop"),
        DenyCode.INTENT_NOT_ALLOWED,
        "the scope sandbox-reader may not act with intent develop, only default",
    ),
    "level-that-is-not-named": (
        request("other.test:443", "sandbox-alice;intent=docs"),
        DenyCode.TRUST_NOT_ALLOWED,
        "other.test is unknown, which intent docs may not reach",
    ),
    "intent-without-levels": (
        request("x.docs.example:443", "sandbox-alice;intent=nothing"),
        DenyCode.TRUST_NOT_ALLOWED,
        "x.docs.example is vetted, which intent nothing may not reach",
    ),
    "port-of-nobody": (
        request("other.test:8443", "sandbox-alice"),
        DenyCode.TRUST_NOT_ALLOWED,
        "no entry of the policy opens port 8443 of other.test",
    ),
    "port-of-an-entry-of-another-kind": (
        request("x.docs.example:5432", "sandbox-alice"),
        DenyCode.TRUST_NOT_ALLOWED,
        "opens port 5432 of x.docs.example",
    ),
    "method": (
        request("other.test:443", "sandbox-alice", method="POST"),
        DenyCode.METHOD_NOT_ALLOWED,
        "intent default may use GET, HEAD with unknown destinations, not POST",
    ),
    "method-in-lower-case": (
        request("other.test:443", "sandbox-alice", method="get"),
        DenyCode.METHOD_NOT_ALLOWED,
        "not get",
    ),
    "body": (
        request("other.test:443", "sandbox-alice;intent=develop", method="POST", body=65537),
        DenyCode.BODY_TOO_LARGE,
        "intent develop may send 65536 bytes to unknown destinations, this is 65537",
    ),
    "any-body": (request("other.test:443", "sandbox-alice", body=1), DenyCode.BODY_TOO_LARGE, "0 bytes"),
    "stream-where-no-body-may-be": (
        request("other.test:443", "sandbox-alice", body=None),
        DenyCode.BODY_TOO_LARGE,
        "this is a stream",
    ),
}


@pytest.mark.parametrize(("asked", "code", "why"), DENIALS.values(), ids=DENIALS)
def test_deny(asked: AccessRequest, code: DenyCode, why: str) -> None:
    """Each rule denies by itself, and says why."""
    denied = decide(POLICY, asked)
    assert isinstance(denied, Deny)
    assert denied.code is code
    assert why in denied.detail


@pytest.mark.parametrize(
    ("live", "to", "code"),
    [
        pytest.param({}, "other.test:443", None, id="nothing-open"),
        pytest.param({"sandbox-alice": destinations(1)}, "other.test:443", None, id="room-for-one"),
        pytest.param(
            {"sandbox-alice": destinations(2)}, "other.test:443", DenyCode.QUOTA_EXCEEDED, id="full"
        ),
        pytest.param(
            {"sandbox-alice": destinations(3)}, "other.test:443", DenyCode.QUOTA_EXCEEDED, id="over-full"
        ),
        pytest.param(
            {"sandbox-alice": destinations(2)}, "open1.test:443", None, id="what-is-open-stays-open"
        ),
        pytest.param(
            {"sandbox-alice": destinations(2)},
            "open1.test:80",
            DenyCode.QUOTA_EXCEEDED,
            id="another-port-is-another",
        ),
        pytest.param(
            {"sandbox-bob": destinations(200)}, "other.test:443", None, id="another-scope-does-not-count"
        ),
    ],
)
def test_quota(live: Mapping[str, frozenset[Destination]], to: str, code: DenyCode | None) -> None:
    """A scope has so many destinations open at once; one that is open needs no more room."""
    decided = decide(POLICY, request(to, "sandbox-alice"), live)
    assert (decided.code if isinstance(decided, Deny) else None) is code


def test_quota_says_how_many() -> None:
    assert decide(
        POLICY, request("other.test:443", "sandbox-alice"), {"sandbox-alice": destinations(2)}
    ) == Deny(
        DenyCode.QUOTA_EXCEEDED, "the scope sandbox-alice has 2 destinations open, which is all that it may"
    )


FULL = {"sandbox-alice": destinations(2), "sandbox-reader": destinations(100)}


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        pytest.param(
            request("203.0.113.9:443", agent=None),
            DenyCode.DESTINATION_INVALID,
            id="invalid-before-unknown-caller",
        ),
        pytest.param(
            request("paste.example:443", agent=None), DenyCode.CALLER_UNKNOWN, id="caller-before-known-bad"
        ),
        pytest.param(
            request("198.51.100.1:443", agent=None),
            DenyCode.CALLER_UNKNOWN,
            id="caller-before-known-bad-address",
        ),
        pytest.param(
            request("api.model.example:443", agent=None),
            DenyCode.CALLER_UNKNOWN,
            id="caller-before-known-good",
        ),
        pytest.param(
            request("paste.example:443"), DenyCode.DESTINATION_DENIED, id="known-bad-before-scope-missing"
        ),
        pytest.param(
            request("paste.example:443", "x"),
            DenyCode.DESTINATION_DENIED,
            id="known-bad-before-scope-malformed",
        ),
        pytest.param(
            request("other.test:443", "sandbox-bob;admin"),
            DenyCode.SCOPE_MALFORMED,
            id="malformed-before-not-allowed",
        ),
        pytest.param(request("other.test:8443"), DenyCode.SCOPE_MISSING, id="scope-missing-before-trust"),
        pytest.param(
            request("other.test:443", "sandbox-bob;intent=rule"),
            DenyCode.SCOPE_NOT_ALLOWED,
            id="scope-not-allowed-before-intent-unknown",
        ),
        pytest.param(
            request("other.test:443", "sandbox-reader;intent=rule"),
            DenyCode.INTENT_UNKNOWN,
            id="intent-unknown-before-intent-not-allowed",
        ),
        pytest.param(
            request("other.test:443", "sandbox-reader;intent=docs"),
            DenyCode.INTENT_NOT_ALLOWED,
            id="intent-not-allowed-before-trust",
        ),
        pytest.param(
            request("other.test:8443", "sandbox-reader;intent=docs"),
            DenyCode.INTENT_NOT_ALLOWED,
            id="intent-not-allowed-before-port",
        ),
        pytest.param(
            request("other.test:8443", "sandbox-alice", method="POST"),
            DenyCode.TRUST_NOT_ALLOWED,
            id="port-before-method",
        ),
        pytest.param(
            request("other.test:443", "sandbox-alice;intent=nothing", method="POST", body=None),
            DenyCode.TRUST_NOT_ALLOWED,
            id="trust-before-method",
        ),
        pytest.param(
            request("other.test:443", "sandbox-alice", method="POST", body=1),
            DenyCode.METHOD_NOT_ALLOWED,
            id="method-before-body",
        ),
        pytest.param(
            request("other.test:443", "sandbox-alice", body=1),
            DenyCode.BODY_TOO_LARGE,
            id="body-before-quota",
        ),
        pytest.param(request("other.test:443", "sandbox-alice"), DenyCode.QUOTA_EXCEEDED, id="quota-last"),
    ],
)
def test_the_earlier_step_tells(asked: AccessRequest, code: DenyCode) -> None:
    """A request that violates two steps gets the code of the first; here every quota is used up as well."""
    denied = decide(POLICY, asked, FULL)
    assert isinstance(denied, Deny)
    assert denied.code is code


def test_the_steps_have_the_numbers_of_the_decisions_description() -> None:
    assert list(Step) == list(range(1, 12))


def test_every_code_of_these_steps_was_tried() -> None:
    """The codes of the steps before are http_request's, the one behind is grant's."""
    tried = {code for _, code, _ in DENIALS.values()} | {DenyCode.QUOTA_EXCEEDED}
    assert set(DenyCode) - tried == {
        DenyCode.REQUEST_MALFORMED,
        DenyCode.DESTINATION_MISMATCH,
        DenyCode.ADDRESS_DENIED,
        DenyCode.PAUSED,
        DenyCode.APPROVAL_REQUIRED,
        DenyCode.PENDING_APPROVAL,
        DenyCode.APPROVAL_DECLINED,
    }


@pytest.mark.parametrize(
    ("asked", "trace"),
    [
        pytest.param(
            request("other.test:443", "sandbox-alice;intent=develop"),
            [
                (Step.REQUEST, "GET to other.test:443"),
                (Step.CALLER, "agent alice-claude"),
                (Step.KNOWN_BAD, "not known-bad"),
                (Step.KNOWN_GOOD, "not known-good, but unknown"),
                (Step.SCOPE, "scope sandbox-alice"),
                (Step.SCOPE_ALLOWED, "agent alice-claude may use it"),
                (Step.INTENT, "intent develop allows GET to unknown destinations"),
                (Step.QUOTA, "0 of 2 destinations open"),
            ],
            id="permit",
        ),
        pytest.param(
            request("api.model.example:443"),
            [
                (Step.REQUEST, "GET to api.model.example:443"),
                (Step.CALLER, "agent alice-claude"),
                (Step.KNOWN_BAD, "not known-bad"),
                (Step.KNOWN_GOOD, "known-good: no scope needed"),
            ],
            id="known-good",
        ),
        pytest.param(request("203.0.113.9:443"), [], id="denied-at-once"),
        pytest.param(
            request("other.test:8443"),
            [
                (Step.REQUEST, "GET to other.test:8443"),
                (Step.CALLER, "agent alice-claude"),
                (Step.KNOWN_BAD, "not known-bad"),
                (Step.KNOWN_GOOD, "not known-good, but on a port that the policy does not open"),
            ],
            id="denied-in-the-middle",
        ),
    ],
)
def test_the_trace_names_the_steps_that_were_passed(
    asked: AccessRequest, trace: list[tuple[Step, str]]
) -> None:
    """They are what `explain` shows; the step that denies is the one behind the last."""
    found: list[tuple[Step, str]] = []
    decide(POLICY, asked, passed=lambda step, finding: found.append((step, finding)))
    assert found == trace


@pytest.mark.parametrize(
    ("permit", "level", "code"),
    [
        pytest.param(None, "vetted", DenyCode.TRUST_NOT_ALLOWED, id="known-good-name-in-dns"),
        pytest.param(
            request("api.model.example:443"), "vetted", DenyCode.TRUST_NOT_ALLOWED, id="known-good-permit"
        ),
        pytest.param(
            request("other.test:443", "sandbox-alice"), "vetted", None, id="level-that-the-intent-has"
        ),
        pytest.param(
            request("other.test:443", "sandbox-alice"),
            "other",
            DenyCode.TRUST_NOT_ALLOWED,
            id="level-that-it-has-not",
        ),
        pytest.param(
            request("x.docs.example:443", "sandbox-alice", body=1),
            UNKNOWN,
            DenyCode.BODY_TOO_LARGE,
            id="level-with-a-tighter-rule",
        ),
    ],
)
def test_a_further_level(permit: AccessRequest | None, level: str, code: DenyCode | None) -> None:
    """The address that a name leads to has a level of its own, and the intent must allow that as well."""
    decided = None if permit is None else decide(POLICY, permit)
    assert not isinstance(decided, Deny)
    denied = intent_denies(POLICY, decided, level)
    assert (None if denied is None else denied.code) is code


HOSTS = st.sampled_from(
    [
        "other.test",
        "x.docs.example",
        "api.model.example",
        "paste.example",
        "a.paste.example",
        "10.1.0.1",
        "10.2.0.1",
        "203.0.113.1",
    ]
)
FIELDS = st.one_of(
    st.just(()),
    st.tuples(
        st.builds(
            "{}{}{}".format,
            st.sampled_from(["sandbox-alice", "sandbox-reader", "sandbox-bob", "x"]),
            st.sampled_from(["", ";intent=develop", ";intent=docs", ";intent=nothing", ";intent=rule"]),
            st.one_of(st.just(""), st.integers(1, 200_000).map(";ttl={}".format)),
        ).map(str.encode)
    ),
)
REQUESTS = st.builds(
    AccessRequest,
    agent=st.sampled_from([*POLICY.agents, None, "eve"]),
    destination=st.builds(Destination, HOSTS.map(parse_host), st.sampled_from([443, 80, 8443, 5432])),
    scope_fields=FIELDS,
    method=st.sampled_from(["GET", "POST"]),
    path=st.just("/"),
    body=st.sampled_from([0, 1, 65536, 65537, None]),
)
DURATIONS = st.integers(1, 200_000).map(lambda seconds: timedelta(seconds=seconds))


@given(REQUESTS, DURATIONS, DURATIONS)
@example(request("other.test:443", "sandbox-alice;ttl=86401"), timedelta(days=2), timedelta(days=2))
@example(request("other.test:443", "sandbox-alice;ttl=9"), timedelta(days=2), timedelta(days=2))
@example(request("other.test:443", "sandbox-alice"), timedelta(days=2), timedelta(days=2))
def test_the_time_is_the_smallest_of_all(
    asked: AccessRequest, rule_ttl: timedelta, max_ttl: timedelta
) -> None:
    """Of the field's, the intent's, the scope's and 24 hours; even where the policy holds more than that."""
    policy = replace(
        POLICY,
        scopes={name: replace(scope, max_ttl=max_ttl) for name, scope in POLICY.scopes.items()},
        intents={
            intent: {level: replace(rule, ttl=rule_ttl) for level, rule in rules.items()}
            for intent, rules in POLICY.intents.items()
        },
    )
    permit = decide(policy, asked)
    if not isinstance(permit, Permit):
        return
    bounds = [timedelta(hours=24)]
    if permit.scope is not None:
        bounds += [rule_ttl, max_ttl]
        bounds += [] if permit.scope.ttl is None else [permit.scope.ttl]
    assert permit.ttl == min(bounds)
    assert permit.ttl > timedelta(0)


@given(REQUESTS)
def test_a_permit_is_within_what_the_policy_gives(asked: AccessRequest) -> None:
    """Known agent, not known-bad, own scope, own intent, a level that the intent names, its methods and body."""
    permit = decide(POLICY, asked)
    if not isinstance(permit, Permit):
        return
    assert asked.agent is not None
    agent = POLICY.agents[asked.agent]
    assert POLICY.trust.why_bad(asked.destination) is None
    if permit.scope is None:
        assert permit.level == KNOWN_GOOD
        return
    assert permit.scope == (
        parse_scope(asked.scope_fields) if asked.scope_fields else Scope(agent.default_scope or "")
    )
    assert permit.scope.name in agent.scopes
    sandbox = POLICY.scopes[permit.scope.name]
    assert sandbox.intents is None or permit.intent in sandbox.intents
    rule = POLICY.intents[permit.intent or ""][permit.level]
    assert rule.methods is None or asked.method in rule.methods
    assert rule.max_body is None or rule.max_body >= (asked.body if asked.body is not None else 1)


PATTERNS = st.sampled_from(["other.test", "*.test", "*.docs.example", "api.model.example", "*.example"]).map(
    parse_pattern
)
NETWORKS = st.sampled_from(["10.1.0.0/16", "10.0.0.0/8", "203.0.113.1/32", "0.0.0.0/0", "::/0"]).map(
    ipaddress.ip_network
)


@given(REQUESTS, st.sets(PATTERNS, max_size=2), st.sets(NETWORKS, max_size=2))
def test_one_more_known_bad_entry_only_takes_away(
    asked: AccessRequest,
    patterns: set[HostPattern],
    networks: set[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> None:
    """It never turns a denial into a permit, and what it names is never permitted."""
    known_bad = POLICY.trust.known_bad
    more = replace(
        known_bad,
        patterns=known_bad.patterns | patterns,
        networks=(*known_bad.networks, *sorted(networks, key=str)),
    )
    policy = replace(POLICY, trust=replace(POLICY.trust, known_bad=more))
    before, after = decide(POLICY, asked), decide(policy, asked)
    if isinstance(after, Permit):
        assert after == before
    host = asked.destination.host
    named = any(pattern.matches(host) if isinstance(host, str) else False for pattern in patterns) or any(
        not isinstance(host, str) and host.version == network.version and host in network
        for network in networks
    )
    if named:
        assert isinstance(after, Deny)
        assert after.code in {DenyCode.CALLER_UNKNOWN, DenyCode.DESTINATION_DENIED}


def test_an_address_is_not_opened_on_a_port_that_its_entry_does_not_name() -> None:
    """It would be unknown there, and an intent may reach what is unknown: by name, not by address."""
    entry = CidrEntry(ipaddress.ip_network("8.8.4.0/24"), "vetted", (443,))
    closed = Policy(
        Proxy(61000),
        {"a": Agent("a", ("sandbox-a",))},
        {"sandbox-a": Sandbox("sandbox-a", "a@example.com")},
        {"default": {"unknown": IntentRule(), "vetted": IntentRule()}},
        Trust(cidrs=(entry,)),
    )
    for port, code in ((443, None), (80, DenyCode.DESTINATION_INVALID)):
        destination = Destination(ipaddress.ip_address("8.8.4.4"), port)
        decided = decide(closed, AccessRequest("a", destination, (b"sandbox-a",), "GET", "/", 0))
        assert (decided.code if isinstance(decided, Deny) else None) == code


# What is inspected by name: POLICY, with such an entry at each level of trust.

UNSEEN = replace(
    POLICY,
    agents={
        **POLICY.agents,
        "dora": Agent(
            "dora", ("sandbox-dora", "sandbox-bob"), user="agent-dora", default_scope="sandbox-dora"
        ),
    },
    scopes={**POLICY.scopes, "sandbox-dora": Sandbox("sandbox-dora", "dora@example.com", max_destinations=1)},
    intents={
        "default": {
            "pinned": IntentRule(ttl=2 * HOUR),
            "reading": IntentRule(READ),
            "small": IntentRule(max_body=65536),
        },
        "free": {level: IntentRule() for level in ("reading", "small", "other")},
    },
    trust=Trust(
        domains=tuple(
            DomainEntry(parse_pattern(f"{level}.example"), level, (80, 443), Inspection.NAME)
            for level in ("pinned", "reading", "small", "other", KNOWN_GOOD)
        ),
        cidrs=(
            CidrEntry(ipaddress.ip_network("10.3.0.0/16"), "pinned", inspection=Inspection.NAME),
            CidrEntry(ipaddress.ip_network("10.4.0.0/16"), "reading"),
            CidrEntry(ipaddress.ip_network("10.5.0.0/16"), "small"),
        ),
    ),
)


def unseen(to: str, agent: str = "dora") -> AccessRequest:
    """A TLS connection of which the proxy has seen the server's name."""
    return replace(request(to, agent=agent, method="", body=None), path="", tls=True)


def test_what_is_inspected_by_name_is_permitted_by_the_default_scope() -> None:
    permit = decide(UNSEEN, unseen("pinned.example:443"))
    assert isinstance(permit, Permit)
    assert (permit.scope, permit.intent, permit.ttl) == (Scope("sandbox-dora"), "default", 2 * HOUR)
    assert (permit.is_unseen, permit.max_body) == (True, None)


@pytest.mark.parametrize(
    ("level", "code", "detail"),
    [
        ("reading", DenyCode.METHOD_NOT_ALLOWED, "may use GET, HEAD .* methods are not seen"),
        ("small", DenyCode.BODY_TOO_LARGE, "may send 65536 bytes .* bodies are not seen"),
        ("other", DenyCode.TRUST_NOT_ALLOWED, "which intent default may not reach"),
    ],
)
def test_an_intent_that_limits_what_is_not_seen_denies_it(level: str, code: DenyCode, detail: str) -> None:
    denied = decide(UNSEEN, unseen(f"{level}.example:443"))
    assert isinstance(denied, Deny)
    assert denied.code is code
    assert re.search(detail, denied.detail)


def test_without_a_default_scope_it_is_denied_whatever_the_header_says() -> None:
    """Decrypted to be told why, a request must not do what its connection could not; `explain` decides alike."""
    for asked in (
        unseen("pinned.example:443", "alice-claude"),
        replace(request("pinned.example:443", "sandbox-alice"), tls=True),
    ):
        denied = decide(UNSEEN, asked)
        assert isinstance(denied, Deny)
        assert denied.code is DenyCode.SCOPE_MISSING
        assert "agent alice-claude has no default scope" in denied.detail


def test_a_header_chooses_neither_scope_nor_intent_where_it_is_not_seen() -> None:
    field = "sandbox-bob;intent=free"
    permit = decide(UNSEEN, replace(request("pinned.example:443", field, agent="dora"), tls=True))
    assert isinstance(permit, Permit)
    assert (permit.scope, permit.intent) == (Scope("sandbox-dora"), "default")
    denied = decide(UNSEEN, replace(request("reading.example:443", field, agent="dora"), tls=True))
    assert isinstance(denied, Deny)


def test_without_tls_it_is_decided_request_by_request() -> None:
    for method, kind in (("GET", Permit), ("POST", Deny)):
        assert isinstance(decide(UNSEEN, request("reading.example:80", agent="dora", method=method)), kind)
    permit = decide(UNSEEN, request("other.example:80", "sandbox-bob;intent=free", agent="dora"))
    assert isinstance(permit, Permit)
    assert not permit.is_unseen


def test_the_scope_must_have_room_for_it() -> None:
    denied = decide(UNSEEN, unseen("pinned.example:443"), {"sandbox-dora": destinations(1)})
    assert isinstance(denied, Deny)
    assert denied.code is DenyCode.QUOTA_EXCEEDED


def test_known_good_is_passed_on_by_name_without_a_scope() -> None:
    permit = decide(UNSEEN, unseen("known-good.example:443", "alice-claude"))
    assert isinstance(permit, Permit)
    assert (permit.scope, permit.is_unseen) == (None, True)


def test_an_address_has_no_name_to_be_inspected_by() -> None:
    permit = decide(UNSEEN, replace(request("10.3.0.1:443", agent="dora"), tls=True))
    assert isinstance(permit, Permit)
    assert not permit.is_unseen


@pytest.mark.parametrize(("level", "is_denied"), [("pinned", False), ("reading", True), ("small", True)])
def test_an_address_of_another_level_is_not_opened_to_what_is_not_seen(level: str, is_denied: bool) -> None:
    """The intent may do anything at the name's level, and not at its address's."""
    permit = decide(UNSEEN, unseen("pinned.example:443"))
    assert isinstance(permit, Permit)
    assert isinstance(intent_denies(UNSEEN, permit, level), Deny) == is_denied
