"""Campaigns: many missions with planned faults, each checked.

Layers, from the bottom: ``records`` (the data of one mission) < ``planning`` (a file and a seed
give the missions) < ``assessment`` (from observations to stratum and outcome) < ``mission`` (runs
one mission on its own node) < ``store`` (keeps the observations of all missions) < ``workers``
(processes that run missions, here or on a cluster) < ``run`` (a whole run, and its status).

``faultinject.report`` shows what a campaign found.
"""

__all__: list[str] = []
