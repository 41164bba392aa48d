"""The calls between nodes: their shapes, and the checks on arrival.

Calls travel as lists rather than maps, because every put encodes several of them. A call to a worker's records names
the partition, the epoch, and the incarnation that it is meant for: a later incarnation of the same worker must not
answer it. This table lists all that a node can be asked.

    STORE      [partition, epoch, incarnation, key, *record]              -> []
               [partition, epoch, incarnation, key, *record, onward]      -> []    along a chain
    FETCH      [partition, epoch, incarnation, key]                       -> record, or [] for none
    LIST       [incarnation, [[partition, epoch], ...], prefix, after, limit, with_values]
                                                               -> [[stale partition, promised], ...], rows, more
    DISCARD    [partition, epoch, incarnation]                            -> []
    DIGEST     [incarnation, [[partition, epoch], ...]]
                 -> [[stale partition, promised], ...], [[partition, digest, rows, size in bytes, keys], ...]
    FORGET     [partition, epoch, incarnation, key, version epoch, version seq]   -> []
    HEARTBEAT  []      -> [keys, full, storage, max_keys, process, master, starts, batches, past, size]
                       -> [keys, full, storage, max_keys, process, master, starts, batches, past, size, labels]
    CONFIRM    [incarnation, start]               (master to worker)      -> []
    RENEW      [incarnation, start, reason]       (master to worker)      -> []
    ENLIST     [address]                     (worker to master)           -> [], or a sentence
    PASS_ON    [request id, method, route, path, query, headers, body, parts]     (standby to master)
                                                                          -> [status, headers, body, rest]
    PASS_PART  [parts, piece]                (standby to master)          -> []
    PASS_REST  [rest]                        (standby to master)          -> [piece, rest]

A record is [version epoch, version seq, stamp epoch, stamp seq, value or None]. It lies flat in a call or an answer: a
list within a list costs as much to encode, decode and check as five numbers. `onward` is the rest of a chain, as
[[worker, incarnation, address], ...]. A row is [partition, key, *record]. A LIST without values carries an empty value
in place of each value.

The three last calls pass an HTTP request on. `route` is the path of its route. `headers` is [name, value, ...]. A body
of more than `PIECE_BYTES` goes ahead in pieces of that size, which PASS_ON names by the number `parts` (0: there are
none); it has the last piece itself. A large answer comes in pieces too: while `rest` is not 0, PASS_REST asks for the
next one. A master that does not lead answers all four calls to a master with the fault NOT_LEADING and [address of the
leader], or [] if it knows none.

`labels` is [[name, value], ...], and left out where a worker has none. FORGET removes a record if it is a tombstone of
exactly that version. It is acknowledged in either case. CONFIRM and RENEW are for one start of a worker
(`core/lineage.py`) and for no other start.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from trikv.core.digest import Summary
from trikv.core.labels import LABELS_MAX, Labels, check_labels
from trikv.core.lineage import STARTS_MAX, Start, Starts
from trikv.core.record import EPOCH_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX, Record, Version
from trikv.core.ring import PARTITION_COUNT
from trikv.core.session import PeerError, is_name

LIST_LIMIT_MAX: Final = 10_000
REASON_MAX: Final = 200  # characters of the reason, which a person reads
PIECE_BYTES: Final = 1024 * 1024 + 64 * 1024  # of a body that is passed on: a value of the largest size is one piece
HEADERS_MAX: Final = 128
LIST_BYTES_MAX: Final = 4 * 1024 * 1024  # one more row of the largest size still fits the frame


class Op(IntEnum):
    STORE = 1
    FETCH = 2
    LIST = 3
    DISCARD = 4
    HEARTBEAT = 5
    ENLIST = 6
    DIGEST = 7
    FORGET = 8
    CONFIRM = 9
    RENEW = 10
    PASS_ON = 11
    PASS_PART = 12
    PASS_REST = 13


PASSED_HEAD_BYTES_MAX: Final = 64 * 1024  # of a request that is passed on, without its body; a front takes less

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,256}")
_HEADER_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")

# Plain integers compare twice as fast as members, and `tuple.__new__` takes half the time of a tuple's own class.
_STORE: Final = int(Op.STORE)
_FETCH: Final = int(Op.FETCH)
_new: Final = tuple.__new__


class Full(IntEnum):
    """What a worker has no room for."""

    NO = 0
    KEYS = 1  # no room for another key: it holds as many as it may
    DISK = 2  # no room for values: its disk is nearly full


class Hop(NamedTuple):
    """A further member of a chain, with its address."""

    worker: str
    incarnation: str
    address: str


class Store(NamedTuple):
    partition: int
    epoch: int
    incarnation: str
    key: bytes
    record: Record
    onward: list[Hop]


class Fetch(NamedTuple):
    partition: int
    epoch: int
    incarnation: str
    key: bytes


class List(NamedTuple):
    incarnation: str
    partitions: list[tuple[int, int]]
    prefix: bytes
    after: bytes | None
    limit: int
    with_values: bool


class Discard(NamedTuple):
    partition: int
    epoch: int
    incarnation: str


class Digest(NamedTuple):
    incarnation: str
    partitions: list[tuple[int, int]]


class Forget(NamedTuple):
    partition: int
    epoch: int
    incarnation: str
    key: bytes
    version: Version


class Confirm(NamedTuple):
    """The document names this start: the worker may serve."""

    incarnation: str
    start: Start


class Renew(NamedTuple):
    """The directory is an older copy: the worker becomes another member."""

    incarnation: str
    start: Start
    reason: str


class Heartbeat(NamedTuple):
    pass


class Enlist(NamedTuple):
    address: str


class PassOn(NamedTuple):
    """An HTTP request that a standby passes on. `path`, `query` and `headers` are as in the front's own request."""

    request_id: str
    method: str
    route: tuple[str, str]  # its method and path
    path: bytes
    query: bytes
    headers: Mapping[str, str]
    body: bytes
    parts: int = 0

    def to_wire(self) -> list[Any]:
        flat = [text for header in self.headers.items() for text in header]
        return [self.request_id, self.method, *self.route, self.path, self.query, flat, self.body, self.parts]


