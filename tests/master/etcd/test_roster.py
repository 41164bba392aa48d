"""What is known of leader and masters, from lists and changes that come late, twice, or from the past."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trikv.master.etcd.roster import KeyState, Roster, write_leader, write_master
from trikv.master.leadership import Candidate, Leader

ONE, TWO = Candidate("one", "a:1", "a:2"), Candidate("two", "b:1", "b:2")
LEADER = Leader(ONE, "today")


def master(who: Candidate, revision: int) -> KeyState:
    return KeyState(f"masters/{who.name}", write_master(who), revision)


def leader(who: Leader | None, revision: int) -> KeyState:
    return KeyState("leader", None if who is None else write_leader(who), revision)


def names(roster: Roster) -> list[str]:
    return [each.name for each in roster.masters]


def state_of_leader(roster: Roster) -> KeyState | None:
    return roster.leader_state


def test_lists_and_changes_by_their_revision() -> None:
    roster = Roster("leader")
    assert roster.take_list([master(ONE, 2), leader(LEADER, 3)], 5)
    assert (roster.leader, roster.masters) == (LEADER, (ONE,))
    assert not roster.take(leader(None, 4))  # the list is newer, and has it
    assert not roster.take(master(TWO, 5))
    assert roster.take(master(TWO, 6))
    assert names(roster) == ["one", "two"]
    assert not roster.take(master(TWO, 6))
    assert not roster.take_list([], 4)  # from a member that is behind
    assert not roster.take_list([master(ONE, 2), leader(LEADER, 3)], 5)  # what came after the list stays
    assert roster.take(leader(None, 9))
    assert not roster.take(leader(LEADER, 8))
    assert roster.leader is None
    assert state_of_leader(roster) == leader(None, 9)
    assert not roster.take_list([master(ONE, 2), master(TWO, 6), leader(LEADER, 3)], 8)  # it was deleted at 9
    assert roster.take_list([master(TWO, 6)], 10)
    assert names(roster) == ["two"]
    assert state_of_leader(roster) is None
    roster.forget()
    assert roster.take_list([master(ONE, 1)], 1)
    assert names(roster) == ["one"]


def test_what_cannot_be_read_is_passed_over() -> None:
    for value in (b"", b"\xff", b"[]", b"[" * 99_999, b"{}", b'{"name": 1, "address": "a", "http": "b"}'):
        roster = Roster("leader")
        roster.take_list([KeyState("leader", value, 1), KeyState("masters/x", value, 1), master(ONE, 1)], 1)
        assert (roster.leader, roster.masters) == (None, (ONE,))
        assert roster.leader_state is not None  # so it is another's


@given(st.lists(st.sampled_from(["put", "delete"]), max_size=8), st.data())
def test_in_whatever_order_news_come_the_newest_counts(acts: list[str], data: st.DataObject) -> None:
    """One key's history; each change may come again, and lists of any moment in between."""
    history = [master(ONE, n) if act == "put" else KeyState("masters/one", None, n) for n, act in enumerate(acts, 1)]
    news: list[int] = data.draw(st.lists(st.integers(1, max(1, len(history))), max_size=20)) if history else []
    roster = Roster("leader")
    newest = 0
    for n in news:
        state = history[n - 1]
        if data.draw(st.booleans()):
            roster.take_list([] if state.value is None else [state], n)
        else:
            roster.take(state)
        newest = max(newest, n)
        assert roster.masters == ((ONE,) if history[newest - 1].value is not None else ())
