"""The space-time diagram: every event in its place, as text and as a picture."""

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from trikv.timeline import STYLE, Band, ClientCall, Lane, Mark, Message, Role, Timeline, to_svg, to_text

SVG = "{http://www.w3.org/2000/svg}"

INVERSION = Timeline(
    lanes=(
        Lane("c1", Role.CLIENT),
        Lane("c2", Role.CLIENT),
        Lane("master", Role.COORDINATOR),
        *(Lane(name, Role.REPLICA) for name in ("w1", "w2", "w3")),
    ),
    messages=(
        Message("master", "w1", 12.0, 12.004, "store v2"),
        Message("master", "w2", 12.0, None, "store v2"),
        Message("master", "w3", 12.0, None, "store v2", is_under_way=True),
        Message("w1", "master", 12.005, 12.009, "stored v2", is_answer=True),
    ),
    calls=(
        ClientCall("c1", 11.999, None, "put x = v2", "unknown"),
        ClientCall("c2", 12.1, 12.11, "get x", "v2", number=1),
        ClientCall("c2", 12.2, 12.21, "get x", "v1", number=2),
    ),
    bands=(Band(("master", "w2"), 11.5, 12.05, "one-way partition"), Band(("w3",), 12.15, None, "crash", is_down=True)),
    broken_s=12.21,
)


def test_text_tells_who_got_what_when_in_order() -> None:
    lines = [re.split(r"  +", line.strip()) for line in to_text(INVERSION).splitlines()]
    assert lines == [
        ["11.5000 s", "master, w2", "trouble", "one-way partition"],
        ["11.9990 s", "c1", "asks", "put x = v2"],
        ["12.0000 s", "w2", "misses", "store v2, from master"],
        ["12.0000 s", "w3", "has yet to get", "store v2, from master"],
        ["12.0040 s", "w1", "gets", "store v2, from master after 4.0 ms"],
        ["12.0090 s", "master", "gets", "stored v2, from w1 after 4.0 ms"],
        ["12.0500 s", "master, w2", "mended", "one-way partition"],
        ["12.1000 s", "c2", "asks", "[1] get x"],
        ["12.1100 s", "c2", "is told", "[1] v2"],
        ["12.1500 s", "w3", "down", "crash"],
        ["12.2000 s", "c2", "asks", "[2] get x"],
        ["12.2100 s", "c2", "is told", "[2] v1"],
        ["12.2100 s", "HERE THE PROMISE IS BROKEN"],
    ]


def test_text_of_nothing_is_nothing() -> None:
    assert to_text(Timeline(lanes=())) == ""


def drawn(timeline: Timeline) -> ET.Element:
    return ET.fromstring(to_svg(timeline))


def classed(svg: ET.Element, tag: str, *words: str) -> list[ET.Element]:
    return [one for one in svg.iter(SVG + tag) if set(words) <= set(one.get("class", "").split())]


def test_what_a_client_asks_at_an_instant_comes_before_what_it_is_told_then() -> None:
    calls = (
        ClientCall("c1", 1.0, 2.0, "get x", "v1"),
        ClientCall("c1", 2.0, 2.0, "get y", "refused: unavailable", number=1, why="w1 did not answer"),
        ClientCall("c1", 2.0, 3.0, "get z", "v3"),
    )
    timeline = Timeline(lanes=(Lane("c1", Role.CLIENT),), calls=calls, broken_s=2.0)
    assert [line.split(maxsplit=3)[3] for line in to_text(timeline).splitlines()] == [
        "asks     get x",
        "is told  v1",
        "asks     [1] get y",
        "is told  [1] refused: unavailable, because w1 did not answer",
        "asks     get z",
        "THE PROMISE IS BROKEN",
        "is told  v3",
    ]


def test_a_lost_messages_cross_is_beside_its_target() -> None:
    lost = Message("w1", "w3", 12.0, None, "store v2")
    picture = drawn(replace(INVERSION, messages=(lost,)))
    (cross,) = classed(picture, "path", "cross")
    (name,) = [one for one in classed(picture, "text", "name") if one.text == "w3"]
    (start_x,) = re.findall(r"M([\d.]+)", cross.get("d", ""))[:1]
    assert abs(float(start_x) - float(name.get("x", ""))) < 30


@pytest.mark.parametrize("width", [4, 12])
def test_a_compact_picture_has_every_lane_and_the_failure_and_no_labels(width: int) -> None:
    lanes = (*INVERSION.lanes, *(Lane(f"x{number}", Role.REPLICA) for number in range(width)))
    timeline = replace(INVERSION, lanes=lanes)
    svg = ET.fromstring(to_svg(timeline, compact=True))
    assert [one.text for one in classed(svg, "text", "name")] == [lane.name for lane in lanes]
    assert [one.text for one in classed(svg, "text", "label")] == [timeline.broken]
    assert len(classed(svg, "g", "message")) == 4
    assert len(classed(svg, "path", "broken")) == 1
    assert float(svg.get("width", "")) <= 100 + 34 * len(lanes)


