"""The options that make mitmproxy a safe transparent proxy, and the few that a user may set beside ours.

Several defaults of mitmproxy fail open for this use: `eager` contacts the upstream before a header is read,
`rawtcp` passes what is not HTTP, `onboarding` serves a web page of its own, `upstream_cert` asks the upstream
for its certificate before the request is known.
"""

from collections.abc import Iterable

from mitmproxy import optmanager
from mitmproxy.master import Master

SAFE: dict[str, object] = {
    "connection_strategy": "lazy",
    "rawtcp": False,
    "onboarding": False,
    "upstream_cert": False,
    "http3": False,
    "flow_detail": 0,
}

_USER = {
    "confdir",
    "listen_host",
    "listen_port",
    "ssl_verify_upstream_trusted_ca",
    "ssl_verify_upstream_trusted_confdir",
    "body_size_limit",
    "termlog_verbosity",
    "scope_policy",
    "scope_audit",
    "scope_control",
}
# `-s` itself, and what mitmdump sets of itself for `-q` and `-v`.
_OWN = {"scripts", "flow_detail"}

NEEDLESS_ADDONS = (
    "anticache",
    "anticomp",
    "block",
    "blocklist",
    "browser",
    "commandhistory",
    "comment",
    "cut",
    "disableh2c",
    "dnsresolver",
    "dumper",
    "export",
    "keepserving",
    "maplocal",
    "mapremote",
    "modifybody",
    "modifyheaders",
    "nextlayer",
    "onboarding",
    "proxyauth",
    "readfilestdin",
    "save",
    "savehar",
    "serverplayback",
    "stickyauth",
    "stickycookie",
    "stripdnshttpsrecords",
    "updatealtsvc",
    "upstreamauth",
)
"""What comes with mitmproxy and a filter does not need. `clientplayback` stays: it cannot be removed while running."""


async def remove_needless_addons(master: Master) -> None:
    """Remove them, once the proxy runs.

    It halves the time of a request, and nothing is left that could change one after our check.
    """
    for name in NEEDLESS_ADDONS:
        addon = master.addons.get(name)
        if addon is not None:
            master.addons.remove(addon)


def refused(options: optmanager.OptManager) -> list[str]:
    """List what the command line or config.yaml set and may not: the name, and why."""
    changed: Iterable[str] = (name for name in sorted(options.keys()) if options.has_changed(name))
    return [
        *(
            f"option {name} may not be set: it could let traffic pass unchecked"
            for name in changed
            if name not in _USER | _OWN
        ),
        *(f"option {name} does not exist" for name in options.deferred),
        *("only one script may run, addons/scope.py" for _ in options.scripts[1:]),
    ]
