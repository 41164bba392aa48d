"""The config store in etcd, which several masters share.

    store = await EtcdConfigStore.open(parse_config_store("etcd://127.0.0.1:2379"))

`store.py` puts the parts together. `document.py` reads and changes the document, `lead.py` has the leader's key and its
lease, and `roster.py` what etcd tells of the masters. They call etcd by `calls.py`, which knows transactions and
leases; `gateway.py` has the endpoints, and `answers.py` reads what comes back.
"""

from trikv.master.etcd.store import EtcdConfigStore

__all__ = ["EtcdConfigStore"]
