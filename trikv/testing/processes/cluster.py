"""A whole cluster as child processes of this one: for tests, demos and benchmarks, ours and a strategy author's.

    with LocalCluster(mode="chain", workers=5) as cluster:
        cluster.client().put(b"key", b"value")
        cluster.workers[0].kill()                        # SIGKILL; pause() is SIGSTOP
        cluster.workers[0].start()                       # the same port, the same directory
        cluster.add_worker()                             # one more, which is given its share
        cluster.wipe(cluster.workers[0])                 # while it is down: its disk is lost

The processes are the real ones (`python -m trikv ...`), so a test sees what an operator sees: a kill loses what was in
memory, a pause leaves sockets open, a restart reads the disk. The system chooses the ports (0), and restarts keep them.
The stderr of each process goes to a file beside its data.

With `proxied`, each worker has a proxy in front of it (`proxy.py`) and is enlisted at the proxy's address. So
`cluster.cut(node)` cuts the links of the master and the other workers to that worker, and `mend` mends them.

Nothing is left behind. The stdin of every child is a pipe, and the child ends when the pipe is closed
(`--exit-with-stdin`). The system closes it even if this process is killed outright; a paused child is then woken so
that it notices. A directory that we made ourselves is removed by a janitor: one more child with such a pipe.

What it costs: about half a second of CPU for each start of a process. `start` waits until every worker is up.
What it leaves out: machines. All processes share loopback, one disk and one clock.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from anyio.from_thread import BlockingPortal, start_blocking_portal

from trikv.client import Client
from trikv.testing.processes.etcd import EtcdCluster
from trikv.testing.processes.process import START_DEADLINE_S, STOP_DEADLINE_S, NodeFailed, NodeProcess, wait_until
from trikv.testing.processes.proxy import Direction, ProxyLink, serve_link

WHOLE_INTERVAL_S: Final = 0.25  # the answer costs the master some milliseconds

__all__ = ["LocalCluster", "NodeFailed", "NodeProcess", "wait_until"]

# Waits for its stdin to close, then removes the directory, again and again until no process writes there any more.
_JANITOR = """
import shutil, sys, time
sys.stdin.buffer.read()
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    try:
        shutil.rmtree(sys.argv[1])
    except FileNotFoundError:
        break
    except OSError:
        pass
    time.sleep(0.1)
