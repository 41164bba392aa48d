"""The ledger that the other tests judge by: does it notice an untrue answer, and allow what may be answered?"""

from trikv.core.errors import TrikvError
from trikv.testing.judge.ledger import Ledger
from trikv.testing.processes.cluster import LocalCluster


def test_a_value_that_somebody_else_wrote_is_a_lie(quiet_cluster: LocalCluster) -> None:
    ledger = Ledger(stale_reads=False)
    with quiet_cluster.client() as client:
        assert ledger.put(client, b"ledger/other", b"mine") is None
        assert ledger.read_back(client).lies == []
        client.put(b"ledger/other", b"not mine")
        assert len(ledger.read_back(client).lies) == 1


def test_a_refused_value_is_a_lie_and_an_older_one_too_unless_the_mode_allows_it(quiet_cluster: LocalCluster) -> None:
    for stale_reads in (False, True):
        ledger = Ledger(stale_reads=stale_reads)
        with quiet_cluster.client() as client:
            ledger.put(client, b"ledger/old", b"first")
            ledger.put(client, b"ledger/old", b"second")
            too_large = b"x" * (1024 * 1024 + 1)
            assert isinstance(ledger.put(client, b"ledger/old", too_large), TrikvError)
        assert ledger.lie(b"ledger/old", b"second") == ""
        assert bool(ledger.lie(b"ledger/old", b"first")) is not stale_reads
        assert "was refused" in ledger.lie(b"ledger/old", too_large)
        assert ledger.lie(b"ledger/old", b"never written")
