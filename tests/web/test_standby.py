"""HTTP at a master that stands by, against what the leader answers."""

from __future__ import annotations

import trio

from tests.web.lanes import OTHER, Answer, Sent, ask, comparable
from tests.web.standbys import Masters
from trikv.testing.inprocess import InProcessCluster

ALIKE = (
    Sent(b"PUT", b"/v1/kv/a", b"one"),
    Sent(b"GET", b"/v1/kv/a"),
    Sent(b"GET", b"/v1/kv/absent"),
)


async def asked(port: int, *requests: Sent) -> list[Answer]:
    return await trio.to_thread.run_sync(lambda: ask(port, b"".join(each.spelt for each in requests)))


async def test_a_standby_answers_what_the_leader_answers(nursery: trio.Nursery) -> None:
    masters = await Masters.start(nursery, await InProcessCluster.start(nursery))
    for requests in (ALIKE, [each.having(OTHER) for each in ALIKE]):
        by_leader = await asked(masters.port, *requests)
        by_standby = await asked(masters.standby.port, *requests)
        assert [comparable(each.head + each.body) for each in by_standby] == [
            comparable(each.head + each.body) for each in by_leader
        ]
    nursery.cancel_scope.cancel()
