"""The experiment `replay`: its histories, its predictions, and one trial on real guests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from deploy.host.spawn import python_command, python_environment
from faultinject.experiment.store import RowStore
from faultinject.section3.replay import EXPERIMENT, FORMS, make_history
from faultinject.services.ledger import Ledger
from guests.answer import answer
from guests.context import Context
from guests.protocol.message import Reply, encode_request
from guests.service import state_digest


def status(service: Ledger, user: str, body: str) -> int:
    request = encode_request("POST", "/transfer", [("x-user", user)], body.encode())
    reply = answer(service, request, Context(1, 0, bytes(8), "test"))
    return int(Reply.decode(reply).status)


@pytest.mark.parametrize("seed", range(40))
def test_every_exploit_is_accepted_and_every_failed_attempt_is_not(seed: int) -> None:
    history, service = make_history(seed, exploited=True, attempts=1.0), Ledger()
    assert 1 <= len(history.exploits) <= 3
    attempts = 0
    for place, (user, body) in enumerate(history.requests):
        amount = json.loads(body)["amount"]
        found = status(service, user, body)
        if place in history.exploits:
            assert amount[0] in FORMS and found == 200
        elif amount.startswith("-"):
            attempts += 1
            assert found == 400
        else:
            assert int(amount) > 0
    assert 1 <= attempts <= 3
    assert len({history.requests[place][0] for place in history.exploits}) == 1


def test_a_clean_history_has_neither() -> None:
    for seed in range(40):
        history = make_history(seed, exploited=False, attempts=0.0)
        assert not history.exploits
        assert all(int(json.loads(body)["amount"]) > 0 for _, body in history.requests)


def test_the_ledger_restores_its_snapshot() -> None:
    service, other = Ledger(), Ledger()
    assert status(service, "ann", '{"to": "bob", "amount": "7"}') == 200
    assert status(service, "ann", '{"to": "bob", "amount": "2000"}') == 409
    assert status(service, "ann", "{}") == 400
    other.restore(b"".join(service.snapshot()))
    assert state_digest(other.snapshot()) == service.digest()


def test_the_predictions_are_those_of_the_draws() -> None:
    arms = {arm.name: arm for arm in EXPERIMENT.arms}
    seeds = range(4000)
    drawn = [make_history(seed, exploited=True, attempts=0.5) for seed in seeds]
    known = sum(
        any('"amount": " -' in each.requests[place][1] for place in each.exploits) for each in drawn
    )
    predicted = arms["exploited-signature"].predicted
    assert predicted is not None
    assert abs(known / len(drawn) - predicted) < 0.03
    assert sum(arms[name].trials for name in ("exploited", "clean")) == 200


@pytest.mark.long
@pytest.mark.vm
def test_histories_of_real_guests_are_replayed_in_a_real_guest(scratch: Path) -> None:
    words = ["experiment", "run", "replay", "--share", "0.01", "--out", str(scratch / "x")]
    words += ["--arm", "exploited", "--arm", "clean"]
    done = subprocess.run(
        python_command("trivisor", *words), env=python_environment(), capture_output=True,
        text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with RowStore.open(scratch / "x", write=False) as store:
        rows = {row.arm: row for row in store.rows}
    assert rows["exploited"].facts["accel"] in ("tcg", "kvm")
    exploited, clean = rows["exploited"].outcome, rows["clean"].outcome
    assert exploited.event and not exploited.excluded and exploited.detail["planted"]
    assert not clean.event
    for outcome in (exploited, clean):
        assert outcome.values["differing_replies"] == 0
        assert outcome.values["replies_compared"] == 300
