# `make` builds, `make demo` shows it at work, `make test` runs everything that judges it.
# Nothing here installs anything; what a target lacks, it names.

GO ?= go
# How long each fuzz target runs under `make fuzz`.
FUZZTIME ?= 10s
# What `make bench` runs: a regular expression and a number of repeats, for benchstat.
BENCH ?= .
COUNT ?= 1

.PHONY: build demo test requirements lint unit race namespaces selftests conformance fuzz bench clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ovpn-go ./cmd/ovpn-go

demo: build
	bin/ovpn-go demo

test: requirements build lint race namespaces selftests

requirements:
	@test/requirements.sh

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then \
		echo "gofmt would change:" $$unformatted >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# The rooms' own tests, without what runs programs of other people's.
ROOMS = $$($(GO) list ./... | grep -v -E '/test(/|$$)')

unit:
	$(GO) test -shuffle=on $(ROOMS)

race:
	$(GO) test -race -shuffle=on $(ROOMS)

# Real OpenVPN processes under the program, in network namespaces, and the kernel's own module for comparison.
namespaces:
	$(GO) test -count=1 -p 1 -timeout 25m $$($(GO) list ./test/... | grep -v /selftests)

# The kernel's own tests of its module, on the program. They are fetched and compiled once.
selftests:
	$(GO) test -count=1 -timeout 25m ./test/selftests

# The kernel's module, in an emulated machine, and the program are asked the same; writes the report.
conformance: build
	$(GO) run ./test/conformance/harness -program bin/ovpn-go -document docs/conformance.md

fuzz:
	test/fuzz.sh $(FUZZTIME)

bench:
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) $(ROOMS)

clean:
	rm -rf bin dist
