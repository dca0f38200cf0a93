"""``trivisor patch``: change the guests' software while the node serves, through a quarantine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.commands.control_client import ask
from deploy.commands.options import (
    StepPrinter,
    directory_option,
    find_service,
    json_option,
    layout_of,
)
from deploy.commands.patch_show import show_differences, show_dry_run, show_patch
from deploy.node.records import Layout
from voter.commands.parameters import (
    DAY,
    Integer,
    Number,
    PackageName,
    Remark,
    existing_directory,
    existing_file,
)
from voter.commands.terminal import CommandError, ExitCode, print_json, quiet_logs, warn

if TYPE_CHECKING:
    from deploy.commands.patch_image import PatchedImage

__all__ = ["patch"]

ORDER_TIMEOUT = 30.0
POLL_INTERVAL = 0.3
"""Seconds between the status requests of a command that waits for a phase."""

_FINAL = ("done", "rejected", "aborted")


@click.group()
def patch() -> None:
    """Change the guests' software while the node serves.

    A copy of a guest is started with the patch.  In quarantine it answers every request, and its
    replies are compared with the released ones, but never counted.  Then patched guests take the
    places of the others, one after another.
    """


@patch.command()
@directory_option
@click.option("--service", metavar="FILE", help="The patched service.")
@click.option("--package", "packages", type=PackageName(), multiple=True,
              help="A Debian package to add or renew (repeatable).")  # fmt: skip
@click.option("--image", type=existing_directory(),
              help="A directory with an image that was built elsewhere.")  # fmt: skip
@click.option("--after", type=Integer(1, 10**9, "requests"),
              help="Length of the quarantine in compared requests.",
              show_default="1000, unless --for is given")  # fmt: skip
@click.option("--for", "seconds", type=Number(0, 30 * DAY, "seconds", above=True),
              help="Length of the quarantine in seconds; with --after: both.")  # fmt: skip
@click.option("--auto", is_flag=True,
              help="Promote after the quarantine; reject at an unexpected difference.")  # fmt: skip
@click.option("--expect", type=existing_file(), help="Rules of expected differences (TOML).")
@json_option
def start(
    directory: Path | None,
    service: str | None,
    packages: tuple[str, ...],
    image: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Start a patched copy; return when it is in quarantine.

    Exits with 1 if the copy does not start.  Ctrl-C calls the patch off.
    """
    if image is not None and (service is not None or packages):
        raise click.UsageError("--image excludes --service and --package: it has both.")
    if image is None and service is None and not packages:
        raise click.UsageError("Give --service, --package or --image: what is patched?")
    layout = layout_of(directory)
    quiet_logs()
    progress = StepPrinter(quiet=as_json)
    rules = _read_rules(options["expect"])
    under_way = _status(layout)
    if under_way is not None and under_way["phase"] not in _FINAL:
        raise CommandError(
            f"patch {under_way['number']} ({under_way['title']}) is already under way: it is "
            f"{under_way['phase']}",
            remedy=f"wait for its end, or call it off: `{layout.command('patch abort')}`",
            error_code="TV0771",
        )
    made = _make_image(layout, service, packages, image, progress)
    progress(f"patched image {made.image.image[:16]}")
    _send_start(layout, made, rules, options)
    try:
        state = _follow(layout, progress, lambda now: now["phase"] != "preparing")
    except KeyboardInterrupt:
        ask(layout, "POST", "/patch/abort", {"reason": "interrupted"}, timeout=ORDER_TIMEOUT)
        raise
    _finish(layout, state, as_json=as_json, wanted=("quarantine", "promoting", "done"))


def _make_image(
    layout: Layout,
    service: str | None,
    packages: tuple[str, ...],
    image: Path | None,
    progress: StepPrinter,
) -> PatchedImage:
    """Build or take the image, before anything is started.  Raises CommandError, DeployError."""
    from deploy.commands.patch_image import (  # noqa: PLC0415 - heavy
        build_patched_image,
        take_image,
    )

    record = layout.read_node()
    if image is not None:
        return take_image(layout, record, image)
    found = find_service(service) if service is not None else None
    return build_patched_image(layout, record, service=found, packages=packages, progress=progress)


def _send_start(
    layout: Layout, made: PatchedImage, rules: tuple[str, str], options: dict[str, Any]
) -> None:
    import msgspec  # noqa: PLC0415 - slow

    order = {
        "title": made.title,
        "image": msgspec.to_builtins(made.image),
        "name": made.facts.name if made.facts is not None else None,
        "state_format": made.facts.state_format if made.facts is not None else None,
        "after": options["after"],
        "seconds": options["seconds"],
        "auto": options["auto"],
        "rules": rules[0],
        "rules_name": rules[1],
    }
    ask(layout, "POST", "/patch/start", order, timeout=ORDER_TIMEOUT)


def _read_rules(path: Path | None) -> tuple[str, str]:
    """Return text and name of a file of rules, once they are checked.  Raises SpecError."""
    if path is None:
        return "", ""
    from deploy.patching.rules import read_rules  # noqa: PLC0415 - slow

    text = path.read_text(encoding="utf-8", errors="replace")
    read_rules(text, path.name)
    return text, path.name


@patch.command()
@directory_option
@json_option
def status(directory: Path | None, as_json: bool) -> None:
    """Show the node's last patch: its phase, what was compared, what it waits for."""
    state = _require(layout_of(directory))
    if as_json:
        print_json(state)
    else:
        show_patch(state)


