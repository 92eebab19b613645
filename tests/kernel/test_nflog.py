"""A real NFLOG group: one listener, whose packet it was, and how many packets it could not be given."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from egress_policy.kernel_reports import Group
from egress_policy.nflog import Listener, NflogError
from egress_policy.packet import Packet

RULES = """
table inet test {
	chain out {
		type filter hook output priority 0;
		udp dport 9 log prefix "Agent Egress Blocked: " group 1
	}
}
"""


def inside(function: Callable[[], object]) -> Any:
    """Run a function in a network namespace of its own, where packets to port 9 are logged; return its result."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.unshare(os.CLONE_NEWNET)
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            subprocess.run(["nft", "-f", "-"], input=RULES, text=True, check=True)
            result: object = function()
        except BaseException as error:  # noqa: BLE001 - the parent shows it
            result = f"{type(error).__name__}: {error}"
        os.write(write, json.dumps(result).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def send(count: int, destination: str = "127.0.0.1") -> None:
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(b"x", (destination, 9))


def receive(listener: Listener, count: int) -> list[Packet]:
    """Wait for so many packets."""
    packets: list[Packet] = []
    until = time.monotonic() + 20
    while len(packets) < count and time.monotonic() < until:
        packets += listener.receive()
        time.sleep(0.001)
    return packets


def drain(listener: Listener) -> int:
    """Count the packets that are there."""
    count = 0
    while more := len(list(listener.receive())):
        count += more
    return count


def test_a_logged_packet_says_whose_it_is_and_where_it_was_to_go() -> None:
    def run() -> object:
        with Listener(Group.REFUSED) as listener:
            send(1)
            send(1, "::1")
            found = receive(listener, 2)
            return [
                [one.prefix, one.uid, one.in_link, one.protocol, str(one.destination), one.destination_port]
                for one in found
            ] + [listener.lost]

    prefix = "Agent Egress Blocked: "
    assert inside(run) == [[prefix, 0, None, 17, "127.0.0.1", 9], [prefix, 0, None, 17, "::1", 9], 0]


def test_what_could_not_be_handed_over_is_counted() -> None:
    """Far more than the receive buffer holds, while nobody reads."""

    def run() -> object:
        with Listener(Group.REFUSED) as listener:
            send(50_000)
            # The kernel hands over what it still collects after a tenth of a second.
            time.sleep(0.5)
            received = drain(listener)
            send(1)
            received += len(receive(listener, 1))
            return [received + listener.lost, listener.lost > 0]

    assert inside(run) == [50_001, True]


def test_a_group_has_one_listener_and_the_next_may_follow_when_it_ends() -> None:
    def run() -> object:
        said = []
        with Listener(Group.REFUSED), Listener(Group.DIRECT):
            try:
                Listener(Group.REFUSED)
            except NflogError as error:
                said.append(str(error))
        with Listener(Group.REFUSED):
            return said

    (why,) = inside(run)
    assert why.startswith(
        "what the kernel logs to NFLOG group 1 is not recorded here: another program listens"
    )


def test_one_wake_up_takes_a_bounded_amount() -> None:
    def run() -> object:
        with Listener(Group.REFUSED) as listener:
            send(3000)
            time.sleep(0.5)
            return 0 < len(list(listener.receive())) < 1000

    assert inside(run) is True
