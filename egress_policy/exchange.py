"""What went over one client connection under one grant: how much each way, and how it ended."""

from dataclasses import dataclass
from enum import StrEnum

from egress_policy.caller import Caller
from egress_policy.decision import Key
from egress_policy.grant import Grant


class Ending(StrEnum):
    """How an exchange ended: `complete`, or what broke off last."""

    COMPLETE = "complete"
    CLIENT_LEFT = "client_left"
    UPSTREAM_FAILED = "upstream_failed"
    CUT = "cut"


@dataclass(slots=True)
class Exchange:
    """All requests of one client connection under one grant, or a connection that was passed on undecrypted.

    `began` is the moment of the first, in seconds of a monotonic clock. `sent` and `received` count bytes from and to
    the agent: of bodies and WebSocket frames, and of everything where it was not decrypted. `status` is that of the
    destination's last answer.
    """

    grant: Grant
    caller: Caller
    began: float
    requests: int = 0
    sent: int = 0
    received: int = 0
    status: int | None = None
    ending: Ending = Ending.COMPLETE

    @property
    def key(self) -> Key:
        """What the grant is for."""
        return self.grant.agent, self.grant.scope, self.grant.intent, self.grant.destination

    def broke_off(self, how: Ending) -> None:
        """Note that a request did not come to its end; what is cut looks to either side as if the other had left."""
        if self.ending is not Ending.CUT:
            self.ending = how
