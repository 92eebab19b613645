"""An agent's DNS query from its bytes to the bytes of our answer: read by another library, and fuzzed."""

import asyncio
import ipaddress
import struct
from pathlib import Path

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mitmproxy import connection

from dns_messages import pack, unpack
from dns_replies import NameServer
from egress_policy.audit import AuditLog, Record
from egress_policy.audit_reading import read_records
from egress_policy.authorizer import Authorizer
from egress_policy.caller import Callers
from egress_policy.denial import Deny, DenyCode
from egress_policy.firewall import Elements, FirewallError
from egress_policy.grant import Resolution
from egress_policy.known_good import KnownGoodNames
from egress_policy.name_server import SYNTHETIC_IPV4, SYNTHETIC_IPV6
from egress_policy.resolver import ResolutionFailedError, Resolver
from tests.policies import NAMESERVER, policy

ONE, TWO = ipaddress.ip_address("93.184.216.34"), ipaddress.ip_address("2606:2800::1")
CONTAINER = "203.0.113.9"


class FakeKnownGood(KnownGoodNames):
    """Leads where it is told, and notes what was asked."""

    def __init__(self, resolver: Resolver) -> None:
        super().__init__(policy(), resolver, Elements())
        self.asked: list[str] = []
        self.answer: Resolution | Deny | Exception = Resolution((ONE, TWO), ttl=30)

    async def resolve(self, name: str) -> Resolution | Deny:
        self.asked.append(name)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class World:
    """The name server with what is around it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        resolver = Resolver([NAMESERVER], 1.0)
        self.known_good = FakeKnownGood(resolver)
        authorizer = Authorizer(policy(), resolver, Elements(), AuditLog(str(path)), lambda _: None)
        callers = Callers(sources=[(ipaddress.ip_network(f"{CONTAINER}/32"), "box")])
        self.server = NameServer(authorizer, lambda: callers, lambda: self.known_good)

    def send(self, wire: bytes, *, tcp: bool = False) -> bytes:
        """Have a query answered."""
        client = connection.Client(
            peername=(CONTAINER, 40000),
            sockname=("203.0.113.1", 8053),
            transport_protocol="tcp" if tcp else "udp",
        )
        return pack(asyncio.run(self.server.answer(unpack(wire), client)))

    def ask(
        self, name: str, kind: str = "A", *, edns: int | None = 0, payload: int = 1232, tcp: bool = False
    ) -> dns.message.Message:
        """Ask for a name; the answer must belong to the query."""
        query = dns.message.make_query(name, kind)
        query.use_edns(edns, payload=payload)
        answer = dns.message.from_wire(self.send(query.to_wire(), tcp=tcp))
        assert query.is_response(answer)
        return answer

    def records(self) -> list[Record]:
        return list(read_records(str(self.path)))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "audit.jsonl")


def read(answer: bytes) -> dns.message.Message:
    """Read an answer as one to a query, whatever it is to: an UPDATE's sections are others."""
    return dns.message.from_wire(answer[:2] + bytes([answer[2] & 0x87]) + answer[3:])


def addresses(answer: dns.message.Message) -> list[str]:
    return [record.to_text() for rrset in answer.answer for record in rrset]


def reason(answer: dns.message.Message) -> tuple[int, str]:
    """The extended error's code and text."""
    (option,) = answer.options
    assert isinstance(option, dns.edns.EDEOption)
    return int(option.code), option.text or ""


def test_a_name_that_nobody_approved_gets_an_address_of_ours_without_a_look_up(world: World) -> None:
    (ipv4,), (ipv6,) = (addresses(world.ask("x.example", kind)) for kind in ("A", "AAAA"))
    assert ipaddress.ip_address(ipv4) in SYNTHETIC_IPV4
    assert ipaddress.ip_address(ipv6) in SYNTHETIC_IPV6
    assert world.known_good.asked == []
    assert world.server.name_of(ipaddress.ip_address(ipv4)) == "x.example"
    assert world.server.name_of(ipaddress.ip_address(ipv6)) == "x.example"


def test_a_known_good_name_is_answered_truly(world: World) -> None:
    answer = world.ask("Direct.Example")
    assert (addresses(answer), answer.answer[0].ttl) == ([str(ONE)], 30)
    assert addresses(world.ask("direct.example", "AAAA")) == [str(TWO)]
    assert world.known_good.asked == ["direct.example"] * 2
    assert world.server.name_of(ONE) == "direct.example"


