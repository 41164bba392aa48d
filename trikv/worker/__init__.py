"""The worker's role: it keeps records behind a fence of epochs, in a data directory that one process alone may have."""
