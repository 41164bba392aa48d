"""Shared by the simulation's tests: the modes, and how far the search goes."""

from __future__ import annotations

import logging

import pytest

from trikv.api import Strategy
from trikv.registry import load_registry


@pytest.fixture(scope="session")
def strategies() -> dict[str, Strategy]:
    return dict(load_registry().strategies)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Nodes that die by design say much about it."""
    logging.getLogger("trikv").setLevel(logging.CRITICAL)
