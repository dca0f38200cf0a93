"""``trivisor status``: the state of a node."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.commands.control_client import NotUp, ask
from deploy.commands.options import directory_option, json_option, layout_of
from deploy.node.records import Layout
from voter.commands.terminal import ExitCode, console, print_json, warn

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["guest_table", "status"]

EXPIRES_SOON = 14
"""Days before a certificate's end from which `status` asks to renew it."""
RETURN_TIMEOUT = 5.0
"""Seconds to wait for the watchdog to restart a killed supervisor."""


@click.command()
@directory_option
@json_option
def status(directory: Path | None, as_json: bool) -> int:
    """Show the state of a node.  Exits with 5 if none runs."""
    layout = layout_of(directory)
    try:
        state = ask(layout, "GET", "/status", patience=RETURN_TIMEOUT)
    except NotUp:
        if layout.closed:
            raise
        problem = layout.problem()
        if not _report_orphans(layout, as_json=as_json):
            if problem is None:
                raise
            raise problem from None
        if problem is not None:
            warn(f"error {problem.error_code}: {problem.problem}\nremedy: {problem.remedy}")
        return ExitCode.NOT_UP
    problem = None if state["managed"] else layout.problem()
    if problem is not None:
        warn(f"warning {problem.error_code}: {problem.problem}: the next supervisor cannot read it")
    if as_json:
        print_json(state)
    else:
        _show(state)
    return ExitCode.OK


def _report_orphans(layout: Layout, *, as_json: bool) -> bool:
    """Print the processes that no command can reach; return whether there are any."""
    from deploy.node.processes import find_processes  # noqa: PLC0415 - rarely needed

    found = {each.name: each.identity.pid for each in find_processes(layout)}
    supervisor = found.pop("supervisor", None)
    orphans = {name: pid for name, pid in found.items() if name not in ("watchdog", "standby")}
    if not orphans and supervisor is None:
        return False
    message = _watchdog_message(layout)
    if as_json:
        directory = str(layout.directory)
        print_json(
            {"dir": directory, "supervisor": supervisor, "orphans": orphans, "message": message}
        )
        return True
    if supervisor is not None:
        others = ", ".join(orphans)
        warn(
            f"error TV0715: the supervisor (process {supervisor}) runs and cannot be reached, "
            f"with {others}"
        )
        warn(f"remedy: `{layout.command('down')}` ends it")
        return True
    for name, pid in orphans.items():
        warn(f"error TV0708: {name}: process {pid} runs without a supervisor")
    if message:
        warn(message)
    warn(
        f"remedy: `{layout.command('up')}` with the same options takes it over, "
        f"`{layout.command('down')}` ends it"
    )
    return True


def _watchdog_message(layout: Layout) -> str | None:
    """Return the watchdog's last message about the supervisor that has ended."""
    from deploy.host.files import read_tail  # noqa: PLC0415 - rarely needed
    from deploy.watchdog.process import LOG_PREFIX  # noqa: PLC0415

    for line in reversed(read_tail(layout.supervisor_log, 50)):
        if f'"{LOG_PREFIX}' in line:
            with contextlib.suppress(ValueError):  # a full disk has cut it
                return str(json.loads(line)["event"])
    return None


def _show(state: dict[str, Any]) -> None:
    from rich.markup import escape  # noqa: PLC0415

    out = console()
    word = state["status"] if state["phase"] == "up" else state["phase"]
    colour = {"ready": "green", "degraded": "yellow", "starting": "yellow"}.get(word, "red")
    security = state.get("security") or {}
    scheme = "https" if security.get("tls") else "http"
    address = f"{scheme}://{state['http']}/" if state["http"] else "no address yet"
    out.print(
        f"[{colour}]{word}[/]: vote {state['vote']}, service {escape(state['service'])}, {address}"
    )
    if state["storage"]:
        out.print(f"[red]disk:[/] {escape(state['storage'])}; repairs wait until it can be written")
    if state["connect_problem"]:
        out.print(f"[red]libvirt:[/] {escape(state['connect_problem'])}; repairs wait for it")
    out.print(f"voter: {escape(_voter_line(state['voter']))}")
    own = "each guest's QEMU has a user of its own"
    out.print(f"isolation: {escape(state['isolation'] or own)}", highlight=False)
    if security:
        out.print(f"clients: {escape(_security_line(security))}")
    durability = state["durability"]
    out.print(f"durability: {durability['kind']} ({durability['promise']})")
    if durability["journal"]:
        out.print(f"journal: {escape(_journal_line(durability['journal']))}")
    if follow := state.get("follow"):
        names = " ".join(follow["later"]) or "none now"
        order = f"majority first, in batches to: {names}" if follow["on"] else "all guests at once"
        out.print(f"requests: {order} (follow {follow['setting']})")
    if line := _rejuvenation_line(state):
        out.print(f"rejuvenation: {escape(line)}", highlight=False)
    if line := _patch_line(state["patch"]):
        out.print(f"patch: {escape(line)}", highlight=False)
    supervisor = state["supervisor"]
    restarts = f", restarted {_count(supervisor['restarts'], 'time')}"
    watched = supervisor["watchdog"] or state["managed"]
    alone = "" if watched else ", without a watchdog: it will not be restarted"
    systemd = ", run by systemd (`systemctl status trivisor`)" if state["managed"] else ""
    out.print(
        f"supervisor: process {supervisor['pid']}{restarts if supervisor['restarts'] else ''}"
        f"{alone}{systemd}, repair {state['repair']}, accelerator "
        f"{state['accel']}, libvirt {escape(state['connect'])}, image {state['image'][:16]}, "
        f"{escape(state['dir'])}"
    )
    out.print(guest_table(state))