def test_picture_has_every_lane_message_call_and_band() -> None:
    svg = drawn(INVERSION)
    assert [one.text for one in classed(svg, "text", "name")] == ["c1", "c2", "master", "w1", "w2", "w3"]
    assert len(classed(svg, "g", "message")) == 4
    assert len(classed(svg, "g", "message", "lost")) == 1
    assert len(classed(svg, "path", "cross")) == 1
    assert len(classed(svg, "rect", "call")) == 3
    assert [one.text for one in classed(svg, "text", "badge")] == ["1", "2"]
    assert len(classed(svg, "rect", "trouble")) == 2
    assert len(classed(svg, "rect", "down")) == 1
    assert len(classed(svg, "path", "broken")) == 1


def test_time_runs_down_in_order_and_inside_the_picture() -> None:
    svg = drawn(INVERSION)
    tops = [float(one.get("y", "")) for one in classed(svg, "rect", "call")]
    assert tops == sorted(tops)
    assert len(set(tops)) == len(tops)
    height = float(svg.get("height", ""))
    ends = [float(one.get("y", "")) + float(one.get("height", "")) for one in classed(svg, "rect", "call")]
    assert max(ends) <= height


def test_a_message_that_takes_longer_ends_lower() -> None:
    lanes = (Lane("master", Role.COORDINATOR), Lane("w1", Role.REPLICA), Lane("w2", Role.REPLICA))
    quick, slow = Message("master", "w1", 1.0, 1.001, "quick"), Message("master", "w2", 1.0, 3.0, "slow")
    ends = [
        float(path.get("d", "").rpartition(" ")[2])
        for group in classed(drawn(Timeline(lanes, (quick, slow))), "g", "message")
        for path in group.iter(SVG + "path")
    ]
    assert ends[0] < ends[1]


def test_labels_of_one_lane_never_touch() -> None:
    lanes = (Lane("master", Role.COORDINATOR), Lane("w1", Role.REPLICA))
    crowd = tuple(Message("master", "w1", 1.0, 1.0 + number * 1e-6, f"store v{number}") for number in range(1, 40))
    answers = tuple(
        Message("w1", "master", 1.0 + n * 1e-6, 2.0 + n * 1e-6, "stored", is_answer=True) for n in range(40)
    )
    labels = classed(drawn(Timeline(lanes, crowd + answers)), "text", "label")
    heights = sorted(float(one.get("y", "")) for one in labels)
    assert len(heights) == 79
    assert min(after - before for before, after in itertools.pairwise(heights)) >= 13.9


def test_labels_of_one_instant_are_stacked() -> None:
    lanes = (Lane("master", Role.COORDINATOR), Lane("w1", Role.REPLICA))
    burst = tuple(Message("master", "w1", 1.0 + number / 10, 2.0, f"store v{number}") for number in range(5))
    labels = classed(drawn(Timeline(lanes, burst)), "text", "label")
    heights = sorted(float(one.get("y", "")) for one in labels)
    assert min(after - before for before, after in itertools.pairwise(heights)) >= 13.9


def test_what_strangers_write_stays_text() -> None:
    hostile = '<script>alert("1")</script>&amp;'
    lanes = (Lane(hostile, Role.CLIENT), Lane("master", Role.COORDINATOR), Lane("w1", Role.REPLICA))
    timeline = Timeline(
        lanes,
        (Message("master", "w1", 1.0, None, hostile),),
        (ClientCall(hostile, 0.5, 2.0, hostile, hostile, 1),),
        (Band(("w1",), 0.5, 1.0, hostile),),
    )
    svg = drawn(timeline)
    assert not list(svg.iter(SVG + "script"))
    assert hostile in [one.text for one in classed(svg, "text", "name")]
    assert "<script" not in to_svg(timeline)


def test_every_class_that_is_drawn_has_its_style() -> None:
    words = {word for one in drawn(INVERSION).iter() for word in one.get("class", "").split()}
    structural = {"spacetime", "message", "ask", "client", "replica", "band"}
    assert {word for word in words - structural if f".{word}" not in STYLE} == set()


def test_a_request_of_milliseconds_is_told_in_these_with_its_mark() -> None:
    brief = Timeline(
        lanes=(Lane("client", Role.CLIENT), Lane("coordinator", Role.COORDINATOR), Lane("w1", Role.REPLICA)),
        messages=(Message("coordinator", "w1", 0.0001, 0.0009, "store"),),
        calls=(ClientCall("client", 0.0, 0.002, "put x", "committed"),),
        marks=(Mark("coordinator", 0.0015, "promise <met>"),),
        in_ms=True,
    )
    lines = [re.split(r"  +", line.strip()) for line in to_text(brief).splitlines()]
    assert lines == [
        ["0.00 ms", "client", "asks", "put x"],
        ["0.90 ms", "w1", "gets", "store, from coordinator after 0.8 ms"],
        ["1.50 ms", "coordinator", "knows", "promise <met>"],
        ["2.00 ms", "client", "is told", "committed"],
    ]
    picture = drawn(brief)
    assert [path.find(f"{SVG}title").text for path in picture.iter(f"{SVG}path") if path.get("class") == "mark"] == [  # type: ignore[union-attr]
        "promise <met>"
    ]
    assert "1.50 ms" in [text.text for text in picture.iter(f"{SVG}text")]
