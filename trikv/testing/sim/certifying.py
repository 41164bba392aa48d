"""What is played to certify a strategy: four kinds of worlds in turn.

    usual      a minute of storms, in which clients and faults gather
    aimed      one half-done write after another (`aimed.py`)
    changing   workers come and go
    crowded    many clients, one key, masters that die

In all of them the number of replicas and the sizes differ (`variety.py`). The mode is not switched, since it is on
trial.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from trikv.api import Strategy
from trikv.testing.sim.aimed import Aimed
from trikv.testing.sim.plan import CHANGING, CROWDED, Plan, Schedule, SourceOfSchedules
from trikv.testing.sim.variety import Varied


@dataclass(frozen=True, slots=True)
class InTurn:
    """Several sources of schedules, of which each seed follows one."""

    sources: tuple[SourceOfSchedules, ...]

    def draw(self, strategy: Strategy, seed: int) -> Schedule:
        """The schedule of this seed."""
        return self.sources[seed % len(self.sources)].draw(strategy, seed)


CERTIFYING: Final = InTurn((Varied(Plan()), Aimed(), Varied(replace(CHANGING, modes=())), Varied(CROWDED)))