class PassPart(NamedTuple):
    parts: int
    piece: bytes


class PassRest(NamedTuple):
    rest: int


class PassedAnswer(NamedTuple):
    """The answer to a request that was passed on. `rest` 0: `body` is all of it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    rest: int = 0

    def to_wire(self) -> list[Any]:
        flat = [text for header in self.headers.items() for text in header]
        return [self.status, flat, self.body, self.rest]


class Vitals(NamedTuple):
    """What a worker says of itself with every heartbeat.

    `process` is drawn at each start. `master` is the incarnation of the master of the highest term that has ever
    greeted the worker. `starts` and `batches` say what its directory has seen (`core/lineage.py`). `past` says, for a
    person, why the worker is another member than it once was; it is empty otherwise. `size_bytes` counts the keys and
    values of its records, not what they take on the disk.
    """

    keys: int
    full: Full
    storage: str
    max_keys: int | None
    process: str
    master: str
    starts: Starts
    batches: int
    past: str
    size_bytes: int
    labels: Labels = MappingProxyType({})

    def to_wire(self) -> list[Any]:
        wire = [*self[:6], [str(start) for start in self.starts], *self[7:10]]
        return [*wire, [[name, value] for name, value in self.labels.items()]] if self.labels else wire


RpcRequest = (
    Store | Fetch | List | Discard | Digest | Forget | Confirm | Renew | Heartbeat | Enlist
    | PassOn | PassPart | PassRest
)  # fmt: skip


def record_to_wire(record: Record) -> list[Any]:
    version, stamp, value = record
    return [version.epoch, version.seq, stamp.epoch, stamp.seq, value]


def without_value(record: Record) -> Record:
    """The record with an empty value in place of its own; a tombstone as it is."""
    return record if record.value is None else record._replace(value=b"")


def record_from_wire(row: Any) -> Record:
    if type(row) is list and len(row) == 5:
        epoch, seq, stamp_epoch, stamp_seq, value = row
        if (
            type(epoch) is type(seq) is type(stamp_epoch) is type(stamp_seq) is int
            and 0 <= epoch <= EPOCH_MAX
            and 0 <= seq <= EPOCH_MAX
            and 0 <= stamp_epoch <= EPOCH_MAX
            and 0 <= stamp_seq <= EPOCH_MAX
            and (value is None or (type(value) is bytes and len(value) <= VALUE_BYTES_MAX))
        ):
            version = _new(Version, (epoch, seq))
            is_of_client = seq == stamp_seq and epoch == stamp_epoch  # as most are: one object will do
            stamp = version if is_of_client else _new(Version, (stamp_epoch, stamp_seq))
            return _new(Record, (version, stamp, value))
    raise PeerError("a record that is not one")


def fetched_from_wire(payload: list[Any], epoch: int = EPOCH_MAX) -> Record | None:
    """The answer to a FETCH under this epoch. A worker that serves the epoch holds no record of a later one."""
    return _record_until(payload, epoch) if payload else None


def listed_from_wire(payload: list[Any]) -> tuple[list[tuple[int, int]], list[tuple[int, bytes, Record]], bool]:
    """A LIST's answer: the stale partitions with what was promised of them, the rows, and whether there is more."""
    match payload:
        case [list(stale), list(rows), bool(more)] if rows or not more:
            return _pairs(stale), [_row(row) for row in rows], more
    raise PeerError("a listing that is not one")