@pytest.mark.parametrize(
    "kind",
    ["HTTPS", "SVCB", "TXT", "NULL", "ANY", "PTR", "SRV", "MX", "NS", "SOA", "CNAME", "AXFR", "DS", "TYPE65280"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["x.example", "direct.example", "_dns.named.example"])
def test_what_leaks_or_misleads_is_an_empty_answer_without_asking(world: World, name: str, kind: str) -> None:
    answer = world.ask(name, kind)
    assert answer.rcode() == dns.rcode.NOERROR
    assert not answer.answer
    assert world.known_good.asked == []


@pytest.mark.parametrize("kind", ["A", "TXT", "ANY"])
def test_a_known_bad_name_is_refused_with_its_entry(world: World, kind: str) -> None:
    answer = world.ask("x.bad.example", kind)
    assert answer.rcode() == dns.rcode.REFUSED
    assert reason(answer) == (15, "the name is known-bad: *.bad.example")


def test_a_name_that_is_none_is_refused_as_such(world: World) -> None:
    answer = world.ask(r"a\032b.example")
    assert answer.rcode() == dns.rcode.REFUSED
    assert reason(answer)[0] == 18


def test_a_dot_within_a_label_makes_no_other_name(world: World) -> None:
    """`direct.example` as one label is not the known-good name."""
    assert world.ask(r"direct\.example").rcode() == dns.rcode.REFUSED
    assert world.known_good.asked == []


@pytest.mark.parametrize("name", ["xn--bcher-kva.example", "xn--strae-oqa.example", "XN--BCHER-KVA.Example"])
def test_internationalised_names_are_names_like_others(world: World, name: str) -> None:
    """Also those that IDNA 2003, mitmproxy's, takes for invalid."""
    (address,) = addresses(world.ask(name))
    assert world.server.name_of(ipaddress.ip_address(address)) == name.lower()


def test_the_senders_case_is_kept(world: World) -> None:
    """Some clients put chance into it against forgers, and want it back."""
    for name in ("DiReCt.ExAmPlE", "UnKnOwN.eXaMpLe", "BaD.eXaMpLe"):
        assert world.ask(name).question[0].name.to_text(omit_final_dot=True) == name


def test_without_edns_there_is_none_in_the_answer(world: World) -> None:
    answer = world.ask("bad.example", edns=None)
    assert answer.rcode() == dns.rcode.REFUSED
    assert answer.edns == -1


def test_the_reason_of_the_longest_name_still_fits(world: World) -> None:
    label = "a" * 61
    query = dns.message.make_query(f"{label}.{label}.{label}.{label[:55]}.bad.example", "A", use_edns=0)
    wire = world.send(query.to_wire())
    assert len(wire) <= 512
    assert not dns.message.from_wire(wire).flags & dns.flags.TC


@pytest.mark.parametrize(
    ("failure", "code"),
    [(ResolutionFailedError("nobody answers"), 22), (FirewallError("the kernel says no"), 0)],
    ids=["no name server", "no kernel"],
)
def test_a_known_good_name_that_cannot_be_had_now_fails(world: World, failure: Exception, code: int) -> None:
    world.known_good.answer = failure
    answer = world.ask("direct.example")
    assert answer.rcode() == dns.rcode.SERVFAIL
    assert reason(answer) == (code, str(failure))


def test_a_known_good_name_without_an_address_has_none(world: World) -> None:
    world.known_good.answer = ResolutionFailedError("NXDOMAIN", answered=True)
    answer = world.ask("direct.example")
    assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])


def test_a_known_good_name_whose_addresses_are_denied_is_refused(world: World) -> None:
    world.known_good.answer = Deny(DenyCode.ADDRESS_DENIED, "it leads astray")
    answer = world.ask("direct.example")
    assert answer.rcode() == dns.rcode.REFUSED
    assert reason(answer) == (15, "it leads astray")


@pytest.mark.parametrize(
    ("edns", "payload", "tcp", "fits"),
    [
        pytest.param(None, 0, False, False, id="512 bytes without EDNS"),
        pytest.param(0, 100, False, False, id="less than 512 counts as 512"),
        pytest.param(0, 1232, False, True, id="as EDNS says"),
        pytest.param(0, 600, False, False, id="EDNS, but little"),
        pytest.param(None, 0, True, True, id="TCP"),
    ],
)
def test_an_answer_fits_its_datagram_or_says_that_it_does_not(
    world: World, edns: int | None, payload: int, tcp: bool, fits: bool
) -> None:
    many = tuple(ipaddress.ip_address(f"2606:2800::{number}") for number in range(1, 25))
    world.known_good.answer = Resolution(many, ttl=30)
    answer = world.ask("direct.example", "AAAA", edns=edns, payload=payload, tcp=tcp)
    assert bool(answer.flags & dns.flags.TC) == (not fits)
    assert len(addresses(answer)) == (24 if fits else 0)


