"""What a TLS handshake says of its destination, leaves out, or hides."""

import json

import pytest

from deploy.demo.lab import ALICE
from deploy.demo.lab import PROXY as PROXY_UID
from tests.bypass.agent import Reply
from tests.bypass.attempts import BOTH, PROXY, attempt
from tests.bypass.world import World
from tests.end_to_end.test_tls import ENCRYPTED_CLIENT_HELLO, SERVER_NAME, client_hello, names

# By pyOpenSSL: the standard library leaves the server's name out where it is an address.
NAMED_BY_ADDRESS = """
import json, socket, sys
from OpenSSL import SSL
address, data = sys.argv[1:]
plain = socket.create_connection((address, 443))
session = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), plain)
session.set_tlsext_host_name(address.encode())
session.set_connect_state()
answer, end = b"", "closed"
try:
    session.do_handshake()
    session.sendall(data.encode())
    while b"\\r\\n\\r\\n" not in answer or answer.endswith(b"\\r\\n\\r\\n"):
        answer += session.recv(65536)
    end = "answered"
except (SSL.Error, OSError) as error:
    end = repr(error)
print(json.dumps({"answer": answer.decode("latin-1"), "end": end}))
"""
NAMELESS = attempt(
    30,
    "Leave the server's name out of the TLS handshake, or give an address in its place",
    outcome="denied: `destination_mismatch`, or `destination_invalid` for an address that no `cidr` entry covers",
    barriers=BOTH,
    works_without=True,
)
HIDDEN = attempt(
    32,
    "Hide the server's name in an encrypted ClientHello, behind a name that is permitted",
    outcome="denied: `destination_mismatch` for a name that is inspected by its handshake; else decrypted by the proxy",
    barriers=BOTH,
)


def packets(world: World, *hosts: str) -> int:
    """Count the packets that have reached hosts, which other tests may have contacted too."""
    if world.barriers:
        world.fence()
    return sum(world.lab.packets_to(address) for host in hosts for address in world.lab.addresses(host))


@NAMELESS
@pytest.mark.parametrize("field", ["name", "address"])
def test_no_server_name(world: World, field: str) -> None:
    host, marker = world.name(), world.marker()
    code = "destination_mismatch" if field == "name" else "destination_invalid"
    for address in world.lab.addresses(host):
        shown = f"[{address}]" if ":" in address else address
        data = world.get(host if field == "name" else shown, f"/{marker}")
        (reply,) = world.send([address], 443, data, tls="")
        if PROXY in world.barriers:
            assert reply.code == code
    world.nothing_reached(host, marker=marker)


@NAMELESS
@pytest.mark.parametrize("field", ["name", "address"])
def test_an_address_as_server_name(world: World, field: str) -> None:
    host, marker = world.name(), world.marker()
    address = world.lab.addresses(host)[0]
    data = world.get(host if field == "name" else address, f"/{marker}")
    done = world.lab.python(NAMED_BY_ADDRESS, address, data, uid=ALICE)
    assert done.returncode == 0, done.stderr
    reply = Reply(**json.loads(done.stdout))
    if PROXY in world.barriers:
        assert reply.code == ("destination_mismatch" if field == "name" else "destination_invalid")
    world.nothing_reached(*([host] if world.barriers else []), marker=marker)


@NAMELESS
def test_an_address_that_an_entry_covers(world: World) -> None:
    """The other side of the same rule: what the policy permits by its address needs no name."""
    address, marker = "45.90.200.7", world.marker()
    world.name(address)
    (reply,) = world.send([address], 443, world.get(address, f"/{marker}"), tls="")
    if PROXY in world.barriers:
        assert (reply.status, reply.code) == (200, "")
        assert world.arrivals(marker)
    else:
        world.nothing_reached(address, marker=marker)


@attempt(
    31,
    "Put two server names into one ClientHello, or one that ends early for some readers",
    outcome="the handshake fails; no packet to either",
    barriers=BOTH,
)
@pytest.mark.parametrize(
    "written",
    [
        *("KNOWN OTHER", "OTHER KNOWN", "KNOWN\0OTHER", "KNOWN KNOWN"),
        *("KNOWN/OTHER", "OTHER/KNOWN", "OTHER OTHER/KNOWN", "KNOWN/KNOWN"),
    ],
)
def test_two_server_names(world: World, written: str) -> None:
    """KNOWN is passed on undecrypted where it stands alone: `end_to_end/test_tls.py` sees that it is.

    In `written` a space is between the names of one extension, a slash between two extensions.
    """
    other = world.name()
    first, *more = [
        names(*one.split(" "))
        for one in written.replace("KNOWN", "named.example").replace("OTHER", other).split("/")
    ]
    further = [(SERVER_NAME, one) for one in more]
    data = client_hello("named.example", *further, replaced=first).decode("latin-1")
    before = packets(world, "named.example")
    for dialled in ("named.example", other):
        replies = world.send(dialled, 443, data, patience=2.0)
        if PROXY in world.barriers:
            # No ServerHello (RFC 8446 section 4): content type 22 would begin it.
            assert not any(reply.answer.startswith("\x16") for reply in replies)
            assert "silence" not in {reply.end for reply in replies}
    world.nothing_reached(other)
    assert packets(world, "named.example") == before


