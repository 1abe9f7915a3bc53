package test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"ovpn-go/bench/benchtest"
	"ovpn-go/test/conformance"
	"ovpn-go/test/conformance/script"
	"ovpn-go/test/model"
)

// operations is how many a random sequence has.
const operations = 60

// TestModel carries out random sequences of operations under the program, and compares all that follows with what
// the model says. A sequence that fails is made as short as possible; it can then be put among model.Regressions.
func TestModel(t *testing.T) {
	benchtest.Root(t)
	program, err := raceBinary()
	if err != nil {
		t.Fatal(err)
	}
	runner, err := conformance.BuildRunner(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	play := func(sequences []*conformance.Modelled) []string {
		t.Helper()
		var scripts []script.Sequence
		for _, s := range sequences {
			scripts = append(scripts, s.Sequence)
		}
		run, err := conformance.AskUs(t.Context(), program, runner, scripts)
		if err != nil {
			t.Fatal(err)
		}
		var failures []string
		for i, s := range sequences {
			failures = append(failures, s.Check(run, &run.Sequences[i]))
		}
		return failures
	}
	for sequences := range slices.Chunk(modelled(t), 50) {
		for i, failure := range play(sequences) {
			if failure == "" {
				continue
			}
			t.Error(failure)
			last := "nothing: it does not fail alone"
			short := model.Shrink(sequences[i].Ops, func(candidates [][]model.Op) int {
				var all []*conformance.Modelled
				for _, ops := range candidates {
					all = append(all, conformance.NewModelled("shrunk", ops))
				}
				for i, failure := range play(all) {
					if failure != "" {
						last = failure
						return i
					}
				}
				return -1
			})
			t.Fatalf("shrunk to %d operations:\n%s", len(short), last)
		}
	}
}

// Variables of the environment that choose the random sequences of operations: how many, and of which seed.
const (
	sequencesVariable = "OVPN_GO_TEST_SEQUENCES"
	seedVariable      = "OVPN_GO_TEST_SEED"
)

// modelled returns model.Regressions and as many random sequences as the environment says: `make model`.
func modelled(t *testing.T) (all []*conformance.Modelled) {
	t.Helper()
	for _, row := range model.Regressions {
		all = append(all, conformance.NewModelled(row.Name, row.Ops))
	}
	seed := rand.Uint64()
	n := 0
	var err error
	if text := os.Getenv(seedVariable); text != "" {
		seed, err = strconv.ParseUint(text, 10, 64)
	}
	if text := os.Getenv(sequencesVariable); text != "" && err == nil {
		n, err = strconv.Atoi(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("seed of %d random sequences: %d", n, seed)
	for i := range n {
		all = append(all, conformance.NewModelled(fmt.Sprintf("random %d.%d", seed, i), model.Generate(seed, uint64(i), operations)))
	}
	return all
}
