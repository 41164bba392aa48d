"""What trikv is tested with, public, so that the author of a strategy or of a storage engine tests with the same tools.

Recorded histories and the checkers that judge them, a whole cluster of real processes on this machine, and the
contract of a storage engine as a suite to inherit.
"""
