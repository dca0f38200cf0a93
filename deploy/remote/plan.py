"""The changes that a deployment makes, computed from facts and options.  Pure."""

from __future__ import annotations

import difflib
import hashlib
import re
import shlex
import tomllib
from typing import Any, NamedTuple

import msgspec

from deploy.errors import DeployError
from deploy.node.configuration import toml_value
from deploy.node.records import Settings
from deploy.remote.facts import DROPIN, Facts
from deploy.remote.package import SETTINGS_FILE, DebianPackage

__all__ = ["DEFAULT_HTTP", "Plan", "make_plan", "make_removal", "merge_settings", "settings_of"]

DEFAULT_HTTP = Settings().http
"""The address in the package's socket unit."""
SERVICES = "etc/trivisor/services"
"""Where user-supplied services are put, on the host below /."""
APT_LOCK_WAIT = 300
"""Seconds to wait while another program uses apt or dpkg."""


class Plan(NamedTuple):
    """What the host's transaction is to do."""

    steps: list[str]
    """What will change, as text for the user; empty: nothing."""
    diffs: list[str]
    """Existing contents that will be replaced, as unified diffs: they need consent."""
    files: dict[str, str]
    """Contents to write, by path below /."""
    delete: list[str]
    package: DebianPackage | None
    settings: Settings
    """All but the address: the sockets' units have that."""
    http: str
    """HOST:PORT that the host is to listen on."""
    mode: str = "apply"  # apply, remove, purge or recover
    restart: bool = False

    def spec(self, *, state: str, deadline: float) -> str:
        """Return what the host's script reads: assignments of shell variables."""
        values = {
            "MODE": self.mode,
            "EXPECT": state,
            "FILES": " ".join(self.files),
            "DELETE": " ".join(self.delete),
            "PACKAGE": self.package.sha256 if self.package is not None else "",
            "RESTART": "yes" if self.restart else "",
            "URL": url_of(self.http),
            "GUESTS": str(self.settings.guests),
            "DEADLINE": str(round(deadline)),
            "LOCK_WAIT": str(APT_LOCK_WAIT),
        }
        return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def url_of(http: str) -> str:
    """Return the URL by which the host itself reaches an address that it listens on."""
    host, _, port = http.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "": "127.0.0.1"}.get(host, host)
    return f"http://{host}:{port}"


def settings_of(text: str) -> Settings:
    """Return the settings of a host's file; its defaults are those of `trivisor up`.

    Raises DeployError.
    """
    try:
        values = tomllib.loads(text)
        values.pop("accept-service", values.pop("accept_service", None))  # no setting of the node
        memory = values.pop("memory", None)
        if memory is not None:
            values["memory_mib"] = memory
        values = {name.replace("-", "_"): value for name, value in values.items()}
        if "vote" in values and "guests" not in values:
            values["guests"] = int(str(values["vote"]).partition("/")[2])
        elif "guests" in values and "vote" not in values:
            values["vote"] = f"{int(values['guests']) // 2 + 1}/{values['guests']}"
        return msgspec.convert(values, Settings)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, ValueError) as error:
        raise DeployError(
            f"the host's /{SETTINGS_FILE} cannot be used: {error}",
            remedy="correct it there, or move it away",
            error_code="TV0764",
        ) from error


def merge_settings(text: str, wanted: dict[str, Any]) -> str:
    """Return the text of a settings file with other values; comments and other keys stay.

    Raises DeployError if the file's layout does not allow it.
    """
    before = tomllib.loads(text)
    lines = text.removesuffix("\n").split("\n") if text else []  # splitlines knows too many ends
    for name, value in wanted.items():
        if before.get(name) == value and name in before:
            continue
        line = f"{name} = {toml_value(value)}"
        for pattern in (rf"{re.escape(name)}\s*=", rf"#\s*{re.escape(name)}\s*="):
            at = next((i for i, each in enumerate(lines) if re.match(pattern, each)), None)
            if at is not None:
                break
        if at is None:
            lines.append(line)
        elif lines[at].startswith("#"):
            lines.insert(at + 1, line)
        else:
            lines[at] = line
    merged = "\n".join(lines) + "\n"
    try:
        right = tomllib.loads(merged) == before | wanted
    except tomllib.TOMLDecodeError:
        right = False
    if not right:
        raise DeployError(
            f"the host's /{SETTINGS_FILE} cannot be edited automatically",
            remedy="put each key on one line there, before any table",
            error_code="TV0764",
        )
    return merged


