"""Bodies, WebSockets and streams, against an origin that keeps every byte it gets and may answer as it should not."""

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h2.config
import h2.connection
import pytest

from deploy.demo.certificates import Authority
from deploy.demo.json_lines import read_log
from deploy.demo.lab import ALICE, Lab
from tests.end_to_end import raw_origin
from tests.end_to_end.conftest import NAMES, POLICY, until

HOST = "raw.example"
LIMIT = 64 * 1024
INTENTS = """\
  brief:
    unknown: {max_body: 48KiB}  # less than HTTP/2 lets a client send before it hears from the server
  short:
    unknown: {ttl: 1s}
"""
# Its TLS port speaks HTTP/1.1 only; its addresses are those of no other origin.
TO_RAW_ORIGIN = """
table inet raw-origin {{
	chain arriving {{
		type nat hook prerouting priority -100; policy accept;
		ip daddr {ipv4} tcp dport 80 redirect to :{http}
		ip daddr {ipv4} tcp dport 443 redirect to :{tls}
	}}
}}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The policy in force, the proxy running, and the raw origin at the addresses of `raw.example`."""
    with Lab(*NAMES, HOST) as lab:
        lab.write_policy(POLICY + INTENTS)
        lab.apply()
        authority = Authority()
        leaf = lab.folder / "internet" / "raw.pem"
        authority.write_leaf(HOST, leaf)
        with lab.internet_ca.open("ab") as trusted:
            trusted.write(authority.certificate_pem())
        ipv4 = lab.addresses(HOST)[0]
        lab.add_name(HOST, ipv4)
        redirected = TO_RAW_ORIGIN.format(ipv4=ipv4, http=raw_origin.HTTP_PORT, tls=raw_origin.TLS_PORT)
        loaded = lab.run(["nft", "-f", "-"], ns="net", stdin=redirected)
        assert loaded.returncode == 0, loaded.stderr
        log = lab.folder / "internet" / "raw.jsonl"
        server = lab.start(
            [sys.executable, "-m", "tests.end_to_end.raw_origin", log, leaf], ns="net", log="raw-origin"
        )
        lab.wait(server, "raw-origin", lambda: "ready" in lab.output("raw-origin"))
        lab.start_proxy()
        yield lab


def received(lab: Lab, path: str) -> str:
    """What the raw origin received on the connections that a path was asked for on."""
    data: dict[int, str] = {}
    for record in read_log(lab.folder / "internet" / "raw.jsonl"):
        data[record["connection"]] = data.get(record["connection"], "") + record["data"]
    return "".join(one for one in data.values() if f" {path} " in one)


def packets(lab: Lab) -> int:
    return lab.packets_to(lab.addresses(HOST)[0])


# HTTP/2 as an agent would write it that minds no rule: frames as given, one request after the other.
HTTP2 = """
import json, socket, ssl, sys
import h2.config, h2.connection, h2.events, h2.exceptions
name, address, given = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
context = ssl.create_default_context()
context.set_alpn_protocols(["h2"])
sock = context.wrap_socket(socket.create_connection((address, 443), timeout=3), server_hostname=name)
state = h2.connection.H2Connection(h2.config.H2Configuration(
    header_encoding="latin-1", validate_outbound_headers=False, normalize_outbound_headers=False))
state.initiate_connection()
answers = {}
try:
    for request in given:
        stream = state.get_next_available_stream_id()
        answers[stream] = {"status": 0, "body": ""}
        bodies, trailers = request.get("body", []), request.get("trailers")
        state.send_headers(stream, request["headers"], end_stream=not bodies and not trailers)
        for number, body in enumerate(bodies, 1):
            state.send_data(stream, body.encode("latin-1"), end_stream=number == len(bodies) and not trailers)
        if trailers:
            state.send_headers(stream, trailers, end_stream=True)
    sock.sendall(state.data_to_send())
    waiting = set(answers)
    while waiting and (data := sock.recv(65536)):
        for event in state.receive_data(data):
            match event:
                case h2.events.ResponseReceived():
                    answers[event.stream_id]["status"] = int(dict(event.headers)[":status"])
                case h2.events.DataReceived():
                    answers[event.stream_id]["body"] += event.data.decode("latin-1")
                case h2.events.StreamEnded() | h2.events.StreamReset():
                    waiting.discard(event.stream_id)
                case h2.events.ConnectionTerminated():
                    waiting = set()
        sock.sendall(state.data_to_send())
except OSError:
    pass
print(json.dumps(list(answers.values())))
"""
type Headers = list[tuple[str, str]]


