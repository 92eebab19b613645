"""`python -m egress_policy` is `egress-policy`."""

from egress_policy.cli import main

main()
