"""The bytes that netlink messages are made of: attributes (netlink(7), linux/netlink.h)."""

import struct

_HEADER = struct.Struct("=HH")
# The top bits of an attribute's type are flags: nested, network byte order.
_TYPE_MASK = 0x3FFF


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    length = _HEADER.size + len(value)
    return _HEADER.pack(length, kind) + value + bytes(aligned(length) - length)


def attributes(data: bytes) -> dict[int, bytes]:
    """Read attributes by their type, up to the first that makes no sense."""
    found: dict[int, bytes] = {}
    while len(data) >= _HEADER.size:
        length, kind = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            break
        found[kind & _TYPE_MASK] = data[_HEADER.size : length]
        data = data[aligned(length) :]
    return found


def aligned(length: int) -> int:
    """Round a length up to the next four bytes."""
    return (length + 3) & ~3
