"""Scaling by itself is seen: why, the new worker on the ring, and its leaving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, make_demo
from trikv.core.errors import Outcome
from trikv.testing.judge.history import MET
from trikv.testing.processes.clients import Load
from trikv.testing.processes.cluster import LocalCluster, wait_until

PATIENCE_S = 90.0
SEED = 5


@pytest.fixture
def growing() -> Iterator[LocalCluster]:
    with make_demo(2, "--autoscale", "2..3", "--max-load", "40", replicas=2) as cluster:
        yield cluster


def test_a_worker_comes_onto_the_ring_under_load_and_goes_again(growing: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(growing)
    at_first = on_ring(page)
    assert len(at_first) == 2
    expect(page.locator("#scaling-range")).to_contain_text("2 to 3 workers")
    with Load(growing.masters, seed=SEED, clients=3, rate=80.0, keys=50) as load:
        wait_until(lambda: len(on_ring(page)) == 3, what="a third worker is on the ring", deadline_s=PATIENCE_S)
        expect(page.locator("#scaling-range")).to_contain_text("there are 3")
        expect(page.locator("tr[data-worker] .state")).to_have_text(["up", "up", "up"])
    failed = [each for each in load.history if each.outcome is not Outcome.COMMITTED and each.code not in MET]
    assert failed == []
    wait_until(lambda: on_ring(page) == at_first, what="it has left the ring again", deadline_s=PATIENCE_S)
    expect(page.locator("#scaling-range")).to_contain_text("there are 2", timeout=PATIENCE_S * 1000)
    expect(page.locator("#events-list")).to_contain_text("A worker is being started: ")
    expect(page.locator("#events-list")).to_contain_text("is being taken away: ")


def on_ring(page: Page) -> set[str]:
    return set(page.eval_on_selector_all("#ring-picture .token", "(all) => all.map((one) => one.dataset.worker)"))