def make_plan(
    facts: Facts, package: DebianPackage, wanted: dict[str, Any], service: tuple[str, bytes] | None
) -> Plan:
    """Return the changes that give the host this package and these settings.

    ``wanted``: keys of the settings file that the user has given.  ``service``: name and content of
    a file that the host is to run.  Raises DeployError.
    """
    steps: list[str] = []
    diffs: list[str] = []
    files: dict[str, str] = {}
    delete: list[str] = []

    if service is not None:
        path = f"{SERVICES}/{service[0]}"
        wanted = wanted | {"service": f"/{path}"}
        there = facts.sums().get(path)
        if there != hashlib.sha256(service[1]).hexdigest():
            files[path] = service[1].decode()
            if there is not None:
                diffs.append(f"/{path} is replaced by another file of this name")

    current = facts.file(SETTINGS_FILE)
    text = current if current is not None else package.settings
    settings_of(text)  # raises an error that names the file
    http = wanted.get("http")
    if "http" not in tomllib.loads(text):  # the socket's unit has it
        wanted = {name: value for name, value in wanted.items() if name != "http"}
    merged = merge_settings(text, wanted)
    settings = settings_of(merged)
    if merged != text or (current is None and facts.known):
        files[SETTINGS_FILE] = merged
        if current is not None:
            diffs.append(_diff(SETTINGS_FILE, current, merged))

    dropin = facts.file(DROPIN)
    needed = dropin if http is None else _dropin(http) if http != DEFAULT_HTTP else None
    if needed != dropin:
        if needed is None:
            delete.append(DROPIN)
        else:
            files[DROPIN] = needed
        if dropin is not None:
            diffs.append(_diff(DROPIN, dropin, needed or ""))

    same = facts.installed == package.version and facts.deployed == package.sha256
    if not same:
        what = f"install trivisor {package.version} with the Debian packages it needs"
        if facts.installed is not None:
            what = f"replace trivisor {facts.installed} by {package.version}"
            if facts.installed == package.version:
                what = f"replace trivisor {package.version} by another build of it"
        steps.append(what)
    steps += [f"write /{path}" for path in files]
    steps += [f"remove /{path}" for path in delete]
    restart = bool(files or delete) and facts.installed is not None
    if restart:
        steps.append("restart the node")
    elif not same or not facts.active:
        steps.append("start the node")
    if steps:
        diffs += _foreign_units(facts)
    return Plan(
        steps=steps,
        diffs=diffs,
        files=files,
        delete=delete,
        package=None if same else package,
        settings=settings,
        http=http or _address(facts, needed),
        restart=restart,
    )


def _foreign_units(facts: Facts) -> list[str]:
    """Report units that have the names of the package's, and are not the package's."""
    found = []
    if not facts.known:
        found += [
            f"/{path} belongs to no package, and is replaced"
            for path in facts.values.get("unit", [])
        ]
    for path in facts.values.get("override", []):
        if path.count("/") == 3:  # a unit, not a drop-in
            found.append(f"/{path} stays, and takes the place of the package's unit")
    return found


def make_removal(facts: Facts, *, purge: bool) -> Plan:
    """Return what removes Trivisor from the host.  Nothing is left to do if `steps` is empty."""
    steps = []
    present = facts.file(DROPIN) is not None
    if facts.known and (purge or facts.installed is not None or facts.get("package")[:2] != "rc"):
        steps.append("stop the node and remove the package")
    if present:
        steps.append(f"remove /{DROPIN}")
    if purge and steps:
        steps.append("delete the settings, and the state with all acknowledged requests")
    return Plan(
        steps=steps,
        diffs=[],
        files={},
        delete=[DROPIN] if present else [],
        package=None,
        settings=Settings(),
        http=DEFAULT_HTTP,
        mode="purge" if purge else "remove",
    )


def _dropin(http: str) -> str:
    return (
        "# Written by `trivisor deploy`: another address than the package's.\n"
        f"[Socket]\nListenStream=\nListenStream={http}\n"
    )


def _address(facts: Facts, dropin: str | None) -> str:
    """Return the address that the host listens on, or will, if none is given."""
    listening = facts.get("listen").split()  # "127.0.0.1:8080 (Stream)"
    if listening and ":" in listening[0]:
        return listening[0]
    found = re.findall(r"(?m)^ListenStream=(\S+:[0-9]+)$", dropin or "")
    return found[-1] if found else DEFAULT_HTTP


def _diff(path: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"/{path} (on the host)", f"/{path} (new)",
        lineterm="", n=1,
    )  # fmt: skip
    return "\n".join(lines)
