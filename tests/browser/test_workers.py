"""Workers that die and come back, and a master that does: the page says so, and never takes a refusal for a success."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenPage, answer_of, send
from trikv.testing.processes.cluster import LocalCluster, NodeProcess, wait_until

LOST = "what you see is old"
# What a browser itself writes of a master that is away.
AWAY = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE_CHUNKED_ENCODING")


@pytest.fixture(scope="module")
def mortal() -> Iterator[LocalCluster]:
    """Three workers with disks, which each test leaves whole."""
    with LocalCluster(workers=3, storage="rocksdb", timeout_s=2.0) as cluster:
        yield cluster


@pytest.fixture
def pair() -> Iterator[LocalCluster]:
    """One copy of each key, so one of the two workers can be emptied."""
    with LocalCluster(workers=2, replicas=1) as cluster:
        yield cluster


@pytest.fixture
def unformed() -> Iterator[LocalCluster]:
    """A master that waits for its only worker, which `start` starts."""
    cluster = LocalCluster(workers=1, replicas=1)
    try:
        cluster.master.start()
        yield cluster
    finally:
        cluster.stop()


def kill(node: NodeProcess) -> None:
    os.kill(node.pid, signal.SIGKILL)
    node.wait(20.0)


def state_of(page: Page, node: NodeProcess) -> Locator:
    return page.locator(f'tr[data-worker="{node.id}"] .state')


def test_a_worker_that_is_killed_turns_red_and_comes_back(mortal: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(mortal)
    victim = mortal.workers[0]
    others = [node for node in mortal.workers if node is not victim]
    expect(state_of(page, victim)).to_have_text("up")
    colour = "(state) => getComputedStyle(state).color"
    healthy = state_of(page, victim).evaluate(colour)
    kill(victim)
    expect(state_of(page, victim)).to_have_text("down")
    for other in others:
        expect(state_of(page, other)).to_have_text("up")
    assert state_of(page, victim).evaluate(colour) != healthy
    assert state_of(page, others[0]).evaluate(colour) == healthy
    expect(page.locator("#events-list")).to_contain_text(f"Worker {victim.id} is down.")
    expect(page.get_by_text(f"Nobody listens at {victim.address}")).to_be_visible()
    mortal.start_worker(victim)
    expect(state_of(page, victim)).to_have_text("up")
    mortal.await_whole()


def test_where_nothing_may_be_broken_the_page_says_why(mortal: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(mortal)
    with mortal.client() as client:
        expect(page.locator("#break-why")).to_have_text(client.faults()["why"])
    expect(page.locator("#victims")).to_be_hidden()
    assert page.locator("[data-fault]").count() == 0


def test_a_write_that_cannot_be_kept_is_shown_as_refused(mortal: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(mortal, allowed=["status of 503"])
    assert send(page, "put", "kept", "before") == "committed"
    victims = mortal.workers[:2]
    for node in victims:
        kill(node)
        expect(state_of(page, node)).to_have_text("down")
    assert send(page, "put", "kept", "after") == "refused"
    assert answer_of(page)
    assert send(page, "get", "kept") == "refused"
    assert page.locator("#request-list .outcome").all_inner_texts()[:2] == ["refused", "refused"]
    expect(page.locator("#health")).not_to_have_text("Serving")
    for node in victims:
        mortal.start_worker(node)
        expect(state_of(page, node)).to_have_text("up")
    mortal.await_whole()
    assert send(page, "get", "kept") == "found"
    assert answer_of(page) == "before"


def test_a_master_that_dies_is_said_to_be_away_until_it_is_back(mortal: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(mortal, allowed=AWAY)
    term = page.locator("#term").inner_text()
    mortal.master.kill()
    expect(page.locator("#link")).to_contain_text(LOST)
    assert send_to_nobody(page) == "unknown"  # a write: no answer came, so nobody knows
    mortal.master.start()
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#term")).not_to_have_text(term)
    mortal.await_up(mortal.workers)
    for node in mortal.workers:
        expect(state_of(page, node)).to_have_text("up")
    assert send(page, "put", "again", "there") == "committed"
    mortal.await_whole()


def send_to_nobody(page: Page) -> str:
    form = page.locator("#request")
    form.locator("[name=operation]").select_option("put")
    form.locator("[name=key]").fill("lost")
    page.locator("#request-send").click()
    outcome = page.locator("#request-answer .outcome")
    expect(outcome).to_be_visible()
    return outcome.inner_text().lower()


def test_a_master_that_is_stopped_is_said_to_be_away_and_the_stream_goes_on(
    mortal: LocalCluster, open_page: OpenPage
) -> None:
    page = open_page(mortal)
    mortal.master.pause()
    expect(page.locator("#link")).to_contain_text(LOST)
    mortal.master.resume()
    expect(page.locator("#link")).to_have_text("live")
    with mortal.client() as client:
        before = client.cluster()["operations"]["committed"]
        client.put(b"while", b"live")
    count = page.locator("#count-committed")
    wait_until(lambda: int(count.inner_text().replace(",", "")) > before, what="the page goes on counting")
    assert send(page, "put", "stopped", "and back") == "committed"
    mortal.await_whole()


def test_what_an_operator_may_not_do_is_told(mortal: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(mortal, allowed=["status of 409"])
    node = mortal.workers[0]
    row = page.locator(f'tr[data-worker="{node.id}"]')
    outcome = page.locator("#workers-outcome")
    row.get_by_role("button", name="Drain").click()  # three copies need all three workers
    expect(outcome).to_contain_text("3")
    expect(outcome).to_have_class(re.compile("tone-poor"))
    row.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog", name="Remove").get_by_role("button", name="Remove").click()
    expect(outcome).to_contain_text("drain it first")
    expect(state_of(page, node)).to_have_text("up")


def test_an_operator_empties_a_worker_and_takes_that_back(pair: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(pair)
    node = pair.workers[0]
    row = page.locator(f'tr[data-worker="{node.id}"]')
    dialog = page.get_by_role("dialog", name=f"Empty {node.address}?")

    def place() -> str:
        with pair.client() as client:
            return next(str(each["place"]) for each in client.cluster()["workers"] if each["id"] == node.id)

    row.get_by_role("button", name="Drain").click()
    expect(dialog).to_contain_text("Others take over")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()
    assert place() == "member"
    row.get_by_role("button", name="Drain").click()
    dialog.get_by_role("button", name="Drain").click()
    expect(row.locator("[data-label=Place]")).to_have_text("drained")
    assert place() == "drained"
    expect(page.locator(f'#ring-picture [data-worker="{node.id}"]')).to_have_count(0)
    row.get_by_role("button", name="Undrain").click()
    expect(row.locator("[data-label=Place]")).to_have_text("member")
    expect(page.locator(f'#ring-picture [data-worker="{node.id}"]').first).to_be_attached()


def test_a_cluster_is_seen_to_form(unformed: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(unformed, formed=False)
    expect(page.locator("#forming")).to_contain_text("1 more")
    expect(page.locator("#ring-picture [data-token]")).to_have_count(0)
    unformed.start()
    expect(state_of(page, unformed.workers[0])).to_have_text("up")
    expect(page.locator("#ring-picture [data-token]").first).to_be_attached()
    expect(page.locator("#forming")).to_be_hidden()
    assert send(page, "put", "first", "value") == "committed"
