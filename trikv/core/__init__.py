"""Values and decisions: records and what orders them, who holds a partition, how acknowledgements are counted, frames.

Nothing here waits, reads a clock, rolls dice, opens a socket or writes a log. A caller passes in what it knows and gets
an answer as data, so all of it runs the same in a test, in a simulation and in production.
"""
