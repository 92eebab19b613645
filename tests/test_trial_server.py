"""The server that doctor has clients ask: it hears those that trust the CA, and nobody holds it up."""

import socket
import ssl
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from mitmproxy.certs import CertStore

from egress_policy.trial_server import ADDRESS, TrialServer


@pytest.fixture(scope="module")
def confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca")
    CertStore.create_store(folder, "mitmproxy", 2048)
    return folder


def test_it_tells_who_came_through(confdir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trusting = ssl.create_default_context(cafile=confdir / "mitmproxy-ca-cert.pem")
    with (
        TrialServer(confdir / "mitmproxy-ca.pem") as server,
        socket.create_connection((ADDRESS, server.port)),  # says nothing
    ):
        url = f"https://{ADDRESS}:{server.port}"
        with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
            urlopen(f"{url}/wary", timeout=30)
        with urlopen(f"{url}/trusting/more?of=it", timeout=30, context=trusting) as answer:
            assert answer.read() == b"{}"
        assert server.was_asked("/trusting")
        assert not server.was_asked("/trust")
        assert not server.was_asked("/wary")
    assert capfd.readouterr() == ("", "")


def test_it_needs_the_ca_s_key(confdir: Path) -> None:
    with pytest.raises(ValueError, match="key"):
        TrialServer(confdir / "mitmproxy-ca-cert.pem")
