"""The experiments on the paper's section 3, by name: the module that holds each ``EXPERIMENT``."""

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, str] = {
    "monitor": "faultinject.section3.monitor",
    "replay": "faultinject.section3.replay",
    "scrubbing": "faultinject.section3.scrubbing",
}
