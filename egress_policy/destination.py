"""Where a request wants to go: the only place that normalises a name.

A host is a canonical DNS name (lower-case A-labels, no trailing dot) or an address. Nothing here asks the
network: a name is compared as text, and resolved only after it was permitted.
"""

import ipaddress
import re
from dataclasses import dataclass

import idna

type Address = ipaddress.IPv4Address | ipaddress.IPv6Address
type Network = ipaddress.IPv4Network | ipaddress.IPv6Network
type Host = str | Address

# RFC 1035 section 2.3.4: 63 octets a label, 253 characters a name in text. An underscore is no host name
# character (RFC 952), but real names have it (`_dmarc`, storage buckets), and it confuses nobody.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_MAX_NAME = 253
# The URL standard's "ends in a number": what inet_aton() would read as an address (`127.1`, `0x7f.1`, `017700000001`).
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class InvalidHostError(ValueError):
    """The text is no canonical host: the message says why."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A host and a TCP port (1 to 65535)."""

    host: Host
    port: int

    def __str__(self) -> str:
        """`name:443`, `192.0.2.1:443` or `[2001:db8::1]:443` (RFC 3986 section 3.2.2)."""
        host = f"[{self.host}]" if isinstance(self.host, ipaddress.IPv6Address) else str(self.host)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class HostPattern:
    """A policy's `domain`: one exact name, or with `below` every name below it and not the name itself."""

    name: str
    below: bool = False

    def matches(self, name: str) -> bool:
        """Tell whether a canonical name is meant."""
        return name.endswith("." + self.name) if self.below else name == self.name

    def __str__(self) -> str:
        return f"*.{self.name}" if self.below else self.name


def parse_host(text: str) -> Host:
    """Read a host as a request names it: a name, a dotted IPv4 address, or an IPv6 address in brackets.

    Upper case and one trailing dot are normalised. Raises InvalidHostError for all else that two programs
    could read differently: addresses in disguise, zones, control characters, non-ASCII, empty labels.
    """
    if text.startswith("["):
        return _bracketed_ipv6(text)
    if ":" in text:
        raise InvalidHostError("an IPv6 address must stand in brackets")
    name = parse_name(text) if not _ends_in_number(text) else None
    if name is not None:
        return name
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise InvalidHostError(
            f"{_shown(text)} is an address in disguise; write it as four decimal numbers"
        ) from None


def parse_name(text: str) -> str:
    """Read a DNS name in ASCII into its one form. Raises InvalidHostError."""
    if not text:
        raise InvalidHostError("the host is empty")
    if not text.isascii():
        raise InvalidHostError(
            f"{_shown(text)} is not ASCII; write an internationalised name in A-labels (xn--…)"
        )
    name = text.lower().removesuffix(".")
    if len(name) > _MAX_NAME:
        raise InvalidHostError(f"the name is longer than {_MAX_NAME} characters")
    for label in name.split("."):
        if not _LABEL.fullmatch(label):
            raise InvalidHostError(f"{_shown(text)} is not a host name")
        if label.startswith("xn--"):
            _check_a_label(label)
    if _ends_in_number(name):
        raise InvalidHostError(f"{_shown(text)} would be read as an address")
    return name


def parse_pattern(text: str) -> HostPattern:
    """Read a policy's `domain`, which a person wrote and may hold Unicode. Raises InvalidHostError."""
    below = text.startswith("*.")
    name = text[2:] if below else text
    if "*" in name:
        raise InvalidHostError("a wildcard stands for whole labels in front: '*.example.com'")
    return HostPattern(parse_name(to_ascii(name)), below)


def to_ascii(name: str) -> str:
    """Turn an internationalised name into A-labels (UTS 46, non-transitional). Raises InvalidHostError."""
    if name.isascii():
        return name
    try:
        return idna.encode(name, uts46=True, transitional=False).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise InvalidHostError(f"{_shown(name)} is not a valid internationalised name: {error}") from None


def _check_a_label(label: str) -> None:
    """Hold a label that looks like an A-label to be one (RFC 5890 section 2.3.2.1).

    RFC 5891 would refuse any other `--` in third place too, but content networks have names such as `r3---sn-x`.
    """
    try:
        if idna.alabel(idna.ulabel(label)) == label.encode("ascii"):
            return
    except (idna.IDNAError, UnicodeError):
        pass
    raise InvalidHostError(f"{_shown(label)} is not a valid internationalised label")


def _ends_in_number(text: str) -> bool:
    labels = text.lower().removesuffix(".").split(".")
    return _NUMBER.fullmatch(labels[-1]) is not None


def _bracketed_ipv6(text: str) -> ipaddress.IPv6Address:
    if not text.endswith("]") or "%" in text:
        raise InvalidHostError(f"{_shown(text)} is not an IPv6 address in brackets, without a zone")
    try:
        address = ipaddress.IPv6Address(text[1:-1])
    except ValueError:
        raise InvalidHostError(f"{_shown(text)} is not an IPv6 address") from None
    if address.ipv4_mapped is not None:
        raise InvalidHostError(f"{_shown(text)} is an IPv4 address in disguise")
    return address


def _shown(text: str) -> str:
    """Give hostile text in a form that is safe to print, and short."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
