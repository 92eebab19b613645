#!/usr/bin/env bash
# Makes a clone ready to run: a suitable Python, .venv with the pinned packages, the system's programs.
#
#   deploy/set-up.sh           all of it; as root, because the kernel's firewall and network namespaces are used
#   deploy/set-up.sh tests     the same, and what else the tests use
#   deploy/set-up.sh python    Python and .venv only; as anyone
#   deploy/set-up.sh host      all of it, as install.sh needs it: packages that tests need are left out, and Python is one that
#                              every user can reach
#
# PYTHON=/path/to/python3 chooses the interpreter. Nothing is done twice: a second run takes a moment.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Debian keeps nft, ip and sysctl here, and not every user's PATH names it.
export PATH="${PATH:-/usr/local/bin:/usr/bin:/bin}:/usr/local/sbin:/usr/sbin:/sbin"

# The order of preference; constraints.txt is locked for these.
readonly MINORS=(13 12 14)
readonly VENV=.venv STAMP=.venv/set-up.stamp
readonly MODE=${1:-all}
if [[ $MODE == host ]]; then requirements=deploy/image/requirements.txt; else requirements=constraints.txt; fi
readonly requirements

# program:Debian package that brings it
readonly PROGRAMS=(nft:nftables ip:iproute2 setpriv:util-linux nsenter:util-linux unshare:util-linux mount:mount curl:curl logrotate:logrotate)
readonly CLIENTS=(git:git wget:wget node:nodejs npm:npm java:default-jdk-headless chromium:chromium certutil:libnss3-tools systemd-analyze:systemd)

say() { printf 'set-up: %s\n' "$*"; }

fail() {
    printf 'set-up: %s\n' "$1" >&2
    shift
    if (($#)); then printf '        %s\n' "$@" >&2; fi
    exit 1
}

# --- Python -------------------------------------------------------------------------------------------------

# Prints the version of a suitable interpreter, or what makes it unsuitable (and returns 1). Only running it tells:
# a version manager's shim may be on PATH for a Python that is not switched on.
probe() {
    local answer
    answer=$("$1" - "$MODE" "${MINORS[@]}" 2>/dev/null <<'PY'
import sys
mode, *minors = sys.argv[1:]
version = "%d.%d.%d" % sys.version_info[:3]
if sys.version_info[0] != 3 or str(sys.version_info[1]) not in minors:
    sys.exit(print("is Python " + version))
import sysconfig
if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit(print("is not the usual CPython"))
try:
    import ensurepip, venv
except ImportError:
    sys.exit(print("lacks venv or ensurepip"))
if mode == "host":
    # The proxy is another user, and its unit hides homes (ProtectHome=). What is mapped: the interpreter and its libraries.
    from pathlib import Path
    mapped = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
    for folder in {folder for path in mapped for folder in Path(path).parents}:
        if not folder.stat().st_mode & 0o001 or str(folder) in ("/root", "/home", "/run/user"):
            sys.exit(print(f"is below {folder}, where the proxy's user cannot reach it"))
print("suitable " + version)
PY
    ) || answer="does not run"
    case $answer in
        "suitable "*) printf '%s\n' "${answer#suitable }" ;;
        *) printf '%s\n' "${answer:-does not run}"; return 1 ;;
    esac
}

# Prints where a Python may be, best first.
candidates() {
    local minor folder home=~
    for minor in "${MINORS[@]}"; do
        type -aP "python3.$minor" || true
        for folder in "${PYENV_ROOT:-$home/.pyenv}"/versions "$home/.local/share/uv/python" /opt/pyenv/versions /opt/python; do
            { compgen -G "$folder/*3.$minor.*/bin/python3.$minor" || true; } | sort -rV
        done
        compgen -G "/usr/local/bin/python3.$minor" || true
        compgen -G "/opt/*/bin/python3.$minor" || true
    done
    type -aP python3 || true
}

# Sets `python` and `version`, or returns 1 with what was tried in `tried`.
find_python() {
    local candidate
    tried=()
    while read -r candidate; do
        if version=$(probe "$candidate"); then
            python=$candidate
            return
        fi
        tried+=("$candidate $version")
    done < <(candidates | awk '!seen[$0]++')
    return 1
}

# Installs Debian's or Ubuntu's own Python with its venv package, where theirs is new enough. Returns 1 if it is not.
install_python() {
    ((EUID == 0)) && command -v apt-get >/dev/null || return 1
    local offered minor
    offered() { LC_ALL=C apt-cache policy python3 2>/dev/null | sed -n 's/^ *Candidate: 3\.\([0-9]*\)\..*/\1/p'; }
    minor=$(offered)
    if [[ -z $minor ]]; then
        refresh_package_lists
        minor=$(offered)
    fi
    [[ " ${MINORS[*]} " == *" $minor "* ]] || return 1
    install_packages python3 python3-venv
}

