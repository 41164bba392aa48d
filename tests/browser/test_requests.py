"""Requests from the page: what it tells of them is what the cluster did, and what others read."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections import Counter
from typing import Any

import httpx
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, answer_of, send
from trikv.testing.processes.cluster import LocalCluster, wait_until

ODD_KEYS = ["..", "a/b", "%2e", "é", "a b+c", "k" * 4096]
LATE_MS = 800
MARKUP = "<img src=x onerror=alert(1)>"


def read(cluster: LocalCluster, key: str) -> httpx.Response:
    """As any other client reads it."""
    spelt = urlsafe_b64encode(key.encode()).decode().rstrip("=")
    return httpx.get(f"{cluster.url}/v1/kv/{spelt}?encoding=base64")


def trace_of(cluster: LocalCluster, trace: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{cluster.url}/v1/trace/{trace}").json()
    return answer


def test_what_the_page_puts_is_read_by_another_client(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster, allowed=["status of 404"])
    assert send(page, "put", "page-put", "hello, wörld") == "committed"
    assert httpx.get(f"{cluster.url}/v1/kv/page-put").text == "hello, wörld"
    assert read(cluster, "page-put").headers["etag"] in answer_of(page)
    assert send(page, "get", "page-put") == "found"
    assert answer_of(page) == "hello, wörld"
    assert send(page, "delete", "page-put") == "committed"
    assert read(cluster, "page-put").status_code == 404
    assert send(page, "get", "page-put") == "absent"


def test_the_page_gets_what_another_client_has_put(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    httpx.put(f"{cluster.url}/v1/kv/other-put", content=b"line one\nline two").raise_for_status()
    httpx.put(f"{cluster.url}/v1/kv/other-bytes", content=b"\xff\x00\xfe").raise_for_status()
    assert send(page, "get", "other-put") == "found"
    assert answer_of(page).split() == ["line", "one", "line", "two"]
    assert send(page, "get", "other-bytes") == "found"
    assert answer_of(page) == "3 bytes that are no text"


def test_every_key_arrives_as_it_was_typed(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    for key in ODD_KEYS:
        assert send(page, "put", key, f"value of {key[:9]}") == "committed"
        assert read(cluster, key).text == f"value of {key[:9]}"
        assert send(page, "get", key) == "found"
        assert answer_of(page) == f"value of {key[:9]}"
        assert send(page, "delete", key) == "committed"
        assert read(cluster, key).status_code == 404


def test_compare_and_set_stands_or_falls_with_the_etag(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster, allowed=["status of 412"])
    key = "page-cas"
    assert send(page, "compare_and_set", key, "one", expected="") == "committed"
    assert send(page, "compare_and_set", key, "two", expected="") == "refused"
    assert read(cluster, key).text == "one"
    etag = read(cluster, key).headers["etag"]
    assert send(page, "compare_and_set", key, "two", expected=etag) == "committed"
    assert send(page, "compare_and_set", key, "three", expected=etag) == "refused"
    assert read(cluster, key).text == "two"
    outcomes = page.locator("#request-list .outcome").all_inner_texts()
    assert [outcome.lower() for outcome in outcomes] == ["refused", "committed", "refused", "committed"]


def test_the_etag_that_was_seen_last_is_proposed(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    send(page, "put", "page-etag", "one")
    page.locator("#request [name=operation]").select_option("compare_and_set")
    expect(page.locator("#request [name=expect]")).to_have_value(read(cluster, "page-etag").headers["etag"])
    assert send(page, "compare_and_set", "page-etag", "two") == "committed"


def test_the_picture_has_the_messages_of_the_trace(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    for operation in ("put", "get"):
        send(page, operation, "page-trace", "value" if operation == "put" else None)
        trace = ended_trace(cluster, page, operation)
        assert trace["key"] == "page-trace"
        assert len({message["replica"] for message in trace["messages"]}) >= 2
        expected = Counter[str]()
        for message in trace["messages"]:
            assert message["ended"] == "ok"
            expected[f"coordinator to {message['replica']}: {message['what']} (about here)"] += 1
            expected[f"{message['replica']} to coordinator: done"] += 1

        def is_drawn(expected: Counter[str] = expected) -> bool:
            titles = page.locator("#trace-picture svg.spacetime .message title").all_text_contents()
            return Counter(titles) == expected

        wait_until(is_drawn, what="the picture has the whole trace")
        text = httpx.get(f"{cluster.url}/v1/trace/{trace['id']}?format=text").text
        expect(page.locator("#trace-text")).to_have_text(text)
        expect(page.locator("#trace-summary")).to_contain_text(f"{trace['what']} under {trace['mode']}: committed")
        expect(page.locator("#trace-picture .mark title")).to_have_text(f"promise of {trace['mode']} met")


def test_what_comes_after_the_answer_is_added_to_the_picture(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    slow = httpx.get(f"{cluster.url}/v1/locate", params={"key": "page-late"}).json()["replicas"][-1]["id"]
    with cluster.client() as client:
        client.inject("slow", slow, delay_ms=LATE_MS)
        try:
            assert send(page, "put", "page-late", "value") == "committed"
            trace = ended_trace(cluster, page, "put")
        finally:
            client.inject("mend", slow)
    late = [message for message in trace["messages"] if message["ended_ms"] > trace["ended_ms"]]
    assert slow in {message["replica"] for message in late}
    expect(page.locator("#trace-summary")).to_contain_text(f"{len(late)} of {len(trace['messages'])} messages ended")
    expect(page.locator("#trace-picture .message title", has_text=f"{slow} to coordinator: done")).to_be_attached()


def test_an_earlier_request_can_be_looked_at_again(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    for key in ("earlier", "later"):
        send(page, "put", key, "value")
    shown = page.locator("#request-list [aria-current=true]")
    expect(shown).to_contain_text("later")
    earlier = page.locator("#request-list").get_by_role("button", name="earlier")
    earlier.focus()
    page.keyboard.press("Enter")
    expect(shown).to_contain_text("earlier")
    expect(page.locator("#trace-picture text", has_text="put earlier").first).to_be_attached()
    expect(earlier).to_be_focused()


def ended_trace(cluster: LocalCluster, page: Page, operation: str) -> dict[str, Any]:
    """The trace that is shown, once every message of it has ended."""

    def ended() -> dict[str, Any] | None:
        shown = page.locator("#trace-picture svg.spacetime[data-trace]")
        if shown.count() == 0:
            return None
        trace = trace_of(cluster, shown.get_attribute("data-trace") or "")
        over = trace["ended_ms"] is not None and all(each["ended_ms"] is not None for each in trace["messages"])
        return trace if over and trace["what"] == operation else None

    found = wait_until(ended, what="the trace has ended")
    assert found is not None
    return found


def test_requests_of_other_clients_can_be_looked_at(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    key = "line\nend"
    spelt = urlsafe_b64encode(key.encode()).decode().rstrip("=")
    answer = httpx.put(
        f"{cluster.url}/v1/kv/{spelt}?encoding=base64", content=b"v", headers={"trikv-trace": "1"}
    ).raise_for_status()
    page.locator("#trace-others").click()
    page.locator("#trace-list").get_by_role("button", name="line end").click()
    expect(page.locator("#trace-picture svg.spacetime")).to_have_attribute("data-trace", answer.headers["trikv-trace"])


def test_markup_in_keys_and_values_is_text(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    assert send(page, "put", MARKUP, MARKUP) == "committed"
    expect(page.locator("#trace-picture svg.spacetime")).to_be_attached()
    assert send(page, "get", MARKUP) == "found"
    assert answer_of(page) == MARKUP
    assert page.locator("#request-list code").all_inner_texts() == [MARKUP, MARKUP]
    page.locator("#trace-others").click()
    expect(page.locator("#trace-list").get_by_role("button", name=MARKUP).first).to_be_visible()
    expect(page.locator("#trace-picture text", has_text=MARKUP).first).to_be_attached()
    expect(page.locator("#trace-text")).to_contain_text(MARKUP)
    page.locator("#ring-key").fill(MARKUP)
    page.locator("#ring-key").press("Enter")
    expect(page.locator("#ring-detail code")).to_have_text(MARKUP)
    assert page.locator("img[src=x], [onerror]").count() == 0


def test_a_key_that_nobody_may_have_is_refused_with_the_reason(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster, allowed=["status of 4"])
    assert send(page, "put", "é" * 4096, "too long") == "refused"
    assert "bytes" in answer_of(page)


def test_what_was_sent_can_be_saved(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(cluster)
    expect(page.locator("#record-save")).to_be_disabled()
    send(page, "put", "saved", "one")
    send(page, "compare_and_set", "saved", "two")
    send(page, "get", "saved")
    with page.expect_download() as downloading:
        page.locator("#record-save").click()
    saved = json.loads(downloading.value.path().read_text())
    assert [{**step, "at_s": 0} for step in saved["steps"]] == [
        {"at_s": 0, "request": "put", "key": "saved", "value": "one"},
        {"at_s": 0, "request": "compare_and_set", "key": "saved", "value": "two", "expect": "etag-of-last-read"},
        {"at_s": 0, "request": "get", "key": "saved"},
    ]
    page.locator("#record-again").click()
    expect(page.locator("#record-save")).to_be_disabled()
