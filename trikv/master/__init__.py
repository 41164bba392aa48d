"""The master's role: the cluster's document, its workers, and the configuration of each partition."""
