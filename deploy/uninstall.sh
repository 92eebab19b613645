#!/usr/bin/env bash
# Takes what install.sh installed off this host, as root. Agents are not held to any policy afterwards.
#
#   deploy/uninstall.sh
#   YES=1 deploy/uninstall.sh      without asking
#   PURGE=1 deploy/uninstall.sh    the policy, the CA, the audit log and the proxy's user too
set -euo pipefail

readonly UNITS=/usr/local/lib/systemd/system

say() { printf 'uninstall: %s\n' "$*"; }

((EUID == 0)) || { printf 'uninstall: this needs root: run it with sudo.\n' >&2; exit 1; }

if [[ -z ${YES:-} ]]; then
    read -r -p 'Agents will reach whatever this host reaches. Uninstall egress-policy? [y/N] ' answer || answer=
    [[ $answer == [yY]* ]] || { say "nothing was changed."; exit 1; }
fi
if [[ -d /run/systemd/system ]]; then
    say "units"
    systemctl --quiet disable --now egress-policy.service egress-policy-logrotate.timer egress-policy-ruleset.service || true
fi
# Agents are refused until here.
/opt/egress-policy/.venv/bin/egress-policy remove --yes
rm -f "$UNITS"/egress-policy{,-ruleset,-logrotate}.service "$UNITS/egress-policy-logrotate.timer" "$UNITS/nftables.service.d/egress-policy.conf"
rm -f /etc/logrotate.d/egress-policy /usr/local/bin/egress-policy /opt/egress-policy /var/lib/egress-policy/boot.nft
rm -rf /opt/egress-policy-a /opt/egress-policy-b
if [[ -d /run/systemd/system ]]; then systemctl daemon-reload; fi
if [[ -n ${PURGE:-} ]]; then
    say "the policy, the CA, the audit log, the user egress-proxy"
    rm -rf /etc/egress-policy /var/lib/egress-policy /var/log/egress-policy
    if getent passwd egress-proxy >/dev/null; then userdel egress-proxy; fi
else
    say "kept: /etc/egress-policy, /var/lib/egress-policy, /var/log/egress-policy, the user egress-proxy (PURGE=1 removes them)"
fi
say "done. Agents are not held to any policy."
