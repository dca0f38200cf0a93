"""Metrics as text: Prometheus' format 0.0.4, or OpenMetrics 1.0 for a scraper that asks for it.

A process describes its metrics once, in a catalogue of families.  The page of the documentation is
generated from the catalogues, and each scrape from the catalogue and the present values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

__all__ = ["Exemplar", "Family", "Histogram", "Samples", "expose", "wants_openmetrics"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""Media types of the two formats."""
LONGEST_EXEMPLAR = 128
"""Characters of the names and values of an exemplar's labels; OpenMetrics allows no more."""
UNITS = ("seconds", "bytes")
"""Base units that the name of a metric may end in (before ``_total``)."""


class Family(NamedTuple):
    """One metric: its type, what it means, and the names of its labels."""

    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    labels: tuple[str, ...] = ()


class Exemplar(NamedTuple):
    """A request that fell into a bucket: its latency in seconds, when (since 1970), its labels."""

    value: float
    time: float
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Upper bounds of the buckets but the last, counts per bucket, the sum of all values."""

    bounds: Sequence[float]
    counts: Sequence[int]
    sum: float
    exemplars: Mapping[int, Exemplar]  # by number of the bucket


Samples = Iterable[tuple[tuple[str, ...], float]] | Histogram
"""Values of the labels with the value of the metric."""


def wants_openmetrics(accept: bytes) -> bool:
    """Return whether a client prefers OpenMetrics, by its Accept header."""
    ranks = {b"application/openmetrics-text": 0.0, b"text/plain": 0.0}
    for part in accept.lower().split(b",")[:20]:
        kind, *parameters = (each.strip() for each in part.split(b";"))
        fields = dict(each.partition(b"=")[::2] for each in parameters)
        known = fields.get(b"version", b"1.0.0") in (b"1.0.0", b"0.0.1") or kind == b"text/plain"
        quality = fields.get(b"q", b"1")
        if kind in ranks and known and re.fullmatch(rb"[01](\.[0-9]{0,3})?", quality):
            ranks[kind] = max(ranks[kind], float(quality))
    openmetrics, text = ranks.values()
    return openmetrics > 0 and openmetrics >= text


def expose(
    families: Mapping[str, Family],
    samples: Mapping[str, Samples],
    created: float,
    *,
    openmetrics: bool,
) -> tuple[bytes, str]:
    """Return the metrics that have samples as text, and its media type.

    ``created``: when the counters began, in seconds since 1970.
    """
    lines = [
        f"{line}\n"
        for name, family in families.items()
        if name in samples
        for line in _lines(name, family, samples[name], created, openmetrics)
    ]
    end = "# EOF\n" if openmetrics else ""
    return ("".join(lines) + end).encode(), OPENMETRICS if openmetrics else TEXT


def _lines(
    name: str, family: Family, samples: Samples, created: float, openmetrics: bool
) -> Iterator[str]:
    suffix = {"counter": "_total", "info": "_info"}.get(family.kind, "")
    base = name.removesuffix(suffix) if openmetrics else name
    kind = "gauge" if family.kind == "info" and not openmetrics else family.kind
    yield f"# TYPE {base} {kind}"
    unit = name.removesuffix(suffix).rpartition("_")[2]
    if openmetrics and unit in UNITS:
        yield f"# UNIT {base} {unit}"
    yield f"# HELP {base} {family.help}"
    if isinstance(samples, Histogram):
        yield from _histogram(name, samples, openmetrics)
        if openmetrics:
            yield f"{base}_created {created:.3f}"
        return
    for values, value in samples:
        labels = _labels(zip(family.labels, values, strict=True))
        yield f"{name}{labels} {float(value)}"
        if openmetrics and family.kind == "counter":
            yield f"{base}_created{labels} {created:.3f}"


def _histogram(name: str, histogram: Histogram, openmetrics: bool) -> Iterator[str]:
    total = 0
    bounds = [*(str(float(f"{bound:g}")) for bound in histogram.bounds), "+Inf"]
    for number, (bound, total) in enumerate(zip(bounds, accumulate(histogram.counts), strict=True)):
        exemplar = histogram.exemplars.get(number) if openmetrics else None
        more = ""
        if exemplar is not None:
            more = f" # {_labels(exemplar.labels.items())} {exemplar.value} {exemplar.time:.3f}"
        yield f'{name}_bucket{{le="{bound}"}} {total}{more}'
    yield f"{name}_count {total}"
    yield f"{name}_sum {histogram.sum}"


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    """Return labels in braces; nothing if there are none."""
    text = ",".join([f'{name}="{_escaped(value)}"' for name, value in labels])
    return f"{{{text}}}" if text else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
