"""The log of a node: lines on stderr that never block the node, never flood, and are escaped.

A line is for a person (`console`) or for a program (`json`: one JSON object a line); without a choice, for a person if
stderr is a terminal. structlog renders both. Modules and plugins log through `logging`, or through structlog, whose
lines come the same way. Each line has the node's role, id and term, and the id and epoch of the request that the task
serves, if it serves one (`core/serving.py`).

In both forms:

- **Never blocking.** A line is formatted where it is logged. A thread writes it, through a queue of `LINES_MAX`, so a
  pipe without a reader, or a stopped terminal, blocks only that thread. A line that finds the queue full is dropped and
  counted, and the count is written once there is room.
- **Never a flood.** Of one kind of line (one logger and one template) `BURST` are written in `PERIOD_S`. The others are
  counted, and the next line of that kind says how many there were.
- **Escaped.** Ids, keys and sentences of peers may contain line ends and terminal escapes. They are written as `\\x1b`
  and the like. Only a traceback has several lines, and in JSON it is one string.
- **Bounded.** Of a text `TEXT_CHARS_MAX` are written, of a traceback the last `TRACEBACK_CHARS_MAX`.
- **Harmless.** A line that cannot be formatted is replaced by one that says so; its caller hears nothing of it.

It costs 40 ms of a start, since structlog is then imported. Left out: request ids on workers, since a call between
nodes carries none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from trikv.core.record import spell_epoch
from trikv.core.serving import epoch, request_id
from trikv.core.text import escape

LINES_MAX: Final = 1_000
BURST: Final = 10
PERIOD_S: Final = 10.0
CLOSE_S: Final = 1.0  # for what is still in the queue at a close
TEXT_CHARS_MAX: Final = 4_000
TRACEBACK_CHARS_MAX: Final = 16_000
FIELDS_MAX: Final = 30  # that a structlog line of a plugin may add
_KINDS_MAX: Final = 1_000  # templates are in the program's code, so there are far fewer
# Names that a renderer takes for its own. A plugin's field with such a name, or with one of ours, gets an underscore.
_RENDERED: Final = ("logger_name", "exception", "exc_info", "stack")
_EXTRA: Final = "trikv_fields"  # the attribute of a record that has what a structlog line adds

Fields = dict[str, Any]
Render = Callable[[Any, str, MutableMapping[str, Any]], str | bytes]


class Limiter(logging.Filter):
    """Passes `burst` lines of a kind in `period_s`, by the time in the records."""

    def __init__(self, burst: int = BURST, period_s: float = PERIOD_S) -> None:
        super().__init__()
        self._burst = burst
        self._period_s = period_s
        # Of each kind: when its period began, and how many lines came since.
        self._kinds: dict[tuple[str, object], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.name, record.msg if isinstance(record.msg, str) else type(record.msg))
        began_s, count = self._kinds.get(kind, (record.created, 0))
        if not 0 <= record.created - began_s < self._period_s:  # a clock may be set back
            held_back = max(0, count - self._burst)
            began_s, count = record.created, 0
            if held_back:
                record.msg, record.args = f"{_message_of(record)} (and {held_back:,} more like it)", ()
        if len(self._kinds) >= _KINDS_MAX:
            self._kinds.clear()
        self._kinds[kind] = (began_s, count + 1)
        return count < self._burst


class LineFormatter(logging.Formatter):
    """Makes one line of a record. `about`: what is to be on every line, asked for each."""

    def __init__(self, render: Render, *, utc: bool) -> None:
        super().__init__()
        self.about: Callable[[], Mapping[str, object]] = dict
        self._render = render
        self._utc = utc

    def format(self, record: logging.LogRecord) -> str:
        try:
            return str(self._render(None, "", self._fields(record)))
        except Exception as error:  # noqa: BLE001 an argument's own methods may raise anything
            return self.render_plain(
                "error", record.name, f"a line of the log could not be made: {type(error).__name__}"
            )

    def render_plain(self, level: str, logger: str, text: str) -> str:
        """A line of the log's own."""
        fields = self._head(datetime.now(UTC).timestamp(), level, logger, text) | self._of_node()
        return str(self._render(None, "", fields))

    def _fields(self, record: logging.LogRecord) -> Fields:
        fields = self._head(record.created, record.levelname.lower(), record.name, _message_of(record))
        fields |= self._of_node()
        if known := request_id.get():
            fields["request"] = _plain(known)
        if in_epoch := epoch.get():
            fields["epoch"] = spell_epoch(in_epoch)
        extra = getattr(record, _EXTRA, None)
        for name, value in list(extra.items())[:FIELDS_MAX] if isinstance(extra, dict) else ():
            taken = name in fields or name in _RENDERED
            fields[_cut(str(name)) + "_" * taken] = _plain(value)
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = _spell_traceback(record.exc_info)
        return fields

    def _head(self, created_s: float, level: str, logger: str, text: str) -> Fields:
        return {"timestamp": self._spell_time(created_s), "level": level, "event": _cut(text), "logger": _cut(logger)}

    def _of_node(self) -> Fields:
        try:
            return {name: _plain(value) for name, value in self.about().items()}
        except Exception:  # noqa: BLE001 a line without it is better than none
            return {}

    def _spell_time(self, created_s: float) -> str:
        if self._utc:
            return datetime.fromtimestamp(created_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return datetime.fromtimestamp(created_s).isoformat(" ", timespec="milliseconds")  # noqa: DTZ006 a person's time


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 as in `LineFormatter.format`
        return f"{record.msg!r} (its arguments do not fit: {type(error).__name__})"


def _plain(value: object) -> object:
    """A value that JSON has, and that is short and printable."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 1 << 63:
        return value
    if isinstance(value, float) and value - value == 0:  # neither infinite nor NaN
        return value
    return _cut(value if isinstance(value, str) else repr(value))


def _cut(text: str) -> str:
    if len(text) <= TEXT_CHARS_MAX:
        return escape(text)
    return f"{escape(text[:TEXT_CHARS_MAX])}... ({len(text):,} characters)"


def _spell_traceback(exc_info: Any) -> str:
    text = "".join(traceback.format_exception(*exc_info)).rstrip("\n")
    if len(text) > TRACEBACK_CHARS_MAX:
        text = f"Traceback, of which the end is:\n{text[-TRACEBACK_CHARS_MAX:]}"
    return "\n".join(map(escape, text.split("\n")))


class BackgroundHandler(logging.Handler):
    """Writes to a stream in a thread of its own. `close` waits for that thread, for `CLOSE_S` at most."""

    def __init__(self, stream: TextIO, formatter: LineFormatter, lines_max: int = LINES_MAX) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(lines_max)
        self._dropped = 0
        self._formatter = formatter
        self.setFormatter(formatter)
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        self.put(self.format(record))

    def put(self, line: str) -> None:
        """Write a line that is ready, after all that were logged before it."""
        try:
            if self._dropped:
                note = f"{self._dropped:,} lines of this log were dropped: nobody read it in time"
                self._lines.put_nowait(self._formatter.render_plain("warning", __name__, note))
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


class NodeLog:
    """The log of this process, begun. `style`: console or json."""

    def __init__(self, handler: BackgroundHandler, formatter: LineFormatter, style: str) -> None:
        self._handler = handler
        self._formatter = formatter
        self.style = style

    def identify(self, about: Callable[[], Mapping[str, object]]) -> None:
        """What to say of this node on every line from now on. It is asked for each line."""
        self._formatter.about = about

    def say_error(self, sentence: str) -> None:
        """Why this process ends, after everything that was logged: a plain line for a person, an object for a program.

        `trikv.core.text.last_words` finds the sentence in either.
        """
        line = f"error: {_cut(sentence)}"
        if self.style == "json":
            line = self._formatter.render_plain("error", "trikv", sentence)
        self._handler.put(line)

    def close(self) -> None:
        self._handler.close()


def start_log(style: str | None = None, *, stream: TextIO | None = None) -> NodeLog:
    """Write everything that is logged from now on to stderr. `style` None: console on a terminal, else json."""
    stream = sys.stderr if stream is None else stream
    on_terminal = _is_terminal(stream)
    style = style or ("console" if on_terminal else "json")
    formatter = make_formatter(style, colors=on_terminal and _wants_colors())
    handler = BackgroundHandler(stream, formatter)
    handler.addFilter(Limiter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of each request
    logging.captureWarnings(True)
    return NodeLog(handler, formatter, style)


def make_formatter(style: str, *, colors: bool = False) -> LineFormatter:
    """What makes lines of that style. structlog's own loggers are sent the same way."""
    with _without_rich():
        import structlog

    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _hand_over],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    if style == "json":
        return LineFormatter(structlog.processors.JSONRenderer(serializer=json.dumps), utc=True)
    plain = structlog.dev.plain_traceback  # others print the values of variables
    return LineFormatter(structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain), utc=False)


def _hand_over(_logger: object, _method: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """What a structlog logger gives to `logging`: the event as the message, and all else beside it."""
    event = fields.pop("event", "")
    exc_info = fields.pop("exc_info", None)
    return {"msg": event, "exc_info": exc_info, "extra": {_EXTRA: dict(fields)}}


@contextlib.contextmanager
def _without_rich() -> Iterator[None]:
    """structlog imports rich if it finds it, which takes 150 ms, for tracebacks that are not used here."""
    if "rich" in sys.modules:
        yield
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # how Python says that there is none
    try:
        yield
    finally:
        del sys.modules["rich"]


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (OSError, ValueError):  # it is closed
        return False


def _wants_colors() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
