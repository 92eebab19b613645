"""Every known way around is tried, and docs/security.md says what comes of each."""

from importlib import import_module

import pytest

from tests.bypass.attempts import attempts
from tests.bypass.table import PAGE, with_table

ROWS = 68
# Tried in one world only, by tests of the whole loop.
ELSEWHERE = {
    30: "test_tls.test_tls_without_a_server_s_name_is_denied",
    31: "test_tls.test_a_hello_with_other_than_one_name_reaches_nobody",
    32: "test_tls.test_an_encrypted_hello_is_denied_for_a_name_that_is_inspected_by_it",
    33: "test_requests.test_what_is_not_http_is_closed_without_a_packet",
    35: "test_requests.test_a_certificate_for_another_name_is_not_trusted",
    38: "test_requests.test_what_has_two_readings_or_no_right_reaches_nobody",
    39: "test_streams.test_trailers_are_not_passed_on_nor_read",
    40: "test_loop.test_another_developer_s_scope_is_denied",
    41: "test_requests.test_each_request_of_a_connection_is_decided_by_itself",
    54: "test_loop.test_a_grant_s_end_cuts_a_running_transfer_and_is_on_record",
    56: "test_streams.test_a_large_upload_that_is_denied_costs_no_memory",
    58: "test_streams.test_an_alternative_service_is_not_offered",
    67: "test_streams.test_a_websocket_is_denied_where_the_intent_allows_no_body",
}
# An option that could pass names unchecked is row 4's; these two have no test of their own yet.
WITHOUT = {36, 55, 59}


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
