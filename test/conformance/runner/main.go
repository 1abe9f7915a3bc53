// Command runner executes sequences of netlink requests and writes a transcript of the answers. It speaks to
// whoever answers AF_NETLINK where it runs, and knows nothing about who that is.
//
//	runner SEQUENCES.json TRANSCRIPT.json
//
// It must be root, as every sequence gets a network namespace of its own.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"ovpn-go/test/conformance/script"
)

// childFlag makes the program run one sequence of standard input, in the namespaces it finds itself in.
const childFlag = "-child"

func main() {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == childFlag:
		err = runChild()
	case len(os.Args) == 3:
		err = runAll(os.Args[1], os.Args[2])
	default:
		err = fmt.Errorf("usage: %s SEQUENCES.json TRANSCRIPT.json", os.Args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "runner:", err)
		os.Exit(1)
	}
}

// atOnce is how many predicted sequences run at a time. They spend their time waiting.
const atOnce = 6

func runAll(in, out string) error {
	content, err := os.ReadFile(in)
	if err != nil {
		return err
	}
	var sequences []script.Sequence
	if err := json.Unmarshal(content, &sequences); err != nil {
		return fmt.Errorf("%s: %w", in, err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return fmt.Errorf("uname: %w", err)
	}
	transcript := script.Transcript{Kernel: unix.ByteSliceToString(name.Release[:])}
	ids, err := resolveFamily()
	if err != nil {
		return fmt.Errorf("resolve the family: %w", err)
	}
	transcript.Family, transcript.Group = ids.family, ids.group
	transcript.Sequences = make([]script.Results, len(sequences))
	var beside sync.WaitGroup
	free := make(chan int, atOnce) // ranges of descriptors
	for n := range atOnce {
		free <- firstFD + n*manyFDs
	}
	for i, sequence := range sequences {
		switch {
		case sequence.Predicted:
			fds := <-free
			beside.Go(func() {
				transcript.Sequences[i] = inNetNamespace(sequence, ids, unix.CLONE_NEWNET, fds)
				free <- fds
			})
		case sequence.Unprivileged:
			transcript.Sequences[i] = inUserNamespace(sequence)
		default:
			transcript.Sequences[i] = inNetNamespace(sequence, ids, unix.CLONE_NEWNET, firstFD)
		}
	}
	beside.Wait()
	content, err = json.Marshal(transcript)
	if err != nil {
		return err
	}
	return os.WriteFile(out, content, 0o644)
}

// inNetNamespace runs a sequence on a thread of its own, which the runtime ends with the goroutine, and with it the
// namespace. Its descriptors have numbers from fds on.
func inNetNamespace(sequence script.Sequence, ids family, unshare, fds int) script.Results {
	done := make(chan script.Results)
	go func() {
		runtime.LockOSThread()
		if unshare != 0 {
			if err := unix.Unshare(unshare); err != nil {
				done <- script.Results{Name: sequence.Name, Problem: "unshare: " + err.Error()}
				return
			}
		}
		done <- run(sequence, ids, fds)
	}()
	return <-done
}

// inUserNamespace runs a sequence in another process, because a process with threads can't enter a user namespace.
func inUserNamespace(sequence script.Sequence) script.Results {
	failed := script.Results{Name: sequence.Name}
	in, err := json.Marshal(sequence)
	if err != nil {
		failed.Problem = err.Error()
		return failed
	}
	cmd := exec.Command("/proc/self/exe", childFlag)
	cmd.Stdin = bytes.NewReader(in)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		GidMappingsEnableSetgroups: false,
	}
	out, err := cmd.Output()
	if err != nil {
		failed.Problem = "run in a user namespace: " + err.Error()
		return failed
	}
	var results script.Results
	if err := json.Unmarshal(out, &results); err != nil {
		failed.Problem = err.Error()
		return failed
	}
	return results
}

func runChild() error {
	var sequence script.Sequence
	if err := json.NewDecoder(os.Stdin).Decode(&sequence); err != nil {
		return err
	}
	ids, err := resolveFamily()
	if err != nil {
		return fmt.Errorf("resolve the family: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(inNetNamespace(sequence, ids, 0, firstFD))
}
