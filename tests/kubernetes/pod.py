"""A pod without a container engine: the commands, users, capabilities and volumes that a manifest names.

Each container is a mount namespace in the lab's `host` network namespace: its volumes stand at their mountPath, its
root folder is read-only where the manifest says so, and setpriv(1) leaves it the capabilities that an engine would: those
under `add` for root, none for any other user. What is not imitated: the image (the checkout stands in its place) and
seccomp.
"""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.demo.lab import Lab
from deploy.demo.namespaces import ROOT

MANIFESTS = ROOT / "deploy" / "kubernetes"
IMAGE = "/opt/egress-policy"

# $1 is a scratch folder, $2 the image's folder, $3 a checkout, $4 a virtual environment; then `name=path=ro|rw` of
# each volume up to `--`, and the command. A folder is covered with an empty one into which what it held is bound.
_CONTAINER = """
set -eu
scratch=$1 image=$2 checkout=$3 venv=$4; shift 4
mount -t tmpfs scratch "$scratch"
uncover() {
    old=$scratch/$(echo "$1" | tr / _)
    mkdir "$old" && mount --rbind "$1" "$old" && mount -t tmpfs -o mode=0755 covered "$1"
    for entry in "$old"/* "$old"/.[!.]*; do
        target=$1/${entry##*/}
        if [ -L "$entry" ]; then cp -P "$entry" "$target"
        elif [ -d "$entry" ]; then mkdir "$target" && mount --rbind "$entry" "$target"
        elif [ -e "$entry" ]; then touch "$target" && mount --bind "$entry" "$target"
        fi
    done
}
for folder in /etc /opt; do uncover $folder; done
for folder in /var/lib /var/log; do mount -t tmpfs -o mode=0755 empty $folder; done
mkdir "$image"
for part in addons egress_policy nft; do mkdir "$image/$part" && mount --rbind "$checkout/$part" "$image/$part"; done
mkdir "$image/.venv" && mount --rbind "$venv" "$image/.venv"
mount -t tmpfs -o mode=0755 empty /run
while [ "$1" != -- ]; do
    from=${1%%=*} rest=${1#*=}; at=${rest%=*} how=${rest##*=}
    mkdir -p "$at" && mount --bind "$from" "$at" && mount -o "remount,bind,$how" "$at"
    shift
done
shift
if [ "$1" = ro ]; then
    for folder in /etc /opt /var/lib /var/log /run /; do mount -o remount,bind,ro $folder; done
fi
shift
exec "$@"
"""


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
        uid = security["runAsUser"] if user is None else user
        # An engine gives added capabilities to root; another user has none of them after execve(2).
        added = [f"+{cap.lower()}" for cap in security["capabilities"].get("add", [])] if uid == 0 else []
        volumes = [
            f"{self.volume(mount['name'])}={mount['mountPath']}={'ro' if mount.get('readOnly') else 'rw'}"
            for mount in container["volumeMounts"]
        ]
        become = [
            "setpriv",
            f"--reuid={uid}",
            f"--regid={uid}",
            "--clear-groups",
            "--inh-caps=-all",
            "--ambient-caps=-all",
            f"--bounding-set={','.join(['-all', *added])}",
            "--no-new-privs",
        ]
        return [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", _CONTAINER, "container"),
            *(str(self._folder / "scratch"), IMAGE, str(ROOT), sys.prefix),
            *(*volumes, "--", "ro" if security.get("readOnlyRootFilesystem") else "rw"),
            *(*become, "env", "--chdir=/", *_environment(container), *argv),
        ]

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


def _environment(container: Mapping[str, Any]) -> list[str]:
    """The variables of the manifest; PYTHONPATH is the lab's, and would show the checkout in another place."""
    return ["--unset=PYTHONPATH", *(f"{one['name']}={one['value']}" for one in container.get("env", []))]


def shown(done: subprocess.CompletedProcess[str]) -> str:
    """A finished command, for an assertion's message."""
    return f"{shlex.join(map(str, done.args))[-200:]} → {done.returncode}\n{done.stdout}{done.stderr}"


def fetch(pod: Pod, url: str, *options: str, user: int | None = None) -> str:
    """What the agent's curl gets: the status, or curl's own exit status as `exit 7`."""
    curl = ["curl", "-sS", "-o", "/dev/null", "--max-time", "10", "-w", "%{http_code}", *options, url]
    done = pod.run("agent", curl, user)
    return done.stdout if done.returncode == 0 else f"exit {done.returncode}"
