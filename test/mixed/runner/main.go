// Command runner makes tunnels between the kernel's ovpn module and the program, and writes down what holds of them.
// It runs as root on a kernel that has the module.
//
//	runner list                             print the claims, one a line
//	runner check PROGRAM RECORD [REGEXP]    check them, or those groups of them whose names match, with the
//	                                        program at that path, and write a record (package record)
//	runner end SOCKET [COMMAND...]          be one end of a tunnel, for another runner to direct
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"sync"

	"ovpn-go/test/mixed/record"
)

func main() {
	status, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "runner:", err)
		status = 1
	}
	os.Exit(status)
}

func run(args []string) (status int, err error) {
	switch {
	case len(args) == 1 && args[0] == "list":
		for _, g := range groups() {
			for _, claim := range g.claims {
				fmt.Println(g.name + "/" + claim)
			}
		}
		return 0, nil
	case len(args) >= 3 && len(args) <= 4 && args[0] == "check":
		wanted := regexp.MustCompile("")
		if len(args) == 4 {
			if wanted, err = regexp.Compile(args[3]); err != nil {
				return 0, err
			}
		}
		return 0, check(args[1], args[2], wanted)
	case len(args) >= 2 && args[0] == "end":
		return serveEnd(args[1], args[2:])
	}
	return 0, fmt.Errorf("usage: %s list | check PROGRAM RECORD [REGEXP] | end SOCKET [COMMAND...]", os.Args[0])
}

// atOnce is how many groups run at a time. Many wait most of the time.
const atOnce = 4

func check(program, path string, wanted *regexp.Regexp) error {
	queue := make(chan group)
	var (
		mu     sync.Mutex
		claims []record.Claim // guarded by mu
		team   sync.WaitGroup
	)
	for range atOnce {
		team.Go(func() {
			for g := range queue {
				results := g.check(context.Background(), program)
				mu.Lock()
				claims = append(claims, results...)
				mu.Unlock()
			}
		})
	}
	for _, g := range groups() {
		if wanted.MatchString(g.name) {
			queue <- g
		}
	}
	close(queue)
	team.Wait()
	content, err := json.MarshalIndent(claims, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}
