"""What to send to an RPC port: nonsense before a greeting, greetings with odd fields, calls with odd arguments.

The frames are built with the bare encoder from the protocol as `core/session.py` and `core/calls.py` describe it,
since those modules refuse to make most of them. A node believes a peer that has greeted well. So no well-formed call
here changes records of other keys or promises an epoch that could be valid: a call that stores has a key of its own,
and a call that discards names an epoch long past.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import cbor2

from trikv.core.calls import Full, Op, Vitals
from trikv.core.lineage import Start
from trikv.core.record import KEY_BYTES_MAX, VALUE_BYTES_MAX
from trikv.core.session import PROTOCOL
from trikv.testing.fuzz.case import Case, mutate, split
from trikv.testing.fuzz.web_cases import GREETINGS

MAGIC: Final = "trikv"
REFUSAL: Final = "trikv-refuses"
CALLS: Final = 1
ANSWERS: Final = 2
ACKS: Final = 3
FRAME_BYTES_MAX: Final = 8 * 1024 * 1024
KEY: Final = b"fuzz-rpc"
EPOCH_MAX: Final = 2**64 - 1
BUDGET_MS: Final = 1000

LAST_CALL: Final = 999_999  # the id of the HEARTBEAT behind each case: its answer shows that the link still works

ODD: Final[tuple[Any, ...]] = (
    None, True, False, -1, 0, 2**16, 2**31, 2**32, 2**53, 2**63, EPOCH_MAX, -(2**64), 1.5, float("nan"), float("inf"),
    "", "x", "\0", "\x1b[31m", "\u202e", "x" * 5000, b"", b"x", b"\xff", b"x" * (KEY_BYTES_MAX + 1), [], [[]], [None],
    [1, 2, 3], [[1, 2, 3]], ["a", "b", "c"],
)  # fmt: skip
# Besides those: values that a frame cannot carry.
FOREIGN: Final[dict[str, bytes]] = {
    "a map": b"\xa1\x61a\x01",
    "a map with a key twice": b"\xa2\x61a\x01\x61a\x02",
    "a map with a list for a key": b"\xa1\x80\x01",
    "a date": b"\xc0\x74" + b"2013-03-21T20:04:00Z",
    "an odd date": b"\xc1\xfb\x7f\xf0\0\0\0\0\0\0",
    "a big number": b"\xc2\x58\x20" + b"\xff" * 32,
    "a big negative number": b"\xc3\x58\x20" + b"\xff" * 32,
    "a decimal": b"\xc4\x82\x1b\x7f\xff\xff\xff\xff\xff\xff\xff\x01",
    "a fraction": b"\xd8\x1e\x82\x01\x00",
    "a regular expression": b"\xd8\x23\x6a(a+)+(b+)$",
    "an address": b"\xd9\x01\x04\x44\x7f\x00\x00\x01",
    "a set": b"\xd9\x01\x02\x81\x01",
    "something shared": b"\xd8\x1c\x81\xd8\x1d\x00",
    "a reference to nothing": b"\xd8\x1d\x18\x63",
    "text by reference": b"\xd9\x01\x00\x82\x63aaa\xd8\x19\x00",
    "an unknown tag": b"\xdb\xff\xff\xff\xff\xff\xff\xff\xff\x00",
    "a list without a length": b"\x9f\x01\xff",
    "text without a length": b"\x7f\x61a\xff",
    "bytes without a length": b"\x5f\x41a\xff",
    "an end alone": b"\xff",
    "undefined": b"\xf7",
    "a simple value": b"\xf8\x63",
    "a reserved length": b"\x1c",
    "text that is none": b"\x61\xff",
    "half a surrogate pair": b"\x63\xed\xa0\x80",
    "a list longer than all": b"\x9b" + b"\xff" * 8,
    "text longer than all": b"\x7b" + b"\xff" * 8,
    "bytes longer than all": b"\x5b\x7f" + b"\xff" * 7,
    "a list of half a billion": b"\x9a\x20\x00\x00\x00",
    "lists 17 deep": b"\x81" * 17 + b"\x00",
    "lists 1,000 deep": b"\x81" * 1000 + b"\x00",
    "lists 100,000 deep": b"\x81" * 100_000 + b"\x00",
    "maps 1,000 deep": b"\xa1\x00" * 1000 + b"\x00",
    "tags 1,000 deep": b"\xc6" * 1000 + b"\x00",
    "nothing": b"",
}


class FuzzedNode(NamedTuple):
    """The node that the cases are sent to. `epoch` is the current one of `partition`, as far as is known."""

    role: str
    cluster: str
    node: str
    incarnation: str
    partition: int
    epoch: int


def frame(item: Any) -> bytes:
    return raw_frame(bytes(cbor2.dumps(item)))


def raw_frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def list_head(length: int) -> bytes:
    """The CBOR head of a list of so many items."""
    return b"\x9a" + length.to_bytes(4, "big")


def greeting_fields(to: FuzzedNode) -> list[Any]:
    """A greeting that is accepted: a worker's at the master, and at a worker that of a master of a long past term."""
    role = "worker" if to.role == "master" else "master"
    return [MAGIC, PROTOCOL, role, "fuzz", "1/fuzz", to.cluster]


