"""Which of several masters a worker asks to be enlisted with, on the virtual clock."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from trikv.core.calls import Enlist, parse
from trikv.core.errors import Fault
from trikv.core.session import Call, Hello
from trikv.net.doors import Doors
from trikv.net.link import Link
from trikv.net.serve import serve_links
from trikv.testing.inprocess import MemoryTransport
from trikv.worker.enlist import AGAIN_S, Enlistment

WORKER = Hello("worker", "w-1", "i-1", "c")
LEADS = ""  # what a master answers that takes the worker in


class FakeMasters:
    """Masters by address, with what each answers: the address of the leader, or `LEADS`, or None: it knows none."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.transport = MemoryTransport()
        self.asked: Counter[str] = Counter()
        self.enlisted: list[str] = []
        self.says: dict[str, str | None] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._nursery = nursery

    async def start(self, address: str, says: str | None) -> None:
        self.says[address] = says
        listening = await self.transport.listen(address)
        scope = self._scopes[address] = trio.CancelScope()

        def hello() -> Hello:
            role = "master" if self.says[address] == LEADS else "standby"
            return Hello(role, address, "1/m", "c")

        def handle(link: Link, incoming: list[Call]) -> None:
            for call_id, _, op, *arguments in incoming:
                assert parse(op, arguments) == Enlist("127.0.0.1:8001")
                self.asked[address] += 1
                leader = self.says[address]
                if leader == LEADS:
                    self.enlisted.append(address)
                    link.answer(call_id, Fault.OK, [])
                else:
                    link.answer(call_id, Fault.NOT_LEADING, [leader] if leader else [])

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await serve_links(listening.listener, hello, lambda _: None, handle, task_status=task_status)

        await self._nursery.start(run)

    async def stop(self, address: str) -> None:
        self._scopes[address].cancel()
        await trio.testing.wait_all_tasks_blocked()

    def enlist(self, *masters: str) -> None:
        enlistment = Enlistment(masters, "127.0.0.1:8001", lambda: WORKER, lambda _: None, Doors(self.transport))
        self._nursery.start_soon(enlistment.run)

    async def until_enlisted(self, *addresses: str) -> None:
        with trio.fail_after(60):
            while self.enlisted != list(addresses):
                assert len(self.enlisted) <= len(addresses), self.enlisted
                await trio.sleep(0.1)


@pytest.fixture
def masters(nursery: trio.Nursery) -> FakeMasters:
    return FakeMasters(nursery)


async def test_the_one_that_leads_is_found_among_those_that_do_not_answer(
    masters: FakeMasters, autojump_clock: MockClock
) -> None:
    await masters.start("c:3", LEADS)
    masters.enlist("a:1", "b:2", "c:3")
    await masters.until_enlisted("c:3")


async def test_a_standby_names_the_leader_which_is_asked_next(masters: FakeMasters, autojump_clock: MockClock) -> None:
    await masters.start("a:1", "d:4")
    await masters.start("d:4", LEADS)  # the worker was not told of it
    masters.enlist("a:1", "b:2")
    await masters.until_enlisted("d:4")
    assert masters.asked == {"a:1": 1, "d:4": 1}


async def test_when_the_leader_is_gone_the_next_one_is_found(masters: FakeMasters, autojump_clock: MockClock) -> None:
    await masters.start("a:1", LEADS)
    await masters.start("b:2", "a:1")
    masters.enlist("a:1", "b:2")
    await masters.until_enlisted("a:1")
    await masters.stop("a:1")
    masters.says["b:2"] = LEADS
    await masters.until_enlisted("a:1", "b:2")


@pytest.mark.parametrize("several", [(), ("c:3",)])
async def test_a_leader_that_leads_no_more_is_left(
    masters: FakeMasters, autojump_clock: MockClock, several: tuple[str, ...]
) -> None:
    await masters.start("a:1", LEADS)
    await masters.start("b:2", "a:1")
    masters.enlist("a:1", *several)
    await masters.until_enlisted("a:1")
    await masters.stop("a:1")
    masters.says["b:2"] = LEADS
    await masters.start("a:1", "b:2")
    await masters.until_enlisted("a:1", "b:2")


async def test_while_no_master_leads_it_asks_about_once_a_second(
    masters: FakeMasters, autojump_clock: MockClock
) -> None:
    await masters.start("a:1", "b:2")
    await masters.start("b:2", "a:1")
    masters.enlist("a:1", "b:2")
    await trio.sleep(100 * AGAIN_S)
    assert 200 < masters.asked.total() < 1000  # each names the other one, which is asked as well
    masters.says["b:2"] = LEADS
    await masters.until_enlisted("b:2")


@pytest.mark.parametrize("named", ["no address", "b:99999", ""])
async def test_a_leader_whose_address_is_none_is_not_dialled(
    masters: FakeMasters, autojump_clock: MockClock, named: str
) -> None:
    await masters.start("a:1", named or None)
    masters.enlist("a:1", "b:2")
    await trio.sleep(10 * AGAIN_S)
    masters.says["a:1"] = LEADS
    await masters.until_enlisted("a:1")


async def test_a_single_master_that_knows_no_leader_is_asked_again(
    masters: FakeMasters, autojump_clock: MockClock
) -> None:
    await masters.start("a:1", None)
    masters.enlist("a:1")
    await trio.sleep(10 * AGAIN_S)
    assert 5 < masters.asked["a:1"] < 20
    masters.says["a:1"] = LEADS
    await masters.until_enlisted("a:1")
