"""A server on loopback with a certificate of the proxy's CA: which clients trust that is seen by having them ask."""

import ssl
import tempfile
import threading
import warnings
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Self, override

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ADDRESS = "127.0.0.1"

_LIFETIME = timedelta(hours=1)
_Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


class TrialServer:
    """Serves until the end of its `with`. `authority` is mitmproxy's file of the CA's key and certificate.

    Raises OSError where it cannot be read, ValueError or TypeError where it holds no usable key and certificate.
    """

    def __init__(self, authority: Path) -> None:
        context = _context(authority.read_bytes())
        self._server = _Server((ADDRESS, 0), _Handler)
        # The handshake is the handler's, in a thread of its own: whoever connects and says nothing holds up nobody.
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int:
        """The port, of 127.0.0.1."""
        return self._server.server_address[1]

    def was_asked(self, path: str) -> bool:
        """Tell whether a request for this path, or for one below it, came through TLS."""
        return any(f"{one}/".startswith(f"{path}/") for one in self._server.asked)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.asked: set[str] = set()

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that does not trust the certificate is what is looked for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10

    def do_GET(self) -> None:
        """Answer with JSON that no client can do anything with."""
        self.server.asked.add(self.path.partition("?")[0])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what matters is in `asked`."""


def _context(pem: bytes) -> ssl.SSLContext:
    with warnings.catch_warnings(action="ignore", category=CryptographyDeprecationWarning):
        key = load_pem_private_key(pem, None)
        authority = x509.load_pem_x509_certificate(pem)
    public = authority.public_key()
    if not isinstance(key, _Key) or not isinstance(public, _PublicKey):
        raise TypeError("the CA's key is neither RSA nor of an elliptic curve")
    own = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ADDRESS)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(authority.subject, name, own.public_key(), x509.random_serial_number())
        .not_valid_before(now - _LIFETIME)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(ADDRESS))]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Python's ssl takes a key from a file only.
    with tempfile.NamedTemporaryFile() as file:
        file.write(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.write(certificate.public_bytes(Encoding.PEM))
        file.flush()
        context.load_cert_chain(file.name)
    return context
