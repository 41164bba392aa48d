"""Shared by the tests of certification: simulated nodes are quiet."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _quiet(quiet: None) -> None:
    """In every test."""
