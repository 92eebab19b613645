"""A host boots, with an agent that tries to get out from the first moment on: what leaves before the proxy is there?

Counted at the other end of the wire. The units are the installed ones; beside them Debian's nftables.service, whose
configuration begins with `flush ruleset`, and a unit that brings the link up as a network manager would.
"""

import json
from collections.abc import Iterator

import pytest

from deploy.demo.lab import ALICE, HOST_ADDRESSES, NAMESERVERS, Lab
from tests.host.conftest import policy
from tests.host.machine import Machine, wait

UPLINK = f"""\
[Unit]
DefaultDependencies=no
After=network-pre.target
Wants=network-pre.target network.target
Before=network.target network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip link set uplink up
ExecStart=-ip address replace {HOST_ADDRESSES[0]}/24 dev uplink
ExecStart=-ip address replace {HOST_ADDRESSES[1]}/64 dev uplink nodad
ExecStart=ip route replace default via 10.66.0.1
ExecStart=ip -6 route replace default via fd66::1
[Install]
WantedBy=network-online.target multi-user.target
"""
AGENT = """\
[Unit]
DefaultDependencies=no
Before=nftables.service egress-policy-ruleset.service
[Service]
User=agent-alice
ExecStart=/opt/python/bin/python3 /opt/agent.py ADDRESSES
[Install]
WantedBy=sysinit.target
"""
# Appends what came of each try, and when by the clock that systemd's monotonic time stamps are of. No connection is left to
# the kernel to end in its own time: it would go on beyond a power cut here, as it could not on a machine of its own.
TRIES = """\
import errno, json, os, socket, struct, sys, time
with open("/var/tmp/tries", "a", buffering=1) as log:
    while True:
        for address in sys.argv[1:]:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for kind, port in ((socket.SOCK_STREAM, 443), (socket.SOCK_DGRAM, 443), (socket.SOCK_STREAM, 22)):
                with socket.socket(family, kind) as tried:
                    tried.settimeout(0.2)
                    tried.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    try:
                        tried.connect((address, port))
                        tried.send(b"GET")
                        came = "sent"
                    except OSError as error:
                        came = errno.errorcode.get(error.errno, type(error).__name__)
                print(json.dumps([time.monotonic(), address, port, came]), file=log)
        time.sleep(0.005)
"""
UNITS = (
    "egress-policy.service",
    "egress-policy-ruleset.service",
    "nftables.service",
    "uplink.service",
    "tries.service",
)


@pytest.fixture(scope="module")
def host(installed: Machine, lab: Lab) -> Iterator[Machine]:
    """Set up to start at boot, and applied once, as every host is that ran before."""
    addresses = [*lab.addresses("docs.example"), lab.addresses("direct.example")[0]]
    installed.write("/etc/systemd/system/uplink.service", UPLINK)
    installed.write("/etc/systemd/system/tries.service", AGENT.replace("ADDRESSES", " ".join(addresses)))
    installed.write("/opt/agent.py", TRIES)
    installed.must("egress-policy", "apply")
    installed.must("systemctl", "enable", *UNITS)
    yield installed
    installed.cut_power()


def reboot(host: Machine, lab: Lab) -> None:
    """Cut the power; the machine that comes up finds its link down and no firewall, as every machine does."""
    host.must("rm", "-f", "/var/tmp/tries")
    host.cut_power()
    lab.run(["nft", "flush", "ruleset"])
    lab.run(["ip", "link", "set", "uplink", "down"])
    lab.run(["nft", "flush", "ruleset"], ns="net")
    lab._must(["nft", "-f", "-"], ns="net", stdin=COUNTERS)
    host.boot()


COUNTERS = """
table inet seen {
	counter agent { }
	chain arriving {
		type filter hook prerouting priority -300; policy accept;
		iifname "downlink" meta l4proto { tcp, udp } ip daddr != NAMESERVER counter name agent
		iifname "downlink" meta l4proto { tcp, udp } ip6 daddr != fd66::53 counter name agent
	}
}
""".replace("NAMESERVER", NAMESERVERS[0])


