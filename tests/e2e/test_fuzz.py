"""A short run of `scripts/fuzz.py`; what breaks a rule is printed with its bytes."""

from trikv.testing.fuzz.run import Fuzz, report

SEED = 9
REQUESTS = 160
SHARE = 0.03  # of 9,000 other cases


def test_nothing_that_arrives_ends_a_node_or_makes_it_lie() -> None:
    print(f"python scripts/fuzz.py --seed {SEED} --requests {REQUESTS} --share {SHARE}")
    fuzz = Fuzz(seed=SEED, requests=REQUESTS, share=SHARE)
    fuzz.run()
    print("\n".join(report(fuzz)))
    assert [f"{finding.rule}: {finding.detail[:500]}" for finding in fuzz.findings] == []
    assert len([kind for kind in fuzz.kinds if not kind.startswith("HTTP/1.1")]) >= 100
    assert fuzz.statuses[204] > 0, "no write was committed, so nothing was tried"
