"""Exported rules mean what decide() means, wherever the target can say it; they never permit more."""

import ipaddress
from collections.abc import Sequence
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from egress_policy.decision import Permit, decide
from egress_policy.destination import Destination, Host, HostPattern
from egress_policy.export.cilium import compile_cilium_policies
from egress_policy.export.compiled import Compiled, Pods
from egress_policy.export.istio import compile_istio
from egress_policy.export.networkpolicy import compile_network_policies, names_to_resolve
from egress_policy.feed import parse_feed
from egress_policy.grant import Resolution, why_addresses_denied
from egress_policy.http_request import AccessRequest
from egress_policy.policy import (
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
from tests.export.reading import (
    Address,
    cilium_answers,
    cilium_permits,
    istio_permits,
    network_policy_permits,
)

NAMES = ("a.example", "b.a.example", "c.b.a.example", "xa.example", "d.example", "b.d.example")
NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        (
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.1.0/24",
            "10.1.1.1/32",
            "93.0.0.0/8",
            "93.1.0.0/16",
            "93.1.1.1/32",
            "fd00::/16",
            "fd00:1::/32",
            "2600::/16",
            "2600:1::/32",
        ),
    )
)
ADDRESSES: tuple[Address, ...] = tuple(
    map(
        ipaddress.ip_address,
        (
            "10.0.0.1",
            "10.1.0.1",
            "10.1.1.1",
            "10.1.1.2",
            "93.0.0.1",
            "93.1.0.1",
            "93.1.1.1",
            "8.8.8.8",
            "169.254.169.254",
            "fd00::1",
            "fd00:1::1",
            "2600::1",
            "2600:1::1",
            "2001:db8::1",
            "::ffff:10.0.0.1",
        ),
    )
)
PORTS = (80, 443, 5432)
LEVELS = ("known-good", "known-good", "vetted", "known-bad")
LABELS = {"egress-policy/agent": "alice"}
PODS = (Pods("alice", "agents"),)

