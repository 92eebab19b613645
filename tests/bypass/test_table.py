"""Every known way around is tried, and docs/security.md says what comes of each."""

from importlib import import_module

import pytest

from tests.bypass.attempts import attempts
from tests.bypass.table import PAGE, with_table

ROWS = 68
# Tried in one world only, by tests of the whole loop.
ELSEWHERE = {
    54: "test_loop.test_a_grant_s_end_cuts_a_running_transfer_and_is_on_record",
    56: "test_streams.test_a_large_upload_that_is_denied_costs_no_memory",
    58: "test_streams.test_an_alternative_service_is_not_offered",
    67: "test_streams.test_a_websocket_is_denied_where_the_intent_allows_no_body",
}
# These have no test of their own yet.
WITHOUT = {55, 59}


def test_every_way_around_is_tried_and_each_number_stands_for_one() -> None:
    numbers = [*(one.number for one in attempts()), *ELSEWHERE, *WITHOUT]
    assert sorted(numbers) == list(range(1, ROWS + 1))


@pytest.mark.parametrize("test", ELSEWHERE.values())
def test_what_is_tried_elsewhere_is_there(test: str) -> None:
    module, _, name = test.partition(".")
    assert callable(getattr(import_module(f"tests.end_to_end.{module}"), name))


def test_the_page_says_what_the_tests_say() -> None:
    """`python -m tests.bypass.table` writes it anew."""
    page = PAGE.read_text()
    assert page == with_table(page)
