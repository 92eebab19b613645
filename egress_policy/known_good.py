"""Keeps the addresses of known-good names in the kernel, for as long as DNS says.

Names without inspection go straight through the kernel, so their addresses must be in `known-good-domains`
before an agent connects, and must leave it when DNS no longer vouches for them.
"""

import asyncio
import logging

from egress_policy.denial import Deny
from egress_policy.firewall import KNOWN_GOOD_DOMAINS, Elements, FirewallError
from egress_policy.grant import Resolution, why_addresses_denied
from egress_policy.name_server import direct_ports
from egress_policy.policy import Policy
from egress_policy.resolver import ResolutionFailedError, Resolver

_GRACE = 5.0
"""Seconds that an element outlives its TTL: an agent may connect at the TTL's very end, and the refresh takes time."""
_RETRY = 5.0
_MAX_TTL = 24 * 3600 - _GRACE

_logger = logging.getLogger(__name__)


class KnownGoodNames:
    """Resolves known-good names and opens them in the kernel."""

    def __init__(self, policy: Policy, resolver: Resolver, elements: Elements) -> None:
        self._policy = policy
        self._resolver = resolver
        self._elements = elements

    async def resolve(self, name: str) -> Resolution | Deny:
        """Resolve a known-good name; its addresses are in the kernel, where they belong there, before this returns.

        Raises ResolutionFailedError and FirewallError.
        """
        policy = self._policy
        resolution = await self._resolver.resolve(name)
        ports = direct_ports(policy, name)
        for port in ports or [443]:
            denied = why_addresses_denied(policy, resolution, port)
            if denied is not None:
                return denied
        if ports:
            await self._elements.insert(
                KNOWN_GOOD_DOMAINS,
                [(address, port) for address in resolution.addresses for port in ports],
                timeout=min(resolution.ttl, _MAX_TTL) + _GRACE,
                comment=f"- known-good {name}",
            )
        return resolution

    async def keep(self, name: str) -> None:
        """Keep one name's addresses in the kernel, refreshed before their TTL ends. Runs until cancelled."""
        while True:
            try:
                resolution = await self.resolve(name)
            except (ResolutionFailedError, FirewallError) as error:
                _logger.warning("known-good name %s is not open: %s", name, error)
                pause = _RETRY
            else:
                if isinstance(resolution, Deny):
                    _logger.warning("known-good name %s is not open: %s", name, resolution.detail)
                    pause = _RETRY
                else:
                    pause = max(1.0, resolution.ttl * 0.8)
            await asyncio.sleep(pause)
