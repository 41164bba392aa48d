"""Every query of the dashboard file asks for metrics and labels that a cluster has.

`bench/grafana.py` runs the queries in a real Prometheus. Here their names are compared with what was scraped, so a
metric that gets another name is noticed by every run of the tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.web.scraped import Samples, flaws, samples_of
from trikv.testing.processes.cluster import LocalCluster

DASHBOARD = json.loads((Path(__file__).parents[2] / "bench" / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ADDED = {"job", "instance"}  # by Prometheus itself

_SELECTOR = re.compile(r"\b((?:trikv|process)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")
_GROUPING = re.compile(r"\b(by|ignoring|on)\s*\(([^)]*)\)")

Labels = dict[str, str]


@pytest.fixture(scope="module")
def scraped() -> Samples:
    options = ["--probe", "--autoscale", "3..3", "--max-load", "1e6"]
    with LocalCluster(workers=3, storage="rocksdb", master_options=options, metrics=True) as cluster:
        with cluster.client() as client:
            client.put(b"key", b"value")
            client.get(b"key")
        samples: Samples = {}
        for node in (cluster.master, *cluster.workers):
            text = httpx.get(f"http://127.0.0.1:{node.http_port}/metrics", trust_env=False).raise_for_status().text
            assert flaws(text) == []
            samples |= samples_of(text)
    return samples


def names_of(query: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Each metric of a query, and what it matches of its labels."""
    for name, matchers in _SELECTOR.findall(query):
        yield name, _MATCHER.findall(matchers)


def complaints(samples: Samples, query: str, legend: str) -> list[str]:
    """What the query asks for and no scrape has."""
    found = []
    metrics: dict[str, list[Labels]] = {}
    for name, labels in samples:
        metrics.setdefault(name, []).append(dict(labels))
    known: set[str] = set(ADDED)
    for name, matchers in names_of(query):
        series = metrics.get(name, [])
        known |= {label for labels in series for label in labels}
        for label, how, value in matchers:
            if label not in ADDED:
                series = [labels for labels in series if label in labels and (how != "=" or labels[label] == value)]
        if not series:
            found.append(f"there is no {name} with {matchers}")
    groupings = [(how, set(re.findall(r"\w+", names))) for how, names in _GROUPING.findall(query)]
    for _, grouped in groupings:
        found += [f"no metric has label {label}" for label in grouped - known]
    told = set.union(*(grouped for how, grouped in groupings if how == "by")) if "by" in dict(groupings) else known
    found += [f"the legend has {label}" for label in set(re.findall(r"\{\{(\w+)\}\}", legend)) - told]
    return found


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_what_a_panel_asks_for_is_there(scraped: Samples, panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        assert list(names_of(target["expr"])), target["expr"]
        assert complaints(scraped, target["expr"], target["legendFormat"]) == [], target["expr"]


@pytest.mark.parametrize(
    ("query", "legend"),
    [
        ("rate(trikv_no_such_total[1m])", ""),
        ('trikv_workers{state="upp"}', ""),
        ('trikv_workers{stat="up"}', ""),
        ("sum by (modus) (trikv_operations_total)", ""),
        ("sum by (mode) (trikv_operations_total)", "{{outcome}}"),
    ],
)
def test_what_is_not_there_is_noticed(scraped: Samples, query: str, legend: str) -> None:
    assert complaints(scraped, query, legend)


def test_the_file_is_a_dashboard() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        places |= cells
    assert all(panel["description"].endswith(".") for panel in PANELS)


def test_nearly_all_that_is_measured_is_on_it(scraped: Samples) -> None:
    asked = {name for panel in PANELS for target in panel["targets"] for name, _ in names_of(target["expr"])}
    ours = {name for name, _ in scraped if name.startswith("trikv_")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in ours}
    missing = {family for family in families if not any(name.startswith(family) for name in asked)}
    assert len(missing) < len(families) / 4, sorted(missing)
