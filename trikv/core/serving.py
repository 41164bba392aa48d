"""What the present task serves, for the lines of the log: which request, and in which epoch.

A front sets the request's id. The coordinator sets the epoch of the partition in which it serves an operation. Both are
context variables, so they go with the task, and with the tasks that it starts. A value stays until the task sets
another one.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Final

REQUEST_ID_CHARS_MAX: Final = 128
_SANE: Final = re.compile(rf"[!-~]{{1,{REQUEST_ID_CHARS_MAX}}}")

request_id: Final[ContextVar[str]] = ContextVar("request_id", default="")
epoch: Final[ContextVar[int]] = ContextVar("epoch", default=0)


def is_request_id(text: str) -> bool:
    """May a client's request have this id? Ids stand in logs and headers: printable ASCII only, and not too long."""
    return _SANE.fullmatch(text) is not None
