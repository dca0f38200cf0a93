"""The results of a campaign: a directory with its spec and its rows, written by one process.

``campaign.sqlite`` holds all of it (write-ahead log, so that others may read meanwhile),
``spec.toml`` the spec's text for people, ``lock`` is held by the writer.  To be kept it may be
packed (``campaign.sqlite.xz``), and can then be read only.  A row is committed when ``add``
returns: kill -9 at any moment loses at most missions that were not added, which are run again, and
a mission that is there is never added twice.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from faultinject.campaign.planning.plan import CampaignPlan, plan
from faultinject.campaign.planning.spec import Spec, SpecError, parse
from faultinject.campaign.records import MissionPlan, MissionRow, Outcome, StationFacts
from faultinject.campaign.store.database import (
    StoreBusy,
    StoreError,
    StoreFull,
    closing_on_error,
    connect,
    take_lock,
    telling,
    transaction,
    unpack,
)
from faultinject.campaign.store.reading import Reader
from faultinject.campaign.store.table import COLUMNS, CREATE, INDEX, INSERT, as_row, record_of

__all__ = ["RevisionRecord", "Meta", "RunRecord", "Store", "StoreBusy", "StoreError", "StoreFull"]

DATABASE, SPEC = "campaign.sqlite", "spec.toml"
PACKED = f"{DATABASE}.xz"
FORMAT = 1

_SCHEMA = (
    "CREATE TABLE campaign (format INTEGER, title TEXT, question TEXT, name TEXT, spec TEXT, "
    "spec_hash TEXT, seed INTEGER, fingerprint TEXT, versions TEXT, created REAL, "
    "extended INTEGER) STRICT",
    "CREATE TABLE runs (number INTEGER PRIMARY KEY, began REAL NOT NULL, ended REAL, "
    "state TEXT NOT NULL, workers INTEGER NOT NULL, scheduler TEXT NOT NULL) STRICT",
    "CREATE TABLE facts (worker TEXT PRIMARY KEY, facts TEXT NOT NULL) STRICT",
    CREATE,
    INDEX,
)


class RevisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Of what stratum a mission was taken for a trial, and now is; or why of none."""

    mission: int
    was: str
    now: str


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One time that missions were run.  Seconds since the epoch; ``ended`` None: it runs, or was
    killed.  ``state``: "runs", "killed", or what
    ``Store.end`` was told.  ``scheduler``: of a cluster, "" for this host.
    """

    number: int
    began: float
    ended: float | None
    state: str
    workers: int
    scheduler: str


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign is and how it was run."""

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
    facts: dict[str, StationFacts]