def _rejuvenation_line(state: dict[str, Any]) -> str:
    """Return what is known of replaced guests; empty if nothing was asked for."""
    facts, found = state["rejuvenation"], []
    if facts["every"] is not None:
        found.append(f"each guest once in {facts['every']:g} s, by {facts['by']}")
    if last := facts["last"]:
        slot = f" by {last['slot']}" if "slot" in last else " in place"
        ago = time.time() - last["time"]
        found.append(f"last: {last['guest']}{slot} in {last['seconds']:.1f} s, {ago:.0f} s ago")
    if facts["next"] is not None:
        wait = max(0.0, facts["next"]["time"] - time.time())
        found.append(f"next: {facts['next']['guest']} in {wait:.0f} s")
    if facts["failed"]:
        found.append(_count(facts["failed"], "failure"))
    if facts["problem"]:
        found.append(f"problem: {facts['problem']}")
    if (operation := state["operation"]) and operation["kind"] != "patch":
        found.append(
            f"now: {operation['slot']} is to take the place of {operation['guest']} "
            f"({operation['kind']}, {operation['step']})"
        )
    return "; ".join(found)


def _patch_line(patch: dict[str, Any] | None) -> str:
    """Return the state of the patch under way; empty if there is none."""
    if patch is None or patch["phase"] in ("done", "rejected", "aborted"):
        return ""
    facts = [f"{patch['phase']}, {patch['title']}"]
    if patch["phase"] in ("promoting", "reverting"):
        facts.append(f"{len(patch['promoted'])} of {patch['of']} guests run it")
    else:
        facts.append(f"{_count(patch['quarantine']['compared'], 'reply', 'replies')} compared")
    if waits := patch["waits_for"] or patch["quarantine"]["waits_for"]:
        facts.append(f"waits for: {waits}")
    return "; ".join(facts)


def _voter_line(voter: dict[str, Any]) -> str:
    counters = voter["counters"]
    facts = [f"process {voter['pid']}" if voter["pid"] else "does not run"]
    if voter["restarts"]:
        facts.append(_count(voter["restarts"], "restart"))
    if voter.get("compiled") is not None:
        facts.append(_code(voter["compiled"]))
    if counters:
        facts.append(_count(counters.get("requests", 0), "request"))
        facts.append(f"{_count(counters.get('masked', 0), 'fault')} masked")
    elif voter["pid"]:
        facts.append("does not answer yet")
    return ", ".join(facts) + (f" - {voter['problem']}" if voter["problem"] else "")


def _security_line(security: dict[str, Any]) -> str:
    facts = []
    if security["tls"]:
        days = security["certificate_expires_in_days"]
        ends = "" if days is None else f", expires in {days:.0f} days"
        asked = " and asks for the client's" if security["client_certificates"] else ""
        facts.append(f"TLS, shows a certificate{asked}{ends}")
        if days is not None and days < EXPIRES_SOON:
            facts.append("RENEW the certificate now")
    if security["tokens"] is not None:
        facts.append(_count(security["tokens"], "token"))
    return "; ".join(facts) + (f" - {security['problem']}" if security["problem"] else "")


def _code(compiled: bool) -> str:
    return "compiled" if compiled else "pure Python"


def _journal_line(journal: dict[str, Any]) -> str:
    waiting = journal["position"] - journal["synced"]
    facts = [
        f"{journal['bytes']:,} bytes in {_count(journal['segments'], 'segment')}",
        f"{_count(journal['position'], 'entry', 'entries')} since the voter's start",
        f"{waiting:,} of them not on the disk yet" if waiting else "all on the disk",
        f"checkpoint at request {journal['checkpoint_seq']:,}"
        if journal["checkpoint_seq"]
        else "no checkpoint yet",
    ]
    full = f"FULL: {journal['reason']}; " if journal["full"] else ""
    return f"{full}{', '.join(facts)}, in {journal['directory']}"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def guest_table(state: dict[str, Any]) -> Table:
    """Return a table of the guests in a node's status."""
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table("guest", "state", "process", "machine", "agent", "dissents", "repairs", "remarks")
    for guest in state["guests"]:
        replica, repairs, fault = guest["replica"], guest["repairs"], guest["fault"]
        remarks = []
        if guest["role"] != "voter":
            remarks.append(f"does not vote: {guest['role']}")
        if fault is not None:
            until = fault["until"]
            ends = f" for another {until - time.time():.0f} s" if until is not None else ""
            remarks.append(f"fault {fault['kind']} is active{ends}")
        if guest["state"] != "active" and replica.get("reason"):
            remarks.append(str(replica["reason"]))
        if repairs["in_progress"]:
            remarks.append("being restored")
        if repairs["abandoned"]:
            remarks.append(
                f"repair abandoned after {repairs['consecutive']} attempts: "
                "`trivisor heal` starts it again"
            )
        elif repairs["consecutive"]:
            remarks.append(f"{repairs['consecutive']} of {repairs['limit']} consecutive repairs")
        if repairs["last_error"]:
            remarks.append(repairs["last_error"])
        catches_up = guest["role"] in ("learner", "observer")
        colour = "green" if guest["state"] == "active" else "yellow" if catches_up else "red"
        table.add_row(
            guest["name"],
            f"[{colour}]{guest['state']}[/]",
            str(guest["pid"] or "-"),
            guest["vm"],
            "-" if replica.get("compiled") is None else _code(replica["compiled"]),
            str(replica.get("dissents") or 0),
            str(repairs["count"]),
            escape("; ".join(remarks)),
        )
    return table
