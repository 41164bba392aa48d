"""The ring on the page is the ring that the cluster has: tokens, bands and the place of a key."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from trikv.core.ring import hash_of, tokens
from trikv.testing.processes.cluster import LocalCluster

SPACE = 2**32  # of hashes
KEYS = [f"key-{number}" for number in range(40)]

_TOKENS = """(ticks) => ticks.map((tick) => {
  const box = tick.ownerSVGElement.viewBox.baseVal;
  const begin = tick.getPointAtLength(0);
  const turn = Math.atan2(begin.y - box.y - box.height / 2, begin.x - box.x - box.width / 2) / (2 * Math.PI);
  return { worker: tick.dataset.worker, token: Number(tick.dataset.token), share: (turn + 1.25) % 1 };
})"""
# From the outside inwards: the owner of each band that a ray at this share of the circle meets.
_OWNERS = """(svg, shares) => shares.map((share) => {
  const box = svg.viewBox.baseVal;
  const bands = [...svg.querySelectorAll("[data-owner][data-replica]")];
  const angle = 2 * Math.PI * share - Math.PI / 2;
  const met = [];
  for (let radius = box.width / 2; radius > 0; radius -= 4) {
    const x = box.x + box.width / 2 + radius * Math.cos(angle);
    const y = box.y + box.height / 2 + radius * Math.sin(angle);
    const band = bands.find((one) => one.isPointInFill(new DOMPoint(x, y)));
    if (band && met.at(-1) !== band.dataset.owner) met.push(band.dataset.owner);
  }
  return met;
})"""


def locate(cluster: LocalCluster, key: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{cluster.url}/v1/locate", params={"key": key}).json()
    return answer


def workers_of(cluster: LocalCluster) -> dict[str, dict[str, Any]]:
    with cluster.client() as client:
        return {worker["id"]: worker for worker in client.cluster()["workers"]}


def number_of(page: Page, worker: str) -> int:
    """What the page calls the worker, from 0: the reader sees one more."""
    return int(page.locator(f'tr[data-worker="{worker}"] .swatch').inner_text()) - 1


def test_the_tokens_are_those_of_the_workers_at_their_place(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    drawn = page.eval_on_selector_all("#ring-picture .token[data-token][data-worker]", _TOKENS)
    expected = {(worker, token) for worker in workers_of(cluster) for token in tokens(worker)}
    assert {(tick["worker"], tick["token"]) for tick in drawn} == expected
    assert len(drawn) == len(expected)
    for tick in drawn:
        assert tick["share"] == pytest.approx(tick["token"] / SPACE, abs=1e-4)


def test_the_bands_show_the_preference_list_of_every_key(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    number = {worker: str(number_of(page, worker)) for worker in workers_of(cluster)}
    shares = [hash_of(key.encode()) / SPACE for key in KEYS]
    drawn = page.locator("#ring-picture").evaluate(_OWNERS, shares)
    expected = [[number[replica["id"]] for replica in locate(cluster, key)["replicas"]] for key in KEYS]
    assert drawn == expected


def test_a_key_that_is_looked_for_is_told_with_hash_partition_head_and_tail(
    cluster: LocalCluster, open_page: OpenPage
) -> None:
    page = open_page(cluster)
    for key in ("color", "a/b", "..", "%2e", "é"):
        found = locate(cluster, key)
        page.locator("#ring-key").fill(key)
        page.locator("#ring-key").press("Enter")
        detail = page.locator("#ring-detail")
        expect(detail).to_contain_text(f"{key} has the hash 0x{found['hash']:08x}")
        expect(detail).to_contain_text(f"partition {found['partition']:,}.")
        listed = detail.get_by_role("list", name="Preference list").get_by_role("listitem")
        expect(listed).to_contain_text([replica["address"] for replica in found["replicas"]])
        expect(listed.first).to_contain_text("head")
        expect(listed.last).to_contain_text("tail")
        expect(page.locator(f'#ring-picture [data-hash="{found["hash"]}"]')).to_be_attached()


def test_the_slider_tells_the_replicas_of_each_partition(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    found = locate(cluster, "color")
    page.get_by_label("Walk round the ring").fill(str(found["partition"]))
    first, *_, last = (replica["address"] for replica in found["replicas"])
    expect(page.locator("#ring-detail")).to_contain_text(f"{first} (head)")
    expect(page.locator("#ring-detail")).to_contain_text(f"{last} (tail)")


def test_a_worker_of_the_legend_is_lit_while_it_has_the_focus(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    worker = next(iter(workers_of(cluster).values()))
    page.locator("#ring-legend").get_by_role("button", name=worker["address"]).focus()
    number = number_of(page, worker["id"])
    lit = page.eval_on_selector_all("#ring-picture .lit[data-owner]", "(all) => all.map((one) => one.dataset.owner)")
    assert set(lit) == {str(number)}
    ticks = page.eval_on_selector_all("#ring-picture .lit[data-token]", "(all) => all.map((one) => one.dataset.worker)")
    assert set(ticks) == {worker["id"]}
