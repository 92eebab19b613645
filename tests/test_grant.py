"""What a name leads to is checked as a whole: one bad address or alias denies the answer (step 10)."""

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.addresses import why_not_public
from egress_policy.decision import Answer, Permit
from egress_policy.denial import Deny, DenyCode
from egress_policy.destination import Address, Destination, parse_host, parse_pattern
from egress_policy.feed import parse_feed
from egress_policy.grant import Grant, Resolution, issue_grant, why_addresses_denied, why_not_given
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
from egress_policy.scope import Scope

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = "3f0c5b1e-8f5e-4c53-9a43-0d5f0a1b2c3d"
POLICY = Policy(
    proxy=Proxy("egress-proxy"),
    agents={"alice-claude": Agent("alice-claude", ("sandbox-alice",), user="agent-alice")},
    scopes={"sandbox-alice": Sandbox("sandbox-alice", "alice@example.com")},
    intents={"default": {UNKNOWN: IntentRule(), "vetted": IntentRule(frozenset({"GET"}))}},
    trust=Trust(
        cidrs=(
            CidrEntry(ipaddress.ip_network("10.1.0.0/16"), "vetted"),
            CidrEntry(ipaddress.ip_network("10.1.2.0/24"), "closed"),
            CidrEntry(ipaddress.ip_network("10.2.0.0/16"), KNOWN_GOOD, (443,)),
            CidrEntry(ipaddress.ip_network("8.8.4.0/24"), "closed"),
        ),
        known_bad=KnownBad(
            patterns=frozenset({parse_pattern("*.paste.example")}),
            networks=(ipaddress.ip_network("9.9.9.0/24"), ipaddress.ip_network("10.1.9.0/24")),
            feeds=(("feeds/malware.txt", parse_feed(["malware.example", "2620:fe::9"])),),
        ),
    ),
)


def permit(method: str = "GET", port: int = 443) -> Permit:
    asked = AccessRequest("alice-claude", Destination("x.test", port), (), method, "/", 0)
    return Permit(asked, "alice-claude", UNKNOWN, timedelta(hours=1), Scope("sandbox-alice"), "default")


def known_good(port: int = 443) -> Permit:
    asked = AccessRequest("alice-claude", Destination("good.test", port), (), "GET", "/", 0)
    return Permit(asked, "alice-claude", KNOWN_GOOD, timedelta(hours=24))


def answer(*addresses: str, cnames: tuple[str, ...] = ()) -> Resolution:
    return Resolution(tuple(map(ipaddress.ip_address, addresses)), cnames, ttl=60)


def test_a_grant_says_who_where_and_until_when() -> None:
    grant = issue_grant(POLICY, permit(), answer("8.8.8.8", "2620:fe::fe"), ID, NOW)
    assert grant == Grant(
        id=ID,
        agent="alice-claude",
        scope="sandbox-alice",
        intent="default",
        destination=Destination("x.test", 443),
        addresses=(ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("2620:fe::fe")),
        issued=NOW,
        expires=NOW + timedelta(hours=1),
    )


def test_known_good_is_kept_under_its_own_name() -> None:
    grant = issue_grant(POLICY, known_good(), answer("8.8.8.8"), ID, NOW)
    assert isinstance(grant, Grant)
    assert (grant.scope, grant.intent) == ("known-good", None)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_at_most_sixteen_addresses_are_opened(count: int) -> None:
    addresses = [f"8.8.8.{number}" for number in range(count)]
    grant = issue_grant(POLICY, permit(), answer(*addresses), ID, NOW)
    assert isinstance(grant, Grant)
    assert list(map(str, grant.addresses)) == addresses[:16]


def test_the_seventeenth_address_is_checked_all_the_same() -> None:
    """What is not opened may still show what the name is."""
    addresses = [*(f"8.8.8.{number}" for number in range(16)), "127.0.0.1"]
    denied = issue_grant(POLICY, permit(), answer(*addresses), ID, NOW)
    assert isinstance(denied, Deny)
    assert denied.code is DenyCode.ADDRESS_DENIED


