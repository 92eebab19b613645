"""Login names to uids."""

import pwd
from dataclasses import replace

import pytest

from egress_policy.accounts import AccountError, missing_accounts, proxy_uid, resolve_agents
from egress_policy.policy import Agent, Policy, Proxy
from tests.policies import policy

NOBODY = pwd.getpwnam("nobody").pw_uid


def with_agents(*agents: Agent, proxy: str | int = 61000) -> Policy:
    return replace(policy(), proxy=Proxy(proxy), agents={agent.name: agent for agent in agents})


def test_names_and_ranges_become_uids() -> None:
    found = with_agents(
        Agent("a", (), user="nobody"), Agent("b", (), user=(2001, 2010)), Agent("c", (), interface="x")
    )
    assert resolve_agents(found) == [(NOBODY, NOBODY, "a"), (2001, 2010, "b")]
    assert proxy_uid(with_agents(proxy="nobody")) == NOBODY


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        pytest.param(
            (Agent("a", (), user="no-such-user"),), "this host has no user no-such-user", id="missing"
        ),
        pytest.param((Agent("a", (), user="root"),), "uid 0 is root", id="root"),
        pytest.param((Agent("a", (), user=(60000, 61000)),), "uid 61000 is the proxy's own user", id="proxy"),
        pytest.param(
            (Agent("a", (), user="nobody"), Agent("b", (), user=(NOBODY, NOBODY))),
            f"uid {NOBODY} is agent a's",
            id="twice",
        ),
        pytest.param(
            (Agent("a", (), user=(5, 9)), Agent("b", (), user=(9, 12))), "uid 9 is agent a's", id="overlap"
        ),
    ],
)
def test_who_cannot_be_an_agent(agents: tuple[Agent, ...], expected: str) -> None:
    with pytest.raises(AccountError, match=expected):
        resolve_agents(with_agents(*agents))


def test_a_login_name_that_is_the_proxy_s_uid_cannot_be_an_agent() -> None:
    with pytest.raises(AccountError, match="the proxy's own user"):
        resolve_agents(with_agents(Agent("a", (), user="nobody"), proxy=NOBODY))


def test_missing_accounts_are_listed_once() -> None:
    found = with_agents(
        Agent("a", (), user="no-such-user"), Agent("b", (), user="nobody"), proxy="no-such-user"
    )
    assert missing_accounts(found) == ["no-such-user"]
