"""The control plane, over its socket, by those who may and those who may not."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
import pytest

from deploy.demo.lab import ALICE, BOB, OTHER, Answer, Lab
from egress_policy.control import MOST_CONNECTIONS, OPENAPI, ROUTES, SIGN_IN
from tests.end_to_end.conftest import ALICE_FIELD, NAMES, POLICY, until

OWNER, OPERATOR = 61010, 61011
ASKING = {"X-Agent-Scope": "sandbox-alice;intent=careful"}
NEVER = {"X-Agent-Scope": "sandbox-bob;intent=careful"}
CONTROLLED = (
    POLICY.replace("{owner: alice@example.com}", f"{{owner: alice@example.com, owner_user: {OWNER}}}")
    .replace("default_scope: sandbox-bob}", "default_scope: sandbox-bob, approval: never}")
    .replace("  free:", "  careful:\n    unknown: {approval: required, ttl: 2h}\n  free:")
    + f"operators: [{OPERATOR}]\n"
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(*NAMES) as lab:
        lab.write_policy(CONTROLLED)
        lab.apply()
        yield lab


@pytest.fixture(scope="module", autouse=True)
def running(lab: Lab) -> list[subprocess.Popen[bytes]]:
    """The proxy that runs, the last of them."""
    return [lab.start_proxy()]


def stop(running: list[subprocess.Popen[bytes]]) -> None:
    running[-1].terminate()
    running[-1].wait(10)


@pytest.fixture(autouse=True)
def afresh(lab: Lab, running: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Every test starts, and ends, with nothing open and nothing paused."""
    yield
    for one in json.loads(ask(lab, "GET", "/v1/pauses").body):
        name = "all=true" if one["kind"] == "all" else f"{one['kind']}={one['name']}"
        ask(lab, "DELETE", f"/v1/pauses?{name}")
    ask(lab, "DELETE", "/v1/grants?all=true")


def ask(lab: Lab, method: str, path: str, body: object = None, uid: int = 0, *options: str) -> Answer:
    """Ask over the socket, as a user."""
    data = ["-d", json.dumps(body)] if body is not None else []
    socket = ["--unix-socket", str(lab.control_socket)]
    return lab.curl(f"http://localhost{path}", "-X", method, *socket, *data, *options, uid=uid)


def visit(lab: Lab, host: str = "a.example", uid: int = ALICE, field: Mapping[str, str] = ALICE_FIELD) -> str:
    """Ask for a page; return the denial's code, or `permit`."""
    answer = lab.curl(f"https://{host}/", uid=uid, headers=dict(field))
    return (
        str(answer.json()["code"]) if "problem+json" in answer.headers.get("content-type", "") else "permit"
    )


def held(lab: Lab) -> str:
    return lab.run(["nft", "list", "set", "inet", "egress-policy", "developer-sandbox"]).stdout


def grants(lab: Lab, uid: int = 0) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(ask(lab, "GET", "/v1/grants", uid=uid).body)
    return listed


def schema_of(method: str, path: str, status: str = "200") -> dict[str, Any]:
    document = json.loads(OPENAPI.read_text())
    responses = document["paths"][path][method]["responses"]
    (content,) = responses[status]["content"].values()
    return {**content["schema"], "components": document["components"]}


def test_the_description_names_every_route_and_method() -> None:
    """And no other."""
    described = {
        (path.replace("{id}", "([0-9a-f-]{4,36})"), method)
        for path, methods in json.loads(OPENAPI.read_text())["paths"].items()
        for method in methods
    }
    served = {
        (pattern.replace("\\", ""), method)
        for pattern, handler in (*ROUTES, SIGN_IN)
        for method in ("get", "post", "patch", "delete", "put")
        if method in vars(handler)
    }
    assert described == served


@pytest.mark.parametrize(
    ("method", "path", "described"),
    [
        ("get", "/v1/whoami", "/v1/whoami"),
        ("get", "/v1/grants", "/v1/grants"),
        ("get", "/v1/grants?scope=sandbox-alice", "/v1/grants"),
        ("get", "/v1/pauses", "/v1/pauses"),
        ("get", "/v1/approvals", "/v1/approvals"),
        ("get", "/v1/policy", "/v1/policy"),
        ("get", "/v1/openapi.json", "/v1/openapi.json"),
        ("delete", "/v1/grants?host=a.example", "/v1/grants"),
    ],
)
def test_answers_are_as_described(lab: Lab, method: str, path: str, described: str) -> None:
    visit(lab)
    assert visit(lab, field=ASKING) == "pending_approval"
    answer = ask(lab, method.upper(), path)
    assert answer.status == 200
    jsonschema.validate(answer.json(), schema_of(method, described))


