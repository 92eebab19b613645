"""Makes what lies below a closed folder reachable for other users, in a mount namespace of the caller's own.

The interpreter, the virtual environment or the checkout may lie below a home of mode 0700. Opening it for real
would change the machine, so an empty, open folder is mounted over the closed one, and what is needed is bound into
it at its old path.
"""

import os
import shutil
import stat
import subprocess
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
            mount("-t", "tmpfs", "-o", "mode=0755", "egress-policy", str(folder))
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


def _bind(source: Path, target: Path, descriptor: int) -> None:
    mount("--rbind", str(source), str(target), descriptors=(descriptor,))


def mount(*arguments: str, descriptors: tuple[int, ...] = ()) -> None:
    """Have the program do what it is told; a path may be below /proc/self/fd, of `descriptors`. Raises CalledProcessError."""
    # mount(8) would resolve the link in /proc by itself, to a path that is covered by now.
    subprocess.run(["mount", "--no-canonicalize", *arguments], check=True, pass_fds=descriptors)


def _is_open(path: Path, wanted: int) -> bool:
    return path.stat().st_mode & wanted == wanted
