"""Is a history linearizable? The entry point, which judges every key and gives one verdict.

A history is linearizable exactly if that of every key is (Herlihy and Wing 1990, section 3.3), so each key is judged
alone. zones.py judges it in n log n. Where that is not certain (compare-and-set from or to absence, a compare-and-set
that met another value, two writes of one value), search.py decides. A search that runs out of steps leaves its key *not
decided*. That is a verdict of its own, and not a pass.

Only what clients asked and saw counts here, and when. Stamps do not count: a cluster that gives wrong stamps must not
be cleared by them. audit.py checks the stamps, and modes that promise less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from trikv.testing.judge import search, zones
from trikv.testing.judge.history import Finding, Judgement, Operation, by_key

STEPS_MAX: Final = 300_000  # for one key's search: a second or two;
STEPS_PER_OPERATION_MAX: Final = 50  # added for each of its operations


@dataclass(frozen=True, slots=True)
class KeyVerdict:
    """The verdict on one key. `steps` are those of the search; 0 if the zones decided."""

    key: str
    judgement: Judgement
    operations: int
    steps: int = 0
    finding: Finding | None = None


@dataclass(frozen=True, slots=True)
class LinearVerdict:
    """The verdict on a history. `keys` are in their order."""

    keys: tuple[KeyVerdict, ...]

    @property
    def judgement(self) -> Judgement:
        """One violation is a violation; else one undecided key leaves the whole undecided."""
        found = {key.judgement for key in self.keys}
        for judgement in (Judgement.VIOLATION, Judgement.UNDECIDED):
            if judgement in found:
                return judgement
        return Judgement.LINEARIZABLE

    @property
    def findings(self) -> list[Finding]:
        return [key.finding for key in self.keys if key.finding is not None]

    @property
    def undecided(self) -> list[str]:
        """The keys that were not decided."""
        return [key.key for key in self.keys if key.judgement is Judgement.UNDECIDED]

    def __str__(self) -> str:
        operations = sum(key.operations for key in self.keys)
        lines = [f"{self.judgement.value}: {operations} operations on {len(self.keys)} keys"]
        lines += [str(finding) for finding in self.findings]
        if self.undecided:
            lines.append(f"not decided within the steps given: {', '.join(self.undecided)}")
        return "\n".join(lines)


def check(operations: Iterable[Operation], *, steps_max: int | None = None) -> LinearVerdict:
    """Judge a history. `steps_max` bounds the search of each key that needs one; the constants give the default."""
    keys = by_key(operations)
    return LinearVerdict(tuple(_check_key(key, keys[key], steps_max) for key in sorted(keys)))


def _check_key(key: str, operations: list[Operation], steps_max: int | None) -> KeyVerdict:
    ruling = zones.judge(key, operations)
    if ruling.finding is not None:
        return KeyVerdict(key, Judgement.VIOLATION, len(operations), 0, ruling.finding)
    if ruling.exact:
        return KeyVerdict(key, Judgement.LINEARIZABLE, len(operations))
    if steps_max is None:
        steps_max = STEPS_MAX + STEPS_PER_OPERATION_MAX * len(operations)
    result = search.search(key, operations, steps_max)
    return KeyVerdict(key, result.judgement, len(operations), result.steps, result.finding)
