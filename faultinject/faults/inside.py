"""Faults inside a guest, over its shell: programs, memory, files, clock.

Each is one command of the guest's own shell, which carries it out and reads it back: a connection
and a command cost most of a mission under TCG, a Python in the guest ten times as much. What the
command says must match what is expected of it, word by word; else the fault was not applied.

Nothing is undone here: the guest is put back to its clean snapshot by others.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from faultinject.faults.site import Applied, NotApplied

__all__ = [
    "ACTS",
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
"""Seconds for a command that a loaded guest carries out; 0.15 to 0.5 are usual."""

_PER_FLIP = 0.5
"""Seconds more for each bit to flip; 0.05 is usual."""

_SPINNERS = 2
"""Programs that take the processor, for each unit of the dose."""

_PRIORITY = -10
"""Of theirs: two leave a twentieth of the processor to the others. (At -20 four leave so little
that the guest's shell says nothing any more for half a minute.)"""

_LEFT_KIB = 4096
"""What a hog leaves of the free memory at a dose of 1, in KiB; a dose of n leaves an n-th of it."""

_LEAST_KIB = 1536
"""What it leaves in any case: with less the kernel ends programs, the hog itself among them."""

_DAY = 86_400


class Shell(Protocol):
    """A way to run commands in a guest, as ``deploy.machine.ssh.GuestShell`` is one."""

    @property
    def name(self) -> str:
        """The guest's name."""

    async def run(
        self, command: str, *, stdin: bytes = b"", timeout: float = _TIMEOUT
    ) -> tuple[int, str]:
        """Run a command to its end; return its status and what it said.  Raises DeployError."""


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

# Bytes are read and written through dd: $1 is the file, $2 the place, $3 the byte. What is to be
# flipped comes by stdin: a command may have 9000 bytes at most.
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

# Uniform over the bytes of what is mapped, writable and private. Stopped meanwhile, the process
# cannot write what is just read back.
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

# Its code, its content, and the libraries that it runs on, which it sees changed at once. (The
# Python program itself cannot be written while it runs.)
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

# Reniced when all run: before, the shell itself would hardly get to start the next.
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

# Memory that belongs to no process: the kernel cannot win it back by killing one.
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


async def kill_service(shell: Shell, seed: int, dose: int) -> Applied:
    """Kill the service's process; the agent starts another, empty."""
    del seed, dose
    said = await _tell(shell, _FIND + _KILL)
    [pid] = _read(shell, said, r"gone (\d+)")
    return Applied(f"the service's process {pid} is gone", used=True)


async def stop_service(shell: Shell, seed: int, dose: int) -> Applied:
    """Stop the service's process; its agent lives on."""
    del seed, dose
    said = await _tell(shell, _FIND + _STOP + 'echo "process $service $(state $service)"')
    [pid] = _read(shell, said, r"process (\d+) T")
    return Applied(f"the service's process {pid} is in state T (stopped)", used=True)


async def corrupt_service(shell: Shell, seed: int, dose: int) -> Applied:
    """Flip ``dose`` bits of the service's own memory, uniformly over its writable private bytes."""
    script = _FIND + _BYTES + _CORRUPT
    said = await _tell(shell, script, _draws(seed, dose), timeout=_TIMEOUT + dose * _PER_FLIP)
    return Applied(f"in the service's memory: {_flips(shell, said, dose)}")


async def corrupt_file(shell: Shell, seed: int, dose: int) -> Applied:
    """Flip ``dose`` bits, uniformly over the bytes of the files that the service is made of."""
    script = _FIND + _BYTES + _FILES
    said = await _tell(shell, script, _draws(seed, dose), timeout=_TIMEOUT + dose * _PER_FLIP)
    return Applied(f"in files: {_flips(shell, said, dose)}")


async def hog_cpu(shell: Shell, seed: int, dose: int) -> Applied:
    """Have programs of the highest priority run without end."""
    del seed
    count = _SPINNERS * dose
    script = _SPIN.replace("{count}", str(count)).replace("{priority}", str(_PRIORITY))
    said = await _tell(shell, script)
    spinning = re.findall(r"^spins (\d+) R (-?\d+)$", said, re.MULTILINE)
    if len(spinning) != count or any(nice != str(_PRIORITY) for _, nice in spinning):
        raise NotApplied(f"{shell.name}: not {count} programs run: {said!r}")
    proof = f"{count} programs run at priority {_PRIORITY}, the first is {spinning[0][0]}"
    return Applied(proof, used=True)


async def hog_memory(shell: Shell, seed: int, dose: int) -> Applied:
    """Take the guest's memory until hardly any is left."""
    del seed
    left = max(_LEFT_KIB // dose, _LEAST_KIB)
    said = await _tell(shell, _FILL.replace("{left}", str(left)))
    held, before, now = (
        int(word) for word in _read(shell, said, r"held (\d+) of (\d+) free (\d+)")
    )
    # What the kernel wins back by ending programs may be free again: that is the fault's work too.
    if held < before - left:
        raise NotApplied(f"{shell.name}: {held} KiB of its memory are taken, of {before}")
    return Applied(f"{held} KiB of memory are taken of {before} that were free, {now} are left")


async def skew_clock(shell: Shell, seed: int, dose: int) -> Applied:
    """Set the guest's clock 1 to 1000 days ahead or back; more with a higher dose."""
    drawn = random.Random(seed)
    shift = drawn.choice((-1, 1)) * drawn.randint(_DAY, 1000 * _DAY) * dose
    said = await _tell(shell, _SKEW.replace("{shift}", str(shift)))
    before, now = (int(word) for word in _read(shell, said, r"clock (-?\d+) (-?\d+)"))
    if abs(now - before - shift) > _DAY // 2:
        raise NotApplied(f"{shell.name}: its clock went from {before} to {now}, not by {shift} s")
    return Applied(f"the guest's clock was {before} and is {now} ({shift / _DAY:+.1f} days)")


ACTS: Mapping[str, Callable[[Shell, int, int], Awaitable[Applied]]] = {
    "service-kill": kill_service,
    "service-stop": stop_service,
    "service-corrupt": corrupt_service,
    "cpu-hog": hog_cpu,
    "memory-hog": hog_memory,
    "file-corrupt": corrupt_file,
    "clock-skew": skew_clock,
}
"""By kind: what to call with a guest's shell, a seed and a dose of at least 1.

They raise NotApplied, and DeployError where the guest cannot be spoken to.
"""


async def _tell(shell: Shell, script: str, stdin: str = "", *, timeout: float = _TIMEOUT) -> str:
    status, said = await shell.run(script, stdin=stdin.encode(), timeout=timeout)
    if status != 0:
        raise NotApplied(f"{shell.name}: the guest's shell ended with {status}: {said.strip()!r}")
    return said


def _read(shell: Shell, said: str, pattern: str) -> tuple[str, ...]:
    """Return the groups of what was to be said.  Raises NotApplied if something else was."""
    match = re.fullmatch(pattern, said.strip())
    if match is None:
        raise NotApplied(f"{shell.name}: not read back, the guest says {said.strip()!r}")
    return match.groups()


def _draws(seed: int, dose: int) -> str:
    """Return for each flip a large number (its remainder by the size is the place) and a bit.

    53 bits, which awk's numbers hold: against sizes of 2**23 or so the remainder's bias is nothing.
    """
    drawn = random.Random(seed)
    return " ".join(f"{drawn.getrandbits(53)}:{1 << drawn.randrange(8)}" for _ in range(dose))


def _flips(shell: Shell, said: str, dose: int) -> str:
    """Return in words what was flipped.  Raises NotApplied unless all of it was."""
    found = re.findall(r"^flipped (\d+) (\d+) (\d+) (\d+) (\S+)$", said, re.MULTILINE)
    right = [flip for flip in found if int(flip[2]) ^ int(flip[1]) == int(flip[3])]
    # Two flips of one byte each read back what they wrote.
    if len(right) != dose:
        raise NotApplied(f"{shell.name}: {len(right)} of {dose} flips read back: {said.strip()!r}")
    place, _, before, now, where = right[0]
    more = "" if dose == 1 else f", and {dose - 1} more"
    return f"{where} at {int(place):#x} was {before} and is {now}{more}"
