"""A mount namespace in which other users can reach what lies below a closed folder, and some files read otherwise.

    unshare --mount --propagation private python -m deploy.demo.mounts PATH… [--over FILE SOURCE]…

Prints `ready` and waits for the end of standard input, so that the namespace can be taken hold of.
"""

import subprocess
import sys
from pathlib import Path

from egress_policy.exposure import expose, mount


def cover_file(target: Path, source: Path) -> None:
    """Let `target` read as `source` does; where a link leads nowhere there is nothing to cover."""
    if target.exists():
        mount("--bind", str(source), str(target))


def _main(arguments: list[str]) -> None:
    count = arguments.index("--over") if "--over" in arguments else len(arguments)
    # As written and as resolved: an interpreter is often reached through links, and all of them must lead there.
    written = {Path(path).absolute() for path in arguments[:count]}
    expose(written | {path.resolve() for path in written})
    covers = arguments[count:]
    while covers:
        _, target, source, *covers = covers
        cover_file(Path(target), Path(source))
    # Our copy of others' namespaces would keep them alive.
    subprocess.run(["umount", "--recursive", "--lazy", "/run/netns"], check=True)
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _main(sys.argv[1:])