def test_no_datagram_is_larger_than_a_link_takes(world: World) -> None:
    many = tuple(ipaddress.ip_address(f"2606:2800::{number}") for number in range(1, 60))
    world.known_good.answer = Resolution(many, ttl=30)
    assert world.ask("direct.example", "AAAA", payload=65000).flags & dns.flags.TC
    assert len(addresses(world.ask("direct.example", "AAAA", payload=65000, tcp=True))) == 59


@pytest.mark.parametrize(("edns", "payload"), [(None, 0), (0, 100)], ids=["no EDNS", "EDNS with 100 bytes"])
def test_512_bytes_are_always_taken(world: World, edns: int | None, payload: int) -> None:
    """Eighteen addresses of one name: that they fit needs compression."""
    many = tuple(ipaddress.ip_address(f"93.184.216.{number}") for number in range(1, 19))
    world.known_good.answer = Resolution(many, ttl=30)
    assert len(addresses(world.ask("direct.example", edns=edns, payload=payload))) == 18


def test_a_long_reason_is_cut(world: World) -> None:
    world.known_good.answer = Deny(DenyCode.ADDRESS_DENIED, "why " * 200)
    query = dns.message.make_query("direct.example", "A", use_edns=0)
    answer = world.send(query.to_wire())
    assert len(answer) <= 512
    assert reason(dns.message.from_wire(answer))[1].startswith("why why")


def test_who_asks_for_dnssec_finds_his_wish_in_the_answer(world: World) -> None:
    """RFC 3225."""
    for wants in (True, False):
        query = dns.message.make_query("x.example", "A", use_edns=0, want_dnssec=wants)
        answer = dns.message.from_wire(world.send(query.to_wire()))
        assert bool(answer.ednsflags & dns.flags.DO) == wants


def test_other_records_in_a_query_are_passed_over(world: World) -> None:
    other = b"\x01a\xc0\x0c" + struct.pack("!HHIH", 16, 1, 0, 2) + b"\x01a"
    answer = read(world.send(wire(rest=other + OPT, opt=2)))
    assert (answer.rcode(), len(addresses(answer)), answer.edns) == (dns.rcode.NOERROR, 1, 0)


def wire(
    name: str = "x.example", *, flags: int = 0x0100, questions: int = 1, rest: bytes = b"", opt: int = 0
) -> bytes:
    """A query by hand."""
    asked = dns.message.make_query(name, "A").to_wire()[12:]
    return struct.pack("!HHHHHH", 7, flags, questions, 0, 0, opt) + asked * questions + rest


OPT = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        pytest.param(wire(flags=5 << 11), dns.rcode.NOTIMP, id="UPDATE"),
        pytest.param(wire(flags=4 << 11), dns.rcode.NOTIMP, id="NOTIFY"),
        pytest.param(wire(questions=0), dns.rcode.FORMERR, id="no question"),
        pytest.param(wire(questions=2), dns.rcode.FORMERR, id="two questions"),
        pytest.param(wire(rest=OPT * 2, opt=2), dns.rcode.FORMERR, id="two OPT records"),
        pytest.param(wire(rest=b"more"), dns.rcode.FORMERR, id="more than the message"),
        pytest.param(wire()[:-3], dns.rcode.FORMERR, id="cut short"),
        pytest.param(wire()[:12] + b"\xc0\x0c\0\x01\0\x01", dns.rcode.FORMERR, id="a name that points at itself"),
        pytest.param(
            wire()[:12] + b"\x40" + b"a" * 64 + b"\0\0\x01\0\x01", dns.rcode.FORMERR, id="a label too long"
        ),
        pytest.param(
            wire()[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\x01\0\x01", dns.rcode.FORMERR, id="a name too long"
        ),
        pytest.param(wire(rest=OPT[:5] + b"\0\x01\0\0\0\0", opt=1), dns.rcode.BADVERS, id="EDNS version 1"),
    ],
)  # fmt: skip
def test_what_is_no_query_of_ours_gets_its_code(world: World, query: bytes, code: dns.rcode.Rcode) -> None:
    answer = read(world.send(query))
    assert answer.id == 7
    assert answer.rcode() == code
    assert not answer.answer
    assert world.known_good.asked == []


