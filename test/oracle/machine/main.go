// Command machine runs a command in the oracle's virtual machine, as root, with the modules ovpn and wireguard
// loaded, and with busybox and OpenVPN in PATH.
//
//	machine [-in FILE]... [-out DIR] [-timeout D] -- COMMAND [ARGUMENT...]
//
// Each file of -in is in PATH there, by its base name. What the command prints appears as it comes, what it leaves
// in /out is copied to the folder of -out, together with the machine's "dmesg", and its exit status is machine's. For example:
//
//	go run ./test/oracle/machine -in bin/ovpn-go -- ovpn-go demo
//
// The machine is emulated: times measured in it are not those of real hardware, and even their ratios tell how many
// instructions something takes more than how fast it is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ovpn-go/test/oracle"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(v string) error { *l = append(*l, v); return nil }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	status, err := run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		// As a shell says: found, but not to be run.
		status = 126
	}
	os.Exit(status)
}

func run(ctx context.Context) (status int, err error) {
	var in list
	flag.Var(&in, "in", "bring this `file` in; may be repeated")
	out := flag.String("out", "", "copy what the command leaves in /out to this `folder`")
	timeout := flag.Duration("timeout", 10*time.Minute, "end the machine after this time")
	build := flag.String("build", "test/oracle/build.sh", "the `script` that builds the machine")
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		return 0, errors.New("no command")
	}
	files := map[string][]byte{"run": script(flag.Args())}
	for _, path := range in {
		content, err := os.ReadFile(path)
		if err != nil {
			return 0, err
		}
		name := filepath.Base(path)
		if files[name] != nil {
			return 0, fmt.Errorf("there is a file %q already", name)
		}
		files[name] = content
	}
	m, err := oracle.Find(ctx, *build)
	if err != nil {
		return 0, err
	}
	result, err := m.Run(ctx, oracle.Job{Files: files, Timeout: *timeout, Terminal: os.Stdout})
	if err != nil {
		return 0, err
	}
	if *out != "" {
		if err := save(*out, result.Files); err != nil {
			return 0, err
		}
	}
	return result.Status, nil
}

// script is a shell script that becomes the command.
func script(args []string) []byte {
	var b strings.Builder
	b.WriteString("#!/bin/sh\nPATH=/job:$PATH exec")
	for _, arg := range args {
		b.WriteString(" '" + strings.ReplaceAll(arg, "'", `'\''`) + "'")
	}
	b.WriteString("\n")
	return []byte(b.String())
}

func save(dir string, files map[string][]byte) error {
	for name, content := range files {
		if !filepath.IsLocal(name) {
			return fmt.Errorf("output %q: %w", name, fs.ErrInvalid)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
