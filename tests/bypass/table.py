"""Writes the table of attempts in docs/security.md anew, from the tests that make them.

python -m tests.bypass.table
"""

from pathlib import Path

from deploy.demo.namespaces import ROOT
from tests.bypass.attempts import BOTH, KERNEL, PROXY, Attempt, attempts

PAGE = ROOT / "docs" / "security.md"

_BEGIN = "<!-- attempts: written by `python -m tests.bypass.table`, from tests/bypass -->"
_END = "<!-- end of attempts -->"
_WORDS = {PROXY: "proxy", KERNEL: "kernel", BOTH: "each alone"}


def table() -> str:
    """Return the table, as Markdown."""
    head = ("| | attempt | what comes of it | stopped by |", "|---|---|---|---|")
    return "\n".join((*head, *map(_row, attempts())))


def _row(one: Attempt) -> str:
    return f"| {one.number} | {one.text} | {one.outcome} | {_WORDS[one.barriers]} |"


def with_table(page: str) -> str:
    """Return a page with what is between its two marks replaced. Raises ValueError where it has not both."""
    before, _, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"{PAGE} has not both of the marks {_BEGIN!r} and {_END!r}")
    return f"{before}{_BEGIN}\n\n{table()}\n\n{_END}{after}"


def _write(page: Path) -> None:
    page.write_text(with_table(page.read_text()))


if __name__ == "__main__":
    _write(PAGE)
