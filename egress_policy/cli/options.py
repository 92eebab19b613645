"""Options that several commands share."""

from pathlib import Path

import click

policy_option = click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/etc/egress-policy/policy.yaml"),
    show_default=True,
    help="The policy file.",
)
audit_option = click.option(
    "--audit",
    default="/var/log/egress-policy/audit.jsonl",
    show_default=True,
    help="The audit log.",
)
control_option = click.option(
    "--control",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("/run/egress-policy/control.sock"),
    show_default=True,
    help="The running proxy's control socket.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
