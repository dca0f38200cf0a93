"""``trivisor bench``: what voting costs, as ratios of things measured side by side in one run.

``commands`` and ``tables`` are the command line.  Each measurement has a module of its own:
``comparison`` (with ``disturbance``), ``durability``, ``memory``, ``transfer`` and ``capacity``.
They share the ``rig`` (processes and guests), ``rounds`` (random order, ratios) and ``usage`` (what
processes consume).  ``peers``, ``clients`` and ``etcd`` are what voting is compared with.
"""

__all__: list[str] = []
