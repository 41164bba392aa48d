"""Properties are tested with the same examples at every run, so that a red run is red again for whoever looks into it.

`HYPOTHESIS_PROFILE=explore pytest tests/core` looks further afield, and prints what reproduces a failure.
No example has a deadline: a test says nothing about time.
"""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None, print_blob=True)
settings.register_profile("explore", max_examples=2000, database=None, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
