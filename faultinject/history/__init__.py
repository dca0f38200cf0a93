"""Workloads, and the checkers of what clients saw.

``model`` is the service itself, run in this process: the reference for every reply.  ``oracle`` has
two judges of replies that use it.  They differ in what is known about the order of requests.
``workload`` has seeded requests and a function that makes them.  ``linearizability`` and
``counters`` are independent checkers: they use neither the model nor the voter's order.
"""

__all__: list[str] = []
