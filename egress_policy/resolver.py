"""Where a name leads, asked of the policy's name servers or the host's own (RFC 1034 section 5.3.1: a stub).

What DNS says is other people's word: nothing that a server sends ends in anything but a Resolution or a
ResolutionFailedError, and what is kept of it is bounded.
"""

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from egress_policy.destination import Address
from egress_policy.grant import MAX_ADDRESSES, Resolution

type Nameserver = tuple[Address, int]
"""A name server's address and its port."""

_DNS_PORT = 53
_TYPES = (dns.rdatatype.A, dns.rdatatype.AAAA)
# A TTL may say 68 years; no grant lives longer than a day.
_MAX_TTL = 24 * 3600


class ResolutionFailedError(Exception):
    """The name led nowhere, or nobody could be asked: the message, a sentence, says which.

    `answered` tells whether a name server said so (NXDOMAIN, no address), or none could be had.
    """

    def __init__(self, message: str, *, answered: bool = False) -> None:
        super().__init__(message)
        self.answered = answered


class Resolver:
    """Asks name servers for addresses, and remembers them for as long as their TTL says.

    `nameservers` None means the host's own. `timeout` (seconds) bounds one whole look-up. `clock` is
    monotonic, so that nothing lives longer when somebody sets the time; at most `max_cached` names are
    remembered. Raises ResolutionFailedError if there is nobody to ask.
    """

    def __init__(
        self,
        nameservers: Sequence[Nameserver] | None,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
        max_cached: int = 10_000,
    ) -> None:
        self.nameservers = tuple(system_nameservers() if nameservers is None else nameservers)
        self._timeout = timeout
        self._clock = clock
        self._max_cached = max_cached
        self._cache: OrderedDict[str, tuple[Resolution, float]] = OrderedDict()
        self._stub = dns.asyncresolver.Resolver(configure=False)
        self._stub.nameservers = [
            dns.nameserver.Do53Nameserver(str(address), port) for address, port in self.nameservers
        ]
        self._stub.lifetime = timeout
        # A silent server must leave time for each of the others, and a lost packet for a second try.
        self._stub.timeout = timeout / (len(self.nameservers) + 1)

    async def resolve(self, host: str) -> Resolution:
        """Return the addresses, IPv4 and IPv6, of a canonical name. Raises ResolutionFailedError.

        The name is absolute: no search domain is added. Where one family fails and the other answers, that counts.
        A TTL of 0 holds for the one request that asked.
        """
        known = self._cached(host)
        if known is not None:
            return known
        answers, failures = await self._ask_both(host)
        if not answers:
            answered = any(
                isinstance(failure, dns.resolver.NXDOMAIN | dns.resolver.NoAnswer) for failure in failures
            )
            raise ResolutionFailedError(_why_failed(host, failures, self._timeout), answered=answered)
        resolution = _read(answers)
        empty = sum(isinstance(failure, dns.resolver.NoAnswer) for failure in failures)
        # Half an answer is good for this request; the next one may get the whole.
        if len(answers) + empty == len(_TYPES):
            self._remember(host, resolution)
        return resolution

    async def _ask_both(
        self, host: str
    ) -> tuple[list[dns.resolver.Answer], list[dns.exception.DNSException]]:
        try:
            name = dns.name.from_text(host, dns.name.root)
        except dns.exception.DNSException as error:
            raise ResolutionFailedError(f"{host!a} is not a DNS name: {error}") from error
        queries = [asyncio.create_task(self._ask(name, rdtype)) for rdtype in _TYPES]
        try:
            await asyncio.wait(queries, timeout=self._timeout)
        finally:
            for query in queries:
                query.cancel()
        results = [query.result() for query in queries if query.done() and not query.cancelled()]
        answers = [result for result in results if isinstance(result, dns.resolver.Answer)]
        return answers, [result for result in results if isinstance(result, dns.exception.DNSException)]

    async def _ask(
        self, name: dns.name.Name, rdtype: dns.rdatatype.RdataType
    ) -> dns.resolver.Answer | dns.exception.DNSException:
        try:
            return await self._stub.resolve(name, rdtype)
        except dns.exception.DNSException as error:
            return error

    def _cached(self, host: str) -> Resolution | None:
        resolution, expires = self._cache.get(host, (None, 0.0))
        remaining = expires - self._clock()
        if resolution is None or remaining <= 0:
            self._cache.pop(host, None)
            return None
        self._cache.move_to_end(host)
        return replace(resolution, ttl=math.floor(remaining))

    def _remember(self, host: str, resolution: Resolution) -> None:
        self._cache[host] = (resolution, self._clock() + resolution.ttl)
        self._cache.move_to_end(host)
        if len(self._cache) > self._max_cached:
            self._cache.popitem(last=False)


def system_nameservers(path: str = "/etc/resolv.conf") -> tuple[Nameserver, ...]:
    """Return the host's own name servers, from resolv.conf(5). Raises ResolutionFailedError if there are none."""
    configured = dns.resolver.Resolver(configure=False)
    try:
        configured.read_resolv_conf(path)
        return tuple((ipaddress.ip_address(str(server)), _DNS_PORT) for server in configured.nameservers)
    except (dns.exception.DNSException, ValueError) as error:
        raise ResolutionFailedError(
            f"{path} names no name server to ask ({error}): name one under resolver.nameservers in the policy"
        ) from error


def _read(answers: Iterable[dns.resolver.Answer]) -> Resolution:
    chains = [answer.chaining_result for answer in answers]
    by_family = [[ipaddress.ip_address(record.address) for record in chain.answer or ()] for chain in chains]
    # In turns, so that many addresses of one family do not crowd out the other.
    in_turns = (address for turn in zip_longest(*by_family) for address in turn if address is not None)
    aliases = (record.target for chain in chains for rrset in chain.cnames for record in rrset)
    return Resolution(
        addresses=tuple(dict.fromkeys(in_turns))[:MAX_ADDRESSES],
        cnames=tuple(dict.fromkeys(_canonical(alias) for alias in aliases)),
        ttl=min(_MAX_TTL, *(chain.minimum_ttl for chain in chains)),
    )


def _canonical(name: dns.name.Name) -> str:
    return name.canonicalize().to_text(omit_final_dot=True)


def _why_failed(host: str, failures: Sequence[dns.exception.DNSException], timeout: float) -> str:
    if any(isinstance(failure, dns.resolver.NXDOMAIN) for failure in failures):
        return f"{host} does not exist (NXDOMAIN)"
    if len(failures) == len(_TYPES) and all(
        isinstance(failure, dns.resolver.NoAnswer) for failure in failures
    ):
        return f"{host} has no address (neither A nor AAAA records)"
    for failure in failures:
        if isinstance(failure, dns.resolver.NoNameservers):
            return f"no name server could say where {host} is: {_last_error(failure)}"
    if all(isinstance(failure, dns.resolver.LifetimeTimeout | dns.resolver.NoAnswer) for failure in failures):
        return f"no name server said within {timeout:g} s where {host} is"
    return f"no name server could say where {host} is: {type(failures[0]).__name__}"


def _last_error(failure: dns.resolver.NoNameservers) -> str:
    """Say what the server that was asked last did: a response code such as SERVFAIL, or what went wrong."""
    errors = failure.kwargs.get("errors") or [("", False, _DNS_PORT, "none was asked", None)]
    _, _, _, error, _ = errors[-1]
    return str(error) or type(error).__name__