choose_python() {
    local elsewhere=()
    if [[ $MODE == host ]]; then
        elsewhere=(
            "For a host it must be where every user can reach it: below /usr or /opt, with one of"
            "    UV_PYTHON_INSTALL_DIR=/opt/python uv python install 3.13"
            "    PYENV_ROOT=/opt/pyenv pyenv install 3.13"
        )
    fi
    if [[ -n ${PYTHON:-} ]]; then
        python=$(type -P "$PYTHON") || fail "PYTHON=$PYTHON: there is no such program"
        version=$(probe "$python") || fail "PYTHON=$PYTHON $version" "Python 3.12, 3.13 or 3.14 with venv is needed." "${elsewhere[@]}"
        return
    fi
    find_python && return
    install_python && find_python && return
    local remedy=(
        "Tried: ${tried[*]:-nothing found}"
        "Ubuntu 24.04, Debian 13: as root, apt-get install python3 python3-venv"
        "Debian 12 has Python 3.11 only. Install a newer one beside it, with one of"
        "    uv python install 3.13"
        "    pyenv install 3.13"
        "    the source from python.org: ./configure && make && make altinstall"
        "${elsewhere[@]}"
        "It is found by itself; PYTHON=/path/to/python3.13 names one that is elsewhere."
    )
    fail "no Python 3.12, 3.13 or 3.14 with venv was found." "${remedy[@]}"
}

# What .venv was made from: its first line, and in the second the interpreter. A virtual environment holds its own
# path, so a moved clone makes it anew; the tools' settings, from [tool.pytest…] on, change nothing in it.
fingerprint() {
    { printf '%s\n' "$PWD"; sed '/^\[tool\.pytest/,$d' pyproject.toml; cat "$requirements"; } | sha256sum
}

is_set_up() {
    local made_from made_by
    [[ -f $STAMP ]] && { read -r made_from && read -r made_by; } <"$STAMP" || return 1
    [[ $made_from == "$(fingerprint)" ]] || return 1
    [[ -z ${PYTHON:-} || $(type -P "$PYTHON") == "$made_by" ]] || return 1
    "$VENV/bin/python" -c '' 2>/dev/null
}

set_up_python() {
    is_set_up && return
    choose_python
    say "Python $version, $python"
    say "making $VENV"
    rm -rf "$VENV"
    "$python" -m venv "$VENV" || fail "$python could not make $VENV; its message is above."
    say "installing $(grep -c '==' "$requirements") pinned packages (about a minute the first time)"
    local pip=("$VENV/bin/python" -m pip -qq --disable-pip-version-check --no-input install --root-user-action=ignore)
    "${pip[@]}" --require-hashes --only-binary :all: -r "$requirements" || fail \
        "the packages could not be installed; pip's message is above." \
        "They come from a Python package index: is it reachable from here?" \
        "A mirror or a proxy is set in pip's own configuration (pip help config)."
    "${pip[@]}" --no-deps --no-build-isolation --editable . || fail "this project could not be installed into $VENV; pip's message is above."
    printf '%s\n' "$(fingerprint)" "$python" >"$STAMP"
}

# --- The system ---------------------------------------------------------------------------------------------

refresh_package_lists() {
    say "apt-get update"
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 update </dev/null >/dev/null || true
}

install_packages() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0)
    local install=("${apt[@]}" install --yes --no-install-recommends "$@")
    say "apt-get install $*"
    # A list that is missing or stale names packages that the archive no longer has: refresh it, and try again.
    "${install[@]}" </dev/null >/dev/null 2>&1 && return
    refresh_package_lists
    "${install[@]}" </dev/null >/dev/null || fail "apt-get could not install $*; its message is above."
}

set_up_system() { # entries as those of PROGRAMS
    local entry packages=()
    for entry in "$@"; do
        command -v "${entry%%:*}" >/dev/null && continue
        [[ " ${packages[*]} " == *" ${entry#*:} "* ]] || packages+=("${entry#*:}")
    done
    if ((${#packages[@]})); then
        command -v apt-get >/dev/null || fail "these packages are missing, and there is no apt-get to install them: ${packages[*]}"
        install_packages "${packages[@]}"
    fi
    local trouble
    trouble=$(unshare --net nft add table inet probe 2>&1) || fail \
        "this machine does not let us use nftables in a network namespace: ${trouble##*$'\n'}" \
        "A container needs --cap-add NET_ADMIN --cap-add SYS_ADMIN (or --privileged); a kernel needs nf_tables."
}

clients=()
case $MODE in
    python) set_up_python ;;
    all | host | tests)
        ((EUID == 0)) || fail "this needs root, for the kernel's firewall and network namespaces: run it with sudo."
        [[ $MODE != tests ]] || clients=("${CLIENTS[@]}")
        set_up_system "${PROGRAMS[@]}" "${clients[@]}"
        set_up_python
        ;;
    *) fail "usage: deploy/set-up.sh [python|host|tests]" ;;
esac
