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

// TestModel carries out sequences of operations under the program, and compares all that follows with what the model says:
// a few that are new each time, and many under `make model`.
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
	followModel(t, modelled(t, 30), func(all []script.Sequence) (*script.Transcript, error) {
		return conformance.AskUs(t.Context(), program, runner, all)
	})
}

// TestModuleModel is TestModel of the kernel's module, in an emulated machine, which says whether the model is right. It does not
// take long there, and some sequences are new each time.
func TestModuleModel(t *testing.T) {
	benchtest.Root(t)
	machine := kernelMachine(t)
	runner, err := conformance.BuildRunner(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	followModel(t, modelled(t, 10), func(all []script.Sequence) (*script.Transcript, error) {
		return conformance.AskKernel(t.Context(), machine, runner, all)
	})
}

// followModel has somebody carry out sequences. One that fails is made as short as possible; it can then be put among
// model.Regressions.
func followModel(t *testing.T, all []*conformance.Modelled, ask func([]script.Sequence) (*script.Transcript, error)) {
	t.Helper()
	play := func(sequences []*conformance.Modelled) []string {
		t.Helper()
		var scripts []script.Sequence
		for _, s := range sequences {
			scripts = append(scripts, s.Sequence)
		}
		run, err := ask(scripts)
		if err != nil {
			t.Fatal(err)
		}
		var failures []string
		for i, s := range sequences {
			failures = append(failures, s.Check(run, &run.Sequences[i]))
		}
		return failures
	}
	for sequences := range slices.Chunk(all, 50) {
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

// Variables of the environment that choose the random sequences of operations: how many instead of the few that each
// test has anyway, and of which seed.
const (
	sequencesVariable = "OVPN_GO_TEST_SEQUENCES"
	seedVariable      = "OVPN_GO_TEST_SEED"
)

// modelled returns model.Regressions and random sequences: n, or as many as the environment says.
func modelled(t *testing.T, n int) (all []*conformance.Modelled) {
	t.Helper()
	for _, row := range model.Regressions {
		all = append(all, conformance.NewModelled(row.Name, row.Ops))
	}
	seed := rand.Uint64()
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
