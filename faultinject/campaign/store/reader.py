"""Reading a campaign: progress, counts by any column, rows, durations, exports.

Rows are assessed when they are read.  ``Reader`` keeps the result in the temporary table ``trials``
(see ``table``) and, before each query, adds the missions stored since the last one.
"""

from __future__ import annotations

import csv
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.host.install import require_libraries
from faultinject.campaign.assessment import AssessedMission, assess
from faultinject.campaign.planning.durations import MissionDurations, MissionShape, learn
from faultinject.campaign.planning.plan import CampaignPlan
from faultinject.campaign.records import MissionPlan, MissionRow
from faultinject.campaign.store.table import (
    CREATE_TRIALS,
    EXPORTED,
    FLAGS,
    GROUPS,
    INSERT_TRIAL,
    OBSERVED,
    TRIAL,
    encode_json,
    observed_row,
    stored_summary,
    trial_of,
)
from faultinject.campaign.store.tally import Tally

__all__ = ["Reader"]

Key = tuple[Any, ...]
CommonCauseKey = tuple[str, int, str, str]
"""(kind, flips, design, vote)."""


class Reader:
    """Reads the missions of one campaign.

    ``prefix`` (of several methods) selects the first missions of the random order.  They are
    complete up to ``prefix()``; of later missions the slow ones are missing first.
    """

    def __init__(self, connection: sqlite3.Connection, plan: CampaignPlan) -> None:
        self._sql = connection
        self._sql.row_factory = sqlite3.Row
        self.plan = plan
        self._cells = {cell.name: cell for cell in plan.cells}
        columns = self._sql.execute("PRAGMA table_info(missions)")
        self._legacy = "came_out" in {column["name"] for column in columns}
        self._sql.execute("PRAGMA temp_store = MEMORY")
        self._sql.execute(CREATE_TRIALS)

    def _assess_new(self) -> None:
        """Assess the missions that were stored since the last call."""
        new = "SELECT ord FROM missions WHERE ord NOT IN (SELECT ord FROM trials)"
        places = [record[0] for record in self._sql.execute(new)]
        for _ in self._missions(places) if places else ():
            pass

    def _missions(self, places: list[int]) -> Iterator[tuple[MissionPlan, AssessedMission]]:
        """Yield the missions at these places of the order, and add them to ``trials``."""
        query = "SELECT * FROM missions WHERE ord IN (SELECT value FROM json_each(?)) ORDER BY ord"
        for record in self._sql.execute(query, (encode_json(places),)):
            planned = self.plan.mission(record["mission"])
            row = observed_row(record, legacy=self._legacy)
            summary = stored_summary(record) if self._legacy else None
            mission = assess(planned, row, self.plan.cells, summary)
            own, counted = self._cells[planned.stratum], self._cells[mission.stratum]
            trial = trial_of(planned, mission, own, counted, self.plan.first)
            self._sql.execute(INSERT_TRIAL, trial)
            yield planned, mission

    def assess(self, row: MissionRow) -> AssessedMission:
        """Return a mission of this campaign with its stratum and outcome."""
        return assess(self.plan.mission(row.index), row, self.plan.cells)

    # ------------------------------------------------------------- progress

    @property
    def total(self) -> int:
        """Missions planned."""
        return self.plan.total

    @property
    def done(self) -> int:
        """Missions stored."""
        count: int = self._sql.execute("SELECT COUNT(*) FROM missions").fetchone()[0]
        return count

    @property
    def partial(self) -> bool:
        """Whether missions are missing."""
        return self.done < self.total

    def _stored(self) -> bytearray:
        """Return a byte for each place of the order: 1 where its mission is stored."""
        stored = bytearray(self.total)
        for place in self._sql.execute("SELECT ord FROM missions"):
            stored[place[0]] = 1
        return stored

    def prefix(self) -> int:
        """Return the length of the longest complete prefix of the order."""
        end = self._stored().find(0)
        return self.total if end < 0 else end

    # ------------------------------------------------------------- counts

    def tallies(self, *by: str, prefix: int | None = None, **where: object) -> dict[Key, Tally]:
        """Count missions by outcome for each combination of values of the columns ``by``.

        ``by`` and ``where`` name columns of ``table.GROUPS``.  ``where`` selects the missions with
        these values; a list or tuple means any of its values.
        """
        columns = ", ".join((*self._known(by), "outcome"))
        sql, values = self._where(prefix, where)
        counts: dict[Key, dict[str | None, int]] = {}
        query = f"SELECT {columns}, COUNT(*) FROM trials {sql} GROUP BY {columns}"
        self._assess_new()
        for *key, outcome, count in self._sql.execute(query, values):
            counts.setdefault(_plain(by, key), {})[outcome] = count
        return {key: Tally.of(each) for key, each in sorted(counts.items(), key=_sortable)}

    def by_stratum(self, prefix: int | None = None) -> dict[str, Tally]:
        """Count missions by the stratum, dose or common cause that they count for."""
        return {key[0]: tally for key, tally in self.tallies("stratum", prefix=prefix).items()}

    def by_dose(self, prefix: int | None = None) -> dict[tuple[str, int, str], Tally]:
        """Count doses by (kind, flips, design), with repair as the spec's first setting."""
        repair = self.plan.spec.repair == "on"
        found: dict[tuple[str, int, str], Tally] = {}
        for key, tally in self._model(
            "design", "repair", prefix=prefix, common_cause=False
        ).items():
            if key[2] == "nv" or key[3] == repair:
                found[key[0], key[1], key[2]] = tally
        return found

    def doses_by_failed_guests(
        self, prefix: int | None = None
    ) -> dict[tuple[str, int], dict[int, Tally]]:
        """Count the voted missions of doses by (kind, flips), then by guests that failed."""
        found: dict[tuple[str, int], dict[int, Tally]] = {}
        tallies = self._model(
            "repair", "design", "failed_guests", prefix=prefix, common_cause=False
        )
        for (kind, dose, on, design, failed), tally in tallies.items():
            if design == "voted" and on == (self.plan.spec.repair == "on"):
                found.setdefault((kind, dose), {})[failed] = tally
        return found

    def common_causes(self, prefix: int | None = None) -> dict[CommonCauseKey, dict[int, Tally]]:
        """Count common causes by (kind, flips, design, vote), then by guests that failed.

        The vote is "" where it is the node's.
        """
        repair = self.plan.spec.repair == "on"
        votes = {cell.name: cell.vote for cell in self.plan.cells}
        found: dict[CommonCauseKey, dict[int, Tally]] = {}
        columns = ("design", "repair", "failed_guests", "stratum")
        tallies = self._model(*columns, prefix=prefix, common_cause=True)
        for (kind, flips, design, on, failed, stratum), tally in tallies.items():
            if design == "nv" or on == repair:
                by_failed = found.setdefault((kind, flips, design, votes[stratum]), {})
                by_failed[failed] = by_failed.get(failed, Tally()) + tally
        return found

    def _model(self, *by: str, prefix: int | None, common_cause: bool) -> dict[Key, Tally]:
        """Count missions in which no guest was forced to fail, by kind, dose and ``by``."""
        tallies = self.tallies("kind", "dose", *by, prefix=prefix, common_cause=common_cause)
        return {key: tally for key, tally in tallies.items() if key[0]}

    # ------------------------------------------------------------- rows

    def missions(self) -> Iterator[tuple[MissionPlan, AssessedMission]]:
        """Yield all stored missions in the order of the plan, each with its plan."""
        places = [record[0] for record in self._sql.execute("SELECT ord FROM missions")]
        return self._missions(places)

    def row(self, index: int) -> AssessedMission | None:
        """Return a mission by its number, or None."""
        found = self._missions([self.plan.order_of(index)]) if index < self.total else ()
        return next((mission for _, mission in found), None)

    # ------------------------------------------------------------- durations

    def latest(self, since: float, most: int) -> list[float]:
        """Return when the last ``most`` missions began, at ``since`` or later."""
        # The last of the order are the latest, except for missions of lost workers.
        query = "SELECT began FROM missions WHERE began >= ? ORDER BY ord DESC LIMIT ?"
        return [row[0] for row in self._sql.execute(query, (since, most))]

    def durations(self) -> MissionDurations | None:
        """Return how long missions took; None without a mission."""
        self._assess_new()
        query = (
            "SELECT planned, kinds, voter_kind, kind, reset_s + inject_s + workload_s + settle_s "
            "FROM trials JOIN missions USING (ord) "
            "WHERE reset_s IS NOT NULL AND trials.outcome IS NOT NULL"
        )
        return learn(
            MissionShape(
                stratum=planned,
                kinds=tuple(filter(None, f"{kinds}+{voter}".split("+"))),
                forced=not model,
                seconds=seconds,
            )
            for planned, kinds, voter, model, seconds in self._sql.execute(query)
        )

    # ------------------------------------------------------------- exports

    def export_csv(self, path: Path) -> int:
        """Write all missions as CSV, in the order of the plan; return how many.  Raises OSError."""
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder, "rows.csv")
            count = self._write_csv(new, null="")
            new.replace(path)
        return count

    def export_parquet(self, path: Path) -> int:
        """Write all missions as Parquet; return how many.

        Raises OSError, CannotRunHere (there is no duckdb).
        """
        require_libraries("duckdb", purpose="Parquet files")
        import duckdb  # noqa: PLC0415 - slow to load

        types = {
            name: "BOOLEAN" if name in FLAGS else _DUCK[sql.split()[0]]
            for name, sql in EXPORTED.items()
        }
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            plain, new = Path(folder, "rows.csv"), Path(folder, "rows.parquet")
            count = self._write_csv(plain, null=_NULL)
            with duckdb.connect() as connection:
                table = connection.read_csv(
                    str(plain), header=True, columns=types, na_values=_NULL, quotechar='"',
                    escapechar='"', delimiter=",",
                )  # fmt: skip
                table.write_parquet(str(new))
            new.replace(path)
        return count

    def _write_csv(self, path: Path, *, null: str) -> int:
        self._assess_new()
        names = [name for name in OBSERVED if name in EXPORTED and name not in TRIAL]
        count = 0
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(EXPORTED)
            columns = ("NULL" if name == "requests" and self._legacy else name for name in names)
            query = f"SELECT {', '.join(columns)} FROM missions WHERE ord = ?"
            for trial in self._sql.execute("SELECT * FROM trials ORDER BY ord").fetchall():
                observed = self._sql.execute(query, (trial["ord"],)).fetchone()
                hits = encode_json(self.plan.mission(trial["mission"]).injections)
                record = (*trial, hits, *observed)
                writer.writerow(null if value is None else value for value in record)
                count += 1
        return count

    # ------------------------------------------------------------- SQL

    def _known(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Return the columns.  Raises ValueError if one cannot be grouped by."""
        for column in columns:
            if column not in GROUPS:
                raise ValueError(f"no column {column!r}: give one of {', '.join(GROUPS)}")
        return columns

    def _where(self, prefix: int | None, where: dict[str, object]) -> tuple[str, list[object]]:
        """Return a WHERE clause and its values."""
        self._known(tuple(where))
        clauses: list[str] = []
        values: list[object] = []
        if prefix is not None:
            clauses.append("ord < ?")
            values.append(prefix)
        for column, value in where.items():
            wanted = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
            clauses.append(" OR ".join(f"{column} IS ?" for _ in wanted) or "FALSE")
            values.extend(wanted)
        return ("WHERE " + " AND ".join(f"({each})" for each in clauses) if clauses else ""), values


_DUCK = {"INTEGER": "BIGINT", "TEXT": "VARCHAR", "REAL": "DOUBLE"}
_NULL = "\\N"


def _plain(by: tuple[str, ...], key: list[Any]) -> Key:
    """Return a key with flags as bool."""
    return tuple(
        bool(value) if name in FLAGS and value is not None else value
        for name, value in zip(by, key, strict=True)
    )


def _sortable(item: tuple[Key, object]) -> tuple[tuple[bool, Any], ...]:
    return tuple((value is not None, value) for value in item[0])
