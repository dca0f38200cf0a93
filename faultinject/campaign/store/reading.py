"""What a campaign's store tells: counts by anything, rows, times, exports.  Only reads."""

from __future__ import annotations

import csv
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from faultinject.campaign.planning.plan import CampaignPlan
from faultinject.campaign.planning.rates import MissionShape, Rates, learn
from faultinject.campaign.records import MissionRow, Timings
from faultinject.campaign.store.database import StoreError
from faultinject.campaign.store.table import COLUMNS, FLAGS, GROUPS, as_row
from faultinject.campaign.store.tally import LatencyTally, Tally, latency_of

__all__ = ["Reader"]

Key = tuple[Any, ...]
ShotKey = tuple[str, int, str, str]
"""(kind, flips, design, vote)."""


class Reader:
    """Reads the missions of one campaign.

    Everywhere ``prefix`` takes only missions among the first so many of the random order: those
    are complete up to ``prefix()``, while of later ones the slow are missing first.
    """

    def __init__(self, connection: sqlite3.Connection, plan: CampaignPlan) -> None:
        self._sql = connection
        self._sql.row_factory = sqlite3.Row
        self.plan = plan

    # ------------------------------------------------------------- how far

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
        """Count missions by outcome for each combination of values of the columns ``by`` (of
        ``table.GROUPS``); ``where`` takes those only that have these values.

        ``stratum``, ``k`` and ``voter_hit`` are as counted, ``planned`` as planned.
        """
        columns = ", ".join((*self._known(by), "outcome"))
        sql, values = self._where(prefix, where)
        counts: dict[Key, dict[str | None, int]] = {}
        query = f"SELECT {columns}, COUNT(*) FROM missions {sql} GROUP BY {columns}"
        for *key, outcome, count in self._sql.execute(query, values):
            counts.setdefault(_plain(by, key), {})[outcome] = count
        return {key: Tally.of(each) for key, each in sorted(counts.items(), key=_sortable)}

    def by_stratum(self, prefix: int | None = None) -> dict[str, Tally]:
        """Count by stratum, dose or shot, as counted."""
        return {key[0]: tally for key, tally in self.tallies("stratum", prefix=prefix).items()}

    def by_kind(self, prefix: int | None = None) -> dict[tuple[str, str], Tally]:
        """Count strata by (stratum, the kinds of its guests' faults joined by "+")."""
        tallies = self.tallies("stratum", "kinds", prefix=prefix, kind="")
        return {(key[0], key[1]): tally for key, tally in tallies.items()}

    def by_dose(self, prefix: int | None = None) -> dict[tuple[str, int, str], Tally]:
        """Count doses by (kind, flips, design), with repair as the spec's first setting."""
        repair = self.plan.spec.repair == "on"
        found: dict[tuple[str, int, str], Tally] = {}
        for key, tally in self._model("design", "repair", prefix=prefix, shot=False).items():
            if key[2] == "nv" or key[3] == repair:
                found[key[0], key[1], key[2]] = tally
        return found

    def dose_falls(self, prefix: int | None = None) -> dict[tuple[str, int], dict[int, Tally]]:
        """Count doses' voted missions by (kind, flips), and those by the guests that failed."""
        found: dict[tuple[str, int], dict[int, Tally]] = {}
        tallies = self._model("repair", "design", "fallen", prefix=prefix, shot=False)
        for (kind, dose, on, design, fallen), tally in tallies.items():
            if design == "voted" and on == (self.plan.spec.repair == "on"):
                found.setdefault((kind, dose), {})[fallen] = tally
        return found

    def shots(self, prefix: int | None = None) -> dict[ShotKey, dict[int, Tally]]:
        """Count shots by (kind, flips, design, vote), and those by the guests that failed.

        The vote is "" where it is the station's.
        """
        repair = self.plan.spec.repair == "on"
        votes = {cell.name: cell.vote for cell in self.plan.cells}
        found: dict[ShotKey, dict[int, Tally]] = {}
        tallies = self._model("design", "repair", "fallen", "stratum", prefix=prefix, shot=True)
        for (kind, flips, design, on, fallen, stratum), tally in tallies.items():
            if design == "nv" or on == repair:
                by_fallen = found.setdefault((kind, flips, design, votes[stratum]), {})
                by_fallen[fallen] = by_fallen.get(fallen, Tally()) + tally
        return found

    def _model(self, *by: str, prefix: int | None, shot: bool) -> dict[Key, Tally]:
        """Count missions in which nothing was forced to fail, by kind, dose and more."""
        tallies = self.tallies("kind", "dose", *by, prefix=prefix, shot=shot)
        return {key: tally for key, tally in tallies.items() if key[0]}

    # ------------------------------------------------------------- rows

    def rows(self, prefix: int | None = None, **where: object) -> Iterator[MissionRow]:
        """Yield rows in the order of the plan; ``where`` as with ``tallies``."""
        sql, values = self._where(prefix, where)
        for record in self._sql.execute(f"SELECT * FROM missions {sql} ORDER BY ord", values):
            yield as_row(record)

    def row(self, index: int) -> MissionRow | None:
        """Return the row of a mission by its number, or None."""
        query = "SELECT * FROM missions WHERE mission = ?"
        record = self._sql.execute(query, (index,)).fetchone()
        return None if record is None else as_row(record)

    # ------------------------------------------------------------- times

    def latencies(
        self, by: str = "stratum", prefix: int | None = None, **where: object
    ) -> dict[Any, LatencyTally]:
        """Summarize the latencies of answered requests (seconds) for each value of a column."""
        self._known((by,))
        sql, values = self._where(prefix, where)
        answered: dict[Any, list[float]] = {}
        missing: dict[Any, int] = {}
        decoder = msgspec.json.Decoder(list[float])
        for value, text in self._sql.execute(f"SELECT {by}, latencies FROM missions {sql}", values):
            every = decoder.decode(text)
            real = [latency for latency in every if latency >= 0]
            answered.setdefault(value, []).extend(real)
            missing[value] = missing.get(value, 0) + len(every) - len(real)
        return {
            _plain((by,), [value])[0]: latency_of(each, missing[value])
            for value, each in answered.items()
        }

    def timings(
        self, by: str = "stratum", prefix: int | None = None, **where: object
    ) -> dict[Any, tuple[Timings, int]]:
        """Return mean times (seconds) of the missions of each value of a column, and how many."""
        self._known((by,))
        sql, values = self._where(prefix, where)
        sql += " AND reset_s IS NOT NULL" if sql else "WHERE reset_s IS NOT NULL"
        query = (
            f"SELECT {by}, AVG(reset_s), AVG(inject_s), AVG(workload_s), AVG(settle_s), COUNT(*) "
            f"FROM missions {sql} GROUP BY {by}"
        )
        return {
            _plain((by,), [value])[0]: (
                Timings(reset=reset, inject=inject, workload=workload, settle=settle),
                count,
            )
            for value, reset, inject, workload, settle, count in self._sql.execute(query, values)
        }

    def latest(self, since: float, most: int) -> list[float]:
        """When the last ``most`` missions since then began, in seconds since the epoch."""
        # The last ones of the order are the latest, but for those of workers that were lost.
        query = "SELECT began FROM missions WHERE began >= ? ORDER BY ord DESC LIMIT ?"
        return [row[0] for row in self._sql.execute(query, (since, most))]

    def rates(self) -> Rates | None:
        """Learn how long missions take, for plans to come; None without a mission."""
        query = (
            "SELECT planned, kinds, voter_kind, kind, reset_s + inject_s + workload_s + settle_s "
            "FROM missions WHERE reset_s IS NOT NULL AND outcome IS NOT NULL"
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

        Raises OSError, StoreError (there is no duckdb).
        """
        try:
            import duckdb  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise StoreError(
                "Parquet needs duckdb: pip install 'trivisor[campaign]', or export CSV"
            ) from error
        types = {
            name: "BOOLEAN" if name in FLAGS else _DUCK[sql.split()[0]]
            for name, sql in COLUMNS.items()
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
        count = 0
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            query = f"SELECT {', '.join(COLUMNS)} FROM missions ORDER BY ord"
            for record in self._sql.execute(query):
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
        """Return a WHERE clause and its values; a list or tuple means any of its values."""
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
