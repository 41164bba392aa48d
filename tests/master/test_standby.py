"""Who may link to a master's RPC port, in either role, and how much each may send at once."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trikv.core.calls import PIECE_BYTES, Op
from trikv.core.errors import Fault
from trikv.core.frames import FRAME_BYTES_MAX
from trikv.core.session import SMALL_FRAME_BYTES_MAX, Hello
from trikv.master.standby import frame_bytes_max_of, judge
from trikv.net.link import dial
from trikv.testing.inprocess import InProcessCluster


@pytest.mark.parametrize(
    ("role", "cluster", "why"),
    [
        ("worker", None, None),
        ("worker", "c", None),
        ("worker", "d", "worker n belongs to cluster d, and this is c; start it with another --data-dir"),
        ("standby", None, None),
        ("standby", "c", None),
        ("standby", "d", "that master belongs to cluster d, and this is c"),
        ("master", "c", "a master talks to workers and to masters that stand by, not to a 'master'"),
        ("client", "c", "a master talks to workers and to masters that stand by, not to a 'client'"),
    ],
)
def test_who_is_welcome(role: str, cluster: str | None, why: str | None) -> None:
    told = judge(Hello(role, "n", "i", cluster), "c")
    assert (told or "").startswith(why or "")
    assert (told is None) is (why is None)


def test_a_standby_that_has_not_read_its_cluster_takes_all() -> None:
    assert judge(Hello("worker", "n", "i", "c"), None) is None


def test_a_worker_sends_little_and_a_standby_much() -> None:
    assert frame_bytes_max_of(Hello("worker", "n", "i", None)) == SMALL_FRAME_BYTES_MAX
    assert frame_bytes_max_of(Hello("standby", "n", "i", None)) == FRAME_BYTES_MAX


@pytest.mark.parametrize(("role", "fault"), [("worker", Fault.LOST), ("standby", Fault.OK)])
async def test_the_leader_holds_each_to_that(
    nursery: trio.Nursery, autojump_clock: MockClock, role: str, fault: Fault
) -> None:
    cluster = await InProcessCluster.start(nursery, workers=0)
    link = await dial(await cluster.network.connect(cluster.master_address), Hello(role, "n", "i", None))
    nursery.start_soon(link.run)
    heard: list[int] = []
    large = bytes(PIECE_BYTES)  # more than `SMALL_FRAME_BYTES_MAX`
    link.call(Op.PASS_PART, [1, large], trio.current_time() + 1, lambda fault, _: heard.append(fault))
    await trio.testing.wait_all_tasks_blocked()
    assert heard == [fault]
