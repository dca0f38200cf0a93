"""Deployment to another host by SSH: its checks, the plan of changes, their transaction there."""

from __future__ import annotations
