"""How a history is judged: recorded operations in, a verdict with evidence out. Nothing here runs a cluster."""
