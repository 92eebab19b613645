"""Who may ask the control plane for what: by the uid that the kernel names, never by what the peer says."""

from dataclasses import dataclass

from egress_policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Rights:
    """What one peer may do. `name` is what the audit log calls it.

    Operators see and do all. An owner sees, shortens, revokes, pauses and approves in the own scopes. An agent
    sees and revokes its own grants, and nothing else, whatever else its uid is.
    """

    name: str
    is_operator: bool = False
    scopes: frozenset[str] = frozenset()
    agent: str | None = None

    @property
    def role(self) -> str:
        """`operator`, `owner`, `agent` or `nobody`."""
        if self.agent is not None:
            return "agent"
        return "operator" if self.is_operator else "owner" if self.scopes else "nobody"

    def may_see(self, agent: str | None, scope: str | None) -> bool:
        """Tell whether what concerns this agent and scope may be seen, and a grant of theirs revoked."""
        if self.agent is not None:
            return agent == self.agent
        return self.is_operator or scope in self.scopes

    def may_decide(self, scope: str | None) -> bool:
        """Tell whether grants of a scope may be approved and shortened."""
        return self.agent is None and (self.is_operator or scope in self.scopes)


def rights_of(policy: Policy, agents: list[tuple[int, int, str]], uid: int, login: str | None) -> Rights:
    """Tell what a peer may do; `agents` are ranges of uids with the agent's name, both ends included."""
    name = login or f"uid {uid}"
    agent = next((agent for low, high, agent in agents if low <= uid <= high), None)
    if agent is not None:
        return Rights(name, agent=agent)
    ids = {str(uid), login or str(uid)}
    return Rights(
        name,
        is_operator=uid == 0 or not ids.isdisjoint(policy.operators),
        scopes=frozenset(scope.name for scope in policy.scopes.values() if scope.owner_user in ids),
    )
