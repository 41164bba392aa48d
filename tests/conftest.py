"""Properties are tested with the same examples at every run, so that a red run is red again for whoever looks into it.

`HYPOTHESIS_PROFILE=explore python3 scripts/dev.py test tests/core` looks further afield: new examples at each run, from
a seed that the head of the report names, so that `--hypothesis-seed` brings them back. No example has a deadline: a
test says nothing about time.
"""

import os
import random

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("explore", max_examples=2000, database=None, deadline=None, print_blob=True)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "repeatable")
settings.load_profile(PROFILE)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed before Hypothesis looks for one."""
    if PROFILE != "repeatable" and config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = random.getrandbits(32)


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.getoption("--hypothesis-seed")
    return f"examples: {PROFILE}" + (f", --hypothesis-seed={seed}" if seed is not None else "")
