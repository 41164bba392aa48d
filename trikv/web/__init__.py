"""The cluster over HTTP: data, administration and a page for people.

A handler translates: it checks the request, asks a part of the master (`services.py`), and turns the outcome into a
status by the table in `trikv.core.errors`. It decides nothing about replication. `routes.py` has all handlers as data,
and `app.py` serves them with Quart-Trio.
"""
