"""The page can be used by everybody: axe-core finds nothing serious, and nothing scrolls sideways on a small screen."""

from __future__ import annotations

from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import NARROW, WIDE, OpenPage, overflow_of, send, violations_of
from trikv.testing.processes.cluster import LocalCluster


def open_dialog(page: Page) -> None:
    page.locator("#mode-choices button:not(:disabled)").first.click()
    expect(page.locator("#confirm")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_axe_finds_nothing_serious(
    cluster: LocalCluster, open_page: OpenPage, width: int, scheme: Literal["light", "dark"]
) -> None:
    page = open_page(cluster, width=width, scheme=scheme)
    send(page, "put", "seen", "by all")
    expect(page.locator("#trace-picture svg.spacetime")).to_be_attached()
    page.locator("details summary").filter(has_text="text").click()
    page.locator("#trace-others").click()
    expect(page.locator("#trace-list button").first).to_be_visible()
    assert violations_of(page) == []
    open_dialog(page)
    assert violations_of(page) == []


def test_axe_would_find_something(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    page.evaluate("() => { document.querySelector('#request-send').textContent = ''; }")
    assert any(violation.startswith("button-name") for violation in violations_of(page))


def test_nothing_scrolls_sideways_on_a_small_screen(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster, width=NARROW)
    send(page, "put", "k" * 300, "v" * 300)
    expect(page.locator("#trace-picture svg.spacetime")).to_be_attached()
    page.locator("#trace-others").click()
    expect(page.locator("#trace-list button").first).to_be_visible()
    page.locator("#ring-key").fill("w" * 300)
    page.locator("#ring-key").press("Enter")
    expect(page.locator("#ring-detail code")).to_be_visible()
    assert overflow_of(page) <= 0
    open_dialog(page)
    assert overflow_of(page) <= 0
