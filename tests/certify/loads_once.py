"""A strategy that loads where it is looked up, and not in the processes that play it."""

from __future__ import annotations

import multiprocessing

from trikv_quorum import Quorum

if multiprocessing.parent_process() is not None:
    raise RuntimeError("not here")


class LoadsOnce(Quorum):
    name = "loads-once"
