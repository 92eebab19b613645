"""A DNS query of an agent, from mitmproxy's message to our answer and back."""

import ipaddress

from mitmproxy import dns
from mitmproxy.net.dns import classes, op_codes, response_codes, types

from egress_policy.denial import Deny
from egress_policy.firewall import FirewallError
from egress_policy.known_good import KnownGoodNames
from egress_policy.name_server import SYNTHETIC_TTL, Question, Reply, SyntheticAddresses, reply_to
from egress_policy.policy import Policy
from egress_policy.resolver import ResolutionFailedError

_VERSION = {types.A: 4, types.AAAA: 6}


async def answer(
    query: dns.DNSMessage, policy: Policy, known_good: KnownGoodNames, synthetic: SyntheticAddresses
) -> dns.DNSMessage:
    """Answer a query; what is neither known-good nor refused gets a synthetic address without a look-up."""
    if query.op_code != op_codes.QUERY or len(query.questions) != 1:
        return query.fail(response_codes.NOTIMP)
    question = query.questions[0]
    if question.class_ != classes.IN:
        return query.fail(response_codes.REFUSED)
    reply, _why = reply_to(policy, Question(question.name, question.type in _VERSION))
    match reply:
        case Reply.REFUSE:
            return query.fail(response_codes.REFUSED)
        case Reply.NO_DATA:
            return query.succeed([])
        case Reply.SYNTHETIC:
            name = question.name.lower().removesuffix(".")
            return _addresses(query, synthetic.allocate(name), SYNTHETIC_TTL)
        case Reply.RESOLVE:
            return await _true_answer(query, known_good)


async def _true_answer(query: dns.DNSMessage, known_good: KnownGoodNames) -> dns.DNSMessage:
    try:
        resolution = await known_good.resolve(query.questions[0].name.lower().removesuffix("."))
    except (ResolutionFailedError, FirewallError):
        return query.fail(response_codes.SERVFAIL)
    if isinstance(resolution, Deny):
        return query.fail(response_codes.REFUSED)
    return _addresses(query, resolution.addresses, resolution.ttl)


def _addresses(
    query: dns.DNSMessage, addresses: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...], ttl: int
) -> dns.DNSMessage:
    question = query.questions[0]
    return query.succeed(
        [
            dns.ResourceRecord(question.name, question.type, classes.IN, ttl, address.packed)
            for address in addresses
            if address.version == _VERSION[question.type]
        ]
    )
