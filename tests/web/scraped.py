"""What tests read in a scrape: its samples, and what is wrong with it by Prometheus' conventions."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

_NAME = re.compile(r"(trikv|process)_[a-z0-9]+(_[a-z0-9]+)*")
# What stands for a unit that is not a base unit, or for a type that the name need not tell.
_BAD_ENDS = ("_ms", "_milliseconds", "_us", "_minutes", "_kb", "_mb", "_kilobytes", "_percent", "_count", "_gauge")
_LABELS = {
    "call", "code", "fault", "kind", "le", "method", "mode", "operation", "outcome", "promise", "python", "role",
    "route", "state", "status", "version", "what", "worker",
}  # fmt: skip
SERIES_MAX = 1500  # for a few workers


def samples_of(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, *, default: float | None = None, **labels: str) -> float:
    """The one sample of that name that has these labels, among others or not."""
    found = [n for (other, having), n in samples.items() if other == name and labels.items() <= dict(having).items()]
    if not found and default is not None:
        return default
    assert len(found) == 1, (name, labels, found)
    return found[0]


def flaws(text: str) -> list[str]:
    """What `promtool check metrics` would say of a scrape, and series that are there twice."""
    found = []
    families = list(text_string_to_metric_families(text))
    names = [family.name for family in families]
    found += [f"{name} is there twice" for name in {name for name in names if names.count(name) > 1}]
    series = 0
    for family in families:
        if not _NAME.fullmatch(family.name) or family.name.endswith(_BAD_ENDS):
            found.append(f"{family.name} is no name")
        if not family.documentation.strip():
            found.append(f"{family.name} has no help")
        if family.type != "counter" and f"# TYPE {family.name}_total" in text:
            found.append(f"{family.name} is no counter")
        keys = [(sample.name, frozenset(sample.labels.items())) for sample in family.samples]
        series += len(keys)
        found += [f"{key} is there twice" for key in {key for key in keys if keys.count(key) > 1}]
        found += [f"{family.name} has label {label}" for s in family.samples for label in s.labels.keys() - _LABELS]
        if family.type == "histogram":
            found += _flaws_of_buckets(family.name, _buckets_of(family.samples))
        elif family.type == "unknown":
            found.append(f"{family.name} has no type")
    if series > SERIES_MAX:
        found.append(f"there are {series} series")
    return found


def _buckets_of(samples: list[Sample]) -> dict[frozenset[tuple[str, str]], list[tuple[float, float]]]:
    buckets: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
    for sample in samples:
        if sample.name.endswith("_bucket"):
            rest = frozenset((name, text) for name, text in sample.labels.items() if name != "le")
            buckets.setdefault(rest, []).append((float(sample.labels["le"]), sample.value))
    return buckets


def _flaws_of_buckets(name: str, buckets: dict[frozenset[tuple[str, str]], list[tuple[float, float]]]) -> list[str]:
    found = []
    for rows in buckets.values():
        if rows != sorted(rows) or [count for _, count in rows] != sorted(count for _, count in rows):
            found.append(f"{name} has buckets that fall")
        if rows[-1][0] != float("inf"):
            found.append(f"{name} has no last bucket")
    return found
