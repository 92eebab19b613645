"""In a pod with a mesh: two redirects for one packet, and nothing gets around either way."""

import sys
from collections.abc import Callable, Iterator

import pytest

from tests.containers import shown
from tests.end_to_end.conftest import until
from tests.kubernetes.conftest import UNKNOWN
from tests.kubernetes.pod import Pod, fetch

ENVOY = 1337
ENVOY_PORT = 15001
# What istio-init's iptables (of the nft kind) makes of TCP that goes out: the same hook and priority as ours.
ISTIO = f"""
table ip nat {{
	chain OUTPUT {{
		type nat hook output priority -100; policy accept;
		meta l4proto tcp jump ISTIO_OUTPUT
	}}
	chain ISTIO_OUTPUT {{
		meta skuid {ENVOY} return
		ip daddr 127.0.0.1 return
		meta l4proto tcp redirect to :{ENVOY_PORT}
	}}
}}
"""
# Stands for Envoy: takes whatever is redirected to it, says that it did, and connects on.
RELAY = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    client, _ = listener.accept()
    print("taken", flush=True)
    try:
        socket.create_connection((sys.argv[2], 80), 2).close()
        print("connected", flush=True)
    except OSError as error:
        print(f"refused {error}", flush=True)
    client.close()
"""


@pytest.fixture(scope="module")
def mesh(running: Pod) -> Pod:
    """The pod with something that listens where Envoy does."""
    lab = running.lab
    argv = [sys.executable, "-c", RELAY, str(ENVOY_PORT), lab.addresses(UNKNOWN)[0]]
    relay = lab.start(argv, uid=ENVOY, log="envoy")
    lab.wait(relay, "envoy", lambda: "ready" in lab.output("envoy"))
    return running


@pytest.fixture
def nft(mesh: Pod) -> Iterator[Callable[[str], None]]:
    """Loads rules into the pod's network namespace."""

    def load(rules: str) -> None:
        done = mesh.lab.run(["nft", "-f", "-"], stdin=rules)
        assert done.returncode == 0, shown(done)

    yield load
    load("table ip nat\ndelete table ip nat\n")


def connections(pod: Pod) -> int:
    """How many connections have reached the origins."""
    return sum(record["event"] == "connection" for record in pod.lab.arrivals())


def test_a_mesh_that_came_later_takes_the_agents_packets_and_they_are_refused(
    mesh: Pod, nft: Callable[[str], None]
) -> None:
    """Of two hooks of one priority the later one runs first. The agent may not reach Envoy's ports: it is closed."""
    nft(ISTIO)
    assert fetch(mesh, f"http://{UNKNOWN}/", "-4") == "exit 7"
    assert "taken" not in mesh.lab.output("envoy")


def test_a_mesh_that_was_there_first_never_sees_them(mesh: Pod, nft: Callable[[str], None]) -> None:
    """As with Istio's CNI plugin, or its init container before ours: our redirect wins, and the policy decides."""
    done = mesh.lab.run(["nft", "delete", "table", "inet", "egress-policy"])
    assert done.returncode == 0, shown(done)
    nft(ISTIO)
    done = mesh.run("ruleset")
    assert done.returncode == 0, shown(done)
    assert fetch(mesh, f"http://{UNKNOWN}/", "-4") == "200"
    assert "taken" not in mesh.lab.output("envoy")


def test_what_envoy_connects_to_is_held_to_the_policy_too(mesh: Pod) -> None:
    """Its uid is one of the policy's: were it to connect for an agent, that would be an agent's connection."""
    lab = mesh.lab
    before = connections(mesh)
    # Root is no agent, and may ask Envoy.
    lab.run(["curl", "-sS", "--max-time", "5", f"http://127.0.0.1:{ENVOY_PORT}/"])
    assert until(lambda: "connected" in lab.output("envoy"), 10), lab.output("envoy")
    assert connections(mesh) == before  # connected to the proxy, to which it said nothing