def http2(lab: Lab, *requests: dict[str, object], host: str = HOST) -> list[dict[str, object]]:
    """Send requests on one HTTP/2 connection as the agent; `status` is 0 where none came back."""
    done = lab.python(HTTP2, host, lab.addresses(host)[0], json.dumps(requests), uid=ALICE)
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, object]] = json.loads(done.stdout)
    return answers


def head(
    path: str, *more: tuple[str, str], method: str = "GET", host: str = HOST, intent: str = "free"
) -> Headers:
    return [
        (":method", method),
        (":scheme", "https"),
        (":authority", host),
        (":path", path),
        ("x-agent-scope", f"sandbox-alice;intent={intent}"),
        *more,
    ]


def test_an_http2_body_without_length_reaches_an_http1_origin_as_one_request(lab: Lab) -> None:
    """Passed on as it comes it would have no framing, and the origin would read a second request in it."""
    smuggled = f"GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
    (answer,) = http2(lab, {"headers": head("/one", method="POST"), "body": [smuggled[:20], smuggled[20:]]})
    assert answer["status"] == 200
    got = received(lab, "/one")
    assert "transfer-encoding: chunked\r\n" in got.lower()
    assert got.endswith(f"14\r\n{smuggled[:20]}\r\n{len(smuggled) - 20:x}\r\n{smuggled[20:]}\r\n0\r\n\r\n")
    assert "x-agent-scope" not in got.lower()


def test_an_http2_body_without_length_is_held_to_the_limit(lab: Lab) -> None:
    chunks = ["x" * 16_000] * 3
    within = {"headers": head("/h2-within", method="POST", intent="brief"), "body": chunks}
    beyond = {"headers": head("/h2-beyond", method="POST", intent="brief"), "body": [*chunks, "x" * 1_153]}
    assert http2(lab, within)[0]["status"] == 200
    assert http2(lab, beyond)[0]["status"] == 413
    assert len(received(lab, "/h2-within")) > 48_000
    assert len(received(lab, "/h2-beyond")) < 50_000
    assert not received(lab, "/h2-beyond").endswith("0\r\n\r\n"), "no end that an origin would act on"


@pytest.mark.parametrize("length", [(), (("content-length", "5"),)], ids=["kept back", "streamed"])
@pytest.mark.parametrize("host", [HOST, "a.example"], ids=["HTTP/1 origin", "HTTP/2 origin"])
def test_trailers_are_not_passed_on_nor_read(lab: Lab, host: str, length: Headers) -> None:
    """The scope field counts in the head alone."""
    path = f"/trailers-{len(length)}"
    trailers = [("x-agent-scope", 'sandbox-alice;reason="trailer"'), ("x-other", "trailer")]
    request = {
        "headers": head(path, *length, method="POST", host=host),
        "body": ["hello"],
        "trailers": trailers,
    }
    (answer,) = http2(lab, request, host=host)
    assert answer["status"] == 200
    if host == HOST:
        assert 'trailer"' not in received(lab, path)
        assert "x-other" not in received(lab, path)
    else:
        (body,) = [
            record for record in lab.arrivals() if (record["event"], record.get("path")) == ("body", path)
        ]
        assert (body["length"], body["trailers"]) == (5, [])
    scopeless = [
        field for field in head("/scope-below", method="POST", host=host) if field[0] != "x-agent-scope"
    ]
    request = {"headers": scopeless, "body": ["hello"], "trailers": [("x-agent-scope", "sandbox-alice")]}
    assert "scope_missing" in str(http2(lab, request, host=host)[0]["body"])


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({":authority": "a.example"}, id="an authority that is not the server name"),
        pytest.param({":authority": f"{HOST}:8443"}, id="another port"),
        pytest.param({":authority": f"user@{HOST}"}, id="userinfo"),
        pytest.param({":authority": ""}, id="an empty authority"),
        pytest.param({"host": "a.example"}, id="a host that is not the authority"),
        pytest.param({":path": "https://a.example/h2-hostile"}, id="a path in absolute form"),
        pytest.param({":path": "/h2-hostile HTTP/1.1\r\nX: y"}, id="a line inside the path"),
        pytest.param({":path": "/h2-hostile x"}, id="a space inside the path"),
        pytest.param({":method": "GET /h2-hostile HTTP/1.1\r\n"}, id="a request line as method"),
        pytest.param({":method": "CONNECT"}, id="CONNECT"),
        pytest.param({"x-field": "a\r\nb: c"}, id="CR and LF in a field"),
        pytest.param({"x-field": "a\x00b"}, id="NUL in a field"),
        pytest.param({"transfer-encoding": "chunked"}, id="transfer-encoding"),
        pytest.param({"content-length": "5, 6"}, id="two lengths"),
        pytest.param({"upgrade": "websocket", "connection": "upgrade"}, id="fields of the connection"),
    ],
)
def test_http2_that_has_two_readings_reaches_nobody(lab: Lab, changed: dict[str, str]) -> None:
    before = packets(lab), len(lab.arrivals())
    headers = dict(head("/h2-hostile")) | changed
    (answer,) = http2(lab, {"headers": list(headers.items())})
    assert answer["status"] != 200
    assert (packets(lab), len(lab.arrivals())) == before


