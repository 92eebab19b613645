"""What may be asked of the firewall module: values that overlap, elements of others, callers that leave."""

import asyncio
import ipaddress
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from egress_policy.destination import Network
from egress_policy.element_messages import MAX_COMMENT
from egress_policy.firewall import (
    DEVELOPER_SANDBOX,
    KNOWN_GOOD_DOMAINS,
    Elements,
    FirewallError,
    Ruleset,
    apply,
    compose,
    list_elements,
)

ADDRESS = ipaddress.ip_address("93.184.216.34")

type Inside = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def inside() -> Iterator[Inside]:
    """Run functions in a network namespace of their own: that of a thread, which ends with it."""
    with ThreadPoolExecutor(1, initializer=os.unshare, initargs=(os.CLONE_NEWNET,)) as pool:
        yield lambda function: pool.submit(function).result()


def ruleset(**values: Any) -> Ruleset:
    return Ruleset(61000, 8080, 8053, (80, 443), **values)


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


def holds(name: str, element: str) -> bool:
    """Ask the kernel itself, as a packet would."""
    command = ["nft", "get", "element", "inet", "egress-policy", name, f"{{ {element} }}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


async def close(elements: Elements) -> None:
    """Close the socket, and let asyncio take note of it."""
    elements._close()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("values", "name", "held", "not_held"),
    [
        (
            {"agent_links": (("br0", *networks("10.88.0.0/24")), ("br0", *networks("10.88.0.11/32")))},
            "agent-link-sources",
            ['"br0" . 10.88.0.0', '"br0" . 10.88.0.11', '"br0" . 10.88.0.255'],
            ['"br0" . 10.88.1.0', '"br1" . 10.88.0.11'],
        ),
        (
            {"agent_links": (("br0", *networks("fd00::/64")), ("br0", *networks("fd00::11/128")))},
            "agent-link-sources-ipv6",
            ['"br0" . fd00::', '"br0" . fd00::11', '"br0" . fd00::ffff:ffff:ffff:ffff'],
            ['"br0" . fd00:0:0:1::', '"br1" . fd00::11'],
        ),
        ({"agent_uids": ((5, 9), (7, 7), (10, 12))}, "agent-uids", ["5", "7", "12"], ["4", "13"]),
        (
            {"known_good": tuple((one, 443) for one in networks("9.0.0.0/24", "9.0.0.7/32", "9.0.1.0/24"))},
            "known-good-ipv4",
            ["9.0.0.0 . 443", "9.0.0.7 . 443", "9.0.1.255 . 443"],
            ["8.255.255.255 . 443", "9.0.2.0 . 443", "9.0.0.7 . 80"],
        ),
        (
            {"known_bad": networks("9.0.0.7/32", "9.0.0.0/24", "255.255.255.255/32", "0.0.0.0/32")},
            "known-bad-ipv4",
            ["9.0.0.0", "9.0.0.255", "255.255.255.255", "0.0.0.0"],
            ["9.0.1.0", "8.255.255.255", "255.255.255.254", "0.0.0.1"],
        ),
    ],
    ids=["sources", "IPv6 sources", "uids", "known-good", "known-bad"],
)
def test_values_that_overlap_mean_all_of_them(
    inside: Inside, values: dict[str, Any], name: str, held: list[str], not_held: list[str]
) -> None:
    inside(lambda: apply(ruleset(**values)))
    found = inside(lambda: [one for one in (*held, *not_held) if holds(name, one)])
    assert found == held


def test_local_ports_that_overlap_mean_all_of_them(inside: Inside) -> None:
    """Listed: nft(8) cannot ask for one uid of such a set, it takes the bytes in the wrong order."""
    ports = ((2000, 3000), (1024, 2500), (2200, 2200))
    inside(lambda: apply(ruleset(loopback=tuple(((5, 6), one) for one in ports))))
    command = ["nft", "list", "set", "inet", "egress-policy", "agent-loopback"]
    listed = inside(lambda: subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert "elements = { 5-6 . 1024-3000 }" in listed


def test_a_feed_of_a_hundred_thousand_networks_is_composed_at_once() -> None:
    """Processor time, which other tests do not spend: ipaddress.collapse_addresses() alone takes two seconds."""
    many = tuple(ipaddress.ip_network((number * 512, 24)) for number in range(100_000))
    start = time.process_time()
    text = compose(ruleset(known_bad=many))
    assert time.process_time() - start < 1
    assert text.count("-0.0.1.255") + text.count("0.0.2.0-0.0.2.255") == 1


def test_an_element_that_somebody_added_by_hand_is_listed(inside: Inside) -> None:
    """Without timeout and comment nft lists its bare key."""

    def add_and_list() -> Any:
        apply(ruleset())
        added = ["add", "element", "inet", "egress-policy", KNOWN_GOOD_DOMAINS, f"{{ {ADDRESS} . 443 }}"]
        subprocess.run(["nft", *added], check=True)
        return list_elements(KNOWN_GOOD_DOMAINS)

    (element,) = inside(add_and_list)
    assert (element.address, element.port, element.comment) == (ADDRESS, 443, "")


def test_a_comment_is_cut_to_what_nftables_keeps(inside: Inside) -> None:
    async def insert() -> None:
        elements = Elements()
        await elements.insert(DEVELOPER_SANDBOX, [(ADDRESS, 443)], 60, "c" * 200)
        await close(elements)

    inside(lambda: apply(ruleset()))
    inside(lambda: asyncio.run(insert()))
    (element,) = inside(lambda: list_elements(DEVELOPER_SANDBOX))
    assert element.comment == "c" * MAX_COMMENT


@pytest.mark.parametrize("steps", range(6))
def test_a_caller_that_leaves_disturbs_nobody(inside: Inside, steps: int) -> None:
    """However far it came: what it began is carried out, and the next call gets its own answer."""
    complaints: list[object] = []

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        elements = Elements()
        leaving = asyncio.create_task(elements.insert(DEVELOPER_SANDBOX, [(ADDRESS, 443)], 60, "left"))
        for _ in range(steps + 1):
            await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        with pytest.raises(FirewallError):  # closes the socket too
            await elements.insert("no-such-set", [(ADDRESS, 443)], 60, "x")
        await elements.insert(DEVELOPER_SANDBOX, [(ADDRESS, 80)], 60, "stayed")
        await close(elements)

    inside(lambda: apply(ruleset()))
    inside(lambda: asyncio.run(leave()))
    assert {one.comment for one in inside(lambda: list_elements(DEVELOPER_SANDBOX))} == {"left", "stayed"}
    assert complaints == []
