package test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"ovpn-go/bench/benchtest"
	"ovpn-go/test/conformance"
)

// TestConformance asks the kernel's module, in an emulated machine, and the program the same questions, and sends both
// the same packets. A request that the program refuses must leave everything as it was. What
// `make conformance` asks with every combination of socket options is asked with two here, and other random
// requests each time.
func TestConformance(t *testing.T) {
	benchtest.Root(t)
	machine := kernelMachine(t)
	program, err := raceBinary()
	if err != nil {
		t.Fatal(err)
	}
	runner, err := conformance.BuildRunner(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const random = 20
	seed := rand.Uint64()
	t.Logf("seed of the random requests: %d", seed)
	sequences := slices.Concat(conformance.Sample(), conformance.PacketCorpus(), conformance.Random(seed, random))
	ours, err := conformance.AskUs(t.Context(), program, runner, sequences)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := conformance.AskKernel(t.Context(), machine, runner, sequences)
	if err != nil {
		t.Fatal(err)
	}
	report := conformance.Compare(sequences, kernel, ours)
	packets := report.Packets()
	t.Logf("%d of %d requests were answered identically, %d of %d packet cases had the same outcome",
		report.Identical, report.Requests, packets.Identical, packets.Requests)
	t.Logf("%d requests were refused, and looked at for what they change", report.Refusals)
	if report.Refusals == 0 {
		t.Error("no request was refused while what it changes was watched")
	}
	for _, problem := range report.Problems {
		t.Error(problem)
	}
	for _, d := range report.Unexplained() {
		t.Error(d.String())
	}
}
