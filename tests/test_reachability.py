"""What two policies differ in: by effect, and nothing but that."""

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.decision import decide
from egress_policy.denial import Deny
from egress_policy.destination import Destination, HostPattern, parse_pattern
from egress_policy.feed import parse_feed
from egress_policy.http_request import AccessRequest
from egress_policy.policy import (
    Agent,
    CidrEntry,
    DomainEntry,
    Inspection,
    IntentRule,
    KnownBad,
    Policy,
    Trust,
)
from egress_policy.reachability import access, changes, feed_changes, no_longer_held
from tests.policies import policy

NAMES = ("a.test", "x.a.test", "y.x.a.test", "b.test")
PATTERNS = tuple(map(parse_pattern, ("a.test", "*.a.test", "x.a.test", "*.x.a.test", "b.test")))
LEVELS = ("known-good", "internal", "vetted")
BASE = policy()


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    chosen = draw(st.dictionaries(st.sampled_from(PATTERNS), st.sampled_from(LEVELS), max_size=4))
    bad = frozenset(draw(st.sets(st.sampled_from(PATTERNS), max_size=2))) - set(chosen)
    domains = tuple(
        DomainEntry(pattern, level, inspection=draw(st.sampled_from((Inspection.FULL, Inspection.NAME))))
        for pattern, level in chosen.items()
    )
    methods = draw(st.sampled_from([None, frozenset({"GET"})]))
    intents = {
        "default": {"unknown": IntentRule(methods), "vetted": IntentRule()},
        "develop": {"internal": IntentRule()},
    }
    return replace(BASE, trust=Trust(domains, (), KnownBad(bad)), intents=intents)


def is_permitted(one: Policy, host: str, scope: str, intent: str, method: str, agent: str = "alice") -> bool:
    field = f"{scope};intent={intent}".encode()
    request = AccessRequest(agent, Destination(host, 443), (field,), method, "/", 0, tls=True)
    return not isinstance(decide(one, request), Deny)


@given(
    one=policies(),
    host=st.sampled_from(NAMES),
    intent=st.sampled_from(["default", "develop", "nothing"]),
    method=st.sampled_from(["GET", "POST"]),
)
def test_access_is_what_decide_permits(one: Policy, host: str, intent: str, method: str) -> None:
    destination = Destination(host, 443)
    good = access(one, ("alice", "known-good", None), destination)
    scoped = access(one, ("alice", "sandbox-alice", intent), destination)
    permitted = good is not None or (
        scoped is not None and (scoped.methods is None or method in scoped.methods)
    )
    assert permitted == is_permitted(one, host, "sandbox-alice", intent, method)


@given(one=policies(), host=st.sampled_from(NAMES), intent=st.sampled_from(["default", "develop"]))
def test_what_is_inspected_by_name_is_the_default_intent_s_alone(one: Policy, host: str, intent: str) -> None:
    """Bob has a default scope. Whatever he asks for, it counts as the default, and as any method."""
    destination = Destination(host, 443)
    if not one.is_inspected_by_name(destination):
        return
    good = access(one, ("bob", "known-good", None), destination)
    scoped = access(one, ("bob", "sandbox-bob", intent), destination)
    assert intent == "default" or good is not None or scoped is None
    default = access(one, ("bob", "sandbox-bob", "default"), destination)
    permitted = is_permitted(one, host, "sandbox-bob", intent, "GET", "bob")
    assert permitted == (good is not None or default is not None)


@given(old=policies(), new=policies(), host=st.sampled_from(NAMES))
def test_policies_without_changes_decide_alike(old: Policy, new: Policy, host: str) -> None:
    if changes(old, new):
        return
    for intent in ("default", "develop"):
        for method in ("GET", "POST"):
            asked = (host, "sandbox-alice", intent, method)
            assert is_permitted(old, *asked) == is_permitted(new, *asked)


@given(one=policies())
def test_a_policy_does_not_differ_from_itself(one: Policy) -> None:
    assert changes(one, one) == []


def test_an_entry_that_a_wildcard_covers_already_changes_nothing() -> None:
    wide = DomainEntry(parse_pattern("*.a.test"), "known-good")
    old = replace(BASE, trust=Trust((wide,)))
    new = replace(BASE, trust=Trust((wide, DomainEntry(HostPattern("x.a.test"), "known-good"))))
    assert changes(old, new) == []


