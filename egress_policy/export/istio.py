"""Policy to Istio: ServiceEntry, Sidecar and AuthorizationPolicy.

An Envoy beside the agent routes by the name that the agent states (TLS server name, Host) and, but for wildcards, to
the addresses that it looks up itself. That orders what goes through it; it holds nobody who goes past it.
"""

from collections.abc import Sequence
from itertools import groupby

from egress_policy.destination import HostPattern
from egress_policy.export.compiled import Compiled, Manifest, Pods, label, object_name
from egress_policy.export.losses import grants_lost, known_bad_names_lost
from egress_policy.export.openings import NameOpening, NetworkOpening, openings_of
from egress_policy.policy import Inspection, Policy, without

_HTTP = 80
_HTTPS = 443
_GATEWAY_NAMESPACE = "istio-system"

NOTES = (
    (
        "The Sidecar holds what the pod's Envoy carries: TCP of pods with injection. UDP, ICMP, and whoever runs as "
        "Envoy's user, may change the pod's nftables or has injection switched off go past it. Put the NetworkPolicy or "
        "Cilium export beside it."
    ),
    (
        "ServiceEntries are visible in their own namespace only (exportTo '.'), to every pod there that has no Sidecar "
        "of its own."
    ),
    (
        "AuthorizationPolicy is enforced where a connection arrives, never where it starts: the one for these pods denies "
        "connections to them; the one at the egress gateway (istio: egressgateway, in istio-system) counts only for what "
        "you route through that gateway over Istio's mutual TLS with the destination as its server name (a "
        "DestinationRule's tls.sni), and holds the whole namespace, as no pod's labels arrive there."
    ),
    "Port 80 is read as HTTP, every other port of a name as TLS with a server name; a network's ports are TCP.",
)


def compile_istio(policy: Policy, pods: Sequence[Pods]) -> Compiled:
    """Compile the namespace's ServiceEntries, a Sidecar for each agent's pods, and what the gateway may let out.

    All pods are of one namespace.
    """
    openings = openings_of(policy)
    losses = list(openings.losses)
    namespace = pods[0].namespace
    entries = [_name(list(same), namespace, losses) for _, same in groupby(openings.names, _pattern)]
    entries += [_network(one, namespace, losses) for one in openings.networks]
    hosts = sorted({f"./{host}" for entry in entries for host in entry["spec"]["hosts"]})
    losses.append("UDP is not held, and DNS is open for every name: what is asked for carries data out")
    losses.append(
        "addresses that a known-good name leads to are not checked: they may be private, or known-bad"
    )
    losses += known_bad_names_lost(policy)
    losses += grants_lost(policy, [one.agent for one in pods])
    return Compiled(
        (
            *entries,
            *(_sidecar(one, hosts) for one in pods),
            *(_no_one_in(one) for one in pods),
            _gateway(openings.names, namespace),
        ),
        tuple(losses),
        NOTES,
    )


def _pattern(opening: NameOpening) -> HostPattern:
    return opening.pattern


def _name(openings: Sequence[NameOpening], namespace: str, losses: list[str]) -> Manifest:
    """Two ServiceEntries for one host would contradict each other: one holds the ports of all."""
    pattern = openings[0].pattern
    name = str(pattern)
    ports = sorted({port for opening in openings for port in opening.ports})
    if pattern.below:
        losses.append(
            f"{name} is believed, not looked up: whoever states a name below {pattern.name} (TLS server name, Host) "
            f"reaches any address at all on ports {', '.join(map(str, ports))}"
        )
    others = [port for port in ports if port not in (_HTTP, _HTTPS)]
    losses += [f"{name}:{port} passes only if it is TLS with that server name" for port in others]
    if any(opening.inspection is Inspection.FULL for opening in openings):
        losses.append(
            f"{name}: its inspection is full; what is inside TLS cannot be seen, only the server name"
        )
    return _service_entry(
        name,
        namespace,
        {
            "hosts": [name],
            "ports": [_port(port) for port in ports],
            "resolution": "NONE" if pattern.below else "DNS",
        },
    )


def _port(port: int) -> Manifest:
    protocol = "HTTP" if port == _HTTP else "TLS"
    return {"number": port, "name": f"{protocol.lower()}-{port}", "protocol": protocol}


def _network(opening: NetworkOpening, namespace: str, losses: list[str]) -> Manifest:
    if opening.inspection is not Inspection.NONE:
        losses.append(
            f"{opening.network}: its inspection is {opening.inspection}, and addresses are let through unseen"
        )
    # Two openings of one network differ in their ports.
    name = f"{opening.network}-{'-'.join(map(str, opening.ports))}"
    return _service_entry(
        name,
        namespace,
        {
            # A host that nobody looks up: traffic is matched by address.
            "hosts": [f"{label(name)}.egress-policy.internal"],
            "addresses": [str(network) for network in without(opening.network, opening.exceptions)],
            "ports": [{"number": port, "name": f"tcp-{port}", "protocol": "TCP"} for port in opening.ports],
            "resolution": "NONE",
        },
    )


def _service_entry(name: str, namespace: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": object_name(name), "namespace": namespace},
        "spec": {**spec, "location": "MESH_EXTERNAL", "exportTo": ["."]},
    }


def _sidecar(pods: Pods, hosts: list[str]) -> Manifest:
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "Sidecar",
        "metadata": {"name": object_name(pods.agent), "namespace": pods.namespace},
        "spec": {
            "workloadSelector": {"labels": pods.selector},
            "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
            # "~" is no namespace: nothing is known, so nothing is let out.
            "egress": [{"hosts": hosts or ["~/*"]}],
        },
    }


def _no_one_in(pods: Pods) -> Manifest:
    """An answer to a connection from outside would carry data out. ALLOW without rules denies all."""
    return _authorization_policy(
        object_name(pods.agent),
        pods.namespace,
        {"selector": {"matchLabels": pods.selector}, "action": "ALLOW"},
    )


def _gateway(names: Sequence[NameOpening], namespace: str) -> Manifest:
    """Deny at the egress gateway what is not known-good; only to this namespace, as others may share the gateway.

    Not by port: the gateway listens on ports of its own, and they differ between installations.
    """
    rule: Manifest = {"from": [{"source": {"namespaces": [namespace]}}]}
    known_good = sorted({str(one.pattern) for one in names})
    if known_good:
        rule["when"] = [{"key": "connection.sni", "notValues": known_good}]
    spec = {"selector": {"matchLabels": {"istio": "egressgateway"}}, "action": "DENY", "rules": [rule]}
    return _authorization_policy(object_name(namespace), _GATEWAY_NAMESPACE, spec)


def _authorization_policy(name: str, namespace: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
