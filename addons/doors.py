"""Where people ask a running proxy: the control socket, and the console."""

import logging
from pathlib import Path

from mitmproxy import options

import start_up
from egress_policy.console.server import Console
from egress_policy.control import ControlError, serve
from egress_policy.operations import Operations
from egress_policy.status import Status

_logger = logging.getLogger(__name__)


def open_doors(
    settings: options.Options, started: start_up.Started, operations: Operations, status: Status
) -> Console | None:
    """Serve both, until the process ends; return the console, where there is one.

    Traffic is decided all the same where one cannot be served; what cannot be asked over the socket, `revoke` does
    in the kernel. So that is a warning: mitmproxy ends for an error that is logged while it starts.
    """
    authorizer = started.authorizer
    console = None
    port = authorizer.policy.proxy.console_port
    try:
        if port is not None:
            console = Console(port, operations, lambda: authorizer.policy, status, started.audit)
    except ControlError as error:
        _logger.warning("egress-policy: %s", error)
    try:
        sign_in = None if console is None else console.sign_in
        serve(Path(settings.scope_control), operations, lambda: authorizer.policy, status, sign_in)
    except ControlError as error:
        _logger.warning("egress-policy: %s", error)
    return console
