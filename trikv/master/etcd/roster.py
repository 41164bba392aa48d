"""Who leads and which masters there are, put together from what etcd tells: lists of keys, and single changes.

Lists and changes come by several ways, late, twice, or from a member of etcd that is behind. Each has a revision of the
store, and the newer counts: a list replaces what is not newer than it, a change what is older. So nothing that was
learnt is unlearnt.

This decides, and no bytes move here. A name that cannot be read is passed over: another program may have written it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from trikv.master.leadership import Candidate, Leader


class KeyState(NamedTuple):
    """A key as the store has it at `revision`; a value of None: it was deleted then."""

    key: str
    value: bytes | None
    revision: int


class Roster:
    """
    Args:
      leader_key: the key of the leader; every other key is a master's.
    """

    def __init__(self, leader_key: str) -> None:
        self.revision = 0  # of the last list
        self.leader: Leader | None = None
        self.masters: tuple[Candidate, ...] = ()
        self._leader_key = leader_key
        self._states: dict[str, KeyState] = {}  # those of the last list, and what changed since, deletions included

    @property
    def leader_state(self) -> KeyState | None:
        """The last that was heard of the leader's key; None: it was in no list, and nothing was heard since."""
        return self._states.get(self._leader_key)

    def take_list(self, states: Iterable[KeyState], revision: int) -> bool:
        """All keys at that revision. Has what is known become different?"""
        if revision < self.revision:
            return False
        newer = {key: state for key, state in self._states.items() if state.revision > revision}
        self.revision = revision
        self._states = {state.key: state for state in states} | newer
        return self._look()

    def take(self, state: KeyState) -> bool:
        """One change. Has what is known become different?"""
        known = self._states.get(state.key)
        if state.revision <= (self.revision if known is None else max(known.revision, self.revision)):
            return False
        self._states[state.key] = state
        return self._look()

    def forget(self) -> None:
        """The store went back in time (it was restored from a backup): the next list counts, whatever it says."""
        self.revision = 0
        self._states.clear()

    def _look(self) -> bool:
        before = self.leader, self.masters
        there = {key: state.value for key, state in self._states.items() if state.value is not None}
        self.leader = read_leader(there.pop(self._leader_key, None))
        self.masters = tuple(sorted(master for value in there.values() if (master := read_master(value)) is not None))
        return before != (self.leader, self.masters)


def write_master(master: Candidate) -> bytes:
    return json.dumps(master._asdict()).encode()


def write_leader(leader: Leader) -> bytes:
    return json.dumps({**leader.master._asdict(), "since": leader.since}).encode()


def read_master(value: bytes) -> Candidate | None:
    found = _fields(value, *Candidate._fields)
    return None if found is None else Candidate(*found)


def read_leader(value: bytes | None) -> Leader | None:
    found = None if value is None else _fields(value, *Candidate._fields, "since")
    return None if found is None else Leader(Candidate(*found[:-1]), found[-1])


def _fields(value: bytes, *names: str) -> list[Any] | None:
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    fields = [found.get(name) for name in names]
    return fields if all(isinstance(field, str) for field in fields) else None
