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
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import trio

from trikv.api import StorageEngine
from trikv.cli.shared import give_up
from trikv.config import MasterSettings, WorkerSettings
from trikv.core.errors import TrikvError
from trikv.logs import NodeLog, start_log
from trikv.master.configstore import ConfigConflict, SqliteConfigStore
from trikv.master.master import Master, StartError
from trikv.net.accept import raise_descriptor_limit
from trikv.net.breakable import BreakableTransport
from trikv.net.doors import Doors, Listening, TcpTransport, join_address, split_address, unresolved
from trikv.registry import PluginError, Registry, load_registry
from trikv.web.services import Services
from trikv.worker.datadir import DataDirError, open_data_dir
from trikv.worker.progress import ProgressFile, ProgressMarker
from trikv.worker.worker import Worker

COLLECTOR_THRESHOLDS: Final = (50_000, 20, 1_000)
DRAIN_S: Final = 3.0  # for requests under way at a stop
_DOCUMENT: Final = "cluster.sqlite"  # in a master's data directory
_WORKERS: Final = "workers"  # the directories of the workers that it starts, there

_log = logging.getLogger(__name__)

_USAGE: Final = 2  # the exit code if the command line names a mode or an engine that is not installed
_EXPECTED = (OSError, ValueError, DataDirError, StartError, ConfigConflict, PluginError, TrikvError)


def run_worker(settings: WorkerSettings) -> int:
    """Be a worker until told to stop."""
    return _run("worker", partial(_worker, settings), settings)


def run_master(settings: MasterSettings) -> int:
    """Be the master until told to stop."""
    return _run("master", partial(_master, settings), settings)


def _run(role: str, main: Callable[[NodeLog], Awaitable[None]], settings: WorkerSettings | MasterSettings) -> int:
    log = start_log(settings.log)
    log.identify(lambda: {"role": role})
    for note in settings.notes:
        _log.info("%s", note)
    raise_descriptor_limit()
    _collect_seldom()
    try:
        return _serve(main, log)
    except Exception:  # noqa: BLE001 its traceback is a line of the log, like all else
        _log.critical("this %s failed in a way that its authors did not foresee", role, exc_info=True)
        return 1
    finally:
        log.close()


def _collect_seldom() -> None:
    """Look for garbage in cycles less often than a script would: an operation leaves none, and much lives long."""
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def _serve(main: Callable[[NodeLog], Awaitable[None]], log: NodeLog) -> int:
    code = 0
    try:
        trio.run(main, log)
    except* _EXPECTED as group:
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


def _load_plugins() -> Registry:
    """What is installed. What cannot be used is named in the log, and refused where it is asked for."""
    registry = load_registry()
    for one in registry.unusable:
        _log.warning("%s; it is left out", one.why)
    return registry


async def _worker(settings: WorkerSettings, log: NodeLog) -> None:
    engine = _load_plugins().storage_engine(settings.storage)
    doors = Doors()
    listening = await doors.transport.listen(join_address(settings.host, settings.port))
    with ExitStack() as stack:
        metrics = None
        if settings.metrics is not None:
            metrics = stack.enter_context(_bind_http(settings.metrics, "--metrics"))
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
            stop = await nursery.start(_watch_for_stop, settings.exit_with_stdin)
            await nursery.start(partial(worker.run, listening, master=settings.master))
            where = ""
            if metrics is not None:
                from trikv.web.worker_metrics import serve_metrics  # a worker without them need not pay for it

                await nursery.start(serve_metrics, worker, metrics, stop)
                where = f", http://{_address_of(settings.metrics or '', metrics)}"
            _announce(f"worker {worker.id} listening on {listening.address}{where}")
            await stop.wait()
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await storage.close()


