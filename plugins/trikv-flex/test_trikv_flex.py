"""Flexible quorums: they meet, they keep their promise, and one replica fewer would break it."""

import re

import pytest

from trikv.api import Strategy
from trikv.testing.sim import Plan, Verdict, simulate
from trikv_flex import Flex, FlexR1, FlexW1, chosen, flex

WORKERS = 5
SEEDS = range(3)  # of each choice; the certificate plays many more
SEEDS_TO_FIND = range(40)


@pytest.mark.parametrize("n", range(1, 10))
def test_whoever_reads_meets_whoever_wrote(n: int) -> None:
    for strategy in [Flex(), FlexW1(), FlexR1(), *(flex(r, w) for r in range(1, 10) for w in range(1, 10))]:
        assert 1 <= strategy.copies(n) <= n, strategy.name
        assert 1 <= strategy.asked(n) <= n, strategy.name
        assert strategy.asked(n) + strategy.copies(n) > n, strategy.name


def test_the_choices_are_what_their_names_say() -> None:
    def quorums(strategy: Flex, n: int) -> tuple[int, int]:
        return strategy.asked(n), strategy.copies(n)

    assert [quorums(Flex(), n) for n in (3, 4, 5)] == [(2, 2), (3, 2), (3, 3)]
    assert [quorums(FlexW1(), n) for n in (3, 4, 5)] == [(3, 1), (4, 1), (5, 1)]
    assert [quorums(FlexR1(), n) for n in (3, 4, 5)] == [(1, 3), (1, 4), (1, 5)]
    assert [quorums(flex(4, 2), n) for n in (3, 5, 7)] == [(3, 2), (4, 2), (6, 2)]


def test_choices_are_read_from_words() -> None:
    assert [strategy.name for strategy in chosen(" r4w2, r3w3 r4w2 ")] == ["flex-r4w2", "flex-r3w3"]
    assert chosen("") == []


@pytest.mark.parametrize("words", ["4,2", "r4", "r0w3", "r3w0", "r100w1", "R2W2", "r2w2x"])
def test_other_words_are_refused_by_name(words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words.split(",")[0])):
        chosen(words)


@pytest.mark.parametrize(
    ("strategy", "n"),
    [(Flex(), 3), (Flex(), 4), (FlexW1(), 3), (FlexR1(), 3), (flex(4, 2), 5), (flex(2, 4), 5), (flex(4, 4), 5)],
    ids=lambda value: value.name if isinstance(value, Strategy) else f"n{value}",
)
def test_the_promise_is_kept(strategy: Strategy, n: int) -> None:
    for seed in SEEDS:
        run = simulate(strategy, seed, Plan(workers=WORKERS, replicas=n))
        assert run.verdict is Verdict.HELD, (seed, run.findings)


class OneFewer(Flex):
    """Its quorums need not meet: r + w = n."""

    name = "one-fewer"

    def asked(self, n: int) -> int:
        return n - self.copies(n)


def test_with_one_replica_fewer_it_would_be_broken() -> None:
    verdicts = (simulate(OneFewer(), seed).verdict for seed in SEEDS_TO_FIND)
    assert Verdict.VIOLATION in verdicts