def test_what_is_no_longer_known_bad_is_newly_permitted() -> None:
    old = replace(BASE, trust=Trust(known_bad=KnownBad(frozenset({HostPattern("a.test")}))))
    found = [
        one for one in changes(old, replace(BASE, trust=Trust())) if one.destination == "a.test port 443"
    ]
    assert found
    assert all(one.before is None and one.after is not None for one in found)


def test_a_network_inside_another_is_told_by_itself() -> None:
    outer, inner = ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("10.1.0.0/24")
    old = replace(BASE, trust=Trust(cidrs=(CidrEntry(outer, "internal"),)))
    new = replace(BASE, trust=Trust(cidrs=(CidrEntry(outer, "internal"), CidrEntry(inner, "known-good"))))
    assert {one.destination for one in changes(old, new)} == {"10.1.0.0/24 port 443", "10.1.0.0/24 port 80"}


def test_feeds_are_compared_as_sets() -> None:
    def with_feed(*lines: str) -> Policy:
        return replace(BASE, trust=Trust(known_bad=KnownBad(feeds=(("bad.txt", parse_feed(lines)),))))

    (found,) = feed_changes(with_feed("a.test", "b.test"), with_feed("b.test", "c.test", "192.0.2.0/24"))
    assert (found.added, found.removed) == (2, 1)
    assert feed_changes(with_feed("a.test"), with_feed("a.test")) == []


def test_who_had_it_by_a_scope_and_now_has_it_without_is_no_loss() -> None:
    new = replace(BASE, trust=Trust((DomainEntry(HostPattern("a.test"), "known-good"),)))
    found = [
        one for one in changes(replace(BASE, trust=Trust()), new) if one.destination == "a.test port 443"
    ]
    assert found
    assert all(one.after is not None for one in found)


def test_who_is_no_longer_held_is_told() -> None:
    """To be left out of the policy is to be free of it."""
    box = Agent("box", (), interface="br0", source=ipaddress.ip_network("10.0.0.2/32"))
    pool = Agent("pool", (), user=(2001, 2010))
    old = replace(BASE, agents={**BASE.agents, "box": box, "pool": pool})
    renamed = replace(BASE, agents={"a": replace(BASE.agents["alice"], name="a")})
    assert no_longer_held(old, BASE) == [("box", "10.0.0.2/32 on br0"), ("pool", "2001-2010")]
    assert no_longer_held(BASE, old) == []
    assert no_longer_held(BASE, renamed) == [("bob", "61002")]


@pytest.mark.parametrize(
    ("entry", "intent", "seen"),
    [
        (DomainEntry(HostPattern("a.test"), "vetted", (443, 22)), "default", Inspection.NONE),
        (DomainEntry(HostPattern("a.test"), "vetted", (22,)), "default", None),
        (DomainEntry(HostPattern("a.test"), "vetted", (443, 8080)), "default", None),
        (DomainEntry(HostPattern("a.test"), "limited", (443, 22)), "default", None),
        (DomainEntry(HostPattern("a.test"), "known-good", (443, 22)), "default", Inspection.FULL),
    ],
    ids=["with a grant", "without", "the proxy's own", "limited", "known-good"],
)
def test_a_further_port_is_reached_with_a_grant_for_its_name(
    entry: DomainEntry, intent: str, seen: Inspection | None
) -> None:
    intents = {"default": {"vetted": IntentRule(), "limited": IntentRule(frozenset({"GET"}))}}
    one = replace(BASE, trust=Trust((entry,)), intents=intents)
    (port,) = {22, 8080} & {*entry.ports}
    found = access(one, ("alice", "sandbox-alice", intent), Destination("a.test", port))
    assert (None if found is None else found.inspection) == seen


def test_an_address_has_no_further_ports() -> None:
    trust = Trust(cidrs=(CidrEntry(ipaddress.ip_network("10.1.0.0/16"), "internal", (443, 22)),))
    actor = ("alice", "sandbox-alice", "develop")
    host = ipaddress.ip_address("10.1.0.1")
    assert access(replace(BASE, trust=trust), actor, Destination(host, 443)) is not None
    assert access(replace(BASE, trust=trust), actor, Destination(host, 22)) is None
