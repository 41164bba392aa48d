"""A node as a child process that can be killed, paused and started again; and waiting for what other processes do.

`cluster.py` makes whole clusters of these, and says what happens to the children of a parent that is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from trikv.core.errors import TrikvError
from trikv.core.text import last_words

START_DEADLINE_S: Final = 30.0  # a cold disk and a busy machine; a start takes about one second
STOP_DEADLINE_S: Final = 8.0  # then the child is killed

T = TypeVar("T")

_LISTENING = re.compile(r"(?P<role>worker|master) (?P<id>\S+) listening on (?P<rpc>[^,\s]+)(, http://(?P<http>\S+))?")


class NodeFailed(RuntimeError):
    """A child did not come up. The message ends with the child's own last line, which is written for people."""


def wait_until(
    condition: Callable[[], T], *, what: str = "the condition", deadline_s: float = 30.0, every_s: float = 0.03
) -> T:
    """Ask until the answer is true, and return it. A `TrikvError` counts as "not yet": a node may be starting.

    Other processes cannot wake this one, so it asks every `every_s`.

    Raises:
      TimeoutError: after `deadline_s`, with `what` and the last refusal.
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
        time.sleep(every_s)


class NodeProcess:
    """One child process, which may die and come back with the same arguments, directory and ports.

    `command` gives the arguments after `python -m trikv`. It is called at every start, with `port` and `http_port` as
    the last start left them.
    """

    def __init__(self, name: str, command: Callable[[NodeProcess], Sequence[str]], *, log: Path) -> None:
        self.name = name
        self.log = log
        self.id = ""
        self.port = 0
        self.http_port = 0
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._waker: subprocess.Popen[bytes] | None = None

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
        """Was it started at all? It may have ended since."""
        return self._process is not None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process, and return once it serves.

        Raises:
          NodeFailed: it ended instead, or printed nothing within `START_DEADLINE_S`.
        """
        self.spawn()
        self.await_listening()

    def spawn(self) -> None:
        """The first half of `start`, so that many can start at once."""
        assert not self.running, f"{self.name} runs already"
        self._let_go()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TRIKV_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trikv", *self._command(self), "--exit-with-stdin"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**clean, "TRIKV_CONFIG": os.devnull},  # which its own children inherit
                start_new_session=True,  # Ctrl-C is for the parent alone, which then stops its children in order
            )

    def await_listening(self, deadline_s: float = START_DEADLINE_S) -> None:
        """The second half of `start`."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = _read_line(self._process.stdout.fileno(), deadline_s)
        told = _LISTENING.fullmatch(line)
        if told is None:
            code = self.kill()
            why = line or _last_words(self.log)
            raise NodeFailed(f"{self.name} did not start (exit code {code}): {why}")
        self.id = told["id"]
        self.port = int(told["rpc"].rpartition(":")[2])
        if told["http"]:
            self.http_port = int(told["http"].rpartition(":")[2])

    def kill(self) -> int:
        """SIGKILL: the process can save nothing. Returns its exit code once it is gone."""
        self.signal(signal.SIGKILL)
        return self.wait(STOP_DEADLINE_S)

    def pause(self) -> None:
        """SIGSTOP: the process answers nothing, and its connections stay open. Returns once it has stopped.

        A stopped process does not notice that its parent is gone, so a shell waits for that and wakes it.
        """
        waker = ["sh", "-c", f"read _; kill -CONT {self.pid} 2> /dev/null"]
        self._waker = subprocess.Popen(waker, stdin=subprocess.PIPE, start_new_session=True)
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)
        self._dismiss_waker()

    def stop(self) -> int:
        """SIGTERM, then SIGKILL after `STOP_DEADLINE_S`. Returns the exit code: 0 for a clean end."""
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
        """Wait for the end of the process; return its exit code.

        Raises:
          subprocess.TimeoutExpired: it still runs.
        """
        assert self._process is not None
        code = self._process.wait(deadline_s)
        self._let_go()
        self._dismiss_waker()
        return code

    def _dismiss_waker(self) -> None:
        if self._waker is not None:
            self._waker.kill()
            self._waker.communicate()
            self._waker = None

    def _let_go(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout) if self._process else ():
            if pipe is not None:
                pipe.close()


def _read_line(descriptor: int, deadline_s: float) -> str:
    """One line without its end, or as much of it as came before the pipe was closed or the deadline passed."""
    until = time.monotonic() + deadline_s
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        piece = os.read(descriptor, 4096) if ready else b""
        if not piece:
            break
        line += piece
    return line.decode(errors="replace").rstrip("\n")


def _last_words(log: Path) -> str:
    with contextlib.suppress(OSError):
        return last_words(log.read_text(errors="replace")) or "it printed nothing"
    return "it printed nothing"
