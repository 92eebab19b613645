"""The proxy broken, misconfigured, or without its addon."""

import ast
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from deploy.demo.lab import NAMESERVERS
from deploy.demo.lab import PROXY as PROXY_UID
from deploy.demo.namespaces import ROOT
from tests.bypass.agent import Send
from tests.bypass.attempts import BOTH, KERNEL, PROXY, Barrier, attempt
from tests.bypass.world import World, until

# What stock mitmproxy makes of an addon that means to deny: nothing, once it raises or is gone.
NAIVE = """
from mitmproxy import http

def requestheaders(flow: http.HTTPFlow) -> None:
    {}

def dns_request(flow) -> None:
    {}
"""
DENIES = NAIVE.format("flow.response = http.Response.make(403)", "flow.response = flow.request.fail(5)")
RAISES = NAIVE.format("raise RuntimeError", "raise RuntimeError")
# Those whose refusal stands in their first line and is cleared in the last, each with the status that it leads to;
# the rest decide nothing.
DECIDING = {
    "client_connected": 0,
    "next_layer": 0,
    "requestheaders": 500,
    "server_connect": 502,
    "dns_request": 0,
}
LIFE = ("load", "configure", "running", "done")


@pytest.fixture
def world(request: pytest.FixtureRequest, worlds: Callable[[Barrier], World]) -> World:
    """A world in which each test starts the proxy itself."""
    world = worlds(request.param)
    world.stop_proxy()
    return world


def copied_addon(world: World, name: str) -> Path:
    """Return the script of a copy of addons/, or where the product is not to stand one that denies everything."""
    folder = world.lab.folder / name
    if PROXY in world.barriers:
        shutil.copytree(ROOT / "addons", folder)
    else:
        folder.mkdir()
        (folder / "scope.py").write_text(DENIES)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder / "scope.py"


@contextmanager
def running(world: World, script: Path, log: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the proxy from a script of one's own."""
    if PROXY in world.barriers:
        proxy = world.lab.start_proxy(script=script, log=log)
    else:
        # Lazy, or it would fail before it asks the script, where the kernel refuses it the destination.
        lazy = ("--set", "connection_strategy=lazy")
        proxy = world.start_bare_proxy("-s", str(script), *lazy, log=log)
    try:
        yield proxy
    finally:
        proxy.kill()
        proxy.wait(10)


def hooks(text: str) -> dict[str, list[int]]:
    """List the lines after which each hook may raise: a deciding one after its refusal, any other from its start."""
    (scope,) = (one for one in ast.parse(text).body if isinstance(one, ast.ClassDef) and one.name == "Scope")
    found = {}
    for method in scope.body:
        if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) or method.name.startswith("_"):
            continue
        statements = method.body
        if method.name in DECIDING:
            refusal = next(number for number, one in enumerate(statements) if isinstance(one, ast.Assign))
            found[method.name] = [one.end_lineno or 0 for one in statements[refusal:-1]]
        elif method.name not in LIFE:
            found[method.name] = [statements[0].end_lineno or 0]
    return found


def make_raise(script: Path, switch: Path) -> dict[str, list[int]]:
    """Have each hook raise where a file says so, and say that it did."""
    lines = script.read_text().split("\n")
    found = hooks(script.read_text())
    for name, places in found.items():
        for place in places:
            lines[place - 1] += f'\n        _raise_at("{name} {place}")'
    raising = (
        "def _raise_at(place):",
        "    import pathlib",
        f"    if pathlib.Path({str(switch)!r}).read_text() == place:",
        "        print('raised at', place, file=sys.stderr, flush=True)",
        "        raise RuntimeError(place)",
        "",
    )
    (start,) = (number for number, line in enumerate(lines) if line.startswith("class Scope"))
    lines[start:start] = raising
    script.write_text("\n".join(lines))
    switch.write_text("nowhere")
    switch.chmod(0o644)
    return found


@attempt(
    1,
    "Make a hook of the addon raise",
    outcome="denied: each hook that decides refuses in its first line, and clears that in its last",
    barriers=BOTH,
    works_without=True,
)
def test_a_hook_that_raises(world: World) -> None:
    """The addon's, wherever in each hook that may be; mitmproxy itself logs it and goes on."""
    script = copied_addon(world, "raising")
    host, marker = world.raw_name(), world.marker()
    if PROXY not in world.barriers:
        script.write_text(RAISES)
        with running(world, script, "raising"):
            world.send(host, 80, world.get(host, f"/{marker}"))
            assert "RuntimeError" in world.lab.output("raising")
            if world.barriers:
                world.open("fence.example", 80)
            world.nothing_reached(host, marker=marker)
        return
    switch = world.lab.folder / "raise-at"
    found = make_raise(script, switch)
    assert set(found) > DECIDING.keys()
    with running(world, script, "raising"):
        (first, *_) = world.lab.addresses(host)
        for name in DECIDING.keys() - {"dns_request"}:
            for place in found[name]:
                switch.write_text(f"{name} {place}")
                (reply,) = world.send([first], 443, world.get(host, f"/{marker}{place}"), tls=host)
                assert (name, place, reply.status) == (name, place, DECIDING[name])
                assert f"raised at {name} {place}" in world.lab.output("raising")
        # Hooks that decide nothing, while what is asked for is not allowed.
        for name in found.keys() - DECIDING.keys():
            switch.write_text(f"{name} {found[name][0]}")
            foreign = world.get(host, f"/{marker}{name}", scope="sandbox-bob")
            (reply,) = world.send([first], 443, foreign, tls=host)
            assert reply.status in {0, 403}, (name, reply)
        switch.write_text("nowhere")
        world.nothing_reached(marker=marker)
        (reply,) = world.send([first], 443, world.get(host, "/"), tls=host)
        assert reply.status == 200, "the copy works, where nothing raises"


