"""Policies that several tests decide by."""

import ipaddress
from datetime import timedelta

from egress_policy.destination import HostPattern
from egress_policy.policy import (
    Agent,
    CidrEntry,
    DomainEntry,
    Inspection,
    IntentRule,
    KnownBad,
    Policy,
    Proxy,
    Sandbox,
    Trust,
)

NAMESERVER = (ipaddress.ip_address("9.9.9.9"), 53)


def policy(max_destinations: int = 3) -> Policy:
    """Two agents with a sandbox each, one of them with a default scope; every level of trust."""
    return Policy(
        proxy=Proxy(61000),
        agents={
            "alice": Agent("alice", ("sandbox-alice",), user=(61001, 61001)),
            "bob": Agent("bob", ("sandbox-bob",), user=(61002, 61002), default_scope="sandbox-bob"),
        },
        scopes={
            "sandbox-alice": Sandbox("sandbox-alice", "alice@example.com", max_destinations=max_destinations),
            "sandbox-bob": Sandbox("sandbox-bob", "bob@example.com", max_ttl=timedelta(minutes=10)),
        },
        intents={
            "default": {"unknown": IntentRule(frozenset({"GET", "HEAD"}), 0, timedelta(hours=1))},
            "develop": {
                "unknown": IntentRule(None, 65536, timedelta(hours=4)),
                "internal": IntentRule(),
            },
        },
        trust=Trust(
            domains=(
                DomainEntry(HostPattern("direct.example"), "known-good", (443, 8443), Inspection.NONE),
                DomainEntry(HostPattern("named.example"), "known-good", (443,), Inspection.NAME),
            ),
            cidrs=(CidrEntry(ipaddress.ip_network("10.1.0.0/16"), "internal"),),
            known_bad=KnownBad(
                frozenset({HostPattern("bad.example"), HostPattern("bad.example", below=True)}),
                (ipaddress.ip_network("66.0.0.0/8"),),
            ),
        ),
    )
