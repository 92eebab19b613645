"""What reads bytes of others: each ends in a value or in its own error, and what it accepts is what it says."""

import ipaddress
import re
import socket
from collections.abc import Callable

import pytest
from hypothesis import example, given

from egress_policy.denial import Deny
from egress_policy.destination import InvalidHostError, parse_host
from egress_policy.feed import FeedError, parse_feed
from egress_policy.http_request import RequestHead, read_request
from egress_policy.kernel_changes import Deletions
from egress_policy.nflog import read_datagram
from egress_policy.policy_file import load
from egress_policy.policy_source import PolicyFileError
from egress_policy.scope import ScopeError, parse_scope
from tests.fuzz.conftest import FUZZ, inputs, seeds

type Test = Callable[..., None]


def fuzzed(target: str) -> Callable[[Test], Test]:
    """Try a target's inputs, then mutations of them."""

    def decorate(test: Test) -> Test:
        for seed in seeds(target):
            test = example(data=seed)(test)
        return FUZZ(given(data=inputs(target))(test))

    return decorate


@fuzzed("scope")
def test_scope(data: bytes) -> None:
    try:
        scope = parse_scope([data])
    except ScopeError:
        return
    assert data.strip(b" ").startswith(scope.name.encode())
    assert re.fullmatch(r"sandbox-[a-z0-9][a-z0-9._-]{0,62}", scope.name)
    assert scope.ttl is None or scope.ttl.total_seconds() >= 1
    assert scope.reason is None or len(scope.reason) <= 200
    with pytest.raises(ScopeError):
        parse_scope([data, data])


@fuzzed("host")
def test_host(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        host = parse_host(text)
    except InvalidHostError:
        return
    if not isinstance(host, str):
        assert str(host) in (text, f"{ipaddress.ip_address(text.strip('[]'))}")
        return
    assert parse_host(host) == host == host.lower()
    assert not host.endswith(".")
    assert host.isascii()
    with pytest.raises(OSError):
        # What glibc takes for an address must not pass as a name.
        socket.inet_aton(host)


@fuzzed("policy")
def test_policy(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(data)
    try:
        load(path)
    except PolicyFileError as error:
        lines = (
            data.count(b"\n")
            + data.count(b"\r")
            + 2
            + data.count("\x85".encode())
            + 4 * data.count(b"\xe2\x80")
        )
        assert error.errors
        assert all(1 <= one.line <= lines and one.column >= 1 and one.message for one in error.errors)


@fuzzed("feed")
def test_feed(data: bytes) -> None:
    lines = data.decode("utf-8", "replace").splitlines(keepends=True)
    try:
        feed = parse_feed(lines)
    except FeedError as error:
        assert 1 <= error.line <= len(lines)
        with pytest.raises(FeedError):
            parse_feed([lines[error.line - 1]])
        return
    one_by_one = [parse_feed([line]) for line in lines]
    assert feed.names == frozenset().union(*(one.names for one in one_by_one))
    for name in feed.names:
        assert feed.find_name(f"below.{name}") is not None
    for one in one_by_one:
        assert all(feed.find_address(network.network_address) for network in one.networks())


@fuzzed("netlink")
def test_netlink(data: bytes) -> None:
    list(read_datagram(data, lambda number: f"link{number}"))
    deletions = Deletions()
    deletions.read(data)
    assert all(port < 65536 for _, port in deletions.sockets)


@fuzzed("request")
def test_request_head(data: bytes) -> None:
    head, _, _ = data.partition(b"\r\n\r\n")
    first, *rest = head.split(b"\r\n")
    method, target, version = (*first.split(b" ", 2), b"", b"")[:3]
    fields = tuple(
        (name, value.removeprefix(b" ")) for name, _, value in (one.partition(b":") for one in rest)
    )
    read = read_request(RequestHead(method, target, b"", fields, False, version, 80, False, None), "alice")
    if isinstance(read, Deny):
        return
    names = [name.lower() for name, _ in fields]
    values = b"".join(value for _, value in fields)
    assert re.fullmatch(rb"[!-~]+", method + target + b"".join(names))
    assert not re.search(rb"[\x00-\x1f\x7f]", values)
    assert names.count(b"host") == 1
    assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
    assert read.destination.port == 80
    assert version in (b"HTTP/1.0", b"HTTP/1.1")
    (host,) = (value for name, value in fields if name.lower() == b"host")
    assert str(read.destination.host) == host.decode().lower().removesuffix(":80").removesuffix(".").strip(
        "[]"
    )
