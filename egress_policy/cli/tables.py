"""Tables that commands print: each name whole, for a reader and for grep alike."""

import os
import sys

from rich.console import Console
from rich.table import Table

_UNBOUNDED = 10_000
_NO_TERMINAL = _UNBOUNDED
"""Columns of a file or a pipe. rich takes 80 there, and folds names in two."""


def console() -> Console:
    """Return a console for standard output, as wide as the terminal, or as COLUMNS says; else as the text."""
    is_narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_narrow else _NO_TERMINAL, markup=False, highlight=False)


def has_room(table: Table) -> bool:
    """Say whether a table fits on standard output without a column made narrower."""
    out = console()
    return out.measure(table, options=out.options.update(width=_UNBOUNDED)).maximum <= out.width
