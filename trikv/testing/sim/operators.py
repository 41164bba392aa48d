"""Operators: each asks the serving master for a change, once, and accepts its answer.

A refusal is an answer. A master that dies takes its answer with it, and the change may be durable all the same. Two
things are findings against the master: an operation that fails in any other way, and a certificate that is not true.

The operators also note in which times the history must be linearizable (`judge/strong_periods.py`). A switch away from
a mode that promises it ends such a time when it is asked for. The next one begins when a look at all masters that serve
shows that no other mode may hold a committed write. One that was deposed while an AP mode was in force, and does not
know it, goes on in that mode: nothing keeps it from that, so its clients are promised no more before it has heard.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

import trio

from trikv.api import Promise, Strategy
from trikv.core.errors import TrikvError
from trikv.master.configstore import ConfigStoreError
from trikv.master.master import Master
from trikv.testing.judge.history import Finding
from trikv.testing.judge.strong_periods import StrongPeriod
from trikv.testing.sim.clock import SimClock
from trikv.testing.sim.network import Life, Network
from trikv.testing.sim.trace import Trace

_GLANCE_S: Final = 0.1


class OperatorsWorld(Protocol):
    """What operators see of the simulated world (`world.py`)."""

    strategy: Strategy
    modes: dict[str, Strategy]
    network: Network
    trace: Trace
    clock: SimClock
    findings: list[Finding]
    serving: dict[str, Master]

    @property
    def master(self) -> Master | None: ...

    def life_of(self, master: Master) -> Life | None: ...


class Operators:
    """The operators of one world."""

    def __init__(self, world: OperatorsWorld, nursery: trio.Nursery) -> None:
        self._world = world
        self._nursery = nursery
        self.strong_periods = [StrongPeriod(None)] if self._is_cp(world.strategy.name) else []
        self.waiting = 0  # how many operators wait for an answer
        self._asked_for_ap = 0  # switches under way to an AP mode, which end the present period

    def ask(self, call: Callable[[Master], Awaitable[Any]]) -> None:
        """Ask, in the background."""
        if self._world.master is not None:
            self.waiting += 1
            self._nursery.start_soon(self._ask, self._world.master, call)

    def switch(self, mode: str) -> None:
        """Ask for another mode."""
        if self._world.master is not None:
            self.waiting += 1
            self._nursery.start_soon(self._switch, self._world.master, mode)

    async def watch(self) -> None:
        """Note the beginning of each period, until cancelled."""
        while True:
            await trio.sleep(_GLANCE_S)
            serving = self._world.serving.values()
            if not serving or self._asked_for_ap or (self.strong_periods and self.strong_periods[-1].to_s is None):
                continue
            modes = {c.mode for master in serving for p in master.cluster.partitions for c in p.history}
            if all(self._is_cp(mode) for mode in modes | {master.cluster.mode for master in serving}):
                self.strong_periods.append(StrongPeriod(trio.current_time()))

    def _is_cp(self, mode: str) -> bool:
        return self._world.modes[mode].promise is Promise.CP

    async def _ask(self, master: Master, call: Callable[[Master], Awaitable[Any]]) -> Any:
        """The master's answer; None if it is empty, or a refusal."""
        world = self._world
        life = world.life_of(master)
        try:
            answer = await master.tasks.run_detached(partial(call, master))
        except (TrikvError, ConfigStoreError) as error:
            world.trace.note(world.clock.now_s, "told", "operator", str(error))
            return None
        except Exception as error:  # noqa: BLE001 whatever it is, it is judged here
            if life is not None and not life.dead:
                where = "".join(traceback.format_exception(error)[-12:])
                world.findings.append(Finding("operation failed", "-", where))
            return None
        finally:
            self.waiting -= 1
        world.trace.note(world.clock.now_s, "told", "operator", str(answer))
        return None if life is None or life.dead else answer

    async def _switch(self, master: Master, mode: str) -> None:
        ends_period = not self._is_cp(mode)
        if ends_period and self.strong_periods and self.strong_periods[-1].to_s is None:
            self.strong_periods[-1].to_s = trio.current_time()
        self._asked_for_ap += ends_period
        certificate = await self._ask(master, lambda master: master.operations.switch_mode(mode))
        self._asked_for_ap -= ends_period
        if certificate is not None and master.cluster.mode == mode:
            self._check_certificate(certificate, master, mode)

    def _check_certificate(self, certificate: Mapping[str, Any], master: Master, mode: str) -> None:
        others = sorted({c.mode for p in master.cluster.partitions for c in p.history} - {mode})
        if certificate["mode"] != mode or others:
            why = f"{certificate['mode']} is said to be in force, and there is still {', '.join(others)}"
            self._world.findings.append(Finding("certificate is not true", "-", why))
