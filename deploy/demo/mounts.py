"""A mount namespace in which other users can reach what lies below a closed folder.

The interpreter, the virtual environment or the checkout may lie below a home of mode 0700. Opening it for real
would change the machine, so it is done in a mount namespace of our own: an empty, open folder is mounted over
the closed one, and what is needed is bound into it at its old path.

    unshare --mount --propagation private python -m deploy.demo.mounts PATH… [--over FILE SOURCE]…

Prints `ready` and waits for the end of standard input, so that the namespace can be taken hold of.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_REACHABLE = stat.S_IXOTH
_READABLE = stat.S_IROTH
_LISTED = stat.S_IROTH | stat.S_IXOTH
# Nobody needs it, and it may be large.
_LEFT_OUT = {".git"}


def expose(paths: Iterable[Path]) -> None:
    """Make folders reachable and readable for every user, at the paths that they have."""
    # Opened before anything is mounted over them: the descriptors still lead there afterwards.
    opened = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in paths}
    for path in sorted(opened, key=lambda path: len(path.parts)):
        _expose(path, opened[path])


def _expose(path: Path, source: int) -> None:
    hidden = False
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir()  # only below a folder that was covered
            hidden = True
        elif not _is_open(folder, _LISTED if folder == path else _REACHABLE):
            _mount("-t", "tmpfs", "-o", "mode=0755", "egress-policy-lab", str(folder))
            hidden = True
    if hidden:
        _fill(path, Path(f"/proc/self/fd/{source}"), source)


def _fill(folder: Path, source: Path, descriptor: int) -> None:
    """Bind a folder if it is open; else go through it, and copy the files that are closed (a umask of 077)."""
    if _is_open(source, _LISTED):
        _bind(source, folder, descriptor)
        return
    for entry in source.iterdir():
        target = folder / entry.name
        if entry.is_symlink():
            target.symlink_to(entry.readlink())
        elif entry.is_dir():
            if entry.name not in _LEFT_OUT:
                target.mkdir()
                _fill(target, entry, descriptor)
        elif _is_open(entry, _READABLE):
            target.touch()
            _bind(entry, target, descriptor)
        elif entry.is_file():
            shutil.copyfile(entry, target)
            target.chmod(0o755 if entry.stat().st_mode & stat.S_IXUSR else 0o644)


def cover_file(target: Path, source: Path) -> None:
    """Let `target` read as `source` does; where a link leads nowhere there is nothing to cover."""
    if target.exists():
        _mount("--bind", str(source), str(target))


def _bind(source: Path, target: Path, descriptor: int) -> None:
    _mount("--rbind", str(source), str(target), descriptors=(descriptor,))


def _mount(*arguments: str, descriptors: tuple[int, ...] = ()) -> None:
    # mount(8) would resolve the link in /proc by itself, to a path that is covered by now.
    subprocess.run(["mount", "--no-canonicalize", *arguments], check=True, pass_fds=descriptors)


def _is_open(path: Path, wanted: int) -> bool:
    return path.stat().st_mode & wanted == wanted


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