def test_without_a_port_for_it_there_is_no_console(lab: Lab) -> None:
    refused = ask(lab, "POST", "/v1/console")
    assert (refused.status, "proxy.console_port" in refused.json()["detail"]) == (409, True)
    assert ask(lab, "POST", "/v1/console", uid=ALICE).status == 403


def test_who_asks_is_what_the_kernel_says(lab: Lab) -> None:
    roles = {uid: ask(lab, "GET", "/v1/whoami", uid=uid) for uid in (0, OPERATOR, OWNER, ALICE, OTHER)}
    assert [roles[uid].json().get("role") for uid in (0, OPERATOR, OWNER, ALICE)] == [
        "operator",
        "operator",
        "owner",
        "agent",
    ]
    assert roles[OTHER].status == 403


def test_each_sees_what_is_theirs(lab: Lab) -> None:
    visit(lab)
    assert visit(lab, "b.example", BOB, {}) == "permit"
    assert {one["scope"] for one in grants(lab)} == {"sandbox-alice", "sandbox-bob"}
    assert {one["scope"] for one in grants(lab, OWNER)} == {"sandbox-alice"}
    assert {one["scope"] for one in grants(lab, BOB)} == {"sandbox-bob"}


@pytest.mark.parametrize("uid", [0, OPERATOR, OWNER, ALICE], ids=["root", "operator", "owner", "agent"])
def test_whoever_may_revoke_does(lab: Lab, uid: int) -> None:
    visit(lab)
    (grant,) = grants(lab)
    answer = ask(lab, "DELETE", f"/v1/grants/{grant['id'][:8]}", uid=uid)
    assert answer.json() == {"revoked": [grant["id"]]}
    assert grant["id"] not in held(lab)
    assert [record["by"] for record in lab.audit() if record.get("id") == grant["id"] and "by" in record]


@pytest.mark.parametrize("uid", [BOB, OTHER], ids=["another agent", "nobody"])
def test_whoever_may_not_revoke_learns_nothing(lab: Lab, uid: int) -> None:
    visit(lab)
    (grant,) = grants(lab)
    assert ask(lab, "DELETE", f"/v1/grants/{grant['id']}", uid=uid).status in {403, 404}
    assert ask(lab, "GET", f"/v1/grants/{grant['id']}", uid=uid).status in {403, 404}
    ask(lab, "DELETE", "/v1/grants?all=true", uid=uid)
    assert grants(lab) == [grant | {"remaining": grants(lab)[0]["remaining"]}]


def test_a_grant_is_shortened_and_never_lengthened(lab: Lab) -> None:
    visit(lab)
    (grant,) = grants(lab)
    path = f"/v1/grants/{grant['id']}"
    assert ask(lab, "PATCH", path, {"remaining": 7200}).status == 409
    assert ask(lab, "PATCH", path, {"remaining": 5}, ALICE).status == 403
    shortened = ask(lab, "PATCH", path, {"remaining": 2}, OWNER)
    jsonschema.validate(shortened.json(), schema_of("patch", "/v1/grants/{id}"))
    assert grant["id"] in held(lab)
    assert until(lambda: grant["id"] not in held(lab) and not grants(lab))
    assert [one["event"] for one in lab.audit() if one.get("id") == grant["id"]] == [
        "grant",
        "grant",
        "expire",
    ]


def test_a_paused_agent_gets_nothing_out(lab: Lab) -> None:
    """Not to known-good either, which goes straight through the kernel for everybody else."""
    direct = "https://direct.example/"
    assert lab.curl(direct, uid=ALICE).status == 200
    visit(lab)
    paused = ask(lab, "POST", "/v1/pauses", {"agent": "alice"}, OPERATOR)
    jsonschema.validate(paused.json(), schema_of("post", "/v1/pauses"))
    assert (paused.json()["warning"], len(paused.json()["revoked"])) == (None, 1)
    assert visit(lab) == visit(lab, "named.example") == visit(lab, "direct.example") == "paused"
    assert visit(lab, "b.example", BOB, {}) == "permit"
    assert ask(lab, "DELETE", "/v1/pauses?agent=alice", uid=ALICE).status == 403
    assert ask(lab, "DELETE", "/v1/pauses?agent=alice", uid=OPERATOR).status == 200
    assert visit(lab) == visit(lab, "direct.example") == "permit"


