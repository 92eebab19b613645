"""Another policy while the proxy runs, and grants that are taken back."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from deploy.demo.lab import ALICE, Lab
from tests.end_to_end.conftest import ALICE_FIELD, POLICY
from tests.end_to_end.conftest import until as wait_until

FEEDING = POLICY.replace("  known-bad:\n", "  known-bad:\n    - {feed: feed.txt}\n")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("a.example", "b.example", "direct.example") as lab:
        (lab.policy_file.parent / "feed.txt").write_text("listed.example\n")
        lab.write_policy(FEEDING)
        lab.apply()
        yield lab


@pytest.fixture
def proxy(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    lab.write_policy(FEEDING)
    lab.apply()
    process = lab.start_proxy()
    yield process
    process.terminate()
    process.wait(10)


def until(ready: Callable[[], bool]) -> bool:
    return wait_until(ready, 15.0)


def events(lab: Lab, event: str, about: str = "") -> list[dict[str, object]]:
    return [record for record in lab.audit() if record["event"] == event and about in str(record)]


def status(lab: Lab, host: str) -> int:
    # What is known-bad by name has no address in DNS.
    direct = ("--resolve", f"{host}:443:{lab.addresses(host)[0]}")
    return lab.curl(f"https://{host}/", *direct, uid=ALICE, headers=ALICE_FIELD).status


def element(lab: Lab, host: str, verb: str) -> subprocess.CompletedProcess[str]:
    members = f"{{ {lab.addresses(host)[0]} . 443 }}"
    return lab.run(["nft", verb, "element", "inet", "egress-policy", "developer-sandbox", members])


def test_a_changed_policy_file_is_in_force_without_a_restart(
    lab: Lab, proxy: subprocess.Popen[bytes]
) -> None:
    assert status(lab, "a.example") == 200
    assert status(lab, "b.example") == 200
    lab.write_policy(FEEDING.replace("{domain: bad.example}", "{domain: a.example}"))
    assert until(lambda: bool(events(lab, "revoke", "a.example")))
    assert status(lab, "a.example") == 403
    assert element(lab, "a.example", "get").returncode != 0
    assert element(lab, "b.example", "get").returncode == 0, "what the new policy would give stays"
    assert not events(lab, "revoke", "b.example")


def test_what_the_policy_includes_is_followed_too(lab: Lab, proxy: subprocess.Popen[bytes]) -> None:
    teams = lab.policy_file.parent / "teams"
    teams.mkdir(exist_ok=True)
    (teams / "alice.yaml").write_text("trust: {vetted: []}\n")
    lab.write_policy(f"{FEEDING}include: [teams/*.yaml]\n")
    assert until(lambda: bool(events(lab, "policy", "it changed")))
    assert status(lab, "a.example") == 200
    (teams / "bob.yaml").write_text("trust: {known-bad: [{domain: a.example}]}\n")
    assert until(lambda: status(lab, "a.example") == 403), "a file was added"
    (teams / "bob.yaml").write_text("trust: {known-bad: [{domain: b.example}]}\n")
    assert until(lambda: status(lab, "a.example") == 200), "it changed"
    assert status(lab, "b.example") == 403
    (teams / "bob.yaml").unlink()
    assert until(lambda: status(lab, "b.example") == 200), "it was removed"


def test_sighup_asks_for_the_policy(lab: Lab, proxy: subprocess.Popen[bytes]) -> None:
    before = len(events(lab, "policy"))
    os.kill(proxy.pid, signal.SIGHUP)
    assert until(lambda: len(events(lab, "policy")) == before + 1)
    assert status(lab, "b.example") == 200


def test_the_kernel_is_given_the_new_policy_too(lab: Lab, proxy: subprocess.Popen[bytes]) -> None:
    network = "45.90.0.0/16"
    lab.write_policy(FEEDING.replace("66.0.0.0/8", network))
    assert until(
        lambda: network in lab.run(["nft", "list", "set", "inet", "egress-policy", "known-bad-ipv4"]).stdout
    )
    assert until(lambda: status(lab, "b.example") == 403)


def test_a_bad_policy_changes_nothing_and_says_so(lab: Lab, proxy: subprocess.Popen[bytes]) -> None:
    assert status(lab, "a.example") == 200
    lab.write_policy(FEEDING + "surprise: 1\n")
    assert until(lambda: bool(events(lab, "policy", "surprise")))
    assert events(lab, "policy", "surprise")[-1]["outcome"] == "fail"
    assert until(lambda: "surprise" in lab.output("proxy"))
    assert status(lab, "a.example") == 200
    assert not events(lab, "revoke", "surprise")


def test_the_proxys_own_ports_need_a_restart(lab: Lab, proxy: subprocess.Popen[bytes]) -> None:
    lab.write_policy(FEEDING.replace("{user: 61000}", "{user: 61000, port: 8181}"))
    assert until(lambda: bool(events(lab, "policy", "need a restart")))
    assert status(lab, "a.example") == 200


def test_a_feed_is_read_anew_and_the_last_good_one_kept(lab: Lab, proxy: subprocess.Popen[bytes]) -> None:
    feed = lab.policy_file.parent / "feed.txt"
    feed.write_text("b.example\n")
    assert until(lambda: status(lab, "b.example") == 403)
    for damaged in (b"a.example\nno name at all\n", b"\xff\xfe\x00", b""):
        before = len(events(lab, "policy", "last good"))
        feed.write_bytes(damaged)
        assert until(lambda before=before: len(events(lab, "policy", "last good")) > before)  # type: ignore[misc]
        assert status(lab, "b.example") == 403
        assert status(lab, "a.example") == 200
    feed.unlink()
    assert until(lambda: bool(events(lab, "policy", "No such file")))
    assert status(lab, "b.example") == 403
    feed.write_text("listed.example\n")
    assert until(lambda: status(lab, "b.example") == 200)


def test_a_grant_deleted_with_nft_is_gone_for_the_proxy_too(lab: Lab, proxy: subprocess.Popen[bytes]) -> None:
    assert status(lab, "a.example") == 200
    before = len(events(lab, "revoke", "a.example"))
    assert element(lab, "a.example", "delete").returncode == 0
    assert until(lambda: len(events(lab, "revoke", "a.example")) > before)
    listed = lab.run(["nft", "list", "set", "inet", "egress-policy", "developer-sandbox-ipv6"]).stdout
    assert lab.addresses("a.example")[1] not in listed, "its other address goes with it"
    assert status(lab, "a.example") == 200, "the next request is decided afresh"


def test_a_flushed_ruleset_ends_every_grant(lab: Lab, proxy: subprocess.Popen[bytes]) -> None:
    assert status(lab, "a.example") == 200
    before = len(events(lab, "revoke", "a.example"))
    lab.run(["nft", "flush", "ruleset"])
    lab.apply()
    assert until(lambda: len(events(lab, "revoke", "a.example")) > before)
    assert status(lab, "a.example") == 200
