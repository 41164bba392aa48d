"""The two roles, written as coroutines that tell the story: the worker, which keeps records behind a fence of epochs,
and the master, which owns the cluster's document and coordinates every operation.

What they decide is computed in `trikv.core`, what they send goes through `trikv.net`, what they keep lies in a data
directory (`datadir`), a storage engine, and the config store (`configstore`).
"""
