"""The results of a campaign: a directory with its spec and its rows, written by one process.

``campaign.sqlite`` holds everything (write-ahead log, so that others can read meanwhile).
``spec.toml`` is the spec's text for people.  The writer holds a lock on the file ``lock``.  A kept
campaign may be packed (``campaign.sqlite.xz``); it can then only be read.

A row is committed when ``add`` returns.  So kill -9 at any moment loses at most missions that were
not added; they are run again.  A mission that is stored is never added twice.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import msgspec

from deploy.strict_toml import SpecError
from faultinject.campaign.planning.plan import CampaignPlan, plan
from faultinject.campaign.planning.spec import Spec, is_file
from faultinject.campaign.planning.spec_file import parse
from faultinject.campaign.records import MissionPlan, MissionRow
from faultinject.campaign.store.database import (
    StoreBusy,
    StoreError,
    StoreFull,
    closing_on_error,
    connect,
    connect_to_read,
    is_locked,
    store_errors,
    take_lock,
    transaction,
    unpack,
)
from faultinject.campaign.store.reader import Reader
from faultinject.campaign.store.table import CREATE, INSERT, record_of
from faultinject.results.outcome import NodeFacts

__all__ = ["Meta", "RunRecord", "Store", "StoreBusy", "StoreError", "StoreFull"]

DATABASE, SPEC = "campaign.sqlite", "spec.toml"
PACKED = f"{DATABASE}.xz"
FORMAT, OLDER_FORMATS = 3, (1, 2)
"""The format that is written, and those that can also be read (see ``table``)."""

_SCHEMA = (
    "CREATE TABLE campaign (format INTEGER, title TEXT, question TEXT, name TEXT, spec TEXT, "
    "spec_hash TEXT, seed INTEGER, fingerprint TEXT, versions TEXT, created REAL, "
    "extended INTEGER) STRICT",
    "CREATE TABLE runs (number INTEGER PRIMARY KEY, began REAL NOT NULL, ended REAL, "
    "state TEXT NOT NULL, workers INTEGER NOT NULL, scheduler TEXT NOT NULL) STRICT",
    "CREATE TABLE facts (worker TEXT PRIMARY KEY, facts TEXT NOT NULL) STRICT",
    CREATE,
)


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of missions.

    ``began``, ``ended``: seconds since the epoch; ``ended`` is None while it runs, and if it was
    killed.  ``state``: "runs", "killed", or the argument of ``Store.end``.  ``scheduler``: address
    of a cluster's scheduler, "" for this host.
    """

    number: int
    began: float
    ended: float | None
    state: str
    workers: int
    scheduler: str


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """Identity and history of a campaign."""

    title: str
    question: str
    name: str
    spec_text: str
    spec_hash: str
    seed: int
    fingerprint: str
    versions: dict[str, str]
    created: float
    extended: bool
    runs: tuple[RunRecord, ...]
    facts: dict[str, NodeFacts]