def check_listed(
    rows: Sequence[tuple[int, bytes, Record]],
    partitions: Container[int],
    prefix: bytes,
    after: bytes | None,
    limit: int,
) -> None:
    """Check that these rows answer a LIST of those partitions with those bounds.

    Raises:
      PeerError: they do not. A row of something else, or out of order, would be taken for a key that exists.
    """
    last = after
    for partition, key, _ in rows:
        if partition not in partitions or not key.startswith(prefix) or (last is not None and key <= last):
            raise PeerError("a listing of what was not asked for")
        last = key
    if len(rows) > limit:
        raise PeerError("a listing of more than was asked for")


def digests_from_wire(payload: list[Any]) -> tuple[list[tuple[int, int]], dict[int, Summary]]:
    """A DIGEST's answer: the stale partitions with what was promised of them, and a summary of each other one."""
    match payload:
        case [list(stale), list(rows)]:
            return _pairs(stale), dict(map(_summary, rows))
    raise PeerError("digests that are none")


def passed_from_wire(payload: list[Any]) -> PassedAnswer:
    """A PASS_ON's answer. Its headers can be sent to a client as they are."""
    match payload:
        case [int(status), list(headers), bytes(body), int(rest)] if 200 <= status <= 599 and _is_count(rest):
            return PassedAnswer(status, _headers(headers), body, rest)
    raise PeerError("an answer to a request that is none")


def rest_from_wire(payload: list[Any]) -> tuple[bytes, int]:
    """A PASS_REST's answer: the next piece, and the number under which to ask for the one after it, or 0."""
    match payload:
        case [bytes(piece), int(rest)] if piece and _is_count(rest):
            return piece, rest
    raise PeerError("a piece of an answer that is none")


def is_epoch(payload: list[Any]) -> bool:
    """Is this the payload of STALE, the epoch that was promised?"""
    return len(payload) == 1 and type(payload[0]) is int and 0 <= payload[0] <= EPOCH_MAX


