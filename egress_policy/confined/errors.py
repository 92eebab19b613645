"""What keeps a command from being run confined."""


class RunError(Exception):
    """The command was not run: the message says why, and what to do."""
