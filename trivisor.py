"""The command ``trivisor``: a group of commands, each imported when it is called.

This module prints errors as one message with a remedy, and exits with a code of
``voter.commands.terminal.ExitCode``.  ``--debug`` shows the traceback instead.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from difflib import get_close_matches
from typing import Any

import click

from deploy.host.guard import guard_command
from guests.errors import CodedError
from voter.commands.terminal import DEFECT, CommandError, ExitCode, code_of, warn

__all__ = ["COMMANDS", "command", "main"]

# Name: module, object in it, one line of help (so that `--help` imports no command).
COMMANDS: dict[str, tuple[str, str, str]] = {
    "up": (
        "deploy.commands.up",
        "up",
        "Start a node: guests and their voter; return when ready.",
    ),
    "status": ("deploy.commands.status", "status", "Show the state of a node."),
    "dashboard": (
        "deploy.commands.dashboard",
        "dashboard",
        "Print a link that opens a node's dashboard in a browser.",
    ),
    "request": ("voter.commands.request", "request", "Send one request through the vote."),
    "inject": ("faultinject.commands.faults", "inject", "Inject a fault into a guest."),
    "heal": (
        "faultinject.commands.faults",
        "heal",
        "Undo an injected fault; return when the guest votes again.",
    ),
    "rejuvenate": (
        "deploy.commands.rejuvenate",
        "rejuvenate",
        "Replace running guests by fresh ones while the node serves.",
    ),
    "patch": (
        "deploy.commands.patch",
        "patch",
        "Change the guests' software while the node serves.",
    ),
    "logs": (
        "deploy.commands.logs",
        "logs",
        "Show the log of a guest, the voter or the supervisor.",
    ),
    "trace": (
        "deploy.commands.trace",
        "trace",
        "Follow one request from its client through each replica and back.",
    ),
    "replay": (
        "deploy.commands.replay",
        "replay",
        "Execute the journal again in a guest of its own, and search it.",
    ),
    "monitor": (
        "deploy.commands.monitor",
        "monitor",
        "Watch a node by rules: alert, block a client, stop the node, or revert it.",
    ),
    "monitoring": (
        "deploy.commands.monitoring",
        "monitoring",
        "Write the files for Prometheus and Grafana.",
    ),
    "down": ("deploy.commands.down", "down", "Stop a node and everything that belongs to it."),
    "deploy": (
        "deploy.commands.deploy",
        "deploy",
        "Install and start a node on another host, by SSH.",
    ),
    "demo": (
        "faultinject.demo.command",
        "demo",
        "Show fault masking on three real guests.",
    ),
    "bench": (
        "faultinject.bench.commands",
        "bench",
        "Measure what voting costs.",
    ),
    "soak": (
        "faultinject.soak.command",
        "soak",
        "Inject hundreds of faults under load, and check every reply.",
    ),
    "simulate": (
        "faultinject.simulation.command",
        "simulate",
        "Search for defects of the voter in simulation.",
    ),
    "campaign": (
        "faultinject.commands.campaign",
        "campaign",
        "Measure reliability under planned faults.",
    ),
    "experiment": (
        "faultinject.commands.experiment",
        "experiment",
        "Test the methods of the paper's section 3 against predictions.",
    ),
    "model": (
        "faultinject.calculator.commands",
        "model",
        "Calculate the paper's formulas, bounds and figures.",
    ),
    "paper": (
        "faultinject.claims.commands",
        "paper",
        "Compare the paper's claims with what was measured.",
    ),
    "doctor": (
        "deploy.commands.doctor",
        "doctor",
        "Check this host; say how to fix what is missing.",
    ),
    "voter": ("voter.commands.voter", "voter", "Run the voter alone, in front of given links."),
    "function": (
        "deploy.commands.function",
        "function",
        "Run F: check requests once on the host, not in each guest.",
    ),
    "token": ("voter.commands.token", "token", "Make and revoke the tokens that clients need."),
    "service": ("voter.commands.service", "service", "Check a user-supplied service."),
    "explain": (
        "deploy.commands.explain",
        "explain",
        "Explain an error code: what happened, why, and what to do.",
    ),
    "completion": ("voter.commands.completion", "completion", "Print shell completion code."),
    "prepare": ("deploy.commands.prepare", "prepare", ""),
    "supervise": ("faultinject.commands.faults", "supervise", ""),
}
HIDDEN = frozenset({"prepare", "supervise"})
GUARDED = frozenset(
    {
        "up",
        "down",
        "deploy",
        "demo",
        "bench",
        "soak",
        "simulate",
        "campaign",
        "doctor",
        "service",
        "replay",
        "experiment",
        "patch",
    }
)
"""Commands that start processes: `deploy.host.guard` ends what they leave.

