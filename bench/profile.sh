#!/usr/bin/env bash
# Where a node's time goes under load: see bench/layers.py, which does it, and bench/README.md.
#
#     bench/profile.sh [--mode quorum] [--what put] [--connections 32] [--budget] [--directory DIR]
#
# It needs py-spy: on the PATH, or at $PY_SPY. py-spy looks at a process from outside, so nothing is installed into
# trikv's environment.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}

if [ ! -x "$python" ]; then
    echo "error: there is no $python; make it with: python3 scripts/dev.py lint" >&2
    exit 1
fi
if ! command -v "${PY_SPY:-py-spy}" > /dev/null; then
    cat >&2 << 'HELP'
error: this run needs py-spy. Install it into an environment of its own, and say where it is:
    python3 -m venv /tmp/py-spy && /tmp/py-spy/bin/pip install py-spy
    PY_SPY=/tmp/py-spy/bin/py-spy bench/profile.sh
It also needs the right to trace other processes: run it as root, or with sysctl kernel.yama.ptrace_scope=0.
HELP
    exit 1
fi
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "$python" "$root/bench/layers.py" "$@"