patterns = st.builds(HostPattern, st.sampled_from(NAMES), st.booleans())


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Entries at every level that lie inside each other, on some ports each."""
    named = draw(
        st.dictionaries(st.tuples(patterns, st.sampled_from(PORTS)), st.sampled_from(LEVELS), max_size=8)
    )
    placed = draw(
        st.dictionaries(
            st.tuples(st.sampled_from(NETWORKS), st.sampled_from(PORTS)), st.sampled_from(LEVELS), max_size=8
        )
    )
    inspections = st.sampled_from(Inspection)
    domains = tuple(
        DomainEntry(
            pattern,
            level,
            (port,),
            draw(inspections.filter(lambda one: one is not Inspection.NONE))
            if pattern.below
            else draw(inspections),
        )
        for (pattern, port), level in named.items()
        if level != "known-bad"
    )
    cidrs = tuple(
        CidrEntry(network, level, (port,), draw(inspections))
        for (network, port), level in placed.items()
        if level != "known-bad"
    )
    feed = parse_feed(
        draw(st.lists(st.sampled_from(["d.example", "c.b.a.example", "10.1.1.1", "93.1.0.0/16"]), max_size=2))
    )
    known_bad = KnownBad(
        frozenset(pattern for (pattern, _), level in named.items() if level == "known-bad"),
        tuple(dict.fromkeys(network for (network, _), level in placed.items() if level == "known-bad")),
        (("feed.txt", feed),),
    )
    return Policy(
        proxy=Proxy(61000),
        agents={"alice": Agent("alice", ("sandbox-alice",), user=(61001, 61001))},
        scopes={"sandbox-alice": Sandbox("sandbox-alice", "alice@example.com")},
        intents={"default": {"vetted": IntentRule(), "unknown": IntentRule()}},
        trust=Trust(domains, cidrs, known_bad),
    )


def is_known_good(policy: Policy, host: Host, port: int) -> bool:
    """Whether decide() lets it through without a scope."""
    decided = decide(policy, AccessRequest("alice", Destination(host, port), (), "GET", "/", 0))
    return isinstance(decided, Permit)


def is_by_wildcard(policy: Policy, name: str, port: int) -> bool:
    entry = policy.trust.entry_for(Destination(name, port))
    return isinstance(entry, DomainEntry) and entry.pattern.below


def is_said_lost(policy: Policy, compiled: Compiled, host: Host, port: int) -> bool:
    entry = policy.trust.entry_for(Destination(host, port))
    assert entry is not None
    named = str(entry.pattern if isinstance(entry, DomainEntry) else entry.network)
    return any(loss.startswith((f"{named} ", f"{named}:")) and "left out" in loss for loss in compiled.losses)


def check(policy: Policy, compiled: Compiled, host: Host, port: int, permitted: bool) -> None:
    """Never more; less only where the export says so."""
    decided = is_known_good(policy, host, port)
    assert decided or not permitted, f"{host}:{port} is permitted, and decide() denies it"
    if decided and not permitted:
        assert is_said_lost(policy, compiled, host, port), f"{host}:{port} is lost, and nothing says so"


@settings(max_examples=200, deadline=None)
@given(policies())
def test_a_network_policy_means_what_decide_means(policy: Policy) -> None:
    compiled = compile_network_policies(policy, PODS)
    for address, port in product(ADDRESSES, PORTS):
        permitted = network_policy_permits(compiled.objects, LABELS, address, port)
        check(policy, compiled, address, port, permitted)


@settings(max_examples=200, deadline=None)
@given(policies(), st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=2))
def test_resolved_names_open_checked_addresses_only(policy: Policy, addresses: Sequence[Address]) -> None:
    """An address in a NetworkPolicy is known-good itself, or where a known-good name leads, as the proxy checks it."""
    resolution = Resolution(tuple(addresses))
    names = names_to_resolve(policy)
    compiled = compile_network_policies(policy, PODS, dict.fromkeys(names, resolution))
    for address, port in product(ADDRESSES, PORTS):
        named = [
            name
            for name in names
            if address in addresses
            and is_known_good(policy, name, port)
            and not is_by_wildcard(policy, name, port)
            and why_addresses_denied(policy, resolution, port) is None
        ]
        permitted = network_policy_permits(compiled.objects, LABELS, address, port)
        if permitted:
            assert named or is_known_good(policy, address, port)
        elif named:
            raise AssertionError(f"{named[0]} leads to {address}:{port}, which is closed")


@settings(max_examples=200, deadline=None)
@given(policies())
def test_cilium_means_what_decide_means(policy: Policy) -> None:
    """Names by where they lead too: step 10 of the decision."""
    compiled = compile_cilium_policies(policy, PODS)
    for address, port in product(ADDRESSES, PORTS):
        permitted = cilium_permits(compiled.objects, LABELS, None, address, port)
        check(policy, compiled, address, port, permitted)
    for name, port, address in product(NAMES, PORTS, ADDRESSES):
        if not is_known_good(policy, name, port):
            continue
        permitted = cilium_permits(compiled.objects, LABELS, name, address, port)
        if is_known_good(policy, address, port):
            continue  # open by itself, whatever name led there
        checked = why_addresses_denied(policy, Resolution((address,)), port) is None
        assert checked or not permitted
        if checked and not permitted:
            assert is_said_lost(policy, compiled, name, port)
    for name in NAMES:
        if cilium_answers(compiled.objects, LABELS, name):
            assert any(is_known_good(policy, name, port) for port in PORTS)
        public = ipaddress.ip_address("8.8.8.8")
        for port in PORTS:
            permitted = cilium_permits(compiled.objects, LABELS, name, public, port)
            check(policy, compiled, name, port, permitted)


@settings(max_examples=200, deadline=None)
@given(policies())
def test_istio_means_what_decide_means(policy: Policy) -> None:
    compiled = compile_istio(policy, PODS)
    for host, port in product((*NAMES, *ADDRESSES), PORTS):
        permitted = istio_permits(compiled.objects, LABELS, host, port)
        check(policy, compiled, host, port, permitted)


def test_pods_of_no_agent_are_left_alone() -> None:
    """The reading itself: what nothing selects is open, so the tests above are about the rules."""
    assert network_policy_permits([], LABELS, ADDRESSES[0], 443)
    assert cilium_permits([], LABELS, None, ADDRESSES[0], 443)
    assert istio_permits([], LABELS, "a.example", 443)
