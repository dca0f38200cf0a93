"""Faults inside a guest, over its shell: programs, memory, files, clock.

Each fault is one command of the guest's shell, which carries it out and reads it back.  Under TCG a
connection with one command costs most of a mission; a Python in the guest would cost ten times
that.  The command's output must match exactly; otherwise the fault was not applied.

Nothing is undone here: others revert the guest to its clean snapshot.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from faultinject.faults.site import ActiveFault, NotApplied

__all__ = [
    "ACTIONS",
    "Shell",
    "corrupt_file",
    "corrupt_service",
    "hog_cpu",
    "hog_memory",
    "kill_service",
    "skew_clock",
    "stop_service",
]

_TIMEOUT = 15.0
"""Seconds for one command before the injection fails; 0.15 to 0.5 are usual."""

_PER_FLIP = 0.5
"""Additional seconds for each bit to flip; 0.05 is usual."""

_SPINNERS = 2
"""Programs that use the processor, for each unit of the dose."""

_PRIORITY = -10
"""Nice value of these programs: two leave a twentieth of the processor to the others.  (At -20 four
leave so little that the guest's shell is silent for half a minute.)"""

_LEFT_KIB = 4096
"""Free memory that a memory hog leaves at a dose of 1, in KiB; at a dose of n, an n-th of that."""

_LEAST_KIB = 1536
"""The least that it leaves, in KiB: with less, the kernel kills programs, the hog among them."""

_DAY = 86_400


class Shell(Protocol):
    """Runs commands in a guest, as ``deploy.machine.ssh.GuestShell`` does."""

    @property
    def name(self) -> str:
        """The guest's name."""

    async def run(
        self, command: str, *, stdin: bytes = b"", timeout: float = _TIMEOUT
    ) -> tuple[int, str]:
        """Run a command to its end; return its status and its output.  Raises DeployError."""


# The agent is init's child, and the service is the agent's.
_FIND = """
agent= service=
for p in $(pidof python3.11); do
    read -r line </proc/$p/stat && set -- $line && [ "$4" = 1 ] && agent=$p
done
for p in $(pidof python3.11); do
    read -r line </proc/$p/stat && set -- $line && [ "$4" = "$agent" ] && service=$p
done
[ -n "$service" ] || { echo "the agent (${agent:-none}) has no service's process"; exit 3; }
state() {
    read -r line </proc/$1/stat && set -- $line && echo "$3"
}
"""

# Bytes are read and written through dd: $1 is the file, $2 the offset, $3 the byte. The flips come
# by standard input, because a command may have at most 9000 bytes.
_BYTES = """
draws=$(cat)
get() {
    dd if="$1" bs=1 skip=$2 count=1 2>/dev/null | hexdump -e '1/1 "%d"'
}
put() {
    printf "\\\\x$(printf %02x $3)" | dd of="$1" bs=1 seek=$2 conv=notrunc 2>/dev/null
}
flip() {
    before=$(get "$1" $2)
    put "$1" $2 $((before ^ $3))
    echo "flipped $2 $3 $before $(get "$1" $2) $1"
}
"""

_KILL = """
kill -9 $service
tries=0
while [ -d /proc/$service ] && [ $tries -lt 200 ]; do
    usleep 10000
    tries=$((tries + 1))
done
[ -d /proc/$service ] && echo "alive $service" || echo "gone $service"
"""

_STOP = """
kill -STOP $service
tries=0
while [ "$(state $service)" != T ] && [ $tries -lt 200 ]; do
    usleep 10000
    tries=$((tries + 1))
done
"""

# Uniform over the bytes that are mapped, writable and private. The process is stopped meanwhile, so
# that it cannot overwrite a byte before it is read back.
_CORRUPT = (
    _STOP
    + """
total=0
while read -r range mode _; do
    [ "$mode" = rw-p ] && total=$((total + 0x${range#*-} - 0x${range%-*}))
done </proc/$service/maps
for draw in $draws; do
    at=$((${draw%:*} % total))
    while read -r range mode _; do
        [ "$mode" = rw-p ] || continue
        size=$((0x${range#*-} - 0x${range%-*}))
        [ $at -lt $size ] && break
        at=$((at - size))
    done </proc/$service/maps
    flip /proc/$service/mem $((0x${range%-*} + at)) ${draw#*:}
done
kill -CONT $service
"""
)

# The service's code, its content and its libraries, whose changes it sees at once. (The Python
# program itself cannot be written while it runs.)
_FILES = """
{
    find /opt/trivisor /etc/trivisor/content -type f 2>/dev/null
    while read -r _ mode _ _ _ file; do
        case $file in /lib/*|/usr/lib/*) echo "$file" ;; esac
    done </proc/$service/maps
} | sort -u | xargs stat -c '%s %n' >/tmp/files
for draw in $draws; do
    set -- $(awk -v draw=${draw%:*} '
        { size[NR] = $1; name[NR] = $2; total += $1 }
        END {
            at = draw % total
            for (n = 1; at >= size[n]; n++) at -= size[n]
            printf "%s %d", name[n], at
        }' /tmp/files)
    flip $1 $2 ${draw#*:}
done
"""

# Reniced when all of them run: earlier, the shell could hardly start the next one.
_SPIN = """
pids=
for n in $(seq {count}); do
    setsid sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1 &
    pids="$pids $!"
done
renice -n {priority} -p $$ $pids >/dev/null 2>&1
for p in $pids; do
    read -r line </proc/$p/stat && set -- $line && echo "spins $p $3 ${19}"
done
"""

# The memory belongs to no process: the kernel cannot regain it by killing one.
_FILL = """
free() {
    while read -r name kib _; do
        [ "$name" = MemFree: ] && echo $kib && return
    done </proc/meminfo
}
mkdir -p /tmp/hog && mount -t tmpfs -o size=100% hog /tmp/hog || exit 4
before=$(free)
fallocate -l $(((before - {left}) * 1024)) /tmp/hog/taken
echo "held $(($(stat -c '%b * %B' /tmp/hog/taken) / 1024)) of $before free $(free)"
"""

_SKEW = """
before=$(date +%s)
date -s @$((before + {shift})) >/dev/null
echo "clock $before $(date +%s)"
"""


async def kill_service(shell: Shell, seed: int, dose: int) -> ActiveFault:
    """Kill the service's process; the agent restarts it with an empty state."""
    del seed, dose
    output = await _run(shell, _FIND + _KILL)
    [pid] = _read(shell, output, r"gone (\d+)")
    return ActiveFault(f"the service's process {pid} has ended", activated=True)


async def stop_service(shell: Shell, seed: int, dose: int) -> ActiveFault:
    """Stop the service's process; its agent continues to run."""
    del seed, dose
    output = await _run(shell, _FIND + _STOP + 'echo "process $service $(state $service)"')
    [pid] = _read(shell, output, r"process (\d+) T")
    return ActiveFault(f"the service's process {pid} is in state T (stopped)", activated=True)


async def corrupt_service(shell: Shell, seed: int, dose: int) -> ActiveFault:
    """Flip ``dose`` bits of the service's own memory, uniformly over its writable private bytes."""
    script = _FIND + _BYTES + _CORRUPT
    output = await _run(shell, script, _draws(seed, dose), timeout=_TIMEOUT + dose * _PER_FLIP)
    return ActiveFault(f"in the service's memory: {_flips(shell, output, dose)}")


async def corrupt_file(shell: Shell, seed: int, dose: int) -> ActiveFault:
    """Flip ``dose`` bits, uniformly over the bytes of the service's files."""
    script = _FIND + _BYTES + _FILES
    output = await _run(shell, script, _draws(seed, dose), timeout=_TIMEOUT + dose * _PER_FLIP)
    return ActiveFault(f"in files: {_flips(shell, output, dose)}")


async def hog_cpu(shell: Shell, seed: int, dose: int) -> ActiveFault:
    """Start programs of high priority that use the processor without end."""
    del seed
    count = _SPINNERS * dose
    script = _SPIN.replace("{count}", str(count)).replace("{priority}", str(_PRIORITY))
    output = await _run(shell, script)
    spinning = re.findall(r"^spins (\d+) R (-?\d+)$", output, re.MULTILINE)
    if len(spinning) != count or any(nice != str(_PRIORITY) for _, nice in spinning):
        raise NotApplied(f"{shell.name}: not {count} programs run: {output!r}")
    proof = f"{count} programs run at priority {_PRIORITY}, the first is {spinning[0][0]}"
    return ActiveFault(proof, activated=True)


async def hog_memory(shell: Shell, seed: int, dose: int) -> ActiveFault:
    """Take the guest's memory until hardly any is left."""
    del seed
    left = max(_LEFT_KIB // dose, _LEAST_KIB)
    output = await _run(shell, _FILL.replace("{left}", str(left)))
    held, before, now = (
        int(number) for number in _read(shell, output, r"held (\d+) of (\d+) free (\d+)")
    )
    # The kernel may have freed some by killing programs: that is an effect of the fault too.
    if held < before - left:
        raise NotApplied(f"{shell.name}: {held} KiB of {before} free KiB were taken")
    return ActiveFault(f"{held} KiB of {before} free KiB were taken; {now} KiB are left")


async def skew_clock(shell: Shell, seed: int, dose: int) -> ActiveFault:
    """Set the guest's clock 1 to 1000 days ahead or back; more with a higher dose."""
    drawn = random.Random(seed)
    shift = drawn.choice((-1, 1)) * drawn.randint(_DAY, 1000 * _DAY) * dose
    output = await _run(shell, _SKEW.replace("{shift}", str(shift)))
    before, now = (int(number) for number in _read(shell, output, r"clock (-?\d+) (-?\d+)"))
    if abs(now - before - shift) > _DAY // 2:
        raise NotApplied(f"{shell.name}: its clock went from {before} to {now}, not by {shift} s")
    return ActiveFault(f"the guest's clock was {before} and is {now} ({shift / _DAY:+.1f} days)")


ACTIONS: Mapping[str, Callable[[Shell, int, int], Awaitable[ActiveFault]]] = {
    "service-kill": kill_service,
    "service-stop": stop_service,
    "service-corrupt": corrupt_service,
    "cpu-hog": hog_cpu,
    "memory-hog": hog_memory,
    "file-corrupt": corrupt_file,
    "clock-skew": skew_clock,
}
"""By kind: a function of a guest's shell, a seed and a dose of at least 1.

It raises NotApplied, and DeployError if the shell cannot be reached.
"""


async def _run(shell: Shell, script: str, stdin: str = "", *, timeout: float = _TIMEOUT) -> str:
    status, output = await shell.run(script, stdin=stdin.encode(), timeout=timeout)
    if status != 0:
        raise NotApplied(f"{shell.name}: the guest's shell ended with {status}: {output.strip()!r}")
    return output


def _read(shell: Shell, output: str, pattern: str) -> tuple[str, ...]:
    """Return the groups of the pattern.  Raises NotApplied if the output does not match it."""
    match = re.fullmatch(pattern, output.strip())
    if match is None:
        raise NotApplied(f"{shell.name}: not read back, the guest printed {output.strip()!r}")
    return match.groups()


def _draws(seed: int, dose: int) -> str:
    """Return for each flip a large number (modulo the size, the offset) and a bit.

    The number has 53 bits, which awk can hold; for sizes near 2**23 the modulo bias is negligible.
    """
    drawn = random.Random(seed)
    return " ".join(f"{drawn.getrandbits(53)}:{1 << drawn.randrange(8)}" for _ in range(dose))


def _flips(shell: Shell, output: str, dose: int) -> str:
    """Describe the flips.  Raises NotApplied unless all of them were read back."""
    found = re.findall(r"^flipped (\d+) (\d+) (\d+) (\d+) (\S+)$", output, re.MULTILINE)
    right = [flip for flip in found if int(flip[2]) ^ int(flip[1]) == int(flip[3])]
    # Two flips of one byte each read back what they wrote, so both count.
    if len(right) != dose:
        raise NotApplied(
            f"{shell.name}: {len(right)} of {dose} flips read back: {output.strip()!r}"
        )
    place, _, before, now, where = right[0]
    more = "" if dose == 1 else f", and {dose - 1} more"
    return f"{where} at {int(place):#x} was {before} and is {now}{more}"
