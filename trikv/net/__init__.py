"""How bytes move between nodes: Trio streams, links that many calls share, and the calls to a set of replicas.

The dialogue itself is `trikv.core.session`, which performs no I/O; here it meets sockets, deadlines and the clock, all
of which come in through `trikv.net.doors`, so that a simulation can bring its own.
"""