"""


class LocalCluster:
    """A master and some workers, as a context manager, or between calls of `start` and `stop`.

    Args:
      mode: the cluster's mode. None: the mode in force if the directory has a cluster, else the master's default.
      workers: their number.
      replicas: copies of each key.
      storage: the workers' engine.
      directory: for data and logs, which stay. Default: a temporary directory, which is removed at the end.
      master_port, http_port: 0 asks the system for a free port. With several masters they are the first one's.
      masters: their number. More than one share the document in an etcd.
      etcd_members: of how many processes that etcd is. 0: the one master keeps the document itself.
      timeout_s: the deadline of a request that names none.
      max_keys: the limit of each worker.
      down_after_s, settle_rate_mb, min_copies: the master's settings of that name. Default: the master's own.
      proxied: put a proxy in front of each worker.
      metrics: have each worker serve its metrics, at its `http_port`.
      labels: of each worker, like zone=a.
      master_options: further words of the master's command line.
    """

    def __init__(
        self,
        *,
        mode: str | None = "quorum",
        workers: int = 5,
        replicas: int = 3,
        storage: str = "memory",
        directory: Path | None = None,
        master_port: int = 0,
        http_port: int = 0,
        masters: int = 1,
        etcd_members: int = 0,
        timeout_s: float = 2.0,
        max_keys: int | None = None,
        down_after_s: float | None = None,
        settle_rate_mb: float | None = None,
        min_copies: int | None = None,
        proxied: bool = False,
        metrics: bool = False,
        labels: Sequence[str] = (),
        master_options: Sequence[str] = (),
    ) -> None:
        self._janitor: subprocess.Popen[bytes] | None = None
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="trikv-"))
            self._janitor = subprocess.Popen(
                [sys.executable, "-c", _JANITOR, str(directory)], stdin=subprocess.PIPE, start_new_session=True
            )
        self.directory = directory
        self.mode = mode

        def master_command(node: NodeProcess) -> list[str]:
            http = f"127.0.0.1:{node.http_port}"
            options = {
                "--mode": mode, "--replicas": replicas, "--http": http, "--timeout": timeout_s,
                "--down-after": down_after_s, "--settle-rate": settle_rate_mb, "--min-copies": min_copies,
                "--config-store": self.etcd and self.etcd.url,
                "--data-dir": None if self.etcd else directory / node.name,
            }  # fmt: skip
            return ["master", str(node.port), *_flags(options), *master_options]

        def worker_command(node: NodeProcess) -> list[str]:
            # A worker enlists itself at its own address. Behind a proxy we enlist it, at the proxy's address.
            options = {
                "--master": "none" if proxied else ",".join(master.address for master in self.masters),
                "--storage": storage, "--max-keys": max_keys,
                "--metrics": f"127.0.0.1:{node.http_port}" if metrics else None,
            }  # fmt: skip
            labelled = [word for label in labels for word in ("--label", label)]
            return ["worker", str(node.port), *_flags(options), *labelled, "--data-dir", str(self.data_dir(node))]

        assert masters == 1 or etcd_members, "several masters share an etcd"
        self.etcd = EtcdCluster(directory / "etcd", members=etcd_members) if etcd_members else None
        names = ["master", *(f"master-{number}" for number in range(2, masters + 1))]
        self.masters = [NodeProcess(name, master_command, log=directory / f"{name}.log") for name in names]
        self.master.port, self.master.http_port = master_port, http_port
        self._worker_command = worker_command
        self._named = 0
        self._proxied = proxied
        self._thread = ExitStack()  # the loop in which proxies run
        self._portal: BlockingPortal | None = None
        self._links: dict[str, tuple[Future[None], ProxyLink]] = {}  # by the name of the node
        self.workers = [self._make_worker() for _ in range(workers)]

    @property
    def master(self) -> NodeProcess:
        """The master, or the first of several."""
        return self.masters[0]

    @property
    def url(self) -> str:
        """Of the master; several have commas between them."""
        return ",".join(f"http://127.0.0.1:{master.http_port}" for master in self.masters)

    def leader(self) -> NodeProcess | None:
        """The master that leads, as the masters say themselves; None while they name none that runs."""
        with self.client() as client:
            leader = client.cluster()["masters"]["leader"]
        return next((m for m in self.masters if m.running and leader and m.address == leader["address"]), None)

    def client(self, **options: Any) -> Client:
        """A new client of this cluster; the options are `Client`'s."""
        return Client(self.url, **options)

    def worker(self, worker_id: str) -> NodeProcess:
        return next(node for node in self.workers if node.id == worker_id)

    def data_dir(self, node: NodeProcess) -> Path:
        return self.directory / node.name

    def _make_worker(self) -> NodeProcess:
        self._named += 1
        name = f"worker-{self._named}"
        return NodeProcess(name, self._worker_command, log=self.directory / f"{name}.log")

    def __enter__(self) -> LocalCluster:
        try:
            self.start()
        except BaseException:  # also Ctrl-C: stop the processes that did start
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start each process that does not run, and return when the master knows every worker as up.

        Raises:
          EtcdFailed: etcd is not installed, or did not start.
          NodeFailed: a process did not start.
          TimeoutError: the processes started, and the cluster did not form in time.
        """
        if self._proxied and self._portal is None:
            self._portal = self._thread.enter_context(start_blocking_portal("trio"))
        if self.etcd is not None and not any(member.running for member in self.etcd.members):
            self.etcd.start()
        waiting = [master for master in self.masters if not master.running]
        for master in waiting:
            master.spawn()
        for master in waiting:
            master.await_listening()
        waiting = [node for node in self.workers if not node.running]
        for node in waiting:
            node.spawn()
        for node in waiting:
            node.await_listening()
            self._enlist(node)
        self.await_up(self.workers)

    def add_worker(self) -> NodeProcess:
        """Add a worker. It is up when this returns, and is given its share after that."""
        node = self._make_worker()
        self.workers.append(node)
        self.start_worker(node)
        self.await_up([node])
        return node

    def start_worker(self, node: NodeProcess) -> None:
        """Start a worker, or start it again. A worker without its data is enlisted anew."""
        node.start()
        self._enlist(node)

    def wipe(self, node: NodeProcess) -> None:
        """Lose the disk of a worker that does not run."""
        assert not node.running, f"{node.name} runs"
        shutil.rmtree(self.data_dir(node), ignore_errors=True)

    def dismiss(self, node: NodeProcess) -> None:
        """Stop a worker for good: `start` does not start it again."""
        node.stop()
        self.workers.remove(node)

    # --- links --------------------------------------------------------------------------------------------------------

    def cut(self, node: NodeProcess) -> None:
        """Break the links of all other nodes to this worker, and each new link at once."""
        self._at_link(node, ProxyLink.cut)

    def hold(self, node: NodeProcess, *directions: Direction) -> None:
        """Let nothing through to this worker or from it (or only in one direction), without breaking a connection."""
        self._at_link(node, ProxyLink.hold, *directions)

    def reset(self, node: NodeProcess) -> None:
        """Break the links to this worker that exist now."""
        self._at_link(node, ProxyLink.reset)

    def mend(self, node: NodeProcess) -> None:
        self._at_link(node, ProxyLink.mend)

    def _at_link(self, node: NodeProcess, do: Callable[..., None], *arguments: object) -> None:
        assert self._portal is not None, "only links of a proxied cluster can be cut"
        task, link = self._links[node.name]
        assert not task.done(), f"the proxy of {node.name} has ended: {task.exception()!r}"
        self._portal.call(do, link, *arguments)

    def _enlist(self, node: NodeProcess) -> None:
        """Enlist the worker at the address of its proxy."""
        if not self._proxied:
            return
        assert self._portal is not None, "start a proxied cluster as a whole first"
        if node.name not in self._links:
            self._links[node.name] = self._portal.start_task(serve_link, lambda: node.address)
        with self.client() as client:
            address = self._links[node.name][1].address
            wait_until(lambda: client.enlist(address), what=f"{node.name} is enlisted at {address}")

    # --- all of it ----------------------------------------------------------------------------------------------------

    def await_up(self, nodes: Iterable[NodeProcess]) -> None:
        """Return when the cluster has formed and all of these workers are up."""
        with self.client() as client:
            wanted = {node.id for node in nodes}

            def all_up() -> bool:
                state = client.cluster()
                return not state["forming"] and wanted <= {w["id"] for w in state["workers"] if w["state"] == "up"}

            wait_until(all_up, what=f"{len(wanted)} workers are up", deadline_s=START_DEADLINE_S)

    def await_whole(self, deadline_s: float = 60.0) -> None:
        """Return when the cluster has healed: all partitions are settled, with all their copies on workers that are up.

        Each worker that runs has its share by then. A worker that is stopped or drained holds nothing.
        """
        with self.client() as client:
            wait_until(
                lambda: self.is_whole(client.cluster()), what="the cluster is whole", deadline_s=deadline_s,
                every_s=WHOLE_INTERVAL_S,
            )  # fmt: skip

    def is_whole(self, state: Mapping[str, Any]) -> bool:
        """Is this state of the cluster healed, as `await_whole` means it?"""
        running = {node.id for node in self.workers if node.running}
        members = [w for w in state["workers"] if w["state"] == "up" and w["place"] == "member"]
        there = {w["id"] for w in state["workers"] if w["place"] != "drained"}
        partitions = state["partitions"]["total"]
        return (
            state["unsettled"] == 0
            and state["progress"]["operation"] is None
            and sum(w["copies"] for w in members) == partitions * state["replicas"]
            and {w["id"] for w in members} == running & there
        )

    def kill_all(self) -> None:
        """SIGKILL to the master and every worker, all before the first has ended."""
        for node in (*self.masters, *self.workers):
            node.signal(signal.SIGKILL)
        for node in (*self.masters, *self.workers):
            node.wait(STOP_DEADLINE_S)

    def stop(self) -> None:
        """Stop all processes. The masters go first, since they need the workers to finish what they began.
        Never raises."""
        for nodes in (self.masters, self.workers):
            started = [node for node in nodes if node.started]
            for node in started:
                node.ask_to_stop()
            for node in started:
                node.stop()
        if self.etcd is not None:
            self.etcd.stop()
        for task, _ in self._links.values():
            task.cancel()
        self._links.clear()
        self._thread.close()
        self._portal = None
        if self._janitor is not None:
            assert self._janitor.stdin is not None
            self._janitor.stdin.close()
            self._janitor.wait()
            self._janitor = None


def _flags(options: Mapping[str, object]) -> list[str]:
    return [word for name, value in options.items() if value is not None for word in (name, str(value))]
