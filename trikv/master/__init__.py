"""The master's role: the cluster's document, who is in the cluster, which configuration each partition has."""
