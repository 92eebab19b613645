"""Every known way around is tried, and docs/security.md says what comes of each."""

from tests.bypass.attempts import attempts
from tests.bypass.table import PAGE, with_table

ROWS = 71


def test_every_way_around_is_tried_and_each_number_stands_for_one() -> None:
    assert [one.number for one in attempts()] == list(range(1, ROWS + 1))


def test_the_page_says_what_the_tests_say() -> None:
    """`python -m tests.bypass.table` writes it anew."""
    page = PAGE.read_text()
    assert page == with_table(page)
