"""Frames: a length, then one CBOR list, and nothing else, whatever the peer sends.

A frame is four bytes of big-endian length, then that many bytes of CBOR (RFC 8949). It carries a list of None, bools,
integers of 64 bits and a sign, floats, bytes, text and further lists, nested at most 16 deep. CBOR has much more: tags
that build dates, regular expressions and numbers of any size, maps, items without a length. All of that is refused, and
a frame must end where its list ends.

How this is ensured. The length is judged as soon as its four bytes are there, before any memory is taken for the frame.
The decoder refuses depth and indefinite lengths. Every tag, known to the decoder or not, meets a hook that refuses. At
the end one look at each level of the result admits six types of values by name, and lists of them, so a type that a
later release of the decoder learns to build does not pass. `encode` holds our own side to the same set: the encoder
alone would write a memoryview as a list of integers, and a big integer as a tag that the peer refuses.

What it costs, for a frame of 64 calls that store 100 bytes each (11 KB): encoding takes 45 µs and its check 45 µs;
decoding takes 35 µs and its check 17 µs. So a call's whole way through a frame takes 2.2 µs. A list within a row would
cost half as much again. A frame that arrives whole and alone is decoded where it is; otherwise each byte is copied
twice, however small the pieces are.

A list of empty lists takes some sixty times its bytes in memory, and decoding a full-sized frame of them would stop the
node for seconds. So the items of a frame beyond `COUNT_FROM_BYTES` are counted first (`has_more_items`, 0.1 µs each),
up to `ITEMS_MAX`, and our own side sends no frame that has more. A smaller frame is decoded in less than a tenth of a
second whatever is in it. A peer that has not greeted yet, or that sends only small calls, is held to a smaller
`bytes_max`.

Left out: the shapes of messages, which `session` and `calls` check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from io import BytesIO
from itertools import chain
from typing import Any, Final, Never

import cbor2

FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
ITEMS_MAX: Final = 250_000  # a listing of 10,000 rows has 80,000
COUNT_FROM_BYTES: Final = 128 * 1024
DEPTH_MAX: Final = 16  # the decoder counts lists that hold something: an innermost empty one passes at 17
INT_MIN: Final = -(2**64)  # what CBOR writes without a tag: 64 bits, and a sign
INT_MAX: Final = 2**64 - 1

_PREFIX_BYTES: Final = 4
_READ_BYTES: Final = 4096  # a larger step buys nothing: the decoder takes long strings in one piece anyway
_ADMITTED: Final = frozenset((type(None), bool, int, float, bytes, str, list))
_PLAIN: Final = _ADMITTED - {int, list}  # their values need no check
_LISTS: Final = (list, tuple)
_TEXTS: Final = (float, bytes, str)


class FrameError(Exception):
    """What arrived is not a frame of ours; the message says why. Nothing after it can be understood."""


class NoFrame(Enum):
    """The type of `NO_FRAME`: more bytes are needed."""

    NO_FRAME = "NO_FRAME"


NO_FRAME: Final = NoFrame.NO_FRAME


def encode(item: Sequence[Any]) -> bytes:
    """The frame that carries `item`, a list or tuple of what the module's docstring lists. Tuples arrive as lists.

    Raises:
      TypeError: something in it is of another type, for instance a memoryview or a map.
      ValueError: an integer beyond 64 bits, nesting beyond `DEPTH_MAX`, text that UTF-8 cannot express, or a frame
        beyond `FRAME_BYTES_MAX`. Both errors are the caller's fault, never the peer's.
    """
    if not isinstance(item, list | tuple):
        raise TypeError(f"a frame carries a list, not a {type(item).__name__}")
    if _check_ours(item) > ITEMS_MAX:
        raise ValueError(f"a frame of more than {ITEMS_MAX:,} items")
    frame = _encode(item)
    if len(frame) > _PREFIX_BYTES + FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {len(frame) - _PREFIX_BYTES} bytes; at most {FRAME_BYTES_MAX} are allowed")
    return frame


def has_more_items(data: bytes, items_max: int, start: int = 0) -> bool:
    """Does the CBOR from `start` on hold more than `items_max` items? Lists and maps count, and each item in them.

    It takes no memory. The decoder finds what is cut off or malformed.
    """
    at, end, items = start, len(data), 0
    while at < end:
        items += 1
        if items > items_max:
            return True
        head = data[at]
        at += _STEPS[head]
        width = _WIDTHS[head]
        if width:  # a string, of which the length follows
            at += int.from_bytes(data[at - width : at], "big")
    return False


def _steps() -> tuple[list[int], list[int]]:
    """Two tables by an item's first byte (RFC 8949, section 3).

    The first gives the bytes to the item's end, or to the end of its length. The second gives, for strings, how many
    bytes the length has; 0 if it is in the first byte itself.
    """
    steps, widths = [], []
    for head in range(256):
        kind, short = head >> 5, head & 31
        is_string = kind in (2, 3)
        width = 1 << (short - 24) if 24 <= short < 28 else 0
        steps.append(1 + width + (short if is_string and short < 24 else 0))
        widths.append(width if is_string else 0)
    return steps, widths


_STEPS, _WIDTHS = _steps()


def pack_frames(kind: int, items: Sequence[Any]) -> Iterable[bytes]:
    """Frames `[kind, [item, ...]]` that carry all the items in order, each within the bounds; none for no items.

    Nearly always everything fits into one frame. So everything is encoded at once, and halved only when it does not
    fit: at most log2(size / bound) + 1 encodings of each item. Every item must fit a frame of its own.

    Raises:
      TypeError, ValueError: as `encode`; before the first frame if it is a matter of types and ranges.
    """
    if not items:
        return ()
    if _check_ours((kind, items)) <= ITEMS_MAX:
        frame = _encode((kind, items))
        if len(frame) <= _PREFIX_BYTES + FRAME_BYTES_MAX:
            return (frame,)
    return _halve(kind, items)


def _halve(kind: int, items: Sequence[Any]) -> Iterator[bytes]:
    """The frames for items that together are beyond a bound."""
    if len(items) == 1:
        frame_bytes = len(_encode((kind, items))) - _PREFIX_BYTES
        raise ValueError(
            f"an item of {frame_bytes} bytes; a frame takes {FRAME_BYTES_MAX}, and at most {ITEMS_MAX:,} items"
        )
    middle = len(items) // 2
    for half in (items[:middle], items[middle:]):
        frame = _encode((kind, half))
        if len(frame) <= _PREFIX_BYTES + FRAME_BYTES_MAX and not has_more_items(frame, ITEMS_MAX, _PREFIX_BYTES):
            yield frame
        else:
            yield from _halve(kind, half)


def _encode(item: Sequence[Any]) -> bytes:
    body = cbor2.dumps(item)
    return len(body).to_bytes(_PREFIX_BYTES, "big") + body


def _check_ours(items: Sequence[Any]) -> int:
    """Raise unless we may send these. Subclasses (an IntEnum, a NamedTuple) count as the type they derive from.

    Returns:
      How many items they are to a receiver: with those in their lists, and the list around them all.
    """
    count = 1
    lists: list[Sequence[Any]] = [items]
    for _ in range(DEPTH_MAX):
        inner: list[Sequence[Any]] = []
        for some in lists:
            count += len(some)
            for item in some:
                kind = type(item)
                if kind is int:
                    if not INT_MIN <= item <= INT_MAX:
                        raise ValueError(f"the integer {item} is beyond 64 bits")
                elif kind is list or kind is tuple:
                    inner.append(item)
                elif kind not in _PLAIN:
                    _check_derived(item, inner)
        if not inner:
            return count
        lists = inner
    raise ValueError(f"lists nested more than {DEPTH_MAX} deep")


def _check_derived(item: Any, inner: list[Sequence[Any]]) -> None:
    """As `_check_ours`, for one item of a type that is none of those by name."""
    if isinstance(item, int):
        if not INT_MIN <= item <= INT_MAX:
            raise ValueError(f"the integer {item} is beyond 64 bits")
    elif isinstance(item, _LISTS):
        inner.append(item)
    elif not isinstance(item, _TEXTS):
        raise TypeError(f"a frame cannot carry a {type(item).__name__}")


class FrameBuffer:
    """Bytes go in, in pieces of any size; frames come out.

    After every `feed`, call `next_frame` until it returns `NO_FRAME`. Between calls it keeps at most one unfinished
    frame: `bytes_max` and the prefix. After an error every further call raises the same error, and nothing is kept.
    """

    def __init__(self, bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.bytes_max = bytes_max  # may be raised once the peer is known; applies from the next frame on
        self._fed = b""  # what was fed last; where nothing was kept before it, it is not copied
        self._kept = bytearray()  # what was fed before that, from the beginning of a frame
        self._frame_bytes = 0  # of the frame under way, its prefix included; 0 until the prefix is there
        self._decoder = _new_decoder()
        self._error: FrameError | None = None

    def __len__(self) -> int:
        """How many bytes are kept."""
        return len(self._kept) + len(self._fed)

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take what arrived.

        Raises:
          FrameError: the length of the frame that is under way is beyond `bytes_max`.
        """
        if self._error is not None:
            raise self._error
        if self._kept or self._fed or type(data) is not bytes:
            self._kept += self._fed
            self._kept += data
            self._fed = b""
        else:
            self._fed = data
        if not self._frame_bytes:
            self._judge_prefix()

    def next_frame(self) -> list[Any] | NoFrame:
        """The next frame's list, or `NO_FRAME` until more is fed.

        Raises:
          FrameError: what was fed is not a frame of ours.
        """
        if self._error is not None:
            raise self._error
        if not self._fed and not self._kept:
            return NO_FRAME
        frame_bytes = self._frame_bytes or self._judge_prefix()
        if not frame_bytes:
            return NO_FRAME
        if len(self._fed) == frame_bytes:  # nearly always: one frame arrived, whole
            frame, self._fed = self._fed, b""
        else:
            if self._fed:
                self._kept += self._fed
                self._fed = b""
            if len(self._kept) < frame_bytes:
                return NO_FRAME
            with memoryview(self._kept) as view:
                frame = bytes(view[:frame_bytes])
            del self._kept[:frame_bytes]  # no copy of the rest: a bytearray moves its own start
        self._frame_bytes = 0
        try:
            if frame_bytes > COUNT_FROM_BYTES and has_more_items(frame, ITEMS_MAX, _PREFIX_BYTES):
                raise FrameError(f"a frame of more than {ITEMS_MAX:,} items")
            return _decode(self._decoder, frame)
        except FrameError as error:
            raise self._fail(error) from error.__cause__

    def _judge_prefix(self) -> int:
        """Read the length that the prefix announces, if the prefix is there."""
        begun = self._fed or self._kept
        if len(begun) < _PREFIX_BYTES:
            return 0
        size = int.from_bytes(begun[:_PREFIX_BYTES], "big")
        if size > self.bytes_max:
            raise self._fail(FrameError(f"a frame of {size} bytes was announced; at most {self.bytes_max} are allowed"))
        self._frame_bytes = _PREFIX_BYTES + size
        return self._frame_bytes

    def _fail(self, error: FrameError) -> FrameError:
        self._error = error
        self._fed, self._kept = b"", bytearray()
        return error


