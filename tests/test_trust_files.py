"""What runtimes are told to trust: the system's roots and the proxy's CA, and never more than certificates."""

import os
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12
from mitmproxy.certs import CertStore

from deploy.demo.certificates import Authority
from egress_policy.trust_files import (
    TrustError,
    find_faults,
    read_authority,
    read_certificates,
    write_trust_files,
)
from egress_policy.trust_kit import BUNDLE_VARIABLES, STORE_PASSWORD, TrustFiles, variables

FIELD = 'sandbox-alice;reason="read the docs"'


@pytest.fixture(scope="module")
def confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A proxy's folder, as mitmproxy makes it."""
    folder = tmp_path_factory.mktemp("ca")
    CertStore.create_store(folder, "mitmproxy", 2048)
    return folder


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A system's bundle of two roots, with remarks between them as some systems have."""
    path = tmp_path_factory.mktemp("roots") / "roots.crt"
    path.write_bytes(b"# one\n" + b"# another\n".join(Authority().certificate_pem() for _ in range(2)))
    return path


@pytest.fixture(scope="module")
def trust(confdir: Path, roots: Path, tmp_path_factory: pytest.TempPathFactory) -> TrustFiles:
    return write_trust_files(confdir / "mitmproxy-ca-cert.pem", tmp_path_factory.mktemp("trust"), roots)


def test_the_bundle_holds_the_system_s_roots_and_the_ca(
    trust: TrustFiles, confdir: Path, roots: Path
) -> None:
    ca = read_certificates(confdir / "mitmproxy-ca-cert.pem")
    assert read_certificates(trust.bundle) == read_certificates(roots) + ca
    assert read_certificates(trust.authority) == ca
    store = load_pkcs12(trust.java.read_bytes(), STORE_PASSWORD.encode())
    assert store.key is None
    assert len(store.additional_certs) == 3


def test_openssl_reads_the_bundle(trust: TrustFiles) -> None:
    context = ssl.create_default_context(cafile=trust.bundle)
    assert context.cert_store_stats()["x509_ca"] == 3


def test_everybody_may_read_the_files_and_no_one_else_write_them(trust: TrustFiles) -> None:
    files = list(trust.directory.iterdir())
    assert set(files) == {trust.authority, trust.bundle, trust.java, trust.wget, trust.apt}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o644}


def test_everybody_may_read_a_folder_that_is_made_whatever_the_umask(
    confdir: Path, roots: Path, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        made = write_trust_files(confdir / "mitmproxy-ca-cert.pem", tmp_path / "trust", roots)
    finally:
        os.umask(before)
    assert made.directory.stat().st_mode & 0o777 == 0o755
    assert made.bundle.stat().st_mode & 0o777 == 0o644


def test_no_private_key_leaves_the_proxy_s_folder(confdir: Path, roots: Path, tmp_path: Path) -> None:
    """Neither of a wrong file that was named, nor one that lies among the roots."""
    with pytest.raises(TrustError, match="holds a private key"):
        write_trust_files(confdir / "mitmproxy-ca.pem", tmp_path / "trust", roots)
    assert not (tmp_path / "trust").exists()
    mixed = tmp_path / "roots.crt"
    mixed.write_bytes((confdir / "mitmproxy-ca.pem").read_bytes() + roots.read_bytes())
    written = write_trust_files(confdir / "mitmproxy-ca-cert.pem", tmp_path / "trust", mixed)
    for file in written.directory.iterdir():
        assert b"PRIVATE" not in file.read_bytes()


def test_a_root_that_breaks_today_s_rules_stays_in_the_bundle(
    confdir: Path, roots: Path, tmp_path: Path
) -> None:
    """One old root must not cost all the others: programs judge it themselves; the Java store leaves it out."""
    odd = tmp_path / "roots.crt"
    broken = ssl.DER_cert_to_PEM_cert(b"\x30\x03\x02\x01\x01")
    odd.write_text(broken + roots.read_text())
    written = write_trust_files(confdir / "mitmproxy-ca-cert.pem", tmp_path / "trust", odd)
    assert len(read_certificates(written.bundle)) == 4
    assert len(load_pkcs12(written.java.read_bytes(), STORE_PASSWORD.encode()).additional_certs) == 3


def test_written_again_the_ca_is_there_once(trust: TrustFiles, confdir: Path, tmp_path: Path) -> None:
    """A system that trusts the CA already has it among its roots."""
    again = write_trust_files(confdir / "mitmproxy-ca-cert.pem", tmp_path, trust.bundle)
    assert again.bundle.read_bytes() == trust.bundle.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no certificate in PEM"),
        (b"-----BEGIN CERTIFICATE-----\n???\n-----END CERTIFICATE-----", "is not a CA's certificate"),
        (b"-----BEGIN CERTIFICATE-----\n\xff\n-----END CERTIFICATE-----", "is no readable PEM file"),
        (b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----", "is no readable PEM file"),
        (Authority().certificate_pem() * 2, "holds 2 certificates"),
    ],
)
def test_what_is_no_ca_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(content)
    with pytest.raises(TrustError, match=message):
        read_authority(path)


