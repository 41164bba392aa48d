"""Workers as child processes of the master, on its machine. A plugin like a stranger's.

A child ends when its master does, however that ends: it watches its standard input, which the master holds open. What
it says goes to a log beside its data. Its data stays until it is stopped for good, so that a master that starts again
has the same workers.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from trikv.api import Provisioner, WorkerOrder, hookimpl

START_S: Final = 20.0  # for a process to listen
STOP_S: Final = 10.0  # for one to end when it is asked to; then it is killed
LOG: Final = "worker.log"
ANNOUNCED_BYTES_MAX: Final = 4_096  # of what a process says, the announcement among it
LOG_TAIL_BYTES: Final = 4_096

_ANNOUNCEMENT: Final = re.compile(rb"worker (\S+) listening on (\S+)\n")


class LocalProcesses(Provisioner):
    """Child processes of the master, on its machine."""

    name = "local"

    def __init__(self) -> None:
        self._running: dict[int, tuple[WorkerOrder, trio.Process]] = {}

    async def start(self, order: WorkerOrder) -> str:
        order.directory.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "trikv", "worker", "0",
            "--master", order.master, "--storage", order.storage, "--data-dir", str(order.directory / "data"),
            "--exit-with-stdin",
        ]  # fmt: skip
        with (order.directory / LOG).open("ab") as log:
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._running[order.number] = (order, process)
        assert process.stdout is not None
        said = b""
        with trio.move_on_after(START_S):
            while not (announced := _ANNOUNCEMENT.search(said)):
                if not (piece := await process.stdout.receive_some()):
                    break
                said = (said + piece)[-ANNOUNCED_BYTES_MAX:]
            if announced:
                return announced[1].decode(errors="replace")
        await self._end(order.number)
        raise OSError(f"a worker did not start: {_last_line(order.directory / LOG)}")

    async def stop(self, number: int) -> None:
        if number in self._running:
            order, _ = self._running[number]
            await self._end(number)
            await trio.to_thread.run_sync(lambda: shutil.rmtree(order.directory, ignore_errors=True))

    async def close(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in list(self._running):
                nursery.start_soon(self._end, number)

    async def _end(self, number: int) -> None:
        _, process = self._running.pop(number)
        with trio.CancelScope(shield=True):
            with trio.move_on_after(STOP_S) as patience:
                process.terminate()
                await process.wait()
            if patience.cancelled_caught:
                process.kill()
                await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"


@hookimpl
def trikv_provisioners() -> Sequence[Provisioner]:
    return [LocalProcesses()]
