"""Which of a grant's addresses the proxy connects to."""

import asyncio
from collections.abc import Sequence

from egress_policy.destination import Address

_PATIENCE = 2.0


async def first_reachable(addresses: Sequence[Address], port: int) -> Address:
    """Return the first address that accepts a TCP connection within 2 seconds; the first of all if none does.

    A host without IPv6 often has AAAA answers all the same. A single address is not tried: the request will tell.
    """
    if len(addresses) > 1:
        for address in addresses:
            try:
                async with asyncio.timeout(_PATIENCE):
                    _, writer = await asyncio.open_connection(str(address), port)
            except OSError:  # TimeoutError is one
                continue
            writer.close()
            return address
    return addresses[0]
