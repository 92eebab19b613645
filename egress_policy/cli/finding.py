"""What a check of `egress-policy doctor` comes to."""

from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """How a check went. A warning weakens the policy; a failure means that it is not in force."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and where it is not well, what to do."""

    check: str
    result: Result
    finding: str
    remedy: str = ""
