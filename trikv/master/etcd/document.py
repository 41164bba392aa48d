"""The cluster's document as one value in etcd, changed by a transaction that compares its mod_revision.

The value is a format byte and CBOR, compressed where that makes it smaller. etcd takes requests of 1.5 MiB, unless it
is started with another --max-request-bytes. 1,024 partitions (as every cluster has) of 1,000 workers, each partition
with three configurations of three replicas, make 90 KB. 16,384 such partitions would make 1.2 MB, which is near the
limit. What is beyond it is refused (`NotChanged`), with the remedy.

What it costs: packing takes 4 ms for 50 workers, in a thread. Each change is written whole, and etcd keeps the older
ones until they are compacted: start it with --auto-compaction-retention=1, which keeps an hour of them.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import cbor2
import trio

from trikv.master.configstore import CHANGE, ConfigConflict, ConfigStoreError, NotChanged
from trikv.master.etcd.calls import EtcdCalls, get, is_at, put
from trikv.master.etcd.roster import KeyState

ATTEMPT_S: Final = 2.0  # for reading or writing it at one endpoint
UNPACKED_BYTES_MAX: Final = 64 << 20
_PLAIN: Final = b"\x01"  # the format byte: what follows is CBOR
_ZLIB: Final = b"\x02"  # what follows is CBOR, compressed


class EtcdDocument:
    """`revision`: of the document that this master wrote or, before it led, read."""

    def __init__(self, calls: EtcdCalls, key: str) -> None:
        self.revision = 0
        self._calls = calls
        self._key = key
        self._doubted: bytes | None = None  # what a change wrote that got no answer

    async def read(self, *, leads: bool) -> tuple[dict[str, Any] | None, int]:
        """
        Args:
          leads: this master leads, so it goes by what it wrote: another's document must not pass for its own.
        """
        answer = await self._calls.commit([], [get(self._key)], attempt_s=ATTEMPT_S)
        found = answer.found[0][0] if answer.found[0] else None
        if not self.recognize(found) and not leads:
            self.revision = 0 if found is None else found.revision
        if found is None:
            return None, 0
        try:
            return await trio.to_thread.run_sync(unpack, found.value or b""), found.revision
        except ValueError as error:
            raise ConfigStoreError(
                f"{self._calls.gateway.name}: its document is none of this trikv's: {error}; choose another /PREFIX"
            ) from error

    async def compare_and_set(self, document: dict[str, Any], revision: int) -> int:
        body = await trio.to_thread.run_sync(pack, cbor2.dumps(document))
        doubted, self._doubted = self._doubted, body  # so also where this call is cancelled
        try:
            answer = await self._calls.commit(
                [is_at(self._key, revision)], [put(self._key, body)], [get(self._key)], attempt_s=ATTEMPT_S
            )
        except NotChanged:
            self._doubted = doubted
            raise
        if answer.succeeded:
            self.revision, self._doubted = answer.revision, None
            return answer.revision
        found = answer.found[0][0] if answer.found[0] else None
        if answer.again:  # an endpoint gave no answer before; it may have made this very change
            if CHANGE in document and self.recognize(found):  # without that name it might be another's
                return self.revision
            raise ConfigStoreError(f"{self._calls.gateway.name}: no answer to a change, which may have been made")
        self._doubted = doubted
        raise ConfigConflict(f"the document is at revision {found.revision if found else 0}, not {revision}")

    # --- for a lease that is taken anew -------------------------------------------------------------------------------

    def get(self) -> dict[str, Any]:
        """A part of a transaction: what `recognize` has to know."""
        return get(self._key, without_value=self._doubted is None)

    def is_unchanged(self) -> dict[str, Any]:
        """A compare: the document is the one that this master wrote."""
        return is_at(self._key, self.revision)

    def recognize(self, found: KeyState | None) -> bool:
        """Is it what this master wrote in a change without an answer? Then that change was made, and is known now."""
        if found is None or self._doubted is None or found.value != self._doubted:
            return False
        self.revision, self._doubted = found.revision, None
        return True


def pack(plain: bytes) -> bytes:
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
        raise ValueError(f"it has format {form.hex() or 'none'}, and this trikv reads formats 01 and 02")
    try:
        document = cbor2.loads(rest)
    except (cbor2.CBORDecodeError, ValueError, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError("it is damaged") from error
    if not isinstance(document, dict):
        raise ValueError("it is something else")
    return document
