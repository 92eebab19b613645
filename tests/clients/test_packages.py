"""Package managers: they send no header, so they run as an agent with a default scope."""

import base64
import hashlib
import io
import json
import sys
import tarfile
import zipfile
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest

from deploy.demo.lab import BOB
from tests.clients.conftest import FILES, World, succeeded

NAME, VERSION = "demo-package", "1.0"


@pytest.fixture(scope="module", autouse=True)
def registries(world: World) -> None:
    """A package index for Python, a registry for npm, and a repository for apt, each with one package or none."""
    python_index(world.served / "simple" / NAME)
    npm_registry(world.served / "npm")
    apt_repository(world.served / "apt")


def python_index(folder: Path) -> None:
    folder.mkdir(parents=True)
    wheel = f"demo_package-{VERSION}-py3-none-any.whl"
    about = f"demo_package-{VERSION}.dist-info"
    with zipfile.ZipFile(folder / wheel, "w") as archive:
        archive.writestr("demo_package.py", "print('imported')\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(
            f"{about}/RECORD", f"demo_package.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n"
        )
    (folder / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel}">{wheel}</a>')


def npm_registry(folder: Path) -> None:
    folder.mkdir()
    described = {"name": NAME, "version": VERSION + ".0", "main": "index.js"}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in (
            ("package.json", json.dumps(described)),
            ("index.js", "console.log('imported')\n"),
        ):
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    (folder / "demo.tgz").write_bytes(packed.getvalue())
    digest = base64.b64encode(hashlib.sha512(packed.getvalue()).digest()).decode()
    source = {"tarball": f"https://{FILES}/npm/demo.tgz", "integrity": f"sha512-{digest}"}
    versions = {described["version"]: {**described, "dist": source}}
    document = {"name": NAME, "dist-tags": {"latest": described["version"]}, "versions": versions}
    (folder / NAME).write_text(json.dumps(document))


def apt_repository(folder: Path) -> None:
    folder.mkdir()
    entry = {"Package": NAME, "Version": VERSION, "Architecture": "all", "Filename": "none.deb", "Size": "1"}
    packages = "".join(f"{name}: {value}\n" for name, value in entry.items())
    (folder / "Packages").write_text(packages)
    digest = hashlib.sha256(packages.encode()).hexdigest()
    date = format_datetime(datetime.now(UTC), usegmt=True)
    (folder / "Release").write_text(f"Date: {date}\nSHA256:\n {digest} {len(packages)} Packages\n")


def test_pip(world: World) -> None:
    options = ("--no-deps", "--target", "pip", "--index-url", f"https://{FILES}/simple/")
    succeeded(world.run(sys.executable, "-m", "pip", "install", "-q", *options, NAME))
    assert (world.home(BOB) / "pip" / "demo_package.py").exists()


def test_uv(world: World) -> None:
    options = ("--python", sys.executable, "--target", "uv", "--index-url", f"https://{FILES}/simple/")
    succeeded(world.run("uv", "pip", "install", "-q", *options, NAME))
    assert (world.home(BOB) / "uv" / "demo_package.py").exists()


def test_npm(world: World) -> None:
    options = ("--no-audit", "--no-fund", "--no-update-notifier", "--prefix", "npm")
    succeeded(world.run("npm", "install", *options, "--registry", f"https://{FILES}/npm/", NAME))
    assert succeeded(world.run("node", f"npm/node_modules/{NAME}")) == "imported\n"


def test_apt(world: World) -> None:
    """As any user may: its lists, cache and sources are in the home folder."""
    home = world.home(BOB)
    settings = {
        "Dir::State": home / "state",
        "Dir::Cache": home / "cache",
        "Dir::Etc::SourceList": home / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
    }
    (home / "sources.list").write_text(f"deb [trusted=yes] https://{FILES}/apt ./\n")
    succeeded(world.run("mkdir", "-p", "state/lists/partial", "cache/archives/partial"))
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    succeeded(world.run("apt-get", *options, "update", "--error-on=any"))
    assert f"Package: {NAME}\n" in succeeded(world.run("apt-cache", *options, "show", NAME))
