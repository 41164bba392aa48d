"""Configurations: what W and R mean, and that the cluster's document brings back what was put into it."""

from itertools import combinations

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.configuration import Cluster, Configuration, Member, Partition, WorkerEntry

NAMES = st.text(max_size=8)
MEMBERS = st.lists(st.builds(Member, NAMES, NAMES), min_size=1, max_size=5, unique_by=lambda member: member.worker)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    members = tuple(draw(MEMBERS))
    return Configuration(members, draw(NAMES), draw(st.integers(1, len(members))))


PARTITIONS = st.builds(Partition, st.integers(0, 99), st.lists(configurations(), max_size=3).map(tuple))
LABELS = st.dictionaries(st.sampled_from(["zone", "disk"]), st.sampled_from("ab"))
ENLISTED = st.builds(WorkerEntry, NAMES, NAMES, NAMES, NAMES, st.none() | st.integers(0, 99), st.booleans(), LABELS)
CLUSTERS = st.builds(
    Cluster,
    cluster=NAMES,
    mode=NAMES,
    replicas=st.integers(1, 5),
    partition_count=st.integers(0, 4),
    term=st.integers(0, 99),
    stored=st.booleans(),
    workers=st.lists(ENLISTED, max_size=3).map(lambda rows: {row.worker: row for row in rows}),
    partitions=st.lists(PARTITIONS, max_size=4).map(tuple),
)


def some(n: int) -> tuple[Member, ...]:
    return tuple(Member(f"w-{i}", "a") for i in range(n))


@pytest.mark.parametrize(("n", "copies"), [(n, copies) for n in range(1, 6) for copies in range(1, n + 1)])
def test_any_recovery_members_meet_every_committed_write(n: int, copies: int) -> None:
    configuration = Configuration(some(n), "any", copies)
    asked = [set(group) for group in combinations(configuration.members, configuration.recovery)]
    stored = [set(group) for group in combinations(configuration.members, copies)]
    assert all(a & b for a in asked for b in stored)
    one_fewer = [set(group) for group in combinations(configuration.members, configuration.recovery - 1)]
    assert not all(a & b for a in one_fewer for b in stored), "and one fewer would not do"


@pytest.mark.parametrize("copies", [0, 4])
def test_copies_out_of_range_are_our_own_mistake(copies: int) -> None:
    with pytest.raises(AssertionError):
        Configuration(some(3), "quorum", copies)


def test_a_worker_is_a_member_once_in_whatever_life() -> None:
    with pytest.raises(AssertionError):
        Configuration((Member("w-1", "a"), Member("w-1", "b")), "quorum", 1)


def test_a_partition_is_settled_with_one_configuration() -> None:
    old, new = Configuration(some(3), "sync", 3), Configuration(some(2), "async", 1)
    assert not Partition().settled
    assert Partition(1, (old,)).settled
    unsettled = Partition(2, (old, new))
    assert not unsettled.settled
    assert unsettled.active is new


@given(CLUSTERS)
def test_the_document_brings_back_the_cluster(cluster: Cluster) -> None:
    assert Cluster.from_document(cbor2.loads(cbor2.dumps(cluster.to_document()))) == cluster


def test_a_configuration_that_many_partitions_share_is_written_once() -> None:
    shared = Configuration(some(3), "quorum", 2)
    cluster = Cluster("c", "quorum", 3, 1024, partitions=(Partition(1, (shared,)),) * 1024)
    assert len(cluster.to_document()["configurations"]) == 1


def test_a_document_of_another_format_is_refused_by_number() -> None:
    document = Cluster("c", "quorum", 3, 1024).to_document()
    with pytest.raises(ValueError, match="format 99; this trikv reads format 4"):
        Cluster.from_document(document | {"format": 99})
    with pytest.raises(ValueError, match="format None"):
        Cluster.from_document({})


@pytest.mark.parametrize("instead", [None, "x", -1, [], [[]], [[None]], [[1, 2, 3]], ...], ids=str)
def test_a_damaged_document_is_an_error_of_one_kind(instead: object) -> None:
    """`...`: the field is missing."""
    partition = Partition(1, (Configuration(some(3), "quorum", 2),))
    document = Cluster("c", "quorum", 3, 2, partitions=(partition,) * 2).to_document()
    failed = 0
    for name in document:
        damaged = {each: instead if each == name else value for each, value in document.items()}
        try:
            Cluster.from_document({each: value for each, value in damaged.items() if value is not ...})
        except ValueError:
            failed += 1
    assert failed >= 2


@pytest.mark.parametrize(("written_by", "fields"), [(1, 5), (2, 6), (3, 6)])
def test_a_document_from_before_labels_is_read(written_by: int, fields: int) -> None:
    entry = WorkerEntry("w-1", "a", "127.0.0.1:1", "memory", 7)
    cluster = Cluster("c", "quorum", 3, 1024, workers={"w-1": entry})
    document = cluster.to_document()
    document = document | {"format": written_by, "workers": [row[:fields] for row in document["workers"]]}
    assert Cluster.from_document(cbor2.loads(cbor2.dumps(document))) == cluster


def test_a_worker_with_a_zone_is_told_from_one_without() -> None:
    entries = [WorkerEntry("w-1", "a", "x:1", "memory", labels={"zone": "a"}), WorkerEntry("w-2", "a", "x:2", "memory")]
    assert Cluster("c", "quorum", 3, 4, workers={entry.worker: entry for entry in entries}).zones == {"w-1": "a"}


def test_a_cluster_is_formed_with_its_first_configurations() -> None:
    founded = Cluster("c", "quorum", 3, 2)
    assert not founded.formed
    assert not Cluster("c", "quorum", 3, 2, partitions=(Partition(), Partition())).formed
    first = Partition(1, (Configuration(some(3), "quorum", 2),))
    assert Cluster("c", "quorum", 3, 2, partitions=(first, first)).formed


def test_terms_only_rise() -> None:
    cluster = Cluster("c", "quorum", 3, 1024, term=3)
    assert cluster.with_term(5).term == 5
    with pytest.raises(AssertionError):
        cluster.with_term(3)


def test_an_enlisted_worker_is_known_by_its_life() -> None:
    assert WorkerEntry("w-1", "a", "127.0.0.1:1", "memory").member == Member("w-1", "a")
