"""A command confined to the policy: `egress-policy run`.

`accounts` says as whom, `link` joins its network namespace to the host, `hiding` takes the ways around out of its
sight, `command` runs it, `standby` has a proxy run for as long as somebody needs it.
"""
