"""Why a request does not go on: a denial is the policy's answer, a failure is that we could not ask."""

from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus


class DenyCode(StrEnum):
    """What the policy said no to, in the order of the decision's steps."""

    REQUEST_MALFORMED = "request_malformed"
    DESTINATION_INVALID = "destination_invalid"
    DESTINATION_MISMATCH = "destination_mismatch"
    CALLER_UNKNOWN = "caller_unknown"
    PAUSED = "paused"
    DESTINATION_DENIED = "destination_denied"
    SCOPE_MISSING = "scope_missing"
    SCOPE_MALFORMED = "scope_malformed"
    SCOPE_NOT_ALLOWED = "scope_not_allowed"
    INTENT_UNKNOWN = "intent_unknown"
    INTENT_NOT_ALLOWED = "intent_not_allowed"
    TRUST_NOT_ALLOWED = "trust_not_allowed"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TOO_LARGE = "body_too_large"
    APPROVAL_REQUIRED = "approval_required"
    PENDING_APPROVAL = "pending_approval"
    APPROVAL_DECLINED = "approval_declined"
    QUOTA_EXCEEDED = "quota_exceeded"
    ADDRESS_DENIED = "address_denied"

    @property
    def status(self) -> HTTPStatus:
        """The HTTP status that a denial of this kind is answered with."""
        match self:
            case DenyCode.REQUEST_MALFORMED:
                return HTTPStatus.BAD_REQUEST
            case DenyCode.BODY_TOO_LARGE:
                return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            case _:
                return HTTPStatus.FORBIDDEN


class FailureCode(StrEnum):
    """What did not work; the request is refused all the same."""

    RESOLUTION_FAILED = "resolution_failed"
    GRANT_FAILED = "grant_failed"
    UPSTREAM_FAILED = "upstream_failed"
    AUDIT_FAILED = "audit_failed"
    INTERNAL_ERROR = "internal_error"

    @property
    def status(self) -> HTTPStatus:
        """The HTTP status that a failure of this kind is answered with."""
        match self:
            case FailureCode.RESOLUTION_FAILED | FailureCode.UPSTREAM_FAILED:
                return HTTPStatus.BAD_GATEWAY
            case FailureCode.GRANT_FAILED | FailureCode.AUDIT_FAILED:
                return HTTPStatus.SERVICE_UNAVAILABLE
            case FailureCode.INTERNAL_ERROR:
                return HTTPStatus.INTERNAL_SERVER_ERROR


@dataclass(frozen=True, slots=True)
class Deny:
    """The policy's no: the code for programs, the detail (one sentence) for people."""

    code: DenyCode
    detail: str


@dataclass(frozen=True, slots=True)
class Failure:
    """We could not find out, open or record: in another type, because nobody decided it."""

    code: FailureCode
    detail: str


type Refusal = Deny | Failure
