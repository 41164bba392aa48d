"""The master as a process, alone or one of several.

Alone, it owns its document, a file in its data directory, and leads from start to end. With `--config-store` it shares
the document with other masters: it stands by until it can lead (`master/node.py`), and has no data directory.

Its sockets are bound once. Each role serves on copies of them and closes these at its end; so connections end when the
role changes, and new ones wait in the kernel's queue until the next role begins.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

from trikv.config import MasterSettings
from trikv.core.configuration import Cluster
from trikv.logs import NodeLog
from trikv.master.configstore import (
    DOCUMENT_FILE,
    ConfigConflict,
    ConfigStore,
    ConfigStoreError,
    SqliteConfigStore,
)
from trikv.master.leadership import Candidate, SharedConfigStore
from trikv.master.master import Master, StartError
from trikv.master.masters import describe_masters
from trikv.master.node import take_turns
from trikv.master.passing import Passing
from trikv.net.breakable import BreakableTransport
from trikv.net.doors import Doors, Listening, TcpTransport, join_address
from trikv.process import address_of, announce, bind_http, load_plugins, wall_clock, watch_for_stop
from trikv.web.app import serve_http
from trikv.web.services import Services
from trikv.web.standby import stand_by
from trikv.worker.datadir import open_data_dir

ENDS: Final = (StartError, ConfigConflict)  # what ends a master with one line
DRAIN_S: Final = 3.0  # for requests under way at a stop
_WORKERS: Final = "workers"  # the directories of the workers that it starts, there

_log = logging.getLogger(__name__)


class MasterProcess:
    """One process; `run` it once."""

    def __init__(self, settings: MasterSettings) -> None:
        self._settings = settings
        self._links = BreakableTransport(TcpTransport()) if settings.break_it else None
        self._doors = Doors() if self._links is None else Doors(self._links)
        self._cluster: str | None = None  # its name, once that is known
        self._is_announced = False

    async def run(self, log: NodeLog) -> None:
        """Serve until told to stop."""
        settings = self._settings
        self._log = log
        self._registry = load_plugins()
        self._listening = await self._doors.transport.listen(join_address(settings.host, settings.port))
        self._http_socket = bind_http(settings.http, "--http")
        self._http = address_of(settings.http, self._http_socket)
        with self._http_socket:
            if settings.config_store is None:
                await self._run_alone()
            else:
                await self._run_among_others()

    # --- alone --------------------------------------------------------------------------------------------------------

    async def _run_alone(self) -> None:
        settings = self._settings
        with open_data_dir(settings.directory, "master", founding=DOCUMENT_FILE) as data_dir:
            store = await SqliteConfigStore.open(data_dir.path / DOCUMENT_FILE, founded=data_dir.founded)
            try:
                master = await self._open(store)
                data_dir.note_founded()
                async with trio.open_nursery() as nursery:
                    stop = await nursery.start(watch_for_stop, settings.exit_with_stdin)
                    await nursery.start(master.run, self._listening)
                    await self._start_workers(nursery, master, data_dir.path / _WORKERS)
                    await self._serve(nursery, master, self._http_socket, stop)
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await store.close()

    async def _start_workers(self, nursery: trio.Nursery, master: Master, directory: Path) -> None:
        """Start the workers that this master is to run, and what adds further ones."""
        settings, registry = self._settings, self._registry
        if settings.start_workers or settings.autoscale is not None:
            fleet = master.start_workers(
                registry.provisioner(settings.provisioner),
                founding=settings.start_workers,
                address=self._listening.address,
                directory=directory,
                storage=registry.storage_engine(settings.worker_storage).name,
                first_port=settings.worker_port,
            )
            await nursery.start(fleet.run)
            if settings.autoscale is not None:
                nursery.start_soon(master.scale_by_itself(settings.autoscale, fleet).run)
        elif await trio.Path(directory).is_dir():
            _log.warning("workers that a master started are not started again: give --start-workers N")

    # --- one of several -----------------------------------------------------------------------------------------------

    async def _run_among_others(self) -> None:
        from trikv.master.etcd import EtcdConfigStore  # here, since a master alone would pay for an HTTP client

        settings = self._settings
        assert settings.config_store is not None
        store = await EtcdConfigStore.open(settings.config_store, lease_s=settings.lease_s, doors=self._doors)
        address = settings.advertise or self._listening.address
        me = Candidate(self._doors.new_id(16), address, settings.advertise_http or self._http)
        try:
            async with trio.open_nursery() as nursery:
                stop = await nursery.start(watch_for_stop, settings.exit_with_stdin)
                turns = partial(
                    take_turns,
                    store,
                    me,
                    stand_by=partial(self._stand_by, store, me),
                    lead=partial(self._lead, store, me, stop),
                    wall_clock=wall_clock,
                )
                nursery.start_soon(turns)
                await stop.wait()
                await self._ended_lead(store)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._listening.listener)
                await store.close()

    async def _stand_by(self, store: SharedConfigStore, me: Candidate) -> None:
        """Serve as a standby, until cancelled."""
        self._log.identify(lambda: {"role": "standby", "node": me.name, "term": 0})
        if self._cluster is None:
            # It is read when this master leads, at the latest. A newer master may lead, and have written it.
            with suppress(ConfigStoreError, ValueError):
                document, _ = await store.read()
                self._cluster = None if document is None else Cluster.from_document(document).cluster
        passing = Passing(store, me, lambda: self._cluster, self._doors)
        async with self._copied() as (listening, http_socket), trio.open_nursery() as nursery:
            await nursery.start(stand_by, passing, listening, http_socket, self._settings.timeout_s)
            if not self._is_announced:
                self._is_announced = True
                announce(f"master {me.name} listening on {self._listening.address}, http://{self._http}")
            try:
                await trio.sleep_forever()
            finally:
                self._cluster = passing.cluster

    async def _lead(self, store: SharedConfigStore, me: Candidate, stop: trio.Event) -> None:
        """Serve as the leader, until `stop` or cancelled."""
        master = await self._open(store, shared=store)
        term = master.cluster.term
        self._cluster = master.cluster.cluster
        master.status.masters = lambda: describe_masters(store, me, master.cluster.term)
        async with self._copied() as (listening, http_socket), trio.open_nursery() as nursery:
            await nursery.start(master.run, listening)
            master.events.note("master_leads", master=me.address, http=me.http, term=term)
            await self._serve(nursery, master, http_socket, stop)
            nursery.cancel_scope.cancel()

    @staticmethod
    async def _ended_lead(store: SharedConfigStore) -> None:
        """Return once this master leads no more, or has had its time for the requests under way."""
        with trio.move_on_after(DRAIN_S):
            while store.leads:
                await store.changed.wait()

    @asynccontextmanager
    async def _copied(self) -> AsyncIterator[tuple[Listening, socket.socket]]:
        """Copies of both sockets, for one role."""
        listener = self._listening.listener
        assert isinstance(listener, trio.SocketListener)
        copy = trio.SocketListener(listener.socket.dup())
        async with copy:
            with self._http_socket.dup() as http_socket:
                yield Listening(copy, self._listening.address), http_socket

    # --- the leader ---------------------------------------------------------------------------------------------------

    async def _open(self, store: ConfigStore, *, shared: SharedConfigStore | None = None) -> Master:
        settings = self._settings
        master = await Master.open(
            store,
            self._registry,
            self._doors,
            mode=settings.mode,
            replicas=settings.replicas,
            named=settings.workers,
            timeout_s=settings.timeout_s,
            down_after_s=settings.down_after_s,
            settle_rate_bytes=settings.settle_rate_mb * 1e6,
            min_copies=settings.min_copies,
            holds_lease=None if shared is None else shared.holds,
            known=self._cluster,
        )
        self._log.identify(lambda: {"role": "master", "node": master.cluster.cluster, "term": master.cluster.term})
        master.events.wall_clock = wall_clock
        master.breaking.links = self._links
        return master

    async def _serve(self, nursery: trio.Nursery, master: Master, http_socket: socket.socket, stop: trio.Event) -> None:
        """Serve HTTP until `stop`, with what runs beside a master that leads."""
        nursery.start_soon(master.sampling.run)
        if self._settings.probe:
            nursery.start_soon(master.probe().run)
        async with trio.open_nursery() as serving:
            await serving.start(serve_http, services_of(master), http_socket, stop)
            if not self._is_announced:
                self._is_announced = True
                announce(f"master {master.cluster.cluster} listening on {self._listening.address}, http://{self._http}")
            await stop.wait()
            # The HTTP server waits for the same event, and lets the requests under way finish.
            serving.cancel_scope.deadline = trio.current_time() + DRAIN_S


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
        carry_out=master.carry_out,
    )
