"""The comparison of a service's runs under different conditions, step by step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from guests.check.plan import (
    PLAIN,
    CheckPlan,
    CheckRun,
    Condition,
    find_hint,
    make_conditions,
    make_workload,
)
from guests.check.result import (
    CheckResult,
    Disagreement,
    ServiceFacts,
    show_message,
    show_reply_difference,
    show_state_difference,
)
from guests.protocol.message import Reply
from guests.service import SHIPPED

__all__ = ["check", "describe"]


def check(
    service: str,
    *,
    requests: int = 200,
    seed: int = 0,
    workload: Sequence[bytes] | None = None,
    timeout: float = 60.0,
    stop_early: bool = False,
) -> CheckResult:
    """Check a shipped service, by its name, or a Python file.

    ``workload``: requests as canonical bytes.  Without it, the check makes ``requests`` many from
    ``seed`` and the file's CHECK_REQUESTS.  ``timeout``: seconds for each of about a dozen runs.
    ``stop_early``: stop at the first condition that shows a difference.  Raises ServiceError if the
    service cannot be loaded, ValueError if there is no request.
    """
    name = service if service in SHIPPED else str(Path(service).resolve())
    plan = CheckPlan(name, seed, timeout)
    about = plan.describe()
    if workload is None:
        own = [text.encode("latin-1") for text in about["requests"]]
        workload = make_workload(seed, requests, own, about["paths"])
    if not workload:
        raise ValueError("there must be at least one request to send")
    plan.set_workload(workload)
    count = len(workload)
    cuts = sorted({max(1, count * quarter // 4) for quarter in (1, 2, 3)})
    plain = plan.run(Condition(), snapshots=cuts)
    differences = list(_check_plain(plan, plain))
    over = bool(differences) and (stop_early or bool(plain.failure))
    conditions = [] if over else make_conditions(cuts)
    done = [PLAIN]
    with ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1))) as pool:
        runs = pool.map(lambda condition: plan.run(condition, plain.states), conditions)
        for condition, run in zip(conditions, runs, strict=True):
            done.append(condition.name)
            found = _compare(plan, plain, condition, run, explain=not differences)
            if found is not None:
                differences.append(found)
                if stop_early:
                    pool.shutdown(wait=False, cancel_futures=True)
                    break
    return CheckResult(
        service=service,
        ok=not differences,
        requests=count,
        seed=seed,
        conditions=tuple(done),
        statuses=_count_statuses(plain),
        differences=tuple(differences),
        notes=tuple(_note(plain)),
    )


def describe(service: str, *, timeout: float = 60.0) -> ServiceFacts:
    """Load a shipped service, by its name, or a Python file, in a process of its own.

    ``timeout``: seconds.  Raises ServiceError that names the problem, with its line if it has one.
    """
    name = service if service in SHIPPED else str(Path(service).resolve())
    about = CheckPlan(name, 0, timeout).describe()
    return ServiceFacts(name=str(about["name"]), state_format=int(about["state_format"]))


def _check_plain(plan: CheckPlan, plain: CheckRun) -> Iterator[Disagreement]:
    """Yield the first problem of the plain run itself."""
    if plain.failure:
        n = max(plain.digests, default=-1) + 1
        yield _failed(plan, Condition(), n, plain.failure)
        return
    for n in plain.replies:
        before, after = plain.digests[n - 1], plain.digests[n]
        if plan.is_read_only(n) and before != after:
            states = plan.run(Condition(), snapshots=(n - 1, n)).states
            yield Disagreement(
                condition=PLAIN,
                what="a request that only reads changed the state",
                request_number=n,
                request=plan.show_request(n),
                expected=f"digest {before}",
                got=f"digest {after}",
                detail=show_state_difference(states.get(n - 1, b""), states.get(n, b"")),
                hint=find_hint("reads left out"),
            )
            return


def _compare(
    plan: CheckPlan, plain: CheckRun, condition: Condition, run: CheckRun, *, explain: bool
) -> Disagreement | None:
    """Return the first difference of a run from the plain one, or None.

    ``explain``: if states differ, run both again to show where.
    """
    for n, digest in run.digests.items():
        expected, got = plain.replies.get(n, b""), run.replies.get(n, b"")
        if n in run.replies and expected != got:
            return Disagreement(
                condition=condition.name,
                what="the replies differ",
                request_number=n,
                request=plan.show_request(n),
                expected=show_message(expected),
                got=show_message(got),
                detail=show_reply_difference(expected, got),
                hint=find_hint(condition.name),
            )
        if digest != plain.digests[n]:
            ours = theirs = b""
            if explain:
                ours = plan.run(Condition(), snapshots=(n,)).states.get(n, b"")
                theirs = plan.run(condition, plain.states, snapshots=(n,)).states.get(n, b"")
            restored = n == condition.restore_after > 0
            return Disagreement(
                condition=condition.name,
                what="the restored state differs" if restored else "the states (digests) differ",
                request_number=n,
                request=plan.show_request(n),
                expected=f"digest {plain.digests[n]}",
                got=f"digest {digest}",
                detail=show_state_difference(ours, theirs),
                hint=find_hint(condition.name),
            )
    if run.failure:
        n = max(run.digests, default=condition.restore_after - 1) + 1
        return _failed(plan, condition, n, run.failure)
    return None


def _failed(plan: CheckPlan, condition: Condition, n: int, failure: str) -> Disagreement:
    restoring = condition.restore_after == n > 0
    return Disagreement(
        condition=condition.name,
        what="restore() failed" if restoring else "the run ended early",
        request_number=n,
        request=plan.show_request(n),
        expected="a reply and a digest",
        got=failure,
        detail="",
        hint=find_hint("restore") if restoring else "",
    )


def _count_statuses(plain: CheckRun) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reply in plain.replies.values():
        status = str(Reply.decode(reply).status)
        counts[status] = counts.get(status, 0) + 1
    return dict(sorted(counts.items()))


def _note(plain: CheckRun) -> Iterator[str]:
    """Yield notes on weaknesses of the check."""
    statuses = _count_statuses(plain)
    total = sum(statuses.values())
    good = sum(count for status, count in statuses.items() if status < "400")
    crashes = statuses.get("500", 0)
    if total and good * 4 < total:
        yield (
            f"only {good} of {total} requests were answered with success: define CHECK_REQUESTS ="
            " [(method, target, body), ...] in the service's file, to reach all its parts"
        )
    if crashes:
        yield f"{crashes} of {total} requests made the service raise an exception (500)"
    if len(set(plain.digests.values())) == 1:
        yield "no request changed the state: the service holds none, or snapshot() does not give it"
