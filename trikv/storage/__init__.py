"""The storage engines that come with trikv: `memory` and `rocksdb`.

Both are plugins like any other, found by the entry points in pyproject.toml and handed over by a hook, so a third one
needs no change here. What an engine owes its worker is written in `trikv.api`, and checked by
`trikv.testing.storage`.
"""
