"""Everything can be done with the keyboard alone, and the focus stays where it was when the state changes."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, answer_of, press_send
from trikv.testing.processes.cluster import LocalCluster

STOPS_MAX = 120  # a page with more stops of the tab key than that is none for the keyboard


def tab_to(page: Page, selector: str) -> None:
    """Press the tab key until an element that the selector describes has the focus."""
    for _ in range(STOPS_MAX):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} is not reached with {STOPS_MAX} presses of the tab key")


def test_a_request_is_made_with_the_keyboard_alone(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    tab_to(page, "#request [name=key]")
    page.keyboard.press("Control+A")
    page.keyboard.type("by-keyboard")
    tab_to(page, "#request [name=value]")
    page.keyboard.press("Control+A")
    page.keyboard.type("typed")
    assert press_send(page, lambda: page.keyboard.press("Enter")) == "committed"
    tab_to(page, "#request-send")
    assert press_send(page, lambda: page.keyboard.press("Space")) == "committed"
    assert press_send(page, lambda: page.keyboard.press("Space")) == "committed"  # the focus is still there
    assert "ETag" in answer_of(page)
    with cluster.client() as client:
        found = client.get(b"by-keyboard")
    assert found is not None
    assert found.value == b"typed"


def test_the_ring_is_walked_with_the_arrow_keys(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    tab_to(page, "#ring-walk")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#ring-detail")).to_contain_text("Partition 1,")
    expect(page.locator("#ring-walk")).to_have_attribute("aria-valuetext", "partition 1")
    page.keyboard.press("End")
    expect(page.locator("#ring-detail")).to_contain_text("Partition 1,023,")


def test_the_table_is_sorted_with_the_keyboard(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    header = page.get_by_role("columnheader", name="Copies")
    tab_to(page, "#workers-head button")
    while not page.evaluate("() => document.activeElement.textContent === 'Copies'"):
        tab_to(page, "#workers-head button")
    page.keyboard.press("Enter")
    expect(header).to_have_attribute("aria-sort", "descending")
    page.keyboard.press("Enter")
    expect(header).to_have_attribute("aria-sort", "ascending")
    copies = page.locator("tr[data-worker] [data-label=Copies]").all_inner_texts()
    numbers = [int(text.partition("(")[0].replace(",", "")) for text in copies]
    assert numbers == sorted(numbers)


def test_escape_leaves_a_dialog_and_changes_nothing(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    tab_to(page, "#mode-choices button:not(:disabled)")
    chosen = page.evaluate("() => document.activeElement.textContent")
    page.keyboard.press("Enter")
    expect(page.locator("#confirm")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#confirm")).to_be_hidden()
    assert page.evaluate("() => document.activeElement.textContent") == chosen
    with cluster.client() as client:
        assert client.mode()["mode"] == "quorum"
    expect(page.locator("#mode-name")).to_contain_text("quorum")


def test_the_focus_stays_when_rows_change(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    keys = page.locator("tr[data-worker] [data-label=Keys]").first
    with cluster.client() as client:
        for number, selector in enumerate(("#ring-legend button", "tr[data-worker] button")):
            stop = page.locator(selector).filter(visible=True).nth(1)
            stop.focus()
            label = name_of_focus(page)
            before = keys.inner_text()
            for key in range(20):
                client.put(b"focus-%d-%d" % (number, key), b"v")
            expect(keys).not_to_have_text(before)
            assert name_of_focus(page).partition(",")[0] == label.partition(",")[0] != ""


def test_the_focus_stays_with_a_worker_that_is_broken(cluster: LocalCluster, open_page: OpenPage) -> None:
    """Also where the button that was pressed can be pressed no more, and another one takes its place."""
    page = open_page(cluster)
    with cluster.client() as client:
        one, other = (worker["id"] for worker in client.cluster()["workers"][:2])
        page.locator(f'[data-fault="cut {one}"]').focus()
        client.inject("slow", other, delay_ms=1)
        expect(page.locator(f'[data-fault="mend {other}"]')).to_be_enabled()
        assert fault_of_focus(page) == f"cut {one}"
        client.inject("mend", other)
        expect(page.locator(f'[data-fault="mend {other}"]')).to_be_disabled()
    page.locator(f'[data-fault="slow {one}"]').focus()
    page.keyboard.press("Enter")
    expect(page.locator(f'[data-fault="slow {one}"]')).to_be_disabled()
    assert fault_of_focus(page).endswith(f" {one}")
    tab_to(page, f'[data-fault="mend {one}"]')
    page.keyboard.press("Enter")
    expect(page.locator(f'[data-fault="mend {one}"]')).to_be_disabled()
    assert fault_of_focus(page).endswith(f" {one}")


def name_of_focus(page: Page) -> str:
    name: str = page.evaluate("() => document.activeElement.getAttribute('aria-label') ?? ''")
    return name


def fault_of_focus(page: Page) -> str:
    fault: str = page.evaluate("() => document.activeElement.dataset.fault ?? ''")
    return fault
