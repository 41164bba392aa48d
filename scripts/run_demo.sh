#!/usr/bin/env bash
# The guided tour of one mode: five workers, put and get, kill one, read and write again, and the verdict.
#
#   scripts/run_demo.sh [MODE] [further options of `trikv demo --once`]      MODE, or mode=MODE; chain if left out
#
# The exit code is 0 only if the mode kept its promise.
set -euo pipefail
mode=${1:-chain}
exec python3 "$(dirname "$0")/dev.py" demo --once --mode "${mode#mode=}" "${@:2}"
