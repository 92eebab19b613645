"""A reading of exported rules as Kubernetes, Cilium and Istio document them: independent of the compilers.

It asks what a connection of a pod with some labels would meet; nothing here knows our policy.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

type Object = Mapping[str, Any]
type Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def network_policy_permits(
    objects: Iterable[Object], labels: Mapping[str, str], address: Address, port: int
) -> bool:
    """NetworkPolicy: what no policy selects is open; otherwise one rule of one of them must match."""
    held = [
        one["spec"]
        for one in objects
        if one["kind"] == "NetworkPolicy" and selects(one["spec"]["podSelector"]["matchLabels"], labels)
    ]
    if not any("Egress" in spec["policyTypes"] for spec in held):
        return True
    return any(
        has_port(rule["ports"], port)
        and any("ipBlock" in peer and in_block(peer["ipBlock"], address) for peer in rule["to"])
        for spec in held
        for rule in spec["egress"]
    )


def cilium_permits(
    objects: Iterable[Object], labels: Mapping[str, str], name: str | None, address: Address, port: int
) -> bool:
    """CiliumNetworkPolicy: a denial wins; then one rule must match, with what it says of HTTP or TLS.

    `name` is what DNS was asked for, and what the client then states as Host and TLS server name; port 80 is HTTP.
    """
    held = [one["spec"] for one in objects if selects(one["spec"]["endpointSelector"]["matchLabels"], labels)]
    if not held:
        return True
    for spec in held:
        for rule in spec.get("egressDeny", []):
            ports = [port for one in rule.get("toPorts", []) for port in one["ports"]]
            if (not ports or has_port(ports, port)) and any(
                in_block({"cidr": c}, address) for c in rule["toCIDR"]
            ):
                return False
    return any(_cilium_rule(spec, rule, name, address, port) for spec in held for rule in spec["egress"])


def cilium_answers(objects: Iterable[Object], labels: Mapping[str, str], name: str) -> bool:
    """Whether Cilium's DNS proxy passes a query for a name on."""
    return any(
        matches(selector, name)
        for one in objects
        if selects(one["spec"]["endpointSelector"]["matchLabels"], labels)
        for rule in one["spec"]["egress"]
        if "toEndpoints" in rule
        for ports in rule["toPorts"]
        for selector in ports["rules"]["dns"]
    )


def _cilium_rule(spec: Object, rule: Object, name: str | None, address: Address, port: int) -> bool:
    if "toCIDRSet" in rule:
        reached = any(in_block(block, address) for block in rule["toCIDRSet"])
    elif "toFQDNs" in rule:
        # What DNS did not answer is in no selector.
        reached = name is not None and any(matches(selector, name) for selector in rule["toFQDNs"])
    else:
        reached = False
    return reached and any(
        has_port(one["ports"], port)
        and ("serverNames" not in one or name in one["serverNames"])
        and (
            "rules" not in one
            or (name is not None and any(re.fullmatch(http["host"], name) for http in one["rules"]["http"]))
        )
        for one in rule["toPorts"]
    )


def matches(selector: Mapping[str, str], name: str) -> bool:
    """Cilium 1.19: `**.` in front is one label or more, any other `*` is characters of one label."""
    if "matchName" in selector:
        return selector["matchName"] == name
    pattern = selector["matchPattern"]
    prefix = "([-a-z0-9_]+[.])+" if pattern.startswith("**.") else ""
    rest = pattern.removeprefix("**.").replace(".", "[.]").replace("*", "[-a-z0-9_]*")
    return re.fullmatch(prefix + rest, name) is not None


def istio_permits(objects: Sequence[Object], labels: Mapping[str, str], to: str | Address, port: int) -> bool:
    """Sidecar and ServiceEntry: REGISTRY_ONLY lets out what an entry in sight names, or whose network holds it."""
    sidecars = [
        one["spec"]
        for one in objects
        if one["kind"] == "Sidecar" and selects(one["spec"]["workloadSelector"]["labels"], labels)
    ]
    if not sidecars:
        return True
    (sidecar,) = sidecars
    assert sidecar["outboundTrafficPolicy"] == {"mode": "REGISTRY_ONLY"}
    in_sight = {host for egress in sidecar["egress"] for host in egress["hosts"]}
    for one in objects:
        if one["kind"] != "ServiceEntry" or not any(f"./{host}" in in_sight for host in one["spec"]["hosts"]):
            continue
        entry = one["spec"]
        if port not in [spec["number"] for spec in entry["ports"]]:
            continue
        if isinstance(to, str):
            if "addresses" not in entry and any(is_host(host, to) for host in entry["hosts"]):
                return True
        elif any(in_block({"cidr": cidr}, to) for cidr in entry.get("addresses", [])):
            return True
    return False


def is_host(host: str, name: str) -> bool:
    """Envoy's: `*.name` is every name below."""
    return name.endswith(host[1:]) if host.startswith("*.") else name == host


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def has_port(ports: Iterable[Object], port: int) -> bool:
    return any(str(one["port"]) == str(port) and one["protocol"] == "TCP" for one in ports)


def in_block(block: Object, address: Address) -> bool:
    if address not in ipaddress.ip_network(block["cidr"]):
        return False
    return not any(address in ipaddress.ip_network(hole) for hole in block.get("except", []))