def test_a_host_s_certificate_is_no_ca_s(tmp_path: Path) -> None:
    leaf = tmp_path / "leaf.pem"
    Authority().write_leaf("a.example", leaf)
    certificate = leaf.read_bytes()[leaf.read_bytes().index(b"-----BEGIN CERTIFICATE") :]
    leaf.write_bytes(certificate)
    with pytest.raises(TrustError, match="is not a CA's certificate"):
        read_authority(leaf)


def test_a_folder_that_others_may_write_to_is_refused(confdir: Path, roots: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(TrustError, match="others may write to"):
        write_trust_files(confdir / "mitmproxy-ca-cert.pem", tmp_path, roots)


@pytest.mark.parametrize("name", ["two words", 'a"quote', "new\nline", "back\\slash"])
def test_a_folder_s_name_must_be_one_word_everywhere(
    confdir: Path, roots: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(TrustError, match="without spaces and quotes"):
        write_trust_files(confdir / "mitmproxy-ca-cert.pem", tmp_path / name, roots)


def test_a_folder_that_cannot_be_is_said(confdir: Path, roots: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrustError, match="cannot be written"):
        write_trust_files(confdir / "mitmproxy-ca-cert.pem", tmp_path / "file", roots)


def test_faults_are_found_file_by_file(confdir: Path, roots: Path, tmp_path: Path) -> None:
    """A CA that was made anew, a file that is gone, one that somebody wrote by hand."""
    trust = write_trust_files(confdir / "mitmproxy-ca-cert.pem", tmp_path, roots)
    (ca,) = read_certificates(trust.authority)
    assert find_faults(trust, ca) == {}
    assert set(find_faults(trust, ca + b"\0")) == {trust.bundle, trust.java}
    trust.bundle.write_text("nothing")
    trust.java.write_text("nothing")
    trust.wget.unlink()
    trust.apt.write_text("nothing")
    assert find_faults(trust, ca) == {
        trust.bundle: f"{trust.bundle} holds no certificate in PEM",
        trust.java: f"{trust.java} is no PKCS #12 store, or has another password",
        trust.wget: f"{trust.wget} is missing",
        trust.apt: f"{trust.apt} does not name the bundle",
    }


def test_the_scope_goes_where_tools_take_header_fields(trust: TrustFiles) -> None:
    without, given = variables(trust), variables(trust, FIELD)
    assert {name: given[name] for name in without} == without
    added = given.keys() - without.keys()
    assert added == {
        "ANTHROPIC_CUSTOM_HEADERS",
        "OPENAI_CUSTOM_HEADERS",
        "GEMINI_CLI_CUSTOM_HEADERS",
        "GIT_CONFIG_COUNT",
        "GIT_CONFIG_KEY_0",
        "GIT_CONFIG_VALUE_0",
    }
    assert given["ANTHROPIC_CUSTOM_HEADERS"] == f"X-Agent-Scope: {FIELD}"
    told = subprocess.run(
        ["git", "config", "http.extraHeader"], env=given, capture_output=True, text=True, check=True
    )
    assert told.stdout == f"X-Agent-Scope: {FIELD}\n"


def test_a_comma_is_not_given_to_a_tool_that_would_cut_there(trust: TrustFiles) -> None:
    given = variables(trust, 'sandbox-alice;reason="read, then write"')
    assert "GEMINI_CLI_CUSTOM_HEADERS" not in given
    assert given["OPENAI_CUSTOM_HEADERS"] == 'X-Agent-Scope: sandbox-alice;reason="read, then write"'


def test_every_variable_names_a_file_that_is_there(trust: TrustFiles) -> None:
    given = variables(trust)
    assert {given[name] for name in BUNDLE_VARIABLES} == {str(trust.bundle)}
    assert Path(given["SYSTEM_WGETRC"]).read_text() == f"ca_certificate = {trust.bundle}\n"
    assert Path(given["APT_CONFIG"]).read_text() == f'Acquire::https::CAInfo "{trust.bundle}";\n'
    assert f"trustStore={trust.java} " in given["JAVA_TOOL_OPTIONS"]
