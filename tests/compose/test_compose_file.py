"""compose.yaml: valid by the Compose Specification's schema, and with no more rights and ways than each service needs."""

import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from deploy.demo.namespaces import ROOT
from egress_policy.policy_file import load as load_policy
from egress_policy.trust_kit import TrustFiles, variables
from tests.compose.project import FOLDER, OPTIONS, load
from tests.containers import IMAGE

DOCUMENT = load()
SERVICES: dict[str, Any] = DOCUMENT["services"]
AGENTS = ("alice", "bob")
CAPABILITIES = {"proxy": {"NET_ADMIN", "SETGID", "SETPCAP", "SETUID"}}
DOCKERFILE = (ROOT / "deploy/image/Dockerfile").read_text()


def test_it_is_valid() -> None:
    schema = json.loads((Path(__file__).parent / "schemas" / "compose-spec.json").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(DOCUMENT)] == []


def test_the_policy_is_valid_and_nothing_in_it_deserves_a_second_look() -> None:
    assert load_policy(FOLDER / "policy" / "policy.yaml").warnings == ()


def test_each_agent_is_the_policys_by_link_and_address() -> None:
    """Alone on its network with the proxy, which is its gateway and its name server."""
    agents = load_policy(FOLDER / "policy" / "policy.yaml").policy.agents
    assert tuple(agents) == AGENTS == tuple(name for name in SERVICES if name not in ("proxy", "trust"))
    taken = re.findall(
        r"^ip address replace (\S+) dev (\S+)$", SERVICES["proxy"]["command"][-1], re.MULTILINE
    )
    subnets = []
    for name, agent in agents.items():
        network = DOCUMENT["networks"][name]
        (config,) = network["ipam"]["config"]
        subnet = ipaddress.ip_network(config["subnet"])
        subnets.append(subnet)
        (joined,) = SERVICES[name]["networks"].items()
        assert joined == (name, {"ipv4_address": str(agent.source.network_address if agent.source else None)})
        assert {one for one, service in SERVICES.items() if name in service.get("networks", {})} == {
            "proxy",
            name,
        }
        assert SERVICES["proxy"]["networks"][name]["interface_name"] == agent.interface
        assert (f"{config['gateway']}/{subnet.prefixlen}", agent.interface) in taken
        assert SERVICES[name]["dns"] == [config["gateway"]]
        assert network["driver_opts"] == OPTIONS
        assert "enable_ipv6" not in network
    assert len(taken) == len(agents)
    assert not subnets[0].overlaps(subnets[1])


def test_the_proxy_alone_is_on_a_network_that_leads_out() -> None:
    assert [name for name, service in SERVICES.items() if "outside" in service.get("networks", {})] == [
        "proxy"
    ]
    assert SERVICES["proxy"]["networks"]["outside"]["gw_priority"] == 1
    assert SERVICES["trust"]["network_mode"] == "none"


@pytest.mark.parametrize("name", SERVICES)
def test_least_privilege(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert set(service.get("cap_add", [])) == CAPABILITIES.get(name, set())
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["pids_limit"]
    assert service["mem_limit"]
    assert not {"privileged", "pid", "ipc", "devices", "ports", "expose", "volumes_from"} & set(service)
    assert not any("docker.sock" in volume for volume in service["volumes"])
    assert (service["user"] == "0:0") == (name == "proxy")


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_shares_the_public_certificates_alone(name: str) -> None:
    """And starts when the proxy serves, and they are written."""
    service = SERVICES[name]
    assert service["volumes"] == ["trust:/var/lib/egress-policy/trust:ro"]
    assert service["depends_on"] == {
        "proxy": {"condition": "service_healthy"},
        "trust": {"condition": "service_completed_successfully"},
    }
    told = variables(TrustFiles(Path("/var/lib/egress-policy/trust")), None)
    assert {key: value for key, value in service["environment"].items() if key != "HOME"} == told


def test_the_proxy_ends_as_the_policys_user() -> None:
    uid = load_policy(FOLDER / "policy" / "policy.yaml").policy.proxy.user
    assert f"--reuid={uid}" in SERVICES["proxy"]["command"]
    assert SERVICES["trust"]["user"] == f"{uid}:{uid}"


def test_what_it_runs_and_mounts_is_in_the_image() -> None:
    """A volume takes the owner of the image's folder."""
    named = set(re.findall(rf"{IMAGE}/[\w./-]+", json.dumps(DOCUMENT)))
    assert named == {
        f"{IMAGE}/.venv/bin/egress-policy",
        f"{IMAGE}/.venv/bin/mitmdump",
        f"{IMAGE}/addons/scope.py",
    }
    assert {"iproute2", "nftables", "ca-certificates"} <= set(DOCKERFILE.split())
    owned = set(re.findall(r"install -d -m \d+ -o 61000 -g 61000 (\S+)", DOCKERFILE))
    mounted = {
        volume.split(":")[1]
        for name in ("proxy", "trust")
        for volume in SERVICES[name]["volumes"]
        if volume.split(":")[0] in DOCUMENT["volumes"]
    }
    assert mounted == owned
    build = SERVICES["proxy"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).exists()
