"""A whole cluster as child processes of this one: for tests, demos and benchmarks, ours and a strategy author's.

    with LocalCluster(mode="chain", workers=5) as cluster:
        cluster.client().put(b"key", b"value")
        cluster.workers[0].kill()                        # SIGKILL; pause() is SIGSTOP
        cluster.workers[0].start()                       # the same port, the same directory

The processes are the real ones (`python -m trikv ...`), so what is seen here is what an operator sees: a kill loses
what was in memory, a pause leaves sockets open, a restart reads the disk. Ports are given out by the system (0) and
kept over restarts. Whatever a process prints on stderr goes to a file beside its data.

Nothing is left behind. Every child holds the reading end of a pipe as its stdin and leaves when it is closed
(`--exit-with-stdin`), which the system does for us even if this process is killed outright. A directory that we made
ourselves is removed by a janitor, one more child on such a pipe, for the same reason.

What it costs: about half a second of CPU per process to start; `start` waits until every worker has its place.
What it leaves out: machines. All on loopback, on one disk and one clock.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from trikv.client import Client
from trikv.core.errors import TrikvError

START_DEADLINE_S: Final = 30.0  # a cold disk and a busy machine; a start takes about one second
STOP_DEADLINE_S: Final = 8.0  # after that a child is killed
_POLL_INTERVAL_S: Final = 0.03

T = TypeVar("T")

_LISTENING = re.compile(r"(?P<role>worker|master) (?P<id>\S+) listening on (?P<rpc>[^,\s]+)(, http://(?P<http>\S+))?")

# Waits for its stdin to close, then removes the directory, again and again until those who still write there are gone.
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


class NodeFailed(RuntimeError):
    """A child did not come up. The message has its own last line, which is written for people."""


def wait_until(condition: Callable[[], T], *, what: str = "the condition", deadline_s: float = 15.0) -> T:
    """Ask until the answer is true, and return it. A `TrikvError` counts as "not yet": a node may be starting.

    Other processes cannot wake us, so this asks every 30 ms.

    Raises:
      TimeoutError: after `deadline_s`, with `what` was waited for and the last refusal heard.
    """
    until = time.monotonic() + deadline_s
    heard: object = ""
    while True:
        try:
            answer = condition()
        except TrikvError as error:
            heard = f"; the last answer was: {error}"
        else:
            heard = ""
            if answer:
                return answer
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not come true within {deadline_s:g} s{heard}")
        time.sleep(_POLL_INTERVAL_S)


class Node:
    """One child process, which may die and come back with the same arguments, directory and ports.

    `command` gives the arguments after `python -m trikv`; it is asked anew at every start, and finds the ports of the
    last one in `port` and `http_port`.
    """

    def __init__(self, name: str, command: Callable[[Node], Sequence[str]], *, log: Path) -> None:
        self.name = name
        self.log = log
        self.id = ""
        self.port = 0
        self.http_port = 0
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.name} {self.id or 'never started'}>"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def started(self) -> bool:
        """Was it ever? It may have ended since."""
        return self._process is not None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start, and return once it serves.

        Raises:
          NodeFailed: it ended instead, or said nothing within `START_DEADLINE_S`.
        """
        self.spawn()
        self.await_listening()

    def spawn(self) -> None:
        """The first half of `start`, so that many can start at once."""
        assert not self.running, f"{self.name} runs already"
        self._let_go()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trikv", *self._command(self), "--config", os.devnull, "--exit-with-stdin"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={name: value for name, value in os.environ.items() if not name.startswith("TRIKV_")},
                start_new_session=True,  # Ctrl-C is for this process, which then stops its children in good order
            )

    def await_listening(self, deadline_s: float = START_DEADLINE_S) -> None:
        """The second half of `start`."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = _read_line(self._process.stdout.fileno(), deadline_s)
        told = _LISTENING.fullmatch(line)
        if told is None:
            code = self.kill()
            why = line or _last_line(self.log).removeprefix("error: ")
            raise NodeFailed(f"{self.name} did not start (exit code {code}): {why}")
        self.id = told["id"]
        self.port = int(told["rpc"].rpartition(":")[2])
        if told["http"]:
            self.http_port = int(told["http"].rpartition(":")[2])

    def kill(self) -> int:
        """SIGKILL: it gets to save nothing. Returns when it is gone, with its exit code."""
        self.signal(signal.SIGKILL)
        return self.wait(STOP_DEADLINE_S)

    def pause(self) -> None:
        """SIGSTOP: it answers nothing, and its connections stay open. Returns when it has stopped."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM, then SIGKILL where that did not help in time. Returns the exit code: 0 for a clean end."""
        self.ask_to_stop()
        try:
            return self.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            return self.kill()

    def ask_to_stop(self) -> None:
        """The first half of `stop`, so that many can stop at once."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, deadline_s: float) -> int:
        """
        Raises:
          subprocess.TimeoutExpired: it still runs.
        """
        assert self._process is not None
        code = self._process.wait(deadline_s)
        self._let_go()
        return code

    def _let_go(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout) if self._process else ():
            if pipe is not None:
                pipe.close()


class LocalCluster:
    """A master and some workers, as a context manager; `start` and `stop` for those who cannot use one.

    Args:
      mode: the cluster's mode.
      workers: how many.
      replicas: copies of each key.
      storage: the workers' engine.
      directory: where data and logs go, and stay. Default: a temporary directory, gone at the end.
      master_port, http_port, worker_ports: 0 asks for a free one.
      timeout_s: the deadline of a request on the master.
      max_keys: the limit of each worker.
    """

    def __init__(
        self,
        *,
        mode: str = "quorum",
        workers: int = 5,
        replicas: int = 3,
        storage: str = "memory",
        directory: Path | None = None,
        master_port: int = 0,
        http_port: int = 0,
        worker_ports: Sequence[int] = (),
        timeout_s: float = 2.0,
        max_keys: int | None = None,
    ) -> None:
        self._janitor: subprocess.Popen[bytes] | None = None
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="trikv-"))
            self._janitor = subprocess.Popen(
                [sys.executable, "-c", _JANITOR, str(directory)], stdin=subprocess.PIPE, start_new_session=True
            )
        self.directory = directory
        self.mode = mode

        def master_command(node: Node) -> list[str]:
            http = f"127.0.0.1:{node.http_port}"
            options = {"--mode": mode, "--replicas": replicas, "--http": http, "--timeout": timeout_s}
            return ["master", str(node.port), *_flags(options), "--data-dir", str(directory / "master")]

        def worker_command(node: Node) -> list[str]:
            options = {"--master": self.master.address, "--storage": storage, "--max-keys": max_keys}
            return ["worker", str(node.port), *_flags(options), "--data-dir", str(directory / node.name)]

        self.master = Node("master", master_command, log=directory / "master.log")
        self.master.port, self.master.http_port = master_port, http_port
        self.workers = [
            Node(f"worker-{i + 1}", worker_command, log=directory / f"worker-{i + 1}.log") for i in range(workers)
        ]
        for node, port in zip(self.workers, worker_ports, strict=False):
            node.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.master.http_port}"

    def client(self, **options: Any) -> Client:
        """A new client of this cluster; the options are `Client`'s."""
        return Client(self.url, **options)

    def worker(self, worker_id: str) -> Node:
        return next(node for node in self.workers if node.id == worker_id)

    def __enter__(self) -> LocalCluster:
        try:
            self.start()
        except BaseException:  # also Ctrl-C: those that did start are stopped
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start what does not run, and return when every worker is known to be up, and holds what it will hold.

        Raises:
          NodeFailed: one of them did not start.
          TimeoutError: they started, and did not find each other.
        """
        if not self.master.running:
            self.master.start()
        waiting = [node for node in self.workers if not node.running]
        for node in waiting:
            node.spawn()
        for node in waiting:
            node.await_listening()
        self.await_up(self.workers)

    def await_up(self, nodes: Iterable[Node]) -> None:
        """Return when the master hears all of these workers, and the cluster has formed."""
        with self.client() as client:
            wanted = {node.id for node in nodes}

            def all_up() -> bool:
                state = client.cluster()
                return not state["forming"] and wanted <= {w["id"] for w in state["workers"] if w["state"] == "up"}

            wait_until(all_up, what=f"{len(wanted)} workers are up", deadline_s=START_DEADLINE_S)

    def kill_all(self) -> None:
        """SIGKILL to the master and every worker, before any of them could tell another."""
        for node in (self.master, *self.workers):
            node.signal(signal.SIGKILL)
        for node in (self.master, *self.workers):
            node.wait(STOP_DEADLINE_S)

    def stop(self) -> None:
        """Stop what runs, the master first, which needs the workers to finish what it began. Never raises."""
        for nodes in ([self.master], self.workers):
            started = [node for node in nodes if node.started]
            for node in started:
                node.ask_to_stop()
            for node in started:
                node.stop()
        if self._janitor is not None:
            assert self._janitor.stdin is not None
            self._janitor.stdin.close()
            self._janitor.wait()
            self._janitor = None


def _flags(options: Mapping[str, object]) -> list[str]:
    return [word for name, value in options.items() if value is not None for word in (name, str(value))]


def _read_line(descriptor: int, deadline_s: float) -> str:
    """One line without its end; what there was of it if the pipe closes or time runs out."""
    until = time.monotonic() + deadline_s
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        piece = os.read(descriptor, 4096) if ready else b""
        if not piece:
            break
        line += piece
    return line.decode(errors="replace").rstrip("\n")


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
    return "it said nothing"