def test_each_stream_of_a_connection_is_decided_by_itself(lab: Lab) -> None:
    foreign = [*head("/stream-2")[:-1], ("x-agent-scope", "sandbox-bob")]
    elsewhere = head("/stream-3", host="a.example")
    answers = http2(
        lab,
        {"headers": head("/stream-1")},
        {"headers": foreign},
        {"headers": elsewhere},
        {"headers": head("/stream-4")},
    )
    assert [answer["status"] for answer in answers] == [200, 403, 403, 200]
    assert received(lab, "/stream-2") == received(lab, "/stream-3") == ""


def test_a_chunked_body_is_cut_before_the_limit_and_never_ended(lab: Lab) -> None:
    """An origin that saw the end of a shortened body would act on it."""
    big = lab.folder / "chunked"
    big.write_bytes(b"x" * 200_000)
    big.chmod(0o644)
    answer = lab.curl(
        f"https://{HOST}/chunked",
        *("--http1.1", "-X", "POST", "-T", str(big), "-H", "Transfer-Encoding: chunked", "-H", "Expect:"),
        uid=ALICE,
        headers={"X-Agent-Scope": "sandbox-alice;intent=develop"},
    )
    assert answer.status != 200
    _, _, body = received(lab, "/chunked").partition("\r\n\r\n")
    assert body.count("x") <= LIMIT
    assert "0\r\n\r\n" not in body


# Holds a connection to each address: sends a head, and then the same bytes again every tenth of a second. Says how much
# came back, when the last of it did, and how and when it ended.
HOLD = """
import json, socket, ssl, sys, time
from concurrent.futures import ThreadPoolExecutor
addresses, name, port, alpn, head, beat, seconds = json.loads(sys.argv[1])
def hold(address):
    got, end, last, begun = b"", "held", 0.0, time.monotonic()
    try:
        sock = socket.create_connection((address, port), timeout=10)
        if port == 443:
            context = ssl.create_default_context()
            context.set_alpn_protocols([alpn])
            sock = context.wrap_socket(sock, server_hostname=name)
        sock.sendall(head.encode("latin-1"))
        while time.monotonic() - begun < seconds:
            sock.settimeout(0.1)
            try:
                data = sock.recv(65536)
                if not data:
                    end = "closed"
                    break
                got, last = got + data, time.monotonic() - begun
                time.sleep(0.1)
            except TimeoutError:
                pass
            sock.settimeout(10)
            sock.sendall(beat.encode("latin-1"))
    except OSError as error:
        end = "closed" if got else repr(error)
    return {"answer": got.decode("latin-1"), "last": last, "end": end, "seconds": time.monotonic() - begun}
with ThreadPoolExecutor(len(addresses)) as pool:
    print(json.dumps(list(pool.map(hold, addresses))))
"""


@dataclass(frozen=True, slots=True)
class Held:
    """What came of a connection; times in seconds since it was begun. `end` is `closed`, `held` or an error."""

    answer: str
    last: float
    end: str
    seconds: float


def hold(
    lab: Lab,
    host: str,
    head: str,
    beat: str = "",
    *,
    addresses: Sequence[str] = (),
    port: int = 80,
    alpn: str = "http/1.1",
    seconds: float = 8.0,
) -> list[Held]:
    """Hold connections as the agent, for so many seconds at most; `head` and `beat` are Latin-1."""
    wanted = json.dumps([addresses or lab.addresses(host), host, port, alpn, head, beat, seconds])
    done = lab.python(HOLD, wanted, uid=ALICE)
    assert done.returncode == 0, done.stderr
    return [Held(**one) for one in json.loads(done.stdout)]