@patch.command()
@directory_option
@click.option("--all", "every", is_flag=True, help="Also the expected differences.")
@click.option("--lines", type=Integer(0, 1000), default=20, show_default=True,
              help="Number of differences to show, the last ones.")  # fmt: skip
@json_option
def diff(directory: Path | None, every: bool, lines: int, as_json: bool) -> None:
    """Show the requests that the patched copy answered otherwise.

    Exits with 1 if there are unexpected differences.
    """
    layout = layout_of(directory)
    answer = ask(layout, "GET", "/patch/differences", timeout=ORDER_TIMEOUT)
    found = [each for each in answer["differences"] if every or each["rule"] is None]
    shown = found[-lines:] if lines else []
    if as_json:
        print_json(answer | {"differences": shown})
    else:
        show_differences(shown, len(found), answer["lost"])
    if any(each["rule"] is None for each in answer["differences"]):
        raise click.exceptions.Exit(ExitCode.FAILED)


@patch.command()
@click.argument("file", type=existing_file(), metavar="RULES.toml")
@directory_option
@click.option("--use", is_flag=True, help="Judge the patch by these rules from now on.")
@json_option
def rules(file: Path, directory: Path | None, use: bool, as_json: bool) -> None:
    """Try rules of expected differences, on what the node has recorded.

    Shows which recorded differences each rule explains, and how many writes of the recent log its
    conditions on requests match.  Nothing changes without --use.
    """
    text, name = _read_rules(file)
    layout = layout_of(directory)
    order = {"text": text, "name": name, "use": use}
    answer = ask(layout, "POST", "/patch/rules", order, timeout=ORDER_TIMEOUT)
    if as_json:
        print_json(answer)
    else:
        show_dry_run(answer)


@patch.command()
@directory_option
@click.option("--force", is_flag=True,
              help="Although the quarantine is not over, or was failed.")  # fmt: skip
@json_option
def promote(directory: Path | None, force: bool, as_json: bool) -> None:
    """Replace all guests by patched ones, one after another; return when that is done.

    Ctrl-C ends the command only: the supervisor continues.
    """
    layout = layout_of(directory)
    progress = StepPrinter(quiet=as_json)
    ask(layout, "POST", "/patch/promote", {"force": force}, timeout=ORDER_TIMEOUT)
    state = _follow(layout, progress, lambda now: now["phase"] in _FINAL)
    _finish(layout, state, as_json=as_json, wanted=("done",))


@patch.command()
@directory_option
@click.option("--reason", type=Remark(), default="", help="Text for the record.")
@json_option
def reject(directory: Path | None, reason: str, as_json: bool) -> None:
    """End the quarantine without a promotion; return when the copy has ended."""
    _end(directory, "reject", reason, as_json=as_json, wanted=("rejected",))


@patch.command()
@directory_option
@click.option("--reason", type=Remark(), default="", help="Text for the record.")
@json_option
def abort(directory: Path | None, reason: str, as_json: bool) -> None:
    """Call the patch off, also while guests are replaced; return when none is patched."""
    _end(directory, "abort", reason, as_json=as_json, wanted=("aborted",))


def _end(
    directory: Path | None, order: str, reason: str, *, as_json: bool, wanted: tuple[str, ...]
) -> None:
    layout = layout_of(directory)
    progress = StepPrinter(quiet=as_json)
    ask(layout, "POST", f"/patch/{order}", {"reason": reason}, timeout=ORDER_TIMEOUT)
    state = _follow(layout, progress, lambda now: now["phase"] in _FINAL and now["slot"] is None)
    _finish(layout, state, as_json=as_json, wanted=wanted)


def _status(layout: Layout) -> dict[str, Any] | None:
    state = ask(layout, "GET", "/patch", timeout=ORDER_TIMEOUT)["patch"]
    return dict(state) if state is not None else None


def _require(layout: Layout) -> dict[str, Any]:
    state = _status(layout)
    if state is None:
        raise CommandError(
            f"the node in {layout.directory} has no patch",
            remedy=f"start one: `{layout.command('patch start')}`",
            error_code="TV0770",
        )
    return state


def _follow(
    layout: Layout, progress: StepPrinter, reached: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Print the steps of the patch until a condition on its status holds; return the status."""
    seen, waits = time.time() - 1.0, ""
    while True:
        state = _require(layout)
        for step in state["steps"]:
            if step["time"] > seen:
                seen = step["time"]
                progress(step["text"])
        if (state["waits_for"] or "") != waits:
            waits = state["waits_for"] or ""
            if waits:
                progress(f"waiting: {waits}")
        if reached(state):
            return state
        time.sleep(POLL_INTERVAL)


def _finish(
    layout: Layout, state: dict[str, Any], *, as_json: bool, wanted: tuple[str, ...]
) -> None:
    """Print the result; raise CommandError if the patch has ended otherwise."""
    if state["phase"] not in wanted:
        raise CommandError(
            f"patch {state['number']} was {state['phase']}: {state['reason']}",
            remedy=f"`{layout.command('patch diff')}` shows what differed",
            error_code="TV0775",
        )
    if as_json:
        print_json(state)
    elif state["phase"] == "quarantine":
        warn(f"{state['slot']} is in quarantine: {layout.command('patch status')}")
    elif state["phase"] == "done" and state["service"]["old"] != state["service"]["new"]:
        option = layout.option("service", state["service"]["new"])
        warn(f"done; start the node with {option} from now on")
    else:
        warn(str(state["phase"]))