async def _master(settings: MasterSettings, log: NodeLog) -> None:
    from trikv.web.app import serve_http  # here, since a worker would pay half of its start for it

    registry = _load_plugins()
    links = BreakableTransport(TcpTransport()) if settings.break_it else None
    doors = Doors() if links is None else Doors(links)
    listening = await doors.transport.listen(join_address(settings.host, settings.port))
    http_socket = _bind_http(settings.http, "--http")
    http = _address_of(settings.http, http_socket)
    with http_socket, open_data_dir(settings.directory, "master", founding=_DOCUMENT) as data_dir:
        store = await SqliteConfigStore.open(data_dir.path / _DOCUMENT, founded=data_dir.founded)
        try:
            master = await Master.open(
                store,
                registry,
                doors,
                mode=settings.mode,
                replicas=settings.replicas,
                named=settings.workers,
                timeout_s=settings.timeout_s,
                down_after_s=settings.down_after_s,
                settle_rate_bytes=settings.settle_rate_mb * 1e6,
                min_copies=settings.min_copies,
            )
            data_dir.note_founded()
            log.identify(lambda: {"role": "master", "node": master.cluster.cluster, "term": master.cluster.term})
            master.events.wall_clock = _now
            master.breaking.links = links
            async with trio.open_nursery() as nursery:
                stop = await nursery.start(_watch_for_stop, settings.exit_with_stdin)
                await nursery.start(master.run, listening)
                if settings.start_workers or settings.autoscale is not None:
                    fleet = master.start_workers(
                        registry.provisioner(settings.provisioner),
                        founding=settings.start_workers,
                        address=listening.address,
                        directory=data_dir.path / _WORKERS,
                        storage=registry.storage_engine(settings.worker_storage).name,
                        first_port=settings.worker_port,
                    )
                    await nursery.start(fleet.run)
                    if settings.autoscale is not None:
                        nursery.start_soon(master.scale_by_itself(settings.autoscale, fleet).run)
                elif any((data_dir.path / _WORKERS).glob("*")):
                    _log.warning("workers that a master started are not started again: give --start-workers N")
                nursery.start_soon(master.sampling.run)
                if settings.probe:
                    nursery.start_soon(master.probe().run)
                async with trio.open_nursery() as serving:
                    await serving.start(serve_http, services_of(master), http_socket, stop)
                    _announce(f"master {master.cluster.cluster} listening on {listening.address}, http://{http}")
                    await stop.wait()
                    # The HTTP server waits for the same event, and lets the requests under way finish.
                    serving.cancel_scope.deadline = trio.current_time() + DRAIN_S
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await store.close()


def services_of(master: Master) -> Services:
    """The parts of the master that the front offers."""
    return Services(
        coordinator=master.coordinator,
        status=master.status,
        operations=master.operations,
        enlisting=master.enlisting,
        breaking=master.breaking,
        passed_on=master.passed_on,
        events=master.events,
        sampling=master.sampling,
        run_detached=master.tasks.run_detached,
    )


def _announce(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError as error:
        give_up(sys.stdout)
        _log.warning("standard output cannot be written (%s); it was to say: %s", error.strerror, line)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _address_of(address: str, sock: socket.socket) -> str:
    """The address with the port that the system chose."""
    return join_address(split_address(address)[0], sock.getsockname()[1])


def _bind_http(address: str, flag: str) -> socket.socket:
    """A socket for HTTP, bound before anything is served, so that a port in use is one line and not an exception group.

    Raises:
      OSError: the address is taken or not ours.
    """
    host, port = split_address(address)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise unresolved(host, error, f"; name another with {flag} HOST:PORT") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
    except OSError as error:
        sock.close()
        message = f"cannot serve HTTP on {address}: {error.strerror}; choose another with {flag} HOST:PORT"
        raise OSError(error.errno, message) from error
    return sock


async def _watch_for_stop(
    exit_with_stdin: bool, *, task_status: trio.TaskStatus[trio.Event] = trio.TASK_STATUS_IGNORED
) -> None:
    """Start with an event, and set it at the first SIGTERM or SIGINT, or at the end of stdin."""
    stop = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            if exit_with_stdin:
                nursery.start_soon(_watch_stdin, stop)
            task_status.started(stop)
            async for number in signals:
                _log.info("%s: stopping", signal.Signals(number).name)
                stop.set()


async def _watch_stdin(stop: trio.Event) -> None:
    with suppress(OSError, trio.ClosedResourceError, trio.BrokenResourceError):  # if it is unreadable, it has ended
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
            while await stdin.receive_some(1024):
                pass  # what the parent writes has no meaning
    stop.set()
