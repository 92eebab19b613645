"""The text that the policy becomes, and what is refused before anything reaches the kernel."""

import ipaddress
import re
from dataclasses import replace

import pytest

from egress_policy.destination import Network
from egress_policy.firewall import Elements, FirewallError, Ruleset, apply, compose, is_loaded

EMPTY = Ruleset(61000, 8080, 8053, (80, 443))


def network(text: str) -> Network:
    return ipaddress.ip_network(text)


def elements(ruleset: Ruleset, family: str = "inet") -> dict[str, set[str]]:
    """Read the static sets' elements back out of the text."""
    added = re.findall(
        rf"^add element {family} egress-policy (\S+) \{{\n(.*?)\n\}}$",
        compose(ruleset),
        re.MULTILINE | re.DOTALL,
    )
    assert len({name for name, _ in added}) == len(added), "a set is filled twice"
    return {name: set(listed.split(",\n")) for name, listed in added}


def test_the_definitions_come_first() -> None:
    """The ruleset uses them from its first line on."""
    assert compose(EMPTY).splitlines()[:4] == [
        "define proxy_uid = 61000",
        "define proxy_port = 8080",
        "define dns_port = 8053",
        "define proxy_ports = { 80, 443 }",
    ]


def test_an_empty_set_is_not_filled() -> None:
    """`nft` takes no list without an element."""
    assert elements(EMPTY) == {}


def test_agents_are_uids_or_addresses_behind_links() -> None:
    ruleset = Ruleset(
        61000, 8080, 8053, (80,),
        agent_ports=((1024, 65535),),
        agent_uids=((62500, 62999), (61001, 61001), (62000, 62499)),
        loopback=(((61001, 61001), (1024, 65535)), ((61001, 61001), (2000, 2010)), ((62000, 62999), (5432, 5432))),
        agent_links=(
            ("veth0", network("10.0.0.2/32")),
            ("veth0", network("fd00::2/128")),
            ("veth1", network("10.0.0.3/32")),
        ),
    )  # fmt: skip
    assert elements(ruleset) == {
        "agent-uids": {"61001", "62000-62999"},
        "agent-loopback": {"61001 . 1024-65535", "62000-62999 . 5432"},
        "agent-ports": {"1024-65535"},
        "agent-links": {'"veth0"', '"veth1"'},
        "agent-sources": {"10.0.0.2-10.0.0.3"},
        "agent-sources-ipv6": {"fd00::2"},
        "agent-link-sources": {'"veth0" . 10.0.0.2', '"veth1" . 10.0.0.3'},
        "agent-link-sources-ipv6": {'"veth0" . fd00::2'},
    }


def test_agents_behind_a_bridges_ports() -> None:
    """A port is a link too: should it leave the bridge, what comes from it is refused."""
    ruleset = replace(
        EMPTY,
        agent_links=(("br0", network("10.0.0.2/32")), ("br0", network("fd00::2/128"))),
        bridge_ports=(("veth0", network("10.0.0.2/32")), ("veth0", network("fd00::/127")), ("veth1", network("fe80::/9"))),
    )  # fmt: skip
    assert elements(ruleset)["agent-links"] == {'"br0"', '"veth0"', '"veth1"'}
    assert elements(ruleset, "bridge") == {
        "agent-links": {'"veth0"', '"veth1"'},
        "agent-sources": {"10.0.0.2"},
        "agent-sources-ipv6": {"fd00::-fd00::1", "fe80::-feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
        "agent-link-sources": {'"veth0" . 10.0.0.2'},
        "agent-link-sources-ipv6": {
            '"veth0" . fd00::-fd00::1',
            '"veth1" . fe80::-feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff',
        },
        "agent-link-targets": {
            f'"veth0" . 0xfd00{0:028x}-0xfd00{1:028x}',
            f'"veth0" . 0xfe80{0:028x}-0xfebf{"f" * 28}',
            f'"veth1" . 0xfe80{0:028x}-0xfeff{"f" * 28}',
        },
    }


def test_a_kernel_without_bridges_is_asked_for_none() -> None:
    """Where no agent is behind a port."""
    assert "bridge egress-policy" not in compose(EMPTY)
    assert "table bridge egress-policy" in compose(
        replace(EMPTY, bridge_ports=(("veth0", network("10.0.0.2")),))
    )


def test_overlapping_networks_become_one() -> None:
    """On each port: a set with two fields does not take entries that overlap."""
    ruleset = Ruleset(
        61000, 8080, 8053, (80,),
        known_good=(
            (network("9.0.0.0/8"), 443),
            (network("9.1.0.0/16"), 443),
            (network("9.1.0.0/16"), 8443),
            (network("9.1.0.0/16"), 8443),
            (network("2a00::/16"), 443),
            (network("2a00:1450::/32"), 443),
        ),
        known_bad=(
            network("66.0.0.0/9"),
            network("66.128.0.0/9"),
            network("66.6.6.6/32"),
            network("2a0f::/33"),
            network("2a0f:0:8000::/33"),
        ),
    )  # fmt: skip
    assert elements(ruleset) == {
        "known-good-ipv4": {"9.0.0.0-9.255.255.255 . 443", "9.1.0.0-9.1.255.255 . 8443"},
        "known-good-ipv6": {"2a00::-2a00:ffff:ffff:ffff:ffff:ffff:ffff:ffff . 443"},
        "known-bad-ipv4": {"66.0.0.0-66.255.255.255"},
        "known-bad-ipv6": {"2a0f::-2a0f:0:ffff:ffff:ffff:ffff:ffff:ffff"},
    }


def test_name_servers_are_sorted_by_family() -> None:
    ruleset = Ruleset(
        61000, 8080, 8053, (80,),
        nameservers=((ipaddress.ip_address("9.9.9.9"), 53), (ipaddress.ip_address("2620:fe::fe"), 5353)),
    )  # fmt: skip
    assert elements(ruleset) == {"nameservers": {"9.9.9.9 . 53"}, "nameservers-ipv6": {"2620:fe::fe . 5353"}}


@pytest.mark.parametrize("timeout", [0, -1, 24 * 3600 + 1, float("nan")])
async def test_a_timeout_is_more_than_nothing_and_at_most_a_day(timeout: float) -> None:
    """Zero would be for ever."""
    with pytest.raises(ValueError, match="not between 0 and 24 hours"):
        await Elements().insert("developer-sandbox", [(ipaddress.ip_address("9.9.9.9"), 443)], timeout, "x")


def test_without_nft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    for call in (lambda: apply(EMPTY), is_loaded):
        with pytest.raises(FirewallError, match="install the package `nftables`"):
            call()
