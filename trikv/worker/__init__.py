"""The worker's role: records behind a fence of epochs, in a data directory of its own."""
