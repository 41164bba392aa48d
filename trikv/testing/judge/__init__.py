"""How a history is judged: recorded operations go in, a verdict with its evidence comes out.

Nothing here runs a cluster.
"""
