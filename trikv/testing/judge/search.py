"""Is one key's history linearizable? The search: it decides every history, given enough steps.

After Wing and Gong, "Testing and Verifying Concurrent Objects" (1993), with the memory of states that Lowe added
("Testing for linearizability", 2017), in his just-in-time order. We walk through the events and keep the set of all
*configurations* that explain what was seen so far. A configuration says which of the operations under way have taken
effect (bits), and what the key then holds. When an operation ends, it must have taken effect. In a configuration where
it has not, operations that are under way take effect, in every order that their conditions allow, until it has. A
configuration that was met before is not looked at again. When no configuration is left, the operation that just ended
cannot be explained.

Four rules keep the set small, and lose nothing:
- An operation that only looks takes effect at the first moment that agrees with it, since it changes nothing.
- A value that was written once cannot come back. So while a later operation still needs it, it may not be replaced.
- A write whose value no operation needs happens just before another write, if there is one. (The rule does not hold if
  some cas failed because the key held another value: then any write may be what it met.)
- An unknown write whose value no operation needs did not happen, with the same exception. Under the exception such
  writes are *spares*: each can be used once, but they need not be told apart. And of two configurations that differ
  only in what has no end, the one that used less of it is never worse.

Cost: proportional to the operations for a few clients on one key; exponential in the writes of one key that are under
way at once. `steps` counts configurations that were made or looked at, a few µs each. Beyond `steps_max` the history is
not decided.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import le
from typing import Final

from trikv.core.errors import Outcome
from trikv.testing.judge.history import Finding, Judgement, Kind, Operation

SHRINK_STEPS_MAX: Final = 200_000  # spent on making a violation readable
SHOWN_MAX: Final = 40  # operations that a finding names

_ANY: Final = -1  # a condition that always holds
_SAME: Final = -1  # an effect that leaves the state as it is
_ABSENT: Final = 0  # states are numbers: absence,
_OTHER: Final = 1  # any value that no operation looks for,
_FIRST_VALUE: Final = 2  # and from here on one state for each value that some operation looks for

_SPARES: Final = ((_ANY, _OTHER), (_ANY, _ABSENT), (_ABSENT, _OTHER))  # by condition and effect

_Used = tuple[int, ...]  # how many spares of each kind
_Configuration = tuple[int, int, _Used]  # bits of those that took effect, state, spares used


@dataclass(frozen=True, slots=True)
class Result:
    judgement: Judgement
    finding: Finding | None
    steps: int


@dataclass(slots=True, eq=False)
class _Move:
    """An operation as the search sees it: possible if the state is `need` (with `unless`: if it is not)."""

    operation: Operation
    need: int
    unless: bool
    effect: int
    needless: bool = False  # no operation needs what it writes or looks for its traces
    bit: int = 0  # while it is under way; 0 for an operation without an end that cannot happen twice

    def allows(self, state: int) -> bool:
        return self.need == _ANY or (state == self.need) is not self.unless


def search(key: str, operations: Sequence[Operation], steps_max: int) -> Result:
    """Judge the operations of one key, in order of their beginning, as `by_key` gives them."""
    walk = _Walk(operations, steps_max)
    if walk.run() is not Judgement.VIOLATION:
        return Result(walk.judgement, None, walk.steps)
    shown = _shrink(operations, walk.horizon)
    which = "these" if len(shown) <= SHOWN_MAX else f"{len(shown)} operations, of which these are the last,"
    why = f"in no order can {which} have happened one by one and seen what they saw"
    return Result(Judgement.VIOLATION, Finding("not linearizable", key, why, tuple(shown[-SHOWN_MAX:])), walk.steps)


class _Walk:
    """One walk through a history. After a violation, the operations that began before `horizon` alone violate.

    In an open world the key may have held anything at first, and unrecorded clients may write values to it that no
    operation looks for. So a violation there is a violation in any surroundings.
    """

    def __init__(self, operations: Sequence[Operation], steps_max: int, *, open_world: bool = False) -> None:
        self.steps = 0
        self.judgement = Judgement.UNDECIDED
        self.horizon = 0
        self._steps_max = steps_max
        self._moves, states = _moves(operations)
        written = Counter(move.effect for move in self._moves)
        self._first_states = range(states) if open_world else (_ABSENT,)
        self._returns = [state < _FIRST_VALUE or written[state] > 1 for state in range(states)]
        # For each state that cannot come back: the beginning and end of the last operation that needs it.
        self._needed_until = [(-1, -1)] * states
        self._unknown_writer: dict[int, _Move] = {}
        for move in self._moves:  # in order of beginning
            op = move.operation
            if move.need != _ANY and not move.unless and op.ended is not None and not self._returns[move.need]:
                self._needed_until[move.need] = (op.began, op.ended)
            if op.ended is None and not self._returns[move.effect]:
                self._unknown_writer[move.effect] = move
        self._looks: list[_Move] = []  # under way
        self._deeds: list[_Move] = []  # under way
        self._spares = [0] * len(_SPARES)  # of each kind, how many have begun
        if open_world:
            self._spares[_SPARES.index((_ANY, _OTHER))] = sys.maxsize
        self._free_bits: list[int] = []
        self._bits = 0  # how many bits there are, free or not
        self._optional = 0  # the bits of operations that have no end

    def run(self) -> Judgement:
        events = [(move.operation.began, False, move) for move in self._moves]
        events += [(move.operation.ended, True, move) for move in self._moves if move.operation.ended is not None]
        events.sort(key=lambda event: event[0])
        configurations: set[_Configuration] = {(0, state, (0,) * len(_SPARES)) for state in self._first_states}
        for place, is_end, move in events:
            configurations = self._end(move, configurations, place) if is_end else self._begin(move, configurations)
            if self.steps > self._steps_max:
                return self.judgement
            if not configurations:
                self.horizon = max(self.horizon, place)
                self.judgement = Judgement.VIOLATION
                return self.judgement
        self.judgement = Judgement.LINEARIZABLE
        return self.judgement

    def _begin(self, move: _Move, configurations: set[_Configuration]) -> set[_Configuration]:
        if move.operation.ended is None:
            if (move.need, move.effect) in _SPARES:
                self._spares[_SPARES.index((move.need, move.effect))] += 1
                return configurations
            if move.need != _ANY and not self._returns[move.need]:  # it ends the only state in which it can happen
                self._deeds.append(move)
                return configurations
        if self._free_bits:
            move.bit = self._free_bits.pop()
        else:
            move.bit = 1 << self._bits
            self._bits += 1
        if move.operation.ended is None:
            self._optional |= move.bit
        if move.effect != _SAME:
            self._deeds.append(move)
            return configurations
        self._looks.append(move)
        self.steps += len(configurations)
        return {(done | move.bit if move.allows(state) else done, state, used) for done, state, used in configurations}

    def _end(self, move: _Move, configurations: set[_Configuration], place: int) -> set[_Configuration]:
        bit = move.bit
        self.steps += len(configurations)
        explained = {(done & ~bit, state, used) for done, state, used in configurations if done & bit}
        met = {configuration for configuration in configurations if not configuration[0] & bit}
        open_ends = list(met)
        while open_ends and self.steps <= self._steps_max:
            configuration = open_ends.pop()
            needed_begin, needed_end = self._needed_until[configuration[1]]
            if needed_begin > place:
                self.horizon = max(self.horizon, needed_end)
                continue
            for done, state, used in self._next(configuration):
                self.steps += 1
                if done & bit:
                    explained.add((done & ~bit, state, used))
                elif (done, state, used) not in met:
                    met.add((done, state, used))
                    open_ends.append((done, state, used))
        self._forget(move)
        writer = self._unknown_writer.get(move.need)
        if writer is not None and writer.bit and all(done & writer.bit for done, _, _ in explained):
            del self._unknown_writer[move.need]
            explained = {(done & ~writer.bit, state, used) for done, state, used in explained}
            self._forget(writer)
        return _best(explained, self._optional) if self._optional or any(self._spares) else explained

    def _next(self, configuration: _Configuration) -> Iterator[_Configuration]:
        """Every configuration that one more write under way leads to."""
        done, state, used = configuration
        for deed in self._deeds:
            if not done & deed.bit and deed.allows(state):
                after = done | deed.bit
                if deed.need == _ANY:
                    for other in self._deeds:
                        if other.needless:
                            after |= other.bit
                yield self._look(after, deed.effect), deed.effect, used
        absence_wanted = any(deed.need == _ABSENT and not done & deed.bit for deed in self._deeds)
        for kind, (need, effect) in enumerate(_SPARES):
            if used[kind] < self._spares[kind] and need in (_ANY, state) and effect != state:
                after = self._look(done, effect)
                if after != done or (effect == _ABSENT and absence_wanted):  # else the spare can wait
                    yield after, effect, (*used[:kind], used[kind] + 1, *used[kind + 1 :])

    def _look(self, done: int, state: int) -> int:
        """`done` with all operations that only look and agree with this state."""
        for look in self._looks:
            if look.allows(state):
                done |= look.bit
        return done

    def _forget(self, move: _Move) -> None:
        """The operation has taken effect in every configuration, so its bit is free."""
        (self._looks if move.effect == _SAME else self._deeds).remove(move)
        self._free_bits.append(move.bit)
        self._optional &= ~move.bit


def _best(configurations: set[_Configuration], optional: int) -> set[_Configuration]:
    """The configurations without those that differ from another only in having used more spares and optional bits."""
    alike: dict[tuple[int, int], list[_Configuration]] = {}
    for configuration in configurations:
        done, state, _ = configuration
        alike.setdefault((done & ~optional, state), []).append(configuration)
    best = set()
    for rivals in alike.values():
        if len(rivals) > 1:
            rivals.sort(key=lambda rival: ((rival[0] & optional).bit_count(), sum(rival[2])))
        kept: list[_Configuration] = []
        for rival in rivals:  # none is worse than a later one
            if not any(_no_worse(other, rival) for other in kept):
                kept.append(rival)
        best.update(kept)
    return best


def _no_worse(one: _Configuration, other: _Configuration) -> bool:
    """Of two alike: did `one` use nothing optional that `other` did not?"""
    return not one[0] & ~other[0] and all(map(le, one[2], other[2]))


def _moves(operations: Sequence[Operation]) -> tuple[list[_Move], int]:
    """The operations that the search has to place, and the number of states."""
    mismatches = [operation for operation in operations if operation.saw_mismatch]
    needed = _needed(operations)
    numbers: dict[str | None, int] = {None: _ABSENT}
    for value in (*needed, *(operation.expect for operation in mismatches)):
        numbers.setdefault(value, len(numbers) + 1)  # 1 is _OTHER
    moves = []
    for op in operations:
        looks = op.kind is Kind.GET
        if (looks and op.outcome is not Outcome.COMMITTED) or (op.outcome is Outcome.REFUSED and not op.saw_mismatch):
            continue
        if op.ended is None and op.value not in needed and not mismatches:
            continue
        if looks:
            moves.append(_Move(op, numbers[op.result], False, _SAME))
            continue
        need = numbers[op.expect] if op.kind is Kind.CAS else _ANY
        if op.saw_mismatch:
            moves.append(_Move(op, need, True, _SAME))
        else:
            needless = need == _ANY and op.value not in needed and not mismatches
            moves.append(_Move(op, need, False, numbers.get(op.value, _OTHER), needless))
    return moves, len(numbers) + 1


def _needed(operations: Sequence[Operation]) -> set[str | None]:
    """The values (None: absence) that some operation needs."""
    needed: set[str | None] = set()
    for operation in operations:
        if operation.kind is Kind.GET and operation.outcome is Outcome.COMMITTED:
            needed.add(operation.result)
        elif operation.kind is Kind.CAS and operation.outcome is not Outcome.REFUSED:
            needed.add(operation.expect)
    return needed


# --- the smallest readable evidence -------------------------------------------------------------------------------


def _shrink(operations: Sequence[Operation], horizon: int) -> list[Operation]:
    """A violation of few operations, within one of those that began before `horizon`.

    First its end alone is tried, if that is a violation in an open world. Then operations are left out: reads and
    refusals, and writes whose values no operation needs. Those cannot be to blame.
    """
    originals = {op.began: op for op in operations}
    kept = [_cut(op, horizon) for op in operations if op.began < horizon and _matters(op, horizon)]
    steps = SHRINK_STEPS_MAX
    open_world = False
    has_mismatch = any(operation.saw_mismatch for operation in kept)
    size = SHOWN_MAX // 4
    while size < 2 * len(kept) and steps > 0 and not open_world:
        late = _since(kept, kept[max(0, len(kept) - size)].began)
        walk = _Walk(late, steps, open_world=True)
        if walk.run() is Judgement.VIOLATION:
            kept, open_world = late, True
        steps -= walk.steps + len(late)
        size *= 2
    size = len(kept)
    while size and steps > 0:
        start = len(kept)
        shrunk = False
        while start > 0 and steps > 0:
            start = max(0, start - size)
            fewer = _without(kept, start, size, writes_too=open_world or not has_mismatch)
            if len(fewer) == len(kept):
                continue
            walk = _Walk(fewer, steps, open_world=open_world)
            if walk.run() is Judgement.VIOLATION:
                kept, shrunk = fewer, True
            steps -= walk.steps + len(fewer)
        if not shrunk or size > 1:
            size //= 2
    return [originals[op.began] for op in kept]


def _since(operations: list[Operation], place: int) -> list[Operation]:
    """The operations that began there or later, from any state, and the earlier writes that may still take effect."""
    before = [op for op in operations if op.began < place <= _end(op)]
    pending = [op for op in before if op.kind is not Kind.GET and op.outcome is not Outcome.REFUSED]
    later = [op for op in operations if op.began >= place]
    return [replace(op, ended=None, outcome=Outcome.UNKNOWN) for op in pending] + later


def _end(operation: Operation) -> int:
    return sys.maxsize if operation.ended is None else operation.ended


def _matters(operation: Operation, place: int) -> bool:
    """Can it be to blame? A read or a refusal can only if it saw something, and ended by then."""
    if operation.kind is Kind.GET or operation.outcome is Outcome.REFUSED:
        saw = operation.outcome is Outcome.COMMITTED or operation.saw_mismatch
        return saw and operation.ended is not None and operation.ended <= place
    return True


def _cut(operation: Operation, place: int) -> Operation:
    """The operation as it was known at that place of the history: if it had not ended, it is unknown."""
    if operation.ended is None or operation.ended <= place:
        return operation
    return replace(operation, ended=None, outcome=Outcome.UNKNOWN)


def _without(operations: list[Operation], start: int, size: int, *, writes_too: bool) -> list[Operation]:
    """Without those of a stretch that may be left out: looks, and with `writes_too` writes that no operation needs."""
    needed = _needed(operations)

    def may_go(operation: Operation) -> bool:
        looks = operation.kind is Kind.GET or operation.outcome is Outcome.REFUSED
        return looks or (writes_too and operation.value not in needed)

    stretch = [operation for operation in operations[start : start + size] if not may_go(operation)]
    return operations[:start] + stretch + operations[start + size :]
