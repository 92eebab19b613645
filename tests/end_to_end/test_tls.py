"""The server's name in the handshake: what is passed on undecrypted by it, and what it must not hide."""

import json
import ssl

import pytest

from deploy.demo.lab import ALICE, Lab

SERVER_NAME = 0
ENCRYPTED_CLIENT_HELLO = 0xFE0D
# Sends bytes and prints how many came back until the end, and what the first were.
SEND = """
import json, socket, sys
sock = socket.create_connection((sys.argv[1], 443), timeout=3)
answer = b""
try:
    sock.sendall(bytes.fromhex(sys.argv[2]))
    sock.settimeout(1)
    while chunk := sock.recv(65536):
        answer += chunk
except OSError:
    pass
print(json.dumps([len(answer), answer[:6].hex()]))
"""


def client_hello(name: str, *more: tuple[int, bytes], replaced: bytes | None = None) -> bytes:
    """A ClientHello as OpenSSL makes it, with more extensions, or with another server name extension."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    record = outgoing.read()
    # RFC 8446 sections 4.1.2 and 5.1: 5 bytes of record, 4 of handshake, version and random; then three vectors.
    end = 5 + 4 + 2 + 32
    for size in (1, 2, 1):
        end += size + int.from_bytes(record[end : end + size])
    rest, extensions = record[end + 2 :], b""
    while rest:
        kind, length = int.from_bytes(rest[:2]), int.from_bytes(rest[2:4])
        body, rest = rest[4 : 4 + length], rest[4 + length :]
        if kind == SERVER_NAME and replaced is not None:
            body = replaced
        extensions += kind.to_bytes(2) + len(body).to_bytes(2) + body
    for kind, body in more:
        extensions += kind.to_bytes(2) + len(body).to_bytes(2) + body
    message = record[9:end] + len(extensions).to_bytes(2) + extensions
    return b"\x16\x03\x01" + (len(message) + 4).to_bytes(2) + b"\x01" + len(message).to_bytes(3) + message


def names(*listed: str) -> bytes:
    """The body of a server name extension (RFC 6066 section 3)."""
    entries = b"".join(b"\0" + len(name).to_bytes(2) + name.encode() for name in listed)
    return len(entries).to_bytes(2) + entries


def send(lab: Lab, address: str, data: bytes) -> tuple[int, bytes]:
    length, start = json.loads(lab.python(SEND, address, data.hex(), uid=ALICE).stdout)
    return length, bytes.fromhex(start)


def packets(lab: Lab, *hosts: str) -> int:
    return sum(lab.packets_to(address) for host in hosts for address in lab.addresses(host))


def test_a_crafted_hello_without_a_twist_reaches_the_known_good_origin(lab: Lab) -> None:
    """The control for the attempts in tests/bypass/test_tls.py: the origin itself answers with a handshake."""
    before = packets(lab, "named.example")
    length, start = send(lab, lab.addresses("named.example")[0], client_hello("named.example"))
    assert length > 100
    assert start.startswith(b"\x16\x03")
    assert packets(lab, "named.example") > before


def test_an_undecrypted_connection_goes_to_the_name_s_own_address(lab: Lab) -> None:
    """Wherever the agent dialled: its name is what was checked."""
    evil = lab.addresses("x.bad.example")[0]
    before = lab.packets_to(evil)
    answer = lab.curl("https://named.example/", "--resolve", f"named.example:443:{evil}", uid=ALICE)
    assert (answer.status, answer.json()["server_name"]) == (200, "named.example")
    assert lab.packets_to(evil) == before


def test_a_known_good_name_without_tls_is_checked_by_its_host_field(lab: Lab) -> None:
    assert lab.curl("http://named.example/", uid=ALICE).status == 200
    forged = lab.curl("http://named.example/", "-H", "Host: a.example", uid=ALICE)
    assert forged.json()["code"] == "scope_missing"


def test_a_known_good_name_that_leads_to_a_private_or_known_bad_address_is_denied(lab: Lab) -> None:
    own = lab.addresses("full.example")
    try:
        for address in ("10.66.0.53", "66.1.2.3"):
            lab.add_name("full.example", address, ttl=0)
            assert lab.curl("http://full.example/", uid=ALICE).exit == 6, "DNS refuses it too"
            answer = lab.curl("http://full.example/", "--resolve", f"full.example:80:{own[0]}", uid=ALICE)
            assert answer.json()["code"] == "address_denied"
    finally:
        lab.add_name("full.example", *own)
