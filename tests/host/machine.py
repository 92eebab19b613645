"""A machine that boots: this one's files, with changes of its own, and a real systemd as its process 1.

What it changes is in a tmpfs over `/`; it has namespaces of its own of every kind, a cgroup of its own, and the network
namespace of a laboratory's agent host. It may not load modules, set the clock or a sysctl beyond its namespaces.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from deploy.demo.lab import NAMESERVERS, Lab

PROJECT = Path(__file__).parents[2]
CLONE = "/opt/clone"
"""Where the project is in the machine, for reading."""
SYSTEMD = "/lib/systemd/systemd"
PYTHON = "/opt/python/bin/" + Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}").name
PATIENCE = 60.0

# Other units of this machine's, and what would act on the kernel that it shares.
MASKED = (
    *("getty.target", "systemd-logind.service", "systemd-modules-load.service", "systemd-sysctl.service"),
    *(
        "systemd-remount-fs.service",
        "systemd-binfmt.service",
        "systemd-journald-audit.socket",
        "kmod-static-nodes.service",
    ),
    *(
        "systemd-random-seed.service",
        "systemd-udevd.service",
        "systemd-udev-trigger.service",
        "systemd-networkd.service",
    ),
    *(
        "systemd-machine-id-commit.service",
        "systemd-firstboot.service",
        "systemd-timesyncd.service",
        "dev-hugepages.mount",
    ),
    *(
        "sys-kernel-debug.mount",
        "sys-kernel-tracing.mount",
        "sys-kernel-config.mount",
        "sys-fs-fuse-connections.mount",
    ),
    *(
        "proc-sys-fs-binfmt_misc.automount",
        "systemd-update-utmp.service",
        "systemd-update-utmp-runlevel.service",
    ),
    # It would remove what is in /tmp.
    *("systemd-tmpfiles-setup.service", "systemd-tmpfiles-setup-dev.service", "systemd-tmpfiles-clean.timer"),
)
# The machine's tree. Later mounts of the host's would not reach it.
TREE = f"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
cd root
mkdir -p opt/python opt/clone
mount --bind {sys.base_prefix} opt/python
mount --bind {PROJECT} opt/clone
for folder in opt/python opt/clone; do mount -o remount,bind,ro $folder; done
for folder in etc/systemd/system usr/lib/systemd/system-generators opt/empty; do
    mkdir -p $folder
    mount -t tmpfs tmpfs $folder
done
# Where the interpreter's library is found by its path, that of the proxy's unit is not.
case {sys.base_prefix} in /root/*|/home/*) mount --bind opt/empty .{sys.base_prefix} ;; esac
for unit in {" ".join(MASKED)}; do ln -s /dev/null etc/systemd/system/$unit; done
: > etc/fstab
rm -f etc/machine-id etc/resolv.conf
echo {uuid4().hex} > etc/machine-id  # not `uninitialized`: on its first boot systemd enables all units there are
echo nameserver {NAMESERVERS[0]} > etc/resolv.conf
printf 'passwd: files\\ngroup: files\\nhosts: files dns\\n' > etc/nsswitch.conf
rm -rf opt/egress-policy* etc/egress-policy var/lib/egress-policy var/log/egress-policy
echo /opt/python/lib > etc/ld.so.conf.d/00-test.conf
ldconfig -r .
echo ready
exec cat
"""
# Namespaces of one boot: gone with its process 1.
BOOT = f"""
set -eu
cd "$1/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do cp -a /dev/$device dev; done
mkdir dev/shm dev/pts opt/empty/old
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
pivot_root . opt/empty/old
cd /
umount -l /opt/empty/old
rmdir /opt/empty/old
exec env -i container=unshare PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
    setpriv --bounding-set=-sys_boot,-sys_module,-sys_rawio,-sys_time,-syslog,-audit_control,-mac_admin \\
    {SYSTEMD} --system --unit=multi-user.target </dev/null
"""


