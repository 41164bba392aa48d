"""A leader and masters that stand by in one process: the HTTP ports on sockets of loopback, links in memory."""

from __future__ import annotations

import socket

import trio

from trikv.master.leadership import Candidate
from trikv.master.passing import Passing
from trikv.masterprocess import services_of
from trikv.testing.inprocess import InProcessCluster
from trikv.testing.sharedstore import MemorySharedConfigStore, SharedState
from trikv.web.app import serve_http
from trikv.web.standby import stand_by


class StandingBy:
    """A master that stands by. `passing` is its link to the leader."""

    def __init__(self, cluster: InProcessCluster, state: SharedState, name: str, timeout_s: float) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.store = state.client()
        self.me = Candidate(name, "127.0.0.1:0", f"127.0.0.1:{self.port}")
        self.scope = trio.CancelScope()
        self.stopped = trio.Event()
        self._cluster = cluster
        self._timeout_s = timeout_s

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        transport = self._cluster.doors.transport
        listening = await transport.listen(self.me.address)
        self.me = self.me._replace(address=listening.address)
        name = self._cluster.master.cluster.cluster
        self.passing = Passing(self.store, self.me, lambda: name, self._cluster.doors)
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.store.run, self.me)
                await nursery.start(stand_by, self.passing, listening, self.sock, self._timeout_s)
                task_status.started()
        self.stopped.set()

    async def end(self) -> None:
        self.scope.cancel()
        await self.stopped.wait()

    async def until_linked(self) -> None:
        with trio.fail_after(10):
            while self.passing.why_not:
                await self.passing.changed.wait()


class Masters:
    """The cluster's own master leads, until `depose`. `port`: its HTTP port."""

    def __init__(self, cluster: InProcessCluster, standbys: int, timeout_s: float) -> None:
        self.cluster = cluster
        self.state = SharedState()
        self.leader: MemorySharedConfigStore = self.state.client()
        self.stop = trio.Event()
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]
        self.me = Candidate("m-1", cluster.master_address, f"127.0.0.1:{self.port}")
        self.standbys = [StandingBy(cluster, self.state, f"m-{n + 2}", timeout_s) for n in range(standbys)]

    @classmethod
    async def start(
        cls, nursery: trio.Nursery, cluster: InProcessCluster, *, standbys: int = 1, timeout_s: float = 2.0
    ) -> Masters:
        self = cls(cluster, standbys, timeout_s)
        await nursery.start(self.leader.run, self.me)
        assert await self.leader.take_lead("2026-01-01T00:00:00Z")
        await nursery.start(serve_http, services_of(cluster.master), self.sock, self.stop)
        for standby in self.standbys:
            await nursery.start(standby.run)
        for standby in self.standbys:
            await standby.until_linked()
        return self

    @property
    def standby(self) -> StandingBy:
        return self.standbys[0]