def test_a_pause_outlives_the_proxy_and_apply(lab: Lab, running: list[subprocess.Popen[bytes]]) -> None:
    visit(lab)
    ask(lab, "POST", "/v1/pauses", {"scope": "sandbox-alice"}, OWNER)
    ask(lab, "POST", "/v1/pauses", {"agent": "bob"})
    assert visit(lab) == "paused"
    stop(running)
    running.append(lab.start_proxy())
    assert lab.egress_policy("apply", "--audit", lab.audit_file).returncode == 0
    assert visit(lab) == "paused"
    assert "61002" in lab.run(["nft", "list", "set", "inet", "egress-policy", "paused-uids"]).stdout
    assert visit(lab, "direct.example", BOB, {}) == "paused"
    assert {one["by"] for one in json.loads(ask(lab, "GET", "/v1/pauses").body)} == {"root", f"uid {OWNER}"}


def test_an_owner_does_not_resume_what_an_operator_paused(lab: Lab) -> None:
    ask(lab, "POST", "/v1/pauses", {"scope": "sandbox-alice"}, OPERATOR)
    assert ask(lab, "DELETE", "/v1/pauses?scope=sandbox-alice", uid=OWNER).status == 403
    assert visit(lab) == "paused"
    assert ask(lab, "POST", "/v1/pauses", {"scope": "sandbox-bob"}, OWNER).status == 403
    assert ask(lab, "POST", "/v1/pauses", {"all": True}, OWNER).status == 403


def test_an_owner_cannot_take_over_an_operator_s_pause_to_lift_it(lab: Lab) -> None:
    ask(lab, "POST", "/v1/pauses", {"scope": "sandbox-alice"}, OPERATOR)
    assert ask(lab, "POST", "/v1/pauses", {"scope": "sandbox-alice"}, OWNER).status == 200
    assert ask(lab, "DELETE", "/v1/pauses?scope=sandbox-alice", uid=OWNER).status == 403
    assert visit(lab) == "paused"


def test_a_pause_that_cannot_be_kept_holds_all_the_same(lab: Lab) -> None:
    folder = lab.audit_file.parent
    # What the proxy itself has just written must not lift it either.
    ask(lab, "POST", "/v1/pauses", {"agent": "bob"})
    ask(lab, "DELETE", "/v1/pauses?agent=bob")
    folder.chmod(0o550)
    try:
        paused = ask(lab, "POST", "/v1/pauses", {"agent": "alice"}).json()
        assert "cannot be written" in paused["warning"]
        time.sleep(1.0)
        assert visit(lab) == visit(lab, "direct.example") == "paused"
    finally:
        folder.chmod(0o750)


def test_a_proxy_that_cannot_be_asked_follows_what_root_pauses(lab: Lab) -> None:
    """Its socket may be gone, or there may be several proxies."""
    visit(lab)
    (grant,) = grants(lab)
    elsewhere = ("--audit", lab.audit_file, "--control", lab.folder / "nobody.sock")
    assert lab.egress_policy("pause", "--scope", "sandbox-alice", *elsewhere).returncode == 0
    assert until(lambda: visit(lab) == "paused")
    assert grant["id"] not in held(lab)
    # A file that is gone lifts nothing.
    lab.audit_file.with_name("paused.json").unlink()
    time.sleep(1.5)
    assert visit(lab) == "paused"
    ask(lab, "POST", "/v1/pauses", {"scope": "sandbox-alice"})
    assert lab.egress_policy("resume", "--scope", "sandbox-alice", *elsewhere).returncode == 0
    assert until(lambda: visit(lab) == "permit")


def test_root_is_not_led_elsewhere_by_a_link_in_the_proxy_s_folder(lab: Lab) -> None:
    """Whoever took the proxy over may put links there; root then writes with the proxy's rights."""
    folder, target = lab.audit_file.parent, lab.folder / "roots-own"
    target.write_text("")
    log = folder / "linked.jsonl"
    log.symlink_to(target)
    refused = lab.egress_policy("pause", "--all", "--audit", log, "--control", lab.folder / "nobody.sock")
    ask(lab, "POST", "/v1/pauses", {"all": True})
    assert (refused.returncode, target.read_text()) == (1, "")
    assert "Permission denied" in refused.stderr
    log.unlink()


