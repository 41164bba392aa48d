"""The config store in etcd, which several masters share: the document, who leads, and which masters there are.

    PREFIX/document          the document; changed by a transaction that compares its mod_revision
    PREFIX/leader            who leads; bound to the leader's lease
    PREFIX/masters/NAME      each master that runs; bound to a lease of its own

*The document* is one format byte and CBOR, compressed where that makes it smaller. etcd takes requests of 1.5 MiB,
unless it is started with another --max-request-bytes. A change writes all of it, so etcd keeps as much history as it
is told to: start it with --auto-compaction-retention.

*Never a plain read.* A transaction that has a write in it goes through the consensus of etcd; one that only reads does
not, and a member that is behind may answer it from the past (so does etcd 3.4.23). Reading the document therefore
deletes, in the same transaction, a key that nobody writes. The list of masters is read plainly, once in a third of a
lease; nothing is decided by it.

*The lease.* etcd up to 3.4.23 has two faults that show if the leading member of etcd is stopped and wakes, and both
would let `holds` lie. A deposed leading member still renews leases, for a moment, that the new one may have ended. And
it ends leases that look expired to it, though the new one has renewed them. So a renewal counts only if the term of
etcd's own consensus (raft_term) is the same in the lease's beginning, in the answer of the keep-alive, and in a
transaction through the consensus that was sent after that answer and found the leader's key unchanged: then no other
member had become leading. In a new raft_term the leader takes a new lease and binds its key to that one, which no
member that was deposed earlier can know.

What it costs: every master two calls a third of a lease, the leader two more, one of them through the consensus (an
fsync of etcd, and no history); one watch, which idles. What it leaves out: compaction, which is the operator's, since
others may use the same etcd; and changing what is wrong by hand: `etcdctl` is for that.
"""

from __future__ import annotations

import base64
import logging
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import cbor2
import trio

from trikv.config import LEASE_S
from trikv.master.configstore import CHANGE, ConfigConflict, ConfigStoreError, NotChanged
from trikv.master.etcdgateway import EtcdGateway, EtcdRefusal, Nonsense, member, members, text, whole
from trikv.master.etcdroster import KeyState, Roster, write_leader, write_master
from trikv.master.leadership import LEASE_MARGIN, Candidate, Leader, SharedConfigStore
from trikv.net.doors import Doors, boottime
from trikv.net.etcdurl import EtcdSettings
from trikv.net.signal import Signal

DOCUMENT_S: Final = 2.0  # for reading or writing the document at one endpoint
DOCUMENT_BYTES_MAX: Final = 1_500_000  # packed; etcd's limit is 1,572,864 for the request with keys and compares
UNPACKED_BYTES_MAX: Final = 64 << 20
GIVE_UP_S: Final = 1.0  # for telling etcd of a clean end
MASTERS_MAX: Final = 1_000  # that a list may have
_ATTEMPTS_A_LEASE: Final = 4  # an endpoint that hangs costs a renewal no more than a fourth of the lease
_RENEWALS_A_LEASE: Final = 3
_REBINDS_MAX: Final = 4  # of one renewal, each after news; the next renewal goes on
_PLAIN: Final = b"\x01"  # the format byte: what follows is CBOR
_ZLIB: Final = b"\x02"  # what follows is CBOR, compressed

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Lease:
    id: int
    sent_s: float  # by the store's clock, before it was asked for
    ttl_s: float
    raft_term: int  # the lease was granted in this term of etcd, or in a later one


@dataclass(slots=True)
class _Lead:
    """What this master knows of its leadership."""

    lease: _Lease
    revision: int  # of the leader's key, as this master put it: so it is bound to that lease
    held_until_s: float
    since: str
    ended: bool = False  # the key was seen gone, so that lease counts no more


@dataclass(slots=True)
class _Committed:
    """The answer of a transaction."""

    succeeded: bool
    found: list[list[KeyState]]  # of each of its reads
    revision: int  # of the store; of the keys that it put, if it put any
    raft_term: int
    again: bool  # it may have been carried out before, too


