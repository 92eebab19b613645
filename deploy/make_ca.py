"""Make the proxy's CA, as root: so that the proxy, which is another user, need never write there.

    python deploy/make_ca.py /var/lib/egress-policy/ca

Under the names that mitmproxy reads, and only where there is none. mitmproxy's own would be RSA-2048; with a key on the
curve P-256 a new TLS connection costs a seventh less, since the certificates that it makes have the CA's key.
"""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from mitmproxy.certs import DEFAULT_DHPARAM

_VALID = timedelta(days=10 * 365)
_SLOW_CLOCKS = timedelta(days=2)


def make(folder: Path) -> None:
    """Write key and certificate, readable for root alone, and the certificate alone for all. Raises OSError."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(key).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(folder / "mitmproxy-dhparam.pem", DEFAULT_DHPARAM, 0o644)
    _write(folder / "mitmproxy-ca-cert.pem", certificate, 0o644)
    # Last: where it is there, all are.
    _write(folder / "mitmproxy-ca.pem", secret + certificate, 0o600)


def _certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "egress-policy")])
    usage = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLOW_CLOCKS)
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    new.chmod(mode)
    new.replace(path)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
