"""What is not the public internet, with the addresses just inside and just outside of each range."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.addresses import why_not_public
from egress_policy.destination import Address

OTHER = "private, loopback, link-local, documentation or reserved"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        pytest.param("0.0.0.0", OTHER, id="this-host"),
        pytest.param("0.255.255.255", OTHER, id="this-network-last"),
        pytest.param("10.0.0.0", OTHER, id="private-10-first"),
        pytest.param("10.255.255.255", OTHER, id="private-10-last"),
        pytest.param("100.64.0.0", "shared address space", id="cgnat-first"),
        pytest.param("100.100.100.200", "shared address space", id="cloud-metadata-in-cgnat"),
        pytest.param("100.127.255.255", "shared address space", id="cgnat-last"),
        pytest.param("127.0.0.1", OTHER, id="loopback"),
        pytest.param("127.255.255.255", OTHER, id="loopback-last"),
        pytest.param("168.63.129.16", "cloud metadata", id="azure-metadata"),
        pytest.param("169.254.0.0", OTHER, id="link-local-first"),
        pytest.param("169.254.169.254", OTHER, id="cloud-metadata"),
        pytest.param("169.254.255.255", OTHER, id="link-local-last"),
        pytest.param("172.16.0.0", OTHER, id="private-172-first"),
        pytest.param("172.31.255.255", OTHER, id="private-172-last"),
        pytest.param("192.0.0.0", "IETF protocol assignments", id="ietf-assignments-ipv4-first"),
        pytest.param(
            "192.0.0.10", "IETF protocol assignments", id="global-by-the-registry-and-no-web-server"
        ),
        pytest.param("192.0.0.255", "IETF protocol assignments", id="ietf-assignments-ipv4-last"),
        pytest.param("192.0.0.192", "IETF protocol assignments", id="ietf-assignments"),
        pytest.param("192.0.2.1", OTHER, id="documentation-1"),
        pytest.param("192.88.99.0", "6to4 relay", id="6to4-relay-first"),
        pytest.param("192.88.99.255", "6to4 relay", id="6to4-relay-last"),
        pytest.param("192.168.0.0", OTHER, id="private-192-first"),
        pytest.param("192.168.255.255", OTHER, id="private-192-last"),
        pytest.param("198.18.0.0", "benchmarking", id="benchmarking-first"),
        pytest.param("198.19.255.255", "benchmarking", id="benchmarking-last"),
        pytest.param("198.51.100.1", OTHER, id="documentation-2"),
        pytest.param("203.0.113.1", OTHER, id="documentation-3"),
        pytest.param("224.0.0.0", "multicast", id="multicast-first"),
        pytest.param("239.255.255.255", "multicast", id="multicast-last"),
        pytest.param("240.0.0.0", OTHER, id="reserved"),
        pytest.param("255.255.255.255", OTHER, id="broadcast"),
        pytest.param("::", "not global unicast", id="ipv6-unspecified"),
        pytest.param("::1", "not global unicast", id="ipv6-loopback"),
        pytest.param("::127.0.0.1", "not global unicast", id="ipv4-compatible"),
        pytest.param("::ffff:127.0.0.1", "not global unicast", id="ipv4-mapped-private"),
        pytest.param("::ffff:8.8.8.8", "not global unicast", id="ipv4-mapped-public"),
        pytest.param("64:ff9b::7f00:1", "not global unicast", id="nat64"),
        pytest.param("64:ff9b:1::1", "not global unicast", id="nat64-local"),
        pytest.param("100::1", "not global unicast", id="discard-only"),
        pytest.param("1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "not global unicast", id="below-2000"),
        pytest.param("2001::1", "IETF protocol assignments", id="teredo"),
        pytest.param("2001:2:0:ffff::1", "IETF protocol assignments", id="our-synthetic-addresses"),
        pytest.param("2001:1ff:ffff::", "IETF protocol assignments", id="ietf-assignments-last"),
        pytest.param("2001:db8::", "documentation", id="ipv6-documentation-first"),
        pytest.param("2001:db8:ffff::", "documentation", id="ipv6-documentation-last"),
        pytest.param("2002:7f00:1::", "6to4", id="6to4-loopback"),
        pytest.param("2002:ffff:ffff::", "6to4", id="6to4-last"),
        pytest.param("3fff::", "documentation", id="ipv6-documentation-2-first"),
        pytest.param("3fff:fff:ffff::", "documentation", id="ipv6-documentation-2-last"),
        pytest.param("4000::", "not global unicast", id="above-3fff"),
        pytest.param("5f00::1", "not global unicast", id="segment-routing"),
        pytest.param("fc00::1", "not global unicast", id="unique-local"),
        pytest.param("fd00:ec2::254", "not global unicast", id="cloud-metadata-ipv6"),
        pytest.param("fe80::1", "not global unicast", id="ipv6-link-local"),
        pytest.param("fec0::1", "not global unicast", id="site-local"),
        pytest.param("ff02::1", "multicast", id="ipv6-multicast"),
        pytest.param("ff0e::1", "multicast", id="ipv6-multicast-global"),
    ],
)
def test_not_public(address: str, why: str) -> None:
    """No name may lead here, whatever DNS says, unless a cidr entry opens it."""
    assert (why_not_public(ipaddress.ip_address(address)) or "").startswith(why)


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("1.0.0.0", id="above-this-network"),
        pytest.param("8.8.8.8", id="anywhere"),
        pytest.param("9.255.255.255", id="below-private-10"),
        pytest.param("11.0.0.0", id="above-private-10"),
        pytest.param("100.63.255.255", id="below-cgnat"),
        pytest.param("100.128.0.0", id="above-cgnat"),
        pytest.param("126.255.255.255", id="below-loopback"),
        pytest.param("128.0.0.0", id="above-loopback"),
        pytest.param("168.63.129.15", id="below-azure-metadata"),
        pytest.param("168.63.129.17", id="above-azure-metadata"),
        pytest.param("169.253.255.255", id="below-link-local"),
        pytest.param("169.255.0.0", id="above-link-local"),
        pytest.param("172.15.255.255", id="below-private-172"),
        pytest.param("172.32.0.0", id="above-private-172"),
        pytest.param("191.255.255.255", id="below-ietf-assignments-ipv4"),
        pytest.param("192.0.1.0", id="above-ietf-assignments-ipv4"),
        pytest.param("192.88.98.255", id="below-6to4-relay"),
        pytest.param("192.88.100.0", id="above-6to4-relay"),
        pytest.param("192.167.255.255", id="below-private-192"),
        pytest.param("192.169.0.0", id="above-private-192"),
        pytest.param("198.17.255.255", id="below-benchmarking"),
        pytest.param("198.20.0.0", id="above-benchmarking"),
        pytest.param("223.255.255.255", id="below-multicast"),
        pytest.param("2000::", id="ipv6-first"),
        pytest.param("2000:ffff:ffff::", id="below-ietf-assignments"),
        pytest.param("2001:200::", id="above-ietf-assignments"),
        pytest.param("2001:db7:ffff::", id="below-ipv6-documentation"),
        pytest.param("2001:db9::", id="above-ipv6-documentation"),
        pytest.param("2001:ffff:ffff::", id="below-6to4"),
        pytest.param("2003::", id="above-6to4"),
        pytest.param("3ffe:ffff:ffff::", id="below-ipv6-documentation-2"),
        pytest.param("3fff:1000::", id="ipv6-above-documentation-2"),
        pytest.param("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", id="ipv6-last"),
    ],
)
def test_public(address: str) -> None:
    """One step outside of a range is the internet again."""
    assert why_not_public(ipaddress.ip_address(address)) is None


@given(st.ip_addresses())
def test_never_more_than_the_standard_library_allows(address: Address) -> None:
    """What is said to be public is global, unicast and, in IPv6, in 2000::/3."""
    if why_not_public(address) is None:
        assert address.is_global
        assert not address.is_multicast
        assert address.version == 4 or int(address) >> 125 == 1
