"""What of a policy the kernel enforces by itself."""

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest

from egress_policy.accounts import AccountError
from egress_policy.feed import parse_feed
from egress_policy.firewall import compose
from egress_policy.kernel_policy import keep_for_boot, ruleset_of
from egress_policy.policy import Agent, CidrEntry, Inspection, KnownBad, Policy, Proxy, Trust
from tests.policies import NAMESERVER, policy

BOX = Agent("box", (), interface="veth0", source=ipaddress.ip_network("10.0.0.2"))


def with_agents(*agents: Agent) -> Policy:
    return replace(policy(), agents={agent.name: agent for agent in agents})


def test_the_proxy_is_who_and_where_the_policy_says() -> None:
    ruleset = ruleset_of(
        replace(
            policy(), proxy=Proxy(61005, port=3128, ports=(80, 443, 8443), dns_port=5353, console_port=5380)
        ),
        (NAMESERVER,),
    )
    assert (ruleset.proxy_uid, ruleset.proxy_port, ruleset.dns_port) == (61005, 3128, 5353)
    assert ruleset.proxy_ports == (80, 443, 8443)
    assert ruleset.console_port == 5380
    assert ruleset.nameservers == (NAMESERVER,)


def test_agents_are_known_by_uid_or_by_link_and_source() -> None:
    many = Agent("many", (), user=(62000, 62999), loopback=((5432, 5432), (9000, 9100)))
    ruleset = ruleset_of(with_agents(Agent("one", (), user="nobody"), many, BOX), ())
    (nobody, _), (low, high) = ruleset.agent_uids
    assert nobody == 65534
    assert (low, high) == (62000, 62999)
    assert ruleset.agent_links == (("veth0", ipaddress.ip_network("10.0.0.2")),)
    assert ruleset.loopback == (
        ((65534, 65534), (1024, 65535)),
        ((62000, 62999), (5432, 5432)),
        ((62000, 62999), (9000, 9100)),
    )


def test_an_agent_behind_a_port_is_known_by_it_too() -> None:
    bridged = replace(
        BOX, name="bridged", interface="br0", port="veth1", source=ipaddress.ip_network("10.0.0.3")
    )
    ruleset = ruleset_of(with_agents(BOX, bridged), ())
    assert ruleset.agent_links == (
        ("veth0", ipaddress.ip_network("10.0.0.2")),
        ("br0", ipaddress.ip_network("10.0.0.3")),
    )
    assert ruleset.bridge_ports == (("veth1", ipaddress.ip_network("10.0.0.3")),)


def test_agents_of_this_host_can_listen_on_ports_that_need_no_privilege() -> None:
    """Containers listen on a host of their own: nobody's SYN cookies are in question."""
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    ruleset = ruleset_of(with_agents(Agent("one", (), user=(62000, 62000)), BOX), ())
    assert ruleset.agent_ports == ((first, 65535),)
    assert ruleset_of(with_agents(BOX), ()).agent_ports == ()


@pytest.mark.parametrize("user", ["root", (0, 5), (60000, 61000), "no-such-user-here"])
def test_root_the_proxy_and_nobody_known_are_no_agents(user: str | tuple[int, int]) -> None:
    """The ruleset would cut the proxy off, or the host."""
    with pytest.raises(AccountError, match=r"agents\.a\.user"):
        ruleset_of(with_agents(Agent("a", (), user=user)), ())


def test_the_kernel_passes_known_good_without_inspection_alone() -> None:
    """And what another entry says of a part of it stays with the proxy."""
    wide, inner, other = (ipaddress.ip_network(text) for text in ("9.0.0.0/30", "9.0.0.3/32", "9.1.0.0/16"))
    trust = Trust(
        cidrs=(
            CidrEntry(wide, "known-good", (443, 8443), Inspection.NONE),
            CidrEntry(inner, "internal", (443,)),
            CidrEntry(other, "known-good", (443,), Inspection.FULL),
        )
    )
    opened = ruleset_of(replace(policy(), trust=trust), ()).known_good
    assert set(opened) == {
        (ipaddress.ip_network("9.0.0.0/31"), 443),
        (ipaddress.ip_network("9.0.0.2/32"), 443),
        (wide, 8443),
    }


def test_known_bad_is_the_policys_and_the_feeds() -> None:
    listed, *fed = map(ipaddress.ip_network, ("66.0.0.0/8", "67.0.0.0/8", "68.0.0.1/32"))
    bad = KnownBad(networks=(listed,), feeds=(("feed.txt", parse_feed(["67.0.0.0/8", "68.0.0.1"])),))
    ruleset = ruleset_of(replace(policy(), trust=Trust(known_bad=bad)), ())
    assert set(ruleset.known_bad) == {listed, *fed}


def test_what_is_kept_for_boot_names_the_agents_and_opens_nothing(tmp_path: Path) -> None:
    """Root's alone: nft(8) does as root what it says."""
    good = CidrEntry(ipaddress.ip_network("198.51.100.0/24"), "known-good", (443,), Inspection.NONE)
    ruleset = ruleset_of(
        replace(with_agents(BOX, Agent("one", (), user=(62000, 62000))), trust=Trust(cidrs=(good,))),
        (NAMESERVER,),
    )
    assert "198.51.100.0" in compose(ruleset)
    path = tmp_path / "boot.nft"
    path.write_text("what was kept before")
    keep_for_boot(ruleset, path)
    kept = path.read_text()
    assert "add element inet egress-policy agent-uids {\n62000\n}" in kept
    assert '"veth0" . 10.0.0.2' in kept
    assert "198.51.100.0" not in kept
    assert f"{NAMESERVER[0]} . " not in kept
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
