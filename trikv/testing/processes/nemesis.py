"""Faults and changes of a cluster of real processes: each is one call, which ends when the cluster has healed.

    nemesis = Nemesis(cluster, load, random.Random(seed))
    nemesis.kill(for_s=0.5)             # SIGKILL, then a start with the same disk
    nemesis.kill(for_s=None)            # the worker starts again once it has been replaced
    nemesis.switch("chain", meanwhile=nemesis.kill_master)

What the caller does not choose is drawn from the dice. The nemesis records each action with its times (`faults`,
`switches`, `kills`), by the clock of the clients; `switched.py` and the reports read that. It never does more than a
mode's promise covers: one worker is away at a time, a disk is lost only while all is settled, and the cluster is whole
before the next call. (Two workers, or all processes, may be killed at once; then they come back with their disks.)

`NotHealed` is raised if the cluster is not whole after `HEAL_DEADLINE_S`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from trikv.core.errors import TrikvError
from trikv.testing.judge.switched import Switch
from trikv.testing.processes.clients import Load
from trikv.testing.processes.cluster import LocalCluster, NodeProcess, wait_until
from trikv.testing.processes.proxy import Direction

HEAL_DEADLINE_S: Final = 90.0
PAUSE_MOST_S: Final = 30.0
WEAK_MODES: Final = ("async",)  # the modes that do not promise linearizability


class NotHealed(RuntimeError):
    """The cluster had `HEAL_DEADLINE_S`, and is not whole."""


class Done(NamedTuple):
    """One action: what was done, to which node (empty: to none in particular), and its begin and end."""

    what: str
    whom: str
    began_s: float
    ended_s: float


@dataclass(slots=True)
class Switched:
    """A switch, and its certificate; None if the master died before it answered."""

    mode: str
    switch: Switch
    certificate: dict[str, Any] | None


class Nemesis:
    """See above. `say` is called with a line about each action."""

    def __init__(
        self,
        cluster: LocalCluster,
        load: Load,
        dice: random.Random,
        *,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.cluster = cluster
        self.load = load
        assert cluster.mode is not None, "give the cluster a mode"
        self.mode = cluster.mode
        self.faults: list[Done] = []
        self.switches: list[Switched] = []
        self.kills: list[Done] = []  # of the workers that stayed away until they were replaced
        self._dice = dice
        self._say = say

    # --- workers ------------------------------------------------------------------------------------------------------

    def kill(self, for_s: float | None = None, *, wiped: bool = False) -> None:
        """SIGKILL to a worker; start it again after that time, or (None) once it has been replaced."""
        node = self._pick()
        began_s = self._now()
        node.kill()
        old = node.id
        if for_s is not None:
            time.sleep(for_s)
        else:
            self._await(lambda: self._held_by(old) == 0, f"{node.name} is replaced")
            self.await_whole()
            self.kills.append(Done("kill", node.name, began_s, self._now()))
        if wiped:
            self.cluster.wipe(node)
        self.cluster.start_worker(node)
        self._note("kill and wipe" if wiped else "kill and replace" if for_s is None else "kill", node, began_s)
        self.await_whole()
        if wiped:
            self._forget(old)

    def kill_several(self) -> None:
        """SIGKILL to two workers at once, or to all processes, as when the power fails."""
        began_s = self._now()
        if self._dice.random() < 0.5:
            self.cluster.kill_all()
            self.cluster.start()
            self._note("kill all", None, began_s)
        else:
            nodes = self._dice.sample(self.cluster.workers, 2)
            for node in nodes:
                node.kill()
            for node in nodes:
                self.cluster.start_worker(node)
            self._note("kill two", None, began_s)
        self.await_whole()

    def pause(self, for_s: float | None = None) -> None:
        """SIGSTOP to a worker, for 1 to 30 s."""
        node = self._pick()
        began_s = self._now()
        node.pause()
        try:
            time.sleep(PAUSE_MOST_S ** self._dice.random() if for_s is None else for_s)
        finally:
            node.resume()
        self._note("pause", node, began_s)
        self.await_whole()

    def cut(self, for_s: float | None = None) -> None:
        """Break the links to a worker, or silence them in one direction or both."""
        node = self._pick()
        directions: list[tuple[Direction, ...]] = [(), ("questions",), ("answers",)]
        began_s = self._now()
        if self._dice.random() < 0.3:
            self.cluster.cut(node)
        else:
            self.cluster.hold(node, *self._dice.choice(directions))
        try:
            time.sleep(0.5 * 30 ** self._dice.random() if for_s is None else for_s)
            if self._dice.random() < 0.3:
                self.cluster.reset(node)  # what was held back is lost
        finally:
            self.cluster.mend(node)
        self._note("cut link", node, began_s)
        self.await_whole()

    def join(self, meanwhile: Callable[[], None] | None = None) -> None:
        began_s = self._now()
        node = self.cluster.add_worker()
        if meanwhile is not None:
            meanwhile()
        self.await_whole()
        self._note("join", node, began_s)

    def drain(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Drain a worker, wait until it may be stopped, stop it, and wait until the cluster has forgotten it."""
        node = self._pick()
        began_s = self._now()
        with self.cluster.client() as client:
            client.drain(node.id)
            if meanwhile is not None:
                meanwhile()
            self._await(lambda: self._place(node.id) == "drained", f"{node.name} is drained")
            self.await_whole()
            wait_until(lambda: client.safe_to_stop(node.id)[0], what=f"{node.name} may be stopped")
        self.cluster.dismiss(node)
        self._note("drain", node, began_s)
        self._await(lambda: self._place(node.id) is None, f"{node.name} is let go")

    # --- the masters --------------------------------------------------------------------------------------------------

    def kill_master(self) -> None:
        """SIGKILL to the master that leads, and a start."""
        began_s, master = self._now(), self._leading()
        time.sleep(self._dice.random())
        master.kill()
        time.sleep(self._dice.random() if len(self.cluster.masters) == 1 else 5 * self._dice.random())
        master.start()
        self._note("kill master", None, began_s)
        self.await_whole()

    def pause_master(self, for_s: float | None = None) -> None:
        """SIGSTOP to the master that leads, for 1 to 10 s."""
        began_s, master = self._now(), self._leading()
        master.pause()
        try:
            time.sleep(1 + 9 * self._dice.random() if for_s is None else for_s)
        finally:
            master.resume()
        self._note("pause master", None, began_s)
        self.await_whole()

    def hand_over(self) -> None:
        """SIGTERM to the master that leads, and a start."""
        began_s, master = self._now(), self._leading()
        master.stop()
        master.start()
        self._note("stop master", None, began_s)
        self.await_whole()

    # --- etcd ---------------------------------------------------------------------------------------------------------

    def kill_etcd_member(self, for_s: float | None = None) -> None:
        """SIGKILL to a member of etcd, and a start after 1 to 6 s."""
        assert self.cluster.etcd is not None
        began_s, member = self._now(), self._dice.choice(self.cluster.etcd.members)
        member.kill()
        time.sleep(1 + 5 * self._dice.random() if for_s is None else for_s)
        member.start()
        self.cluster.etcd.await_healthy()
        self._note("kill etcd member", None, began_s)
        self.await_whole()

    def stop_etcd(self, for_s: float | None = None) -> None:
        """SIGSTOP to all of etcd, for 1 to 20 s."""
        assert self.cluster.etcd is not None
        began_s = self._now()
        self.cluster.etcd.pause()
        try:
            time.sleep(20 ** self._dice.random() if for_s is None else for_s)
        finally:
            self.cluster.etcd.resume()
        self._note("stop etcd", None, began_s)
        self.await_whole()

    def _leading(self) -> NodeProcess:
        """The master that leads, as soon as one does."""
        if len(self.cluster.masters) == 1:
            return self.cluster.master
        leader = wait_until(self.cluster.leader, what="a master leads", deadline_s=HEAL_DEADLINE_S)
        assert leader is not None
        return leader

    # --- the mode -----------------------------------------------------------------------------------------------------

    def switch(self, mode: str, meanwhile: Callable[[], None] | None = None) -> Switched:
        """Switch the mode, whatever happens meanwhile. Asks again if the master died before the request was durable."""
        before, began_s = self.mode, self._now()
        certificate: dict[str, Any] | None = None
        asked = threading.Thread(target=lambda: self._ask_for_mode(mode, heard))
        heard: list[dict[str, Any] | TrikvError] = []
        asked.start()
        try:
            if meanwhile is not None:
                meanwhile()
        finally:
            asked.join(HEAL_DEADLINE_S)
        if asked.is_alive():
            raise NotHealed(f"the switch from {before} to {mode} has not ended in {HEAL_DEADLINE_S:g} s")
        if heard and isinstance(heard[0], dict):
            certificate = heard[0]
        else:
            self._await(lambda: self._has_switched(mode), f"the mode is {mode}")
        switched = Switched(mode, Switch(mode not in WEAK_MODES, began_s, self._now()), certificate)
        self.mode = mode
        self.switches.append(switched)
        self._note(f"switch {before} to {mode}", None, began_s, is_fault=False)
        if before in WEAK_MODES and mode not in WEAK_MODES:
            self.load.read_all()  # what async lost shows here
        self.await_whole()
        return switched

    def _ask_for_mode(self, mode: str, heard: list[dict[str, Any] | TrikvError]) -> None:
        with self.cluster.client() as client:
            try:
                heard.append(client.set_mode(mode))
            except TrikvError as error:
                heard.append(error)

    def _has_switched(self, mode: str) -> bool:
        """Is the mode in force everywhere? If the master does not know of the switch, it is asked again."""
        with self.cluster.client() as client:
            state = client.cluster()
            if state["mode"] != mode:
                client.set_mode(mode)
            return bool(state["mode"] == mode and state["progress"]["operation"] is None)

    # --- helpers ------------------------------------------------------------------------------------------------------

    def await_whole(self) -> None:
        """Return when the cluster has healed.

        Raises:
          NotHealed: after `HEAL_DEADLINE_S`.
        """
        try:
            self.cluster.await_whole(HEAL_DEADLINE_S)
        except TimeoutError as error:
            raise NotHealed(f"{error}: {self._describe()}") from error

    def await_alike(self) -> None:
        """Return when all replicas hold the same, which comes about by itself. There must be no load.

        Raises:
          NotHealed: after `HEAL_DEADLINE_S`.
        """
        with self.cluster.client() as client:
            self._await(lambda: client.repair(dry_run=True)["differing"] == 0, "all replicas hold the same")

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(condition, what=what, deadline_s=HEAL_DEADLINE_S, every_s=0.1)
        except TimeoutError as error:
            raise NotHealed(f"{error}: {self._describe()}") from error

    def _describe(self) -> str:
        try:
            with self.cluster.client() as client:
                state = client.cluster()
        except TrikvError as error:
            return str(error)
        workers = [f"{w['id']} {w['state']} {w['place']} {w['held']}" for w in state["workers"]]
        return f"mode {state['mode']}, {state['unsettled']} unsettled, {state['progress']['operation']}, {workers}"

    def _pick(self) -> NodeProcess:
        return self._dice.choice(self.cluster.workers)

    def _now(self) -> float:
        return self.load.now_s()

    def _place(self, worker: str) -> str | None:
        with self.cluster.client() as client:
            return next((w["place"] for w in client.cluster()["workers"] if w["id"] == worker), None)

    def _held_by(self, worker: str) -> int:
        with self.cluster.client() as client:
            return sum(int(w["held"]) for w in client.cluster()["workers"] if w["id"] == worker)

    def _forget(self, worker: str) -> None:
        def is_forgotten() -> bool:
            with self.cluster.client() as client:
                client.remove(worker)
            return True

        self._await(is_forgotten, f"{worker}, which lost its disk, is forgotten")

    def _note(self, what: str, node: NodeProcess | None, began_s: float, *, is_fault: bool = True) -> None:
        done = Done(what, node.name if node else "", began_s, self._now())
        if is_fault:
            self.faults.append(done)
        self._say(f"{what} {done.whom}".ljust(34) + f"{done.ended_s - began_s:6.1f} s")
