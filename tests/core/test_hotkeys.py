"""The most frequent key is found in bounded memory, and its share is never said to be more than it is."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trikv.core.hotkeys import HotKeys


def test_a_key_that_is_half_of_all_is_found_among_many() -> None:
    hot = HotKeys()
    for number in range(10_000):
        hot.note(b"hot" if number % 2 else b"cold %d" % number)
    key, share = hot.hottest()
    assert key == b"hot"
    assert 0.45 < share <= 0.5


@given(keys=st.lists(st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f"]), min_size=1), keys_max=st.integers(1, 4))
def test_a_share_is_never_exaggerated(keys: list[bytes], keys_max: int) -> None:
    hot = HotKeys(keys_max)
    for key in keys:
        hot.note(key)
    found, share = hot.hottest()
    assert share <= Counter(keys)[found] / len(keys)


def test_what_was_hot_fades() -> None:
    hot = HotKeys()
    for _ in range(1_000):
        hot.note(b"yesterday")
    for _ in range(40):
        hot.fade()
        for _ in range(10):
            hot.note(b"today")
    assert hot.hottest()[0] == b"today"
    for _ in range(40):
        hot.fade()
    assert hot.hottest() == (b"", 0.0)