def vitals_from_wire(payload: list[Any]) -> Vitals:
    if len(payload) in (10, 11):
        keys, full, storage, max_keys, process, master, starts, batches, past, size_bytes = payload[:10]
        if (
            _is_count(keys)
            and type(full) is int
            and full in Full._value2member_map_
            and (max_keys is None or isinstance(max_keys, int))
            and all(isinstance(name, str) and (is_name(name) or not name) for name in (storage, process, master))
            and isinstance(starts, list)
            and 1 <= len(starts) <= STARTS_MAX
            and _is_count(batches)
            and isinstance(past, str)
            and _is_count(size_bytes)
        ):
            known = tuple(map(_start, starts))
            told, labels = past[:REASON_MAX], _labels(payload[10]) if len(payload) == 11 else {}
            return Vitals(
                keys, Full(full), storage, max_keys, process, master, known, batches, told, size_bytes, labels
            )
    raise PeerError("a heartbeat that is not one")


def parse(op: int, arguments: list[Any]) -> RpcRequest:
    """The call as a value.

    Raises:
      PeerError: not a call of this protocol.
    """
    # The two calls of the hot path come first, without `match`: a pattern takes four times as long.
    if op == _STORE:
        if (count := len(arguments)) == 9 or count == 10:
            partition, epoch, incarnation, key = arguments[:4]
            onward = arguments[9] if count == 10 else []
            if _is_addressed(partition, epoch, incarnation, key) and type(onward) is list:
                record = _record_until(arguments[4:9], epoch)
                return _new(Store, (partition, epoch, incarnation, key, record, [_hop(hop) for hop in onward]))
    elif op == _FETCH:
        if len(arguments) == 4:
            partition, epoch, incarnation, key = arguments
            if _is_addressed(partition, epoch, incarnation, key):
                return _new(Fetch, (partition, epoch, incarnation, key))
    elif op == Op.HEARTBEAT and not arguments:
        return Heartbeat()
    match op, arguments:
        case Op.LIST, [str(incarnation), list(partitions), bytes(prefix), bytes() | None as after, int(limit), values]:
            pairs = _pairs(partitions)
            if 1 <= limit <= LIST_LIMIT_MAX:
                return List(incarnation, pairs, prefix, after, limit, bool(values))
        case Op.DISCARD, [int(partition), int(epoch), str(incarnation)] if _sane(partition, epoch, b"-"):
            return Discard(partition, epoch, incarnation)
        case Op.DIGEST, [str(incarnation), list(partitions)]:
            return Digest(incarnation, _pairs(partitions))
        case Op.FORGET, [int(partition), int(epoch), str(incarnation), bytes(key), int(of_epoch), int(seq)]:
            if _sane(partition, epoch, key) and _sane(0, of_epoch, b"-") and _sane(0, seq, b"-"):
                return Forget(partition, epoch, incarnation, key, Version(of_epoch, seq))
        case Op.CONFIRM, [str(incarnation), start]:
            return Confirm(incarnation, _start(start))
        case Op.RENEW, [str(incarnation), start, str(reason)]:
            return Renew(incarnation, _start(start), reason[:REASON_MAX])
        case Op.ENLIST, [str(address)] if is_name(address):
            return Enlist(address)
        case Op.PASS_ON, [
            str(request_id), str(method), str(of_route), str(route), bytes(path), bytes(query), list(headers),
            bytes(body), int(parts),
        ] if _is_count(parts):  # fmt: skip
            known = _headers(headers)
            if sum(map(len, [request_id, method, of_route, route, path, query, *headers])) <= PASSED_HEAD_BYTES_MAX:
                return PassOn(request_id, method, (of_route, route), path, query, known, body, parts)
        case Op.PASS_PART, [int(parts), bytes(piece)] if _is_count(parts) and len(piece) == PIECE_BYTES:
            return PassPart(parts, piece)
        case Op.PASS_REST, [int(rest)] if _is_count(rest):
            return PassRest(rest)
    raise PeerError(f"a call (op {op}) that this protocol does not have, or of another shape")


