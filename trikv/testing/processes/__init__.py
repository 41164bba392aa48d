"""A cluster of real processes on this machine, its clients, and the faults that are injected into it."""