def arrived(lab: Lab) -> int:
    """Count the TCP and UDP packets that came over the wire since the reboot, those to the name servers left out."""
    listed = json.loads(lab._must(["nft", "--json", "list", "counter", "inet", "seen", "agent"], ns="net"))
    return int(next(one["counter"]["packets"] for one in listed["nftables"] if "counter" in one))


def times(host: Machine, *units: str) -> list[float]:
    """When units became active, in seconds since the kernel started."""
    shown = [
        host.must("systemctl", "show", "--value", "--property=ActiveEnterTimestampMonotonic", unit)
        for unit in units
    ]
    return [int(one) / 1e6 for one in shown]


def tries(host: Machine) -> list[tuple[float, str, int, str]]:
    lines = host.must("cat", "/var/tmp/tries").splitlines(keepends=True)
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]


def test_nothing_leaves_before_the_proxy_is_there(host: Machine, lab: Lab) -> None:
    host.write("/etc/systemd/system/egress-policy.service.d/late.conf", "[Service]\nExecStartPre=sleep 1\n")
    policy_without_direct = policy(lab).replace(lab.addresses("direct.example")[0], "192.0.2.1")
    host.write("/etc/egress-policy/policy.yaml", policy_without_direct)
    host.must("egress-policy", "apply")
    reboot(host, lab)
    wait(lambda: host.run("systemctl", "is-active", "egress-policy").stdout == "active\n")
    flushed, ruleset, network, proxy = times(
        host, "nftables.service", "egress-policy-ruleset.service", "uplink.service", "egress-policy.service"
    )
    assert 0 < flushed <= ruleset < network < proxy
    made = tries(host)
    assert made[0][0] < ruleset, "the agent did not try before there was a ruleset"
    between = [came for moment, *_, came in made if network < moment < proxy]
    # What it could send was to the proxy, which listens a moment before it says that it is ready.
    assert "ECONNREFUSED" in between
    assert arrived(lab) == 0
    # And now it works.
    answer = lab.curl("http://docs.example/", uid=ALICE)
    assert (answer.status, answer.error) == (200, "")
    assert arrived(lab) > 0


def test_it_would_be_seen(host: Machine, lab: Lab) -> None:
    """The same without our units: what the test above counts is what leaves."""
    # nftables.service too: it loads our table after it has flushed all of them.
    units = ("nftables.service", "egress-policy-ruleset.service", "egress-policy.service")
    host.must("systemctl", "mask", *units)
    try:
        reboot(host, lab)
        wait(lambda: arrived(lab) > 0)
    finally:
        host.must("systemctl", "unmask", *units)


BREAK = {
    "a policy with errors": "echo nonsense > /etc/egress-policy/policy.yaml",
    "an account that is not known yet": "sed -i s/agent-alice/agent-nobody/ /etc/egress-policy/policy.yaml",
    "a feed that is gone": "sed -i 's/^trust:/trust:\\n  known-bad: [{feed: gone.txt}]/' /etc/egress-policy/policy.yaml",
    "code that is gone": "rm /opt/egress-policy",
}


@pytest.mark.parametrize("command", BREAK.values(), ids=BREAK.keys())
def test_what_cannot_be_put_in_force_at_boot_leaves_agents_refused(
    host: Machine, lab: Lab, command: str
) -> None:
    """At known-good destinations too: the policy of before may have lost its reasons."""
    host.write("/etc/egress-policy/policy.yaml", policy(lab))
    host.must("egress-policy", "apply")
    host.must("sh", "-c", command)
    try:
        reboot(host, lab)
        (network,) = times(host, "uplink.service")
        wait(lambda: any(moment > network + 0.5 for moment, *_ in tries(host)))
        assert host.run("systemctl", "is-failed", "egress-policy-ruleset").stdout == "failed\n"
        assert {came for moment, *_, came in tries(host) if moment > network} <= {
            "ECONNREFUSED",
            "EPERM",
            "EACCES",
        }
        assert arrived(lab) == 0
    finally:
        host.must("ln", "-sfn", "/opt/egress-policy-a", "/opt/egress-policy")
