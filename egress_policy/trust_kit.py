"""Which variables make common runtimes trust the proxy's CA, and send the scope.

Most of them replace the system's roots, so what they name is a bundle of both. What a variable cannot say is in a
small file that a variable names (wget's, apt's).
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from egress_policy.scope import HEADER

STORE_PASSWORD = "changeit"  # noqa: S105 - Java's own default: it keeps nothing secret, the store holds certificates


@dataclass(frozen=True, slots=True)
class TrustFiles:
    """The files of one folder, readable by everybody; `trust_files.write_trust_files` makes them."""

    directory: Path

    @property
    def authority(self) -> Path:
        """The proxy's CA certificate alone, PEM."""
        return self.directory / "ca.pem"

    @property
    def bundle(self) -> Path:
        """The system's roots and the proxy's CA, PEM."""
        return self.directory / "bundle.pem"

    @property
    def java(self) -> Path:
        """The same certificates, as a PKCS #12 trust store."""
        return self.directory / "truststore.p12"

    @property
    def wget(self) -> Path:
        """A start-up file of wget: it has no variable for certificates."""
        return self.directory / "wgetrc"

    @property
    def apt(self) -> Path:
        """A configuration file of apt: it has no variable for certificates either."""
        return self.directory / "apt.conf"


DIRECTORY = Path("/var/lib/egress-policy/trust")

# Who reads which variable: curl(1), OpenSSL's X509_get_default_cert_file_env(3), each tool's own documentation.
BUNDLE_VARIABLES: Mapping[str, str] = {
    "SSL_CERT_FILE": "OpenSSL, Go, uv, Python's ssl (urllib, httpx, aiohttp)",
    "CURL_CA_BUNDLE": "curl",
    "REQUESTS_CA_BUNDLE": "Python requests",
    "PIP_CERT": "pip",
    "GIT_SSL_CAINFO": "git",
    "NODE_EXTRA_CA_CERTS": "Node",
    "npm_config_cafile": "npm",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": "gRPC",
    "CODEX_CA_CERTIFICATE": "Codex CLI",
}
"""Variables that name the bundle, each with who reads it."""


def variables(trust: TrustFiles, scope: str | None = None) -> dict[str, str]:
    """Return the variables, by name, for a process that is to trust these files.

    `scope` is the value of an `X-Agent-Scope` field; with it come the variables by which SDKs, agents and git take
    header fields.
    """
    return {
        **dict.fromkeys(BUNDLE_VARIABLES, str(trust.bundle)),
        "JAVA_TOOL_OPTIONS": " ".join(
            (
                f"-Djavax.net.ssl.trustStore={trust.java}",
                "-Djavax.net.ssl.trustStoreType=PKCS12",
                f"-Djavax.net.ssl.trustStorePassword={STORE_PASSWORD}",
            )
        ),
        # In the place of /etc/wgetrc; unlike WGETRC it leaves the user's own ~/.wgetrc in force.
        "SYSTEM_WGETRC": str(trust.wget),
        # Read before apt's other files, and beside them (apt.conf(5)).
        "APT_CONFIG": str(trust.apt),
        **({} if scope is None else _headers(scope)),
    }


def _headers(scope: str) -> dict[str, str]:
    field = f"{HEADER}: {scope}"
    given = {
        "ANTHROPIC_CUSTOM_HEADERS": field,
        "OPENAI_CUSTOM_HEADERS": field,
        # git-config(1): numbered pairs.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "http.extraHeader",
        "GIT_CONFIG_VALUE_0": field,
    }
    # Gemini CLI separates fields by commas, and would send half of a reason that has one.
    return given if "," in scope else {**given, "GEMINI_CLI_CUSTOM_HEADERS": field}


def import_command(trust: TrustFiles) -> str:
    """Return the command by which a user's Chromium trusts the CA: its database is the user's own (certutil(1))."""
    database = "$HOME/.pki/nssdb"
    add = f"certutil -d sql:{database} -A -t C,, -n egress-policy -i {shlex.quote(str(trust.authority))}"
    return f"mkdir -p {database} && {add}"
