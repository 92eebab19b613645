"""`python -m egress_policy` is `egress-policy`."""

import signal


def main() -> None:
    """Run the command line. Ctrl-C before its modules are there ends it as it ends any program: no traceback."""
    handler = signal.getsignal(signal.SIGINT)
    # Started in the background (`&`) it is ignored, and stays so.
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from egress_policy.cli import main as command_line  # noqa: PLC0415 - this is what takes a moment

    signal.signal(signal.SIGINT, handler)
    command_line()


if __name__ == "__main__":
    main()
