"""Two containers on one bridge, each bound to its port: told apart by the proxy, and neither takes the other's address."""

from collections.abc import Iterator
from functools import partial

import pytest

from deploy.demo.lab import Lab
from tests.end_to_end.conftest import POLICY, until

ADDRESSES = {"left": ("10.88.0.2", "fd88::2"), "right": ("10.88.0.3", "fd88::3")}
HOST = "a.example"
AGENTS = "".join(
    f'  {name}{suffix}: {{interface: br-agents, port: port{number}, source: "{address}", scopes: [sandbox-{whose}]}}\n'
    for number, (name, whose) in enumerate((("left", "alice"), ("right", "bob")), 1)
    for suffix, address in zip(("", "-ipv6"), ADDRESSES[name], strict=True)
)


@pytest.fixture(scope="module")
def bridged() -> Iterator[Lab]:
    """The containers `container1`, on the left, and `container2`."""
    with Lab(HOST) as lab:
        for addresses in ADDRESSES.values():
            lab.add_container(*addresses)
        lab.write_policy(POLICY.replace("scopes:\n  sandbox-alice", f"{AGENTS}scopes:\n  sandbox-alice"))
        lab.apply()
        lab.start_proxy()
        yield lab


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize(
    ("container", "own", "other"),
    [("container1", "sandbox-alice", "sandbox-bob"), ("container2", "sandbox-bob", "sandbox-alice")],
)
def test_each_has_its_own_scope_and_no_other(
    bridged: Lab, container: str, own: str, other: str, family: str
) -> None:
    fetch = partial(bridged.curl, f"https://{HOST}/{container}", family, uid=0, ns=container)
    assert fetch(headers={"X-Agent-Scope": own}).status == 200
    denied = fetch(headers={"X-Agent-Scope": other})
    assert (denied.status, denied.json()["code"]) == (403, "scope_not_allowed")


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_what_one_sends_as_the_other_is_dropped_and_on_record_as_its_own_doing(
    bridged: Lab, family: int
) -> None:
    taken, address = ADDRESSES["left"][family], bridged.addresses(HOST)[family]
    url = f"http://[{address}]/" if family else f"http://{address}/"
    decided = len([one for one in bridged.audit() if one["event"] == "decision"])
    before = bridged.packets_to(address)
    bridged.ip("container2", f"address add {taken}/{128 if family else 32} dev lo")
    try:
        field = {"X-Agent-Scope": "sandbox-alice"}
        answer = bridged.curl(
            url, "--interface", f"host!{taken}", "--max-time", "1", uid=0, ns="container2", headers=field
        )
        assert answer.status == 0
        assert until(lambda: bool(drops(bridged, taken)), 15)
    finally:
        bridged.ip("container2", f"address del {taken}/{128 if family else 32} dev lo")
    assert {one["agent"] for one in drops(bridged, taken)} <= {"right", "right-ipv6"}
    assert bridged.packets_to(address) == before
    assert len([one for one in bridged.audit() if one["event"] == "decision"]) == decided


def drops(lab: Lab, source: str) -> list[dict[str, str]]:
    """What was refused under an address."""
    return [one for one in lab.audit() if one["event"] == "drop" and one.get("source") == source]
