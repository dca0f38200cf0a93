"""Planted defects in changes of roles (``defects.py``)."""

from __future__ import annotations

from faultinject.simulation.defect import Defect

__all__ = ["ROLE_DEFECTS"]

ROLE_DEFECTS = (
    Defect(
        "roles-not-in-checkpoint",
        "the checkpoint does not contain the roles",
        ("Roles",),
        (
            (
                "voter.core.checkpoints",
                "roles_version=self.members.roles_version,",
                "roles_version=0,",
            ),
        ),
    ),
    Defect(
        "roles-acknowledged-early",
        "a change of roles is acknowledged before it is durable",
        ("Durability", "Roles"),
        (("voter.core.roles", "self.gate.report_when_durable(", "self.effects.append("),),
    ),
    Defect(
        "roles-forgotten",
        "a restart forgets the changes of roles since the last checkpoint",
        ("Roles",),
        (("voter.core.resume", "if entry.version > version:", "if False:"),),
    ),
    Defect(
        "roles-in-halves",
        "the journal has the new version with the old table",
        ("Roles",),
        (("voter.core.roles", "table = members.roles | event.roles", "table = members.roles"),),
    ),
    Defect(
        "roles-learner-votes",
        "a learner votes as soon as it has caught up",
        ("Agreement", "Roles"),
        (
            (
                "voter.core.incarnations",
                "        if replica.role is Role.VOTER:\n            self.members.change(",
                "        if replica.role is not Role.OBSERVER:\n            self.members.change(",
            ),
        ),
    ),
    Defect(
        "roles-retired-connects",
        "the replica of a free slot may join",
        ("Agreement", "Order", "Roles", "Liveness"),
        (
            (
                "voter.core.incarnations",
                "if replica.role is Role.RETIRED:\n            self.effects",
                "if False:\n            self.effects",
            ),
            ("voter.link", "await self._enabled.wait()", "pass"),
            (
                "voter.core.replica",
                "(State.RETIRED, Cause.ASSIGNED): State.ABSENT,",
                "(State.RETIRED, Cause.ASSIGNED): State.ABSENT,"
                " (State.RETIRED, Cause.BEHIND): State.LEARNER,",
            ),
        ),
    ),
    Defect(
        "roles-no-successor",
        "the replica that takes a voter's place does not become a voter",
        ("Liveness", "Roles"),
        (
            (
                "voter.core.roles",
                "if role is not replica.role]",
                "if role is not replica.role and role is not Role.VOTER]",
            ),
        ),
    ),
    Defect(
        "roles-do-not-wait",
        "a vote that a change of roles decides is released before the change is durable",
        ("Durability",),
        (("voter.core.roles", "self.polls.require_position(0, journal.last_write)", "pass"),),
    ),
)
"""Each must break a promise within 100 seeds that change roles."""
