"""Workers as child processes of the master, on its machine. A plugin like a stranger's.

A child ends when its master does, however that ends: it watches its standard input, which the master holds open. A
paused child does not notice that, so a shell watches in its place, and wakes it. What a child says goes to a log beside
its data, and the port at which it listened to a file there: a worker without a disk is known by its address, and is
started again at the same one if it is free. Its data stays until it is stopped for good, so that a master that starts
again has the same workers.

A directory that is no directory, or a link to one, is refused: what it has would be removed with the worker.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

from trikv.api import Provisioner, WorkerOrder, WorkerProcess, hookimpl
from trikv.core.text import last_words

START_S: Final = 20.0  # for a process to listen
PORT_TRIES: Final = 30  # the process that had the port may still be ending
PORT_AGAIN_S: Final = 0.1
STOP_S: Final = 10.0  # for one to end when it is asked to; then it is killed
LOG: Final = "worker.log"
PORT: Final = "port"
PORT_MAX: Final = 65_535
ANNOUNCED_BYTES_MAX: Final = 4_096  # of what a process says, the announcement among it
LOG_TAIL_BYTES: Final = 32 * 1024  # the last line may be an object with a sentence of 4,000 characters

_ANNOUNCEMENT: Final = re.compile(rb"worker (\S+) listening on ([^,\s]+)[^\n]*\n")

_log = logging.getLogger(__name__)


class _Child:
    """A worker's process, which may have ended. `waker`: while it is paused, the shell that wakes it at our end."""

    def __init__(self, order: WorkerOrder, process: trio.Process) -> None:
        self.order = order
        self.process = process
        self.waker: trio.Process | None = None

    @property
    def runs(self) -> bool:
        return self.process.returncode is None

    @property
    def is_paused(self) -> bool:
        """Also if it was not paused here, where the system tells."""
        if sys.platform != "linux":
            return self.waker is not None
        with suppress(ChildProcessError):  # it has just ended
            return os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        return False

    async def pause(self) -> None:
        waker = ["sh", "-c", f"read _; kill -CONT {self.process.pid} 2> /dev/null"]
        if self.waker is None:
            self.waker = await trio.lowlevel.open_process(waker, stdin=subprocess.PIPE, start_new_session=True)
        self.process.send_signal(signal.SIGSTOP)
        if sys.platform == "linux":  # the signal is under way, and its effect is looked up
            stopped = partial(os.waitid, os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            with suppress(ChildProcessError):
                await trio.to_thread.run_sync(stopped, abandon_on_cancel=True)

    async def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        await self._dismiss_waker()

    async def end(self, *, gracefully: bool) -> None:
        """Return once the process is gone, whoever is cancelled meanwhile."""
        with trio.CancelScope(shield=True):
            if gracefully:
                with trio.move_on_after(STOP_S):
                    self.process.terminate()
                    self.process.send_signal(signal.SIGCONT)
                    await self.process.wait()
            if self.runs:
                self.process.kill()
                await self.process.wait()
            await self._dismiss_waker()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    await pipe.aclose()

    async def _dismiss_waker(self) -> None:
        waker, self.waker = self.waker, None
        if waker is not None:
            with trio.CancelScope(shield=True):
                waker.kill()
                await waker.wait()
                assert waker.stdin is not None
                await waker.stdin.aclose()


class LocalProcesses(Provisioner):
    """Child processes of the master, on its machine."""

    name = "local"
    can_break = True

    def __init__(self) -> None:
        self._children: dict[int, _Child] = {}  # those that have ended, too, until they are stopped for good

    async def start(self, order: WorkerOrder) -> str:
        former = self._children.get(order.number)
        if former is not None and former.runs:
            raise OSError("it runs already")
        _make_directory(order.directory)
        command = [
            sys.executable, "-m", "trikv", "worker", str(await _port_for(order)),
            "--master", order.master, "--storage", order.storage, "--data-dir", str(order.directory / "data"),
            "--exit-with-stdin",
        ]  # fmt: skip
        with (order.directory / LOG).open("ab") as log:
            process = await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the master alone, which then stops its children in order
            )
        child = self._children[order.number] = _Child(order, process)
        try:
            if (announced := await _announcement(child)) is not None:
                _note_port(order.directory, announced[2].decode(errors="replace"))
                return announced[1].decode(errors="replace")
        except BaseException:
            await child.end(gracefully=True)
            raise
        await child.end(gracefully=True)
        raise OSError(f"a worker did not start: {_last_words(order.directory / LOG)}")

    async def stop(self, number: int) -> None:
        if number in self._children:
            child = self._children[number]
            await child.end(gracefully=True)
            del self._children[number]
            await trio.to_thread.run_sync(lambda: shutil.rmtree(child.order.directory, ignore_errors=True))

    async def close(self) -> None:
        async with trio.open_nursery() as nursery:
            for child in self._children.values():
                if child.runs:
                    nursery.start_soon(partial(child.end, gracefully=True))

    def process(self, number: int) -> WorkerProcess | None:
        child = self._children.get(number)
        return WorkerProcess(child.process.pid, child.is_paused) if child is not None and child.runs else None

    async def pause(self, number: int) -> None:
        await self._children[number].pause()

    async def resume(self, number: int) -> None:
        await self._children[number].resume()

    async def kill(self, number: int) -> None:
        await self._children[number].end(gracefully=False)


async def _announcement(child: _Child) -> re.Match[bytes] | None:
    """What the process says once it listens; None if it ends without, or says nothing in time."""
    assert child.process.stdout is not None
    said = b""
    with trio.move_on_after(START_S):
        while piece := await child.process.stdout.receive_some():
            said = (said + piece)[-ANNOUNCED_BYTES_MAX:]
            if announced := _ANNOUNCEMENT.search(said):
                return announced
    return None


def _make_directory(directory: Path) -> None:
    """
    Raises:
      OSError: there can be no directory; the message says why.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise OSError(f"{directory} is a file or a symbolic link, and must be a directory; move it away")
    directory.mkdir(exist_ok=True)


async def _port_for(order: WorkerOrder) -> int:
    """Where it listened, else where it is wanted, if that is free; else 0."""
    noted = _noted_port(order.directory)
    for _ in range(PORT_TRIES if noted else 0):
        if _is_free(noted):
            return noted
        await trio.sleep(PORT_AGAIN_S)
    return order.port if 0 < order.port <= PORT_MAX and _is_free(order.port) else 0


def _noted_port(directory: Path) -> int:
    """0: none is noted."""
    with suppress(OSError, ValueError):
        text = (directory / PORT).read_text()
        if text.isascii() and text.isdigit() and len(text) <= len(str(PORT_MAX)) and int(text) <= PORT_MAX:
            return int(text)
    return 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _note_port(directory: Path, address: str) -> None:
    try:
        (directory / PORT).write_text(address.rpartition(":")[2])
    except OSError as error:
        _log.warning("a worker may be started again at another port, since this one cannot be noted: %s", error)


def _last_words(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return last_words(file.read().decode(errors="replace")) or "it said nothing"


@hookimpl
def trikv_provisioners() -> Sequence[Provisioner]:
    return [LocalProcesses()]
