"""The layer that reads an agent's queries over TCP: it never asks anybody, and keeps little."""

import struct

import dns.message
import dns.rcode
import pytest
from mitmproxy import connection, options
from mitmproxy.proxy import commands, context, events
from mitmproxy.proxy.layers.dns import DnsRequestHook

from dns_listener import AgentDns

QUERY = dns.message.make_query("x.example", "A", use_edns=0).to_wire()


class Conversation:
    """A client and the layer; the addon's part is the test's."""

    def __init__(self) -> None:
        client = connection.Client(
            peername=("127.0.0.1", 40000),
            sockname=("127.0.0.1", 8053),
            state=connection.ConnectionState.OPEN,
        )
        self.client = client
        self.layer = AgentDns(context.Context(client, options.Options()))
        assert list(self.layer.handle_event(events.Start())) == []

    def send(self, data: bytes) -> list[commands.Command]:
        return list(self.layer.handle_event(events.DataReceived(self.client, data)))

    def completed(self, hook: commands.Command) -> list[commands.Command]:
        """The addon is done with a query."""
        assert isinstance(hook, DnsRequestHook)
        return list(self.layer.handle_event(events.HookCompleted(hook)))


def framed(data: bytes) -> bytes:
    return struct.pack("!H", len(data)) + data


@pytest.fixture
def conversation() -> Conversation:
    return Conversation()


def test_a_query_that_nobody_answered_fails_and_no_other_server_is_asked(conversation: Conversation) -> None:
    (hook,) = conversation.send(framed(QUERY))
    (sent,) = conversation.completed(hook)
    assert isinstance(sent, commands.SendData)
    assert sent.connection is conversation.client
    answer = dns.message.from_wire(sent.data[2:])
    assert answer.rcode() == dns.rcode.SERVFAIL


def test_an_answered_query_is_forgotten(conversation: Conversation) -> None:
    for number in range(5):
        (hook,) = conversation.send(framed(struct.pack("!H", number) + QUERY[2:]))
        assert len(conversation.completed(hook)) == 1
    assert conversation.layer.flows == {}


def test_an_answer_is_not_answered(conversation: Conversation) -> None:
    assert conversation.send(framed(QUERY[:2] + b"\x81" + QUERY[3:])) == []
    assert conversation.layer.flows == {}


def test_queries_may_come_in_pieces_and_together(conversation: Conversation) -> None:
    data = framed(QUERY) * 2
    assert conversation.send(data[:1]) == []
    assert conversation.send(data[1:9]) == []
    (first,) = conversation.send(data[9:])
    sent, second = conversation.completed(first)
    assert isinstance(sent, commands.SendData)
    assert len(conversation.completed(second)) == 1


@pytest.mark.parametrize("data", [b"\0\0", framed(b"short")], ids=["nothing", "less than a header"])
def test_a_stream_of_no_messages_is_closed(data: bytes) -> None:
    assert any(isinstance(one, commands.CloseConnection) for one in Conversation().send(data))


def test_who_sends_too_far_ahead_is_cut_off(conversation: Conversation) -> None:
    conversation.send(framed(QUERY))
    ahead = [conversation.send(bytes(65535)) for _ in range(17)]
    assert ahead[:16] == [[]] * 16
    assert isinstance(ahead[16][0], commands.CloseConnection)
