"""The two roles as processes: doors, directories and signals around a `Worker` or a `Master`.

    run_worker(settings), run_master(settings)  ->  the exit code

A start checks the plugins, the address, the data directory and its content, in this order, before it serves anything.
A fault ends as one line on stderr that names the thing and the remedy, and exit code 1. Once a node serves, it prints
one line on stdout; with port 0 that line has the real port. If stdout cannot be written (it is closed, or its disk is
full), the log has that line, and the node serves all the same.

SIGTERM and SIGINT end a node cleanly: it takes no new requests, gives those under way a moment, and closes everything.
With `exit_with_stdin` the end of stdin does the same, so that a child process dies with its parent, however its parent
dies.
"""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Final

import trio

from trikv.api import StorageEngine
from trikv.config import MasterSettings, WorkerSettings
from trikv.core.errors import TrikvError
from trikv.logs import NodeLog, start_log
from trikv.net.accept import raise_descriptor_limit
from trikv.net.doors import Doors, Listening, join_address
from trikv.process import address_of, announce, bind_http, load_plugins, watch_for_stop
from trikv.registry import PluginError
from trikv.worker.datadir import DataDirError, open_data_dir
from trikv.worker.progress import ProgressFile, ProgressMarker
from trikv.worker.worker import Worker

COLLECTOR_THRESHOLDS: Final = (50_000, 20, 1_000)
DRAIN_S: Final = 3.0  # for requests under way at a stop
_DOCUMENT: Final = "cluster.sqlite"  # in a master's data directory
_WORKERS: Final = "workers"  # the directories of the workers that it starts, there

_log = logging.getLogger(__name__)

_USAGE: Final = 2  # the exit code if the command line names a mode or an engine that is not installed
_EXPECTED = (OSError, ValueError, DataDirError, PluginError, TrikvError)


def run_worker(settings: WorkerSettings) -> int:
    """Be a worker until told to stop."""
    return _run("worker", partial(_worker, settings), settings)


def run_master(settings: MasterSettings) -> int:
    """Be the master until told to stop."""
    from trikv.masterprocess import ENDS, MasterProcess  # here, since a worker would pay for its imports

    return _run("master", MasterProcess(settings).run, settings, ENDS)


def _run(
    role: str,
    main: Callable[[NodeLog], Awaitable[None]],
    settings: WorkerSettings | MasterSettings,
    expected: tuple[type[Exception], ...] = (),
) -> int:
    """`expected`: errors of this role that end it with a line, beside those of both."""
    log = start_log(settings.log)
    log.identify(lambda: {"role": role})
    for note in settings.notes:
        _log.info("%s", note)
    raise_descriptor_limit()
    _collect_seldom()
    try:
        return _serve(main, log, (*_EXPECTED, *expected))
    except Exception:  # noqa: BLE001 its traceback is a line of the log, like all else
        _log.critical("this %s failed in a way that its authors did not foresee", role, exc_info=True)
        return 1
    finally:
        log.close()


def _collect_seldom() -> None:
    """Look for garbage in cycles less often than a script would: an operation leaves none, and much lives long."""
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def _serve(main: Callable[[NodeLog], Awaitable[None]], log: NodeLog, expected: tuple[type[Exception], ...]) -> int:
    code = 0
    try:
        trio.run(main, log)
    except* expected as group:
        for line in dict.fromkeys(_sentences(group)):
            log.say_error(line)
        unknown, _ = group.split(lambda error: isinstance(error, TrikvError) and error.kind.exit == _USAGE)
        code = 1 if unknown is None else _USAGE
    return code


def _sentences(error: BaseException) -> list[str]:
    """One line for each error in what may be a group of groups."""
    match error:
        case BaseExceptionGroup():
            return [line for inner in error.exceptions for line in _sentences(inner)]
        case OSError(strerror=str(text), filename=name):
            return [text if name is None else f"{name}: {text}"]
        case _:
            return [str(error)]


async def _worker(settings: WorkerSettings, log: NodeLog) -> None:
    engine = load_plugins().storage_engine(settings.storage)
    doors = Doors()
    listening = await doors.transport.listen(join_address(settings.host, settings.port))
    with ExitStack() as stack:
        metrics = None
        if settings.metrics is not None:
            metrics = stack.enter_context(bind_http(settings.metrics, "--metrics"))
        if not engine.durable:
            await _serve_worker(settings, log, doors, listening, engine, metrics, None)
            return
        data_dir = stack.enter_context(open_data_dir(settings.directory, "worker"))
        progress = stack.enter_context(closing(ProgressFile(data_dir.path)))
        await _serve_worker(settings, log, doors, listening, engine, metrics, data_dir.path / "records", progress)


async def _serve_worker(
    settings: WorkerSettings,
    log: NodeLog,
    doors: Doors,
    listening: Listening,
    engine: StorageEngine,
    metrics: socket.socket | None,
    directory: Path | None,
    progress: ProgressMarker | None = None,
) -> None:
    """`directory` None: the engine keeps nothing, so the worker's id is its address."""
    storage = await engine.open(directory)
    try:
        worker_id = listening.address if directory is None else None
        worker = await Worker.open(
            worker_id,
            storage,
            engine.name,
            doors,
            max_keys=settings.max_keys,
            labels=settings.labels,
            progress=progress,
        )
        log.identify(lambda: {"role": "worker", "node": worker.id, "term": worker.term})
        async with trio.open_nursery() as nursery:
            stop = await nursery.start(watch_for_stop, settings.exit_with_stdin)
            await nursery.start(partial(worker.run, listening, masters=settings.master))
            where = ""
            if metrics is not None:
                from trikv.web.worker_metrics import serve_metrics  # a worker without them need not pay for it

                await nursery.start(serve_metrics, worker, metrics, stop)
                where = f", http://{address_of(settings.metrics or '', metrics)}"
            announce(f"worker {worker.id} listening on {listening.address}{where}")
            await stop.wait()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await storage.close()
