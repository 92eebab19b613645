"""The order of things: the kernel's word first, the packet after it; and when DNS and the kernel are asked again."""

import re
import time

from deploy.demo.lab import ALICE, PROXY, PROXY_PORT, Lab
from tests.end_to_end.conftest import ALICE_FIELD, until

# What the proxy tries to send to an address, counted before the policy's own chains see it, and after them.
ATTEMPTS = """
table inet attempts {{
	chain tried {{
		type filter hook output priority -10; policy accept;
		meta skuid {uid} ip daddr {address} counter
	}}
	chain left {{
		type filter hook postrouting priority 0; policy accept;
		meta skuid {uid} ip daddr {address} counter
	}}
}}
"""
# Redirection as in the real ruleset, and nothing else: no set, and no rule that would hold the proxy back.
REDIRECTION_ALONE = """
table inet egress-policy
delete table inet egress-policy
table inet egress-policy {{
	chain nat-output {{
		type nat hook output priority -100; policy accept;
		meta skuid {uid} tcp dport 443 redirect to :{port}
	}}
}}
"""


def load(lab: Lab, ruleset: str) -> None:
    loaded = lab.run(["nft", "-f", "-"], stdin=ruleset)
    assert loaded.returncode == 0, loaded.stderr


def held(lab: Lab, host: str) -> dict[str, float]:
    """The element of a host's grant: what its comment says of the id, and the seconds that it has left."""
    listed = lab.run(["nft", "list", "set", "inet", "egress-policy", "developer-sandbox"]).stdout
    return {
        grant_id: sum(
            int(number) * {"h": 3600, "m": 60, "s": 1, "ms": 0.001}[unit]
            for number, unit in re.findall(r"(\d+)(ms|h|m|s)", left)
        )
        for left, grant_id in re.findall(rf'expires (\S+) comment "(\S+) \S+ {re.escape(host)}"', listed)
    }


def queries_for(lab: Lab, host: str) -> int:
    return sum(query["name"] == host for query in lab.queries())


def ipv4_only(lab: Lab, host: str, ttl: int = 60) -> str:
    """Add a name that has one IPv4 address, and return it."""
    lab.add_name(host)
    address = lab.addresses(host)[0]
    lab.add_name(host, address, ttl=ttl)
    return address


def test_the_proxy_tries_nothing_before_the_grant_is_in_the_kernel(lab: Lab) -> None:
    """What it sends before that would be refused; so all that it tries must get out, and a denial tries nothing."""
    address = ipv4_only(lab, "tried.example")
    load(lab, ATTEMPTS.format(uid=PROXY, address=address))
    try:
        assert lab.curl("https://tried.example/", uid=ALICE).status == 403
        shown = lab.run(["nft", "list", "table", "inet", "attempts"]).stdout
        assert re.findall(r"counter packets (\d+)", shown) == ["0", "0"]
        assert lab.curl("https://tried.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
        shown = lab.run(["nft", "list", "table", "inet", "attempts"]).stdout
        tried, left = map(int, re.findall(r"counter packets (\d+)", shown))
        assert tried == left > 0
    finally:
        lab.run(["nft", "delete", "table", "inet", "attempts"])


def test_within_the_ttl_nothing_in_the_kernel_s_rules_changes(lab: Lab) -> None:
    """No netlink call: `nft monitor` sees the first request's element, and then nothing."""
    ipv4_only(lab, "monitored.example")
    monitor = lab.start(["nft", "monitor"], log="monitor")
    try:
        assert until(lambda: lab.listens(monitor, PROXY_PORT))  # it is in the namespace
        time.sleep(0.3)
        assert lab.curl("https://monitored.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
        assert until(lambda: "monitored.example" in lab.output("monitor"))
        time.sleep(0.2)
        seen, asked = lab.output("monitor"), queries_for(lab, "monitored.example")
        for _ in range(3):
            assert lab.curl("https://monitored.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
        time.sleep(0.3)
        assert lab.output("monitor") == seen
        assert queries_for(lab, "monitored.example") == asked
    finally:
        monitor.kill()
        monitor.wait()


def test_after_the_ttl_dns_is_asked_again_and_the_grant_s_end_stays(lab: Lab) -> None:
    """The same answer changes nothing; another address is opened until the end that the grant has already."""
    ipv4_only(lab, "moving.example", ttl=1)
    field = {"X-Agent-Scope": "sandbox-alice;ttl=60"}
    assert lab.curl("https://moving.example/", uid=ALICE, headers=field).status == 200
    asked = queries_for(lab, "moving.example")
    ((grant_id, left),) = held(lab, "moving.example").items()
    begun = time.monotonic()
    time.sleep(1.2)
    assert lab.curl("https://moving.example/", uid=ALICE, headers=field).status == 200
    assert queries_for(lab, "moving.example") > asked

    lab.add_name("elsewhere.example")
    moved = lab.addresses("elsewhere.example")[0]
    lab.add_name("moving.example", moved, ttl=1)
    time.sleep(1.2)
    answer = lab.curl("https://moving.example/", uid=ALICE, headers=field)
    assert (answer.status, moved in answer.body) == (200, True)
    now = held(lab, "moving.example")
    assert set(now) == {grant_id}
    assert abs(left - (time.monotonic() - begun) - now[grant_id]) < 1.5
    assert lab.run(
        ["nft", "get", "element", "inet", "egress-policy", "developer-sandbox", f"{{ {moved} . 443 }}"]
    ).stdout
    grants = [
        (record["id"], record["expires"])
        for record in lab.audit()
        if record["event"] == "grant" and record.get("host") == "moving.example"
    ]
    assert len(set(grants)) == 1, "each record of it has the same id and the same end"


def test_a_reload_of_the_ruleset_does_not_disturb_a_running_transfer(lab: Lab) -> None:
    ipv4_only(lab, "reloaded.example")
    running = lab.start(
        ["curl", "-sSN", "-H", "X-Agent-Scope: sandbox-alice", "https://reloaded.example/slow-stream"],
        uid=ALICE,
        log="reloaded",
    )
    try:
        assert until(lambda: "line 1\n" in lab.output("reloaded"))
        for _ in range(3):
            lab.apply()
        lines = lab.output("reloaded").count("\n")
        assert until(lambda: lab.output("reloaded").count("\n") > lines + 3)
        assert running.poll() is None
    finally:
        running.kill()
        running.wait()


def test_a_grant_that_the_kernel_does_not_take_lets_nothing_out(lab: Lab) -> None:
    """The proxy holds itself back: here the kernel would let every packet of it pass."""
    address = ipv4_only(lab, "untaken.example")
    load(lab, REDIRECTION_ALONE.format(uid=ALICE, port=PROXY_PORT))
    try:
        answer = lab.curl(
            "https://untaken.example/",
            *("--resolve", f"untaken.example:443:{address}"),
            uid=ALICE,
            headers=ALICE_FIELD,
        )
        assert (answer.status, answer.json()["code"]) == (503, "grant_failed")
        assert lab.packets_to(address) == 0
        events = [record["event"] for record in lab.audit() if record.get("host") == "untaken.example"]
        assert events == ["grant", "revoke", "decision"]
    finally:
        lab.run(["nft", "delete", "table", "inet", "egress-policy"])
        lab.apply()
