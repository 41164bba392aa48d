"""The config store in etcd: who leads, until when, and what outages and rivals do to that; against real members."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count

import pytest
import trio

from trikv.master.etcd import EtcdConfigStore
from trikv.master.leadership import Candidate
from trikv.net.etcdurl import parse_config_store
from trikv.testing.processes.etcd import EtcdCluster, etcd_missing

if (missing := etcd_missing()) is not None:
    pytest.skip(missing, allow_module_level=True)

ONE = Candidate("one", "127.0.0.1:8000", "127.0.0.1:8080")
TWO = Candidate("two", "127.0.0.1:8001", "127.0.0.1:8081")
LEASE_S = 2.0  # the least that etcd grants with its default election timeout

_prefixes = count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def url(etcd: EtcdCluster) -> str:
    """A config store of this test's own."""
    return f"etcd://{etcd.members[0].address}/test/{next(_prefixes)}"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[EtcdConfigStore]:
    store = await EtcdConfigStore.open(parse_config_store(url), lease_s=LEASE_S)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def running(url: str, me: Candidate) -> AsyncIterator[EtcdConfigStore]:
    async with opened(url) as store, trio.open_nursery() as nursery:
        await nursery.start(store.run, me)
        yield store
        nursery.cancel_scope.cancel()


async def until(store: EtcdConfigStore, condition, deadline_s: float = 20.0) -> None:  # type: ignore[no-untyped-def]
    with trio.fail_after(deadline_s):
        while not condition(store):
            await store.changed.wait(0.05)


async def test_one_of_two_leads_and_the_other_takes_over_when_it_gives_up(url: str) -> None:
    async with running(url, ONE) as one, running(url, TWO) as two:
        await until(one, lambda store: len(store.masters) == 2)
        assert await one.take_lead("today")
        assert one.leads
        assert one.holds()
        assert not await two.take_lead("today")
        assert not two.leads
        assert not two.holds()
        await until(two, lambda store: store.leader is not None)
        assert two.leader is not None
        assert two.leader == (ONE, "today")
        await one.give_up_lead()
        assert not one.holds()
        await until(two, lambda store: store.leader is None)
        assert await two.take_lead("tomorrow")
        await until(one, lambda store: store.leader == (TWO, "tomorrow"))


async def test_a_lease_is_renewed(url: str) -> None:
    async with running(url, ONE) as one:
        assert await one.take_lead("today")
        with trio.move_on_after(2 * LEASE_S):
            while True:
                assert one.holds()
                await trio.sleep(0.05)
