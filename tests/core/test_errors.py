"""The error table: each row must say the same thing to a person, to HTTP and to a shell."""

import pytest

from trikv.core.errors import KINDS, ErrorKind, Fault, Outcome, Refused, TrikvError, Unknown

ROWS = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@ROWS
def test_status_and_exit_code_say_what_the_outcome_says(kind: ErrorKind) -> None:
    match kind.outcome:
        case Outcome.COMMITTED:
            assert kind.code == "not_found"
            assert (kind.http, kind.exit) == (404, 3)
        case Outcome.REFUSED:
            assert 400 <= kind.http < 500 or kind.http in (503, 507)
            assert kind.exit in (1, 2, 4, 5)
        case Outcome.UNKNOWN:
            assert kind.http in (500, 504), "a client may only repeat it knowingly"
            assert kind.exit == 6


@ROWS
def test_every_row_has_a_title_and_a_remedy_for_a_person(kind: ErrorKind) -> None:
    assert KINDS[kind.code] is kind
    assert not kind.title.endswith(".")
    assert kind.remedy.endswith(".")


@ROWS
def test_an_error_is_raised_as_what_its_row_promises(kind: ErrorKind) -> None:
    def refused() -> TrikvError:
        return Refused(kind.code, "because")

    def unknown() -> TrikvError:
        return Unknown("because", kind.code)

    for make, outcome in ((refused, Outcome.REFUSED), (unknown, Outcome.UNKNOWN)):
        if kind.outcome is outcome:
            assert make().kind is kind
        else:
            with pytest.raises(AssertionError):
                make()


def test_an_error_carries_its_detail_and_what_a_program_may_want() -> None:
    error = Refused("unknown_mode", "there is no mode 'paxos'", modes=["sync"])
    assert str(error) == error.detail == "there is no mode 'paxos'"
    assert error.extra == {"modes": ["sync"]}
    assert Unknown("the link broke").kind.code == "unknown"


def test_an_error_without_a_row_cannot_be_raised() -> None:
    with pytest.raises(KeyError):
        Refused("no_such_row", "because")


def test_faults_that_travel_are_positive_and_those_made_here_negative() -> None:
    assert {fault for fault in Fault if fault > 0} == {
        Fault.STALE,
        Fault.OTHER_MEMBER,
        Fault.BUSY,
        Fault.RELAY_BROKE,
        Fault.STORAGE,
        Fault.BAD_CALL,
        Fault.FULL,
        Fault.NOT_LEADING,
        Fault.NO_ROOM,
    }
    assert {fault for fault in Fault if fault < 0} == {Fault.NOT_SENT, Fault.LOST, Fault.LATE, Fault.CROWDED}
