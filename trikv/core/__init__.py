"""Values and decisions, without I/O: no clock, no dice, no sockets, no logging.

A caller passes in what it knows and gets an answer as data. So all of it runs the same in a test, in a simulation and
in production.
"""
