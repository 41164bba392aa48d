"""Which of several masters leads, and until when its word counts: the door to a config store that masters share.

Masters that share a config store agree on one leader through it. The leader key of the store is bound to a lease. Who
creates the key leads, as long as the lease is renewed; the others stand by and watch. The first act of a new leader is
to take a new term in the document, by compare-and-set, so a leader that was deposed can change the document no more. It
serves only if its lease still holds after that: otherwise the former leader may have had the lead again in between.

*What the lease is for.* A deposed leader may go on for some time before it hears of its successor. Where an answer
needs several replicas, the epochs hold it off. An answer that rests on fewer replicas than hold each write is believed
only if `holds()` is true after the answer has arrived. So `holds()` may be true only while no other master can have
begun to lead: it counts from before the last successful renewal was *sent*, less a margin for clocks that run at
different rates, and by a clock that counts the time of a suspended machine.

*What the lease is not for.* Leadership does not end with it. While the store cannot be reached, no other master can
begin to lead either, so the leader goes on with what needs no lease. It ends when the store says that another master
leads, or that the document has changed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import trio

from trikv.master.configstore import ConfigStore
from trikv.net.signal import Signal

LEASE_MARGIN: Final = 0.1  # of the lease, for clocks that run at different rates


class Candidate(NamedTuple):
    """A master, as the others see it in the store. `name` is drawn at each start of its process."""

    name: str
    address: str  # where masters and workers reach it, HOST:PORT
    http: str  # where clients and browsers reach it, HOST:PORT


class Leader(NamedTuple):
    """The master that leads, and since when: an ISO time by its own clock, for people."""

    master: Candidate
    since: str


class SharedConfigStore(ConfigStore):
    """A config store that several masters share.

    `leader` and `masters` are as the store last told; they may be out of date. `changed` is given whenever one of them,
    or `leads`, becomes different. `leads`: this master created the leader key and has not heard that it lost it.
    """

    leader: Leader | None
    masters: Sequence[Candidate]
    changed: Signal
    leads: bool

    @abstractmethod
    async def run(self, me: Candidate, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Show this master among `masters`, watch the leader key, and renew the lease, until cancelled.

        It starts once the store was reached. An outage after that is waited out, with one line in the log.

        A lease that ended, of a leader that nobody replaced, is taken anew if the document is still the one that this
        master wrote. If not, or if another master leads, `leads` becomes False.

        Raises:
          ConfigStoreError: the store cannot be reached at the start, or refuses this client; one line with the remedy.
        """

    @abstractmethod
    async def take_lead(self, since: str) -> bool:
        """Try once to become the leader; False: another one is, or the store does not answer."""

    @abstractmethod
    async def give_up_lead(self) -> None:
        """Stop leading, so that another master can begin at once; returns soon also where the store does not answer."""

    @abstractmethod
    def holds(self) -> bool:
        """Can no other master have begun to lead by now?"""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """For the status: `kind`, `endpoints` with what is known of each, and `error`, the last one, or None."""
