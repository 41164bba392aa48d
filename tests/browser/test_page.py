"""The page itself: its policy, what it loads, what it is without scripts, and that a page that errs is noticed."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import OpenPage, Watch
from trikv.testing.processes.cluster import LocalCluster

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

WRONGS = {
    "console.error('oh')": "console: oh",
    "setTimeout(() => { throw new Error('oh'); })": "exception: .*oh",
    "setTimeout(() => alert('oh'))": "dialog: oh",
    "fetch('/nothing/there')": "status of 404",
    "fetch('http://127.0.0.1:9/').catch(() => {})": "policy: connect-src http://127.0.0.1:9",
    "document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/' }))": "policy: img-src",
    "document.body.setAttribute('style', 'color: red')": "policy: style-src",
}
NOTICED_STEP_MS = 20
NOTICED_STEPS = 500


def test_the_policy_is_strict(cluster: LocalCluster) -> None:
    answer = httpx.get(f"{cluster.url}/")
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", answer.text)


def test_what_the_page_loads_has_the_right_types(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    loaded: list[str] = page.evaluate("() => performance.getEntriesByType('resource').map((one) => one.name)")
    static = [url for url in loaded if "/static/" in url]
    assert any(url.endswith("/static/main.js") for url in static)
    for url in static:
        answer = httpx.get(url)
        kind = TYPES[url[url.rindex(".") :]]
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, kind), url


def test_the_charts_show_the_latest_figures(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    for name in ("throughput", "outcomes", "latency", "keys", "workers"):
        expect(page.locator(f'#charts .chart[data-chart="{name}"] canvas')).to_be_visible()
    expect(page.locator('#charts .chart[data-chart="workers"]')).to_contain_text("up 3")


def test_without_scripts_the_page_shows_the_state_and_asks_again(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster, scripts=False)
    with cluster.client() as client:
        state = client.cluster()
        expect(page.locator("#health")).to_have_text("Serving")
        expect(page.locator("#mode-name")).to_contain_text(state["mode"])
        price = next(mode["gives_up"] for mode in state["modes"] if mode["name"] == state["mode"])
        expect(page.locator("#mode-words")).to_contain_text(price)
        for worker in state["workers"]:
            expect(page.locator("#workers-body")).to_contain_text(worker["address"])
        assert page.locator("#request").is_hidden()
        before = page.locator("#count-committed").inner_text()
        client.put(b"without-scripts", b"v")
        expect(page.locator("#count-committed")).not_to_have_text(before)


def test_a_page_that_errs_is_noticed(cluster: LocalCluster, browser: Browser) -> None:
    page = browser.new_page()
    watch = Watch(page, cluster.url)
    page.goto(f"{cluster.url}/")
    for script, complaint in WRONGS.items():
        page.evaluate(f"() => {{ {script}; }}")
        for _ in range(NOTICED_STEPS):
            if any(re.search(complaint, each) for each in watch.complaints):
                break
            page.wait_for_timeout(NOTICED_STEP_MS)
        else:
            pytest.fail(f"{script} was not noticed: {watch.complaints}")
    page.close()
