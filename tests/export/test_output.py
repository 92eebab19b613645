"""What `egress-policy export` writes: the golden files, valid by the systems' schemas, and the same every time."""

import asyncio
import ipaddress
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from egress_policy.addresses import not_public_networks, why_not_public
from egress_policy.export.compiled import label, object_name
from tests.export.schemas import errors
from tests.test_resolver import name_server, zone

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
TARGETS = ("networkpolicy", "cilium", "istio")
RFC_1123 = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
EVERYTHING_SAID = """\
version: 1
agents: {alice: {user: 2001, scopes: [sandbox-alice]}}
scopes: {sandbox-alice: {owner: alice@example.com}}
trust: {known-good: [{cidr: 192.0.2.0/24}], known-bad: [{cidr: 192.0.2.9}]}
intents: {default: {}}
"""
NAMED = EVERYTHING_SAID.replace(
    "{cidr: 192.0.2.0/24}", "{domain: api.example, ports: [443], inspection: none}"
)


def export(*arguments: str | Path, policy: Path = GOLDEN / "policy.yaml") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "egress_policy", "export", "--policy", policy, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=HERE.parents[1],
    )


@pytest.fixture
def said(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(EVERYTHING_SAID)
    return path


def objects(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


@pytest.mark.parametrize("target", TARGETS)
def test_the_golden_file_is_what_is_written(target: str) -> None:
    """`make golden` writes them anew; the diff is then read."""
    done = export(target, "--namespace", "agents")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (GOLDEN / f"{target}.yaml").read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_the_golden_file_is_valid(target: str) -> None:
    """By the schemas, and by what they leave unsaid."""
    written = objects((GOLDEN / f"{target}.yaml").read_text())
    assert written
    for one in written:
        assert not errors(one)
        assert RFC_1123.fullmatch(one["metadata"]["name"])
        for cidr, holes in blocks(one):
            network = ipaddress.ip_network(cidr)
            for hole in map(ipaddress.ip_network, holes):
                # Kubernetes: "strictly within the cidr".
                assert hole.version == network.version
                assert hole != network
                assert hole.subnet_of(network)  # type: ignore[arg-type]  # same version
    names = [(one["kind"], one["metadata"]["namespace"], one["metadata"]["name"]) for one in written]
    assert len(set(names)) == len(names)


def blocks(node: Any) -> Iterator[tuple[str, list[str]]]:
    if isinstance(node, dict):
        if "cidr" in node:
            yield node["cidr"], node.get("except", [])
        for key, value in node.items():
            if key in ("toCIDR", "addresses"):
                yield from ((cidr, []) for cidr in value)
            yield from blocks(value)
    elif isinstance(node, list):
        for one in node:
            yield from blocks(one)


def test_the_schemas_refuse_what_is_wrong() -> None:
    """A typing error in a field's name, a port of the wrong type, a value that the enumeration has not."""
    (policy, *_) = objects((GOLDEN / "networkpolicy.yaml").read_text())
    policy["spec"]["egres"] = []
    assert errors(policy)
    (policy, *_) = objects((GOLDEN / "cilium.yaml").read_text())
    policy["spec"]["egress"][1]["toPorts"][0]["ports"][0]["port"] = 443
    assert errors(policy)
    (entry, *_) = objects((GOLDEN / "istio.yaml").read_text())
    entry["spec"]["resolution"] = "SOMETIMES"
    assert errors(entry)


@pytest.mark.parametrize("target", TARGETS)
def test_strict_fails_where_something_is_lost(target: str) -> None:
    """What is lost stands at the top, and on standard error; without --strict it is no failure."""
    done = export(target, "--strict")
    assert done.returncode == 1
    assert "# What the policy says, and these objects do not:\n# - " in done.stdout
    assert (
        "warning: level unknown (every other destination, ports 80, 443) is open by timed grants"
        in done.stderr
    )
    assert "warning: *.mixed.example is left out: bad.mixed.example below it is known-bad" in done.stderr


@pytest.mark.parametrize("target", ["networkpolicy", "cilium"])
def test_strict_passes_where_nothing_is_lost(target: str, said: Path) -> None:
    """Networks without grants are all that the policy says."""
    done = export(target, "--strict", policy=said)
    assert (done.returncode, done.stderr) == (0, "")
    assert "# These objects say all that the policy says." in done.stdout


def test_cilium_says_names_without_inspection_whole(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(NAMED)
    assert export("cilium", "--strict", policy=policy).returncode == 0
    assert export("networkpolicy", "--strict", policy=policy).returncode == 1
    assert export("istio", "--strict", policy=policy).returncode == 1


def test_one_agent_with_labels_of_its_own(said: Path) -> None:
    """The pods may be known by any labels; several narrow them."""
    arguments = ("--agent", "alice", "--pod-selector", "app=agent", "--pod-selector", "owner=alice")
    (policy,) = objects(export("networkpolicy", *arguments, policy=said).stdout)
    assert policy["spec"]["podSelector"] == {"matchLabels": {"app": "agent", "owner": "alice"}}
    assert policy["metadata"]["namespace"] == "default"


def test_without_names_dns_stays_closed(said: Path) -> None:
    """Nothing that the policy permits has a name, so a query could only carry data out."""
    (policy,) = objects(export("networkpolicy", policy=said).stdout)
    assert [rule["ports"][0]["port"] for rule in policy["spec"]["egress"]] == [80]


def test_more_exceptions_than_a_rule_may_have_close_it(tmp_path: Path) -> None:
    """A feed of any size is no reason to open what it names: the network gives way, and what is lost is said."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        EVERYTHING_SAID.replace("{cidr: 192.0.2.0/24}", "{cidr: 93.0.0.0/8}, {domain: api.example}").replace(
            "{cidr: 192.0.2.9}", "{feed: feed.txt}"
        )
    )
    for count, is_open in ((500, True), (501, False)):
        (tmp_path / "feed.txt").write_text(
            "".join(f"93.1.{n // 256}.{n % 256}\n" for n in range(0, 2 * count, 2))
        )
        done = export("cilium", policy=policy)
        (spec,) = (one["spec"] for one in objects(done.stdout))
        assert any("toCIDRSet" in rule for rule in spec["egress"]) is is_open
        assert any("93.1.0.0/32" in rule["toCIDR"] for rule in spec["egressDeny"]) is is_open
        assert ("93.0.0.0/8 is left out: 501 known-bad networks lie inside it" in done.stderr) is not is_open
        assert (
            "501 known-bad networks are more than one policy may deny (500)" in done.stderr
        ) is not is_open


def test_json_carries_the_losses(said: Path) -> None:
    document = json.loads(export("networkpolicy", "--json").stdout)
    assert set(document) == {"objects", "losses", "notes"}
    assert document["objects"] == objects(
        (GOLDEN / "networkpolicy.yaml").read_text().replace(": agents\n", ": default\n")
    )
    assert any("left out" in loss for loss in document["losses"])


async def test_resolve_asks_the_policys_name_servers(tmp_path: Path) -> None:
    """Public addresses are written down, private ones refused, and a name that leads nowhere is left out."""
    policy = tmp_path / "policy.yaml"
    records = ("api.example. 60 A 93.184.216.34", "inner.example. 60 A 10.0.0.1")
    async with name_server(zone(*records)) as (_, (address, port)):
        policy.write_text(
            NAMED.replace("known-bad:", "more: [], known-bad:").replace(
                "{domain: api.example, ports: [443], inspection: none}",
                "{domain: api.example, ports: [443]}, {domain: inner.example}, {domain: gone.example}",
            )
            + f'resolver: {{nameservers: ["{address}:{port}"]}}\n'
        )
        done = await asyncio.to_thread(export, "networkpolicy", "--resolve", policy=policy)
    assert done.returncode == 0, done.stderr
    (written,) = objects(done.stdout)
    assert not errors(written)
    dns, api = written["spec"]["egress"]
    assert dns["ports"][0]["port"] == 53
    assert api == {
        "to": [{"ipBlock": {"cidr": "93.184.216.34/32"}}],
        "ports": [{"protocol": "TCP", "port": 443}],
    }
    assert "inner.example:80 is left out: 10.0.0.1 is not public" in done.stderr
    assert "gone.example:80,443 is left out: gone.example" in done.stderr
    assert "api.example:443 is held by the addresses of now" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("calico",), "'calico'"),
        ((), "Missing argument"),
        (("cilium", "--resolve"), "--resolve is for networkpolicy"),
        (("cilium", "--agent", "carol"), "the policy has no agent carol; it has alice-claude, bob_codex"),
        (("cilium", "--pod-selector", "app=agent"), "--pod-selector is for one agent's pods"),
        (("cilium", "--agent", "bob_codex", "--pod-selector", "app"), "is not a label such as app=agent"),
        (("cilium", "--namespace", "Agents"), "is not a namespace's name"),
    ],
    ids=["target", "no target", "resolve", "agent", "selector for two", "selector", "namespace"],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: tuple[str, ...], says: str) -> None:
    done = export(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert not done.stdout


def test_a_policy_without_agents_has_no_pods(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\n")
    done = export("cilium", policy=policy)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "egress-policy: the policy names no agent: there are no pods to write rules for\n"


def test_help_has_an_example() -> None:
    assert "Example: egress-policy export networkpolicy" in export("--help").stdout


@given(st.lists(st.from_regex(r"[a-z0-9*][a-z0-9._/:-]{0,80}", fullmatch=True), unique=True, max_size=5))
def test_names_are_rfc_1123_labels_and_stay_apart(names: list[str]) -> None:
    made = [object_name(name) for name in names]
    assert all(RFC_1123.fullmatch(name) for name in [*made, *map(label, names)])
    assert len(set(made)) == len(names)


@given(st.one_of(st.ip_addresses(), st.sampled_from(not_public_networks()).map(lambda network: network[-1])))
def test_what_is_not_public_is_listed_whole(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """The list that Cilium is given, and the question that the proxy asks."""
    listed = any(address in network for network in not_public_networks())
    assert listed == (why_not_public(address) is not None)
