"""Asking which node listens at an address: what answers, and in which sentence all else is refused."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.helpers import code_of
from trikv.core import frames
from trikv.core.errors import Refused
from trikv.core.session import Hello, Session
from trikv.testing.inprocess import InProcessCluster


async def test_nobody_at_an_address_is_refused_with_a_sentence(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    cluster.network.hold(cluster.workers[0].address)
    for address, reason in (
        ("127.0.0.1:9", "nobody listens"),
        ("nonsense", "is not an address"),
        (cluster.master_address, "a master talks to workers"),
        (cluster.workers[0].address, "no answer in time"),
    ):
        with pytest.raises(Refused, match=reason) as refused:
            await cluster.master.enlisting.enlist(address)
        assert refused.value.kind.code == "conflict"


@pytest.mark.parametrize("answer", [[2, [[1, 0, ["not", "vitals"]]]], [9, []], [2, [[]]]])
async def test_a_worker_that_greets_and_then_speaks_nonsense_is_refused(
    answer: list[Any], nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    cluster = await InProcessCluster.start(nursery)
    listening = await cluster.network.listen("127.0.0.1:0")

    async def speak(stream: trio.abc.Stream) -> None:
        session = Session(Hello("worker", "w-9", "i-9", None), dialer=False)
        list(session.receive(await stream.receive_some()))
        await stream.send_all(session.accept())
        await stream.receive_some()
        await stream.send_all(frames.encode(answer))
        await stream.receive_some()

    nursery.start_soon(trio.serve_listeners, speak, [listening.listener])
    with pytest.raises(Refused, match=r"no worker can be enlisted|went away"):
        await cluster.master.enlisting.enlist(listening.address)
    assert await code_of(cluster) == "committed"
    nursery.cancel_scope.cancel()
