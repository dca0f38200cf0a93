"""``trivisor deploy``: install, configure and start a node on another host by SSH."""

from __future__ import annotations

import getpass
import ipaddress
import re
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from deploy.commands.options import (
    StepPrinter,
    agree_on_guests,
    find_service,
    json_option,
    node_options,
)
from deploy.errors import DeployError
from voter.commands.parameters import Text, existing_file
from voter.commands.terminal import CommandError, ExitCode, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from deploy.remote.connection import SshTarget
    from deploy.remote.deployment import Deployment, Smoke
    from deploy.remote.facts import Facts, HostFinding
    from deploy.remote.plan import Plan
    from voter.core import Policy

__all__ = ["deploy"]

DIST = Path("dist")
"""Where `./run package` puts the package, below the working directory."""
_NODE_KEYS = {
    "guests": "guests",
    "vote": "vote",
    "service": "service",
    "accel": "accel",
    "http": "http",
    "memory": "memory",
    "boot_deadline": "boot-deadline",
    "allow_faults": "allow-faults",
    "repair": "repair",
    "durability": "durability",
    "keep_history": "keep-history",
    "follow": "follow",
}
"""Keys of the host's settings file, by the options' parameters."""


class SshHost(Text):
    """USER@HOST[:PORT] of an SSH server."""

    name = "USER@HOST[:PORT]"

    def read(self, text: str) -> SshTarget:
        """Return the target."""
        from deploy.remote.connection import parse_target  # noqa: PLC0415 - rarely needed

        return parse_target(text)


@click.command()
@click.argument("host", metavar="USER@HOST[:PORT]", type=SshHost())
@click.option(
    "--package", type=existing_file(), help="The Debian package  [default: the newest in ./dist]"
)
@click.option(
    "--identity",
    type=existing_file(),
    multiple=True,
    help="Private key to log in with  [default: as ssh]",
)
@click.option(
    "--known-hosts", type=existing_file(), help="File of known host keys  [default: as ssh]"
)
@click.option(
    "--ask-sudo-password",
    is_flag=True,
    help="Read sudo's password from standard input if that is not a terminal.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be done; change nothing.")
