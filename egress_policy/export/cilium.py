"""Policy to cilium.io/v2 CiliumNetworkPolicy: names by what DNS answered, TLS server names, networks, denials.

`**.name` is every name below it from Cilium 1.19 on, and before that, as `*.name` always was, those one label below:
fewer, and never the name itself.
"""

from collections.abc import Iterable, Sequence

from egress_policy.addresses import not_public_networks
from egress_policy.destination import HostPattern, Network
from egress_policy.export.compiled import Compiled, Manifest, Pods, object_name
from egress_policy.export.losses import grants_lost, known_bad_names_lost
from egress_policy.export.openings import (
    MAX_EXCEPTIONS,
    NameOpening,
    NetworkOpening,
    Openings,
    openings_of,
    outermost,
)
from egress_policy.policy import Inspection, Policy, is_inside, without

_HTTP = 80

NOTES = (
    "Every pod with these labels is held, the whole pod: give them to no pod that runs the proxy.",
    "Another policy that selects the same pods may open more; what egressDeny names stays denied.",
    (
        "Names need Cilium's DNS proxy, and TLS server names and HTTP hosts its Envoy (the default): their rules are "
        "Cilium's from 1.14 on. '**.name' means all names below from 1.19 on, and before that those one label below."
    ),
    (
        "The DNS rules name each permitted name and no search domain: give the pods dnsConfig.options ndots 1, or "
        "look-ups are refused that first try a name with the cluster's domain behind it."
    ),
    (
        "egressDeny holds addresses that are not public closed whatever a name leads to, but for known-good networks. "
        "Pods, nodes and the API server are no networks to Cilium: nothing here opens them."
    ),
    "Ingress is denied, as an answer to a connection from outside would carry data out.",
)


def compile_cilium_policies(policy: Policy, pods: Sequence[Pods]) -> Compiled:
    """Compile one CiliumNetworkPolicy for each agent's pods."""
    openings = openings_of(policy)
    losses = list(openings.losses)
    egress = [_network(one, losses) for one in openings.networks]
    for opening in openings.names:
        egress += _name(opening, losses)
    if openings.names:
        egress.insert(0, _dns(openings.names))
        losses += known_bad_names_lost(policy)
    deny = _denied(openings, losses)
    losses += grants_lost(policy, [one.agent for one in pods])
    return Compiled(tuple(_cilium_policy(one, egress, deny) for one in pods), tuple(losses), NOTES)


def _cilium_policy(pods: Pods, egress: list[Manifest], deny: list[Manifest]) -> Manifest:
    spec: Manifest = {
        "endpointSelector": {"matchLabels": pods.selector},
        # An empty rule selects nothing, and holds the pods to it: Cilium's way to deny by default.
        "ingress": [{}],
        "egress": egress or [{}],
    }
    if deny:
        spec["egressDeny"] = deny
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": object_name(pods.agent), "namespace": pods.namespace},
        "spec": spec,
    }


def _network(opening: NetworkOpening, losses: list[str]) -> Manifest:
    if opening.inspection is not Inspection.NONE:
        losses.append(
            f"{opening.network}: its inspection is {opening.inspection}, and Cilium lets addresses through unseen"
        )
    rule: Manifest = {"cidr": str(opening.network)}
    if opening.exceptions:
        rule["except"] = [str(network) for network in opening.exceptions]
    return {"toCIDRSet": [rule], "toPorts": [{"ports": _ports(opening.ports)}]}


def _name(opening: NameOpening, losses: list[str]) -> list[Manifest]:
    selector = {"toFQDNs": [_selector(opening.pattern)]}
    if opening.inspection is Inspection.NONE:
        return [{**selector, "toPorts": [{"ports": _ports(opening.ports)}]}]
    if opening.inspection is Inspection.FULL:
        losses.append(
            f"{opening.pattern}: its inspection is full; what is inside TLS cannot be seen, only the server name"
        )
    rules: list[Manifest] = []
    if _HTTP in opening.ports:
        host = {"host": _host_expression(opening.pattern)}
        rules.append({**selector, "toPorts": [{"ports": _ports([_HTTP]), "rules": {"http": [host]}}]})
    others = [port for port in opening.ports if port != _HTTP]
    if others and opening.pattern.below:
        losses.append(
            f"{opening.pattern}: TLS server names below a name are not checked, so whatever else serves at the "
            "addresses that such a name led to is open too"
        )
        rules.append({**selector, "toPorts": [{"ports": _ports(others)}]})
    elif others:
        checked = {"ports": _ports(others), "serverNames": [opening.pattern.name]}
        rules.append({**selector, "toPorts": [checked]})
    return rules


def _selector(pattern: HostPattern) -> dict[str, str]:
    return {"matchPattern": f"**.{pattern.name}"} if pattern.below else {"matchName": pattern.name}


def _host_expression(pattern: HostPattern) -> str:
    """Write a Host as the regular expression that Envoy matches the whole of it with."""
    name = pattern.name.replace(".", "[.]")
    return (r"([a-z0-9_-]+[.])+" if pattern.below else "") + name + "(:80)?"


def _ports(ports: Iterable[int]) -> list[Manifest]:
    return [{"port": str(port), "protocol": "TCP"} for port in ports]


def _dns(names: Iterable[NameOpening]) -> Manifest:
    patterns = sorted({one.pattern for one in names}, key=lambda pattern: (pattern.name, pattern.below))
    return {
        "toEndpoints": [
            {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "kube-system", "k8s:k8s-app": "kube-dns"}}
        ],
        "toPorts": [
            {
                "ports": [{"port": "53", "protocol": "UDP"}, {"port": "53", "protocol": "TCP"}],
                "rules": {"dns": [_selector(pattern) for pattern in patterns]},
            }
        ],
    }


def _denied(openings: Openings, losses: list[str]) -> list[Manifest]:
    """Close what is never reached, whatever a name leads to. A denial wins over every other rule."""
    known_bad = openings.known_bad
    if len(known_bad) > MAX_EXCEPTIONS:
        losses.append(
            f"{len(known_bad)} known-bad networks are more than one policy may deny ({MAX_EXCEPTIONS}): a "
            "known-good name may lead to one. Inside known-good networks they are excepted"
        )
        known_bad = ()
    rules: list[Manifest] = [{"toCIDR": [str(network) for network in known_bad]}] if known_bad else []
    ports_of: dict[tuple[Network, ...], list[int]] = {}
    for port in sorted({port for name in openings.names for port in name.ports}):
        ports_of.setdefault(_closed(openings.networks, port), []).append(port)
    for closed, ports in ports_of.items():
        rules.append({"toCIDR": [str(network) for network in closed], "toPorts": [{"ports": _ports(ports)}]})
    return rules


def _closed(networks: Iterable[NetworkOpening], port: int) -> tuple[Network, ...]:
    """List what is not public, without what is known-good on a port: a known-good name may lead there."""
    known_good = [opening for opening in networks if port in opening.ports]
    holes = [opening.network for opening in known_good]
    exceptions = [network for opening in known_good for network in opening.exceptions]
    closed = {part for one in not_public_networks() for part in without(one, holes)}
    for exception in exceptions:
        inner = [hole for hole in holes if is_inside(hole, exception)]
        for one in not_public_networks():
            common = exception if is_inside(exception, one) else one if is_inside(one, exception) else None
            if common is not None:
                closed.update(without(common, inner))
    return outermost(closed)
