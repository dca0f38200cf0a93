"""What a deployment does over its connection: facts, privileges, upload, the host's transaction."""

from __future__ import annotations

import io
import re
import shlex
import tarfile
from collections.abc import Callable
from typing import NamedTuple

from deploy.errors import AlreadyUp, CannotRunHere, DeployError
from deploy.machine.ssh import CommandResult
from deploy.node.records import Settings
from deploy.remote.connection import ConnectionLost, RemoteHost
from deploy.remote.facts import SCRIPT, Facts, parse_facts
from deploy.remote.plan import DEFAULT_HTTP, Plan, url_of

__all__ = ["Deployment", "Smoke"]

CHECK_TIMEOUT = 60.0
"""Seconds for the host's script to print its facts, or to start a transaction."""
LOG = "/var/lib/trivisor-deploy/log"
"""The last transaction's log on the host."""
BOOT_FACTOR = 10
"""A whole boot may take so many times --boot-deadline; see docs/operations.md."""
START_RESERVE = 120.0
"""Seconds that the start of the voter and slow disks add to the boot."""
_BUSY = 75  # exit status of `begin` while another transaction runs
_SHOWN = 25  # last lines of the log that an error shows

# Patterns in the log, each with the remedy for its cause.
_CAUSES = (
    (r"No space left on device|not enough free space", "make room on the host's disk"),
    (
        r"Could not get lock|Unable to acquire the dpkg|is another process using it",
        "another program on the host uses apt; wait for its end (`ps -e | grep -E 'apt|dpkg'`)",
    ),
    (r"dpkg was interrupted", "repair it on the host: `dpkg --configure -a`"),
    (
        r"Temporary failure resolving|Could not resolve|Could not connect|Unable to fetch|"
        r"Failed to fetch|Connection (failed|timed out)",
        "the host cannot download Debian packages: check its network and /etc/apt",
    ),
    (
        r"Unable to locate package|has no installation candidate|is not installable",
        "the host's apt sources lack a package: add Debian 12's to /etc/apt, `apt-get update`",
    ),
    (r"unmet dependencies|held broken packages", "repair it on the host: `apt-get install -f`"),
)


class Smoke(NamedTuple):
    """The reply to the request that shows that the node votes."""

    status: int
    vote: str


