#!/usr/bin/env bash
# Makes the virtual environment of this checkout, and on request installs SLURM for its tests.
#
#   scripts/setup.sh            .venv with the package (editable) and its extras but flash; does nothing when current
#   scripts/setup.sh --slurm    SLURM's daemons from Debian's packages, where this is root on Debian or Ubuntu
#   scripts/setup.sh --nightly  the same and debootstrap, for the tests with other versions of SLURM
#
# PYTHON=python3.12 chooses the interpreter, VENV=DIR the environment's place. pip's own settings (index, proxy) are obeyed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python=${PYTHON:-python3}

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

# --- the virtual environment
stamp() {  # what the environment depends on: when it changes, pip runs again
    { echo "$PWD"; "$python" -VV; cat pyproject.toml constraints.txt; } | sha256sum
}

pip_install() {
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check -c constraints.txt "$@" >> "$venv/setup.log" 2>&1; then
        tail -n 25 "$venv/setup.log" >&2
        die "pip install $* failed (above: the end of $venv/setup.log)"
    fi
}

make_venv() {
    command -v "$python" > /dev/null || die "$python is not on PATH: set PYTHON to Python 3.11 or later"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$("$python" -V) is too old: set PYTHON to 3.11 or later"
    local wanted
    wanted=$(stamp)
    if [ "$(cat "$venv/setup.stamp" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c 'import fullft_cluster' 2>/dev/null; then
        return
    fi
    say "installing into $venv (a few minutes the first time)"
    # An environment whose interpreter has gone or changed is made anew.
    if ! [ "$("$venv/bin/python" -VV 2>/dev/null)" = "$("$python" -VV)" ]; then
        if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then die "$venv exists and is no virtual environment"; fi
        rm -rf "$venv"
        "$python" -m venv "$venv" || die "$python -m venv failed (on Debian: apt-get install python3-venv)"
    fi
    : > "$venv/setup.log"
    # torch first and alone: the pin decides which build it is before anything else can ask for another.
    pip_install torch
    pip_install -e '.[train,tracking,slurm,kubernetes,dev]'
    echo "$wanted" > "$venv/setup.stamp"
    say "done"
}

# --- SLURM, for tests/slurm
slurm_packages=(slurmctld slurmd slurm-client munge iproute2 util-linux procps)
accounting_packages=(slurmdbd mariadb-server-core mariadb-client-core)

slurm_is_here() {
    local name
    for name in slurmctld slurmd sbatch munged ip unshare nsenter ps slurmdbd sacctmgr mariadbd mariadb-install-db my_print_defaults; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$name" > /dev/null || return 1
    done
}

apt_install() {  # apt_install LOG PACKAGES...
    local log=$1
    shift
    export DEBIAN_FRONTEND=noninteractive
    # Lists that are missing or too old are fetched only when they are needed.
    apt-get install -qq -y --no-install-recommends "$@" > "$log" 2>&1 && return
    apt-get update -qq >> "$log" 2>&1
    apt-get install -qq -y --no-install-recommends "$@" >> "$log" 2>&1
}

install_slurm() {
    slurm_is_here && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        say "not root on Debian or Ubuntu: SLURM is not installed, and the tests marked slurm are skipped where it is missing"
        return
    fi
    say "installing SLURM's packages"
    local log policy=/usr/sbin/policy-rc.d
    log=$(mktemp)
    if [ ! -e "$policy" ]; then   # the daemons that the packages bring must not start: the tests start their own
        printf '#!/bin/sh\nexit 101\n' > "$policy"
        chmod +x "$policy"
        # shellcheck disable=SC2064
        trap "rm -f '$policy'" EXIT
    fi
    if ! apt_install "$log" "${slurm_packages[@]}" "${accounting_packages[@]}"; then
        tail -n 25 "$log" >&2
        die "apt-get failed (above: the end of $log)"
    fi
    rm -f "$log"
    slurm_is_here || die "the packages are installed, but not every command of theirs is on PATH"
}

# --- other Debians with other versions of SLURM, for the nightly tests
install_debootstrap() {
    local log
    PATH=$PATH:/usr/sbin:/sbin command -v debootstrap > /dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
        say "not root on Debian or Ubuntu: debootstrap is not installed, and the tests that need it are skipped"
        return
    fi
    say "installing debootstrap"
    log=$(mktemp)
    if ! apt_install "$log" debootstrap; then
        tail -n 25 "$log" >&2
        die "apt-get failed (above: the end of $log)"
    fi
    rm -f "$log"
}

case ${1:-} in
"") make_venv ;;
--slurm) install_slurm ;;
--nightly) install_slurm; install_debootstrap ;;
*) die "unknown argument: $1 (none, --slurm or --nightly)" ;;
esac
