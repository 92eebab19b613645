"""What an id's beginning means where ids can be chosen, which the real ones cannot."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from egress_policy.destination import Destination
from egress_policy.grant import Grant
from egress_policy.operations import OperationError, Operations, Selection
from egress_policy.rights import Rights
from tests.test_authorizer import ONE, World

NOW = datetime.now(UTC)


def grant(grant_id: str, host: str) -> Grant:
    destination = Destination(host, 443)
    return Grant(
        grant_id, "alice", "sandbox-alice", "default", destination, (ONE,), NOW, NOW + timedelta(hours=1)
    )


async def test_the_beginning_of_an_id_means_one_grant_or_none(tmp_path: Path) -> None:
    world = World(tmp_path / "audit.jsonl")
    operations = Operations(world.authorizer, world.audit, None, lambda: None)
    world.authorizer.take_over(grant("abcd-1", "a.example"), 60)
    world.authorizer.take_over(grant("abcd-2", "b.example"), 60)
    root = Rights("root", is_operator=True)
    with pytest.raises(OperationError, match="more than one"):
        await operations.revoke(root, Selection(id="abcd"))
    with pytest.raises(OperationError, match="no live grant"):
        await operations.revoke(root, Selection(id="abcd-3"))
    assert len(world.authorizer.ledger) == 2
