"""nf_tables' messages that add and delete elements of timed sets and maps, as pyroute2 sends them.

Every field of a key is padded to a multiple of 4 bytes. Ports are in the network's byte order, uids in the kernel's.
"""

import sys
from collections.abc import Iterable, Sequence

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELSETELEM,
    NFT_MSG_NEWSETELEM,
    nft_set_elem_list_msg,
)

from egress_policy.destination import Address
from egress_policy.grant import Way

TABLE = "egress-policy"
MAX_COMMENT = 128
"""Bytes of comment that nftables keeps with an element."""
SETS_OF_WAYS = {
    f"{name}{part}{suffix}": "set" if part or name == "raw-tcp-closed" else "map"
    for name, parts in (
        ("raw-tcp", ("", "-permitted")),
        ("raw-tcp-sources", ("", "-permitted")),
        ("raw-tcp-closed", ("",)),
    )
    for part in parts
    for suffix in ("", "-ipv6")
}
"""What a way is made of in the kernel, each with its kind."""

_NFPROTO_INET = 1
_NFNL_SUBSYS_NFTABLES = 10
_NFNL_MSG_BATCH_BEGIN = 16
_NFNL_MSG_BATCH_END = 17

type Member = tuple[bytes, bytes | None]
"""An element's packed key, and its value where it is a map's."""
type _Attributes = list[tuple[str, object]]
type Message = tuple[int, _Attributes]
"""What is done, and to what."""


def members_of(name: str, sockets: Iterable[tuple[Address, int]]) -> tuple[str, list[Member]]:
    """Pack the elements of a set of addresses and ports."""
    return name, [(_socket(address, port), None) for address, port in sockets]


def anew(name: str, members: Sequence[Member], timeout: float, comment: str) -> list[Message]:
    """Add elements with a timeout (seconds), or give it anew to those that are there; no packet sees them missing."""
    added = (NFT_MSG_NEWSETELEM, _elements(name, members, timeout, comment))
    return [added, (NFT_MSG_DELSETELEM, _elements(name, members)), added]


def gone(name: str, members: Sequence[Member]) -> list[Message]:
    """Delete elements. Deleting what is not there would fail the transaction: it is added first."""
    added = (NFT_MSG_NEWSETELEM, _elements(name, members, 1.0))
    return [added, (NFT_MSG_DELSETELEM, _elements(name, members))]


def messages_of_way(
    way: Way, left: float | None, closed_left: float | None, comment: str, replaces: Address | None
) -> list[Message]:
    """Open a way, or close it; see Elements.lead()."""
    is_uid = isinstance(way.caller, int)
    suffix = "" if way.dialled.version == 4 else "-ipv6"
    name = "raw-tcp" if is_uid else "raw-tcp-sources"
    caller = way.caller.to_bytes(4, sys.byteorder) if isinstance(way.caller, int) else way.caller.packed
    dialled, real = _socket(way.dialled, way.port), way.address.packed
    messages: list[Message] = []
    if replaces is not None:
        # An element of a map does not change its value: the former one goes first.
        messages += gone(f"{name}{suffix}", [(caller + dialled, replaces.packed)])
        if left is not None:
            messages += anew(f"{name}{suffix}", [(caller + dialled, real)], left, comment)
    permitted = [(f"{name}-permitted{suffix}", caller + dialled + real, left)]
    if is_uid:
        permitted.append((f"raw-tcp-closed{suffix}", dialled + real, closed_left))
    for set_name, key, timeout in permitted:
        members: list[Member] = [(key, None)]
        messages += gone(set_name, members) if timeout is None else anew(set_name, members, timeout, comment)
    return messages


def transaction(messages: Iterable[Message]) -> list[nfgen_msg]:
    """Put messages into one transaction."""
    return [_bound(_NFNL_MSG_BATCH_BEGIN), *(_request(*one) for one in messages), _bound(_NFNL_MSG_BATCH_END)]


def _socket(address: Address, port: int) -> bytes:
    return address.packed + port.to_bytes(2) + bytes(2)


def _elements(
    name: str, members: Sequence[Member], timeout: float | None = None, comment: str = ""
) -> _Attributes:
    return [
        ("NFTA_SET_ELEM_LIST_TABLE", TABLE),
        ("NFTA_SET_ELEM_LIST_SET", name),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", [_element(member, timeout, comment) for member in members]),
    ]


def _element(member: Member, timeout: float | None, comment: str) -> dict[str, _Attributes]:
    key, value = member
    attributes: _Attributes = [("NFTA_SET_ELEM_KEY", {"attrs": [("NFTA_DATA_VALUE", key)]})]
    if value is not None:
        attributes.append(("NFTA_SET_ELEM_DATA", {"attrs": [("NFTA_DATA_VALUE", value)]}))
    if timeout is not None:
        attributes.append(("NFTA_SET_ELEM_TIMEOUT", max(1, int(timeout * 1000))))
    if comment:
        cut = comment.encode()[:MAX_COMMENT].decode(errors="ignore")
        attributes.append(("NFTA_SET_ELEM_USERDATA", [("NFTNL_UDATA_SET_ELEM_COMMENT", cut)]))
    return {"attrs": attributes}


def _request(kind: int, attributes: _Attributes) -> nft_set_elem_list_msg:
    message = nft_set_elem_list_msg()
    message["nfgen_family"] = _NFPROTO_INET
    message["attrs"] = attributes
    message["header"]["type"] = _NFNL_SUBSYS_NFTABLES << 8 | kind
    message["header"]["flags"] = (
        NLM_F_REQUEST | NLM_F_ACK | (NLM_F_CREATE if kind == NFT_MSG_NEWSETELEM else 0)
    )
    return message


def _bound(kind: int) -> nfgen_msg:
    message = nfgen_msg()
    message["res_id"] = _NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    return message
