"""The config store in an etcd of three members, of which some are killed or stopped: two masters never hold at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from trikv.master.configstore import ConfigConflict, ConfigStoreError
from trikv.master.etcd import EtcdConfigStore
from trikv.master.etcd import store as store_module
from trikv.master.leadership import Candidate
from trikv.net.etcdurl import parse_config_store
from trikv.testing.processes.etcd import EtcdCluster, etcd_missing

if (missing := etcd_missing()) is not None:
    pytest.skip(missing, allow_module_level=True)

LEASE_S = 1.0
QUICK = ("--heartbeat-interval", "50", "--election-timeout", "300")


class Master:
    """Takes the lead whenever there is none, and then a new term, as the real ones do."""

    def __init__(self, store: EtcdConfigStore, name: str) -> None:
        self.store = store
        self.me = Candidate(name, name, name)
        self.terms: list[int] = []
        self.serves = False  # it leads, and its term is in the document

    async def run(self) -> None:
        store = self.store
        while True:
            while store.leader is not None or not await store.take_lead("today"):
                await store.changed.wait(0.1)
            try:
                document, revision = await store.read()
                term = 1 if document is None else document["term"] + 1
                await store.compare_and_set({"term": term, "change": f"{self.me.name}/{term}"}, revision)
            except (ConfigConflict, ConfigStoreError):
                await store.give_up_lead()
                continue
            self.terms.append(term)
            self.serves = True
            while store.leads:
                await store.changed.wait()
            self.serves = False

    @property
    def may_answer(self) -> bool:
        return self.serves and self.store.holds()


@asynccontextmanager
async def masters(url: str) -> AsyncIterator[list[Master]]:
    async with trio.open_nursery() as nursery:
        found = []
        for name in ("one", "two"):
            store = await EtcdConfigStore.open(parse_config_store(url), lease_s=LEASE_S)
            found.append(Master(store, name))
            await nursery.start(store.run, found[-1].me)
            nursery.start_soon(found[-1].run)
        yield found
        nursery.cancel_scope.cancel()
    for master in found:
        await master.store.close()


async def until(condition: Callable[[], Any], two: list[Master]) -> None:
    """Wait, and look that not both masters may answer."""
    with trio.fail_after(30):
        while not condition():
            assert not all(master.may_answer for master in two)
            await trio.sleep(0.005)


async def test_members_that_are_killed_or_stopped(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path, members=3, arguments=QUICK) as etcd:
        async with masters(etcd.url) as two:

            def somebody_answers() -> bool:
                return any(master.may_answer for master in two)

            await until(somebody_answers, two)
            victim = etcd.leading
            victim.pause()
            others = [member for member in etcd.members if member is not victim]
            await until(lambda: any(member.is_leading for member in others), two)
            await until(somebody_answers, two)
            victim.resume()
            await until(lambda: not victim.is_leading, two)
            await until(somebody_answers, two)

            victim.kill()
            await until(somebody_answers, two)
            victim.start()

            leads = [master.store.leads for master in two]
            etcd.pause()
            await until(lambda: not somebody_answers(), two)
            assert [master.store.leads for master in two] == leads  # nobody can have taken over
            etcd.resume()
            await until(somebody_answers, two)
            terms = sorted(term for master in two for term in master.terms)
            assert terms == list(range(1, len(terms) + 1))


async def test_a_member_that_is_back_is_told_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "RECHECK_S", 0.05)
    with EtcdCluster(tmp_path, members=3, arguments=QUICK) as etcd:
        async with masters(etcd.url) as [one, two]:
            await until(lambda: one.serves or two.serves, [one, two])

            def unreachable() -> list[str]:
                return [e["endpoint"] for e in one.store.describe()["endpoints"] if e["reachable"] is False]

            first = etcd.members[0]  # the one that is asked first
            first.kill()
            await until(lambda: unreachable() == [first.address], [one, two])
            first.start()
            await until(lambda: unreachable() == [], [one, two])
