#!/usr/bin/env bash
# Installs this tree on a host under systemd, as root; run again, from a newer tree, it upgrades.
#
#   deploy/install.sh
#   PYTHON=/opt/python3.13/bin/python3.13 deploy/install.sh     with this interpreter
#   DESTDIR=/tmp/tree deploy/install.sh                         files only, below a folder: to make a package of
#
# What is there already stays: the policy, the CA, the audit log, a changed logrotate file. Nothing is enabled or started that
# was not; a proxy that runs goes on until everything else is done, and agents are held to the policy at every moment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PROXY=egress-proxy CODE=/opt/egress-policy CONF=/etc/egress-policy STATE=/var/lib/egress-policy LOG=/var/log/egress-policy
readonly UNITS=/usr/local/lib/systemd/system ROTATION=/etc/logrotate.d/egress-policy COMMAND=/usr/local/bin/egress-policy
readonly POLICY=$CONF/policy.yaml SERVICE=egress-policy.service RULESET=egress-policy-ruleset.service
# What runs, and what explains it; not the tests, nor what is of the clone.
readonly TREE=(CHANGELOG.md LICENSE README.md addons constraints.txt deploy docs egress_policy nft pyproject.toml)
readonly DESTDIR=${DESTDIR:-}

# Whatever the caller's umask: everybody may read the code, and root alone writes it.
umask 022

say() { printf 'install: %s\n' "$*"; }

fail() {
    printf 'install: %s\n' "$1" >&2
    shift
    if (($#)); then printf '         %s\n' "$@" >&2; fi
    exit 1
}

has_systemd() { [[ -d /run/systemd/system ]]; }
# Neither down nor failed: on its way up counts.
runs() { has_systemd && [[ $(systemctl is-active "$1") == @(active|activating|reloading) ]]; }

# Two places take turns, so that an upgrade that fails leaves what runs untouched: CODE is a link to one of them.
choose_place() {
    local now
    now=$(readlink "$DESTDIR$CODE" || true)
    if [[ $now == "$CODE-a" ]]; then place=$CODE-b; else place=$CODE-a; fi
    [[ ! -e $DESTDIR$CODE || -L $DESTDIR$CODE ]] || fail "$CODE is a folder of its own, and would be a link to what is installed." \
        "Is it a clone? Move it elsewhere and install from there: mv $CODE /usr/local/src/egress-policy"
}

copy_code() {
    say "code: $place"
    mkdir -p "$DESTDIR$place"
    # .venv stays: it may be of the same packages.
    find "$DESTDIR$place" -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} +
    tar --create --exclude=__pycache__ --exclude='*.egg-info' "${TREE[@]}" |
        tar --extract --no-same-owner --no-same-permissions --directory "$DESTDIR$place"
    # As closed as the clone's own modes may be.
    chmod -R u=rwX,go=rX "$DESTDIR$place"
}

make_users() {
    if getent passwd "$PROXY" >/dev/null; then return; fi
    say "user: $PROXY"
    useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$PROXY"
}

make_folders() {
    install -d -m 755 "$DESTDIR$CONF" "$DESTDIR$STATE"
    if [[ -z $DESTDIR ]]; then
        say "folders: $CONF, $STATE, $LOG"
        install -d -m 750 -o root -g "$PROXY" "$STATE/ca"
        install -d -m 750 -o "$PROXY" -g "$PROXY" "$LOG"
    fi
    if [[ ! -e $DESTDIR$POLICY ]]; then
        say "policy: $POLICY, which names no agents yet"
        install -m 644 deploy/policy.yaml "$DESTDIR$POLICY"
    fi
}

# The proxy may read its key, and root alone could change it: what is there may be of a proxy that made it by itself.
make_ca() {
    local folder=$STATE/ca
    if [[ ! -e $folder/mitmproxy-ca.pem ]]; then
        say "CA: $folder, its public half mitmproxy-ca-cert.pem"
        "$place/.venv/bin/python" deploy/make_ca.py "$folder"
    fi
    chown -R "root:$PROXY" "$folder"
    chmod -R u=rwX,g=rX,o= "$folder"
}

# What agents' programs are told to trust: certificates alone.
write_trust() {
    say "trust kit: $STATE/trust (egress-policy env names the variables)"
    "$place/.venv/bin/egress-policy" env --write >/dev/null || say "not written; later: egress-policy env --write"
}

# Before anything of it is in force.
check_policy() {
    "$place/.venv/bin/egress-policy" check --policy "$POLICY" >/dev/null || fail "this version does not take $POLICY: see above." \
        "Nothing that runs was changed. Correct the policy, and run this again."
}

# A link is renamed over the old one: there is no moment without.
link() {
    mkdir -p "$DESTDIR${2%/*}"
    ln -s "$1" "$DESTDIR$2.new"
    mv --no-target-directory "$DESTDIR$2.new" "$DESTDIR$2"
}

install_files() {
    say "in force from here: $CODE -> $place, $COMMAND, $UNITS"
    link "$place" "$CODE"
    link "$CODE/.venv/bin/egress-policy" "$COMMAND"
    install -d -m 755 "$DESTDIR$UNITS/nftables.service.d" "$DESTDIR${ROTATION%/*}"
    install -m 644 deploy/systemd/egress-policy* "$DESTDIR$UNITS"
    install -m 644 deploy/systemd/nftables.service.d/* "$DESTDIR$UNITS/nftables.service.d"
    if [[ ! -e $DESTDIR$ROTATION ]]; then
        install -m 644 deploy/logrotate/egress-policy "$DESTDIR$ROTATION"
    elif ! cmp --quiet deploy/logrotate/egress-policy "$DESTDIR$ROTATION"; then
        say "kept: $ROTATION differs from $CODE/deploy/logrotate/egress-policy"
    fi
}

# The ruleset first: the new one replaces the old in one transaction, and then the proxy that goes with it starts.
restart() {
    has_systemd || return 0
    systemctl daemon-reload
    if runs "$RULESET"; then
        say "systemctl reload $RULESET"
        systemctl reload "$RULESET"
    fi
    if runs "$SERVICE"; then
        say "systemctl restart $SERVICE"
        systemctl restart "$SERVICE"
    fi
}

say_what_is_next() {
    if runs "$SERVICE"; then
        say "done, and running. egress-policy doctor looks whether all is well."
        return
    fi
    cat <<END
install: done. Next:
    \$EDITOR $POLICY               # who the agents are, and what they may reach; make a login for each
    egress-policy check
    systemctl enable --now $SERVICE  # from here on agents are held to the policy, at boot too
    egress-policy doctor             # what is missing, and what to do about it
END
    has_systemd || say "systemd does not run here: docs/operators.md has the sequence without it."
}

place=
choose_place
if [[ -n $DESTDIR ]]; then
    copy_code
    make_folders
    install_files
    exit
fi
((EUID == 0)) || fail "this needs root: run it with sudo."
copy_code
say "packages: $place/.venv"
"$place/deploy/set-up.sh" host
make_users
make_folders
make_ca
write_trust
check_policy
install_files
restart
say_what_is_next
