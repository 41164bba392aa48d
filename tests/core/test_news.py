"""Events in words: known kinds as a sentence, all others by their fields."""

from string import Formatter

import pytest

from trikv.core.news import SENTENCES, tell, tone_of
from trikv.core.present import Tone


@pytest.mark.parametrize("kind", SENTENCES)
def test_every_sentence_can_be_told(kind: str) -> None:
    fields = {name: 1234 for _, name, _, _ in Formatter().parse(SENTENCES[kind]) if name}
    told = tell({"id": "7-1", "time_s": 1.0, "kind": kind, **fields})
    assert told[:1].islower() or told[:1].isdigit()
    assert "\n" not in told
    assert "{" not in told
    assert all(f"{number:,}" in told or str(number) in told for number in fields.values())


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ({"kind": "worker_down", "worker": "w-1"}, "worker w-1 is down"),
        ({"id": "7-1", "at": "now", "kind": "comet_seen", "tail": 3}, "comet seen tail=3"),
        ({"kind": "worker_evicted", "worker": "w-1"}, "worker evicted worker=w-1"),
        ({"kind": "worker_evicted", "worker": "w-1", "partitions": "x"}, "worker evicted worker=w-1 partitions=x"),
        ({"kind": "settled", "duration_s": 2}, "every partition is settled"),
    ],
)
def test_what_is_not_known_is_told_by_its_fields(event: dict[str, object], told: str) -> None:
    assert tell(event) == told


def test_news_has_a_tone_and_what_is_not_known_has_none() -> None:
    tones = [tone_of(kind) for kind in ("worker_down", "worker_suspect", "worker_up", "worker_enlisted", "comet_seen")]
    assert tones == [Tone.POOR, Tone.FAIR, Tone.GOOD, Tone.PLAIN, Tone.PLAIN]
