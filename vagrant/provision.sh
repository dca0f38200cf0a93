#!/usr/bin/env bash
# Provisions a fresh Debian 12 machine by the README's steps, and keeps the demo's output.
#
# Usage: provision.sh [ARGUMENTS FOR ./run demo]
# Results, in vagrant/results/: host.txt (the machine), demo.txt (the whole output), status.txt (the exit
# status, 0 if the demo succeeded). Exits with the same status.
set -uo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." || exit 1

results=vagrant/results
rm -rf "$results"
mkdir -p "$results" || exit 1

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

describe_host() {
    sed -n 's/^PRETTY_NAME=//p' /etc/os-release
    uname -a
    echo "cores: $(nproc)"
    grep -E '^(MemTotal|MemAvailable)' /proc/meminfo
    if [ -e /dev/kvm ]; then echo "/dev/kvm is there"; else echo "no /dev/kvm"; fi
    grep -m 1 -o -w -E 'vmx|svm' /proc/cpuinfo || echo "the processor shows neither vmx nor svm"
    python3 --version
}

provision() {
    echo "==> apt-get install git python3" &&
        as_root apt-get -q update &&
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get -q install -y --no-install-recommends git python3 &&
        describe_host >"$results/host.txt" &&
        echo "==> ./run demo" &&
        ./run demo "$@"
}

start=$SECONDS
provision "$@" 2>&1 | tee "$results/demo.txt"
status=${PIPESTATUS[0]}
echo "==> provisioned in $((SECONDS - start)) s, exit status $status"
echo "$status" >"$results/status.txt"
exit "$status"
