"""One request through all the steps: nothing goes on that the kernel has not taken and the log does not have."""

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from egress_policy.audit import AuditLog, Record
from egress_policy.audit_reading import read_records
from egress_policy.authorizer import Authorizer
from egress_policy.caller import Caller
from egress_policy.denial import Deny, DenyCode
from egress_policy.destination import Address, Destination, HostPattern
from egress_policy.firewall import MAX_TIMEOUT, Elements, FirewallError
from egress_policy.grant import Resolution, Way
from egress_policy.http_request import AccessRequest
from egress_policy.ledger import LiveGrant
from egress_policy.policy import DomainEntry, IntentRule, Trust
from egress_policy.records import Asked
from egress_policy.resolver import ResolutionFailedError, Resolver
from tests.policies import NAMESERVER, policy

ONE, TWO = ipaddress.ip_address("93.184.216.34"), ipaddress.ip_address("93.184.216.35")


class FakeElements(Elements):
    """The kernel's sets in memory: refuses what the kernel would, and can be told to refuse all."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[tuple[Address, int], tuple[float, str]] = {}
        self.calls = 0
        self.refuse = False
        self.ways: dict[Way, float] = {}
        self.refuse_ways = False

    async def insert(
        self, name: str, sockets: Sequence[tuple[Address, int]], timeout: float, comment: str
    ) -> None:
        assert name == "developer-sandbox"
        assert 0 < timeout <= MAX_TIMEOUT
        assert sockets
        self.calls += 1
        await asyncio.sleep(0)
        if self.refuse:
            raise FirewallError("told to refuse")
        self.held.update(dict.fromkeys(sockets, (timeout, comment)))

    async def lead(
        self,
        way: Way,
        left: float | None,
        closed_left: float | None,
        comment: str,
        replaces: Address | None = None,
    ) -> None:
        assert left is None or 0 < left <= MAX_TIMEOUT
        await asyncio.sleep(0)
        if self.refuse_ways:
            raise FirewallError("told to refuse")
        if left is None:
            self.ways.pop(way, None)
        else:
            self.ways[way] = left

    async def delete(self, name: str, sockets: Sequence[tuple[Address, int]]) -> None:
        assert name == "developer-sandbox"
        for one in sockets:
            self.held.pop(one, None)


class FakeResolver(Resolver):
    """Answers what it is told, and counts."""

    def __init__(self) -> None:
        super().__init__([NAMESERVER], 1.0)
        self.answer = Resolution((ONE,), ttl=60)
        self.calls = 0

    async def resolve(self, host: str) -> Resolution:
        self.calls += 1
        await asyncio.sleep(0)
        if host == "silent.example":
            raise ResolutionFailedError("nobody answers")
        return self.answer


class World:
    """An authorizer with everything around it that a test looks at. The clock is set by hand."""

    def __init__(self, path: Path, max_destinations: int = 3) -> None:
        self.now = 1000.0
        self.path = path
        self.elements, self.resolver = FakeElements(), FakeResolver()
        self.audit = AuditLog(str(path))
        self.ended: list[LiveGrant] = []
        self.authorizer = Authorizer(
            policy(max_destinations),
            self.resolver,
            self.elements,
            self.audit,
            self.ended.append,
            lambda: self.now,
        )

    async def ask(
        self, host: str = "a.example", field: bytes = b"sandbox-alice", agent: str = "alice"
    ) -> str:
        """Ask for a page; return the code of the refusal, or `permit`."""
        request = AccessRequest(agent, Destination(host, 443), (field,) if field else (), "GET", "/", 0)
        verdict = await self.authorizer.authorize(Asked(Caller(agent, uid=61001), request))
        assert (verdict.live is None) == (verdict.record.outcome != "permit")
        return verdict.record.code or "permit"

    def records(self, event: str) -> list[Record]:
        return [record for record in read_records(str(self.path)) if record.event == event]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "audit.jsonl")


async def test_a_permitted_request_is_granted_in_the_kernel_and_on_record(world: World) -> None:
    assert await world.ask() == "permit"
    (grant,), (decision,) = world.records("grant"), world.records("decision")
    assert world.elements.held == {(ONE, 443): (3600.0, f"{grant.id} sandbox-alice a.example")}
    assert decision.outcome == "permit"
    assert decision.addresses == grant.addresses == (str(ONE),)


async def test_the_grant_is_on_record_before_it_is_in_the_kernel(world: World) -> None:
    world.elements.refuse = True
    assert await world.ask() == "grant_failed"
    assert [record.event for record in read_records(str(world.path))] == ["grant", "revoke", "decision"]
    assert len(world.authorizer.ledger) == 0


async def test_a_second_request_asks_neither_dns_nor_the_kernel(world: World) -> None:
    await world.ask()
    world.now += 59
    assert await world.ask() == "permit"
    assert (world.resolver.calls, world.elements.calls) == (1, 1)
    assert len(world.records("decision")) == 2


async def test_after_the_answer_s_ttl_dns_is_asked_again_and_the_end_stays(world: World) -> None:
    await world.ask()
    world.now += 60
    assert await world.ask() == "permit"
    assert (world.resolver.calls, world.elements.calls) == (2, 1)
    (live,) = world.authorizer.ledger
    assert live.deadline == 1000.0 + 3600


async def test_a_name_that_moved_opens_its_new_address_until_the_old_end(world: World) -> None:
    await world.ask()
    world.now += 600
    world.resolver.answer = Resolution((TWO,), ttl=60)
    assert await world.ask() == "permit"
    assert world.elements.held[TWO, 443][0] == 3000.0
    (live,) = world.authorizer.ledger
    assert live.grant.addresses == (TWO, ONE)
    assert live.pin == TWO
    assert {record.id for record in world.records("grant")} == {live.grant.id}


async def test_a_name_that_moves_without_end_opens_no_more_than_it_may_and_all_of_it_is_closed(
    world: World,
) -> None:
    """Whoever runs the name's servers could fill the kernel's memory otherwise; and a revoked grant leaves nothing."""
    for number in range(40):
        first = int(ONE) + 16 * number
        addresses = tuple(ipaddress.ip_address(first + one) for one in range(16))
        world.resolver.answer = Resolution(addresses, ttl=0)
        assert await world.ask() == "permit"
        assert {(one, 443) for one in addresses} <= world.elements.held.keys()
        assert len(world.elements.held) <= 256
        if number == 9:
            # What a transfer may still use that began a while ago.
            assert (ONE, 443) in world.elements.held
    assert (ONE, 443) not in world.elements.held
    await world.authorizer.revoke(lambda _grant: True, "revoked", "alice")
    assert not world.elements.held


async def test_an_agent_cannot_have_known_good_names_without_end(world: World) -> None:
    """Below a wildcard there is a name for every request; the one that was idle longest makes room, and is no worse off."""
    trust = Trust((DomainEntry(HostPattern("good.example", below=True), "known-good"),))
    world.authorizer.policy = replace(world.authorizer.policy, trust=trust)
    for number in range(1000):
        assert await world.ask(f"x{number}.good.example", b"") == "permit"
    world.now += 100
    assert await world.ask("x0.good.example", b"") == "permit"
    for number in range(1000, 1003):
        assert await world.ask(f"x{number}.good.example", b"") == "permit"
    assert len(world.authorizer.ledger) == 1000
    revoked = world.records("revoke")
    assert {record.host for record in revoked} == {f"x{number}.good.example" for number in (1, 2, 3)}
    assert {record.detail for record in revoked} == {
        "it made room: agent alice has 1000 known-good names open"
    }
    assert await world.ask("x1.good.example", b"") == "permit"
    assert await world.ask("x0.good.example", b"", agent="bob") == "permit"
    assert len(world.authorizer.ledger) == 1001


async def test_a_name_that_moved_to_a_private_address_is_denied(world: World) -> None:
    """Rebinding: the second look-up is checked like the first."""
    await world.ask()
    world.now += 60
    world.resolver.answer = Resolution((ipaddress.ip_address("10.0.0.1"),), ttl=60)
    assert await world.ask() == "address_denied"


async def test_a_ttl_of_zero_serves_one_request(world: World) -> None:
    world.resolver.answer = Resolution((ONE,), ttl=0)
    assert await world.ask() == "permit"
    assert await world.ask() == "permit"
    assert world.resolver.calls == 2


async def test_a_request_cannot_lengthen_a_grant(world: World) -> None:
    await world.ask(field=b"sandbox-alice;ttl=100")
    world.now += 50
    await world.ask(field=b"sandbox-alice;ttl=3600")
    (live,) = world.authorizer.ledger
    assert live.deadline == 1100.0


async def test_a_grant_ends_on_record_and_whoever_cuts_connections_is_told(world: World) -> None:
    await world.ask(field=b"sandbox-alice;ttl=100")
    world.now += 99.9
    world.authorizer.end_due()
    assert world.ended == []
    world.now += 0.1
    world.authorizer.end_due()
    assert [live.grant.id for live in world.ended] == [record.id for record in world.records("expire")]
    assert len(world.ended) == 1


async def test_after_its_end_a_request_is_decided_afresh(world: World) -> None:
    await world.ask(field=b"sandbox-alice;ttl=100")
    world.now += 100
    await world.ask(field=b"sandbox-alice;ttl=100")
    first, second = world.records("grant")
    assert first.id != second.id
    assert [record.id for record in world.records("expire")] == [first.id]


async def test_grants_are_one_agent_s_and_one_intent_s(world: World) -> None:
    await world.ask()
    await world.ask(field=b"sandbox-alice;intent=develop")
    await world.ask(field=b"", agent="bob")
    assert len({record.id for record in world.records("grant")}) == 3


async def test_a_shared_element_lives_until_the_last_of_its_grants_ends(world: World) -> None:
    await world.ask(field=b"sandbox-alice;intent=develop")
    await world.ask(field=b"", agent="bob")
    timeout, comment = world.elements.held[ONE, 443]
    assert timeout == 4 * 3600
    assert " sandbox-alice " in comment


async def test_requests_that_come_together_share_one_look_up_and_one_grant(world: World) -> None:
    assert await asyncio.gather(*(world.ask() for _ in range(20))) == ["permit"] * 20
    assert (world.resolver.calls, world.elements.calls, len(world.records("grant"))) == (1, 1, 1)


async def test_requests_that_come_together_cannot_outgrow_the_scope(tmp_path: Path) -> None:
    """Each would have found room before the others were granted."""
    world = World(tmp_path / "audit.jsonl", max_destinations=2)
    outcomes = await asyncio.gather(*(world.ask(f"{number}.example") for number in range(5)))
    assert sorted(outcomes) == ["permit"] * 2 + ["quota_exceeded"] * 3


async def test_what_cannot_be_resolved_fails_without_a_grant(world: World) -> None:
    assert await world.ask("silent.example") == "resolution_failed"
    assert world.records("decision")[0].outcome == "fail"
    assert (world.elements.calls, world.records("grant")) == (0, [])


async def test_a_denied_request_is_never_looked_up(world: World) -> None:
    for host, field in (
        ("x.bad.example", b"sandbox-alice"),
        ("a.example", b"sandbox-bob"),
        ("a.example", b""),
    ):
        assert await world.ask(host, field) != "permit"
    assert (world.resolver.calls, world.elements.calls) == (0, 0)


async def test_a_malformed_request_is_on_record(world: World) -> None:
    deny = Deny(DenyCode.REQUEST_MALFORMED, "two hosts")
    verdict = await world.authorizer.authorize(
        Asked(Caller("alice"), deny, method="GET", host="a.example", port=80)
    )
    assert verdict.live is None
    (record,) = world.records("decision")
    assert (record.outcome, record.code, record.host) == ("deny", "request_malformed", "a.example")


@pytest.mark.parametrize("known", [False, True], ids=["new destination", "granted destination"])
async def test_what_cannot_be_put_on_record_is_not_permitted(tmp_path: Path, known: bool) -> None:
    world = World(tmp_path / "audit.jsonl")
    if known:
        await world.ask()
    world.path.unlink()
    world.path.mkdir()
    assert await world.ask() == "audit_failed"
    assert len(world.authorizer.ledger) == known


async def test_a_grant_taken_over_keeps_its_id_and_is_looked_up_again(world: World) -> None:
    await world.ask()
    (live,) = world.authorizer.ledger
    successor = World(world.path)
    successor.authorizer.take_over(live.grant, 60.0)
    assert await successor.ask() == "permit"
    assert successor.resolver.calls == 1
    assert len(world.records("grant")) == 1
    successor.now += 60
    successor.authorizer.end_due()
    assert [record.id for record in world.records("expire")] == [live.grant.id]


# Further ports, which a level of GIT has.

GIT = replace(
    policy(),
    trust=Trust((DomainEntry(HostPattern("git.example"), "internal", (443, 22)),)),
    intents={"default": {"internal": IntentRule()}, "reading": {"internal": IntentRule(frozenset({"GET"}))}},
)


def callers(world: World) -> set[object]:
    return {way.caller for way in world.elements.ways}


async def test_a_grant_s_further_ports_are_opened_to_each_uid_that_asks(world: World) -> None:
    world.authorizer.policy = GIT
    assert await world.ask("git.example") == "permit"
    assert callers(world) == {61001}
    assert world.records("grant")[0].ports == (22,)
    request = AccessRequest("alice", Destination("git.example", 443), (b"sandbox-alice",), "GET", "/", 0)
    await world.authorizer.authorize(Asked(Caller("alice", uid=61009), request))
    assert callers(world) == {61001, 61009}
    assert len(world.records("grant")) == 1


async def test_an_intent_with_limits_opens_none(world: World) -> None:
    world.authorizer.policy = GIT
    assert await world.ask("git.example", b"sandbox-alice;intent=reading") == "permit"
    assert callers(world) == set()
    assert world.records("grant")[0].ports == ()


async def test_a_request_goes_on_where_its_further_ports_cannot_be_opened(world: World) -> None:
    world.authorizer.policy, world.elements.refuse_ways = GIT, True
    assert await world.ask("git.example") == "permit"
    world.elements.refuse_ways = False
    assert await world.ask("git.example") == "permit"
    assert callers(world) == {61001}


async def test_a_further_port_is_not_opened_by_what_is_not_on_record(world: World) -> None:
    """A second uid's request under a grant that is there already."""
    world.authorizer.policy, world.elements.refuse_ways = GIT, True
    await world.ask("git.example")
    world.elements.refuse_ways = False
    world.path.unlink()
    world.path.mkdir()
    assert await world.ask("git.example") == "audit_failed"
    assert callers(world) == set()


async def test_what_is_shortened_or_revoked_is_so_on_its_further_ports(world: World) -> None:
    world.authorizer.policy = GIT
    await world.ask("git.example")
    (live,) = world.authorizer.ledger
    await world.authorizer.shorten(live.grant.id, 60, "root")
    assert set(world.elements.ways.values()) == {60.0}
    await world.authorizer.revoke(lambda _grant: True, "revoked", "root")
    assert world.elements.ways == {}


async def test_a_grant_taken_over_opens_its_further_ports_anew(world: World) -> None:
    world.authorizer.policy = GIT
    await world.ask("git.example")
    (live,) = world.authorizer.ledger
    successor = World(world.path)
    successor.authorizer.policy = GIT
    successor.authorizer.take_over(live.grant, 60.0)
    assert callers(successor) == set()
    assert await successor.ask("git.example") == "permit"
    assert callers(successor) == {61001}
