"""The manifests: valid by Kubernetes' schemas, and with no more rights than they need."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from egress_policy.policy_file import load
from egress_policy.trust_kit import TrustFiles, variables
from tests.containers import IMAGE
from tests.export.schemas import errors
from tests.kubernetes.pod import MANIFESTS

ROOT = MANIFESTS.parents[1]
FORMS = ("sidecar", "node")
# What each container may have, by its name. Everything else is dropped.
CAPABILITIES = {
    "folders": {"CHOWN", "FOWNER"},
    "ruleset": {"NET_ADMIN"},
    "proxy": {"NET_ADMIN", "SETGID", "SETPCAP", "SETUID"},
    "trust": set[str](),
    "agent": set[str](),
}


def built(folder: Path) -> Iterator[dict[str, Any]]:
    """What kustomize makes of a folder that adds resources and ConfigMaps, and changes none."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) <= {
        "apiVersion",
        "kind",
        "namespace",
        "resources",
        "configMapGenerator",
        "generatorOptions",
    }
    for resource in kustomization["resources"]:
        path = folder / resource
        yield from built(path.resolve()) if path.is_dir() else yaml.safe_load_all(path.read_text())
    for made in kustomization.get("configMapGenerator", []):
        yield {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": made["name"]},
            "data": {name: (folder / name).read_text() for name in made["files"]},
        }


def pod_spec(form: str) -> dict[str, Any]:
    (workload,) = [one for one in built(MANIFESTS / form) if one["kind"] in ("Deployment", "DaemonSet")]
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def containers(form: str) -> list[dict[str, Any]]:
    spec = pod_spec(form)
    return [*spec["initContainers"], *spec["containers"]] if "containers" in spec else spec["initContainers"]


@pytest.mark.parametrize("form", FORMS)
def test_every_object_is_valid(form: str) -> None:
    objects = list(built(MANIFESTS / form))
    kinds = sorted(one["kind"] for one in objects)
    assert kinds[0] == "ConfigMap"
    assert kinds.count("NetworkPolicy") == (2 if form == "sidecar" else 3)
    assert [found for one in objects for found in errors(one)] == []


@pytest.mark.parametrize("form", FORMS)
def test_the_policy_is_valid(form: str) -> None:
    """And where the ConfigMap has it the commands look for it."""
    assert load(MANIFESTS / form / "policy.yaml").policy.agents
    (config,) = [one for one in built(MANIFESTS / form) if one["kind"] == "ConfigMap"]
    assert list(config["data"]) == ["policy.yaml"]
    (volume,) = [one for one in pod_spec(form)["volumes"] if "configMap" in one]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    for name in ("ruleset", "proxy"):
        mounts = mounts_of(form, name)
        assert mounts["/etc/egress-policy"] == {"name": volume["name"], "readOnly": True}


def mounts_of(form: str, name: str) -> dict[str, dict[str, Any]]:
    (container,) = [one for one in containers(form) if one["name"] == name]
    return {
        mount["mountPath"]: {key: value for key, value in mount.items() if key != "mountPath"}
        for mount in container["volumeMounts"]
    }


@pytest.mark.parametrize("form", FORMS)
def test_least_privilege(form: str) -> None:
    spec = pod_spec(form)
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostPID", "hostIPC", "shareProcessNamespace"} & set(spec)
    assert ("hostNetwork" in spec) == (form == "node")
    for container in containers(form):
        security = container["securityContext"]
        assert set(security["capabilities"].get("add", [])) == CAPABILITIES[container["name"]]
        assert security["capabilities"]["drop"] == ["ALL"]
        assert security["allowPrivilegeEscalation"] is False
        assert "privileged" not in security
        assert container["name"] == "agent" or security["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]["memory"]
        if container["name"] in ("agent", "trust"):
            assert security["runAsNonRoot"] is True
            assert security["runAsUser"] != 0


def test_the_ruleset_is_first_and_the_agent_last() -> None:
    """Init containers run one after the other; the proxy's startup probe is waited for."""
    spec = pod_spec("sidecar")
    assert [one["name"] for one in spec["initContainers"]] == ["ruleset", "proxy", "trust"]
    proxy = spec["initContainers"][1]
    assert proxy["restartPolicy"] == "Always"
    assert proxy["startupProbe"]["exec"]
    assert proxy["livenessProbe"]["exec"]


def test_the_agent_s_variables_are_those_that_env_prints() -> None:
    (agent,) = [one for one in containers("sidecar") if one["name"] == "agent"]
    (mount,) = mounts_of("sidecar", "agent")
    assert {one["name"]: one["value"] for one in agent["env"]} == variables(TrustFiles(Path(mount) / "kit"))


def test_the_agent_shares_nothing_with_the_proxy() -> None:
    """Only the folder with the public certificate, which it may not write to."""
    assert mounts_of("sidecar", "agent") == {"/etc/egress-policy-trust": {"name": "trust", "readOnly": True}}
    assert "trust" not in {mount["name"] for mount in mounts_of("sidecar", "proxy").values()}


@pytest.mark.parametrize("form", FORMS)
def test_the_proxys_uid_is_the_policys(form: str) -> None:
    (proxy,) = [one for one in containers(form) if one["name"] == "proxy"]
    uid = load(MANIFESTS / form / "policy.yaml").policy.proxy.user
    assert f"--reuid={uid}" in proxy["command"]
    assert f"USER {uid}:{uid}" in (ROOT / "deploy/image/Dockerfile").read_text().splitlines()


def test_the_namespace_denies_by_default() -> None:
    first, second = [one for one in built(MANIFESTS / "base") if one["kind"] == "NetworkPolicy"]
    assert first["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (deployment,) = [one for one in built(MANIFESTS / "sidecar") if one["kind"] == "Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert second["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_the_image_installs_pinned_packages_only() -> None:
    """Their versions are those of constraints.txt, which the tests ran with."""
    pin = re.compile(r"^([a-z0-9-]+==\S+)", re.MULTILINE)
    image = set(pin.findall((ROOT / "deploy/image/requirements.txt").read_text()))
    assert image
    assert image <= set(pin.findall((ROOT / "constraints.txt").read_text()))
    dockerfile = (ROOT / "deploy/image/Dockerfile").read_text()
    assert "--require-hashes" in dockerfile
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE):
        assert all((ROOT / one).exists() for one in source.split())


@pytest.mark.parametrize("form", FORMS)
def test_what_the_manifests_run_is_in_the_image(form: str) -> None:
    named = set(
        re.findall(
            rf"{IMAGE}/[\w./-]+",
            (MANIFESTS / form)
            .joinpath("deployment.yaml" if form == "sidecar" else "daemonset.yaml")
            .read_text(),
        )
    )
    assert named == {
        f"{IMAGE}/.venv/bin/egress-policy",
        f"{IMAGE}/.venv/bin/mitmdump",
        f"{IMAGE}/addons/scope.py",
    }
    assert (ROOT / "addons/scope.py").exists()
