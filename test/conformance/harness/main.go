// Command harness asks the kernel's module and this program the same questions and compares the answers.
//
//	harness [-program FILE] [-document FILE] [-seed N] [-random N] [-keep DIR] [-only REGEXP] [-programs]
//
// It prints what it finds and, with -document, writes the report that is kept in the repository. It ends with status 1
// if there are differences that nobody meant, or a program that fails.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance"
	"ovpn-go/test/conformance/script"
	"ovpn-go/test/oracle"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	good, err := run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(2)
	}
	if !good {
		os.Exit(1)
	}
}

func run(ctx context.Context) (good bool, err error) {
	program := flag.String("program", "bin/ovpn-go", "the program to compare with the kernel")
	document := flag.String("document", "", "write the report to this file")
	seed := flag.Uint64("seed", 1, "for the random sequences")
	random := flag.Int("random", 100, "number of random sequences")
	only := flag.String("only", "", "ask only the sequences whose names match this regular expression")
	programs := flag.Bool("programs", false, "run other people's programs as well")
	keep := flag.String("keep", "", "keep transcripts in this folder; the kernel's is used again if it is there")
	build := flag.String("build", "test/oracle/build.sh", "the script that builds the virtual machine")
	flag.Parse()

	machine, err := oracle.Find(ctx, *build)
	if err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp("", "ovpn-go-conformance-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	runner, err := conformance.BuildRunner(ctx, dir)
	if err != nil {
		return false, err
	}
	chosen, err := regexp.Compile(*only)
	if err != nil {
		return false, err
	}
	written := append(conformance.Corpus(), conformance.PacketCorpus()...)
	sequences := slices.DeleteFunc(append(written, conformance.Random(*seed, *random)...), func(s script.Sequence) bool {
		return !chosen.MatchString(s.Name)
	})
	ours, err := conformance.AskUs(ctx, *program, runner, sequences)
	if err != nil {
		return false, err
	}
	kernel, err := askKernel(ctx, machine, runner, sequences, *keep)
	if err != nil {
		return false, err
	}
	if err := save(*keep, "ours.json", ours); err != nil {
		return false, err
	}
	report := conformance.Compare(sequences, kernel, ours)
	for _, d := range report.Unexplained() {
		fmt.Println(d.String())
	}
	summary := conformance.Summary{Report: report, Written: len(written), Random: *random, Seed: *seed}
	if *programs {
		if summary.Programs, err = conformance.RunPrograms(ctx); err != nil {
			return false, err
		}
	}
	fmt.Print(summary.Table())
	if *document != "" {
		if err := os.WriteFile(*document, []byte(summary.Document()), 0o644); err != nil {
			return false, err
		}
	}
	content := !slices.ContainsFunc(summary.Programs, func(p conformance.Program) bool { return !p.Passed })
	return content && len(report.Unexplained()) == 0 && len(report.Problems) == 0, nil
}

func askKernel(ctx context.Context, m *oracle.Machine, runner string, sequences []script.Sequence, keep string) (*script.Transcript, error) {
	if keep != "" {
		content, err := os.ReadFile(filepath.Join(keep, "kernel.json"))
		if err == nil {
			var t script.Transcript
			return &t, json.Unmarshal(content, &t)
		}
	}
	t, err := conformance.AskKernel(ctx, m, runner, sequences)
	if err != nil {
		return nil, err
	}
	return t, save(keep, "kernel.json", t)
}

func save(dir, name string, t *script.Transcript) error {
	if dir == "" {
		return nil
	}
	content, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), content, 0o644)
}
