"""Runs code of a plugin when trikv starts, so that nothing it does there ends the process, stalls it or goes unnamed.

    with foreign_code("trikv_mine"):
        importlib.import_module("trikv_mine")

Such code may raise anything, call `sys.exit()`, or wait for ever. Each becomes a `ForeignCodeError`, whose text is one
line that names what happened and the author's own line. An alarm (SIGALRM) ends what does not let go; another alarm
that is set meanwhile keeps its time. Ctrl-C passes.

Left out: `os._exit()` and a crash of the interpreter, which end the process at once; code that catches every exception
in a loop; and a wait in an extension module, where no signal reaches Python. Only the main thread has an alarm: in
another one there is no time limit.
"""

from __future__ import annotations

import linecache
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from trikv.core.text import escape

LIMIT_S: Final = 10.0  # an import of large libraries from a slow disk takes a few seconds


class ForeignCodeError(Exception):
    """A plugin's code failed. The message is one line: what happened, and where in its module."""


class _TooLongError(BaseException):
    """Raised inside the foreign code by the alarm; no `except Exception` there may catch it."""


@contextmanager
def foreign_code(module: str, limit_s: float = LIMIT_S) -> Iterator[None]:
    """Run what is inside for at most `limit_s`. `module`: where the author's own lines are.

    Raises:
      ForeignCodeError: it raised, called `sys.exit()`, or did not let go.
    """
    try:
        with _alarm(limit_s):
            yield
    except KeyboardInterrupt:
        raise
    except _TooLongError as error:
        raise ForeignCodeError(f"did not let go for {limit_s:g} s{_place(error, module)}") from None
    except SystemExit as error:
        code = "" if error.code is None else repr(error.code)
        raise ForeignCodeError(f"calls sys.exit({code}){_place(error, module)}") from error
    except BaseException as error:  # a plugin's code may raise anything
        where = "" if isinstance(error, SyntaxError) else _place(error, module)  # its own text has the line
        raise ForeignCodeError(f"{told(error)}{where}") from error


def told(error: BaseException) -> str:
    """An exception in words that fit into a line and that a terminal does not obey."""
    return escape(" ".join(f"{type(error).__name__}: {error}".split()))


def _place(error: BaseException, module: str) -> str:
    """The innermost line of the author's module that the error came through; "" if there is none."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_globals.get("__name__") == module:
            filename = frame.f_code.co_filename
            source = escape(linecache.getline(filename, line).strip())
            place = f", at {Path(filename).name}:{line}" + (f" ({source})" if source else "")
    return place


@contextmanager
def _alarm(limit_s: float) -> Iterator[None]:
    """Raise `_TooLongError` in what is inside once the time is over, and then set the alarm that was set before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    inside = True

    def ring(_signal: int, _frame: FrameType | None) -> None:
        if inside:
            raise _TooLongError

    began_s = time.monotonic()
    before = signal.signal(signal.SIGALRM, ring)
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        inside = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left_s:
            passed_s = time.monotonic() - began_s
            signal.setitimer(signal.ITIMER_REAL, max(left_s - passed_s, 0.001), interval_s)