def lose(world: World, change: str) -> None:
    """Break or delete the script under a running proxy, and then try to get out."""
    name = change.replace(" ", "-")
    script = copied_addon(world, name)
    host, marker = world.raw_name(), world.marker()
    with running(world, script, name) as proxy:
        if PROXY not in world.barriers:
            assert {reply.status for reply in world.send(host, 80, world.get(host, "/"))} == {403}
        if change == "deleted":
            script.unlink()
        else:
            script.write_text("def (:\n")
            later = script.stat().st_mtime + 5
            os.utime(script, (later, later))
        if PROXY in world.barriers:
            assert proxy.wait(10) != 0
            replies = world.send(host, 80, world.get(host, f"/{marker}"))
            assert {reply.end for reply in replies} == {"ECONNREFUSED"}
            assert [world.lab.packets_to(address) for address in world.lab.addresses(host)] == [0, 0]
            assert world.arrivals(marker) == []
            return
        if world.barriers:
            world.open("fence.example", 80)
        # Without the addon the naive proxy forwards, as soon as it has noticed.
        assert until(lambda: 403 not in {one.status for one in world.send(host, 80, world.get(host, "/"))})
        world.send(host, 80, world.get(host, f"/{marker}"))
        world.nothing_reached(host, marker=marker)


@attempt(
    2,
    "Break the addon's script while the proxy runs",
    outcome="the proxy ends; agents are refused",
    barriers=BOTH,
    works_without=True,
)
def test_the_script_broken(world: World) -> None:
    lose(world, "syntax error")


@attempt(
    3,
    "Delete the addon's script while the proxy runs",
    outcome="the proxy ends; agents are refused",
    barriers=BOTH,
    works_without=True,
)
def test_the_script_deleted(world: World) -> None:
    lose(world, "deleted")


WRONG_OPTIONS = {
    "misspelled": (("--set", "scope_polcy=x"), "option scope_polcy does not exist"),
    "of the wrong type": (("--set", "listen_port=60s"), "listen_port"),
    "given twice": (("--set", "scope_audit=-"), "is an option given twice?"),
    "unsafe": (("--set", "ignore_hosts=good"), "option ignore_hosts may not be set"),
    "without verification": (("--set", "ssl_insecure=true"), "option ssl_insecure may not be set"),
    "another mode": (("--mode", "socks5"), "option mode may not be set"),
}


@attempt(
    4,
    "Start the proxy with an option misspelled, unsafe, or of the wrong type",
    outcome="it does not start, and says why",
    barriers=PROXY,
    works_without=True,
)
def test_an_option_that_is_wrong(world: World) -> None:
    lab, host, marker = world.lab, world.raw_name(), world.marker()
    if PROXY not in world.barriers:
        # To mitmproxy a misspelled option is one that some script may yet declare: it runs, and passes all on.
        proxy = world.start_bare_proxy("--set", "scope_polcy=x", log="misspelled")
        world.send(host, 80, world.get(host, f"/{marker}"))
        world.nothing_reached(host, marker=marker)
        proxy.kill()
        proxy.wait(10)
        return
    started = {
        log: lab.start(lab.proxy_command(*options), uid=PROXY_UID, caps=("net_admin",), log=log)
        for log, (options, _) in WRONG_OPTIONS.items()
    }
    for log, proxy in started.items():
        assert proxy.wait(30) != 0, log
        assert WRONG_OPTIONS[log][1] in lab.output(log)
        assert "Traceback" not in lab.output(log)


@attempt(
    5,
    "Run the proxy without the addon",
    outcome="the kernel refuses whatever it sends",
    barriers=KERNEL,
    works_without=True,
)
def test_no_addon(world: World) -> None:
    proxy = world.start_bare_proxy(log="no-addon")
    try:
        if world.barriers:
            world.open("fence.example", 80)
        host, marker = world.raw_name(), world.marker()
        request = world.get(host, f"/{marker}")
        replies = world.send(host, 80, request) + world.send(host, 443, request, tls=host)
        world.nothing_reached(host, marker=marker)
        assert {reply.status for reply in replies} <= ({0, 502} if world.barriers else {200})
    finally:
        proxy.kill()
        proxy.wait(10)


@attempt(
    68,
    "Make the hook for DNS raise",
    outcome="the query fails, and none leaves the host",
    barriers=PROXY,
    works_without=True,
)
def test_the_hook_for_dns_raises(world: World) -> None:
    script, marker = copied_addon(world, "raising-dns"), world.marker()
    queries = [
        dns.message.make_query(f"{marker}.example", "A"),
        dns.message.make_query("direct.example", "A"),
    ]
    sends = [
        Send(NAMESERVERS[0], 53, query.to_wire().decode("latin-1"), kind="udp", patience=2)
        for query in queries
    ]
    if PROXY not in world.barriers:
        script.write_text(RAISES)
        with running(world, script, "raising-dns"):
            world.make(sends)
            assert marker in str(world.lab.queries())
        return
    switch = world.lab.folder / "raise-at"
    places = make_raise(script, switch)["dns_request"]
    assert places
    with running(world, script, "raising-dns"):
        for place in places:
            switch.write_text(f"dns_request {place}")
            for reply in world.make(sends):
                assert dns.message.from_wire(reply.answer.encode("latin-1")).rcode() == dns.rcode.SERVFAIL
        assert marker not in str(world.lab.queries())
