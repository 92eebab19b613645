"""Programs that agents write or start: Python's clients, Node, Java, WebSocket, gRPC, events, a browser."""

import json
import sys

import pytest

from deploy.demo.lab import ALICE, BOB
from tests.clients.conftest import ECHO, FIELD, FILES, GRPC, World, succeeded
from tests.clients.origin import ECHO as SERVICE

# Each is given a URL and a scope, and prints the answer's body.
PYTHON = {
    "requests": "import requests; print(requests.get(url, headers=fields).text)",
    "httpx": "import httpx; print(httpx.get(url, headers=fields).text)",
    "httpx with HTTP/2": "import httpx; print(httpx.Client(http2=True).get(url, headers=fields).text)",
    "urllib": "import urllib.request as r; print(r.urlopen(r.Request(url, headers=fields)).read().decode())",
    "aiohttp": """
import aiohttp, asyncio
async def main():
    async with aiohttp.request("GET", url, headers=fields) as answer:
        print(await answer.text())
asyncio.run(main())""",
}
ARGUMENTS = "import sys; url, fields = sys.argv[1], {'X-Agent-Scope': sys.argv[2]}\n"


def python(world: World, code: str, *arguments: str, kit: bool = True) -> str:
    return succeeded(world.run(sys.executable, "-c", code, *arguments, uid=ALICE, kit=kit))


@pytest.mark.parametrize("library", PYTHON)
def test_python(world: World, library: str) -> None:
    path = f"/{library.replace(' ', '-')}"
    printed = python(world, ARGUMENTS + PYTHON[library], f"https://{ECHO}{path}", FIELD)
    answer = json.loads(printed)
    assert (answer["path"], answer["http"]) == (path, "2" if library.endswith("HTTP/2") else "1.1")
    assert "x-agent-scope" not in world.fields(path)


SDKS = {
    "anthropic": """
from anthropic import Anthropic
client = Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
print(client.messages.create(model="any", max_tokens=1, messages=[{"role": "user", "content": "hi"}]).content[0].text)""",
    "openai": """
from openai import OpenAI
client = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
answer = client.chat.completions.create(model="any", messages=[{"role": "user", "content": "hi"}])
print(answer.choices[0].message.content)""",
}


@pytest.mark.parametrize(("sdk", "path"), [("anthropic", "/v1/messages"), ("openai", "/v1/chat/completions")])
def test_a_model_s_sdk_sends_the_scope_by_its_variable(world: World, sdk: str, path: str) -> None:
    """Nothing in the code knows of it. Alice has no default scope: without the field, this is denied."""
    assert python(world, f"import sys{SDKS[sdk]}", f"https://{FILES}") == "hello\n"
    assert world.requests(path)
    assert "x-agent-scope" not in world.fields(path)
    (decision,) = [one for one in world.lab.audit() if one["event"] == "decision" and one.get("path") == path]
    assert (decision["scope"], decision["intent"]) == ("sandbox-alice", "develop")


NODE = """
const [url, scope] = process.argv.slice(1);
fetch(url, {headers: {"X-Agent-Scope": scope}}).then(answer => answer.text()).then(console.log);
"""


def test_node_fetch(world: World) -> None:
    done = world.run("node", "-e", NODE, f"https://{ECHO}/node", FIELD, uid=ALICE)
    assert json.loads(succeeded(done))["path"] == "/node"
    assert "x-agent-scope" not in world.fields("/node")


JAVA = """
import java.net.URI;
import java.net.http.*;

class Fetch {
    public static void main(String[] given) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(given[0])).header("X-Agent-Scope", given[1]).build();
        System.out.print(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }
}
"""


def test_java(world: World) -> None:
    """From its source file (JEP 330), with the trust store in PKCS #12."""
    source = world.home(ALICE) / "Fetch.java"
    source.write_text(JAVA)
    done = world.run("java", source.name, f"https://{ECHO}/java", FIELD, uid=ALICE)
    assert json.loads(succeeded(done))["path"] == "/java"
    assert "x-agent-scope" not in world.fields("/java")


