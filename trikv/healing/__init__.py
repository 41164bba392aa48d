"""Making partitions whole: after a change of configuration, a lost copy, a write in doubt, a deleted key."""
