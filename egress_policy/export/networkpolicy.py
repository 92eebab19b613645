"""Policy to networking.k8s.io/v1 NetworkPolicy: addresses and ports, nothing else."""

from collections.abc import Iterable, Mapping, Sequence

from egress_policy.destination import Address
from egress_policy.export.compiled import Compiled, Manifest, Pods, object_name
from egress_policy.export.losses import grants_lost, known_bad_names_lost
from egress_policy.export.openings import NameOpening, NetworkOpening, openings_of
from egress_policy.grant import Resolution, why_addresses_denied
from egress_policy.policy import Inspection, Policy

type Resolved = Mapping[str, Resolution | str]
"""What each name led to, or why nobody could say."""

NOTES = (
    "Every pod with these labels is held, the whole pod: give them to no pod that runs the proxy.",
    (
        "NetworkPolicies add up: another one that selects the same pods may open more. The cluster's network plugin "
        "must enforce NetworkPolicy, and decides whether an ipBlock also means pods and nodes."
    ),
    "Ingress is denied, as an answer to a connection from outside would carry data out.",
)


def compile_network_policies(
    policy: Policy, pods: Sequence[Pods], resolved: Resolved | None = None
) -> Compiled:
    """Compile one NetworkPolicy for each agent's pods. Without `resolved` names are left out."""
    openings = openings_of(policy)
    losses = list(openings.losses)
    egress = [_rule([_block(one)], one.ports) for one in openings.networks]
    losses += [
        f"{one.network}: its inspection is {one.inspection}, and a NetworkPolicy lets everything through unseen"
        for one in openings.networks
        if one.inspection is not Inspection.NONE
    ]
    for opening in openings.names:
        egress += _name(policy, opening, resolved, losses)
    if openings.names:
        # Known-good names are looked up in the cluster; without one, nothing that the policy permits needs DNS.
        egress.insert(0, _dns())
        losses.append(
            "DNS is open for every name, not only for known-good ones: what is asked for carries data out"
        )
        losses += known_bad_names_lost(policy)
    losses += grants_lost(policy, [one.agent for one in pods])
    return Compiled(tuple(_network_policy(one, egress) for one in pods), tuple(losses), NOTES)


def names_to_resolve(policy: Policy) -> list[str]:
    """List the known-good names that a NetworkPolicy can only hold by address."""
    return sorted({one.pattern.name for one in openings_of(policy).names if not one.pattern.below})


def _network_policy(pods: Pods, egress: list[Manifest]) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": object_name(pods.agent), "namespace": pods.namespace},
        "spec": {
            "podSelector": {"matchLabels": pods.selector},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [],
            "egress": egress,
        },
    }


def _name(
    policy: Policy, opening: NameOpening, resolved: Resolved | None, losses: list[str]
) -> list[Manifest]:
    name = f"{opening.pattern}:{','.join(map(str, opening.ports))}"
    if opening.pattern.below:
        losses.append(
            f"{name} is left out: a NetworkPolicy knows addresses, and these names cannot be listed"
        )
        return []
    if resolved is None:
        losses.append(
            f"{name} is left out: a NetworkPolicy knows no names (--resolve writes down its addresses)"
        )
        return []
    answer = resolved[opening.pattern.name]
    if isinstance(answer, str):
        losses.append(f"{name} is left out: {answer}")
        return []
    permitted: list[int] = []
    for port in opening.ports:
        denied = why_addresses_denied(policy, answer, port)
        if denied is None:
            permitted.append(port)
        else:
            losses.append(f"{opening.pattern}:{port} is left out: {denied.detail}")
    if not permitted:
        return []
    losses.append(
        f"{name} is held by the addresses of now: when DNS changes they are wrong, and whatever else they serve is "
        "open too"
    )
    addresses = sorted(answer.addresses, key=lambda address: (address.version, int(address)))
    return [_rule([_host(address) for address in addresses], permitted)]


def _rule(to: list[Manifest], ports: Iterable[int]) -> Manifest:
    return {"to": to, "ports": [{"protocol": "TCP", "port": port} for port in ports]}


def _block(opening: NetworkOpening) -> Manifest:
    block: Manifest = {"cidr": str(opening.network)}
    if opening.exceptions:
        block["except"] = [str(network) for network in opening.exceptions]
    return {"ipBlock": block}


def _host(address: Address) -> Manifest:
    return {"ipBlock": {"cidr": f"{address}/{address.max_prefixlen}"}}


def _dns() -> Manifest:
    cluster_dns = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    ports = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
    return {"to": [cluster_dns], "ports": ports}
