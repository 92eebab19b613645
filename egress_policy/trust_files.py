"""Writes what runtimes are told to trust: the system's roots and the proxy's CA, in the forms that they read.

Only certificates leave the proxy's folder: what is written is made anew from those that were read.
"""

import contextlib
import os
import re
import ssl
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding
from cryptography.hazmat.primitives.serialization.pkcs12 import (
    PKCS12Certificate,
    load_pkcs12,
    serialize_java_truststore,
)
from cryptography.utils import CryptographyDeprecationWarning

from egress_policy.trust_kit import STORE_PASSWORD, TrustFiles

SYSTEM_ROOTS = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Ubuntu, Arch, Alpine
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # Fedora, RHEL
    Path("/etc/ssl/ca-bundle.pem"),  # openSUSE
)
_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class TrustError(Exception):
    """The files cannot be read or written: the message says which, why, and what to do."""


def system_roots() -> Path:
    """Return the operating system's own bundle. Raises TrustError."""
    for path in SYSTEM_ROOTS:
        if path.exists():
            return path
    raise TrustError(
        "the system's roots were not found: install ca-certificates, or name their file with --roots"
    )


@dataclass(frozen=True, slots=True)
class Authority:
    """The proxy's CA: its certificate (DER), and from when to when it counts."""

    certificate: bytes
    begins: datetime
    ends: datetime


def read_authority(ca: Path) -> Authority:
    """Read the CA's certificate, of a file that holds it alone.

    Raises TrustError, also where the file holds a private key: whoever named it meant another one.
    """
    content = _read(ca)
    if b"PRIVATE KEY-----" in content:
        raise TrustError(f"{ca} holds a private key, which nobody may be given: name the certificate's file")
    certificates = _certificates(ca, content)
    if len(certificates) != 1:
        raise TrustError(f"{ca} holds {len(certificates)} certificates; it must be the CA's alone")
    try:
        certificate = x509.load_der_x509_certificate(certificates[0])
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        raise TrustError(f"{ca} is not a CA's certificate") from None
    if not is_authority:
        raise TrustError(f"{ca} is not a CA's certificate")
    return Authority(certificates[0], certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def read_certificates(path: Path) -> list[bytes]:
    """Read a PEM file's certificates, each as DER. Raises TrustError."""
    return _certificates(path, _read(path))


def write_trust_files(ca: Path, directory: Path, roots: Path | None = None) -> TrustFiles:
    """Write the files into a folder, which is made if need be; each is replaced whole.

    `ca` is the proxy's certificate (`mitmproxy-ca-cert.pem` of its confdir), `roots` the bundle that it is added to;
    default is the operating system's. The folder must belong to whoever calls this: others could exchange
    what runtimes are to trust. Raises TrustError.
    """
    if re.search(r"[\s\"'\\]", str(directory)):
        # Where several options stand in one variable, and in apt's file, it would not be read as one path.
        raise TrustError(f"the folder's name must be without spaces and quotes, unlike {str(directory)!r}")
    authority = read_authority(ca).certificate
    others = read_certificates(roots or system_roots())
    certificates = [*(one for one in others if one != authority), authority]
    trust = TrustFiles(directory)
    contents = {
        trust.authority: _pem([authority]),
        trust.bundle: _pem(certificates),
        trust.java: _java(certificates),
        trust.wget: _wget(trust),
        trust.apt: _apt(trust),
    }
    try:
        if not directory.exists():
            directory.mkdir(parents=True)
            directory.chmod(0o755)  # whatever the umask
        status = directory.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise TrustError(
                f"others may write to {directory}, and exchange what is trusted: chown it to yourself, and chmod go-w"
            )
        for path, content in contents.items():
            _replace(path, content)
    except OSError as error:
        raise TrustError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    return trust


def find_faults(trust: TrustFiles, ca: bytes) -> dict[Path, str]:
    """Say what is wrong with each file that would keep its readers from trusting this CA (its certificate, as DER)."""
    no_ca = "does not hold the proxy's CA"
    checks: dict[Path, tuple[Callable[[], bool], str]] = {
        trust.bundle: (lambda: ca in read_certificates(trust.bundle), no_ca),
        trust.java: (lambda: ca in _read_store(trust.java), no_ca),
        trust.wget: (lambda: _read(trust.wget) == _wget(trust), "does not name the bundle"),
        trust.apt: (lambda: _read(trust.apt) == _apt(trust), "does not name the bundle"),
    }
    faults = {}
    for path, (is_well, fault) in checks.items():
        try:
            if not is_well():
                faults[path] = f"{path} {fault}"
        except TrustError as error:
            faults[path] = str(error)
    return faults


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise TrustError(f"{path} is missing") from None
    except OSError as error:
        raise TrustError(f"{path} cannot be read: {error.strerror}") from None


def _certificates(path: Path, content: bytes) -> list[bytes]:
    try:
        found = [ssl.PEM_cert_to_DER_cert(block.decode()) for block in _BLOCK.findall(content)]
    except ValueError:
        raise TrustError(f"{path} is no readable PEM file") from None
    if not found:
        raise TrustError(f"{path} holds no certificate in PEM")
    return found


def _pem(certificates: Sequence[bytes]) -> bytes:
    return "".join(map(ssl.DER_cert_to_PEM_cert, certificates)).encode()


def _wget(trust: TrustFiles) -> bytes:
    return f"ca_certificate = {trust.bundle}\n".encode()


def _apt(trust: TrustFiles) -> bytes:
    return f'Acquire::https::CAInfo "{trust.bundle}";\n'.encode()


def _java(certificates: Sequence[bytes]) -> bytes:
    entries = [
        PKCS12Certificate(one, f"root-{number}".encode()) for number, one in enumerate(_parsed(certificates))
    ]
    return serialize_java_truststore(entries, BestAvailableEncryption(STORE_PASSWORD.encode()))


def _read_store(path: Path) -> list[bytes]:
    with _lenient():
        try:
            held = load_pkcs12(_read(path), STORE_PASSWORD.encode()).additional_certs
        except ValueError:
            raise TrustError(f"{path} is no PKCS #12 store, or has another password") from None
    return [one.certificate.public_bytes(Encoding.DER) for one in held]


def _parsed(certificates: Sequence[bytes]) -> Iterator[x509.Certificate]:
    """Leave out what the library does not take: systems carry old roots that break the rules of today."""
    with _lenient():
        for certificate in certificates:
            with contextlib.suppress(ValueError):
                yield x509.load_der_x509_certificate(certificate)


def _lenient() -> AbstractContextManager[None]:
    return warnings.catch_warnings(action="ignore", category=CryptographyDeprecationWarning)


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    new = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
