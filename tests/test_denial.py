"""The status that each refusal is answered with."""

import pytest

from egress_policy.denial import DenyCode, FailureCode


@pytest.mark.parametrize("code", DenyCode)
def test_denials(code: DenyCode) -> None:
    """403, save for what HTTP has a better status for."""
    better = {DenyCode.REQUEST_MALFORMED: 400, DenyCode.BODY_TOO_LARGE: 413}
    assert code.status == better.get(code, 403)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        pytest.param(FailureCode.RESOLUTION_FAILED, 502, id="what-is-behind-us-failed"),
        pytest.param(FailureCode.GRANT_FAILED, 503, id="the-kernel-did-not-acknowledge"),
        pytest.param(FailureCode.AUDIT_FAILED, 503, id="not-on-record"),
        pytest.param(FailureCode.INTERNAL_ERROR, 500, id="our-own-fault"),
    ],
)
def test_failures(code: FailureCode, status: int) -> None:
    """A failure is never a 403: nobody decided it, and trying again may help."""
    assert code.status == status
