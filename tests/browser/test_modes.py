"""A switch of the mode from the page: the plan first, nothing without consent, and the certificate at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenPage
from trikv.core.errors import Outcome
from trikv.testing.processes.clients import Load
from trikv.testing.processes.cluster import LocalCluster

SWITCH_MS = 60_000
SEED = 11


@pytest.fixture(scope="module")
def switched() -> Iterator[LocalCluster]:
    with LocalCluster(mode="async", workers=3, timeout_s=10.0) as cluster:
        yield cluster


def choice(page: Page, mode: str) -> Locator:
    return page.locator("#mode-choices").get_by_role("button", name=re.compile(rf"^{mode}\b"))


def mode_of(cluster: LocalCluster) -> str:
    with cluster.client() as client:
        return str(client.mode()["mode"])


def test_every_installed_mode_can_be_chosen(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    with cluster.client() as client:
        state = client.cluster()
    for mode in state["modes"]:
        expect(choice(page, mode["name"])).to_contain_text(mode["promise"])
        assert choice(page, mode["name"]).is_disabled() == (mode["name"] == state["mode"])
    expect(page.locator("#mode-name")).to_contain_text(state["mode"])
    in_force = next(mode for mode in state["modes"] if mode["name"] == state["mode"])
    for words in ("gives_up", "use_when", "protocol"):
        expect(page.locator("#mode-words")).to_contain_text(in_force[words])


def test_what_was_measured_stands_beside_the_promise(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    expect(page.locator("#probe")).to_be_visible()
    expect(page.locator("#probe-verdict")).to_have_text("kept", timeout=SWITCH_MS)
    expect(page.locator("#probe-numbers")).to_contain_text("operations checked")


def test_a_switch_under_load_ends_with_the_new_promise_and_the_certificate(
    switched: LocalCluster, open_page: OpenPage
) -> None:
    page = open_page(switched)
    expect(page.locator("#mode-name")).to_contain_text("async")
    expect(page.locator("#mode-name")).to_contain_text("AP")
    with Load(switched.masters, seed=SEED, clients=4, rate=60.0, keys=60, fill=True) as load:
        load.filled()
        dialog = page.get_by_role("dialog", name="Switch from async to quorum?")

        choice(page, "quorum").click()
        expect(dialog).to_contain_text("partitions are settled under quorum")
        assert mode_of(switched) == "async"
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_be_hidden()
        expect(choice(page, "quorum")).to_be_enabled()
        assert mode_of(switched) == "async"

        choice(page, "quorum").click()
        dialog.get_by_role("button", name="Switch to quorum").click()
        outcome = page.locator("#mode-outcome")
        expect(outcome).to_contain_text("Certificate: mode quorum is in force", timeout=SWITCH_MS)
        expect(outcome).to_contain_text("async, quorum (CP)")
        expect(page.locator("#mode-name")).to_contain_text("quorum")
        expect(page.locator("#mode-name")).to_contain_text("CP")
        expect(choice(page, "quorum")).to_be_disabled()
        expect(page.locator("#mode-choices button:focus")).to_be_enabled()  # a reader with a keyboard is still there
        assert mode_of(switched) == "quorum"
    assert load.commits
    assert [each for each in load.history if each.outcome is Outcome.UNKNOWN] == []
