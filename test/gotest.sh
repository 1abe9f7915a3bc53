#!/usr/bin/env bash
# go test, shortened to its results. What a failing run printed is shown in full, and what was skipped is listed at the
# end, with the reasons; where OVPN_GO_REQUIRE forbids to skip, that fails the run.
#
#   gotest.sh ARGS...      as for go test
set -euo pipefail

log=$(mktemp)
trap 'rm -f "$log"' EXIT

if ! "${GO:-go}" test -v -count=1 "$@" 2>&1 | tee "$log" |
	grep --line-buffered -E '^( *--- (FAIL|SKIP)|--- PASS|ok|\?|FAIL|panic)'; then
	cat "$log"
	exit 1
fi

# A test whose name ends in Child is another test's helper process, and runs only when it is told to.
skipped=$(awk '/^ *--- SKIP/ && !/Child / { print before; print } { before = $0 }' "$log")
[ -n "$skipped" ] || exit 0
printf 'Skipped:\n%s\n' "$skipped"
[ -z "${OVPN_GO_REQUIRE:-}" ]