class EtcdConfigStore(SharedConfigStore):
    """Make it with `open`."""

    def __init__(self, settings: EtcdSettings, lease_s: float, doors: Doors, clock: Callable[[], float]) -> None:
        self.leader: Leader | None = None
        self.masters: Sequence[Candidate] = ()
        self.changed = Signal()
        self.leads = False
        self._gateway = EtcdGateway(settings, self._note)
        self._lease_s = math.ceil(lease_s)  # etcd counts whole seconds
        self._doors = doors
        self._clock = clock
        self._attempt_s = lease_s / _ATTEMPTS_A_LEASE
        self._every_s = lease_s / _RENEWALS_A_LEASE
        self._document = f"{settings.prefix}/document"
        self._nothing = f"{settings.prefix}/nothing"
        self._leader_key = f"{settings.prefix}/leader"
        self._masters = f"{settings.prefix}/masters/"
        self._roster = Roster(self._leader_key)
        self._me: Candidate | None = None
        self._lead: _Lead | None = None
        self._turn = trio.Lock()  # taking the lead and renewing it
        self._renewing: trio.CancelScope | None = None
        self._woken = Signal()
        self._leases: set[int] = set()  # asked for to lead with, and not known to have ended
        self._nursery: trio.Nursery | None = None
        self._watching: trio.CancelScope | None = None
        self._revision = 0  # of the document that this master wrote or, before it led, read
        self._doubted: bytes | None = None  # the change that may have been made
        self._error: str | None = None
        self._error_since_s = 0.0
        self._is_open = False
        self._complaints: dict[str, str | None] = {}

    @classmethod
    async def open(
        cls,
        settings: EtcdSettings,
        *,
        lease_s: float = LEASE_S,
        doors: Doors | None = None,
        clock: Callable[[], float] = boottime,
    ) -> EtcdConfigStore:
        """Reach etcd once.

        Args:
          clock: seconds; it must not stand still while the machine is suspended, or stopped.

        Raises:
          ConfigStoreError: no endpoint answers, or etcd refuses this client; one line with the remedy.
        """
        store = cls(settings, lease_s, doors or Doors(), clock)
        try:
            await store.read()
        except BaseException:
            await store.close()
            raise
        store._is_open = True
        return store

    # --- the document -------------------------------------------------------------------------------------------------

    async def read(self) -> tuple[dict[str, Any] | None, int]:
        answer = await self._commit([], [_read(self._document)], timeout_s=DOCUMENT_S)
        entry = answer.found[0][0] if answer.found[0] else None
        body, revision = (None, 0) if entry is None else (entry.value or b"", entry.revision)
        if body is not None and body == self._doubted:
            self._doubted = None
            self._revision = revision
        elif not self.leads:  # a leader goes by what it wrote: another's document must not pass for its own
            self._revision = revision
        return None if body is None else self._unpack(body), revision

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        body = pack(document)
        if len(body) > DOCUMENT_BYTES_MAX:
            raise NotChanged(
                f"{self._gateway.name}: the document would have {len(body):,} bytes, and etcd takes "
                f"{DOCUMENT_BYTES_MAX:,}; remove workers that are gone for good, or use fewer partitions"
            )
        doubted, self._doubted = self._doubted, body  # also where this call is cancelled
        try:
            answer = await self._commit(
                [_at(self._document, revision)],
                [_put(self._document, body)],
                [_read(self._document)],
                timeout_s=DOCUMENT_S,
            )
        except NotChanged:
            self._doubted = doubted
            raise
        if answer.succeeded:
            self._doubted = None
            self._revision = answer.revision
            return answer.revision
        found = answer.found[0][0] if answer.found[0] else None
        if answer.again:  # an endpoint did not answer; it may have made this very change, and it may not
            if found is not None and found.value == body and CHANGE in document:
                self._doubted = None
                self._revision = found.revision
                return found.revision
            raise ConfigStoreError(f"{self._gateway.name}: an endpoint did not answer a change that it may have made")
        self._doubted = doubted
        raise ConfigConflict(f"the document is at revision {0 if found is None else found.revision}, not {revision}")

    def _unpack(self, body: bytes) -> dict[str, Any]:
        try:
            return unpack(body)
        except ValueError as error:
            raise ConfigStoreError(
                f"{self._gateway.name}: its document is none of this trikv's: {error}; choose another /PREFIX"
            ) from error

    # --- leading ------------------------------------------------------------------------------------------------------

    def holds(self) -> bool:
        return self.leads and self._lead is not None and self._clock() < self._lead.held_until_s

    async def take_lead(self, since: str) -> bool:
        assert self._me is not None, "run comes first"
        async with self._turn:
            if self.leads:
                return True
            try:
                lease = await self._grant()
                value = write_leader(Leader(self._me, since))
                put = _put(self._leader_key, value, lease.id)
                answer = await self._commit([_at(self._leader_key, 0)], [put], [_read(self._leader_key)])
            except ConfigStoreError:
                self._end_leases()  # where the key was made all the same, it ends with its lease
                return False
            if answer.succeeded:
                self._lead = _Lead(lease, answer.revision, self._held_until_s(lease), since)
                self.leads = True
                self._roster.take(KeyState(self._leader_key, value, answer.revision, lease.id))
                self._learnt(changed=True)
                self._woken.notify()
                return True
            self._end_leases()
            self._take_in(answer)
            return False

    async def give_up_lead(self) -> None:
        self._lead = None
        if self._renewing is not None:
            self._renewing.cancel()
        if self.leads:
            self.leads = False
            self.changed.notify()
        with trio.move_on_after(GIVE_UP_S):
            async with trio.open_nursery() as nursery:
                for lease in tuple(self._leases):
                    nursery.start_soon(self._revoke, lease)

    async def _keep_lead(self) -> None:
        while True:
            if (lead := self._lead) is None:
                await self._woken.wait()
                continue
            again_s = self._every_s
            with trio.CancelScope() as self._renewing:
                try:
                    await self._renew(lead)
                    self._complain("the leader's lease", None)
                except ConfigStoreError as error:
                    self._complain("the leader's lease", error)
                    again_s = self._every_s / 3
            self._renewing = None
            await self._woken.wait(again_s)

    async def _renew(self, lead: _Lead) -> None:
        async with self._turn:
            if self._lead is lead and not await self._extend(lead) and self._lead is lead:
                await self._rebind(lead)

    async def _extend(self, lead: _Lead) -> bool:
        """Renew the lease that it has; is it certain that it was renewed?"""
        if lead.ended:
            return False
        raft_term = lead.lease.raft_term
        sent_s = self._clock()
        answered_in, ttl_s = await self._keep_alive(lead.lease.id)
        if ttl_s == 0 or answered_in != raft_term:
            return False
        proof = await self._commit([_at(self._leader_key, lead.revision)], [])
        if not proof.succeeded or proof.raft_term != raft_term or lead.ended:
            return False
        lead.lease.sent_s, lead.lease.ttl_s = sent_s, ttl_s
        lead.held_until_s = self._held_until_s(lead.lease)
        return True

    async def _rebind(self, lead: _Lead) -> None:
        """Bind the leader's key to a new lease; make the key anew if nobody leads and the document is still ours."""
        assert self._me is not None
        value = write_leader(Leader(self._me, lead.since))
        lease = await self._grant()
        revision = 0 if lead.ended else lead.revision
        for _ in range(_REBINDS_MAX):
            compares = [_at(self._leader_key, revision)]
            if revision == 0:
                compares.append(_at(self._document, self._revision))
            answer = await self._commit(
                compares,
                [_put(self._leader_key, value, lease.id)],
                [_read(self._leader_key), _read(self._document, keys_only=self._doubted is None)],
            )
            if self._lead is not lead:
                return
            if answer.succeeded:
                lead.lease, lead.revision, lead.ended = lease, answer.revision, False
                lead.held_until_s = self._held_until_s(lease)
                self._roster.take(KeyState(self._leader_key, value, answer.revision, lease.id))
                self._learnt(changed=True)
                self._end_leases(but=lease.id)
                return
            leader, document = answer.found
            self._take_in(answer)
            if self._lead is not lead:  # another master leads
                return
            if leader:  # ours, by a transaction that got no answer
                revision = leader[0].revision
            elif revision != 0:
                revision = 0
            elif document and self._doubted is not None and document[0].value == self._doubted:
                self._revision = document[0].revision
            else:
                self._lose("its lease ended, and the document was changed since")
                return

    def _held_until_s(self, lease: _Lease) -> float:
        return lease.sent_s + min(lease.ttl_s, self._lease_s) * (1 - LEASE_MARGIN)

    def _lose(self, why: str) -> None:
        _log.warning("this master leads no more: %s", why)
        self._lead = None
        self.leads = False
        self._end_leases()
        self.changed.notify()

    # --- what the store tells -----------------------------------------------------------------------------------------

    async def run(self, me: Candidate, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._me = me
        mine = await self._show(me)
        await self._list()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._keep_shown, me, mine)
                nursery.start_soon(self._watch)
                nursery.start_soon(self._keep_lead)
                task_status.started()
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True), trio.move_on_after(GIVE_UP_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.give_up_lead)
                    nursery.start_soon(self._revoke_shown)

    async def _show(self, me: Candidate) -> int:
        """Show this master among the others, under a new lease."""
        self._shown = lease = (await self._grant(to_lead=False)).id
        await self._commit([], [_put(self._masters + me.name, write_master(me), lease)])
        return lease

    async def _revoke_shown(self) -> None:
        await self._revoke(self._shown)

    async def _keep_shown(self, me: Candidate, lease: int) -> None:
        """Keep this master among those that run, and list them all."""
        while True:
            await trio.sleep(self._every_s)
            try:
                _, ttl_s = await self._keep_alive(lease)
                if ttl_s == 0 or me not in self.masters:
                    lease = await self._show(me)
                if await self._list() and self._watching is not None:
                    self._watching.cancel()  # it should have told
                self._complain("the list of masters", None)
            except ConfigStoreError as error:
                self._complain("the list of masters", error)

    async def _list(self) -> bool:
        """Read who leads and which masters there are; was that news?"""
        answer = await self._call("/v3/kv/range", {**self._of_roster(), "limit": MASTERS_MAX})
        found, revision = self._understand(lambda: (_entries(answer), whole(member(answer, "header"), "revision")))
        if revision < self._roster.revision:
            # A member that is behind, or a store that was put back from a backup: the consensus knows.
            committed = await self._commit([], [{"request_range": self._of_roster()}])
            found, revision = committed.found[0], committed.revision
            if revision < self._roster.revision:
                _log.warning("%s is at an earlier revision than before: it was put back", self._gateway.name)
                self._roster.forget()
                self._gateway.raft_term = 0
        changed = self._roster.take_list(found, revision)
        self._learnt(changed)
        return changed

    def _of_roster(self) -> dict[str, Any]:
        """The leader's key, those of the masters, and what lies between: none of ours does."""
        return {"key": _base64(self._leader_key.encode()), "range_end": _base64(_after(self._masters))}

    async def _watch(self) -> None:
        again_s = 0.1
        while True:
            created = {**self._of_roster(), "start_revision": str(self._roster.revision + 1)}
            began_s = trio.current_time()
            with trio.CancelScope() as self._watching:
                try:
                    await self._gateway.follow("/v3/watch", {"create_request": created}, 1.0, self._told)
                except EtcdRefusal as error:
                    self._complain("the watch", error)
                except ConfigStoreError:
                    pass  # the list of masters tells of an outage
            self._watching = None
            again_s = 0.1 if trio.current_time() - began_s > self._every_s else min(2 * again_s, self._every_s)
            await trio.sleep(again_s)

    def _told(self, result: object) -> None:
        if not isinstance(result, dict):
            raise Nonsense("a result is no object")
        if result.get("canceled"):
            raise ConfigStoreError(f"{self._gateway.name} ended the watch")
        changed = False
        for event in members(result, "events"):
            entry = _entry(member(event, "kv"), deleted=event.get("type") == "DELETE")
            if self._is_of_roster(entry.key):
                changed = self._roster.take(entry) or changed
        self._learnt(changed)

    def _is_of_roster(self, key: str) -> bool:
        return key == self._leader_key or key.startswith(self._masters)

    def _take_in(self, answer: _Committed) -> None:
        """Learn who leads from a transaction that failed since the leader's key is not as it supposed."""
        for entry in answer.found[0]:
            self._learnt(self._roster.take(entry))

    def _learnt(self, changed: bool) -> None:
        self.leader, self.masters = self._roster.leader, self._roster.masters
        entry = self._roster.leader_entry
        lead = self._lead
        if lead is not None and max(self._roster.revision, 0 if entry is None else entry.revision) > lead.revision:
            if entry is None or entry.value is None:
                if not lead.ended:
                    lead.ended = True
                    lead.held_until_s = -math.inf
                    self._woken.notify()
            elif entry.revision > lead.revision and (self.leader is None or self.leader.master.name != self._name):
                self._lose(f"{'another' if self.leader is None else self.leader.master.address} leads")
        if changed:
            self.changed.notify()

    @property
    def _name(self) -> str:
        return "" if self._me is None else self._me.name

    # --- calls --------------------------------------------------------------------------------------------------------

    async def _call(self, path: str, body: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        return (await self._gateway.call(path, body, timeout_s or self._attempt_s)).body

    async def _commit(
        self,
        compares: Sequence[dict[str, Any]],
        then: Sequence[dict[str, Any]],
        otherwise: Sequence[dict[str, Any]] = (),
        *,
        timeout_s: float | None = None,
    ) -> _Committed:
        """A transaction through the consensus, whatever is in it."""
        nothing = {"request_delete_range": {"key": _base64(self._nothing.encode())}}
        body = {"compare": [*compares], "success": [*then, nothing], "failure": [*otherwise, nothing]}
        answer, again = await self._gateway.call("/v3/kv/txn", body, timeout_s or self._attempt_s)

        def understand() -> _Committed:
            succeeded = answer.get("succeeded", False)
            responses = members(answer, "responses")
            asked = [*(then if succeeded is True else otherwise), nothing]
            if not isinstance(succeeded, bool) or len(responses) != len(asked):
                raise Nonsense("a transaction has the wrong answers")
            found = [
                _entries(member(r, "response_range"))
                for r, a in zip(responses, asked, strict=True)
                if "request_range" in a
            ]
            header = member(answer, "header")
            return _Committed(succeeded, found, whole(header, "revision"), whole(header, "raft_term"), again)

        return self._understand(understand)

    async def _grant(self, *, to_lead: bool = True) -> _Lease:
        """A new lease. Its id is drawn here, so that it can be ended where there was no answer."""
        lease = int(self._doors.new_id(15), 16) + 1
        raft_term = self._gateway.raft_term
        if to_lead:
            self._leases.add(lease)
        sent_s = self._clock()
        answer = await self._call("/v3/lease/grant", {"ID": str(lease), "TTL": str(self._lease_s)})
        ttl_s = self._understand(lambda: whole(answer, "TTL"))
        return _Lease(lease, sent_s, ttl_s, raft_term)

    async def _keep_alive(self, lease: int) -> tuple[int, int]:
        """The raft_term in which it was answered, and the seconds; 0: the lease is none, any more."""
        try:
            answer = await self._call("/v3/lease/keepalive", {"ID": str(lease)})
        except EtcdRefusal as refusal:
            if refusal.no_such_lease:
                return 0, 0
            raise

        def understand() -> tuple[int, int]:
            result = member(answer, "result")
            return whole(member(result, "header"), "raft_term"), whole(result, "TTL")

        return self._understand(understand)

    async def _revoke(self, lease: int) -> None:
        """Try once to end a lease, and what is bound to it."""
        try:
            await self._call("/v3/lease/revoke", {"ID": str(lease)})
        except EtcdRefusal as refusal:
            if not refusal.no_such_lease:
                return
        except ConfigStoreError:
            return
        self._leases.discard(lease)

    def _end_leases(self, but: int | None = None) -> None:
        """End, soon, the leases that this master took to lead with."""
        for lease in self._leases - {but}:
            if self._nursery is not None:
                self._nursery.start_soon(self._revoke, lease)

    def _understand(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except Nonsense as error:
            raise ConfigStoreError(f"{self._gateway.name} does not answer like an etcd: {error}") from error

    # --- outages ------------------------------------------------------------------------------------------------------

    def _note(self, error: str | None) -> None:
        """A call was answered (None), or was not."""
        before, self._error = self._error, error
        if error is not None and before is None:
            self._error_since_s = trio.current_time()
            if self._is_open:
                _log.warning("%s; trying again", error)
        elif error is None and before is not None and self._is_open:
            _log.warning(
                "%s answers again, after %.1f s", self._gateway.name, trio.current_time() - self._error_since_s
            )

    def _complain(self, what: str, error: ConfigStoreError | None) -> None:
        """Log what is no outage (that was logged), once until it is over (None) or another."""
        told = None if error is None else str(error)
        if told not in (None, self._error, self._complaints.get(what)):
            _log.warning("%s: %s", what, told)
        self._complaints[what] = told

    def describe(self) -> dict[str, Any]:
        return {"kind": "etcd", "endpoints": self._gateway.describe(), "error": self._error}

    async def close(self) -> None:
        with trio.CancelScope(shield=True):
            await self._gateway.close()


# --- keys and values --------------------------------------------------------------------------------------------------


def pack(document: dict[str, Any]) -> bytes:
    plain = cbor2.dumps(document)
    small = zlib.compress(plain, 6)
    return _ZLIB + small if len(small) < len(plain) else _PLAIN + plain


def unpack(body: bytes) -> dict[str, Any]:
    """
    Raises:
      ValueError: it is no document.
    """
    form, rest = body[:1], body[1:]
    if form == _ZLIB:
        unpacker = zlib.decompressobj()
        try:
            rest = unpacker.decompress(rest, UNPACKED_BYTES_MAX)
        except zlib.error as error:
            raise ValueError("it is damaged") from error
        if not unpacker.eof:
            raise ValueError("it is damaged")
    elif form != _PLAIN:
        raise ValueError(f"it is of format {form.hex() or 'none'}, and this trikv reads 01 and 02")
    try:
        document = cbor2.loads(rest)
    except (cbor2.CBORDecodeError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError("it is damaged") from error
    if not isinstance(document, dict):
        raise ValueError("it is something else")
    return document


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(document: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(text(document, name), validate=True)
    except ValueError as error:
        raise Nonsense(f"{name!r} is not base64") from error


def _after(prefix: str) -> bytes:
    """The first key after all that begin with the prefix."""
    data = prefix.encode()
    return data[:-1] + bytes([data[-1] + 1])


def _at(key: str, revision: int) -> dict[str, Any]:
    """Compare: the key was last changed at that revision; 0: there is no such key."""
    return {"target": "MOD", "result": "EQUAL", "key": _base64(key.encode()), "mod_revision": str(revision)}


def _put(key: str, value: bytes, lease: int = 0) -> dict[str, Any]:
    return {"request_put": {"key": _base64(key.encode()), "value": _base64(value), "lease": str(lease)}}


def _read(key: str, *, keys_only: bool = False) -> dict[str, Any]:
    return {"request_range": {"key": _base64(key.encode()), "keys_only": keys_only}}


def _entries(answer: dict[str, Any]) -> list[KeyState]:
    return [_entry(kv) for kv in members(answer, "kvs")]


def _entry(kv: dict[str, Any], *, deleted: bool = False) -> KeyState:
    key = _bytes(kv, "key").decode(errors="replace")
    return KeyState(key, None if deleted else _bytes(kv, "value"), whole(kv, "mod_revision"), whole(kv, "lease"))
