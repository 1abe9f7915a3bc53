#!/usr/bin/env bash
# Runs every fuzz target of the module for a while.
#
#   fuzz.sh TIME      such as 10s, for each target
set -euo pipefail

time=${1:?usage: fuzz.sh TIME}
go=${GO:-go}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz PACKAGE TARGET: runs it again when Go's fuzzer itself was late. When time is up just as an input is handed to a
# process, it reports its own time limit as a failure (golang/go#75804); what a target finds always names an input.
fuzz() {
	local try
	for try in 1 2 3; do
		if "$go" test -run '^$' -fuzz "^$2\$" -fuzztime "$time" "$1" 2>&1 | tee "$log"; then
			return 0
		fi
		if ! grep -qE '^ +context deadline exceeded$' "$log" || grep -qE 'Failing input|panic' "$log"; then
			return 1
		fi
	done
	return 1
}

for package in $("$go" list ./...); do
	for target in $("$go" test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		echo "fuzz $package $target"
		fuzz "$package" "$target"
	done
done