class Store(Reader):
    """One campaign's directory.  Make one with ``create`` or ``open``; a context manager."""

    def __init__(
        self, directory: Path, connection: sqlite3.Connection, of: CampaignPlan, lock: int | None
    ):
        super().__init__(connection, of)
        self.directory = directory
        self._lock = lock

    @property
    def spec(self) -> Spec:
        """The campaign."""
        return self.plan.spec

    @property
    def seed(self) -> int:
        """The campaign's seed."""
        return self.plan.seed

    # ------------------------------------------------------------- coming and going

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

        ``text``: of the spec, ``name`` its file's.  Raises SpecError, StoreError (it holds this
        campaign, or another one), StoreBusy, StoreFull, ValueError (the seed).
        """
        spec = parse(text, name)
        planned = plan(spec, seed)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{directory}: cannot be made: {error.strerror}") from error
        lock = take_lock(directory)
        with closing_on_error(lock):
            connection = connect(directory / DATABASE)
            try:
                if known := _campaign(connection):
                    raise StoreError(_refusal(directory, known, spec, seed))
                with telling(directory), transaction(connection):
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
                with telling(directory):
                    (directory / SPEC).write_text(text, encoding="utf-8")
            except BaseException:
                connection.close()
                raise
        return cls(directory, connection, planned, lock)

    @classmethod
    def open(cls, directory: Path, *, write: bool = True) -> Store:
        """Open a campaign: to go on with it, or (``write`` False) beside the one that does.

        Beside, one that is kept packed (``campaign.sqlite.xz``) will do too.

        Raises StoreError (there is none; another version planned it), StoreBusy.
        """
        path, packed = directory / DATABASE, directory / PACKED
        kept = packed.is_file() and not path.is_file()
        if kept and write:
            raise StoreError(
                f"{packed} is kept to be read; to go on with it unpack it in a directory of its "
                f"own: xz -dc {packed} >NEW/{DATABASE}"
            )
        if not kept and not path.is_file():
            raise StoreError(
                f"{directory} holds no campaign: begin one with `trivisor campaign run FILE --out "
                f"{directory}`"
            )
        lock = take_lock(directory) if write else None
        with closing_on_error(lock):
            connection = unpack(packed) if kept else connect(path)
            try:
                known = _campaign(connection)
                if known is None:
                    raise StoreError(f"{path} holds no campaign: it was ended while it was made; "
                                     "begin it anew")  # fmt: skip
                planned = _plan_of(directory, known, write=write)
            except BaseException:
                connection.close()
                raise
        return cls(directory, connection, planned, lock)

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self._sql.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------- missions

    def pending(self) -> Iterator[MissionPlan]:
        """Yield missions that are planned and were not stored by now, in the plan's order."""
        stored = self._stored()
        place = stored.find(0)
        while place >= 0:
            yield self.plan.mission(self.plan.index_at(place))
            place = stored.find(0, place + 1)

    def add(self, row: MissionRow) -> bool:
        """Store a mission's row; it is committed when this returns.

        False: its mission is stored already, and nothing is changed.  Raises StoreFull, StoreError,
        IndexError if the plan has no such mission.
        """
        record = record_of(self.plan.mission(row.index), row, self.plan.cells, self.plan.first)
        with telling(self.directory):
            return self._sql.execute(INSERT, record).rowcount == 1

    def add_many(self, rows: Iterable[MissionRow]) -> int:
        """Store many rows at once, or none of them; return how many were new.  As ``add``."""
        count = 0
        with telling(self.directory), transaction(self._sql):
            for row in rows:
                count += self.add(row)
        return count

    def judge_again(self) -> list[RevisionRecord]:
        """Judge by today's rules of what each stored mission is a trial; return what changed.

        What was seen of a mission (its hits' proofs, its guests' ends, how its requests came out)
        is not touched.  Raises StoreFull, StoreError.
        """
        changes: list[RevisionRecord] = []
        query = "SELECT * FROM missions WHERE came_out IS NOT NULL ORDER BY ord"
        with telling(self.directory), transaction(self._sql):
            for record in self._sql.execute(query).fetchall():
                outcome = Outcome(record["came_out"])
                row = msgspec.structs.replace(as_row(record), outcome=outcome, void="")
                planned = self.plan.mission(row.index)
                made = record_of(planned, row, self.plan.cells, self.plan.first)
                now = dict(zip(COLUMNS, made, strict=True))
                change = RevisionRecord(
                    mission=row.index,
                    was=record["void"] or record["stratum"],
                    now=str(now["void"] or now["stratum"]),
                )
                if change.was != change.now:
                    self._sql.execute("DELETE FROM missions WHERE mission = ?", (row.index,))
                    self._sql.execute(INSERT, made)
                    changes.append(change)
        return changes

    # ------------------------------------------------------------- what is told of it

    def begin(self, workers: int, scheduler: str = "") -> int:
        """Note that a run begins; return its number.  Raises StoreFull, StoreError.

        One that has no end yet was killed: this process holds the lock.
        """
        with telling(self.directory), transaction(self._sql):
            self._sql.execute("UPDATE runs SET state = 'killed' WHERE ended IS NULL")
            cursor = self._sql.execute(
                "INSERT INTO runs (began, state, workers, scheduler) VALUES (?, 'runs', ?, ?)",
                (time.time(), workers, scheduler),
            )
        return int(cursor.lastrowid or 0)

    def end(self, run: int, state: str) -> None:
        """Note how a run ended.  Raises StoreFull, StoreError."""
        with telling(self.directory):
            self._sql.execute(
                "UPDATE runs SET ended = ?, state = ? WHERE number = ?", (time.time(), state, run)
            )

    def note_facts(self, worker: str, facts: StationFacts) -> None:
        """Store what a worker runs on, in this run.  Raises StoreFull, StoreError."""
        [number] = self._sql.execute("SELECT max(number) FROM runs").fetchone()
        with telling(self.directory):
            self._sql.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                (f"{worker}, run {number or 0}", msgspec.json.encode(facts).decode()),
            )

    def extend(self) -> None:
        """Take the declared extension into the plan, once, after a complete first look.

        Raises StoreError if none was declared, or the first look is not complete.
        """
        if not self.spec.extension:
            raise StoreError(
                f"{self.directory}: the spec declares no extension, and one that is decided upon "
                "after the data were seen would spoil them: begin a new campaign"
            )
        if not self.plan.extended:
            if self.partial:
                raise StoreError(
                    f"{self.directory}: the first look is not complete: resume it first"
                )
            with telling(self.directory):
                self._sql.execute("UPDATE campaign SET extended = 1")
            self.plan = plan(self.spec, self.seed, extended=True)

    def meta(self) -> Meta:
        """Return what the campaign is and how it was run by now."""
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
                each["worker"]: msgspec.json.decode(each["facts"], type=StationFacts)
                for each in facts
            },
        )


def _campaign(connection: sqlite3.Connection) -> sqlite3.Row | None:
    query = "SELECT 1 FROM sqlite_schema WHERE name = 'campaign'"
    if connection.execute(query).fetchone() is None:
        return None
    known: sqlite3.Row | None = connection.execute("SELECT * FROM campaign").fetchone()
    return known


def _refusal(directory: Path, known: sqlite3.Row, spec: Spec, seed: int) -> str:
    """Say why no campaign can begin in a directory that holds one."""
    if (known["spec_hash"], known["seed"]) == (spec.hash, seed):
        return (
            f"{directory} holds this very campaign ({known['title']!r}, seed {seed}): go on with "
            f"`trivisor campaign resume {directory}`"
        )
    what = "another seed of it" if known["spec_hash"] == spec.hash else "another spec"
    return (
        f"{directory} holds {known['title']!r} with seed {known['seed']} (spec "
        f"{known['spec_hash'][:12]}), not {spec.title!r} with seed {seed} (spec {spec.hash[:12]}): "
        f"{what}; give another directory"
    )


def _plan_of(directory: Path, known: sqlite3.Row, *, write: bool) -> CampaignPlan:
    """Return the plan of a stored campaign, and see that it is what was planned then."""
    made = msgspec.json.decode(known["versions"]).get("trivisor", "unknown")
    other = (
        f"{directory} was planned by another version of Trivisor ({made}), and this one would plan "
        "other missions: go on with that version, or begin anew in another directory"
    )
    try:
        spec = parse(known["spec"], str(directory / SPEC))
    except SpecError as error:
        raise StoreError(f"{other} ({error})") from error
    planned = plan(spec, known["seed"])
    if known["format"] != FORMAT or (write and planned.fingerprint != known["fingerprint"]):
        raise StoreError(other)
    return plan(spec, known["seed"], extended=True) if known["extended"] else planned
