"""trikv: a replicated key-value store that never lies about what happened to a write.

A master coordinates every operation; workers hold the copies, fenced by epochs; how a write reaches its copies is a
plugin, chosen by name and called the cluster's *mode*. The parts, from the bottom up, each importing only what is
below it: `core` (plain values and decisions), `api` (what plugin authors import), `storage` and `net` (disks, bytes),
`registry` and `config`, `worker`, `coordinator`, `healing`, `master`, then `web` and `testing`, and `cli` on top.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("trikv")
except PackageNotFoundError:  # run from a checkout that nobody installed: it works, and says so
    __version__ = "0+uninstalled"
