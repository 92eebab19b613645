"""Elements over netlink: what is inserted is what was meant, and no more."""

import asyncio
import ipaddress
import json
import os
import re
import subprocess
from collections.abc import Callable, Coroutine
from dataclasses import replace

import pytest

from deploy.demo.lab import Lab
from egress_policy.firewall import (
    DEVELOPER_SANDBOX,
    MAX_TIMEOUT,
    Elements,
    FirewallError,
    Ruleset,
    apply,
    compose,
    delete_now,
    delete_ways_now,
    is_loaded,
    list_elements,
)
from egress_policy.grant import Way

RULESET = Ruleset(61000, 8080, 8053, (80, 443))
IPV4, IPV6 = ipaddress.ip_address("93.184.216.34"), ipaddress.ip_address("2a00:1450::1")


@pytest.fixture
def inside() -> Callable[[Callable[[], object]], object]:
    """Run a function in a network namespace of its own, with the ruleset loaded, and return what it returns."""

    def run(function: Callable[[], object]) -> object:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.unshare(os.CLONE_NEWNET)
                result: object = function()
            except Exception as error:  # noqa: BLE001 - the parent raises it
                result = f"{type(error).__name__}: {error}"
            os.write(write, json.dumps(result).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as answers:
            answer = answers.read()
        os.waitpid(child, 0)
        return json.loads(answer)

    return run


def loaded(work: Callable[[Elements], Coroutine[object, object, None]]) -> Callable[[], object]:
    """Load the ruleset, do the work, and list what the kernel then holds."""

    def run() -> object:
        apply(RULESET)

        async def main() -> None:
            await work(Elements())

        asyncio.run(main())
        return [
            [str(one.address), one.port, one.comment, one.remaining]
            for one in list_elements(DEVELOPER_SANDBOX)
        ]

    return run


type Inside = Callable[[Callable[[], object]], object]


def test_an_element_is_one_address_and_port_with_its_time_and_comment(inside: Inside) -> None:
    async def work(elements: Elements) -> None:
        await elements.insert(DEVELOPER_SANDBOX, [(IPV4, 443), (IPV6, 80)], 60, "1 sandbox-alice a.example")

    held = inside(loaded(work))
    assert isinstance(held, list)
    assert [one[:3] for one in held] == [
        [str(IPV4), 443, "1 sandbox-alice a.example"],
        [str(IPV6), 80, "1 sandbox-alice a.example"],
    ]
    assert all(58 <= one[3] <= 60 for one in held)


@pytest.mark.parametrize(("first", "second"), [(60, 60), (60, 3600), (3600, 60)])
def test_inserting_again_gives_the_new_time_and_comment(inside: Inside, first: float, second: float) -> None:
    async def work(elements: Elements) -> None:
        await elements.insert(DEVELOPER_SANDBOX, [(IPV4, 443)], first, "old")
        await asyncio.sleep(1.2)
        await elements.insert(DEVELOPER_SANDBOX, [(IPV4, 443)], second, "new")

    held = inside(loaded(work))
    assert isinstance(held, list)
    ((_, _, comment, remaining),) = held
    assert comment == "new"
    assert second - 1 <= remaining <= second


def test_deleting_takes_one_out_and_does_not_miss_what_is_gone(inside: Inside) -> None:
    async def work(elements: Elements) -> None:
        await elements.insert(DEVELOPER_SANDBOX, [(IPV4, 443), (IPV4, 80)], 60, "x")
        await elements.delete(DEVELOPER_SANDBOX, [(IPV4, 443), (IPV6, 443)])
        delete_now(DEVELOPER_SANDBOX, [(IPV6, 80)])

    held = inside(loaded(work))
    assert isinstance(held, list)
    assert [one[:2] for one in held] == [[str(IPV4), 80]]


def test_a_long_comment_is_cut_between_characters(inside: Inside) -> None:
    async def work(elements: Elements) -> None:
        await elements.insert(DEVELOPER_SANDBOX, [(IPV4, 443)], 60, "é" * 200)

    held = inside(loaded(work))
    assert isinstance(held, list)
    assert set(held[0][2]) == {"é"}


def test_many_elements_fit(inside: Inside) -> None:
    async def work(elements: Elements) -> None:
        first = int(ipaddress.ip_address("93.0.0.0"))
        many = [(ipaddress.ip_address(first + number), 443) for number in range(1000)]
        await elements.insert(DEVELOPER_SANDBOX, many, 60, "x")

    held = inside(loaded(work))
    assert isinstance(held, list)
    assert len(held) == 1000


def test_grants_survive_a_reload(inside: Inside) -> None:
    async def work(elements: Elements) -> None:
        await elements.insert(DEVELOPER_SANDBOX, [(IPV4, 443)], 60, "x")
        apply(RULESET)

    held = inside(loaded(work))
    assert isinstance(held, list)
    assert len(held) == 1


def listed_ways() -> dict[str, list[str]]:
    """What the kernel holds for raw TCP, as nft writes it, by set."""
    text = subprocess.run(
        ["nft", "list", "table", "inet", "egress-policy"], capture_output=True, text=True, check=True
    ).stdout
    found = re.findall(r"(?:map|set) (raw-tcp\S*) {[^}]*elements = {([^}]*)}", text)
    return {name: [" ".join(one.split()) for one in elements.split(",")] for name, elements in found}


def led(work: Callable[[Elements], Coroutine[object, object, None]]) -> Callable[[], object]:
    def run() -> object:
        apply(RULESET)

        async def main() -> None:
            await work(Elements())

        asyncio.run(main())
        return listed_ways()

    return run


SYNTHETIC4, SYNTHETIC6 = ipaddress.ip_address("198.18.0.1"), ipaddress.ip_address("2001:2:0:ffff::1")
WAYS = {
    "uid": Way(61001, SYNTHETIC4, 22, IPV4),
    "uid, IPv6": Way(61001, SYNTHETIC6, 22, IPV6),
    "container": Way(ipaddress.ip_address("10.88.0.2"), SYNTHETIC4, 22, IPV4),
    "container, IPv6": Way(ipaddress.ip_address("fd88::2"), SYNTHETIC6, 22, IPV6),
}


@pytest.mark.parametrize("kind", WAYS)
def test_a_way_is_one_caller_s_from_one_address_and_port_to_one_address(inside: Inside, kind: str) -> None:
    way = WAYS[kind]

    async def work(elements: Elements) -> None:
        await elements.lead(way, 60, 90, "1 sandbox-alice a.example", way.address)

    held = inside(led(work))
    assert isinstance(held, dict)
    suffix = "-ipv6" if way.dialled.version == 6 else ""
    name = "raw-tcp" if isinstance(way.caller, int) else "raw-tcp-sources"
    place = f"{way.dialled} . 22"
    expected = {
        f"{name}{suffix}": (f"{way.caller} . {place}", f" : {way.address}", "1m"),
        f"{name}-permitted{suffix}": (f"{way.caller} . {place} . {way.address}", "", "1m"),
    }
    if isinstance(way.caller, int):
        expected[f"raw-tcp-closed{suffix}"] = (f"{place} . {way.address}", "", "1m30s")
    assert held.keys() == expected.keys()
    for name, (key, value, timeout) in expected.items():
        (element,) = held[name]
        pattern = f'{re.escape(key)} timeout {timeout} expires \\S+ comment "1 sandbox-alice a.example"'
        assert re.fullmatch(pattern + re.escape(value), element), element


def test_a_way_that_changes_its_address_keeps_what_may_go_on(inside: Inside) -> None:
    old = WAYS["uid"]
    new = replace(old, address=ipaddress.ip_address("93.184.216.35"))

    async def work(elements: Elements) -> None:
        await elements.lead(old, 60, 60, "1 x y", old.address)
        await elements.lead(new, 60, 60, "1 x y", old.address)

    held = inside(led(work))
    assert isinstance(held, dict)
    assert [one.rpartition(" ")[2] for one in held["raw-tcp"]] == [str(new.address)]
    assert len(held["raw-tcp-permitted"]) == len(held["raw-tcp-closed"]) == 2


def test_a_way_is_closed_for_one_and_kept_for_the_closed_sockets_of_another(inside: Inside) -> None:
    way = WAYS["uid"]

    async def work(elements: Elements) -> None:
        await elements.lead(way, 60, 60, "1 x y", way.address)
        for _ in range(2):  # what is gone is not missed
            await elements.lead(way, None, 30, "2 x y", way.address)

    held = inside(led(work))
    assert isinstance(held, dict)
    assert held.keys() == {"raw-tcp-closed"}
    (element,) = held["raw-tcp-closed"]
    assert "timeout 30s" in element
    assert 'comment "2 x y"' in element


def test_unwanted_ways_are_deleted_by_their_comments(inside: Inside) -> None:
    async def work(elements: Elements) -> None:
        for way in WAYS.values():
            await elements.lead(way, 60, 60, "1 sandbox-alice a.example", way.address)
        kept = replace(WAYS["uid"], port=2222)
        await elements.lead(kept, 60, 60, "2 sandbox-alice a.example", kept.address)
        delete_ways_now(lambda comment: comment.startswith("1 "))

    held = inside(led(work))
    assert isinstance(held, dict)
    assert held.keys() == {"raw-tcp", "raw-tcp-permitted", "raw-tcp-closed"}
    assert all(" . 2222" in element for elements in held.values() for element in elements)
    assert all(len(elements) == 1 for elements in held.values())


def test_without_the_ruleset_an_insert_fails_and_says_what_to_do(inside: Inside) -> None:
    def run() -> object:
        assert not is_loaded()
        asyncio.run(Elements().insert(DEVELOPER_SANDBOX, [(IPV4, 443)], 60, "x"))
        return "inserted"

    assert inside(run) == "FirewallError: the nftables set is not in the kernel: run `egress-policy apply`"


def test_without_the_capability_an_insert_fails_and_does_not_hang(inside: Inside) -> None:
    def run() -> object:
        apply(RULESET)
        os.setuid(61009)
        asyncio.run(Elements().insert(DEVELOPER_SANDBOX, [(IPV4, 443)], 60, "x"))
        return "inserted"

    assert re.match("FirewallError: .*CAP_NET_ADMIN", str(inside(run)))


@pytest.mark.parametrize("timeout", [0, -1, MAX_TIMEOUT + 1])
async def test_a_time_that_no_grant_has_is_refused(timeout: float) -> None:
    """A timeout of zero would be an element for ever."""
    with pytest.raises(ValueError, match="24 hours"):
        await Elements().insert(DEVELOPER_SANDBOX, [(IPV4, 443)], timeout, "x")


def test_overlapping_networks_load(inside: Inside) -> None:
    def run() -> object:
        nets = [
            ipaddress.ip_network(text)
            for text in ("9.0.0.0/8", "9.1.0.0/16", "9.1.0.0/16", "2a00::/16", "2a00:1::/32")
        ]
        apply(
            Ruleset(
                1,
                8080,
                8053,
                (80,),
                known_good=tuple((net, port) for net in nets for port in (80, 443)),
                known_bad=tuple(nets),
            )
        )
        return is_loaded()

    assert inside(run) is True


def test_a_hundred_thousand_denied_networks_load(inside: Inside) -> None:
    def run() -> object:
        apply(
            Ruleset(
                1,
                8080,
                8053,
                (80,),
                known_bad=tuple(ipaddress.ip_network((number * 512, 24)) for number in range(100_000)),
            )
        )
        return is_loaded()

    assert inside(run) is True


def test_the_file_passes_the_check_that_its_head_describes() -> None:
    text = compose(RULESET)
    command = re.search(r"^#   (nft -c .*) -f nft/egress.nft$", text, re.MULTILINE)
    assert command is not None
    with Lab() as lab:
        done = lab.run(["sh", "-c", f"{command[1]} -f -"], stdin=text[text.index("# The kernel") :])
        assert done.returncode == 0, done.stderr


def test_nft_s_complaint_is_a_sentence(inside: Inside) -> None:
    def run() -> object:
        os.setuid(61009)
        apply(RULESET)
        return "applied"

    assert "CAP_NET_ADMIN" in str(inside(run))
    assert issubclass(FirewallError, Exception)
