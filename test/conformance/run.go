package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"ovpn-go/test/conformance/script"
	"ovpn-go/test/oracle"
)

// BuildRunner builds the static program that carries out sequences, into dir.
func BuildRunner(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "runner")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "ovpn-go/test/conformance/runner")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return path, nil
}

// patience is how long a run may take on either side. An emulated machine that others leave little time takes long.
const patience = 10 * time.Minute

// AskKernel carries out sequences in the virtual machine, where the module answers, with one boot.
func AskKernel(ctx context.Context, machine *oracle.Machine, runner string, sequences []script.Sequence) (*script.Transcript, error) {
	program, err := os.ReadFile(runner)
	if err != nil {
		return nil, err
	}
	questions, err := json.Marshal(sequences)
	if err != nil {
		return nil, err
	}
	result, err := machine.Run(ctx, oracle.Job{Files: map[string][]byte{
		"run":            []byte("#!/bin/sh\nexec /job/runner /job/sequences.json /out/transcript.json\n"),
		"runner":         program,
		"sequences.json": questions,
	}, Timeout: patience})
	if err != nil {
		return nil, err
	}
	if result.Status != 0 {
		return nil, fmt.Errorf("the runner on the kernel ended with status %d: %s\n%s",
			result.Status, result.Files["stderr"], result.Files["dmesg"])
	}
	if err := result.Complaint(); err != nil {
		return nil, err
	}
	return readTranscript(result.Files["transcript.json"])
}

// AskUs carries out sequences under "program exec", and watches what requests that are refused change. The transcript comes
// with all that the program has logged.
func AskUs(ctx context.Context, program, runner string, sequences []script.Sequence) (_ *script.Transcript, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dir, err := os.MkdirTemp("", "ovpn-go-conformance-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	watched := slices.Clone(sequences)
	for i := range watched {
		watched[i].Watch = !watched[i].Predicted
	}
	questions, err := json.Marshal(watched)
	if err != nil {
		return nil, err
	}
	in, out, log := filepath.Join(dir, "sequences.json"), filepath.Join(dir, "transcript.json"), filepath.Join(dir, "log")
	if err := os.WriteFile(in, questions, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, "exec", "--datapath", "userspace", "--log-file", log, "--log-level", "debug", "--", runner, in, out)
	// Told to end, it ends its client and deletes the interfaces.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	text, err := cmd.CombinedOutput()
	logged, _ := os.ReadFile(log)
	if err != nil {
		const enough = 4 << 10
		return nil, fmt.Errorf("%s: %w\n%s\n%s", strings.Join(cmd.Args, " "), err, text, logged[max(0, len(logged)-enough):])
	}
	content, err := os.ReadFile(out)
	if err != nil {
		return nil, err
	}
	t, err := readTranscript(content)
	if err == nil {
		t.Log = string(logged)
	}
	return t, err
}

func readTranscript(content []byte) (*script.Transcript, error) {
	var t script.Transcript
	if err := json.Unmarshal(content, &t); err != nil {
		return nil, fmt.Errorf("transcript: %w", err)
	}
	if t.Family == 0 {
		return nil, errors.New("there was no family ovpn")
	}
	return &t, nil
}
