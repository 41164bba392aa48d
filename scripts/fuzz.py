#!/usr/bin/env python3
"""Send malformed and hostile bytes to a cluster of real processes, and judge how it takes them.

    python scripts/fuzz.py --seed 1
    python scripts/fuzz.py --seed 1 --requests 2000 --only http

The cluster has a master and three workers. It gets HTTP/1.1 requests by a grammar of every route, and their mutations,
in pieces, pipelined, cut off; HTTP/2, upgrades and other protocols at the HTTP port; nonsense and wrong calls at every
RPC port; workers that greet well and answer nonsense. The rules are in `trikv/testing/fuzz/judge.py`: no process ends,
no 5xx but 503, 504 and 507, no refused write is found and every committed one is, memory and logs stay within bounds.

Prints the seed, the answers by status, the memory of each process, and the exact bytes that broke a rule. The cases
follow from the seed; their timing depends on the machine. Exit code 1 if a rule was broken.
"""

from __future__ import annotations

import argparse
import random
import sys

from trikv.testing.fuzz.run import Fuzz, report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--requests", type=int, default=10_000, help="connections of HTTP/1.1")
    parser.add_argument("--seconds", type=float, help="begin no further connections of HTTP/1.1 after so long")
    parser.add_argument("--share", type=float, default=1.0, help="of the other blocks, up to 1")
    parser.add_argument("--only", action="append", default=[], help="blocks whose names begin so; may be repeated")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    fuzz = Fuzz(seed=seed, requests=options.requests, seconds=options.seconds, share=options.share, only=options.only)
    try:
        fuzz.run()
    finally:
        for line in report(fuzz):
            print(line, flush=True)
    return 1 if fuzz.findings else 0


if __name__ == "__main__":
    sys.exit(main())
