"""The scope that an agent claims: unreadable, somebody else's, or in the wrong place."""

import pytest

from deploy.demo.lab import ALICE, BOB
from tests.bypass.attempts import BOTH, PROXY, attempt
from tests.bypass.test_requests import head, http2
from tests.bypass.world import SCOPE, SUBORDINATE, World

OWN = SCOPE["X-Agent-Scope"]
UNREADABLE = {
    "missing": ("", "scope_missing"),
    "twice": (f"X-Agent-Scope: {OWN}\r\nX-Agent-Scope: {OWN}\r\n", "scope_malformed"),
    "twice, in two cases": (f"X-Agent-Scope: {OWN}\r\nx-aGENT-sCOPE: sandbox-bob\r\n", "scope_malformed"),
    "a list": ("X-Agent-Scope: sandbox-alice, sandbox-bob\r\n", "scope_malformed"),
    "folded": ("X-Agent-Scope: sandbox-alice;\r\n intent=free\r\n", "request_malformed"),
    "an underscore": (f"X_Agent_Scope: {OWN}\r\n", "scope_missing"),
    "empty": ("X-Agent-Scope:\r\n", "scope_malformed"),
    "not ASCII": ("X-Agent-Scope: sandbox-\xe4lice;intent=free\r\n", "scope_malformed"),
    "letters that look alike": (
        f"X-Agent-Scope: {'sandbox-\u0430lice'.encode().decode('latin-1')}\r\n",
        "scope_malformed",
    ),
    "NUL": ("X-Agent-Scope: sandbox-alice\0;intent=free\r\n", "request_malformed"),
    "upper case": ("X-Agent-Scope: SANDBOX-ALICE;intent=free\r\n", "scope_malformed"),
    "a string": ('X-Agent-Scope: "sandbox-alice";intent=free\r\n', "scope_malformed"),
    "no sandbox": ("X-Agent-Scope: alice;intent=free\r\n", "scope_malformed"),
    "an unknown parameter": ("X-Agent-Scope: sandbox-alice;intent=free;admin\r\n", "scope_malformed"),
    "a parameter of another type": ('X-Agent-Scope: sandbox-alice;intent="free"\r\n', "scope_malformed"),
    "a reserved level": ("X-Agent-Scope: known-good\r\n", "scope_malformed"),
    "too long": (f'X-Agent-Scope: {OWN};reason="{"r" * 4000}"\r\n', "scope_malformed"),
}
IN_TRAILERS = attempt(
    39,
    "Put the scope into trailers, by HTTP/2 or in a chunked body",
    outcome="not read, and not passed on",
    barriers=BOTH,
)
AFRESH = attempt(
    41,
    "Claim another scope in a later request of the same connection",
    outcome="each request is decided by itself: `scope_not_allowed`",
    barriers=BOTH,
    works_without=True,
)


