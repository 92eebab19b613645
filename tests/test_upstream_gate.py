"""The last look before the proxy connects: only to where a request of this client was pinned, while its grant lives."""

import warnings
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mitmproxy import connection
from mitmproxy.proxy import server_hooks

from egress_policy.caller import Caller
from egress_policy.decision import Key
from egress_policy.destination import Destination

with warnings.catch_warnings():
    # mitmproxy's filters are written for an older pyparsing.
    warnings.simplefilter("ignore", DeprecationWarning)
    from connections import ClientConnection
    from scope import Scope

LIVE: Key = ("alice", "sandbox-alice", "default", Destination("a.example", 443))
ENDED: Key = ("alice", "sandbox-alice", "default", Destination("b.example", 443))
PINNED, SHARED, LEFT = ("45.90.0.1", 443), ("45.90.0.2", 443), ("45.90.0.3", 443)


def error_of(address: tuple[str, int], *, is_known: bool = True) -> str | None:
    """Have the hook look at a connection that mitmproxy is about to make; return why it must not."""
    client = connection.Client(peername=("10.66.0.2", 50000), sockname=("198.18.0.1", 443))
    opened = ClientConnection(client, Caller("alice", 61001, None), 443)
    opened.cleared = {PINNED: {LIVE}, SHARED: {ENDED, LIVE}, LEFT: {ENDED}}
    scope = Scope()
    scope._connections = cast("Any", SimpleNamespace(get={client: opened if is_known else None}.get))
    scope._started = cast("Any", SimpleNamespace(authorizer=SimpleNamespace(is_live=LIVE.__eq__)))
    data = server_hooks.ServerConnectionHookData(connection.Server(address=address), client)
    scope.server_connect(data)
    return data.server.error


@pytest.mark.parametrize("address", [PINNED, SHARED])
def test_where_a_live_grant_was_pinned_it_connects(address: tuple[str, int]) -> None:
    assert error_of(address) is None


@pytest.mark.parametrize(
    "address",
    [
        pytest.param(LEFT, id="the grant has ended"),
        pytest.param(("45.90.0.9", 443), id="another address"),
        pytest.param(("45.90.0.1", 8443), id="another port"),
    ],
)
def test_it_connects_nowhere_else(address: tuple[str, int]) -> None:
    assert error_of(address) == "no live grant for this address"


def test_nobody_connects_for_a_client_that_is_not_known() -> None:
    assert error_of(PINNED, is_known=False) == "no live grant for this address"
