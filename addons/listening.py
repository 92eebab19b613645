"""Where the proxy listens: agents' web traffic and DNS, as the ruleset redirects them."""

import socket

from mitmproxy import options
from mitmproxy.master import Master
from mitmproxy.proxy import mode_specs

import exits
from egress_policy.policy import Policy


def modes(policy: Policy, settings: options.Options) -> tuple[str, ...]:
    """Say where to listen: DNS on every address, since agents' links come and go. The ruleset lets in what it redirected."""
    host = settings.listen_host
    port = settings.listen_port or policy.proxy.port
    web = f"transparent@{host}:{port}" if host else f"transparent@{port}"
    addresses = ["0.0.0.0", *(["::"] if _has_ipv6() else [])]  # noqa: S104 - see above
    return (web, *(f"dns@{address}:{policy.proxy.dns_port}" for address in addresses))


async def listen(master: Master, specs: tuple[str, ...]) -> None:
    """Replace the forward proxy that mitmproxy opens before it loads a script; the addon's next_layer() closes its connections."""
    master.options.update(mode=list(specs))
    servers = master.addons.get("proxyserver").servers
    if not await servers.update([mode_specs.ProxyMode.parse(mode) for mode in specs]):
        exits.exit_now("cannot listen")
    for server in servers:
        if not server.is_running:
            exits.exit_now(f"cannot listen on {server.mode.full_spec}: {server.last_exception}")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
