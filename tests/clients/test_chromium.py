"""Chromium: it reads no variable, but a database of certificates in the user's home (NSS)."""

from deploy.demo.lab import BOB
from tests.clients.conftest import ECHO, World, succeeded

OPTIONS = (
    "--headless",
    "--no-sandbox",  # its own needs user namespaces, which an agent without new privileges may not have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--user-data-dir=profile",
    "--dump-dom",
)
REFUSED = "ERR_CERT_AUTHORITY_INVALID"


def test_chromium(world: World) -> None:
    """Before and after the step that `egress-policy env` prints."""
    url = f"https://{ECHO}/chromium"
    refused = world.run("chromium", *OPTIONS, url)
    assert not world.requests("/chromium")
    assert REFUSED in refused.stdout + refused.stderr
    (step,) = [line.partition(": ")[2] for line in world.printed[BOB].splitlines() if "certutil" in line]
    succeeded(world.run("sh", "-c", step))
    shown = succeeded(world.run("chromium", *OPTIONS, url))
    assert '"path": "/chromium"' in shown
    assert world.requests("/chromium")
