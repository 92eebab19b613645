"""Whom a logged packet belongs to, what name it was for, and how repetition is kept short."""

import ipaddress
from dataclasses import replace

import pytest

from egress_policy.destination import Address
from egress_policy.kernel_reports import Group, KernelReports, Senders, senders_of
from egress_policy.packet import Packet
from egress_policy.policy import Agent, Policy
from tests.policies import policy

SYNTHETIC = ipaddress.ip_address("198.18.0.5")
ALICES = Packet(
    "Agent Egress Blocked: ", 61001, None, 6, ipaddress.ip_address("10.66.0.2"), 40000, SYNTHETIC, 22
)
CONTAINERS = replace(ALICES, uid=None, in_link="br-agents", source=ipaddress.ip_address("10.88.0.11"))
SENDERS = Senders(
    61000,
    ((61001, 61001, "alice"), (61100, 61199, "many")),
    (
        ("br-agents", ipaddress.ip_network("10.88.0.0/24"), "wide"),
        ("br-agents", ipaddress.ip_network("10.88.0.11/32"), "narrow"),
        ("br-agents", ipaddress.ip_network("fd88::/64"), "wide"),
        ("br-others", ipaddress.ip_network("10.89.0.0/24"), "other"),
        ("br-shared", ipaddress.ip_network("10.87.0.2"), "left"),
        ("br-shared", ipaddress.ip_network("10.87.0.3"), "right"),
    ),
    (("left0", "left"), ("right0", "right")),
)
BRIDGED = replace(CONTAINERS, in_link="br-shared", source=ipaddress.ip_address("10.87.0.2"))


def name_of(address: Address, _port: int | None) -> str | None:
    return "host.example" if address == SYNTHETIC else None


def reports() -> KernelReports:
    return KernelReports(SENDERS, name_of)


@pytest.mark.parametrize(
    ("packet", "agent"),
    [
        pytest.param(ALICES, "alice", id="uid"),
        pytest.param(replace(ALICES, uid=61150), "many", id="range of uids"),
        pytest.param(replace(ALICES, uid=61200), None, id="beyond the range"),
        pytest.param(replace(ALICES, uid=None), None, id="the socket is closed"),
        pytest.param(CONTAINERS, "narrow", id="the longest prefix"),
        pytest.param(replace(CONTAINERS, source=ipaddress.ip_address("10.88.0.12")), "wide", id="a network"),
        pytest.param(replace(CONTAINERS, source=ipaddress.ip_address("fd88::9")), "wide", id="IPv6"),
        pytest.param(
            replace(CONTAINERS, source=ipaddress.ip_address("10.89.0.1")), None, id="another link's address"
        ),
        pytest.param(
            replace(ALICES, uid=None, source=ipaddress.ip_address("10.88.0.11")), None, id="no link at all"
        ),
        pytest.param(replace(BRIDGED, in_port="left0"), "left", id="its own port"),
        pytest.param(BRIDGED, "left", id="a port that is not told"),
        pytest.param(replace(BRIDGED, in_port="right0"), "right", id="under another's address"),
        pytest.param(replace(BRIDGED, in_port="third0"), None, id="from nobody's port"),
        pytest.param(
            replace(BRIDGED, in_port="right0", source=ipaddress.ip_address("10.87.0.77")),
            "right",
            id="under nobody's address",
        ),
    ],
)
def test_the_agent_behind_a_packet(packet: Packet, agent: str | None) -> None:
    record = reports().take(Group.REFUSED, packet, 0.0)
    assert record is not None
    assert record.agent == agent


def test_a_refused_packet_is_on_record_with_its_sender_and_the_name_it_was_for() -> None:
    record = reports().take(Group.REFUSED, ALICES, 0.0)
    assert record is not None
    assert (record.event, record.outcome, record.agent, record.uid) == ("drop", "deny", "alice", 61001)
    assert (record.host, record.addresses, record.port) == ("host.example", ("198.18.0.5",), 22)
    assert record.detail == "tcp to 198.18.0.5 port 22 was refused by the kernel"
    assert record.source is None


