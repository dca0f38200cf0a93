#!/usr/bin/env bash
# Provisions a fresh Debian 12 machine by the README's steps: `./run demo`, then `./run campaign run quick`.
#
# Usage: provision.sh
# Environment: TRIVISOR_DEMO and TRIVISOR_CAMPAIGN are further arguments for the two, split at spaces.
# Results, in vagrant/results/: host.txt (the machine), demo.txt and campaign.txt (the whole outputs),
# campaign/ (the report and the measured rows), status.txt (a line per step: its name, its exit status, its
# seconds). A step that fails does not stop the next ones, except that nothing can follow missing packages.
# Exits with 1 if a step failed.
set -uo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." || exit 1

results=vagrant/results
rm -rf "$results"
mkdir -p "$results" || exit 1
failed=0

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

# step NAME COMMAND...: run the command, keep its output in NAME.txt and its exit status in status.txt.
step() {
    local name=$1 start=$SECONDS status
    shift
    echo "==> $*"
    "$@" 2>&1 </dev/null | tee "$results/$name.txt"
    status=${PIPESTATUS[0]}
    echo "==> $name: exit status $status after $((SECONDS - start)) s"
    echo "$name $status $((SECONDS - start))" >>"$results/status.txt"
    [ "$status" -eq 0 ] || failed=1
    return "$status"
}

install_first_packages() {
    local apt="apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0"
    dpkg-query -W git python3 && return
    as_root $apt update &&
        as_root env DEBIAN_FRONTEND=noninteractive $apt install -y --no-install-recommends git python3
}

describe_host() {
    sed -n 's/^PRETTY_NAME=//p' /etc/os-release
    uname -a
    echo "cores: $(nproc)"
    grep -m 1 '^model name' /proc/cpuinfo
    grep -E '^(MemTotal|MemAvailable)' /proc/meminfo
    if [ -e /dev/kvm ]; then echo "/dev/kvm is there"; else echo "no /dev/kvm"; fi
    grep -m 1 -o -w -E 'vmx|svm' /proc/cpuinfo || echo "the processor shows neither vmx nor svm"
    python3 --version
}

step packages install_first_packages || exit 1
step host describe_host
# The lists are split into arguments on purpose.
step demo ./run demo ${TRIVISOR_DEMO-}
step campaign ./run campaign run quick --out "$results/campaign" ${TRIVISOR_CAMPAIGN-}
exit "$failed"