@HIDDEN
def test_an_encrypted_hello_behind_a_known_good_name(world: World) -> None:
    other = world.name()
    hello = client_hello("named.example", (ENCRYPTED_CLIENT_HELLO, bytes(100))).decode("latin-1")
    before, said = packets(world, "named.example"), len(world.lab.audit())
    replies = [reply for to in ("named.example", other) for reply in world.send(to, 443, hello, patience=1.0)]
    world.nothing_reached(other)
    assert packets(world, "named.example") == before
    if PROXY in world.barriers:
        on_record = [
            one.get("code") for one in world.lab.audit()[said:] if one.get("host") == "named.example"
        ]
        assert on_record == ["destination_mismatch"] * len(replies)


@HIDDEN
def test_an_encrypted_hello_behind_a_name_that_is_decrypted(world: World) -> None:
    """The proxy answers the handshake itself: what it cannot decrypt leads nowhere."""
    outer = world.name()
    hello = client_hello(outer, (ENCRYPTED_CLIENT_HELLO, bytes(100))).decode("latin-1")
    replies = world.send(outer, 443, hello, patience=1.0)
    world.nothing_reached(outer)
    if PROXY in world.barriers:
        assert {reply.answer[:1] for reply in replies} == {"\x16"}


@attempt(
    33,
    "Speak TLS inside TLS, to another destination than the outer one",
    outcome="the connection is closed; no packet to either destination",
    barriers=BOTH,
)
@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h2",)])
def test_tls_inside_tls(world: World, alpn: tuple[str, ...]) -> None:
    outer, inner = world.raw_name(), world.raw_name()
    hello = client_hello(inner).decode("latin-1")
    replies = world.send(outer, 443, hello, tls=outer, alpn=alpn, patience=2.0)
    world.nothing_reached(outer, inner, marker=inner)
    if PROXY in world.barriers:
        # HTTP/2's own last word (RFC 9113 section 6.8) may come before the end.
        assert {reply.end for reply in replies} == {"closed"}
        assert not any("\x16" in reply.answer for reply in replies)


@attempt(
    35,
    "Reach an upstream whose certificate is for another name",
    outcome="502 `upstream_failed`; the request is not sent",
    barriers=PROXY,
)
@pytest.mark.parametrize("shown", ["other.example", "*.other.example", "45.90.1.1"])
def test_a_certificate_for_another_name(world: World, shown: str) -> None:
    host, marker = world.name(certificate=shown), world.marker()
    replies = world.send(host, 443, world.get(host, f"/{marker}"), tls=host)
    assert {(reply.status, reply.code) for reply in replies} == {(502, "upstream_failed")}
    world.nothing_reached(marker=marker)


@attempt(
    36,
    "Spoof a server name that an option of mitmproxy would pass on uninspected",
    outcome="the proxy does not start with such an option, and says why",
    barriers=PROXY,
    works_without=True,
)
def test_options_that_pass_names_on(world: World) -> None:
    lab = world.lab
    options = {
        "ignore_hosts": r"good\.example",
        "allow_hosts": r"nothing\.example",
        "tcp_hosts": r"good\.example",
        "udp_hosts": r"good\.example",
    }
    if PROXY in world.barriers:
        for name, value in options.items():
            log = f"passes-on-{name}"
            proxy = lab.start(
                lab.proxy_command("--set", f"{name}={value}"), uid=PROXY_UID, caps=("net_admin",), log=log
            )
            assert proxy.wait(30) != 0
            assert f"option {name} may not be set" in lab.output(log)
            assert "Traceback" not in lab.output(log)
        return
    world.stop_proxy()
    for name in ("ignore_hosts", "allow_hosts"):
        evil, marker = world.raw_name(tls=False), world.marker()
        spoofed = client_hello(f"{marker}.good.example").decode("latin-1")
        proxy = world.start_bare_proxy("--set", f"{name}={options[name]}", log=f"passes-on-{name}")
        world.send(evil, 443, spoofed)
        proxy.kill()
        proxy.wait(10)
        world.nothing_reached(evil, marker=marker)