class Machine:
    """`machine.boot()`, `machine.run(…)` in it, `machine.cut_power()`, and boot it again."""

    def __init__(self, lab: Lab) -> None:
        self._closing = ExitStack()
        self._net = f"/run/netns/{lab._inside.name('host')}"
        self.folder = lab.folder / "machine"
        self.root = self.folder / "root"
        self._booted: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir()
        # Opened before the tree is mounted over it.
        self._tree = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", TREE, "sh", str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._closing.callback(self._tree.communicate)
        assert self._tree.stdout is not None
        assert self._tree.stdout.readline() == b"ready\n"
        self._cgroup = _cgroup_of_its_own()
        self._closing.callback(self._remove_cgroup)
        self._closing.callback(self.cut_power)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def boot(self) -> None:
        """Start process 1, and wait until it has started what there is to start."""
        self._booted = subprocess.Popen(
            [
                *("nsenter", f"--mount=/proc/{self._tree.pid}/ns/mnt", f"--net={self._net}"),
                *("sh", "-c", 'echo $$ > "$1"; shift; exec "$@"', "sh", str(self._cgroup / "cgroup.procs")),
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--cgroup"),
                *("sh", "-c", BOOT, "sh", str(self.folder)),
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait(lambda: self.run("systemctl", "is-system-running").stdout.strip() in {"running", "degraded"})

    def cut_power(self) -> None:
        """End all its processes at once; its files stay."""
        if self._booted is not None:
            self._booted.kill()
            self._booted.wait()
            self._booted = None
            wait(lambda: not _processes(self._cgroup))

    def run(
        self, *command: str, env: Sequence[str] = (), stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine as root."""
        return subprocess.run(
            [*self._inside(), "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *env, *command],
            input=stdin, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    def must(self, *command: str, env: Sequence[str] = ()) -> str:
        """Run a command that has to work."""
        done = self.run(*command, env=env)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{self.journal()}"
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file in the machine."""
        done = self.run("sh", "-c", 'mkdir -p "${1%/*}"; cat > "$1"', "sh", path, stdin=text)
        assert done.returncode == 0, done.stderr

    def journal(self) -> str:
        """Return what its journal has of this boot."""
        return self.run("journalctl", "--no-pager", "--output=short-monotonic").stdout[-20000:]

    def prepare_packages(self, place: str) -> None:
        """Put the packages of this clone's .venv where install.sh would have pip put them: there is no index here."""
        # The largest of those that only tests need.
        left_out = ("mypy", "mypyc", "ruff", "playwright", "hypothesis", "pip", "__pycache__")
        exclude = " ".join(f"--exclude={name}" for name in left_out)
        script = f"""
set -eu
mkdir -p {place}
cd {CLONE}
tar --create {exclude} .venv | tar --extract --directory {place}
cd {place}/.venv
grep -rlI --null {PROJECT}/.venv bin pyvenv.cfg | xargs -0 sed -i 's|{PROJECT}/.venv|{place}/.venv|g'
grep -rlI --null {PROJECT} lib/python3*/site-packages/__editable__* | xargs -0 sed -i 's|{PROJECT}|{place}|g'
sed -i 's|{sys.base_prefix}|/opt/python|g' pyvenv.cfg
ln -sf {PYTHON} bin/python
for link in bin/python3 bin/python3.*; do ln -sf python $link; done
"""
        self.must("bash", "-c", script)
        tools = "[tool.pytest"
        project = (PROJECT / "pyproject.toml").read_text()
        project = project[: project.index(tools)]
        requirements = (PROJECT / "deploy/image/requirements.txt").read_text()
        made_from = sha256(f"{place}\n{project}{requirements}".encode()).hexdigest()
        self.write(f"{place}/.venv/set-up.stamp", f"{made_from}  -\n{PYTHON}\n")

    def _inside(self) -> list[str]:
        assert self._booted is not None
        children = Path(f"/proc/{self._booted.pid}/task/{self._booted.pid}/children").read_text().split()
        first = children[0] if children else "0"
        return ["nsenter", f"--target={first}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]

    def _remove_cgroup(self) -> None:
        folders = sorted(self._cgroup.rglob("*/"), key=lambda folder: -len(folder.parts))
        for folder in (*folders, self._cgroup):
            folder.rmdir()


def wait(ready: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + patience
    while not ready():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


def _cgroup_of_its_own() -> Path:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    where = next(Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")
    cgroup = where / f"egress-policy-test-{os.getpid()}"
    cgroup.mkdir()
    return cgroup


def _processes(cgroup: Path) -> list[str]:
    return [pid for file in cgroup.rglob("cgroup.procs") for pid in file.read_text().split()]


assert shutil.which(SYSTEMD), f"{SYSTEMD} is not there: install the package systemd"