def heartbeat() -> bytes:
    return frame([CALLS, [[LAST_CALL, BUDGET_MS, int(Op.HEARTBEAT)]]])


def calls(*rows: Sequence[Any]) -> bytes:
    """One frame of calls `(op, arguments)`."""
    return frame([CALLS, [[number, BUDGET_MS, op, *arguments] for number, (op, arguments) in enumerate(rows, 1)]])


def strangers(dice: random.Random, to: FuzzedNode) -> Iterator[Case]:
    """Bytes in place of a greeting, and greetings with each field odd in turn."""
    name = f"RPC of the {to.role}"
    greeting = greeting_fields(to)
    for kind, data in GREETINGS.items():
        yield Case(f"{name}, {kind}", (data,) if data else ())
    for kind, body in FOREIGN.items():
        yield Case(f"{name}, {kind} for a greeting", (raw_frame(body[:4096]),))
        yield Case(f"{name}, {kind} in a greeting", (raw_frame(b"\x86\x65trikv\x01" + body[:4000]),))
    for kind, prefix in (("the largest", b"\xff" * 4), ("a large", b"\x00\x00\x10\x01"), ("a signed", b"\x80\0\0\0")):
        yield Case(f"{name}, {kind} length", (prefix + b"x" * 5000,))
    yield Case(f"{name}, no length at all", (bytes(4) * 2000,))
    whole = frame(greeting)
    yield Case(f"{name}, half a greeting", (whole[: len(whole) // 2],))
    yield Case(f"{name}, a greeting in single bytes", tuple(whole[at : at + 1] for at in range(len(whole))), slow=True)
    yield Case(f"{name}, bytes behind a greeting's list", (raw_frame(whole[4:] + b"\0"),))
    yield Case(f"{name}, noise", (dice.randbytes(5000),))
    for at, field in enumerate(("magic", "protocol", "role", "node", "incarnation", "cluster")):
        odd = [
            *ODD,
            2,
            10**18,
            "master",
            "worker",
            f"{EPOCH_MAX}/x",
            "9999999999",
            "9999999999/x",
            "4294967295/x",
            "-1/x",
        ]
        for value in odd:
            if field == "incarnation" or (value != greeting[at]):
                # A node of another cluster, or of a strange name. Accepted or not, it then sends a heartbeat.
                fields = [*greeting[:at], value, *greeting[at + 1 :]]
                yield Case(f"{name}, an odd {field} in a greeting", (frame(fields), heartbeat()))
    for length in range(6):
        yield Case(f"{name}, a greeting of {length} fields", (frame(greeting[:length]),))
    yield Case(f"{name}, a greeting of 2,000 fields", (frame(greeting + [0] * 2000),))
    for sentence in ("", "x", "\x1b[2J\n" * 100, 5, None, b"x"):
        yield Case(f"{name}, a refusal for a greeting", (frame([REFUSAL, sentence]),))
    for _ in range(30):
        data = mutate(dice, whole, (b"\xff", b"\0", b"\x9f", b"\xc2", b"\x81" * 30))
        yield Case(f"{name}, a mutated greeting", split(dice, data, 4), slow=dice.random() < 0.2)


def after_greeting(dice: random.Random, to: FuzzedNode) -> Iterator[Case]:
    """Bytes after a greeting that is accepted. The first piece is that greeting."""
    name = f"RPC of the {to.role}, greeted"
    greeting = frame(greeting_fields(to))

    def case(kind: str, *pieces: bytes, slow: bool = False) -> Case:
        return Case(f"{name}, {kind}", (greeting, *pieces), slow=slow)

    for kind, data in GREETINGS.items():
        if data:
            yield case(kind, data)
    for kind, body in FOREIGN.items():
        yield case(f"{kind} for a frame", raw_frame(body))
        yield case(f"{kind} among calls", raw_frame(_one_call(Op.FETCH, 4) + b"\x00\x00\x61i" + body))
    yield case("a second greeting", greeting)
    yield case("a refusal", frame([REFUSAL, "go away"]))
    yield case("the largest length", b"\xff" * 4 + b"x" * 1000)
    yield case("a length beyond the cap", (FRAME_BYTES_MAX + 1).to_bytes(4, "big") + b"x" * 1000)
    yield case("a frame that never ends", FRAME_BYTES_MAX.to_bytes(4, "big") + b"\x82\x01")
    for value in ODD:
        yield case("an odd kind of frame", frame([value, []]))
        yield case("odd items of a frame", frame([CALLS, value]))
        yield case("an odd call", frame([CALLS, [value]]))
        yield case("odd answers", frame([ANSWERS, value]))
        yield case("an odd answer", frame([ANSWERS, [value]]))
        yield case("odd acknowledgements", frame([ACKS, value]))
        yield case("an odd acknowledgement", frame([ACKS, [1, value]]))
        for at, field in enumerate(("id", "budget", "op")):
            row = [1, BUDGET_MS, int(Op.HEARTBEAT)]
            yield case(f"an odd {field} of a call", frame([CALLS, [[*row[:at], value, *row[at + 1 :]]]]))
    for answer in ([1, 0], [1, 99], [1, -1, None], [2**63, 0, 0], [True, True], [-1, 1, EPOCH_MAX], [1, 0, []]):
        yield case("answers that nobody asked for", frame([ANSWERS, [answer] * 1000]))
    for call_id in (0, 1, 2**63, EPOCH_MAX, -1):
        yield case("acknowledgements that nobody asked for", frame([ACKS, [call_id] * 1000]))
    for op in (-1, 0, 9, 255, 2**31, 2**63):
        yield case("an unknown op", calls((op, [])))
    if to.role == "master":
        yield from _passed_on(dice, to)
    yield from _calls(dice, to, case)
    yield case("8,000,000 empty calls", _many(b"\x82\x01", b"\x80", 8_000_000))
    yield case("8,000,000 empty answers", _many(b"\x82\x02", b"\x80", 8_000_000))
    yield case("8,000,000 zeros acknowledged", _many(b"\x82\x03", b"\x00", 8_000_000))
    yield case("240,000 zeros acknowledged", _many(b"\x82\x03", b"\x00", 240_000))
    yield case(
        "8,000,000 empty arguments",
        raw_frame(b"\x82\x01\x81" + list_head(8_000_003) + b"\x01\x19\x03\xe8\x03" + b"\x80" * 8_000_000),
    )
    yield case("8,000,000 empty texts", _many(b"\x82\x01", b"\x60", 8_000_000))
    yield case("8,000,000 zeros behind a call", frame([CALLS, [[1, 1, 2]]]), raw_frame(bytes(8_000_000)))
    yield case("an odd list of 2,000,000", _many(b"\x82\x01", b"\x84\x00\x00\x00", 2_000_000))


def _passed_on(dice: random.Random, to: FuzzedNode) -> Iterator[Case]:
    """Requests that a standby passes on, each argument odd in turn. Those that store have a key of their own."""
    greeting = frame([MAGIC, PROTOCOL, "standby", "fuzz", "fuzz-life", to.cluster])

    def case(kind: str, *rows: tuple[Op, list[Any]]) -> Case:
        return Case(f"RPC of the master, greeted as a standby, {kind}", (greeting, calls(*rows)))

    path = b"/v1/kv/" + KEY
    headers = ["if-match", "*", "accept", "application/json"]
    good = ["id-1", "PUT", "PUT", "/v1/kv/{key...}", path, b"timeout=1", headers, b"value", 0]
    yield case("as it should be", (Op.PASS_ON, good))
    for at in range(len(good)):
        for value in ODD:
            yield case(f"with an odd argument {at + 1}", (Op.PASS_ON, [*good[:at], value, *good[at + 1 :]]))
    for route in ("/v1/kv", "/v1/batch", "/v1/mode", "/v1/locate", "/v1/trace/{id}", "/no/such", "/put", "/get", "/"):
        for method in ("GET", "PUT", "POST", "HEAD", "x"):
            for target in (path, b"", b"/", b"/%zz", b"\xff\0", b"/v1/kv/" + b"x" * 5000):
                rest = [target, b"", dice.choice((headers, [])), dice.choice((b"", b"{", b"\xff")), 0]
                yield case(f"{method} of {route}", (Op.PASS_ON, ["", method, method, route, *rest]))
    for value in (*ODD, ["a"], ["a", "b", "a", "c"], ["a", "b\r\nc: d"], ["A", "b"], ["a", "b"] * 5000):
        yield case("with odd headers", (Op.PASS_ON, [*good[:6], value, *good[7:]]))
        yield case("a piece of an odd body", (Op.PASS_PART, [value, b"x"]), (Op.PASS_PART, [1, value]))
        yield case("the rest of an odd answer", (Op.PASS_REST, [value]))
    yield case("of which the body never came", (Op.PASS_ON, [*good[:8], 7]))
    yield case("5,000 pieces of nothing", *[(Op.PASS_PART, [n, b""]) for n in range(5000)])
    yield case(
        "a body of more than it may have", *[(Op.PASS_PART, [1, bytes(1_000_000)])] * 7, (Op.PASS_ON, [*good[:8], 1])
    )
    yield case("5,000 at once", *[(Op.PASS_ON, ["", "GET", "GET", "/v1/kv/{key...}", path, b"", [], b"", 0])] * 5000)
    yield case("what is asked of workers", (Op.FETCH, [to.partition, to.epoch, to.incarnation, KEY]))


def _one_call(op: Op, arguments: int) -> bytes:
    """The beginning of a frame of one call, up to its arguments, of which there are so many."""
    return bytes((0x82, CALLS, 0x81, 0x83 + arguments, 1, 0x19, *BUDGET_MS.to_bytes(2, "big"), op))


def _many(head: bytes, item: bytes, count: int) -> bytes:
    return raw_frame(head + list_head(count) + item * count)


def _calls(dice: random.Random, to: FuzzedNode, case: Any) -> Iterator[Case]:
    """Each call with each argument odd, and with absurd counts."""
    past = 1  # an epoch that was over before the cluster formed
    life, partition, epoch = to.incarnation, to.partition, to.epoch
    record = [epoch, 1, epoch, 1, b"x"]
    good: dict[Op, list[Any]] = {
        Op.STORE: [partition, epoch, life, KEY, *record],
        Op.FETCH: [partition, epoch, life, KEY],
        Op.LIST: [life, [[partition, epoch]], b"", None, 100, True],
        Op.DISCARD: [partition, past, life],
        Op.DIGEST: [life, [[partition, epoch]]],
        Op.FORGET: [partition, past, life, KEY, past, 1],
        Op.HEARTBEAT: [],
        Op.ENLIST: ["127.0.0.1:1"],
    }
    odd = (*ODD, 0xFFFE, 1024, 65_000, 9_999_999_999 << 32 & EPOCH_MAX, (2**32 - 1) << 32, epoch + 2**31)
    for op, arguments in good.items():
        yield case(f"{op.name} as it should be", calls((op, arguments)))
        for at in range(len(arguments)):
            for value in odd:
                if op in (Op.DISCARD, Op.FORGET) and at == 0 and isinstance(value, int) and not 0 < value < 1024:
                    continue
                yield case(
                    f"{op.name} with an odd argument {at + 1}",
                    calls((op, [*arguments[:at], value, *arguments[at + 1 :]])),
                )
        for length in range(len(arguments)):
            yield case(f"{op.name} with too few arguments", calls((op, arguments[:length])))
        yield case(f"{op.name} with an argument too many", calls((op, [*arguments, 0])))
        if op in (Op.FETCH, Op.HEARTBEAT, Op.ENLIST):
            # Under an epoch that is over, and so short that no mutation makes it one that could be believed.
            whole = calls((op, [past if argument == epoch else argument for argument in arguments]))
            for _ in range(30):
                yield case(f"{op.name}, mutated", mutate(dice, whole, (b"\xff", b"\0", b"\x1b" + b"\xff" * 8, b"\x80")))
    for at in range(5):
        for value in odd:
            yield case(
                "STORE of an odd record",
                calls((Op.STORE, [partition, epoch, life, KEY, *record[:at], value, *record[at + 1 :]])),
            )
    for value in odd:
        yield case("STORE along an odd chain", calls((Op.STORE, [partition, epoch, life, KEY, *record, [value]])))
        yield case(
            "STORE to an odd address", calls((Op.STORE, [partition, epoch, life, KEY, *record, [["w", "i", value]]]))
        )
    for address in (
        "",
        ":",
        "127.0.0.1",
        "127.0.0.1:0",
        "127.0.0.1:99999",
        "127.0.0.1:-1",
        "[::1",
        "\0:1",
        "a\nb:1",
        "x" * 300 + ":1",
    ):
        yield case(
            "STORE to an address that is none",
            calls((Op.STORE, [partition, epoch, life, KEY, *record, [["w", "i", address]]])),
        )
        yield case("ENLIST of an address that is none", calls((Op.ENLIST, [address])))
    hops = [["w", "i", f"127.0.0.1:{port}"] for port in range(1, 201)]
    yield case(
        "STORE along 200 chains", calls(*((Op.STORE, [partition, epoch, life, KEY, *record, [hop]]) for hop in hops))
    )
    yield case(
        "STORE along a chain of 100,000", calls((Op.STORE, [partition, epoch, life, KEY, *record, [hops[0]] * 100_000]))
    )
    large = b"x" * (VALUE_BYTES_MAX + 1)
    yield case("STORE of a value too large", calls((Op.STORE, [partition, epoch, life, KEY, *record[:4], large])))
    for many in (100_000, 800_000):
        pairs = list_head(many) + b"\x82\x07\x01" * many
        name = bytes(cbor2.dumps(life))
        yield case(f"DIGEST of {many:,} times one partition", raw_frame(_one_call(Op.DIGEST, 2) + name + pairs))
        behind = b"\x40\xf6\x18\x64\xf5"  # no prefix, no key to go on after, 100 rows, with values
        yield case(f"LIST of {many:,} times one partition", raw_frame(_one_call(Op.LIST, 6) + name + pairs + behind))
    for absent in (1024, 65_000, 0xFFFE):
        yield case("DIGEST of a partition that there is not", calls((Op.DIGEST, [life, [[absent, 1]]])))
        yield case("LIST of a partition that there is not", calls((Op.LIST, [life, [[absent, 1]], b"", None, 9, True])))
    everything = [[number, past] for number in range(1024)]
    yield case("DIGEST of all partitions, past", calls((Op.DIGEST, [life, everything])))
    yield case("LIST of all partitions, past", calls((Op.LIST, [life, everything, b"", None, 10_000, True])))
    yield case("many calls at once", calls(*(((Op.FETCH, good[Op.FETCH])),) * 20_000))
    yield case("many heartbeats", calls(*(((Op.HEARTBEAT, [])),) * 20_000))
    yield case("one id for all calls", frame([CALLS, [[1, 1, 5]] * 5000]))
    for op in (Op.STORE, Op.FETCH, Op.LIST, Op.DISCARD, Op.DIGEST, Op.FORGET):
        again = [*good[op]]
        again[0 if op in (Op.LIST, Op.DIGEST) else 2] = "0123456789abcdef"
        yield case(f"{op.name} for another life", calls((op, again)))


# --- what a worker answers that is none -------------------------------------------------------------------------------


def odd_answer(dice: random.Random, op: int, epoch: int) -> list[Any]:
    """An answer `[fault, payload]` that the caller cannot use."""
    row = [dice.choice((0, 1023, 1024, 65_000, 65_534, EPOCH_MAX, -1)), b"fuzz-fake", epoch, 1, epoch, 1, b""]
    summary = [dice.choice((0, 1023, 65_000)), dice.choice((0, EPOCH_MAX)), EPOCH_MAX, EPOCH_MAX, 0]
    payloads: list[Any] = [
        [], [None], [[]], [[], []], [[], [], False], [[], [], True], [[], [row], False], [[], [row] * 3, True],
        [[[65_000, 1]], [], False], [[[0, EPOCH_MAX]], [], False], [[], [summary]], [[], [summary] * 2000],
        [[[0, EPOCH_MAX]], []], [EPOCH_MAX], [-1], ["x"], [b""], [epoch, 1, epoch, 1, b"x"], [1, 2, 3, 4, 5],
        [EPOCH_MAX, EPOCH_MAX, EPOCH_MAX, EPOCH_MAX, None], [[], [[0, b"", 1, 1, 1, 1, b""]], False],
        [[], [[0, b"x" * 5000, 1, 1, 1, 1, b""]], False],
        dice.choice(ODD), [dice.choice(ODD)], [dice.choice(ODD)] * 3,
    ]  # fmt: skip
    payload = dice.choice(payloads)
    fault = dice.choice((0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 99, -1, -2, -3, EPOCH_MAX))
    return [fault, payload if isinstance(payload, list) else [payload]]


def good_vitals(process: str, master: str = "") -> list[Any]:
    """The vitals of a worker that this master has greeted (its incarnation; "": none has)."""
    return Vitals(0, Full.NO, "memory", None, process, master, (Start(1, "fuzz"),), 0, "", 0, {"zone": "a"}).to_wire()


def odd_vitals(process: str) -> Iterator[list[Any]]:
    """A worker's vitals with each field odd in turn."""
    good = good_vitals(process)
    for at in range(len(good)):
        for value in (*ODD, "9999999999/x", f"{EPOCH_MAX}/x"):
            yield [*good[:at], value, *good[at + 1 :]]
    for length in range(len(good)):
        yield good[:length]
    yield [*good, 0]


def odd_greetings(cluster: str, node: str) -> Iterator[bytes]:
    """Greetings from an address that is to be enlisted. None of them is of a worker that can be used."""
    good = [MAGIC, PROTOCOL, "worker", node, "fuzz-life", cluster]
    for at in (0, 1, 2, 5):
        for value in (*ODD, "master", 2):
            yield frame([*good[:at], value, *good[at + 1 :]])
    for body in FOREIGN.values():
        yield raw_frame(body[:4096])
    yield from GREETINGS.values()
    yield frame([REFUSAL, "\x1b[2J" * 100])
    yield frame([REFUSAL, None])
    yield b"\xff" * 4