def test_a_containers_packet_is_on_record_with_its_source() -> None:
    record = reports().take(Group.REFUSED, CONTAINERS, 0.0)
    assert record is not None
    assert (record.agent, record.uid, record.source) == ("narrow", None, "10.88.0.11")


def test_a_direct_connection_is_permitted() -> None:
    record = reports().take(Group.DIRECT, replace(ALICES, destination_port=443), 0.0)
    assert record is not None
    assert (record.event, record.outcome, record.port) == ("direct", "permit", 443)


def test_the_proxys_own_packet_says_so_and_is_no_agents() -> None:
    record = reports().take(Group.REFUSED, replace(ALICES, uid=61000), 0.0)
    assert record is not None
    assert record.agent is None
    assert "the proxy itself" in (record.detail or "")


def test_what_has_no_port_has_none_on_record() -> None:
    ping = replace(
        ALICES, protocol=1, source_port=None, destination_port=None, destination=ipaddress.ip_address("9.9.9.9")
    )  # fmt: skip
    record = reports().take(Group.REFUSED, ping, 0.0)
    assert record is not None
    assert (record.port, record.host) == (None, None)
    assert record.detail == "icmp to 9.9.9.9 was refused by the kernel"


def test_a_client_that_tries_again_is_one_record_a_second_with_a_count() -> None:
    kept = reports()
    assert kept.take(Group.REFUSED, ALICES, 0.0) is not None
    assert [kept.take(Group.REFUSED, replace(ALICES, source_port=port), 0.1) for port in (1, 2, 3)] == [
        None
    ] * 3
    assert list(kept.due(0.9)) == []
    (record,) = kept.due(1.0)
    assert record.detail == "tcp to 198.18.0.5 port 22 was refused by the kernel, 3 more times"
    assert kept.take(Group.REFUSED, ALICES, 1.5) is None
    assert list(kept.due(1.9)) == []
    (record,) = kept.due(2.0)
    assert (record.detail or "").endswith(", once more")
    assert list(kept.due(3.0)) == []
    assert kept.take(Group.REFUSED, ALICES, 3.1) is not None


@pytest.mark.parametrize(
    "other",
    [
        replace(ALICES, uid=61150),
        replace(ALICES, protocol=17),
        replace(ALICES, destination=ipaddress.ip_address("198.18.0.6")),
        replace(ALICES, destination_port=23),
    ],
    ids=["agent", "protocol", "destination", "port"],
)
def test_what_differs_is_recorded_by_itself(other: Packet) -> None:
    kept = reports()
    assert kept.take(Group.REFUSED, ALICES, 0.0) is not None
    assert kept.take(Group.REFUSED, other, 0.0) is not None


def test_a_scan_is_bounded_in_memory_and_what_is_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egress_policy.repeats._MAX_KINDS", 10)
    kept = reports()
    taken = [kept.take(Group.REFUSED, replace(ALICES, destination_port=port), 0.0) for port in range(15)]
    assert sum(record is not None for record in taken) == 10
    (record,) = kept.due(0.5)
    assert (record.event, record.outcome) == ("drop", "fail")
    assert (record.detail or "").startswith("5 packets")
    assert list(kept.due(1.5)) == []
    assert kept.take(Group.REFUSED, ALICES, 1.6) is not None


def test_what_was_lost_and_what_cannot_be_heard_is_on_record() -> None:
    lost = reports().lost(Group.DIRECT, 12)
    assert (lost.event, lost.outcome) == ("direct", "fail")
    assert (lost.detail or "").startswith("12 logged packets")
    assert reports().unheard(Group.REFUSED, "why").detail == "why"


def test_senders_are_the_policys() -> None:
    known: Policy = policy()
    source = ipaddress.ip_network("10.88.0.11/32")
    box = Agent("box", (), interface="br-agents", port="veth0", source=source)
    agents = {**known.agents, "box": box}
    found = senders_of(replace(known, agents=agents))
    assert found == Senders(
        61000,
        ((61001, 61001, "alice"), (61002, 61002, "bob")),
        (("br-agents", source, "box"),),
        (("veth0", "box"),),
    )