WEBSOCKET = """
import sys
from websockets.sync.client import connect
with connect(sys.argv[1], additional_headers={"X-Agent-Scope": sys.argv[2]}) as socket:
    for message in ("text", b"bytes", "x" * 300_000):
        socket.send(message)
        assert socket.recv() == message
print("closed", socket.close_code)
"""


def test_a_websocket(world: World) -> None:
    assert python(world, WEBSOCKET, f"wss://{FILES}/ws", FIELD) == "closed 1000\n"
    assert "x-agent-scope" not in world.fields("/ws")


EVENTS = """
import sys, httpx
base, fields = sys.argv[1], {"X-Agent-Scope": sys.argv[2]}
with httpx.stream("GET", f"{base}/events", headers=fields) as events:
    for line in events.iter_lines():
        print(line)
        if line == "data: first":
            httpx.post(f"{base}/events/next", headers=fields)
"""


def test_events_arrive_as_they_are_sent(world: World) -> None:
    """The origin sends the second when the client has seen the first."""
    printed = python(world, EVENTS, f"https://{FILES}", FIELD)
    assert printed.split("\n\n") == ["data: first", "data: second", ""]
    assert "x-agent-scope" not in world.fields("/events")


CALLS = """
import queue, sys, grpc
target, service, scope = sys.argv[1:]
fields = (("x-agent-scope", scope),)
channel = grpc.secure_channel(target, grpc.ssl_channel_credentials())
answer, call = channel.unary_unary(f"{service}/Once").with_call(b"one", metadata=fields, timeout=30)
print(answer, dict(call.trailing_metadata())["sent-after"])
print(list(channel.unary_stream(f"{service}/Thrice")(b"more", metadata=fields, timeout=30)))
answers = queue.SimpleQueue()
def messages():
    for number in range(3):
        yield str(number).encode()
        answers.get(timeout=30)
heard = []
for message in channel.stream_stream(f"{service}/Talk")(messages(), metadata=fields, timeout=30):
    heard.append(message)
    answers.put(message)
print(heard)
try:
    print(list(channel.stream_stream(f"{service}/Talk")(iter([b"fail"]), metadata=fields, timeout=30)))
except grpc.RpcError as error:
    print(error.code().name, error.details())
"""


def test_grpc(world: World) -> None:
    """One answer, a stream of them, and a talk in which each message waits for the other's; then a failure's status."""
    assert python(world, CALLS, f"{GRPC}:443", SERVICE, FIELD).splitlines() == [
        "b'one' the body",
        "[b'more', b'more', b'more']",
        "[b'0', b'1', b'2']",
        "FAILED_PRECONDITION as asked",
    ]
    for call in ("Once", "Thrice", "Talk"):
        assert world.requests(f"{SERVICE}/{call}")
        assert "x-agent-scope" not in world.fields(f"{SERVICE}/{call}")


BROWSE = (
    "--headless",
    "--no-sandbox",  # its own needs user namespaces, which an agent without new privileges may not have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--user-data-dir=profile",
    "--dump-dom",
)
CERTIFICATE_REFUSED = "ERR_CERT_AUTHORITY_INVALID"


def test_chromium(world: World) -> None:
    """It reads no variable, but a database in the user's home (NSS): before and after the step that `env` prints."""
    url = f"https://{ECHO}/chromium"
    refused = world.run("chromium", *BROWSE, url)
    assert not world.requests("/chromium")
    assert CERTIFICATE_REFUSED in refused.stdout + refused.stderr
    (step,) = [line.partition(": ")[2] for line in world.printed[BOB].splitlines() if "certutil" in line]
    succeeded(world.run("sh", "-c", step))
    shown = succeeded(world.run("chromium", *BROWSE, url))
    assert '"path": "/chromium"' in shown
    assert world.requests("/chromium")
