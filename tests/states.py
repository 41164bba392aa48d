"""Documents as `GET /v1/cluster` answers them, for tests of what is said of a cluster."""

from __future__ import annotations

from typing import Any


def state_of(readable: int = 1024, writable: int = 1024, short: int = 0, **changes: Any) -> dict[str, Any]:
    """A cluster of three replicas in mode m, which is whole unless it is said otherwise."""
    return {
        "cluster": "c-1", "version": "1", "term": 3, "mode": "m", "promise": "CP", "replicas": 3, "copies": 2,
        "uptime_s": 3661.0, "forming": None,
        "modes": [
            {"name": "m", "promise": "CP", "gives_up": "much", "use_when": "now"},
            {"name": "other", "promise": "AP", "gives_up": "more", "use_when": "never"},
        ],
        "partitions": {
            "total": 1024, "settled": 1024, "readable": readable, "writable": writable, "short": short, "crowded": 0,
        },
        "workers": [],
        "operations": {"committed": 1, "refused": 2, "unknown": 3}, "in_flight": 4, "pending": 5,
        "progress": progress_of(), **changes,
    }  # fmt: skip


def progress_of(
    settling: int = 0, operation: dict[str, Any] | None = None, seconds_left: float | None = 61.0
) -> dict[str, Any]:
    return {
        "settling": settling, "keys_compared": 1200, "bytes_moved": 2_500_000, "seconds_left": seconds_left,
        "operation": operation,
    }  # fmt: skip


def worker_of(state: str = "up", place: str = "member", note: str = "", **changes: Any) -> dict[str, Any]:
    return {
        "id": "w-1", "address": "a:1", "incarnation": "i", "storage": "memory", "state": state, "place": place,
        "note": note, "primaries": 1, "copies": 2, "keys": 1000, "full": False, "disk_full": False, "max_keys": 1000,
        "last_heard_s": 0.25, "process": "running", "pid": 7, "link": "whole", "delay_ms": 0.0, "labels": {},
        **changes,
    }  # fmt: skip


def masters_of(leader: int | None = 0, count: int = 3, silent: int = 0) -> dict[str, Any]:
    """So many masters, of which one leads, or none. `silent`: endpoints of their store that cannot be reached."""
    masters = [
        {"name": f"m-{n}", "address": f"h:800{n}", "http": f"h:808{n}", "role": "leader" if n == leader else "standby"}
        for n in range(count)
    ]  # fmt: skip
    endpoints = [
        {"endpoint": f"e:{n}", "reachable": n >= silent, "error": "refused" if n < silent else None} for n in range(3)
    ]
    return {
        "leader": None
        if leader is None
        else {**{name: masters[leader][name] for name in ("name", "address", "http")}, "since": "today", "term": 4},
        "masters": masters,
        "answered_by": "m-0",
        "config_store": {"kind": "etcd", "endpoints": endpoints, "error": "no answer" if silent == 3 else None},
    }
