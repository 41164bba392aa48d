"""The document as bytes in etcd: as it was, small, and an error of one line where it is something else."""

from __future__ import annotations

import zlib
from contextlib import suppress

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trikv.core.configuration import Cluster, Configuration, Member, Partition
from trikv.master.etcd.document import UNPACKED_BYTES_MAX, pack, unpack

DOCUMENT = {"term": 1 << 40, "name": "é", "none": None, "bytes": b"\0\xff", "list": [[1, [True]], {}]}


@pytest.mark.parametrize("document", [DOCUMENT, {}, {"n": list(range(1000))}])
def test_it_comes_back_as_it_was(document: dict[str, object]) -> None:
    body = pack(cbor2.dumps(document))
    assert unpack(body) == document
    assert len(body) <= len(cbor2.dumps(document)) + 1


def test_a_large_cluster_is_far_from_etcds_limit() -> None:
    workers = [Member(f"worker-{n:03}.example:8001", f"{n * 2654435761 % 2**32:08x}") for n in range(1000)]
    partitions = tuple(
        Partition(n, tuple(Configuration(tuple(workers[(n * 7 + m * 331 + c) % 1000] for m in range(3)), "quorum", 2)
                           for c in range(3)))
        for n in range(1024)
    )  # fmt: skip
    body = pack(cbor2.dumps(Cluster("c1", "quorum", 3, 1024, partitions=partitions).to_document()))
    assert len(body) < 150_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x03{}",
        b"\x01",
        b"\x01\xa1",
        b"\x01\x80",
        b"\x01" + b"\x81" * 100_000,
        b"\x01" + b"\xbb" + b"\xff" * 8,
        b"\x01" + b"\x9b" + b"\x7f" * 8,
        b"\x02",
        b"\x02hello",
        b"\x02" + zlib.compress(b"\xa0")[:-1],
        b"\x02" + zlib.compress(bytes(UNPACKED_BYTES_MAX + 1)),
    ],
)
def test_what_is_no_document_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it is (damaged|something else)$|^it has format"):
        unpack(body)


@given(st.binary(max_size=60))
def test_no_bytes_are_more_than_an_error(body: bytes) -> None:
    for form in (b"\x01", b"\x02"):
        with suppress(ValueError):
            assert isinstance(unpack(form + body), dict)
