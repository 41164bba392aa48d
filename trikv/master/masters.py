"""The masters that share a config store, as JSON-ready values: which one leads, since when, and which stand by."""

from __future__ import annotations

from typing import Any

from trikv.master.leadership import Candidate, SharedConfigStore


def describe_masters(store: SharedConfigStore, me: Candidate, term: int | None) -> dict[str, Any]:
    """What `GET /v1/masters` answers, as `me` sees it. `term`: the leader's, or None if it is not known here."""
    leader = store.leader
    leads = None if leader is None else leader.master.name
    masters = {master.name: master for master in store.masters}
    if leader is not None:
        masters.setdefault(leader.master.name, leader.master)
    masters.setdefault(me.name, me)  # where the store cannot be reached, its entry may have ended
    return {
        "leader": None if leader is None else {**leader.master._asdict(), "since": leader.since, "term": term},
        "masters": [
            {**master._asdict(), "role": "leader" if master.name == leads else "standby"}
            for master in sorted(masters.values(), key=lambda master: (master.address, master.name))
        ],
        "answered_by": me.name,
        "config_store": store.describe(),
    }
