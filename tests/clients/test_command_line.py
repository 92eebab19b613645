"""curl, wget and git: they send the header, by their own start-up files or the kit's variables."""

import json
import subprocess
from pathlib import Path

import pytest

from deploy.demo.lab import ALICE, BOB
from tests.clients.conftest import BAD, ECHO, FIELD, FILES, NAMED, World, succeeded

CERTIFICATE_TROUBLE = 60  # curl(1), libcurl-errors(3): CURLE_PEER_FAILED_VERIFICATION


@pytest.fixture(scope="module", autouse=True)
def start_up_files(world: World) -> None:
    """What docs/developers.md has a developer write."""
    home = world.home(ALICE)
    (home / ".curlrc").write_text(f'header = "X-Agent-Scope: {FIELD}"\n')
    (home / ".wgetrc").write_text(f"header = X-Agent-Scope: {FIELD}\n")


@pytest.mark.parametrize(("option", "version"), [("--http1.1", "1.1"), ("--http2", "2")])
def test_curl(world: World, option: str, version: str) -> None:
    done = world.run("curl", "-sS", option, f"https://{ECHO}/curl{version}", uid=ALICE)
    assert json.loads(succeeded(done))["http"] == version
    assert "x-agent-scope" not in world.fields(f"/curl{version}")


def test_without_the_kit_the_certificate_is_refused(world: World) -> None:
    """So the other tests show that the kit works, and not that nobody looks."""
    done = world.run("curl", "-sS", f"https://{ECHO}/without", uid=ALICE, kit=False)
    assert done.returncode == CERTIFICATE_TROUBLE
    assert not world.requests("/without")


def test_the_system_s_roots_are_trusted_beside_the_ca(world: World) -> None:
    """A known-good name is not decrypted: the certificate is the origin's own."""
    done = world.run("curl", "-sS", f"https://{NAMED}/", uid=ALICE)
    assert json.loads(succeeded(done))["server_name"] == NAMED


def test_curl_shows_why_a_request_was_denied(world: World) -> None:
    done = world.run("curl", "-sS", "-i", f"https://{ECHO}/denied", "-d", "text", uid=BOB)
    head, _, body = succeeded(done).partition("\n\n")
    assert "content-type: application/problem+json" in head.lower()
    assert json.loads(body)["code"] == "method_not_allowed"
    known_bad = world.run("curl", "-sS", "--resolve", f"{BAD}:443:198.18.0.200", f"https://{BAD}/", uid=ALICE)
    assert json.loads(succeeded(known_bad))["code"] == "destination_denied"


def test_wget(world: World) -> None:
    done = world.run("wget", "-q", "-O-", f"https://{ECHO}/wget", uid=ALICE)
    assert json.loads(succeeded(done))["path"] == "/wget"
    assert "x-agent-scope" not in world.fields("/wget")


def upload(world: World, *options: str, size: int) -> dict[str, object]:
    body = world.home(ALICE) / "body"
    body.write_bytes(b"x" * size)
    answer: dict[str, object] = json.loads(
        succeeded(world.run("curl", "-sS", *options, f"https://{FILES}/length", uid=ALICE))
    )
    return answer


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_an_upload_in_chunks(world: World, option: str) -> None:
    """Its length is not said beforehand; the origin speaks HTTP/1.1."""
    answer = upload(
        world, option, "-H", "Transfer-Encoding: chunked", "-X", "POST", "-T", "body", size=3_000_000
    )
    assert answer["length"] == 3_000_000


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_an_upload_that_waits_to_be_asked_for(world: World, option: str) -> None:
    """With `Expect: 100-continue` (RFC 9110 section 10.1.1) curl sends no body before it hears."""
    answer = upload(world, option, "-H", "Expect: 100-continue", "--data-binary", "@body", size=3_000_000)
    assert answer == {"length": 3_000_000, "framing": "length"}


def test_a_large_download(world: World) -> None:
    done = world.run(
        "curl", "-sS", "-o", "large", "-w", "%{size_download}", f"https://{ECHO}/bytes/50000000", uid=ALICE
    )
    assert succeeded(done) == "50000000"


@pytest.fixture(scope="module")
def repository(world: World) -> Path:
    """A repository with one commit, which the origin serves and takes pushes to."""
    bare = world.served / "git" / "demo.git"
    work = world.lab.folder / "work"
    commands = [
        ["git", "init", "-q", "-b", "main", str(work)],
        ["git", "-C", str(work), "commit", "-q", "--allow-empty", "-m", "First"],
        ["git", "clone", "-q", "--bare", str(work), str(bare)],
    ]
    for command in commands:
        subprocess.run(command, check=True, env=GIT_NAMES)
    return bare


GIT_NAMES = {
    "PATH": "/usr/bin:/bin",
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
       for what, value in (("NAME", "alice"), ("EMAIL", "alice@example.com"))},
}  # fmt: skip


def test_git_clones_and_pushes(world: World, repository: Path) -> None:
    """The push is larger than `http.postBuffer` (1 MiB), so git sends it in chunks and asks first (100-continue)."""
    url = f"https://{FILES}/git/{repository.name}"
    succeeded(world.run("git", "clone", "-q", url, "clone", uid=ALICE))
    large = world.home(ALICE) / "clone" / "large"
    with Path("/dev/urandom").open("rb") as noise:
        large.write_bytes(noise.read(3_000_000))
    for command in (["add", "large"], ["commit", "-q", "-m", "Large"], ["push", "-q", "origin", "main"]):
        succeeded(world.run("git", "-C", "clone", *command, uid=ALICE, settings=GIT_NAMES))
    pushed = subprocess.run(
        ["git", "-C", repository, "log", "--format=%s"], capture_output=True, text=True, check=True
    )
    assert pushed.stdout.split() == ["Large", "First"]
    path = f"/git/{repository.name}/git-receive-pack"
    assert {"transfer-encoding"} <= world.fields(path)
    assert "x-agent-scope" not in world.fields(path)


def test_git_says_that_it_was_denied(world: World, repository: Path) -> None:
    """Bob's default scope reads; what git asks for by POST is another intent's."""
    done = world.run("git", "clone", "-q", f"https://{FILES}/git/{repository.name}", "denied", uid=BOB)
    assert done.returncode == 128
    assert "403" in done.stderr
