"""How bytes move between nodes: Trio streams, and links that many calls share.

The dialogue itself is `trikv.core.session`, which performs no I/O. Here it meets sockets, deadlines and the clock.
Transport and dice come in through `trikv.net.doors`, and time through Trio, so a simulation can bring its own.
"""