def test_a_proxy_whose_socket_cannot_be_served_decides_all_the_same(
    lab: Lab, running: list[subprocess.Popen[bytes]]
) -> None:
    stop(running)
    lab.control_socket.unlink(missing_ok=True)
    lab.control_socket.write_text("in the way")
    try:
        running.append(lab.start_proxy(log="unasked"))
        assert lab.curl("https://a.example/", uid=ALICE, headers=ALICE_FIELD).status == 200
        assert "is no socket" in lab.output("unasked")
        assert running[-1].poll() is None
    finally:
        lab.control_socket.unlink()
        stop(running)
        running.append(lab.start_proxy())


def test_a_user_cannot_use_up_the_proxy_s_connections(lab: Lab) -> None:
    flood = """
import socket, sys, time
held = []
for _ in range(100):
    one = socket.socket(socket.AF_UNIX)
    one.connect(sys.argv[1])
    held.append(one)
time.sleep(1)
refused = 0
for one in held:
    one.setblocking(False)
    try:
        refused += one.recv(1) == b""
    except BlockingIOError:
        pass
print(refused)
"""
    done = lab.python(flood, str(lab.control_socket), uid=OTHER)
    assert int(done.stdout) == 100 - MOST_CONNECTIONS
    assert ask(lab, "GET", "/v1/grants").status == 200


@pytest.mark.parametrize("how", ["revoke", "pause"])
def test_a_download_is_cut_within_a_second(lab: Lab, how: str) -> None:
    visit(lab)
    command = ["curl", "-sS", "-N", "-H", "X-Agent-Scope: sandbox-alice", "https://a.example/slow-stream"]
    download = lab.start(command, uid=ALICE, log=f"{how}.out")
    assert until(lambda: bool(lab.output(f"{how}.out")), 10)
    assert download.poll() is None
    arguments = {"revoke": ["revoke", "--scope", "sandbox-alice"], "pause": ["pause", "--agent", "alice"]}[
        how
    ]
    done = lab.egress_policy(*arguments, "--control", lab.control_socket)
    returned = time.monotonic()
    assert done.returncode == 0, done.stderr
    assert until(lambda: download.poll() is not None, 1.0), f"{time.monotonic() - returned:.1f} s later"
    assert visit(lab) == {"revoke": "permit", "pause": "paused"}[how]


def pending(lab: Lab, uid: int = OWNER) -> list[dict[str, Any]]:
    waiting: list[dict[str, Any]] = ask(lab, "GET", "/v1/approvals", uid=uid).json()["pending"]
    return waiting


def test_an_approval_lets_the_next_try_succeed(lab: Lab) -> None:
    lab.add_name("ask.example")
    assert (
        visit(lab, "ask.example", field=ASKING)
        == visit(lab, "ask.example", field=ASKING)
        == "pending_approval"
    )
    (waiting,) = [one for one in pending(lab) if one["host"] == "ask.example"]
    assert waiting["count"] == 2
    path = f"/v1/approvals/{waiting['id']}"
    assert ask(lab, "POST", path, {"decision": "approve"}, ALICE).status == 403
    assert ask(lab, "POST", path, {"decision": "approve", "for": "forever"}, OWNER).status == 400
    approved = ask(lab, "POST", path, {"decision": "approve", "for": "15m"}, OWNER)
    jsonschema.validate(approved.json(), schema_of("post", "/v1/approvals/{id}"))
    assert visit(lab, "ask.example", field=ASKING) == visit(lab, "ask.example", field=ASKING) == "permit"
    (grant,) = [one for one in grants(lab) if one["host"] == "ask.example"]
    assert 0 < grant["remaining"] <= 900
    (record,) = [one for one in lab.audit() if one["event"] == "approval" and one["id"] == waiting["id"]]
    assert (record["by"], record["outcome"], record["agent"]) == (f"uid {OWNER}", "permit", "alice")


def test_an_approval_for_one_request_is_for_one(lab: Lab) -> None:
    lab.add_name("once.example")
    assert visit(lab, "once.example", field=ASKING) == "pending_approval"
    (waiting,) = [one for one in pending(lab) if one["host"] == "once.example"]
    ask(lab, "POST", f"/v1/approvals/{waiting['id']}", {"decision": "approve", "for": "once"})
    assert visit(lab, "once.example", field=ASKING) == "permit"
    assert visit(lab, "once.example", field=ASKING) == "pending_approval"


