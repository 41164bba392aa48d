#!/usr/bin/env bash
# The guided tour of one mode: five workers, put and get, kill one, read and write again, and the verdict.
#
#   scripts/run_demo.sh [mode=chain] [further options of `trikv demo --once`]
#
# The exit code is 0 only if the mode kept its promise.
set -euo pipefail
exec python3 "$(dirname "$0")/dev.py" demo --once --mode "${1:-chain}" "${@:2}"
