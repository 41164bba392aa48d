"""`If-Match` and `If-None-Match`, as RFC 9110 has them."""

import pytest

from trikv.core.errors import Refused
from trikv.core.precondition import Expect
from trikv.core.record import Version, make_epoch
from trikv.web.conditions import etag, expectation, if_match, if_none_match

ONE, TWO = Version(make_epoch(3, 1), 7), Version(make_epoch(3, 1), 8)


def test_an_etag_is_a_stamp_in_quotes() -> None:
    assert etag(ONE) == '"3.1-7"'


@pytest.mark.parametrize(
    ("text", "strong", "weak"),
    [
        ("*", Expect.present(), Expect.absent()),
        (" * ", Expect.present(), Expect.absent()),
        ('"3.1-7"', Expect.one_of([ONE]), Expect.none_of([ONE])),
        ('"3.1-7" , "3.1-8"', Expect.one_of([ONE, TWO]), Expect.none_of([ONE, TWO])),
        (', ,"3.1-7",', Expect.one_of([ONE]), Expect.none_of([ONE])),
        ('W/"3.1-7", "3.1-8"', Expect.one_of([TWO]), Expect.none_of([ONE, TWO])),
        ('"of another maker"', None, None),
        ('"03.1-7"', Expect.one_of([]), Expect.none_of([])),
        ('"a,b", "3.1-7"', Expect.one_of([ONE]), Expect.none_of([ONE])),
        ('""', Expect.one_of([]), Expect.none_of([])),
    ],
)
def test_lists_of_tags(text: str, strong: Expect | None, weak: Expect | None) -> None:
    if strong is None:  # a space is not allowed inside a tag
        with pytest.raises(Refused):
            if_match({"if-match": text})
        return
    assert if_match({"if-match": text}) == strong
    assert if_none_match({"if-none-match": text}) == weak


@pytest.mark.parametrize("text", ["", ",", "3.1-7", '"3.1-7', '"a" "b"', 'w/"a"', '*, "a"', '"a" b'])
def test_what_is_no_list_of_tags_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="If-Match"):
        if_match({"if-match": text})
    with pytest.raises(Refused, match="If-None-Match"):
        if_none_match({"if-none-match": text})


def test_a_write_has_one_condition() -> None:
    assert expectation({}) is None
    assert expectation({"if-match": "*"}) == Expect.present()
    assert expectation({"if-none-match": "*"}) == Expect.absent()
    with pytest.raises(Refused, match="not both"):
        expectation({"if-match": "*", "if-none-match": "*"})
