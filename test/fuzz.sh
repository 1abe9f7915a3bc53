#!/usr/bin/env bash
# Runs every fuzz target of the module for a while.
#
#   fuzz.sh TIME      such as 10s, for each target
set -euo pipefail

time=${1:?usage: fuzz.sh TIME}
go=${GO:-go}

for package in $("$go" list ./...); do
	for target in $("$go" test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		echo "fuzz $package $target"
		"$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package"
	done
done
