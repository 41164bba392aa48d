"""Twenty workers on the page. They need no processes: the page is given what the live stream says of such a cluster.

The cluster runs in this process, on a virtual clock, and its feed is the one that a master has.
"""

from __future__ import annotations

import pytest
import trio
from playwright.sync_api import expect
from trio.testing import MockClock

from tests.browser.conftest import NARROW, WIDE, OpenPage, overflow_of
from trikv.core.ring import PARTITION_COUNT, VNODES
from trikv.masterprocess import services_of
from trikv.testing.inprocess import InProcessCluster
from trikv.testing.processes.cluster import LocalCluster
from trikv.web.live import LiveFeed
from trikv.web.message import Request
from trikv.web.streams import Streams

WORKERS = 20


async def record_snapshot() -> str:
    async with trio.open_nursery() as nursery:
        cluster = await InProcessCluster.start(nursery, workers=WORKERS, partitions=PARTITION_COUNT)
        feed = LiveFeed(services_of(cluster.master))
        nursery.start_soon(feed.run)
        recorded = ""
        with feed.make_stream(Streams(), Request("GET", b"/v1/live", b"", {})) as stream:
            while "event: snapshot" not in recorded:
                recorded += (await anext(stream)).decode()
        nursery.cancel_scope.cancel()
    return recorded


@pytest.fixture(scope="module")
def snapshot() -> str:
    return trio.run(record_snapshot, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_twenty_workers_are_drawn_and_told(
    cluster: LocalCluster, open_page: OpenPage, snapshot: str, width: int
) -> None:
    page = open_page(cluster, width=width, stream=snapshot)
    expect(page.locator("tr[data-worker]")).to_have_count(WORKERS)
    expect(page.locator("#ring-legend button")).to_have_count(WORKERS)
    expect(page.locator("#ring-picture [data-token]")).to_have_count(WORKERS * VNODES)
    shown = page.locator("tr[data-worker] .swatch").all_inner_texts()
    assert sorted(map(int, shown)) == list(range(1, WORKERS + 1))
    assert overflow_of(page) <= 0
