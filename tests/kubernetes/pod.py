"""A pod without a container engine: the commands, users, capabilities and volumes that a manifest names.

Each container (see tests/containers.py) is in the lab's `host` network namespace.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.lab import Lab
from deploy.demo.namespaces import ROOT
from tests.containers import Container, Volume

MANIFESTS = ROOT / "deploy" / "kubernetes"


class Pod:
    """The pod of the sidecar form, with a policy in its ConfigMap."""

    def __init__(self, lab: Lab, workload: str = "sidecar/deployment.yaml") -> None:
        self.lab = lab
        template = yaml.safe_load((MANIFESTS / workload).read_text())["spec"]["template"]
        self.spec: dict[str, Any] = template["spec"]
        self._folder = lab.folder / "pod"
        self._folder.mkdir()
        (self._folder / "scratch").mkdir()
        for volume in self.spec["volumes"]:
            # As kubelet makes an emptyDir: root's, and open to all.
            self.volume(volume["name"]).mkdir(mode=0o777)
            self.volume(volume["name"]).chmod(0o777)

    def volume(self, name: str) -> Path:
        return self._folder / name

    def write_policy(self, text: str) -> None:
        """As kubelet writes a ConfigMap: a file is a link into a folder that is exchanged whole."""
        folder = self.volume("policy")
        folder.chmod(0o755)
        (folder / "..version").mkdir()
        (folder / "..version" / "policy.yaml").write_text(text)
        (folder / "..data").symlink_to("..version")
        (folder / "policy.yaml").symlink_to("..data/policy.yaml")

    def container(self, name: str) -> dict[str, Any]:
        """One container of the manifest, by its name."""
        everyone = [*self.spec["initContainers"], *self.spec["containers"]]
        (found,) = [one for one in everyone if one["name"] == name]
        return dict(found)

    def command(self, name: str, argv: Sequence[str], user: int | None = None) -> list[str]:
        """What runs a command as a container would."""
        container = self.container(name)
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"]["drop"] == ["ALL"]
        held = Container(
            volumes=[
                Volume(self.volume(mount["name"]), mount["mountPath"], bool(mount.get("readOnly")))
                for mount in container["volumeMounts"]
            ],
            read_only=bool(security.get("readOnlyRootFilesystem")),
            user=security["runAsUser"] if user is None else user,
            added=security["capabilities"].get("add", []),
            environment={one["name"]: one["value"] for one in container.get("env", [])},
        )
        return held.command(self._folder / "scratch", argv)

    def run(
        self, name: str, argv: Sequence[str] | None = None, user: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a container's own command to its end, or another one in its place."""
        return self.lab.run(
            self.command(name, self.container(name)["command"] if argv is None else argv, user)
        )

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        """Start a container's own command, with more arguments behind it."""
        return self.lab.start(self.command(name, [*self.container(name)["command"], *more]), log=name)


def fetch(pod: Pod, url: str, *options: str, user: int | None = None) -> str:
    """What the agent's curl gets: the status, or curl's own exit status as `exit 7`."""
    curl = ["curl", "-sS", "-o", "/dev/null", "--max-time", "10", "-w", "%{http_code}", *options, url]
    done = pod.run("agent", curl, user)
    return done.stdout if done.returncode == 0 else f"exit {done.returncode}"