class Store(Reader):
    """The directory of one campaign, a context manager.  Use ``create`` or ``open``."""

    def __init__(
        self, directory: Path, connection: sqlite3.Connection, of: CampaignPlan, lock: int | None
    ):
        super().__init__(connection, of)
        self.directory = directory
        self._lock = lock

    @property
    def spec(self) -> Spec:
        """Return the campaign's spec."""
        return self.plan.spec

    @property
    def seed(self) -> int:
        """Return the campaign's seed."""
        return self.plan.seed

    # ------------------------------------------------------------- opening and closing

    @classmethod
    def create(
        cls,
        directory: Path,
        text: str,
        seed: int,
        *,
        name: str = "campaign",
        versions: dict[str, str] | None = None,
    ) -> Store:
        """Begin a campaign in a directory that holds none.

        ``text``: the spec's; ``name``: its file's.  Raises SpecError, StoreBusy, StoreFull,
        ValueError (the seed), StoreError (the directory holds this campaign, or another one).
        """
        spec = parse(text, name)
        planned = plan(spec, seed)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{directory}: cannot be created: {error.strerror}", error_code="TV0525"
            ) from error
        lock = take_lock(directory)
        with closing_on_error(lock):
            connection = connect(directory / DATABASE)
            try:
                if known := _campaign(connection):
                    raise StoreError(_refusal(directory, known, spec, seed), error_code="TV0526")
                with store_errors(directory), transaction(connection):
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    connection.execute(
                        "INSERT INTO campaign VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                        (
                            FORMAT, spec.title, spec.question, name, text, spec.hash, seed,
                            planned.fingerprint, msgspec.json.encode(versions or {}).decode(),
                            time.time(),
                        ),
                    )  # fmt: skip
                with store_errors(directory):
                    (directory / SPEC).write_text(text, encoding="utf-8")
                    # So the results stay valid when the service is edited.  A file that the spec
                    # names by an absolute path is used where it is.
                    if is_file(spec.station.service):
                        source = Path(spec.station.service)
                        copy = directory.resolve() / source.name
                        if source != copy:
                            shutil.copyfile(source, copy)
                        planned = plan(parse(text, str(directory / SPEC)), seed)
            except BaseException:
                connection.close()
                raise
        return cls(directory, connection, planned, lock)

    @classmethod
    def open(cls, directory: Path, *, write: bool = True) -> Store:
        """Open a campaign, to continue it or (``write`` False) only to read it.

        Reading works while another process writes, on a packed campaign, and on a read-only mount.

        Raises StoreError (there is none; another version planned it), StoreBusy.
        """
        path, packed = directory / DATABASE, directory / PACKED
        kept = packed.is_file() and not path.is_file()
        if kept and write:
            raise StoreError(
                f"{packed} can only be read; to resume it, unpack it into a new directory: "
                f"xz -dc {packed} >NEW/{DATABASE}",
                error_code="TV0527",
            )
        if not kept and not path.is_file():
            raise StoreError(
                f"{directory} holds no campaign: begin one with `trivisor campaign run FILE --out "
                f"{directory}`",
                error_code="TV0526",
            )
        lock = take_lock(directory) if write else None
        with closing_on_error(lock):
            if kept:
                connection = unpack(packed)
            else:
                connection = connect(path) if write else connect_to_read(path)
            try:
                known = _campaign(connection)
                if known is None:
                    raise StoreError(
                        f"{path} holds no campaign: its creation was interrupted; create it again",
                        error_code="TV0526",
                    )
                planned = _plan_of(directory, known, write=write)
            except BaseException:
                connection.close()
                raise
        return cls(directory, connection, planned, lock)

    def close(self) -> None:
        """Close the directory; a second call does nothing."""
        self._sql.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_being_written(self) -> bool:
        """Return whether a process writes to the directory: that process holds the lock."""
        return is_locked(self.directory)

    # ------------------------------------------------------------- missions

    def pending(self) -> Iterator[MissionPlan]:
        """Yield the missions that are planned and not stored, in the plan's order."""
        stored = self._stored()
        place = stored.find(0)
        while place >= 0:
            yield self.plan.mission(self.plan.index_at(place))
            place = stored.find(0, place + 1)

    def add(self, row: MissionRow) -> bool:
        """Store a mission's row; it is committed when this returns.

        Return False, and change nothing, if the mission is stored already.  Raises StoreFull,
        StoreError, and IndexError if the plan has no such mission.
        """
        record = record_of(self.plan.mission(row.index), row)
        with store_errors(self.directory):
            return self._sql.execute(INSERT, record).rowcount == 1

    # ------------------------------------------------------------- runs, facts, extension

    def begin(self, workers: int, scheduler: str = "") -> int:
        """Record that a run begins; return its number.  Raises StoreFull, StoreError.

        A former run without an end was killed, because this process now holds the lock.
        """
        with store_errors(self.directory), transaction(self._sql):
            self._sql.execute("UPDATE runs SET state = 'killed' WHERE ended IS NULL")
            cursor = self._sql.execute(
                "INSERT INTO runs (began, state, workers, scheduler) VALUES (?, 'runs', ?, ?)",
                (time.time(), workers, scheduler),
            )
        return int(cursor.lastrowid or 0)

    def end(self, run: int, state: str) -> None:
        """Record how a run ended.  Raises StoreFull, StoreError."""
        with store_errors(self.directory):
            self._sql.execute(
                "UPDATE runs SET ended = ?, state = ? WHERE number = ?", (time.time(), state, run)
            )

    def note_facts(self, worker: str, facts: NodeFacts) -> None:
        """Store the facts of a worker's host in this run.  Raises StoreFull, StoreError."""
        [number] = self._sql.execute("SELECT max(number) FROM runs").fetchone()
        with store_errors(self.directory):
            self._sql.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                (f"{worker}, run {number or 0}", msgspec.json.encode(facts).decode()),
            )

    def extend(self) -> None:
        """Add the declared extension to the plan, once, when the planned missions are complete.

        Raises StoreError if no extension was declared, or planned missions are missing.
        """
        if not self.spec.extension:
            raise StoreError(
                f"{self.directory}: the spec declares no extension, and extending after the data "
                "were seen would invalidate the statistics: start a new campaign",
                error_code="TV0528",
            )
        if not self.plan.extended:
            if self.partial:
                raise StoreError(
                    f"{self.directory}: the planned missions are incomplete: resume it first",
                    error_code="TV0528",
                )
            with store_errors(self.directory):
                self._sql.execute("UPDATE campaign SET extended = 1")
            self.plan = plan(self.spec, self.seed, extended=True)

    def meta(self) -> Meta:
        """Return the identity of the campaign, and its runs until now."""
        known = _campaign(self._sql)
        assert known is not None  # it was there when it was opened
        runs = self._sql.execute("SELECT * FROM runs ORDER BY number").fetchall()
        facts = self._sql.execute("SELECT * FROM facts ORDER BY worker").fetchall()
        return Meta(
            title=known["title"],
            question=known["question"],
            name=known["name"],
            spec_text=known["spec"],
            spec_hash=known["spec_hash"],
            seed=known["seed"],
            fingerprint=known["fingerprint"],
            versions=msgspec.json.decode(known["versions"]),
            created=known["created"],
            extended=bool(known["extended"]),
            runs=tuple(msgspec.convert(dict(run), RunRecord) for run in runs),
            facts={
                each["worker"]: msgspec.json.decode(each["facts"], type=NodeFacts) for each in facts
            },
        )


