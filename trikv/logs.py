"""The log of a node: lines on stderr that never block the node, never flood, and are escaped.

- **Never blocking.** A line is formatted where it is logged. A thread writes it, through a queue of `LINES_MAX`, so a
  pipe without a reader, or a stopped terminal, blocks only that thread. A line that finds the queue full is dropped and
  counted, and the count is written once there is room.
- **Never a flood.** Of one kind of line (one logger and one template) `BURST` are written in `PERIOD_S`. The others are
  counted, and the next line of that kind says how many there were.
- **Escaped.** Ids, keys and sentences of peers may contain line ends and terminal escapes. In a message they are
  written as `\\x1b` and the like. Only a traceback has several lines.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from typing import Final, TextIO

from trikv.core.text import escape

LINES_MAX: Final = 1_000
BURST: Final = 10
PERIOD_S: Final = 10.0
CLOSE_S: Final = 1.0  # for what is still in the queue at a close
_KINDS_MAX: Final = 1_000  # templates are in the program's code, so there are far fewer

_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class Limiter(logging.Filter):
    """Passes `burst` lines of a kind in `period_s`, by the time in the records."""

    def __init__(self, burst: int = BURST, period_s: float = PERIOD_S) -> None:
        super().__init__()
        self._burst = burst
        self._period_s = period_s
        # Of each kind: when its period began, and how many lines came since.
        self._kinds: dict[tuple[str, object], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.name, record.msg)
        began_s, count = self._kinds.get(kind, (record.created, 0))
        if not 0 <= record.created - began_s < self._period_s:  # a clock may be set back
            held_back = max(0, count - self._burst)
            began_s, count = record.created, 0
            if held_back:
                record.msg, record.args = f"{record.getMessage()} (and {held_back:,} more like it)", ()
        if len(self._kinds) >= _KINDS_MAX:
            self._kinds.clear()
        self._kinds[kind] = (began_s, count + 1)
        return count < self._burst


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 logging's name
        record.message = escape(record.message)
        return super().formatMessage(record)

    def formatException(self, *arguments: object) -> str:  # noqa: N802
        lines = super().formatException(*arguments).split("\n")  # type: ignore[arg-type]
        return "\n".join(map(escape, lines))


class BackgroundHandler(logging.Handler):
    """Writes to a stream in a thread of its own. `close` waits for that thread, for `CLOSE_S` at most."""

    def __init__(self, stream: TextIO, lines_max: int = LINES_MAX) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(lines_max)
        self._dropped = 0
        self.setFormatter(_Formatter(_FORMAT))
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        self._put(self.format(record))

    def say(self, line: str) -> None:
        """Write a line that is no log record, after everything that was logged before it."""
        self._put(escape(line))

    def _put(self, line: str) -> None:
        try:
            if self._dropped:
                note = f"{self._dropped:,} lines of this log were dropped: nobody read it in time"
                self._lines.put_nowait(note)
                self._dropped = 0
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # it is closed, or its disk is full: nothing can be done
                self._stream.write(line + "\n")
                self._stream.flush()

    def close(self) -> None:
        with contextlib.suppress(queue.Full):  # the thread is stuck, and dies with the process
            self._lines.put(None, timeout=CLOSE_S)
        self._thread.join(CLOSE_S)
        super().close()


def start_log() -> BackgroundHandler:
    """Write everything that is logged from now on to stderr. Call `close` of the returned handler at the end."""
    handler = BackgroundHandler(sys.stderr)
    handler.addFilter(Limiter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    return handler
