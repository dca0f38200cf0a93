"""Experiments: arms of seeded trials, each counting one event, compared with a prediction.

Unlike a campaign (``faultinject.campaign``), an experiment's trials share no strata and no fault
catalogue: each experiment brings its own rig.  The framework plans, runs, resumes and assesses.
"""

__all__: list[str] = []
