# `make` builds, `make demo` shows it at work, `make test` runs everything that judges it.
# Nothing here installs anything; what a target lacks, it names.

GO ?= go
export GO
# How long each fuzz target runs under `make fuzz`; `make test` gives each some seconds.
FUZZTIME ?= 10m
# What `make benchmarks` runs: a regular expression and a number of repeats, for benchstat.
BENCH ?= .
COUNT ?= 1

# Tests run one kind after the other: each kind fills the machine by itself.
.NOTPARALLEL:
.PHONY: build dist sbom demo test requirements lint vulncheck unit race namespaces selftests conformance model soak storm fuzz mutants bench bench-vm bench-document profile \
	benchmarks wireguard-go clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ovpn-go ./cmd/ovpn-go

# What is given to others.
dist:
	for arch in amd64 arm64; do \
		CGO_ENABLED=0 GOOS=linux GOARCH=$$arch $(GO) build -trimpath -o dist/ovpn-go-linux-$$arch ./cmd/ovpn-go || exit; \
	done

# What is in it: a bill of materials (CycloneDX) for each.
sbom: dist
	for arch in amd64 arm64; do \
		$(GO) tool -modfile=test/sbom.mod cyclonedx-gomod bin -json -std -noserial -notimestamp \
			-output dist/ovpn-go-linux-$$arch.cdx.json dist/ovpn-go-linux-$$arch || exit; \
	done

demo: build
	bin/ovpn-go demo

test: FUZZTIME = 5s
test: requirements build lint vulncheck unit race fuzz namespaces selftests

requirements:
	@test/requirements.sh

lint:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then \
		echo "gofmt would change:" $$unformatted >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# Known vulnerabilities that the program reaches; VULNDB may be the file:// URL of a copy of the database.
vulncheck:
	test/vulncheck.sh

# The rooms' own tests, without what runs programs of other people's.
ROOMS = $$($(GO) list ./... | grep -v -E '/test(/|$$)')

unit:
	test/gotest.sh -shuffle=on $(ROOMS)

race:
	test/gotest.sh -race -shuffle=on $(ROOMS)

# Real OpenVPN processes under the program, in network namespaces, and the kernel's own module for comparison.
namespaces:
	test/gotest.sh -p 1 -timeout 25m $$($(GO) list ./test/... | grep -v /selftests)

# The kernel's own tests of its module, on the program. They are fetched and compiled once.
selftests:
	test/gotest.sh -timeout 25m ./test/selftests

# The kernel's module, in an emulated machine, and the program are asked the same, and other people's programs are run;
# writes the report.
conformance: build
	$(GO) run ./test/conformance/harness -program bin/ovpn-go -programs -document docs/conformance.md

# Random sequences of operations, compared with what the model says: `make model SEQUENCES=5000`.
SEQUENCES ?= 500

model:
	OVPN_GO_TEST_SEQUENCES=$(SEQUENCES) $(GO) test -count=1 -timeout 0 -v -run '^TestModel$$' ./test

# Tunnels with traffic, new keys, moves and clients that come and go, for as long as is wanted: what the programs hold must not grow.
# `make namespaces` does the same for half a minute.
SOAK ?= 1h

soak:
	OVPN_GO_TEST_SOAK=$(SOAK) $(GO) test -count=1 -timeout 0 -v -run '^TestSoak$$' ./test

# An OpenVPN server that loses many clients at once, over each transport. `make namespaces` does the same with 60.
STORM ?= 500

storm:
	OVPN_GO_TEST_STORM=$(STORM) $(GO) test -count=1 -timeout 0 -v -run '^TestManyGoAtOnce$$' -parallel 1 ./test

fuzz:
	test/fuzz.sh $(FUZZTIME)

# Mutation testing of what decides about keys, packet ids and replays; also of peers and of requests' attributes, with
# MUTATED="crypto peers netlinksrv" and half an hour. Not part of `make test`, as it takes long. A mutant may take as long as the
# coefficient says, in runs of the room's tests; those of the rooms inside netlinksrv count there, and are long.
MUTATED ?= crypto
# Of netlinksrv.
MUTATED_FILES = policy peer_rules peer_ops key_ops decode
GREMLINS = github.com/go-gremlins/gremlins/cmd/gremlins@v0.6.0
mutants:
	mkdir -p dist/mutants
	for room in $(MUTATED); do \
		only="--timeout-coefficient 20"; \
		[ $$room != netlinksrv ] || only="--timeout-coefficient 2 -E / $(patsubst netlinksrv/%,-E ^%,\
			$(filter-out $(MUTATED_FILES:%=netlinksrv/%.go),$(wildcard netlinksrv/*.go)))"; \
		$(GO) run $(GREMLINS) unleash --workers 2 --invert-assignments --invert-bitwise --invert-bwassign \
			--invert-logical --invert-loopctrl --remove-self-assignments $$only -o dist/mutants/$$room.json ./$$room || exit; \
	done
	$(GO) run ./test/mutants -document docs/mutants.md $(foreach room,$(MUTATED),$(room)=dist/mutants/$(room).json)

# The comparison with others, on this machine and beside the kernel's module in an emulated one; it takes about half an
# hour, and nothing else should run. Without an emulator the document does without that part.
bench: build wireguard-go
	bin/ovpn-go bench --output dist/bench
	-$(MAKE) bench-vm
	$(MAKE) bench-document

bench-vm: build wireguard-go
	rm -rf dist/bench-vm
	$(GO) run ./test/oracle/machine -in bin/ovpn-go -in bin/wireguard-go -out dist/bench-vm -timeout 20m -- \
		ovpn-go bench --cases '^(tcp-1-up|tcp-4-up|udp-1300)$$' --rounds 3 --duration 3s --output /out

# docs/performance.md from what was measured last, such as after writing a note in bench/report/notes.
bench-document: build
	bin/ovpn-go bench $(patsubst %,--from %,$(wildcard dist/bench/performance.json dist/bench-vm/performance.json)) --output docs

# The rival comes from the version in go.mod, by the same compiler.
wireguard-go:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/wireguard-go golang.zx2c4.com/wireguard

# What the compiler optimises for (profile-guided optimisation). To see whether it helps:
#   go build -pgo=off -o bin/off ./cmd/ovpn-go && bin/ovpn-go bench --binary off=bin/off --binary pgo=bin/ovpn-go
profile: build
	rm -rf dist/profile
	bin/ovpn-go bench --binary ovpn-go=bin/ovpn-go --profile dist/profile --rounds 3
	$(GO) tool pprof -proto dist/profile/*.pprof >cmd/ovpn-go/default.pgo

benchmarks:
	$(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -count $(COUNT) $(ROOMS)

clean:
	rm -rf bin dist
