"""The numbers of the last quarter of an hour: rates, percentiles and bounds, in virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from trikv.core.errors import Refused
from trikv.master.sampling import KEPT_MAX, STEP_S, Sampling
from trikv.testing.inprocess import InProcessCluster


@pytest.fixture
async def cluster(nursery: trio.Nursery, autojump_clock: MockClock) -> InProcessCluster:
    return await InProcessCluster.start(nursery, mode="quorum")


def sampling_of(cluster: InProcessCluster) -> Sampling:
    return Sampling(cluster.master.membership, cluster.master.coordinator)


async def test_rates_are_what_was_done_in_a_second(
    nursery: trio.Nursery, cluster: InProcessCluster, autojump_clock: MockClock
) -> None:
    sampling, coordinator = sampling_of(cluster), cluster.master.coordinator
    nursery.start_soon(sampling.run)
    assert (sampling.latest, sampling.columns()) == (None, {})
    await trio.sleep(STEP_S * 1.5)
    for i in range(6):
        await coordinator.put(b"%d" % i, b"v")
    for i in range(4):
        await coordinator.get(b"%d" % i)
    with pytest.raises(Refused):
        await coordinator.put(b"", b"v")
    await trio.sleep(STEP_S)
    sample = sampling.latest
    assert sample is not None
    assert (sample["writes"], sample["reads"]) == (6, 4)
    assert sample["committed"] == 10
    assert (sample["workers"], sample["workers_up"]) == (3, 3)
    assert sum(sampling.loads.values()) >= 0.99 * (6 * 3 + 4 * 2)  # a read may mend a copy as well
    assert sample["busiest"] == round(max(sampling.loads.values()), 1)
    await trio.sleep(STEP_S)
    idle = sampling.latest
    assert idle is not None
    assert (idle["writes"], idle["reads"], idle["p50_ms"], idle["busiest"]) == (0, 0, None, 0)
    assert idle["time_s"] - sample["time_s"] == pytest.approx(STEP_S, abs=0.05)


async def test_only_so_many_are_kept(
    nursery: trio.Nursery, cluster: InProcessCluster, autojump_clock: MockClock
) -> None:
    sampling = Sampling(cluster.master.membership, cluster.master.coordinator, kept_max=2)
    nursery.start_soon(sampling.run)
    await trio.sleep(3.5 * STEP_S)
    columns = sampling.columns()
    assert {len(column) for column in columns.values()} == {2}
    assert columns["time_s"] == pytest.approx([(2 + i) * STEP_S for i in range(2)], abs=0.1)
    assert KEPT_MAX * STEP_S == 15 * 60


async def test_a_worker_that_lives_again_is_not_counted_backwards(
    nursery: trio.Nursery, cluster: InProcessCluster, autojump_clock: MockClock
) -> None:
    sampling = sampling_of(cluster)
    nursery.start_soon(sampling.run)
    for i in range(20):
        await cluster.master.coordinator.put(b"%d" % i, b"v")
    await trio.sleep(STEP_S)
    sampling._calls["ghost"] = 10  # of a worker that was removed
    await trio.sleep(STEP_S)
    assert min(sampling.loads.values()) >= 0
    assert "ghost" not in sampling.loads
