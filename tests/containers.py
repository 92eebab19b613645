"""A container without a container engine: what an engine would do to a command, done by unshare(1) and setpriv(1).

It is a mount namespace: its volumes stand at their places, its root folder is read-only where that is asked for, and
setpriv(1) leaves it the capabilities that an engine would: those added for root, none for any other user. What is not
imitated: the image (the checkout stands in its place) and seccomp.
"""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.namespaces import ROOT

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
    [ -e "$at" ] || mkdir -p "$at"
    mount --bind "$from" "$at" && mount -o "remount,bind,$how" "$at"
    shift
done
shift
if [ "$1" = ro ]; then
    for folder in /etc /opt /var/lib /var/log /run /; do mount -o remount,bind,ro $folder; done
fi
shift
exec "$@"
"""


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder or file of ours, and where it stands in the container."""

    source: Path
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Container:
    """What an engine is told of a container. `added` are the capabilities that it does not drop (NET_ADMIN)."""

    volumes: Sequence[Volume]
    read_only: bool
    user: int
    added: Sequence[str]
    environment: Mapping[str, str]

    def command(self, scratch: Path, argv: Sequence[str]) -> list[str]:
        """What runs a command in it; `scratch` is an empty folder, which others may use at the same time."""
        added = [f"+{cap.lower()}" for cap in self.added] if self.user == 0 else []
        volumes = [f"{one.source}={one.target}={'ro' if one.read_only else 'rw'}" for one in self.volumes]
        become = [
            "setpriv",
            f"--reuid={self.user}",
            f"--regid={self.user}",
            "--clear-groups",
            "--inh-caps=-all",
            "--ambient-caps=-all",
            f"--bounding-set={','.join(['-all', *added])}",
            "--no-new-privs",
        ]
        # PYTHONPATH is the lab's, and would show the checkout in another place.
        variables = ["--unset=PYTHONPATH", *(f"{name}={value}" for name, value in self.environment.items())]
        return [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", _CONTAINER, "container"),
            *(str(scratch), IMAGE, str(ROOT), sys.prefix),
            *(*volumes, "--", "ro" if self.read_only else "rw"),
            *(*become, "env", "--chdir=/", *variables, *argv),
        ]


def shown(done: subprocess.CompletedProcess[str]) -> str:
    """A finished command, for an assertion's message."""
    return f"{shlex.join(map(str, done.args))[-200:]} → {done.returncode}\n{done.stdout}{done.stderr}"
