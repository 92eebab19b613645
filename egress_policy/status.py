"""What a running proxy tells and changes nothing by: the policy in force, metrics, how it would decide."""

import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from egress_policy import metrics
from egress_policy.audit import AuditLog, timestamp
from egress_policy.authorizer import Authorizer
from egress_policy.caller import Caller
from egress_policy.explanation import explain_request
from egress_policy.http_request import read_request
from egress_policy.operations import OperationError
from egress_policy.policy import KNOWN_GOOD
from egress_policy.records import claim_of
from egress_policy.rights import Rights
from egress_policy.written_request import head_of


@dataclass(slots=True)
class PolicyStatus:
    """Which version of the policy is in force, since when, and why a newer one is not.

    `version` is that of policy_file.Loaded. `kept` are the feeds that
    can no longer be read, each with the reason.
    """

    file: Path
    version: str
    loaded: datetime = field(default_factory=lambda: datetime.now(UTC))
    error: str | None = None
    kept: dict[Path, str] = field(default_factory=dict)

    def taken(self, version: str, kept: dict[Path, str]) -> None:
        """Note that a policy was put in force now."""
        self.version, self.loaded, self.error = version, datetime.now(UTC), None
        self.kept = dict(kept)

    def refused(self, why: str) -> None:
        """Note that another was not, and what it stays at holds on."""
        self.error = why


@dataclass(frozen=True, slots=True)
class Question:
    """A request as somebody imagines it: `scope` is the value of the scope field, `body` its length in bytes."""

    agent: str
    method: str
    url: str
    scope: str | None = None
    body: int = 0


class Status:
    """Answers about the proxy as it is now. `connections` counts those of clients."""

    def __init__(
        self,
        authorizer: Authorizer,
        audit: AuditLog,
        policy_status: PolicyStatus,
        connections: Callable[[], int],
    ) -> None:
        self._authorizer = authorizer
        self._audit = audit
        self._policy = policy_status
        self._connections = connections

    def policy(self, rights: Rights) -> dict[str, object]:
        """Describe the policy in force; why another one is not concerns operators alone."""
        policy, status = self._authorizer.policy, self._policy
        return {
            "file": str(status.file),
            "version": status.version,
            "loaded": timestamp(status.loaded),
            "error": status.error if rights.is_operator else None,
            "kept": {str(path): why for path, why in status.kept.items()} if rights.is_operator else {},
            "agents": sorted(policy.agents),
            "scopes": sorted(policy.scopes),
            "intents": sorted(policy.intents),
            "feeds": {name: len(feed) for name, feed in policy.trust.known_bad.feeds},
        }

    def metrics(self, rights: Rights) -> bytes:
        """Write the metrics, which tell of everybody's doings. Raises OperationError."""
        if not rights.is_operator or rights.agent is not None:
            raise OperationError(403, "only an operator sees the metrics")
        authorizer, status = self._authorizer, self._policy
        live = Counter(one.grant.scope for one in authorizer.ledger)
        return metrics.exposition(
            metrics.Snapshot(
                grants={scope: live[scope] for scope in (*sorted(authorizer.policy.scopes), KNOWN_GOOD)},
                feeds={name: len(feed) for name, feed in authorizer.policy.trust.known_bad.feeds},
                version=status.version,
                loaded=status.loaded.timestamp(),
                reload_failed=status.error is not None or bool(status.kept),
                pending=len(authorizer.approvals.pending()),
                pauses=len(list(authorizer.pauses)),
                connections=self._connections(),
                audit_failures=self._audit.failures,
            )
        )

    async def explain(self, rights: Rights, question: Question) -> dict[str, object]:
        """Decide as if the request had come, and open and record nothing. Raises OperationError.

        An agent may ask for itself, an owner for the own scopes. For an agent no name is looked up: a query that is
        not on record would tell whoever runs the name's servers something.
        """
        policy = self._authorizer.policy
        try:
            head = head_of(question.method, question.url, question.scope, question.body)
        except ValueError as error:
            raise OperationError(400, str(error)) from None
        request = read_request(head, question.agent)
        claim = claim_of(policy, request)
        if not rights.may_see(question.agent, None if claim is None else claim.name):
            raise OperationError(403, "an agent asks for itself, an owner for the own scopes")
        if question.agent not in policy.agents:
            raise OperationError(404, f"the policy has no agent {question.agent}")
        explained = await explain_request(
            policy,
            head,
            Caller(question.agent),
            None if rights.agent is not None else self._authorizer.resolver,
            datetime.now(UTC),
            str(uuid.uuid4()),
            live=self._authorizer.ledger.destinations,
            standing=self._authorizer.standing,
        )
        return {
            **msgspec.to_builtins(explained.record),
            "steps": [msgspec.to_builtins(step) for step in explained.steps],
        }
