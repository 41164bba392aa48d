"""Many operations in one request, each with an outcome of its own: `POST /v1/batch`.

    {"items": [{"op": "put", "key": "k", "value": "v"}, {"op": "get", "key": "k"}, {"op": "delete", "key": "k"}]}
    {"results": [{"status": 204, "outcome": "committed", "etag": "3.0-17"}, ...]}

A batch is not atomic: an item that is refused undoes no other. Items of one key are carried out in their order, items
of different keys side by side. An item may have `if_match` or `if_none_match`: an ETag without quotes, a list of them,
or `"*"`. With `"encoding": "base64"` the item's key and value are base64, and so is the value in its result. A result
has what the item would have been answered as a request of its own; the result of an item that failed is a problem
document.

Programs may send and receive `application/cbor` instead: the same maps, with keys and values as byte strings.

A request that is malformed anywhere is refused as a whole, before anything is done. A batch has at most `ITEMS_MAX`
items and `BODY_BYTES_MAX` bytes. The answer is bounded too: once values of `BODY_BYTES_MAX` have been read, further
gets are refused. `AT_ONCE_MAX` keys are under way at a time, so that one batch cannot fill the coordinator's queue. The
request's deadline holds for all items together: items that still wait when it passes are refused.

Each item is the operation that it would be as a request of its own. What a batch saves is around it: the items share
one request, one deadline and, as long as they wait for replicas alone, one task (`coordinator/steps.py`). What they
send to a worker at one time leaves in one frame. On two cores of a shared AMD EPYC, a put in a batch of 64 takes all
nodes together 150 us of processor time, a put by itself 1,000, and a put among 31 others 220.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from io import BytesIO
from typing import Any, Final, NamedTuple

import cbor2
import trio

from trikv.coordinator.coordinator import Coordinator
from trikv.coordinator.deadlines import SharedLimit, limit_of_task
from trikv.coordinator.steps import carry_out
from trikv.core.errors import Outcome, Refused, TrikvError
from trikv.core.frames import REFUSED_TAGS, has_more_items
from trikv.core.precondition import Expect
from trikv.core.record import Version
from trikv.web.conditions import stamps_of
from trikv.web.message import (
    Request,
    Response,
    dump_json,
    json_answer,
    media_type,
    members_of,
    parse_json,
    parse_query,
    problem_document,
    read_bytes,
    spell,
    timeout_of,
)
from trikv.web.services import Services

ITEMS_MAX: Final = 1000
BODY_BYTES_MAX: Final = 8 * 1024 * 1024
AT_ONCE_MAX: Final = 64
CBOR: Final = "application/cbor"
CBOR_ITEMS_MAX: Final = 64 * 1024  # an operation has 11 at most, and more only in its list of ETags

_REQUIRED: Final = ("op", "key")
_OPTIONAL_IN_CBOR: Final = ("value", "if_match", "if_none_match")
_OPTIONAL: Final = (*_OPTIONAL_IN_CBOR, "encoding")
_COMMITTED: Final = Outcome.COMMITTED.value
_DEPTH_MAX: Final = 16
_SPELLED_AT_ONCE_BYTES: Final = 1024 * 1024
_NOT_BEGUN: Final = "the time for the batch was over before this item's turn came"


class Item(NamedTuple):
    """One operation. `encoding`: how its result writes bytes; None in CBOR, which has byte strings."""

    op: str
    key: bytes
    value: bytes
    expect: Expect | None
    encoding: str | None


async def batch(services: Services, request: Request) -> Response:
    timeout_s = timeout_of(parse_query(request.query, "timeout"))
    in_cbor = media_type(request) == CBOR
    document = members_of(_parse_cbor(request.body) if in_cbor else parse_json(request), "the body", required=["items"])
    rows = document["items"]
    if not isinstance(rows, list) or len(rows) > ITEMS_MAX:
        raise Refused("bad_request", f"items must be a list of at most {ITEMS_MAX:,}")
    items = [_read_item(row, f"item {index}", in_cbor=in_cbor) for index, row in enumerate(rows)]
    results = await _Run(services.coordinator, items, timeout_s).results()
    if in_cbor:
        return Response(200, {"content-type": CBOR, "cache-control": "no-store"}, cbor2.dumps({"results": results}))
    return await spell_json(results)


async def spell_json(results: list[dict[str, Any]]) -> Response:
    """The answer in JSON, result by result: a value of a megabyte takes milliseconds, and others are served between."""
    pieces, bytes_since = [b'{"results": ['], 0
    for result in results:
        piece = dump_json(result)
        pieces += (b", ", piece) if len(pieces) > 1 else (piece,)
        bytes_since += len(piece)
        if bytes_since > _SPELLED_AT_ONCE_BYTES:
            bytes_since = 0
            await trio.lowlevel.checkpoint()
    return json_answer(b"".join([*pieces, b"]}\n"]))


class _Run:
    """One batch under way."""

    def __init__(self, coordinator: Coordinator, items: list[Item], timeout_s: float | None) -> None:
        self._coordinator = coordinator
        self._items = items
        self._deadline_s = trio.current_time() + (self._coordinator.timeout_s if timeout_s is None else timeout_s)
        self._results: list[dict[str, Any] | None] = [None] * len(items)
        self._answer_bytes = 0

    async def results(self) -> list[dict[str, Any]]:
        by_key: defaultdict[bytes, list[int]] = defaultdict(list)
        for index, item in enumerate(self._items):
            by_key[item.key].append(index)
        with trio.CancelScope(deadline=self._deadline_s) as scope:
            await carry_out((partial(self._work, indices, scope) for indices in by_key.values()), at_once=AT_ONCE_MAX)
        return [_not_begun() if result is None else result for result in self._results]

    async def _work(self, indices: list[int], scope: trio.CancelScope) -> None:
        """Carry out the items of one key."""
        limit = SharedLimit(scope)
        limit_of_task.set(limit)
        for index in indices:
            try:
                self._results[index] = await self._result(self._items[index])
            finally:
                if limit.failure is not None:
                    self._results[index] = problem_document(limit.failure)

    async def _result(self, item: Item) -> dict[str, Any]:
        try:
            return await self._carry_out(item)
        except TrikvError as error:
            return problem_document(error)

    async def _carry_out(self, item: Item) -> dict[str, Any]:
        left_s = self._deadline_s - self._coordinator.now()
        if left_s <= 0:
            raise Refused("unanswered", _NOT_BEGUN)
        if item.op == "get":
            return await self._get(item, left_s)
        write = (
            partial(self._coordinator.put, item.key, item.value)
            if item.op == "put"
            else partial(self._coordinator.delete, item.key)
        )
        return _committed(204, await write(expect=item.expect, timeout_s=left_s))

    async def _get(self, item: Item, left_s: float) -> dict[str, Any]:
        self._check_room_in_answer()
        record = await self._coordinator.get(item.key, timeout_s=left_s)
        if record is None or record.value is None:
            raise TrikvError("not_found", "there is no value under this key")
        if item.expect is not None and not item.expect.holds(record):
            raise Refused("precondition_failed", item.expect.describe_failure(record))
        self._check_room_in_answer()  # others that were under way may have filled it
        self._answer_bytes += len(record.value)
        value = {"value": record.value} if item.encoding is None else spell("value", record.value, item.encoding)
        return {**_committed(200, record.stamp), **value}

    def _check_room_in_answer(self) -> None:
        """
        Raises:
          Refused: the values in the answer have more bytes than they may already.
        """
        if self._answer_bytes > BODY_BYTES_MAX:
            raise Refused("overloaded", f"this batch has read values of {BODY_BYTES_MAX:,} bytes already")


def _not_begun() -> dict[str, Any]:
    return problem_document(Refused("unanswered", _NOT_BEGUN))


def _committed(status: int, stamp: Version) -> dict[str, Any]:
    return {"status": status, "outcome": _COMMITTED, "etag": str(stamp)}


# --- reading ----------------------------------------------------------------------------------------------------------


def _read_item(row: Any, what: str, *, in_cbor: bool) -> Item:
    members = members_of(row, what, required=_REQUIRED, optional=_OPTIONAL_IN_CBOR if in_cbor else _OPTIONAL)
    op = members["op"]
    if op not in ("put", "get", "delete"):
        raise Refused("bad_request", f"op of {what} must be put, get or delete")
    if (op == "put") != ("value" in members):
        raise Refused("bad_request", f"{what} lacks its value" if op == "put" else f"{what}: a {op} has no value")
    encoding = None if in_cbor else members.get("encoding", "text")
    if not in_cbor and encoding not in ("text", "base64"):
        raise Refused("bad_request", f"encoding of {what} must be text or base64")
    return Item(
        op,
        _read_field(members["key"], encoding, f"the key of {what}"),
        _read_field(members.get("value", ""), encoding, f"the value of {what}"),
        _read_expect(members, what),
        encoding,
    )


def _read_field(field: Any, encoding: str | None, what: str) -> bytes:
    if encoding is None and isinstance(field, bytes):
        return field
    if not isinstance(field, str):
        raise Refused("bad_request", f"{what} must be a string")
    return read_bytes(field.encode(), encoding or "text", what)


def _read_expect(members: dict[str, Any], what: str) -> Expect | None:
    if "if_match" not in members and "if_none_match" not in members:
        return None
    if "if_match" in members and "if_none_match" in members:
        raise Refused("bad_request", f"{what} has both if_match and if_none_match")
    for name, any_value, these in (
        ("if_match", Expect.present, Expect.one_of),
        ("if_none_match", Expect.absent, Expect.none_of),
    ):
        if name not in members:
            continue
        tags = members[name] if isinstance(members[name], list) else [members[name]]
        if not tags or not all(isinstance(tag, str) for tag in tags):
            raise Refused("bad_request", f'{name} of {what} must be an ETag, a list of them, or "*"')
        return any_value() if tags == ["*"] else these(stamps_of(tag.strip('"') for tag in tags))
    return None


def _parse_cbor(body: bytes) -> Any:
    """
    Raises:
      Refused: the body is not exactly one item of plain CBOR, without tags, indefinite lengths and repeated keys.
    """
    if has_more_items(body, CBOR_ITEMS_MAX):
        raise Refused("bad_request", f"the body has more than {CBOR_ITEMS_MAX:,} items of CBOR")
    stream = BytesIO(body)
    decoder = cbor2.CBORDecoder(
        stream,
        semantic_decoders=REFUSED_TAGS,
        max_depth=_DEPTH_MAX,
        allow_indefinite=False,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
    )
    try:
        item = decoder.decode()
    except cbor2.CBORDecodeError as error:
        raise Refused("bad_request", f"the body is not CBOR that is read here: {error}") from error
    if stream.tell() != len(body):
        raise Refused("bad_request", f"the body has {len(body) - stream.tell()} bytes after its item")
    return item
