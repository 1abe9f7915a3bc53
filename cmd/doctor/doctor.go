// Package doctor finds out what of the program works on a machine, in a container, for a user, and what to do about
// the rest. It tries things instead of believing what versions and permissions suggest, and leaves nothing behind.
package doctor

import (
	"fmt"
	"os/exec"
)

// Severity says how much a finding matters. A greater one matters more.
type Severity int

// The severities, which are also the command's exit statuses.
const (
	OK       Severity = iota
	Degraded          // it works, slower or with less
	Failed            // it can't work
)

// String returns the severity's name in reports.
func (s Severity) String() string {
	switch s {
	case OK:
		return "ok"
	case Degraded:
		return "degraded"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("severity %d", int(s))
}

// MarshalText returns the severity's name.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is the outcome of one check.
type Finding struct {
	// Check is the name of what was looked at; it does not change between versions.
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	// Detail is what was found.
	Detail string `json:"detail"`
	// Effect is what that means for the program's work; empty if all is well.
	Effect string `json:"effect,omitempty"`
	// Advice is what can be done; empty if all is well.
	Advice string `json:"advice,omitempty"`
}

// Doctor examines the machine as the calling process sees it.
type Doctor struct {
	// Program is the path of the program itself, which is run as a client of its own.
	Program string
	// Started is called before each check, with its name; nil is nobody.
	Started func(check string)
}

// checks are in the order of the report: what is needed first.
var checks = []struct {
	name string
	run  func(Doctor) Finding
}{
	{"kernel", Doctor.kernel},
	{"capabilities", Doctor.capabilities},
	{"tun device", Doctor.tunDevice},
	{"tun offloads", Doctor.tunOffloads},
	{"descriptor limit", Doctor.descriptorLimit},
	{"seccomp notification", Doctor.seccomp},
	{"client's descriptors", Doctor.clientDescriptors},
	{"client's memory", Doctor.clientMemory},
	{"client", Doctor.client},
	{"namespaces", Doctor.namespaces},
	{"port sharing", Doctor.portSharing},
	{"udp segmentation", Doctor.udpSegmentation},
	{"udp coalescing", Doctor.udpCoalescing},
	{"control packets", Doctor.controlPackets},
	{"socket buffers", Doctor.socketBuffers},
	{"socket watch", Doctor.socketWatch},
	{"daemon", Doctor.daemon},
	{"kernel module", Doctor.kernelModule},
}

// Examine runs all checks.
func (d Doctor) Examine() []Finding {
	findings := make([]Finding, 0, len(checks))
	for _, check := range checks {
		if d.Started != nil {
			d.Started(check.name)
		}
		finding := check.run(d)
		finding.Check = check.name
		findings = append(findings, finding)
	}
	return findings
}

// Worst returns the greatest severity among findings.
func Worst(findings []Finding) Severity {
	worst := OK
	for _, f := range findings {
		worst = max(worst, f.Severity)
	}
	return worst
}

func ok(format string, args ...any) Finding { return Finding{Detail: fmt.Sprintf(format, args...)} }

func degraded(detail, effect, advice string) Finding {
	return Finding{Severity: Degraded, Detail: detail, Effect: effect, Advice: advice}
}

func failed(detail, effect, advice string) Finding {
	return Finding{Severity: Failed, Detail: detail, Effect: effect, Advice: advice}
}

// ChildCommand is the argument that makes the program wait for the end of its standard input.
const ChildCommand = "doctor-child"

// withChild runs fn with a process of ours that waits.
func (d Doctor) withChild(fn func(pid int) Finding) (Finding, error) {
	cmd := exec.Command(d.Program, ChildCommand)
	in, err := cmd.StdinPipe()
	if err != nil {
		return Finding{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return Finding{}, err
	}
	if err := cmd.Start(); err != nil {
		return Finding{}, err
	}
	// Until it has written something it may not have got rid of what is ours, such as the rights to look into it.
	_, _ = out.Read(make([]byte, 1))
	finding := fn(cmd.Process.Pid)
	in.Close()
	_ = cmd.Wait() // it is asked nothing that it could fail at
	return finding, nil
}
