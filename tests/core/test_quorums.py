"""Who must answer: the table of `trikv/core/quorums.py`, row by row, and what it promises of every history.

A row spells a configuration as `CP2 a+ b? c-`: its promise, W, and its members in their order, each with what is known
of it: up (+), doubtful (?), down (-), or down and evictable (!).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from trikv.core.configuration import Configuration, Member
from trikv.core.quorums import (
    Availability,
    Electorate,
    Need,
    Needs,
    Promise,
    are_enough_to_copy,
    assume_needs,
    can_find,
    choose_to_list,
    choose_to_settle,
    count_to_find,
    count_to_stop,
    judge,
)
from trikv.core.tally import TallyVerdict

SIGNS = {"+": Availability.UP, "?": Availability.DOUBTFUL, "-": Availability.DOWN, "!": Availability.DOWN}


@dataclass(frozen=True)
class Someone:
    member: Member
    availability: Availability
    evictable: bool


def member(name: str) -> Member:
    return Member(name, "1")


def electorate(spelled: str) -> Electorate[Someone]:
    head, *voters = spelled.split()
    members = tuple(member(voter[0]) for voter in voters)
    return Electorate(
        Configuration(members, "any", int(head[2:])),
        Promise(head[:2]),
        [Someone(member(voter[0]), SIGNS[voter[1]], voter[1] == "!") for voter in voters],
    )


def history(spelled: str) -> list[Electorate[Someone]]:
    """Configurations, the active one last, with bars between them."""
    return [electorate(each) for each in spelled.split("|")]


def named(names: str | None) -> set[Member] | None:
    return None if names is None else {member(name) for name in names}


def names(chosen: list[Someone] | None) -> str | None:
    return None if chosen is None else "".join(sorted(each.member.worker for each in chosen))


# --- read and write ---------------------------------------------------------------------------------------------------

HEAD, TAIL = Need(1, (0,)), Need(1, (-1,))


@pytest.mark.parametrize(
    ("active", "need", "verdict"),
    [
        pytest.param("CP2 a+ b+ c-", Need(2), TallyVerdict.WON, id="so many are up"),
        pytest.param("CP2 a+ b? c-", Need(2), TallyVerdict.PENDING, id="a doubtful one may make it so many"),
        pytest.param("CP2 a? b? c-", Need(2), TallyVerdict.PENDING, id="nobody was heard yet"),
        pytest.param("CP2 a+ b- c!", Need(2), TallyVerdict.LOST, id="too few can ever answer"),
        pytest.param("CP3 a+ b+ c-", Need(3), TallyVerdict.LOST, id="of all, one that is down is one too many"),
        pytest.param("CP3 a+ b+ c?", Need(3), TallyVerdict.PENDING, id="of all, one that is doubtful is awaited"),
        pytest.param("AP1 a- b- c-", Need(1), TallyVerdict.LOST, id="nobody is left"),
        pytest.param("CP3 a+ b- c-", HEAD, TallyVerdict.WON, id="the head is up, and no other matters"),
        pytest.param("CP3 a- b+ c+", HEAD, TallyVerdict.LOST, id="the head is down, and no other may stand in"),
        pytest.param("CP3 a? b+ c+", HEAD, TallyVerdict.PENDING, id="the head may answer"),
        pytest.param("CP3 a- b+ c+", TAIL, TallyVerdict.WON, id="the tail is the last"),
        pytest.param("CP2 a+ b+ c-", Need(2, (0,)), TallyVerdict.WON, id="a majority with the head in it"),
        pytest.param("CP2 a- b+ c+", Need(2, (0,)), TallyVerdict.LOST, id="a majority, and not the head"),
        pytest.param("CP2 a+ b- c-", Need(2, (0,)), TallyVerdict.LOST, id="the head, and no majority"),
        pytest.param("CP2 a+ b- c?", Need(2, (0,)), TallyVerdict.PENDING, id="the head, and perhaps a majority"),
    ],
)
def test_a_request_needs_what_its_strategy_states(active: str, need: Need, verdict: TallyVerdict) -> None:
    assert judge(electorate(active), need) is verdict


@pytest.mark.parametrize(
    ("need", "n", "told"),
    [
        (Need(3), 3, "all 3 replicas"),
        (Need(1), 1, "1 of 1 replicas"),
        (Need(2), 3, "2 of 3 replicas"),
        (HEAD, 3, "the first replica"),
        (TAIL, 3, "the last replica"),
        (TAIL, 1, "the first replica"),
        (Need(2, (0, 2)), 3, "the first replica and the last replica"),
        (Need(2, (1,)), 3, "2 of 3 replicas, replica 2 among them"),
    ],
)
def test_a_need_in_words(need: Need, n: int, told: str) -> None:
    assert need.describe(n) == told


@pytest.mark.parametrize(
    ("promise", "copies", "needs"),
    [
        pytest.param(Promise.CP, 2, Needs(Need(2), Need(2)), id="CP: a majority finds the write, and makes it safe"),
        pytest.param(Promise.CP, 1, Needs(Need(1), Need(3)), id="CP: all, to find what one copy commits"),
        pytest.param(Promise.CP, 3, Needs(Need(3), Need(3)), id="CP: all, to make the answer safe"),
        pytest.param(Promise.AP, 2, Needs(Need(2), Need(1)), id="AP: any replica answers a read"),
    ],
)
def test_what_is_assumed_of_a_strategy_that_states_nothing(promise: Promise, copies: int, needs: Needs) -> None:
    assert assume_needs(promise, copies, 3) == needs


# --- find -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "count"),
    [
        pytest.param("CP2 a+ b+ c+", 2, id="CP: R of a majority's"),
        pytest.param("CP3 a+ b+ c+", 1, id="CP: any member has what all have"),
        pytest.param("CP1 a+ b+ c+", 3, id="CP: all, where one copy is a commit"),
        pytest.param("CP2 a- b- c?", 2, id="CP: the number does not depend on who is up"),
        pytest.param("AP1 a+ b+ c+", 3, id="AP: any member may hold the write alone"),
        pytest.param("AP1 a+ b? c-", 2, id="AP: a doubtful one is asked too, one that is down is not"),
        pytest.param("AP1 a- b- c-", 1, id="AP: one at least, so that nobody is not enough"),
    ],
)
def test_to_find_a_key_so_many_answer(one: str, count: int) -> None:
    assert count_to_find(electorate(one)) == count


@pytest.mark.parametrize(
    ("one", "up", "able"),
    [
        pytest.param("CP2 a+ b+ c+", 1, False, id="CP: fewer than R"),
        pytest.param("CP2 a+ b+ c+", 2, True, id="CP: R"),
        pytest.param("CP3 a+ b+ c+", 1, True, id="CP: one, where W is all"),
        pytest.param("AP1 a+ b+ c+", 1, True, id="AP: one; the others are waited for by other rules"),
        pytest.param("AP1 a+ b+ c+", 0, False, id="AP: not none"),
    ],
)
def test_before_a_change_so_many_must_be_up(one: str, up: int, able: bool) -> None:
    asked = electorate(one)
    assert can_find(asked.configuration, asked.promise, up) is able


# --- list -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelled", "reads", "chosen"),
    [
        pytest.param("CP2 a+ b+ c+", None, "ab", id="CP: R find all, and no more are asked"),
        pytest.param("CP2 a- b+ c+", None, "bc", id="CP: those that are up"),
        pytest.param("CP2 a+ b? c-", None, None, id="CP: a doubtful one would hold up many keys"),
        pytest.param("CP3 a+ b+ c+", None, "abc", id="CP: a record that is read must be seen on W"),
        pytest.param("CP3 a+ b+ c-", None, None, id="CP: R are up, and not W"),
        pytest.param("CP3 a+ b- c-", "a", "a", id="CP, settled: what the strategy reads is a listing as well"),
        pytest.param("CP3 a- b+ c+", "a", None, id="CP, settled: nobody stands in for the one that it reads"),
        pytest.param(
            "CP3 a+ b+ c+|CP3 a+ b+ d+", "a", "abd", id="CP: what the strategy reads is no rule while settling"
        ),
        pytest.param("CP2 a+ b- c+|CP2 d+ e+ f+", None, "acde", id="CP: R of the former one as well"),
        pytest.param("CP2 a+ b- c-|CP2 a+ d+ e+", None, None, id="CP: too few of a former one"),
        pytest.param("CP2 a+ b+ c-|CP2 a+ b+ d-", None, "ab", id="CP: an answer counts for all that its member is in"),
        pytest.param("CP3 a+ b- c-|CP2 b- d+ e+", None, "ade", id="CP: of a former one R, be W what it may"),
        pytest.param("AP1 a+ b+ c+", None, "abc", id="AP: all that are up"),
        pytest.param("AP1 a+ b? c-", None, "a", id="AP: not those that are doubtful"),
        pytest.param("AP1 a- b? c-", None, None, id="AP: nobody is up"),
        pytest.param("AP1 a+ b+ c+", "a", "a", id="AP, settled: what the strategy reads"),
        pytest.param("AP1 a- b+ c+", "a", "bc", id="AP, settled: the others, where that is down"),
        pytest.param("AP1 a+ b? c+|CP2 d+ e+ f+", None, "acde", id="AP to CP: a listing waits for nobody"),
        pytest.param("AP1 a- b? c-|CP2 d+ e+ f+", None, None, id="AP to CP: nobody of the AP one is up"),
        pytest.param("CP2 a+ b+ c+|AP1 d+ e- f-", None, "abd", id="CP to AP: R, and all that are up"),
    ],
)
def test_a_listing_asks_these(spelled: str, reads: str | None, chosen: str | None) -> None:
    assert names(choose_to_list(history(spelled), named(reads))) == chosen


# --- settle -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spelled", "hung", "chosen"),
    [
        pytest.param("CP2 a+ b+ c+|CP2 b+ c+ d+", "", "abcd", id="CP: all that are up are heard"),
        pytest.param("CP2 a- b+ c+|CP2 b+ c+ d-", "", "bc", id="CP: R of each are enough"),
        pytest.param("CP2 a- b- c+|CP2 c+ d+ e+", "", None, id="CP: too few of the former one"),
        pytest.param("CP2 a+ b+ c+|CP3 b+ c+ d-", "", None, id="CP: of the active one as many as a write is on"),
        pytest.param("CP3 a- b+ c-|CP2 b+ d+ e-", "", "bd", id="CP: of the former one R, be W what it may"),
        pytest.param("CP2 a+ b+ c?|CP2 b? c? d+", "", None, id="CP: a doubtful one does not count"),
        pytest.param("CP2 a+ b+ c-|CP2 a+ b+ d+", "b", None, id="CP: one with a disk that hangs counts as down"),
        pytest.param("CP2 a+ b+ c+|CP2 b+ c+ d+", "c", "abd", id="CP: and is not asked"),
        pytest.param("AP1 a+ b- c+|AP1 a+ c+ d-", "", "ac", id="AP: all that are up"),
        pytest.param("AP1 a+ b? c+|AP1 a+ c+ d+", "", None, id="AP: a doubtful one is waited for"),
        pytest.param("AP2 a+ b+ c-|AP2 a+ c- d-", "", None, id="AP: of the active one W"),
        pytest.param("AP1 a- b- c-|AP1 d+ e+ f+", "", None, id="AP: not without anyone of the former one"),
        pytest.param("AP1 a+ b- c+|CP2 a+ c+ d+", "", None, id="AP to CP: one that is down is waited for"),
        pytest.param("AP1 a+ b! c+|CP2 a+ c+ d+", "", "acd", id="AP to CP: one that is given up is not"),
        pytest.param("AP1 a+ b+ c+|CP2 a+ c+ d-", "", None, id="AP to CP: all of the active one"),
        pytest.param("AP1 a+ b+ c+|CP2 b+ c+ d!", "", None, id="AP to CP: all of it, be one evictable"),
        pytest.param("AP1 a+ b+ c+|CP2 a+ b+ d+", "c", None, id="AP to CP: one with a disk that hangs is waited for"),
        pytest.param("AP1 a+ b+ c+|CP2 a+ b+ d+", "", "abcd", id="AP to CP: with all of them"),
        pytest.param(
            "AP1 a+ b- c+|CP2 b- c+ d+|CP2 c+ d+ e+", "", None, id="AP to CP: as long as the AP one is in the history"
        ),
        pytest.param(
            "CP2 a- b+ c+|AP1 c+ d+ e-|CP2 c+ d+ f+", "", None, id="AP between CP: its members are waited for"
        ),
        pytest.param("CP2 a- b+ c+|AP1 c+ d+ e!|CP2 c+ d+ f+", "", "bcdf", id="AP between CP: R of the CP one before"),
        pytest.param("CP2 a- b+ c+|AP1 d+ e- f-", "", "bcd", id="CP to AP: R of the former one, W of the active one"),
    ],
)
def test_settling_hears_these(spelled: str, hung: str, chosen: str | None) -> None:
    assert names(choose_to_settle(history(spelled), named(hung) or ())) == chosen


@pytest.mark.parametrize(
    ("spelled", "heard", "enough"),
    [
        pytest.param("CP2 a b c|CP2 b c d", "abcd", True, id="all were heard"),
        pytest.param("CP2 a b c|CP2 b c d", "bcd", True, id="as many are silent as a write need not be on"),
        pytest.param("CP2 a b c|CP2 c d e", "cde", False, id="two are silent: what is agreed may be on one alone"),
        pytest.param("CP2 a b c|CP2 b c d", "abc", False, id="a newcomer was not heard"),
        pytest.param("CP3 a b c|CP3 b c d", "bcd", True, id="W is all: any other holds what the silent one holds"),
        pytest.param("CP3 a b c|CP3 c d e", "cde", False, id="W is all: two are silent"),
        pytest.param("AP1 a b c|AP1 c d e", "cde", True, id="AP: one copy was a commit"),
        pytest.param("AP1 a b c|AP1 d e f", "def", False, id="AP: nobody was heard that could hold it"),
        pytest.param("CP2 a b c", "abc", False, id="settled: there is no newcomer"),
        pytest.param("CP2 a b c|CP2 b c d|CP2 c d e", "abcde", False, id="three configurations: too much to compare"),
    ],
)
def test_a_record_is_copied_as_it_is_where_enough_agree(spelled: str, heard: str, enough: bool) -> None:
    everyone = [Electorate(each.configuration, each.promise, each.voters) for each in history(up(spelled))]
    assert are_enough_to_copy(everyone, named(heard) or set()) is enough


def up(spelled: str) -> str:
    """The same, with all members up."""
    return "|".join(
        " ".join([head, *(f"{name}+" for name in members)])
        for head, *members in (configuration.split() for configuration in spelled.split("|"))
    )


# --- stop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("active", "count"),
    [
        pytest.param("CP2 a+ b+ c+", 2, id="CP: R"),
        pytest.param("CP3 a+ b+ c+", 2, id="CP: two, where R is one, lest the next failure stops the partition"),
        pytest.param("CP2 a+ b+", 1, id="CP: of two there is one other"),
        pytest.param("CP1 a+ b+ c+", 3, id="CP: all of them, so that none may be stopped"),
        pytest.param("CP1 a+", 1, id="CP: the only one may not be stopped"),
        pytest.param("AP1 a+ b+ c+", 1, id="AP: one that answers"),
    ],
)
def test_before_one_is_stopped_so_many_others_are_up(active: str, count: int) -> None:
    assert count_to_stop(electorate(active)) == count


# --- what holds of every history --------------------------------------------------------------------------------------

WORKERS = "abcdef"


@st.composite
def histories(draw: st.DrawFn, promises: tuple[Promise, ...] = tuple(Promise)) -> list[Electorate[Someone]]:
    """One to three configurations of six workers, each of which is up, doubtful, down or evictable."""
    signs = dict(zip(WORKERS, draw(st.lists(st.sampled_from("++++?-!"), min_size=6, max_size=6)), strict=True))
    spelled = []
    for _ in range(draw(st.integers(1, 3))):
        members = draw(st.lists(st.sampled_from(WORKERS), min_size=1, max_size=4, unique=True))
        head = f"{draw(st.sampled_from(promises))}{draw(st.integers(1, len(members)))}"
        spelled.append(" ".join([head, *(f"{name}{signs[name]}" for name in members)]))
    return history("|".join(spelled))


def write_quorums(one: Electorate[Someone]) -> list[set[Member]]:
    """Every set of members on which alone a committed write may be."""
    return [set(each) for each in combinations(one.configuration.members, one.configuration.copies)]


def members_of(chosen: list[Someone]) -> set[Member]:
    return {each.member for each in chosen}


@given(histories((Promise.CP,)))
def test_a_cp_listing_meets_every_write_quorum_and_sees_a_whole_one(
    configurations: list[Electorate[Someone]],
) -> None:
    chosen = choose_to_list(configurations, None)
    event(f"listed: {chosen is not None}")
    assume(chosen is not None)
    assert chosen is not None
    asked = members_of(chosen)
    assert all(asked & quorum for one in configurations for quorum in write_quorums(one))
    assert any(quorum <= asked for quorum in write_quorums(configurations[-1]))


@given(histories())
def test_what_was_committed_is_on_a_member_that_settling_hears(configurations: list[Electorate[Someone]]) -> None:
    """Under AP with one exception: where it is only on members that are down, or given up where the mode becomes CP."""
    chosen = choose_to_settle(configurations)
    event(f"settled: {chosen is not None}")
    assume(chosen is not None)
    assert chosen is not None
    heard = members_of(chosen)
    becomes_cp = configurations[-1].promise is Promise.CP
    for one in configurations:
        lost = {
            voter.member
            for voter in one.voters
            if one.is_ap and (voter.evictable if becomes_cp else voter.availability is Availability.DOWN)
        }
        assert all(heard & quorum for quorum in write_quorums(one) if not quorum <= lost), one


@given(histories(), st.sets(st.sampled_from(WORKERS)))
def test_settling_asks_all_that_are_up_and_do_not_hang_and_nobody_else(
    configurations: list[Electorate[Someone]], hung: set[str]
) -> None:
    chosen = choose_to_settle(configurations, {member(name) for name in hung})
    assume(chosen is not None)
    assert chosen is not None
    assert members_of(chosen) == {
        voter.member for one in configurations for voter in one.up() if voter.member.worker not in hung
    }
    assert len(chosen) == len(members_of(chosen))


@given(histories())
def test_what_can_be_settled_can_be_listed(configurations: list[Electorate[Someone]]) -> None:
    assume(choose_to_settle(configurations) is not None)
    listed = choose_to_list(configurations, None)
    assert listed is not None
    assert all(each.availability is Availability.UP for each in listed)


@given(histories((Promise.CP,)))
def test_those_that_answer_a_read_find_every_write(configurations: list[Electorate[Someone]]) -> None:
    active = configurations[-1]
    needs = assume_needs(active.promise, active.configuration.copies, len(active.voters))
    assume(judge(active, needs.read) is TallyVerdict.WON)
    alive = members_of(active.up())
    assert all(alive & quorum for quorum in write_quorums(active))
    assert judge(active, needs.write) is TallyVerdict.WON, "what is read must be put on W"


@given(histories((Promise.CP,)))
def test_what_is_left_when_one_was_stopped_still_finds_every_write(configurations: list[Electorate[Someone]]) -> None:
    active = configurations[-1]
    count = count_to_stop(active)
    for stopped in active.configuration.members:
        others = set(active.configuration.members) - {stopped}
        for left in combinations(others, min(count, len(others))):
            if len(left) == count:
                assert all(set(left) & quorum for quorum in write_quorums(active))
                assert can_find(active.configuration, active.promise, count)