def test_what_was_declined_stays_so(lab: Lab) -> None:
    lab.add_name("declined.example")
    assert visit(lab, "declined.example", field=ASKING) == "pending_approval"
    (waiting,) = [one for one in pending(lab) if one["host"] == "declined.example"]
    ask(lab, "POST", f"/v1/approvals/{waiting['id']}", {"decision": "decline", "for": "1h"})
    assert visit(lab, "declined.example", field=ASKING) == "approval_declined"
    assert not [one for one in pending(lab) if one["host"] == "declined.example"]


def test_an_approval_outlives_the_proxy_but_not_one_for_a_request(
    lab: Lab, running: list[subprocess.Popen[bytes]]
) -> None:
    for host, duration in (("kept.example", "1h"), ("single.example", "once")):
        lab.add_name(host)
        assert visit(lab, host, field=ASKING) == "pending_approval"
        (waiting,) = [one for one in pending(lab) if one["host"] == host]
        ask(lab, "POST", f"/v1/approvals/{waiting['id']}", {"decision": "approve", "for": duration})
    stop(running)
    running.append(lab.start_proxy())
    assert visit(lab, "kept.example", field=ASKING) == "permit"
    assert visit(lab, "single.example", field=ASKING) == "pending_approval"


def test_an_unattended_agent_never_asks(lab: Lab) -> None:
    assert visit(lab, "a.example", BOB, NEVER) == "approval_required"
    assert not [one for one in pending(lab, 0) if one["agent"] == "bob"]


def test_revoking_takes_the_approval_too(lab: Lab) -> None:
    lab.add_name("again.example")
    visit(lab, "again.example", field=ASKING)
    (waiting,) = [one for one in pending(lab) if one["host"] == "again.example"]
    ask(lab, "POST", f"/v1/approvals/{waiting['id']}", {"decision": "approve"})
    assert visit(lab, "again.example", field=ASKING) == "permit"
    ask(lab, "DELETE", "/v1/grants?host=again.example")
    assert visit(lab, "again.example", field=ASKING) == "pending_approval"


