"""The expected that the other tests judge by: does it notice an untrue answer, and allow what may be answered?"""

from trikv.core.errors import TrikvError
from trikv.testing.judge.expectations import Expectations
from trikv.testing.processes.cluster import LocalCluster


def test_a_value_that_somebody_else_wrote_is_a_lie(quiet_cluster: LocalCluster) -> None:
    expected = Expectations(stale_reads=False)
    with quiet_cluster.client() as client:
        assert expected.put(client, b"expected/other", b"mine") is None
        assert expected.read_back(client).lies == []
        client.put(b"expected/other", b"not mine")
        assert len(expected.read_back(client).lies) == 1


def test_a_refused_value_is_a_lie_and_an_older_one_too_unless_the_mode_allows_it(quiet_cluster: LocalCluster) -> None:
    for stale_reads in (False, True):
        expected = Expectations(stale_reads=stale_reads)
        with quiet_cluster.client() as client:
            expected.put(client, b"expected/old", b"first")
            expected.put(client, b"expected/old", b"second")
            too_large = b"x" * (1024 * 1024 + 1)
            assert isinstance(expected.put(client, b"expected/old", too_large), TrikvError)
        assert expected.lie(b"expected/old", b"second") == ""
        assert bool(expected.lie(b"expected/old", b"first")) is not stale_reads
        assert "was refused" in expected.lie(b"expected/old", too_large)
        assert expected.lie(b"expected/old", b"never written")