class _EveryTag(Mapping[int, Callable[[Any, bool], Any]]):
    """The same decoder for every tag: it refuses.

    A list of the tags that cbor2 knows would go out of date.
    """

    def __getitem__(self, tag: int) -> Callable[[Any, bool], Any]:
        return _refuse_tag

    def __iter__(self) -> Iterator[int]:
        return iter(range(2**64))

    def __len__(self) -> int:
        return 2**63 - 1  # the largest that len() can return


def _refuse_tag(value: Any, immutable: bool) -> Never:
    raise cbor2.CBORDecodeError("tags are not allowed")


REFUSED_TAGS: Final = _EveryTag()


def _new_decoder() -> cbor2.CBORDecoder:
    """A decoder for one link; making it takes as long as reading a small frame. After an error it is not used again."""
    return cbor2.CBORDecoder(
        BytesIO(),
        semantic_decoders=REFUSED_TAGS,
        max_depth=DEPTH_MAX,
        allow_indefinite=False,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
        read_size=_READ_BYTES,
    )


def _decode(decoder: cbor2.CBORDecoder, frame: bytes) -> list[Any]:
    stream = decoder.fp = BytesIO(frame)  # no copy: a BytesIO shares the bytes until it is written to
    stream.seek(_PREFIX_BYTES)
    try:
        item = decoder.decode()
        left_over = len(frame) - stream.tell()
    except cbor2.CBORDecodeError as error:
        raise FrameError(f"a frame that cannot be read: {error}") from error
    finally:
        stream.close()  # the decoder keeps the stream, so the frame is freed here
    if left_over:
        raise FrameError(f"a frame with {left_over} bytes left over after its list")
    if type(item) is not list:
        raise FrameError(f"a frame that carries a {type(item).__name__} where a list belongs")
    _check_theirs(item)
    return item


def _check_theirs(items: list[Any]) -> None:
    """Raise unless these, and what is in their lists, are of the types that a frame has, by name.

    Each level of lists is looked at as one, without a step of Python's for each item. There are at most `DEPTH_MAX`
    levels, and one more of empty lists.
    """
    is_of_session = len(items) == 2 and type(items[0]) is int and type(items[1]) is list  # [kind, what it carries]
    lists = [items[1]] if is_of_session else [items]
    while lists:
        kinds = set(map(type, chain.from_iterable(lists)))
        if not kinds <= _ADMITTED:
            stranger = (kinds - _ADMITTED).pop()
            raise FrameError(f"a frame that carries a {stranger.__name__}")
        if list not in kinds:
            return
        if len(kinds) == 1:
            lists = list(chain.from_iterable(lists))
        else:
            lists = [item for item in chain.from_iterable(lists) if type(item) is list]