def _record_until(row: Any, epoch: int) -> Record:
    """A record of this epoch at most. A record of a later epoch would win over all writes until then."""
    record = record_from_wire(row)
    if record.version.epoch > epoch:
        raise PeerError("a record of an epoch that is still to come")
    return record


def _start(text: Any) -> Start:
    if isinstance(text, str):
        with suppress(ValueError):
            return Start.parse(text)
    raise PeerError("a start that is none")


def _labels(pairs: Any) -> dict[str, str]:
    if isinstance(pairs, list) and len(pairs) <= LABELS_MAX:
        texts = [pair for pair in pairs if isinstance(pair, list) and len(pair) == 2]
        labels = {n: v for n, v in texts if isinstance(n, str) and isinstance(v, str)}
        if len(labels) == len(pairs):
            with suppress(ValueError):
                check_labels(labels)
                return labels
    raise PeerError("labels that are none")


def _headers(flat: list[Any]) -> dict[str, str]:
    """Headers of a request or an answer, each at most once, and none that could end a line."""
    if len(flat) % 2 == 0 and len(flat) <= 2 * HEADERS_MAX and all(isinstance(text, str) for text in flat):
        headers = dict(zip(flat[::2], flat[1::2], strict=True))
        if 2 * len(headers) == len(flat) and all(
            _HEADER_NAME.fullmatch(name) and _HEADER_VALUE.fullmatch(value) for name, value in headers.items()
        ):
            return headers
    raise PeerError("headers that are none")


def _hop(hop: Any) -> Hop:
    match hop:
        case [str(worker), str(incarnation), str(address)]:
            return Hop(worker, incarnation, address)
    raise PeerError("a chain's member that is not [worker, incarnation, address]")


def _pairs(pairs: list[Any]) -> list[tuple[int, int]]:
    """Each partition at most once, so that the answer fits a frame."""
    found = [_pair(pair) for pair in pairs] if len(pairs) <= PARTITION_COUNT else []
    if len({partition for partition, _ in found}) != len(pairs):
        raise PeerError("a partition is named twice, or there are more of them than a cluster has")
    return found


def _pair(pair: Any) -> tuple[int, int]:
    match pair:
        case [int(partition), int(epoch)] if _sane(partition, epoch, b"-"):
            return partition, epoch
    raise PeerError("a partition that is not [partition, epoch]")


def _row(row: Any) -> tuple[int, bytes, Record]:
    match row:
        case [int(partition), bytes(key), *record]:
            return partition, key, record_from_wire(record)
    raise PeerError("a listed row that is not [partition, key, *record]")


def _summary(row: Any) -> tuple[int, Summary]:
    if isinstance(row, list) and len(row) == 5 and all(type(n) is int and 0 <= n < 1 << 64 for n in row):
        partition, *numbers = row
        summary = Summary(*numbers)
        if _sane(partition, 0, b"-") and summary.tombstones >= 0:
            return partition, summary
    raise PeerError("a digest that is not [partition, digest, rows, size in bytes, keys]")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= EPOCH_MAX


def _is_addressed(partition: Any, epoch: Any, incarnation: Any, key: Any) -> bool:
    return (
        type(partition) is type(epoch) is int  # and no bool
        and type(incarnation) is str
        and type(key) is bytes
        and 0 <= partition < 0xFFFF
        and 0 <= epoch <= EPOCH_MAX
        and 1 <= len(key) <= KEY_BYTES_MAX
    )


def _sane(partition: int, epoch: int, key: bytes) -> bool:
    if isinstance(partition, bool) or isinstance(epoch, bool):
        return False  # Python counts them as integers, and the notes on disk would spell them out
    return 0 <= partition < 0xFFFF and 0 <= epoch <= EPOCH_MAX and 1 <= len(key) <= KEY_BYTES_MAX
