"""Everything an operator may ask of a voter, as plain data."""

from __future__ import annotations

from typing import Any

from voter.runner import Runner

__all__ = ["describe"]


def describe(runner: Runner) -> dict[str, Any]:
    """Return what ``GET /status`` on the control socket tells."""
    engine, replicas = runner.engine, []
    for replica, link in zip(engine.members, runner.links, strict=True):
        welcome = link.welcome
        replicas.append(
            {
                "name": replica.name,
                "role": "observer" if replica.observer else "voter",
                "state": str(replica.state),
                "reason": replica.reason,
                "link": link.address.text,
                "link_problem": link.problem,
                "epoch": f"{replica.epoch:016x}",
                "incarnation": replica.incarnation,
                "service": welcome.service if welcome else None,
                "build": welcome.build if welcome else None,
                "lag": len(replica.outstanding),
                "dissents": replica.dissents,
                "expulsions": replica.expulsions,
            }
        )
    return {
        "standing": engine.status,
        "vote": str(runner.policy),
        "active": len(engine.members.active),
        "seq": engine.log.seq,
        "pending": engine.pending,
        "throttled": engine.throttle.on,
        "durability": runner.config.durable,
        "journal": runner.journal.status() if runner.journal is not None else None,
        "once": {
            "sessions": engine.dedup.sessions,
            "keys": engine.dedup.keys,
            "bytes": engine.dedup.size,
        },
        "log": {"writes": len(engine.log), "bytes": engine.log.bytes},
        "checkpoint": {
            "seq": engine.log.checkpoint.seq,
            "size": len(engine.log.checkpoint.state),
            "digest": (engine.log.checkpoint.digest or b"").hex() or None,
        },
        "replicas": replicas,
        "counters": runner.counters | {"failures": runner.failures},
    }
