"""The storage engines that come with trikv: `memory` and `rocksdb`.

Both are plugins, found by the entry points in pyproject.toml and handed over by a hook, so a third engine needs no
change here. `trikv.api` says what an engine must do, and `trikv.testing.storage` tests it.
"""
