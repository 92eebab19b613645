"""Which addresses are never a destination, whatever a name resolves to.

The standard library's `is_global` is not enough: in Python 3.13 it is true for multicast, `::127.0.0.1`,
`64:ff9b::/96`, `fec0::/10` and the cloud metadata address 168.63.129.16.
"""

import ipaddress

from egress_policy.destination import Address, Network

# IANA IPv6 Global Unicast Address Space: nothing outside 2000::/3 has been assigned to be routed.
_GLOBAL_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")

_NOT_PUBLIC: tuple[tuple[Network, str], ...] = (
    (ipaddress.IPv4Network("168.63.129.16/32"), "cloud metadata"),
    (ipaddress.IPv4Network("100.64.0.0/10"), "shared address space (RFC 6598)"),
    # Before Python 3.12.4 `is_global` held for most of it.
    (
        ipaddress.IPv4Network("192.0.0.0/24"),
        "IETF protocol assignments, cloud metadata among them (RFC 6890)",
    ),
    (ipaddress.IPv4Network("192.88.99.0/24"), "6to4 relay (RFC 7526)"),
    (ipaddress.IPv4Network("198.18.0.0/15"), "benchmarking, and our synthetic addresses (RFC 2544)"),
    (ipaddress.IPv4Network("224.0.0.0/4"), "multicast"),
    (ipaddress.IPv6Network("2001::/23"), "IETF protocol assignments, Teredo among them (RFC 2928)"),
    (ipaddress.IPv6Network("2002::/16"), "6to4, which embeds an IPv4 address (RFC 3056)"),
    (ipaddress.IPv6Network("2001:db8::/32"), "documentation (RFC 3849)"),
    (ipaddress.IPv6Network("3fff::/20"), "documentation (RFC 9637)"),
    (ipaddress.IPv6Network("ff00::/8"), "multicast"),
)

# What `is_global` adds to these, of IPv4 (IANA's special-purpose registry), and what is outside global unicast.
_NOT_GLOBAL: tuple[Network, ...] = (
    *map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.2.0/24",
            "192.168.0.0/16",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "240.0.0.0/4",
        ),
    ),
    *map(ipaddress.IPv6Network, ("::/3", "4000::/2", "8000::/1")),
)


def not_public_networks() -> tuple[Network, ...]:
    """List every address that is not public, as networks; some lie inside another."""
    return (*_NOT_GLOBAL, *(network for network, _ in _NOT_PUBLIC))


def why_not_public(address: Address) -> str | None:
    """Say why an address is not one of the public internet, or None if it is."""
    for network, reason in _NOT_PUBLIC:
        if address in network:
            return reason
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST_IPV6:
        return "not global unicast (IPv4-mapped, NAT64, link-local, unique local, loopback or unassigned)"
    if not address.is_global:
        return "private, loopback, link-local, documentation or reserved"
    return None