`deploy` starts them on another host: SIGTERM has it undo its changes there, as Ctrl-C does.

The daemons `voter`, `function` and `supervise` are not among them: systemd and the watchdog know
them by their pid.  Their children end with them.
"""
UNCOMPILED = frozenset({"simulate"})
"""Commands that run the sources themselves unless TRIVISOR_PURE=0 (see ``guests.compiled``)."""
OURS = frozenset({"deploy", "faultinject", "guests", "voter"})

# Exit codes of errors of the packages below, by the qualified name of the class or of a base.
EXIT_CODES: dict[str, ExitCode] = {
    "deploy.errors.CannotRunHere": ExitCode.CANNOT_RUN_HERE,
    "deploy.errors.PathUnusable": ExitCode.USAGE,
    "deploy.errors.AlreadyUp": ExitCode.ALREADY_UP,
    "deploy.errors.ForeignState": ExitCode.FOREIGN,
    "deploy.commands.control_client.NotUp": ExitCode.NOT_UP,
    "deploy.supervisor.active_faults.FaultRefused": ExitCode.NOT_ALLOWED,
    "deploy.strict_toml.SpecError": ExitCode.USAGE,
    "faultinject.results.findings.FindingsFileError": ExitCode.USAGE,
    "faultinject.model.paired.ModelError": ExitCode.USAGE,
    "faultinject.campaign.store.database.StoreBusy": ExitCode.ALREADY_UP,
    "voter.errors.ConfigError": ExitCode.USAGE,
    "voter.errors.AddressError": ExitCode.USAGE,
    "voter.core.vote.PolicyError": ExitCode.USAGE,
    "guests.service.ServiceError": ExitCode.USAGE,
    "voter.client.errors.TooLarge": ExitCode.USAGE,
    "voter.client.errors.Unauthorized": ExitCode.USAGE,
    "voter.client.errors.NotExecuted": ExitCode.NO_MAJORITY,
    "voter.client.errors.OutcomeUnknown": ExitCode.NO_MAJORITY,
    "voter.client.errors.SessionExpired": ExitCode.NO_MAJORITY,
    "voter.client.errors.TimedOut": ExitCode.NO_MAJORITY,
    "voter.client.errors.ConnectionFailed": ExitCode.NOT_UP,
}

EPILOG = (
    "Exit codes: "
    + ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in ExitCode)
    + ".  `trivisor explain CODE` explains the code of an error, for example TV0101."
)

_MISSING_LIBRARY = "TV0002"

# Error codes of click's errors, by the name of their class.
USAGE_CODES = {
    "NoSuchCommand": "TV0003",
    "NoSuchOption": "TV0004",
    "MissingParameter": "TV0005",
    "BadOptionUsage": "TV0005",
    "BadParameter": "TV0006",
}
_OTHER_USAGE = "TV0007"


class NoSuchCommand(click.UsageError):
    """The command line names no command."""


class _Commands(click.Group):
    """A group that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in COMMANDS if name not in HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            close = get_close_matches(cmd_name, self.list_commands(ctx), n=1)
            if close:
                raise NoSuchCommand(
                    f"No such command {cmd_name!r}. Did you mean {close[0]!r}?", ctx
                )
            raise NoSuchCommand(f"No such command {cmd_name!r}.", ctx)
        module, name, _ = entry
        found = getattr(importlib.import_module(module), name)
        if not isinstance(found, click.Command):
            raise TypeError(f"{module}.{name} is not a command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][2]) for name in self.list_commands(ctx)])


def _show_version(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow

        try:
            click.echo(f"trivisor {version('trivisor')}")
        except PackageNotFoundError:
            click.echo("trivisor, run from its sources (not installed)")
        ctx.exit()


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def command(ctx: click.Context, debug: bool) -> None:
    """Three virtual machines behind one voter: a host that tolerates the failure of one of them.

    A node lives in a directory (--dir, else $TRIVISOR_DIR, else one below $XDG_STATE_HOME); every
    command finds the node by it.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command and end the process with its exit code.

    Without ``arguments`` it runs the command line of this process, under a guard if it starts
    processes.
    """
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words[:1]
    name = next((word for word in words if not word.startswith("-")), "")
    if name in UNCOMPILED and "guests" not in sys.modules:
        os.environ.setdefault("TRIVISOR_PURE", "1")
    if arguments is None and name in GUARDED:
        guard_command(leaves=name == "up", after_failure=_sweep)
    try:
        result: Any = command.main(args=words, prog_name="trivisor", standalone_mode=False)
        code = result if isinstance(result, int) else ExitCode.OK
    except click.ClickException as error:
        _print_usage_error(error)
        code = error.exit_code
    except click.exceptions.Exit as error:
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        warn("interrupted")
        code = ExitCode.INTERRUPTED
    except Exception as error:
        code = _exit_code(error)
        if _lost_output(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        elif debug:
            raise
        else:
            _print_error(error, as_json="--json" in words)
    sys.exit(int(code))


def _sweep() -> None:
    """Remove the scratch directory of a command that could not do it."""
    from deploy.host.scratch import sweep_abandoned  # noqa: PLC0415 - rarely needed

    sweep_abandoned()


def _lost_output(error: Exception) -> bool:
    """Return whether the reader of the output has ended (`| head`), or the terminal is gone."""
    return isinstance(error, OSError) and error.errno in (errno.EPIPE, errno.EIO)


def _print_usage_error(error: click.ClickException) -> None:
    """Print what is wrong with the command line, with how the command is used."""
    code = next(
        (
            USAGE_CODES[kind.__name__]
            for kind in type(error).__mro__
            if kind.__name__ in USAGE_CODES
        ),
        _OTHER_USAGE,
    )
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        warn(context.get_usage())
        warn(f"Try '{context.command_path} --help' for help.\n")
    warn(f"error {code}: {error.format_message()}")


def _print_error(error: Exception, *, as_json: bool) -> None:
    """Print an error as one message with its code and its remedy; or as JSON, for scripts."""
    ours = isinstance(error, CodedError | OSError) or _package(type(error)) in OURS
    text = str(getattr(error, "problem", error)) if ours else f"{type(error).__name__}: {error}"
    code = _MISSING_LIBRARY if _is_missing_library(error) else code_of(error)
    remedy = str(getattr(error, "remedy", ""))
    if code == _MISSING_LIBRARY:
        text = f"a library cannot be loaded: {error}"
        remedy = "`trivisor doctor` lists what is missing here and how to install it"
    elif code == DEFECT and not ours:
        remedy = "report this defect of trivisor with the traceback of `trivisor --debug ...`"
    remedy = remedy or f"`trivisor explain {code}` says what to do"
    if as_json:
        document = {"error": text, "remedy": remedy, "error_code": code}
        warn(json.dumps(document | {"code": int(_exit_code(error))}, allow_nan=False))
    else:
        warn(f"error {code}: {text}")
        warn(f"remedy: {remedy}")


def _is_missing_library(error: Exception) -> bool:
    """Return whether a third-party library (libvirt, for example) could not be imported."""
    return isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in OURS


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _exit_code(error: Exception) -> ExitCode:
    if isinstance(error, CommandError):
        return error.code
    if _is_missing_library(error):
        return ExitCode.CANNOT_RUN_HERE
    for kind in type(error).__mro__:
        code = EXIT_CODES.get(f"{kind.__module__}.{kind.__qualname__}")
        if code is not None:
            return code
    return ExitCode.FAILED


if __name__ == "__main__":
    main()