def upgrade(host: str, scope: str, path: str = "/ws") -> str:
    """Write the head of a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Agent-Scope: {scope}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )


def frame(kind: int, payload: str) -> str:
    """Write a WebSocket frame of less than 126 bytes, masked with zeros; `kind` is its first byte."""
    return f"{chr(kind)}{chr(0x80 | len(payload))}\0\0\0\0{payload}"


# A WebSocket client by hand: sends messages of the given sizes, and counts the bytes of messages that come back.
WEBSOCKET = """
import json, socket, sys, time
address, name, scope, sizes, pause = *sys.argv[1:4], json.loads(sys.argv[4]), float(sys.argv[5])
sock = socket.create_connection((address, 80), timeout=5)
sock.sendall((
    f"GET /ws HTTP/1.1\\r\\nHost: {name}\\r\\nX-Agent-Scope: {scope}\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    "Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n").encode())
stream = sock.makefile("rb")
result = {"status": int(stream.readline().split()[1]), "echoed": 0, "seconds": 0.0}
while stream.readline() not in (b"\\r\\n", b""):
    pass
begun = time.monotonic()
try:
    for size in sizes:
        sock.sendall(b"\\x82\\xfe" + size.to_bytes(2) + b"\\0\\0\\0\\0" + b"m" * size)
        kind, length = stream.read(2)
        if kind == 0x88:
            break
        result["echoed"] += len(stream.read(int.from_bytes(stream.read(2)) if length == 126 else length))
        time.sleep(pause)
except (OSError, ValueError):
    pass
result["seconds"] = time.monotonic() - begun
print(json.dumps(result))
"""


def websocket(lab: Lab, scope: str, sizes: list[int], pause: float = 0) -> dict[str, float]:
    """Exchange messages; `seconds` is how long it went well."""
    done = lab.python(
        WEBSOCKET, lab.addresses(HOST)[0], HOST, scope, json.dumps(sizes), str(pause), uid=ALICE
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout)
    return result


def test_a_websocket_works_where_the_intent_sets_no_limit(lab: Lab) -> None:
    exchanged = websocket(lab, "sandbox-alice;intent=free", [1000, 60_000, 60_000])
    assert (exchanged["status"], exchanged["echoed"]) == (101, 121_000)

    def ends() -> list[dict[str, object]]:
        return [one for one in lab.ends() if one.get("status") == 101]

    # Frames have heads, and those of clients a mask of 4 bytes; the client left without a word.
    assert until(lambda: bool(ends()))
    assert [ends()[0][key] for key in ("sent", "received", "ending")] == [121_024, 121_012, "client_left"]


def test_a_websocket_is_cut_at_the_limit(lab: Lab) -> None:
    """Message by message: the origin gets those that fit."""
    before = received(lab, "/ws").count("m")
    exchanged = websocket(lab, "sandbox-alice;intent=develop", [30_000, 30_000, 30_000])
    assert (exchanged["status"], exchanged["echoed"]) == (101, 60_000)
    assert lab.audit()[-1]["code"] == "body_too_large"
    assert received(lab, "/ws").count("m") - before < LIMIT


@pytest.mark.parametrize("kind", [0x89, 0x8A, 0x00], ids=["pings", "pongs", "fragments of no end"])
def test_all_frames_of_a_websocket_count(lab: Lab, kind: int) -> None:
    """A message that is never complete is passed to nobody, but it is kept."""
    begin = frame(0x02, "m") if kind == 0x00 else ""
    records, before = len(lab.audit()), received(lab, "/ws").count("m")
    (held,) = hold(
        lab, HOST, upgrade(HOST, "sandbox-alice;intent=develop") + begin, frame(kind, "m" * 125) * 100
    )
    assert held.answer.startswith("HTTP/1.1 101 ")
    assert held.end == "closed"
    assert [record["code"] for record in lab.audit()[records:] if record.get("code")] == ["body_too_large"]
    assert received(lab, "/ws").count("m") - before < LIMIT


def test_a_websocket_ends_with_its_grant(lab: Lab) -> None:
    exchanged = websocket(lab, "sandbox-alice;intent=short", [200] * 200, 0.05)
    assert exchanged["status"] == 101
    assert 0 < exchanged["echoed"] < 200 * 200
    assert 0.5 < exchanged["seconds"] < 6


def test_an_answer_that_switches_to_another_protocol_is_no_tunnel(lab: Lab) -> None:
    for upgrade in ("raw", "websocket"):
        request = (
            f"GET /raw HTTP/1.1\r\nHost: {HOST}\r\nX-Agent-Scope: sandbox-alice;intent=free\r\n"
            f"Connection: Upgrade\r\nUpgrade: {upgrade}\r\n\r\n"
        )
        code = (
            "import socket, sys, time\n"
            "sock = socket.create_connection((sys.argv[1], 80), timeout=2)\n"
            "sock.sendall(sys.argv[2].encode()); time.sleep(0.5)\n"
            "try:\n    sock.sendall(b'through the tunnel'); print(sock.recv(1000)); print(sock.recv(1000))\n"
            "except OSError as error:\n    print(error)\n"
        )
        answer = lab.python(code, lab.addresses(HOST)[0], request, uid=ALICE).stdout
        assert "tunnel" not in answer
        assert "through the tunnel" not in received(lab, "/raw")
    assert received(lab, "/raw").count("GET /raw") == 2


def test_an_http2_upload_whose_origin_answered_early_ends_with_its_grant(lab: Lab) -> None:
    """The answer is complete and the body is not: the flow is under way, and carries data out."""
    state = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="latin-1"))
    state.initiate_connection()
    state.send_headers(1, head("/early", method="POST", intent="short"))
    begun = state.data_to_send().decode("latin-1")
    state.send_data(1, b"x")
    one = state.data_to_send().decode("latin-1")
    (held,) = hold(lab, HOST, begun, one, port=443, alpn="h2")
    assert "ok\n" in held.answer
    assert held.end == "closed"
    assert held.seconds > 0.5
    assert "\r\n1\r\nx" in received(lab, "/early"), "of the body, after the answer"


def test_a_stream_is_passed_on_as_it_comes(lab: Lab) -> None:
    code = (
        "import subprocess, sys, time\n"
        "begun = time.monotonic()\n"
        "curl = subprocess.Popen(['curl', '-sSN', '--max-time', '20', '-H', 'X-Agent-Scope: sandbox-alice',\n"
        "    'https://b.example/slow-stream'], stdout=subprocess.PIPE)\n"
        "print(curl.stdout.readline(), curl.stdout.readline(), time.monotonic() - begun)\n"
        "curl.kill()\n"
    )
    shown = lab.python(code, uid=ALICE).stdout
    assert shown.startswith("b'line 1\\n' b'line 2\\n'")
    assert float(shown.split()[-1]) < 10


# Sends a head, and then 300 megabytes for as long as they are taken. Says how many were, and what came back.
UPLOAD = """
import json, socket, sys
sock = socket.create_connection((sys.argv[1], 80), timeout=3)
sock.sendall(sys.argv[2].encode())
chunk, taken = (b"x" * 1_000_000, 0)
if "chunked" in sys.argv[2]:
    chunk = b"f4240\\r\\n" + chunk + b"\\r\\n"
try:
    for _ in range(300):
        sock.sendall(chunk)
        taken += 1
except OSError:
    pass
try:
    answer = sock.recv(1000).decode()
except OSError:
    answer = ""
print(json.dumps([taken, answer[:20]]))
"""


def resident(lab: Lab) -> int:
    """The proxy's memory in MiB."""
    found = re.search(r"pid=(\d+)", lab.run(["ss", "-Hltnp", "sport = :8080"]).stdout)
    assert found is not None
    pages = int(Path(f"/proc/{found[1]}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def test_a_large_http2_upload_of_unknown_length_costs_no_memory(lab: Lab) -> None:
    before = resident(lab)
    upload = (
        "head -c 100000000 /dev/zero | curl -sS --max-time 10 --http2 -X POST -T - -o /dev/null -w '%{http_code}' "
        f"-H 'X-Agent-Scope: sandbox-alice;intent=develop' https://{HOST}/upload-h2"
    )
    shown = lab.run(["sh", "-c", upload], uid=ALICE)
    assert shown.stdout == "413", shown.stderr
    assert len(received(lab, "/upload-h2")) <= LIMIT + 1000
    assert resident(lab) - before < 40