@pytest.mark.parametrize(
    ("asked", "resolution"),
    [
        pytest.param(permit(), answer("8.8.8.8"), id="public"),
        pytest.param(permit(), answer("2620:fe::fe"), id="public-ipv6"),
        pytest.param(permit(), answer("9.9.8.255", "9.9.10.0"), id="beside-known-bad"),
        pytest.param(permit(), answer("8.8.8.8", cnames=("a.test", "paste.example")), id="harmless-aliases"),
        pytest.param(permit(), answer("10.1.0.1"), id="private-that-an-entry-opens"),
        pytest.param(permit(), answer("8.8.8.8", "10.1.0.1"), id="public-and-opened"),
        pytest.param(permit(), answer("8.8.4.4"), id="public-of-another-level"),
        pytest.param(permit(), answer("10.2.0.1"), id="private-that-is-known-good"),
        pytest.param(known_good(), answer("10.2.0.1"), id="known-good-name-and-address"),
        pytest.param(known_good(), answer("8.8.8.8"), id="known-good-name-public-address"),
        pytest.param(None, answer("8.8.8.8"), id="known-good-in-dns"),
        pytest.param(None, answer("10.2.0.1"), id="known-good-in-dns-and-address"),
    ],
)
def test_addresses_that_may_be(asked: Permit | None, resolution: Resolution) -> None:
    assert why_addresses_denied(POLICY, resolution, 443, asked) is None


@pytest.mark.parametrize(
    ("asked", "resolution", "port", "why"),
    [
        pytest.param(
            permit(), answer("127.0.0.1"), 443, "127.0.0.1 is not public (private, loopback", id="loopback"
        ),
        pytest.param(permit(), answer("169.254.169.254"), 443, "is not public", id="cloud-metadata"),
        pytest.param(
            permit(), answer("168.63.129.16"), 443, "not public (cloud metadata)", id="azure-metadata"
        ),
        pytest.param(permit(), answer("100.64.0.1"), 443, "not public (shared address space", id="cgnat"),
        pytest.param(permit(), answer("224.0.0.1"), 443, "not public (multicast", id="multicast"),
        pytest.param(permit(), answer("::ffff:8.8.8.8"), 443, "not global unicast", id="ipv4-mapped"),
        pytest.param(permit(), answer("64:ff9b::808:808"), 443, "not global unicast", id="nat64"),
        pytest.param(permit(), answer("2002:808:808::1"), 443, "6to4", id="6to4"),
        pytest.param(
            permit(), answer("198.18.0.1"), 443, "our synthetic addresses", id="our-own-synthetic-address"
        ),
        pytest.param(
            permit(),
            answer("10.3.0.1"),
            443,
            "no cidr entry of the policy opens it",
            id="private-beside-entries",
        ),
        pytest.param(
            permit(), answer("10.1.0.1"), 22, "no cidr entry of the policy opens it", id="another-port"
        ),
        pytest.param(
            permit(), answer("8.8.8.8", "10.3.0.1"), 443, "10.3.0.1 is not public", id="one-bad-among-good"
        ),
        pytest.param(
            permit(), answer("10.3.0.1", "8.8.8.8"), 443, "10.3.0.1 is not public", id="the-first-bad"
        ),
        pytest.param(
            permit(), answer("10.1.2.1"), 443, "10.1.2.1 is closed: ", id="level-that-the-intent-has-not"
        ),
        pytest.param(
            permit("POST"),
            answer("10.1.0.1"),
            443,
            "10.1.0.1 is vetted: intent default may use GET",
            id="method-of-the-level",
        ),
        pytest.param(
            permit(),
            answer("10.2.0.1", "10.1.2.1"),
            443,
            "10.1.2.1 is closed",
            id="behind-a-known-good-address",
        ),
        pytest.param(
            known_good(),
            answer("10.1.0.1"),
            443,
            "10.1.0.1 is vetted: a known-good name",
            id="known-good-name-vetted-address",
        ),
        pytest.param(
            known_good(), answer("10.3.0.1"), 443, "no cidr entry", id="known-good-name-private-address"
        ),
        pytest.param(
            None,
            answer("10.1.0.1"),
            443,
            "a known-good name does not open",
            id="known-good-in-dns-vetted-address",
        ),
        pytest.param(
            None, answer("127.0.0.1"), 443, "127.0.0.1 is not public", id="known-good-in-dns-loopback"
        ),
        pytest.param(
            permit(),
            answer("9.9.9.9"),
            443,
            "leads to 9.9.9.9, which is known-bad: 9.9.9.0/24",
            id="known-bad-address",
        ),
        pytest.param(
            permit(),
            answer("2620:fe::9"),
            443,
            "2620:fe::9/128 in feeds/malware.txt",
            id="known-bad-in-a-feed",
        ),
        pytest.param(
            permit(), answer("8.8.8.8", "9.9.9.9"), 443, "9.9.9.0/24", id="one-known-bad-among-good"
        ),
        pytest.param(permit(), answer("10.1.9.1"), 443, "10.1.9.0/24", id="known-bad-inside-an-entry"),
        pytest.param(
            known_good(), answer("9.9.9.9"), 443, "9.9.9.0/24", id="known-good-name-known-bad-address"
        ),
        pytest.param(None, answer("9.9.9.9"), 443, "9.9.9.0/24", id="known-good-in-dns-known-bad-address"),
        pytest.param(
            permit(),
            answer("8.8.8.8", cnames=("a.test", "x.paste.example", "b.test")),
            443,
            "leads to x.paste.example, which is known-bad: *.paste.example",
            id="known-bad-alias",
        ),
        pytest.param(
            permit(),
            answer("8.8.8.8", cnames=("x.malware.example",)),
            443,
            "malware.example in feeds",
            id="alias-in-a-feed",
        ),
        pytest.param(
            None,
            answer("8.8.8.8", cnames=("x.paste.example",)),
            443,
            "known-bad",
            id="known-good-in-dns-known-bad-alias",
        ),
    ],
)
def test_addresses_that_may_not_be(asked: Permit | None, resolution: Resolution, port: int, why: str) -> None:
    """Whoever controls a name's DNS does not choose where our packets go."""
    denied = why_addresses_denied(POLICY, resolution, port, asked)
    assert denied is not None
    assert denied.code is DenyCode.ADDRESS_DENIED
    assert why in denied.detail


