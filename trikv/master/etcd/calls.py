"""The calls of etcd that a config store makes: transactions, leases, lists, watches.

*Through the consensus.* A transaction that has a write in it goes through the consensus of etcd's members. One that
only reads does not, and a member that is behind may answer it from the past; so may etcd 3.4.23 a read. So each
transaction here also deletes a key that nobody writes, which changes nothing and makes no history.

*Terms of the consensus.* etcd's members elect a leading one for each `raft_term`, and answers carry the term of the
last entry that the member had applied. If the answers before and after something have the same term, no other member
had become leading by then. `lead.py` needs that.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from trikv.master.configstore import ConfigStoreError
from trikv.master.etcd.answers import Nonsense, member, members, read_bytes, whole
from trikv.master.etcd.gateway import EtcdGateway, EtcdRefusal
from trikv.master.etcd.roster import KeyState
from trikv.net.doors import Doors

LIST_KEYS_MAX: Final = 1_000
WATCH_BEGINS_S: Final = 1.0
_ID_DIGITS: Final = 15  # of a lease: 60 of the 63 bits

T = TypeVar("T")
Operation = dict[str, Any]


class Keys:
    """Where things are in etcd. What follows the prefix is chosen so that a range has the roster and nothing else."""

    def __init__(self, prefix: str) -> None:
        self.document = f"{prefix}/document"
        self.leader = f"{prefix}/leader"
        self.masters = f"{prefix}/masters/"  # and the name of each
        self.nothing = f"{prefix}/nothing"  # is never written
        self.roster = {"key": _spell(self.leader), "range_end": _spell(f"{prefix}/masters0")}  # 0 comes after /

    def of_roster(self, key: str) -> bool:
        return key == self.leader or key.startswith(self.masters)


@dataclass(slots=True)
class EtcdLease:
    id: int
    sent_s: float  # by the clock of the one that asked for it, before it did
    ttl_s: int  # as etcd granted it
    raft_term: int  # it was granted in this term, or in a later one


@dataclass(frozen=True, slots=True)
class Transaction:
    """What became of one."""

    succeeded: bool  # the compares held
    found: Sequence[Sequence[KeyState]]  # by each of the reads that were carried out
    revision: int  # of the store, and of the keys that were written, if some were
    raft_term: int
    again: bool  # it may have been carried out before, too, by another endpoint


class EtcdCalls:
    """
    Args:
      attempt_s: how long an endpoint may take; then the next one is asked.

    Every call raises `ConfigStoreError` in one of its three forms (`gateway.py`).
    """

    def __init__(
        self, gateway: EtcdGateway, keys: Keys, doors: Doors, clock: Callable[[], float], attempt_s: float
    ) -> None:
        self.gateway = gateway
        self._nothing = {"request_delete_range": {"key": _spell(keys.nothing)}}
        self._roster = keys.roster
        self._doors = doors
        self._clock = clock
        self._attempt_s = attempt_s

    async def commit(
        self,
        compares: Sequence[Operation],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        attempt_s: float | None = None,
    ) -> Transaction:
        """A transaction through the consensus."""
        body = {
            "compare": [*compares],
            "success": [*then, self._nothing],
            "failure": [*otherwise, self._nothing],
        }
        answer, again = await self.gateway.call("/v3/kv/txn", body, attempt_s or self._attempt_s)

        def read() -> Transaction:
            succeeded = answer.get("succeeded", False)
            responses = members(answer, "responses")
            operations = then if succeeded is True else otherwise
            if not isinstance(succeeded, bool) or len(responses) != len(operations) + 1:
                raise Nonsense("a transaction has other parts than were asked for")
            found = [
                _states(member(response, "response_range"))
                for operation, response in zip(operations, responses, strict=False)
                if "request_range" in operation
            ]
            header = member(answer, "header")
            return Transaction(succeeded, found, whole(header, "revision"), whole(header, "raft_term"), again)

        return self._read(read)

    async def grant(self, ttl_s: int, known: set[int] | None = None) -> EtcdLease:
        """A new lease. Its id is drawn here and put in `known` at once, so that it can be ended whatever comes."""
        lease = int(self._doors.new_id(_ID_DIGITS), 16) + 1
        raft_term = self.gateway.raft_term
        if known is not None:
            known.add(lease)
        sent_s = self._clock()
        answer, _ = await self.gateway.call("/v3/lease/grant", {"ID": str(lease), "TTL": str(ttl_s)}, self._attempt_s)
        return EtcdLease(lease, sent_s, self._read(lambda: whole(answer, "TTL")), raft_term)

    async def keep_alive(self, lease: int) -> int:
        """The seconds that the lease has, by the member that answers; 0: there is no such lease."""
        try:
            answer, _ = await self.gateway.call("/v3/lease/keepalive", {"ID": str(lease)}, self._attempt_s)
        except EtcdRefusal as refusal:
            if refusal.no_such_lease:
                return 0
            raise

        return self._read(lambda: whole(member(answer, "result"), "TTL"))

    async def revoke(self, lease: int) -> bool:
        """Try once to end a lease, and delete the keys that are bound to it; did etcd answer?"""
        try:
            await self.gateway.call("/v3/lease/revoke", {"ID": str(lease)}, self._attempt_s)
        except EtcdRefusal:
            return True  # there is none any more; or there is no right to end it, and it ends by itself
        except ConfigStoreError:
            return False
        return True

    async def list_roster(self) -> tuple[Sequence[KeyState], int]:
        """The keys of the leader and the masters, and the revision; plainly read, so perhaps of the past."""
        body = {**self._roster, "limit": str(LIST_KEYS_MAX)}
        answer, _ = await self.gateway.call("/v3/kv/range", body, self._attempt_s)
        return self._read(lambda: (_states(answer), whole(member(answer, "header"), "revision")))

    async def commit_roster(self) -> tuple[Sequence[KeyState], int]:
        """The same through the consensus."""
        answer = await self.commit([], [{"request_range": {**self._roster, "limit": str(LIST_KEYS_MAX)}}])
        return answer.found[0], answer.revision

    async def watch_roster(self, after: int, told: Callable[[Sequence[KeyState]], None]) -> None:
        """Give the changes of those keys after that revision to `told`, until the stream ends, which raises."""

        def read(result: dict[str, Any]) -> None:
            if result.get("canceled"):  # what it was to begin with is compacted away, or the user's token is none
                self.gateway.forget_token()
                raise ConfigStoreError(f"{self.gateway.name} ended the watch")
            told([_state(member(event, "kv"), event.get("type") == "DELETE") for event in members(result, "events")])

        body = {"create_request": {**self._roster, "start_revision": str(after + 1)}}
        await self.gateway.follow("/v3/watch", body, WATCH_BEGINS_S, read)

    def _read(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except Nonsense as error:
            raise ConfigStoreError(f"{self.gateway.name} does not answer like an etcd: {error}") from error


# --- what goes into a transaction -------------------------------------------------------------------------------------


def is_at(key: str, revision: int) -> Operation:
    """Compare: the key was last written at that revision; 0: there is no such key."""
    return {"target": "MOD", "result": "EQUAL", "key": _spell(key), "mod_revision": str(revision)}


def put(key: str, value: bytes, lease: int = 0) -> Operation:
    return {"request_put": {"key": _spell(key), "value": base64.b64encode(value).decode(), "lease": str(lease)}}


def get(key: str, *, without_value: bool = False) -> Operation:
    return {"request_range": {"key": _spell(key), "keys_only": without_value}}


def _spell(key: str) -> str:
    return base64.b64encode(key.encode()).decode()


def _states(answer: dict[str, Any]) -> list[KeyState]:
    return [_state(kv) for kv in members(answer, "kvs")]


def _state(kv: dict[str, Any], deleted: bool = False) -> KeyState:
    key = read_bytes(kv, "key").decode(errors="replace")
    return KeyState(key, None if deleted else read_bytes(kv, "value"), whole(kv, "mod_revision"))