class Deployment:
    """One deployment to a connected host.

    ``by``: who deploys and from where, shown to others.  ``progress`` gets each step.
    """

    def __init__(self, host: RemoteHost, *, by: str, progress: Callable[[str], object]) -> None:
        self._host = host
        self._by = by
        self._progress = progress
        self._sudo: str | None = None  # the prefix of a command; None: not root yet
        self._password = b""

    @property
    def privileged(self) -> bool:
        """Whether commands can be run as root."""
        return self._sudo is not None

    def facts(self) -> Facts:
        """Return the host's state.  Raises DeployError, ConnectionLost."""
        facts = parse_facts(self._script("facts", root=self.privileged).out)
        if self._sudo is None and facts.get("uid") == "0":
            self._sudo = ""
            return parse_facts(self._script("facts", root=True).out)
        if self._sudo is None and "sudo" in facts.values:
            done = self._host.run("sudo -n true", timeout=CHECK_TIMEOUT)
            if done.status == 0:
                self._sudo = "sudo -n -- "
                return parse_facts(self._script("facts", root=True).out)
        return facts

    def become_root(self, facts: Facts, ask: Callable[[str], str]) -> None:
        """Make sure that commands can be run as root; ``ask`` returns the password of a user.

        Raises CannotRunHere, DeployError.
        """
        if self.privileged:
            return
        user = self._host.user
        if "sudo" not in facts.values:
            raise CannotRunHere(
                f"{user} is not root on the host, and sudo is not installed there",
                remedy="deploy as root (root@HOST), or install sudo and add the user to its group",
                error_code="TV0757",
            )
        self._password = ask(f"{user}@{self._host.address}").encode() + b"\n"
        if self._password.count(b"\n") > 1 or self._password == b"\n":
            raise DeployError(
                "the password of sudo is empty or more than one line", error_code="TV0757"
            )
        # -k: with cached credentials it would not read the password, and the command would.
        prefix = "sudo -k -S -p '' -- "
        done = self._host.run(f"{prefix}true", stdin=self._password, timeout=CHECK_TIMEOUT)
        if done.status != 0:
            raise self._no_sudo(user, done.out)
        self._sudo = prefix

    def _no_sudo(self, user: str, out: str) -> DeployError:
        if "sudoers" in out or "not allowed" in out:
            return CannotRunHere(
                f"{user} may not use sudo on the host: {' '.join(out.split())[-200:]}",
                remedy=f"deploy as root, or run there, as root: adduser {user} sudo",
                error_code="TV0757",
            )
        if "tty" in out:
            return CannotRunHere(
                f"sudo on the host requires a terminal for {user}",
                remedy=f"remove `requiretty` from /etc/sudoers there for {user}, or deploy as root",
                error_code="TV0757",
            )
        return DeployError(
            f"sudo on the host does not accept this password of {user}",
            remedy="try again with that user's password on the host",
            error_code="TV0757",
        )

    def settle(self, facts: Facts) -> Facts:
        """Wait for a transaction of ours that runs, undo one that died; return the facts after it.

        Raises AlreadyUp if another's runs, DeployError.
        """
        running = facts.get("transaction")
        if running:
            if running.partition(",")[0] != self._by.partition(",")[0]:
                raise self._busy(running)
            self._progress(f"following the deploy that runs on the host ({running})")
            self.follow()
            facts = self.facts()
        if "interrupted" in facts.values:
            self._progress("the host went down during an earlier deploy: undoing it")
            plan = Plan([], [], {}, [], None, Settings(), DEFAULT_HTTP, mode="recover")
            self.transact(plan, facts)
            facts = self.facts()
        return facts

    def _busy(self, who: str) -> AlreadyUp:
        return AlreadyUp(
            f"another deploy runs on the host: {who}",
            remedy="wait for its end; `systemctl status trivisor-deploy` on the host shows it",
            error_code="TV0758",
        )

    # ---- changes

    def transact(self, plan: Plan, facts: Facts) -> Smoke | None:
        """Upload what a plan needs, start the host's transaction and wait for its end.

        Ctrl-C has the host undo it.  Raises DeployError, ConnectionLost.
        """
        try:
            place = self._upload(plan, facts)
        except KeyboardInterrupt:
            self._progress("interrupted: nothing was changed on the host")
            self._script("clean", root=False)
            raise
        except ConnectionLost as error:
            raise ConnectionLost(
                error.problem, remedy="nothing was changed on the host; run the same command again"
            ) from error
        try:
            done = self._script("begin", place, root=True)
            if done.status == _BUSY:
                raise self._busy(_value(done.out, "busy"))
            if done.status != 0:
                raise DeployError(
                    f"the host could not start the transaction: {_flat(done.out)}",
                    remedy="nothing was changed on the host; check its disk and `systemctl status`",
                    error_code="TV0765",
                )
            smoke = self.follow()
            if plan.mode in ("remove", "purge"):
                self._script("forget", root=True)
            return smoke
        except ConnectionLost as error:
            raise ConnectionLost(
                error.problem,
                remedy="the host finishes what it has started, or undoes it; run the same command "
                "again to see how that ended",
            ) from error

    def follow(self) -> Smoke | None:
        """Show the host's transaction until it ends.  Raises DeployError, ConnectionLost."""
        try:
            return self._follow()
        except KeyboardInterrupt:
            if not self.privileged:
                raise
            self._progress("interrupted: the host undoes its changes (Ctrl-C again: do not wait)")
            self._script("cancel", root=True)
            try:
                self._follow(seen=True)
            except DeployError as error:
                self._progress(error.problem)
            raise

    def _follow(self, *, seen: bool = False) -> Smoke | None:
        log: list[str] = []
        undoing = False

        def line(text: str) -> None:
            nonlocal undoing
            name, _, value = text[1:].partition(" ")
            if not text.startswith("@"):
                log.append(text)
                if text.startswith("Waiting for cache lock"):
                    self._progress(text)
            elif name in ("step", "note"):
                undoing = undoing or value == "undoing the changes"
                if not seen or undoing:
                    self._progress(value)
            else:
                found[name] = value

        found: dict[str, str] = {}
        self._host.follow("sh -s -- follow", line, stdin=SCRIPT.read_bytes())
        kind, _, reason = found.get("result", "").partition(" ")
        if kind == "ok":
            return _smoke(found["smoke"]) if "smoke" in found else None
        cause = next((remedy for each, remedy in _CAUSES if re.search(each, "\n".join(log))), "")
        shown = "\n".join(f"  {each}" for each in log[-_SHOWN:])
        if shown and reason != "cancelled":
            self._progress(f"the end of {LOG} on the host:\n{shown}")
        see = f"see {LOG} on the host"
        if kind == "incomplete":
            raise DeployError(
                f"{reason}; the host could not undo all changes",
                remedy=f"{cause + ', and ' if cause else ''}{see}; then `dpkg --audit` and "
                "`trivisor deploy` again",
                error_code="TV0766",
            )
        what = "; all changes on the host were undone" if kind == "rolled-back" else ""
        raise DeployError(
            f"{reason or 'the transaction failed'}{what}", remedy=cause or see, error_code="TV0765"
        )

    def verify(self, plan: Plan) -> Smoke:
        """Return the reply of a node that needs no change.  Raises DeployError."""
        found: list[str] = []
        url, guests = url_of(plan.http), plan.settings.guests
        words = shlex.join(["verify", url, str(guests), str(round(deadline(plan)))])
        status = self._host.follow(f"sh -s -- {words}", found.append, stdin=SCRIPT.read_bytes())
        output = "\n".join(found)
        if status != 0 or "@smoke " not in output:
            raise DeployError(
                f"the node does not answer as it should: {_value(output, 'failed') or output}",
                remedy="see `systemctl status trivisor` and `trivisor status` on the host",
                error_code="TV0767",
            )
        return _smoke(_value(output, "smoke"))

    def _upload(self, plan: Plan, facts: Facts) -> str:
        """Upload package, script and settings to a private directory; return its path."""
        package = plan.package
        done = self._script("place", package.sha256 if package is not None else "none", root=False)
        place = _value(done.out, "place")
        if done.status != 0 or not place:
            raise DeployError(
                f"there is no place for uploads on the host: {_flat(done.out)}",
                remedy="check the directory /var/tmp there",
                error_code="TV0768",
            )
        if package is not None and "@kept" not in done.out.splitlines():
            self._progress(f"uploading {package.file.name} ({package.size >> 20} MiB)")
            name = shlex.quote(f"{place}/{package.sha256}.deb")
            check = (
                f"umask 077; cat > {name}; s=$(sha256sum < {name}); "
                f'[ "${{s%% *}}" = {package.sha256} ] || {{ rm -f {name}; exit 1; }}'
            )
            done = self._host.upload(package.file, check)
            if done.status != 0:
                full = "No space" in done.out
                raise DeployError(
                    f"the package did not arrive as it was sent: {_flat(done.out) or 'checksum'}",
                    remedy="make room in the host's /var/tmp" if full else "run the command again",
                    error_code="TV0768",
                )
        elif package is not None:
            self._progress("the package was uploaded before")
        archive = _archive(
            {
                "host.sh": SCRIPT.read_bytes(),
                "spec": plan.spec(state=facts.get("state"), deadline=deadline(plan)).encode(),
                "by": self._by.encode(),
                **{f"tree/{path}": text.encode() for path, text in plan.files.items()},
            }
        )
        unpack = f"umask 022; exec tar -x -C {shlex.quote(place)}"
        done = self._host.run(unpack, stdin=archive, timeout=CHECK_TIMEOUT)
        if done.status != 0:
            raise DeployError(
                f"the settings could not be uploaded: {_flat(done.out)}", error_code="TV0768"
            )
        return place

    def _script(self, *words: str, root: bool) -> CommandResult:
        """Run the host's script."""
        prefix, password = "", b""
        if root:
            assert self._sudo is not None
            prefix, password = self._sudo, self._password
        command = f"{prefix}sh -s -- {shlex.join(words)}"
        stdin = password + SCRIPT.read_bytes()
        return self._host.run(command, stdin=stdin, timeout=CHECK_TIMEOUT)


def deadline(plan: Plan) -> float:
    """Return the seconds within which all guests must vote."""
    return BOOT_FACTOR * plan.settings.boot_deadline + START_RESERVE


def _archive(files: dict[str, bytes]) -> bytes:
    """Return a tar archive of files that everybody may read."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return output.getvalue()


def _value(output: str, name: str) -> str:
    """Return the value of the line "@name value" of the script's output; empty without one."""
    prefix = f"@{name} "
    found = (each.removeprefix(prefix) for each in output.splitlines() if each.startswith(prefix))
    return next(found, "").strip()


def _flat(output: str) -> str:
    return " ".join(output.split())[-300:]


def _smoke(text: str) -> Smoke:
    status, vote, *_ = [*text.split(), "-", "-"]
    return Smoke(int(status) if status.isdecimal() else 0, vote)
