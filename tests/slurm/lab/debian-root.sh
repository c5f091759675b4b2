#!/bin/bash
# Another Debian with its version of SLURM (bullseye 20.11, bookworm 22.05, trixie 24.11) as a root directory, and commands
# run with it as `/`. Needs root, and debootstrap for the first call (scripts/setup.sh --nightly installs it).
#   debian-root.sh make SUITE               make it, once: a minute, 200 MB in $XDG_CACHE_HOME/fullft-cluster/slurm-roots
#   debian-root.sh run SUITE COMMAND...     run a command in it: mounts of its own, /tmp empty; processes and network are shared
#       BIND=DIR:DIR                        directories of this machine that are at their own paths inside
#   debian-root.sh hold SUITE               the same, for other processes to enter (nsenter -m): prints a line and waits for stdin
set -euo pipefail
command=$1 suite=$2
shift 2
roots=${XDG_CACHE_HOME:-$HOME/.cache}/fullft-cluster/slurm-roots
root=$roots/$suite

# what the lab needs, and the libraries that a Python which is not Debian's own is linked to
packages=slurmctld,slurmd,slurm-client,munge,iproute2,procps,hostname,util-linux,libbz2-1.0,liblzma5,zlib1g,libsqlite3-0,libgomp1
case $suite in
bullseye) packages+=,libssl1.1,libffi7,libreadline8 ;;
bookworm) packages+=,libssl3,libffi8,libreadline8 ;;
*) packages+=,libssl3t64,libffi8,libreadline8t64 ;;
esac

mirror() {  # the archive that apt uses here; none where that is unknown, and debootstrap takes its own default
    sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb +(\[[^]]*\] +)?([^ ]+) .*/\2/p' /etc/apt/sources.list.d/*.sources \
        /etc/apt/sources.list.d/*.list /etc/apt/sources.list 2>/dev/null | grep -E '/debian/?$' | head -n 1
}

make_root() {
    local log=$roots/$suite.log part=$root.$$ source
    [ -f "$root/.complete" ] && return
    command -v debootstrap > /dev/null || { echo "no debootstrap on PATH: run scripts/setup.sh --nightly" >&2; return 1; }
    source=${DEBIAN_MIRROR:-$(mirror || true)}
    rm -rf "$root" "$part"
    mkdir -p "$part"
    if ! debootstrap --variant=minbase --include="$packages" "$suite" "$part" ${source:+"$source"} > "$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -rf "$part"
        return 1
    fi
    rm -rf "$part"/var/cache/apt/archives/*.deb "$part"/var/lib/apt/lists/*
    mkdir "$part/oldroot"
    touch "$part/etc/hosts"
    touch "$part/.complete"
    mv "$part" "$root"
}

enter() {  # enter COMMAND...: instead of this process
    make_root
    export root here=$PWD
    # shellcheck disable=SC2016
    exec unshare --mount bash -euc '
        mount --bind "$root" "$root"
        mount --rbind /dev "$root/dev"
        mount --rbind /sys "$root/sys"
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        mount -t tmpfs tmpfs "$root/run"
        { cat /etc/hosts; echo "127.0.1.1 $(hostname)"; } > "$root/run/hosts"
        mount --bind "$root/run/hosts" "$root/etc/hosts"
        IFS=:
        for directory in ${BIND:-}; do
            mkdir -p "$root$directory"
            mount --bind "$directory" "$root$directory"
        done
        cd "$root"
        pivot_root . oldroot
        umount -l /oldroot
        cd "$here" 2> /dev/null || cd /
        export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        exec "$@"' - "$@"
}

case $command in
make) make_root ;;
run) enter "$@" ;;
hold) enter bash -c "echo in $suite; exec cat > /dev/null" ;;
*) echo "unknown command: $command" >&2; exit 2 ;;
esac
