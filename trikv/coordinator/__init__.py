"""Serving one request: its partition, the replicas it needs, and the outcome that a client may be told."""