def _campaign(connection: sqlite3.Connection) -> sqlite3.Row | None:
    query = "SELECT 1 FROM sqlite_schema WHERE name = 'campaign'"
    if connection.execute(query).fetchone() is None:
        return None
    known: sqlite3.Row | None = connection.execute("SELECT * FROM campaign").fetchone()
    return known


def _refusal(directory: Path, known: sqlite3.Row, spec: Spec, seed: int) -> str:
    """Return why no campaign can begin in a directory that holds one."""
    try:
        held = parse(known["spec"], str(directory / SPEC)).hash
    except SpecError:  # of another version
        held = known["spec_hash"]
    if (held, known["seed"]) == (spec.hash, seed):
        return (
            f"{directory} already holds this campaign ({known['title']!r}, seed {seed}): continue "
            f"it with `trivisor campaign resume {shlex.quote(str(directory))}`"
        )
    what = "the same spec with another seed" if held == spec.hash else "another spec"
    return (
        f"{directory} holds {known['title']!r} with seed {known['seed']} (spec "
        f"{held[:12]}), not {spec.title!r} with seed {seed} (spec {spec.hash[:12]}): "
        f"{what}; give another directory"
    )


def _plan_of(directory: Path, known: sqlite3.Row, *, write: bool) -> CampaignPlan:
    """Return the plan of a stored campaign.

    Raises StoreError if this version cannot read the rows, or (``write``) plans other missions.
    """
    made = msgspec.json.decode(known["versions"]).get("trivisor", "unknown")
    other = (
        f"{directory} was planned by another version of Trivisor ({made}), and this version would "
        "plan other missions: use that version, or start again in another directory"
    )
    try:
        spec = parse(known["spec"], str(directory / SPEC))
    except SpecError as error:
        raise StoreError(f"{other} ({error})", error_code="TV0526") from error
    planned = plan(spec, known["seed"])
    if known["format"] in OLDER_FORMATS and write:
        raise StoreError(
            f"{directory} was written by an earlier version of Trivisor ({made}) and can only be "
            "read: start again in another directory",
            error_code="TV0527",
        )
    if known["format"] not in (*OLDER_FORMATS, FORMAT) or (
        write and planned.fingerprint != known["fingerprint"]
    ):
        raise StoreError(other, error_code="TV0526")
    return plan(spec, known["seed"], extended=True) if known["extended"] else planned
