"""Labels: what they may be, and what is told of those that are none."""

import pytest

from trikv.core.labels import LABELS_MAX, check_labels, parse_labels, spell_labels


def test_labels_are_read_from_texts_and_spelled_in_the_order_of_their_names() -> None:
    labels = parse_labels(["zone=eu-1.b", "disk=SSD_2"])
    assert labels == {"zone": "eu-1.b", "disk": "SSD_2"}
    assert spell_labels(labels) == "disk=SSD_2, zone=eu-1.b"
    assert (parse_labels([]), spell_labels({})) == ({}, "")


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["zone"], "'zone' is not NAME=VALUE, like zone=a"),
        (["=a"], "a label's name is a small letter, .* '' is none"),
        (["Zone=a"], "'Zone' is none"),
        (["my-zone=a"], "'my-zone' is none"),
        (["z" * 33 + "=a"], "'z{33}' is none"),
        (["zöne=a"], "'zöne' is none"),
        (["zone="], "the value of the label zone has 1 to 64 .* '' is none"),
        (["zone=a b"], "'a b' is none"),
        (["zone=a\n"], r"'a\\n' is none"),
        (["zone=\x1b[0m"], r"'\\x1b\[0m' is none"),
        (["zone=" + "a" * 65], "'a{65}' is none"),
        (["zone=a=b"], "'a=b' is none"),
        (["zone=a", "zone=b"], "the label zone is given twice, as 'a' and as 'b'"),
        ([f"l{number}=a" for number in range(LABELS_MAX + 1)], "a worker has at most 8 labels, not 9"),
    ],
)
def test_what_is_no_label_is_named(texts: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_labels(texts)


def test_the_longest_labels_and_the_most_of_them_are_allowed() -> None:
    check_labels({"z" * 32: "a" * 64} | {f"l{number}": "a" for number in range(LABELS_MAX - 1)})
