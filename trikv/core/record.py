"""Records and what orders them: epoch, version, stamp, and their one format on disk.

A *version* orders two writes of a key. It is `(epoch, seq)`, and the coordinator gives it out. No clock is involved, so
a machine whose time jumps reorders nothing. A *stamp* is the version of the client's write that made the value. A
repair gives a record a fresh version and keeps the stamp, so an ETag changes only when a client changed something.

A *seq* is a count, with the master's mark in its lower bits. The count orders the writes of one master; the mark is
drawn at each start of a master. Two masters can have one term, if the document was restored from a backup. They give
out the same epochs and the same counts. Still no version of one is a version of the other, except for one pair of
starts in 2^24. So a version names one record, and a stamp one value. Records from before there were marks have small
seqs.

An *epoch* is `(term, generation)`, carried as one integer with the term in the upper bits. So comparing two integers
compares the term first. Each has 32 bits: a new term every second lasts 136 years.
"""

from __future__ import annotations

import re
import struct
from typing import Final, NamedTuple

KEY_BYTES_MAX: Final = 4 * 1024
VALUE_BYTES_MAX: Final = 1024 * 1024
TIMEOUT_MOST_S: Final = 60  # that a client may ask for

TERM_MAX: Final = (1 << 32) - 1
GENERATION_MAX: Final = (1 << 32) - 1
EPOCH_MAX: Final = (1 << 64) - 1
# How far a term or a generation may exceed what a node knows: a backup of the document may be that many starts, or
# changes of a partition, behind. A larger number is nonsense, and a node that promised it could never be led again.
JUMP_MAX: Final = 1 << 20
# The largest term or generation that a master believes workers have promised: they may have followed several leaps.
# Workers that know the master already follow it further.
PROMISED_MAX: Final = 1 << 26

_GENERATION_BITS: Final = 32
MARK_BITS: Final = 24
_COUNT_BITS: Final = 64 - MARK_BITS  # in one epoch: enough for a million writes a second for twelve days
_MARK_MAX: Final = (1 << MARK_BITS) - 1
_MARK_DIGITS: Final = MARK_BITS // 4  # hexadecimal


def make_epoch(term: int, generation: int) -> int:
    """The epoch of a partition's `generation` under a master's `term`."""
    assert 0 <= min(term, generation) <= max(term, generation) <= GENERATION_MAX, (term, generation)
    return term << _GENERATION_BITS | generation


def term_of(epoch: int) -> int:
    return epoch >> _GENERATION_BITS


def generation_of(epoch: int) -> int:
    return epoch & GENERATION_MAX


def make_seq(count: int, mark: int) -> int:
    """The seq of a master's `count`-th write in an epoch. `mark` is what the master drew when it started."""
    return count << MARK_BITS | mark


def spell_epoch(epoch: int) -> str:
    """`term.generation`, for people."""
    return f"{term_of(epoch)}.{generation_of(epoch)}"


_VERSION: Final = re.compile(rf"([0-9]{{1,10}})\.([0-9]{{1,10}})-([0-9]{{1,20}})(?:\.([0-9a-f]{{{_MARK_DIGITS}}}))?")


class Version(NamedTuple):
    """Compares as a tuple: epoch first."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        """`term.generation-count.mark`, the form that people and ETags see.

        A seq from before there were marks gives `term.generation-seq`.
        """
        epoch, seq = self
        count, mark = seq >> MARK_BITS, seq & _MARK_MAX
        spelled = f"{count}.{mark:06x}" if count else f"{mark}"
        return f"{epoch >> _GENERATION_BITS}.{epoch & GENERATION_MAX}-{spelled}"

    @classmethod
    def parse(cls, text: str) -> Version:
        """The version that `str()` gave.

        Raises:
          ValueError: for anything else.
        """
        if (found := _VERSION.fullmatch(text)) is None:
            raise ValueError(f"{text!r} is not of the form TERM.GENERATION-COUNT.MARK")
        term, generation, count = (int(part) for part in found.group(1, 2, 3))
        seq = count if found[4] is None else make_seq(count, int(found[4], 16))
        if max(term, generation) > GENERATION_MAX or seq >= 1 << 64:
            raise ValueError(f"{text!r} is out of range")
        return cls(make_epoch(term, generation), seq)


class Record(NamedTuple):
    """What a worker holds under a key. `value` None is a tombstone: a delete, which wins over older writes."""

    version: Version
    stamp: Version
    value: bytes | None

    @property
    def is_tombstone(self) -> bool:
        return self.value is None


# format byte, tombstone flag, version (epoch, seq), stamp (epoch, seq); the value follows.
_HEADER: Final = struct.Struct(">BBQQQQ")
_HEADER_BYTES: Final = _HEADER.size
_FORMAT: Final = 1
_new: Final = tuple.__new__


def pack(record: Record) -> bytes:
    """The record's bytes on disk: a header of 34 bytes, then the value."""
    (epoch, seq), (stamp_epoch, stamp_seq), value = record
    header = _HEADER.pack(_FORMAT, value is None, epoch, seq, stamp_epoch, stamp_seq)
    return header if value is None else header + value


def unpack(data: bytes) -> Record:
    """The record that `pack` gave.

    Raises:
      ValueError: not one of ours, or of a later format.
    """
    if len(data) < _HEADER_BYTES:
        raise ValueError(f"a record has at least {_HEADER_BYTES} bytes, this has {len(data)}")
    form, tombstone, epoch, seq, stamp_epoch, stamp_seq = _HEADER.unpack_from(data)
    if form != _FORMAT:
        raise ValueError(f"record format {form}; this trikv reads format {_FORMAT}")
    # `tuple.__new__` takes half the time of the classes themselves.
    version = _new(Version, (epoch, seq))
    is_of_client = seq == stamp_seq and epoch == stamp_epoch  # most are, and one object will do
    stamp = version if is_of_client else _new(Version, (stamp_epoch, stamp_seq))
    return _new(Record, (version, stamp, None if tombstone else data[_HEADER_BYTES:]))


def size_of(key: bytes, record: Record) -> int:
    """The bytes of key and value, without what the objects around them take."""
    return len(key) + len(record.value or b"")


def newest(records: list[Record | None]) -> Record | None:
    """The record with the highest version; None if there is no record."""
    return max((r for r in records if r is not None), key=lambda r: r.version, default=None)