@click.option("--remove", is_flag=True, help="Remove Trivisor from the host; keep its state.")
@click.option("--purge", is_flag=True, help="With --remove: delete settings and state too.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@node_options
@json_option
def deploy(  # noqa: PLR0913 - one for each option
    host: SshTarget,
    package: Path | None,
    identity: tuple[Path, ...],
    known_hosts: Path | None,
    ask_sudo_password: bool,
    dry_run: bool,
    remove: bool,
    purge: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Install a node on another host, start it, and send it a request.

    The host needs Debian 12 with systemd; the user there root or sudo.  Options of the node that
    are not given stay as they are on the host.  A second run changes nothing.  If the connection
    breaks, the host finishes what it has started or undoes it.
    """
    from deploy.remote.connection import RemoteHost  # noqa: PLC0415 - rarely needed
    from deploy.remote.deployment import Deployment  # noqa: PLC0415

    quiet_logs()
    context = click.get_current_context()
    given = {
        name: options[name]
        for name in _NODE_KEYS
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if purge and not remove:
        raise click.UsageError("--purge is for --remove")
    if remove and (given or package is not None):
        raise click.UsageError("--remove takes no package and no options of a node")
    run = _DeployRun(dry_run=dry_run, yes=yes, quiet=as_json, password_from_stdin=ask_sudo_password)
    wanted = None if remove else _Wanted(package, given)
    by = f"{_user()}@{socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
    run.progress(f"connecting to {host}")
    with RemoteHost.connect(host, identities=list(identity), known_hosts=known_hosts) as remote:
        deployment = Deployment(remote, by=by, progress=run.progress)
        if wanted is None:
            result = run.remove(deployment, purge=purge)
        else:
            result = run.install(deployment, wanted)
    if as_json:
        print_json({"host": str(host), "dry_run": dry_run, **result})


class _Wanted:
    """What is deployed: the package, and the node's settings that the user has given."""

    def __init__(self, package: Path | None, given: dict[str, Any]) -> None:
        from deploy.remote.package import find_package, read_package  # noqa: PLC0415

        if "http" in given:
            _check_address(given["http"])
        policy: Policy | None = None
        if "guests" in given or "vote" in given:
            policy = agree_on_guests(given.get("guests"), given.get("vote"))
        self.service: tuple[str, bytes] | None = None
        if "service" in given:
            found = find_service(given["service"])
            if found.endswith(".py"):
                self.service = _read_service(Path(found))
                del given["service"]
        self.package = read_package(package if package is not None else find_package(DIST))
        self.settings = {_NODE_KEYS[name]: value for name, value in given.items()}
        if policy is not None:
            self.settings |= {"guests": policy.of, "vote": str(policy)}


def _check_address(http: str) -> None:
    """Raise CommandError if systemd cannot listen on an address."""
    host, _, port = http.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        pass
    else:
        if port != "0":
            return
    raise CommandError(
        f"--http {http}: systemd listens on the host, and needs an IP address and a port",
        remedy="write for example 127.0.0.1:8080, or 0.0.0.0:8080 to serve other hosts",
        code=ExitCode.USAGE,
        error_code="TV0006",
    )


def _read_service(path: Path) -> tuple[str, bytes]:
    """Return name and content of a service's file.  Raises CommandError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.py", path.name):
        raise CommandError(
            f"--service: the name {path.name!r} cannot be used on the host",
            remedy="rename the file: letters, digits, _ and - only",
            code=ExitCode.USAGE,
            error_code="TV0408",
        )
    content = path.read_bytes()
    try:
        compile(content.decode(), str(path), "exec")
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise CommandError(
            f"--service: {path} is not Python: {error}",
            remedy=f"correct it; `trivisor service check {path}` tests it",
            code=ExitCode.USAGE,
            error_code="TV0402",
        ) from error
    return path.name, content


class _DeployRun:
    """One run of the command: the order of its steps, and the dialogue with its user."""

    def __init__(self, *, dry_run: bool, yes: bool, quiet: bool, password_from_stdin: bool) -> None:
        self._dry_run = dry_run
        self._yes = yes
        self._quiet = quiet
        self._password_from_stdin = password_from_stdin
        self.progress = StepPrinter(quiet=quiet)

    def install(self, deployment: Deployment, wanted: _Wanted) -> dict[str, Any]:
        """Bring the host to the wanted state; return the result as JSON has it."""
        from deploy.remote.plan import make_plan, url_of  # noqa: PLC0415

        facts = self._facts(deployment)
        plan, findings = self._plan(facts, wanted)
        if plan.steps and not self._dry_run and not deployment.privileged:
            deployment.become_root(facts, self._ask_password)
            facts = deployment.facts()  # root sees more
            plan, findings = self._plan(facts, wanted)
        self._show(plan, findings)
        smoke: Smoke | None = None
        if not self._dry_run:
            if plan.steps:
                self._confirm(plan)
                smoke = deployment.transact(plan, facts)
                after = make_plan(
                    deployment.facts(), wanted.package, wanted.settings, wanted.service
                )
                if after.steps:
                    raise DeployError(
                        f"the host does not have what was deployed: {'; '.join(after.steps)}",
                        remedy="find out whether something else changes it, then deploy again",
                        error_code="TV0767",
                    )
            else:
                smoke = deployment.verify(plan)
        url = url_of(plan.http)
        if smoke is not None:
            if smoke.vote == "-":
                raise DeployError(
                    f"GET / was answered with {smoke.status} and without a vote",
                    remedy="see `trivisor status` on the host",
                    error_code="TV0767",
                )
            self.progress(f"GET {url}/ on the host: status {smoke.status}, vote {smoke.vote}")
            state = "deployed" if plan.steps else "nothing to change"
            self.progress(f"{state}: vote {plan.settings.vote} at {url}/")
        return {
            "changed": bool(plan.steps) and not self._dry_run,
            "steps": plan.steps,
            "differences": plan.diffs,
            "warnings": [finding._asdict() for finding in findings],
            "package": {"version": wanted.package.version, "sha256": wanted.package.sha256},
            "url": url,
            "vote": plan.settings.vote,
            "reply": smoke._asdict() if smoke is not None else None,
        }

    def remove(self, deployment: Deployment, *, purge: bool) -> dict[str, Any]:
        """Remove Trivisor from the host; return the result as JSON has it."""
        from deploy.remote.plan import make_removal  # noqa: PLC0415

        facts = self._facts(deployment)
        plan = make_removal(facts, purge=purge)
        self._show(plan, [])
        if plan.steps and not self._dry_run:
            self._confirm(plan, removal=True)
            deployment.become_root(facts, self._ask_password)
            deployment.transact(plan, facts)
            kept = "nothing of it is kept" if purge else "settings and state are kept"
            self.progress(f"removed; {kept}")
            self.progress(
                "Debian packages that it needed are still there: `apt-get autoremove` removes them"
            )
        return {"changed": bool(plan.steps) and not self._dry_run, "steps": plan.steps}

    def _facts(self, deployment: Deployment) -> Facts:
        """Return the host's facts when no transaction runs there."""
        facts = deployment.facts()
        last = facts.get("last")
        if last and not last.startswith("ok"):
            self.progress(f"the last deploy to this host ended: {last.partition(' ')[2]}")
        if self._dry_run:
            return facts
        if "interrupted" in facts.values:
            deployment.become_root(facts, self._ask_password)
        return deployment.settle(facts)

    def _plan(self, facts: Facts, wanted: _Wanted) -> tuple[Plan, list[HostFinding]]:
        """Return the plan, and what the user should know about the host.  Raises CannotRunHere."""
        from deploy.remote.facts import examine  # noqa: PLC0415
        from deploy.remote.plan import make_plan  # noqa: PLC0415

        plan = make_plan(facts, wanted.package, wanted.settings, wanted.service)
        settings = plan.settings
        space = wanted.package.installed + wanted.package.size if plan.package is not None else 0
        findings = examine(
            facts,
            guests=settings.guests,
            memory=settings.memory_mib,
            accel=settings.accel,
            http=plan.http,
            space=space,
        )
        return plan, findings

    def _show(self, plan: Plan, findings: list[HostFinding]) -> None:
        for finding in findings:
            self.progress(f"note: {finding.problem}")
            if finding.remedy:
                self.progress(f"      {finding.remedy}")
        for diff in plan.diffs:
            self.progress("the host has other contents:\n" + diff)
        if self._dry_run:
            for step in plan.steps:
                self.progress(f"would {step}")
            self.progress(
                "nothing was changed (--dry-run)" if plan.steps else "nothing would be changed"
            )
        elif not plan.steps:
            self.progress("the host needs no change")

    def _confirm(self, plan: Plan, *, removal: bool = False) -> None:
        """Have the user confirm what replaces or removes something.  Raises CommandError, Abort."""
        if self._yes or not (plan.diffs or removal):
            return
        what = "; ".join(plan.steps)
        if self._quiet or self._password_from_stdin or not sys.stdin.isatty():
            differences = "".join(f"\n{each}" for each in plan.diffs) if self._quiet else ""
            raise CommandError(
                f"this would replace or remove what is on the host: {what}{differences}",
                remedy="add --yes to confirm",
                code=ExitCode.USAGE,
                error_code="TV0720",
            )
        warn("This will, on the host:")
        for step in plan.steps:
            warn(f"  {step}")
        click.confirm("Continue?", abort=True, err=True)

    def _ask_password(self, whose: str) -> str:
        """Return sudo's password, from terminal or standard input.  Raises CommandError."""
        if sys.stdin.isatty():
            return getpass.getpass(f"Password of {whose} for sudo: ")
        if self._password_from_stdin:
            return sys.stdin.readline().rstrip("\n")
        raise CommandError(
            f"sudo wants a password of {whose}, and standard input is not a terminal",
            remedy="give it on standard input with --ask-sudo-password; or deploy as root, or as a "
            "user whose sudo asks for none",
            code=ExitCode.USAGE,
            error_code="TV0757",
        )


def _user() -> str:
    """Return the name of the user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