HOSTILE = {
    "no JSON": ("PATCH", "/v1/grants/0000", "{", 400),
    "too long": ("POST", "/v1/pauses", "x" * 20000, 400),
    "unknown key": ("POST", "/v1/pauses", '{"agent": "alice", "x": 1}', 400),
    "two at once": ("POST", "/v1/pauses", '{"agent": "alice", "all": true}', 400),
    "an unknown agent": ("POST", "/v1/pauses", '{"agent": "mallory"}', 404),
    "unknown parameter": ("GET", "/v1/grants?owner=x", None, 400),
    "repeated parameter": ("GET", "/v1/grants?scope=a&scope=b", None, 400),
    "nothing chosen": ("DELETE", "/v1/grants", None, 400),
    "a strange path": ("GET", "/../etc/passwd", None, 404),
    "a strange method": ("TRACE", "/v1/grants", None, 405),
    "no UTF-8": ("POST", "/v1/pauses", '{"agent": "\udcff"}', 400),
    "deep nesting": ("POST", "/v1/pauses", "[" * 5000, 400),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_requests_are_refused_in_words(lab: Lab, name: str) -> None:
    method, path, body, status = HOSTILE[name]
    data = () if body is None else ("--data-binary", body)
    answer = ask(lab, method, path, None, 0, "--path-as-is", *data)
    assert answer.status == status
    if name != "too long":
        jsonschema.validate(answer.json(), schema_of("get", "/v1/whoami", "default"))
    assert "Traceback" not in lab.output("proxy")


def test_a_web_page_gets_nothing(lab: Lab) -> None:
    assert ask(lab, "GET", "/v1/grants", None, 0, "-H", "Origin: http://evil.example").status == 403


def test_kernel_proxy_and_log_agree_after_kills_at_any_moment(
    lab: Lab, running: list[subprocess.Popen[bytes]]
) -> None:
    """Grants and revocations go on while the proxy is killed; afterwards nothing is open that only one of them knows."""
    order = random.Random(2)
    hosts = ("a.example", "b.example")
    for _ in range(6):
        work = [
            lab.start(
                ["curl", "-s", "--max-time", "5", "-H", "X-Agent-Scope: sandbox-alice", f"https://{host}/"],
                uid=ALICE,
            )
            for host in hosts
        ]
        if order.random() < 0.7:
            time.sleep(order.random() * 0.1)
            ask(lab, "DELETE", f"/v1/grants?host={order.choice(hosts)}")
        time.sleep(order.random() * 0.1)
        running[-1].kill()
        running[-1].wait(10)
        for one in work:
            one.wait(10)
        running.append(lab.start_proxy())
    in_kernel = {element.split('"')[1].split()[0] for element in held(lab).split(",") if '"' in element}
    in_proxy = {one["id"] for one in grants(lab)}
    begun = {one["id"] for one in lab.audit() if one["event"] == "grant"}
    ended = {one["id"] for one in lab.audit() if one["event"] in {"expire", "revoke"}}
    assert in_kernel == in_proxy
    assert in_proxy <= begun - ended
    verified = lab.egress_policy("audit", "--audit", lab.audit_file, "--verify", "--journal", "/dev/null")
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize("uid", [ALICE, OWNER, OTHER], ids=["agent", "owner", "nobody"])
def test_grants_are_shown_to_whoever_may_see_them(lab: Lab, uid: int) -> None:
    """Who is not root cannot read the kernel's sets, and asks the proxy."""
    visit(lab)
    command = [sys.executable, "-m", "egress_policy", "grants", "--json"]
    shown = lab.run([*command, "--control", lab.control_socket, "--audit", lab.audit_file], uid=uid)
    if uid == OTHER:
        assert (shown.returncode, "no operator" in shown.stderr) == (1, True)
    else:
        (grant,) = json.loads(shown.stdout)
        assert list(grant) == ["id", "scope", "agent", "host", "addresses", "port", "expires", "remaining"]
        assert grant["agent"] == "alice"


def test_the_commands_do_without_a_proxy(lab: Lab, running: list[subprocess.Popen[bytes]]) -> None:
    """Root takes back and pauses in the kernel; the proxy follows when it is back."""
    visit(lab)
    (grant,) = grants(lab)
    stop(running)
    try:
        common = ("--audit", lab.audit_file, "--control", lab.control_socket)
        revoked = lab.egress_policy("revoke", grant["id"][:8], *common)
        assert (revoked.returncode, grant["id"] in revoked.stdout) == (0, True), revoked.stderr
        assert grant["id"] not in held(lab)
        paused = lab.egress_policy("pause", "--agent", "alice", *common)
        assert paused.returncode == 0, paused.stderr
        assert "61001" in lab.run(["nft", "list", "set", "inet", "egress-policy", "paused-uids"]).stdout
    finally:
        running.append(lab.start_proxy())
    assert visit(lab) == "paused"
    assert not grants(lab)
    resumed = lab.egress_policy("resume", "--agent", "alice", *common)
    assert resumed.returncode == 0, resumed.stderr
    assert visit(lab) == "permit"


@pytest.mark.parametrize(
    "arguments",
    [("revoke",), ("revoke", "x", "--all"), ("pause",), ("pause", "--all", "--scope", "x"), ("approve",)],
)
def test_wrong_usage_is_one_line(lab: Lab, arguments: tuple[str, ...]) -> None:
    done = lab.egress_policy(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_the_approval_commands(lab: Lab) -> None:
    lab.add_name("cli.example")
    visit(lab, "cli.example", field={"X-Agent-Scope": 'sandbox-alice;intent=careful;reason="[red]x"'})
    control = ("--control", lab.control_socket)
    listed = lab.egress_policy("approvals", *control)
    assert "cli.example:443" in listed.stdout
    assert "[red]x" in listed.stdout
    (waiting,) = [one for one in pending(lab) if one["host"] == "cli.example"]
    approved = lab.egress_policy("approve", waiting["id"][:8], "--for", "once", *control)
    assert approved.returncode == 0, approved.stderr
    assert lab.egress_policy("approve", waiting["id"][:8], *control).returncode == 1
    assert visit(lab, "cli.example", field=ASKING) == "permit"


def test_everybody_may_connect(lab: Lab) -> None:
    """What a peer may do, its uid tells."""
    assert lab.control_socket.is_socket()
    assert lab.control_socket.stat().st_mode & 0o777 == 0o666
