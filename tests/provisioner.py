"""A provisioner for clusters of `InProcessCluster`: its workers run beside the others of the test."""

from __future__ import annotations

import trio

from trikv.api import Provisioner, WorkerOrder, WorkerProcess
from trikv.testing.inprocess import InProcessCluster, Node


class InProcess(Provisioner):
    """`broken`: how it misbehaves in `start`, `stop`, `pause` and `kill`. `closed`: its master has ended."""

    name = "in-process"
    can_break = True

    def __init__(self, cluster: InProcessCluster) -> None:
        self.cluster = cluster
        self.running: dict[int, Node] = {}
        self.nodes: dict[int, Node] = {}  # those that are killed, too
        self.paused: set[int] = set()
        self.orders: list[WorkerOrder] = []
        self.broken = ""
        self.closed = False
        self._naming = trio.Lock()  # the cluster names a worker by the number of those that there are

    async def start(self, order: WorkerOrder) -> str:
        self.orders.append(order)
        await self._misbehave()
        if order.number in self.nodes:
            await self.cluster.restart(self.nodes[order.number])
        else:
            async with self._naming:
                self.nodes[order.number] = await self.cluster.add_worker()
        self.running[order.number] = self.nodes[order.number]
        return self.nodes[order.number].worker.id

    async def stop(self, number: int) -> None:
        await self._misbehave()
        node = self.nodes.pop(number)
        if self.running.pop(number, None) is not None:
            await self.cluster.kill(node)

    async def close(self) -> None:
        self.running.clear()
        self.closed = True

    def process(self, number: int) -> WorkerProcess | None:
        return WorkerProcess(number, number in self.paused) if number in self.running else None

    async def pause(self, number: int) -> None:
        await self._misbehave()
        self.paused.add(number)

    async def resume(self, number: int) -> None:
        await self._misbehave()
        self.paused.discard(number)

    async def kill(self, number: int) -> None:
        await self._misbehave()
        self.paused.discard(number)
        await self.cluster.kill(self.running.pop(number))

    async def _misbehave(self) -> None:
        match self.broken:
            case "":
                return
            case "hangs":
                await trio.sleep_forever()
            case "is buggy":
                raise ZeroDivisionError("a bug")
            case reason:
                raise OSError(reason)
