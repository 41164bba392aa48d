"""The page of a certificate on screens of any width: every lane and the point of failure can be seen without scrolling
sideways, and words are as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.conftest import NARROW, WIDE, overflow_of, violations_of
from trikv.api import Promise
from trikv.core.errors import Outcome
from trikv.testing.certify.certificate import Broken, Certificate, Counterexample, Harm
from trikv.testing.certify.report import to_html
from trikv.testing.judge.history import Finding, Kind, Operation
from trikv.testing.sim import CERTIFYING
from trikv.timeline import Band, ClientCall, Lane, Message, Role, Timeline
from trikv_quorum import Quorum

CLIENTS = tuple(Lane(f"c{number}", Role.CLIENT) for number in range(1, 5))
WORKERS = tuple(Lane(f"w-{number:08x}", Role.REPLICA) for number in range(1, 7))
LANES = (*CLIENTS, Lane("master", Role.COORDINATOR), *WORKERS)


def page_of_failure() -> str:
    read = Operation("c4", Kind.GET, "x", 2, 2.0, ended=3, returned_s=2.1, outcome=Outcome.COMMITTED, result="v1")
    finding = Finding("stale read", "x", "v2 was there before [1]; partition [7] is no operation", (read,))
    last = WORKERS[-1].name
    timeline = Timeline(
        lanes=LANES,
        messages=(
            Message("master", last, 1.0, 1.01, "store v2"),
            Message(last, "master", 1.01, None, "stored v2", True),
        ),
        calls=(ClientCall("c4", 2.0, 2.1, "get x", "v1", number=1),),
        bands=(Band((last,), 1.5, None, "crash", is_down=True),),
        broken_s=2.1,
    )
    certificate = Certificate("mine", "mine", "mine 1.0", Promise.CP, (1, 1), runs=1)
    certificate.broken.append(Broken(1, finding, frozenset({Harm.ANSWERS})))
    schedule = CERTIFYING.draw(Quorum(), 1)
    certificate.counterexample = Counterexample(1, schedule, finding, timeline, "", 1, (20, 280))
    return to_html(certificate)


@pytest.mark.parametrize("width", [NARROW, WIDE, 2600])
def test_every_lane_and_the_failure_are_seen_at_any_width(browser: Browser, tmp_path: Path, width: int) -> None:
    file = tmp_path / "failure.html"
    file.write_text(page_of_failure(), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    try:
        page.goto(file.as_uri())
        (picture,) = [one for one in page.locator("figure svg").all() if one.is_visible()]
        names = picture.locator("text.name")
        assert names.all_text_contents() == [lane.name for lane in LANES]
        for one in (*names.all(), picture.locator("path.broken"), picture.locator("text.broken")):
            box = one.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["height"] >= 6 or one.get_attribute("d")
        assert overflow_of(page) == 0
        told = page.inner_text("body")
        assert "v2 was there before 1; partition [7] is no operation" in told
        assert page.locator("b.badge").count() == 2
        assert violations_of(page) == []
    finally:
        page.close()