def test_another_class_is_refused(world: World) -> None:
    query = dns.message.make_query("version.bind", "TXT", "CH")
    assert dns.message.from_wire(world.send(query.to_wire())).rcode() == dns.rcode.REFUSED


def test_a_denied_name_is_on_record_with_its_agent_once_a_second(world: World) -> None:
    for _ in range(5):
        world.ask("bad.example")
    world.ask("x.bad.example")
    one, other = world.records()
    assert (one.event, one.outcome, one.code) == ("decision", "deny", "destination_denied")
    assert (one.host, other.host) == ("bad.example", "x.bad.example")
    assert (one.agent, one.source, one.method) == ("box", CONTAINER, None)
    assert one.detail == "the name is known-bad: bad.example"


def test_a_flood_of_denied_names_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dns_replies._MAX_RECORDED", 3)
    for number in range(6):
        world.ask(f"{number}.bad.example")
    assert len(world.records()) == 3


def test_look_ups_that_hang_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for what nobody answers takes no memory without end, and the rest is answered on."""
    monkeypatch.setattr("dns_replies._MAX_LOOK_UPS", 3)
    client = connection.Client(peername=(CONTAINER, 40000), sockname=("203.0.113.1", 8053))

    async def hang(_name: str) -> Resolution:
        await asyncio.sleep(3600)
        raise AssertionError

    async def run() -> list[dns.rcode.Rcode]:
        async def ask(name: str) -> dns.rcode.Rcode:
            answer = await world.server.answer(unpack(dns.message.make_query(name, "A").to_wire()), client)
            return read(pack(answer)).rcode()

        hanging = [asyncio.create_task(ask("direct.example")) for _ in range(3)]
        await asyncio.sleep(0)
        answered = [await ask("direct.example"), await ask("x.example")]
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging)
        monkeypatch.setattr(world.known_good, "resolve", at_once)
        return [*answered, await ask("direct.example")]

    at_once = world.known_good.resolve
    monkeypatch.setattr(world.known_good, "resolve", hang)
    assert asyncio.run(run()) == [dns.rcode.SERVFAIL, dns.rcode.NOERROR, dns.rcode.NOERROR]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("fuzz") / "audit.jsonl")


QUERY = dns.message.make_query("direct.example", "A", use_edns=0).to_wire()
MANY = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@MANY
@given(st.binary(min_size=12, max_size=300))
@example(QUERY)
@example(wire(questions=65535)[:12] + b"\0")
def test_any_bytes_get_an_answer_of_their_own(fuzzed: World, data: bytes) -> None:
    """Nothing raises; the answer has the query's id and is an answer; only known-good names are looked up."""
    for tcp in (False, True):
        answer = fuzzed.send(data, tcp=tcp)
        assert answer[:2] == data[:2]
        assert answer[2] & 0x80
        assert tcp or len(answer) <= 1232
        read(answer)
    assert set(fuzzed.known_good.asked) <= {"direct.example", "named.example"}


@MANY
@given(st.integers(0, len(QUERY) - 1), st.binary(min_size=1, max_size=6), st.integers(0, 6))
def test_a_damaged_query_gets_an_answer_of_its_own(fuzzed: World, at: int, new: bytes, cut: int) -> None:
    test_any_bytes_get_an_answer_of_their_own.hypothesis.inner_test(  # type: ignore[attr-defined]
        fuzzed, (QUERY[:at] + new + QUERY[at + cut :]).ljust(12, b"\0")
    )


@MANY
@given(
    st.lists(st.binary(min_size=1, max_size=63), max_size=4),
    st.sampled_from([1, 28, 16, 65, 255]),
    st.sampled_from([b"", b"\x06direct\x07example", b"\x03bad\x07example"]),
)
def test_any_labels_come_back_as_they_were(
    fuzzed: World, labels: list[bytes], kind: int, tail: bytes
) -> None:
    name = b"".join(bytes([len(label)]) + label for label in labels) + tail
    question = name + b"\0" + struct.pack("!HH", kind, 1)
    answer = fuzzed.send(struct.pack("!HHHHHH", 9, 0, 1, 0, 0, 0) + question)
    if len(name) < 255:
        assert answer[12 : 12 + len(question)] == question
    assert set(fuzzed.known_good.asked) <= {"direct.example", "named.example"}


@given(st.binary(max_size=11))
def test_less_than_a_header_is_no_message(data: bytes) -> None:
    with pytest.raises(struct.error):
        unpack(data)