def test_the_port_of_the_request_counts() -> None:
    """10.2.0.0/16 is opened on port 443."""
    assert isinstance(issue_grant(POLICY, permit(port=443), answer("10.2.0.1"), ID, NOW), Grant)
    assert isinstance(issue_grant(POLICY, permit(port=80), answer("10.2.0.1"), ID, NOW), Deny)


@given(
    st.lists(
        st.one_of(
            st.ip_addresses(),
            st.sampled_from(["10.1.0.1", "10.2.0.1", "9.9.9.9", "8.8.8.8"]).map(ipaddress.ip_address),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_no_answer_opens_what_is_neither_public_nor_an_entrys(addresses: list[Address]) -> None:
    grant = issue_grant(POLICY, permit(), Resolution(tuple(addresses)), ID, NOW)
    if isinstance(grant, Grant):
        for address in addresses:
            assert POLICY.trust.known_bad.why_address(address) is None
            assert why_not_public(address) is None or POLICY.trust.cidr_for(address, 443) is not None


# Further ports: of names on these levels, with what the intents of FURTHER may do there.

FURTHER = replace(
    POLICY,
    intents={
        "default": {
            UNKNOWN: IntentRule(),
            "vetted": IntentRule(),
            "reading": IntentRule(frozenset({"GET"})),
            "small": IntentRule(max_body=0),
            "asking": IntentRule(needs_approval=True),
        }
    },
    trust=replace(
        POLICY.trust,
        domains=(
            DomainEntry(parse_pattern("git.test"), "vetted", (443, 2222, 22)),
            DomainEntry(parse_pattern("*.git.test"), "vetted", (443, 22)),
            DomainEntry(parse_pattern("own.test"), "vetted", (80, 443, 53, 8080, 8053)),
            DomainEntry(parse_pattern("mixed.test"), "reading", (443, 22)),
            DomainEntry(parse_pattern("mixed.test"), "vetted", (23,)),
            DomainEntry(parse_pattern("mixed.test"), "small", (24,)),
            DomainEntry(parse_pattern("mixed.test"), "asking", (25,)),
            DomainEntry(parse_pattern("mixed.test"), "closed", (26,)),
            DomainEntry(parse_pattern("mixed.test"), KNOWN_GOOD, (27,), Inspection.NAME),
            DomainEntry(parse_pattern("mixed.test"), KNOWN_GOOD, (28,), Inspection.NONE),
        ),
        cidrs=(*POLICY.trust.cidrs, CidrEntry(ipaddress.ip_network("10.4.0.0/16"), "vetted", (443, 22))),
    ),
)


def asked_for(host: str, method: str = "GET") -> Permit:
    given = permit(method)
    return replace(given, request=replace(given.request, destination=Destination(parse_host(host), 443)))


@pytest.mark.parametrize(
    ("given", "led_to", "ports"),
    [
        pytest.param(asked_for("git.test"), "8.8.8.8", (22, 2222), id="those of the entry, in order"),
        pytest.param(asked_for("a.git.test"), "8.8.8.8", (22,), id="those of a wildcard"),
        pytest.param(asked_for("git.test", "PURGE"), "8.8.8.8", (22, 2222), id="whatever the method was"),
        pytest.param(asked_for("x.test"), "8.8.8.8", (), id="none of unknown"),
        pytest.param(asked_for("own.test"), "8.8.8.8", (), id="none of the proxy's own"),
        pytest.param(asked_for("mixed.test"), "8.8.8.8", (23, 27), id="each by its own entry"),
        pytest.param(
            replace(asked_for("mixed.test"), answer=Answer(True, timedelta(hours=1), "alice")), "8.8.8.8",
            (23, 25, 27), id="an approval holds for them",
        ),
        pytest.param(
            replace(asked_for("mixed.test"), answer=Answer(True, timedelta(hours=1), "alice", once=True)), "8.8.8.8",
            (), id="one for one request does not",
        ),
        pytest.param(
            replace(asked_for("mixed.test"), level=KNOWN_GOOD, scope=None, intent=None), "8.8.8.8", (27,),
            id="known-good opens known-good",
        ),
        pytest.param(asked_for("git.test"), "10.4.0.1", (22,), id="those that the address's entry has"),
        pytest.param(asked_for("10.4.0.1"), "10.4.0.1", (), id="an address has none"),
    ],
)  # fmt: skip
def test_further_ports_are_those_of_which_nothing_need_be_seen(
    given: Permit, led_to: str, ports: tuple[int, ...]
) -> None:
    grant = issue_grant(FURTHER, given, answer(led_to), ID, NOW)
    assert isinstance(grant, Grant)
    assert grant.ports == ports


def test_a_policy_that_would_not_open_a_port_does_not_give_the_grant_that_did() -> None:
    grant = issue_grant(FURTHER, asked_for("git.test"), answer("8.8.8.8"), ID, NOW)
    assert isinstance(grant, Grant)
    assert why_not_given(FURTHER, grant, (), {}) is None
    entry = DomainEntry(parse_pattern("git.test"), "vetted", (443, 2222))
    fewer = replace(FURTHER, trust=replace(FURTHER.trust, domains=(entry,)))
    assert why_not_given(fewer, grant, (), {}) == "it would not open port 22"
    limits = {"default": {"vetted": IntentRule(frozenset({"GET"}))}}
    assert why_not_given(replace(FURTHER, intents=limits), grant, (), {}) == "it would not open port 22"


@pytest.mark.parametrize(("port", "is_given"), [(80, True), (443, False), (8443, False)])
def test_what_may_be_passed_on_undecrypted_is_not_given_where_an_intent_limits_it_now(
    port: int, is_given: bool
) -> None:
    """On any port but 80 a connection may run of which nothing but the name was seen."""
    agents = {"alice-claude": replace(POLICY.agents["alice-claude"], default_scope="sandbox-alice")}
    entry = DomainEntry(parse_pattern("x.test"), "vetted", (80, 443, 8443), Inspection.NAME)
    named = replace(POLICY, agents=agents, trust=Trust((entry,)))
    grant = Grant(
        ID, "alice-claude", "sandbox-alice", "default", Destination("x.test", port),
        (ipaddress.ip_address("8.8.8.8"),), NOW, NOW + timedelta(hours=1),
    )  # fmt: skip
    why = why_not_given(named, grant, (), {})
    assert (why is None) == is_given
    assert is_given or "methods are not seen here" in str(why)


@pytest.mark.parametrize(
    ("scope", "intent", "is_given"), [("alice", "default", True), ("alice", "free", False)]
)
def test_what_is_inspected_by_name_now_is_given_to_the_default_scope_and_intent_alone(
    scope: str, intent: str, is_given: bool
) -> None:
    agents = {"alice-claude": replace(POLICY.agents["alice-claude"], default_scope="sandbox-alice")}
    entry = DomainEntry(parse_pattern("x.test"), "vetted", inspection=Inspection.NAME)
    named = replace(
        POLICY,
        agents=agents,
        trust=Trust((entry,)),
        intents={intent: {"vetted": IntentRule()} for intent in ("default", "free")},
    )
    grant = Grant(
        ID, "alice-claude", f"sandbox-{scope}", intent, Destination("x.test", 443),
        (ipaddress.ip_address("8.8.8.8"),), NOW, NOW + timedelta(hours=1),
    )  # fmt: skip
    why = why_not_given(named, grant, (), {})
    assert (why is None) == is_given
    assert is_given or "inspected by name now" in str(why)