@attempt(
    38,
    "Leave the scope out, or send it twice, folded, not in ASCII, or malformed",
    outcome="denied: `scope_missing`, `scope_malformed` or `request_malformed`",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize(("field", "code"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_scope(world: World, field: str, code: str) -> None:
    host, marker = world.raw_name(), world.marker()
    replies = world.send(host, 80, f"GET /{marker} HTTP/1.1\r\nHost: {host}\r\n{field}\r\n", patience=2.0)
    world.nothing_reached(host, marker=marker)
    if PROXY in world.barriers:
        assert {reply.code for reply in replies} == {code}


@IN_TRAILERS
def test_the_scope_in_http2_trailers_alone(world: World) -> None:
    host, marker = world.name(), world.marker()
    scopeless = [field for field in head(host, f"/{marker}", method="POST") if field[0] != "x-agent-scope"]
    (status,) = http2(
        world, host, {"headers": scopeless, "body": ["x"], "trailers": [("x-agent-scope", OWN)]}
    )
    world.nothing_reached(host, marker=marker)
    if PROXY in world.barriers:
        assert status == 403


@IN_TRAILERS
def test_another_scope_in_http2_trailers(world: World) -> None:
    host, path, marker = world.name(), world.marker(), world.marker()
    trailers = [("x-agent-scope", f'sandbox-bob;reason="{marker}"'), ("x-other", marker)]
    (status,) = http2(
        world,
        host,
        {"headers": head(host, f"/{path}", method="POST"), "body": ["x"], "trailers": trailers},
    )
    world.nothing_reached(marker=marker)
    if PROXY in world.barriers:
        assert status == 200
        assert world.arrivals(path)


@IN_TRAILERS
@pytest.mark.parametrize("claimed", ["", f"X-Agent-Scope: {OWN}\r\n"], ids=["alone", "another"])
def test_the_scope_in_the_trailers_of_a_chunked_body(world: World, claimed: str) -> None:
    host, path, marker = world.raw_name(), world.marker(), world.marker()
    begin = f"POST /{path} HTTP/1.1\r\nHost: {host}\r\n{claimed}Transfer-Encoding: chunked\r\n\r\n"
    trailers = f'X-Agent-Scope: {OWN};reason="{marker}"\r\n'
    replies = world.send(host, 80, f"{begin}1\r\nx\r\n0\r\n{trailers}\r\n", patience=2.0)
    world.nothing_reached(*([] if claimed else [host]), marker=marker)
    if PROXY in world.barriers:
        assert {reply.status for reply in replies} == ({200} if claimed else {403})
        assert bool(world.arrivals(path)) == bool(claimed)


@attempt(
    40,
    "Claim another developer's scope, or one that nobody has",
    outcome="denied: `scope_not_allowed`",
    barriers=BOTH,
    works_without=True,
)
@pytest.mark.parametrize(
    ("who", "claimed"),
    [
        ("alice", "sandbox-bob"),
        ("alice", "sandbox-nobody"),
        ("alice", 'sandbox-bob;agent=alice;reason="sandbox-alice"'),
        ("subordinate", "sandbox-bob"),
        ("bob", "sandbox-alice"),
        ("container", "sandbox-alice"),
    ],
)
@pytest.mark.parametrize("tls", [False, True])
def test_another_developers_scope(world: World, who: str, claimed: str, tls: bool) -> None:
    host, marker = world.raw_name(), world.marker()
    uid = {"alice": ALICE, "subordinate": SUBORDINATE, "bob": BOB}.get(who, 0)
    replies = world.send(
        world.lab.addresses(host)[:1],  # the container has an IPv4 address that the policy names
        443 if tls else 80,
        world.get(host, f"/{marker}", scope=claimed),
        tls=host if tls else None,
        uid=uid,
        ns=world.container if who == "container" else "host",
    )
    if world.barriers:
        world.nothing_reached(host)
    world.nothing_reached(marker=marker)
    if PROXY in world.barriers:
        assert [(reply.status, reply.code) for reply in replies] == [(403, "scope_not_allowed")]


@AFRESH
@pytest.mark.parametrize("tls", [False, True])
def test_another_scope_in_the_next_request(world: World, tls: bool) -> None:
    host, first, second = world.raw_name(), world.marker(), world.marker()
    data = world.get(host, f"/{first}") + world.get(host, f"/{second}", scope="sandbox-bob")
    replies = world.send(host, 443 if tls else 80, data, tls=host if tls else None, answers=2)
    world.nothing_reached(marker=second)
    if PROXY in world.barriers:
        assert world.arrivals(first)
        assert all(reply.status == 200 and "scope_not_allowed" in reply.answer for reply in replies)


@AFRESH
def test_another_scope_on_the_next_stream(world: World) -> None:
    host, markers = world.name(), [world.marker() for _ in range(3)]
    own, foreign = head(host, f"/{markers[0]}"), head(host, f"/{markers[1]}")[:-1]
    heads = (own, [*foreign, ("x-agent-scope", "sandbox-bob")], head(host, f"/{markers[2]}"))
    requests: list[dict[str, object]] = [{"headers": one} for one in heads]
    statuses = http2(world, host, *requests)
    world.nothing_reached(marker=markers[1])
    if PROXY in world.barriers:
        assert statuses == [200, 403, 200]
