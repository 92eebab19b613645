"""A laboratory with the real proxy, the real kernel, real TLS and a real name server."""

import time
from collections.abc import Callable, Iterator

import pytest

from deploy.demo.lab import NAMESERVERS, Lab

ALICE_FIELD = {"X-Agent-Scope": "sandbox-alice"}
POLICY = f"""\
version: 1
proxy: {{user: 61000}}
resolver: {{nameservers: [{NAMESERVERS[0]}], timeout: 1s}}
agents:
  alice: {{user: 61001, scopes: [sandbox-alice]}}
  bob: {{user: 61002, scopes: [sandbox-bob], default_scope: sandbox-bob}}
scopes:
  sandbox-alice: {{owner: alice@example.com}}
  sandbox-bob: {{owner: bob@example.com}}
trust:
  known-good:
    - {{domain: named.example}}
    - {{domain: direct.example, inspection: none}}
    - {{domain: full.example, inspection: full}}
  known-bad:
    - {{domain: bad.example}}
    - {{domain: "*.bad.example"}}
    - {{cidr: 66.0.0.0/8}}
intents:
  default:
    unknown: {{methods: [GET, HEAD], max_body: 0, ttl: 1h}}
  develop:
    unknown: {{max_body: 64KiB, ttl: 4h}}
  free:
    unknown: {{}}
"""
NAMES = ("a.example", "b.example", "named.example", "direct.example", "full.example", "x.bad.example")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The policy above in force, and the proxy running."""
    with Lab(*NAMES) as lab:
        lab.write_policy(POLICY)
        lab.apply()
        lab.start_proxy()
        yield lab


def until(ready: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
