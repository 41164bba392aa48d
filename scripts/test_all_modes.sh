#!/usr/bin/env bash
# The guided tour of each of the four modes; fails when one of them broke its promise, after having tried all.
set -uo pipefail
here=$(dirname "$0")
broken=()
for mode in sync async chain quorum; do
    printf '\n=== %s ===\n' "$mode"
    "$here/run_demo.sh" "$mode" "$@" || broken+=("$mode")
done
printf '\n'
if ((${#broken[@]})); then
    printf 'error: the promise was broken in: %s\n' "${broken[*]}" >&2
    exit 1
fi
printf 'all four modes kept their promises\n'
