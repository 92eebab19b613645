"""A mount namespace in which other users can reach what lies below a closed folder.

The interpreter, the virtual environment or the checkout may lie below a home of mode 0700. Opening it for real
would change the machine, so it is done in a mount namespace of our own: an empty, open folder is mounted over
the closed one, and what is needed is bound into it at its old path.

    unshare --mount --propagation private python -m deploy.demo.mounts PATH… [--over FILE SOURCE]…

Prints `ready` and waits for the end of standard input, so that the namespace can be taken hold of.
"""

import os
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


def expose(paths: Iterable[Path]) -> None:
    """Make directories reachable and readable for every user, at the paths that they have."""
    # Opened before anything is mounted over them: the descriptors still lead there afterwards.
    opened = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in paths}
    for path in sorted(opened, key=lambda path: len(path.parts)):
        _expose(path, opened[path])


def _expose(path: Path, source: int) -> None:
    hidden = False
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(mode=0o755)  # only below a folder that was covered
            hidden = True
        elif not _is_open(folder.stat(), stat.S_IROTH | stat.S_IXOTH if folder == path else stat.S_IXOTH):
            _mount("-t", "tmpfs", "-o", "mode=0755", "egress-policy-lab", str(folder))
            hidden = True
    if not hidden:
        return
    if _is_open(os.stat(source), stat.S_IROTH | stat.S_IXOTH):
        _bind(f"/proc/self/fd/{source}", path, source)
        return
    for name in os.listdir(f"/proc/self/fd/{source}"):
        _bind_entry(Path(f"/proc/self/fd/{source}", name), path / name, source)


def _bind_entry(source: Path, target: Path, descriptor: int) -> None:
    """Bind one entry of a closed folder; symbolic links cannot be bound, and are made anew."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir()
    else:
        target.touch()
    _bind(str(source), target, descriptor)


def cover_file(target: Path, source: Path) -> None:
    """Let `target` read as `source` does; where a link leads nowhere there is nothing to cover."""
    if target.exists():
        _mount("--bind", str(source), str(target))


def _bind(source: str, target: Path, descriptor: int) -> None:
    _mount("--rbind", source, str(target), descriptors=(descriptor,))


def _mount(*arguments: str, descriptors: tuple[int, ...] = ()) -> None:
    # mount(8) would resolve the link in /proc by itself, to a path that is covered by now.
    subprocess.run(["mount", "--no-canonicalize", *arguments], check=True, pass_fds=descriptors)


def _is_open(status: os.stat_result, wanted: int) -> bool:
    return status.st_mode & wanted == wanted


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
