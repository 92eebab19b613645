"""DNS messages on the wire (RFC 1035 section 4).

Mitmproxy's own reading decodes internationalised names, fails on some, and follows pointers without a bound.
"""

import struct

from mitmproxy import dns
from mitmproxy.net.dns import types

_HEADER = dns.DNSMessage.HEADER
_QUESTION = dns.Question.HEADER
_RECORD = dns.ResourceRecord.HEADER
_POINTER = 0xC0
# Where the first question's name begins, as a pointer (RFC 1035 section 4.1.4).
_TO_QUESTION = struct.pack("!H", _POINTER << 8 | _HEADER.size)
_LONGEST_LABEL, _LONGEST_NAME = 63, 255
# Stands for a dot within a label, so that no such label is taken for two.
_DOT_IN_LABEL = "\uff0e"


class _MalformedError(Exception):
    """The bytes are no DNS message."""


def unpack(data: bytes) -> dns.DNSMessage:
    """Read a query; one that is malformed after its header has no questions. Raises struct.error without a header.

    Of the records only those for EDNS (RFC 6891) are kept.
    """
    number, flags, questions, *others, additionals = _HEADER.unpack_from(data)
    message = dns.DNSMessage(
        id=number,
        query=not flags & 1 << 15,
        op_code=flags >> 11 & 0xF,
        authoritative_answer=False,
        truncation=bool(flags & 1 << 9),
        recursion_desired=bool(flags & 1 << 8),
        recursion_available=False,
        reserved=flags >> 4 & 0b111,
        response_code=flags & 0xF,
        questions=[],
        answers=[],
        authorities=[],
        additionals=[],
    )
    try:
        asked, offset = _read_questions(data, questions)
        _, offset = _read_records(data, offset, sum(others))
        options, offset = _read_records(data, offset, additionals)
    except (struct.error, IndexError, _MalformedError):
        return message
    if offset == len(data):
        message.questions = asked
        message.additionals = [record for record in options if record.type == types.OPT]
    return message


def pack(message: dns.DNSMessage) -> bytes:
    """Write an answer; a name that is the first question's is a pointer to it."""
    flags = (
        (not message.query) << 15
        | message.op_code << 11
        | message.authoritative_answer << 10
        | message.truncation << 9
        | message.recursion_desired << 8
        | message.recursion_available << 7
        | message.reserved << 4
        | message.response_code
    )
    records = (*message.answers, *message.authorities, *message.additionals)
    counts = len(message.questions), len(message.answers), len(message.authorities), len(message.additionals)
    parts = [_HEADER.pack(message.id, flags, *counts)]
    parts += [_name(asked.name) + _QUESTION.pack(asked.type, asked.class_) for asked in message.questions]
    asked_name = message.questions[0].name if message.questions else None
    for record in records:
        parts.append(_TO_QUESTION if record.name and record.name == asked_name else _name(record.name))
        parts.append(_RECORD.pack(record.type, record.class_, record.ttl, len(record.data)) + record.data)
    return b"".join(parts)


def _read_questions(data: bytes, count: int) -> tuple[list[dns.Question], int]:
    questions, offset = [], _HEADER.size
    for _ in range(count):
        name, offset = _read_name(data, offset)
        questions.append(dns.Question(name, *_QUESTION.unpack_from(data, offset)))
        offset += _QUESTION.size
    return questions, offset


def _read_records(data: bytes, offset: int, count: int) -> tuple[list[dns.ResourceRecord], int]:
    records = []
    for _ in range(count):
        offset = _skip_name(data, offset)
        kind, class_, ttl, length = _RECORD.unpack_from(data, offset)
        offset += _RECORD.size + length
        records.append(dns.ResourceRecord("", kind, class_, ttl, data[offset - length : offset]))
    return records, offset


def _read_name(data: bytes, offset: int) -> tuple[str, int]:
    """Read a name as it stands there; in a query there is nothing that a pointer could point to."""
    labels: list[str] = []
    begin = offset
    while length := data[offset]:
        if length > _LONGEST_LABEL:
            raise _MalformedError
        label = data[offset + 1 : offset + 1 + length]
        offset += 1 + length
        if offset >= len(data) or offset - begin >= _LONGEST_NAME:
            raise _MalformedError
        labels.append(label.decode("latin-1").replace(".", _DOT_IN_LABEL))
    return ".".join(labels), offset + 1


def _skip_name(data: bytes, offset: int) -> int:
    while length := data[offset]:
        if length >= _POINTER:
            return offset + 2
        offset += 1 + length
    return offset + 1


def _name(name: str) -> bytes:
    labels = (label.replace(_DOT_IN_LABEL, ".").encode("latin-1") for label in name.split(".") if label)
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
