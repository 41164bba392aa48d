"""The live stream: a snapshot, then merge patches that lead from each state to the next."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from trikv.masterprocess import services_of
from trikv.testing.inprocess import InProcessCluster
from trikv.testing.processes.cluster import LocalCluster, wait_until
from trikv.web.live import KEPT_MAX, STEP_S, LiveFeed, merge_patch
from trikv.web.message import Request
from trikv.web.streams import Stream, Streams

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
documents = st.dictionaries(st.sampled_from("abcd"), values, max_size=4)


def apply(document: Any, patch: Any) -> Any:
    """RFC 7396, section 2, as its pseudocode has it."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = apply(merged.get(name), value)
    return merged


def without_null(document: Any) -> Any:
    """A patch cannot say null, so a member that is null and one that is missing are the same to a reader."""
    if not isinstance(document, Mapping):
        return document
    return {name: without_null(value) for name, value in document.items() if value is not None}


@given(before=documents, now=documents)
def test_a_patch_leads_from_one_document_to_the_other(before: dict[str, Any], now: dict[str, Any]) -> None:
    assert without_null(apply(without_null(before), merge_patch(before, now))) == without_null(now)
    assert merge_patch(now, now) == {}


def read(text: str) -> Iterator[tuple[str, str, Any]]:
    """The events of a piece: kind, id, document."""
    for event in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line and not line.startswith(":"))
        if "data" in fields:
            yield fields["event"], fields["id"], json.loads(fields["data"])


async def next_events(stream: Stream) -> list[tuple[str, str, Any]]:
    while True:
        if events := list(read((await anext(stream)).decode())):
            return events


def request(after: str | None = None) -> Request:
    return Request("GET", b"/v1/live", b"", {} if after is None else {"last-event-id": after})


async def test_it_begins_with_the_state_and_goes_on_with_what_changed(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    services = services_of(cluster.master)
    feed = LiveFeed(services)
    nursery.start_soon(feed.run)
    with feed.make_stream(Streams(), request()) as stream:
        ((kind, first_id, document),) = await next_events(stream)
        assert kind == "snapshot"
        assert set(document["workers"]) == {worker["id"] for worker in services.status.describe()["workers"]}
        assert all(spelt.count(",") == 2 and ">" not in spelt for spelt in document["partitions"].values())
        await services.coordinator.put(b"k", b"v")
        patches: list[str] = []
        patch: dict[str, Any] = {}
        while document["state"]["operations"]["committed"] < 1:
            for kind, event_id, patch in await next_events(stream):
                assert kind == "patch"
                patches.append(event_id)
                document = apply(document, patch)
        assert "partitions" not in patch  # they are as they were
    # A client that comes back names what it saw last, and is sent the rest, once.
    with feed.make_stream(Streams(), request(first_id)) as resumed:
        again: list[str] = []
        while patches[-1] not in again:
            again += [event_id for _, event_id, _ in await next_events(resumed)]
        assert again[: len(patches)] == patches
    for unknown in ("x-1", f"{first_id}0000", "", f"{first_id.split('-')[0]}-", "\x00", f"{first_id}\u0661"):
        with feed.make_stream(Streams(), request(unknown)) as fresh:
            assert (await next_events(fresh))[0][0] == "snapshot", unknown


async def test_a_reader_that_was_away_too_long_is_sent_the_whole_state(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    feed = LiveFeed(services_of(cluster.master))
    nursery.start_soon(feed.run)
    with feed.make_stream(Streams(), request()) as stream:
        assert [kind for kind, _, _ in await next_events(stream)] == ["snapshot"]
        await trio.sleep((KEPT_MAX + 2) * STEP_S)  # nothing is read meanwhile; virtual time
        assert [kind for kind, _, _ in await next_events(stream)] == ["snapshot"]
        assert [kind for kind, _, _ in await next_events(stream)] == ["patch"]


async def test_nothing_is_computed_while_no_page_is_open(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    feed = LiveFeed(services_of(cluster.master))
    nursery.start_soon(feed.run)
    before = feed.changed.count
    await trio.sleep(60)
    assert feed.changed.count == before


async def test_its_size_does_not_grow_with_keys_or_requests(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    cluster = await InProcessCluster.start(nursery, mode="quorum")
    services = services_of(cluster.master)
    feed = LiveFeed(services)
    nursery.start_soon(feed.run)
    with feed.make_stream(Streams(), request()) as stream:
        await next_events(stream)
        sizes: list[int] = []
        for count in (10, 1_000):
            for i in range(count):
                await services.coordinator.put(b"%d" % i, b"v")
            await trio.sleep(2 * STEP_S)
            sizes.append(max(len(json.dumps(patch)) for _, _, patch in await next_events(stream)))
        assert sizes[1] < sizes[0] + 200


def test_over_a_socket_a_dead_worker_turns_down(web: httpx.Client) -> None:
    with LocalCluster(workers=3) as cluster, httpx.Client(base_url=cluster.url, trust_env=False, timeout=30) as client:
        with client.stream("GET", "/v1/live") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = stream.iter_lines()
            victim = cluster.workers[0]
            victim.kill()
            document: Any = {}
            kind = ""
            for line in lines:
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    document = data if kind == "snapshot" else apply(document, data)
                    if document["workers"][victim.id]["state"] == "down":
                        break
        wait_until(lambda: client.get("/v1/history").json()["columns"].get("workers_up", [3])[-1] == 2)


def test_what_cannot_be_understood_is_refused(web: httpx.Client) -> None:
    assert web.get("/v1/live?x=1").status_code == 400
    assert web.head("/v1/live").status_code == 200
