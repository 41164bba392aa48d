"""The cluster over HTTP: data, administration and a page for people, as a Quart-Trio app in the master's own nursery.

A handler translates: it checks what came in, asks the coordinator, and turns the outcome into a status by the table in
`trikv.core.errors`. It decides nothing about replication.
"""
